"""Runs on a host, under Salt's own Python: applies the highstate, or looks at files after a power cut.

It is sent to the host as text, so it imports nothing of this repository. Its argument is a JSON object:
`{"apply": {...}}` or `{"check": {...}}`. It prints a line `green` the moment the highstate has succeeded, and one
line of JSON in the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GREEN = "green"
LIMIT = 600  # seconds for a highstate


def changed_since(folders: list[str], moment: float) -> dict[str, str]:
    """Return the digests of all regular files below some folders that changed at or after a moment."""
    found = {}
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                path = Path(where, name)
                try:
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and status.st_ctime >= moment:
                        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
                except FileNotFoundError:
                    continue  # somebody's temporary file
    return found


def apply(folders: list[str], remove: list[str], exclude: list[str]) -> dict[str, Any]:
    """Run the highstate and say what it wrote.

    Takes the folders to look into, files to remove before, and ids of states to leave out. Returns figures and the
    digests of the changed files, or the states that failed.
    """
    for path in remove:
        Path(path).unlink(missing_ok=True)
    # What was there before the highstate is not its work, and must not be lost for its sake.
    os.sync()
    argv = ["salt-call", "--local", "--out=json", "--retcode-passthrough", "state.highstate"]
    if exclude:
        argv.append(f"exclude={json.dumps([{'id': name} for name in exclude])}")
    moment, begun = time.time(), time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False)
    seconds = time.monotonic() - begun
    try:
        rows = json.loads(done.stdout)["local"]
        failed = [f"{row.get('__id__')}: {row.get('comment')}" for row in rows.values() if row.get("result") is False]
    except (ValueError, KeyError, AttributeError):
        failed = [(done.stdout + done.stderr).decode("utf-8", "replace")[-2000:]]
    if failed or done.returncode:
        return {"failed": failed or [f"return code {done.returncode}"]}
    print(GREEN, flush=True)
    changed = [row.get("__id__") for row in rows.values() if row.get("changes")]
    flushes = [row for tag, row in rows.items() if tag.startswith("durable_|-")]
    return {
        "seconds": round(seconds, 2), "states": len(rows), "changed": changed,
        "flushes": [row["__id__"] for row in flushes],
        "flushed_in": round(sum(row.get("duration", 0) for row in flushes) / 1000, 2),
        "files": changed_since(folders, moment),
    }  # fmt: skip


def check(files: dict[str, str]) -> dict[str, Any]:
    """Compare files with the digests that they had: returns those that are empty, missing or different."""
    nothing = hashlib.sha256().hexdigest()
    lost: dict[str, str] = {}
    for name, digest in files.items():
        try:
            now = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        except FileNotFoundError:
            lost[name] = "missing"
            continue
        if now != digest:
            lost[name] = "empty" if now == nothing else "other"
    return {"lost": lost}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(apply(**wanted["apply"]) if "apply" in wanted else check(**wanted["check"])))

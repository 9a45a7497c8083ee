"""Runs on a lab host, under Salt's own Python: times programs, or the compilation of the highstate.

It is sent to the host as text, so it imports nothing of this repository. Its argument is a JSON
object: `{"time": [argv, ...], "repeat": n}` runs the programs in turn, n rounds;
`{"compile": {...}}` compiles the highstate in this process. It prints one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from typing import Any

LIMIT = 1800  # seconds for one program


def time_programs(programs: list[list[str]], repeat: int) -> list[dict[str, Any]]:
    """Run every program in each round; return seconds, return codes and the end of each output."""
    results: list[dict[str, Any]] = [{"seconds": [], "codes": [], "outputs": []} for _ in programs]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for _ in range(repeat):
        for argv, result in zip(programs, results, strict=True):
            begun = time.monotonic()
            done = subprocess.run(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
                check=False,
            )
            result["seconds"].append(time.monotonic() - begun)
            result["codes"].append(done.returncode)
            result["outputs"].append(done.stdout.decode("utf-8", "replace")[-4000:])
    return results


def packages_of(chunks: list[dict[str, Any]]) -> list[str]:
    """Return the names of all packages that a list of low states installs."""
    names: set[str] = set()
    for chunk in chunks:
        if chunk["state"] == "pkg" and chunk["fun"] in ("installed", "latest"):
            for package in chunk.get("pkgs") or [chunk["name"]]:
                names.update(package if isinstance(package, dict) else [package])
    return sorted(names)


def compile_highstate(config: str, repeat: int) -> dict[str, Any]:
    """Compile this host's highstate as a run of it would, several times in this process.

    Takes the path of a minion's configuration and how often. Returns the seconds of each
    compilation alone (no start of Salt, no pillar, no login at the master), the number of states
    and of SLS files that they are in, and the packages that they install; or the errors.
    """
    import salt.client  # noqa: PLC0415  only this half needs Salt
    import salt.config  # noqa: PLC0415
    import salt.state  # noqa: PLC0415

    # As salt-call does; what is logged below that would be made and thrown away.
    logging.getLogger().setLevel(logging.WARNING)
    options = salt.config.minion_config(config)
    seconds = []
    plain = salt.state.HighState.compile_low_chunks

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic()
        try:
            return plain(self, *args, **kwargs)
        finally:
            seconds.append(time.monotonic() - begun)

    salt.state.HighState.compile_low_chunks = timed
    for _ in range(repeat):
        chunks = salt.client.Caller(mopts=options).cmd("state.show_lowstate")
        if not chunks or not all(isinstance(chunk, dict) for chunk in chunks):
            return {"error": str(chunks)[:2000]}
    if len(seconds) != repeat:
        return {"error": f"{len(seconds)} compilations instead of {repeat}"}
    files = {chunk["__sls__"] for chunk in chunks}
    durable = sorted({chunk["__id__"] for chunk in chunks if chunk["state"] == "durable"})
    return {
        "seconds": seconds, "states": len(chunks), "files": len(files),
        "packages": packages_of(chunks), "durable": durable,
    }  # fmt: skip


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    if "compile" in wanted:
        print(json.dumps(compile_highstate(**wanted["compile"])))
    else:
        print(json.dumps(time_programs(wanted["time"], wanted["repeat"])))

"""Runs on a machine whose uplink moves: makes the change and measures for how long a port does not answer.

It is given to ``python3 -c`` in a unit of its own, with the request as JSON, and leaves its result in /run.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVERY, PATIENCE = 0.1, 0.3
RESULT = Path("/run/bench-outage.json")


def watch(request: dict[str, Any], answered: list[float], end: float) -> None:
    """Note when the port answered, until the end."""
    while time.monotonic() < end:
        try:
            with socket.create_connection((request["address"], request["port"]), timeout=PATIENCE):
                answered.append(time.monotonic())
        except OSError:
            pass
        time.sleep(EVERY)


def mode(name: str) -> int:
    """Return the mode of a file: NetworkManager and netplan want nobody else to read theirs; networkd is not root."""
    return 0o644 if name.startswith("/etc/systemd/network/") else 0o600


def exchange(files: dict[str, str | None]) -> None:
    """Write files, and remove those without content."""
    for name, text in files.items():
        path = Path(name)
        if text is None:
            path.unlink()
        else:
            path.touch(mode(name))
            path.write_text(text, encoding="utf-8")


def longest(answered: list[float], begun: float, end: float) -> float:
    """Return the longest time between two answers after the change has begun; until the end if there is no more."""
    before = [moment for moment in answered if moment <= begun][-1:] or [begun]
    moments = [*before, *(moment for moment in answered if moment > begun), end]
    return max(later - earlier for earlier, later in itertools.pairwise(moments))


def main() -> None:
    """Make the change and write down the outage."""
    request = json.loads(sys.argv[1])
    answered: list[float] = []
    end = time.monotonic() + request["watched"]
    watcher = threading.Thread(target=watch, args=(request, answered, end))
    watcher.start()
    time.sleep(3)
    begun = time.monotonic()
    for argv in request["commands"]:
        if argv == ["FILES"]:
            exchange(request["files"])
        else:
            subprocess.run(argv, input=request["stdin"], text=True, check=False, timeout=request["watched"])
    watcher.join()
    new = RESULT.with_suffix(".new")
    new.write_text(json.dumps({"outage": longest(answered, begun, end)}), encoding="utf-8")
    new.replace(RESULT)


if __name__ == "__main__":
    main()

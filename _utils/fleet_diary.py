"""What an act on the fleet has done so far: a file of JSON lines for each job, which the live inventory reads.

An event proves nothing, since any minion can send one; into this folder the master's own user alone can write. A file
is locked for as long as its process works: one that is not and has no end was cut short.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

_JOB = re.compile(r"[0-9]{20}(_[0-9a-z]{1,32})?")
_MOST = 200  # files that are kept, besides those of acts that are at work
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Diary:
    """The file of one job. An act goes on without it where it cannot be written.

    Args:
        descriptor: of the file, which is locked; -1 for none.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def note(self, step: str, **what: Any) -> None:
        """Appends a line."""
        now = dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"at": now, "step": step, **what}) + "\n"
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, line.encode())

    def close(self) -> None:
        """Lets the file go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def begin(base: str, jid: str, **what: Any) -> Diary:
    """Begins the file of a job.

    Args:
        base: the master's folder of caches.
        jid: Salt's id of the job; without one nothing is kept.
        what: ``function``, ``user``, the hosts that the act may name (``scope``), and what it is about.
    """
    descriptor = -1
    if _JOB.fullmatch(jid):
        with contextlib.suppress(OSError):
            folder = Path(base) / "hypervisor-fleet" / "jobs"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.jsonl"))[: 1 - _MOST]:
                _drop(old)
            descriptor = _made(folder / f"{jid}.jsonl")
    found = Diary(descriptor)
    found.note("begin", **what)
    return found


def _made(path: Path) -> int:
    """Makes a file and locks it; returns its descriptor."""
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        # Another act has dropped it before it was locked.
        os.close(descriptor)


def _drop(path: Path) -> None:
    """Removes a file, unless its act is at work."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)

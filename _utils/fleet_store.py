"""What the master keeps of acts on the fleet: who holds a guest now, and which guests an evacuated host had.

A lock is one of the kernel on an open file, so it ends with its process, however that ends.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def _now() -> str:
    """Returns the time as it is kept."""
    return dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds")


def _folder(base: str, kind: str) -> Path:
    """Returns a folder of the master's, made if it is not there."""
    folder = Path(base) / "hypervisor-fleet" / kind
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class Lock:
    """A guest or a host that one act has for itself.

    Args:
        path: the file.
        descriptor: of the file, which is locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Gives it back; a second time does nothing."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def lock(base: str, kind: str, name: str, who: dict[str, str]) -> tuple[Lock | None, str]:
    """Takes a guest or a host for one act.

    Args:
        base: the master's folder of caches.
        kind: "guests" or "hosts".
        name: has passed an allow-list before.
        who: ``function``, ``user`` and ``jid`` of the act.

    Returns:
        The lock and "", or None and what to say of it, which begins with "is held by".
    """
    path = _folder(base, kind) / f"{name}.lock"
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            return None, f"is held by {_holder(held)}"
        try:
            current = path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if current:
            break
        # Whoever had it has removed the file in between.
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who | {"since": _now()}).encode(), 0)
    return Lock(path, descriptor), ""


def _holder(held: bytes) -> str:
    """Says who has a lock."""
    try:
        found = json.loads(held)
        return f"{found['function']} of {found['user']} (job {found['jid']}, since {found['since']})"
    except (ValueError, KeyError, TypeError):
        return "another act"


# ---- evacuated hosts ----
#
# A record is a file of JSON lines: the first is all of it when it was begun, and each further one a step, which is
# appended. So a step costs the same however many guests there are, and what a killed act has noted stays.


def record(base: str, host: str) -> dict[str, Any] | None:
    """Returns what is known of a host that was evacuated; None for one that was not.

    Returns:
        ``host``, ``since``, ``user`` and ``guests``: by UUID the ``name``, where it went ``to``, whether it is still
        ``moving`` and ``at`` (when).
    """
    try:
        first, *steps = _record(base, host).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return None
    found = dict(json.loads(first))
    for line in steps:
        try:
            step = json.loads(line)
        except ValueError:
            # Nothing after the last one, or half a step of a master that lost its power.
            continue
        found["guests"].pop(step["uuid"], None)
        if "guest" in step:
            found["guests"][step["uuid"]] = step["guest"]
    return found


def evacuated(base: str) -> list[str]:
    """Returns the hosts that are evacuated."""
    return sorted(path.stem for path in _folder(base, "evacuated").glob("*.json"))


def begin(base: str, host: str, user: str) -> dict[str, Any]:
    """Returns the record of a host that is evacuated, a new one if there is none; steps of acts before become one."""
    found = record(base, host) or {"host": host, "since": _now(), "user": user, "guests": {}}
    _write(base, host, found)
    return found


def note(base: str, host: str, guest: dict[str, str], to: str, moving: bool) -> None:
    """Notes where a guest of an evacuated host goes, before it moves and when it has."""
    row: dict[str, Any] = {"name": guest["name"], "to": to, "at": _now()}
    _append(base, host, {"uuid": guest["uuid"], "guest": row | ({"moving": True} if moving else {})})


def forget(base: str, host: str, uuid: str) -> None:
    """Forgets a guest that is back, or that did not go."""
    _append(base, host, {"uuid": uuid})


def end(base: str, host: str) -> None:
    """Ends the evacuation of a host."""
    _record(base, host).unlink(missing_ok=True)


def _record(base: str, host: str) -> Path:
    """Returns where the record of a host is."""
    return _folder(base, "evacuated") / f"{host}.json"


def _append(base: str, host: str, step: dict[str, Any]) -> None:
    """Appends a step to a record, where it is on disk when this returns; without a record does nothing."""
    try:
        descriptor = os.open(_record(base, host), _APPEND)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(descriptor).st_size
        # Half a step before this one does not spoil it.
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        line = (b"\n" if torn else b"") + json.dumps(step).encode() + b"\n"
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_record(base, host)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(base: str, host: str, found: dict[str, Any]) -> None:
    """Writes a record, which is on disk when this returns."""
    folder = _folder(base, "evacuated")
    new = folder / f".{host}.new"
    with new.open("w", encoding="utf-8") as handle:
        handle.write(json.dumps(found) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(_record(base, host))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

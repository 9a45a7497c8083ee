"""Who did what to which guest, and what became of it: a file of JSON lines on the master that only ever grows.

It is written by the door for operators, before a job is started and once it has ended, and by nobody else. What stands
in it comes from the login and from the master's own cache of jobs, never from an event: any minion may send one with
another's name. A request without an outcome is looked for again after a restart.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# Arguments that tell what was done and cannot be secrets; of others only the name is kept.
_TELLING = frozenset({
    "name", "guest", "kind", "id", "target", "timeout", "disks", "cpu", "mem", "copy_disks", "test", "host", "policy",
    "parallel", "shut_off",
})  # fmt: skip
# Of a creation the rest is a declaration, whatever its keys are called.
_TELLING_OF_CREATE = {"hypervisor.create": frozenset(), "fleet.create": frozenset({"host", "policy", "test"})}
_LONGEST = 64  # characters of an argument
_PATIENCE = 24 * 3600.0  # seconds: as long as Salt keeps jobs, and as a migration may take at most
_OFTEN, _SELDOM = 0.5, 30.0  # seconds between two looks, at first and in the end
_TAIL = 16 * 1024 * 1024  # bytes at the end of a file that are read again

Returns = Callable[[str], Mapping[str, Any]]


def shown(value: Any) -> Any:
    """Returns an argument as it is kept: a number, or a text that is not too long; anything else by its type."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    return f"({type(value).__name__})"


def arguments(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is kept of a request's arguments.

    Args:
        chunk: the request as the door passes it on.

    Returns:
        ``guest``, ``arguments`` (without what can hold a secret) and ``left_out``, the names of the rest.
    """
    given, named = list(chunk.get("arg", [])), dict(chunk["kwarg"])
    guest = named.get("name", named.get("guest", given[0] if given else None))
    telling = _TELLING_OF_CREATE.get(chunk["fun"], _TELLING)
    kept = {key: shown(value) for key, value in named.items() if key in telling and key not in {"name", "guest"}}
    left = sorted(key for key in named if key not in telling and key != "name")
    if chunk["fun"] == "wsproxy.stop":
        # It names a session; whose that was, the outcome says.
        guest, kept = None, {"id": shown(named.get("id", given[0] if given else None))}
    elif len(given) > 1 and chunk["fun"] not in _TELLING_OF_CREATE:
        kept["by_position"] = [shown(value) for value in given[1:]]
    return {"guest": shown(guest), "arguments": kept, "left_out": left}


class Trail:
    """The file.

    Args:
        path: where it is. Rotation may rename it at any time.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        # Jobs without an outcome of each of their hosts.
        self.open: dict[str, Job] = {}

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line, which is on disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=True) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._lock:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
                    os.fchmod(descriptor, 0o600)
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def request(self, user: str, chunk: Mapping[str, Any]) -> str:
        """Writes down what somebody asks for, before it is passed on; returns the number of the request."""
        number = uuid.uuid4().hex
        # The runner's hosts are among its arguments.
        hosts = chunk.get("tgt", [])
        self.write("request", id=number, user=user, function=chunk["fun"], hosts=hosts, **arguments(chunk))
        return number

    def started(self, number: str, job: str, hosts: list[str]) -> None:
        """Writes down which job a request became."""
        try:
            self.write("started", id=number, job=job, hosts=hosts)
        finally:
            # Not before: an outcome that stands above this line is the outcome of nothing.
            self.open[number] = Job(number, job, set(hosts), time.time())

    def recall(self) -> None:
        """Finds the jobs whose outcome is missing, in the file and in the one that was rotated last."""
        for path in (self.path.with_name(f"{self.path.name}.1"), self.path):
            with contextlib.suppress(FileNotFoundError):
                for line in _tail(path):
                    self._recall(line)

    def _recall(self, line: bytes) -> None:
        """Takes one line into account."""
        try:
            record = json.loads(line)
            if record["event"] == "started":
                began = dt.datetime.fromisoformat(record["time"]).timestamp()
                self.open[record["id"]] = Job(record["id"], record["job"], set(record["hosts"]), began)
            elif record["event"] == "outcome" and record["id"] in self.open:
                self.settled(record["id"], record["host"])
        except (ValueError, KeyError, TypeError):
            # Half a line, of a host that lost its power.
            log.warning("a line of %s is not understood", self.path)

    def settled(self, number: str, host: str) -> None:
        """Forgets a host whose outcome is known."""
        self.open[number].hosts.discard(host)
        if not self.open[number].hosts:
            del self.open[number]

    def look(self, returns: Returns, now: float) -> None:
        """Writes down what has become of jobs since the last look.

        Args:
            returns: what hosts have answered to a job, by minion id.
            now: seconds since 1970.
        """
        for job in list(self.open.values()):
            if now < job.next:
                continue
            age = now - job.began
            job.next = now + min(max(_OFTEN, age / 10), _SELDOM)
            answered = returns(job.job)
            for host in sorted(job.hosts):
                if host in answered:
                    self.write("outcome", id=job.number, job=job.job, host=host, **_outcome(answered[host]))
                elif age > _PATIENCE:
                    self.write("outcome", id=job.number, job=job.job, host=host, ok=None, why="no answer")
                else:
                    continue
                self.settled(job.number, host)


class Job:
    """A job of which hosts have not answered yet.

    Args:
        number: of the request.
        job: Salt's id.
        hosts: who has not answered.
        began: when, in seconds since 1970.
    """

    def __init__(self, number: str, job: str, hosts: set[str], began: float) -> None:
        self.number, self.job, self.hosts, self.began = number, job, hosts, began
        self.next = 0.0


def _tail(path: Path) -> list[bytes]:
    """Returns the last lines of a file."""
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - _TAIL))
        if size > _TAIL:
            handle.readline()
        return handle.read().splitlines()


def _outcome(answer: Any) -> dict[str, Any]:
    """Returns what is kept of an answer: whether it succeeded, the guest and its state, but no text of it."""
    answer = answer if isinstance(answer, Mapping) else {}
    value = answer.get("return")
    if isinstance(value, Mapping) and str(value.get("fun")).startswith("runner."):
        # The master's cache has the whole job of a runner where a host's has its return.
        answer = {"return": value.get("return"), "retcode": 0, "success": value.get("success") is True}
    found: dict[str, Any] = {"ok": answer.get("retcode", 1) == 0 and answer.get("success", True) is True}
    value = answer.get("return")
    told = {key: value.get(key) for key in ("state", "guest")} if isinstance(value, Mapping) else {}
    return found | {key: shown(text) for key, text in told.items() if isinstance(text, str)}


def follow(trail: Trail, returns: Returns, stop: threading.Event) -> None:
    """Looks for outcomes until told to stop.

    Args:
        trail: the file.
        returns: what hosts have answered to a job.
        stop: ends it.
    """
    trail.recall()
    while not stop.wait(_OFTEN):
        try:
            trail.look(returns, time.time())
        # Whatever is wrong with one look, the next may succeed, and the file must not end with this thread.
        except Exception:
            log.exception("outcomes of operators' jobs could not be looked for")

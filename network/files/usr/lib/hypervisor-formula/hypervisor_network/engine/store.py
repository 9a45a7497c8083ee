"""What outlives every process: the state of a change, its files and the runtime before it.

All of it lies in one folder. ``state.json`` is written before and after each step, with its predecessor's content or
its own whenever the power goes. ``pending`` exists as long as there is something to finish, so that a boot without it
costs nothing. ``reserve`` is space for the last words on a full disk.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .host import LocalHost

FOLDER = "/var/lib/hypervisor-formula/network"
STATE = f"{FOLDER}/state.json"
CHANGE = f"{FOLDER}/change.json"
CONFIRMED = f"{FOLDER}/confirmed.json"
PENDING = f"{FOLDER}/pending"
RESERVE = f"{FOLDER}/reserve"
LOCK = f"{FOLDER}/lock"
# A person's word, by the command's name.
ASKED = {"confirm": f"{FOLDER}/confirm", "rollback": f"{FOLDER}/rollback"}
RESERVED = 65536  # bytes

IDLE, STAGED, APPLYING, APPLIED = "idle", "staged", "applying", "applied"
CONFIRMED_STATE, ROLLING_BACK, ROLLED_BACK = "confirmed", "rolling-back", "rolled-back"
# Nothing is left to be done in these.
OVER = frozenset({IDLE, CONFIRMED_STATE, ROLLED_BACK})


class BusyError(Exception):
    """Another process is at work; the message is a sentence without a full stop."""


@dataclass(frozen=True)
class State:
    """Where a change stands.

    Attributes:
        state: idle, staged, applying, applied, confirmed, rolling-back or rolled-back.
        id: names the change.
        backend: who sets up the interfaces.
        uplink: whether it touches what carries the connection to the master.
        reason: why it was undone.
        started: when it was begun, in seconds since 1970.
        window: seconds it has to be confirmed.
        outage: seconds for which the master was not reached; None if that is not known.
        verified: whether the runtime after going back equals that before; None if nobody has looked.
        differences: what differs.
        notes: what else went wrong on the way, and what has been waited for.
    """

    state: str = IDLE
    id: str = ""
    backend: str = ""
    uplink: bool = False
    reason: str = ""
    started: float = 0.0
    window: int = 0
    outage: float | None = None
    verified: bool | None = None
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.state in OVER

    def report(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {**asdict(self), "pending": not self.over}


@dataclass(frozen=True)
class Change:
    """All that is needed to make a change and to undo it, as JSON.

    Attributes:
        pillar: the merged pillar.
        profile: what it means on this host, see ``model.stored``.
        backend: who sets up the interfaces.
        changed: names of the interfaces that the change touches.
        before: the files, see ``files.stored``.
        after: the same files as they shall be.
        snapshot: links, addresses, routes, routes6, extra.
        expected: addresses by interface that DHCP must give again.
        targets: what must answer, see ``checks``.
        previous: what was confirmed before this change, see :meth:`Store.confirmed`.
        gateway: whether the routers of the default routes must answer.
        excused: what was not as declared before, of interfaces that the change does not touch.
        rows_before: rows of Open vSwitch's database, see ``switch.Rows``.
        rows_after: the same rows as they shall be.
        untaken: names of interfaces of which the backend itself says that it has not taken their files, which are
            there: the change is good when it has.
    """

    pillar: dict[str, Any]
    profile: dict[str, Any]
    backend: str
    changed: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    snapshot: dict[str, Any]
    expected: dict[str, list[str]] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    previous: Any = None
    gateway: bool = True
    excused: list[str] = field(default_factory=list)
    rows_before: dict[str, Any] = field(default_factory=dict)
    rows_after: dict[str, Any] = field(default_factory=dict)
    untaken: list[str] = field(default_factory=list)


class Store:
    """The folder on a host.

    Args:
        host: the host.
    """

    def __init__(self, host: LocalHost) -> None:
        self.host = host

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process out.

        Raises:
            BusyError: somebody else is at work.
        """
        path = self.host.path(LOCK)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("another process is making or undoing a change") from None
            yield
        finally:
            os.close(descriptor)

    def busy(self) -> bool:
        """Says whether somebody holds the lock."""
        path = self.host.path(LOCK)
        if not path.exists():
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> Any:
        """Reads a JSON file; None if it is not there or not whole."""
        try:
            return json.loads(self.host.path(name).read_bytes())
        except (OSError, ValueError):
            return None

    def state(self) -> State:
        """Returns where the latest change stands."""
        found = self._read(STATE)
        if not isinstance(found, dict):
            return State()
        known = {key: value for key, value in found.items() if key in State.__dataclass_fields__}
        for key in ("differences", "notes"):
            known[key] = tuple(known.get(key) or ())
        return State(**known)

    def set(self, state: State) -> State:
        """Writes where the change stands; on a full disk in place of the reserve."""
        content = json.dumps(asdict(state), indent=1).encode()
        try:
            self.host.write(STATE, content, 0o600)
        except OSError:
            self.host.remove(RESERVE)
            self.host.write(STATE, content, 0o600)
        return state

    def change(self) -> Change | None:
        """Returns the latest change; None without one."""
        found = self._read(CHANGE)
        return Change(**found) if isinstance(found, dict) else None

    def stage(self, state: State, change: Change) -> None:
        """Writes a change down; nothing of the host has been touched yet.

        Raises:
            OSError: the disk is full or broken.
        """
        self.host.write(RESERVE, bytes(RESERVED), 0o600)
        self.host.write(CHANGE, json.dumps(asdict(change)).encode(), 0o600)
        for name in ASKED.values():
            self.host.remove(name)
        self.set(replace(state, state=STAGED))
        self.host.write(PENDING, b"", 0o600)

    def end(self, state: State) -> State:
        """Writes how a change has ended."""
        done = self.set(state)
        self.host.remove(PENDING)
        for name in ASKED.values():
            self.host.remove(name)
        return done

    def asked(self, what: str) -> bool:
        """Says whether a person has asked for "confirm" or "rollback"."""
        return self.host.path(ASKED[what]).exists()

    def ask(self, what: str) -> None:
        """Notes that a person asks for "confirm" or "rollback"."""
        self.host.write(ASKED[what], b"", 0o600)

    def confirmed(self) -> Any:
        """Returns pillar, profile and backend that were confirmed last; None without any."""
        return self._read(CONFIRMED)

    def remember(self, change: Change) -> None:
        """Keeps what was confirmed, to tell later what of it a new pillar changes."""
        self._keep({"pillar": change.pillar, "profile": change.profile, "backend": change.backend})

    def forget(self, change: Change) -> None:
        """Goes back to what was confirmed before a change that had been confirmed and was undone by a person."""
        if change.previous is None:
            self.host.remove(CONFIRMED)
        else:
            self._keep(change.previous)

    def _keep(self, kept: Any) -> None:
        """Writes what was confirmed."""
        self.host.write(CONFIRMED, json.dumps(kept).encode(), 0o600)

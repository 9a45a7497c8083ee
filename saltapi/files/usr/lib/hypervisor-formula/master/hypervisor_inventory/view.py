"""What is served of the inventory: snapshots by who may see what, and the changes since a revision. Pure."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hypervisor_inventory import access, store

_FRESH = 2.0  # seconds for which a snapshot's "now" is good enough
_MOST_SNAPSHOTS = 32
_BESIDE = 60_000  # milliseconds between a move and what libvirt does with it
_COMPRESSED_FROM = 1024  # bytes
_LEVEL = 4

Records = Mapping[str, Mapping[str, tuple[int, str, Any]]]


class Snapshot(NamedTuple):
    """A body that is ready to be sent."""

    tag: str
    plain: bytes
    packed: bytes
    made: float


class Login(NamedTuple):
    """Who looks.

    Attributes:
        user: the name.
        words: name and functions, as a snapshot has them.
        visible: the hosts where a role is good.
        digest: of the words, which are long where there are many hosts.
    """

    user: str
    words: str
    visible: frozenset[str]
    digest: str

    @classmethod
    def of(cls, user: str, functions: Mapping[str, list[str]]) -> Login:
        """Makes one of a name and the functions of each host."""
        words = dumped({"name": user, "functions": functions})
        return cls(user, words, frozenset(functions), hashlib.sha256(words.encode()).hexdigest())


def dumped(value: Any) -> str:
    """Returns JSON without blanks, in ASCII: no character in it ends a line of the stream."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def stale(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a host's record as it is served while the engine on the master does not work."""
    problems = ["the inventory on the master does not work; see: journalctl -u salt-master"]
    return {**record, "live": False, "problems": problems + list(record["problems"])}


def shown(kind: str, host: str, record: Any, login: Login, beating: bool) -> dict[str, Any] | None:
    """Returns what is served of a record, None for nothing."""
    if record is None:
        return None
    found = access.seen(kind, host, record, login.visible, login.user)
    if found is None or kind != "hosts":
        return found
    # The key says which host it is.
    found.pop("host", None)
    return found if beating else stale(found)


def everything(records: Records, login: Login, beating: bool) -> dict[str, dict[str, Any]]:
    """Returns all that somebody may see, by kind and key."""
    found: dict[str, dict[str, Any]] = {}
    for kind in store.KINDS:
        rows = ((key, shown(kind, row[1], row[2], login, beating)) for key, row in records[kind].items())
        found[kind] = {key: value for key, value in rows if value is not None}
    return found


def changes(
    records: Records, keys: list[tuple[str, str]], revision: int, login: Login, beating: bool
) -> dict[str, Any] | None:
    """Returns what somebody learns of changes; None for nothing.

    Args:
        records: as they are now.
        keys: kind and key of what has changed.
        revision: the last one.
        login: who looks.
        beating: whether the engine on the master works.
    """
    new: dict[str, dict[str, Any]] = {}
    gone: dict[str, list[str]] = {}
    for kind, key in keys:
        _, host, record = records[kind][key]
        value = shown(kind, host, record, login, beating)
        if value is not None:
            new.setdefault(kind, {})[key] = value
        # A job that is gone has no hosts by which it could be known whether it was seen: its number alone is.
        elif record is None and (kind == "jobs" or host in login.visible):
            gone.setdefault(kind, []).append(key)
    return {"revision": revision, "set": new, "gone": gone} if new or gone else None


def happened(rows: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Returns what has happened to a guest as it is served.

    What libvirt does to definitions while a guest moves says no more than the move.

    Args:
        rows: host, milliseconds since 1970 and a word, the newest first.
    """
    moved = {(host, {"left": "undefined", "arrived": "defined"}.get(what), at) for host, at, what in rows}
    found = []
    for host, at, what in rows:
        beside = any(host == place and what == word and abs(at - when) < _BESIDE for place, word, when in moved)
        if not beside:
            found.append({"at": _time(at), "host": host, "what": what})
    return found


def _time(milliseconds: int) -> str:
    """Returns a time in ISO 8601."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:03d}+00:00"


def since(records: Records, revision: int) -> list[tuple[str, str]]:
    """Returns kind and key of all that has changed since a revision."""
    return [(kind, key) for kind in store.KINDS for key, row in records[kind].items() if row[0] > revision]


def event(name: str, revision: int, data: Any) -> bytes:
    """Returns one event of the stream."""
    return f"id: {revision}\nevent: {name}\ndata: {dumped(data)}\n\n".encode("ascii")


class Snapshots:
    """Bodies for those who see the same, made once for a revision.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[str, Snapshot] = {}

    def get(self, records: Records, revision: int, login: Login, beating: bool) -> Snapshot:
        """Returns the snapshot for somebody.

        Args:
            records: as they are now.
            revision: the last one.
            login: who looks.
            beating: whether the engine on the master works.
        """
        tag = hashlib.sha256(f"{revision} {beating} {login.digest}".encode()).hexdigest()[:24]
        found, now = self._kept.get(tag), self._clock()
        if found and now - found.made < _FRESH:
            return found
        head = {"revision": revision, "now": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now))}
        head["user"] = json.loads(login.words)
        plain = dumped(head | everything(records, login, beating)).encode("ascii")
        packed = gzip.compress(plain, _LEVEL, mtime=0) if len(plain) >= _COMPRESSED_FROM else b""
        self._kept.pop(tag, None)
        self._kept[tag] = Snapshot(f'W/"{tag}"', plain, packed, now)
        while len(self._kept) > _MOST_SNAPSHOTS:
            del self._kept[next(iter(self._kept))]
        return self._kept[tag]

"""Tells what changes at this host's libvirt: events become fresh descriptions, one line of JSON each.

Runs in the distribution's Python, whose libvirt binding Salt's does not have, as a child of the engine
``guest_events``. The connection is read-only. An event only marks what it is about; what is marked is read a moment
later, once for all events until then. So there is no queue that could overflow, and what is printed is how things are,
not what an event said.

Lines in: ``all`` asks for everything. Lines out, by ``kind``: ``all``, ``guest``, ``pool``, ``network``, ``idle``. It
ends when its parent does, when the connection is lost, or when libvirt no longer answers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import libvirt

URI = "qemu:///system"
_SETTLE = 0.04  # seconds from an event to the reading, for others to come
_IDLE = 4.0  # seconds after which a line says that all is well
_KEEPALIVE = (5, 3)  # seconds, and how many may stay without an answer
_ADDRESSES = 0  # VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE
_GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_NETWORK})
# What an operator would not see, or would see many times a second.
_LEFT_OUT = ("GRAPHICS", "RTC_CHANGE", "MIGRATION_ITERATION", "BLOCK_THRESHOLD")
_LIFECYCLE = (
    *("defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "pmsuspended", "crashed"),
)
# What a person would say of an event of a guest's life, by its number and detail; whatever is not here is left out:
# the pause at the end of a migration, a definition that was altered.
_HAPPENED = {
    (0, 0): "defined", (1, 0): "undefined",
    (2, 0): "started", (2, 1): "arrived", (2, 2): "restored", (2, 3): "restored", (2, 4): "woken",
    (3, 0): "suspended", (3, 2): "io_error", (3, 3): "watchdog", (3, 6): "api_error",
    (4, 0): "resumed", (4, 2): "resumed",
    (5, 0): "shut_down", (5, 1): "forced_off", (5, 2): "crashed", (5, 3): "left", (5, 4): "saved", (5, 5): "failed",
    (7, 0): "pmsuspended", (7, 1): "pmsuspended", (8, 0): "crashed", (8, 1): "crashed",
}  # fmt: skip
_OTHERWISE = {"reboot": "rebooted", "watchdog": "watchdog"}
_MOST_HAPPENED = 32  # of one guest that wait to be told
_POOL = ("defined", "undefined", "started", "stopped", "created", "deleted")


class Marks:
    """What has to be read again; filled by libvirt's thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.everything = True
        self.lost = False
        self.marked: dict[tuple[str, str], set[str]] = {}
        # What has happened to guests, with the time in milliseconds since 1970.
        self.happened: dict[str, list[tuple[int, str]]] = {}

    def mark(self, kind: str, key: str, what: str, happened: str = "") -> None:
        """Notes that an object is to be read, why, and what a person would say of it."""
        with self.changed:
            self.marked.setdefault((kind, key), set()).add(what)
            if happened:
                rows = self.happened.setdefault(key, [])
                rows.append((time.time_ns() // 1_000_000, happened))
                del rows[:-_MOST_HAPPENED]
            self.changed.notify()

    def told(self, key: str) -> list[tuple[int, str]]:
        """Returns what has happened to a guest, once."""
        with self.changed:
            return self.happened.pop(key, [])

    def all(self) -> None:
        """Notes that everything is to be read."""
        with self.changed:
            self.everything = True
            self.changed.notify()

    def end(self) -> None:
        """Notes that the connection is lost."""
        with self.changed:
            self.lost = True
            self.changed.notify()

    def take(self) -> tuple[bool, dict[tuple[str, str], set[str]]]:
        """Waits for something to do, lets its like gather, and returns it."""
        with self.changed:
            if not (self.everything or self.marked or self.lost):
                self.changed.wait(_IDLE)
        if self.marked and not self.lost:
            time.sleep(_SETTLE)
        with self.changed:
            found = (self.everything, self.marked)
            self.everything, self.marked = False, {}
        return found


def say(**line: Any) -> None:
    """Prints one line."""
    sys.stdout.write(json.dumps(line, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def listen(connection: Any, marks: Marks) -> None:
    """Asks libvirt for its events."""

    def of_guest(what: str) -> Any:
        def callback(_connection: Any, guest: Any, *rest: Any) -> None:
            number = rest[0] if what == "lifecycle" and rest and isinstance(rest[0], int) else None
            known = number is not None and 0 <= number < len(_LIFECYCLE)
            detail = rest[1] if number is not None and len(rest) > 1 and isinstance(rest[1], int) else 0
            happened = _OTHERWISE.get(what, "") if number is None else _HAPPENED.get((number, detail), "")
            word = _LIFECYCLE[number] if known and number is not None else what
            marks.mark("guest", guest.UUIDString(), word, happened)

        return callback

    def of_other(kind: str, names: tuple[str, ...]) -> Any:
        def callback(_connection: Any, item: Any, *rest: Any) -> None:
            number = rest[0] if names and rest and isinstance(rest[0], int) else -1
            marks.mark(kind, item.UUIDString(), names[number] if 0 <= number < len(names) else "changed")

        return callback

    prefix = "VIR_DOMAIN_EVENT_ID_"
    for name in sorted(dir(libvirt)):
        what = name.removeprefix(prefix)
        if what != name and what not in _LEFT_OUT:
            _register(connection.domainEventRegisterAny, getattr(libvirt, name), of_guest(what.lower()))
    for kind, register, prefix, names in (
        ("pool", connection.storagePoolEventRegisterAny, "VIR_STORAGE_POOL_EVENT_ID_", _POOL),
        ("network", connection.networkEventRegisterAny, "VIR_NETWORK_EVENT_ID_", _POOL[:4]),
    ):
        for name in sorted(dir(libvirt)):
            if name.startswith(prefix):
                _register(register, getattr(libvirt, name), of_other(kind, names if name.endswith("LIFECYCLE") else ()))


def _register(register: Any, event: int, callback: Any) -> None:
    """Asks for one event, which an older daemon may not have."""
    try:
        register(None, event, callback, None)
    except libvirt.libvirtError:
        return


def _guest(connection: Any, key: str) -> dict[str, Any] | None:
    """Reads a guest; None if there is none."""
    try:
        guest = connection.lookupByUUIDString(key)
        state = guest.state()[0]
        found = {"xml": guest.XMLDesc(), "state": state, "persistent": bool(guest.isPersistent())}
        found["autostart"] = bool(found["persistent"] and guest.autostart())
        found["addresses"] = _leases(guest) if state == libvirt.VIR_DOMAIN_RUNNING else []
    except libvirt.libvirtError as error:
        _only_gone(error)
        return None
    return found


def _leases(guest: Any) -> list[str]:
    """Returns the addresses that a network of libvirt has given a guest."""
    try:
        found = guest.interfaceAddresses(_ADDRESSES)
    except libvirt.libvirtError:
        return []
    return [str(one["addr"]) for device in found.values() for one in device["addrs"] or ()]


def _pool(connection: Any, key: str) -> dict[str, Any] | None:
    """Reads a pool; None if there is none."""
    try:
        pool = connection.storagePoolLookupByUUIDString(key)
        return {"xml": pool.XMLDesc(), "active": bool(pool.isActive())}
    except libvirt.libvirtError as error:
        _only_gone(error)
        return None


def _network(connection: Any, key: str) -> dict[str, Any] | None:
    """Reads a network; None if there is none."""
    try:
        network = connection.networkLookupByUUIDString(key)
        return {"xml": network.XMLDesc(), "active": bool(network.isActive())}
    except libvirt.libvirtError as error:
        _only_gone(error)
        return None


def _only_gone(error: Any) -> None:
    """Raises an error again, unless it says that there is no such object: any other one is of the connection."""
    if error.get_error_code() not in _GONE:
        raise error


READ = {"guest": _guest, "pool": _pool, "network": _network}


def everything(connection: Any) -> dict[str, dict[str, Any]]:
    """Reads everything, by kind and UUID."""
    keys = {
        "guest": [one.UUIDString() for one in connection.listAllDomains()],
        "pool": [one.UUIDString() for one in connection.listAllStoragePools()],
        "network": [one.UUIDString() for one in connection.listAllNetworks()],
    }
    found = {kind: {key: READ[kind](connection, key) for key in sorted(names)} for kind, names in keys.items()}
    return {kind: {key: facts for key, facts in rows.items() if facts} for kind, rows in found.items()}


def _versions(connection: Any) -> dict[str, str]:
    """Returns the versions of libvirt and QEMU."""
    found = {"libvirt": connection.getLibVersion(), "qemu": connection.getVersion()}
    return {name: f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" for name, number in found.items()}


def work(connection: Any, marks: Marks) -> None:
    """Reads and prints until the connection is lost."""
    while True:
        whole, marked = marks.take()
        if marks.lost:
            return
        if whole:
            say(kind="all", found=everything(connection), versions=_versions(connection))
        # Also after everything was read: what has happened to a guest is in no description of it.
        for (kind, key), what in marked.items():
            told = {"happened": marks.told(key)} if kind == "guest" else {}
            say(kind=kind, key=key, what=sorted(what), facts=READ[kind](connection, key), **told)
        if not whole and not marked:
            connection.getLibVersion()
            say(kind="idle")


def _commands(marks: Marks) -> None:
    """Takes the parent's commands, and ends with it."""
    for line in sys.stdin:
        if line.strip() == "all":
            marks.all()
    os._exit(0)


def _events() -> None:
    """Lets libvirt's events in."""
    while True:
        libvirt.virEventRunDefaultImpl()


def main() -> int:
    """Runs until there is nothing more to tell."""
    marks = Marks()
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_events, daemon=True).start()
    threading.Thread(target=_commands, args=(marks,), daemon=True).start()
    try:
        connection = libvirt.openReadOnly(URI)
        connection.registerCloseCallback(lambda *_: marks.end(), None)
        connection.setKeepAlive(*_KEEPALIVE)
        listen(connection, marks)
        work(connection, marks)
    except libvirt.libvirtError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    print("the connection to libvirt was lost", file=sys.stderr)
    return 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Threads of libvirt may hold what an orderly end would wait for.
    os._exit(status)

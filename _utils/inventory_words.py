"""What a hypervisor says of itself on Salt's bus: records, messages of bounded size, and their signature.

Pure but for the figures of the host, which are read from /proc. The other side is
``hypervisor_inventory/messages.py`` on the master.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

PREFIX = "hypervisor/"
_PURPOSE = b"hypervisor-formula inventory 1\0"
# Characters of records in a message. The bus takes a MiB, and what is in the text is quoted once more.
_LARGEST = 200_000
_STATES = {"shut_off": "shut off", "shutting_down": "shutting down"}
_CERTIFICATE_DAYS = 14
# By how much of the whole a figure has to move to be told before its time.
_MOVING = {"cpu_used": 0.1, "memory_used_mib": 0.05, "load": 0.05}
_PIDS = Path("/run/libvirt/qemu")

Records = dict[str, dict[str, Any]]
Utils = Mapping[str, Any]


def key(path: str) -> Any:
    """Returns the minion's private key; raises OSError and ValueError."""
    return serialization.load_pem_private_key(Path(path).read_bytes(), password=None)


def signed(private: Any, tag: str, body: str) -> dict[str, str]:
    """Returns what is sent under a tag: the body and its signature."""
    data = _PURPOSE + tag.encode() + b"\0" + body.encode()
    signature = private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return {"body": body, "signature": base64.b64encode(signature).decode("ascii")}


def guest(utils: Utils, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a guest.

    Args:
        utils: the siblings' functions.
        facts: its XML, state and flags, as the child says them.
    """
    found = utils["hypervisor_xml.guest"](facts["xml"])
    state = utils["hypervisor_xml.state"]({"state.state": str(facts["state"])})
    running = state not in {"shut_off", "crashed"}
    return {
        "name": found["name"],
        "state": _STATES.get(state, state),
        "cpus": found["vcpus"],
        "memory_mib": found["memory_mib"],
        "addresses": sorted(set(facts["addresses"])),
        "started": started(found["name"]) if running else None,
        "autostart": facts["autostart"],
        "persistent": facts["persistent"],
        "consoles": found["consoles"] if running else [],
    }


def started(name: str, pids: Path = _PIDS, proc: Path = Path("/proc")) -> str | None:
    """Returns when a guest's process was started, in ISO 8601; None where nothing says so."""
    if "/" in name:
        return None
    try:
        process = int((pids / f"{name}.pid").read_text(encoding="ascii"))
        status = (proc / str(process) / "stat").read_text(encoding="utf-8")
        kernel = (proc / "stat").read_text(encoding="ascii").splitlines()
        booted = next(int(row.split()[1]) for row in kernel if row.startswith("btime "))
        began = booted + int(status.rpartition(")")[2].split()[19]) // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return dt.datetime.fromtimestamp(began, tz=dt.timezone.utc).isoformat()


def pool(utils: Utils, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a storage pool; the sizes of one that is not active are unknown."""
    found = utils["hypervisor_xml.pool"](facts["xml"])
    sizes = {key: found[key] if facts["active"] else None for key in ("capacity_bytes", "available_bytes")}
    return {"name": found["name"], "state": _active(facts), "type": found["type"], **sizes}


def network(utils: Utils, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a virtual network."""
    found = utils["hypervisor_xml.network"](facts["xml"])
    return {"name": found["name"], "state": _active(facts), "bridge": found["bridge"], "mode": found["forward"]}


def _active(facts: Mapping[str, Any]) -> str:
    """Returns the state of a pool or a network."""
    return "active" if facts["active"] else "inactive"


class Figures:
    """What the host uses, from /proc; the processors' share is that since the last question.

    Args:
        root: below which /proc is.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._last: tuple[int, int] | None = None

    def read(self, utils: Utils) -> dict[str, Any]:
        """Returns ``cpus``, ``cpu_used``, ``memory_mib``, ``memory_used_mib`` and ``load``."""
        line = (self._root / "proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        times = [int(one) for one in line.split()[1:9]]
        idle, total = times[3] + times[4], sum(times)
        used = None
        if self._last and total > self._last[1]:
            used = round(1 - (idle - self._last[0]) / (total - self._last[1]), 2)
        self._last = (idle, total)
        memory = utils["hypervisor_host.memory"]()
        return {
            "cpus": os.cpu_count(),
            "cpu_used": None if used is None else min(max(used, 0.0), 1.0),
            "memory_mib": memory["total_mib"],
            "memory_used_mib": memory["total_mib"] - memory["available_mib"],
            "load": round(os.getloadavg()[0], 2),
        }


def moved(told: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Says whether the host's figures are worth a message: the fleet's noise would be a poll of it.

    Args:
        told: the record that the master has, empty if it has none.
        found: how it is now.
    """
    if {key: told.get(key) for key in found if key not in _MOVING} != {
        key: value for key, value in found.items() if key not in _MOVING
    }:
        return True
    shares = [_shares(one) for one in (told, found)]
    return any(abs(after - before) >= _MOVING[key] for key, before, after in zip(_MOVING, *shares, strict=True))


def _shares(record: Mapping[str, Any]) -> list[float]:
    """Returns the moving figures of a host as parts of what it has, in the order of their names."""
    whole = {"cpu_used": 1, "memory_used_mib": record["memory_mib"], "load": record["cpus"]}
    return [(record[key] or 0) / (whole[key] or 1) for key in _MOVING]


def problems(utils: Utils, libvirt: str) -> list[str]:
    """Returns what on this host needs a person, as texts.

    Args:
        utils: the siblings' functions.
        libvirt: why libvirt does not answer, an empty text if it does.
    """
    found = [f"libvirt: {libvirt}"] if libvirt else []
    for row in utils["hypervisor_host.certificates"](dt.datetime.now(tz=dt.timezone.utc)):
        if row["problem"]:
            found.append(f"certificate for {row['purpose']}: {row['problem']}")
        elif row["days_left"] is not None and row["days_left"] < _CERTIFICATE_DAYS:
            found.append(f"certificate for {row['purpose']} ends in {row['days_left']} days")
    waiting = utils["hypervisor_host.reboot"]()
    if waiting["pending"]:
        found.append(f"waits for a reboot: {'; '.join(waiting['why'])}")
    if utils["network_tool.pending"]()["pending"]:
        found.append("a change of interfaces waits for its confirmation")
    return found


def parts(kinds: Mapping[str, Records]) -> list[dict[str, Records]]:
    """Divides everything that a host has into messages of bounded size; there is always one."""
    found: list[dict[str, Records]] = [{}]
    size = 0
    for kind, records in kinds.items():
        for name, record in records.items():
            length = len(json.dumps(record)) + len(name)
            if size and size + length > _LARGEST:
                found.append({})
                size = 0
            found[-1].setdefault(kind, {})[name] = record
            size += length
    return found


def differences(
    before: Mapping[str, Records], after: Mapping[str, Records]
) -> tuple[dict[str, Records], dict[str, list[str]]]:
    """Returns what is new or otherwise, and what is gone, by kind."""
    new: dict[str, Records] = {}
    gone: dict[str, list[str]] = {}
    for kind, records in after.items():
        known = before.get(kind, {})
        if changed := {name: record for name, record in records.items() if known.get(name) != record}:
            new[kind] = changed
        if missing := sorted(known.keys() - records.keys()):
            gone[kind] = missing
    return new, gone


class Voice:
    """Numbers and signs messages.

    Args:
        host: the minion id.
        private: the minion's key.
        epoch: when this life began; a later life has a larger one.
        interval: seconds between two messages.
    """

    def __init__(self, host: str, private: Any, epoch: int, interval: float) -> None:
        self.host, self._private, self._epoch, self._interval = host, private, epoch, interval
        self._seq = 0

    def message(self, about: str, **said: Any) -> tuple[str, dict[str, str]]:
        """Returns the tag of a message and what is sent under it.

        Args:
            about: the end of the tag, such as ``guest/<uuid>/started``.
            said: ``set``, ``gone``, ``figures``, ``part`` and ``nonce``.
        """
        self._seq += 1
        words = {"host": self.host, "epoch": self._epoch, "seq": self._seq, "interval": self._interval}
        tag = f"{PREFIX}{self.host}/{about}"
        return tag, signed(self._private, tag, json.dumps(words | said, separators=(",", ":")))


def voice(host: str, private: Any, life: int, interval: float) -> Voice:
    """Returns what numbers and signs messages, see :class:`Voice`: the loader knows functions alone."""
    return Voice(host, private, life, interval)


def figures() -> Figures:
    """Returns what reads the host's figures, see :class:`Figures`."""
    return Figures()


def epoch(path: Path, now: int) -> int:
    """Returns the number of a new life, larger than that of the last one even if the clock went back.

    Args:
        path: the file that holds the last one.
        now: the time.
    """
    try:
        last = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        last = 0
    found = max(now, last + 1)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(str(found), encoding="ascii")
    new.replace(path)
    return found


def words(what: Iterable[str]) -> str:
    """Returns the last part of a guest's tag, one word for all that has happened to it since the last message."""
    found = sorted(what)
    return found[-1] if len(found) == 1 else "changed"

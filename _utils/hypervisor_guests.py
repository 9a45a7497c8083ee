"""The guests of this host, as ``hypervisor.guests``, ``guest`` and ``stats`` return them.

Every function takes a connected virsh (``hypervisor_virsh.session``) and its siblings' functions by name, such as
``hypervisor_xml.guest``: the loader gives utilities no ``__utils__`` of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]

_NS = 1_000_000_000
_AGENT_SECONDS = 5.0
_READ = ("list", "--all", "--uuid")
_BLOCK = {"capacity_bytes": "capacity", "allocation_bytes": "allocation", "physical_bytes": "physical"}


def names(virsh: Any, utils: Utils) -> dict[str, str]:
    """Returns the names of all guests by UUID."""
    found: dict[str, str] = utils["hypervisor_xml.listed"](virsh.ask(*_READ, "--name"))
    return found


def resolve(virsh: Any, utils: Utils, name: str) -> str:
    """Returns the UUID of a guest: a name such as "7" could also be the number of another guest.

    Raises:
        CommandExecutionError: there is none; the message says so if it was migrated away.
    """
    for uuid, known in names(virsh, utils).items():
        if known == name:
            utils["hypervisor_records.settle"]([name])
            return uuid
    record = utils["hypervisor_records.read"](name)
    if record:
        raise CommandExecutionError(f"guest {name} is not on this host: it was migrated to {record['to']}")
    if utils["hypervisor_cluster.member"](utils, name):
        raise CommandExecutionError(utils["hypervisor_cluster.whereabouts"](utils, name))
    raise CommandExecutionError(f"there is no guest {name} on this host")


def describe(virsh: Any, utils: Utils, uuid: str, figures: dict[str, str], sets: dict[str, set[str]]) -> dict[str, Any]:
    """Describes one guest.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        uuid: of the guest.
        figures: its domstats.
        sets: UUIDs of the guests that are ``autostart``, ``persistent`` and ``managed_save``.

    Raises:
        CommandExecutionError: it is gone.
    """
    found: dict[str, Any] = utils["hypervisor_xml.guest"](virsh.ask("dumpxml", uuid))
    found["state"] = utils["hypervisor_xml.state"](figures)
    for key, members in sets.items():
        found[key] = uuid in members
    found["cluster"] = utils["cluster_guests.is_defined"](found["name"]) and "/" not in found["name"]
    blocks = by_name(figures, "block")
    for disk in found["disks"]:
        block = blocks.get(disk["target"], {})
        for key, name in _BLOCK.items():
            disk[key] = int(block[name]) if name in block else None
    leases = {}
    if found["state"] == "running" and any(nic["type"] == "network" for nic in found["nics"]):
        leases = addresses(virsh, utils, uuid, "lease")
    for nic in found["nics"]:
        nic["addresses"] = leases.get(nic["mac"], [])
    return found


def by_name(figures: dict[str, str], prefix: str) -> dict[str, dict[str, str]]:
    """Gathers domstats such as ``block.0.name``, ``block.0.rd.bytes``: figures by the name in them."""
    rows: dict[str, dict[str, str]] = {}
    for key, value in figures.items():
        kind, _, rest = key.partition(".")
        number, _, figure = rest.partition(".")
        if kind == prefix and number.isdigit():
            rows.setdefault(number, {})[figure] = value
    return {row["name"]: row for row in rows.values() if "name" in row}


def addresses(virsh: Any, utils: Utils, uuid: str, source: str) -> dict[str, list[str]]:
    """Returns a running guest's addresses with their prefix length, by MAC, as leases or its agent tell them."""
    words = ("domifaddr", uuid, "--full", "--source", source)
    printed, _ = virsh.attempt(*words, timeout=_AGENT_SECONDS)
    found: dict[str, list[str]] = {}
    for row in utils["hypervisor_xml.columns"](printed):
        if len(row) == 4 and row[1].count(":") == 5 and row[0] != "lo":
            found.setdefault(row[1], []).append(row[3])
    return found


def _sets(virsh: Any, utils: Utils) -> dict[str, set[str]]:
    """Returns the UUIDs of guests that start with the host, are defined, or have saved memory."""
    options = {"autostart": "--autostart", "persistent": "--persistent", "managed_save": "--with-managed-save"}
    return {key: set(utils["hypervisor_xml.lines"](virsh.ask(*_READ, option))) for key, option in options.items()}


def _figures(virsh: Any, utils: Utils) -> dict[str, dict[str, str]]:
    """Returns the domstats of all guests by name; a guest that does not answer gives fewer of them."""
    found: dict[str, dict[str, str]] = utils["hypervisor_xml.domstats"](virsh.ask("domstats", "--raw", "--nowait"))
    return found


def everything(virsh: Any, utils: Utils) -> dict[str, Any]:
    """Returns ``guests``, sorted by name, and ``migrated``, the records of those that went away."""
    known, sets, figures = names(virsh, utils), _sets(virsh, utils), _figures(virsh, utils)
    found = []
    for uuid, name in known.items():
        try:
            found.append(describe(virsh, utils, uuid, figures.get(name, {}), sets))
        except CommandExecutionError:
            # It went away between two questions.
            continue
    found.sort(key=_name)
    utils["hypervisor_records.settle"](list(known.values()))
    return {"guests": found, "migrated": utils["hypervisor_records.away"](set(known.values()))}


def _name(found: dict[str, Any]) -> str:
    """Returns the name by which guests are sorted."""
    return str(found["name"])


def one(virsh: Any, utils: Utils, name: str) -> dict[str, Any]:
    """Returns one guest; its agent, if it runs, is asked for addresses that no lease tells.

    Raises:
        CommandExecutionError: there is no such guest.
    """
    uuid = resolve(virsh, utils, name)
    found = describe(virsh, utils, uuid, _figures(virsh, utils).get(name, {}), _sets(virsh, utils))
    if found["agent_connected"] and not all(nic["addresses"] for nic in found["nics"]):
        told = addresses(virsh, utils, uuid, "agent")
        for nic in found["nics"]:
            nic["addresses"] = nic["addresses"] or told.get(nic["mac"], [])
    return found


def stats(virsh: Any, utils: Utils) -> dict[str, Any]:
    """Returns the figures of all guests, from one question to libvirt."""
    uuids = {name: uuid for uuid, name in names(virsh, utils).items()}
    figures = _figures(virsh, utils)
    rows = [_usage(name, uuids.get(name), figures[name], utils) for name in sorted(figures)]
    return {"at_seconds": time.time(), "guests": rows}


def _number(figures: Mapping[str, str], key: str) -> int | None:
    """Returns a whole number of domstats, None where this libvirt or this guest has none."""
    value = figures.get(key, "")
    return int(value) if value.isdigit() else None


def _seconds(figures: Mapping[str, str], key: str) -> float | None:
    """Returns nanoseconds of domstats in seconds."""
    value = _number(figures, key)
    return None if value is None else round(value / _NS, 6)


def _bytes(figures: Mapping[str, str], key: str) -> int | None:
    """Returns KiB of domstats in bytes."""
    value = _number(figures, key)
    return None if value is None else value * 1024


def _usage(name: str, uuid: str | None, figures: dict[str, str], utils: Utils) -> dict[str, Any]:
    """Returns what one guest uses."""
    disks, nics = by_name(figures, "block"), by_name(figures, "net")
    return {
        "name": name,
        "uuid": uuid,
        "state": utils["hypervisor_xml.state"](figures),
        "vcpus": _number(figures, "vcpu.current"),
        "cpu_seconds": _seconds(figures, "cpu.time"),
        "cpu_user_seconds": _seconds(figures, "cpu.user"),
        "cpu_system_seconds": _seconds(figures, "cpu.system"),
        "memory_bytes": _bytes(figures, "balloon.current"),
        "memory_max_bytes": _bytes(figures, "balloon.maximum"),
        "memory_resident_bytes": _bytes(figures, "balloon.rss"),
        "memory_unused_bytes": _bytes(figures, "balloon.unused"),
        "memory_usable_bytes": _bytes(figures, "balloon.usable"),
        "disks": [
            {
                "target": target,
                "read_bytes": _number(row, "rd.bytes"),
                "read_requests": _number(row, "rd.reqs"),
                "read_seconds": _seconds(row, "rd.times"),
                "written_bytes": _number(row, "wr.bytes"),
                "write_requests": _number(row, "wr.reqs"),
                "write_seconds": _seconds(row, "wr.times"),
                "capacity_bytes": _number(row, "capacity"),
                "allocation_bytes": _number(row, "allocation"),
            }
            for target, row in disks.items()
        ],
        "nics": [
            {
                "device": device,
                "received_bytes": _number(row, "rx.bytes"),
                "received_packets": _number(row, "rx.pkts"),
                "received_errors": _number(row, "rx.errs"),
                "received_drops": _number(row, "rx.drop"),
                "sent_bytes": _number(row, "tx.bytes"),
                "sent_packets": _number(row, "tx.pkts"),
                "sent_errors": _number(row, "tx.errs"),
                "sent_drops": _number(row, "tx.drop"),
            }
            for device, row in nics.items()
        ],
    }

"""Volumes that a running guest of the cluster gets or gives up, and what has to come before its pillar is the CIB's.

A guest is tied to its volumes: it starts after them, and where they are. One that is tied to a volume that has still to
start is stopped for that; and one that is untied from a volume that it has open cannot move any more, since the volume
stays. Functions of the configuration of cluster/, of the live CIB and of what Pacemaker says; the last ones ask.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

Spec = Mapping[str, Any]
Utils = Mapping[str, Any]
_PAUSE = 1.0
_SECONDS = 30.0  # for which a guest may be neither here nor there: until Pacemaker has noticed
# By guest, the paths of devices.
Paths = dict[str, list[str]]


def running(seen: Spec) -> dict[str, str]:
    """Returns by guest the node that runs it.

    Args:
        seen: as ``cluster_status.read`` returns it.
    """
    return {one["name"]: one["node"] for one in seen.get("guests", ()) if one["role"] != "Stopped" and one["node"]}


def _used(cluster: Spec) -> dict[str, list[str]]:
    """Returns by guest that is to be there the devices that are its disks."""
    guests = cluster.get("guests") or {}
    return {
        name: [str(disk["source_file"]) for disk in spec.get("disks") or () if disk.get("source_file")]
        for name, spec in guests.items()
        if spec.get("ensure") != "absent"
    }


def _tied(live: str) -> set[str]:
    """Returns the ids of the colocations of a CIB."""
    root = ElementTree.fromstring(live)  # noqa: S314 - from Pacemaker on this host
    return {one.get("id", "") for one in root.findall("configuration/constraints/rsc_colocation")}


def leaving(cluster: Spec, volumes: Mapping[str, str], live: str) -> Paths:
    """Returns the volumes from which guests would be untied.

    Args:
        cluster: as of ``cluster_derived.declared``.
        volumes: the resources of declared volumes by the path of their device.
        live: what ``cibadmin --query`` prints.
    """
    tied = _tied(live)
    found = {
        guest: [path for path, name in volumes.items() if f"{guest}-with-{name}" in tied and path not in paths]
        for guest, paths in _used(cluster).items()
    }
    return {guest: paths for guest, paths in found.items() if paths}


def arriving(cluster: Spec, volumes: Mapping[str, str], live: str, seen: Spec) -> Paths:
    """Returns the volumes that guests get which run, and that have not started yet where the guest could have them.

    Args:
        cluster: as of ``cluster_derived.declared``.
        volumes: the resources of declared volumes by the path of their device.
        live: what ``cibadmin --query`` prints.
        seen: as ``cluster_status.read`` returns it.
    """
    places: dict[str, set[str]] = {}
    for row in seen.get("resources", ()):
        # One that is starting may fail still.
        if row["role"] in ("Started", "Migrating") and not row["failed"] and not row["blocked"]:
            places.setdefault(row["name"], set()).update(row["nodes"])
    groups = (cluster.get("storage") or {}).get("volume_groups") or {}
    everywhere = {
        f"{group}-{volume}"
        for group, spec in groups.items()
        for volume, words in (spec.get("volumes") or {}).items()
        if words.get("active") == "everywhere"
    }
    tied, found = _tied(live), Paths()
    for guest, node in running(seen).items():
        for path in _used(cluster).get(guest, ()):
            name = volumes.get(path, "")
            there = places.get(name, set())
            new = name and f"{guest}-with-{name}" not in tied
            # One that is elsewhere comes to the guest without harm to it.
            if new and not (node in there if name in everywhere else there):
                found.setdefault(guest, []).append(path)
    return found


def with_disks(cluster: Spec, held: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Returns the configuration as it is if guests have more disks, behind their own."""
    guests = cluster.get("guests") or {}
    more = {
        name: {**guests[name], "disks": [*(guests[name].get("disks") or ()), *({"source_file": one} for one in paths)]}
        for name, paths in held.items()
    }
    return {**cluster, "guests": {**guests, **more}}


def without_disks(cluster: Spec, late: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Returns the configuration as it is if guests lack some disks."""
    guests = cluster.get("guests") or {}
    less = {
        name: {**guests[name], "disks": [one for one in guests[name]["disks"] if one.get("source_file") not in paths]}
        for name, paths in ((name, set(paths)) for name, paths in late.items())
    }
    return {**cluster, "guests": {**guests, **less}}


def taken(cluster: Spec, held: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns what is wrong where another guest is declared to have what one has still open."""
    return [
        told(other, path, guest)
        for guest, paths in held.items()
        for path in paths
        for other, used in _used(cluster).items()
        if other != guest and path in used
    ]


def told(guest: str, path: str, other: str) -> str:
    """Returns that a guest cannot have what another one has open."""
    return (
        f"libvirt:guests:{guest}:disks: {path} is still open in the guest {other}, which runs and had it before: stop "
        "that one first, or start it anew (hypervisor.power_off, hypervisor.start)"
    )


def open_in(text: str) -> set[str]:
    """Returns the devices and files that a guest has open, from what ``virsh domblklist`` prints."""
    rows = [line.split(maxsplit=1) for line in text.splitlines()]
    return {row[1].strip() for row in rows if len(row) == 2 and row[1].startswith("/")}


# ---- what is so now ----


def needs() -> tuple[str, ...]:
    """Returns the siblings' functions that :func:`asked` and what follows it take by name."""
    return ("cluster_status.read", "cluster_tools.monitor", "cluster_tools.run")


def asked(utils: Utils) -> dict[str, Any]:
    """Returns what Pacemaker says, as ``cluster_status.read`` does; raises CommandExecutionError if it says nothing."""
    found: dict[str, Any] = utils["cluster_status.read"](utils["cluster_tools.monitor"]())
    # One that is about to stop still prints a document.
    if not found.get("nodes"):
        raise CommandExecutionError("nothing has changed: Pacemaker does not answer; see: journalctl -u pacemaker")
    return found


def opened(utils: Utils, guest: str, here: str) -> set[str]:
    """Returns the devices and files that a guest has open, wherever it runs; none of one that does not run.

    Args:
        utils: the siblings' functions, see :func:`needs`.
        guest: its name.
        here: this node's name.

    Raises:
        CommandExecutionError: Pacemaker does not answer, or libvirt of that node.
    """
    deadline = time.monotonic() + _SECONDS
    while place := running(asked(utils)).get(guest):
        # As guests move: libvirt's TLS, to the node's own name.
        uri = "qemu:///system" if place == here else f"qemu+tls://{place}/system"
        try:
            return open_in(utils["cluster_tools.run"](["virsh", "--connect", uri, "domblklist", "--domain", guest]))
        except CommandExecutionError as error:
            if time.monotonic() + _PAUSE > deadline:
                raise CommandExecutionError(
                    f"nothing has changed: libvirt:guests:{guest}:disks: which volumes it has open on {place} cannot "
                    f"be seen ({error})"
                ) from None
        time.sleep(_PAUSE)
    return set()


def held_by_others(utils: Utils, guest: str, wanted: Mapping[str, str], live: str, here: str) -> dict[str, list[str]]:
    """Returns which other guests have open what a guest is to have.

    Args:
        utils: as of :func:`opened`.
        guest: its name.
        wanted: the resources of its volumes by the path of their device.
        live: what ``cibadmin --query`` prints.
        here: this node's name.
    """
    tied = {one: path for path, name in wanted.items() for one in _tied(live) if one.endswith(f"-with-{name}")}
    others: Paths = {}
    for one, path in tied.items():
        other = one.removesuffix(f"-with-{wanted[path]}")
        if other != guest:
            others.setdefault(other, []).append(path)
    found = {other: [path for path in paths if path in opened(utils, other, here)] for other, paths in others.items()}
    return {other: paths for other, paths in found.items() if paths}

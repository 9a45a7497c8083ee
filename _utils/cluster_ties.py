"""Volumes that a running guest of the cluster gets or gives up, and what has to come before its pillar is the CIB's.

A guest is tied to its volumes: it starts after them, and where they are. One that is tied to a volume that has still to
start is stopped for that; and one that is untied from a volume that it has open cannot move any more, since the volume
stays. Pure functions of the configuration of cluster/, of the live CIB and of what Pacemaker says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

Spec = Mapping[str, Any]
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
        if row["role"] != "Stopped":
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
        f"libvirt:guests:{other}:disks: {path} is still open in the guest {guest}, which runs and had it before: stop "
        f"that one first, or start it anew (hypervisor.power_off, hypervisor.start)"
        for guest, paths in held.items()
        for path in paths
        for other, used in _used(cluster).items()
        if other != guest and path in used
    ]


def open_in(text: str) -> set[str]:
    """Returns the devices and files that a guest has open, from what ``virsh domblklist`` prints."""
    rows = [line.split(maxsplit=1) for line in text.splitlines()]
    return {row[1].strip() for row in rows if len(row) == 2 and row[1].startswith("/")}

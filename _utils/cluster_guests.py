"""Guests that the cluster runs (``ha`` below ``libvirt:guests``): what they are called, and why one is refused.

What pillar says of libvirt alone ``libvirt_ha_rules`` judges; here is what takes the cluster's pillar too.
"""

from __future__ import annotations

import hashlib
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Spec = Mapping[str, Any]

# Each node has the definitions of the cluster's guests here, a file each; libvirt itself has none of them.
FOLDER = "/etc/libvirt/cluster"
_NAMESPACE = uuid.UUID("6b7f0a5c-3d0e-4a6f-9a55-6f0d1f6f2c11")
_OFF = ("false", "no", "off", "0", "n")
_KINDS = ("stonith", "resources", "groups")


def definition(name: str) -> str:
    """Returns the path of the file with a guest's definition."""
    return f"{FOLDER}/{name}.xml"


def is_defined(name: str, folder: str = FOLDER) -> bool:
    """Says whether this host has the definition of a guest of the cluster; the name has passed an allow-list."""
    return Path(folder, f"{name}.xml").exists()


def identity(cluster: str, name: str) -> str:
    """Returns the UUID of a guest: the same on every node, and another one in every cluster."""
    return str(uuid.uuid5(_NAMESPACE, f"{cluster}/{name}"))


def declared(guests: Mapping[str, Spec]) -> dict[str, Spec]:
    """Returns those guests of ``libvirt:guests`` that the cluster is to run."""
    return {name: spec for name, spec in guests.items() if spec.get("ha") and spec.get("ensure") != "absent"}


def path_of(disk: Spec) -> str:
    """Returns the device or file that a declared disk names itself; empty where a pool decides it."""
    path = str(disk.get("source_file") or disk.get("path") or "")
    return path if path.startswith("/") else ""


def volumes(storage: Spec) -> dict[str, str]:
    """Returns the resources of shared volumes by the path of their device."""
    return {
        f"/dev/{group}/{volume}": f"{group}-{volume}"
        for group, spec in (storage.get("volume_groups") or {}).items()
        for volume in spec.get("volumes") or {}
    }


def written(declaration: str, xml: str) -> str:
    """Returns what a definition's file holds: whose it is, what it was made of, and the definition."""
    digests = [hashlib.sha256(text.encode("utf-8")).hexdigest() for text in (declaration, xml)]
    return f"<!-- Of pillar libvirt:guests; changed there alone. {digests[0]} {digests[1]} -->\n{xml}"


def differs(text: str | None, declaration: str) -> bool:
    """Says whether a definition's file is missing, made of another declaration, or changed since by somebody."""
    head, _, xml = (text or "").partition("\n")
    words = head.split()
    digests = [hashlib.sha256(part.encode("utf-8")).hexdigest() for part in (declaration, xml)]
    return words[-3:-1] != digests


def problems(
    minion: str, cluster: Spec, guests: Mapping[str, Spec], pools: Mapping[str, Spec], mounts: Iterable[str]
) -> list[tuple[str, str]]:
    """Finds what keeps guests from being the cluster's.

    Args:
        minion: this host.
        cluster: the configuration of cluster/.
        guests: those of ``libvirt:guests`` with ``ha``.
        pools: those of ``libvirt:pools``.
        mounts: where network file systems are mounted, as pillar says.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    if not guests:
        return []
    found = list(_cluster(minion, cluster))
    if found:
        first = next(iter(guests))
        return [(f"libvirt:guests:{first}:ha", text) for text in found]
    nodes = _present(cluster["nodes"])
    found_of = list(_names(cluster, guests))
    owners: dict[str, str] = {}
    for name, spec in guests.items():
        where = f"libvirt:guests:{name}"
        options = spec["ha"] if isinstance(spec["ha"], Mapping) else {}
        for one in options.get("prefer", ()):
            if one not in nodes:
                known = ", ".join(nodes)
                found_of.append((f"{where}:ha:prefer", f"{one} is not among cluster:nodes; must be some of: {known}"))
        for disk in spec.get("disks") or ():
            text = _disk(disk, cluster["storage"], pools, mounts) or _taken(disk, name, owners)
            if text:
                found_of.append((f"{where}:disks:{disk['name']}", text))
    return found_of


def _present(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Returns what is not declared absent."""
    return {name: spec for name, spec in specs.items() if spec.get("ensure") != "absent"}


def _cluster(minion: str, cluster: Spec) -> Iterator[str]:
    """Yields what a cluster lacks that is to run guests."""
    nodes = _present(cluster["nodes"])
    if not nodes:
        yield "there is no cluster; declare its nodes below cluster:nodes, or take ha away"
        return
    if cluster["stack"] != "corosync":
        yield f"not allowed with cluster:stack: {cluster['stack']}; Pacemaker's own tools of that time have to do"
    if minion not in nodes:
        yield f"{minion} is not among cluster:nodes: {', '.join(nodes)}; its pillar must not have this guest"
    if str(cluster["properties"].get("stonith-enabled", True)).lower() in _OFF:
        yield "cluster:properties:stonith-enabled is off: a lost node could go on running the guest; take that out"
    targets = {one for spec in _present(cluster["stonith"]).values() for one in spec.get("targets", ())}
    missing = [] if cluster["sbd"]["enabled"] else [one for one in nodes if one not in targets]
    if missing:
        yield (
            f"a guest of the cluster needs fencing, but no device below cluster:stonith has as target: "
            f"{', '.join(missing)}; declare one, or set cluster:sbd:enabled: true"
        )


def _names(cluster: Spec, guests: Mapping[str, Spec]) -> Iterator[tuple[str, str]]:
    """Yields guests that are called as something else of the cluster is."""
    taken = {name: f"cluster:{kind}" for kind in _KINDS for name in cluster[kind]}
    own = ("fence_sbd", "dlm", "lvmlockd", "locking", *volumes(cluster["storage"]).values())
    taken |= dict.fromkeys(own, "the formula's own resources")
    for name in guests:
        if name in taken:
            yield f"libvirt:guests:{name}:ha", f"{name} is the name of a resource already: it is among {taken[name]}"


def _disk(disk: Spec, storage: Spec, pools: Mapping[str, Spec], mounts: Iterable[str]) -> str:
    """Returns what keeps a disk from being where every node has it; empty for nothing."""
    path = path_of(disk)
    if disk.get("device") == "cdrom":
        return ""
    if path.startswith("/dev/"):
        shared = volumes(storage)
        if path not in shared:
            known = ", ".join(shared) or "there is none"
            return (
                f"{path} is not on shared storage; must be a volume below cluster:storage:volume_groups ({known}), or "
                "a file where all nodes mount it"
            )
        if not disk.get("source_file"):
            return f"{path} is made by cluster:storage; name it as source_file, without size or image"
        return ""
    if "pool" in disk:
        pool = pools.get(disk["pool"], {})
        kind = pool.get("ptype", "not declared in libvirt:pools")
        if kind == "netfs":
            return ""
        return f"pool {disk['pool']} is {kind}, so its disks are on one node alone; must be a pool of ptype: netfs"
    if path and any(_below(path, one) for one in mounts):
        return ""
    place = path or "kvm:images:path"
    return (
        f"{place} is on one node alone; must be a volume below cluster:storage:volume_groups, a pool of ptype: netfs, "
        "or a path below a network file system of kvm:mounts"
    )


def _below(path: str, folder: str) -> bool:
    """Says whether a path is below a folder."""
    return posixpath.normpath(path).startswith(posixpath.normpath(folder).rstrip("/") + "/")


def _taken(disk: Spec, name: str, owners: dict[str, str]) -> str:
    """Returns which other guest writes to a disk; empty for none."""
    path = path_of(disk)
    if not path or disk.get("device") == "cdrom":
        return ""
    other = owners.setdefault(posixpath.normpath(path), name)
    return "" if other == name else f"{path} is a disk of the guest {other} already"

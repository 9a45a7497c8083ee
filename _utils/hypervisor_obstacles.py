"""Why a guest cannot move to another host: pure functions from what was read on both hosts to reasons.

A reason is ``check``, one word for programs, and ``text``, a sentence for people. All reasons are found at once.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Reason = dict[str, str]

# Words in libvirt's and QEMU's errors that tell what kind of thing went wrong, by check.
_WORDS = {
    "certificate": ("certificate", "x509", "tls", "gnutls", "credentials", "distinguished name"),
    "port": ("connect", "resolve", "refused", "timed out", "unreachable", "no route", "no answer"),
    "storage": ("storage", "volume", "no such file", "permission denied", "disk", "nbd"),
    "memory": ("memory", "hugepage"),
    "cpu": ("cpu", "machine"),
    "network": ("network", "bridge", "interface"),
}
# File systems that several hosts mount, as libvirt itself counts them.
_SHARED = ("nfs", "nfs4", "cifs", "smb3", "ceph", "gfs2", "ocfs2", "gpfs", "fuse.glusterfs", "fuse.quobyte", "beegfs")


def reason(check: str, text: str) -> Reason:
    """Returns a reason."""
    return {"check": check, "text": text}


def classified(text: str) -> str:
    """Returns the check that an error of libvirt's belongs to, "libvirt" if its words do not tell."""
    lower = text.lower().replace("qemu+tls", "")
    for check, words in _WORDS.items():
        if any(word in lower for word in words):
            return check
    return "libvirt"


def target(wanted: str, here: str, allowed: Sequence[str]) -> list[Reason]:
    """Judges the target by its name: another host, and one of those that pillar names."""
    if wanted == here:
        return [reason("target", f"the guest is on {here} already")]
    if wanted not in allowed:
        others = ", ".join(host for host in allowed if host != here) or "none"
        return [reason("target", f"{wanted} is not in libvirt:tls:allowed_hosts of {here} (others there: {others})")]
    return []


def here(
    guest: Mapping[str, Any], certificates: Sequence[Mapping[str, Any]], snapshots: Sequence[str], job: str
) -> list[Reason]:
    """Judges what this host knows by itself.

    Args:
        guest: the guest as ``hypervisor_xml.guest`` describes it, with its ``state``.
        certificates: of this host, as ``hypervisor_host.certificates`` describes them.
        snapshots: names of the guest's snapshots.
        job: what libvirt is doing with the guest; "None" for nothing.
    """
    found = []
    if guest["state"] not in {"running", "paused", "shut_off"}:
        found.append(reason("state", f"the guest is {guest['state']}, neither running, paused nor shut off"))
    if job not in {"", "None"}:
        found.append(reason("state", f"libvirt is busy with the guest ({job.lower()} job)"))
    bad = [row for row in certificates if row["problem"]]
    found += [reason("certificate", f"this host's certificate for {row['purpose']}: {row['problem']}") for row in bad]
    if guest["host_devices"]:
        listed = ", ".join(guest["host_devices"])
        found.append(reason("device", f"the guest has devices of this host ({listed})"))
    if guest["filesystems"]:
        found.append(reason("device", f"the guest has folders of this host ({', '.join(guest['filesystems'])})"))
    if snapshots:
        found.append(reason("snapshot", f"the guest has snapshots ({', '.join(snapshots)}), which do not move with it"))
    return found


def resting(variables: str, tpm: bool, saved: bool) -> list[Reason]:
    """Judges what a guest that is shut off would leave behind: its definition alone moves.

    Args:
        variables: path of its UEFI variables on this host alone, empty without any.
        tpm: whether it has an emulated TPM.
        saved: whether its memory is saved on this host, to go on with.
    """
    found = []
    if variables:
        found.append(reason("state", f"its UEFI variables ({variables}) would stay here; start it first"))
    if tpm:
        found.append(reason("state", "what its TPM holds would be lost; start it first"))
    if saved:
        found.append(reason("state", "its memory is saved on this host and would stay here; start it first"))
    return found


def identity(guest: Mapping[str, Any], known: Mapping[str, str], uuids: tuple[str, str], host: str) -> list[Reason]:
    """Judges names and UUIDs.

    Args:
        guest: the guest.
        known: names by UUID of the guests that the target has.
        uuids: of this host and of the target.
        host: minion id of the target.
    """
    found = []
    if uuids[0] == uuids[1]:
        found.append(
            reason("host", f"{host} and this host have the same host UUID {uuids[0]}, so libvirt takes them for one")
        )
    if guest["name"] in known.values():
        found.append(reason("name", f"{host} has a guest named {guest['name']} already"))
    if guest["uuid"] in known:
        found.append(
            reason("uuid", f"{host} has a guest with the UUID {guest['uuid']} already: {known[guest['uuid']]}")
        )
    return found


def memory(guest: Mapping[str, Any], memory_mib: int, pages: Mapping[int, int], host: str) -> list[Reason]:
    """Judges the target's memory.

    Args:
        guest: the guest.
        memory_mib: what the target can give.
        pages: its free pages by size in KiB.
        host: minion id of the target.
    """
    if not guest["hugepages"]:
        if guest["memory_mib"] > memory_mib:
            return [reason("memory", f"the guest needs {guest['memory_mib']} MiB, {host} has {memory_mib} MiB left")]
        return []
    found = []
    for size in guest["hugepages_kib"] or [2048]:
        needed, free = -(-guest["memory_max_mib"] * 1024 // size), pages.get(size, 0)
        if needed > free:
            text = f"the guest needs {needed} huge pages of {size} KiB, {host} has {free} free ones"
            found.append(reason("memory", text))
    return found


def networks(
    guest: Mapping[str, Any],
    active: Collection[str],
    known: Collection[str],
    devices: Collection[str] | None,
    host: str,
) -> list[Reason]:
    """Judges what the guest's network interfaces are plugged into.

    Args:
        guest: the guest.
        active: virtual networks that run on the target.
        known: all virtual networks of the target.
        devices: the target's network devices; None if it cannot tell.
        host: minion id of the target.
    """
    found = []
    for nic in guest["nics"]:
        source = nic["source"]
        if nic["type"] == "network" and source not in active:
            what = (
                f"the network {source} of {host} is not active"
                if source in known
                else f"{host} has no network {source}"
            )
            found.append(reason("network", what))
        elif nic["type"] in {"bridge", "direct"} and devices is not None and source not in devices:
            found.append(reason("network", f"{host} has no bridge or device {source}"))
    return found


def mounted(path: str, mounts: str) -> str:
    """Returns the type of the file system that holds a path, from the text of ``/proc/mounts``."""
    best, kind = "", ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ").rstrip("/")
        if (path == point or path.startswith(f"{point}/")) and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


def is_shared(kind: str) -> bool:
    """Says whether a type of file system is one that several hosts mount."""
    return kind in _SHARED


def covering(folder: str, pools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the pool whose folder is this one, if there is one."""
    wanted = posixpath.normpath(folder)
    for pool in pools:
        if pool["path"] and posixpath.normpath(pool["path"]) == wanted:
            return pool
    return None


def space(copies: Sequence[Mapping[str, Any]], host: str) -> list[Reason]:
    """Judges whether each storage pool of the target has room for the disks that are copied into it."""
    needed: dict[str, int] = {}
    free: dict[str, int] = {}
    for copy in copies:
        folder = posixpath.dirname(copy["path"])
        needed[folder] = needed.get(folder, 0) + copy["needed_bytes"]
        free[folder] = copy["available_bytes"]
    return [
        reason(
            "storage", f"{folder} on {host} has {free[folder] >> 20} MiB left, the copy needs {-(-amount >> 20)} MiB"
        )
        for folder, amount in needed.items()
        if amount > free[folder]
    ]

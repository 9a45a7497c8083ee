"""The disks of a guest that moves: which of them the target has, which are copied, and where.

The target is looked at through its libvirt alone. A folder that none of its storage pools covers is looked at
through a pool without a definition, made for that and removed at the end. Nothing that the target had is
changed, overwritten or deleted.
"""

from __future__ import annotations

import posixpath
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]

_CHECK = "hypervisor-check-"
# How virsh says that a pool has gone between the list and a question about it.
_GONE = "Could not retrieve pool information"
# How often a pool that goes away under a look is made anew, and the seconds before that.
_LOOKS, _PAUSE = 10, 0.3


def pool_names(virsh: Any, utils: Utils, *words: str) -> list[str]:
    """Returns the names of a host's active pools; with ``--all`` of all.

    virsh lists nothing at all when a pool goes away under it, as that of another look does.

    Args:
        virsh: a virsh that is connected to the host.
        utils: the siblings' functions.
        words: options of ``pool-list``.

    Raises:
        CommandExecutionError: there is no connection, or virsh fails for another reason or too often.
    """
    for _ in range(_LOOKS):
        text, failed = virsh.attempt("pool-list", *words, "--name")
        if not failed:
            return list(utils["hypervisor_xml.lines"](text))
        if _GONE not in failed:
            break
        time.sleep(_PAUSE)
    raise CommandExecutionError(failed)


class Target:
    """The storage of the other host.

    Attributes:
        host: its minion id.
        made_pools: names of the pools that were made for a look; :meth:`close` removes them.
        made_volumes: paths of the volumes that were made; :meth:`undo` removes them.
    """

    def __init__(self, virsh: Any, utils: Utils, host: str) -> None:
        """Takes a virsh that is connected to the host, the siblings' functions, and its minion id."""
        self.virsh, self.utils, self.host = virsh, utils, host
        self.made_pools: list[str] = []
        self.made_volumes: list[str] = []
        self._pools: list[dict[str, Any]] | None = None
        self._looked: dict[str, tuple[dict[str, Any] | None, str]] = {}

    def _known(self) -> list[dict[str, Any]]:
        """Returns the active pools of the host."""
        if self._pools is None:
            names = pool_names(self.virsh, self.utils)
            texts = [self.virsh.attempt("pool-dumpxml", name)[0] for name in names]
            self._pools = [self.utils["hypervisor_xml.pool"](text) for text in texts if text]
        return self._pools

    def pool(self, folder: str) -> tuple[dict[str, Any] | None, str]:
        """Returns the pool of a folder and, if there is none, why."""
        if folder not in self._looked:
            self._looked[folder] = self._look(folder)
        return self._looked[folder]

    def _look(self, folder: str) -> tuple[dict[str, Any] | None, str]:
        """Finds the pool of a folder, or makes one for a look."""
        for _ in range(_LOOKS):
            found = self._once(folder)
            if found is not None:
                return found
            self._pools = None
            time.sleep(_PAUSE)
        return None, f"{self.host} has a storage pool of another look at {folder}, which comes and goes; try it again"

    def _once(self, folder: str) -> tuple[dict[str, Any] | None, str] | None:
        """Does that once; returns None where the pool of another look has come, or this one gone, in between."""
        found = self.utils["hypervisor_obstacles.covering"](folder, self._known())
        if found and str(found["name"]).startswith(_CHECK) and found["name"] not in self.made_pools:
            # Of another look, which ends any moment, or of a job that was killed, so that nobody else takes it away.
            # If it was in use, its user notices and makes one anew, see in_pool.
            self.virsh.attempt("pool-destroy", found["name"])
            found = None
        if found:
            # What was put there by other means than libvirt is seen after this alone.
            self.virsh.attempt("pool-refresh", found["name"])
            name = str(found["name"])
        elif folder == "/dev" or folder.startswith("/dev/"):
            return None, f"{self.host} has no active storage pool at {folder}"
        else:
            name = f"{_CHECK}{secrets.token_hex(4)}"
            _, failed = self.virsh.attempt("pool-create-as", name, "dir", "--target", folder)
            if _CHECK in failed.replace(name, ""):
                return None
            if failed:
                return None, f"{self.host} has no folder {folder} that libvirt can open ({failed})"
            self.made_pools.append(name)
        text, failed = self.virsh.attempt("pool-dumpxml", name)
        return None if failed else (self.utils["hypervisor_xml.pool"](text), "")

    def has(self, path: str) -> tuple[bool, str]:
        """Says whether the host has a file or volume; if not, also why the question has no answer, if so."""
        failed, why = self._in_pool(path, lambda pool: ("vol-info", posixpath.basename(path), "--pool", pool))
        return not failed, why

    def _in_pool(self, path: str, words: Callable[[str], tuple[str, ...]]) -> tuple[str, str]:
        """Runs a command in the pool of a path's folder, made anew where it has gone in the meantime.

        Args:
            path: the file or volume.
            words: virsh's command, given the pool's name.

        Returns:
            Why it failed, empty if it did not; and why there is no pool, if that is the reason.
        """
        folder = posixpath.dirname(path)
        failed = ""
        for _ in range(_LOOKS):
            pool, why = self.pool(folder)
            if pool is None:
                return why, why
            name = str(pool["name"])
            _, failed = self.virsh.attempt(*words(name))
            if not failed or not self.virsh.attempt("pool-info", name)[1]:
                break
            self._looked.pop(folder)
            self._pools = None
        return failed, ""

    def make(self, copy: Mapping[str, Any]) -> None:
        """Makes an empty volume for a disk.

        Raises:
            CommandExecutionError: it cannot be made, also if there is one of that name.
        """
        with tempfile.NamedTemporaryFile("w", prefix="hypervisor-volume-", suffix=".xml") as handle:
            handle.write(_volume(copy))
            handle.flush()
            failed, _ = self._in_pool(copy["path"], lambda pool: ("vol-create", pool, handle.name))
        if failed:
            raise CommandExecutionError(failed)
        self.made_volumes.append(copy["path"])

    def undo(self) -> list[str]:
        """Deletes the volumes that were made here, and no others; returns the paths of those that stayed."""
        stayed = []
        for path in self.made_volumes:
            pool, _ = self.pool(posixpath.dirname(path))
            words = (posixpath.basename(path), "--pool", pool["name"] if pool else "")
            if pool is None or self.virsh.attempt("vol-delete", *words)[1]:
                stayed.append(path)
        self.made_volumes = []
        return stayed

    def close(self) -> None:
        """Takes away the pools that were made for a look; their files stay."""
        for name in self.made_pools:
            self.virsh.attempt("pool-destroy", name)
        self.made_pools = []


def _volume(copy: Mapping[str, Any]) -> str:
    """Returns the XML of an empty volume for a disk; without a word on it libvirt makes qcow2 of before 2011."""
    name, capacity = escape(posixpath.basename(copy["path"])), copy["capacity_bytes"]
    if copy["path"].startswith("/dev/"):
        return f"<volume><name>{name}</name><capacity unit='bytes'>{capacity}</capacity></volume>"
    compat = "<compat>1.1</compat>" if copy["format"] == "qcow2" else ""
    return (
        f"<volume><name>{name}</name><capacity unit='bytes'>{capacity}</capacity>"
        "<allocation unit='bytes'>0</allocation>"
        f"<target><format type='{escape(copy['format'])}'/>{compat}</target></volume>"
    )


def judge(
    virsh: Any, utils: Utils, guest: Mapping[str, Any], there: Target, copy_disks: bool
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Judges the storage of a guest that is to move.

    Args:
        virsh: connected to this host.
        utils: the siblings' functions.
        guest: the guest as ``hypervisor_xml.guest`` describes it.
        there: the target's storage.
        copy_disks: whether disks that the hosts do not share are copied.

    Returns:
        Reasons against it, and the disks to copy: ``target``, ``path``, ``format``, ``capacity_bytes``,
        ``needed_bytes`` and ``available_bytes``.
    """
    why = utils["hypervisor_obstacles.reason"]
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    reasons, copies = [], []
    for path in guest["boot_files"]:
        found, unknown = there.has(path)
        if not found:
            reasons.append(why("storage", unknown or f"{there.host} has no {path}, which the guest boots from"))
    for disk in guest["disks"]:
        path = disk["source"]
        if disk["volume"]:
            path = virsh.attempt("vol-path", disk["volume"], "--pool", disk["pool"])[0].strip()
        if not path or disk["type"] == "network":
            continue
        local = not _is_shared(path, disk, mounts, utils)
        text = _single(disk, path, there, local=local, copy_disks=copy_disks)
        if text:
            reasons.append(why("device" if disk["device"] in {"cdrom", "floppy"} else "storage", text))
        elif local and copy_disks and disk["device"] == "disk" and not disk["readonly"]:
            copies.append(_copy(virsh, utils, guest, disk, path, there))
    return reasons + utils["hypervisor_obstacles.space"](copies, there.host), copies


def _is_shared(path: str, disk: Mapping[str, Any], mounts: str, utils: Utils) -> bool:
    """Says whether a file and what it is based on lie where other hosts can see them too."""
    kinds = [utils["hypervisor_obstacles.mounted"](one, mounts) for one in (path, *disk["backing"])]
    return not path.startswith("/dev/") and all(map(utils["hypervisor_obstacles.is_shared"], kinds))


def _single(disk: Mapping[str, Any], path: str, there: Target, *, local: bool, copy_disks: bool) -> str:
    """Says why one disk keeps the guest here, "" if it does not."""
    exists, unknown = there.has(path)
    if unknown:
        return unknown
    if disk["device"] in {"cdrom", "floppy"} or disk["readonly"]:
        return "" if exists else f"{there.host} has no {path} ({disk['target']}); eject it or put it there"
    if not local:
        return "" if exists else f"{path} ({disk['target']}) is on shared storage that {there.host} does not see"
    if path.startswith("/dev/") and exists and not copy_disks:
        # A volume on both hosts under one name: libvirt itself judges whether that is safe.
        return ""
    if not copy_disks:
        return f"{path} ({disk['target']}) is on this host alone; copy_disks=true copies it"
    if disk["shareable"]:
        return f"{path} ({disk['target']}) is shared with other guests, so it is not copied"
    return f"{there.host} has a {path} already; nothing is overwritten" if exists else ""


def _copy(
    virsh: Any, utils: Utils, guest: Mapping[str, Any], disk: Mapping[str, Any], path: str, there: Target
) -> dict[str, Any]:
    """Describes the copy of one disk."""
    sizes = utils["hypervisor_xml.pairs"](virsh.ask("domblkinfo", guest["uuid"], disk["target"]))
    # Of a disk in use the allocation is only what this QEMU has written, the physical size what the file takes.
    capacity, allocation = int(sizes["capacity"]), max(int(sizes["allocation"]), int(sizes["physical"]))
    pool, _ = there.pool(posixpath.dirname(path))
    return {
        "target": disk["target"],
        "path": path,
        "format": disk["format"] or "raw",
        "capacity_bytes": capacity,
        "needed_bytes": capacity if path.startswith("/dev/") else allocation,
        "available_bytes": pool["available_bytes"] if pool else 0,
    }


def target(virsh: Any, utils: Utils, host: str) -> Target:
    """Returns the storage of another host, see :class:`Target`."""
    return Target(virsh, utils, host)

"""What an operator may declare of a new guest, beyond what the schema of a guest allows everybody.

The schema trusts those who write pillar. A declaration that came through salt-api must not read files of the host
into a guest, or give it a disk of another guest.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

Utils = Mapping[str, Any]

_MOST_CHARACTERS = 256 * 1024


def bounded(declaration: Mapping[str, Any]) -> None:
    """Refuses a declaration that is no plain data, or endless.

    Raises:
        SaltInvocationError: it is.
    """
    try:
        size = len(json.dumps(declaration, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SaltInvocationError("a declaration holds texts, numbers, true, false, lists and mappings only") from error
    if size > _MOST_CHARACTERS:
        raise SaltInvocationError(f"the declaration is longer than {_MOST_CHARACTERS} characters")


def paths(declaration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Finds the files of the host that a declaration names: yields where it names one, and its path."""
    for key in ("kernel", "initrd"):
        path = declaration.get("boot", {}).get(key, "")
        if path:
            yield f"boot:{key}", path
    for number, disk in enumerate(declaration.get("disks", [])):
        for key in ("path", "source_file", "image"):
            if disk.get(key, "").startswith("/"):
                yield f"disks:{number}:{key}", disk[key]


def check(virsh: Any, utils: Utils, name: str, declaration: Mapping[str, Any], images: str) -> None:
    """Judges a declaration that the schema has accepted.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        name: of the new guest.
        declaration: what it is to be.
        images: the folder of disk images.

    Raises:
        CommandExecutionError: there is such a guest, it went to another host, or a file is not the operator's to use.
    """
    known = utils["hypervisor_guests.names"](virsh, utils)
    if name in known.values():
        raise CommandExecutionError(f"there is a guest {name} on this host already")
    record = utils["hypervisor_records.read"](name)
    if record:
        raise CommandExecutionError(f"guest {name} was migrated to {record['to']}; nothing was made")
    folders = [images]
    for pool in utils["hypervisor_xml.lines"](virsh.ask("pool-list", "--name")):
        path = utils["hypervisor_xml.pool"](virsh.ask("pool-dumpxml", pool))["path"]
        if path:
            folders.append(path)
    used, written = (utils["hypervisor_actions.used_by_others"](virsh, utils, "", layers) for layers in (True, False))
    wrong = []
    for where, path in paths(declaration):
        clean = posixpath.normpath(path)
        if clean != path or not any(clean.startswith(f"{folder.rstrip('/')}/") for folder in folders):
            wrong.append(f"{where}: {utils['hypervisor_checks.shown'](path)} is in no storage pool of this host")
        elif clean in (written if where.endswith(":image") else used):
            # A new disk may begin from what others stand on, not from what another guest writes.
            wrong.append(f"{where}: {utils['hypervisor_checks.shown'](path)} belongs to guest {used[clean]}")
    wrong += _volumes(virsh, declaration, used)
    if wrong:
        raise CommandExecutionError("nothing was made:\n" + "\n".join(wrong))


def _volumes(virsh: Any, declaration: Mapping[str, Any], used: Mapping[str, str]) -> list[str]:
    """Judges the disks that are volumes which are there already."""
    wrong = []
    for number, disk in enumerate(declaration.get("disks", [])):
        volume = disk.get("source_file", "")
        if volume and not volume.startswith("/") and "pool" in disk:
            path, _ = virsh.attempt("vol-path", volume, "--pool", disk["pool"])
            if path.strip() in used:
                wrong.append(f"disks:{number}:source_file: {volume} belongs to guest {used[path.strip()]}")
    return wrong

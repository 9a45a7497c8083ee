"""What an operator may declare of a new guest, beyond what the schema of a guest allows everybody.

The schema trusts those who write pillar. A declaration that came through salt-api must not read files of the host
into a guest, or give it a disk of another guest.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
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
    known, folders = _pools(virsh, utils, images)
    used, written = (utils["hypervisor_actions.used_by_others"](virsh, utils, "", layers) for layers in (True, False))
    wrong = []
    for where, path in paths(declaration):
        if not _is_below(path, folders):
            wrong.append(f"{where}: {utils['hypervisor_checks.shown'](path)} is in no storage pool of this host")
            continue
        # A new disk may begin from what others stand on, not from what another guest writes.
        wrong += _judged(utils, where, path, folders, written if where.endswith(":image") else used)
    try:
        disks = utils["guest_declared.disks"](name, declaration, known, images)
    except ValueError as error:
        raise CommandExecutionError(f"nothing was made: {error}") from error
    for number, (given, disk) in enumerate(zip(declaration.get("disks", []), disks, strict=True)):
        wrong += _derived(virsh, utils, f"disks:{number}", (given, disk), folders, used)
    if "cloud_init" in declaration:
        seed = utils["guest_declared.seed_disk"](name, disks, images)["path"]
        wrong += _judged(utils, "cloud_init", seed, folders, used, "raw")
    if wrong:
        raise CommandExecutionError("nothing was made:\n" + "\n".join(dict.fromkeys(wrong)))


def _pools(virsh: Any, utils: Utils, images: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns all pools, as ``guest_declared.disks`` wants them, and the folders that an operator's files may be in."""
    names = utils["hypervisor_storage.pool_names"]
    active = names(virsh, utils)
    known, folders = {}, [images]
    for name in names(virsh, utils, "--all"):
        text, failed = virsh.attempt("pool-dumpxml", name)
        if failed and name not in names(virsh, utils, "--all"):
            # Of a look for a migration, which is over.
            continue
        if failed:
            raise CommandExecutionError(failed)
        pool = utils["hypervisor_xml.pool"](text)
        known[name] = {"type": pool["type"], "target": pool["path"] or ""}
        if pool["path"] and name in active:
            folders.append(pool["path"])
    return known, folders


def _is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is written plainly and lies below one of some folders."""
    return posixpath.normpath(path) == path and any(path.startswith(f"{one.rstrip('/')}/") for one in folders)


def _derived(
    virsh: Any, utils: Utils, where: str, disk: tuple[Mapping[str, Any], Mapping[str, Any]], folders: list[str],
    used: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Judges the path of a disk that its declaration does not name, or names as a volume; takes it both ways."""
    given, described = disk
    volume = given.get("source_file", "")
    path = described["path"]
    if path is None or volume.startswith("/"):
        return []
    wanted = str(described["format"])
    if "path" in given:
        # Judged by its name already, but not as what it is used.
        return _judged(utils, f"{where}:path", path, folders, used, wanted)
    if volume:
        where = f"{where}:source_file"
        if "pool" in given:
            path = virsh.attempt("vol-path", volume, "--pool", given["pool"])[0].strip() or path
    if not _is_below(path, folders):
        return [f"{where}: {utils['hypervisor_checks.shown'](path)} is in no storage pool of this host"]
    return _judged(utils, where, path, folders, used, wanted)


def _judged(
    utils: Utils, where: str, path: str, folders: list[str], used: Mapping[str, str], wanted: str = ""
) -> list[str]:
    """Judges a file whose name is allowed: whose it is, and what it reads from; ``wanted`` is what it is used as."""
    shown = utils["hypervisor_checks.shown"](path)
    owner = used.get(path) or used.get(os.path.realpath(path))
    if owner:
        return [f"{where}: {shown} belongs to guest {owner}"]
    if not os.path.lexists(path):
        return []
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            return [f"{where}: {shown} is neither a file nor a block device"]
        if stat.S_ISBLK(mode) and in_use(path):
            return [f"{where}: {shown} is in use by this host"]
    except OSError as error:
        return [f"{where}: {shown} cannot be used: {error.strerror}"]
    if where.startswith("boot:"):
        return [] if _is_inside(path, folders) else [f"{where}: {shown} leads out of the storage pools of this host"]
    return [f"{where}: {text}" for text in _layers(utils, path, folders, wanted)]


def _layers(utils: Utils, path: str, folders: list[str], wanted: str) -> list[str]:
    """Judges what an image is and all that it reads from; ``wanted`` is what it is used as."""
    show = utils["hypervisor_checks.shown"]
    try:
        layers = utils["guest_storage.layers"](utils["libvirt_tools.run"], path)
    except (CommandExecutionError, ValueError) as error:
        return [f"{show(path)} cannot be read: {error}"]
    found = []
    for number, layer in enumerate(layers):
        name = str(layer["filename"])
        problem = utils["guest_storage.format_problem"](name, str(layer["format"]), "" if number else wanted)
        if problem:
            found.append(problem)
        if layer.get("format-specific", {}).get("data", {}).get("data-file"):
            found.append(f"{show(name)} reads from a data file")
        if not _is_inside(name, folders):
            found.append(f"it reads from {show(name)}, which is in no storage pool of this host")
    return found


def _is_inside(path: str, folders: list[str]) -> bool:
    """Whether a file lies below one of some folders when all links are followed; a device's name is a link."""
    if not _is_below(path, folders):
        return False
    real = os.path.realpath(path)
    if real.startswith("/dev/") and path.startswith("/dev/"):
        return True
    return _is_below(real, [os.path.realpath(folder) for folder in folders])


def in_use(path: str) -> bool:
    """Whether the host uses a block device: has mounted it, or made something of it.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False

"""Starts, stops, resizes and deletes guests of this host; every function says what it found and what is now.

Arguments have passed ``hypervisor_checks`` before. A guest is named to libvirt by its UUID alone.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]

_PAUSE = 0.3
_BEGINNING_SECONDS = 10.0  # that a migration has to begin which is about to
_ABORT_SECONDS = 60.0
_OUTGOING = "outgoing migration"
# What each verb is for: virsh's command, the states it begins in, and the state in which there is nothing to do.
_VERBS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "start": ("start", ("shut_off", "crashed"), ("running",)),
    "shutdown": ("shutdown", ("running", "shutting_down"), ("shut_off",)),
    "reboot": ("reboot", ("running",), ()),
    "power_off": (
        "destroy",
        ("running", "paused", "blocked", "shutting_down", "pmsuspended", "crashed"),
        ("shut_off",),
    ),
    "suspend": ("suspend", ("running",), ("paused",)),
    "resume": ("resume", ("paused",), ("running",)),
}
_HELP = {"paused": "hypervisor.resume continues it", "shut_off": "hypervisor.start starts it"}


def state(virsh: Any, uuid: str) -> str:
    """Returns the state of a guest in the words of ``hypervisor.guest``.

    It is "gone" for one that is not there, and "unreachable" if libvirt cannot be asked.
    """
    printed, failed = virsh.attempt("domstate", uuid)
    if failed:
        return "gone" if "failed to get domain" in failed else "unreachable"
    words = {"shut off": "shut_off", "in shutdown": "shutting_down", "idle": "blocked", "no state": "unknown"}
    return str(words.get(printed.strip(), printed.strip()))


def act(virsh: Any, utils: Utils, name: str, verb: str, timeout: float = 0) -> dict[str, Any]:
    """Does one verb to a guest.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        name: of the guest.
        verb: start, shutdown, reboot, power_off, suspend or resume.
        timeout: seconds to wait for the end of a shutdown.

    Returns:
        ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.

    Raises:
        CommandExecutionError: there is no such guest, its state does not allow it, or libvirt refused.
    """
    command, begins, done = _VERBS[verb]
    uuid = utils["hypervisor_guests.resolve"](virsh, utils, name)
    before = state(virsh, uuid)
    result = {"name": name, "uuid": uuid, "changed": False, "state_before": before, "state": before}
    if before in done:
        return result
    if before not in begins:
        hint = f": {_HELP[before]}" if before in _HELP else ""
        raise CommandExecutionError(f"{name} is {before.replace('_', ' ')}, so there is no {verb} of it{hint}")
    virsh.ask(command, uuid)
    if verb == "start":
        # Whatever was recorded of it: from now on it is here.
        utils["hypervisor_records.remove"](name)
    deadline = time.monotonic() + timeout
    now = state(virsh, uuid)
    while verb == "shutdown" and now not in {"shut_off", "gone"} and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        now = state(virsh, uuid)
    return result | {"changed": verb == "reboot" or now != before, "state": now}


def cancel(virsh: Any, utils: Utils, name: str) -> dict[str, Any]:
    """Calls off the migration of a guest away from this host.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        name: of the guest.

    Returns:
        ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.

    Raises:
        CommandExecutionError: there is no such guest or no migration of it, it has ended meanwhile, or it goes on.
    """
    uuid = utils["hypervisor_guests.resolve"](virsh, utils, name)
    before = state(virsh, uuid)
    deadline = time.monotonic() + _BEGINNING_SECONDS
    while not (job := _job(virsh, utils, uuid)) and utils["hypervisor_records.moving"](name):
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    if job != _OUTGOING:
        busy = f"; libvirt is at something else with it: {job}" if job else ""
        raise CommandExecutionError(
            f"{name} is {before.replace('_', ' ')}, and no migration of it from here has begun{busy}"
        )
    _, failed = virsh.attempt("domjobabort", uuid)
    deadline = time.monotonic() + _ABORT_SECONDS
    while (job := _job(virsh, utils, uuid)) == _OUTGOING and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    now = state(virsh, uuid)
    if now in {"gone", "unreachable"}:
        raise CommandExecutionError(f"it was too late: {name} is {now} here, its migration had ended")
    if job == _OUTGOING:
        why = f": {failed}" if failed else ""
        raise CommandExecutionError(f"{name} is {now} here, but libvirt has not ended its migration{why}")
    return {"name": name, "uuid": uuid, "changed": not failed, "state_before": before, "state": now}


def _job(virsh: Any, utils: Utils, uuid: str) -> str:
    """Returns what libvirt is at with a guest, an empty text for nothing."""
    printed, _ = virsh.attempt("domjobinfo", uuid)
    found = utils["hypervisor_xml.pairs"](printed)
    kind = found.get("job type", "None")
    return "" if kind == "None" else found.get("operation", kind).lower()


def resize(virsh: Any, utils: Utils, name: str, cpu: int | None, mem: int | None) -> dict[str, Any]:
    """Changes processors and memory of a guest, at once where libvirt and the guest can, else from its next start.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        name: of the guest.
        cpu: how many processors it has then.
        mem: how much memory it has then, in MiB.

    Returns:
        ``name``, ``uuid`` and for each that was given, ``vcpus`` or ``memory_mib``, with ``before``, ``after``,
        ``applied`` ("now", "next_start" or "already") and ``why`` it waits for the next start.

    Raises:
        CommandExecutionError: there is no such guest, the host is too small, or libvirt refused.
    """
    uuid = utils["hypervisor_guests.resolve"](virsh, utils, name)
    running = state(virsh, uuid) not in {"shut_off", "crashed"}
    persistent = uuid in utils["hypervisor_xml.lines"](virsh.ask("list", "--all", "--uuid", "--persistent"))
    defined = utils["hypervisor_xml.guest"](virsh.ask("dumpxml", uuid, "--inactive")) if persistent else None
    live = utils["hypervisor_xml.guest"](virsh.ask("dumpxml", uuid)) if running else None
    if mem is not None:
        host = utils["hypervisor_xml.pairs"](virsh.ask("nodememstats"))
        most = int(host["total"].split()[0]) // 1024
        if mem > most:
            raise CommandExecutionError(f"mem: {mem} MiB is more than this host has, {most} MiB; nothing was changed")
    result: dict[str, Any] = {"name": name, "uuid": uuid}
    wanted = {"vcpus": cpu, "memory_mib": mem}
    for key, value in wanted.items():
        if value is not None:
            result[key] = _resized(virsh, uuid, key, value, live, defined)
    return result


def _resized(
    virsh: Any, uuid: str, key: str, value: int, live: dict[str, Any] | None, defined: dict[str, Any] | None
) -> dict[str, Any]:
    """Changes one of the two sizes; takes the guest as it runs and as it is defined, None for neither."""
    command, raise_most, most = {
        "vcpus": ("setvcpus", ("setvcpus", uuid, str(value), "--config", "--maximum"), "vcpus_max"),
        "memory_mib": ("setmem", ("setmaxmem", uuid, f"{value}MiB", "--config"), "memory_max_mib"),
    }[key]
    amount = str(value) if key == "vcpus" else f"{value}MiB"
    current = (live or defined or {})[key]
    found: dict[str, Any] = {"before": current, "after": value, "applied": "already", "why": None}
    if defined is not None and defined[key] != value:
        if value > defined[most]:
            virsh.ask(*raise_most)
        virsh.ask(command, uuid, amount, "--config")
        found["applied"] = "next_start"
    if live is None or live[key] == value:
        return found
    if value > live[most]:
        why = f"it was started with at most {live[most]}"
    else:
        _, why = virsh.attempt(command, uuid, amount, "--live")
    if not why:
        return found | {"applied": "now"}
    if defined is None:
        raise CommandExecutionError(f"{key} stays {current}: the guest has no definition for a next start, and {why}")
    return found | {"applied": "next_start", "why": why}


def delete(virsh: Any, utils: Utils, name: str, disks: str | None, images: str = "") -> dict[str, Any]:
    """Deletes a guest that does not run.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        name: of the guest.
        disks: "keep" or "delete" its disks; None refuses a guest that has any.
        images: the folder of disk images, whose files may be deleted although no pool has them.

    Returns:
        ``name``, ``uuid``, ``disks_deleted`` and ``disks_kept``, lists of paths.

    Raises:
        CommandExecutionError: it runs, has disks and it was not said what becomes of them, or one of them cannot or
            must not be deleted; then nothing was changed.
    """
    uuid = utils["hypervisor_guests.resolve"](virsh, utils, name)
    now = state(virsh, uuid)
    if now not in {"shut_off", "crashed"}:
        raise CommandExecutionError(f"{name} is {now}; only a guest that is shut off is deleted")
    text = virsh.ask("dumpxml", uuid, "--inactive")
    found = utils["hypervisor_xml.guest"](text)
    own = [disk for disk in found["disks"] if disk["device"] == "disk" and (disk["source"] or disk["volume"])]
    paths = [str(disk["source"] or f"{disk['pool']}/{disk['volume']}") for disk in own]
    if own and disks is None:
        raise CommandExecutionError(f"{name} has disks: say disks=keep or disks=delete for {', '.join(paths)}")
    keys, files = _deletable(virsh, utils, uuid, own, images) if disks == "delete" else ([], [])
    if disks == "delete":
        files += _seed(virsh, utils, uuid, name, text)
    flags = ["--nvram"] if found["firmware"] == "uefi" else []
    if uuid in utils["hypervisor_xml.lines"](virsh.ask("list", "--all", "--uuid", "--with-managed-save")):
        flags.append("--managed-save")
    virsh.ask("undefine", uuid, *flags)
    utils["hypervisor_records.remove"](name)
    failures = []
    for key in keys:
        _, failed = virsh.attempt("vol-delete", key)
        if failed:
            failures.append(failed)
        else:
            # Another device of this name is not half filled, if this one was.
            utils["guest_storage.marker"](key).unlink(missing_ok=True)
    for path in files:
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            failures.append(f"{path}: {error.strerror}")
    if failures:
        raise CommandExecutionError(f"{name} is deleted, but not all of its disks: {'; '.join(failures)}")
    return {"name": name, "uuid": uuid, "disks_deleted": keys + files, "disks_kept": [] if keys or files else paths}


def _deletable(
    virsh: Any, utils: Utils, uuid: str, own: list[dict[str, Any]], images: str
) -> tuple[list[str], list[str]]:
    """Returns the paths of a guest's disks, volumes and other files, if every one of them may be deleted.

    Raises:
        CommandExecutionError: one may not; the message has every reason.
    """
    used = used_by_others(virsh, utils, uuid)
    keys, files, wrong = [], [], []
    for disk in own:
        words = (disk["volume"], "--pool", disk["pool"]) if disk["volume"] else (disk["source"],)
        key, failed = virsh.attempt("vol-path", *words)
        if failed:
            for pool in utils["hypervisor_storage.pool_names"](virsh, utils):
                virsh.attempt("pool-refresh", pool)
            key, failed = virsh.attempt("vol-path", *words)
        path = key.strip() or str(disk["source"])
        if disk["shareable"] or disk["readonly"]:
            wrong.append(f"{path} is shared or read-only")
        elif owner := used.get(path) or used.get(os.path.realpath(path)):
            wrong.append(f"{path} belongs to {owner} too")
        elif failed and _is_image(path, images):
            files.append(path)
        elif failed:
            wrong.append(f"{path} is in no active storage pool: remove it by hand")
        else:
            keys.append(path)
    if wrong:
        raise CommandExecutionError(f"nothing was deleted: {'; '.join(wrong)}")
    return keys, files


def _seed(virsh: Any, utils: Utils, uuid: str, name: str, text: str) -> list[str]:
    """Returns the path of the disk that cloud-init was given, which may hold secrets, unless another guest uses it."""
    path = utils["guest_domain.seed_path"](utils["guest_domain.parse"](text)) or ""
    if Path(path).name != f"{name}_cloud-init.iso" or not _is_image(path, str(Path(path).parent)):
        return []
    return [] if path in used_by_others(virsh, utils, uuid) else [path]


def _is_image(path: str, images: str) -> bool:
    """Whether a path is that of a file, and of no link, directly in the folder of disk images."""
    if not images or os.path.normpath(path) != path or str(Path(path).parent) != os.path.normpath(images):
        return False
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def used_by_others(virsh: Any, utils: Utils, uuid: str, backing: bool = True) -> dict[str, str]:
    """Returns the paths that other guests' disks lie on, and stand on if ``backing``, with one guest's name each.

    Each path is there as libvirt writes it, and without links.

    Raises:
        CommandExecutionError: libvirt cannot be asked, or a disk cannot be read.
    """
    used: dict[str, str] = {}
    for other, name in utils["hypervisor_guests.names"](virsh, utils).items():
        if other != uuid:
            # What runs may differ from what is defined, such as after a disk was added for the next start.
            live, defined = (
                utils["hypervisor_xml.guest"](virsh.ask("dumpxml", other, *words))["disks"]
                for words in ((), ("--inactive",))
            )
            for disk in [*live, *(disk for disk in defined if disk not in live)]:
                files = _files(virsh, utils, disk, backing)
                used |= dict.fromkeys([*files, *(os.path.realpath(path) for path in files)], name)
    return used


def _files(virsh: Any, utils: Utils, disk: Mapping[str, Any], backing: bool) -> list[str]:
    """Returns the path of a guest's disk, and those of the files that it stands on if ``backing``."""
    path = disk["source"] or ""
    if disk["volume"]:
        path = virsh.attempt("vol-path", disk["volume"], "--pool", disk["pool"])[0].strip()
        if not path:
            # Of a pool that is not active.
            folder = utils["hypervisor_xml.pool"](virsh.ask("pool-dumpxml", disk["pool"]))["path"]
            path = f"{folder}/{disk['volume']}" if folder else ""
    if not path or not backing:
        return [path] if path else []
    layers = list(disk["backing"])
    # A raw disk stands on nothing, and what it begins with is the guest's own. libvirt tells of a guest that runs.
    if disk["format"] not in {"", "raw"} and path.startswith("/") and Path(path).exists():
        layers += utils["guest_storage.chain"](utils["libvirt_tools.run"], path)
    return [path, *layers]

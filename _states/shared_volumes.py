"""Volume groups that nodes share: made once by one node, never over anything else, and their locks on every node."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 1.0
_ANSWER = 10  # seconds
_LVM = 300  # seconds; LVM waits for locks, which wait for other nodes
_USE = "vgcreate"

Result = dict[str, Any]


def group(
    name: str,
    devices: list[str],
    cluster: str,
    bootstrap: str,
    lock_manager: str = "dlm",
    allow_format: bool = False,
    wait_seconds: int = 120,
) -> Result:
    """Make sure that there is a shared volume group, and that this node has its locks.

    Args:
        name: The volume group.
        devices: Its disks.
        cluster: The cluster's name, which stands in the group's locks.
        bootstrap: The minion id of the node that makes it; others wait for it.
        lock_manager: What the locks are of.
        allow_format: Whether what is on a disk may be lost.
        wait_seconds: How long to wait for the daemons of locks, and for the node that makes the group.

    Returns a state result. A group that is there and as declared is adopted; one that differs is refused.
    """
    ret: Result = {"name": name, "result": True, "changes": {}, "comment": ""}
    where = f"cluster:storage:volume_groups:{name}"
    try:
        missing = __utils__["cluster_disks.missing"](devices)
        if missing:
            return _failed(ret, f"{where}:devices: not a disk of this host: {', '.join(missing)}.")
        if not __utils__["cluster_tools.installed"]("vgs"):
            return _predicted(ret, devices, bootstrap) if __opts__["test"] else _failed(ret, "LVM is not installed.")
        found = _found(name, bootstrap, wait_seconds)
        why = _differs(found, devices, cluster, lock_manager) if found else ""
        if why:
            return _failed(ret, f"{where}: {name} is there, but {why}.")
        if not found and __opts__["id"] == bootstrap:
            why = _kept(devices, allow_format)
        if why:
            return _failed(ret, f"{where}:devices: {why}.")
        if __opts__["test"]:
            return _would(ret, found, devices, name, bootstrap)
        _wait(found, bootstrap, wait_seconds, lock_manager)
        if not found:
            _make(name, devices, allow_format, lock_manager)
            ret["changes"]["group"] = {"old": None, "new": f"shared, on {', '.join(devices)}"}
        ret["changes"] |= _locked(name, devices, lock_manager)
    except (CommandExecutionError, OSError, ValueError, KeyError) as error:
        return _failed(ret, f"{name}: {error}.")
    return ret | {"comment": f"The volume group {name} is there, with its locks."}


def _failed(ret: Result, comment: str) -> Result:
    """Return a failure without changes but those that were made."""
    return ret | {"result": False, "comment": comment}


def _utils() -> dict[str, Any]:
    """Return what the modules of _utils need of each other."""
    names = ("cluster_tools.run", "cluster_tools.installed", "disk_use.user_of")
    return {name: __utils__[name] for name in names}


def _predicted(ret: Result, devices: list[str], bootstrap: str) -> Result:
    """Return what a dry run says on a host without LVM."""
    if __opts__["id"] == bootstrap:
        # Who makes it has its locks.
        changes = {"group": {"old": None, "new": f"shared, on {', '.join(devices)}"}}
    else:
        changes = {"locks": {"old": None, "new": "started"}}
    return ret | {"result": None, "changes": changes, "comment": "The volume group would be made ready."}


def _found(name: str, bootstrap: str, wait_seconds: int) -> Any:
    """Return the group; another node than the one that makes it waits for it."""
    deadline = time.monotonic() + wait_seconds
    waits = __opts__["id"] != bootstrap and not __opts__["test"]
    while True:
        found = __utils__["cluster_disks.group"](_utils(), name)
        # vgcreate writes last what the locks are of, seconds after the group is to be seen.
        if (found and found.lock_type) or not waits or time.monotonic() + _PAUSE > deadline:
            return found
        time.sleep(_PAUSE)


def _differs(found: Any, devices: list[str], cluster: str, lock_manager: str) -> str:
    """Return why a group that is there is not the one that is declared; empty if it is."""
    if found.lock_type != lock_manager:
        kind = f"its locks are of {found.lock_type}" if found.lock_type else "it is not shared"
        return f"{kind}; convert it by hand where nobody uses it: vgchange --lock-type {lock_manager}, see lvmlockd(8)"
    of_cluster = found.lock_args.rpartition(":")[2]
    # Locks of sanlock are on the disks, whoever uses them.
    if lock_manager == "dlm" and of_cluster != cluster:
        return f"it belongs to the cluster {of_cluster}, not {cluster}; see lvmlockd(8) on how to change its lock type"
    disks = {str(Path(device).resolve()): device for device in devices}
    more = sorted(found.disks - set(disks))
    less = sorted(disks[one] for one in set(disks) - found.disks)
    if more:
        return f"it also is on {', '.join(more)}; declare these, or take them out by hand: pvmove and vgreduce"
    return f"it is not on {', '.join(less)}; take them in by hand: vgextend" if less else ""


def _kept(devices: list[str], allow_format: bool) -> str:
    """Return why a disk is not written over; empty where all of them are empty, or may be lost."""
    for device in devices:
        why = __utils__["cluster_disks.kept"](_utils(), device, _USE, allow_format, free=True)
        if why:
            return str(why)
    return ""


def _would(ret: Result, found: Any, devices: list[str], name: str, bootstrap: str) -> Result:
    """Return what a dry run says."""
    if not found or name not in (__utils__["cluster_disks.lockspaces"](_utils()) or []):
        return _predicted(ret, devices, "" if found else bootstrap)
    return ret | {"comment": f"The volume group {name} is there, with its locks."}


def _wait(found: Any, bootstrap: str, wait_seconds: int, lock_manager: str) -> None:
    """Wait for the daemon of locks; raise CommandExecutionError where it, or the group on another node, is missing."""
    if not found and __opts__["id"] != bootstrap:
        raise CommandExecutionError(
            f"{bootstrap} has not made it within {wait_seconds} s; run the highstate there, the next one here goes on"
        )
    deadline = time.monotonic() + wait_seconds
    while __utils__["cluster_disks.lockspaces"](_utils()) is None:
        if time.monotonic() + _PAUSE > deadline:
            told = (
                "It is the resource lvmlockd of the "
                f"cluster, which {bootstrap} brings in once fencing works: run its highstate, or see: crm_mon -1"
            )
            if lock_manager == "sanlock":
                told = "See: systemctl status wdmd sanlock lvmlockd"
            raise CommandExecutionError(f"lvmlockd does not answer on this host within {wait_seconds} s. {told}")
        time.sleep(_PAUSE)


def _make(name: str, devices: list[str], allow_format: bool, lock_manager: str) -> None:
    """Make the group; what is on its disks is lost."""
    # Locks were waited for: a disk may have come into use meanwhile, and vgcreate would not ask.
    why = _kept(devices, allow_format)
    if why:
        raise CommandExecutionError(why)
    for device in devices:
        if __utils__["cluster_disks.found_on"](_utils(), device):
            __utils__["cluster_disks.emptied"](_utils(), device)
    __utils__["cluster_disks.seen_by_lvm"](_utils(), devices)
    # As long as a host has run no locks of either kind, LVM could not tell by itself which ones are meant.
    kind = ["--shared"] if lock_manager == "dlm" else ["--lock-type", lock_manager]
    __utils__["cluster_tools.run"](["vgcreate", "--yes", *kind, name, *devices], timeout=_LVM)


def _locked(name: str, devices: list[str], lock_manager: str) -> dict[str, Any]:
    """Start the group's locks on this node unless they are; return what changed."""
    if name in _lockspaces():
        return {}
    __utils__["cluster_disks.seen_by_lvm"](_utils(), devices)
    __utils__["cluster_tools.run"](["vgchange", "--lockstart", name], timeout=_LVM)
    # It ends well also where lvmlockd did not get them, or has them left from before their disks were lost.
    if name not in _lockspaces():
        logs = "sanlock -t wdmd" if lock_manager == "sanlock" else "dlm_controld"
        raise CommandExecutionError(
            "its locks have not started on this host; see: "
            f"journalctl -b -t lvmlockd -t {logs}; lvmlockctl --info --dump"
        )
    return {"locks": {"old": None, "new": "started"}}


def _lockspaces() -> list[str]:
    """Return the groups whose locks this node has; lvmlockd answers one at a time, and another one may be asking."""
    deadline = time.monotonic() + _ANSWER
    while (found := __utils__["cluster_disks.lockspaces"](_utils())) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return found or []


def volume(name: str, group: str, size_mib: int) -> Result:
    """Make sure that there is a volume in a shared group; for the node that makes what the cluster has once.

    Args:
        name: The volume.
        group: Its group, whose locks this node has.
        size_mib: Its size in MiB when it is made. One that is there keeps its size, which the comment says.

    Returns a state result. A new volume is empty and active nowhere.
    """
    ret: Result = {"name": name, "result": True, "changes": {}, "comment": ""}
    where = f"{group}/{name}"
    try:
        there = __utils__["cluster_tools.installed"]("lvs")
        found = __utils__["cluster_disks.volumes"](_utils(), group) if there else {}
        if name in found:
            told = "" if found[name] == size_mib else f" It has {found[name]} MiB, not {size_mib}; see lvextend(8)."
            return ret | {"comment": f"The volume {where} is there.{told}"}
        made = {where: {"old": None, "new": f"{size_mib} MiB"}}
        if __opts__["test"]:
            return ret | {"result": None, "changes": made, "comment": f"The volume {where} would be made."}
        run = __utils__["cluster_tools.run"]
        # Active for a moment, so that what lay there before is not taken for a file system.
        size = ["--size", f"{size_mib}m", "--wipesignatures", "y", "--zero", "y"]
        run(["lvcreate", "--yes", "--activate", "ey", *size, "--name", name, group], timeout=_LVM)
        ret["changes"] = made
        run(["lvchange", "--activate", "n", where], timeout=_LVM)
    except (CommandExecutionError, OSError, ValueError, KeyError) as error:
        return ret | {"result": False, "comment": f"{where}: {error}."}
    return ret | {"comment": f"The volume {where} is there now."}

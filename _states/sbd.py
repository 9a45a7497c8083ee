"""Disks by which nodes tell each other to go: made once by one node, and never over anything else."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 1.0
# Seconds that systemd gives sbd to start, with the longest start_delay.
_START = 3600 + 90
# Seconds that it may take to watch its disks from then on; it has started once it watches most of them.
_LOOKS = 30
_USE = "sbd create"
_STOP = "stop the cluster on all nodes (systemctl stop pacemaker corosync), then run the highstate on all."
_ANEW = f"It takes this up when it starts: {_STOP}"


def unchanged(
    name: str,
    devices: list[str],
    watchdog: str = "/dev/watchdog",
    watchdog_timeout: int = 0,
) -> dict[str, Any]:
    """Make sure that no sbd runs here with anything else than what is declared, before anything of that is written.

    A node that came back with other disks than those in the CIB would count as off after a message that it never read.

    Args:
        name: Any label.
        devices: The disks; none for the watchdog alone.
        watchdog: As of :func:`working`.
        watchdog_timeout: As of :func:`working`.

    Returns a state result without changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        if not _runs():
            return ret | {"comment": "sbd does not run: it takes up what is declared when it starts."}
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"sbd: {error}."}
    return working(name, devices, watchdog, watchdog_timeout)


def disks(
    name: str,
    devices: list[str],
    watchdog_timeout: int,
    msgwait: int,
    bootstrap: str,
    allow_format: bool = False,
    wait_seconds: int = 120,
) -> dict[str, Any]:
    """Make sure that each disk is one of sbd, with these timeouts.

    Args:
        name: Any label.
        devices: The disks.
        watchdog_timeout: Seconds after which a host that hangs is reset.
        msgwait: Seconds after which a host that was told to go counts as off.
        bootstrap: The minion id of the node that makes what is missing; others wait for it.
        allow_format: Whether what is on a disk may be lost.
        wait_seconds: How long others wait.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wanted = {"watchdog_timeout": watchdog_timeout, "msgwait": msgwait}
    try:
        missing = __utils__["cluster_disks.missing"](devices)
        if missing:
            comment = f"cluster:sbd:devices: not a disk of this host: {', '.join(missing)}."
            return ret | {"result": False, "comment": comment}
        if not __utils__["cluster_tools.installed"]("sbd"):
            return _not_installed(ret, devices, bootstrap)
        if __opts__["id"] != bootstrap:
            return ret | _waited(devices, wanted, bootstrap, wait_seconds)
        return ret | _made(ret, devices, wanted, allow_format)
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"sbd: {error}."}


def _utils() -> dict[str, Any]:
    """Return what the modules of _utils need of each other."""
    names = ("cluster_tools.run", "cluster_tools.installed", "disk_use.user_of")
    return {name: __utils__[name] for name in names}


def _not_installed(ret: dict[str, Any], devices: list[str], bootstrap: str) -> dict[str, Any]:
    """Return the result on a host that does not have sbd yet."""
    if not __opts__["test"]:
        return ret | {"result": False, "comment": "sbd is not installed. The state cluster.packages brings it."}
    changes = dict.fromkeys(devices, "to be made one of sbd, if it is empty") if __opts__["id"] == bootstrap else {}
    return ret | {"result": None if changes else True, "changes": changes, "comment": "sbd is not installed yet."}


def _made(
    ret: dict[str, Any], devices: list[str], wanted: Mapping[str, int], allow_format: bool
) -> dict[str, Any]:
    """Make what is missing; return what changes of the result, which has each disk as soon as it is made."""
    utils = _utils()
    found = {device: __utils__["cluster_disks.sbd_header"](utils, device) for device in devices}
    other = [device for device in devices if found[device] and found[device] != wanted]
    # That sbd does not run here says nothing of the other nodes.
    if other and (not allow_format or __utils__["cluster_tools.active"]("sbd.service")):
        told = "; ".join(f"{device} has {_said(found[device])}, not {_said(wanted)}" for device in other)
        comment = (
            f"cluster:sbd:devices: Nothing has changed: {told}. sbd takes this up when the disk is made anew, and no "
            "cluster that uses it survives that: stop it on all nodes (systemctl stop pacemaker corosync), then run "
            "the highstate on all with cluster:storage:allow_format: true."
        )
        return {"result": False, "comment": comment}
    empty = [device for device in devices if not found[device]]
    for device in empty:
        why = __utils__["cluster_disks.kept"](utils, device, _USE, allow_format, free=True)
        if why:
            return {"result": False, "comment": f"cluster:sbd:devices: {why}."}
    changes = {
        device: {"old": _said(found[device]) if found[device] else None, "new": _said(wanted)}
        for device in [*empty, *other]
    }
    if changes and not __opts__["test"]:
        for device, change in changes.items():
            __utils__["cluster_disks.make_header"](utils, device, **wanted)
            ret["changes"][device] = change
            if __utils__["cluster_disks.sbd_header"](utils, device) != wanted:
                raise CommandExecutionError(f"{device} does not say after sbd create what was written to it")
    comment = f"The disks {'would be' if __opts__['test'] and changes else 'are'} those of sbd."
    return {"changes": changes, "comment": comment, "result": None if changes and __opts__["test"] else True}


def _waited(devices: list[str], wanted: Mapping[str, int], bootstrap: str, wait_seconds: int) -> dict[str, Any]:
    """Wait until another node has made the disks; return what changes of the result."""
    if __opts__["test"]:
        return {"comment": f"The disks are those of sbd, or {bootstrap} makes them."}

    def lacking() -> list[str]:
        return [one for one in devices if __utils__["cluster_disks.sbd_header"](_utils(), one) != wanted]

    left = _until(lacking, wait_seconds)
    if left:
        comment = (
            f"{bootstrap} has not made these disks of sbd with {_said(wanted)} within {wait_seconds} s: "
            f"{', '.join(left)}. Run its highstate; the next one here goes on."
        )
        return {"result": False, "comment": comment}
    return {"comment": "The disks are those of sbd."}


def _until(lacking: Callable[[], list[str]], wait_seconds: int) -> list[str]:
    """Wait until nothing is lacking any more; return what still is."""
    deadline = time.monotonic() + wait_seconds
    while (left := lacking()) and time.monotonic() + _PAUSE < deadline:
        time.sleep(_PAUSE)
    return left


def _said(times: Mapping[str, int]) -> str:
    """Return timeouts as a text."""
    return ", ".join(f"{key} {value}" for key, value in times.items())


def working(
    name: str,
    devices: list[str],
    watchdog: str = "/dev/watchdog",
    watchdog_timeout: int = 0,
) -> dict[str, Any]:
    """Make sure that sbd runs on this node, and with what is declared.

    What it was started with decides, not its file: a node that is told to go by a disk that its sbd does not watch
    counts as off, and goes on.

    Args:
        name: Any label.
        devices: The disks; none for the watchdog alone.
        watchdog: The watchdog's device.
        watchdog_timeout: Seconds after which it resets a host that hangs.

    Returns a state result without changes: sbd starts with corosync and with nothing else.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        if _runs():
            why = _against(devices, watchdog, watchdog_timeout)
            return ret | {"result": not why, "comment": why or "sbd runs."}
        if __opts__["test"] and not __utils__["cluster_tools.active"]("corosync.service"):
            return ret | {"comment": "sbd starts with corosync."}
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"sbd: {error}."}
    comment = (
        "sbd does not run, and starts with corosync alone. Where it is new, stop the cluster on all nodes, and where "
        "it has failed on this one, here (systemctl stop pacemaker corosync); then run the highstate on those. Why it "
        "does not run shows: journalctl -u sbd."
    )
    return ret | {"result": False, "comment": comment}


def _runs() -> bool:
    """Return whether sbd runs, once systemd has started it or given up: until then the watchdog is not set."""
    deadline = time.monotonic() + _START
    while __utils__["cluster_tools.starting"]("sbd.service") and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return bool(__utils__["cluster_tools.active"]("sbd.service"))


def announced(name: str, watchdog_timeout: int, devices: list[str] | None = None) -> dict[str, Any]:
    """Make sure that the others know by what this node is fenced, once its sbd works.

    Until all have said so the CIB does not count on it: Pacemaker stops where it should and sbd does not run, and a
    node that does not watch a disk reads nothing there. What a node has said goes when its Pacemaker stops.

    Args:
        name: Any label.
        watchdog_timeout: Seconds after which the watchdog resets a host that hangs.
        devices: The disks that it watches; none for the watchdog alone.

    Returns a state result without changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "The others know that sbd works."}
    if __opts__["test"]:
        return ret | {"comment": "The others are told once sbd works."}
    sbd = {"enabled": True, "devices": devices or [], "watchdog_timeout": watchdog_timeout}
    attribute, value = __utils__["cluster_derived.announcement"](sbd)
    try:
        __utils__["cluster_tools.run"](["attrd_updater", "-n", attribute, "-U", value])
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"sbd: {error}."}
    return ret


def _against(devices: list[str], watchdog: str, watchdog_timeout: int) -> str:
    """Return what the running sbd was started with instead of what is declared, and what to do; empty if nothing."""
    missing = _unwatched(devices, 0 if __opts__["test"] else _LOOKS)
    more = [one for one in __utils__["cluster_disks.watched"]() if one not in devices]
    blind = [one for one in missing if not __utils__["cluster_disks.sbd_header"](_utils(), one)]
    if blind and not more:
        # One that is gone looks like one that is declared and not made yet.
        return f"sbd runs, but cannot read: {', '.join(blind)}. If that is new to it, {_STOP}"
    why = _other(missing, more) or ("" if devices else _slower(watchdog, watchdog_timeout))
    return f"{why} {_ANEW}" if why else ""


def _unwatched(devices: list[str], wait_seconds: int) -> list[str]:
    """Return the disks that sbd does not watch, once it has had its time."""
    return _until(lambda: [one for one in devices if one not in __utils__["cluster_disks.watched"]()], wait_seconds)


def _other(missing: list[str], more: list[str]) -> str:
    """Return how the disks that sbd watches differ from those that are declared; empty if they do not."""
    words = [f"it does not watch {', '.join(missing)}"] if missing else []
    words += [f"it watches {', '.join(more)}"] if more else []
    return f"cluster:sbd:devices: sbd runs, but {' and '.join(words)}." if words else ""


def _slower(watchdog: str, watchdog_timeout: int) -> str:
    """Return why the others would take this node for off before its watchdog resets it; empty if they would not."""
    seconds = __utils__["cluster_disks.watchdog_seconds"](watchdog)
    # The others wait for twice what is declared (cluster_derived).
    if seconds <= 2 * watchdog_timeout:
        return ""
    return f"cluster:sbd:watchdog_timeout: sbd runs with {seconds} s, not {watchdog_timeout} s."

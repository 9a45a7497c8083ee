"""Nodes come and go: whether this one is in a cluster with quorum, and how one leaves it for good."""

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 1.0
_STOP = 1900  # seconds; Pacemaker moves resources away when it stops, which its unit gives 30 minutes
_LOCKS = 300  # seconds; a lease is given back on each disk
_LVMLOCKD = "lvmlockd.service"
_SERVICES = ("pacemaker.service", "corosync.service")
# What would bring a node back, give a later cluster the resources of this one, or let a host that is none of its nodes
# any more switch them off.
_KEPT = ("var/lib/pacemaker/cib/cib*", "var/lib/corosync/ringid_*", "var/lib/pacemaker/lrm/secrets/*/*")


def quorate(name: str, nodes: dict[str, Any], wait_seconds: int = 120) -> dict[str, Any]:
    """Make sure that this node is in a cluster that has quorum, with corosync and Pacemaker.

    Args:
        name: Any label.
        nodes: The nodes by minion id.
        wait_seconds: How long to wait for the others.

    Returns a state result without changes. Without quorum after that time it fails and names who is missing; a node
    that is missing from a cluster with quorum is named, but that is not this host's fault.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        return ret | {"comment": "Whether there is quorum shows once the services run."}
    deadline = time.monotonic() + wait_seconds
    try:
        while True:
            missing, why = _lacking(nodes)
            if not why:
                break
            if time.monotonic() + _PAUSE > deadline:
                who = f" Missing: {', '.join(missing)}." if missing else ""
                comment = f"Within {wait_seconds} s {why}.{who}"
                if missing:
                    comment += " Run the highstate there; the next one here goes on."
                return ret | {"result": False, "comment": comment}
            time.sleep(_PAUSE)
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"{error}."}
    if missing:
        return ret | {"comment": f"The cluster has quorum. Not there now: {', '.join(missing)}."}
    return ret | {"comment": f"The cluster has quorum, with all nodes: {', '.join(nodes)}."}


def _lacking(nodes: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return which nodes are not there, and what keeps this one from being part of a working cluster."""
    tools = __utils__
    joined = tools["cluster_tools.joined"](tools["cluster_tools.cmap"]())
    missing = [minion for minion, spec in nodes.items() if spec["id"] not in joined]
    if not tools["cluster_tools.quorum"]().quorate:
        return missing, "the cluster has not come to quorum"
    own = nodes[__opts__["id"]].get("name", __opts__["id"])
    online = tools["cluster_tools.online"](tools["cluster_tools.monitor"]())
    missing = [minion for minion, spec in nodes.items() if spec.get("name", minion) not in online]
    return missing, "" if own in online else "Pacemaker has not taken this node in (see: journalctl -u pacemaker)"


def left(
    name: str,
    files: list[str],
    leaving: dict[str, Any] | None = None,
    locks: list[str] | None = None,
    root: str = "/",
) -> dict[str, Any]:
    """Make sure that this host is in no cluster, and starts in none.

    Pacemaker moves its resources away first. Nodes without which the others would have no quorum stay: each that leaves
    counts all of those that are to leave and have not yet, since they may go at the same moment.

    Args:
        name: Any label.
        files: What goes: configuration and keys.
        leaving: The nodes that are to be out of the cluster by minion id, this one among them.
        locks: Services of locks that are no resources of Pacemaker, in the order in which they stop.
        root: Below which Pacemaker and corosync keep what they remember.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        units = [*_SERVICES, *(f"{unit}.service" for unit in locks or ())]
        running = [unit for unit in units if __utils__["cluster_tools.active"](unit)]
        enabled = [unit for unit in units if __utils__["cluster_tools.enabled"](unit)]
        there = [path for path in files if Path(path).exists()]
        there += sorted(str(path) for pattern in _KEPT for path in Path(root).glob(pattern) if path.is_file())
        found = {"stopped": running, "disabled": enabled, "removed": there}
        ret["changes"] = {verb: things for verb, things in found.items() if things}
        if not ret["changes"]:
            return ret | {"comment": "This host is in no cluster."}
        why = _needed(leaving or {}) or _unmanaged(leaving or {}) if running else ""
        if why:
            return ret | {"result": False, "changes": {}, "comment": why}
        if __opts__["test"]:
            return ret | {"result": None, "comment": "This host would leave the cluster."}
        _leave(running, enabled, there)
    except (CommandExecutionError, OSError) as error:
        return ret | {"result": False, "comment": f"This host has not left the cluster: {error}."}
    return ret | {"comment": "This host has left the cluster."}


def _leave(running: Collection[str], enabled: Iterable[str], there: Iterable[str]) -> None:
    """Stop what runs, Pacemaker first, and remove what would start it again."""
    _stop(unit for unit in running if unit in _SERVICES)
    if _LVMLOCKD in running:
        # Pacemaker has stopped the volumes; one that is active still keeps its group's locks, and that is said.
        __utils__["cluster_tools.run"](["vgchange", "--lockstop"], timeout=_LOCKS)
    _stop(unit for unit in running if unit not in _SERVICES)
    for unit in enabled:
        __utils__["cluster_tools.run"](["systemctl", "disable", unit])
    for path in there:
        Path(path).unlink(missing_ok=True)


def _stop(units: Iterable[str]) -> None:
    """Stop services, one after the other."""
    for unit in units:
        __utils__["cluster_tools.run"](["systemctl", "stop", unit], timeout=_STOP)


def _needed(leaving: Mapping[str, Any]) -> str:
    """Return why the others cannot do without those that leave; empty if they can, or have no quorum anyway."""
    if not __utils__["cluster_tools.active"]("corosync.service"):
        return ""
    votes = __utils__["cluster_tools.quorum"]()
    joined = __utils__["cluster_tools.joined"](__utils__["cluster_tools.cmap"]())
    going = __utils__["cluster_tools.names"](joined, leaving) or [__opts__["id"]]
    if not votes.quorate or votes.total <= 1 or votes.total - len(going) >= votes.needed:
        return ""
    told = f"there are {votes.total} votes and {votes.needed} are needed, so the others would have no quorum without"
    if len(leaving) > 1:
        return (
            f"cluster:nodes: nothing has changed: ensure: absent is declared for {', '.join(leaving)}, but {told} "
            f"{', '.join(going)}. Let them leave one after the other: declare it for one of them, run the highstate on "
            "all nodes, then go on with the next."
        )
    return (
        f"Nothing has changed: {told} this node. Bring the missing nodes back first, or stop this one by hand: "
        "systemctl stop pacemaker corosync."
    )


def _unmanaged(leaving: Mapping[str, Any]) -> str:
    """Return what Pacemaker would leave behind, running, when it stops here; empty for nothing.

    Once the others manage it again they would start it a second time.
    """
    if not __utils__["cluster_tools.active"]("pacemaker.service"):
        return ""
    own = str(leaving.get(__opts__["id"], {}).get("name", __opts__["id"]))
    found = __utils__["cluster_tools.unmanaged"](__utils__["cluster_tools.monitor"](), own)
    if not found:
        return ""
    return (
        f"Nothing has changed: Pacemaker does not manage {', '.join(found)}, so that would run on here, out of the "
        "cluster. Stop it, or have it managed again (is-managed, maintenance-mode)."
    )


def forgotten(name: str, nodes: dict[str, Any]) -> dict[str, Any]:
    """Make sure that Pacemaker does not list nodes any more that have left.

    Args:
        name: Any label.
        nodes: Those that have left, by minion id.

    Returns a state result. It fails while Pacemaker has still to fence one of them, and forgets none.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    names = {spec.get("name", minion) for minion, spec in nodes.items()}
    try:
        if not __utils__["cluster_tools.active"]("pacemaker.service"):
            return ret | {"comment": "Pacemaker does not run yet."}
        text = __utils__["cluster_tools.monitor"]()
        there = sorted(names & __utils__["cluster_tools.listed"](text))
        if not there:
            return ret | {"comment": "Pacemaker lists none of them."}
        why = __utils__["cluster_tools.unfenced"](text, there)
        if why:
            return ret | {"result": False, "comment": f"Pacemaker: {why}."}
        ret["changes"] = {"forgotten": there}
        if __opts__["test"]:
            return ret | {"result": None, "comment": "Pacemaker would forget nodes that have left."}
        for node in there:
            __utils__["cluster_tools.run"](["crm_node", "--force", "--remove", node])
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"{error}."}
    return ret | {"comment": "Pacemaker has forgotten nodes that have left."}

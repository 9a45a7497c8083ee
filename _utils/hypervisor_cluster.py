"""Guests that the cluster runs: acts on them go through Pacemaker, which would undo what libvirt alone is told.

Every function takes its siblings' functions by name. What is reported is what Pacemaker said in the end, and where.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]
Reason = dict[str, str]

_PAUSE, _PAUSE_MOST = 0.5, 3.0
_BEGINS = 300.0  # seconds that a start may take, as long as the resource itself has
_GOES = 60.0  # seconds after which a guest without power has to be stopped
_ON_ITS_WAY = frozenset({"Migrating", "Starting", "Stopping"})
_UUID = re.compile(r"<uuid>([0-9a-f-]{36})</uuid>")


class Found:
    """What Pacemaker says of a guest.

    Attributes:
        name: of the guest and its resource.
        role: Started, Stopped, Starting, Stopping or Migrating; empty where Pacemaker has no such resource.
        nodes: where it is, by the names of nodes.
        managed: whether Pacemaker acts on it.
        failed: whether its last operation has failed there.
        failures: of its operations, as ``cluster_status`` describes them.
        online: the nodes that are online, and neither in standby nor in maintenance.
    """

    def __init__(self, utils: Utils, name: str) -> None:
        """Asks Pacemaker; raises CommandExecutionError where it does not answer."""
        self.name = name
        text = utils["cluster_tools.monitor"]() if utils["cluster_tools.active"]("pacemaker.service") else ""
        seen = utils["cluster_status.read"](text)
        if "nodes" not in seen:
            raise CommandExecutionError(
                f"{name} is a guest of the cluster, and Pacemaker does not answer on this host; nothing was done. "
                "See: systemctl status pacemaker"
            )
        root = ElementTree.fromstring(text)  # noqa: S314 - from Pacemaker on this host
        element = next((one for one in root.iter("resource") if one.get("id") == name), None)
        rows = [row for row in seen["resources"] if row["name"] == name]
        row: Mapping[str, Any] = rows[0] if rows else {"role": "", "nodes": [], "managed": True, "failed": False}
        self.role, self.nodes = str(row["role"]), list(row["nodes"])
        self.managed, self.failed = bool(row["managed"]), bool(row["failed"])
        pending = "" if element is None else element.get("pending") or ""
        if pending:
            self.role = {"Migrating": "Migrating", "Starting": "Starting", "Stopping": "Stopping"}.get(
                pending, self.role
            )
        self.failures = [one for one in seen["failures"] if one["resource"] == name]
        self.problems = list(seen["problems"])
        self.online = [
            node["name"] for node in seen["nodes"] if node["online"] and not node["standby"] and not node["maintenance"]
        ]

    def runs(self) -> bool:
        """Says whether it runs, as far as Pacemaker knows."""
        return self.role == "Started" and bool(self.nodes) and not self.failed

    def stopped(self) -> bool:
        """Says whether it is stopped everywhere."""
        return self.role == "Stopped" and not self.nodes

    def state(self) -> str:
        """Returns its state in the words of ``hypervisor.guest``."""
        words = {"Started": "running", "Migrating": "running", "Stopped": "shut_off", "Stopping": "shutting_down"}
        return words.get(self.role, "unknown")


def member(utils: Utils, name: str) -> bool:
    """Says whether a guest is one of the cluster's, as this host has it."""
    return bool(utils["cluster_guests.is_defined"](name))


def nodes(utils: Utils, declared: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of nodes by minion id; one that the pillar in a minion's memory does not have goes by its name.

    Args:
        utils: the siblings' functions.
        declared: names by minion id, as pillar has them.
    """
    known = utils["cluster_tools.listed"](utils["cluster_tools.monitor"]())
    return {**{name: name for name in sorted(known) if name not in declared.values()}, **declared}


def uuid(utils: Utils, name: str) -> str:
    """Returns the UUID that stands in a guest's definition on this host; empty where that cannot be read."""
    try:
        text = Path(utils["cluster_guests.definition"](name)).read_text(encoding="utf-8")
    except OSError:
        return ""
    found = _UUID.search(text)
    return found[1] if found else ""


def whereabouts(utils: Utils, name: str) -> str:
    """Returns where a guest of the cluster is that is not on this host, as a sentence."""
    try:
        found = Found(utils, name)
    except CommandExecutionError as error:
        return str(error)
    if found.nodes:
        return f"guest {name} is not on this host: the cluster runs it on {', '.join(found.nodes)}"
    role = found.role.lower() or "not yet"
    return f"guest {name} is on no host: the cluster has it {role}; hypervisor.start starts it"


def refuse(utils: Utils, name: str, verb: str) -> None:
    """Refuses what would work against the cluster, with what does it instead.

    Args:
        utils: the siblings' functions.
        name: of a guest.
        verb: delete, resize, cancel or create.

    Raises:
        CommandExecutionError: the guest is one of the cluster's.
    """
    if not member(utils, name):
        return
    where = f"libvirt:guests:{name}"
    instead = {
        "delete": f"declare {where}:ensure: absent and run the highstate on all nodes; its disks stay",
        "resize": f"change {where}:cpu or mem and run the highstate on all nodes; it has that from its next start",
        "cancel": "a migration that is called off has failed for the cluster, which would start the guest anew",
        "create": f"it is declared in {where}",
    }[verb]
    raise CommandExecutionError(f"{name} is a guest of the cluster, so nothing was done: {instead}")


def _target_role(utils: Utils, name: str, role: str) -> None:
    """Tells Pacemaker what a guest is to be; that outlives highstates, which leave it as it is."""
    words = ["--meta", "--set-parameter", "target-role", "--parameter-value", role]
    with utils["cluster_pace.turn"](utils["cluster_tools.monitor"]):
        utils["cluster_tools.run"](["crm_resource", "--resource", name, *words])


def _waited(utils: Utils, name: str, done: Callable[[Found], bool], seconds: float) -> Found:
    """Asks until something is so, or the time is over; returns what was found last."""
    begun = time.monotonic()
    while True:
        found = Found(utils, name)
        waited = time.monotonic() - begun
        # A move may take an hour, and to ask takes a processor's time from it.
        pause = max(_PAUSE, min(_PAUSE_MOST, waited / 20))
        if done(found) or waited + pause > seconds:
            return found
        time.sleep(pause)


def act(utils: Utils, name: str, verb: str, timeout: float, here: str) -> dict[str, Any] | None:
    """Does what Pacemaker has to do: start, shutdown and power_off.

    Args:
        utils: the siblings' functions.
        name: of the guest.
        verb: as of ``hypervisor_actions.act``.
        timeout: seconds to wait for the end of a shutdown.
        here: this node's name.

    Returns:
        As ``hypervisor_actions.act``, and ``node``, the node that runs it or None. None for a verb that libvirt does
        without harm, on a guest that runs here.

    Raises:
        CommandExecutionError: it runs on another node where that matters, Pacemaker does not answer, or it does not
            do what it was told; the message says what it said.
    """
    found = Found(utils, name)
    if not found.role:
        raise CommandExecutionError(
            f"{name} is to be a guest of the cluster, and Pacemaker does not have it yet: run the highstate of "
            "cluster:bootstrap_node"
        )
    before = found.state()
    if verb == "start":
        now = _started(utils, found)
    elif verb == "shutdown":
        now = _stopped(utils, found, timeout)
    else:
        if found.nodes and here not in found.nodes:
            raise CommandExecutionError(f"{whereabouts(utils, name)}; ask that host for a {verb}")
        if verb != "power_off":
            return None
        now = _cut(utils, found)
    node = now.nodes[0] if now.nodes else None
    result = {"name": name, "uuid": uuid(utils, name), "state_before": before, "state": now.state(), "node": node}
    return result | {"changed": before != now.state()}


def _started(utils: Utils, found: Found) -> Found:
    """Has the cluster start a guest, on the node that it chooses."""
    if found.runs():
        return found
    _target_role(utils, found.name, "Started")
    now = _waited(utils, found.name, lambda one: one.runs(), _BEGINS)
    if now.runs():
        return now
    reasons = [f"{one['operation']} on {one['node']}: {one['reason']}; {one['remedy']}" for one in now.failures]
    told = "; ".join(reasons or now.problems) or "Pacemaker gives no reason; see: crm_mon -1 --inactive"
    raise CommandExecutionError(f"the cluster has not started {found.name} within {_BEGINS:.0f} s: {told}")


def _stopped(utils: Utils, found: Found, timeout: float) -> Found:
    """Has the cluster stop a guest, and keep it stopped."""
    _target_role(utils, found.name, "Stopped")
    return found if found.stopped() else _waited(utils, found.name, lambda one: one.stopped(), timeout)


def _cut(utils: Utils, found: Found) -> Found:
    """Cuts a guest's power here, once the cluster knows that it is to be stopped."""
    _target_role(utils, found.name, "Stopped")
    if found.stopped():
        return found
    with utils["hypervisor_virsh.session"]() as virsh:
        virsh.attempt("destroy", found.name)
    return _waited(utils, found.name, lambda one: one.stopped(), _GOES)


# ---- moves ----


def against(utils: Utils, name: str, node: str, nodes: Mapping[str, str]) -> list[Reason]:
    """Returns what the cluster has against a move.

    Args:
        utils: the siblings' functions.
        name: of the guest.
        node: minion id of the target.
        nodes: names of the cluster's nodes by minion id.
    """
    reason = utils["hypervisor_obstacles.reason"]
    try:
        found = Found(utils, name)
    except CommandExecutionError as error:
        return [reason("cluster", str(error))]
    if node not in nodes:
        return [reason("cluster", f"{node} is no node of the guest's cluster: {', '.join(nodes)}")]
    rows = []
    if nodes[node] not in found.online:
        rows.append(reason("cluster", f"{node} is offline in the cluster, in standby or in maintenance"))
    if not found.managed:
        rows.append(reason("cluster", "the guest is not managed: Pacemaker leaves it alone"))
    if not utils["cluster_tools.quorum"]().quorate:
        rows.append(reason("cluster", "the cluster has no quorum here"))
    if not found.runs():
        rows.append(reason("cluster", f"the cluster has it {found.role.lower() or 'not yet'}, so it does not move"))
    return rows


def move(utils: Utils, name: str, node: str, timeout: float) -> None:
    """Has the cluster move a guest live, and takes back the constraint that told it to once the move is over.

    Args:
        utils: the siblings' functions.
        name: of the guest.
        node: name of the target node.
        timeout: seconds for its turn, and again after which nobody waits any more; a move that has begun goes on.

    Raises:
        CommandExecutionError: it is not there in the end; the message says where it is and what failed.
    """
    run = utils["cluster_tools.run"]
    before = Found(utils, name)
    known = {(one["operation"], one["node"], one["at"]) for one in before.failures}

    def over(now: Found) -> bool:
        fresh = [one for one in now.failures if (one["operation"], one["node"], one["at"]) not in known]
        return (now.runs() and now.nodes == [node]) or bool(fresh)

    # If nobody is there any more to take it back, it ends by itself, and not before the move.
    lifetime = f"PT{int(timeout) + int(utils['cluster_derived.move_seconds']()) + int(_BEGINS)}S"
    told = False
    try:
        with utils["cluster_pace.turn"](utils["cluster_tools.monitor"], timeout):
            deadline = time.monotonic() + timeout
            run(["crm_resource", "--move", "--resource", name, "--node", node, "--lifetime", lifetime])
            told = True
            # The next change has to wait until its volumes are there; not for what Pacemaker ends before.
            most = min(_left(deadline), _BEGINS)
            now = _waited(utils, name, lambda one: one.role in _ON_ITS_WAY or over(one), most)
        now = _waited(utils, name, over, _left(deadline))
    finally:
        taken = told and _taken_back(utils, name, node)
    if now.runs() and now.nodes == [node] and not [one for one in now.failures if _moves(one, known)]:
        return
    now = _waited(utils, name, lambda one: one.runs() or one.stopped(), _BEGINS)
    taken = taken or _taken_back(utils, name, node)
    where = f"it is {now.state()} on {', '.join(now.nodes)}" if now.nodes else f"it is {now.state()}"
    fresh = [one for one in now.failures if _moves(one, known)]
    why = "; ".join(f"{one['operation']} on {one['node']}: {one['reason']}; {one['remedy']}" for one in fresh)
    after = f"the cluster starts it anew after that ({why})" if fresh else f"it had not ended after {timeout:.0f} s"
    if not taken:
        after += ", and goes on: salt-run fleet.cluster says how it ends"
    raise CommandExecutionError(f"{name} did not move to {node}: {where}; {after}")


def _taken_back(utils: Utils, name: str, node: str) -> bool:
    """Takes back the constraint that moves a guest, unless the guest is on its way; says whether it is gone.

    A guest that is on two nodes stays on neither by itself: without the constraint Pacemaker could choose the one that
    it leaves, and would then stop it on both.
    """
    try:
        # Others have theirs for as long as a move takes to begin.
        with utils["cluster_pace.turn"](utils["cluster_tools.monitor"], 3 * _BEGINS):
            if Found(utils, name).role in _ON_ITS_WAY:
                return False
            # Without the node an operator's bans of other nodes would go too.
            utils["cluster_tools.run"](["crm_resource", "--clear", "--resource", name, "--node", node], ok=range(256))
    except CommandExecutionError:
        # Nobody knows whether it moves.
        return False
    return True


def _left(deadline: float) -> float:
    """Returns the seconds until a deadline, or none."""
    return max(0.0, deadline - time.monotonic())


def _moves(failure: Mapping[str, Any], known: set[tuple[str, str, str]]) -> bool:
    """Says whether a failure is a new one."""
    return (failure["operation"], failure["node"], failure["at"]) not in known

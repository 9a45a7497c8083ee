"""corosync.conf, and a running corosync that has what stands in it.

What is declared is compared with the file and, where corosync runs, with what that has in its map and says of votes.
The file is judged by corosync itself before it replaces the old one. What corosync takes up by a reload it is told;
what needs a restart is refused without consent, and then done by one node after the other; what all nodes must change
at once is refused.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 1.0
_TAKEN_UP = 15.0  # seconds that a reload may take
_STOP = 1900  # seconds; Pacemaker moves resources away when it stops, which its unit gives 30 minutes
_START = 4000  # seconds; corosync waits for sbd, which waits for cluster:sbd:start_delay. systemd ends it before this
# A node says by this attribute, which goes when its Pacemaker stops, with which configuration its corosync was started.
_ATTRIBUTE = "hypervisor-corosync"


def configured(
    name: str,
    cluster: dict[str, Any],
    nodes: dict[str, Any],
    leaving: dict[str, Any] | None = None,
    allow_restart: bool = False,
    wait_seconds: int = 120,
) -> dict[str, Any]:
    """Make sure that corosync.conf is as declared, and that a running corosync has taken it up.

    Args:
        name: Path of the file.
        cluster: ``name``, ``links``, ``crypto``, ``token`` and ``quorum`` of the pillar ``cluster``.
        nodes: The nodes by minion id.
        leaving: Nodes that are to be out of the cluster; each is waited for until it has stopped.
        allow_restart: Whether this node's corosync may be restarted, when its turn comes.
        wait_seconds: How long to wait for other nodes.

    Returns a state result with the differences of the file and of the running corosync.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    tree = __utils__["corosync_conf.tree"](cluster, nodes)
    wanted, text = __utils__["corosync_conf.flat"](tree), __utils__["corosync_conf.emit"](tree)
    try:
        plan = _planned(wanted) if __utils__["cluster_tools.active"]("corosync.service") else None
        refusal = _refusal(plan, allow_restart) if plan else ""
        if refusal:
            return ret | {"result": False, "comment": refusal}
        changes = _changes(name, text, plan)
        if __opts__["test"]:
            why = _unfenced(leaving) if plan and leaving else ""
            if why:
                return ret | {"result": False, "comment": f"corosync: {why}."}
            comment = f"corosync {'would change' if changes else 'is as it should be'}."
            return ret | {"result": None if changes else True, "changes": changes, "comment": comment}
        if plan and leaving:
            _wait_gone(leaving, wait_seconds)
        if plan and changes:
            _note(wanted)
        if "file" in changes:
            _replace(name, text)
        # What has failed before has changed nothing.
        ret["changes"] = changes
        if plan:
            _take_up(plan, wanted, nodes, wait_seconds)
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"corosync: {error}."}
    return ret | {"comment": f"corosync is as it should be{' now' if ret['changes'] else ''}."}


def _changes(name: str, text: str, plan: Any) -> dict[str, Any]:
    """Return what differs in the file and in the running corosync."""
    old = (__utils__["own_files.read"](name) or b"").decode("utf-8", "replace")
    file = _difference(old, text) or __utils__["own_files.access"](name, 0o644)
    running = {**plan.reload, **plan.restart} if plan else {}
    return {key: value for key, value in (("file", file), ("running", running)) if value}


def _take_up(plan: Any, wanted: Mapping[str, str], nodes: Mapping[str, Any], wait_seconds: int) -> None:
    """Bring a running corosync to what its file says."""
    if plan.reload:
        _reload(wanted)
    if plan.restart:
        _restart(wanted, nodes, wait_seconds)
    _announce(wanted)


def _planned(wanted: Mapping[str, str]) -> Any:
    """Return corosync_conf's Plan from what the running corosync has."""
    votes = __utils__["cluster_tools.quorum"]()
    # Where it does not answer, options are not off, but unknown.
    return __utils__["corosync_conf.plan"](wanted, _running(), votes.flags if votes.needed else None)


def _running() -> Any:
    """Return what the running corosync has in its map."""
    return __utils__["corosync_conf.parse"](__utils__["cluster_tools.cmap"]())


def _note(wanted: Mapping[str, str]) -> None:
    """Note with which votes corosync has started: once the file is new, any node's reload replaces them in its map."""
    argv = __utils__["corosync_conf.note"](wanted, _running())
    if argv:
        __utils__["cluster_tools.run"](argv)


def _refusal(plan: Any, allow_restart: bool) -> str:
    """Return why a running cluster is left as it is; empty if it can be changed."""
    if plan.stop:
        why = (
            "Nothing has changed: a node with this and one without do not hear each other. Stop the cluster on all "
            "nodes (systemctl stop pacemaker corosync), then run the highstate on all:"
        )
        return "\n".join([why, *_lines(plan.stop)])
    if plan.restart and not allow_restart:
        why = (
            "Nothing has changed: corosync takes this up when it starts only. With cluster:allow_restart: true the "
            "nodes restart it one after the other:"
        )
        return "\n".join([why, *_lines(plan.restart)])
    return ""


def _lines(differences: Mapping[str, Any]) -> Iterable[str]:
    """Yield a line for each difference."""
    for key, change in differences.items():
        yield f"{key}: {change['old']} -> {change['new']}"


def _difference(old: str, new: str) -> dict[str, list[str]]:
    """Return which lines of the file go and which come; there is no secret in it."""
    before, after = old.splitlines(), new.splitlines()
    found = {
        "removed": [line for line in before if line not in after],
        "added": [line for line in after if line not in before],
    }
    return {verb: lines for verb, lines in found.items() if lines} or ({"order": [""]} if old != new else {})


def _replace(name: str, text: str) -> None:
    """Let corosync judge a new file beside the old one, and replace that only then."""
    target = Path(name)
    staged = target.with_name(f".{target.name}.judged")
    __utils__["own_files.write"](staged, text.encode("utf-8"), 0o644)
    try:
        __utils__["cluster_tools.run"](["corosync", "-t", "-c", str(staged)])
    finally:
        staged.unlink(missing_ok=True)
    __utils__["own_files.write"](target, text.encode("utf-8"), 0o644)


def _wait_gone(leaving: Mapping[str, Any], wait_seconds: int) -> None:
    """Wait until nodes that leave are out: one that runs on without the others would think that it is the cluster.

    One that is lost is waited for until it is fenced: once Pacemaker has forgotten it, nobody would do that.
    """
    deadline = time.monotonic() + wait_seconds
    ids = {spec["id"] for spec in leaving.values()}
    while True:
        there = __utils__["cluster_tools.names"](
            ids & __utils__["cluster_tools.joined"](__utils__["cluster_tools.cmap"]()), leaving
        )
        unfenced = "" if there else _unfenced(leaving)
        if not there and not unfenced:
            return
        if time.monotonic() + _PAUSE > deadline:
            raise CommandExecutionError(
                unfenced
                or f"nothing has changed, since these nodes are declared with ensure: absent and have not left within "
                f"{wait_seconds} s: {', '.join(there)}. Run their highstate, or stop pacemaker and corosync there"
            )
        time.sleep(_PAUSE)


def _unfenced(leaving: Mapping[str, Any]) -> str:
    """Return which nodes that leave are lost and not fenced; empty if none, or if Pacemaker does not run here."""
    if not __utils__["cluster_tools.active"]("pacemaker.service"):
        return ""
    names = [spec.get("name", minion) for minion, spec in leaving.items()]
    return str(__utils__["cluster_tools.unfenced"](__utils__["cluster_tools.monitor"](), names))


def _reload(wanted: Mapping[str, str]) -> None:
    """Tell corosync to read its file, and look whether it has taken it up. It reports success when it has not."""
    __utils__["cluster_tools.run"](["corosync-cfgtool", "-R"])
    deadline = time.monotonic() + _TAKEN_UP
    while True:
        left = _planned(wanted)
        if not left.reload:
            return
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"the file is written, but corosync has not taken up {'; '.join(_lines(left.reload))}; "
                "see: journalctl -u corosync"
            )
        time.sleep(_PAUSE)


# ---- node by node ----


def _stamp(wanted: Mapping[str, str]) -> str:
    """Return what stands for everything that a restart brings in."""
    keys = __utils__["corosync_conf.restart_keys"]()
    return hashlib.sha256(json.dumps([wanted.get(key) for key in keys]).encode()).hexdigest()[:16]


def _announced() -> dict[str, str]:
    """Return by node's name with what its corosync was started, as far as nodes have said so."""
    text = __utils__["cluster_tools.run"](["attrd_updater", "-n", _ATTRIBUTE, "-Q", "-A"], ok=range(256))
    return dict(__utils__["cluster_tools.attributes"](text))


def _announce(wanted: Mapping[str, str]) -> None:
    """Say that this node's corosync was started with what is declared, where that is so and was not said."""
    if not __utils__["cluster_tools.active"]("pacemaker.service") or _planned(wanted).restart:
        return
    own = wanted[f"nodelist.node.{_place(wanted)}.name"]
    if _announced().get(own) != _stamp(wanted):
        __utils__["cluster_tools.run"](["attrd_updater", "-n", _ATTRIBUTE, "-U", _stamp(wanted)])


def _place(wanted: Mapping[str, str]) -> str:
    """Return this node's place in the list of nodes."""
    for line in __utils__["cluster_tools.cmap"]().splitlines():
        if line.startswith("nodelist.local_node_pos "):
            return str(line.rsplit(" ", 1)[-1])
    raise CommandExecutionError(f"it does not say which of the {len(wanted)} declared keys are this node's")


def _restart(wanted: Mapping[str, str], nodes: Mapping[str, Any], wait_seconds: int) -> None:
    """Restart this node's corosync when its turn comes, and wait until it is back."""
    _await_turn(wanted, nodes, wait_seconds)
    run = __utils__["cluster_tools.run"]
    run(["systemctl", "stop", "pacemaker.service"], timeout=_STOP)
    run(["systemctl", "restart", "corosync.service"], timeout=_START)
    run(["systemctl", "start", "pacemaker.service"], timeout=_START)
    deadline = time.monotonic() + wait_seconds
    while True:
        missing = _missing(nodes)
        if not missing:
            return
        if time.monotonic() + _PAUSE > deadline:
            raise CommandExecutionError(
                f"it was restarted, but within {wait_seconds} s it has not found again: {', '.join(missing)}; "
                "the other nodes wait for that"
            )
        time.sleep(_PAUSE)


def _await_turn(wanted: Mapping[str, str], nodes: Mapping[str, Any], wait_seconds: int) -> None:
    """Wait until all nodes are there, and those with lower ids have been restarted; raise with who is not."""
    own = nodes[__opts__["id"]]["id"]
    before = {minion: spec for minion, spec in nodes.items() if spec["id"] < own}
    deadline = time.monotonic() + wait_seconds
    while True:
        missing = _missing(nodes)
        said = _announced()
        behind = [minion for minion, spec in before.items() if said.get(spec.get("name", minion)) != _stamp(wanted)]
        if not missing and not behind:
            return
        if time.monotonic() + _PAUSE > deadline:
            why = f"these nodes are not there: {', '.join(missing)}" if missing else (
                f"these nodes come before this one and have not been restarted: {', '.join(behind)}"
            )  # fmt: skip
            raise CommandExecutionError(f"it was not restarted within {wait_seconds} s, since {why}")
        time.sleep(_PAUSE)


def _missing(nodes: Mapping[str, Any]) -> list[str]:
    """Return nodes that are not in the cluster with corosync and Pacemaker; all if there is no quorum."""
    if not __utils__["cluster_tools.quorum"]().quorate:
        return list(nodes)
    there = __utils__["cluster_tools.online"](__utils__["cluster_tools.monitor"]())
    return [minion for minion, spec in nodes.items() if spec.get("name", minion) not in there]

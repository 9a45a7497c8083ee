"""What a person needs to know of a cluster, as one of its nodes sees it: nodes, quorum, fencing, resources, failures.

Everything is read. Where something waits or has failed, what a person can do about it stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Element = ElementTree.Element
_GUEST = "ocf:heartbeat:VirtualDomain"
CONF = "etc/corosync/corosync.conf"


def facts(utils: Mapping[str, Any], root: Path = Path("/")) -> dict[str, Any] | None:
    """Returns what this node says of its cluster; None for a host that is in none.

    Args:
        utils: the siblings' functions.
        root: below which the configuration is.

    Returns:
        ``name``, ``running``, ``quorate``, ``votes``, ``votes_needed``, ``nodes``, ``fencing``, ``resources``,
        ``guests`` (``name``, ``role``, ``node``), ``failures`` and ``problems``, a list of texts.
    """
    conf = root / CONF
    if not conf.exists():
        return None
    found: dict[str, Any] = {"name": name_of(conf.read_text(encoding="utf-8")), "running": False, "quorate": False}
    found |= {"votes": 0, "votes_needed": 0, "nodes": [], "fencing": {"enabled": None, "devices": []}}
    found |= {"resources": [], "guests": [], "failures": [], "problems": []}
    if not utils["cluster_tools.active"]("corosync.service"):
        return found | {"problems": ["corosync does not run; see: systemctl status corosync"]}
    votes = utils["cluster_tools.quorum"]()
    found |= {"running": True, "quorate": votes.quorate, "votes": votes.total, "votes_needed": votes.needed}
    if not votes.quorate:
        found["problems"].append(
            f"no quorum: {votes.total} votes are here and {votes.needed} are needed; bring the missing nodes back"
        )
    if not utils["cluster_tools.active"]("pacemaker.service"):
        return found | {"problems": [*found["problems"], "Pacemaker does not run; see: systemctl status pacemaker"]}
    text = utils["cluster_tools.monitor"]()
    seen = read(text)
    if seen.get("resources") and not seen["fencing"]["devices"]:
        seen = read(text, watchdog=utils["cluster_tools.watchdog"]())
    return found | seen | {"problems": [*found["problems"], *seen["problems"]]}


def name_of(text: str) -> str:
    """Returns the cluster's name from the text of corosync.conf."""
    for line in text.splitlines():
        key, mark, value = line.partition(":")
        if mark and key.strip() == "cluster_name":
            return value.strip()
    return ""


def read(text: str, *, watchdog: bool = False) -> dict[str, Any]:
    """Returns ``nodes``, ``fencing``, ``resources``, ``failures`` and ``problems`` from crm_mon's XML.

    Args:
        text: the XML.
        watchdog: whether a watchdog of each node takes the place of a fence device.
    """
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - from Pacemaker on this host
    except ElementTree.ParseError:
        return {"problems": ["Pacemaker does not answer; see: journalctl -u pacemaker"]}
    nodes = [_node(one) for one in root.findall("nodes/node")]
    everything = [_resource(one) for one in root.iter("resource")]
    options = root.find("summary/cluster_options")
    enabled = options is not None and options.get("stonith-enabled") == "true"
    devices = [row for row in everything if row["agent"].startswith("stonith:")]
    resources = [row for row in everything if not row["agent"].startswith("stonith:")]
    failures = [_failure(one) for one in root.findall("failures/failure")]
    problems = [*_of_nodes(nodes), *_of_fencing(enabled, devices, resources, watchdog), *_of_events(root)]
    problems += [f"{row['name']} is not managed: Pacemaker leaves it alone" for row in resources if not row["managed"]]
    problems += [
        f"{row['name']} is blocked on {', '.join(row['nodes']) or 'no node'}: its failure needs a person; "
        f"repair it, then: crm_resource --cleanup --resource {row['name']}"
        for row in everything
        if row["blocked"]
    ]
    fencing = {"enabled": enabled, "devices": devices}
    guests = [
        {"name": row["name"], "role": row["role"], "node": next(iter(row["nodes"]), None)}
        for row in resources
        if row["agent"] == _GUEST
    ]
    found = {"nodes": nodes, "fencing": fencing, "resources": resources, "guests": guests, "failures": failures}
    return found | {"problems": problems}


def _is(element: Element, key: str) -> bool:
    """Says whether an attribute is true."""
    return element.get(key) == "true"


def _node(element: Element) -> dict[str, Any]:
    """Returns one node."""
    flags = {key: _is(element, key) for key in ("online", "standby", "maintenance", "unclean")}
    return {"name": element.get("name", ""), **flags, "dc": _is(element, "is_dc")}


def _resource(element: Element) -> dict[str, Any]:
    """Returns one resource, or one instance of a clone."""
    return {
        "name": element.get("id", ""),
        "agent": element.get("resource_agent", "").replace("::", ":"),
        "role": element.get("role", ""),
        "nodes": [one.get("name", "") for one in element.findall("node")],
        "managed": _is(element, "managed"),
        "failed": _is(element, "failed"),
        "blocked": _is(element, "blocked"),
    }


def _failure(element: Element) -> dict[str, Any]:
    """Returns one failed action, with what a person can do."""
    # Such as web_migrate_to_0: both names may have underscores.
    resource = element.get("op_key", "").rpartition(f"_{element.get('task', '')}_")[0]
    node = element.get("node", "")
    reason = element.get("exitreason") or element.get("exitstatus", "")
    return {
        "resource": resource,
        "operation": element.get("task", ""),
        "node": node,
        "reason": reason,
        "at": element.get("last-rc-change", ""),
        "remedy": f"repair the cause on {node}, then: crm_resource --cleanup --resource {resource} --node {node}",
    }


def _of_nodes(nodes: list[dict[str, Any]]) -> list[str]:
    """Returns what is to be said of nodes."""
    found = []
    for node in nodes:
        name = node["name"]
        if node["unclean"]:
            found.append(
                f"{name} is lost and not fenced yet, so nothing of it is recovered; if fencing fails and {name} is "
                f"certainly off: stonith_admin --confirm {name}"
            )
        elif not node["online"]:
            found.append(f"{name} is offline; start it, or run its highstate")
        found += [f"{name} is in {one}" for one in ("standby", "maintenance") if node[one]]
    return found


def _of_fencing(
    enabled: bool, devices: list[dict[str, Any]], resources: list[dict[str, Any]], watchdog: bool
) -> list[str]:
    """Returns what is wrong with fencing."""
    if not enabled:
        return ["fencing is off (stonith-enabled): a lost node's resources may run twice"]
    if not devices and resources and not watchdog:
        return ["there is no fence device, so resources that need one do not start; declare one below cluster:stonith"]
    return [f"the fence device {row['name']} is {row['role'].lower()}" for row in devices if row["role"] != "Started"]


def _of_events(root: Element) -> list[str]:
    """Returns what the history of fencing says of failures, one of each target, unless a later one has succeeded."""
    latest: dict[str, Element] = {}
    for event in root.findall("fence_history/fence_event"):
        target = event.get("target", "")
        if target not in latest or event.get("completed", "") > latest[target].get("completed", ""):
            latest[target] = event
    return [
        f"fencing of {target} has failed ({event.get('exit-reason') or event.get('status')}); repair the device, "
        f"then: stonith_admin --reboot {target}"
        for target, event in sorted(latest.items())
        if event.get("status") == "failed"
    ]

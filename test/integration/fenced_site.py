"""Two nodes that a device of the lab fences, and a resource that shows by a file of its own where it runs."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from cluster_site import Site, soon
from fence_lab import AGENT, Device

NODES = ("hv1", "hv2")
PROBE = {
    "agent": "ocf:pacemaker:Dummy",
    "parameters": {"fake": "declared"},
    "operations": [{"name": "monitor", "interval": "5s", "timeout": "20s"}],
}
_FILE = "/run/Dummy-probe.state"


def with_agent(site: Site, device: Device) -> Device:
    """Bring the agent that asks a device to both nodes; return the device."""
    for node in NODES:
        site.run(node, "sh", "-c", "cat > /usr/sbin/fence_lab && chmod 755 /usr/sbin/fence_lab", stdin=AGENT)
    return device


def fence(device: Device) -> dict[str, Any]:
    """Return what pillar says of a device."""
    return {
        "agent": "fence_lab",
        "targets": list(NODES),
        "parameters": {"ip": device.address, "ipport": device.port},
        "secrets": {"passwd": device.password},
        "operations": [{"name": "monitor", "interval": "30s"}],
    }


def declare(site: Site, device: Device, **more: Any) -> None:
    """Let the pillar name both nodes, the device and the resource."""
    site.declare(
        *NODES, name=site.cluster["name"], stonith={"fence": fence(device)}, resources={"probe": PROBE},
        properties={"stonith-timeout": "40s"}, resource_defaults={"resource-stickiness": 100}, **more,
    )  # fmt: skip


def resource(site: Site, node: str, name: str = "probe") -> str:
    """Return where a resource runs, as one node sees it; empty when nowhere."""
    found = site.monitor(node).find(f".//resource[@id='{name}']")
    if found is None or found.get("role") != "Started" or found.get("blocked") == "true":
        return ""
    place = found.find("node")
    assert isinstance(place, ElementTree.Element), f"{name} is started nowhere"
    return str(place.get("name"))


def processes(site: Site) -> list[str]:
    """Return on which nodes the resource's own state file is, whatever Pacemaker says."""
    return [
        node for node in NODES if site.lab.run(node, ["test", "-e", _FILE], check=False, timeout=20).returncode == 0
    ]


def processes_on(site: Site, node: str) -> list[str]:
    """Return the state files of the resource on one node."""
    return str(site.run(node, "find", "/run", "-maxdepth", "1", "-path", _FILE)).split()


def move(site: Site, node: str) -> None:
    """Have the resource run on one node, without leaving a constraint behind."""
    if resource(site, "hv1") != node:
        site.run("hv1", "crm_resource", "--resource", "probe", "--move", "--node", node)
    soon(lambda: resource(site, "hv1") == node, what=f"the resource is on {node}")
    site.run("hv1", "crm_resource", "--resource", "probe", "--clear")

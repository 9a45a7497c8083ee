"""The lab's layer-2 network, in network namespaces of its own: no firewall rule or setting of the machine is touched.

A namespace ``lab-<name>`` holds the bridge ``br0``. Container hosts hang on it by a veth pair into a namespace each,
virtual machines by a tap, and the machine itself by one veth with the first address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path
from typing import Any

from .proc import LabError, run

NETNS = Path("/run/netns")
BRIDGE = "br0"
# The machine's own ports into labs are this and the lab's index.
PORT = "hvlab"
MTU = 1500


def switch(lab: str) -> str:
    """Return the name of the namespace that holds the lab's bridge."""
    return f"lab-{lab}"


def host_namespace(lab: str, host: str) -> str:
    """Return the name of a container host's own namespace."""
    # A lab's name has no dot, so no lab's names begin like another's.
    return f"lab-{lab}.{host}"


def subnet(index: int) -> ipaddress.IPv4Network:
    """Return the network of the lab with this index (1 to 249)."""
    return ipaddress.IPv4Network(f"10.213.{index}.0/24")


def address(index: int, host_number: int) -> str:
    """Return an address in the lab's network; the machine is number 1, the first host number 10."""
    return str(subnet(index).network_address + host_number)


def mac(index: int, host_number: int) -> str:
    """Return the hardware address of a host's first port, from QEMU's locally administered range."""
    return f"52:54:00:d5:{index:02x}:{host_number:02x}"


def uplink(index: int) -> str:
    """Return the name of the machine's own port into the lab."""
    return f"{PORT}{index}"


def ip(*words: str, namespace: str | None = None, check: bool = True) -> str:
    """Run ``ip`` and return what it prints, in a namespace when one is named."""
    inside = ["-n", namespace] if namespace else []
    return run(["ip", *inside, *words], timeout=20, check=check).stdout


def ip_json(*words: str, namespace: str | None = None) -> list[dict[str, Any]]:
    """Run ``ip -j`` and return the parsed list."""
    return list(json.loads(ip("-j", *words, namespace=namespace) or "[]"))


def namespaces() -> set[str]:
    """Return the names of all network namespaces."""
    return {path.name for path in NETNS.iterdir()} if NETNS.is_dir() else set()


def free_index(taken: set[int]) -> int:
    """Return the first index whose network neither a lab nor a route of the machine uses.

    Args:
        taken: the indexes of the labs that exist.

    Raises:
        LabError: none is free.
    """
    routed = []
    for route in ip_json("-4", "route", "show", "table", "all"):
        with contextlib.suppress(ValueError):
            network = ipaddress.IPv4Network(route["dst"], strict=False)
            if network.prefixlen:
                routed.append(network)
    for index in range(1, 250):
        if index not in taken and not any(subnet(index).overlaps(network) for network in routed):
            return index
    raise LabError("no network 10.213.1.0/24 to 10.213.249.0/24 is free of routes of this machine")


def create(lab: str, index: int) -> None:
    """Make the lab's bridge and the machine's port on it; what is there already stays."""
    name, port = switch(lab), uplink(index)
    if name not in namespaces():
        ip("netns", "add", name)
    inside = {link["ifname"] for link in ip_json("link", "show", namespace=name)}
    if BRIDGE not in inside:
        # No spanning tree and no forward delay: a host's port must carry frames at once.
        ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0", namespace=name)
    ip("link", "set", "lo", "up", namespace=name)
    ip("link", "set", BRIDGE, "up", namespace=name)
    if port not in {link["ifname"] for link in ip_json("link", "show")}:
        ip("link", "add", port, "type", "veth", "peer", "name", "machine", "netns", name)
    ip("link", "set", "machine", "master", BRIDGE, "up", namespace=name)
    here = [item.get("local") for link in ip_json("addr", "show", port) for item in link["addr_info"]]
    if address(index, 1) not in here:
        ip("addr", "add", f"{address(index, 1)}/24", "dev", port)
    ip("link", "set", port, "up")


def attach_container(lab: str, host: str, index: int, host_number: int) -> Path:
    """Make a container host's namespace with ``eth0`` on the bridge.

    Returns:
        The namespace's file, for ``podman create --network ns:…``.
    """
    name, port = host_namespace(lab, host), f"p-{host}"
    if name not in namespaces():
        ip("netns", "add", name)
    if "eth0" not in {link["ifname"] for link in ip_json("link", "show", namespace=name)}:
        ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name, namespace=switch(lab))
        ip("link", "set", "eth0", "address", mac(index, host_number), namespace=name)
    ip("link", "set", "lo", "up", namespace=name)
    ip("addr", "replace", f"{address(index, host_number)}/24", "dev", "eth0", namespace=name)
    ip("link", "set", "eth0", "up", namespace=name)
    ip("link", "set", port, "master", BRIDGE, "up", namespace=switch(lab))
    return NETNS / name


def set_link(lab: str, host: str, *, up: bool) -> None:
    """Cut or restore a container host's link at the bridge."""
    ip("link", "set", f"p-{host}", "up" if up else "down", namespace=switch(lab))


def destroy(lab: str, index: int | None) -> None:
    """Remove the lab's namespaces and the machine's port; fine when there are none."""
    if index is not None:
        ip("link", "delete", uplink(index), check=False)
    for name in sorted(namespaces(), reverse=True):
        if name == switch(lab) or name.startswith(f"{switch(lab)}."):
            ip("netns", "delete", name)

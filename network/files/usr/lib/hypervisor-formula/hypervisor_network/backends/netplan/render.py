"""netplan's YAML for the interfaces of a profile. Pure.

Netplan merges all of its files, the later over the earlier, and appends lists to lists. So each interface is in one
file only, and nobody else's file may speak of it. A file may only name interfaces of files that sort before it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from hypervisor_network.backends.common import HEADER, depth, ini, ours
from hypervisor_network.backends.contract import Owned
from hypervisor_network.model import OPENVSWITCH, Interface, Profile

FOLDER = "/etc/netplan"
PREFIX = "90-hypervisor"
# Netplan has no words for as whom an interface speaks to a DHCP server; what it makes for networkd has.
UNITS = "/etc/systemd/network"
_SECTION = {
    "ethernet": "ethernets", "bridge": "bridges", "bond": "bonds", "vlan": "vlans",
    # Netplan's own words for Open vSwitch would have it make the bridge; this is merely a link that somebody has made.
    OPENVSWITCH: "ethernets",
}  # fmt: skip
# Words that YAML takes for texts without quotes, and those among them that it does not.
_PLAIN = re.compile(r"[a-z][a-z0-9-]*")
_NOT_PLAIN = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})
# They may hold passwords of wireless networks, and netplan complains of any other mode.
_MODE = 0o600


def path(profile: Profile, one: Interface) -> str:
    """Returns the file of an interface."""
    return f"{FOLDER}/{PREFIX}-{depth(profile, one.name)}-{one.name}.yaml"


def identity_path(name: str) -> str:
    """Returns the file that says as whom an interface speaks to a DHCP server."""
    return f"{UNITS}/10-netplan-{name}.network.d/50-hypervisor.conf"


def render(profile: Profile) -> dict[str, Owned]:
    """Returns the files of all interfaces that shall be there."""
    found = {}
    for one in ours(profile):
        content = {"network": {"version": 2, _SECTION[one.kind]: {one.name: _definition(one)}}}
        found[path(profile, one)] = Owned(f"{HEADER}\n{yaml(content)}", _MODE)
        if one.client:
            pairs = [("ClientIdentifier", "mac")] if one.client == "mac" else [("IAID", one.client)]
            found[identity_path(one.name)] = Owned(ini([("DHCPv4", pairs if one.dhcp4 else [])]))
    return found


def _definition(one: Interface) -> dict[str, Any]:
    """Returns what stands below an interface's name."""
    made: dict[str, Any] = {"renderer": "networkd"}
    made |= _kind(one)
    made |= {"dhcp4": one.dhcp4, "dhcp6": one.dhcp6}
    if not one.configured:
        # A guest could otherwise give the host an address, by a router advertisement.
        made |= {"accept-ra": False, "link-local": [] if one.master else ["ipv6"]}
    if one.addresses:
        made["addresses"] = list(one.addresses)
    if routes := _routes(one):
        made["routes"] = routes
    servers = {"addresses": list(one.dns_servers), "search": list(one.dns_search)}
    if any(servers.values()):
        made["nameservers"] = {key: value for key, value in servers.items() if value}
    if one.mtu is not None:
        made["mtu"] = one.mtu
    if not one.configured or (one.kind in {"bridge", OPENVSWITCH} and not one.ports):
        # A boot must not wait for a bridge of guests alone, which has no carrier until the first of them starts.
        made["optional"] = True
    if one.kind == "bridge" and not one.ports and one.addresses:
        made["ignore-carrier"] = True
    return made


def _kind(one: Interface) -> dict[str, Any]:
    """Returns what only this kind of interface has."""
    if one.kind == "ethernet":
        return {"match": {"macaddress": one.match.mac}, "set-name": one.name} if one.match.mac else {}
    if one.kind == OPENVSWITCH:
        return {}
    made: dict[str, Any] = {"macaddress": one.mac} if one.mac else {}
    if one.kind == "vlan":
        return made | {"id": one.vlan_id, "link": one.link}
    return made | {"interfaces": list(one.ports), "parameters": _bridge(one) if one.kind == "bridge" else _bond(one)}


def _bridge(one: Interface) -> dict[str, Any]:
    """Returns the options of a bridge; netplan takes the delays as seconds."""
    bridge = one.bridge
    made: dict[str, Any] = {"stp": bridge.stp, "forward-delay": bridge.forward_delay}
    return made | ({"ageing-time": bridge.ageing} if bridge.ageing is not None else {})


def _bond(one: Interface) -> dict[str, Any]:
    """Returns the options of a bond."""
    bond = one.bond
    made: dict[str, Any] = {"mode": bond.mode, "mii-monitor-interval": bond.miimon}
    made |= {"lacp-rate": bond.lacp_rate} if bond.lacp_rate else {}
    made |= {"transmit-hash-policy": bond.hash_policy} if bond.hash_policy else {}
    return made | ({"primary": bond.primary} if bond.primary else {})


def _routes(one: Interface) -> list[dict[str, Any]]:
    """Returns the default routes and the further ones."""
    found: list[dict[str, Any]] = []
    if one.gateway4:
        found.append({"to": "0.0.0.0/0", "via": one.gateway4})
    if one.gateway6:
        found.append({"to": "::/0", "via": one.gateway6})
    for route in one.routes:
        made: dict[str, Any] = {"to": route.to, **({"via": route.via} if route.via else {"scope": "link"})}
        made |= {"metric": route.metric} if route.metric is not None else {}
        found.append(made | ({"table": route.table} if route.table is not None else {}))
    return found


def yaml(value: Any, indent: int = 0) -> str:
    """Writes mappings, lists and scalars as YAML in blocks; texts as JSON writes them, which YAML reads too."""
    space = "  " * indent
    if isinstance(value, dict):
        return "".join(f"{space}{_scalar(key)}:{_below(one, indent)}" for key, one in value.items())
    lines = []
    for one in value:
        if isinstance(one, dict):
            # The first key stands beside the dash.
            lines.append(f"{space}- {yaml(one, indent + 1).lstrip()}")
        else:
            lines.append(f"{space}- {_scalar(one)}\n")
    return "".join(lines)


def _below(value: Any, indent: int) -> str:
    """Returns what follows a key."""
    if isinstance(value, (dict, list)):
        return f"\n{yaml(value, indent + 1)}" if value else (" {}\n" if isinstance(value, dict) else " []\n")
    return f" {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    """Returns a scalar; keys and words that cannot be taken for anything else without quotes."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value not in _NOT_PLAIN else json.dumps(value)
    return json.dumps(value)

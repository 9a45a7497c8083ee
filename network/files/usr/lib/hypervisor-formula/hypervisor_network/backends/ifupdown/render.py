"""Stanzas of /etc/network/interfaces for the interfaces of a profile. Pure.

Each interface has a file of its own. Their names sort what others stand on first, since `ifup -a` takes stanzas as
they come; they have no full stop, since `source-directory` passes over files that do.

Interfaces are made by `ip` rather than by the options of bridge-utils, ifenslave and vlan: nothing has to be installed
before, and bridge-utils waits a second, in which the host is not reached, before it sets a bridge's MAC address.
"""

from __future__ import annotations

import ipaddress

from hypervisor_network.backends import common
from hypervisor_network.backends.common import HEADER, depth, family, of_family
from hypervisor_network.backends.contract import Owned
from hypervisor_network.model import OPENVSWITCH, Interface, Profile

FOLDER = "/etc/network/interfaces.d"
PREFIX = "50-hypervisor"
# The kernel takes the times of bridges in hundredths of a second.
_HZ = 100
# Tenths of a second for which a port of Open vSwitch is waited for, which the switch makes.
_TENTHS = 100


def path(profile: Profile, one: Interface) -> str:
    """Returns the file of an interface."""
    return f"{FOLDER}/{PREFIX}-{depth(profile, one.name)}-{one.name.replace('.', '__')}"


def render(profile: Profile) -> dict[str, Owned]:
    """Returns the files of all interfaces that shall be there."""
    return {path(profile, one): Owned(_text(profile, one)) for one in common.ours(profile)}


def _text(profile: Profile, one: Interface) -> str:
    """Returns one interface's file."""
    stanzas = _stanzas(one)
    # What makes the interface stands in its first stanza, what needs its addresses in its last.
    stanzas[0][1:1] = [*_made(one), *_port(profile, one)]
    stanzas[-1] += _routes(one)
    if not one.configured and not one.master:
        # A guest could otherwise give the host an address, by a router advertisement.
        # Where IPv6 is off, there is nothing to set.
        stanzas[-1].append(f"up sysctl -q -w net/ipv6/conf/{one.name}/accept_ra=0 || true")
    text = "\n\n".join("\n    ".join(lines) for lines in stanzas)
    return f"{HEADER}\nauto {one.name}\n{text}\n"


def _stanzas(one: Interface) -> list[list[str]]:
    """Returns the stanzas for addresses: one for each address, IPv4 first."""
    found = []
    if one.dhcp4:
        found.append([f"iface {one.name} inet dhcp"])
    for position, address in enumerate(of_family(one.addresses, 4)):
        gateway = [f"gateway {one.gateway4}"] if one.gateway4 and position == 0 else []
        found.append([f"iface {one.name} inet static", f"address {address}", *gateway])
    if not found:
        found.append([f"iface {one.name} inet manual"])
    if one.dhcp6:
        found.append([f"iface {one.name} inet6 dhcp", "accept_ra 1"])
    for position, address in enumerate(of_family(one.addresses, 6)):
        gateway = [f"gateway {one.gateway6}"] if one.gateway6 and position == 0 else []
        found.append([f"iface {one.name} inet6 static", f"address {address}", *gateway])
    return found


def _port(profile: Profile, one: Interface) -> list[str]:
    """Returns what keeps a port of a bridge from having an IPv6 address beside the bridge's."""
    master = profile.get(one.master) if one.master else None
    if master is None or master.kind not in {"bridge", OPENVSWITCH}:
        return []
    # Where IPv6 is off, there is nothing to set.
    set_mode = f"ip link set dev {one.name} addrgenmode"
    up = [f"up ip link set dev {one.name} up"] if master.kind == OPENVSWITCH else []
    return [f"pre-up {set_mode} none || true", *up, f"post-down {set_mode} eui64 || true"]


def _made(one: Interface) -> list[str]:
    """Returns what makes an interface, and what it is besides its addresses."""
    lines = []
    if one.kind == OPENVSWITCH:
        there = f"ip link show dev {one.name} >/dev/null 2>&1"
        lines += [f"pre-up n=0; until {there} || [ $n -ge {_TENTHS} ]; do n=$((n+1)); sleep 0.1; done; {there}"]
    elif one.kind != "ethernet":
        link = f" link {one.link}" if one.link else ""
        mac = f" address {one.mac}" if one.mac else ""
        made = f"ip link add{link} name {one.name}{mac} type {_type(one)}"
        # It may be there already, when an earlier attempt was interrupted.
        lines += [f"pre-up ip link show dev {one.name} >/dev/null 2>&1 || {made}"]
        # As with a card that has died, the others must do without a port that is missing at boot.
        for port in one.ports:
            down = f"ip link set dev {port} down; " if one.kind == "bond" else ""
            lines += [f"pre-up {down}ip link set dev {port} master {one.name} && ip link set dev {port} up || true"]
        if one.bond.primary:
            lines += [f"pre-up ip link set dev {one.name} type bond primary {one.bond.primary} || true"]
        lines += [f"post-down ip link delete dev {one.name} || true"]
    if one.mtu is not None:
        lines += [f"up ip link set dev {one.name} mtu {one.mtu}"]
    if one.dns_servers:
        lines += [f"dns-nameservers {' '.join(one.dns_servers)}"]
    if one.dns_search:
        lines += [f"dns-search {' '.join(one.dns_search)}"]
    return lines


def _type(one: Interface) -> str:
    """Returns the kind of an interface with its options, as `ip link add` takes them."""
    if one.kind == "vlan":
        return f"vlan id {one.vlan_id}"
    if one.kind == "bond":
        bond = one.bond
        words = f"bond mode {bond.mode} miimon {bond.miimon}"
        words += f" lacp_rate {bond.lacp_rate}" if bond.lacp_rate else ""
        return words + (f" xmit_hash_policy {bond.hash_policy}" if bond.hash_policy else "")
    bridge = one.bridge
    words = f"bridge stp_state {int(bridge.stp)} forward_delay {bridge.forward_delay * _HZ}"
    return words + (f" ageing_time {bridge.ageing * _HZ}" if bridge.ageing is not None else "")


def _routes(one: Interface) -> list[str]:
    """Returns commands for further routes; they go with their interface, so that nothing takes them away."""
    lines = []
    if one.gateway4 and not of_family(one.addresses, 4):
        lines.append(f"up ip -4 route replace default via {one.gateway4} dev {one.name} onlink")
    if one.gateway6 and not of_family(one.addresses, 6):
        lines.append(f"up ip -6 route replace default via {one.gateway6} dev {one.name} onlink")
    for route in one.routes:
        words = [f"up ip -{family(route.to)} route replace {ipaddress.ip_network(route.to)}"]
        words += [f"via {route.via}"] if route.via else []
        words += [f"dev {one.name}"]
        words += [f"metric {route.metric}"] if route.metric is not None else []
        words += [f"table {route.table}"] if route.table is not None else []
        lines.append(" ".join(words))
    return lines


"""Files of systemd-networkd for the interfaces of a profile. Pure.

The first file that matches an interface is taken, so these sort before those of installers (10 and above).
"""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor_network.backends.common import family, ini, ours
from hypervisor_network.backends.contract import Owned
from hypervisor_network.model import OPENVSWITCH, Interface, Profile

FOLDER = "/etc/systemd/network"
PREFIX = "05-hypervisor"
Section = tuple[str, list[tuple[str, object]]]
# Every key that is written here, in systemd 249 (Ubuntu 22.04) already; systemd ignores those that it does not know.
KNOWN = {
    "NetDev": {"Name", "Kind", "MACAddress"},
    "Bridge": {"STP", "ForwardDelaySec", "AgeingTimeSec"},
    "Bond": {"Mode", "MIIMonitorSec", "LACPTransmitRate", "TransmitHashPolicy"},
    "VLAN": {"Id"},
    "Match": {"Name"},
    "Link": {"MTUBytes", "RequiredForOnline"},
    "Network": {
        *("Bridge", "Bond", "VLAN", "PrimarySlave", "DHCP", "LinkLocalAddressing", "IPv6AcceptRA", "Address"),
        *("Gateway", "DNS", "Domains", "ConfigureWithoutCarrier"),
    },
    "DHCPv4": {"IAID", "ClientIdentifier"},
    "DHCPv6": {"WithoutRA", "IAID"},
    "Route": {"Destination", "Gateway", "Metric", "Table"},
}


def path(name: str, kind: str) -> str:
    """Returns the file of an interface; kind is network or netdev."""
    return f"{FOLDER}/{PREFIX}-{name}.{kind}"


def render(profile: Profile) -> dict[str, Owned]:
    """Returns the files of all interfaces that shall be there."""
    found = {}
    for one in ours(profile):
        if one.kind not in {"ethernet", OPENVSWITCH}:
            found[path(one.name, "netdev")] = Owned(ini(_netdev(one)))
        found[path(one.name, "network")] = Owned(ini(_network(profile, one)))
    return found


def _netdev(one: Interface) -> Iterator[Section]:
    """Returns what makes an interface."""
    yield "NetDev", [("Name", one.name), ("Kind", one.kind), ("MACAddress", one.mac or None)]
    if one.kind == "bridge":
        bridge = one.bridge
        yield "Bridge", [
            ("STP", bridge.stp),
            ("ForwardDelaySec", bridge.forward_delay),
            ("AgeingTimeSec", bridge.ageing),
        ]
    elif one.kind == "bond":
        bond = one.bond
        yield "Bond", [
            ("Mode", bond.mode),
            ("MIIMonitorSec", f"{bond.miimon}ms"),
            ("LACPTransmitRate", bond.lacp_rate or None),
            ("TransmitHashPolicy", bond.hash_policy or None),
        ]
    else:
        yield "VLAN", [("Id", one.vlan_id)]


def _network(profile: Profile, one: Interface) -> Iterator[Section]:
    """Returns what an interface belongs to, and its addresses."""
    yield "Match", [("Name", one.name)]
    # A bridge of guests alone has no carrier until the first of them starts; a boot must not wait for that.
    waits = one.configured and (one.kind not in {"bridge", OPENVSWITCH} or bool(one.ports))
    yield "Link", [("MTUBytes", one.mtu), ("RequiredForOnline", None if waits else False)]
    yield "Network", [*_belongs(profile, one), *_addresses(one)]
    yield "DHCPv4", _identity(one) if one.dhcp4 else []
    yield "DHCPv6", [("WithoutRA", "solicit"), *_identity(one, 6)] if one.dhcp6 else []
    for route in one.routes:
        yield "Route", [
            ("Destination", route.to),
            ("Gateway", route.via or None),
            ("Metric", route.metric),
            ("Table", route.table),
        ]


def _belongs(profile: Profile, one: Interface) -> Iterator[tuple[str, object]]:
    """Returns the lines of [Network] on masters and VLANs."""
    master = profile.get(one.master) if one.master else None
    # A bridge of Open vSwitch has its ports from its own database.
    if master is not None and master.kind != OPENVSWITCH:
        yield master.kind.capitalize(), master.name
        if master.kind == "bond" and master.bond.primary == one.name:
            yield "PrimarySlave", True
    for other in profile.present:
        if other.link == one.name:
            yield "VLAN", other.name


def _addresses(one: Interface) -> Iterator[tuple[str, object]]:
    """Returns the lines of [Network] on addresses."""
    yield "DHCP", {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6"}.get((one.dhcp4, one.dhcp6), "no")
    if not one.configured:
        # A guest could otherwise give the host an address, by a router advertisement.
        yield "LinkLocalAddressing", "no" if one.master else "ipv6"
        yield "IPv6AcceptRA", False
    if one.kind == "bridge" and not one.ports:
        yield "ConfigureWithoutCarrier", True
    for address in one.addresses:
        yield "Address", address
    for gateway in (one.gateway4, one.gateway6):
        if gateway:
            yield "Gateway", gateway
    for server in one.dns_servers:
        yield "DNS", server
    if one.dns_search:
        yield "Domains", " ".join(one.dns_search)


def _identity(one: Interface, version: int = 4) -> list[tuple[str, object]]:
    """Returns as whom it speaks to a DHCP server, so that a bridge gets the address that its port had."""
    if one.client == "mac":
        return [("ClientIdentifier", "mac")] if version == 4 else []
    return [("IAID", one.client)] if one.client else []


def unknown(sections: list[tuple[str, list[tuple[str, str]]]]) -> list[str]:
    """Names sections and keys that systemd would ignore, and addresses that are none."""
    wrong = []
    for name, pairs in sections:
        wrong += [f"[{name}] {key}" for key, _ in pairs if key not in KNOWN.get(name, set())]
        for key, value in pairs:
            if key in {"Address", "Gateway", "DNS", "Destination"}:
                try:
                    family(value)
                except ValueError:
                    wrong.append(f"[{name}] {key}={value}")
    return wrong

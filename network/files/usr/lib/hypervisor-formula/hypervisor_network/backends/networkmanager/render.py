"""Keyfiles of NetworkManager for the interfaces of a profile. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from hypervisor_network.backends.common import family, ini, of_family, ours
from hypervisor_network.backends.contract import Owned
from hypervisor_network.model import Interface, Profile

FOLDER = "/etc/NetworkManager/system-connections"
PREFIX = "hypervisor"
# A connection has the same UUID on every host and after every change, so that it stays the same connection.
_SPACE = uuid.UUID("b3b8ad1c-4bb5-4f0c-8a2e-6f0f4c2b7f51")
# NetworkManager's own for each kind; written down, since those that it chooses depend on what was there before.
_METRIC = {"ethernet": 100, "bond": 300, "vlan": 400, "bridge": 425}
# Above connections for any card, which installers leave behind.
_PRIORITY = 100
# It takes no other files.
_MODE = 0o600
Section = tuple[str, list[tuple[str, object]]]


def path(name: str) -> str:
    """Returns the file of an interface."""
    return f"{FOLDER}/{PREFIX}-{name}.nmconnection"


def uuid_of(name: str) -> str:
    """Returns the UUID of an interface's connection."""
    return str(uuid.uuid5(_SPACE, name))


def render(profile: Profile) -> dict[str, Owned]:
    """Returns the files of all interfaces that shall be there."""
    return {path(one.name): Owned(ini(_sections(profile, one)), _MODE) for one in ours(profile)}


def _sections(profile: Profile, one: Interface) -> Iterator[Section]:
    """Returns a connection."""
    master = profile.get(one.master) if one.master else None
    yield "connection", [
        ("id", f"{PREFIX}-{one.name}"),
        ("uuid", uuid_of(one.name)),
        ("type", one.kind),
        ("interface-name", one.name),
        ("autoconnect-priority", _PRIORITY),
        ("autoconnect-slaves", 1 if one.ports else None),
        ("master", one.master or None),
        ("slave-type", master.kind if master else None),
    ]
    mac = one.mac if one.kind != "ethernet" else ""
    yield "ethernet", [("cloned-mac-address", mac.upper() or None), ("mtu", one.mtu)]
    if one.kind == "bridge":
        bridge = one.bridge
        yield "bridge", [
            ("stp", _word(bridge.stp)),
            ("forward-delay", bridge.forward_delay if bridge.stp else None),
            ("ageing-time", bridge.ageing),
        ]
    elif one.kind == "bond":
        bond = one.bond
        yield "bond", [
            ("mode", bond.mode),
            ("miimon", bond.miimon),
            ("lacp_rate", bond.lacp_rate or None),
            ("xmit_hash_policy", bond.hash_policy or None),
            ("primary", bond.primary or None),
        ]
    elif one.kind == "vlan":
        yield "vlan", [("id", one.vlan_id), ("parent", one.link)]
    # A port has no addresses, and no sections for them.
    if not one.master:
        yield "ipv4", list(_ip(one, 4))
        yield "ipv6", list(_ip(one, 6))


def _word(value: bool) -> str:
    """Returns a boolean as NetworkManager writes it."""
    return "true" if value else "false"


def _ip(one: Interface, version: int) -> Iterator[tuple[str, object]]:
    """Returns the lines of one family."""
    addresses = of_family(one.addresses, version)
    asks, gateway = (one.dhcp4, one.gateway4) if version == 4 else (one.dhcp6, one.gateway6)
    if version == 6 and not one.configured:
        # A guest could otherwise give the host an address, by a router advertisement.
        yield "method", "link-local"
    elif asks or (version == 6 and not addresses):
        yield "method", "auto"
    else:
        yield "method", "manual" if addresses else "disabled"
    if version == 6:
        # As the kernel does it, so that the address stays the same when a bridge takes over a card.
        yield "addr-gen-mode", "eui64"
    for number, address in enumerate(addresses, 1):
        yield f"address{number}", address
    if gateway:
        yield "gateway", gateway
    if not one.configured:
        return
    yield "route-metric", _METRIC[one.kind]
    yield from _routes(one, version)
    servers = [server for server in one.dns_servers if family(server) == version]
    if servers:
        yield "dns", "".join(f"{server};" for server in servers)
    # Either section may have them; they are written once.
    if one.dns_search and version == (6 if not of_family(one.dns_servers, 4) and one.dns_servers else 4):
        yield "dns-search", "".join(f"{domain};" for domain in one.dns_search)


def _routes(one: Interface, version: int) -> Iterator[tuple[str, object]]:
    """Returns the further routes of one family."""
    for number, route in enumerate([one for one in one.routes if family(one.to) == version], 1):
        metric = f",{route.metric}" if route.metric is not None else ""
        via = route.via or (("0.0.0.0" if version == 4 else "::") if metric else "")  # noqa: S104 - "no router"
        yield f"route{number}", f"{route.to}{',' + via if via else ''}{metric}"
        if route.table is not None:
            yield f"route{number}_options", f"table={route.table}"

"""What the schema cannot say of interfaces: values that do not fit each other.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes. What only the
host knows, such as which cards it has, `network-profile plan` judges.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Spec = Mapping[str, Any]
# An address with its interface's path.
Placed = list[tuple[str, str, ipaddress.IPv4Interface | ipaddress.IPv6Interface]]

KINDS = ("ethernets", "bonds", "vlans", "bridges")
SWITCH = "openvswitch"
# Backends that find a port of Open vSwitch as any other link. NetworkManager wants a plugin for it.
WITH_SWITCH = ("ifupdown", "networkd", "netplan")
LONGEST = 15  # characters; the kernel's IFNAMSIZ less one
RESERVED = frozenset({"lo", "all", "default", "bonding_masters"})
USUAL_MTU = 1500
LEAST_MTU6 = 1280  # RFC 8200
_OF_ADDRESSES = ("dhcp4", "dhcp6", "addresses", "gateway4", "gateway6", "routes")
_HASHING = frozenset({"802.3ad", "balance-xor", "balance-tlb"})
_WITH_PRIMARY = frozenset({"active-backup", "balance-tlb", "balance-alb"})


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges the configuration of network/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    every = [(key, name, spec) for key in KINDS for name, spec in configuration.get(key, {}).items()]
    found = list(_confirm(configuration.get("confirm", {})))
    found += _names(every)
    found += _switches(every, configuration.get("backend", "auto"))
    there = {name: (key, spec) for key, name, spec in every if spec.get("ensure") != "absent"}
    gone = {name for _, name, _ in every if name not in there}
    found += _structure(there, gone)
    masters = _masters(there)
    for name, (key, spec) in there.items():
        own = [*_addresses(spec), *_router(spec), *_routes(spec)]
        if name in masters:
            own += [
                (one, f"{name} is a port of {masters[name]}, which has the addresses instead")
                for one in _OF_ADDRESSES
                if spec.get(one)
            ]
        own += _uplink(name, spec, there, masters)
        own += {"bonds": _bond, "bridges": _bridge}.get(key, _nothing)(spec)
        own += _mtu(key, spec, there)
        found += [(f"{key}:{name}:{where}", text) for where, text in own]
    found += _together(there)
    return [(f"network:{where}", text) for where, text in found]


def _nothing(_: Spec) -> Errors:
    """Finds nothing."""
    return []


def _confirm(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges when a change counts as good."""
    window, successes = spec.get("window", 120), spec.get("successes", 3)
    if successes * 2 > window:
        yield "confirm:successes", f"{successes} rounds of checks do not fit into a window of {window} s"
    for index, text in enumerate(spec.get("beyond", ())):
        port = text.rpartition(":")[2] if text.count(":") == 1 or "]:" in text else ""
        if port and not 1 <= int(port) <= 65535:
            yield f"confirm:beyond:{index}", f"{port} is not a port; they go from 1 to 65535"
        elif not port and not _is_address(text):
            yield f"confirm:beyond:{index}", f'"{text}" is neither HOST:PORT nor an address'


def _is_address(text: str) -> bool:
    """Says whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _names(every: list[tuple[str, str, Spec]]) -> Iterator[tuple[str, str]]:
    """Judges names: their length, those that mean something else, and two interfaces of one name."""
    seen: dict[str, str] = {}
    matched: dict[tuple[str, str], str] = {}
    for key, name, spec in every:
        where = f"{key}:{name}"
        used = [name, *spec.get("ports", ()), spec.get("match", {}).get("name")]
        used += [spec.get("link"), spec.get("host_port")]
        for one in dict.fromkeys(filter(None, used)):
            if len(one) > LONGEST:
                yield where, f'"{one}" has {len(one)} characters; the name of an interface has at most {LONGEST}'
            if one in RESERVED:
                yield where, f'"{one}" is not the name of an interface that can be declared'
        if seen.setdefault(name, key) != key:
            yield where, f"{name} is declared below network:{seen[name]} already"
        for kind, value in spec.get("match", {}).items():
            if matched.setdefault((kind, value.lower()), name) != name:
                yield f"{where}:match:{kind}", f"{matched[kind, value.lower()]} is the card with {value} already"
        mac = spec.get("mac", "")
        if mac and int(mac[:2], 16) & 1:
            yield f"{where}:mac", f"{mac} is a group's address, not that of one interface"


def _switches(every: list[tuple[str, str, Spec]], backend: str) -> Iterator[tuple[str, str]]:
    """Judges bridges of Open vSwitch, on which the host has a port of its own."""
    names = {name for _, name, _ in every}
    ports = {port for _, _, spec in every for port in spec.get("ports", ())}
    owners: dict[str, str] = {}
    for key, name, spec in every:
        where = f"{key}:{name}"
        if spec.get("switch") != SWITCH:
            if "host_port" in spec:
                yield f"{where}:host_port", f"not allowed without switch: {SWITCH}"
            owner = next((one for _, one, other in every if one == spec.get("link") and _own(one, other) != one), "")
            if owner:
                own = next(_own(one, other) for _, one, other in every if one == owner)
                yield f"{where}:link", f"the host is on {owner} with the port {own}; a VLAN stands on that"
            continue
        if backend not in {"auto", *WITH_SWITCH}:
            allowed = ", ".join(WITH_SWITCH)
            yield f"{where}:switch", f"{SWITCH} is not allowed with network:backend {backend}; allowed: {allowed}"
        own = _own(name, spec)
        if own != name and own in names | ports:
            yield f"{where}:host_port", f"{own} is declared as another interface already"
        if owners.setdefault(own, name) != name:
            yield f"{where}:host_port", f"{own} is the host's port on {owners[own]} already"


def _own(name: str, spec: Spec) -> str:
    """Returns the name of a declared interface on the host."""
    return str(spec.get("host_port", name)) if spec.get("switch") == SWITCH else name


def _below(spec: Spec) -> list[str]:
    """Returns what an interface stands on."""
    return [*spec.get("ports", ()), *filter(None, [spec.get("link")])]


def _masters(there: Mapping[str, tuple[str, Spec]]) -> dict[str, str]:
    """Returns bonds and bridges by their ports."""
    return {port: name for name, (_, spec) in there.items() for port in spec.get("ports", ())}


def _structure(there: Mapping[str, tuple[str, Spec]], gone: set[str]) -> Iterator[tuple[str, str]]:
    """Judges what stands on what."""
    owner: dict[str, str] = {}
    tags: dict[tuple[str, int], str] = {}
    for name, (key, spec) in there.items():
        where = f"{key}:{name}"
        for port in spec.get("ports", ()):
            if owner.setdefault(port, name) != name:
                yield f"{where}:ports", f"{port} is a port of {owner[port]} already"
            elif port != name:
                yield from _port(where, key, port, there)
        for one in _below(spec):
            if one in gone:
                yield where, f"it stands on {one}, which is declared with ensure: absent"
        if key == "vlans":
            tag = (spec["link"], spec["id"])
            if tags.setdefault(tag, name) != name:
                yield f"{where}:id", f"{tags[tag]} has the tag {spec['id']} on {spec['link']} already"
    yield from _loops(there)


def _port(where: str, key: str, port: str, there: Mapping[str, tuple[str, Spec]]) -> Iterator[tuple[str, str]]:
    """Judges whether an interface can be a port of a bridge or a bond."""
    kind = there.get(port, ("", {}))[0]
    if key == "bridges" and kind == "bridges":
        yield f"{where}:ports", f"{port} is a bridge, and a bridge cannot be the port of another"
    if key == "bonds" and kind in {"bonds", "bridges"}:
        yield f"{where}:ports", f"{port} cannot be a port of a bond"


def _loops(there: Mapping[str, tuple[str, Spec]]) -> Iterator[tuple[str, str]]:
    """Finds interfaces that stand on themselves; each loop is named once."""
    known: set[str] = set()
    for name, (key, _) in there.items():
        trail: list[str] = []

        def goes_round(one: str, trail: list[str] = trail, name: str = name) -> bool:
            if one in trail or one not in there:
                return one == name and bool(trail)
            trail.append(one)
            if any(goes_round(below) for below in _below(there[one][1])):
                return True
            trail.pop()
            return False

        if name not in known and goes_round(name):
            known |= set(trail)
            yield f"{key}:{name}", f"it stands on itself: {' on '.join([*trail, name])}"


def _interfaces(spec: Spec) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """Returns the addresses of an interface."""
    return [ipaddress.ip_interface(text) for text in spec.get("addresses", ())]


def _addresses(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges addresses by themselves."""
    for address in _interfaces(spec):
        network = address.network
        wide = network.prefixlen < network.max_prefixlen - 1
        if address.ip.is_multicast or address.ip.is_loopback or address.ip.is_unspecified:
            yield "addresses", f"{address.ip} is not the address of a host"
        elif wide and address.ip == network.network_address:
            yield "addresses", f"{address} is the network itself, not an address in it"
        elif wide and address.version == 4 and address.ip == network.broadcast_address:
            yield "addresses", f"{address} is the broadcast address of its network"
    asked = spec.get("dhcp6") or any(address.version == 6 for address in _interfaces(spec))
    if asked and spec.get("mtu", USUAL_MTU) < LEAST_MTU6:
        yield "mtu", f"{spec['mtu']} is too small for IPv6, which needs {LEAST_MTU6}"


def _router(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges the gateways of an interface."""
    for key, dhcp, version in (("gateway4", "dhcp4", 4), ("gateway6", "dhcp6", 6)):
        if key not in spec:
            continue
        gateway = ipaddress.ip_address(spec[key])
        networks = [address.network for address in _interfaces(spec) if address.version == version]
        own = [address.ip for address in _interfaces(spec)]
        if version == 4 and spec.get(dhcp):
            yield key, "the DHCP server names the gateway; one of dhcp4 and gateway4 has to go"
        elif gateway in own:
            yield key, f"{gateway} is this interface's own address"
        elif not networks and not gateway.is_link_local:
            yield key, f"there is no IPv{version} address to reach it from"
        elif not gateway.is_link_local and not any(gateway in network for network in networks):
            yield key, f"{gateway} is in no network of this interface ({', '.join(map(str, networks))})"
        elif version == 4 and any(
            gateway in {network.network_address, network.broadcast_address}
            for network in networks
            if network.prefixlen < 31
        ):
            yield key, f"{gateway} is not the address of a host"


def _routes(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges the further routes of an interface."""
    networks = [address.network for address in _interfaces(spec)]
    for index, route in enumerate(spec.get("routes", ())):
        where = f"routes:{index}"
        to = ipaddress.ip_network(route["to"])
        if to.prefixlen == 0 and "table" not in route:
            yield f"{where}:to", f"the default route is gateway{to.version}"
        if "via" not in route:
            continue
        via = ipaddress.ip_address(route["via"])
        leased = spec.get(f"dhcp{to.version}")
        if via.version != to.version:
            yield f"{where}:via", f"{via} is no router to {to}: one is IPv4 and the other IPv6"
        elif not leased and not via.is_link_local and not any(via in network for network in networks):
            told = ", ".join(map(str, networks)) or "it has none"
            yield f"{where}:via", f"{via} is in no network of this interface ({told})"


def _uplink(
    name: str, spec: Spec, there: Mapping[str, tuple[str, Spec]], masters: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Judges what carries the connection to the master: it, or what it is a port of, must have addresses."""
    if not spec.get("uplink"):
        return
    above, seen = name, {name}
    while masters.get(above) in there and masters[above] not in seen:
        above = masters[above]
        seen.add(above)
    top = there[above][1]
    # A card below VLANs need not have addresses of its own.
    carried = [one for one, (_, other) in there.items() if other.get("link") in seen and _configured(other)]
    if not _configured(top) and not carried:
        place = f"{name} is a port of {above}, which has no addresses" if above != name else "it has no addresses"
        yield "uplink", f"{place}: the host would not be reached any more"


def _configured(spec: Spec) -> bool:
    """Says whether an interface has addresses."""
    return bool(spec.get("dhcp4") or spec.get("dhcp6") or spec.get("addresses"))


def _bond(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges a bond."""
    ports, mode = spec.get("ports", ()), spec.get("mode", "active-backup")
    if not ports:
        yield "ports", "missing; a bond needs ports"
    elif len(ports) == 1 and not spec.get("single"):
        yield "ports", "a bond of one port; name a second one, or set single: true if that is meant"
    primary = spec.get("primary")
    if primary and primary not in ports:
        yield "primary", f"{primary} is not among its ports"
    if primary and mode not in _WITH_PRIMARY:
        yield "primary", f"not allowed with the mode {mode}"
    if "lacp_rate" in spec and mode != "802.3ad":
        yield "lacp_rate", f"not allowed with the mode {mode}"
    if "hash_policy" in spec and mode not in _HASHING:
        yield "hash_policy", f"not allowed with the mode {mode}"


def _bridge(spec: Spec) -> Iterator[tuple[str, str]]:
    """Judges a bridge."""
    least = 4 if spec.get("switch") == SWITCH else 2
    if spec.get("stp") and spec.get("forward_delay", 0) < least:
        yield "forward_delay", f"with stp: true it must be from {least} to 30"


def _mtu(key: str, spec: Spec, there: Mapping[str, tuple[str, Spec]]) -> Iterator[tuple[str, str]]:
    """Judges the MTU against what an interface stands on."""
    for one in _below(spec):
        below, wanted = there.get(one, ("", {}))[1].get("mtu"), spec.get("mtu")
        if key == "bonds":
            # A bond gives its own to its ports.
            if below is not None and below != (wanted or USUAL_MTU):
                yield "mtu", f"its port {one} has {below}, and a bond's ports have the bond's"
        elif (wanted or 0) > (below or _given(one, there) or USUAL_MTU):
            told = below or _given(one, there) or f"none declared, so {USUAL_MTU}"
            yield "mtu", f"{wanted} is more than {one} has ({told})"


def _given(name: str, there: Mapping[str, tuple[str, Spec]]) -> int | None:
    """Returns the MTU that a card gets from the bond whose port it is."""
    masters = _masters(there)
    key, spec = there.get(masters.get(name, ""), ("", {}))
    return spec.get("mtu") if key == "bonds" else None


def _together(there: Mapping[str, tuple[str, Spec]]) -> Iterator[tuple[str, str]]:
    """Judges addresses and gateways of all interfaces together."""
    placed: Placed = [
        (f"{key}:{name}", name, address) for name, (key, spec) in there.items() for address in _interfaces(spec)
    ]
    for index, (where, name, address) in enumerate(placed):
        for _, other, earlier in placed[:index]:
            if other == name or earlier.version != address.version or address.ip.is_link_local:
                continue
            if earlier.ip == address.ip:
                yield f"{where}:addresses", f"{address.ip} is an address of {other} already"
            elif earlier.network.overlaps(address.network) and address.network.prefixlen < address.max_prefixlen:
                yield f"{where}:addresses", f"the network of {address} overlaps {earlier.network} of {other}"
    for key in ("gateway4", "gateway6"):
        first = ""
        for name, (kind, spec) in there.items():
            if key in spec and first:
                yield f"{kind}:{name}:{key}", f"{first} has the default route already; use routes for other networks"
            first = first or (name if key in spec else "")

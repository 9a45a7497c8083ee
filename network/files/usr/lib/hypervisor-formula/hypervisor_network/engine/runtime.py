"""The runtime of the network: how it is, how it differs from before, and from what is declared."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import Json, Snapshot
from hypervisor_network.model import KINDS, OPENVSWITCH, Interface, Profile

from .host import LocalHost

# Links that come and go with guests and containers.
_FLEETING = frozenset({"tun", "veth", "macvtap", "macvlan"})
# The kernel's link that has the cards of all bridges of Open vSwitch as its ports. It comes and goes with them.
DATAPATH = "ovs-system"
_STAYS = " has left the pillar and stays until it is declared with ensure: absent"
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
Facts = dict[str, tuple[Any, ...]]


def take(host: LocalHost, extra: Mapping[str, Any] | None = None) -> Snapshot:
    """Returns the runtime as it is."""
    return Snapshot(
        links=host.ip("-d", "link", "show"),
        addresses=host.ip("address", "show"),
        routes=host.ip("-4", "route", "show", "table", "all"),
        routes6=host.ip("-6", "route", "show", "table", "all"),
        extra=dict(extra or {}),
    )


def kind(link: Mapping[str, Any]) -> str:
    """Returns the kind of a link: bridge, bond, vlan, tun …; ethernet for a card."""
    found = (link.get("linkinfo") or {}).get("info_kind")
    return str(found) if found else "ethernet"


def link_of(snapshot: Snapshot, name: str) -> Mapping[str, Any] | None:
    """Returns the link of that name."""
    return next((one for one in snapshot.links if one.get("ifname") == name), None)


def addresses_of(snapshot: Snapshot, name: str) -> Json:
    """Returns the addresses of a link, link-local ones too."""
    found = next((one for one in snapshot.addresses if one.get("ifname") == name), None)
    return [one for one in (found or {}).get("addr_info", []) if one]


def chain(snapshot: Snapshot, name: str) -> set[str]:
    """Returns a link and everything that it stands on: ports of bridges and bonds, links of VLANs.

    The kernel does not tell which bridge of Open vSwitch a card is a port of, so all such cards are returned for each.
    """
    found: set[str] = set()
    todo = [name]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        link = link_of(snapshot, one) or {}
        masters = {one, DATAPATH} if kind(link) == OPENVSWITCH else {one}
        todo += [str(other["ifname"]) for other in snapshot.links if other.get("master") in masters]
        if isinstance(link.get("link"), str) and kind(link) != "veth":
            todo.append(link["link"])
    return found


# ---- before and after ----


def _link_facts(snapshot: Snapshot, skip: frozenset[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Describes each link by what a person has set."""
    for one in snapshot.links:
        name = str(one["ifname"])
        if name in skip:
            continue
        up = "UP" in one.get("flags", [])
        facts = {
            "kind": kind(one), "master": one.get("master"), "mtu": one.get("mtu"), "mac": one.get("address"),
            "up": up, "addrgenmode": one.get("inet6_addr_gen_mode"), **_form_facts(one), **common.options(one),
        }  # fmt: skip
        yield f"link {name}", tuple(facts.items())


def _form_facts(link: Mapping[str, Any]) -> dict[str, Any]:
    """Describes what a VLAN or bond was made as."""
    words = {"vlan": ("tag", "link"), "bond": ("mode",)}.get(kind(link), ())
    return dict(zip(words, common.form(link)[1:], strict=True))


def _address_facts(snapshot: Snapshot, skip: frozenset[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Describes each address; those that routers announce come back by themselves, in their time."""
    for one in snapshot.addresses:
        for address in one.get("addr_info", []):
            if not address or one["ifname"] in skip:
                continue
            family = address.get("family")
            if family == "inet6" and (address.get("dynamic") or address.get("temporary")):
                continue
            key = f"address {address.get('local')}/{address.get('prefixlen')} on {one['ifname']}"
            yield key, (address.get("scope"), bool(address.get("dynamic")) if family == "inet" else False)


def _route_facts(snapshot: Snapshot, skip: frozenset[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Describes each route but those of routers' announcements and the kernel's own tables."""
    for one in (*snapshot.routes, *snapshot.routes6):
        if one.get("protocol") == "ra" or one.get("table") in {"local", "255", 255} or one.get("dev") in skip:
            continue
        if one.get("type") in {"multicast", "local", "broadcast", "anycast"}:
            continue
        key = f"route {one.get('dst')} via {one.get('gateway', 'the link')} dev {one.get('dev')}"
        facts = (one.get("table", "main"), one.get("metric"), one.get("prefsrc"), one.get("protocol"))
        yield f"{key} metric {one.get('metric', 0)}", facts


def facts(snapshot: Snapshot, skip: frozenset[str] = frozenset()) -> Facts:
    """Describes a runtime without what changes by itself, such as the rest of a lease.

    Args:
        snapshot: the runtime.
        skip: names of links that don't count.
    """
    return {
        **dict(_link_facts(snapshot, skip)),
        **dict(_address_facts(snapshot, skip)),
        **dict(_route_facts(snapshot, skip)),
    }


def fleeting(*snapshots: Snapshot) -> frozenset[str]:
    """Returns the links that belong to guests and containers, and that of Open vSwitch itself."""
    return frozenset(
        str(one["ifname"])
        for snapshot in snapshots
        for one in snapshot.links
        if kind(one) in _FLEETING or one["ifname"] == DATAPATH
    )


def compare(before: Snapshot, now: Snapshot) -> list[str]:
    """Returns how a runtime differs from that before, one line each; guests may have come and gone."""
    skip = fleeting(before, now)
    old, new = facts(before, skip), facts(now, skip)
    lines = [f"{key} is missing" for key in old if key not in new]
    lines += [f"{key} is too much" for key in new if key not in old]
    for key, value in old.items():
        if key in new and new[key] != value:
            lines.append(f"{key}: {_told(new[key])} instead of {_told(value)}")
    return sorted(lines)


def _told(value: tuple[Any, ...]) -> str:
    """Shows facts to a person."""
    return " ".join(f"{one[0]}={one[1]}" if isinstance(one, tuple) else str(one) for one in value)


# ---- what is declared ----


def cards(host: LocalHost, profile: Profile, snapshot: Snapshot) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the cards that the profile means.

    Returns:
        The kernel's names by those of the profile, where a match found one; permanent MAC addresses by the kernel's
        names.
    """
    macs = {
        str(one["ifname"]): str(one.get("permaddr") or one.get("address") or "").lower()
        for one in snapshot.links
        if one.get("link_type") == "ether" and kind(one) in {"ethernet", "veth"}
    }
    names = {}
    for one in profile.interfaces:
        match = one.match
        if match.name:
            names[one.name] = match.name
        elif match.mac:
            fitting = [name for name, mac in macs.items() if mac == match.mac]
            names.update({one.name: fitting[0]} if fitting else {})
        elif match.path:
            fitting = [name for name in macs if _path(host, name) == match.path]
            names.update({one.name: fitting[0]} if fitting else {})
    return names, macs


def _path(host: LocalHost, name: str) -> str:
    """Returns udev's ID_PATH of a card."""
    done = host.run(["udevadm", "info", "--query=property", f"--path=/sys/class/net/{name}"])
    found = [line.partition("=")[2] for line in done.out.splitlines() if line.startswith("ID_PATH=")]
    return found[0] if found else ""


def missing(
    profile: Profile, names: Mapping[str, str], snapshot: Snapshot, left: Collection[str] = frozenset()
) -> list[str]:
    """Names the cards that are not on this host; nothing may be changed then.

    Args:
        profile: as the pillar has it.
        names: see :func:`cards`.
        snapshot: the runtime.
        left: interfaces that the pillar no longer has, and that stay.
    """
    there = snapshot.names()
    lines = []
    for one in profile.present:
        unmatched = one.name not in names and (one.match.mac or one.match.path)
        if one.kind != "ethernet" or (not unmatched and names.get(one.name, one.name) in there):
            continue
        what = f"with the MAC address {one.match.mac}" if one.match.mac else f"at {one.match.path}"
        user = next((f" (a port of {other.name})" for other in profile.present if one.name in other.ports), "")
        user = user or next((f" (the link of {other.name})" for other in profile.present if one.name == other.link), "")
        gone = f"; it{_STAYS}" if one.name in left else ""
        if one.match.mac or one.match.path:
            lines.append(f"{one.name}{user}: this host has no card {what}{gone}")
        else:
            have = ", ".join(sorted(str(link["ifname"]) for link in snapshot.links if kind(link) == "ethernet"))
            lines.append(f"{names.get(one.name, one.name)}{user}: this host has no such card; it has {have}{gone}")
    return lines


def doubled(profile: Profile, names: Mapping[str, str], left: Collection[str] = frozenset()) -> list[str]:
    """Names the cards that the profile declares more than once, under names that mean the same one.

    What the one says of a card would be lost to what the other says. A name with ``ensure: absent`` does not count:
    the card has another one now.

    Args:
        profile: as the pillar has it.
        names: see :func:`cards`.
        left: interfaces that the pillar no longer has, and that stay.
    """
    meant: dict[str, list[Interface]] = {}
    for one in profile.present:
        if one.name in names or not (one.match.mac or one.match.path):
            meant.setdefault(names.get(one.name, one.name), []).append(one)
    lines = []
    for card, several in meant.items():
        if len(several) > 1:
            text = f"{' and '.join(_key(profile, one) for one in several)} mean the same card, {card}"
            stays = "".join(f"; {one.name}{_STAYS}" for one in several if one.name in left)
            lines.append(f"{text}; it can have one name alone{stays}")
    return lines


def _key(profile: Profile, one: Interface) -> str:
    """Returns where in the pillar an interface stands: its own key, or that of what names it as a port or link."""
    keys = {kind: key for key, kind in KINDS.items()} | {OPENVSWITCH: "bridges"}
    if one.declared:
        return f"network:{keys[one.kind]}:{one.switch or one.name}"
    for other in profile.present:
        for word, below in (("ports", other.ports), ("link", (other.link,))):
            if one.name in below:
                return f"{_key(profile, other)}:{word} ({one.name})"
    return one.name


def differences(profile: Profile, snapshot: Snapshot, leased: bool = False) -> dict[str, list[str]]:
    """Says how the runtime differs from what is declared.

    Args:
        profile: with names of this host.
        snapshot: the runtime.
        leased: whether an address that a DHCP server gives must be there already.

    Returns:
        Sentences without a full stop by interface; those that are as declared are left out.
    """
    found = {one.name: list(_interface(one, _master(profile, one), snapshot, leased)) for one in profile.interfaces}
    return {name: lines for name, lines in found.items() if lines}


def _master(profile: Profile, one: Interface) -> str:
    """Returns what the kernel shows as an interface's master."""
    return DATAPATH if profile.kind_above(one.name) == OPENVSWITCH else one.master


def _interface(one: Interface, master: str, snapshot: Snapshot, leased: bool) -> Iterator[str]:
    """Says how one interface differs."""
    link = link_of(snapshot, one.name)
    if one.absent:
        if link is not None and one.kind != "ethernet":
            yield f"{one.name} is still there"
        return
    if link is None:
        yield f"{one.name} is missing"
        return
    if one.kind != "ethernet" and kind(link) != one.kind:
        yield f"{one.name} is of the kind {kind(link)} instead of {one.kind}"
    if master != (link.get("master") or "") and (master or one.configured):
        yield f"{one.name} is a port of {link.get('master') or 'nothing'} instead of {master or 'nothing'}"
    if one.mtu is not None and link.get("mtu") != one.mtu:
        yield f"{one.name} has the MTU {link.get('mtu')} instead of {one.mtu}"
    if one.kind == "vlan" and one.link != link.get("link"):
        yield f"{one.name} stands on {link.get('link')} instead of {one.link}"
    yield from _options(one, (link.get("linkinfo") or {}).get("info_data") or {})
    yield from _addresses(one, addresses_of(snapshot, one.name), leased)
    yield from _routes(one, snapshot)


def _options(one: Interface, data: Mapping[str, Any]) -> Iterator[str]:
    """Says how the options of a bridge, bond or VLAN differ."""
    if one.kind == "bridge" and "stp_state" in data and bool(data["stp_state"]) != one.bridge.stp:
        yield f"{one.name} has its spanning tree {'off' if one.bridge.stp else 'on'}"
    if one.kind == "bond" and "mode" in data and data["mode"] != one.bond.mode:
        yield f"{one.name} has the mode {data['mode']} instead of {one.bond.mode}"
    if one.kind == "vlan" and "id" in data and data["id"] != one.vlan_id:
        yield f"{one.name} has the tag {data['id']} instead of {one.vlan_id}"


def _addresses(one: Interface, there: Json, leased: bool) -> Iterator[str]:
    """Says which declared addresses are missing, or are no good."""
    have = {f"{address.get('local')}/{address.get('prefixlen')}": address for address in there}
    for address in one.addresses:
        found = have.get(ipaddress.ip_interface(address).with_prefixlen)
        if found is None:
            yield f"{one.name} has no address {address}"
        elif found.get("dadfailed"):
            yield f"{address} of {one.name} is in use by another host"
        elif found.get("tentative") and leased:
            yield f"{address} of {one.name} is not ready"
    for family, wanted in (("inet", one.dhcp4), ("inet6", one.dhcp6)):
        given = [
            address
            for address in there
            if address.get("family") == family and address.get("scope") == "global" and address.get("local")
            and f"{address['local']}/{address.get('prefixlen')}" not in one.addresses
        ]  # fmt: skip
        if wanted and leased and not given:
            yield f"{one.name} has no {'IPv4' if family == 'inet' else 'IPv6'} address of a DHCP server"


def _routes(one: Interface, snapshot: Snapshot) -> Iterator[str]:
    """Says which declared routes are missing."""
    wanted: list[tuple[str, str, int | None]] = [(_DEFAULT[4], one.gateway4, None), (_DEFAULT[6], one.gateway6, None)]
    wanted += [(route.to, route.via, route.table) for route in one.routes]
    for to, via, table in wanted:
        if (via or to not in _DEFAULT.values()) and not _routed(snapshot, one.name, to, via, table):
            text = "the default route" if to in _DEFAULT.values() else f"the route to {to}"
            yield f"{one.name} lacks {text}" + (f" via {via}" if via else "")


def _routed(snapshot: Snapshot, name: str, to: str, via: str, table: int | None) -> bool:
    """Says whether a route is there."""
    network = ipaddress.ip_network(to)
    for one in snapshot.routes if network.version == 4 else snapshot.routes6:
        text = str(one.get("dst"))
        try:
            found = ipaddress.ip_network(_DEFAULT[network.version] if text == "default" else text)
        except ValueError:
            continue
        same_router = not via or ipaddress.ip_address(via) == _address(one.get("gateway"))
        in_table = str(one.get("table", "main")) == (str(table) if table and table != 254 else "main")
        if found == network and one.get("dev") == name and same_router and in_table:
            return True
    return False


def _address(text: Any) -> object:
    """Parses an address; None for none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def leases(profile: Profile, snapshot: Snapshot) -> dict[str, list[str]]:
    """Returns the IPv4 addresses that a DHCP server must give again, by interface.

    That is what the interface had before, or what its ports had: a bridge that takes over a card keeps its address.

    Args:
        profile: with names of this host.
        snapshot: the runtime before.
    """
    found = {}
    for one in profile.present:
        if one.dhcp4:
            given = [
                str(address["local"])
                for name in (one.name, *_ports(profile, one))
                for address in addresses_of(snapshot, name)
                if address.get("family") == "inet" and address.get("dynamic")
            ]
            found.update({one.name: given} if given else {})
    return found


def _ports(profile: Profile, one: Interface) -> Iterable[str]:
    """Returns the ports of an interface and theirs."""
    for port in one.ports:
        yield port
        below = profile.get(port)
        if below is not None and below.ports:
            yield from _ports(profile, below)

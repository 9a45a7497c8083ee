"""The interfaces that a pillar declares, as plain frozen data.

The pillar has been judged by schema and rules before. What stands on something else comes after it, so that a
backend can go through the interfaces in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# The pillar's keys and the kind of what is below them, in the order in which they are made.
KINDS = {"ethernets": "ethernet", "bonds": "bond", "vlans": "vlan", "bridges": "bridge"}
# The kind of an interface that the host has on a bridge of Open vSwitch, as the kernel calls it.
OPENVSWITCH = "openvswitch"


@dataclass(frozen=True)
class Match:
    """Which Ethernet card is meant; one of the three is not empty.

    Attributes:
        name: the kernel's name.
        mac: the address that the card was made with, in lower case.
        path: ID_PATH of udev.
    """

    name: str = ""
    mac: str = ""
    path: str = ""


@dataclass(frozen=True)
class Route:
    """A route besides those that an address brings.

    Attributes:
        to: a network.
        via: the router; empty for what is on the link.
        metric: None leaves it to the backend.
        table: None is the main table.
    """

    to: str
    via: str = ""
    metric: int | None = None
    table: int | None = None


@dataclass(frozen=True)
class Bridge:
    """What only a bridge has; seconds.

    Attributes:
        stp: whether the spanning tree is on.
        forward_delay: seconds of each of its waits; 0 without it.
        ageing: None leaves the kernel's 300 s.
    """

    stp: bool = False
    forward_delay: int = 0
    ageing: int | None = None


@dataclass(frozen=True)
class Bond:
    """What only a bond has.

    Attributes:
        mode: the kernel's word for it.
        miimon: milliseconds between looks at the links.
        lacp_rate: slow or fast; empty leaves it.
        hash_policy: the kernel's word for xmit_hash_policy; empty leaves it.
        primary: a port; empty for none.
    """

    mode: str = "active-backup"
    miimon: int = 100
    lacp_rate: str = ""
    hash_policy: str = ""
    primary: str = ""


@dataclass(frozen=True)
class Interface:
    """One interface.

    Attributes:
        name: its name on the host, once :meth:`Profile.resolved` has found the card that is meant.
        kind: ethernet, bond, vlan, bridge, or openvswitch for the host's own port of a bridge of Open vSwitch.
        absent: it has to go; an Ethernet card only loses the formula's files.
        declared: whether the pillar names it, rather than only as a port or as the link of something.
        dhcp4: asks a DHCP server for an IPv4 address.
        dhcp6: asks a DHCP server for an IPv6 address.
        addresses: static ones, ADDRESS/PREFIX.
        gateway4: default router, or empty.
        gateway6: default router, or empty.
        routes: further ones.
        dns_servers: asked through this interface.
        dns_search: domains for short names.
        mtu: None leaves it as it is.
        uplink: the pillar says that this carries the connection to the master.
        mac: the address that it gets; empty for a bond, bridge or VLAN leaves the choice to the backend, unless
            :meth:`Profile.resolved` has pinned the first port's.
        match: which card is meant.
        ports: of a bond or bridge.
        master: the bond or bridge whose port it is, or empty; of Open vSwitch the name of the host's own port.
        bridge: options of a bridge.
        bond: options of a bond.
        link: what a VLAN stands on.
        vlan_id: the tag of a VLAN.
        switch: the bridge of Open vSwitch that it is the host's own port of; empty for all other kinds.
        client: as whom it speaks to a DHCP server, found by :meth:`Backend.adapt`: an IAID, "mac", or empty for the
            backend's own way.
    """

    name: str
    kind: str
    absent: bool = False
    declared: bool = True
    dhcp4: bool = False
    dhcp6: bool = False
    addresses: tuple[str, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    routes: tuple[Route, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    mtu: int | None = None
    uplink: bool = False
    mac: str = ""
    match: Match = field(default_factory=Match)
    ports: tuple[str, ...] = ()
    master: str = ""
    bridge: Bridge = field(default_factory=Bridge)
    bond: Bond = field(default_factory=Bond)
    link: str = ""
    vlan_id: int = 0
    switch: str = ""
    client: str = ""

    @property
    def configured(self) -> bool:
        """Whether it has addresses of its own, static or not."""
        return bool(self.dhcp4 or self.dhcp6 or self.addresses)


@dataclass(frozen=True)
class Confirm:
    """When a change counts as good; see ``network:confirm`` in the pillar.

    Attributes:
        window: seconds.
        successes: rounds of checks in a row.
        masters: names or addresses.
        ports: of each master.
        beyond: HOST:PORT or addresses.
        checks: commands as lists of words.
    """

    window: int = 120
    successes: int = 3
    masters: tuple[str, ...] = ()
    ports: tuple[int, ...] = (4505, 4506)
    beyond: tuple[str, ...] = ()
    checks: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Profile:
    """All that is declared.

    Attributes:
        interfaces: each after what it stands on; those that are absent too.
        backend: auto, or a backend's name.
        allow_uplink_change: consent of the pillar.
        confirm: when a change counts as good.
    """

    interfaces: tuple[Interface, ...] = ()
    backend: str = "auto"
    allow_uplink_change: bool = False
    confirm: Confirm = field(default_factory=Confirm)

    @property
    def present(self) -> tuple[Interface, ...]:
        """The interfaces that shall be there."""
        return tuple(one for one in self.interfaces if not one.absent)

    @property
    def absent(self) -> tuple[Interface, ...]:
        """The interfaces that shall go."""
        return tuple(one for one in self.interfaces if one.absent)

    def get(self, name: str) -> Interface | None:
        """Returns the interface of that name, or None."""
        return next((one for one in self.interfaces if one.name == name), None)

    def kind_above(self, name: str) -> str:
        """Returns the kind of what an interface is a port of; empty for one that is no port."""
        one = self.get(name)
        master = self.get(one.master) if one is not None and one.master else None
        return master.kind if master is not None else ""

    def resolved(self, names: Mapping[str, str], macs: Mapping[str, str]) -> Profile:
        """Returns the profile with the names that cards have on this host, and with bridges' and bonds' addresses.

        A bridge or bond without a mac of its own gets that of its first port, so that a DHCP server knows it again.
        A name of a card that is absent is left out where the card has another name now: what that says counts.

        Args:
            names: the kernel's names by those of the pillar, for cards that are matched by mac or path.
            macs: permanent MAC addresses by the kernel's names.
        """

        def real(name: str) -> str:
            return names.get(name, name)

        moved = [
            replace(
                one,
                name=real(one.name),
                ports=tuple(map(real, one.ports)),
                master=real(one.master),
                link=real(one.link),
                bond=replace(one.bond, primary=real(one.bond.primary)),
            )
            for one in self.interfaces
        ]
        there = {one.name for one in moved if not one.absent}
        moved = [one for one in moved if not (one.absent and one.kind == "ethernet" and one.name in there)]
        known = {name: mac.lower() for name, mac in macs.items()}
        pinned = []
        # In their order, so that a bridge on a bond gets the bond's.
        for one in moved:
            first = one.ports[0] if one.ports else one.link
            mac = one.mac or (known.get(first, "") if one.kind in {"bridge", "bond", OPENVSWITCH} else "")
            if one.kind != "ethernet":
                known[one.name] = mac or known.get(first, "")
            pinned.append(replace(one, mac=mac))
        return replace(self, interfaces=tuple(pinned))


def own_name(name: str, spec: Mapping[str, Any]) -> str:
    """Returns the name of a declared interface on the host: the host's own port, for a bridge of Open vSwitch."""
    return str(spec.get("host_port", name)) if spec.get("switch") == OPENVSWITCH else name


def _interface(name: str, kind: str, spec: Mapping[str, Any], master: str) -> Interface:
    """Reads one interface of the pillar."""
    dns = spec.get("dns", {})
    switch = name if spec.get("switch") == OPENVSWITCH else ""
    match = spec.get("match", {})
    return Interface(
        name=own_name(name, spec),
        kind=OPENVSWITCH if switch else kind,
        absent=spec.get("ensure") == "absent",
        dhcp4=spec.get("dhcp4", False),
        dhcp6=spec.get("dhcp6", False),
        addresses=tuple(spec.get("addresses", ())),
        gateway4=spec.get("gateway4", ""),
        gateway6=spec.get("gateway6", ""),
        routes=tuple(Route(**route) for route in spec.get("routes", ())),
        dns_servers=tuple(dns.get("servers", ())),
        dns_search=tuple(dns.get("search", ())),
        mtu=spec.get("mtu"),
        uplink=spec.get("uplink", False),
        mac=spec.get("mac", "").lower(),
        match=Match(name=match.get("name", ""), mac=match.get("mac", "").lower(), path=match.get("path", "")),
        ports=tuple(spec.get("ports", ())),
        master=master,
        bridge=Bridge(spec.get("stp", False), spec.get("forward_delay", 0), spec.get("ageing")),
        bond=Bond(
            spec.get("mode", "active-backup"),
            spec.get("miimon", 100),
            spec.get("lacp_rate", ""),
            spec.get("hash_policy", ""),
            spec.get("primary", ""),
        ),
        link=spec.get("link", ""),
        vlan_id=spec.get("id", 0),
        switch=switch,
    )


def _ordered(found: Mapping[str, Interface]) -> Iterable[Interface]:
    """Puts what something stands on before it; a loop, which the rules refuse, is cut somewhere."""
    done: dict[str, Interface] = {}

    def add(one: Interface, above: frozenset[str]) -> None:
        for below in (*one.ports, one.link):
            if below in found and below not in above and below not in done:
                add(found[below], above | {below})
        done[one.name] = one

    for one in found.values():
        if one.name not in done:
            add(one, frozenset({one.name}))
    return done.values()


def load(pillar: Mapping[str, Any]) -> Profile:
    """Reads the profile from the merged pillar "network", which schema and rules have accepted.

    Ports and links that are declared nowhere are Ethernet cards of the host.
    """
    masters = {
        port: own_name(name, spec)
        for key in ("bonds", "bridges")
        for name, spec in pillar.get(key, {}).items()
        if spec.get("ensure") != "absent"
        for port in spec.get("ports", ())
    }
    found = {
        own_name(name, spec): _interface(name, kind, spec, masters.get(own_name(name, spec), ""))
        for key, kind in KINDS.items()
        for name, spec in pillar.get(key, {}).items()
    }
    below = [name for one in found.values() if not one.absent for name in (*one.ports, one.link) if name]
    for name in below:
        if name not in found:
            found[name] = Interface(name, "ethernet", declared=False, master=masters.get(name, ""))
    asked = pillar.get("confirm", {})
    return Profile(
        interfaces=tuple(_ordered(found)),
        backend=pillar.get("backend", "auto"),
        allow_uplink_change=pillar.get("allow_uplink_change", False),
        confirm=Confirm(
            window=asked.get("window", 120),
            successes=asked.get("successes", 3),
            masters=tuple(asked.get("masters", ())),
            ports=tuple(asked.get("ports") or Confirm.ports),
            beyond=tuple(asked.get("beyond", ())),
            checks=tuple(tuple(argv) for argv in asked.get("checks", ())),
        ),
    )


def stored(profile: Profile) -> dict[str, Any]:
    """Returns a profile as JSON, with all that the host has added to it."""
    return asdict(profile)


def restored(found: Mapping[str, Any]) -> Profile:
    """Reads what :func:`stored` has written."""

    def tuples(given: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}

    interfaces = tuple(
        Interface(
            **{
                **tuples(one),
                "routes": tuple(Route(**route) for route in one["routes"]),
                "match": Match(**one["match"]),
                "bridge": Bridge(**one["bridge"]),
                "bond": Bond(**one["bond"]),
            }
        )
        for one in found["interfaces"]
    )
    confirm = tuples(found["confirm"])
    confirm["checks"] = tuple(tuple(argv) for argv in confirm["checks"])
    return Profile(**{**found, "interfaces": interfaces, "confirm": Confirm(**confirm)})

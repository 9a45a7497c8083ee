"""What the profile wants of the database of Open vSwitch, and what keeps it from being had. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypervisor_network.backends.contract import Snapshot
from hypervisor_network.model import OPENVSWITCH, Interface, Profile

from . import runtime
from .switch import BRIDGE, EMPTY, INTERFACE, LEADS, PORT, Facts, Row, Rows, columns_of, differing, row_of


def plan(
    profile: Profile, previous: Profile | None, there: Facts, snapshot: Snapshot
) -> tuple[Rows, Rows, dict[str, list[str]], list[str]]:
    """Compares the profile with the database.

    Args:
        profile: with names of this host.
        previous: what was confirmed last.
        there: what the database holds.
        snapshot: the runtime.

    Returns:
        The rows that the profile speaks of, as they are and as they shall be; how they differ, by interface; and what
        keeps the change from being made.
    """
    switches = [one for one in profile.interfaces if one.kind == OPENVSWITCH]
    known = {one.switch: one for one in (previous.interfaces if previous else ()) if one.switch}
    after = _wanted(switches, known, there)
    before = Rows(
        {name: columns_of(there.bridges.get(name), BRIDGE) for name in after.bridges},
        {name: row_of(there.ports.get(name)) for name in after.ports},
    )
    lines: dict[str, list[str]] = {}
    wrong: list[str] = []
    for one in switches:
        rows = {name: row or before.ports[name] or {} for name, row in after.ports.items()}
        mine = {name for name, row in rows.items() if row.get("bridge") == one.switch}
        lines[one.name] = list(differing(before, after, {one.switch}, mine))
        wrong += _wrong(one, known.get(one.switch), there, snapshot)
        wrong += _kept(one, after, there) if one.absent else _held(one, after, there)
    wrong += _strangers(profile, after, there, snapshot)
    return before, after, {name: found for name, found in lines.items() if found}, wrong


def _wanted(switches: Sequence[Interface], known: Mapping[str, Interface], there: Facts) -> Rows:
    """Returns the rows as they shall be; ports that were declared before and are no longer, go."""
    after = Rows()
    for one in switches:
        after.bridges[one.switch] = None if one.absent else _bridge(one, there.bridges.get(one.switch))
        if not one.absent:
            after.ports.update({name: _port(one, name, there.ports.get(name)) for name in (one.name, *one.ports)})
    for one in switches:
        last = known.get(one.switch, one)
        for name in (one.name, *one.ports, last.name, *last.ports):
            held = there.ports.get(name)
            if name not in after.ports and name != one.switch and held and held["bridge"] == one.switch:
                after.ports[name] = None
    return after


def _map(value: Any) -> dict[str, str]:
    """Returns a map of the database."""
    return dict(value[1]) if isinstance(value, list) and value[:1] == ["map"] else {}


def _bridge(one: Interface, held: Mapping[str, Any] | None) -> Row:
    """Returns the columns of a bridge: as they are, but for those that the profile decides."""
    other = _map((held or {}).get("other_config"))
    decided: dict[str, str | None] = {
        "hwaddr": one.mac or None if one.name == one.switch else None,
        "stp-forward-delay": str(one.bridge.forward_delay) if one.bridge.stp else None,
        "mac-aging-time": str(one.bridge.ageing) if one.bridge.ageing is not None else None,
    }
    other = {**{key: value for key, value in other.items() if key not in decided}, **_given(decided)}
    wanted = {"stp_enable": one.bridge.stp, "other_config": ["map", sorted(map(list, other.items()))]}
    return {**(columns_of(held, BRIDGE) or {}), **wanted}


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    """Returns what is not None."""
    return {key: value for key, value in values.items() if value is not None}


def _port(one: Interface, name: str, held: Mapping[str, Any] | None) -> Row:
    """Returns a port: as it is on this bridge, but for what the profile decides."""
    here = held if held and held["bridge"] == one.switch else None
    interface = columns_of(here["interface"], INTERFACE) or {} if here else {}
    if name == one.name:
        interface |= {"type": "internal", "mtu_request": one.mtu if one.mtu is not None else EMPTY["set"]}
        # The bridge's own port has the bridge's address.
        interface |= {"mac": one.mac} if one.mac and name != one.switch else {}
    else:
        interface |= {"type": ""}
    return {"bridge": one.switch, "port": columns_of(here, PORT) or {}, "interface": interface}


def _wrong(one: Interface, last: Interface | None, there: Facts, snapshot: Snapshot) -> Iterator[str]:
    """Says what keeps a bridge from being made or removed, whatever its ports are."""
    if one.absent:
        if last is not None and last.name != one.name:
            yield f"{one.switch}: the host's own port on it is {last.name}; say so with host_port: {last.name}"
        row = there.bridges.get(one.switch) or {}
        leads = [name for name in LEADS if row.get(name, EMPTY["set"]) != EMPTY["set"]]
        if leads:
            yield f"{one.switch} has settings that no pillar has made ({', '.join(leads)}); take them out first"
        return
    for name in dict.fromkeys((one.switch, one.name)):
        link = runtime.link_of(snapshot, name)
        # A bridge of the kernel makes room for one of Open vSwitch with the same name.
        if link is not None and not there.holder(name) and runtime.kind(link) != "bridge":
            yield f"{one.switch}: this host has another interface {name} already"
        more = [str(other["ifname"]) for other in snapshot.links if other.get("master") == name]
        if more := sorted(set(more) - set(one.ports)):
            yield f"{name} is a bridge of the kernel with further ports ({', '.join(more)}); take them out first"


def _kept(one: Interface, after: Rows, there: Facts) -> Iterator[str]:
    """Says which ports of others a bridge that shall go still has."""
    more = [name for name, held in there.ports.items() if held["bridge"] == one.switch]
    more = sorted(name for name in more if name not in after.ports and name != one.switch)
    if more:
        yield f"{one.switch} has further ports ({', '.join(more)}); take them out in network:ovs:bridges first"


def _held(one: Interface, after: Rows, there: Facts) -> Iterator[str]:
    """Says which ports of a bridge belong to something else in Open vSwitch."""
    for name in (one.name, *one.ports):
        holder = there.holder(name)
        where = there.ports[holder]["bridge"] if holder else ""
        if holder and holder != name:
            yield f"{name} belongs to the port {holder} of the bridge {where} of Open vSwitch; take it out there first"
        elif holder and where != one.switch and after.bridges.get(where, {}) is not None:
            yield f"{name} is a port of the bridge {where} of Open vSwitch; take it out there first"


def _strangers(profile: Profile, after: Rows, there: Facts, snapshot: Snapshot) -> Iterator[str]:
    """Says which interfaces are declared as something else than what they are to Open vSwitch."""
    for one in profile.interfaces:
        holder = there.holder(one.name)
        if not holder or one.kind == OPENVSWITCH or profile.kind_above(one.name) == OPENVSWITCH:
            continue
        bridge = there.ports[holder]["bridge"]
        goes = after.bridges.get(bridge, {}) is None or after.ports.get(holder, {}) is None
        if one.kind != "ethernet":
            if runtime.kind(runtime.link_of(snapshot, one.name) or {}) == OPENVSWITCH:
                yield f"{one.name} is an interface of Open vSwitch; declare it with switch: openvswitch"
        elif not goes and (one.declared or one.master) and there.ports[holder]["interface"].get("type") != "internal":
            yield f"{one.name} is a port of the bridge {bridge} of Open vSwitch; take it out there first"

"""What Open vSwitch must be told so that its database holds declared bridges and ports.

Pure functions: :func:`facts_of` reads what ``ovs-vsctl`` prints as JSON, :func:`plan` compares it with a declaration
and returns the words of one transaction. Only what is declared is compared; what is not, stays. Keys of IPsec
never become words of a command: they are returned apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# What is read: the tables' columns that are compared, and what ties the rows together.
_READ = {
    "Open_vSwitch": ("other_config",),
    "Bridge": (
        *("name", "ports", "datapath_type", "fail_mode", "stp_enable", "rstp_enable", "mcast_snooping_enable"),
        *("other_config", "external_ids"),
    ),
    "Port": (
        *("_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode", "bond_mode", "lacp", "protected"),
        *("other_config", "external_ids"),
    ),
    "Interface": ("_uuid", "name", "type", "options", "mac", "mtu_request", "other_config", "external_ids", "error"),
}
_QUESTION = [
    word
    for table, columns in _READ.items()
    for word in (*(["--"] if table != "Open_vSwitch" else []), f"--columns={','.join(columns)}", "list", table)
]
# Keys of the pillar that are columns of another name.
_BRIDGE = {"stp": "stp_enable", "rstp": "rstp_enable", "mcast_snooping": "mcast_snooping_enable"}
_BRIDGE_PLAIN = ("datapath_type", "fail_mode")
_PORT_PLAIN = ("tag", "trunks", "vlan_mode", "bond_mode", "lacp", "protected")
_TUNNEL = {"remote": "remote_ip", "local": "local_ip", "key": "key", "peer": "peer"}
_MAPS = ("other_config", "external_ids")
TUNNELS = ("gre", "vxlan", "geneve")
# Where a host's certificate for tunnels is. strongSwan may read nothing beside its own folder where AppArmor watches.
IDENTITY = {
    "certificate": "/etc/ipsec.d/certs/hypervisor-tunnel.pem",
    "private_key": "/etc/ipsec.d/private/hypervisor-tunnel.pem",
    "ca_cert": "/etc/ipsec.d/cacerts/hypervisor-tunnel.pem",
}
# Columns whose keys have another name in the pillar, and those that may change where the host's addresses are.
_KEYS = {**{column: key for key, column in _BRIDGE.items()}, "mtu_request": "mtu", 'other_config:"hwaddr"': "mac"}
_HARMLESS = ("external_ids", "mcast_snooping_enable")
# A column, and of a map the key, at the beginning of an assignment.
_COLUMN = re.compile(r'(?P<column>\w+)(?P<entry>:"(?:[^"\\]|\\.)*")?')
_SYSTEM = (None, "", "system")
_UNSET: tuple[Any, ...] = (None, "", [])
_Words = list[list[str]]


class Facts(NamedTuple):
    """What the database holds.

    Attributes:
        settings: other_config of the switch itself.
        bridges: columns by name.
        ports: columns by name, with ``bridge`` and ``members``, the names of its interfaces.
        interfaces: columns by name.
    """

    settings: dict[str, str]
    bridges: dict[str, dict[str, Any]]
    ports: dict[str, dict[str, Any]]
    interfaces: dict[str, dict[str, Any]]


class Nic(NamedTuple):
    """An interface of the host: its addresses of global scope, and whose port it is (empty: nobody's)."""

    addresses: tuple[str, ...] = ()
    master: str = ""


class Plan(NamedTuple):
    """What has to be done.

    Attributes:
        commands: commands of ovs-vsctl, for one transaction.
        secrets: the key of each interface that has another or none.
        changes: for Salt, by ``bridge[:port[:column]]``.
        errors: pairs of a path below ``bridges`` and what keeps it from being done.
    """

    commands: _Words
    secrets: dict[str, str]
    changes: dict[str, dict[str, Any]]
    errors: list[tuple[str, str]]


def nothing() -> Facts:
    """Returns what the database of a host without Open vSwitch holds."""
    return Facts({}, {}, {}, {})


def question() -> list[str]:
    """Returns the words with which ovs-vsctl is asked for what :func:`facts_of` reads."""
    return list(_QUESTION)


def facts_of(text: str) -> Facts:
    """Reads what ``ovs-vsctl --format=json`` with the words of :func:`question` prints: one line for each table.

    Raises:
        ValueError: it is something else.
    """
    tables = [json.loads(line) for line in text.splitlines() if line.strip()]
    if len(tables) != len(_READ):
        raise ValueError(f"ovs-vsctl printed {len(tables)} tables instead of {len(_READ)}")
    rows = [
        [dict(zip(table["headings"], map(_value, row), strict=True)) for row in table["data"]] for table in tables
    ]
    names = {row["_uuid"]: row["name"] for row in (*rows[2], *rows[3])}
    bridge_of = {port: row["name"] for row in rows[1] for port in _list(row["ports"])}
    for row in rows[2]:
        row["bridge"] = bridge_of.get(row["_uuid"], "")
        row["members"] = tuple(sorted(names[one] for one in _list(row["interfaces"])))
    return Facts(
        settings=rows[0][0]["other_config"] if rows[0] else {},
        bridges={row["name"]: row for row in rows[1]},
        ports={row["name"]: row for row in rows[2]},
        interfaces={row["name"]: row for row in rows[3]},
    )


def _value(value: Any) -> Any:
    """Translates a value of OVSDB's JSON: sets become lists, maps dictionaries, an empty set None."""
    if isinstance(value, list) and len(value) == 2 and value[0] in {"set", "map", "uuid"}:
        kind, content = value
        if kind == "uuid":
            return content
        if kind == "map":
            return dict(content)
        return [_value(one) for one in content] or None
    return value


def _list(value: Any) -> list[Any]:
    """Returns a set's members: one member alone stands without its set."""
    return [] if value is None else value if isinstance(value, list) else [value]


def with_identity(settings: Mapping[str, Any], auth: str, facts: Facts) -> dict[str, Any]:
    """Returns settings of the switch with where this host's certificate is, or without.

    Args:
        settings: other_config of the switch itself, as declared.
        auth: ``certificate``; ``psk``, for which openvswitch-ipsec wants no certificate to be named; or empty where no
            tunnel is encrypted, and what is named stays.
        facts: what the database holds.
    """
    if not auth:
        return dict(settings)
    if auth == "certificate":
        return {**settings, **IDENTITY}
    ours = {key: None for key, path in IDENTITY.items() if facts.settings.get(key) == path}
    return {**ours, **settings}


def nics_of(text: str) -> dict[str, Nic]:
    """Reads what ``ip -json address show`` prints."""
    found = {}
    for link in json.loads(text or "[]"):
        addresses = tuple(
            f"{one['local']}/{one['prefixlen']}" for one in link.get("addr_info", ()) if one.get("scope") == "global"
        )
        found[link["ifname"]] = Nic(addresses, link.get("master", ""))
    return found


def plan(
    bridges: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    facts: Facts,
    nics: Mapping[str, Nic],
    held: Mapping[str, Sequence[str]] | None = None,
    carrying: Collection[str] = (),
) -> Plan:
    """Compares a declaration with what is there.

    Args:
        bridges: bridges as in the pillar ``network:ovs:bridges``, tunnels of meshes among their ports; the key of a
            tunnel with IPsec stands in its ``psk``. One with ``if_there`` is not made.
        settings: other_config of the switch itself; None takes a key out.
        facts: what the database holds.
        nics: the host's interfaces.
        held: bridges on which the host has its own addresses, with the ports that these need: they stay as they are.
        carrying: devices that carry the connection to the master. Where one is an internal port of a bridge, the
            bridge with that port and its cards stays as it is; only further ports may change.

    Returns:
        What has to be done. With errors nothing must be done.
    """
    todo = Plan([], {}, {}, [])
    _compare(todo, ("Open_vSwitch", ".", "settings"), {"other_config": dict(facts.settings)}, _keyed(
        {"other_config": settings}
    ))
    gone = _absent(bridges, facts)
    todo.errors.extend(_kept(gone, held or {}))
    for bridge, port in gone:
        todo.commands.append(["--if-exists", "del-port", bridge, port] if port else ["--if-exists", "del-br", bridge])
        todo.changes[f"{bridge}:{port}" if port else bridge] = {"old": "present", "new": "absent"}
    for name, spec in bridges.items():
        if spec.get("ensure") != "absent":
            _bridge(todo, name, spec, facts, nics, gone)
    known = {path for path, _ in todo.errors}
    cutting = dict.fromkeys(_cutting(todo.commands, facts, held or {}, carrying))
    todo.errors.extend(error for error in cutting if error[0] not in known)
    return todo


def _absent(bridges: Mapping[str, Mapping[str, Any]], facts: Facts) -> list[tuple[str, str]]:
    """Lists what is there and shall not be: pairs of a bridge and a port, or an empty text for the bridge itself."""
    found = []
    for name, spec in bridges.items():
        if spec.get("ensure") == "absent":
            if name in facts.bridges:
                found.append((name, ""))
            continue
        for port, one in (spec.get("ports") or {}).items():
            if one.get("ensure") == "absent" and facts.ports.get(port, {}).get("bridge") == name:
                found.append((name, port))
    return found


def going(bridges: Mapping[str, Mapping[str, Any]], facts: Facts) -> set[str]:
    """Returns the ports that the switch has and a declaration takes out, those of bridges that go among them."""
    gone = _absent(bridges, facts)
    return {port for port, row in facts.ports.items() if {(row["bridge"], port), (row["bridge"], "")} & set(gone)}


def _kept(gone: Sequence[tuple[str, str]], held: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yields what must not go: the host would lose its addresses, and nothing would undo that."""
    for bridge, port in gone:
        if bridge in held and (not port or port in held[bridge]):
            path = f"{bridge}:ports:{port}" if port else bridge
            yield path, f"the host has its addresses on it; take it out of network:bridges:{bridge} first"


def _cutting(
    commands: _Words, facts: Facts, held: Mapping[str, Sequence[str]], carrying: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yields what would change below the host's own addresses, where nothing would undo it."""
    for command in commands:
        bridge, port, keys = _subject(command, facts)
        own = [one for one in carrying if _internal(one, bridge, facts)]
        kept = [*held.get(bridge, ()), *own]
        if bridge in held or own:
            kept.append(bridge)
        if own and bridge not in held:
            kept += [name for name, row in facts.ports.items() if row["bridge"] == bridge and _cards(row, facts)]
        if not kept or (port and port not in kept):
            continue
        path = f"{bridge}:ports:{port}" if port else bridge
        text = uplink_text(own[0] if own else "", bridge, held)
        yield from ((f"{path}:{key}", text) for key in keys or ())
        if keys is None:
            yield path, text


def uplink_text(port: str, bridge: str, held: Collection[str]) -> str:
    """Returns why what carries the host's own addresses is not changed below network:ovs.

    Args:
        port: the internal port that carries the connection to the master.
        bridge: its bridge; empty where that is not known.
        held: bridges of network:bridges on which the host has its own addresses.
    """
    if bridge in held:
        return f"the host has its addresses on {bridge}; network:bridges:{bridge} decides it"
    where = f"{port} on the bridge {bridge}" if bridge else port
    allowed = f"network:bridges:{bridge or 'NAME'}:switch: openvswitch"
    return f"{where} carries the connection to the master; such a bridge is declared as {allowed}"


def unmoved(ports: Mapping[str, str], held: Mapping[str, Sequence[str]], carrying: Collection[str]) -> dict[str, str]:
    """Returns why internal ports keep the addresses that they have.

    Args:
        ports: the bridge of each port whose addresses would change; empty where it is not known.
        held: as for :func:`plan`.
        carrying: as for :func:`plan`.

    Returns:
        The reason by port; none for a port that may have others.
    """
    owners = {port: bridge for bridge, names in held.items() for port in names}
    return {
        port: uplink_text(port, owners.get(port, bridge), [owners[port]] if port in owners else [])
        for port, bridge in ports.items()
        if port in carrying or port in owners
    }


def _internal(port: str, bridge: str, facts: Facts) -> bool:
    """Says whether a device is an internal port of a bridge."""
    there = bool(facts.ports.get(port, {}).get("bridge") == bridge)
    return there and (port == bridge or facts.interfaces.get(port, {}).get("type") == "internal")


def _cards(row: Mapping[str, Any], facts: Facts) -> bool:
    """Says whether a port is a card of the host, or a bond of cards."""
    return all(facts.interfaces.get(one, {}).get("type") in _SYSTEM for one in row["members"])


def _subject(command: Sequence[str], facts: Facts) -> tuple[str, str, list[str] | None]:
    """Returns the bridge and the port that a command changes, or empty texts for what is made, and the pillar's keys.

    The port is empty for a bridge itself; there are no keys (None) where it is taken away or other cards become its
    own.
    """
    verb, *words = [word for word in command if not word.startswith("--")]
    if verb in {"del-br", "del-port"}:
        return words[0], (words[1] if verb == "del-port" else ""), None
    if verb in {"add-bond-iface", "del-bond-iface"}:
        return facts.ports[words[0]]["bridge"], words[0], None
    if verb not in {"set", "clear", "remove"} or words[0] == "Open_vSwitch":
        return "", "", []
    table, name, *rest = words
    columns = rest if verb == "set" else [":".join(rest)]
    matches = [match for one in columns if (match := _COLUMN.match(one))]
    keys = [
        _KEYS.get(f"{match['column']}{match['entry'] or ''}", _KEYS.get(match["column"], match["column"]))
        for match in matches
        if table != "Bridge" or match["column"] not in _HARMLESS
    ]
    if table == "Bridge":
        return (name, "", keys) if name in facts.bridges else ("", "", [])
    return facts.ports.get(name, {}).get("bridge", ""), name, keys


def _bridge(
    todo: Plan,
    name: str,
    spec: Mapping[str, Any],
    facts: Facts,
    nics: Mapping[str, Nic],
    gone: Sequence[tuple[str, str]],
) -> None:
    """Plans a bridge and its ports."""
    have = facts.bridges.get(name)
    if have is None:
        if spec.get("if_there"):
            return
        if name in nics and name not in facts.interfaces:
            todo.errors.append((name, f"{name} is an interface of the host already"))
            return
        todo.commands.append(["--may-exist", "add-br", name])
        todo.changes[name] = {"old": None, "new": "present"}
    _compare(todo, ("Bridge", name, name), have or {}, dict(_bridge_columns(spec)))
    for port, one in (spec.get("ports") or {}).items():
        if one.get("ensure") != "absent":
            _port(todo, (name, port), one, facts, nics, gone)


def _port(
    todo: Plan,
    where: tuple[str, str],
    spec: Mapping[str, Any],
    facts: Facts,
    nics: Mapping[str, Nic],
    gone: Sequence[tuple[str, str]],
) -> None:
    """Plans a port and its interfaces."""
    bridge, port = where
    path, label = f"{bridge}:ports:{port}", f"{bridge}:{port}"
    members = tuple(sorted(spec.get("interfaces") or [port]))
    bond = bool(spec.get("interfaces"))
    have = facts.ports.get(port)
    if have is not None and (have["bridge"] != bridge or (bridge, "") in gone):
        if (have["bridge"], port) in gone or (have["bridge"], "") in gone:
            have = None
        else:
            text = f"{port} is a port of the bridge {have['bridge']}; take it out there first (ensure: absent)"
            todo.errors.append((path, text))
            return
    if have is not None and have["members"] != members and not (bond and len(have["members"]) > 1):
        # A single interface becomes a bond, or the other way round: another port.
        todo.commands.append(["del-port", bridge, port])
        todo.changes[label] = {"old": list(have["members"]), "new": list(members)}
        have = None
    known = have["members"] if have else ()
    kind = spec.get("type", "system")
    if kind == "system" and port != bridge:
        wrong = list(_unfit([one for one in members if one not in known], port, facts, nics, gone))
        todo.errors.extend((path, text) for text in wrong)
        if wrong:
            return
    if have is None and port != bridge:
        command = ["--may-exist", "add-bond", bridge, port, *members] if bond else ["--may-exist", "add-port", *where]
        todo.commands.append(command)
        todo.changes.setdefault(label, {"old": None, "new": list(members) if bond else "present"})
    elif have is not None and known != members:
        todo.commands.extend(["--may-exist", "add-bond-iface", port, one] for one in members if one not in known)
        todo.commands.extend(["--if-exists", "del-bond-iface", port, one] for one in known if one not in members)
        todo.changes[label] = {"old": list(known), "new": list(members)}
    _compare(todo, ("Port", port, label), have or {}, dict(_port_columns(spec)))
    if not bond:
        row = facts.interfaces.get(port, {}) if have or port == bridge else {}
        _compare(todo, ("Interface", port, label), row, dict(_interface_columns(spec)))
        _secret(todo, label, port, spec, row)


def _unfit(
    members: Sequence[str], port: str, facts: Facts, nics: Mapping[str, Nic], gone: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Yields why interfaces of the host cannot become members of a port."""
    for one in members:
        holder = next((name for name, row in facts.ports.items() if one in row["members"] and name != port), "")
        if holder and (facts.ports[holder]["bridge"], holder) not in gone:
            yield f"{one} belongs to the port {holder} of the bridge {facts.ports[holder]['bridge']}"
        elif one not in nics:
            there = ", ".join(sorted(set(nics) - {"lo"} - set(facts.interfaces))) or "none"
            yield f"there is no interface {one} on this host; there are: {there}"
        elif nics[one].master and nics[one].master != "ovs-system":
            yield f"{one} is a port of {nics[one].master}"
        elif nics[one].addresses:
            held = ", ".join(nics[one].addresses)
            yield f"{one} has the addresses {held}, which a port of a switch cannot use; give them to an internal port"


def _secret(todo: Plan, label: str, port: str, spec: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Plans the key of a tunnel."""
    if spec.get("type") not in TUNNELS:
        return
    held = (row.get("options") or {}).get("psk")
    wanted = spec.get("psk")
    if wanted is None:
        if held is not None:
            todo.commands.append(["remove", "Interface", port, "options", "psk"])
            todo.changes[f"{label}:psk"] = {"old": "a key", "new": None}
    elif wanted != held:
        todo.secrets[port] = wanted
        todo.changes[f"{label}:psk"] = {"old": None if held is None else "another key", "new": "the declared key"}


def _keyed(maps: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Returns maps' entries as ``column:key``."""
    return {f"{column}:{key}": value for column, entries in maps.items() for key, value in (entries or {}).items()}


def _bridge_columns(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the columns that a bridge declares."""
    for key in _BRIDGE_PLAIN:
        if key in spec:
            yield key, spec[key]
    for key, column in _BRIDGE.items():
        if key in spec:
            yield column, spec[key]
    if "mac" in spec:
        yield "other_config:hwaddr", spec["mac"].lower()
    yield from _keyed({column: spec.get(column) for column in _MAPS}).items()


def _port_columns(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the columns that a port declares."""
    for key in _PORT_PLAIN:
        if key in spec:
            yield key, sorted(spec[key] or []) if key == "trunks" else spec[key]
    yield from _keyed({column: spec.get(column) for column in _MAPS}).items()


def _interface_columns(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the columns that a port of a single interface declares for that."""
    if "type" in spec:
        yield "type", spec["type"]
    if "mac" in spec:
        yield "mac", spec["mac"].lower()
    if "mtu" in spec:
        yield "mtu_request", spec["mtu"]
    for key, option in _TUNNEL.items():
        if key in spec:
            yield f"options:{option}", spec[key]
    if spec.get("type") in TUNNELS:
        # A name that stays makes openvswitch-ipsec refuse a key, and encrypt a tunnel that shall be plain.
        yield "options:remote_name", spec.get("remote_name")
    yield from _keyed({"options": spec.get("options")}).items()


def _compare(todo: Plan, which: tuple[str, str, str], have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Plans what a row lacks; ``which`` is its table, its name and what its changes are called."""
    table, name, label = which
    assignments, others = [], []
    for key, value in wanted.items():
        column, _, entry = key.partition(":")
        old = (have.get(column) or {}).get(entry) if entry else have.get(column)
        if _same(column, old, value, bool(entry)):
            continue
        todo.changes[f"{label}:{key}"] = {"old": old, "new": value}
        if value not in _UNSET:
            assignments.append(f"{column}:{_quoted(entry)}={_quoted(value)}" if entry else f"{column}={_word(value)}")
        elif entry:
            others.append(["remove", table, name, column, _quoted(entry)])
        else:
            others.append(["clear", table, name, column])
    if assignments:
        todo.commands.append(["set", table, name, *assignments])
    todo.commands.extend(others)


def _same(column: str, old: Any, new: Any, is_entry: bool) -> bool:
    """Says whether a column, or an entry of a map, has a value already."""
    if is_entry:
        return bool(old == (None if new is None else _text(new)))
    if column in {"type", "datapath_type"}:
        return bool((old or "system") == (new or "system"))
    if column == "trunks":
        return bool(sorted(_list(old)) == (new or []))
    if column == "protected":
        return bool(old) == bool(new)
    if old in _UNSET and new in _UNSET:
        return True
    return bool(old == new)


def _text(value: Any) -> str:
    """Returns a value as an entry of a map holds it, which is text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(value: Any) -> str:
    """Returns a text so that ovs-vsctl takes it for one, whatever is in it."""
    return json.dumps(_text(value), ensure_ascii=False)


def _word(value: Any) -> str:
    """Returns a column's value in the words of ovs-vsctl."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return _quoted(value) if isinstance(value, str) else _text(value)

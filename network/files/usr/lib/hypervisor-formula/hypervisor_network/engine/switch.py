"""Bridges of Open vSwitch on which the host has its own addresses: rows of a database, which a change alters.

The database outlives a reboot, so undoing a change means putting its rows back: through the database's server while
that runs, and in its file at boot, before the server starts. Only rows that the profile speaks of are touched: ports
of guests and tunnels on the same bridge stay, and so does everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypervisor_network.backends.contract import BackendError, Snapshot
from hypervisor_network.model import OPENVSWITCH, Profile

from . import runtime
from .host import LocalHost

SOCKET = "/run/openvswitch/db.sock"
# Where distributions keep the database; the first may be a link to the second.
FILES = ("/etc/openvswitch/conf.db", "/var/lib/openvswitch/conf.db")
_DATABASE = "Open_vSwitch"
_PATIENCE = 20  # seconds for the database
_TAKEN_UP = 10.0  # seconds in which the switch must have done what the database says
# Columns that say how something is set up, and not how it is, or that lead to other tables.
BRIDGE = (
    *("datapath_type", "fail_mode", "stp_enable", "rstp_enable", "mcast_snooping_enable", "protocols"),
    *("other_config", "external_ids"),
)
PORT = ("tag", "trunks", "vlan_mode", "protected", "other_config", "external_ids")
INTERFACE = (
    *("type", "mac", "mtu_request", "ofport_request", "options", "other_config", "external_ids"),
    *("ingress_policing_rate", "ingress_policing_burst"),
)
# What a bridge may lead to and would lose with its row.
LEADS = ("controller", "mirrors", "netflow", "sflow", "ipfix", "auto_attach")
_READ = {
    "Bridge": ("_uuid", "name", "ports", *BRIDGE, *LEADS),
    "Port": ("_uuid", "name", "interfaces", *PORT),
    "Interface": ("_uuid", "name", "error", *INTERFACE),
}
EMPTY: dict[str, Any] = {"set": ["set", []], "map": ["map", []]}
Row = dict[str, Any]
Json = list[Any]


@dataclass(frozen=True)
class Facts:
    """What the database holds.

    Attributes:
        bridges: rows by name.
        ports: rows by name, with ``bridge``, ``members`` (names of its interfaces) and ``interface``, its only one.
        errors: what the switch says of interfaces that it cannot use, by name.
    """

    bridges: dict[str, Row] = field(default_factory=dict)
    ports: dict[str, Row] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def holder(self, name: str) -> str:
        """Returns the port that an interface belongs to; empty for none."""
        return next((port for port, row in self.ports.items() if name in row["members"]), "")


@dataclass(frozen=True)
class Rows:
    """Rows as they are or shall be, as JSON; None for what is not there.

    Attributes:
        bridges: columns by name.
        ports: ``bridge``, and the columns of ``port`` and ``interface``, by name.
    """

    bridges: dict[str, Row | None] = field(default_factory=dict)
    ports: dict[str, Row | None] = field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {"bridges": self.bridges, "ports": self.ports}

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Rows:
        """Reads what :meth:`stored` has written; nothing for a change without Open vSwitch."""
        return cls(dict(found.get("bridges", {})), dict(found.get("ports", {})))

    def __bool__(self) -> bool:
        """Says whether there is anything to do with Open vSwitch."""
        return bool(self.bridges or self.ports)


# ---- the database ----


def involved(*profiles: Profile | None, snapshot: Snapshot) -> bool:
    """Says whether the database has to be asked: it is spoken of, or the host has an interface of it."""
    if any(one.kind == OPENVSWITCH for profile in profiles if profile for one in profile.interfaces):
        return True
    return any(runtime.kind(link) == OPENVSWITCH for link in snapshot.links)


def runs(host: LocalHost) -> bool:
    """Says whether the database's server answers."""
    if not host.path(SOCKET).exists():
        return False
    return host.run(["ovsdb-client", f"--timeout={_PATIENCE}", "list-dbs", f"unix:{SOCKET}"]).code == 0


def known(host: LocalHost) -> bool:
    """Says whether the database can be asked: its server runs, or its file is there with the program that reads it."""
    return runs(host) or any(host.path(name).exists() for name in FILES)


def _ask(host: LocalHost, operations: Sequence[Row]) -> list[Row]:
    """Has operations of RFC 7047 carried out in one transaction: by the server, or in the file where none runs.

    Raises:
        BackendError: there is no database, or it refuses.
    """
    asked = json.dumps([_DATABASE, *operations])
    done = None
    if host.path(SOCKET).exists():
        done = host.run(["ovsdb-client", f"--timeout={_PATIENCE}", "transact", f"unix:{SOCKET}", asked], _PATIENCE + 5)
    if done is None or (done.code and not runs(host)):
        file = next((name for name in FILES if host.path(name).exists()), "")
        if not file:
            raise BackendError("Open vSwitch does not run on this host, and there is no database of it")
        # It refuses a file that a server has opened meanwhile.
        done = host.run(["ovsdb-tool", "transact", file, asked], _PATIENCE)
    if done.code:
        raise BackendError(f"the database of Open vSwitch: {(done.err or done.out).strip() or done.code}")
    try:
        results = json.loads(done.out)
    except ValueError:
        raise BackendError(f"the database of Open vSwitch answers {done.out.strip()[:200]!r}") from None
    wrong = [one for one in results if isinstance(one, dict) and one.get("error")]
    if wrong:
        raise BackendError(f"the database of Open vSwitch: {wrong[0].get('details') or wrong[0]['error']}")
    return [one or {} for one in results]


def facts(host: LocalHost) -> Facts:
    """Returns what the database holds.

    Raises:
        BackendError: it cannot be asked.
    """
    selects = [{"op": "select", "table": table, "where": [], "columns": [*names]} for table, names in _READ.items()]
    bridges, ports, interfaces = (one.get("rows", []) for one in _ask(host, selects))
    by_id = {_uuids(row["_uuid"])[0]: row for row in (*ports, *interfaces)}
    found = Facts({row["name"]: row for row in bridges})
    for bridge in bridges:
        for port in filter(None, (by_id.get(one) for one in _uuids(bridge["ports"]))):
            inside = [by_id[one] for one in _uuids(port["interfaces"]) if one in by_id]
            found.ports[port["name"]] = {
                **port,
                "bridge": bridge["name"],
                "members": [one["name"] for one in inside],
                "interface": inside[0] if len(inside) == 1 else {},
            }
    found.errors.update({row["name"]: row["error"] for row in interfaces if isinstance(row.get("error"), str)})
    return found


def _uuids(value: Any) -> list[str]:
    """Returns the rows that a column leads to: one alone stands without its set."""
    if isinstance(value, list) and value[:1] == ["set"]:
        return [str(one[1]) for one in value[1]]
    return [str(value[1])]


# ---- rows ----


def columns_of(row: Mapping[str, Any] | None, names: Sequence[str]) -> Row | None:
    """Returns some columns of a row; None without one."""
    return None if row is None else {name: row[name] for name in names if name in row}


def row_of(held: Mapping[str, Any] | None) -> Row | None:
    """Returns a port as it is."""
    if held is None:
        return None
    return {
        "bridge": held["bridge"],
        "port": columns_of(held, PORT),
        "interface": columns_of(held["interface"], INTERFACE),
    }


def same(one: Any, other: Any) -> bool:
    """Says whether two values of the database are equal, whatever the order of a set or map."""
    def plain(value: Any) -> Any:
        if isinstance(value, list) and value[:1] in (["set"], ["map"]):
            inside = sorted(value[1], key=json.dumps)
            return inside[0] if value[0] == "set" and len(inside) == 1 else [value[0], inside]
        return value

    return bool(plain(one) == plain(other))


def differing(now: Rows, wanted: Rows, bridges: set[str], ports: set[str]) -> Iterator[str]:
    """Says how rows differ, in the order in which they are wanted."""
    for name, row in wanted.bridges.items():
        if name in bridges:
            yield from _one(name, now.bridges.get(name), row)
    for name, port in wanted.ports.items():
        have = now.ports.get(name)
        if name not in ports:
            continue
        if port is None or have is None or have["bridge"] != port["bridge"]:
            if (port is None) != (have is None) or (port and have):
                held, place = (one["bridge"] if one else "nothing" for one in (have, port))
                yield f"{name} is a port of {held} instead of {place} in Open vSwitch"
        else:
            for part in ("port", "interface"):
                yield from _one(name, have[part], port[part])


def _one(name: str, have: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> Iterator[str]:
    """Says how the columns of one row differ."""
    if wanted is None or have is None:
        if (wanted is None) != (have is None):
            yield f"{name} is {'not ' if have is None else 'still '}in the database of Open vSwitch"
        return
    for column, value in wanted.items():
        if not same(have.get(column), value):
            yield f"{name} has {column} {_told(have.get(column))} instead of {_told(value)} in Open vSwitch"


def _told(value: Any) -> str:
    """Shows a value to a person."""
    if isinstance(value, list) and value[:1] == ["map"]:
        return " ".join(f"{key}={one}" for key, one in value[1]) or "nothing"
    if isinstance(value, list) and value[:1] == ["set"]:
        return " ".join(map(str, value[1])) or "nothing"
    return "nothing" if value in {None, ""} else str(value)


# ---- making it so ----


def lacking(host: LocalHost, wanted: Rows) -> list[str]:
    """Says how the database differs from wanted rows; one sentence without a full stop each.

    Raises:
        BackendError: it cannot be asked.
    """
    if not wanted:
        return []
    there = facts(host) if known(host) else Facts()
    now = Rows(
        {name: columns_of(there.bridges.get(name), BRIDGE) for name in wanted.bridges},
        {name: row_of(there.ports.get(name)) for name in wanted.ports},
    )
    return list(differing(now, wanted, set(wanted.bridges), set(wanted.ports)))


def put(host: LocalHost, wanted: Rows) -> None:
    """Makes rows what they shall be, on disk, in one transaction; and waits until a switch that runs has taken it up.

    Raises:
        BackendError: that was not possible.
    """
    if not wanted:
        return
    operations = list(_operations(wanted, facts(host) if known(host) else Facts()))
    if operations:
        _ask(host, [*operations, *_closing()])
    if runs(host):
        _awaited(host, wanted)


def _closing() -> list[Row]:
    """Returns how a transaction ends: the switch is told, and the disk has it when the answer comes."""
    told = {"op": "mutate", "table": _DATABASE, "where": [], "mutations": [["next_cfg", "+=", 1]]}
    return [told, {"op": "comment", "comment": "network-profile"}, {"op": "commit", "durable": True}]


def _operations(wanted: Rows, there: Facts) -> Iterator[Row]:
    """Returns the operations that make rows what they shall be. Pure."""
    gone = {name for name, row in wanted.bridges.items() if row is None}
    made = {name: row for name, row in wanted.bridges.items() if row is not None and name not in there.bridges}
    for name in sorted(gone & set(there.bridges)):
        yield _mutated(_DATABASE, [], "bridges", "delete", there.bridges[name]["_uuid"])
    yield from _leaving(wanted, there, gone)
    for name, row in wanted.ports.items():
        held = there.ports.get(name)
        if row is None:
            continue
        if held and held["bridge"] == row["bridge"]:
            yield from _updated("Port", name, held, row["port"])
            yield from _updated("Interface", name, held["interface"], row["interface"])
        elif row["bridge"] not in made:
            yield from _inserted(name, row)
            yield _mutated("Bridge", [["name", "==", row["bridge"]]], "ports", "insert", _named(name))
    for name, row in wanted.bridges.items():
        if row is not None and name not in made:
            yield from _updated("Bridge", name, there.bridges[name], row)
    for name, row in made.items():
        yield from _made(name, row, wanted.ports)


def _leaving(wanted: Rows, there: Facts, gone: set[str]) -> Iterator[Row]:
    """Returns the operations that take ports out of their bridges; a bridge's own port goes with the bridge alone."""
    for name, row in wanted.ports.items():
        held = there.ports.get(name)
        if held and held["bridge"] not in {name, *gone} and (row is None or row["bridge"] != held["bridge"]):
            yield _mutated("Bridge", [["name", "==", held["bridge"]]], "ports", "delete", held["_uuid"])


def _made(name: str, row: Row, ports: Mapping[str, Row | None]) -> Iterator[Row]:
    """Returns the operations that make a bridge with its ports."""
    own = {"bridge": name, "port": {}, "interface": {"type": "internal"}}
    inside = {port: one for port, one in {name: own, **ports}.items() if one and one["bridge"] == name}
    for port, one in inside.items():
        yield from _inserted(port, one)
    columns = {**row, "name": name, "ports": ["set", [_named(port) for port in inside]]}
    yield {"op": "insert", "table": "Bridge", "row": columns, "uuid-name": _named(name, "bridge")[1]}
    yield _mutated(_DATABASE, [], "bridges", "insert", _named(name, "bridge"))


def _named(name: str, what: str = "port") -> Json:
    """Returns how a row that is about to be made is called in the same transaction: letters, digits and _ alone."""
    return ["named-uuid", f"{what}_{name.encode().hex()}"]


def _mutated(table: str, where: Json, column: str, how: str, row: Json) -> Row:
    """Returns the operation that takes a row into a column of others, or out of it."""
    return {"op": "mutate", "table": table, "where": where, "mutations": [[column, how, ["set", [row]]]]}


def _inserted(name: str, row: Mapping[str, Any]) -> Iterator[Row]:
    """Returns the operations that make a port with its interface."""
    interface = _named(name, "interface")
    yield {"op": "insert", "table": "Interface", "row": {**row["interface"], "name": name}, "uuid-name": interface[1]}
    port = {**row["port"], "name": name, "interfaces": interface}
    yield {"op": "insert", "table": "Port", "row": port, "uuid-name": _named(name)[1]}


def _updated(table: str, name: str, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Row]:
    """Returns the operation that sets what differs in a row."""
    columns = {key: value for key, value in wanted.items() if not same(have.get(key), value)}
    if columns:
        yield {"op": "update", "table": table, "where": [["name", "==", name]], "row": columns}


def _awaited(host: LocalHost, wanted: Rows) -> None:
    """Waits until the kernel has what the database says.

    Raises:
        BackendError: the switch has not taken it up, with its own words.
    """
    end = host.now() + _TAKEN_UP
    while True:
        links = {str(one["ifname"]): one for one in host.ip("-d", "link", "show")}
        missing = list(_behind(wanted, links))
        if not missing:
            return
        if host.now() >= end:
            said = facts(host).errors
            told = [f"{name}: {said[name]}" for name in missing if name in said]
            raise BackendError(f"Open vSwitch has not taken up {', '.join(missing)}" + "".join(f"; {x}" for x in told))
        host.sleep(0.1)


def _behind(wanted: Rows, links: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Names what the kernel does not have as the database says."""
    for name, row in wanted.bridges.items():
        is_there = runtime.kind(links.get(name, {})) == OPENVSWITCH
        if is_there != (row is not None):
            yield name
    for name, port in wanted.ports.items():
        link = links.get(name, {})
        if port is None:
            internal = runtime.kind(link) == OPENVSWITCH and name not in wanted.bridges
            behind = internal or link.get("master") == runtime.DATAPATH
        elif port["interface"].get("type") == "internal":
            behind = runtime.kind(link) != OPENVSWITCH
        else:
            behind = bool(link) and link.get("master") != runtime.DATAPATH
        if behind:
            yield name

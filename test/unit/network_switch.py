"""A host of ``network_harness`` with Open vSwitch: a database that outlives everything, and a switch that takes it up.

The database is a file of JSON. It knows the operations of RFC 7047 that the engine uses, and drops rows that nobody
leads to, as the real one does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypervisor_network.backends.contract import Done
from hypervisor_network.engine import switch
from network_harness import MACS, FakeHost

FILE = "/etc/openvswitch/conf.db"
SCHEMA: dict[str, dict[str, Any]] = {
    "Open_vSwitch": {"bridges": ["set", []], "next_cfg": 0},
    "Bridge": {
        "name": "", "ports": ["set", []], "stp_enable": False, "rstp_enable": False, "mcast_snooping_enable": False,
        "datapath_type": "", "fail_mode": ["set", []], "protocols": ["set", []], "other_config": ["map", []],
        "external_ids": ["map", []], **{name: ["set", []] for name in switch.LEADS},
    },
    "Port": {
        "name": "", "interfaces": ["set", []], "tag": ["set", []], "trunks": ["set", []], "vlan_mode": ["set", []],
        "protected": False, "other_config": ["map", []], "external_ids": ["map", []],
    },
    "Interface": {
        "name": "", "type": "", "mac": ["set", []], "mtu_request": ["set", []], "ofport_request": ["set", []],
        "options": ["map", []], "other_config": ["map", []], "external_ids": ["map", []],
        "ingress_policing_rate": 0, "ingress_policing_burst": 0, "error": ["set", []],
    },
}  # fmt: skip
_LEADS = {"Open_vSwitch": "bridges", "Bridge": "ports", "Port": "interfaces"}
Tables = dict[str, dict[str, dict[str, Any]]]


def empty() -> Tables:
    """Returns a database without bridges."""
    return {**{table: {} for table in SCHEMA}, "Open_vSwitch": {"root": copy.deepcopy(SCHEMA["Open_vSwitch"])}}


def _members(value: Any) -> list[Any]:
    return value[1] if value[0] == "set" else [value]


def transact(tables: Tables, operations: Sequence[dict[str, Any]]) -> tuple[Tables, list[Any]]:
    """Returns the database after a transaction, and the results; all of it happens, or nothing."""
    tables = copy.deepcopy(tables)
    made = [one for one in operations if "uuid-name" in one]
    named = {one["uuid-name"]: f"{one['uuid-name']}-{number}" for number, one in enumerate(made)}
    # What is named in a transaction may be led to before it is made.
    results = [_operate(tables, _real(one, named), named) for one in operations]
    _collect(tables)
    for table in ("Bridge", "Port", "Interface"):
        names = [row["name"] for row in tables[table].values()]
        if len(names) != len(set(names)):
            results.append({"error": "constraint violation", "details": f"two rows of {table} in {names}"})
    return tables, results


def _real(value: Any, named: dict[str, str]) -> Any:
    """Puts rows in place of the names that they have in a transaction."""
    if isinstance(value, dict):
        return {key: _real(one, named) for key, one in value.items()}
    if isinstance(value, list) and value[:1] == ["named-uuid"]:
        return ["uuid", named[value[1]]]
    return [_real(one, named) for one in value] if isinstance(value, list) else value


def _operate(tables: Tables, one: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    """Carries out one operation."""
    rows = tables.get(one.get("table", ""), {})
    where = one.get("where", [])
    found = {key: row for key, row in rows.items() if all(row[name] == value for name, _, value in where)}
    if one["op"] == "select":
        have = [{**row, "_uuid": ["uuid", key]} for key, row in found.items()]
        return {"rows": [{name: row[name] for name in one["columns"]} for row in have]}
    if one["op"] == "insert":
        default = SCHEMA[one["table"]]
        assert set(one["row"]) <= set(default), one
        key = named[one["uuid-name"]]
        # A key of another transaction may have the same name.
        assert key not in rows or rows[key]["name"] == one["row"]["name"]
        rows[key] = {**copy.deepcopy(default), **one["row"]}
    for row in found.values():
        if one["op"] == "update":
            row.update(one["row"])
        elif one["op"] == "mutate":
            _mutate(row, one["mutations"])
    return {"count": len(found)}


def _mutate(row: dict[str, Any], mutations: list[Any]) -> None:
    for column, how, value in mutations:
        if how == "+=":
            row[column] += value
        else:
            held = _members(row[column])
            row[column] = ["set", [one for one in held if one not in value[1]] + (value[1] if how == "insert" else [])]


def _collect(tables: Tables) -> None:
    """Drops rows that nothing leads to."""
    kept = {"root"}
    for table, below in (("Open_vSwitch", "Bridge"), ("Bridge", "Port"), ("Port", "Interface")):
        kept = {one[1] for key in kept for one in _members(tables[table][key][_LEADS[table]])}
        tables[below] = {key: row for key, row in tables[below].items() if key in kept}


class SwitchHost(FakeHost):  # type: ignore[misc]  # mypy follows no imports from here
    """A host whose switch runs.

    Attributes:
        running: whether the database's server and the switch run.
        refuses: ports that the switch cannot use.
    """

    kernel: dict[str, dict[str, Any]]

    def __init__(self, root: Path) -> None:
        self.running = False
        self.refuses: set[str] = set()
        super().__init__(root)
        self.path(FILE).parent.mkdir(parents=True)
        self.path(FILE).write_text(json.dumps(empty()))
        self.power_on()

    def power_on(self) -> None:
        """Starts the switch by what its database holds."""
        self.running = True
        self.path(switch.SOCKET).parent.mkdir(parents=True, exist_ok=True)
        self.path(switch.SOCKET).touch()
        self.activate()

    def reboot(self) -> None:
        self.running = False
        self.path(switch.SOCKET).unlink(missing_ok=True)
        super().reboot()

    def add(self, *operations: dict[str, Any]) -> None:
        """Alters the database from outside."""
        tables, results = transact(self.tables(), operations)
        assert [one for one in results if "error" in one] == []
        self.keep(tables)
        self.take_up()

    def tables(self) -> Tables:
        """Returns what the database holds."""
        found: Tables = json.loads(self.path(FILE).read_text()) if self.path(FILE).exists() else empty()
        return found

    def rows(self) -> dict[str, dict[str, Any]]:
        """Returns the ports by name, with their bridge and type."""
        tables = self.tables()
        return {
            port["name"]: {"bridge": bridge["name"], "type": tables["Interface"][port["interfaces"][1]]["type"]}
            for bridge in tables["Bridge"].values()
            for _, key in _members(bridge["ports"])
            for port in [tables["Port"][key]]
        }

    def run(self, argv: Sequence[str], timeout: float = 30.0, stdin: str | None = None) -> Done:
        if argv[0] == "ovsdb-client" and argv[2] == "list-dbs":
            return Done(0 if self.running else 1, "Open_vSwitch\n", "")
        if argv[0] in {"ovsdb-client", "ovsdb-tool"}:
            assert self.running == (argv[0] == "ovsdb-client")
            operations = json.loads(argv[-1])[1:]
            tables, results = transact(self.tables(), operations)
            if any(one["op"] != "select" for one in operations) and not any("error" in one for one in results):
                self._change("transact", lambda: self.keep(tables))
                self.take_up()
            return Done(0, json.dumps(results), "")
        return super().run(argv, timeout, stdin)

    def activate(self) -> None:
        super().activate()
        self.take_up()

    def keep(self, tables: Tables) -> None:
        """Writes the database; a thread that measures reads it meanwhile."""
        staged = self.path(f"{FILE}.new")
        staged.write_text(json.dumps(tables))
        staged.replace(self.path(FILE))

    def take_up(self) -> None:
        """Makes the kernel's links what the database says."""
        ports = self.rows() if self.running else {}
        internal = {name for name, one in ports.items() if one["type"] == "internal"}
        kernel = {name: one for name, one in self.kernel.items() if one["kind"] != "openvswitch" or name in internal}
        for name in internal - set(kernel) - self.refuses:
            kernel[name] = {"kind": "openvswitch", "mac": "", "given": [], "gateway": ""}
        for name, one in kernel.items():
            if name in ports and name not in internal and name not in self.refuses:
                one["master"] = "ovs-system"
            elif one.get("master") == "ovs-system":
                one["master"] = ""
        self.kernel = kernel

    def _wired(self, name: str) -> bool:
        ports = self.rows() if self.running else {}
        if name in ports and ports[name]["type"] == "internal":
            return bool(ports.get("eth0", {}).get("bridge") == ports[name]["bridge"])
        return bool(super()._wired(name))


def port(bridge: str, name: str, **interface: Any) -> list[dict[str, Any]]:
    """Returns the operations that make a port on a bridge, which is made with the first of its ports."""
    return [
        {"op": "insert", "table": "Interface", "row": {"name": name, **interface}, "uuid-name": f"i_{name}"},
        {
            "op": "insert", "table": "Port", "uuid-name": f"p_{name}",
            "row": {"name": name, "interfaces": ["named-uuid", f"i_{name}"]},
        },
        {
            "op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]],
            "mutations": [["ports", "insert", ["set", [["named-uuid", f"p_{name}"]]]]],
        },
    ]  # fmt: skip


def bridge(name: str, **columns: Any) -> list[dict[str, Any]]:
    """Returns the operations that make a bridge."""
    return [
        {"op": "insert", "table": "Bridge", "row": {"name": name, **columns}, "uuid-name": f"b_{name}"},
        {
            "op": "mutate", "table": "Open_vSwitch", "where": [],
            "mutations": [["bridges", "insert", ["set", [["named-uuid", f"b_{name}"]]]]],
        },
        *port(name, name, type="internal"),
    ]  # fmt: skip


OVS = {
    "bridges": {"ovsbr0": {"switch": "openvswitch", "host_port": "ovshost0", "ports": ["eth0"], "dhcp4": True}},
    "allow_uplink_change": True,
}
MAC = MACS["eth0"]

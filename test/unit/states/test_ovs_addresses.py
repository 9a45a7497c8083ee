"""Addresses of internal ports: given now and at boot, and those that are not declared taken away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import ovs_addresses
from _utils import network_tool, network_tunnels, ovs_plan, own_files

BRIDGES = {"ovs0": {"ports": {"int0": {"type": "internal", "addresses": ["10.0.0.1/24"]}}}}


class Host:
    def __init__(self, monkeypatch, folder: Path, *, test: bool = False) -> None:
        self.told: list[str] = []
        self.held = ["10.0.0.7/24"]
        # Further ports of the switch with their addresses; the record of an earlier run says who gave them.
        self.others: dict[str, list[str]] = {}
        self.secondaries_go = False
        self.carrying = ["eth0"]
        self.switches: dict[str, list[str]] = {}
        self.units = folder / "units"
        monkeypatch.setattr(ovs_addresses, "_BATCH", folder / "own" / "ovs-addresses")
        monkeypatch.setattr(ovs_addresses, "_UNITS", self.units)
        opts = {"test": test, "id": "hv1", "master": "192.0.2.5"}
        monkeypatch.setattr(ovs_addresses, "__opts__", opts, raising=False)
        names: tuple[str, ...] = ("compose", "addresses", "given")
        names += ("address_batch", "address_changes", "address_clashes", "address_moves")
        plans = ("going", "nics_of", "nothing", "question", "unmoved")
        utils = {
            **{f"network_tunnels.{name}": getattr(network_tunnels, name) for name in names},
            **{f"own_files.{name}": getattr(own_files, name) for name in ("read", "write")},
            **{f"ovs_plan.{name}": getattr(ovs_plan, name) for name in plans},
            "network_tool.masters": network_tool.masters,
            "network_tool.switches": lambda: self.switches,
            "network_uplink.carriers": lambda _, masters: self.carrying if masters == ["192.0.2.5"] else [],
            "ovs_plan.facts_of": lambda _: self.facts(),
            "ovs_tools.read": lambda _: "",
            "ovs_tools.runs": lambda: bool(self.others),
            "ovs_tools.path": lambda _: "/usr/sbin/ip",
            "ovs_tools.run": self.run,
        }
        monkeypatch.setattr(ovs_addresses, "__utils__", utils, raising=False)

    def facts(self) -> ovs_plan.Facts:
        names = ("int0", *self.others)
        rows = {name: {"type": "" if name == "eth1" else "internal"} for name in names}
        ports = {name: {"bridge": "ovs0", "members": (name,)} for name in names}
        return ovs_plan.Facts({}, {"ovs0": {}}, ports, rows)

    def run(self, argv: list[str]) -> str:
        every = {"int0": self.held, **self.others}
        if argv[1] == "-json":
            return json.dumps([
                {"ifname": name, "addr_info": [
                    dict(zip(("local", "prefixlen"), one.split("/"), strict=True), scope="global") for one in held
                ]}
                for name, held in every.items()
            ])  # fmt: skip
        self.told.append(" ".join(argv))
        if argv[1:3] == ["address", "replace"]:
            every[argv[5]].append(argv[3])
        if argv[1:3] == ["address", "delete"]:
            every[argv[5]].remove(argv[3])
            if self.secondaries_go:
                every[argv[5]].clear()
        if argv[1] == "enable":
            wants = self.units / "multi-user.target.wants"
            wants.mkdir(parents=True)
            (wants / argv[2]).symlink_to(self.units / argv[2])
        return ""


@pytest.fixture(name="host")
def bare_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path)


def applied(bridges: dict[str, Any] | None = None) -> dict[str, Any]:
    return ovs_addresses.applied("net", BRIDGES if bridges is None else bridges)


def test_a_port_gets_its_address_and_loses_another(host, tmp_path):
    ret = applied()
    assert ret["result"] is True, ret
    assert ret["changes"]["int0"] == {"old": ["10.0.0.7/24"], "new": ["10.0.0.1/24"]}
    assert host.told == [
        "ip address delete 10.0.0.7/24 dev int0",
        *("systemctl daemon-reload", "systemctl enable hypervisor-ovs-addresses.service"),
        *("ip address replace 10.0.0.1/24 dev int0", "ip link set dev int0 up"),
    ]
    assert (
        "address replace 10.0.0.1/24 dev int0\nlink set dev int0 up\n" in (tmp_path / "own/ovs-addresses").read_text()
    )
    assert "ExecStart=/usr/sbin/ip -force -batch" in (host.units / "hypervisor-ovs-addresses.service").read_text()
    host.told.clear()
    assert (applied()["changes"], host.told) == ({}, [])


def test_a_dry_run_foresees_exactly_what_a_run_does(monkeypatch, host, tmp_path):
    done = applied()
    dry = Host(monkeypatch, tmp_path / "dry", test=True)
    ret = applied()
    assert ret["result"] is None
    assert [Path(key).name for key in ret["changes"]] == [Path(key).name for key in done["changes"]]
    assert (dry.told, (tmp_path / "dry").exists()) == ([], False)


CARRIES = "int0 on the bridge ovs0 carries the connection to the master; such a bridge is declared as network:bridges:"
INSIDE = {"bridge": "ovs0", "port": "int0", "nodes": {"hv1": {"address": "192.0.2.1", "inside": ["10.0.0.1/24"]}}}


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"bridges": BRIDGES}, "network:ovs:bridges:ovs0:ports:int0:addresses"),
        ({"mesh": {"m": INSIDE}}, "network:mesh:m:nodes:hv1:inside"),
    ],
)
def test_a_port_that_carries_the_connection_to_the_master_keeps_its_addresses(
    monkeypatch, tmp_path, test, arguments, where
):
    host = Host(monkeypatch, tmp_path, test=test)
    host.carrying = ["int0"]
    ret = ovs_addresses.applied("net", **arguments)
    assert (ret["result"], ret["changes"], host.told, list(tmp_path.iterdir())) == (False, {}, [], [])
    assert ret["comment"] == f"Nothing was changed:\n{where}: {CARRIES}ovs0:switch: openvswitch"
    # What the pillar names as masters counts instead of the minion's own.
    monkeypatch.setitem(ovs_addresses.__opts__, "test", True)
    assert ovs_addresses.applied("net", **arguments, masters=["192.0.2.9"])["result"] is None
    monkeypatch.setitem(ovs_addresses.__opts__, "test", test)
    # What it has already may be declared.
    host.held = ["10.0.0.1/24"]
    assert ovs_addresses.applied("net", **arguments)["result"] is (None if test else True)
    assert not [one for one in host.told if one.startswith("ip ")]


def test_a_port_of_network_bridges_keeps_its_addresses(host):
    host.switches = {"ovs1": ["int0", "eth0"]}
    ret = applied()
    assert (ret["result"], host.told) == (False, [])
    assert "the host has its addresses on ovs1; network:bridges:ovs1 decides it" in ret["comment"]


def moved(host: Host, folder: Path, *, recorded: bool = True) -> None:
    """Let the address that int0 has in the pillar be that of int9, which an earlier run had given it."""
    host.held, host.others = [], {"int9": ["10.0.0.1/24", "10.0.0.3/24"], "eth1": []}
    if recorded:
        (folder / "own").mkdir()
        (folder / "own" / "ovs-addresses").write_text("# Made.\naddress replace 10.0.0.1/24 dev int9\n")


def test_an_address_leaves_the_port_that_had_it_before_another_gets_it(host, tmp_path):
    moved(host, tmp_path)
    ret = applied()
    assert ret["result"] is True, ret
    assert ret["changes"]["int9"] == {"old": ["10.0.0.1/24", "10.0.0.3/24"], "new": ["10.0.0.3/24"]}
    assert ret["changes"]["int0"] == {"old": [], "new": ["10.0.0.1/24"]}
    # What somebody else has given stays.
    assert [one for one in host.told if one.startswith("ip ")] == [
        "ip address delete 10.0.0.1/24 dev int9",
        "ip address replace 10.0.0.1/24 dev int0",
        "ip link set dev int0 up",
    ]
    host.told.clear()
    assert (applied()["changes"], host.told) == ({}, [])


def test_what_the_kernel_takes_away_with_an_address_that_moves_comes_back(host, tmp_path):
    moved(host, tmp_path)
    host.secondaries_go = True
    assert applied()["result"] is True
    assert host.others["int9"] == ["10.0.0.3/24"]


def test_a_run_that_could_not_take_an_address_away_is_made_up_for(host, tmp_path, monkeypatch):
    moved(host, tmp_path)

    def broken(argv: list[str]) -> Any:
        if argv[1:3] == ["address", "delete"]:
            raise CommandExecutionError("ip: it is broken")
        return host.run(argv)

    with monkeypatch.context() as patch:
        patch.setitem(ovs_addresses.__utils__, "ovs_tools.run", broken)
        assert (applied()["result"], host.held) == (False, [])
    assert applied()["result"] is True
    assert (host.held, host.others["int9"]) == (["10.0.0.1/24"], ["10.0.0.3/24"])


@pytest.mark.parametrize("test", [True, False])
def test_an_address_that_somebody_else_gave_to_another_port_is_refused(monkeypatch, tmp_path, test):
    host = Host(monkeypatch, tmp_path, test=test)
    moved(host, tmp_path, recorded=False)
    ret = applied()
    assert (ret["result"], ret["changes"], host.told, list(tmp_path.iterdir())) == (False, {}, [], [])
    assert ret["comment"] == (
        "Nothing was changed:\n"
        "network:ovs:bridges:ovs0:ports:int0:addresses: int9 has the address 10.0.0.1/24 already, and not by "
        "network:ovs or network:mesh; take it away there first (ip address delete 10.0.0.1/24 dev int9), or declare it "
        "for one of the two alone"
    )
    # A port that this run takes out of the switch is in nobody's way.
    going = {"ovs0": {"ports": {**BRIDGES["ovs0"]["ports"], "int9": {"ensure": "absent"}}}}
    assert applied(going)["result"] is (None if test else True)
    # A card is none of this state's business.
    host.held, host.others = [], {"eth1": ["10.0.0.1/24"]}
    assert applied()["result"] is (None if test else True)


def test_an_address_that_carries_the_connection_to_the_master_stays_where_it_is(host, tmp_path):
    moved(host, tmp_path)
    host.carrying = ["int9"]
    ret = applied()
    assert (ret["result"], ret["changes"], host.told) == (False, {}, [])
    assert ret["comment"].splitlines()[1:] == [
        f"network:ovs:bridges:ovs0:ports:int0:addresses: {CARRIES.replace('int0', 'int9')}ovs0:switch: openvswitch"
    ]


def test_without_addresses_nothing_is_set_up(host, tmp_path):
    assert applied({"ovs0": {"ports": {"int0": {"type": "internal"}}}})["changes"] == {}
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told(host, monkeypatch):
    def broken(argv: list[str]) -> str:
        raise CommandExecutionError("ip: it is broken")

    monkeypatch.setitem(ovs_addresses.__utils__, "ovs_tools.run", broken)
    assert applied()["comment"] == "Addresses of ports: ip: it is broken."

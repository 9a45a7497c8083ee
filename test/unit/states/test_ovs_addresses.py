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
        self.carrying = ["eth0"]
        self.switches: dict[str, list[str]] = {}
        self.units = folder / "units"
        monkeypatch.setattr(ovs_addresses, "_BATCH", folder / "own" / "ovs-addresses")
        monkeypatch.setattr(ovs_addresses, "_UNITS", self.units)
        opts = {"test": test, "id": "hv1", "master": "192.0.2.5"}
        monkeypatch.setattr(ovs_addresses, "__opts__", opts, raising=False)
        names = ("compose", "addresses", "address_batch", "address_changes")
        utils = {
            **{f"network_tunnels.{name}": getattr(network_tunnels, name) for name in names},
            **{f"own_files.{name}": getattr(own_files, name) for name in ("read", "write")},
            **{f"ovs_plan.{name}": getattr(ovs_plan, name) for name in ("nics_of", "unmoved")},
            "network_tool.masters": network_tool.masters,
            "network_tool.switches": lambda: self.switches,
            "network_uplink.carriers": lambda _, masters: self.carrying if masters == ["192.0.2.5"] else [],
            "ovs_tools.path": lambda _: "/usr/sbin/ip",
            "ovs_tools.run": self.run,
        }
        monkeypatch.setattr(ovs_addresses, "__utils__", utils, raising=False)

    def run(self, argv: list[str]) -> str:
        if argv[1] == "-json":
            addresses = [
                dict(zip(("local", "prefixlen"), one.split("/"), strict=True), scope="global") for one in self.held
            ]
            return json.dumps([{"ifname": "int0", "addr_info": addresses}])
        self.told.append(" ".join(argv))
        if argv[1:3] == ["address", "replace"]:
            self.held.append(argv[3])
        if argv[1:3] == ["address", "delete"]:
            self.held.remove(argv[3])
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
        *("systemctl daemon-reload", "systemctl enable hypervisor-ovs-addresses.service"),
        *(
            "ip address delete 10.0.0.7/24 dev int0",
            "ip address replace 10.0.0.1/24 dev int0",
            "ip link set dev int0 up",
        ),
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


def test_without_addresses_nothing_is_set_up(host, tmp_path):
    assert applied({"ovs0": {"ports": {"int0": {"type": "internal"}}}})["changes"] == {}
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told(host, monkeypatch):
    def broken(argv: list[str]) -> str:
        raise CommandExecutionError("ip: it is broken")

    monkeypatch.setitem(ovs_addresses.__utils__, "ovs_tools.run", broken)
    assert applied()["comment"] == "Addresses of ports: ip: it is broken."

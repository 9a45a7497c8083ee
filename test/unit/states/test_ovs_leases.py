"""Ports that ask a DHCP server: a client for each, none for others, and the same foreseen in a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import ovs_leases
from _utils import network_tool, network_tunnels, ovs_plan, own_files

ASKS = {"type": "internal", "mac": "52:54:00:00:00:01", "dhcp4": True}
BRIDGES = {"ovs0": {"ports": {"int0": ASKS, "int1": {"type": "internal", "addresses": ["10.0.0.1/24"]}}}}
UNIT = "hypervisor-ovs-lease@int0.service"


class Host:
    def __init__(self, monkeypatch, folder: Path, *, test: bool = False) -> None:
        self.told: list[str] = []
        self.active: set[str] = set()
        self.client = "/usr/sbin/udhcpc"
        self.carrying = ["eth0"]
        self.units = folder / "units"
        self.script = folder / "own" / "ovs-lease"
        monkeypatch.setattr(ovs_leases, "_SCRIPT", self.script)
        monkeypatch.setattr(ovs_leases, "_UNITS", self.units)
        monkeypatch.setattr(ovs_leases, "__opts__", {"test": test, "id": "hv1", "master": "192.0.2.5"}, raising=False)
        utils = {
            **{f"network_tunnels.{name}": getattr(network_tunnels, name) for name in ("compose", "leased")},
            **{f"own_files.{name}": getattr(own_files, name) for name in ("read", "write", "access")},
            "ovs_plan.unmoved": ovs_plan.unmoved,
            "network_tool.masters": network_tool.masters,
            "network_tool.switches": dict,
            "network_uplink.carriers": lambda _, masters: self.carrying if masters == ["192.0.2.5"] else [],
            "ovs_tools.path": lambda _: self.client,
            "ovs_tools.run": self.run,
        }
        monkeypatch.setattr(ovs_leases, "__utils__", utils, raising=False)

    def run(self, argv: list[str], ok: Any = (0,)) -> str:
        verb, unit = argv[1], argv[-1]
        if verb == "is-active":
            return "active\n" if unit in self.active else "inactive\n"
        self.told.append(" ".join(argv[1:]))
        wants = self.units / "multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        if verb == "enable":
            (wants / unit).symlink_to(self.units / unit)
            self.active.add(unit)
        if verb == "disable":
            (wants / unit).unlink()
            self.active.discard(unit)
        return ""


@pytest.fixture(name="host")
def bare_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path)


def test_a_port_gets_a_client_that_lives_as_long_as_the_switch(host):
    ret = ovs_leases.kept("net", BRIDGES)
    assert ret["result"] is True, ret
    assert ret["changes"][UNIT] == "started"
    assert host.told == ["daemon-reload", f"enable --now {UNIT}"]
    unit = (host.units / "hypervisor-ovs-lease@.service").read_text()
    assert f"ExecStart=/usr/sbin/udhcpc -f -R -t 3 -T 3 -A 10 -i %i -s {host.script}" in unit
    assert "PartOf=ovs-vswitchd.service" in unit
    script = host.script.read_text()
    assert script.startswith("#!/bin/sh\n")
    assert host.script.stat().st_mode & 0o777 == 0o755
    # Neither a route nor a name server.
    assert "route" not in script
    assert "resolv" not in script
    assert ovs_leases.kept("net", BRIDGES) == {
        "name": "net", "result": True, "changes": {}, "comment": "Ports that ask a DHCP server: int0."
    }  # fmt: skip


def test_a_dry_run_foresees_it_and_does_nothing(monkeypatch, tmp_path, host):
    done = ovs_leases.kept("net", BRIDGES)["changes"]
    dry = Host(monkeypatch, tmp_path / "dry", test=True)
    # The client is installed by the same run.
    dry.client = ""
    ret = ovs_leases.kept("net", BRIDGES, packages=["udhcpc"])
    assert ret["result"] is None
    assert [*ret["changes"].values()] == [*done.values()]
    assert (dry.told, dry.units.exists()) == ([], False)


@pytest.mark.parametrize("test", [True, False])
def test_a_port_that_carries_the_connection_to_the_master_does_not_begin_to_ask(monkeypatch, tmp_path, test):
    host = Host(monkeypatch, tmp_path, test=test)
    host.carrying = ["int0"]
    ret = ovs_leases.kept("net", BRIDGES)
    assert (ret["result"], ret["changes"], host.told, list(tmp_path.iterdir())) == (False, {}, [], [])
    assert ret["comment"] == (
        "Nothing was changed:\nnetwork:ovs:bridges:ovs0:ports:int0:dhcp4: int0 on the bridge ovs0 carries the "
        "connection to the master; such a bridge is declared as network:bridges:ovs0:switch: openvswitch"
    )
    # What the pillar names as masters counts instead of the minion's own.
    assert ovs_leases.kept("net", BRIDGES, masters=["192.0.2.9"])["result"] is (None if test else True)


def test_a_port_that_carries_the_connection_to_the_master_does_not_cease_to_ask(host):
    ovs_leases.kept("net", BRIDGES)
    host.told.clear()
    host.carrying = ["int0"]
    assert ovs_leases.kept("net", BRIDGES)["result"] is True
    for bridges in ({"ovs0": {"ports": {"int0": {**ASKS, "dhcp4": False}}}}, {}):
        ret = ovs_leases.kept("net", bridges)
        assert (ret["result"], host.told) == (False, [])
        assert "int0 " in ret["comment"]
        assert "carries the connection to the master" in ret["comment"]
    # A client that has ended is started again all the same.
    host.active.clear()
    assert ovs_leases.kept("net", BRIDGES)["changes"] == {UNIT: "started"}


def test_a_port_that_no_longer_asks_loses_its_client_and_others_never_have_one(host):
    ovs_leases.kept("net", BRIDGES)
    host.told.clear()
    ret = ovs_leases.kept("net", {"ovs0": {"ports": {"int0": {**ASKS, "dhcp4": False}}}})
    assert ret["changes"] == {UNIT: "stopped"}
    assert host.told == [f"disable --now {UNIT}"]
    host.told.clear()
    assert ovs_leases.kept("net", {})["changes"] == {}
    assert host.told == []


def test_a_client_that_has_ended_is_started_and_one_of_another_time_anew(host):
    ovs_leases.kept("net", BRIDGES)
    host.active.clear()
    (host.units / "multi-user.target.wants" / UNIT).unlink()
    assert ovs_leases.kept("net", BRIDGES)["changes"] == {UNIT: "started"}
    (host.units / "hypervisor-ovs-lease@.service").write_text("old")
    host.told.clear()
    assert ovs_leases.kept("net", BRIDGES)["changes"][UNIT] == "restarted"
    assert host.told == ["daemon-reload", f"restart {UNIT}"]


@pytest.mark.parametrize(("test", "packages"), [(False, ["udhcpc"]), (False, []), (True, [])])
def test_without_a_client_it_fails_and_says_which_key_helps(monkeypatch, tmp_path, test, packages):
    host = Host(monkeypatch, tmp_path, test=test)
    host.client = ""
    ret = ovs_leases.kept("net", BRIDGES, packages=packages)
    assert (ret["result"], host.told) == (False, [])
    assert ret["comment"] == (
        "udhcpc is not installed, so int0 cannot ask a DHCP server; network:packages:dhcp names the package that "
        "has it."
    )


def test_what_systemd_refuses_is_told(host, monkeypatch):
    def broken(argv: list[str], ok: Any = (0,)) -> str:
        raise CommandExecutionError("systemctl: it is broken")

    monkeypatch.setitem(ovs_leases.__utils__, "ovs_tools.run", broken)
    ret = ovs_leases.kept("net", BRIDGES)
    assert (ret["result"], ret["comment"]) == (False, "Leases of ports: systemctl: it is broken.")

"""The state of Open vSwitch: what it asks, tells and keeps to itself, in a dry run and for real."""

from __future__ import annotations

import json
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import ovs
from _utils import network_tool, network_tunnels, ovs_plan

KEY = "kq3Vw8yR0bN5tXz1LmCe"
MESH = {
    "private": {
        "bridge": "ovs0",
        "port": "priv0",
        "nodes": {"hv1": {"address": "192.0.2.1"}, "hv2": {"address": "192.0.2.2"}},
    }
}
BRIDGES = {"ovs0": {"ports": {"eth1": {"tag": 10}}}}


class Switch:
    """A host whose switch does what it is told; keys and commands are recorded apart."""

    def __init__(self, monkeypatch, *, test: bool) -> None:
        self.told: list[list[str]] = []
        self.keys: dict[str, str] = {}
        self.runs = True
        self.facts = ovs_plan.nothing()
        self.links = [{"ifname": "eth1", "addr_info": []}]
        self.obeys = True
        self.error: str | None = None
        self.held: dict[str, list[str]] = {}
        self.carrying: list[str] = ["eth0"]
        monkeypatch.setattr(ovs, "__opts__", {"test": test, "id": "hv1", "master": "192.0.2.5"}, raising=False)
        monkeypatch.setattr(ovs, "__pillar__", {"network": {"mesh": {"private": {"psk": KEY}}}}, raising=False)
        monkeypatch.setattr(ovs, "_PATIENCE", 0)
        utils = {
            "network_tunnels.compose": network_tunnels.compose,
            "ovs_plan.nothing": ovs_plan.nothing,
            "ovs_plan.question": ovs_plan.question,
            "ovs_plan.facts_of": lambda _: self.facts,
            "ovs_plan.nics_of": ovs_plan.nics_of,
            "ovs_plan.plan": ovs_plan.plan,
            "ovs_plan.with_identity": ovs_plan.with_identity,
            "network_tool.switches": lambda: self.held,
            "network_tool.masters": network_tool.masters,
            "network_uplink.carriers": lambda _, masters: self.carrying if masters == ["192.0.2.5"] else [],
            "ovs_tools.runs": lambda: self.runs,
            "ovs_tools.read": lambda _: "",
            "ovs_tools.run": lambda _: json.dumps(self.links),
            "ovs_tools.tell": self.tell,
            "ovs_tools.set_keys": self.set_keys,
        }
        monkeypatch.setattr(ovs, "__utils__", utils, raising=False)

    def tell(self, commands: list[list[str]]) -> None:
        self.told += commands
        if self.obeys:
            self.become(None)

    def set_keys(self, keys: dict[str, str]) -> None:
        self.keys.update(keys)
        if self.obeys:
            self.become(KEY)

    def become(self, key: str | None) -> None:
        """Hold what is declared."""
        options = {"remote_ip": "192.0.2.2", "local_ip": "192.0.2.1", **({"psk": key} if key else {})}
        members = {name: {"bridge": "ovs0", "members": (name,)} for name in ("eth1", "priv0", "private_hv2")}
        self.facts = ovs_plan.Facts(
            settings={},
            bridges={"ovs0": {}},
            ports={
                **members,
                "eth1": {**members["eth1"], "tag": 10},
                "private_hv2": {**members["private_hv2"], "protected": True},
            },
            interfaces={
                "eth1": {"error": self.error},
                "priv0": {"type": "internal", "mtu_request": 1424},
                "private_hv2": {"type": "gre", "options": options},
            },
        )


@pytest.fixture(name="switch")
def bare_switch(monkeypatch):
    return Switch(monkeypatch, test=False)


def test_a_bare_host_gets_everything_in_one_transaction_and_the_key_apart(switch):
    ret = ovs.configured("net", BRIDGES, MESH)
    assert ret["result"] is True, ret
    assert switch.told[0] == ["--may-exist", "add-br", "ovs0"]
    assert switch.keys == {"private_hv2": KEY}
    assert KEY not in json.dumps([ret, switch.told])
    assert ret["changes"]["ovs0:private_hv2:psk"]["new"] == "the declared key"


def test_a_second_run_does_nothing(switch):
    switch.become(KEY)
    ret = ovs.configured("net", BRIDGES, MESH)
    assert (ret["result"], ret["changes"], switch.told, switch.keys) == (True, {}, [], {})


def test_a_dry_run_foresees_exactly_what_a_run_does(monkeypatch, switch):
    done = ovs.configured("net", BRIDGES, MESH)
    for runs in (True, False):
        dry = Switch(monkeypatch, test=True)
        dry.runs = runs
        ret = ovs.configured("net", BRIDGES, MESH)
        assert (ret["result"], ret["changes"]) == (None, done["changes"])
        assert (dry.told, dry.keys) == ([], {})


def test_a_key_that_changed_is_told_without_a_command(switch):
    switch.become(KEY[::-1])
    ret = ovs.configured("net", BRIDGES, MESH)
    assert ret["changes"] == {"ovs0:private_hv2:psk": {"old": "another key", "new": "the declared key"}}
    assert (switch.told, switch.keys) == ([], {"private_hv2": KEY})


def test_a_missing_card_changes_nothing(switch):
    ret = ovs.configured("net", {"ovs0": {"ports": {"eth9": {}}}})
    assert ret["result"] is False
    assert "network:ovs:bridges:ovs0:ports:eth9: there is no interface eth9 on this host" in ret["comment"]
    assert (switch.told, switch.keys, ret["changes"]) == ([], {}, {})


def test_a_host_that_is_not_in_the_mesh_is_told(switch):
    ret = ovs.configured("net", BRIDGES, MESH, node="hv9")
    assert ret["result"] is False
    assert "this host, hv9, is not listed" in ret["comment"]


def test_a_host_without_the_switch_fails(switch):
    switch.runs = False
    ret = ovs.configured("net", BRIDGES)
    assert (ret["result"], ret["comment"]) == (False, "Open vSwitch: it is not installed, or does not run.")


def test_what_the_switch_does_not_take_up_is_a_failure(switch):
    switch.obeys = False
    ret = ovs.configured("net", BRIDGES, MESH)
    assert ret["result"] is False
    assert "has not taken everything: ovs0; " in ret["comment"]
    assert KEY not in json.dumps(ret)


def test_what_the_switch_says_of_a_port_is_told(switch):
    switch.error = "could not open network device eth1"
    ret = ovs.configured("net", BRIDGES, MESH)
    assert ret["result"] is False
    assert "eth1: could not open network device eth1" in ret["comment"]


def test_a_failure_of_the_tool_is_told(switch, monkeypatch):
    def broken(_: Any) -> None:
        raise CommandExecutionError("ovs-vsctl: it is broken")

    monkeypatch.setitem(ovs.__utils__, "ovs_tools.tell", broken)
    ret = ovs.configured("net", BRIDGES)
    assert (ret["result"], ret["comment"]) == (False, "Open vSwitch: ovs-vsctl: it is broken.")


def test_with_certificates_no_key_is_stored_and_the_switch_is_told_where_they_are(switch):
    ret = ovs.configured("net", BRIDGES, MESH, auth="certificate")
    assert switch.keys == {}
    assert KEY not in json.dumps([ret, switch.told])
    (settings,) = [one for one in switch.told if one[:2] == ["set", "Open_vSwitch"]]
    assert 'other_config:"private_key"="/etc/ipsec.d/private/hypervisor-tunnel.pem"' in settings
    words = [word for one in switch.told for word in one if "remote_name" in word]
    assert words == ['options:"remote_name"="hv2"']


def test_what_carries_the_hosts_addresses_stays(switch):
    switch.become(KEY)
    switch.held = {"ovs0": ["eth1"]}
    ret = ovs.configured("net", {"ovs0": {"ensure": "absent"}})
    assert ret["result"] is False
    assert "network:ovs:bridges:ovs0: the host has its addresses on it" in ret["comment"]
    assert switch.told == []


@pytest.mark.parametrize("test", [True, False])
def test_a_bridge_that_carries_the_connection_to_the_master_is_not_changed(monkeypatch, test):
    switch = Switch(monkeypatch, test=test)
    switch.become(KEY)
    switch.carrying = ["priv0"]
    ret = ovs.configured("net", {"ovs0": {"fail_mode": "secure"}}, MESH)
    assert (ret["result"], ret["changes"], switch.told) == (False, {}, [])
    assert ret["comment"] == (
        "Nothing was changed:\n"
        "network:ovs:bridges:ovs0:fail_mode: priv0 on the bridge ovs0 carries the connection to the master; such a "
        "bridge is declared as network:bridges:ovs0:switch: openvswitch"
    )
    # A run that changes nothing is none of that.
    assert ovs.configured("net", BRIDGES, MESH)["result"] is True
    # What the pillar names as masters counts instead of the minion's own.
    elsewhere = ovs.configured("net", {"ovs0": {"fail_mode": "secure"}}, MESH, masters=["192.0.2.9"])
    assert "carries the connection" not in elsewhere["comment"]

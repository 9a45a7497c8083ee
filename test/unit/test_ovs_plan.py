"""What Open vSwitch is told: one transaction, only for what differs, and nothing when something stands in the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from _utils import ovs_plan
from _utils.ovs_plan import Facts, Nic

KEY = "kq3Vw8yR0bN5tXz1LmCe"
NICS = {"lo": Nic(), "eth0": Nic(("192.0.2.10/24",)), "eth1": Nic(), "eth2": Nic(), "eth3": Nic(master="br0")}


def table(headings: list[str], *rows: list[Any]) -> str:
    return json.dumps({"headings": headings, "data": rows})


def database(*, tag: Any = 10, psk: str = KEY, members: tuple[str, ...] = ("eth1",)) -> Facts:
    """As ovs-vsctl of Open vSwitch 3.1 prints a bridge with a port and a tunnel."""
    members_of = {name: ["uuid", f"i-{name}"] for name in members}
    uplink: Any = next(iter(members_of.values())) if len(members) == 1 else ["set", list(members_of.values())]
    name = members[0] if len(members) == 1 else "bond0"
    ports = [["uuid", "p-br"], ["uuid", "p-up"], ["uuid", "p-gre"]]
    empty: list[Any] = ["set", []]
    blank: list[Any] = ["map", []]
    lines = [
        table(["other_config"], [["map", [["hw-offload", "true"]]]]),
        table(
            ["name", "ports", "datapath_type", "fail_mode", "stp_enable", "other_config", "external_ids"],
            ["ovs0", ["set", ports], "", empty, False, blank, blank],
        ),
        table(
            ["_uuid", "name", "interfaces", "tag", "trunks", "protected", "other_config", "external_ids"],
            [["uuid", "p-br"], "ovs0", ["uuid", "i-br"], empty, empty, False, blank, blank],
            [["uuid", "p-up"], name, uplink, tag if tag is not None else empty, empty, False, blank, blank],
            [["uuid", "p-gre"], "gre1", ["uuid", "i-gre"], empty, ["set", [20, 10]], False, blank, blank],
        ),
        table(
            ["_uuid", "name", "type", "options", "mac", "mtu_request", "other_config", "external_ids", "error"],
            [["uuid", "i-br"], "ovs0", "internal", blank, empty, empty, blank, blank, empty],
            *[[uuid, one, "", blank, empty, empty, blank, blank, empty] for one, uuid in members_of.items()],
            [
                *[["uuid", "i-gre"], "gre1", "gre"],
                *[["map", [["remote_ip", "192.0.2.2"], ["psk", psk]]], empty, empty, blank, blank, empty],
            ],
        ),
    ]
    return ovs_plan.facts_of("\n".join(lines) + "\n")


GRE = {"type": "gre", "remote": "192.0.2.2", "psk": KEY, "trunks": [10, 20]}
DECLARED: dict[str, Any] = {"ovs0": {"ports": {"eth1": {"tag": 10}, "gre1": GRE}}}


def made(bridges: dict[str, Any], facts: Facts | None = None, settings: dict[str, Any] | None = None) -> ovs_plan.Plan:
    return ovs_plan.plan(bridges, settings or {}, facts or database(), NICS)


def with_port(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"ovs0": {"ports": {**DECLARED["ovs0"]["ports"], name: spec}}}


def test_what_is_there_is_left_alone():
    assert made(DECLARED) == ovs_plan.Plan([], {}, {}, [])
    # What is not declared stays: the tunnel, the tag, and the switch's settings.
    assert made({"ovs0": {"ports": {"eth1": {}}}}) == ovs_plan.Plan([], {}, {}, [])


def test_a_bare_host_gets_everything():
    plan = made(DECLARED, ovs_plan.nothing(), {"hw-offload": True})
    assert plan.commands == [
        ["set", "Open_vSwitch", ".", 'other_config:"hw-offload"="true"'],
        ["--may-exist", "add-br", "ovs0"],
        ["--may-exist", "add-port", "ovs0", "eth1"],
        ["set", "Port", "eth1", "tag=10"],
        ["--may-exist", "add-port", "ovs0", "gre1"],
        ["set", "Port", "gre1", "trunks=[10,20]"],
        ["set", "Interface", "gre1", 'type="gre"', 'options:"remote_ip"="192.0.2.2"'],
    ]
    assert plan.secrets == {"gre1": KEY}
    assert plan.changes["ovs0:gre1:psk"] == {"old": None, "new": "the declared key"}
    assert KEY not in json.dumps([plan.commands, plan.changes, plan.errors])


@pytest.mark.parametrize(
    ("bridges", "commands"),
    [
        (with_port("eth1", {"tag": 30}), [["set", "Port", "eth1", "tag=30"]]),
        (with_port("eth1", {"tag": None}), [["clear", "Port", "eth1", "tag"]]),
        (with_port("gre1", {**GRE, "trunks": []}), [["clear", "Port", "gre1", "trunks"]]),
        (with_port("gre1", {**GRE, "protected": True}), [["set", "Port", "gre1", "protected=true"]]),
        (
            with_port("gre1", {**GRE, "remote": "192.0.2.3"}),
            [["set", "Interface", "gre1", 'options:"remote_ip"="192.0.2.3"']],
        ),
        (with_port("gre1", {**GRE, "psk": None}), [["remove", "Interface", "gre1", "options", "psk"]]),
        (
            with_port("int0", {"type": "internal", "mac": "52:54:00:AA:00:01", "mtu": 1424}),
            [
                ["--may-exist", "add-port", "ovs0", "int0"],
                ["set", "Interface", "int0", 'type="internal"', 'mac="52:54:00:aa:00:01"', "mtu_request=1424"],
            ],
        ),
        (
            with_port("bond0", {"interfaces": ["eth2", "eth5"], "bond_mode": "balance-slb", "lacp": "active"}),
            [
                ["--may-exist", "add-bond", "ovs0", "bond0", "eth2", "eth5"],
                ["set", "Port", "bond0", 'bond_mode="balance-slb"', 'lacp="active"'],
            ],
        ),
        (with_port("eth1", {"ensure": "absent"}), [["--if-exists", "del-port", "ovs0", "eth1"]]),
        ({"ovs0": {"ensure": "absent"}}, [["--if-exists", "del-br", "ovs0"]]),
        ({"gone": {"ensure": "absent"}}, []),
        (
            {"ovs0": {"stp": True, "mac": "52:54:00:AA:00:02", "other_config": {"a b": 'x"y', "gone": None}}},
            [
                [
                    *["set", "Bridge", "ovs0", "stp_enable=true", 'other_config:"hwaddr"="52:54:00:aa:00:02"'],
                    'other_config:"a b"="x\\"y"',
                ],
            ],
        ),
    ],
)
def test_each_difference_is_one_command(bridges, commands, monkeypatch):
    monkeypatch.setitem(NICS, "eth5", Nic())
    plan = made(bridges)
    assert plan.errors == []
    assert plan.commands == commands
    assert bool(plan.changes) == bool(commands)


def test_a_key_is_told_apart_without_being_shown():
    plan = made(with_port("gre1", {**GRE, "psk": KEY[::-1]}))
    assert plan.secrets == {"gre1": KEY[::-1]}
    assert plan.commands == []
    assert plan.changes == {"ovs0:gre1:psk": {"old": "another key", "new": "the declared key"}}


@pytest.mark.parametrize(
    ("bridges", "where", "text"),
    [
        (
            with_port("eth9", {}),
            "ovs0:ports:eth9",
            "there is no interface eth9 on this host; there are: eth0, eth2, eth3",
        ),
        (with_port("eth0", {}), "ovs0:ports:eth0", "eth0 has the addresses 192.0.2.10/24, which a port"),
        (with_port("eth3", {}), "ovs0:ports:eth3", "eth3 is a port of br0"),
        ({"ovs1": {"ports": {"eth1": {}}}}, "ovs1:ports:eth1", "eth1 is a port of the bridge ovs0"),
        (with_port("bond0", {"interfaces": ["eth1", "eth2"]}), "ovs0:ports:bond0", "eth1 belongs to the port eth1"),
        ({"eth2": {}}, "eth2", "eth2 is an interface of the host already"),
    ],
)
def test_what_stands_in_the_way_is_named(bridges, where, text):
    ((path, said),) = made(bridges).errors
    assert path == where
    assert text in said


def test_a_port_moves_once_it_is_taken_out_of_the_other_bridge():
    plan = made({"ovs0": {"ports": {"eth1": {"ensure": "absent"}}}, "ovs1": {"ports": {"eth1": {"tag": 10}}}})
    assert plan.errors == []
    assert plan.commands == [
        ["--if-exists", "del-port", "ovs0", "eth1"],
        ["--may-exist", "add-br", "ovs1"],
        ["--may-exist", "add-port", "ovs1", "eth1"],
        ["set", "Port", "eth1", "tag=10"],
    ]


def test_the_members_of_a_bond_change_without_taking_it_down(monkeypatch):
    facts = database(tag=None, members=("eth1", "eth2"))
    monkeypatch.setitem(NICS, "eth5", Nic())
    same = {"ovs0": {"ports": {"bond0": {"interfaces": ["eth2", "eth1"]}}}}
    assert made(same, facts).commands == []
    other = {"ovs0": {"ports": {"bond0": {"interfaces": ["eth1", "eth5"]}}}}
    assert made(other, facts).commands == [
        ["--may-exist", "add-bond-iface", "bond0", "eth5"],
        ["--if-exists", "del-bond-iface", "bond0", "eth2"],
    ]


def test_output_of_something_else_is_no_database():
    with pytest.raises(ValueError, match="printed 1 tables instead of 4"):
        ovs_plan.facts_of('{"headings": [], "data": []}\n')


def test_the_question_reads_what_the_answer_needs():
    words = ovs_plan.question()
    assert words.count("--") == 3
    assert [words[index + 1] for index, word in enumerate(words) if word == "list"] == [
        *("Open_vSwitch", "Bridge", "Port", "Interface")
    ]


def test_addresses_of_the_link_alone_are_none():
    links = [
        {"ifname": "eth0", "addr_info": [{"local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
        {"ifname": "eth1", "master": "br0", "addr_info": [{"local": "192.0.2.1", "prefixlen": 24, "scope": "global"}]},
    ]
    assert ovs_plan.nics_of(json.dumps(links)) == {"eth0": Nic(), "eth1": Nic(("192.0.2.1/24",), "br0")}


def test_what_carries_the_hosts_addresses_is_not_removed():
    held = {"ovs0": ["host0", "eth1"]}
    gone = {"ovs0": {"ports": {"eth1": {"ensure": "absent"}, "gre1": {"ensure": "absent"}}}}
    assert ovs_plan.plan(gone, {}, database(), NICS, held).errors == [
        ("ovs0:ports:eth1", "the host has its addresses on it; take it out of network:bridges:ovs0 first")
    ]
    assert ovs_plan.plan({"ovs0": {"ensure": "absent"}}, {}, database(), NICS, held).errors == [
        ("ovs0", "the host has its addresses on it; take it out of network:bridges:ovs0 first")
    ]
    assert ovs_plan.plan(gone, {}, database(), NICS, {"ovs1": ["eth1"]}).errors == []


def test_a_certificate_takes_the_place_of_a_key_and_back_in_one_transaction():
    gre = {"type": "gre", "remote": "192.0.2.2", "psk": None, "remote_name": "hv2", "trunks": [10, 20]}
    found = ovs_plan.plan({"ovs0": {"ports": {"gre1": gre}}}, ovs_plan.with_identity({}, "certificate", database()),
                          database(), NICS)  # fmt: skip
    paths = [f'other_config:"{key}"="{path}"' for key, path in ovs_plan.IDENTITY.items()]
    assert found.commands == [
        ["set", "Open_vSwitch", ".", *paths],
        ["set", "Interface", "gre1", 'options:"remote_name"="hv2"'],
        ["remove", "Interface", "gre1", "options", "psk"],
    ]
    held = database()
    held.interfaces["gre1"]["options"] = {"remote_ip": "192.0.2.2", "remote_name": "hv2"}
    held.settings.update(ovs_plan.IDENTITY)
    back = {"type": "gre", "remote": "192.0.2.2", "psk": KEY, "trunks": [10, 20]}
    found = ovs_plan.plan({"ovs0": {"ports": {"gre1": back}}}, ovs_plan.with_identity({}, "psk", held), held, NICS)
    assert found.commands == [
        *(["remove", "Open_vSwitch", ".", "other_config", f'"{key}"'] for key in ovs_plan.IDENTITY),
        ["remove", "Interface", "gre1", "options", '"remote_name"'],
    ]
    assert found.secrets == {"gre1": KEY}
    # Without encrypted tunnels nothing is said of it.
    assert ovs_plan.with_identity({"a": 1}, "", held) == {"a": 1}
    # What somebody else has put there is left alone.
    assert ovs_plan.with_identity({}, "psk", database()) == {}


CARRIES = "ovs0 on the bridge ovs0 carries the connection to the master; such a bridge is declared as network:bridges:"
GUEST = {"type": "internal", "tag": 20}


def cut(bridges: dict[str, Any], held: dict[str, list[str]] | None = None, **facts: Any) -> list[tuple[str, str]]:
    """What is refused on a host whose connection to the master is on the bridge's own port."""
    nics = {**NICS, "eth5": Nic(), "eth6": Nic()}
    return ovs_plan.plan(bridges, {}, database(**facts), nics, held, ["ovs0"]).errors


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"fail_mode": "secure"}, "fail_mode"),
        ({"stp": True}, "stp"),
        ({"mac": "52:54:00:aa:00:02"}, "mac"),
        ({"other_config": {"mac-table-size": 5}}, "other_config"),
        ({"ports": {"eth1": {"tag": 20}}}, "ports:eth1:tag"),
        ({"ports": {"eth1": {"tag": None}}}, "ports:eth1:tag"),
        ({"ports": {"eth1": {"mtu": 9000}}}, "ports:eth1:mtu"),
        ({"ports": {"ovs0": {"type": "internal", "tag": 20}}}, "ports:ovs0:tag"),
        ({"ports": {"ovs0": {"type": "internal", "mac": "52:54:00:aa:00:02"}}}, "ports:ovs0:mac"),
        ({"ports": {"eth1": {"ensure": "absent"}}}, "ports:eth1"),
        ({"ensure": "absent"}, ""),
    ],
)
def test_a_bridge_that_carries_the_connection_is_changed_by_network_bridges_alone(spec, key):
    path = f"ovs0:{key}" if key else "ovs0"
    assert cut({"ovs0": spec}) == [(path, f"{CARRIES}ovs0:switch: openvswitch")]
    # Elsewhere it is nobody's business.
    assert ovs_plan.plan({"ovs0": spec}, {}, database(), NICS, None, ["eth0", "eth1"]).errors == []


def test_cards_of_a_bond_that_carries_the_connection_stay():
    bond = {"ovs0": {"ports": {"bond0": {"interfaces": ["eth1", "eth5"]}}}}
    found = cut(bond, tag=None, members=("eth1", "eth2"))
    assert found == [("ovs0:ports:bond0", f"{CARRIES}ovs0:switch: openvswitch")]
    single = {"ovs0": {"ports": {"eth1": {"interfaces": ["eth1", "eth5"]}}}}
    assert ("ovs0:ports:eth1", f"{CARRIES}ovs0:switch: openvswitch") in cut(single)
    # A card that moves to another bridge leaves this one.
    moved = {"ovs0": {"ports": {"eth1": {"ensure": "absent"}}}, "ovs1": {"ports": {"eth1": {}}}}
    assert [path for path, _ in cut(moved)] == ["ovs0:ports:eth1"]


@pytest.mark.parametrize(
    "spec",
    [
        DECLARED["ovs0"],
        {"ports": {"eth1": {"tag": 10}, "ovs0": {"type": "internal"}}},
        {"ports": {"int0": GUEST, "eth5": {"tag": 20}, "bond1": {"interfaces": ["eth5", "eth6"]}}},
        {"ports": {"gre1": {**GRE, "remote": "192.0.2.3", "psk": KEY[::-1], "trunks": []}}},
        {"ports": {"gre1": {"ensure": "absent"}}},
        {"external_ids": {"owner": "ops"}, "mcast_snooping": True},
    ],
)
def test_further_ports_of_such_a_bridge_come_and_go(spec):
    assert cut({"ovs0": spec}) == []
    assert cut({"ovs0": spec}, {"ovs0": ["ovs0", "eth1"]}) == []


def test_an_internal_port_beside_the_bridge_carries_it_as_well():
    facts = database()
    facts.ports["int0"] = {"name": "int0", "bridge": "ovs0", "members": ("int0",), "tag": 20}
    facts.interfaces["int0"] = {"name": "int0", "type": "internal"}
    for spec in ({"fail_mode": "secure"}, {"ports": {"int0": {"type": "internal", "tag": 30}}}):
        ((path, text),) = ovs_plan.plan({"ovs0": spec}, {}, facts, NICS, None, ["int0", "int0.7"]).errors
        assert path in {"ovs0:fail_mode", "ovs0:ports:int0:tag"}
        assert text.startswith("int0 on the bridge ovs0 carries the connection to the master")


@pytest.mark.parametrize("carrying", [(), ("ovs0",)])
def test_what_network_bridges_holds_is_not_changed_either(carrying):
    held = {"ovs0": ["ovs0", "eth1"]}
    decides = "the host has its addresses on ovs0; network:bridges:ovs0 decides it"
    spec = {"fail_mode": "secure", "ports": {"eth1": {"tag": 20}, "int0": GUEST}}
    found = ovs_plan.plan({"ovs0": spec}, {}, database(), NICS, held, carrying).errors
    assert found == [("ovs0:fail_mode", decides), ("ovs0:ports:eth1:tag", decides)]
    gone = ovs_plan.plan({"ovs0": {"ensure": "absent"}}, {}, database(), NICS, held, carrying).errors
    assert gone == [("ovs0", "the host has its addresses on it; take it out of network:bridges:ovs0 first")]


def test_addresses_of_the_connection_stay():
    ports = {"int0": "ovs0", "int1": "ovs0"}
    assert ovs_plan.unmoved(ports, {}, ["eth0"]) == {}
    assert list(ovs_plan.unmoved(ports, {}, ["int1"])) == ["int1"]
    assert ovs_plan.unmoved(ports, {"ovs1": ["int0"]}, [])["int0"].endswith("network:bridges:ovs1 decides it")
    assert "network:bridges:NAME:switch" in ovs_plan.unmoved({"int0": ""}, {}, ["int0"])["int0"]

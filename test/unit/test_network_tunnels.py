"""Meshes from one list, the largest packet inside, and the table that lets nothing plain pass."""

from __future__ import annotations

import json
from typing import Any

import pytest

from _utils import network_tunnels
from _utils.network_tunnels import Peer
from _utils.ovs_plan import Facts, Nic, Plan, nothing, plan

KEY, OTHER = "kq3Vw8yR0bN5tXz1LmCe", "Zp7Hd2sUa9fQ4jGx6IoM"
NODES: dict[str, Any] = {
    "hv1": {"address": "192.0.2.1", "inside": ["10.9.0.1/24"]},
    "hv2": {"address": "192.0.2.2", "inside": ["10.9.0.2/24"]},
    "hv3": {"address": "192.0.2.3"},
}
MESH: dict[str, Any] = {"bridge": "ovs0", "port": "priv0", "nodes": NODES}


def composed(node: str = "hv1", bridges: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    configuration = {
        "ipsec": {"psk": KEY},
        "ovs": {"bridges": bridges or {}},
        "mesh": {"private": {**MESH, **keys}},
    }
    return network_tunnels.compose(configuration, node)


def test_every_host_makes_its_own_tunnels_from_one_list():
    ports = composed()["ovs0"]["ports"]
    assert list(ports) == ["private_hv2", "private_hv3", "priv0"]
    assert ports["private_hv2"] == {
        "type": "gre",
        "remote": "192.0.2.2",
        "local": "192.0.2.1",
        "ipsec": True,
        "protected": True,
        "psk": KEY,
        "name": "hv2",
    }
    assert ports["priv0"] == {"type": "internal", "mtu": 1424, "addresses": ["10.9.0.1/24"]}
    back = composed("hv2")["ovs0"]["ports"]["private_hv1"]
    assert (back["remote"], back["local"]) == ("192.0.2.1", "192.0.2.2")


def test_a_mesh_joins_a_bridge_that_has_other_ports_and_a_port_may_say_more():
    bridges: dict[str, Any] = {"ovs0": {"stp": False, "ports": {"eth1": {}, "priv0": {"mtu": 1300}}}, "ovs1": {}}
    found = composed(bridges=bridges)
    assert list(found["ovs0"]["ports"]) == ["eth1", "priv0", "private_hv2", "private_hv3"]
    assert found["ovs0"]["stp"] is False
    assert found["ovs0"]["ports"]["priv0"]["mtu"] == 1300
    # The pillar itself is left as it is.
    assert list(bridges["ovs0"]["ports"]) == ["eth1", "priv0"]


def test_a_host_that_leaves_takes_the_tunnels_on_both_sides_with_it():
    nodes = {**NODES, "hv3": {**NODES["hv3"], "ensure": "absent"}}
    assert composed(nodes=nodes)["ovs0"]["ports"]["private_hv3"]["ensure"] == "absent"
    gone = composed("hv3", nodes=nodes)["ovs0"]["ports"]
    assert {port: one["ensure"] for port, one in gone.items()} == dict.fromkeys(
        ("private_hv1", "private_hv2", "priv0"), "absent"
    )
    assert {one["ensure"] for one in composed(ensure="absent")["ovs0"]["ports"].values()} == {"absent"}


def test_a_mesh_that_goes_makes_no_bridge():
    left = {**NODES, "hv1": {**NODES["hv1"], "ensure": "absent"}}
    for keys in ({"ensure": "absent"}, {"nodes": left}):
        gone = composed(**keys)
        assert gone["ovs0"]["if_there"] is True
        assert plan(gone, {}, nothing(), {}) == Plan([], {}, {}, [])
        # Where the bridge is, it loses the ports and stays.
        ports = {one: {"bridge": "ovs0", "members": (one,)} for one in ("private_hv2", "eth1")}
        there = Facts({}, {"ovs0": {}}, ports, {})
        assert plan(gone, {}, there, {}).commands == [["--if-exists", "del-port", "ovs0", "private_hv2"]]
        # One that is declared is made, and so is that of another mesh.
        assert "if_there" not in composed(bridges={"ovs0": {}}, **keys)["ovs0"]
    for order in (("far", "gone"), ("gone", "far")):
        every = {"gone": {**MESH, "ensure": "absent"}, "far": {**MESH, "port": "far0"}}
        mesh = {name: every[name] for name in order}
        both = network_tunnels.compose({"ipsec": {}, "ovs": {"bridges": {}}, "mesh": mesh}, "hv1")
        assert "if_there" not in both["ovs0"]


def test_a_host_that_is_not_listed_is_told_who_is():
    with pytest.raises(
        ValueError, match="network:mesh:private:nodes: this host, hv9, is not listed; there are: hv1, hv2"
    ):
        composed("hv9")


def test_a_port_asks_a_server_or_has_addresses_inside():
    leased: dict[str, Any] = {"type": "internal", "dhcp4": True, "mac": "52:54:00:00:00:01"}
    bridges = {"ovs0": {"ports": {"priv0": leased}}}
    where, inside = "network:ovs:bridges:ovs0:ports:priv0:dhcp4", "network:mesh:private:nodes:hv1:inside"
    with pytest.raises(ValueError, match=f"^{where}: not allowed with {inside}; one of dhcp4 and inside has to go$"):
        composed(bridges=bridges)
    # Another host of the mesh, which has none, may ask.
    assert network_tunnels.leased(composed("hv3", bridges=bridges)) == ["priv0"]
    assert network_tunnels.addresses(composed("hv3", bridges=bridges)) == {}
    assert network_tunnels.leased(composed(bridges={"ovs1": {"ports": {"priv0": leased}}})) == ["priv0"]
    gone = composed(bridges={"ovs0": {"ports": {"priv0": {**leased, "ensure": "absent"}}}})
    assert network_tunnels.leased(gone) == []
    still = composed(bridges={"ovs0": {"ports": {"priv0": {**leased, "dhcp4": False}}}})
    assert network_tunnels.addresses(still) == {"priv0": ["10.9.0.1/24"]}


@pytest.mark.parametrize(("keys", "psk"), [({}, KEY), ({"psk": OTHER}, OTHER), ({"ipsec": False}, None)])
def test_a_tunnel_has_the_key_nearest_to_it_and_a_plain_one_has_none(keys, psk):
    assert composed(**keys)["ovs0"]["ports"]["private_hv2"]["psk"] == psk


def test_with_certificates_a_tunnel_knows_the_others_name_and_has_no_key():
    bridges = {
        "ovs0": {
            "ports": {
                "g": {"type": "gre", "remote": "192.0.2.9", "remote_name": "hv9"},
                "plain": {"type": "gre", "remote": "192.0.2.8", "ipsec": False},
            }
        }
    }
    configuration = {"ipsec": {"auth": "certificate"}, "ovs": {"bridges": bridges}, "mesh": {"private": MESH}}
    ports = network_tunnels.compose(configuration, "hv1")["ovs0"]["ports"]
    assert {name: (one.get("remote_name"), one["psk"]) for name, one in ports.items() if "psk" in one} == {
        "g": ("hv9", None),
        "plain": (None, None),
        "private_hv2": ("hv2", None),
        "private_hv3": ("hv3", None),
    }


def test_names_of_tunnels_fit_and_differ():
    names = {network_tunnels.tunnel_name("private", f"hv{index}.rack-a.example.org") for index in range(200)}
    assert len(names) == 200
    assert max(map(len, names)) <= 15
    assert network_tunnels.tunnel_name("m", "hv-1") == "m_hv_1"


@pytest.mark.parametrize(
    ("kind", "remote", "ipsec", "keyed", "underlay", "inside"),
    [
        # The first is what a prototype measured with a VLAN tag; the others follow from the headers.
        ("gre", "192.0.2.2", True, False, 1500, 1424),
        ("gre", "192.0.2.2", True, True, 1500, 1420),
        ("gre", "192.0.2.2", False, False, 1500, 1458),
        ("gre", "2001:db8::2", True, False, 1500, 1404),
        ("vxlan", "192.0.2.2", False, True, 1500, 1446),
        ("vxlan", "192.0.2.2", True, True, 1500, 1412),
        ("gre", "192.0.2.2", True, False, 9000, 8924),
    ],
)
def test_the_largest_packet_inside(kind, remote, ipsec, keyed, underlay, inside):
    assert network_tunnels.inner_mtu(kind, remote, ipsec, keyed, underlay) == inside
    # Encrypted, it must not be larger than the underlay's: what is padded ends on four octets.
    if ipsec:
        gre = inside + 18 + network_tunnels._HEADER[kind] + (4 if kind == "gre" and keyed else 0)
        padded = -(-(gre + 2) // 4) * 4
        assert (40 if ":" in remote else 20) + 32 + padded <= underlay
        assert (40 if ":" in remote else 20) + 32 + padded + 4 > underlay


def test_a_mesh_may_say_its_largest_packet_itself():
    assert network_tunnels.mesh_mtu({**MESH, "mtu": 1300}) == 1300
    assert network_tunnels.mesh_mtu({**MESH, "underlay_mtu": 1400}) == 1324


def test_ports_that_ask_a_dhcp_server():
    asks = {"type": "internal", "dhcp4": True}
    ports = {"int1": asks, "int0": {"type": "internal"}, "old": {**asks, "ensure": "absent"}}
    assert network_tunnels.leased({"a": {"ports": ports}, "b": {"ensure": "absent", "ports": {"x": asks}}}) == ["int1"]


def test_internal_ports_have_their_addresses_and_no_others():
    bridges: dict[str, Any] = {
        "ovs0": {
            "ports": {
                "int0": {"type": "internal", "addresses": ["10.0.0.1/24", "2001:DB8::1/64"], "tag": 5},
                "bare": {"type": "internal"},
                "gone": {"type": "internal", "ensure": "absent", "addresses": ["10.0.0.9/24"]},
                "eth1": {},
            }
        },
        "old": {"ensure": "absent", "ports": {"x": {"type": "internal", "addresses": ["10.0.0.1/24"]}}},
    }
    wanted = network_tunnels.addresses(bridges)
    assert wanted == {"int0": ["10.0.0.1/24", "2001:db8::1/64"]}
    assert network_tunnels.address_batch(wanted).splitlines() == [
        *("address replace 10.0.0.1/24 dev int0", "address replace 2001:db8::1/64 dev int0", "link set dev int0 up"),
    ]
    both, one = Nic(("2001:db8::1/64", "10.0.0.1/24")), Nic(("10.0.0.7/24",))
    assert network_tunnels.address_changes(wanted, {"int0": both}) == {}
    new = ["10.0.0.1/24", "2001:db8::1/64"]
    assert network_tunnels.address_changes(wanted, {"int0": one}) == {"int0": {"old": ["10.0.0.7/24"], "new": new}}
    assert network_tunnels.address_changes(wanted, {}) == {"int0": {"old": [], "new": new}}


def test_an_address_goes_from_a_port_that_has_none_declared_if_the_formula_gave_it():
    wanted = {"int1": ["10.0.0.1/25", "2001:db8::1/64"]}
    have = {"int0": Nic(("10.0.0.1/24", "10.0.0.2/24", "2001:db8::1/64")), "int1": Nic()}
    batch = network_tunnels.address_batch({"int0": ["10.0.0.1/24", "10.0.0.2/24"], "gone": ["10.0.0.1/24"]})
    before = network_tunnels.given(f"# A header.\n{batch}")
    assert before == {"int0": ["10.0.0.1/24", "10.0.0.2/24"], "gone": ["10.0.0.1/24"]}
    leaving = network_tunnels.address_moves(wanted, have, before)
    # 10.0.0.2 merely left the pillar, and nobody knows who gave 2001:db8::1.
    assert leaving == {"int0": ([*have["int0"].addresses], ["10.0.0.2/24", "2001:db8::1/64"], "int1")}
    assert list(network_tunnels.address_clashes(wanted, have, leaving, ["int0", "int1"])) == ["int1"]
    assert network_tunnels.address_clashes(wanted, have, leaving, ["int1"]) == {}
    assert network_tunnels.address_moves(wanted, have, {}) == {}
    # A port with declared addresses loses what is not declared anyway, and may share one.
    shared = {**wanted, "int0": ["10.0.0.1/24"]}
    assert network_tunnels.address_moves(shared, have, before) == {}
    assert network_tunnels.address_clashes(shared, have, {}, ["int0", "int1"]) == {}


SEALED = Peer("a", "192.0.2.2", "gre", True, "hv2")
PLAIN = Peer("b", "192.0.2.9", "gre", False, "old")
VXLAN = Peer("c", "2001:db8::2", "vxlan", True, "hv2")


def test_the_guard_drops_all_plain_gre_and_lets_declared_exceptions_pass():
    assert network_tunnels.guard([SEALED, PLAIN, VXLAN]) == [
        ("out", "ip daddr 192.0.2.9 meta l4proto gre accept"),
        ("out", "meta l4proto gre rt ipsec missing drop"),
        ("out", "ip6 daddr 2001:db8::2 udp dport 4789 rt ipsec missing drop"),
        ("in", "ip saddr 192.0.2.9 meta l4proto gre accept"),
        ("in", "meta l4proto gre meta ipsec missing drop"),
        ("in", "ip6 saddr 2001:db8::2 udp dport 4789 meta ipsec missing drop"),
    ]
    # Without any tunnel, too: what somebody else makes is not plain either.
    assert [rule for _, rule in network_tunnels.guard([])] == [
        "meta l4proto gre rt ipsec missing drop",
        "meta l4proto gre meta ipsec missing drop",
    ]


def switch(port: str = "vx0", bridge: str = "ovs0", kind: str = "vxlan", **options: str) -> Facts:
    """What the database of a switch with one tunnel holds."""
    interface = {"type": kind, "options": {"remote_ip": "192.0.2.9", **options}}
    return Facts({}, {bridge: {}}, {port: {"bridge": bridge, "members": (port,)}}, {port: interface})


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (switch(psk=KEY), True),
        (switch(kind="geneve", remote_name="hv9"), True),
        (switch(remote_cert="/etc/hv9.pem"), True),
        (switch(), False),
        (switch(kind="gre", psk=KEY), False),
        (switch(psk=KEY, remote_ip="flow"), False),
        (switch(psk=KEY, remote_ip="fe80::1%eth0"), False),
        (nothing(), False),
    ],
)
def test_encrypted_tunnels_that_the_pillar_does_not_name_any_more(facts, found):
    kept = network_tunnels.kept({"ovs0": {"ports": {"eth1": {}}}}, facts)
    assert [(one.port, one.remote, one.ipsec) for one in kept] == ([("vx0", "192.0.2.9", True)] if found else [])
    assert KEY not in repr(kept)


@pytest.mark.parametrize(
    ("bridges", "found"),
    [
        ({}, True),
        ({"ovs0": {"ports": {"vx0": {"type": "vxlan", "ensure": "absent"}}}}, False),
        ({"ovs0": {"ports": {"vx0": {"type": "vxlan", "remote": "192.0.2.8", "ipsec": True}}}}, False),
        ({"ovs0": {"ensure": "absent", "ports": {}}}, False),
        # The port of another bridge is not the one that goes.
        ({"ovs1": {"ports": {"vx0": {"type": "vxlan", "ensure": "absent"}}}}, True),
    ],
)
def test_what_the_pillar_names_is_not_kept(bridges, found):
    assert bool(network_tunnels.kept(bridges, switch(psk=KEY))) is found


def test_the_tunnels_of_a_stored_guard_are_found_again():
    tunnels = [SEALED, PLAIN, VXLAN, Peer("d", "192.0.2.7", "geneve", True, "hv3"), PLAIN._replace(kind="vxlan")]
    script = network_tunnels.guard_script(network_tunnels.guard(tunnels))
    found = {(one.kind, one.remote, one.ipsec) for one in network_tunnels.stored(script)}
    assert found == {("vxlan", "2001:db8::2", True), ("geneve", "192.0.2.7", True)}
    assert network_tunnels.guard([SEALED, PLAIN, PLAIN._replace(kind="vxlan"), *network_tunnels.stored(script)]) == (
        network_tunnels.guard(tunnels)
    )


def test_the_guard_is_replaced_in_one_transaction():
    script = network_tunnels.guard_script(network_tunnels.guard([SEALED]))
    assert script.startswith("table inet hypervisor_tunnels\ndelete table inet hypervisor_tunnels\ntable inet")
    assert script.count("policy accept;") == 2
    assert "meta l4proto gre rt ipsec missing counter drop comment" in script
    assert "flush" not in script


def listed(rules: list[tuple[str, str]]) -> dict[str, Any]:
    """What nft prints of a table that holds these rules."""
    stamp = network_tunnels.guard_stamp(rules)
    chains = [{"name": chain, "hook": hook, "policy": "accept"} for chain, hook in (("out", "output"), ("in", "input"))]
    body = [
        {
            "chain": chain,
            "comment": stamp,
            "expr": [{"match": {}}, {"counter": {"packets": 3}}, {rule.split()[-1]: None}],
        }
        for chain, rule in rules
    ]
    return {"nftables": [{"metainfo": {}}, *({"chain": one} for one in chains), *({"rule": one} for one in body)]}


def test_the_guard_is_known_whole_or_not_at_all():
    rules = network_tunnels.guard([SEALED, PLAIN])
    assert network_tunnels.guard_holds(listed(rules), rules)
    assert not network_tunnels.guard_holds(listed(network_tunnels.guard([SEALED])), rules)
    assert not network_tunnels.guard_holds({"nftables": []}, rules)
    for index in range(1, len(listed(rules)["nftables"])):
        lacking = listed(rules)
        del lacking["nftables"][index]
        assert not network_tunnels.guard_holds(lacking, rules)
    opened = json.loads(json.dumps(listed(rules)).replace('"drop"', '"accept"'))
    assert not network_tunnels.guard_holds(opened, rules)

"""Pillars of switches, tunnels and served networks that do not fit together are refused, each by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary, network_ovs_rules

ROOT = Path(__file__).resolve().parents[2]
FILES = {name: yaml.safe_load((ROOT / "network" / name).read_text()) for name in ("defaults.yaml", "schema.yaml")}
KEY, OTHER = "kq3Vw8yR0bN5tXz1LmCe", "Zp7Hd2sUa9fQ4jGx6IoM"
NODES = {"hv1": {"address": "192.0.2.1", "inside": ["10.9.0.1/24"]}, "hv2": {"address": "192.0.2.2"}}
MESH: dict[str, Any] = {"bridge": "ovs0", "port": "priv0", "nodes": NODES}
GRE: dict[str, Any] = {"type": "gre", "remote": "192.0.2.2"}
BOTH = {"hv1": {"address": "192.0.2.1", "inside": ["10.9.0.1/24", "fd00:9::1/64"]}}
SIX = [{"start": "fd00:9::10", "end": "fd00:9::20"}]


def judged(pillar: dict[str, Any]) -> list[tuple[str, str]]:
    """The errors of the schema and, as in a run, without any those of the rules."""
    grains = {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-12"}
    configuration, errors = formula_config.assemble(
        "network", {**FILES, "osmap.yaml": {}}, grains, pillar, formula_vocabulary.load, formula_schema.errors
    )
    return errors or network_ovs_rules.errors(configuration)


def port(spec: dict[str, Any], name: str = "p1", **more: Any) -> dict[str, Any]:
    return {"ipsec": {"psk": KEY}, "ovs": {"bridges": {"ovs0": {"ports": {name: spec}}}}, **more}


def mesh(**keys: Any) -> dict[str, Any]:
    return {"ipsec": {"psk": KEY}, "mesh": {"private": {**MESH, **keys}}}


def served(**keys: Any) -> dict[str, Any]:
    return {**mesh(), "dnsmasq": {"net": {"interface": "priv0", **keys}}}


def shared(spec: dict[str, Any]) -> dict[str, Any]:
    """A bridge that carries the host's own addresses, and what is said of it below ovs."""
    uplink = {"switch": "openvswitch", "host_port": "host0", "ports": ["eth0"], "addresses": ["10.0.0.1/24"]}
    return {"bridges": {"ovs0": uplink}, "ovs": {"bridges": {"ovs0": spec}}}


LEASED = "network:ovs:bridges:ovs0:ports:priv0:dhcp4"


def leased(nodes: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A mesh whose port asks a DHCP server, although hv1 has an address for it."""
    asks = {"type": "internal", "dhcp4": True, "mac": "52:54:00:00:00:01", **keys}
    return {**mesh(nodes={**NODES, **nodes}), "ovs": {"bridges": {"ovs0": {"ports": {"priv0": asks}}}}}


def test_a_port_of_a_mesh_may_ask_a_server_on_hosts_that_have_no_address_inside():
    assert judged(leased({})) == []
    inside = {"hv2": {"address": "192.0.2.2", "inside": ["10.9.0.2/24"]}}
    assert judged(leased(inside, ensure="absent")) == []
    assert judged(leased(inside, dhcp4=False)) == []


def test_a_bridge_with_the_hosts_addresses_takes_further_ports_and_a_mesh():
    assert judged(shared({"ports": {"int0": {"type": "internal"}}, "external_ids": {"owner": "ops"}})) == []
    served = {"net": {"interface": "host0", "ranges": [{"start": "10.0.0.100", "end": "10.0.0.110"}]}}
    assert judged({**shared({}), **mesh(), "dnsmasq": served}) == []


def certified(mesh: dict[str, Any] | None = None, psk: str = "", **more: Any) -> dict[str, Any]:
    """Hosts that know each other by certificates."""
    ipsec = {"auth": "certificate", **({"psk": psk} if psk else {})}
    return {"ipsec": ipsec, "mesh": mesh or {"private": MESH}, **more}


def test_certificates_need_no_key():
    gre = {**GRE, "remote": "192.0.2.9", "remote_name": "hv9"}
    plain = {"type": "gre", "remote": "192.0.2.8", "ipsec": False}
    assert judged(certified()) == []
    assert judged(certified(ovs={"bridges": {"ovs0": {"ports": {"p1": gre, "p2": plain}}}})) == []


def test_listed_hosts_alone_are_served_in_a_network_of_the_interface():
    hosts = {"52:54:00:00:00:01": {"ip": "10.9.0.10"}}
    assert judged(served(hosts=hosts, network="10.9.0.0/24")) == []
    # Names alone, without DHCP, need none.
    assert judged(served(domain="private.example")) == []


def test_listed_hosts_of_one_family_are_served_beside_a_range_of_the_other():
    pillar = {**served(hosts=FIXED, ranges=SIX, network="10.9.0.0/24"), **mesh(nodes=BOTH)}
    assert judged(pillar) == []


def test_what_fits_is_accepted():
    ranges = [{"start": "10.9.0.100", "end": "10.9.0.150"}, {"start": "10.9.0.160", "end": "10.9.0.170"}]
    pillar = served(ranges=ranges, hosts={"52:54:00:00:00:01": {"ip": "10.9.0.10", "name": "web"}}, router="10.9.0.1")
    pillar["ovs"] = {
        "bridges": {
            "ovs0": {
                "ports": {
                    "bond0": {"interfaces": ["eth1", "eth2"], "lacp": "active", "trunks": [10, 20]},
                    "gre1": {**GRE, "key": 7},
                    "plain": {**GRE, "remote": "192.0.2.9", "ipsec": False},
                    "to1": {"type": "patch", "peer": "to0"},
                }
            },
            "ovs1": {"ports": {"to0": {"type": "patch", "peer": "to1"}, "gone": {"ensure": "absent"}}},
        }
    }
    assert judged(pillar) == []
    assert judged({}) == []


PORTS = "network:ovs:bridges:ovs0:ports"
AT = f"{PORTS}:p1"
MAC = "52:54:00:00:00:01"
HOSTS = {MAC: {"name": "web"}}
FIXED = {MAC: {"ip": "10.9.0.5"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # certificates
    (certified(psk=KEY), "network:ipsec:psk", "not allowed with network:ipsec:auth certificate"),
    (certified(mesh={"private": {**MESH, "psk": KEY}}), "network:mesh:private:psk", "not allowed with network:ipsec"),
    (
        certified(ovs={"bridges": {"ovs0": {"ports": {"p1": {**GRE, "psk": KEY, "remote_name": "hv2"}}}}}),
        "network:ovs:bridges:ovs0:ports:p1:psk",
        "not allowed with network:ipsec:auth certificate",
    ),
    (
        certified(ovs={"bridges": {"ovs0": {"ports": {"p1": GRE}}}}),
        "network:ovs:bridges:ovs0:ports:p1:remote_name",
        "missing; must be the minion id of the other end",
    ),
    (
        certified(ovs={"other_config": {"certificate": "/a.pem"}}),
        "network:ovs:other_config:certificate",
        "network:ipsec:auth decides it",
    ),
    (port({**GRE, "remote_name": "hv2"}), f"{AT}:remote_name", "not allowed with network:ipsec:auth psk"),
    (
        port({**GRE, "ipsec": False, "remote_name": "hv2"}),
        f"{AT}:remote_name",
        "not allowed with ipsec: false",
    ),
    (port({"remote_name": "hv2"}), f"{AT}:remote_name", "not allowed with type: system"),
    ({"ipsec": {"auth": "none"}}, "network:ipsec:auth", "psk, certificate"),
    # ports
    (port({"tag": 4095}), f"{AT}:tag", "4094"),
    (port({"trunks": [0]}), f"{AT}:trunks:0", "1"),
    (port({"tag": 10, "vlan_mode": "trunk"}), f"{AT}:tag", "not allowed with vlan_mode: trunk"),
    (port({"interfaces": ["eth1"]}), f"{AT}:interfaces", "2"),
    (port({"lacp": "active"}), f"{AT}:lacp", "not allowed without interfaces"),
    (port({"addresses": ["10.0.0.1/24"]}), f"{AT}:addresses", "not allowed with type: system"),
    (port({"remote": "192.0.2.2"}), f"{AT}:remote", "not allowed with type: system"),
    (port({"dhcp4": True}), f"{AT}:dhcp4", "not allowed with type: system"),
    (port({"type": "internal", "dhcp4": True}), f"{AT}:mac", "missing; with dhcp4 it is needed"),
    (
        port({"type": "internal", "mac": MAC, "dhcp4": True, "addresses": ["10.0.0.1/24"]}),
        f"{AT}:addresses",
        "not allowed with dhcp4: true",
    ),
    (port({"type": "patch"}), f"{AT}:peer", "missing"),
    (port({"type": "gre"}), f"{AT}:remote", "missing"),
    (port({}, name="a" * 16), "network:ovs:bridges:ovs0:ports", "15"),
    ({"ovs": {"bridges": {"b": {"stp": True, "rstp": True}}}}, "network:ovs:bridges:b:rstp", "not allowed with stp"),
    (port({}, name="eth1", bridges={"br0": {"ports": ["eth1"]}}), "network:ovs:bridges:ovs0:ports:eth1", "a port of"),
    ({"ovs": {"bridges": {"br0": {}}}, "bridges": {"br0": {}}}, "network:ovs:bridges:br0", "the same name"),
    (shared({"fail_mode": "secure"}), "network:ovs:bridges:ovs0:fail_mode", "network:bridges:ovs0 decides it"),
    (shared({"ensure": "absent"}), "network:ovs:bridges:ovs0:ensure", "network:bridges:ovs0 decides it"),
    (shared({"ports": {"eth0": {"ensure": "absent"}}}), f"{PORTS}:eth0", "one of network:bridges:ovs0"),
    (shared({"ports": {"host0": {"type": "internal"}}}), f"{PORTS}:host0", "one of network:bridges"),
    (shared({"ports": {"ovs0": {"type": "internal"}}}), f"{PORTS}:ovs0", "one of network:bridges"),
    (
        {**shared({}), "ovs": {"bridges": {"ovs1": {"ports": {"eth0": {}}}}}},
        "network:ovs:bridges:ovs1:ports:eth0",
        "one of network:bridges:ovs0",
    ),
    ({**mesh(), "bridges": {"ovs0": {"ports": ["eth0"]}}}, "network:mesh:private:bridge", "a bridge of the kernel"),
    (
        {"ovs": {"bridges": {"a": {"ports": {"eth1": {}}}, "b": {"ports": {"eth1": {}}}}}},
        "network:ovs:bridges:b:ports:eth1",
        "eth1 stands at network:ovs:bridges:a:ports:eth1 already",
    ),
    # tunnels
    (port({**GRE, "local": "192.0.2.2"}), f"{AT}:remote", "this end of the tunnel too"),
    (port({**GRE, "local": "2001:db8::1"}), f"{AT}:local", "not of the family"),
    (port({**GRE, "type": "vxlan", "key": 1 << 24}), f"{AT}:key", "too large"),
    (port({**GRE, "type": "vxlan", "options": {"dst_port": 8472}}), f"{AT}:options:dst_port", "not allowed with IPsec"),
    (port({**GRE, "options": {"psk": KEY}}), f"{AT}:options", "psk"),
    (port({**GRE, "ipsec": False, "psk": KEY}), f"{AT}:psk", "not allowed with ipsec: false"),
    ({"ovs": {"bridges": {"ovs0": {"ports": {"p1": GRE}}}}}, f"{AT}:psk", "missing"),
    (
        {"ipsec": {"psk": KEY}, "ovs": {"bridges": {"a": {"ports": {"p1": GRE, "p2": GRE}}}}},
        "network:ovs:bridges:a:ports:p2:key",
        "network:ovs:bridges:a:ports:p1 is a gre tunnel to 192.0.2.2 with the key 0 already",
    ),
    ({**mesh(), **port(GRE)}, "network:mesh:private:key", "a gre tunnel to 192.0.2.2 with the key 0 already"),
    # meshes
    (
        mesh(nodes={"a": {"address": "192.0.2.1"}, "b": {"address": "192.0.2.1"}}),
        "network:mesh:private:nodes:b:address",
        "a tunnel to itself",
    ),
    (
        mesh(nodes={"a": {"address": "192.0.2.1"}, "b": {"address": "2001:db8::1"}}),
        "network:mesh:private:nodes",
        "cannot reach each other",
    ),
    (
        mesh(
            nodes={
                "a": {"address": "192.0.2.1", "inside": ["10.0.0.1/8"]},
                "b": {"address": "192.0.2.2", "inside": ["10.0.0.1/8"]},
            }
        ),
        "network:mesh:private:nodes:b:inside",
        "an address of a already",
    ),
    (
        {"ipsec": {"psk": KEY}, "mesh": {"m": {key: MESH[key] for key in ("bridge", "nodes")}}},
        "network:mesh:m:nodes:hv1:inside",
        "not allowed without",
    ),
    ({"mesh": {"private": MESH}}, "network:mesh:private:psk", "missing"),
    (mesh(ipsec=False, psk=KEY), "network:mesh:private:psk", "not allowed"),
    (mesh(type="geneve", key=1 << 24), "network:mesh:private:key", "too large"),
    ({**mesh(), "ovs": {"bridges": {"ovs0": {"ensure": "absent"}}}}, "network:mesh:private:bridge", "declared absent"),
    # keys
    ({"ipsec": {"psk": "short"}}, "network:ipsec:psk", "20"),
    ({"ipsec": {"psk": "changeme-changeme-changeme"}}, "network:ipsec:psk", "a placeholder, not a key"),
    ({"ipsec": {"psk": "abababababababababababab"}}, "network:ipsec:psk", "different characters"),
    ({"ipsec": {"psk": 'with"quotes-inside-of-it'}}, "network:ipsec:psk", "without blanks, quotes"),
    (
        {**mesh(psk=OTHER), **port({**GRE, "key": 5})},
        f"{AT}:psk",
        "192.0.2.2 has another key at network:mesh:private:psk",
    ),
    # served networks
    (served(interface="nowhere"), "network:dnsmasq:net:interface", "not declared"),
    (
        {**served(interface="int0"), **port({"type": "internal"}, "int0")},
        "network:dnsmasq:net:interface",
        "no static address",
    ),
    (served(ranges=[{"start": "10.9.0.9", "end": "10.9.0.1"}]), "network:dnsmasq:net:ranges:0", "after its end"),
    (served(ranges=[{"start": "10.8.0.1", "end": "10.8.0.9"}]), "network:dnsmasq:net:ranges:0", "not in 10.9.0.0/24"),
    (
        served(ranges=[{"start": "10.9.0.1", "end": "10.9.0.9"}, {"start": "10.9.0.9", "end": "10.9.0.20"}]),
        "network:dnsmasq:net:ranges:1",
        "overlaps another range",
    ),
    (
        served(hosts={"52:54:00:00:00:01": {"ip": "10.9.0.5"}, "52:54:00:00:00:02": {"ip": "10.9.0.5"}}),
        "network:dnsmasq:net:hosts:52:54:00:00:00:02:ip",
        "the address of 52:54:00:00:00:01 already",
    ),
    (
        served(hosts={"52:54:00:00:00:01": {"name": "a"}, "52:54:00:00:00:02": {"name": "A"}}),
        "network:dnsmasq:net:hosts:52:54:00:00:00:02:name",
        "the name of 52:54:00:00:00:01 already",
    ),
    (
        served(hosts={"52:54:00:00:00:01": {"ip": "10.8.0.5"}}),
        "network:dnsmasq:net:hosts:52:54:00:00:00:01:ip",
        "not in",
    ),
    (leased({"hv2": {"address": "192.0.2.2", "inside": ["10.9.0.2/24"]}}), LEASED, "one of dhcp4 and inside has to go"),
    (leased({"hv2": {"address": "192.0.2.2", "ensure": "absent"}}), LEASED, "not allowed with inside"),
    (served(hosts=HOSTS), "network:dnsmasq:net:network", "missing; without ranges it must be the network of the hosts"),
    (served(hosts=HOSTS), "network:dnsmasq:net:network", "allowed: 10.9.0.0/24"),
    (served(hosts=HOSTS, network="fd00:9::/64"), "network:dnsmasq:net:network", "fd00:9::/64 is not an IPv4 network"),
    (served(hosts=HOSTS, network="10.8.0.0/24"), "network:dnsmasq:net:network", "of priv0; allowed: 10.9.0.0/24"),
    (
        {**served(hosts=HOSTS), **mesh(nodes={"hv1": {"address": "192.0.2.1", "inside": ["fd00:9::1/64"]}})},
        "network:dnsmasq:net:network",
        "allowed: none, since priv0 has no static IPv4 address",
    ),
    (
        {**served(hosts=FIXED, ranges=SIX), **mesh(nodes=BOTH)},
        f"network:dnsmasq:net:hosts:{MAC}:ip",
        "the network of 10.9.0.5 has neither a range nor the key network, so that nobody would answer there",
    ),
    (
        {**served(ranges=SIX), **mesh(nodes={"hv1": {"address": "192.0.2.1", "inside": ["fd00:9::1/112"]}})},
        "network:dnsmasq:net:ranges:0",
        "dnsmasq serves IPv6 networks of /64; fd00:9::10 is in fd00:9::/112",
    ),
    (served(router="10.8.0.1"), "network:dnsmasq:net:router", "not in 10.9.0.0/24"),
    (
        {**served(), "dnsmasq": {"a": {"interface": "priv0"}, "b": {"interface": "priv0"}}},
        "network:dnsmasq:b:interface",
        "the interface of a already",
    ),
]


@pytest.mark.parametrize(("pillar", "path", "text"), REFUSED, ids=[f"{path} {text}" for _, path, text in REFUSED])
def test_what_does_not_fit_is_refused_by_name(pillar, path, text):
    found = judged(pillar)
    assert [said for where, said in found if where.startswith(path) and text in f"{where} {said}"], found
    assert KEY not in str(found)
    assert OTHER not in str(found)


def test_a_key_of_one_host_for_another_mesh_may_differ():
    nodes = {"hv1": {"address": "198.51.100.1"}, "hv3": {"address": "198.51.100.3"}}
    pillar = mesh()
    pillar["mesh"]["far"] = {"bridge": "ovs1", "nodes": nodes, "psk": OTHER}
    assert judged(pillar) == []

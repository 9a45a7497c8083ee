"""A pillar whose parts do not fit each other is refused by name, and one that fits is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from _utils.network_rules import errors

ROOT = Path(__file__).resolve().parents[2]


def bridge(**spec):
    return {"bridges": {"br0": {"ports": ["eth0"], **spec}}}


@pytest.mark.parametrize(
    ("pillar", "where", "text"),
    [
        (bridge(addresses=["192.0.2.2/24"], gateway4="198.51.100.1"), "bridges:br0:gateway4",
         "198.51.100.1 is in no network of this interface (192.0.2.0/24)"),
        (bridge(addresses=["192.0.2.2/24"], gateway4="192.0.2.2"), "bridges:br0:gateway4",
         "192.0.2.2 is this interface's own address"),
        (bridge(addresses=["192.0.2.2/24"], gateway4="192.0.2.255"), "bridges:br0:gateway4",
         "192.0.2.255 is not the address of a host"),
        (bridge(dhcp4=True, gateway4="192.0.2.1"), "bridges:br0:gateway4",
         "the DHCP server names the gateway; one of dhcp4 and gateway4 has to go"),
        (bridge(gateway6="2001:db8::1", addresses=["192.0.2.2/24"]), "bridges:br0:gateway6",
         "there is no IPv6 address to reach it from"),
        (bridge(addresses=["192.0.2.0/24"]), "bridges:br0:addresses",
         "192.0.2.0/24 is the network itself, not an address in it"),
        (bridge(addresses=["192.0.2.255/24"]), "bridges:br0:addresses",
         "192.0.2.255/24 is the broadcast address of its network"),
        (bridge(addresses=["127.0.0.2/8"]), "bridges:br0:addresses", "127.0.0.2 is not the address of a host"),
        (bridge(dhcp4=True, routes=[{"to": "0.0.0.0/0", "via": "192.0.2.1"}]), "bridges:br0:routes:0:to",
         "the default route is gateway4"),
        (bridge(addresses=["192.0.2.2/24"], routes=[{"to": "10.0.0.0/8", "via": "198.51.100.1"}]),
         "bridges:br0:routes:0:via", "198.51.100.1 is in no network of this interface (192.0.2.0/24)"),
        (bridge(dhcp4=True, routes=[{"to": "10.0.0.0/8", "via": "2001:db8::1"}]), "bridges:br0:routes:0:via",
         "2001:db8::1 is no router to 10.0.0.0/8: one is IPv4 and the other IPv6"),
        ({"bridges": {"br0": {"ports": ["eth0"]}, "br1": {"ports": ["eth0"]}}}, "bridges:br1:ports",
         "eth0 is a port of br0 already"),
        ({"bridges": {"br0": {"ports": ["eth0"]}}, "bonds": {"bond0": {"ports": ["eth0", "eth1"]}}},
         "bridges:br0:ports", "eth0 is a port of bond0 already"),
        (bridge(host_port="h0"), "bridges:br0:host_port", "not allowed without switch: openvswitch"),
        ({"backend": "networkmanager", **bridge(switch="openvswitch")}, "bridges:br0:switch",
         "openvswitch is not allowed with network:backend networkmanager; allowed: ifupdown, networkd, netplan"),
        (bridge(switch="openvswitch", stp=True, forward_delay=2), "bridges:br0:forward_delay",
         "with stp: true it must be from 4 to 30"),
        (bridge(switch="openvswitch", host_port="eth0"), "bridges:br0:host_port",
         "eth0 is declared as another interface already"),
        ({"bridges": {key: {"switch": "openvswitch", "host_port": "h0"} for key in ("a", "b")}},
         "bridges:b:host_port", "h0 is the host's port on a already"),
        ({**bridge(switch="openvswitch", host_port="h0"), "vlans": {"v20": {"link": "br0", "id": 20}}},
         "vlans:v20:link", "the host is on br0 with the port h0; a VLAN stands on that"),
        (bridge(switch="openvswitch", host_port="h" * 16), "bridges:br0",
         f'"{"h" * 16}" has 16 characters; the name of an interface has at most 15'),
        ({"bonds": {"bond0": {"ports": ["eth0"]}}}, "bonds:bond0:ports",
         "a bond of one port; name a second one, or set single: true if that is meant"),
        ({"bonds": {"bond0": {}}}, "bonds:bond0:ports", "missing; a bond needs ports"),
        ({"bonds": {"bond0": {"ports": ["eth0", "eth1"], "primary": "eth2"}}}, "bonds:bond0:primary",
         "eth2 is not among its ports"),
        ({"bonds": {"bond0": {"ports": ["eth0", "eth1"], "primary": "eth1", "mode": "802.3ad"}}},
         "bonds:bond0:primary", "not allowed with the mode 802.3ad"),
        ({"bonds": {"bond0": {"ports": ["eth0", "eth1"], "lacp_rate": "fast"}}}, "bonds:bond0:lacp_rate",
         "not allowed with the mode active-backup"),
        ({"bonds": {"bond0": {"ports": ["eth0", "eth1"], "hash_policy": "layer2"}}}, "bonds:bond0:hash_policy",
         "not allowed with the mode active-backup"),
        ({"vlans": {"v1": {"link": "v2", "id": 1}, "v2": {"link": "v1", "id": 2}}}, "vlans:v1",
         "it stands on itself: v1 on v2 on v1"),
        ({"bridges": {"br0": {"ports": ["br0"]}}}, "bridges:br0", "it stands on itself: br0 on br0"),
        ({"bridges": {"br0": {"ports": ["v1"]}}, "vlans": {"v1": {"link": "br0", "id": 1}}}, "vlans:v1",
         "it stands on itself: v1 on br0 on v1"),
        ({"bridges": {"br0": {"ports": ["br1"]}, "br1": {}}}, "bridges:br0:ports",
         "br1 is a bridge, and a bridge cannot be the port of another"),
        ({"bonds": {"b0": {"ports": ["b1", "eth0"]}, "b1": {"ports": ["eth1", "eth2"]}}}, "bonds:b0:ports",
         "b1 cannot be a port of a bond"),
        ({"vlans": {"a": {"link": "eth0", "id": 5}, "b": {"link": "eth0", "id": 5}}}, "vlans:b:id",
         "a has the tag 5 on eth0 already"),
        ({"vlans": {"v1": {"link": "bond0", "id": 5}}, "bonds": {"bond0": {"ensure": "absent"}}}, "vlans:v1",
         "it stands on bond0, which is declared with ensure: absent"),
        ({"ethernets": {"eth0": {"addresses": ["192.0.2.2/24"]}, "eth1": {"addresses": ["192.0.2.130/25"]}}},
         "ethernets:eth1:addresses", "the network of 192.0.2.130/25 overlaps 192.0.2.0/24 of eth0"),
        ({"ethernets": {"eth0": {"addresses": ["192.0.2.2/24"]}, "eth1": {"addresses": ["192.0.2.2/24"]}}},
         "ethernets:eth1:addresses", "192.0.2.2 is an address of eth0 already"),
        ({"ethernets": {"eth0": {"addresses": ["192.0.2.2/24"], "gateway4": "192.0.2.1"},
                        "eth1": {"addresses": ["198.51.100.2/24"], "gateway4": "198.51.100.1"}}},
         "ethernets:eth1:gateway4", "eth0 has the default route already; use routes for other networks"),
        ({"bridges": {"averylongbridge0": {}}}, "bridges:averylongbridge0",
         '"averylongbridge0" has 16 characters; the name of an interface has at most 15'),
        ({"bridges": {"br0": {"ports": ["enp129s0f0np0v12"]}}}, "bridges:br0",
         '"enp129s0f0np0v12" has 16 characters; the name of an interface has at most 15'),
        ({"bridges": {"lo": {}}}, "bridges:lo", '"lo" is not the name of an interface that can be declared'),
        ({"bridges": {"x": {}}, "ethernets": {"x": {}}}, "bridges:x", "x is declared below network:ethernets already"),
        ({"ethernets": {"a": {"match": {"mac": "52:54:00:00:00:01"}}, "b": {"match": {"mac": "52:54:00:00:00:01"}}}},
         "ethernets:b:match:mac", "a is the card with 52:54:00:00:00:01 already"),
        (bridge(mac="01:00:5e:00:00:01"), "bridges:br0:mac",
         "01:00:5e:00:00:01 is a group's address, not that of one interface"),
        ({"ethernets": {"eth0": {"uplink": True}}, "bridges": {"br0": {"ports": ["eth0"]}}}, "ethernets:eth0:uplink",
         "eth0 is a port of br0, which has no addresses: the host would not be reached any more"),
        (bridge(uplink=True), "bridges:br0:uplink", "it has no addresses: the host would not be reached any more"),
        ({**bridge(dhcp4=True), "ethernets": {"eth0": {"dhcp4": True}}}, "ethernets:eth0:dhcp4",
         "eth0 is a port of br0, which has the addresses instead"),
        ({"vlans": {"v1": {"link": "eth0", "id": 1, "mtu": 9000}}, "ethernets": {"eth0": {"mtu": 4000}}},
         "vlans:v1:mtu", "9000 is more than eth0 has (4000)"),
        (bridge(mtu=9000), "bridges:br0:mtu", "9000 is more than eth0 has (none declared, so 1500)"),
        ({"bonds": {"b0": {"ports": ["eth0", "eth1"], "mtu": 9000}}, "ethernets": {"eth1": {"mtu": 1500}}},
         "bonds:b0:mtu", "its port eth1 has 1500, and a bond's ports have the bond's"),
        (bridge(dhcp6=True, mtu=600), "bridges:br0:mtu", "600 is too small for IPv6, which needs 1280"),
        (bridge(stp=True), "bridges:br0:forward_delay", "with stp: true it must be from 2 to 30"),
        ({"confirm": {"window": 10, "successes": 6}}, "confirm:successes",
         "6 rounds of checks do not fit into a window of 10 s"),
        ({"confirm": {"beyond": ["a.example:70000"]}}, "confirm:beyond:0",
         "70000 is not a port; they go from 1 to 65535"),
        ({"confirm": {"beyond": ["999.1.1.1"]}}, "confirm:beyond:0",
         '"999.1.1.1" is neither HOST:PORT nor an address'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(pillar, where, text):
    assert errors(pillar) == [(f"network:{where}", text)]


@pytest.mark.parametrize(
    "pillar",
    [
        {},
        bridge(dhcp4=True),
        bridge(dhcp4=True, uplink=True),
        bridge(addresses=["192.0.2.2/24", "2001:db8::2/64"], gateway4="192.0.2.1", gateway6="fe80::1"),
        {"bonds": {"bond0": {"ports": ["eth0"], "single": True}}},
        {"ethernets": {"eth0": {"uplink": True}}, "vlans": {"eth0.5": {"link": "eth0", "id": 5, "dhcp4": True}}},
        {"ethernets": {"eth0": {"uplink": True}}, "bridges": {"br0": {"ports": ["eth0"], "dhcp4": True}}},
        {"bridges": {"br0": {"ports": ["bond0"], "mtu": 9000}}, "bonds": {"bond0": {"ports": ["a", "b"], "mtu": 9000}}},
        {"ethernets": {"a": {"addresses": ["192.0.2.2/31"]}, "b": {"addresses": ["192.0.2.4/32"]}}},
        {"bridges": {"br0": {"ports": ["eth0"], "ensure": "absent"}, "br1": {"ports": ["eth0"], "dhcp4": True}}},
        {"confirm": {"beyond": ["a.example:443", "[2001:db8::7]:443", "192.0.2.7", "2001:db8::7"]}},
    ],
)
def test_what_fits_is_accepted(pillar):
    assert errors(pillar) == []


def test_the_example_fits():
    assert errors(yaml.safe_load((ROOT / "pillar.example").read_text())["network"]) == []


def test_all_errors_are_named_at_once():
    wrong = {"bridges": {"br0": {"ports": ["eth0"], "stp": True}, "br1": {"ports": ["eth0"]}}}
    assert len(errors(wrong)) == 2

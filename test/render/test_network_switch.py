"""Switches, tunnels and served networks as Salt compiles them: in order, and without a key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from render_harness import ROOT, grains

DEBIAN = grains()["debian-12"]
KEY = "kq3Vw8yR0bN5tXz1LmCe"
NODES = {"hv1": {"address": "192.0.2.1", "inside": ["10.9.0.1/24"]}, "hv2": {"address": "192.0.2.2"}}
NETWORK: dict[str, Any] = {
    "mesh": {"private": {"bridge": "ovs0", "port": "priv0", "psk": KEY, "nodes": NODES}},
    "ovs": {"bridges": {"ovs0": {"ports": {"g": {"type": "gre", "remote": "192.0.2.9", "psk": KEY}}}}},
    "dnsmasq": {"net": {"interface": "priv0"}, "old": {"ensure": "absent"}},
}


def states(make_host, network: dict[str, Any], sls: str = "network") -> dict[str, dict[str, Any]]:
    low, errors = make_host(DEBIAN, {"network": network}, ROOT).compile(sls)
    assert errors == []
    return {chunk["__id__"]: chunk for chunk in low}


def test_no_key_stands_in_what_is_compiled(make_host):
    found = states(make_host, {**NETWORK, "ipsec": {"psk": KEY}})
    assert "network_ovs" in found
    assert KEY not in json.dumps(found, default=str)


def test_the_guard_comes_before_the_first_tunnel_and_addresses_before_what_is_served(make_host):
    found = states(make_host, NETWORK)
    assert {"tunnel_guard": "network_tunnel_guard"} in found["network_ovs"]["require"]
    assert {"ovs_addresses": "network_ovs_addresses"} in found["network_dnsmasq_net"]["require"]
    assert found["network_tunnel_guard"]["fun"] == "loaded"
    assert found["network_dnsmasq_old"]["fun"] == "absent"
    assert states(make_host, {**NETWORK, "ipsec": {"guard": False}})["network_tunnel_guard"]["fun"] == "absent"


def test_certificates_are_there_before_the_tunnels_and_a_new_one_is_taken_up(make_host):
    mesh = {"private": {"bridge": "ovs0", "port": "priv0", "nodes": NODES}}
    found = states(make_host, {"mesh": mesh, "ipsec": {"auth": "certificate"}})
    assert found["network_ipsec_certificate"]["purpose"] == "tunnel"
    # openvswitch-ipsec tells strongSwan of RSA keys alone.
    assert found["network_ipsec_certificate"]["key_type"] == "rsa"
    assert {"host_certificate": "network_ipsec_certificate"} in found["network_ipsec_service"]["watch"]
    assert found["network_ovs"]["auth"] == "certificate"
    assert "network_ipsec_certificate" not in states(make_host, NETWORK)


def test_the_switch_runs_before_the_uplink_moves_into_it(make_host):
    bridge = {"switch": "openvswitch", "ports": ["eth0"], "dhcp4": True}
    found = states(make_host, {"bridges": {"ovsbr0": bridge}})
    assert found["network_interface_packages"]["pkgs"] == ["python3", "iproute2", "iputils-ping", "openvswitch-switch"]
    assert {"service": "network_profile_switch"} in found["network_profile"]["require"]
    assert found["network_profile_switch"]["order"] == 10
    both = states(make_host, {**NETWORK, "bridges": {"ovs0": bridge}})
    assert {"service": "network_profile_switch"} in both["network_ovs"]["require"]
    assert "network_ovs_service" not in both
    assert "network_profile_switch" not in states(make_host, {"bridges": {"br0": {"ports": ["eth0"]}}})


PLAIN = {"type": "vxlan", "remote": "192.0.2.9", "ipsec": False}
GONE = {"private": {**NETWORK["mesh"]["private"], "ensure": "absent"}}


@pytest.mark.parametrize("system", sorted(grains()))
@pytest.mark.parametrize(
    "network",
    [
        {"ovs": {"bridges": {"ovs0": {"ports": {"eth1": {}, "int0": {"type": "internal"}}}}}},
        {"ovs": {"bridges": {"ovs0": {"ports": {"g": {"type": "gre", "ensure": "absent"}}}}}, "mesh": GONE},
        {"ovs": {"bridges": {"ovs0": {"ensure": "absent", "ports": {"g": {"type": "gre", "remote": "192.0.2.9"}}}}}},
    ],
)
@pytest.mark.parametrize("auth", ["psk", "certificate"])
def test_a_switch_without_tunnels_brings_no_ipsec(make_host, system, network, auth):
    low, errors = make_host(grains()[system], {"network": {**network, "ipsec": {"auth": auth}}}, ROOT).compile(
        "network"
    )
    assert errors == []
    assert [chunk["__id__"] for chunk in low if "ipsec" in chunk["__id__"]] == []
    found = {chunk["__id__"]: chunk for chunk in low}
    assert not {"nftables", "strongswan", "openvswitch-ipsec"} & set(found["network_packages"]["pkgs"])
    # What is there goes on guarding; the state itself knows.
    assert found["network_tunnel_guard"]["fun"] == "loaded"
    assert found["network_ovs"]["auth"] == ""


def test_a_plain_tunnel_brings_the_guard_alone(make_host):
    found = states(make_host, {"ovs": {"bridges": {"ovs0": {"ports": {"v": PLAIN}}}}})
    assert found["network_packages"]["pkgs"] == ["openvswitch-switch", "nftables"]
    assert not [one for one in found if "ipsec" in one]


@pytest.mark.parametrize("network", [{key: NETWORK[key]} for key in ("mesh", "ovs")], ids=["a mesh", "a tunnel"])
def test_a_tunnel_brings_ipsec(make_host, network):
    found = states(make_host, network)
    assert found["network_packages"]["pkgs"] == ["openvswitch-switch", "nftables", "openvswitch-ipsec", "strongswan"]
    assert {"service": "network_ipsec_service"} in found["network_ovs"]["require"]
    assert found["network_ovs"]["auth"] == "psk"
    assert "network_ipsec_established" in found


def test_only_packages_of_what_is_used_are_installed(make_host):
    everything = states(make_host, NETWORK)["network_packages"]["pkgs"]
    assert everything == ["openvswitch-switch", "nftables", "openvswitch-ipsec", "strongswan", "dnsmasq-base"]
    served = {"dnsmasq": {"old": {"ensure": "absent"}}}
    assert states(make_host, served)["network_packages"]["pkgs"] == ["dnsmasq-base"]
    assert states(make_host, {}) == {}


def test_a_port_that_asks_a_dhcp_server_brings_its_client(make_host):
    port = {"type": "internal", "mac": "52:54:00:00:00:01", "dhcp4": True}
    found = states(make_host, {"ovs": {"bridges": {"ovs0": {"ports": {"int0": port}}}}})
    assert "udhcpc" in found["network_packages"]["pkgs"]
    assert found["network_ovs_leases"]["packages"] == ["udhcpc"]
    assert {"ovs": "network_ovs"} in found["network_ovs_leases"]["require"]
    # A client that is stopped flushes its port, one that is missing keeps no other port from its addresses.
    assert found["network_ovs_addresses"]["require_any"] == [
        {"ovs": "network_ovs"},
        {"ovs_leases": "network_ovs_leases"},
    ]
    low = list(found)
    assert low.index("network_ovs_leases") < low.index("network_ovs_addresses")


@pytest.mark.parametrize("module", ["network_rules", "network_ovs_rules"])
def test_every_module_of_rules_is_asked(make_host, module):
    wrong = {
        "network_rules": {"bonds": {"bond0": {"ports": ["eth0"]}}},
        "network_ovs_rules": {"ovs": {"bridges": {"b": {"stp": True, "rstp": True}}}},
    }
    low, errors = make_host(DEBIAN, {"network": wrong[module]}, ROOT).compile("network")
    assert low == []
    assert "the pillar of network has 1 error" in errors[0]


def test_guests_dhcp_crosses_bridges_unless_the_host_shall_keep_what_it_has(make_host):
    bridges: dict[str, Any] = {"br7": {}}
    found = states(make_host, {"bridges": bridges})
    assert found["network_bridge_sysctl"]["if_there"] is True
    kept = states(make_host, {"bridges": bridges, "bridge_filter": "keep"})
    assert kept["network_bridge_sysctl_file"]["fun"] == "absent"
    assert "network_bridge_sysctl" not in kept

"""What of a host's runtime counts, how it is brought back, and what a plan takes for the connection to the master."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypervisor_network import model
from hypervisor_network.backends.contract import Snapshot
from hypervisor_network.engine import plan, repair, runtime, store
from hypervisor_network.engine.files import Entry
from network_harness import FakeBackend, FakeHost
from network_stack import MACS, resolved


def link(name, kind="", data=None, **values):
    """Return a link as `ip -j -d link` has it."""
    info = {"linkinfo": {"info_kind": kind, "info_data": data or {}}} if kind else {}
    return {"ifname": name, "flags": ["UP"], "mtu": 1500, "address": MACS.get(name, ""), **info, **values}


def vlan(tag, below="eth0"):
    return link("mgmt", "vlan", {"id": tag}, link=below)


def bridge(tree, delay):
    return link("br0", "bridge", {"stp_state": tree, "forward_delay": delay, "ageing_time": 30000})


@pytest.mark.parametrize(("before", "now", "told"), [
    (vlan(10), vlan(20), "tag=20 link=eth0 instead of"),
    (vlan(10), vlan(10, "eth1"), "tag=10 link=eth1 instead of"),
    (link("mgmt", "bond", {"mode": "802.3ad"}), link("mgmt", "bond", {"mode": "active-backup"}), "mode=active-backup"),
    (bridge(0, 0), bridge(1, 0), "stp_state=1 instead of"),
    (bridge(0, 0), bridge(0, 1500), "forward_delay=1500"),
])  # fmt: skip
def test_what_an_interface_was_made_as_counts(before, now, told):
    card = link("eth0")
    assert runtime.compare(Snapshot(links=[card, before]), Snapshot(links=[card, before])) == []
    (line,) = runtime.compare(Snapshot(links=[card, before]), Snapshot(links=[card, now]))
    assert told in line


def test_a_vlan_with_another_tag_is_made_anew_with_what_it_had():
    given = [{"ifname": "mgmt", "addr_info": [{"family": "inet", "local": "192.0.2.5", "prefixlen": 24}]}]
    routes = [{"dst": "default", "gateway": "192.0.2.1", "dev": "mgmt"}]
    before = Snapshot(links=[link("eth0"), vlan(10)], addresses=given, routes=routes)
    now = replace(before, links=[link("eth0"), vlan(20)])
    assert [" ".join(argv) for argv in repair.commands(before, now, ["eth0", "mgmt"])] == [
        "ip link delete dev mgmt",
        "ip link add link eth0 name mgmt type vlan id 10",
        "ip link set dev mgmt mtu 1500",
        "ip link set dev mgmt up",
        "ip address add 192.0.2.5/24 dev mgmt",
        "ip -4 route replace default via 192.0.2.1 dev mgmt",
    ]


def test_a_bond_with_another_mode_is_made_anew_and_its_ports_come_down_for_it():
    ports = [link("eth0", master="mgmt"), link("eth1", master="mgmt")]
    before = Snapshot(links=[*ports, link("mgmt", "bond", {"mode": "802.3ad"})])
    now = Snapshot(links=[*ports, link("mgmt", "bond", {"mode": "active-backup"})])
    assert [" ".join(argv) for argv in repair.commands(before, now, ["eth0", "eth1", "mgmt"])] == [
        "ip link delete dev mgmt",
        "ip link add name mgmt type bond mode 802.3ad",
        "ip link set dev eth0 down",
        "ip link set dev eth0 master mgmt",
        "ip link set dev eth0 up",
        "ip link set dev eth1 down",
        "ip link set dev eth1 master mgmt",
        "ip link set dev eth1 up",
        "ip link set dev mgmt mtu 1500",
        "ip link set dev mgmt up",
    ]


def test_what_is_the_same_is_left_alone():
    before = Snapshot(links=[link("eth0"), vlan(10), bridge(0, 0)])
    assert list(repair.commands(before, before, ["eth0", "mgmt", "br0"])) == []


# ---- cards ----


@pytest.mark.parametrize(("match", "told"), [
    ({"mac": "52:54:00:aa:aa:aa"}, "this host has no card with the MAC address 52:54:00:aa:aa:aa"),
    ({"path": "pci-0000:00:09.0"}, "this host has no card at pci-0000:00:09.0"),
    ({"mac": MACS["eth0"]}, ""),
])  # fmt: skip
def test_a_card_that_does_not_match_is_missing_though_another_has_its_name(tmp_path, match, told):
    host = FakeHost(tmp_path / "host")
    snapshot = Snapshot(links=[link("eth0", link_type="ether")])
    profile = model.load({"ethernets": {"eth0": {"match": match}}})
    names, _ = runtime.cards(host, profile, snapshot)
    lines = runtime.missing(profile, names, snapshot)
    assert lines == ([f"eth0: {told}"] if told else [])


# ---- what carries the connection ----


class Alone:
    """A host that knows no way to a master."""

    def ip(self, *_words):
        return []


@pytest.mark.parametrize("routes", [
    {"routes": [{"dst": "default", "gateway": "192.0.2.1", "dev": "br0"}]},
    {"routes6": [{"dst": "default", "gateway": "fe80::1", "dev": "br0"}]},
    {"routes": [{"dst": "default", "nexthops": [{"gateway": "192.0.2.1", "dev": "br0"}]}]},
])  # fmt: skip
def test_without_a_master_the_default_routes_of_both_families_count(routes):
    snapshot = Snapshot(links=[link("eth0", master="br0"), link("br0", "bridge")], **routes)
    assert plan.carrier(Alone(), snapshot, []) == {"br0", "eth0"}


def test_where_nothing_is_known_of_the_connection_every_change_needs_consent(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "backend_of", lambda _: FakeBackend())
    host = FakeHost(tmp_path / "host")
    host.faults.add("dhcp")
    host.activate()
    pillar = {"bridges": {"br1": {"ports": ["eth1"]}}, "backend": "networkd"}
    made = plan.make(host, store.Store(host), pillar, [])
    assert made.uplink == ("eth1", "br1")
    assert made.refusal.startswith("it would change eth1, br1, and nothing here says what carries the connection; set")
    assert not plan.make(host, store.Store(host), {**pillar, "allow_uplink_change": True}, []).refusal


@pytest.mark.parametrize(("name", "exposed"), [
    ("networkd", {"eth0"}), ("netplan", {"eth0"}), ("ifupdown", set()), ("networkmanager", set()),
])  # fmt: skip
def test_a_vlan_that_rewrites_its_cards_file_changes_the_card(name, exposed):
    profile = resolved({
        "ethernets": {"eth0": {"addresses": ["192.0.2.5/24"]}, "eth1": {"dhcp4": True}},
        "vlans": {"v10": {"link": "eth0", "id": 10, "addresses": ["10.1.0.2/24"]}},
    })  # fmt: skip
    backend = plan.backend_of(name)
    old = backend.render(replace(profile, interfaces=tuple(one for one in profile.interfaces if one.name != "v10")))
    after = {path: one for path, one in backend.render(profile).items() if old.get(path) != one}
    assert plan._rewritten(backend, profile, after, ["v10"], ["eth0", "eth1"]) == exposed


# ---- what is shown ----


@pytest.mark.parametrize("line", [
    "password=Tr0ub4dor", "psk=Tr0ub4dor", "wep-key0=Tr0ub4dor", "private-key-password=Tr0ub4dor", "pin=Tr0ub4dor",
    '        password: "Tr0ub4dor"', "    wpa-psk Tr0ub4dor", "leap-password=Tr0ub4dor", "    wireless-key1 Tr0ub4dor",
])  # fmt: skip
@pytest.mark.parametrize("after", [False, True])
def test_secrets_of_other_programs_files_are_not_shown(line, after):
    old = Entry(f"[one]\n{line}\naddress1=192.0.2.5/24\n".encode(), 0o600, 0, 0)
    new = Entry(f"[one]\n{line}\naddress1=192.0.2.6/24\n".encode(), 0o600, 0, 0) if after else None
    shown = plan._diff("/etc/x", old, new)
    assert "Tr0ub4dor" not in shown
    assert "(not shown)" in shown
    assert "-address1=192.0.2.5/24" in shown


def test_what_is_no_secret_is_shown():
    old = Entry(b"[one]\nkey-mgmt=wpa-eap\nidentity=hv1\nmapping=1\n", 0o600, 0, 0)
    assert "(not shown)" not in plan._diff("/etc/x", old, None)

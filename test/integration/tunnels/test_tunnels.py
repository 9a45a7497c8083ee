"""A private network of two hosts: leases and pings through GRE with IPsec, and never a plain packet on the wire.

The tests share the machines and run in this order.
"""

from __future__ import annotations

import json

import pytest
from tunnel_site import INSIDE, KEY, OTHER, agreed, failures, lease, network, pings, tap
from wire import ESP, GRE

WRONG = "Zp7Hd2sUa9fQ4jGx6IoM"
LARGEST = 1424
GUARD = "nft --json list table inet hypervisor_tunnels"
# Speaks to the other host as soon as the switch runs, and until the power is off, from a port of its own: that of the
# private network gets its address from what is tested.
CHATTERS = {"hv1": "10.9.7.1", "hv2": "10.9.7.2"}
CHATTER = """[Unit]
DefaultDependencies=no
After=ovs-vswitchd.service
[Service]
ExecStart=/bin/sh -c 'while :; do ip link set chat0 up; ip address replace {own}/24 dev chat0; \\
  ping -c 1 -W 1 {other}; sleep 0.2; done'
[Install]
WantedBy=multi-user.target
"""
SINCE = "systemctl show --property=ActiveEnterTimestampMonotonic --value {}"


def dropped(pair, host):
    """Return how many packets the guard has kept from leaving a host."""
    rules = [one["rule"] for one in json.loads(pair.sh(host, GUARD))["nftables"] if "rule" in one]
    return sum(
        part["counter"]["packets"]
        for rule in rules
        if rule["chain"] == "out"
        for part in rule["expr"]
        if "counter" in part
    )


@pytest.fixture(scope="module", name="joined")
def two_hosts_with_a_private_network(pair):
    for host in INSIDE:
        pair.pillar(host, network(pair, host))
    rows = pair.both(lambda host: pair.apply(host, "network"))
    # The first of the two may find the other one without its tunnel; it must not fail for that.
    assert {host: failures(one) for host, one in rows.items()} == {"hv1": {}, "hv2": {}}
    assert KEY not in json.dumps(rows)
    return pair


def test_a_guest_of_each_host_gets_a_lease_and_reaches_the_other(joined):
    with tap(joined) as wire:
        got = {host: lease(joined, host) for host in INSIDE}
        assert [int(one["mtu"]) for one in got.values()] == [LARGEST, LARGEST]
        # This network has no router, and guests are not told of one.
        assert {(one["router"], one["dns"]) for one in got.values()} == {("", INSIDE["hv1"])}
        assert pings(joined, "hv2", got["hv1"]["ip"], 20)
        full = ["ip", "netns", "exec", "guest", "ping", "-c", "3", "-W", "5", "-M", "do", "-s", str(LARGEST - 28)]
        joined.machines["hv1"].ssh([*full, got["hv2"]["ip"]])
    assert wire.count(ESP) > 10
    assert wire.count(GRE) == 0


def test_a_second_run_changes_nothing_and_says_so_before(joined):
    rows = joined.apply("hv1", "network", "test=True")
    assert {name: row["changes"] for name, row in rows.items() if row["changes"] or row["result"] is not True} == {}


def test_the_key_stands_in_no_log_and_only_root_reads_where_it_must_stand(joined):
    for host in INSIDE:
        said = joined.sh(
            host, f"journalctl --no-pager | grep -c {KEY}; grep -rl {KEY} /var/log /etc /var/lib", check=False
        )
        count, *files = said.splitlines()
        assert (count, files) == ("0", ["/etc/ipsec.secrets", "/var/lib/openvswitch/conf.db"]), said
        modes = joined.sh(host, "stat --format '%a %U' /var/lib/openvswitch/conf.db /etc/ipsec.secrets")
        assert modes.split() == ["640", "root", "600", "root"]


def test_nothing_plain_leaves_when_the_service_is_stopped(joined):
    before = dropped(joined, "hv1")
    with tap(joined) as wire:
        joined.sh("hv1", "systemctl stop openvswitch-ipsec")
        assert not pings(joined, "hv1", INSIDE["hv2"], 3)
        assert not pings(joined, "hv2", INSIDE["hv1"], 3)
    assert wire.count(GRE) == 0
    assert dropped(joined, "hv1") > before


def test_without_the_guard_it_would_leave(joined):
    with tap(joined) as wire:
        joined.sh("hv1", "nft delete table inet hypervisor_tunnels")
        assert not pings(joined, "hv1", INSIDE["hv2"], 2)
    assert wire.count(GRE) > 0
    joined.sh("hv1", "nft --file /etc/hypervisor-formula/tunnel-guard.nft; systemctl start openvswitch-ipsec")
    assert pings(joined, "hv1", INSIDE["hv2"], 60)


def test_nothing_plain_leaves_when_one_side_has_no_key(joined):
    before = dropped(joined, "hv2")
    with tap(joined, "hv2") as wire:
        joined.sh("hv2", "ovs-vsctl remove Interface private_hv1 options psk")
        # Until openvswitch-ipsec has noticed, what is agreed on still holds.
        joined.sh("hv2", "for n in $(seq 60); do ipsec status | grep -q private_hv1 || exit 0; sleep 1; done; exit 1")
        assert not pings(joined, "hv2", INSIDE["hv1"], 3)
        assert not pings(joined, "hv1", INSIDE["hv2"], 3)
    assert wire.count(GRE) == 0
    assert dropped(joined, "hv2") > before


def test_a_wrong_key_stops_traffic_and_is_reported_and_the_right_one_brings_it_back(joined):
    joined.pillar("hv2", network(joined, "hv2", psk=WRONG))
    with tap(joined, "hv2") as wire:
        rows = joined.apply("hv2", "network.openvswitch")
        assert rows["network_ovs"]["changes"] == {"ovs0:private_hv1:psk": {"old": None, "new": "the declared key"}}
        row = rows["network_ipsec_established"]
        if "does not answer" in row["comment"]:
            row = agreed(joined, "hv2", network(joined, "hv2")["mesh"])
        assert row["result"] is False
        assert "hv1 (private_hv1, " in row["comment"]
        assert "refuses the key" in row["comment"]
        assert WRONG not in json.dumps(rows)
        assert not pings(joined, "hv2", INSIDE["hv1"], 3)
        joined.pillar("hv2", network(joined, "hv2"))
        rows = joined.apply("hv2", "network.openvswitch")
        assert failures(rows) == {}
        assert rows["network_ovs"]["changes"] == {
            "ovs0:private_hv1:psk": {"old": "another key", "new": "the declared key"}
        }
        assert pings(joined, "hv2", INSIDE["hv1"], 10)
    assert wire.count(GRE) == 0


def test_all_of_it_holds_over_a_reboot_of_both(joined):
    def reboot(host):
        unit = CHATTER.format(own=CHATTERS[host], other=CHATTERS[OTHER[host]]).encode()
        joined.sh(host, "ovs-vsctl --may-exist add-port ovs0 chat0 -- set Interface chat0 type=internal")
        joined.lab.hosts.unpack(host, {"/etc/systemd/system/chatter.service": (0o644, unit)})
        joined.sh(host, "systemctl daemon-reload; systemctl enable --now chatter.service")
        before = joined.machines[host].boot_id()
        joined.sh(host, "systemctl reboot", check=False)
        joined.machines[host].wait_reboot(before, timeout=400)

    with tap(joined) as wire, tap(joined, "hv2") as other:
        joined.both(reboot)
        got = {host: lease(joined, host) for host in INSIDE}
        assert pings(joined, "hv2", got["hv1"]["ip"], 60)
        # Each has spoken from before the service ran, and is heard now.
        for host in INSIDE:
            spoke, ran = (int(joined.sh(host, SINCE.format(unit))) for unit in ("chatter", "openvswitch-ipsec"))
            assert 0 < spoke < ran
            joined.sh(host, f"ping -c 1 -W 5 {CHATTERS[OTHER[host]]}")
    assert (wire.count(GRE), other.count(GRE)) == (0, 0)
    assert wire.count(ESP) > 0
    assert other.count(ESP) > 0
    joined.both(lambda host: joined.sh(host, "systemctl disable --now chatter.service; ovs-vsctl del-port chat0"))
    for host in INSIDE:
        assert f" {INSIDE[host]}/24 " in joined.sh(host, "ip -4 -o address show dev priv0")
    assert joined.sh("hv1", "systemctl is-active hypervisor-dnsmasq@private").strip() == "active"

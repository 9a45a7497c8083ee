"""DHCP of a guest on a bridge of a host whose packet filter drops what it forwards: lost, until told otherwise."""

from __future__ import annotations

import json

import pytest

# A server and a guest, each in a namespace of its own, on a bridge; the filter is the usual one of a host that is
# no router, and the module is what Docker, firewalld or libvirt's filters load.
SETUP = """
modprobe br_netfilter
sysctl -q net.bridge.bridge-nf-call-iptables=1
nft add table ip dropping
nft add chain ip dropping forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule ip dropping forward counter drop
ip link add br7 type bridge
ip link set br7 up
for one in asker server; do
  ip netns add $one
  ip link add $one type veth peer name eth0 netns $one
  ip link set $one master br7
  ip link set $one up
  ip -n $one link set eth0 up
done
ip -n server address add 10.7.0.1/24 dev eth0
systemd-run --unit=bridge-server ip netns exec server dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 \
  --dhcp-range=10.7.0.10,10.7.0.19 --dhcp-leasefile=/run/bridge-leases --pid-file --no-ping
"""
REMOVE = """
systemctl stop bridge-server
ip netns delete asker; ip netns delete server; ip link delete br7; nft delete table ip dropping
"""
ASK = "ip netns exec asker busybox udhcpc -i eth0 -f -q -n -t 10 -T 1 -s /bin/true 2>&1"


@pytest.fixture(name="filtering")
def host_that_drops_what_it_forwards(pair):
    pair.pillar("hv2", {})
    pair.sh("hv2", SETUP)
    yield pair
    pair.sh("hv2", REMOVE, check=False)


def test_a_lease_is_lost_without_our_settings_and_arrives_with_them(filtering):
    assert "obtained" not in filtering.sh("hv2", ASK, check=False)
    rules = json.loads(filtering.sh("hv2", "nft --json list chain ip dropping forward"))["nftables"]
    (counter,) = (part["counter"] for one in rules for part in one.get("rule", {}).get("expr", ()) if "counter" in part)
    assert counter["packets"] > 0
    rows = filtering.apply("hv2", "network.bridging")
    assert {name: row["comment"] for name, row in rows.items() if row["result"] is not True} == {}
    assert rows["network_bridge_sysctl"]["changes"]["net.bridge.bridge-nf-call-iptables"] == {"old": "1", "new": "0"}
    assert "lease of 10.7.0.1" in filtering.sh("hv2", ASK)
    # Also when the module comes back later, with what the kernel sets by itself.
    filtering.sh("hv2", "rmmod br_netfilter && modprobe br_netfilter && udevadm settle")
    assert filtering.sh("hv2", "cat /proc/sys/net/bridge/bridge-nf-call-iptables").strip() == "0"
    assert "lease of 10.7.0.1" in filtering.sh("hv2", ASK)

"""A virtual machine on each of two hosts, on a network of libvirt that Open vSwitch spans between them.

The site's own states declare them, as many sites do.
"""

from __future__ import annotations

import pytest
import yaml
from tunnel_site import INSIDE, KNOWN, OTHER, failures, network, tap
from wire import ESP, GRE

from lab import guest

MACS = dict(zip(INSIDE, KNOWN, strict=True))
ADDRESSES = {host: KNOWN[mac]["ip"] for host, mac in MACS.items()}
LARGEST = 1424
# A machine that is emulated in one that is emulated takes its time, and here two of them at once.
PATIENCE = 900


def site(host):
    """Return a host's SLS: the network on the switch, and a guest that looks for the other one."""
    boot = {
        "kernel": f"{guest.FOLDER}/{guest.KERNEL}",
        "initrd": f"{guest.FOLDER}/{guest.INITRAMFS}",
        "cmdline": f"{guest.ARGUMENTS} ping={ADDRESSES[OTHER[host]]}",
    }
    switch = [{"forward": "bridge"}, {"bridge": "ovs0"}, {"virtualport": {"type": "openvswitch"}}]
    card = {"name": "eth0", "type": "network", "source": "private", "mac": MACS[host]}
    machine = [
        {"cpu": 1},
        {"mem": 128},
        {"boot": boot},
        {"interfaces": [card]},
        {"require": [{"virtual_network": "private"}]},
    ]
    return {
        "private": {"virtual_network.running": switch},
        f"{host}-guest": {"guest.running": machine},
    }


@pytest.fixture(scope="module", name="guests")
def two_hosts_with_a_guest_each(pair):
    pair.lab.push_guest()
    for host in INSIDE:
        pair.pillar(host, network(pair, host))
        sls = yaml.safe_dump(site(host)).encode()
        pair.lab.hosts.unpack(host, {"/srv/formulas/private_guests.sls": (0o644, sls)})
    rows = pair.both(lambda host: pair.apply(host, "network"))
    assert {host: failures(one) for host, one in rows.items()} == {"hv1": {}, "hv2": {}}
    with tap(pair) as wire:
        rows = pair.both(lambda host: pair.apply(host, "private_guests"))
        assert {host: failures(one) for host, one in rows.items()} == {"hv1": {}, "hv2": {}}
        printed = {host: pair.lab.wait_console(host, f"{host}-guest", "guest reaches", PATIENCE) for host in INSIDE}
    yield pair, wire, printed
    for host in INSIDE:
        for words in (f"destroy {host}-guest", f"undefine {host}-guest", "net-destroy private", "net-undefine private"):
            pair.sh(host, f"virsh {words}", check=False)


def test_each_guest_gets_its_lease_and_reaches_the_other_with_full_packets(guests):
    _, wire, printed = guests
    for host, text in printed.items():
        assert f"guest lease {ADDRESSES[host]} mtu {LARGEST}" in text
        assert f"guest reaches {ADDRESSES[OTHER[host]]}" in text
    assert wire.count(ESP) > 10
    assert wire.count(GRE) == 0


def test_the_guests_cards_are_ports_of_the_switch(guests):
    pair, _, _ = guests
    for host in INSIDE:
        cards = pair.sh(host, f"virsh --quiet domiflist {host}-guest").split()
        assert cards[0] in pair.sh(host, "ovs-vsctl list-ports ovs0").split()


def test_a_second_run_changes_nothing(guests):
    pair, _, _ = guests
    rows = pair.apply("hv2", "private_guests")
    assert {name: row["changes"] for name, row in rows.items() if row["changes"] or row["result"] is not True} == {}

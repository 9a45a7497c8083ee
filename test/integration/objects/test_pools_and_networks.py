"""Pools and networks on a real libvirt: made, adopted, repaired, changed under guests, refused and taken away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import apply_states, changes_of, converge

HOST = "hv1"
MAC = "2a:c3:a7:a6:01:04"
STATES: dict[str, dict[str, Any]] = {
    "ob-images": {
        "state": "storage_pool.running",
        "ptype": "dir",
        "target": "/srv/objects/images",
        "permissions": {"mode": "0751", "owner": "root", "group": "kvm"},
    },
    "ob-later": {"state": "storage_pool.defined", "ptype": "dir", "target": "/srv/objects/later", "autostart": False},
    "ob-hand": {"state": "storage_pool.running", "ptype": "dir", "target": "/srv/objects/hand"},
    "ob-nat": {
        "state": "virtual_network.running",
        "forward": "nat",
        "bridge": "ob-nat0",
        "ipv4_config": {
            "cidr": "192.168.144.0/24",
            "dhcp_ranges": [{"start": "192.168.144.10", "end": "192.168.144.25"}],
            "hosts": {MAC.upper(): {"ip": "192.168.144.4", "name": "srv01"}},
        },
        "ipv6_config": {"cidr": "fd44:144::/64", "dhcp_ranges": [{"start": "fd44:144::100", "end": "fd44:144::1ff"}]},
        "domain": "ob.example.org",
        "dns": {"hosts": {"192.168.144.1": ["gateway"]}},
    },
    "ob-route": {
        "state": "virtual_network.running",
        "forward": "route",
        "forward_device": "eth0",
        "ipv4_config": {"cidr": "192.168.145.254/24"},
    },
    "ob-alone": {"state": "virtual_network.running", "forward": "isolated", "mtu": 1400},
    "ob-bridge": {
        "state": "virtual_network.running",
        "forward": "bridge",
        "bridge": "br-ob",
        "virtualport": {"type": "openvswitch"},
        "portgroups": {"web": {"default": True, "vlan": {"tags": [30]}}, "all": {"vlan": {"tags": [10, 20]}}},
    },
    "ob-hand-net": {
        "state": "virtual_network.running",
        "forward": "isolated",
        "ipv4_config": {
            "cidr": "192.168.146.0/24",
            "dhcp_ranges": [{"start": "192.168.146.9", "end": "192.168.146.9"}],
        },
    },
}
# What somebody made by hand means the same as the declaration, in other words.
BY_HAND = """
mkdir -p /srv/objects/hand
virsh pool-define-as ob-hand dir --target /srv/objects/hand/
virsh pool-start ob-hand; virsh pool-autostart ob-hand
cat > /run/net.xml <<'XML'
<network><name>ob-hand-net</name><uuid>5b2a9f68-8b0e-4a28-a9a0-d0e4a4d0f5a1</uuid><bridge stp='off'/>
<ip netmask='255.255.255.0' address='192.168.146.1'><dhcp><range start='192.168.146.9' end='192.168.146.9'/></dhcp></ip>
</network>
XML
virsh net-define /run/net.xml; virsh net-start ob-hand-net; virsh net-autostart ob-hand-net
"""
# Asks for an address by DHCP as the card that is named, and prints the offer.
DISCOVER = """
import socket, struct, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"ob-guest")
client.bind(("", 68))
client.settimeout(2)
mac, magic, options = bytes.fromhex(sys.argv[1].replace(":", "")), bytes((99, 130, 83, 99)), bytes((53, 1, 1, 255))
packet = struct.pack("!4BIHH16x6s202x4s", 1, 1, 6, 0, 7, 0, 0x8000, mac, magic) + options
for _ in range(10):
    try:
        client.sendto(packet, ("255.255.255.255", 67))
        print(socket.inet_ntoa(client.recv(4096)[16:20]))
        break
    except TimeoutError:
        continue
"""
# Plugs a cable from a network namespace, which stands for a guest, into a bridge.
PLUG = """
trap 'ip netns delete ob-guest' EXIT
ip netns add ob-guest
ip link add ob-host type veth peer name ob-guest address "$2" netns ob-guest
ip link set ob-host master "$1" up
ip -n ob-guest link set ob-guest up
ip netns exec ob-guest python3 -c "$3" "$2"
"""
# No disk, never continued.
GUEST = """
<domain type='qemu'>
  <name>ob-guest</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='cdrom'><source file='/srv/objects/images/cd.iso'/><target dev='sda' bus='sata'/></disk>
    <interface type='network'><source network='ob-nat'/></interface>
  </devices>
</domain>
"""


def virsh(lab, *argv, host=HOST):
    return lab.run(host, ["virsh", "--quiet", *argv]).stdout.strip()


def shell(lab, script, *argv, host=HOST):
    """Run a script of the test's own."""
    return lab.run(host, ["sh", "-e", "-s", *argv], stdin=script).stdout.strip()


def offered(lab, bridge):
    """Return the address that a guest with MAC is offered."""
    return shell(lab, PLUG, bridge, MAC, DISCOVER)


def clean(lab, host=HOST):
    for kind, verbs in (("", ("destroy", "undefine")), ("net-", ("net-destroy", "net-undefine")),
                        ("pool-", ("pool-destroy", "pool-undefine"))):  # fmt: skip
        for name in lab.run(host, ["virsh", "--quiet", f"{kind}list", "--all", "--name"]).stdout.split():
            for verb in verbs if name.startswith("ob-") else ():
                lab.run(host, ["virsh", verb, name], check=False)
    lab.run(host, ["rm", "-rf", "/srv/objects"])


@pytest.fixture(scope="module", name="made")
def everything_made(lab):
    """The host with all objects; returns what the first run changed."""
    clean(lab)
    shell(lab, BY_HAND)
    yield converge(lab, HOST, STATES)
    clean(lab)


def test_the_first_run_makes_what_was_predicted_and_adopts_what_was_made_by_hand(lab, made):
    assert set(made) == set(STATES) - {"ob-hand", "ob-hand-net"}
    assert virsh(lab, "net-uuid", "ob-hand-net") == "5b2a9f68-8b0e-4a28-a9a0-d0e4a4d0f5a1"
    running = virsh(lab, "pool-list", "--name").split() + virsh(lab, "net-list", "--name").split()
    assert set(STATES) - set(running) == {"ob-later"}
    assert lab.run(HOST, ["stat", "-c", "%a %U %G", "/srv/objects/images"]).stdout.split() == ["751", "root", "kvm"]
    assert lab.run(HOST, ["test", "-e", "/srv/objects/later"], check=False).returncode == 1


def test_the_second_run_is_silent(lab, made):
    answer = apply_states(lab, HOST, STATES)
    assert changes_of(answer) == {}
    assert {row["result"] for row in answer.values()} == {True}


def test_dnsmasq_serves_the_declared_address(lab, made):
    assert offered(lab, "ob-nat0") == "192.168.144.4"


# One alteration of an object at a time, and what the run says of it. Objects do not disturb each other, so those of one
# round are altered together.
EDIT = "virsh {0}-dumpxml --inactive {1} | sed '{2}' > /run/edit.xml; virsh {0}-define /run/edit.xml"
ROUNDS: list[dict[str, tuple[str, list[str]]]] = [
    {
        "ob-images": ("virsh pool-destroy ob-images", ["state"]),
        "ob-later": ("virsh pool-undefine ob-later", ["definition"]),
        "ob-hand": ("virsh pool-autostart --disable ob-hand", ["autostart"]),
        "ob-nat": (
            f"""virsh net-update ob-nat delete ip-dhcp-host "<host mac='{MAC}'/>" --live --parent-index 0""",
            ["live"],
        ),
        "ob-route": ("virsh net-destroy ob-route", ["state"]),
        "ob-alone": (EDIT.format("net", "ob-alone", "s/1400/1300/"), ["definition"]),
        "ob-bridge": ("virsh net-autostart --disable ob-bridge", ["autostart"]),
    },
    {
        "ob-images": ("chmod 0700 /srv/objects/images", ["folder"]),
        "ob-later": (EDIT.format("pool", "ob-later", "s,objects/later,objects/edited,"), ["definition"]),
        "ob-hand": ("rmdir /srv/objects/hand", ["folder"]),
        "ob-nat": (EDIT.format("net", "ob-nat", "s/srv01/srv02/"), ["definition"]),
        "ob-route": (EDIT.format("net", "ob-route", "s/mode=.route./mode=\"nat\"/"), ["definition"]),
        "ob-alone": (
            EDIT.format("net", "ob-alone", "s/1400/1300/") + "; virsh net-destroy ob-alone; virsh net-start ob-alone",
            ["definition", "state"],
        ),
        "ob-bridge": (
            "virsh net-update ob-bridge delete portgroup \"<portgroup name='all'/>\" --live --config",
            ["definition", "live"],
        ),
    },
    {
        "ob-images": (
            "mkdir /srv/objects/other; "
            + EDIT.format("pool", "ob-images", "s,objects/images,objects/other,")
            + "; virsh pool-destroy ob-images; virsh pool-start ob-images",
            ["definition", "state"],
        ),
        # Of permissions that nobody declared nothing is said.
        "ob-hand": ("chgrp kvm /srv/objects/hand", []),
        "ob-later": ("virsh pool-autostart ob-later", ["autostart"]),
        "ob-nat": (
            "virsh net-update ob-nat add dns-host \"<host ip='192.168.144.9'><hostname>x</hostname></host>\" --live",
            ["live"],
        ),
        "ob-route": ("virsh net-destroy ob-route; virsh net-undefine ob-route", ["autostart", "definition", "state"]),
        "ob-bridge": (EDIT.format("net", "ob-bridge", "s/br-ob/br-other/"), ["definition"]),
    },
]


@pytest.mark.parametrize("alterations", ROUNDS, ids=["first", "second", "third"])
def test_each_alteration_is_seen_and_repaired_alone(lab, made, alterations):
    for command, _ in alterations.values():
        shell(lab, command)
    found = converge(lab, HOST, STATES)
    assert {name: sorted(rows) for name, rows in found.items()} == {
        name: keys for name, (_, keys) in alterations.items() if keys
    }


@pytest.fixture(name="guest")
def attached_guest(lab, made):
    """A guest with a card in ob-nat and a disk in ob-images; returns the host's device of the card."""
    lab.run(HOST, ["sh", "-c", "cat > /run/guest.xml; touch /srv/objects/images/cd.iso"], stdin=GUEST)
    virsh(lab, "define", "/run/guest.xml")
    virsh(lab, "start", "--paused", "ob-guest")
    yield virsh(lab, "domiflist", "ob-guest").split()[0]
    lab.run(HOST, ["virsh", "destroy", "ob-guest"], check=False)
    lab.run(HOST, ["virsh", "undefine", "ob-guest"], check=False)


def bridge_of(lab, device):
    """Return the bridge that a device is plugged into, with its number, which a new bridge of the name has not."""
    (row,) = json.loads(lab.run(HOST, ["ip", "-j", "link", "show", device]).stdout)
    (bridge,) = json.loads(lab.run(HOST, ["ip", "-j", "link", "show", row["master"]]).stdout)
    return bridge["ifname"], bridge["ifindex"]


def test_a_guest_is_not_disturbed_without_consent(lab, guest):
    before = bridge_of(lab, guest)
    nat = STATES["ob-nat"]
    moved = {**nat["ipv4_config"], "hosts": {MAC: {"ip": "192.168.144.5", "name": "srv01"}}}
    found = converge(lab, HOST, {"ob-nat": {**nat, "ipv4_config": moved}})
    assert sorted(found["ob-nat"]) == ["definition", "live"]
    assert offered(lab, "ob-nat0") == "192.168.144.5"

    answer = apply_states(lab, HOST, {"ob-nat": {**nat, "ipv4_config": moved, "mtu": 1400}})
    assert "cut the interfaces of ob-guest" in answer["ob-nat"]["comment"]
    assert "allow_restart: true" in answer["ob-nat"]["comment"]
    assert bridge_of(lab, guest) == before

    allowed = {**nat, "ipv4_config": moved, "mtu": 1400, "allow_restart": True}
    assert list(converge(lab, HOST, {"ob-nat": allowed})["ob-nat"]) == ["state"]
    name, number = bridge_of(lab, guest)
    assert name == "ob-nat0"
    assert number != before[1], "the network was not restarted"
    assert offered(lab, "ob-nat0") == "192.168.144.5"


def test_refusals_name_what_is_in_the_way_and_change_nothing(lab, guest):
    before = virsh(lab, "net-list", "--all"), virsh(lab, "pool-list", "--all")
    answer = apply_states(
        lab,
        HOST,
        {
            "ob-images": {"state": "storage_pool.absent"},
            "ob-nat": {"state": "virtual_network.absent"},
            "ob-overlap": {
                "state": "virtual_network.running",
                "forward": "nat",
                "ipv4_config": {"cidr": "192.168.144.64/26"},
            },
            "ob-range": {
                "state": "virtual_network.running",
                "forward": "nat",
                "ipv4_config": {"cidr": "10.9.0.0/24", "dhcp_ranges": [{"start": "10.9.0.9", "end": "10.9.0.8"}]},
            },
            "ob-key": {"state": "storage_pool.running", "ptype": "dir", "targte": "/srv/x"},
            "ob-dead": {
                "state": "storage_pool.running",
                "ptype": "netfs",
                "target": "/srv/objects/nfs",
                "source": {"dir": "/srv", "hosts": ["127.0.0.1"]},
            },
        },
    )
    words = {
        "ob-images": "guests have disks in it: ob-guest",
        "ob-nat": "guests are attached to it: ob-guest",
        "ob-overlap": "192.168.144.64/26 overlaps 192.168.144.0/24 of the network ob-nat",
        "ob-range": "ob-range:ipv4_config:dhcp_ranges:0: starts at 10.9.0.9, after its end",
        "ob-key": 'ob-key:targte: unknown key; did you mean "target"?',
        "ob-dead": "Pool ob-dead: the server 127.0.0.1 does not answer on port 2049",
    }
    assert set(answer) == set(words)
    for name, row in answer.items():
        assert row["result"] is False
        assert row["changes"] == {}
        assert words[name] in row["comment"]
    assert (virsh(lab, "net-list", "--all"), virsh(lab, "pool-list", "--all")) == before


def test_what_is_declared_absent_goes_and_its_data_stays(lab, made):
    lab.run(HOST, ["touch", "/srv/objects/images/kept.qcow2"])
    gone = {name: {"state": f"{spec['state'].partition('.')[0]}.absent"} for name, spec in STATES.items()}
    assert set(converge(lab, HOST, gone)) == set(STATES)
    left = virsh(lab, "net-list", "--all", "--name").split() + virsh(lab, "pool-list", "--all", "--name").split()
    assert [name for name in left if name.startswith("ob-")] == []
    lab.run(HOST, ["test", "-e", "/srv/objects/images/kept.qcow2"])
    assert changes_of(apply_states(lab, HOST, gone)) == {}

"""Debian 13 runs a guest with disk and network out of pillar, and its daemons restart without the guest's notice."""

import json

import pytest
from support import counts_on, end_guest, last_second

from lab.guest import ARGUMENTS, FOLDER

HOST, NAME, POOL, NETWORK = "hv1", "trixie", "trixie-pool", "trixie-net"
TARGET = "/srv/trixie"
GUEST = {
    "cpu": {"current": 1, "maximum": 2},
    "mem": {"current": 128, "maximum": 160},
    "boot": {
        "kernel": f"{FOLDER}/lab-guest-vmlinuz",
        "initrd": f"{FOLDER}/lab-guest-initramfs",
        "cmdline": ARGUMENTS,
    },
    "disks": [{"name": "system", "pool": POOL, "format": "qcow2", "size": 32}],
    "interfaces": [{"name": "eth0", "type": "network", "source": NETWORK}],
}
DECLARED = {
    "pools": {POOL: {"ptype": "dir", "target": TARGET}},
    "networks": {NETWORK: {"forward": "isolated", "ipv4_config": {"cidr": "192.168.113.0/24"}}},
    "guests": {NAME: GUEST},
}


def apply(lab, pillar, test=False):
    """Apply the formula with more pillar; return the changes of the states that have any, by id."""
    argv = ["salt", HOST, "--timeout=120", "--out=json", "--static", "state.apply", "libvirt", f"test={test}"]
    done = lab.run(lab.hosts.controller, [*argv, f"pillar={json.dumps(pillar)}"], check=False, timeout=300)
    rows = json.loads(done.stdout)[HOST]
    assert isinstance(rows, dict), rows
    assert [f"{row['__id__']}: {row['comment']}" for row in rows.values() if row["result"] is False] == []
    return {row["__id__"]: row["changes"] for row in rows.values() if row["changes"]}


@pytest.fixture(name="hypervisor")
def hypervisor_of_debian_13(fresh13, first13):
    """The lab after its highstate, with the guest's kernel; what the test declares is gone in the end."""
    assert first13.green, first13.failures()
    fresh13.push_guest()
    yield fresh13
    end_guest(fresh13, NAME)
    for kind, name in (("pool", POOL), ("net", NETWORK)):
        fresh13.run(HOST, ["virsh", f"{kind}-destroy", name], check=False)
        fresh13.run(HOST, ["virsh", f"{kind}-undefine", name], check=False)
    fresh13.run(HOST, ["rm", "-rf", TARGET])


def test_a_guest_of_the_pillar_outlives_a_restart_of_its_daemon(hypervisor):
    objects = {f"libvirt_pool_{POOL}", f"libvirt_network_{NETWORK}", f"libvirt_guest_{NAME}"}
    declared = {"libvirt": DECLARED}
    assert objects <= set(apply(hypervisor, declared, test=True))
    assert objects <= set(apply(hypervisor, declared))
    hypervisor.wait_console(HOST, NAME, "guest second 2", timeout=180)
    assert apply(hypervisor, declared) == {}

    pid = hypervisor.run(HOST, ["cat", f"/run/libvirt/qemu/{NAME}.pid"]).stdout
    before = last_second(hypervisor, HOST, NAME)
    changes = apply(hypervisor, {"libvirt": {**DECLARED, "daemon_conf": {"max_clients": 4013}}})
    assert changes["libvirt_daemon"] == {"restart": ["libvirtd.service"]}
    assert hypervisor.run(HOST, ["cat", f"/run/libvirt/qemu/{NAME}.pid"]).stdout == pid
    counts_on(hypervisor, HOST, NAME)
    assert last_second(hypervisor, HOST, NAME) > before

    # Taken away with its disk, and the daemon's file is as the lab's pillar says.
    gone = {"ensure": "absent", "allow_power_off": True, "stop_timeout": 2}
    assert f"libvirt_guest_{NAME}" in apply(hypervisor, {"libvirt": {**DECLARED, "guests": {NAME: gone}}})
    assert NAME not in hypervisor.run(HOST, ["virsh", "list", "--all", "--name"]).stdout.split()
    apply(hypervisor, {})


def test_libvirt_lists_the_devices_of_a_host(hypervisor):
    # A migration is judged by them. The driver is a package of its own there.
    assert "eth0" in hypervisor.run(HOST, ["virsh", "iface-list", "--all"]).stdout

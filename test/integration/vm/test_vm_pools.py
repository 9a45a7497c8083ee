"""Pools that need a kernel of their own: volume groups and NFS, on a virtual machine that serves itself."""

import pytest
from support import apply_states, converge

pytestmark = pytest.mark.long
HOST = "hv1"
IMAGE = "/srv/pools.raw"
# Its own name for a loop device of a file, which stands for a second disk.
LOOP = f"losetup --find --show {IMAGE}"
MIB = 1 << 20
# Takes connections for NFS and never says anything.
SILENT = """
import socket, time
server = socket.create_server(("", 2049), backlog=64)
time.sleep(600)
"""
# What a dead server may cost, in seconds.
LIMIT = 90


def shell(lab, script):
    """Run a script of the test's own on the host."""
    return lab.run(HOST, ["sh", "-e", "-s"], stdin=script, timeout=300).stdout.strip()


def silent(lab, pool, spec):
    """Run the state of a pool once more: it succeeds and nothing changes. A refusal has no changes either."""
    row = apply_states(lab, HOST, {pool: spec})[pool]
    assert (row["result"], row["changes"]) == (True, {}), row["comment"]


def forget(lab, pool):
    """Make libvirt forget a pool, whatever became of it."""
    for verb in ("pool-destroy", "pool-undefine"):
        lab.run(HOST, ["virsh", verb, pool], check=False)


@pytest.fixture(scope="module", name="site")
def prepared_host(mixed):
    """The host with the states of this repository, where nothing runs but what systemd starts."""
    mixed.run(HOST, ["salt-call", "saltutil.sync_all"], timeout=300)
    return mixed


@pytest.fixture(name="disk")
def spare_disk(site):
    """A disk of 64 MiB with a file system on it."""
    device = shell(site, f"truncate --size=64M {IMAGE}; mkfs.ext4 -q -L keepme {IMAGE}; {LOOP}")
    yield device
    forget(site, "vm-fast")
    shell(site, f"set +e; vgremove --yes vm-fast; losetup --detach {device}; rm -f {IMAGE}")


def test_a_volume_group_is_made_only_with_consent_and_survives_its_pool(site, disk):
    pool = {"state": "storage_pool.running", "ptype": "logical", "source": {"devices": [disk]}}
    for test in (True, False):
        row = apply_states(site, HOST, {"vm-fast": pool}, test=test)["vm-fast"]
        assert (row["result"], row["changes"]) == (False, {})
        assert f'{disk} holds ext4 "keepme"; it is overwritten only with allow_format: true' in row["comment"]
    assert "keepme" in shell(site, f"blkid -p {disk}")

    found = converge(site, HOST, {"vm-fast": {**pool, "allow_format": True}})
    assert found["vm-fast"]["volume_group"] == {"old": None, "new": disk}
    shell(site, "virsh vol-create-as vm-fast web 8M")
    assert int(shell(site, "blockdev --getsize64 /dev/vm-fast/web")) == 8 * MIB
    # Consent is no longer needed, nor the device.
    silent(site, "vm-fast", pool)

    shell(site, "virsh pool-destroy vm-fast")
    assert list(converge(site, HOST, {"vm-fast": {**pool, "source": {"name": "vm-fast"}}})["vm-fast"]) == ["state"]
    converge(site, HOST, {"vm-fast": {"state": "storage_pool.absent"}})
    assert "web" in shell(site, "lvs --noheadings -o lv_name vm-fast")
    # The device belongs to a group now, which no consent reaches.
    other = {**pool, "source": {"name": "vm-other", "devices": [disk]}, "allow_format": True}
    row = apply_states(site, HOST, {"vm-other": other})["vm-other"]
    assert f"{disk} belongs to the volume group vm-fast" in row["comment"]
    assert row["changes"] == {}


@pytest.fixture(name="served")
def nfs_server(site):
    """The machine as an NFS server for itself; returns the pool of its export."""
    shell(
        site,
        "mkdir -p /srv/pools; echo here > /srv/pools/file\n"
        "echo '/srv/pools *(rw,sync,no_subtree_check,no_root_squash)' > /etc/exports; systemctl start nfs-server",
    )
    source = {"hosts": ["127.0.0.1"], "dir": "/srv/pools", "format": "nfs"}
    yield {"state": "storage_pool.running", "ptype": "netfs", "target": "/srv/vm-nfs", "source": source}
    shell(site, "systemctl start nfs-server")
    forget(site, "vm-nfs")
    shell(site, "systemctl stop nfs-server; rm -rf /etc/exports /srv/pools /srv/vm-nfs")


def test_nfs_is_mounted_mounted_again_and_told_when_its_server_is_gone(site, served):
    assert list(converge(site, HOST, {"vm-nfs": served})["vm-nfs"]) == ["folder", "definition", "state", "autostart"]
    assert shell(site, "cat /srv/vm-nfs/file") == "here"
    silent(site, "vm-nfs", served)
    shell(site, "umount /srv/vm-nfs")
    assert list(converge(site, HOST, {"vm-nfs": served})["vm-nfs"]) == ["state"]
    newer = {**served, "source": {**served["source"], "version": "4.2"}}
    assert list(converge(site, HOST, {"vm-nfs": newer})["vm-nfs"]) == ["definition", "state"]
    assert "vers=4.2" in shell(site, "findmnt --noheadings --output OPTIONS /srv/vm-nfs")

    # While it runs, a server that is gone is nobody's business here.
    shell(site, "systemctl stop nfs-server")
    silent(site, "vm-nfs", newer)
    shell(site, "systemctl start nfs-server; virsh pool-destroy vm-nfs; systemctl stop nfs-server")
    row = apply_states(site, HOST, {"vm-nfs": newer})["vm-nfs"]
    assert (row["result"], row["changes"]) == (False, {})
    assert "Pool vm-nfs: the server 127.0.0.1 does not answer on port 2049" in row["comment"]

    shell(site, f"systemd-run --unit=silent --collect python3 -c '{SILENT}'; sleep 1")
    try:
        row = apply_states(site, HOST, {"vm-nfs": newer})["vm-nfs"]
    finally:
        shell(site, "systemctl stop silent; pkill -x mount.nfs || true")
    assert row["result"] is False
    assert row["comment"].startswith("Pool vm-nfs: virsh pool-start")
    assert row["duration"] < LIMIT * 1000

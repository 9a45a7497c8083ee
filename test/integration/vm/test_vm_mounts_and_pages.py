"""Huge pages, mounts and kernel arguments on a host with a kernel of its own; its file server dies and comes back.

hv1 is its own NFS server, under its own address. The tests build on each other and run in this order; one restart
of the machine, which its highstate asks for, serves them all.
"""

import json
import sys
import time

import pytest

from lab import salt

# The kernel soon forgets what it knows of the mount point, so that whoever looks at it asks the server.
FORGETFUL = "actimeo=1"
V3 = ["vers=3", "hard", "noatime", "rsize=32768", "wsize=32768", FORGETFUL]
# How long a highstate may take on account of dead servers, in seconds.
LIMIT = 90
# How long the jobs of a boot may go on once the machine answers, in seconds; a mount is given up after 90.
BOOT = 300
# What a shell says of a program that was killed (128 and the number of the signal).
KILLED = "137"
# How long systemd may take to read its files again, in seconds; it would wait for a dead server until 90 have gone.
RELOAD = 60


def say(text):
    """Show a line at once, also while pytest collects output: the start of a machine takes long."""
    print(f"         {text}", file=sys.__stderr__, flush=True)


class Site:
    """hv1 with a pillar of these tests' own.

    Attributes:
        machine: hv1.
        kvm: what its pillar says below ``kvm``.
    """

    def __init__(self, lab, machine):
        self.lab, self.machine = lab, machine
        own, network = machine.spec.address, machine.spec.address.rpartition(".")[0]
        self.dead = {"device": f"{network}.250:/dead", "fstype": "nfs"}
        self.kvm = {
            "packages": {"extra": ["nfs-common"]},
            "mounts": {
                "/vm": {"device": f"{own}:/srv/export/vm", "fstype": "nfs", "opts": V3},
                "/srv/iso": {"device": f"{own}:/srv/export/iso", "fstype": "nfs4", "opts": ["ro"]},
            },
            "hugepages": {"2M": {"nodes": {"node0": 8, "node1": 24}, "mount": "/hugepages"}},
        }

    def lay(self):
        """Write the pillar."""
        text = salt.pillar_files(self.lab.hosts)["hv1.sls"]
        salt.merge_pillar(self.lab.hosts, {"hv1.sls": salt.merged_yaml(text, {"kvm": self.kvm})})

    def apply(self, *, test=False):
        """Run pages and mounts alone, and return results by id."""
        self.lay()
        argv = ["salt-call", "--out=json", "state.apply", "kvm.hugepages,kvm.mounts", *(["test=True"] if test else [])]
        done = self.machine.ssh(argv, check=False, timeout=600)
        return by_id(json.loads(done.stdout)["local"])

    def text(self, *argv):
        """Return what a command says on hv1."""
        return self.machine.ssh(argv, check=False).stdout

    def pages(self):
        """Return the number of 2 MiB pages on each node."""
        files = [f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages" for node in (0, 1)]
        return [int(line) for line in self.text("cat", *files).split()]

    def shape(self):
        """Return what these states may change."""
        units = self.text("sh", "-c", "cd /etc/systemd/system; ls -lR; cat *.mount *.automount")
        return self.text("cat", "/etc/fstab"), units, self.text("findmnt", "--raw"), self.pages()


def by_id(answer):
    """Return the results of a run by id, each with the module of its state."""
    assert isinstance(answer, dict), answer
    return {row["__id__"]: {**row, "module": key.partition("_|-")[0]} for key, row in answer.items()}


def changes(results):
    """Return what has changed, or would, by id.

    Of a file it is told only that it has: Salt's own states describe a prediction in other words than the change.
    """
    return {
        key: "file" if row["module"] == "file" else row["changes"] for key, row in results.items() if row["changes"]
    }


def failures(results):
    """Return the comments of failed states, by id."""
    return {key: row["comment"] for key, row in results.items() if row["result"] is False}


@pytest.fixture(scope="module", name="site")
def serving_site(mixed, hv1):
    """hv1 as an NFS server for itself; everything is taken away in the end."""
    site = Site(mixed, hv1)
    script = (
        "mkdir -p /srv/export/vm /srv/export/iso; echo here >/srv/export/vm/file; "
        "echo '/srv/export *(rw,sync,no_subtree_check,no_root_squash)' >/etc/exports; systemctl start nfs-server"
    )
    hv1.ssh(["sh", "-c", script])
    # After the other tests of virtual machine hosts it has had its first highstate.
    converged = hv1.ssh(["test", "-e", "/etc/modules-load.d/hypervisor.conf"], check=False).returncode == 0
    hv1.ssh(["salt-call", "saltutil.sync_all" if converged else "state.highstate"], check=False, timeout=900)
    yield site
    hv1.ssh(["systemctl", "start", "nfs-server"])
    site.kvm["mounts"] = {path: {"ensure": "absent"} for path in ("/vm", "/srv/iso", "/srv/dead", "/hugepages")}
    site.kvm["hugepages"] = {"2M": 16, "1G": 0}
    failed = failures(site.apply())
    fstab, units, *_ = site.shape()
    hv1.ssh(["systemctl", "stop", "nfs-server"])
    hv1.ssh(["rm", "-rf", "/etc/exports", "/srv/export"])
    salt.merge_pillar(mixed.hosts, salt.pillar_files(mixed.hosts))
    assert failed == {}
    assert not any(word in fstab for word in ("nfs", "hugetlbfs"))
    assert not any(word in units for word in ("automount", "10.0", "Type=nfs"))


def test_a_dry_run_predicts_what_a_run_does_and_a_second_run_does_nothing(site):
    before = site.shape()
    foreseen = site.apply(test=True)
    assert site.shape() == before
    done = site.apply()
    assert failures(done) == {}
    assert changes(foreseen) == changes(done)
    assert {"kvm_hugepages_2M", "kvm_hugepages_mount_2M", "kvm_mount_/vm", "kvm_mount_/srv/iso"} <= set(changes(done))
    assert changes(site.apply()) == {}


def test_everything_is_there(site):
    assert site.pages() == [8, 24]
    assert site.text("cat", "/vm/file") == "here\n"
    options = site.text("findmnt", "--noheadings", "--types", "nfs,nfs4", "--output", "TARGET,OPTIONS", "--raw")
    by_target = dict(line.split(" ", 1) for line in options.splitlines())
    assert {"noatime", "vers=3", "hard", "rsize=32768"} <= set(by_target["/vm"].split(","))
    assert by_target["/srv/iso"].startswith("ro,")
    assert "vers=4" in by_target["/srv/iso"]
    assert "pagesize=2M" in site.text("findmnt", "--noheadings", "/hugepages")


def test_what_somebody_alters_is_seen_and_repaired(site):
    node = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    alter = f"sed -i '/hugetlbfs/d' /etc/fstab; echo 3 >{node}; mount -o remount,ro /vm; umount /hugepages"
    site.machine.ssh(["sh", "-c", alter])
    expected = {"kvm_hugepages_2M", "kvm_hugepages_mount_2M", "kvm_mount_/vm"}
    foreseen = changes(site.apply(test=True))
    assert set(foreseen) == expected
    assert foreseen["kvm_mount_/vm"] == {"remount": ["rw"]}
    assert changes(site.apply()) == foreseen
    assert site.pages() == [8, 24]


def test_what_is_in_use_is_not_unmounted_and_a_shortfall_has_its_figures(site):
    site.kvm["mounts"]["/vm"]["opts"] = ["vers=4.2", FORGETFUL]
    site.kvm["hugepages"]["1G"] = 64
    # systemd knows that this service needs the mount, and would stop it with the mount.
    start = ["systemd-run", "--unit=holder", "--collect", "--working-directory=/vm", "sleep", "3600"]
    site.machine.ssh(start)
    try:
        failed = failures(site.apply())
    finally:
        site.machine.ssh(["systemctl", "stop", "holder"])
        del site.kvm["hugepages"]["1G"]
    assert set(failed) == {"kvm_mount_/vm", "kvm_hugepages_1G"}
    assert "vers=4.2 (is 3)" in failed["kvm_mount_/vm"]
    assert "in use by sleep" in failed["kvm_mount_/vm"]
    assert "64 huge pages of 1G were asked for and the kernel gave 0 (node0: 0, node1: 0)" in failed["kvm_hugepages_1G"]
    assert "vers=3" in site.text("findmnt", "--noheadings", "--types", "nfs", "/vm")
    done = site.apply()
    assert failures(done) == {}
    assert done["kvm_mount_/vm"]["changes"]["mount"] == {"old": ["vers=4.2 (is 3)"], "new": "mounted anew"}


def test_systemd_reads_its_files_again_while_servers_are_dead(site, hv1):
    hv1.ssh(["systemctl", "stop", "nfs-server"])
    time.sleep(2)
    # The shell says how it ended: ssh fails alike whether its program was killed or it has no connection.
    asks = hv1.ssh(["sh", "-c", "timeout --signal=KILL 3 stat /vm >/dev/null 2>&1; echo $?"])
    assert asks.stdout.strip() == KILLED, "what looks at the mount point does not wait for its server"
    begun = time.monotonic()
    hv1.ssh(["systemctl", "daemon-reload"], timeout=100)
    assert time.monotonic() - begun < RELOAD


@pytest.fixture(scope="module", name="rebooted")
def after_the_reboot(site, mixed, hv1):
    """What the highstate returned that began while all servers were dead, and its seconds; its reboot has followed."""
    hv1.ssh(["systemctl", "stop", "nfs-server"])
    site.kvm["mounts"]["/srv/dead"] = site.dead
    site.kvm["kernel"] = {"args": {"mitigations": "off"}, "allow_reboot": True}
    site.lay()
    before = hv1.boot_id()
    begun = time.monotonic()
    results = by_id(salt.highstate(mixed.hosts, ["hv1"])["hv1"])
    seconds = time.monotonic() - begun
    hv1.wait_reboot(before, timeout=400, say=say)
    return results, seconds


@pytest.mark.long
def test_dead_servers_cost_a_highstate_seconds_and_are_named(rebooted):
    results, _ = rebooted
    failed = failures(results)
    assert set(failed) == {"kvm_mount_/vm", "kvm_mount_/srv/iso", "kvm_mount_/srv/dead"}
    for key, comment in failed.items():
        assert comment.startswith(key.removeprefix("kvm_mount_"))
        assert "does not answer on port 2049" in comment
    mounts = [row for key, row in results.items() if key.startswith("kvm_mount_")]
    assert sum(float(row["duration"]) for row in mounts) / 1000 < LIMIT


@pytest.mark.long
def test_the_highstate_returned_before_the_reboot_that_it_announced(rebooted, hv1):
    # If the other tests of virtual machine hosts did not run before, more arguments have waited for a boot.
    assert "+mitigations=off" in rebooted[0]["kvm_kernel_booted"]["changes"]["reboot"]["for"]
    assert "mitigations=off" in hv1.ssh(["cat", "/proc/cmdline"]).stdout.split()


@pytest.mark.long
def test_no_boot_waits_for_a_dead_server(rebooted, site, hv1):
    # A unit that still waits has not failed yet.
    deadline = time.monotonic() + BOOT
    while hv1.ssh(["systemctl", "show", "--value", "--property=NJobs"]).stdout.strip() != "0":
        assert time.monotonic() < deadline, site.text("systemctl", "list-jobs")
        time.sleep(2)
    assert hv1.ssh(["systemctl", "--failed", "--no-legend", "--plain"]).stdout == ""
    assert "autofs" in site.text("findmnt", "--noheadings", "--output", "FSTYPE", "/vm")
    assert site.pages() == [8, 24]


@pytest.mark.long
def test_mounts_heal_when_the_server_is_back_and_nothing_reboots_again(rebooted, site, mixed, hv1):
    boot = hv1.boot_id()
    hv1.ssh(["systemctl", "start", "nfs-server"])
    assert site.text("cat", "/vm/file") == "here\n"
    site.kvm["mounts"]["/srv/dead"] = {"ensure": "absent"}
    site.lay()
    salt.wait_answering(mixed.hosts)
    begun = time.monotonic()
    figures = salt.check_green(salt.highstate(mixed.hosts, ["hv1"]))["hv1"]
    alive = time.monotonic() - begun
    assert figures["changed"] == ["kvm_mount_/srv/dead"]
    # Of the whole run, whatever waited in it; the one with dead servers had a change of the boot menu besides.
    say(f"a highstate took {rebooted[1]:.0f} s with dead servers and {alive:.0f} s without")
    assert rebooted[1] - alive < LIMIT
    assert site.text("systemctl", "is-active", "hypervisor-formula-reboot.service").strip() == "inactive"
    assert hv1.boot_id() == boot

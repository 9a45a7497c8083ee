"""Virtual machine hosts: their own kernel, settings that survive a reboot, link and power in a test's hand.

The tests share the machines and run in this order: a start under emulation takes half a minute.
"""

import os
import secrets
import sys
import time
from dataclasses import replace

import pytest

from lab import salt, vm
from lab.proc import LabError

DISK = "/dev/disk/by-id/virtio-shared"
# How often a condition is looked at, and how long at most, in seconds.
PAUSE, PATIENCE = 0.5, 60


def say(text):
    """Show a line at once, also while pytest collects output: the start of a machine takes long."""
    print(f"         {text}", file=sys.__stderr__, flush=True)


def wait_until(condition, what, patience=PATIENCE):
    """Wait until a condition holds; fail, saying what was awaited."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(PAUSE)


def test_it_runs_a_kernel_of_its_own(mixed, hv1):
    assert mixed.hosts.kind("hv1") == "vm"
    release = hv1.ssh(["uname", "-r"]).stdout.strip()
    assert release.endswith("-amd64")
    assert release != os.uname().release
    assert hv1.ssh(["hostname", "--fqdn"]).stdout.strip() == "hv1.lab.internal"
    assert hv1.ssh(["lsmod"]).stdout.count("\n") > 10
    assert hv1.accelerator in {"kvm", "tcg"}


def test_nothing_failed_while_starting(hv1):
    hv1.ssh(["systemctl", "is-system-running", "--wait"], check=False, timeout=120)
    failed = hv1.ssh(["systemctl", "--failed", "--no-legend", "--plain"]).stdout
    assert failed == ""
    assert "Linux version" in hv1.console_log.read_text(errors="replace")


def test_its_key_is_the_one_that_the_lab_pinned(mixed, hv1):
    listed = hv1.ssh(["find", "/etc/ssh", "-name", "ssh_host_*.pub"]).stdout.split()
    assert listed == ["/etc/ssh/ssh_host_ed25519_key.pub"]
    key = hv1.ssh(["cat", *listed]).stdout.split()[1]
    assert key in (mixed.paths.root / "known_hosts").read_text()


def test_a_highstate_holds_over_a_reboot(mixed, hv1):
    salt.check_green(salt.highstate(mixed.hosts, ["hv1"]))
    assert "transparent_hugepage=madvise" not in hv1.ssh(["cat", "/proc/cmdline"]).stdout
    before = hv1.boot_id()
    answer = mixed.run("controller", ["salt", "--out=json", "hv1", "system.reboot"], check=False)
    assert "hv1" in answer.stdout
    hv1.wait_reboot(before, say=say)
    salt.wait_answering(mixed.hosts)
    ping = mixed.run("controller", ["salt", "--out=txt", "hv1", "test.ping"])
    assert ping.stdout.strip() == "hv1: True"
    assert "transparent_hugepage=madvise" in hv1.ssh(["cat", "/proc/cmdline"]).stdout.split()
    memory = hv1.ssh(["cat", "/proc/meminfo"]).stdout.splitlines()
    assert "HugePages_Total:      16" in memory


def test_a_second_highstate_after_the_reboot_changes_nothing(mixed):
    figures = salt.check_green(salt.highstate(mixed.hosts, ["hv1"]))
    assert figures["hv1"]["changed"] == []


def test_a_pulled_cable_cuts_a_host_off_until_it_is_back(hv1):
    assert hv1.answers()
    hv1.set_link(up=False)
    try:
        assert not hv1.answers(timeout=3)
        assert hv1.is_running()
    finally:
        hv1.set_link(up=True)
    wait_until(hv1.answers, "ssh answers again")
    assert hv1.ssh(["cat", "/sys/class/net/eth0/carrier"]).stdout.strip() == "1"


def test_a_card_that_is_not_there_is_refused(hv1):
    with pytest.raises(LabError, match="QEMU refused set_link"):
        hv1.set_link(up=False, nic=7)


@pytest.fixture(scope="module", name="after_power_cut")
def power_cut(hv1, spare, shared):
    """hv1 after a power cut, started again with the shared disk; and what was synced before."""
    text = secrets.token_hex(16)
    script = f"echo {text} >/root/synced && sync /root/synced"
    hv1.ssh(["sh", "-c", script])
    before = hv1.boot_id()
    hv1.kill()
    assert not hv1.is_running()
    assert not hv1.answers()
    machine = vm.Machine(replace(hv1.spec, disks=(shared,)), hv1.folder, hv1.ssh_config, hv1.accelerator)
    machine.start()
    machine.wait_ssh(say=say)
    spare.wait_ssh(say=say)
    assert machine.boot_id() != before
    return machine, text


@pytest.mark.long
def test_synced_data_survives_a_power_cut(after_power_cut):
    machine, text = after_power_cut
    assert machine.ssh(["cat", "/root/synced"]).stdout.strip() == text


@pytest.mark.long
def test_a_host_keeps_its_identity_over_a_power_cut(mixed, after_power_cut):
    machine, _ = after_power_cut
    assert machine.ssh(["hostname"]).stdout.strip() == "hv1"
    salt.wait_answering(mixed.hosts)


@pytest.mark.long
def test_two_machines_of_one_image_are_not_the_same(after_power_cut, spare):
    machine, _ = after_power_cut
    assert machine.spec.image == spare.spec.image
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/etc/hostname"):
        own, other = (each.ssh(["cat", path]).stdout for each in (machine, spare))
        assert own.strip()
        assert own != other


@pytest.mark.long
def test_two_machines_see_the_same_disk(after_power_cut, spare):
    machine, _ = after_power_cut
    text = secrets.token_hex(256)
    assert len(text) == 512
    write = f"printf %s {text} | dd of={DISK} bs=512 seek=2048 oflag=direct iflag=fullblock"
    read = ["dd", f"if={DISK}", "bs=512", "skip=2048", "count=1", "iflag=direct", "status=none"]
    machine.ssh(["sh", "-c", write])
    assert spare.ssh(read).stdout == text
    answer = secrets.token_hex(256)
    spare.ssh(["sh", "-c", write.replace(text, answer)])
    assert machine.ssh(read).stdout == answer


@pytest.mark.long
def test_machines_reach_each_other_on_layer_two(after_power_cut, spare):
    machine, _ = after_power_cut
    spare.ssh(["ping", "-c", "1", "-W", "5", machine.spec.address])
    neighbours = spare.ssh(["ip", "neighbour", "show", "dev", "eth0"]).stdout
    assert f"{machine.spec.address} lladdr {machine.spec.mac(0)}" in neighbours


@pytest.mark.long
def test_a_machine_shuts_down_when_asked(spare):
    begun = time.monotonic()
    spare.stop(timeout=90)
    assert not spare.is_running()
    assert time.monotonic() - begun < 90
    assert "Power down" in spare.console_tail()

"""A host that is fenced by sbd and has a shared volume group with its locks."""

import pytest
from storage_site import SAN, SBD


def test_sbd_runs_on_its_disk(host):
    assert host.service("sbd").is_running
    assert "Timeout (msgwait)  : 30" in host.check_output(f"sbd -d {SBD} dump")


@pytest.mark.parametrize("name", ["After", "Requires"])
def test_corosync_does_not_start_without_it(host, name):
    assert "sbd.service" in host.check_output(f"systemctl show --value --property={name} corosync").split()


def test_the_volume_group_is_shared(host):
    assert host.check_output("vgs --readonly --noheadings -o vg_lock_type vmdata").strip() == "dlm"
    assert host.check_output(f"pvs --readonly --noheadings -o vg_name {SAN}").strip() == "vmdata"


def test_its_locks_are_here(host):
    assert "lvm_vmdata" in host.check_output("lvmlockctl --info")

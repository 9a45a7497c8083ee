"""What the schema cannot say of guests: two of them must not have one disk."""

from __future__ import annotations

from typing import Any

import pytest

from _utils import guest_declared, libvirt_rules

POOLS = {"vms": {"ptype": "dir", "target": "/srv/vms"}, "fast": {"ptype": "logical", "target": "/dev/fast"}}
IMAGES = "/var/lib/libvirt/images"


@pytest.mark.parametrize(
    ("pool", "path"),
    [
        ({}, f"{IMAGES}/web_db_data.qcow2"),
        ({"format": "raw"}, f"{IMAGES}/web_db_data.raw"),
        ({"pool": "vms"}, "/srv/vms/web_db_data.qcow2"),
        ({"pool": "fast"}, "/dev/fast/web_db_data"),
    ],
)
def test_two_guests_never_derive_one_disk(pool, path):
    guests: dict[str, Any] = {
        "web": {"disks": [{"name": "db_data", "size": 64, **pool}]},
        "web_db": {"disks": [{"name": "data", "size": 64, **pool}]},
    }
    (found,) = libvirt_rules.disks(guests, POOLS)
    assert found == ("web_db:disks:data", f"{path} is a disk of the guest web already")
    # The state derives the same.
    known = {name: {"type": spec["ptype"], "target": spec["target"]} for name, spec in POOLS.items()}
    for name, spec in guests.items():
        (disk,) = guest_declared.disks(name, spec, known, IMAGES)
        assert disk["path"] == path
    assert libvirt_rules.disks({**guests, "web": {**guests["web"], "ensure": "absent"}}, POOLS) == []


def test_the_pillar_is_refused():
    disk = {"name": "system", "size": 64, "path": "/srv/x.qcow2"}
    guests = {"a": {"disks": [disk]}, "b": {"disks": [disk]}, "c": {}}
    ((path, text),) = libvirt_rules.errors({"pools": {}, "networks": {}, "guests": guests})
    assert (path, text) == ("libvirt:guests:b:disks:system", "/srv/x.qcow2 is a disk of the guest a already")


def test_disks_that_are_there_or_only_read_are_not_judged():
    disks = [{"name": "iso", "device": "cdrom", "image": "/x.iso"}, {"name": "own", "source_file": "/x.raw"}]
    guests: dict[str, Any] = {"a": {"disks": disks}, "b": {"disks": [*disks, {"name": "system", "size": 1}]}}
    assert libvirt_rules.disks(guests, {}) == []

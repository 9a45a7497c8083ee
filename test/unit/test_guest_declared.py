"""What a declaration of a guest wants, and which declarations contradict themselves."""

from __future__ import annotations

import pytest

from _utils import guest_declared as declared

FOLDER = "/var/lib/libvirt/images"
POOLS = {"vms": {"type": "netfs", "target": "/vms"}, "vg0": {"type": "logical", "target": "/dev/vg0"}}


def disk(**keys):
    (found,) = declared.disks("srv01", {"disks": [{"name": "system", **keys}]}, POOLS, FOLDER)
    return found


# ---- figures ----


def test_nothing_declared_is_nothing_wanted():
    assert declared.facts({}) == {}


def test_a_number_of_processors_is_also_the_maximum():
    assert declared.facts({"cpu": 2}) == {"cpu": 2, "cpu maximum": 2}


def test_memory_is_in_kib():
    assert declared.facts({"mem": 512}) == {"mem": 524288, "mem maximum": 524288}
    assert declared.facts({"mem": {"current": 256, "maximum": 512}}) == {"mem": 262144, "mem maximum": 524288}


@pytest.mark.parametrize(("pages", "found"), [(True, "default"), (False, None), ("2M", 2048), ("1G", 1048576)])
def test_hugepages(pages, found):
    assert declared.facts({"mem": {"hugepages": pages}}) == {"mem hugepages": found}


def test_processor():
    wanted = {"current": 1, "maximum": 4, "model": "host-model", "topology": {"sockets": 1, "cores": 4}}
    assert declared.facts({"cpu": wanted}) == {
        "cpu": 1, "cpu maximum": 4, "cpu model": "host-model", "cpu topology": "1,4,1",
    }  # fmt: skip


def test_words():
    found = declared.facts({
        "machine": "q35", "loader": "uefi", "description": "x", "boot_dev": ["network", "hd"],
        "boot": {"kernel": "/k"}, "graphics": {"type": "vnc"}, "serial": {"log": False}, "autostart": True,
    })  # fmt: skip
    assert found == {
        "machine": "q35", "loader": "uefi", "description": "x", "boot_dev": "network,hd",
        "kernel": "/k", "initrd": None, "cmdline": None, "graphics": "vnc on a unix socket",
        "serial": "pty", "serial log": False,
    }  # fmt: skip


def test_no_display_and_no_serial_port():
    assert declared.facts({"graphics": {"type": "none"}, "serial": {"type": "none"}}) == {
        "graphics": "none", "serial": "none",
    }  # fmt: skip


# ---- disks ----


def test_a_new_disk_is_qcow2_in_the_folder_of_images():
    found = disk(size=1024)
    assert found["path"] == f"{FOLDER}/srv01_system.qcow2"
    assert (found["format"], found["block"], found["overlay"], found["exists"]) == ("qcow2", False, False, False)
    assert found["props"] == {
        "@type": "file", "@device": "disk", "driver/@name": "qemu", "driver/@type": "qcow2", "target/@bus": "virtio",
    }  # fmt: skip
    # What is not declared may be otherwise.
    assert found["declared"] == []


def test_the_disk_of_the_seed():
    image = "https://download.opensuse.org/x/opensuse151.x86_64.qcow2"
    found = disk(model="virtio", format="qcow2", image=image, pool="vms", size=122880, image_hash="sha256=00")
    assert found["path"] == "/vms/srv01_system.qcow2"
    assert found["overlay"] is True
    assert sorted(found["declared"]) == ["driver/@type", "target/@bus"]


def test_a_volume_of_lvm_is_a_raw_device():
    found = disk(pool="vg0", size=1024, cache="none", discard="unmap")
    assert found["path"] == "/dev/vg0/srv01_system"
    assert (found["block"], found["format"]) == (True, "raw")
    assert found["props"]["@type"] == "block"
    assert found["props"]["driver/@cache"] == "none"
    assert sorted(found["declared"]) == ["driver/@cache", "driver/@discard"]


def test_an_image_on_lvm_is_copied():
    assert disk(pool="vg0", image="/i.qcow2")["overlay"] is False


def test_a_copy_may_be_asked_for():
    assert disk(image="/i.qcow2", overlay_image=False)["overlay"] is False


@pytest.mark.parametrize(
    ("keys", "path", "block"),
    [
        ({"source_file": "/srv/x.raw"}, "/srv/x.raw", False),
        ({"source_file": "/dev/disk/by-id/x"}, "/dev/disk/by-id/x", True),
        ({"source_file": "old", "pool": "vg0"}, "/dev/vg0/old", True),
        ({"source_file": "old.qcow2", "pool": "vms"}, "/vms/old.qcow2", False),
    ],
)
def test_an_existing_disk(keys, path, block):
    found = disk(**keys)
    assert (found["path"], found["block"], found["exists"]) == (path, block, True)


def test_a_cdrom():
    found = disk(device="cdrom", image="salt://x.iso")
    assert (found["path"], found["cdrom"], found["props"]["target/@bus"]) == (None, True, "sata")
    assert found["props"]["driver/@type"] == "raw"
    assert disk(device="cdrom", source_file="/x.iso")["path"] == "/x.iso"


def test_a_drive_with_nothing_in_it():
    assert declared.contradictions("x", {"disks": [{"name": "a", "device": "cdrom"}]}) == []
    found = disk(device="cdrom")
    assert (found["path"], found["image"], found["exists"]) == (None, None, False)


def test_a_pool_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="srv01:disks:system:pool: there is no storage pool nowhere"):
        disk(pool="nowhere", size=1)


def test_names_in_the_guest():
    assert declared.target("virtio", []) == "vda"
    assert declared.target("virtio", ["vda", "sda"]) == "vdb"
    assert declared.target("sata", ["sda"]) == declared.target("scsi", ["sda"]) == "sdb"
    taken = [f"vd{chr(letter)}" for letter in range(ord("a"), ord("z") + 1)]
    assert declared.target("virtio", taken) == "vdaa"


@pytest.mark.parametrize(
    ("disks", "bus"),
    [
        ([{"name": "system", "size": 1}], "scsi"),
        ([{"name": "system", "size": 1, "model": "scsi"}], "scsi"),
        ([{"name": "system", "size": 1, "model": "sata"}], "sata"),
        ([{"name": "install", "device": "cdrom", "source_file": "/x.iso"}], "sata"),
        ([], "sata"),
    ],
)
def test_cloud_init_reads_from_a_drive_that_the_guest_has_a_driver_for(disks, bus):
    others = declared.disks("srv01", {"disks": disks}, {}, FOLDER)
    assert declared.seed_disk("srv01", others, FOLDER)["props"]["target/@bus"] == bus


# ---- interfaces ----


def test_an_address_is_always_the_same_and_differs_by_name():
    first = declared.mac("srv01", "eth0")
    assert first == declared.mac("srv01", "eth0") == "52:54:00:10:f0:f3"
    others = {declared.mac("srv01", "eth1"), declared.mac("srv02", "eth0"), declared.mac("srv0", "1eth0")}
    assert len({first, *others}) == 4


def test_the_interface_of_the_seed():
    nic = {"name": "eth0", "type": "network", "source": "net0", "mac": "2A:C3:A7:A6:01:04"}
    (found,) = declared.interfaces("srv01", {"interfaces": [nic]}, {})
    assert (found["mac"], found["fixed"]) == ("2a:c3:a7:a6:01:04", True)
    assert found["props"] == {"@type": "network", "source/@network": "net0", "model/@type": "virtio"}
    assert found["declared"] == ["@type", "source/@network"]


def test_a_profile():
    profiles = {"default": [{"name": "eth0", "source": "br0", "vlan": 7, "virtualport": "openvswitch", "mtu": 9000}]}
    (found,) = declared.interfaces("srv01", {"nic_profile": "default"}, profiles)
    assert found["props"]["vlan/tag/@id"] == "7"
    assert found["props"]["virtualport/@type"] == "openvswitch"
    assert found["props"]["mtu/@size"] == "9000"
    assert found["fixed"] is False


def test_a_profile_that_is_not_there():
    with pytest.raises(ValueError, match=r"no profile dmz; libvirt:nic_profiles has: a, b"):
        declared.interfaces("srv01", {"nic_profile": "dmz"}, {"b": [], "a": []})


# ---- contradictions ----


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"cpu": {"current": 4, "maximum": 2}}, "x:cpu:current: 4 is more than the maximum, 2"),
        ({"mem": {"current": 4, "maximum": 2}}, "x:mem:current"),
        ({"ensure": "running"}, "x:ensure: the name of the state says it"),
        ({"nic_profile": "a", "interfaces": []}, "either a profile or interfaces"),
        ({"interfaces": [{"name": "a"}, {"name": "a"}]}, "x:interfaces: a is there twice"),
        ({"disks": [{"name": "a", "size": 1}, {"name": "a", "size": 1}]}, "x:disks: a is there twice"),
        ({"disks": [{"name": "a"}]}, "x:disks:a: size is needed"),
        ({"disks": [{"name": "a", "size": 1, "path": "/a", "pool": "b"}]}, "either a path or a pool"),
        ({"disks": [{"name": "a", "source_file": "/a", "size": 1}]}, "for new ones"),
        ({"disks": [{"name": "a", "source_file": "a"}]}, "in the pool that stands beside it"),
        ({"disks": [{"name": "a", "source_file": "/a", "pool": "p"}]}, "the name of a volume where a pool"),
        ({"disks": [{"name": "a", "image": "https://x/y"}]}, "image_hash is needed"),
        ({"disks": [{"name": "a", "device": "cdrom", "image": "/a", "size": 1}]}, "a cdrom has no size"),
    ],
)
def test_contradictions(declaration, words):
    (found,) = declared.contradictions("x", declaration)
    assert words in found


def test_a_sound_declaration_has_no_contradictions():
    nics = [{"name": "eth0", "source": "br0"}]
    disks = [{"name": "a", "size": 1}, {"name": "b", "image": "salt://x"}, {"name": "c", "source_file": "/dev/x"}]
    assert declared.contradictions("x", {"cpu": 1, "mem": {"maximum": 9}, "disks": disks, "interfaces": nics}) == []

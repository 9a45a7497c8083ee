"""How a guest's definition is read, compared with its declaration, and edited."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from _utils import guest_declared, guest_domain, guest_plan

FOLDER = "/var/lib/libvirt/images"
XML = """<domain type='qemu'>
  <name>web</name><uuid>d4907394-ebcf-4f9d-a8d4-8e2ba42f63e2</uuid><description>The web</description>
  <memory unit='KiB'>262144</memory><currentMemory unit='KiB'>131072</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>/k</kernel><cmdline>console=ttyS0</cmdline><boot dev='hd'/></os>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/><source file='/var/lib/libvirt/images/web_system.qcow2'/>
      <target dev='vda' bus='virtio'/><alias name='ua-disk-system'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/><source pool='vg0' volume='data'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/a.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='virtio'/></interface>
    <interface type='network'><mac address='52:54:00:00:00:02'/><source network='net0'/></interface>
    <serial type='pty'><log file='/x' append='on'/></serial><console type='pty'/>
    <graphics type='vnc'><listen type='socket'/></graphics><video><model type='vga'/></video>
  </devices>
</domain>"""
POOLS = {"vg0": {"type": "logical", "target": "/dev/vg0"}}
UTILS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in (guest_declared, guest_domain) for name in dir(module) if not name.startswith("_")
}  # fmt: skip


def domain(text=XML, **replaced):
    for old, new in replaced.items():
        text = text.replace(*new) if isinstance(new, tuple) else text.replace(old, new)
    return guest_domain.parse(text)


def edited(old, new):
    assert old in XML
    return guest_domain.parse(XML.replace(old, new))


def want(**declaration):
    disks = guest_declared.disks("web", declaration, POOLS, FOLDER)
    nics = guest_declared.interfaces("web", declaration, {})
    return guest_plan.wanted("web", guest_declared.facts(declaration), disks, nics, POOLS)


def plan(now, live=None, **declaration):
    return guest_plan.existing(UTILS, want(**declaration), now, live)


SAME: dict[str, Any] = {
    "cpu": {"current": 1, "maximum": 2, "model": "host-passthrough"},
    "mem": {"current": 128, "maximum": 256, "hugepages": False},
    "machine": "q35", "arch": "x86_64", "loader": "bios", "description": "The web",
    "boot": {"kernel": "/k", "cmdline": "console=ttyS0"}, "boot_dev": ["hd"],
    "graphics": {"type": "vnc"}, "serial": {"type": "pty", "log": True},
    "disks": [{"name": "system", "format": "qcow2", "size": 9, "model": "virtio", "cache": "none"},
              {"name": "data", "pool": "vg0", "source_file": "data"},
              {"name": "install", "device": "cdrom", "source_file": "/a.iso"}],
    "interfaces": [{"name": "eth0", "source": "br0", "mac": "52:54:00:00:00:01"},
                   {"name": "eth1", "type": "network", "source": "net0"}],
}  # fmt: skip


def test_what_is_as_declared_needs_nothing():
    assert plan(domain(), domain(), **SAME) == guest_plan.Plan({}, [], [], [])


def test_what_is_not_declared_is_not_compared():
    assert plan(domain(), domain()) == guest_plan.Plan({}, [], [], [])


# ---- figures: what a person edits, what is seen, how it is written ----

DRIFT: list[tuple[str, str, dict[str, tuple[object, object]], list[tuple[str, str, str]]]] = [
    ("current='1'>2<", "current='1'>4<", {"cpu maximum": (4, 2)}, [("set", "./vcpu", "2")]),
    ("current='1'", "current='2'", {"cpu": (2, 1)}, [("set", "./vcpu/@current", "1")]),
    ("131072", "65536", {"mem": ("64 MiB", "128 MiB")}, [("set", "./currentMemory", "131072")]),
    ("262144", "524288", {"mem maximum": ("512 MiB", "256 MiB")}, [("set", "./memory", "262144")]),
    ("The web", "mine", {"description": ("mine", "The web")}, [("set", "./description", "The web")]),
    ("ttyS0", "ttyS1", {"cmdline": ("console=ttyS1", "console=ttyS0")}, [("set", "./os/cmdline", "console=ttyS0")]),
    ("<kernel>/k</kernel>", "<kernel>/k</kernel><initrd>/i</initrd>", {"initrd": ("/i", None)},
     [("delete", "./os/initrd", "")]),
    ("<boot dev='hd'/>", "<boot dev='network'/><boot dev='hd'/>", {"boot_dev": ("network,hd", "hd")},
     [("delete", "./os/boot[1]", ""), ("delete", "./os/boot[1]", ""), ("set", "./os/boot[1]/@dev", "hd")]),
    ("<listen type='socket'/>", "<listen type='address' address='0.0.0.0'/>",
     {"graphics": ("vnc on 0.0.0.0", "vnc on a unix socket")},
     [("delete", "./devices/graphics[1]", ""), ("set", "./devices/graphics[1]/@type", "vnc"),
      ("set", "./devices/graphics[1]/listen/@type", "socket")]),
    ("<log file='/x' append='on'/>", "", {"serial log": (False, True)},
     [("delete", "./devices/console", ""),
      ("set", "./devices/serial[1]/log/@file", "/var/log/libvirt/qemu/web-serial.log"),
      ("set", "./devices/serial[1]/log/@append", "on")]),
    ("<cpu mode='host-passthrough'/>", "<cpu mode='custom'><model>qemu64</model></cpu>",
     {"cpu model": ("qemu64", "host-passthrough")}, [("set", "./cpu/@mode", "host-passthrough")]),
    ("<devices>", "<memoryBacking><hugepages/></memoryBacking><devices>", {"mem hugepages": ("default", None)},
     [("delete", "./memoryBacking/hugepages", "")]),
    ("cache='none'", "", {"disk system cache": (None, "none")}, [("set", "./devices/disk[1]/driver/@cache", "none")]),
    ("bridge='br0'", "bridge='br1'", {"interface eth0 source": ("br1", "br0")},
     [("delete", "./devices/interface[1]/source", ""), ("set", "./devices/interface[1]/@type", "bridge"),
      ("set", "./devices/interface[1]/source/@bridge", "br0")]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "changes", "steps"), DRIFT, ids=[min(row[2]) for row in DRIFT])
def test_each_edit_is_seen_and_repaired_alone(old, new, changes, steps):
    found = plan(edited(old, new), **SAME)
    assert found.changes == {key: {"old": was, "new": to} for key, (was, to) in changes.items()}
    assert found.steps[-len(steps) :] == steps
    # A processor of another model takes what belonged to that along.
    assert [step for step in found.steps if step not in steps and not step[1].startswith("./cpu/")] == []


def test_the_order_of_devices_can_stand_with_the_devices():
    ordered = edited("<boot dev='hd'/>", "")
    ElementTree.SubElement(ordered.findall("devices/interface")[0], "boot", order="1")
    ElementTree.SubElement(ordered.findall("devices/disk")[0], "boot", order="2")
    assert plan(ordered, boot_dev=["network", "hd"]).changes == {}
    found = plan(ordered, boot_dev=["hd"])
    assert found.steps == [
        ("delete", "./devices/disk[1]/boot", ""), ("delete", "./devices/interface[1]/boot", ""),
        ("set", "./os/boot[1]/@dev", "hd"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [("machine", "pc"), ("machine", "pc-q35-6.0"), ("arch", "i686"), ("loader", "uefi")]
)
def test_what_a_guest_was_made_with_is_never_changed(key, value):
    with pytest.raises(ValueError, match=f"web:{key}: the guest was made with"):
        plan(domain(), **{key: value})


def test_an_exact_machine_type():
    assert plan(domain(), machine="pc-q35-7.2").changes == {}


@pytest.mark.parametrize(
    ("old", "new"), [("<os>", "<os firmware='efi'>"), ("<boot dev='hd'/>", "<loader type='pflash'>/x</loader>")]
)
def test_uefi_is_found(old, new):
    assert guest_domain.facts(edited(old, new))["loader"] == "uefi"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("<graphics type='vnc' socket='/x'/>", "vnc on a unix socket"),
        ("<graphics type='vnc' listen='10.0.0.1'/>", "vnc on 10.0.0.1"),
        ("<graphics type='vnc'><listen type='network' network='lan'/></graphics>", "vnc on lan"),
        ("<graphics type='spice'><listen type='none'/></graphics>", "spice on nothing"),
        ("<graphics type='vnc'/>", "vnc on the default address"),
        ("", "none"),
    ],
)
def test_where_a_display_is(new, said):
    there = "<graphics type='vnc'><listen type='socket'/></graphics>"
    assert guest_domain.facts(edited(there, new))["graphics"] == said


def test_a_display_that_is_not_wanted_goes():
    found = plan(domain(), graphics={"type": "none"})
    assert found.steps == [("delete", "./devices/graphics[1]", "")]


# ---- a guest that runs ----


def test_memory_and_processors_of_a_running_guest():
    found = plan(domain(), domain(), cpu={"current": 2, "maximum": 2}, mem={"current": 192, "maximum": 256})
    assert [words for _, words in found.live] == [
        ["setvcpus", "--live", "--domain", "web", "--count", "2"],
        ["setmem", "--live", "--domain", "web", "--size", "196608KiB"],
    ]
    assert guest_plan.waiting(UTILS, want(cpu=2, mem={"current": 192, "maximum": 256}), domain(), found) == []


def test_what_is_more_than_the_running_guest_can_have_waits():
    declaration = {"cpu": 4, "mem": 512}
    found = plan(domain(), domain(), **declaration)
    assert found.live == []
    later = guest_plan.waiting(UTILS, want(**declaration), domain(), found)
    assert later == ["cpu maximum", "cpu", "mem maximum"]


def test_a_guest_that_does_not_run_is_not_asked():
    found = plan(domain(), None, cpu=1, mem=128, description="x")
    assert (found.live, found.attach) == ([], [])


def test_a_balloon_that_does_not_follow_is_nothing_to_wait_for():
    live = edited("131072", "262144")
    assert plan(domain(), live, **SAME) == guest_plan.Plan({}, [], [], [])
    assert guest_plan.waiting(UTILS, want(**SAME), live, guest_plan.Plan({}, [], [], [])) == []


# ---- disks ----


def test_a_new_disk_comes_with_the_next_free_name():
    found = plan(domain(), domain(), disks=[{"name": "more", "size": 1}, {"name": "sata", "size": 1, "model": "sata"}])
    assert found.changes["disk more"] == {"old": None, "new": f"{FOLDER}/web_more.qcow2"}
    assert ("set", "./devices/disk[4]/target/@dev", "vdc") in found.steps
    assert ("set", "./devices/disk[5]/target/@dev", "sdb") in found.steps
    assert ("set", "./devices/disk[4]/source/@file", f"{FOLDER}/web_more.qcow2") in found.steps
    assert found.attach == [("disk more", "disk", "vdc"), ("disk sata", "disk", "sdb")]


def test_a_disk_of_the_definition_that_the_running_guest_lacks_is_attached():
    live = domain()
    live.find("devices").remove(live.findall("devices/disk")[0])
    found = plan(domain(), live, **SAME)
    assert found.steps == []
    assert found.attach == [("disk system", "disk", "vda")]
    assert found.changes == {"disk system": {"old": None, "new": f"{FOLDER}/web_system.qcow2"}}


def test_a_disk_is_never_exchanged():
    swapped = edited("web_system.qcow2", "other.qcow2")
    with pytest.raises(ValueError, match=r"web:disks:system: the guest uses .*other.qcow2 in the place of"):
        plan(swapped, **SAME)


def test_a_snapshot_on_top_of_a_disk_is_the_disk():
    top = f"{FOLDER}/web_system.snap"
    snapped = edited("web_system.qcow2", "web_system.snap")
    declared = want(**SAME)
    assert guest_plan.missing_disks(UTILS, declared, snapped)
    assert not guest_plan.missing_disks(UTILS, declared, domain())
    declared = guest_plan.with_chains(declared, {top: [top, f"{FOLDER}/web_system.qcow2"]})
    assert guest_plan.existing(UTILS, declared, snapped, None).changes == {}


def test_a_layer_of_another_disk_is_not_added():
    declared = want(disks=[{"name": "base", "source_file": "/base.qcow2"}])
    declared = guest_plan.with_chains(declared, {"/top.qcow2": ["/top.qcow2", "/base.qcow2"]})
    with pytest.raises(ValueError, match="may be a snapshot"):
        guest_plan.existing(UTILS, declared, domain(), None)


def test_another_cdrom_is_laid_in_at_once():
    found = plan(domain(), domain(), disks=[{"name": "install", "device": "cdrom", "source_file": "/b.iso"}])
    assert found.changes == {"disk install source": {"old": "/a.iso", "new": "/b.iso"}}
    assert found.steps[-1] == ("set", "./devices/disk[3]/source/@file", "/b.iso")
    ((what, words),) = found.live
    assert what == "disk install"
    assert words[-2:] == ["--domain", "web"]
    assert words[words.index("--path") + 1] == "sda"


EMPTY = {"name": "install", "device": "cdrom"}


def test_a_drive_is_emptied_at_once():
    found = plan(domain(), domain(), disks=[EMPTY])
    assert found.changes == {"disk install source": {"old": "/a.iso", "new": None}}
    assert ("delete", "./devices/disk[3]/source", "") in found.steps
    assert not any(path.endswith("/source/@file") for _, path, _ in found.steps)
    ((_, words),) = found.live
    assert words[:2] == ["change-media", "--live"]
    assert "--eject" in words
    assert "--source" not in words


def test_an_empty_drive_stays_empty_and_is_made_so():
    emptied = edited("<source file='/a.iso'/>", "")
    assert plan(emptied, emptied, disks=[EMPTY]).changes == {}
    fresh = plan(domain(), domain(), disks=[{"name": "install", "device": "cdrom"}, {**EMPTY, "name": "second"}])
    assert fresh.changes["disk second"] == {"old": None, "new": "an empty drive"}
    assert fresh.attach == [("disk second", "disk", "sdb")]


def test_what_a_guest_does_not_give_out_waits():
    declared = want(disks=[EMPTY])
    emptied = edited("<source file='/a.iso'/>", "")
    again = guest_plan.existing(UTILS, declared, emptied, domain())
    assert again.changes == {}
    assert guest_plan.waiting(UTILS, declared, domain(), again) == ["disk install"]


def test_another_bus_gives_the_disk_another_name():
    found = plan(domain(), disks=[{"name": "system", "size": 1, "model": "sata"}])
    assert found.changes == {"disk system model": {"old": "virtio", "new": "sata"}}
    assert found.steps == [
        ("delete", "./devices/disk[1]/address", ""), ("set", "./devices/disk[1]/target/@dev", "sdb"),
        ("set", "./devices/disk[1]/target/@bus", "sata"),
    ]  # fmt: skip


def test_disks_that_are_a_guests_own():
    assert guest_domain.own_disks(domain(), POOLS) == [f"{FOLDER}/web_system.qcow2", "/dev/vg0/data"]
    assert guest_domain.own_disks(edited("<alias name='ua-disk-system'/>", "<shareable/>"), POOLS) == ["/dev/vg0/data"]


# ---- interfaces ----


def test_a_new_interface():
    nic = {"name": "eth2", "source": "br9", "vlan": 5}
    found = plan(domain(), domain(), interfaces=[nic])
    address = guest_declared.mac("web", "eth2")
    assert found.changes == {"interface eth2": {"old": None, "new": f"bridge br9, {address}"}}
    assert ("set", "./devices/interface[3]/mac/@address", address) in found.steps
    assert ("set", "./devices/interface[3]/vlan/tag/@id", "5") in found.steps
    assert ("set", "./devices/interface[3]/alias/@name", "ua-nic-eth2") in found.steps
    assert found.attach == [("interface eth2", "interface", 3)]


def test_an_interface_that_declares_an_address_is_not_taken_for_another():
    nic = {"name": "eth0", "source": "br0", "mac": "52:54:00:00:00:99"}
    assert list(plan(domain(), interfaces=[nic]).changes) == ["interface eth0"]


def test_an_address_that_somebody_changed_is_found_by_the_name_of_the_interface():
    nic = {"name": "eth0", "source": "br0", "mac": "52:54:00:00:00:99"}
    address = "<mac address='52:54:00:00:00:01'/>"
    named = edited(address, address + "<alias name='ua-nic-eth0'/>")
    found = plan(named, interfaces=[nic])
    assert found.changes == {"interface eth0 mac": {"old": "52:54:00:00:00:01", "new": "52:54:00:00:00:99"}}
    assert found.steps == [("set", "./devices/interface[1]/mac/@address", "52:54:00:00:00:99")]


def test_a_running_guest_is_connected_anew():
    declaration = {"interfaces": [{"name": "eth0", "source": "br7", "mac": "52:54:00:00:00:01"}]}
    found = plan(domain(), domain(), **declaration)
    assert found.attach == [("interface eth0", "update", 1)]
    assert found.changes == {"interface eth0 source": {"old": "br0", "new": "br7"}}


def test_a_running_guest_on_another_bridge_than_its_definition_comes_back():
    live = edited("bridge='br0'", "bridge='br5'")
    found = plan(domain(), live, **SAME)
    assert found.attach == [("interface eth0", "update", 1)]
    assert found.steps == []
    assert found.changes == {"interface eth0 source": {"old": "br5", "new": "br0"}}


def test_from_a_bridge_to_a_network():
    nic = {"name": "eth0", "type": "network", "source": "net1", "mac": "52:54:00:00:00:01"}
    found = plan(domain(), interfaces=[nic])
    assert found.steps == [
        ("delete", "./devices/interface[1]/source", ""), ("set", "./devices/interface[1]/@type", "network"),
        ("set", "./devices/interface[1]/source/@network", "net1"),
    ]  # fmt: skip


def test_a_device_is_taken_out_without_its_place_on_the_bus():
    text = guest_domain.fragment(domain(), "disk", 1)
    assert "web_system.qcow2" in text
    assert "<address" not in text


# ---- a guest that is not there ----


def test_the_devices_of_a_new_guest():
    steps = guest_plan.new(UTILS, want(**SAME))
    assert ("set", "./devices/disk[1]/target/@dev", "vda") in steps
    assert ("set", "./devices/disk[2]/source/@dev", "/dev/vg0/data") in steps
    assert ("set", "./devices/disk[2]/target/@dev", "vdb") in steps
    assert ("create", "./devices/disk[3]/readonly", "") in steps
    assert ("set", "./devices/interface[2]/source/@network", "net0") in steps
    assert ("set", "./cpu/@mode", "host-passthrough") in steps


def test_a_disk_on_scsi_brings_its_controller_once():
    more = {"disks": [*SAME["disks"], {"name": "more", "size": 1, "model": "scsi"}]}
    steps = plan(domain(), **{**SAME, **more}).steps
    assert steps[-2:] == [
        ("set", "./devices/controller[1]/@type", "scsi"),
        ("set", "./devices/controller[1]/@model", "virtio-scsi"),
    ]
    has = edited("<devices>", "<devices><controller type='usb'/><controller type='scsi' model='virtio-scsi'/>")
    assert not [step for step in plan(has, **{**SAME, **more}).steps if "controller" in step[1]]

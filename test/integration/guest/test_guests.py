"""Guests as pillar declares them: made, left alone, updated while they run, repaired, removed."""

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from declared import FOLDER, HOST, both, call, declare, domain, from_pillar, silent

# The guest that counts: no system on its disks, so a kernel from the host.
KERNEL = {
    "kernel": f"{FOLDER}/lab-guest-vmlinuz",
    "initrd": f"{FOLDER}/lab-guest-initramfs",
    "cmdline": "console=ttyS0 no_timer_check",
}
GUEST: dict[str, Any] = {
    "cpu": {"current": 1, "maximum": 2},
    "mem": {"current": 128, "maximum": 192},
    "boot": KERNEL,
    "disks": [{"name": "system", "model": "virtio", "format": "qcow2", "size": 32, "cache": "writeback"}],
    "interfaces": [{"name": "eth0", "type": "bridge", "source": "hvtest0"}],
    "graphics": {"type": "vnc"},
    "autostart": True,
}
# Nothing in this guest listens for a request to shut down.
POWER = {"stop_timeout": 2, "allow_power_off": True}


@pytest.fixture(scope="module")
def hv(lab):
    """The hypervisor's lab, with two bridges that lead nowhere."""
    for bridge in ("hvtest0", "hvtest1"):
        lab.run(HOST, ["ip", "link", "add", bridge, "type", "bridge"])
        lab.run(HOST, ["ip", "link", "set", bridge, "up"])
    yield lab
    for name in lab.run(HOST, ["virsh", "list", "--all", "--name"]).stdout.split():
        if name.startswith("gt-"):
            lab.run(HOST, ["virsh", "destroy", name], check=False)
            lab.run(HOST, ["virsh", "undefine", "--nvram", name])
    lab.run(HOST, ["sh", "-c", f"rm -f {FOLDER}/gt-* {FOLDER}/lab-guest-initramfs-*"])
    for bridge in ("hvtest0", "hvtest1"):
        lab.run(HOST, ["ip", "link", "del", bridge])


def test_life_of_a_guest(hv):
    name = "gt-life"
    changes = both(hv, name, how=from_pillar, **GUEST)
    assert changes["guest"] == {"old": None, "new": "defined"}
    assert changes["state"]["new"] == "running"
    assert changes["autostart"]["new"] is True
    hv.wait_console(HOST, name, "guest second 1")
    comment = silent(hv, name, how=from_pillar, **GUEST)
    assert comment == f"The guest {name} is as declared (running)."

    live = domain(hv, name)
    assert live.find("devices/graphics/listen").get("type") == "socket"
    assert live.find("devices/disk/driver").get("cache") == "writeback"
    mode = hv.run(HOST, ["stat", "--format=%a", f"{FOLDER}/{name}_system.qcow2"]).stdout.strip()
    assert mode == "600"

    # While it runs: memory, processor, interface, disk, a larger disk. Its clock runs through.
    more = {
        **GUEST,
        "cpu": {"current": 2, "maximum": 2},
        "mem": {"current": 160, "maximum": 192},
        "disks": [{**GUEST["disks"][0], "size": 48}, {"name": "data", "format": "raw", "size": 16}],
        "interfaces": [*GUEST["interfaces"], {"name": "eth1", "source": "hvtest1"}],
    }
    assert set(both(hv, name, **more)) == {"cpu", "mem", "disk system", "disk data", "interface eth1"}
    live = domain(hv, name)
    assert live.find("vcpu").get("current", live.find("vcpu").text) == "2"
    assert len(live.findall("devices/disk")) == len(live.findall("devices/interface")) == 2
    size = hv.run(HOST, ["virsh", "domblkinfo", name, "vda"]).stdout
    assert str(48 * 2**20) in size
    assert domain(hv, name, "--inactive").find("currentMemory").text == str(160 * 1024)
    silent(hv, name, **more)

    # What cannot be had while it runs waits for its next start, or for the consent to one.
    later = {**more, "mem": {"current": 160, "maximum": 256}}
    assert set(both(hv, name, **later)) == {"mem maximum"}
    assert "waits: mem maximum" in silent(hv, name, **later)
    assert int(domain(hv, name).find("memory").text) == 192 * 1024
    consent = {**later, "allow_restart": True, **POWER}
    assert set(both(hv, name, **consent)) == {"restart"}
    assert int(domain(hv, name).find("memory").text) == 256 * 1024
    silent(hv, name, **consent)

    stopped = {**later, "ensure": "stopped", "stop_timeout": 1}
    refused = declare(hv, name, **stopped)
    assert refused["result"] is False
    assert "allow_power_off: true" in refused["comment"]
    assert both(hv, name, **stopped, allow_power_off=True) == {"state": {"old": "running", "new": "shut off"}}

    gone = {"ensure": "absent"}
    assert set(both(hv, name, **gone)) == {"guest"}
    assert hv.run(HOST, ["test", "-e", f"{FOLDER}/{name}_system.qcow2"], check=False).returncode == 0
    silent(hv, name, **gone)


# What a person might do with virsh edit, and what is repaired by it.
DRIFT = {
    "cpu": ("s/<vcpu[^>]*>2</<vcpu placement='static'>4</", {"cpu", "cpu maximum"}),
    "memory": ("s/<currentMemory.*/<currentMemory unit='MiB'>64<\\/currentMemory>/", {"mem"}),
    "kernel": ("s/console=ttyS0/console=ttyS1/", {"cmdline"}),
    "display": ("s/<listen type='socket'\\/>/<listen type='address' address='0.0.0.0'\\/>/", {"graphics"}),
    "bridge": ("s/bridge='hvtest0'/bridge='hvtest1'/", {"interface eth0 source"}),
    "cache": ("s/cache='writeback'/cache='unsafe'/", {"disk system cache"}),
    "disk": ("/<disk /,/<\\/disk>/d", {"disk system"}),
    "interface": ("/<interface /,/<\\/interface>/d", {"interface eth0"}),
}


@pytest.fixture(scope="module")
def drifting(hv):
    """A guest that does not run, and is as declared."""
    name = "gt-drift"
    declaration = {**GUEST, "ensure": "defined"}
    assert declare(hv, name, **declaration)["result"] is True
    return name, declaration


@pytest.mark.parametrize("what", DRIFT)
def test_an_edited_definition_is_repaired_and_nothing_else_in_it(hv, drifting, what):
    name, declaration = drifting
    script, expected = DRIFT[what]
    # What the guest has on its disk, so that an empty one in its place would be seen.
    disk = f"{FOLDER}/{name}_system.qcow2"
    hv.run(HOST, ["qemu-io", "-c", "write -P 0x5a 1M 3M", disk])
    before = domain(hv, name, "--inactive")
    edit = ["env", f"EDITOR=sed -i -e \"{script}\" -e 's/<on_crash>.*</<on_crash>restart</'", "virsh", "edit", name]
    hv.run(HOST, edit)
    done = declare(hv, name, **declaration)
    assert done["result"] is True, done["comment"]
    assert set(done["changes"]) == expected
    after = domain(hv, name, "--inactive")
    # Nobody has declared what happens after a crash.
    assert after.find("on_crash").text == "restart"
    for path in ("uuid", "vcpu", "currentMemory", "os/cmdline", "devices/interface/mac"):
        assert ET.tostring(after.find(path)).strip() == ET.tostring(before.find(path)).strip(), path
    assert len(after.findall("devices/disk")) == len(after.findall("devices/interface")) == 1
    assert after.find("devices/graphics/listen").get("type") == "socket"
    assert after.find("devices/disk/source").get("file") == before.find("devices/disk/source").get("file") == disk
    for path, key in (("target", "dev"), ("target", "bus"), ("driver", "type"), ("driver", "cache")):
        assert after.find(f"devices/disk/{path}").get(key) == before.find(f"devices/disk/{path}").get(key), key
    kept = hv.run(HOST, ["qemu-io", "-r", "-c", "read -P 0x5a 1M 3M", disk])
    assert "verification failed" not in kept.stdout + kept.stderr


def test_a_repaired_guest_is_left_alone(hv, drifting):
    name, declaration = drifting
    silent(hv, name, **declaration)


def test_autostart_that_somebody_took_away_comes_back(hv, drifting):
    name, declaration = drifting
    hv.run(HOST, ["virsh", "autostart", "--disable", name])
    assert both(hv, name, **declaration) == {"autostart": {"old": False, "new": True}}


def test_a_snapshot_is_not_torn(hv, drifting):
    name, declaration = drifting
    hv.run(HOST, ["virsh", "snapshot-create-as", name, "one", "--disk-only"])
    silent(hv, name, **declaration)
    assert domain(hv, name, "--inactive").find("devices/disk/source").get("file").endswith(".one")
    other = {**declaration, "disks": [{"name": "other", "source_file": f"{FOLDER}/{name}_system.qcow2"}]}
    refused = declare(hv, name, **other)
    assert (refused["result"], refused["changes"]) == (False, {})
    assert "may be a snapshot" in refused["comment"]
    hv.run(HOST, ["virsh", "snapshot-delete", name, "one", "--metadata"])


def test_a_guest_of_another_tool_is_adopted(hv):
    name = "gt-other"
    disk = f"{FOLDER}/{name}.qcow2"
    hv.run(HOST, ["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"])
    xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda'/></disk>
    <interface type='bridge'><mac address='52:54:00:ab:cd:ef'/><source bridge='hvtest0'/></interface>
    </devices></domain>"""
    hv.run(HOST, ["virsh", "define", "/dev/stdin"], stdin=xml)
    same = {
        "ensure": "defined", "cpu": 1, "mem": 128, "machine": "pc",
        "disks": [{"name": "system", "path": disk, "size": 16}], "interfaces": [{"name": "eth0", "source": "hvtest0"}],
    }  # fmt: skip
    silent(hv, name, **same)
    assert set(both(hv, name, **{**same, "mem": 160})) == {"mem", "mem maximum"}
    refused = declare(hv, name, **{**same, "machine": "q35"})
    assert (refused["result"], refused["changes"]) == (False, {})
    gone = {"ensure": "absent", "delete_disks": True}
    assert set(both(hv, name, **gone)) == {"guest", f"disk {disk}"}
    assert hv.run(HOST, ["test", "-e", disk], check=False).returncode == 1


def test_a_guest_that_was_migrated_away_is_left_alone(hv):
    name = "gt-moved"
    record = json.dumps({"to": "hv2", "uuid": "x", "at": "2026-01-01T00:00:00Z"})
    folder = "/var/lib/hypervisor-formula/migrated"
    hv.run(HOST, ["mkdir", "-p", folder])
    hv.run(HOST, ["tee", f"{folder}/{name}.json"], stdin=record)
    assert "migrated to hv2" in silent(hv, name, **GUEST)
    assert name not in hv.run(HOST, ["virsh", "list", "--all", "--name"]).stdout.split()
    hv.run(HOST, ["rm", f"{folder}/{name}.json"])


# The state file of Uyuni's description of its virtual machines, with the names of the modules changed; its
# pool is a folder here, since this kernel has no NFS, and its image comes from the master.
SEED = """
pool0:
  storage_pool.running:
    - name: gt-pool0
    - ptype: dir
    - target: /var/lib/gt-vms
    - autostart: True

net0:
  virtual_network.running:
    - name: gt-net0
    - bridge: gtnet0
    - forward: nat
    - ipv4_config:
        cidr: 192.168.44.0/24
        dhcp_ranges:
          - start: 192.168.44.10
            end: 192.168.44.25
    - autostart: True

srv01:
  guest.running:
    - name: gt-srv01
    - cpu: 1
    - mem: 128
    - disks:
      - name: system
        model: virtio
        format: qcow2
        image: salt://{image}
        pool: gt-pool0
        size: 64
    - interfaces:
      - name: eth0
        type: network
        source: gt-net0
        mac: 2A:C3:A7:A6:01:04
    - graphics:
        type: vnc
    - seed: False
    - require:
      - storage_pool: pool0
      - virtual_network: net0
"""


def test_the_state_file_of_a_seed(hv):
    controller = hv.hosts.controller
    image = "gt-images/system.qcow2"
    hv.hosts.unpack(controller, {"/srv/salt/gt_vm.sls": (0o644, SEED.format(image=image).encode())})
    hv.run(HOST, ["qemu-img", "create", "-q", "-f", "qcow2", "/tmp/gt.qcow2", "8M"])
    content = hv.run(HOST, ["base64", "/tmp/gt.qcow2"]).stdout
    hv.run(controller, ["sh", "-c", f"mkdir -p /srv/salt/gt-images && base64 -d >/srv/salt/{image}"], stdin=content)
    try:
        predicted = call(hv, "state.apply", "gt_vm", "test=True")
        assert {row["result"] for row in predicted.values()} == {None}, predicted
        assert hv.run(HOST, ["virsh", "pool-list", "--all", "--name"]).stdout.split().count("gt-pool0") == 0
        done = call(hv, "state.apply", "gt_vm")
        assert set(done) == {"pool0", "net0", "srv01"}
        assert all(row["result"] is True for row in done.values()), done
        assert {name: set(row["changes"]) for name, row in predicted.items()} == {
            name: set(row["changes"]) for name, row in done.items()
        }
        again = call(hv, "state.apply", "gt_vm")
        assert {name: (row["result"], row["changes"]) for name, row in again.items()} == dict.fromkeys(done, (True, {}))
        live = domain(hv, "gt-srv01")
        assert live.find("devices/interface/mac").get("address") == "2a:c3:a7:a6:01:04"
        assert live.find("devices/disk/source").get("file") == "/var/lib/gt-vms/gt-srv01_system.qcow2"
        chain = hv.run(HOST, ["qemu-img", "info", "-U", "--output=json", "/var/lib/gt-vms/gt-srv01_system.qcow2"])
        info = json.loads(chain.stdout)
        assert info["virtual-size"] == 64 * 2**20
        assert info["backing-filename"].startswith("/var/lib/gt-vms/system-")
        assert "gt-srv01_system.qcow2" in hv.run(HOST, ["virsh", "vol-list", "gt-pool0"]).stdout
        assert "192.168.44.1/24" in hv.run(HOST, ["ip", "-brief", "address", "show", "gtnet0"]).stdout
    finally:
        for argv in (
            ["destroy", "gt-srv01"], ["undefine", "gt-srv01"], ["net-destroy", "gt-net0"],
            ["net-undefine", "gt-net0"], ["pool-destroy", "gt-pool0"], ["pool-undefine", "gt-pool0"],
        ):  # fmt: skip
            hv.run(HOST, ["virsh", *argv], check=False)
        hv.run(HOST, ["rm", "-rf", "/var/lib/gt-vms", "/tmp/gt.qcow2"])
        hv.run(controller, ["rm", "-rf", "/srv/salt/gt_vm.sls", "/srv/salt/gt-images"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"disks": [{"name": "system"}]}, "gt-wrong:disks:system: size is needed"),
    "checksum": ({"disks": [{"name": "system", "image": "https://example.org/x.qcow2"}]}, "image_hash is needed"),
    "profile": ({"nic_profile": "nowhere"}, "there is no profile nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_changes_nothing_and_says_why(hv, case):
    declaration, words = WRONG[case]
    row = declare(hv, "gt-wrong", **declaration)
    assert (row["result"], row["changes"]) == (False, {})
    assert words in row["comment"]
    assert "gt-wrong" not in hv.run(HOST, ["virsh", "list", "--all", "--name"]).stdout



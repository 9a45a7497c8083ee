"""A guest on a logical volume whose memory is in huge pages: what needs a kernel of the host's own."""

import json

import pytest
from declared import HOST, call, domain, end, predicted_and_done

from lab import guest, salt

pytestmark = pytest.mark.long
NAME = "vv-db"
IMAGE, DISK = "/srv/vv-image.raw", "/srv/vv-disk.raw"
VOLUME = f"/dev/vv-fast/{NAME}_system"
SIZE_MIB, MEMORY_MIB = 16, 128
WORD = "on-a-volume"
# Stands in the image, behind what the guest overwrites.
MARK = "from-the-image"
PAGES = MEMORY_MIB // 2 + 8


def shell(lab, script):
    """Run a script of the test's own on the host."""
    return lab.run(HOST, ["sh", "-e", "-s"], stdin=script, timeout=300).stdout.strip()


@pytest.fixture(scope="module", name="site")
def prepared_host(mixed):
    """The host with an image and a second disk, which is a file; all of it is taken away in the end."""
    converged = mixed.run(HOST, ["test", "-e", "/etc/modules-load.d/hypervisor.conf"], check=False).returncode == 0
    mixed.run(HOST, ["salt-call", "saltutil.sync_all" if converged else "state.highstate"], check=False, timeout=900)
    mixed.push_guest()
    device = shell(
        mixed,
        f"truncate --size=8M {IMAGE}; printf {MARK} | dd of={IMAGE} bs=1M seek=1 conv=notrunc status=none\n"
        f"truncate --size=64M {DISK}; losetup --find --show {DISK}",
    )
    # Pages in one piece are rare once a host has run for a while.
    shell(mixed, "sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    yield mixed, device
    end(mixed, "vv-")
    for verb in ("pool-destroy", "pool-undefine"):
        mixed.run(HOST, ["virsh", verb, "vv-fast"], check=False)
    shell(mixed, f"set +e; vgremove --yes vv-fast; losetup --detach {device}; rm -f {IMAGE} {DISK}")
    salt.merge_pillar(mixed.hosts, salt.pillar_files(mixed.hosts))
    mixed.run(HOST, ["salt-call", "state.apply", "kvm.hugepages"], timeout=300)


def lay(lab, device, **declaration):
    """Write the pillar with pages, the pool and the guest; return the words that apply it."""
    own = {
        "kvm": {"hugepages": {"2M": PAGES}},
        "libvirt": {
            "pools": {"vv-fast": {"ptype": "logical", "source": {"devices": [device]}}},
            "guests": {NAME: declaration},
        },
    }
    text = salt.pillar_files(lab.hosts)["hv1.sls"]
    salt.merge_pillar(lab.hosts, {"hv1.sls": salt.merged_yaml(text, own)})
    return ["state.apply", "kvm.hugepages,libvirt.guests"]


def test_a_guest_lives_on_a_volume_and_in_huge_pages(site):
    lab, device = site
    spec = {
        "mem": {"current": MEMORY_MIB, "maximum": MEMORY_MIB, "hugepages": "2M"},
        "boot": {
            "kernel": f"{guest.FOLDER}/{guest.KERNEL}",
            "initrd": f"{guest.FOLDER}/{guest.INITRAMFS}",
            "cmdline": f"console=ttyS0 write={WORD}",
        },
        "disks": [{"name": "system", "pool": "vv-fast", "image": IMAGE, "size": SIZE_MIB}],
        "stop_timeout": 1,
        "allow_power_off": True,
    }
    words = lay(lab, device, **spec)
    changes = predicted_and_done(lab, *words)
    made = {"kvm_hugepages_file", "kvm_hugepages_2M", "libvirt_pool_vv-fast", f"libvirt_guest_{NAME}"}
    assert set(changes) == made
    assert set(changes[f"libvirt_guest_{NAME}"]) == {"disk system", "guest", "state"}
    printed = lab.wait_console(HOST, NAME, "guest second 1", timeout=600)
    assert f"guest disk of {SIZE_MIB * 2048} sectors" in printed

    # The volume is raw: it begins with what the guest wrote, and goes on as the image does.
    assert domain(lab, NAME).find("devices/disk/source").get("dev") == VOLUME
    assert shell(lab, f"head --lines=1 {VOLUME}") == f"guest wrote {WORD}"
    assert shell(lab, f"dd if={VOLUME} bs=1M skip=1 count=1 status=none | head --bytes={len(MARK)}") == MARK
    assert int(shell(lab, f"blockdev --getsize64 {VOLUME}")) == SIZE_MIB << 20
    # All of its memory, and that of no other process.
    held = shell(lab, f"grep HugetlbPages /proc/$(cat /run/libvirt/qemu/{NAME}.pid)/status").split()
    assert held[1:] == [str(MEMORY_MIB * 1024), "kB"]
    assert pages(lab)["Free"] == PAGES - MEMORY_MIB // 2

    assert unchanged(call(lab, *words))

    words = lay(lab, device, ensure="absent", delete_disks=True, stop_timeout=1, allow_power_off=True)
    changes = predicted_and_done(lab, *words)
    assert set(changes) == {f"libvirt_guest_{NAME}"}
    assert set(changes[f"libvirt_guest_{NAME}"]) == {"state", "guest", f"disk {VOLUME}"}
    assert shell(lab, "lvs --noheadings -o lv_name vv-fast") == ""
    assert pages(lab)["Free"] == PAGES
    assert unchanged(call(lab, *words))


def pages(lab):
    """Return the host's figures of its huge pages."""
    lines = [line.split() for line in shell(lab, "grep ^HugePages_ /proc/meminfo").splitlines()]
    return {line[0].removeprefix("HugePages_").rstrip(":"): int(line[1]) for line in lines}


def unchanged(rows):
    """Whether a run had nothing to do and no error; json shows all of it when it had."""
    wrong = {key: row for key, row in rows.items() if row["result"] is not True or row["changes"]}
    assert wrong == {}, json.dumps(wrong, indent=1)
    return True

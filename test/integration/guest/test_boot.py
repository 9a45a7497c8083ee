"""What guests boot from besides a kernel of the host: UEFI firmware and its disk, a CD, and the network.

The guest that counts is on all of them; it names on its console the medium that its kernel was started from.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from declared import FOLDER, HOST, both, call, declare, domain, end, predicted_and_done, silent
from support import counted_to, seconds

from lab import bootmedia, guest

pytestmark = pytest.mark.long
MEDIA = "/srv/bt-media"
TFTP = "/srv/bt-tftp"
NETWORK: dict[str, Any] = {
    "forward": "isolated",
    "bridge": "btnet0",
    "ipv4_config": {
        "cidr": "192.168.48.1/24",
        "dhcp_ranges": [{"start": "192.168.48.10", "end": "192.168.48.20"}],
        "tftp": TFTP,
        "bootp": {"file": "boot.ipxe"},
    },
}
# The program in the guest's card takes scripts of its own.
IPXE = f"""#!ipxe
kernel {guest.KERNEL} console=ttyS0 medium=network initrd={guest.INITRAMFS}
initrd {guest.INITRAMFS}
boot
"""
POWER = {"stop_timeout": 1, "allow_power_off": True}
SLS = ("state.apply", "libvirt.guests")


@pytest.fixture(scope="module")
def hv(lab):
    """The lab, with what guests boot from on its first hypervisor."""
    folder = bootmedia.build(lab.paths.logs / "bootmedia.log")
    lab.run(HOST, ["mkdir", "-p", MEDIA, TFTP])
    for path in folder.iterdir():
        put(lab, path, f"{MEDIA}/{path.name}")
    lab.run(HOST, ["sh", "-c", f"cp {FOLDER}/lab-guest-* {TFTP} && chmod 644 {TFTP}/*"])
    lab.hosts.unpack(HOST, {f"{TFTP}/boot.ipxe": (0o644, IPXE.encode())})
    lab.run(HOST, ["xorrisofs", "-quiet", "-volid", "OTHER", "-output", f"{MEDIA}/other.iso", TFTP])
    yield lab
    end(lab, "bt-")
    lab.run(HOST, ["rm", "-rf", MEDIA, TFTP])


def put(lab, path: Path, place):
    """Copy a file to the hypervisor."""
    lab.run(HOST, ["sh", "-c", f"cat >{place}"], stdin=path.read_bytes())


def started(lab, name, medium):
    """Wait until a guest counts, and return its console once its kernel has named the medium."""
    printed = lab.wait_console(HOST, name, "guest second 1", timeout=240)
    assert f"medium={medium}" in printed
    return printed


def test_uefi_firmware_starts_a_signed_system_from_a_disk(hv):
    name = "bt-uefi"
    spec = {
        "loader": "uefi",
        "mem": 768,
        "disks": [{"name": "system", "image": f"{MEDIA}/{bootmedia.UEFI_DISK}"}],
        **POWER,
    }
    assert set(both(hv, name, **spec)) == {"disk system", "guest", "state"}
    printed = started(hv, name, "uefi-disk")
    assert "efi: EFI v2" in printed
    # Debian's firmware has the keys of those who signed the boot loader.
    assert "Secure boot enabled" in printed
    silent(hv, name, **spec)
    refused = declare(hv, name, **{**spec, "loader": "bios"})
    assert (refused["result"], refused["changes"]) == (False, {})
    assert "the guest was made with uefi, not bios" in refused["comment"]

    nvram = domain(hv, name).findtext("os/nvram")
    assert hv.run(HOST, ["stat", "--format=%s", nvram]).stdout.strip() != "0"
    gone = {"ensure": "absent", "delete_disks": True, **POWER}
    disk = f"{FOLDER}/{name}_system.qcow2"
    assert set(both(hv, name, **gone)) == {"state", "guest", f"disk {disk}"}
    for path, code in ((nvram, 1), (disk, 1), (f"{MEDIA}/{bootmedia.UEFI_DISK}", 0)):
        assert hv.run(HOST, ["test", "-e", path], check=False).returncode == code, path
    silent(hv, name, **gone)


def test_a_cd_is_booted_exchanged_and_taken_out_at_once(hv):
    name = "bt-cd"
    drive = {"name": "install", "device": "cdrom", "image": f"{MEDIA}/{bootmedia.CD}"}
    spec = {"mem": 128, "boot_dev": ["cdrom"], "disks": [drive]}
    assert set(both(hv, name, **spec)) == {"guest", "state"}
    boot = guest_boot(started(hv, name, "cd"))
    silent(hv, name, **spec)

    # Another medium, none, and the first again.
    for image in (f"{MEDIA}/other.iso", None, f"{MEDIA}/{bootmedia.CD}"):
        other = {**spec, "disks": [{"name": "install", "device": "cdrom", **({"image": image} if image else {})}]}
        before = medium(hv, name)
        changes = both(hv, name, **other)
        assert changes == {"disk install source": {"old": before, "new": image}}
        assert medium(hv, name) == medium(hv, name, "--inactive") == image
        comment = silent(hv, name, **other)
        assert comment == f"The guest {name} is as declared (running)."
    printed = counted_to(hv, HOST, name, seconds(hv.console(HOST, name))[-1] + 1)
    assert guest_boot(printed) == boot
    assert printed.count("guest boot ") == 1

    gone = {"ensure": "absent", "delete_disks": True, **POWER}
    assert set(both(hv, name, **gone)) == {"state", "guest"}
    # What lies in a drive is never a guest's own.
    assert hv.run(HOST, ["test", "-e", f"{MEDIA}/{bootmedia.CD}"], check=False).returncode == 0


def guest_boot(printed):
    """Return the line by which a guest's boot can be told from another."""
    return next(line for line in printed.splitlines() if line.startswith("guest boot "))


def medium(lab, name, *options):
    """Return the path of what lies in a guest's first drive; None when it is empty."""
    source = domain(lab, name, *options).find("devices/disk[@device='cdrom']/source")
    return None if source is None else source.get("file")


def test_a_guest_boots_from_the_network(hv):
    name = "bt-pxe"
    spec = {
        "mem": 256,
        "boot_dev": ["network"],
        "interfaces": [{"name": "lan", "type": "network", "source": "bt-net"}],
        **POWER,
    }
    words = [*SLS, pillar(networks={"bt-net": NETWORK}, guests={name: spec})]
    changes = predicted_and_done(hv, *words)
    assert set(changes) == {"libvirt_network_bt-net", f"libvirt_guest_{name}"}
    started(hv, name, "network")
    assert unchanged(call(hv, *words))
    mac = domain(hv, name).find("devices/interface/mac").get("address")
    assert mac in hv.run(HOST, ["virsh", "net-dhcp-leases", "bt-net"]).stdout

    # Another file to boot needs a restart of the network, which waits for the guest.
    other = {**NETWORK, "ipv4_config": {**NETWORK["ipv4_config"], "bootp": {"file": "other.ipxe"}}}
    words = [*SLS, pillar(networks={"bt-net": other}, guests={name: spec})]
    changes = predicted_and_done(hv, *words)
    assert set(changes) == {"libvirt_network_bt-net"}
    live = hv.run(HOST, ["virsh", "net-dumpxml", "bt-net"]).stdout
    assert "other.ipxe" not in live

    gone = {"ensure": "absent", **POWER}
    words = [*SLS, pillar(networks={"bt-net": other}, guests={name: gone})]
    assert set(predicted_and_done(hv, *words)[f"libvirt_guest_{name}"]) == {"state", "guest"}
    words = ["state.apply", "libvirt.networks", pillar(networks={"bt-net": {"ensure": "absent"}})]
    assert set(predicted_and_done(hv, *words)) == {"libvirt_network_bt-net"}
    assert "bt-net" not in hv.run(HOST, ["virsh", "net-list", "--all", "--name"]).stdout.split()
    assert unchanged(call(hv, *words))


def pillar(**libvirt):
    """Return the argument that gives a run a pillar of its own."""
    return f"pillar={json.dumps({'libvirt': libvirt})}"


def unchanged(rows):
    """Whether a run had nothing to do and no error."""
    return all(row["result"] is True and not row["changes"] for row in rows.values())

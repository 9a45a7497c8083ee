"""Virtual machines without starting one: arguments, identities, disks' first sectors, names."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lab import virtual, vm, vmdisk, vmimage, vmspec, vmstack, vmxfs
from lab.proc import LabError
from lab.qmp import Qmp

SPEC = vmspec.MachineSpec("t", "hv1", Path("/images/disk.raw"), "10.213.9.11")


def values(argv, option):
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def machine(tmp_path, spec=SPEC):
    return vm.Machine(spec, tmp_path, tmp_path / "ssh_config")


# --- QEMU's arguments ---


@pytest.mark.parametrize(
    ("sizes", "containers", "said"),
    [
        ({"san": 1}, ["hv2"], "shared disks need virtual machines, but these are containers: hv2"),
        ({"root": 1}, [], "the shared disk root=1 must have"),
        ({"san-1": 1}, [], "the shared disk san-1=1 must have"),
        ({"a" * 21: 1}, [], f"the shared disk {'a' * 21}=1 must have"),
        ({"san": 0}, [], "the shared disk san=0 must have"),
    ],
)
def test_shared_disks_that_cannot_be_are_refused(sizes, containers, said):
    virtual.check_disks({"san": 1024, "sbd": 8}, [])
    virtual.check_disks({}, ["hv1", "hv2"])
    with pytest.raises(LabError, match=f"^{said}"):
        virtual.check_disks(sizes, containers)


def test_shared_disks_are_uncached_unlocked_and_found_by_serial():
    disks = (
        vmspec.Disk(Path("/x/sbd.raw"), "sbd", shared=True),
        vmspec.Disk(Path("/x/own.raw"), "own"),
    )
    argv = vmspec.qemu_argv(replace(SPEC, disks=disks), Path("/lab/hv1"), "tcg")
    drives, devices = values(argv, "-drive"), values(argv, "-device")
    shared = "file=/x/sbd.raw,if=none,id=disk0,format=raw,cache=none,file.locking=off"
    assert shared in drives
    assert "virtio-blk-pci,drive=disk0,serial=sbd,share-rw=on" in devices
    assert "file=/x/own.raw,if=none,id=disk1,format=raw" in drives
    assert "virtio-blk-pci,drive=disk1,serial=own" in devices


def test_synced_data_of_the_guest_survives_the_process():
    argv = vmspec.qemu_argv(SPEC, Path("/lab/hv1"), "tcg")
    assert "cache=writeback" in values(argv, "-drive")[0]
    assert "-no-reboot" not in argv


def test_cards_are_taps_with_addresses_that_stay_the_same():
    spec = replace(SPEC, nics=(vmspec.Nic(), vmspec.Nic("ring1", "52:54:00:00:00:07")))
    argv = vmspec.qemu_argv(spec, Path("/lab/hv1"), "tcg")
    assert values(argv, "-netdev") == [
        "tap,id=net0,ifname=hv1-0,script=no,downscript=no",
        "tap,id=net1,ifname=hv1-1,script=no,downscript=no",
    ]
    cards = [device for device in values(argv, "-device") if device.startswith("virtio-net")]
    assert f"id=nic0,mac={spec.mac(0)}" in cards[0]
    assert "id=nic1,mac=52:54:00:00:00:07" in cards[1]
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", spec.mac(0))
    assert spec.mac(0) != replace(spec, name="hv2").mac(0)
    assert spec.mac(0) != replace(spec, lab="other").mac(0)


def test_names_of_taps_fit_and_differ():
    long = [replace(SPEC, name=f"hypervisor-number-{number}") for number in range(20)]
    names = [spec.tap(0) for spec in long]
    assert len(set(names)) == len(names)
    assert all(len(name) <= vmspec.TAP_MAX for name in names)


@pytest.mark.parametrize(("accel", "words"), [("tcg", ("tcg,thread=multi", vmspec.EMULATED)), ("kvm", ("kvm", "host"))])
def test_accelerators(accel, words):
    argv = vmspec.qemu_argv(SPEC, Path("/lab/hv1"), accel)
    assert (values(argv, "-accel")[0], values(argv, "-cpu")[0]) == words


def test_a_watchdog_only_when_wanted():
    assert "i6300esb" not in vmspec.qemu_argv(SPEC, Path("/lab"), "tcg")
    assert "i6300esb" in vmspec.qemu_argv(replace(SPEC, watchdog=True), Path("/lab"), "tcg")


def test_commas_in_paths_do_not_become_options():
    argv = vmspec.qemu_argv(SPEC, Path("/lab,readonly=on/hv1"), "tcg")
    assert values(argv, "-drive")[0].startswith("file=/lab,,readonly=on/hv1/disk.qcow2,")
    assert values(argv, "-fw_cfg")[0].endswith("file=/lab,,readonly=on/hv1/seed.tar")


# --- identity ---


def test_a_seed_holds_the_identity_and_the_address():
    spec = replace(SPEC, gateway="10.213.9.1")
    data = vmspec.seed(spec, {"/etc/ssh/ssh_host_ed25519_key": (0o600, b"secret")})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
        key = members["etc/ssh/ssh_host_ed25519_key"]
        content = archive.extractfile("etc/network/interfaces.d/eth0")
        assert content is not None
        interface = content.read().decode()
    assert (key.mode, key.uid, key.gid) == (0o600, 0, 0)
    assert interface.splitlines() == [
        "auto eth0",
        "iface eth0 inet static",
        "    address 10.213.9.11/24",
        "    gateway 10.213.9.1",
    ]


def test_no_default_route_without_a_gateway():
    assert b"gateway" not in vmspec.seed(SPEC, {})


@pytest.mark.parametrize("stack", vmstack.STACKS)
@pytest.mark.parametrize("dhcp", [False, True])
def test_a_machine_starts_with_the_stack_that_is_wanted(stack, dhcp):
    spec = replace(SPEC, stack=stack, dhcp=dhcp, gateway="10.213.9.1")
    with tarfile.open(fileobj=io.BytesIO(vmspec.seed(spec, {}))) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        content = {name: file.read().decode() for name, file in files.items() if file is not None}
    marker = content.pop(vmstack.MARKER.lstrip("/"), "ifupdown\n")
    (text,) = content.values()
    assert marker == f"{stack}\n"
    assert ("10.213.9.11/24" in text, "10.213.9.1" in text.replace("10.213.9.11", "")) == (not dhcp, not dhcp)


def test_a_stack_that_is_not_there_is_refused():
    with pytest.raises(LabError, match="no network stack 'wicked'; allowed: ifupdown, networkd"):
        vmstack.files("wicked", "", 24, "")


# --- disk and image ---


def test_the_boot_sector_has_a_partition_table_that_sfdisk_reads(tmp_path):
    size = 64 << 20
    head = vmdisk.boot_sectors(b"\xaa" * 510 + b"\x55\xaa", b"core" * 128, size)
    assert len(head) == vmdisk.PARTITION_START
    assert head[:440] == b"\xaa" * 440
    assert head[512:516] == b"core"
    entry = head[446:462]
    assert (entry[0], entry[4]) == (0x80, 0x83)
    assert int.from_bytes(entry[8:12], "little") == 2048
    assert int.from_bytes(entry[12:16], "little") == size // 512 - 2048
    assert head[462:510] == bytes(48)
    assert head[510:512] == b"\x55\xaa"


def test_a_core_that_is_too_large_is_refused():
    with pytest.raises(LabError, match="does not fit"):
        vmdisk.boot_sectors(bytes(512), bytes(vmdisk.PARTITION_START), 64 << 20)


def test_the_first_grub_cfg_starts_the_newest_kernel(tmp_path):
    (tmp_path / "boot").mkdir()
    for name in ["vmlinuz-6.1.0-1-amd64", "initrd.img-6.1.0-1-amd64"]:
        (tmp_path / "boot" / name).touch()
    text = vmdisk.grub_cfg(tmp_path, "1234")
    assert "linux /boot/vmlinuz-6.1.0-1-amd64 root=UUID=1234 ro console=ttyS0" in text
    assert "initrd /boot/initrd.img-6.1.0-1-amd64" in text
    assert "@" not in text


def test_a_tree_without_initramfs_is_refused(tmp_path):
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1.0-1-amd64").touch()
    with pytest.raises(LabError, match="no kernel with an initramfs"):
        vmdisk.grub_cfg(tmp_path, "1234")


def test_an_image_is_named_by_what_is_in_it():
    recipe = vmimage.Recipe("bookworm", ("a", "b"))
    assert recipe.digest() == vmimage.Recipe("bookworm", ("b", "a", "a")).digest()
    others = [
        vmimage.Recipe("trixie", ("a", "b")),
        vmimage.Recipe("bookworm", ("a",)),
        vmimage.Recipe("bookworm", ("a", "b"), size_mib=1),
        vmimage.Recipe("bookworm", ("a", "b"), cloud=True),
    ]
    assert len({recipe.digest(), *(other.digest() for other in others)}) == 5
    assert re.fullmatch("[0-9a-f]{16}", recipe.digest())


def test_an_image_in_the_cache_is_taken_without_root(tmp_path):
    recipe = vmimage.Recipe("bookworm")
    disk = tmp_path / "vm-images" / recipe.digest() / "disk.raw"
    disk.parent.mkdir(parents=True)
    disk.touch()
    assert vmimage.build(recipe, cache=tmp_path) == vmimage.Image(disk, recipe.digest(), 0.0)


def test_a_guests_image_has_what_reads_its_data_and_nothing_of_a_host(tmp_path):
    recipe = vmimage.Recipe("bookworm", cloud=True)
    assert {"cloud-init", "linux-image-cloud-amd64", "openssh-server"} <= set(recipe.included())
    assert not {"linux-image-amd64", "network-manager", "nfs-kernel-server"} & set(recipe.included())
    disk = tmp_path / "vm-images" / recipe.digest() / "disk.qcow2"
    disk.parent.mkdir(parents=True)
    disk.touch()
    assert vmimage.build(recipe, cache=tmp_path).path == disk


def test_a_tree_with_a_mount_in_it_is_not_removed():
    with pytest.raises(LabError, match="/proc mounted in it"):
        vmimage.remove_tree(Path("/proc"))


# --- processes ---


@pytest.fixture
def sleeper():
    """Start processes that sleep; they are ended when the test is over."""
    started = []

    def start(*words):
        argv = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)", *words]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        started.append(process)
        # Popen returns a moment before the kernel shows the new command line.
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_id_in_use_by_another_is_not_taken_for_the_machine(tmp_path, sleeper):
    made, other = machine(tmp_path), sleeper()
    (tmp_path / "qemu.pid").write_text(f"{other.pid}\n")
    assert not made.is_running()
    (tmp_path / "qemu.json").write_text(json.dumps({"pid": other.pid, "started": "boot/1"}))
    assert not made.is_running()


def test_a_running_process_is_recognised_until_it_ends(tmp_path, sleeper):
    made, process = machine(tmp_path), sleeper()
    made._note(process.pid)
    assert made.pid() == process.pid
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert made.pid() is None


def test_a_machine_whose_start_was_interrupted_is_adopted(tmp_path, sleeper):
    made, pidfile = machine(tmp_path), tmp_path / "qemu.pid"
    process = sleeper("-pidfile", str(pidfile))
    pidfile.write_text(f"{process.pid}\n")
    assert made.pid() == process.pid
    assert (tmp_path / "qemu.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "started": ""}'])
def test_a_damaged_note_is_no_running_machine(tmp_path, content):
    (tmp_path / "qemu.json").write_text(content)
    assert not machine(tmp_path).is_running()


def test_a_path_too_long_for_a_socket_is_refused():
    with pytest.raises(LabError, match="too long"):
        vm.Machine(SPEC, Path("/" + "x" * 100), Path("/ssh_config"))


def test_a_disk_needs_a_serial(tmp_path):
    spec = replace(SPEC, disks=(vmspec.Disk(tmp_path / "d", "s" * 21),))
    with pytest.raises(LabError, match="1 to 20 characters"):
        machine(tmp_path, spec)


def test_a_missing_base_image_is_named(tmp_path):
    with pytest.raises(LabError, match=r"/images/disk\.raw is missing"):
        machine(tmp_path).create({})


def test_the_console_is_shown_without_control_sequences(tmp_path):
    text = "first\n[\x1b[0;32m  OK  \x1b[0m] Started \x1b[1mssh\x1b[0m\r\n\n"
    (tmp_path / "console.log").write_text(text)
    assert machine(tmp_path).console_tail() == "first\n[  OK  ] Started ssh"
    assert machine(tmp_path).console_tail(1) == "[  OK  ] Started ssh"


# --- QEMU's control socket ---


def serve(path, answers):
    """Answer as QEMU would: a greeting, then one line a command; returns what was asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    asked = []

    def answer():
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            stream.write('{"QMP": {}}\n')
            stream.flush()
            for lines in answers:
                asked.append(json.loads(stream.readline()))
                for line in lines:
                    stream.write(json.dumps(line) + "\n")
                stream.flush()
        listener.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return asked, thread


def test_events_between_command_and_answer_are_skipped(tmp_path):
    answers = [[{"return": {}}], [{"event": "RESUME"}, {"return": {"running": True}}]]
    asked, thread = serve(tmp_path / "q", answers)
    with Qmp(tmp_path / "q") as control:
        assert control.execute("query-status", {"a": 1}) == {"running": True}
    thread.join(5)
    assert asked[1] == {"execute": "query-status", "arguments": {"a": 1}}


def test_a_refused_command_says_why(tmp_path):
    answers = [[{"return": {}}], [{"error": {"class": "GenericError", "desc": "no such nic"}}]]
    _, thread = serve(tmp_path / "q", answers)
    with Qmp(tmp_path / "q") as control, pytest.raises(LabError, match="set_link: no such nic"):
        control.execute("set_link")
    thread.join(5)


def test_a_lost_connection_is_an_error(tmp_path):
    _, thread = serve(tmp_path / "q", [[{"return": {}}], []])
    with Qmp(tmp_path / "q") as control, pytest.raises(LabError, match="closed the connection"):
        control.execute("query-status")
    thread.join(5)


def test_nobody_at_the_socket_is_an_error(tmp_path):
    with pytest.raises(LabError, match="does not answer on"), Qmp(tmp_path / "missing"):
        pass


# --- XFS ---


def test_a_tree_is_listed_for_mkfs_xfs(tmp_path):
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc" / "shadow").touch()
    (tmp_path / "etc" / "shadow").chmod(0o640)
    (tmp_path / "su").touch()
    (tmp_path / "su").chmod(0o4755)
    (tmp_path / "write").touch()
    (tmp_path / "write").chmod(0o2755)
    (tmp_path / "sh").symlink_to("etc/dash")
    for name in ("two words", "$", ":"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    tmp_path.chmod(0o755)
    text, left_out = vmxfs.listing(tmp_path)
    own = f"{os.getuid()} {os.getgid()}"
    assert text.splitlines() == [
        "/",
        "0 0",
        "d--755 0 0",
        f" etc d--755 {own}",
        f"  shadow ---640 {own} /etc/shadow",
        " $",
        f" sh l--777 {own} etc/dash",
        f" su -u-755 {own} /su",
        f" write --g755 {own} /write",
        "$",
    ]
    assert left_out == ["/$", "/:", "/pipe", "/two words"]


def test_images_of_file_systems_differ_and_hold_what_they_need():
    ext4, xfs = (vmimage.Recipe("bookworm", file_system=name) for name in ("ext4", "xfs"))
    assert ext4.digest() != xfs.digest()
    assert set(xfs.included()) - set(ext4.included()) == {"xfsprogs"}


def test_a_frozen_machine_goes_on_instead_of_booting():
    argv = vmspec.qemu_argv(replace(SPEC, frozen=Path("/lab/a b/memory")), Path("/lab/hv1"), "tcg")
    assert values(argv, "-incoming") == ["exec:cat '/lab/a b/memory'"]
    assert "-incoming" not in vmspec.qemu_argv(SPEC, Path("/lab/hv1"), "tcg")

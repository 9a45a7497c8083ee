"""fstab and the kernel's table of mounts, as text."""

from __future__ import annotations

import pytest

from _utils import mount_table
from _utils.mount_table import Entry, Mount

TABLE = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
30 22 0:40 / /vm rw,relatime shared:20 - autofs systemd-1 rw,fd=50,pgrp=1,timeout=0
44 30 0:50 / /vm rw,noatime shared:25 - nfs4 10.0.0.1:/vm rw,vers=4.2,rsize=1048576,hard,proto=tcp
31 22 0:41 / /iso rw,relatime shared:21 - autofs systemd-1 rw
45 22 0:51 / /with\\040blank ro,nosuid - tmpfs tmpfs ro
"""
FSTAB = """\
# a comment
UUID=1 / ext4 errors=remount-ro 0 1

10.0.0.9:/old\t/vm\tnfs\tvers=3\t0 0
/dev/sdb1 /data xfs
"""


def test_what_is_mounted_and_what_waits():
    live, waiting = mount_table.at(TABLE, "/vm")
    assert live is not None
    assert (live.fstype, live.source, live.flags, waiting) == ("nfs4", "10.0.0.1:/vm", ("rw", "noatime"), True)
    assert mount_table.at(TABLE, "/iso") == (None, True)
    assert mount_table.at(TABLE, "/v") == (None, False)
    blank, _ = mount_table.at(TABLE, "/with blank")
    assert blank is not None


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/vm", True), ("/vm/images", True), ("/iso/x", True), ("/vms", False), ("/etc", False), ("/vm/../etc", False)],
)
def test_paths_on_other_hosts_are_told_by_their_names(path, expected):
    assert mount_table.remote(TABLE, path) is expected


def test_an_entry_takes_the_place_of_the_earlier_ones():
    wanted = Entry("10.0.0.1:/vm", "/vm", "nfs", ("vers=3", "nofail"), "0")
    once = mount_table.with_entry(FSTAB + "x:/y /vm nfs\n", "/vm", wanted)
    assert once == FSTAB.replace("10.0.0.9:/old\t/vm\tnfs\tvers=3\t0 0", wanted.line())
    assert mount_table.with_entry(once, "/vm", wanted) == once
    assert mount_table.with_entry(once, "/vm", None) == FSTAB.replace("10.0.0.9:/old\t/vm\tnfs\tvers=3\t0 0\n", "")


def test_an_equal_entry_keeps_its_blanks():
    same = Entry("10.0.0.9:/old", "/vm", "nfs", ("vers=3",), "0")
    assert mount_table.with_entry(FSTAB, "/vm", same) == FSTAB


def test_a_new_entry_comes_last_and_blanks_are_escaped():
    wanted = Entry("//h/my share", "/mnt/a b", "cifs", ("x",), "0")
    text = mount_table.with_entry("a /b c", "/mnt/a b", wanted)
    assert text == "a /b c\n//h/my\\040share /mnt/a\\040b cifs x 0 0\n"
    assert mount_table.entries(text)[1] == wanted


@pytest.mark.parametrize(
    ("device", "fstype", "options", "now", "expected"),
    [
        (
            *("h:/v", "nfs", ["auto", "vers=3", "noatime"], True),
            "vers=3,noatime,_netdev,nofail,x-systemd.automount,x-systemd.mount-timeout=30",
        ),
        ("h:/v", "nfs4", [], False, "noauto,_netdev,nofail,x-systemd.mount-timeout=30"),
        ("/dev/vg/a", "xfs", ["defaults"], True, "nofail,x-systemd.device-timeout=30"),
        ("UUID=1", "ext4", [], True, "nofail,x-systemd.device-timeout=30"),
        ("hugetlbfs", "hugetlbfs", ["pagesize=1G"], True, "pagesize=1G,nofail"),
    ],
)
def test_no_entry_holds_up_a_boot(device, fstype, options, now, expected):
    entry = mount_table.wanted_entry("/m", device, fstype, options, 30, now=now)
    assert ",".join(entry.options) == expected
    assert entry.checked == ("2" if fstype == "ext4" else "0")


@pytest.mark.parametrize(
    ("point", "unit"),
    [("/vm", "vm.mount"), ("/srv/a-b", "srv-a\\x2db.mount"), ("/.x/y.z", "\\x2ex-y.z.mount"), ("/", "-.mount")],
)
def test_units_are_named_as_systemd_does(point, unit):
    assert mount_table.unit(point, "mount") == unit


@pytest.mark.parametrize(
    ("device", "host"),
    [("10.0.0.1:/vm", "10.0.0.1"), ("[fd00::1]:/vm", "fd00::1"), ("nas:/a b", "nas"), ("/dev/vda", ""), ("//h/s", "")],
)
def test_the_server_of_a_device(device, host):
    assert mount_table.server(device) == host


@pytest.mark.parametrize(
    ("options", "port"), [([], 2049), (["port=2050"], 2050), (["udp"], None), (["proto=rdma"], None), (["tcp"], 2049)]
)
def test_the_port_that_must_answer(options, port):
    assert mount_table.port(options) == port


SHOWN = ("rw", "vers=4.2", "rsize=262144", "hard", "proto=tcp", "timeo=600")
NFS = Mount("/vm", "nfs4", "h:/v", ("rw", "relatime"), SHOWN)


@pytest.mark.parametrize(
    ("flags", "options", "words"),
    [
        (("rw", "relatime"), [], []),
        (("rw", "noatime"), [], ["relatime"]),
        (("rw", "relatime"), ["ro", "noatime"], ["ro", "noatime"]),
        (("ro", "nosuid"), ["rw"], ["rw", "suid"]),
        (("rw", "nosuid", "nodev", "noexec"), ["user"], []),
    ],
)
def test_flags_that_a_remount_changes(flags, options, words):
    assert mount_table.flags_to_change(NFS._replace(flags=flags), options) == words


@pytest.mark.parametrize(
    ("fstype", "options", "expected"),
    [
        ("nfs", ["hard", "tcp", "timeo=600", "intr", "bg", "async"], []),
        ("nfs", ["vers=4", "rsize=1048576"], []),
        ("nfs4", ["nolock"], []),
        ("nfs", ["vers=3"], ["vers=3 (is 4.2)"]),
        ("nfs", ["nfsvers=4.1"], ["vers=4.1 (is 4.2)"]),
        ("nfs", ["soft"], ["soft (is not)"]),
        ("nfs", ["rsize=32768"], ["rsize=32768 (is 262144)"]),
        ("nfs", ["udp", "timeo=14"], ["proto=udp (is tcp)", "timeo=14 (is 600)"]),
        ("xfs", [], ["xfs (is nfs4)"]),
    ],
)
def test_differences_that_need_a_new_mount(fstype, options, expected):
    entry = Entry("h:/v", "/vm", fstype, tuple(options), "0")
    assert mount_table.other_differences(NFS, entry, same_device=True) == expected


def test_another_device_and_another_page_size_need_a_new_mount():
    entry = Entry("h:/w", "/vm", "nfs", (), "0")
    assert mount_table.other_differences(NFS, entry, same_device=False) == ["h:/w (is h:/v)"]
    pages = Mount("/p", "hugetlbfs", "none", ("rw",), ("rw", "pagesize=1024M"))
    entry = Entry("hugetlbfs", "/p", "hugetlbfs", ("pagesize=1G",), "0")
    assert mount_table.other_differences(pages, entry, same_device=False) == []
    entry = entry._replace(options=("pagesize=2M",))
    assert mount_table.other_differences(pages, entry, same_device=False) == ["pagesize=2M (is 1024M)"]

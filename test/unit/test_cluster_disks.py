"""What is on a disk is seen before anything is written to it; reports of sbd and LVM are read as they are printed."""

from __future__ import annotations

import json
import os

import pytest
from salt.exceptions import CommandExecutionError

from _utils import cluster_disks

DUMP = """==Dumping header on disk /dev/disk/by-id/virtio-sbd
Header version     : 2.1
UUID               : 8b1f6c5e-3d2d-4b8b-9c0d-5b3c2b1a0f9e
Number of slots    : 255
Sector size        : 512
Timeout (watchdog) : 15
Timeout (allocate) : 2
Timeout (loop)     : 1
Timeout (msgwait)  : 30
==Header on disk /dev/disk/by-id/virtio-sbd is dumped
"""
SBD = "/dev/disk/by-id/virtio-sbd"
NO_DUMP = "==Dumping header on disk /dev/vdb\n==Header on disk /dev/vdb NOT dumped\nsbd failed; check the logs.\n"
_SPACE = (
    "info=ls ls_name=lvm_{name} vg_name={name} vg_uuid=8kX1Ra-VZsM-4tQ2-4lOP-mlKk-VvQm-Z3cQ7p vg_sysid=. "
    "vg_args=1.0.0:lab lm_type=dlm host_id=1 create_fail=0 create_done={done} thread_work=0 thread_stop={stop} "
    "thread_done=0 kill_vg={kill} drop_vg=0 sanlock_gl_enabled=0"
)
# Of lvm2 2.03.16; newer ones leave out vg_sysid and have more words at the end.
INFO = "\n".join([
    "info=structs unused_action_count=1 unused_client_count=2 unused_resource_count=0 unused_lock_count=0",
    "info=client pid=512 fd=8 pi=2 id=7 name=lvmlockctl",
    "info=ls ls_name=lvm_global vg_name= vg_uuid= vg_args= lm_type=dlm create_done=1 thread_stop=0 kill_vg=0",
    _SPACE.format(name="vmdata", done=1, stop=0, kill=0),
    "info=r name=5GtbW0-8pGw-0nSo-fUXz-8tKc-1yXW-mXk0xF type=lv mode=ex sh_count=0 version=0",
    "info=lk mode=ex version=0 flags=01 client_id=0",
    _SPACE.format(name="starting", done=0, stop=0, kill=0),
    _SPACE.format(name="stopped", done=1, stop=1, kill=0),
    _SPACE.format(name="lost", done=1, stop=0, kill=1),
    _SPACE.format(name="other", done=1, stop=0, kill=0),
])  # fmt: skip


def utils(**answers):
    return {
        "cluster_tools.run": lambda argv, **_: answers.get(argv[0], ""),
        "cluster_tools.installed": lambda program: program in answers,
    }


def disk(tmp_path, content=b""):
    path = tmp_path / "disk"
    path.write_bytes(content.ljust(4 << 20, b"\0"))
    return str(path)


def wipefs(*kinds):
    return json.dumps({"signatures": [{"device": "x", "offset": "0x1", "type": kind} for kind in kinds]})


def test_an_empty_disk_has_nothing(tmp_path):
    assert cluster_disks.found_on(utils(sbd=NO_DUMP), disk(tmp_path)) == ""


@pytest.mark.parametrize(
    ("answers", "content", "told"),
    [
        ({"wipefs": wipefs("ext4")}, b"", "the signature ext4"),
        ({"wipefs": wipefs("gpt", "PMBR", "gpt")}, b"", "the signatures PMBR, gpt"),
        ({"sbd": DUMP}, b"SBD_SBD_", "the messages of sbd"),
        ({"sbd": NO_DUMP}, b"\0" * 70000 + b"rows of a database", "data without a signature that is known"),
    ],
)
def test_what_is_on_a_disk_is_named(tmp_path, answers, content, told):
    assert cluster_disks.found_on(utils(**answers), disk(tmp_path, content)) == told


def test_a_host_without_sbd_looks_at_disks_all_the_same(tmp_path):
    def run(argv, **_):
        if argv[0] == "sbd":
            raise CommandExecutionError("sbd is not installed")
        return ""

    without = {"cluster_tools.run": run, "cluster_tools.installed": lambda program: program != "sbd"}
    assert cluster_disks.found_on(without, disk(tmp_path)) == ""
    assert cluster_disks.found_on(without, disk(tmp_path, b"SBD_SBD_")) == "data without a signature that is known"


@pytest.mark.parametrize("allow_format", [True, False])
@pytest.mark.parametrize("content", [b"", b"rows"])
@pytest.mark.parametrize("used", [True, False])
def test_a_disk_is_written_over_if_it_is_empty_or_may_be_lost_and_is_not_in_use(
    tmp_path, allow_format, content, used
):
    asked = utils() | {"disk_use.user_of": lambda device: "process 7 (qemu)" if used else ""}
    why = cluster_disks.kept(asked, disk(tmp_path, content), "vgcreate", allow_format)
    assert bool(why) is bool(content and (used or not allow_format))
    assert ("process 7 (qemu) uses it on this host" in why) is bool(content and used and allow_format)
    free = cluster_disks.kept(asked, disk(tmp_path, content), "vgcreate", allow_format, free=True)
    assert bool(free) is bool(used or (content and not allow_format))


def test_a_group_is_found_on_disks_that_are_not_on_lvms_list(tmp_path, monkeypatch):
    calls = []

    def run(argv, **_):
        calls.append(argv)
        return report() if argv[0] == "vgs" else json.dumps({"report": [{"lv": []}]})

    listed = tmp_path / "system.devices"
    monkeypatch.setattr(cluster_disks, "_DISKS_OF_LVM", str(listed))
    for every in ([], ["--devicesfile", ""]):
        calls.clear()
        cluster_disks.group({"cluster_tools.run": run}, "vmdata")
        cluster_disks.volumes({"cluster_tools.run": run}, "vmdata")
        assert [call[1 : 1 + len(every)] for call in calls] == [every, every]
        assert [call[1 + len(every)] for call in calls] == ["--readonly", "--readonly"]
        calls.clear()
        cluster_disks.seen_by_lvm({"cluster_tools.run": run}, ["/dev/x"])
        assert calls == ([["lvmdevices", "--yes", "--adddev", "/dev/x"]] if every else [])
        listed.touch()


def test_a_refusal_names_what_would_be_lost_and_the_key_that_allows_it():
    assert cluster_disks.refusal("/dev/x", "the signature ext4", "vgcreate") == (
        "Nothing has changed: /dev/x has the signature ext4, and vgcreate would destroy it. Name an empty disk, or "
        "allow it with cluster:storage:allow_format: true"
    )


def test_emptying_takes_the_first_mebibyte(tmp_path):
    path = disk(tmp_path, b"x" * (2 << 20))
    cluster_disks.emptied(utils(), path)
    with open(path, "rb") as file:  # noqa: PTH123 - as the code does it
        assert file.read(1 << 20).strip(b"\0") == b""
        assert file.read(3) == b"xxx"


def test_only_a_disk_is_one(tmp_path):
    paths = [disk(tmp_path), str(tmp_path), str(tmp_path / "none")]
    assert cluster_disks.missing(paths) == paths


@pytest.mark.parametrize(("text", "found"), [(DUMP, {"watchdog_timeout": 15, "msgwait": 30}), (NO_DUMP, {}), ("", {})])
def test_timeouts_of_sbd_are_read(text, found):
    assert cluster_disks.parse_header(text) == found


def test_the_disks_that_sbd_watches_are_in_the_titles_of_its_processes(tmp_path):
    titles = {
        "1": "/sbin/init\0", "20": "sbd: inquisitor\0", "21": f"sbd: watcher: {SBD} - slot: 0 - uuid: 8b1f6c5e-3d2d\0",
        "22": "sbd: watcher: /dev/vdc - slot: 12\0", "23": "sbd: watcher: Pacemaker\0", "24": "sbd: watcher: Cluster\0",
        "25": "vim\0sbd: watcher: /dev/vdx - slot: 1\0", "x26": "sbd: watcher: /dev/vdy - slot: 1\0",
    }  # fmt: skip
    for number, title in titles.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "cmdline").write_text(title)
    (tmp_path / "27").mkdir()
    assert cluster_disks.watched(tmp_path) == [SBD, "/dev/vdc"]


def test_a_title_that_another_user_has_given_counts_for_nothing(tmp_path, monkeypatch):
    (tmp_path / "21").mkdir()
    (tmp_path / "21" / "cmdline").write_text(f"sbd: watcher: {SBD} - slot: 0")
    assert cluster_disks.watched(tmp_path) == [SBD]
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert cluster_disks.watched(tmp_path) == []


def test_the_kernel_says_how_long_a_watchdog_waits(tmp_path):
    (tmp_path / "watchdog0").mkdir()
    (tmp_path / "watchdog0" / "timeout").write_text("15\n")
    for watchdog, seconds in (("/dev/watchdog", 15), ("/dev/watchdog0", 15), ("/dev/watchdog1", 0)):
        assert cluster_disks.watchdog_seconds(watchdog, tmp_path) == seconds


def report(*rows):
    keys = ("vg_name", "vg_lock_type", "vg_lock_args", "pv_name", "vg_free")
    return json.dumps({"report": [{"vg": [dict(zip(keys, row, strict=True)) for row in rows]}]})


def test_a_group_is_read_with_all_its_disks(tmp_path):
    (tmp_path / "one").touch()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    text = report(
        ("vmdata", "dlm", "1.0.0:lab", str(tmp_path / "link"), "1020.00"),
        ("vmdata", "dlm", "1.0.0:lab", "/dev/other", "1020.00"),
        ("root", "", "", "/dev/vda5", "0"),
    )
    found = cluster_disks.parse_group(text, "vmdata")
    assert found == cluster_disks.Group(
        "dlm", "1.0.0:lab", frozenset({str(tmp_path / "one"), "/dev/other"}), 1020
    )  # fmt: skip
    assert cluster_disks.parse_group(text, "none") is None


def test_volumes_are_those_of_the_group():
    rows = [("vmdata", "one", "64.00"), ("root", "one", "8.00")]
    lvs = [dict(zip(("vg_name", "lv_name", "lv_size"), row, strict=True)) for row in rows]
    text = json.dumps({"report": [{"lv": lvs}]})
    assert cluster_disks.volumes(utils(lvs=text), "vmdata") == {"one": 64}


def test_locks_that_this_host_has_are_read():
    assert cluster_disks.parse_lockspaces(INFO) == ["vmdata", "other"]
    assert cluster_disks.parse_lockspaces("") == []

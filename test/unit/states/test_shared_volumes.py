"""A shared volume group is made by one node on empty disks, adopted where it is the same, refused where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import shared_volumes
from _utils import cluster_disks

DISK = "/dev/disk/by-id/scsi-san"
GROUP = cluster_disks.Group("dlm", "1.0.0:lab", frozenset({DISK}), 1020)


class Node:
    """A node with one shared disk, and what LVM says and does there."""

    def __init__(self, monkeypatch) -> None:
        self.opts: dict[str, Any] = {"test": False, "id": "hv1"}
        self.found: Any = None
        # When vgcreate on another node is done, and whether this one gets the locks.
        self.whole_at, self.joins = 0.0, True
        self.content, self.used = "", False
        # What comes onto the disk while locks are waited for.
        self.late = ""
        self.locks: list[str] | None = []
        self.locks_at = 0.0
        self.volumes: dict[str, int] = {}
        self.there, self.installed = True, True
        self.calls: list[list[str]] = []
        self.emptied: list[str] = []
        self.seen: list[str] = []
        self.clock = 0.0
        utils = {
            "cluster_disks.emptied": lambda _, device: self.emptied.append(device),
            "cluster_disks.found_on": self.content_of,
            "cluster_disks.group": lambda _, name: self.seen_group(),
            "cluster_disks.kept": cluster_disks.kept,
            "cluster_disks.lockspaces": lambda _: self.locks if self.clock >= self.locks_at else None,
            "cluster_disks.missing": lambda devices: [] if self.there else list(devices),
            "cluster_disks.seen_by_lvm": lambda _, devices: self.seen.extend(devices),
            "cluster_disks.volumes": lambda _, group: self.volumes,
            "cluster_tools.installed": lambda program: self.installed,
            "disk_use.user_of": lambda device: "a guest" if self.used else "",
            "cluster_tools.run": self.run,
        }
        monkeypatch.setattr(cluster_disks, "found_on", self.content_of)
        monkeypatch.setattr(shared_volumes, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(shared_volumes, "__utils__", utils, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def content_of(self, _: Any, device: str) -> str:
        return self.content or (self.late if self.clock else "")

    def seen_group(self) -> Any:
        return self.found._replace(lock_type="", lock_args="") if self.clock < self.whole_at else self.found

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def run(self, argv: list[str], timeout: float = 0) -> str:
        self.calls.append(argv)
        if argv[0] == "vgcreate":
            self.found, self.locks = GROUP, ["vmdata"]
        elif argv[:2] == ["vgchange", "--lockstart"]:
            self.locks = [argv[2]] if self.joins else []
        elif argv[0] == "lvcreate":
            self.volumes[argv[-2]] = 64
        return ""

    def group(self, **over: Any) -> dict[str, Any]:
        self.opts["test"] = over.pop("test", False)
        return shared_volumes.group("vmdata", [DISK], cluster="lab", bootstrap="hv1", **over)

    def volume(self, **over: Any) -> dict[str, Any]:
        self.opts["test"] = over.pop("test", False)
        return shared_volumes.volume("one", "vmdata", 64)


@pytest.fixture(name="node")
def a_node(monkeypatch) -> Node:
    return Node(monkeypatch)


def test_a_group_is_made_once(node):
    predicted = node.group(test=True)
    assert (predicted["result"], node.calls) == (None, [])
    done = node.group()
    assert done["result"] is True
    assert node.calls == [["vgcreate", "--yes", "--shared", "vmdata", DISK]]
    assert done["changes"] == predicted["changes"] == {"group": {"old": None, "new": f"shared, on {DISK}"}}
    for test in (True, False):
        again = node.group(test=test)
        assert (again["result"], again["changes"], len(node.calls)) == (True, {}, 1)


def test_another_node_starts_its_locks_alone(node):
    node.opts["id"], node.found = "hv2", GROUP
    assert node.group(test=True)["changes"] == {"locks": {"old": None, "new": "started"}}
    done = node.group()
    assert (done["result"], done["changes"]) == (True, {"locks": {"old": None, "new": "started"}})
    assert node.calls == [["vgchange", "--lockstart", "vmdata"]]
    assert node.group()["changes"] == {}


def test_another_node_waits_until_it_is_made_whole(node):
    node.opts["id"], node.found, node.whole_at = "hv2", GROUP, 5.0
    assert node.group()["result"] is True
    assert node.calls == [["vgchange", "--lockstart", "vmdata"]]
    node.whole_at = float("inf")
    assert "vmdata is there, but it is not shared" in node.group(wait_seconds=30)["comment"]


@pytest.mark.parametrize(("manager", "logs"), [("dlm", "dlm_controld"), ("sanlock", "sanlock -t wdmd")])
def test_locks_that_do_not_start_are_no_success(node, manager, logs):
    node.found, node.joins = GROUP._replace(lock_type=manager), False
    ret = node.group(lock_manager=manager)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert f"its locks have not started on this host; see: journalctl -b -t lvmlockd -t {logs};" in ret["comment"]


def test_a_daemon_that_answers_somebody_else_is_asked_again(node):
    node.found = GROUP
    answers = iter([[], [], None, None, ["vmdata"]])
    shared_volumes.__utils__["cluster_disks.lockspaces"] = lambda _: next(answers)
    assert node.group()["changes"] == {"locks": {"old": None, "new": "started"}}


@pytest.mark.parametrize("test", [True, False])
def test_a_disk_that_has_anything_is_left_alone(node, test):
    node.content = "the signatures dos, ext4"
    ret = node.group(test=test)
    assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
    assert ret["comment"].startswith("cluster:storage:volume_groups:vmdata:devices: Nothing has changed:")
    assert "the signatures dos, ext4" in ret["comment"]
    assert "cluster:storage:allow_format: true" in ret["comment"]


def test_with_consent_it_is_emptied_first(node):
    node.content = "the signature ext4"
    assert node.group(allow_format=True)["result"] is True
    assert node.emptied == node.seen == [DISK]


@pytest.mark.parametrize("test", [True, False])
def test_no_consent_covers_a_disk_that_this_host_uses(node, test):
    node.content, node.used = "the signature LVM2_member", True
    ret = node.group(allow_format=True, test=test)
    assert (ret["result"], ret["changes"], node.calls, node.emptied) == (False, {}, [], [])
    told = f"devices: Nothing has changed: {DISK} has the signature LVM2_member, and a guest uses it"
    assert told in ret["comment"]
    assert "cluster:storage:allow_format does not allow vgcreate over that" in ret["comment"]


def test_an_empty_disk_that_a_guest_has_open_is_left_alone(node):
    node.used = True
    for test in (True, False):
        ret = node.group(test=test)
        assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
        assert f"{DISK} is empty, and a guest uses it on this host" in ret["comment"]


def test_a_disk_that_somebody_fills_while_locks_are_waited_for_is_left_alone(node):
    node.late, node.locks_at = "the signature xfs", 5.0
    ret = node.group(wait_seconds=30)
    assert (ret["result"], ret["changes"], node.calls, node.emptied) == (False, {}, [], [])
    assert f"{DISK} has the signature xfs, and vgcreate would destroy it" in ret["comment"]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (GROUP._replace(lock_type=""), "vmdata is there, but it is not shared; convert it by hand"),
        (GROUP._replace(lock_type="sanlock"), "vmdata is there, but its locks are of sanlock"),
        (GROUP._replace(lock_args="1.0.0:old"), "vmdata is there, but it belongs to the cluster old, not lab"),
        (GROUP._replace(disks=frozenset({DISK, "/dev/sdx"})), "vmdata is there, but it also is on /dev/sdx"),
        (GROUP._replace(disks=frozenset()), f"vmdata is there, but it is not on {DISK}; take them in by hand"),
    ],
)
@pytest.mark.parametrize("minion", ["hv1", "hv2"])
def test_a_group_that_is_another_one_is_refused(node, found, told, minion):
    node.found, node.opts["id"] = found, minion
    ret = node.group()
    assert (ret["result"], node.calls) == (False, [])
    assert told in ret["comment"]


def test_locks_are_waited_for_and_missed_by_name(node):
    node.found, node.locks_at = GROUP, 20.0
    assert node.group(wait_seconds=30)["result"] is True
    node.locks_at = float("inf")
    ret = node.group(wait_seconds=30)
    assert ret["result"] is False
    assert "lvmlockd does not answer on this host within 30 s" in ret["comment"]


def test_another_node_does_not_make_it_but_says_who_has_to(node):
    node.opts["id"] = "hv2"
    ret = node.group(wait_seconds=30)
    assert (ret["result"], node.calls) == (False, [])
    assert "hv1 has not made it within 30 s" in ret["comment"]


def test_a_disk_that_is_not_here_is_named(node):
    node.there = False
    assert f"volume_groups:vmdata:devices: not a disk of this host: {DISK}" in node.group()["comment"]


def test_before_lvm_is_installed_the_dry_run_says_what_comes(node):
    node.installed = False
    assert set(node.group(test=True)["changes"]) == {"group"}
    assert node.group()["result"] is False


def test_a_volume_is_made_once_and_left_inactive(node):
    predicted = node.volume(test=True)
    assert (predicted["result"], node.calls) == (None, [])
    done = node.volume()
    assert done["result"] is True
    assert done["changes"] == predicted["changes"] == {"vmdata/one": {"old": None, "new": "64 MiB"}}
    assert [call[0] for call in node.calls] == ["lvcreate", "lvchange"]
    assert node.calls[1] == ["lvchange", "--activate", "n", "vmdata/one"]
    assert node.volume()["changes"] == {}


def test_a_volume_that_was_made_and_not_let_go_is_told(node):
    def refuse(argv: list[str], timeout: float = 0) -> str:
        if argv[0] == "lvchange":
            raise CommandExecutionError("lvchange: Locking failed")
        return str(node.run(argv))

    shared_volumes.__utils__["cluster_tools.run"] = refuse
    ret = node.volume()
    assert (ret["result"], ret["changes"]) == (False, {"vmdata/one": {"old": None, "new": "64 MiB"}})
    assert ret["comment"] == "vmdata/one: lvchange: Locking failed."


def test_a_volume_of_another_size_keeps_it_and_says_so(node):
    node.volumes = {"one": 32}
    ret = node.volume()
    assert (ret["result"], ret["changes"], node.calls) == (True, {}, [])
    assert "It has 32 MiB, not 64" in ret["comment"]


def test_what_lvm_says_is_the_reason(node, monkeypatch):
    def refuse(argv: list[str], timeout: float = 0) -> str:
        raise CommandExecutionError("lvcreate: insufficient free space")

    shared_volumes.__utils__["cluster_tools.run"] = refuse
    ret = node.volume()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"] == "vmdata/one: lvcreate: insufficient free space."


def test_locks_of_sanlock_are_on_the_disks_and_belong_to_no_cluster(node):
    ret = node.group(lock_manager="sanlock")
    assert ret["result"] is True
    assert ["vgcreate", "--yes", "--lock-type", "sanlock", "vmdata", DISK] in node.calls
    node.found = GROUP._replace(lock_type="sanlock", lock_args="1.0.0:lvmlock")
    assert node.group(lock_manager="sanlock")["result"] is True
    node.found = GROUP
    assert "its locks are of dlm" in node.group(lock_manager="sanlock")["comment"]


def test_a_missing_daemon_of_sanlock_is_a_service_of_this_host(node):
    node.locks = None
    assert "See: systemctl status wdmd sanlock lvmlockd" in node.group(lock_manager="sanlock")["comment"]

"""Disks of sbd are made by one node, over nothing that anybody could miss, and waited for by the others."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import sbd
from _utils import cluster_derived, cluster_disks

DISK = "/dev/disk/by-id/scsi-sbd"
TIMES = {"watchdog_timeout": 15, "msgwait": 30}


class Node:
    """A node with one disk: what is on it, and what was done."""

    def __init__(self, monkeypatch) -> None:
        self.opts: dict[str, Any] = {"test": False, "id": "hv1"}
        self.header: dict[str, int] = {}
        self.content, self.used = "", False
        self.there, self.installed = True, True
        self.active: set[str] = set()
        self.watched: list[str] = []
        self.watches_at = self.runs_at = 0.0
        self.seconds = 15
        self.made: list[str] = []
        self.calls: list[list[str]] = []
        self.clock = 0.0
        self.comes_at = float("inf")
        utils = {
            "cluster_disks.kept": cluster_disks.kept,
            "cluster_disks.make_header": self.make,
            "cluster_disks.missing": lambda devices: [] if self.there else list(devices),
            # The module's own, until sbd sets another.
            "cluster_disks.watchdog_seconds": lambda watchdog: self.seconds if self.clock >= self.runs_at else 60,
            "cluster_disks.watched": lambda: self.watched if self.clock >= self.watches_at else [],
            "cluster_disks.sbd_header": lambda _, device: TIMES if self.clock >= self.comes_at else self.header,
            "cluster_tools.active": lambda unit: unit in self.active,
            "cluster_tools.starting": lambda unit: unit in self.active and self.clock < self.runs_at,
            "cluster_tools.installed": lambda program: self.installed,
            "disk_use.user_of": lambda device: "a guest" if self.used else "",
            "cluster_tools.run": self.run,
            "cluster_derived.announcement": cluster_derived.announcement,
        }
        monkeypatch.setattr(cluster_disks, "found_on", lambda _, device: self.content)
        monkeypatch.setattr(sbd, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(sbd, "__utils__", utils, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def run(self, argv: list[str]) -> str:
        self.calls.append(argv)
        return ""

    def make(self, _: Any, device: str, **times: int) -> None:
        self.made.append(device)
        self.header = times

    def disks(self, **over: Any) -> dict[str, Any]:
        self.opts["test"] = over.pop("test", False)
        return sbd.disks("x", [DISK], 15, 30, "hv1", **over)


@pytest.fixture(name="node")
def a_node(monkeypatch) -> Node:
    return Node(monkeypatch)


def test_an_empty_disk_is_made_once(node):
    predicted = node.disks(test=True)
    assert (predicted["result"], node.made) == (None, [])
    done = node.disks()
    assert (done["result"], node.made) == (True, [DISK])
    assert done["changes"] == predicted["changes"] == {DISK: {"old": None, "new": "watchdog_timeout 15, msgwait 30"}}
    for test in (True, False):
        again = node.disks(test=test)
        assert (again["result"], again["changes"], node.made) == (True, {}, [DISK])


@pytest.mark.parametrize("test", [True, False])
def test_a_disk_that_has_anything_is_left_alone_and_what_it_has_is_named(node, test):
    node.content = "the signature ext4"
    ret = node.disks(test=test)
    assert (ret["result"], ret["changes"], node.made) == (False, {}, [])
    assert ret["comment"] == (
        f"cluster:sbd:devices: Nothing has changed: {DISK} has the signature ext4, and sbd create would destroy it. "
        "Name an empty disk, or allow it with cluster:storage:allow_format: true."
    )


def test_with_consent_it_is_made_over(node):
    node.content = "the signature ext4"
    assert node.disks(allow_format=True)["result"] is True
    assert node.made == [DISK]


@pytest.mark.parametrize("test", [True, False])
def test_no_consent_covers_a_disk_that_this_host_uses(node, test):
    node.content, node.used = "the signature ext4", True
    ret = node.disks(allow_format=True, test=test)
    assert (ret["result"], ret["changes"], node.made) == (False, {}, [])
    assert f"devices: Nothing has changed: {DISK} has the signature ext4, and a guest uses it" in ret["comment"]
    assert "cluster:storage:allow_format does not allow sbd create over that" in ret["comment"]


@pytest.mark.parametrize("test", [True, False])
def test_an_empty_disk_that_a_guest_has_open_is_not_made_one_of_sbd(node, test):
    node.used = True
    ret = node.disks(allow_format=True, test=test)
    assert (ret["result"], ret["changes"], node.made) == (False, {}, [])
    assert f"devices: Nothing has changed: {DISK} is empty, and a guest uses it" in ret["comment"]


def test_disks_that_were_made_before_one_failed_are_told(node):
    def fail(_: Any, device: str, **times: int) -> None:
        if device != DISK:
            raise CommandExecutionError("sbd: Input/output error")
        node.make(_, device, **times)

    sbd.__utils__["cluster_disks.make_header"] = fail
    sbd.__utils__["cluster_disks.sbd_header"] = lambda _, device: node.header if device in node.made else {}
    ret = sbd.disks("x", [DISK, f"{DISK}2"], 15, 30, "hv1")
    assert (ret["result"], set(ret["changes"])) == (False, {DISK})
    assert "Input/output error" in ret["comment"]


@pytest.mark.parametrize(("runs", "allow_format"), [(True, True), (True, False), (False, False)])
def test_other_timeouts_wait_until_nobody_uses_the_disk(node, runs, allow_format):
    node.header = {"watchdog_timeout": 5, "msgwait": 10}
    node.active = {"sbd.service"} if runs else set()
    ret = node.disks(allow_format=allow_format)
    assert (ret["result"], node.made) == (False, [])
    assert f"{DISK} has watchdog_timeout 5, msgwait 10, not watchdog_timeout 15, msgwait 30" in ret["comment"]
    assert "with cluster:storage:allow_format: true" in ret["comment"]
    node.active = set()
    ret = node.disks(allow_format=True)
    assert ret["changes"][DISK]["old"] == "watchdog_timeout 5, msgwait 10"
    assert (ret["result"], node.made) == (True, [DISK])


def test_another_node_waits_and_says_for_whom(node):
    node.opts["id"] = "hv2"
    ret = node.disks(wait_seconds=30)
    assert (ret["result"], node.made, ret["changes"]) == (False, [], {})
    told = "hv1 has not made these disks of sbd with watchdog_timeout 15, msgwait 30 within 30 s"
    assert ret["comment"].startswith(told)
    node.clock, node.comes_at = 0.0, 12.0
    assert node.disks(wait_seconds=30)["result"] is True


def test_a_disk_that_is_not_here_is_named(node):
    node.there = False
    assert node.disks()["comment"] == f"cluster:sbd:devices: not a disk of this host: {DISK}."


def test_before_sbd_is_installed_the_dry_run_says_what_comes(node):
    node.installed = False
    assert node.disks(test=True)["changes"] == {DISK: "to be made one of sbd, if it is empty"}
    assert node.disks()["result"] is False
    node.opts["id"] = "hv2"
    assert node.disks(test=True)["result"] is True


def test_a_header_that_was_not_taken_is_a_failure(node, monkeypatch):
    monkeypatch.setattr(node, "make", lambda *_, **__: None)
    sbd.__utils__["cluster_disks.make_header"] = lambda *_, **__: None
    ret = node.disks()
    assert ret["result"] is False
    assert "does not say after sbd create what was written to it" in ret["comment"]


def test_sbd_that_does_not_run_is_a_failure_with_what_to_do(node):
    node.opts["test"] = False
    ret = sbd.working("x", [DISK])
    assert ret["result"] is False
    assert "Where it is new, stop the cluster on all nodes" in ret["comment"]
    assert "systemctl stop pacemaker corosync" in ret["comment"]


def test_a_node_says_by_what_it_is_fenced(node):
    node.opts["test"] = True
    assert (sbd.announced("x", 5)["result"], node.calls) == (True, [])
    node.opts["test"] = False
    ret = sbd.announced("x", 5)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert node.calls == [["attrd_updater", "-n", "hypervisor-sbd", "-U", "watchdog-5s"]]
    assert sbd.announced("x", 5, [DISK, f"{DISK}2"])["result"] is True
    assert node.calls[1:] == [["attrd_updater", "-n", "hypervisor-sbd", "-U", f"disks-{DISK},{DISK}2"]]


@pytest.mark.parametrize("state", [sbd.working, sbd.unchanged])
@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(
    ("watched", "told"),
    [
        ([DISK], ""),
        ([], f"sbd runs, but it does not watch {DISK}."),
        (["/dev/disk/by-id/old"], f"sbd runs, but it does not watch {DISK} and it watches /dev/disk/by-id/old."),
        ([DISK, "/dev/disk/by-id/old"], "sbd runs, but it watches /dev/disk/by-id/old."),
    ],
)
def test_what_sbd_was_started_with_decides_and_not_its_file(node, state, test, watched, told):
    node.opts["test"], node.active, node.watched = test, {"sbd.service"}, watched
    node.header = TIMES
    ret = state("x", [DISK])
    assert (ret["result"], ret["changes"]) == (not told, {})
    told = told and f"cluster:sbd:devices: {told} It takes this up when it starts: stop the cluster on all nodes"
    assert ret["comment"].startswith(told or "sbd runs")


@pytest.mark.parametrize("test", [True, False])
def test_a_new_disk_without_anything_is_refused_before_it_is_made(node, test):
    node.opts["test"], node.active, node.watched = test, {"sbd.service"}, ["/dev/disk/by-id/old"]
    ret = sbd.unchanged("x", [DISK])
    assert (ret["result"], ret["changes"], node.made) == (False, {}, [])
    told = f"cluster:sbd:devices: sbd runs, but it does not watch {DISK} and it watches /dev/disk/by-id/old. It takes"
    assert ret["comment"].startswith(told)
    node.watched = [DISK]
    ret = sbd.unchanged("x", [DISK, "/dev/disk/by-id/more"])
    assert (ret["result"], node.made) == (False, [])
    assert "cannot read: /dev/disk/by-id/more. If that is new to it, stop the cluster on all nodes" in ret["comment"]


@pytest.mark.parametrize("test", [True, False])
def test_sbd_that_does_not_run_takes_up_any_disk(node, test):
    node.opts["test"] = test
    ret = sbd.unchanged("x", [DISK])
    assert (ret["result"], ret["changes"]) == (True, {})


def test_a_disk_that_is_gone_is_no_reason_to_stop_the_cluster(node):
    node.active = {"sbd.service"}
    told = f"sbd runs, but cannot read: {DISK}. If that is new to it, stop the cluster on all nodes"
    for state in (sbd.working, sbd.unchanged):
        assert state("x", [DISK])["comment"].startswith(told)
    # While its process watches, it reads.
    node.watched = [DISK]
    assert sbd.working("x", [DISK])["result"] is True


def test_sbd_has_a_moment_to_look_at_its_disks(node):
    node.active, node.watched, node.watches_at = {"sbd.service"}, [DISK], 5.0
    assert sbd.working("x", [DISK])["result"] is True
    node.clock = 0.0
    assert sbd.unchanged("x", [DISK])["result"] is True
    node.clock, node.watches_at, node.header = 0.0, 100.0, TIMES
    assert sbd.working("x", [DISK])["result"] is False
    assert node.clock <= 30


@pytest.mark.parametrize("test", [True, False])
def test_an_sbd_that_is_starting_is_waited_for(node, test):
    node.opts["test"] = test
    for state in (sbd.working, sbd.unchanged):
        node.active, node.runs_at, node.clock = {"sbd.service", "corosync.service"}, 54.0, 0.0
        assert state("x", [], watchdog_timeout=15)["result"] is True
        assert 54 <= node.clock < 60
    node.runs_at = 1e9
    sbd.working("x", [], watchdog_timeout=15)
    assert node.clock < 2 * 3690


@pytest.mark.parametrize(
    ("seconds", "devices", "good"), [(15, [], True), (0, [], True), (20, [], True), (21, [], False), (60, [DISK], True)]
)
def test_a_watchdog_that_is_slower_than_the_others_wait_is_a_failure(node, seconds, devices, good):
    node.active, node.watched, node.seconds = {"sbd.service"}, devices, seconds
    for state in (sbd.working, sbd.unchanged):
        ret = state("x", devices, watchdog_timeout=10)
        assert ret["result"] is good
        assert good or ret["comment"].startswith("cluster:sbd:watchdog_timeout: sbd runs with 21 s, not 10 s. It takes")


def test_a_dry_run_of_a_cluster_that_does_not_run_yet_is_no_failure(node):
    node.opts["test"] = True
    assert sbd.working("x", [DISK])["result"] is True
    node.active = {"corosync.service"}
    assert sbd.working("x", [DISK])["result"] is False

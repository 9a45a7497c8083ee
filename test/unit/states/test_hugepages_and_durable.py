"""Huge pages of the running kernel, and the flush at the end of a run."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from _states import durable, hugepages
from _utils import mount_table


class Kernel:
    """The kernel's file for 2 MiB pages; it gives at most ``limit`` pages."""

    def __init__(self, monkeypatch, folder: Path, pages: int, limit: int) -> None:
        self.file = folder / "hugepages-2048kB" / "nr_hugepages"
        self.file.parent.mkdir()
        self.file.write_text(f"{pages}\n")
        self.opts = {"test": False}
        self.nodes = folder / "nodes"
        monkeypatch.setattr(hugepages, "_POOLS", folder)
        monkeypatch.setattr(hugepages, "_NODES", self.nodes)
        monkeypatch.setattr(hugepages, "_COMPACT", folder / "compact_memory")
        monkeypatch.setattr(hugepages, "__opts__", self.opts, raising=False)
        plain = Path.write_text

        def write(path: Path, text: str, **kwargs: Any) -> int:
            return plain(path, str(min(int(text), limit)), **kwargs)

        monkeypatch.setattr(Path, "write_text", write)

    def pages(self) -> int:
        return int(self.file.read_text())

    def node(self, number: int, pages: int) -> Path:
        """Give the host a NUMA node with pages of its own."""
        file = self.nodes / f"node{number}" / "hugepages" / "hugepages-2048kB" / "nr_hugepages"
        file.parent.mkdir(parents=True)
        file.write_text(f"{pages}\n")
        return file


def test_pages_are_set_and_then_left_alone(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 0, 999)
    ret = hugepages.present("2M", 16)
    assert (ret["result"], ret["changes"]) == (True, {"pages": {"old": 0, "new": 16}})
    assert kernel.pages() == 16
    assert hugepages.present("2M", 16)["changes"] == {}


def test_a_shortfall_fails_with_the_figures(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 10, 300)
    ret = hugepages.present("2M", 512)
    assert ret["result"] is False
    assert ret["changes"] == {"pages": {"old": 10, "new": 300}}
    assert "512 huge pages of 2M" in ret["comment"]
    assert "gave 300: 424 MiB" in ret["comment"]
    assert kernel.pages() == 300


def test_dry_run_predicts_and_touches_nothing(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 4, 999)
    kernel.opts["test"] = True
    ret = hugepages.present("2M", 0)
    assert (ret["result"], ret["changes"]) == (None, {"pages": {"old": 4, "new": 0}})
    assert kernel.pages() == 4


def test_a_shortfall_of_the_total_shows_the_nodes(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 10, 300)
    kernel.node(0, 200)
    kernel.node(1, 100)
    ret = hugepages.present("2M", 512)
    assert "512 huge pages of 2M were asked for and the kernel gave 300 (node0: 200, node1: 100)" in ret["comment"]


def test_pages_of_each_node(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 0, 999)
    nodes = [kernel.node(0, 8), kernel.node(1, 0), kernel.node(10, 4)]
    wanted = {"node0": 16, "node1": 32}
    kernel.opts["test"] = True
    foreseen = hugepages.present("2M", nodes=wanted)
    assert [int(node.read_text()) for node in nodes] == [8, 0, 4]
    kernel.opts["test"] = False
    ret = hugepages.present("2M", nodes=wanted)
    assert (foreseen["result"], ret["result"]) == (None, True)
    changed = {"node0": {"old": 8, "new": 16}, "node1": {"old": 0, "new": 32}, "node10": {"old": 4, "new": 0}}
    assert foreseen["changes"] == ret["changes"] == {"pages": changed}
    assert [int(node.read_text()) for node in nodes] == [16, 32, 0]
    again = hugepages.present("2M", nodes=wanted)
    assert (again["result"], again["changes"]) == (True, {})


def test_a_shortfall_of_a_node_fails_although_the_total_is_right(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 0, 20)
    kernel.node(0, 0)
    kernel.node(1, 0)
    ret = hugepages.present("2M", nodes={"node0": 64, "node1": 10})
    assert ret["result"] is False
    assert "asked for node0: 64, node1: 10; given node0: 20, node1: 10): 88 MiB" in ret["comment"]


def test_memory_is_compacted_before_a_shortfall_is_reported(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, 0, 5)
    compact = tmp_path / "compact_memory"
    compact.touch()
    hugepages.present("2M", 8)
    assert compact.read_text() == "1"
    assert kernel.pages() == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either count"),
        ({"count": 1, "nodes": {"node0": 1}}, "either count"),
        ({"count": -1}, "not a number of pages"),
        ({"count": "8"}, "not a number of pages"),
        ({"nodes": {"node0": True}}, "not a number of pages"),
        ({"nodes": {"0": 1}}, "such as node0"),
        ({"nodes": {"node7": 1}}, "this host has no node7; it has node0, node1"),
    ],
)
def test_wrong_arguments_change_nothing(monkeypatch, tmp_path, arguments, words):
    kernel = Kernel(monkeypatch, tmp_path, 3, 9)
    kernel.node(0, 3)
    kernel.node(1, 0)
    ret = hugepages.present("2M", **arguments)
    assert (ret["result"], ret["changes"], kernel.pages()) == (False, {}, 3)
    assert words in ret["comment"]


@pytest.mark.parametrize(
    ("size", "words"), [("3M", "not a page size"), ("1G", "no huge pages of 1G")]
)
def test_a_size_that_there_is_not(monkeypatch, tmp_path, size, words):
    Kernel(monkeypatch, tmp_path, 0, 9)
    ret = hugepages.present(size, 1)
    assert ret["result"] is False
    assert words in ret["comment"]


# ---- durable ----


def result(number: int, *, changed: bool) -> dict[str, Any]:
    return {"__run_num__": number, "result": True, "changes": {"x": 1} if changed else {}}


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({}, False),
        ({"file_|-a": result(0, changed=False)}, False),
        ({"file_|-a": result(0, changed=True)}, True),
        ({"file_|-a": result(0, changed=True), "durable_|-b": result(1, changed=False)}, False),
        ({"durable_|-b": result(1, changed=False), "file_|-a": result(2, changed=True)}, True),
    ],
)
def test_only_what_changed_since_the_last_flush_counts(running, expected):
    assert durable.pending(running) is expected


def test_one_path_for_each_file_system(tmp_path):
    (tmp_path / "a").mkdir()
    paths = [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "missing"), "/proc"]
    assert durable.one_per_file_system(paths) == [str(tmp_path), "/proc"]


@pytest.fixture(name="calls")
def recorded_calls(monkeypatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> dict[str, Any]:
        calls.append(argv)
        return {"retcode": 0, "stdout": "", "stderr": ""}

    monkeypatch.setattr(durable, "__salt__", {"cmd.run_all": run}, raising=False)
    monkeypatch.setattr(durable, "__opts__", {"test": False}, raising=False)
    utils = {"mount_table.remote": mount_table.remote}
    monkeypatch.setattr(durable, "__utils__", utils, raising=False)
    running = {"file_|-a": result(0, changed=True)}
    monkeypatch.setattr(durable, "__running__", running, raising=False)
    return calls


def test_what_another_host_serves_is_left_alone(calls, monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text("22 1 254:1 / / rw - ext4 /dev/vda1 rw\n44 30 0:50 / /vm rw - nfs4 10.0.0.1:/vm rw,vers=4.2\n")
    monkeypatch.setattr(durable, "_TABLE", table)
    durable.synced("x", ["/vm/images", str(tmp_path), "/vm"])
    assert calls == [["sync", "-f", str(tmp_path)]]


def test_a_change_is_flushed_and_is_no_change_itself(calls, tmp_path):
    ret = durable.synced("x", [str(tmp_path)])
    assert (ret["result"], ret["changes"]) == (True, {})
    assert calls == [["sync", "-f", str(tmp_path)]]


def test_a_dry_run_and_a_silent_run_flush_nothing(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(durable, "__opts__", {"test": True})
    assert durable.synced("x", [str(tmp_path)])["changes"] == {}
    monkeypatch.setattr(durable, "__running__", {"file_|-a": result(0, changed=False)})
    monkeypatch.setattr(durable, "__opts__", {"test": False})
    assert durable.synced("x", [str(tmp_path)])["result"] is True
    assert calls == []


def test_a_failed_flush_fails(calls, monkeypatch, tmp_path):
    broken = {"retcode": 1, "stdout": "", "stderr": "I/O error"}
    monkeypatch.setattr(durable, "__salt__", {"cmd.run_all": lambda *_, **__: broken})
    ret = durable.synced("x", [str(tmp_path)])
    assert ret["result"] is False
    assert "I/O error" in ret["comment"]
    assert calls == []


# ---- what the boot loader reads ----

MOUNTS = """\
22 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:5 / /proc rw shared:2 - proc proc rw
24 22 252:2 / /boot rw shared:3 master:4 - xfs /dev/vda2 rw
"""


def test_a_file_system_is_found_by_its_device():
    assert durable.file_system(os.makedev(252, 1), MOUNTS) == "ext4"
    assert durable.file_system(os.makedev(252, 2), MOUNTS) == "xfs"
    assert durable.file_system(os.makedev(8, 1), MOUNTS) == ""


@pytest.fixture(name="boot")
def boot_folder(calls, monkeypatch, tmp_path) -> list[Any]:
    """A /boot whose file system can be frozen; the calls in their order."""
    order: list[Any] = calls
    monkeypatch.setattr(durable, "_BOOT", str(tmp_path))
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 {os.major(device)}:{os.minor(device)} / / rw - xfs /dev/x rw\n")
    monkeypatch.setattr(durable, "_TABLE", mounts)
    running = {"kernel_cmdline_|-a": result(0, changed=True)}
    monkeypatch.setattr(durable, "__running__", running, raising=False)
    monkeypatch.setattr(fcntl, "ioctl", lambda _file, request, _value: order.append(hex(request)))
    return order


def test_a_changed_boot_menu_is_put_in_its_place_after_the_flush(boot, tmp_path):
    ret = durable.synced("x", [str(tmp_path)])
    assert boot == [["sync", "-f", str(tmp_path)], "0xc0045877", "0xc0045878"]
    assert "boot loader can read" in ret["comment"]
    assert ret["changes"] == {}


def test_an_interrupted_freeze_is_thawed(boot, monkeypatch, tmp_path):
    order = []

    def interrupted(_file, request, _value):
        order.append(hex(request))
        if len(order) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "ioctl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        durable.synced("x", [str(tmp_path)])
    assert order == ["0xc0045877", "0xc0045878"]


def test_nothing_is_frozen_for_other_changes_elsewhere_or_without_a_journal(boot, monkeypatch, tmp_path):
    durable.synced("x", ["/etc"])
    monkeypatch.setattr(durable, "__running__", {"file_|-a": result(0, changed=True)})
    durable.synced("x", [str(tmp_path)])
    monkeypatch.setattr(durable, "__running__", {"pkg_|-a": result(0, changed=True)})
    durable._TABLE.write_text("")
    durable.synced("x", [str(tmp_path)])
    assert all(call[0] == "sync" for call in boot)


@pytest.mark.parametrize(
    ("code", "good"),
    [(errno.EBUSY, True), (errno.EOPNOTSUPP, True), (errno.EPERM, True), (errno.EIO, False)],
)
def test_what_cannot_be_frozen_is_left_alone_and_never_thawed(boot, monkeypatch, tmp_path, code, good):
    asked = []

    def refuse(_file, request, _value):
        asked.append(request)
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    ret = durable.synced("x", [str(tmp_path)])
    assert ret["result"] is good
    assert asked == [0xC0045877]
    assert boot

"""Huge pages of the running kernel, and the flush at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _states import durable, hugepages


class Kernel:
    """The kernel's file for 2 MiB pages; it gives at most ``limit`` pages."""

    def __init__(self, monkeypatch, folder: Path, pages: int, limit: int) -> None:
        self.file = folder / "hugepages-2048kB" / "nr_hugepages"
        self.file.parent.mkdir()
        self.file.write_text(f"{pages}\n")
        self.opts = {"test": False}
        monkeypatch.setattr(hugepages, "_POOLS", folder)
        monkeypatch.setattr(hugepages, "__opts__", self.opts, raising=False)
        plain = Path.write_text

        def write(path: Path, text: str, **kwargs: Any) -> int:
            return plain(path, str(min(int(text), limit)), **kwargs)

        monkeypatch.setattr(Path, "write_text", write)

    def pages(self) -> int:
        return int(self.file.read_text())


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
    running = {"file_|-a": result(0, changed=True)}
    monkeypatch.setattr(durable, "__running__", running, raising=False)
    return calls


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

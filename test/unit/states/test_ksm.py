"""KSM: figures first, then whether it runs; unmerging only by name; what is not named stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _states import ksm


class Kernel:
    """A /sys/kernel/mm/ksm."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder = folder / "ksm"
        self.folder.mkdir()
        self.opts = {"test": False}
        self.tuner = folder / "ksmtune.pid"
        figures = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1, "use_zero_pages": 0}
        for key, value in figures.items():
            (self.folder / key).write_text(f"{value}\n")
        monkeypatch.setattr(ksm, "_KSM", self.folder)
        monkeypatch.setattr(ksm, "_TUNER", self.tuner)
        monkeypatch.setattr(ksm, "__opts__", self.opts, raising=False)

    def get(self, key: str) -> str:
        return (self.folder / key).read_text().strip()


@pytest.fixture(name="kernel")
def small_kernel(monkeypatch, tmp_path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


def test_figures_and_run_are_set_and_then_left_alone(kernel):
    ret = ksm.configured("x", True, tunables={"pages_to_scan": 1000, "sleep_millisecs": 20})
    assert ret["result"] is True
    assert ret["changes"] == {"pages_to_scan": {"old": "100", "new": "1000"}, "run": {"old": "0", "new": "1"}}
    assert list(ret["changes"])[-1] == "run"
    assert (kernel.get("run"), kernel.get("pages_to_scan")) == ("1", "1000")
    assert ksm.configured("x", True, tunables={"pages_to_scan": 1000, "sleep_millisecs": 20})["changes"] == {}


def test_a_dry_run_predicts_the_same_and_sets_nothing(kernel):
    kernel.opts["test"] = True
    ret = ksm.configured("x", True, tunables={"merge_across_nodes": False})
    assert ret["result"] is None
    assert ret["changes"] == {"merge_across_nodes": {"old": "1", "new": "0"}, "run": {"old": "0", "new": "1"}}
    assert (kernel.get("run"), kernel.get("merge_across_nodes")) == ("0", "1")


@pytest.mark.parametrize(
    ("before", "unmerge", "after"),
    [("1", False, "0"), ("1", True, "2"), ("0", True, "2"), ("2", False, "2"), ("2", True, "2"), ("0", False, "0")],
)
def test_stopping_unmerges_only_when_it_is_asked_for(kernel, before, unmerge, after):
    (kernel.folder / "run").write_text(before)
    ret = ksm.configured("x", False, unmerge)
    assert ret["result"] is True
    assert bool(ret["changes"]) is (before != after)
    assert kernel.get("run") == after


def test_figures_alone_leave_running_alone(kernel):
    (kernel.folder / "run").write_text("1")
    ret = ksm.configured("x", tunables={"sleep_millisecs": 200})
    assert list(ret["changes"]) == ["sleep_millisecs"]
    assert kernel.get("run") == "1"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"enabled": True, "unmerge": True}, "unmerge"),
        ({"tunables": {"pages": 1}}, "there is no pages"),
        ({"tunables": {"max_page_sharing": 64}}, "has no max_page_sharing"),
    ],
)
def test_what_contradicts_itself_or_is_not_there_sets_nothing(kernel, arguments, text):
    ret = ksm.configured("x", **arguments)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert text in ret["comment"]


def test_a_kernel_without_ksm_is_a_failure(kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(ksm, "_KSM", tmp_path / "none")
    assert "not built in" in ksm.configured("x", True)["comment"]


def test_what_changes_only_while_nothing_is_merged_says_so(kernel, monkeypatch):
    def busy(*_: Any, **__: Any) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "write_text", busy)
    ret = ksm.configured("x", True, tunables={"merge_across_nodes": 0})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "unmerge true first" in ret["comment"]


def test_ksmtuned_is_named(kernel):
    kernel.tuner.write_text("1")
    assert "ksmtuned" in ksm.configured("x", False)["comment"]

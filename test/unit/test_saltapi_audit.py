"""The file of who did what: it only grows, holds no secret, and finds outcomes that a restart has missed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import hypervisor_audit
import pytest

START = {"fun": "hypervisor.start", "tgt": ["hv1"], "arg": ["web"], "kwarg": {}}
DONE = {"return": {"name": "web", "state": "running"}, "retcode": 0, "success": True}


def lines(trail: hypervisor_audit.Trail) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trail.path.read_text().splitlines()]


@pytest.fixture
def trail(tmp_path):
    return hypervisor_audit.Trail(str(tmp_path / "audit.log"))


def test_lines_are_added_to_a_closed_file(trail):
    trail.path.write_text('{"event": "older"}\n')
    trail.path.chmod(0o644)
    number = trail.request("alice", START)
    trail.started(number, "2026", ["hv1"])
    assert [line["event"] for line in lines(trail)] == ["older", "request", "started"]
    assert stat.S_IMODE(trail.path.stat().st_mode) == 0o600


def test_a_link_in_its_place_is_not_followed(trail, tmp_path):
    target = tmp_path / "target"
    target.write_text("x")
    trail.path.symlink_to(target)
    with pytest.raises(OSError, match=r"."):
        trail.request("alice", START)
    assert target.read_text() == "x"


@pytest.mark.parametrize(
    ("function", "arg", "kwarg", "expected"),
    [
        ("start", ["web"], {}, {"guest": "web", "arguments": {}, "left_out": []}),
        ("start", [], {"name": "web"}, {"guest": "web", "arguments": {}, "left_out": []}),
        ("migrate", ["web", "hv2"], {"copy_disks": True},
         {"guest": "web", "arguments": {"copy_disks": True, "by_position": ["hv2"]}, "left_out": []}),
        ("create", ["web", "hidden"], {"cpu": 2, "cloud_init": {"password": "hidden"}},
         {"guest": "web", "arguments": {}, "left_out": ["cloud_init", "cpu"]}),
        ("delete", ["web"], {"disks": {"a": "hidden"}},
         {"guest": "web", "arguments": {"disks": "(dict)"}, "left_out": []}),
        ("delete", ["w" * 99], {}, {"guest": "w" * 64 + "…", "arguments": {}, "left_out": []}),
        ("start", [["web"]], {}, {"guest": "(list)", "arguments": {}, "left_out": []}),
    ],
)  # fmt: skip
def test_what_is_kept_of_arguments(function, arg, kwarg, expected):
    chunk = {"fun": f"hypervisor.{function}", "tgt": ["hv1"], "arg": arg, "kwarg": kwarg}
    assert hypervisor_audit.arguments(chunk) == expected


@pytest.mark.parametrize(("function", "arg", "kwarg", "expected"), [
    ("start", [], {"guest": "web", "kind": "vnc", "hash": "f" * 64},
     {"guest": "web", "arguments": {"kind": "vnc"}, "left_out": ["hash"]}),
    ("stop", [], {"id": "c1"}, {"guest": None, "arguments": {"id": "c1"}, "left_out": []}),
    ("stop", ["c1"], {}, {"guest": None, "arguments": {"id": "c1"}, "left_out": []}),
])  # fmt: skip
def test_what_is_kept_of_a_console(function, arg, kwarg, expected):
    assert hypervisor_audit.arguments({"fun": f"wsproxy.{function}", "arg": arg, "kwarg": kwarg}) == expected


@pytest.mark.parametrize(
    ("function", "kwarg", "kept", "left"),
    [
        ("evacuate", {"host": "hv1", "parallel": 2}, {"host": "hv1", "parallel": 2}, []),
        ("create", {"name": "web", "host": "hv1", "cpu": 2, "cloud_init": {"password": "hidden"}}, {"host": "hv1"},
         ["cloud_init", "cpu"]),
    ],
)  # fmt: skip
def test_what_is_kept_of_the_runners_arguments(trail, function, kwarg, kept, left):
    chunk = {"client": "runner_async", "fun": f"fleet.{function}", "kwarg": kwarg}
    found = hypervisor_audit.arguments(chunk)
    assert (found["guest"], found["arguments"], found["left_out"]) == (kwarg.get("name"), kept, left)
    trail.request("alice", chunk)
    assert lines(trail)[-1]["hosts"] == []
    assert "hidden" not in trail.path.read_text()


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (DONE, {"ok": True, "state": "running"}),
        ({"return": "ERROR: hidden", "retcode": 1, "success": False}, {"ok": False}),
        ({"return": True, "retcode": 0, "success": False}, {"ok": False}),
        ({"return": {"state": {"a": 1}}, "retcode": 0}, {"ok": True}),
        ({"return": {"id": "c1", "guest": "web"}, "retcode": 0}, {"ok": True, "guest": "web"}),
        ({}, {"ok": False}),
        ({"return": {"fun": "runner.fleet.migrate", "return": {"state": "running"}, "success": True}},
         {"ok": True, "state": "running"}),
        ({"return": {"fun": "runner.fleet.migrate", "return": {"text": "hidden"}, "success": False}}, {"ok": False}),
        ({"return": {"fun": "runner.fleet.migrate", "return": "hidden"}}, {"ok": False}),
        ("nonsense", {"ok": False}),
    ],
)  # fmt: skip
def test_what_is_kept_of_an_answer(trail, answer, kept):
    trail.started("n1", "2026", ["hv1"])
    trail.look(lambda job: {"hv1": answer}, 1e12)
    written = lines(trail)[-1]
    assert {key: written[key] for key in written if key in {"ok", "state", "guest"}} == kept
    assert "hidden" not in trail.path.read_text()


def test_each_host_has_one_outcome_and_only_those_that_were_asked(trail):
    number = trail.request("alice", {**START, "tgt": ["hv1", "hv2"]})
    trail.started(number, "2026", ["hv1", "hv2"])
    answers: dict[str, Any] = {"hv1": DONE, "intruder": DONE}
    now = trail.open[number].began
    for step in range(5):
        trail.look(lambda job: answers, now + step)
    answers["hv2"] = {"return": "ERROR", "retcode": 1, "success": False}
    for step in range(5, 60, 5):
        trail.look(lambda job: answers, now + step)
    outcomes = [(line["host"], line["ok"]) for line in lines(trail) if line["event"] == "outcome"]
    assert outcomes == [("hv1", True), ("hv2", False)]
    assert trail.open == {}


def test_a_restart_goes_on_where_it_was(trail):
    for name in ("one", "two", "three"):
        number = trail.request("alice", START)
        trail.started(number, name, ["hv1", "hv2"])
    trail.look(lambda job: {"hv1": DONE} if job == "one" else {"hv1": DONE, "hv2": DONE} if job == "two" else {}, 1e9)
    # Rotated, and half a line of a power cut.
    trail.path.rename(trail.path.with_name("audit.log.1"))
    trail.path.write_text('{"event": "outco')
    again = hypervisor_audit.Trail(str(trail.path))
    again.recall()
    assert {job.job: job.hosts for job in again.open.values()} == {"one": {"hv2"}, "three": {"hv1", "hv2"}}


def test_no_outcome_stands_above_the_beginning_of_its_job(trail, monkeypatch):
    write = trail.write

    def slow(event, **fields):
        # The other thread looks while this line is on its way.
        if event == "started":
            trail.look(lambda job: {"hv1": {"return": {}, "retcode": 0}}, 1e12)
        write(event, **fields)

    monkeypatch.setattr(trail, "write", slow)
    trail.started("1", "20261128", ["hv1"])
    trail.look(lambda job: {"hv1": {"return": {}, "retcode": 0}}, 1e12)
    assert [row["event"] for row in lines(trail)] == ["started", "outcome"]


def test_a_host_that_never_answers_is_given_up(trail):
    trail.started("n1", "2026", ["hv1"])
    began = trail.open["n1"].began
    trail.look(lambda job: {}, began + 3600)
    assert trail.open
    trail.look(lambda job: {}, began + 25 * 3600)
    assert trail.open == {}
    assert (lines(trail)[-1]["ok"], lines(trail)[-1]["why"]) == (None, "no answer")


def test_looks_become_rare(trail):
    trail.started("n1", "2026", ["hv1"])
    began = trail.open["n1"].began
    asked: list[str] = []

    def nobody(job: str) -> dict[str, Any]:
        asked.append(job)
        return {}

    for second in range(3600):
        trail.look(nobody, began + second)
    assert 100 < len(asked) < 300


def test_the_thread_outlives_an_error(trail, monkeypatch):
    monkeypatch.setattr(hypervisor_audit, "_OFTEN", 0.01)
    trail.started("n1", "2026", ["hv1"])
    stop = hypervisor_audit.threading.Event()
    calls: list[str] = []

    def returns(job: str) -> dict[str, Any]:
        calls.append(job)
        trail.open["n1"].next = 0.0
        if len(calls) == 1:
            raise OSError("the cache is away")
        stop.set()
        return {"hv1": DONE}

    hypervisor_audit.follow(trail, returns, stop)
    assert len(calls) == 2
    assert lines(trail)[-1]["event"] == "outcome"
    assert Path(trail.path).read_text().count("outcome") == 1

"""What the runner writes down of an act, and what the live inventory makes of it: no event has a part in it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import Any

import pytest
from hypervisor_inventory import access, acts, jobs
from processes import speaking

from _utils import fleet_diary, fleet_store

JOB = "20260101000000000001"


class Runner:
    """A folder in which acts are written down, and the inventory's view of it."""

    def __init__(self, folder) -> None:
        self.base, self.now = folder, 1000.0
        self.folder = folder / "hypervisor-fleet" / "jobs"
        self.seen = acts.Acts(self.folder, lambda: self.now)
        self.trail = folder / "audit.log"
        self.answers: dict[str, Any] = {}
        self.jobs = jobs.Jobs(self.trail, lambda jid: self.answers.get(jid, {}), self.folder)

    def begin(self, function="fleet.evacuate", jid=JOB, **about):
        return fleet_diary.begin(str(self.base), jid, function=function, user="olga", **about)

    def asked(self, function="fleet.evacuate", **arguments) -> None:
        rows = [
            {
                "event": "request",
                "id": "r",
                "user": "olga",
                "function": function,
                "guest": None,
                "arguments": arguments,
            },
            {"event": "started", "id": "r", "job": JOB, "hosts": ["controller"]},
        ]
        self.write(*rows)

    def write(self, *rows) -> None:
        with self.trail.open("a") as handle:
            handle.writelines(json.dumps({"time": "2026-01-01T00:00:00+00:00", **row}) + "\n" for row in rows)

    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = self.jobs.look()[JOB]
        return found


@pytest.fixture(name="runner")
def a_runner(tmp_path):
    return Runner(tmp_path)


def steps(job):
    return {row["guest"]: row["step"] for row in job["progress"]}


def test_progress_and_the_end_are_told_as_they_come(runner):
    runner.asked(host="hv1")
    assert runner.job() | {"started": ""} == {
        "jid": JOB, "user": "olga", "function": "fleet.evacuate", "guest": None, "kwarg": {"host": "hv1"},
        "hosts": ["hv1"], "scope": [], "started": "", "outcomes": {}, "progress": [], "outcome": None,
    }  # fmt: skip
    diary = runner.begin(host="hv1", test=False, scope=["hv3", "hv1", "hv2", "../x", 5])
    diary.note("waiting", guest="web", **{"from": "hv1"})
    diary.note("waiting", guest="db", **{"from": "hv1"})
    diary.note("moving", guest="web", to="hv2", **{"from": "hv1"})
    found = runner.job()
    assert (steps(found), found["hosts"], found["outcome"]) == (
        {"web": "moving", "db": "waiting"}, ["hv1", "hv2"], None,
    )  # fmt: skip
    diary.note("moved", guest="web", text="to hv2 in 1.0 s", to="hv2", **{"from": "hv1"})
    diary.note("stays", guest="db", text="stays on hv1", against={"hv2": ["device: a card"]}, **{"from": "hv1"})
    diary.note("end", ok=False, text="1 of 2 guests moved")
    diary.close()
    found = runner.job()
    assert steps(found) == {"web": "moved", "db": "stays"}
    assert (found["hosts"], found["scope"]) == (["hv1", "hv2"], ["hv1", "hv2", "hv3"])
    assert found["progress"][1]["against"] == {"hv2": ["device: a card"]}
    assert found["outcome"] == {"success": False, "comment": "1 of 2 guests moved"}
    assert runner.jobs.look() == {}
    # The trail's own outcome comes later, and says less.
    runner.write({"event": "outcome", "id": "r", "job": JOB, "host": "controller", "ok": True})
    assert runner.job()["outcome"] == {"success": False, "comment": "1 of 2 guests moved"}


def test_the_file_may_come_before_the_line_in_the_trail_and_without_one(runner):
    diary = runner.begin("fleet.migrate", guest="web", host="hv2", test=True)
    diary.note("checking", guest="web", to="hv2", **{"from": "hv1"})
    found = runner.job()
    assert (found["user"], found["function"], found["guest"], found["kwarg"]) == (
        "olga", "fleet.migrate", "web", {"host": "hv2", "test": True},
    )  # fmt: skip
    runner.asked("fleet.migrate", target="hv2", policy="spread")
    found = runner.job()
    assert (found["kwarg"], found["hosts"], steps(found)) == (
        {"target": "hv2", "policy": "spread"}, ["hv1", "hv2"], {"web": "checking"},
    )  # fmt: skip
    diary.note("possible", guest="web", to="hv2", **{"from": "hv1"})
    assert steps(runner.job()) == {"web": "possible"}
    diary.close()


def test_one_that_was_refused_before_it_began_has_the_trails_outcome(runner):
    runner.asked(host="hv1")
    answer = {"fun": "runner.fleet.evacuate", "success": False, "return": {"ok": False, "text": "hv1 is held"}}
    runner.answers[JOB] = {"controller": {"return": answer}}
    runner.write({"event": "outcome", "id": "r", "job": JOB, "host": "controller", "ok": False})
    found = runner.job()
    assert found["outcome"] == {"success": False, "comment": "hv1 is held"}
    assert found["outcomes"] == {}


def test_an_act_whose_process_has_gone_is_over(runner):
    diary = runner.begin(host="hv1")
    diary.note("moving", guest="web", to="hv2", **{"from": "hv1"})
    assert set(runner.seen.look()) == {JOB}
    runner.now += 60
    # The lock is that of a living process.
    assert runner.seen.look() == {}
    diary.close()
    runner.now += 60
    (act,) = runner.seen.look().values()
    assert act.record()["outcome"]["success"] is False
    assert act.record()["outcome"]["comment"].startswith("the runner was ended in the midst of it")
    assert runner.seen.look() == {}


def test_an_act_at_work_stays_however_many_jobs_come_after_it(runner, monkeypatch):
    monkeypatch.setattr(jobs, "_MOST", 3)
    long = runner.begin(host="hv1")
    ended = runner.begin(jid="20260101000000000002", host="hv2")
    ended.note("end", ok=True, text="hv2 is evacuated")
    ended.close()
    assert set(runner.jobs.look()) == {JOB, "20260101000000000002"}
    for number in range(3, 7):
        row = {"id": f"r{number}", "job": f"2026010100000000000{number}"}
        asked = {"event": "request", "user": "olga", "function": "hypervisor.start", "guest": "x", "arguments": {}}
        runner.write({**asked, **row}, {"event": "started", "hosts": ["hv3"], **row})
    changed = runner.jobs.look()
    assert {job for job, value in changed.items() if value is None} == {
        "20260101000000000002", "20260101000000000003", "20260101000000000004",
    }  # fmt: skip
    long.note("moving", guest="web", to="hv2", **{"from": "hv1"})
    assert steps(runner.job()) == {"web": "moving"}
    long.note("end", ok=True, text="hv1 is evacuated")
    long.close()
    assert runner.job()["outcome"]["success"] is True
    row = {"id": "r9", "job": "20260101000000000009"}
    runner.write({"event": "started", "time": "2026", "hosts": ["hv3"], **row})
    # It has ended, and is the oldest.
    assert runner.jobs.look()[JOB] is None
    assert len(runner.jobs.known()) == 3


def test_the_files_are_closed_to_others_and_few(runner):
    for number in range(205):
        runner.begin(jid=f"20260101000000{number:06d}").close()
    names = sorted(path.name for path in runner.folder.iterdir())
    assert (len(names), names[-1]) == (200, "20260101000000000204.jsonl")
    assert stat.S_IMODE(runner.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((runner.folder / names[0]).stat().st_mode) == 0o600


def test_the_file_of_an_act_at_work_is_never_dropped(runner):
    at_work = runner.begin(jid="20260101000000000000", host="hv1")
    code = (
        "import sys; from _utils import fleet_diary as d\n"
        f"held = d.begin({str(runner.base)!r}, '20260101000000000001', function='fleet.evacuate', user='olga')\n"
        "print('begun', flush=True); sys.stdin.read()"
    )
    with speaking(code, "begun") as process:
        for number in range(2, 204):
            runner.begin(jid=f"20260101000000{number:06d}").close()
        names = sorted(path.stem[14:] for path in runner.folder.iterdir())
        assert (len(names), names[:3]) == (202, ["000000", "000001", "000004"])
        process.kill()
        process.wait()
    at_work.note("moved", guest="web")
    runner.begin(jid="20260101000000000204").close()
    names = sorted(path.stem[14:] for path in runner.folder.iterdir())
    # Of the one that was killed nothing is kept any more.
    assert (len(names), names[:2]) == (201, ["000000", "000005"])
    assert '"moved"' in (runner.folder / "20260101000000000000.jsonl").read_text()
    at_work.close()
    runner.begin(jid="20260101000000000205").close()
    assert len(list(runner.folder.iterdir())) == 200
    assert not (runner.folder / "20260101000000000000.jsonl").exists()


def test_a_file_that_is_dropped_before_it_is_locked_is_made_again(runner, monkeypatch):
    lock = fcntl.flock
    dropped: list[str] = []

    def late(descriptor, how):
        if not dropped:
            dropped.append(JOB)
            (runner.folder / f"{JOB}.jsonl").unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    diary = runner.begin(host="hv1")
    assert json.loads((runner.folder / f"{JOB}.jsonl").read_text())["step"] == "begin"
    diary.close()


@pytest.mark.parametrize("jid", ["none", "", "../../20260101000000000001", "20260101000000000001/x", "x" * 20])
def test_what_is_no_job_is_not_written_down(runner, jid):
    diary = runner.begin(jid=jid)
    diary.note("moving", guest="web")
    diary.close()
    assert not [path for path in runner.base.rglob("*") if path.is_file()]


def test_an_act_goes_on_where_nothing_can_be_written(runner):
    (runner.base / "hypervisor-fleet").write_text("in the way")
    diary = runner.begin()
    diary.note("moving", guest="web")
    diary.close()


def test_texts_of_hosts_are_hostile_and_broken_lines_are_left_out(runner):
    diary = runner.begin(host="hv1")
    evil = "\x1b[2J\u202e" + "x" * 9000
    diary.note("stays", guest="a\x00b", text=f"{evil}\nsecond", against={"../x": ["y"], "hv2": [evil, 5]}, to="hv2; id")
    os.write(diary._descriptor, b'{"step": 1}\nnot json\n[]\n')
    diary.note("waiting", guest="c")
    (act,) = runner.seen.look().values()
    first, second = act.record()["progress"]
    assert (first["guest"], second["guest"]) == ("a\N{REPLACEMENT CHARACTER}b", "c")
    assert first["text"].startswith("\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}xxx")
    assert len(first["text"]) <= 8192
    assert (list(first["against"]), first["against"]["hv2"][1], "to" in first) == (["hv2"], "", False)
    diary.close()


def test_hosts_that_are_evacuated(runner):
    folder = runner.base / "evacuated"
    seen = acts.Evacuated(folder)
    assert seen.look() == set()
    folder.mkdir()
    (folder / "hv1.json").write_text(json.dumps({"since": "2026", "user": "olga", "guests": {"u": {}, "v": {}}}))
    assert seen.look() == {"hv1"}
    assert seen.hosts == {"hv1": {"since": "2026", "user": "olga", "guests": 2}}
    assert seen.look() == set()
    (folder / "hv1.json").unlink()
    assert (seen.look(), seen.hosts) == ({"hv1"}, {})


def test_steps_of_an_evacuation_are_counted_as_they_come(runner, monkeypatch):
    base, folder = str(runner.base), runner.base / "hypervisor-fleet" / "evacuated"
    seen = acts.Evacuated(folder)
    fleet_store.begin(base, "hv1", "olga")
    assert seen.look() == {"hv1"}
    read: list[str] = []
    loads = json.loads

    def counted(line):
        read.append(line)
        return loads(line)

    monkeypatch.setattr(acts.json, "loads", counted)
    for number in range(5):
        fleet_store.note(base, "hv1", {"name": "web", "uuid": f"u{number}"}, "hv2", moving=True)
        assert (seen.look(), seen.hosts["hv1"]["guests"]) == ({"hv1"}, number + 1)
    # Only what is new is read.
    assert len(read) == 5
    fleet_store.note(base, "hv1", {"name": "web", "uuid": "u0"}, "hv2", moving=False)
    assert seen.look() == set()
    with (folder / "hv1.json").open("a") as handle:
        handle.write('{"uuid": "u9", "gu')
    assert seen.look() == set()
    fleet_store.forget(base, "hv1", "u0")
    assert (seen.look(), seen.hosts["hv1"]["guests"]) == ({"hv1"}, 4)
    # Another act puts them together, and another evacuation begins at nothing.
    fleet_store.begin(base, "hv1", "olga")
    fleet_store.note(base, "hv1", {"name": "web", "uuid": "u8"}, "hv2", moving=True)
    assert (seen.look(), seen.hosts["hv1"]["guests"]) == ({"hv1"}, 5)
    fleet_store.end(base, "hv1")
    fleet_store.begin(base, "hv1", "anna")
    assert seen.look() == {"hv1"}
    assert (seen.hosts["hv1"]["user"], seen.hosts["hv1"]["guests"]) == ("anna", 0)
    (folder / "hv1.json").write_text("[]\n")
    assert (seen.look(), seen.hosts) == ({"hv1"}, {})


def test_of_many_guests_not_every_step_is_told_and_the_last_is(runner):
    diary = runner.begin(host="hv1")
    for number in range(220):
        diary.note("waiting", guest=f"web{number}")
    assert set(runner.seen.look()) == {JOB}
    told = 0
    for number in range(220):
        diary.note("moved", guest=f"web{number}")
        runner.now += 0.05
        told += len(runner.seen.look())
    # 200 rows more than the first twenty, in a second each, for eleven seconds.
    assert 10 <= told <= 11
    runner.now += 1.0
    (act,) = runner.seen.look().values()
    assert {row["step"] for row in act.record()["progress"]} == {"moved"}
    assert runner.seen.look() == {}
    diary.note("stays", guest="web0")
    diary.note("end", ok=False, text="1 stays")
    (act,) = runner.seen.look().values()
    assert act.record()["outcome"] == {"success": False, "comment": "1 stays"}
    diary.close()


def test_of_few_guests_every_step_is_told_at_once(runner):
    diary = runner.begin(host="hv1")
    for number in range(20):
        diary.note("moving", guest=f"web{number}")
        assert set(runner.seen.look()) == {JOB}
    diary.close()


RECORD = {
    "jid": JOB, "user": "olga", "function": "fleet.evacuate", "guest": None, "kwarg": {"host": "hv1", "parallel": 2},
    "hosts": ["hv1", "hv2"], "scope": ["hv1", "hv2", "hv3"], "outcomes": {},
    "outcome": {"success": False, "comment": "hv3 is full"},
    "progress": [
        {"guest": "web", "step": "moved", "from": "hv1", "to": "hv2", "text": "to hv2 in 1 s"},
        {"guest": "db", "step": "stays", "from": "hv1", "text": "x", "against": {"hv2": ["a"], "hv3": ["b"]}},
    ],
}  # fmt: skip
WHOLE = {key: value for key, value in RECORD.items() if key != "scope"}


def test_who_started_it_sees_all_of_it_and_others_what_is_about_their_hosts():
    assert access.seen("jobs", "", RECORD, frozenset({"hv1"}), "olga") == WHOLE
    assert access.seen("jobs", "", RECORD, frozenset(), "olga") == WHOLE
    assert access.seen("jobs", "", RECORD, frozenset({"hv1", "hv2", "hv3"}), "ines") == WHOLE
    assert access.seen("jobs", "", RECORD, frozenset({"hv9"}), "ines") is None
    assert access.seen("jobs", "", {**RECORD, "user": ""}, frozenset({"hv9"}), "") is None
    found = access.seen("jobs", "", RECORD, frozenset({"hv2"}), "vera")
    assert found is not None
    assert (found["hosts"], found["kwarg"], found["outcome"]) == (["hv2"], {"parallel": 2}, {"success": False})
    assert found["progress"] == [{"guest": "web", "step": "moved", "to": "hv2", "text": "", "against": {}}]
    found = access.seen("jobs", "", RECORD, frozenset({"hv1", "hv2"}), "vera")
    assert found is not None
    assert found["progress"][1]["against"] == {"hv2": ["a"]}
    # Not even whoever sees all hosts that something was done with: a reason names another.
    assert "hv3" not in json.dumps(found)


@pytest.mark.parametrize("scope", [[], None])
def test_an_act_of_which_nobody_knows_whom_it_could_name_is_told_in_parts(scope):
    record = {**RECORD, "scope": scope} if scope is not None else WHOLE
    found = access.seen("jobs", "", record, frozenset({"hv1", "hv2"}), "ines")
    assert found is not None
    assert (found["outcome"], "hv3" in json.dumps(found)) == ({"success": False}, False)

"""Jobs on hosts and the course of guests: where each ends, also when a host is lost in the midst."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import SaltClientError

from _utils import fleet_jobs, fleet_moves

UUID = "92ff2d92-61e2-492a-a5f8-bd711528baf2"
GUEST = {"name": "web", "uuid": UUID, "state": "running"}
OPTIONS = {"copy_disks": False, "timeout": 600, "test": False}
MOVED = {"state": "running", "seconds": 1.5, "downtime_ms": 20, "transferred_bytes": 1, "copied_disks": [],
         "warnings": []}  # fmt: skip


def good(value):
    return {"ok": True, "value": value, "lost": ""}


def bad(text):
    return {"ok": False, "value": text, "lost": ""}


LOST = {"ok": False, "value": None, "lost": "hv1 has not answered for 45 s"}
POSSIBLE = good({"possible": True, "reasons": []})
NOT = good({"possible": False, "reasons": [{"check": "device", "text": "it has a card of this host"}]})


def has(state=""):
    rows = [{"name": "web", "uuid": UUID, "state": state}] if state else []
    return good({"guests": rows, "migrated": []})


class Lock:
    def __init__(self) -> None:
        self.released = False

    def release(self) -> None:
        self.released = True


class Moved:
    """One course with answers from a list."""

    def __init__(self, *answers: dict[str, Any], hosts=("hv2", "hv3"), options=OPTIONS, held="") -> None:
        self.lock = Lock()
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.told: list[str] = []
        self.notes: list[tuple[str, str]] = []
        left = list(answers)

        class Starter:
            @staticmethod
            def start(question):
                self.asked.append(question)
                return question

            @staticmethod
            def look(_):
                return left.pop(0)

        chosen = {"hosts": list(hosts), "why": "it is empty", "against": {"hv4": ["is evacuated"]}}
        course = fleet_moves.course(GUEST, "hv1", options, lambda step, **what: self.told.append(step))
        take = lambda: (None, held) if held else (self.lock, "")  # noqa: E731 - two values, one line
        courses = [fleet_moves.follow(course, lambda: chosen, take, lambda step, to: self.notes.append((step, to)))]
        (self.row,) = fleet_jobs.run(courses, 2, Starter)
        assert left == []
        assert self.lock.released or held


def test_a_guest_moves_to_the_first_host_and_says_why():
    done = Moved(POSSIBLE, good(MOVED))
    assert (done.row["outcome"], done.row["to"], done.row["why"]) == ("moved", "hv2", "it is empty")
    assert done.row["text"] == "to hv2 in 1.5 s, 20 ms of them without it"
    assert done.notes == [("trying", "hv2"), ("moving", "hv2"), ("moved", "hv2")]
    assert done.told == ["checking", "moving", "moved"]
    assert [(host, what, args["target"], args["test"]) for host, what, args in done.asked] == [
        ("hv1", "hypervisor.migrate", "hv2", True),
        ("hv1", "hypervisor.migrate", "hv2", False),
    ]


def test_the_next_host_is_tried_and_reasons_are_kept():
    done = Moved(NOT, POSSIBLE, good(MOVED))
    assert (done.row["to"], done.row["why"]) == ("hv3", "hv3 is the next that it fits on")
    assert done.row["against"] == {"hv4": ["is evacuated"], "hv2": ["device: it has a card of this host"]}


def test_what_no_host_takes_stays_with_every_reason():
    done = Moved(NOT, bad("ERROR: no\n guest"))
    assert done.row["outcome"] == "stays"
    assert done.row["against"]["hv3"] == ["error: ERROR: no guest"]
    assert done.notes == [("trying", "hv2"), ("refused", "hv2"), ("trying", "hv3"), ("refused", "hv3")]
    assert done.told == ["checking", "checking", "stays"]


def test_a_question_moves_nothing():
    done = Moved(POSSIBLE, options={**OPTIONS, "test": True})
    assert (done.row["outcome"], done.row["to"], done.notes) == ("possible", "hv2", [("trying", "hv2")])


def test_a_guest_that_is_held_is_left_alone():
    done = Moved(held="is held by fleet.migrate of otto (job 7, since now)")
    assert (done.row["outcome"], done.asked, done.notes) == ("busy", [], [])
    assert done.row["text"] == "is held by fleet.migrate of otto (job 7, since now)"


def test_a_lost_host_and_the_guest_has_arrived():
    done = Moved(POSSIBLE, LOST, has(), has("running"))
    assert (done.row["outcome"], done.row["to"]) == ("moved", "hv2")
    assert done.row["text"] == "to hv2, where it is running; hv1 has not answered for 45 s"
    assert done.notes[-1] == ("moved", "hv2")


def test_a_failure_and_the_guest_is_where_it_was():
    done = Moved(POSSIBLE, bad("the certificate\nhas ended"), has("running"), has())
    assert done.row["outcome"] == "failed"
    assert done.row["text"] == "is running on hv1, and hv2 has nothing of it; the certificate has ended"
    assert done.notes == [("trying", "hv2"), ("moving", "hv2"), ("stays", "hv2")]


def test_a_migration_that_goes_on_without_its_job_is_waited_for():
    done = Moved(POSSIBLE, LOST, has("running"), has("paused"), has("running"), has("paused"), has(), has("running"))
    assert (done.row["outcome"], done.row["state"]) == ("moved", "running")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((LOST, has("running")), "not known (no answer) on hv1 and running on hv2"),
        ((LOST, has()), "not known (no answer) on hv1 and not there on hv2"),
        ((has("running"), LOST), "running on hv1 and not known (no answer) on hv2"),
        ((has(), has()), "not there on hv1 and not there on hv2"),
    ],
)
def test_what_nobody_can_know_is_said(answers, words):
    done = Moved(POSSIBLE, LOST, *answers)
    assert done.row["outcome"] == "unknown"
    assert words in done.row["text"]
    assert "Nothing was removed anywhere" in done.row["text"]
    # The record of an evacuation keeps it as being on its way.
    assert done.notes[-1] == ("moving", "hv2")


def test_a_guest_that_stays_on_both_for_too_long_is_said(monkeypatch):
    times = iter([0.0, 10.0, 10000.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    done = Moved(POSSIBLE, LOST, *[has("running"), has("paused")] * 2)
    assert (done.row["outcome"], "running on hv1 and paused on hv2" in done.row["text"]) == ("unknown", True)


def test_answers_of_another_form_are_no_success_and_end_nothing():
    done = Moved(good({"possible": False, "reasons": [{}]}), good({"possible": "yes"}))
    assert done.row["outcome"] == "stays"
    assert done.row["against"]["hv3"] == ["error: {'possible': 'yes'}"]
    done = Moved(POSSIBLE, good({"seconds": "1"}), good({"guests": [{}]}), has("running"))
    assert (done.row["outcome"], "not known (no answer) on hv1" in done.row["text"]) == ("unknown", True)


# ---- several at a time ----


class Hosts:
    """Jobs that need some looks each."""

    def __init__(self, looks: int) -> None:
        self.looks, self.now, self.most = looks, 0, 0

    def start(self, question):
        self.now += 1
        self.most = max(self.most, self.now)
        return {"question": question, "left": self.looks}

    def look(self, job):
        job["left"] -= 1
        if job["left"] > 0:
            return None
        self.now -= 1
        return good(job["question"][0])


def asking(host, times=2):
    told = []
    for _ in range(times):
        answer = yield host, "test.ping", {}
        told.append(answer["value"])
    return {"host": host, "told": told}


def test_at_most_so_many_are_under_way_and_results_keep_their_order(monkeypatch):
    monkeypatch.setattr(fleet_jobs, "_PAUSE", 0)
    hosts = Hosts(3)
    rows = fleet_jobs.run([asking(f"h{number}", 1 + number % 3) for number in range(7)], 3, hosts)
    assert hosts.most == 3
    assert [row["host"] for row in rows] == [f"h{number}" for number in range(7)]
    assert rows[2]["told"] == ["h2"] * 3


def test_an_error_ends_all_courses(monkeypatch):
    ended = []

    def course(name):
        try:
            yield "hv1", "test.ping", {}
        finally:
            ended.append(name)

    class Broken(Hosts):
        def look(self, job):
            raise OSError("the cache is away")

    with pytest.raises(OSError, match="away"):
        fleet_jobs.run([course("a"), course("b"), course("c")], 2, Broken(1))
    # The third had not begun.
    assert ended == ["a", "b"]


class Client:
    """A master whose jobs are numbered."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, str]] = []

    def run_job(self, tgt, fun, **_):
        if tgt == ["nobody"]:
            return {}
        self.jobs.append((tgt[0], fun))
        return {"jid": str(len(self.jobs)), "minions": tgt}


@pytest.fixture
def job():
    """Jobs on hv1 with a clock by hand: (jobs, job, returns, clock, client)."""
    client, clock = Client(), [0.0]
    returns: dict[str, Any] = {}
    made = fleet_jobs.Jobs(client, lambda jid: returns.get(jid, {}), lambda: clock[0])
    return made, made.start(("hv1", "hypervisor.migrate", {"name": "web"})), returns, clock, client


def test_an_answer_is_one(job):
    made, one, returns, _, _ = job
    assert made.look(one) is None
    returns["1"] = {"hv1": {"return": {"x": 1}, "retcode": 0, "success": True}, "hv2": {"return": 2}}
    assert made.look(one) == good({"x": 1})
    returns["1"] = {"hv1": {"return": "ERROR: no", "retcode": 1}}
    assert made.look(one) == bad("ERROR: no")


def test_a_master_that_takes_no_job_ends_no_other(job, monkeypatch):
    made, one, returns, clock, client = job

    def away(*_, **__):
        raise SaltClientError("Is master running?")

    monkeypatch.setattr(client, "run_job", away)
    other = made.start(("hv2", "hypervisor.migrate", {}))
    lost = {"ok": False, "value": None, "lost": "the master did not take the job: Is master running?"}
    assert made.look(other) == lost
    # Nor does a host whose master cannot be asked whether it is at work.
    clock[0] = 6
    assert made.look(one) is None
    returns["1"] = {"hv1": {"return": {}}}
    assert made.look(one) == good({})


def test_a_host_at_work_is_waited_for(job):
    made, one, returns, clock, client = job
    for step in range(100):
        clock[0] += 6
        assert made.look(one) is None
        jid = str(len(client.jobs))
        assert client.jobs[-1] == ("hv1", "saltutil.find_job")
        returns[jid] = {"hv1": {"return": {"jid": "1", "fun": "hypervisor.migrate"}}}
        assert made.look(one) is None, step


def test_a_host_that_has_forgotten_the_job_is_lost(job):
    made, one, returns, clock, _ = job
    clock[0] = 6
    assert made.look(one) is None
    returns["2"] = {"hv1": {"return": {}}}
    assert made.look(one) is None
    clock[0] = 20
    assert made.look(one)["lost"] == "the minion of hv1 has ended without an answer"


def test_an_answer_that_comes_a_moment_later_counts(job):
    made, one, returns, clock, _ = job
    clock[0] = 6
    made.look(one)
    returns["2"] = {"hv1": {"return": {}}}
    made.look(one)
    returns["1"] = {"hv1": {"return": 5, "retcode": 0}}
    clock[0] = 20
    assert made.look(one) == good(5)


def test_a_silent_host_is_lost(job):
    made, one, _, clock, _ = job
    said = None
    while said is None:
        clock[0] += 6
        said = made.look(one)
    assert said["lost"] == "hv1 has not answered for 48 s"


def test_a_host_that_is_no_minion_is_lost_at_once(job):
    made = job[0]
    assert made.look(made.start(("nobody", "test.ping", {})))["lost"] == "nobody is not a minion of this master"


# ---- what is said in the end ----


@pytest.mark.parametrize(
    ("outcomes", "test", "text"),
    [
        ([], False, "hv1 is evacuated: there is nothing to move"),
        (["moved", "moved"], False, "hv1 is evacuated: 2 of 2 guests moved"),
        (["moved", "stays", "busy", "unknown"], False, "hv1 is not evacuated whole: 1 of 4 guests moved"),
        (["possible"], True, "hv1 would be evacuated: 1 of 1 guests can move"),
        (["possible", "stays"], True, "hv1 would not be evacuated whole: 1 of 2 guests can move"),
        (["forgotten"], False, "hv1 is evacuated: there is nothing to move"),
    ],
)
def test_the_report(outcomes, test, text):
    found = fleet_moves.report("hv1", "evacuated", [{"outcome": one} for one in outcomes], test)
    assert found["text"] == text
    assert found["ok"] is ("not" not in text.replace("nothing", ""))


def test_what_is_said_of_a_creation():
    made = fleet_moves.made("web", "hv2", "it is empty", good({"name": "web", "guest": {"state": "running"}}))
    assert made == {"ok": True, "text": "web was made on hv2: it is empty", "guest": {"state": "running"}}
    assert fleet_moves.made("web", "hv2", "", bad("no space"))["text"] == "web was not made on hv2: no space"
    assert "nobody can say whether web was made on hv2" in fleet_moves.made("web", "hv2", "", LOST)["text"]

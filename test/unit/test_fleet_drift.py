"""What hosts differ from their declaration, of the answers that minions give to a highstate in test mode."""

from __future__ import annotations

from typing import Any

import pytest

from _utils import fleet_drift, fleet_tables


def state(number, result: Any = True, **more):
    row = {"result": result, "changes": {}, "comment": "", "__run_num__": number, "__sls__": "kvm"}
    return {f"file_|-id{number}_|-/etc/x_|-managed": row | {"__id__": f"id{number}"} | more}


def answer(value, *, ok=True, lost=""):
    return {"ok": ok, "value": value, "lost": lost}


def judged(value, **more):
    return fleet_drift.judged("hv1", answer(value, **more))


def test_a_host_is_asked_for_what_changes_nothing():
    course = fleet_drift.course("hv1")
    assert next(course) == ("hv1", "state.highstate", {"test": True})
    with pytest.raises(StopIteration) as stop:
        course.send(answer(state(0)))
    assert (stop.value.value["outcome"], stop.value.value["total"]) == ("same", 1)


def test_states_that_would_change_in_their_order_and_without_what_they_write():
    secret = {"diff": "+password: hunter2"}
    found = judged({**state(2, None, comment="would\nbe", changes=secret), **state(1, None), **state(0)})
    assert (found["outcome"], found["text"]) == ("differs", "2 of 3 states would change")
    assert [row["id"] for row in found["states"]] == ["id1", "id2"]
    about = {"id": "id2", "state": "file.managed", "sls": "kvm", "what": "changes", "text": "would"}
    assert found["states"][1] == about
    assert "hunter2" not in str(found)


def test_a_state_that_says_that_it_has_changed_something_differs():
    assert judged(state(0, changes={"new": 1}))["outcome"] == "differs"


def test_a_state_that_would_fail_is_said_to():
    found = judged({**state(0, False, comment="no such package"), **state(1, None)}, ok=False)
    assert (found["outcome"], found["text"]) == ("fails", "1 of 2 states would change, 1 would fail")
    assert [row["what"] for row in found["states"]] == ["fails", "changes"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (answer(None, lost="hv1 has not answered for 46 s", ok=False), "hv1 has not answered for 46 s"),
        (answer(["Rendering SLS failed:", " kvm.pages"], ok=False), "Rendering SLS failed: kvm.pages"),
        (answer('"state.highstate" is running as PID 7'), '"state.highstate" is running as PID 7'),
        (answer({"hv1": "no"}), "{'hv1': 'no'}"),
        (answer([]), "it has answered nothing"),
    ],
)
def test_a_host_that_cannot_be_judged_is_not_taken_for_good(given, text):
    found = fleet_drift.judged("hv1", given)
    assert (found["outcome"], found["text"]) == ("unknown", text)


def test_the_report_and_its_table():
    rows = [
        judged({**state(0, None, comment="is to be\x1b[2J"), **state(1, False, comment="no")}),
        fleet_drift.judged("hv2", answer(state(0))),
        fleet_drift.judged("hv3", answer(None, lost="is gone")),
    ]
    found = fleet_drift.report(rows)
    assert (found["ok"], found["same"]) == (False, False)
    assert fleet_tables.drift(found).splitlines() == [
        "1 of 3 hosts are as declared; different: hv1; not known: hv3",
        "! hv3: is gone",
        "HOST  WHAT     STATE         ID   IT SAYS",
        "hv1   changes  file.managed  id0  is to be?[2J",
        "hv1   FAILS    file.managed  id1  no",
    ]


def test_all_as_declared_is_one_line():
    found = fleet_drift.report([judged(state(0))])
    assert (found["ok"], found["same"]) == (True, True)
    assert fleet_tables.drift(found) == "1 of 1 hosts are as declared"

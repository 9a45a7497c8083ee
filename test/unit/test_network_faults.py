"""The campaign of interfaces: its order, what counts as kept, and that every fault has a promised end."""

from __future__ import annotations

import argparse
import threading

import pytest
from faults import interfaces, network
from faults.subject import Run

from lab.proc import LabError
from lab.stacks import all_stacks
from lab.ui import Progress


def test_every_pair_comes_once_before_any_comes_again():
    pairs = len(all_stacks()) * len(interfaces.FAULTS)
    rows = network.order(3, pairs + 5)
    assert rows == network.order(3, pairs + 5)
    assert rows != network.order(4, pairs + 5)
    assert len({row[1:] for row in rows[:pairs]}) == pairs
    assert [row[0] for row in rows] == list(range(1, pairs + 6))
    assert network.order(3, 2, ["netplan"], ["reboot"]) == [(1, "netplan", "reboot"), (2, "netplan", "reboot")]


def test_every_fault_has_a_promised_end_and_says_what_is_wrong():
    assert {"good", "leased", "both_families",
            "wrong_port", "wrong_gateway", "wrong_address", "wrong_vlan", "retagged", "no_dhcp_server", "master_down",
            "link_cut", "minion_killed", "applier_killed_applying", "applier_killed_applied", "reboot", "power_cut",
            "disk_full", "second_change"} == set(interfaces.FAULTS)  # fmt: skip
    for course, wanted, reasons in interfaces.FAULTS.values():
        assert set(wanted) <= {"refused", "old", "new"}
        assert not reasons or "new" not in wanted
        assert course.__doc__


@pytest.mark.parametrize(
    ("end", "seconds", "differences", "kept"),
    [("old", 29.9, [], True), ("old", 30.1, [], False), ("new", 5, [], False), ("", 5, [], False),
     ("old", 5, ["link br0"], False)],
)  # fmt: skip
def test_a_promise_is_kept_or_not(end, seconds, differences, kept):
    run = Run("networkd", "wrong_vlan", ("old",), end=end, seconds=seconds, differences=differences)
    assert run.kept is kept
    assert ("NOT AS PROMISED" in network.told(run.report())) is not kept


@pytest.mark.parametrize(
    ("state", "undone"),
    [({"state": "confirmed", "id": "new"}, True), ({"state": "confirmed", "id": "old"}, False),
     ({"state": "rolled-back", "id": "new"}, False)],
)  # fmt: skip
def test_a_run_that_breaks_off_leaves_the_next_one_a_host_as_it_was(state, undone, monkeypatch):
    done = []

    class Subject:
        stack, window = "networkd", 20

        def look(self):
            return {}

        def status(self):
            return {"id": "old"}

        def over(self):
            return state

        def undo(self):
            done.append("undone")

        def spare(self):
            done.append("spared")

    def course(subject):
        raise LabError("not what was to be")

    monkeypatch.setitem(interfaces.FAULTS, "good", interfaces.Fault(course, ("new",), ()))
    run = interfaces.attempt(Subject(), "good")
    assert (run.differences, run.kept) == (["not what was to be"], False)
    assert sorted(done) == ["spared", *["undone"] * undone]


def test_whoever_stops_the_master_waits_until_nobody_else_needs_it():
    master, order, inside = network.Master(2), [], threading.Event()

    def alone(name):
        with master.held(alone=True):
            order.append(name)
            inside.set()

    with master.held(alone=False):
        threads = [threading.Thread(target=alone, args=(name,), daemon=True) for name in ("one", "another")]
        for thread in threads:
            thread.start()
        assert not inside.wait(0.2)
        order.append("shared")
    for thread in threads:
        thread.join(10)
    assert order[0] == "shared"
    assert sorted(order[1:]) == ["another", "one"]
    # Both have given it back whole.
    with master.held(alone=False), master.held(alone=False):
        pass


def test_the_course_writes_down_every_run_and_ends_every_machine(monkeypatch, tmp_path):
    ended = []

    class Machine:
        def __init__(self, name):
            self.name = name

        def destroy(self):
            ended.append(self.name)

    def start(_, name):
        if name == "netplan":
            raise LabError("does not start")
        return Machine(name)

    class Subject:
        def __init__(self, stacks, name, chance, window):
            self.stack, self.window, self.done = name, window, []

        def install(self):
            self.done.append("install")

    def attempt(subject, fault):
        assert subject.done == ["install"]
        return Run(subject.stack, fault, ("old",), end="old")

    monkeypatch.setattr(network, "start", start)
    monkeypatch.setattr(network, "Subject", Subject)
    monkeypatch.setattr(interfaces, "attempt", attempt)
    record = network.Record(tmp_path / "kept.json", {})
    options = argparse.Namespace(seed=1, window=20, at_once=2, network_count=9)
    rows = network.order(1, 60)
    with pytest.raises(LabError, match="does not start"):
        network.Course(None, options, record, Progress(quiet=True)).run(rows)
    assert sorted(ended) == ["ifupdown", "networkd", "networkmanager"]
    assert sorted(run["number"] for run in record.runs) == sorted(row[0] for row in rows if row[1] != "netplan")

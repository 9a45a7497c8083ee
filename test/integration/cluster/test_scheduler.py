"""What Pacemaker's own scheduler makes of the CIB that guests come to: who is moved live, and who is stopped for what.

``crm_simulate`` of a node runs it on texts of a CIB; the cluster itself has no part in that.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import yaml

from _utils import cluster_cib, cluster_derived, cluster_guests, cluster_ties, formula_config

pytestmark = [
    pytest.mark.usefixtures("course"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
ROOT = Path(__file__).resolve().parents[3]
NAMES = {"hv1": "hv1", "hv2": "hv2"}
ONE, TWO = {"one": {"size_mib": 64}}, {"one": {"size_mib": 64}, "two": {"size_mib": 64}}
# Seconds since 1970: after all that crm_simulate writes down.
LATER = int(time.time()) + 3600
_SUMMARY = re.compile(r"Transition Summary:\n(.*?)\n\n", re.DOTALL)
_ACTION = re.compile(r"\* (\w+) +(\S+)")
_DONE = re.compile(r"\* Resource action: (\S+) +(\S+) on (\S+)")
_PLACE = re.compile(r"\* (\S+)\t\(ocf\S+\):\t Started (\S+)")


def parsed(text):
    return ElementTree.fromstring(text)  # noqa: S314 - of the test's own node


def guest(*volumes, **ha):
    return {"ha": ha or True, "disks": [{"source_file": f"/dev/vm/{name}"} for name in volumes]}


def whole(volumes, **guests):
    """Return the configuration of a cluster with sbd, volumes and guests."""
    defaults = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
    storage = {"lock_manager": "dlm", "volume_groups": {"vm": {"devices": ["/dev/x"], "volumes": volumes}}}
    pillar = {"sbd": {"enabled": True, "devices": ["/dev/sbd"]}, "storage": storage}
    return {**formula_config.merge(defaults, pillar), "nodes": list(NAMES), "guests": guests}


class Step(NamedTuple):
    """One transition.

    Attributes:
        summary: what becomes of each resource for which something is done.
        done: the operations in their order: resource, operation, node.
        before: where each resource is before.
        text: the CIB after it.
    """

    summary: dict[str, str]
    done: list[tuple[str, str, str]]
    before: dict[str, str]
    text: str


class Scheduler:
    """Runs crm_simulate on a node, on a CIB of two nodes that are online."""

    def __init__(self, site):
        self.site = site
        version = parsed(site.run("hv1", "cibadmin", "--query")).get("crm_feature_set")
        root = parsed(cluster_cib.empty())
        root.attrib |= {"validate-with": "pacemaker-3.7", "epoch": "1", "num_updates": "0", "admin_epoch": "0"}
        root.attrib |= {"crm_feature_set": version, "have-quorum": "1"}
        states = ElementTree.SubElement(root, "status")
        for number, node in enumerate(NAMES, 1):
            ElementTree.SubElement(root.find("configuration/nodes"), "node", id=str(number), uname=node)
            up = {"in_ccm": "true", "crmd": "online", "join": "member", "expected": "member"}
            state = ElementTree.SubElement(states, "node_state", {"id": str(number), "uname": node, **up})
            ElementTree.SubElement(ElementTree.SubElement(state, "lrm", id=str(number)), "lrm_resources")
        self.bare = ElementTree.tostring(root, encoding="unicode")

    def step(self, text, *words):
        """Return what one transition does."""
        self.site.run("hv1", "sh", "-c", "cat > /tmp/sim.xml", stdin=text)
        argv = ["crm_simulate", "--xml-file", "/tmp/sim.xml", "--simulate", "--save-output", "/tmp/simulated.xml"]
        said = self.site.run("hv1", *argv, *words)
        summary = _SUMMARY.search(said)
        places = dict(_PLACE.findall(said.partition("Transition Summary")[0]))
        rows = {name: action for action, name in _ACTION.findall(summary[1])} if summary else {}
        return Step(rows, _DONE.findall(said), places, self.site.run("hv1", "cat", "/tmp/simulated.xml"))

    def declared(self, text, cluster):
        """Return a CIB with what is declared."""
        return cluster_cib.apply(text, cluster_derived.declared(cluster), NAMES).text

    def settled(self, cluster):
        """Return the CIB of a cluster in which nothing has to be done any more."""
        found = self.step(self.declared(self.bare, cluster))
        assert found.summary["web"] == "Start"
        return self.quiet(found)

    def quiet(self, found):
        """Return what is so once nothing has to be done any more after a step."""
        while found.summary:
            found = self.step(found.text)
        return found


@pytest.fixture(scope="module", name="scheduler")
def a_scheduler(site) -> Scheduler:
    return Scheduler(site)


def told_to_move(text, resource, node):
    root = parsed(text)
    rows = root.find("configuration/constraints")
    words = {"id": f"cli-prefer-{resource}", "rsc": resource, "role": "Started", "node": node, "score": "INFINITY"}
    ElementTree.SubElement(rows, "rsc_location", words)
    return ElementTree.tostring(root, encoding="unicode")


def moved(text, resource, source, target, *, arrived=True):
    """Return a CIB after a resource has been moved, and no more: its end on the first node is still to come."""
    root = parsed(text)
    # As Pacemaker writes them: the history of moves stands beside the last operation.
    digest = next(
        one.get("op-digest") for one in root.iter("lrm_rsc_op")
        if (one.get("id"), one.get("operation"), one.get("rc-code")) == (f"{resource}_last_0", "start", "0")
    )  # fmt: skip
    for node, operation in ((source, "migrate_to"), (target, "migrate_from"))[: 2 if arrived else 1]:
        rows = root.find(f"status/node_state[@uname='{node}']//lrm_resource[@id='{resource}']")
        for one in rows.findall("lrm_rsc_op[@operation='monitor']"):
            if one.get("interval") != "0":
                rows.remove(one)
        words = {
            "id": f"{resource}_{operation}_0", "operation_key": f"{resource}_{operation}_0", "operation": operation,
            "transition-key": "1:1:0:x", "transition-magic": "0:0;1:1:0:x", "on_node": node, "call-id": "101",
            "last-rc-change": str(LATER), "rc-code": "0", "op-status": "0", "interval": "0", "op-digest": digest,
            "migrate_source": source, "migrate_target": target, "crm_feature_set": root.get("crm_feature_set"),
        }  # fmt: skip
        ElementTree.SubElement(rows, "lrm_rsc_op", words)
    return ElementTree.tostring(root, encoding="unicode")


def test_a_guest_is_stopped_for_a_volume_that_has_still_to_start_and_for_no_other(scheduler):
    before = scheduler.settled(whole(ONE, web=guest("one"))).text
    after = whole(TWO, web=guest("one", "two"))
    assert scheduler.step(scheduler.declared(before, after)).summary == {"web": "Restart", "vm-two": "Start"}
    # As the state does it.
    fewer = cluster_ties.without_disks(after, {"web": ["/dev/vm/two"]})
    started = scheduler.step(scheduler.declared(before, fewer))
    assert started.summary == {"vm-two": "Start"}
    tied = scheduler.step(scheduler.declared(started.text, after))
    # It has started on the other node.
    assert tied.summary == {"vm-two": "Migrate"}
    end = scheduler.step(tied.text)
    assert end.summary == {}
    assert end.before["vm-two"] == end.before["vm-one"] == end.before["web"]


def test_a_volume_that_stays_tied_to_its_guest_stops_nobody_and_moves_with_it(scheduler):
    before = scheduler.settled(whole(TWO, web=guest("one", "two")))
    after = whole(TWO, web=guest("two"))
    volumes = cluster_guests.volumes(after["storage"])
    held = cluster_ties.with_disks(after, cluster_ties.leaving(after, volumes, before.text))
    kept = scheduler.step(scheduler.declared(before.text, held))
    assert kept.summary == {}
    other = next(node for node in NAMES if node != before.before["web"])
    moves = {"vm-one": "Migrate", "vm-two": "Migrate", "web": "Migrate"}
    assert scheduler.step(told_to_move(kept.text, "web", other)).summary == moves
    # Without the tie it would stay behind.
    untied = scheduler.declared(kept.text, after)
    assert scheduler.step(told_to_move(untied, "web", other)).summary == {"vm-two": "Migrate", "web": "Migrate"}


@pytest.fixture(scope="module", name="move")
def one_that_has_begun(scheduler):
    """The CIB of a guest that is told to move, where it is, and where it is to be."""
    rest = scheduler.settled(whole(ONE, web=guest("one")))
    source = rest.before["web"]
    target = next(node for node in NAMES if node != source)
    return told_to_move(rest.text, "web", target), source, target


def test_a_change_of_the_cib_while_a_volume_leaves_does_no_harm(scheduler, move):
    text, source, target = move
    found = scheduler.step(moved(text, "vm-one", source, target, arrived=False))
    assert found.summary == {"vm-one": "Migrate", "web": "Migrate"}


def test_a_change_of_the_cib_while_a_volume_arrives_ends_the_live_move(scheduler, move):
    text, source, target = move
    found = scheduler.step(moved(text, "vm-one", source, target))
    # Why changes wait for it, see cluster_pace.
    assert found.summary == {"web": "Move"}
    assert found.done.index(("web", "stop", source)) < found.done.index(("web", "start", target))


def test_a_change_of_the_cib_while_the_guest_is_on_its_way_leaves_it_running(scheduler, move):
    text, source, target = move
    after = moved(moved(text, "vm-one", source, target), "web", source, target, arrived=False)
    done = scheduler.step(after).done
    # It is stopped where it is not any more; a start of what runs does nothing.
    assert [row for row in done if row[:2] == ("web", "stop")] == [("web", "stop", source)]
    assert [row for row in done if row[:2] == ("vm-one", "stop")] == [("vm-one", "stop", source)]
    assert ("web", "start", target) in done


# ---- what ``ha`` says of where a guest runs ----


def told_to_stop(text, resource):
    root = parsed(text)
    meta = root.find(f".//primitive[@id='{resource}']/meta_attributes")
    words = {"id": f"{resource}-told", "name": "target-role", "value": "Stopped"}
    ElementTree.SubElement(meta, "nvpair", words)
    return ElementTree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("best", NAMES)
def test_a_guest_starts_where_it_is_said_to_start_best_and_does_not_go_there_later(scheduler, best):
    other = next(node for node in NAMES if node != best)
    found = scheduler.settled(whole(ONE, web=guest("one", prefer=[best, other])))
    assert found.before["web"] == best
    turned = scheduler.declared(found.text, whole(ONE, web=guest("one", prefer=[other, best])))
    assert scheduler.step(turned).summary == {}
    # When the node is lost it goes to the next one, and it stays there.
    assert scheduler.quiet(scheduler.step(found.text, "--node-fail", best)).before["web"] == other


@pytest.mark.parametrize(("first", "then"), [("db", "web"), ("web", "db")])
def test_a_guest_starts_after_others_where_both_start_and_alone_where_not(scheduler, first, then):
    guests = {first: guest("one"), then: guest("two", after=[first])}
    text = scheduler.declared(scheduler.bare, whole(TWO, **guests))
    names = [name for name, operation, _ in scheduler.step(text).done if operation == "start"]
    assert names.index(first) < names.index(then)
    alone = scheduler.step(told_to_stop(text, first))
    assert [name for name in alone.summary if name in guests] == [then]
    # It is no must for one that runs.
    rest = scheduler.quiet(scheduler.step(text))
    assert scheduler.step(told_to_stop(rest.text, first)).summary == {first: "Stop"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_guest_runs_beside_another_one_and_without_it_unless_that_is_a_must(scheduler, strict):
    rest = scheduler.settled(whole(TWO, db=guest("one"), web=guest("two", affinity=["db"], strict=strict)))
    assert rest.before["web"] == rest.before["db"]
    other = next(node for node in NAMES if node != rest.before["db"])
    # That is worth more than to stay, and it goes along live.
    moves = dict.fromkeys(("vm-one", "vm-two", "db", "web"), "Migrate")
    assert scheduler.step(told_to_move(rest.text, "db", other)).summary == moves
    stops = scheduler.step(told_to_stop(rest.text, "db")).summary
    assert {name: stops.get(name) for name in ("db", "web")} == {"db": "Stop", "web": "Stop" if strict else None}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("lost", ["low", "high"])
@pytest.mark.parametrize(("high", "low"), [("db", "web"), ("web", "db")])
def test_of_two_that_are_apart_the_one_with_less_priority_gives_way(scheduler, strict, lost, high, low):
    """On the last node a must leaves one of them without a place; of a wish nothing is left there."""
    guests = {high: guest("one", priority=10), low: guest("two", anti_affinity=[high], strict=strict)}
    rest = scheduler.settled(whole(TWO, **guests))
    assert rest.before[high] != rest.before[low]
    dead = rest.before[{"low": low, "high": high}[lost]]
    last = next(node for node in NAMES if node != dead)
    end = scheduler.quiet(scheduler.step(rest.text, "--node-fail", dead))
    assert {name: end.before.get(name) for name in guests} == {high: last, low: None if strict else last}

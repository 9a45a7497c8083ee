"""Clusters as the master sees them: the views of hosts put together, as data and as a table."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import salt.client

from _runners import fleet
from _utils import fleet_clusters


def node(name, **over):
    flags = {"online": True, "standby": False, "maintenance": False, "unclean": False, "dc": name == "hv1"}
    return {"name": name, **flags, **over}


def row(name, *nodes, **over):
    return {"name": name, "role": "Started", "nodes": list(nodes), "failed": False, **over}


VIEW: dict[str, Any] = {
    "name": "c",
    "running": True,
    "quorate": True,
    "votes": 2,
    "votes_needed": 1,
    "nodes": [node("hv1"), node("hv2")],
    "fencing": {"enabled": True, "devices": [row("fence", "hv2")]},
    "resources": [row("vip", "hv1"), row("long-name", role="Stopped", failed=True)],
    "failures": [],
    "problems": [],
}


def view(**over):
    return {**copy.deepcopy(VIEW), **over}


def test_hosts_that_agree_are_one_cluster():
    found = fleet_clusters.merged({"hv1": view(), "hv2": view(), "nas": None})
    assert set(found) == {"c"}
    assert (found["c"]["asked"], found["c"]["minions"], found["c"]["problems"]) == ("hv1", ["hv1", "hv2"], [])
    assert "running" not in found["c"]


def test_the_view_of_a_node_with_quorum_counts():
    lost = view(quorate=False, problems=["no quorum"], nodes=[])
    found = fleet_clusters.merged({"hv1": lost, "hv2": view()})["c"]
    assert (found["quorate"], found["asked"], found["problems"]) == (True, "hv2", ["hv1: no quorum"])


def test_hosts_that_see_each_other_differently_are_named():
    other = view(nodes=[node("hv1", online=False), node("hv2")])
    found = fleet_clusters.merged({"hv1": view(), "hv2": other})["c"]
    assert found["problems"] == ["hv2 sees other nodes online than hv1: hv2"]


def test_two_clusters_and_a_host_that_failed():
    found = fleet_clusters.merged({"hv1": view(), "hv5": view(name="d"), "hv9": "Traceback:\n  boom"})
    assert set(found) == {"c", "d", ""}
    assert found[""]["problems"] == ["hv9: Traceback: boom"]


def test_the_table_for_people():
    failed = {"resource": "vip", "operation": "start", "node": "hv2", "reason": "no card", "at": "today"}
    failed["remedy"] = "do"
    found = fleet_clusters.merged({"hv1": view(failures=[failed], problems=["hv3 is offline"])})
    assert fleet_clusters.table(found).splitlines() == [
        "cluster c: quorum, 2 votes, 1 needed (as hv1 sees it)",
        "  nodes      hv1        online   coordinates",
        "             hv2        online",
        "  fencing    fence      Started  on hv2",
        "  resources  vip        Started  on hv1",
        "             long-name  Stopped  FAILED",
        "  failed: vip start on hv2: no card (today)",
        "    do",
        "  ! hv3 is offline",
    ]


def test_the_table_says_in_capitals_what_is_bad():
    lost = view(quorate=False, nodes=[node("hv1", online=False, unclean=True)], resources=[],
                fencing={"enabled": False, "devices": []})  # fmt: skip
    text = fleet_clusters.table(fleet_clusters.merged({"hv1": lost}))
    assert "NO QUORUM" in text
    assert "OFFLINE, unclean" in text
    assert "fencing       OFF" in text


def test_no_cluster():
    assert fleet_clusters.table(fleet_clusters.merged({"hv1": None})) == "No host that was asked is in a cluster."


def test_hosts_that_do_not_answer_are_named():
    # As Salt's client says it of minions that it has asked in vain.
    text = fleet_clusters.table(fleet_clusters.merged({"hv1": False, "hv2": False, "nas": None}))
    assert text.splitlines() == [
        "These hosts could not be asked:", "  hv1: it does not answer", "  hv2: it does not answer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("opts", "printed"),
    [
        ({"fun": "fleet.cluster"}, True),
        ({"fun": "fleet.cluster", "output": "json"}, False),
        ({}, False),
    ],
)
def test_people_get_a_table_and_programs_get_data(monkeypatch, opts, printed):
    asked = []

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def cmd(self, *args, **kwargs):
            asked.append((args, kwargs))
            return {"hv1": view()}

    monkeypatch.setattr(fleet, "__opts__", opts, raising=False)
    utils = {"fleet_clusters.merged": fleet_clusters.merged, "fleet_clusters.table": fleet_clusters.table}
    monkeypatch.setattr(fleet, "__utils__", utils, raising=False)
    monkeypatch.setattr(salt.client, "get_local_client", lambda mopts: Client())
    found = fleet.cluster("hv*")
    if printed:
        assert set(found) == {"outputter", "data"}
        assert found["data"].startswith("cluster c: quorum")
    else:
        assert found["c"]["quorate"] is True
    assert asked == [(("hv*", "hypervisor.cluster"), {"tgt_type": "glob", "timeout": 30})]


def test_guests_of_a_cluster_have_a_place_of_their_own_in_the_table():
    guest = {"name": "vip", "role": "Started", "node": "hv1"}
    lines = fleet_clusters.table(fleet_clusters.merged({"hv1": view(guests=[guest])})).splitlines()
    assert "  resources  long-name  Stopped  FAILED" in lines
    assert "  guests     vip        Started  on hv1" in lines

"""From bare hosts to a cluster, one more node, one less, and everything that goes wrong between; in this order."""

from __future__ import annotations

import base64
import json
import os

import pytest
from cluster_site import SEARCH, all_online, changes, failures, forms, soon

pytestmark = [
    pytest.mark.usefixtures("course"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]

CONF, KEY = "/etc/corosync/corosync.conf", "/etc/corosync/authkey"
HANDED_OUT = "/srv/salt/hypervisor-cluster/hv1.json"


def pids(site, *nodes):
    """Return the process of corosync by node."""
    return {node: site.run(node, "systemctl", "show", "-P", "MainPID", "corosync").strip() for node in nodes}


def test_the_prediction_touched_nothing_and_came_true(course):
    assert failures(course.predicted) == {}
    assert course.touched == {"hv1": "", "hv2": ""}
    happened = changes(course.done)
    happened["hv2"] |= changes({"hv2": course.early})["hv2"]
    expected = {
        node: {name for name, row in rows.items() if row["result"] is None} for node, rows in course.predicted.items()
    }
    assert happened == expected


def test_a_node_that_is_too_early_fails_in_time_and_says_for_whom_it_waits(course):
    failed = {name: row for name, row in course.early.items() if row["result"] is False}
    assert failed["cluster_key"]["comment"].startswith(
        "hv1 (cluster:bootstrap_node) has not handed out the cluster's key to hv2 within"
    )
    assert failed["cluster_key"]["duration"] < 20_000
    # What the package would have started has not been: there is no key.
    assert failed["cluster_corosync_service"]["comment"].startswith("One or more requisite failed")


def test_two_nodes_have_quorum_and_the_second_run_is_silent(site, course):
    assert failures(course.done) == {}
    assert failures(course.second) == {}
    assert changes(course.second) == {"hv1": set(), "hv2": set()}
    all_online(site, ["hv1", "hv2"])
    assert site.members("hv1") == {"hv1": "joined", "hv2": "joined"}
    assert "2Node" in site.flags("hv2")


def key_of(site, node):
    return base64.b64decode(site.run(node, "base64", "-w0", KEY))


def test_the_key_is_where_it_belongs_and_nowhere_else(site):
    keys = {}
    for node in ("hv1", "hv2"):
        assert site.run(node, "stat", "-c", "%a %U:%G", KEY).strip() == "400 root:root"
        keys[node] = key_of(site, node)
    assert keys["hv1"] == keys["hv2"]
    assert len(keys["hv1"]) == 256
    words = forms(keys["hv1"])
    for host in ("controller", "hv1", "hv2", "hv3"):
        assert site.found(host, *words) == []
    # It can fail: what a host was told on its command line is found.
    told = next(word for word in words if word.isalnum())
    said = site.run("hv1", "sh", "-c", f"exec python3 -c '{SEARCH}' {told.decode()}", stdin=told.hex())
    assert "/proc/" in said
    # And so is what stands in the midst of a file, as it is.
    for host, path in (("controller", "/var/cache/salt/master/planted"), ("hv1", "/tmp/planted")):
        planted = base64.b64encode(b"before" + keys["hv1"] + b"after").decode()
        site.run(host, "sh", "-c", f"base64 --decode > {path}", stdin=planted)
        try:
            assert site.found(host, *words) == [path]
        finally:
            site.run(host, "rm", path)


def test_no_event_on_the_masters_bus_holds_the_key(site, course):
    sealed = json.loads(site.run("controller", "cat", HANDED_OUT))["sealed"]["hv2"]["blob"]
    assert sealed.encode() in course.heard, "nobody listened when the key was handed out"
    assert [word for word in forms(key_of(site, "hv1")) if word in course.heard] == []


def test_a_third_node_joins_without_a_restart(site):
    before = pids(site, "hv1", "hv2")
    assert {"2Node", "WaitForAll"} <= set(site.flags("hv1"))
    site.declare("hv1", "hv2", "hv3")
    predicted = site.highstate("hv1", test=True)["hv1"]["cluster_corosync_conf"]
    assert set(predicted["changes"]["running"]) == {"node hv3", "quorum.two_node"}
    done = site.converge("hv1", "hv2", "hv3")
    assert changes(done)["hv1"] == {"cluster_key_handed_out", "cluster_corosync_conf"}
    assert changes(done)["hv2"] <= {"cluster_corosync_conf"}
    all_online(site, ["hv1", "hv2", "hv3"])
    assert pids(site, "hv1", "hv2") == before
    # What follows from two nodes goes with them, on those that have started as two as well.
    for node in ("hv1", "hv2", "hv3"):
        assert not {"2Node", "WaitForAll"} & set(site.flags(node))
    assert changes(site.converge("hv1", "hv2", "hv3")) == {"hv1": set(), "hv2": set(), "hv3": set()}


def test_what_was_edited_by_hand_is_put_back(site):
    before = pids(site, "hv1", "hv2", "hv3")
    site.run("hv2", "sed", "-i", "s/token: 1500/token: 4000/", CONF)
    site.run("hv2", "corosync-cfgtool", "-R")
    soon(lambda: "= 4000" in site.run("hv2", "corosync-cmapctl", "-g", "totem.token"), 15)
    predicted = site.highstate("hv2", test=True)["hv2"]
    assert {name for name, row in predicted.items() if row["result"] is None} == {"cluster_corosync_conf"}
    assert "= 4000" in site.run("hv2", "corosync-cmapctl", "-g", "totem.token")
    done = site.converge("hv2")["hv2"]["cluster_corosync_conf"]["changes"]
    assert done["running"] == {"totem.token": {"old": "4000", "new": "1500"}}
    assert done["file"] == {"removed": ["    token: 4000"], "added": ["    token: 1500"]}
    assert "= 1500" in site.run("hv2", "corosync-cmapctl", "-g", "totem.token")
    assert pids(site, "hv1", "hv2", "hv3") == before


def test_corosync_judges_a_file_before_it_replaces_the_old_one(site):
    """What corosync reads beside its file has a key that it does not know: it refuses, and the old file stays."""
    old = site.run("hv3", "cat", CONF)
    wrong = "/etc/corosync/uidgid.d/wrong"
    site.run("hv3", "sh", "-c", f"cat > {wrong}", stdin="uidgid {\n  shell: 0\n}\n")
    site.declare("hv1", "hv2", "hv3", token=2500)
    try:
        row = site.highstate("hv3")["hv3"]["cluster_corosync_conf"]
    finally:
        site.run("hv3", "rm", wrong)
        site.declare("hv1", "hv2", "hv3")
    why = f"parser error: {wrong}:2: uidgid: Only uid and gid are allowed items"
    assert (row["result"], row["comment"], row["changes"]) == (False, f"corosync: corosync: {why}.", {})
    assert site.run("hv3", "cat", CONF) == old
    left = site.run("hv3", "ls", "-A", "/etc/corosync").split()
    assert left == ["authkey", "corosync.conf", "hypervisor", "uidgid.d"]


@pytest.mark.parametrize(
    ("over", "where", "key"),
    [
        ({"name": "other"}, "cluster:allow_restart: true", "totem.cluster_name: lab -> other"),
        ({"quorum": {"wait_for_all": True}}, "cluster:allow_restart: true", "quorum.wait_for_all: 0 -> 1"),
        (
            {"crypto": {"cipher": "aes128", "hash": "sha256"}, "allow_restart": True},
            "Stop the cluster on all nodes",
            "totem.crypto_cipher: aes256 -> aes128",
        ),
        (
            {"links": {"0": {"port": 5500}}},
            "Stop the cluster on all nodes",
            "totem.interface.0.mcastport: None -> 5500",
        ),
    ],
)
def test_what_a_running_cluster_cannot_take_up_is_refused(site, over, where, key):
    before, file = pids(site, "hv2"), site.run("hv2", "cat", CONF)
    site.declare("hv1", "hv2", "hv3", **over)
    try:
        for test in (True, False):
            row = site.highstate("hv2", test=test)["hv2"]["cluster_corosync_conf"]
            assert (row["result"], row["changes"]) == (False, {})
            assert row["comment"].startswith("Nothing has changed: ")
            assert where in row["comment"]
            assert row["comment"].endswith(key)
    finally:
        site.declare("hv1", "hv2", "hv3")
    assert (pids(site, "hv2"), site.run("hv2", "cat", CONF)) == (before, file)


def test_another_id_of_a_running_node_is_refused(site):
    before, file = pids(site, "hv2"), site.run("hv2", "cat", CONF)
    nodes = site.cluster["nodes"]
    site.declare("hv1", "hv2", "hv3", nodes={**nodes, "hv3": {**nodes["hv3"], "id": 3000}}, allow_restart=True)
    try:
        for node in ("hv2", "hv3"):
            row = site.highstate(node)[node]["cluster_corosync_conf"]
            assert (row["result"], row["changes"]) == (False, {})
            assert "Stop the cluster on all nodes" in row["comment"]
            assert row["comment"].endswith("id of node hv3: 3 -> 3000")
    finally:
        site.declare("hv1", "hv2", "hv3")
    assert (pids(site, "hv2"), site.run("hv2", "cat", CONF)) == (before, file)


def test_with_consent_the_nodes_restart_one_after_the_other_and_quorum_is_kept(site):
    before = pids(site, "hv1", "hv2", "hv3")
    # hv2 alone does not begin: its turn is after hv1's.
    site.declare("hv1", "hv2", "hv3", name="renamed", allow_restart=True, wait_seconds=3)
    row = site.highstate("hv2")["hv2"]["cluster_corosync_conf"]
    assert row["result"] is False
    assert "these nodes come before this one and have not been restarted: hv1" in row["comment"]
    assert pids(site, "hv1", "hv2", "hv3") == before
    site.declare("hv1", "hv2", "hv3", name="renamed", allow_restart=True, wait_seconds=180)
    since = int(site.run("hv1", "date", "+%s"))
    done = site.converge("hv3", "hv2", "hv1")
    spans = {node: site.outages(node, since) for node in before}
    assert {node: len(rows) for node, rows in spans.items()} == {"hv1": 1, "hv2": 1, "hv3": 1}
    # Never two nodes at once without quorum: each was back before the next one went.
    assert spans["hv1"][0][1] < spans["hv2"][0][0]
    assert spans["hv2"][0][1] < spans["hv3"][0][0]
    for rows in done.values():
        change = rows["cluster_corosync_conf"]["changes"]["running"]
        assert change == {"totem.cluster_name": {"old": "lab", "new": "renamed"}}
    after = pids(site, "hv1", "hv2", "hv3")
    assert not set(before.values()) & set(after.values())
    assert changes(site.converge("hv1", "hv2", "hv3")) == {"hv1": set(), "hv2": set(), "hv3": set()}


def test_a_node_whose_corosync_was_killed_comes_back(site):
    site.run("hv2", "systemctl", "kill", "--signal=KILL", "corosync")
    soon(lambda: site.online("hv1") == {"hv1", "hv3"}, what="hv1 misses hv2")
    done = site.converge("hv2")
    assert {"cluster_corosync_service"} <= changes(done)["hv2"]
    all_online(site, ["hv1", "hv2", "hv3"])


def test_a_run_while_a_node_is_down_succeeds_and_says_so(site):
    site.run("hv3", "systemctl", "stop", "pacemaker", "corosync")
    done = site.converge("hv1")
    assert changes(done) == {"hv1": set()}
    assert done["hv1"]["cluster_quorum"]["comment"] == "The cluster has quorum. Not there now: hv3."
    # Two of three are left, so neither can go now.
    nodes = site.cluster["nodes"]
    site.cluster["nodes"] = {**nodes, "hv2": {**nodes["hv2"], "ensure": "absent"}}
    site.write()
    row = site.highstate("hv2")["hv2"]["cluster_left"]
    assert row["result"] is False
    assert "there are 2 votes and 2 are needed" in row["comment"]
    assert site.quorate("hv2")
    site.cluster["nodes"] = nodes
    site.write()
    site.converge("hv3")
    all_online(site, ["hv1", "hv2", "hv3"])


def test_a_node_leaves_and_the_others_forget_it(site):
    nodes = site.cluster["nodes"]
    site.cluster["nodes"] = {**nodes, "hv3": {**nodes["hv3"], "ensure": "absent"}}
    site.cluster["wait_seconds"] = 3
    site.write()
    # As long as it runs, the others do not go on without it.
    row = site.highstate("hv1")["hv1"]["cluster_corosync_conf"]
    assert row["result"] is False
    assert "declared with ensure: absent and have not left within 3 s: hv3" in row["comment"]
    assert row["changes"] == {}
    assert site.members("hv1")["hv3"] == "joined"
    site.cluster["wait_seconds"] = 60
    site.write()
    predicted = site.highstate("hv3", test=True)["hv3"]["cluster_left"]
    assert predicted["result"] is None
    assert site.quorate("hv3")
    done = site.converge("hv2", "hv1", "hv3")
    assert done["hv3"]["cluster_left"]["changes"] == predicted["changes"]
    assert done["hv1"]["cluster_members_forgotten"]["changes"] == {"forgotten": ["hv3"]}
    all_online(site, ["hv1", "hv2"])
    assert [one.get("name") for one in site.monitor("hv2").findall("nodes/node")] == ["hv1", "hv2"]
    assert {"2Node", "WaitForAll"} <= set(site.flags("hv1"))
    assert site.run("hv3", "systemctl", "is-enabled", "corosync", "pacemaker", check=False).split() == ["disabled"] * 2
    assert site.run("hv3", "ls", "-A", "/etc/corosync").split() == ["hypervisor", "uidgid.d"]
    assert site.run("hv3", "ls", "-A", "/etc/corosync/hypervisor", "/var/lib/pacemaker/cib").split() == [
        "/etc/corosync/hypervisor:",
        "/var/lib/pacemaker/cib:",
    ]
    # Not even by hand does it start again.
    site.run("hv3", "systemctl", "start", "corosync", check=False)
    assert site.run("hv3", "systemctl", "is-active", "corosync", check=False).strip() == "inactive"
    served = json.loads(site.run("controller", "cat", HANDED_OUT))
    assert set(served["sealed"]) == {"hv2"}
    assert changes(site.converge("hv1", "hv2", "hv3")) == {"hv1": set(), "hv2": set(), "hv3": set()}


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"quorum": {"two_node": True}}, "cluster:quorum:two_node: not allowed: there are 3 nodes (hv1, hv2, hv3)"),
        ({"bootstrap_node": "hv9"}, "cluster:bootstrap_node: hv9 is not among the nodes"),
        ({"keys": {"corosync": "fix-me-please"}}, "cluster:keys:corosync: is not base64"),
        (
            {"nodes": {f"hv{n}": {"id": n, "addresses": ["192.0.2.9"]} for n in (1, 2)}},
            "cluster:nodes:hv2:addresses: 192.0.2.9 is an address of hv1 already",
        ),
        (
            {"stonith": {"fence": {"agent": "fence_lab", "targets": ["hv1"], "runs_on": ["hv1"]}}},
            "cluster:stonith:fence:runs_on: fence would run on hv1 alone, and a host that hangs cannot switch itself",
        ),
    ],
)
def test_a_wrong_pillar_changes_nothing(site, over, text):
    before = site.cluster
    site.declare("hv1", "hv2", "hv3", **over)
    try:
        said = site.run("hv1", "salt-call", "--log-level=quiet", "state.highstate", check=False)
    finally:
        site.cluster = before
        site.write()
    assert text in said
    assert "fix-me-please" not in said
    assert changes(site.converge("hv1")) == {"hv1": set()}


def test_a_host_that_is_not_the_node_it_should_be_is_refused_by_name(site):
    before = site.cluster
    wrong = {"id": 3, "addresses": ["192.0.2.3"], "name": "other"}
    site.cluster = {**before, "nodes": {**before["nodes"], "hv3": wrong}}
    site.write()
    try:
        rows = site.highstate("hv3")["hv3"]
    finally:
        site.cluster = before
        site.write()
    lines = rows["cluster_node"]["comment"].splitlines()
    assert lines[0].startswith('cluster:nodes:hv3:name: "other" is not what this host calls itself; must be "hv3"')
    assert lines[1].startswith("cluster:nodes:hv3:addresses: 192.0.2.3 is not an address of this host; it has: ")
    assert {name for name, row in rows.items() if row["changes"]} == set()

"""The steps of docs/recovery.rst that need no shared disk, as the page has them; the device cuts power for real."""

from __future__ import annotations

import json
import os
import re
import time
from functools import partial

import pytest
from cluster_site import all_online, changes, failures, soon
from fence_lab import Device, kill
from fenced_site import PROBE, declare, fence, move, processes, processes_on, resource

pytestmark = [
    pytest.mark.usefixtures("course", "fenced"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
FOLDER = "/run/recovery-test"
LATE = {"agent": "ocf:pacemaker:attribute", "parameters": {"state": f"{FOLDER}/late"}}
UNCLEAN, FAILED = "Node hv2: UNCLEAN (offline)", "Failed Fencing Actions:"


@pytest.fixture(scope="module")
def fenced(site, device):
    """Two nodes, the device, a resource, and one that cannot start yet."""
    declare(site, device)
    site.cluster["resources"] = {"probe": PROBE, "late": LATE}
    site.write()
    site.converge("hv2", "hv1")
    soon(lambda: resource(site, "hv1"), what="the resource runs")


@pytest.fixture(autouse=True)
def mended(site, device):
    """Whatever becomes of a test, the device works for the next one, and both hosts are on."""
    yield
    device.broken = device.stays_off = False
    device.slow = 0
    for node in ("hv1", "hv2"):
        switched_on(site, device, node)


def shown(site, node="hv1"):
    """Return what the page's first look shows."""
    return site.run(node, "crm_mon", "-1", "--inactive")


def code(site, node, *argv):
    """Run a command of a person; return its code."""
    return site.lab.run(node, list(argv), check=False, timeout=120).returncode


def switched_on(site, device, node):
    """Switch a host on, as a person does; it joins by itself."""
    device.act("on", node)
    back(site, node)


def back(site, node):
    """Wait until a host that boots is a node again."""
    site.lab.hosts.wait_ssh(node)
    all_online(site, ["hv1", "hv2"])


def given_up(site, device, seconds=0):
    """Kill the node that has the resource while the device does nothing; watch until Pacemaker does not try any more.

    As long as that takes, and for these seconds at least, nothing may be recovered.
    """
    move(site, "hv2")
    # What the history says of earlier failures is another matter.
    site.run("hv1", "stonith_admin", "--cleanup", "--history", "*")
    assert FAILED not in shown(site)
    device.broken = True
    since, until = site.run("hv1", "date", "+%s").strip(), time.monotonic() + seconds
    kill(site.lab, "hv2")
    # It counts on where a person has had the node fenced: how many tries that are is another matter, too.
    words = ["journalctl", "--unit=pacemaker", f"--since=@{since}", "--grep=Too many failures .* to fence hv2"]

    def watched():
        assert resource(site, "hv1") != "hv1"
        assert processes_on(site, "hv1") == []
        return time.monotonic() > until and code(site, "hv1", *words) == 0

    soon(watched, 120, "Pacemaker has given up")


@pytest.mark.long
def test_a_node_that_is_dead_is_fenced_and_joins_once_it_is_switched_on(site, device):
    move(site, "hv2")
    device.stays_off, device.slow = True, 5
    kill(site.lab, "hv2")
    soon(lambda: UNCLEAN in shown(site), 30, "hv2 is unclean")
    assert processes_on(site, "hv1") == []
    # Pacemaker may list a node there that has left long ago.
    soon(lambda: re.search(r"OFFLINE: \[.* hv2 .*\]", shown(site)), 120, "hv2 is fenced")
    soon(lambda: resource(site, "hv1") == "hv1", 30, "what hv2 ran has started")
    switched_on(site, device, "hv2")
    soon(lambda: "Online: [ hv1 hv2 ]" in shown(site), what="both are shown as online")
    assert processes(site) == ["hv1"]
    soon(lambda: code(site, "controller", "salt", "hv2", "test.ping") == 0, what="the minion answers")
    done = site.run("controller", "salt", "--out=json", "hv2", "state.highstate", timeout=300)
    rows = json.loads(done)["hv2"].values()
    assert [row["__id__"] for row in rows if row["result"] is not True or row["changes"]] == []


def misses(site, node, other):
    """Whether a node counts the other one as lost."""
    return f"Node {other}: UNCLEAN (offline)" in shown(site, node)


def heard(site, node):
    """Whether a node hears the other one over each link that there is."""
    text = site.run(node, "corosync-cfgtool", "-s")
    return "disconnected" not in text and len(re.findall(r"nodeid: +\d:\tconnected$", text, re.MULTILINE)) == 1


def silent(device):
    """Whether a device is asked for nothing, for some seconds."""
    before = len(device.log)
    time.sleep(5)
    return len(device.log) == before


@pytest.mark.long
def test_nodes_that_do_not_hear_each_other_both_have_quorum_and_come_together_again(site, device):
    """The device does nothing, so there is time to look; else each would have the other one switched off."""
    place = resource(site, "hv1")
    device.broken = True
    began = time.time()
    others = {"hv1": "hv2", "hv2": "hv1"}
    routes = {node: ["unreachable", f"{site.lab.hosts.addresses[other]}/32"] for node, other in others.items()}
    assert heard(site, "hv1")
    for node, route in routes.items():
        site.run(node, "ip", "route", "add", *route)
    try:
        for node, other in others.items():
            soon(partial(misses, site, node, other), 30, f"{node} misses {other}")
            assert re.search(r"nodeid: +\d:\tdisconnected$", site.run(node, "corosync-cfgtool", "-s"), re.MULTILINE)
            assert "reachable" not in site.run(node, "corosync-cfgtool", "-n")
            assert "Quorate:          Yes" in site.run(node, "corosync-quorumtool", "-s")
        assert processes(site) == [place], "it was started without fencing"
    finally:
        for node, route in routes.items():
            site.run(node, "ip", "route", "delete", *route)
    soon(lambda: heard(site, "hv1") and heard(site, "hv2"), 30, "the nodes hear each other")
    assert "enabled connected" in site.run("hv1", "corosync-cfgtool", "-n")
    all_online(site, ["hv1", "hv2"])
    # One that was asked for before they came together may still be on its way to the device.
    soon(lambda: silent(device), what="nobody is to be fenced any more")
    device.broken = False
    assert "Total votes:      2" in site.run("hv2", "corosync-quorumtool", "-s")
    soon(lambda: processes(site) == [place] == [resource(site, "hv2")], what="the resource runs once")
    assert [when for node in others for when in device.fenced(node) if when > began] == []


def test_after_fencing_has_failed_nobody_forgets_the_node_and_a_person_has_it_tried_again(site, device):
    given_up(site, device, 20)
    seen = shown(site)
    assert FAILED in seen
    assert UNCLEAN in seen
    told = site.run("controller", "salt-run", "fleet.cluster", timeout=180)
    assert "hv2 is lost and not fenced yet, so nothing of it is recovered" in told
    assert re.search(r"fencing of hv2 has failed \(.+\); repair the device, then: stonith_admin --reboot hv2", told)
    kept, gone = site.cluster, {"ensure": "absent"}
    nodes = {**kept["nodes"], "hv2": {**kept["nodes"]["hv2"], **gone}}
    site.cluster = {**kept, "nodes": nodes, "stonith": {"fence": gone}, "wait_seconds": 3}
    site.cluster["resources"] = {"probe": gone, "late": gone}
    site.write()
    before = site.run("hv1", "cibadmin", "--query", "--scope", "configuration")
    try:
        rows = site.highstate("hv1")["hv1"]
    finally:
        site.cluster = kept
        site.write()
    refused = rows["cluster_corosync_conf"]
    assert refused["result"] is False
    assert "are declared with ensure: absent and are lost, but not fenced: hv2" in refused["comment"]
    assert "stonith_admin --confirm hv2" in refused["comment"]
    assert changes({"hv1": rows}) == {"hv1": set()}
    assert site.run("hv1", "cibadmin", "--query", "--scope", "configuration") == before
    device.broken = False
    assert code(site, "hv1", "stonith_admin", "--reboot", "hv2") == 0
    soon(lambda: resource(site, "hv1") == "hv1", 30, "what hv2 ran has started")
    back(site, "hv2")
    assert processes(site) == ["hv1"]


@pytest.mark.long
def test_where_the_device_stays_broken_a_person_says_that_the_node_is_off(site, device):
    began = time.time()
    given_up(site, device)
    assert code(site, "hv1", "stonith_admin", "--reboot", "hv2") != 0
    assert UNCLEAN in shown(site)
    assert processes_on(site, "hv1") == []
    assert code(site, "hv1", "stonith_admin", "--confirm", "hv2") == 0
    soon(lambda: resource(site, "hv1") == "hv1", 30, "what hv2 ran has started")
    assert UNCLEAN not in shown(site)
    assert [when for when in device.fenced("hv2") if when > began] == []
    switched_on(site, device, "hv2")
    assert processes(site) == ["hv1"]


def test_a_resource_that_has_failed_starts_once_its_cause_is_gone_and_the_failure_forgotten(site):
    soon(lambda: shown(site).count("late start on") == 2, what="it has failed on both nodes")
    assert "Failed Resource Actions:" in shown(site)
    assert resource(site, "hv1", "late") == ""
    told = site.run("controller", "salt-run", "fleet.cluster", timeout=120)
    why = f"Unable to manage state file {FOLDER}/late"
    remedies = {}
    for node in ("hv1", "hv2"):
        assert f"failed: late start on {node}: {why} (" in told
        (remedies[node],) = re.findall(rf"repair the cause on {node}, then: (.+)", told)
        assert remedies[node] == f"crm_resource --cleanup --resource late --node {node}"
    seen = json.loads(site.run("controller", "salt", "--out=json", "hv1", "hypervisor.cluster"))["hv1"]["failures"]
    assert {(row["node"], row["reason"]) for row in seen} == {("hv1", why), ("hv2", why)}
    assert {row["remedy"].partition("then: ")[2] for row in seen} == set(remedies.values())
    # As long as the cause is there, forgetting it does not help.
    site.run("hv1", "sh", "-c", remedies["hv1"])
    soon(lambda: shown(site).count("late start on") == 2, what="it has failed again")
    for node, remedy in remedies.items():
        site.run(node, "mkdir", FOLDER)
        site.run(node, "sh", "-c", remedy)
    soon(lambda: resource(site, "hv2", "late"), what="it runs")
    assert "Failed Resource Actions:" not in shown(site)


def test_nothing_comes_to_a_cluster_whose_fence_device_does_not_answer(site, device):
    """A guest that is to go is all that it takes for fencing to be judged before the rest. This comes last."""
    spare = Device(site.lab, device.address)
    spare.unreachable = True
    site.others = {"libvirt": {"guests": {"gone": {"ha": True, "ensure": "absent"}}}}
    site.cluster["stonith"] = {"fence": fence(device), "spare": fence(spare)}
    site.cluster["resources"] = {"probe": PROBE, "late": LATE, "needy": {"agent": "ocf:pacemaker:Dummy"}}
    site.cluster["wait_seconds"] = 5
    site.write()
    try:
        answers = site.highstate("hv1", "hv2")
        rows = answers.pop("hv1")
        assert failures(answers) == {}
        judged = rows["cluster_cib_fencing"]
        assert judged["result"] is False
        assert re.match(r"Fence devices that are not at work within 5 s: spare \(.+\)\.$", judged["comment"])
        assert judged["duration"] < 30_000
        assert rows["cluster_cib"]["comment"].startswith("One or more requisite failed")
        assert site.monitor("hv1").find(".//resource[@id='needy']") is None
        spare.unreachable = False
        site.run("hv1", "crm_resource", "--cleanup", "--resource", "spare")
        soon(lambda: resource(site, "hv1", "spare"), what="the device is at work")
        site.converge("hv1")
        soon(lambda: resource(site, "hv1", "needy"), what="what needs fencing runs")
    finally:
        site.others = {}
        spare.close()

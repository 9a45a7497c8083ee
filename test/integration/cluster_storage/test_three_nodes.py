"""Three machines that only their watchdogs fence, which get a disk for that, lose a node and have it back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster_site import NODES, changes, failures, soon
from storage_site import PATIENCE, RESOURCE, SBD, SHARED_DISKS, VOLUME, WATCHDOG, StorageSite, bare_machines

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
NAME = f"{os.environ.get('LAB_NAME', 'test')}-three"
ALONE = {"enabled": True, "module": "softdog", "blacklist": ["iTCO_wdt"], "watchdog_timeout": WATCHDOG}
# Twice that is what the others wait, see docs/cluster.rst.
DEAD = 2 * WATCHDOG
LONGER = 40
EARLY = 20  # seconds for which a node waits for one that has not begun
SILENT: dict[str, set[str]] = {node: set() for node in NODES}


@pytest.fixture(scope="module", name="site")
def bare_hosts(loud) -> Iterator[StorageSite]:
    """A controller and three machines of this module's own."""
    with bare_machines(loud, NAME, NODES, SHARED_DISKS) as lab:
        yield StorageSite(lab, NODES)


def place(site):
    """Return the node that has the volume, as soon as there is one."""
    return soon(lambda: next(filter(None, (site.where(node) for node in NODES if site.running(node))), ""), PATIENCE)


def others(node):
    """Return the other two."""
    return [one for one in NODES if one != node]


def taken_over(site, node):
    """Wait until one of the others has the volume, and return that; no two that answer ever have it."""

    def moved():
        found = [one for one in site.active_on() if not one.endswith("?")]
        assert len(found) < 2, f"the volume is on {found}"
        return "".join(one for one in found if one != node)

    return soon(moved, PATIENCE, f"the volume is on one of {others(node)}")


def all_there(site, node):
    """Wait until a node that was away is a member with its locks again, and nothing is left for a highstate to do."""
    site.lab.hosts.wait_ssh(node, timeout=PATIENCE)
    soon(lambda: site.online(others(node)[0]) == set(NODES), PATIENCE, f"{node} is back")
    soon(lambda: site.locks(node), PATIENCE, f"{node} has its daemon of locks")
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    # A volume that comes to it would have brought the group's locks too.
    found = changes(answers)
    assert found.pop(node) <= {"cluster_volume_group_vmdata"}
    assert found == {one: set() for one in others(node)}


def test_bare_hosts_fence_by_their_watchdogs_as_was_predicted_whichever_begins(site):
    site.declared(sbd=ALONE, wait_seconds=EARLY)
    site.converge(site.lab.hosts.controller)
    predicted = site.highstate(*NODES, test=True)
    # The bootstrap node has done nothing yet.
    early = site.highstate("hv2")
    key = early["hv2"]["cluster_key"]
    assert key["result"] is False
    assert key["comment"].startswith("hv1 (cluster:bootstrap_node) has not handed out the cluster's key to hv2 within")
    assert EARLY * 1000 <= key["duration"] < 6 * EARLY * 1000
    services = site.run("hv2", "systemctl", "is-active", "sbd", "corosync", "pacemaker", check=False)
    assert services.split() == ["inactive"] * 3
    site.declared(sbd=ALONE)
    done = site.highstate("hv3", "hv2", "hv1")
    second = site.highstate(*NODES)
    assert failures(predicted) == failures(done) == failures(second) == {}
    wanted = {node: {name for name, row in rows.items() if row["result"] is None} for node, rows in predicted.items()}
    happened = changes(done)
    happened["hv2"] |= changes(early)["hv2"]
    assert happened == wanted
    assert done["hv1"]["cluster_cib_fencing"]["changes"] == predicted["hv1"]["cluster_cib_fencing"]["changes"]
    assert changes(second) == SILENT


def test_each_has_said_that_its_watchdog_fences_it(site):
    for node in NODES:
        assert site.run(node, "systemctl", "is-active", "sbd", "corosync", "pacemaker").split() == ["active"] * 3
        assert "watcher: /" not in site.run(node, "pgrep", "--list-full", "--full", "^sbd: ")
        assert site.quorate(node)
    asked = ("crm_attribute", "--type", "crm_config", "--query", "--quiet", "--name")
    assert site.run("hv2", *asked, "stonith-watchdog-timeout").strip() == f"{DEAD}s"
    assert site.run("hv2", *asked, "have-watchdog").strip() == "true"
    said = site.run("hv3", "attrd_updater", "--name", "hypervisor-sbd", "--query", "--all")
    assert said.count(f"watchdog-{WATCHDOG}s") == len(NODES)
    assert site.active_on() == site.holders() == [place(site)]


def test_a_node_that_hears_nobody_resets_itself_before_another_has_its_volume(site):
    node = place(site)
    nonce = site.written(node)
    machine = site.machine(node)
    boot = machine.boot_id()
    machine.set_link(up=False)
    try:
        cut = time.monotonic()
        other = taken_over(site, node)
        print(f"{node} was cut off; the volume was active on {other} after {time.monotonic() - cut:.0f} s")
        # Not before it must have gone.
        assert time.monotonic() - cut > DEAD
    finally:
        machine.set_link(up=True)
    assert site.read_back(other) == nonce
    site.lab.hosts.wait_ssh(node, timeout=PATIENCE)
    assert machine.boot_id() != boot
    # It had gone before that; machines of the lab have one clock.
    (booted,) = re.findall(r"^btime (\d+)$", site.run(node, "cat", "/proc/stat"), re.MULTILINE)
    assert int(booted) < int(site.run(other, "stat", "--format=%Z", VOLUME))
    all_there(site, node)
    assert site.active_on() == site.holders() == [other]


def test_a_node_that_dies_counts_as_off_when_its_watchdog_must_have_fired(site):
    node = place(site)
    nonce = site.written(node)
    died = site.killed(node)
    other = taken_over(site, node)
    took = time.monotonic() - died
    print(f"{node} died; the volume was active on {other} after {took:.0f} s")
    assert took > DEAD
    assert site.read_back(other) == nonce
    site.machine(node).start()
    all_there(site, node)
    assert site.active_on() == site.holders() == [other]


def stopped(site):
    """Stop the cluster on all nodes, as messages and docs/cluster.rst say it."""
    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(lambda node: site.run(node, "systemctl", "stop", "pacemaker", "corosync", timeout=600), NODES))


def cib_alike(site, predicted, done):
    """Every node has altered the CIB on its disk as it said, and Pacemaker has started with that."""
    for node in NODES:
        rows = [answers[node]["cluster_sbd_cib"]["changes"] for answers in (predicted, done)]
        assert rows[0] == rows[1] != {}
        files = ("/var/lib/pacemaker/cib/cib.xml", "/var/lib/pacemaker/cib/cib.xml.sig")
        assert site.run(node, "stat", "-c", "%U:%G %a", *files).split("\n")[:2] == ["hacluster:haclient 600"] * 2
        said = site.run(node, "journalctl", "--unit=pacemaker", "--boot")
        assert not re.search("will NOT be used|manually modified", said)


def test_a_longer_timeout_of_the_watchdog_is_taken_up_once_the_cluster_has_been_stopped(site):
    nonce = site.written(place(site))
    site.declared(sbd={**ALONE, "watchdog_timeout": LONGER})
    refused = site.highstate(*NODES)
    for node in NODES:
        row = refused[node]["cluster_sbd_cib"]
        assert row["result"] is False
        assert "stop the cluster on all nodes" in row["comment"]
        # One that reboots now can start Pacemaker.
        assert f"SBD_WATCHDOG_TIMEOUT={WATCHDOG}" in site.run(node, "cat", "/etc/default/sbd")
    stopped(site)
    predicted = site.highstate(*NODES, test=True)
    done = site.highstate(*NODES)
    assert failures(predicted) == failures(done) == {}
    cib_alike(site, predicted, done)
    asked = ("crm_attribute", "--type", "crm_config", "--query", "--quiet", "--name", "stonith-watchdog-timeout")
    assert site.run("hv2", *asked).strip() == f"{2 * LONGER}s"
    assert changes(site.converge(*NODES)) == SILENT
    assert site.read_back(place(site)) == nonce


def test_disks_of_sbd_are_taken_up_once_the_cluster_has_been_stopped(site):
    nonce = site.written(place(site))
    site.declared()
    refused = site.highstate(*NODES)
    for node in NODES:
        row = refused[node]["cluster_sbd_unchanged"]
        assert row["result"] is False
        assert "stop the cluster on all nodes" in row["comment"]
        assert site.run(node, "systemctl", "is-active", "pacemaker").strip() == "active"
    stopped(site)
    predicted = site.highstate(*NODES, test=True)
    done = site.highstate(*NODES)
    assert failures(predicted) == failures(done) == {}
    cib_alike(site, predicted, done)
    assert "cluster_sbd_disks" in changes(done)["hv1"]
    assert done["hv1"]["cluster_cib_fencing"]["changes"] == predicted["hv1"]["cluster_cib_fencing"]["changes"]
    assert changes(site.converge(*NODES)) == SILENT
    soon(lambda: site.fencing("hv2") in NODES, PATIENCE, "the fence device runs")
    slots = [line.split()[1:3] for line in site.run("hv3", "sbd", "-d", SBD, "list").splitlines()]
    assert sorted(slots) == [[node, "clear"] for node in NODES]
    assert site.read_back(place(site)) == nonce


def test_a_node_leaves_with_its_locks_and_the_others_keep_the_volume(site):
    if place(site) == "hv3":
        site.run("hv1", "crm_resource", "--move", "--resource", RESOURCE, "--lifetime", "PT20M")
        soon(lambda: site.where("hv1") in others("hv3"), PATIENCE, "the volume has moved")
        site.run("hv1", "crm_resource", "--clear", "--resource", RESOURCE)
    here = place(site)
    nonce = site.written(here)
    site.declared()
    nodes = site.cluster["nodes"]
    site.cluster["nodes"] = {**nodes, "hv3": {**nodes["hv3"], "ensure": "absent"}}
    site.write()
    predicted = site.highstate("hv3", test=True)["hv3"]["cluster_left"]
    done = site.converge(*NODES)
    assert done["hv3"]["cluster_left"]["changes"] == predicted["changes"] != {}
    assert site.online("hv1") == {"hv1", "hv2"}
    assert site.run("hv3", "ls", "/etc/lvm").split().count("lvmlocal.conf") == 0
    assert site.run("hv3", "systemctl", "is-active", "corosync", "sbd", check=False).split() == ["inactive"] * 2
    assert site.active_on() == [here]
    assert site.read_back(here) == nonce
    assert changes(site.converge(*NODES)) == SILENT


def test_a_third_node_joins_and_a_volume_can_move_to_it(site):
    here = place(site)
    nonce = site.written(here)
    site.declared()
    predicted = site.highstate("hv1", test=True)["hv1"]
    done = site.converge(*NODES)
    assert {name for name, row in predicted.items() if row["result"] is None} <= changes(done)["hv1"]
    soon(lambda: site.online("hv1") == set(NODES), PATIENCE, "hv3 is a member")
    soon(lambda: site.locks("hv3"), PATIENCE, "hv3 has its daemon of locks")
    assert (site.active_on(), site.quorate("hv3")) == ([here], True)
    site.run(here, "crm_resource", "--move", "--resource", RESOURCE, "--node", "hv3", "--lifetime", "PT20M")
    soon(lambda: site.active_on() == ["hv3"], PATIENCE, "the volume is on hv3")
    site.run(here, "crm_resource", "--clear", "--resource", RESOURCE)
    assert site.read_back("hv3") == nonce
    # The node that the group's last volume has left has given up its locks, until its next highstate.
    found = changes(site.converge(*NODES))
    assert found.pop(here) <= {"cluster_volume_group_vmdata"}
    assert found == {node: set() for node in others(here)}
    assert changes(site.converge(*NODES)) == SILENT
    # And it comes back from there.
    site.killed("hv3")
    other = taken_over(site, "hv3")
    assert site.read_back(other) == nonce
    site.machine("hv3").start()
    all_there(site, "hv3")

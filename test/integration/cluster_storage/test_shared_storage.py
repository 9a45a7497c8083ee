"""Two machines with shared disks: fenced, with a volume that is on one of them, which comes back when that one dies."""

from __future__ import annotations

import os
import time

import pytest
from cluster_site import changes, failures, soon
from storage_site import CLUSTER, MSGWAIT, NODES, PATIENCE, RESOURCE, SAN, SBD

pytestmark = [
    pytest.mark.usefixtures("course"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
AGENT = "/usr/sbin/fence_sbd"
BOTH = "/dev/vmdata/both"
QUIET = 90  # seconds for which nothing may be recovered


@pytest.mark.long
def test_a_disk_with_a_file_system_is_refused_by_name(course):
    row = course.refused["cluster_volume_group_vmdata"]
    assert row["result"] is False
    assert f"{SAN} has the signature ext4" in row["comment"]
    assert "cluster:storage:allow_format: true" in row["comment"]


def test_bare_hosts_become_what_was_predicted(course):
    assert failures(course.predicted) == {}
    assert failures(course.done) == {}
    expected = {
        node: {name for name, row in rows.items() if row["result"] is None} for node, rows in course.predicted.items()
    }
    assert changes(course.done) == expected
    for name in ("cluster_cib_fencing", "cluster_cib_locking", "cluster_cib", "cluster_volume_group_vmdata"):
        assert course.done["hv1"][name]["changes"] == course.predicted["hv1"][name]["changes"]


def test_the_second_run_is_silent(course):
    assert failures(course.second) == {}
    assert changes(course.second) == {node: set() for node in NODES}


@pytest.mark.long
def test_a_prediction_after_it_is_silent(course):
    assert failures(course.predicted_again) == {}
    assert changes(course.predicted_again) == {node: set() for node in NODES}


def test_every_node_is_fenced_by_the_disk(site):
    for node in NODES:
        assert site.run(node, "systemctl", "is-active", "sbd", "corosync", "pacemaker").split() == ["active"] * 3
        assert site.quorate(node)
        assert site.unclean(node) == set()
    slots = [line.split()[1:3] for line in site.run("hv1", "sbd", "-d", SBD, "list").splitlines()]
    assert sorted(slots) == [["hv1", "clear"], ["hv2", "clear"]]
    assert site.fencing("hv1") in NODES


def test_what_pacemaker_starts_is_held_back_at_boot(site):
    for unit in ("sbd_remote", "dlm", "lvmlockd", "lvmlocks"):
        assert site.run("hv2", "systemctl", "is-enabled", unit, check=False).strip() == "masked"


def test_the_volume_is_on_one_node(site):
    soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    assert site.active_on() == site.holders() == [site.where("hv1")]


def test_the_volume_comes_back_when_its_node_dies_and_has_what_was_written(site):
    node = site.where("hv1") or site.where("hv2")
    other = next(one for one in NODES if one != node)
    nonce = site.written(node)
    died = site.killed(node)
    soon(lambda: site.unclean(other) == {node}, PATIENCE, f"{node} is lost")
    lost = time.monotonic()
    soon(lambda: site.active_on() == [other], PATIENCE, f"the volume is on {other}")
    took = time.monotonic() - died
    # Not before the dead node counts as off, which begins at most some seconds before somebody sees that it is lost.
    assert time.monotonic() - lost > MSGWAIT / 2
    print(f"{node} died; the volume was active on {other} after {took:.0f} s")
    assert site.read_back(other) == nonce
    site.back(node)
    # It does not go back to where it was.
    assert site.active_on() == site.holders() == [other]
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    # A volume that comes to it would have brought the group's locks too; nothing else is to be done.
    found = changes(answers)
    assert found[other] == set()
    assert found[node] <= {"cluster_volume_group_vmdata"}


@pytest.mark.long
def test_nothing_is_recovered_as_long_as_nobody_can_be_fenced(site):
    node = site.where("hv1") or site.where("hv2")
    other = next(one for one in NODES if one != node)
    # Nobody is left who could send the message.
    site.run(other, "mv", AGENT, f"{AGENT}.away")
    try:
        site.killed(node)
        soon(lambda: site.unclean(other) == {node}, PATIENCE, f"{node} is lost")
        lost = time.monotonic()
        while time.monotonic() < lost + MSGWAIT + QUIET:
            assert site.active_on() == []
            assert site.unclean(other) == {node}
            time.sleep(5)
        assert f"{node} is lost and not fenced yet" in site.run(
            site.lab.hosts.controller, "salt-run", "fleet.cluster", other, check=False
        )
        # A person has made sure that it is off.
        site.run(other, "stonith_admin", "--confirm", node)
        soon(lambda: site.active_on() == [other], PATIENCE, f"the volume is on {other}")
    finally:
        site.run(other, "mv", f"{AGENT}.away", AGENT)
    # The device that could not be used has failed meanwhile.
    site.run(other, "crm_resource", "--cleanup")
    site.back(node)
    assert site.active_on() == site.holders() == [other]
    assert site.where(other, RESOURCE) == other


@pytest.mark.long
def test_a_volume_that_is_active_everywhere_is_on_both_nodes_at_once(site):
    volumes = {"one": {"size_mib": 64}, "both": {"size_mib": 64, "active": "everywhere"}}
    groups = {"vmdata": {"devices": [SAN], "volumes": volumes}}
    site.declared(storage={**CLUSTER["storage"], "volume_groups": groups})
    predicted = site.highstate(*NODES, test=True)
    done = site.highstate(*NODES)
    assert failures(predicted) == failures(done) == {}
    assert done["hv1"]["cluster_cib"]["changes"] == predicted["hv1"]["cluster_cib"]["changes"] != {}
    soon(lambda: site.active_on(BOTH) == list(NODES), PATIENCE, "it is active on both")
    for node in NODES:
        assert "LK LV sh" in site.run(node, "lvmlockctl", "--info")
    nonce = site.written("hv1", BOTH)
    assert site.read_back("hv2", BOTH) == nonce
    # The other volume is where it was.
    assert len(site.active_on()) == 1
    assert changes(site.converge(*NODES)) == {node: set() for node in NODES}

"""A guest of the cluster: declared, moved live, stopped, started, and there again when its node dies."""

from __future__ import annotations

import os
import secrets
import time

import pytest
from cluster_site import changes, failures, soon
from guest_site import DEFINITION, GUEST, GUEST_DISK, SECOND, SECOND_DISK, SPARE_DISK, GuestSite
from storage_site import MSGWAIT, NODES, PATIENCE

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
# Pulls the plug of the second guest once it is to be stopped.
PULL = f"""
until crm_resource --resource {SECOND} --meta --get-parameter target-role 2>/dev/null | grep -q Stopped; do
  sleep 1
done
sleep 5
virsh destroy {SECOND}
"""


class GuestCourse:
    """To a guest that one of two nodes runs: from bare hosts, or from what other tests have left."""

    def __init__(self, site: GuestSite) -> None:
        site.nonce = secrets.token_hex(8)
        for node in NODES:
            site.run(node, "mkdir", "-p", "/var/lib/libvirt/images")
        site.lab.push_guest()
        local = {"name": "data", "source_file": "/var/lib/libvirt/images/alone.raw"}
        site.guest_declared(disks=[local])
        site.converge(site.lab.hosts.controller)
        self.refused = site.highstate("hv1", test=True)["hv1"]
        site.guest_declared()
        self.predicted = site.highstate(*NODES, test=True)
        self.done = site.highstate(*NODES)
        self.node = site.started()
        self.second = site.highstate(*NODES)


@pytest.fixture(scope="module")
def guest(site) -> GuestCourse:
    """What happened until the guest ran."""
    return GuestCourse(site)


def other_than(node):
    return next(one for one in NODES if one != node)


def test_a_disk_of_one_node_alone_is_refused_by_name(guest):
    row = guest.refused[f"libvirt_guest_{GUEST}"]
    assert row["result"] is False
    assert f"libvirt:guests:{GUEST}:disks:data" in row["comment"]
    assert "cluster:storage:volume_groups" in row["comment"]


def test_what_was_predicted_is_done_and_then_there_is_silence(guest):
    assert failures(guest.predicted) == failures(guest.done) == failures(guest.second) == {}
    for node in NODES:
        rows = [answers[node][f"libvirt_guest_{GUEST}"]["changes"] for answers in (guest.predicted, guest.done)]
        assert rows[0] == rows[1] == {"definition": {"old": None, "new": "written"}}
    assert guest.done["hv1"]["cluster_cib"]["changes"] == guest.predicted["hv1"]["cluster_cib"]["changes"]
    assert changes(guest.second) == {node: set() for node in NODES}


def test_it_runs_on_one_node_and_every_node_could(guest, site):
    site.alone_on(guest.node)
    texts = {site.run(node, "cat", DEFINITION) for node in NODES}
    assert len(texts) == 1
    for node in NODES:
        assert site.run(node, "stat", "--format=%a %U", DEFINITION, "/etc/libvirt/cluster").split() == [
            "600", "root", "700", "root"
        ]  # fmt: skip
        # Nobody could start a second one.
        assert GUEST not in site.run(node, "virsh", "list", "--all", "--name", "--persistent").split()
        # A host that shuts down lets the cluster move it away first.
        assert "libvirt-guests.service" in site.run(node, "systemctl", "show", "--property=After", "pacemaker")
    assert len(site.count(guest.node).boots) == 1


def test_the_other_node_says_where_it_is(guest, site):
    other = other_than(guest.node)
    assert site.call(guest.node, "guest", GUEST)["cluster"] is True
    assert f"the cluster runs it on {guest.node}" in str(site.call(other, "guest", GUEST, check=False))
    assert "ask that host for a power_off" in str(site.call(other, "power_off", GUEST, check=False))
    assert "libvirt:guests" in str(site.call(guest.node, "delete", GUEST, "disks=keep", check=False))
    printed = site.run(site.lab.hosts.controller, "salt-run", "fleet.cluster")
    assert any(GUEST in line and f"on {guest.node}" in line for line in printed.splitlines())


def test_it_moves_live_and_its_volume_with_it(site):
    node = site.runs_on()
    other = other_than(node)
    before = site.count(node)
    began = time.monotonic()
    answer = site.call(node, "migrate", GUEST, other)
    print(f"moved live in {time.monotonic() - began:.0f} s, without it for {answer['downtime_ms']} ms")
    assert (answer["to"], answer["state"]) == (other, "running")
    assert site.runs_on() == other
    site.alone_on(other)
    soon(lambda: site.counts(other), PATIENCE, "it counts")
    after = site.count(other)
    # No start, no gap.
    assert after.boots == before.boots
    assert after.last > before.last
    assert site.constraints(other) == []


def test_the_fleet_moves_it_back(site):
    node = site.runs_on()
    other = other_than(node)
    before = site.count(node)
    printed = site.run(site.lab.hosts.controller, "salt-run", "fleet.migrate", GUEST, check=False, timeout=PATIENCE)
    assert f"to {other}" in printed
    site.alone_on(other)
    soon(lambda: site.counts(other), PATIENCE, "it counts")
    assert site.count(other).boots == before.boots


def test_who_is_stopped_stays_stopped_through_a_highstate_and_starts_again(site):
    node = site.runs_on()
    before = site.count(node)
    answer = site.call(node, "power_off", GUEST)
    assert (answer["changed"], answer["state"]) == (True, "shut_off")
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    # The group's last volume may have left its node, and its locks with it.
    assert set().union(*changes(answers).values()) <= {"cluster_volume_group_vmdata"}
    assert site.guests_on() == {}
    answer = site.call(other_than(node), "start", GUEST)
    assert (answer["changed"], answer["state"]) == (True, "running")
    node = site.started()
    after = site.count(node)
    assert after.boots[:-1] == before.boots
    assert len(after.boots) == len(before.boots) + 1


def disks_of(site, node):
    """Return what the running guest has open."""
    return site.run(node, "virsh", "domblklist", GUEST)


def test_it_gets_a_volume_and_gives_it_up_while_it_runs(site):
    node = site.runs_on()
    before = site.count(node)
    own = {"name": "data", "source_file": GUEST_DISK, "cache": "none"}
    site.guest_declared(volumes=("spare",), disks=[own, {"name": "spare", "source_file": SPARE_DISK}])
    predicted = site.highstate(*NODES, test=True)
    answers = site.highstate(*NODES)
    assert failures(predicted) == failures(answers) == {}
    assert answers["hv1"]["cluster_cib"]["changes"] == predicted["hv1"]["cluster_cib"]["changes"]
    # It went on, and what it gets next time is beside it.
    soon(lambda: site.active_on(SPARE_DISK) == [node], PATIENCE, "its new volume is where it runs")
    site.quiet(node)
    assert site.runs_on() == node
    soon(lambda: site.counts(node), PATIENCE, "it counts")
    assert site.count(node).boots == before.boots
    assert SPARE_DISK not in disks_of(site, node)
    site.call(node, "power_off", GUEST)
    site.call(node, "start", GUEST)
    node = site.started()
    assert SPARE_DISK in disks_of(site, node)
    site.guest_declared(volumes=("spare",))
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    row = answers["hv1"]["cluster_cib"]
    assert (row["changes"], f"{GUEST} runs and has {SPARE_DISK} open" in row["comment"]) == ({}, True)
    # So that it can move still.
    boots, other = site.count(node).boots, other_than(node)
    assert site.call(node, "migrate", GUEST, other)["state"] == "running"
    soon(lambda: site.active_on(SPARE_DISK) == [other], PATIENCE, "the volume has come along")
    soon(lambda: site.counts(other), PATIENCE, "it counts")
    assert site.count(other).boots == boots
    site.call(other, "power_off", GUEST)
    site.call(other, "start", GUEST)
    node = site.started()
    assert SPARE_DISK not in disks_of(site, node)
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    gone = {f"constraint {GUEST}-{word}-vmdata-spare" for word in ("after", "has", "with")}
    assert set(answers["hv1"]["cluster_cib"]["changes"]) >= gone - {f"constraint {GUEST}-has-vmdata-spare"}
    assert site.runs_on() == node


def test_guests_that_leave_a_node_at_once_both_move_live(site):
    site.guest_declared(volumes=("spare", SECOND), guests={SECOND: SECOND_DISK})
    assert failures(site.highstate(*NODES)) == {}
    soon(lambda: site.runs_on(SECOND), PATIENCE, "the second guest runs")
    node, place = site.runs_on(), site.runs_on(SECOND)
    soon(lambda: site.counts(place, SECOND_DISK), PATIENCE, "the second guest counts")
    if place != node:
        site.call(place, "migrate", SECOND, node)
    disks = (GUEST_DISK, SECOND_DISK)
    boots = [site.count(node, disk).boots for disk in disks]
    other = other_than(node)
    for verb, place in (("evacuate", other), ("restore", node)):
        printed = site.run(site.lab.hosts.controller, "salt-run", f"fleet.{verb}", node, "parallel=2", timeout=PATIENCE)
        for guest, disk in ((GUEST, GUEST_DISK), (SECOND, SECOND_DISK)):
            assert site.runs_on(guest) == place, printed
            soon(lambda disk=disk, place=place: site.counts(place, disk), PATIENCE, f"{guest} counts")
        assert [site.count(place, disk).boots for disk in disks] == boots
        assert site.constraints(place) == []


@pytest.mark.parametrize(("wish", "nodes"), [("anti_affinity", 2), ("affinity", 1)])
def test_guests_run_apart_or_beside_each_other_as_declared(site, wish, nodes):
    places = {GUEST: site.runs_on(), SECOND: site.runs_on(SECOND)}
    # The wish is not fulfilled yet.
    assert len(set(places.values())) != nodes
    disks = {GUEST: GUEST_DISK, SECOND: SECOND_DISK}
    boots = {guest: site.count(places[guest], disk).boots for guest, disk in disks.items()}
    site.guest_declared(volumes=("spare", SECOND), guests={SECOND: SECOND_DISK}, ha={wish: [SECOND]})
    assert failures(site.highstate(*NODES)) == {}

    def apart():
        found = [site.runs_on(guest) for guest in disks]
        return all(found) and len(set(found)) == nodes

    soon(apart, PATIENCE, f"{wish} is fulfilled")
    site.quiet(site.runs_on())
    for guest, disk in disks.items():
        place = site.runs_on(guest)
        soon(lambda disk=disk, place=place: site.counts(place, disk), PATIENCE, f"{guest} counts")
        # Who had to move did so live.
        assert site.count(place, disk).boots == boots[guest]


def test_when_its_node_dies_it_runs_on_the_other_with_its_data(site):
    node = site.runs_on()
    other = other_than(node)
    before = site.count(node)
    died = site.killed(node)
    soon(lambda: site.unclean(other) == {node}, PATIENCE, f"{node} is lost")
    lost = time.monotonic()
    soon(lambda: site.active_on(GUEST_DISK) == [other], PATIENCE, f"the guest's volume is on {other}")
    took = time.monotonic() - died
    assert time.monotonic() - lost > MSGWAIT / 2
    soon(lambda: site.runs_on() == other, PATIENCE, f"the guest runs on {other}")
    ran = time.monotonic() - died
    soon(lambda: site.counts(other), PATIENCE, "it counts")
    counts = time.monotonic() - died
    print(f"{node} died; volume after {took:.0f} s, guest after {ran:.0f} s, it counts after {counts:.0f} s")
    after = site.count(other)
    # One start more, which went on from what was there.
    assert after.boots[:-1] == before.boots
    assert after.last > before.last
    site.back(node)
    site.alone_on(other)
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    assert changes(answers)[other] == set()
    assert changes(answers)[node] <= {"cluster_volume_group_vmdata"}
    site.alone_on(other)
    assert site.count(other).boots == after.boots


def test_a_guest_that_is_absent_goes_and_its_volume_stays(site):
    node, place = site.runs_on(), site.runs_on(SECOND)
    boots, last = site.count(node).boots, site.count(place, SECOND_DISK).last
    site.guest_declared(volumes=("spare", SECOND), guests={SECOND: SECOND_DISK})
    site.others["libvirt"]["guests"][SECOND]["ensure"] = "absent"
    site.write()
    predicted = site.highstate(*NODES, test=True)
    # This guest knows no power button. The agent would end it five seconds before its time is over, which an emulated
    # host may not keep; what is seen here is that Pacemaker was told to stop it first.
    site.run(place, "systemd-run", "--unit=pulled", "sh", "-c", PULL)
    # As the documentation says: the bootstrap node first, which stops it and removes it from the cluster.
    done = {node: site.highstate(node)[node] for node in NODES}
    assert failures(predicted) == failures(done) == {}
    for one in NODES:
        rows = [answers[one][f"libvirt_guest_{SECOND}"]["changes"] for answers in (predicted, done)]
        assert rows[0] == rows[1] != {}
        assert site.run(one, "ls", "/etc/libvirt/cluster").split() == [f"{GUEST}.xml"]
    assert site.guests_on(SECOND) == {}
    resources = site.run("hv1", "cibadmin", "--query", "--scope", "resources")
    assert (f'id="{GUEST}"' in resources, f'id="{SECOND}"' in resources) == (True, False)
    (place,) = site.active_on(SECOND_DISK)
    assert site.count(place, SECOND_DISK).last >= last
    assert site.count(node).boots == boots
    assert changes(site.converge(*NODES)) == {node: set() for node in NODES}

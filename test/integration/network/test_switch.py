"""The uplink becomes a port of Open vSwitch with three network stacks, or everything is as it was, the database too.

The changes themselves run before these tests, two stacks at a time; see ``network_switch_course``.
"""

import os

import pytest
from network_switch_course import SwitchRecord, SwitchSite, run

from lab import stacks

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host")

KEEP = os.environ.get("LAB_KEEP") == "1"
WITH_SWITCH = ("networkd", "ifupdown", "netplan")
WANTED = [one for one in WITH_SWITCH if one in os.environ.get("LAB_STACKS", ",".join(WITH_SWITCH)).split(",")]


@pytest.fixture(scope="module", name="switched")
def what_happened(farm, loud):
    """What the course of changes has come to, by stack; an exception where one broke off."""
    mine = [stacks.StackHost(f"ovs-{name}", name) for name in WANTED]
    # After those of the other tests, whose addresses these machines must not have.
    own = stacks.StackHosts(farm.lab, [*farm.wanted, *mine])
    with loud.disabled():
        own.prepare()
        names = {one.name for one in mine}
        found = own.each(lambda name: run(SwitchSite(own, name), keep=KEEP) if name in names else None)
    yield found
    if not KEEP:
        with loud.disabled():
            for one in mine:
                own.machines[one.name].destroy()


@pytest.fixture(params=WANTED)
def record(request, switched):
    """What the course of changes has come to with one stack."""
    found = switched[f"ovs-{request.param}"]
    if isinstance(found, Exception):
        raise AssertionError(f"the course of {request.param} broke off") from found
    assert isinstance(found, SwitchRecord)
    return found


def undone(outcome, *, reason):
    """Judge a change that had to be undone."""
    assert outcome.differences == {}
    assert (outcome.state["state"], outcome.state["pending"]) == ("rolled-back", False)
    assert reason in outcome.state["reason"]
    return True


def own(facts, name):
    """Return the IPv4 addresses of an interface."""
    (link,) = [one for one in facts["address"] if one["ifname"] == name]
    return [one["local"] for one in link["addr_info"] if one["family"] == "inet"]


def test_a_port_that_is_not_there_is_refused_and_nothing_changes(record):
    row, changed = record.wrong_port
    assert row["result"] is False
    assert "eth9 (a port of ovshost0): this host has no such card" in row["comment"]
    assert changed == {}


def test_a_wrong_gateway_is_undone_with_its_rows(record):
    assert undone(record.wrong_gateway, reason=stacks.BEYOND)
    assert record.wrong_gateway.state["verified"] is True


def test_a_killed_applier_leaves_nothing_behind(record):
    assert undone(record.killed, reason="the process that made the change was ended")
    assert record.killed.state["verified"] is True


def test_a_power_cut_in_the_window_takes_the_rows_out_again(record):
    assert record.rows_in_window["ports"] == {"ovsbr0": ["eth0", "ovshost0"]}
    assert undone(record.power_cut, reason="the host went down before the change was confirmed")


def test_the_good_change_is_predicted_and_confirmed(record):
    assert record.predicted["result"] is None
    assert record.good["result"] is True, record.good["comment"]
    assert record.predicted["changes"] == record.good["changes"]
    assert "The change is confirmed" in record.good["comment"]


def test_the_hosts_own_port_has_the_address_of_the_card(record):
    links = {one["ifname"]: one for one in record.after["link"]}
    assert links["eth0"]["master"] == "ovs-system"
    assert links["ovshost0"]["address"] == links["eth0"]["address"]
    assert own(record.after, "ovshost0")
    assert own(record.after, "eth0") == []
    assert record.after["rows"]["ports"] == {"ovsbr0": ["eth0", "ovshost0"]}
    (default,) = [one for one in record.after["route"] if "'default'" in one]
    assert "'dev': 'ovshost0'" in default


def test_a_second_run_changes_nothing(record):
    assert [name for name, row in record.again.items() if row["changes"] or row["result"] is not True] == []


def test_a_reboot_keeps_the_confirmed_change(record):
    facts, reached = record.rebooted
    assert reached
    assert own(facts, "ovshost0") == own(record.after, "ovshost0")
    assert facts["rows"] == record.after["rows"]


def test_the_card_comes_back_out(record):
    row, facts = record.taken
    assert row["result"] is True, row["comment"]
    assert facts["rows"]["ports"] == {}
    assert own(facts, "eth0") == own(record.after, "ovshost0")

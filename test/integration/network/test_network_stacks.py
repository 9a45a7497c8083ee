"""The uplink moves into a bridge with each network stack, or everything is as it was before.

The changes themselves run before these tests, two stacks at a time; see ``network_course``.
"""

import os

import pytest
from network_course import CUT, MISADDRESSED
from network_site import BACK, TELLING, WINDOW

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host")

# An emulated host that shares two processors with others needs longer for its commands than their time limit knows.
PATIENCE = TELLING


def undone(outcome, *, reason):
    """Judge a change that had to be undone."""
    assert outcome.differences == {}
    assert (outcome.state["state"], outcome.state["pending"]) == ("rolled-back", False)
    assert reason in outcome.state["reason"]
    return True


def test_a_port_that_is_not_there_is_refused_and_nothing_changes(record):
    row, changed = record.wrong_port
    assert row["result"] is False
    assert "eth9" in row["comment"]
    assert "this host has no such card" in row["comment"]
    assert changed == {}


def test_without_consent_the_line_to_set_is_named(record):
    assert "set network:allow_uplink_change to true" in record.refused["error"]


def test_a_wrong_gateway_is_undone_in_time(record):
    assert undone(record.wrong_gateway, reason="192.0.2.1")
    assert record.wrong_gateway.state["verified"] is True
    assert record.wrong_gateway.seconds <= WINDOW + BACK + PATIENCE


def test_a_killed_applier_leaves_nothing_behind(record):
    assert undone(record.killed, reason="the process that made the change was ended")
    assert record.killed.state["verified"] is True


@pytest.mark.parametrize("record", CUT, indirect=True)
def test_a_power_cut_in_the_window_ends_with_the_old_state(record):
    assert undone(record.power_cut, reason="the host went down before the change was confirmed")


@pytest.mark.parametrize("record", MISADDRESSED, indirect=True)
def test_a_wrong_address_is_undone(record):
    assert undone(record.wrong_address, reason="does not answer")


def test_the_good_change_is_predicted_and_confirmed(record):
    assert record.predicted["result"] is None
    assert record.good["result"] is True, record.good["comment"]
    assert record.predicted["changes"].keys() == record.good["changes"].keys()
    assert record.good_state["state"] == "confirmed"
    assert record.good_state["backend"] == record.name
    assert record.good_state["outage"] is not None


def test_the_bridge_has_the_addresses_of_the_card(record):
    links = {one["ifname"]: one for one in record.after["link"]}
    addresses = {one["ifname"]: one["addr_info"] for one in record.after["address"]}
    assert links["eth0"]["master"] == "br0"
    assert links["br0"]["address"] == links["eth0"]["address"]
    assert [one["local"] for one in addresses["br0"] if one["family"] == "inet"]
    assert addresses["eth0"] == []
    defaults = [one for one in record.after["route"] if "'default'" in one]
    assert len(defaults) == 1
    assert "'dev': 'br0'" in defaults[0]


def test_a_second_run_changes_nothing(record):
    assert [name for name, row in record.again.items() if row["changes"] or row["result"] is not True] == []


def test_the_stack_understands_its_files(record):
    assert record.journal == ""

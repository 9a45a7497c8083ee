"""The campaign of interfaces: its order, what counts as kept, and that every fault has a promised end."""

from __future__ import annotations

import pytest
from faults import interfaces, network

from lab.stacks import all_stacks


def test_every_pair_comes_once_before_any_comes_again():
    pairs = len(all_stacks()) * len(interfaces.FAULTS)
    rows = network.order(3, pairs + 5)
    assert rows == network.order(3, pairs + 5)
    assert rows != network.order(4, pairs + 5)
    assert len({row[1:] for row in rows[:pairs]}) == pairs
    assert [row[0] for row in rows] == list(range(1, pairs + 6))


def test_every_fault_has_a_promised_end_and_says_what_is_wrong():
    assert {"good", "wrong_port", "wrong_gateway", "wrong_address", "wrong_vlan", "no_dhcp_server", "master_down",
            "link_cut", "minion_killed", "applier_killed_applying", "applier_killed_applied", "reboot", "power_cut",
            "disk_full", "second_change"} == set(interfaces.FAULTS)  # fmt: skip
    for function, wanted in interfaces.FAULTS.values():
        assert set(wanted) <= {"refused", "old", "new"}
        assert function.__doc__


@pytest.mark.parametrize(
    ("end", "seconds", "differences", "kept"),
    [("old", 29.9, [], True), ("old", 30.1, [], False), ("new", 5, [], False), ("", 5, [], False),
     ("old", 5, ["link br0"], False)],
)  # fmt: skip
def test_a_promise_is_kept_or_not(end, seconds, differences, kept):
    run = interfaces.Run("networkd", "wrong_vlan", ("old",), end=end, seconds=seconds, differences=differences)
    assert run.kept is kept
    assert ("NOT AS PROMISED" in network.told(run.report())) is not kept

"""Changes of the CIB take turns, and wait while a volume is on its way."""

from __future__ import annotations

import stat

import pytest
from salt.exceptions import CommandExecutionError

from _utils import cluster_pace


def monitor(*rows, lost=False):
    """Return crm_mon's XML of resources: name, agent, role, further attributes, and nodes where it is."""
    text = "".join(
        f'<resource id="{name}" resource_agent="{agent}" role="{role}" {more}>{"<node/>" * sum(nodes)}</resource>'
        for name, agent, role, more, *nodes in rows
    )
    node = f'<nodes><node name="hv1" unclean="{str(lost).lower()}"/></nodes>'
    return f"<pacemaker-result>{node}<resources>{text}</resources></pacemaker-result>"


VOLUME, GUEST = "ocf:hypervisor:SharedVolume", "ocf:heartbeat:VirtualDomain"
MOVING = monitor(("vm-one", VOLUME, "Started", 'pending="Migrating"'), ("web", GUEST, "Started", ""))


@pytest.fixture(name="clock", autouse=True)
def a_clock(monkeypatch, tmp_path):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(cluster_pace, "LOCK", tmp_path / "lock")
    return now


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([("vm-one", VOLUME, "Started", 'pending="Migrating"')], ["vm-one"]),
        ([("vm-one", VOLUME.replace("ocf:", "ocf::"), "Migrating", "")], ["vm-one"]),
        # The guest is on its way, and its volume is there.
        ([("vm-one", VOLUME, "Started", ""), ("web", GUEST, "Started", 'pending="Migrating"')], []),
        ([("vm-one", VOLUME, "Started", 'pending="Monitoring"')], []),
        # It has been shared by the node that it leaves, and has not begun to arrive; or the guest is moving behind it.
        ([("vm-one", VOLUME, "Started", "", 2)], ["vm-one"]),
        ([("vm-one", VOLUME, "Started", 'blocked="true"', 2)], []),
        ([("vm-one", VOLUME, "Started", "", 2), ("web", GUEST, "Started", 'pending="Migrating"', 1)], []),
    ],
)
def test_what_is_on_its_way(rows, found):
    assert cluster_pace.on_the_way(monitor(*rows)) == found


def test_of_a_pacemaker_that_does_not_answer_nothing_is_waited_for():
    assert cluster_pace.on_the_way("") == []


def test_what_a_lost_node_had_begun_does_not_hold_up_who_mends_its_fencing():
    assert cluster_pace.on_the_way(monitor(("vm-one", VOLUME, "Started", 'pending="Migrating"'), lost=True)) == []


def test_a_volume_on_its_way_is_waited_for_and_then_the_guest_may_begin(clock):
    said = [MOVING, monitor(), MOVING, monitor(), monitor()]
    with cluster_pace.turn(lambda: said.pop(0)):
        assert said == []
    assert clock[0] > 0


def test_a_volume_that_does_not_arrive_is_named_and_the_lock_is_free_again(clock):
    with (
        pytest.raises(CommandExecutionError, match=r"^nothing was changed: within 5 s .* another node: vm-one; see"),
        cluster_pace.turn(lambda: MOVING, 5),
    ):
        pytest.fail("it was let through")
    assert 4 < clock[0] <= 5
    with cluster_pace.turn(monitor, 2):
        pass


def test_one_at_a_time_and_the_next_when_the_first_is_over():
    with (
        cluster_pace.turn(monitor),
        pytest.raises(CommandExecutionError, match="another change of the cluster from this node has not ended within"),
        cluster_pace.turn(monitor, 3),
    ):
        pytest.fail("it was let through")
    with cluster_pace.turn(monitor, 3):
        assert stat.S_IMODE(cluster_pace.LOCK.stat().st_mode) == 0o600


def test_the_lock_goes_with_a_failure():
    with pytest.raises(ValueError, match="no"), cluster_pace.turn(monitor):
        raise ValueError("no")
    with cluster_pace.turn(monitor, 2):
        pass

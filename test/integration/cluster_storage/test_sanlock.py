"""Two machines whose locks are leases on the shared disk itself, which a node that dies keeps for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from cluster_site import changes, failures, soon
from fence_lab import Power
from fenced_site import fence, with_agent
from storage_site import NODES, PATIENCE, RESOURCE, SAN, TOKEN, VOLUME, StorageSite, bare_machines

from lab import network
from lab.lab import Lab

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
NAME = f"{os.environ.get('LAB_NAME', 'test')}-leases"
EVERYWHERE = "/dev/vmdata/both"
UNITS = ("wdmd", "sanlock", "lvmlockd", "lvmlocks")
# sanlock(8): what a host has that has gone is its own for eight times 10 s and the 60 s of its watchdog, counted from
# its last renewal, which may be 20 s old, as may the other host's last look at it.
LEASE = 140
# Has the volume open until its lock is shared, which it is once it is about to move. Nobody else asks lvmlockctl there
# meanwhile: there can be one at a time.
HOLD = f"""
exec 3<{VOLUME}
while [ "$(lvmlockctl --info | grep -c '^LK LV sh')" -lt 2 ]; do sleep 0.2; done
touch /run/held
"""


class Leases(StorageSite):  # type: ignore[misc]  # mypy looks at files of this folder one by one
    """The cluster, with its fence device."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.device = with_agent(self, Power(lab, network.address(lab.state["index"], 1)))
        slow = {"operations": [{"name": "monitor", "interval": "120s", "timeout": "120s"}]}
        volumes = {"one": {"size_mib": 64}, "both": {"size_mib": 32, "active": "everywhere"}}
        self.declare(
            *NODES, token=TOKEN, wait_seconds=600, stonith={"fence": {**fence(self.device), **slow}},
            properties={"stonith-timeout": "300s"},
            storage={
                "lock_manager": "sanlock", "watchdog_module": "softdog",
                "volume_groups": {"vmdata": {"devices": [SAN], "volumes": volumes}},
            },
        )  # fmt: skip
        self.converge(lab.hosts.controller)
        self.predicted = self.highstate(*NODES, test=True)
        self.done = self.highstate(*NODES)
        self.second = self.highstate(*NODES)


@pytest.fixture(scope="module", name="site")
def hosts_with_leases(loud) -> Iterator[Leases]:
    """A controller and two machines of this module's own."""
    with bare_machines(loud, NAME, NODES, {"san": 1024}) as lab:
        site = Leases(lab)
        try:
            yield site
        finally:
            site.device.close()


def locks(site, node):
    """Return the modes of the locks of volumes that a node has."""
    lines = site.run(node, "lvmlockctl", "--info").splitlines()
    return sorted(line.split()[2] for line in lines if line.startswith("LK LV") and line.split()[2] != "un")


def test_bare_hosts_become_what_was_predicted_and_then_there_is_silence(site):
    assert failures(site.predicted) == failures(site.done) == failures(site.second) == {}
    expected = {n: {name for name, row in rows.items() if row["result"] is None} for n, rows in site.predicted.items()}
    assert changes(site.done) == expected
    assert site.done["hv1"]["cluster_cib"]["changes"] == site.predicted["hv1"]["cluster_cib"]["changes"]
    assert changes(site.second) == {node: set() for node in NODES}


def test_the_watchdog_is_sanlocks(site):
    for node in NODES:
        assert site.run(node, "systemctl", "is-active", *UNITS).split() == ["active"] * 4
        assert site.run(node, "systemctl", "is-enabled", *UNITS).split() == ["enabled"] * 4
        daemon = site.run(node, "pgrep", "--list-full", "--exact", "sanlock")
        assert "daemon -w 1" in daemon
        # Each lease that is renewed is a connection to wdmd.
        assert "sanlock_lvm_vmdata" in site.run(node, "wdmd", "-d")


def test_a_volume_is_on_one_node_and_the_other_one_on_both(site):
    soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    place = site.where("hv1")
    other = next(node for node in NODES if node != place)
    assert site.active_on() == [place]
    soon(lambda: site.active_on(EVERYWHERE) == list(NODES), PATIENCE, "the other volume is on both")
    assert (locks(site, place), locks(site, other)) == (["ex", "sh"], ["sh"])


def moment(site, node, name):
    """Return when a node has made a file of /run, in seconds since 1970; empty for not yet."""
    return site.run(node, "stat", "--format=%.6Y", f"/run/{name}", check=False).strip()


def test_it_moves_without_a_stop(site):
    place = site.where("hv1")
    other = next(node for node in NODES if node != place)
    # Somebody has it open: a stop would fail.
    site.run(place, "systemd-run", "--unit=holder", "sh", "-c", HOLD)
    for node, words, name in ((place, "while", "left"), (other, "until", "arrived")):
        script = f"{words} test -e {VOLUME}; do sleep 0.1; done; touch /run/{name}"
        site.run(node, "systemd-run", f"--unit={name}", "sh", "-c", script)
    site.run(place, "crm_resource", "--move", "--resource", RESOURCE, "--node", other, "--lifetime", "PT20M")
    soon(lambda: site.active_on(VOLUME) == [other], PATIENCE, "the volume has moved")
    site.run(place, "test", "-e", "/run/held")
    # It was on both for a while; nodes of the lab have one clock.
    left, arrived = (
        float(soon(lambda node=node, name=name: moment(site, node, name), 60, name))
        for node, name in ((place, "left"), (other, "arrived"))
    )
    assert arrived < left
    soon(lambda: locks(site, other) == ["ex", "sh"], PATIENCE, "its lock is exclusive")
    site.run(place, "crm_resource", "--clear", "--resource", RESOURCE)


def test_it_comes_back_when_its_node_dies_once_the_lease_is_over(site):
    node = soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    other = next(one for one in NODES if one != node)
    nonce = site.written(node)
    died = site.killed(node)
    soon(lambda: site.device.fenced(node), PATIENCE, f"{node} is fenced")
    soon(lambda: other in site.active_on(), PATIENCE, f"the volume is on {other}")
    took = time.monotonic() - died
    assert took > LEASE - 30
    print(f"{node} died; the volume was active on {other} after {took:.0f} s")
    assert site.read_back(other) == nonce
    site.lab.hosts.wait_ssh(node, timeout=PATIENCE)
    soon(lambda: site.online(other) == set(NODES), PATIENCE, f"{node} is back")
    assert site.active_on() == [other]
    soon(lambda: site.active_on(EVERYWHERE) == list(NODES), PATIENCE, "the other volume is on both again")
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    assert changes(answers) == {one: set() for one in NODES}

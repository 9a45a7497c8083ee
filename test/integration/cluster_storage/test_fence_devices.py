"""Two machines that switch each other off by a device each, as servers with IPMI do: no sbd, and a shared volume."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator

import pytest
from cluster_site import changes, failures, soon
from fence_lab import Power
from fenced_site import fence, with_agent
from storage_site import NODES, PATIENCE, StorageSite, bare_machines

from lab import network

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
NAME = f"{os.environ.get('LAB_NAME', 'test')}-power"
SILENT: dict[str, set[str]] = {node: set() for node in NODES}


@pytest.fixture(scope="module", name="site")
def bare_hosts(loud) -> Iterator[StorageSite]:
    """A controller and two machines of this module's own."""
    with bare_machines(loud, NAME, NODES, {"san": 1024}) as lab:
        yield StorageSite(lab, NODES)


@pytest.fixture(scope="module", name="power")
def a_device(site) -> Iterator[Power]:
    """The device, with its agent on both nodes."""
    power = with_agent(site, Power(site.lab, network.address(site.lab.state["index"], 1)))
    yield power
    power.close()


def other_than(node):
    return next(one for one in NODES if one != node)


def declared(site, power):
    """Let the pillar say that each node is switched off by the other one."""
    devices = {f"power-{node}": {**fence(power), "targets": [node], "runs_on": [other_than(node)]} for node in NODES}
    site.declared(sbd={"enabled": False}, stonith=devices, properties={"stonith-timeout": "180s"})


def test_bare_hosts_become_what_was_predicted_at_once(site, power):
    # The node that is not the bootstrap node waits for the volume group, which is not made before there is fencing:
    # whoever may use a device has its password before that.
    declared(site, power)
    site.converge(site.lab.hosts.controller)
    predicted = site.highstate(*NODES, test=True)
    done = site.highstate(*NODES)
    second = site.highstate(*NODES)
    assert failures(predicted) == failures(done) == failures(second) == {}
    wanted = {node: {name for name, row in rows.items() if row["result"] is None} for node, rows in predicted.items()}
    assert changes(done) == wanted
    assert changes(second) == SILENT
    assert all(f"cluster_secrets_power-{name}" in wanted[node] for name in NODES for node in NODES)


def test_each_device_runs_on_the_other_node(site):
    for node in NODES:
        soon(lambda node=node: site.fencing("hv1", f"power-{node}") == other_than(node), PATIENCE, "it runs")
    assert site.run("hv1", "systemctl", "is-active", "sbd", check=False).strip() != "active"
    node = soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    assert site.active_on() == site.holders() == [node]


def test_the_volume_comes_back_once_the_device_has_cut_the_power(site, power):
    node = soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    other = other_than(node)
    nonce = site.written(node)
    boot = site.machine(node).boot_id()
    began = time.time()
    died = site.killed(node)
    soon(lambda: other in site.active_on(), PATIENCE, f"the volume is on {other}")
    took = time.monotonic() - died
    print(f"{node} died; the volume was active on {other} after {took:.0f} s")
    (fenced,) = [when for when in power.fenced(node) if when > began]
    assert int(site.run(other, "stat", "--format=%Z", "/dev/vmdata/one")) >= int(fenced)
    assert site.read_back(other) == nonce
    # The device has switched it on again.
    site.lab.hosts.wait_ssh(node, timeout=PATIENCE)
    assert site.machine(node).boot_id() != boot
    soon(lambda: site.online(other) == set(NODES), PATIENCE, f"{node} is back")
    soon(lambda: site.locks(node), PATIENCE, f"{node} has its daemon of locks")
    answers = site.highstate(*NODES)
    assert failures(answers) == {}
    found = changes(answers)
    assert found[other] == set()
    assert found[node] <= {"cluster_volume_group_vmdata"}
    assert site.active_on() == site.holders() == [other]
    assert power.leaks == []


def test_a_new_password_is_used_by_who_has_used_the_old_one(site, power):
    node = soon(lambda: site.where("hv1"), PATIENCE, "the volume's resource runs")
    other = other_than(node)
    power.password = secrets.token_urlsafe(24)
    declared(site, power)
    predicted = site.highstate(*NODES, test=True)
    done = site.highstate(*NODES)
    assert failures(done) == {}
    assert changes(done) == changes(predicted)
    assert all(f"cluster_secrets_power-{name}" in found for found in changes(done).values() for name in NODES)
    began = time.time()
    site.run(node, "stonith_admin", "--reboot", other, timeout=300)
    assert [when for when in power.fenced(other) if when > began]
    site.lab.hosts.wait_ssh(other, timeout=PATIENCE)
    soon(lambda: site.online(node) == set(NODES), PATIENCE, f"{other} is back")
    soon(lambda: site.locks(other), PATIENCE, f"{other} has its daemon of locks")
    assert site.active_on() == site.holders() == [node]
    assert power.leaks == []

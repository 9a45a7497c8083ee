"""Two nodes with a fence device that really cuts their power: resources come back, and never twice."""

from __future__ import annotations

import os
import secrets
import time
from xml.etree import ElementTree

import pytest
from cluster_site import all_online, changes, failures, soon
from fence_lab import kill
from fenced_site import declare, move, processes, resource

pytestmark = [
    pytest.mark.usefixtures("course"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
PILLARS = "/var/cache/salt/master/pillar"


@pytest.fixture(scope="module")
def fenced(site, device):
    """What the first run with a fence device and a resource predicted, did and did not do again."""
    declare(site, device)
    predicted = site.highstate("hv1", "hv2", test=True)
    done = site.converge("hv2", "hv1")
    return predicted, done, site.converge("hv1", "hv2")


def test_the_first_run_is_as_predicted_and_the_second_silent(fenced):
    predicted, done, again = fenced
    assert failures(predicted) == {}
    assert changes(done) == changes(predicted) == {
        "hv1": {"cluster_secrets_fence", "cluster_cib"},
        "hv2": {"cluster_secrets_fence"},
    }
    assert done["hv1"]["cluster_cib"]["changes"] == predicted["hv1"]["cluster_cib"]["changes"]
    assert changes(again) == {"hv1": set(), "hv2": set()}


def test_the_device_and_the_resource_run(site, fenced):
    assert resource(site, "hv1", "fence")
    soon(lambda: resource(site, "hv1"), what="the resource runs")
    assert processes(site) == [resource(site, "hv1")]


def test_the_devices_password_is_in_no_log_job_cib_or_command_line(site, device, fenced):
    cib = site.run("hv2", "cibadmin", "--query")
    assert 'name="passwd" value="lrm://"' in cib
    for node in ("hv1", "hv2"):
        assert site.found(node, device.password.encode()) == []
    # The master has its own copy of a pillar, which root alone can read.
    copies = {f"{PILLARS}/{minion}.p" for minion in ("controller", "hv1", "hv2", "hv3")}
    found = site.found("controller", device.password.encode())
    assert set(found) <= copies
    assert site.run("controller", "find", PILLARS, "-type", "f", "-not", "-perm", "600") == ""
    assert device.leaks == []
    assert site.run("hv1", "stat", "-c", "%a %U", "/var/lib/pacemaker/lrm/secrets/fence/passwd").strip() == "600 root"


def test_a_new_password_of_the_device_is_used_at_once(site, device, fenced):
    move(site, "hv1")
    device.password = secrets.token_urlsafe(24)
    # Whoever has used the device before would go on with the old one.
    assert site.lab.run("hv1", ["stonith_admin", "--reboot", "hv2"], check=False, timeout=120).returncode != 0
    declare(site, device)
    predicted = site.highstate("hv1", "hv2", test=True)
    done = site.converge("hv1", "hv2")
    assert changes(done) == changes(predicted) == {node: {"cluster_secrets_fence"} for node in ("hv1", "hv2")}
    began = time.time()
    site.run("hv1", "stonith_admin", "--reboot", "hv2", timeout=120)
    assert device.fenced("hv2")[-1] > began
    site.lab.hosts.wait_ssh("hv2")
    all_online(site, ["hv1", "hv2"])
    site.run("hv1", "crm_resource", "--cleanup", "--resource", "fence")
    assert changes(site.converge("hv1", "hv2")) == {"hv1": set(), "hv2": set()}
    assert device.leaks == []


def test_drift_is_repaired_and_what_others_made_stays(site, fenced):
    site.run("hv2", "crm_attribute", "--name", "stonith-timeout", "--update", "5s")
    site.run("hv2", "crm_resource", "--resource", "probe", "--set-parameter", "fake", "--parameter-value", "edited")
    site.run("hv2", "cibadmin", "--create", "--scope", "resources", "--xml-text",
             '<primitive id="theirs" class="ocf" provider="pacemaker" type="Dummy"/>')  # fmt: skip
    before = site.run("hv1", "cibadmin", "--query", "--scope", "configuration")
    predicted = site.highstate("hv1", test=True)["hv1"]["cluster_cib"]
    assert predicted["result"] is None
    assert site.run("hv1", "cibadmin", "--query", "--scope", "configuration") == before
    assert changes(site.converge("hv2"))["hv2"] == set(), "the bootstrap node alone does this"
    done = site.converge("hv1")["hv1"]["cluster_cib"]["changes"]
    assert done == {
        "property stonith-timeout": {"old": "5s", "new": "40s"},
        "resource probe parameter fake": {"old": "edited", "new": "declared"},
    }
    found = ElementTree.fromstring(site.run("hv2", "cibadmin", "--query"))  # noqa: S314 - from a host of the lab
    assert found.find(".//primitive[@id='theirs']") is not None
    assert changes(site.converge("hv1"))["hv1"] == set()
    site.run("hv2", "cibadmin", "--delete", "--scope", "resources", "--xml-text", '<primitive id="theirs"/>')


def test_a_node_that_dies_is_fenced_before_its_resource_runs_elsewhere(site, device, fenced):
    move(site, "hv2")
    died = time.time()
    kill(site.lab, "hv2")
    soon(lambda: resource(site, "hv1") == "hv1", 90, "the resource is back")
    fenced_at = device.fenced("hv2")[-1]
    assert fenced_at > died
    started = float(site.run("hv1", "stat", "-c", "%Y", "/run/Dummy-probe.state"))
    assert started >= int(fenced_at), "it ran on hv1 before hv2 was off"
    # The device has brought hv2 back, and it joins by itself.
    site.lab.hosts.wait_ssh("hv2")
    all_online(site, ["hv1", "hv2"])
    assert processes(site) == ["hv1"]
    assert failures(site.highstate("hv1", "hv2")) == {}


def test_resources_without_fencing_are_refused(site, fenced):
    kept = site.cluster
    site.cluster = {**kept, "stonith": {"fence": {"ensure": "absent"}}}
    site.write()
    try:
        said = site.run("hv1", "salt-call", "--log-level=quiet", "state.highstate", check=False)
    finally:
        site.cluster = kept
        site.write()
    assert "cluster:resources:probe: needs fencing, but no device below cluster:stonith has as target: hv1, hv2" in said
    assert resource(site, "hv1", "fence")


def test_what_is_absent_goes_with_its_secrets(site, fenced):
    site.cluster |= {"stonith": {"fence": {"ensure": "absent"}}, "resources": {"probe": {"ensure": "absent"}}}
    site.write()
    done = site.converge("hv1", "hv2")
    assert done["hv2"]["cluster_secrets_fence"]["changes"] == {"passwd": "removed"}
    assert {"resource probe", "resource fence"} <= set(done["hv1"]["cluster_cib"]["changes"])
    soon(lambda: processes(site) == [], what="the resource has stopped")
    assert changes(site.converge("hv1", "hv2")) == {"hv1": set(), "hv2": set()}

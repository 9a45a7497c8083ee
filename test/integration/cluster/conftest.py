"""Three hosts that are minions and no more, for a cluster of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import testinfra
from cluster_site import Course, Site
from fence_lab import Device
from fenced_site import with_agent

from lab import network
from lab.lab import Lab
from lab.ui import Progress

NAME = f"{os.environ.get('LAB_NAME', 'test')}-cluster"
KEEP = os.environ.get("LAB_KEEP") == "1"


@pytest.fixture(scope="session", name="site")
def bare_hosts(loud) -> Iterator[Site]:
    """A controller and three hosts; a lab that was kept has no bare hosts any more."""
    lab = Lab(NAME, Progress())
    try:
        with loud.disabled():
            lab.up(only=["controller", "hv1", "hv2", "hv3"], highstate=False)
        yield Site(lab)
    finally:
        differences = [] if KEEP else lab.down()
    assert differences == [], "the lab left the machine changed"


@pytest.fixture(scope="session")
def course(site) -> Course:
    """What happened from bare hosts to a cluster of two; the tests go on from there, in their order."""
    return Course(site)


@pytest.fixture(scope="session", name="device")
def a_fence_device(site) -> Iterator[Device]:
    """The device, with its agent on both nodes."""
    device = with_agent(site, Device(site.lab, network.address(site.lab.state["index"], 1)))
    yield device
    device.close()


@pytest.fixture(scope="module")
def host(request, kitchen_config):
    """The host that the suite proves: Test Kitchen's, or the one that has left the cluster, with the suite's pillar."""
    if kitchen_config is not None:
        sudo = os.environ.get("KITCHEN_USERNAME", "root") != "root"
        return testinfra.get_host("ssh://kitchen", ssh_config=str(kitchen_config), sudo=sudo)
    site = request.getfixturevalue("site")
    suite = site.lab.kitchen.suites["cluster"]
    site.suite(suite.host, (request.config.rootpath / suite.pillars["suite.sls"]).read_text())
    site.converge(suite.host)
    return testinfra.get_host(f"ssh://{suite.host}", ssh_config=str(site.lab.paths.ssh_config))

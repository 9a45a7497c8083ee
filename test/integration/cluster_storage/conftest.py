"""Two virtual machines that share disks and are minions, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import testinfra
from guest_site import GuestSite
from storage_site import NODES, SHARED_DISKS, Course, StorageSite, bare_machines

NAME = f"{os.environ.get('LAB_NAME', 'test')}-disks"


@pytest.fixture(scope="session", name="site")
def bare_hosts(loud) -> Iterator[StorageSite]:
    """A controller and two machines; a lab that was kept has no bare hosts any more."""
    with bare_machines(loud, NAME, NODES, SHARED_DISKS) as lab:
        yield GuestSite(lab)


@pytest.fixture(scope="session")
def course(site) -> Course:
    """What happened from bare hosts to a shared volume; the tests go on from there, in their order."""
    return Course(site, thorough=os.environ.get("LAB_SLOW") == "1")


@pytest.fixture(scope="module")
def host(request, kitchen_config):
    """The host that the suite proves: Test Kitchen's, or the first node."""
    if kitchen_config is not None:
        sudo = os.environ.get("KITCHEN_USERNAME", "root") != "root"
        return testinfra.get_host("ssh://kitchen", ssh_config=str(kitchen_config), sudo=sudo)
    site = request.getfixturevalue("site")
    request.getfixturevalue("course")
    # As Test Kitchen does it: a node that was away has the locks of the group with its next highstate.
    if "vmdata" not in site.run("hv1", "lvmlockctl", "--info"):
        site.converge("hv1")
    return testinfra.get_host("ssh://hv1", ssh_config=str(site.lab.paths.ssh_config))

"""Hosts for the tests: one of Test Kitchen's, or those of a lab that is started for the run.

A verifier of Test Kitchen names its host in the environment (KITCHEN_HOSTNAME and the others); the tests of a
suite then run against it alone. Without them the tests start a lab. ``LAB_NAME`` names it (default ``test``);
``LAB_KEEP=1`` leaves it running for a look; a run on it again has no first highstate to judge. ``LAB_PLATFORM``
chooses the operating system of its hosts. ``LAB_SLOW=1`` runs what is marked as long, too.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
import testinfra
from support import PLATFORM, FirstRun, first_run
from xdist.scheduler import LoadScopeScheduling

from lab.lab import Lab
from lab.ui import Progress

NAME = os.environ.get("LAB_NAME", "test")
KEEP = os.environ.get("LAB_KEEP") == "1"
# Suites with hosts of their own. All others share a lab, in which one test goes on from what the last one left.
OWN_HOSTS = {
    **dict.fromkeys(("network", "tunnels"), "stacks"),
    "uplink": "uplink",
    "vm": "machines",
    "cluster": "cluster",
    "cluster_storage": "disks",
}
LONGEST_FIRST = ("lab", "disks", "stacks", "uplink", "machines", "cluster")


class ByLab(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Gives all tests of a lab to one worker, and everything else file by file."""

    def __init__(self, config, log):
        config.option.loadscopereorder = False  # the order is that of the collection
        super().__init__(config, log)

    def _split_scope(self, nodeid):
        """Return what tests of one worker have in common."""
        return _lab_of(nodeid) or nodeid.partition("::")[0]


def _lab_of(nodeid):
    """Return the lab on which a test runs; empty if it needs none."""
    folder = PurePosixPath(nodeid.partition("::")[0]).parent
    return OWN_HOSTS.get(folder.name, "lab") if folder.parent.name == "integration" else ""


def pytest_xdist_make_scheduler(config, log):
    """Several workers share the labs out."""
    return ByLab(config, log)


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes for one thing, unless it is wanted; begin with what takes longest."""
    if os.environ.get("LAB_SLOW") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if hasattr(config, "workerinput"):
        order = [*LONGEST_FIRST, ""]
        items.sort(key=lambda item: order.index(_lab_of(item.nodeid)))


def made(name, capsys, **options):
    """Yield a lab that is up without a highstate, and remove it afterwards."""
    assert "KITCHEN_HOSTNAME" not in os.environ, "Test Kitchen has one host: this test must be left out there"
    lab = Lab(name, Progress())
    try:
        with capsys.disabled():
            lab.up(highstate=False, **options)
        yield lab
    finally:
        differences = [] if KEEP else lab.down()
    assert differences == [], "the lab left the machine changed"


class Loud:
    """Shows the lab's progress although pytest collects output (capsys lasts for one test only)."""

    def __init__(self, config):
        self.manager = config.pluginmanager.getplugin("capturemanager")

    def disabled(self):
        return self.manager.global_and_fixture_disabled()


@pytest.fixture(scope="session")
def loud(pytestconfig):
    return Loud(pytestconfig)


@pytest.fixture(scope="session")
def fresh(loud):
    """The lab: a controller and two hypervisors that are minions and no more."""
    yield from made(NAME, loud, platform=PLATFORM)


@pytest.fixture(scope="session")
def first(fresh) -> FirstRun:
    """What the first highstate of the lab did, with what was predicted before and found after."""
    return first_run(fresh)


@pytest.fixture(scope="session")
def lab(fresh, first):
    """The lab after its first highstate; the guest's kernel is on its hypervisors."""
    assert first.green, first.failures()
    fresh.push_guest()
    return fresh


@pytest.fixture(scope="session")
def fresh13(request, loud):
    """A lab of Debian 13 hosts: a controller and a hypervisor, or the lab if that is one."""
    if PLATFORM == "debian-13":
        yield request.getfixturevalue("fresh")
        return
    yield from made(f"{NAME}-13", loud, platform="debian-13", only=["controller", "hv1"])


@pytest.fixture(scope="session")
def first13(request, fresh13) -> FirstRun:
    """What the first highstate of the Debian 13 lab did."""
    return request.getfixturevalue("first") if PLATFORM == "debian-13" else first_run(fresh13)


@pytest.fixture(scope="session")
def kitchen_config(tmp_path_factory):
    """An ssh configuration for the host that Test Kitchen names; None without one."""
    name = os.environ.get("KITCHEN_HOSTNAME")
    if not name:
        return None
    lines = [
        "Host kitchen",
        f"  HostName {name}",
        f"  Port {os.environ.get('KITCHEN_PORT', '22')}",
        f"  User {os.environ.get('KITCHEN_USERNAME', 'root')}",
        "  BatchMode yes",
    ]
    if key := os.environ.get("KITCHEN_SSH_KEY"):
        lines += [f"  IdentityFile {key}", "  IdentitiesOnly yes"]
    if known := os.environ.get("KITCHEN_KNOWN_HOSTS"):
        lines += [f"  UserKnownHostsFile {known}", "  StrictHostKeyChecking yes"]
    else:
        # A machine that Test Kitchen has made a minute ago on this computer: its key is learnt on first contact.
        learnt = tmp_path_factory.mktemp("kitchen") / "known_hosts"
        lines += [f"  UserKnownHostsFile {learnt}", "  StrictHostKeyChecking accept-new"]
    path = tmp_path_factory.mktemp("kitchen") / "ssh_config"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def host(request, kitchen_config):
    """The host that a suite proves, as testinfra sees it: Test Kitchen's, or the lab's for this suite."""
    if kitchen_config is not None:
        sudo = os.environ.get("KITCHEN_USERNAME", "root") != "root"
        return testinfra.get_host("ssh://kitchen", ssh_config=str(kitchen_config), sudo=sudo)
    running = request.getfixturevalue("lab")
    suite = running.kitchen.suites[Path(request.module.__file__).parent.name]
    return testinfra.get_host(f"ssh://{suite.host}", ssh_config=str(running.paths.ssh_config))


@pytest.fixture
def controller(lab):
    """The master, as testinfra sees it."""
    return testinfra.get_host(f"ssh://{lab.hosts.controller}", ssh_config=str(lab.paths.ssh_config))

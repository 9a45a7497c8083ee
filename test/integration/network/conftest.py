"""A controller and, for each network stack, a virtual machine that is its minion; two machines run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import testinfra
import yaml
from network_course import WANTED, Record, run
from network_site import Site
from support import PLATFORM

from lab import stacks
from lab.lab import Lab
from lab.ui import Progress

NAME = f"{os.environ.get('LAB_NAME', 'test')}-net"
KEEP = os.environ.get("LAB_KEEP") == "1"


@pytest.fixture(scope="session", name="farm")
def machines(loud) -> Iterator[stacks.StackHosts]:
    """The machines, none of which runs yet."""
    with loud.disabled():
        lab = Lab(NAME, Progress())
        lab.up(platform=PLATFORM, only=["controller"], highstate=False)
        farm = stacks.StackHosts(lab, [stacks.StackHost(name, name) for name in WANTED])
        farm.prepare()
    try:
        yield farm
    finally:
        left = []
        if not KEEP:
            farm.down()
            left = lab.down()
    assert left == [], "the lab left the machine changed"


@pytest.fixture(scope="session", name="records")
def what_happened(farm, loud) -> dict[str, Record]:
    """What the course of changes has come to, by stack; an exception where one broke off."""
    with loud.disabled():
        found: dict[str, Record] = farm.each(lambda name: run(Site(farm, name), keep=KEEP or name == WANTED[0]))
        return found


def seen(records, name) -> Record:
    """Return what has been seen of a stack."""
    found = records[name]
    if isinstance(found, Exception):
        raise AssertionError(f"the course of {name} broke off") from found
    assert isinstance(found, Record)
    return found


@pytest.fixture(params=WANTED)
def record(request, records) -> Record:
    """What the course of changes has come to with one stack."""
    return seen(records, request.param)


@pytest.fixture(scope="module")
def host(request, kitchen_config):
    """The host that the suite proves: Test Kitchen's, or the first of the machines, which gets the suite's pillar."""
    if kitchen_config is not None:
        sudo = os.environ.get("KITCHEN_USERNAME", "root") != "root"
        return testinfra.get_host("ssh://kitchen", ssh_config=str(kitchen_config), sudo=sudo)
    farm = request.getfixturevalue("farm")
    seen(request.getfixturevalue("records"), WANTED[0])
    site = Site(farm, WANTED[0])
    suite = farm.lab.kitchen.suites["network"]
    text = (request.config.rootpath / suite.pillars["suite.sls"]).read_text()
    site.lay(yaml.safe_load(text)["network"])
    rows = site.apply()
    assert [f"{name}: {row['comment']}" for name, row in rows.items() if row["result"] is not True] == []
    return testinfra.get_host(f"ssh://{site.name}", ssh_config=str(farm.lab.paths.ssh_config))

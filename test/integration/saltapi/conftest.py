"""A controller that operators may log in at: Test Kitchen's host, or the lab's with the suite's pillar."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import testinfra
import yaml
from saltapi_client import PORT, Api

from lab import salt

PILLAR = Path(__file__).with_name("pillar.sls")


def answers(host):
    """Wait until salt-api answers after a restart, and return its door."""
    api = Api(host)
    deadline = time.monotonic() + 120
    while not host.socket(f"tcp://127.0.0.1:{PORT}").is_listening:
        assert time.monotonic() < deadline, host.run("journalctl -u salt-api -n 30 --no-pager").stdout
        time.sleep(0.5)
    return api


def settled(running):
    """Wait until a restart that a highstate has announced is over, and every minion answers its master."""
    unit = "hypervisor-formula-salt-restart.service"
    deadline = time.monotonic() + 120
    while running.run(running.hosts.controller, ["systemctl", "is-active", unit], check=False).returncode == 0 or (
        "activating" in running.run(running.hosts.controller, ["systemctl", "is-active", unit], check=False).stdout
    ):
        assert time.monotonic() < deadline, "the restart did not come"
        time.sleep(0.5)
    salt.wait_answering(running.hosts)


def pillar(running, more=None):
    """Give the controller the suite's pillar."""
    files = salt.pillar_files(running.hosts)
    name = f"{running.hosts.controller}.sls"
    over = yaml.safe_load(PILLAR.read_text()) if more is None else more
    salt.merge_pillar(running.hosts, {name: salt.merged_yaml(files[name], over)})


@pytest.fixture(scope="session")
def prepared(request):
    """What the first and the second highstate of the lab's controller did with the suite's pillar."""
    running = request.getfixturevalue("lab")
    controller = running.hosts.controller
    pillar(running)
    try:
        predicted = salt.highstate(running.hosts, [controller], test=True)
        first = salt.check_green(salt.highstate(running.hosts, [controller]))
        settled(running)
        second = salt.check_green(salt.highstate(running.hosts, [controller]))
        yield salt.summary(predicted[controller]), first[controller], second[controller]
    finally:
        salt.merge_pillar(running.hosts, salt.pillar_files(running.hosts))
        # With nobody in pillar everything is taken away again, unless a suite that came later has done so.
        stood = running.run(controller, ["systemctl", "is-active", "salt-api"], check=False).returncode == 0
        last = salt.check_green(salt.highstate(running.hosts, [controller]))[controller]
        settled(running)
    assert set(last["changed"]) == ({"saltapi_absent", "saltapi_inventory_absent"} if stood else set())
    listed = running.run(controller, ["systemctl", "list-unit-files", "--quiet", "hypervisor-inventory*"], check=False)
    assert listed.stdout == ""
    assert running.run(controller, ["systemctl", "is-active", "salt-api"], check=False).stdout.strip() == "inactive"
    assert running.run(controller, ["ls", "/etc/salt/master.d"]).stdout.split() == [
        "hypervisor-pki.conf",
        "hypervisor.conf",
    ]


@pytest.fixture(scope="session")
def api(request, kitchen_config):
    """salt-api of the host that proves the suite."""
    if kitchen_config is not None:
        sudo = os.environ.get("KITCHEN_USERNAME", "root") != "root"
        return answers(testinfra.get_host("ssh://kitchen", ssh_config=str(kitchen_config), sudo=sudo))
    request.getfixturevalue("prepared")
    running = request.getfixturevalue("lab")
    name = running.hosts.controller
    return answers(testinfra.get_host(f"ssh://{name}", ssh_config=str(running.paths.ssh_config)))

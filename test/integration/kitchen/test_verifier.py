"""The command that Test Kitchen runs to verify a suite, run as Test Kitchen would, on the lab's host.

Where Test Kitchen itself is installed, it converges and verifies the lab's hosts as well.
"""

import os
import shutil
import subprocess

import pytest

from lab import kitchen
from lab.state import CHECKOUT

LIMIT = 600  # seconds for one command


def targets(lab):
    """How Test Kitchen reaches the hosts of a lab."""
    hosts = lab.hosts
    return {
        name: kitchen.Target(
            host=name,
            address=hosts.addresses[name],
            ssh_key=lab.paths.ssh_key,
            known_hosts=lab.paths.root / "known_hosts",
            kind=hosts.kind(name),
        )
        for name in hosts.specs
    }


def ended_well(argv, folder, environment):
    """Run a command and show what it printed if it failed."""
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.long
def test_verifier_commands(lab):
    reached = targets(lab)
    # What the lab's own pillar brings about; the other suites have tests that give their hosts the suite's pillar.
    suites = [lab.kitchen.suites[name] for name in ("kvm", "libvirt")]
    for suite in suites:
        environment = kitchen.verifier_environment(suite, lab.state["platform"], reached[suite.host])
        ended_well(suite.verifier_argv, CHECKOUT, environment)


def copied(folder):
    """A copy of what git has of the checkout, where Test Kitchen may write."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target)
    (folder / ".venv").symlink_to(CHECKOUT / ".venv")


def test_override_for_test_kitchen(lab, tmp_path):
    path, reached = tmp_path / ".kitchen.local.yml", targets(lab)
    kitchen.write_override(lab.kitchen, "test", lab.state["platform"], reached, path)
    text = path.read_text(encoding="utf-8")
    for name, suite in lab.kitchen.suites.items():
        assert (f"name: {name}\n" in text) == (suite.host in reached and suite.works_on("container"))
    if shutil.which("kitchen"):
        copied(tmp_path)
        for action in ("converge", "verify"):
            ended_well(["kitchen", action, "--no-color"], tmp_path, {"HOME": str(tmp_path)})

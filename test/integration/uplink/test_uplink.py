"""The uplink moves into a bridge with each network stack, or goes back: the program alone, with a short window.

The formula, with minions, goes the same way in the suite ``network``, and ``make faults`` has all the faults. What is
in test/golden/network-backends is read there by the stack's own tool.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass

import pytest
from faults import interfaces, network
from faults.subject import GRACE, WINDOW, Subject
from support import PLATFORM

from lab import identity, stacks, vmstack
from lab.lab import Lab
from lab.state import CHECKOUT
from lab.ui import Progress

NAME = f"{os.environ.get('LAB_NAME', 'test')}-up"
KEEP = os.environ.get("LAB_KEEP") == "1"
FAULTS = ("wrong_port", "wrong_gateway", "applier_killed_applied", "good")
# Seconds that an emulated machine, which shares two processors with others, may need more for its own commands.
SLOWNESS = 15
GOLDEN = CHECKOUT / "test/golden/network-backends"
FOLDER = "/run/golden"
# How each stack's tool reads files without making them live; networkd has none for that.
READS = {
    "ifupdown": f"cat {FOLDER}/etc/network/interfaces.d/* >{FOLDER}/all && "
    f"ifup --no-act --no-scripts --all --interfaces={FOLDER}/all --state-dir={FOLDER}",
    "netplan": f"netplan generate --root-dir {FOLDER}",
    "networkmanager": f"for file in {FOLDER}/etc/NetworkManager/system-connections/*; do "
    'nmcli --offline connection modify connection.id same <"$file" >/dev/null || exit 1; done',
}
# What no tool takes, to see that each reads what it is given.
SPOILS = {
    "ifupdown": ("inet static", "inet nothing"),
    "netplan": ("dhcp4: ", "dhcp9: "),
    "networkmanager": ("method=manual", "method=nothing"),
}
PROFILES = [(stack, path.stem.partition("-")[2]) for stack in READS for path in sorted(GOLDEN.glob(f"{stack}-*.txt"))]


@dataclass
class Course:
    """What came of a machine.

    Attributes:
        runs: what each change has come to, in the order of FAULTS.
        read: what the stack's own tool says of golden files, by name: return code and output.
    """

    runs: list[interfaces.Run]
    read: dict[str, tuple[int, str]]


def read(subject, name, spoil=("", "")):
    """Have the stack's own tool read golden files, spoilt by one replacement; return its code and what it says."""
    text = (GOLDEN / f"{subject.stack}-{name}.txt").read_text()
    files = {}
    assert spoil[0] in text
    text = text.replace(*spoil) if spoil[0] else text
    for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, _, content = part.partition("\n")
        path, _, mode = head.rpartition(" ")
        files[f"{FOLDER}{path}"] = (int(mode, 8), content.encode())
    # In one connection, since each takes an emulated machine a second.
    script = f"rm -rf {FOLDER}; tar -x -C / --no-overwrite-dir; {READS[subject.stack]}"
    hosts = subject.stacks.hosts
    done = hosts.run(subject.name, ["sh", "-ec", script], stdin=identity.archive(files), check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module", name="courses")
def what_came_of_each(loud):
    """What has come of each machine, by stack; an exception where one broke off."""
    with loud.disabled():
        lab = Lab(NAME, Progress())
        lab.up(platform=PLATFORM, only=["controller"], highstate=False, demo=False)
        farm = stacks.StackHosts(lab, stacks.all_stacks())
        network.begin(farm)

        def course(name):
            machine = network.start(farm, name)
            subject = Subject(farm, name, random.Random(name))  # noqa: S311 - the same moments in each run
            subject.install()
            runs = [interfaces.attempt(subject, fault) for fault in FAULTS]
            found = Course(runs, {profile: read(subject, profile) for stack, profile in PROFILES if stack == name})
            if name in READS:
                found.read["wrong"] = read(subject, "static", SPOILS[name])
            machine.kill()
            return found

        # One machine at a time, since other hosts run beside it, and the window is as short for a slow machine.
        found = farm.each(course, at_once=1)
    yield found
    with loud.disabled():
        farm.down()
        left = [] if KEEP else lab.down()
    assert left == [], "the lab left the machine changed"


def course_of(courses, stack):
    """Return what has come of a machine."""
    found = courses[stack]
    if isinstance(found, Exception):
        raise AssertionError(f"the machine with {stack} broke off") from found
    return found


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=FAULTS)
@pytest.mark.parametrize("stack", vmstack.STACKS)
def test_a_change_is_confirmed_or_all_is_as_it_was(courses, stack, number):
    run = course_of(courses, stack).runs[number]
    assert run.differences == []
    assert run.end in run.wanted, run.said
    assert run.seconds <= WINDOW + GRACE + SLOWNESS


@pytest.mark.parametrize(("stack", "profile"), PROFILES)
def test_the_stacks_own_tool_reads_what_was_reviewed(courses, stack, profile):
    code, said = course_of(courses, stack).read[profile]
    assert code == 0, said


@pytest.mark.parametrize("stack", READS)
def test_the_tools_refuse_what_is_wrong(courses, stack):
    code, _ = course_of(courses, stack).read["wrong"]
    assert code != 0

"""The runner ``fleet`` on a master with two hypervisors: guests that count seconds, moved by ``salt-run``."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import counts_on, last_second, moor, seconds, start_guest, state_of

from lab import salt

NAMES = ("anchor", "barge", "canoe")
# Plugged into a bridge that the other host does not have.
STUCK = "moored"
BRIDGE = "brfleet"
HEARING = "/run/fleet-hearing"
SHUTDOWN = "/etc/default/libvirt-guests"
# Prints what it hears on the master's bus until a guest has moved.
EVENTS = f"""
import json, pathlib
import salt.config, salt.utils.event
options = salt.config.client_config("/etc/salt/master")
with salt.utils.event.get_event("master", options["sock_dir"], opts=options) as bus:
    assert bus.connect_pub()
    pathlib.Path({HEARING!r}).touch()
    step = ""
    while step != "moved":
        event = bus.get_event(wait=60, full=True, tag="hypervisor/fleet/")
        _, _, job, step = event["tag"].split("/")
        print(json.dumps([step, job == event["data"]["jid"], event["data"]["guest"], event["data"]["to"]]))
"""


def fleet(lab, *words, good=True):
    """Call a function of the runner; return its data."""
    argv = ["salt-run", "--out=json", "--log-level=quiet", *(f"fleet.{word}" if not place else word
            for place, word in enumerate(words))]  # fmt: skip
    done = lab.run(lab.hosts.controller, argv, check=False, timeout=300)
    found = json.loads(done.stdout)
    assert "Traceback" not in done.stdout
    assert (done.returncode == 0) is good, found
    return found


def table(lab, *words):
    """Call a function of the runner as a person does; return its lines."""
    argv = ["salt-run", "--log-level=quiet", *words]
    return lab.run(lab.hosts.controller, argv, timeout=120).stdout.splitlines()


def outcomes(found):
    return {row["name"]: row["outcome"] for row in found["guests"]}


def places(lab, name):
    """Where a guest is, and how."""
    found = {host: state_of(lab, host, name) for host in ("hv1", "hv2")}
    return {host: state for host, state in found.items() if state}


def ends(lab, *names):
    """Remove guests wherever they are, with their records."""
    records = "/var/lib/hypervisor-formula/migrated"
    text = f'for name; do virsh destroy "$name"; virsh undefine "$name"; rm -f "{records}/$name.json"; done'
    for host in lab.hosts.hypervisors:
        lab.run(host, ["sh", "-c", text, "sh", *names], check=False)


def cleared(lab):
    """Remove whatever these tests make."""
    ends(lab, *NAMES, STUCK, "spread", "pack")
    lab.run("hv1", ["ip", "link", "delete", BRIDGE], check=False)
    lab.run(lab.hosts.controller, ["rm", "-rf", "/var/cache/salt/master/hypervisor-fleet"])


@pytest.fixture(scope="module", autouse=True)
def crew(lab):
    """Three guests that count on hv1, beside what the lab has; modules reach a lab that was kept."""
    for host in lab.hosts.hypervisors:
        lab.run(host, ["salt-call", "--out=quiet", "saltutil.sync_all"], timeout=120)
    lab.run(lab.hosts.controller, ["salt-run", "--log-level=quiet", "saltutil.sync_all"], timeout=120)
    cleared(lab)
    ends(lab, "demo")
    for name in NAMES:
        start_guest(lab, "hv1", name)
    yield
    cleared(lab)


def test_a_glance_at_hosts_and_guests(lab):
    lines = table(lab, "fleet.hosts")
    assert lines[0].split() == ["HOST", "STATE", "GUESTS", "RUN", "CPUS", "GIVEN", "MEMORY", "GIVEN", "LOAD"]
    assert [line.split()[:5] for line in lines[1:]] == [["hv1", "ok", "3", "of", "3"], ["hv2", "ok", "0", "of", "0"]]
    lines = table(lab, "fleet.guests")
    assert [line.split()[:6] for line in lines[1:]] == [[name, "hv1", "running", "1", "128", "MiB"] for name in NAMES]
    found = fleet(lab, "guests")
    assert [row["name"] for row in found["hv1"]["guests"]] == list(NAMES)


def differing(found):
    return {row["host"]: {state["id"] for state in row["states"]} for row in found["hosts"]}


def test_a_host_that_differs_from_its_declaration_is_found_and_left_as_it_is(lab):
    before = differing(fleet(lab, "drift"))
    assert set(before) == {"hv1", "hv2"}
    assert "libvirt_host_shutdown" not in before["hv1"] | before["hv2"]
    lab.run("hv1", ["chmod", "0600", SHUTDOWN])
    try:
        found = fleet(lab, "drift")
        assert found["same"] is False
        assert differing(found) == before | {"hv1": before["hv1"] | {"libvirt_host_shutdown"}}
        (row,) = [row for row in found["hosts"] if row["host"] == "hv1"]
        assert (row["outcome"], row["total"] > 20) == ("differs", True)
        lines = table(lab, "fleet.drift", "hv1")
        assert lines[0] == "0 of 1 hosts are as declared; different: hv1"
        (line,) = [line for line in lines if "libvirt_host_shutdown" in line]
        assert line.split()[:4] == ["hv1", "changes", "file.managed", "libvirt_host_shutdown"]
        assert f"The file {SHUTDOWN} is set to be changed" in line
        assert lab.run("hv1", ["stat", "--format=%a", SHUTDOWN]).stdout.strip() == "600"
    finally:
        lab.run("hv1", ["chmod", "0644", SHUTDOWN])
    assert differing(fleet(lab, "drift")) == before


def test_a_new_guest_goes_to_the_emptier_or_the_fuller_host_and_why(lab):
    spread = fleet(lab, "create", "spread", "mem=64", "cpu=1", "ensure=defined")
    assert spread["host"] == "hv2"
    assert spread["why"].startswith("hv2 is the emptiest host that it fits on: 64 of ")
    assert "hv1 448 of " in spread["why"]
    pack = fleet(lab, "create", "pack", "mem=64", "cpu=1", "ensure=defined", "policy=pack")
    assert pack["host"] == "hv1"
    assert pack["why"].startswith("hv1 is the fullest host that it fits on: 448 of ")
    assert (places(lab, "spread"), places(lab, "pack")) == ({"hv2": "shut off"}, {"hv1": "shut off"})
    # A host that is named is taken, and a name that is taken is refused.
    assert (
        "would be made on hv1: it was named" in fleet(lab, "create", "third", "host=hv1", "mem=64", "test=True")["text"]
    )
    assert fleet(lab, "create", "pack", "mem=64", good=False)["text"] == "hv1 has a guest pack already"
    vast = fleet(lab, "create", "vast", "mem=30000000", good=False)
    assert sorted(vast["against"]) == ["hv1", "hv2"]
    assert vast["against"]["hv1"][0].startswith("memory: 30000000 MiB needed, ")
    ends(lab, "spread", "pack")


def test_a_running_guest_moves_and_counts_on(lab):
    before = last_second(lab, "hv1", "anchor")
    moved = fleet(lab, "migrate", "anchor")
    assert (moved["outcome"], moved["from"], moved["to"], moved["state"]) == ("moved", "hv1", "hv2", "running")
    assert moved["why"] == "hv2 is the only host that it fits on"
    counts_on(lab, "hv2", "anchor")
    printed = lab.console("hv2", "anchor")
    assert "guest boot" not in printed
    assert seconds(printed)[0] >= before
    assert fleet(lab, "migrate", "anchor", "hv2")["text"] == "anchor is on hv2 already"
    assert fleet(lab, "migrate", "anchor", "hv1")["why"] == "it was named"
    counts_on(lab, "hv1", "anchor")


@pytest.mark.long  # the page does it too, see web/test_evacuate.py
def test_a_host_is_emptied_but_for_what_cannot_move_and_gets_its_guests_back(lab):
    moor(lab, "hv1", STUCK, BRIDGE)
    asked = fleet(lab, "evacuate", "hv1", "test=True", good=False)
    assert outcomes(asked) == {STUCK: "stays", **dict.fromkeys(NAMES, "possible")}
    assert not fleet(lab, "hosts")["hv1"]["evacuated"]

    done = fleet(lab, "evacuate", "hv1", good=False)
    assert outcomes(done) == {STUCK: "stays", **dict.fromkeys(NAMES, "moved")}
    assert done["text"] == "hv1 is not evacuated whole: 3 of 4 guests moved"
    (stuck,) = [row for row in done["guests"] if row["outcome"] == "stays"]
    assert stuck["against"] == {"hv2": ["network: hv2 has no bridge or device brfleet"]}
    for name in NAMES:
        counts_on(lab, "hv2", name)
    assert places(lab, STUCK) == {"hv1": "paused"}
    # Again: nothing moves, and the same stays for the same reason.
    again = fleet(lab, "evacuate", "hv1", good=False)
    assert [(row["outcome"], row["against"]) for row in again["guests"]] == [("stays", stuck["against"])]
    # A new guest would go to the fuller host: the other one is evacuated.
    assert fleet(lab, "create", "new", "mem=64", "test=True")["against"] == {"hv1": ["is evacuated"]}

    back = fleet(lab, "restore", "hv1")
    assert outcomes(back) == dict.fromkeys(NAMES, "moved")
    for name in NAMES:
        counts_on(lab, "hv1", name)
    assert fleet(lab, "restore", "hv1")["text"] == "hv1 was not evacuated"
    assert not fleet(lab, "hosts")["hv1"]["evacuated"]


def test_two_acts_on_one_guest_and_a_minion_that_is_killed(lab):
    """The migration is made slow, so that there is a midst of it."""
    controller = lab.hosts.controller
    lab.run("hv1", ["virsh", "migrate-setspeed", "barge", "1"])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            lab.run, controller, ["salt-run", "--out=json", "--log-level=quiet", "fleet.migrate", "barge", "hv2"],
            check=False, timeout=300,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while "Unbounded" not in lab.run("hv1", ["virsh", "domjobinfo", "barge"], check=False).stdout:
            assert time.monotonic() < deadline, "the migration has not begun"
            time.sleep(0.3)
        second = fleet(lab, "migrate", "barge", "hv2", good=False)
        assert second["outcome"] == "busy"
        assert second["text"].startswith("is held by fleet.migrate of root (job 20")
        lab.run("hv1", ["systemctl", "kill", "--signal=KILL", "salt-minion"])
        lab.run("hv1", ["virsh", "migrate-setspeed", "barge", "8796093022207"], check=False)
        lab.run("hv1", ["systemctl", "start", "salt-minion"])
        done = json.loads(first.result().stdout)
    # Whatever libvirt made of it: the guest is in one place, the runner says which, and it counts on.
    assert done["outcome"] in {"moved", "failed"}, done
    assert "the minion of hv1 has ended without an answer" in done["text"]
    where = {"moved": "hv2", "failed": "hv1"}[done["outcome"]]
    assert places(lab, "barge") == {where: "running"}
    counts_on(lab, where, "barge")
    salt.wait_answering(lab.hosts)
    # The lock has ended with its act.
    assert fleet(lab, "migrate", "barge", {"hv1": "hv2", "hv2": "hv1"}[where])["outcome"] == "moved"


def test_progress_comes_as_events(lab):
    controller = lab.hosts.controller
    (source,) = places(lab, "canoe")
    target = {"hv1": "hv2", "hv2": "hv1"}[source]
    lab.run(controller, ["rm", "-f", HEARING])
    with ThreadPoolExecutor(1) as pool:
        hearing = pool.submit(
            lab.run, controller, ["timeout", "120", "/opt/saltstack/salt/bin/python", "-c", EVENTS], timeout=150
        )
        deadline = time.monotonic() + 60
        while lab.run(controller, ["test", "-e", HEARING], check=False).returncode:
            assert time.monotonic() < deadline, "nobody listens on the bus"
            time.sleep(0.3)
        fleet(lab, "migrate", "canoe", target)
        rows = [json.loads(line) for line in hearing.result().stdout.splitlines()]
    assert rows == [[step, True, "canoe", target] for step in ("checking", "moving", "moved")]

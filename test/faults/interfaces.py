"""Changes of a host's interfaces, good ones and ones that go wrong, and whether the host is then as it has to be.

A run ends in one of three ways: refused (nothing was touched), old (all is as it was before), new (confirmed). Whatever
else a host looks like afterwards is a broken promise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lab.proc import CommandError, LabError

from . import by_hand
from .frozen import LAZY
from .subject import KILL, PAUSE, SIX_ROUTER, Run, Subject

Course = Callable[[Subject], "dict[str, Any] | None"]


class Fault(NamedTuple):
    """A change and what goes wrong with it.

    Attributes:
        course: makes the change; returns what network-profile said.
        wanted: the ends that are as promised.
        reasons: parts of why it has to be refused or undone, any of which does. Another reason is that of something
            else: then nobody knows what this fault does.
    """

    course: Course
    wanted: tuple[str, ...]
    reasons: tuple[str, ...]


FAULTS: dict[str, Fault] = {}
SILENT = "does not answer"
DOWN = "the host went down before the change was confirmed"
ENDED = "the process that made the change was ended"
# These need the controller for themselves: its master is stopped, its one DHCP server knows one machine.
ALONE = ("master_down", "leased", "no_dhcp_server")


FAMILIES = ("inet", "inet6")
# Before these somebody has made a VLAN by hand.
ON_A_VLAN = ("retagged",)


def fault(*wanted: str, reasons: tuple[str, ...] = ()) -> Callable[[Course], Course]:
    """Register a fault, the ends that are as promised, and why."""

    def register(function: Course) -> Course:
        FAULTS[function.__name__] = Fault(function, wanted, reasons)
        return function

    return register


def bridge(**spec: Any) -> dict[str, Any]:
    """Return br0 on eth0."""
    return {"bridges": {"br0": {"ports": ["eth0"], **spec}}}


@fault("new")
def good(subject: Subject) -> dict[str, Any] | None:
    """Nothing is wrong."""
    return subject.apply(subject.pillar())


@fault("new")
def leased(subject: Subject) -> dict[str, Any] | None:
    """The bridge asks a DHCP server, which knows the card's MAC address."""
    with subject.dhcp_server():
        answer = subject.apply(subject.pillar(bridge(dhcp4=True)))
        subject.over()
    return answer


@fault("new")
def both_families(subject: Subject) -> dict[str, Any] | None:
    """The bridge gets IPv6, too, with a router that answers."""
    own = subject.own()
    spec = {**own, "addresses": [*own["addresses"], f"{subject.six}/64"], "gateway6": SIX_ROUTER}
    return subject.apply(subject.pillar(bridge(**spec)))


@fault("refused", reasons=("no such card",))
def wrong_port(subject: Subject) -> dict[str, Any] | None:
    """There is no such card."""
    return subject.apply(subject.pillar({"bridges": {"br0": {"ports": ["eth9"], **subject.own()}}}))


@fault("old", reasons=(SILENT,))
def wrong_gateway(subject: Subject) -> dict[str, Any] | None:
    """Nobody has the gateway's address; the master is in the same network and is reached."""
    wrong = f"{subject.address.rpartition('.')[0]}.250"
    return subject.apply(subject.pillar(bridge(addresses=[f"{subject.address}/24"], gateway4=wrong)))


@fault("old", reasons=(SILENT,))
def wrong_address(subject: Subject) -> dict[str, Any] | None:
    """The address is of another network."""
    return subject.apply(subject.pillar(bridge(addresses=["10.99.7.5/24"], gateway4="10.99.7.1")))


@fault("old", reasons=(SILENT,))
def wrong_vlan(subject: Subject) -> dict[str, Any] | None:
    """Nobody hears the tag."""
    tagged = {"vlans": {"eth0.77": {"link": "eth0", "id": 77}}, "ethernets": {"eth0": {}}}
    return subject.apply(subject.pillar({**tagged, "bridges": {"br0": {"ports": ["eth0.77"], **subject.own()}}}))


@fault("old", reasons=(SILENT,))
def retagged(subject: Subject) -> dict[str, Any] | None:
    """A VLAN that was there gets another tag, and the bridge that comes with it a wrong gateway."""
    wrong = bridge(addresses=[f"{subject.address}/24"], gateway4=f"{subject.address.rpartition('.')[0]}.250")
    tagged = {"vlans": {by_hand.NAME: {"link": "br0", "id": by_hand.TAG + 10, "addresses": [by_hand.ADDRESS]}}}
    return subject.apply(subject.pillar({**wrong, **tagged}))


@fault("old")
def no_dhcp_server(subject: Subject) -> dict[str, Any] | None:
    """Nobody gives a lease."""
    return subject.apply(subject.pillar(bridge(dhcp4=True)))


@fault("old", reasons=(f"port 4505 {SILENT}",))
def master_down(subject: Subject) -> dict[str, Any] | None:
    """The master does not run while the change is checked."""
    hosts = subject.stacks.hosts
    hosts.run(hosts.controller, ["systemctl", "stop", "salt-master"])
    try:
        answer = subject.apply(subject.pillar())
        subject.over()
    finally:
        hosts.run(hosts.controller, ["systemctl", "start", "salt-master"])
    return answer


# networkd takes the addresses of a bridge whose only port has no carrier.
@fault("old", reasons=(SILENT, "br0 has no address"))
def link_cut(subject: Subject) -> dict[str, Any] | None:
    """The cable is out until the window is over."""
    answer = subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied")
    subject.machine.set_link(up=False)
    time.sleep(subject.window)
    subject.machine.set_link(up=True)
    return answer


@fault("new")
def minion_killed(subject: Subject) -> dict[str, Any] | None:
    """Whoever asked for the change is killed as soon as it begins; the change goes on."""
    words = ["systemd-run", "--quiet", "--collect", "--unit", "asked", "--property", "KillSignal=SIGKILL"]
    asked = json.dumps({"pillar": subject.pillar(), "masters": []})
    subject.run(["tee", "/run/asked.json"], stdin=asked)
    ask = "network-profile apply --file /run/asked.json; sleep 300"
    subject.behind(KILL, "applying", "0", "asked.service")
    subject.run([*words, "sh", "-c", ask])
    subject.waits_for("confirmed", 90, PAUSE)
    return {"id": "asked"}


def killed(subject: Subject, state: str) -> dict[str, Any] | None:
    """Kill the applier some time after it has come to a state."""
    subject.behind(KILL, state, f"{subject.chance.uniform(0, 1.5):.2f}", "hypervisor-network-apply.service")
    time.sleep(1)
    return subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))


@fault("old", reasons=(ENDED,))
def applier_killed_applying(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it makes the change."""
    return killed(subject, "applying")


@fault("old", reasons=(ENDED,))
def applier_killed_applied(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it checks the change."""
    return killed(subject, "applied")


@fault("old", reasons=(DOWN,))
def reboot(subject: Subject) -> dict[str, Any] | None:
    """The host is told to reboot within the window."""
    before = subject.machine.boot_id()
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied")
    time.sleep(subject.chance.uniform(0, 3))
    subject.stacks.hosts.run(subject.name, ["systemctl", "reboot"], check=False, timeout=30)
    subject.machine.wait_reboot(before, 300)
    return answer


@fault("old", reasons=(DOWN,))
def power_cut(subject: Subject) -> dict[str, Any] | None:
    """The power goes within the window, and with it what memory alone has."""
    # Nothing is written back because of its age: what was installed a moment ago is lost unless the program flushes it.
    subject.run(["sysctl", "--quiet", "--write", *LAZY])
    subject.install()
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    time.sleep(subject.chance.uniform(0, 6))
    subject.stacks.restart(subject.name)
    return answer


@fault("refused", reasons=("KiB are free",))
def disk_full(subject: Subject) -> dict[str, Any] | None:
    """There is no space for what a change needs."""
    free = int(subject.run(["df", "--output=avail", "-B1", "/"]).split()[-1])
    subject.run(["fallocate", "--length", str(free - 65536), "/full"], timeout=300)
    try:
        return subject.apply(subject.pillar())
    finally:
        subject.run(["rm", "-f", "/full"])


@fault("new")
def second_change(subject: Subject) -> dict[str, Any] | None:
    """Another change is asked for while one is pending."""
    answer = subject.apply(subject.pillar(successes=8))
    second: dict[str, Any] = {}
    # The connection may be gone before the answer has come.
    for _ in range(10):
        second = subject.apply(subject.pillar(bridge(dhcp4=True)))
        if second:
            break
    if " is still " not in second.get("error", ""):
        raise LabError(f"a second change was not refused for the first one: {second}")
    return answer


# These kill a process at the moment when the change has come to a state.
BEHIND = (minion_killed, applier_killed_applying, applier_killed_applied)


def attempt(subject: Subject, name: str) -> Run:
    """Make one change with a fault and see what has come of it.

    Args:
        subject: the machine; it is as before afterwards, if the promise is kept.
        name: one of FAULTS.
    """
    if name in ON_A_VLAN:
        with by_hand.vlan(subject):
            return _attempt(subject, name)
    return _attempt(subject, name)


def _attempt(subject: Subject, name: str) -> Run:
    """Make one change on the machine as it stands."""
    function, wanted, reasons = FAULTS[name]
    run = Run(subject.stack, name, wanted, subject.window)
    before = subject.look()
    earlier = subject.status()["id"]
    try:
        answer = function(subject) or {}
        state = subject.over()
    except (LabError, CommandError) as error:
        run.differences = [str(error), *taken_back(subject, earlier)]
        return run
    finally:
        subject.spare()
    lacking = []
    if "error" in answer:
        run.end, run.said = "refused", answer["error"]
    elif state["id"] == earlier:
        run.said = "nothing was begun, and nobody has said why"
    else:
        run.end = {"confirmed": "new", "rolled-back": "old"}.get(state["state"], "")
        run.said, run.outage = state["reason"], state["outage"]
        # A host that was down meanwhile has other things to say of its time.
        if name not in {"reboot", "power_cut"}:
            ended = float(subject.run(["stat", "-c", "%.2Y", "/var/lib/hypervisor-formula/network/state.json"]))
            run.seconds = round(ended - state["started"], 1)
    if run.end == "new":
        lacking = subject.without(FAMILIES if name == "both_families" else FAMILIES[:1])
        subject.undo()
    if run.end in ("refused", "old") and reasons and not any(one in run.said for one in reasons):
        lacking.append(f"not for the reason that was given: {' or '.join(reasons)}")
    if function in BEHIND and not subject.struck():
        lacking.append("nothing was killed")
    run.differences = [*lacking, *settled(subject, before)]
    return run


def taken_back(subject: Subject, earlier: str) -> list[str]:
    """Take back what a run that broke off may still confirm: the next one finds the host as this one did.

    Args:
        subject: the machine.
        earlier: the change before this run's.

    Returns:
        Why that could not be.
    """
    try:
        state = subject.over()
        if state["state"] == "confirmed" and state["id"] != earlier:
            subject.undo()
    except (LabError, CommandError) as error:
        return [str(error)]
    return []


def settled(subject: Subject, before: dict[str, Any], patience: float = 15) -> list[str]:
    """Return what is not as before; what comes by itself, such as an IPv6 address, may take its time."""
    end = time.monotonic() + patience
    while True:
        now = subject.look()
        keys = [key for key in sorted({*before, *now}) if now.get(key) != before.get(key)]
        differing = [f"{key}: {now.get(key)} instead of {before.get(key)}" for key in keys]
        if not differing or time.monotonic() > end:
            return differing
        time.sleep(1)

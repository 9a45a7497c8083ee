"""Changes of a host's interfaces, good ones and ones that go wrong, and whether the host is then as it has to be.

A run ends in one of three ways: refused (nothing was touched), old (all is as it was before), new (confirmed). Whatever
else a host looks like afterwards is a broken promise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from lab.proc import CommandError, LabError

from . import by_hand
from .subject import KILL, SIX, SIX_ROUTER, Run, Subject

Fault = Callable[[Subject], "dict[str, Any] | None"]
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {}
# These need the controller for themselves: its master is stopped, its one DHCP server knows one machine.
ALONE = ("master_down", "leased", "no_dhcp_server")


# Before these somebody has made a VLAN by hand.
ON_A_VLAN = ("retagged",)


def fault(*wanted: str) -> Callable[[Fault], Fault]:
    """Register a fault and the ends that are as promised."""

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, wanted)
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
    six = f"{SIX}:{subject.address.rpartition('.')[2]}/64"
    spec = {**own, "addresses": [*own["addresses"], six], "gateway6": SIX_ROUTER}
    return subject.apply(subject.pillar(bridge(**spec)))


@fault("refused")
def wrong_port(subject: Subject) -> dict[str, Any] | None:
    """There is no such card."""
    return subject.apply(subject.pillar({"bridges": {"br0": {"ports": ["eth9"], **subject.own()}}}))


@fault("old")
def wrong_gateway(subject: Subject) -> dict[str, Any] | None:
    """Nobody has the gateway's address; the master is in the same network and is reached."""
    wrong = f"{subject.address.rpartition('.')[0]}.250"
    return subject.apply(subject.pillar(bridge(addresses=[f"{subject.address}/24"], gateway4=wrong)))


@fault("old")
def wrong_address(subject: Subject) -> dict[str, Any] | None:
    """The address is of another network."""
    return subject.apply(subject.pillar(bridge(addresses=["10.99.7.5/24"], gateway4="10.99.7.1")))


@fault("old")
def wrong_vlan(subject: Subject) -> dict[str, Any] | None:
    """Nobody hears the tag."""
    tagged = {"vlans": {"eth0.77": {"link": "eth0", "id": 77}}, "ethernets": {"eth0": {}}}
    return subject.apply(subject.pillar({**tagged, "bridges": {"br0": {"ports": ["eth0.77"], **subject.own()}}}))


@fault("old")
def retagged(subject: Subject) -> dict[str, Any] | None:
    """A VLAN that was there gets another tag, and the bridge that comes with it a wrong gateway."""
    wrong = bridge(addresses=[f"{subject.address}/24"], gateway4=f"{subject.address.rpartition('.')[0]}.250")
    tagged = {"vlans": {by_hand.NAME: {"link": "br0", "id": by_hand.TAG + 10, "addresses": [by_hand.ADDRESS]}}}
    return subject.apply(subject.pillar({**wrong, **tagged}))


@fault("old")
def no_dhcp_server(subject: Subject) -> dict[str, Any] | None:
    """Nobody gives a lease."""
    return subject.apply(subject.pillar(bridge(dhcp4=True)))


@fault("old")
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


@fault("old")
def link_cut(subject: Subject) -> dict[str, Any] | None:
    """The cable is out until the window is over."""
    answer = subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied", 10)
    subject.machine.set_link(up=False)
    time.sleep(subject.window)
    subject.machine.set_link(up=True)
    return answer


@fault("new")
def minion_killed(subject: Subject) -> dict[str, Any] | None:
    """Whoever asked for the change is killed as soon as it begins; the change goes on."""
    words = ["systemd-run", "--quiet", "--collect", "--unit", "asked", "--property", "KillMode=control-group"]
    asked = json.dumps({"pillar": subject.pillar(), "masters": []})
    subject.run(["tee", "/run/asked.json"], stdin=asked)
    ask = "network-profile apply --file /run/asked.json; sleep 300"
    subject.run([*words, "sh", "-c", ask])
    subject.waits_for("applying", 20)
    subject.run(["systemctl", "kill", "--signal", "KILL", "asked"], check=False)
    return {"id": "asked"}


def killed(subject: Subject, state: str) -> dict[str, Any] | None:
    """Kill the applier some time after it has come to a state."""
    subject.behind(KILL, state, f"{subject.chance.uniform(0, 1.5):.2f}")
    time.sleep(1)
    return subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))


@fault("old")
def applier_killed_applying(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it makes the change."""
    return killed(subject, "applying")


@fault("old")
def applier_killed_applied(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it checks the change."""
    return killed(subject, "applied")


@fault("old")
def reboot(subject: Subject) -> dict[str, Any] | None:
    """The host is told to reboot within the window."""
    before = subject.machine.boot_id()
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied")
    time.sleep(subject.chance.uniform(0, 3))
    subject.stacks.hosts.run(subject.name, ["systemctl", "reboot"], check=False, timeout=30)
    subject.machine.wait_reboot(before, 300)
    return answer


@fault("old")
def power_cut(subject: Subject) -> dict[str, Any] | None:
    """The power goes within the window."""
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    time.sleep(subject.chance.uniform(0, 6))
    subject.stacks.restart(subject.name)
    return answer


@fault("refused")
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
    second = subject.apply(subject.pillar(bridge(dhcp4=True)))
    if "error" not in second:
        raise LabError(f"a second change was not refused: {second}")
    return answer


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
    function, wanted = FAULTS[name]
    run = Run(subject.stack, name, wanted, subject.window)
    before = subject.look()
    earlier = subject.status()["id"]
    try:
        answer = function(subject) or {}
        state = subject.over()
    except (LabError, CommandError) as error:
        return Run(subject.stack, name, wanted, subject.window, differences=[str(error)])
    if "error" in answer or state["id"] == earlier:
        run.end, run.said = "refused", answer.get("error", "nothing was begun")
    else:
        run.end = {"confirmed": "new", "rolled-back": "old"}.get(state["state"], "")
        run.said, run.outage = state["reason"], state["outage"]
        # A host that was down meanwhile has other things to say of its time.
        if name not in {"reboot", "power_cut"}:
            ended = float(subject.run(["stat", "-c", "%.2Y", "/var/lib/hypervisor-formula/network/state.json"]))
            run.seconds = round(ended - state["started"], 1)
    if run.end == "new":
        subject.undo()
    run.differences = settled(subject, before)
    return run


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

"""What is done to a cluster of two with one guest, and what must come of each fault."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cluster_site import changes, failures
from guest_site import GUEST_DISK, GuestSite
from storage_site import MSGWAIT, SHARED_DISKS

from lab.proc import LabError

PATIENCE = 900.0  # seconds for what takes a minute or two where the machine is not busy
AGENT = "/usr/sbin/fence_sbd"
# Where the guest is in the end: where it was, or on the other node; or nobody may start it before a person has spoken.
STAYS, MOVES, WAITS = "stays", "moves", "waits"
# Who starts anew because of a fault: the node that ran the guest, the other one, one of the two, nobody; or the node
# or nobody, where Pacemaker may bring its own daemon back before the others take the node for lost.
NODE, OTHER, EITHER, NOBODY, PERHAPS = "node", "other", "either", "nobody", "perhaps"
# What a state says that waits for one that has failed.
_WAITS_FOR = "One or more requisite failed"


class Case(NamedTuple):
    """A fault at one moment.

    Attributes:
        site: the cluster.
        node: the one that runs the guest.
        other: the other one.
        chance: chooses moments.
        boots: the starts of the guest so far.
    """

    site: GuestSite
    node: str
    other: str
    chance: random.Random
    boots: tuple[str, ...]


class Fault(NamedTuple):
    """What is done, and what must come of it.

    Attributes:
        do: does it.
        end: where the guest must be afterwards; empty for either node.
        anew: who starts anew.
        live: whether the guest moves live, so that its volume is on both nodes for a while, and it does not start.
    """

    do: Callable[[Case], None]
    end: str
    anew: str = NODE
    live: bool = False


def until(check: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is so; a node that does not answer is asked again.

    Args:
        check: says whether it is so.
        what: that, for the message.
        seconds: for which it waits.

    Raises:
        LabError: it is not so in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except Exception:  # noqa: BLE001, S110 - it may be about to start or to go
            pass
        if time.monotonic() > deadline:
            raise LabError(f"{what} was not so within {seconds:.0f} s")
        time.sleep(2)


def _killed(case: Case) -> None:
    """The node loses its power."""
    case.site.killed(case.node)


def _idle_killed(case: Case) -> None:
    """The other node loses its power."""
    case.site.killed(case.other)


def _shut_down(case: Case) -> None:
    """The node is shut down in order, so that its guest moves away before."""
    case.site.run(case.node, "systemctl", "poweroff", check=False)
    until(lambda: not case.site.running(case.node), "the node is off")


def _frozen(case: Case) -> None:
    """The node stands still, long enough to be fenced, and goes on before it counts as off."""
    machine = case.site.machine(case.node)
    machine.qmp("stop")
    try:
        until(lambda: case.node in case.site.unclean(case.other), "the node is lost")
        time.sleep(case.chance.uniform(0, MSGWAIT / 3))
    finally:
        machine.qmp("cont")


def _blinked(case: Case) -> None:
    """The node stands still for less than the others wait."""
    machine = case.site.machine(case.node)
    machine.qmp("stop")
    time.sleep(case.chance.uniform(1, 4))
    machine.qmp("cont")


def _unplugged(case: Case) -> None:
    """The nodes do not hear each other. The one that may not go on is fenced, and back when the cable is."""
    machine = case.site.machine(case.node)
    machine.set_link(up=False)
    time.sleep(MSGWAIT + case.chance.uniform(30, 60))
    machine.set_link(up=True)


def _without_disks(case: Case) -> None:
    """The node loses the shared disks for good; what that means shows when it loses its power too."""
    machine = case.site.machine(case.node)
    for number in range(len(SHARED_DISKS)):
        # What it says is that it could not.
        said = machine.qmp("human-monitor-command", **{"command-line": f"drive_del disk{number}"})
        if said.strip():
            raise LabError(f"disk {number} was not taken away: {said.strip()}")
    time.sleep(case.chance.uniform(20, 40))
    if machine.is_running():
        case.site.killed(case.node)


def _without_sbd(case: Case) -> None:
    """The node's sbd has no disk for a while: as long as all see each other, it lives without."""
    with case.site.stalled("sbd", case.node):
        time.sleep(MSGWAIT + case.chance.uniform(10, 40))


def _nobody_has_sbd(case: Case) -> None:
    """Nobody's sbd has a disk for a while."""
    with case.site.stalled("sbd", case.node, case.other):
        time.sleep(MSGWAIT + case.chance.uniform(10, 40))


def _stuttered(case: Case) -> None:
    """The volumes' disk answers the node nothing for a moment."""
    with case.site.stalled("san", case.node):
        time.sleep(case.chance.uniform(3, 12))


def _cut_off_without_sbd(case: Case) -> None:
    """The node hears nobody and has no disk that says so: its watchdog resets it, before the other has its volume."""
    site, machine = case.site, case.site.machine(case.node)
    boot = machine.boot_id()
    with site.stalled("sbd", case.node):
        machine.set_link(up=False)
        try:
            until(lambda: site.active_on(GUEST_DISK)[:1] == [case.other], f"the volume is on {case.other}")
        finally:
            machine.set_link(up=True)
    machine.wait_ssh(PATIENCE)
    if machine.boot_id() == boot:
        raise LabError(f"{case.node} has not been reset, though it heard nobody and had no disk")
    # Machines of the lab have one clock.
    (booted,) = re.findall(r"^btime (\d+)$", site.run(case.node, "cat", "/proc/stat"), re.MULTILINE)
    if int(booted) > int(site.run(case.other, "stat", "--format=%Z", GUEST_DISK)):
        raise LabError(f"{case.node} had not been reset yet when {case.other} had its volume")
    # What did not start without the disk starts with the next boot.
    site.killed(case.node)


def _unfenceable(case: Case) -> None:
    """The node loses its power, and nobody can fence it."""
    case.site.run(case.other, "mv", AGENT, f"{AGENT}.away")
    case.site.killed(case.node)


def _daemon(pattern: str, *, idle: bool = False) -> Callable[[Case], None]:
    """Return what ends processes of the node, or of the other one, whose command line matches."""

    def kill(case: Case) -> None:
        case.site.run(case.other if idle else case.node, "pkill", "--signal", "KILL", "--full", f"^{pattern}")

    return kill


def _program(name: str) -> str:
    """Return the command line of one of Pacemaker's daemons."""
    return f"/usr/lib(exec)?/pacemaker/{name}( |$)"


def _masterless(case: Case) -> None:
    """The node loses its power while the master is away; a highstate then does nothing, however long it waits."""
    controller = case.site.lab.hosts.controller
    case.site.run(controller, "systemctl", "stop", "salt-master", "salt-minion")
    case.site.killed(case.node)
    # Salt asks a master that is away again and again.
    argv = ["timeout", "90", "salt-call", "--out=json", "state.highstate"]
    done = case.site.lab.run(case.other, argv, check=False, timeout=PATIENCE)
    if done.returncode in (0, 255) or '"changes"' in done.stdout:
        raise LabError(f"without the master a highstate ended with {done.returncode}: {done.stdout[-300:]}")


def _highstate(case: Case) -> None:
    """The other node's highstate runs while the node is down and fenced, and again while it is away."""
    site, other = case.site, case.other
    site.killed(case.node)
    early = site.highstate(other)
    changed = [key for key, row in early[other].items() if row["changes"] and row["result"] is not False]
    if changed:
        raise LabError(f"the highstate changed {', '.join(changed)}")
    until(lambda: site.runs_on() == other, f"the guest runs on {other}")
    site.quiet(other)
    late = site.highstate(other)
    # A volume that has come to it has brought the group's locks too.
    if done := changes(late)[other]:
        raise LabError(f"the highstate changed {', '.join(sorted(done))}")
    wrong = [line for rows in (early, late) for line in failures(rows).get(other, []) if _WAITS_FOR not in line]
    if unnamed := [line for line in wrong if case.node not in line]:
        raise LabError(f"the highstate does not say that {case.node} is what is missing: {'; '.join(unnamed)}")


FAULTS = {
    "node killed": Fault(_killed, MOVES),
    "node shut down": Fault(_shut_down, MOVES, live=True),
    "idle node killed": Fault(_idle_killed, STAYS, OTHER),
    "node frozen and continued": Fault(_frozen, MOVES),
    "node frozen for a moment": Fault(_blinked, STAYS, NOBODY),
    "network cut": Fault(_unplugged, "", EITHER),
    "disks cut": Fault(_without_disks, MOVES),
    "sbd's disk stalls": Fault(_without_sbd, STAYS, NOBODY),
    "sbd's disk stalls on both": Fault(_nobody_has_sbd, STAYS, NOBODY),
    "sbd's disk stalls and the network is cut": Fault(_cut_off_without_sbd, MOVES),
    "volumes' disk stalls for a moment": Fault(_stuttered, STAYS, NOBODY),
    "fencing impossible": Fault(_unfenceable, WAITS),
    "corosync killed": Fault(_daemon("/usr/sbin/corosync"), MOVES),
    "corosync of the idle node killed": Fault(_daemon("/usr/sbin/corosync", idle=True), STAYS, OTHER),
    "sbd killed": Fault(_daemon("sbd: inquisitor"), "", PERHAPS),
    "sbd's watchers killed": Fault(_daemon("sbd: watcher: "), STAYS, NOBODY),
    "pacemakerd killed": Fault(_daemon("/usr/sbin/pacemakerd"), STAYS, NOBODY),
    "pacemaker-based killed": Fault(_daemon(_program("pacemaker-based")), "", PERHAPS),
    "pacemaker-fenced killed": Fault(_daemon(_program("pacemaker-fenced")), "", PERHAPS),
    "pacemaker-execd killed": Fault(_daemon(_program("pacemaker-execd")), "", PERHAPS),
    "pacemaker-attrd killed": Fault(_daemon(_program("pacemaker-attrd")), "", PERHAPS),
    "pacemaker-schedulerd killed": Fault(_daemon(_program("pacemaker-schedulerd")), "", PERHAPS),
    "pacemaker-controld killed": Fault(_daemon(_program("pacemaker-controld")), "", PERHAPS),
    "dlm_controld killed": Fault(_daemon("dlm_controld"), MOVES),
    "lvmlockd killed": Fault(_daemon("lvmlockd"), MOVES),
    "libvirtd killed": Fault(_daemon("/usr/sbin/libvirtd"), STAYS, NOBODY),
    "virtlogd killed": Fault(_daemon("/usr/sbin/virtlogd"), STAYS, NOBODY),
    "master down": Fault(_masterless, MOVES),
    "highstate while a node is down": Fault(_highstate, MOVES),
}

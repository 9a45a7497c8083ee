"""What is done to a cluster of two with one guest, what must come of it, and how all is well again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from guest_site import GUEST, GUEST_DISK, GuestSite
from storage_site import MSGWAIT, NODES

from lab.proc import LabError

PATIENCE = 900.0  # seconds for what takes a minute or two where the machine is not busy
QUIET = 60  # seconds for which nothing may be recovered
AGENT = "/usr/sbin/fence_sbd"
# Where the guest is in the end: where it was, or on the other node; or nobody may start it before a person has spoken.
STAYS, MOVES, WAITS = "stays", "moves", "waits"
# Who starts anew because of a fault: the node that ran the guest, the other one, one of the two, or nobody.
NODE, OTHER, EITHER, NOBODY = "node", "other", "either", "nobody"


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


def _killed(case: Case) -> None:
    """The node loses its power."""
    case.site.killed(case.node)


def _idle_killed(case: Case) -> None:
    """The other node loses its power."""
    case.site.killed(case.other)


def _shut_down(case: Case) -> None:
    """The node is shut down in order, so that its guest moves away before."""
    case.site.run(case.node, "systemctl", "poweroff", check=False)
    _until(lambda: not case.site.running(case.node), "the node is off")


def _frozen(case: Case) -> None:
    """The node stands still, long enough to be fenced, and goes on before it counts as off."""
    machine = case.site.machine(case.node)
    machine.qmp("stop")
    try:
        _until(lambda: case.node in case.site.unclean(case.other), "the node is lost")
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
    """The node loses the shared disks; what that means shows when it loses its power too."""
    machine = case.site.machine(case.node)
    for number in range(2):
        # What it says is that it could not.
        said = machine.qmp("human-monitor-command", **{"command-line": f"drive_del disk{number}"})
        if said.strip():
            raise LabError(f"disk {number} was not taken away: {said.strip()}")
    time.sleep(case.chance.uniform(20, 40))
    if machine.is_running():
        case.site.killed(case.node)


def _unfenceable(case: Case) -> None:
    """The node loses its power, and nobody can fence it."""
    case.site.run(case.other, "mv", AGENT, f"{AGENT}.away")
    case.site.killed(case.node)


def _daemon(name: str) -> Callable[[Case], None]:
    def kill(case: Case) -> None:
        case.site.run(case.node, "pkill", "--signal", "KILL", "--exact", name)

    return kill


def _masterless(case: Case) -> None:
    """The node loses its power while the master is away."""
    controller = case.site.lab.hosts.controller
    case.site.run(controller, "systemctl", "stop", "salt-master", "salt-minion")
    case.site.killed(case.node)


def _highstate(case: Case) -> None:
    """The other node's highstate runs while the node is down, and while it is fenced."""
    case.site.killed(case.node)
    rows = case.site.highstate(case.other)[case.other]
    changed = [key for key, row in rows.items() if row["changes"] and row["result"] is not False]
    if changed:
        raise LabError(f"the highstate changed {', '.join(changed)}")


FAULTS = {
    "node killed": Fault(_killed, MOVES),
    "node shut down": Fault(_shut_down, MOVES, live=True),
    "idle node killed": Fault(_idle_killed, STAYS, OTHER),
    "node frozen and continued": Fault(_frozen, MOVES),
    "node frozen for a moment": Fault(_blinked, STAYS, NOBODY),
    "network cut": Fault(_unplugged, "", EITHER),
    "disks cut": Fault(_without_disks, MOVES),
    "fencing impossible": Fault(_unfenceable, WAITS),
    "corosync killed": Fault(_daemon("corosync"), MOVES),
    "pacemakerd killed": Fault(_daemon("pacemakerd"), STAYS, NOBODY),
    "dlm_controld killed": Fault(_daemon("dlm_controld"), MOVES),
    "lvmlockd killed": Fault(_daemon("lvmlockd"), MOVES),
    "libvirtd killed": Fault(_daemon("libvirtd"), STAYS, NOBODY),
    "master down": Fault(_masterless, MOVES),
    "highstate while a node is down": Fault(_highstate, MOVES),
}


class Watch(threading.Thread):
    """Looks all the time whether a guest or its volume is on two nodes.

    Attributes:
        seen: what was so in two looks, one after the other: nodes are asked in turn, and a guest may go on from one to
            the other between two questions.
        looks: how often both nodes, or the one that is left, have answered.
    """

    def __init__(self, site: GuestSite, *, live: bool = False) -> None:
        super().__init__(daemon=True)
        self.site, self.live, self.looks, self.over = site, live, 0, threading.Event()
        self.seen: set[str] = set()

    def run(self) -> None:
        """Look until it is over."""
        before: set[str] = set()
        while not self.over.wait(2):
            try:
                now = self._look()
            except Exception as error:  # noqa: BLE001 - whatever ends the watch must not look like a quiet one
                self.seen.add(f"nobody has looked any more: {error}")
                return
            self.seen |= now & before
            before = now

    def _look(self) -> set[str]:
        """Return what should not be."""
        states, active = self.site.guests_on(), self.site.active_on(GUEST_DISK)
        if "?" not in {*states.values(), *(node[-1:] for node in active)}:
            self.looks += 1
        running = [node for node, state in states.items() if state == "running"]
        active = [node for node in active if not node.endswith("?")]
        found = {f"the guest runs on {' and '.join(running)}"} if len(running) > 1 else set()
        if len(active) > 1 and not self.live:
            found.add(f"its volume is active on {' and '.join(active)}")
        return found


def _until(check: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is so; a node that does not answer is asked again."""
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


def attempt(site: GuestSite, name: str, chance: random.Random) -> dict[str, Any]:
    """Do one fault to a healthy cluster, look what comes of it, and make all well again.

    Args:
        site: the cluster.
        name: of the fault.
        chance: chooses moments.

    Returns:
        The run for the record: ``fault``, ``node``, ``end``, ``seconds``, ``kept`` and ``wrong``, a list of texts.
    """
    _well(site)
    node, fault = site.runs_on(), FAULTS[name]
    before, starts = site.count(node), _starts(site)
    case = Case(site, node, next(one for one in NODES if one != node), chance, before.boots)
    watch, begun, wrong = Watch(site, live=fault.live), time.monotonic(), list[str]()
    watch.start()
    end = "nobody knows"
    try:
        fault.do(case)
        end = _end(case, fault.end)
        seconds = time.monotonic() - begun
        _heal(case)
        _well(site)
        anew = {one for one, start in _starts(site).items() if start != starts[one]}
        wrong += _unlike(case, fault, anew, before.last)
    except (LabError, AssertionError) as error:
        seconds = time.monotonic() - begun
        wrong.append(" ".join(str(error).split()))
        # What went wrong is written down, whatever comes of this; the next run would not begin.
        try:
            _heal(case)
        except (LabError, AssertionError) as after:
            wrong.append(f"it was not made well again: {after}")
    finally:
        watch.over.set()
        watch.join(300)
    wrong += sorted(watch.seen)
    if not watch.looks:
        wrong.append("nobody has looked whether it ran twice")
    return {"fault": name, "node": node, "end": end, "seconds": round(seconds, 1), "kept": not wrong, "wrong": wrong}


def _starts(site: GuestSite) -> dict[str, str]:
    """Return what tells each node's start from others."""
    return {node: site.machine(node).boot_id() for node in NODES}


def _unlike(case: Case, fault: Fault, anew: set[str], last: int) -> list[str]:
    """Return what a fault has come to that it must not come to, once all is well again.

    Args:
        case: the fault's case.
        fault: what was done.
        anew: the nodes that have started anew.
        last: the guest's last number before.
    """
    place = case.site.runs_on()
    after = case.site.count(place)
    wrong = []
    wanted: dict[str, list[set[str]]] = {
        NODE: [{case.node}], OTHER: [{case.other}], EITHER: [{case.node}, {case.other}], NOBODY: [set()]
    }  # fmt: skip
    if anew not in wanted[fault.anew]:
        wrong.append(f"started anew: {', '.join(sorted(anew)) or 'nobody'}")
    if after.boots[: len(case.boots)] != case.boots or after.last < last:
        wrong.append(f"the guest had counted to {last} and has {after.last}")
    # It starts once more where its node has failed, and nowhere else.
    more = int(case.node in anew and not fault.live)
    if len(after.boots) != len(case.boots) + more:
        wrong.append(f"starts of the guest: {len(after.boots) - len(case.boots)} instead of {more}")
    if fault.end == STAYS and place != case.node:
        wrong.append(f"the guest has gone to {place}")
    return wrong


def _end(case: Case, wanted: str) -> str:
    """Wait for what must come of a fault; return what has."""
    site = case.site
    if wanted == WAITS:
        _until(lambda: case.node in site.unclean(case.other), "the node is lost")
        deadline = time.monotonic() + MSGWAIT + QUIET
        while time.monotonic() < deadline:
            said = [*site.guests_on().values(), *site.active_on(GUEST_DISK)]
            if any(not word.endswith("?") for word in said) or case.node not in site.unclean(case.other):
                raise LabError("the guest was recovered although its node could not be fenced")
            time.sleep(5)
        site.run(case.other, "stonith_admin", "--confirm", case.node)
    places = {MOVES: (case.other,), WAITS: (case.other,), STAYS: (case.node,)}.get(wanted, NODES)

    def there() -> bool:
        place = site.runs_on()
        return place in places and site.counts(place)

    if wanted == STAYS:
        # What might come of it takes monitors and fencing some time.
        time.sleep(QUIET)
    _until(there, f"the guest counts on {' or '.join(places)}")
    return f"{GUEST} on {site.runs_on()}"


def _heal(case: Case) -> None:
    """Make all well again, whatever was done."""
    site, controller = case.site, case.site.lab.hosts.controller
    for node in NODES:
        if site.running(node):
            site.machine(node).set_link(up=True)
            site.lab.run(node, ["mv", "--no-clobber", f"{AGENT}.away", AGENT], check=False)
        else:
            site.machine(node).start()
    site.run(controller, "systemctl", "start", "salt-master", "salt-minion")
    _until(lambda: all(site.online(node) == set(NODES) for node in NODES), "all nodes are online")
    site.run(case.other, "crm_resource", "--cleanup", check=False)


def _well(site: GuestSite) -> None:
    """Wait until all nodes are online and the guest counts, alone with its volume."""
    _until(lambda: all(site.online(node) == set(NODES) and site.locks(node) for node in NODES), "all nodes are online")
    _until(lambda: bool(site.runs_on()) and site.counts(site.runs_on()), "the guest counts")
    place = site.runs_on()
    _until(lambda: site.active_on(GUEST_DISK) == [place], f"the guest's volume is on {place} alone")
    _until(lambda: site.lock_of(place) == "ex", f"the lock of {place} is exclusive")

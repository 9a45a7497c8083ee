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
    """What is done, and where the guest must be afterwards."""

    do: Callable[[Case], None]
    end: str


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
    if len(case.site.count(case.other).boots) != len(case.boots):
        raise LabError("the guest was started anew instead of moved")


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
        machine.qmp("human-monitor-command", **{"command-line": f"drive_del disk{number}"})
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
    "node shut down": Fault(_shut_down, MOVES),
    "idle node killed": Fault(_idle_killed, STAYS),
    "node frozen and continued": Fault(_frozen, MOVES),
    "node frozen for a moment": Fault(_blinked, STAYS),
    "network cut": Fault(_unplugged, ""),
    "disks cut": Fault(_without_disks, MOVES),
    "fencing impossible": Fault(_unfenceable, WAITS),
    "corosync killed": Fault(_daemon("corosync"), MOVES),
    "pacemakerd killed": Fault(_daemon("pacemakerd"), STAYS),
    "dlm_controld killed": Fault(_daemon("dlm_controld"), MOVES),
    "lvmlockd killed": Fault(_daemon("lvmlockd"), MOVES),
    "libvirtd killed": Fault(_daemon("libvirtd"), STAYS),
    "master down": Fault(_masterless, MOVES),
    "highstate while a node is down": Fault(_highstate, MOVES),
}


class Watch(threading.Thread):
    """Looks all the time whether a guest or its volume is on two nodes; what it saw is in ``seen``."""

    def __init__(self, site: GuestSite) -> None:
        super().__init__(daemon=True)
        self.site, self.seen, self.over = site, set[str](), threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(2):
            try:
                running = [node for node, state in self.site.guests_on().items() if state == "running"]
                active = self.site.active_on(GUEST_DISK)
            except Exception:  # noqa: BLE001, S112 - a node that is about to go does not answer
                continue
            if len(running) > 1:
                self.seen.add(f"the guest runs on {' and '.join(running)}")
            if len(active) > 1:
                self.seen.add(f"its volume is active on {' and '.join(active)}")


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
    node = site.runs_on()
    before = site.count(node)
    case = Case(site, node, next(one for one in NODES if one != node), chance, before.boots)
    watch, begun, wrong = Watch(site), time.monotonic(), list[str]()
    watch.start()
    end = "nobody knows"
    try:
        FAULTS[name].do(case)
        end = _end(case, FAULTS[name].end)
        seconds = time.monotonic() - begun
        _heal(case)
        _well(site)
        after = site.count(site.runs_on())
        if after.boots[: len(before.boots)] != before.boots or after.last < before.last:
            wrong.append(f"the guest had counted to {before.last} and has {after.last}")
    except (LabError, AssertionError) as error:
        seconds = time.monotonic() - begun
        wrong.append(" ".join(str(error).split()))
        _heal(case)
    finally:
        watch.over.set()
        watch.join(120)
    wrong += sorted(watch.seen)
    return {"fault": name, "node": node, "end": end, "seconds": round(seconds, 1), "kept": not wrong, "wrong": wrong}


def _end(case: Case, wanted: str) -> str:
    """Wait for what must come of a fault; return what has."""
    site = case.site
    if wanted == WAITS:
        _until(lambda: case.node in site.unclean(case.other), "the node is lost")
        deadline = time.monotonic() + MSGWAIT + QUIET
        while time.monotonic() < deadline:
            if site.guests_on() or site.active_on(GUEST_DISK):
                raise LabError("the guest was recovered although its node could not be fenced")
            time.sleep(5)
        site.run(case.other, "stonith_admin", "--confirm", case.node)
    places = {MOVES: (case.other,), WAITS: (case.other,), STAYS: (case.node,)}.get(wanted, NODES)

    def there() -> bool:
        place = site.runs_on()
        return place in places and site.counts(place)

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

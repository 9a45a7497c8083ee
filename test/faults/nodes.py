"""Faults of a cluster of two with one guest: one is done, all is looked at, and all is made well again."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from guest_site import GUEST, GUEST_DISK, GuestSite
from storage_site import MSGWAIT, NODES, VOLUME

from lab.proc import LabError

from .node_faults import (
    AGENT,
    EITHER,
    FAULTS,
    MOVES,
    NOBODY,
    NODE,
    OTHER,
    PERHAPS,
    STAYS,
    WAITS,
    Case,
    Fault,
    until,
)

QUIET = 60  # seconds for which nothing may be recovered


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
        states = self.site.guests_on()
        # Only a guest's volume moves live.
        volumes = {GUEST_DISK: self.site.active_on(GUEST_DISK), VOLUME: self.site.active_on()}
        if "?" not in {*states.values(), *(node[-1:] for active in volumes.values() for node in active)}:
            self.looks += 1
        running = [node for node, state in states.items() if state == "running"]
        found = {f"the guest runs on {' and '.join(running)}"} if len(running) > 1 else set()
        for volume, active in volumes.items():
            known = [node for node in active if not node.endswith("?")]
            if len(known) > 1 and not (self.live and volume == GUEST_DISK):
                found.add(f"{volume} is active on {' and '.join(known)}")
        return found


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
        end = _end(case, fault)
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
        NODE: [{case.node}], OTHER: [{case.other}], EITHER: [{case.node}, {case.other}], NOBODY: [set()],
        PERHAPS: [{case.node}, set()],
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


def _end(case: Case, wanted: Fault) -> str:
    """Wait for what must come of a fault; return what has."""
    site = case.site
    if wanted.end == WAITS:
        until(lambda: case.node in site.unclean(case.other), "the node is lost")
        deadline = time.monotonic() + MSGWAIT + QUIET
        while time.monotonic() < deadline:
            said = [*site.guests_on().values(), *site.active_on(GUEST_DISK)]
            if any(not word.endswith("?") for word in said) or case.node not in site.unclean(case.other):
                raise LabError("the guest was recovered although its node could not be fenced")
            time.sleep(5)
        told = site.run(site.lab.hosts.controller, "salt-run", "fleet.cluster", case.other, check=False)
        if f"{case.node} is lost and not fenced yet" not in told:
            raise LabError(f"fleet.cluster does not say for what the cluster waits: {told[-300:]}")
        site.run(case.other, "stonith_admin", "--confirm", case.node)
    places = {MOVES: (case.other,), WAITS: (case.other,), STAYS: (case.node,)}.get(wanted.end, NODES)

    def there() -> bool:
        place = site.runs_on()
        return place in places and site.counts(place)

    if wanted.end == STAYS or wanted.anew == PERHAPS:
        # What might come of it takes monitors and fencing some time.
        time.sleep(QUIET)
    until(there, f"the guest counts on {' or '.join(places)}")
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
    until(lambda: all(site.online(node) == set(NODES) for node in NODES), "all nodes are online")
    site.run(case.other, "crm_resource", "--cleanup", check=False)


def _well(site: GuestSite) -> None:
    """Wait until all nodes are online, the guest counts, alone with its volume, and everything else runs too."""
    until(lambda: all(site.online(node) == set(NODES) and site.locks(node) for node in NODES), "all nodes are online")
    until(lambda: bool(site.runs_on()) and site.counts(site.runs_on()), "the guest counts")
    place = site.runs_on()
    until(lambda: site.active_on(GUEST_DISK) == [place], f"the guest's volume is on {place} alone")
    until(lambda: site.lock_of(place) == "ex", f"the lock of {place} is exclusive")
    until(lambda: len(site.active_on()) == 1, "the other volume is on one node")
    until(lambda: not site.idle(place), "all that the cluster runs is started")

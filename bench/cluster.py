"""Rows about clusters: how long after its death a node counts as off, and how long until its guest runs elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lab.lab import Lab
from lab.proc import LabError

from .rows import Row, median, spread

if TYPE_CHECKING:
    from lab.ui import Progress

PATIENCE = 600.0
FENCED, GUEST = "node dead to fenced / token + consensus + msgwait", "node dead to its guest running elsewhere"
# Sbd cannot be quicker than the first; what a guest takes to start is up to the host, which is emulated here.
GOAL, GUEST_GOAL = 1.5, 180.0


def shortest(token_ms: int, msgwait: float) -> float:
    """Return in how many seconds a dead node can count as off: corosync's consensus is 1.2 times the token."""
    return token_ms * 2.2 / 1000 + msgwait


def fencings(site: Any, seen_by: str, node: str) -> int:
    """Return how often a node has been fenced with success, as another one knows it."""
    events = site.monitor(seen_by).findall("fence_history/fence_event")
    return sum(one.get("target") == node and one.get("status") == "success" for one in events)


def death(site: Any) -> tuple[float, float]:
    """Kill the node that runs the guest; return the seconds until it is fenced, and until the guest runs again.

    Raises:
        LabError: that did not come about.
    """
    node = site.started()
    other = next(one for one in site.nodes if one != node)
    before = fencings(site, other, node)
    died = site.killed(node)
    fenced = None
    while time.monotonic() < died + PATIENCE:
        if fenced is None and fencings(site, other, node) > before:
            fenced = time.monotonic() - died
        if fenced is not None and site.runs_on() == other:
            running = time.monotonic() - died
            site.back(node)
            site.alone_on(other)
            return fenced, running
        time.sleep(0.5)
    what = "its guest did not run" if fenced else "it was not fenced"
    raise LabError(f"{node} died, and {what} within {PATIENCE:.0f} s")


def rows(name: str, platform: str, repeat: int, progress: Progress) -> list[Row]:
    """Measure in a lab of its own, which is removed in the end.

    Args:
        name: name of the lab.
        platform: a platform of kitchen.yml.
        repeat: how often a node is killed.
        progress: where steps are shown.
    """
    from faults.cluster import made  # noqa: PLC0415 - the tests' own cluster, which only this part needs
    from storage_site import MSGWAIT, TOKEN  # noqa: PLC0415

    lab = Lab(name, progress)
    try:
        with progress.step("make a cluster of two machines with a guest"):
            site = made(lab, platform)
        with progress.step(f"kill the node that runs the guest, {repeat} times"):
            found = [death(site) for _ in range(repeat)]
    except (LabError, AssertionError) as error:
        why = f"not measured: {' '.join(str(error).split())}"
        return [Row(FENCED, None, "times", GOAL, "lower", why), Row(GUEST, None, "s", GUEST_GOAL, "lower", why)]
    finally:
        lab.down()
    return judged(found, shortest(TOKEN, MSGWAIT))


def judged(found: list[tuple[float, float]], least: float) -> list[Row]:
    """Return the rows.

    Args:
        found: seconds to fenced and to the guest, for each death.
        least: seconds in which a dead node can count as off.
    """
    fenced, running = ([one[place] for one in found] for place in (0, 1))
    how = f"QEMU killed, sbd on a shared disk, {least:.0f} s at the least: {spread(fenced)}"
    again = f"the same deaths, an emulated guest in an emulated host: {spread(running)}"
    return [
        Row(FENCED, round(median(fenced) / least, 2), "times", GOAL, "lower", how),
        Row(GUEST, median(running), "s", GUEST_GOAL, "lower", again),
    ]

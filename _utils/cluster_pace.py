"""Changes of the CIB take turns, and wait while a volume is on its way to another node.

A guest's volume moves first and the guest after it, in one transition of Pacemaker. A change of the CIB ends that
transition once what has begun is over; if that was the volume's arrival, the next one stops the guest and starts it on
the other node, live no more (Pacemaker 2.1.5, by crm_simulate; test/integration/cluster/test_scheduler.py). Once the
guest itself is on its way a change does it no harm.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

# Of all who change the CIB from this node; /run is root's.
LOCK = Path("/run/hypervisor-cluster.lock")
# What an operation of a volume may take, see cluster_derived, with a tenth to spare.
SECONDS = 330.0
_VOLUME = "ocf:hypervisor:SharedVolume"
_PAUSE, _LOOKS = 0.5, 2


def on_the_way(text: str) -> list[str]:
    """Returns the volumes that are about to be on another node.

    Args:
        text: crm_mon's XML. Where Pacemaker does not answer nothing moves that one could wait for; nor where a node
            is lost: what it had begun is over when it is fenced, and who mends its fencing must not wait for that.
    """
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - from Pacemaker on this host
    except ElementTree.ParseError:
        return []
    if any(node.get("unclean") == "true" for node in root.findall("nodes/node")):
        return []
    rows = list(root.iter("resource"))
    moving = [row for row in rows if "Migrating" in (row.get("pending"), row.get("role"))]
    found = [row for row in moving if _is_volume(row)]
    if not moving:
        # One has been left, and its arrival has not begun. While the guest is on its way, both nodes have it too.
        found = [row for row in rows if _is_volume(row) and len(row.findall("node")) > 1]
    return sorted({row.get("id", "") for row in found})


def _is_volume(row: ElementTree.Element) -> bool:
    """Says whether a resource is a volume that moves, and Pacemaker acts on it."""
    agent = row.get("resource_agent", "").replace("::", ":")
    return agent == _VOLUME and "true" not in (row.get("blocked"), row.get("failed"))


@contextmanager
def turn(ask: Callable[[], str], seconds: float = SECONDS) -> Iterator[None]:
    """Waits until nobody else on this node changes the CIB and no volume is on its way; others wait until the end.

    Of other nodes one sees only what is on its way already.

    Args:
        ask: returns crm_mon's XML.
        seconds: how long to wait.

    Raises:
        CommandExecutionError: it took longer; nothing was done.
    """
    deadline = time.monotonic() + seconds
    door = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _locked(door):
            _pause(deadline, f"another change of the cluster from this node has not ended within {seconds:.0f} s")
        quiet = 0
        # The guest begins a moment after its volume has arrived.
        while quiet < _LOOKS:
            moving = on_the_way(ask())
            quiet = 0 if moving else quiet + 1
            names = ", ".join(moving)
            if quiet < _LOOKS:
                _pause(deadline, f"within {seconds:.0f} s these volumes have not come to another node: {names}")
        yield
    finally:
        # The lock goes with it.
        os.close(door)


def _locked(door: int) -> bool:
    """Takes the lock unless somebody has it; says whether."""
    try:
        fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(deadline: float, late: str) -> None:
    """Waits a moment; raises CommandExecutionError where the time is over."""
    if time.monotonic() + _PAUSE > deadline:
        raise CommandExecutionError(f"nothing was changed: {late}; see: crm_mon -1")
    time.sleep(_PAUSE)

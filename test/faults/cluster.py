"""The campaign of clusters: nodes, network, disks, daemons, the master fail; no guest runs twice, and no data is lost.

Two machines that share disks run one guest, which counts on its disk. After each fault every block that the guest has
written is read: two guests at a time would have written among each other's numbers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from cluster_site import failures
from guest_site import GuestSite
from storage_site import NODES, SHARED_DISKS

from lab.lab import Lab
from lab.proc import LabError
from lab.state import CHECKOUT, tree_digest
from lab.ui import Progress

from . import node_faults, nodes
from .record import Record

# What decides how a cluster behaves here, and what is done to it; the rest of the repository does not.
SOURCES = (
    *("cluster", "libvirt/guests.sls", "_states/cib.py", "_states/corosync.py", "_states/sbd.py"),
    *("_states/shared_volumes.py", "lab/guest.py", "test/faults/cluster.py", "test/faults/node_faults.py"),
    *("test/faults/nodes.py", "test/integration/cluster_site.py", "test/integration/guest_site.py"),
    "test/integration/storage_site.py",
)
PATTERNS = ("_states/cluster_*.py", "_utils/cluster_*.py")


def order(seed: int, count: int, faults: Sequence[str] = ()) -> list[tuple[int, str]]:
    """Return the runs of a campaign: number and fault, each fault once before any comes again.

    Args:
        seed: chooses the order.
        count: how many runs.
        faults: those that are wanted; by default all.
    """
    chance = random.Random(seed)  # noqa: S311 - the same order for the same seed
    found: list[str] = []
    while len(found) < count:
        names = [name for name in node_faults.FAULTS if name in faults or not faults]
        chance.shuffle(names)
        found += names
    return list(enumerate(found[:count], start=1))


def digest() -> str:
    """Return what changes with the code that decides what comes of a fault."""
    found = [path for pattern in PATTERNS for path in CHECKOUT.glob(pattern)]
    return tree_digest([*(CHECKOUT / name for name in SOURCES), *found])


def told(run: dict[str, Any]) -> str:
    """Say in one line what came of a run."""
    text = f"{run['fault']} on {run['node']}: {run['end']} after {run['seconds']:.0f} s"
    return text if run["kept"] else f"{text} - NOT AS PROMISED: {'; '.join(run['wrong'])}"


def made(lab: Lab, platform: str) -> GuestSite:
    """Make the cluster with its guest, or find it as an interrupted campaign has left it.

    Args:
        lab: the lab.
        platform: a platform of kitchen.yml.

    Raises:
        LabError: a highstate failed.
    """
    controller = next(iter(lab.kitchen.hosts))
    lab.up(
        platform=platform, only=[controller, *NODES], kind="vm", kinds={controller: "container"}, highstate=False,
        demo=False, shared_disks=SHARED_DISKS,
    )  # fmt: skip
    site = GuestSite(lab)
    site.nonce = "campaign"
    site.guest_declared()
    for node in NODES:
        site.run(node, "mkdir", "-p", "/var/lib/libvirt/images")
    lab.push_guest()
    for hosts in ((controller,), NODES):
        bad = failures(site.highstate(*hosts))
        if bad:
            raise LabError(f"the highstate failed: {bad}")
    return site


def campaign(options: argparse.Namespace, progress: Progress) -> int:
    """Run what is missing and say what came of all.

    Args:
        options: cluster_count, seed, fault, fresh, name, platform, keep, out.
        progress: shows what is done.

    Returns:
        0 if everything ended as promised, 1 if not.
    """
    out = options.out or CHECKOUT / "build" / "faults-cluster.json"
    terms = {"campaign": "cluster", "seed": options.seed, "platform": options.platform}
    terms["faults"] = sorted(options.fault or node_faults.FAULTS)
    terms["sources"] = digest()
    record = Record(out, terms, fresh=options.fresh)
    if record.forgotten:
        progress.say(f"{record.forgotten} runs in {out} were of other code or options, and are forgotten")
    done = {run["number"] for run in record.runs}
    wanted = order(options.seed, options.cluster_count, options.fault or [])
    missing = [row for row in wanted if row[0] not in done]
    begun = time.monotonic()
    if missing:
        lab = Lab(f"{options.name}-ha", progress)
        try:
            with progress.step("make a cluster of two machines with a guest"):
                site = made(lab, options.platform)
            for number, fault in missing:
                chance = random.Random(f"{options.seed}/{number}")  # noqa: S311 - the same moments for the same seed
                with progress.step(f"run {number} of {options.cluster_count}: {fault}"):
                    run = nodes.attempt(site, fault, chance)
                record.add({"number": number, **run})
                progress.say(f"         {told(run)}")
        finally:
            if not options.keep:
                lab.down()
    counted, broken = record.judged(options.cluster_count)
    minutes = (time.monotonic() - begun) / 60
    progress.say(
        f"cluster: {len(counted)} runs ({len(missing)} now, in {minutes:.1f} min), {len(broken)} not as promised; "
        f"kept in {out}"
    )
    for run in broken:
        progress.say(f"         {run['number']}: {told(run)}")
    return 1 if broken else 0

"""The campaign of interfaces: every fault on every backend; a seed chooses their order and moments."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from lab import identity
from lab.lab import Lab
from lab.stacks import BEYOND, StackHosts, all_stacks
from lab.state import CHECKOUT, tree_digest
from lab.ui import Progress
from lab.vm import Machine

from . import interfaces
from .record import Record


def told(run: dict[str, Any]) -> str:
    """Say in one line what came of a run."""
    text = f"{run['stack']}, {run['fault']}: {run['end'] or 'neither old nor new'} after {run['seconds']} s"
    if run["outage"] is not None:
        text += f", the master was away for {run['outage']} s"
    return text if run["kept"] else f"{text} - NOT AS PROMISED: {run['said']}; {'; '.join(run['differences'])}"


def order(seed: int, count: int, backends: Sequence[str] = ()) -> list[tuple[int, str, str]]:
    """Return the runs of a campaign: number, stack and fault, each pair once before any comes again.

    Args:
        seed: chooses the order.
        count: how many runs.
        backends: those that are wanted; by default all.
    """
    chance = random.Random(seed)  # noqa: S311 - the same order for the same seed
    stacks = [one.stack for one in all_stacks() if one.stack in backends or not backends]
    found: list[tuple[str, str]] = []
    while len(found) < count:
        pairs = [(stack, fault) for stack in stacks for fault in interfaces.FAULTS]
        chance.shuffle(pairs)
        found += pairs
    return [(number, *pair) for number, pair in enumerate(found[:count], start=1)]


def _begin(stacks: StackHosts) -> None:
    """Make what the machines share: keys, the disk image, and what answers beyond the controller."""
    for one in stacks.wanted:
        identity.make_keys(stacks.lab.paths, one.name)
    identity.write_ssh_files(stacks.lab.paths, stacks.hosts.addresses)
    stacks.hosts.run(stacks.hosts.controller, ["ip", "address", "replace", f"{BEYOND}/32", "dev", "lo"])


def _start(stacks: StackHosts, name: str) -> Machine:
    """Start a machine and wait until it answers; it is no minion, which would only take its time."""
    machine = stacks.machines[name]
    machine.create(identity.files(stacks.lab.paths, name, stacks.hosts.addresses))
    machine.start()
    machine.wait_ssh(400)
    return machine


def _runs(
    stacks: StackHosts, stack: str, rows: list[tuple[int, str, str]], rest: tuple[Record, argparse.Namespace, Progress]
) -> None:
    """Make the runs of one machine, and write each down when it is over."""
    record, options, progress = rest
    for number, _, fault in rows:
        chance = random.Random(f"{options.seed}/{number}")  # noqa: S311 - the same moments for the same seed
        subject = interfaces.Subject(stacks, stack, chance, options.window)
        with progress.step(f"run {number} of {options.network_count}: {stack}, {fault}"):
            # Anew for each, so that none is of another's leftovers.
            subject.install()
            run = interfaces.attempt(subject, fault).report()
        record.add({"number": number, **run})
        progress.say(f"         {told(run)}")


def campaign(options: argparse.Namespace, progress: Progress) -> int:
    """Run what is missing and say what came of all.

    Args:
        options: network_count, seed, window, backend, fresh, name, platform, keep, out.
        progress: shows what is done.

    Returns:
        0 if every host ended as promised, 1 if not.
    """
    out = options.out or CHECKOUT / "build" / "faults-network.json"
    # The program alone: what the rest of the repository says does not change what a host does here.
    sources = tree_digest([interfaces.SOURCE])
    terms = {"campaign": "network", "seed": options.seed, "platform": options.platform, "sources": sources}
    terms["window"] = options.window
    backends = options.backend or []
    terms["backends"] = sorted(backends)
    record = Record(out, terms, fresh=options.fresh)
    if record.forgotten:
        progress.say(f"{record.forgotten} runs in {out} were of other code or options, and are forgotten")
    wanted = order(options.seed, options.network_count, backends)
    done = {run["number"] for run in record.runs}
    missing = [row for row in wanted if row[0] not in done]
    begun = time.monotonic()
    if missing:
        lab = Lab(f"{options.name}-net", progress)
        lab.up(platform=options.platform, only=[next(iter(lab.kitchen.hosts))], highstate=False, demo=False)
        stacks = StackHosts(lab, all_stacks())
        try:
            _begin(stacks)
            # One machine at a time: another would make it slow, and one of the faults ends the master.
            for stack in dict.fromkeys(stack for _, stack, _ in missing):
                with progress.step(f"start {stack}"):
                    machine = _start(stacks, stack)
                try:
                    _runs(stacks, stack, [row for row in missing if row[1] == stack], (record, options, progress))
                finally:
                    machine.destroy()
        finally:
            stacks.down()
            if not options.keep:
                lab.down()
    counted = [run for run in record.runs if run["number"] <= options.network_count]
    broken = [run for run in counted if not run["kept"]]
    outages = sorted(run["outage"] for run in counted if run["fault"] == "good" and run["outage"] is not None)
    progress.say(
        f"network: {len(counted)} runs ({len(missing)} now, in {(time.monotonic() - begun) / 60:.1f} min), "
        f"{len(broken)} not as promised; outages of good changes: {outages or 'none measured'} s; kept in {out}"
    )
    for run in broken:
        progress.say(f"         {run['number']}: {told(run)}")
    return 1 if broken else 0

"""The campaign of interfaces: every fault on every backend; a seed chooses their order and moments."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab import identity
from lab.lab import Lab
from lab.stacks import BEYOND, StackHosts, all_stacks
from lab.state import CHECKOUT, tree_digest
from lab.ui import Progress
from lab.vm import Machine

from . import interfaces
from .record import Record
from .subject import SIX_ROUTER, SOURCE, Subject

HERE = Path(__file__).parent
FAULTS = ("interfaces.py", "by_hand.py", "subject.py")


class Master:
    """The one master that all machines check: shared by those which need it, had alone by whoever stops it."""

    def __init__(self, machines: int) -> None:
        """Take how many machines run at a time."""
        self._machines = machines
        self._places = threading.Semaphore(machines)
        self._alone = threading.Lock()

    @contextlib.contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Wait for the master, alone or with others, and have it while the block runs."""
        places = self._machines if alone else 1
        # Two that want all the places would each wait for those of the other.
        with self._alone if alone else contextlib.nullcontext():
            for _ in range(places):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(places)


def told(run: dict[str, Any]) -> str:
    """Say in one line what came of a run."""
    text = f"{run['stack']}, {run['fault']}: {run['end'] or 'neither old nor new'} after {run['seconds']} s"
    if run["outage"] is not None:
        text += f", the master was away for {run['outage']} s"
    return text if run["kept"] else f"{text} - NOT AS PROMISED: {run['said']}; {'; '.join(run['differences'])}"


def order(
    seed: int, count: int, backends: Sequence[str] = (), faults: Sequence[str] = ()
) -> list[tuple[int, str, str]]:
    """Return the runs of a campaign: number, stack and fault, each pair once before any comes again.

    Args:
        seed: chooses the order.
        count: how many runs.
        backends: those that are wanted; by default all.
        faults: likewise.
    """
    chance = random.Random(seed)  # noqa: S311 - the same order for the same seed
    stacks = [one.stack for one in all_stacks() if one.stack in backends or not backends]
    found: list[tuple[str, str]] = []
    while len(found) < count:
        pairs = [(stack, fault) for stack in stacks for fault in interfaces.FAULTS if fault in faults or not faults]
        chance.shuffle(pairs)
        found += pairs
    return [(number, *pair) for number, pair in enumerate(found[:count], start=1)]


def begin(stacks: StackHosts) -> None:
    """Make what the machines share: keys, the disk image, and what answers beyond the controller."""
    for one in stacks.wanted:
        identity.make_keys(stacks.lab.paths, one.name)
    identity.write_ssh_files(stacks.lab.paths, stacks.hosts.addresses)
    controller = stacks.hosts.controller
    stacks.hosts.run(controller, ["ip", "address", "replace", f"{BEYOND}/32", "dev", "lo"])
    stacks.hosts.run(controller, ["ip", "address", "replace", f"{SIX_ROUTER}/64", "dev", "eth0", "nodad"])
    install = ["apt-get", "--yes", "--quiet", "--no-install-recommends", "install", "dnsmasq-base"]
    stacks.hosts.run(controller, install, timeout=300)


def start(stacks: StackHosts, name: str) -> Machine:
    """Start a machine and wait until it answers; it is no minion, which would only take its time."""
    machine = stacks.machines[name]
    machine.create(identity.files(stacks.lab.paths, name, stacks.hosts.addresses))
    machine.start()
    machine.wait_ssh(400)
    return machine


class Course:
    """The runs that are missing, made on one machine or on several at a time.

    Attributes:
        stacks: the machines.
        options: network_count, seed, window, at_once.
        record: each run is written down in it when it is over.
        progress: shows what is done.
    """

    def __init__(self, stacks: StackHosts, options: argparse.Namespace, record: Record, progress: Progress) -> None:
        """Take machines that do not run yet."""
        self.stacks, self.options, self.record, self.progress = stacks, options, record, progress
        self._master = Master(options.at_once)
        self._writing = threading.Lock()

    def run(self, missing: Sequence[tuple[int, str, str]]) -> None:
        """Make all runs; where a machine fails, the others go on before the error is raised."""
        wanted = list(dict.fromkeys(stack for _, stack, _ in missing))
        with concurrent.futures.ThreadPoolExecutor(self.options.at_once) as pool:
            tasks = [pool.submit(self._machine, one, [row for row in missing if row[1] == one]) for one in wanted]
        for task in tasks:
            task.result()

    def _machine(self, stack: str, rows: Sequence[tuple[int, str, str]]) -> None:
        """Make the runs of one machine."""
        with self.progress.step(f"start {stack}"):
            machine = start(self.stacks, stack)
        try:
            for number, _, fault in rows:
                self._one(number, stack, fault)
        finally:
            machine.destroy()

    def _one(self, number: int, stack: str, fault: str) -> None:
        """Make one run, and write it down when it is over."""
        chance = random.Random(f"{self.options.seed}/{number}")  # noqa: S311 - the same moments for the same seed
        subject = Subject(self.stacks, stack, chance, self.options.window)
        title = f"run {number} of {self.options.network_count}: {stack}, {fault}"
        with self._master.held(alone=fault in interfaces.ALONE), self.progress.step(title):
            # Anew for each, so that none is of another's leftovers.
            subject.install()
            run = interfaces.attempt(subject, fault).report()
        with self._writing:
            self.record.add({"number": number, **run})
        self.progress.say(f"         {told(run)}")


def campaign(options: argparse.Namespace, progress: Progress) -> int:
    """Run what is missing and say what came of all.

    Args:
        options: network_count, seed, window, at_once, backend, fault, fresh, name, platform, keep, out.
        progress: shows what is done.

    Returns:
        0 if every host ended as promised, 1 if not.
    """
    out = options.out or CHECKOUT / "build" / "faults-network.json"
    # The program, and what is done to it: what the rest of the repository says does not change a run.
    sources = tree_digest([SOURCE, *(HERE / name for name in FAULTS)])
    terms = {"campaign": "network", "seed": options.seed, "platform": options.platform, "sources": sources}
    terms["window"] = options.window
    backends = options.backend or []
    terms["backends"] = sorted(backends)
    # Numbers of runs mean these.
    terms["faults"] = sorted(options.fault or interfaces.FAULTS)
    record = Record(out, terms, fresh=options.fresh)
    if record.forgotten:
        progress.say(f"{record.forgotten} runs in {out} were of other code or options, and are forgotten")
    wanted = order(options.seed, options.network_count, backends, options.fault or [])
    done = {run["number"] for run in record.runs}
    missing = [row for row in wanted if row[0] not in done]
    begun = time.monotonic()
    if missing:
        lab = Lab(f"{options.name}-net", progress)
        lab.up(platform=options.platform, only=[next(iter(lab.kitchen.hosts))], highstate=False, demo=False)
        stacks = StackHosts(lab, all_stacks())
        try:
            begin(stacks)
            Course(stacks, options, record, progress).run(missing)
        finally:
            stacks.down()
            if not options.keep:
                lab.down()
    counted, broken = record.judged(options.network_count)
    outages = sorted(run["outage"] for run in counted if run["fault"] == "good" and run["outage"] is not None)
    progress.say(
        f"network: {len(counted)} runs ({len(missing)} now, in {(time.monotonic() - begun) / 60:.1f} min), "
        f"{len(broken)} not as promised; outages of good changes: {outages or 'none measured'} s; kept in {out}"
    )
    for run in broken:
        progress.say(f"         {run['number']}: {told(run)}")
    return 1 if broken else 0

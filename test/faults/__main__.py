"""`make faults`: cuts the power of hosts right after a highstate, breaks changes of their interfaces, and clusters."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from lab import salt as lab_salt
from lab.lab import Lab
from lab.proc import LabError
from lab.stacks import all_stacks
from lab.state import CHECKOUT
from lab.ui import Progress

from . import cluster, durable, interfaces, network, node_faults
from .frozen import NUMBERS, FrozenHost
from .record import Record


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="faults",
        description="durable: cut the power of a virtual machine host one second after a green highstate, boot it, and "
        "compare every file that the highstate wrote; about two minutes for a cut where there is no KVM. network: "
        "change the interfaces of hosts while something fails, and look whether they are as before or as confirmed; "
        "about a minute for a run. cluster: two machines that share disks run a guest while something fails, and every "
        "block that it has written is read; about five minutes for a run. Needs root.",
        epilog="What is done is kept in --out: the same command goes on where it was interrupted. "
        "make faults FAULTS='--count 3 --file-system xfs' passes options.",
    )
    made.add_argument("--campaign", action="append", choices=("durable", "network", "cluster"), help="default: all")
    made.add_argument(
        "--cluster-count", type=int, default=len(node_faults.FAULTS),
        help="faults of a cluster (default: %(default)s, each once)",
    )  # fmt: skip
    made.add_argument("--network-count", type=int, default=60, help="changes of interfaces (default: 60)")
    made.add_argument("--window", type=int, default=20, help="seconds to confirm each of these (default: 20)")
    made.add_argument(
        "--at-once", type=int, default=1,
        help="machines that change their interfaces at a time (default: 1; two where the machine has cores for them)",
    )  # fmt: skip
    stacks = [one.stack for one in all_stacks()]
    made.add_argument("--backend", action="append", choices=stacks, help="only changes of this one; default: all")
    made.add_argument(
        "--fault", action="append",
        help="only this fault of network or cluster, such as power_cut or 'node killed'; default: all",
    )  # fmt: skip
    made.add_argument("--count", type=int, default=10, help="cuts on each file system (default: 10)")
    made.add_argument("--seed", type=int, default=1, help="chooses the pillars (default: 1)")
    made.add_argument("--file-system", action="append", choices=sorted(NUMBERS), help="default: each of them")
    made.add_argument(
        "--without-flush", action="store_true",
        help="leave durable.synced out, to see that this test can fail; the return code is 1 when nothing is lost",
    )  # fmt: skip
    made.add_argument("--fresh", action="store_true", help="count no run of before")
    made.add_argument("--keep", action="store_true", help="leave the lab with the frozen hosts for the next time")
    made.add_argument("--name", default="faults", help="name of the lab that is made for it (default: faults)")
    made.add_argument("--platform", default="debian-12", help="a platform of kitchen.yml (default: debian-12)")
    made.add_argument(
        "--out", type=Path,
        help="where runs of one campaign are kept (default: build/faults[-without-flush].json, faults-network.json, "
        "faults-cluster.json)",
    )  # fmt: skip
    return made


def campaign(options: argparse.Namespace, progress: Progress) -> int:
    """Run what is missing and say what came of all.

    Returns:
        0 if the promise held, 1 if not.

    Raises:
        LabError: something went wrong before anything is known.
    """
    flush = not options.without_flush
    systems = options.file_system or list(NUMBERS)
    out = options.out or CHECKOUT / "build" / ("faults.json" if flush else "faults-without-flush.json")
    terms = {
        "campaign": "durable", "seed": options.seed, "flush": flush, "platform": options.platform,
        "sources": lab_salt.sources_digest(),
    }  # fmt: skip
    record = Record(out, terms, fresh=options.fresh)
    if record.forgotten:
        progress.say(f"{record.forgotten} runs in {out} were of other code or options, and are forgotten")
    begun, did = time.monotonic(), 0
    for system in systems:
        done = {run["number"] for run in record.done(file_system=system)}
        missing = [number for number in range(1, options.count + 1) if number not in done]
        if not missing:
            continue
        lab = Lab(options.name, progress)
        # The controller alone: the hosts here are the test's own.
        lab.up(platform=options.platform, only=[next(iter(lab.kitchen.hosts))], highstate=False, demo=False)
        host = FrozenHost(lab, system, options.platform, progress)
        try:
            host.prepare(durable.pillar(system, options.seed, 0))
            for number in missing:
                with progress.step(f"{system}, cut {number} of {options.count}"):
                    # Once for each file system it is seen that the host comes up whole.
                    run = durable.cut(host, options.seed, number, flush=flush, whole=number == missing[-1])
                record.add(run)
                did += 1
                progress.say(f"         {durable.told(run)}")
        finally:
            host.stop()
    good = True
    for system in systems:
        wanted = [run for run in record.done(file_system=system) if run["number"] <= options.count]
        fine, text = durable.verdict(wanted, flush=flush)
        good = good and fine
        progress.say(f"{system}: {text}{'' if fine else ' - NOT AS PROMISED'}")
    minutes = (time.monotonic() - begun) / 60
    progress.say(f"{did} runs in {minutes:.1f} min, {len(record.runs) - did} from before; kept in {out}")
    return 0 if good else 1


def _known(made: argparse.ArgumentParser, faults: list[str], campaigns: list[str]) -> None:
    """End the command where faults are named that the campaign does not have."""
    known = {"network": {*interfaces.FAULTS}, "cluster": {*node_faults.FAULTS}}.get(campaigns[0], set())
    unknown = sorted({*faults} - known)
    if faults and (len(campaigns) > 1 or not known):
        made.error("--fault is for --campaign network or --campaign cluster")
    if unknown:
        made.error(f"--fault {', '.join(unknown)} is not one of {', '.join(sorted(known))}")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the command line; None for the process's own.

    Returns:
        0 if the promise held, 1 if it did not, 2 if something failed, 130 if it was interrupted.
    """
    made = parser()
    options = made.parse_args(argv)
    if min(options.count, options.network_count, options.cluster_count, options.at_once) < 1:
        made.error("--count, --network-count, --cluster-count and --at-once must be at least 1")
    campaigns = options.campaign or ["durable", "network", "cluster"]
    if options.out and len(campaigns) > 1:
        made.error("--out is for one --campaign")
    _known(made, options.fault or [], campaigns)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > 1:
        print(f"faults: this machine is busy (load {load:.1f} a processor); it takes longer", file=sys.stderr)
    try:
        run = {"durable": campaign, "network": network.campaign, "cluster": cluster.campaign}
        result = max(run[name](options, Progress()) for name in campaigns)
    except LabError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faults: interrupted; the same command goes on", file=sys.stderr)
        if "durable" in campaigns:
            print(f"faults: to remove what is left: .venv/bin/lab down --name {options.name}", file=sys.stderr)
        return 130
    if not options.keep and "durable" in campaigns:
        Lab(options.name, Progress(quiet=True)).down()
    return result


if __name__ == "__main__":
    sys.exit(main())

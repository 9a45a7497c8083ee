"""`python -m bench`: measures, writes `build/bench.json`, prints a table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lab.proc import LabError
from lab.state import CHECKOUT
from lab.ui import Progress

from . import cluster, inventory, more_runs, network, salt_runs
from .rows import table, write

MORE = {"beside": more_runs.beside_row, "durable": more_runs.durable_row}
PARTS = (*salt_runs.PARTS, *MORE, "network", "inventory", "cluster")
OUTAGES = 3  # runs of each change of an uplink, which take a minute
DEATHS = 3  # of nodes of a cluster, which take five minutes
BUSY = 0.5  # load per processor above which the figures are said to be noisy


def main(argv: list[str] | None = None) -> int:
    """Run the measurements.

    Args:
        argv: the command line; None for the process's own.

    Returns:
        0 if every figure that was measured is at its goal, 1 if one is not, 2 if something failed.
    """
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--name", default="bench", help="name of the lab that is made for it")
    parser.add_argument("--platform", default="debian-12", help="a platform of kitchen.yml")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each short figure")
    parser.add_argument("--fresh", type=int, default=3, help="pairs of fresh hosts")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "bench.json")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}"
    )
    options = parser.parse_args(argv)
    if options.repeat < 1 or options.fresh < 1:
        parser.error("--repeat and --fresh must be at least 1")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY:
        print(f"bench: this machine is busy (load {load:.1f} a processor)", file=sys.stderr)
    try:
        rows = []
        if set(options.only) - {"network", "inventory", "cluster"}:
            rows += salt_runs.rows(
                options.name, options.platform, options.repeat, options.fresh, MORE, options.only, Progress()
            )
        if "network" in options.only:
            rows += network.rows(f"{options.name}-net", options.platform, min(options.repeat, OUTAGES), Progress())
        if "inventory" in options.only:
            rows += inventory.rows(f"{options.name}-inv", options.platform, Progress())
        if "cluster" in options.only:
            rows += cluster.rows(f"{options.name}-ha", options.platform, min(options.repeat, DEATHS), Progress())
        write(rows, options.out)
    except (LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0 if all(row.met for row in rows if row.value is not None) else 1


if __name__ == "__main__":
    sys.exit(main())

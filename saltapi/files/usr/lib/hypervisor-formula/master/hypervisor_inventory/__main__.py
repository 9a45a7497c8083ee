"""Starts the service. ``--counts`` instead prints how many messages of hosts were not taken, and why."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

# Salt's Python runs this file by its path, and looks nowhere else for it (-I).
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hypervisor_inventory import service, store

parser = argparse.ArgumentParser(description="Serves the inventory of hypervisors.")
parser.add_argument("--database", type=Path, default=Path("/var/lib/hypervisor-inventory/inventory.db"))
parser.add_argument("--api", type=Path, default=Path("/run/hypervisor-api/tokens.sock"), help="socket of salt-api")
parser.add_argument("--counts", action="store_true", help="print what was refused, and end")
options = parser.parse_args()
logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
if options.counts:
    print(store.refused(options.database))
else:
    asyncio.run(service.main(options.database, options.api))

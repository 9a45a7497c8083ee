"""Keeps on the master what hypervisors say of themselves and their guests, and does no more.

Messages of hosts are judged by their signature, and put into one database with the jobs that operators have started.
What is wanting is asked for: of a host whose messages have a gap, of all at the start and every few minutes. The unit
``hypervisor-inventory`` reads the database and serves it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import salt.client
import salt.utils.event

__opts__: dict[str, Any]
__utils__: dict[str, Any]

CODE = "/usr/lib/hypervisor-formula/master"


def __virtual__() -> bool | tuple[bool, str]:
    """Loads on the master; minions have another engine."""
    if __opts__.get("__role") != "master":
        return False, "this is for the master"
    return True


def start(
    database: str = "/var/lib/hypervisor-inventory/inventory.db",
    hosts: str = "/etc/pki/hypervisor/hosts",
    audit: str = "/var/log/salt/hypervisor-audit.log",
    reconcile: float = 300.0,
    code: str = CODE,
) -> None:
    """Keeps the inventory until the master ends.

    Args:
        database: the file; the group of its folder may read it.
        hosts: the file that names the hypervisors, of ``bootstrap pki``.
        audit: the trail of operators' jobs.
        reconcile: seconds after which every host is asked for everything.
        code: the folder with the code for it.
    """
    lock = Path(__opts__["cachedir"], "hypervisor-inventory.lock")
    if not __utils__["engine_work.begin"](str(lock), "hypervisor-formula: inventory"):
        return
    # Salt's loader knows this file and none beside it.
    sys.path.insert(0, code)
    keeper = importlib.import_module("hypervisor_inventory.keeper")

    def publish(names: list[str], tag: str, data: dict[str, str]) -> None:
        with salt.client.get_local_client(mopts=__opts__) as client:
            client.cmd_async(names, "event.fire", [data, tag], tgt_type="list")

    paths = keeper.Paths.of(database, __opts__["pki_dir"], hosts, audit, __opts__["cachedir"])
    with salt.client.get_local_client(mopts=__opts__) as client:
        returns = client.returners[f"{__opts__['master_job_cache']}.get_jid"]
    work = keeper.Keeper(paths, publish, returns, reconcile)
    with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=True) as bus:

        def events(wait: float) -> Any:
            return bus.get_event(wait=wait, tag="hypervisor/", full=True, match_type="startswith", auto_reconnect=True)

        work.run(events)

"""Two virtual machines that are no minions: each applies the formulas itself, from a copy on its own disk."""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from support import PLATFORM

from lab import salt
from lab.lab import Lab
from lab.state import CHECKOUT
from lab.ui import Progress
from lab.vm import Machine

NAME = f"{os.environ.get('LAB_NAME', 'test')}-tun"
KEEP = os.environ.get("LAB_KEEP") == "1"
HOSTS = ("hv1", "hv2")
FORMULAS, PILLAR = "/srv/formulas", "/srv/pillar"
# Modules are used where they lie, so that no run has to copy them first.
MINION = {
    "file_client": "local",
    "file_roots": {"base": [FORMULAS]},
    "pillar_roots": {"base": [PILLAR]},
    "module_dirs": [f"{FORMULAS}/_modules"],
    "states_dirs": [f"{FORMULAS}/_states"],
    "utils_dirs": [f"{FORMULAS}/_utils"],
}


class Pair:
    """Two machines on one network.

    Attributes:
        lab: their lab.
        machines: by name.
        addresses: on the network between them, by name.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.machines: dict[str, Machine] = {name: lab.virtual.machine(name) for name in HOSTS}
        self.addresses = {name: lab.hosts.addresses[name] for name in HOSTS}

    def sh(self, host: str, script: str, *, check: bool = True, timeout: float = 240) -> str:
        """Run a shell script on a host and return what it printed."""
        return str(self.machines[host].ssh(["sh", "-c", script], check=check, timeout=timeout).stdout)

    def pillar(self, host: str, network: dict[str, Any]) -> None:
        """Give a host this pillar."""
        files = {"top.sls": {"base": {"*": ["network"]}}, "network.sls": {"network": network}}
        self.lab.hosts.unpack(
            host, {f"{PILLAR}/{name}": (0o600, yaml.safe_dump(text).encode()) for name, text in files.items()}
        )

    def apply(self, host: str, *words: str) -> dict[str, dict[str, Any]]:
        """Apply states on a host and return each one's row by its id."""
        argv = ["salt-call", "--out=json", "--out-indent=-1", "--log-level=quiet", "state.apply", *words]
        done = self.machines[host].ssh(argv, check=False, timeout=600)
        rows = json.loads(done.stdout)["local"]
        assert isinstance(rows, dict), rows
        return {row["__id__"]: row for row in rows.values()}

    def both(self, work: Callable[[str], Any]) -> dict[str, Any]:
        """Do something on both hosts at once."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return dict(zip(HOSTS, pool.map(work, HOSTS), strict=True))


@pytest.fixture(scope="session", name="pair")
def two_machines(loud) -> Iterator[Pair]:
    """Two machines with the formulas on their disks and nothing applied yet."""
    with loud.disabled():
        lab = Lab(NAME, Progress())
        kinds = dict.fromkeys(HOSTS, "vm")
        lab.up(platform=PLATFORM, kinds=kinds, only=["controller", *HOSTS], highstate=False, minions=False)
    pair = Pair(lab)
    packed = salt.pack(salt.sources(), CHECKOUT)
    for host in HOSTS:
        lab.run(host, ["mkdir", "-p", FORMULAS, PILLAR])
        lab.run(host, ["tar", "-x", "-C", FORMULAS], stdin=packed)
        config = yaml.safe_dump({**MINION, "id": host}).encode()
        lab.hosts.unpack(host, {"/etc/salt/minion.d/tunnels.conf": (0o644, config)})
    yield pair
    if not KEEP:
        assert lab.down() == [], "the lab left the machine changed"

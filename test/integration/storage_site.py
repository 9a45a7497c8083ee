"""Two virtual machines that share disks, and what sbd, Pacemaker and LVM say there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cluster_site import Site, soon

from lab.lab import Lab
from lab.proc import CommandError
from lab.ui import Progress
from lab.vm import Machine

NODES = ("hv1", "hv2")
SBD, SAN = "/dev/disk/by-id/virtio-sbd", "/dev/disk/by-id/virtio-san"
SHARED_DISKS = {"sbd": 16, "san": 1024}
# QEMU lets one request through, and the next one after some minutes.
STALLED = {"bps": 1, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
# An emulated host on a busy machine is late, and must not be taken for one that is lost.
TOKEN, WATCHDOG, MSGWAIT = 10000, 15, 30
PATIENCE = 1800.0
CLUSTER = {
    "token": TOKEN,
    "wait_seconds": 600,
    # A machine that boots takes longer anyway.
    "sbd": {
        "enabled": True, "devices": [SBD], "module": "softdog", "blacklist": ["iTCO_wdt"], "start_delay": 0,
        "watchdog_timeout": WATCHDOG, "msgwait": MSGWAIT,
    },
    "storage": {
        "lock_manager": "dlm",
        "volume_groups": {"vmdata": {"devices": [SAN], "volumes": {"one": {"size_mib": 64}}}},
    },
}  # fmt: skip
VOLUME, RESOURCE = "/dev/vmdata/one", "vmdata-one"


@contextlib.contextmanager
def bare_machines(loud: Any, name: str, nodes: Iterable[str], shared_disks: Mapping[str, int]) -> Iterator[Lab]:
    """Have a controller and machines that are minions, and no more, while the block runs.

    Args:
        loud: what shows progress past pytest's capture.
        name: the lab's.
        nodes: the machines.
        shared_disks: MiB of each disk that they share, by name.
    """
    lab = Lab(name, Progress())
    try:
        with loud.disabled():
            lab.up(
                only=["controller", *nodes], kind="vm", kinds={"controller": "container"}, highstate=False,
                shared_disks=shared_disks,
            )  # fmt: skip
        yield lab
    finally:
        differences = [] if os.environ.get("LAB_KEEP") == "1" else lab.down()
    assert differences == [], "the lab left the machine changed"


class StorageSite(Site):  # type: ignore[misc]  # mypy looks at files of this folder one by one
    """A cluster, of two unless it is said, with a shared disk for sbd and one for storage."""

    def __init__(self, lab: Lab, nodes: tuple[str, ...] = NODES) -> None:
        super().__init__(lab, nodes, PATIENCE)

    def declared(self, **more: Any) -> None:
        """Let the pillar say all of it."""
        self.declare(*self.nodes, **{**CLUSTER, **more})

    def machine(self, node: str) -> Machine:
        """Return a node's machine, with its power in the caller's hand."""
        machine: Machine = self.lab.virtual.machine(node)
        return machine

    def running(self, node: str) -> bool:
        """Whether a node's machine is switched on."""
        return self.machine(node).is_running()

    def active_on(self, volume: str = VOLUME) -> list[str]:
        """Return the nodes on which the kernel has a volume, whatever Pacemaker says; with ``?`` who does not say."""
        found = []
        for node in self.nodes:
            code = self.asked(node, "test", "-e", volume)[0] if self.running(node) else 1
            found += {0: [node], 1: []}.get(code, [f"{node}?"])
        return found

    def asked(self, node: str, *argv: str) -> tuple[int, str]:
        """Run a command on a node that may be about to go; return its code and all that it said, or 255."""
        try:
            done = self.lab.run(node, list(argv), check=False, timeout=120)
        except CommandError as error:
            return 255, str(error)
        return int(done.returncode), str(done.stdout + done.stderr)

    def holders(self) -> list[str]:
        """Return the nodes that have an exclusive lock of a volume."""
        alive = [node for node in self.nodes if self.running(node)]
        found = {node: self.run(node, "lvmlockctl", "--info") for node in alive}
        return [node for node in alive if re.search(r"^LK LV ex ", found[node], re.MULTILINE)]

    def written(self, node: str, volume: str = VOLUME) -> str:
        """Write something new to a volume, past any cache, and return it."""
        nonce = secrets.token_hex(16)
        self.run(node, "dd", f"of={volume}", "bs=512", "conv=sync", "oflag=direct", "status=none", stdin=nonce)
        return nonce

    def read_back(self, node: str, volume: str = VOLUME) -> str:
        """Return what :meth:`written` has written, past any cache."""
        text = self.run(node, "dd", f"if={volume}", "bs=512", "count=1", "iflag=direct", "status=none")
        return str(text).rstrip("\0")

    def where(self, node: str, name: str = RESOURCE) -> str:
        """Return where a resource runs, as one node sees it; empty when nowhere."""
        found = self.monitor(node).find(f".//resource[@id='{name}']")
        if found is None or found.get("role") != "Started" or found.get("failed") == "true":
            return ""
        place = found.find("node")
        return str(place.get("name")) if place is not None else ""

    def role(self, node: str, name: str) -> str:
        """Return what Pacemaker says of a resource, such as Started or Stopped."""
        found = self.monitor(node).find(f".//resource[@id='{name}']")
        return "" if found is None else str(found.get("role"))

    def idle(self, node: str) -> list[str]:
        """Return what Pacemaker should run and does not, as one node sees it."""
        rows = self.monitor(node).iter("resource")
        return [
            str(row.get("id")) for row in rows
            if row.get("role") != "Started" or "true" in (row.get("failed"), row.get("blocked"))
        ]  # fmt: skip

    def fencing(self, node: str, name: str = "fence_sbd") -> str:
        """Return where the fence device runs; empty when nowhere."""
        return self.where(node, name)

    def unclean(self, node: str) -> set[str]:
        """Return the nodes that one node counts as lost and not fenced."""
        rows = self.monitor(node).findall("nodes/node")
        return {str(row.get("name")) for row in rows if row.get("unclean") == "true"}

    @contextlib.contextmanager
    def stalled(self, disk: str, *nodes: str) -> Iterator[None]:
        """Let a shared disk answer nothing on nodes while the block runs: requests wait, and are done afterwards."""
        device = f"disk{list(SHARED_DISKS).index(disk)}"
        for node in nodes:
            self.machine(node).qmp("block_set_io_throttle", device=device, **STALLED)
        try:
            yield
        finally:
            for node in filter(self.running, nodes):
                self.machine(node).qmp("block_set_io_throttle", device=device, **dict.fromkeys(STALLED, 0))

    def killed(self, node: str) -> float:
        """Cut a node's power; return when."""
        self.machine(node).kill()
        return time.monotonic()

    def back(self, node: str) -> None:
        """Switch a node on and wait until it is a member with its locks again."""
        self.machine(node).start()
        self.lab.hosts.wait_ssh(node, timeout=PATIENCE)
        other = next(one for one in self.nodes if one != node)
        soon(lambda: self.online(other) == set(self.nodes), PATIENCE, f"{node} is back")
        soon(lambda: self.locks(node), PATIENCE, f"{node} has its daemon of locks")

    def locks(self, node: str) -> bool:
        """Whether a node's daemon of locks answers."""
        return bool(self.lab.run(node, ["lvmlockctl", "--info"], check=False).returncode == 0)


class Course:
    """From bare hosts to a volume that is active on one of two nodes.

    Attributes:
        refused: what hv1 said of a disk that has a file system, in a thorough run.
        predicted: what ``test=True`` said before anything was done.
        done: what the first run did.
        second: what the second one did.
        predicted_again: what ``test=True`` says then, in a thorough run.
    """

    def __init__(self, site: StorageSite, *, thorough: bool) -> None:
        site.declared()
        site.converge(site.lab.hosts.controller)
        self.refused = self.predicted_again = None
        if thorough:
            site.run("hv1", "mke2fs", "-q", "-t", "ext4", SAN)
            self.refused = site.highstate("hv1", test=True)["hv1"]
            site.run("hv1", "wipefs", "--all", "--quiet", SAN)
            site.run("hv1", "dd", "if=/dev/zero", f"of={SAN}", "bs=1M", "count=8", "oflag=direct", "status=none")
        self.predicted = site.highstate(*NODES, test=True)
        self.done = site.highstate(*NODES)
        self.second = site.highstate(*NODES)
        if thorough:
            self.predicted_again = site.highstate(*NODES, test=True)

"""A guest that a cluster of two runs, which counts on its disk, and what is to be said of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster_site import soon
from storage_site import CLUSTER, NODES, PATIENCE, SAN, StorageSite

from lab.lab import Lab

GUEST, GUEST_VOLUME, GUEST_DISK = "counter", "vmdata-counter", "/dev/vmdata/counter"
# A second guest, and a volume that a guest gets later.
SECOND, SECOND_DISK, SPARE_DISK = "second", "/dev/vmdata/second", "/dev/vmdata/spare"
DEFINITION = f"/etc/libvirt/cluster/{GUEST}.xml"
FOLDER = "/var/lib/libvirt/images"
MIB = 64
# Seconds that a guest is idle between numbers. QEMU's emulator can lose what a guest writes while its dirty pages are
# collected: it looks whether a page is clean before it puts the page into the processor's own table, and a collection
# between the two goes unnoticed (tlb_set_page_full of QEMU 7.2). So one that is always at work may arrive with memory
# that is not its own; under KVM the processor itself marks what is written.
PAUSE = 8
_LINE = re.compile(r"count (\S+) ([0-9a-f-]{36}) (\d+)$")


class Count(NamedTuple):
    """What a guest has written to its disk.

    Attributes:
        last: the last number.
        boots: the starts of the guest that have written, in the order of their numbers.
    """

    last: int
    boots: tuple[str, ...]


class GuestSite(StorageSite):  # type: ignore[misc]  # mypy looks at files of this folder one by one
    """The cluster with shared storage, and pillar of a guest that it runs."""

    nonce = "nonce"

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        # Seconds that a minion may take to say that it is still at work: one here is late, and must not count as lost.
        argv = ["sh", "-c", "cat > /etc/salt/master.d/late.conf"]
        self.run(lab.hosts.controller, *argv, stdin="gather_job_timeout: 60\n")

    def guest_declared(
        self, volumes: tuple[str, ...] = (), guests: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        """Let the pillar have the guest too.

        Args:
            volumes: more volumes of the group.
            guests: more guests like it, by name the device of each.
            more: keys of the guest that are replaced.
        """
        argv = f"console=ttyS0 no_timer_check count={self.nonce} pause={PAUSE}"
        boot = {"kernel": f"{FOLDER}/lab-guest-vmlinuz", "initrd": f"{FOLDER}/lab-guest-initramfs", "cmdline": argv}
        disk = {"name": "data", "source_file": GUEST_DISK, "cache": "none"}
        guest = {"ha": True, "cpu": 1, "mem": 96, "boot": boot, "disks": [disk]}
        others = {name: {**guest, "disks": [{**disk, "source_file": path}]} for name, path in (guests or {}).items()}
        libvirt = {
            "pki": {"ca_server": self.lab.hosts.controller},
            "tls": {"allowed_hosts": list(NODES)},
            "daemon_conf": {"host_uuid_source": "machine-id"},
            "guests": {GUEST: {**guest, **more}, **others},
        }
        self.others = {"libvirt": libvirt, "kvm": {"kernel": {"manage": False}}}
        self.only = {node: {"roles": ["hypervisor", "cluster"]} for node in NODES}
        sizes = {"one": 64, GUEST: MIB, **dict.fromkeys(volumes, 32)}
        rows = {name: {"size_mib": size} for name, size in sizes.items()}
        groups = {"vmdata": {"devices": [SAN], "volumes": rows}}
        self.declared(storage={**CLUSTER["storage"], "volume_groups": groups})

    def guests_on(self, guest: str = GUEST) -> dict[str, str]:
        """Return by node the state of a guest, as libvirt itself says it, or ``?``; nodes without it are left out."""
        found = {}
        for node in NODES:
            if self.running(node):
                code, said = self.asked(node, "virsh", "domstate", guest)
                if code == 0:
                    found[node] = said.strip()
                elif "failed to get domain" not in said:
                    found[node] = "?"
        return found

    def runs_on(self, guest: str = GUEST) -> str:
        """Return the node that runs a guest, of which there is never more than one; empty for none."""
        found = self._running(guest)
        if len(found) > 1:
            # One after the other is asked: it may have moved between the two.
            found = self._running(guest)
        assert len(found) <= 1, found
        return next(iter(found), "")

    def _running(self, guest: str) -> list[str]:
        """Return the nodes that say that they run a guest."""
        return [node for node, state in self.guests_on(guest).items() if state == "running"]

    def quiet(self, node: str) -> None:
        """Wait until Pacemaker has nothing more to do, as one node sees it."""
        self.run(node, "crm_resource", "--wait", f"--timeout={PATIENCE:.0f}s", timeout=PATIENCE + 60)

    def started(self) -> str:
        """Wait until the guest counts; return its node."""
        soon(self.runs_on, PATIENCE, "the guest runs")
        node = self.runs_on()
        soon(lambda: self.counts(node), PATIENCE, f"the guest counts on {node}")
        return node

    def counts(self, node: str, disk: str = GUEST_DISK) -> bool:
        """Whether a guest on a node writes: within four times what it is idle."""
        before, deadline = self.sector(node, disk), time.monotonic() + 4 * PAUSE
        while _LINE.fullmatch(before) and time.monotonic() < deadline:
            time.sleep(2)
            now = self.sector(node, disk)
            if now != before and _LINE.fullmatch(now):
                return True
        return False

    def sector(self, node: str, disk: str = GUEST_DISK) -> str:
        """Return the first sector of a guest's disk, past any cache."""
        argv = ["dd", f"if={disk}", "bs=512", "count=1", "iflag=direct", "status=none"]
        return str(self.run(node, *argv, check=False)).rstrip("\0\n")

    def count(self, node: str, disk: str = GUEST_DISK) -> Count:
        """Read a guest's disk where it is active: every number is there, once, and each start wrote without a gap.

        Two guests at a time would have written numbers of the other's, or their own among them; and who had written
        last would have missed its own number, and said so in the last sector.
        """
        end = int(self.run(node, "blockdev", "--getsz", disk)) - 1
        argv = ["dd", f"if={disk}", "bs=512", "count=1", f"skip={end}", "iflag=direct", "status=none"]
        clash = str(self.run(node, *argv)).strip("\0\n")
        assert clash == "", f"another guest has written to this disk: {clash}"
        first = self.sector(node, disk)
        found = _LINE.fullmatch(first)
        assert found, f"{disk} on {node} begins with {first!r}"
        last = int(found[3])
        argv = ["dd", f"if={disk}", "bs=512", f"count={last + 1}", "iflag=direct", "status=none"]
        text = self.run(node, *argv)
        rows = [text[512 * place : 512 * (place + 1)].rstrip("\0\n") for place in range(1, last + 1)]
        boots: list[str] = []
        for place, row in enumerate(rows, 1):
            found = _LINE.fullmatch(row)
            assert found, (place, row)
            assert (found[1], int(found[3])) == (self.nonce, place)
            if not boots or boots[-1] != found[2]:
                assert found[2] not in boots, f"{found[2]} wrote again at {place}"
                boots.append(found[2])
        return Count(last, tuple(boots))

    def call(self, node: str, function: str, *words: str, check: bool = True) -> Any:
        """Call a function of the module hypervisor on a node, through the master."""
        argv = ["salt", "--out=json", "--static", "--timeout=600", node, f"hypervisor.{function}", *words]
        done = self.lab.run(self.lab.hosts.controller, argv, check=False, timeout=PATIENCE)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)[node]

    def alone_on(self, node: str) -> None:
        """Wait until guest and volume are on one node alone, with an exclusive lock."""
        soon(lambda: self.active_on(GUEST_DISK) == [node], PATIENCE, f"the guest's volume is on {node} alone")
        soon(lambda: self.lock_of(node) == "ex", PATIENCE, f"the lock of {node} is exclusive")
        assert list(self.guests_on()) == [node]

    def lock_of(self, node: str) -> str:
        """Return the mode of the lock that a node has of the guest's volume: ex, sh, or un for none."""
        uuid = self.run(node, "lvs", "--readonly", "--noheadings", "-o", "lv_uuid", GUEST_DISK.removeprefix("/dev/"))
        text = self.run(node, "lvmlockctl", "--info")
        found = re.search(rf"^LK LV (\S+) {re.escape(uuid.strip())}", text, re.MULTILINE)
        return found[1] if found else "un"

    def constraints(self, node: str) -> list[str]:
        """Return the ids of constraints that a move has left."""
        return re.findall(r'id="(cli-[^"]+)"', self.run(node, "cibadmin", "--query", "--scope", "constraints"))

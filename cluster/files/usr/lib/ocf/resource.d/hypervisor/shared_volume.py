#!{{ python }} -I
"""OCF agent ocf:hypervisor:SharedVolume: a shared volume that is active where its guest runs, and moves live with it.

At rest its lock is exclusive. While the guest moves, Pacemaker moves the volume first: the node that the guest leaves
makes its lock shared (migrate_to), the other one takes it shared and activates the volume (migrate_from), the guest
moves, and the first node deactivates it (stop). The first monitor after that makes the lock exclusive again; before
then LVM refuses, since two nodes have it. All else is done by ocf:heartbeat:LVM-activate, which gets the same
environment; but that takes no volume group with locks of sanlock, so of those the agent does all itself. A mark in /run
says that the lock may be shared; it is gone after a boot, as the volume is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Return codes of the OCF resource agent API 1.0.
SUCCESS, GENERIC, UNIMPLEMENTED, CONFIGURED, NOT_RUNNING = 0, 1, 3, 6, 7
ROOT = "/usr/lib/ocf"
MARKS = Path("/run/hypervisor-volumes")
SECONDS = 280.0  # less than the timeout that the formula gives to every operation
DEVICES = "/dev"
# What lvchange --activate calls a lock.
LOCKS = {"exclusive": "ey", "shared": "sy"}
# How long a start asks for a lease that another host has, in seconds, and how often. sanlock(8), with its default
# io_timeout of 10 s: a host that has gone keeps its leases eight times that and for the 60 s in which its watchdog
# fires. One that comes back after that begins by waiting as long for its own, within the first attempt, and needs
# another then.
LEASE, PAUSE = 240.0, 5.0
# With locks of dlm, in seconds: when the last volume that a node has of a group stops there, LVM-activate gives up the
# group's locks. It may do so between the two steps of another volume's start, which fails then, and a resource that
# fails to start is kept from its node.
RACE = 12.0
NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
METADATA = """<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="SharedVolume" version="1.0">
<version>1.0</version>
<longdesc lang="en">A volume of a volume group with locks of lvmlockd, active on one node. While what uses it moves
live to another node, it is active on both.</longdesc>
<shortdesc lang="en">A shared LVM volume that moves with a guest</shortdesc>
<parameters>
<parameter name="vgname" unique="0" required="1"><longdesc lang="en">The volume group.</longdesc>
<shortdesc lang="en">Volume group</shortdesc><content type="string"/></parameter>
<parameter name="lvname" unique="0" required="1"><longdesc lang="en">The volume.</longdesc>
<shortdesc lang="en">Volume</shortdesc><content type="string"/></parameter>
<parameter name="lock_manager" unique="0" required="0"><longdesc lang="en">What the locks of the group are of: dlm or
sanlock.</longdesc><shortdesc lang="en">Lock manager</shortdesc><content type="string" default="dlm"/></parameter>
<parameter name="activation" unique="0" required="0"><longdesc lang="en">exclusive, for a volume that is active on one
node; shared, for one that is active on several.</longdesc><shortdesc lang="en">Activation</shortdesc>
<content type="string" default="exclusive"/></parameter>
</parameters>
<actions>
<action name="start" timeout="300s"/>
<action name="stop" timeout="300s"/>
<action name="monitor" timeout="300s" interval="30s" depth="0"/>
<action name="migrate_to" timeout="300s"/>
<action name="migrate_from" timeout="300s"/>
<action name="meta-data" timeout="10s"/>
<action name="validate-all" timeout="20s"/>
</actions>
</resource-agent>
"""


class Volume:
    """What one call of the agent is about.

    Args:
        environment: what Pacemaker gives: ``OCF_RESKEY_vgname``, ``OCF_RESKEY_lvname``, where it differs
            ``OCF_RESKEY_lock_manager`` and ``OCF_RESKEY_activation``, and more.
        marks: the folder of the marks.
    """

    def __init__(self, environment: Mapping[str, str], marks: Path = MARKS) -> None:
        self.environment = dict(environment)
        self.group = environment.get("OCF_RESKEY_vgname", "")
        self.name = environment.get("OCF_RESKEY_lvname", "")
        self.manager = environment.get("OCF_RESKEY_lock_manager", "dlm")
        self.mode = environment.get("OCF_RESKEY_activation", "exclusive")
        self.mark = marks / f"{self.group}-{self.name}.shared"

    def wrong(self) -> str:
        """Returns what is wrong with the parameters; empty for nothing."""
        names = (self.group, self.name)
        if not all(part and not part.startswith("-") and set(part) <= NAMES for part in names):
            return "vgname and lvname must be names of LVM"
        if self.manager not in ("dlm", "sanlock"):
            return f"lock_manager {self.manager!r} must be dlm or sanlock"
        return "" if self.mode in LOCKS else f"activation {self.mode!r} must be one of: {', '.join(LOCKS)}"

    def does(self, action: str, mode: str = "exclusive") -> int:
        """Activates the volume, deactivates it or says whether it is active; returns an OCF code."""
        return self.itself(action, mode) if self.manager == "sanlock" else self.delegate(action, mode)

    def itself(self, action: str, mode: str) -> int:
        """Does an action without LVM-activate."""
        path = f"{self.group}/{self.name}"
        if action == "monitor":
            return self.active()
        steps = [["vgchange", "--lockstart", self.group], ["lvchange", "--activate", LOCKS[mode], path]]
        for argv in steps if action == "start" else [["lvchange", "--activate", "n", path]]:
            code, said = run(argv, self.environment)
            if code and action == "stop" and self.active() == NOT_RUNNING:
                # A host without the disks has no volume either, and is not to be fenced for that.
                return SUCCESS
            if code:
                return failed(f"{path}: {' '.join(argv)}: {said}")
        return SUCCESS

    def active(self) -> int:
        """Says by an OCF code whether the kernel has the volume, and whether it can be read."""
        # The volume itself is asked, since a lock would be waited for.
        chosen = f"vg_name={self.group} && lv_name={self.name}"
        argv = ["dmsetup", "info", "--columns", "--noheadings", "--noflush", "--options", "lv_name", "--select", chosen]
        found = _ask(argv, self.environment)
        if isinstance(found, str) or found.returncode:
            return failed(f"dmsetup: {found if isinstance(found, str) else ' '.join(found.stderr.split())}")
        # Where the kernel has no device at all it says so in words.
        if self.name not in found.stdout.split():
            return NOT_RUNNING
        device = f"if={DEVICES}/{self.group}/{self.name}"
        code, said = run(["dd", device, "of=/dev/null", "bs=4096", "count=1", "iflag=direct"], self.environment)
        return failed(f"{self.group}/{self.name} cannot be read: {said}") if code else SUCCESS

    def delegate(self, action: str, mode: str) -> int:
        """Has LVM-activate do an action; returns its return code."""
        root = self.environment.get("OCF_ROOT", ROOT)
        own = {"OCF_ROOT": root, "OCF_RESKEY_vg_access_mode": "lvmlockd", "OCF_RESKEY_activation_mode": mode}
        argv = [f"{root}/resource.d/heartbeat/LVM-activate", action]
        return run(argv, {**self.environment, **own}, self.environment.get("OCF_RESOURCE_INSTANCE", ""))[0]

    def lock(self, mode: str) -> tuple[bool, str]:
        """Changes the mode of the lock of a volume that is active: "ey" exclusive, "sy" shared.

        Returns:
            Whether it has that mode now, and what LVM said.
        """
        code, said = run(["lvchange", "--activate", mode, f"{self.group}/{self.name}"], self.environment)
        return code == 0, said

    def marked(self, shared: bool) -> None:
        """Notes whether the lock may be shared."""
        if shared:
            self.mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.mark.touch(mode=0o600)
        else:
            self.mark.unlink(missing_ok=True)

    def exclusive(self) -> tuple[bool, str]:
        """Makes a lock exclusive that is marked; one that is not is exclusive."""
        if not self.mark.exists():
            return True, ""
        done, said = self.lock("ey")
        if done:
            self.marked(shared=False)
        return done, said


def run(argv: Sequence[str], environment: Mapping[str, str], told: str = "") -> tuple[int, str]:
    """Runs a program; returns its return code and what it said on standard error, which is passed on if ``told``."""
    done = _ask(argv, environment)
    if isinstance(done, str):
        return GENERIC, done
    if told:
        # Pacemaker reads the reason of a failure from it.
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    return done.returncode, " ".join(done.stderr.split())


def _ask(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str] | str:
    """Runs a program; returns what came of it, or why it could not be run."""
    try:
        return subprocess.run(
            list(argv), env=dict(environment), capture_output=True, text=True, errors="replace", timeout=SECONDS,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def failed(text: str) -> int:
    """Tells Pacemaker and its log why; returns the code of a failure."""
    print(f"ocf-exit-reason:{text}", file=sys.stderr)
    return GENERIC


def activated(volume: Volume, mode: str) -> int:
    """Activates the volume, again where that may help; returns an OCF code.

    A lease of sanlock, which outlasts a host that was fenced, is waited for.
    """
    deadline = time.monotonic() + (LEASE if volume.manager == "sanlock" else RACE)
    while (code := volume.does("start", mode)) == GENERIC and time.monotonic() + PAUSE <= deadline:
        time.sleep(PAUSE)
    return code


def start(volume: Volume) -> int:
    """Activates the volume; its lock is exclusive then, unless it is to be shared."""
    code = activated(volume, volume.mode)
    if code != SUCCESS or volume.mode == "shared":
        return code
    done, said = volume.exclusive()
    return SUCCESS if done else failed(f"{volume.group}/{volume.name} is shared with another node: {said}")


def stop(volume: Volume) -> int:
    """Deactivates the volume."""
    code = volume.does("stop")
    if code == SUCCESS:
        volume.marked(shared=False)
    return code


def monitor(volume: Volume) -> int:
    """Says whether the volume is active, and makes a lock exclusive that a move has left shared."""
    code = volume.does("monitor")
    if code == SUCCESS and volume.environment.get("OCF_RESKEY_CRM_meta_interval", "0") != "0":
        # As long as the guest is on its way, another node has it too, and this is refused.
        volume.exclusive()
    return code


def migrate_to(volume: Volume) -> int:
    """Lets another node have the volume too."""
    volume.marked(shared=True)
    done, said = volume.lock("sy")
    return SUCCESS if done else failed(f"the lock of {volume.group}/{volume.name} does not become shared: {said}")


def migrate_from(volume: Volume) -> int:
    """Activates the volume here while another node still has it."""
    volume.marked(shared=True)
    return activated(volume, "shared")


ACTIONS = {
    "start": start, "stop": stop, "monitor": monitor, "status": monitor, "migrate_to": migrate_to,
    "migrate_from": migrate_from,
}  # fmt: skip


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Does one action; returns its code.

    Args:
        argv: the program and the action.
        environment: what Pacemaker gives.
    """
    action = argv[1] if len(argv) == 2 else ""
    if action == "meta-data":
        print(METADATA)
        return SUCCESS
    volume = Volume(environment)
    if action == "validate-all" or action in ACTIONS:
        if wrong := volume.wrong():
            failed(wrong)
            return CONFIGURED
        return ACTIONS[action](volume) if action in ACTIONS else SUCCESS
    return UNIMPLEMENTED


if __name__ == "__main__":
    sys.exit(main(sys.argv, os.environ))

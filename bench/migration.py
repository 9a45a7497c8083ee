"""Rows about migration: ``hypervisor.migrate`` against the same migration by bare QMP commands, both with TLS."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import guest as lab_guest
from lab.proc import LabError

from .rows import Row, median, spread

if TYPE_CHECKING:
    from lab.lab import Lab
    from lab.ui import Progress

TOTAL_GOAL, DOWNTIME_GOAL = 1.1, 1.2
TOTAL, DOWNTIME = (f"hypervisor.migrate / the same by QMP, {what}" for what in ("total", "downtime"))
GUEST = "bench-guest"
MEMORY_MIB, FILL_MIB, WORK_MIB = 2048, 1536, 64
# See lab/guest.py: a guest that has used its memory, and uses some of it while it moves.
APPEND = f"console=ttyS0 fill={FILL_MIB} work={WORK_MIB}"
ON_HOST = Path(__file__).with_name("on_migration.py")
SALT_PYTHON = "/opt/saltstack/salt/bin/python"
UNIT = "bench-agent"


def on_host(lab: Lab, host: str, kind: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run :mod:`bench.on_migration` on a host and return what it printed.

    Raises:
        LabError: it failed or printed no result.
    """
    argv = [SALT_PYTHON, "-c", ON_HOST.read_text(encoding="utf-8"), kind, json.dumps(request)]
    done = lab.run(host, argv, timeout=600)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise LabError(f"the migration on {host} printed no result: {done.stdout[-500:]}") from None


def options(lab: Lab, host: str) -> dict[str, Any]:
    """Return what the guest of bare QEMU has in common with libvirt's."""
    xml = lab.run(host, ["virsh", "dumpxml", GUEST]).stdout
    machine = xml.partition("machine='")[2].partition("'")[0]
    return {
        "machine": f"{machine},usb=off,dump-guest-core=off",
        "memory_mib": MEMORY_MIB,
        "kernel": f"{lab_guest.FOLDER}/{lab_guest.KERNEL}",
        "initrd": f"{lab_guest.FOLDER}/{lab_guest.INITRAMFS}",
        "append": APPEND,
    }


def prepare(lab: Lab, hosts: tuple[str, str]) -> dict[str, Any]:
    """Boot both guests on the first host, and start an agent on each; return the options of bare QEMU."""
    lab.push_guest()
    argv = [word.replace("console=ttyS0", APPEND) for word in lab_guest.install_argv(GUEST, MEMORY_MIB)]
    lab.run(hosts[0], argv)
    chosen = options(lab, hosts[0])
    for host in hosts:
        start = ["systemd-run", f"--unit={UNIT}", "--collect", SALT_PYTHON, "-c", ON_HOST.read_text(encoding="utf-8")]
        lab.run(host, [*start, "agent"])
    on_host(lab, hosts[0], "bare", {"boot": True, "options": chosen, "source": hosts[0]})
    lab.wait_console(hosts[0], GUEST, "guest second 5", timeout=300)
    wait = "until grep -q 'guest second 5' /run/bare-serial.log; do sleep 1; done"
    lab.run(hosts[0], ["timeout", "300", "sh", "-c", wait])
    return chosen


def clean(lab: Lab, hosts: tuple[str, str]) -> None:
    """Remove both guests and the agents."""
    for host in hosts:
        lab.run(host, ["systemctl", "stop", UNIT], check=False)
        for verb in ("destroy", "undefine"):
            lab.run(host, ["virsh", verb, GUEST], check=False)


def halt(lab: Lab, host: str, kind: str, *, halted: bool) -> None:
    """Pause or resume the guest of bare QEMU (``bare``) or of libvirt (``salt``)."""
    if kind == "bare":
        on_host(lab, host, "bare", {"only": "stop" if halted else "cont", "source": host})
    else:
        lab.run(host, ["virsh", "suspend" if halted else "resume", GUEST])


@contextlib.contextmanager
def resting(lab: Lab, host: str, kind: str) -> Iterator[None]:
    """Pause the guest that does not move: it would take processors from the one that does."""
    halt(lab, host, kind, halted=True)
    yield
    halt(lab, host, kind, halted=False)


def ratio_row(name: str, unit: str, goal: float, pairs: list[tuple[float, float]], more: str) -> Row:
    """Return the row of one figure, from pairs of (module, bare QMP) that were measured one after the other."""
    ours, bare = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Row(
        name=name,
        value=median([one / other for one, other in pairs]),
        unit="times",
        goal=goal,
        better="lower",
        how=f"a guest of {MEMORY_MIB} MiB, {FILL_MIB} of them filled and {WORK_MIB} rewritten all the time, in turn "
        f"there and back while the other one rests, TLS for both; "
        f"hypervisor.migrate: {spread(ours, unit)}; QMP: {spread(bare, unit)}{more}",
    )


def rows(lab: Lab, hosts: tuple[str, str], repeat: int, progress: Progress) -> list[Row]:
    """Measure migrations, or say in both rows why they could not be measured; see :func:`measured`."""
    try:
        return measured(lab, hosts, repeat, progress)
    except LabError as error:
        # The other figures of a long run are not lost with this one.
        how = f"not measured: {error}"
        return [
            Row(name, None, "times", goal, "lower", how)
            for name, goal in ((TOTAL, TOTAL_GOAL), (DOWNTIME, DOWNTIME_GOAL))
        ]


def measured(lab: Lab, hosts: tuple[str, str], repeat: int, progress: Progress) -> list[Row]:
    """Measure migrations by ``hypervisor.migrate`` and by bare QMP commands, in turn.

    Args:
        lab: a lab whose hosts have had their highstate.
        hosts: two hypervisors.
        repeat: how often each guest moves.
        progress: where steps are shown.

    Returns:
        the row of the total time and the row of the downtime.

    Raises:
        LabError: a migration failed.
    """
    try:
        with progress.step("boot two guests for migrations"):
            chosen = prepare(lab, hosts)
        ours, bare = [], []
        with progress.step(f"migrate both, {repeat} times each"):
            for number in range(repeat):
                source, target = hosts if number % 2 == 0 else hosts[::-1]
                request = {"options": chosen, "source": source, "target": target}
                # Neither of the two goes first every time.
                order = ("salt", "bare") if number % 4 < 2 else ("bare", "salt")
                for kind, other, at in zip(order, order[::-1], (source, target), strict=True):
                    with resting(lab, at, other):
                        if kind == "salt":
                            ours.append(on_host(lab, source, "salt", {"guest": GUEST, "target": target}))
                        else:
                            bare.append(on_host(lab, source, "bare", request))
    finally:
        clean(lab, hosts)
    checks = spread([one["check_seconds"] for one in ours])
    starts = spread([one["start_seconds"] for one in bare])
    sent = ", ".join(f"{median([one['bytes'] for one in rows]) / 1e6:.0f} MB" for rows in (ours, bare))

    def pairs(key: str) -> list[tuple[float, float]]:
        return [(one[key], other[key]) for one, other in zip(ours, bare, strict=True)]

    return [
        ratio_row(
            TOTAL, "s", TOTAL_GOAL, pairs("seconds"),
            f"; of these the checks: {checks}, and QMP's start of the target's QEMU: {starts}; sent: {sent}",
        ),
        ratio_row(DOWNTIME, "ms", DOWNTIME_GOAL, pairs("downtime_ms"), ""),
    ]  # fmt: skip

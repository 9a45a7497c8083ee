"""The promise: a green highstate is durable. A host loses its power one second after the success, and again.

The power cut ends QEMU's process: what the host's kernel had not written to its disk is gone. Each time the pillar has
other values, so that files are written anew, and the host goes on from the same frozen moment.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frozen import FrozenHost

CUT_AFTER = 1.0  # seconds from the success to the power cut
FOLDERS = ("/boot", "/etc", "/var/lib/libvirt")
# With these gone, keys and certificates are made anew.
LEAVES = ("/etc/pki/libvirt/servercert.pem", "/etc/pki/qemu/server-cert.pem")
# Written by the system itself while it starts.
OF_THE_SYSTEM = ("/etc/mtab", "/etc/adjtime", "/boot/grub/grubenv", "/var/lib/libvirt/qemu/")


def pillar(host: str, seed: int, number: int) -> dict[str, Any]:
    """Return the pillar of a round; number 0 is the one before the first.

    Args:
        host: the minion's id.
        seed: of the campaign.
        number: of the round.
    """
    # The seed makes a campaign repeatable; nothing here is a secret.
    draw = random.Random(f"{seed}/{number}")  # noqa: S311
    swappiness, pages, files, clients = draw.sample(range(8, 48), 4)
    # These two take long under emulation, so that not every round has them.
    arguments = {"nohz": f"r{number}"} if number % 3 == 0 else {}
    key_type = "rsa" if number % 5 == 0 else "ec"
    return {
        "roles": ["hypervisor"],
        "kvm": {
            "hugepages": {"2M": pages},
            "sysctl": {"vm.swappiness": swappiness, "vm.zone_reclaim_mode": draw.choice([0, 1])},
            "qemu_conf": {"max_files": 32768 + files, "max_processes": 4096 + files},
            "kernel": {"args": {"transparent_hugepage": "madvise", **arguments}},
        },
        "libvirt": {
            "tls": {"allowed_hosts": [host, f"peer-{number}"]},
            "daemon_conf": {"max_clients": 5000 + clients},
            "pki": {"ca_server": "", "key_type": key_type},
        },
    }


def cut(host: FrozenHost, seed: int, number: int, *, flush: bool, whole: bool) -> dict[str, Any]:
    """Do one round.

    Args:
        host: the host, prepared.
        seed: of the campaign.
        number: of the round, from 1.
        flush: whether the states that write everything to disk run; without them the check must be able to fail.
        whole: wait until the host has booted to its end.

    Returns:
        The run for the record: `lost` maps files to what became of them.

    Raises:
        LabError: the host did not do what was asked; nothing is known then.
    """
    host.thaw()
    values = pillar(host.name, seed, number)
    host.give(values)
    done = host.apply(FOLDERS, LEAVES, [] if flush else host.flushes, CUT_AFTER)
    files = {path: digest for path, digest in done["files"].items() if not path.startswith(OF_THE_SYSTEM)}
    lost = host.boot(files, whole=whole)
    # The boot loader replays no journal: it must find the new menu in its place.
    for name, value in values["kvm"]["kernel"]["args"].items():
        if f"{name}={value}" not in host.command_line():
            lost["/proc/cmdline"] = "old"
    host.machine.kill()
    return {
        "file_system": host.name, "number": number, "flush": flush, "files": len(files), "lost": lost,
        "changed": len(done["changed"]), "highstate": done["seconds"], "flushed_in": done["flushed_in"],
        "cut": done["cut"], **{name: round(seconds, 1) for name, seconds in host.seconds.items()},
    }  # fmt: skip


def told(run: dict[str, Any]) -> str:
    """Say in a line what a run was."""
    lost = run["lost"]
    kinds = ", ".join(f"{list(lost.values()).count(kind)} {kind}" for kind in sorted(set(lost.values())))
    verdict = f"{kinds}: {', '.join(sorted(lost)[:3])}" if lost else "all there"
    return (
        f"{run['file_system']} {run['number']}: {run['files']} files of {run['changed']} states, "
        f"cut {run['cut']:.1f} s after success: {verdict}"
    )


def verdict(runs: list[dict[str, Any]], *, flush: bool) -> tuple[bool, str]:
    """Judge the runs on one file system.

    Args:
        runs: what was recorded.
        flush: whether they were to keep everything; otherwise they show that the check can fail.

    Returns:
        Whether it is as it must be, and a line for a person.
    """
    # A highstate that has written nothing has nothing to lose.
    bad = [run for run in runs if run["lost"] or not run["files"]]
    empty = sum(list(run["lost"].values()).count("empty") for run in runs)
    files = sum(run["files"] for run in runs)
    lost = sum(len(run["lost"]) for run in runs)
    text = f"{len(runs)} power cuts, {files} files: {lost} lost ({empty} empty) in {len(bad)} cuts"
    if not flush:
        return bool(bad), f"without the flush, {text}"
    return bool(runs) and not bad, text

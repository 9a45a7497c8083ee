"""Volume groups for storage pools: found, and made only on devices that hold nothing or may be overwritten."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

# As ``libvirt_tools.run``: takes an argument list and returns the output.
Run = Callable[..., str]

_TIMEOUT = 60  # seconds
# Old data without a signature that anybody knows, such as an encrypted disk, shows in the first MiB.
_SAMPLE = 1 << 20


def volumes(run: Run) -> dict[str, str]:
    """Finds physical volumes.

    Args:
        run: ``libvirt_tools.run``.

    Returns:
        The volume group of each device, by the device's real path; empty text where it is in none.

    Raises:
        CommandExecutionError: LVM is not installed or does not answer.
    """
    # Also groups of another host and shared ones: what is in use there must not look empty here.
    argv = ["pvs", "--foreign", "--shared", "--noheadings", "--separator", "|", "--options", "pv_name,vg_name"]
    found = {}
    for line in run(argv, timeout=_TIMEOUT).splitlines():
        device, _, group = line.strip().partition("|")
        if device:
            found[os.path.realpath(device)] = group.strip()
    return found


def refusals(run: Run, devices: Sequence[str], known: dict[str, str], overwrite: bool) -> list[str]:
    """Finds what speaks against making a volume group.

    Args:
        run: ``libvirt_tools.run``.
        devices: paths of the devices.
        known: what :func:`volumes` returned.
        overwrite: whether what is on them may be lost. What is in use is refused all the same.

    Returns:
        One line for each device that cannot be taken, with what is on it.
    """
    found = []
    for device in devices:
        why = _unusable(device, known)
        if not why and not overwrite:
            data = _content(run, device)
            why = f"holds {data}; it is overwritten only with allow_format: true" if data else ""
        if why:
            found.append(f"{device} {why}")
    return found


def _unusable(device: str, known: dict[str, str]) -> str:
    """Says why a device cannot be taken whatever is on it; an empty text if it can."""
    path = os.path.realpath(device)
    if known.get(path):
        return f"belongs to the volume group {known[path]}"
    try:
        if not stat.S_ISBLK(Path(path).stat().st_mode):
            return "is not a block device"
        # The kernel opens a device for one holder only: not while it or a partition of it is mounted,
        # swapped to, or part of a RAID or of a mapping.
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return "is in use" if error.errno == errno.EBUSY else f"cannot be opened: {error.strerror}"
    return ""


def _content(run: Run, device: str) -> str:
    """Says what is on a device; an empty text if nothing is."""
    text = run(["wipefs", "--no-act", "--json", "--", device], timeout=_TIMEOUT)
    signatures: list[dict[str, Any]] = json.loads(text)["signatures"] if text.strip() else []
    if signatures:
        words = [f'{one["type"]} "{one["label"]}"' if one.get("label") else one["type"] for one in signatures]
        return ", ".join(dict.fromkeys(words))
    with Path(device).open("rb") as handle:
        return "data of an unknown kind" if any(handle.read(_SAMPLE)) else ""


def create(run: Run, group: str, devices: Sequence[str], overwrite: bool) -> None:
    """Makes a volume group.

    Args:
        run: ``libvirt_tools.run``.
        group: its name.
        devices: what :func:`refusals` found nothing against, just before.
        overwrite: whether signatures may be wiped.

    Raises:
        CommandExecutionError: LVM refuses, with its words.
    """
    if not devices:
        raise CommandExecutionError(f"there is no volume group {group}")
    if overwrite:
        for device in devices:
            run(["wipefs", "--all", "--", device], timeout=_TIMEOUT)
    # Nothing answers questions here: what LVM would ask about it refuses.
    run(["vgcreate", "--", group, *devices], timeout=_TIMEOUT)

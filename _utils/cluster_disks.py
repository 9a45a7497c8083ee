"""What is on a disk, so that nothing is written over that anybody could miss; and what sbd and LVM say of theirs."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]

HEAD = 1 << 20  # bytes; nothing that anybody keeps on a disk leaves them empty
CONSENT = "cluster:storage:allow_format"
# What sbd says of its timeouts, by the name that pillar gives them.
_TIMEOUTS = {"Timeout (watchdog)": "watchdog_timeout", "Timeout (msgwait)": "msgwait"}
# What a process of sbd calls itself that watches a disk.
_WATCHER = re.compile(r"sbd: watcher: (/\S+) - slot: \d+")
# What a lockspace says of itself that has been joined, and was neither stopped nor lost with its disks.
_JOINED = {"create_done": "1", "thread_stop": "0", "kill_vg": "0"}
_LVM = 120  # seconds; LVM waits for locks, which wait for other nodes
# Where a system has this list, LVM sees no other disks.
_DISKS_OF_LVM = "/etc/lvm/devices/system.devices"


class Group(NamedTuple):
    """A volume group.

    Attributes:
        lock_type: "dlm", "sanlock", or empty for one that is not shared.
        lock_args: what the lock manager remembers, with the cluster's name in it.
        disks: the real paths of its disks.
        free_mib: what is not used.
    """

    lock_type: str
    lock_args: str
    disks: frozenset[str]
    free_mib: int


# ---- what is on a disk ----


def missing(devices: Iterable[str]) -> list[str]:
    """Returns the disks that this host does not have."""
    return [one for one in devices if not _is_block(one)]


def _is_block(device: str) -> bool:
    """Says whether a path leads to a disk."""
    try:
        return stat.S_ISBLK(os.stat(device).st_mode)  # noqa: PTH116 - one call says whether it is there, and what
    except OSError:
        return False


def found_on(utils: Utils, device: str) -> str:
    """Returns what is on a disk, such as "ext4" or "a partition table (dos)"; empty for one that is empty."""
    text = utils["cluster_tools.run"](["wipefs", "--json", "--no-act", device])
    rows = (json.loads(text) if text.strip() else {}).get("signatures") or []
    kinds = sorted({str(row.get("type")) for row in rows})
    if kinds:
        return f"the signature{'s' * (len(kinds) > 1)} {', '.join(kinds)}"
    # Where there is no sbd its messages are data that nobody knows.
    if utils["cluster_tools.installed"]("sbd") and sbd_header(utils, device):
        return "the messages of sbd"
    with Path(device).open("rb") as disk:
        return "data without a signature that is known" if disk.read(HEAD).strip(b"\0") else ""


def kept(utils: Utils, device: str, use: str, allow_format: bool, *, free: bool = False) -> str:
    """Returns why a disk is not written over; empty for one that is empty, or that may be lost and nobody uses here.

    Args:
        utils: the siblings' functions.
        device: the disk.
        use: what would write over it.
        allow_format: the consent of pillar.
        free: whether nobody may use an empty one either, such as a guest that has not written to it yet.
    """
    content = found_on(utils, device)
    if content and not allow_format:
        return refusal(device, content, use)
    user = utils["disk_use.user_of"](device) if content or free else ""
    if user:
        return (
            f"Nothing has changed: {device} {f'has {content}' if content else 'is empty'}, and {user} uses it on this "
            f"host. {CONSENT} does not allow {use} over that; take it out of use, or name another disk"
        )
    return ""


def refusal(device: str, content: str, use: str) -> str:
    """Returns why a disk is not written over, and what allows it."""
    return (
        f"Nothing has changed: {device} has {content}, and {use} would destroy it. Name an empty disk, or allow it "
        f"with {CONSENT}: true"
    )


def emptied(utils: Utils, device: str) -> None:
    """Takes off a disk what says what it is."""
    utils["cluster_tools.run"](["wipefs", "--all", "--force", device])
    with Path(device).open("r+b") as disk:
        disk.write(bytes(HEAD))
        disk.flush()
        os.fsync(disk.fileno())


# ---- sbd ----


def sbd_header(utils: Utils, device: str) -> dict[str, int]:
    """Returns the timeouts that stand on a disk of sbd; ``{}`` where it is none."""
    return parse_header(utils["cluster_tools.run"](["sbd", "-d", device, "dump"], ok=range(256)))


def parse_header(text: str) -> dict[str, int]:
    """Returns the timeouts from what ``sbd dump`` prints."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        key = _TIMEOUTS.get(name.strip())
        if key and value.strip().isdigit():
            found[key] = int(value)
    return found


def make_header(utils: Utils, device: str, watchdog_timeout: int, msgwait: int) -> None:
    """Makes a disk one of sbd; all messages on it are lost."""
    # The four are: watchdog, allocation (unused since long), loop, and message wait.
    times = ["-1", str(watchdog_timeout), "-4", str(msgwait)]
    utils["cluster_tools.run"](["sbd", "-d", device, *times, "create"], timeout=120)


def watched(processes: Path = Path("/proc")) -> list[str]:
    """Returns the disks that the running sbd watches, which are those that it was started with."""
    found = set()
    for process in processes.glob("[0-9]*"):
        try:
            # Any user can give a process such a title.
            own = process.stat().st_uid == os.geteuid()
            title = (process / "cmdline").read_bytes().decode("utf-8", "replace") if own else ""
        except OSError:
            # It has ended meanwhile.
            continue
        match = _WATCHER.match(title)
        if match:
            found.add(match[1])
    return sorted(found)


def watchdog_seconds(watchdog: str, folder: Path = Path("/sys/class/watchdog")) -> int:
    """Returns after how many seconds a watchdog resets this host; 0 where the kernel does not say."""
    number = watchdog.removeprefix("/dev/watchdog") or "0"
    try:
        return int((folder / f"watchdog{number}" / "timeout").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


# ---- LVM ----


def group(utils: Utils, name: str) -> Group | None:
    """Returns a volume group; None where there is none of that name."""
    fields = "vg_name,vg_lock_type,vg_lock_args,pv_name,vg_free"
    text = utils["cluster_tools.run"](_report("vgs", fields), timeout=_LVM)
    return parse_group(text, name)


def _report(program: str, fields: str) -> list[str]:
    """Returns the command for a report of LVM's, of all disks, also of those that are not on its list yet."""
    every = ["--devicesfile", ""] if Path(_DISKS_OF_LVM).exists() else []
    return [
        program, *every, "--readonly", "--reportformat", "json", "--units", "m", "--nosuffix", "--options", fields
    ]  # fmt: skip


def seen_by_lvm(utils: Utils, devices: Iterable[str]) -> None:
    """Puts disks on LVM's list, where there is one."""
    if Path(_DISKS_OF_LVM).exists():
        for device in devices:
            utils["cluster_tools.run"](["lvmdevices", "--yes", "--adddev", device], timeout=_LVM)


def parse_group(text: str, name: str) -> Group | None:
    """Returns a volume group from a report of vgs."""
    rows = [row for report in json.loads(text)["report"] for row in report["vg"] if row["vg_name"] == name]
    if not rows:
        return None
    first = rows[0]
    disks = frozenset(os.path.realpath(row["pv_name"]) for row in rows)
    return Group(first["vg_lock_type"].strip(), first["vg_lock_args"].strip(), disks, int(float(first["vg_free"])))


def volumes(utils: Utils, name: str) -> dict[str, int]:
    """Returns the volumes of a group, each with its size in MiB."""
    text = utils["cluster_tools.run"](_report("lvs", "vg_name,lv_name,lv_size"), timeout=_LVM)
    rows = [row for report in json.loads(text)["report"] for row in report["lv"] if row["vg_name"] == name]
    return {row["lv_name"]: int(float(row["lv_size"])) for row in rows}


def lockspaces(utils: Utils) -> list[str] | None:
    """Returns the groups whose locks this host has; None where the daemon of locks does not answer."""
    try:
        # Without --dump it does not say whether a group's locks are there yet, or not any more.
        text = utils["cluster_tools.run"](["lvmlockctl", "--info", "--dump"])
    except CommandExecutionError:
        return None
    return parse_lockspaces(text)


def parse_lockspaces(text: str) -> list[str]:
    """Returns the groups from what ``lvmlockctl --info --dump`` prints (lvmlockd-core.c, print_lockspace)."""
    rows = [dict(word.partition("=")[::2] for word in line.split()) for line in text.splitlines()]
    # That of the locks of all groups has no group's name.
    spaces = [row for row in rows if row.get("info") == "ls" and row.get("vg_name")]
    return [row["vg_name"] for row in spaces if all(row.get(key) == value for key, value in _JOINED.items())]

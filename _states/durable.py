"""A highstate ends durable: what it wrote is on disk when it reports success.

Salt replaces files by a rename without asking the kernel to write them out, so a power cut seconds
after a green run could leave them empty. One state at the end of a formula flushes each file system
that the formula writes to, and only when something changed.

A boot loader reads ``/boot`` without replaying a journal. What is only in the journal is safe for the
system and invisible to the loader: after a power cut it would start with the menu of before, or with
what has since been written over it. So after a change of packages or kernel arguments the file system
of ``/boot`` is frozen for a moment, which puts everything in its place.
"""

import errno
import fcntl
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_TABLE = Path("/proc/self/mountinfo")
_TIMEOUT = 300  # seconds; a slow disk with much dirty memory may take minutes
_BOOT = "/boot"
# States that write what a boot loader reads.
_BOOT_STATES = ("kernel_cmdline_|-", "pkg_|-")
# File systems whose journals boot loaders do not replay, and that can be frozen.
_JOURNALS = frozenset({"ext3", "ext4", "xfs"})
# From linux/fs.h: _IOWR('X', 119, int) and the next.
_FREEZE, _THAW = 0xC0045877, 0xC0045878


def pending(running: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether something changed since the last flush of this run.

    Takes the results of the run so far, by Salt's state tag. Returns False when the newest
    change is older than the newest flush.
    """
    flushed = max(
        (
            result.get("__run_num__", 0)
            for tag, result in running.items()
            if tag.startswith("durable_|-")
        ),
        default=-1,
    )
    return any(
        result.get("changes") and result.get("__run_num__", 0) > flushed
        for result in running.values()
    )


def boot_changed(running: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether this run changed what a boot loader may read. Takes the results of the run so far."""
    return any(
        result.get("changes") for tag, result in running.items() if tag.startswith(_BOOT_STATES)
    )


def file_system(device: int, mounts: str) -> str:
    """Return the type of the file system with a device number, by mountinfo's text; "" if unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number]:
            return after.split()[0]
    return ""


def settle(path: str) -> bool:
    """Bring everything on a path's file system from the journal to its place.

    Freezing does that; it is thawed in the same breath, and who writes there waits that long. Returns
    whether there was anything to do: False without a journal, in a container, or where somebody else
    has it frozen, such as a backup, which has then done the same.

    Raises:
        OSError: it could not be frozen, or (which would be grave) not thawed.
    """
    if file_system(Path(path).stat().st_dev, _TABLE.read_text(encoding="utf-8", errors="replace")) not in _JOURNALS:
        return False
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    # A signal's handler between the two calls might need that disk; one of another thread may come all the same.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    frozen = True
    try:
        # Nothing between these two: what it needed from that disk would never come.
        fcntl.ioctl(folder, _FREEZE, 0)
    except OSError as error:
        frozen = False
        if error.errno in {errno.EBUSY, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS}:
            return False
        raise
    finally:
        if frozen:
            fcntl.ioctl(folder, _THAW, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(folder)
    return True


def one_per_file_system(paths: Iterable[str]) -> list[str]:
    """Return the existing paths, without those on the same file system as an earlier one."""
    seen: dict[int, str] = {}
    for path in filter(os.path.exists, paths):
        seen.setdefault(Path(path).stat().st_dev, path)
    return list(seen.values())


def synced(name: str, paths: list[str] | None = None) -> dict[str, Any]:
    """Flush the file systems below some paths if this run changed anything; to be ordered last.

    Args:
        name: Any label.
        paths: Folders whose file systems are written out (default: ``/etc``, ``/usr`` and
            ``/var``).

    Returns a state result without changes: to flush what others wrote is no change of its own.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}}
    running = globals().get("__running__") or {}
    if not pending(running):
        return ret | {"comment": "Nothing changed, so nothing had to be flushed."}
    # What another host serves is its to keep; touching it would hang while that host is dead.
    table = _TABLE.read_text(encoding="utf-8", errors="replace")
    remote = __utils__["mount_table.remote"]
    own = [path for path in paths or ["/etc", "/usr", "/var"] if not remote(table, path)]
    targets = one_per_file_system(own)
    if __opts__["test"]:
        return ret | {"comment": f"Would flush the file systems of {', '.join(targets)}."}
    if salt.utils.path.which("sync"):
        done = __salt__["cmd.run_all"](
            ["sync", "-f", *targets], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
        )
        if done["retcode"] != 0:
            return ret | {"result": False, "comment": f"The flush failed: {done['stderr']}"}
        comment = f"Flushed the file systems of {', '.join(targets)}."
    else:
        os.sync()
        comment = "Flushed every file system."
    if _BOOT in (paths or ()) and Path(_BOOT).is_dir() and boot_changed(running):
        try:
            if settle(_BOOT):
                comment += " The boot loader can read what is new."
        except OSError as error:
            return ret | {"result": False, "comment": f"{comment} {_BOOT} could not be settled: {error}"}
    return ret | {"comment": comment}

"""A highstate ends durable: what it wrote is on disk when it reports success.

Salt replaces files by a rename without asking the kernel to write them out, so a power cut seconds
after a green run could leave them empty. One state at the end of a formula flushes each file system
that the formula writes to, and only when something changed.
"""

import os
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
    if not pending(globals().get("__running__") or {}):
        return ret | {"comment": "Nothing changed, so nothing had to be flushed."}
    # What another host serves is its to keep; touching it would hang while that host is dead.
    table = _TABLE.read_text(encoding="utf-8", errors="replace")
    remote = __utils__["mount_table.remote"]
    own = [path for path in paths or ["/etc", "/usr", "/var"] if not remote(table, path)]
    targets = one_per_file_system(own)
    if __opts__["test"]:
        return ret | {"comment": f"Would flush the file systems of {', '.join(targets)}."}
    if not salt.utils.path.which("sync"):
        os.sync()
        return ret | {"comment": "Flushed every file system."}
    done = __salt__["cmd.run_all"](
        ["sync", "-f", *targets], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    if done["retcode"] != 0:
        return ret | {"result": False, "comment": f"The flush failed: {done['stderr']}"}
    return ret | {"comment": f"Flushed the file systems of {', '.join(targets)}."}

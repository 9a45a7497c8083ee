"""Waits until no other process holds the locks of Debian's package manager.

An unattended upgrade or an administrator's apt holds them for minutes. Salt's own module waits on one
of apt's messages only, up to half an hour and without a word, and fails at once on the others. So the
locks themselves are asked, before packages are installed, and only if some are missing. The kernel
names the holder of a lock without anyone taking it. dnf and zypper need no such state: Salt and they
wait by themselves.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

# apt takes the first before it calls dpkg, dpkg both; apt-get update takes the third, a download the fourth.
_LOCKS = (
    Path("/var/lib/dpkg/lock-frontend"),
    Path("/var/lib/dpkg/lock"),
    Path("/var/lib/apt/lists/lock"),
    Path("/var/cache/apt/archives/lock"),
)
_PROCESSES = Path("/proc")
_PAUSE = 0.5  # seconds between two looks
# Between two steps of one apt run the locks are free for a moment, so they must stay so.
_QUIET = 1.0  # seconds
# struct flock of 64-bit Linux: type, whence, start, length, process.
_FLOCK = "hhqqi0q"


class Holder(NamedTuple):
    """A process that holds a lock: its id, 0 if it is outside of this container, and its name."""

    lock: str
    pid: int
    name: str

    def __str__(self) -> str:
        """Says who holds what."""
        who = f"process {self.pid} ({self.name})" if self.pid > 0 else "a process outside this container"
        return f"{who} holds {self.lock}"


def holder_of(path: Path) -> Holder | None:
    """Returns who holds the lock of a file; None if nobody does or there is no such file.

    Raises:
        OSError: the kernel can't be asked.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        raise
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    if answer[0] == fcntl.F_UNLCK:
        return None
    return Holder(str(path), max(answer[4], 0), _name(answer[4]))


def _name(pid: int) -> str:
    """Returns a process's name; its arguments may be secret and stay out."""
    try:
        return (_PROCESSES / str(pid) / "comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "gone by now"


def holder() -> Holder | None:
    """Returns the first process that holds any of the package manager's locks."""
    return next((found for path in _LOCKS if (found := holder_of(path))), None)


def wait(
    limit: float,
    find: Callable[[], Holder | None] = holder,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Holder | None:
    """Waits until the locks are free and stay so for a moment.

    Args:
        limit: seconds after which waiting ends.
        find: says who holds a lock.
        clock: tells the time in seconds.
        sleep: pauses for some seconds.

    Returns:
        The last holder when the limit was reached, else None.
    """
    deadline = clock() + limit
    last = find()
    free_since: float | None = None if last else clock()
    while free_since is None or clock() - free_since < _QUIET:
        if clock() >= deadline:
            # Free at the very end is free enough.
            return last if free_since is None else None
        sleep(min(_PAUSE, max(deadline - clock(), 0.01)))
        found = find()
        last = found or last
        free_since = None if found else (free_since or clock())
    return None


def missing(packages: Iterable[str], installed: Iterable[str]) -> list[str]:
    """Returns the packages that are not installed, sorted."""
    return sorted(set(packages) - set(installed))


def free(name: str, packages: list[str] | None = None, timeout: int = 300) -> dict[str, Any]:
    """Makes sure that packages can be installed now.

    Args:
        name: any label.
        packages: names of the packages that are about to be installed; if all are there, nothing is waited for.
        timeout: seconds after which the state fails, naming the holder.

    Returns:
        A state result, never with changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = holder()
    except OSError as error:
        return ret | {"result": False, "comment": f"The locks of apt and dpkg cannot be looked at: {error}."}
    if found is None:
        return ret | {"comment": "No other process installs packages."}
    # Salt keeps the list, so that the state that installs does not ask for it again.
    wanted = missing(packages or [], __salt__["pkg.list_pkgs"]())
    if not wanted:
        return ret | {"comment": f"No package is missing, so it does not matter that {found}."}
    if __opts__["test"]:
        return ret | {"comment": f"Would wait, because {found}; at most {timeout} s."}
    begun = time.monotonic()
    if last := wait(timeout):
        return ret | {
            "result": False,
            "comment": (
                f"Not installed: {', '.join(wanted)}, because after {timeout} s {last} still. "
                "Let it finish or end it, then run the highstate again; kvm:packages:lock_timeout is the limit."
            ),
        }
    return ret | {"comment": f"Waited {time.monotonic() - begun:.0f} s, because {found}; it is free now."}

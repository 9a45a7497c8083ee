"""Keeps an engine's work going when one of its processes is killed.

Salt's process manager looks only every 10 s whether an engine has to be started again (``ProcessManager.run``). So the
work is done in a process beside the engine's own: when the work is killed, the engine begins it again at once; when
the engine is killed, the work goes on until the engine that Salt starts in its place takes over. A lock has one at
work at any time, and neither outlives Salt.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import struct
import threading
import time

try:
    import setproctitle
except ImportError:  # Salt has it nearly everywhere, and does without it too
    setproctitle = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# ``struct flock`` of Linux on 64 bits, see fcntl(2): type, whence, start, length, process.
_FLOCK = "hhqqi0q"
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0)  # seconds before work that keeps ending is begun again
_LASTED = 30.0  # seconds, after which it did not end at once
_LOOK = 0.05  # seconds between two looks whether the lock is free
_ELSEWHERE = 1.0  # the same while others are at work


def begin(lock: str, title: str) -> bool:
    """Returns in a process beside the engine's own, which is to do the work, and in another one when that has ended.

    It is not handed the work: what a utility calls has the utility's ``__utils__``, which are none.

    Args:
        lock: path of a file that belongs to this work alone; its folder is there.
        title: what the process is called in the list of processes.

    Returns:
        True where the work is to be done: in the engine's own process on a kernel before 5.3, which cannot wait for a
        process that is no child. False in the engine's own process when Salt has ended.
    """
    try:
        salt = os.pidfd_open(os.getppid())
    except (AttributeError, OSError) as error:
        log.info("%s is looked after by Salt alone: %s", title, error)
        return True
    failures = 0
    while True:
        began = time.monotonic()
        process = os.fork()
        if process == 0:
            _at_work(lock, title, salt)
            return True
        if not _ended(process, salt):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False
        failures = 0 if time.monotonic() - began > _LASTED else failures
        log.warning("the work of %s has ended, and is begun again", title)
        time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
        failures += 1
        # Who took over may be another Salt's engine that replaces this one: they would end each other for ever.
        while _holder(lock):
            if _gone(salt, _ELSEWHERE):
                return False


def _gone(process: int, seconds: float) -> bool:
    """Waits some time for the end of a process, given by its descriptor, and says whether it has ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _ended(process: int, salt: int) -> bool:
    """Waits until a child of this process or Salt ends, and says whether it was the child."""
    child = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(child, select.POLLIN)
        poll.register(salt, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
    finally:
        os.close(child)
    if salt in ready:
        return False
    os.waitpid(process, 0)
    return True


def _at_work(lock: str, title: str, salt: int) -> None:
    """Makes a process the one that is at work, and has it end with Salt."""
    # Salt's handlers are those of the process that this one comes from.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if setproctitle is not None:
        setproctitle.setproctitle(title)
    threading.Thread(target=_end_with, args=(salt,), daemon=True).start()
    _take_over(lock)


def _end_with(salt: int) -> None:
    """Ends this process with Salt."""
    select.select([salt], [], [])
    os._exit(0)


def _take_over(lock: str) -> None:
    """Ends who is at work, and has the lock from then on until this process ends: its descriptor stays open."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            # Not flock: of this kind the kernel says who has it, and no process that begins here inherits it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _end(descriptor)
            time.sleep(_LOOK)
        else:
            return


def _end(descriptor: int) -> None:
    """Ends the process that has the lock, and certainly no other."""
    number = _locked_by(descriptor)
    if not number:
        return
    try:
        process = os.pidfd_open(number)
    except ProcessLookupError:
        return
    try:
        # It has it still, so the descriptor is of this process and of none that has got its number since.
        if _locked_by(descriptor) == number:
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _holder(lock: str) -> int:
    """Returns which process is at work; 0 for none."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return _locked_by(descriptor)
    finally:
        os.close(descriptor)


def _locked_by(descriptor: int) -> int:
    """Returns which other process has the lock; 0 for none."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, number = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(number)

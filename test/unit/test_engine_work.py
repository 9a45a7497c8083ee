"""The work of an engine goes on, whichever of its processes is killed, and ends with Salt."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from _utils import engine_work

ROOT = Path(__file__).parents[2]
# Stands for Salt: starts engines when it is told so, and says which process has begun to work.
SALT = """
import logging, os, sys, time
from _utils import engine_work
logging.basicConfig()
lock = sys.argv[1]
for _ in sys.stdin:
    if os.fork() == 0:
        if engine_work.begin(lock, "title"):
            print("work", os.getpid(), os.getppid(), flush=True)
            if len(sys.argv) == 2:
                time.sleep(600)
        os._exit(0)
"""


class Salt:
    """A process that starts engines."""

    def __init__(self, lock: Path, *words: str) -> None:
        argv = [sys.executable, "-c", SALT, str(lock), *words]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def engine(self) -> tuple[int, int]:
        """Start one; return the processes of its work and of itself."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        return self.begun()

    def begun(self) -> tuple[int, int]:
        """Wait until work begins."""
        assert self.process.stdout is not None
        _, work, engine = self.process.stdout.readline().split()
        return int(work), int(engine)


def gone(process: int) -> bool:
    """Wait for the end of a process, which may be nobody's child; whether it came."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(name="start")
def starts(tmp_path):
    running: list[Salt] = []

    def start(*words: str) -> Salt:
        running.append(Salt(tmp_path / "lock", *words))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.communicate()


def test_work_that_is_killed_is_begun_again(start):
    salt = start()
    work, engine = salt.engine()
    for _ in range(2):
        os.kill(work, signal.SIGKILL)
        again, same = salt.begun()
        assert (same, again != work) == (engine, True)
        work = again


def test_work_outlives_its_engine_until_the_next_one_takes_over(start):
    salt = start()
    work, engine = salt.engine()
    os.kill(engine, signal.SIGKILL)
    assert gone(engine)
    time.sleep(0.3)
    os.kill(work, 0)
    again, other = salt.engine()
    assert len({work, engine, again, other}) == 4
    assert gone(work)
    os.kill(again, 0)


def test_on_an_old_kernel_the_engine_works_itself(monkeypatch, tmp_path):
    def refused(process):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused)
    own = os.getpid()
    assert engine_work.begin(str(tmp_path / "lock"), "title") is True
    assert (os.getpid(), list(tmp_path.iterdir())) == (own, [])


def test_neither_outlives_salt(start):
    salt = start()
    work, engine = salt.engine()
    salt.process.kill()
    assert (gone(work), gone(engine)) == (True, True)


def test_work_without_its_engine_does_not_outlive_salt(start):
    salt = start()
    work, engine = salt.engine()
    os.kill(engine, signal.SIGKILL)
    assert gone(engine)
    salt.process.kill()
    assert gone(work)


def test_of_two_engines_the_later_works_and_the_other_waits_for_its_end(start):
    former, latter = start(), start()
    work, _ = former.engine()
    other, _ = latter.engine()
    assert gone(work)
    time.sleep(1.5)
    os.kill(other, 0)
    latter.process.kill()
    again, _ = former.begun()
    assert again not in {work, other}


def test_work_that_ends_by_itself_is_begun_again_after_a_pause(start):
    salt = start("ends")
    began = time.monotonic()
    assert len({salt.engine()[0], salt.begun()[0], salt.begun()[0]}) == 3
    assert time.monotonic() - began > 0.9
    salt.process.kill()
    assert "the work of title has ended, and is begun again" in salt.process.stderr.read()

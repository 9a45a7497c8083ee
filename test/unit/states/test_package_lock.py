"""The locks of apt and dpkg: who holds them is asked, not tried, and waited for only where it matters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from _states import package_lock
from _states.package_lock import Holder

# Holds the lock of a file as dpkg does, says so, and ends with its input.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
APT = Holder("/var/lib/dpkg/lock-frontend", 4711, "apt-get")


@pytest.fixture(name="lock")
def lock_file(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def test_the_kernel_names_the_holder_of_a_lock(lock):
    assert package_lock.holder_of(lock) is None
    argv = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "held\n"
        found = package_lock.holder_of(lock)
        assert found is not None
        assert (found.lock, found.pid) == (str(lock), child.pid)
        assert found.name.startswith("python")
        child.stdin.close()
    assert package_lock.holder_of(lock) is None


def test_a_system_without_such_locks_is_free(tmp_path):
    assert package_lock.holder_of(tmp_path / "none" / "lock") is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (APT, "process 4711 (apt-get) holds /var/lib/dpkg/lock-frontend"),
        (Holder("/l", 0, ""), "a process outside this container holds /l"),
    ],
)
def test_a_holder_in_words(found, text):
    assert str(found) == text


class Clock:
    """A clock that only sleeping moves, and a lock with holders at given seconds."""

    def __init__(self, *held: tuple[float, float]) -> None:
        self.now = 0.0
        self.held = held

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def find(self) -> Holder | None:
        return APT if any(begin <= self.now < end for begin, end in self.held) else None

    def wait(self, limit: float) -> Holder | None:
        return package_lock.wait(limit, self.find, self.time, self.sleep)


def test_a_lock_that_becomes_free_is_waited_for():
    clock = Clock((0, 7))
    assert clock.wait(60) is None
    assert 7 <= clock.now <= 9


def test_the_moment_between_two_steps_of_apt_is_not_the_end():
    clock = Clock((0, 3), (3.6, 10))
    assert clock.wait(60) is None
    assert clock.now >= 10


def test_the_limit_holds_and_names_the_holder():
    clock = Clock((0, 999))
    assert clock.wait(5) == APT
    assert clock.now == pytest.approx(5, abs=0.1)


def test_a_lock_that_is_free_at_the_limit_is_free():
    assert Clock((0, 4.9)).wait(5) is None


def test_no_patience_at_all():
    clock = Clock((0, 999))
    assert clock.wait(0) == APT
    assert clock.now == 0


# ---- the state ----


class Host:
    """A host with some packages and, perhaps, a process that holds the lock."""

    def __init__(self, monkeypatch, held: Holder | None, test: bool = False) -> None:
        self.asked = 0
        self.waited: list[float] = []
        self.outcome: Holder | None = None
        monkeypatch.setattr(package_lock, "holder", lambda: held)
        monkeypatch.setattr(package_lock, "wait", self.wait)
        monkeypatch.setattr(package_lock, "__opts__", {"test": test}, raising=False)
        monkeypatch.setattr(package_lock, "__salt__", {"pkg.list_pkgs": self.packages}, raising=False)

    def packages(self) -> dict[str, str]:
        self.asked += 1
        return {"procps": "1", "ovmf": "2"}

    def wait(self, limit: float) -> Holder | None:
        self.waited.append(limit)
        return self.outcome


def free(*packages: str) -> dict[str, Any]:
    ret = package_lock.free("x", list(packages), 30)
    assert ret["changes"] == {}
    return ret


def test_a_free_lock_costs_nothing(monkeypatch):
    host = Host(monkeypatch, None)
    assert free("lvm2")["result"] is True
    assert (host.asked, host.waited) == (0, [])


def test_a_held_lock_does_not_matter_when_all_is_installed(monkeypatch):
    host = Host(monkeypatch, APT)
    assert free("ovmf", "procps")["result"] is True
    assert host.waited == []


def test_a_held_lock_is_waited_for_when_a_package_is_missing(monkeypatch):
    host = Host(monkeypatch, APT)
    ret = free("ovmf", "lvm2")
    assert (ret["result"], host.waited) == (True, [30])
    assert "because process 4711 (apt-get) holds" in ret["comment"]


def test_the_limit_ends_the_run_with_the_holder_the_packages_and_the_key(monkeypatch):
    host = Host(monkeypatch, APT)
    host.outcome = APT
    ret = free("lvm2")
    assert ret["result"] is False
    for text in ("lvm2", "4711 (apt-get)", "/var/lib/dpkg/lock-frontend", "30 s", "kvm:packages:lock_timeout"):
        assert text in ret["comment"]


def test_a_dry_run_does_not_wait(monkeypatch):
    host = Host(monkeypatch, APT, test=True)
    ret = free("lvm2")
    assert (ret["result"], host.waited) == (True, [])
    assert "Would wait" in ret["comment"]


def test_locks_that_cannot_be_looked_at_are_an_error(monkeypatch):
    Host(monkeypatch, None)

    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/var/lib/dpkg/lock")

    monkeypatch.setattr(package_lock, "holder", refused)
    ret = free("lvm2")
    assert ret["result"] is False
    assert "Permission denied" in ret["comment"]

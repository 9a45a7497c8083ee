"""The lab's guest counts on its disk, and notices another one that does the same."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from lab import guest

SECTORS = 64


class Disk:
    """A file for a disk, and guests that count on it, each a shell of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "disk"
        self.path.write_bytes(bytes(512 * SECTORS))
        (folder / "size").write_text(f"{SECTORS}\n")
        self.running: list[subprocess.Popen[str]] = []

    def start(self, boot: str) -> None:
        """Start a guest."""
        (self.folder / boot).write_text(f"{boot}\n")
        text = guest.INIT[guest.INIT.index('if [ -n "$count" ]; then') : guest.INIT.index("second=0")]
        for old, new in {
            "/dev/vda": str(self.path), "/sys/block/vda/size": str(self.folder / "size"),
            "/proc/sys/kernel/random/boot_id": str(self.folder / boot), "/proc/sys/vm/drop_caches": "/dev/null",
            # A file would be cut short.
            "conv=sync,fsync": "conv=sync,fsync,notrunc",
            # So that all of it ends with this shell.
            "  done &\n": "  done\n",
        }.items():  # fmt: skip
            assert old in text
            text = text.replace(old, new)
        argv = ["sh", "-c", f"count=word; pause=0.2\n{text}"]
        self.running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, text=True))

    def sector(self, number: int) -> str:
        """Return what stands in a sector."""
        return self.path.read_bytes()[512 * number : 512 * (number + 1)].rstrip(b"\0\n").decode()

    def until(self, number: int, word: str) -> str:
        """Wait until a sector has a word, and return what stands there."""
        deadline = time.monotonic() + 30
        while word not in self.sector(number):
            assert time.monotonic() < deadline, self.sector(number)
            time.sleep(0.05)
        return self.sector(number)

    def stop(self) -> None:
        """End the guest that was started first."""
        one = self.running.pop(0)
        one.kill()
        one.wait(10)


@pytest.fixture(name="disk")
def a_disk(tmp_path):
    disk = Disk(tmp_path)
    yield disk
    while disk.running:
        disk.stop()


def test_one_after_the_other_goes_on_from_what_is_there(disk):
    disk.start("first")
    disk.until(3, "count word first 3")
    disk.stop()
    last = int(disk.sector(0).split()[3])
    disk.start("second")
    disk.until(last + 2, f"count word second {last + 2}")
    assert disk.sector(SECTORS - 1) == ""


def test_two_at_a_time_are_told(disk):
    disk.start("first")
    disk.until(2, "count word first 2")
    disk.start("second")
    assert disk.until(SECTORS - 1, "clash").startswith("clash count word ")

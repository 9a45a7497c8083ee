"""A disk is used by whoever has it alone, or merely has it open; whoever asks is told by whom."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from _utils import disk_use


def test_a_disk_that_somebody_has_open_is_in_use(tmp_path):
    device = tmp_path / "sdx"
    assert disk_use.user_of(str(device)) == ""
    device.write_text("x")
    link = tmp_path / "by-id"
    link.symlink_to(device)
    assert disk_use.user_of(str(link)) == ""
    with device.open():
        assert disk_use.user_of(str(link)).startswith(f"process {os.getpid()} (")


def test_one_that_the_kernel_gives_to_nobody_else_is_in_use(tmp_path, monkeypatch):
    asked = []

    def busy(device, flags):
        asked.append(flags & (os.O_EXCL | os.O_CREAT | os.O_ACCMODE))
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "open", busy)
    assert disk_use.user_of(str(tmp_path)) == "a file system, swap, a volume group or multipath"
    # Exclusively, to read alone, and without making a file where there is no disk.
    assert asked == [os.O_EXCL | os.O_RDONLY]


def test_a_dead_one_may_be_taken_away_unless_somebody_has_it_open(tmp_path, monkeypatch):
    device = tmp_path / "sdx"
    device.touch()
    fds = tmp_path / "proc" / "7" / "fd"
    fds.mkdir(parents=True)
    (fds.parent / "comm").write_text("qemu\n")

    def broken(path, flags):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", broken)
    assert disk_use.user_of(str(device), tmp_path / "proc") == ""
    (fds / "5").symlink_to(device)
    assert disk_use.user_of(str(device), tmp_path / "proc") == "process 7 (qemu)"
    # Whoever looks at every disk for a moment uses none.
    (fds.parent / "comm").write_text("(udev-worker)\n")
    assert disk_use.user_of(str(device), tmp_path / "proc") == ""


GUEST = "process 7 (qemu)"


@pytest.mark.parametrize(("opened", "user"), [((8, 16), GUEST), ((8, 17), GUEST), ((8, 32), "")])
def test_a_guest_that_calls_it_otherwise_is_known_by_its_number(tmp_path, monkeypatch, opened, user):
    device = tmp_path / "sdb"
    device.touch()
    fds = tmp_path / "proc" / "7" / "fd"
    fds.mkdir(parents=True)
    (fds / "5").symlink_to("/dev/null")
    (fds.parent / "comm").write_text("qemu\n")
    partition = tmp_path / "block" / "8:16" / "sdb1"
    partition.mkdir(parents=True)
    (partition / "dev").write_text("8:17\n")
    (partition.parent / "dev").write_text("8:16\n")
    real = os.stat

    def numbered(path, **more):
        found = list(real(path, **more))
        number = {str(device): (8, 16), str(fds / "5"): opened}.get(str(path))
        if number is None:
            return real(path, **more)
        found[0] = stat.S_IFBLK | 0o660
        return os.stat_result(found, {"st_rdev": os.makedev(*number)})

    monkeypatch.setattr(os, "stat", numbered)
    assert disk_use.user_of(str(device), tmp_path / "proc", tmp_path / "block") == user

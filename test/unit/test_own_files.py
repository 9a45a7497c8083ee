"""How files of root's are replaced: whole or not at all, and never readable by others for a moment."""

from __future__ import annotations

import os
import stat

import pytest

from _utils import own_files


def test_a_file_is_made_with_its_folder_and_permissions(tmp_path):
    path = tmp_path / "folder" / "secret"
    own_files.write(path, b"new", 0o400)
    assert own_files.read(path) == b"new"
    assert own_files.access(path, 0o400) == ""
    assert own_files.access(path, 0o644) == "mode 0400 instead of 0644"
    assert not own_files.exposed(path)
    assert [one.name for one in path.parent.iterdir()] == ["secret"]


def test_it_belongs_to_whom_it_should_before_it_has_its_name(tmp_path, monkeypatch):
    path, asked = tmp_path / "secret", []

    def chown(descriptor, *owner):
        # Nothing is in it yet, nor is it where others look.
        asked.append((owner, os.fstat(descriptor).st_size, stat.S_IMODE(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fchown", chown)
    own_files.write(path, b"new", 0o400, (64, 65))
    assert asked == [((64, 65), 0, 0o600, False)]


def test_what_cannot_be_written_whole_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    own_files.write(path, b"old", 0o644)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        own_files.write(path, b"new", 0o644)
    assert own_files.read(path) == b"old"
    monkeypatch.undo()
    # What that left beside it is in nobody's way.
    own_files.write(path, b"new", 0o644)
    assert own_files.read(path) == b"new"


def test_a_link_that_somebody_put_beside_it_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / ".file.new").symlink_to(other)
    own_files.write(tmp_path / "file", b"new", 0o644)
    assert (other.read_text(), (tmp_path / "file").read_text()) == ("theirs", "new")


def test_what_is_not_there_is_nothing(tmp_path):
    path = tmp_path / "none"
    assert (own_files.read(path), own_files.access(path, 0o600), own_files.exposed(path)) == (None, "", False)

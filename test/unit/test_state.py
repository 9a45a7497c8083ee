"""The lab's state file, its locks and its digests."""

import json
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from lab import state
from lab.proc import LabError
from lab.state import Paths


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "ROOT", tmp_path / "labs")
    return tmp_path / "labs"


@pytest.mark.parametrize("name", ["lab", "a", "test-13", "a23456789012"])
def test_names_of_labs(name):
    assert state.lab_name(name) == name


@pytest.mark.parametrize("name", ["", "Lab", "1a", "-a", "a.b", "a_b", "a/b", "..", "a2345678901234", "lab\n"])
def test_names_that_are_refused(name):
    with pytest.raises(LabError, match="is not a lab's name; allowed: a letter, then up to 11 letters"):
        state.lab_name(name)


def test_a_state_is_kept_closed(root):
    paths = Paths("unit")
    assert state.load(paths) == {}
    state.save(paths, {"index": 3})
    assert state.load(paths) == {"index": 3, "format": state.FORMAT}
    assert stat.S_IMODE(paths.state.stat().st_mode) == 0o600
    assert [path.name for path in paths.root.iterdir()] == ["state.json"]
    assert state.names() == ["unit"]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    state.write_atomic(path, "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.write_atomic(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("content", ["", "{", "\x00", "[]", "3", "null"])
def test_a_damaged_state_says_how_to_go_on(content):
    paths = Paths("unit")
    paths.root.mkdir(parents=True)
    paths.state.write_text(content)
    with pytest.raises(LabError, match=r"; remove the lab with: lab down --name unit$"):
        state.load(paths)


@pytest.mark.parametrize("old", [{}, {"format": 0}, {"format": state.FORMAT + 1, "checkout": "/srv/other"}])
def test_a_state_of_other_code_says_whose_it_is_and_how_to_go_on(old):
    paths = Paths("unit")
    paths.root.mkdir(parents=True)
    paths.state.write_text(json.dumps(old))
    with pytest.raises(LabError, match="was made by another version of this code") as refused:
        state.load(paths)
    assert f"({old.get('checkout', 'unknown checkout')})" in str(refused.value)
    assert "lab down --name unit" in str(refused.value)


def test_a_second_holder_is_refused_and_told_who_holds_it():
    with state.locked("lab-unit", "lab up"):
        with pytest.raises(LabError) as refused, state.locked("lab-unit", "lab down"):
            pytest.fail("the lock was given twice")
        assert str(refused.value) == (
            f"another command is at work on 'lab-unit': pid {os.getpid()}, lab up; wait for it, or end it"
        )
        with state.locked("lab-other", "lab up"):
            pass
    with state.locked("lab-unit", "lab down"):
        pass


HOLDER = """
import pathlib, sys
from lab import state
state.ROOT = pathlib.Path(sys.argv[1])
with state.locked("image", "building"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(root):
    """Another process that holds the lock "image" until it reads a line or is killed."""
    argv = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(
        argv, cwd=state.CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_several_labs_share_is_waited_for(holder):
    with pytest.raises(LabError, match=f"pid {holder.pid}, building"), state.locked("image", "me"):
        pass
    timer = threading.Timer(0.5, holder.stdin.close)
    timer.start()
    begun = time.monotonic()
    with state.locked("image", "me", wait=True):
        assert time.monotonic() - begun > 0.4
    timer.join()


def test_a_holder_that_was_killed_locks_nobody_out(holder):
    holder.kill()
    holder.wait(30)
    with state.locked("image", "me"):
        pass


def test_a_digest_follows_names_modes_and_contents_but_no_caches(tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("one")
    first = state.tree_digest([tree])
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "x.cpython-311.pyc").write_text("cache")
    assert state.tree_digest([tree]) == first
    (tree / "sub" / "file").chmod(0o755)
    executable = state.tree_digest([tree])
    (tree / "sub" / "file").write_text("two")
    changed = state.tree_digest([tree])
    (tree / "sub" / "file").rename(tree / "sub" / "other")
    assert len({first, executable, changed, state.tree_digest([tree])}) == 4

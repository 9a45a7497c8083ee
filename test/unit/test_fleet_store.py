"""Locks that end with their process, and what is known of evacuated hosts."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from _utils import fleet_store

WHO = {"function": "fleet.migrate", "user": "otto", "jid": "2026"}
GUEST = {"name": "web", "uuid": "u1"}


def taken(folder, name):
    """A lock that nobody else has."""
    lock, said = fleet_store.lock(str(folder), "guests", name, WHO)
    assert lock is not None, said
    return lock


def known(base):
    """The guests in the record of hv1."""
    found = fleet_store.record(base, "hv1")
    assert found is not None
    return found["guests"]


def test_one_act_at_a_time_and_the_other_hears_whose_it_is(tmp_path):
    first, _ = fleet_store.lock(str(tmp_path), "guests", "web", WHO)
    assert first is not None
    second, said = fleet_store.lock(str(tmp_path), "guests", "web", {**WHO, "user": "anna"})
    assert second is None
    assert said.startswith("is held by fleet.migrate of otto (job 2026, since ")
    other, _ = fleet_store.lock(str(tmp_path), "guests", "db", WHO)
    same_name, _ = fleet_store.lock(str(tmp_path), "hosts", "web", WHO)
    assert other is not None
    assert same_name is not None
    first.release()
    first.release()
    again, _ = fleet_store.lock(str(tmp_path), "guests", "web", WHO)
    assert again is not None
    for one in (again, other, same_name):
        one.release()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys; from _utils import fleet_store as s\n"
        f"held = s.lock({str(tmp_path)!r}, 'guests', 'web', {WHO!r})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert fleet_store.lock(str(tmp_path), "guests", "web", WHO)[0] is None
        process.kill()
        process.wait()
        # The file is still there, and holds nobody up.
        assert list(tmp_path.rglob("web.lock"))
        lock, _ = fleet_store.lock(str(tmp_path), "guests", "web", WHO)
        assert lock is not None
        lock.release()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    taken(tmp_path, "x").release()
    (tmp_path / "precious").write_text("x")
    (tmp_path / "hypervisor-fleet/guests/web.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        fleet_store.lock(str(tmp_path), "guests", "web", WHO)
    assert (tmp_path / "precious").read_text() == "x"


def test_folders_are_the_masters_alone(tmp_path):
    taken(tmp_path, "x").release()
    assert stat.S_IMODE((tmp_path / "hypervisor-fleet/guests").stat().st_mode) == 0o700


def test_the_record_of_a_host(tmp_path):
    base = str(tmp_path)
    assert fleet_store.record(base, "hv1") is None
    assert fleet_store.begin(base, "hv1", "otto")["guests"] == {}
    fleet_store.note(base, "hv1", GUEST, "hv2", moving=True)
    assert known(base)["u1"]["moving"] is True
    fleet_store.note(base, "hv1", GUEST, "hv2", moving=False)
    # A second evacuation goes on with the record of the first.
    assert fleet_store.begin(base, "hv1", "anna")["user"] == "otto"
    assert known(base)["u1"].keys() == {"name", "to", "at"}
    assert fleet_store.evacuated(base) == ["hv1"]
    fleet_store.forget(base, "hv1", "u1")
    fleet_store.forget(base, "hv1", "u1")
    assert known(base) == {}
    fleet_store.end(base, "hv1")
    assert fleet_store.evacuated(base) == []
    fleet_store.note(base, "hv1", GUEST, "hv2", moving=True)
    assert fleet_store.evacuated(base) == []


def test_a_holder_that_cannot_be_read_is_one_all_the_same(tmp_path):
    held = taken(tmp_path, "web")
    path = next(tmp_path.rglob("web.lock"))
    path.write_text(json.dumps(["x"]))
    assert fleet_store.lock(str(tmp_path), "guests", "web", WHO) == (None, "is held by another act")
    held.release()

"""Locks that end with their process, and what is known of evacuated hosts."""

from __future__ import annotations

import itertools
import json
import os
import stat
from pathlib import Path

import pytest
from processes import speaking

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
    with speaking(code, "held") as process:
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


def kept(base):
    """The file of the record of hv1."""
    return Path(base) / "hypervisor-fleet/evacuated/hv1.json"


def test_a_step_costs_the_same_however_many_guests_there_are(tmp_path):
    base = str(tmp_path)
    fleet_store.begin(base, "hv1", "otto")
    inode, sizes = kept(base).stat().st_ino, []
    for number in range(100, 300):
        fleet_store.note(base, "hv1", {"name": f"web{number}", "uuid": f"u{number}"}, "hv2", moving=number % 2 == 0)
        sizes.append(kept(base).stat().st_size)
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert len(set(grown[::2])) == len(set(grown[1::2])) == 1
    assert kept(base).stat().st_ino == inode
    assert len(known(base)) == 200
    # The next act puts them together.
    fleet_store.begin(base, "hv1", "otto")
    assert len(kept(base).read_text().splitlines()) == 1
    assert len(known(base)) == 200


def test_what_a_killed_act_has_noted_is_gone_on_with(tmp_path):
    code = (
        "import sys; from _utils import fleet_store as s\n"
        f"base = {str(tmp_path)!r}; s.begin(base, 'hv1', 'otto')\n"
        "for name in ('web', 'db', 'mail'):\n"
        "    s.note(base, 'hv1', {'name': name, 'uuid': name}, 'hv2', moving=True)\n"
        "s.note(base, 'hv1', {'name': 'web', 'uuid': 'web'}, 'hv2', moving=False)\n"
        "s.forget(base, 'hv1', 'mail')\n"
        "print('noted', flush=True); sys.stdin.read()"
    )
    with speaking(code, "noted") as process:
        process.kill()
        process.wait()
    base = str(tmp_path)
    assert {uuid: row.get("moving") for uuid, row in known(base).items()} == {"web": None, "db": True}
    assert {uuid: row.get("moving") for uuid, row in fleet_store.begin(base, "hv1", "anna")["guests"].items()} == {
        "web": None, "db": True,
    }  # fmt: skip
    fleet_store.note(base, "hv1", {"name": "db", "uuid": "db"}, "hv2", moving=False)
    assert "moving" not in known(base)["db"]


def test_half_a_step_spoils_neither_those_before_nor_those_after(tmp_path):
    base = str(tmp_path)
    fleet_store.begin(base, "hv1", "otto")
    fleet_store.note(base, "hv1", GUEST, "hv2", moving=False)
    with kept(base).open("a") as handle:
        handle.write('{"uuid": "u2", "guest": {"na')
    assert known(base).keys() == {"u1"}
    fleet_store.note(base, "hv1", {"name": "db", "uuid": "u3"}, "hv3", moving=False)
    assert {uuid: row["to"] for uuid, row in known(base).items()} == {"u1": "hv2", "u3": "hv3"}


def test_a_record_without_steps_is_one_too(tmp_path):
    base = str(tmp_path)
    fleet_store.begin(base, "hv1", "otto")
    row = {"host": "hv1", "since": "2026", "user": "olga", "guests": {"u1": {"name": "web", "to": "hv2", "at": "2026"}}}
    kept(base).write_text(json.dumps(row))
    assert fleet_store.record(base, "hv1") == row
    fleet_store.forget(base, "hv1", "u1")
    assert known(base) == {}


def test_a_step_that_has_no_room_is_an_error(tmp_path, monkeypatch):
    fleet_store.begin(str(tmp_path), "hv1", "otto")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:5]))
    with pytest.raises(OSError, match="No space left"):
        fleet_store.note(str(tmp_path), "hv1", GUEST, "hv2", moving=True)
    monkeypatch.undo()
    fleet_store.note(str(tmp_path), "hv1", GUEST, "hv2", moving=True)
    assert known(str(tmp_path)).keys() == {"u1"}


def test_a_holder_that_cannot_be_read_is_one_all_the_same(tmp_path):
    held = taken(tmp_path, "web")
    path = next(tmp_path.rglob("web.lock"))
    path.write_text(json.dumps(["x"]))
    assert fleet_store.lock(str(tmp_path), "guests", "web", WHO) == (None, "is held by another act")
    held.release()

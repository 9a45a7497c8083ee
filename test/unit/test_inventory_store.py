"""The database of the inventory: one revision for what changed together, and a reader who may not write."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypervisor_inventory import store


@pytest.fixture(name="base")
def a_base(tmp_path):
    found = store.Store(tmp_path / "inventory.db")
    yield found
    found.close()


def guest(name: str) -> dict[str, str]:
    return {"host": "hv1", "name": name}


def test_what_changes_together_is_one_revision_and_the_same_again_is_none(base):
    first = base.revision
    assert base.apply({"guests": {"hv1/a": guest("a"), "hv1/b": guest("b")}}) == 2
    assert base.revision == first + 1
    assert base.apply({"guests": {"hv1/a": {"name": "a", "host": "hv1"}, "hv1/z": None}}) == 0
    assert base.revision == first + 1
    assert base.get("guests", "hv1/a") == guest("a")
    assert base.keys("guests", "hv1") == {"hv1/a", "hv1/b"}


def test_a_reader_learns_of_changes_and_of_what_is_gone(base):
    reader = store.Reader(base.path)
    base.apply({"guests": {"hv1/a": guest("a")}})
    assert reader.look() == ([("guests", "hv1/a")], True)
    assert reader.look() == ([], False)
    base.apply({"guests": {"hv1/a": None, "hv1/b": guest("b")}})
    changed, anew = reader.look()
    assert (sorted(changed), anew) == ([("guests", "hv1/a"), ("guests", "hv1/b")], False)
    assert reader.records["guests"]["hv1/a"] == (base.revision, "hv1", None)
    assert reader.revision == base.revision
    reader.close()


def test_only_its_owner_and_group_read_it(base):
    base.apply({"guests": {"hv1/a": guest("a")}})
    for suffix in ("", "-wal", "-shm"):
        path = base.path.with_name(base.path.name + suffix)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_reader_cannot_write(base):
    reader = store.Reader(base.path)
    reader.look()
    with pytest.raises(store.sqlite3.OperationalError, match="readonly"):
        reader._base.execute("DELETE FROM records")
    reader.close()


@pytest.mark.parametrize("damage", [b"not a database" * 500, b"", b"SQLite format 3\0" + os.urandom(9000)])
def test_a_damaged_one_is_begun_anew_and_its_reader_notices(tmp_path, damage):
    path = tmp_path / "inventory.db"
    base = store.Store(path)
    base.apply({"guests": {"hv1/a": guest("a")}})
    before = base.revision
    reader = store.Reader(path)
    reader.look()
    base.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(damage)
    again = store.Store(path)
    assert again.rebuilt
    assert again.revision >= before
    changed, anew = reader.look()
    assert (changed, anew) == ([], True)
    assert reader.records["guests"] == {}
    reader.close()
    again.close()


def test_it_goes_on_where_it_was(tmp_path):
    base = store.Store(tmp_path / "inventory.db")
    base.apply({"guests": {"hv1/a": guest("a")}}, {"hv1": (7, 8, 9.0)})
    base.close()
    again = store.Store(tmp_path / "inventory.db")
    assert (again.rebuilt, again.revision, again.heard()) == ("", base.revision, {"hv1": (7, 8, 9.0)})
    again.close()


def test_what_is_long_gone_is_forgotten_and_the_floor_says_so(base):
    for number in range(5):
        base.apply({"guests": {f"hv1/{number}": guest("x")}})
        base.apply({"guests": {f"hv1/{number}": None}})
    base.prune(most=2)
    reader = store.Reader(base.path)
    changed, _ = reader.look()
    assert changed == [("guests", "hv1/3"), ("guests", "hv1/4")]
    assert reader.floor == base.revision - 4
    reader.close()


def test_counts_are_read_without_the_engine(base):
    base.note({"refused": json.dumps({"signature": 3})})
    assert json.loads(store.refused(base.path)) == {"signature": 3}


def test_what_has_happened_is_kept_for_a_guest_and_bounded(base, monkeypatch):
    monkeypatch.setattr(store, "_MOST_OF_ONE", 3)
    base.happen("hv1", [("u1", at, "started") for at in range(10)] + [("u2", 5, "crashed")])
    base.happen("hv1", [("u1", 9, "started")])
    base.happen("hv2", [("u1", 20, "arrived")])
    reader = store.Reader(base.path)
    assert reader.happened("u1") == [("hv2", 20, "arrived"), *[("hv1", at, "started") for at in (9, 8, 7)]]
    assert reader.happened("nobody") == []
    assert base.last() == {"hv1/u1": 9, "hv1/u2": 5, "hv2/u1": 20}
    monkeypatch.setattr(store, "_MOST_HAPPENED", 1)
    base.prune()
    assert reader.happened("u2") == []
    # It is no record, and makes no revision.
    assert reader.look()[0] == []

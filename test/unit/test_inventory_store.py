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
    base.prune(most=1)
    assert reader.look() == ([], False)
    # A reader that lives long forgets it too.
    assert list(reader.records["guests"]) == ["hv1/4"]
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
    # It is no record, and makes no revision.
    assert reader.look()[0] == []
    # What a host has told that is none any more goes with it.
    base.apply({"hosts": {"hv1": {"host": "hv1"}, "hv2": None}})
    base.prune()
    assert [row[0] for row in reader.happened("u1")] == ["hv1"] * 3
    base.apply({"hosts": {"hv1": None}})
    base.prune()
    assert base.last() == {}


@pytest.mark.parametrize("at", [lambda number: number, lambda number: 2**40])
def test_a_host_that_tells_without_end_displaces_nothing_of_another(base, monkeypatch, at):
    monkeypatch.setattr(store, "_MOST_OF_HOST", 20)
    monkeypatch.setattr(store, "_SURPLUS", 5)
    base.apply({"hosts": {"hv1": {"host": "hv1"}, "hv2": {"host": "hv2"}}})
    assert base.happen("hv2", [("mine", 1, "started"), ("mine", 2, "crashed")]) is False
    # The same again and again are no more than they were.
    for _ in range(30):
        assert base.happen("hv2", [("mine", 1, "started")]) is False
    most = 0
    removed = []
    for number in range(100):
        removed.append(base.happen("hv1", [(f"u{number}", at(number), "started")]))
        most = max(most, len(base.last("hv1")))
    assert most == 25
    # Not with every row.
    assert 10 < sum(removed) < 20
    base.prune()
    assert base.last("hv2") == {"hv2/mine": 2}
    assert base.last() == base.last("hv1") | base.last("hv2")
    if at(0) != at(1):
        assert "hv1/u99" in base.last("hv1")
        assert "hv1/u70" not in base.last("hv1")


def test_the_limit_of_a_host_holds_after_a_restart_and_in_a_database_without_the_index(base, monkeypatch):
    base.happen("hv1", [(f"u{number}", number, "started") for number in range(50)])
    base._base.execute("DROP INDEX happened_host")
    base.close()
    monkeypatch.setattr(store, "_MOST_OF_HOST", 20)
    again = store.Store(base.path)
    assert again.rebuilt == ""
    assert again.happen("hv1", [("u99", 99, "started")]) is True
    assert len(again.last("hv1")) == 20
    plan = again._base.execute("EXPLAIN QUERY PLAN SELECT count(*) FROM happened WHERE host = 'hv1'").fetchall()
    assert "happened_host" in plan[0][3]
    again.begin_anew("it is tried")
    assert again.last() == {}
    assert again.happen("hv1", [("u1", 1, "started")]) is False
    again.close()

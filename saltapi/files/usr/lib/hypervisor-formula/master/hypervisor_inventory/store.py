"""The database: one row for each host, guest, pool, network and job, with the revision of its last change.

One process writes (the engine), one reads (the service), which may not write: SQLite's write-ahead log allows that. A
row of something that is gone stays for a while without a value, so that a reader who was away learns of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KINDS = ("hosts", "guests", "pools", "networks", "jobs")
VERSION = 2
_MOST_GONE = 20_000  # rows without a value that are kept
# What has happened to guests: how much is kept of one on one host, and of one host, so that none displaces what others
# tell, whatever it says. That is twenty for each of a hundred guests, and a quarter of a megabyte of the database.
_MOST_OF_ONE, _MOST_OF_HOST = 50, 2_000
_SURPLUS = 200  # rows of a host above that, with which the oldest are removed: not with every row
_PATIENCE = 5.0  # seconds that one side waits for the other
_TABLES = (
    """CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, host TEXT NOT NULL, revision INTEGER NOT NULL,
    value TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID""",
    "CREATE INDEX records_revision ON records (revision)",
    "CREATE INDEX records_host ON records (kind, host)",
    # The last message of each host that was taken: an older one is a repetition.
    """CREATE TABLE heard (host TEXT PRIMARY KEY, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL)
    WITHOUT ROWID""",
    """CREATE TABLE happened (uuid TEXT NOT NULL, host TEXT NOT NULL, at INTEGER NOT NULL, what TEXT NOT NULL,
    PRIMARY KEY (uuid, host, at, what)) WITHOUT ROWID""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)
# A database of before may lack it.
_INDEX = "CREATE INDEX IF NOT EXISTS happened_host ON happened (host, at)"

Changes = Mapping[str, Mapping[str, Mapping[str, Any] | None]]


def text(value: Any) -> str:
    """Returns a value as it is kept: the same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class Store:
    """The database, for the one who writes it.

    Args:
        path: of the database. Who may read it says the group of its folder, which files in it inherit.

    Attributes:
        rebuilt: why it was begun anew, an empty text if it was not.
        revision: of the last change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rebuilt = ""
        # How many rows of what has happened a host has at most.
        self._happened: dict[str, int] = {}
        if path.exists():
            try:
                self._open()
                self._check()
            except sqlite3.DatabaseError as error:
                self.rebuilt = str(error)
                self._begin()
        else:
            self.rebuilt = "there was none"
            self._begin()
        self.revision = int(self.meta("revision", "0"))

    def _open(self) -> None:
        """Opens the file, closed to all but its owner and its group."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o640)
        try:
            os.fchmod(descriptor, 0o640)
        finally:
            os.close(descriptor)
        self._base = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        # What the last second before a power cut brought, hosts say again.
        self._base.execute("PRAGMA synchronous=NORMAL")

    def _check(self) -> None:
        """Raises DatabaseError for a file that cannot be gone on with."""
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, and {VERSION} is known")
        self._base.execute(_INDEX)
        self.examine()

    def examine(self) -> None:
        """Raises DatabaseError for a file that a reader cannot read: the writer itself has it in memory."""
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=_PATIENCE)) as base:
            (found,) = base.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))

    def _begin(self) -> None:
        """Begins anew; what was there is removed, since hosts and the trail of jobs say it all again."""
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._base.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._open()
        self._happened = {}
        self._base.execute("BEGIN IMMEDIATE")
        for statement in (*_TABLES, _INDEX):
            self._base.execute(statement)
        # By the clock, so that no revision means two things to those who remember one of the last database.
        now = time.time_ns() // 1_000_000
        for name in ("revision", "floor"):
            self._base.execute("INSERT INTO meta VALUES (?, ?)", (name, str(now)))
        self._base.execute(f"PRAGMA user_version={VERSION}")
        self._base.execute("COMMIT")
        self.revision = now

    def begin_anew(self, why: str) -> None:
        """Gives up a damaged database for an empty one."""
        self.rebuilt = why
        self._begin()

    def meta(self, name: str, default: str) -> str:
        """Returns a word on the whole."""
        row = self._base.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else default

    def note(self, words: Mapping[str, str]) -> None:
        """Keeps words on the whole; they make no revision."""
        self._base.execute("BEGIN IMMEDIATE")
        self._base.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(words.items()))
        self._base.execute("COMMIT")

    def heard(self) -> dict[str, tuple[int, int, float]]:
        """Returns epoch, number and time of the last message of each host."""
        return {row[0]: (row[1], row[2], row[3]) for row in self._base.execute("SELECT * FROM heard")}

    def keys(self, kind: str, host: str) -> set[str]:
        """Returns the keys of what a host has."""
        rows = self._base.execute(
            "SELECT key FROM records WHERE kind = ? AND host = ? AND value IS NOT NULL", (kind, host)
        )
        return {row[0] for row in rows}

    def all_keys(self, kind: str) -> set[str]:
        """Returns the keys of a kind."""
        rows = self._base.execute("SELECT key FROM records WHERE kind = ? AND value IS NOT NULL", (kind,))
        return {row[0] for row in rows}

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Returns one record."""
        row = self._base.execute("SELECT value FROM records WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        found: dict[str, Any] | None = json.loads(row[0]) if row and row[0] else None
        return found

    def apply(self, changes: Changes, heard: Mapping[str, tuple[int, int, float]] | None = None) -> int:
        """Keeps what has changed, all of it in one revision; what is as before makes none.

        Args:
            changes: by kind, records by their key; None for what is gone.
            heard: the last message of each host that had a part in it.

        Returns:
            How many records differ.
        """
        self._base.execute("BEGIN IMMEDIATE")
        try:
            rows = list(self._differing(changes))
            if rows:
                revision = self.revision + 1
                self._base.executemany(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)",
                    [(kind, key, host, revision, value) for kind, key, host, value in rows],
                )
                self._base.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (str(revision),))
            self._base.executemany(
                "INSERT OR REPLACE INTO heard VALUES (?, ?, ?, ?)",
                [(host, *fields) for host, fields in (heard or {}).items()],
            )
            self._base.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("ROLLBACK")
            raise
        self.revision += bool(rows)
        return len(rows)

    def _differing(self, changes: Changes) -> Iterable[tuple[str, str, str, str | None]]:
        """Finds the rows that are not as wanted."""
        for kind, records in changes.items():
            for key, record in records.items():
                row = self._base.execute(
                    "SELECT value, host FROM records WHERE kind = ? AND key = ?", (kind, key)
                ).fetchone()
                wanted = None if record is None else text(record)
                if (row[0] if row else None) != wanted:
                    # A job has hosts of its own.
                    host = str((record or {}).get("host", "")) or (row[1] if row else key.partition("/")[0])
                    yield kind, key, host, wanted

    def prune(self, most: int = _MOST_GONE) -> None:
        """Forgets the oldest of what is gone; who remembers less than that has to read everything again."""
        query = "SELECT revision FROM records WHERE value IS NULL ORDER BY revision DESC LIMIT 1 OFFSET ?"
        row = self._base.execute(query, (most,)).fetchone()
        if row:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("DELETE FROM records WHERE value IS NULL AND revision <= ?", row)
            self._base.execute("UPDATE meta SET value = ? WHERE name = 'floor'", (str(row[0]),))
            self._base.execute("COMMIT")
        # Of hosts that are no hypervisors any more nothing is kept.
        self._base.execute(
            "DELETE FROM happened WHERE host NOT IN "
            "(SELECT key FROM records WHERE kind = 'hosts' AND value IS NOT NULL)"
        )

    def happen(self, host: str, rows: Iterable[tuple[str, int, str]]) -> bool:
        """Keeps what has happened to guests of a host, the newest of each and of all of them.

        Args:
            host: where.
            rows: UUID, milliseconds since 1970 and a word.

        Returns:
            Whether the host had told more than is kept, so that its oldest was removed.
        """
        found = [(uuid, host, at, what) for uuid, at, what in rows]
        oldest = (
            "DELETE FROM happened WHERE uuid = ? AND host = ? AND at < "
            "(SELECT at FROM happened WHERE uuid = ? AND host = ? ORDER BY at DESC LIMIT 1 OFFSET ?)"
        )
        self._base.execute("BEGIN IMMEDIATE")
        self._base.executemany("INSERT OR IGNORE INTO happened VALUES (?, ?, ?, ?)", found)
        for uuid in {row[0] for row in found}:
            self._base.execute(oldest, (uuid, host, uuid, host, _MOST_OF_ONE - 1))
        # Those that are there already count twice, until they are counted again.
        many = self._happened.get(host, _MOST_OF_HOST + _SURPLUS) + len(found) > _MOST_OF_HOST + _SURPLUS
        removed = many and self._trim(host)
        self._happened[host] = self._count(host) if many else self._happened[host] + len(found)
        self._base.execute("COMMIT")
        return removed

    def _count(self, host: str) -> int:
        """Returns how many rows of what has happened a host has."""
        (found,) = self._base.execute("SELECT count(*) FROM happened WHERE host = ?", (host,)).fetchone()
        return int(found)

    def _trim(self, host: str) -> bool:
        """Removes the oldest rows of a host, also of many with one time; returns whether there were too many."""
        query = (
            "DELETE FROM happened WHERE (uuid, host, at, what) IN "
            "(SELECT uuid, host, at, what FROM happened WHERE host = ? ORDER BY at DESC LIMIT -1 OFFSET ?)"
        )
        return self._base.execute(query, (host, _MOST_OF_HOST)).rowcount > 0

    def last(self, host: str | None = None) -> dict[str, int]:
        """Returns when something happened last to each guest on each host, or on one, by the key of its record."""
        of_all = "SELECT host, uuid, max(at) FROM happened GROUP BY host, uuid"
        of_one = "SELECT host, uuid, max(at) FROM happened WHERE host = ? GROUP BY uuid"
        rows = self._base.execute(of_one, (host,)) if host else self._base.execute(of_all)
        return {f"{name}/{uuid}": at for name, uuid, at in rows}

    def close(self) -> None:
        """Ends the use of the database."""
        self._base.close()


class Reader:
    """The database, for one who may not write.

    Args:
        path: of the database.

    Attributes:
        records: by kind and key, the revision, the host and the record, None for what is gone.
        revision: of the last change that was read.
        floor: changes up to this one may have been forgotten.
        beat: when the writer was alive, in seconds since 1970.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base: sqlite3.Connection | None = None
        self._inode = 0
        self.records: dict[str, dict[str, tuple[int, str, Any]]] = {kind: {} for kind in KINDS}
        self.revision = self.floor = 0
        self.beat = 0.0

    def _connect(self) -> sqlite3.Connection:
        """Opens the database, again when another has taken its place."""
        inode = self.path.stat().st_ino
        if self._base is None or inode != self._inode:
            self.close()
            uri = f"file:{self.path}?mode=ro"
            self._base = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
            self._inode = inode
        return self._base

    def look(self) -> tuple[list[tuple[str, str]], bool]:
        """Reads what has changed since the last look.

        Returns:
            Kind and key of each change, and whether everything was read anew because another database is there.

        Raises:
            sqlite3.Error: it cannot be read now.
            OSError: it is not there.
        """
        known = self._inode
        base = self._connect()
        anew = known != self._inode
        try:
            base.execute("BEGIN")
            try:
                meta = dict(base.execute("SELECT name, value FROM meta"))
                since = 0 if anew else self.revision
                changed = []
                if anew or int(meta["revision"]) != self.revision:
                    query = "SELECT kind, key, host, revision, value FROM records WHERE revision > ?"
                    changed = base.execute(query, (since,)).fetchall()
            finally:
                base.execute("ROLLBACK")
        except BaseException:
            self.close()
            raise
        if anew:
            self.records = {kind: {} for kind in KINDS}
        for kind, key, host, revision, value in changed:
            self.records.setdefault(kind, {})[key] = (revision, host, json.loads(value) if value else None)
        if int(meta["floor"]) > self.floor:
            self._forget(int(meta["floor"]))
        self.revision, self.floor = int(meta["revision"]), int(meta["floor"])
        self.beat = float(meta.get("beat", "0"))
        return [(row[0], row[1]) for row in changed], anew

    def _forget(self, floor: int) -> None:
        """Forgets what is gone up to a revision, as the writer has: nobody is told changes since one before it."""
        for kind, rows in self.records.items():
            self.records[kind] = {key: row for key, row in rows.items() if row[2] is not None or row[0] > floor}

    def happened(self, uuid: str) -> list[tuple[str, int, str]]:
        """Returns what has happened to a guest, the newest first: host, milliseconds since 1970 and a word.

        Raises:
            sqlite3.Error: it cannot be read now.
        """
        query = "SELECT host, at, what FROM happened WHERE uuid = ? ORDER BY at DESC, what"
        # A connection of its own: what the other has read stays in step with its file.
        uri = f"file:{self.path}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as base:
            return list(base.execute(query, (uuid,)))

    def close(self) -> None:
        """Ends the use of the database."""
        if self._base is not None:
            self._base.close()
        self._base, self._inode = None, 0


def refused(path: Path) -> str:
    """Returns, as JSON, how many messages of hosts were not taken since the engine began, by reason."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PATIENCE)
    with contextlib.closing(base):
        row = base.execute("SELECT value FROM meta WHERE name = 'refused'").fetchone()
    return str(row[0]) if row else "{}"

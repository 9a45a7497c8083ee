"""What the engine ``inventory`` does: takes messages in their order, keeps them, and asks for what is missing."""

from __future__ import annotations

import datetime as dt
import json
import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hypervisor_inventory import acts, jobs, messages, store

log = logging.getLogger(__name__)

ASK = "hypervisor/inventory/ask"
_OF_RUNNER = "hypervisor/fleet/"
_TOGETHER = 200  # messages that make one revision at most
_WAIT = 0.2  # seconds that the bus is listened to
_MORE = 0.005  # seconds that a further message is waited for
_ORDER = 0.5  # seconds that a message waits for the one before it
_HELD = 64  # messages of a host that wait
_AGAIN = 3.0  # seconds after which a host is asked once more
_SELDOM = 60.0  # the same for one that is not heard at all
_SILENT = 1.5  # signs of life, after which a host counts as gone
_SLACK = 5.0  # seconds besides
_BEAT = 2.0  # seconds between two words that the engine lives
_EXAMINE = 10.0  # seconds between two looks whether others can read the database
_REPORT = 60.0  # seconds between two lines in the log on what was refused
_NEVER: dict[str, Any] = dict.fromkeys(messages.shaped("hosts", {"problems": []})) | {"problems": []}

Events = Callable[[float], Any]
Publish = Callable[[list[str], str, dict[str, str]], None]


class Paths(NamedTuple):
    """Where things are."""

    database: Path
    keys: Path
    hosts: Path
    audit: Path
    fleet: Path

    @classmethod
    def of(cls, database: str, pki: str, hosts: str, audit: str, cache: str) -> Paths:
        """Makes them of texts; ``pki`` is the master's folder of keys, ``cache`` that of its caches."""
        fleet = Path(cache) / "hypervisor-fleet"
        return cls(Path(database), Path(pki) / "minions", Path(hosts), Path(audit), fleet)


class Host:
    """What is known of the messages of one host.

    Args:
        last: epoch and number of the last message.
        heard: when it was, on the monotonic clock; None if it was not.
    """

    def __init__(self, last: tuple[int, int] = (0, 0), heard: float | None = None) -> None:
        self.last, self.heard = last, heard
        self.interval = 10.0
        self.held: dict[int, tuple[float, messages.Message]] = {}
        self.parts: list[messages.Message] = []
        self.asked = -_SELDOM
        # Nothing counts of a host that the database does not know, until it has answered this.
        self.wanting = True
        self.nonce = secrets.token_hex(16)

    def live(self, now: float) -> bool:
        """Says whether it is heard."""
        return self.heard is not None and now - self.heard < _SILENT * self.interval + _SLACK


class Asker:
    """Asks hosts for everything, in a thread: the master may take long to publish.

    Args:
        publish: has minions fire an event of their own.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._waiting: queue.Queue[dict[str, str]] = queue.Queue(4)
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, nonces: dict[str, str]) -> bool:
        """Asks hosts, each with its nonce; returns whether that will be done."""
        try:
            self._waiting.put_nowait(nonces)
        except queue.Full:
            return False
        return True

    def _work(self) -> None:
        """Publishes what is asked."""
        while True:
            nonces = self._waiting.get()
            try:
                # One question for all of them with the same nonce; usually that is all.
                for nonce in set(nonces.values()):
                    names = sorted(host for host, one in nonces.items() if one == nonce)
                    self._publish(names, ASK, {"nonce": nonce})
            # The master may be starting: hosts are asked again.
            except Exception as error:  # noqa: BLE001 - whatever it is
                log.warning("hosts could not be asked: %s", error)


class Keeper:
    """The database, and what is yet to come into it.

    Args:
        paths: where things are.
        publish: has minions fire an event of their own.
        returns: what hosts have answered to a job.
        reconcile: seconds after which every host is asked for everything.
    """

    def __init__(self, paths: Paths, publish: Publish, returns: jobs.Returns, reconcile: float) -> None:
        self._paths, self._returns, self._reconcile = paths, returns, reconcile
        self.store = store.Store(paths.database)
        self.judge = messages.Judge(paths.keys)
        self._jobs = jobs.Jobs(paths.audit, returns, paths.fleet / "jobs")
        self._evacuated = acts.Evacuated(paths.fleet / "evacuated")
        self._asker = Asker(publish)
        self._next = {"beat": 0.0, "hosts": 0.0, "report": 0.0, "prune": 0.0, "examine": 0.0}
        self._last_reconcile = time.monotonic()
        self._told = 0
        self._jobs_compared = False
        self._happened: dict[str, int] = {}
        self.hosts: dict[str, Host] = {}
        self._recall()

    def _recall(self) -> None:
        """Knows again who was heard with what."""
        # An answer to what was asked for another database is a repetition too.
        self._nonce = secrets.token_hex(16)
        if self.store.rebuilt:
            log.warning("the inventory is begun anew: %s", self.store.rebuilt)
        self._stamp: tuple[int, int] | None = None
        self._next["hosts"] = 0.0
        self._happened = self.store.last()
        now = time.monotonic()
        known = self.store.heard()
        self.hosts = {}
        for name in self._named():
            epoch, seq, _ = known.get(name, (0, 0, 0.0))
            # One that was heard before gets the time to be heard again.
            self.hosts[name] = Host((epoch, seq), now if epoch else None)
            self.hosts[name].nonce = self._nonce

    def _named(self) -> set[str]:
        """Returns the minions that are hypervisors."""
        try:
            lines = self._paths.hosts.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}

    def run(self, events: Events) -> None:
        """Goes on until the process ends.

        Args:
            events: waits a number of seconds for the next event.
        """
        while True:
            self.turn(events)

    def turn(self, events: Events) -> None:
        """Takes what has come, and does what is due."""
        taken: list[Mapping[str, Any]] = []
        event = events(_WAIT)
        while event is not None and len(taken) < _TOGETHER:
            taken.append(event)
            event = events(_MORE)
        if event is not None:
            taken.append(event)
        try:
            self.take(taken, time.monotonic())
        except sqlite3.DatabaseError as error:
            self.store.begin_anew(str(error))
            self._jobs = jobs.Jobs(self._paths.audit, self._returns, self._paths.fleet / "jobs")
            self._evacuated = acts.Evacuated(self._paths.fleet / "evacuated")
            self._recall()

    def take(self, taken: list[Mapping[str, Any]], now: float) -> None:
        """Puts into the database what events, the trail of jobs and time bring, as one revision."""
        if now >= self._next["hosts"]:
            self._next["hosts"] = now + _BEAT
            self._compare_hosts()
        known = frozenset(self.hosts)
        changes: dict[str, dict[str, Any]] = {kind: {} for kind in store.KINDS}
        heard: set[str] = set()
        for event in taken:
            # What the runner fires for whoever listens: the inventory reads its files.
            if "fleet" not in known and str(event.get("tag")).startswith(_OF_RUNNER):
                continue
            message = self.judge.judged(event.get("tag"), event.get("data"), known)
            if message and self._order(message, now):
                heard.add(message.host)
        for name, host in self.hosts.items():
            for message in self._ready(host, now):
                self._apply(host, message, changes, now)
                heard.add(name)
        changes["jobs"].update(self._jobs.look())
        if not self._jobs_compared:
            # What the trail does not have any more.
            changes["jobs"].update(dict.fromkeys(self.store.all_keys("jobs") - self._jobs.known()))
            self._jobs_compared = True
        self._silent(changes, now)
        self._away(changes["hosts"])
        at = time.time()
        self.store.apply(changes, {name: (*self.hosts[name].last, at) for name in heard})
        self._beat(now)
        self._ask(now)

    def _compare_hosts(self) -> None:
        """Takes it into account that hosts were added or removed."""
        try:
            status = self._paths.hosts.stat()
            stamp = (status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        named = self._named()
        for name in named - self.hosts.keys():
            self.hosts[name] = Host()
            self.hosts[name].nonce = self._nonce
        gone: dict[str, dict[str, Any]] = {}
        kept = self.store.all_keys("hosts")
        for name in (self.hosts.keys() | kept) - named:
            self.hosts.pop(name, None)
            for kind in ("guests", "pools", "networks"):
                gone.setdefault(kind, {}).update(dict.fromkeys(self.store.keys(kind, name)))
            gone.setdefault("hosts", {})[name] = None
        for name in named - kept:
            never = self._host_record(name, {**_NEVER}, None, live=False)
            gone.setdefault("hosts", {})[name] = never | {"evacuated": self._evacuated.hosts.get(name)}
        self.store.apply(gone)

    def _order(self, message: messages.Message, now: float) -> bool:
        """Holds a message until its turn; returns whether it is news."""
        host = self.hosts[message.host]
        if (message.epoch, message.seq) <= host.last:
            self.judge.refused["old"] += 1
            return False
        if host.last == (0, 0) and message.nonce != host.nonce:
            # The database knows nothing of this host: that this is no repetition shows only in an answer.
            host.heard, host.interval = now, message.interval
            self.judge.refused["not asked for"] += 1
            return False
        # Of a former life nothing is waited for any more.
        host.held = {seq: one for seq, one in host.held.items() if one[1].epoch == message.epoch}
        host.held[message.seq] = (now, message)
        return True

    def _ready(self, host: Host, now: float) -> list[messages.Message]:
        """Returns the messages of a host whose turn it is, in their order."""
        found = []
        while host.held:
            seq = min(host.held)
            since, message = host.held[seq]
            # Of what comes before the beginning of a whole nothing is missed.
            begins = message.part is not None and message.part[0] == 1
            follows = begins or (message.epoch, seq) == (host.last[0], host.last[1] + 1)
            if not follows and now - since < _ORDER and len(host.held) < _HELD:
                break
            if not follows:
                host.wanting = True
            del host.held[seq]
            host.last = (message.epoch, seq)
            found.append(message)
        return found

    def _apply(self, host: Host, message: messages.Message, changes: dict[str, dict[str, Any]], now: float) -> None:
        """Puts a message's content among the changes."""
        host.heard, host.interval = now, message.interval
        if message.happened:
            self._happen(message, changes["guests"])
        for kind, records in message.new.items():
            changes[kind].update(records)
        for key, record in message.new["guests"].items():
            changes["guests"][key] = record | {"happened": self._happened.get(key)}
        for kind, keys in message.gone.items():
            changes[kind].update(dict.fromkeys(keys))
        if message.figures is not None:
            at = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
            changes["hosts"][message.host] = self._host_record(message.host, message.figures, at, live=True)
        if message.part:
            self._whole(host, message, changes)
        elif message.nonce:
            # It can't tell more now, and will by itself when it can.
            host.wanting = False

    def _happen(self, message: messages.Message, guests: dict[str, Any]) -> None:
        """Keeps what has happened to guests; their records say when it did last, so that a page asks what it was."""
        # What a wrong clock puts into the future would for long be newer than all that happens then.
        now = time.time_ns() // 1_000_000
        rows = [(uuid, min(at, now), what) for uuid, at, what in message.happened]
        removed = self.store.happen(message.host, rows)
        for uuid, at, _ in rows:
            key = f"{message.host}/{uuid}"
            self._happened[key] = max(at, self._happened.get(key, 0))
            # One that was just told to be gone is gone, whatever the database still has of it.
            record = guests[key] if key in guests else self.store.get("guests", key)
            if record:
                guests[key] = record | {"happened": self._happened[key]}
        if removed:
            # Nor is remembered here what is not kept there.
            others = {key: at for key, at in self._happened.items() if not key.startswith(f"{message.host}/")}
            self._happened = others | self.store.last(message.host)

    def _whole(self, host: Host, message: messages.Message, changes: dict[str, dict[str, Any]]) -> None:
        """Takes a part of all that a host has; with the last one it is known what is gone."""
        number, count = message.part or (1, 1)
        if number == 1:
            host.parts = []
        host.parts.append(message)
        if number != count or [one.part for one in host.parts] != [(n, count) for n in range(1, count + 1)]:
            return
        for kind in ("guests", "pools", "networks"):
            told = {key for one in host.parts for key in one.new[kind]}
            # What is there by this revision and was not told; what other messages of this turn have set is in it too.
            there = self.store.keys(kind, message.host) | {
                key for key, value in changes[kind].items() if value and value["host"] == message.host
            }
            changes[kind].update(dict.fromkeys(there - told))
        host.parts = []
        host.wanting = False

    @staticmethod
    def _host_record(name: str, figures: Mapping[str, Any], at: str | None, *, live: bool) -> dict[str, Any]:
        """Returns the record of a host."""
        problems = list(figures["problems"])
        if not live:
            problems.insert(0, "it is not heard" if at else "it has never been heard; see libvirt:events:enabled")
        return {**figures, "host": name, "name": name, "live": live, "seen": at, "problems": problems}

    def _silent(self, changes: dict[str, dict[str, Any]], now: float) -> None:
        """Finds hosts that are heard no more."""
        for name, host in self.hosts.items():
            if not host.live(now) and host.heard is not None and name not in changes["hosts"]:
                record = self.store.get("hosts", name)
                if record and record["live"]:
                    changes["hosts"][name] = self._host_record(name, record, record["seen"], live=False)
                host.heard, host.wanting = None, True

    def _away(self, changes: dict[str, Any]) -> None:
        """Notes of hosts whether they are evacuated."""
        for name in self._evacuated.look() & self.hosts.keys():
            record = changes.get(name) or self.store.get("hosts", name)
            if record:
                changes[name] = record | {"evacuated": None}
        for name, record in changes.items():
            changes[name] = record | {"evacuated": self._evacuated.hosts.get(name)}

    def _beat(self, now: float) -> None:
        """Says that the engine lives, and what it has refused."""
        if now >= self._next["beat"]:
            self._next["beat"] = now + _BEAT
            self.store.note({"beat": str(time.time()), "refused": json.dumps(self.judge.refused, sort_keys=True)})
        refused = sum(self.judge.refused.values())
        if now >= self._next["report"] and refused > self._told:
            self._next["report"] = now + _REPORT
            self._told = refused
            log.warning("messages that were not taken so far: %s", dict(self.judge.refused))
        if now >= self._next["examine"]:
            self._next["examine"] = now + _EXAMINE
            self.store.examine()
        if now >= self._next["prune"]:
            self._next["prune"] = now + _REPORT
            self.store.prune()
            self._happened = self.store.last()

    def _ask(self, now: float) -> None:
        """Asks hosts for everything: those of which something is wanting, and from time to time all."""
        if now >= self._last_reconcile + self._reconcile:
            self._last_reconcile = now
            for host in self.hosts.values():
                host.wanting = True
        due = {
            name: host
            for name, host in self.hosts.items()
            if host.wanting and now >= host.asked + (_AGAIN if host.live(now) else _SELDOM)
        }
        if due and self._asker.ask({name: host.nonce for name, host in due.items()}):
            for host in due.values():
                host.asked = now

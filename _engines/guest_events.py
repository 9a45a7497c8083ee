"""Tells the master what changes on this hypervisor: guests, pools, networks, and the host's own figures.

A child in the distribution's Python listens to libvirt (``libvirt_watch.py``); this engine makes records of what it
prints, remembers what it has told, and sends what differs, signed with the minion's key. Everything is told at the
start and whenever the master asks; the child is started again when libvirt or it has gone. Nothing waits in a queue
without bounds: what libvirt says while nobody listens is read afresh.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import salt.channel.client
import salt.minion
import salt.utils.event
import salt.version

__opts__: dict[str, Any]
__utils__: dict[str, Any]

log = logging.getLogger(__name__)

PROGRAM = "/usr/lib/hypervisor-formula/libvirt_watch.py"
PYTHON = "/usr/bin/python3"
ASKED = "hypervisor/inventory/ask"
KINDS = {"guest": "guests", "pool": "pools", "network": "networks"}
_SIBLINGS = (
    "hypervisor_host.certificates",
    "hypervisor_host.memory",
    "hypervisor_host.reboot",
    "hypervisor_xml.guest",
    "hypervisor_xml.network",
    "hypervisor_xml.pool",
    "hypervisor_xml.state",
    "inventory_words.guest",
    "inventory_words.network",
    "inventory_words.pool",
    "network_tool.pending",
)
_SILENCE = 30.0  # seconds without a line of the child, which says something every few
_PAUSES = (1.0, 1.0, 2.0, 5.0)  # seconds before the child is started again
_LOOK = 10.0  # seconds between two looks at the host's figures, which are told when they have moved
_AGAIN = 1.0  # seconds from one try to tell a master that is away to the next; longer if a try takes longer
_TOGETHER = 8  # objects that changed at once, from which on one message tells all
_LINES = 256  # that may wait; then the child waits
# Seconds for the master to take a message, which it does in milliseconds. What its restart has swallowed is found out
# only by this, and then told on a new connection: the old one lets up to five seconds pass until it tries again.
_PATIENCE, _MOST_PATIENCE = 1.0, 5.0
_SLOWER = 4.0  # times the last answer's seconds, that a busy master is not told everything twice
# The same for logging in at the master; the minion itself may take longer.
_IMPATIENT = {"auth_timeout": 3, "auth_tries": 1, "retry_dns": 0, "random_reauth_delay": 0, "acceptance_wait_time": 1}
_MOST_HAPPENED = 200  # that wait for a master that is away
_REREAD = 30.0  # seconds: flags and leases change without an event


def __virtual__() -> bool | tuple[bool, str]:
    """Loads on minions; the master has another engine."""
    if __opts__.get("__role") == "master":
        return False, "this is for hypervisors"
    return True


class Child:
    """The process that listens to libvirt, and the thread that reads it.

    Args:
        lines: where its lines go, and None when it has ended.
        argv: the command.
    """

    def __init__(self, lines: queue.Queue[Any], argv: list[str]) -> None:
        self._lines = lines
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Hands over its lines."""
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        assert self.process.stderr is not None  # noqa: S101 - it is a pipe
        for line in self.process.stdout:
            self._lines.put((self, line))
        why = self.process.stderr.read(2000).strip().splitlines()
        self.process.wait()
        self._lines.put((self, None if not why else f"!{why[-1]}"))

    def ask(self) -> None:
        """Has it say everything."""
        try:
            assert self.process.stdin is not None  # noqa: S101 - it is a pipe
            self.process.stdin.write("all\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def end(self) -> None:
        """Ends it."""
        self.process.kill()


class Teller:
    """What this host has told, and what it has yet to tell.

    Args:
        voice: numbers and signs messages.
        send: sends one.
        utils: the siblings' functions.
        figures: reads what the host uses.
    """

    def __init__(self, voice: Any, send: Any, utils: Mapping[str, Any], figures: Any) -> None:
        self._voice, self._send, self._utils, self._figures = voice, send, utils, figures
        self.told: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS.values()}
        # Names of pools and networks by UUID: the page knows them by name, and an event of one that is gone has none.
        self._names: dict[tuple[str, str], str] = {}
        # Whether the master has got all that there is.
        self.whole = False
        self.figures: dict[str, Any] = {}
        # Whether the last message did not arrive: then nothing is sent until there is time for all.
        self.deaf = False
        # When that one was sent, of the monotonic clock.
        self.tried = 0.0
        self.nonce = ""
        self.libvirt = "it has not been reached yet"
        # What has happened to guests and was not told yet: UUID, milliseconds since 1970, a word.
        self.happened: list[tuple[str, int, str]] = []
        self._versions: dict[str, str] = {}

    def _record(self, kind: str, key: str, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the key and the record of an object."""
        record = self._utils[f"inventory_words.{kind}"](self._utils, facts)
        self._names[kind, key] = key if kind == "guest" else record["name"]
        return self._names[kind, key], record

    def take(self, line: Mapping[str, Any]) -> None:
        """Tells what a line of the child brings."""
        kind = line["kind"]
        if kind == "all":
            self._all(line)
        elif kind in KINDS:
            self._one(kind, line)

    def _all(self, line: Mapping[str, Any]) -> None:
        """Takes everything into account: tells all of it if that is due, else what differs."""
        after = {
            KINDS[kind]: dict(self._record(kind, key, facts) for key, facts in rows.items())
            for kind, rows in line["found"].items()
        }
        self.libvirt, self._versions = "", line["versions"]
        new, gone = __utils__["inventory_words.differences"](self.told, after)
        self.told = after
        if not self.whole or self.nonce:
            self.tell_all()
        elif sum(map(len, new.values())) + sum(map(len, gone.values())) > _TOGETHER:
            self._say("host/changed", set=new, gone=gone)
        else:
            for kind, many in KINDS.items():
                for name, record in new.get(many, {}).items():
                    self._say(f"{kind}/{name}/changed", set={many: {name: record}})
                for name in gone.get(many, []):
                    self._say(f"{kind}/{name}/gone", gone={many: [name]})

    def _one(self, kind: str, line: Mapping[str, Any]) -> None:
        """Takes one object into account."""
        many, key = KINDS[kind], line["key"]
        what = __utils__["inventory_words.words"](line["what"])
        self.happened += [(key, *one) for one in line.get("happened", ())]
        del self.happened[:-_MOST_HAPPENED]
        if line["facts"] is None:
            name = self._names.pop((kind, key), key)
            self.told[many].pop(name, None)
            self._say(f"{kind}/{name}/{what}", gone={many: [name]})
            return
        name, record = self._record(kind, key, line["facts"])
        if self.told[many].get(name) != record:
            self.told[many][name] = record
            self._say(f"{kind}/{name}/{what}", set={many: {name: record}})
        elif self.happened:
            self._say(f"{kind}/{name}/{what}")

    def tell_all(self) -> None:
        """Tells everything, in as many messages as it takes; what nobody could read yet is not said to be nothing."""
        self.deaf = False
        if not self._versions:
            nonce, self.nonce = self.nonce, ""
            self._say("host/alive", figures=self._host(), nonce=nonce)
            return
        parts = __utils__["inventory_words.parts"](self.told)
        for number, part in enumerate(parts, 1):
            said = {"set": part, "part": [number, len(parts)], "nonce": self.nonce}
            self._say("host/all", figures=self._host() if number == 1 else None, **said)
        self.whole = not self.deaf
        self.nonce = "" if self.whole else self.nonce

    def alive(self) -> None:
        """Tells that the host is there, and what it uses; everything if the master has missed something."""
        if self.deaf and not self.libvirt:
            self.tell_all()
        else:
            self.deaf = False
            self._say("host/alive", figures=self._host())

    def look(self) -> None:
        """Tells what the host uses if that has moved since it was told last."""
        if __utils__["inventory_words.moved"](self.figures, self._host(keep=False)):
            self.alive()

    def _host(self, *, keep: bool = True) -> dict[str, Any]:
        """Returns the record of the host, and by default takes it for told."""
        found = {**self._figures.read(self._utils), **self._versions}
        found["problems"] = __utils__["inventory_words.problems"](self._utils, self.libvirt)
        grains = __opts__.get("grains", {})
        found |= {"kernel": grains.get("kernelrelease"), "system": grains.get("osfinger")}
        found["salt"] = salt.version.__version__
        if keep:
            self.figures = found
        return found

    def _say(self, about: str, **said: Any) -> None:
        """Sends one message, and with it what has happened; not if the one before has not arrived."""
        if self.deaf:
            return
        happened = {"happened": self.happened} if self.happened else {}
        began = time.monotonic()
        if self._send(*self._voice.message(about, **said, **happened)):
            self.happened = []
        else:
            self.deaf, self.whole, self.tried = True, False, began


class Line:
    """The engine's own line to the master: it knows what has arrived, and a request that is lost holds up no others.

    Args:
        opts: the minion's options.

    Attributes:
        patience: seconds that the next message is given: few, more for a master that took its time, and twice as many
            after each that was lost.
    """

    def __init__(self, opts: Mapping[str, Any]) -> None:
        self._opts = {**opts, **_IMPATIENT}
        self._channel: Any = None
        self.patience = _PATIENCE

    def send(self, tag: str, data: Mapping[str, str]) -> bool:
        """Sends one event, and says whether the master has it."""
        try:
            if self._channel is None:
                self._opts.update(salt.minion.resolve_dns(self._opts, fallback=False))
                self._channel = salt.channel.client.ReqChannel.factory(self._opts)
            load = {"id": self._opts["id"], "cmd": "_minion_event", "tag": tag, "data": data}
            began = time.monotonic()
            self._channel.send(load, tries=1, timeout=self.patience)
            took = time.monotonic() - began
        # A master that is away shows in many ways; whichever it is, everything is told once it is back.
        except Exception as error:  # noqa: BLE001 - see above
            log.info("the master could not be told: %r", error)
            if self._channel is not None:
                self._channel.close()
            self._channel = None
            self.patience = min(2 * self.patience, _MOST_PATIENCE)
            return False
        self.patience = min(max(_SLOWER * took, _PATIENCE), _MOST_PATIENCE)
        return True


def _sender() -> Any:
    """Returns the function that sends an event to the master, or to all that the minion has."""
    if isinstance(__opts__["master"], str):
        return Line(__opts__).send
    bus = salt.utils.event.MinionEvent(__opts__, listen=False)

    def send(tag: str, data: Mapping[str, str]) -> bool:
        return bool(bus.fire_event({"data": data, "tag": tag, "events": None, "pretag": None}, "fire_master"))

    return send


def _asked(lines: queue.Queue[Any]) -> None:
    """Hands over the master's questions, which come as jobs that fire an event here."""
    while True:
        with salt.utils.event.MinionEvent(__opts__, listen=True) as bus:
            while True:
                event = bus.get_event(wait=30, tag=ASKED, full=False, match_type="startswith", auto_reconnect=True)
                if isinstance(event, Mapping):
                    data = event.get("data", event)
                    nonce = data.get("nonce") if isinstance(data, Mapping) else None
                    lines.put((None, nonce if isinstance(nonce, str) else ""))


class Course:
    """The engine's work: one child after the other, and what is told in between.

    Args:
        teller: what is told.
        argv: the child's command.
        interval: seconds between two signs of life.
        reread: seconds after which everything is read again.
    """

    def __init__(self, teller: Teller, argv: list[str], interval: float, reread: float) -> None:
        self.lines: queue.Queue[Any] = queue.Queue(_LINES)
        self._teller, self._argv, self._interval, self._reread = teller, argv, interval, reread
        self._child: Child | None = None
        self._failures = 0
        now = time.monotonic()
        self._read = self._heard = now
        self._start, self._alive, self._look = now, now, now + _LOOK

    def run(self) -> None:
        """Goes on until the minion ends."""
        while True:
            self._due(time.monotonic())
            try:
                source, line = self.lines.get(timeout=self._wait(time.monotonic()))
            except queue.Empty:
                continue
            self._take(source, line)

    def _wait(self, now: float) -> float:
        """Returns how long there is nothing to do without a line."""
        moments = [self._alive, self._look, self._read + self._reread]
        moments.append(self._heard + _SILENCE if self._child else self._start)
        return max(min(moments) - now, 0.01)

    def _due(self, now: float) -> None:
        """Does what time demands."""
        if self._child is None and now >= self._start:
            self._heard = now
            try:
                self._child = Child(self.lines, self._argv)
            except OSError as error:
                self._lost(now, str(error))
        if self._child and now >= self._heard + _SILENCE:
            self._child.end()
            self._heard = now
        if self._child and now >= self._read + self._reread:
            self._read = now
            self._child.ask()
        if now >= self._alive:
            self._teller.alive()
            self._alive = time.monotonic() + self._interval
        if now >= self._look:
            self._look = now + _LOOK
            self._teller.look()
        if self._teller.deaf:
            self._alive = min(self._alive, self._teller.tried + _AGAIN)

    def _take(self, source: Child | None, line: Any) -> None:
        """Takes a line of the child, its end, or a question of the master."""
        now = time.monotonic()
        if source is None:
            # Whoever asks can hear.
            self._teller.nonce, self._teller.deaf = str(line), False
            if self._child and not self._teller.libvirt:
                self._child.ask()
            else:
                self._teller.tell_all()
        elif source is not self._child:
            return
        elif line is None or line.startswith("!"):
            self._lost(now, (line or "!it ended")[1:])
        else:
            try:
                said = json.loads(line)
            except ValueError:
                # Half a line, of a child that was killed: its end comes next.
                return
            self._heard, self._failures = now, 0
            self._teller.take(said)

    def _lost(self, now: float, why: str) -> None:
        """Waits a little before libvirt is asked again, and says why there is nothing new until then."""
        self._child = None
        self._start = now + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        if self._teller.libvirt != why:
            log.warning("libvirt does not answer: %s", why)
            self._teller.libvirt = why
            self._teller.alive()


def start(interval: float = 60.0, reread: float = _REREAD, python: str = PYTHON, program: str = PROGRAM) -> None:
    """Tells the master what changes here, until the minion ends.

    Args:
        interval: seconds between two signs of life; figures that move are told sooner.
        reread: seconds after which everything is read again, for what changes without an event.
        python: the distribution's Python, which has libvirt's binding.
        program: what it runs.
    """
    lock = Path(__opts__["cachedir"], "hypervisor-events.lock")
    if not __utils__["engine_work.begin"](str(lock), "hypervisor-formula: guest_events"):
        return
    private = __utils__["inventory_words.key"](str(Path(__opts__["pki_dir"], "minion.pem")))
    epoch = __utils__["inventory_words.epoch"](Path(__opts__["cachedir"], "hypervisor-epoch"), time.time_ns())
    voice = __utils__["inventory_words.voice"](__opts__["id"], private, epoch, interval)
    utils = {name: __utils__[name] for name in _SIBLINGS}
    teller = Teller(voice, _sender(), utils, __utils__["inventory_words.figures"]())
    course = Course(teller, [python, "-I", program], interval, reread)
    threading.Thread(target=_asked, args=(course.lines,), daemon=True).start()
    course.run()

"""Serves the inventory: one snapshot, and one stream of what changes since, to whoever has logged in at salt-api.

It has a socket that systemd opened, the database to read, and salt-api's unix socket to ask whose a token is. It has no
network of its own and no key of the master.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import logging
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

from tornado import httpserver, iostream, web

from hypervisor_inventory import store, tokens, view

log = logging.getLogger(__name__)

_LOOK = 0.1  # seconds between two looks at the database
_STALE = 15.0  # seconds without a beat, after which the engine counts as dead
_KNOWN = 3.0  # seconds for which a token's answer is good
_MOST_KNOWN = 2000
_KEEPALIVE = 10.0
_MOST_STREAMS = 500
_MOST_STREAMS_OF_ONE = 20
_MOST_WAITING = 256  # events of a stream that its client does not take
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Stream:
    """What one client has yet to get.

    Args:
        login: who looks.
        token: by which that is certain.
    """

    def __init__(self, login: view.Login, token: str) -> None:
        self.login, self.token = login, token
        self.waiting: collections.deque[bytes] = collections.deque()
        self.news = asyncio.Event()
        self.ended = False

    def put(self, event: bytes) -> None:
        """Adds an event; a client that is too slow is told to begin anew instead."""
        # One that reads nothing at all does not even learn that it has ended.
        if self.ended:
            return
        self.waiting.append(event)
        if len(self.waiting) > _MOST_WAITING:
            self.end()
        self.news.set()

    def end(self) -> None:
        """Ends the stream; the client comes again with the last event that it got."""
        self.ended = True
        self.news.set()


class Service:
    """The inventory in memory, and who listens.

    Args:
        database: the path of the database.
        api: the path of salt-api's socket.
    """

    def __init__(self, database: Path, api: Path) -> None:
        self.reader, self.api = store.Reader(database), api
        self.snapshots = view.Snapshots()
        self.streams: set[Stream] = set()
        self.beating = False
        self.ready = False
        self._known: dict[str, tuple[float, view.Login | None]] = {}

    async def login(self, token: str) -> view.Login | None:
        """Returns whose a token is; asks salt-api once in a few seconds.

        Raises:
            OSError: salt-api does not answer.
        """
        name, now = hashlib.sha256(token.encode()).hexdigest(), time.monotonic()
        until, found = self._known.get(name, (0.0, None))
        if now < until:
            return found
        answer = await tokens.ask(self.api, token)
        found = view.Login.of(str(answer["user"]), dict(answer["functions"])) if answer else None
        while len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known.pop(name, None)
        self._known[name] = (now + _KNOWN, found)
        return found

    def look(self) -> None:
        """Reads what is new, and hands it to the streams."""
        try:
            changed, anew = self.reader.look()
            self.ready = True
        except (OSError, sqlite3.Error, ValueError) as error:
            if self.ready and not isinstance(error, FileNotFoundError):
                log.warning("the database cannot be read: %s", error)
            changed, anew = [], False
        beating = time.time() - self.reader.beat < _STALE
        if anew or beating != self.beating:
            self.beating = beating
            resync = view.event("resync", self.reader.revision, {"revision": self.reader.revision})
            for stream in self.streams:
                stream.put(resync)
        elif changed:
            self._tell(changed)

    def _tell(self, changed: list[tuple[str, str]]) -> None:
        """Hands out changes; those who see the same get the same bytes."""
        made: dict[tuple[str, frozenset[str]], bytes] = {}
        # Of jobs whoever started them may see more.
        jobs = any(kind == "jobs" for kind, _ in changed)
        for stream in self.streams:
            who = (stream.login.user if jobs else "", stream.login.visible)
            if who not in made:
                said = view.changes(self.reader.records, changed, self.reader.revision, stream.login, self.beating)
                made[who] = view.event("change", self.reader.revision, said) if said else b""
            if made[who]:
                stream.put(made[who])

    async def work(self) -> None:
        """Looks at the database for as long as the process lives, and tells systemd so."""
        notify("READY=1")
        last = 0.0
        while True:
            self.look()
            if time.monotonic() - last > 5:
                last = time.monotonic()
                notify("WATCHDOG=1")
            await asyncio.sleep(_LOOK)


def notify(word: str) -> None:
    """Tells systemd something, where it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
            said.connect("\0" + address[1:] if address.startswith("@") else address)
            said.send(word.encode())


class _Handler(web.RequestHandler):
    """What snapshot and stream have in common."""

    service: Service
    login: view.Login
    token: str

    def initialize(self, service: Service) -> None:
        """Takes what the application hands over."""
        self.service = service

    def set_default_headers(self) -> None:
        """Sets the headers that every answer has."""
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **_: Any) -> None:
        """Writes an error as the page reads it."""
        self.set_header("Content-Type", "application/json")
        self.finish(view.dumped({"error": self._reason, "status": status_code}))

    async def prepare(self) -> None:
        """Lets in whoever has a good token in the one header that no foreign page can send."""
        self.token = self.request.headers.get("X-Auth-Token", "")
        try:
            found = await self.service.login(self.token)
        except OSError as error:
            log.warning("%s", error)
            raise web.HTTPError(503, reason="salt-api does not answer") from None
        if found is None:
            raise web.HTTPError(401, reason="log in first")
        self.login = found
        if not self.service.ready:
            raise web.HTTPError(503, reason="the inventory is not there yet")


class Snapshot(_Handler):
    """All that somebody may see."""

    async def get(self) -> None:
        """Sends it, compressed where that is understood; nothing of it to who has it."""
        service = self.service
        found = service.snapshots.get(service.reader.records, service.reader.revision, self.login, service.beating)
        self.set_header("Content-Type", "application/json")
        self.set_header("ETag", found.tag)
        self.set_header("Vary", "Accept-Encoding, X-Auth-Token")
        self.set_header("Cache-Control", "private, no-cache")
        known = [one.strip().removeprefix("W/") for one in self.request.headers.get("If-None-Match", "").split(",")]
        if found.tag.removeprefix("W/") in known:
            self.set_status(304)
            return
        body = found.plain
        if found.packed and "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            body = found.packed
        self.write(body)

    def compute_etag(self) -> None:
        """Has Tornado make none of its own."""


class Changes(_Handler):
    """What changes, for as long as somebody listens."""

    async def get(self) -> None:
        """Sends what was missed, then what comes."""
        service = self.service
        mine = sum(one.login.user == self.login.user for one in service.streams)
        if len(service.streams) >= _MOST_STREAMS or mine >= _MOST_STREAMS_OF_ONE:
            raise web.HTTPError(503, reason="too many streams")
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        stream = Stream(self.login, self.token)
        self._missed(stream)
        service.streams.add(stream)
        try:
            await self._send(stream)
        except (iostream.StreamClosedError, asyncio.CancelledError):
            pass
        finally:
            service.streams.discard(stream)

    def _missed(self, stream: Stream) -> None:
        """Puts into a stream what the client has not got yet."""
        reader, given = self.service.reader, self.request.headers.get("Last-Event-ID", "")
        if not given:
            return
        known = int(given) if given.isascii() and given.isdigit() and len(given) < 17 else -1
        if not reader.floor <= known <= reader.revision:
            stream.put(view.event("resync", reader.revision, {"revision": reader.revision}))
            return
        keys = view.since(reader.records, known)
        said = view.changes(reader.records, keys, reader.revision, self.login, self.service.beating)
        if said:
            stream.put(view.event("change", reader.revision, said))

    async def _send(self, stream: Stream) -> None:
        """Sends what comes, and something from time to time; ends when the token does, or its roles are others."""
        self.write(f": from {self.service.reader.revision}\n\n")
        await self.flush()
        while not stream.ended:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stream.news.wait(), _KEEPALIVE)
            stream.news.clear()
            if await self._login() != stream.login:
                return
            if not stream.waiting:
                self.write(": alive\n\n")
            while stream.waiting:
                self.write(stream.waiting.popleft())
            await self.flush()

    async def _login(self) -> view.Login | None:
        """Returns whose the token is by now."""
        try:
            return await self.service.login(self.token)
        except OSError:
            return None

    def on_connection_close(self) -> None:
        """Ends what nobody reads."""
        for stream in [one for one in self.service.streams if one.token == self.token]:
            stream.news.set()


class Events(_Handler):
    """What has happened to one guest, on the hosts that somebody may see."""

    async def get(self, uuid: str) -> None:
        """Sends it, the newest first."""
        try:
            rows = self.service.reader.happened(uuid)
        except sqlite3.Error as error:
            log.warning("the database cannot be read: %s", error)
            raise web.HTTPError(503, reason="the inventory cannot be read now") from None
        seen = [row for row in rows if row[0] in self.login.visible]
        self.set_header("Content-Type", "application/json")
        self.write(view.dumped({"events": view.happened(seen)}))


def application(service: Service) -> Any:
    """Returns the paths that there are; all else is 404."""
    given = {"service": service}
    paths = [(r"/inventory/snapshot", Snapshot, given), (r"/inventory/stream", Changes, given)]
    paths.append((r"/inventory/events/([0-9a-f-]{36})", Events, given))
    return web.Application(paths, log_function=_quiet)


def _quiet(handler: Any) -> None:
    """Logs what the service itself has got wrong."""
    if handler.get_status() >= 500:
        log.warning("%d %s", handler.get_status(), handler.request.path)


def listening() -> list[socket.socket]:
    """Returns the sockets that systemd has opened."""
    count = int(os.environ.get("LISTEN_FDS", "0")) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
    found = [socket.socket(fileno=number) for number in range(3, 3 + count)]
    for one in found:
        one.setblocking(False)
    return found


async def main(database: Path, api: Path) -> None:
    """Serves until the process ends."""
    sockets = listening()
    if not sockets:
        raise SystemExit("there is no socket; start hypervisor-inventory.socket")
    service = Service(database, api)
    server = httpserver.HTTPServer(application(service), max_header_size=16384, max_body_size=1024)
    server.add_sockets(sockets)
    await service.work()

"""A small stand-in for what the page talks to, salt-api and the inventory, for tests of the page alone.

It answers in the shapes of the real ones and does nothing. What really happens to guests is shown on hosts.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import queue
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from doors import Wire, screen, serial

BUNDLE = Path(__file__).resolve().parents[2] / "nginx/files/usr/share/hypervisor-formula/web"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# The strictest policy that the page is built for.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
READS = ["hypervisor.host_info", "hypervisor.guests", "hypervisor.guest", "hypervisor.stats"]
OPERATES = [
    *READS, "hypervisor.start", "hypervisor.shutdown", "hypervisor.reboot", "hypervisor.power_off",
    "hypervisor.suspend", "hypervisor.resume", "hypervisor.migrate", "hypervisor.cancel", "wsproxy.start",
    "fleet.migrate", "fleet.evacuate", "fleet.restore",
]  # fmt: skip
ADMINISTERS = [*OPERATES, "hypervisor.resize", "hypervisor.create", "hypervisor.delete", "fleet.create"]
# The page has a clock of its own, and counts as of today what is of the last day.
NOW = dt.datetime.now(tz=dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def guest(host: str, name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    """Returns a record of a guest."""
    return {
        "host": host, "uuid": f"0000-{name}", "name": name, "state": state, "cpus": 2, "memory_mib": 2048,
        "addresses": [], "started": NOW if state == "running" else None, "autostart": False, "persistent": True,
        "consoles": ["vnc", "serial"], **more,
    }  # fmt: skip


def host(name: str, **more: Any) -> dict[str, Any]:
    """Returns a record of a host."""
    return {
        "name": name, "live": True, "seen": NOW, "cpus": 16, "cpu_used": 0.31, "memory_mib": 65536,
        "memory_used_mib": 30000, "load": 2.4, "problems": [], "versions": {}, "evacuated": None, **more,
    }  # fmt: skip


def step(name: str, word: str, to: str = "hv2", **more: Any) -> dict[str, Any]:
    """Returns what a job of the runner has done with a guest."""
    return {"guest": name, "step": word, "from": "hv1", "to": to, "at": NOW, "text": "", **more}


class Site:
    """What the stand-in says, and what was asked of it."""

    def __init__(self) -> None:
        """Begins with two hosts and a few guests."""
        self.lock = threading.Lock()
        self.functions = ADMINISTERS
        self.tables: dict[str, dict[str, Any]] = {
            "hosts": {}, "guests": {}, "pools": {}, "networks": {}, "jobs": {},
        }  # fmt: skip
        self.revision = 1
        self.tokens: set[str] = set()
        # No token comes twice, so that one that has expired stays so.
        self.logins = itertools.count()
        self.asked: list[dict[str, Any]] = []
        self.streams: list[queue.Queue[bytes | None]] = []
        self.down = False
        # How the names of files begin that do not come.
        self.missing: str | None = None
        self.answers: dict[str, Any] = {}
        self.events: dict[str, list[dict[str, str]]] = {}
        # What the pages have brought to the consoles: host and protocols; bytes; keys that went down or up.
        self.opened: list[tuple[str, list[str]]] = []
        self.typed: list[bytes] = []
        self.keys: list[tuple[bool, int]] = []
        self.wires: list[socket.socket] = []
        self.reads: dict[str, Any] = {"hypervisor.host_info": {"bridges": []}, "hypervisor.guest": {}}
        for name in ("hv1", "hv2"):
            self.tables["hosts"][name] = host(name)
        self.add(guest("hv1", "web1", addresses=["192.0.2.11"]), guest("hv1", "db1", "shut off"), guest("hv2", "mail"))

    def add(self, *guests: dict[str, Any]) -> None:
        """Puts guests into the table, without telling anybody."""
        for one in guests:
            self.tables["guests"][f"{one['host']}/{one['uuid']}"] = one

    def changing(self) -> list[dict[str, Any]]:
        """Returns what was asked for that changes something."""
        return [one for one in self.asked if one["client"] != "local"]

    def snapshot(self) -> dict[str, Any]:
        """Returns everything, as the inventory does."""
        names = self.tables["hosts"]
        user = {"name": "otto", "functions": dict.fromkeys(names, self.functions)}
        return {"revision": self.revision, "now": NOW, "user": user, **self.tables}

    def change(self, table: str, key: str, value: Any) -> None:
        """Sets or removes (None) one record, and tells every stream."""
        with self.lock:
            self.revision += 1
            data: dict[str, Any] = {"revision": self.revision}
            if value is None:
                self.tables[table].pop(key, None)
                data["gone"] = {table: [key]}
            else:
                self.tables[table][key] = value
                data["set"] = {table: {key: value}}
            event = f"id: {self.revision}\nevent: change\ndata: {json.dumps(data)}\n\n".encode()
            for stream in self.streams:
                stream.put(event)

    def hang_up(self) -> None:
        """Ends every console, as a host does when its guest has gone."""
        for wire in self.wires:
            with contextlib.suppress(OSError):  # Closed by the page before.
                wire.shutdown(socket.SHUT_RDWR)
        self.wires.clear()

    def cut(self, *, down: bool) -> None:
        """Ends every stream; while down, nothing is answered."""
        self.down = down
        with self.lock:
            for stream in self.streams:
                stream.put(None)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does as salt-api does with a request: a job has a number, and its outcome comes later."""
        self.asked.append(request)
        function = request["fun"]
        if request["client"] == "runner_async":
            return self.run_fleet(function, request["kwarg"])
        (minion,) = request["tgt"]
        if request["client"] == "local":
            answer = self.reads.get(function, {})
            # One answer for all hosts, or for each its own.
            return {"return": [{minion: answer(minion) if callable(answer) else answer}]}
        jid = f"2026112812{len(self.asked):010d}"
        kwarg = request.get("kwarg", {})
        job = {
            "jid": jid, "user": "otto", "function": function, "guest": kwarg.get("name") or kwarg.get("guest", ""),
            "hosts": [minion], "started": NOW, "kwarg": {key: kwarg[key] for key in ("target", "test") if key in kwarg},
            "outcomes": {},
        }  # fmt: skip
        self.change("jobs", jid, job)
        verdict = self.answers.get(function, {"success": True, "comment": ""})
        if verdict is not None:
            self.change("jobs", jid, {**job, "outcomes": {minion: verdict}})
        return {"return": [{"jid": jid, "minions": [minion]}]}

    def run_fleet(self, function: str, kwarg: dict[str, Any]) -> dict[str, Any]:
        """Starts a job of the runner, which ends at once where an answer is prepared."""
        jid = f"2026112812{len(self.asked):010d}"
        job = {
            "jid": jid, "user": "otto", "function": function, "guest": kwarg.get("name"),
            "hosts": [kwarg["host"]] if "host" in kwarg else [], "started": NOW,
            "kwarg": {key: kwarg[key] for key in ("host", "test") if key in kwarg}, "outcomes": {}, "progress": [],
            "outcome": None, **self.answers.get(function, {}),
        }  # fmt: skip
        self.change("jobs", jid, job)
        return {"return": [{"jid": jid, "tag": f"salt/run/{jid}"}]}


class Handler(BaseHTTPRequestHandler):
    """Answers the page."""

    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Says nothing."""

    def answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        """Sends one answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def refused(self) -> bool:
        """Whether nothing is answered: the server is down, or the token is not known."""
        if self.site.down:
            self.close_connection = True
            return True
        if self.headers.get("X-Auth-Token") not in self.site.tokens:
            self.answer(b'{"error": "no"}', status=401)
            return True
        return False

    def do_GET(self) -> None:
        """Serves the bundle and the inventory."""
        if self.path == "/inventory/snapshot":
            if not self.refused():
                self.answer(json.dumps(self.site.snapshot()).encode())
        elif self.path == "/inventory/stream":
            if not self.refused():
                self.stream()
        elif self.path.startswith("/inventory/events/"):
            if not self.refused():
                rows = self.site.events.get(self.path.rsplit("/", 1)[1], [])
                self.answer(json.dumps({"events": rows}).encode())
        elif self.path.startswith("/websockify/"):
            self.console(self.path.rsplit("/", 1)[1])
        else:
            name = "index.html" if self.path == "/" else self.path.lstrip("/")
            file = (BUNDLE / name).resolve()
            missing = self.site.missing is not None and file.name.startswith(self.site.missing)
            if file.is_file() and file.is_relative_to(BUNDLE) and not missing:
                self.answer(file.read_bytes(), TYPES[file.suffix])
            else:
                self.answer(b"", status=404)

    def do_POST(self) -> None:
        """Takes logins and jobs."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/login":
            if request["password"] != "right":
                self.answer(b'{"error": "no"}', status=401)
                return
            token = f"token{next(self.site.logins)}"
            self.site.tokens.add(token)
            self.answer(json.dumps({"return": [{"token": token, "user": request["username"]}]}).encode())
        elif not self.refused():
            self.answer(json.dumps(self.site.run(request) if self.path == "/api/run" else {"return": ""}).encode())

    def console(self, host: str) -> None:
        """Opens the console for which a door was asked last."""
        protocols = [one.strip() for one in self.headers["Sec-WebSocket-Protocol"].split(",")]
        self.close_connection = True
        self.site.opened.append((host, protocols))
        self.site.wires.append(self.connection)
        asked = [one["kwarg"] for one in self.site.asked if one["fun"] == "wsproxy.start"]
        try:
            if asked[-1]["kind"] == "serial":
                serial(Wire(self), self.site.typed)
            else:
                screen(Wire(self), self.site.keys)
        except OSError:
            pass  # The page has closed it.

    def stream(self) -> None:
        """Sends changes until it is cut."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        mine: queue.Queue[bytes | None] = queue.Queue()
        with self.site.lock:
            self.site.streams.append(mine)
        try:
            self.wfile.write(b": hello\n\n")
            while (event := mine.get()) is not None:
                self.wfile.write(event)
        except OSError:
            pass  # The page has gone.
        finally:
            with self.site.lock:
                self.site.streams.remove(mine)


class Server(ThreadingHTTPServer):
    """Serves a site on a port of its own until it is closed."""

    daemon_threads = True

    def __init__(self, site: Site) -> None:
        """Begins to listen."""
        super().__init__(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""

"""Consoles of this host's guests for the page: WebSocket with TLS outside, the unix socket of one console inside.

websockify does the work. What it would decide by itself is decided here: who may connect (a certificate of the CA for
consoles, with a name that is listed), what is connected (what a ticket says, and nothing that a request names), for how
long a request may take, and what is logged (no word of a request).

Each connection is a process of its own, which is a session once its ticket was good. ``wsproxy`` finds sessions by the
files in the folder ``sessions`` and ends one by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Python's isolated mode, which keeps the environment out, leaves this folder out too.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import console_tickets
from websockify.websocketproxy import ProxyRequestHandler, WebSocketProxy

# From the connection to a ticket that is good, in seconds.
PATIENCE = 15
# How often the other side is asked whether it still is there, in seconds.
HEARTBEAT = 30
_OLD = ssl.OP_NO_SSLv2 | ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1


def common_name(certificate: Any) -> str:
    """Returns the name in a client's certificate, as the ssl module describes one; empty if it has not exactly one."""
    found = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    return str(found[0]) if len(found) == 1 else ""


class Handler(ProxyRequestHandler):  # type: ignore[misc]
    """One connection."""

    ticket: console_tickets.Ticket

    def log_message(self, *_: Any) -> None:
        """Writes nothing: these lines would quote what a client has sent."""

    def validate_connection(self) -> None:
        """Decides whether a console is opened, and which."""
        try:
            name = common_name(self.request.getpeercert())
            if name not in self.server.clients:
                raise console_tickets.RefusedError(f"libvirt:console:clients does not name {name!a}")
            value = console_tickets.secret(self.headers.get_all("Sec-WebSocket-Protocol", []))
            self.ticket = console_tickets.claim(value, self.server.folder)
        except console_tickets.RefusedError as error:
            self.close_connection = True
            self.send_error(403)
            raise self.server.EClose(f"refused: {error}") from None
        self.server.unix_target = self.ticket.socket
        # It means nothing, so it is not kept.
        self.path = "/"

    def auth_connection(self) -> None:
        """Is part of the decision above, so that nobody uses up a ticket who may not connect."""

    def new_websocket_client(self) -> None:
        """Is a session, until one of both sides or an operator ends it."""
        signal.alarm(0)
        signal.signal(signal.SIGTERM, self._ended)
        with self._session() as number:
            self.server.msg("session %s of %s (%s) begins", number, self.ticket.guest, self.ticket.kind)
            try:
                super().new_websocket_client()
            finally:
                self.server.msg("session %s of %s (%s) has ended", number, self.ticket.guest, self.ticket.kind)

    def _ended(self, *_: Any) -> None:
        """Ends the session, and tells the browser so."""
        raise self.CClose(1001, "ended by the host")

    @contextlib.contextmanager
    def _session(self) -> Iterator[str]:
        """Keeps the file that tells of a session as long as it lasts."""
        # With a letter in front, so that nobody takes it for a number.
        number = f"c{secrets.token_hex(8)[1:]}"
        path = self.server.folder / "sessions" / number
        found = {
            "guest": self.ticket.guest,
            "uuid": self.ticket.uuid,
            "kind": self.ticket.kind,
            "pid": os.getpid(),
            "since": int(time.time()),
        }
        new = path.with_name(f".{number}")
        new.write_text(json.dumps(found), encoding="ascii")
        new.replace(path)
        try:
            yield number
        finally:
            path.unlink(missing_ok=True)


class Server(WebSocketProxy):  # type: ignore[misc]
    """The service.

    Args:
        folder: tickets and sessions.
        clients: names of the certificates that may connect.
        options: those of websockify.
    """

    def __init__(self, folder: Path, clients: list[str], **options: Any) -> None:
        self.folder = folder
        self.clients = frozenset(clients)
        super().__init__(Handler, **options)

    def do_handshake(self, sock: Any, address: Any) -> Any:
        """Serves one connection, in a process of its own that does not wait for ever."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, self._too_slow)
        signal.alarm(PATIENCE)
        return super().do_handshake(sock, address)

    def _too_slow(self, *_: Any) -> None:
        """Ends a connection without a request."""
        raise self.EClose(f"no ticket within {PATIENCE} s")


def main() -> None:
    """Serves until told to stop."""
    parser = argparse.ArgumentParser(description="Consoles of this host's guests, for the page.")
    parser.add_argument("--listen", required=True, help="the address")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--client", action="append", default=[], help="a name of a certificate that may connect")
    parser.add_argument("--pki", required=True, type=Path, help="folder of certificate, key and CA")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    Server(
        console_tickets.FOLDER,
        given.client,
        listen_host=given.listen,
        listen_port=given.port,
        cert=str(given.pki / "server-cert.pem"),
        key=str(given.pki / "server-key.pem"),
        cafile=str(given.pki / "ca-cert.pem"),
        ssl_only=True,
        verify_client=True,
        ssl_options=ssl.OP_ALL | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET | _OLD,
        tcp_keepidle=60,
        tcp_keepintvl=20,
        tcp_keepcnt=3,
        heartbeat=HEARTBEAT,
    ).start_server()


if __name__ == "__main__":
    main()

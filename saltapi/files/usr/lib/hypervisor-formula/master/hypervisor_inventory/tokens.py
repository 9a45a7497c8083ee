"""Whose login a token is: salt-api answers that on a unix socket, and one user of the system alone may ask.

The one who asks gets nothing that a token's holder could not find out, and no key of the master.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import re
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"[0-9a-f]{20,128}")
_LONGEST = 256
# Bytes of an answer: functions of 10,000 hosts, half a kilobyte each, and some more.
_LONGEST_ANSWER = 1 << 24
_PATIENCE = 5.0

Who = Callable[[str], "dict[str, Any] | None"]


def valid(token: Any) -> bool:
    """Says whether something has the form of a token."""
    return isinstance(token, str) and _TOKEN.fullmatch(token) is not None


class _Handler(socketserver.StreamRequestHandler):
    """Answers one question."""

    timeout = _PATIENCE
    server: _Server

    def handle(self) -> None:
        """Reads a token, and says whose it is."""
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] not in self.server.users():
            return
        with contextlib.suppress(OSError, ValueError):
            token = json.loads(self.rfile.readline(_LONGEST))
            found = self.server.who(token) if valid(token) else None
            self.wfile.write(json.dumps(found).encode() + b"\n")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on the socket."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, user: str, who: Who) -> None:
        super().__init__(path, _Handler)
        self._user, self.who = user, who

    def users(self) -> frozenset[int]:
        """Returns the numbers of the users that may ask."""
        try:
            return frozenset({0, pwd.getpwnam(self._user).pw_uid})
        except KeyError:
            return frozenset({0})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Notes what went wrong with one question."""
        del request, client_address
        log.error("a question for a token was not answered: %r", sys.exc_info()[1])


def serve(path: Path, user: str, who: Who) -> None:
    """Answers in threads for as long as the process lives.

    Args:
        path: of the socket, in a folder that this process may write to.
        user: who may ask, besides root.
        who: says whose login a token is; None for nobody's.
    """
    try:
        path.unlink(missing_ok=True)
        server = _Server(str(path), user, who)
        # Everybody may knock; who it is, the kernel says.
        os.chmod(path, 0o666)  # noqa: S103,PTH101 - see above
    except OSError as error:
        log.error("nobody can ask for tokens at %s: %s", path, error)
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()


async def ask(path: Path, token: str) -> dict[str, Any] | None:
    """Returns ``user`` and ``functions`` of a login; None for a token that is nobody's.

    Raises:
        OSError: salt-api does not answer.
    """
    if not valid(token):
        return None
    try:
        return await asyncio.wait_for(_ask(path, token), _PATIENCE)
    except (asyncio.TimeoutError, ValueError) as error:
        raise OSError(f"no answer for a token: {error}") from None


async def _ask(path: Path, token: str) -> dict[str, Any] | None:
    """Asks without a limit of time."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_LONGEST_ANSWER)
    try:
        writer.write(json.dumps(token).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except ConnectionError:
        line = b""
    finally:
        writer.close()
    if not line:
        raise OSError("the question for a token was not answered")
    found: dict[str, Any] | None = json.loads(line)
    return found

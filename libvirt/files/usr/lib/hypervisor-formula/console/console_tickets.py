"""Tickets for consoles: from the words of a WebSocket request to the unix socket of one guest's console.

A ticket is 32 random bytes that the browser made. Root has left a file that is named after their SHA-256; whoever
shows the bytes gets what the file says, once and for a short time. The bytes themselves are written nowhere.

This runs in the distribution's Python, as the service's own user.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path("/run/hypervisor-console")
# The subprotocol that the browser is answered with, and the beginning of the one that is the ticket.
CHOSEN = "binary"
PREFIX = "ticket."
_WORD = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_LARGEST = 4096
# Where a socket may be. QEMU's monitor lies beside its VNC socket, and whoever reaches that owns the guest.
_SOCKETS = {
    "vnc": re.compile(r"/(?:var/lib|run)/libvirt/qemu/domain-[0-9]+-[^/]+/vnc\.sock\Z"),
    "serial": re.compile(r"/run/hypervisor-console/serial/[0-9]+\.sock\Z"),
}


class RefusedError(Exception):
    """A request that opens no console; the text holds nothing of the ticket."""


class Ticket(NamedTuple):
    """What a ticket is good for."""

    guest: str
    uuid: str
    kind: str
    socket: str


def now() -> float:
    """Returns seconds since the boot; nobody sets this clock, and it counts while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def secret(headers: Iterable[str]) -> bytes:
    """Finds the bytes of the ticket among the subprotocols of a request.

    Args:
        headers: the values of all its headers Sec-WebSocket-Protocol.

    Raises:
        RefusedError: there is not exactly one ticket, or it is not written as it must be.
    """
    words = [word.strip(" \t") for value in headers for word in value.split(",")]
    found = [word for word in words if word.startswith(PREFIX)]
    if CHOSEN not in words or len(words) != 2 or len(found) != 1:
        raise RefusedError("not the two subprotocols of a console")
    text = found[0][len(PREFIX) :]
    if not _WORD.match(text):
        raise RefusedError("what stands for the ticket is none")
    try:
        value = base64.b64decode(f"{text}=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError("what stands for the ticket is none") from None
    # Two bits of the last letter mean nothing: one ticket has one spelling.
    if base64.urlsafe_b64encode(value).decode().rstrip("=") != text:
        raise RefusedError("what stands for the ticket is none")
    return value


def claim(value: bytes, folder: Path = FOLDER, owner: int = 0) -> Ticket:
    """Takes the file that root has left for a ticket, so that nobody else can.

    Args:
        value: the 32 bytes.
        folder: of the service.
        owner: who alone makes such files.

    Raises:
        RefusedError: there is none, it is too old, or it is not what root leaves.
    """
    taken = folder / "claimed" / secrets.token_hex(16)
    try:
        # Of two who try, one renames it.
        (folder / "tickets" / hashlib.sha256(value).hexdigest()).rename(taken)
    except OSError:
        raise RefusedError("there is no such ticket, or it was used") from None
    try:
        found = _read(taken, owner)
    finally:
        taken.unlink(missing_ok=True)
    until = found.get("until")
    # Written so that "not a number", which compares with nothing, is too old.
    if not isinstance(until, (int, float)) or isinstance(until, bool) or not now() <= until:
        raise RefusedError("the ticket is too old")
    ticket = Ticket(*(str(found.get(key, "")) for key in Ticket._fields))
    check(ticket)
    return ticket


def _read(path: Path, owner: int) -> dict[str, Any]:
    """Reads a file that was claimed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise RefusedError("the ticket cannot be read") from None
    with os.fdopen(descriptor, "rb") as handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner or status.st_size > _LARGEST:
            raise RefusedError("the ticket is not one that this host has made")
        try:
            found = json.loads(handle.read(_LARGEST))
        except ValueError:
            raise RefusedError("the ticket is not one that this host has made") from None
    return found if isinstance(found, dict) else {}


def check(ticket: Ticket) -> None:
    """Refuses a ticket whose socket is not a console of its kind.

    Raises:
        RefusedError: it is elsewhere, reached by a link, or no socket.
    """
    allowed = _SOCKETS.get(ticket.kind)
    if allowed is None or not allowed.match(ticket.socket) or ".." in ticket.socket:
        raise RefusedError("the ticket leads to no console")
    if os.path.realpath(ticket.socket) != ticket.socket:
        raise RefusedError("the console is not where it was")
    try:
        if stat.S_ISSOCK(os.lstat(ticket.socket).st_mode):
            return
    except OSError:
        pass
    raise RefusedError("the console is gone")

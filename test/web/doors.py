"""Consoles of the stand-in: WebSockets behind which a serial port echoes, or a screen of one colour takes keys."""

from __future__ import annotations

import base64
import hashlib
import struct
from http.server import BaseHTTPRequestHandler
from typing import Any

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
WIDTH, HEIGHT = 64, 48
# Bold red of the palette, a colour of its own, and plain text.
GREETING = b"\x1b[1;31mred\x1b[0m \x1b[38;2;10;200;30mgreen\x1b[0m plain\r\nlogin: "


class Wire:
    """A WebSocket from a browser, as a stream of bytes."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers the handshake with the protocol "binary"."""
        self.reader, self.writer = handler.rfile, handler.wfile
        key = handler.headers["Sec-WebSocket-Key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest()).decode()
        self.writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: binary\r\n\r\n".encode()
        )
        self.rest = b""

    def send(self, data: bytes) -> None:
        """Sends one message."""
        head = bytes([0x82, len(data)]) if len(data) < 126 else b"\x82\x7e" + struct.pack(">H", len(data))
        self.writer.write(head + data)

    def message(self) -> bytes:
        """Returns the next message of the browser.

        Raises:
            ConnectionError: it has closed.
        """
        head = self.reader.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            raise ConnectionError("closed")
        length = head[1] & 127
        if length == 126:
            (length,) = struct.unpack(">H", self.reader.read(2))
        mask = self.reader.read(4)
        return bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.reader.read(length)))

    def read(self, count: int) -> bytes:
        """Returns so many bytes, however many messages they are in."""
        while len(self.rest) < count:
            self.rest += self.message()
        found, self.rest = self.rest[:count], self.rest[count:]
        return found


def serial(wire: Wire, typed: list[bytes]) -> None:
    """Greets, and gives back what is typed."""
    wire.send(GREETING)
    while True:
        typed.append(wire.message())
        wire.send(typed[-1])


def screen(wire: Wire, keys: list[tuple[bool, int]]) -> None:
    """Speaks as much RFB 3.8 as noVNC needs to show a blue screen and to send keys."""
    wire.send(b"RFB 003.008\n")
    wire.read(12)
    wire.send(b"\x01\x01")  # one kind of security: none
    wire.read(1)
    wire.send(bytes(4))
    wire.read(1)
    pixels = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
    wire.send(struct.pack(">HH", WIDTH, HEIGHT) + pixels + struct.pack(">I", 4) + b"test")
    sent = False
    lengths: dict[int, Any] = {0: 19, 3: 9, 4: 7, 5: 5}
    while True:
        (kind,) = wire.read(1)
        if kind == 2:
            (count,) = struct.unpack(">xH", wire.read(3))
            wire.read(4 * count)
            continue
        body = wire.read(lengths[kind])
        if kind == 4:
            down, key = struct.unpack(">B2xI", body)
            keys.append((bool(down), key))
        elif kind == 3 and not sent:
            sent = True
            # One rectangle, raw; noVNC asks for red, green, blue from the lowest byte on.
            wire.send(struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0) + b"\x10\x20\xf0\x00" * (WIDTH * HEIGHT))

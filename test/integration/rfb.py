"""A browser's side of a console: WebSocket over TLS with a client certificate, and VNC's protocol (RFB) inside."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import ssl
import struct
from pathlib import Path
from typing import Self

PORT = 16515
TIMEOUT = 90
# X's names of the keys that the tests press.
ALT, PRINT = 0xFFE9, 0xFF61


class Ticket:
    """The 32 bytes that a browser makes."""

    def __init__(self, value: bytes | None = None) -> None:
        self.value = secrets.token_bytes(32) if value is None else value

    @property
    def digest(self) -> str:
        """What is told to Salt."""
        return hashlib.sha256(self.value).hexdigest()

    @property
    def word(self) -> str:
        """The subprotocol that is shown to the service."""
        return "ticket." + base64.urlsafe_b64encode(self.value).decode().rstrip("=")


class ClosedError(Exception):
    """The other side has ended the connection; ``code`` is that of WebSocket, 0 without one."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


def trust(folder: Path, name: str = "client") -> ssl.SSLContext:
    """Return how a client with certificate and key ``name`` in a folder meets a host; without them it has none."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if (folder / f"{name}.pem").exists():
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


class WebSocket:
    """One connection after its request was answered with 101.

    Attributes:
        status: what the request was answered with.
        protocol: the subprotocol that was chosen.
    """

    def __init__(self, context: ssl.SSLContext, address: str, name: str, protocols: str, path: str = "/") -> None:
        self.stream = context.wrap_socket(socket.socket(), server_hostname=name)
        self.stream.settimeout(TIMEOUT)
        self._buffer = self.data = b""
        try:
            self.stream.connect((address, PORT))
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            lines = [f"GET {path} HTTP/1.1", f"Host: {name}", "Upgrade: websocket", "Connection: Upgrade"]
            lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
            lines += [f"Sec-WebSocket-Protocol: {protocols}"] if protocols else []
            self.stream.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))
            while b"\r\n\r\n" not in self._buffer:
                self._more()
        except BaseException:
            self.stream.close()
            raise
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.status = int(head.split()[1])
        words = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
        found = {key.lower(): value.strip() for key, _, value in words}
        self.protocol = found.get("sec-websocket-protocol", "")
        if self.status != 101:
            self.stream.close()

    def _more(self) -> None:
        chunk = self.stream.recv(65536)
        if not chunk:
            raise ClosedError
        self._buffer += chunk

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def send(self, data: bytes, kind: int = 2) -> None:
        """Send one frame, masked as a client must."""
        size = len(data)
        head = bytes([0x80 | kind, 0x80 | size]) if size < 126 else struct.pack("!BBH", 0x80 | kind, 0x80 | 126, size)
        mask = secrets.token_bytes(4)
        self.stream.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def frame(self) -> bytes:
        """Return the data of the next frame that has any."""
        while True:
            first, second = self._take(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            data = self._take(size)
            if first & 0x0F == 8:
                raise ClosedError(struct.unpack("!H", data[:2])[0] if len(data) >= 2 else 0)
            if first & 0x0F == 9:
                self.send(data, 10)
            elif data:
                return data

    def read(self, count: int) -> bytes:
        """Return so many bytes of what arrives, whichever frames they come in."""
        while len(self.data) < count:
            self.data += self.frame()
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def until(self, wanted: bytes) -> bytes:
        """Return what arrives up to a text and with it."""
        while wanted not in self.data:
            self.data += self.frame()
        taken, _, self.data = self.data.partition(wanted)
        return taken + wanted

    def close(self) -> None:
        """End the connection without a word."""
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Screen:
    """A guest's screen by VNC, in the pixels of 32 bits that QEMU offers.

    Attributes:
        width: in pixels.
        height: in pixels.
        pixels: what was seen last.
    """

    def __init__(self, link: WebSocket) -> None:
        self.link = link
        version = link.read(12)
        assert version.startswith(b"RFB 003."), version
        link.send(b"RFB 003.008\n")
        kinds = link.read(link.read(1)[0])
        assert 1 in kinds, kinds
        link.send(b"\x01")
        assert link.read(4) == bytes(4)
        link.send(b"\x01")
        self.width, self.height = struct.unpack("!HH", link.read(4))
        assert link.read(16)[0] == 32
        link.read(struct.unpack("!I", link.read(4))[0])
        # Raw pixels, and to be told of another size.
        link.send(struct.pack("!BxHii", 2, 2, 0, -223))
        self.pixels = bytearray(self.width * self.height * 4)

    def look(self, *, changed: bool = False) -> bytes:
        """Return what is on the screen; with ``changed`` wait until it is something else than the last time."""
        before = bytes(self.pixels)
        while True:
            self.link.send(struct.pack("!BBHHHH", 3, changed, 0, 0, self.width, self.height))
            while self.link.read(1) != b"\x00":
                # A bell has no more bytes; nothing else comes without having been asked for.
                pass
            (count,) = struct.unpack("!xH", self.link.read(3))
            for _ in range(count):
                self._rectangle()
            if not changed or bytes(self.pixels) != before:
                return bytes(self.pixels)

    def _rectangle(self) -> None:
        left, top, width, height, encoding = struct.unpack("!HHHHi", self.link.read(12))
        if encoding == -223:
            self.width, self.height = width, height
            self.pixels = bytearray(width * height * 4)
            return
        assert encoding == 0, encoding
        row = width * 4
        data = self.link.read(row * height)
        for line in range(height):
            start = ((top + line) * self.width + left) * 4
            self.pixels[start : start + row] = data[line * row : (line + 1) * row]

    def press(self, *keys: int) -> None:
        """Press keys together, the first one longest."""
        for down, order in ((1, keys), (0, keys[::-1])):
            for key in order:
                self.link.send(struct.pack("!BBxxI", 4, down, key))

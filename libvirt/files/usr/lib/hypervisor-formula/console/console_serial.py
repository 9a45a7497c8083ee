"""Makes a guest's serial port, a pseudo terminal of QEMU's, a unix socket that several sessions can share.

systemd opens the terminal, so this program needs no right to open any, and hands it over as standard input. What the
guest writes goes to everybody who is connected; what they write goes to the guest. It ends with the terminal, and when
nobody has been connected for a while.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
import tty
from pathlib import Path

FOLDER = Path("/run/hypervisor-console/serial")
# Nobody connected, in seconds: longer than a ticket is good for.
PATIENCE = 60
# What a new session sees at once, and how much may wait for a side that does not read.
_BACKLOG = 16 * 1024
_WAITING = 256 * 1024


class Bridge:
    """A terminal and its sessions.

    Args:
        terminal: descriptor of the terminal.
        listener: where sessions come from.
        patience: seconds without a session after which it ends.
    """

    def __init__(self, terminal: int, listener: socket.socket, patience: float = PATIENCE) -> None:
        self.terminal = terminal
        self.listener = listener
        self.patience = patience
        self.backlog = bytearray()
        self.typed = bytearray()
        self.waiting: dict[socket.socket, bytearray] = {}
        self.selector = selectors.DefaultSelector()
        os.set_blocking(terminal, False)
        listener.setblocking(False)
        self.selector.register(terminal, selectors.EVENT_READ)
        self.selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Works until the terminal ends or nobody has been connected for a while."""
        deadline = time.monotonic() + self.patience
        while self.waiting or time.monotonic() < deadline:
            for key, events in self.selector.select(1):
                if key.fileobj is self.listener:
                    self._arrived()
                elif key.fd == self.terminal:
                    if not self._terminal(events):
                        return
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self.waiting:
                    self._session(key.fileobj, events)
            if self.waiting:
                deadline = time.monotonic() + self.patience

    def _arrived(self) -> None:
        """Takes a new session, which sees the last lines."""
        with contextlib.suppress(OSError):
            session, _ = self.listener.accept()
            session.setblocking(False)
            self.waiting[session] = bytearray(self.backlog)
            self.selector.register(session, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _terminal(self, events: int) -> bool:
        """Reads from the guest and writes to it; returns false when it has ended."""
        try:
            if events & selectors.EVENT_WRITE and self.typed:
                del self.typed[: os.write(self.terminal, self.typed)]
                if not self.typed:
                    self.selector.modify(self.terminal, selectors.EVENT_READ)
            if events & selectors.EVENT_READ:
                printed = os.read(self.terminal, 65536)
                if not printed:
                    return False
                self._printed(printed)
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _printed(self, printed: bytes) -> None:
        """Passes on what the guest has written; a session that does not read is ended."""
        self.backlog = (self.backlog + printed)[-_BACKLOG:]
        for session, waiting in list(self.waiting.items()):
            waiting.extend(printed)
            if len(waiting) > _WAITING:
                self._left(session)
            else:
                self.selector.modify(session, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _session(self, session: socket.socket, events: int) -> None:
        """Writes to a session and reads from it; what a guest does not read is lost beyond a limit."""
        waiting = self.waiting[session]
        try:
            if events & selectors.EVENT_WRITE:
                del waiting[: session.send(waiting)]
                if not waiting:
                    self.selector.modify(session, selectors.EVENT_READ)
            if events & selectors.EVENT_READ:
                typed = session.recv(65536)
                if not typed:
                    self._left(session)
                elif len(self.typed) < _WAITING:
                    self.typed += typed
                    self.selector.modify(self.terminal, selectors.EVENT_READ | selectors.EVENT_WRITE)
        except BlockingIOError:
            pass
        except OSError:
            self._left(session)

    def _left(self, session: socket.socket) -> None:
        """Forgets a session."""
        self.selector.unregister(session)
        del self.waiting[session]
        session.close()


def ready() -> None:
    """Tells systemd that sessions may come."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)


def main() -> None:
    """Serves the terminal at standard input; the argument is its number, which names the socket."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("the number of a terminal is needed")
    if not os.isatty(0):
        sys.exit("standard input is no terminal")
    tty.setraw(0)
    path = FOLDER / f"{sys.argv[1]}.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        ready()
        try:
            Bridge(0, listener).run()
        finally:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

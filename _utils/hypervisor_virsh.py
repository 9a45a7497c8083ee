"""A virsh that stays connected: many questions to one libvirt daemon for the price of one connection.

A question to a connected virsh takes a fraction of a millisecond, starting a virsh 20 to 40 ms, and a new
connection to another host a TLS handshake more. Words are quoted for virsh's own command line; a word with
a control character, which could end the line, is refused.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import subprocess
import time
from typing import Any

from salt.exceptions import CommandExecutionError

LOCAL = "qemu:///system"
TIMEOUT = 60.0
# What virsh says without telling anything: that it failed, and that it could not keep a history.
_NO_WORDS = ("failed to connect to the hypervisor", "Failed to create '/dev/null")


def quoted(word: str) -> str:
    """Quotes a word for virsh's command line.

    Raises:
        CommandExecutionError: it has a control character, which no quoting can hold.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in word):
        raise CommandExecutionError("a control character cannot stand in a command for virsh")
    return "'" + word.replace("'", "'\\''") + "'"


class Session:
    """One virsh and its connection; a context manager that ends it.

    Attributes:
        uri: the libvirt daemon it is connected to.
    """

    def __init__(self, uri: str = LOCAL) -> None:
        """Starts virsh and does not wait for its connection: the first question does.

        Raises:
            CommandExecutionError: there is no virsh.
        """
        if shutil.which("virsh") is None:
            raise CommandExecutionError("virsh is not installed")
        self.uri = uri
        self._buffer = b""
        self._errors = b""
        self._end = b""
        # virsh would put our questions into the history of root's own: its folder for that cannot be made.
        # A session of its own: Ctrl-C at salt-call must not end virsh before a migration is called off.
        self._process = subprocess.Popen(
            ["virsh", "--quiet", "--connect", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", "XDG_CACHE_HOME": "/dev/null", "TERM": "dumb"},
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None  # noqa: S101 - they are pipes, see above
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)

    def __enter__(self) -> Session:  # noqa: PYI034 - typing.Self is younger than the oldest Salt's Python
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends virsh."""
        self.close()

    def close(self) -> None:
        """Ends virsh; a command that still runs is given no time to end."""
        busy = bool(self._end)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        self._selector.close()
        try:
            self._process.wait(0.01 if busy else 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, *words: str, timeout: float = TIMEOUT) -> str:
        """Runs a command and returns what it printed.

        Args:
            words: the command and its arguments.
            timeout: seconds until it counts as lost; then the session is of no more use.

        Raises:
            CommandExecutionError: there is no connection, or the command failed, with virsh's own words.
        """
        self.begin(*words)
        answer = self.answer(timeout)
        if answer is None:
            raise CommandExecutionError(f"virsh {words[0]} ({self.uri}) did not end within {timeout:.0f} s")
        return answer

    def attempt(self, *words: str, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Runs a command as :meth:`ask`; returns what it printed and, instead of raising, why it failed."""
        try:
            return self.ask(*words, timeout=timeout), ""
        except CommandExecutionError as error:
            return "", str(error)

    def begin(self, *words: str) -> None:
        """Sends a command without waiting for its end; :meth:`answer` gets that."""
        first, last = secrets.token_hex(8), secrets.token_hex(8)
        self._label = words[0]
        line = " ".join([words[0], *map(quoted, words[1:])])
        self._start, self._end = f"<{first}".encode(), f">{last}".encode()
        # In two parts, so that virsh's echo of the line is not taken for the mark. The last mark stands on a line of
        # its own, so that it comes too when this virsh does not know the command.
        marks = [f"echo '{mark[:8]}''{mark[8:]}'" for mark in (f"<{first}", f"<{last}", f">{last}")]
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self._process.stdin.write(f"{marks[0]}; {line}; {marks[1]}\n{marks[2]}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            # It could not connect; the answer says why.
            return

    def answer(self, timeout: float) -> str | None:
        """Waits for the end of what was begun.

        Args:
            timeout: seconds to wait.

        Returns:
            What the command printed, or None if it has not ended by then.

        Raises:
            CommandExecutionError: it failed.
        """
        deadline = time.monotonic() + timeout
        while self._end not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 and timeout > 0:
                return None
            alive = self._read(max(left, 0.0))
            if not alive:
                raise CommandExecutionError(self._failure() or f"virsh ended ({self.uri})")
            if timeout <= 0 and self._end not in self._buffer:
                return None
        printed, _, self._buffer = self._buffer.partition(self._end)
        printed = printed.partition(self._start)[2].partition(b"<" + self._end[1:])[0]
        self._end = b""
        self._read(0.0)
        failure = self._failure()
        if failure:
            raise CommandExecutionError(failure)
        return printed.decode("utf-8", "replace").strip("\n")

    def _read(self, timeout: float) -> bool:
        """Takes what virsh has written by now; returns whether it still runs."""
        alive = True
        for key, _ in self._selector.select(timeout):
            chunk = os.read(key.fd, 1 << 16)
            if key.fileobj is self._process.stdout:
                self._buffer += chunk
                alive = alive and bool(chunk)
            else:
                self._errors += chunk
                if not chunk:
                    self._selector.unregister(key.fileobj)
        if not alive:
            # Its last words may still be on their way.
            self._process.wait()
            stderr: Any = self._process.stderr
            self._errors += stderr.read() or b""
        return alive

    def _failure(self) -> str:
        """Returns and forgets what virsh said of a failure."""
        text = self._errors.decode("utf-8", "replace")
        self._errors = b""
        lines = [line.removeprefix("error: ").strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith(_NO_WORDS)]
        return f"virsh {self._label}: {'; '.join(lines)}" if lines else ""


def session(uri: str = LOCAL) -> Session:
    """Starts a virsh that stays connected, see :class:`Session`."""
    return Session(uri)

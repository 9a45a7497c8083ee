"""QEMU's control socket (QMP): one command, one answer."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Self

from .proc import LabError


class Qmp:
    """A connection to QEMU's control socket; use it as a context manager."""

    def __init__(self, path: Path, timeout: float = 15) -> None:
        """Take the socket's path and how many seconds an answer may take."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)

    def __enter__(self) -> Self:
        """Connect and leave the negotiation mode.

        Raises:
            LabError: nobody answers there.
        """
        try:
            self._socket.connect(str(self.path))
            self._stream = self._socket.makefile("rw", encoding="utf-8")
            self._read()
        except OSError as error:
            self._socket.close()
            raise LabError(f"QEMU does not answer on {self.path}: {error.strerror or error}") from None
        self.execute("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Send a command and return its result; events in between are skipped.

        Raises:
            LabError: QEMU refused it, closed the connection, or took too long.
        """
        try:
            self._stream.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
            self._stream.flush()
            while True:
                answer = self._read()
                if "error" in answer:
                    raise LabError(f"QEMU refused {command}: {answer['error'].get('desc', answer['error'])}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise LabError(f"QEMU does not answer to {command}: {error.strerror or error}") from None

    def _read(self) -> dict[str, Any]:
        """Return the next message."""
        line = self._stream.readline()
        if not line:
            raise LabError(f"QEMU closed the connection on {self.path}")
        return dict(json.loads(line))

"""Operators' jobs, from the trail that the door for them writes: no event has a part in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Returns = Callable[[str], Mapping[str, Any]]

_MOST = 500  # jobs that are kept
_MOST_REASONS = 64
_LONGEST = 8192  # characters of a comment
_TRACE = re.compile(r"^Traceback \(most recent call last\):", re.MULTILINE)
_TAIL = 4 * 1024 * 1024  # bytes at the end of the file that are read at first


class Jobs:
    """Follows the trail.

    Args:
        path: of the file. Rotation may rename it at any time.
        returns: what hosts have answered to a job, by minion id, as the master has it.
    """

    def __init__(self, path: Path, returns: Returns) -> None:
        self.path, self._returns = path, returns
        self._inode = 0
        self._offset = 0
        self._rest = b""
        self._asked: dict[str, dict[str, Any]] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._before = [path.with_name(f"{path.name}.1")]

    def look(self) -> dict[str, dict[str, Any] | None]:
        """Returns the jobs that have changed since the last look, by their Salt id; None for those that are old."""
        changed: dict[str, dict[str, Any] | None] = {}
        for line in [*self._rotated(), *self._lines()]:
            try:
                job = self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                # Half a line, of a host that lost its power.
                continue
            if job:
                changed[job] = self._jobs[job]
        while len(self._jobs) > _MOST:
            oldest = next(iter(self._jobs))
            del self._jobs[oldest]
            changed[oldest] = None
        while len(self._asked) > _MOST:
            del self._asked[next(iter(self._asked))]
        # A copy: what is handed out does not change with the next line.
        return {key: value and {**value, "outcomes": dict(value["outcomes"])} for key, value in changed.items()}

    def known(self) -> set[str]:
        """Returns the ids of the jobs that are kept."""
        return set(self._jobs)

    def _rotated(self) -> list[bytes]:
        """Returns, once, the last lines of the file that was rotated last."""
        if not self._before:
            return []
        try:
            with self._before.pop().open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - _TAIL))
                return handle.read().split(b"\n")
        except FileNotFoundError:
            return []

    def _lines(self) -> list[bytes]:
        """Returns the whole lines that are new."""
        try:
            handle = self.path.open("rb")
        except FileNotFoundError:
            return []
        with handle:
            status = os.fstat(handle.fileno())
            fresh = self._inode == 0
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._rest = status.st_ino, 0, b""
            if fresh and status.st_size > _TAIL:
                self._offset = status.st_size - _TAIL
            handle.seek(self._offset)
            new = handle.read()
            self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return lines

    def _take(self, row: dict[str, Any]) -> str:
        """Takes one line into account; returns the job that it changes, or nothing."""
        event = row["event"]
        if event == "request":
            self._asked[row["id"]] = row
        elif event == "started":
            asked = self._asked.get(row["id"], {})
            self._jobs[row["job"]] = {
                "jid": row["job"],
                "user": asked.get("user"),
                "function": asked.get("function"),
                "guest": asked.get("guest"),
                "kwarg": dict(asked.get("arguments", {})),
                "hosts": list(row["hosts"]),
                "started": row["time"],
                "outcomes": {},
            }
            return str(row["job"])
        elif event == "outcome" and row["job"] in self._jobs:
            outcome: dict[str, Any] = {"success": row["ok"] is True}
            outcome |= {"state": row["state"]} if "state" in row else {}
            outcome |= {"comment": row["why"]} if "why" in row else {}
            # The trail keeps no texts; the master's cache of jobs has them for a day.
            answer = self._returns(row["job"]).get(row["host"])
            self._jobs[row["job"]]["outcomes"][row["host"]] = outcome | told(answer, outcome["success"])
            return str(row["job"])
        return ""


def told(answer: Any, success: bool) -> dict[str, Any]:
    """Returns what of a host's answer is for the one who asked: why it failed, or whether a guest could move.

    Args:
        answer: as the master's cache of jobs has it.
        success: whether the job has succeeded.
    """
    value = answer.get("return") if isinstance(answer, Mapping) else None
    if isinstance(value, str):
        return {} if success else {"comment": _TRACE.split(value[:_LONGEST])[0].removeprefix("ERROR: ").strip()}
    if not isinstance(value, Mapping) or not isinstance(value.get("possible"), bool):
        return {}
    reasons = [
        {key: str(one.get(key, ""))[:1000] for key in ("check", "text")}
        for one in list(value.get("reasons") or ())[:_MOST_REASONS]
        if isinstance(one, Mapping)
    ]
    return {"possible": value["possible"], "reasons": reasons}

"""Operators' jobs, from the trail that the door for them writes: no event has a part in it.

A job of the master's runner has no hosts of Salt's. What it does with which of them, and how it ends, says its own file
(``acts``); it may be read before the trail's line is there, or without one, if it was root who called it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypervisor_inventory import acts

Returns = Callable[[str], Mapping[str, Any]]

_MOST = 500  # jobs that are kept, besides acts of the runner that are at work
_MOST_REASONS = 64
_LONGEST = 8192  # characters of a comment
_TRACE = re.compile(r"^Traceback \(most recent call last\):", re.MULTILINE)
_TAIL = 4 * 1024 * 1024  # bytes at the end of the file that are read at first
_RUNNER = "fleet."


class Jobs:
    """Follows the trail.

    Args:
        path: of the file. Rotation may rename it at any time.
        returns: what hosts have answered to a job, by minion id, as the master has it.
        runner: the folder in which the runner writes down what it does.
    """

    def __init__(self, path: Path, returns: Returns, runner: Path) -> None:
        self.path, self._returns = path, returns
        self._acts = acts.Acts(runner)
        # What acts have told of themselves that the trail has not told yet.
        self._told: dict[str, acts.Act] = {}
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
        for job, act in self._acts.look().items():
            self._of_runner(job, act)
            changed[job] = self._jobs[job]
        if len(self._jobs) > _MOST:
            changed.update(self._dropped())
        while len(self._asked) > _MOST:
            del self._asked[next(iter(self._asked))]
        # A copy: what is handed out does not change with the next line.
        return {key: value and {**value, "outcomes": dict(value["outcomes"])} for key, value in changed.items()}

    def _dropped(self) -> dict[str, None]:
        """Drops the oldest jobs, but none of the runner's that is at work; returns them."""
        working = self._acts.at_work()
        over = [job for job in self._jobs if job not in working][: len(self._jobs) - _MOST]
        for job in over:
            del self._jobs[job]
            self._told.pop(job, None)
        return dict.fromkeys(over)

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
            if str(asked.get("function")).startswith(_RUNNER):
                self._started(row["job"])
            return str(row["job"])
        elif event == "outcome" and "progress" in self._jobs.get(row["job"], ()):
            self._ended(row)
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

    def _started(self, job: str) -> None:
        """Gives a job of the runner what is known of it besides: of its hosts those at least that were named."""
        named = self._jobs[job]["kwarg"]
        hosts = sorted({str(named[key]) for key in ("host", "target") if named.get(key)})
        self._jobs[job] |= {"hosts": hosts, "scope": [], "progress": [], "outcome": None}
        if job in self._told:
            self._of_runner(job, self._told.pop(job))

    def _of_runner(self, job: str, act: acts.Act) -> None:
        """Takes into account what an act has told of itself."""
        if job not in self._jobs:
            self._jobs[job] = {"jid": job, **act.begun, "hosts": [], "outcomes": {}, "outcome": None}
            self._told[job] = act
        known, found = self._jobs[job], act.record()
        known |= {
            "hosts": sorted({*known["hosts"], *found["hosts"]}),
            "scope": found["scope"],
            "progress": found["progress"],
            "outcome": found["outcome"] or known["outcome"],
        }

    def _ended(self, row: Mapping[str, Any]) -> None:
        """Takes the trail's outcome of a job of the runner, if that has not told its own."""
        job = self._jobs[row["job"]]
        if job["outcome"] is None:
            answer = self._returns(row["job"]).get(row["host"])
            value = answer.get("return") if isinstance(answer, Mapping) else None
            value = value.get("return") if isinstance(value, Mapping) else value
            said = value.get("text") if isinstance(value, Mapping) else value
            comment = _TRACE.split(acts.text(said) or str(row.get("why", "")))[0].strip()
            job["outcome"] = {"success": row["ok"] is True, "comment": comment}


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

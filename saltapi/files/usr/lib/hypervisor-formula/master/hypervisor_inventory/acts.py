"""What the runner ``fleet`` does, from the files that it writes: no event has a part in it.

``_utils/fleet_diary.py`` writes them, where the master's own user alone can. A file that has no end and that nobody
holds any more is that of an act which was cut short. Texts in it come from hosts and are taken for hostile.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypervisor_inventory import messages

_MOST = 500  # guests of one act that are told
_LONGEST = 8192  # characters of a text
_PATIENCE = 2.0  # seconds without news, after which it is seen whether the process is there
# All guests of an act are told at once, and each makes steps: up to so many at every step, of more so many in a second.
_FEW, _ROWS = 20, 200
_CUT = "the runner was ended in the midst of it; see where the guests are, and repeat it"


def text(value: Any, longest: int = _LONGEST) -> str:
    """Returns a text of bounded length that can harm nobody's terminal; nothing for anything else."""
    lines = value[:longest].split("\n") if isinstance(value, str) else []
    return "\n".join(messages.clean(line, longest) for line in lines)


def _host(value: Any) -> str:
    """Returns a minion id, or nothing for anything else."""
    return value if isinstance(value, str) and messages.MINION.fullmatch(value) else ""


class Act:
    """One job of the runner, as far as it is written down.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ended = False
        self._offset = 0
        self._rest = b""
        self._read = time.monotonic()
        self._told: float | None = None
        self._news = False
        self._guests: dict[str, dict[str, Any]] = {}
        self._hosts: set[str] = set()
        self._scope: list[str] = []
        self.begun: dict[str, Any] = {}
        self.outcome: dict[str, Any] | None = None

    def look(self, size: int, now: float) -> bool:
        """Reads what is new; returns whether there is something to be told, of many guests not at each step."""
        self._news |= self._news_of(size, now)
        pause = max(0, len(self._guests) - _FEW) / _ROWS
        if not self._news or not (self.ended or self._told is None or now >= self._told + pause):
            return False
        self._news, self._told = False, now
        return True

    def _news_of(self, size: int, now: float) -> bool:
        """Reads what is new; returns whether anything is."""
        if size <= self._offset:
            return self._cut_short(now)
        with self.path.open("rb") as handle:
            handle.seek(self._offset)
            new = handle.read()
        self._offset += len(new)
        self._read = now
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                # Half a line, of a host that lost its power.
                continue
        return bool(lines)

    def _cut_short(self, now: float) -> bool:
        """Finds out whether the process that writes is gone, and ends the act if it is."""
        if now < self._read + _PATIENCE:
            return False
        self._read = now
        with self.path.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return False
            if os.fstat(handle.fileno()).st_size > self._offset:
                return False
        self.ended, self.outcome = True, {"success": False, "comment": _CUT}
        return True

    def _take(self, line: Mapping[str, Any]) -> None:
        """Takes one line into account."""
        step = text(line["step"], 32)
        self._hosts.update(host for key in ("host", "from", "to") if (host := _host(line.get(key))))
        if step == "begin":
            given = line.get("scope")
            self._scope = sorted({name for one in given if (name := _host(one))}) if isinstance(given, list) else []
            self.begun = {
                "user": text(line["user"], 256),
                "function": text(line["function"], 64),
                "guest": text(line.get("guest"), 256) or None,
                "kwarg": {
                    **({"host": host} if (host := _host(line.get("host"))) else {}),
                    **({"test": True} if line.get("test") is True else {}),
                },
                "started": text(line["at"], 64),
            }
        elif step == "end":
            self.ended = True
            self.outcome = {"success": line["ok"] is True, "comment": text(line.get("text"))}
        elif name := text(line.get("guest"), 256):
            self._step(name, step, line)

    def _step(self, name: str, step: str, line: Mapping[str, Any]) -> None:
        """Takes what has become of one guest into account."""
        if name not in self._guests and len(self._guests) >= _MOST:
            return
        said = text(line.get("text") or line.get("why"))
        row: dict[str, Any] = {"guest": name, "step": step, "at": text(line["at"], 64), "text": said}
        row |= {key: host for key in ("from", "to", "host") if (host := _host(line.get(key)))}
        against = line.get("against")
        if isinstance(against, Mapping) and against:
            named = {_host(host): reasons for host, reasons in against.items() if _host(host)}
            row["against"] = {host: [text(one, 1000) for one in list(reasons)[:64]] for host, reasons in named.items()}
        self._guests[name] = row

    def record(self) -> dict[str, Any]:
        """Returns what the inventory's record of the job has of it.

        Returns:
            ``hosts`` with which something was done, ``scope``, those that a sentence in it may name, ``progress`` and
            ``outcome``.
        """
        found = {"hosts": sorted(self._hosts), "scope": self._scope}
        return found | {"progress": list(self._guests.values()), "outcome": self.outcome}


class Acts:
    """Follows the folder in which acts are written down.

    Args:
        folder: where the files are.
        clock: seconds of a steady clock.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._acts: dict[str, Act] = {}

    def look(self) -> dict[str, Act]:
        """Returns the acts that have changed since the last look, by their Salt id."""
        found: dict[str, Act] = {}
        sizes = self._sizes()
        self._acts = {name: act for name, act in self._acts.items() if name in sizes}
        now = self._clock()
        for name, size in sizes.items():
            act = self._acts.setdefault(name, Act(self._folder / name))
            try:
                if not act.ended and act.look(size, now) and act.begun:
                    found[name.removesuffix(".jsonl")] = act
            except OSError:
                # Removed in between, or another user's.
                continue
        return found

    def at_work(self) -> set[str]:
        """Returns the Salt ids of acts that have not ended."""
        return {name.removesuffix(".jsonl") for name, act in self._acts.items() if act.begun and not act.ended}

    def _sizes(self) -> dict[str, int]:
        """Returns the files that there are, the oldest first."""
        try:
            with os.scandir(self._folder) as entries:
                found = {one.name: one.stat(follow_symlinks=False).st_size for one in entries if one.is_file()}
        except OSError:
            return {}
        return {name: found[name] for name in sorted(found) if name.endswith(".jsonl")}


class Evacuated:
    """Knows which hosts are evacuated.

    Args:
        folder: where their records are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[str, Record] = {}
        self.hosts: dict[str, dict[str, Any]] = {}

    def look(self) -> set[str]:
        """Returns the hosts of which something else is known than before."""
        paths = sorted(self._folder.glob("*.json"))
        self._records = {path.stem: self._records.get(path.stem) or Record(path) for path in paths}
        before, self.hosts = self.hosts, {name: told for name, one in self._records.items() if (told := one.look())}
        return {name for name in before.keys() | self.hosts.keys() if before.get(name) != self.hosts.get(name)}


class Record:
    """What ``_utils/fleet_store.py`` keeps of one evacuated host: a line with all of it, and steps that are appended.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = (0, 0, 0)
        self._head = self._rest = b""
        self._offset = 0
        self._begun: dict[str, str] = {}
        self._guests: set[str] = set()

    def look(self) -> dict[str, Any]:
        """Returns what is told of it: ``since``, ``user`` and how many ``guests``; nothing if it cannot be read."""
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp != self._stamp:
                self._read()
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._begun = {}
        return {**self._begun, "guests": len(self._guests)} if self._begun else {}

    def _read(self) -> None:
        """Reads what is new: the steps since the last look, or all of a record that another act has begun."""
        with self._path.open("rb") as handle:
            head, inode = handle.readline(), os.fstat(handle.fileno()).st_ino
            if head != self._head or inode != self._stamp[0] or not self._begun:
                row = json.loads(head)
                self._guests, self._head, self._offset, self._rest = set(row["guests"]), head, len(head), b""
                self._begun = {"since": text(row["since"], 64), "user": text(row["user"], 256)}
            handle.seek(self._offset)
            new = handle.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            try:
                step = json.loads(line)
                (self._guests.add if "guest" in step else self._guests.discard)(step["uuid"])
            except (ValueError, KeyError, TypeError):
                # Half a step, of a master that lost its power.
                continue

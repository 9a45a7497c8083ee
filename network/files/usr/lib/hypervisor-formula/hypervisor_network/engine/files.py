"""The files of a change: how they were and how they shall be, and the exchange of the one for the other."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .host import NEW, OLD, LocalHost


@dataclass(frozen=True)
class Entry:
    """A file as it is or shall be.

    Attributes:
        content: what it holds; the target of a symbolic link.
        mode: its permissions.
        uid: its user.
        gid: its group.
        link: whether it is a symbolic link.
    """

    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: bool = False

    def stored(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {**vars(self), "content": base64.b64encode(self.content).decode("ascii")}

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Entry:
        """Reads what :meth:`stored` has written."""
        return cls(**{**stored, "content": base64.b64decode(stored["content"])})


Entries = dict[str, "Entry | None"]


def look(host: LocalHost, name: str) -> Entry | None:
    """Returns a file as it is; None if it is not there.

    Raises:
        OSError: it cannot be read.
    """
    path = host.path(name)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Entry(os.fsencode(path.readlink()), mode, status.st_uid, status.st_gid, link=True)
    return Entry(path.read_bytes(), mode, status.st_uid, status.st_gid)


def same(one: Entry | None, other: Entry | None) -> bool:
    """Says whether two files are equal; the permissions of a symbolic link mean nothing."""
    if one is None or other is None or not (one.link and other.link):
        return one == other
    return one.content == other.content


def stored(entries: Mapping[str, Entry | None]) -> dict[str, Any]:
    """Returns files as JSON."""
    return {name: None if entry is None else entry.stored() for name, entry in entries.items()}


def load(found: Mapping[str, Any]) -> Entries:
    """Reads what :func:`stored` has written."""
    return {name: None if entry is None else Entry.load(entry) for name, entry in found.items()}


def beside(name: str, ending: str) -> str:
    """Returns the name of a hidden file beside another, which no backend reads."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/.{base}{ending}"


def lay_out(host: LocalHost, before: Entries, after: Entries) -> None:
    """Writes both contents of each file beside it, so that neither way needs space on the disk any more.

    Raises:
        OSError: there is no space, or a folder cannot be written; :func:`clear` takes away what was written.
    """
    for ending, entries in ((OLD, before), (NEW, after)):
        for name, entry in entries.items():
            if entry is not None and not entry.link:
                host.write(beside(name, ending), entry.content, entry.mode, (entry.uid, entry.gid))


def exchange(host: LocalHost, wanted: Entries, ending: str) -> None:
    """Puts files in place, from what :func:`lay_out` has written where that is still there.

    Args:
        host: the host.
        wanted: the files as they shall be; None takes one away.
        ending: NEW on the way forth, OLD on the way back.

    Raises:
        OSError: a file cannot be written. All others have been put in place by then.
    """
    failed: OSError | None = None
    for name, entry in wanted.items():
        try:
            if not same(look(host, name), entry):
                _put(host, name, entry, beside(name, ending))
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _put(host: LocalHost, name: str, entry: Entry | None, laid_out: str) -> None:
    """Puts one file in place."""
    if entry is None:
        host.remove(name)
    elif entry.link:
        host.link(name, os.fsdecode(entry.content))
    elif same(look(host, laid_out), entry):
        host.move(laid_out, name)
    else:
        host.write(name, entry.content, entry.mode, (entry.uid, entry.gid))


def clear(host: LocalHost, names: Mapping[str, object]) -> None:
    """Removes what :func:`lay_out` has written; what cannot be removed does no harm."""
    for name in names:
        for ending in (OLD, NEW):
            try:
                host.remove(beside(name, ending))
            except OSError:
                continue

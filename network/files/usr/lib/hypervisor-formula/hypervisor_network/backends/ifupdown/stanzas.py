"""Reads /etc/network/interfaces and what it sources, and takes interfaces out of them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator

from hypervisor_network.backends.common import text_of
from hypervisor_network.backends.contract import BackendError, Host

from .render import FOLDER, PREFIX

MAIN = "/etc/network/interfaces"
# What begins a stanza or stands alone; any other line belongs to the stanza above it.
_SELECT = re.compile(r"(auto|allow-[A-Za-z0-9-]+|no-auto-down|no-scripts)$")
_ALONE = ("source", "source-directory", "rename")
_MOST_FILES = 500


def _sourced(text: str, folder: str, host: Host) -> Iterator[str]:
    """Returns the absolute paths that a file's source lines name."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in {"source", "source-directory"}:
            continue
        for word in words[1:]:
            place = word if word.startswith("/") else f"{folder}/{word}"
            root = host.path("/")
            found = sorted(root.glob(place.lstrip("/")))
            if words[0] == "source-directory":
                inside = [path for one in found if one.is_dir() for path in sorted(one.iterdir())]
                found = [path for path in inside if re.fullmatch(r"[a-zA-Z0-9_-]+", path.name)]
            yield from (f"/{path.relative_to(root)}" for path in found if path.is_file())


def files(host: Host) -> dict[str, str]:
    """Returns the text of the main file and of all that it sources, by absolute path, in their order.

    Raises:
        BackendError: one cannot be read.
    """
    found: dict[str, str] = {}
    todo = [MAIN] if host.path(MAIN).is_file() else []
    while todo and len(found) < _MOST_FILES:
        name = todo.pop(0)
        if name not in found:
            found[name] = text_of(host.path(name))
            todo = [*_sourced(found[name], name.rpartition("/")[0], host), *todo]
    return found


def is_own(name: str) -> bool:
    """Says whether a file is one of the formula's."""
    folder, _, base = name.rpartition("/")
    return folder == FOLDER and base.startswith(f"{PREFIX}-")


def reads_folder(host: Host) -> bool:
    """Says whether the main file sources the folder of the formula's files."""
    text = text_of(host.path(MAIN)) if host.path(MAIN).is_file() else ""
    probe = f"{FOLDER}/{PREFIX}-0-eth0"
    for line in text.splitlines():
        words = line.split()
        for word in words[1:]:
            place = word if word.startswith("/") else f"/etc/network/{word}"
            if words[0] == "source" and fnmatch.fnmatch(probe, place):
                return True
            if words[0] == "source-directory" and place.rstrip("/") == FOLDER:
                return True
    return False


def _logical(text: str) -> list[list[str]]:
    """Returns the lines of a file, each with those that a backslash continues."""
    found: list[list[str]] = []
    continued = False
    for line in text.splitlines(keepends=True):
        if continued:
            found[-1].append(line)
        else:
            found.append([line])
        # A comment is not continued.
        continued = line.rstrip("\n").endswith("\\") and not found[-1][0].lstrip().startswith("#")
    return found


def without(text: str, names: Collection[str], where: str) -> str:
    """Returns a file without stanzas and selections of some interfaces; every other line stays as it is.

    Args:
        text: the file.
        names: the interfaces.
        where: the file's path, for errors.

    Raises:
        BackendError: something speaks of an interface in a way that cannot be taken apart.
    """
    kept: list[str] = []
    dropping = False
    for lines in _logical(text):
        joined = "".join(line.rstrip("\n").rstrip("\\") if position < len(lines) - 1 else line.rstrip("\n")
                         for position, line in enumerate(lines))  # fmt: skip
        words = joined.split()
        if not words or words[0].startswith("#"):
            # A comment to the left belongs to what follows, an indented one to the stanza that it is in.
            if not (dropping and words and lines[0][:1].isspace()):
                kept += lines
            continue
        if words[0] in {"iface", "mapping", "template"} or words[0] in _ALONE or _SELECT.fullmatch(words[0]):
            dropping = words[0] == "iface" and len(words) > 1 and words[1] in names
            _refuse(words, names, where)
            if _SELECT.fullmatch(words[0]) and set(words[1:]) & set(names):
                left = [word for word in words[1:] if word not in names]
                lines = [" ".join([words[0], *left]) + "\n"] if left else []  # noqa: PLW2901 - the shortened line
        if not dropping:
            kept += lines
    return "".join(kept)


def _refuse(words: list[str], names: Collection[str], where: str) -> None:
    """Raises what cannot be taken apart: patterns, stanzas that inherit, and addresses under a name of their own."""
    rest = words[1:]
    if words[0] == "iface" or _SELECT.fullmatch(words[0]):
        for word in rest if words[0] != "iface" else rest[:1]:
            card, colon, _ = word.partition(":")
            if colon and card in names:
                raise BackendError(
                    f"{where}: {word} gives {card} a further address; take it out of there and declare that address"
                )
    if words[0] == "mapping":
        hit = [name for name in names if any(fnmatch.fnmatch(name, word) for word in rest)]
        if hit:
            raise BackendError(f"{where} maps {hit[0]} by '{' '.join(words)}'; take it out of there first")
    if words[0] == "iface" and "inherits" in rest:
        base = rest[rest.index("inherits") + 1 :][:1]
        if base and base[0] in names and rest[0] not in names:
            raise BackendError(f"{where}: {rest[0]} inherits from {base[0]}; give it lines of its own first")
    if (_SELECT.fullmatch(words[0]) or words[0] == "iface") and any("*" in word or "/" in word for word in rest[:1]):
        pattern = rest[0].lstrip("/").split("/")[0]
        hit = [name for name in names if fnmatch.fnmatch(name, pattern)]
        if hit:
            raise BackendError(f"{where}: '{' '.join(words)}' is for {hit[0]} too; name interfaces there")


def empty(text: str) -> bool:
    """Says whether a file has nothing but comments."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines())


def declared(host: Host) -> set[str]:
    """Returns the names of all interfaces that have a stanza.

    Raises:
        BackendError: a file cannot be read.
    """
    lines = (line.split() for text in files(host).values() for line in text.splitlines())
    return {words[1] for words in lines if len(words) > 1 and words[0] == "iface"}

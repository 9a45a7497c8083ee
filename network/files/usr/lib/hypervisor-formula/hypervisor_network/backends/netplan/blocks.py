"""Takes interfaces out of other people's netplan files, line by line, so that all else stays as it was written.

Only YAML in blocks is understood, which is what netplan's documentation, installers and cloud-init write.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hypervisor_network.backends.contract import BackendError

_SECTIONS = frozenset({"ethernets", "bridges", "bonds", "vlans", "wifis", "tunnels", "vrfs", "modems", "dummy-devices"})
_KEY = re.compile(r"""^(\s*)(?:"([^"]+)"|'([^']+)'|([^\s#'"\[\]{}][^:#]*?))\s*:(?:\s+(.*))?$""")
_SET_NAME = re.compile(r"set-name[\"']?\s*:\s*[\"']?([^\"',}\s]+)")
_NOT_BLOCKS = "this YAML is not written in blocks, so that nothing can be taken out of it safely"


@dataclass(frozen=True)
class Definition:
    """An interface in a file.

    Attributes:
        key: its id.
        first: its first line, counted from 0.
        end: the line after its last.
        below: keys and values one and two levels below, such as "match:macaddress".
    """

    key: str
    first: int
    end: int
    below: Mapping[str, str]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _blank(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#") or line.rstrip() == "---"


def _value(text: str | None) -> str:
    """Returns a scalar without quotes and comment."""
    bare = (text or "").split(" #")[0].strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] in "\"'" and bare[-1] == bare[0] else bare


def _children(lines: list[str], first: int, end: int, where: str) -> list[tuple[str, str, int, int]]:
    """Returns key, value, first line and end of each key directly below the line before ``first``.

    Raises:
        BackendError: this is not a mapping in blocks.
    """
    inside = [number for number in range(first, end) if not _blank(lines[number])]
    if not inside:
        return []
    level = _indent(lines[inside[0]])
    found: list[tuple[str, str, int, int]] = []
    for number in inside:
        # A list may stand as far to the left as its key.
        if _indent(lines[number]) > level or (found and lines[number].lstrip().startswith("-")):
            continue
        match = _KEY.match(lines[number].rstrip("\n"))
        if "\t" in lines[number] or match is None or _indent(lines[number]) < level:
            raise BackendError(f"{where}, line {number + 1}: {_NOT_BLOCKS}")
        found.append((match[2] or match[3] or match[4], _value(match[5]), number, end))
    ended = []
    for position, (key, value, begin, stop) in enumerate(found):
        last = found[position + 1][2] if position + 1 < len(found) else stop
        # Comments and empty lines at its end belong to what follows.
        while last > begin + 1 and _blank(lines[last - 1]):
            last -= 1
        ended.append((key, value, begin, last))
    return ended


def _flow(value: str) -> bool:
    return value[:1] in {"{", "[", "&", "*", "|", ">"} and value not in {"{}", "[]"}


def definitions(text: str, where: str) -> list[tuple[str, Definition]]:
    """Returns the interfaces of a file with the section that each is in.

    Raises:
        BackendError: the file is not written in blocks.
    """
    lines = text.splitlines(keepends=True)
    found = []
    for top, value, first, end in _children(lines, 0, len(lines), where):
        if top != "network":
            continue
        if _flow(value):
            raise BackendError(f"{where}: {_NOT_BLOCKS}")
        for section, inner, begin, stop in _children(lines, first + 1, end, where):
            if section not in _SECTIONS:
                continue
            if _flow(inner):
                raise BackendError(f"{where}, {section}: {_NOT_BLOCKS}")
            for key, flow, start, last in _children(lines, begin + 1, stop, where):
                found.append((section, Definition(key, start, last, _below(lines, start, last, flow, where))))
    return found


def _below(lines: list[str], first: int, end: int, flow: str, where: str) -> dict[str, str]:
    """Returns the keys below an interface, and those below its match."""
    if _flow(flow):
        # What it matches cannot be seen; as a whole it can be taken away all the same.
        return {"flow": flow}
    below: dict[str, str] = {}
    for key, value, begin, stop in _children(lines, first + 1, end, where):
        below[key] = value
        if key == "match":
            if _flow(value):
                found = re.findall(r"([a-z]+):\s*[\"']?([^\"',}]+)", value)
                below |= {f"match:{one}": text.strip() for one, text in found}
            else:
                below |= {f"match:{one}": text for one, text, *_ in _children(lines, begin + 1, stop, where)}
    return below


def meant(definition: Definition, macs: Mapping[str, str], names: Collection[str], where: str) -> str:
    """Returns which of these interfaces a definition is for; empty for none.

    Args:
        definition: the definition.
        macs: names of cards by their MAC addresses.
        names: the interfaces that may be meant.
        where: the file, for errors.

    Raises:
        BackendError: it is for one of them and for others.
    """
    below = definition.below
    if named := _SET_NAME.search(below.get("flow", "")):
        if named[1] in names:
            # Without its line the card would have another name from the next boot on.
            raise BackendError(f"{where}, {definition.key}: {_NOT_BLOCKS}")
        return ""
    if below.get("set-name"):
        return below["set-name"] if below["set-name"] in names else ""
    if "match:macaddress" in below:
        name = macs.get(below["match:macaddress"].lower(), "")
        return name if name in names else ""
    if "match:name" in below or "match:driver" in below or "match" in below:
        pattern = below.get("match:name", "*")
        hit = [name for name in names if fnmatch.fnmatch(name, pattern)]
        if hit and pattern not in names:
            raise BackendError(f"{where}: {definition.key} matches {hit[0]} and others; name the cards there")
        return hit[0] if hit else ""
    return definition.key if definition.key in names else ""


def without(text: str, gone: Collection[Definition]) -> str:
    """Returns a file without some definitions, and without sections that have no other."""
    lines = text.splitlines(keepends=True)
    drop = {number for one in gone for number in range(one.first, one.end)}
    for number, line in enumerate(lines):
        match = _KEY.match(line.rstrip("\n"))
        name = (match[2] or match[3] or match[4]) if match else ""
        if name in _SECTIONS and number not in drop:
            below = number + 1
            while below < len(lines) and (_blank(lines[below]) or _indent(lines[below]) > _indent(line)):
                below += 1
            inside = [one for one in range(number + 1, below) if not _blank(lines[one])]
            if inside and set(inside) <= drop:
                drop |= {number}
    return "".join(line for number, line in enumerate(lines) if number not in drop)

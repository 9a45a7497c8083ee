"""The configuration of multipath devices, written from typed keys and read by multipath before it counts.

The formula owns the file whole: what pillar does not name keeps the default that is compiled in.
multipathd reads its file when it starts and when it is told to. So the new one is put in place, read by
``multipath -t``, and put back if that complains; only then is a running multipathd told.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __states__: dict[str, Any] = {}

Value = bool | int | str
Settings = dict[str, Any]

HEADER = "# Written by Salt, which owns this file whole: change the pillar key kvm:multipath."
_TIMEOUT = 60  # seconds
_UNIT = "multipathd"
_KEY = re.compile(r"[a-z][a-z0-9_]*\Z")
# Sections in the order of multipath.conf(5), and what the parts of those that have some are called.
_SECTIONS = ("defaults", "blacklist", "blacklist_exceptions", "devices", "overrides", "multipaths")
_PARTS = {"devices": "device", "multipaths": "multipath"}


def emitted(value: object) -> str:
    """Returns the text of a value: yes or no, a number, or a string in quotes.

    Raises TypeError for any other type, ValueError for a string that no quotes can hold.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError("a value is a boolean, a whole number or a string")
    if '"' in value or not value.isprintable():
        raise ValueError("a quote or a line break cannot stand in multipath.conf")
    return f'"{value}"'


def _pairs(settings: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yields the lines of keys with a value or a list of values; a list repeats its key."""
    for key in sorted(settings):
        if not _KEY.match(key):
            raise ValueError(f"{key!r} is not a key of multipath.conf")
        values = settings[key] if isinstance(settings[key], list) else [settings[key]]
        for value in values:
            try:
                yield f"{indent}{key} {emitted(value)}"
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key}: {error}") from error


def _block(name: str, lines: Iterator[str], indent: str = "") -> Iterator[str]:
    """Yields a block with its braces."""
    yield f"{indent}{name} {{"
    yield from lines
    yield f"{indent}}}"


def _section(name: str, settings: Any) -> Iterator[str]:
    """Yields the lines within a section."""
    if name in _PARTS:
        for part in settings:
            yield from _block(_PARTS[name], _pairs(part, "        "), "    ")
        return
    single = {key: value for key, value in settings.items() if key != "devices"}
    yield from _pairs(single, "    ")
    for device in settings.get("devices", []):
        yield from _block("device", _pairs(device, "        "), "    ")


def render(settings: Mapping[str, Any]) -> str:
    """Returns the text of the whole file below a header.

    Args:
        settings: ``defaults`` and ``overrides`` with keys and values; ``blacklist`` and ``blacklist_exceptions``
            with lists, and ``devices`` of vendor and product; ``devices`` and ``multipaths`` as lists of mappings.

    Raises:
        ValueError: what multipath could not read back; the message names the section and the key.
    """
    if strange := sorted(set(settings) - set(_SECTIONS)):
        raise ValueError(f"there is no section {', '.join(strange)}; there are {', '.join(_SECTIONS)}")
    lines = [HEADER]
    for name in _SECTIONS:
        if name in settings:
            try:
                lines += _block(name, _section(name, settings[name]))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return "\n".join(lines) + "\n"


def complaints(path: str, output: str) -> list[str]:
    """Returns what multipath says of a file, each once and without the time."""
    lines = (line.partition(" | ")[2] or line for line in output.splitlines() if path in line)
    return list(dict.fromkeys(line.strip() for line in lines))


def _judged(path: str) -> list[str] | None:
    """Lets multipath read its configuration; returns its complaints, None if it is not installed."""
    if not salt.utils.path.which("multipath"):
        return None
    done = __salt__["cmd.run_all"](["multipath", "-t"], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True)
    found = complaints(path, done["stderr"] + "\n" + done["stdout"])
    if done["retcode"] != 0 and not found:
        found = [done["stderr"] or f"multipath -t ended with {done['retcode']}"]
    return found


def _put(name: str, text: str | None) -> dict[str, Any]:
    """Writes the file, or removes it for None; returns the result of the state that did."""
    if text is None:
        removed: dict[str, Any] = __states__["file.absent"](name)
        return removed
    written: dict[str, Any] = __states__["file.managed"](
        name, contents=text, user="root", group="root", mode="0644", makedirs=True
    )
    return written


def managed(name: str, settings: Settings | None = None) -> dict[str, Any]:
    """Makes sure that multipath is configured like this, and that a running multipathd knows.

    Args:
        name: path of the file.
        settings: the sections, see :func:`render`.

    Returns:
        A state result. A file that multipath complains of is put back to what it was, and multipathd
        is not told of it.
    """
    try:
        text = render(settings or {})
    except (AttributeError, TypeError, ValueError) as error:
        comment = f"{name} stays as it was: {error}."
        return {"name": name, "result": False, "changes": {}, "comment": comment}
    try:
        before: str | None = Path(name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = None
    ret = _put(name, text)
    if __opts__["test"] or not ret["changes"] or ret["result"] is False:
        return ret
    found = _judged(name)
    if found is None:
        return ret | {"comment": f"{name} was written and not checked: multipath is not installed (role storage)."}
    reason = f"multipath says: {'; '.join(found)}" if found else ""
    if not found and __salt__["service.status"](_UNIT) and not __salt__["service.reload"](_UNIT):
        reason = f"{_UNIT} could not be told to read it; see its journal"
    if reason:
        back = _put(name, before)
        if back["result"] is False:
            comment = f"{reason}; and {name} could not be put back: {back['comment']}"
            return ret | {"result": False, "comment": comment}
        return ret | {"result": False, "changes": {}, "comment": f"{name} stays as it was: {reason}."}
    return ret | {"comment": f"{name} was written; multipath reads it without a complaint."}

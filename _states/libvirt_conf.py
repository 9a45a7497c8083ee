"""Configuration files of libvirt's daemons and drivers, written from typed keys.

libvirt's files hold ``key = value`` lines. A value is a number, a quoted string or a list of quoted
strings; there is no boolean and no escape sequence. The formula owns such a file whole: what pillar
does not name keeps the default that is compiled into libvirt.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __context__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}
    __states__: dict[str, Any] = {}

_PENDING = "libvirt_conf.pending"  # the daemons' state foretells from it what would be restarted
Value = bool | int | str | list[str]

_KEY = re.compile(r"[a-z][a-z0-9_]*\Z")
_SECRET = re.compile(r"password|secret")
HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run."


def quoted(text: str) -> str:
    """Quote a string for libvirt's parser, which knows three kinds of quotes and no escapes.

    Takes the string; returns it with quotes. Raises ValueError where no quoting can hold it.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError("a control character or a line break cannot stand in a libvirt file")
    if '"' not in text:
        return f'"{text}"'
    if "'" not in text:
        return f"'{text}'"
    if '"""' not in text and not text.endswith('"'):
        return f'"""{text}"""'
    raise ValueError("this mixture of quotes cannot be written to a libvirt file")


def emitted(value: object) -> str:
    """Return the text of one value: a bool as 0 or 1, a number, a string, or a list of strings.

    Raises TypeError for any other type and ValueError for a string that cannot be quoted.
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[ " + ", ".join(_entry(item) for item in value) + " ]" if value else "[]"
    raise TypeError("a value is a boolean, a whole number, a string or a list of strings")


def _entry(value: object) -> str:
    """Return the text of an entry of a list, which can only be a string."""
    if not isinstance(value, str):
        raise TypeError("a list holds strings only")
    return quoted(value)


def render(settings: dict[str, Value]) -> str:
    """Return the text of a whole file with the given keys, sorted, below a header.

    Raises ValueError that names the key for whatever libvirt's parser would not read back.
    """
    lines = [HEADER]
    for key in sorted(settings):
        if not _KEY.match(key):
            raise ValueError(f"{key!r} is not a key that libvirt could read")
        try:
            lines.append(f"{key} = {emitted(settings[key])}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {error}") from error
    return "\n".join(lines) + "\n"


def settings_of(text: str) -> dict[str, str]:
    """Return a file's keys and the text of their values, of a long list the first line."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and _KEY.match(key.strip()):
            found[key.strip()] = value.strip()
    return found


def difference(before: str, after: str) -> dict[str, dict[str, str | None]]:
    """Compare the settings of two files: changes show these, not a thousand lines of comments.

    Takes both texts; returns the old and new value by key, without the values of secret keys.
    """
    old, new = settings_of(before), settings_of(after)
    return {
        key: {"old": "(hidden)", "new": "(hidden)"}
        if _SECRET.search(key)
        else {"old": old.get(key), "new": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def written_here(name: str) -> bool:
    """Say whether a file was written by this state: its first line says so."""
    try:
        with Path(name).open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == HEADER
    except OSError:
        return False


def flat(settings: dict[str, Any] | None) -> dict[str, Value]:
    """Return settings with those under "extra", which the schema does not know, beside the others."""
    known = dict(settings or {})
    return known | dict(known.pop("extra", None) or {})


def managed(
    name: str,
    settings: dict[str, Any] | None = None,
    user: str = "root",
    group: str = "root",
    mode: str = "0644",
) -> dict[str, Any]:
    """Make sure that a libvirt configuration file holds exactly these settings.

    Args:
        name: Path of the file.
        settings: Keys and their values, and more of them under ``extra``; an empty map leaves every
            compiled-in default.
        user: Owner and permissions.
        group: see above.
        mode: see above.

    Returns a state result. Nothing is written if one of the settings is invalid, and a file that
    holds a password is never shown in the changes.
    """
    try:
        text = render(flat(settings))
    except ValueError as error:
        return {
            "name": name,
            "result": False,
            "changes": {},
            "comment": f"{name} stays as it was: {error}.",
        }
    try:
        before = Path(name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = ""
    result: dict[str, Any] = __states__["file.managed"](
        name, contents=text, user=user, group=group, mode=mode, show_changes=False
    )
    if __opts__["test"] and {"diff", "newfile"} & set(result["changes"]):
        __context__.setdefault(_PENDING, set()).add(name)
    if "diff" in result["changes"]:
        del result["changes"]["diff"]
        result["changes"]["settings"] = difference(before, text) or "comments only"
    return result

"""Allow-lists for the arguments of the module ``hypervisor``, which anybody with a login at salt-api may send.

Nothing that came from outside reaches a command line, a file name or XML without one of these. A refusal
names the argument, shows the value in ASCII and at bounded length, and says what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import SaltInvocationError

# As libvirt_tools.is_name: no tool takes such a text for an option, a path or two words.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,127}\Z")
_MINION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")
# What Salt itself adds to the keyword arguments of a job: __pub_user, __pub_jid and so on.
_OF_SALT = re.compile(r"__pub_[a-z_]{1,40}\Z")
_SHOWN = 60


def shown(value: object) -> str:
    """Returns a value as it may stand in a message: ASCII, on one line, at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def nothing_else(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments that a function does not have; what Salt adds to a job is let through.

    Raises:
        SaltInvocationError: there is one; the message names it.
    """
    if args:
        raise SaltInvocationError(f"one argument too many: {shown(args[0])}")
    unknown = sorted(key for key in kwargs if not _OF_SALT.match(key))
    if unknown:
        raise SaltInvocationError(f"there is no argument {shown(unknown[0])}")


def without_salts_own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments without those that Salt adds to every job."""
    return {key: value for key, value in kwargs.items() if not _OF_SALT.match(key)}


def name(value: object, argument: str = "name") -> str:
    """Returns the name of a guest, or refuses what cannot be one on a command line.

    Raises:
        SaltInvocationError: it is no text or has characters that are not allowed.
    """
    if isinstance(value, str) and _NAME.match(value):
        return value
    raise SaltInvocationError(
        f"{argument}: {shown(value)} is not allowed: a name has at most 128 of the characters "
        "A-Z a-z 0-9 _ . + : @ - and begins with a letter, a digit or _"
    )


def minion(value: object, argument: str = "target") -> str:
    """Returns a minion id, or refuses what cannot be one.

    Raises:
        SaltInvocationError: it is no text or has characters that are not allowed.
    """
    if isinstance(value, str) and _MINION.match(value):
        return value
    raise SaltInvocationError(
        f"{argument}: {shown(value)} is not allowed: a minion id has at most 253 of the characters "
        "A-Z a-z 0-9 . _ - and begins with a letter or a digit"
    )


def flag(value: object, argument: str) -> bool:
    """Returns true or false, or refuses anything else, such as the text "yes".

    Raises:
        SaltInvocationError: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise SaltInvocationError(f"{argument}: {shown(value)} is not allowed: it is true or false")


def whole(value: object, argument: str, least: int, most: int) -> int:
    """Returns a whole number within limits, or refuses it.

    Raises:
        SaltInvocationError: it is no whole number, or outside the limits.
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise SaltInvocationError(f"{argument}: {shown(value)} is not allowed: it is a whole number from {least} to {most}")


def choice(value: object, argument: str, allowed: Sequence[str]) -> str:
    """Returns one of the allowed texts, or refuses it.

    Raises:
        SaltInvocationError: it is none of them.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise SaltInvocationError(f"{argument}: {shown(value)} is not allowed: it is one of {', '.join(allowed)}")

"""The change of a host's interfaces that is pending, or was made last: for a person who wants to decide on it.

At a console without Salt, `network-profile status`, `confirm` and `rollback` do the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

__salt__: dict[str, Any]
__utils__: dict[str, Any]

_COMMAND = "/usr/sbin/network-profile"


def _call(verb: str) -> dict[str, Any]:
    """Runs the installed command by the interpreter that it names itself."""
    path = Path(_COMMAND)
    if not path.exists():
        raise CommandExecutionError(f"{_COMMAND} is not here: nothing of network/ was ever applied")
    words = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#!").split()
    found: dict[str, Any] = __utils__["network_tool.call"](
        __salt__["cmd.run_all"], words[0], __utils__["network_tool.installed"](), [verb, "--json"]
    )
    if "error" in found:
        raise CommandExecutionError(found["error"])
    return found


def status() -> dict[str, Any]:
    """Says where the latest change stands.

    CLI example: ``salt hv1 network_profile.status``

    Returns:
        ``state`` (idle, staged, applying, applied, confirmed, rolling-back or rolled-back), ``pending``, ``id``,
        ``backend``, ``uplink``, ``reason``, ``seconds_left``, ``outage`` (seconds without the master), ``verified``
        (whether all is as it was after going back), ``differences`` and ``notes``.

    Raises:
        CommandExecutionError: nothing of network/ was ever applied here.
    """
    return _call("status")


def confirm() -> dict[str, Any]:
    """Keeps the pending change, whatever its checks say.

    CLI example: ``salt hv1 network_profile.confirm``

    Returns:
        What :func:`status` returns, afterwards, without ``seconds_left`` and ``at_work``.

    Raises:
        CommandExecutionError: nothing is pending.
    """
    return _call("confirm")


def rollback() -> dict[str, Any]:
    """Undoes the pending change, or else the one that was confirmed last.

    CLI example: ``salt hv1 network_profile.rollback``

    Returns:
        What :func:`status` returns, afterwards, without ``seconds_left`` and ``at_work``.

    Raises:
        CommandExecutionError: there is nothing to undo.
    """
    return _call("rollback")

"""Consoles of this host's guests in a browser: who may open one, which are open, and their end.

Offered to operators through salt-api like ``hypervisor``, with the same rules: every argument is taken for hostile, and
an error is one clear message. No ticket is an argument or a result: the browser makes 32 random bytes, sends their
SHA-256 here and shows the bytes themselves to the service ``hypervisor-console`` alone (docs/consoles.rst).
"""

from __future__ import annotations

import re
from typing import Any

from salt.exceptions import SaltInvocationError

__utils__: dict[str, Any]

__func_alias__ = {"list_": "list"}

# What the utility needs of others: the loader gives it no __utils__ of its own.
_SIBLINGS = (
    "cluster_guests.is_defined",
    "cluster_status.read",
    "cluster_tools.active",
    "cluster_tools.monitor",
    "hypervisor_cluster.member",
    "hypervisor_cluster.whereabouts",
    "hypervisor_guests.names",
    "hypervisor_guests.resolve",
    "hypervisor_records.read",
    "hypervisor_records.settle",
    "hypervisor_xml.consoles",
    "hypervisor_xml.listed",
    "libvirt_tools.run",
)
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_ID = re.compile(r"c[0-9a-f]{15}\Z")


def _check(kind: str, *arguments: Any) -> Any:
    """Checks one argument with ``hypervisor_checks``."""
    return __utils__[f"hypervisor_checks.{kind}"](*arguments)


def _digits(value: object, argument: str, allowed: re.Pattern[str], what: str) -> str:
    """Returns a text of hexadecimal digits, or refuses it without quoting it: it may be a ticket by mistake."""
    if isinstance(value, str) and allowed.match(value):
        return value
    raise SaltInvocationError(f"{argument}: this is not allowed: it is {what} of the digits 0-9 a-f")


def start(guest: Any = None, kind: Any = None, hash: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Opens a console of a running guest to the holder of one ticket, once, within 30 seconds.

    CLI example: ``salt hv1 wsproxy.start web vnc 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae``

    Args:
        guest: the guest.
        kind: "vnc", its screen, or "serial", its serial port.
        hash: the SHA-256 of the ticket, in hexadecimal digits.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns ``guest``, ``uuid``, ``kind`` and ``valid_seconds``.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", guest, "guest")
    which = _check("choice", kind, "kind", ("vnc", "serial"))
    digest = _digits(hash, "hash", _HASH, "64")
    utils = {name: __utils__[name] for name in _SIBLINGS}
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["console_door.start"](virsh, utils, checked, which, digest)
    return found


def list_(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Lists the consoles that are open on this host.

    CLI example: ``salt hv1 wsproxy.list``

    Returns:
        ``sessions``, a list of ``id``, ``guest``, ``uuid``, ``kind`` and ``since``, the oldest first.
    """
    _check("nothing_else", args, kwargs)
    return {"sessions": __utils__["console_door.sessions"]()}


def stop(id: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Ends a console that is open; the guest runs on.

    CLI example: ``salt hv1 wsproxy.stop cb1fca8e0c1de7a4``

    Args:
        id: of the session, as :func:`list_` says it.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns ``id``, ``guest``, ``uuid``, ``kind`` and ``since`` of the session that has ended.
    """
    _check("nothing_else", args, kwargs)
    number = _digits(id, "id", _ID, "c and 15")
    found: dict[str, Any] = __utils__["console_door.stop"](number)
    return found

"""What a login may see: the hosts on which one of its roles is good, and what is on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Functions = dict[str, list[str]]

# Where hosts stand in what became of a guest, and in the arguments of the runner.
_PLACES = ("from", "to", "host")
_NAMES = ("host", "target")


def functions(
    external: Mapping[str, Any], user: str, groups: Iterable[str], fleet: Mapping[str, Any] | None = None
) -> Functions:
    r"""Returns what somebody may call, by minion id.

    Args:
        external: Salt's ``external_auth`` of these formulas: by user, or by group with a "%" behind, lists of mappings
            from ``L@host,host`` to patterns such as ``^hypervisor\.start$``.
        user: who.
        groups: the groups of who.
        fleet: hosts of functions of the master's runner: ``users`` and ``groups``.
    """
    found: dict[str, set[str]] = {}
    groups, table = list(groups), fleet or {}
    for name in (user, *(f"{group}%" for group in groups)):
        for entry in external.get(name) or ():
            for hosts, patterns in entry.items():
                # The runner's functions, of which Salt knows no hosts.
                if hosts.startswith("@"):
                    continue
                names = {re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$")) for pattern in patterns}
                for host in hosts.removeprefix("L@").split(","):
                    found.setdefault(host, set()).update(names)
    given = [(table.get("users") or {}).get(user), *((table.get("groups") or {}).get(group) for group in groups)]
    for function, hosts in [row for one in given if one for row in one.items()]:
        for host in hosts:
            found.setdefault(host, set()).add(function)
    return {host: sorted(names) for host, names in sorted(found.items())}


def seen(
    kind: str, host: str, record: Mapping[str, Any], visible: frozenset[str], user: str = ""
) -> dict[str, Any] | None:
    """Returns what somebody may see of a record, None for nothing.

    Args:
        kind: such as "guests".
        host: whose it is.
        record: as the database has it.
        visible: the hosts that may be seen.
        user: who looks.
    """
    if kind != "jobs":
        return dict(record) if host in visible else None
    if "progress" in record:
        # Who started an act sees all of it: it used none but the hosts of that user.
        return _whole(record) if user and record["user"] == user else _act(record, visible)
    hosts = [one for one in record["hosts"] if one in visible]
    if not hosts:
        return None
    outcomes = {one: value for one, value in record["outcomes"].items() if one in visible}
    return {**record, "hosts": hosts, "outcomes": outcomes}


def _whole(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a job of the runner as it is served; which hosts it could name is of no use to anybody."""
    return {key: value for key, value in record.items() if key != "scope"}


def _act(record: Mapping[str, Any], visible: frozenset[str]) -> dict[str, Any] | None:
    """Returns what others may see of a job of the runner: what is about their hosts."""
    hosts = [one for one in record["hosts"] if one in visible]
    if not hosts:
        return None
    scope = record.get("scope")
    if scope and visible.issuperset([*scope, *record["hosts"]]):
        return _whole(record)
    found = {**_whole(record), "hosts": hosts}
    # Sentences and arguments may name hosts that are not theirs.
    found["kwarg"] = {key: value for key, value in record["kwarg"].items() if key not in _NAMES or value in visible}
    found["outcome"] = record["outcome"] and {"success": record["outcome"]["success"]}
    rows = [row for row in record["progress"] if any(row.get(key) in visible for key in _PLACES)]
    found["progress"] = [_row(row, visible) for row in rows]
    if record["guest"] and not rows:
        found["guest"] = None
    return found


def _row(row: Mapping[str, Any], visible: frozenset[str]) -> dict[str, Any]:
    """Returns what others may see of what became of one guest."""
    found = {key: value for key, value in row.items() if key not in _PLACES or value in visible}
    against = {host: reasons for host, reasons in row.get("against", {}).items() if host in visible}
    return found | {"text": "", "against": against}

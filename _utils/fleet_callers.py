"""Who may call a function of the runner ``fleet`` for which hosts: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Salt's names for itself: its own code, orchestration and the reactor, all set up by root.
_ITSELF = frozenset({"root", "UNKNOWN", "Reactor"})


def trusted(user: str, owner: str | None) -> bool:
    """Says whether a caller is whoever owns the master; nobody can log in at salt-api by such a name.

    Args:
        user: who called, as Salt names it.
        owner: the user that the master runs as.
    """
    return user in _ITSELF or user == owner or user.startswith("sudo_")


def hosts(user: str, groups: Iterable[str], function: str, table: Mapping[str, Any]) -> set[str]:
    """Returns the hosts that somebody may use with a function.

    Args:
        user: who.
        groups: of the user.
        function: such as fleet.migrate.
        table: ``users`` and ``groups``, each a mapping of names to functions with their hosts.
    """
    users, of_groups = table.get("users") or {}, table.get("groups") or {}
    given = [users.get(user) or {}, *(of_groups.get(group) or {} for group in groups)]
    return {host for one in given for host in one.get(function) or ()}

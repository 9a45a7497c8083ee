"""What a cluster of the old kind, with cman, cannot have of the pillar ``cluster``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MOST_LINKS = 2  # a node and its altname
_UNUSED = {
    "stonith": "fencing",
    "resources": "what runs",
    "groups": "what runs",
    "properties": "what holds for all",
    "resource_defaults": "what holds for all",
    "operation_defaults": "what holds for all",
}


def errors(configuration: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Judges what a cluster of the old kind cannot have.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there; none for ``stack: corosync``.
    """
    if configuration["stack"] != "cman" or not configuration["nodes"]:
        return []
    return [(f"cluster:{where}", text) for where, text in _errors(configuration)]


def _errors(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields them, without the formula's name."""
    nodes, cman = configuration["nodes"], configuration["cman"]
    if not cman["config_version"]:
        yield "cman:config_version", "missing; must be a number that grows with each change, the same on all nodes"
    links = max(len(spec["addresses"]) for spec in nodes.values())
    if links > _MOST_LINKS:
        yield "nodes", f"{links} addresses of a node are not allowed with stack: cman, which has two links at most"
    for key in ("auto_tie_breaker", "last_man_standing"):
        if configuration["quorum"].get(key):
            yield f"quorum:{key}", "not allowed with stack: cman, which does not know it"
    for key, what in _UNUSED.items():
        if configuration.get(key):
            yield key, f"not allowed with stack: cman: {what} is Pacemaker's of that time, set up there"
    for key, used in (("sbd:enabled", "enabled"), ("storage:lock_manager", "lock_manager")):
        if configuration[key.partition(":")[0]][used]:
            yield key, "not allowed with stack: cman, which has clvmd and fence devices of its own"

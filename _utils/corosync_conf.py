"""corosync.conf: its text from what pillar declares, and how a running corosync gets from what it has to that.

Pure functions of text and mappings; the state ``corosync`` reads and acts.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run."
# Sections by key; a text stands at the section's key, a mapping is a section, a list of mappings several of one name.
Tree = Mapping[str, Any]
_FLAGS = ("two_node", "wait_for_all", "auto_tie_breaker", "last_man_standing")
# By the option that they belong to, with corosync's defaults.
_OF_FLAGS = {
    "auto_tie_breaker_node": ("auto_tie_breaker", "lowest"),
    "last_man_standing_window": ("last_man_standing", "10000"),
}
# What votequorum reads when it starts only (votequorum_readconfig in its exec/votequorum.c), and what quorumtool calls
# those in force. A reload brings them into the map, and there alone.
_SAID = {
    "wait_for_all": "WaitForAll",
    "auto_tie_breaker": "AutoTieBreaker",
    "last_man_standing": "LastManStanding",
}
_AT_START = (*_SAID, *_OF_FLAGS)
# Where the map says with which of them votequorum has started, once a reload may have replaced them there. What is in
# the map ends with corosync, and no reload takes out a key of others.
_NOTED = "hypervisor.started"
_ATB_TYPES = {"1": "lowest", "2": "highest"}
_OF_LINKS = {
    "priority": "knet_link_priority",
    "port": "mcastport",
    "ping_interval": "knet_ping_interval",
    "ping_timeout": "knet_ping_timeout",
    "pong_count": "knet_pong_count",
}
# What corosync takes up when it starts alone (remove_ro_entries in its exec/cfg.c). Nodes of the old and of the new
# kind go on hearing each other, so one after the other can be restarted.
RESTART = ("totem.cluster_name",)
# What all nodes must have alike to hear each other at all. A reload of one node reloads all, each with its own file.
STOP = ("totem.version", "totem.transport", "totem.ip_version", "totem.crypto_cipher", "totem.crypto_hash")
_STOP_LAST = ("mcastport",)
# The sections that are ours, of all that a running corosync says.
_SECTIONS = ("totem.", "nodelist.", "quorum.", "logging.", "runtime.votequorum.", _NOTED)
_DEFAULTS = {f"quorum.{flag}": "0" for flag in _FLAGS}


class Plan(NamedTuple):
    """How a running corosync gets to what is declared.

    Attributes:
        reload: what ``corosync-cfgtool -R`` brings in, as key to old and new.
        restart: what needs a restart of each node, one after the other.
        stop: what needs corosync to be stopped on all nodes at once.
    """

    reload: dict[str, Any]
    restart: dict[str, Any]
    stop: dict[str, Any]


def tree(cluster: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sections of corosync.conf.

    Args:
        cluster: the configuration of cluster/: ``name``, ``links``, ``crypto``, ``token``, ``quorum``.
        nodes: those that are in it, by minion id.
    """
    ordered = sorted(nodes.items(), key=lambda item: item[1]["id"])
    links = len(ordered[0][1]["addresses"]) if ordered else 0
    totem: dict[str, Any] = {
        "version": 2,
        "cluster_name": cluster["name"],
        "transport": "knet",
        "crypto_cipher": cluster["crypto"]["cipher"],
        "crypto_hash": cluster["crypto"]["hash"],
        "token": cluster["token"],
    }
    if links > 1:
        # The link with the highest priority is used, the others stand by.
        totem["link_mode"] = "passive"
    interfaces = [_interface(number, cluster["links"].get(str(number), {})) for number in range(links)]
    totem["interface"] = [one for one in interfaces if len(one) > 1]
    return {
        "totem": totem,
        "nodelist": {"node": [_node(minion, spec) for minion, spec in ordered]},
        "quorum": _quorum(cluster["quorum"], dict(ordered)),
        "logging": {"to_logfile": "no", "to_stderr": "no", "to_syslog": "yes", "timestamp": "off"},
    }


def _interface(number: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section of one link."""
    return {"linknumber": number, **{key: spec[name] for name, key in _OF_LINKS.items() if name in spec}}


def _node(minion: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section of one node."""
    addresses = {f"ring{number}_addr": str(ipaddress.ip_address(one)) for number, one in enumerate(spec["addresses"])}
    return {"name": spec.get("name", minion), "nodeid": spec["id"], **addresses}


def _quorum(declared: Mapping[str, Any], nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the votes: two nodes need only one, but both of them when they start.

    wait_for_all is there only if it is declared. Without it votequorum lets it follow two_node, since corosync 3.0.4 at
    a reload too; with it, it would keep what it has started with.
    """
    found: dict[str, Any] = {"provider": "corosync_votequorum"}
    values = {"two_node": len(nodes) == 2} | {key: declared[key] for key in _FLAGS if key in declared}
    found |= {key: int(value) for key, value in values.items()}
    chosen = declared.get("auto_tie_breaker_node")
    if chosen:
        found["auto_tie_breaker_node"] = nodes[chosen]["id"] if chosen in nodes else chosen
    if "last_man_standing_window" in declared:
        found["last_man_standing_window"] = declared["last_man_standing_window"]
    return found


def emit(sections: Tree) -> str:
    """Returns the text of corosync.conf."""
    return "\n".join([HEADER, *_lines(sections, 0), ""])


def _lines(sections: Tree, depth: int) -> Iterator[str]:
    """Yields the lines of sections and keys."""
    indent = "    " * depth
    for key, value in sections.items():
        if isinstance(value, (Mapping, list)):
            for one in [value] if isinstance(value, Mapping) else value:
                yield f"{indent}{key} {{"
                yield from _lines(one, depth + 1)
                yield f"{indent}}}"
        else:
            yield f"{indent}{key}: {value}"


def flat(sections: Tree) -> dict[str, str]:
    """Returns sections as a running corosync names them: ``nodelist.node.0.name`` and the like.

    A link has its number there, ``totem.interface.0.knet_link_priority``, and a node its place in the list.
    """
    found: dict[str, str] = {}
    for section, keys in sections.items():
        for key, value in keys.items():
            if not isinstance(value, list):
                found[f"{section}.{key}"] = str(value)
                continue
            for place, one in enumerate(value):
                number = one.get("linknumber", place)
                found |= {
                    f"{section}.{key}.{number}.{name}": str(text) for name, text in one.items() if name != "linknumber"
                }
    return found


def parse(text: str) -> dict[str, str]:
    """Returns what ``corosync-cmapctl`` prints, ``key (type) = value``, of the sections that are ours."""
    found = {}
    for line in text.splitlines():
        name, mark, value = line.partition(" = ")
        key = name.split(" (")[0]
        if mark and key.startswith(_SECTIONS):
            found[key] = value
    return found


def nodes_of(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns the nodes of a flat configuration by their id: the place of one in the list means nothing."""
    places: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        if key.startswith("nodelist.node."):
            place, _, name = key.removeprefix("nodelist.node.").partition(".")
            places.setdefault(place, {})[name] = value
    return {spec["nodeid"]: spec for spec in places.values() if "nodeid" in spec}


def plan(wanted: Mapping[str, str], running: Mapping[str, str], flags: Collection[str] | None = None) -> Plan:
    """Compares what is declared with what a running corosync has.

    Args:
        wanted: what :func:`flat` returns.
        running: what :func:`parse` returns.
        flags: options that votequorum says are in force, such as "WaitForAll"; None if it does not answer.

    Returns:
        Every difference, by what brings it in. Only what is declared counts, but for nodes, links and votes, of
        which the declaration is the whole.
    """
    reload: dict[str, Any] = {}
    restart = _at_start_only(wanted, running, flags)
    stop: dict[str, Any] = {}
    for key in sorted({*wanted, *(one for one in running if _owned(one))}):
        old, new = (values.get(key, _DEFAULTS.get(key)) for values in (running, wanted))
        if old == new or key in restart or key.startswith("nodelist."):
            continue
        if key in STOP or key.rsplit(".", 1)[-1] in _STOP_LAST:
            stop[key] = {"old": old, "new": new}
        else:
            (restart if key in RESTART else reload)[key] = {"old": old, "new": new}
    heard, unheard = _nodes(nodes_of(running), nodes_of(wanted))
    return Plan(reload | heard, restart, stop | unheard)


def _nodes(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the differences of nodes that are heard while others have it the old way, and of those that are not."""
    heard: dict[str, Any] = {}
    unheard: dict[str, Any] = {}
    moved = _moved(before, after)
    for number in sorted({*before, *after}, key=int):
        old, new = before.get(number), after.get(number)
        name = (new or before[number]).get("name", number)
        if number in moved:
            # The others would listen to its new id alone, and it sends by the old one until it is restarted.
            old = before[moved[number]]
            if new and new.get("name") == old.get("name"):
                unheard[f"id of node {name}"] = {"old": moved[number], "new": number}
            else:
                unheard[f"node {name}"] = {"old": old, "new": new}
        elif old != new and (new or number not in moved.values()):
            (heard if _stays_heard(old, new) else unheard)[f"node {name}"] = {"old": old, "new": new}
    return heard, unheard


def _moved(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the ids under which a name or an address of a node with another id would be, with that one's id."""
    owners = {mark: number for number, spec in before.items() for mark in _marks(spec)}
    found = {}
    for number, spec in after.items():
        others = [owners[mark] for mark in _marks(spec) if owners.get(mark, number) != number]
        if others:
            found[number] = others[0]
    return found


def _marks(node: Mapping[str, str]) -> list[str]:
    """Returns by what a node is known besides its id, its name first."""
    return [node[key] for key in sorted(node) if key == "name" or key.startswith("ring")]


def _at_start_only(
    wanted: Mapping[str, str], running: Mapping[str, str], flags: Collection[str] | None
) -> dict[str, Any]:
    """Returns what votequorum would have after a reload, and what it is to have, where the two differ."""
    after = _votes({**_started(running, flags), "quorum.two_node": wanted.get("quorum.two_node", "0")})
    new = _votes(wanted)
    counts = [*_SAID, *(key for key, (flag, _) in _OF_FLAGS.items() if new[flag] == "1")]
    return {f"quorum.{key}": {"old": after[key], "new": new[key]} for key in counts if after[key] != new[key]}


def _started(running: Mapping[str, str], flags: Collection[str] | None) -> dict[str, str]:
    """Returns the votes with which a running votequorum has started: as noted, but its own word counts more."""
    noted = json.loads(running[_NOTED]) if _NOTED in running else _at_start(running)
    found = {f"quorum.{key}": value for key, value in noted.items()}
    found["quorum.two_node"] = running.get("quorum.two_node", "0")
    kind = running.get("runtime.votequorum.atb_type", "")
    if kind in _ATB_TYPES:
        found["quorum.auto_tie_breaker_node"] = _ATB_TYPES[kind]
    if flags is not None:
        here = _votes(found)
        said = {key: str(int(flag in flags)) for key, flag in _SAID.items()}
        found |= {f"quorum.{key}": value for key, value in said.items() if value != here[key]}
    return found


def _votes(values: Mapping[str, str]) -> dict[str, str]:
    """Returns the options in force once votequorum has started with a configuration."""

    def value(key: str, default: str) -> str:
        return values.get(f"quorum.{key}", default)

    found = {key: value(key, "0") for key in _SAID} | {"wait_for_all": value("wait_for_all", value("two_node", "0"))}
    return found | {key: value(key, default) for key, (_, default) in _OF_FLAGS.items()}


def _at_start(values: Mapping[str, str]) -> dict[str, str]:
    """Returns what a configuration has of the votes that are read at the start only."""
    return {key: values[f"quorum.{key}"] for key in _AT_START if f"quorum.{key}" in values}


def note(wanted: Mapping[str, str], running: Mapping[str, str]) -> list[str]:
    """Returns the command that notes with which votes a running corosync has started, before a reload replaces them.

    Args:
        wanted: what :func:`flat` returns.
        running: what :func:`parse` returns.

    Returns:
        Program and arguments; empty if the reload will replace none, or if they are noted.
    """
    old = _at_start(running)
    if _NOTED in running or old == _at_start(wanted):
        return []
    return ["corosync-cmapctl", "-s", _NOTED, "str", json.dumps(old)]


def _stays_heard(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> bool:
    """Says whether a node is heard while some nodes know what it was and others what it will be."""
    if old is None or new is None:
        return True
    kept = [key for key in old if key.startswith("ring") and old[key] == new.get(key)]
    return bool(kept) and old.get("name") == new.get("name")


def _owned(key: str) -> bool:
    """Says whether a key of a running corosync goes when it is not declared any more."""
    if key.startswith("totem.interface."):
        return key.rsplit(".", 1)[-1] in _OF_LINKS.values()
    return key.startswith("quorum.") and key.rsplit(".", 1)[-1] in {*_FLAGS, *_OF_FLAGS}


def restart_keys() -> tuple[str, ...]:
    """Returns the keys that corosync takes up when it starts only."""
    return (*RESTART, *(f"quorum.{key}" for key in _AT_START))


def address(text: str) -> str:
    """Returns an address as the kernel writes it."""
    return str(ipaddress.ip_address(text))

"""What the schema cannot say of a cluster: nodes, links and votes that do not fit each other.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes. What only the
host knows, such as its addresses, the state ``cluster_node`` judges.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Nodes = Mapping[str, Mapping[str, Any]]

# corosync_overview(8): a key has at least 1024 bits, and libnss takes no more than 4096 bytes.
KEY_LEAST, KEY_MOST = 128, 3072
_NEEDS = {"auto_tie_breaker_node": "auto_tie_breaker", "last_man_standing_window": "last_man_standing"}
_DISTINCT = 32  # different bytes that a key of random ones has at the very least


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges nodes, links, votes and the key in the configuration of cluster/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    everybody: Nodes = configuration["nodes"]
    found = list(_key(configuration["keys"]))
    if everybody:
        found += _whole(configuration, everybody)
        found += _names(everybody)
        found += _addresses(everybody)
        found += _links(configuration["links"], present(everybody))
        found += _quorum(configuration["quorum"], present(everybody))
        found += _crypto(configuration["crypto"])
        found += _packages(configuration)
    return [(f"cluster:{where}", text) for where, text in found]


def present(nodes: Nodes) -> dict[str, Any]:
    """Returns the nodes that are to be in the cluster, by minion id."""
    return {minion: spec for minion, spec in nodes.items() if spec.get("ensure") != "absent"}


def name_of(minion: str, spec: Mapping[str, Any]) -> str:
    """Returns what a node is called: its host's name."""
    return str(spec.get("name", minion))


def _listed(nodes: Nodes) -> str:
    """Returns the minion ids of nodes as a text."""
    return ", ".join(nodes) or "none"


def _whole(configuration: Mapping[str, Any], everybody: Nodes) -> Iterator[tuple[str, str]]:
    """Yields what is missing as soon as there are nodes."""
    nodes, bootstrap = present(everybody), configuration["bootstrap_node"]
    if not configuration["name"]:
        yield "name", "missing; must be what the cluster is called"
    if not nodes:
        yield "nodes", "all of them are declared with ensure: absent, and a cluster needs a node"
    elif not bootstrap:
        yield "bootstrap_node", f"missing; must be one of the nodes: {_listed(nodes)}"
    elif bootstrap in everybody and bootstrap not in nodes:
        yield "bootstrap_node", f"{bootstrap} is declared with ensure: absent; must be one of: {_listed(nodes)}"
    elif bootstrap not in nodes:
        yield "bootstrap_node", f"{bootstrap} is not among the nodes; must be one of: {_listed(nodes)}"
    if len(nodes) > 1 and not configuration["keys"].get("corosync") and not configuration["keys"]["keeper"]:
        yield "keys:keeper", (
            "missing; must be the minion id of the master's own minion, through which the key reaches the other "
            "nodes, unless keys:corosync has one"
        )


def _names(everybody: Nodes) -> Iterator[tuple[str, str]]:
    """Yields names and numbers that two nodes share. One that leaves still has its own."""
    names: dict[str, str] = {}
    ids: dict[int, str] = {}
    for minion, spec in everybody.items():
        name = name_of(minion, spec)
        if names.setdefault(name.lower(), minion) != minion:
            yield f"nodes:{minion}:name", f"{name} is the name of {names[name.lower()]} already"
        if name.lower().split(".")[0] == "localhost":
            yield f"nodes:{minion}:name", f"{name} is what every host calls itself; nodes need names of their own"
        if ids.setdefault(spec["id"], minion) != minion:
            yield f"nodes:{minion}:id", f"{spec['id']} is the id of {ids[spec['id']]} already"


def _addresses(everybody: Nodes) -> Iterator[tuple[str, str]]:
    """Yields addresses that cannot be those of a node, are there twice, or do not make whole links."""
    owners: dict[Any, str] = {}
    nodes = present(everybody)
    first = next(iter(nodes), "")
    for minion, spec in nodes.items():
        where = f"nodes:{minion}:addresses"
        for text in spec["addresses"]:
            address = ipaddress.ip_address(text)
            if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
                yield where, f"{text} is no address at which other nodes find this one"
            if owners.setdefault(address, minion) != minion:
                yield where, f"{text} is an address of {owners[address]} already"
        if len(set(map(ipaddress.ip_address, spec["addresses"]))) != len(spec["addresses"]):
            yield where, "one address is there twice; each link needs another"
        yield from ((where, text) for text in _like(first, nodes[first]["addresses"], minion, spec["addresses"]))


def _like(first: str, model: list[str], minion: str, own: list[str]) -> Iterator[str]:
    """Yields what keeps the addresses of a node from making links with those of the first one."""
    if len(own) != len(model):
        yield f"{len(own)}, but {first} has {len(model)}; each link needs an address of every node"
        return
    for number, (one, other) in enumerate(zip(model, own, strict=True)):
        versions = ipaddress.ip_address(one).version, ipaddress.ip_address(other).version
        if versions[0] != versions[1]:
            yield f"link {number} of {minion} is IPv{versions[1]}, but that of {first} is IPv{versions[0]}"


def _links(links: Mapping[str, Any], nodes: Nodes) -> Iterator[tuple[str, str]]:
    """Yields settings of links that are not there, and timers that contradict each other."""
    count = min((len(spec["addresses"]) for spec in nodes.values()), default=0)
    ports: dict[int, str] = {}
    for number, spec in links.items():
        if int(number) >= count:
            yield f"links:{number}", f"there is no such link: nodes have {count} address{'es' * (count != 1)}"
        if spec.get("ping_timeout", 0) and spec.get("ping_interval", 0) >= spec["ping_timeout"]:
            yield f"links:{number}:ping_interval", "must be less than ping_timeout"
        if "port" in spec and ports.setdefault(spec["port"], number) != number:
            yield f"links:{number}:port", f"{spec['port']} is the port of link {ports[spec['port']]} already"


def _quorum(quorum: Mapping[str, Any], nodes: Nodes) -> Iterator[tuple[str, str]]:
    """Yields options that the number of nodes makes impossible (votequorum(5))."""
    count = len(nodes)
    told = f"there {'is one node' if count == 1 else f'are {count} nodes'} ({_listed(nodes)})"
    two = quorum.get("two_node", count == 2)
    if two and count != 2:
        yield "quorum:two_node", f"not allowed: {told}, and it is for exactly two"
    if two and quorum.get("auto_tie_breaker"):
        yield "quorum:auto_tie_breaker", "not allowed with two_node, which lets each of two go on; set two_node: false"
    if two and quorum.get("wait_for_all") is False:
        yield "quorum:wait_for_all", (
            "false is not allowed with two_node: each of two nodes that start apart would fence the other"
        )
    yield from _fewer(quorum, count, told)
    for key, needed in _NEEDS.items():
        if key in quorum and not quorum.get(needed):
            yield f"quorum:{key}", f"not allowed without {needed}: true"
    chosen = quorum.get("auto_tie_breaker_node")
    if chosen not in (None, "lowest", "highest", *nodes):
        wanted = f"must be lowest, highest or one of: {_listed(nodes)}"
        yield "quorum:auto_tie_breaker_node", f"{chosen} is not among the nodes; {wanted}"


def _fewer(quorum: Mapping[str, Any], count: int, told: str) -> Iterator[tuple[str, str]]:
    """Yields options that let fewer nodes than usual go on, where they cannot work."""
    if quorum.get("last_man_standing"):
        if count < 3:
            yield "quorum:last_man_standing", f"not allowed: {told}, and it is for three or more"
        if not quorum.get("wait_for_all"):
            yield "quorum:last_man_standing", "not allowed without wait_for_all: true"
    elif quorum.get("auto_tie_breaker") and count % 2:
        yield "quorum:auto_tie_breaker", f"not allowed: {told}, and an odd number cannot be halved"


def _crypto(crypto: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields a half encryption: corosync refuses to encrypt what it does not sign."""
    if (crypto["cipher"] == "none") != (crypto["hash"] == "none"):
        yield "crypto", f"cipher {crypto['cipher']} does not go with hash {crypto['hash']}: both are none, or neither"


def _packages(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is asked for on a system whose repositories do not have it (cluster/osmap.yaml)."""
    roles = configuration["packages"]["roles"]
    choices = {"tooling": ("pcs", "crmsh"), "storage:lock_manager": ("dlm", "sanlock")}
    asked = {"tooling": configuration["tooling"], "storage:lock_manager": configuration["storage"]["lock_manager"]}
    for where, role in asked.items():
        if configuration["stack"] == "corosync" and role and roles["cluster"] and not roles[role]:
            others = " or ".join(name for name in choices[where] if roles[name]) or "left out"
            yield where, (
                f"{role} is in no repository of this system; must be {others}, unless cluster:packages:roles:{role} "
                "names packages of your own"
            )


def _key(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a site's own key, never the key itself."""
    text = keys.get("corosync")
    if text is not None:
        yield from (("keys:corosync", wrong) for wrong in key_errors(text))


def key_bytes(text: str) -> bytes:
    """Returns a site's own key; raises ValueError for what is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def key_errors(text: str) -> list[str]:
    """Says what is wrong with a site's own key in base64; an empty list when nothing is."""
    try:
        key = key_bytes(text)
    except ValueError:
        return ["is not base64; make one with: openssl rand -base64 256"]
    if not KEY_LEAST <= len(key) <= KEY_MOST:
        return [f"has {len(key)} bytes; must be {KEY_LEAST} to {KEY_MOST}: openssl rand -base64 256"]
    if len(set(key)) < _DISTINCT:
        return ["is a placeholder, not random; make one with: openssl rand -base64 256"]
    return []

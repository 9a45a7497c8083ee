"""What a packet filter must hold so that listed networks reach some TCP ports, for nftables, iptables and firewalld.

Pure functions: they read what the tools print and return what the tools shall be told. An accept in one base
chain of the kernel does not stop another chain from dropping the same packet, so the rules go into every
chain that can drop what arrives: there, first of all, a jump leads to a chain of our own.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

CHAIN = "hypervisor_libvirt"
IPT_CHAIN = "HYPERVISOR-LIBVIRT"
# firewalld's rules have no names and no comments: this priority marks ours. It also puts them before refusals.
PRIORITY = -16514
_RICH = re.compile(rf'rule priority="{PRIORITY}" family="[^"]*" source address="([^"]*)" port port="([^"]*)" ')
_REFUSALS = ("drop", "reject")


class Rule(NamedTuple):
    """TCP ports that a network may reach; ``ports`` is ``16514`` or ``49152-49215``."""

    network: str
    ports: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_network(self.network).version

    def __str__(self) -> str:
        """Return the rule in words."""
        return f"{self.network} to TCP {self.ports}"


class Change(NamedTuple):
    """What one filter shall be told.

    ``script`` is empty when nothing has to change; ``stored`` is what brings the rules back after a reboot;
    ``changes`` says by place which rules come and go; ``refused`` holds what cannot be done here, as sentences.
    """

    script: str = ""
    stored: str = ""
    changes: Mapping[str, Any] = {}
    refused: Sequence[str] = ()


def rules(networks: Iterable[str], ports: Iterable[str]) -> list[Rule]:
    """Return every network with every port or range, IPv4 first.

    Raises:
        ValueError: a network or port that is none.
    """
    ports = [str(port) for port in ports]
    for port in ports:
        found = re.fullmatch(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?", port)
        if found is None or not int(found[1]) <= int(found[2] or found[1]) < 65536:
            raise ValueError(f"{port!r} is no port and no range of ports such as 49152-49215")
    parsed = {ipaddress.ip_network(network) for network in networks}
    ordered = sorted(parsed, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
    return [Rule(str(one), port) for one in ordered for port in ports]


def difference(before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
    """Return which lines come and which go; "order" where they are the same and stand otherwise."""
    found = {
        "opened": [line for line in after if line not in before],
        "closed": [line for line in before if line not in after],
    }
    return {key: lines for key, lines in found.items() if lines}


# ---- nftables ----


class _Ruleset:
    """Chains and rules of ``nft --json list ruleset``, by family, table and chain."""

    def __init__(self, text: str) -> None:
        self.chains: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for item in json.loads(text or "{}").get("nftables", []):
            if chain := item.get("chain"):
                self.chains[(chain["family"], chain["table"], chain["name"])] = chain
            elif rule := item.get("rule"):
                self.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)

    def refuses(self, where: tuple[str, str, str], seen: frozenset[str] = frozenset()) -> bool:
        """Whether a packet may be dropped in a chain or in one that it leads to."""
        family, table, name = where
        if self.chains.get(where, {}).get("policy") == "drop":
            return True
        for rule in self.rules.get(where, []):
            words = _words(rule.get("expr", []))
            if {"drop", "reject", "@map"} & words.keys():
                return True
            if any(self.refuses((family, table, target), seen | {name})
                   for target in words.get("target", ()) if target not in seen | {name, CHAIN}):  # fmt: skip
                return True
        return False


def _words(expression: Any) -> dict[str, list[Any]]:
    """Return verdicts and targets of jumps anywhere in a rule's expression."""
    found: dict[str, list[Any]] = {}
    if isinstance(expression, Mapping):
        for key, value in expression.items():
            if key in _REFUSALS:
                found.setdefault(key, [])
            elif key == "target":
                found.setdefault("target", []).append(value)
            elif key == "vmap" and isinstance(value.get("data"), str):
                # A named map of verdicts, whose content changes while it is used.
                found.setdefault("@map", [])
            else:
                _merge(found, _words(value))
    elif isinstance(expression, list):
        for one in expression:
            _merge(found, _words(one))
    return found


def _merge(into: dict[str, list[Any]], more: Mapping[str, list[Any]]) -> None:
    """Adds what was found elsewhere."""
    for key, value in more.items():
        into.setdefault(key, []).extend(value)


def _nft_expression(rule: Rule) -> list[dict[str, Any]]:
    """Return a rule as ``nft --json`` prints it."""
    network = ipaddress.ip_network(rule.network)
    first, _, last = rule.ports.partition("-")
    source: Any = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    if network.prefixlen == network.max_prefixlen:
        source = str(network.network_address)
    port: Any = {"range": [int(first), int(last)]} if last else int(first)
    protocol = "ip" if rule.version == 4 else "ip6"

    def match(of: str, field: str, right: Any) -> dict[str, Any]:
        return {"match": {"op": "==", "left": {"payload": {"protocol": of, "field": field}}, "right": right}}

    return [match(protocol, "saddr", source), match("tcp", "dport", port), {"accept": None}]


def _nft_words(rule: Rule) -> str:
    """Return a rule as ``nft`` reads it."""
    protocol = "ip" if rule.version == 4 else "ip6"
    return f"{protocol} saddr {rule.network} tcp dport {rule.ports} accept"


def _fitting(family: str, wanted: Sequence[Rule]) -> list[Rule]:
    """Return the rules that a family of tables can hold."""
    return [rule for rule in wanted if family == "inet" or family == {4: "ip", 6: "ip6"}[rule.version]]


def _is_iptables(family: str, table: str, chain: str) -> bool:
    """Whether a chain belongs to iptables, which must be asked itself."""
    return family in ("ip", "ip6") and table == "filter" and chain == "INPUT"


def nft(text: str, wanted: Sequence[Rule], skip: Iterable[str] = ()) -> Change:
    """Compare nftables with what is wanted.

    Args:
        text: what ``nft --json list ruleset`` prints.
        wanted: the rules; none takes ours out.
        skip: tables that somebody else keeps, such as firewalld's.

    Returns:
        One script for ``nft --file``, which is one transaction.
    """
    ruleset = _Ruleset(text)
    script: list[str] = []
    stored: list[str] = []
    changes: dict[str, Any] = {}
    refused: list[str] = []
    gates = {}
    for where, chain in ruleset.chains.items():
        family, table, name = where
        fitting = _fitting(family, wanted) if family in ("ip", "ip6", "inet") else []
        if not fitting or table in skip or _is_iptables(*where):
            continue
        if chain.get("hook") == "input" and chain.get("type") == "filter" and ruleset.refuses(where):
            gates[where] = fitting
        elif chain.get("hook") in ("prerouting", "ingress") and chain.get("policy") == "drop":
            there = [rule.get("expr") for rule in ruleset.rules.get(where, [])]
            refused += [
                f"nft insert rule {family} {table} {name} {_nft_words(rule)}"
                for rule in fitting
                if _nft_expression(rule) not in there
            ]
    homes = {(family, table) for family, table, _ in gates}
    for home in sorted({(f, t) for f, t, name in ruleset.chains if name == CHAIN} | homes):
        family, table = home
        bases = [where for where in gates if where[:2] == home]
        rows = gates[bases[0]] if bases else []
        place = f"nftables {family} {table}"
        lines = _nft_home(ruleset, home, bases, rows)
        before = [_shown(rule, rows) for rule in ruleset.rules.get((family, table, CHAIN), [])]
        if lines:
            script += lines
            what = difference(before, [str(row) for row in rows])
            changes[place] = what or "the way into these rules is repaired"
        if bases:
            stored += [f"add chain {family} {table} {CHAIN}", f"flush chain {family} {table} {CHAIN}"]
            stored += [f"add rule {family} {table} {CHAIN} {_nft_words(row)}" for row in rows]
            stored += [f"insert rule {' '.join(where)} jump {CHAIN}" for where in bases]
    return Change(_text(script), _text(stored), changes, refused)


def _nft_home(
    ruleset: _Ruleset, home: tuple[str, str], bases: Sequence[tuple[str, str, str]], rows: Sequence[Rule]
) -> list[str]:
    """Return the commands that make one table what it should be; none when it is."""
    family, table = home
    own = (family, table, CHAIN)
    lines = []
    there = [rule.get("expr") for rule in ruleset.rules.get(own, [])]
    if bases and (own not in ruleset.chains or there != [_nft_expression(row) for row in rows]):
        lines += [f"add chain {family} {table} {CHAIN}", f"flush chain {family} {table} {CHAIN}"]
        lines += [f"add rule {family} {table} {CHAIN} {_nft_words(row)}" for row in rows]
    for where in ruleset.chains:
        if where[:2] != home or where == own:
            continue
        listed = ruleset.rules.get(where, [])
        jumps = [index for index, rule in enumerate(listed) if CHAIN in _words(rule.get("expr", [])).get("target", ())]
        good = len(jumps) == 1 and not any(_always_refuses(rule) for rule in listed[: jumps[0]])
        if where in bases and good:
            continue
        lines += [f"delete rule {' '.join(where)} handle {listed[index]['handle']}" for index in jumps]
        if where in bases:
            lines.append(f"insert rule {' '.join(where)} jump {CHAIN}")
    if not bases:
        lines += [f"flush chain {family} {table} {CHAIN}", f"delete chain {family} {table} {CHAIN}"]
    return lines


def _always_refuses(rule: Mapping[str, Any]) -> bool:
    """Whether a rule refuses every packet, so that nothing after it counts."""
    words = [key for part in rule.get("expr", []) for key in part]
    return bool(set(words) & set(_REFUSALS)) and "match" not in words


def _shown(rule: Mapping[str, Any], rows: Sequence[Rule]) -> str:
    """Return a rule of our chain in our words, as far as it is one of ours."""
    expression = rule.get("expr", [])
    for row in rows:
        if _nft_expression(row) == expression:
            return str(row)
    try:
        source = expression[0]["match"]["right"]
        port = expression[1]["match"]["right"]
        if isinstance(source, Mapping):
            source = f"{source['prefix']['addr']}/{source['prefix']['len']}"
        if isinstance(port, Mapping):
            port = "-".join(map(str, port["range"]))
        if expression[2:] != [{"accept": None}]:
            raise KeyError(port)
        return str(Rule(str(ipaddress.ip_network(source)), str(port)))
    except (KeyError, IndexError, TypeError, ValueError):
        return "another rule"


def _text(lines: Sequence[str]) -> str:
    """Return lines as a file's text; nothing for no lines."""
    return "".join(f"{line}\n" for line in lines)


# ---- iptables ----


def iptables(save: str, wanted: Sequence[Rule], version: int) -> Change:
    """Compare iptables with what is wanted.

    Args:
        save: what ``iptables-save`` or ``ip6tables-save`` prints.
        wanted: the rules; none takes ours out.
        version: 4 or 6; rules of the other one are left out.

    Returns:
        A script for ``iptables-restore --noflush``, which is one transaction.
    """
    policies, chains = _filter_table(save)
    rows = [rule for rule in wanted if rule.version == version]
    refuses = policies.get("INPUT") == "DROP" or _ipt_refuses(chains, "INPUT", frozenset())
    if not refuses:
        rows = []
    body = [f"-A {IPT_CHAIN} {_ipt_words(row)}" for row in rows]
    jump = f"-A INPUT -j {IPT_CHAIN}"
    listed = chains.get("INPUT", [])
    jumps = [index for index, line in enumerate(listed) if line == jump]
    strays = [line for name in chains for line in chains[name] if line.endswith(f" {IPT_CHAIN}") and line != jump]
    good = len(jumps) == 1 and not any(
        re.fullmatch(r"-A INPUT -j (DROP|REJECT.*)", line) for line in listed[: jumps[0]]
    )
    mine = chains.get(IPT_CHAIN)
    stored = ["*filter", f":{IPT_CHAIN} - [0:0]", *body, f"-I INPUT 1 -j {IPT_CHAIN}", "COMMIT"] if rows else []
    if (rows and mine == body and good and not strays) or (not rows and mine is None):
        return Change(stored=_text(stored))
    script = ["*filter", f":{IPT_CHAIN} - [0:0]"]
    script += [line.replace("-A", "-D", 1) for line in strays]
    if not good or not rows:
        script += [f"-D INPUT -j {IPT_CHAIN}"] * len(jumps)
    if rows:
        script += body if good else [*body, f"-I INPUT 1 -j {IPT_CHAIN}"]
    else:
        script.append(f"-X {IPT_CHAIN}")
    place = "iptables" if version == 4 else "ip6tables"
    before = [_ipt_shown(line, version) for line in mine or []]
    what = difference(before, [str(row) for row in rows]) or "the way into these rules is repaired"
    return Change(_text([*script, "COMMIT"]), _text(stored), {place: what})


def _filter_table(save: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return policies and rules by chain of the table filter; a chain without rules has an empty list."""
    policies: dict[str, str] = {}
    chains: dict[str, list[str]] = {}
    table = ""
    for line in save.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[name] = policy
            chains.setdefault(name, [])
        elif table == "filter" and line.startswith("-A "):
            chains.setdefault(line.split()[1], []).append(line.strip())
    return policies, chains


def _ipt_refuses(chains: Mapping[str, Sequence[str]], name: str, seen: frozenset[str]) -> bool:
    """Whether a packet may be dropped in a chain or in one that it leads to."""
    for line in chains.get(name, ()):
        target = re.search(r" -[jg] (\S+)", line)
        if target is None or target[1] in seen | {name, IPT_CHAIN}:
            continue
        if target[1] in ("DROP", "REJECT") or _ipt_refuses(chains, target[1], seen | {name}):
            return True
    return False


def _ipt_words(rule: Rule) -> str:
    """Return a rule as ``iptables-save`` prints it."""
    # iptables leaves out a source that is every address.
    source = "" if ipaddress.ip_network(rule.network).prefixlen == 0 else f"-s {rule.network} "
    return f"{source}-p tcp -m tcp --dport {rule.ports.replace('-', ':')} -j ACCEPT"


def _ipt_shown(line: str, version: int) -> str:
    """Return a rule of our chain in our words, as far as it is one of ours."""
    found = re.fullmatch(r"-A \S+ (?:-s (\S+) )?-p tcp -m tcp --dport ([0-9:]+) -j ACCEPT", line)
    if found is None:
        return "another rule"
    everywhere = "0.0.0.0/0" if version == 4 else "::/0"
    return str(Rule(found[1] or everywhere, found[2].replace(":", "-")))


# ---- firewalld ----


def priority() -> int:
    """Return what marks our rules in firewalld's files."""
    return PRIORITY


def rich(rule: Rule) -> str:
    """Return a rule as firewalld prints it."""
    return (
        f'rule priority="{PRIORITY}" family="ipv{rule.version}" source address="{rule.network}" '
        f'port port="{rule.ports}" protocol="tcp" accept'
    )


def rich_difference(listed: str, wanted: Sequence[Rule]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Compare the rich rules of a zone with what is wanted.

    Args:
        listed: what ``--list-rich-rules`` prints.
        wanted: the rules.

    Returns:
        What to add, what to remove, and both in our words.
    """
    mark = f'rule priority="{PRIORITY}" '
    mine = [line.strip() for line in listed.splitlines() if line.strip().startswith(mark)]
    goal = [rich(rule) for rule in wanted]
    add, remove = [line for line in goal if line not in mine], [line for line in mine if line not in goal]
    words = {"opened": [_rich_shown(line) for line in add], "closed": [_rich_shown(line) for line in remove]}
    return add, remove, {key: lines for key, lines in words.items() if lines}


def _rich_shown(line: str) -> str:
    """Return a rich rule in our words, as far as it is one of ours."""
    found = _RICH.match(line)
    return str(Rule(found[1], found[2])) if found else "another rule"


def zones(active: str, default: str) -> list[str]:
    """Return the zones through which other hosts come.

    Args:
        active: what ``--get-active-zones`` prints: a zone, and below it, indented, why it is active.
        default: the zone of everything that no zone names.

    Returns:
        Their names; those of libvirt's and Docker's own networks are left out.
    """
    names = [line.split()[0] for line in active.splitlines() if line.strip() and not line[0].isspace()]
    return sorted({default.strip(), *names} - {"", "docker", "libvirt", "libvirt-routed"})

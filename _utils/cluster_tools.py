"""Runs the programs of Corosync and Pacemaker, and asks them who is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

_ASK = 30  # seconds for a question
_PAIR = re.compile(r'([a-z]+)="([^"]*)"')
_HIDDEN = "[hidden]"
_SECRET_LEAST = 4  # characters: a shorter word would be found in everything


class Quorum(NamedTuple):
    """What corosync says of votes.

    Attributes:
        quorate: whether this part of the cluster may act.
        total: votes that are here.
        needed: votes that it takes.
        flags: options in force, such as "2Node".
    """

    quorate: bool
    total: int
    needed: int
    flags: tuple[str, ...]


def run(
    argv: Sequence[str],
    timeout: float = _ASK,
    ok: Sequence[int] = (0,),
    stdin: str = "",
    secrets: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
) -> str:
    """Runs a program and returns what it wrote.

    Args:
        argv: the program and its arguments; no shell sees them.
        timeout: seconds after which it is killed.
        ok: return codes that are no failure.
        stdin: what it reads.
        secrets: what may not stand in an error.
        env: what it has in its environment besides.

    Returns:
        Its standard output.

    Raises:
        CommandExecutionError: it is not installed, failed or took too long; with its own words.
    """
    if shutil.which(argv[0]) is None:
        raise CommandExecutionError(f"{argv[0]} is not installed")
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        )
    except subprocess.TimeoutExpired:
        # The exception itself would quote what the program has read.
        raise CommandExecutionError(f"{argv[0]} did not end within {timeout:.0f} s") from None
    if done.returncode not in ok:
        said = " ".join((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split())
        for secret in secrets:
            said = said.replace(secret, _HIDDEN) if len(secret) >= _SECRET_LEAST else said
        raise CommandExecutionError(f"{argv[0]}: {said}")
    return done.stdout


def installed(program: str) -> bool:
    """Says whether a program is here."""
    return shutil.which(program) is not None


def active(unit: str) -> bool:
    """Says whether systemd runs a unit, or is about to."""
    return _state(unit) in {"active", "activating", "reloading", "deactivating"}


def starting(unit: str) -> bool:
    """Says whether systemd is about to run a unit."""
    return _state(unit) == "activating"


def _state(unit: str) -> str:
    """Returns what systemd says of a unit in one word."""
    return run(["systemctl", "is-active", unit], ok=range(256)).strip()


def enabled(unit: str) -> bool:
    """Says whether systemd starts a unit when the host boots."""
    return run(["systemctl", "is-enabled", unit], ok=range(256)).strip() == "enabled"


def cmap() -> str:
    """Returns all that the running corosync has in its map."""
    return run(["corosync-cmapctl"])


def joined(text: str) -> set[int]:
    """Returns the ids of the nodes that are in the membership, from what :func:`cmap` returned."""
    found = set()
    for line in text.splitlines():
        name, mark, value = line.partition(" = ")
        parts = name.split(" (")[0].split(".")
        if mark and parts[:2] == ["runtime", "members"] and parts[-1] == "status" and value == "joined":
            found.add(int(parts[2]))
    return found


def quorum() -> Quorum:
    """Asks corosync for votes."""
    # It ends with 2 where there is no quorum.
    return votes(run(["corosync-quorumtool", "-s"], ok=(0, 1, 2)))


def votes(text: str) -> Quorum:
    """Returns what ``corosync-quorumtool -s`` prints of votes."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, mark, value = line.partition(":")
        if mark:
            found.setdefault(key.strip(), value.strip())

    def number(key: str) -> int:
        digits = found.get(key, "").split(" ")[0]
        return int(digits) if digits.isdigit() else 0

    flags = tuple(found.get("Flags", "").split())
    return Quorum(found.get("Quorate") == "Yes", number("Total votes"), number("Quorum"), flags)


def names(ids: Iterable[int], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the minion ids of nodes whose numbers are given, in the order of their ids."""
    wanted = set(ids)
    ordered = sorted(nodes.items(), key=lambda item: int(item[1]["id"]))
    return [minion for minion, spec in ordered if spec["id"] in wanted]


def attributes(text: str) -> dict[str, str]:
    """Returns by node what ``attrd_updater -Q -A`` prints of an attribute."""
    found = {}
    for line in text.splitlines():
        words = dict(_PAIR.findall(line))
        if {"host", "value"} <= set(words):
            found[words["host"]] = words["value"]
    return found


def monitor() -> str:
    """Returns Pacemaker's view of the cluster as XML; empty where Pacemaker does not answer."""
    return run(["crm_mon", "--one-shot", "--inactive", "--output-as=xml"], ok=range(256))


def watchdog() -> bool:
    """Says whether Pacemaker counts on a watchdog of each node, so that fencing needs no device."""
    argv = ["crm_attribute", "--type", "crm_config", "--name", "stonith-watchdog-timeout", "--query", "--quiet"]
    return re.match(r"(PT)?-?0*[1-9]", run(argv, ok=range(256)).strip()) is not None


def online(text: str) -> set[str]:
    """Returns the names of nodes that Pacemaker counts as online, from what :func:`monitor` returned."""
    return {node.get("name", "") for node in _nodes(text) if node.get("online") == "true"}


def listed(text: str) -> set[str]:
    """Returns the names of all nodes that Pacemaker knows, from what :func:`monitor` returned."""
    return {node.get("name", "") for node in _nodes(text)}


def unmanaged(text: str, node: str) -> list[str]:
    """Returns what runs on a node without Pacemaker managing it, by resource; fence devices run nowhere in earnest.

    Args:
        text: what :func:`monitor` returned.
        node: its name.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - from Pacemaker on this host
    return sorted(
        {
            row.get("id", "")
            for row in root.iter("resource")
            if row.get("managed") == "false" and not row.get("resource_agent", "").startswith("stonith")
            and any(one.get("name") == node for one in row.findall("node"))
        }
    )  # fmt: skip


def unfenced(text: str, leaving: Iterable[str]) -> str:
    """Says which of the nodes that leave Pacemaker has still to fence: forgotten, it would start their guests twice.

    Args:
        text: what :func:`monitor` returned.
        leaving: the names of nodes that are to be out of the cluster.

    Returns:
        A sentence without its end, with what a person does; empty where none of them is waited for.
    """
    unclean = {node.get("name", "") for node in _nodes(text) if node.get("unclean") == "true"}
    found = sorted(unclean & set(leaving))
    if not found:
        return ""
    confirm = "; ".join(f"stonith_admin --confirm {name}" for name in found)
    return (
        f"nothing has changed, since these nodes are declared with ensure: absent and are lost, but not fenced: "
        f"{', '.join(found)}. What they run may go on there. Once such a node is certainly off, say so ({confirm}), "
        "then run the highstate again"
    )


def _nodes(text: str) -> list[ElementTree.Element]:
    """Returns the nodes that Pacemaker knows; none if it does not answer."""
    try:
        found = ElementTree.fromstring(text)  # noqa: S314 - written by a program of this host
    except ElementTree.ParseError:
        return []
    return found.findall("./nodes/node")

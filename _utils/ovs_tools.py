"""Talks to Open vSwitch: its database by ``ovs-vsctl``, and what no command line may hold by the database's socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

SOCKET = "/run/openvswitch/db.sock"
# Seconds for one question, and for a change that the switch has to take up.
_ASK, _TELL = 30, 60


def run(argv: Sequence[str], timeout: float = _ASK, ok: Sequence[int] = (0,)) -> str:
    """Runs a program and returns what it wrote.

    Args:
        argv: the program and its arguments; no shell sees them.
        timeout: seconds after which it is killed.
        ok: return codes that are no failure.

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
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandExecutionError(f"{argv[0]} did not end within {timeout:.0f} s") from error
    if done.returncode not in ok:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise CommandExecutionError(f"{argv[0]}: {said}")
    return done.stdout


def path(program: str) -> str:
    """Returns where a program is; empty if it is not installed."""
    return shutil.which(program) or ""


def parsed(text: str) -> Any:
    """Returns JSON that a program has printed; None for nothing, or for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def runs() -> bool:
    """Says whether this host has an Open vSwitch whose database can be asked."""
    return bool(path("ovs-vsctl")) and Path(SOCKET).exists()


def read(words: Sequence[str]) -> str:
    """Asks the database for tables; returns a line of JSON for each."""
    return run(["ovs-vsctl", f"--timeout={_ASK}", "--format=json", *words], _ASK + 5)


def tell(commands: Sequence[Sequence[str]]) -> None:
    """Carries out commands in one transaction and waits until the switch has taken it up."""
    words = [word for command in commands for word in ("--", *command)][1:]
    run(["ovs-vsctl", f"--timeout={_TELL}", *words], _TELL + 5)


def set_keys(keys: Mapping[str, str], where: str = SOCKET) -> None:
    """Gives tunnels their keys, in one transaction.

    ovs-vsctl would take them from its command line, which every user can read and which it logs.

    Args:
        keys: by the interface's name.
        where: the database's socket.

    Raises:
        CommandExecutionError: the database cannot be reached or refuses; never with a key in the message.
    """
    operations = [
        {
            "op": "mutate",
            "table": "Interface",
            "where": [["name", "==", name]],
            "mutations": [["options", "delete", ["set", ["psk"]]], ["options", "insert", ["map", [["psk", key]]]]],
        }
        for name, key in keys.items()
    ]
    # Without "durable" the answer could come before the disk has it.
    parameters = ["Open_vSwitch", *operations, {"op": "commit", "durable": True}]
    question = {"method": "transact", "params": parameters, "id": 1}
    answer = _ask(where, json.dumps(question).encode())
    results = answer.get("result") or []
    if answer.get("error") or [one.get("count") for one in results[: len(keys)]] != [1] * len(keys):
        raise CommandExecutionError(f"the keys of {', '.join(keys)} could not be stored in {where}")


def _ask(where: str, question: bytes) -> dict[str, Any]:
    """Sends one request of OVSDB's JSON-RPC (RFC 7047) and returns the answer to it."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(_ASK)
            link.connect(where)
            link.sendall(question)
            text, decoder = "", json.JSONDecoder()
            while part := link.recv(65536):
                text += part.decode("utf-8", errors="replace")
                try:
                    answer, _ = decoder.raw_decode(text.lstrip())
                except ValueError:
                    continue
                return dict(answer)
    except OSError as error:
        raise CommandExecutionError(f"{where} does not answer: {error.strerror or error}") from None
    raise CommandExecutionError(f"{where} ended the connection without an answer")

"""Runs `network-profile` on the host, or its copy in the minion's cache before it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Callable[..., Mapping[str, Any]]

INSTALLED = "/usr/lib/hypervisor-formula/hypervisor_network/__main__.py"
# Where it keeps where a change stands; its own word for it is in hypervisor_network.engine.store.
STATE = "/var/lib/hypervisor-formula/network/state.json"
CONFIRMED = "/var/lib/hypervisor-formula/network/confirmed.json"
# Seconds for one call; planning looks up names and asks name servers.
TIMEOUT = 120
# Salt's own defaults for a master's two ports.
_PUBLISH, _ASK = 4505, 4506
_OVER = frozenset({"idle", "confirmed", "rolled-back"})


def installed() -> str:
    """Returns the path of the installed program."""
    return INSTALLED


def call(run: Run, python: str, program: str, words: Sequence[str], asked: Any = None) -> dict[str, Any]:
    """Runs it and returns what it printed.

    Args:
        run: ``cmd.run_all``.
        python: the interpreter.
        program: INSTALLED, or the same file elsewhere.
        words: the command.
        asked: what it reads as JSON.

    Returns:
        The JSON that it printed; ``error`` in it says why nothing was done.
    """
    argv = [python, "-I", *([] if program == INSTALLED else ["-B"]), program, *words]
    done = run(
        argv,
        stdin=json.dumps(asked) if asked is not None else None,
        python_shell=False,
        ignore_retcode=True,
        timeout=TIMEOUT,
        output_loglevel="quiet",
    )
    try:
        found = json.loads(done["stdout"])
    except ValueError:
        text = (done["stderr"] or done["stdout"] or f"exit code {done['retcode']}").strip().splitlines()
        return {"error": f"network-profile {words[0]} failed: {text[-1] if text else 'no output'}"}
    return found if isinstance(found, dict) else {"error": f"network-profile {words[0]} printed {found!r}"}


def masters(opts: Mapping[str, Any]) -> list[str]:
    """Returns the names or addresses of a minion's masters; none for a host without a master."""
    return [name for name, _ in _masters(opts)]


def ports(opts: Mapping[str, Any]) -> list[int]:
    """Returns the ports on which a minion reaches its masters: where they publish, and where they are asked.

    The second one may stand with the master's name; of several masters with ports of their own, those of
    ``master_port`` count, as the minion has it once it is connected.
    """
    own = {port for _, port in _masters(opts)}
    asked = own.pop() if len(own) == 1 else ""
    return [int(opts.get("publish_port") or _PUBLISH), int(asked or opts.get("master_port") or _ASK)]


def _masters(opts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a minion's masters with the ports that stand with them, or empty texts."""
    given = opts.get("master")
    listed = [given] if isinstance(given, str) else list(given or ())
    if opts.get("file_client") == "local" and listed == ["salt"]:
        # Salt's default, which nobody has set.
        return []
    found = []
    for one in map(str, listed):
        name, _, port = one.rpartition(":")
        # A bare IPv6 address ends with digits, too.
        with_port = port.isdigit() and (":" not in name or name.endswith("]"))
        found.append(((name if with_port else one).strip("[]"), port if with_port else ""))
    return found


def standing(path: str = STATE) -> dict[str, Any]:
    """Returns where the latest change stands, from its record: quicker than asking the program every second."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    # The marker goes last, when everything is cleared away.
    left = Path(path).with_name("pending").exists()
    return {**found, "pending": left or found.get("state", "idle") not in _OVER}


def pending(path: str = STATE) -> dict[str, Any]:
    """Returns ``pending`` and, of a change that is neither confirmed nor undone, ``state`` and ``id``."""
    found = standing(path)
    if found.get("state", "idle") in _OVER:
        return {"pending": False, "state": None, "id": None}
    return {"pending": True, "state": found["state"], "id": found.get("id")}


def switches(path: str = CONFIRMED) -> dict[str, list[str]]:
    """Returns the bridges of Open vSwitch that were confirmed last, with the ports that they have in that change."""
    try:
        interfaces = json.loads(Path(path).read_bytes())["profile"]["interfaces"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        one["switch"]: [one["name"], *one["ports"]] for one in interfaces if one.get("switch") and not one["absent"]
    }


def outcome(state: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str]:
    """Says how a change has ended.

    Args:
        state: what `network-profile status` says.
        report: what `network-profile apply` said of the change.

    Returns:
        Whether it is confirmed, what has changed, and a comment.
    """
    if state.get("state") == "confirmed":
        seconds = state.get("outage")
        told = f" The master was not reached for {seconds:.1f} s." if seconds is not None else ""
        return True, changes(report), f"The change is confirmed ({report['backend']}).{told}"
    if state.get("state") == "rolled-back":
        text = f"The change was undone: {state.get('reason')}."
        if state.get("verified"):
            return False, {}, f"{text} All is as it was before."
        differing = "; ".join(state.get("differences", ())) or "nobody has looked whether all is as it was before"
        return False, changes(report), f"{text} Not all is as before: {differing}."
    text = f"The change {state.get('id')} is still {state.get('state')}; it ends by itself."
    return False, changes(report), f"{text} `network-profile status` on the host says how."


def changes(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a plan changes, as a state shows it."""
    found: dict[str, Any] = {}
    if report.get("files"):
        found["files"] = report["files"]
    if report.get("differences"):
        found["interfaces"] = report["differences"]
    return found

"""The command `network-profile`: JSON in, JSON out, and a sentence for a person where somebody looks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .engine.course import Course, RefusedError
from .engine.host import LocalHost
from .engine.store import ROLLED_BACK, BusyError, State

_DESCRIPTION = """\
Change a host's interfaces so that a change which cuts it off is undone by itself.

At a console:
  network-profile status      where the latest change stands
  network-profile confirm     keep the pending change although the checks do not succeed
  network-profile rollback    undo the pending change, or else the one that was confirmed last
"""
_COMMANDS = {
    "plan": "say what a pillar would change; reads {pillar, masters} as JSON and changes nothing",
    "apply": "stage a change and start it in a unit of its own; reads the same",
    "status": "say where the latest change stands",
    "confirm": "keep the pending change",
    "rollback": "undo the pending change, or the one that was confirmed last",
    "run": "make the staged change (the unit's own command)",
    "finish": "end what an applier has left behind (the unit's own command)",
    "boot": "restore the files of an unconfirmed change before the network starts (the unit's own command)",
}


def _parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="network-profile", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        one = commands.add_parser(name, help=text, description=text)
        if name in {"plan", "apply"}:
            one.add_argument("--file", help="where the JSON is; standard input by default")
        one.add_argument("--json", action="store_true", help="print JSON, which plan and apply do anyway")
    return parser


def _read(name: str | None) -> tuple[dict[str, Any], list[str]]:
    """Reads the pillar and the masters.

    Raises:
        RefusedError: they cannot be read.
    """
    try:
        if name:
            with open(name, encoding="utf-8") as handle:  # noqa: PTH123 - a name of a pipe as well
                found = json.load(handle)
        else:
            found = json.load(sys.stdin)
        return dict(found["pillar"]), [str(one) for one in found.get("masters", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"no pillar can be read as JSON: {error}") from error


def told(state: dict[str, Any]) -> str:
    """Says where a change stands, in sentences."""
    name = state["id"]
    if state["state"] == "idle":
        return "No change has been made."
    lines = {
        "staged": f"The change {name} is written down and has not begun.",
        "applying": f"The change {name} is being made.",
        "applied": f"The change {name} is made and is being checked.",
        "confirmed": f"The change {name} is confirmed.",
        "rolling-back": f"The change {name} is being undone: {state['reason']}.",
        "rolled-back": f"The change {name} was undone: {state['reason']}.",
    }
    text = [lines[state["state"]]]
    if state.get("seconds_left"):
        text.append(f"It has {state['seconds_left']} s left; `network-profile confirm` keeps it, `rollback` undoes it.")
    if state["pending"] and state.get("at_work") is False:
        text.append("Nobody is at work on it: `network-profile rollback` undoes it, and so does a reboot.")
    if state["outage"] is not None:
        text.append(f"The master was not reached for {state['outage']:.1f} s.")
    if state["verified"]:
        text.append("All is as it was before.")
    text += [f"Not as before: {line}." for line in state["differences"]]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None, course: Course | None = None) -> int:
    """Runs the command.

    Args:
        arguments: the command line; by default the program's.
        course: what can be done; by default on this host.

    Returns:
        The exit code: 1 when something was refused, or is not over.
    """
    asked = _parser().parse_args(arguments)
    found = course or Course(LocalHost(), say=_said)
    try:
        if asked.command in {"plan", "apply"}:
            pillar, masters = _read(asked.file)
            done = found.plan(pillar, masters).report() if asked.command == "plan" else found.apply(pillar, masters)
            print(json.dumps(done))
            return 0
        if asked.command == "status":
            _show(found.status(), asked.json)
            return 0
        calls: dict[str, Callable[[], State]] = {
            "confirm": found.confirm, "rollback": found.rollback, "run": found.run, "finish": found.finish,
            "boot": found.boot,
        }  # fmt: skip
        state = calls[asked.command]()
        _show(state.report(), asked.json)
    except (RefusedError, BusyError) as error:
        if asked.json or asked.command in {"plan", "apply"}:
            print(json.dumps({"error": str(error)}))
        print(f"network-profile: {error}.", file=sys.stderr)
        return 1
    wanted = {"confirm": state.state == "confirmed", "rollback": state.state == ROLLED_BACK}
    return 0 if wanted.get(asked.command, state.over) else 1


def _said(text: str) -> None:
    """Tells the journal, or whoever looks on, what is done."""
    print(f"network-profile: {text}", file=sys.stderr, flush=True)


def _show(state: dict[str, Any], as_json: bool) -> None:
    """Prints where a change stands."""
    print(json.dumps(state) if as_json else told(state))

"""Interfaces of a host, changed so that a change which cuts it off is undone by itself.

The change is made by `network-profile` in a unit of its own, which lives on when the minion, its session or the
network ends. This state plans, starts it, and waits until it is confirmed or undone.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}
    __env__: str = "base"

_TOOL = "/usr/lib/hypervisor-formula/hypervisor_network/__main__.py"
_EVERY = 1.0  # seconds between looks at where the change stands
_GRACE = 90.0  # seconds after the window in which it ends, undone if it has to be


def _call(python: str, program: str, *words: str, asked: Any = None) -> dict[str, Any]:
    """Runs network-profile."""
    found: dict[str, Any] = __utils__["network_tool.call"](__salt__["cmd.run_all"], python, program, words, asked)
    return found


def _cached(saltenv: str) -> str:
    """Returns the program in the minion's cache, where nothing is installed by that; empty if there is none."""
    paths = __salt__["cp.cache_dir"]("salt://network/files/usr/lib/hypervisor-formula", saltenv=saltenv)
    return next((str(one) for one in paths or () if str(one).endswith("hypervisor_network/__main__.py")), "")


def _awaited(report: dict[str, Any], window: float) -> dict[str, Any]:
    """Waits, for a limited time, until a change is confirmed or undone."""
    end = time.monotonic() + window + _GRACE
    while True:
        state: dict[str, Any] = __utils__["network_tool.standing"]()
        over = state.get("id") == report["id"] and not state.get("pending", True)
        if over or time.monotonic() >= end:
            return state
        time.sleep(_EVERY)


def applied(name: str, profile: dict[str, Any], python: str = "/usr/bin/python3") -> dict[str, Any]:
    """Make sure that the interfaces are as declared, or else as they were.

    Args:
        name: Any label.
        profile: The keys of pillar ``network``: backend, allow_uplink_change, confirm, ethernets, bridges, bonds
            and vlans. Where confirm names no ports, those count on which the minion reaches its masters.
        python: The interpreter, 3.9 or newer.

    Returns a state result: confirmed, with the seconds for which the master was not reached, or undone, with the
    reason.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    asked = {"pillar": _with_ports(profile), "masters": __utils__["network_tool.masters"](__opts__)}
    test = bool(__opts__["test"])
    if not Path(python).exists():
        comment = f"There is no {python} yet, so what would change is not known; see network:python."
        return ret | {"result": None if test else False, "comment": comment}
    if test:
        program = _cached(globals().get("__env__") or __opts__.get("saltenv") or "base")
        if not program:
            return ret | {"result": False, "comment": "The file server has no hypervisor_network."}
        report = _call(python, program, "plan", asked=asked)
        wrong = [report["error"]] if "error" in report else [*report["errors"], *filter(None, [report["refusal"]])]
    else:
        report = _call(python, _TOOL, "apply", asked=asked)
        wrong = [report["error"]] if "error" in report else []
    if wrong:
        return ret | {"result": False, "comment": f"Nothing was changed: {'; '.join(wrong)}."}
    if not report["changed"]:
        return ret | {"comment": "The interfaces are as declared."}
    if test:
        touched = ", ".join(report["uplink"])
        comment = f"It would be tried, and undone unless it is confirmed within {_window(profile)} s."
        if touched:
            comment += f" It touches what carries the connection to the master: {touched}."
        return ret | {"result": None, "changes": __utils__["network_tool.changes"](report), "comment": comment}
    state = _awaited(report, _window(profile))
    done, changes, comment = __utils__["network_tool.outcome"](state, report)
    return ret | {"result": done, "changes": changes, "comment": comment}


def _with_ports(profile: dict[str, Any]) -> dict[str, Any]:
    """Returns the profile with the masters' ports: the pillar's, or else those of the minion's configuration."""
    confirm = profile.get("confirm", {})
    ports = confirm.get("ports") or __utils__["network_tool.ports"](__opts__)
    return {**profile, "confirm": {**confirm, "ports": ports}}


def _window(profile: dict[str, Any]) -> float:
    """Returns the seconds that a change has."""
    return float(profile.get("confirm", {}).get("window", 120))

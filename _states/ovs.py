"""Bridges, ports, bonds and tunnels of Open vSwitch.

The database of Open vSwitch is compared with what is declared, and changed in one transaction; it keeps that over a
reboot. What is not declared stays. A card of the host that is missing, has addresses or belongs to something else
is refused before anything changes, and so is a port that another bridge has, and any change to what carries the
connection to the master.

Keys of tunnels are read from this host's pillar here, so that no rendered state holds them, and go to the database
through its socket: neither a command line nor a log shows them.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __pillar__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PATIENCE = 10.0  # seconds in which the switch may take up what it was told
_PAUSE = 0.5


def configured(
    name: str,
    bridges: dict[str, Any] | None = None,
    mesh: dict[str, Any] | None = None,
    other_config: dict[str, Any] | None = None,
    node: str = "",
    auth: str = "psk",
    masters: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that Open vSwitch has these bridges with their ports.

    Args:
        name: Any label.
        bridges: As in the pillar ``network:ovs:bridges``; keys of tunnels are added from there.
        mesh: As in the pillar ``network:mesh``.
        other_config: Settings of the switch itself; None takes one out.
        node: This host's name in a mesh; by default its minion id.
        auth: How the ends of tunnels with IPsec know each other: psk, or certificate; empty without such tunnels.
        masters: Names or addresses of what the host must not lose the way to; by default the minion's masters.

    Returns a state result with each column that changed; of a key only that it did.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        composed = _composed(bridges or {}, mesh or {}, node, auth)
        reached = masters or __utils__["network_tool.masters"](__opts__)
        carrying = __utils__["network_uplink.carriers"](__utils__["ovs_tools.run"], reached)
        plan = _planned(composed, other_config or {}, auth, carrying)
        if plan.errors:
            return ret | {"result": False, "comment": _refusal(plan.errors)}
        if __opts__["test"] or not plan.changes:
            comment = f"Open vSwitch {'would change' if plan.changes else 'is as it should be'}."
            return ret | {"result": None if plan.changes else True, "changes": plan.changes, "comment": comment}
        if plan.commands:
            __utils__["ovs_tools.tell"](plan.commands)
        ret["changes"] = plan.changes
        if plan.secrets:
            __utils__["ovs_tools.set_keys"](plan.secrets)
        left = _left(composed, other_config or {}, auth, carrying)
    except (CommandExecutionError, ValueError, OSError) as error:
        return ret | {"result": False, "comment": f"Open vSwitch: {error}."}
    if left:
        return ret | {"result": False, "comment": f"Open vSwitch has not taken everything: {left}."}
    return ret | {"comment": "Open vSwitch is as it should be now."}


def _composed(bridges: Mapping[str, Any], mesh: Mapping[str, Any], node: str, auth: str) -> Any:
    """Return all bridges of this host, with keys; raises ValueError for a mesh without this host."""
    secret = __pillar__.get("network") or {}
    ipsec = secret.get("ipsec") or {}
    configuration = {
        "ipsec": {"psk": ipsec.get("psk"), "auth": auth},
        "ovs": {"bridges": _with_keys(bridges, ((secret.get("ovs") or {}).get("bridges")) or {}, "ports")},
        "mesh": _with_keys(mesh, secret.get("mesh") or {}, ""),
    }
    return __utils__["network_tunnels.compose"](configuration, node or __opts__["id"])


def _with_keys(declared: Mapping[str, Any], pillar: Mapping[str, Any], below: str) -> dict[str, Any]:
    """Return a declaration with the keys that the pillar has for it, there or one level ``below``."""
    found = {}
    for name, spec in declared.items():
        there = pillar.get(name) or {}
        if below:
            inner = _with_keys(spec.get(below) or {}, there.get(below) or {}, "")
            found[name] = {**spec, **({below: inner} if inner else {})}
        else:
            found[name] = {**spec, **({"psk": there["psk"]} if there.get("psk") else {})}
    return found


def _planned(bridges: Mapping[str, Any], settings: Mapping[str, Any], auth: str, carrying: list[str]) -> Any:
    """Look at the host and return ovs_plan's Plan."""
    if not __utils__["ovs_tools.runs"]():
        if not __opts__["test"]:
            raise CommandExecutionError("it is not installed, or does not run")
        facts = __utils__["ovs_plan.nothing"]()
    else:
        facts = __utils__["ovs_plan.facts_of"](__utils__["ovs_tools.read"](__utils__["ovs_plan.question"]()))
    nics = __utils__["ovs_plan.nics_of"](__utils__["ovs_tools.run"](["ip", "-json", "address", "show"]))
    settings = __utils__["ovs_plan.with_identity"](settings, auth, facts)
    held = __utils__["network_tool.switches"]()
    return __utils__["ovs_plan.plan"](bridges, settings, facts, nics, held, carrying)


def _refusal(errors: list[tuple[str, str]]) -> str:
    """Return the lines of what keeps a declaration from being carried out."""
    lines = [f"network:ovs:bridges:{path}: {text}" for path, text in errors]
    return "\n".join(["Nothing was changed:", *lines])


def _left(bridges: Mapping[str, Any], settings: Mapping[str, Any], auth: str, carrying: list[str]) -> str:
    """Return what the switch has not taken up after a while; empty when it has everything."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        words = []
        plan = _planned(bridges, settings, auth, carrying)
        words += [f"{path}: {text}" for path, text in plan.errors] + list(plan.changes)
        facts = __utils__["ovs_plan.facts_of"](__utils__["ovs_tools.read"](__utils__["ovs_plan.question"]()))
        for bridge in bridges.values():
            for port in bridge.get("ports") or {}:
                said = facts.interfaces.get(port, {}).get("error")
                words += [f"{port}: {said}"] if said else []
        if not words or time.monotonic() > deadline:
            return "; ".join(words)
        time.sleep(_PAUSE)

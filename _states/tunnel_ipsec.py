"""Looks whether tunnels with IPsec have agreed on keys, and says why not.

openvswitch-ipsec itself only logs that. A key that the other end refuses is a failure; a host that does not answer, or
has not been set up yet, is named, but that is not this host's fault.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_TRY = 12  # seconds for one try to agree on keys; strongSwan itself would ask for minutes
_PAUSE = 1.0


def established(
    name: str,
    bridges: dict[str, Any] | None = None,
    mesh: dict[str, Any] | None = None,
    wait_seconds: int = 30,
    node: str = "",
) -> dict[str, Any]:
    """Look whether every tunnel with IPsec has agreed on keys with its other end, and let it try.

    Args:
        name: Any label.
        bridges: As in the pillar ``network:ovs:bridges``.
        mesh: As in the pillar ``network:mesh``.
        wait_seconds: How long a refusal may last: the other end may be given the same new key at this moment.
        node: This host's name in a mesh; by default its minion id.

    Returns a state result without changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        declared = {"ipsec": {}, "ovs": {"bridges": bridges or {}}, "mesh": mesh or {}}
        composed = __utils__["network_tunnels.compose"](declared, node or __opts__["id"])
        peers = {one.port: one for one in __utils__["network_tunnels.peers"](composed) if one.ipsec}
        if not peers or (__opts__["test"] and not __utils__["ovs_tools.path"]("ipsec")):
            return ret | {"comment": "There is no tunnel with IPsec yet."}
        reasons = _reasons(list(peers), 0 if __opts__["test"] else wait_seconds)
    except (CommandExecutionError, ValueError) as error:
        return ret | {"result": False, "comment": f"IPsec: {error}."}
    told = [f"{peers[port].name} ({port}, {peers[port].remote}): {text}" for port, text in reasons.items()]
    if not _excused(reasons) and not __opts__["test"]:
        return ret | {"result": False, "comment": "\n".join(["IPsec does not agree on keys with:", *told])}
    if told:
        return ret | {"comment": "\n".join(["IPsec has not agreed on keys yet with:", *told])}
    return ret | {"comment": f"All {len(peers)} tunnels with IPsec have agreed on keys."}


def _reasons(ports: list[str], wait_seconds: int) -> dict[str, str]:
    """Return why tunnels have no keys, by name; empty when all have. Without time to wait nothing is tried."""
    deadline = time.monotonic() + wait_seconds
    while True:
        found = __utils__["ipsec_status.connections"](_status())
        reasons = {}
        for one in __utils__["ipsec_status.lacks"](ports, found):
            if isinstance(one, str):
                reasons[one] = "openvswitch-ipsec has not taken it up"
            elif not wait_seconds:
                reasons[_port(one.name, ports)] = __utils__["ipsec_status.silent"]()
            elif text := _tried(one.name):
                reasons[_port(one.name, ports)] = text
        if not reasons or time.monotonic() > deadline or _excused(reasons):
            return reasons
        time.sleep(_PAUSE)


def _excused(reasons: Mapping[str, str]) -> bool:
    """Whether no reason is a fault of this host."""
    return all(__utils__["ipsec_status.excused"](text) for text in reasons.values())


def _status() -> str:
    """Return what strongSwan has; nothing when it does not run."""
    return str(__utils__["ovs_tools.run"](["ipsec", "status"], ok=(0, 1, 3)))


def _tried(connection: str) -> str:
    """Let a connection try to agree on keys; return why it could not, or an empty text."""
    try:
        said = __utils__["ovs_tools.run"](["ipsec", "up", connection], timeout=_TRY, ok=range(256))
    except CommandExecutionError:
        return str(__utils__["ipsec_status.silent"]())
    return str(__utils__["ipsec_status.reason"](said))


def _port(connection: str, ports: list[str]) -> str:
    """Return the tunnel that a connection belongs to."""
    return max((port for port in ports if connection.startswith(port)), key=len)

"""Whether this host is the node that the pillar says it is. Nothing is changed here."""

import json
import os
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}


def fits(name: str, nodes: dict[str, Any]) -> dict[str, Any]:
    """Make sure that this host is one of the nodes, has the name of that one and its addresses.

    Args:
        name: Any label.
        nodes: As in the pillar ``cluster:nodes``.

    Returns a state result without changes, that names each key which does not fit.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    minion, called = __opts__["id"], os.uname().nodename
    if minion not in nodes:
        comment = f"cluster:nodes: {minion}, this minion, is not among them: {', '.join(nodes)}."
        return ret | {"result": False, "comment": comment}
    spec = nodes[minion]
    wrong = []
    wanted = spec.get("name", minion)
    if wanted != called:
        origin = "" if "name" in spec else " (the minion id)"
        wrong.append(
            f'cluster:nodes:{minion}:name: "{wanted}"{origin} is not what this host calls itself; must be "{called}", '
            f"or change the host: hostnamectl set-hostname {wanted}"
        )
    try:
        here = _addresses()
    except (CommandExecutionError, ValueError) as error:
        return ret | {"result": False, "comment": f"The addresses of this host are not known: {error}."}
    missing = [one for one in spec["addresses"] if __utils__["corosync_conf.address"](one) not in here]
    if missing:
        wrong.append(
            f"cluster:nodes:{minion}:addresses: {', '.join(missing)} is not an address of this host; "
            f"it has: {', '.join(sorted(here))}"
        )
    if wrong:
        return ret | {"result": False, "comment": "\n".join(wrong)}
    return ret | {"comment": f"This host is the node {wanted}."}


def _addresses() -> set[str]:
    """Return the addresses of this host that others could reach."""
    rows = json.loads(__utils__["cluster_tools.run"](["ip", "-json", "address", "show"]))
    return {
        str(info["local"])
        for row in rows
        for info in row.get("addr_info", [])
        if info.get("scope") == "global" and "local" in info
    }

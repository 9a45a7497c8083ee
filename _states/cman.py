"""Files of a cluster of the old kind, with cman and clvmd. Nothing is started: no distribution of today has them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_MODES = {"cluster_conf": 0o640, "corosync_conf": 0o644, "lvm_conf": 0o644}
# Of lvm.conf all but one line stays, whatever a site has written into its comments.
_ENCODINGS = {"lvm_conf": "latin-1"}


def configured(name: str, kind: str, cluster: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """Make sure that a file is as declared.

    Args:
        name: Path of the file.
        kind: ``cluster_conf``, ``corosync_conf`` or ``lvm_conf``, of which one line alone is set.
        cluster: ``name``, ``token``, ``crypto``, ``quorum`` and ``cman`` of the pillar ``cluster``.
        nodes: The nodes by minion id.

    Returns a state result with the lines that go and come.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        encoding = _ENCODINGS.get(kind, "utf-8")
        old = (__utils__["own_files.read"](name) or b"").decode(encoding, "replace")
        text = _text(kind, cluster, nodes, old)
        if kind == "lvm_conf" and not old:
            return ret | {"result": False, "comment": f"{name} is not there: clustered LVM needs lvm2."}
        changes = _difference(old, text)
        if access := __utils__["own_files.access"](name, _MODES[kind]):
            changes["access"] = access
        ret["changes"] = changes
        if not changes or __opts__["test"]:
            told = f"{name} would change." if changes else f"{name} is as declared."
            return ret | {"result": None if changes else True, "comment": told}
        __utils__["own_files.write"](Path(name), text.encode(encoding), _MODES[kind])
    except (OSError, ValueError) as error:
        return ret | {"result": False, "changes": {}, "comment": f"{name}: {error}."}
    return ret | {"comment": f"{name} is as declared now."}


def _text(kind: str, cluster: dict[str, Any], nodes: dict[str, Any], old: str) -> str:
    """Return what is to stand in a file."""
    if kind == "cluster_conf":
        return str(__utils__["cman_conf.cluster_conf"](cluster, nodes))
    if kind == "corosync_conf":
        return str(__utils__["cman_conf.corosync_conf"](cluster, nodes, __opts__["id"]))
    return str(__utils__["cman_conf.lvm_conf"](old)) if old else ""


def _difference(old: str, text: str) -> dict[str, Any]:
    """Return which lines go and which come; there is no secret in them."""
    before, after = old.splitlines(), text.splitlines()
    found: dict[str, Any] = {
        "removed": [line for line in before if line not in after],
        "added": [line for line in after if line not in before],
    }
    return {verb: lines for verb, lines in found.items() if lines} or ({"order": [""]} if old != text else {})

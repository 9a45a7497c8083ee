"""What the master itself runs of these formulas: a highstate brings minions their modules, and the master none."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.config
import salt.runner
from salt.exceptions import SaltException

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_HASH = "sha256"


def runners(name: str) -> dict[str, Any]:
    """Make sure that the master has the runners of the file server and their utilities, on the master's own minion.

    Args:
        name: Any label.

    Returns a state result that names each file which is new or differs.
    """
    return _synced(name, "runners", "utils")


def engines(name: str) -> dict[str, Any]:
    """Do the same for engines; the master uses them, and their utilities, when it has started anew.

    Args:
        name: Any label.

    Returns a state result that names each file which is new or differs.
    """
    return _synced(name, "engines", "utils")


def _synced(name: str, kind: str, *further: str) -> dict[str, Any]:
    """Make sure that the master has the modules of a kind, and of further ones that those need."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    config = Path(__opts__["conf_file"]).with_name("master")
    opts = salt.config.master_config(str(config))
    if not (Path(opts["pki_dir"]) / "master.pem").exists():
        return ret | {"result": False, "comment": "This is not the master."}
    extensions = Path(opts["extension_modules"])
    differing = {one: _differing(extensions, one) for one in (kind, *further)}
    ret["changes"] = {one: names for one, names in differing.items() if names}
    if not ret["changes"]:
        return ret | {"comment": f"The master has the {kind}."}
    if __opts__["test"]:
        return ret | {"result": None, "comment": f"The master would get {kind}."}
    try:
        client = salt.runner.RunnerClient(opts)
        for one in ret["changes"]:
            client.cmd(f"saltutil.sync_{one}", print_event=False)
    except SaltException as error:
        return ret | {"result": False, "comment": f"The master has not got the {kind}: {error}."}
    left = [missing for one in ret["changes"] for missing in _differing(extensions, one)]
    if left:
        return ret | {"result": False, "comment": f"The master has not got: {', '.join(left)}."}
    return ret | {"comment": f"The master has the {kind} now."}


def _differing(extensions: Path, kind: str) -> list[str]:
    """Return the modules of the file server that the master has otherwise or not at all."""
    found = []
    for path in __salt__["cp.list_master"](prefix=f"_{kind}/"):
        if path.endswith(".py"):
            here = extensions / kind / path.removeprefix(f"_{kind}/")
            wanted = __salt__["cp.hash_file"](f"salt://{path}").get("hsum")
            if not here.exists() or __salt__["file.get_hash"](str(here), _HASH) != wanted:
                found.append(here.name)
    return sorted(found)

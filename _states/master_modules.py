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
    """Make sure that the master has the runners of the file server, on the master's own minion.

    Args:
        name: Any label.

    Returns a state result that names each file which is new or differs.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    config = Path(__opts__["conf_file"]).with_name("master")
    opts = salt.config.master_config(str(config))
    if not (Path(opts["pki_dir"]) / "master.pem").exists():
        return ret | {"result": False, "comment": "This is not the master."}
    differing = _differing(Path(opts["extension_modules"]) / "runners")
    if not differing:
        return ret | {"comment": "The master has the runners."}
    ret["changes"] = {"runners": differing}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The master would get runners."}
    try:
        salt.runner.RunnerClient(opts).cmd("saltutil.sync_runners", print_event=False)
    except SaltException as error:
        return ret | {"result": False, "comment": f"The master has not got the runners: {error}."}
    left = _differing(Path(opts["extension_modules"]) / "runners")
    if left:
        return ret | {"result": False, "comment": f"The master has not got: {', '.join(left)}."}
    return ret | {"comment": "The master has the runners now."}


def _differing(folder: Path) -> list[str]:
    """Return the runners of the file server that the master has otherwise or not at all."""
    found = []
    for path in __salt__["cp.list_master"](prefix="_runners/"):
        if path.endswith(".py"):
            here = folder / path.removeprefix("_runners/")
            wanted = __salt__["cp.hash_file"](f"salt://{path}").get("hsum")
            if not here.exists() or __salt__["file.get_hash"](str(here), _HASH) != wanted:
                found.append(here.name)
    return sorted(found)

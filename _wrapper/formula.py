"""The configuration of a formula under salt-ssh, where SLS files are rendered on the master's side.

The same as ``_modules/formula.py``, which says more; only the files are reached differently.
"""

from __future__ import annotations

from typing import Any

import salt.loader

__opts__: dict[str, Any]
__grains__: dict[str, Any]
__pillar__: dict[str, Any]
__context__: dict[Any, Any]


GRAINS = ("os_family", "os", "osfinger")


def config(name: str, saltenv: str | None = None) -> dict[str, Any]:
    """Returns the configuration of a formula for the host that salt-ssh works on.

    CLI example: ``salt-ssh hv1 formula.config kvm``

    Args:
        name: the formula, which is also its key in the pillar.
        saltenv: the file server's environment; by default the host's own, else "base".

    Returns:
        defaults < osmap (os_family, os, osfinger) < pillar, merged; where the formula says so, with the parts that
        are used below "uses".

    Raises:
        CommandExecutionError: the pillar is refused; the message names every error.
    """
    if "formula_utils" not in __context__:
        # Salt gives a wrapper no __utils__.
        __context__["formula_utils"] = salt.loader.utils(__opts__)
    utils = __context__["formula_utils"]
    grains = {grain: __grains__.get(grain) for grain in GRAINS}
    env = saltenv or __opts__.get("saltenv") or "base"
    cache = __context__.setdefault("formula_config", {})
    fetch = __context__["fileclient"].cache_file
    subject = (name, env, grains, __pillar__.get(name))
    found: dict[str, Any] = utils["formula_salt.config"](subject, fetch, utils, cache)
    return found

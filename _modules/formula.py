"""The configuration of a formula: defaults < osmap < pillar, validated by the formula's schema.

SLS files begin with ``{% set kvm = salt['formula.config']('kvm') %}`` and only map the result to
states. A pillar that the schema refuses ends the compilation, before anything has changed.
``_wrapper/formula.py`` is the same for salt-ssh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__salt__: dict[str, Any]
__utils__: dict[str, Any]
__opts__: dict[str, Any]
__grains__: dict[str, Any]
__pillar__: dict[str, Any]
__context__: dict[Any, Any]


GRAINS = ("os_family", "os", "osfinger")


def _utilities() -> Any:
    """Returns Salt's loader itself: the dunder means something else while another module runs."""
    return getattr(__utils__, "value", lambda: __utils__)()


def _subject(name: str, saltenv: str | None) -> tuple[Any, ...]:
    """Collects what a configuration is made of."""
    env = saltenv or __opts__.get("saltenv") or "base"
    grains = {grain: __grains__.get(grain) for grain in GRAINS}
    return (name, env, grains, __pillar__.get(name)), __salt__["cp.cache_file"], _utilities()


def config(name: str, saltenv: str | None = None) -> dict[str, Any]:
    """Returns the configuration of a formula for this host.

    CLI example: ``salt hv1 formula.config kvm``

    Args:
        name: the formula, which is also its key in the pillar.
        saltenv: the file server's environment; by default the minion's own, else "base".

    Returns:
        defaults < osmap (os_family, os, osfinger) < pillar, merged; where the formula says so, with the parts that
        are used below "uses".

    Raises:
        CommandExecutionError: the pillar is refused; the message names every error.
    """
    cache = __context__.setdefault("formula_config", {})
    folder = str(Path(__opts__["cachedir"]) / "formula")
    subject = _subject(name, saltenv)
    found: dict[str, Any] = __utils__["formula_salt.config"](*subject, cache, folder)
    return found


def judge(
    name: str, definition: str, value: Any, where: str, saltenv: str | None = None
) -> list[str]:
    """Judges by a formula's schema what did not come through its pillar: the arguments of a state.

    CLI example: ``salt hv1 formula.judge libvirt guest '{"mem": 512}' srv01``

    Args:
        name: the formula.
        definition: a name below ``$defs`` of its schema, such as "guest".
        value: what is judged.
        where: what the errors' paths begin with, such as the state's name.
        saltenv: the file server's environment; by default the minion's own, else "base".

    Returns:
        One line for each error, "path: what is wrong"; an empty list when all is well.
    """
    env = saltenv or __opts__.get("saltenv") or "base"
    fetch, utils = __salt__["cp.cache_file"], _utilities()
    errors = utils["formula_salt.judge"](name, definition, value, where, env, fetch, utils)
    return [f"{path}: {text}" for path, text in errors]


def validate(name: str | None = None, saltenv: str | None = None) -> list[str]:
    """Says what is wrong with this host's pillar; the exit code is 1 when anything is.

    CLI example: ``salt '*' formula.validate``

    Args:
        name: a formula; by default all that there are.
        saltenv: the file server's environment; by default the minion's own, else "base".

    Returns:
        One line for each error, "path: what is wrong"; an empty list when all is well.
    """
    env = saltenv or __opts__.get("saltenv") or "base"
    names = [name] if name else _formulas(env)
    lines = []
    for one in names:
        errors = __utils__["formula_salt.validate"](*_subject(one, env))
        lines += [f"{path}: {text}" for path, text in errors]
    if lines:
        __context__["retcode"] = 1
    return lines


def _formulas(saltenv: str) -> list[str]:
    """Finds the formulas that the file server has: folders with a schema and an init.sls."""
    paths = set(__salt__["cp.list_master"](saltenv))
    found = {path.removesuffix("/schema.yaml") for path in paths if path.endswith("/schema.yaml")}
    return sorted(one for one in found if "/" not in one and f"{one}/init.sls" in paths)

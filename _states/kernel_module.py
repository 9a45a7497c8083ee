"""Modules of the running kernel, and whether their options are those that are declared.

The files that load, configure or blacklist modules at boot are a matter of file.managed. A state here
loads a module now, and says where a loaded one has other options than the files. It never unloads one:
guests or disks may depend on it, so that waits for a reboot or for an administrator.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

Option = bool | int | str | list[str]

_SYS = Path("/sys/module")
_LIBRARY = Path("/lib/modules")
_TIMEOUT = 60  # seconds; a driver may look for its devices
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")


def canonical(name: str) -> str:
    """Returns a module's name as the kernel writes it; raises ValueError for what is none."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is not the name of a kernel module")
    return name.replace("-", "_")


def spelt(value: Option) -> str:
    """Returns an option's value as modprobe.d has it: 1 or 0, a number, a text, or a list with commas."""
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def equal(wanted: str, found: str) -> bool:
    """Says whether a parameter in /sys has a value; the kernel writes a boolean as Y or N, an unset list as (null)."""
    booleans = {"Y": "1", "N": "0", "y": "1", "n": "0"}
    if booleans.get(wanted, wanted) == booleans.get(found, found):
        return True
    try:
        return int(wanted, 0) == int(found, 0)
    except ValueError:
        return False


def differing(options: Mapping[str, Option], parameters: Mapping[str, str]) -> list[str]:
    """Lists how a loaded module's parameters differ from the declared options; what /sys does not show is skipped."""
    return [
        f"{key} is {parameters[key]}, not {spelt(value)}"
        for key, value in options.items()
        if key in parameters and not equal(spelt(value), parameters[key])
    ]


def present(name: str) -> bool:
    """Says whether the running kernel has a module, loaded or built in."""
    if (_SYS / name).exists():
        return True
    try:
        builtin = (_LIBRARY / os.uname().release / "modules.builtin").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(canonical(Path(line).name.partition(".")[0]) == name for line in builtin.split())


def parameters(name: str) -> dict[str, str]:
    """Returns the parameters of a loaded module that /sys shows."""
    found = {}
    for path in sorted((_SYS / name / "parameters").glob("*")):
        try:
            found[path.name] = path.read_text(encoding="utf-8").strip()
        except OSError:  # some can only be written
            continue
    return found


def _remark(name: str, options: Mapping[str, Option]) -> str:
    """Returns what is to say of a module that is there."""
    if others := differing(options, parameters(name)):
        return (
            f"{name} runs with other options: {'; '.join(others)}. They change when it is loaded again: at the "
            f"next boot, or by hand when nothing uses it (modprobe -r {name}, then modprobe {name})."
        )
    return f"{name} is there with these options." if options else f"{name} is there."


def loaded(name: str, options: dict[str, Option] | None = None) -> dict[str, Any]:
    """Makes sure that a module is loaded, and says if its options are not the declared ones.

    Args:
        name: the module.
        options: its declared options, which a file in /etc/modprobe.d has.

    Returns:
        A state result; it fails if the module cannot be loaded.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        module = canonical(name)
    except ValueError as error:
        return ret | {"result": False, "comment": f"{error}."}
    if present(module):
        return ret | {"comment": _remark(module, options or {})}
    changes = {"module": {"old": None, "new": module}}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"Would load {module}."}
    if not salt.utils.path.which("modprobe"):
        return ret | {"result": False, "comment": "modprobe is not installed (package kmod)."}
    done = __salt__["cmd.run_all"](
        ["modprobe", "--use-blacklist", "--", module], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    if done["retcode"] != 0 or not present(module):
        said = done["stderr"] or done["stdout"] or "it is blacklisted by a file in /etc/modprobe.d"
        return ret | {"result": False, "comment": f"{module} cannot be loaded: {said}."}
    return ret | {"changes": changes, "comment": _remark(module, options or {})}


def available(name: str, options: dict[str, Option] | None = None) -> dict[str, Any]:
    """Says whether a module that is loaded by whoever needs it has the declared options.

    Args:
        name: the module.
        options: as in :func:`loaded`.

    Returns:
        A state result, never with changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}}
    try:
        module = canonical(name)
    except ValueError as error:
        return ret | {"result": False, "comment": f"{error}."}
    if not present(module):
        return ret | {"comment": f"{module} is not loaded; its options are used when it is."}
    return ret | {"comment": _remark(module, options or {})}


def blacklisted(name: str) -> dict[str, Any]:
    """Says whether a module that must not be loaded by itself is loaded still; it is not unloaded.

    Args:
        name: the module, which a file in /etc/modprobe.d blacklists.

    Returns:
        A state result, never with changes.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}}
    try:
        module = canonical(name)
    except ValueError as error:
        return ret | {"result": False, "comment": f"{error}."}
    if present(module):
        return ret | {"comment": f"{module} is loaded and stays so until the next boot; it is never unloaded here."}
    return ret | {"comment": f"{module} is not loaded."}

"""SELinux type of a folder, in the policy and on the folder, where SELinux runs.

libvirt gives the image of a running guest a label of its own. What lies in the folder otherwise needs
the type that QEMU may use; the policy knows it for libvirt's default folder alone.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_RUNS = Path("/sys/fs/selinux/enforce")
_ATTRIBUTE = "security.selinux"
_TIMEOUT = 120  # seconds; semanage compiles the policy again
_TYPE = re.compile(r"[a-z][a-z0-9_]*\Z")


def type_of(context: str) -> str:
    """Returns the type of a context such as ``system_u:object_r:virt_image_t:s0``; raises ValueError for none."""
    parts = context.strip("\0\n ").split(":")
    if len(parts) < 3:
        raise ValueError(f"{context!r} is no SELinux context")
    return parts[2]


def pattern(path: str) -> str:
    """Returns the policy's expression for a folder and all that is in it."""
    return re.sub(r"([][\\.*+?{}()|^$])", r"\\\1", path.rstrip("/")) + "(/.*)?"


def _run(*argv: str) -> str:
    """Runs a program and returns its output; raises RuntimeError with its message if it is missing or fails."""
    if not salt.utils.path.which(argv[0]):
        packages = "policycoreutils-python-utils" if argv[0] == "semanage" else "libselinux-utils and policycoreutils"
        raise RuntimeError(f"{argv[0]} is not installed ({packages})")
    done = __salt__["cmd.run_all"](list(argv), python_shell=False, timeout=_TIMEOUT, ignore_retcode=True)
    if done["retcode"] != 0:
        raise RuntimeError(f"{argv[0]} failed: {done['stderr'] or done['stdout']}")
    return str(done["stdout"])


def _attribute(path: str) -> str:
    """Returns the type that a folder has; raises OSError."""
    return type_of(os.getxattr(path, _ATTRIBUTE).decode())


def _teach(path: str, setype: str) -> None:
    """Writes a folder's type into the local policy, whether or not there is a rule for it; raises RuntimeError."""
    arguments = ("--type", setype, pattern(path))
    try:
        _run("semanage", "fcontext", "--add", *arguments)
    except RuntimeError as error:
        if "already defined" not in str(error):
            raise
        _run("semanage", "fcontext", "--modify", *arguments)


def _differences(path: str, setype: str) -> dict[str, dict[str, str]]:
    """Returns what the policy and the folder have instead of a type; raises as :func:`_run` and the file system do."""
    found = {"policy": type_of(_run("matchpathcon", "-n", path)), "folder": _attribute(path)}
    return {where: {"old": old, "new": setype} for where, old in found.items() if old != setype}


def _apply(path: str, setype: str, changes: dict[str, dict[str, str]]) -> None:
    """Makes the changes; raises RuntimeError if one was not made."""
    if "policy" in changes:
        _teach(path, setype)
    if "folder" in changes:
        _run("restorecon", path)
        if _attribute(path) != setype:
            raise RuntimeError(f"restorecon left {path} with the type {_attribute(path)}")


def present(name: str, setype: str) -> dict[str, Any]:
    """Makes sure that a folder has an SELinux type, and that the policy gives it to what is made in it.

    Args:
        name: the folder. What is in it already is not touched.
        setype: the type, such as ``virt_image_t``.

    Returns:
        A state result, without changes where SELinux does not run.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not _TYPE.match(setype):
        return ret | {"result": False, "comment": f"{setype!r} is not the name of an SELinux type."}
    if not _RUNS.exists():
        return ret | {"comment": "SELinux does not run here."}
    if __opts__["test"] and not Path(name).exists():
        return ret | {"result": None, "changes": {"type": {"old": None, "new": setype}}, "comment": "To be labelled."}
    try:
        changes = _differences(name, setype)
        if not changes:
            return ret | {"comment": f"{name} has the type {setype}."}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": f"Would give {name} the type {setype}."}
        _apply(name, setype, changes)
    except (OSError, RuntimeError, ValueError) as error:
        return ret | {"result": False, "comment": f"{error}."}
    comment = "What is in the folder already keeps its type: restorecon -R changes that."
    return ret | {"changes": changes, "comment": comment}

"""Storage pools of libvirt: folders, network file systems and volume groups.

A pool is told to libvirt, made where that loses nothing, and started. A pool that is there already and
means the same is adopted as it is. No image, folder, volume or volume group is ever deleted here.

The arguments are those of a pool in the pillar (``libvirt:pools``, see docs/pillar.rst), and are judged
by the same schema: ptype, target, source, permissions, autostart, allow_format.
"""

import grp
import os
import pwd
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError
from salt.state import STATE_INTERNAL_KEYWORDS

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

# All together stay below 90 s: a question to libvirt, which may wait for a server that is gone, the
# server's port, the start.
_ASK = 25
_REACH = 5
_START = 55
_NFS_PORT = 2049
_MOUNTS = Path("/proc/self/mounts")


def running(name: str, **settings: Any) -> dict[str, Any]:
    """Make sure that a pool is defined like this and runs.

    Args:
        name: The pool.
        settings: As in the pillar, see above.

    Returns a state result. A pool whose change needs a new start while guests use it keeps running as
    it is, and the comment names them.
    """
    return _managed(name, "running", settings)


def defined(name: str, **settings: Any) -> dict[str, Any]:
    """Make sure that a pool is defined like this, whether it runs or not.

    Args:
        name: The pool.
        settings: As in the pillar, see above. Neither a folder nor a volume group is made.

    Returns a state result.
    """
    return _managed(name, "defined", settings)


def absent(name: str, leaving: list[str] | None = None) -> dict[str, Any]:
    """Make sure that libvirt has no pool of this name; what was in it stays where it is.

    Args:
        name: The pool.
        leaving: Guests that the same run removes before: a dry run, which still finds them, does not count them.

    Returns a state result; a failure that names them while guests have disks in it.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    errors = _judge(name, {"ensure": "absent"})
    if errors:
        return ret | {"result": False, "comment": "\n".join(errors)}
    if shutil.which("virsh") is None:
        return ret | {"comment": f"There is no pool {name}."}
    try:
        config, info = _asked(name)
        if config is None:
            return ret | {"comment": f"There is no pool {name}."}
        users = _users(name, __utils__["libvirt_pool.normal"](config)["target"], only_running=False)
        if __opts__["test"]:
            users = tuple(guest for guest in users if guest not in (leaving or ()))
        if users:
            comment = f"The pool {name} stays: guests have disks in it: {', '.join(users)}."
            return ret | {"result": False, "comment": comment}
        changes = {"state": {"old": "running" if info["active"] else "defined", "new": "absent"}}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": f"The pool {name} would be undefined."}
        if info["active"]:
            _virsh("pool-destroy", "--", name, timeout=_START)
        if info["persistent"]:
            _virsh("pool-undefine", "--", name)
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"Pool {name}: {error}."}
    return ret | {"changes": changes, "comment": f"The pool {name} is undefined; its data is where it was."}


def _managed(name: str, ensure: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `running` and `defined` promise."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    spec = {key: value for key, value in given.items() if key not in STATE_INTERNAL_KEYWORDS and key[:2] != "__"}
    spec["ensure"] = ensure
    errors = _judge(name, spec)
    if errors:
        return ret | {"result": False, "comment": "\n".join(errors)}
    if shutil.which("virsh") is None:
        return _missing(ret, "libvirt")
    try:
        spec = _with_ids(spec)
        facts = _facts(name, spec)
        todo = __utils__["libvirt_pool.plan"](name, spec, facts)
        needs = {step.action for step in todo.steps}
        if "group" in needs and shutil.which("vgcreate") is None:
            return _missing(ret, "lvm2")
        why = _refusals(spec, todo.steps)
        if why:
            return ret | {"result": False, "comment": f"Pool {name}: {'; '.join(why)}."}
        waits = f" What changed takes effect when it is started anew; it is {todo.waits}." if todo.waits else ""
        if __opts__["test"]:
            changes = {key: value for step in todo.steps for key, value in step.changes.items()}
            comment = f"The pool {name} would change." if changes else f"The pool {name} is as it should be."
            return ret | {"result": None if changes else True, "changes": changes, "comment": comment + waits}
        for step in todo.steps:
            _do(step, spec)
            ret["changes"].update(step.changes)
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"Pool {name}: {error}."}
    comment = f"The pool {name} is {ensure} now." if ret["changes"] else f"The pool {name} is as it should be."
    return ret | {"comment": comment + waits}


def _judge(name: str, spec: Mapping[str, Any]) -> list[str]:
    """Judge a name and arguments; return one line for each error."""
    if not __utils__["libvirt_tools.is_name"](name):
        return [f"{name!r} cannot be the name of a pool: letters, digits and _.+:@- are allowed."]
    errors: list[str] = __salt__["formula.judge"]("libvirt", "pool", dict(spec), name)
    if not errors:
        errors = [f"{name}:{key}: {text}" for key, text in __utils__["libvirt_rules.pool"](name, spec)]
    return errors


def _missing(ret: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the result for a host that lacks a program: a failure unless it is a dry run."""
    if __opts__["test"]:
        changes = {"pool": f"to be set up once {what} is installed"}
        return ret | {"result": None, "changes": changes, "comment": f"{what} is not installed yet."}
    return ret | {"result": False, "comment": f"Pool {ret['name']}: {what} is not installed."}


def _virsh(*argv: str, timeout: float = _ASK) -> str:
    """Run a command of virsh."""
    return str(__utils__["libvirt_tools.virsh"](*argv, timeout=timeout))


def _asked(name: str) -> tuple[str | None, dict[str, bool]]:
    """Return the XML that the next start of a pool uses, or None, and whether it is active, persistent, autostart."""
    if name not in _virsh("pool-list", "--all", "--name").split():
        return None, {"active": False, "persistent": False, "autostart": False}
    config = _virsh("pool-dumpxml", "--inactive", "--", name)
    info = dict(re.findall(r"^(\w+): +(.*)$", _virsh("pool-info", "--", name), re.MULTILINE))
    return config, {
        "active": info.get("State") == "running",
        "persistent": info.get("Persistent") == "yes",
        "autostart": info.get("Autostart") == "yes",
    }


def _facts(name: str, spec: Mapping[str, Any]) -> Any:
    """Look at the host; return libvirt_pool's Facts as it takes them."""
    config, info = _asked(name)
    live = _virsh("pool-dumpxml", "--", name) if info["active"] else None
    mounted = spec["ptype"] == "netfs" and _is_mounted(spec["target"])
    group = False
    if spec["ptype"] == "logical" and live is None and spec["ensure"] == "running" and shutil.which("pvs"):
        wanted = __utils__["libvirt_pool.wanted"](name, spec)["group"]
        group = wanted in __utils__["libvirt_lvm.volumes"](__utils__["libvirt_tools.run"]).values()
    # A folder on a server that is gone is never looked at.
    look = spec["ptype"] == "dir" or (spec["ptype"] == "netfs" and not mounted)
    facts = {
        "config": config,
        "live": live,
        "persistent": info["persistent"],
        "autostart": info["autostart"],
        "folder": _folder(spec["target"]) if look else None,
        "mounted": mounted,
        "group": group,
    }
    found = __utils__["libvirt_pool.facts_of"](**facts)
    if __utils__["libvirt_pool.outdated"](name, spec, found):
        target = __utils__["libvirt_pool.normal"](live)["target"]
        found = __utils__["libvirt_pool.facts_of"](**facts, users=_users(name, target, only_running=True))
    return found


def _folder(path: str) -> dict[str, Any] | None:
    """Return mode, owner and group of a folder; None where there is nothing."""
    # A child can be ended while it waits for a server that is gone; this process could not.
    argv = ["stat", "--dereference", "--format=%F|%a|%u|%g", "--", path]
    try:
        kind, mode, owner, group = __utils__["libvirt_tools.run"](argv, timeout=_REACH).strip().split("|")
    except CommandExecutionError as error:
        if "No such file or directory" in str(error):
            return None
        raise
    if kind != "directory":
        raise CommandExecutionError(f"{path} is not a folder")
    return {"mode": mode.zfill(4), "owner": int(owner), "group": int(group)}


def _is_mounted(path: str) -> bool:
    """Say whether something is mounted at a path, without touching it."""
    mounts = [line.split()[1] for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    return path.replace(" ", r"\040") in mounts


def _users(name: str, target: str, *, only_running: bool) -> tuple[str, ...]:
    """Return the names of guests that use a pool."""
    # A name of somebody else's guest may hold blanks.
    guests = _virsh("list", "--name", *([] if only_running else ["--all"])).strip().splitlines()
    option = [] if only_running else ["--inactive"]
    return tuple(
        guest
        for guest in guests
        if __utils__["libvirt_pool.uses"](_virsh("dumpxml", *option, "--", guest), name, target)
    )


def _with_ids(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the pool's settings with the names of owner and group as numbers."""
    permissions = dict(spec.get("permissions") or {})
    for key, find in (("owner", _uid), ("group", _gid)):
        if isinstance(permissions.get(key), str):
            permissions[key] = find(permissions[key])
    return {**spec, "permissions": permissions}


def _uid(user: str) -> int:
    """Return the number of a user."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise CommandExecutionError(f"there is no user {user}") from None


def _gid(group: str) -> int:
    """Return the number of a group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise CommandExecutionError(f"there is no group {group}") from None


def _refusals(spec: Mapping[str, Any], steps: tuple[Any, ...]) -> list[str]:
    """Find what speaks against the steps before the first is done: a server that is gone, data on a device."""
    found = []
    for step in steps:
        if step.action == "start" and spec["ptype"] == "netfs":
            found += _unreachable(spec["source"]["hosts"][0])
        elif step.action == "group":
            group, devices = step.arguments
            if not devices:
                found.append(f"there is no volume group {group}; make it, or list its devices under source:devices")
                continue
            run = __utils__["libvirt_tools.run"]
            known = __utils__["libvirt_lvm.volumes"](run)
            overwrite = bool(spec.get("allow_format"))
            found += __utils__["libvirt_lvm.refusals"](run, devices, known, overwrite)
    return found


def _unreachable(server: str) -> list[str]:
    """Ask an NFS server for a connection: a mount would go on trying for minutes, and libvirt wait for it."""
    try:
        with socket.create_connection((server, _NFS_PORT), timeout=_REACH):
            return []
    except OSError as error:
        return [f"the server {server} does not answer on port {_NFS_PORT}: {error}"]


def _do(step: Any, spec: Mapping[str, Any]) -> None:
    """Do one step of a plan; raises CommandExecutionError."""
    if step.action == "virsh":
        _virsh(*step.arguments, timeout=_START)
    elif step.action == "define":
        __utils__["libvirt_tools.virsh"]("pool-define", "/dev/stdin", stdin=step.arguments[0], timeout=_ASK)
    elif step.action == "start":
        _virsh("pool-start", "--", *step.arguments, timeout=_START)
    elif step.action == "group":
        run = __utils__["libvirt_tools.run"]
        __utils__["libvirt_lvm.create"](run, *step.arguments, bool(spec.get("allow_format")))
    elif step.action == "folder":
        _make_folder(*step.arguments)


def _make_folder(path: str, permissions: Mapping[str, Any]) -> None:
    """Make a folder, or change its permissions."""
    try:
        Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
        if permissions:
            os.chown(path, permissions["owner"], permissions["group"])
            Path(path).chmod(int(permissions["mode"], 8))
    except OSError as error:
        raise CommandExecutionError(f"{path}: {error.strerror}") from error

"""The live inventory: its folder on the master, the engine on hypervisors, and its end.

A run that restarted its own minion would never hand in its result. So the minion restarts detached, once the run has
ended; whether it has to is found by comparing times, so that what an interrupted run left is made good by the next.
"""

import grp
import os
import pwd
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.config

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_MASTER = Path("/etc/salt/master")
_FOLDER = Path("/var/lib/hypervisor-inventory")
_UNITS = ("hypervisor-inventory.service", "hypervisor-inventory.socket")
_UNIT_FOLDER = Path("/etc/systemd/system")
_MINION = "salt-minion.service"
_RESTART_UNIT = "hypervisor-formula-minion-restart.service"
_PROGRAM = Path("/usr/lib/hypervisor-formula/libvirt_watch.py")
# What the engine on a hypervisor is made of, below the folder of extension modules.
_UTILITIES = ("engine_work", "hypervisor_host", "hypervisor_xml", "inventory_words", "network_tool")
_ENGINE = ("engines/guest_events.py", *(f"utils/{name}.py" for name in _UTILITIES))
_MODE = 0o2750
_GRACE = 3  # seconds from the end of a run to the restart, for its result to reach the master
_LONGEST_RUN = 7200  # seconds that a restart waits for the end of the run


def _result(name: str) -> dict[str, Any]:
    """Return a state result of which nothing is decided."""
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def folder(name: str, group: str) -> dict[str, Any]:
    """Make sure that the master can write to a folder, and a group can read what it writes.

    Args:
        name: Path of the folder.
        group: The group.

    Returns a state result.
    """
    ret = _result(name)
    owner = str(salt.config.master_config(str(_MASTER)).get("user") or "root")
    path = Path(name)
    try:
        if path.is_dir():
            status = path.stat()
            known = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
            if (*known, stat.S_IMODE(status.st_mode)) == (owner, group, _MODE):
                return ret | {"comment": f"{name} is as it shall be."}
        ret["changes"] = {"folder": f"{_MODE:04o} {owner} {group}"}
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"{name} would be {owner}'s, and {group} could read it."}
        path.mkdir(mode=0o700, exist_ok=True)
        shutil.chown(path, owner, group)
        path.chmod(_MODE)
    except (OSError, LookupError) as error:
        return ret | {"result": False, "changes": {}, "comment": f"{name} could not be made: {error}."}
    return ret | {"comment": f"{name} is {owner}'s, and {group} can read it."}


def absent(name: str) -> dict[str, Any]:
    """Make sure that nothing serves the inventory; where nothing did, nothing is done.

    Args:
        name: Any label.

    Returns a state result.
    """
    ret = _result(name)
    there = [str(_UNIT_FOLDER / unit) for unit in _UNITS if (_UNIT_FOLDER / unit).exists()]
    there += [str(_FOLDER)] if _FOLDER.exists() else []
    if not there:
        return ret | {"comment": "Nothing serves the inventory."}
    ret["changes"] = {"removed": there}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The inventory would no longer be served."}
    units = [unit for unit in _UNITS if (_UNIT_FOLDER / unit).exists()]
    if units and (why := _failed([["systemctl", "disable", "--now", "--quiet", *units]])):
        return ret | {"result": False, "changes": {}, "comment": why}
    try:
        for unit in units:
            (_UNIT_FOLDER / unit).unlink()
        if _FOLDER.exists():
            shutil.rmtree(_FOLDER)
    except OSError as error:
        return ret | {"result": False, "changes": {}, "comment": f"{error}."}
    if why := _failed([["systemctl", "daemon-reload"]]):
        return ret | {"result": False, "comment": why}
    return ret | {"comment": "The inventory is no longer served."}


def engine(name: str) -> dict[str, Any]:
    """Make sure that the minion runs its engine as it is on disk.

    Args:
        name: Path of the minion's drop-in that says so.

    Returns a state result.
    """
    return _run(name, changed=False)


def silent(name: str) -> dict[str, Any]:
    """Make sure that the minion runs no such engine; where none was set up, nothing is done.

    Args:
        name: Path of the minion's drop-in that says so.

    Returns a state result.
    """
    ret = _result(name)
    if not Path(name).exists():
        return ret | {"comment": "The minion tells nothing."}
    ret["changes"] = {"removed": name} | ({"restart": _MINION} if _started() else {})
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The minion would tell nothing any more."}
    # Before its file goes, so that an interrupted run is made good by the next.
    if "restart" in ret["changes"] and (why := _failed([_restart(os.getpid())])):
        return ret | {"result": False, "changes": {}, "comment": why}
    Path(name).unlink()
    return ret | {"comment": "The minion tells nothing any more."}


def mod_watch(name: str, **_: Any) -> dict[str, Any]:
    """Do the same when the drop-in has changed, or would."""
    return _run(name, changed=True)


def _run(name: str, *, changed: bool) -> dict[str, Any]:
    """Let the minion restart if it is older than what it has to read."""
    ret = _result(name)
    extensions = Path(__opts__["extension_modules"])
    files = [Path(name), _PROGRAM, *(extensions / one for one in _ENGINE)]
    began = _started()
    if not began:
        return ret | {"comment": f"{_MINION} does not run here; it will read what is on disk."}
    if began > max(map(_mtime, files)) and not (changed and __opts__["test"]):
        return ret | {"comment": "The minion runs with what is on disk."}
    if _show(_RESTART_UNIT, "ActiveState") in {"active", "activating"}:
        return ret | {"comment": f"{_MINION} is about to restart."}
    ret["changes"] = {"restart": _MINION}
    if __opts__["test"]:
        return ret | {"result": None, "comment": f"{_MINION} would restart when the run has ended."}
    if why := _failed([_restart(os.getpid())]):
        return ret | {"result": False, "changes": {}, "comment": why}
    return ret | {"comment": f"{_MINION} restarts {_GRACE} s after this run has ended."}


def _show(unit: str, field: str) -> str:
    """Return what systemd says of a unit."""
    done = __salt__["cmd.run_all"](
        ["systemctl", "show", f"--property={field}", "--value", unit],
        python_shell=False,
        timeout=90,
        ignore_retcode=True,
    )
    return str(done["stdout"]).strip()


def _started() -> float:
    """Return when the minion was started last, in seconds since 1970; 0 when systemd runs none."""
    if _show(_MINION, "ActiveState") != "active":
        return 0.0
    entered = int(_show(_MINION, "ActiveEnterTimestampMonotonic") or 0) / 1_000_000
    return time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + entered


def _mtime(path: Path) -> float:
    """Return when a file was written, 0 if there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _failed(calls: list[list[str]]) -> str:
    """Run commands one after the other; return what the first that fails says, or nothing."""
    for argv in calls:
        done = __salt__["cmd.run_all"](argv, python_shell=False, timeout=90, ignore_retcode=True)
        if done["retcode"] != 0:
            return f"{' '.join(argv[:2])} failed: {(done['stderr'] or done['stdout']).strip()}."
    return ""


def _restart(process: int) -> list[str]:
    """Return the command that has systemd restart the minion when a process has ended."""
    wait = f"-/usr/bin/timeout {_LONGEST_RUN} /usr/bin/tail --pid={process} --follow /dev/null"
    argv = ["systemd-run", "--no-block", "--collect", "--quiet", f"--unit={_RESTART_UNIT}"]
    argv += ["--description=Restart Salt's minion for new files", "--property=TimeoutStartSec=infinity"]
    argv += [f"--property=ExecStartPre={wait}", f"--property=ExecStartPre=/usr/bin/sleep {_GRACE}"]
    return [*argv, "systemctl", "restart", _MINION]

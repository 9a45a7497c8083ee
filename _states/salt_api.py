"""salt-api on the master: installed, told who may do what, and running with what is on disk.

A run that restarted its own master would never hand in its result. So both daemons restart detached, once the run has
ended; whether they have to is found by comparing times, so that what an interrupted run left is made good by the next.
"""

import os
import pwd
import socket
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.config
import salt.utils.yaml
import salt.version

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_MASTER = Path("/etc/salt/master")
_HASHES = "/etc/salt/hypervisor-api.users"
_SERVICES = ("salt-master.service", "salt-api.service")
# What each reads when it starts.
_READS = (
    "/etc/salt/master.d/hypervisor-api.conf",
    "/usr/lib/hypervisor-formula/master/auth/hypervisor.py",
    "/usr/lib/hypervisor-formula/master/netapi/hypervisor_api.py",
)
_READS_OF_API = (
    "/usr/lib/hypervisor-formula/master/hypervisor_audit.py",
    "/etc/systemd/system/salt-api.service.d/hypervisor.conf",
)
# What the engine on the master and the answers for tokens are made of.
_INVENTORY = Path("/usr/lib/hypervisor-formula/master/hypervisor_inventory")
_ENGINE = ("engines/inventory.py", "utils/engine_work.py")
_RESTART_UNIT = "hypervisor-formula-salt-restart.service"
_GRACE = 3  # seconds from the end of a run to the restart, for its result to reach the master
_LONGEST_RUN = 7200  # seconds that a restart waits for the end of the run
_HEAD = "# Written by Salt (saltapi.config).\n"


def _systemctl(*argv: str) -> dict[str, Any]:
    """Ask systemd something."""
    found: dict[str, Any] = __salt__["cmd.run_all"](
        ["systemctl", *argv], python_shell=False, timeout=90, ignore_retcode=True
    )
    return found


def _result(name: str) -> dict[str, Any]:
    """Return a state result of which nothing is decided."""
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def supported(name: str, backends: Iterable[str] = ("file",), inventory: bool = False) -> dict[str, Any]:
    """Make sure that operators may log in at this Salt, in the ways that pillar names.

    Args:
        name: Any label.
        backends: What checks passwords: file, pam, ldap.
        inventory: Whether the live inventory is served here.

    Returns a state result; it changes nothing.
    """
    ret = _result(name)
    wrong = [__utils__["saltapi_plan.unsafe"](salt.version.__version__)]
    if not _imports("cherrypy"):
        wrong.append("Salt's Python has no cherrypy, which salt-api needs")
    if inventory and not _imports("tornado"):
        wrong.append("Salt's Python has no tornado, which Salt 3008 brings; set saltapi:inventory:enabled to false")
    if "ldap" in backends and not _imports("ldap"):
        wrong.append("saltapi:backends has ldap, and Salt's Python has no library python-ldap")
    if "pam" in backends and not _may_ask_pam():
        wrong.append(
            f"saltapi:backends has pam, and the master runs as {_owner()}, who cannot read /etc/shadow: on Debian and "
            f"Ubuntu add {_owner()} to the group shadow; elsewhere use file or ldap"
        )
    wrong = [one for one in wrong if one]
    if wrong:
        return ret | {"result": False, "comment": f"Operators may not log in here: {'; '.join(wrong)}."}
    return ret | {"comment": f"Salt {salt.version.__version__} is new enough."}


def _imports(module: str) -> bool:
    """Say whether Salt's Python finds a module."""
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def _owner() -> str:
    """Return the user that the master runs as."""
    return str(salt.config.master_config(str(_MASTER)).get("user") or "root")


def _may_ask_pam() -> bool:
    """Say whether PAM would check another user's password for the master."""
    try:
        entry = pwd.getpwnam(_owner())
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        shadow = Path("/etc/shadow").stat()
    except (KeyError, OSError):
        return False
    return entry.pw_uid == 0 or (bool(shadow.st_mode & stat.S_IRGRP) and shadow.st_gid in groups)


def installed(name: str, package: str) -> dict[str, Any]:
    """Make sure that there is a unit of salt-api: bootstrap's, or the package's.

    Args:
        name: Any label.
        package: What brings it where Salt comes from packages.

    Returns a state result.
    """
    ret = _result(name)
    try:
        if _there():
            return ret | {"comment": "salt-api is installed."}
        if Path("/opt/saltstack/salt/pyvenv.cfg").exists():
            comment = "There is no unit of salt-api beside the Salt of bootstrap; run bootstrap master again."
            return ret | {"result": False, "comment": comment}
        if __opts__["test"]:
            return ret | {"result": None, "changes": {"installed": package}, "comment": f"Would install {package}."}
        changes = __salt__["pkg.install"](package)
    except (OSError, RuntimeError) as error:
        return ret | {"result": False, "comment": f"{package} could not be installed: {error}."}
    if not _there():
        return ret | {"result": False, "changes": changes, "comment": f"{package} brings no salt-api.service."}
    return ret | {"changes": changes, "comment": f"{package} is installed."}


def _there() -> bool:
    """Say whether systemd knows salt-api."""
    return bool(_systemctl("show", "--property=LoadState", "--value", _SERVICES[1])["stdout"].strip() == "loaded")


def users(name: str, hashes: dict[str, str] | None = None) -> dict[str, Any]:
    """Make sure that a file holds exactly these hashes, for the master's eyes alone.

    Args:
        name: Path of the file.
        hashes: The hash of each user's password.

    Returns a state result that shows names and no hashes.
    """
    wanted = dict(hashes or {})
    content = __utils__["saltapi_plan.hashes"](wanted)
    before = _read(name)
    lines = (before or "").splitlines()
    known = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    changes = {
        "added": sorted(wanted.keys() - known.keys()),
        "removed": sorted(known.keys() - wanted.keys()),
        "changed": sorted(one for one in wanted.keys() & known.keys() if wanted[one] != known[one]),
    }
    return _written(name, before, content, {what: names for what, names in changes.items() if names})


def master_file(
    name: str,
    users: dict[str, Any],
    groups: dict[str, Any],
    roles: dict[str, list[str]],
    settings: dict[str, Any],
    code: str,
) -> dict[str, Any]:
    """Make sure that the master's drop-in says who may do what, and how salt-api listens.

    Args:
        name: Path of the file.
        users: Roles with their hosts, by user.
        groups: The same by group.
        roles: Functions of each role.
        settings: The other keys of the pillar.
        code: The folder of the modules for logins and requests.

    Returns a state result that names what changed.
    """
    wanted = __utils__["saltapi_plan.master"]((users, groups), roles, settings, code, _HASHES)
    content = _HEAD + salt.utils.yaml.safe_dump(wanted, default_flow_style=False, sort_keys=True)
    before = _read(name)
    try:
        known = salt.utils.yaml.safe_load(before or "") or {}
    except salt.utils.yaml.YAMLError:
        known = {}
    keys = sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))
    return _written(name, before, content, {"settings": keys} if keys else {})


def _read(name: str) -> str | None:
    """Return the text of a file, None if there is none."""
    content = __utils__["own_files.read"](name)
    return None if content is None else content.decode("utf-8", "replace")


def _written(name: str, before: str | None, content: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Write a file that only the master reads, if content, owner or mode differ."""
    ret = _result(name)
    try:
        entry = pwd.getpwnam(_owner())
        if before == content:
            status = Path(name).stat()
            mode = stat.S_IMODE(status.st_mode)
            if status.st_uid == entry.pw_uid and mode == 0o400:
                return ret | {"comment": f"{name} is as it shall be."}
            changes = {"mode": f"{mode:04o} to 0400 for {entry.pw_name}"}
        changes = changes or {"text": "written anew"}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": f"Would write {name}."}
        # Not *.conf until it is whole: the master reads all of those.
        __utils__["own_files.write"](name, content.encode("utf-8"), 0o400, (entry.pw_uid, entry.pw_gid))
    except (OSError, KeyError) as error:
        return ret | {"result": False, "comment": f"{name} could not be written: {error}."}
    return ret | {"changes": changes, "comment": f"{name} was written."}


def _started(service: str) -> float:
    """Return when a service was started last, in seconds since 1970; 0 when it does not run."""
    asked = "ActiveState,ActiveEnterTimestampMonotonic"
    lines = _systemctl("show", f"--property={asked}", service)["stdout"].splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    if fields.get("ActiveState") != "active":
        return 0.0
    entered = int(fields.get("ActiveEnterTimestampMonotonic") or 0) / 1_000_000
    return time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + entered


def _mtime(path: str) -> float:
    """Return when a file was written, 0 if there is none."""
    try:
        return Path(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _inventory() -> list[str]:
    """Return the files of the inventory that the master and salt-api read."""
    extensions = salt.config.master_config(str(_MASTER)).get("extension_modules") or ""
    return [*(str(Path(extensions, one)) for one in _ENGINE), *map(str, _INVENTORY.glob("*.py"))]


def _answers(port: int) -> bool:
    """Say whether something listens on the port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def running(name: str, port: int) -> dict[str, Any]:
    """Make sure that salt-api runs now and after a boot, and that it and the master have read what is on disk.

    Args:
        name: Any label.
        port: Where it listens on loopback.

    Returns a state result.
    """
    return _run(name, port, changed=False)


def mod_watch(name: str, port: int, **_: Any) -> dict[str, Any]:
    """Do the same when a file has changed, or would."""
    return _run(name, port, changed=True)


def _run(name: str, port: int, *, changed: bool) -> dict[str, Any]:
    """Enable, start or restart what needs it."""
    ret = _result(name)
    changes: dict[str, Any] = {}
    if _systemctl("is-enabled", _SERVICES[1])["stdout"].strip() != "enabled":
        changes["enabled"] = _SERVICES[1]
    began = {service: _started(service) for service in _SERVICES}
    master = max(map(_mtime, (*_READS, *_inventory())))
    stale = [_SERVICES[0]] if began[_SERVICES[0]] <= master or (changed and __opts__["test"]) else []
    if stale or began[_SERVICES[1]] <= max(master, *map(_mtime, _READS_OF_API)) or (changed and __opts__["test"]):
        stale.append(_SERVICES[1])
    # One that is to come will find what is on disk now.
    pending = bool(stale) and _systemctl("is-active", _RESTART_UNIT)["stdout"].strip() in {"active", "activating"}
    if stale and not pending:
        changes["restart"] = stale
    if pending and not changes:
        return ret | {"comment": f"{' and '.join(stale)} are about to restart."}
    if not changes:
        if not _answers(port):
            comment = f"salt-api runs, but nothing answers on port {port}; see: journalctl -u salt-api"
            return ret | {"result": False, "comment": comment}
        return ret | {"comment": "salt-api runs with what is on disk."}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "Would restart when the run has ended."}
    return _carry_out(ret, changes, changes.get("restart", []))


def absent(name: str) -> dict[str, Any]:
    """Make sure that nobody may log in any more; where nobody ever could, nothing is done.

    Args:
        name: Path of the master's drop-in.

    Returns a state result.
    """
    ret = _result(name)
    files = [path for path in (name, _HASHES) if Path(path).exists()]
    if not files:
        return ret | {"comment": "Nobody may log in at this master."}
    changes = {"removed": files, "stopped": _SERVICES[1], "restart": [_SERVICES[0]]}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "Would end all logins."}
    # Before its files go, so that an interrupted run is made good by the next.
    calls = [["systemctl", "disable", "--now", "--quiet", _SERVICES[1]], _restart(os.getpid(), [_SERVICES[0]])]
    if why := _failed(calls):
        return ret | {"result": False, "comment": why}
    try:
        for path in files:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        return ret | {"result": False, "comment": f"{error}."}
    comment = f"Nobody may log in any more; {_SERVICES[0]} restarts {_GRACE} s after this run has ended."
    return ret | {"changes": changes, "comment": comment}


def _failed(calls: Iterable[list[str]]) -> str:
    """Run commands one after the other; return what the first that fails says, or nothing."""
    for argv in calls:
        done = __salt__["cmd.run_all"](argv, python_shell=False, timeout=90, ignore_retcode=True)
        if done["retcode"] != 0:
            said = (done["stderr"] or done["stdout"]).strip()
            return f"{' '.join(argv[:2])} failed: {said}."
    return ""


def _carry_out(ret: dict[str, Any], changes: dict[str, Any], stale: list[str]) -> dict[str, Any]:
    """Enable salt-api, and let systemd restart what is stale when this process has ended."""
    calls: list[list[str]] = []
    if "enabled" in changes:
        calls.append(["systemctl", "enable", "--quiet", _SERVICES[1]])
    if stale:
        calls += [["systemctl", "daemon-reload"], _restart(os.getpid(), stale)]
    if why := _failed(calls):
        return ret | {"result": False, "comment": why}
    when = f"{' and '.join(stale)} restart {_GRACE} s after this run has ended." if stale else "salt-api is enabled."
    return ret | {"changes": changes, "comment": when}


def _restart(process: int, services: list[str]) -> list[str]:
    """Return the command that has systemd restart services when a process has ended."""
    wait = f"-/usr/bin/timeout {_LONGEST_RUN} /usr/bin/tail --pid={process} --follow /dev/null"
    argv = ["systemd-run", "--no-block", "--collect", "--quiet", f"--unit={_RESTART_UNIT}"]
    argv += ["--description=Restart Salt for new files", "--property=TimeoutStartSec=infinity"]
    argv += [f"--property=ExecStartPre={wait}", f"--property=ExecStartPre=/usr/bin/sleep {_GRACE}"]
    return [*argv, "systemctl", "restart", *services]

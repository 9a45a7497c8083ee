"""Disks of iSCSI targets: recorded so that they come back at every boot, and connected now.

Each record of open-iscsi is a file of ``key = value`` lines (iscsiadm(8), mode node). Settings are written there, since
iscsiadm takes a password as an argument only, where everybody on the host could read it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

# Where distributions keep the records: Debian and SUSE, then Enterprise Linux.
_FOLDERS = (Path("/etc/iscsi/nodes"), Path("/var/lib/iscsi/nodes"))
_NAME_FILE = Path("/etc/iscsi/initiatorname.iscsi")
_BY_PATH = Path("/dev/disk/by-path")
_PORT = 3260  # RFC 7143, section 9.1
_NONE = 21  # ISCSI_ERR_NO_OBJS_FOUND of iscsiadm(8)
_TIMEOUT = 30  # seconds for a question
_LOGIN = 90  # seconds for a target; with the settings below iscsid gives up after about 60
_SETTINGS = {
    "node.startup": "automatic",
    "node.session.initial_login_retry_max": "4",
    "node.conn[0].timeo.login_timeout": "15",
}
_AUTH = "node.session.auth."
# Keys of the pillar and what they are called in a record.
_LOGINS = {"user": "username", "password": "password", "target_user": "username_in", "target_password": "password_in"}
_SECRET = ("password", "target_password")
_SESSION = re.compile(r"\w+: \[\d+\] (\S+),-?\d+ (\S+)")
_DISK = re.compile(r"Attached scsi disk (\w+)")

Changes = dict[str, dict[str, Any]]


def endpoint(portal: str) -> str:
    """Returns a portal with its port, as open-iscsi shows it: ``192.0.2.50`` is ``192.0.2.50:3260``."""
    there = re.search(r"(\]|^[^:]+):\d+\Z", portal)
    return portal if there else f"{portal}:{_PORT}"


def settings(login: Mapping[str, str]) -> dict[str, str]:
    """Returns what a record must hold.

    Args:
        login: ``user`` and ``password``, with which the host proves itself, ``target_user`` and ``target_password``,
            with which the target does; empty leaves what a record has.
    """
    found = {**_SETTINGS, f"{_AUTH}authmethod": "CHAP"} if login else dict(_SETTINGS)
    return found | {f"{_AUTH}{name}": login[key] for key, name in _LOGINS.items() if key in login}


def parsed(text: str) -> dict[str, str]:
    """Returns the settings of a record."""
    pairs = (line.partition(" = ") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def rewritten(text: str, wanted: Mapping[str, str]) -> str:
    """Returns a record with other settings; what is not wanted otherwise stays as it is."""
    lines, missing = [], dict(wanted)
    for line in text.splitlines():
        key, equals, _ = line.partition(" = ")
        if equals and key in wanted:
            if key in missing:
                lines.append(f"{key} = {missing.pop(key)}")
        else:
            lines.append(line)
    end = next((at for at, line in enumerate(lines) if line.startswith("# END RECORD")), len(lines))
    lines[end:end] = [f"{key} = {value}" for key, value in missing.items()]
    return "\n".join(lines) + "\n"


def plan(
    portals: Iterable[str], wanted: Mapping[str, str], records: Mapping[str, Mapping[str, str]], sessions: Iterable[str]
) -> Changes:
    """Returns what has to be done, by portal.

    Args:
        portals: where the target is to be reached, with their ports.
        wanted: see :func:`settings`.
        records: settings of the records that there are, by portal.
        sessions: the portals to which there is a session.

    Returns:
        For each portal that is not as declared: the settings that differ with ``old`` and ``new``, passwords as words,
        and ``session`` where there is none.
    """
    connected, found = set(sessions), {}
    for portal in portals:
        record, changes = records.get(portal, {}), {}
        for key, value in wanted.items():
            if record.get(key) == value:
                continue
            if key in {f"{_AUTH}{_LOGINS[one]}" for one in _SECRET}:
                changes[key] = {"old": "another one" if key in record else None, "new": "the declared one"}
            else:
                changes[key] = {"old": record.get(key), "new": value}
        if portal not in connected:
            changes["session"] = {"old": "none", "new": "connected"}
        if changes:
            found[portal] = changes
    return found


def _iscsiadm(*argv: str, timeout: float = _TIMEOUT) -> str:
    """Runs iscsiadm and returns what it printed; nothing where there is nothing to show.

    Raises OSError with its own words where it failed.
    """
    command = ["iscsiadm", *argv]
    done = __salt__["cmd.run_all"](command, python_shell=False, timeout=timeout, ignore_retcode=True)
    if done["retcode"] == _NONE:
        return ""
    if done["retcode"] != 0:
        said = [line.removeprefix("iscsiadm: ") for line in done["stderr"].splitlines() if line.strip()]
        # Of the lines about a login that failed this one says why.
        why = next((line for line in said if "reported error" in line), said[0] if said else "")
        raise OSError(why.rstrip(".") or f"iscsiadm ended with {done['retcode']}")
    return str(done["stdout"])


def _installed() -> bool:
    """Says whether open-iscsi is there."""
    return bool(salt.utils.path.which("iscsiadm"))


def _sessions(target: str) -> set[str]:
    """Returns the portals to which there are sessions of a target."""
    found = _SESSION.findall(_iscsiadm("--mode", "session"))
    return {portal for portal, name in found if name == target}


def _files(target: str) -> dict[str, Path]:
    """Returns the records of a target: portal to file. One that discovery made stands in a folder of its own."""
    found = {}
    for folder in _FOLDERS:
        for path in sorted((folder / target).glob("*")):
            address, _, rest = path.name.partition(",")
            port = rest.partition(",")[0]
            file = path / "default" if path.is_dir() else path
            if port and file.is_file():
                found[f"[{address}]:{port}" if ":" in address else f"{address}:{port}"] = file
    return found


def _records(target: str) -> dict[str, dict[str, str]]:
    """Returns the settings of a target's records, by portal."""
    return {portal: parsed(path.read_text(encoding="utf-8")) for portal, path in _files(target).items()}


def _node(target: str, portal: str) -> list[str]:
    """Returns the words that name a record."""
    return ["--mode", "node", "--targetname", target, "--portal", portal]


def _disks(target: str) -> list[str]:
    """Returns the stable names of a target's disks."""
    return sorted(str(path) for path in _BY_PATH.glob(f"ip-*-iscsi-{target}-lun-*") if "-part" not in path.name)


def _told(target: str, others: Iterable[str]) -> str:
    """Returns what else is to be known of a connected target."""
    disks, more = _disks(target), sorted(others)
    text = f" Its disks: {', '.join(disks)}." if disks else " It offers this host no disk."
    return text + (f" Not declared, and left as they are: {', '.join(more)}." if more else "")


def _login(name: str) -> dict[str, str]:
    """Returns who the host is to a target; the state reads it itself, so that it stands in no compiled state."""
    declared = __salt__["formula.config"]("kvm")["iscsi"]["targets"].get(name, {})
    return {key: str(declared[key]) for key in _LOGINS if declared.get(key)}


def initiator_named(name: str) -> dict[str, Any]:
    """Make sure that this host calls itself so to every target.

    Args:
        name: Its iSCSI name, such as ``iqn.2026-01.org.example:hv1``.

    Returns a state result. While there are sessions the name stays, since targets know this host by it.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": f"This host is {name}."}
    try:
        lines = (__utils__["own_files.read"](_NAME_FILE) or b"").decode("utf-8", "replace").splitlines()
        old = next((line.partition("=")[2] for line in lines if line.startswith("InitiatorName=")), None)
        if old == name:
            return ret
        ret["changes"] = {"name": {"old": old, "new": name}}
        if _installed() and _iscsiadm("--mode", "session"):
            reason = f"kvm:iscsi:initiator: this host is {old} while it is connected; take its targets out first"
            return ret | {"result": False, "changes": {}, "comment": f"{reason} (ensure: absent)."}
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"This host would be {name}."}
        __utils__["own_files.write"](_NAME_FILE, f"InitiatorName={name}\n".encode(), 0o600)
        if __salt__["service.status"]("iscsid") and not __salt__["service.restart"]("iscsid"):
            return ret | {"result": False, "comment": "iscsid did not start again with the new name."}
    except OSError as error:
        return ret | {"result": False, "changes": {}, "comment": f"{name}: {error}."}
    return ret


def connected(name: str, portals: list[str]) -> dict[str, Any]:
    """Make sure that this host is connected to a target, now and after each boot.

    Args:
        name: The target's iSCSI name.
        portals: Its addresses, with a port unless that is 3260. A connection that is not named here stays.

    Returns a state result. Who this host is to the target comes from pillar, ``kvm:iscsi:targets``.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wanted, ends = settings(_login(name)), [endpoint(one) for one in portals]
    there = _installed()
    if not there and not __opts__["test"]:
        return ret | {"result": False, "comment": "iscsiadm is not installed: enable the role storage of kvm:packages."}
    try:
        records, sessions = _records(name), _sessions(name) if there else set()
        changes = plan(ends, wanted, records, sessions)
        if not changes or __opts__["test"]:
            comment = f"{name} would be connected." if changes else f"{name} is connected."
            ret |= {"result": None if changes else True, "changes": changes}
            return ret | {"comment": comment if changes else comment + _told(name, {*records, *sessions} - {*ends})}
    except OSError as error:
        return ret | {"result": False, "comment": f"{name}: {error}."}
    failed = []
    for portal, change in changes.items():
        try:
            _connect(name, portal, wanted, login="session" in change)
            ret["changes"][portal] = change
        except OSError as error:
            failed.append(f"{portal}: {error}")
    if failed:
        return ret | {"result": False, "comment": f"{name} is not connected as declared: {'; '.join(failed)}."}
    later = [portal for portal, change in changes.items() if "session" not in change]
    text = f" What changed for {', '.join(later)} counts from the next connection on." if later else ""
    return ret | {"comment": f"{name} is connected.{text}" + _told(name, {*records, *sessions} - {*ends})}


def _connect(target: str, portal: str, wanted: Mapping[str, str], *, login: bool) -> None:
    """Records a portal and connects to it. Raises OSError where that fails."""
    if portal not in _files(target):
        _iscsiadm(*_node(target, portal), "--op", "new")
    path = _files(target).get(portal)
    if path is None:
        raise OSError("iscsiadm made no record of it")
    text = path.read_text(encoding="utf-8")
    if any(parsed(text).get(key) != value for key, value in wanted.items()):
        __utils__["own_files.write"](path, rewritten(text, wanted).encode(), 0o600)
    if login:
        _iscsiadm(*_node(target, portal), "--login", timeout=_LOGIN)
        # Names of disks come with udev; what follows in the run may use them.
        settle = ["udevadm", "settle", f"--timeout={_TIMEOUT}"]
        __salt__["cmd.run_all"](settle, python_shell=False, timeout=2 * _TIMEOUT, ignore_retcode=True)


def disconnected(name: str) -> dict[str, Any]:
    """Make sure that this host is not connected to a target and does not connect at a boot.

    Args:
        name: The target's iSCSI name.

    Returns a state result. A disk that is in use is not taken away: the comment names it and its user.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": f"{name} is not connected."}
    try:
        sessions = _sessions(name) if _installed() else set()
        records = set(_files(name))
        changes: Changes = {portal: {"record": {"old": "there", "new": "none"}} for portal in sorted(records)}
        for portal in sorted(sessions):
            changes.setdefault(portal, {})["session"] = {"old": "connected", "new": "none"}
        if changes and (users := _in_use(name) if sessions else []):
            return ret | {"result": False, "comment": f"{name} stays connected: {'; '.join(users)}."}
        if not changes or __opts__["test"]:
            comment = f"{name} would be disconnected." if changes else ret["comment"]
            return ret | {"result": None if changes else True, "changes": changes, "comment": comment}
        for portal in sorted(sessions):
            _iscsiadm(*_node(name, portal), "--logout", timeout=_LOGIN)
        for portal in sorted(records):
            _iscsiadm(*_node(name, portal), "--op", "delete")
    except OSError as error:
        return ret | {"result": False, "comment": f"{name}: {error}."}
    return ret | {"changes": changes}


def _in_use(target: str) -> list[str]:
    """Returns which disks of a target are used, and by what."""
    shown = _iscsiadm("--mode", "session", "--print", "3")
    own = next((part for part in shown.split("Target: ") if part.startswith(f"{target} ")), "")
    users = {disk: __utils__["disk_use.user_of"](f"/dev/{disk}") for disk in _DISK.findall(own)}
    return [f"{disk} is used by {user}" for disk, user in users.items() if user]

"""DHCP and DNS on one private network, by a dnsmasq of its own that listens on one interface and nowhere else.

What it shall read is tested by dnsmasq before it replaces anything. Hosts, options and names are read again without a
restart; whatever else changes needs one. Leases are kept by both. Nothing is started while another program has the
same ports.
"""

import tempfile
import time
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

_DONE = {"start": "started", "restart": "restarted", "reload": "reloaded"}
_SETTLE = 5.0  # seconds in which a daemon that cannot run has ended
_PAUSE = 0.25
_SOCKETS = ("ss", "--no-header", "--listening", "--numeric", "--processes", "--udp", "--tcp")


def served(name: str, mesh: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Make sure that a network is served like this, now and after a reboot.

    Args:
        name: The network.
        mesh: As in the pillar ``network:mesh``: on the port of a mesh, guests are told its largest packet.
        settings: As in the pillar ``network:dnsmasq``.

    Returns a state result.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    spec = {key: value for key, value in settings.items() if key not in STATE_INTERNAL_KEYWORDS and key[:2] != "__"}
    errors = __salt__["formula.judge"]("network", "dnsmasq", spec, name)
    if errors:
        return ret | {"result": False, "comment": "\n".join(errors)}
    spec = {**_mesh_facts(spec["interface"], mesh or {}), **spec}
    unit = _unit(name)
    try:
        _tested(name, spec)
        content = __utils__["dnsmasq_config.files"](name, spec)
        differ, step, others = _planned(name, spec, content)
        if others:
            why = f"{'; '.join(others)}, so dnsmasq could not serve {name}"
            return ret | {"result": False, "comment": f"Nothing was changed: {why}."}
        ret["changes"] = {str(_folder(name) / one): "written" for one in differ}
        if step:
            ret["changes"][unit] = _DONE[step]
        if not _enabled(unit):
            ret["changes"][f"{unit} at boot"] = "enabled"
        if __opts__["test"] or not ret["changes"]:
            comment = f"The network {name} {'would be served anew' if ret['changes'] else 'is served as it should be'}."
            return ret | {"result": None if ret["changes"] else True, "comment": comment}
        for one in differ:
            # The daemon is not root: what it reads, others may read.
            __utils__["own_files.write"](_folder(name) / one, content[one].encode(), 0o644)
        _do(unit, step, f"{unit} at boot" in ret["changes"])
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"The network {name}: {error}."}
    return ret | {"comment": f"The network {name} is served as it should be now."}


def _mesh_facts(interface: str, mesh: Mapping[str, Any]) -> dict[str, int]:
    """Return what guests on the port of a mesh must be told."""
    mine = [one for one in mesh.values() if one.get("port") == interface and one.get("ensure") != "absent"]
    return {"mtu": __utils__["network_tunnels.mesh_mtu"](mine[0])} if mine else {}


def _planned(name: str, spec: Mapping[str, Any], content: Mapping[str, str]) -> tuple[list[str], str, list[str]]:
    """Return which files differ, what the service has to do, and who has its ports."""
    facts, folder = _shown(_unit(name)), _folder(name)
    differ = [one for one, text in content.items() if __utils__["own_files.read"](folder / one) != text.encode()]
    active = facts["ActiveState"] == "active"
    stale = [one for one in content if one not in differ and active and _newer(folder / one, facts)]
    step = str(__utils__["dnsmasq_config.steps"]([*differ, *stale], active))
    if active and facts.get("NeedDaemonReload") == "yes":
        step = "restart"
    return differ, step, _others(spec, int(facts.get("MainPID") or 0)) if step == "start" else []


def absent(name: str) -> dict[str, Any]:
    """Make sure that a network is not served by this formula; its leases are kept.

    Args:
        name: The network.

    Returns a state result.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": f"The network {name} is not served."}
    unit, folder = _unit(name), _folder(name)
    try:
        running, enabled = _shown(unit)["ActiveState"] == "active", _enabled(unit)
        if running or enabled:
            ret["changes"][unit] = "stopped"
        if folder.is_dir():
            ret["changes"][str(folder)] = "removed"
        if __opts__["test"] or not ret["changes"]:
            return ret | {"result": None if ret["changes"] else True}
        if running or enabled:
            __utils__["ovs_tools.run"](["systemctl", "disable", "--now", unit])
        for one in folder.iterdir() if folder.is_dir() else ():
            one.unlink()
        if folder.is_dir():
            folder.rmdir()
    except (CommandExecutionError, OSError) as error:
        return ret | {"result": False, "comment": f"The network {name}: {error}."}
    return ret


def _unit(name: str) -> str:
    """Return the service of a network."""
    return f"hypervisor-dnsmasq@{name}.service"


def _folder(name: str) -> Path:
    """Return the folder of a network's files."""
    return Path(__utils__["dnsmasq_config.folder"]()) / name


def _tested(name: str, spec: Mapping[str, Any]) -> None:
    """Let dnsmasq judge a configuration; raises CommandExecutionError with its words."""
    if not __utils__["ovs_tools.path"]("dnsmasq"):
        if __opts__["test"]:
            return
        raise CommandExecutionError("dnsmasq is not installed")
    text = __utils__["dnsmasq_config.candidate"](name, spec)
    with tempfile.TemporaryDirectory(prefix="hypervisor-dnsmasq-") as folder:
        path = Path(folder) / "dnsmasq.conf"
        path.write_text(text, encoding="utf-8")
        try:
            __utils__["ovs_tools.run"](["dnsmasq", "--test", f"--conf-file={path}"])
        except CommandExecutionError as error:
            words = str(error)
            lines = text.splitlines()
            for number, line in enumerate(lines, 1):
                words = words.replace(f"at line {number} of {path}", f"in «{line}»")
            raise CommandExecutionError(words) from None


def _shown(unit: str) -> dict[str, str]:
    """Return what systemd says of a unit."""
    names = "ActiveState,MainPID,NeedDaemonReload,StateChangeTimestampMonotonic,ActiveEnterTimestampMonotonic"
    text = __utils__["ovs_tools.run"](["systemctl", "show", f"--property={names}", unit])
    return {"ActiveState": "inactive", **dict(line.partition("=")[::2] for line in text.splitlines())}


def _newer(path: Path, facts: Mapping[str, str]) -> bool:
    """Whether a file was written after the daemon has read it last: an earlier run was interrupted before that."""
    key = "ActiveEnterTimestampMonotonic" if path.name == "dnsmasq.conf" else "StateChangeTimestampMonotonic"
    read = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + int(facts.get(key) or 0) / 1e6
    # Either time is inexact by the clock's steps.
    return path.stat().st_mtime > read + 1


def _enabled(unit: str) -> bool:
    """Whether a service starts with the host."""
    return (Path("/etc/systemd/system/multi-user.target.wants") / unit).is_symlink()


def _others(spec: Mapping[str, Any], own: int) -> list[str]:
    """Return which programs have the ports that a network needs."""
    if not __utils__["ovs_tools.path"]("ss"):
        return []
    nics = __utils__["ovs_plan.nics_of"](__utils__["ovs_tools.run"](["ip", "-json", "address", "show"]))
    nic = nics.get(spec["interface"])
    addresses = [one.partition("/")[0] for one in nic.addresses] if nic else []
    found = __utils__["dnsmasq_config.listeners"](__utils__["ovs_tools.run"](_SOCKETS))
    held: list[str] = __utils__["dnsmasq_config.taken"](spec, found, addresses, own)
    return held


def _do(unit: str, step: str, enable: bool) -> None:
    """Enable a service and take the step; raises CommandExecutionError when the daemon does not stay."""
    run = __utils__["ovs_tools.run"]
    run(["systemctl", "daemon-reload"])
    if enable:
        run(["systemctl", "enable", unit])
    if not step:
        return
    if step == "start":
        run(["systemctl", "reset-failed", unit], ok=(0, 1))
    run(["systemctl", step, unit])
    deadline = time.monotonic() + (_SETTLE if step != "reload" else 0)
    while time.monotonic() < deadline:
        time.sleep(_PAUSE)
        if _shown(unit)["ActiveState"] != "active":
            said = run(["journalctl", "--unit", unit, "--lines=3", "--output=cat", "--no-pager"], ok=(0, 1)).strip()
            raise CommandExecutionError(f"dnsmasq ended at once: {said or 'its journal says nothing'}")
        if _listens(unit):
            return


def _listens(unit: str) -> bool:
    """Whether a service's daemon has opened its sockets."""
    pid = int(_shown(unit).get("MainPID") or 0)
    found = __utils__["dnsmasq_config.listeners"](__utils__["ovs_tools.run"](_SOCKETS))
    return bool(pid) and any(one.pid == pid for one in found)

"""Keeps packets of tunnels from leaving or entering this host unencrypted.

IPsec is set up by programs that can be stopped, lack a key, or start later than the switch; then the kernel would
send plain packets. A table of nftables of its own drops them: it is loaded before the network starts, and stays
until the power is off.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_FOLDER = Path("/etc/hypervisor-formula")
_RULES = _FOLDER / "tunnel-guard.nft"
_UNIT = "hypervisor-tunnel-guard.service"
_UNITS = Path("/etc/systemd/system")
_HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run.\n"


def _files(rules: list[tuple[str, str]], nft: str) -> dict[Path, str]:
    """Return the guard's files: the rules, who loads them at boot, and who brings them back after a flush."""
    load = f"{nft} --file {_RULES}"
    # No ExecStop and no dependency on shutdown.target: until the power is off the rules stay.
    unit = (
        f"{_HEADER}[Unit]\nDescription=No packet of a tunnel leaves or enters unencrypted\nDefaultDependencies=no\n"
        "After=nftables.service\nBefore=network-pre.target openvswitch-switch.service ovs-vswitchd.service\n"
        f"Wants=network-pre.target\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={load}\n\n"
        "[Install]\nWantedBy=sysinit.target\n"
    )
    # Debian's nftables.service empties the whole rule set whenever it starts, reloads and stops.
    drop_in = f"{_HEADER}[Service]\nExecStartPost={load}\nExecReload={load}\nExecStopPost={load}\n"
    return {
        _RULES: _HEADER + __utils__["network_tunnels.guard_script"](rules),
        _UNITS / _UNIT: unit,
        _UNITS / "nftables.service.d" / "50-hypervisor-tunnel-guard.conf": drop_in,
    }


def loaded(
    name: str,
    bridges: dict[str, Any] | None = None,
    mesh: dict[str, Any] | None = None,
    node: str = "",
) -> dict[str, Any]:
    """Make sure that GRE, and tunnels with IPsec of other kinds, pass encrypted or not at all, also at boot.

    Args:
        name: Any label.
        bridges: As in the pillar ``network:ovs:bridges``.
        mesh: As in the pillar ``network:mesh``.
        node: This host's name in a mesh; by default its minion id.

    Returns a state result. Without a tunnel nothing is set up; a guard that is there stays, and goes on for encrypted
    tunnels that left the pillar and are still in the switch.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        declared = {"ipsec": {}, "ovs": {"bridges": bridges or {}}, "mesh": mesh or {}}
        composed = __utils__["network_tunnels.compose"](declared, node or __opts__["id"])
        peers = __utils__["network_tunnels.peers"](composed)
        if not peers and not _RULES.exists():
            # The host's own GRE is nobody's tunnel.
            return ret | {"comment": "There is no tunnel to guard."}
        rules = __utils__["network_tunnels.guard"]([*peers, *_left(composed)])
        nft = __utils__["ovs_tools.path"]("nft")
        if not nft and not __opts__["test"]:
            return ret | {"result": False, "comment": "nft is not installed, so nothing keeps tunnels encrypted."}
        files = _files(rules, nft or "/usr/sbin/nft")
        for path, text in files.items():
            if __utils__["own_files.read"](path) != text.encode():
                ret["changes"][str(path)] = "written"
        if not _holds(nft, rules):
            ret["changes"][f"table {__utils__['network_tunnels.table']()}"] = "loaded"
        if not _enabled():
            ret["changes"][_UNIT] = "enabled"
        if __opts__["test"]:
            comment = f"The guard {'would be set up' if ret['changes'] else 'holds'}."
            return ret | {"result": None if ret["changes"] else True, "comment": comment}
        _apply_guard(files, nft, ret["changes"])
        if not _holds(nft, rules):
            return ret | {"result": False, "comment": "nft has loaded the guard, but the kernel does not show it."}
    except (CommandExecutionError, ValueError, OSError) as error:
        return ret | {"result": False, "comment": f"The guard of tunnels: {error}."}
    return ret | {"comment": "No tunnel's packet leaves or enters unencrypted."}


def _left(composed: Mapping[str, Any]) -> list[Any]:
    """Return encrypted tunnels that the pillar does not name any more and the switch has.

    A switch that cannot be asked now may have all that the guard was made for, and sends as soon as it starts.
    """
    if __utils__["ovs_tools.runs"]():
        facts = __utils__["ovs_plan.facts_of"](__utils__["ovs_tools.read"](__utils__["ovs_plan.question"]()))
        return list(__utils__["network_tunnels.kept"](composed, facts))
    script = __utils__["own_files.read"](_RULES) or b""
    return list(__utils__["network_tunnels.stored"](script.decode(errors="replace")))


def absent(name: str) -> dict[str, Any]:
    """Make sure that the guard is gone, now and after a reboot.

    Args:
        name: Any label.

    Returns a state result.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "There is no guard of tunnels."}
    table = __utils__["network_tunnels.table"]()
    try:
        paths = [path for path in _files([], "nft") if path.exists()]
        ret["changes"] = {str(path): "removed" for path in paths}
        nft = __utils__["ovs_tools.path"]("nft")
        if nft and _table(nft):
            ret["changes"][f"table {table}"] = "removed"
        if __opts__["test"] or not ret["changes"]:
            return ret | {"result": None if ret["changes"] else True}
        if _enabled():
            __utils__["ovs_tools.run"](["systemctl", "disable", _UNIT])
        for path in paths:
            path.unlink()
        __utils__["ovs_tools.run"](["systemctl", "daemon-reload"])
        if nft and _table(nft):
            __utils__["ovs_tools.run"]([nft, "delete", "table", "inet", table])
    except (CommandExecutionError, OSError) as error:
        return ret | {"result": False, "comment": f"The guard of tunnels: {error}."}
    return ret


def _table(nft: str) -> Any:
    """Return the guard's table as nft shows it, parsed; None if there is none."""
    words = [nft, "--json", "list", "table", "inet", __utils__["network_tunnels.table"]()]
    text = __utils__["ovs_tools.run"](words, ok=(0, 1))
    return __utils__["ovs_tools.parsed"](text)


def _holds(nft: str, rules: list[tuple[str, str]]) -> bool:
    """Whether the kernel has the guard whole."""
    found = _table(nft) if nft else None
    return bool(found and __utils__["network_tunnels.guard_holds"](found, rules))


def _enabled() -> bool:
    """Whether the guard is loaded at boot."""
    return (_UNITS / "sysinit.target.wants" / _UNIT).is_symlink()


def _apply_guard(files: Mapping[Path, str], nft: str, changes: Mapping[str, str]) -> None:
    """Write, check, load and enable the guard."""
    script = files[_RULES]
    candidate = _RULES.with_name(f".{_RULES.name}.candidate")
    if str(_RULES) in changes:
        __utils__["own_files.write"](candidate, script.encode(), 0o644)
        try:
            __utils__["ovs_tools.run"]([nft, "--check", "--file", str(candidate)])
        finally:
            candidate.unlink()
    for path, text in files.items():
        if str(path) in changes:
            __utils__["own_files.write"](path, text.encode(), 0o644)
    if any(key.startswith("table ") for key in changes):
        __utils__["ovs_tools.run"]([nft, "--file", str(_RULES)])
    if any(str(path) in changes for path in files if path != _RULES):
        __utils__["ovs_tools.run"](["systemctl", "daemon-reload"])
    if _UNIT in changes:
        __utils__["ovs_tools.run"](["systemctl", "enable", _UNIT])

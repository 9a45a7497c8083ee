"""Leases of a host's own ports on Open vSwitch, now and at boot.

The switch makes such a port when it starts, later than most ways to set up interfaces look for theirs. So each port
has a DHCP client of its own, in a unit of systemd. It takes its address and nothing else: neither a default route nor
name servers, which belong to what carries the connection to the master.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_UNITS = Path("/etc/systemd/system")
_TEMPLATE = "hypervisor-ovs-lease@.service"
_SCRIPT = Path("/etc/hypervisor-formula/ovs-lease")
_HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run.\n"
_SWITCHES = "openvswitch-switch.service openvswitch.service ovs-vswitchd.service"
_UNIT_TEXT = (
    f"{_HEADER}[Unit]\nDescription=Lease of the port %i of Open vSwitch\nAfter={_SWITCHES}\n"
    "PartOf=ovs-vswitchd.service\nStartLimitIntervalSec=0\n\n[Service]\n"
    # The port may come later, and goes with the switch.
    "ExecStart={client} -f -R -t 3 -T 3 -A 10 -i %i -s {script}\nRestart=always\nRestartSec=2\n"
    "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE\nNoNewPrivileges=yes\n"
    "ProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nPrivateDevices=yes\nProtectKernelModules=yes\n"
    "ProtectControlGroups=yes\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET\n"
    "RestrictNamespaces=yes\nLockPersonality=yes\nMemoryDenyWriteExecute=yes\nTasksMax=16\nMemoryMax=64M\n\n"
    "[Install]\nWantedBy=multi-user.target ovs-vswitchd.service\n"
)
# What the client calls with one word, and with the lease in its environment.
_SCRIPT_TEXT = f"""#!/bin/sh
{_HEADER}case "$1" in
  deconfig)
    ip -4 address flush dev "$interface"
    ip link set dev "$interface" up
    ;;
  bound | renew)
    time=${{lease:-forever}}
    ip -4 address replace "$ip/$mask" dev "$interface" valid_lft "$time" preferred_lft "$time"
    ;;
esac
"""


def kept(
    name: str,
    bridges: dict[str, Any] | None = None,
    mesh: dict[str, Any] | None = None,
    node: str = "",
    packages: list[str] | None = None,
    masters: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that internal ports with ``dhcp4`` have a DHCP client, and that no others have one of this formula.

    Args:
        name: Any label.
        bridges: As in the pillar ``network:ovs:bridges``.
        mesh: As in the pillar ``network:mesh``.
        node: This host's name in a mesh; by default its minion id.
        packages: What brings the client, udhcpc; without any it has to be there before, also for a dry run.
        masters: Names or addresses of what the host must not lose the way to; by default the minion's masters.

    Returns a state result. That no server answers is no failure: the client goes on asking. A port that carries the
    connection to the master is refused where it would begin or cease to ask.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "No port asks a DHCP server."}
    try:
        declared = {"ipsec": {}, "ovs": {"bridges": bridges or {}}, "mesh": mesh or {}}
        composed = __utils__["network_tunnels.compose"](declared, node or __opts__["id"])
        wanted = __utils__["network_tunnels.leased"](composed)
        client = __utils__["ovs_tools.path"]("udhcpc")
        if wanted and not client and not (__opts__["test"] and packages):
            comment = (
                f"udhcpc is not installed, so {', '.join(wanted)} cannot ask a DHCP server; network:packages:dhcp "
                "names the package that has it."
            )
            return ret | {"result": False, "comment": comment}
        files = {
            _UNITS / _TEMPLATE: (_UNIT_TEXT.format(client=client or "/usr/sbin/udhcpc", script=_SCRIPT), 0o644),
            _SCRIPT: (_SCRIPT_TEXT, 0o755),
        }
        ret["changes"] = _changes(files, wanted)
        if refused := _refused(ret["changes"], composed, masters):
            comment = "\n".join(["Nothing was changed:", *refused])
            return ret | {"result": False, "changes": {}, "comment": comment}
        if wanted:
            ret["comment"] = f"Ports that ask a DHCP server: {', '.join(wanted)}."
        if __opts__["test"] or not ret["changes"]:
            return ret | {"result": None if ret["changes"] else True}
        _carry_out(files, ret["changes"])
    except (CommandExecutionError, ValueError, OSError) as error:
        return ret | {"result": False, "comment": f"Leases of ports: {error}."}
    return ret


def _changes(files: dict[Path, tuple[str, int]], wanted: Iterable[str]) -> dict[str, str]:
    """Return what has to be done, by file or unit."""
    own = __utils__["own_files.read"]
    found = {}
    if wanted:
        for path, (text, mode) in files.items():
            if own(path) != text.encode() or __utils__["own_files.access"](path, mode):
                found[str(path)] = "written"
    units = {_unit(port) for port in wanted}
    for unit in sorted(_enabled() - units):
        found[unit] = "stopped"
    stale = bool(found.get(str(_UNITS / _TEMPLATE)))
    for unit in sorted(units):
        if unit not in _enabled() or not _active(unit):
            found[unit] = "started"
        elif stale:
            found[unit] = "restarted"
    return found


def _refused(
    changes: Mapping[str, str], composed: Mapping[str, Any], masters: Sequence[str] | None
) -> list[str]:
    """Return a line for each port that carries the connection to the master and would begin or cease to ask."""
    homes = {port: bridge for bridge, spec in composed.items() for port in spec["ports"]}
    enabled, ports = _enabled(), {}
    for unit, what in changes.items():
        if what == "stopped" or (what == "started" and unit not in enabled):
            port = unit.partition("@")[2].removesuffix(".service")
            ports[port] = homes.get(port, "")
    if not ports:
        return []
    reached = masters or __utils__["network_tool.masters"](__opts__)
    carrying = __utils__["network_uplink.carriers"](__utils__["ovs_tools.run"], reached)
    reasons = __utils__["ovs_plan.unmoved"](ports, __utils__["network_tool.switches"](), carrying)
    return [
        f"network:ovs:bridges{f':{ports[port]}:ports:{port}:dhcp4' if ports[port] else ''}: {text}"
        for port, text in reasons.items()
    ]


def _carry_out(files: dict[Path, tuple[str, int]], changes: dict[str, str]) -> None:
    """Write files and start or stop clients."""
    run = __utils__["ovs_tools.run"]
    for path, (text, mode) in files.items():
        if str(path) in changes:
            __utils__["own_files.write"](path, text.encode(), mode)
    if str(_UNITS / _TEMPLATE) in changes:
        run(["systemctl", "daemon-reload"])
    for unit, what in changes.items():
        if what == "stopped":
            run(["systemctl", "disable", "--now", unit])
        elif what == "started":
            run(["systemctl", "enable", "--now", unit])
        elif what == "restarted":
            run(["systemctl", "restart", unit])


def _unit(port: str) -> str:
    """Return the unit of a port's client."""
    return _TEMPLATE.replace("@", f"@{port}")


def _enabled() -> set[str]:
    """Return the clients that start with the host."""
    prefix, _, ending = _TEMPLATE.partition("@")
    return {path.name for path in (_UNITS / "multi-user.target.wants").glob(f"{prefix}@?*{ending}")}


def _active(unit: str) -> bool:
    """Whether a client runs."""
    said = __utils__["ovs_tools.run"](["systemctl", "is-active", unit], ok=range(256)).strip()
    return said in {"active", "activating"}

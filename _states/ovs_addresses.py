"""Addresses of a host's own ports on Open vSwitch, now and at boot.

The switch makes such a port when it starts, later than most ways to set up interfaces look for theirs. So a unit of
systemd gives it its addresses as soon as the switch runs, whichever of them a host has.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_BATCH = Path("/etc/hypervisor-formula/ovs-addresses")
_UNIT = "hypervisor-ovs-addresses.service"
_UNITS = Path("/etc/systemd/system")
_SWITCHES = "openvswitch-switch.service openvswitch.service"
_HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run.\n"
_TEXT = (
    f"{_HEADER}[Unit]\nDescription=Addresses of ports of Open vSwitch\nDefaultDependencies=no\n"
    f"After={_SWITCHES} ovs-vswitchd.service\nBefore=network.target network-online.target\n"
    f"PartOf=ovs-vswitchd.service\nConflicts=shutdown.target\nBefore=shutdown.target\n\n"
    # -force: one port that is missing keeps no other from its address.
    f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={{ip}} -force -batch {_BATCH}\n\n"
    "[Install]\nWantedBy=multi-user.target ovs-vswitchd.service\n"
)


def applied(
    name: str,
    bridges: dict[str, Any] | None = None,
    mesh: dict[str, Any] | None = None,
    node: str = "",
    masters: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that internal ports have their addresses, and no others; those of the connection to the master stay.

    An address that moves to another port leaves the first before the second gets it, if an earlier run had given it.
    One that somebody else has given to another internal port of the switch is refused.

    Args:
        name: Any label.
        bridges: As in the pillar ``network:ovs:bridges``.
        mesh: As in the pillar ``network:mesh``.
        node: This host's name in a mesh; by default its minion id.
        masters: Names or addresses of what the host must not lose the way to; by default the minion's masters.

    Returns a state result.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "The ports have their addresses."}
    try:
        declared = {"ipsec": {}, "ovs": {"bridges": bridges or {}}, "mesh": mesh or {}}
        composed = __utils__["network_tunnels.compose"](declared, node or __opts__["id"])
        wanted = __utils__["network_tunnels.addresses"](composed)
        batch = __utils__["network_tunnels.address_batch"](wanted)
        run = __utils__["ovs_tools.run"]
        nics = __utils__["ovs_plan.nics_of"](run(["ip", "-json", "address", "show"]))
        facts = _facts()
        # A dry run still sees the ports that this run takes out of the switch.
        going = __utils__["ovs_plan.going"](composed, facts)
        staying = {port: nic for port, nic in nics.items() if port not in going}
        before = __utils__["network_tunnels.given"](_text(_BATCH))
        leaving = __utils__["network_tunnels.address_moves"](wanted, staying, before)
        differ = {port: {"old": move.old, "new": move.new} for port, move in leaving.items()}
        differ |= __utils__["network_tunnels.address_changes"](wanted, nics)
        internal = [port for port, row in facts.interfaces.items() if row["type"] == "internal"]
        refused = __utils__["network_tunnels.address_clashes"](wanted, staying, leaving, internal)
        refused |= _refused(differ, composed, facts, masters)
        if refused:
            keys = {port: leaving[port].to if port in leaving else port for port in refused}
            lines = [
                f"{_key(keys[port], declared, node or __opts__['id'])}: {text}" for port, text in refused.items()
            ]
            return ret | {"result": False, "comment": "\n".join(["Nothing was changed:", *lines])}
        unit = _TEXT.format(ip=__utils__["ovs_tools.path"]("ip") or "/usr/sbin/ip")
        files = {_BATCH: _HEADER + batch, _UNITS / _UNIT: unit}
        # Without any address there is nothing to bring at boot, unless there was something before.
        needed = bool(wanted) or _BATCH.exists()
        written = [path for path, text in files.items() if needed and _text(path) != text]
        ret["changes"] = {str(path): "written" for path in written} | differ
        if needed and not _enabled():
            ret["changes"][_UNIT] = "enabled"
        if __opts__["test"] or not ret["changes"]:
            return ret | {"result": None if ret["changes"] else True}
        # What goes does so while the record of it is still there, so that a run which fails here is made up for.
        _take(differ)
        for path in written:
            __utils__["own_files.write"](path, files[path].encode(), 0o644)
        if _UNITS / _UNIT in written:
            run(["systemctl", "daemon-reload"])
        if _UNIT in ret["changes"]:
            run(["systemctl", "enable", _UNIT])
        _give(differ, leaving)
    except (CommandExecutionError, ValueError, OSError) as error:
        return ret | {"result": False, "comment": f"Addresses of ports: {error}."}
    return ret


def _facts() -> Any:
    """Return what the database of the switch holds; nothing where it cannot be asked, and so has no ports."""
    if not __utils__["ovs_tools.runs"]():
        return __utils__["ovs_plan.nothing"]()
    return __utils__["ovs_plan.facts_of"](__utils__["ovs_tools.read"](__utils__["ovs_plan.question"]()))


def _refused(
    differ: Iterable[str], composed: Mapping[str, Any], facts: Any, masters: Sequence[str] | None
) -> dict[str, str]:
    """Return why ports would not get other addresses: they carry the connection to the master."""
    # A port that loses an address need not be in the pillar any more.
    ports = {port: str(facts.ports.get(port, {}).get("bridge", "")) for port in differ}
    ports |= {port: name for name, bridge in composed.items() for port in bridge["ports"] if port in differ}
    if not ports:
        return {}
    reached = masters or __utils__["network_tool.masters"](__opts__)
    carrying = __utils__["network_uplink.carriers"](__utils__["ovs_tools.run"], reached)
    found: dict[str, str] = __utils__["ovs_plan.unmoved"](ports, __utils__["network_tool.switches"](), carrying)
    return found


def _key(port: str, declared: Mapping[str, Any], node: str) -> str:
    """Return where in the pillar a port's addresses stand."""
    for bridge, spec in declared["ovs"]["bridges"].items():
        if ((spec.get("ports") or {}).get(port) or {}).get("addresses"):
            return f"network:ovs:bridges:{bridge}:ports:{port}:addresses"
    mesh = next((name for name, one in declared["mesh"].items() if one.get("port") == port), "")
    return f"network:mesh:{mesh}:nodes:{node}:inside"


def _text(path: Path) -> str:
    """Return what a file of this state holds."""
    return str((__utils__["own_files.read"](path) or b"").decode())


def _take(differ: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Take away what is not declared, from all ports before any gets another address."""
    for port, change in differ.items():
        for address in sorted(set(change["old"]) - set(change["new"])):
            __utils__["ovs_tools.run"](["ip", "address", "delete", address, "dev", port])


def _give(differ: Mapping[str, Mapping[str, list[str]]], leaving: Collection[str]) -> None:
    """Give what is declared, and what the kernel has taken away together with an address that has left a port."""
    run = __utils__["ovs_tools.run"]
    nics = __utils__["ovs_plan.nics_of"](run(["ip", "-json", "address", "show"])) if leaving else {}
    for port, change in differ.items():
        held = nics[port].addresses if port in leaving and port in nics else ()
        for address in change["new"]:
            if address not in held:
                run(["ip", "address", "replace", address, "dev", port])
        if port not in leaving:
            run(["ip", "link", "set", "dev", port, "up"])


def _enabled() -> bool:
    """Whether the addresses are given at boot."""
    return (_UNITS / "multi-user.target.wants" / _UNIT).is_symlink()

"""Tunnels between hosts: each host's part of a mesh, how large a packet may be inside, and what may never be plain.

Pure functions. A mesh is one list of hosts from which every host derives its own tunnels, so that the same pillar
serves all of them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

TUNNELS = ("gre", "vxlan", "geneve")
TABLE = "hypervisor_tunnels"
# Open vSwitch takes 15 characters for the name of any port.
_NAME_MAX = 15
_UDP = {"vxlan": 4789, "geneve": 6081}
# Options of a tunnel by any of which openvswitch-ipsec encrypts it.
_SEALED = frozenset({"psk", "remote_name", "remote_cert"})
# A rule of the guard's script that drops what comes to another host unencrypted; the one for what comes in is its twin.
_STORED = re.compile(r"^\s*ip6? daddr (?P<remote>\S+) udp dport (?P<port>\d+) rt ipsec missing ", re.MULTILINE)
# Octets before the inner frame: GRE with and without a key (RFC 2784, 2890), UDP with VXLAN (RFC 7348) or Geneve
# without options (RFC 8926).
_HEADER = {"gre": 4, "vxlan": 16, "geneve": 16}
_GRE_KEY = 4
# An Ethernet header and a VLAN tag inside; the addresses' header outside.
_FRAME = 14 + 4
_OUTER = {4: 20, 6: 40}
# ESP in transport mode with AES-GCM and a check value of 16 octets (RFC 4106, 4303), which openvswitch-ipsec
# proposes: SPI and sequence number, initialisation vector, check value; the padded part ends in two octets of its own.
_ESP_AROUND = 8 + 8 + 16
_ESP_TRAILER = 2
_ESP_ALIGN = 4


class Peer(NamedTuple):
    """The other end of a tunnel of this host.

    Attributes:
        port: the tunnel's name.
        remote: the other host's address.
        kind: one of :data:`TUNNELS`.
        ipsec: whether nothing may pass unencrypted.
        name: what the other host is called in messages.
    """

    port: str
    remote: str
    kind: str
    ipsec: bool
    name: str


def inner_mtu(kind: str, remote: str, ipsec: bool, keyed: bool, underlay: int = 1500) -> int:
    """Returns the largest packet that fits through a tunnel, with a VLAN tag, unfragmented.

    Args:
        kind: one of :data:`TUNNELS`.
        remote: the address of the other end, whose family counts.
        ipsec: whether it is encrypted.
        keyed: whether a GRE tunnel has a key; the others always have.
        underlay: the largest packet between the hosts.

    Returns:
        Octets; 1424 for GRE with IPsec over IPv4 and 1500.
    """
    room = underlay - _OUTER[ipaddress.ip_address(remote).version]
    if ipsec:
        room = (room - _ESP_AROUND) // _ESP_ALIGN * _ESP_ALIGN - _ESP_TRAILER
    return room - _HEADER[kind] - (_GRE_KEY if kind == "gre" and keyed else 0) - _FRAME


def tunnel_name(mesh: str, node: str) -> str:
    """Returns the name of a mesh's tunnel to a host: both names, or a digest where they are too long."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", f"{mesh}_{node}")
    if len(plain) <= _NAME_MAX:
        return plain
    digest = hashlib.sha256(f"{mesh}\0{node}".encode()).hexdigest()[:8]
    return f"{plain[:6]}_{digest}"


def compose(configuration: Mapping[str, Any], node: str) -> dict[str, dict[str, Any]]:
    """Returns the bridges that this host must have: those of the pillar, with its part of every mesh.

    Args:
        configuration: the formula's.
        node: this host's minion id.

    Returns:
        Bridges as in ``network:ovs:bridges``, each tunnel with ``ipsec`` set, and where it is encrypted with ``psk`` or
        with ``remote_name``, whose certificate the other end must have. A bridge that only meshes without this host
        speak of has ``if_there``: it loses their ports, and is not made.

    Raises:
        ValueError: a mesh does not list this host, or has addresses for a port that asks a server.
    """
    ipsec = configuration["ipsec"]
    bridges: dict[str, dict[str, Any]] = {
        name: {**spec, "ports": {port: dict(one) for port, one in (spec.get("ports") or {}).items()}}
        for name, spec in configuration["ovs"]["bridges"].items()
    }
    for mesh, spec in configuration["mesh"].items():
        bridge = bridges.setdefault(spec["bridge"], {"ports": {}, "if_there": True})
        if _joins(spec, node):
            bridge.pop("if_there", None)
        if bridge.get("ensure") != "absent":
            for port, one in _mesh_ports(mesh, spec, node):
                own = bridge["ports"].get(port, {})
                if one.get("addresses") and own.get("dhcp4") and own.get("ensure") != "absent":
                    where = f"network:ovs:bridges:{spec['bridge']}:ports:{port}:dhcp4"
                    inside = f"network:mesh:{mesh}:nodes:{node}:inside"
                    raise ValueError(f"{where}: not allowed with {inside}; one of dhcp4 and inside has to go")
                bridge["ports"][port] = {**one, **own}
    for bridge in bridges.values():
        for port, one in bridge["ports"].items():
            if one.get("type") in TUNNELS and one.get("ensure") != "absent":
                bridge["ports"][port] = _sealed(one, ipsec)
    return bridges


def _joins(spec: Mapping[str, Any], node: str) -> bool:
    """Says whether a host is in a mesh."""
    return "absent" not in {spec.get("ensure"), spec["nodes"].get(node, {}).get("ensure")}


def _mesh_ports(mesh: str, spec: Mapping[str, Any], node: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the ports that a mesh makes on a host."""
    nodes = {name: one for name, one in spec["nodes"].items() if one.get("ensure") != "absent"}
    absent = spec.get("ensure") == "absent"
    if node not in nodes and not absent:
        if node not in spec["nodes"]:
            listed = ", ".join(nodes)
            raise ValueError(f"network:mesh:{mesh}:nodes: this host, {node}, is not listed; there are: {listed}")
        absent = True
    kind = spec.get("type", "gre")
    for name in spec["nodes"]:
        if name == node:
            continue
        if absent or name not in nodes:
            yield tunnel_name(mesh, name), {"ensure": "absent", "type": kind}
            continue
        one: dict[str, Any] = {"type": kind, "remote": nodes[name]["address"], "ipsec": spec.get("ipsec", True)}
        # Frames from one tunnel never leave by another: every host reaches every other itself, and rings are harmless.
        one["protected"] = True
        one["name"] = name
        one.update({key: spec[key] for key in ("key", "psk") if key in spec})
        one["local"] = nodes[node]["address"]
        yield tunnel_name(mesh, name), one
    if "port" in spec:
        if absent:
            yield spec["port"], {"ensure": "absent", "type": "internal"}
            return
        inside = {"type": "internal", "mtu": mesh_mtu(spec), "addresses": nodes[node].get("inside", [])}
        yield spec["port"], {**inside, **({"tag": spec["tag"]} if "tag" in spec else {})}


def mesh_mtu(spec: Mapping[str, Any]) -> int:
    """Returns the largest packet on a mesh's private network."""
    if "mtu" in spec:
        return int(spec["mtu"])
    remotes = [one["address"] for one in spec["nodes"].values()]
    kind, sealed = spec.get("type", "gre"), spec.get("ipsec", True)
    return min(
        inner_mtu(kind, one, sealed, "key" in spec, spec.get("underlay_mtu", 1500)) for one in remotes
    )


def _sealed(port: Mapping[str, Any], ipsec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tunnel with what its encryption needs, and without what it must not have."""
    sealed = port.get("ipsec", True)
    if sealed and ipsec.get("auth") == "certificate":
        # Nobody else's certificate of the same authority will do.
        return {**port, "ipsec": True, "psk": None, "remote_name": port.get("remote_name") or port.get("name")}
    return {**port, "ipsec": sealed, "psk": (port.get("psk") or ipsec.get("psk")) if sealed else None}


def peers(bridges: Mapping[str, Mapping[str, Any]]) -> list[Peer]:
    """Lists the tunnels among composed bridges, in the order of their names."""
    found = []
    for bridge in bridges.values():
        if bridge.get("ensure") == "absent":
            continue
        for port, one in bridge["ports"].items():
            if one.get("type") in TUNNELS and one.get("ensure") != "absent":
                found.append(Peer(port, one["remote"], one["type"], one["ipsec"], one.get("name", port)))
    return sorted(found)


def kept(bridges: Mapping[str, Mapping[str, Any]], facts: Any) -> list[Peer]:
    """Lists encrypted VXLAN and Geneve tunnels that the switch still has though the pillar does not name them any more.

    What merely left the pillar stays in the switch, so it must not pass unencrypted either. GRE needs no word: the
    guard drops all of it.

    Args:
        bridges: composed ones; what they name, also with ``ensure: absent``, is theirs to decide.
        facts: what the database holds, see ``ovs_plan.Facts``.

    Returns:
        The tunnels, in the order of their names, without any key.
    """
    found = []
    for port, row in facts.ports.items():
        declared = bridges.get(row["bridge"], {})
        if declared.get("ensure") == "absent" or port in declared.get("ports", {}):
            continue
        for member in row["members"]:
            interface = facts.interfaces.get(member, {})
            options, kind = interface.get("options") or {}, interface.get("type")
            remote = options.get("remote_ip", "")
            if kind in _UDP and _SEALED & set(options) and _is_address(remote):
                found.append(Peer(member, remote, kind, True, member))
    return sorted(found)


def stored(text: str) -> list[Peer]:
    """Lists the VXLAN and Geneve tunnels that a guard's script keeps encrypted, for a switch that cannot be asked."""
    kinds = {str(port): kind for kind, port in _UDP.items()}
    return [
        Peer("", match["remote"], kinds[match["port"]], True, "")
        for match in _STORED.finditer(text)
        if match["port"] in kinds and _is_address(match["remote"])
    ]


def _is_address(text: str) -> bool:
    """Says whether a text is an IP address as a rule takes it, which has no zone."""
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False


def addresses(bridges: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the declared addresses of internal ports among composed bridges, by port."""
    return {
        port: [str(ipaddress.ip_interface(address)) for address in one["addresses"]]
        for bridge in bridges.values()
        if bridge.get("ensure") != "absent"
        for port, one in bridge["ports"].items()
        if one.get("type") == "internal" and one.get("ensure") != "absent" and one.get("addresses")
    }


def leased(bridges: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the internal ports among composed bridges that ask a DHCP server."""
    return sorted(
        port
        for bridge in bridges.values()
        if bridge.get("ensure") != "absent"
        for port, one in bridge["ports"].items()
        if one.get("type") == "internal" and one.get("ensure") != "absent" and one.get("dhcp4")
    )


def address_batch(wanted: Mapping[str, list[str]]) -> str:
    """Returns what ``ip -batch`` reads so that ports have their addresses and are up."""
    lines = []
    for port, held in wanted.items():
        lines += [f"address replace {address} dev {port}" for address in held]
        lines.append(f"link set dev {port} up")
    return "".join(f"{line}\n" for line in lines)


def address_changes(wanted: Mapping[str, list[str]], have: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns which ports have other addresses than declared.

    Args:
        wanted: addresses by port.
        have: the host's interfaces with ``addresses``; one that is not there is about to be made.

    Returns:
        Old and new addresses by port.
    """
    found = {}
    for port, addresses_of in wanted.items():
        old = [str(ipaddress.ip_interface(one)) for one in have[port].addresses] if port in have else []
        if sorted(old) != sorted(addresses_of):
            found[port] = {"old": sorted(old), "new": sorted(addresses_of)}
    return found


class Move(NamedTuple):
    """What an internal port without declared addresses loses to another one.

    Attributes:
        old: the addresses that it has.
        new: those that it keeps, since the formula has not given them or nobody wants them.
        to: the port that has a lost address in the pillar now.
    """

    old: list[str]
    new: list[str]
    to: str


def given(batch: str) -> dict[str, list[str]]:
    """Returns the addresses by port that an earlier run has written into the batch of :func:`address_batch`."""
    found: dict[str, list[str]] = {}
    for line in batch.splitlines():
        words = line.split()
        if words[:2] == ["address", "replace"] and len(words) == 5:
            found.setdefault(words[4], []).append(words[2])
    return found


def address_moves(
    wanted: Mapping[str, list[str]], have: Mapping[str, Any], before: Mapping[str, list[str]]
) -> dict[str, Move]:
    """Returns which ports lose an address that the pillar gives to another port now.

    Two ports with one address answer in turns, so it has to leave the first. A port with declared addresses is not
    among them: :func:`address_changes` takes from it what is not declared.

    Args:
        wanted: addresses by port.
        have: the host's interfaces with ``addresses``.
        before: what the formula has given, see :func:`given`; nothing else is taken.
    """
    takers = {ipaddress.ip_interface(one).ip: port for port, held in wanted.items() for one in held}
    found = {}
    for port, ours in before.items():
        if port in wanted or port not in have:
            continue
        old = sorted(str(ipaddress.ip_interface(one)) for one in have[port].addresses)
        lost = [one for one in old if one in ours and ipaddress.ip_interface(one).ip in takers]
        if lost:
            keeps = [one for one in old if one not in lost]
            found[port] = Move(old, keeps, takers[ipaddress.ip_interface(lost[0]).ip])
    return found


def address_clashes(
    wanted: Mapping[str, list[str]], have: Mapping[str, Any], leaving: Mapping[str, Move], internal: Iterable[str]
) -> dict[str, str]:
    """Returns why ports cannot have their addresses: another internal port has one that the formula did not give it.

    Args:
        wanted: addresses by port.
        have: the host's interfaces with ``addresses``.
        leaving: what goes, see :func:`address_moves`.
        internal: the internal ports that the switch has.

    Returns:
        Sentences by the port that wants the address.
    """
    takers = {ipaddress.ip_interface(one).ip: port for port, held in wanted.items() for one in held}
    found = {}
    for other in sorted(set(internal) & set(have) - set(wanted)):
        stays = leaving[other].new if other in leaving else have[other].addresses
        for address in stays:
            port = takers.get(ipaddress.ip_interface(address).ip)
            if port:
                found[port] = (
                    f"{other} has the address {address} already, and not by network:ovs or network:mesh; take it away "
                    f"there first (ip address delete {address} dev {other}), or declare it for one of the two alone"
                )
    return found


# ---- the guard ----


def guard(tunnels: list[Peer]) -> list[tuple[str, str]]:
    """Returns the rules of the table that lets no tunnel's packet out or in unencrypted.

    All GRE counts, whoever made it, and VXLAN and Geneve with the hosts that tunnels with IPsec lead to. A tunnel
    that is declared without IPsec is an exception for its other end alone.

    Args:
        tunnels: of this host.

    Returns:
        Pairs of a chain, ``out`` or ``in``, and a rule.
    """
    rules: list[tuple[str, str]] = []
    for chain, field, missing in (("out", "daddr", "rt ipsec missing"), ("in", "saddr", "meta ipsec missing")):
        for kind, remote in sorted({(one.kind, one.remote) for one in tunnels if not one.ipsec}):
            rules.append((chain, f"{_address(remote, field)} {_match(kind)} accept"))
        rules.append((chain, f"{_match('gre')} {missing} drop"))
        for kind, remote in sorted({(one.kind, one.remote) for one in tunnels if one.ipsec and one.kind != "gre"}):
            rules.append((chain, f"{_address(remote, field)} {_match(kind)} {missing} drop"))
    return rules


def _address(remote: str, field: str) -> str:
    """Returns the match of an address."""
    return f"{'ip' if ipaddress.ip_address(remote).version == 4 else 'ip6'} {field} {remote}"


def _match(kind: str) -> str:
    """Returns the match of a kind of tunnel."""
    return "meta l4proto gre" if kind == "gre" else f"udp dport {_UDP[kind]}"


def guard_script(rules: list[tuple[str, str]]) -> str:
    """Returns what nft reads: the table anew, in one transaction, so that there is no moment without it."""
    stamp = guard_stamp(rules)
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    # Late in both hooks: after whatever changes a packet's destination.
    for chain, hook in (("out", "output"), ("in", "input")):
        lines += [f"\tchain {chain} {{", f"\t\ttype filter hook {hook} priority 250; policy accept;"]
        lines += [f'\t\t{_counted(rule)} comment "{stamp}"' for where, rule in rules if where == chain]
        lines.append("\t}")
    return "\n".join([*lines, "}", ""])


def _counted(rule: str) -> str:
    """Returns a rule that counts what it drops, for whoever looks why nothing arrives."""
    return f"{rule.removesuffix('drop')}counter drop" if rule.endswith("drop") else rule


def table() -> str:
    """Returns the name of the guard's table, of the family inet."""
    return TABLE


def guard_stamp(rules: list[tuple[str, str]]) -> str:
    """Returns what marks each rule of a table: a digest of all of them."""
    return "guard " + hashlib.sha256(repr(rules).encode()).hexdigest()[:16]


def guard_holds(ruleset: Any, rules: list[tuple[str, str]]) -> bool:
    """Says whether the kernel has the table whole.

    Args:
        ruleset: what ``nft --json list table`` prints, parsed.
        rules: what it must hold.
    """
    stamp = guard_stamp(rules)
    hooks, found = set(), []
    for entry in ruleset.get("nftables", []):
        if chain := entry.get("chain"):
            hooks.add((chain["name"], chain.get("hook"), chain.get("policy")))
        elif rule := entry.get("rule"):
            verdict = next(iter(rule["expr"][-1]), "") if rule.get("expr") else ""
            found.append((rule["chain"], verdict, rule.get("comment")))
    wanted = [(chain, rule.rpartition(" ")[2], stamp) for chain, rule in rules]
    return hooks == {("out", "output", "accept"), ("in", "input", "accept")} and sorted(found) == sorted(wanted)

"""What the schema cannot say of switches, tunnels and served networks: values that do not fit each other.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
_TUNNELS = ("gre", "vxlan", "geneve")
# Numbers that fit into the header: RFC 2890 has 32 bits, RFC 7348 and 8926 have 24.
_KEY_MAX = {"gre": (1 << 32) - 1, "vxlan": (1 << 24) - 1, "geneve": (1 << 24) - 1}
# Which keys belong to which type of port.
_OF_TUNNELS = ("remote", "local", "key", "ipsec", "psk", "remote_name")
# Where openvswitch-ipsec looks for this host's certificate.
_IDENTITY = ("certificate", "private_key", "ca_cert")
_OF_BONDS = ("bond_mode", "lacp")
_OF_INTERNAL = ("addresses", "mac", "dhcp4")
# What a bridge of network:bridges may have here: nothing that could cut the host off.
_OF_SHARED = ("ports", "external_ids", "mcast_snooping")
# What stands in examples, here and elsewhere, in place of a key.
_PLACEHOLDERS = (
    *("changeme", "change-me", "change_me", "secretkey", "secret_key", "secret-key", "placeholder", "example"),
    *("fix-me", "fixme", "xxxx"),
)
_NAME_MAX = 15  # characters of an interface's name, IFNAMSIZ less its end
_DISTINCT = 8  # different characters that a key of random ones has at the very least


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges Open vSwitch, meshes, IPsec and dnsmasq in the configuration of network/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    bridges, meshes = configuration["ovs"]["bridges"], configuration["mesh"]
    found = list(_bridges(bridges, configuration))
    found += [error for name, spec in meshes.items() for error in _mesh(name, spec, configuration)]
    found += _between(bridges, meshes)
    found += _keys(configuration)
    for name, spec in configuration["dnsmasq"].items():
        if spec.get("ensure") != "absent":
            found += [(f"network:dnsmasq:{name}:{key}", text) for key, text in _served(spec, configuration)]
    return [*found, *_shared(configuration["dnsmasq"])]


def _present(specs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what is not declared absent."""
    return {name: spec for name, spec in (specs or {}).items() if spec.get("ensure") != "absent"}


# ---- Open vSwitch ----


def _bridges(bridges: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with bridges and their ports."""
    shared = _switches(configuration)
    ours = {name for kind in ("bridges", "bonds", "vlans") for name in _present(configuration.get(kind))}
    yield from _guarded(bridges, shared)
    for bridge, spec in _present(bridges).items():
        path = f"network:ovs:bridges:{bridge}"
        for name, where in [(bridge, path), *((one, f"{path}:ports:{one}") for one in _present(spec.get("ports")))]:
            if len(name) > _NAME_MAX:
                yield where, f"{name} has more than {_NAME_MAX} characters"
        if bridge in ours - set(shared):
            yield path, "the same name stands below bridges, bonds or vlans"
        if spec.get("stp") and spec.get("rstp"):
            yield f"{path}:rstp", "not allowed with stp: one spanning tree at a time"
        for port, one in _present(spec.get("ports")).items():
            yield from ((f"{path}:ports:{port}:{key}", text) for key, text in _port(port, one, configuration))
    yield from _members(bridges, configuration)


def _switches(configuration: Mapping[str, Any]) -> dict[str, set[str]]:
    """Returns the bridges of Open vSwitch of network:bridges with what they have there: own port, cards."""
    return {
        name: {name, spec.get("host_port", name), *(spec.get("ports") or [])}
        for name, spec in (configuration.get("bridges") or {}).items()
        if spec.get("switch") == "openvswitch"
    }


def _guarded(bridges: Mapping[str, Any], shared: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yields what would take from a bridge of network:bridges what is changed there alone, tried and undone."""
    owner = {port: bridge for bridge, ports in shared.items() for port in ports}
    for bridge, spec in bridges.items():
        path = f"network:ovs:bridges:{bridge}"
        if bridge in shared:
            more = [key for key in spec if key not in _OF_SHARED]
            yield from ((f"{path}:{key}", f"not allowed here; network:bridges:{bridge} decides it") for key in more)
        for port in spec.get("ports") or {}:
            if port in owner:
                yield f"{path}:ports:{port}", f"not allowed here; {port} is one of network:bridges:{owner[port]}"


def _members(bridges: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields interfaces that are a port of more than one thing."""
    holders: dict[str, str] = {}
    others = {
        port: f"network:{kind}:{name}"
        for kind in ("bridges", "bonds")
        for name, spec in _present(configuration.get(kind)).items()
        for port in spec.get("ports") or []
    }
    for bridge, spec in _present(bridges).items():
        for port, one in _present(spec.get("ports")).items():
            where = f"network:ovs:bridges:{bridge}:ports:{port}"
            for member in one.get("interfaces") or [port]:
                holder = holders.setdefault(member, where)
                if holder != where:
                    yield where, f"{member} stands at {holder} already"
                if member in others and one.get("type", "system") == "system":
                    yield where, f"{member} is a port of {others[member]} already"


def _port(name: str, spec: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a port."""
    kind = spec.get("type", "system")
    allowed = {
        _OF_TUNNELS: kind in _TUNNELS,
        _OF_INTERNAL: kind == "internal",
        ("interfaces",): kind == "system",
        ("peer",): kind == "patch",
    }
    for keys, fits in allowed.items():
        yield from ((key, f"not allowed with type: {kind}") for key in keys if key in spec and not fits)
    if "interfaces" not in spec:
        yield from ((key, "not allowed without interfaces") for key in _OF_BONDS if key in spec)
    if kind == "patch" and "peer" not in spec:
        yield "peer", "missing; must be the patch port at the other end"
    if spec.get("dhcp4") and spec.get("addresses"):
        yield "addresses", "not allowed with dhcp4: true"
    if spec.get("dhcp4") and kind == "internal" and "mac" not in spec:
        yield "mac", "missing; with dhcp4 it is needed, since the port would be another host to the server at each boot"
    if spec.get("tag") and spec.get("vlan_mode") == "trunk":
        yield "tag", "not allowed with vlan_mode: trunk"
    if kind in _TUNNELS:
        if "remote" not in spec:
            yield "remote", "missing; must be the address of the tunnel's other end"
        yield from _tunnel(name, spec, configuration["ipsec"])


def _tunnel(name: str, spec: Mapping[str, Any], ipsec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a tunnel."""
    kind, sealed = spec["type"], spec.get("ipsec", True)
    if spec.get("key", 0) > _KEY_MAX[kind]:
        yield "key", f"{spec['key']} is too large; {kind} has at most {_KEY_MAX[kind]}"
    if "local" in spec and "remote" in spec:
        local, remote = ipaddress.ip_address(spec["local"]), ipaddress.ip_address(spec["remote"])
        if local == remote:
            yield "remote", f"{remote} is this end of the tunnel too"
        elif local.version != remote.version:
            yield "local", f"{local} is not of the family of {remote}"
    if not sealed:
        yield from ((one, "not allowed with ipsec: false") for one in ("psk", "remote_name") if one in spec)
        return
    if "dst_port" in (spec.get("options") or {}):
        yield "options:dst_port", "not allowed with IPsec, which openvswitch-ipsec has for the usual port alone"
    yield from _known(name, spec, ipsec)


def _known(name: str, spec: Mapping[str, Any], ipsec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields how the ends of an encrypted tunnel do not know each other."""
    if ipsec.get("auth") == "certificate":
        if "remote_name" not in spec:
            yield "remote_name", "missing; must be the minion id of the other end, in whose name its certificate is"
        return
    if "remote_name" in spec:
        yield "remote_name", "not allowed with network:ipsec:auth psk"
    if not (spec.get("psk") or ipsec.get("psk")):
        yield "psk", f"missing; {name} needs a key here or in network:ipsec:psk, or ipsec: false"


def _mesh(name: str, spec: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a mesh in itself."""
    path = f"network:mesh:{name}"
    if spec.get("ensure") == "absent":
        return
    kind, nodes = spec.get("type", "gre"), _present(spec["nodes"])
    if spec.get("key", 0) > _KEY_MAX[kind]:
        yield f"{path}:key", f"{spec['key']} is too large; {kind} has at most {_KEY_MAX[kind]}"
    if configuration["ovs"]["bridges"].get(spec["bridge"], {}).get("ensure") == "absent":
        yield f"{path}:bridge", f"{spec['bridge']} is declared absent"
    kernels = _present(configuration.get("bridges")).get(spec["bridge"])
    if kernels is not None and kernels.get("switch") != "openvswitch":
        yield f"{path}:bridge", f"{spec['bridge']} is a bridge of the kernel; it needs switch: openvswitch"
    if spec.get("ipsec", True):
        known = configuration["ipsec"].get("auth") == "certificate"
        if not (known or spec.get("psk") or configuration["ipsec"].get("psk")):
            yield f"{path}:psk", "missing; a key is needed here or in network:ipsec:psk, or ipsec: false"
    elif "psk" in spec:
        yield f"{path}:psk", "not allowed with ipsec: false"
    yield from _nodes(path, spec, nodes)
    yield from _leased(path, spec, nodes, configuration["ovs"]["bridges"])


def _leased(
    path: str, spec: Mapping[str, Any], nodes: Mapping[str, Any], bridges: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yields that a mesh's port asks a server although each host, and so this one, has addresses for it.

    Where only some have, ``network_tunnels.compose`` knows whether this host is one of them.
    """
    ports = _present(_present(bridges).get(spec["bridge"], {}).get("ports"))
    if ports.get(spec.get("port", ""), {}).get("dhcp4") and nodes and all(one.get("inside") for one in nodes.values()):
        where = f"network:ovs:bridges:{spec['bridge']}:ports:{spec['port']}:dhcp4"
        yield where, f"not allowed with inside of {path}:nodes; one of dhcp4 and inside has to go"


def _nodes(path: str, spec: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the hosts of a mesh."""
    outside: dict[Any, str] = {}
    inside: dict[Any, str] = {}
    versions = {ipaddress.ip_address(one["address"]).version for one in nodes.values()}
    if len(versions) > 1:
        yield f"{path}:nodes", "IPv4 and IPv6 addresses cannot reach each other"
    for node, one in nodes.items():
        where = f"{path}:nodes:{node}"
        other = outside.setdefault(ipaddress.ip_address(one["address"]), node)
        if other != node:
            yield f"{where}:address", f"{one['address']} is the address of {other} already: a tunnel to itself"
        if one.get("inside") and "port" not in spec:
            yield f"{where}:inside", f"not allowed without {path}:port, which would have them"
        for address in one.get("inside") or []:
            other = inside.setdefault(ipaddress.ip_interface(address).ip, node)
            if other != node:
                yield f"{where}:inside", f"{address} is an address of {other} already"


def _between(bridges: Mapping[str, Any], meshes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields tunnels that the kernel cannot tell apart: of one type to one host with one key."""
    seen: dict[tuple[Any, ...], str] = {}
    ports: dict[str, str] = {}
    for bridge, spec in _present(bridges).items():
        for port, one in _present(spec.get("ports")).items():
            if one.get("type") in _TUNNELS and "remote" in one:
                path = f"network:ovs:bridges:{bridge}:ports:{port}"
                yield from _once(seen, (one["type"], one["remote"], one.get("key", 0)), path, "key")
    for name, spec in _present(meshes).items():
        path = f"network:mesh:{name}"
        for address in sorted({one["address"] for one in _present(spec["nodes"]).values()}):
            yield from _once(seen, (spec.get("type", "gre"), address, spec.get("key", 0)), path, "key")
        if "port" in spec:
            other = ports.setdefault(spec["port"], path)
            if other != path:
                yield f"{path}:port", f"{spec['port']} is the port of {other} already"


def _once(seen: dict[tuple[Any, ...], str], what: tuple[Any, ...], path: str, key: str) -> Iterator[tuple[str, str]]:
    """Yields what stands at two places."""
    other = seen.setdefault(what, path)
    if other != path:
        kind, remote, number = what
        yield f"{path}:{key}", f"{other} is a {kind} tunnel to {remote} with the key {number} already"


def _keys(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields keys that are none, and keys for one host that differ; never a key itself."""
    places = list(_places(configuration))
    common = configuration["ipsec"].get("psk")
    if configuration["ipsec"].get("auth") == "certificate":
        yield from _certified(configuration, places)
        return
    if common is not None:
        yield from _weak("network:ipsec:psk", common)
    for path, key, _ in places:
        if key:
            yield from _weak(path, key)
    first: dict[str, tuple[str, str]] = {}
    for path, key, remotes in places:
        for remote in remotes:
            known, where = first.setdefault(remote, (key or common or "", path))
            if known != (key or common or ""):
                yield path, f"{remote} has another key at {where}, and IPsec has one for each pair of hosts"


def _certified(
    configuration: Mapping[str, Any], places: list[tuple[str, str, list[str]]]
) -> Iterator[tuple[str, str]]:
    """Yields what does not go with certificates: openvswitch-ipsec takes no tunnel that has a key as well."""
    held = [("network:ipsec:psk", configuration["ipsec"].get("psk")), *((path, key) for path, key, _ in places)]
    yield from ((path, "not allowed with network:ipsec:auth certificate") for path, key in held if key)
    for key in _IDENTITY:
        if configuration["ovs"]["other_config"].get(key) is not None:
            yield f"network:ovs:other_config:{key}", "not allowed here; network:ipsec:auth decides it"


def _places(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yields where a key may stand, the key or an empty text, and the hosts to which it leads encrypted tunnels."""
    for name, spec in _present(configuration["mesh"]).items():
        remotes = [one["address"] for one in _present(spec["nodes"]).values()] if spec.get("ipsec", True) else []
        yield f"network:mesh:{name}:psk", spec.get("psk", ""), remotes
    for bridge, spec in _present(configuration["ovs"]["bridges"]).items():
        for port, one in _present(spec.get("ports")).items():
            sealed = one.get("type") in _TUNNELS and one.get("ipsec", True) and "remote" in one
            path = f"network:ovs:bridges:{bridge}:ports:{port}:psk"
            yield path, one.get("psk", ""), [one["remote"]] if sealed else []


def _weak(path: str, key: str) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a key."""
    plain = key.lower()
    if any(word in plain for word in _PLACEHOLDERS):
        yield path, "this is a placeholder, not a key; make one with: openssl rand -base64 32"
    elif len(set(key)) < _DISTINCT:
        yield path, f"a key has at least {_DISTINCT} different characters; make one with: openssl rand -base64 32"


# ---- served networks ----


def _networks(interface: str, configuration: Mapping[str, Any]) -> list[Any] | None:
    """Returns the networks of an interface's static addresses, on whichever host; None for an unknown interface."""
    found: list[str] = []
    known = False
    for kind in ("ethernets", "bonds", "vlans", "bridges"):
        named = {spec.get("host_port", name): spec for name, spec in _present(configuration.get(kind)).items()}
        spec = named.get(interface)
        if spec is not None:
            known = True
            found += spec.get("addresses") or []
    for bridge in _present(configuration["ovs"]["bridges"]).values():
        port = _present(bridge.get("ports")).get(interface)
        if port is not None:
            known = True
            found += port.get("addresses") or []
    for mesh in _present(configuration["mesh"]).values():
        if mesh.get("port") == interface:
            known = True
            found += [address for one in _present(mesh["nodes"]).values() for address in one.get("inside") or []]
    return [ipaddress.ip_interface(one).network for one in found] if known else None


def _served(spec: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a served network."""
    interface = spec["interface"]
    networks = _networks(interface, configuration)
    if networks is None:
        yield "interface", f"{interface} is not declared in network:, where its address must stand"
        return
    if not networks:
        yield "interface", f"{interface} has no static address"
        return
    taken: list[tuple[Any, Any]] = []
    for index, one in enumerate(spec.get("ranges") or []):
        for text in _range(one, networks, taken):
            yield f"ranges:{index}", text
    yield from _alone(spec, networks)
    yield from _fixed(spec, networks)
    if "router" in spec and not any(ipaddress.ip_address(spec["router"]) in network for network in networks):
        yield "router", f"{spec['router']} is not in {_listed(networks)}"


def _alone(spec: Mapping[str, Any], networks: list[Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the network in which listed hosts alone get addresses."""
    fitting = [one for one in networks if one.version == 4]
    allowed = _listed(fitting) or f"none, since {spec['interface']} has no static IPv4 address"
    if "network" not in spec:
        if spec.get("hosts") and not spec.get("ranges"):
            yield "network", f"missing; without ranges it must be the network of the hosts; allowed: {allowed}"
    elif ipaddress.ip_network(spec["network"]) not in fitting:
        yield "network", f"{spec['network']} is not an IPv4 network of {spec['interface']}; allowed: {allowed}"


def _fixed(spec: Mapping[str, Any], networks: list[Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with hosts of fixed addresses and names."""
    known: dict[Any, str] = {}
    names: dict[str, str] = {}
    starts = [ipaddress.ip_address(one["start"]) for one in spec.get("ranges") or []]
    named = ipaddress.ip_network(spec["network"]) if "network" in spec else None
    served = [one for one in networks if one == named or any(start in one for start in starts)]
    for mac, host in (spec.get("hosts") or {}).items():
        if "name" in host:
            other = names.setdefault(host["name"].lower(), mac)
            if other != mac:
                yield f"hosts:{mac}:name", f"{host['name']} is the name of {other} already"
        if "ip" not in host:
            continue
        address = ipaddress.ip_address(host["ip"])
        other = known.setdefault(address, mac)
        if other != mac:
            yield f"hosts:{mac}:ip", f"{address} is the address of {other} already"
        elif not any(address in network for network in networks):
            yield f"hosts:{mac}:ip", f"{address} is not in {_listed(networks)}"
        elif served and not any(address in network for network in served):
            unanswered = "has neither a range nor the key network, so that nobody would answer there"
            yield f"hosts:{mac}:ip", f"the network of {address} {unanswered}; served: {_listed(served)}"


def _range(one: Mapping[str, Any], networks: list[Any], taken: list[tuple[Any, Any]]) -> Iterator[str]:
    """Yields what is wrong with a range, and notes it as taken."""
    start: Any = ipaddress.ip_address(one["start"])
    end: Any = ipaddress.ip_address(one["end"])
    if start.version != end.version or start > end:
        yield f"starts at {start}, after its end {end}"
    elif not any(start in network and end in network for network in networks):
        yield f"{start} to {end} is not in {_listed(networks)}"
    elif start.version == 6 and not any(start in network and network.prefixlen <= 64 for network in networks):
        yield f"dnsmasq serves IPv6 networks of /64; {start} is in {_listed([one for one in networks if start in one])}"
    elif any(start.version == first.version and start <= last and first <= end for first, last in taken):
        yield f"{start} to {end} overlaps another range"
    else:
        taken.append((start, end))


def _listed(networks: list[Any]) -> str:
    """Returns networks for a message."""
    return " or ".join(sorted({str(one) for one in networks}))


def _shared(served: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields interfaces that two networks would be served on."""
    seen: dict[str, str] = {}
    for name, spec in _present(served).items():
        other = seen.setdefault(spec["interface"], name)
        if other != name:
            yield f"network:dnsmasq:{name}:interface", f"{spec['interface']} is the interface of {other} already"

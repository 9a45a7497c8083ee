"""What the schema cannot say of pools, networks and guests: values that do not fit each other.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes;
the states ask the rest for arguments that did not come from the pillar.
"""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
FAMILIES = {"ipv4_config": 4, "ipv6_config": 6}
# What the host serves on a network of its own, and what only a bridge of the host can have.
_SERVED = ("ipv4_config", "ipv6_config", "domain", "domain_local", "dns", "mtu", "forward_device")
_SWITCHED = ("virtualport", "vlan", "portgroups")
# Kinds of pools whose volumes are block devices, and where disks without a pool are by default.
_BLOCK_POOLS = frozenset({"logical", "disk", "iscsi", "iscsi-direct", "scsi", "mpath"})
_IMAGES = "/var/lib/libvirt/images"


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges the configuration of libvirt/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    pools, networks = configuration["pools"], configuration["networks"]
    found = [(f"libvirt:pools:{name}:{key}", text) for name, spec in pools.items() for key, text in pool(name, spec)]
    for name, spec in networks.items():
        found += [(f"libvirt:networks:{name}:{key}", text) for key, text in network(spec)]
    found += [(f"libvirt:networks:{key}", text) for key, text in conflicts(networks)]
    return found + [(f"libvirt:guests:{key}", text) for key, text in disks(configuration.get("guests", {}), pools)]


def disks(guests: Mapping[str, Mapping[str, Any]], pools: Mapping[str, Mapping[str, Any]]) -> Errors:
    """Finds new disks that two guests would write to: the guest web_db may derive for its disk data what web does.

    Args:
        guests: their pillars by name.
        pools: those of storage pools.

    Returns:
        Pairs of a guest with its disk, and what is wrong with it.
    """
    found: Errors = []
    taken: dict[str, str] = {}
    for name, spec in guests.items():
        if spec.get("ensure") == "absent":
            continue
        for disk in spec.get("disks") or []:
            path = _disk_path(name, disk, pools)
            other = taken.setdefault(path, name) if path else name
            if other != name:
                found.append((f"{name}:disks:{disk['name']}", f"{path} is a disk of the guest {other} already"))
    return found


def _disk_path(name: str, disk: Mapping[str, Any], pools: Mapping[str, Mapping[str, Any]]) -> str:
    """Derives where a new disk is, as ``guest_declared.disks`` does; empty for one that is there already."""
    if disk.get("source_file") or disk.get("device") == "cdrom":
        return ""
    if "path" in disk:
        return str(disk["path"])
    spec = pools.get(disk.get("pool", ""), {})
    block = spec.get("ptype") in _BLOCK_POOLS
    home = _IMAGES
    if "pool" in disk:
        # A pool that this pillar does not declare has a folder that nobody knows yet.
        home = spec.get("target") or f"pool {disk['pool']}"
    volume = f"{name}_{disk['name']}"
    return f"{home}/{volume}" + ("" if block else f".{disk.get('format', 'qcow2')}")


def pool(name: str, spec: Mapping[str, Any]) -> Errors:
    """Finds what is wrong inside one pool.

    Args:
        name: the pool.
        spec: its pillar, judged by the schema.

    Returns:
        Pairs of a key and what is wrong with it.
    """
    if spec.get("ptype") != "logical" or "target" not in spec:
        return []
    must = f"/dev/{(spec.get('source') or {}).get('name', name)}"
    if spec["target"] == must:
        return []
    return [("target", f'"{spec["target"]}" is not allowed; the target of this volume group is {must}')]


def network(spec: Mapping[str, Any]) -> Errors:
    """Finds what is wrong inside one network.

    Args:
        spec: its pillar, judged by the schema.

    Returns:
        Pairs of a key and what is wrong with it.
    """
    if spec.get("ensure") == "absent":
        return []
    found: Errors = []
    mode = spec["forward"]
    for key in _SERVED if mode == "bridge" else _SWITCHED:
        if key in spec:
            found.append((key, f"not allowed with forward: {mode}"))
    if mode == "bridge" and "bridge" not in spec:
        found.append(("bridge", "missing; must be the host's bridge"))
    if mode in {"nat", "route"} and not FAMILIES.keys() & spec.keys():
        found.append(("ipv4_config", f"missing; forward: {mode} needs addresses"))
    tagged = "vlan" in spec or any("vlan" in group for group in (spec.get("portgroups") or {}).values())
    if tagged and "virtualport" not in spec:
        found.append(("virtualport", "missing; VLAN tags need a virtualport of type openvswitch"))
    for key, version in FAMILIES.items():
        if key in spec:
            found += [(f"{key}:{where}", text) for where, text in _address_errors(spec[key], version)]
    return found


def own_address(config: Mapping[str, Any]) -> Interface:
    """Returns the host's address in a network: what ``cidr`` names, or the first of the network."""
    given = ipaddress.ip_interface(config["cidr"])
    if given.ip == given.network.network_address:
        return ipaddress.ip_interface(f"{given.network[1]}/{given.network.prefixlen}")
    return given


def _address_errors(config: Mapping[str, Any], version: int) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the addresses of one family."""
    given = ipaddress.ip_interface(config["cidr"])
    if given.version != version:
        yield "cidr", f"{given} is not an IPv{version} network"
        return
    if given.network.num_addresses < 4:
        yield "cidr", f"{given} has no room for a guest"
        return
    own = own_address(config)
    if version == 4 and own.ip == own.network.broadcast_address:
        yield "cidr", f"{own.ip} is the broadcast address of its network"
    yield from _range_errors(config, own)
    yield from _host_errors(config, own)


def _range_errors(config: Mapping[str, Any], own: Interface) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the ranges of DHCP."""
    taken: list[tuple[Any, Any]] = []
    for index, entry in enumerate(config.get("dhcp_ranges") or []):
        where = f"dhcp_ranges:{index}"
        start: Any = ipaddress.ip_address(entry["start"])
        end: Any = ipaddress.ip_address(entry["end"])
        wrong = [one for one in (start, end) if not _is_inside(one, own)]
        if wrong:
            yield where, f"{wrong[0]} is not an address for guests of {own.network}"
        elif start > end:
            yield where, f"starts at {start}, after its end {end}"
        elif any(start <= last and first <= end for first, last in taken):
            yield where, f"{start} to {end} overlaps another range"
        else:
            taken.append((start, end))


def _host_errors(config: Mapping[str, Any], own: Interface) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the fixed addresses of DHCP."""
    known: dict[Any, str] = {own.ip: "the host"}
    for guest, entry in (config.get("hosts") or {}).items():
        address = ipaddress.ip_address(entry["ip"])
        if not _is_inside(address, own):
            yield f"hosts:{guest}:ip", f"{address} is not an address for guests of {own.network}"
        elif address in known:
            yield f"hosts:{guest}:ip", f"{address} is the address of {known[address]} already"
        known.setdefault(address, guest)


def _is_inside(address: Any, own: Interface) -> bool:
    """Says whether a guest of the network can have an address."""
    network = own.network
    if address.version != network.version or address not in network:
        return False
    return bool(network.version == 6 or address not in (network.network_address, network.broadcast_address))


def conflicts(networks: Mapping[str, Mapping[str, Any]]) -> Errors:
    """Finds networks that cannot run side by side.

    Args:
        networks: their pillars by name; those that are wrong in themselves are looked at as far as
            possible.

    Returns:
        Pairs of a network with a key, and what is wrong with it.
    """
    found: Errors = []
    subnets: list[tuple[str, Any]] = []
    bridges: dict[str, str] = {}
    for name, spec in networks.items():
        if spec.get("ensure") == "absent":
            continue
        for key in FAMILIES:
            if not spec.get(key):
                continue
            subnet = ipaddress.ip_interface(spec[key]["cidr"]).network
            for other, taken in subnets:
                if subnet.version == taken.version and subnet.overlaps(taken):
                    found.append((f"{name}:{key}:cidr", f"{subnet} overlaps {taken} of the network {other}"))
            subnets.append((name, subnet))
        if spec.get("forward") != "bridge" and spec.get("bridge"):
            other = bridges.setdefault(spec["bridge"], name)
            if other != name:
                found.append((f"{name}:bridge", f"{spec['bridge']} is the bridge of the network {other}"))
    return found


def overlaps(spec: Mapping[str, Any], other: str, xml: str) -> Errors:
    """Finds what of a network is taken by one that runs.

    Args:
        spec: the network's pillar.
        other: the name of the network that runs.
        xml: its XML.

    Returns:
        Pairs of a key and what is wrong with it.
    """
    root = ET.fromstring(xml)  # noqa: S314  this host's own libvirt wrote it
    found: Errors = []
    for element in root.findall("ip"):
        prefix = element.get("prefix") or element.get("netmask")
        version = "ipv6_config" if element.get("family") == "ipv6" else "ipv4_config"
        networks = {other: {version: {"cidr": f"{element.get('address')}/{prefix}"}}, " ": dict(spec)}
        found += [(key.removeprefix(" :"), text) for key, text in conflicts(networks) if key.startswith(" :")]
    return found

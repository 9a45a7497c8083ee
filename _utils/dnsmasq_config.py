"""What dnsmasq reads to serve DHCP and DNS on one private network.

Pure functions. What may change while guests hold leases stands in files that dnsmasq reads again when it gets SIGHUP:
hosts, options, names. The rest is its configuration, which needs a restart.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

FOLDER = "/etc/hypervisor-formula/dnsmasq"
LEASES = "/var/lib/hypervisor-dnsmasq"
CONF, HOSTS, OPTIONS, NAMES = "dnsmasq.conf", "dhcp-hosts", "dhcp-options", "names"
_HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run.\n"
# Client architectures of RFC 4578 that boot by UEFI on x86-64: 7 is what most firmware sends.
_UEFI = (7, 9)
_LISTENER = re.compile(r"^(?P<proto>udp|tcp)\s+\S+\s+\d+\s+\d+\s+(?P<local>\S+)\s+\S+(?:\s+users:\((?P<users>.*)\))?")
_USER = re.compile(r'\("([^"]+)",pid=(\d+)')


def folder() -> str:
    """Returns the folder in which every network has one of its own."""
    return FOLDER


class Listener(NamedTuple):
    """A socket that waits for packets on a port.

    Attributes:
        address: where, ``*`` for all addresses.
        device: the interface that it is bound to; empty for all.
        port: its port.
        program: what holds it, and its process id; empty where that is not known.
    """

    address: str
    device: str
    port: int
    program: str
    pid: int


def files(name: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Returns the content of each file of a network by its name.

    Args:
        name: the network.
        spec: its pillar, below ``network:dnsmasq``.

    Raises:
        ValueError: there are hosts, but neither a range nor an IPv4 network to serve them in.
    """
    return {
        CONF: _HEADER + "".join(f"{line}\n" for line in _conf(name, spec)),
        HOSTS: _HEADER + "".join(f"{line}\n" for line in _hosts(spec)),
        OPTIONS: _HEADER + "".join(f"{line}\n" for line in _options(spec)),
        NAMES: _HEADER + "".join(f"{line}\n" for line in _names(spec)),
    }


def candidate(name: str, spec: Mapping[str, Any]) -> str:
    """Returns one configuration with everything in it, for ``dnsmasq --test``.

    The test reads no further files, so the lines of those stand in it as the options that they are.

    Raises:
        ValueError: there are hosts, but neither a range nor an IPv4 network to serve them in.
    """
    lines = [line for line in _conf(name, spec) if not line.startswith(("dhcp-hostsfile", "dhcp-optsfile", "addn-"))]
    lines += [f"dhcp-host={line}" for line in _hosts(spec)]
    lines += [f"dhcp-option={line}" for line in _options(spec)]
    return "".join(f"{line}\n" for line in lines)


def _dns(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what a network says of DNS."""
    found: Mapping[str, Any] = spec.get("dns") or {}
    return found


def _conf(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the configuration."""
    home = f"{FOLDER}/{name}"
    # The loopback interface belongs to whoever resolves names for this host; dnsmasq would take it besides.
    yield from (f"interface={spec['interface']}", "except-interface=lo", "bind-dynamic", "no-hosts", "no-resolv")
    dns = _dns(spec)
    if dns.get("enabled", True):
        yield from (f"server={one}" for one in dns.get("servers") or [])
        yield from ("domain-needed", "bogus-priv", f"addn-hosts={home}/{NAMES}")
    else:
        yield "port=0"
    if "domain" in spec:
        yield from (f"domain={spec['domain']}", "expand-hosts")
        if dns.get("local", True) and dns.get("enabled", True):
            yield f"local=/{spec['domain']}/"
    yield from _dhcp(name, spec)
    yield from _boot(spec.get("boot") or {})


def _dhcp(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines about leases."""
    home, lease = f"{FOLDER}/{name}", spec.get("lease", "12h")
    if not spec.get("ranges") and not spec.get("hosts"):
        return
    yield from ("dhcp-authoritative", f"dhcp-leasefile={LEASES}/{name}/leases")
    versions = set()
    for one in spec.get("ranges") or []:
        version = ipaddress.ip_address(one["start"]).version
        versions.add(version)
        length = ",64" if version == 6 else f",{one['netmask']}" if "netmask" in one else ""
        yield f"dhcp-range={one['start']},{one['end']}{length},{one.get('lease', lease)}"
    for network in _static_networks(spec):
        yield f"dhcp-range={network.network_address},static,{network.netmask},{lease}"
    if 6 in versions:
        yield "enable-ra"
    yield from (f"dhcp-hostsfile={home}/{HOSTS}", f"dhcp-optsfile={home}/{OPTIONS}")


def _static_networks(spec: Mapping[str, Any]) -> list[ipaddress.IPv4Network]:
    """Returns the networks in which only listed hosts get an address: that of ``network``, if no range lies in it.

    Raises:
        ValueError: there are hosts, but neither a range nor an IPv4 network to serve them in.
    """
    network = ipaddress.ip_network(spec["network"]) if "network" in spec else None
    if ranges := spec.get("ranges"):
        if not isinstance(network, ipaddress.IPv4Network):
            return []
        return [] if any(ipaddress.ip_address(one["start"]) in network for one in ranges) else [network]
    if not isinstance(network, ipaddress.IPv4Network):
        found = f"{network} is not an IPv4 network" if network else "missing"
        raise ValueError(f"network: {found}; without ranges it must be the IPv4 network of the hosts")
    return [network]


def _boot(boot: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines about booting over the network."""
    if "tftp_root" in boot:
        yield from ("enable-tftp", f"tftp-root={boot['tftp_root']}")
    server = f",,{boot['server']}" if "server" in boot else ""
    without = ""
    if "ipxe_file" in boot:
        # What iPXE itself asks for; it names itself, and always sends its own option.
        yield from ("dhcp-match=set:ipxe,175", "dhcp-userclass=set:ipxe,iPXE")
        yield f"dhcp-boot=tag:ipxe,{boot['ipxe_file']}{server}"
        without = "tag:!ipxe,"
    if "uefi_file" in boot:
        yield from (f"dhcp-match=set:uefi,option:client-arch,{arch}" for arch in _UEFI)
        yield f"dhcp-boot={without}tag:uefi,{boot['uefi_file']}{server}"
        without += "tag:!uefi,"
    if "file" in boot:
        yield f"dhcp-boot={without}{boot['file']}{server}"


def _hosts(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each host with a fixed address."""
    for mac, host in (spec.get("hosts") or {}).items():
        address = host.get("ip", "")
        if ":" in address:
            address = f"[{address}]"
        yield ",".join(word for word in (mac.lower(), address, host.get("name", "")) if word)


def _options(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each option of DHCP."""
    if not spec.get("ranges") and not spec.get("hosts"):
        return
    # Without a value the option is not sent: this host is no router unless the pillar says so.
    yield f"option:router,{spec['router']}" if "router" in spec else "option:router"
    if "mtu" in spec:
        yield f"option:mtu,{spec['mtu']}"
    if _dns(spec).get("enabled", True) is False and "dns-server" not in (spec.get("options") or {}):
        yield "option:dns-server"
    for option, value in (spec.get("options") or {}).items():
        key = option if option.isdigit() else f"option:{option}"
        yield f"{key},{','.join(map(str, value)) if isinstance(value, list) else value}"


def _names(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each address with names."""
    for address, names in (_dns(spec).get("hosts") or {}).items():
        yield f"{address} {' '.join(names)}"


def steps(changed: Iterable[str], active: bool) -> str:
    """Returns what a change of files asks for: ``start``, ``restart``, ``reload`` or nothing.

    Args:
        changed: names of files that differ.
        active: whether the service runs.
    """
    names = set(changed)
    if not active:
        return "start"
    if CONF in names:
        return "restart"
    return "reload" if names else ""


def listeners(text: str) -> list[Listener]:
    """Reads what ``ss --no-header --listening --numeric --processes --udp --tcp`` prints."""
    found = []
    for line in text.splitlines():
        match = _LISTENER.match(line.strip())
        if not match:
            continue
        local, _, port = match["local"].rpartition(":")
        address, _, device = local.partition("%")
        user = _USER.search(match["users"] or "")
        plain = address.strip("[]")
        if port.isdigit():
            wide = "*" if plain in {"0.0.0.0", "::", "*"} else plain  # noqa: S104  what ss prints, nothing is bound
            program, pid = (user[1], int(user[2])) if user else ("", 0)
            found.append(Listener(wide, device, int(port), program, pid))
    return found


def taken(spec: Mapping[str, Any], found: Iterable[Listener], addresses: Iterable[str], own: int) -> list[str]:
    """Returns what keeps a network from being served: sockets of others on the same ports.

    Args:
        spec: the network's pillar.
        found: what listens on this host.
        addresses: those of the network's interface.
        own: process id of the network's own dnsmasq, 0 if it does not run.
    """
    wanted = {53} if _dns(spec).get("enabled", True) else set()
    wanted |= {67} if spec.get("ranges") or spec.get("hosts") else set()
    held = set(addresses)
    words = []
    for one in found:
        if one.port not in wanted or (one.pid == own and own):
            continue
        if one.device and one.device != spec["interface"]:
            continue
        if one.address == "*" or one.address in held:
            who = f"{one.program} (process {one.pid})" if one.program else "another program"
            where = "all addresses" if one.address == "*" else one.address
            words.append(f"{who} has port {one.port} on {where}")
    return sorted(set(words))

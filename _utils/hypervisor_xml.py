"""Reads what libvirt writes about guests, pools, networks and hosts; pure functions from text to plain values.

The XML comes from libvirt, which writes it anew from what it has parsed: there are no entities in it.
Sizes are in the unit that the key ends with: ``_mib``, ``_kib`` or ``_bytes``; times in ``_seconds``.
"""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ET
from typing import Any

# virDomainState; "pmsuspended" is the guest's own suspend to memory.
_STATES = {
    0: "unknown",
    1: "running",
    2: "blocked",
    3: "paused",
    4: "shutting_down",
    5: "shut_off",
    6: "crashed",
    7: "pmsuspended",
}
_KIB = {
    "b": 1 / 1024,
    "bytes": 1 / 1024,
    "KB": 1000 / 1024,
    "k": 1,
    "KiB": 1,
    "MB": 1000**2 / 1024,
    "M": 1024,
    "MiB": 1024,
    "GB": 1000**3 / 1024,
    "G": 1024**2,
    "GiB": 1024**2,
    "TB": 1000**4 / 1024,
    "T": 1024**3,
    "TiB": 1024**3,
}
_PAGES = re.compile(r"^(\d+)KiB: (\d+)$", re.MULTILINE)
_LISTED = re.compile(r"([0-9a-f]{8}-[0-9a-f-]{27})\s+(.*)")


def parsed(text: str) -> ET.Element:
    """Parses XML that libvirt has written.

    Raises:
        ParseError: it is no XML.
    """
    return ET.fromstring(text)  # noqa: S314 - written by libvirt, which keeps no entities


def kib(element: ET.Element | None) -> int:
    """Returns a size with libvirt's unit in KiB, rounded down; 0 for what is not there."""
    if element is None:
        return 0
    return int(int(element.text or 0) * _KIB[element.get("unit", "KiB")])


def listed(text: str) -> dict[str, str]:
    """Reads ``list --uuid --name``: names by UUID."""
    found = (_LISTED.match(line.strip()) for line in text.splitlines())
    return {match[1]: match[2].strip() for match in found if match}


def lines(text: str) -> list[str]:
    """Reads a list of names or UUIDs, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def columns(text: str) -> list[list[str]]:
    """Reads a table of virsh's without its heading: the words of each line."""
    rows = [line.split() for line in text.splitlines()]
    return [row for row in rows if row and not set(row[0]) <= {"-"} and row[0] not in {"Id", "Name"}]


def pairs(text: str) -> dict[str, str]:
    """Reads lines of ``key: value`` or ``key=value``, such as those of domjobinfo and nodememstats."""
    found = {}
    for line in text.splitlines():
        key, mark, value = line.partition("=") if "=" in line and ":" not in line else line.partition(":")
        if mark:
            found[key.strip().lower()] = value.strip()
    return found


def domstats(text: str) -> dict[str, dict[str, str]]:
    """Reads ``domstats --raw``: figures by the guest's name, as libvirt names them."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("Domain: '"):
            current = found.setdefault(line[len("Domain: '") :].rstrip().removesuffix("'"), {})
        elif "=" in line:
            key, _, value = line.strip().partition("=")
            current[key] = value
    return found


def state(figures: dict[str, str]) -> str:
    """Returns the name of a guest's state from its domstats."""
    return _STATES.get(int(figures.get("state.state", "0")), "unknown")


def _disk(disk: ET.Element) -> dict[str, Any]:
    """Describes one disk or drive of a guest."""
    source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
    attributes = {} if source is None else source.attrib
    kind = disk.get("type", "file")
    path = attributes.get("file") or attributes.get("dev") or attributes.get("dir")
    if kind == "network" and attributes:
        path = f"{attributes.get('protocol', '')}:{attributes.get('name', '')}"
    backing = [
        str(layer.find("source").attrib.get("file") or layer.find("source").attrib.get("dev"))  # type: ignore[union-attr]
        for layer in disk.iter("backingStore")
        if layer.find("source") is not None
    ]
    return {
        "target": "" if target is None else target.get("dev", ""),
        "bus": "" if target is None else target.get("bus", ""),
        "device": disk.get("device", "disk"),
        "type": kind,
        "source": path,
        "pool": attributes.get("pool"),
        "volume": attributes.get("volume"),
        "format": "" if driver is None else driver.get("type", ""),
        "cache": "" if driver is None else driver.get("cache", ""),
        "readonly": disk.find("readonly") is not None,
        "shareable": disk.find("shareable") is not None,
        "backing": backing,
    }


def _nic(nic: ET.Element) -> dict[str, Any]:
    """Describes one network interface of a guest."""
    mac, source, target = nic.find("mac"), nic.find("source"), nic.find("target")
    model, link = nic.find("model"), nic.find("link")
    attributes = {} if source is None else source.attrib
    kind = nic.get("type", "")
    return {
        "mac": "" if mac is None else mac.get("address", ""),
        "type": kind,
        "source": attributes.get(kind) or attributes.get("bridge") or attributes.get("dev") or "",
        "device": None if target is None else target.get("dev"),
        "model": "" if model is None else model.get("type", ""),
        "link_up": link is None or link.get("state") != "down",
    }


def _graphics(screen: ET.Element) -> dict[str, Any]:
    """Describes one screen of a guest; never its password, which libvirt does not show here either."""
    listen = screen.find("listen")
    given = {**({} if listen is None else listen.attrib)}
    port = int(screen.get("port", "-1"))
    return {
        "type": screen.get("type", ""),
        "socket": given.get("socket") or screen.get("socket"),
        "address": given.get("address") or screen.get("listen"),
        "port": port if port > 0 else None,
    }


def _serial(port: ET.Element) -> dict[str, Any]:
    """Describes one serial port of a guest."""
    source, log = port.find("source"), port.find("log")
    return {
        "type": port.get("type", ""),
        "path": None if source is None else source.get("path"),
        "log": None if log is None else log.get("file"),
    }


def _screen(root: ET.Element) -> ET.Element | None:
    """Returns the VNC display of a guest that is on a unix socket."""
    return root.find("devices/graphics[@type='vnc']/listen[@type='socket']")


def _terminal(root: ET.Element) -> ET.Element | None:
    """Returns the first serial port of a guest, if it has a terminal."""
    port = root.find("devices/serial")
    return port if port is not None and port.get("type") == "pty" else None


def consoles(text: str) -> dict[str, str | None]:
    """Says where the consoles of a guest are: ``run``, the number of its run, ``vnc`` and ``serial``, their paths."""
    root = parsed(text)
    screen, port = _screen(root), _terminal(root)
    source = None if port is None else port.find("source")
    return {
        "run": root.get("id"),
        "vnc": None if screen is None else screen.get("socket"),
        "serial": None if source is None else source.get("path"),
    }


def _firmware(system: ET.Element | None) -> str:
    """Says whether a guest boots by UEFI or BIOS."""
    if system is None:
        return "bios"
    loader = system.find("loader")
    uefi = system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    return "uefi" if uefi else "bios"


def guest(text: str) -> dict[str, Any]:
    """Describes a guest from its XML; the keys are those of ``hypervisor.guest`` that XML can answer."""
    root = parsed(text)
    system = root.find("os")
    kind = root.find("os/type")
    vcpu = root.find("vcpu")
    memory, current = kib(root.find("memory")), root.find("currentMemory")
    pages = root.findall("memoryBacking/hugepages/page")
    channels = root.findall("devices/channel/target[@name='org.qemu.guest_agent.0']")
    direct = [root.find(f"os/{item}") for item in ("kernel", "initrd")]
    most = int((vcpu.text if vcpu is not None else None) or 1)
    return {
        "name": root.findtext("name", ""),
        "uuid": root.findtext("uuid", ""),
        "title": root.findtext("title"),
        "domain_type": root.get("type", ""),
        "architecture": "" if kind is None else kind.get("arch", ""),
        "machine": "" if kind is None else kind.get("machine", ""),
        "firmware": _firmware(system),
        "boot_files": [str(item.text) for item in direct if item is not None],
        "vcpus": int(vcpu.get("current", most)) if vcpu is not None else most,
        "vcpus_max": most,
        "memory_mib": (kib(current) if current is not None else memory) // 1024,
        "memory_max_mib": memory // 1024,
        "hugepages": root.find("memoryBacking/hugepages") is not None,
        "hugepages_kib": sorted({int(page.get("size", "0")) * int(_KIB[page.get("unit", "KiB")]) for page in pages}),
        "disks": [_disk(disk) for disk in root.findall("devices/disk")],
        "nics": [_nic(nic) for nic in root.findall("devices/interface")],
        "graphics": [_graphics(screen) for screen in root.findall("devices/graphics")],
        "serials": [_serial(port) for port in root.findall("devices/serial")],
        "consoles": [kind for kind, found in (("vnc", _screen), ("serial", _terminal)) if found(root) is not None],
        "host_devices": [
            f"{device.get('type', '')} {device.get('mode', '')}".strip() for device in root.findall("devices/hostdev")
        ],
        "filesystems": [str(target.get("dir")) for target in root.findall("devices/filesystem/target")],
        "agent_connected": any(channel.get("state") == "connected" for channel in channels),
    }


def beside(text: str) -> tuple[str, bool]:
    """Returns the path of a guest's own UEFI variables, empty without any, and whether it has an emulated TPM."""
    root = parsed(text)
    variables = root.find("os/nvram")
    source = None if variables is None else variables.find("source")
    path = "" if variables is None else variables.text or ""
    if source is not None:
        path = source.get("file") or source.get("dev") or ""
    return path.strip(), root.find("devices/tpm/backend[@type='emulator']") is not None


def cpu(text: str) -> tuple[str, str]:
    """Returns the mode of a guest's processor, such as "custom", and its XML; empty texts if it has none."""
    found = parsed(text).find("cpu")
    return ("", "") if found is None else (found.get("mode", "custom"), ET.tostring(found, encoding="unicode").strip())


def freepages(text: str) -> dict[int, int]:
    """Reads ``freepages --all``: free pages of all NUMA nodes by their size in KiB."""
    found: dict[int, int] = {}
    for key, value in _PAGES.findall(text):
        found[int(key)] = found.get(int(key), 0) + int(value)
    return found


def pool(text: str) -> dict[str, Any]:
    """Describes a storage pool from its XML; the sizes of one that is not active are None."""
    root = parsed(text)
    sizes = {}
    for key in ("capacity", "allocation", "available"):
        sizes[f"{key}_bytes"] = int(root.findtext(key, "0") or 0)
    return {
        "name": root.findtext("name", ""),
        "uuid": root.findtext("uuid", ""),
        "type": root.get("type", ""),
        "path": root.findtext("target/path"),
        **sizes,
    }


def network(text: str) -> dict[str, Any]:
    """Describes a virtual network from its XML."""
    root = parsed(text)
    forward, bridge = root.find("forward"), root.find("bridge")
    addresses = []
    for item in root.findall("ip"):
        length = item.get("prefix") or item.get("netmask")
        written = f"{item.get('address')}/{length}" if length else str(item.get("address"))
        addresses.append(str(ipaddress.ip_interface(written)))
    return {
        "name": root.findtext("name", ""),
        "uuid": root.findtext("uuid", ""),
        "forward": "isolated" if forward is None else forward.get("mode", "nat"),
        "bridge": None if bridge is None else bridge.get("name"),
        "addresses": addresses,
        "dhcp": root.find("ip/dhcp") is not None,
    }


def capabilities(text: str) -> dict[str, Any]:
    """Describes a host from its capabilities: UUID, processor, NUMA, and the domain types that libvirt offers."""
    root = parsed(text)
    cpu = root.find("host/cpu")
    topology = root.find("host/cpu/topology")
    shape = {} if topology is None else topology.attrib
    cells = root.findall("host/topology/cells/cell")
    types = {domain.get("type", "") for domain in root.findall("guest/arch/domain")}
    return {
        "uuid": root.findtext("host/uuid", ""),
        "cpu": {
            "architecture": root.findtext("host/cpu/arch", ""),
            "model": root.findtext("host/cpu/model"),
            "vendor": root.findtext("host/cpu/vendor"),
            "sockets": int(shape.get("sockets", "1")),
            "dies": int(shape.get("dies", "1")),
            "cores": int(shape.get("cores", "1")),
            "threads": int(shape.get("threads", "1")),
            "xml": "" if cpu is None else ET.tostring(cpu, encoding="unicode").strip(),
        },
        "numa": [
            {
                "node": int(cell.get("id", "0")),
                "memory_mib": kib(cell.find("memory")) // 1024,
                "cpus": [int(one.get("id", "0")) for one in cell.findall("cpus/cpu")],
            }
            for cell in cells
        ],
        "domain_types": sorted(types),
    }

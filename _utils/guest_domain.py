"""Reads a guest's definition, compares it with what is declared, and says how to edit it.

Pure: definitions come as text, and an edit is a list of steps for ``virt-xml --edit --xml``: a verb
("set", "create" or "delete"), an XPath, and a value. Parts of a definition that nothing is declared
about are never in an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

Step = tuple[str, str, str]
Element = ElementTree.Element
# What is chosen when a guest is made: its disks and its system would not survive another choice.
_FOUNDATION = ("machine", "arch", "loader")
_CPU_MODES = frozenset({"host-passthrough", "host-model", "maximum"})


def parse(text: str) -> Element:
    """Reads a definition that libvirt wrote."""
    return ElementTree.fromstring(text)  # noqa: S314 - libvirt itself made it from what it had checked


def value(element: Element, path: str) -> str | None:
    """Reads what an XPath such as ``target/@bus`` or ``vcpu`` names; None where it is missing."""
    below, _, attribute = path.rpartition("@")
    found = element.find(below.rstrip("/") or ".") if "@" in path else element.find(path)
    if found is None:
        return None
    return found.get(attribute) if "@" in path else (found.text or "").strip()


def facts(domain: Element) -> dict[str, Any]:
    """Reads the single figures and words of a definition, by the names that ``guest_declared`` gives them."""
    cpus = int(value(domain, "vcpu") or 1)
    machine = value(domain, "os/type/@machine") or ""
    secure = value(domain, "os/@firmware") == "efi" or value(domain, "os/loader/@type") == "pflash"
    return {
        "cpu maximum": cpus,
        "cpu": int(value(domain, "vcpu/@current") or cpus),
        "cpu model": _cpu_model(domain),
        "cpu topology": _topology(domain),
        "mem maximum": int(value(domain, "memory") or 0),
        "mem": int(value(domain, "currentMemory") or value(domain, "memory") or 0),
        "mem hugepages": _hugepages(domain),
        "machine": {"pc-q35": "q35", "pc-i440fx": "pc"}.get(machine.rpartition("-")[0], machine),
        "machine exactly": machine,
        "arch": value(domain, "os/type/@arch"),
        "loader": "uefi" if secure else "bios",
        "description": value(domain, "description"),
        "boot_dev": _boot_devices(domain),
        "kernel": value(domain, "os/kernel"),
        "initrd": value(domain, "os/initrd"),
        "cmdline": value(domain, "os/cmdline"),
        "graphics": " and ".join(map(_display, domain.findall("devices/graphics"))) or "none",
        "serial": value(domain, "devices/serial/@type") or "none",
        "serial log": domain.find("devices/serial/log") is not None,
    }


def _cpu_model(domain: Element) -> str | None:
    """Reads which processor a guest sees."""
    mode = value(domain, "cpu/@mode")
    return mode if mode in _CPU_MODES else value(domain, "cpu/model")


def _topology(domain: Element) -> str | None:
    """Reads sockets, cores and threads."""
    if domain.find("cpu/topology") is None:
        return None
    return ",".join(value(domain, f"cpu/topology/@{part}") or "1" for part in ("sockets", "cores", "threads"))


def _hugepages(domain: Element) -> str | int | None:
    """Reads which huge pages hold the memory: their size in KiB, "default", or None."""
    if domain.find("memoryBacking/hugepages") is None:
        return None
    size = value(domain, "memoryBacking/hugepages/page/@size")
    return int(size) if size else "default"


def _boot_devices(domain: Element) -> str:
    """Reads the order of kinds of devices, whichever of its two ways a definition says it in."""
    listed = [str(one.get("dev")) for one in domain.findall("os/boot")]
    if not listed:
        ordered = []
        for device in domain.findall("devices/*"):
            order = value(device, "boot/@order")
            if order:
                kind = "network" if device.tag == "interface" else "cdrom" if device.get("device") == "cdrom" else "hd"
                ordered.append((int(order), kind))
        listed = list(dict.fromkeys(kind for _, kind in sorted(ordered)))
    return ",".join(listed)


def _display(graphics: Element) -> str:
    """Says where a display can be reached."""
    kind = graphics.get("type", "display")
    listens = graphics.findall("listen")
    if graphics.get("socket") or (listens and all(one.get("type") == "socket" for one in listens)):
        return f"{kind} on a unix socket"
    if listens and all(one.get("type") == "none" for one in listens):
        return f"{kind} on nothing"
    places = [one.get("address") or one.get("network") or "the default address" for one in listens]
    return f"{kind} on {', '.join(places) or graphics.get('listen') or 'the default address'}"


# ---- comparing ----


def foundation() -> tuple[str, ...]:
    """Names the figures that are chosen once, when a guest is made."""
    return _FOUNDATION


def differences(domain: Element, wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compares the single figures of a definition with the declared ones: old and new by aspect."""
    found = facts(domain)
    if wanted.get("machine") == found["machine exactly"]:
        found["machine"] = found["machine exactly"]
    return {key: {"old": found[key], "new": new} for key, new in wanted.items() if found[key] != new}


def steps(domain: Element, name: str, key: str, new: Any) -> list[Step]:
    """Says how a definition gets a declared figure.

    Args:
        domain: the definition.
        name: the guest.
        key: the aspect, as :func:`differences` names it.
        new: what is declared.

    Returns:
        The edit.
    """
    simple = {
        "cpu maximum": ["./vcpu"],
        "cpu": ["./vcpu/@current"],
        "mem maximum": ["./memory"],
        "mem": ["./currentMemory"],
    }
    if key in simple:
        return [("set", path, str(new)) for path in simple[key]]
    if key in {"kernel", "initrd", "cmdline"}:
        return [("set", f"./os/{key}", str(new)) if new else ("delete", f"./os/{key}", "")]
    makers: dict[str, Callable[[], list[Step]]] = {
        "description": lambda: [("set", "./description", str(new))],
        "cpu model": lambda: _cpu_steps(new),
        "cpu topology": lambda: _topology_steps(new),
        "mem hugepages": lambda: _hugepage_steps(new),
        "boot_dev": lambda: _boot_steps(domain, new),
        "graphics": lambda: _graphics_steps(domain, new),
        "serial": lambda: _serial_steps(domain, name, new),
        "serial log": lambda: _log_steps(name, new),
    }
    return makers[key]()


def _cpu_steps(model: str) -> list[Step]:
    gone: list[Step] = [("delete", f"./cpu/{part}", "") for part in ("model", "vendor", "feature", "@match", "@check")]
    if model in _CPU_MODES:
        return [*gone, ("set", "./cpu/@mode", model)]
    return [*gone, ("set", "./cpu/@mode", "custom"), ("set", "./cpu/@match", "exact"), ("set", "./cpu/model", model)]


def _topology_steps(topology: str) -> list[Step]:
    parts = zip(("sockets", "cores", "threads"), topology.split(","), strict=True)
    gone: list[Step] = [("delete", "./cpu/topology", "")]
    return gone + [("set", f"./cpu/topology/@{part}", count) for part, count in parts]


def _hugepage_steps(pages: str | int | None) -> list[Step]:
    gone: list[Step] = [("delete", "./memoryBacking/hugepages", "")]
    if pages is None:
        return gone
    if pages == "default":
        return [*gone, ("create", "./memoryBacking/hugepages", "")]
    path = "./memoryBacking/hugepages/page"
    return [*gone, ("set", f"{path}/@size", str(pages)), ("set", f"{path}/@unit", "KiB")]


def _boot_steps(domain: Element, order: str) -> list[Step]:
    found: list[Step] = []
    counts: dict[str, int] = {}
    for device in domain.findall("devices/*"):
        counts[device.tag] = counts.get(device.tag, 0) + 1
        if device.find("boot") is not None:
            found.append(("delete", f"./devices/{device.tag}[{counts[device.tag]}]/boot", ""))
    found += [("delete", "./os/boot[1]", "")] * len(domain.findall("os/boot"))
    names = order.split(",") if order else []
    return found + [("set", f"./os/boot[{index}]/@dev", dev) for index, dev in enumerate(names, 1)]


def _graphics_steps(domain: Element, display: str) -> list[Step]:
    found: list[Step] = [("delete", "./devices/graphics[1]", "")] * len(domain.findall("devices/graphics"))
    if display == "none":
        return found
    found += [("set", "./devices/graphics[1]/@type", "vnc"), ("set", "./devices/graphics[1]/listen/@type", "socket")]
    if domain.find("devices/video") is None:
        found.append(("set", "./devices/video[1]/model/@type", "vga"))
    return found


def _serial_steps(domain: Element, name: str, kind: str) -> list[Step]:
    found: list[Step] = [
        ("delete", f"./devices/{tag}[1]", "")
        for tag in ("serial", "console")
        for _ in domain.findall(f"devices/{tag}")
    ]
    if kind == "none":
        return found
    return [*found, ("set", "./devices/serial[1]/@type", kind), *_log_steps(name, log=True)]


def _log_steps(name: str, log: bool) -> list[Step]:
    # The first console is the serial port by another name; libvirt wants both to say the same.
    if not log:
        return [("delete", f"./devices/{tag}[1]/log", "") for tag in ("serial", "console")]
    path = "./devices/serial[1]/log"
    gone: Step = ("delete", "./devices/console", "")
    return [gone, ("set", f"{path}/@file", log_file(name)), ("set", f"{path}/@append", "on")]


def log_file(name: str) -> str:
    """Names the file that gets everything a guest writes to its serial port."""
    return f"/var/log/libvirt/qemu/{name}-serial.log"


# ---- devices ----


def disk_path(disk: Element, pools: Mapping[str, Mapping[str, str]]) -> str | None:
    """Reads which file or device a disk is, also where it is a volume of a known pool."""
    path = value(disk, "source/@file") or value(disk, "source/@dev")
    pool, volume = value(disk, "source/@pool"), value(disk, "source/@volume")
    if path is None and pool in pools and volume:
        return f"{pools[str(pool)]['target']}/{volume}"
    return path


def alias(kind: str, label: str) -> str:
    """Names a device so that its declaration finds it again; libvirt keeps names that begin with ua-."""
    return f"ua-{kind}-{label}"


def pair_disks(
    domain: Element, disks: Sequence[Mapping[str, Any]], pools: Mapping[str, Mapping[str, str]]
) -> list[int | None]:
    """Finds declared disks in a definition, by their path, else by the name that they were given.

    Args:
        domain: the definition.
        disks: as ``guest_declared.disks`` describes them.
        pools: type and target of pools, by name.

    Returns:
        For each the number of its element, from 1, or None.
    """
    elements = list(enumerate(domain.findall("devices/disk"), 1))
    pairs: list[int | None] = [None] * len(disks)
    tests = (
        lambda disk, one: disk["path"] is not None and disk_path(one, pools) == disk["path"],
        lambda disk, one: value(one, "alias/@name") == alias("disk", disk["label"]),
        # A drive is the same whatever lies in it.
        lambda disk, one: disk["cdrom"] and one.get("device") == "cdrom",
    )
    return _pair(pairs, elements, disks, tests)


def pair_interfaces(domain: Element, nics: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Finds declared interfaces in a definition, by address, by name, else by what they are connected to.

    Returns:
        For each the number of its element, from 1, or None.
    """
    elements = list(enumerate(domain.findall("devices/interface"), 1))
    tests = (
        lambda nic, one: (value(one, "mac/@address") or "").lower() == nic["mac"],
        lambda nic, one: value(one, "alias/@name") == alias("nic", nic["label"]),
        lambda nic, one: not nic["fixed"] and all(value(one, key) == nic["props"][key] for key in nic["declared"][:2]),
    )
    return _pair([None] * len(nics), elements, nics, tests)


def _pair(
    pairs: list[int | None], elements: list[tuple[int, Element]], wanted: Sequence[Any], tests: Iterable[Any]
) -> list[int | None]:
    """Pairs wanted devices with elements: the surest test first for all of them."""
    for test in tests:
        for place, one in enumerate(wanted):
            if pairs[place] is not None:
                continue
            for number, element in elements:
                if number not in pairs and test(one, element):
                    pairs[place] = number
                    break
    return pairs


def device_differences(element: Element, device: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Compares what is declared of a device with its element: old and new by XPath."""
    found = {}
    for key in device["declared"]:
        old, new = value(element, key), device["props"][key]
        # A cache or discard mode that is not there means the default.
        if (old or "default") != new:
            found[key] = {"old": old, "new": new}
    if device.get("fixed") and (value(element, "mac/@address") or "").lower() != device["mac"]:
        found["mac/@address"] = {"old": value(element, "mac/@address"), "new": device["mac"]}
    return found


def device_steps(
    kind: str, number: int, device: Mapping[str, Any], keys: Iterable[str], dev: str | None
) -> list[Step]:
    """Says how a device gets what is declared of it.

    Args:
        kind: "disk" or "interface".
        number: of its element, from 1.
        device: the declared device.
        keys: the XPaths that differ, as :func:`device_differences` names them.
        dev: a free name in the guest, for a disk that goes to another bus.

    Returns:
        The edit.
    """
    path = f"./devices/{kind}[{number}]"
    values = {**device["props"], "mac/@address": device.get("mac", "")}
    wanted = list(keys)
    found: list[Step] = []
    if any(key == "@type" or key.startswith("source/") for key in wanted) and kind == "interface":
        found.append(("delete", f"{path}/source", ""))
        wanted = [key for key in device["declared"] if key == "@type" or key.startswith("source/") or key in wanted]
    if "target/@bus" in wanted:
        found += [("delete", f"{path}/address", ""), ("set", f"{path}/target/@dev", str(dev))]
    return found + [("set", f"{path}/{key}", str(values[key])) for key in wanted]


def new_device(kind: str, number: int, device: Mapping[str, Any], dev: str | None = None) -> list[Step]:
    """Says how a definition gets a device that it has not; arguments as of :func:`device_steps`."""
    path = f"./devices/{kind}[{number}]"
    found = [("set", f"{path}/{key}", str(text)) for key, text in device["props"].items()]
    if kind == "disk":
        if device["path"]:
            found.append(("set", f"{path}/source/@{'dev' if device['block'] else 'file'}", str(device["path"])))
        found.append(("set", f"{path}/target/@dev", str(dev)))
        if device["cdrom"]:
            found.append(("create", f"{path}/readonly", ""))
    else:
        found.append(("set", f"{path}/mac/@address", device["mac"]))
    label = alias("disk" if kind == "disk" else "nic", device["label"])
    return [*found, ("set", f"{path}/alias/@name", label)]


def scsi_controller(domain: Element) -> list[Step]:
    """Says how a definition gets the controller that a disk on the bus scsi needs; nothing if it has one."""
    controllers = domain.findall("devices/controller")
    if any(one.get("type") == "scsi" for one in controllers):
        return []
    path = f"./devices/controller[{len(controllers) + 1}]"
    return [("set", f"{path}/@type", "scsi"), ("set", f"{path}/@model", "virtio-scsi")]


def fragment(domain: Element, kind: str, number: int) -> str:
    """Takes the element of a device out of a definition, for ``virsh attach-device``.

    Its place on the guest's bus stays behind: it may be another one while the guest runs.
    """
    element = domain.findall(f"devices/{kind}")[number - 1]
    for address in element.findall("address"):
        element.remove(address)
    return ElementTree.tostring(element, encoding="unicode")


def targets(domain: Element) -> list[str]:
    """Lists the names that a guest's disks have in it."""
    return [str(value(one, "target/@dev")) for one in domain.findall("devices/disk")]


def own_disks(domain: Element, pools: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Lists the files and devices that are a guest's alone: no cdrom, nothing read-only or shared."""
    found = []
    for disk in domain.findall("devices/disk"):
        path = disk_path(disk, pools)
        shared = disk.find("readonly") is not None or disk.find("shareable") is not None
        if path and disk.get("device", "disk") == "disk" and not shared:
            found.append(path)
    return found


def seed_path(domain: Element) -> str | None:
    """Reads where a guest's cloud-init disk is, if it has one of ours."""
    for disk in domain.findall("devices/disk"):
        if value(disk, "alias/@name") == alias("disk", "cloud-init"):
            return value(disk, "source/@file")
    return None

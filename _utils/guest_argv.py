"""Arguments for virt-install and virt-xml, and what a new guest has that its declaration leaves open.

Pure. Both programs split an argument at commas and know quotes and backslashes, so that every value is
quoted here; a value that no quoting can hold is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# virt-install 4.1 escapes these twice when they stand in an attribute.
_UNFIT_ATTRIBUTE = '"&<>'


def quoted(text: str) -> str:
    """Quotes a value for an option of virt-install or virt-xml.

    Args:
        text: the value as it is meant.

    Returns:
        The value as it is written after the equals sign.

    Raises:
        ValueError: it holds a control character or a line break.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{text!r} holds a control character, which no option of virt-install can")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def edits(steps: Sequence[tuple[str, str, str]]) -> list[str]:
    """Writes an edit as options of virt-install and virt-xml.

    Args:
        steps: verb, XPath and value, as ``guest_domain`` makes them.

    Returns:
        The options.

    Raises:
        ValueError: a value cannot be written.
    """
    words = []
    for verb, path, text in steps:
        if verb == "set":
            if "@" in path and set(text) & set(_UNFIT_ATTRIBUTE):
                raise ValueError(f"{text!r} holds one of {' '.join(_UNFIT_ATTRIBUTE)}, which virt-xml cannot write")
            words += ["--xml", f"xpath.set={path},xpath.value={quoted(text)}"]
        else:
            words += ["--xml", f"xpath.{verb}={path}"]
    return words


def edit(steps: Sequence[tuple[str, str, str]]) -> list[str]:
    """Writes the command that reads a definition and prints it edited; see :func:`edits`."""
    return ["virt-xml", "--connect", "qemu:///system", "--edit", *edits(steps)]


def install(
    name: str, wanted: Mapping[str, Any], host: Mapping[str, Any], steps: Sequence[tuple[str, str, str]]
) -> list[str]:
    """Writes the command that prints the definition of a new guest.

    Args:
        name: the guest.
        wanted: its declared figures, as ``guest_declared.facts`` collects them.
        host: ``type`` (kvm or qemu), ``arch`` and ``machine`` for a guest that declares none.
        steps: its disks and interfaces, as ``guest_domain.new_device`` writes them, and all else
            that virt-install has no option for.

    Returns:
        The command. It makes no storage, defines nothing and starts nothing.

    Raises:
        ValueError: a value cannot be written.
    """
    cpus = wanted.get("cpu maximum", 1)
    memory = wanted.get("mem maximum", 1024 * 1024)
    current = wanted.get("mem", memory)
    display = wanted.get("graphics", "none") != "none"
    words = ["virt-install", "--connect", "qemu:///system", "--print-xml", "--noautoconsole", "--import"]
    words += ["--name", name, "--virt-type", host["type"], "--osinfo", "detect=on,require=off"]
    words += ["--arch", wanted.get("arch", host["arch"])]
    machine = wanted.get("machine", host["machine"])
    words += ["--machine", machine] if machine else []
    words += ["--memory", f"memory={current // 1024},maxmemory={memory // 1024}"]
    words += ["--vcpus", f"vcpus={wanted.get('cpu', cpus)},maxvcpus={cpus}"]
    words += ["--metadata", f"description={quoted(wanted.get('description') or 'Declared in Salt.')}"]
    words += ["--disk", "none", "--network", "none", "--rng", "/dev/urandom", "--memballoon", "virtio"]
    words += ["--channel", "unix,target.type=virtio,target.name=org.qemu.guest_agent.0"]
    words += ["--controller", "usb,model=qemu-xhci" if display else "usb,model=none"]
    if any(path.endswith("/target/@bus") and text == "scsi" for _, path, text in steps):
        # libvirt itself would choose one of 1993, which current kernels have no driver for.
        words += ["--controller", "scsi,model=virtio-scsi"]
    words += ["--graphics", "vnc,listens0.type=socket" if display else "none"]
    boot = _boot(wanted)
    words += ["--boot", boot] if boot else []
    if wanted.get("serial", "pty") == "none":
        words += ["--serial", "none", "--console", "none"]
    else:
        log = f",log.file=/var/log/libvirt/qemu/{name}-serial.log,log.append=on"
        words += ["--serial", "pty" + (log if wanted.get("serial log", True) else "")]
    return words + edits(steps)


def _boot(wanted: Mapping[str, Any]) -> str:
    """Writes how a new guest boots."""
    words = ["uefi=on"] if wanted.get("loader") == "uefi" else []
    if wanted.get("boot_dev"):
        words += wanted["boot_dev"].split(",")
    for key, option in (("kernel", "kernel"), ("initrd", "initrd"), ("cmdline", "kernel_args")):
        if wanted.get(key):
            words.append(f"{option}={quoted(wanted[key])}")
    return ",".join(words)


def host_defaults(capabilities: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Chooses how a new guest runs, from what its host says that it can do.

    Args:
        capabilities: the XML of ``virsh capabilities``. libvirt offers kvm only where it has opened
            /dev/kvm with success, so that a device file alone does not count.
        wanted: the declared figures; ``arch`` and ``vm_type`` count.

    Returns:
        ``type``, ``arch`` and ``machine``, as :func:`install` takes them.

    Raises:
        ValueError: this host runs no guests of that architecture, or not with that type.
    """
    from xml.etree import ElementTree  # noqa: PLC0415 - only a new guest needs it

    root = ElementTree.fromstring(capabilities)  # noqa: S314 - libvirt's own words
    arch = wanted.get("arch") or root.findtext("host/cpu/arch") or "x86_64"
    for guest in root.findall("guest"):
        offer = guest.find(f"arch[@name='{arch}']")
        if guest.findtext("os_type") != "hvm" or offer is None:
            continue
        types = [str(one.get("type")) for one in offer.findall("domain")]
        kind = wanted.get("vm_type") or ("kvm" if "kvm" in types else "qemu")
        if kind not in types:
            raise ValueError(f"this host runs {arch} guests as {', '.join(types)}, not as {kind}")
        machines = [str(one.text) for one in offer.findall("machine")]
        machine = next((one for one in ("q35", "virt") if one in machines), None)
        return {"type": kind, "arch": arch, "machine": machine}
    raise ValueError(f"this host runs no guests of the architecture {arch}")

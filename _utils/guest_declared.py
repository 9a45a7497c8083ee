"""What a declaration says about a guest: the figures, disks and interfaces that its definition must have.

Pure. Only what is declared is wanted: an aspect of a guest that its declaration does not name is left
as it is. What a new guest has beyond that is chosen in ``guest_argv``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

MIB = 1024  # KiB, which libvirt counts memory in
# What a definition says in the declaration's own words.
_PLAIN = ("machine", "arch", "loader", "description")
PAGE_KIB = {"2M": 2048, "1G": 1048576}
# The letters of a device's name in the guest, by its bus.
_PREFIX = {"virtio": "vd", "ide": "hd", "scsi": "sd", "sata": "sd", "usb": "sd"}
# Kinds of pools whose volumes are block devices.
_BLOCK_POOLS = frozenset({"logical", "disk", "iscsi", "iscsi-direct", "scsi", "mpath"})
# A MAC address of one's own begins with two hexadecimal digits, the second 2, 6, a or e; this is QEMU's.
_MAC_PREFIX = "52:54:00"


def mac(guest: str, nic: str) -> str:
    """Derives the address of an interface that declares none: always the same for the same two names."""
    digest = hashlib.sha256(f"{guest}\0{nic}".encode()).digest()
    return ":".join([_MAC_PREFIX, *(f"{byte:02x}" for byte in digest[:3])])


def facts(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Collects the single figures and words that a declaration names.

    Args:
        declaration: the arguments of a guest's state, judged by the schema.

    Returns:
        By aspect, in the shape that ``guest_domain.facts`` reads them from a definition: memory in
        KiB, None for what must not be there.
    """
    found = {**_processors(declaration.get("cpu")), **_memory(declaration.get("mem"))}
    found.update({key: declaration[key] for key in _PLAIN if key in declaration})
    if "boot_dev" in declaration:
        found["boot_dev"] = ",".join(declaration["boot_dev"])
    if "boot" in declaration:
        found.update({key: declaration["boot"].get(key) for key in ("kernel", "initrd", "cmdline")})
    if "graphics" in declaration:
        kind = declaration["graphics"]["type"]
        found["graphics"] = "vnc on a unix socket" if kind == "vnc" else kind
    if "serial" in declaration:
        found["serial"] = declaration["serial"].get("type", "pty")
        if found["serial"] != "none":
            found["serial log"] = declaration["serial"].get("log", True)
    return found


def _processors(cpu: Any) -> dict[str, Any]:
    """Collects what is declared of processors."""
    if cpu is None:
        return {}
    if isinstance(cpu, int):
        cpu = {"current": cpu, "maximum": cpu}
    found: dict[str, Any] = {}
    if "current" in cpu or "maximum" in cpu:
        found["cpu maximum"] = cpu.get("maximum", cpu.get("current"))
        found["cpu"] = cpu.get("current", cpu.get("maximum"))
    if "model" in cpu:
        found["cpu model"] = cpu["model"]
    if "topology" in cpu:
        parts = ("sockets", "cores", "threads")
        found["cpu topology"] = ",".join(str(cpu["topology"].get(part, 1)) for part in parts)
    return found


def _memory(mem: Any) -> dict[str, Any]:
    """Collects what is declared of memory, in KiB."""
    if mem is None:
        return {}
    if isinstance(mem, int):
        mem = {"current": mem, "maximum": mem}
    found: dict[str, Any] = {}
    if "current" in mem or "maximum" in mem:
        found["mem maximum"] = mem.get("maximum", mem.get("current")) * MIB
        found["mem"] = mem.get("current", mem.get("maximum")) * MIB
    if "hugepages" in mem:
        pages = mem["hugepages"]
        found["mem hugepages"] = {True: "default", False: None}.get(pages, PAGE_KIB.get(pages, pages))
    return found


def contradictions(name: str, declaration: Mapping[str, Any]) -> list[str]:
    """Lists what a schema cannot see: parts of a declaration that do not fit each other.

    Args:
        name: the guest.
        declaration: the arguments of its state, judged by the schema.

    Returns:
        One sentence for each, which begins with the path of the argument.
    """
    found = []
    for key in ("cpu", "mem"):
        given = declaration.get(key)
        if isinstance(given, Mapping) and given.get("current", 0) > given.get("maximum", float("inf")):
            found.append(f"{name}:{key}:current: {given['current']} is more than the maximum, {given['maximum']}")
    if "ensure" in declaration:
        found.append(f"{name}:ensure: the name of the state says it: guest.running, stopped, defined or absent")
    if "nic_profile" in declaration and "interfaces" in declaration:
        found.append(f"{name}:nic_profile: name either a profile or interfaces, not both")
    for key in ("disks", "interfaces"):
        names = [one["name"] for one in declaration.get(key, [])]
        found += [f"{name}:{key}: {one} is there twice" for one in sorted({n for n in names if names.count(n) > 1})]
    if "cloud_init" in declaration and any(one["name"] == "cloud-init" for one in declaration.get("disks", [])):
        found.append(f"{name}:disks: cloud-init is the name of the disk that cloud_init makes")
    for one in declaration.get("disks", []):
        found += [f"{name}:disks:{one['name']}: {text}" for text in _disk_contradictions(one)]
    return found


def _disk_contradictions(disk: Mapping[str, Any]) -> list[str]:
    """Lists what does not fit in one disk."""
    found = []
    source = disk.get("source_file")
    image = str(disk.get("image", ""))
    if "path" in disk and "pool" in disk:
        found.append("name either a path or a pool, not both")
    if source and ({"image", "size", "path"} & set(disk)):
        found.append("source_file names a disk that is there; image, size and path are for new ones")
    if source and not source.startswith("/") and "pool" not in disk:
        found.append("source_file is a path, or the name of a volume in the pool that stands beside it")
    if source and source.startswith("/") and "pool" in disk:
        found.append("source_file is the name of a volume where a pool is named")
    if image.startswith(("http://", "https://")) and "image_hash" not in disk:
        found.append("image_hash is needed for an image from the network, such as sha256=...")
    if disk.get("device") == "cdrom":
        if "size" in disk:
            found.append("a cdrom has no size")
    elif not (source or image or "size" in disk):
        found.append("size is needed for a new disk without an image")
    return found


def pools(declaration: Mapping[str, Any]) -> list[str]:
    """Names the storage pools that a declaration's disks are in."""
    return sorted({one["pool"] for one in declaration.get("disks", []) if "pool" in one})


def disks(
    name: str, declaration: Mapping[str, Any], known: Mapping[str, Mapping[str, str]], folder: str
) -> list[dict[str, Any]]:
    """Describes the disks that a declaration names.

    Args:
        name: the guest.
        declaration: the arguments of its state, judged by the schema.
        known: the pools in use, by name: ``type`` and ``target``.
        folder: where disks are that name neither pool nor path.

    Returns:
        For each, in order: ``label``, ``path`` (None as long as an image decides it), ``block``,
        ``create`` (what a new one is made of, None for what must exist), ``props`` (what its
        element has when it is new), ``declared`` (those of them that are compared later).

    Raises:
        ValueError: a pool is not there.
    """
    return [_disk(name, one, known, folder) for one in declaration.get("disks", [])]


def _disk(
    name: str, disk: Mapping[str, Any], known: Mapping[str, Mapping[str, str]], folder: str
) -> dict[str, Any]:
    """Describes one disk."""
    pool: str | None = disk.get("pool")
    if pool is not None and pool not in known:
        raise ValueError(f"{name}:disks:{disk['name']}:pool: there is no storage pool {pool}")
    block = pool is not None and known[pool]["type"] in _BLOCK_POOLS
    cdrom = disk.get("device") == "cdrom"
    kind = disk.get("format", "raw" if block or cdrom else "qcow2")
    home = folder if pool is None else known[pool]["target"]
    source = disk.get("source_file")
    if source:
        path = source if source.startswith("/") else f"{home}/{source}"
        block = block or path.startswith("/dev/")
    elif cdrom:
        # An image is used as it is; its path is known once it has been fetched. Without one the drive is empty.
        path = None
    else:
        volume = f"{name}_{disk['name']}" + ("" if block else f".{kind}")
        path = disk.get("path", f"{home}/{volume}")
        block = block or path.startswith("/dev/")
    declared = {"target/@bus": disk.get("model"), "driver/@cache": disk.get("cache"),
                "driver/@discard": disk.get("discard"), "driver/@type": disk.get("format")}  # fmt: skip
    bus = disk.get("model", "sata" if cdrom else "virtio")
    props = {"@type": "block" if block else "file", "@device": "cdrom" if cdrom else "disk", "driver/@name": "qemu"}
    props.update({"driver/@type": kind, "target/@bus": bus})
    props.update({key: value for key, value in declared.items() if value is not None})
    return {
        "label": disk["name"],
        "path": path,
        "folder": home,
        "pool": pool,
        "block": block,
        "cdrom": cdrom,
        "format": kind,
        "size": disk.get("size"),
        "image": disk.get("image"),
        "image_hash": disk.get("image_hash"),
        "overlay": bool(disk.get("image")) and not block and kind == "qcow2" and disk.get("overlay_image", True),
        "exists": bool(source),
        "seed": False,
        "props": props,
        "declared": [key for key, value in declared.items() if value is not None],
    }


def seed_disk(name: str, others: Sequence[Mapping[str, Any]], folder: str) -> dict[str, Any]:
    """Describes the disk that cloud-init reads; it lies beside the guest's first file, so that it moves with it.

    Args:
        name: the guest.
        others: its disks, as :func:`disks` describes them.
        folder: where it lies when the guest has no files.
    """
    home = next((one["folder"] for one in others if not one["block"] and not one["cdrom"]), folder)
    # Kernels for clouds, such as Debian's, have drivers of virtio alone and would find no SATA drive.
    bus = "scsi" if any(one["props"]["target/@bus"] in {"virtio", "scsi"} for one in others) else "sata"
    props = {"@type": "file", "@device": "cdrom", "driver/@name": "qemu", "driver/@type": "raw", "target/@bus": bus}
    return {
        "label": "cloud-init", "path": f"{home}/{name}_cloud-init.iso", "folder": home, "pool": None, "block": False,
        "cdrom": True, "format": "raw", "size": None, "image": None, "image_hash": None, "overlay": False,
        "exists": True, "seed": True, "props": props, "declared": [],
    }  # fmt: skip


def interfaces(
    name: str, declaration: Mapping[str, Any], profiles: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Describes the interfaces that a declaration names, itself or by a profile.

    Args:
        name: the guest.
        declaration: the arguments of its state, judged by the schema.
        profiles: the profiles of pillar ``libvirt:nic_profiles``.

    Returns:
        For each, in order: ``label``, ``mac`` (of a new one), ``fixed`` (whether the address is
        declared), ``props`` and ``declared`` as of a disk.

    Raises:
        ValueError: there is no such profile.
    """
    wanted = declaration.get("interfaces", [])
    profile = declaration.get("nic_profile")
    if profile is not None:
        if profile not in profiles:
            known = ", ".join(sorted(profiles)) or "none"
            raise ValueError(f"{name}:nic_profile: there is no profile {profile}; libvirt:nic_profiles has: {known}")
        wanted = profiles[profile]
    found = []
    for one in wanted:
        kind = one.get("type", "bridge")
        props = {"@type": kind, f"source/@{kind}": one["source"], "model/@type": one.get("model", "virtio")}
        declared = ["@type", f"source/@{kind}"] + (["model/@type"] if "model" in one else [])
        extra = {"vlan/tag/@id": one.get("vlan"), "virtualport/@type": one.get("virtualport"),
                 "mtu/@size": one.get("mtu")}  # fmt: skip
        for key, value in extra.items():
            if value is not None:
                props[key] = str(value)
                declared.append(key)
        address = one.get("mac", mac(name, one["name"])).lower()
        named = {"label": one["name"], "mac": address, "fixed": "mac" in one}
        found.append({**named, "props": props, "declared": declared})
    return found


def target(bus: str, taken: Sequence[str]) -> str:
    """Chooses the name of a disk in the guest, such as vda: the first of its bus that is not taken."""
    prefix = _PREFIX[bus]
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [prefix + one for one in letters] + [prefix + one + two for one in letters for two in letters]
    return next(one for one in names if one not in taken)

"""Makes and grows the disks of guests with qemu-img, and brings the images that they begin from.

A disk or an image appears whole or not at all: it is made beside its place and renamed. No disk is
ever made smaller, replaced or deleted here, and what exists already is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
# Copying an image or allocating a disk takes as long as the storage takes.
LONG = 3600
# A server that sends nothing for that long, in seconds, is given up.
SILENCE = 60
# A volume is as large as whole extents are, so a block device may have this much more than was asked for.
ROUNDING = 64 * MIB
# Says which block devices have been allocated but not filled yet.
UNFINISHED = Path("/var/lib/hypervisor-formula/unfinished")
# An image of another format can name files of the host, which a copy of it would then hold.
KINDS = ("raw", "qcow2")

Run = Callable[..., str]


def info(run: Run, path: str) -> dict[str, Any]:
    """Asks what a disk image is, also while a guest uses it.

    Args:
        run: ``libvirt_tools.run``.
        path: a file or block device.

    Returns:
        What qemu-img says: ``format``, ``virtual-size`` in bytes, ``backing-filename`` if it has one.

    Raises:
        CommandExecutionError: it cannot be read as an image.
    """
    argv = ["qemu-img", "info", "--force-share", "--output=json", "--", path]
    found: dict[str, Any] = json.loads(run(argv, label=f"qemu-img info {path}"))
    return found


def layers(run: Run, path: str) -> list[dict[str, Any]]:
    """Asks what an image is and what it reads from, itself first: of each what :func:`info` says of one."""
    argv = ["qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "--", path]
    found: list[dict[str, Any]] = json.loads(run(argv, label=f"qemu-img info {path}"))
    return found


def chain(run: Run, path: str) -> list[str]:
    """Lists the files that an image reads from, itself first; arguments and errors as of :func:`info`."""
    folder = os.path.dirname(path)  # noqa: PTH120
    return [os.path.normpath(os.path.join(folder, row["filename"])) for row in layers(run, path)]  # noqa: PTH118


def judged(run: Run, path: str, wanted: str = "") -> dict[str, Any]:
    """Asks what a disk image is, and refuses one that must not be read.

    Args:
        run: ``libvirt_tools.run``.
        path: a file or block device.
        wanted: the format that it is used as; whatever begins a raw disk, its guest may have written it.

    Returns:
        As :func:`info`.

    Raises:
        ValueError: it is of a format that is not used, or is raw and begins as another format does.
        CommandExecutionError: it cannot be read as an image.
    """
    found = info(run, path)
    problem = format_problem(path, str(found["format"]), wanted)
    if problem:
        raise ValueError(problem)
    return found


def format_problem(path: str, kind: str, wanted: str = "") -> str:
    """Says why an image of a format is not read; empty when it is. Arguments as of :func:`judged`."""
    if kind not in KINDS:
        return f"{path} is {kind}; only raw and qcow2 images are used"
    if wanted == "raw" and kind != "raw":
        return f"{path} is used as raw and begins as {kind} does, so it is not read"
    return ""


def survey(run: Run, disk: Mapping[str, Any], used: bool = False) -> dict[str, Any]:
    """Says what has to be done for a declared disk, and touches nothing.

    Args:
        run: ``libvirt_tools.run``.
        disk: as ``guest_declared.disks`` describes it.
        used: whether a guest has it already. That comes after it was filled, so a note of the contrary is of another
            device, which had this name before.

    Returns:
        ``do`` (None, "create" or "grow"), ``old`` and ``new`` for a person to read, and ``note`` for
        what stays as it is.

    Raises:
        ValueError: it should be there and is not, or it must not be read.
        CommandExecutionError: it cannot be read.
    """
    nothing = {"do": None, "old": None, "new": None, "note": ""}
    path = disk["path"]
    if path is None:
        return nothing
    unfinished = disk["block"] and not used and marker(path).exists()
    if not Path(path).exists() or unfinished:
        if disk["exists"]:
            raise ValueError(f"disks:{disk['label']}:source_file: there is no {path}")
        size = f", {disk['size']} MiB" if disk["size"] else ""
        origin = "empty" if not disk["image"] else f"{'on' if disk['overlay'] else 'a copy of'} {disk['image']}"
        return {**nothing, "do": "create", "new": f"{path}{size}, {origin}"}
    if not disk["size"] or disk["exists"]:
        return nothing
    now = judged(run, path, disk["format"])["virtual-size"]
    if now < disk["size"] * MIB:
        return {**nothing, "do": "grow", "old": f"{now / MIB:g} MiB", "new": f"{disk['size']} MiB"}
    if now > disk["size"] * MIB + (ROUNDING if disk["block"] else 0):
        text = f"The disk {disk['label']} has {now / MIB:g} MiB and stays so: a disk is never made smaller."
        return {**nothing, "note": text}
    return nothing


def marker(path: str) -> Path:
    """Names the file that stands for as long as a block device is not filled."""
    return UNFINISHED / hashlib.sha256(path.encode()).hexdigest()[:32]


def stored(folder: str, image: str, digest: str) -> Path:
    """Names the copy of an image that disks begin from; another content has another name.

    Args:
        folder: of the disks.
        image: its address.
        digest: of its content, in hexadecimal digits.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", image.rpartition("/")[2].partition("?")[0]) or "image"
    stem, dot, ending = name.rpartition(".")
    return Path(folder) / (f"{stem}-{digest[:16]}.{ending}" if dot and stem else f"{name}-{digest[:16]}")


def digest_of(path: Path, kind: str) -> str:
    """Computes the digest of a file."""
    found = hashlib.new(kind)
    with path.open("rb") as handle:
        while block := handle.read(MIB):
            found.update(block)
    return found.hexdigest()


def _origin(disk: Mapping[str, Any], hash_file: Callable[..., Any]) -> tuple[str, str]:
    """Returns kind and digest of an image that has an address; raises ValueError if there is none."""
    if disk["image"].startswith("salt://"):
        known = hash_file(disk["image"]) or {}
        kind, wanted = known.get("hash_type", ""), known.get("hsum", "")
        if not wanted:
            raise ValueError(f"disks:{disk['label']}:image: the file server has no {disk['image']}")
    else:
        kind, _, wanted = disk["image_hash"].replace(":", "=").partition("=")
    return kind, wanted.lower()


def place(disk: Mapping[str, Any], hash_file: Callable[..., Any]) -> str:
    """Says where the image of a disk is or will be on this host; see :func:`fetched`."""
    if disk["image"].startswith("/"):
        return str(disk["image"])
    return str(stored(disk["folder"], disk["image"], _origin(disk, hash_file)[1]))


def fetched(disk: Mapping[str, Any], hash_file: Callable[..., Any], get_file: Callable[..., Any]) -> str:
    """Has the image of a disk on this host, and returns where.

    Args:
        disk: as ``guest_declared.disks`` describes it.
        hash_file: Salt's ``cp.hash_file``.
        get_file: Salt's ``cp.get_file``.

    Returns:
        The path of the image: for an address, a read-only copy in the folder of the disk, named by
        its content, so that what stands on it never changes.

    Raises:
        ValueError: there is no such image, or it is not what its checksum says.
    """
    image = disk["image"]
    if image.startswith("/"):
        if not Path(image).exists():
            raise ValueError(f"disks:{disk['label']}:image: there is no {image}")
        return str(image)
    kind, wanted = _origin(disk, hash_file)
    target = stored(disk["folder"], image, wanted)
    if target.exists():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        if image.startswith("salt://"):
            get_file(image, str(partial))
        else:
            _download(image, partial)
        found = digest_of(partial, kind) if partial.exists() else "nothing"
        if found != wanted:
            where = f"disks:{disk['label']}:image: what came from {image} is not what its checksum says"
            raise ValueError(f"{where}: {kind} is {found}, not {wanted}")
        settle(partial, target, 0o444)
    finally:
        partial.unlink(missing_ok=True)
    return str(target)


def _download(address: str, place: Path) -> None:
    """Writes what a web server sends into a file; raises ValueError with its reason if it does not."""
    try:
        with urllib.request.urlopen(address, timeout=SILENCE) as answer, place.open("wb") as handle:  # noqa: S310
            while block := answer.read(MIB):
                handle.write(block)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(f"{address} cannot be fetched: {getattr(error, 'reason', error)}") from error


def settle(partial: Path, place: Path, mode: int) -> None:
    """Gives a finished file its name, once it is on disk."""
    partial.chmod(mode)
    for path in (partial, place.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if path is partial:
            partial.rename(place)


def create(run: Run, virsh: Run, disk: Mapping[str, Any], base: str | None) -> None:
    """Makes a declared disk that is not there.

    Args:
        run: ``libvirt_tools.run``.
        virsh: ``libvirt_tools.virsh``.
        disk: as ``guest_declared.disks`` describes it.
        base: the image it begins from, if any.

    Raises:
        ValueError: the image cannot be used.
        CommandExecutionError: a program failed; nothing is left of the disk then.
    """
    kind = ""
    if base:
        found = info(run, base)
        kind = str(found["format"])
        where = f"disks:{disk['label']}:image: {disk['image']}"
        problem = format_problem(where, kind)
        if problem:
            raise ValueError(problem)
        if found.get("backing-filename") or found.get("format-specific", {}).get("data", {}).get("data-file"):
            raise ValueError(f"{where} reads from another file and is no image of its own")
        if disk["size"] and disk["size"] * MIB < found["virtual-size"]:
            raise ValueError(f"{where} has {found['virtual-size'] / MIB:g} MiB, more than the size {disk['size']}")
    place = Path(disk["path"])
    if disk["block"]:
        _fill_device(run, virsh, disk, base, kind)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    size = [f"{disk['size']}M"] if disk["size"] else []
    make = ["qemu-img", "create", "-q", "-f", disk["format"]]
    try:
        if base and not disk["overlay"]:
            copy = ["qemu-img", "convert", "-f", kind, "-O", disk["format"], base, str(partial)]
            run(copy, LONG, label="qemu-img convert")
            if size:
                run(["qemu-img", "resize", "-q", "-f", disk["format"], str(partial), *size], label="qemu-img resize")
        else:
            backing = ["-b", base, "-F", kind] if base else []
            run([*make, *backing, str(partial), *size], LONG, label="qemu-img create")
        settle(partial, place, 0o600)
    finally:
        partial.unlink(missing_ok=True)
    if disk["pool"]:
        virsh("pool-refresh", "--", disk["pool"])


def _fill_device(run: Run, virsh: Run, disk: Mapping[str, Any], base: str | None, kind: str) -> None:
    """Allocates a volume and copies the image onto it; begins again what an earlier run left half done."""
    mark = marker(disk["path"])
    if not Path(disk["path"]).exists():
        if not disk["pool"]:
            raise ValueError(f"disks:{disk['label']}:path: there is no device {disk['path']}")
        if base:
            _mark(mark, disk["path"])
        size = f"{disk['size']}MiB" if disk["size"] else str(info(run, str(base))["virtual-size"])
        name = Path(disk["path"]).name
        virsh("vol-create-as", "--pool", disk["pool"], "--name", name, "--capacity", size, "--format", "raw")
    if base:
        argv = ["qemu-img", "convert", "-n", "-f", kind, "-O", "raw", base, disk["path"]]
        run(argv, LONG, label="qemu-img convert")
        os.sync()
        mark.unlink(missing_ok=True)


def _mark(mark: Path, path: str) -> None:
    """Notes that a block device is going to be filled; that is on disk before the device is there."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("w", encoding="utf-8") as handle:
        handle.write(f"{path}\n")
        handle.flush()
        os.fsync(handle.fileno())
    folder = os.open(mark.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def grow(run: Run, virsh: Run, disk: Mapping[str, Any], guest: str | None) -> None:
    """Makes a disk larger.

    Args:
        run: ``libvirt_tools.run``.
        virsh: ``libvirt_tools.virsh``.
        disk: as ``guest_declared.disks`` describes it.
        guest: the guest that runs with it; None when none does.

    Raises:
        ValueError: the disk must not be read.
        CommandExecutionError: a program failed.
    """
    size = f"{disk['size']}MiB"
    if disk["block"] and disk["pool"]:
        virsh("vol-resize", "--pool", disk["pool"], "--vol", Path(disk["path"]).name, "--capacity", size)
    if guest:
        virsh("blockresize", "--domain", guest, "--path", disk["path"], "--size", size)
    elif not disk["block"]:
        kind = judged(run, disk["path"], disk["format"])["format"]
        run(["qemu-img", "resize", "-q", "-f", kind, disk["path"], f"{disk['size']}M"], label="qemu-img resize")
    if disk["pool"]:
        virsh("pool-refresh", "--", disk["pool"])

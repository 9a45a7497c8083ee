"""From a tree to a disk that boots, without mounting it: ``mke2fs -d`` and GRUB's own sectors."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from .proc import LabError, run

FILES = Path(__file__).with_name("vmfiles")
SECTOR = 512
# Where the only partition begins; GRUB's core lies in the gap before it.
PARTITION_START = 1 << 20
# Names the file systems: the same image has the same UUID wherever it is built.
UUID_NAMESPACE = uuid.UUID("3d8a9a0e-6f0b-4c0f-9a3c-8d5b1a0c6e11")
# What GRUB needs to reach its configuration, in the core itself.
GRUB_MODULES = (
    *("biosdisk", "part_msdos", "ext2", "xfs", "normal", "configfile", "search", "search_fs_uuid"),
    *("linux", "gzio", "serial", "terminal", "echo", "test", "boot", "minicmd"),
)
# GRUB 2.06 can't read the first two; the third prepares for a growth that never comes.
WITHOUT = "^metadata_csum_seed,^orphan_file,^resize_inode"


def contained(*options: str) -> list[str]:
    """Return the words before a program that keep its mounts and processes to itself.

    All of it ends with the program, and the program ends with us, even if we are killed.

    Args:
        options: further options of ``unshare``.
    """
    return [
        *["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"],
        *["--pid", "--fork", "--kill-child=KILL", *options],
    ]


def in_tree(root: Path, argv: Sequence[str], *, timeout: float = 300) -> str:
    """Run a program inside a tree with its own ``/proc`` and return its output.

    Args:
        root: the tree.
        argv: program and arguments.
        timeout: seconds after which it is ended.

    Raises:
        CommandError: it failed or took longer than ``timeout`` seconds.
    """
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
    }
    inside = contained(f"--root={root}", "--mount-proc=/proc")
    return run([*inside, *argv], timeout=timeout, env=environment).stdout


def fs_uuid(digest: str) -> str:
    """Return the UUID of the root file system in the image of that name."""
    return str(uuid.uuid5(UUID_NAMESPACE, digest))


def grub_cfg(root: Path, identifier: str) -> str:
    """Return the first grub.cfg: it starts the newest kernel in a tree.

    Args:
        root: the tree.
        identifier: UUID of the file system that the tree becomes.

    Raises:
        LabError: there is no kernel, or no initramfs for it.
    """
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    version = kernels[-1].name.removeprefix("vmlinuz-") if kernels else "none"
    if not (root / f"boot/initrd.img-{version}").exists():
        raise LabError(f"there is no kernel with an initramfs in {root}/boot; see the build's log")
    defaults = (FILES / "default-grub").read_text().splitlines()
    arguments = next(line for line in defaults if line.startswith("GRUB_CMDLINE_LINUX="))
    values = {
        "UUID": identifier,
        "KERNEL": f"/boot/vmlinuz-{version}",
        "INITRD": f"/boot/initrd.img-{version}",
        "ARGUMENTS": arguments.split('"')[1],
    }
    text = (FILES / "grub.cfg").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def boot_sectors(boot: bytes, core: bytes, disk_bytes: int) -> bytes:
    """Return what lies before the partition: GRUB's first sector with the table, then its core.

    Args:
        boot: GRUB's ``boot.img``, which expects the core in the sector after it.
        core: what ``grub-mkimage`` made.
        disk_bytes: size of the whole disk.

    Raises:
        LabError: the core doesn't fit into the gap.
    """
    if len(boot) != SECTOR or len(core) > PARTITION_START - SECTOR:
        raise LabError("GRUB's core image does not fit before the partition")
    first, count = PARTITION_START // SECTOR, (disk_bytes - PARTITION_START) // SECTOR
    # Cylinders, heads and sectors are long out of use: the maximum says "look at the numbers".
    kind, begin, end = b"\x83", b"\xfe\xff\xff", b"\xfe\xff\xff"
    entry = b"\x80" + begin + kind + end + first.to_bytes(4, "little") + count.to_bytes(4, "little")
    table = bytes(6) + entry + bytes(48) + b"\x55\xaa"
    return (boot[:440] + table + core).ljust(PARTITION_START, b"\x00")


def make_bootable(root: Path, disk: Path, size_mib: int) -> None:
    """Make a raw disk with GRUB and an empty partition.

    Args:
        root: the tree, with GRUB's files in ``usr/lib/grub``.
        disk: the file to make.
        size_mib: its size in MiB.

    Raises:
        LabError: a tool failed, for example for want of space.
    """
    disk_bytes = size_mib << 20
    core = root / "boot/grub/core.img"
    prefix = ["-p", "(hd0,msdos1)/boot/grub", "-o", "/boot/grub/core.img"]
    in_tree(root, ["grub-mkimage", "-O", "i386-pc", *prefix, *GRUB_MODULES])
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    with disk.open("wb") as file:
        file.write(boot_sectors(boot, core.read_bytes(), disk_bytes))
        file.truncate(disk_bytes)


def write_ext4(root: Path, disk: Path, identifier: str) -> None:
    """Make an ext4 file system of a tree in a disk's only partition.

    Args:
        root: the tree.
        disk: the disk, of its final size and with its first sectors.
        identifier: the file system's UUID.

    Raises:
        LabError: mke2fs failed, for example for want of space.
    """
    # The rest of a new file is all zeros: the inode tables need no writing.
    extended = f"offset={PARTITION_START},assume_storage_prezeroed=1,root_owner=0:0"
    options = ["-U", identifier, "-L", "root", "-m", "1", "-i", "32768", "-O", WITHOUT]
    size = f"{(disk.stat().st_size - PARTITION_START) >> 10}k"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", *options, "-E", extended]
    run([*argv, "-d", str(root), str(disk), size], timeout=600)

"""An XFS file system from a tree, without mounting it: mkfs.xfs reads a listing of what goes in."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .proc import LabError, run
from .vmdisk import PARTITION_START, in_tree

# Inside the tree while the file system is made, because the tree's own mkfs.xfs makes it.
LISTING, RESULT = ".lab-listing", ".lab-file-system"
# What GRUB 2.06 can't read or is not sure to read.
WITHOUT = ("-m", "bigtime=0,inobtcount=0", "-i", "sparse=0,nrext64=0")
KINDS = {stat.S_IFREG: "-", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}


def listing(root: Path) -> tuple[str, list[str]]:
    """Return a tree as mkfs.xfs wants it listed, and the paths that it can't express.

    Owners, permissions, set-user-ID and set-group-ID bits and symbolic links are kept; sticky bits, times,
    capabilities and hard links are not, and neither are names with spaces nor devices, which a system makes anew.
    """
    left_out: list[str] = []

    def entries(folder: Path, depth: int) -> list[str]:
        lines = []
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            found = entry.stat(follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(found.st_mode))
            inside = f"/{Path(entry.path).relative_to(root)}"
            # A "$" ends a folder, and white space ends a name.
            if kind is None or entry.name.startswith(("$", ":")) or inside.split() != [inside]:
                left_out.append(inside)
                continue
            line = f"{' ' * depth}{entry.name} {_mode(kind, found.st_mode)} {found.st_uid} {found.st_gid}"
            if kind == "d":
                lines += [line, *entries(Path(entry.path), depth + 1), f"{' ' * depth}$"]
            else:
                lines.append(f"{line} {inside if kind == '-' else Path(entry.path).readlink()}")
        return lines

    # Boot file, blocks and inodes: three words that have had no meaning for long, but must be there.
    head = ["/", "0 0", f"{_mode('d', root.stat().st_mode)} 0 0"]
    return "\n".join([*head, *entries(root, 1), "$", ""]), left_out


def write(root: Path, disk: Path, identifier: str) -> list[str]:
    """Make an XFS file system of a tree in a disk's only partition.

    Args:
        root: the tree; it holds mkfs.xfs.
        disk: the disk, of its final size and with its first sectors.
        identifier: the file system's UUID.

    Returns:
        The paths that are left out, as :func:`listing` says.

    Raises:
        LabError: a tool failed, for example for want of space.
    """
    text, left_out = listing(root)
    made = root / RESULT
    try:
        (root / LISTING).write_text(text)
        size = disk.stat().st_size - PARTITION_START
        with made.open("wb") as file:
            file.truncate(size)
        argv = ["mkfs.xfs", "-q", "-f", *WITHOUT, "-m", f"uuid={identifier}", "-L", "root"]
        in_tree(root, [*argv, "-p", f"/{LISTING}", "-d", f"file,name=/{RESULT},size={size}"], timeout=600)
        options = [f"bs={PARTITION_START}", "seek=1", "conv=sparse,notrunc", "status=none"]
        run(["dd", f"if={made}", f"of={disk}", *options], timeout=600)
    except OSError as error:
        raise LabError(f"the file system could not be made: {error.strerror}: {error.filename}") from error
    finally:
        made.unlink(missing_ok=True)
        (root / LISTING).unlink(missing_ok=True)
    return left_out


def _mode(kind: str, mode: int) -> str:
    """Return six characters: kind, set-user-ID, set-group-ID, three octal digits."""
    user, group = "u" if mode & stat.S_ISUID else "-", "g" if mode & stat.S_ISGID else "-"
    return f"{kind}{user}{group}{mode & 0o777:03o}"

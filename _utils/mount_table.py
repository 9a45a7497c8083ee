"""Reads and writes the tables of mounts, as text: ``/etc/fstab`` and ``/proc/self/mountinfo``.

Nothing here looks at a mount point: whoever does so on a file system whose server is dead hangs
and cannot be killed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# File systems that another host serves.
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs"})
# File systems without a device: the first field of their entry is a mere label.
DEVICELESS = frozenset({"hugetlbfs", "tmpfs", "ramfs", "none", "virtiofs", "9p"})
CHECKED = frozenset({"ext2", "ext3", "ext4"})
# Flags that mountinfo always shows, and the word that takes each away.
FLAGS = {
    "ro": "rw",
    "nosuid": "suid",
    "nodev": "dev",
    "noexec": "exec",
    "noatime": "relatime",
    "nodiratime": "diratime",
}
_ESCAPED = re.compile(r"\\([0-7]{3})")
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TRANSPORTS = ("tcp", "udp", "rdma", "tcp6", "udp6")


class Mount(NamedTuple):
    """One mounted file system: where, what, from where, and its options as the kernel shows them."""

    point: str
    fstype: str
    source: str
    flags: tuple[str, ...]
    options: tuple[str, ...]


class Entry(NamedTuple):
    """One line of fstab, field by field."""

    device: str
    point: str
    fstype: str
    options: tuple[str, ...]
    checked: str

    def line(self) -> str:
        """Returns the line without its end."""
        fields = (self.device, self.point, self.fstype, ",".join(self.options), "0", self.checked)
        return " ".join(_escape(field) for field in fields)


def _escape(field: str) -> str:
    """Writes a field so that blanks in it do not end it."""
    return re.sub(r"[\s\\#]", lambda found: f"\\{ord(found[0]):03o}", field)


def _plain(field: str) -> str:
    """Reads a field that may hold octal escapes."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)


def mounts(text: str) -> list[Mount]:
    """Reads ``/proc/self/mountinfo``; what was mounted later, and so hides earlier ones, is last."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        first, second = left.split(), right.split(" ")
        if len(first) < 6 or len(second) < 3:
            continue
        fstype, source, options = second[0], second[1], second[2]
        point, flags = _plain(first[4]), tuple(first[5].split(","))
        found.append(Mount(point, fstype, _plain(source), flags, tuple(options.split(","))))
    return found


def at(text: str, point: str) -> tuple[Mount | None, bool]:
    """Says what is mounted on a path.

    Args:
        text: the content of ``/proc/self/mountinfo``.
        point: an absolute path.

    Returns:
        What is mounted there, None for nothing; and whether systemd waits there to mount it at the
        first access.
    """
    here = [mount for mount in mounts(text) if mount.point == point]
    real = [mount for mount in here if mount.fstype != "autofs"]
    return (real[-1] if real else None), any(mount.fstype == "autofs" for mount in here)


def remote(text: str, path: str) -> bool:
    """Says whether a path is on a file system that another host serves, going by its name alone."""
    path = posixpath.normpath(path)
    above = [mount for mount in mounts(text) if path == mount.point or path.startswith(f"{mount.point.rstrip('/')}/")]
    nearest = max(above, key=lambda mount: len(mount.point), default=None)
    if nearest is None:
        return False
    here = [mount for mount in above if mount.point == nearest.point]
    return any(mount.fstype in NETWORK | {"autofs"} for mount in here)


def is_network(fstype: str) -> bool:
    """Says whether a type of file system is one that another host serves."""
    return fstype in NETWORK


def entries(text: str) -> list[Entry]:
    """Reads the entries of an fstab, without comments and what is no entry."""
    found = []
    for line in text.splitlines():
        entry = _entry(line)
        if entry is not None:
            found.append(entry)
    return found


def _entry(line: str) -> Entry | None:
    """Reads one line; None for a comment or what is no entry."""
    fields = line.split()
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    device, point, fstype = (_plain(field) for field in fields[:3])
    options = tuple(_plain(fields[3]).split(",")) if len(fields) > 3 else ("defaults",)
    return Entry(device, point, fstype, options, fields[5] if len(fields) > 5 else "0")


def with_entry(text: str, point: str, wanted: Entry | None) -> str:
    """Returns an fstab in which a mount point has one entry, or none.

    Args:
        text: the fstab; all other lines stay as they are.
        point: the mount point.
        wanted: its entry, which takes the place of an earlier one; None for no entry.
    """
    lines: list[str] = []
    placed = wanted is None
    for line in text.splitlines():
        entry = _entry(line)
        if entry is None or entry.point != point:
            lines.append(line)
        elif not placed and wanted is not None:
            # An equal entry keeps its own blanks.
            lines.append(line if entry == wanted else wanted.line())
            placed = True
    if not placed and wanted is not None:
        lines.append(wanted.line())
    return "\n".join(lines) + "\n" if lines else ""


def wanted_entry(
    point: str, device: str, fstype: str, options: Sequence[str], timeout: int, *, now: bool
) -> Entry:
    """Makes the entry of a mount that never holds up a boot.

    Args:
        point: the mount point.
        device: what is mounted.
        fstype: its type.
        options: what a person asks for.
        timeout: seconds after which systemd gives up an attempt.
        now: whether it is mounted at boot (or at the first access) at all.
    """
    own = ["nofail"]
    if fstype in NETWORK:
        own = ["_netdev", "nofail", *(["x-systemd.automount"] if now else []), f"x-systemd.mount-timeout={timeout}"]
    elif device.startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")):
        own.append(f"x-systemd.device-timeout={timeout}")
    words = [word for word in options if word not in {"defaults", "auto"}]
    all_words = tuple(dict.fromkeys([*words, *([] if now else ["noauto"]), *own]))
    return Entry(device, point, fstype, all_words, "2" if fstype in CHECKED else "0")


def unit(point: str, suffix: str) -> str:
    """Returns the name of systemd's unit for a mount point, such as ``srv-vm.mount``."""
    escaped = []
    for index, char in enumerate(posixpath.normpath(point).strip("/")):
        if char == "/":
            escaped.append("-")
        elif char.isascii() and (char.isalnum() or char in ":_" or (char == "." and index)):
            escaped.append(char)
        else:
            escaped.extend(f"\\x{byte:02x}" for byte in char.encode())
    return f"{''.join(escaped) or '-'}.{suffix}"


def server(device: str) -> str:
    """Returns the host in an NFS device such as ``10.0.0.1:/vm`` or ``[fd00::1]:/vm``; else ``""``."""
    host, colon, path = device.rpartition(":/")
    return host.strip("[]") if colon and not path.startswith(":") else ""


def port(options: Iterable[str]) -> int | None:
    """Returns the TCP port at which an NFS server must answer; None where it is not TCP."""
    found = 2049
    for option in options:
        key, _, value = option.partition("=")
        transport = value if key == "proto" else key
        if transport in {"udp", "udp6", "rdma"}:
            return None
        if key == "port" and value.isdigit():
            found = int(value)
    return found


def flags_to_change(mount: Mount, options: Iterable[str]) -> list[str]:
    """Lists the words by which a remount makes the flags of a mount as wanted."""
    options = list(options)
    # "user" and the like bring three flags of their own.
    implied = bool({"user", "users", "owner", "group"} & set(options))
    words = []
    for flag, opposite in FLAGS.items():
        if implied and flag in {"nosuid", "nodev", "noexec"}:
            continue
        asked = [option for option in options if option in {flag, opposite}]
        on = bool(asked) and asked[-1] == flag
        if on != (flag in mount.flags):
            words.append(flag if on else opposite)
    return words


def other_differences(mount: Mount, entry: Entry, same_device: bool) -> list[str]:
    """Lists what of a mount only a new mount can change, in words such as ``vers=3 (is 4.2)``.

    Args:
        mount: what is mounted.
        entry: what is wanted.
        same_device: whether both are of the same device; the caller can resolve names.
    """
    bind = {"bind", "rbind"} & set(entry.options)
    found = []
    kinds = {"nfs4": "nfs"}
    if not bind and kinds.get(mount.fstype, mount.fstype) != kinds.get(entry.fstype, entry.fstype):
        found.append(f"{entry.fstype} (is {mount.fstype})")
    if not bind and entry.fstype not in DEVICELESS and not same_device:
        found.append(f"{entry.device} (is {mount.source})")
    shown = dict(option.partition("=")[::2] for option in mount.options)
    if entry.fstype in {"nfs", "nfs4"}:
        found += _nfs_differences(entry, shown)
    if entry.fstype == "hugetlbfs":
        asked = dict(option.partition("=")[::2] for option in entry.options)
        if "pagesize" in asked and _bytes(asked["pagesize"]) != _bytes(shown.get("pagesize", "")):
            found.append(f"pagesize={asked['pagesize']} (is {shown.get('pagesize', 'unknown')})")
    return found


def _nfs_differences(entry: Entry, shown: dict[str, str]) -> list[str]:
    """Compares those options of NFS that the kernel shows."""
    asked = {"vers": "4"} if entry.fstype == "nfs4" else {}
    for option in entry.options:
        key, _, value = option.partition("=")
        if key in _TRANSPORTS:
            key, value = "proto", key
        asked["vers" if key == "nfsvers" else key] = value
    found = []
    for key, value in asked.items():
        is_now = shown.get(key)
        if key in {"hard", "soft", "nolock"}:
            differs = key not in shown and not (key == "nolock" and shown.get("vers", "").startswith("4"))
            is_now = "not"
        elif key in {"rsize", "wsize"}:
            # The server may give less than it is asked for.
            differs = bool(is_now) and value.isdigit() and int(is_now or 0) > int(value)
        elif key == "vers":
            differs = is_now != value and not (is_now or "").startswith(f"{value}.")
        else:
            differs = key in {"proto", "sec", "timeo", "retrans"} and is_now not in {None, value}
        if differs:
            found.append(f"{key}={value} (is {is_now})" if value else f"{key} (is {is_now})")
    return found


def _bytes(size: str) -> int:
    """Returns a size such as ``1G`` or ``1024M`` in bytes, 0 for what is none."""
    found = re.fullmatch(r"(\d+)([KMG]?)", size.upper())
    return int(found[1]) * _SIZES[found[2]] if found else 0

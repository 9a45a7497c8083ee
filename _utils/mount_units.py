"""Writes systemd's units of a network file system, as text, from its entry as fstab would have it.

They take the place of a line in ``/etc/fstab``. Whenever systemd reads its files again, its generator
for fstab looks at every mount point named there; on a dead server PID 1 waits for it, for 90 s, and
with it everybody who wants something of systemd. Units that are files of their own nobody looks at.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import Any

# Where systemctl enable, too, would put what has "WantedBy=remote-fs.target".
WANTS = "remote-fs.target.wants"
HEADER = """\
# Written by Salt (kvm:mounts); what is changed here is overwritten.
# It does not stand in /etc/fstab: systemd would look at the mount point at every daemon-reload, and wait for its
# server if that is dead.
"""
# What a person may ask for in words of fstab, and the keys that say it in a unit: of its mount, of its automount.
_OF_MOUNT = {
    "x-systemd.requires": ("Requires", "After"),
    "x-systemd.after": ("After",),
    "x-systemd.before": ("Before",),
    "x-systemd.requires-mounts-for": ("RequiresMountsFor",),
    "x-systemd.wants-mounts-for": ("WantsMountsFor",),
}
_OWN = {"x-systemd.automount", "x-systemd.mount-timeout", "x-systemd.idle-timeout"}
_PATHS = {"RequiresMountsFor", "WantsMountsFor"}
_SUFFIXES = (".mount", ".service", ".target", ".socket", ".device", ".path", ".timer", ".swap", ".automount", ".slice")

# Makes the name of a unit of a path and a suffix.
Namer = Callable[[str, str], str]


def unknown(options: Iterable[str]) -> list[str]:
    """Lists the words for systemd among mount options that units of a network file system do not have."""
    known = _OWN | set(_OF_MOUNT)
    return [word for word in options if word.startswith("x-systemd.") and word.partition("=")[0] not in known]


def names(point: str, namer: Namer) -> list[str]:
    """Lists the files of a mount point below ``/etc/systemd/system``, in the order in which they are written."""
    return [namer(point, "mount"), namer(point, "automount"), f"{WANTS}/{namer(point, 'automount')}"]


def files(entry: Any, namer: Namer, folder: str) -> dict[str, str]:
    """Writes the units of an entry.

    Args:
        entry: an ``Entry`` of mount_table, of a network file system.
        namer: ``mount_table.unit``.
        folder: the absolute path of the folder for units.

    Returns:
        Texts by path below that folder. That of the link which makes systemd wait for the first access after a
        boot is where it leads to; an entry that is not mounted by itself has neither it nor an automount unit.
    """
    mount, automount, link = names(entry.point, namer)
    found = {mount: _mount(entry, namer)}
    if "x-systemd.automount" in entry.options:
        found[automount] = _automount(entry)
        found[link] = posixpath.join(folder, automount)
    return found


def _value(options: Iterable[str], key: str) -> str:
    """Returns the value of an option, that of the last if it stands there twice; empty without one."""
    return ([""] + [word.partition("=")[2] for word in options if word.partition("=")[0] == key])[-1]


def _plain(text: str) -> str:
    """Writes a text so that systemd takes nothing in it for a specifier."""
    return text.replace("%", "%%")


def _section(name: str, lines: Iterable[tuple[str, str]]) -> str:
    """Writes a section; keys without a value are left out."""
    return "".join([f"\n[{name}]\n", *(f"{key}={_plain(value)}\n" for key, value in lines if value)])


def _mount(entry: Any, namer: Namer) -> str:
    """Writes the unit that mounts."""
    # Without a limit, access after access tries to mount until the server is back.
    unit = [("StartLimitIntervalSec", "0")]
    for word in entry.options:
        key, _, value = word.partition("=")
        unit += [(name, value if name in _PATHS else _unit_named(value, namer)) for name in _OF_MOUNT.get(key, ())]
    # systemd orders it behind the network because of _netdev, and keeps a boot from waiting because of nofail.
    options = [word for word in entry.options if not word.startswith("x-systemd.") and word != "noauto"]
    body = [
        ("What", entry.device),
        ("Where", entry.point),
        ("Type", entry.fstype),
        ("Options", ",".join(options)),
        ("TimeoutSec", _value(entry.options, "x-systemd.mount-timeout")),
    ]
    return HEADER + _section("Unit", unit) + _section("Mount", body)


def _automount(entry: Any) -> str:
    """Writes the unit that waits for the first access."""
    idle = _value(entry.options, "x-systemd.idle-timeout")
    body = [("Where", entry.point), ("TimeoutIdleSec", idle)]
    return HEADER + _section("Automount", body) + _section("Install", [("WantedBy", "remote-fs.target")])


def _unit_named(value: str, namer: Namer) -> str:
    """Returns the name of the unit that a person has named, or whose path."""
    if value.startswith("/"):
        return namer(value, "device" if value.startswith("/dev/") else "mount")
    return value if value.endswith(_SUFFIXES) else f"{value}.mount"


def ours(text: str) -> bool:
    """Says whether a unit was written here."""
    return text.startswith(HEADER.partition("\n")[0])


def difference(old: str, new: str) -> dict[str, list[str] | None]:
    """Returns the settings in which two texts of a unit differ, None for a text that is or becomes none."""
    before, after = (_settings(text) for text in (old, new))
    gone = [line for line in before if line not in after]
    come = [line for line in after if line not in before]
    return {"old": gone if old else None, "new": come if new else None}


def _settings(text: str) -> list[str]:
    """Lists the lines that mean something; of a link, where it leads to."""
    return [line for line in text.splitlines() if line and not line.startswith(("#", ";", "["))]

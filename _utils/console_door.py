"""Opens a guest's console to the holder of one ticket, and knows which sessions there are.

A ticket is a file in the service's folder, named after the hash of bytes that only a browser knows; what it leads to
is decided here, by root, from libvirt's own words. The service's user may reach a guest's socket only from the moment
on when somebody was given a ticket for it.

The folder belongs to the service's user, so nothing that stands in it is believed: what it says of a session is judged
like any argument, and only processes of the service's own group of systemd are ever told to end.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import grp
import json
import os
import re
import secrets
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]

FOLDER = Path("/run/hypervisor-console")
PROC = Path("/proc")
USER = "hypervisor-console"
KINDS = ("vnc", "serial")
# How long a ticket is good for, and how many may wait, in seconds and files.
LIFETIME = 30
MOST = 512
_PATIENCE = 10.0
_LARGEST = 4096
_SESSION = re.compile(r"c[0-9a-f]{15}\Z")
_GUEST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,127}\Z")
_UUID = re.compile(r"[0-9a-f-]{36}\Z")
_VNC = re.compile(r"(/var/lib/libvirt/qemu|/run/libvirt/qemu)/(domain-[0-9]+-[^/]+)/vnc\.sock\Z")
_PTS = re.compile(r"/dev/pts/([0-9]{1,7})\Z")


def start(virsh: Any, utils: Utils, guest: str, kind: str, digest: str) -> dict[str, Any]:
    """Leaves a ticket for a console of a running guest.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        guest: its name.
        kind: vnc or serial.
        digest: the SHA-256 of the ticket, 64 hexadecimal digits.

    Returns:
        ``guest``, ``uuid``, ``kind`` and ``valid_seconds``.

    Raises:
        CommandExecutionError: there is no such guest, it does not run or has no such console; or this host serves none.
    """
    with _tickets() as tickets:
        return _start(virsh, utils, (guest, kind, digest), tickets)


@contextlib.contextmanager
def _tickets() -> Iterator[int]:
    """Opens the folder of tickets: the service's user could put a link in its place, and that leads root nowhere."""
    try:
        descriptor = os.open(FOLDER / "tickets", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        raise CommandExecutionError(
            "this host serves no consoles: libvirt:console:enabled is not true, or hypervisor-console.service "
            "does not run"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _start(virsh: Any, utils: Utils, asked: tuple[str, str, str], tickets: int) -> dict[str, Any]:
    """Leaves a ticket in the folder with this descriptor; see :func:`start`."""
    guest, kind, digest = asked
    uuid = utils["hypervisor_guests.resolve"](virsh, utils, guest)
    before = utils["hypervisor_xml.consoles"](virsh.ask("dumpxml", uuid))
    if before["run"] is None:
        raise CommandExecutionError(f"guest {guest} does not run, so it has no console")
    if kind == "vnc":
        socket = _vnc(utils, guest, before["vnc"])
    else:
        socket = _serial(utils, guest, before["serial"])
        # While it is the same run, its terminal is the same: systemd has opened no other one.
        after = utils["hypervisor_xml.consoles"](virsh.ask("dumpxml", uuid))
        if (after["run"], after["serial"]) != (before["run"], before["serial"]):
            utils["libvirt_tools.run"](["systemctl", "stop", _bridge(before["serial"])])
            raise CommandExecutionError(f"guest {guest} was started anew just now; try again")
    _sweep(tickets)
    found = {"guest": guest, "uuid": uuid, "kind": kind, "socket": socket}
    _leave(tickets, digest, json.dumps(found | {"until": time.clock_gettime(time.CLOCK_BOOTTIME) + LIFETIME}))
    return {"guest": guest, "uuid": uuid, "kind": kind, "valid_seconds": LIFETIME}


def _vnc(utils: Utils, guest: str, path: str | None) -> str:
    """Lets the service's user reach the socket of a guest's screen, and returns its path."""
    match = _VNC.match(path or "")
    if match is None:
        raise CommandExecutionError(f"guest {guest} has no VNC display on a unix socket of libvirt's")
    opened: list[int] = []
    try:
        opened.append(os.open(match[1], os.O_PATH | os.O_DIRECTORY))
        for part, flags in ((match[2], os.O_DIRECTORY), ("vnc.sock", 0)):
            # QEMU's user owns these folders: a link that it put there leads nowhere.
            opened.append(os.open(part, os.O_PATH | os.O_NOFOLLOW | flags, dir_fd=opened[-1]))
        if not stat.S_ISSOCK(os.fstat(opened[-1]).st_mode):
            raise CommandExecutionError(f"the VNC display of guest {guest} is no socket")
        for descriptor, rights in zip(opened, ("--x", "--x", "rw-"), strict=True):
            place = f"/proc/{os.getpid()}/fd/{descriptor}"
            utils["libvirt_tools.run"](["setfacl", "--modify", f"user:{USER}:{rights}", place])
    except OSError as error:
        raise CommandExecutionError(f"the VNC display of guest {guest} is not there: {error.strerror}") from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return match[0]


def _serial(utils: Utils, guest: str, path: str | None) -> str:
    """Has a guest's serial port served on a unix socket, and returns its path."""
    match = _PTS.match(path or "")
    if match is None:
        raise CommandExecutionError(f"guest {guest} has no serial port with a terminal (pty)")
    utils["libvirt_tools.run"](["systemctl", "start", _bridge(match[0])])
    return f"{FOLDER}/serial/{match[1]}.sock"


def _bridge(path: str) -> str:
    """Returns the unit that serves a terminal."""
    return f"hypervisor-console-serial@{path.rpartition('/')[2]}.service"


def _sweep(tickets: int) -> None:
    """Removes tickets that nobody came with."""
    waiting = 0
    oldest = time.time() - LIFETIME - 1
    for name in os.listdir(tickets):
        # What is no file, the service's user has put there: it is nobody's ticket.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if os.stat(name, dir_fd=tickets, follow_symlinks=False).st_mtime < oldest:
                os.unlink(name, dir_fd=tickets)
            else:
                waiting += 1
    if waiting >= MOST:
        raise CommandExecutionError(f"{waiting} tickets wait for their holders already; try again in {LIFETIME} s")


def _leave(tickets: int, digest: str, text: str) -> None:
    """Makes the file of a ticket, whole or not at all."""
    new = f".{secrets.token_hex(8)}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=tickets)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(text)
            handle.flush()
            os.fchown(handle.fileno(), -1, grp.getgrnam(USER).gr_gid)
            os.fchmod(handle.fileno(), 0o640)
        try:
            # A link, unlike a rename, replaces nothing.
            os.link(new, digest, src_dir_fd=tickets, dst_dir_fd=tickets, follow_symlinks=False)
        except FileExistsError:
            raise CommandExecutionError("this ticket waits for its holder already: make another one") from None
    except KeyError:
        raise CommandExecutionError(f"there is no group {USER}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=tickets)


def sessions() -> list[dict[str, Any]]:
    """Returns the open sessions, the oldest first: ``id``, ``guest``, ``uuid``, ``kind`` and ``since``."""
    found = []
    for path in _files():
        session = _session(path)
        if session is not None and _serves(session.pop("pid")):
            found.append(session)
    return sorted(found, key=lambda session: (session["since"], session["id"]))


def _files() -> Iterator[Path]:
    """Yields the files of sessions."""
    with contextlib.suppress(OSError):
        yield from (path for path in (FOLDER / "sessions").iterdir() if _SESSION.match(path.name))


def _session(path: Path) -> dict[str, Any] | None:
    """Reads the file of a session; None if it says nothing that can be one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                return None
            said = json.loads(handle.read(_LARGEST))
        since = dt.datetime.fromtimestamp(said["since"], tz=dt.timezone.utc).isoformat(timespec="seconds")
        found = {"id": path.name, "guest": said["guest"], "uuid": said["uuid"], "kind": said["kind"], "since": since}
        pid = said["pid"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    texts = all(isinstance(text, str) for text in found.values()) and found["kind"] in KINDS
    known = texts and _GUEST.match(found["guest"]) and _UUID.match(found["uuid"])
    return found | {"pid": pid} if known and isinstance(pid, int) and pid > 1 else None


def _serves(pid: int) -> bool:
    """Says whether a process is of the service; systemd alone puts one there."""
    with contextlib.suppress(OSError, ValueError):
        lines = (PROC / str(pid) / "cgroup").read_text(encoding="ascii").splitlines()
        return any(line.endswith("/system.slice/hypervisor-console.service") for line in lines)
    return False


def stop(number: str) -> dict[str, Any]:
    """Ends a session.

    Args:
        number: its id.

    Returns:
        What :func:`sessions` said of it.

    Raises:
        CommandExecutionError: there is none, or it does not end.
    """
    path = FOLDER / "sessions" / number
    session = _session(path)
    if session is None:
        raise CommandExecutionError(f"there is no session {number} on this host")
    pid = session.pop("pid")
    try:
        process = os.pidfd_open(pid)
    except OSError:
        raise CommandExecutionError(f"there is no session {number} on this host") from None
    try:
        # From here on the number is that process's, so what is found out now holds when it is told to end.
        if not _serves(pid):
            raise CommandExecutionError(f"there is no session {number} on this host")
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        return session
    finally:
        os.close(process)
    deadline = time.monotonic() + _PATIENCE
    while path.exists():
        if time.monotonic() > deadline:
            raise CommandExecutionError(f"session {number} has not ended within {_PATIENCE:.0f} s")
        time.sleep(0.05)
    return session

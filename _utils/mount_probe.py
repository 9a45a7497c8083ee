"""Asks about mounts and servers without hanging on one that is dead.

A process that touches a file system whose server is dead sleeps in the kernel and cannot be killed. So
whatever might touch one is done by a child process that is not waited for beyond a limit.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

HELPERS = "/sbin:/usr/sbin:/bin:/usr/bin"
_LEFT: list[subprocess.Popen[bytes]] = []


def run(*argv: str, timeout: float) -> tuple[int | None, str]:
    """Runs a child that may hang beyond any signal; it is never waited for longer than that.

    Args:
        argv: the program and its arguments.
        timeout: seconds.

    Returns:
        Its return code, None if it had not ended by then, and what it wrote.
    """
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": HELPERS, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            child.kill()
            try:
                child.wait(1)
            except subprocess.TimeoutExpired:
                # It sleeps in the kernel until its server is back, and is reaped some day.
                _LEFT.append(child)
        output.seek(0)
        return code, output.read(100_000).decode(errors="replace").strip()


def connects(host: str, port: int, seconds: float) -> bool:
    """Says whether a server accepts a connection; looking up its name counts too.

    Args:
        host: its name or address.
        port: a TCP port.
        seconds: how long it is waited for.
    """
    answer: list[bool] = []

    def attempt() -> None:
        try:
            with socket.create_connection((host, port), timeout=seconds):
                answer.append(True)
        except OSError:
            answer.append(False)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer == [True]


def users(name: str, folder: str = "/proc") -> list[str]:
    """Names the programs that have files open below a path, a guest by its name.

    Args:
        name: an absolute path.
        folder: where the kernel shows processes.
    """
    found = set()
    for process in Path(folder).glob("[0-9]*"):
        links = [process / "cwd", process / "root", *process.glob("fd/*")]
        try:
            targets = [str(link.readlink()) for link in links if link.is_symlink()]
            if any(target == name or target.startswith(f"{name.rstrip('/')}/") for target in targets):
                command = (process / "cmdline").read_bytes().split(b"\0")
                guest = [word for word in command if word.startswith(b"guest=")]
                label = (process / "comm").read_text(encoding="utf-8").strip()
                if guest:
                    label = f"guest {guest[0].decode().removeprefix('guest=').partition(',')[0]}"
                found.add(label)
        except OSError:
            continue  # it ended meanwhile
    return sorted(found)


def wrong_type(fstype: str, device: str, known: str = "/proc/filesystems") -> str:
    """Says whether a file system could not be mounted because it is of another type, or its type is none.

    Args:
        fstype: the type that it was to be mounted as.
        device: the path of what was to be mounted; another word where it is no device.
        known: where the kernel lists the types that it knows now.

    Returns:
        A sentence without its end; empty if that is not why.
    """
    if device.startswith("/dev/"):
        code, said = run("blkid", "--probe", "--match-tag=TYPE", "--output=value", device, timeout=10)
        if code == 0 and said.strip() not in {"", fstype}:
            return f"fstype is {fstype}, but {device} holds {said.strip()}"
    listed = {line.split()[-1] for line in Path(known).read_text(encoding="ascii").splitlines() if line.strip()}
    if fstype in listed or shutil.which(f"mount.{fstype}", path=HELPERS):
        return ""
    # The kernel would have loaded a module of that name.
    argv = ("modprobe", "--dry-run", "--quiet", f"fs-{fstype}")
    if shutil.which(argv[0], path=HELPERS) and run(*argv, timeout=10)[0] == 0:
        return ""
    return f"fstype is {fstype}, and this host knows no file system of that type"

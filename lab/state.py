"""Where a lab keeps its things, and the file that says what it has built so far."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .proc import LabError

ROOT = Path("/var/lib/hypervisor-lab")
CACHE = Path("/var/cache/hypervisor-lab")
CHECKOUT = Path(__file__).resolve().parent.parent
# Raised when a lab made by older code can no longer be managed by this code.
FORMAT = 1


@dataclass(frozen=True)
class Paths:
    """The files of one lab; ``name`` also names its network namespaces and containers."""

    name: str

    @property
    def root(self) -> Path:
        """The lab's own folder."""
        return ROOT / self.name

    @property
    def state(self) -> Path:
        """What has been built, as JSON."""
        return self.root / "state.json"

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``: every host by name, with its key pinned."""
        return self.root / "ssh_config"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens every host of this lab."""
        return self.root / "id_ed25519"

    @property
    def web_ca(self) -> Path:
        """The certificate of the authority that a browser has to believe for the lab's page."""
        return self.root / "web-ca.crt"

    @property
    def logs(self) -> Path:
        """Logs of long steps."""
        return self.root / "logs"

    def host(self, host: str) -> Path:
        """Return the folder of one host (its identity, its disk)."""
        return self.root / "hosts" / host


def lab_name(text: str) -> str:
    """Check the name of a lab.

    Raises:
        LabError: it isn't 1 to 12 lower-case letters, digits or ``-`` (interface names hold no more).
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,11}", text):
        raise LabError(
            f"'{text}' is not a lab's name; allowed: a letter, then up to 11 letters, digits or '-', all lower case"
        )
    return text


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that readers, and a machine that loses power, see the old or the new content whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)


def load(paths: Paths) -> dict[str, Any]:
    """Return the lab's state, ``{}`` when there is none.

    Raises:
        LabError: the file is damaged, or of a format that this code doesn't know.
    """
    try:
        state = json.loads(paths.state.read_text())
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise LabError(f"{paths.state} is open to root alone: run it with sudo") from None
    except (ValueError, OSError) as error:
        remedy = f"remove the lab with: lab down --name {paths.name}"
        raise LabError(f"{paths.state} can't be read ({error}); {remedy}") from None
    if not isinstance(state, dict):
        raise LabError(f"{paths.state} is not a lab's state; remove the lab with: lab down --name {paths.name}")
    if state.get("format") != FORMAT:
        maker = state.get("checkout", "unknown checkout")
        raise LabError(
            f"lab '{paths.name}' was made by another version of this code ({maker}); "
            f"remove it with: lab down --name {paths.name}, or choose another --name"
        )
    return dict(state)


def save(paths: Paths, state: dict[str, Any]) -> None:
    """Write the lab's state durably."""
    state["format"] = FORMAT
    write_atomic(paths.state, json.dumps(state, indent=1, sort_keys=True) + "\n", 0o600)


@contextlib.contextmanager
def locked(name: str, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock ``name`` for the block, so that two commands never change the same thing at once.

    Args:
        name: what is locked.
        doing: what the others are told.
        wait: wait for another process that holds it, for what several labs share.

    Raises:
        LabError: another process holds it and ``wait`` is false; the message says which, and what it does.
    """
    ROOT.mkdir(parents=True, exist_ok=True)
    path = ROOT / f".{name}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise LabError(f"another command is at work on '{name}': {holder}; wait for it, or end it") from None
        file.truncate(0)
        file.write(f"pid {os.getpid()}, {doing}\n")
        file.flush()
        yield


def names() -> list[str]:
    """Return the names of all labs that have a folder, sorted."""
    if not ROOT.is_dir():
        return []
    return sorted(entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def tree_digest(roots: Iterable[Path]) -> str:
    """Return a SHA-256 (hex) over names, modes and contents of files and folders, without caches of Python."""
    digest = hashlib.sha256()
    for root in sorted(roots):
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for path in files:
            if "__pycache__" in path.parts or path.suffix == ".pyc":
                continue
            digest.update(f"{path.relative_to(root.parent)}\0{path.stat().st_mode:o}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

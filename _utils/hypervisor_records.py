"""Records of guests that were migrated away, so that no state defines or starts a second copy of one.

A record counts while no guest of its name is on this host. It is removed once the guest is back. One with
``moving`` was written before a migration: it outlives a question that is asked while the guest still runs here.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Collection
from pathlib import Path

FOLDER = Path("/var/lib/hypervisor-formula/migrated")


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """Returns the path of a guest's record; the name has passed an allow-list before."""
    return folder / f"{name}.json"


def read(name: str, folder: Path = FOLDER) -> dict[str, str] | None:
    """Returns a guest's record, None if there is none or it cannot be read.

    Returns:
        ``name``, ``to`` (minion id), ``uuid`` and ``at`` (ISO 8601, UTC).
    """
    try:
        found = json.loads(path_of(name, folder).read_text(encoding="utf-8"))
        return {"name": name, **{key: str(found[key]) for key in ("to", "uuid", "at")}}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def moving(name: str, folder: Path = FOLDER) -> bool:
    """Says whether a guest is about to move away, or moves."""
    try:
        return json.loads(path_of(name, folder).read_text(encoding="utf-8")).get("moving") is True
    except (OSError, ValueError, AttributeError):
        return False


def away(present: Collection[str], folder: Path = FOLDER) -> list[dict[str, str]]:
    """Returns the records of all guests that are not here, by name.

    Args:
        present: names of the guests that this host has.
        folder: where the records are.
    """
    try:
        names = sorted(path.stem for path in folder.glob("*.json"))
    except OSError:
        return []
    found = [read(name, folder) for name in names if name not in present]
    return [record for record in found if record is not None]


def write(name: str, uuid: str, target: str, moving: bool = False, folder: Path = FOLDER) -> None:
    """Records that a guest went to another host, or is about to; the record is on disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    now = dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds")
    found: dict[str, object] = {"to": target, "uuid": uuid, "at": now}
    text = json.dumps(found | ({"moving": True} if moving else {})) + "\n"
    new = folder / f".{name}.new"
    with new.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(path_of(name, folder))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(present: Collection[str], folder: Path = FOLDER) -> None:
    """Removes the records of guests that are back; takes the names of guests that this host has."""
    for name in present:
        path = path_of(name, folder)
        # A guest that other tools have made may have a name that no record can have.
        if "/" in name or not path.exists():
            continue
        try:
            moving = json.loads(path.read_text(encoding="utf-8")).get("moving")
        except (OSError, ValueError, AttributeError):
            moving = None
        if not moving:
            path.unlink(missing_ok=True)


def remove(name: str, folder: Path = FOLDER) -> None:
    """Removes a guest's record, if there is one."""
    path_of(name, folder).unlink(missing_ok=True)

"""Keeps what hosts hand in of their ssh keys, on the master's own minion, for the file server to serve.

A host calls :func:`deposit` through the master, whose ``peer`` setting lets exactly the hosts of
``bootstrap pki`` do so. The master adds the id under which the caller's key was accepted; whatever
the caller says of itself is not asked. So no host can hand in a key in another's name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__utils__: dict[str, Any]

# Made by `bootstrap pki`, on the master alone: a minion without it keeps nothing.
FOLDER = Path("/srv/salt/hypervisor-hostkeys")


def deposit(user: str, host: list[str], **caller: Any) -> dict[str, Any]:
    """Publishes the public halves of the calling host's keys.

    CLI example: none; ``host_keys.published`` calls it from a host.

    Args:
        user: the public key with which that host's root connects to others, "type base64".
        host: the public keys of its sshd.
        caller: what the master says of the caller.

    Returns:
        ``{"stored": id}``, or ``{"error": why}``. Nothing has changed then.
    """
    identity = caller.get("__pub_id")
    if not __utils__["ssh_keys.is_id"](identity):
        return {"error": "the caller could not be identified; this is called by hosts, through the master"}
    if not FOLDER.is_dir() or FOLDER.stat().st_uid != os.geteuid():
        return {"error": f"{FOLDER} is not here: run 'bootstrap pki' on the master, and name its minion in the pillar"}
    entry = {"user": user, "host": host}
    wrong = __utils__["ssh_keys.handed_in"](entry)
    if wrong:
        return {"error": f"what {identity} handed in is refused: {wrong}"}
    path = FOLDER / f"{identity}.json"
    staged = FOLDER / f".{identity}.{os.getpid()}.new"
    with staged.open("w", encoding="ascii") as handle:
        handle.write(json.dumps(entry, indent=1, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    staged.chmod(0o644)
    staged.replace(path)
    return {"stored": identity}

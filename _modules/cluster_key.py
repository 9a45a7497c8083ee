"""Keeps the public keys and the sealed cluster keys of nodes, on the master's own minion, for the file server to serve.

A node calls :func:`deposit` through the master, whose ``peer`` setting lets exactly the hosts of ``bootstrap pki`` do
so. The master adds the id under which the caller's key was accepted; whatever the caller says of itself is not asked.
So no host can hand in anything in another's name. What is sealed opens with the recipient's private key alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__utils__: dict[str, Any]

# Made by `bootstrap pki`, on the master alone: a minion without it keeps nothing.
FOLDER = Path("/srv/salt/hypervisor-cluster")


def deposit(public: str, sealed: dict[str, Any], **caller: Any) -> dict[str, Any]:
    """Publishes the public key of the calling host, and what it has sealed for others.

    CLI example: none; states of ``cluster_key`` call it from a host.

    Args:
        public: the public half of the key that the caller opens sealed ones with, as PEM.
        sealed: the cluster's key by minion id, sealed for each.
        caller: what the master says of the caller.

    Returns:
        ``{"stored": id}``, or ``{"error": why}``. Nothing has changed then.
    """
    identity = caller.get("__pub_id")
    if not __utils__["cluster_keys.is_id"](identity):
        return {"error": "the caller could not be identified; this is called by hosts, through the master"}
    if not FOLDER.is_dir() or FOLDER.stat().st_uid != os.geteuid():
        return {"error": f"{FOLDER} is not here: run 'bootstrap pki' on the master, and name its minion in the pillar"}
    entry = {"public": public, "sealed": sealed}
    wrong = __utils__["cluster_keys.handed_in"](entry)
    if wrong:
        return {"error": f"what {identity} handed in is refused: {wrong}"}
    text = json.dumps(entry, indent=1, sort_keys=True) + "\n"
    __utils__["own_files.write"](FOLDER / f"{identity}.json", text.encode("ascii"), 0o644)
    return {"stored": identity}

"""Lets a new guest be a minion from its first start, with a key that the master has accepted before.

The hypervisor makes the key pair and asks the master's own minion for :func:`accept`, with the guest's
name and nothing else. That one believes the name only if the master's pillar of the very hypervisor that
asks declares such a guest, and fetches the public half from there itself. So a hypervisor can have no key
accepted but that of a guest which pillar has assigned to it, and can replace none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import salt.client
import salt.config
import salt.runner
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from salt.exceptions import CommandExecutionError

__utils__: dict[str, Any]
__opts__: dict[str, Any]

# The hosts that may have certificates: hypervisors, whose names no guest gets. bootstrap writes it.
HOSTS = Path("/etc/pki/hypervisor/hosts")
_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
# Seconds that the hypervisor has to tell its guest's public key.
_TIMEOUT = 30


def public_key(name: Any) -> str:
    """Returns the public half of the key that this hypervisor has made for a guest.

    CLI example: ``salt hv1 guest_minion.public_key web1``

    Args:
        name: the guest.

    Returns:
        The key as PEM; empty if there is none.
    """
    if not isinstance(name, str) or not _ID.match(name):
        return ""
    found: str = __utils__["guest_seed.public_key"](name)
    return found


def accept(name: Any, **kwargs: Any) -> dict[str, str]:
    """Accepts the key of a guest's minion, on the master; for hypervisors, through ``publish.publish``.

    Args:
        name: the guest, which is also the minion id.
        kwargs: what Salt says of the caller.

    Returns:
        ``accepted`` with the name, or ``refused`` with the reason.
    """
    try:
        _accept(name, kwargs.get("__pub_id"))
    except (CommandExecutionError, OSError, ValueError) as error:
        return {"refused": str(error)}
    return {"accepted": name}


def _accept(name: Any, caller: str | None) -> None:
    """Does what :func:`accept` says; raises ValueError with the reason against it."""
    if not caller:
        raise ValueError("only a hypervisor can ask for this, through publish.publish")
    if not isinstance(name, str) or not _ID.match(name):
        raise ValueError(f"{name!r} is not a minion id")
    config = Path(__opts__["conf_file"]).with_name("master")
    opts = salt.config.master_config(str(config))
    keys = Path(opts["pki_dir"])
    if not (keys / "master.pem").exists():
        raise ValueError("this is not the master")
    if opts.get("keys.cache_driver", "localfs_key") != "localfs_key":
        raise ValueError(f"the master keeps its keys in {opts['keys.cache_driver']}, not in files")
    _check_assigned(name, caller, opts)
    for folder, words in (("minions_rejected", "rejected"), ("minions_denied", "denied")):
        if (keys / folder / name).exists():
            raise ValueError(f"the master has {words} a key of {name}; look at it with: salt-key --list all")
    public = _fetched(name, caller, opts)
    place = keys / "minions" / name
    if place.exists():
        if place.read_text(encoding="utf-8").split() != public.split():
            raise ValueError(f"the master has accepted another key of {name}; remove that first: salt-key -d {name}")
        return
    _write(place, public)
    # What has been waiting under this name is not what pillar means by it.
    (keys / "minions_pre" / name).unlink(missing_ok=True)


def _check_assigned(name: str, caller: str, opts: dict[str, Any]) -> None:
    """Checks with the master's own pillar that the caller may have this guest."""
    listed = HOSTS.read_text(encoding="utf-8").splitlines() if HOSTS.exists() else []
    if name in {line.split()[0] for line in listed if line.split()} | {__opts__["id"], caller}:
        raise ValueError(f"{name} is the name of a host")
    pillar = salt.runner.RunnerClient(opts).cmd("pillar.show_pillar", [caller], print_event=False)
    found: Any = pillar
    for key in ("libvirt", "guests", name):
        found = found.get(key) if isinstance(found, dict) else None
    seeded = found.get("cloud_init") if isinstance(found, dict) and found.get("ensure") != "absent" else None
    if not isinstance(seeded, dict) or not seeded.get("minion"):
        raise ValueError(f"the pillar of {caller} declares no guest {name} with cloud_init:minion")


def _fetched(name: str, caller: str, opts: dict[str, Any]) -> str:
    """Asks the hypervisor itself for the public half."""
    with salt.client.LocalClient(mopts=opts) as client:
        answers = client.cmd(caller, "guest_minion.public_key", [name], tgt_type="list", timeout=_TIMEOUT)
    public = answers.get(caller)
    if not isinstance(public, str) or not public:
        raise ValueError(f"{caller} has no key for {name}, or did not answer within {_TIMEOUT} s")
    load_pem_public_key(public.encode())
    return public


def _write(place: Path, text: str) -> None:
    """Writes a key as the master would: whole, and its own."""
    partial = place.with_name(f".{place.name}.partial")
    with partial.open("w", encoding="ascii") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    owner = place.parent.stat()
    os.chown(partial, owner.st_uid, owner.st_gid)
    partial.chmod(0o644)
    partial.rename(place)

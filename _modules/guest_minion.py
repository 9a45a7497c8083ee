"""Lets a new guest be a minion from its first start, with a key that the master has accepted before.

The hypervisor makes the key pair and asks the master's own minion for :func:`accept`, with the guest's
name and the public half. That one believes the name only if the master's pillar of the very hypervisor that
asks declares such a guest. So a hypervisor can have no key accepted but that of a guest which pillar has
assigned to it, and can replace none. The key is an argument, since the master vouches for the caller and
what it sends; a job that asked the hypervisor back could be answered by any minion in its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import salt.config
import salt.pillar
import salt.utils.minions
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from salt.exceptions import CommandExecutionError

__opts__: dict[str, Any]
__utils__: dict[str, Any]

# The hosts that may have certificates: hypervisors, whose names no guest gets. bootstrap writes it.
HOSTS = Path("/etc/pki/hypervisor/hosts")
_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
_KINDS = (RSAPublicKey, Ed25519PublicKey, EllipticCurvePublicKey)
# Characters that a public key may have: RSA with 16384 bits has fewer.
_LENGTH = 4096


def accept(name: Any, public: Any = "", **kwargs: Any) -> dict[str, str]:
    """Accepts the key of a guest's minion, on the master; for hypervisors, through ``publish.publish``.

    Args:
        name: the guest, which is also the minion id.
        public: the public half of its key, as PEM.
        kwargs: what Salt says of the caller.

    Returns:
        ``accepted`` with the name, or ``refused`` with the reason.
    """
    try:
        _accept(name, public, kwargs.get("__pub_id"))
    except (CommandExecutionError, OSError, ValueError) as error:
        return {"refused": str(error)}
    return {"accepted": name}


def _accept(name: Any, public: Any, caller: str | None) -> None:
    """Does what :func:`accept` says; raises ValueError with the reason against it."""
    if not caller:
        raise ValueError("only a hypervisor can ask for this, through publish.publish")
    if not isinstance(name, str) or not _ID.match(name):
        raise ValueError(f"{name!r} is not a minion id")
    key = _public(public)
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
    place = keys / "minions" / name
    if place.exists():
        if place.read_text(encoding="utf-8").split() != key.split():
            raise ValueError(f"the master has accepted another key of {name}; remove that first: salt-key -d {name}")
        return
    _write(place, key)
    # What has been waiting under this name is not what pillar means by it.
    (keys / "minions_pre" / name).unlink(missing_ok=True)


def _check_assigned(name: str, caller: str, opts: dict[str, Any]) -> None:
    """Checks with the master's own pillar that the caller may have this guest."""
    listed = HOSTS.read_text(encoding="utf-8").splitlines() if HOSTS.exists() else []
    if name in {line.split()[0] for line in listed if line.split()} | {__opts__["id"], caller}:
        raise ValueError(f"{name} is the name of a host")
    # As the runner pillar.show_pillar does it, which would put all of the pillar on the bus and in the cache of jobs.
    _, grains, _ = salt.utils.minions.get_minion_data(caller, opts)
    found: Any = salt.pillar.Pillar(opts, grains or {"fqdn": caller}, caller, "base").compile_pillar()
    for key in ("libvirt", "guests", name):
        found = found.get(key) if isinstance(found, dict) else None
    seeded = found.get("cloud_init") if isinstance(found, dict) and found.get("ensure") != "absent" else None
    if not isinstance(seeded, dict) or not seeded.get("minion"):
        raise ValueError(f"the pillar of {caller} declares no guest {name} with cloud_init:minion")


def _public(text: Any) -> str:
    """Returns a public key as Salt keeps it; raises ValueError for what is none, or too long to be one."""
    if not isinstance(text, str) or not 0 < len(text) <= _LENGTH:
        raise ValueError(f"the guest's public key has to be a text of 1 to {_LENGTH} characters")
    try:
        key = load_pem_public_key(text.encode())
        if not isinstance(key, _KINDS):
            raise ValueError("it is of another kind")
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    except (ValueError, UnsupportedAlgorithm) as error:
        # What was sent is not repeated: it may be what should never have been.
        raise ValueError("the guest's public key is no RSA, Ed25519 or EC public key in PEM") from error


def _write(place: Path, text: str) -> None:
    """Writes a key as the master would: whole, and its own."""
    owner = place.parent.stat()
    __utils__["own_files.write"](place, text.encode("ascii"), 0o644, (owner.st_uid, owner.st_gid))

"""What the key of a cluster is handed on with: public keys, sealed keys, and who may have them.

The node that has the key seals it for each other node with RSA-OAEP; what it seals can lie open. Pure functions of
bytes and mappings. Nothing here reads a host.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

# What corosync takes: 256 bytes from its keygen, 128 from that of corosync 2, others where somebody has said so.
_KEY_LEAST, _KEY_MOST = 128, 4096
# What OAEP with SHA-256 needs itself of the bytes of an RSA key: of 3072 bits are left 318 bytes.
_OAEP = 66
_BITS, _BITS_MOST = 3072, 8192
_PEM_MOST = 4096  # characters
_NODES_MOST = 32
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_BLOB = re.compile(r"[A-Za-z0-9+/]{500,1400}={0,2}\Z")


def is_id(text: object) -> bool:
    """Says whether something is a minion id as ``bootstrap`` takes it, and so the name of a file."""
    return isinstance(text, str) and bool(_ID.match(text))


def new_private() -> bytes:
    """Returns a new private key that what others seal is opened with, as PEM."""
    return rsa.generate_private_key(public_exponent=65537, key_size=_BITS).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_half(private: bytes) -> str:
    """Returns the public half of a private key as PEM; raises ValueError for what is no such key."""
    return str(
        _private(private)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode("ascii")
    )


def _private(pem: bytes) -> Any:
    """Returns a private key; raises ValueError with words that do not quote it."""
    try:
        # It is this host's own file; to prove its numbers prime again would take most of a second.
        key = serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < _BITS:
        raise ValueError(f"it is no RSA private key of at least {_BITS} bits without a password")
    return key


def _public(pem: object) -> Any:
    """Returns a public key; raises ValueError for what is none that a key can be sealed for."""
    if not isinstance(pem, str) or len(pem) > _PEM_MOST:
        raise ValueError("it is no public key in PEM")
    try:
        key = serialization.load_pem_public_key(pem.encode("ascii", "replace"))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPublicKey) or not _BITS <= key.key_size <= _BITS_MOST:
        raise ValueError(f"it is no RSA public key of {_BITS} to {_BITS_MOST} bits in PEM")
    return key


def digest(content: bytes) -> str:
    """Returns what tells keys apart. Of a random key of 2048 bits it tells nothing else."""
    return hashlib.sha256(content).hexdigest()


def seal(key: bytes, cluster: str, public: str) -> dict[str, str]:
    """Returns a key sealed for the holder of a private key: ``for``, ``key`` and ``blob``.

    Args:
        key: what is sealed.
        cluster: the cluster's name; it opens for this one only.
        public: the recipient's public key as PEM.

    Raises:
        ValueError: the public key is none, or has no room for the key, see :func:`unfit`.
    """
    blob = _public(public).encrypt(key, _padding(cluster))
    return {
        "for": digest(public.encode("ascii")),
        "key": digest(key),
        "blob": base64.b64encode(blob).decode("ascii"),
    }


def unfit(key: bytes, publics: Mapping[str, str]) -> str:
    """Says why a key cannot be sealed; empty when it can.

    Args:
        key: the cluster's key.
        publics: public keys as PEM, by minion id of those that it is to be sealed for.
    """
    room = {host: _public(public).key_size // 8 - _OAEP for host, public in publics.items()}
    short = sorted(host for host, most in room.items() if len(key) > most)
    if short:
        return f"has {len(key)} bytes, and at most {min(room.values())} can be sealed for {', '.join(short)}"
    return "" if _has_a_length(key) else f"has {len(key)} bytes, and corosync takes {_KEY_LEAST} to {_KEY_MOST}"


def _has_a_length(key: bytes) -> bool:
    """Says whether corosync takes a key of this length."""
    return _KEY_LEAST <= len(key) <= _KEY_MOST


def unseal(entry: Mapping[str, str], cluster: str, private: bytes) -> bytes:
    """Returns what was sealed for us; raises ValueError for what was not, or has been altered."""
    try:
        key = bytes(_private(private).decrypt(base64.b64decode(entry["blob"], validate=True), _padding(cluster)))
    except (ValueError, binascii.Error):
        raise ValueError("it does not open with this host's key") from None
    if digest(key) != entry["key"]:
        raise ValueError("it holds another key than it says")
    if not _has_a_length(key):
        raise ValueError(f"it has {len(key)} bytes, and corosync takes {_KEY_LEAST} to {_KEY_MOST}")
    return key


def _padding(cluster: str) -> Any:
    """Returns the padding, OAEP with SHA-256, bound to a cluster's name."""
    return padding.OAEP(
        mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=cluster.encode("utf-8")
    )


def handed_in(entry: Any) -> str:
    """Says what is wrong with what a host hands in; empty when nothing is.

    Args:
        entry: ``public``, the host's own public key, and ``sealed``, by minion id what :func:`seal` returns.
    """
    if not isinstance(entry, Mapping) or set(entry) != {"public", "sealed"}:
        return "it is no mapping of public and sealed"
    try:
        _public(entry["public"])
    except ValueError as error:
        return f"public: {error}"
    sealed = entry["sealed"]
    if not isinstance(sealed, Mapping) or len(sealed) > _NODES_MOST:
        return f"sealed is no mapping of at most {_NODES_MOST} minion ids"
    if not all(is_id(host) and _is_sealed(one) for host, one in sealed.items()):
        return "sealed has an entry that is no sealed key of a minion"
    return ""


def _is_sealed(entry: Any) -> bool:
    """Says whether something has the form of a sealed key."""
    if not isinstance(entry, Mapping) or set(entry) != {"for", "key", "blob"}:
        return False
    patterns = {"for": _DIGEST, "key": _DIGEST, "blob": _BLOB}
    return all(isinstance(entry[name], str) and bool(pattern.match(entry[name])) for name, pattern in patterns.items())


def stale(
    sealed: Mapping[str, Mapping[str, str]], key: bytes, publics: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Compares what was handed out with who should have it.

    Args:
        sealed: what was handed out, by minion id.
        key: the cluster's key.
        publics: the public keys of the hosts that should have it.

    Returns:
        The ids of hosts that it has to be sealed for, and of those that have no more claim to it.
    """
    wanted = {host: (digest(public.encode("ascii")), digest(key)) for host, public in publics.items()}
    there = {host: (entry["for"], entry["key"]) for host, entry in sealed.items()}
    return sorted(host for host in wanted if there.get(host) != wanted[host]), sorted(set(there) - set(wanted))

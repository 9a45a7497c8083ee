"""Keep a certificate authority on the master as `bootstrap` made it: its key closed, its certificate published."""

from __future__ import annotations

import datetime
import os
import pathlib
import stat
from typing import TYPE_CHECKING, Any

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

if TYPE_CHECKING:  # put in by Salt's loader
    __opts__: dict[str, Any] = {}

__virtualname__ = "certificate_authority"

KEY_MODE = 0o400
FOLDER_MODE = 0o700
# A leaf lives 397 days (bootstrap); a CA that ends sooner than that can no longer sign one whole.
DAYS_ENOUGH = 397


def __virtual__() -> str | tuple[bool, str]:
    """Load where Salt's Python has cryptography, which Salt itself depends on."""
    if not HAS_CRYPTOGRAPHY:
        return False, "the Python package cryptography is missing from Salt's Python"
    return __virtualname__


def look(folder: pathlib.Path, published: pathlib.Path) -> dict[str, Any]:
    """Read what is on disk; changes nothing.

    Args:
        folder: holds ``ca.key`` and ``ca.crt``.
        published: where minions fetch the certificate.

    Returns:
        ``key`` and ``certificate`` (bytes or None), ``published`` (bytes or None), and ``modes``, the permission
        and owner of folder and key as ``(mode, uid, gid)`` by path.
    """
    found: dict[str, Any] = {"modes": {}}
    for name, path in (("key", folder / "ca.key"), ("certificate", folder / "ca.crt"), ("published", published)):
        found[name] = path.read_bytes() if path.is_file() else None
    for path in (folder, folder / "ca.key"):
        if path.exists():
            status = path.stat()
            found["modes"][str(path)] = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return found


def judge(found: dict[str, Any], now: datetime.datetime) -> tuple[str, str]:
    """Say what makes a CA unusable, and what a person should know.

    Args:
        found: what :func:`look` returns.
        now: the time, with its zone.

    Returns:
        ``(error, remark)``: an empty error for a CA that can sign.
    """
    if found["key"] is None or found["certificate"] is None:
        return "key or certificate is missing; make or restore it, then: bootstrap pki", ""
    try:
        key = serialization.load_pem_private_key(found["key"], password=None)
        certificate = x509.load_pem_x509_certificate(found["certificate"])
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        return f"key or certificate can't be read ({error})", ""
    public = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*public) != certificate.public_key().public_bytes(*public):
        return "the certificate belongs to another key", ""
    if not is_ca:
        return "the certificate is not one of a CA", ""
    # Python's cryptography before 42 has no *_utc attributes, and later ones warn about the others.
    end = getattr(certificate, "not_valid_after_utc", None)
    if end is None:
        end = certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc)
    days = (end - now).days
    if days < 0:
        return f"the CA ended on {end:%Y-%m-%d}; see docs/operations.rst", ""
    if days < DAYS_ENOUGH:
        early = f"the CA ends in {days} days, before a certificate of today would"
        return "", f"{early}: plan its replacement (docs/operations.rst)"
    return "", f"valid for {days} days"


def exposed(found: dict[str, Any], folder: pathlib.Path) -> bool:
    """Say whether somebody else than root could have the key.

    Args:
        found: what :func:`look` returns.
        folder: the CA's folder.

    Returns:
        True if the key belongs to another user, or its permissions let others at it.
    """
    mode, uid, gid = found["modes"].get(str(folder / "ca.key"), (KEY_MODE, 0, 0))
    return bool(uid or mode & 0o007 or (gid and mode & 0o070))


def plan(found: dict[str, Any], folder: pathlib.Path, published: pathlib.Path) -> dict[str, dict[str, str]]:
    """Say what has to be repaired.

    Args:
        found: what :func:`look` returns.
        folder: the CA's folder.
        published: where minions fetch the certificate.

    Returns:
        Path to ``{"old": …, "new": …}``; empty when all is well.
    """
    changes = {}
    for path, mode in ((folder, FOLDER_MODE), (folder / "ca.key", KEY_MODE)):
        now = found["modes"].get(str(path))
        if now is not None and now != (mode, 0, 0):
            changes[str(path)] = {"old": f"{now[0]:04o}, owner {now[1]}:{now[2]}", "new": f"{mode:04o}, owner 0:0"}
    if found["published"] != found["certificate"]:
        old = "missing" if found["published"] is None else "another certificate"
        changes[str(published)] = {"old": old, "new": "the CA's certificate"}
    return changes


def healthy(
    name: str, folder: str = "/etc/pki/hypervisor", publish: str = "/srv/salt/hypervisor-pki"
) -> dict[str, Any]:
    """Keep one purpose's CA usable, its key readable by root alone, its certificate where minions fetch it.

    Args:
        name: the purpose, such as ``libvirt``.
        folder: the folder of all CAs.
        publish: the folder of the file server that has the certificates.

    Returns:
        The state's result; it fails when the CA can't sign, with the reason. It warns of a key that others than
        root could read until now.
    """
    home, published = pathlib.Path(folder) / name, pathlib.Path(publish) / f"{name}.crt"
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    found = look(home, published)
    error, remark = judge(found, datetime.datetime.now(datetime.timezone.utc))
    if error:
        return {**ret, "result": False, "comment": f"CA {home}: {error}"}
    changes = plan(found, home, published)
    if not changes:
        return {**ret, "comment": f"CA {home}: {remark}"}
    if exposed(found, home):
        warning = (
            f"{home / 'ca.key'} was open to others than root and may have been copied: "
            "replace this CA (docs/operations.rst). Closing the file does not undo a copy."
        )
        ret["warnings"] = [warning]
    if __opts__["test"]:
        return {**ret, "result": None, "changes": changes, "comment": f"CA {home} would be repaired; {remark}"}
    for path, mode in ((home, FOLDER_MODE), (home / "ca.key", KEY_MODE)):
        if str(path) in changes:
            os.chown(path, 0, 0)
            path.chmod(mode)
    if str(published) in changes:
        published.parent.mkdir(parents=True, exist_ok=True)
        temporary = published.with_name(f".{published.name}.new")
        temporary.write_bytes(found["certificate"])
        temporary.chmod(0o644)
        temporary.replace(published)
    return {**ret, "changes": changes, "comment": f"CA {home} was repaired; {remark}"}

"""Logins of operators, for Salt's master: hashes of the pillar, PAM or LDAP, and only from salt-api.

Salt lets a list of functions pass if it allows one of them, and ``saltutil.find_job`` it allows to everybody. So a
password must be worth nothing at the master's own port, where such a list could be sent: a login is accepted with a
seal alone, which takes the master's local key. ``hypervisor_api``, the door for operators, sets it.
"""

from __future__ import annotations

import ctypes
import grp
import hmac
import logging
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import salt.auth.pam
import salt.loader

__opts__: dict[str, Any]

log = logging.getLogger(__name__)

# Salt takes the name of who logs in for a pattern.
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
# Salt's names for whoever owns the master, which runners trust.
_OWNERS = re.compile(r"root|sudo_.*")
_LONGEST = 512
_PATIENCE = 30.0  # seconds for PAM
# glibc's struct was the largest: 131,232 bytes.
_CRYPT_DATA = 262_144
# libxcrypt's name, and the one of those who keep glibc's.
_LIBRARIES = ("libcrypt.so.2", "libcrypt.so.1")


def _settings() -> dict[str, Any]:
    """Returns what the drop-in says of logins."""
    return dict(__opts__["hypervisor_api"])


def seal(username: str, password: str) -> str:
    """Returns a password that ``auth`` accepts, from whoever can read the master's local key.

    Args:
        username: who logs in.
        password: the password as it was typed.
    """
    return f"{_digest(username, password)}:{password}"


def _digest(username: str, password: str) -> str:
    """Returns the proof that the master's key was at hand."""
    key = Path(__opts__["cachedir"], f".{__opts__['user']}_key").read_bytes()
    return hmac.new(key, f"{username}\0{password}".encode(), "sha256").hexdigest()


def _opened(username: Any, sealed: Any) -> str | None:
    """Returns the password in a sealed one; None unless name, length and seal are right."""
    if not isinstance(username, str) or not isinstance(sealed, str) or not _NAME.fullmatch(username):
        return None
    if _OWNERS.fullmatch(username) or username == __opts__["user"]:
        return None
    digest, colon, password = sealed.partition(":")
    if not colon or not 0 < len(password) <= _LONGEST or "\0" in password:
        return None
    return password if hmac.compare_digest(digest.encode(), _digest(username, password).encode()) else None


def auth(username: str, password: str) -> bool:
    """Says whether somebody may log in.

    Args:
        username: who.
        password: their password in a seal.
    """
    opened = _opened(username, password)
    if opened is None:
        return False
    settings = _settings()
    known = _hashes(settings["hashes"]) if "file" in settings["backends"] else {}
    if username in known:
        return _crypted(opened, known[username])
    backends: dict[str, Callable[[str, str], bool]] = {"pam": _pam, "ldap": _ldap}
    return any(backends[one](username, opened) for one in settings["backends"] if one in backends)


def groups(username: str, password: str = "", **_: Any) -> list[str]:
    """Returns the groups of somebody who has logged in; a user with a hash in pillar has none.

    Args:
        username: who.
        password: their password in a seal, or nothing.
    """
    settings = _settings()
    if "file" in settings["backends"] and username in _hashes(settings["hashes"]):
        return []
    found: set[str] = set()
    if "pam" in settings["backends"]:
        found.update(_system_groups(username))
    opened = _opened(username, password) if "ldap" in settings["backends"] else None
    if opened is not None:
        found.update(_of_salt("ldap.groups")(username, password=opened) or ())
    return sorted(found)


def _hashes(path: str) -> dict[str, str]:
    """Reads the file of users' hashes."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return dict(line.split(":", 1) for line in lines if line and not line.startswith("#"))


def _crypted(password: str, known: str) -> bool:
    """Compares a password with a hash of crypt(3), in the system's own library: newer Pythons have none."""
    for name in _LIBRARIES:
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
        # A buffer of its own: several logins are checked at a time.
        data = ctypes.create_string_buffer(_CRYPT_DATA)
        made = function(password.encode(), known.encode(), data) or b""
        return hmac.compare_digest(made, known.encode())
    log.error("nobody can log in by a hash: there is none of %s", ", ".join(_LIBRARIES))
    return False


def _pam(username: str, password: str) -> bool:
    """Asks PAM as Salt does, but in the Python that runs here: Salt would leave a virtual environment."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SALT_PAM_USERNAME": username,
        "SALT_PAM_PASSWORD": password,
        "SALT_PAM_SERVICE": str(_settings()["pam_service"]),
        "SALT_PAM_ENCODING": "utf-8",
    }
    argv = [sys.executable, str(salt.auth.pam.__file__)]
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        log.error("PAM gave no answer within %.0f s", _PATIENCE)
        return False
    return done.returncode == 0


def _system_groups(username: str) -> list[str]:
    """Returns the groups of a user of this system."""
    try:
        entry = pwd.getpwnam(username)
        return [grp.getgrgid(one).gr_name for one in os.getgrouplist(username, entry.pw_gid)]
    except KeyError:
        return []


def _ldap(username: str, password: str) -> bool:
    """Asks Salt's own module for LDAP."""
    return bool(_of_salt("ldap.auth")(username, password))


def _of_salt(name: str) -> Callable[..., Any]:
    """Returns a function of Salt's own modules for logins."""
    found: Callable[..., Any] = salt.loader.auth(dict(__opts__))[name]
    return found

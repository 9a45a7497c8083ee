"""What the schema cannot say of operators: names that do not fit each other, and logins that nothing can check.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Errors = list[tuple[str, str]]


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges the configuration of saltapi/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    roles, backends = configuration["roles"], configuration["backends"]
    elsewhere = [one for one in backends if one != "file"]
    found: Errors = []
    for kind in ("users", "groups"):
        for name, spec in configuration[kind].items():
            for role in spec.get("roles") or {}:
                if role not in roles:
                    allowed = ", ".join(sorted(roles)) or "none, since saltapi:roles is empty"
                    found.append((f"{kind}:{name}:roles:{role}", f"there is no such role; allowed: {allowed}"))
            if kind == "users" and (name == "root" or name.startswith("sudo_")):
                found.append((f"users:{name}", "is Salt's own name for whoever owns the master; choose another"))
            if kind == "users":
                found += [(f"users:{name}:password_hash", text) for text in _hash(spec, backends, elsewhere)]
    if configuration["groups"] and not elsewhere:
        found.append(("groups", "the backend file knows no groups; add pam or ldap to saltapi:backends"))
    if "ldap" in backends:
        given = configuration["ldap"]
        missing = [key for key in ("uri", "basedn") if key not in given]
        found += [(f"ldap:{key}", "missing; the backend ldap needs it") for key in missing]
        if given.get("uri", "").startswith("ldap://") and not given.get("starttls"):
            found.append(("ldap:uri", "sends passwords in the clear; use ldaps:// or starttls: true"))
    return [(f"saltapi:{where}", text) for where, text in found]


def _hash(spec: Mapping[str, Any], backends: list[str], elsewhere: list[str]) -> list[str]:
    """Finds what is wrong with a user's hash, or with its absence."""
    if "password_hash" in spec and "file" not in backends:
        return ["is checked by nothing; add file to saltapi:backends"]
    if "password_hash" not in spec and not elsewhere:
        return ['missing; the backend file needs it ("openssl passwd -6" makes one)']
    return []

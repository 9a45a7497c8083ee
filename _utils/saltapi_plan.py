"""What Salt's master is told of operators: pure, from pillar to the settings of a drop-in.

A role becomes Salt's own list of who may call what. Each entry names one function between anchors, since Salt matches
the beginning alone, and the minion ids one by one, since Salt takes what stands there for a compound target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What pillar calls a backend's login at Salt: the module of that name in files/usr/lib/hypervisor-formula/master/auth.
EAUTH = "hypervisor"
_LOOPBACK = "127.0.0.1"
# In a folder that systemd makes for salt-api.
TOKENS = "/run/hypervisor-api/tokens.sock"
# Functions of the master's runner. Salt's lists know no hosts for these, so the runner has a table of its own.
_RUNNER = "fleet."

Given = Mapping[str, Sequence[str]]


def pattern(function: str) -> str:
    """Returns the expression that matches a function and nothing else."""
    escaped = function.replace(".", r"\.")
    return f"^{escaped}$"


def permissions(given: Given, roles: Mapping[str, Sequence[str]]) -> list[dict[str, list[str]]]:
    """Returns Salt's entries for one user or group.

    Args:
        given: roles by name, each with its hosts.
        roles: functions of each role.

    Returns:
        A list of mappings with one key each: the hosts, and what may be called on them; for the runner @runner.
    """
    found = []
    for role, hosts in given.items():
        functions = [function for function in roles[role] if not function.startswith(_RUNNER)]
        if functions:
            found.append({"L@" + ",".join(hosts): [pattern(function) for function in functions]})
    runners = fleet(given, roles)
    return [*found, {"@runner": [pattern(function) for function in runners]}] if runners else found


def fleet(given: Given, roles: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns the functions of the runner that one user or group may call, each with its hosts."""
    found: dict[str, set[str]] = {}
    for role, hosts in given.items():
        for function in roles[role]:
            if function.startswith(_RUNNER):
                found.setdefault(function, set()).update(hosts)
    return {function: sorted(found[function]) for function in sorted(found)}


def master(
    people: tuple[Mapping[str, Given], Mapping[str, Given]],
    roles: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    code: str,
    hashes: str,
) -> dict[str, Any]:
    """Returns the settings of the master's drop-in.

    Args:
        people: users and groups, each with their roles.
        roles: functions of each role.
        settings: the other keys of the pillar.
        code: the folder that holds the modules for logins and requests.
        hashes: the file of users' hashes.

    Returns:
        Settings of salt-master and salt-api.
    """
    users, groups = people
    who = {name: permissions(given, roles) for name, given in users.items()}
    # Salt knows a group by the sign behind its name.
    who.update({f"{name}%": permissions(given, roles) for name, given in groups.items()})
    used = {function for given in (*users.values(), *groups.values()) for role in given for function in roles[role]}
    runners = sorted(function for function in used if function.startswith(_RUNNER))
    tables = {
        kind: {name: table for name, given in named.items() if (table := fleet(given, roles))}
        for kind, named in (("users", users), ("groups", groups))
    }
    found: dict[str, Any] = {
        "netapi_enable_clients": ["local", "local_async", *(["runner_async"] if runners else [])],
        "netapi_dirs": [f"{code}/netapi"],
        "auth_dirs": [f"{code}/auth"],
        "external_auth": {EAUTH: who},
        "token_expire": settings["token_expire"],
        "token_expire_user_override": False,
        # What a minion may ask for by itself, and handshakes of old minions, are two ways in.
        "on_demand_ext_pillar": [],
        "minimum_auth_version": 3,
        "hypervisor_api": {
            "host": _LOOPBACK,
            "port": settings["port"],
            "thread_pool": settings["threads"],
            "queue_size": settings["queue"],
            "max_body": settings["max_body"],
            "functions": sorted(used.difference(runners)),
            "runners": runners,
            "fleet": tables,
            "backends": list(settings["backends"]),
            "hashes": hashes,
            "pam_service": settings["pam"]["service"],
            "reads": list(settings["reads"]),
            "audit": settings["audit"],
        },
    }
    inventory = settings["inventory"]
    if inventory["enabled"]:
        # Whoever serves the inventory may ask salt-api whose a token is, and nothing else.
        found["hypervisor_api"]["tokens"] = {"socket": TOKENS, "user": inventory["user"]}
        found["engines"] = [{"inventory": {"audit": settings["audit"], "reconcile": inventory["reconcile"]}}]
    found.update({f"auth.ldap.{key}": value for key, value in settings["ldap"].items()})
    return found


def hashes(given: Mapping[str, str]) -> str:
    """Returns the file of users' hashes."""
    lines = ["# Written by Salt (saltapi.config).", *(f"{name}:{text}" for name, text in sorted(given.items()))]
    return "\n".join(lines) + "\n"


def unsafe(version: str) -> str:
    """Says why operators must not log in at a Salt; empty where they may.

    Args:
        version: such as 3008.3.

    Returns:
        One sentence without its end.
    """
    try:
        major, minor = (int(part) for part in (*version.split("+", maxsplit=1)[0].split(".")[:2], "0")[:2])
    except ValueError:
        return f"the version {version} of Salt is not understood"
    # Before these a minion or a guest of one could become the master (CVE-2024-38824 to CVE-2025-22242).
    least = {3006: 12, 3007: 4, 3008: 3}
    if major < min(least):
        return f"Salt {version} gets no security fixes; 3006.12, 3008.3 or newer is needed"
    if minor < least.get(major, 0):
        broken = " (3008.0 to 3008.2 also lose logins)" if major == 3008 else ""
        return f"Salt {version} is known to be unsafe{broken}; {major}.{least[major]} or newer is needed"
    return ""

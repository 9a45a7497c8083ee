"""The lab's page: who may log in there, with passwords made for each lab, and the pillar that serves it.

None of this is in the formulas: they have no users.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .identity import DOMAIN
from .proc import CommandError, LabError, run

if TYPE_CHECKING:
    from .hosts import Hosts

# Each may do on all hypervisors what the role of that name may.
USERS = ("viewer", "operator", "admin")
RESTART = "hypervisor-formula-salt-restart.service"
MINION_RESTART = "hypervisor-formula-minion-restart.service"
# A hypervisor's pillar, with which the page shows what happens there as it does.
TELLING: dict[str, Any] = {"libvirt": {"events": {"enabled": True}}}
CA = "/etc/pki/web/ca-cert.pem"


def make_users() -> dict[str, dict[str, str]]:
    """Return new users: name to ``password`` and ``hash``."""
    users = {}
    for name in USERS:
        password = secrets.token_urlsafe(9)
        hashed = run(["openssl", "passwd", "-6", "-stdin"], stdin=f"{password}\n").stdout.strip()
        users[name] = {"password": password, "hash": hashed}
    return users


def names(hosts: Hosts) -> list[str]:
    """Return the names of the page: that of the controller and its address."""
    return [f"{hosts.controller}.{DOMAIN}", hosts.addresses[hosts.controller]]


def address(hosts: Hosts) -> str:
    """Return where a browser on this machine finds the page."""
    return f"https://{hosts.addresses[hosts.controller]}/"


def pillar(hosts: Hosts, users: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the controller's pillar of the page and of those who may log in."""
    people = {
        name: {"password_hash": user["hash"], "roles": {name: hosts.hypervisors} if hosts.hypervisors else {}}
        for name, user in users.items()
    }
    consoles = {name: hosts.addresses[name] for name in hosts.hypervisors}
    # Tests log in more often than persons.
    api = {"logins_per_minute": 60, "login_burst": 30}
    return {"saltapi": {"users": people}, "nginx": {"server_names": names(hosts), "consoles": consoles, "api": api}}


def settled(hosts: Hosts, timeout: float = 120) -> None:
    """Wait until a restart of the master that a highstate has announced is over.

    Raises:
        LabError: it is not within ``timeout`` seconds.
    """
    _over(hosts, hosts.controller, RESTART, timeout)


def minions_settled(hosts: Hosts, timeout: float = 120) -> None:
    """Wait until the same is over for the minions of hypervisors.

    Raises:
        LabError: it is not within ``timeout`` seconds.
    """
    for host in hosts.hypervisors:
        _over(hosts, host, MINION_RESTART, timeout)


def _over(hosts: Hosts, host: str, unit: str, timeout: float) -> None:
    """Wait until a unit that restarts something has ended on a host."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            state = hosts.run(host, ["systemctl", "is-active", unit], check=False, timeout=30).stdout
        except CommandError:
            state = "unknown"
        if state.strip() in {"inactive", "failed"}:
            return
        time.sleep(0.5)
    raise LabError(f"{unit} on {host} has not ended within {timeout:.0f} s")

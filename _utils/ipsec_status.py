"""What strongSwan says of the connections that openvswitch-ipsec has made, read by pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# openvswitch-ipsec names a connection after its tunnel, with a number that grows with each change, and for all but
# GRE with the direction.
_NAME = r"(?P<port>\S+?)(?P<way>-in|-out)?-(?P<version>\d+)"
_CHILD = re.compile(rf"^\s*{_NAME}\{{\d+\}}:\s+(?P<state>[A-Z]+)", re.MULTILINE)
_SILENT = "the other end does not answer"
_UNKNOWN = "the other end knows no tunnel with IPsec to this host, or wants other ciphers"
_REFUSED = (
    "the other end refuses the key or certificate: a key must be the same there, a certificate valid, of the same CA "
    "and in this host's name"
)
_FOREIGN = "the other end's certificate is of no CA that is trusted here, or in another name"
# Lines that say what is done, not how it went.
_STEPS = ("sending packet", "received packet", "generating ", "parsed ", "establishing connection")
_MOST = 200  # characters of what strongSwan says, which may be the other end's words
# What strongSwan reports of a try, and what that means.
_REASONS = (
    ("subject certificate invalid", "the other end's certificate has expired, or is not valid yet"),
    ("AUTHENTICATION_FAILED", _REFUSED),
    ("tried 1 shared key", "the other end has another key"),
    ("no shared key found", "there is no key for it here"),
    ("no private key found", "there is no private key for it here"),
    # Where an earlier certificate of that name is known, its key is tried next, and nothing else is said.
    ("no issuer certificate found", _FOREIGN),
    ("no trusted", _FOREIGN),
    ("constraint check failed", "the other end's certificate is in another name"),
    ("NO_PROPOSAL_CHOSEN", _UNKNOWN),
    ("TS_UNACCEPTABLE", "the other end has no such tunnel to this host"),
    ("peer not responding", _SILENT),
)


def silent() -> str:
    """Returns what is said of an end that does not answer."""
    return _SILENT


def excused(reason_of: str) -> bool:
    """Says whether a reason is that the other host is not there, or not set up yet: no fault of this one."""
    return reason_of in {_SILENT, _UNKNOWN}


class Connection(NamedTuple):
    """One connection of a tunnel.

    Attributes:
        name: as strongSwan calls it.
        version: grows with each change of the tunnel.
        routed: whether the kernel holds its policy, so that its packets need IPsec.
        installed: whether keys have been agreed on.
    """

    name: str
    version: int
    routed: bool
    installed: bool


def connections(text: str) -> dict[str, list[Connection]]:
    """Reads what ``ipsec status`` prints.

    Returns:
        The newest connections of each tunnel by its name: one for GRE, one for each direction for others.
    """
    seen: dict[str, dict[str, tuple[str, int, set[str]]]] = {}
    for match in _CHILD.finditer(text):
        port, way, version = match["port"], match["way"] or "", int(match["version"])
        name = f"{port}{way}-{version}"
        known = seen.setdefault(port, {}).get(way)
        if known is None or known[1] < version:
            known = seen[port][way] = (name, version, set())
        if known[1] == version:
            known[2].add(match["state"])
    return {
        port: [
            Connection(name, version, "ROUTED" in states, "INSTALLED" in states)
            for name, version, states in (ways[way] for way in sorted(ways))
        ]
        for port, ways in seen.items()
    }


def lacks(ports: Iterable[str], found: dict[str, list[Connection]]) -> list[Connection | str]:
    """Returns what is missing for tunnels: connections without keys, and names of tunnels that have none."""
    missing: list[Connection | str] = []
    for port in ports:
        if not found.get(port):
            missing.append(port)
        # Of the two directions of VXLAN and Geneve one alone may be in use: what is agreed on is the host's.
        elif not any(one.installed for one in found[port]):
            missing.append(found[port][0])
    return missing


def reason(text: str) -> str:
    """Returns why a try to agree on keys has failed, from what ``ipsec up`` printed; empty if it has not failed."""
    if "established successfully" in text:
        return ""
    for sign, meaning in _REASONS:
        if sign in text:
            return meaning
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(_STEPS)]
    # Only an end from which nothing has come is silent.
    if not said or not any(line.startswith("received packet") for line in lines):
        return _SILENT
    last = "".join(char if char.isprintable() else "?" for char in said[-1])
    return f"strongSwan could not agree with the other end: {last[:_MOST]}"

"""What ssh between hosts is made of: public keys, and the files that ssh and sshd read.

Pure functions of text. Nothing here reads a host.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run."
# What a host may hand in: a key pair of its own, and the keys by which its sshd proves who it is.
_PUBLIC = re.compile(
    r"(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) ([A-Za-z0-9+/]{40,2800}={0,2})\Z"
)
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
_HOST_KEYS_AT_MOST = 8
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z")


def is_id(text: object) -> bool:
    """Says whether something is a minion id as ``bootstrap`` takes it, and so the name of a file."""
    return isinstance(text, str) and bool(_ID.match(text))


def is_public(text: object) -> bool:
    """Says whether something is one public key, "type base64", whose body is of that type.

    There is no room in it for options, a comment or a second line.
    """
    found = _PUBLIC.match(text) if isinstance(text, str) else None
    if not found:
        return False
    try:
        body = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return False
    kind = found[1].encode("ascii")
    return body.startswith(len(kind).to_bytes(4, "big") + kind)


def public_of(line: str) -> str:
    """Returns the "type base64" of a ``.pub`` file's line, without its comment; empty if it is none."""
    text = " ".join(line.split()[:2])
    return text if is_public(text) else ""


def handed_in(entry: Any) -> str:
    """Says what is wrong with what a host hands in, {"user": key, "host": [keys]}; empty when nothing is."""
    if not isinstance(entry, Mapping) or set(entry) != {"user", "host"}:
        return "it is no mapping of user and host"
    if not is_public(entry["user"]):
        return "user is no public key"
    keys = entry["host"]
    if not isinstance(keys, list) or not 0 < len(keys) <= _HOST_KEYS_AT_MOST:
        return f"host is no list of 1 to {_HOST_KEYS_AT_MOST} public keys"
    if not all(is_public(key) for key in keys):
        return "host has an entry that is no public key"
    return ""


def called(host: str, where: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns all that a host is called: its id, names and addresses, in lower case and once each.

    Args:
        host: its minion id.
        where: its ``addresses`` and ``names``.
    """
    names = [host, *where.get("names", []), *addresses(where)]
    return list(dict.fromkeys(name.lower() for name in names))


def _is_address(text: Any) -> bool:
    """Says whether something is an IP address; Python takes any text behind a percent sign for an interface."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return isinstance(text, str) and "%" not in text


def refused(hosts: Any) -> str:
    """Says what is wrong with a list of hosts, for states that are called from a site's own SLS; or nothing.

    Pillar is held to the same by the schema. A word too many in one of these would end in a line of
    authorized_keys or of sshd's configuration.
    """
    if not isinstance(hosts, Mapping):
        return f"hosts: {hosts!r} is no mapping of minion ids"
    for host, where in hosts.items():
        if not is_id(host):
            return f"hosts: {host!r} is no minion id"
        if not isinstance(where, Mapping) or not set(where) <= {"addresses", "names"}:
            return f"hosts:{host}: {where!r} is no mapping of addresses and names"
        if not where.get("addresses"):
            return f"hosts:{host}:addresses: at least one is needed, since its key is good from there only"
        for address in where["addresses"]:
            if not _is_address(address):
                return f"hosts:{host}:addresses: {address!r} is no IP address"
        for name in where.get("names", []):
            if not isinstance(name, str) or not _NAME.match(name):
                return f"hosts:{host}:names: {name!r} is no host name"
    return ""


def others(hosts: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Returns the hosts of a list but this one; none at all if this one is not on it."""
    return {host: where for host, where in hosts.items() if host != own} if own in hosts else {}


def addresses(where: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a host's addresses in the form in which sshd writes them."""
    return [str(ipaddress.ip_address(address)) for address in where.get("addresses", [])]


def lines(
    hosts: Mapping[str, Mapping[str, Sequence[str]]],
    entries: Mapping[str, Mapping[str, Any]],
    before: tuple[str, str] = ("", ""),
) -> tuple[str, str]:
    """Returns the text of known_hosts and of authorized_keys.

    Each line ends with the id of its host. A host of which there is no entry keeps the lines that it had.

    Args:
        hosts: the addresses and names of the other hosts, by id.
        entries: what those hosts handed in, by id.
        before: the text of both files as they are.
    """
    known, authorized = [HEADER], [HEADER]
    for host in sorted(hosts):
        if host not in entries:
            known += _lines_of(host, before[0])
            authorized += _lines_of(host, before[1])
            continue
        names = ",".join(called(host, hosts[host]))
        known += [f"{names} {key} {host}" for key in sorted(entries[host]["host"])]
        where = ",".join(addresses(hosts[host]))
        # No forwarding of any kind: a shell, commands and copies are what hosts need of each other.
        authorized.append(f'restrict,pty,from="{where}" {entries[host]["user"]} {host}')
    return "\n".join(known) + "\n", "\n".join(authorized) + "\n"


def _lines_of(host: str, text: str) -> list[str]:
    """Returns the lines of a host in a file of ours."""
    return [line for line in text.splitlines() if not line.startswith("#") and line.split()[-1:] == [host]]


def client(hosts: Mapping[str, Mapping[str, Sequence[str]]], key: str, known: str) -> str:
    """Returns what ssh is told: root reaches root on these hosts with our key, if they prove who they are.

    Args:
        hosts: the addresses and names of the other hosts, by id.
        key: path of the private key.
        known: path of the known_hosts file; no other is believed.
    """
    names = [name for host in sorted(hosts) for name in called(host, hosts[host])]
    return "\n".join([
        HEADER,
        f"Match localuser root user root host {','.join(names)}",
        f"    IdentityFile {key}",
        f"    UserKnownHostsFile {known}",
        f"    GlobalKnownHostsFile {known}",
        "    StrictHostKeyChecking yes",
        "    UpdateHostKeys no",
        "    CheckHostIP no",
        "",
    ])  # fmt: skip


def server(hosts: Mapping[str, Mapping[str, Sequence[str]]], authorized: str) -> str:
    """Returns what sshd is told: from these hosts, root may also come with a key of our file.

    From anywhere else sshd behaves as before.

    Args:
        hosts: the addresses and names of the other hosts, by id.
        authorized: path of our authorized_keys file.
    """
    where = [address for host in sorted(hosts) for address in addresses(hosts[host])]
    return "\n".join([
        HEADER,
        f"Match User root Address {','.join(where)}",
        f"    AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 {authorized}",
        "    PubkeyAuthentication yes",
        "",
    ])  # fmt: skip


def setting(dump: str, key: str) -> list[str]:
    """Returns the words of a setting in the output of ``ssh -G`` or ``sshd -T``, [] if it is not there."""
    found: Iterable[list[str]] = (line.split() for line in dump.splitlines())
    return next((words[1:] for words in found if words and words[0].lower() == key), [])

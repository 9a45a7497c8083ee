"""The formats that a formula's schema may ask of text: addresses, host names, paths.

The library "jsonschema" knows more, and leaves some of them to packages that a minion has not.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Callable

Formats = dict[str, tuple[Callable[[str], bool], str]]


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    """Turns a parser that raises ValueError into a predicate."""

    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _network(text: str) -> object:
    """Parses ADDRESS/PREFIX without host bits; a bare address is no network."""
    if "/" not in text:
        raise ValueError(text)
    return ipaddress.ip_network(text)


def _interface(text: str) -> object:
    """Parses ADDRESS/PREFIX of a host in its network."""
    if "/" not in text:
        raise ValueError(text)
    return ipaddress.ip_interface(text)


def _uuid(text: str) -> object:
    """Parses a UUID in its usual form of 8-4-4-4-12 digits."""
    if [len(part) for part in text.split("-")] != [8, 4, 4, 4, 12] or not text.isascii():
        raise ValueError(text)
    return uuid.UUID(text)


_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z")


def _is_hostname(text: str) -> bool:
    """Says whether text is a host name of RFC 1123; four numbers are an address instead."""
    if len(text) > 253 or not all(_LABEL.match(label) for label in text.split(".")):
        return False
    return not text.rpartition(".")[2].isdigit()


def _is_mac(text: str) -> bool:
    """Says whether text is a MAC address of six octets with colons."""
    return _MAC.match(text) is not None


def _is_path(text: str) -> bool:
    """Says whether text is an absolute path without steps upwards, control characters or "//"."""
    if not text.startswith("/") or not text.isprintable():
        return False
    return not {"", ".", ".."} & set(text[1:].split("/")) or text == "/"


FORMATS: Formats = {
    "ipv4": (_parses(ipaddress.IPv4Address), "an IPv4 address such as 192.0.2.10"),
    "ipv6": (_parses(ipaddress.IPv6Address), "an IPv6 address such as 2001:db8::10"),
    "ip": (_parses(ipaddress.ip_address), "an IP address such as 192.0.2.10 or 2001:db8::10"),
    "ip-network": (_parses(_network), "a network such as 192.0.2.0/24, without host bits"),
    "ip-interface": (_parses(_interface), "an address with its prefix such as 192.0.2.10/24"),
    "hostname": (_is_hostname, "a host name such as hv1.example.org"),
    "host": (
        lambda text: _is_hostname(text) or FORMATS["ip"][0](text),
        "a host name or an IP address",
    ),
    "mac": (_is_mac, "a MAC address such as 52:54:00:12:34:56"),
    "uuid": (_parses(_uuid), "a UUID such as 123e4567-e89b-12d3-a456-426614174000"),
    "absolute-path": (_is_path, "an absolute path such as /var/lib/libvirt"),
}


def table() -> Formats:
    """Lists the formats.

    Returns:
        For each name a predicate of the text, and in words what it allows, to follow "must be".
    """
    return dict(FORMATS)

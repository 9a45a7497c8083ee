"""What the schema cannot say of the page and its way in: ports and files that do not fit each other.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges the configuration of nginx/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    return [(f"nginx:{where}", text) for where, text in _errors(configuration)]


def _errors(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong, with the path below nginx."""
    ports, tls = configuration["ports"], configuration["tls"]
    if ports["http"] == ports["https"]:
        yield "ports:https", f"{ports['https']} is nginx:ports:http already"
    for key in ("certificate", "key"):
        if tls["source"] == "files" and not tls[key]:
            yield f"tls:{key}", "missing; nginx:tls:source files needs the path of the site's own"
        if tls["source"] == "pki" and tls[key]:
            yield f"tls:{key}", "is read with nginx:tls:source files alone; the files of pki are in /etc/pki/web"
    for position, name in enumerate(configuration["server_names"]):
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            continue
        if address.is_unspecified or address.is_multicast:
            yield f"server_names:{position}", f"{name} is no address of a host"

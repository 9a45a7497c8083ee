"""Finds what carries the connection to the master: the way on which the kernel would send to it now."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

# ``ovs_tools.run``: takes a program with its arguments and returns what it wrote.
Run = Callable[..., str]
# Seconds for looking up one name.
_LOOKUP = 10
_DEFAULTS = (("-4", "route", "show", "default"), ("-6", "route", "show", "default"))


def carriers(run: Run, masters: Sequence[str]) -> list[str]:
    """Returns the devices that carry the connection to the masters, with everything below them.

    Without masters, or where none is found, these are the devices of the default routes of both families.

    Args:
        run: ``ovs_tools.run``.
        masters: names or addresses.

    Returns:
        Names of devices; a VLAN stands for its link as well, a bridge or a bond of the kernel for its ports.
    """
    ways = [("route", "get", address) for master in masters for address in _addresses(run, master)]
    found = _devices(run, ways) or _devices(run, _DEFAULTS)
    return sorted(_chain(_asked(run, ("link", "show")), found))


def _addresses(run: Run, master: str) -> list[str]:
    """Returns the addresses of a master as this host looks them up; none for a name that nobody knows."""
    try:
        return [str(ipaddress.ip_address(master))]
    except ValueError:
        pass
    try:
        said = run(["getent", "ahosts", master], timeout=_LOOKUP, ok=range(256))
    except CommandExecutionError:
        return []
    return list(dict.fromkeys(line.split()[0] for line in said.splitlines() if line.strip()))


def _asked(run: Run, words: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what ip prints; nothing where it has no answer, such as for a network without a route."""
    try:
        found = json.loads(run(["ip", "-json", *words], ok=range(256)))
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _devices(run: Run, ways: Iterable[Sequence[str]]) -> set[str]:
    """Returns the devices of routes, without that of the host to itself."""
    rows = [one for words in ways for route in _asked(run, words) for one in (route, *(route.get("nexthops") or ()))]
    return {str(one["dev"]) for one in rows if one.get("dev")} - {"lo"}


def _chain(links: Sequence[dict[str, Any]], devices: Iterable[str]) -> Iterator[str]:
    """Yields devices with everything that they stand on, each once."""
    known: set[str] = set()
    todo = list(devices)
    while todo:
        name = todo.pop()
        if name in known:
            continue
        known.add(name)
        yield name
        todo += [str(one["ifname"]) for one in links if one.get("master") == name]
        todo += [one["link"] for one in links if one.get("ifname") == name and isinstance(one.get("link"), str)]

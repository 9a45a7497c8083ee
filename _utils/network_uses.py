"""Which parts of network/ a configuration uses where no single key says so: tunnels, and their encryption.

``formula.config`` adds what :func:`uses` returns below ``uses``, so that every SLS asks for the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TUNNELS = ("gre", "vxlan", "geneve")


def uses(configuration: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which parts are used.

    Args:
        configuration: what the schema and the rules have accepted.

    Returns:
        ``tunnels``, whether a tunnel or a mesh is declared and not absent; ``ipsec``, whether one of them is encrypted.
    """
    sealed = [one.get("ipsec", True) for one in _tunnels(configuration)]
    return {"tunnels": bool(sealed), "ipsec": any(sealed)}


def _tunnels(configuration: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields meshes and tunnels that are not declared absent."""
    yield from _present(configuration["mesh"])
    for bridge in _present(configuration["ovs"]["bridges"]):
        yield from (one for one in _present(bridge.get("ports") or {}) if one.get("type") in _TUNNELS)


def _present(specs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns what is not declared absent."""
    return [one for one in specs.values() if one.get("ensure") != "absent"]

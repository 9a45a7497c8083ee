"""What the schema cannot say of guests that the cluster runs, as far as pillar ``libvirt`` tells it.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes. What takes the
cluster's pillar too, such as where disks are, the state of such a guest judges (``cluster_guests``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Spec = Mapping[str, Any]

# The guest is a resource of Pacemaker, whose names are ids of XML.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_OTHERS = ("affinity", "anti_affinity", "after")


def errors(configuration: Spec) -> Errors:
    """Judges guests with ``ha`` in the configuration of libvirt/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    guests = configuration.get("guests") or {}
    known = [name for name, spec in guests.items() if spec.get("ha") and spec.get("ensure") != "absent"]
    found: Errors = []
    for name in known:
        found += [(f"libvirt:guests:{name}:{where}", text) for where, text in _guest(name, guests[name], known)]
    return found


def _guest(name: str, spec: Spec, known: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what does not go with the cluster."""
    ensure = spec.get("ensure", "running")
    if not _NAME.fullmatch(name):
        yield "ha", f"{name} is no name for a resource; must be a letter or _, then letters, digits and _.-, at most 63"
    if ensure != "running":
        yield "ensure", f"{ensure} is not allowed with ha: the cluster runs it; hypervisor.shutdown stops it"
    if spec.get("autostart"):
        yield "autostart", "true is not allowed with ha: the cluster starts it, on one node"
    if (spec.get("cloud_init") or {}).get("minion"):
        yield "cloud_init:minion", (
            "not allowed with ha: the key would be on one node alone; let user_data bring salt-minion, and accept the "
            "key on the master"
        )
    for disk in spec.get("disks") or ():
        if disk.get("device") == "cdrom" and disk.get("image"):
            told = "not allowed with ha: only one node would have it; name a file that all have as source_file"
            yield f"disks:{disk['name']}:image", told
    yield from _others(name, spec["ha"] if isinstance(spec["ha"], Mapping) else {}, known)


def _others(name: str, options: Spec, known: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what is said of other guests that cannot be."""
    for key in _OTHERS:
        for other in options.get(key, ()):
            if other == name:
                yield f"ha:{key}", f"{other} is the guest itself"
            elif other not in known:
                listed = ", ".join(one for one in known if one != name) or "none"
                yield f"ha:{key}", f"{other} is no guest with ha; must be some of: {listed}"
    both = sorted(set(options.get("affinity", ())) & set(options.get("anti_affinity", ())))
    if both:
        yield "ha:anti_affinity", f"{', '.join(both)} stands below affinity too"

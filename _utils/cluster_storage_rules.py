"""What the schema cannot say of sbd and shared storage: timeouts that do not fit, locks without fencing, disks in use.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Spec = Mapping[str, Any]

_TIMEOUT = 60.0  # seconds; Pacemaker's own stonith-timeout, which counts where pillar takes it out
_OFF = ("false", "no", "off", "0", "n")
_SANLOCK_MOST = 2000  # lvmlockd(8): a host's number is its place in the lease area
_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


def errors(configuration: Spec) -> Errors:
    """Judges sbd and shared storage in the configuration of cluster/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    nodes = [name for name, spec in configuration["nodes"].items() if spec.get("ensure") != "absent"]
    found: Errors = []
    if configuration["sbd"]["enabled"]:
        found += _sbd(configuration, nodes)
    found += _storage(configuration, nodes)
    found += _names(configuration)
    return [(f"cluster:{where}", text) for where, text in found]


def _seconds(value: Any) -> float:
    """Returns a time of Pacemaker in seconds; infinite for what is none, which Pacemaker itself judges."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", str(value).strip().lower())
    return int(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else float("inf")


def _sbd(configuration: Spec, nodes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what keeps sbd from switching off nodes in time."""
    sbd = configuration["sbd"]
    if not nodes:
        yield "sbd:enabled", "not allowed without nodes"
        return
    if not sbd["devices"] and len(nodes) < 3:
        yield "sbd:devices", (
            f"missing; with {len(nodes)} node{'s' * (len(nodes) != 1)} the watchdog alone cannot tell a lost node from "
            "a lost network: name a shared disk, or have three nodes"
        )
    if sbd["devices"] and sbd["msgwait"] < 2 * sbd["watchdog_timeout"]:
        told = f"must be at least {2 * sbd['watchdog_timeout']}, twice watchdog_timeout"
        yield "sbd:msgwait", f"{sbd['msgwait']} is too short: {told}, or a node counts as off before it is"
    yield from _times(configuration, nodes)


def _times(configuration: Spec, nodes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields timeouts that stand in pillar and do not go with those of sbd."""
    sbd, properties = configuration["sbd"], configuration["properties"]
    token = configuration["token"] + 650 * max(0, len(nodes) - 2)
    membership = -(-token * 22 // 10000)
    dead = sbd["msgwait"] if sbd["devices"] else 2 * sbd["watchdog_timeout"]
    delay = sbd["delay_max"] if sbd["devices"] else 0
    least = -(-dead * 12 // 10) + delay
    given = properties.get("stonith-timeout", f"{least}s")
    if (_TIMEOUT if given is None else _seconds(given)) < least:
        why = "1.2 times msgwait and delay_max" if sbd["devices"] else "2.4 times watchdog_timeout"
        told = f"{_TIMEOUT:.0f}s, which Pacemaker has without it," if given is None else given
        yield "properties:stonith-timeout", f"{told} is too short: must be {least}s, {why}"
    if _is_off(properties.get("stonith-enabled", True)):
        yield "properties:stonith-enabled", f"{properties['stonith-enabled']} is not allowed with sbd"
    own = 0 if sbd["devices"] else 2 * sbd["watchdog_timeout"]
    # Taken out, it is 0, by which Pacemaker has no watchdog.
    watchdog = properties.get("stonith-watchdog-timeout", own) or 0
    if sbd["devices"] and _seconds(watchdog) > 0:
        yield "properties:stonith-watchdog-timeout", f"{watchdog} is not allowed with sbd:devices; must be 0"
    if _seconds(watchdog) < own:
        told = f"must be {own}s, twice sbd:watchdog_timeout"
        yield "properties:stonith-watchdog-timeout", f"{watchdog} is too short: {told}"
    needed = membership + dead + delay
    if 0 < sbd.get("start_delay", 0) < needed:
        parts = f"token and consensus ({membership}), the time until a node counts as off ({dead}), delay_max ({delay})"
        yield "sbd:start_delay", f"{sbd['start_delay']} is too short: must be 0 or {needed}, the sum of {parts}"


def _is_off(value: Any) -> bool:
    """Says whether a property is switched off, or taken out."""
    return value is None or str(value).lower() in _OFF


def _storage(configuration: Spec, nodes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields locks that nothing protects, and disks that are two things."""
    storage = configuration["storage"]
    if storage["volume_groups"] and not storage["lock_manager"]:
        told = "missing; must be dlm or sanlock, or two nodes could change one volume group at once"
        yield "storage:lock_manager", told
    if storage["lock_manager"]:
        yield from _fencing(configuration, nodes)
    if storage["lock_manager"] == "sanlock":
        yield from _sanlock(configuration, nodes)
    owners: dict[str, str] = dict.fromkeys(configuration["sbd"]["devices"], "cluster:sbd:devices")
    for name, spec in storage["volume_groups"].items():
        where = f"storage:volume_groups:{name}:devices"
        for device in spec["devices"]:
            own = f"cluster:{where}"
            if owners.setdefault(device, own) != own:
                yield where, f"{device} is there twice: it stands below {owners[device]} already"


def _sanlock(configuration: Spec, nodes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what sanlock cannot have."""
    if configuration["sbd"]["enabled"]:
        yield "storage:lock_manager", (
            "sanlock is not allowed with cluster:sbd:enabled: each would need the watchdog for itself; take dlm, or "
            "fence devices of another kind below cluster:stonith"
        )
    for name in nodes:
        number = configuration["nodes"][name]["id"]
        if number > _SANLOCK_MOST:
            yield f"nodes:{name}:id", f"{number} is too large for sanlock; must be at most {_SANLOCK_MOST}"


def _fencing(configuration: Spec, nodes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what lets a lost node go on writing."""
    properties = configuration["properties"]
    if not nodes:
        yield "storage:lock_manager", "not allowed without nodes"
    covered = {
        target
        for spec in configuration["stonith"].values()
        if spec.get("ensure") != "absent"
        for target in spec.get("targets", ())
    }
    missing = [] if configuration["sbd"]["enabled"] else sorted(set(nodes) - covered)
    way = "" if configuration["storage"]["lock_manager"] == "sanlock" else ", or set cluster:sbd:enabled: true"
    if missing:
        yield "storage:lock_manager", (
            f"{configuration['storage']['lock_manager']} needs fencing, but no device below cluster:stonith has as "
            f"target: {', '.join(missing)}; declare one{way}"
        )
    if _is_off(properties.get("stonith-enabled", True)):
        told = f"{properties['stonith-enabled']} is not allowed with storage:lock_manager"
        yield "properties:stonith-enabled", f"{told}: a lost node could go on writing"
    policy = properties.get("no-quorum-policy", "freeze")
    if policy != "freeze" and configuration["storage"]["lock_manager"] == "dlm":
        yield "properties:no-quorum-policy", (
            f"{policy} is not allowed with storage:lock_manager; must be freeze: without quorum nothing can be "
            "stopped, since the locks do not answer"
        )


def _names(configuration: Spec) -> Iterator[tuple[str, str]]:
    """Yields names of pillar that the formula gives itself."""
    own: dict[str, str] = {}
    if configuration["sbd"]["enabled"] and configuration["sbd"]["devices"]:
        own["fence_sbd"] = "sbd"
    if configuration["storage"]["lock_manager"] == "dlm":
        own |= dict.fromkeys(("dlm", "lvmlockd", "locking"), "storage:lock_manager")
    for group, spec in configuration["storage"]["volume_groups"].items():
        where = f"storage:volume_groups:{group}:volumes"
        own |= {f"{group}-{volume}": f"{where}:{volume}" for volume in spec.get("volumes", ())}
    for kind in ("stonith", "resources", "groups"):
        for name in configuration[kind]:
            if name in own:
                yield f"{kind}:{name}", f"not allowed; this is what comes of cluster:{own[name]}"

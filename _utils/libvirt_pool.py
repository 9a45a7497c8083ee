"""What a storage pool must be, what it is, and the steps between: no command is run here.

A definition is compared by what the pillar decides (type, source and target); what libvirt fills in
(uuid, figures, permissions as it found them) and what somebody added beside (mount options, a
secret's name) is no difference, and stays when the pool is defined anew.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any, NamedTuple

# What libvirt measured, and what of a definition the pillar decides about.
_FIGURES = ("capacity", "allocation", "available")
_OWNED = {"dir": (), "netfs": ("host", "dir", "format", "protocol"), "logical": ("name", "format", "device")}
NEW_FOLDER = {"mode": "0711", "owner": 0, "group": 0}


class Facts(NamedTuple):
    """What a host says about a pool.

    Attributes:
        config: the XML that the next start uses; None where libvirt does not know the pool.
        live: the XML in use; None when the pool does not run.
        persistent: whether it is kept when it stops.
        autostart: whether libvirt starts it by itself.
        folder: mode, owner and group of the target's folder; None where there is none. Not looked at
            while something is mounted there: the server might be gone.
        mounted: whether the target is a mount point; of network file systems only.
        group: whether the volume group exists; of logical pools only.
        users: names of running guests that use it, once somebody has asked.
    """

    config: str | None = None
    live: str | None = None
    persistent: bool = True
    autostart: bool = False
    folder: Mapping[str, Any] | None = None
    mounted: bool = False
    group: bool = False
    users: tuple[str, ...] = ()


class Step(NamedTuple):
    """One thing to do: an action, its arguments, and what a state's changes say of it."""

    action: str
    arguments: tuple[Any, ...]
    changes: dict[str, Any]


class Plan(NamedTuple):
    """Steps in their order, and what has to wait; ``waits`` is empty when nothing does."""

    steps: tuple[Step, ...]
    waits: str = ""


def facts_of(**values: Any) -> Facts:
    """Collects what a host says; classes do not pass Salt's loader.

    Args:
        values: the attributes of Facts.

    Returns:
        Them, as :func:`plan` takes them.
    """
    return Facts(**values)


def wanted(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the normal form of what the pillar asks for.

    Args:
        name: the pool.
        spec: its pillar, judged by the schema.

    Returns:
        The values that decide, by name.
    """
    source = spec.get("source") or {}
    kind = spec["ptype"]
    if kind == "netfs":
        return {
            "type": kind,
            "target": spec["target"],
            "host": source["hosts"][0],
            "dir": source["dir"],
            "format": source.get("format", "auto"),
            "version": source.get("version"),
        }
    if kind == "logical":
        group = source.get("name", name)
        return {"type": kind, "target": spec.get("target", f"/dev/{group}"), "group": group}
    return {"type": kind, "target": spec["target"]}


def normal(text: str) -> dict[str, Any]:
    """Returns the normal form of libvirt's XML; of a type that is unknown here, type and target."""
    root = _parse(text)
    kind = root.get("type", "")
    form: dict[str, Any] = {"type": kind, "target": root.findtext("target/path")}
    if kind == "netfs":
        form |= {
            "host": _get(root, "source/host", "name"),
            "dir": _get(root, "source/dir", "path"),
            "format": _get(root, "source/format", "type") or "auto",
            "version": _get(root, "source/protocol", "ver"),
        }
    elif kind == "logical":
        form["group"] = root.findtext("source/name") or root.findtext("name")
    return form


def definition(name: str, spec: Mapping[str, Any], existing: str | None = None) -> str:
    """Writes the XML of a pool.

    Args:
        name: the pool.
        spec: its pillar.
        existing: the XML that it has; what the pillar does not decide about is taken over from it.

    Returns:
        XML for ``virsh pool-define``.
    """
    want = wanted(name, spec)
    root = ET.Element("pool", {"type": want["type"]})
    ET.SubElement(root, "name").text = name
    if existing is not None:
        old = _parse(existing)
        if old.get("type") == want["type"]:
            root = old
            for tag in _FIGURES:
                _drop(root, tag)
        else:
            ET.SubElement(root, "uuid").text = old.findtext("uuid")
    source = _child(root, "source")
    for tag in _OWNED[want["type"]]:
        _drop(source, tag)
    if want["type"] == "netfs":
        ET.SubElement(source, "host", {"name": want["host"]})
        ET.SubElement(source, "dir", {"path": want["dir"]})
        ET.SubElement(source, "format", {"type": want["format"]})
        if want["version"]:
            ET.SubElement(source, "protocol", {"ver": want["version"]})
    elif want["type"] == "logical":
        ET.SubElement(source, "name").text = want["group"]
        ET.SubElement(source, "format", {"type": "lvm2"})
    _child(_child(root, "target"), "path").text = want["target"]
    return ET.tostring(root, encoding="unicode")


def outdated(name: str, spec: Mapping[str, Any], facts: Facts) -> bool:
    """Says whether the pool has to be started anew: it runs by another definition, or is unmounted."""
    if facts.live is None:
        return False
    return normal(facts.live) != wanted(name, spec) or (spec["ptype"] == "netfs" and not facts.mounted)


def plan(name: str, spec: Mapping[str, Any], facts: Facts) -> Plan:
    """Finds the steps from what a host has to what the pillar asks for.

    Args:
        name: the pool.
        spec: its pillar; ``ensure`` is "running" or "defined".
        facts: what the host has.

    Returns:
        The steps. A pool that has to start anew while running guests use it waits, unless it is a
        folder, which guests have no need of libvirt for.
    """
    running = spec.get("ensure", "running") == "running"
    again = outdated(name, spec, facts)
    kinds = {spec["ptype"], *([normal(facts.live)["type"]] if facts.live else [])}
    held = again and kinds != {"dir"} and facts.users
    stop = again and not held
    start = (running and facts.live is None) or stop
    steps = list(_prepare(name, spec, facts, start=start)) if running else []
    # Defined first: what libvirt refuses stops nothing.
    steps += _define(name, spec, facts)
    if stop:
        steps.append(Step("virsh", ("pool-destroy", "--", name), {}))
    if start:
        old = "stopped" if facts.live is None else "running with another definition"
        steps.append(Step("start", (name,), {"state": {"old": old, "new": "running"}}))
    elif any(step.action == "folder" for step in steps):
        steps.append(Step("virsh", ("pool-refresh", "--", name), {}))
    autostart = spec.get("autostart", True)
    if autostart != facts.autostart:
        argv = ("pool-autostart", *(() if autostart else ("--disable",)), "--", name)
        steps.append(Step("virsh", argv, {"autostart": {"old": facts.autostart, "new": autostart}}))
    waits = f"in use by {', '.join(facts.users)}" if held else ""
    return Plan(tuple(steps), waits)


def _prepare(name: str, spec: Mapping[str, Any], facts: Facts, *, start: bool) -> list[Step]:
    """Finds what has to be there before the pool can start."""
    kind = spec["ptype"]
    if kind == "logical":
        group = wanted(name, spec)["group"]
        if not start or facts.group:
            return []
        devices = tuple((spec.get("source") or {}).get("devices", ()))
        return [Step("group", (group, devices), {"volume_group": {"old": None, "new": " ".join(devices)}})]
    if kind == "netfs":
        if not start or facts.mounted or facts.folder is not None:
            return []
        return [Step("folder", (spec["target"], {}), {"folder": {"old": None, "new": spec["target"]}})]
    want = {**NEW_FOLDER, **(facts.folder or {}), **(spec.get("permissions") or {})}
    if facts.folder == want:
        return []
    old = _permissions(facts.folder) if facts.folder is not None else None
    return [Step("folder", (spec["target"], want), {"folder": {"old": old, "new": _permissions(want)}})]


def _permissions(folder: Mapping[str, Any]) -> str:
    """Writes permissions as one text."""
    return f"{folder['mode']} {folder['owner']}:{folder['group']}"


def _define(name: str, spec: Mapping[str, Any], facts: Facts) -> list[Step]:
    """Finds the step that writes the definition."""
    want = wanted(name, spec)
    have = normal(facts.config) if facts.config is not None and facts.persistent else None
    if have == want:
        return []
    changes = {
        "definition": {
            key: {"old": (have or {}).get(key), "new": want.get(key)}
            for key in (want if have is None else {**have, **want})
            if (have or {}).get(key) != want.get(key)
        }
    }
    return [Step("define", (definition(name, spec, facts.config),), changes)]


def uses(domain: str, name: str, target: str) -> bool:
    """Says whether a guest has a disk, or another file, in a pool.

    Args:
        domain: the guest's XML.
        name: the pool.
        target: its path.

    Returns:
        Whether one of the guest's sources is a volume of the pool or lies below its target.
    """
    below = [target.rstrip("/") + "/"]
    if target.startswith("/dev/"):
        # The device mapper's own name of the same volumes.
        below.append(f"/dev/mapper/{target.removeprefix('/dev/').replace('-', '--')}-")
    for source in _parse(domain).iter("source"):
        if source.get("pool") == name:
            return True
        if any(source.get(key, "").startswith(tuple(below)) for key in ("file", "dev", "dir")):
            return True
    return False


def _parse(text: str) -> ET.Element:
    """Reads XML."""
    return ET.fromstring(text)  # noqa: S314  this host's own libvirt wrote it


def _get(root: ET.Element, path: str, attribute: str) -> str | None:
    """Returns an attribute of the element at a path; None if either is missing."""
    found = root.find(path)
    return None if found is None else found.get(attribute)


def _child(parent: ET.Element, tag: str) -> ET.Element:
    """Returns a child, made if there is none."""
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found


def _drop(parent: ET.Element, tag: str) -> None:
    """Takes away all children of a tag."""
    for found in parent.findall(tag):
        parent.remove(found)

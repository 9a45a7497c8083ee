"""What the schema cannot say of fencing, resources and constraints: names that lead nowhere, resources without fencing.

``formula.config`` asks :func:`errors` once the schema has accepted a pillar, before anything changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Errors = list[tuple[str, str]]
Spec = Mapping[str, Any]

_PLACEHOLDERS = ("changeme", "change-me", "change_me", "placeholder", "fix-me", "fixme", "xxxx", "secret", "password")
# What the formula or Pacemaker itself sets.
_OWN_PARAMETERS = ("pcmk_host_list",)
# The keys of constraints that name resources.
_RESOURCES_OF = {"locations": ("resource",), "orders": ("first", "then"), "colocations": ("resource", "with")}


def errors(configuration: Mapping[str, Any]) -> Errors:
    """Judges fence devices, resources, groups and constraints in the configuration of cluster/.

    Args:
        configuration: what the schema has accepted.

    Returns:
        Pairs of a pillar path and what is wrong there.
    """
    nodes = {name for name, spec in configuration["nodes"].items() if spec.get("ensure") != "absent"}
    devices, resources, groups = (_present(configuration[key]) for key in ("stonith", "resources", "groups"))
    found = list(_names(configuration))
    for name, spec in devices.items():
        found += [(f"stonith:{name}:{where}", text) for where, text in _device(name, spec, nodes)]
    for kind, specs in (("stonith", devices), ("resources", resources)):
        for name, spec in specs.items():
            found += [(f"{kind}:{name}:{where}", text) for where, text in _secrets(spec)]
    found += _groups(groups, resources)
    found += _fencing(configuration, nodes, devices, resources)
    known = {*devices, *resources, *groups, *_own(configuration)}
    found += _constraints(configuration["constraints"], nodes, known)
    return [(f"cluster:{where}", text) for where, text in found]


def _present(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Returns what is not declared absent."""
    return {name: spec for name, spec in specs.items() if spec.get("ensure") != "absent"}


def _listed(names: Any) -> str:
    """Returns names as a text."""
    return ", ".join(sorted(names)) or "none"


def _names(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields names that stand for two things: Pacemaker has one space for all."""
    owners: dict[str, str] = {}
    kinds = {key: configuration[key] for key in ("stonith", "resources", "groups")}
    kinds |= {f"constraints:{key}": specs for key, specs in configuration["constraints"].items()}
    for kind, specs in kinds.items():
        for name in specs:
            if owners.setdefault(name, kind) != kind:
                yield f"{kind}:{name}", f"the same name stands below cluster:{owners[name]}"
        if specs and not configuration["nodes"]:
            yield kind, "not allowed without nodes"


def _device(name: str, spec: Spec, nodes: set[str]) -> Iterator[tuple[str, str]]:
    """Yields what keeps a fence device from switching off its targets."""
    for key in ("targets", "runs_on"):
        for one in spec.get(key, ()):
            if one not in nodes:
                yield key, f"{one} is not among the nodes; must be some of: {_listed(nodes)}"
    where = set(spec.get("runs_on", nodes))
    for target in spec.get("targets", ()):
        if where <= {target}:
            yield "runs_on", f"{name} would run on {target} alone, and a host that hangs cannot switch itself off"
    for parameter in _OWN_PARAMETERS:
        if parameter in spec.get("parameters", {}):
            yield f"parameters:{parameter}", "not allowed; targets says it"


def _secrets(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields secrets that are none, or are there in plain too."""
    for name, value in spec.get("secrets", {}).items():
        if name in spec.get("parameters", {}):
            yield f"secrets:{name}", "the same parameter stands below parameters, where everybody can read it"
        if any(word in str(value).lower() for word in _PLACEHOLDERS):
            yield f"secrets:{name}", "is a placeholder; must be what the device takes"


def _groups(groups: Mapping[str, Spec], resources: Mapping[str, Spec]) -> Iterator[tuple[str, str]]:
    """Yields members of groups that are none, or in two."""
    owners: dict[str, str] = {}
    for name, spec in groups.items():
        for member in spec.get("resources", ()):
            where = f"groups:{name}:resources"
            if member not in resources:
                yield where, f"{member} is not among the resources; must be some of: {_listed(resources)}"
            elif owners.setdefault(member, name) != name:
                yield where, f"{member} is in the group {owners[member]} already"
            elif "clone" in resources[member]:
                yield where, f"{member} is a clone, which cannot be in a group; let the group be a clone"


def _fencing(
    configuration: Mapping[str, Any], nodes: set[str], devices: Mapping[str, Spec], resources: Mapping[str, Spec]
) -> Iterator[tuple[str, str]]:
    """Yields resources that could run twice, since nothing makes sure that a lost node has stopped."""
    needy = [name for name, spec in resources.items() if spec.get("requires", "fencing") in ("fencing", "unfencing")]
    if not needy:
        return
    enabled = configuration["properties"].get("stonith-enabled", True)
    way_out = "or set requires: quorum for a resource that may run twice without harm"
    if enabled is None or str(enabled).lower() in ("false", "no", "off", "0", "n"):
        told = f"{enabled} is not allowed with resources that need fencing: {_listed(needy)}"
        yield "properties:stonith-enabled", f"{told}; {way_out}"
        return
    covered = {target for spec in devices.values() for target in spec.get("targets", ())}
    covered |= nodes if configuration["sbd"]["enabled"] else set()
    if nodes - covered and (len(nodes) > 1 or not devices):
        for name in sorted(needy):
            told = f"needs fencing, but no device below cluster:stonith has as target: {_listed(nodes - covered)}"
            yield f"resources:{name}", f"{told}; {way_out}"


def _own(configuration: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names of resources that come of sbd and storage."""
    if configuration["sbd"]["enabled"] and configuration["sbd"]["devices"]:
        yield "fence_sbd"
    if configuration["storage"]["lock_manager"] == "dlm":
        yield from ("dlm", "lvmlockd", "locking")
    for group, spec in configuration["storage"]["volume_groups"].items():
        yield from (f"{group}-{volume}" for volume in spec.get("volumes", ()))


def _constraints(constraints: Mapping[str, Any], nodes: set[str], known: set[str]) -> Iterator[tuple[str, str]]:
    """Yields constraints that speak of nodes or resources that are not declared."""
    for kind, keys in _RESOURCES_OF.items():
        for name, spec in _present(constraints.get(kind, {})).items():
            where = f"constraints:{kind}:{name}"
            for key in keys:
                if spec[key].removesuffix("-clone") not in known:
                    yield f"{where}:{key}", f"{spec[key]} is not declared; must be one of: {_listed(known)}"
            if len(keys) == 2 and spec[keys[0]] == spec[keys[1]]:
                yield f"{where}:{keys[1]}", f"{spec[keys[1]]} is the same resource twice"
            if "node" in spec and spec["node"] not in nodes:
                yield f"{where}:node", f"{spec['node']} is not among the nodes; must be one of: {_listed(nodes)}"

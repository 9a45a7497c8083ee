"""What Pacemaker is told of resources, fencing and constraints: a declaration laid over the live CIB.

What the declaration does not name stays as it is. Pure functions of XML texts and mappings; the state ``cib`` asks and
pushes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

Element = ElementTree.Element
# The value with which Pacemaker takes a parameter from a file of the host that needs it.
SECRET = "lrm://"  # noqa: S105 - says where a secret is, and is none
HIDDEN = "[hidden]"
EMPTY = "<cib><configuration><crm_config/><nodes/><resources/><constraints/></configuration></cib>"
_SETS = {
    "properties": ("crm_config", "cluster_property_set", "cib-bootstrap-options", "property"),
    "resource_defaults": ("rsc_defaults", "meta_attributes", "rsc-options", "resource default"),
    "operation_defaults": ("op_defaults", "meta_attributes", "op-options", "operation default"),
}
_CONSTRAINTS = {"locations": "rsc_location", "orders": "rsc_order", "colocations": "rsc_colocation"}
# How a constraint's keys in pillar are called in the CIB.
_KEYS = {
    "locations": {"resource": "rsc", "node": "node", "score": "score"},
    "orders": {
        "first": "first",
        "then": "then",
        "first_action": "first-action",
        "then_action": "then-action",
        "kind": "kind",
        "symmetrical": "symmetrical",
    },
    "colocations": {"resource": "rsc", "with": "with-rsc", "score": "score"},
}


class Result(NamedTuple):
    """A declaration laid over a CIB: the new text, and what differs by name, old and new."""

    text: str
    changes: dict[str, Any]


def text_of(value: Any) -> str:
    """Returns a value of pillar as Pacemaker writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def apply(live: str, declared: Mapping[str, Any], nodes: Mapping[str, str]) -> Result:
    """Lays a declaration over the live CIB.

    Args:
        live: what ``cibadmin --query`` prints.
        declared: ``properties``, ``resource_defaults``, ``operation_defaults``, ``stonith``, ``resources``, ``groups``
            and ``constraints`` of the pillar ``cluster``, with names of secrets instead of values.
        nodes: the name of each node by minion id.
    """
    root = ElementTree.fromstring(live)  # noqa: S314 - from Pacemaker on this host
    before = view(root)
    new = copy.deepcopy(root)
    configuration = new.find("configuration")
    if configuration is None:
        raise ValueError("the CIB has no configuration")
    for key in _SETS:
        _set(configuration, key, declared.get(key) or {})
    primitives = {**_devices(declared.get("stonith") or {}, nodes), **(declared.get("resources") or {})}
    _resources(_section(configuration, "resources"), primitives, declared.get("groups") or {})
    _constraints(_section(configuration, "constraints"), declared, nodes)
    after = view(new)
    secrets = {
        f"resource {name} parameter {secret}" for name, spec in primitives.items() for secret in spec.get("secrets", ())
    }
    changes = _differences(before, after, secrets)
    if changes:
        # A change from one version of the CIB to the next; if there is another by then, Pacemaker refuses it.
        new.attrib |= {"epoch": str(int(new.get("epoch", "0")) + 1), "num_updates": "0"}
    return Result(ElementTree.tostring(new, encoding="unicode"), changes)


def seen(live: str) -> dict[str, str]:
    """Returns what :func:`view` does, of a CIB's text."""
    return view(ElementTree.fromstring(live))  # noqa: S314 - from Pacemaker on this host


def uncounted(live: str, new: str) -> str:
    """Returns a changed CIB with the version that it had before, for a program that counts the change itself."""
    before, after = (ElementTree.fromstring(text) for text in (live, new))  # noqa: S314 - from Pacemaker on this host
    for key in ("epoch", "num_updates"):
        after.attrib.pop(key, None)
        if key in before.attrib:
            after.set(key, before.attrib[key])
    return ElementTree.tostring(after, encoding="unicode")


def _differences(before: Mapping[str, str], after: Mapping[str, str], secrets: Iterable[str]) -> dict[str, Any]:
    """Returns what differs; of a secret that stood plain in the CIB only that it did."""
    hidden = set(secrets)

    def shown(key: str, value: str | None) -> str | None:
        return HIDDEN if key in hidden and value not in (None, SECRET) else value

    return {
        key: {"old": shown(key, before.get(key)), "new": shown(key, after.get(key))}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }


# ---- what there is, by name ----


def view(root: Element) -> dict[str, str]:
    """Returns everything in a CIB that a declaration can speak of, by names for people."""
    found: dict[str, str] = {}
    for section, tag, _, name in _SETS.values():
        for pair in root.findall(f"configuration/{section}/{tag}/nvpair"):
            found[f"{name} {pair.get('name')}"] = pair.get("value", "")
    resources = root.find("configuration/resources")
    for element in resources if resources is not None else ():
        found |= _seen(element, "")
    for constraint in root.findall("configuration/constraints/*"):
        words = [f"{key}={value}" for key, value in sorted(constraint.attrib.items()) if key != "id"]
        words += [ElementTree.tostring(child, encoding="unicode").strip() for child in constraint]
        found[f"constraint {constraint.get('id')}"] = " ".join([constraint.tag, *words])
    return found


def _seen(element: Element, parent: str) -> dict[str, str]:
    """Returns what is to be seen of a resource, and of what is in it."""
    name = f"{'resource' if element.tag == 'primitive' else element.tag} {element.get('id')}"
    found = {f"{name} in": parent} if parent else {}
    if element.tag == "primitive":
        found[name] = agent_of(element)
    else:
        found[name] = ", ".join(child.get("id", "") for child in element if child.tag in _RESOURCES)
    for tag, word in (("instance_attributes", "parameter"), ("meta_attributes", "meta")):
        for pair in element.findall(f"{tag}/nvpair"):
            found[f"{name} {word} {pair.get('name')}"] = pair.get("value", "")
    for operation in element.findall("operations/op"):
        words = [f"{key}={value}" for key, value in sorted(_operation(operation).items())]
        found[f"{name} operation {operation.get('name')} {operation.get('interval', '0s')}"] = " ".join(words)
    for child in element:
        if child.tag in _RESOURCES:
            found |= _seen(child, str(element.get("id")))
    return found


_RESOURCES = ("primitive", "group", "clone", "master", "bundle")


def agent_of(primitive: Element) -> str:
    """Returns an agent as people write it, such as ``ocf:heartbeat:IPaddr2``."""
    return ":".join(filter(None, (primitive.get(key) for key in ("class", "provider", "type"))))


def _operation(operation: Element) -> dict[str, str]:
    """Returns what an operation says besides which one it is."""
    return {key: value for key, value in operation.attrib.items() if key not in ("id", "name", "interval")}


# ---- laying over ----


def _section(configuration: Element, tag: str) -> Element:
    """Returns a section of the configuration, made where it is missing."""
    found = configuration.find(tag)
    return ElementTree.SubElement(configuration, tag) if found is None else found


def _pairs(parent: Element, tag: str, identity: str, values: Mapping[str, Any], whole: bool) -> None:
    """Sets names and values below an element; with ``whole`` others go, and a value of None always does."""
    sets = parent.findall(tag)
    there = {pair.get("name", ""): (one, pair) for one in sets for pair in one.findall("nvpair")}
    for name, (one, pair) in there.items():
        if (whole and name not in values) or (name in values and values[name] is None):
            one.remove(pair)
    wanted = {name: text_of(value) for name, value in values.items() if value is not None}
    for name, value in wanted.items():
        if name in there:
            there[name][1].set("value", value)
            continue
        if not sets:
            sets = [ElementTree.Element(tag, id=identity)]
            parent.insert(_before_operations(parent, tag), sets[0])
        ElementTree.SubElement(sets[0], "nvpair", id=f"{sets[0].get('id')}-{name}", name=name, value=value)
    for one in sets:
        if not len(one) and tag != "cluster_property_set":
            parent.remove(one)


def _before_operations(parent: Element, tag: str) -> int:
    """Returns where a set of attributes stands: before operations and members, as the CIB's schema wants it."""
    if tag == "cluster_property_set":
        return len(parent)
    for place, child in enumerate(parent):
        if child.tag in ("operations", *_RESOURCES):
            return place
    return len(parent)


def _set(configuration: Element, key: str, values: Mapping[str, Any]) -> None:
    """Sets properties of the cluster or defaults."""
    section, tag, identity, _ = _SETS[key]
    if any(value is not None for value in values.values()) or configuration.find(section) is not None:
        _pairs(_section(configuration, section), tag, identity, values, whole=False)


def _devices(declared: Mapping[str, Any], nodes: Mapping[str, str]) -> dict[str, Any]:
    """Returns fence devices as resources."""
    found = {}
    for name, spec in declared.items():
        # Those of a device that goes may have left before it.
        kept = spec.get("targets", ()) if spec.get("ensure") != "absent" else ()
        targets = " ".join(nodes[one] for one in kept)
        parameters = {**({"pcmk_host_list": targets} if targets else {}), **spec.get("parameters", {})}
        found[name] = {**spec, "agent": f"stonith:{spec.get('agent', '')}", "parameters": parameters}
    return found


def _resources(section: Element, primitives: Mapping[str, Any], groups: Mapping[str, Any]) -> None:
    """Lays resources and groups over those that are there."""
    gone = [name for name, spec in {**primitives, **groups}.items() if spec.get("ensure") == "absent"]
    for name in gone:
        _remove(section, name)
    for name, spec in primitives.items():
        if name not in gone:
            _primitive(section, name, spec)
    for name, spec in groups.items():
        if name not in gone:
            _group(section, name, spec)
    members = {member for name, spec in groups.items() if name not in gone for member in spec["resources"]}
    for name, spec in {**primitives, **groups}.items():
        if name not in gone and name not in members:
            _wrap(section, name, spec.get("clone"))


def _parent(section: Element, child: Element) -> Element:
    """Returns what a resource is directly in."""
    return next(one for one in section.iter() if child in list(one))


def _named(section: Element, name: str) -> Element | None:
    """Returns a resource by its id, wherever it is."""
    return next((one for one in section.iter() if one.tag in _RESOURCES and one.get("id") == name), None)


def _primitive(section: Element, name: str, spec: Mapping[str, Any]) -> None:
    """Makes or alters a resource; its parameters and operations are owned whole, of its meta attributes some."""
    found = _named(section, name)
    if found is None:
        found = ElementTree.SubElement(section, "primitive", id=name)
    parts = spec["agent"].split(":")
    keys = ("class", "provider", "type") if len(parts) == 3 else ("class", "type")
    for key in ("class", "provider", "type"):
        found.attrib.pop(key, None)
    found.attrib.update(dict(zip(keys, parts, strict=True)))
    parameters = {**spec.get("parameters", {}), **dict.fromkeys(spec.get("secrets", ()), SECRET)}
    _pairs(found, "instance_attributes", f"{name}-instance_attributes", parameters, whole=True)
    meta = {**spec.get("meta", {}), **({"requires": spec["requires"]} if "requires" in spec else {})}
    _pairs(found, "meta_attributes", f"{name}-meta_attributes", meta, whole=False)
    _operations(found, name, spec.get("operations", []))


def _operations(primitive: Element, name: str, declared: list[Mapping[str, Any]]) -> None:
    """Makes the operations of a resource those that are declared; one that is the same keeps its id."""
    found = primitive.find("operations")
    before = {(one.get("name"), one.get("interval", "0s")): one for one in found} if found is not None else {}
    after = []
    for spec in declared:
        values = {key: text_of(value) for key, value in spec.items()}
        values.setdefault("interval", "0s")
        key = (values["name"], values["interval"])
        identity = before[key].get("id", "") if key in before else f"{name}-{key[0]}-{key[1]}"
        after.append(ElementTree.Element("op", {"id": identity, **values}))
    if found is not None:
        primitive.remove(found)
    if after:
        found = ElementTree.SubElement(primitive, "operations")
        found.extend(after)


def _group(section: Element, name: str, spec: Mapping[str, Any]) -> None:
    """Makes or alters a group; members that others have put into it stay behind the declared ones."""
    found = _named(section, name)
    if found is None:
        found = ElementTree.SubElement(section, "group", id=name)
    named = [_named(section, member) for member in spec["resources"]]
    members: list[Element] = [one for one in named if one is not None]
    wanted = [*members, *(one for one in found.findall("primitive") if one not in members)]
    if found.findall("primitive") != wanted:
        for member in wanted:
            holder = _parent(section, member)
            holder.remove(member)
            _tidy(section, holder, found)
        found.extend(wanted)
    _pairs(found, "meta_attributes", f"{name}-meta_attributes", spec.get("meta", {}), whole=False)


def _tidy(section: Element, holder: Element, but: Element | None = None) -> None:
    """Removes a group or clone from which the last resource was taken, and what that was in."""
    while holder is not section and holder is not but and not [one for one in holder if one.tag in _RESOURCES]:
        above = _parent(section, holder)
        above.remove(holder)
        holder = above


def _wrap(section: Element, name: str, clone: Mapping[str, Any] | None) -> None:
    """Makes a resource a clone, or takes it out of one."""
    found = _named(section, name)
    if found is None:
        return
    holder = _parent(section, found)
    if clone is not None and holder.tag not in ("clone", "master"):
        place = list(holder).index(found)
        holder.remove(found)
        wrapped = ElementTree.Element("clone", id=f"{name}-clone")
        wrapped.append(found)
        holder.insert(place, wrapped)
        holder = wrapped
    if clone is not None:
        _pairs(holder, "meta_attributes", f"{holder.get('id')}-meta_attributes", clone, whole=False)
    elif holder is not section:
        holder.remove(found)
        section.append(found)
        _tidy(section, holder)


def _remove(section: Element, name: str) -> None:
    """Removes a resource, and what it was the last one in. What is in a group that goes stays by itself, as it is."""
    found = _named(section, name)
    if found is not None:
        holder = _parent(section, found)
        if found.tag == "group":
            top = next(one for one in section if found in list(one.iter()))
            for member in found.findall("primitive"):
                found.remove(member)
                section.insert(list(section).index(top), member)
        holder.remove(found)
        _tidy(section, holder)


# ---- constraints ----


def _constraints(section: Element, declared: Mapping[str, Any], nodes: Mapping[str, str]) -> None:
    """Lays constraints over those that are there, and removes what speaks of resources that are gone."""
    wanted = dict(_wanted(declared, nodes))
    there = {one.get("id"): one for one in section}
    for identity, element in wanted.items():
        found = there.get(identity)
        if found is None and element is not None:
            section.append(element)
        elif found is not None and element is None:
            section.remove(found)
        elif found is not None and element is not None:
            found.tag = element.tag
            found.attrib.clear()
            found.attrib.update(element.attrib)
            for child in list(found):
                found.remove(child)
    gone = {
        name
        for key in ("stonith", "resources", "groups")
        for name, spec in (declared.get(key) or {}).items()
        if spec.get("ensure") == "absent"
    }
    gone |= {f"{name}-clone" for name in gone}
    for element in list(section):
        if gone & {value for one in element.iter() for key, value in one.attrib.items() if key in _REFERENCES}:
            section.remove(element)


_REFERENCES = ("rsc", "with-rsc", "first", "then", "id")


def _wanted(declared: Mapping[str, Any], nodes: Mapping[str, str]) -> Iterator[tuple[str, Element | None]]:
    """Yields constraints by their id; None for one that is to be gone."""
    for kind, tag in _CONSTRAINTS.items():
        for identity, spec in ((declared.get("constraints") or {}).get(kind) or {}).items():
            if spec.get("ensure") == "absent":
                yield identity, None
                continue
            values = {name: text_of(spec[key]) for key, name in _KEYS[kind].items() if key in spec}
            if "node" in values:
                values["node"] = nodes[values["node"]]
            yield identity, ElementTree.Element(tag, {"id": identity, **values})
    for name, spec in (declared.get("stonith") or {}).items():
        for minion, node in nodes.items():
            identity = f"{name}-not-on-{node}"
            if spec.get("ensure") == "absent" or minion in spec.get("runs_on", nodes):
                yield identity, None
            else:
                values = {"id": identity, "rsc": name, "node": node, "score": "-INFINITY"}
                yield identity, ElementTree.Element("rsc_location", values)


def has(live: str, names: Iterable[str]) -> list[str]:
    """Returns those of some resources that are in a CIB.

    Args:
        live: what ``cibadmin --query`` prints.
        names: of resources.
    """
    resources = ElementTree.fromstring(live).find("configuration/resources")  # noqa: S314 - from Pacemaker on this host
    return [name for name in names if resources is not None and _named(resources, name) is not None]


def empty() -> str:
    """Returns the text of a CIB that has nothing."""
    return EMPTY


def signature(secret: str) -> bytes:
    """Returns what Pacemaker compares a secret's file with (cibsecret(8)), to notice one that is out of date."""
    return hashlib.md5(secret.encode("utf-8"), usedforsecurity=False).hexdigest().encode("ascii")

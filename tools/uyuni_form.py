"""Writes metadata/<formula>/form.yml, for Uyuni's "formulas with forms", from the formulas' schemas and defaults.

Uyuni looks for `/usr/share/salt-formulas/metadata/<formula>/` and `/srv/formula_metadata/<formula>/`, so the folder
`metadata/` can be copied there whole. ``make docs`` runs this; ``--check`` writes nothing and fails when a form
is stale.

What Uyuni does with a form, and so what is to be kept in mind here:

* A value that is not saved yet is its ``$default``, or else its ``$placeholder``: so there are no placeholders.
* ``$optional`` drops whatever Python takes for false, zero and false included. A value is optional here unless it has
  a default and an empty value of its own that means something else.
* An ``edit-group`` is a list or a mapping of texts, numbers or groups, and no deeper: no list of lists, no mapping
  of lists. A mapping has either named keys or free ones.

A key that no form can hold says so in its schema with ``$comment: pillar only``; any other shape is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from _utils import formula_schema, formula_vocabulary

from .pillar_reference import ABSENT, ROOT, Reference, formulas, load

PILLAR_ONLY = "pillar only"
SCALARS = ("string", "integer", "number", "boolean")
NUMBERS = {"integer", "number"}
COMBINED = ("oneOf", "anyOf", "allOf")
# Where Uyuni lists the formulas.
GROUP = "general_system_configuration"


class Place(NamedTuple):
    """Where a value stands.

    Attributes:
        path: of pillar.
        default: what defaults.yaml says, or ABSENT.
        overridden: what osmap.yaml says for some operating systems.
        example: what pillar.example says, or None.
        present: whether the mapping around it is there in every pillar of the form.
        needed: whether that mapping is incomplete without it.
    """

    path: tuple[str, ...]
    default: Any = ABSENT
    overridden: Sequence[Any] = ()
    example: Any = None
    present: bool = True
    needed: bool = False

    def refused(self, what: str) -> ValueError:
        """Says that no form can hold this, and what to do."""
        name = formula_schema.render_path(self.path)
        return ValueError(f"{name}: a form can't hold {what}; `$comment: {PILLAR_ONLY}` in the schema leaves it out")


class Form:
    """Turns the keys of one formula into a form.

    Args:
        root: the repository.
        formula: the formula's name.

    Attributes:
        left_out: the paths of keys that the schema leaves to pillar.

    Raises:
        ValueError: the schema is wrong.
    """

    def __init__(self, root: Path, formula: str) -> None:
        self.formula = formula
        self.reference = Reference(root, formula)
        example = root / "pillar.example"
        self.example = load(example).get(formula) if example.exists() else None
        self.left_out: list[str] = []

    def layout(self) -> dict[str, Any]:
        """Returns the form.

        Raises:
            ValueError: a key's shape is none that a form can hold; the message says which key and what to do.
        """
        overridden = [part for grain in self.reference.osmap.values() for part in (grain or {}).values()]
        place = Place((self.formula,), self.reference.defaults, overridden, self.example)
        return {self.formula: self._group(self.reference.resolved(self.reference.schema), place)}

    def _element(self, schema: Any, place: Place) -> dict[str, Any] | None:
        """Returns the element for one value; None for one that pillar alone can hold."""
        schema = self.reference.resolved(schema)
        if schema.get("$comment") == PILLAR_ONLY:
            self.left_out.append(formula_schema.render_path(place.path))
            return None
        if place.default is None:
            place = place._replace(default=ABSENT)
        if place.default is ABSENT and not place.overridden:
            place = place._replace(default=schema.get("default", ABSENT))
        kind = self._kind(schema, place)
        schema = self._branch(schema, kind)
        make = {"object": self._mapping, "array": self._list}.get(kind)
        element = make(schema, place) if make else self._scalar(schema, kind, place)
        words = " ".join(schema.get("description", "").split())
        return element if "$help" in element or not words else {**element, "$help": words}

    def _kind(self, schema: dict[str, Any], place: Place) -> str:
        """Chooses one type for a value that may have several."""
        types = self._types(schema)
        fitting = [name for name in types if _is(place.default, name)]
        # Text can say any number, but neither true nor a list.
        order = [*fitting, *(name for name in ("object", "array", "string", *SCALARS) if name in types)]
        if not order:
            raise place.refused("a value without a type")
        return order[0]

    def _types(self, schema: dict[str, Any]) -> list[str]:
        """Lists the types that a schema allows, null aside."""
        declared = schema.get("type", [])
        types = [declared] if isinstance(declared, str) else list(declared)
        if not types and _has_keys(schema):
            types = ["object"]
        if not types and ("enum" in schema or "const" in schema):
            values = schema.get("enum", [schema.get("const")])
            types = [name for name in SCALARS if any(_is(value, name) for value in values)]
        if not types:
            types = [name for one in self._branches(schema) for name in self._types(one)]
        return [name for name in dict.fromkeys(types) if name != "null"]

    def _branches(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the alternatives of a schema."""
        return [self.reference.resolved(one) for word in COMBINED for one in schema.get(word, [])]

    def _branch(self, schema: dict[str, Any], kind: str) -> dict[str, Any]:
        """Returns the part of a schema that speaks of a type: the schema, or one of its alternatives."""
        if not (_has_keys(schema) or any(word in schema for word in ("type", "enum", "const"))):
            for one in self._branches(schema):
                if kind in self._types(one):
                    own = {key: value for key, value in schema.items() if key not in COMBINED}
                    return self._branch({**one, **own}, kind)
        return schema

    def _refuses(self, schema: dict[str, Any], value: Any) -> bool:
        """Says whether a schema refuses a value."""
        whole = {**schema, "$defs": self.reference.schema.get("$defs", {})}
        return bool(formula_schema.Validator(whole, formula_vocabulary.load(whole)).faults(value))

    def _scalar(self, schema: dict[str, Any], kind: str, place: Place) -> dict[str, Any]:
        """Returns a field."""
        known = not (place.default is ABSENT or place.overridden)
        if schema.get("writeOnly"):
            return {"$type": "password", **({"$required": True} if place.needed else {"$optional": True})}
        if kind == "boolean":
            # Without a default, unticked means what the formula does by itself.
            element: dict[str, Any] = {"$type": "boolean", "$default": known and place.default is True}
            return element if place.needed or (known and place.present) else {**element, "$optional": True}
        empty: Any = 0 if kind in NUMBERS else ""
        texts = [value for value in schema.get("enum", ()) if isinstance(value, str)]
        if kind in NUMBERS:
            element = {"$type": "number"}
            limits = {"$min": schema.get("minimum"), "$max": schema.get("maximum")}
            element |= {name: value for name, value in limits.items() if value is not None}
        elif texts:
            texts = texts if known or place.needed else ["", *texts]
            element = {"$type": "select", "$values": texts, "$default": texts[0]}
        else:
            element = {"$type": "text"}
        if known:
            element["$default"] = place.default
        may_be_empty = not self._refuses(schema, empty)
        if place.needed and not may_be_empty:
            element["$required"] = True
        elif not place.needed and not (known and place.present and may_be_empty and place.default != empty):
            # Otherwise an empty field says something else than the default.
            element["$optional"] = True
        return element

    def _list(self, schema: dict[str, Any], place: Place) -> dict[str, Any]:
        """Returns a list of fields or of groups."""
        items = self.reference.resolved(schema.get("items") or {})
        # The page begins with one empty entry, which must be nothing unless it is a group.
        below = Place((*place.path, "<number>"), needed="object" in self._types(items))
        prototype = self._element(items, below)
        if prototype is None or prototype["$type"] == "edit-group":
            raise place.refused("a list of lists or of mappings with free keys")
        element: dict[str, Any] = {"$type": "edit-group", "$prototype": _plain(prototype)}
        if "name" in prototype:
            element["$itemName"] = "${name}"
        if "maxItems" in schema:
            element["$maxItems"] = schema["maxItems"]
        if place.default and place.default is not ABSENT and not place.overridden:
            element["$default"] = place.default
            if place.present and not self._refuses(schema, []):
                return {**element, "$ifEmpty": []}
        return {**element, "$optional": True}

    def _mapping(self, schema: dict[str, Any], place: Place) -> dict[str, Any]:
        """Returns a group of named keys, or a mapping with free keys."""
        free = self._free(schema)
        types = {name for below in free.values() for name in self._types(below)}
        # A field has one type: text would turn true and 5 into "true" and "5".
        if "properties" in schema or ("boolean" in types and len(types) > 1):
            return self._group(schema, place)
        if not free:
            raise place.refused("a mapping without known keys")
        inside = Place((*place.path, "<name>"), needed=True)
        prototypes = [self._element(self._single(below), inside) for below in free.values()]
        if any(one is None or one["$type"] == "edit-group" for one in prototypes):
            raise place.refused("a mapping of lists or of mappings with free keys")
        first, *others = map(_plain, filter(None, prototypes))
        if any(one["$type"] != first["$type"] for one in others):
            raise place.refused("a mapping of several types")
        key = {"$type": "text", "$name": "Name"}
        element = {"$type": "edit-group", "$itemName": "${$key}", "$prototype": {"$key": key, **first}}
        if place.default and place.default is not ABSENT and not place.overridden:
            element["$default"] = place.default
        return {**element, "$optional": True}

    def _single(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Returns a schema without its lists and mappings if it has anything else: a list of one is written alone."""
        single = [name for name in self._types(schema) if name in SCALARS]
        return {**schema, "type": single} if single and "type" in schema else schema

    def _free(self, schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Returns the schemas of keys without a fixed name, by pattern."""
        free = {key: self.reference.resolved(below) for key, below in schema.get("patternProperties", {}).items()}
        if isinstance(schema.get("additionalProperties"), Mapping):
            free[""] = self.reference.resolved(schema["additionalProperties"])
        return free

    def _group(self, schema: dict[str, Any], place: Place) -> dict[str, Any]:
        """Returns a group of named keys; of free ones those that the defaults or pillar.example show."""
        default = place.default if isinstance(place.default, Mapping) else {}
        example = place.example if isinstance(place.example, Mapping) else {}
        named, free = dict(schema.get("properties", {})), self._free(schema)
        for key, value in {**example, **default}.items():
            fitting = [below for pattern, below in free.items() if re.search(pattern, key)]
            if key not in named and fitting:
                named[key] = {**fitting[0], "type": next(name for name in self._types(fitting[0]) if _is(value, name))}
        # Nested in an item that need not have it, a group is there only if something in it is.
        present = place.present and (place.needed or place.default is not ABSENT)
        alone = ["any other key"] if free else []
        fields = {}
        for key, below in named.items():
            made = self._element(below, Place(
                path=(*place.path, key),
                default=default.get(key, ABSENT),
                overridden=[part[key] for part in place.overridden if isinstance(part, Mapping) and key in part],
                example=example.get(key),
                present=present,
                needed=present and key in schema.get("required", ()),
            ))  # fmt: skip
            if made is None:
                alone.append(key)
            else:
                fields[key] = made
        words = " ".join(schema.get("description", "").split())
        words += f" In pillar alone: {', '.join(alone)}." if alone else ""
        return {"$type": "group", "$optional": True, **({"$help": words} if words else {}), **fields}


def _is(value: Any, name: str) -> bool:
    """Says whether a value is of a type of JSON Schema."""
    if isinstance(value, bool):
        return name == "boolean"
    python: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "array": list, "object": Mapping}
    return name in python and isinstance(value, python[name])


def _has_keys(schema: Mapping[str, Any]) -> bool:
    """Says whether a schema names keys, and so means a mapping."""
    return bool({"properties", "patternProperties"} & set(schema)) or isinstance(
        schema.get("additionalProperties"), Mapping
    )


def _plain(prototype: dict[str, Any]) -> dict[str, Any]:
    """Returns what stands for each entry of a list or mapping: whether it is there is not its own matter."""
    return {key: value for key, value in prototype.items() if key not in {"$optional", "$required"}}


def files(root: Path) -> dict[Path, str]:
    """Returns the files below metadata/ and their contents.

    Args:
        root: the repository.

    Raises:
        ValueError: a schema is wrong, or has a shape that no form can hold.
    """
    written = {}
    for formula in formulas(root):
        form = Form(root, formula)
        folder = root / "metadata" / formula
        head = f"# Written by `make docs` from {formula}/schema.yaml and {formula}/defaults.yaml.\n"
        options: dict[str, Any] = {"sort_keys": False, "width": 100, "allow_unicode": True}
        written[folder / "form.yml"] = head + yaml.dump(form.layout(), Dumper=_Dumper, **options)
        about = {"description": form.reference.schema.get("description", formula), "group": GROUP}
        written[folder / "metadata.yml"] = head + yaml.dump(about, Dumper=_Dumper, **options)
    return written


class _Dumper(yaml.SafeDumper):
    """Writes lists indented, as yamllint wants them, and nothing by reference."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002  yaml's own name
        """Indents a list below its key."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  yaml's own name
        """Writes what occurs twice twice."""
        return True


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command.

    Args:
        arguments: the command line; by default the program's.
        root: the repository.

    Returns:
        The exit code: 1 when something is wrong.
    """
    parser = argparse.ArgumentParser(description="Write metadata/*/form.yml from the schemas.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale or wrong")
    check = parser.parse_args(arguments).check
    try:
        wanted = files(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    status = 0
    here = {path for path in (root / "metadata").rglob("*") if path.is_file()}
    for path in sorted(here | set(wanted)):
        text = path.read_text(encoding="utf-8") if path.exists() else None
        if text == wanted.get(path):
            continue
        if check:
            print(f"{path.relative_to(root)} is stale: run `make docs` and commit it", file=sys.stderr)
            status = 1
        elif path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())

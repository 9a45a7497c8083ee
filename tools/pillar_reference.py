"""Writes docs/pillar.rst, the reference of every pillar key, from the formulas' schemas and defaults.

``--check`` writes nothing and fails when the page is stale, when a key lacks a description, when a default
breaks the schema, or when pillar.example does. ``make docs`` runs it, from the repository's folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from _utils import formula_config, formula_schema, formula_vocabulary

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pillar.rst"
HEAD = """\
Pillar reference
================

Every key, its type and limits, and its default. ``make docs`` writes this page from the formulas'
``schema.yaml`` and ``defaults.yaml``. A key that is not here, or a value that is not allowed, ends a run
before anything changes. "By OS" means that ``osmap.yaml`` has other defaults for some operating systems;
``test/golden/`` shows them all.
"""
ABSENT = object()
# A line with a key, or one that would have it without its comment mark.
KEY_LINE = re.compile(
    r"(?P<indent> *)(?:# ?)?(?P<more> *)(?P<dash>(?:- )*)"
    r"(?P<key>[A-Za-z0-9_./<>-]+|'[^']+'|\"[^\"]+\"):(?: +(?P<rest>.*))?"
)


class Key(NamedTuple):
    """One row of the reference: a pillar path, what is allowed, the default, a description."""

    path: str
    parts: tuple[str, ...]
    # Where the schema has it; the same for keys of a shape that stands in several places.
    origin: tuple[str, ...]
    allowed: str
    default: str
    description: str


def load(path: Path) -> Any:
    """Reads a YAML file; an empty one is an empty mapping."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def formulas(root: Path) -> list[str]:
    """Finds the formulas: folders with an init.sls and a schema.yaml."""
    found = (path.parent for path in root.glob("*/schema.yaml"))
    return sorted(folder.name for folder in found if (folder / "init.sls").exists())


class Reference:
    """Reads the keys of one formula out of its files.

    Args:
        root: the repository.
        formula: the formula's name.

    Raises:
        ValueError: the schema is wrong.
    """

    def __init__(self, root: Path, formula: str) -> None:
        self.formula = formula
        self.schema = load(root / formula / "schema.yaml")
        self.defaults = load(root / formula / "defaults.yaml")
        self.osmap = load(root / formula / "osmap.yaml")
        self._validator = formula_schema.Validator(self.schema, formula_vocabulary.load(self.schema))

    def rows(self) -> list[Key]:
        """Lists every key that the schema knows, in the schema's order."""
        overridden = [part for grain in self.osmap.values() for part in (grain or {}).values()]
        return list(self._walk(self.schema, (self.formula,), self.defaults, overridden, ()))

    def resolved(self, schema: Any) -> dict[str, Any]:
        """Replaces a reference by what it means; keys beside it win."""
        if not isinstance(schema, dict):
            return {}
        if "$ref" not in schema:
            return dict(schema)
        name = schema["$ref"].rpartition("/")[2]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**self.resolved(self.schema["$defs"][name]), **rest}

    def _walk(
        self, schema: Any, path: tuple[str, ...], default: Any, overridden: list[Any], origin: tuple[str, ...]
    ) -> Iterator[Key]:
        """Yields the keys below a schema."""
        for name, shown, below in self._children(self.resolved(schema)):
            own = (*origin, shown)
            inside = (below["$ref"],) if isinstance(below, Mapping) and "$ref" in below else own
            resolved = self.resolved(below)
            value = default.get(name, ABSENT) if isinstance(default, Mapping) else ABSENT
            other = [part[name] for part in overridden if isinstance(part, Mapping) and name in part]
            children = list(self._walk(resolved, (*path, shown), value, other, inside))
            yield Key(
                path=formula_schema.render_path((*path, shown)),
                parts=(*path, shown),
                origin=own,
                allowed=self._allowed(resolved),
                default=self._default(resolved, value, bool(other), bool(children)),
                description=" ".join(resolved.get("description", "").split()),
            )
            yield from children

    def _children(self, schema: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """Yields the name, the name to show and the schema of what is inside a value."""
        for name, below in schema.get("properties", {}).items():
            yield name, name, below
        for below in schema.get("patternProperties", {}).values():
            yield "", "<name>", below
        rest = schema.get("additionalProperties")
        if isinstance(rest, dict):
            yield "", "<name>", rest
        items = self.resolved(schema.get("items"))
        if "properties" in items:
            yield "", "<number>", items

    def _allowed(self, schema: dict[str, Any]) -> str:
        """Says what a value may be, and what a list's entries may be."""
        words = self._validator.describe(schema)
        items = self.resolved(schema.get("items"))
        if items and "list" in words:
            words += f"; each {self._validator.describe(items)}"
        return words

    @staticmethod
    def _default(schema: dict[str, Any], value: Any, by_os: bool, has_children: bool) -> str:
        """Shows the default as YAML would write it on one line."""
        if schema.get("writeOnly"):
            return "a secret" if value not in {ABSENT, None} else ""
        if value is ABSENT or (has_children and value):
            return ""
        text = "" if by_os and value in ([], {}, "", None) else f"``{json.dumps(value)}``"
        return " ".join(filter(None, (text, "by OS" if by_os else "")))


def escape(text: str) -> str:
    """Makes text safe in a cell of reStructuredText."""
    for char in "\\*`|_":
        text = text.replace(char, f"\\{char}")
    return text


def page(root: Path) -> str:
    """Writes the whole page.

    Args:
        root: the repository.

    Returns:
        reStructuredText.
    """
    parts = [HEAD]
    for formula in formulas(root):
        reference = Reference(root, formula)
        title = f"{formula}/"
        parts.append(f"\n{title}\n{'-' * len(title)}\n\n{reference.schema.get('description', '')}\n")
        parts.append("\n.. list-table::\n   :header-rows: 1\n   :widths: 28 30 14 28\n")
        parts.append("\n   * - key\n     - allowed\n     - default\n     - meaning\n")
        for key in reference.rows():
            cells = (f"``{key.path}``", escape(key.allowed), key.default, escape(key.description))
            rows = "\n     - ".join(cells).replace("- \n", "-\n").rstrip(" ")
            parts.append(f"   * - {rows}\n")
    return "".join(parts)


def shown_keys(text: str) -> set[tuple[str, ...]]:
    """Lists the paths of all keys in a YAML file, those of lines that are commented out too.

    A commented line counts where it would stand if its mark and one space were taken away.

    Args:
        text: the file.

    Returns:
        Paths without the numbers of list entries.
    """
    found = set(_paths(yaml.safe_load(text) or {}, ()))
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = KEY_LINE.fullmatch(line)
        if match:
            indent = len(match["indent"] + match["more"] + match["dash"])
            while above and above[-1][0] >= indent:
                above.pop()
            above.append((indent, match["key"].strip("'\"")))
            path = tuple(key for _, key in above)
            found.add(path)
            if (match["rest"] or "").startswith(("{", "[")):
                try:
                    found.update(_paths(yaml.safe_load(match["rest"]), path))
                except yaml.YAMLError:
                    continue  # the first of several lines
    return found


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields the paths of all keys inside a value."""
    items = value.items() if isinstance(value, Mapping) else ()
    for key, below in items:
        yield (*path, str(key))
        yield from _paths(below, (*path, str(key)))
    for below in value if isinstance(value, list) else ():
        yield from _paths(below, path)


def not_shown(reference: Reference, shown: set[tuple[str, ...]]) -> list[str]:
    """Lists the keys of a formula that pillar.example does not show.

    Args:
        reference: the formula.
        shown: what :func:`shown_keys` returns.

    Returns:
        Pillar paths. Of keys without a fixed name one is enough, and of a shape that several keys have one place.
    """

    def stands(key: Key) -> bool:
        # Entries of lists have no key of their own; a free key may have any name.
        wanted = [part for part in key.parts if part != "<number>"]
        fitting = (path for path in shown if len(path) == len(wanted))
        return any(all(part in (name, "<name>") for part, name in zip(wanted, path, strict=True)) for path in fitting)

    rows = reference.rows()
    here = {key.origin for key in rows if stands(key)}
    return [key.path for key in rows if key.origin not in here]


def complaints(root: Path) -> list[str]:
    """Says what is wrong with the formulas' public interface, apart from a stale page.

    Args:
        root: the repository.

    Returns:
        One line for each problem.
    """
    found = []
    text = (root / "pillar.example").read_text(encoding="utf-8") if (root / "pillar.example").exists() else ""
    example, shown = yaml.safe_load(text) or {}, shown_keys(text)
    for formula in formulas(root):
        reference = Reference(root, formula)
        found += [f"{key.path}: has no description" for key in reference.rows() if not key.description]
        contents = {
            "defaults.yaml": reference.defaults,
            "osmap.yaml": reference.osmap,
            "schema.yaml": reference.schema,
        }
        for what, pillar in (("defaults.yaml", None), ("pillar.example", example.get(formula))):
            _, errors = formula_config.assemble(
                formula, contents, {}, pillar, formula_vocabulary.load, formula_schema.errors
            )
            found += [f"{what}: {path}: {text}" for path, text in errors]
        if not example.get(formula):
            found.append(f"pillar.example: shows nothing of {formula}")
        else:
            found += [f"pillar.example: does not show {path}" for path in not_shown(reference, shown)]
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command.

    Args:
        arguments: the command line; by default the program's.
        root: the repository.

    Returns:
        The exit code: 1 when something is wrong.
    """
    parser = argparse.ArgumentParser(description="Write docs/pillar.rst from the schemas.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale or wrong")
    check = parser.parse_args(arguments).check
    target = root / PAGE.relative_to(ROOT)
    try:
        text, found = page(root), complaints(root)
    except ValueError as error:
        text, found = "", [str(error)]
    if text and not check:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    elif text and (not target.exists() or target.read_text(encoding="utf-8") != text):
        found.append("docs/pillar.rst is stale: run `make docs` and commit it")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

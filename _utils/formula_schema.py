"""Judges a configuration by a JSON Schema (draft 2020-12) of a limited vocabulary, in plain words.

Pure and on Python's standard library alone, so that the minion, salt-ssh and the tests share it. Its
vocabulary is in ``formula_vocabulary``, which has loaded and checked the schema before.

Beyond JSON Schema it understands ``writeOnly: true`` (the value is a secret and never shown) and
``patternErrorMessage`` (what a pattern allows, in words; editors show it too).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

SHOWN = 60

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "empty (null)",
}
_MORE_LIMITS = {
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "multipleOf": "that is a multiple of",
}

Path = tuple[str, ...]
# A mapping or a boolean; what may stand in it is checked when it is loaded.
Schema = Any
# By name: a predicate of the text, and what it allows in words.
Formats = Mapping[str, tuple[Callable[[str], bool], str]]


class Fault(NamedTuple):
    """One error: where, what to tell, and which keyword found it (allowed: for enum and const)."""

    path: Path
    text: str
    keyword: str
    allowed: tuple[str, ...] = ()


# ---- showing things ----


def _printable(text: str) -> str:
    """Escapes what a terminal would not print as it is: controls, escapes, lone surrogates."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def render_path(path: Iterable[str]) -> str:
    """Writes a path the way pillar does: formula:key:sub; a key with a colon is quoted."""
    return ":".join(f'"{_printable(p)}"' if ":" in p else _printable(p) for p in path)


def show(value: Any, secret: bool = False) -> str:
    """Shows a value in a message, shortened; a secret and what is inside a container never."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if secret:
        return "the value (a secret, not shown)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = _printable(value).replace('"', '\\"')
        return f'"{text}"' if len(text) <= SHOWN else f'"{text[:SHOWN]}…"'
    return str(value)


def _listed(items: Iterable[str], most: int = 20) -> str:
    """Joins words by commas, at most so many."""
    words = list(items)
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def _words(values: Iterable[Any]) -> tuple[str, ...]:
    """The values of an enum as a user would write them in YAML, without quotes."""
    return tuple(v if isinstance(v, str) and v else show(v) for v in values)


def _between(low: Any, high: Any, both: str) -> str:
    """Describes limits, either of which may be None."""
    if low is not None and high is not None:
        return both
    if low is not None:
        return f"of at least {low}"
    return f"of at most {high}" if high is not None else ""


def _range(schema: Mapping[str, Any]) -> str:
    """Describes the limits of a number."""
    low, high = schema.get("minimum"), schema.get("maximum")
    words = [_between(low, high, f"from {low} to {high}")]
    for keyword, word in _MORE_LIMITS.items():
        if keyword in schema:
            words.append(f"{word} {schema[keyword]}")
    return " ".join(filter(None, words))


def _count(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    """Describes how many characters, entries or keys there may be."""
    low, high = schema.get(least) or None, schema.get(most)
    words = _between(low, high, f"of exactly {low}" if low == high else f"of {low} to {high}")
    return f"{words} {unit}" if words else ""


def _types(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema allows, as a list."""
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else types


def _hint(value: Any, types: list[str]) -> str:
    """Tells how YAML came to read a value differently from what was meant."""
    if "string" in types and isinstance(value, (bool, int, float)):
        return "; put it in quotes"
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?|true|false", value):
        return "; write it without quotes"
    return ""


# ---- judging by single keywords ----


def _is_type(value: Any, name: str) -> bool:
    """Says whether a value is of a JSON type: 1.0 is an integer, true is no number."""
    if name == "integer":
        if isinstance(value, float):
            return value.is_integer()
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    classes = {"string": str, "boolean": bool, "array": list, "object": Mapping, "null": type(None)}
    return isinstance(value, classes[name])


def _identity(value: Any) -> object:
    """Makes a value comparable as JSON does: 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return ("list", tuple(_identity(item) for item in value))
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, _identity(item)) for key, item in value.items()))
    return value


def _number_reason(schema: Mapping[str, Any], value: float) -> tuple[str, str]:
    """Names the keyword that a number breaks, and how."""
    if value < schema.get("minimum", value):
        return "minimum", "is too small"
    if value > schema.get("maximum", value):
        return "maximum", "is too large"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        return "exclusiveMinimum", "is too small"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        return "exclusiveMaximum", "is too large"
    if "multipleOf" in schema and value % schema["multipleOf"]:
        return "multipleOf", "does not fit"
    return "", ""


def _count_reason(schema: Mapping[str, Any], value: Any) -> tuple[str, str]:
    """Names the keyword that the size of a list or mapping breaks, and how."""
    unit = "Items" if isinstance(value, list) else "Properties"
    what = "entries" if isinstance(value, list) else "keys"
    if len(value) < schema.get(f"min{unit}", 0):
        return f"min{unit}", f"has too few {what} ({len(value)})"
    if len(value) > schema.get(f"max{unit}", math.inf):
        return f"max{unit}", f"has too many {what} ({len(value)})"
    return "", ""


# ---- the schema ----


class Validator:
    """Judges configurations by a schema.

    Args:
        schema: the parsed schema.
        vocabulary: what ``formula_vocabulary.load`` made of it.
    """

    def __init__(self, schema: Schema, vocabulary: Any) -> None:
        self._root = schema
        self._formats: Formats = vocabulary.formats
        self._patterns: Mapping[str, re.Pattern[str]] = vocabulary.patterns
        self._secret: Mapping[int, bool] = vocabulary.secrets

    def _resolve(self, ref: str) -> Schema:
        """Finds what #/$defs/NAME means; that it exists was seen to when the schema was loaded."""
        return self._root["$defs"][ref.removeprefix("#/$defs/")]

    # -- describing --

    def describe(self, schema: Schema) -> str:
        """Says in plain words what a schema allows, to follow "must be"."""
        if isinstance(schema, bool):
            return "anything" if schema else "absent"
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return ("one of: " if len(values) > 1 else "") + _listed(_words(values))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema and "type" not in schema:
                return " or ".join(dict.fromkeys(map(self.describe, schema[keyword])))
        if "$ref" in schema:
            return self.describe(self._resolve(schema["$ref"]))
        types = _types(schema)
        return " or ".join(self._describe_type(schema, t) for t in types) or self._untyped(schema)

    def _untyped(self, schema: Mapping[str, Any]) -> str:
        """Describes a schema that names no type, by the keywords it has."""
        if {"pattern", "format", "minLength", "maxLength"} & set(schema):
            return self._text_words(schema)
        return f"a number {_range(schema)}" if _range(schema) else "something else"

    def _text_words(self, schema: Mapping[str, Any]) -> str:
        """Describes what text may be."""
        if "format" in schema:
            return self._formats[schema["format"]][1]
        if "patternErrorMessage" in schema:
            return str(schema["patternErrorMessage"])
        length = _count(schema, "minLength", "maxLength", "characters")
        matching = f"that matches {schema['pattern']}" if "pattern" in schema else ""
        return " ".join(part for part in ("text", length, matching) if part)

    def _describe_type(self, schema: Mapping[str, Any], name: str) -> str:
        """Says what a schema allows of one type."""
        if name == "string":
            return self._text_words(schema)
        if name in {"integer", "number"}:
            return f"{_TYPES[name]} {_range(schema)}".strip()
        if name == "array":
            return f"a list {_count(schema, 'minItems', 'maxItems', 'entries')}".strip()
        if name == "object":
            return f"a mapping {_count(schema, 'minProperties', 'maxProperties', 'keys')}".strip()
        return _TYPES[name]

    # -- judging --

    def faults(self, value: Any, path: Path = ()) -> list[Fault]:
        """Judges a value of plain types.

        Args:
            value: what :func:`plain` returned.
            path: where it stands, for the messages.

        Returns:
            Every error found; an empty list when the value is valid.
        """
        return list(self._judge(self._root, value, path, False))

    def _judge(self, schema: Schema, value: Any, path: Path, secret: bool) -> Iterator[Fault]:
        """Yields the faults of a value; secret says that an outer schema hides it."""
        if isinstance(schema, bool):
            if not schema:
                yield Fault(path, f"{show(value, secret)} is not allowed here", "false")
            return
        hidden = secret or self._secret[id(schema)]
        wrong = self._kind_fault(schema, value, path, hidden)
        if wrong is None:
            wrong = self._size_fault(schema, value, path, hidden)
        if wrong is not None:
            yield wrong
            if wrong.keyword in {"type", "enum", "const"}:
                # What else is wrong with it would only distract.
                return
        # Whoever hides a mapping's content hides all of it; else each property speaks for itself.
        below = secret or bool(schema.get("writeOnly"))
        if isinstance(value, list):
            yield from self._judge_list(schema, value, path, below)
        elif isinstance(value, Mapping):
            yield from self._judge_mapping(schema, value, path, below)
        yield from self._judge_combined(schema, value, path, below)

    def _kind_fault(
        self, schema: Mapping[str, Any], value: Any, path: Path, hidden: bool
    ) -> Fault | None:
        """Judges type, const and enum."""
        if "type" in schema:
            types = _types(schema)
            if not any(_is_type(value, one) for one in types):
                text = f"{show(value, hidden)} is not allowed; must be {self.describe(schema)}"
                return Fault(path, text + _hint(value, types), "type")
        for keyword in ("const", "enum"):
            if keyword in schema:
                values = [schema["const"]] if keyword == "const" else schema["enum"]
                if _identity(value) not in {_identity(one) for one in values}:
                    words = _words(values)
                    text = f"{show(value, hidden)} is not allowed; allowed: {_listed(words)}"
                    return Fault(path, text, keyword, words)
        return None

    def _size_fault(
        self, schema: Mapping[str, Any], value: Any, path: Path, hidden: bool
    ) -> Fault | None:
        """Judges range, length, pattern and format: one message, however many it breaks."""
        if isinstance(value, bool) or value is None:
            return None
        if isinstance(value, str):
            keyword, why = self._text_reason(schema, value)
        elif isinstance(value, (int, float)):
            keyword, why = _number_reason(schema, value)
        else:
            keyword, why = _count_reason(schema, value)
        if not keyword:
            return None
        text = f"{show(value, hidden)} {why}; must be {self._describe_all(schema, value)}"
        return Fault(path, text, keyword)

    def _describe_all(self, schema: Mapping[str, Any], value: Any) -> str:
        """Describes what a schema allows of the type that the value has already."""
        if isinstance(value, str):
            return self._text_words(schema)
        if isinstance(value, (list, Mapping)):
            return self._describe_type(schema, "array" if isinstance(value, list) else "object")
        return self._describe_type(schema, "integer" if "integer" in _types(schema) else "number")

    def _text_reason(self, schema: Mapping[str, Any], value: str) -> tuple[str, str]:
        """Names the keyword that a text breaks, and how."""
        if len(value) < schema.get("minLength", 0):
            return "minLength", "is empty" if not value else "is too short"
        if len(value) > schema.get("maxLength", math.inf):
            return "maxLength", "is too long"
        if "pattern" in schema and not self._patterns[schema["pattern"]].search(value):
            return "pattern", "does not fit"
        if "format" in schema and not self._formats[schema["format"]][0](value):
            return "format", "does not fit"
        return "", ""

    def _judge_list(
        self, schema: Mapping[str, Any], value: list[Any], path: Path, secret: bool
    ) -> Iterator[Fault]:
        """Judges a list's entries."""
        if "items" in schema:
            for index, item in enumerate(value):
                yield from self._judge(schema["items"], item, (*path, str(index)), secret)
        if schema.get("uniqueItems"):
            hidden = secret or self._secret[id(schema)]
            seen: dict[object, int] = {}
            for index, item in enumerate(value):
                first = seen.setdefault(_identity(item), index)
                if first != index:
                    text = f"{show(item, hidden)} is there already, as entry {first}; allowed once"
                    yield Fault((*path, str(index)), text, "uniqueItems")

    def _judge_mapping(
        self, schema: Mapping[str, Any], value: Mapping[str, Any], path: Path, secret: bool
    ) -> Iterator[Fault]:
        """Judges a mapping's keys and their values."""
        properties = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        for key, item in value.items():
            known = [properties[key]] if key in properties else []
            known += [patterns[p] for p in patterns if self._patterns[p].search(key)]
            for one in known:
                yield from self._judge(one, item, (*path, key), secret)
            if not known:
                yield from self._judge_unknown(schema, key, item, path, secret)
            if "propertyNames" in schema:
                for fault in self._judge(schema["propertyNames"], key, (), False):
                    yield Fault((*path, key), f"the key {fault.text}", "propertyNames")
        yield from self._judge_needed(schema, value, path)

    def _judge_needed(
        self, schema: Mapping[str, Any], value: Mapping[str, Any], path: Path
    ) -> Iterator[Fault]:
        """Judges which keys there must be."""
        for key in schema.get("required", ()):
            if key not in value:
                yield self._missing(schema, key, path)
        for key, needed in schema.get("dependentRequired", {}).items():
            for other in needed if key in value else ():
                if other not in value:
                    text = f"missing; needed because {render_path((*path, key))} is given"
                    yield Fault((*path, other), text, "dependentRequired")

    def _judge_unknown(
        self, schema: Mapping[str, Any], key: str, item: Any, path: Path, secret: bool
    ) -> Iterator[Fault]:
        """Judges a key that neither properties nor patternProperties name."""
        rest = schema.get("additionalProperties", True)
        if rest is False:
            known = sorted(schema.get("properties", {}))
            near = difflib.get_close_matches(key, known, 1, 0.6)
            text = "unknown key"
            if near:
                text += f'; did you mean "{near[0]}"?'
            elif known:
                text += f"; known: {_listed(known)}"
            yield Fault((*path, key), text, "additionalProperties")
        else:
            yield from self._judge(rest, item, (*path, key), secret)

    def _missing(self, schema: Mapping[str, Any], key: str, path: Path) -> Fault:
        """Reports a required key that is not there."""
        expected = schema.get("properties", {}).get(key, True)
        text = "missing" if expected is True else f"missing; must be {self.describe(expected)}"
        return Fault((*path, key), text, "required")

    def _judge_combined(
        self, schema: Mapping[str, Any], value: Any, path: Path, secret: bool
    ) -> Iterator[Fault]:
        """Judges $ref, allOf, anyOf, oneOf, not and if."""
        if "$ref" in schema:
            yield from self._judge(self._resolve(schema["$ref"]), value, path, secret)
        for one in schema.get("allOf", ()):
            yield from self._judge(one, value, path, secret)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield from self._judge_branches(schema, keyword, value, path, secret)
        if "not" in schema and not any(self._judge(schema["not"], value, path, secret)):
            hidden = secret or self._secret[id(schema)]
            yield Fault(path, f"{show(value, hidden)} is not allowed here", "not")
        if "if" in schema:
            holds = not any(True for _ in self._judge(schema["if"], value, path, secret))
            yield from self._judge(
                schema.get("then" if holds else "else", True), value, path, secret
            )

    def _judge_branches(
        self, schema: Mapping[str, Any], keyword: str, value: Any, path: Path, secret: bool
    ) -> Iterator[Fault]:
        """Judges anyOf and oneOf; reports the branch that was most likely meant."""
        branches = [list(self._judge(one, value, path, secret)) for one in schema[keyword]]
        fitting = sum(not faults for faults in branches)
        shown = show(value, secret or self._secret[id(schema)])
        if fitting > 1 and keyword == "oneOf":
            yield Fault(path, f"{shown} fits more than one alternative; must fit one", keyword)
        if fitting:
            return
        # A fault of the value's own kind says that the branch was not meant at all.
        kinds = {"type", "enum", "const", "false"}
        same_kind = [
            one for one in branches if not any(f.path == path and f.keyword in kinds for f in one)
        ]
        if not same_kind:
            words = self.describe({keyword: schema[keyword]})
            yield Fault(path, f"{shown} is not allowed; must be {words}", "type")
            return
        chosen = _chosen_by_user(branches)
        # A wrong choice counts more than any number of other faults.
        yield from chosen or min(
            same_kind, key=lambda one: (sum(bool(fault.allowed) for fault in one), len(one))
        )


def _chosen_by_user(branches: list[list[Fault]]) -> list[Fault]:
    """Finds the key by which all branches differ, such as "type"; its fault names all choices."""
    choices = [{f.path: f for f in faults if f.allowed} for faults in branches]
    for path, fault in choices[0].items():
        if all(path in other for other in choices):
            allowed = dict.fromkeys(word for other in choices for word in other[path].allowed)
            text = f"{fault.text.partition('; allowed')[0]}; allowed: {_listed(allowed)}"
            return [Fault(path, text, "enum", tuple(allowed))]
    return []


def errors(
    schema: Schema,
    value: Any,
    root: str,
    vocabulary: Any,
    unfit: Iterable[tuple[Path, str]] = (),
) -> list[tuple[str, str]]:
    """Judges a value and says what is wrong with it, in the order of the value's keys.

    Args:
        schema: the parsed schema.
        value: a value of plain types: dict with text keys, list, str, int, float, bool, None.
        root: the first part of every path, the formula's name.
        vocabulary: what ``formula_vocabulary.load`` made of the schema.
        unfit: faults found before, as pairs of a path and a text. They come first, and what is
            wrong at their paths besides is left out.

    Returns:
        Pairs of a pillar path and what is wrong there, each once.
    """
    before = list(unfit)
    known = {path for path, _ in before}
    faults = Validator(schema, vocabulary).faults(value, (root,))
    found = before + [(fault.path, fault.text) for fault in faults if fault.path not in known]
    return list(dict.fromkeys((render_path(path), text) for path, text in found))

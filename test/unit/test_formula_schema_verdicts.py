"""The evaluator in Salt's Python gives the same verdicts as the jsonschema library.

Schemas are drawn from the whole vocabulary, and values near to what they allow; then the formulas' own
schemas are held against their own configurations with small changes.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from _utils import formula_config as fc
from _utils.formula_schema import errors
from _utils.formula_vocabulary import FORMATS, load

ROOT = Path(__file__).resolve().parents[2]
FORMULAS = sorted(path.parent.name for path in ROOT.glob("*/schema.yaml"))
# Derandomised: a failure in a change's checks is that change's.
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@functools.cache
def checker() -> jsonschema.FormatChecker:
    """Makes jsonschema assert our own formats; those it knows itself it judges itself."""
    own = jsonschema.FormatChecker(formats=("ipv4", "ipv6"))
    for name, (fits, _) in FORMATS.items():
        if name not in own.checkers:
            own.checks(name)(lambda value, fits=fits: not isinstance(value, str) or fits(value))
    return own


def _ending(pattern: str) -> str:
    """Writes the end of a pattern for Python."""
    return f"{pattern[:-1]}\\Z" if pattern.endswith("$") else pattern


def for_python(schema: Any) -> Any:
    """Writes the patterns of a schema for Python, whose "$" also matches before a last newline."""
    if isinstance(schema, list):
        return [for_python(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    written: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "patternProperties":
            written[key] = {_ending(pattern): for_python(one) for pattern, one in value.items()}
        elif key == "pattern" and isinstance(value, str):
            written[key] = _ending(value)
        else:
            written[key] = value if key in {"enum", "const"} else for_python(value)
    return written


def reference(schema: Any, value: Any) -> bool:
    """The verdict of jsonschema."""
    validator = jsonschema.Draft202012Validator(for_python(schema), format_checker=checker())
    return bool(validator.is_valid(value))


def same_verdict(schema: Any, value: Any) -> bool:
    """Compares the verdicts; returns it."""
    found = errors(schema, value, "f", load(schema))
    expected = reference(schema, value)
    assert (not found) == expected, (schema, value, found)
    assert all(path.startswith("f") and text for path, text in found)
    return expected


# ---- generated schemas ----

KEYS = st.sampled_from(["a", "b", "ab", "é", "x:y"])
NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([0.0, 1.0, 2.5, -0.0, 1e300, 2**63, -(2**63)]),
)
TEXTS = st.sampled_from(
    ["", "a", "b", "ab", "aé", "0644", "192.0.2.1", "::1", "192.0.2.0/24", "hv1", "/a/b", "é\n", "😀"]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])
PATTERNS = st.sampled_from(["a", "^a$", "b$", "^[0-9]+$", "é", "^.{2}$", "", "^x:"])
SIZES = st.integers(0, 3)

LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.one_of(TYPES, st.lists(TYPES, min_size=1, max_size=3, unique=True)),
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "const": VALUES,
    "pattern": PATTERNS,
    "minimum": NUMBERS,
    "maximum": NUMBERS,
    "exclusiveMinimum": NUMBERS,
    "exclusiveMaximum": NUMBERS,
    "multipleOf": st.integers(1, 4),
    "minLength": SIZES,
    "maxLength": SIZES,
    "minItems": SIZES,
    "maxItems": SIZES,
    "uniqueItems": st.booleans(),
    "minProperties": SIZES,
    "maxProperties": SIZES,
    "required": st.lists(KEYS, max_size=2, unique=True),
    "dependentRequired": st.dictionaries(KEYS, st.lists(KEYS, max_size=2, unique=True), max_size=2),
    "format": st.sampled_from(sorted(FORMATS)),
    "writeOnly": st.booleans(),
    "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two"]),
}


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas that hold schemas."""
    optional = {
        **{
            keyword: LEAVES[keyword]
            for keyword in ("type", "required", "dependentRequired", "minProperties", "uniqueItems")
        },
        "properties": st.dictionaries(KEYS, inner, max_size=3),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "items": inner,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "allOf": st.lists(inner, min_size=1, max_size=2),
        "anyOf": st.lists(inner, min_size=1, max_size=3),
        "oneOf": st.lists(inner, min_size=1, max_size=3),
    }
    return chosen(optional, 4)


def chosen(keywords: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[Any]:
    """Schemas of a few of the keywords."""
    names = st.lists(st.sampled_from(sorted(keywords)), max_size=most, unique=True)
    return names.flatmap(lambda some: st.fixed_dictionaries({name: keywords[name] for name in some}))


SCHEMAS = st.recursive(st.one_of(chosen(LEAVES, 3), st.booleans()), nested, max_leaves=8)
# Definitions hold no references, since the evaluator refuses circles.
PLAIN = chosen({name: one for name, one in LEAVES.items() if name != "$ref"}, 3)


@st.composite
def near(draw: Any, schema: Any, definitions: Any, depth: int = 4) -> Any:
    """Draws a value that is probably valid, or nearly so."""
    if not isinstance(schema, dict) or depth == 0 or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    if "$ref" in schema:
        schema = {**schema, **definitions[schema["$ref"].rpartition("/")[2]]}
    if "const" in schema:
        return copy.deepcopy(schema["const"])
    if "enum" in schema:
        return copy.deepcopy(draw(st.sampled_from(schema["enum"])))
    for keyword in ("allOf", "anyOf", "oneOf"):
        if keyword in schema and draw(st.booleans()):
            return draw(near(draw(st.sampled_from(schema[keyword])), definitions, depth - 1))
    if "items" in schema and draw(st.booleans()):
        return draw(st.lists(near(schema["items"], definitions, depth - 1), max_size=3))
    keys = [*schema.get("properties", {}), *schema.get("required", [])]
    if keys or schema.get("type") == "object":
        extra = draw(st.lists(KEYS, max_size=1))
        below = schema.get("properties", {})
        return {
            key: draw(near(below.get(key, True), definitions, depth - 1)) for key in keys + extra
        }
    return draw(VALUES)


@settings(SETTINGS, max_examples=1500)
@given(st.data())
def test_generated_schemas_and_values(data):
    schema = data.draw(SCHEMAS)
    if isinstance(schema, bool):
        schema = {"not": not schema}
    definitions = {"one": data.draw(PLAIN), "two": data.draw(PLAIN)}
    schema = {**schema, "$defs": definitions}
    value = data.draw(near(schema, definitions))
    event("valid" if same_verdict(schema, value) else "invalid")


@pytest.mark.parametrize("keyword", sorted(LEAVES))
def test_every_keyword_alone(keyword):
    @settings(SETTINGS, max_examples=60)
    @given(LEAVES[keyword], st.one_of(VALUES, st.text(max_size=4)))
    def holds(argument: Any, value: Any) -> None:
        definitions = {"one": {"type": "string"}, "two": {"minimum": 2}}
        same_verdict({keyword: argument, "$defs": definitions}, value)

    holds()


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, True),
        ({"type": "integer"}, 1.0),
        ({"type": "number"}, False),
        ({"enum": [1]}, True),
        ({"enum": [1]}, 1.0),
        ({"enum": [[1, {"a": True}]]}, [1.0, {"a": 1}]),
        ({"const": 0}, False),
        ({"uniqueItems": True}, [1, True]),
        ({"uniqueItems": True}, [1, 1.0]),
        ({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}]),
        ({"uniqueItems": True}, [[1], [True]]),
        ({"pattern": "b"}, "abc"),
        ({"pattern": "^a$"}, "a\n"),
        ({"maxLength": 1}, "😀"),
        ({"maxLength": 1}, "e\u0301"),
        ({"minimum": 2**63}, 2**63 - 1),
        ({"maximum": 0.1}, 0.1),
        ({"multipleOf": 3}, 9.0),
        ({"if": {"const": 1}, "else": {"const": 2}}, 3),
        ({"then": False}, 3),
        ({"required": ["a"]}, []),
        ({"additionalProperties": False, "patternProperties": {"a": {}}}, {"bab": 1}),
    ],
)
def test_what_implementations_get_wrong(schema, value):
    same_verdict(schema, value)


# ---- the formulas' own schemas ----


def test_the_root_folder_is_no_folder_of_images():
    schema = yaml.safe_load((ROOT / "kvm" / "schema.yaml").read_text(encoding="utf-8"))
    found = errors(schema, {"images": {"path": "/"}}, "kvm", load(schema))
    assert found == [("kvm:images:path", '"/" is not allowed here')]
    assert errors(schema, {"images": {"path": "/images"}}, "kvm", load(schema)) == []


def real_configuration(formula: str) -> tuple[Any, Any]:
    """The schema of a formula, and a configuration with the example pillar's keys in it."""
    parsed = {
        name: yaml.safe_load((ROOT / formula / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("schema", "defaults")
    }
    example = ROOT / "pillar.example"
    pillar = yaml.safe_load(example.read_text(encoding="utf-8")) if example.exists() else {}
    return parsed["schema"], fc.merge(parsed["defaults"], pillar.get(formula) or {})


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Lists the paths of all values inside a value."""
    below: Any = value.items() if isinstance(value, dict) else ()
    below = enumerate(value) if isinstance(value, list) else below
    return [at, *(place for key, one in below for place in places(one, (*at, key)))]


def changed(value: Any, place: tuple[Any, ...], how: str, new: Any) -> Any:
    """Replaces, removes or adds to what is at a place."""
    result = copy.deepcopy(value)
    holder = result
    for key in place[:-1]:
        holder = holder[key]
    target = holder[place[-1]]
    if how == "remove":
        del holder[place[-1]]
    elif how == "add" and isinstance(target, dict):
        target["unheard_of"] = new
    elif how == "add" and isinstance(target, list):
        target.append(copy.deepcopy(target[0]) if target else new)
    else:
        holder[place[-1]] = new
    return result


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_formulas_schemas_on_changed_configurations(formula):
    schema, configuration = real_configuration(formula)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert same_verdict(schema, json.loads(json.dumps(configuration)))
    below = [place for place in places(configuration) if place]

    @settings(SETTINGS, max_examples=150)
    @given(st.sampled_from(below), st.sampled_from(["set", "remove", "add"]), VALUES)
    def holds(place: tuple[Any, ...], how: str, new: Any) -> None:
        same_verdict(schema, changed(configuration, place, how, new))

    holds()

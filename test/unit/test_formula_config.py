"""The merge, the osmap, the plain types, and the wording of every error."""

from __future__ import annotations

import datetime
import math
import time
from collections import OrderedDict
from typing import Any

import pytest
import yaml

from _utils import formula_config as fc
from _utils.formula_schema import errors
from _utils.formula_vocabulary import load

DEBIAN = {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-12"}


def judged(schema: str, value: Any) -> list[str]:
    """Judges a value by a schema in YAML; returns "path: text" lines."""
    parsed = yaml.safe_load(schema)
    return [": ".join(one) for one in errors(parsed, value, "f", load(parsed))]


def assembled(pillar: Any, defaults: Any = None, osmap: Any = None, schema: Any = None) -> Any:
    contents = {
        "defaults.yaml": defaults or {},
        "osmap.yaml": osmap or {},
        "schema.yaml": schema or {},
    }
    return fc.assemble("f", contents, DEBIAN, pillar, load, errors)


# ---- merging ----


def test_merge_goes_into_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    over = {"a": {"c": [3], "e": None}, "d": {"x": 1}}
    assert fc.merge(base, over) == {"a": {"b": 1, "c": [3], "e": None}, "d": {"x": 1}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_more_specific_osmap_entries_win_and_pillar_wins_over_all():
    osmap = {
        "os_family": {"Debian": {"a": 1, "b": 1, "c": 1}, "RedHat": {"z": 1}},
        "os": {"Debian": {"b": 2, "c": 2}},
        "osfinger": {"Debian-12": {"c": 3}, "Debian-13": {"c": 4}},
    }
    config, found = assembled({"d": 5}, {"a": 0, "d": 0, "e": 0}, osmap)
    assert config == {"a": 1, "b": 2, "c": 3, "d": 5, "e": 0}
    assert found == []


def test_osmap_with_another_key_is_the_formulas_own_mistake():
    with pytest.raises(ValueError, match=r"osmap.yaml: unknown key oscodename; known: os_family"):
        assembled({}, osmap={"oscodename": {}})


def test_a_file_that_is_no_mapping_is_the_formulas_own_mistake():
    with pytest.raises(ValueError, match=r"defaults.yaml: must be a mapping"):
        assembled({}, defaults=["a"])


@pytest.mark.parametrize("pillar", [None, {}])
def test_an_empty_pillar_means_the_defaults(pillar):
    assert assembled(pillar, {"a": 1}) == ({"a": 1}, [])


def test_a_pillar_that_is_no_mapping_is_refused():
    _, found = assembled(["x"], {"a": 1}, schema={"type": "object"})
    assert found == [("f", "a list is not allowed; must be a mapping")]


def test_the_configuration_shares_nothing_with_its_sources():
    defaults = {"a": {"b": [1]}}
    config, _ = assembled({"c": {}}, defaults)
    config["a"]["b"].append(2)
    assert defaults == {"a": {"b": [1]}}


# ---- plain types ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02 was read as a date; put it in quotes"),
        (math.nan, "the number is too large or not a number"),
        (math.inf, "the number is too large or not a number"),
        pytest.param(1 << 40000, "the number is too large or not a number", id="huge"),
        (b"x", "a value of the type bytes has no place in a pillar"),
        ({1}, "a value of the type set has no place in a pillar"),
    ],
)
def test_values_that_json_does_not_know_are_errors_once(value, text):
    config, found = assembled({"a": value}, schema={"properties": {"a": {"type": "string"}}})
    assert found == [("f:a", text)]
    assert config == {"a": None}


@pytest.mark.parametrize(
    ("key", "shown"),
    [(10, "10"), (True, "true"), (None, "null"), pytest.param(1 << 99999, "(a very", id="huge")],
)
def test_keys_that_are_not_text_are_errors(key, shown):
    _, found = assembled({"a": {key: 1}})
    assert len(found) == 1
    assert found[0][0].startswith(f"f:a:{shown}")
    assert found[0][1] == "the key is not text; put it in quotes"


def test_a_yaml_alias_that_contains_itself_ends_with_an_error():
    _, found = assembled({"a": yaml.safe_load("&x [*x]")})
    assert found[0][1] == "nested more than 50 levels deep"


def test_ordered_mappings_tuples_and_subclasses_become_plain():
    class Text(str):
        __slots__ = ()

    config, _ = assembled(OrderedDict(a=(Text("x"), 1)))
    assert type(config["a"]) is list
    assert type(config["a"][0]) is str


# ---- wording ----

NUMBER = "properties: {a: {type: integer, minimum: 1, maximum: 10}}"
SIZE = "properties: {a: {enum: [2M, 1G]}}"
CLOSED = "additionalProperties: false\nproperties: {hugepages: {}, sysctl: {}}"
POOL = """
properties:
  a:
    oneOf:
    - type: object
      required: [type, path]
      additionalProperties: false
      properties: {type: {const: dir}, path: {type: string, format: absolute-path}}
    - type: object
      required: [type, host]
      additionalProperties: false
      properties: {type: {const: nfs}, host: {type: string, format: host}}
"""
RANGE = " must be a whole number from 1 to 10"


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (SIZE, {"a": "3M"}, 'f:a: "3M" is not allowed; allowed: 2M, 1G'),
        ("properties: {a: {const: x}}", {"a": "y"}, 'f:a: "y" is not allowed; allowed: x'),
        (NUMBER, {"a": 0}, "f:a: 0 is too small;" + RANGE),
        (NUMBER, {"a": 11}, "f:a: 11 is too large;" + RANGE),
        (NUMBER, {"a": "5"}, f'f:a: "5" is not allowed;{RANGE}; write it without quotes'),
        (NUMBER, {"a": True}, f"f:a: true is not allowed;{RANGE}"),
        (NUMBER, {"a": 1.5}, f"f:a: 1.5 is not allowed;{RANGE}"),
        (NUMBER, {"a": None}, f"f:a: nothing (null) is not allowed;{RANGE}"),
        (NUMBER, {"a": []}, f"f:a: a list is not allowed;{RANGE}"),
        (
            "properties: {a: {type: number, exclusiveMinimum: 0, exclusiveMaximum: 1}}",
            {"a": 1},
            "f:a: 1 is too large; must be a number above 0 below 1",
        ),
        (
            "properties: {a: {type: number, exclusiveMinimum: 0}}",
            {"a": 0},
            "f:a: 0 is too small; must be a number above 0",
        ),
        (
            "properties: {a: {type: integer, multipleOf: 4, minimum: 4}}",
            {"a": 6},
            "f:a: 6 does not fit; must be a whole number of at least 4 that is a multiple of 4",
        ),
        (
            "properties: {a: {type: integer, maximum: 4}}",
            {"a": 6},
            "f:a: 6 is too large; must be a whole number of at most 4",
        ),
        (
            "properties: {a: {type: boolean}}",
            {"a": "true"},
            'f:a: "true" is not allowed; must be true or false; write it without quotes',
        ),
        (
            "properties: {a: {type: string, pattern: '^0[0-7]{3}$'}}",
            {"a": 420},
            "f:a: 420 is not allowed; must be text that matches ^0[0-7]{3}$; put it in quotes",
        ),
        (
            "properties: {a: {type: string, pattern: '^[0-9]+M$', patternErrorMessage: 'x: 4M'}}",
            {"a": "4"},
            'f:a: "4" does not fit; must be x: 4M',
        ),
        (
            "properties: {a: {type: string, minLength: 2, maxLength: 3}}",
            {"a": ""},
            'f:a: "" is empty; must be text of 2 to 3 characters',
        ),
        (
            "properties: {a: {type: string, minLength: 2}}",
            {"a": "x"},
            'f:a: "x" is too short; must be text of at least 2 characters',
        ),
        (
            "properties: {a: {type: string, maxLength: 3}}",
            {"a": "xxxx"},
            'f:a: "xxxx" is too long; must be text of at most 3 characters',
        ),
        (
            "properties: {a: {type: array, minItems: 1, maxItems: 1}}",
            {"a": []},
            "f:a: a list has too few entries (0); must be a list of exactly 1 entries",
        ),
        (
            "properties: {a: {type: object, maxProperties: 1}}",
            {"a": {"x": 1, "y": 1}},
            "f:a: a mapping has too many keys (2); must be a mapping of at most 1 keys",
        ),
        (
            "properties: {a: {uniqueItems: true}}",
            {"a": ["x", "y", "x"]},
            'f:a:2: "x" is there already, as entry 0; allowed once',
        ),
        (
            "properties: {a: {type: string, format: ipv4}}",
            {"a": "10.0.0.300"},
            'f:a: "10.0.0.300" does not fit; must be an IPv4 address such as 192.0.2.10',
        ),
        (CLOSED, {"hugepage": 1}, 'f:hugepage: unknown key; did you mean "hugepages"?'),
        (CLOSED, {"zzz": 1}, "f:zzz: unknown key; known: hugepages, sysctl"),
        ("additionalProperties: false", {"zzz": 1}, "f:zzz: unknown key"),
        (
            "required: [a]\nproperties: {a: {type: string, format: uuid}}",
            {},
            "f:a: missing; must be a UUID such as 123e4567-e89b-12d3-a456-426614174000",
        ),
        ("required: [a]", {}, "f:a: missing"),
        (
            "dependentRequired: {a: [b]}",
            {"a": 1},
            "f:b: missing; needed because f:a is given",
        ),
        (
            "propertyNames: {pattern: '^[a-z]+$'}",
            {"A b": 1},
            'f:A b: the key "A b" does not fit; must be text that matches ^[a-z]+$',
        ),
        ("properties: {a: false}", {"a": 1}, "f:a: 1 is not allowed here"),
        ("properties: {a: {not: {const: 1}}}", {"a": 1}, "f:a: 1 is not allowed here"),
        (POOL, {"a": {"type": "nsf"}}, 'f:a:type: "nsf" is not allowed; allowed: dir, nfs'),
        (
            POOL,
            {"a": {"type": "nfs", "host": "a b"}},
            'f:a:host: "a b" does not fit; must be a host name or an IP address',
        ),
        (POOL, {"a": "dir"}, 'f:a: "dir" is not allowed; must be a mapping'),
        (
            "properties: {a: {anyOf: [{type: integer}, {enum: [auto]}]}}",
            {"a": "x"},
            'f:a: "x" is not allowed; must be a whole number or auto',
        ),
        (
            "properties: {a: {oneOf: [{type: integer}, {type: number}]}}",
            {"a": 1},
            "f:a: 1 fits more than one alternative; must fit one",
        ),
        (
            "if: {required: [a]}\nthen: {required: [b]}\nelse: {required: [c]}",
            {"a": 1},
            "f:b: missing",
        ),
        (
            "$defs: {port: {type: integer, maximum: 9}}\nproperties: {a: {$ref: '#/$defs/port'}}",
            {"a": 10},
            "f:a: 10 is too large; must be a whole number of at most 9",
        ),
        (
            "properties: {a: {type: [string, 'null']}}",
            {"a": 1},
            "f:a: 1 is not allowed; must be text or empty (null); put it in quotes",
        ),
        (
            "patternProperties: {'^v': {items: {type: string}}}",
            {"v:1": [[]]},
            'f:"v:1":0: a list is not allowed; must be text',
        ),
    ],
)
def test_an_error_names_the_path_the_value_and_what_is_allowed(schema, value, expected):
    (line,) = judged(schema, value)
    assert line == expected


def test_a_newline_does_not_slip_past_the_end_of_a_pattern():
    assert len(judged("properties: {a: {pattern: '^[a-z]+$'}}", {"a": "root\n"})) == 1
    assert judged(r"properties: {a: {pattern: 'a\$'}}", {"a": "a$"}) == []


def test_all_errors_are_told_at_once():
    lines = judged(SIZE + "\nadditionalProperties: false\nrequired: [b]", {"a": 1, "c": 1})
    assert [line.split(": ")[0] for line in lines] == ["f:a", "f:c", "f:b"]


SECRET = "properties: {a: {type: string, minLength: 12, writeOnly: true}}"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (SECRET, {"a": "hunter2"}),
        (SECRET, {"a": 477}),
        ("properties: {a: {writeOnly: true, properties: {b: {maxLength: 1}}}}", {"a": {"b": "477"}}),
        ("properties: {a: {properties: {b: {writeOnly: true}}, type: object}}", {"a": "hunter2"}),
        ("properties: {a: {$ref: '#/$defs/s'}}\n$defs: {s: {writeOnly: true, enum: [x]}}", {"a": 477}),
        ("properties: {a: {writeOnly: true, uniqueItems: true}}", {"a": [477, 477]}),
        ("properties: {a: {writeOnly: true, not: {const: 477}}}", {"a": 477}),
        ("properties: {a: {writeOnly: true, anyOf: [{enum: [x]}, {minLength: 9}]}}", {"a": "477"}),
        ("properties: {a: {writeOnly: true, items: {maximum: 4}}}", {"a": [477]}),
        ("additionalProperties: false", {"a": "hunter2"}),
    ],
)
def test_a_secret_is_never_shown(schema, value):
    lines = judged(schema, value)
    assert lines
    assert not [line for line in lines if "hunter2" in line or "477" in line]


def test_long_and_unprintable_values_are_made_harmless():
    (line,) = judged(SIZE, {"a": "\x1b[31m\u202e\ud800" + "x" * 500})
    assert line.isprintable()
    assert len(line) < 150


# ---- formats ----


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ipv4", ["192.0.2.1"], ["192.0.2", "192.0.2.256", "::1", "192.0.2.1/24", ""]),
        ("ipv6", ["::1", "2001:db8::1"], ["192.0.2.1", "2001:db8:::1", ""]),
        ("ip", ["192.0.2.1", "::1"], ["host", "1", "fe80::1%eth0", "fe80::1%x\nroot"]),
        ("ip-network", ["192.0.2.0/24", "2001:db8::/64"], ["192.0.2.1/24", "192.0.2.0", "x/24"]),
        ("ip-interface", ["192.0.2.1/24"], ["192.0.2.1", "192.0.2.1/33"]),
        ("hostname", ["hv1", "hv-1.example.org"], ["-a", "a_b", "a b", "", "a..b", "1.2.3.4"]),
        ("host", ["hv1", "192.0.2.1", "::1"], ["a b", "300.300.300.300"]),
        ("mac", ["52:54:00:12:34:5F"], ["52-54-00-12-34-5f", "52:54:00:12:34", "52:54:00:12:34:5g"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567", "{" + "0" * 36 + "}"]),
        ("absolute-path", ["/", "/a/b.c"], ["a", "/a/../b", "/a//b", "/a/", "/a\nb", "", "~/a"]),
    ],
)
def test_formats(name, good, bad):
    for text in good:
        assert judged(f"format: {name}", text) == []
    for text in bad:
        assert len(judged(f"format: {name}", text)) == 1, text
    assert judged(f"format: {name}", 5) == []


# ---- schemas that are wrong ----


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("typo: 1", "at /: the keyword 'typo' is not supported"),
        ("properties: {a: {contains: {}}}", "at /properties/a: the keyword 'contains'"),
        ("items: {type: strnig}", "at /items: type has a wrong value: 'strnig'"),
        ("allOf: [{pattern: '('}]", r"at /allOf/0: the pattern '\(' is wrong"),
        ("format: ipv5", "format has a wrong value: 'ipv5'"),
        ("enum: []", "enum has a wrong value"),
        ("minLength: -1", "minLength has a wrong value"),
        ("minimum: x", "minimum has a wrong value"),
        ("multipleOf: 0.5", "multipleOf has a wrong value"),
        ("properties: [a]", "properties has a wrong value"),
        ("properties: {a: 1}", "at /properties/a: must be a mapping or a boolean"),
        ("required: a", "required has a wrong value"),
        ("$ref: '#/$defs/x'", r"'#/\$defs/x' is not a"),
        ("$ref: 'http://x'", "is not a"),
        ("$ref: '#/$defs/x'\n$defs: {x: {items: {$ref: '#/$defs/x'}}}", "refers to itself"),
        ("[]", "a schema must be a mapping"),
    ],
)
def test_a_wrong_schema_is_refused_when_loaded(schema, message):
    with pytest.raises(ValueError, match=message):
        judged(schema, {})


# ---- the message as a whole ----


def test_the_refusal_reads_as_a_list():
    text = fc.refusal("kvm", [("kvm:a", "unknown key"), ("kvm:b", "missing")])
    assert text.splitlines() == [
        "the pillar of kvm has 2 errors, so nothing was changed:",
        "    kvm:a: unknown key",
        "    kvm:b: missing",
    ]
    assert fc.refusal("kvm", [("kvm:a", "x")]).startswith("the pillar of kvm has 1 error,")


def test_validating_takes_about_a_millisecond():
    properties = "\n".join(f"  k{i}: {{type: integer, minimum: 0}}" for i in range(100))
    schema = yaml.safe_load(f"type: object\nadditionalProperties: false\nproperties:\n{properties}")
    value = {f"k{i}": i for i in range(100)}
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        assert errors(schema, value, "f", load(schema)) == []
        best = min(best, time.perf_counter() - start)
    # Ten times what it takes, so that a busy machine does not fail.
    assert best < 0.01

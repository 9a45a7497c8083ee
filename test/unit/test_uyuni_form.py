"""Uyuni's forms: every key is in them, and what they make is a pillar that the formulas accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import uyuni
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary
from tools import pillar_reference, uyuni_form

ROOT = Path(__file__).resolve().parents[2]
FORMULAS = pillar_reference.formulas(ROOT)
KNOWN = {
    "$type", "$help", "$name", "$default", "$optional", "$required", "$ifEmpty", "$values", "$min", "$max",
    "$prototype", "$key", "$itemName", "$maxItems",
}  # fmt: skip


def refused(root: Path, formula: str, pillar: Any) -> list[Any]:
    """The errors of a pillar of one formula."""
    contents = {
        name: pillar_reference.load(root / formula / name) for name in ("defaults.yaml", "osmap.yaml", "schema.yaml")
    }
    _, errors = formula_config.assemble(formula, contents, {}, pillar, formula_vocabulary.load, formula_schema.errors)
    return errors


def elements(layout: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All elements of a form by the paths of the pillar reference."""
    found = {}
    for name, element in uyuni.fields(layout).items():
        found[(*path, name)] = element
        if element["$type"] == "group":
            found |= elements(element, (*path, name))
        elif element["$type"] == "edit-group":
            prototype = element["$prototype"]
            below = (*path, name, "<name>" if "$key" in prototype else "<number>")
            found |= {below: prototype, **elements(prototype, below)}
    return found


@pytest.mark.parametrize("formula", FORMULAS)
def test_every_key_is_in_the_form_or_left_to_pillar(formula):
    form = uyuni_form.Form(ROOT, formula)
    here = elements(form.layout())
    for key in form.reference.rows():
        if not any(key.path == left or key.path.startswith(f"{left}:") for left in form.left_out):
            free_keys_beside_fixed_ones = key.parts[-1] == "<name>" and (key.parts[:-1] in here)
            assert key.parts in here or free_keys_beside_fixed_ones, key.path


@pytest.mark.parametrize("formula", FORMULAS)
def test_secrets_are_passwords_and_have_no_default(formula):
    reference = pillar_reference.Reference(ROOT, formula)
    form = elements(uyuni_form.Form(ROOT, formula).layout())
    # What stands in $defs belongs to mappings that a form leaves to pillar, such as guests.
    text = (ROOT / formula / "schema.yaml").read_text(encoding="utf-8").partition("\nproperties:\n")[2]
    secret = [element for element in form.values() if element["$type"] == "password"]
    assert bool(secret) == ("writeOnly: true" in text), reference.formula
    assert not any("$default" in element for element in secret)


@pytest.mark.parametrize("formula", FORMULAS)
def test_an_untouched_form_changes_nothing(formula):
    """What it makes is valid, and merged over the defaults it is the defaults."""
    form = uyuni_form.Form(ROOT, formula)
    layout = form.layout()
    untouched: tuple[Any, ...] = (uyuni.saved(layout), {})
    for data in untouched:
        made = uyuni.pillar(layout, data)[formula]
        assert refused(ROOT, formula, made) == []
        assert formula_config.merge(form.reference.defaults, made) == form.reference.defaults


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_form_has_only_what_uyuni_knows(formula):
    for path, element in elements(uyuni_form.Form(ROOT, formula).layout()).items():
        assert element["$type"] in {*uyuni.FIELDS, uyuni.GROUP, uyuni.EDIT}, path
        assert {name for name in element if name.startswith("$")} <= KNOWN, path
        # Uyuni takes a placeholder for a value.
        assert "$placeholder" not in element, path


SCHEMA = """\
description: A sample.
type: object
properties:
  switch: {description: A switch., type: boolean}
  server: {description: May be empty., type: string}
  size: {description: May be 0., type: integer, minimum: 0, maximum: 9}
  kind: {description: One of them., enum: [a, b]}
  password: {description: Secret., type: string, writeOnly: true}
  by_os: {description: Differs., type: string}
  names: {description: Names., type: array, items: {type: string}}
  values: {description: Numbers by name., type: object, additionalProperties: {type: [integer, string]}}
  either: {description: Either., oneOf: [{type: string}, {$ref: '#/$defs/place'}]}
  conf: {description: Any., type: object, patternProperties: {'^[a-z]+$': {type: [boolean, integer, string, array]}}}
  pools:
    description: Pools.
    type: object
    patternProperties:
      '^[a-z]+$':
        description: A pool.
        type: object
        required: [target]
        properties:
          target: {description: Where., type: string, minLength: 1}
          autostart: {description: Whether., type: boolean, default: true}
          source: {description: From where., $ref: '#/$defs/place'}
          ranges:
            description: Ranges.
            type: array
            items: {type: object, required: [start], properties: {start: {description: S., type: string, minLength: 1}}}
$defs:
  place:
    type: object
    required: [dir]
    properties:
      dir: {description: Folder., type: string}
      hosts: {description: Hosts., type: array, items: {type: string}}
"""
DEFAULTS = """\
{switch: true, server: master, size: 5, kind: a, by_os: x, names: [n], values: {}, conf: {f: true}, pools: {}}
"""


@pytest.fixture
def sample(tmp_path):
    def make(schema: str = SCHEMA, defaults: str = DEFAULTS) -> Path:
        folder = tmp_path / "sample"
        folder.mkdir(exist_ok=True)
        (folder / "init.sls").touch()
        (folder / "schema.yaml").write_text(schema)
        (folder / "defaults.yaml").write_text(defaults)
        (folder / "osmap.yaml").write_text("os: {Debian: {by_os: y}}")
        (tmp_path / "pillar.example").write_text("sample: {conf: {g: 5}}")
        return Path(tmp_path)

    return make


def test_shapes(sample):
    form = uyuni_form.Form(sample(), "sample").layout()["sample"]
    shown = {name: (element["$type"], element.get("$default")) for name, element in uyuni.fields(form).items()}
    assert shown == {
        "switch": ("boolean", True), "server": ("text", "master"), "size": ("number", 5), "kind": ("select", "a"),
        "password": ("password", None), "by_os": ("text", None), "names": ("edit-group", ["n"]),
        "values": ("edit-group", None), "either": ("group", None), "conf": ("group", None),
        "pools": ("edit-group", None),
    }  # fmt: skip
    assert (form["size"]["$min"], form["size"]["$max"]) == (0, 9)
    assert form["conf"]["f"]["$type"] == "boolean"
    assert form["conf"]["g"]["$type"] == "number"
    assert form["conf"]["$help"].endswith("In pillar alone: any other key.")
    pool = form["pools"]["$prototype"]
    assert pool["$key"]["$type"] == "text"
    assert pool["target"]["$required"]
    assert "$required" not in pool["source"]["dir"], "the source need not be there"
    assert pool["ranges"]["$prototype"]["start"]["$required"]


@pytest.mark.parametrize(
    ("entered", "made"),
    [
        ({"switch": False}, {"switch": False}),
        ({"size": 0}, {"size": 0}),
        ({"server": ""}, {"server": ""}),
        ({"names": []}, {"names": []}),
        ({"kind": ""}, {"kind": None}),
        ({"by_os": "z"}, {"by_os": "z"}),
        ({"password": "p"}, {"password": "p"}),
        ({"values": {"a": "1"}}, {"values": {"a": "1"}}),
        (
            {"pools": {"p": {"target": "/p", "autostart": False, "source": {"dir": "", "hosts": []}, "ranges": []}}},
            {"pools": {"p": {"target": "/p", "autostart": False}}},
        ),
    ],
)
def test_what_is_entered_arrives_and_is_accepted(sample, entered, made):
    root = sample()
    layout = uyuni_form.Form(root, "sample").layout()
    pillar = uyuni.pillar(layout, {"sample": {**uyuni.saved(layout)["sample"], **entered}})["sample"]
    assert {name: pillar.get(name) for name in made} == made
    assert refused(root, "sample", pillar) == []


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ("{additionalProperties: {type: array, items: {type: string}}}", "a mapping of lists or of mappings"),
        ("{type: array, items: {type: array, items: {type: string}}}", "a list of lists"),
        ("{type: object}", "a mapping without known keys"),
        ("{description: Anything.}", "a value without a type"),
    ],
)
def test_a_shape_that_no_form_can_hold_is_refused_by_name_unless_it_is_left_to_pillar(sample, shape, what, capsys):
    schema = f"properties: {{a: {{type: object, properties: {{b: {shape}}}}}}}"
    root = sample(schema, "{}")
    assert uyuni_form.main([], root) == 1
    error = capsys.readouterr().err
    assert "sample:a:b" in error
    assert what in error
    assert "`$comment: pillar only` in the schema leaves it out" in error
    root = sample(schema.replace(shape, f"{{$comment: pillar only, {shape[1:]}"), "{}")
    form = uyuni_form.Form(root, "sample")
    assert form.layout()["sample"]["a"]["$help"].endswith("In pillar alone: b.")
    assert form.left_out == ["sample:a:b"]


def test_a_stale_form_is_found_and_what_has_no_formula_goes(sample, capsys):
    root = sample()
    assert uyuni_form.main([], root) == 0
    assert uyuni_form.main(["--check"], root) == 0
    form = root / "metadata" / "sample" / "form.yml"
    assert set(yaml.safe_load(form.read_text())) == {"sample"}
    form.write_text("old")
    (root / "metadata" / "gone.yml").touch()
    assert uyuni_form.main(["--check"], root) == 1
    assert capsys.readouterr().err.count("is stale: run `make docs`") == 2
    assert uyuni_form.main([], root) == 0
    assert uyuni_form.main(["--check"], root) == 0

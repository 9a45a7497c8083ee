"""The pillar reference shows what the schemas say, and its check fails for each thing it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import pillar_reference

SCHEMA = """\
description: A sample.
type: object
additionalProperties: false
properties:
  size: {description: How large., type: integer, minimum: 1, maximum: 9}
  password: {description: A secret., type: string, writeOnly: true}
  names: {description: Some names., type: array, items: {type: string}}
  disks:
    description: Disks.
    type: array
    items:
      description: A disk.
      type: object
      properties: {path: {description: Where., $ref: '#/$defs/path'}}
  pools:
    description: Pools by name.
    type: object
    patternProperties: {'^[a-z]+$': {description: A pool., $ref: '#/$defs/pool'}}
$defs:
  path: {type: string, format: absolute-path}
  pool: {type: object, properties: {target: {description: Its folder., $ref: '#/$defs/path'}}}
"""
EXAMPLE = """\
sample:
  size: 2
  # Here it is: a secret.
  # password: ...
  names: [a]
  # disks:
  #   - path: /a
  pools:
    default: {target: /b}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    formula = tmp_path / "sample"
    formula.mkdir()
    (formula / "init.sls").touch()
    (formula / "schema.yaml").write_text(SCHEMA)
    (formula / "defaults.yaml").write_text("size: 1\npassword: hunter2-hunter2\nnames: []\n")
    (formula / "osmap.yaml").write_text("os: {Debian: {names: [a]}}\n")
    (tmp_path / "pillar.example").write_text(EXAMPLE)
    assert pillar_reference.main([], tmp_path) == 0
    return tmp_path


def test_the_page_shows_types_limits_defaults_and_no_secret(tree):
    page = (tree / "docs" / "pillar.rst").read_text()
    assert "``sample:size``\n     - a whole number from 1 to 9\n     - ``1``\n     - How large." in page
    assert "``sample:names``\n     - a list; each text\n     - by OS\n" in page
    assert "``sample:disks:<number>:path``\n     - an absolute path" in page
    assert "``sample:password``\n     - text\n     - a secret\n" in page
    assert "hunter2" not in page


def test_a_fresh_page_passes(tree):
    assert pillar_reference.main(["--check"], tree) == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("docs/pillar.rst", "old", "docs/pillar.rst is stale: run `make docs`"),
        ("sample/defaults.yaml", "size: 0", "defaults.yaml: sample:size: 0 is too small"),
        ("pillar.example", "sample: {sise: 1}", 'pillar.example: sample:sise: unknown key; did you'),
        ("pillar.example", "{}", "pillar.example: shows nothing of sample"),
        ("pillar.example", "sample: {size: 1}", "pillar.example: does not show sample:password"),
        ("pillar.example", EXAMPLE.replace("password", "passwort"), "does not show sample:password"),
        ("pillar.example", EXAMPLE.replace("#   - path", "#   - file"), "does not show sample:disks:<number>:path"),
        ("pillar.example", EXAMPLE.replace("{target: /b}", "{}"), "does not show sample:pools:<name>:target"),
        ("sample/schema.yaml", "properties: {size: {}}", "sample:size: has no description"),
        ("sample/schema.yaml", "propertys: {}", "the keyword 'propertys' is not supported"),
    ],
)
def test_what_is_wrong_is_said(tree, capsys, file, text, message):
    (tree / file).write_text(text)
    assert pillar_reference.main(["--check"], tree) == 1
    assert message in capsys.readouterr().err


def test_keys_are_found_in_comments_and_in_flow_style_where_they_would_stand():
    shown = pillar_reference.shown_keys("a:\n  # b: 1\n  c: {d: [{e: 2}]}\n  # f:\n  #   g: {h: 1}\n  i: 3\n")
    assert shown == {
        ("a",), ("a", "b"), ("a", "c"), ("a", "c", "d"), ("a", "c", "d", "e"),
        ("a", "f"), ("a", "f", "g"), ("a", "f", "g", "h"), ("a", "i"),
    }  # fmt: skip


def test_a_check_writes_nothing(tree):
    (tree / "docs" / "pillar.rst").unlink()
    assert pillar_reference.main(["--check"], tree) == 1
    assert not (tree / "docs" / "pillar.rst").exists()

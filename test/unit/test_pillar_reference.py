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
$defs:
  path: {type: string, format: absolute-path}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    formula = tmp_path / "sample"
    formula.mkdir()
    (formula / "init.sls").touch()
    (formula / "schema.yaml").write_text(SCHEMA)
    (formula / "defaults.yaml").write_text("size: 1\npassword: hunter2-hunter2\nnames: []\n")
    (formula / "osmap.yaml").write_text("os: {Debian: {names: [a]}}\n")
    (tmp_path / "pillar.example").write_text("sample: {size: 2}\n")
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
        ("sample/schema.yaml", "properties: {size: {}}", "sample:size: has no description"),
        ("sample/schema.yaml", "propertys: {}", "the keyword 'propertys' is not supported"),
    ],
)
def test_what_is_wrong_is_said(tree, capsys, file, text, message):
    (tree / file).write_text(text)
    assert pillar_reference.main(["--check"], tree) == 1
    assert message in capsys.readouterr().err


def test_a_check_writes_nothing(tree):
    (tree / "docs" / "pillar.rst").unlink()
    assert pillar_reference.main(["--check"], tree) == 1
    assert not (tree / "docs" / "pillar.rst").exists()

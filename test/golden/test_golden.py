"""The merged configuration of every formula on every operating system, as a reviewer sees it change.

`make golden` rewrites the files; the difference belongs into the same commit as its cause.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from render_harness import ROOT, formulas, grains, load

from _utils import formula_config, formula_schema, formula_vocabulary

HERE = Path(__file__).resolve().parent
SYSTEMS = {one["osfinger"]: one for one in grains().values()}
CASES = [(formula, system) for formula in formulas(ROOT) for system in SYSTEMS]


def golden(formula: str, system: str) -> Path:
    """Names the golden file of a formula and an operating system."""
    return HERE / formula / f"{system.replace(' ', '_')}.yaml"


def merged(root: Path, formula: str, host: dict[str, Any]) -> str:
    """Builds a configuration without a pillar, as the text of a golden file."""
    names = ("defaults.yaml", "osmap.yaml", "schema.yaml")
    contents = {name: load(root / formula / name) or {} for name in names}
    configuration, errors = formula_config.assemble(
        formula, contents, host, None, formula_vocabulary.load, formula_schema.errors
    )
    assert errors == []
    return "# Written by `make golden`.\n" + yaml.safe_dump(
        configuration, default_flow_style=False, allow_unicode=True, width=100
    )


@pytest.mark.parametrize(("formula", "system"), CASES)
def test_the_merged_configuration_is_as_reviewed(request, formula, system):
    text = merged(ROOT, formula, SYSTEMS[system])
    path = golden(formula, system)
    if request.config.getoption("--update-golden", default=False):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), "there is no golden file: run `make golden` and commit it"
    assert path.read_text(encoding="utf-8") == text, "run `make golden` and review the difference"


def test_no_golden_file_is_left_over(request):
    expected = {golden(formula, system) for formula, system in CASES}
    left = sorted(set(HERE.glob("*/*.yaml")) - expected)
    if request.config.getoption("--update-golden", default=False):
        for path in left:
            path.unlink()
        left = []
    assert left == []


def test_another_default_is_noticed(tmp_path):
    formula = tmp_path / "sample"
    formula.mkdir()
    (formula / "osmap.yaml").write_text("{}\n")
    (formula / "schema.yaml").write_text("{}\n")
    texts = []
    for default in ("1", "2"):
        (formula / "defaults.yaml").write_text(f"size: {default}\n")
        texts.append(merged(tmp_path, "sample", SYSTEMS["Debian-12"]))
    assert texts[0] != texts[1]


def test_invalid_defaults_are_noticed(tmp_path):
    formula = tmp_path / "sample"
    formula.mkdir()
    (formula / "osmap.yaml").write_text("{}\n")
    (formula / "schema.yaml").write_text("properties: {size: {type: string}}\n")
    (formula / "defaults.yaml").write_text("size: 1\n")
    with pytest.raises(AssertionError, match="put it in quotes"):
        merged(tmp_path, "sample", SYSTEMS["Debian-12"])

"""Every SLS of every formula compiles for every operating system and keeps the rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from render_harness import (
    HERE,
    ROOT,
    formulas,
    grains,
    load,
    problems,
    sls_names,
    text_problems,
)  # fmt: skip

GRAINS = grains()
FORMULAS = formulas(ROOT)
# Adding an operating system means adding its grains here; removing one means saying so.
PROMISED = {
    "AlmaLinux-9", "AlmaLinux-10", "Debian-12", "Debian-13", "Leap-15", "Leap-16", "Rocky Linux-9",
    "Ubuntu-22.04", "Ubuntu-24.04",
}  # fmt: skip
# Endings of what Salt renders; what has none is looked into.
JINJA = (".sls", ".j2")
# But not the page, which is built of web/ and served as it is.
PAGE = "nginx/files/usr/share/hypervisor-formula/web/"


def is_jinja(path: Path) -> bool:
    """Say whether Salt renders a file of a formula."""
    if not path.is_file() or PAGE in path.as_posix() or path.suffix == ".pyc":
        return False
    if path.suffix in JINJA or "files" not in path.parts:
        return path.suffix in JINJA
    return re.search(r"\{[{%]", path.read_text(encoding="utf-8")) is not None


def rendered_example() -> Any:
    """What pillar.example is as a file of the pillar, which Salt renders with Jinja before it reads the YAML."""
    text = (ROOT / "pillar.example").read_text(encoding="utf-8")
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - YAML, not HTML
    return yaml.safe_load(jinja.from_string(text).render())


def pillars() -> dict[str, Any]:
    """The pillars to compile with: none, the example, and those for single features."""
    found: dict[str, Any] = {"empty": {}}
    found["example"] = rendered_example()
    # The example shows no key.
    found["example"]["network"]["ipsec"]["psk"] = "kq3Vw8yR0bN5tXz1LmCe"
    found.update({path.stem: load(path) for path in sorted((HERE / "pillar").glob("*.yaml"))})
    return found


def test_the_promised_operating_systems_are_all_there():
    assert {one["osfinger"] for one in GRAINS.values()} == PROMISED


def test_the_example_is_a_pillar_file_as_it_stands():
    assert rendered_example()["saltapi"]["ldap"]["filter"] == "uid={{ username }}"


def test_there_are_formulas():
    assert FORMULAS


def with_own_packages(system: str, pillar: Any) -> Any:
    """Let a pillar with locks of shared storage name packages where the system's repositories have none."""
    locks = pillar.get("cluster", {}).get("storage", {}).get("lock_manager")
    if locks and GRAINS[system]["osfinger"] == "AlmaLinux-10":
        pillar["cluster"]["packages"] = {"roles": {"dlm": ["dlm", "lvm2-lockd"]}}
    return pillar


@pytest.mark.parametrize("pillar", pillars())
@pytest.mark.parametrize("system", GRAINS)
def test_every_sls_compiles_and_keeps_the_rules(make_host, system, pillar):
    host = make_host(GRAINS[system], with_own_packages(system, pillars()[pillar]))
    found = {sls: problems(host, sls) for formula in FORMULAS for sls in sls_names(ROOT, formula)}
    found["all formulas together"] = problems(host, *FORMULAS)
    assert {sls: lines for sls, lines in found.items() if lines} == {}


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_sources_ask_for_nothing_but_the_configuration(formula):
    paths = [path for path in (ROOT / formula).rglob("*") if is_jinja(path)]
    assert paths != []
    assert [line for path in paths for line in text_problems(path)] == []


def test_programs_that_are_templates_are_python():
    paths = [path for formula in FORMULAS for path in (ROOT / formula).rglob("*") if is_jinja(path)]
    programs = {path: text for path in paths if (text := path.read_text(encoding="utf-8")).startswith("#!{{ python }}")}
    assert {path.name for path in programs} == {"network-profile.j2", "shared_volume.py"}
    for path, text in programs.items():
        compile(text.replace("{{ python }}", "/usr/bin/python3"), path.name, "exec")


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_refused_pillar_ends_the_compilation_with_one_message(make_host, formula):
    host = make_host(GRAINS["debian-12"], {formula: {"no_such_key": 1}})
    low, errors = host.compile(formula)
    assert low == []
    (error,) = errors
    assert f"\n    {formula}:no_such_key: unknown key" in error
    assert "Traceback" not in error
    assert "{%" not in error

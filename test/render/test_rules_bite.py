"""Every rule of the render matrix catches what it is there for: a check that cannot fail is a defect."""

from __future__ import annotations

from pathlib import Path

import pytest
from render_harness import formulas, grains, problems, sls_names, text_problems

DEBIAN = grains()["debian-12"]
CONFIG = "{% set sample = salt['formula.config']('sample') %}\n"
GOOD = f"""# Guarantees a sample file.
{CONFIG}
sample_file:
  file.managed:
    - name: /etc/sample
    - source: salt://sample/files/etc/sample.j2
    - template: jinja
    - context: {{settings: {{{{ sample | json }}}}}}
    - mode: '0644'
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of one good formula."""
    formula = tmp_path / "tree" / "sample"
    (formula / "files" / "etc").mkdir(parents=True)
    (formula / "init.sls").write_text(GOOD)
    (formula / "defaults.yaml").write_text("size: 1\n")
    (formula / "osmap.yaml").write_text("os_family: {RedHat: {size: 2}}\n")
    (formula / "schema.yaml").write_text(
        "type: object\nadditionalProperties: false\nproperties: {size: {type: integer}}\n"
    )
    (formula / "files" / "etc" / "sample.j2").write_text("size = {{ settings.size }}\n")
    return formula.parent


def judged(make_host, tree: Path, sls: str = "sample"):
    return problems(make_host(DEBIAN, {}, tree), sls)


def state(body: str, ident: str = "sample_thing") -> str:
    return f"# Guarantees a thing.\n{ident}:\n  {body}\n"


def test_the_good_formula_has_no_problem(make_host, tree):
    assert formulas(tree) == ["sample"]
    assert judged(make_host, tree) == []
    assert list(text_problems(tree / "sample" / "init.sls")) == []


def test_grains_select_the_configuration(make_host, tree):
    host = make_host({**DEBIAN, "os_family": "RedHat"}, {}, tree)
    (low,), errors = host.compile("sample")
    assert errors == []
    assert host.template(low) == ("size = 2\n", "")


def test_every_sls_is_found(tree):
    (tree / "sample" / "more").mkdir()
    (tree / "sample" / "more" / "init.sls").touch()
    (tree / "sample" / "absent.sls").touch()
    assert sls_names(tree, "sample") == ["sample.absent", "sample", "sample.more"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% if %}", "does not compile"),
        ("{{ nothing.there }}", "does not compile"),
        ("a: b: c", "does not compile"),
        ("include: [sample.nowhere]", "does not compile"),
        (state("file.absent: [{name: /a}]") * 2, "does not compile"),
        (state("file.absent: [{name: /a}]", "thing"), "the id must begin with sample_"),
        (state("file.absent: [{name: /a}]", "sample_1"), "the id must begin with sample_"),
        (state("file.absnet: [{name: /a}]"), "there is no such state"),
        (state("flie.absent: [{name: /a}]"), "there is no such state"),
        (state("cmd.run: [{name: reboot}]"), "uses a shell"),
        (state("module.run: [{cmd.run: []}]"), "uses a shell"),
        (state("file.absent: [{name: /a}, {unless: test -e /b}]"), "unless uses a shell"),
        (state("file.absent: [{name: /a}, {onlyif: [test -e /b]}]"), "onlyif uses a shell"),
        (state("file.directory: [{name: /a}, {mode: 0755}]"), "mode must be quoted"),
        (state("file.directory: [{name: /a}, {mode: '755'}]"), "mode must be quoted and begin"),
        (state("file.directory: [{name: /a}, {dir_mode: 755}]"), "dir_mode must be quoted"),
        (state("file.managed: [{name: /a}, {source: 'salt://sample/none'}]"), "does not exist"),
        (
            state(
                "file.managed: [{name: /a}, {source: 'salt://sample/files/etc/sample.j2'}, "
                "{template: jinja}]"
            ),
            "does not render: Jinja variable 'settings' is undefined",
        ),
        (
            state("file.absent: [{name: /a}, {require: [{pkg: sample_packages}]}]"),
            "require pkg: sample_packages is nowhere",
        ),
        (
            state("file.absent: [{name: /a}, {watch: [{file: /b}]}]"),
            "file: /b is nowhere",
        ),
        (
            state("file.absent: [{name: /a}, {require: [sample_packages]}]"),
            "require sample_packages: must name the kind of state",
        ),
        (
            state("file.absent: [{name: /a}]") + state("file.absent: [{name: /a}]", "sample_b"),
            "file.absent /a is there 2 times",
        ),
        (
            state("file.absent: [{name: /a}, {require: [{file: sample_b}]}]")
            + state("file.absent: [{name: /b}, {require: [{file: sample_thing}]}]", "sample_b"),
            "ecursive requisite",
        ),
    ],
)
def test_a_defect_in_an_sls_is_caught(make_host, tree, text, problem):
    (tree / "sample" / "init.sls").write_text(text)
    found = judged(make_host, tree)
    assert [line for line in found if problem in line], found


def test_two_files_that_manage_the_same_thing_are_caught(make_host, tree):
    (tree / "sample" / "a.sls").write_text(state("file.absent: [{name: /a}]", "sample_a"))
    (tree / "sample" / "b.sls").write_text(state("file.absent: [{name: /a}]", "sample_b"))
    found = problems(make_host(DEBIAN, {}, tree), "sample.a", "sample.b")
    assert found == ["file.absent /a is there 2 times"]


def test_a_template_that_leaves_jinja_behind_is_caught(make_host, tree):
    (tree / "sample" / "files" / "etc" / "sample.j2").write_text("{{ '{{' }} size }}\n")
    assert "leaves Jinja behind" in judged(make_host, tree)[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b", "must open with a line on what it guarantees"),
        ("# x\n{{ salt['cmd.run']('id') }}", "calls salt['cmd.run']"),
        ("# x\n{{ salt.cmd.run('id') }}", "calls salt['cmd.run']"),
        ("# x\n{{ salt['file.file_exists']('/a') }}", "calls salt['file.file_exists']"),
        ("# x\n{{ salt['mine.get']('*', 'x') }}", "calls salt['mine.get']"),
        ("# x\n{{ pillar['kvm'] }}", "reads pillar["),
        ("# x\n{{ pillar.kvm }}", "reads pillar."),
        ("# x\n{{ grains['os'] }}", "reads grains["),
        ("# x\n{{ grains.get('os') }}", "reads grains."),
        ("# x\na:\n  b.c:\n    - require:\n      - sls: kvm\n", "a requisite of a whole SLS"),
        ("# x\nextend:\n  a: {}\n", "extend changes states of another file"),
    ],
)
def test_an_sls_that_looks_at_the_host_is_caught(tmp_path, text, problem):
    path = tmp_path / "a.sls"
    path.write_text(text)
    assert problem in "\n".join(text_problems(path))

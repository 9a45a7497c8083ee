"""What README and docs point to exists, and what exists is in the README."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
README = (ROOT / "README.rst").read_text(encoding="utf-8")
LINK = re.compile(r"`[^`<]+ <([^>]+)>`_")
IMAGE = re.compile(r"^\.\. image:: (\S+)", re.MULTILINE)
STATES = sorted(
    f"{path.parent.name}.{path.stem}".removesuffix(".init")
    for init in ROOT.glob("*/init.sls")
    for path in init.parent.glob("*.sls")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in [*LINK.findall(text), *IMAGE.findall(text)]:
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_underlines_fit_their_titles(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    for title, line in itertools.pairwise(lines):
        if title and not title.startswith(" ") and re.fullmatch(r"([=~-])\1{2,}", line):
            assert len(line) >= len(title), f"{page.name}: {title}"


def test_the_page_of_tests_names_what_is_slow():
    (slow,) = re.findall(r"^SLOW := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    page = (ROOT / "docs" / "testing.rst").read_text(encoding="utf-8")
    told = page.partition("* - ``make slow``")[2].partition("* - ``make bench``")[0]
    assert set(re.findall(r"``(\w+)``", told)) == {Path(path).name for path in slow.split()} | {"long"}


def test_every_page_is_reachable_from_the_readme():
    linked = set(LINK.findall(README))
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


@pytest.mark.parametrize("state", STATES)
def test_readme_lists_every_state(state):
    assert f"``{state}``" in README


def test_readme_lists_no_state_that_is_not_there():
    listed = re.findall(r"^   \* - ``([a-z.]+)``$", README, re.MULTILINE)
    assert {name for name in listed if not name.startswith("hypervisor.")} == set(STATES)


def test_readme_lists_every_function_of_the_module_hypervisor():
    text = (ROOT / "_modules" / "hypervisor.py").read_text(encoding="utf-8")
    for name in re.findall(r"^def ([a-z]\w*)\(", text, re.MULTILINE):
        assert re.search(rf"``(hypervisor)?\.{name}``", README), name


def test_formula_file_speaks_of_this_repository():
    formula = yaml.safe_load((ROOT / "FORMULA").read_text(encoding="utf-8"))
    assert (ROOT / formula["top_level_dir"] / "init.sls").is_file()
    changelog = (ROOT / "CHANGELOG").read_text(encoding="utf-8")
    assert str(formula["version"]) in changelog


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_workflows_pin_their_actions_and_call_targets_that_exist(workflow):
    text = workflow.read_text(encoding="utf-8")
    for action in re.findall(r"uses: *(\S+)", text):
        assert re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", action), action
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:sudo )?make ([a-z-]+)$", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    data = yaml.safe_load(text)
    assert data["permissions"] == {"contents": "read"}
    for job in data["jobs"].values():
        assert job["timeout-minutes"] <= 60

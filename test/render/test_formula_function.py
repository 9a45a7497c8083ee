"""formula.config in the real Salt: on a minion, and in salt-ssh's wrapper on the master's side."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import salt.exceptions
import salt.fileclient
import salt.loader
from render_harness import Host, grains

DEBIAN = grains()["debian-12"]
SLS = "# Guarantees nothing.\n{% set sample = salt['formula.config']('sample') %}\n"
REFUSED = """\
the pillar of sample has 3 errors, so nothing was changed:
    sample:size: 30 is too large; must be a whole number from 1 to 10
    sample:password: the value (a secret, not shown) is too short; must be text of at least 12 characters
    sample:txt: unknown key; did you mean "text"?"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of one formula."""
    formula = tmp_path / "tree" / "sample"
    formula.mkdir(parents=True)
    (formula / "init.sls").write_text(SLS)
    (formula / "defaults.yaml").write_text("size: 1\ntext: a\n")
    (formula / "osmap.yaml").write_text("osfinger: {Debian-12: {size: 2}}\n")
    (formula / "schema.yaml").write_text(
        "type: object\nadditionalProperties: false\nproperties:\n"
        "  size: {type: integer, minimum: 1, maximum: 10}\n"
        "  text: {type: string}\n"
        "  password: {type: string, minLength: 12, writeOnly: true}\n"
    )
    return formula.parent


def on_minion(host: Any) -> Any:
    """The function as an SLS on a minion sees it."""
    return host.functions["formula.config"]


def on_master(host: Any) -> Any:
    """The function as an SLS that salt-ssh renders sees it."""
    context = {"fileclient": salt.fileclient.get_file_client(host.opts)}
    return salt.loader.ssh_wrapper(host.opts, {}, context)["formula.config"]


BOTH = pytest.mark.parametrize("where", [on_minion, on_master])


@BOTH
def test_defaults_osmap_and_pillar_are_merged(make_host, tree, where):
    config = where(make_host(DEBIAN, {"sample": {"text": "b"}}, tree))
    assert config("sample") == {"size": 2, "text": "b"}


@BOTH
def test_a_caller_cannot_spoil_it_for_the_next(make_host, tree, where):
    config = where(make_host(DEBIAN, {}, tree))
    config("sample")["size"] = 9
    assert config("sample")["size"] == 2


@BOTH
def test_it_is_built_once_in_a_run(make_host, tree, where):
    config = where(make_host(DEBIAN, {}, tree))
    config("sample")
    for file in (tree / "sample").glob("*.yaml"):
        file.unlink()
    assert config("sample")["size"] == 2


@BOTH
def test_a_wrong_pillar_is_refused_with_all_errors_and_no_secret(make_host, tree, where):
    pillar = {"sample": {"size": 30, "password": "hunter2", "txt": 1}}
    config = where(make_host(DEBIAN, pillar, tree))
    with pytest.raises(salt.exceptions.CommandExecutionError) as caught:
        config("sample")
    assert str(caught.value) == REFUSED


@BOTH
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("defaults.yaml", "a: b: c", "salt://sample/defaults.yaml cannot be read"),
        ("defaults.yaml", "[a]", "the formula sample is broken: defaults.yaml: must be a mapping"),
        ("osmap.yaml", "kernel: {}", "the formula sample is broken: osmap.yaml: unknown key kernel"),
        ("schema.yaml", "tpye: object", "broken: schema.yaml at /: the keyword 'tpye'"),
    ],
)
def test_a_broken_formula_says_which_file_is_wrong(make_host, tree, where, file, text, message):
    (tree / "sample" / file).write_text(text)
    config = where(make_host(DEBIAN, {}, tree))
    with pytest.raises(salt.exceptions.CommandExecutionError) as caught:
        config("sample")
    assert message in str(caught.value)


@BOTH
def test_what_is_no_formula_is_said_so(make_host, tree, where):
    config = where(make_host(DEBIAN, {}, tree))
    with pytest.raises(salt.exceptions.CommandExecutionError, match=r"^none is not a formula here"):
        config("none")


def test_an_sls_is_refused_without_traceback_or_template(make_host, tree, caplog):
    pillar = {"sample": {"size": 30, "password": "hunter2", "txt": 1}}
    caplog.set_level(logging.WARNING)
    low, (error,) = make_host(DEBIAN, pillar, tree).compile("sample")
    assert low == []
    assert error.startswith("Rendering SLS 'base:sample' failed: ")
    assert error.endswith(REFUSED)
    assert "Traceback" not in caplog.text
    assert "{%" not in caplog.text


def test_other_errors_in_a_template_keep_their_traceback(make_host, tree, caplog):
    (tree / "sample" / "init.sls").write_text(SLS + "{{ sample.nothing.there }}\n")
    caplog.set_level(logging.WARNING)
    _, (error,) = make_host(DEBIAN, {}, tree).compile("sample")
    assert "has no attribute 'nothing'" in error
    assert "Traceback" in caplog.text


def test_validate_lists_what_is_wrong(make_host, tree):
    functions = make_host(DEBIAN, {"sample": {"size": 30}}, tree).functions
    line = "sample:size: 30 is too large; must be a whole number from 1 to 10"
    assert functions["formula.validate"]() == [line]
    assert functions["formula.validate"]("sample") == [line]


def test_validate_finds_nothing_wrong_with_a_good_pillar(make_host, tree):
    assert make_host(DEBIAN, {"sample": {"size": 3}}, tree).functions["formula.validate"]() == []


def test_arguments_of_a_state_are_judged_by_a_definition(make_host, tree):
    schema = tree / "sample" / "schema.yaml"
    schema.write_text(
        schema.read_text() + "$defs:\n  part:\n    type: object\n    additionalProperties: false\n"
        "    required: [size]\n    properties: {size: {type: integer, minimum: 1}}\n"
    )
    judge = make_host(DEBIAN, {}, tree).functions["formula.judge"]
    assert judge("sample", "part", {"size": 4}, "web") == []
    assert judge("sample", "part", {"size": 0, "siz": 1}, "web") == [
        "web:size: 0 is too small; must be a whole number of at least 1",
        'web:siz: unknown key; did you mean "size"?',
    ]
    with pytest.raises(salt.exceptions.CommandExecutionError, match="the formula sample is broken"):
        judge("sample", "nothing", {}, "web")


class TestMemory:
    """What a host remembers of earlier runs."""

    @pytest.fixture(name="run")
    def one_run(self, tree, tmp_path):
        """Ask for the configuration as a new run of the same host would."""

        def run(pillar: Any) -> Any:
            host = Host(tree, tmp_path / "host", DEBIAN, {"sample": pillar})
            try:
                return host.functions["formula.config"]("sample")
            finally:
                host.close()

        return run

    @pytest.fixture(name="remembered")
    def remembered_file(self, tmp_path):
        return tmp_path / "host" / "cache" / "formula" / "base-sample.json"

    def test_nothing_is_judged_twice(self, run, remembered):
        pillar = {"text": "b", "size": 4}
        first = run(pillar)
        content = json.loads(remembered.read_text())
        # A value that the schema would refuse, so that one sees where it comes from.
        remembered.write_text(json.dumps(content | {"base": content["base"] | {"extra": 1}}))
        assert run(pillar) == {**first, "extra": 1}

    def test_another_pillar_is_judged(self, run, remembered):
        run({"size": 4})
        with pytest.raises(salt.exceptions.CommandExecutionError, match="50 is too large"):
            run({"size": 50})
        assert len(json.loads(remembered.read_text())["accepted"]) == 1

    def test_only_so_many_are_remembered(self, run, remembered):
        for number in range(12):
            run({"text": str(number)})
        assert len(json.loads(remembered.read_text())["accepted"]) == 10

    @pytest.mark.parametrize("file", ["schema.yaml", "defaults.yaml", "osmap.yaml"])
    def test_another_formula_is_judged(self, run, tree, file):
        run({"size": 4})
        path = tree / "sample" / file
        path.write_text(path.read_text().replace("maximum: 10", "maximum: 3") + "\n")
        path.write_text(path.read_text().replace("text: a", "text: [c]").replace("size: 2", "text: 2"))
        with pytest.raises(salt.exceptions.CommandExecutionError, match="the pillar of sample has 1 error"):
            run({"size": 4})

    def test_other_grains_are_judged(self, run, tree, tmp_path):
        run({})
        host = Host(tree, tmp_path / "host", grains()["debian-13"], {})
        assert host.functions["formula.config"]("sample")["size"] == 1
        host.close()

    def test_another_evaluator_judges(self, run, remembered, monkeypatch):
        run({})
        before = json.loads(remembered.read_text())["stamp"]
        read = Path.read_bytes
        change = b"# newer"
        monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + change * (self.name == "formula_schema.py"))
        run({})
        assert json.loads(remembered.read_text())["stamp"] != before

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"stamp": 1, "accepted": 2}'])
    def test_what_is_damaged_is_written_anew(self, run, remembered, text):
        expected = run({"size": 4})
        whole = remembered.read_text()
        remembered.write_text(text)
        assert run({"size": 4}) == expected
        assert remembered.read_text() == whole

    def test_no_value_of_a_pillar_is_in_it_and_root_alone_reads_it(self, run, remembered):
        run({"password": "correct horse battery"})
        assert "horse" not in remembered.read_text()
        assert remembered.stat().st_mode & 0o777 == 0o600
        assert remembered.parent.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in remembered.parent.iterdir()] == [remembered.name]

    def test_a_cache_that_cannot_be_written_stops_nothing(self, run, tmp_path):
        (tmp_path / "host" / "cache").mkdir(parents=True)
        (tmp_path / "host" / "cache" / "formula").write_text("")
        assert run({"size": 4})["size"] == 4


def test_keys_that_are_not_text_are_refused_and_no_crash(make_host, tree):
    config = make_host(DEBIAN, {"sample": {1: "a", "b": 2}}, tree).functions["formula.config"]
    with pytest.raises(salt.exceptions.CommandExecutionError, match="the key is not text"):
        config("sample")

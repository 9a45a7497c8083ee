"""SELinux type of a folder: in the policy and on the folder, and nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import salt.utils.path

from _states import file_label


class System:
    """A system with SELinux: a policy with one rule, and a folder's label."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder = folder
        self.policy, self.label = "var_t", "var_t"
        self.defined = False
        self.programs = {"matchpathcon", "semanage", "restorecon"}
        self.calls: list[list[str]] = []
        self.opts = {"test": False}
        self.enforce = folder / "enforce"
        self.enforce.write_text("1")
        monkeypatch.setattr(file_label, "_RUNS", self.enforce)
        monkeypatch.setattr(file_label, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(file_label, "__salt__", {"cmd.run_all": self.run}, raising=False)
        monkeypatch.setattr(salt.utils.path, "which", lambda name: name if name in self.programs else None)
        monkeypatch.setattr(os, "getxattr", lambda *_: f"system_u:object_r:{self.label}:s0\0".encode())

    def run(self, argv: list[str], **_: Any) -> dict[str, Any]:
        text, code = "", 0
        if argv[0] == "matchpathcon":
            text = f"system_u:object_r:{self.policy}:s0\n"
        else:
            self.calls.append(argv)
        if argv[0] == "restorecon":
            self.label = self.policy
        if argv[0] == "semanage":
            code = int(self.defined and "--add" in argv)
            self.policy = self.policy if code else argv[argv.index("--type") + 1]
        return {"retcode": code, "stdout": text, "stderr": "ValueError: it is already defined" if code else ""}

    def label_it(self) -> dict[str, Any]:
        return file_label.present(str(self.folder), "virt_image_t")


@pytest.fixture(name="system")
def selinux_system(monkeypatch, tmp_path) -> System:
    return System(monkeypatch, tmp_path)


def test_policy_and_folder_get_the_type_and_are_then_left_alone(system):
    ret = system.label_it()
    change = {"old": "var_t", "new": "virt_image_t"}
    assert (ret["result"], ret["changes"]) == (True, {"policy": change, "folder": change})
    assert [argv[0] for argv in system.calls] == ["semanage", "restorecon"]
    assert "--recursive" not in system.calls[1] and "-R" not in system.calls[1]  # noqa: PT018  one thought
    assert system.label_it()["changes"] == {}
    assert len(system.calls) == 2


def test_a_rule_that_is_there_already_is_modified(system):
    system.defined = True
    assert system.label_it()["result"] is True
    assert [argv[2] for argv in system.calls if argv[0] == "semanage"] == ["--add", "--modify"]


def test_a_folder_that_the_policy_knows_needs_no_semanage(system):
    system.policy, system.programs = "virt_image_t", {"matchpathcon", "restorecon"}
    ret = system.label_it()
    assert (ret["result"], list(ret["changes"])) == (True, ["folder"])


def test_a_dry_run_predicts_the_same_and_changes_nothing(system):
    system.opts["test"] = True
    ret = system.label_it()
    assert (ret["result"], sorted(ret["changes"])) == (None, ["folder", "policy"])
    assert (system.calls, system.label) == ([], "var_t")
    missing = file_label.present(str(system.folder / "later"), "virt_image_t")
    assert (missing["result"], missing["changes"]) == (None, {"type": {"old": None, "new": "virt_image_t"}})


def test_without_selinux_there_is_nothing_to_do(system):
    system.enforce.unlink()
    ret = system.label_it()
    assert (ret["result"], ret["changes"], system.calls) == (True, {}, [])


def test_a_missing_tool_is_named_with_its_package(system):
    system.programs = {"matchpathcon"}
    ret = system.label_it()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "policycoreutils-python-utils" in ret["comment"]


def test_a_type_that_did_not_stick_is_a_failure(system, monkeypatch):
    plain = system.run
    monkeypatch.setattr(
        file_label, "__salt__", {"cmd.run_all": lambda argv, **_: {**plain(argv), "retcode": 0}}
    )
    monkeypatch.setattr(os, "getxattr", lambda *_: b"system_u:object_r:fixed_t:s0\0")
    ret = system.label_it()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "fixed_t" in ret["comment"]


@pytest.mark.parametrize("setype", ["", "a b", "-t", "Virt", "x;y"])
def test_what_is_no_type_is_refused(system, setype):
    assert file_label.present("/srv", setype)["result"] is False
    assert system.calls == []


def test_the_policy_takes_the_folder_by_the_letter():
    expression = re.compile(file_label.pattern("/srv/images (old).d/"))
    assert expression.fullmatch("/srv/images (old).d")
    assert expression.fullmatch("/srv/images (old).d/a/b")
    assert not expression.fullmatch("/srv/images (old)xd")
    assert not expression.fullmatch("/srv/images (old).data")


@pytest.mark.parametrize("context", ["", "unlabeled", "a:b"])
def test_what_is_no_context_is_refused(context):
    with pytest.raises(ValueError, match="no SELinux context"):
        file_label.type_of(context)

"""The master gets runners only where they differ, and only the master does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import SaltException

from _states import master_modules

KINDS = ("runners", "utils", "engines")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Master:
    """A master whose file server and extension modules are folders."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.served, self.extensions, self.pki = folder / "served", folder / "ext", folder / "pki"
        for path in (
            *(self.served / f"_{kind}" for kind in KINDS), *(self.extensions / kind for kind in KINDS), self.pki,
        ):  # fmt: skip
            path.mkdir(parents=True)
        (self.pki / "master.pem").write_text("key")
        for kind in KINDS:
            (self.served / f"_{kind}" / "fleet.py").write_text(f"new {kind}")
        self.opts = {"test": False, "conf_file": str(folder / "minion")}
        self.syncs: list[str] = []
        self.works = True
        monkeypatch.setattr(master_modules, "__opts__", self.opts, raising=False)
        salt = {
            "cp.list_master": lambda prefix: [f"{prefix}fleet.py", f"{prefix}README"],
            "cp.hash_file": lambda url: {"hsum": digest(self.served / url.removeprefix("salt://"))},
            "file.get_hash": lambda path, _: digest(Path(path)),
        }
        monkeypatch.setattr(master_modules, "__salt__", salt, raising=False)
        config = {"pki_dir": str(self.pki), "extension_modules": str(self.extensions)}
        monkeypatch.setattr("salt.config.master_config", lambda path: self.config(path, config))
        monkeypatch.setattr("salt.runner.RunnerClient", lambda _: self)

    @staticmethod
    def config(path: str, config: dict[str, str]) -> dict[str, str]:
        assert Path(path).name == "master"
        return config

    def cmd(self, name: str, print_event: bool) -> list[Any]:
        assert not print_event
        self.syncs.append(name)
        if not self.works:
            raise SaltException("no space left")
        kind = name.removeprefix("saltutil.sync_")
        (self.extensions / kind / "fleet.py").write_text((self.served / f"_{kind}" / "fleet.py").read_text())
        return [f"{kind}.fleet"]


@pytest.fixture(name="master")
def a_master(monkeypatch, tmp_path) -> Master:
    return Master(monkeypatch, tmp_path)


def test_what_is_missing_is_brought_once(master):
    master.opts["test"] = True
    predicted = master_modules.runners("x")
    wanted = {"runners": ["fleet.py"], "utils": ["fleet.py"]}
    assert (predicted["result"], predicted["changes"], master.syncs) == (None, wanted, [])
    master.opts["test"] = False
    ret = master_modules.runners("x")
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert master.syncs == ["saltutil.sync_runners", "saltutil.sync_utils"]
    assert master_modules.runners("x")["changes"] == {}
    assert master.syncs == ["saltutil.sync_runners", "saltutil.sync_utils"]


def test_an_engine_comes_with_its_utilities(master):
    assert master_modules.engines("x")["changes"] == {"engines": ["fleet.py"], "utils": ["fleet.py"]}
    assert master.syncs == ["saltutil.sync_engines", "saltutil.sync_utils"]
    assert master_modules.engines("x")["changes"] == {}


@pytest.mark.parametrize("kind", ["runners", "utils"])
def test_what_differs_is_replaced(master, kind):
    for one in KINDS:
        (master.extensions / one / "fleet.py").write_text(f"new {one}" if one != kind else "old")
    assert master_modules.runners("x")["changes"] == {kind: ["fleet.py"]}
    assert (master.extensions / kind / "fleet.py").read_text() == f"new {kind}"
    assert master.syncs == [f"saltutil.sync_{kind}"]


def test_a_failure_is_one(master):
    master.works = False
    ret = master_modules.runners("x")
    assert (ret["result"], ret["comment"]) == (False, "The master has not got the runners: no space left.")


def test_a_minion_that_is_not_the_masters_is_refused(master):
    (master.pki / "master.pem").unlink()
    ret = master_modules.runners("x")
    assert (ret["result"], ret["comment"]) == (False, "This is not the master.")

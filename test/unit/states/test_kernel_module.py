"""Kernel modules: loaded when they are not there, never unloaded, and other options than declared are reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import salt.utils.path

from _states import kernel_module


class Kernel:
    """A /sys/module, a list of built-in modules, and a modprobe that loads what it knows."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.sys, self.library = folder / "module", folder / "lib"
        self.sys.mkdir()
        self.known = {"vhost_net", "br_netfilter"}
        self.calls: list[list[str]] = []
        self.opts = {"test": False}
        release = self.library / os.uname().release
        release.mkdir(parents=True)
        (release / "modules.builtin").write_text("kernel/fs/binfmt_script.ko\nkernel/net/8021q/8021q-mod.ko.xz\n")
        monkeypatch.setattr(kernel_module, "_SYS", self.sys)
        monkeypatch.setattr(kernel_module, "_LIBRARY", self.library)
        monkeypatch.setattr(kernel_module, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(kernel_module, "__salt__", {"cmd.run_all": self.modprobe}, raising=False)
        monkeypatch.setattr(salt.utils.path, "which", lambda name: f"/sbin/{name}")

    def load(self, name: str, **parameters: str) -> None:
        (self.sys / name / "parameters").mkdir(parents=True)
        for key, value in parameters.items():
            (self.sys / name / "parameters" / key).write_text(value + "\n")

    def modprobe(self, argv: list[str], **_: Any) -> dict[str, Any]:
        self.calls.append(argv)
        if argv[-1] not in self.known:
            return {"retcode": 1, "stdout": "", "stderr": f"modprobe: FATAL: Module {argv[-1]} not found"}
        self.load(argv[-1])
        return {"retcode": 0, "stdout": "", "stderr": ""}


@pytest.fixture(name="kernel")
def small_kernel(monkeypatch, tmp_path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


def test_a_missing_module_is_loaded_once(kernel):
    ret = kernel_module.loaded("vhost-net")
    assert (ret["result"], ret["changes"]) == (True, {"module": {"old": None, "new": "vhost_net"}})
    assert kernel.calls == [["modprobe", "--use-blacklist", "--", "vhost_net"]]
    assert kernel_module.loaded("vhost-net")["changes"] == {}
    assert len(kernel.calls) == 1


def test_a_dry_run_loads_nothing(kernel):
    kernel.opts["test"] = True
    ret = kernel_module.loaded("br_netfilter")
    assert (ret["result"], ret["changes"]) == (None, {"module": {"old": None, "new": "br_netfilter"}})
    assert kernel.calls == []


@pytest.mark.parametrize("name", ["binfmt_script", "8021q-mod"])
def test_what_is_built_in_needs_no_loading(kernel, name):
    assert kernel_module.loaded(name)["changes"] == {}
    assert kernel.calls == []


def test_a_module_that_there_is_not_fails_with_the_words_of_modprobe(kernel):
    ret = kernel_module.loaded("nosuch")
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "Module nosuch not found" in ret["comment"]


def test_a_module_that_another_file_blacklists_is_not_loaded_and_says_so(kernel, monkeypatch):
    silent = {"cmd.run_all": lambda *_, **__: {"retcode": 0, "stdout": "", "stderr": ""}}
    monkeypatch.setattr(kernel_module, "__salt__", silent)
    ret = kernel_module.loaded("vhost_net")
    assert ret["result"] is False
    assert "blacklisted by a file in /etc/modprobe.d" in ret["comment"]


def test_without_modprobe_it_fails(kernel, monkeypatch):
    monkeypatch.setattr(salt.utils.path, "which", lambda _: None)
    ret = kernel_module.loaded("vhost_net")
    assert ret["result"] is False
    assert "kmod" in ret["comment"]


@pytest.mark.parametrize("function", [kernel_module.loaded, kernel_module.available])
def test_options_that_differ_are_reported_and_nothing_is_unloaded(kernel, function):
    kernel.load("kvm_intel", nested="N", ept="Y", ple_gap="128")
    ret = function("kvm_intel", {"nested": 1, "ept": True, "ple_gap": "0x80", "unseen": 3})
    assert (ret["result"], ret["changes"], kernel.calls) == (True, {}, [])
    assert "other options: nested is N, not 1." in ret["comment"]
    assert "next boot" in ret["comment"]
    assert "other options" not in function("kvm_intel", {"nested": False})["comment"]


@pytest.mark.parametrize(
    ("value", "found", "same"),
    [
        (True, "Y", True),
        (1, "Y", True),
        (0, "Y", False),
        ("on", "on", True),
        (16, "0x10", True),
        (["a", "b"], "a,b", True),
        (["a", "b"], "a", False),
        ("off", "(null)", False),
    ],
)
def test_values_of_options(value, found, same):
    assert kernel_module.equal(kernel_module.spelt(value), found) is same


def test_a_module_for_others_to_load_is_never_loaded_here(kernel):
    ret = kernel_module.available("vhost_net", {"experimental_zcopytx": 1})
    assert (ret["result"], ret["changes"], kernel.calls) == (True, {}, [])


def test_a_blacklisted_module_that_is_loaded_stays_and_is_named(kernel):
    assert "is not loaded" in kernel_module.blacklisted("iTCO_wdt")["comment"]
    kernel.load("iTCO_wdt")
    ret = kernel_module.blacklisted("iTCO_wdt")
    assert (ret["result"], ret["changes"], kernel.calls) == (True, {}, [])
    assert "until the next boot" in ret["comment"]


@pytest.mark.parametrize("name", ["", "-r", "a b", "../x", "kvm\n", "a;b"])
@pytest.mark.parametrize("function", [kernel_module.loaded, kernel_module.available, kernel_module.blacklisted])
def test_what_is_no_module_is_refused(kernel, function, name):
    ret = function(name)
    assert ret["result"] is False
    assert "not the name of a kernel module" in ret["comment"]
    assert kernel.calls == []

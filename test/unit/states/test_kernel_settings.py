"""Settings of the kernel: only what differs is written, it is read back, and a dry run predicts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _states import kernel_settings


class Kernel:
    """A /proc/sys and the folders of files for systemd-sysctl."""

    def __init__(self, monkeypatch, folder: Path, **settings: str) -> None:
        self.proc = folder / "proc"
        self.etc, self.usr = folder / "etc", folder / "usr"
        for path in (self.proc, self.etc, self.usr):
            path.mkdir()
        for key, value in settings.items():
            self.set(key.replace("__", "/"), value)
        self.opts = {"test": False}
        monkeypatch.setattr(kernel_settings, "_PROC", self.proc)
        monkeypatch.setattr(kernel_settings, "_FOLDERS", (self.etc, self.usr))
        monkeypatch.setattr(kernel_settings, "__opts__", self.opts, raising=False)

    def set(self, path: str, value: str) -> None:
        (self.proc / path).parent.mkdir(parents=True, exist_ok=True)
        (self.proc / path).write_text(value + "\n")

    def get(self, path: str) -> str:
        return (self.proc / path).read_text()

    def apply(self, **options: Any) -> dict[str, Any]:
        return kernel_settings.applied("x", options["settings"], str(self.etc / "90-hypervisor.conf"))


@pytest.fixture(name="kernel")
def small_kernel(monkeypatch, tmp_path) -> Kernel:
    return Kernel(monkeypatch, tmp_path, vm__swappiness="60", net__ipv4__tcp_rmem="4096\t131072\t6291456")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("vm.swappiness", "vm/swappiness"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_the_first_separator_decides(key, path):
    assert kernel_settings.relative(key) == path


@pytest.mark.parametrize("key", ["swappiness", "vm", "vm..x", "vm./x", "../etc/passwd", "vm.x y", "vm.swappiness\n"])
def test_what_is_no_setting_is_refused(key):
    with pytest.raises(ValueError, match="not the name of a kernel setting"):
        kernel_settings.relative(key)


def test_what_differs_is_set_and_then_left_alone(kernel):
    settings = {"vm.swappiness": 1, "net.ipv4.tcp_rmem": "4096 131072 6291456"}
    ret = kernel.apply(settings=settings)
    assert (ret["result"], ret["changes"]) == (True, {"vm.swappiness": {"old": "60", "new": "1"}})
    assert kernel.get("vm/swappiness") == "1"
    assert kernel.get("net/ipv4/tcp_rmem") == "4096\t131072\t6291456\n"
    assert kernel.apply(settings=settings)["changes"] == {}


def test_a_dry_run_predicts_the_same_and_sets_nothing(kernel):
    kernel.opts["test"] = True
    ret = kernel.apply(settings={"vm.swappiness": 1, "net.ipv4.tcp_rmem": "4096 131072 6291456"})
    assert (ret["result"], ret["changes"]) == (None, {"vm.swappiness": {"old": "60", "new": "1"}})
    assert kernel.get("vm/swappiness") == "60\n"
    assert kernel.apply(settings={"vm.swappiness": "60"})["result"] is True


@pytest.mark.parametrize("test", [True, False])
def test_a_setting_that_this_kernel_does_not_have_fails_before_another_is_set(kernel, test):
    kernel.opts["test"] = test
    ret = kernel.apply(settings={"vm.swappiness": 1, "vm.zone_reclaim_mode": 0})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "vm.zone_reclaim_mode" in ret["comment"]
    assert "kvm:modules" in ret["comment"]
    assert kernel.get("vm/swappiness") == "60\n"


def test_settings_of_a_module_that_is_about_to_be_loaded_are_predicted(kernel):
    wanted = {"net.bridge.bridge-nf-call-iptables": 0, "net.bridge.bridge-nf-call-ip6tables": 1}
    kernel.opts["test"] = True
    ret = kernel.apply(settings=wanted)
    assert ret["result"] is None
    assert ret["changes"] == {"net.bridge.bridge-nf-call-iptables": {"old": "1", "new": "0"}}
    kernel.opts["test"] = False
    assert kernel.apply(settings=wanted)["result"] is False  # without the module
    kernel.set("net/bridge/bridge-nf-call-iptables", "1")
    kernel.set("net/bridge/bridge-nf-call-ip6tables", "1")
    assert kernel.apply(settings=wanted)["changes"] == ret["changes"]


def test_a_value_that_the_kernel_refuses_is_said(kernel, monkeypatch):
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(Path, "write_text", refuse)
    ret = kernel.apply(settings={"vm.swappiness": 999})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "refuses vm.swappiness = 999: Invalid argument" in ret["comment"]


def test_a_value_that_the_kernel_changes_is_a_failure_with_both(kernel, monkeypatch):
    plain = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, _text, **rest: plain(path, "200", **rest))
    ret = kernel.apply(settings={"vm.swappiness": 999})
    assert ret["result"] is False
    assert ret["changes"] == {"vm.swappiness": {"old": "60", "new": "200"}}
    assert "made 200 of vm.swappiness = 999" in ret["comment"]


def test_a_file_that_undoes_a_setting_at_boot_is_named(kernel):
    (kernel.etc / "80-early.conf").write_text("vm.swappiness = 50\n")
    (kernel.etc / "99-late.conf").write_text("# vm.swappiness = 20\n-vm/swappiness=10\nvm.laptop_mode = 5\n")
    (kernel.usr / "99-late.conf").write_text("vm.swappiness = 30\n")  # hidden by the one of /etc
    (kernel.usr / "95-same.conf").write_text("vm.swappiness = 1\n")
    ret = kernel.apply(settings={"vm.swappiness": 1})
    assert ret["result"] is True
    assert f"undone: {kernel.etc}/99-late.conf sets vm.swappiness to 10." in ret["comment"]


def test_a_name_that_is_no_setting_changes_nothing(kernel):
    ret = kernel.apply(settings={"vm.swappiness": 1, "nonsense": 1})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert kernel.get("vm/swappiness") == "60\n"


@pytest.mark.parametrize("test", [False, True])
def test_what_a_module_would_bring_may_be_left_out(kernel, test):
    kernel.opts["test"] = test
    settings: dict[str, Any] = {"vm.swappiness": 1, "net.bridge.bridge-nf-call-iptables": 0}
    ret = kernel_settings.applied("x", settings, if_there=True)
    assert ret["changes"] == {"vm.swappiness": {"old": "60", "new": "1"}}
    assert ret["result"] is (None if test else True)
    kernel.set("net/bridge/bridge-nf-call-iptables", "1")
    assert "net.bridge.bridge-nf-call-iptables" in kernel_settings.applied("x", settings, if_there=True)["changes"]

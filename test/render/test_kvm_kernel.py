"""What kvm/modules and kvm/kernel write for a kernel, as text, and what has to come first."""

from __future__ import annotations

import pytest
from render_harness import grains

SYSTEM = grains()["debian-12"]
MODULES = {
    "vhost_net": {},
    "kvm_intel": {"ensure": "available", "options": {"nested": True, "ple_gap": 0}},
    "vfio-pci": {"options": {"ids": ["10de:1b80", "10de:10f0"]}},
    "nouveau": {"ensure": "blacklisted"},
}


@pytest.fixture(name="compiled")
def compile_pillar(make_host):
    """Compiles kvm with a pillar; gives the host and the low states by id."""

    def compiled(pillar):
        host = make_host(SYSTEM, {"kvm": pillar})
        low, errors = host.compile("kvm")
        assert errors == []
        return host, {chunk["__id__"]: chunk for chunk in low}

    return compiled


def text(host, chunk):
    """Renders a file and leaves its header out."""
    rendered, error = host.template(chunk)
    assert error == ""
    assert rendered.startswith("# Written by Salt")
    return rendered.split("\n", 1)[1].rstrip("\n") + "\n"


def test_files_of_modules(compiled):
    host, low = compiled({"modules": MODULES})
    assert text(host, low["kvm_modules_loaded"]) == "vfio-pci\nvhost_net\n"
    assert text(host, low["kvm_modules_options"]) == (
        "options kvm_intel nested=1 ple_gap=0\nblacklist nouveau\noptions vfio-pci ids=10de:1b80,10de:10f0\n"
    )
    functions = {name: low[f"kvm_module_{name}"]["fun"] for name in MODULES}
    assert list(functions.values()) == ["loaded", "available", "loaded", "blacklisted"]


def test_settings_of_bridges_load_their_module_first(compiled):
    host, low = compiled({"sysctl": {"vm.swappiness": 1, "net.bridge.bridge-nf-call-iptables": 0}})
    assert text(host, low["kvm_modules_loaded"]) == "br_netfilter\n"
    assert {"kernel_module": "kvm_module_br_netfilter"} in low["kvm_sysctl"]["require"]
    assert text(host, low["kvm_sysctl_file"]) == "net.bridge.bridge-nf-call-iptables = 0\nvm.swappiness = 1\n"


def test_a_module_that_pillar_configures_itself_is_left_so(compiled):
    own = {"br_netfilter": {"ensure": "available"}}
    _, low = compiled({"sysctl": {"net/bridge/bridge-nf-call-iptables": 0}, "modules": own})
    assert low["kvm_module_br_netfilter"]["fun"] == "available"


def test_other_settings_need_no_module(compiled):
    _, low = compiled({"sysctl": {"vm.swappiness": 1}})
    assert low["kvm_modules_options"]["fun"] == low["kvm_modules_loaded"]["fun"] == "absent"
    assert "kvm_module_br_netfilter" not in low


@pytest.mark.parametrize(
    ("pillar", "lines"),
    [
        ({"enabled": True}, "w /sys/kernel/mm/ksm/run - - - - 1\n"),
        ({"enabled": False, "unmerge": True}, "w /sys/kernel/mm/ksm/run - - - - 0\n"),
        ({"tunables": {"merge_across_nodes": False}}, "w /sys/kernel/mm/ksm/merge_across_nodes - - - - 0\n"),
    ],
)
def test_file_of_merging(compiled, pillar, lines):
    host, low = compiled({"ksm": pillar})
    assert text(host, low["kvm_ksm_file"]) == lines


def test_a_host_without_a_kernel_of_its_own_gets_none_of_it(compiled):
    pillar = {"modules": MODULES, "ksm": {"enabled": True}, "sysctl": {"vm.x": 1}}
    _, low = compiled({"kernel": {"manage": False}, **pillar})
    assert [name for name in low if "module" in name or "ksm" in name or "sysctl" in name] == []


@pytest.mark.parametrize(
    ("pillar", "words"),
    [
        ({"modules": {"a": {"ensure": "blacklisted", "options": {"x": 1}}}}, "kvm:modules:a"),
        ({"modules": {"a b": {}}}, "kvm:modules:a b"),
        ({"modules": {"a": {"options": {"x": "1 y=2"}}}}, "kvm:modules:a:options:x"),
        ({"modules": {"a": {"ensure": "unloaded"}}}, "loaded, available, blacklisted"),
        ({"ksm": {"tunables": {"pages_to_scan": 0}}}, "kvm:ksm:tunables:pages_to_scan"),
        ({"ksm": {"run": 2}}, "kvm:ksm:run"),
    ],
)
def test_what_makes_no_sense_is_refused(make_host, pillar, words):
    low, errors = make_host(SYSTEM, {"kvm": pillar}).compile("kvm")
    assert low == []
    assert words in errors[0], errors

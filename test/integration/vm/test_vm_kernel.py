"""Modules, settings and memory of a kernel of its own: in force after a boot, altered, foreseen and repaired.

Under emulation a run of Salt takes long, so that few of them each look at many things.
"""

import contextlib
import json

import pytest

from lab import salt

SETTINGS = {
    "vm/swappiness": "1",
    "vm/zone_reclaim_mode": "0",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}
KSM = "/sys/kernel/mm/ksm"
# What is altered, and the state that sees and repairs it, with all that it says has changed (None: a file's text).
DRIFTS = (
    (
        "echo 60 >/proc/sys/vm/swappiness; modprobe --remove br_netfilter",
        "kvm_sysctl",
        {
            "vm.swappiness": {"old": "60", "new": "1"},
            "net.bridge.bridge-nf-call-iptables": {"old": "1", "new": "0"},
            "net.bridge.bridge-nf-call-ip6tables": {"old": "1", "new": "0"},
        },
    ),
    (":", "kvm_module_br_netfilter", {"module": {"old": None, "new": "br_netfilter"}}),
    ("modprobe --remove dummy", "kvm_module_dummy", {"module": {"old": None, "new": "dummy"}}),
    (
        f"echo 100 >{KSM}/pages_to_scan; echo 0 >{KSM}/run",
        "kvm_ksm",
        {"pages_to_scan": {"old": "100", "new": "200"}, "run": {"old": "0", "new": "1"}},
    ),
    ("echo options loop max_loop=3 >>/etc/modprobe.d/zz-hypervisor.conf", "kvm_modules_options", None),
    ("rm /etc/modules-load.d/hypervisor.conf", "kvm_modules_loaded", None),
    ("sed -i s/swappiness.*/swappiness=9/ /etc/sysctl.d/90-hypervisor.conf", "kvm_sysctl_file", None),
    ("truncate --size=0 /etc/tmpfiles.d/hypervisor-ksm.conf", "kvm_ksm_file", None),
)
# What the kernel does not have, does not take, or does not take while a module is loaded.
ODD = {
    "modules": {
        "nosuchmodule": {},
        "vhost_net": {"options": {"experimental_zcopytx": 1}},
        "psmouse": {"ensure": "blacklisted"},
    },
    "sysctl": {"vm.no_such_setting": 1},
    "ksm": {"enabled": False, "unmerge": True},
}


def call(hv1, *words):
    """Call Salt on hv1, whose answer to the master would be late under emulation; return each state's row by its id."""
    argv = ["salt-call", "--out=json", "--out-indent=-1", *words, "queue=True"]
    done = hv1.ssh(argv, check=False, timeout=600)
    rows = json.loads(done.stdout)["local"]
    assert isinstance(rows, dict), rows
    return {row["__id__"]: row for row in rows.values()}


def apply(hv1, *words):
    """Apply kvm.modules and kvm.kernel."""
    return call(hv1, "state.apply", "kvm.modules,kvm.kernel", *words)


def changes(rows):
    """Return the changes of the states that have some, by id."""
    return {name: row["changes"] for name, row in rows.items() if row["changes"]}


@contextlib.contextmanager
def pillar(mixed, over):
    """Lay a pillar over hv1's own; the lab's pillar comes back afterwards."""
    text = salt.pillar_files(mixed.hosts)["hv1.sls"]
    salt.merge_pillar(mixed.hosts, {"hv1.sls": salt.merged_yaml(text, {"kvm": over})})
    try:
        yield
    finally:
        salt.merge_pillar(mixed.hosts, salt.pillar_files(mixed.hosts))


@pytest.fixture(scope="module", name="booted")
def booted_with_the_settings(hv1):
    """hv1 after a boot with what the formula wrote; after the other tests here it has had one."""
    if hv1.ssh(["test", "-e", "/etc/modules-load.d/hypervisor.conf"], check=False).returncode != 0:
        rows = call(hv1, "state.highstate")
        assert all(row["result"] for row in rows.values()), rows
        before = hv1.boot_id()
        hv1.ssh(["systemctl", "reboot"], check=False)
        hv1.wait_reboot(before, timeout=600)
    return hv1


def test_all_is_in_force_after_a_boot(booted):
    for path, value in SETTINGS.items():
        assert booted.ssh(["cat", f"/proc/sys/{path}"]).stdout.strip() == value, path
    modules = {line.split()[0] for line in booted.ssh(["cat", "/proc/modules"]).stdout.splitlines()}
    assert {"br_netfilter", "vhost_net", "dummy"} <= modules
    assert "pcspkr" not in modules
    # Two by the option numdummies; a module of its own makes none or one.
    links = {link["ifname"] for link in json.loads(booted.ssh(["ip", "-json", "link"]).stdout)}
    assert {"dummy0", "dummy1"} <= links
    assert booted.ssh(["cat", f"{KSM}/run", f"{KSM}/pages_to_scan"]).stdout.split() == ["1", "200"]


def test_each_drift_is_foreseen_and_repaired_and_nothing_else_changes(booted):
    assert changes(apply(booted)) == {}
    booted.ssh(["sh", "-c", "; ".join(script for script, _, _ in DRIFTS)])
    predicted = apply(booted, "test=True")
    assert "br_netfilter" not in booted.ssh(["cat", "/proc/modules"]).stdout
    assert booted.ssh(["cat", f"{KSM}/run", "/proc/sys/vm/swappiness"]).stdout.split() == ["0", "60"]
    done = apply(booted)
    foreseen = {name for name, row in predicted.items() if row["result"] is None}
    assert foreseen == set(changes(done)) == {name for _, name, _ in DRIFTS}
    for _, name, expected in DRIFTS:
        assert done[name]["result"] is True, done[name]
        if expected is not None:
            assert predicted[name]["changes"] == done[name]["changes"] == expected
    assert changes(apply(booted)) == {}


def test_what_the_kernel_does_not_have_is_said_by_name_and_nothing_is_unloaded(mixed, booted):
    booted.ssh(["modprobe", "psmouse"])
    with pillar(mixed, ODD):
        rows = apply(booted)
    assert rows["kvm_module_nosuchmodule"]["result"] is False
    assert "nosuchmodule" in rows["kvm_module_nosuchmodule"]["comment"]
    assert rows["kvm_sysctl"]["result"] is False
    assert "this kernel has no vm.no_such_setting" in rows["kvm_sysctl"]["comment"]
    assert "experimental_zcopytx is 0, not 1" in rows["kvm_module_vhost_net"]["comment"]
    assert "psmouse is loaded and stays so" in rows["kvm_module_psmouse"]["comment"]
    assert rows["kvm_ksm"]["changes"] == {"run": {"old": "1", "new": "2"}}
    assert booted.ssh(["cat", f"{KSM}/pages_sharing"]).stdout.strip() == "0"
    modules = {line.split()[0] for line in booted.ssh(["cat", "/proc/modules"]).stdout.splitlines()}
    assert {"vhost_net", "psmouse"} <= modules
    again = apply(booted)
    assert all(row["result"] is True for row in again.values())
    assert again["kvm_ksm"]["changes"] == {"run": {"old": "2", "new": "1"}}

"""The typed keys of libvirt's files: a misspelt key is refused with a suggestion, a good one is accepted."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary
from lab.state import CHECKOUT


def judged(formula: str, pillar: dict[str, Any]) -> dict[str, str]:
    """What the formula's schema says of a pillar, by path."""
    names = ("defaults.yaml", "osmap.yaml", "schema.yaml")
    contents = {name: yaml.safe_load((CHECKOUT / formula / name).read_text()) for name in names}
    _, errors = formula_config.assemble(
        formula, contents, {}, pillar, formula_vocabulary.load, formula_schema.errors
    )
    return dict(errors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vnc_listen", "127.0.0.1"),
        ("user", "libvirt-qemu"),
        ("group", "+107"),
        ("cgroup_controllers", ["cpu", "memory"]),
        ("max_core", 0),
        ("max_core", "unlimited"),
        ("security_driver", "apparmor"),
        ("security_driver", ["selinux", "apparmor"]),
        ("hugetlbfs_mount", ["/dev/hugepages", "/mnt/1G"]),
        ("hugetlbfs_mount", ""),
        ("seccomp_sandbox", -1),
        ("keepalive_interval", -1),
        ("nvram", ["/a:/b"]),
        ("extra", {"next_year": ["a"]}),
    ],
)
def test_a_good_setting_of_qemu_is_accepted(key, value):
    assert judged("kvm", {"qemu_conf": {key: value}}) == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vnc_auto_unix_sockt", True, 'did you mean "vnc_auto_unix_socket"?'),
        ("migrate_tls_forced", True, 'did you mean "migrate_tls_force"?'),
        ("vnc_listen", "everywhere", "must be an IP address"),
        ("vnc_tls", 1, "must be true or false"),
        ("max_files", "32768", "must be a whole number"),
        ("max_core", "endless", "must be"),
        ("cgroup_controllers", ["cpu"] * 2, "allowed once"),
        ("lock_manager", "lock", "allowed: "),
        ("memory_backing_dir", "ram", "must be an absolute path"),
    ],
)
def test_a_bad_setting_of_qemu_is_refused_with_what_is_allowed(key, value, said):
    ((_, text),) = judged("kvm", {"qemu_conf": {key: value}}).items()
    assert said in text


def test_no_password_is_shown_not_even_of_a_key_that_is_unknown_here():
    errors = judged("kvm", {"qemu_conf": {"vnc_password": 271828, "extra": {"new_password": 314159}}})
    assert len(errors) == 2
    assert "271828" not in str(errors)
    assert "314159" not in str(errors)


@pytest.mark.parametrize("key", ["listen_tls", "listen_addr", "tls_port", "unix_sock_group", "unix_sock_rw_perms"])
@pytest.mark.parametrize("value", [True, "libvirt", 16514])
def test_what_systemd_decides_is_refused_and_says_so(key, value):
    errors = judged("libvirt", {"daemon_conf": {key: value}})
    assert "systemd opens the sockets" in errors[f"libvirt:daemon_conf:{key}"]


@pytest.mark.parametrize("key", ["tls_allowed_dn_list", "tls_no_verify_certificate", "ca_file"])
def test_who_is_let_in_is_decided_in_one_place(key):
    errors = judged("libvirt", {"daemon_conf_of": {"virtproxyd": {key: ["x"]}}})
    assert "libvirt:tls:allowed_hosts" in errors[f"libvirt:daemon_conf_of:virtproxyd:{key}"]


@pytest.mark.parametrize(
    ("pillar", "said"),
    [
        ({"daemon_conf": {"max_client": 1}}, 'did you mean "max_clients"?'),
        ({"daemon_conf_of": {"virtqemd": {}}}, "virtqemud"),
        ({"conf": {"virtlogd": {"max_siz": 1}}}, 'did you mean "max_size"?'),
        ({"conf": {"virtlogdd": {}}}, 'did you mean "virtlogd"?'),
        ({"conf": {"network": {"firewall_backend": "ebtables"}}}, "nftables"),
        ({"daemon_conf": {"extra": {"listen_tls": True}}}, "unknown key"),
        ({"host_shutdown": {"action": "stop"}}, "shutdown"),
    ],
)
def test_a_bad_setting_of_a_daemon_is_refused_with_what_is_allowed(pillar, said):
    ((_, text),) = judged("libvirt", pillar).items()
    assert said in text

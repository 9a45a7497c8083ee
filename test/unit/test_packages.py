"""Images hold exactly the packages that a host's merged configuration asks for."""

import pytest
import yaml

from lab import kitchen, packages, salt
from lab.state import CHECKOUT

PLATFORMS = list(kitchen.load(CHECKOUT / "kitchen.yml").platforms)


def golden(formula, platform):
    """What formula.config says on that system, as the golden files record it from the real merge."""
    name = platform.replace("debian", "Debian")
    return yaml.safe_load((CHECKOUT / "test" / "golden" / formula / f"{name}.yaml").read_text())


@pytest.mark.parametrize("kind", ["container", "vm"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_images_hold_what_the_formulas_and_the_tests_install(platform, kind):
    wanted = set()
    for formula in salt.formulas():
        if kind == "vm" and formula in {"cluster", "nginx"}:
            continue
        config = golden(formula, platform).get("packages", {})
        for role in {*config.get("enabled", []), *packages.ROLES[kind]}:
            wanted.update(config.get("roles", {}).get(role, []))
        wanted.update(config.get("extra", []))
    assert packages.of_platform(platform, kind) == sorted(wanted)
    assert {"qemu-system-x86", "lvm2"} <= wanted
    # Gigabytes that no test needs.
    assert not {"virt-manager", "libguestfs-tools"} & wanted


@pytest.mark.parametrize("platform", PLATFORMS)
def test_machines_with_shared_disks_have_what_cluster_nodes_need_besides(platform):
    nodes, machine = set(packages.of_cluster(platform)), set(packages.of_platform(platform, "vm"))
    assert machine < nodes
    assert nodes - machine >= {"corosync", "pacemaker", "crmsh", "sbd", "dlm-controld", "lvm2-lockd"}


def test_grains_of_a_platform():
    assert packages.grains("debian-13") == {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-13"}


def test_a_formula_may_name_packages_in_every_way(tmp_path, monkeypatch):
    core = packages.core()
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    monkeypatch.setattr(packages, "formulas", lambda: ["bare", "full"])
    monkeypatch.setattr(packages, "core", lambda: core)
    for name in ("bare", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "defaults.yaml").write_text("packages: {roles: {one: [replaced], two: [b]}, extra: [c]}\n")
    (tmp_path / "full" / "osmap.yaml").write_text(
        "os_family: {Debian: {packages: {roles: {one: [a]}}}, RedHat: {packages: {extra: [never]}}}\n"
        "osfinger: {Debian-13: {packages: {extra: [d]}}}\n"
    )
    assert packages.of_platform("debian-12") == sorted(["a", "b", "c"])
    assert packages.of_platform("debian-13") == sorted(["a", "b", "d"])


def test_roles_that_nothing_enables_stay_out(tmp_path, monkeypatch):
    core = packages.core()
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    monkeypatch.setattr(packages, "formulas", lambda: ["full"])
    monkeypatch.setattr(packages, "core", lambda: core)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "defaults.yaml").write_text(
        "packages: {enabled: [one], roles: {one: [a], gui: [b], storage: [c], monitoring: [d]}}\n"
    )
    assert packages.of_platform("debian-12") == ["a", "c", "d"]
    assert packages.of_platform("debian-12", "vm") == ["a", "c"]


def test_container_hosts_have_at_hand_what_tests_install():
    at_hand = packages.at_hand("debian-12")
    assert {"nftables", "iptables", "firewalld", "slapd", "python3-ldap"} <= set(at_hand)
    assert set(packages.of_platform("debian-12")) <= set(at_hand)

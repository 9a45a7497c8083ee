"""Which packages the formulas install on a platform, so that images can have them at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from .salt import formulas
from .state import CHECKOUT

# Roles that tests enable, besides those that the formulas' defaults enable. A container host has the archives
# of both at hand. In a virtual machine all is installed beforehand, so it gets what its kernel is needed for.
ROLES = {"container": ("storage", "monitoring", "crmsh", "console"), "vm": ("storage",)}
# Formulas that are run on container hosts alone: images of virtual machines do without their daemons.
ON_CONTAINERS = ("cluster", "nginx")
# What machines with shared disks have besides, which are there to be nodes of a cluster.
SHARED_DISKS = ("cluster", "crmsh", "sbd", "dlm", "sanlock")
# Not installed by a formula: the three ways to filter packets, for the tests of libvirt's firewall, and a directory of
# users with what asks it.
TESTED_WITH = ("firewalld", "iptables", "nftables", "slapd", "python3-ldap")


def core() -> ModuleType:
    """Return the formulas' own configuration code, which lives with Salt's modules."""
    path = CHECKOUT / "_utils" / "formula_config.py"
    spec = importlib.util.spec_from_file_location("formula_config", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file is part of the checkout
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grains(platform: str) -> dict[str, str]:
    """Return the grains that choose a platform's data: ``debian-12`` is ``Debian``, ``Debian``, ``Debian-12``."""
    name, _, version = platform.partition("-")
    title = name.capitalize()
    return {"os_family": title, "os": title, "osfinger": f"{title}-{version}"}


def of_platform(platform: str, kind: str = "container") -> list[str]:
    """Return what images of a platform hold: packages of enabled roles, and of those that tests enable.

    Args:
        platform: a platform of `kitchen.yml`.
        kind: of the host, ``container`` or ``vm``.

    Returns:
        Names of packages, sorted.
    """
    wanted: set[str] = set()
    for formula in formulas():
        if kind == "vm" and formula in ON_CONTAINERS:
            continue
        listed = _merged(formula, platform).get("packages") or {}
        roles = listed.get("roles") or {}
        for role in {*(listed.get("enabled") or roles), *ROLES[kind]}:
            wanted.update(roles.get(role) or [])
        wanted.update(listed.get("extra") or [])
    return sorted(wanted)


def of_cluster(platform: str) -> list[str]:
    """Return what the image of machines with shared disks holds: a machine's packages, and those of cluster nodes."""
    roles = _merged("cluster", platform)["packages"]["roles"]
    return sorted({*of_platform(platform, "vm"), *(name for role in SHARED_DISKS for name in roles[role])})


def at_hand(platform: str) -> list[str]:
    """Return what a container host can install offline: the formulas' packages and what tests need besides."""
    return sorted({*of_platform(platform), *TESTED_WITH})


def _merged(formula: str, platform: str) -> dict[str, Any]:
    """Return a formula's defaults with what differs on a platform."""
    folder = CHECKOUT / formula
    merged = _yaml(folder / "defaults.yaml")
    for part in core().select(_yaml(folder / "osmap.yaml"), grains(platform)):
        merged = core().merge(merged, part)
    return merged


def _yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, ``{}`` when it is empty or missing."""
    return (yaml.safe_load(path.read_text()) if path.exists() else None) or {}

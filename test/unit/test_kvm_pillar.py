"""What the schema of kvm refuses of mounts and huge pages, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary

FORMULA = Path(__file__).resolve().parents[2] / "kvm"
NFS = {"device": "nas:/vm", "fstype": "nfs"}


def refused(pillar: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with a pillar of kvm."""
    names = ("defaults.yaml", "osmap.yaml", "schema.yaml")
    contents = {name: yaml.safe_load((FORMULA / name).read_text(encoding="utf-8")) for name in names}
    arguments: tuple[Any, ...] = ("kvm", contents, {}, pillar, formula_vocabulary.load, formula_schema.errors)
    return formula_config.assemble(*arguments)[1]


@pytest.mark.parametrize(
    "pillar",
    [
        {"mounts": {"/vm": {**NFS, "opts": ["vers=3", "rsize=32768", "x-systemd.idle-timeout=60"], "timeout": 60}}},
        {"mounts": {"/mnt/a-b.c": {"ensure": "absent"}}},
        {"mounts": {"/vm": {**NFS, "ensure": "unmounted"}}},
        {"hugepages": {"2M": 0, "1G": {"total": 4, "mount": ""}}},
        {"hugepages": {"2M": {"nodes": {"node0": 1, "node12": 0}, "mount": "/hugepages"}}},
        {"kernel": {"allow_reboot": True}},
    ],
)
def test_these_are_good(pillar):
    assert refused(pillar) == []


@pytest.mark.parametrize(
    ("pillar", "path", "words"),
    [
        ({"mounts": {"/vm": {"fstype": "nfs"}}}, "kvm:mounts:/vm:device", "missing"),
        ({"mounts": {"/vm": {**NFS, "ensure": "gone"}}}, "kvm:mounts:/vm:ensure", "mounted, unmounted, absent"),
        ({"mounts": {"/vm": {**NFS, "option": ["ro"]}}}, "kvm:mounts:/vm:option", "opts"),
        ({"mounts": {"/vm": {**NFS, "opts": "ro"}}}, "kvm:mounts:/vm:opts", "list"),
        ({"mounts": {"/vm": {**NFS, "opts": ["ro,hard"]}}}, "kvm:mounts:/vm:opts:0", "without blanks or commas"),
        ({"mounts": {"/vm": {**NFS, "opts": ["nofail"]}}}, "kvm:mounts:/vm:opts:0", "set by itself"),
        ({"mounts": {"/vm": {**NFS, "opts": ["password=x"]}}}, "kvm:mounts:/vm:opts:0", "no password"),
        ({"mounts": {"/vm": {**NFS, "timeout": 600}}}, "kvm:mounts:/vm:timeout", "60"),
        ({"mounts": {"vm": NFS}}, "kvm:mounts:vm", ""),
        ({"mounts": {"/vm/": NFS}}, "kvm:mounts:/vm/", ""),
        ({"hugepages": {"2M": {"total": 4, "nodes": {"node0": 1}}}}, "kvm:hugepages:2M", ""),
        ({"hugepages": {"2M": {"mount": "/hugepages"}}}, "kvm:hugepages:2M:total", "missing"),
        ({"hugepages": {"2M": {"nodes": {"0": 1}}}}, "kvm:hugepages:2M:nodes:0", ""),
        ({"hugepages": {"2M": -1}}, "kvm:hugepages:2M", ""),
        ({"hugepages": {"4M": 1}}, "kvm:hugepages:4M", "2M"),
        ({"kernel": {"allow_reboot": "yes please"}}, "kvm:kernel:allow_reboot", "true"),
    ],
)
def test_these_are_refused_where_they_stand(pillar, path, words):
    (error,) = refused(pillar)
    assert error[0] == path, error
    assert words in error[1], error

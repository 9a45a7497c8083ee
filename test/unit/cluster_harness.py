"""Pillar of a cluster of two with shared volumes, and guests that it runs."""

from __future__ import annotations

from pathlib import Path

import yaml

from _utils import formula_config

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2)}
VOLUMES = {name: {"size_mib": 64} for name in ("one", "two")}
GROUPS = {"vm": {"devices": ["/dev/disk/by-id/scsi-san"], "volumes": VOLUMES}}
STORAGE = {"lock_manager": "dlm", "volume_groups": GROUPS}
SBD = {"enabled": True, "devices": ["/dev/disk/by-id/scsi-sbd"]}


def disks(*names):
    return [{"name": name, "source_file": f"/dev/vm/{name}"} for name in names]


def guest(*volumes, **over):
    return {"ha": True, "disks": disks(*volumes), **over}


def cluster(**pillar):
    base = {"name": "lab", "bootstrap_node": "hv1", "nodes": NODES, "sbd": SBD, "storage": STORAGE}
    return formula_config.merge(DEFAULTS, {**base, **pillar})


def whole(guests, **pillar):
    return {**cluster(**pillar), "nodes": ["hv1", "hv2"], "guests": guests}

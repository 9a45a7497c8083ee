"""Loads what salt-master and salt-api load from the formula's files: modules that are in no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "saltapi/files/usr/lib/hypervisor-formula/master"


def load(part: str, name: str) -> Any:
    """Returns a module by the folder and the name of its file."""
    spec = importlib.util.spec_from_file_location(f"master_{part}_{name}", CODE / part / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

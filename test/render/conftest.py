"""Hosts to compile for, one for each operating system and pillar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from render_harness import ROOT, Host

MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Makes hosts, and closes them in the end."""
    made: list[Host] = []

    def make(
        grains: Mapping[str, Any], pillar: Mapping[str, Any] | None = None, root: Path = ROOT
    ) -> Host:
        host = Host(root, tmp_path / f"salt{len(made)}", grains, pillar or {})
        made.append(host)
        return host

    yield make
    for host in made:
        host.close()

"""Hosts to compile for, one for each operating system and pillar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
from render_harness import ROOT, Host

MakeHost = Callable[..., Host]


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Keeps the code of each template: Salt makes a new Jinja environment, like the last, for every rendering."""
    original = jinja2.Environment.compile
    codes: dict[tuple[Any, ...], Any] = {}

    def compile_once(environment: Any, *source: Any, **options: Any) -> Any:
        # Environments with the same syntax share their lexer.
        key = (type(environment), environment.lexer, source, tuple(options.items()))
        if key not in codes:
            codes[key] = original(environment, *source, **options)
        return codes[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compile_once)
        yield


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

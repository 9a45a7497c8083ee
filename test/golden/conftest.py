"""The option that rewrites the golden files."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --update-golden, which `make golden` uses."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")

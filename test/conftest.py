"""What all tests need: an interpreter in which Salt and pytest can live together."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import salt._logging

# On import, Salt adds an import hook of a kind that Python and pytest no longer know how to ask.
sys.meta_path[:] = [hook for hook in sys.meta_path if hasattr(hook, "find_spec")]
# And it keeps log records to print them in the end, where pytest has closed the streams.
salt._logging.shutdown_temp_handler()
logging.getLogger().setLevel(logging.WARNING)

# In seconds: the slowest of these takes some thirty, on the slowest of machines. Only hosts need more.
_WITHOUT_HOSTS = 600


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ends what hangs without a host long before the limit of those with hosts, which is the Makefile's."""
    if not config.pluginmanager.hasplugin("timeout"):  # what the oldest Salt is tested with does without it
        return
    for item in items:
        if "integration" not in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.timeout(_WITHOUT_HOSTS))

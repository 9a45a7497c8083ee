"""What all tests need: an interpreter in which Salt and pytest can live together."""

from __future__ import annotations

import logging
import sys

import salt._logging

# On import, Salt adds an import hook of a kind that Python and pytest no longer know how to ask.
sys.meta_path[:] = [hook for hook in sys.meta_path if hasattr(hook, "find_spec")]
# And it keeps log records to print them in the end, where pytest has closed the streams.
salt._logging.shutdown_temp_handler()
logging.getLogger().setLevel(logging.WARNING)

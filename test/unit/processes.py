"""Another process of these tests, for what ends with its process or is left behind by a killed one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def speaking(code: str, word: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code that prints a word and then waits; yield its process once the word has come."""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{word}\n"
        yield process

"""Progress on standard error: one line a step with its time; colour and a moving clock only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Prints steps as they run and keeps how long each took.

    Attributes:
        times: seconds by step title, in the order of their ends.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Take ``quiet`` to print nothing and only keep times (for ``--json``)."""
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self.times: dict[str, float] = {}
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            with self._lock:
                print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show ``title`` while the block runs, then how long it took, or that it failed."""
        begun = time.monotonic()
        ended = threading.Event()
        clock = None
        if not self.quiet:
            if self.terminal:
                clock = threading.Thread(target=self._tick, args=(title, begun, ended), daemon=True)
                clock.start()
            else:
                self.say(f"  ...     {title}")
        verdict, colour = "failed", "31"
        try:
            yield
            verdict, colour = "ok", "32"
        finally:
            took = time.monotonic() - begun
            ended.set()
            if clock is not None:
                clock.join()
            self.times[title] = round(took, 1)
            mark = f"{verdict:6}"
            shown = f"\r\x1b[K  \x1b[{colour}m{mark}\x1b[0m" if self.terminal else f"  {mark}"
            self.say(f"{shown} {title} ({took:.1f} s)")

    def _tick(self, title: str, begun: float, ended: threading.Event) -> None:
        """Rewrite the terminal's line once a second until the step has ended."""
        while not ended.wait(1):
            with self._lock:
                print(f"\r\x1b[K  {time.monotonic() - begun:4.0f} s {title}", end="", file=sys.stderr, flush=True)

"""The distribution's Chromium for tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 30_000  # milliseconds; a loaded machine is slow
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Runs it without a window."""
    program = shutil.which("chromium")
    assert program, "Chromium is missing: make browser"
    with sync_playwright() as playwright:
        # The tests may run as root, for whom Chromium has no sandbox.
        running = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", *options]
        )
        try:
            yield running
        finally:
            running.close()


def listened(page: Page, errors: list[str]) -> None:
    """Keeps what goes wrong in a page: errors of its code, and what its policy stops."""
    page.on("pageerror", lambda error: errors.append(str(error)))
    # An answer that is an error is written there too, and is the test's own doing.
    page.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)

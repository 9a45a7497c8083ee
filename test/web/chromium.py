"""The distribution's Chromium for tests of the page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, Error, Locator, Page, Request, expect, sync_playwright

PATIENCE = 30_000  # milliseconds; a loaded machine is slow
CHANGED = "net::ERR_NETWORK_CHANGED"
LOADS = 10
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Runs it without a window."""
    program = shutil.which("chromium")
    assert program, "Chromium is missing: make browser"
    with sync_playwright() as playwright:
        # The tests may run as root, for whom Chromium has no sandbox.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", *options])
        try:
            yield running
        finally:
            running.close()


class Windows:
    """Windows with the page, each with a session of its own, and what has gone wrong in them."""

    def __init__(self, browser: Browser) -> None:
        """Begins without any."""
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.errors: list[str] = []

    def open(self, address: str, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        """Opens an address in a window of a given size and colours."""
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        # An answer that is an error is written there too, and is the test's own doing.
        page.on("console", lambda said: self.errors.append(said.text) if "Content Security" in said.text else None)
        _complete(page, address)
        return page


def _complete(page: Page, address: str) -> None:
    """Opens an address, again if the machine's addresses change meanwhile, as when a lab beside it comes or goes.

    Chromium then gives up what it is loading (``net::ERR_NETWORK_CHANGED``), from loopback too.
    """
    lost: list[str] = []

    def failed(request: Request) -> None:
        if request.failure == CHANGED:
            lost.append(request.url)

    page.on("requestfailed", failed)
    for _ in range(LOADS):
        lost.clear()
        try:
            page.goto(address)
        except Error as error:
            if CHANGED not in error.message:
                raise
        else:
            if not lost:
                break
        # The same address with a fragment would not be loaded again.
        page.goto("about:blank")
    else:
        raise AssertionError(f"{address} was not loaded in {LOADS} tries, without {lost}: the network keeps changing")
    page.remove_listener("requestfailed", failed)


@contextmanager
def windows(browser: Browser) -> Iterator[Windows]:
    """Opens windows and closes them; errors of the page's code, and what its policy stops, fail the test."""
    found = Windows(browser)
    yield found
    for context in found._contexts:
        context.close()
    assert found.errors == []


def log_in(page: Page, user: str, password: str) -> Page:
    """Logs in, and waits until what is shown is live."""
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.locator("[data-connection=live]").wait_for()
    return page


def row(page: Page, name: str) -> Locator:
    """Finds the row of a guest."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def asked(page: Page, site: Any, function: str) -> dict[str, Any]:
    """Waits until a stand-in for the server is asked for a function, and returns that; a button may say so earlier."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not site.asked or site.asked[-1]["fun"] != function:
        assert time.monotonic() < deadline, f"{function} was not asked for, but {site.asked[-1:]}"
        page.wait_for_timeout(50)
    return dict(site.asked[-1])


def begun(page: Page, site: Any, function: str) -> tuple[str, dict[str, Any]]:
    """Waits until a stand-in for the server has begun a job, and returns its number and what is known of it."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not (found := [(jid, job) for jid, job in site.tables["jobs"].items() if job["function"] == function]):
        assert time.monotonic() < deadline, f"no job of {function} has begun, but {list(site.tables['jobs'].values())}"
        page.wait_for_timeout(50)
    ((jid, job),) = found
    return jid, job

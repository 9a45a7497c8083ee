"""A browser for tests of the page, and the page behind a small stand-in for its server."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import chromium, log_in, windows
from upstream import BUNDLE, Server, Site

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def browser():
    """Chromium; one runs at a time in a process, which may have the tests on hosts as well."""
    with chromium() as running:
        yield running


@pytest.fixture
def site():
    """What the page is told."""
    return Site()


@pytest.fixture
def server(site):
    """The stand-in."""
    assert (BUNDLE / "index.html").is_file(), "The page is not built: make web"
    with Server(site) as running:
        yield running
        site.cut(down=True)
        running.shutdown()


@pytest.fixture
def look(browser, server):
    """Opens the page in a window of a given size and colours; every error of it fails the test."""
    with windows(browser) as opening:

        def opened(login=True, at="", **window):
            page = opening.open(f"{server.url}#{at}", **window)
            return log_in(page, "otto", "right") if login else page

        yield opened


@pytest.fixture(scope="session")
def axe():
    """The source of axe, whose findings are faults of accessibility."""
    return (ROOT / "web/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def faultless(axe):
    """Fails where axe finds anything on a page."""

    def check(page):
        # Evaluated by the debugger, which a page's policy does not concern.
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((done) => done.violations)")
        told = [(one["id"], [(node["html"], node["failureSummary"]) for node in one["nodes"][:3]]) for one in found]
        assert told == []

    return check

"""The lab's controller with the page's way in, for the tests of this folder."""

from __future__ import annotations

import os

import pytest
from front import served


@pytest.fixture(scope="session")
def front(request):
    """The way in, from another machine."""
    running = request.getfixturevalue("lab")
    controller = running.hosts.controller
    with served(running) as way_in:
        yield way_in
    # nginx itself stays; nothing of the page does.
    assert running.run(controller, ["systemctl", "is-active", "nginx"]).stdout.strip() == "active"
    assert running.run(controller, ["ls", "/etc/nginx/conf.d"]).stdout == ""


@pytest.fixture(scope="session", autouse=True)
def prepared(request):
    """Test Kitchen's host has the suite's pillar by itself."""
    if "KITCHEN_HOSTNAME" not in os.environ:
        request.getfixturevalue("front")

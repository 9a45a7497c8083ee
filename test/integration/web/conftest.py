"""The page in a browser, before the lab's controller."""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
import time

import pytest
from chromium import chromium, log_in, windows
from front import served
from upstream import BUNDLE

from lab import salt
from lab.state import CHECKOUT

RESTART = "hypervisor-formula-minion-restart.service"
SHOTS = CHECKOUT / "build" / "web"


@pytest.fixture(scope="session")
def front(lab):
    """The controller serves the page, and hypervisors tell it what changes."""
    assert (BUNDLE / "index.html").is_file(), "The page is not built: make web"
    hypervisors = lab.hosts.hypervisors
    with served(lab) as running:
        files = salt.pillar_files(lab.hosts, running.users)
        salt.merge_pillar(lab.hosts, {f"{host}.sls": files[f"{host}.sls"] for host in hypervisors})
        highstate(lab, hypervisors)
        yield running
    highstate(lab, hypervisors)


def highstate(lab, hosts):
    """Runs the highstate of hypervisors, and waits for the minions that restart themselves after it."""
    salt.check_green(salt.highstate(lab.hosts, hosts))
    for host in hosts:
        deadline = time.monotonic() + 120
        ask = ["systemctl", "is-active", RESTART]
        while lab.run(host, ask, check=False).stdout.strip() in {"active", "activating"}:
            assert time.monotonic() < deadline, f"the minion of {host} has not restarted"
            time.sleep(0.5)
    salt.wait_answering(lab.hosts)


def key_of(front) -> str:
    """Returns the digest of the key in the server's certificate, once the lab's authority has been seen to sign it."""
    with (
        socket.create_connection((front.host, 443), timeout=30) as plain,
        front.believed.wrap_socket(plain, server_hostname=front.host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    public = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-pubkey", "-noout"], input=der, capture_output=True, check=True
    ).stdout
    lines = public.decode().splitlines()
    key = base64.b64decode("".join(line for line in lines if "-----" not in line))
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


@pytest.fixture(scope="module")
def browser(front):
    """Chromium, which believes this one key beside its own authorities; one runs at a time in a process."""
    with chromium(f"--ignore-certificate-errors-spki-list={key_of(front)}") as running:
        yield running


@pytest.fixture
def look(front, browser):
    """Opens the page and logs in; every error of the page fails the test."""
    with windows(browser) as opening:

        def opened(user="admin", at="", **window):
            page = opening.open(f"{front.origin}/#{at}", **{"height": 760, **window})
            return log_in(page, user, front.users[user]["password"])

        yield opened


@pytest.fixture(scope="session")
def shot():
    """Keeps a picture of a page, for the README and for whoever looks at a failure."""
    SHOTS.mkdir(parents=True, exist_ok=True)

    def take(page, name):
        page.screenshot(path=SHOTS / f"{name}.png")

    return take

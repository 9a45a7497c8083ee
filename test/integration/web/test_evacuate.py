"""A host is emptied and restored from the page, and migrations are called off there; checked on the hypervisors."""

from __future__ import annotations

import time

import pytest
from chromium import row
from playwright.sync_api import expect
from support import counts_on, end_guest, moor, start_guest, state_of

LONG = 240_000  # milliseconds, for what a loaded host may take
NAMES = ("porter", "runner")
# Plugged into a bridge that the other host does not have.
STUCK, BRIDGE = "stuck", "brweb"


def places(lab, name):
    """Where a guest is, and how."""
    return {host: state for host in lab.hosts.hypervisors if (state := state_of(lab, host, name))}


def cleared(lab):
    """Remove whatever these tests make."""
    for name in (*NAMES, STUCK):
        end_guest(lab, name)
        for host in lab.hosts.hypervisors:
            lab.run(host, ["rm", "-f", f"/var/lib/hypervisor-formula/migrated/{name}.json"])
    lab.run("hv1", ["ip", "link", "delete", BRIDGE], check=False)
    lab.run(lab.hosts.controller, ["rm", "-rf", "/var/cache/salt/master/hypervisor-fleet"])


@pytest.fixture(scope="module")
def crew(lab, front):
    """Two guests that count on hv1, and one that cannot leave it."""
    cleared(lab)
    end_guest(lab, "demo")
    for name in NAMES:
        start_guest(lab, "hv1", name)
    moor(lab, "hv1", STUCK, BRIDGE)
    yield
    cleared(lab)


def ask(page, verb):
    """Asks for an evacuation or a restoration of the host that is shown."""
    page.get_by_role("button", name=f"{verb}…").click(timeout=LONG)
    page.get_by_role("dialog").get_by_role("button", name=verb, exact=True).click()


def test_a_host_is_emptied_but_for_what_cannot_move_and_restored(look, lab, crew, shot):
    page = look("operator", at="/host/hv1")
    looks = look("viewer", at="/host/hv1")
    expect(looks.get_by_role("heading", name="hv1", exact=True)).to_be_visible()
    ask(page, "Evacuate")
    part = page.get_by_role("region", name="Evacuation")
    expect(part.get_by_text("hv1 is not evacuated whole: 2 of 3 guests moved")).to_be_visible(timeout=LONG)
    expect(part.get_by_text("network: hv2 has no bridge or device brweb")).to_be_visible()
    expect(part.get_by_role("status")).to_have_text("2 moved, 1 stays")
    shot(page, "evacuate")
    assert [places(lab, name) for name in (*NAMES, STUCK)] == [
        {"hv2": "running"}, {"hv2": "running"}, {"hv1": "paused"},
    ]  # fmt: skip
    for name in NAMES:
        counts_on(lab, "hv2", name)
    # Whoever may see the host sees what was done to it, and is offered nothing.
    seen = looks.get_by_role("region", name="Evacuation")
    expect(seen).to_contain_text("Evacuated since")
    expect(seen.get_by_text("network: hv2 has no bridge or device brweb")).to_be_visible()
    for name in ("Evacuate…", "Restore…"):
        expect(looks.get_by_role("button", name=name)).to_have_count(0)
    ask(page, "Restore")
    expect(part).to_have_count(0, timeout=LONG)
    assert [places(lab, name) for name in NAMES] == [{"hv1": "running"}] * 2
    for name in NAMES:
        counts_on(lab, "hv1", name)
    deadline = time.monotonic() + 60
    while page.get_by_role("button", name="Restore…").count():
        assert time.monotonic() < deadline
        page.wait_for_timeout(200)


def test_a_guests_page_says_what_has_happened_to_it_whoever_did_it(look, lab, crew):
    name = NAMES[1]
    page = look("viewer")
    row(page, name).get_by_role("link", name=name).click()
    happened = page.locator(".happened li")
    # The evacuation and the restoration, as both hosts have told them.
    for words, host in (("went to another host", "hv1"), ("came from another host", "hv2"),
                        ("went to another host", "hv2"), ("came from another host", "hv1")):  # fmt: skip
        expect(happened.filter(has_text=words).filter(has_text=host).first).to_be_visible(timeout=LONG)
    (host,) = places(lab, name)
    for verb, words in (("suspend", "suspended"), ("resume", "resumed"), ("destroy", "forced off")):
        count = happened.count()
        lab.run(host, ["virsh", verb, name])
        expect(happened.first).to_contain_text(words, timeout=LONG)
        expect(happened.first).to_contain_text(host)
        assert happened.count() > count
    lab.run(host, ["virsh", "start", name])
    # libvirt tells of the start and that the guest was let run, in either order.
    newest = page.locator(".happened li:nth-child(-n+2)")
    expect(newest.filter(has_text="started").first).to_be_visible(timeout=LONG)


def slow(lab, name, mib):
    """Has a guest send so many MiB a second when it migrates."""
    lab.run("hv1", ["virsh", "migrate-setspeed", name, str(mib)])


def moving(lab, name):
    """Wait until libvirt sends a guest's memory."""
    deadline = time.monotonic() + 120
    while "Outgoing migration" not in lab.run("hv1", ["virsh", "domjobinfo", name], check=False).stdout:
        assert time.monotonic() < deadline, "the migration has not begun"
        time.sleep(0.3)


def test_a_migration_is_called_off_and_the_guest_runs_on_where_it_is(look, lab, crew, shot):
    name = NAMES[0]
    slow(lab, name, 1)
    try:
        page = look("operator")
        row(page, name).drag_to(page.locator("[data-host=hv2]"))
        dialog = page.get_by_role("dialog", name=f"Move {name}")
        dialog.get_by_role("button", name="Move to hv2").click(timeout=LONG)
        moving(lab, name)
        shot(page, "cancel")
        dialog.get_by_role("button", name=f"Cancel the migration of {name}").click()
        expect(dialog.get_by_text("It did not move.")).to_be_visible(timeout=LONG)
        expect(dialog.get_by_role("alert")).to_contain_text("is running on hv1, as before")
        assert places(lab, name) == {"hv1": "running"}
        counts_on(lab, "hv1", name)
        dialog.get_by_role("button", name="Close").click()

        # The same in the midst of an evacuation: that one stays, the other goes.
        page.goto(f"{page.url.split('#')[0]}#/host/hv1")
        ask(page, "Evacuate")
        moving(lab, name)
        part = page.get_by_role("region", name="Evacuation")
        part.get_by_role("button", name=f"Cancel the migration of {name}").click(timeout=LONG)
        expect(part.get_by_text("hv1 is not evacuated whole: 1 of 3 guests moved")).to_be_visible(timeout=LONG)
        assert places(lab, name) == {"hv1": "running"}
        assert places(lab, NAMES[1]) == {"hv2": "running"}
        counts_on(lab, "hv1", name)
    finally:
        slow(lab, name, 8796093022207)

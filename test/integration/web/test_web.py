"""The page against real hosts: what is clicked happens there, and what happens there is shown."""

from __future__ import annotations

import json
import re
import time

import pytest
from chromium import row
from playwright.sync_api import expect
from support import counted_to, counts_on, end_guest, last_second, migrate, state_of

from lab import guest as lab_guest

LONG = 120_000  # milliseconds, for what a loaded host may take
HOSTILE = "<img src=x onerror=document.title=`owned`>"


def choose(page, name, action):
    """Chooses an action from the menu of a guest's row."""
    page.get_by_role("button", name=f"Actions for {name}").click()
    page.get_by_role("menuitem", name=action, exact=True).click()


def arguments(name):
    """Returns how a guest is made that counts on its serial port, and shows the same on a screen of its own."""
    argv = lab_guest.install_argv(name)
    argv[argv.index("--graphics") + 1] = "vnc"
    argv[argv.index("--boot") + 1] = argv[argv.index("--boot") + 1].replace(
        lab_guest.ARGUMENTS, f"console=tty0 {lab_guest.ARGUMENTS}"
    )
    return argv


@pytest.fixture(scope="module")
def counting(lab, front):
    """A guest on hv1 that counts."""
    name = "page"
    for host in lab.hosts.hypervisors:
        lab.run(host, ["rm", "-f", f"/var/log/libvirt/qemu/{name}-serial.log"])
    lab.run("hv1", arguments(name))
    lab.wait_console("hv1", name, "guest second 2", timeout=180)
    yield name
    end_guest(lab, name)


def pixels(page):
    """Returns the size of the console's picture, and how many of its points are not dark."""
    return page.evaluate("""() => {
      const canvas = document.querySelector('.console-screen canvas');
      if (!canvas || canvas.width === 0) return [0, 0, 0];
      const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      let lit = 0;
      for (let at = 0; at < data.length; at += 4) if (data[at] + data[at + 1] + data[at + 2] > 60) lit += 1;
      return [canvas.width, canvas.height, lit];
    }""")


def open_console(page, name):
    """Goes to a guest and waits for its screen."""
    row(page, name).get_by_role("link", name=name).click()
    page.locator(".console-screen[data-status=connected]").wait_for(timeout=LONG)


def types(keys, word, printed):
    """Types a word until the guest has shown it in one piece: what it prints by itself may come between two keys."""

    def shown():
        keys.press_sequentially(f"{word} ")
        time.sleep(1)
        return word in printed()

    waited(shown, f"{word}, on the guest's host")


def place_of(lab, name):
    """Returns the host where a guest runs, and the other one."""
    (here,) = [host for host in lab.hosts.hypervisors if state_of(lab, host, name) == "running"]
    (there,) = [host for host in lab.hosts.hypervisors if host != here]
    return here, there


def waited(condition, what, seconds=90):
    """Waits until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} has not come"
        time.sleep(0.3)
    return found


def test_what_virsh_does_shows_without_a_reload(look, lab, counting, shot):
    page = look()
    expect(row(page, counting)).to_contain_text("running")
    page.evaluate("window.here = true")
    lab.run("hv1", ["virsh", "suspend", counting])
    expect(row(page, counting)).to_contain_text("paused", timeout=LONG)
    lab.run("hv1", ["virsh", "resume", counting])
    expect(row(page, counting)).to_contain_text("running", timeout=LONG)
    xml = lab.run("hv1", ["virsh", "dumpxml", counting]).stdout
    bare = re.sub(r"<uuid>.*</uuid>|<graphics.*</graphics>", "", xml, flags=re.DOTALL)
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    try:
        hostile = bare.replace(f"<name>{counting}<", f"<name>{escaped}<")
        lab.run("hv1", ["virsh", "define", "/dev/stdin"], stdin=hostile)
        expect(row(page, HOSTILE)).to_contain_text("shut off", timeout=LONG)
        assert page.title().endswith("Hypervisors")
        assert page.locator("main img").count() == 0
    finally:
        lab.run("hv1", ["virsh", "undefine", HOSTILE], check=False)
    expect(row(page, HOSTILE)).to_have_count(0, timeout=LONG)
    assert page.evaluate("window.here") is True
    shot(page, "overview")


def test_what_is_clicked_happens_on_the_host(look, lab, counting):
    page = look("operator")
    choose(page, counting, "Suspend")
    waited(lambda: state_of(lab, "hv1", counting) == "paused", "paused")
    expect(row(page, counting)).to_contain_text("paused", timeout=LONG)
    choose(page, counting, "Resume")
    waited(lambda: state_of(lab, "hv1", counting) == "running", "running")
    counts_on(lab, "hv1", counting)


def test_a_guest_is_made_by_the_form_and_deleted_with_its_disk(look, lab, shot):
    name, image = "made", f"{lab_guest.FOLDER}/page-base.qcow2"
    lab.run("hv1", ["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"])
    try:
        page = look(at="/create")
        page.get_by_label("Name", exact=True).fill(name)
        page.get_by_label("Host", exact=True).select_option("hv1")
        page.get_by_label("Image", exact=True).fill("/etc/shadow")
        page.get_by_label("Memory in MiB").fill("64")
        page.get_by_label("Disk in GiB").fill("1")
        button = page.get_by_role("button", name="Create", exact=True)
        button.click()
        expect(page.locator("#image-wrong")).to_contain_text("is in no storage pool", timeout=LONG)
        assert state_of(lab, "hv1", name) == ""
        page.get_by_label("Image", exact=True).fill(image)
        shot(page, "create")
        button.click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=LONG)
        assert state_of(lab, "hv1", name) == "running"
        xml = lab.run("hv1", ["virsh", "dumpxml", name]).stdout
        assert f">{64 * 1024}</memory>" in xml
        (disk,) = re.findall(r"<source file='([^']*made[^']*)'", xml)
        assert image in lab.run("hv1", ["qemu-img", "info", "-U", disk]).stdout

        page.get_by_role("button", name="Force off").click()
        page.get_by_role("dialog").get_by_role("button", name="Force off").click()
        page.get_by_role("button", name="Delete").click(timeout=LONG)
        page.get_by_label("are deleted too").check()
        page.get_by_label("Type the name of the guest").fill(name)
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        waited(lambda: state_of(lab, "hv1", name) == "", "the end of the guest")
        waited(lambda: lab.run("hv1", ["test", "-e", disk], check=False).returncode == 1, "the end of its disk")
    finally:
        end_guest(lab, name)
        lab.run("hv1", ["rm", "-f", image])


def test_a_new_guest_is_made_on_the_host_that_was_said_and_why(look, lab, counting, shot):
    """It is the one on which nothing runs."""
    name, image = "chosen", f"{lab_guest.FOLDER}/page-base.qcow2"
    full, empty = place_of(lab, counting)
    for host in (full, empty):
        lab.run(host, ["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"])
    disks = []
    try:
        page = look(at="/create")
        expect(page.get_by_label("Host", exact=True)).to_have_value("")
        page.get_by_label("Name", exact=True).fill(name)
        page.get_by_label("Image", exact=True).fill(image)
        page.get_by_label("Memory in MiB").fill("64")
        page.get_by_label("Disk in GiB").fill("1")
        page.get_by_label("Then", exact=True).select_option("defined")
        page.get_by_role("button", name="Which host would it be?").click()
        why = f"{empty}: {empty} is the emptiest host that it fits on"
        expect(page.get_by_text(f"{name} would be made on {why}")).to_be_visible(timeout=LONG)
        assert [state_of(lab, host, name) for host in (full, empty)] == ["", ""]
        shot(page, "create-chosen")
        page.get_by_role("button", name="Create", exact=True).click()
        expect(page.get_by_text(f"{name} was made on {why}").first).to_be_visible(timeout=LONG)
        assert [state_of(lab, host, name) for host in (full, empty)] == ["", "shut off"]
        disks = re.findall(r"<source file='([^']*)'", lab.run(empty, ["virsh", "dumpxml", name]).stdout)
        assert len(disks) == 1
    finally:
        end_guest(lab, name)
        for host in (full, empty):
            lab.run(host, ["rm", "-f", image, *disks])


def test_a_guest_that_is_dragged_to_the_other_host_runs_on_there(look, lab, counting, shot):
    page = look("operator")
    row(page, counting).drag_to(page.locator("[data-host=hv2]"))
    dialog = page.get_by_role("dialog", name=f"Move {counting}")
    expect(dialog.get_by_text("Nothing stands in the way")).to_be_visible(timeout=LONG)
    assert state_of(lab, "hv1", counting) == "running"
    shot(page, "move")
    before = last_second(lab, "hv1", counting)
    dialog.get_by_role("button", name="Move to hv2").click()
    expect(dialog.get_by_text(f"{counting} is on hv2.")).to_be_visible(timeout=LONG)
    assert state_of(lab, "hv2", counting) == "running"
    assert state_of(lab, "hv1", counting) == ""
    printed = counted_to(lab, "hv2", counting, before + 2)
    assert "guest boot" not in printed
    dialog.get_by_role("button", name="Close").click()
    expect(row(page, counting).locator(".cell-host")).to_have_text("hv2", timeout=LONG)


def test_a_screen_shows_the_guest_and_takes_three_keys(look, lab, counting, shot):
    page = look("operator")
    here, _ = place_of(lab, counting)
    open_console(page, counting)
    width, height, _ = waited(lambda: (found := pixels(page))[2] > 500 and found, "a picture")
    lab.run(here, ["virsh", "screenshot", counting, "/run/page.png"])
    # A PNG begins with 16 fixed bytes; then width and height come.
    digits = lab.run(here, ["od", "-An", "-t", "u4", "--endian=big", "-j", "16", "-N", "8", "/run/page.png"]).stdout
    assert digits.split() == [str(width), str(height)]
    shot(page, "console")
    boots = lab.console(here, counting).count("guest boot")
    page.get_by_role("button", name="Ctrl+Alt+Del").click()
    waited(lambda: lab.console(here, counting).count("guest boot") > boots, "a reboot by three keys", 180)


def test_a_serial_port_takes_keys_and_is_there_again_after_the_guest_has_moved(look, lab, counting):
    page = look("operator")
    here, there = place_of(lab, counting)
    open_console(page, counting)
    page.get_by_role("button", name="Serial port").click()
    expect(page.locator(".xterm-rows")).to_contain_text("guest second", timeout=LONG)
    keys = page.locator(".xterm-helper-textarea")
    types(keys, "typed-here", lambda: lab.console(here, counting))
    # What is connected afterwards must be another terminal than this one.
    page.locator(".xterm").evaluate("(terminal) => { terminal.dataset.old = 'yes'; }")
    migrate(lab, counting, here, there)
    expect(page.get_by_text(f"on {there}")).to_be_visible(timeout=LONG)
    page.locator(".console-screen[data-status=connected] .xterm:not([data-old])").wait_for(timeout=LONG)
    counted_to(lab, there, counting, 0)
    types(keys, "typed-there", lambda: lab.console(there, counting))


def test_a_viewer_is_offered_nothing_and_refused_what_he_asks_for_all_the_same(look, front, lab, counting):
    page = look("viewer")
    expect(row(page, counting)).to_be_visible(timeout=LONG)
    expect(page.get_by_role("button", name=f"Actions for {counting}")).to_have_count(0)
    expect(page.get_by_role("link", name="Create")).to_have_count(0)
    host = row(page, counting).locator(".cell-host").inner_text()
    token = page.evaluate("JSON.parse(sessionStorage.getItem('hypervisor-session')).token")
    for function in ("hypervisor.power_off", "wsproxy.start"):
        request = {"client": "local_async", "tgt": [host], "fun": function, "kwarg": {"name": counting}}
        status, _, answer = front.ask("POST", "/api/run", request, token)
        assert status == 403, answer
    assert state_of(lab, host, counting) == "running"


def test_an_expired_login_keeps_the_place(look, front, counting):
    page = look("operator")
    page.get_by_label("Filter guests").fill(counting)
    token = page.evaluate("JSON.parse(sessionStorage.getItem('hypervisor-session')).token")
    status, _, answer = front.ask("POST", "/api/logout", {}, token)
    assert status == 200, json.loads(answer)
    choose(page, counting, "Suspend")
    dialog = page.get_by_role("dialog", name="Log in again")
    dialog.get_by_label("Password").fill(front.users["operator"]["password"])
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_label("Filter guests")).to_have_value(counting)
    expect(page.locator("[data-connection=live]")).to_be_visible(timeout=LONG)

"""Hosts that are emptied and guests that are made from the page alone, before a stand-in for its server.

What hosts do is asserted by the tests on hosts.
"""

from __future__ import annotations

from typing import Any

from chromium import asked, begun
from playwright.sync_api import expect
from upstream import ADMINISTERS, NOW, OPERATES, host, step

# ---- emptying a host ----


def test_a_host_is_emptied_and_restored_by_keyboard_alone_with_each_guests_progress(look, site, faultless):
    page = look(at="/host/hv1")
    expect(page.get_by_role("button", name="Restore…")).to_have_count(0)
    page.get_by_role("button", name="Evacuate…").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Evacuate hv1")
    expect(dialog).to_contain_text("The guests that run on hv1 (1) move to other hosts")
    faultless(page)
    parallel = dialog.get_by_label("Guests that move at a time")
    parallel.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("17")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("A number from 1 to 16.")).to_be_visible()
    assert site.changing() == []
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    assert asked(page, site, "fleet.evacuate")
    assert site.changing() == [
        {"client": "runner_async", "fun": "fleet.evacuate",
         "kwarg": {"host": "hv1", "parallel": 3, "copy_disks": False}},
    ]  # fmt: skip
    jid, job = begun(page, site, "fleet.evacuate")
    expect(page.get_by_role("button", name="Evacuate…")).to_be_disabled()
    site.change("hosts", "hv1", host("hv1", evacuated={"since": NOW, "user": "otto", "guests": 1}))
    against = {"hv2": ["device: it has <b>a card</b>"], "hv3": ["memory: too little"]}
    moving = [step("web1", "moving"), step("db1", "stays", to="", text="stays on hv1", against=against)]
    site.change("jobs", jid, {**job, "progress": moving})
    part = page.get_by_role("region", name="Evacuation")
    expect(part.get_by_role("status")).to_have_text("1 moving, 1 stays")
    expect(part.get_by_text("device: it has <b>a card</b>")).to_be_visible()
    expect(part.get_by_text("memory: too little")).to_be_visible()
    faultless(page)
    part.get_by_role("button", name="Cancel the migration of web1").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Cancel the migration of web1").last).to_be_visible()
    sent = asked(page, site, "hypervisor.cancel")
    assert (sent["tgt"], sent["kwarg"]) == (["hv1"], {"name": "web1"})
    said = "hv1 is not evacuated whole: 1 of 2 guests moved"
    over = {"progress": [step("web1", "moved"), moving[1]], "outcome": {"success": False, "comment": said}}
    site.change("jobs", jid, {**job, **over})
    expect(part.get_by_text(said)).to_be_visible()
    expect(part.get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="Restore…").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Restore hv1").get_by_role("button", name="Restore").press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert asked(page, site, "fleet.restore")
    site.change("hosts", "hv1", host("hv1"))
    page.goto(f"{page.url.split('#')[0]}#/jobs")
    expect(
        page.get_by_role("row").filter(has_text="evacuate").get_by_text("device: it has <b>a card</b>")
    ).to_be_visible()
    faultless(page)


def test_emptying_is_offered_to_roles_that_may(look, site):
    site.functions = [one for one in OPERATES if not one.startswith("fleet.")]
    site.tables["hosts"]["hv1"]["evacuated"] = {"since": NOW, "user": "anna", "guests": 1}
    page = look(at="/host/hv1")
    expect(page.get_by_role("region", name="Evacuation")).to_contain_text("by anna: nothing new is put here")
    for name in ("Evacuate…", "Restore…"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)


# ---- making ----


def test_a_guest_is_made_from_what_the_host_has(look, site):
    site.reads["hypervisor.host_info"] = {"bridges": [{"name": "br0"}, {"name": "virbr0"}]}
    site.tables["networks"]["hv1/net0"] = {
        "host": "hv1", "name": "net0", "state": "running", "bridge": "virbr0", "mode": "nat",
    }  # fmt: skip
    site.tables["pools"]["hv1/vms"] = {
        "host": "hv1", "name": "vms", "state": "running", "type": "dir", "capacity_bytes": 10**12,
        "available_bytes": 4 * 10**11,
    }  # fmt: skip
    site.functions = [one for one in ADMINISTERS if one != "fleet.create"]
    page = look(at="/create")
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_text("Choose a host.")).to_be_visible()
    expect(page.get_by_label("Host", exact=True)).to_be_focused()
    assert site.asked == []
    page.get_by_label("Host", exact=True).select_option("hv1")
    page.get_by_label("Name", exact=True).fill("new1")
    page.get_by_label("Image", exact=True).fill("salt://images/debian.qcow2")
    page.get_by_label("Storage").select_option("vms")
    expect(page.get_by_label("Network").locator("option")).to_have_text(["none", "net0 (nat)", "br0 (bridge)"])
    page.get_by_label("Network").select_option("bridge br0")
    page.get_by_label("cloud-init sets it up").check()
    page.get_by_label("User", exact=True).fill("ada")
    page.get_by_label("The user's public ssh key").fill("ssh-ed25519 AAAA ada")
    page.get_by_label("Disk in GiB").fill("8")
    site.answers["hypervisor.create"] = {
        "success": False, "comment": "nothing was made:\ndisks:0:pool: vms is not active\nmem: too much",
    }  # fmt: skip
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.locator("#pool-wrong")).to_have_text("disks:0:pool: vms is not active")
    expect(page.locator("#memory-wrong")).to_have_text("mem: too much")
    sent = site.asked[-1]
    assert (sent["fun"], sent["client"], sent["tgt"]) == ("hypervisor.create", "local_async", ["hv1"])
    assert sent["kwarg"]["disks"] == [
        {"name": "system", "pool": "vms", "size": 8192, "image": "salt://images/debian.qcow2"}
    ]
    assert sent["kwarg"]["interfaces"] == [{"name": "eth0", "type": "bridge", "source": "br0"}]
    assert sent["kwarg"]["cloud_init"]["user_data"]["users"][1]["ssh_authorized_keys"] == ["ssh-ed25519 AAAA ada"]


def test_a_host_is_chosen_with_its_reason_and_errors_stand_at_their_fields(look, site, faultless):
    site.reads["hypervisor.host_info"] = {"bridges": [{"name": "br0"}]}
    pool = {"name": "vms", "state": "running", "type": "dir", "capacity_bytes": 10**12, "available_bytes": 4 * 10**11}
    site.tables["pools"]["hv2/vms"] = {"host": "hv2", **pool}
    page = look(at="/create")
    expect(page.get_by_label("Host", exact=True).locator("option")).to_have_text(["chosen for you", "hv1", "hv2"])
    ask = page.get_by_role("button", name="Which host would it be?")
    expect(ask).to_be_disabled()
    page.get_by_label("Name", exact=True).fill("new1")
    page.get_by_label("Image", exact=True).fill("salt://images/debian.qcow2")
    expect(page.get_by_label("Network").locator("option")).to_have_text(["none", "br0 (bridge)"])
    expect(page.get_by_label("Storage").locator("option")).to_have_text(
        ["the host's folder of images", "vms (dir, 373 GiB free); on hv2 alone"]
    )
    page.get_by_label("Storage").select_option("vms")
    why = "new1 would be made on hv2: hv2 is the only host that it fits on"
    row = {"guest": "new1", "step": "possible", "host": "hv2", "against": {"hv1": ["pool: hv1 has no pool <vms>"]}}
    answer = {"outcome": {"success": True, "comment": why}, "progress": [row]}
    site.answers["fleet.create"] = answer
    ask.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text(why)).to_be_visible()
    expect(page.get_by_text("pool: hv1 has no pool <vms>")).to_be_visible()
    faultless(page)
    sent = site.changing()[-1]
    assert (sent["client"], sent["fun"], sent["kwarg"]["test"]) == ("runner_async", "fleet.create", True)
    assert "host" not in sent["kwarg"]

    said = "new1 was not made on hv2: ERROR: nothing was made:\ndisks:0:pool: vms is not active"
    site.answers["fleet.create"] = {"outcome": {"success": False, "comment": said}}
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.locator("#pool-wrong")).to_have_text("disks:0:pool: vms is not active")
    refused = {"guest": "new1", "step": "refused", "against": {"hv1": ["memory: too little"], "hv2": ["is evacuated"]}}
    none = "no host takes new1; nothing was made"
    site.answers["fleet.create"] = {"outcome": {"success": False, "comment": none}, "progress": [refused]}
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.locator("#host-wrong")).to_contain_text(none)
    expect(page.locator("#host-wrong")).to_contain_text("hv2: is evacuated")

    site.answers["fleet.create"] = {"outcome": {"success": True, "comment": "new1 was made on hv2: it is the emptiest"}}
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_text("new1 was made on hv2: it is the emptiest")).to_be_visible()
    assert "test" not in site.changing()[-1]["kwarg"]


def test_a_host_whose_bridges_cannot_be_read_is_named_at_the_field(look, site, faultless):
    told: dict[str, Any] = {"hv1": False, "hv2": {"bridges": [{"name": "br0"}]}}
    site.reads["hypervisor.host_info"] = told.get
    page = look(at="/create")
    said = "The bridges of hv1 could not be read: hv1 does not answer."
    expect(page.locator("#network-hint")).to_have_text(said)
    expect(page.get_by_label("Network")).to_have_accessible_description(said)
    # Whether hv1 has it too nobody knows.
    expect(page.get_by_label("Network").locator("option")).to_have_text(["none", "br0 (bridge)"])
    faultless(page)
    page.get_by_label("Host", exact=True).select_option("hv2")
    expect(page.get_by_label("Network").locator("option")).to_have_text(["none", "br0 (bridge)"])
    expect(page.locator("#network-hint")).to_have_count(0)
    page.get_by_label("Host", exact=True).select_option("hv1")
    expect(page.locator("#network-hint")).to_have_text(said)
    told["hv1"] = "ERROR: libvirt is not there\nTraceback"
    page.get_by_label("Host", exact=True).select_option("hv2")
    page.get_by_label("Host", exact=True).select_option("hv1")
    expect(page.locator("#network-hint")).to_have_text(
        "The bridges of hv1 could not be read: ERROR: libvirt is not there"
    )


def test_an_answer_that_comes_late_is_none_to_what_was_typed_meanwhile(look, site):
    site.reads["hypervisor.host_info"] = {"bridges": []}
    page = look(at="/create")
    page.get_by_label("Name", exact=True).fill("new1")
    page.get_by_label("Image", exact=True).fill("salt://images/debian.qcow2")
    page.get_by_role("button", name="Which host would it be?").click()
    expect(page.get_by_role("button", name="Asking the hosts…")).to_be_disabled()
    # The button says so before the server knows.
    jid, job = begun(page, site, "fleet.create")
    page.get_by_label("Name", exact=True).fill("new2")
    site.change("jobs", jid, {**job, "outcome": {"success": True, "comment": "new1 would be made on hv2: it is free"}})
    # The button is there again once the answer has come.
    ask = page.get_by_role("button", name="Which host would it be?")
    expect(ask).to_be_enabled()
    expect(page.get_by_text("new1 would be made on hv2")).to_have_count(0)
    site.answers["fleet.create"] = {"outcome": {"success": True, "comment": "new2 would be made on hv1: it is free"}}
    ask.click()
    expect(page.get_by_text("new2 would be made on hv1")).to_be_visible()


def test_who_went_elsewhere_stays_there_when_the_guest_has_been_made(look, site):
    site.reads["hypervisor.host_info"] = {"bridges": []}
    page = look(at="/create")
    page.get_by_label("Name", exact=True).fill("new1")
    page.get_by_label("Image", exact=True).fill("salt://images/debian.qcow2")
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_role("button", name="A host makes it…")).to_be_disabled()
    jid, job = begun(page, site, "fleet.create")
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    site.change("jobs", jid, {**job, "outcome": {"success": True, "comment": "new1 was made on hv2: it is free"}})
    expect(page.get_by_role("listitem").get_by_text("new1 was made on hv2: it is free")).to_be_visible()
    page.get_by_role("link", name="Create").click()
    # What is made is typed no more, and nothing has led away from the jobs meanwhile.
    expect(page.get_by_label("Name", exact=True)).to_have_value("")
    page.go_back()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()

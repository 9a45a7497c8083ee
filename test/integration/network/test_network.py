"""A host that has the pillar of this suite: a bridge of guests alone, beside the interfaces that were there."""

import json


def ip(host, *words):
    return json.loads(host.check_output(" ".join(["ip", "-j", *words])))


def test_the_bridge_is_there_with_its_address(host):
    (link,) = ip(host, "address", "show", "dev", "br-suite")
    assert [one["local"] for one in link["addr_info"] if one["family"] == "inet"] == ["10.214.1.1"]
    assert "UP" in link["flags"]


def test_frames_cross_it_at_once(host):
    (link,) = ip(host, "-d", "link", "show", "dev", "br-suite")
    assert link["linkinfo"]["info_kind"] == "bridge"
    assert link["linkinfo"]["info_data"]["stp_state"] == 0


def test_the_change_is_confirmed_and_over(host):
    found = json.loads(host.check_output("network-profile status --json"))
    assert (found["state"], found["pending"], found["uplink"]) == ("confirmed", False, False)


def test_a_boot_would_restore_what_was_not_confirmed(host):
    assert host.service("hypervisor-network-boot").is_enabled
    assert host.run("systemctl is-failed hypervisor-network-apply").stdout.strip() != "failed"

"""corosync.conf as text, and what of a difference a running corosync can take up."""

from __future__ import annotations

import pytest

from _utils import corosync_conf as conf

CLUSTER = {
    "name": "c",
    "links": {},
    "crypto": {"cipher": "aes256", "hash": "sha256"},
    "token": 3000,
    "quorum": {},
}
NODES = {
    "hv2.example.org": {"id": 2, "name": "hv2", "addresses": ["192.0.2.2"]},
    "hv1": {"id": 1, "addresses": ["192.0.2.1"]},
}
THIRD = {"hv3": {"id": 3, "addresses": ["192.0.2.3"]}}
TEXT = """\
# Written by Salt. Change the pillar: what is edited here is replaced by the next run.
totem {
    version: 2
    cluster_name: c
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    token: 3000
}
nodelist {
    node {
        name: hv1
        nodeid: 1
        ring0_addr: 192.0.2.1
    }
    node {
        name: hv2
        nodeid: 2
        ring0_addr: 192.0.2.2
    }
}
quorum {
    provider: corosync_votequorum
    two_node: 1
}
logging {
    to_logfile: no
    to_stderr: no
    to_syslog: yes
    timestamp: off
}
"""


def wanted(nodes=NODES, **over):
    return conf.flat(conf.tree({**CLUSTER, **over}, nodes))


def as_printed(values):
    """What corosync-cmapctl prints, with what corosync has besides."""
    lines = [f"{key} (str) = {value}" for key, value in values.items()]
    return "\n".join(["nodelist.local_node_pos (u32) = 0", "runtime.config.totem.token (u32) = 3000", *lines, ""])


def running(nodes=NODES, **over):
    return conf.parse(as_printed(wanted(nodes, **over)))


def test_the_text_of_two_nodes():
    assert conf.emit(conf.tree(CLUSTER, NODES)) == TEXT


def test_three_nodes_do_not_wait_for_each_other_and_one_needs_no_options():
    votes = {"provider": "corosync_votequorum", "two_node": 0}
    assert conf.tree(CLUSTER, {**NODES, **THIRD})["quorum"] == votes
    assert conf.tree(CLUSTER, THIRD)["quorum"] == votes


def test_links_and_votes_as_declared():
    nodes = {
        f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}", f"2001:DB8:0::{n}"]} for n in (1, 2, 3, 4)
    }
    links = {"1": {"priority": 5, "port": 5500, "ping_interval": 500, "ping_timeout": 1000, "pong_count": 3}}
    votes = {"auto_tie_breaker": True, "auto_tie_breaker_node": "hv3", "wait_for_all": True}
    values = wanted(nodes, links=links, quorum=votes)
    assert values["totem.link_mode"] == "passive"
    assert {key: value for key, value in values.items() if key.startswith("totem.interface.")} == {
        "totem.interface.1.knet_link_priority": "5",
        "totem.interface.1.mcastport": "5500",
        "totem.interface.1.knet_ping_interval": "500",
        "totem.interface.1.knet_ping_timeout": "1000",
        "totem.interface.1.knet_pong_count": "3",
    }
    assert values["nodelist.node.2.ring1_addr"] == "2001:db8::3"
    assert (values["quorum.auto_tie_breaker"], values["quorum.auto_tie_breaker_node"]) == ("1", "3")
    assert "\n    interface {\n        linknumber: 1\n        knet_link_priority: 5\n" in conf.emit(
        conf.tree({**CLUSTER, "links": links, "quorum": votes}, nodes)
    )


def test_nothing_differs_from_what_runs_with_the_same():
    assert conf.plan(wanted(), running()) == conf.Plan({}, {}, {})


def test_a_node_that_comes_or_goes_is_taken_up_by_a_reload_with_the_votes():
    comes = conf.plan(wanted({**NODES, **THIRD}), running())
    assert (comes.restart, comes.stop) == ({}, {})
    assert set(comes.reload) == {"node hv3", "quorum.two_node"}
    assert comes.reload["node hv3"] == {
        "old": None,
        "new": {"name": "hv3", "nodeid": "3", "ring0_addr": "192.0.2.3"},
    }
    goes = conf.plan(wanted(), running({**NODES, **THIRD}))
    assert set(goes.reload) == set(comes.reload)
    assert goes.reload["node hv3"]["new"] is None


def test_the_place_of_a_node_in_the_list_means_nothing():
    values = running()
    swapped = {
        key.replace("node.0.", "node.9.").replace("node.1.", "node.0.").replace("node.9.", "node.1."): value
        for key, value in values.items()
    }
    assert swapped != values
    assert conf.plan(wanted(), swapped) == conf.Plan({}, {}, {})


FOUR = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3, 4)}
LAST = {"wait_for_all": True, "last_man_standing": True}


def changed(found):
    """What a plan says of keys, old and new."""
    return {key: (row["old"], row["new"]) for key, row in found.items()}


@pytest.mark.parametrize(
    ("old", "new", "flags", "differences"),
    [
        ({}, {"wait_for_all": True}, [], {"wait_for_all": ("0", "1")}),
        ({"wait_for_all": True}, {}, ["WaitForAll"], {"wait_for_all": ("1", "0")}),
        ({}, {"auto_tie_breaker": True}, [], {"auto_tie_breaker": ("0", "1")}),
        ({"auto_tie_breaker": True}, {}, ["AutoTieBreaker"], {"auto_tie_breaker": ("1", "0")}),
        (
            {},
            {"auto_tie_breaker": True, "auto_tie_breaker_node": "hv3"},
            [],
            {"auto_tie_breaker": ("0", "1"), "auto_tie_breaker_node": ("lowest", "3")},
        ),
        (
            {"auto_tie_breaker": True},
            {"auto_tie_breaker": True, "auto_tie_breaker_node": "highest"},
            ["AutoTieBreaker"],
            {"auto_tie_breaker_node": ("lowest", "highest")},
        ),
        (LAST, {"wait_for_all": True}, ["WaitForAll", "LastManStanding"], {"last_man_standing": ("1", "0")}),
        (
            LAST,
            {**LAST, "last_man_standing_window": 20000},
            ["WaitForAll", "LastManStanding"],
            {"last_man_standing_window": ("10000", "20000")},
        ),
    ],
)
def test_votes_that_count_from_the_start_need_a_restart(old, new, flags, differences):
    """Whether votequorum says what it does, or is not asked."""
    for said in (flags, None):
        found = conf.plan(wanted(FOUR, quorum=new), running(FOUR, quorum=old), said)
        assert changed(found.restart) == {f"quorum.{key}": row for key, row in differences.items()}
        assert found.stop == {}
        assert conf.plan(wanted(FOUR, quorum=old), running(FOUR, quorum=old), said) == conf.Plan({}, {}, {})


def test_what_a_reload_has_brought_into_the_map_alone_is_not_in_force():
    values = running(FOUR, quorum={"auto_tie_breaker": True, **LAST})
    found = conf.plan(wanted(FOUR, quorum={"auto_tie_breaker": True, **LAST}), values, ["Quorate"])
    assert changed(found.restart) == {
        "quorum.wait_for_all": ("0", "1"),
        "quorum.auto_tie_breaker": ("0", "1"),
        "quorum.last_man_standing": ("0", "1"),
    }
    # The other way round it is in force, and only the map has to follow.
    found = conf.plan(wanted(FOUR), values, ["Quorate"])
    assert (set(found.reload), found.restart) == (
        {"quorum.wait_for_all", "quorum.auto_tie_breaker", "quorum.last_man_standing"},
        {},
    )


def test_which_half_goes_on_is_judged_by_what_votequorum_does():
    votes = {"auto_tie_breaker": True, "auto_tie_breaker_node": "highest"}
    values = {**running(FOUR, quorum=votes), "runtime.votequorum.atb_type": "1"}
    found = conf.plan(wanted(FOUR, quorum=votes), values, ["AutoTieBreaker"])
    assert changed(found.restart) == {"quorum.auto_tie_breaker_node": ("lowest", "highest")}
    values["runtime.votequorum.atb_type"] = "2"
    assert conf.plan(wanted(FOUR, quorum=votes), values, ["AutoTieBreaker"]) == conf.Plan({}, {}, {})


def test_waiting_for_all_follows_two_nodes_unless_it_has_started_with_a_value():
    three = {**NODES, **THIRD}
    assert conf.plan(wanted(three), running(), ["2Node", "WaitForAll"]).restart == {}
    assert conf.plan(wanted(), running(three), []).restart == {}
    kept = conf.plan(wanted(three), running(quorum={"wait_for_all": True}), ["2Node", "WaitForAll"])
    assert changed(kept.restart) == {"quorum.wait_for_all": ("1", "0")}
    off = conf.plan(wanted(), running(three, quorum={"wait_for_all": False}), [])
    assert changed(off.restart) == {"quorum.wait_for_all": ("0", "1")}
    # One that does not follow has started with a value, whatever the map says by now.
    lost = conf.plan(wanted(three), running(three), ["WaitForAll"])
    assert changed(lost.restart) == {"quorum.wait_for_all": ("1", "0")}


def test_with_which_votes_it_has_started_is_noted_once_before_a_reload_replaces_them():
    assert conf.note(wanted(), running()) == []
    before, new = running(quorum={"wait_for_all": True}), wanted()
    *command, text = conf.note(new, before)
    assert command == ["corosync-cmapctl", "-s", "hypervisor.started", "str"]
    after = conf.parse(f"{as_printed(new)}hypervisor.started (str) = {text}\n")
    assert conf.note(wanted(quorum={"wait_for_all": True}), after) == []
    # Two nodes wait for each other either way, but this one will not stop to.
    flags = ["2Node", "WaitForAll"]
    assert conf.plan(new, after, flags) == conf.Plan({}, {}, {})
    assert changed(conf.plan(wanted({**NODES, **THIRD}), after, flags).restart) == {"quorum.wait_for_all": ("1", "0")}


def test_the_keys_of_a_restart_tell_votes_apart_that_count_from_the_start():
    assert set(conf.restart_keys()) >= {"totem.cluster_name", "quorum.wait_for_all", "quorum.last_man_standing_window"}
    assert "quorum.two_node" not in conf.restart_keys()


@pytest.mark.parametrize(
    ("over", "kind", "key"),
    [
        ({"token": 5000}, "reload", "totem.token"),
        ({"links": {"0": {"ping_timeout": 900}}}, "reload", "totem.interface.0.knet_ping_timeout"),
        ({"quorum": {"two_node": False}}, "reload", "quorum.two_node"),
        ({"name": "d"}, "restart", "totem.cluster_name"),
        ({"crypto": {"cipher": "none", "hash": "sha256"}}, "stop", "totem.crypto_cipher"),
        ({"crypto": {"cipher": "aes256", "hash": "sha512"}}, "stop", "totem.crypto_hash"),
        ({"links": {"0": {"port": 5500}}}, "stop", "totem.interface.0.mcastport"),
    ],
)
def test_what_each_difference_needs(over, kind, key):
    found = conf.plan(wanted(**over), running())
    assert key in getattr(found, kind)
    others = [name for name in conf.Plan._fields if name != kind]
    assert [getattr(found, name) for name in others] == [{}, {}]


def test_a_setting_of_a_link_that_is_not_declared_any_more_goes():
    found = conf.plan(wanted(), running(links={"0": {"priority": 7}}))
    assert found.reload == {"totem.interface.0.knet_link_priority": {"old": "7", "new": None}}


def test_settings_of_others_stay():
    values = {**running(), "totem.max_messages": "20", "quorum.expected_votes_tracking": "0"}
    assert conf.plan(wanted(), values) == conf.Plan({}, {}, {})


def test_a_node_may_change_one_of_two_addresses_and_not_its_only_one():
    moved = {**NODES, "hv1": {"id": 1, "addresses": ["192.0.2.77"]}}
    assert set(conf.plan(wanted(moved), running()).stop) == {"node hv1"}
    two = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}", f"198.51.100.{n}"]} for n in (1, 2)}
    half = {**two, "hv1": {"id": 1, "addresses": ["192.0.2.1", "198.51.100.77"]}}
    found = conf.plan(wanted(half), running(two))
    assert set(found.reload) == {"node hv1"}
    assert found.stop == {}


def test_another_name_of_a_node_is_not_taken_up():
    renamed = {**NODES, "hv1": {"id": 1, "name": "other", "addresses": ["192.0.2.1"]}}
    assert set(conf.plan(wanted(renamed), running()).stop) == {"node other"}


def test_another_id_of_a_node_is_not_taken_up():
    before = {**NODES, "hv3": {"id": 3000, "addresses": ["192.0.2.3"]}}
    found = conf.plan(wanted({**NODES, **THIRD}), running(before))
    assert found == conf.Plan({}, {}, {"id of node hv3": {"old": "3000", "new": "3"}})
    # Also where its address or its name is another one too.
    moved = {**NODES, "hv3": {"id": 3, "addresses": ["192.0.2.77"]}}
    assert set(conf.plan(wanted(moved), running(before)).stop) == {"id of node hv3"}
    renamed = {**NODES, "hv4": {"id": 3, "addresses": ["192.0.2.3"]}}
    found = conf.plan(wanted(renamed), running(before))
    assert found.reload == {}
    assert found.stop == {
        "node hv4": {
            "old": {"name": "hv3", "nodeid": "3000", "ring0_addr": "192.0.2.3"},
            "new": {"name": "hv4", "nodeid": "3", "ring0_addr": "192.0.2.3"},
        }
    }


def test_nodes_do_not_swap_ids_or_addresses():
    ids = {**NODES, "hv1": {**NODES["hv1"], "id": 2}, "hv2.example.org": {**NODES["hv2.example.org"], "id": 1}}
    assert set(conf.plan(wanted(ids), running()).stop) == {"id of node hv1", "id of node hv2"}
    two = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}", f"198.51.100.{n}"]} for n in (1, 2)}
    swapped = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}", f"198.51.100.{3 - n}"]} for n in (1, 2)}
    found = conf.plan(wanted(swapped), running(two))
    assert (found.reload, set(found.stop)) == ({}, {"node hv1", "node hv2"})


def test_a_node_in_place_of_one_that_leaves_has_nothing_of_it():
    instead = {**NODES, "hv4": {"id": 4, "addresses": ["192.0.2.4"]}}
    found = conf.plan(wanted(instead), running({**NODES, **THIRD}))
    assert (set(found.reload), found.stop) == ({"node hv3", "node hv4"}, {})


def test_a_cluster_of_another_kind_has_to_be_stopped():
    values = {**running(), "totem.transport": "udpu"}
    assert set(conf.plan(wanted(), values).stop) == {"totem.transport"}

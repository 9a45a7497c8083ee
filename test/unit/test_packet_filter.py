"""What the packet filters are told: rules go into every chain that drops, and foreign ones are left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from _utils import packet_filter
from _utils.packet_filter import Rule

V4, V6 = Rule("192.0.2.0/24", "16514"), Rule("2001:db8::/64", "49152-49215")
DROP: dict[str, Any] = {"drop": None}
JUMP = {"jump": {"target": "hypervisor_libvirt"}}


def match(protocol: str, field: str, right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


# As nft 1.0.6 prints the two rules.
EXPR_V4 = [
    match("ip", "saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}),
    match("tcp", "dport", 16514),
    {"accept": None},
]
EXPR_V6 = [
    match("ip6", "saddr", {"prefix": {"addr": "2001:db8::", "len": 64}}),
    match("tcp", "dport", {"range": [49152, 49215]}),
    {"accept": None},
]


class Ruleset:
    """Writes what ``nft --json list ruleset`` would print."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = [{"metainfo": {"json_schema_version": 1}}]
        self.handle = 10

    def chain(self, name: str, table: str = "filter", family: str = "inet", **base: Any) -> Ruleset:
        self.items.append({"chain": {"family": family, "table": table, "name": name, "handle": 1, **base}})
        return self

    def input(self, name: str = "input", table: str = "filter", family: str = "inet", policy: str = "drop") -> Ruleset:
        return self.chain(name, table, family, type="filter", hook="input", prio=0, policy=policy)

    def rule(self, chain: str, *expr: Any, table: str = "filter", family: str = "inet") -> Ruleset:
        self.handle += 1
        self.items.append(
            {"rule": {"family": family, "table": table, "chain": chain, "handle": self.handle, "expr": list(expr)}}
        )
        return self

    def __str__(self) -> str:
        return json.dumps({"nftables": self.items})


def lines(text: str) -> list[str]:
    return text.splitlines()


# ---- the rules ----


def test_every_network_gets_every_port_sorted_and_once():
    made = packet_filter.rules(["2001:db8::/64", "192.0.2.0/24", "192.0.2.0/24"], ["16514", "49152-49215"])
    assert [str(rule) for rule in made] == [
        "192.0.2.0/24 to TCP 16514",
        "192.0.2.0/24 to TCP 49152-49215",
        "2001:db8::/64 to TCP 16514",
        "2001:db8::/64 to TCP 49152-49215",
    ]


@pytest.mark.parametrize("port", ["0", "65536", "ssh", "5-4", "-5", "1-", "22 accept; flush ruleset"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ValueError, match="is no port"):
        packet_filter.rules(["192.0.2.0/24"], [port])


def test_a_network_that_is_none_is_refused():
    with pytest.raises(ValueError, match="x; flush ruleset"):
        packet_filter.rules(["x; flush ruleset"], ["16514"])


# ---- nftables ----


@pytest.mark.parametrize(
    "text",
    [
        "",
        str(Ruleset()),
        str(Ruleset().input(policy="accept")),
        str(Ruleset().input(policy="accept").rule("input", {"accept": None})),
        # A chain that drops what leaves or passes is none for what arrives.
        str(Ruleset().chain("output", type="filter", hook="output", prio=0, policy="drop")),
        str(Ruleset().input(table="firewalld", policy="drop")),
        str(Ruleset().input("INPUT", "filter", "ip", "drop")),
    ],
)
def test_where_nothing_drops_nothing_is_needed(text):
    change = packet_filter.nft(text, [V4, V6], ["firewalld"])
    assert (change.script, change.stored, change.changes, change.refused) == ("", "", {}, [])


def test_rules_go_before_all_others_into_the_chain_that_drops():
    ruleset = Ruleset().input().rule("input", {"counter": {}}, DROP)
    change = packet_filter.nft(str(ruleset), [V4, V6])
    assert lines(change.script) == [
        "add chain inet filter hypervisor_libvirt",
        "flush chain inet filter hypervisor_libvirt",
        "add rule inet filter hypervisor_libvirt ip saddr 192.0.2.0/24 tcp dport 16514 accept",
        "add rule inet filter hypervisor_libvirt ip6 saddr 2001:db8::/64 tcp dport 49152-49215 accept",
        "insert rule inet filter input jump hypervisor_libvirt",
    ]
    assert change.stored == change.script
    assert change.changes == {"nftables inet filter": {"opened": [str(V4), str(V6)]}}


def there(*chain_rules: Any) -> Ruleset:
    """A ruleset that has been opened already."""
    ruleset = Ruleset().input().chain("hypervisor_libvirt").rule("input", JUMP).rule("input", DROP)
    for expression in chain_rules:
        ruleset.rule("hypervisor_libvirt", *expression)
    return ruleset


def test_nothing_to_do():
    change = packet_filter.nft(str(there(EXPR_V4, EXPR_V6)), [V4, V6])
    assert (change.script, change.changes) == ("", {})
    assert "insert rule inet filter input jump" in change.stored


def test_a_host_is_printed_without_its_prefix():
    expression = [match("ip", "saddr", "192.0.2.7"), *EXPR_V4[1:]]
    assert packet_filter.nft(str(there(expression)), [Rule("192.0.2.7/32", "16514")]).script == ""


@pytest.mark.parametrize(
    ("ruleset", "what"),
    [
        (there(EXPR_V4), {"opened": [str(V6)]}),
        (there(EXPR_V4, EXPR_V6, [DROP]), {"closed": ["another rule"]}),
        (there(EXPR_V4, EXPR_V6, [match("ip", "saddr", "198.51.100.1"), *EXPR_V4[1:]]),
         {"closed": ["198.51.100.1/32 to TCP 16514"]}),
    ],
)  # fmt: skip
def test_what_was_altered_by_hand_is_repaired(ruleset, what):
    change = packet_filter.nft(str(ruleset), [V4, V6])
    assert change.changes == {"nftables inet filter": what}
    assert "insert rule" not in change.script
    assert "flush chain inet filter hypervisor_libvirt" in lines(change.script)


def test_a_lost_way_into_the_rules_is_repaired():
    ruleset = Ruleset().input().chain("hypervisor_libvirt").rule("hypervisor_libvirt", *EXPR_V4)
    change = packet_filter.nft(str(ruleset), [V4])
    assert lines(change.script) == ["insert rule inet filter input jump hypervisor_libvirt"]
    assert change.changes == {"nftables inet filter": "the way into these rules is repaired"}


def test_a_way_that_nothing_reaches_and_one_too_many_are_repaired():
    ruleset = Ruleset().input().chain("hypervisor_libvirt").rule("hypervisor_libvirt", *EXPR_V4)
    ruleset.rule("input", DROP).rule("input", JUMP)
    assert lines(packet_filter.nft(str(ruleset), [V4]).script) == [
        "delete rule inet filter input handle 13",
        "insert rule inet filter input jump hypervisor_libvirt",
    ]
    assert packet_filter.nft(str(there(EXPR_V4).rule("input", JUMP)), [V4]).script


def test_a_single_block_before_it_is_left_where_it_is():
    """A ban of one address must not be overtaken at every run."""
    ruleset = Ruleset().input().chain("hypervisor_libvirt").rule("hypervisor_libvirt", *EXPR_V4)
    ruleset.rule("input", match("ip", "saddr", "203.0.113.9"), DROP).rule("input", JUMP)
    assert packet_filter.nft(str(ruleset), [V4]).script == ""


@pytest.mark.parametrize(
    "expression",
    [
        [{"reject": {"type": "icmp"}}],
        [{"jump": {"target": "strict"}}],
        [{"goto": {"target": "strict"}}],
        [{"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [["tcp", {"jump": {"target": "strict"}}]]}}}],
        [{"vmap": {"key": {"meta": {"key": "iif"}}, "data": "@verdicts"}}],
    ],
)
def test_a_chain_that_drops_by_a_rule_is_found(expression):
    ruleset = Ruleset().input(policy="accept").chain("strict").rule("strict", DROP).rule("input", *expression)
    assert packet_filter.nft(str(ruleset), [V4]).script


def test_chains_that_lead_to_each_other_end():
    ruleset = Ruleset().input(policy="accept").chain("a").chain("b")
    ruleset.rule("input", {"jump": {"target": "a"}}).rule("a", {"jump": {"target": "b"}})
    ruleset.rule("b", {"jump": {"target": "a"}})
    assert packet_filter.nft(str(ruleset), [V4]).script == ""


def test_every_table_that_drops_gets_the_rules_it_can_hold():
    ruleset = Ruleset().input(family="ip", table="one").input(family="ip6", table="two").input("in", "three")
    change = packet_filter.nft(str(ruleset), [V4, V6])
    assert change.changes == {
        "nftables inet three": {"opened": [str(V4), str(V6)]},
        "nftables ip one": {"opened": [str(V4)]},
        "nftables ip6 two": {"opened": [str(V6)]},
    }


def test_all_is_taken_out_and_nothing_else():
    change = packet_filter.nft(str(there(EXPR_V4)), [])
    assert lines(change.script) == [
        "delete rule inet filter input handle 11",
        "flush chain inet filter hypervisor_libvirt",
        "delete chain inet filter hypervisor_libvirt",
    ]
    assert change.changes == {"nftables inet filter": {"closed": [str(V4)]}}
    assert change.stored == ""
    assert packet_filter.nft(str(Ruleset().input()), []).script == ""


def test_rules_leave_a_chain_that_drops_no_more():
    ruleset = Ruleset().input(policy="accept").chain("hypervisor_libvirt").rule("input", JUMP)
    assert "delete chain inet filter hypervisor_libvirt" in packet_filter.nft(str(ruleset), [V4]).script


def test_a_chain_before_input_is_refused_with_the_line_to_add():
    def early(*expression: Any) -> str:
        ruleset = Ruleset().chain("early", type="filter", hook="prerouting", prio=-300, policy="drop")
        return str(ruleset.rule("early", *expression) if expression else ruleset)

    change = packet_filter.nft(early(), [V4])
    assert change.refused == ["nft insert rule inet filter early ip saddr 192.0.2.0/24 tcp dport 16514 accept"]
    assert packet_filter.nft(early(*EXPR_V4), [V4]).refused == []


# ---- iptables ----

SAVE = """\
*nat
:INPUT DROP [0:0]
COMMIT
*filter
:INPUT ACCEPT [1:2]
:FORWARD ACCEPT [0:0]
:strict - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j strict
-A strict -p tcp -m tcp --dport 22 -j ACCEPT
-A strict -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""
OURS = "-A HYPERVISOR-LIBVIRT -s 192.0.2.0/24 -p tcp -m tcp --dport 16514 -j ACCEPT"
OPEN = SAVE.replace(":strict", ":HYPERVISOR-LIBVIRT - [0:0]\n:strict").replace(
    "-A INPUT -i", f"{OURS}\n-A INPUT -j HYPERVISOR-LIBVIRT\n-A INPUT -i"
)


@pytest.mark.parametrize(
    "save",
    ["", "*nat\n:INPUT DROP [0:0]\nCOMMIT\n", SAVE.replace("-j REJECT --reject-with icmp-port-unreachable", "-j LOG")],
)
def test_where_iptables_drops_nothing_nothing_is_needed(save):
    assert packet_filter.iptables(save, [V4], 4) == packet_filter.Change()


@pytest.mark.parametrize("save", [SAVE, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"])
def test_iptables_gets_a_chain_before_all_rules(save):
    change = packet_filter.iptables(save, [V4, V6], 4)
    assert lines(change.script) == [
        "*filter",
        ":HYPERVISOR-LIBVIRT - [0:0]",
        OURS,
        "-I INPUT 1 -j HYPERVISOR-LIBVIRT",
        "COMMIT",
    ]
    assert change.stored == change.script
    assert change.changes == {"iptables": {"opened": [str(V4)]}}


def test_iptables_has_nothing_to_do():
    change = packet_filter.iptables(OPEN, [V4], 4)
    assert (change.script, change.changes) == ("", {})
    assert change.stored


def test_ip6tables_gets_the_other_networks():
    change = packet_filter.iptables(SAVE, [V4, V6], 6)
    assert "-s 2001:db8::/64 -p tcp -m tcp --dport 49152:49215 -j ACCEPT" in change.script
    assert "192.0.2.0" not in change.script
    assert list(change.changes) == ["ip6tables"]


@pytest.mark.parametrize(
    ("save", "script"),
    [
        (OPEN.replace("-A INPUT -j HYPERVISOR-LIBVIRT\n", ""), [OURS, "-I INPUT 1 -j HYPERVISOR-LIBVIRT"]),
        (OPEN.replace(OURS, f"{OURS}\n-A HYPERVISOR-LIBVIRT -j ACCEPT"), [OURS]),
        (
            OPEN.replace("-A INPUT -j HYPERVISOR-LIBVIRT", "-A INPUT -j DROP\n-A INPUT -j HYPERVISOR-LIBVIRT"),
            ["-D INPUT -j HYPERVISOR-LIBVIRT", OURS, "-I INPUT 1 -j HYPERVISOR-LIBVIRT"],
        ),
        (
            OPEN.replace("-A strict -j R", "-A strict -j HYPERVISOR-LIBVIRT\n-A strict -j R"),
            ["-D strict -j HYPERVISOR-LIBVIRT", OURS],
        ),
    ],
)
def test_what_was_altered_in_iptables_is_repaired(save, script):
    change = packet_filter.iptables(save, [V4], 4)
    assert lines(change.script)[2:-1] == script
    assert change.changes


def test_all_is_taken_out_of_iptables():
    change = packet_filter.iptables(OPEN, [], 4)
    assert lines(change.script) == [
        "*filter",
        ":HYPERVISOR-LIBVIRT - [0:0]",
        "-D INPUT -j HYPERVISOR-LIBVIRT",
        "-X HYPERVISOR-LIBVIRT",
        "COMMIT",
    ]
    assert change.changes == {"iptables": {"closed": [str(V4)]}}
    assert packet_filter.iptables(SAVE, [], 4).script == ""


# ---- firewalld ----


def test_only_rules_with_our_mark_are_ours():
    foreign = 'rule family="ipv4" source address="192.0.2.0/24" port port="16514" protocol="tcp" accept'
    old = packet_filter.rich(Rule("198.51.100.0/24", "16514"))
    add, remove, words = packet_filter.rich_difference(f"{foreign}\n{old}\n", [V4])
    assert add == [packet_filter.rich(V4)]
    assert remove == [old]
    assert words == {"opened": [str(V4)], "closed": ["198.51.100.0/24 to TCP 16514"]}
    assert packet_filter.rich_difference(f"{foreign}\n{packet_filter.rich(V4)}", [V4]) == ([], [], {})


def test_zones_that_other_hosts_come_through():
    active = "libvirt\n  interfaces: virbr0\ndmz (default)\n  interfaces: eth0\n  sources: 192.0.2.0/24\n"
    assert packet_filter.zones(active, "dmz\n") == ["dmz"]
    assert packet_filter.zones("", "public\n") == ["public"]

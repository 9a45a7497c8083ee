"""A cluster whose parts do not fit each other is refused by name, and one that fits is not."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary
from _utils.cluster_rules import errors, key_bytes, key_errors

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
SCHEMA = yaml.safe_load((ROOT / "cluster" / "schema.yaml").read_text())


def cluster(count=3, **over):
    """A pillar of so many nodes, with keys replaced."""
    nodes = {f"hv{number}": {"id": number, "addresses": [f"192.0.2.{number}"]} for number in range(1, count + 1)}
    base = {"name": "c", "nodes": nodes, "bootstrap_node": "hv1", "keys": {"keeper": "master"}}
    return {**base, **over}


def nodes(**specs):
    """Three nodes, with keys of some replaced; None takes a key out."""
    found = cluster()["nodes"]
    for name, over in specs.items():
        merged = {**found.get(name, {}), **over}
        found[name] = {key: value for key, value in merged.items() if value is not None}
    return found


def judged(pillar):
    return errors(formula_config.merge(DEFAULTS, pillar))


@pytest.mark.parametrize(
    "pillar",
    [
        {},
        cluster(1, keys={}),
        cluster(2),
        cluster(2, quorum={"two_node": False}),
        cluster(2, quorum={"two_node": False, "auto_tie_breaker": True, "auto_tie_breaker_node": "hv2"}),
        cluster(3, quorum={"two_node": False, "wait_for_all": True, "last_man_standing": True}),
        cluster(4, quorum={"auto_tie_breaker": True, "auto_tie_breaker_node": "highest"}),
        cluster(keys={"corosync": base64.b64encode(bytes(range(256))).decode()}),
        cluster(nodes=nodes(hv3={"ensure": "absent", "addresses": ["192.0.2.1"]})),
        cluster(crypto={"cipher": "none", "hash": "none"}),
        cluster(links={"0": {"priority": 1, "port": 5405}}),
    ],
)
def test_what_fits_is_accepted(pillar):
    assert judged(pillar) == []


@pytest.mark.parametrize(
    ("pillar", "where", "text"),
    [
        (cluster(name=""), "name", "missing; must be what the cluster is called"),
        (cluster(bootstrap_node=""), "bootstrap_node", "missing; must be one of the nodes: hv1, hv2, hv3"),
        (cluster(bootstrap_node="hv9"), "bootstrap_node", "hv9 is not among the nodes; must be one of: hv1, hv2, hv3"),
        (cluster(nodes=nodes(hv1={"ensure": "absent"})), "bootstrap_node",
         "hv1 is declared with ensure: absent; must be one of: hv2, hv3"),
        (cluster(1, nodes={"hv1": {"id": 1, "addresses": ["192.0.2.1"], "ensure": "absent"}}), "nodes",
         "all of them are declared with ensure: absent, and a cluster needs a node"),
        (cluster(keys={}), "keys:keeper",
         ("missing; must be the minion id of the master's own minion, through which the key reaches the other nodes, "
          "unless keys:corosync has one")),
        (cluster(nodes=nodes(hv2={"name": "HV1"})), "nodes:hv2:name", "HV1 is the name of hv1 already"),
        (cluster(nodes=nodes(hv2={"name": "localhost"})), "nodes:hv2:name",
         "localhost is what every host calls itself; nodes need names of their own"),
        (cluster(nodes=nodes(hv3={"id": 2})), "nodes:hv3:id", "2 is the id of hv2 already"),
        (cluster(nodes=nodes(hv3={"id": 2, "ensure": "absent"})), "nodes:hv3:id", "2 is the id of hv2 already"),
        (cluster(nodes=nodes(hv3={"addresses": ["192.0.2.2"]})), "nodes:hv3:addresses",
         "192.0.2.2 is an address of hv2 already"),
        (cluster(nodes=nodes(hv3={"addresses": ["127.0.0.1"]})), "nodes:hv3:addresses",
         "127.0.0.1 is no address at which other nodes find this one"),
        (cluster(nodes=nodes(hv3={"addresses": ["192.0.2.3", "198.51.100.3"]})), "nodes:hv3:addresses",
         "2, but hv1 has 1; each link needs an address of every node"),
        (cluster(nodes=nodes(hv2={"addresses": ["2001:db8::2"]})), "nodes:hv2:addresses",
         "link 0 of hv2 is IPv6, but that of hv1 is IPv4"),
        (cluster(links={"1": {"priority": 1}}), "links:1", "there is no such link: nodes have 1 address"),
        (cluster(links={"0": {"ping_interval": 500, "ping_timeout": 500}}), "links:0:ping_interval",
         "must be less than ping_timeout"),
        (cluster(quorum={"two_node": True}), "quorum:two_node",
         "not allowed: there are 3 nodes (hv1, hv2, hv3), and it is for exactly two"),
        (cluster(1, quorum={"two_node": True}), "quorum:two_node",
         "not allowed: there is one node (hv1), and it is for exactly two"),
        (cluster(nodes=nodes(hv3={"ensure": "absent"}), quorum={"wait_for_all": False}), "quorum:wait_for_all",
         "false is not allowed with two_node: each of two nodes that start apart would fence the other"),
        (cluster(2, quorum={"auto_tie_breaker": True}), "quorum:auto_tie_breaker",
         "not allowed with two_node, which lets each of two go on; set two_node: false"),
        (cluster(3, quorum={"auto_tie_breaker": True}), "quorum:auto_tie_breaker",
         "not allowed: there are 3 nodes (hv1, hv2, hv3), and an odd number cannot be halved"),
        (cluster(3, quorum={"last_man_standing": True}), "quorum:last_man_standing",
         "not allowed without wait_for_all: true"),
        (cluster(2, quorum={"two_node": False, "wait_for_all": True, "last_man_standing": True}),
         "quorum:last_man_standing", "not allowed: there are 2 nodes (hv1, hv2), and it is for three or more"),
        (cluster(quorum={"last_man_standing_window": 500}), "quorum:last_man_standing_window",
         "not allowed without last_man_standing: true"),
        (cluster(4, quorum={"auto_tie_breaker": True, "auto_tie_breaker_node": "hv9"}), "quorum:auto_tie_breaker_node",
         "hv9 is not among the nodes; must be lowest, highest or one of: hv1, hv2, hv3, hv4"),
        (cluster(crypto={"cipher": "aes256", "hash": "none"}), "crypto",
         "cipher aes256 does not go with hash none: both are none, or neither"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(pillar, where, text):
    assert judged(pillar) == [(f"cluster:{where}", text)]


def test_an_address_twice_in_one_node_and_a_port_twice_are_named():
    pair = nodes(**{f"hv{n}": {"addresses": [f"192.0.2.{n}", f"198.51.100.{n}"]} for n in (1, 2, 3)})
    twice = {**pair, "hv2": {"id": 2, "addresses": ["192.0.2.2", "192.0.2.2"]}}
    assert ("cluster:nodes:hv2:addresses", "one address is there twice; each link needs another") in judged(
        cluster(nodes=twice)
    )
    links = {"0": {"port": 5405}, "1": {"port": 5405}}
    assert judged(cluster(nodes=pair, links=links)) == [
        ("cluster:links:1:port", "5405 is the port of link 0 already")
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("fix-me-please", "is not base64"),
        (base64.b64encode(b"short and sweet").decode(), "has 15 bytes; must be 128 to 3072"),
        (base64.b64encode(b"changeme" * 32).decode(), "is a placeholder, not random"),
        (base64.b64encode(bytes(range(256)) * 13).decode(), "has 3328 bytes"),
    ],
)
def test_a_key_that_is_none_is_refused_without_showing_it(text, wrong):
    (found,) = key_errors(text)
    assert found.startswith(wrong)
    assert text not in found
    assert judged(cluster(keys={"corosync": text}))[0][0] == "cluster:keys:corosync"


def test_a_key_may_be_broken_into_lines():
    key = bytes(range(256))
    text = base64.encodebytes(key).decode()
    assert "\n" in text.strip()
    assert key_errors(text) == []
    assert key_bytes(text) == key


@pytest.mark.parametrize(("number", "refused"), [(0, True), (1, False), (65535, False), (65536, True)])
def test_an_id_is_one_that_knet_has(number, refused):
    pillar = formula_config.merge(DEFAULTS, cluster(nodes=nodes(hv3={"id": number})))
    found = formula_schema.errors(SCHEMA, pillar, "cluster", formula_vocabulary.load(SCHEMA))
    assert [path for path, _ in found] == ["cluster:nodes:hv3:id"] * refused

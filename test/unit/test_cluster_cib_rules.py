"""Fencing first: resources that could run twice are refused, and so is what leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from _utils import formula_config
from _utils.cluster_cib_rules import errors

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2)}
DEVICE = {"agent": "fence_x", "targets": ["hv1", "hv2"]}
IP = {"agent": "ocf:heartbeat:IPaddr2"}
FREE = {**IP, "requires": "quorum"}
WAY_OUT = "or set requires: quorum for a resource that may run twice without harm"


def judged(**pillar):
    return errors(formula_config.merge(DEFAULTS, {"name": "c", "nodes": NODES, "bootstrap_node": "hv1", **pillar}))


@pytest.mark.parametrize(
    "pillar",
    [
        {},
        {"stonith": {"a": DEVICE}},
        {"stonith": {"a": DEVICE}, "resources": {"ip": IP}},
        {
            "stonith": {
                "a": {**DEVICE, "targets": ["hv1"], "runs_on": ["hv2"]},
                "b": {**DEVICE, "targets": ["hv2"], "runs_on": ["hv1", "hv2"]},
            },
            "resources": {"ip": IP},
        },
        {"resources": {"ip": FREE}, "properties": {"stonith-enabled": False}},
        {"resources": {"ip": FREE, "web": FREE}, "groups": {"g": {"resources": ["ip", "web"]}}},
        {"resources": {"ip": {"ensure": "absent"}}},
        {"resources": {"p": {**FREE, "clone": {}}, "ip": FREE},
         "constraints": {"orders": {"o": {"first": "p-clone", "then": "ip"}}}},
    ],
)  # fmt: skip
def test_what_fits_is_accepted(pillar):
    assert judged(**pillar) == []


@pytest.mark.parametrize(
    ("pillar", "where", "text"),
    [
        ({"resources": {"ip": IP}}, "resources:ip",
         f"needs fencing, but no device below cluster:stonith has as target: hv1, hv2; {WAY_OUT}"),
        ({"stonith": {"a": {**DEVICE, "targets": ["hv1"]}}, "resources": {"ip": IP}}, "resources:ip",
         f"needs fencing, but no device below cluster:stonith has as target: hv2; {WAY_OUT}"),
        ({"stonith": {"a": {"ensure": "absent"}}, "resources": {"ip": IP}}, "resources:ip",
         f"needs fencing, but no device below cluster:stonith has as target: hv1, hv2; {WAY_OUT}"),
        ({"stonith": {"a": DEVICE}, "resources": {"ip": IP}, "properties": {"stonith-enabled": False}},
         "properties:stonith-enabled", f"False is not allowed with resources that need fencing: ip; {WAY_OUT}"),
        ({"stonith": {"a": {**DEVICE, "targets": ["hv1"], "runs_on": ["hv1"]}}}, "stonith:a:runs_on",
         "a would run on hv1 alone, and a host that hangs cannot switch itself off"),
        ({"stonith": {"a": {**DEVICE, "targets": ["hv9"]}}}, "stonith:a:targets",
         "hv9 is not among the nodes; must be some of: hv1, hv2"),
        ({"stonith": {"a": {**DEVICE, "parameters": {"pcmk_host_list": "hv1"}}}}, "stonith:a:parameters:pcmk_host_list",
         "not allowed; targets says it"),
        ({"stonith": {"a": {**DEVICE, "secrets": {"passwd": "ChangeMe!"}}}}, "stonith:a:secrets:passwd",
         "is a placeholder; must be what the device takes"),
        ({"stonith": {"a": {**DEVICE, "parameters": {"p": "x"}, "secrets": {"p": "kq3Vw8"}}}}, "stonith:a:secrets:p",
         "the same parameter stands below parameters, where everybody can read it"),
        ({"stonith": {"a": DEVICE}, "resources": {"a": FREE}}, "resources:a",
         "the same name stands below cluster:stonith"),
        ({"groups": {"g": {"resources": ["ip"]}}}, "groups:g:resources",
         "ip is not among the resources; must be some of: none"),
        ({"resources": {"ip": FREE}, "groups": {"g": {"resources": ["ip"]}, "h": {"resources": ["ip"]}}},
         "groups:h:resources", "ip is in the group g already"),
        ({"resources": {"ip": {**FREE, "clone": {}}}, "groups": {"g": {"resources": ["ip"]}}}, "groups:g:resources",
         "ip is a clone, which cannot be in a group; let the group be a clone"),
        ({"constraints": {"locations": {"l": {"resource": "x", "node": "hv1", "score": 1}}}},
         "constraints:locations:l:resource", "x is not declared; must be one of: none"),
        ({"resources": {"ip": FREE},
          "constraints": {"locations": {"l": {"resource": "ip", "node": "hv9", "score": 1}}}},
         "constraints:locations:l:node", "hv9 is not among the nodes; must be one of: hv1, hv2"),
        ({"resources": {"ip": FREE},
          "constraints": {"colocations": {"l": {"resource": "ip", "with": "ip", "score": 1}}}},
         "constraints:colocations:l:with", "ip is the same resource twice"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(pillar, where, text):
    assert judged(**pillar) == [(f"cluster:{where}", text)]


def test_resources_without_nodes_are_refused():
    assert judged(nodes={}, resources={"ip": FREE}) == [("cluster:resources", "not allowed without nodes")]

"""What the SLS of cluster/ come to: nothing without nodes, no secret in any state, one host that changes the CIB."""

from __future__ import annotations

import base64
import json

import pytest
from render_harness import grains

GRAINS = grains()["debian-12"]
KEY = base64.b64encode(bytes(range(256))).decode()
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3)}
BASE = {"name": "c", "nodes": NODES, "bootstrap_node": "hv1", "keys": {"keeper": "master"}}
FENCE = {"agent": "fence_x", "targets": ["hv1", "hv2", "hv3"], "secrets": {"passwd": "kq3Vw8yR0bN5"}}


@pytest.fixture(name="compiled")
def what_a_pillar_comes_to(make_host):
    """Compiles cluster/ as hv1 with a pillar; returns the states by id."""

    def compiled(**over):
        low, errors = make_host(GRAINS, {"cluster": {**BASE, **over}}).compile("cluster")
        assert errors == []
        return {chunk["__id__"]: chunk for chunk in low}

    return compiled


def test_without_nodes_nothing_is_done(make_host):
    assert make_host(GRAINS, {}).compile("cluster") == ([], [])


def test_the_bootstrap_node_hands_out_the_key_and_others_do_not(compiled):
    states = compiled()
    assert states["cluster_key_handed_out"]["nodes"] == ["hv2", "hv3"]
    assert "cluster_key_handed_out" not in compiled(bootstrap_node="hv2")


def test_a_key_of_the_site_is_in_no_state_and_needs_no_other_host(compiled):
    states = compiled(keys={"corosync": KEY})
    assert KEY[:24] not in json.dumps(states, default=str)
    assert states["cluster_key"]["pillar_key"] == "cluster:keys:corosync"
    assert not {"cluster_key_pair", "cluster_key_handed_out"} & set(states)


def test_one_node_alone_asks_nobody(compiled):
    states = compiled(nodes={"hv1": NODES["hv1"]}, keys={})
    assert not {"cluster_key_pair", "cluster_key_handed_out"} & set(states)


def test_a_node_that_leaves_does_nothing_else(compiled):
    states = compiled(nodes={**NODES, "hv1": {**NODES["hv1"], "ensure": "absent"}}, bootstrap_node="hv2")
    assert set(states) == {"cluster_left", "cluster_durable"}


def test_the_others_are_told_who_leaves(compiled):
    states = compiled(nodes={**NODES, "hv3": {**NODES["hv3"], "ensure": "absent"}})
    assert set(states["cluster_corosync_conf"]["nodes"]) == {"hv1", "hv2"}
    assert set(states["cluster_corosync_conf"]["leaving"]) == {"hv3"}
    assert states["cluster_key_handed_out"]["nodes"] == ["hv2"]
    assert set(states["cluster_members_forgotten"]["nodes"]) == {"hv3"}


def test_secrets_are_in_no_state_and_the_bootstrap_node_alone_changes_the_cib(compiled):
    states = compiled(stonith={"fence": FENCE})
    assert "kq3Vw8yR0bN5" not in json.dumps(states, default=str)
    assert states["cluster_cib"]["declared"]["stonith"]["fence"]["secrets"] == ["passwd"]
    secret = states["cluster_secrets_fence"]
    assert (secret["pillar_key"], secret["parameters"]) == ("cluster:stonith:fence:secrets", ["passwd"])
    others = compiled(stonith={"fence": FENCE}, bootstrap_node="hv2")
    assert "cluster_secrets_fence" in others
    assert "cluster_cib" not in others


def test_secrets_of_what_is_absent_go(compiled):
    states = compiled(stonith={"fence": {"ensure": "absent"}})
    assert states["cluster_secrets_fence"]["parameters"] == []
    assert states["cluster_cib"]["declared"]["stonith"] == {"fence": {"ensure": "absent"}}


def test_without_resources_the_cib_is_left_alone(compiled):
    assert "cluster_cib" not in compiled()


@pytest.mark.parametrize(("tooling", "held"), [("pcs", True), ("crmsh", False)])
def test_the_tooling_is_installed_and_its_daemon_is_held_back(compiled, tooling, held):
    states = compiled(tooling=tooling)
    assert tooling in states["cluster_packages"]["pkgs"]
    assert ("cluster_unit_pcsd" in states) is held


def test_of_a_cluster_of_the_old_kind_the_files_alone_are_written(compiled):
    states = compiled(stack="cman", cman={"config_version": 1})
    assert {chunk["state"] for chunk in states.values()} == {"cluster_node", "cman", "durable"}
    paths = {chunk["name"] for chunk in states.values() if chunk["state"] == "cman"}
    assert paths == {"/etc/cluster/cluster.conf", "/etc/corosync/corosync.conf", "/etc/lvm/lvm.conf"}
    assert "cluster_cman_lvm_conf" not in compiled(stack="cman", cman={"config_version": 1, "clvm": False})

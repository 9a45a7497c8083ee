"""Files of a cluster of the old kind: what stands in them, what is refused, and that only what differs is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from _states import cman
from _utils import cman_conf, formula_config, own_files
from _utils.cluster_cman_rules import errors

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
NODES: dict[str, Any] = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}", f"198.51.100.{n}"]} for n in (2, 1)}
BASE = {"stack": "cman", "name": "c", "nodes": NODES, "bootstrap_node": "hv1", "cman": {"config_version": 7}}
LVM = "devices {\n}\nglobal {\n    umask = 077\n    # locking_type = 1\n}\n"


def configuration(**pillar):
    return formula_config.merge(DEFAULTS, {**BASE, **pillar})


def read(**pillar):
    found = configuration(**pillar)
    return ElementTree.fromstring(cman_conf.cluster_conf(found, found["nodes"]))  # noqa: S314 - written here


def test_two_nodes_need_one_vote_and_hand_fencing_on():
    top = read()
    assert (top.get("name"), top.get("config_version")) == ("c", "7")
    assert top.find("cman").attrib == {"two_node": "1", "expected_votes": "1", "keyfile": "/etc/corosync/authkey"}
    assert [(node.get("name"), node.get("nodeid")) for node in top.iter("clusternode")] == [("hv1", "1"), ("hv2", "2")]
    for node in top.iter("clusternode"):
        assert node.find("altname").get("name") == NODES[node.get("name")]["addresses"][1]
        assert node.find("fence/method/device").attrib == {"name": "pcmk", "port": node.get("name")}
    assert top.find("fencedevices/fencedevice").attrib == {"name": "pcmk", "agent": "fence_pcmk"}


def test_three_nodes_count_votes_and_one_that_leaves_is_not_there():
    nodes = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"], "name": f"node{n}"} for n in (1, 2, 3)}
    top = read(nodes=nodes, crypto={"cipher": "none", "hash": "none"}, cman={"config_version": 1, "transport": "udpu"})
    assert top.find("cman").attrib == {"transport": "udpu"}
    nodes["hv3"]["ensure"] = "absent"
    assert [node.get("name") for node in read(nodes=nodes).iter("clusternode")] == ["node1", "node2"]


def test_a_hostile_name_is_text():
    nodes = {"hv1": {"id": 1, "addresses": ["192.0.2.1"], "name": 'a"/><cman two_node="1'}}
    assert len(list(read(nodes=nodes).iter("cman"))) == 1


def test_corosync_of_version_1_has_a_ring_for_each_address():
    found = configuration()
    text = cman_conf.corosync_conf(found, found["nodes"], "hv2")
    assert text.count("interface {") == 2
    for line in ("ringnumber: 1", "bindnetaddr: 198.51.100.2", "mcastport: 5407", "secauth: on", "rrp_mode: passive"):
        assert f"{line}\n" in text
    assert text.count("{") == text.count("}")
    found = configuration(cman={"config_version": 7, "transport": "udpu"})
    text = cman_conf.corosync_conf(found, found["nodes"], "hv2")
    assert "mcastaddr" not in text
    assert [line.strip() for line in text.splitlines() if "memberaddr: 192" in line] == [
        "memberaddr: 192.0.2.1", "memberaddr: 192.0.2.2",
    ]  # fmt: skip
    assert text.count("{") == text.count("}")


def test_lvm_gets_one_line_and_keeps_the_rest():
    wanted = LVM.replace("    # locking_type = 1", "    locking_type = 3")
    assert cman_conf.lvm_conf(LVM) == wanted
    assert cman_conf.lvm_conf(wanted) == wanted
    assert cman_conf.lvm_conf("global {\n}\n") == "global {\n    locking_type = 3\n}\n"
    with pytest.raises(ValueError, match=r"not lvm\.conf"):
        cman_conf.lvm_conf("[lvm]\n")


@pytest.mark.parametrize(
    ("pillar", "where", "text"),
    [
        ({"cman": {"config_version": 0}}, "cluster:cman:config_version", "missing"),
        ({"nodes": {"hv1": {"id": 1, "addresses": ["192.0.2.1"] * 3}}}, "cluster:nodes", "two links at most"),
        ({"quorum": {"last_man_standing": True}}, "cluster:quorum:last_man_standing", "does not know it"),
        ({"stonith": {"a": {"agent": "fence_x", "targets": ["hv1"]}}}, "cluster:stonith", "Pacemaker's of that time"),
        ({"sbd": {"enabled": True}}, "cluster:sbd:enabled", "which has clvmd"),
        ({"storage": {"lock_manager": "dlm"}}, "cluster:storage:lock_manager", "which has clvmd"),
    ],
)
def test_what_it_cannot_have_is_refused(pillar, where, text):
    ((path, why),) = errors(configuration(**pillar))
    assert (path, text in why) == (where, True)
    assert errors(configuration(**{**pillar, "stack": "corosync"})) == []


def test_what_is_right_is_accepted():
    assert errors(configuration()) == []


@pytest.fixture(name="state")
def a_host(monkeypatch):
    options = {"test": False, "id": "hv1"}
    utils = {f"{module.__name__.rpartition('.')[2]}.{name}": value
             for module in (cman_conf, own_files) for name, value in vars(module).items()}  # fmt: skip
    monkeypatch.setattr(cman, "__opts__", options, raising=False)
    monkeypatch.setattr(cman, "__utils__", utils, raising=False)
    return options


@pytest.mark.parametrize("kind", ["cluster_conf", "corosync_conf", "lvm_conf"])
def test_a_file_is_predicted_written_once_and_repaired(state, tmp_path, kind):
    path, found = tmp_path / "etc" / "file.conf", configuration()
    words = (str(path), kind, found, found["nodes"])
    if kind == "lvm_conf":
        assert cman.configured(*words)["result"] is False
        path.parent.mkdir()
        path.write_text(LVM)
        path.chmod(0o644)
    state["test"] = True
    predicted = cman.configured(*words)
    assert predicted["result"] is None
    assert path.exists() is (kind == "lvm_conf")
    state["test"] = False
    done = cman.configured(*words)
    assert (done["result"], done["changes"]) == (True, predicted["changes"])
    assert cman.configured(*words)["changes"] == {}
    path.chmod(0o666)
    assert set(cman.configured(*words)["changes"]) == {"access"}
    assert cman.configured(*words)["changes"] == {}


def test_a_file_that_is_no_lvm_conf_is_left_alone(state, tmp_path):
    path = tmp_path / "lvm.conf"
    path.write_text("[lvm]\n")
    result = cman.configured(str(path), "lvm_conf", configuration(), NODES)
    assert (result["result"], result["changes"], path.read_text()) == (False, {}, "[lvm]\n")
    assert "not lvm.conf" in result["comment"]


def test_what_a_site_has_written_in_another_encoding_stays(state, tmp_path):
    path = tmp_path / "lvm.conf"
    comment = b"# von J\xfcrgen: \xe2\x80\x9eso\xe2\x80\x9c\n"
    path.write_bytes(comment + LVM.encode())
    result = cman.configured(str(path), "lvm_conf", configuration(), NODES)
    assert result["result"] is True
    assert path.read_bytes() == comment + cman_conf.lvm_conf(LVM).encode()

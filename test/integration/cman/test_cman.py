"""The files of a cluster of the old kind, on a host: predicted, written, silent, and each repaired alone."""

import xml.etree.ElementTree as ET

import pytest
from declared import HOST, call, predicted_and_done

from lab import salt

FILES = {
    "cluster_cman_cluster_conf": "/etc/cluster/cluster.conf",
    "cluster_cman_corosync_conf": "/etc/corosync/corosync.conf",
    "cluster_cman_lvm_conf": "/etc/lvm/lvm.conf",
}
LVM = "# of the site\nglobal {\n\tlocking_type = 1\n\tuse_lvmetad = 0\n}\n"


def read(lab, path):
    return lab.run(HOST, ["cat", path]).stdout


@pytest.fixture(scope="module", name="old")
def host_with_the_pillar(lab):
    """The host with a cluster of the old kind in its pillar; what is written is taken away in the end."""
    addresses = lab.hosts.addresses
    pillar = {
        "cluster": {
            "stack": "cman",
            "cman": {"config_version": 3},
            "name": "vmcluster",
            "bootstrap_node": "hv1",
            "keys": {"keeper": "controller"},
            "nodes": {
                "hv1": {"id": 1, "addresses": [addresses["hv1"]]},
                "hv2": {"id": 2, "addresses": [addresses["hv2"]]},
            },
        }
    }
    folder = lab.run(HOST, ["mktemp", "--directory"]).stdout.strip()
    for path in FILES.values():
        lab.run(HOST, ["sh", "-ec", f"[ ! -e {path} ] || mv {path} {folder}/"])
    lab.hosts.unpack(HOST, {FILES["cluster_cman_lvm_conf"]: (0o644, LVM.encode())})
    text = salt.pillar_files(lab.hosts)["hv1.sls"]
    salt.merge_pillar(lab.hosts, {"hv1.sls": salt.merged_yaml(text, pillar)})
    yield lab
    salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
    for path in FILES.values():
        lab.run(HOST, ["rm", "-f", path])
        lab.run(HOST, ["sh", "-ec", f"saved={folder}/${{1##*/}}; [ ! -e $saved ] || mv $saved $1", "-", path])
    lab.run(HOST, ["rmdir", folder])


def test_the_files_are_predicted_and_written_and_nothing_is_installed(old):
    packages = old.run(HOST, ["dpkg-query", "--show"]).stdout
    changes = predicted_and_done(old, "state.apply", "cluster")
    assert set(changes) == set(FILES)
    assert changes["cluster_cman_lvm_conf"] == {"removed": ["\tlocking_type = 1"], "added": ["    locking_type = 3"]}
    assert old.run(HOST, ["dpkg-query", "--show"]).stdout == packages
    root = ET.fromstring(read(old, FILES["cluster_cman_cluster_conf"]))  # noqa: S314 - the formula's own
    assert (root.tag, root.get("name"), root.get("config_version")) == ("cluster", "vmcluster", "3")
    assert [one.get("name") for one in root.iter("clusternode")] == ["hv1", "hv2"]
    (cman,) = root.iter("cman")
    assert (cman.get("two_node"), cman.get("expected_votes")) == ("1", "1")
    assert old.hosts.addresses["hv1"].rpartition(".")[0] in read(old, FILES["cluster_cman_corosync_conf"])
    assert read(old, FILES["cluster_cman_lvm_conf"]) == LVM.replace("\tlocking_type = 1", "    locking_type = 3")


def test_a_second_run_changes_nothing(old):
    assert predicted_and_done(old, "state.apply", "cluster") == {}


@pytest.mark.parametrize("state", FILES)
def test_each_file_is_repaired_alone(old, state):
    before = read(old, FILES[state])
    old.run(HOST, ["sed", "-i", "s/locking_type = 3/locking_type = 0/; s/totem/tote/", FILES[state]])
    assert read(old, FILES[state]) != before
    assert set(predicted_and_done(old, "state.apply", "cluster")) == {state}
    assert read(old, FILES[state]) == before


def test_what_the_old_kind_cannot_have_is_refused_and_nothing_changes(old):
    resource = '{"cluster": {"resources": {"ip": {"agent": "ocf:heartbeat:IPaddr2"}}}}'
    before = read(old, FILES["cluster_cman_cluster_conf"])
    answer = old.run(
        old.hosts.controller, ["salt", HOST, "--out=json", "--static", "state.apply", "cluster", f"pillar={resource}"],
        check=False, timeout=300,
    ).stdout  # fmt: skip
    assert "cluster:resources: not allowed with stack: cman" in answer, answer
    assert read(old, FILES["cluster_cman_cluster_conf"]) == before
    assert call(old, "state.apply", "cluster", "test=True")

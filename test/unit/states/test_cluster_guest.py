"""Guests of the cluster on one node: the same definition everywhere, refused by name, never started or taken early."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from _states import cluster_guest
from _utils import (
    cluster_guests,
    cluster_pace,
    cluster_status,
    cluster_ties,
    formula_config,
    guest_argv,
    guest_declared,
    guest_domain,
    guest_plan,
    guest_seed,
    guest_storage,
    hypervisor_obstacles,
    libvirt_pool,
    libvirt_tools,
    own_files,
)

ROOT = Path(__file__).resolve().parents[3]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host><guest><os_type>hvm</os_type>
<arch name='x86_64'><machine>q35</machine><domain type='qemu'/></arch></guest></capabilities>"""
XML = "<domain type='qemu'>\n  <name>web</name>\n</domain>\n"
LIVE = """<domain type='qemu'><name>web</name><memory unit='KiB'>131072</memory><vcpu>{cpu}</vcpu><os>
<type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices><disk type='block' device='disk'>
<driver name='qemu' type='raw'/><source dev='/dev/vm/one'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""
CLUSTER = {
    "name": "lab", "bootstrap_node": "hv1",
    "nodes": {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2)},
    "sbd": {"enabled": True, "devices": ["/dev/disk/by-id/a"]},
    "storage": {
        "lock_manager": "dlm", "volume_groups": {"vm": {"devices": ["/dev/x"], "volumes": {"one": {"size_mib": 64}}}}
    },
}  # fmt: skip
GUEST = {"ha": True, "cpu": 1, "mem": 128, "disks": [{"name": "data", "source_file": "/dev/vm/one"}]}


class Node:
    """A node that writes down what is run on it."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.done = folder, []
        self.own: list[str] = []
        self.running: list[str] = []
        self.cpu, self.pacemaker, self.monitor, self.cib = 1, True, "", ""
        self.valid = True
        self.judged: list[str] = []
        self.opts = {"test": False, "id": "hv1", "pki_dir": str(folder / "pki"), "master": "controller"}
        self.cluster = formula_config.merge(DEFAULTS, CLUSTER)
        self.libvirt: dict[str, Any] = {
            "guests": {"web": GUEST}, "pools": {}, "nic_profiles": {}, "tls": {"allowed_hosts": ["hv1", "hv2"]}
        }  # fmt: skip
        modules = (
            cluster_guests, cluster_pace, cluster_status, cluster_ties, guest_argv, guest_declared, guest_domain,
            guest_plan, guest_seed, guest_storage, hypervisor_obstacles, libvirt_pool, libvirt_tools, own_files,
        )  # fmt: skip
        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
            for module in modules
            for name in dir(module)
            if not name.startswith("_")
        }
        utils |= {
            "cluster_guests.definition": lambda name: str(folder / "cluster" / f"{name}.xml"),
            "cluster_tools.active": lambda unit: self.pacemaker,
            "cluster_tools.monitor": lambda: self.monitor,
            "cluster_tools.run": self.asked,
            "libvirt_tools.run": self.run,
            "libvirt_tools.virsh": self.virsh,
        }
        kvm = {"images": {"path": str(folder)}, "mounts": {"/srv/nfs": {"fstype": "nfs4"}, "/srv/x": {"fstype": "xfs"}}}
        salt = {
            "formula.config": lambda name: {"cluster": self.cluster, "libvirt": self.libvirt, "kvm": kvm}[name],
            "formula.judge": lambda *arguments: self.judged,
        }
        for name, value in (("__opts__", self.opts), ("__salt__", salt), ("__utils__", utils)):
            monkeypatch.setattr(cluster_guest, name, value, raising=False)
        monkeypatch.setattr(cluster_pace, "LOCK", folder / "lock")
        monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    @property
    def path(self):
        return self.folder / "cluster" / "web.xml"

    def asked(self, argv, **options):
        self.done.append(argv[:2])
        return " vda /dev/vm/one\n" if argv[0] == "virsh" else self.cib

    def run(self, argv, timeout=0, stdin=None, label=""):
        self.argv = argv
        return XML

    def virsh(self, *argv, **options):
        if argv[0] == "domxml-to-native" and not self.valid:
            raise CommandExecutionError("virsh domxml-to-native: unsupported")
        if argv[0] == "list":
            return "\n".join(self.own if "--persistent" in argv else self.running)
        return {"capabilities": CAPABILITIES, "dumpxml": LIVE.format(cpu=self.cpu)}.get(argv[0], "")


@pytest.fixture(name="node")
def one_node(monkeypatch, tmp_path):
    return Node(monkeypatch, tmp_path)


def predicted(node, function=cluster_guest.defined, **declaration):
    node.opts["test"] = True
    there = sorted(node.folder.rglob("*"))
    ret = function("web", **declaration)
    assert sorted(node.folder.rglob("*")) == there
    node.opts["test"] = False
    return ret


def test_a_definition_is_written_as_predicted_and_then_left_alone(node):
    expected = predicted(node, **GUEST)
    assert expected["result"] is None
    ret = cluster_guest.defined("web", **GUEST)
    assert (ret["result"], ret["changes"]) == (True, {"definition": {"old": None, "new": "written"}})
    assert ret["changes"] == expected["changes"]
    assert node.path.stat().st_mode & 0o777 == 0o600
    assert node.path.parent.stat().st_mode & 0o777 == 0o700
    assert node.path.read_text().endswith(XML)
    assert 'xpath.set=./devices/disk[1]/driver/@type,xpath.value="raw"' in node.argv
    assert node.argv[-2:] == ["--uuid", cluster_guests.identity("lab", "web")]
    for ret in (predicted(node, **GUEST), cluster_guest.defined("web", **GUEST)):
        assert (ret["result"], ret["changes"]) == (True, {})


def test_two_nodes_write_the_same(node):
    cluster_guest.defined("web", **GUEST)
    first = node.path.read_text()
    node.path.unlink()
    node.opts["id"] = "hv2"
    cluster_guest.defined("web", **GUEST)
    assert node.path.read_text() == first


def test_what_somebody_changed_and_what_others_could_read_is_put_right(node):
    cluster_guest.defined("web", **GUEST)
    node.path.write_text(node.path.read_text().replace("qemu", "kvm"))
    assert cluster_guest.defined("web", **GUEST)["changes"] == {"definition": {"old": "other", "new": "written"}}
    node.path.chmod(0o644)
    assert predicted(node, **GUEST)["changes"] == {"access": "mode 0644 instead of 0600"}
    cluster_guest.defined("web", **GUEST)
    assert node.path.stat().st_mode & 0o777 == 0o600


def test_what_libvirt_does_not_take_is_not_written(node):
    node.valid = False
    ret = cluster_guest.defined("web", **GUEST)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert not node.path.exists()


def test_a_running_guest_is_left_alone_and_what_waits_is_said(node):
    node.running, node.cpu = ["web"], 2
    ret = cluster_guest.defined("web", **GUEST)
    assert ret["result"] is True
    assert "until its next start this waits: cpu" in ret["comment"]
    node.cpu = 1
    assert "waits" not in cluster_guest.defined("web", **GUEST)["comment"]


def test_pacemaker_looks_again_where_it_had_missed_the_definition(node):
    node.monitor = '<failure op_key="web_start_0"/>'
    cluster_guest.defined("web", **GUEST)
    cleaned = ["crm_resource", "--cleanup"]
    assert node.done.count(cleaned) == 1
    node.path.unlink()
    node.done.clear()
    node.monitor = '<failure op_key="webmail_start_0"/>'
    cluster_guest.defined("web", **GUEST)
    assert cleaned not in node.done


def test_what_another_guest_has_open_is_not_in_its_definition(node):
    rule = '<rsc_colocation id="db-with-vm-one" rsc="db" with-rsc="vm-one"/>'
    node.cib = f"<cib><configuration><constraints>{rule}</constraints></configuration></cib>"
    row = '<resource id="db" resource_agent="ocf:heartbeat:VirtualDomain" role="{}"><node name="hv2"/></resource>'
    document = '<r><nodes><node name="hv1"/></nodes><resources>{}</resources></r>'
    node.monitor = document.format(row.format("Started"))
    for test in (True, False):
        node.opts["test"] = test
        ret = cluster_guest.defined("web", **GUEST)
        assert (ret["result"], ret["changes"]) == (False, {})
        assert "libvirt:guests:web:disks: /dev/vm/one is still open in the guest db" in ret["comment"]
    assert not node.path.exists()
    # It has stopped; or nobody answers yet.
    for monitor, cib in ((document.format(""), node.cib), (node.monitor, "")):
        node.monitor, node.cib = monitor, cib
        node.opts["test"] = True
        assert cluster_guest.defined("web", **GUEST)["result"] is None


def refused(node, **declaration):
    before = sorted(node.folder.rglob("*"))
    rets = [predicted(node, **declaration), cluster_guest.defined("web", **declaration)]
    assert sorted(node.folder.rglob("*")) == before
    assert {(ret["result"], str(ret["changes"])) for ret in rets} == {(False, "{}")}
    return rets[1]["comment"]


def test_a_disk_of_one_node_is_refused_by_name(node):
    text = refused(node, **{**GUEST, "disks": [{"name": "data", "source_file": "/dev/sdb"}]})
    assert "libvirt:guests:web:disks:data: /dev/sdb is not on shared storage" in text
    text = refused(node, **{**GUEST, "disks": [{"name": "data", "path": "/srv/x/a.raw", "size": 8}]})
    assert "/srv/x/a.raw is on one node alone" in text


def test_a_cluster_without_fencing_is_refused_by_name(node):
    node.cluster["sbd"]["enabled"] = False
    text = refused(node, **GUEST)
    assert "libvirt:guests:web:ha: a guest of the cluster needs fencing" in text
    assert "cluster:sbd:enabled: true" in text


def test_hosts_that_may_not_come_in_are_refused_by_name(node):
    node.libvirt["tls"]["allowed_hosts"] = ["hv1"]
    assert "libvirt:tls:allowed_hosts: missing: hv2;" in refused(node, **GUEST)


def test_a_guest_of_its_own_is_in_the_way(node):
    node.own = ["web"]
    assert "virsh undefine --keep-nvram web" in refused(node, **GUEST)


def test_what_another_guest_has_wrong_is_not_this_ones(node):
    node.libvirt["guests"]["db"] = {"ha": True, "disks": [{"name": "a", "source_file": "/dev/sdb"}]}
    assert cluster_guest.defined("web", **GUEST)["result"] is True


def test_the_bootstrap_node_alone_makes_files_that_all_mount(node, monkeypatch):
    made = []
    utils = cluster_guest.__utils__
    survey = {"do": "create", "old": None, "new": "/srv/nfs/a.raw, empty", "note": ""}
    monkeypatch.setitem(utils, "guest_storage.survey", lambda run, disk: survey)
    monkeypatch.setitem(utils, "guest_storage.create", lambda run, virsh, disk, base: made.append(disk["path"]))
    declaration = {**GUEST, "disks": [{"name": "data", "path": "/srv/nfs/a.raw", "format": "raw", "size": 8}]}
    node.opts["id"] = "hv2"
    for node.running in ([], ["web"]):
        assert "disk data" not in cluster_guest.defined("web", **declaration)["changes"]
    node.opts["id"], node.running = "hv1", []
    assert predicted(node, **declaration)["changes"]["disk data"] == {"old": None, "new": "/srv/nfs/a.raw, empty"}
    cluster_guest.defined("web", **declaration)
    assert made == ["/srv/nfs/a.raw"]


def test_a_disk_of_a_running_guest_grows_on_the_node_that_has_it_open(node, monkeypatch):
    grown = []
    utils = cluster_guest.__utils__
    survey = {"do": "grow", "old": "8 MiB", "new": "16 MiB", "note": ""}
    monkeypatch.setitem(utils, "guest_storage.survey", lambda run, disk: survey)
    monkeypatch.setitem(utils, "guest_storage.grow", lambda run, virsh, disk, guest: grown.append(guest))
    declaration = {**GUEST, "disks": [{"name": "data", "path": "/srv/nfs/a.raw", "format": "raw", "size": 16}]}
    larger = {"old": "8 MiB", "new": "16 MiB"}
    # By Pacemaker's word it runs on another node.
    agent = "resource_agent='ocf:heartbeat:VirtualDomain' role='Started' managed='true'"
    node.monitor = f"<x><resources><resource id='web' {agent}><node name='hv2'/></resource></resources></x>"
    ret = cluster_guest.defined("web", **declaration)
    assert "disk data" not in ret["changes"]
    assert "becomes larger by the highstate of hv2" in ret["comment"]
    node.opts["id"], node.running = "hv2", ["web"]
    assert predicted(node, **declaration)["changes"]["disk data"] == larger
    assert cluster_guest.defined("web", **declaration)["changes"]["disk data"] == larger
    assert grown == ["web"]
    # It runs nowhere: the bootstrap node alone may write the file.
    node.running, node.monitor = [], "<x/>"
    assert "disk data" not in cluster_guest.defined("web", **declaration)["changes"]
    node.opts["id"] = "hv1"
    assert cluster_guest.defined("web", **declaration)["changes"]["disk data"] == larger
    assert grown == ["web", None]


# ---- no guest ----


def test_a_definition_goes_once_the_cluster_has_let_go(node):
    cluster_guest.defined("web", **GUEST)
    node.cib = '<primitive id="web"/>'
    ret = cluster_guest.absent("web", wait_seconds=0)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "web is still a resource of the cluster, which hv1 changes" in ret["comment"]
    node.cib, node.running = "", ["web"]
    assert "web still runs here" in cluster_guest.absent("web", wait_seconds=0)["comment"]
    assert node.path.exists()
    node.running = []
    expected = predicted(node, cluster_guest.absent)
    ret = cluster_guest.absent("web", wait_seconds=0)
    assert ret["changes"] == expected["changes"] == {"definition": {"old": "written", "new": None}}
    assert not node.path.exists()
    assert cluster_guest.absent("web") == {
        "name": "web", "result": True, "changes": {}, "comment": "There is no guest web."
    }  # fmt: skip


def test_a_host_without_libvirt(node, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert predicted(node, **GUEST)["changes"] == {"definition": {"old": None, "new": "written"}}
    assert "kvm.packages brings them" in cluster_guest.defined("web", **GUEST)["comment"]

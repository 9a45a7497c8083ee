"""Acts on a guest of the cluster: told to Pacemaker, reported as it says, refused where they would work against it."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from hypervisor_harness import Libvirt, utilities
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import hypervisor
from _utils import cluster_pace, cluster_tools, hypervisor_cluster

UUID = "0f4b9a57-0000-5000-8000-000000000001"
NODES = {"hv1": "hv1", "hv2": "node2"}


class Pacemaker:
    """A cluster of two with one guest, which does what crm_resource says unless it fails."""

    def __init__(self, folder):
        self.node, self.role, self.failures, self.calls = "hv1", "Started", [], []
        self.managed, self.quorate, self.answers, self.standby = True, True, True, ""
        self.obeys, self.pending = True, ""
        self.libvirt = Libvirt()
        (folder / "web.xml").write_text(f"<!-- x -->\n<domain><name>web</name><uuid>{UUID}</uuid></domain>")
        self.utils = utilities() | {
            "cluster_guests.is_defined": lambda name: (folder / f"{name}.xml").exists(),
            "cluster_guests.definition": lambda name: str(folder / f"{name}.xml"),
            "cluster_tools.active": lambda unit: self.answers,
            "cluster_tools.monitor": self.monitor,
            "cluster_tools.quorum": lambda: cluster_tools.Quorum(self.quorate, 2, 1, ()),
            "cluster_tools.run": self.run,
            "hypervisor_virsh.session": self.session,
        }

    @contextmanager
    def session(self, *uri):
        yield self.libvirt

    def monitor(self):
        nodes = "".join(
            f'<node name="{name}" online="true" standby="{"true" if self.standby == name else "false"}"/>'
            for name in ("hv1", "node2")
        )
        place = f'<node name="{self.node}"/>' if self.node else ""
        failed = "".join(
            f'<failure op_key="web_{task}_0" task="{task}" node="{node}" exitreason="{why}" last-rc-change="{at}"/>'
            for task, node, why, at in self.failures
        )
        return (
            f'<pacemaker-result><summary><cluster_options stonith-enabled="true"/></summary><nodes>{nodes}</nodes>'
            f'<resources><resource id="web" resource_agent="ocf::heartbeat:VirtualDomain" role="{self.role}" '
            f'{self.pending} managed="{"true" if self.managed else "false"}" failed="false" blocked="false">{place}'
            f"</resource></resources><failures>{failed}</failures></pacemaker-result>"
        )

    def run(self, argv, ok=(0,), **options):
        self.calls.append(argv[1:])
        if not self.obeys:
            return ""
        if "target-role" in argv:
            self.role = argv[-1]
            self.node = "hv1" if self.role == "Started" else ""
        if "--move" in argv:
            self.node = argv[argv.index("--node") + 1]
        return ""


@pytest.fixture(name="pacemaker")
def one_cluster(tmp_path, monkeypatch):
    for name, value in (("_BEGINS", 0.01), ("_GOES", 0.01), ("_PAUSE", 0.001)):
        monkeypatch.setattr(hypervisor_cluster, name, value)
    monkeypatch.setattr(cluster_pace, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(cluster_pace, "_PAUSE", 0.001)
    return Pacemaker(tmp_path)


def act(pacemaker, verb, timeout=0.01, here="hv1"):
    return hypervisor_cluster.act(pacemaker.utils, "web", verb, timeout, here)


ROLE = ["--resource", "web", "--meta", "--set-parameter", "target-role", "--parameter-value"]


def test_a_shutdown_is_the_clusters_and_lasts(pacemaker):
    found = act(pacemaker, "shutdown", here="node2")
    assert found == {
        "name": "web", "uuid": UUID, "changed": True, "state_before": "running", "state": "shut_off", "node": None
    }  # fmt: skip
    assert pacemaker.calls == [[*ROLE, "Stopped"]]


def test_a_guest_that_takes_longer_is_reported_as_it_is(pacemaker):
    pacemaker.obeys = False
    assert act(pacemaker, "shutdown")["state"] == "running"


def test_a_start_says_where_and_of_one_that_runs_nothing_is_asked(pacemaker):
    assert act(pacemaker, "start")["changed"] is False
    assert pacemaker.calls == []
    pacemaker.role, pacemaker.node = "Stopped", ""
    found = act(pacemaker, "start", here="node2")
    assert (found["changed"], found["state"], found["node"]) == (True, "running", "hv1")
    assert pacemaker.calls == [[*ROLE, "Started"]]


def test_a_start_that_fails_says_what_pacemaker_says(pacemaker):
    pacemaker.role, pacemaker.node, pacemaker.obeys = "Stopped", "", False
    pacemaker.failures = [("start", "hv1", "no such kernel", "now")]
    with pytest.raises(CommandExecutionError, match=r"has not started web .*start on hv1: no such kernel; repair"):
        act(pacemaker, "start")


def test_power_is_cut_after_the_cluster_knows(pacemaker):
    order = []

    def attempt(*words):
        order.append(words)
        return "", ""

    def run(argv, **_):
        order.append(tuple(argv[-2:]))
        return ""

    pacemaker.libvirt.attempt = attempt
    pacemaker.utils["cluster_tools.run"] = run
    act(pacemaker, "power_off")
    assert order == [("--parameter-value", "Stopped"), ("destroy", "web")]


@pytest.mark.parametrize("verb", ["power_off", "suspend", "resume", "reboot"])
def test_what_libvirt_does_is_asked_of_the_host_that_runs_it(pacemaker, verb):
    with pytest.raises(CommandExecutionError, match=f"the cluster runs it on hv1; ask that host for a {verb}"):
        act(pacemaker, verb, here="node2")
    assert pacemaker.calls == []


@pytest.mark.parametrize("verb", ["suspend", "resume", "reboot"])
def test_what_does_the_cluster_no_harm_is_libvirts(pacemaker, verb):
    assert act(pacemaker, verb) is None


def test_without_pacemaker_nothing_is_done(pacemaker):
    pacemaker.answers = False
    for verb in ("start", "shutdown", "power_off", "suspend"):
        with pytest.raises(CommandExecutionError, match="Pacemaker does not answer on this host; nothing was done"):
            act(pacemaker, verb)
    assert pacemaker.calls == []


def test_a_guest_that_the_cluster_does_not_have_yet(pacemaker):
    pacemaker.utils["cluster_tools.monitor"] = lambda: "<r><nodes><node name='hv1' online='true'/></nodes></r>"
    with pytest.raises(CommandExecutionError, match="run the highstate of cluster:bootstrap_node"):
        act(pacemaker, "start")


@pytest.mark.parametrize("verb", ["delete", "resize", "cancel", "create"])
def test_what_works_against_the_cluster_is_refused_with_what_to_do(pacemaker, verb):
    with pytest.raises(CommandExecutionError, match="web is a guest of the cluster, so nothing was done: "):
        hypervisor_cluster.refuse(pacemaker.utils, "web", verb)
    hypervisor_cluster.refuse(pacemaker.utils, "other", verb)


def test_where_a_guest_is(pacemaker):
    assert hypervisor_cluster.whereabouts(pacemaker.utils, "web").endswith("the cluster runs it on hv1")
    pacemaker.role, pacemaker.node = "Stopped", ""
    assert "the cluster has it stopped; hypervisor.start" in hypervisor_cluster.whereabouts(pacemaker.utils, "web")


# ---- moves ----


def move(pacemaker):
    return hypervisor_cluster.move(pacemaker.utils, "web", "node2", 0.01)


def test_a_move_leaves_no_constraint_and_takes_back_no_other(pacemaker):
    move(pacemaker)
    moved, cleared = pacemaker.calls
    assert moved[:5] == ["--move", "--resource", "web", "--node", "node2"]
    assert moved[5] == "--lifetime"
    assert cleared == ["--clear", "--resource", "web", "--node", "node2"]


def test_a_move_that_does_not_end_says_where_it_is_and_leaves_no_constraint(pacemaker):
    pacemaker.obeys = False
    with pytest.raises(CommandExecutionError, match="did not move to node2: it is running on hv1; it had not ended"):
        move(pacemaker)
    assert pacemaker.calls[-1] == ["--clear", "--resource", "web", "--node", "node2"]


def test_a_move_that_is_not_over_keeps_its_constraint_which_outlives_it(pacemaker):
    pacemaker.obeys, pacemaker.pending = False, 'pending="Migrating"'
    with pytest.raises(CommandExecutionError, match="it had not ended after 0 s, and goes on: salt-run"):
        move(pacemaker)
    assert [call[0] for call in pacemaker.calls] == ["--move"]
    assert int(pacemaker.calls[0][-1].removeprefix("PT").removesuffix("S")) >= 3600


def test_one_whose_move_ends_late_loses_its_constraint_after_that(pacemaker, monkeypatch):
    pacemaker.obeys, pacemaker.pending = False, 'pending="Migrating"'
    taken = hypervisor_cluster._taken_back

    def late(*words):
        gone = taken(*words)
        pacemaker.pending = ""
        return gone

    monkeypatch.setattr(hypervisor_cluster, "_taken_back", late)
    with pytest.raises(CommandExecutionError, match=r"it had not ended after 0 s$"):
        move(pacemaker)
    assert [call[0] for call in pacemaker.calls] == ["--move", "--clear"]


def test_a_move_of_which_pacemaker_says_nothing_any_more_keeps_its_constraint(pacemaker):
    def run(argv, **_):
        pacemaker.calls.append(argv[1:])
        pacemaker.answers = False
        return ""

    pacemaker.utils["cluster_tools.run"] = run
    with pytest.raises(CommandExecutionError, match="Pacemaker does not answer"):
        move(pacemaker)
    assert [call[0] for call in pacemaker.calls] == ["--move"]


def test_a_move_that_fails_says_why_and_an_old_failure_does_not_count(pacemaker):
    pacemaker.failures = [("migrate_to", "hv1", "old", "before")]
    move(pacemaker)
    pacemaker.node, pacemaker.obeys = "hv1", False

    def run(argv, **_):
        if "--move" in argv:
            pacemaker.failures.append(("migrate_to", "hv1", "no certificate", "now"))
        return ""

    pacemaker.utils["cluster_tools.run"] = run
    with pytest.raises(CommandExecutionError, match=r"starts it anew after that \(migrate_to on hv1: no certificate"):
        move(pacemaker)


def test_a_move_has_its_turn_until_the_guest_itself_is_on_its_way(pacemaker, monkeypatch):
    monkeypatch.setattr(hypervisor_cluster, "_BEGINS", 5)
    states = ["Started", "Started", "Migrating", "Migrating"]
    free = []

    def run(argv, **_):
        pacemaker.calls.append(argv[1:])
        if "--clear" in argv:
            pacemaker.node = "node2"
        return ""

    def monitor():
        if pacemaker.calls and states:
            pacemaker.pending = f'pending="{states.pop(0)}"'
            free.append(can_turn())
            if not states:
                pacemaker.node, pacemaker.pending = "node2", ""
        return pacemaker.monitor()

    def can_turn():
        try:
            with cluster_pace.turn(str, 2):
                return True
        except CommandExecutionError:
            return False

    pacemaker.utils |= {"cluster_tools.run": run, "cluster_tools.monitor": monitor}
    hypervisor_cluster.move(pacemaker.utils, "web", "node2", 5)
    assert free == [False, False, False, True]
    assert [call[0] for call in pacemaker.calls] == ["--move", "--clear"]


def test_a_move_whose_turn_does_not_come_has_done_nothing(pacemaker):
    with (
        cluster_pace.turn(str),
        pytest.raises(CommandExecutionError, match="nothing was changed: another change of the cluster from this node"),
    ):
        move(pacemaker)
    assert pacemaker.calls == []


def against(pacemaker, target="hv2"):
    return [row["text"] for row in hypervisor_cluster.against(pacemaker.utils, "web", target, NODES)]


def test_what_the_cluster_has_against_a_move(pacemaker):
    assert against(pacemaker) == []
    assert against(pacemaker, "hv9") == ["hv9 is no node of the guest's cluster: hv1, hv2"]
    pacemaker.standby, pacemaker.managed, pacemaker.quorate = "node2", False, False
    pacemaker.role, pacemaker.node = "Stopped", ""
    found = against(pacemaker)
    assert len(found) == 4
    for words in ("hv2 is offline", "not managed", "no quorum", "has it stopped"):
        assert any(words in text for text in found)
    pacemaker.answers = False
    assert "Pacemaker does not answer" in against(pacemaker)[0]


def test_a_node_that_pillar_does_not_name_goes_by_its_name(pacemaker):
    assert hypervisor_cluster.nodes(pacemaker.utils, NODES) == NODES
    assert hypervisor_cluster.nodes(pacemaker.utils, {}) == {"hv1": "hv1", "node2": "node2"}


# ---- the module ----


@pytest.fixture(name="module")
def loaded(pacemaker, monkeypatch):
    monkeypatch.setattr(hypervisor, "__utils__", dict(pacemaker.utils), raising=False)
    nodes = {"hv1": {"id": 1}, "hv2": {"id": 2, "name": "node2"}, "hv3": {"id": 3, "ensure": "absent"}}
    config = {"nodes": nodes, "tls": {"allowed_hosts": ["hv2"]}, "qemu_conf": {}, "images": {"path": "/x"}}
    salt = {"formula.config": lambda _: config, "formula.judge": lambda *_: []}
    monkeypatch.setattr(hypervisor, "__salt__", salt, raising=False)
    monkeypatch.setattr(hypervisor, "__opts__", {"id": "hv2"}, raising=False)
    monkeypatch.setattr(os, "uname", type("Names", (), {"nodename": "node2"}))
    return hypervisor


def test_the_module_tells_the_cluster_under_this_nodes_name(module, pacemaker):
    assert module.shutdown("web", timeout=1)["state"] == "shut_off"
    pacemaker.role, pacemaker.node = "Started", "hv1"
    with pytest.raises(CommandExecutionError, match="ask that host"):
        module.power_off("web")


def test_the_module_refuses(module):
    for call in (
        lambda: module.delete("web", disks="keep"),
        lambda: module.resize("web", cpu=2),
        lambda: module.cancel("web"),
        lambda: module.create("web", mem=64),
    ):
        with pytest.raises(CommandExecutionError, match="web is a guest of the cluster"):
            call()
    with pytest.raises(SaltInvocationError, match="declared in pillar"):
        module.create("new", ha=True)


def test_a_migration_is_the_clusters(module):
    told = {}

    def run(*words):
        told.update(words[-1])
        return {}

    module.__utils__["hypervisor_migrate.run"] = run
    module.migrate("web", "hv1")
    assert told["nodes"] == NODES
    module.migrate("other", "hv1")
    assert told["nodes"] is None

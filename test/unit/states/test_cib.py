"""The CIB gets one change that Pacemaker can refuse, and secrets get into files of root alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from salt.exceptions import CommandExecutionError

from _states import cib
from _utils import (
    cluster_cib,
    cluster_derived,
    cluster_guests,
    cluster_pace,
    cluster_status,
    cluster_ties,
    cluster_tools,
    own_files,
)

NODES = {"hv1": {"id": 1, "addresses": ["192.0.2.1"]}, "hv2": {"id": 2, "addresses": ["192.0.2.2"]}}
DECLARED = {
    "properties": {"no-quorum-policy": "freeze"},
    "stonith": {"fence": {"agent": "fence_x", "targets": ["hv1", "hv2"], "secrets": ["passwd"]}},
    "resources": {"ip": {"agent": "ocf:heartbeat:IPaddr2"}},
}


def epoch(text):
    """How often a CIB's configuration has changed."""
    return int(ElementTree.fromstring(text).get("epoch", "0"))  # noqa: S314 - written here


class Pacemaker:
    """A node's Pacemaker: a CIB, a monitor, and what is asked of both."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.opts: dict[str, Any] = {"test": False, "id": "hv1"}
        self.pillar: dict[str, Any] = {}
        self.active, self.cibsecrets, self.installed = True, True, True
        self.cib = cluster_cib.empty()
        self.calls: list[list[str]] = []
        self.patches: list[str] = []
        self.refusals = 0
        self.missing: set[str] = set()
        self.started = {"fence"}
        self.obeys = True
        self.failures = ""
        self.new = ""
        self.said: dict[str, str] = {}
        self.later: list[Any] = []
        self.clock = 0.0
        self.place, self.open = "hv1", list[str]()
        self.folder = folder / "lrm" / "secrets"
        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": function
            for module in (
                cluster_cib, cluster_derived, cluster_guests, cluster_pace, cluster_status, cluster_ties, own_files
            )
            for name, function in vars(module).items()
            if callable(function)
        }
        utils |= {
            "cluster_tools.active": lambda _: self.active,
            "cluster_tools.attributes": cluster_tools.attributes,
            "cluster_tools.online": cluster_tools.online,
            "cluster_tools.installed": lambda _: self.installed,
            "cluster_tools.monitor": self.monitor,
            "cluster_tools.run": self.run,
        }
        self.last = folder / "cib.xml"
        monkeypatch.setattr(cluster_pace, "LOCK", folder / "lock")
        monkeypatch.setattr(cib, "_LAST", self.last)
        monkeypatch.setattr(cib, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(cib, "__pillar__", self.pillar, raising=False)
        monkeypatch.setattr(cib, "__utils__", utils, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.later:
            self.later.pop(0)()

    def monitor(self) -> str:
        nodes = "".join(f'<node name="{name}" online="true"/>' for name in NODES)
        rows = "".join(
            f'<resource id="{name}" resource_agent="ocf:heartbeat:{"VirtualDomain" if name == "web" else "x"}" '
            f'role="Started" failed="false"><node name="{self.place}"/></resource>'
            for name in self.started
        )
        resources = f"<resources>{rows}</resources>"
        return f"<crm_mon><nodes>{nodes}</nodes>{resources}<failures>{self.failures}</failures></crm_mon>"

    def run(self, argv: list[str], ok: Any = (), stdin: str = "", env: Any = None) -> str:
        self.calls.append(argv)
        if env is not None:
            assert (argv, env) == (["cibadmin", "--replace", "--xml-pipe"], {"CIB_file": str(self.last)})
            return self.replaced(stdin)
        if argv == ["cibadmin", "--query"]:
            return self.cib
        if argv[0] in ("attrd_updater", "virsh", "pacemakerd", "crm_node"):
            return self.asked(argv[0])
        if "target-role" in argv:
            assert not self.opts["test"]
            name = argv[argv.index("--resource") + 1]
            mark = f'id="{name}-meta_attributes">'
            assert mark in self.cib
            self.cib = self.cib.replace(mark, f'{mark}<nvpair id="{name}-t" name="target-role" value="Stopped"/>')
            self.later = [lambda: None, lambda: self.started.discard(name)] if self.obeys else []
        if argv[0] == "crm_resource" and argv[-1] in self.missing:
            raise CommandExecutionError("crm_resource: no such agent")
        if argv[0] == "crm_diff":
            for path in (argv[2], argv[4]):
                assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
            assert Path(argv[2]).read_text() == self.cib
            self.new = Path(argv[4]).read_text()
            return "<diff/>"
        if argv[:2] == ["cibadmin", "--patch"]:
            assert stdin == "<diff/>"
            if self.refusals:
                self.refusals -= 1
                raise CommandExecutionError("cibadmin: Update was older than existing configuration")
            self.patches.append(stdin)
            self.cib = self.new
        return ""

    def replaced(self, text: str) -> str:
        if self.refusals:
            raise CommandExecutionError("cibadmin: Call failed: Update was older than existing configuration")
        assert not self.opts["test"]
        # The program counts it up itself.
        number = epoch(text)
        assert number == epoch(self.last.read_text())
        if self.obeys:
            self.last.write_text(text.replace(f' epoch="{number}"', f' epoch="{number + 1}"'))
        return ""

    def asked(self, program: str) -> str:
        if program == "attrd_updater":
            return "".join(f'name="hypervisor-sbd" host="{node}" value="{said}"\n' for node, said in self.said.items())
        if program == "virsh":
            return "".join(f" vd{letter}  {path}\n" for letter, path in zip("abc", self.open, strict=False))
        if program == "crm_node":
            return "hv1\n"
        return "Supporting v3: corosync-ge-2 cibsecrets systemd" if self.cibsecrets else "Supporting v3: systemd"

    def state(self, declared: Any = None, *, test: bool = False) -> dict[str, Any]:
        self.opts["test"] = test
        return cib.configured("x", DECLARED if declared is None else declared, NODES, 10)

    def secret(self, *parameters: str, test: bool = False, fences: bool = True) -> dict[str, Any]:
        self.opts["test"] = test
        key = "cluster:stonith:fence:secrets"
        return cib.secrets("x", key, "fence", list(parameters), fences, str(self.folder))


@pytest.fixture(name="node")
def a_node(monkeypatch, tmp_path) -> Pacemaker:
    found = Pacemaker(monkeypatch, tmp_path)
    found.pillar["cluster"] = {"stonith": {"fence": {"secrets": {"passwd": "hunter2", "token": "tok3n"}}}}
    return found


def test_everything_is_one_change_and_then_silent(node):
    predicted = node.state(test=True)
    assert (predicted["result"], node.patches) == (None, [])
    ret = node.state()
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert len(node.patches) == 1
    assert node.state()["changes"] == {}
    assert len(node.patches) == 1


def test_before_pacemaker_runs_a_prediction_has_it_all(node):
    node.active = False
    assert "resource ip" in node.state(test=True)["changes"]
    ret = node.state()
    assert (ret["result"], ret["comment"], node.calls) == (False, "Pacemaker does not run.", [])


def test_of_a_cluster_that_is_stopped_the_last_cib_counts(node):
    node.state()
    node.active = False
    node.last.write_text(node.cib)
    ret = node.state(test=True)
    assert (ret["result"], ret["changes"]) == (True, {})
    node.last.write_text("<cib/>")
    ret = node.state(test=True)
    assert (ret["result"], ret["comment"]) == (False, "The CIB: the CIB has no configuration.")
    node.last.write_text("")
    assert "The CIB: no element found" in node.state(test=True)["comment"]


def test_a_cib_that_changes_meanwhile_is_read_again(node):
    node.refusals = 2
    assert node.state()["result"] is True
    assert [argv[1] for argv in node.calls if argv[0] == "cibadmin"].count("--patch") == 3


def test_a_change_that_is_refused_for_good_is_a_failure(node):
    node.refusals = 99
    ret = node.state()
    assert ret["result"] is False
    assert "Update was older than existing configuration" in ret["comment"]


def test_a_turn_that_does_not_come_is_waited_for_once(node, monkeypatch):
    monkeypatch.setattr(cluster_pace, "on_the_way", lambda text: ["vm-one"])
    ret = node.state()
    assert (ret["result"], ret["changes"], node.patches) == (False, {}, [])
    assert "nothing was changed: within 330 s these volumes have not come to another node: vm-one" in ret["comment"]
    assert 329 <= node.clock <= 331


def test_what_changed_while_it_waited_for_its_turn_is_what_it_changes(node, monkeypatch):
    looks = [["vm-one"], [], []]

    def on_the_way(_):
        node.cib = node.cib.replace("<cib>", '<cib num_updates="7">')
        return looks.pop(0) if looks else []

    monkeypatch.setattr(cluster_pace, "on_the_way", on_the_way)
    assert (node.state()["result"], len(node.patches)) == (True, 1)


def test_an_agent_that_is_not_here_is_named_before_anything_changes(node):
    node.missing = {"stonith:fence_x"}
    ret = node.state()
    assert ret["result"] is False
    assert "nothing has changed: cluster:stonith:fence:agent: fence_x is not here" in ret["comment"]
    assert node.patches == []


def test_a_fence_device_that_does_not_start_is_a_failure_with_its_reason(node):
    node.started = set()
    node.failures = '<failure op_key="fence_start_0" exitstatus="Error" exitreason="login failed"/>'
    ret = node.state()
    assert ret["result"] is False
    assert ret["comment"] == "Fence devices that are not at work within 10 s: fence (login failed)."
    # The next run says so at once, although nothing changes.
    before = node.clock
    assert node.state()["result"] is False
    assert node.clock == before


WATCHDOG = {"sbd": {"enabled": True, "devices": [], "watchdog_timeout": 5}}


def test_the_cib_counts_on_watchdogs_once_all_nodes_have_said_that_theirs_works(node):
    node.said = {"hv1": "watchdog-5s", "hv2": "watchdog-9s"}
    predicted = node.state(WATCHDOG, test=True)
    ret = node.state(WATCHDOG)
    assert (ret["result"], ret["changes"], node.patches) == (False, {}, [])
    assert "stonith-watchdog-timeout 10s is for nodes whose sbd works" in ret["comment"]
    assert ret["comment"].endswith("theirs does: hv2. Run their highstate; the next one here goes on.")
    assert node.clock <= 10
    node.later = [lambda: node.said.update(hv2="watchdog-5s")]
    ret = node.state(WATCHDOG)
    assert (ret["result"], ret["changes"], len(node.patches)) == (True, predicted["changes"], 1)
    # A node that was away has not said it again, and nothing changes.
    node.said = {}
    assert node.state(WATCHDOG)["changes"] == {}


def test_the_cib_fences_by_a_disk_once_all_nodes_have_said_that_they_watch_it(node):
    sbd = {"enabled": True, "devices": ["/dev/disk/by-id/sbd"], "watchdog_timeout": 5, "msgwait": 10, "delay_max": 1}
    node.started = {"fence_sbd"}
    node.said = {"hv1": "disks-/dev/disk/by-id/sbd", "hv2": "disks-/dev/disk/by-id/old"}
    predicted = node.state({"sbd": sbd}, test=True)
    ret = node.state({"sbd": sbd})
    assert (ret["result"], ret["changes"], node.patches) == (False, {}, [])
    assert "nothing has changed: cluster:sbd: fence_sbd with /dev/disk/by-id/sbd is for nodes" in ret["comment"]
    assert ret["comment"].endswith("theirs does: hv2. Run their highstate; the next one here goes on.")
    node.later = [lambda: node.said.update(hv2="disks-/dev/disk/by-id/sbd")]
    ret = node.state({"sbd": sbd})
    assert (ret["result"], ret["changes"], len(node.patches)) == (True, predicted["changes"], 1)
    # What else changes of it has not to be said, nor has that what is there.
    node.said = {}
    assert node.state({"sbd": {**sbd, "delay_max": 3}})["result"] is True


def disk(name):
    """What is declared of sbd with one disk."""
    devices = [f"/dev/disk/by-id/{name}"] if name else []
    return {"enabled": True, "devices": devices, "watchdog_timeout": 15, "msgwait": 30, "delay_max": 1}


def alone(seconds):
    """What is declared of sbd without disks."""
    return {**disk(""), "watchdog_timeout": seconds}


class Stopped:
    """A node whose cluster was stopped with what was declared of sbd then."""

    def __init__(self, node: Pacemaker, sbd: dict[str, Any]) -> None:
        self.node = node
        resources = {"web": {"agent": "ocf:heartbeat:x"}}
        declared = cluster_derived.declared({"sbd": sbd, "nodes": list(NODES), "resources": resources})
        self.names = {name: name for name in NODES}
        text = cluster_cib.empty().replace("<cib>", '<cib admin_epoch="0" epoch="41" num_updates="0">')
        node.last.write_text(cluster_cib.apply(text, declared, self.names).text)
        node.active = False

    def seen(self) -> dict[str, str]:
        return cluster_cib.seen(self.node.last.read_text())

    def fits(self, sbd: dict[str, Any], *, test: bool = False, **more: Any) -> dict[str, Any]:
        self.node.opts["test"] = test
        return cib.fits_sbd("x", {"properties": {}, "stonith": {}, "sbd": sbd, **more}, list(NODES), "hv1")


TIMEOUT = "property stonith-watchdog-timeout"


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (disk("a"), disk("b"), {"resource fence_sbd parameter devices": ("/dev/disk/by-id/a", None)}),
        (disk("a"), alone(5), {"resource fence_sbd parameter devices": ("/dev/disk/by-id/a", None)}),
        (alone(5), disk("b"), {TIMEOUT: ("10s", "0")}),
        (alone(15), alone(40), {TIMEOUT: ("30s", "80s")}),
        (alone(15), {**disk("b"), "watchdog_timeout": 60, "msgwait": 120}, {TIMEOUT: ("30s", "0")}),
        # Longer than what is declared hurts nobody, and the live CIB gets the rest.
        (alone(40), alone(15), {}),
        (disk("a"), {**disk("a"), "msgwait": 60}, {}),
        (disk("a"), {**disk("a"), "enabled": False}, {}),
    ],
)
def test_a_stopped_node_gives_up_what_does_not_hold_of_sbd_any_more_before_it_starts(node, before, now, changed):
    stopped = Stopped(node, before)
    text = node.last.read_text()
    predicted = stopped.fits(now, test=True)
    assert (predicted["result"], node.calls, node.last.read_text()) == (None if changed else True, [], text)
    ret = stopped.fits(now)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert {key: (row["old"], row["new"]) for key, row in ret["changes"].items() if key in changed} == changed
    assert bool(ret["changes"]) is bool(changed)
    assert epoch(node.last.read_text()) == (43 if changed else 42)
    assert "resource web" in stopped.seen()
    again = stopped.fits(now)
    assert (again["result"], again["changes"], epoch(node.last.read_text())) == (True, {}, 43 if changed else 42)
    assert len(node.calls) == bool(changed)


def test_pacemaker_starts_without_a_device_of_other_disks_and_without_what_spoke_of_it(node):
    stopped = Stopped(node, disk("a"))
    place = '<constraints><rsc_location id="l" rsc="fence_sbd" node="hv1" score="1"/></constraints>'
    node.last.write_text(node.last.read_text().replace("<constraints />", place))
    ret = stopped.fits(disk("b"))
    assert "fence_sbd" not in node.last.read_text()
    assert {"resource fence_sbd", "constraint l"} <= set(ret["changes"])
    assert "Once the cluster runs hv1 brings in the rest" in ret["comment"]
    assert "name another one as cluster:bootstrap_node" in ret["comment"]


def test_a_device_of_that_name_that_pillar_itself_declares_stays(node):
    stopped = Stopped(node, disk("a"))
    own = {"fence_sbd": {"agent": "fence_sbd", "parameters": {"devices": "/dev/disk/by-id/a"}}}
    assert stopped.fits(alone(5), stonith=own)["changes"] == {}
    node.last.write_text(node.last.read_text().replace('type="fence_sbd"', 'type="fence_ipmilan"'))
    assert stopped.fits(alone(5))["changes"] == {}


def test_the_live_cib_has_still_to_get_what_a_stopped_node_was_not_given(node):
    stopped = Stopped(node, alone(5))
    declared = {"sbd": disk("b")}
    predicted = node.state(declared, test=True)
    assert TIMEOUT not in predicted["changes"]
    assert "resource fence_sbd" in predicted["changes"]
    assert stopped.fits(disk("b"))["result"] is True
    node.active, node.cib, node.started = True, node.last.read_text(), {"fence_sbd"}
    node.said = dict.fromkeys(NODES, "disks-/dev/disk/by-id/b")
    done = node.state(declared)
    assert (done["result"], done["changes"]) == (True, predicted["changes"])


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(("seconds", "told"), [(40, "30s"), (31, "30s"), (30, ""), (20, ""), (5, "")])
def test_while_pacemaker_runs_nothing_is_written_with_which_it_could_not_start_again(node, test, seconds, told):
    stopped = Stopped(node, alone(15))
    node.active = True
    ret = stopped.fits(alone(seconds), test=test)
    assert (ret["result"], ret["changes"], node.calls) == (not told, {}, [])
    assert not told or ret["comment"] == (
        f"cluster:sbd:watchdog_timeout: nothing of sbd has been written, since {seconds} s are more than the "
        "stonith-watchdog-timeout 30s of the CIB, with which the cluster runs: stop the cluster on all nodes "
        "(systemctl stop pacemaker corosync), then run the highstate on all."
    )


def test_while_pacemaker_runs_the_bootstrap_node_alone_changes_the_cib(node):
    stopped = Stopped(node, disk("a"))
    node.active = True
    assert stopped.fits(disk("b"))["changes"] == {}
    assert stopped.fits(alone(5))["changes"] == {}


def test_a_node_without_a_cib_has_nothing_to_give_up(node):
    node.active = False
    ret = cib.fits_sbd("x", {"properties": {}, "stonith": {}, "sbd": disk("a")}, list(NODES), "hv1")
    assert (ret["result"], ret["changes"], node.calls) == (True, {}, [])


@pytest.mark.parametrize("test", [True, False])
def test_a_cib_that_cannot_be_read_is_named_with_the_way_out(node, test):
    stopped = Stopped(node, disk("a"))
    node.last.write_text("")
    ret = stopped.fits(disk("b"), test=test)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"].startswith(f"The CIB on this node's disk ({node.last}): no element found")
    assert ret["comment"].endswith(f"move all of {node.last.parent} away on this one: it gets theirs.")
    # Never while Pacemaker has it.
    node.active = True
    assert "move" not in stopped.fits(disk("b"))["comment"]


def test_a_cib_that_was_not_written_keeps_the_node_from_starting(node):
    stopped = Stopped(node, disk("a"))
    node.obeys = False
    ret = stopped.fits(disk("b"))
    assert ret["result"] is False
    assert "cibadmin has not written all of it; still to do: resource fence_sbd" in ret["comment"]
    node.refusals = 1
    ret = stopped.fits(disk("b"))
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "cibadmin: Call failed: Update was older than existing configuration." in ret["comment"]


WEB = {**WATCHDOG, "guests": {"web": {"ha": True, "ensure": "running", "disks": []}}}
GONE = {**WATCHDOG, "guests": {"web": {"ha": True, "ensure": "absent", "disks": []}}}


@pytest.fixture(name="cluster")
def one_that_runs_a_guest(node):
    node.said = dict.fromkeys(NODES, "watchdog-5s")
    assert node.state(WEB)["result"] is True
    node.started = {"web"}
    node.calls.clear()
    node.patches.clear()
    return node


def test_a_guest_that_goes_is_stopped_before_it_is_removed(cluster):
    predicted = cluster.state(GONE, test=True)
    assert (predicted["result"], cluster.patches) == (None, [])
    ret = cluster.state(GONE)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert ret["changes"]["resource web"] == {"old": "ocf:heartbeat:VirtualDomain", "new": None}
    told = [argv for argv in cluster.calls if "target-role" in argv]
    words = ["--meta", "--set-parameter", "target-role", "--parameter-value", "Stopped"]
    assert told == [["crm_resource", "--resource", "web", *words]]
    after = cluster.calls.index(told[0])
    assert [argv[0] for argv in cluster.calls[:after]].count("crm_diff") == 0
    assert (len(cluster.patches), 'id="web' in cluster.cib) == (1, False)
    assert cluster.state(GONE)["changes"] == {}


def test_a_guest_that_does_not_stop_is_not_removed(cluster):
    cluster.obeys = False
    ret = cluster.state(GONE)
    assert (ret["result"], ret["changes"], cluster.patches) == (False, {}, [])
    assert (
        "has not stopped within 330 s what is to go: libvirt:guests:web:ensure: absent, but it is started"
        in (ret["comment"])
    )
    assert 328 <= cluster.clock <= 331
    assert 'name="migrate_to"' in cluster.cib


def test_a_guest_that_is_stopped_is_removed_at_once(cluster):
    cluster.started, before = set(), cluster.clock
    assert cluster.state(GONE)["result"] is True
    assert (cluster.clock - before < 1, [argv for argv in cluster.calls if "target-role" in argv]) == (True, [])


# ---- a guest that runs, and its volumes ----


def with_volumes(*names, there=("one", "two")):
    disks = [{"source_file": f"/dev/vm/{name}"} for name in names]
    group = {"devices": ["/dev/x"], "volumes": {name: {"size_mib": 64} for name in there}}
    storage = {"storage": {"lock_manager": "dlm", "volume_groups": {"vm": group}}}
    return {**WATCHDOG, **storage, "guests": {"web": {"ha": True, "ensure": "running", "disks": disks}}}


@pytest.fixture(name="guest")
def one_that_runs_with_a_volume(node):
    node.said = dict.fromkeys(NODES, "watchdog-5s")
    assert node.state(with_volumes("one", there=["one"]))["result"] is True
    node.started, node.open = {"web", "vm-one"}, ["/dev/vm/one"]
    node.calls.clear()
    node.patches.clear()
    return node


def test_a_new_volume_starts_before_the_guest_is_tied_to_it(guest):
    predicted = guest.state(with_volumes("one", "two"), test=True)
    assert (predicted["result"], guest.patches) == (None, [])
    between = []

    def starts():
        between.append(guest.cib)
        guest.started.add("vm-two")

    # The first moment is that of its turn.
    guest.later = [lambda: None, starts]
    ret = guest.state(with_volumes("one", "two"))
    assert (ret["result"], ret["changes"], len(guest.patches)) == (True, predicted["changes"], 2)
    assert ('id="web-with-vm-two"' in between[0], 'id="vm-two"' in between[0]) == (False, True)
    assert 'id="web-with-vm-two"' in guest.cib
    assert guest.state(with_volumes("one", "two"))["changes"] == {}


def test_a_new_volume_that_does_not_start_leaves_the_guest_alone(guest):
    ret = guest.state(with_volumes("one", "two"))
    assert ret["result"] is False
    # What has changed all the same.
    assert "resource vm-two" in ret["changes"]
    assert "constraint web-with-vm-two" not in ret["changes"]
    assert "so the guests go on without them: libvirt:guests:web:disks: /dev/vm/two; see crm_mon" in ret["comment"]
    assert 'id="web-with-vm-two"' not in guest.cib


@pytest.mark.parametrize("place", ["hv1", "hv2"])
def test_a_volume_that_the_guest_has_open_stays_tied_to_it(guest, place):
    guest.place = place
    guest.started.add("vm-two")
    guest.state(with_volumes("one", "two"))
    guest.open = ["/dev/vm/one", "/dev/vm/two"]
    for test in (True, False):
        ret = guest.state(with_volumes("one"), test=test)
        assert (ret["result"], ret["changes"]) == (True, {})
        assert "web runs and has /dev/vm/two open, so it stays tied to that" in ret["comment"]
    uri = {"hv1": "qemu:///system", "hv2": "qemu+tls://hv2/system"}[place]
    assert ["virsh", "--connect", uri, "domblklist", "--domain", "web"] in guest.calls
    # It has been started anew.
    guest.open = ["/dev/vm/one"]
    ret = guest.state(with_volumes("one"))
    assert set(ret["changes"]) == {f"constraint web-{word}-vm-two" for word in ("after", "has", "with")}
    assert "open" not in ret["comment"]


def test_a_guest_that_does_not_run_is_untied_at_once(guest):
    guest.started = {"vm-one"}
    assert "constraint web-with-vm-one" in guest.state(with_volumes())["changes"]
    assert [argv for argv in guest.calls if argv[0] == "virsh"] == []


def test_where_nobody_can_see_what_is_open_nothing_changes(guest, monkeypatch):
    run = guest.run

    def failing(argv, **options):
        if argv[0] == "virsh":
            raise CommandExecutionError("virsh: unable to connect to server")
        return run(argv, **options)

    monkeypatch.setitem(cib.__utils__, "cluster_tools.run", failing)
    ret = guest.state(with_volumes())
    assert (ret["result"], ret["changes"], guest.patches) == (False, {}, [])
    assert "unable to connect" in ret["comment"]


def test_what_is_open_in_one_guest_is_not_tied_to_another(guest):
    after = with_volumes()
    after["guests"]["db"] = {"ha": True, "ensure": "running", "disks": [{"source_file": "/dev/vm/one"}]}
    ret = guest.state(after)
    assert (ret["result"], ret["changes"], guest.patches) == (False, {}, [])
    assert "libvirt:guests:db:disks: /dev/vm/one is still open in the guest web" in ret["comment"]


# ---- secrets ----


def test_secrets_are_files_of_root_and_shown_nowhere(node):
    predicted = node.secret("passwd", "token", test=True)
    assert (predicted["result"], node.folder.exists()) == (None, False)
    ret = node.secret("passwd", "token")
    assert (ret["result"], ret["changes"]) == (True, {"passwd": "written", "token": "written"})
    assert predicted["changes"] == ret["changes"]
    place = node.folder / "fence"
    assert {path.name: path.read_text() for path in place.iterdir()} == {
        "passwd": "hunter2",
        "passwd.sign": "2ab96390c7dbe3439de74d0c9b0b1767",
        "token": "tok3n",
        "token.sign": cluster_cib.signature("tok3n").decode(),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}
    assert {stat.S_IMODE(os.stat(one).st_mode) for one in (place, node.folder)} == {0o700}  # noqa: PTH116
    assert "hunter2" not in json.dumps([ret, predicted])
    assert node.secret("passwd", "token")["changes"] == {}


def test_a_secret_that_differs_or_is_open_is_repaired_and_one_too_many_goes(node):
    node.secret("passwd", "token")
    (node.folder / "fence" / "passwd").write_text("other")
    (node.folder / "fence" / "token").chmod(0o644)
    assert node.secret("passwd", "token")["changes"] == {"passwd": "written", "token": "mode 0644 instead of 0600"}
    assert node.secret("token")["changes"] == {"passwd": "removed"}
    assert sorted(path.name for path in (node.folder / "fence").iterdir()) == ["token", "token.sign"]
    assert node.secret()["changes"] == {"token": "removed"}
    assert list((node.folder / "fence").iterdir()) == []


@pytest.mark.parametrize("fences", [True, False])
def test_a_pacemaker_that_runs_uses_new_secrets_and_tries_again_what_has_failed_without(node, fences):
    node.state()
    node.failures = '<failure op_key="fence_start_0" node="hv1"/><failure op_key="fence_start_0" node="hv2"/>'
    node.calls.clear()
    node.secret("passwd", fences=fences, test=True)
    assert ["cibadmin", "--query"] not in node.calls
    ret = node.secret("passwd", fences=fences)
    news = [call for call in node.calls if "hypervisor-secrets" in call]
    assert [call[:3] for call in news] == [["crm_resource", "--resource", "fence"]] * fences
    assert ["crm_resource", "--cleanup", "--resource", "fence", "--node", "hv1"] in node.calls
    assert "hunter2" not in json.dumps([node.calls, ret])
    # Of secrets that are as they were nobody is told, and nobody who has no such device, or does not run.
    node.calls.clear()
    node.secret("passwd", fences=fences)
    node.cib = cluster_cib.empty()
    node.secret("passwd", "token", fences=fences)
    node.active = False
    (node.folder / "fence" / "token").unlink()
    assert node.secret("passwd", "token", fences=fences)["changes"] == {"token": "written"}
    assert [call for call in node.calls if call[0] == "crm_resource"] == []


def test_who_could_not_be_told_is_told_by_the_next_run(node):
    node.state()
    real, broken = node.run, True

    def run(argv, **options):
        if broken and "hypervisor-secrets" in argv:
            raise CommandExecutionError("crm_resource: no connection")
        return real(argv, **options)

    cib.__utils__["cluster_tools.run"] = run
    ret = node.secret("passwd")
    assert (ret["result"], ret["comment"]) == (False, "The secrets of fence: crm_resource: no connection.")
    broken = False
    predicted = node.secret("passwd", test=True)
    node.calls.clear()
    ret = node.secret("passwd")
    assert (ret["result"], ret["changes"]) == (True, {"Pacemaker": "told"})
    assert predicted["changes"] == ret["changes"]
    assert len([call for call in node.calls if "hypervisor-secrets" in call]) == 1
    assert node.secret("passwd")["changes"] == {}


def test_what_has_failed_elsewhere_is_left_to_that_node(node):
    node.state()
    node.failures = '<failure op_key="fence_start_0" node="hv2"/><failure op_key="ip_start_0" node="hv1"/>'
    node.secret("passwd")
    assert [call for call in node.calls if "--cleanup" in call] == []


def test_a_pacemaker_without_secrets_is_refused(node):
    node.cibsecrets = False
    ret = node.secret("passwd")
    assert ret["result"] is False
    assert "was built without cibsecrets" in ret["comment"]
    assert not node.folder.exists()


def test_a_prediction_before_the_installation_asks_nobody(node):
    node.installed = False
    node.cibsecrets = False
    assert node.secret("passwd", test=True)["result"] is None
    assert node.calls == []


def test_a_secret_that_is_not_in_pillar_is_named(node):
    ret = node.secret("pin")
    assert ret["result"] is False
    assert "cluster:stonith:fence:secrets:pin is not in this host's pillar" in ret["comment"]

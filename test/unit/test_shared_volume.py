"""The agent of volumes that move with a guest: exclusive at rest, shared while the guest moves, never forgotten."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

PATH = Path(__file__).resolve().parents[2] / "cluster/files/usr/lib/ocf/resource.d/hypervisor/shared_volume.py"
SPEC = importlib.util.spec_from_file_location("shared_volume", PATH)
assert SPEC is not None
assert SPEC.loader is not None
agent = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(agent)

# Programs of a host: each writes down how it was called, and ends as a file says.
PROGRAM = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
words = {{key: os.environ[key] for key in os.environ if key.startswith("OCF_RESKEY_")}}
with open({log!r}, "a") as log:
    log.write(json.dumps([name, sys.argv[1:], words]) + "\\n")
codes = json.load(open({codes!r}))
key = " ".join([name, *sys.argv[1:]])
print("said " + key, file=sys.stderr)
if name == "dmsetup":
    print(codes.get("active", ""))
code = codes.get(key, 0)
if isinstance(code, list):
    # One code for each call.
    json.dump({{**codes, key: code[1:] or 0}}, open({codes!r}, "w"))
    code = code[0]
sys.exit(code)
"""


class Node:
    """A node with LVM-activate and programs of LVM, which do nothing but tell."""

    def __init__(self, folder):
        self.log, self.codes, self.marks = folder / "log", folder / "codes", folder / "marks"
        self.fail()
        text = PROGRAM.format(python=sys.executable, log=str(self.log), codes=str(self.codes))
        for name in ("bin/lvchange", "bin/vgchange", "bin/dmsetup", "bin/dd", "ocf/resource.d/heartbeat/LVM-activate"):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            place.chmod(0o755)
        self.environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "OCF_ROOT": f"{folder}/ocf"}
        self.environment |= {"OCF_RESKEY_vgname": "vm", "OCF_RESKEY_lvname": "one"}

    def fail(self, **codes):
        self.codes.write_text(json.dumps(codes))

    def does(self, action, **environment):
        volume = agent.Volume({**self.environment, **environment}, self.marks)
        return agent.ACTIONS[action](volume)

    def calls(self):
        rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [
            [name, *argv, *([words["OCF_RESKEY_activation_mode"]] if name == "LVM-activate" else [])]
            for name, argv, words in rows
        ]

    def shared(self):
        return (self.marks / "vm-one.shared").exists()


@pytest.fixture(name="node")
def one_node(tmp_path):
    return Node(tmp_path)


START, SHARED = ["LVM-activate", "start", "exclusive"], ["LVM-activate", "start", "shared"]
EXCLUSIVE, OPEN = ["lvchange", "--activate", "ey", "vm/one"], ["lvchange", "--activate", "sy", "vm/one"]
RECURRING = {"OCF_RESKEY_CRM_meta_interval": "30000"}


def test_at_rest_it_is_exclusive_and_nothing_is_asked_twice(node):
    assert node.does("start") == 0
    assert node.does("monitor", **RECURRING) == 0
    assert node.calls() == [START, ["LVM-activate", "monitor", "exclusive"]]


def test_the_node_that_a_guest_leaves_shares_and_then_lets_go(node):
    assert node.does("migrate_to") == 0
    assert node.shared()
    assert node.does("stop") == 0
    assert not node.shared()
    assert node.calls() == [OPEN, ["LVM-activate", "stop", "exclusive"]]


def test_the_node_that_a_guest_reaches_shares_until_it_has_it_alone(node):
    assert node.does("migrate_from") == 0
    # The other one has it still.
    node.fail(**{"lvchange --activate ey vm/one": 5})
    assert node.does("monitor", **RECURRING) == 0
    assert node.shared()
    node.fail()
    assert node.does("monitor", **RECURRING) == 0
    assert not node.shared()
    assert node.does("monitor", **RECURRING) == 0
    monitor = ["LVM-activate", "monitor", "exclusive"]
    assert node.calls() == [SHARED, monitor, EXCLUSIVE, monitor, EXCLUSIVE, monitor]


def test_a_probe_changes_nothing(node):
    node.does("migrate_from")
    node.calls()
    assert node.does("monitor", OCF_RESKEY_CRM_meta_interval="0") == 0
    assert node.calls() == [["LVM-activate", "monitor", "exclusive"]]


def test_what_is_not_active_is_not_locked(node):
    node.does("migrate_from")
    node.calls()
    node.fail(**{"LVM-activate monitor": 7})
    assert node.does("monitor", **RECURRING) == 7
    assert EXCLUSIVE not in node.calls()


def test_a_start_ends_exclusive_or_fails(node, capfd):
    node.does("migrate_from")
    assert node.does("start") == 0
    assert not node.shared()
    node.does("migrate_from")
    node.fail(**{"lvchange --activate ey vm/one": 5})
    assert node.does("start") == 1
    assert "ocf-exit-reason:vm/one is shared with another node: said lvchange" in capfd.readouterr().err


SANLOCK = {"OCF_RESKEY_lock_manager": "sanlock"}
LOCKSTART = ["vgchange", "--lockstart", "vm"]


def test_with_locks_of_sanlock_it_does_all_itself(node):
    assert node.does("start", **SANLOCK) == 0
    assert node.calls() == [LOCKSTART, EXCLUSIVE]
    assert node.does("migrate_from", **SANLOCK) == 0
    assert node.calls() == [LOCKSTART, OPEN]
    assert node.shared()
    assert node.does("stop", **SANLOCK) == 0
    assert node.calls() == [["lvchange", "--activate", "n", "vm/one"]]
    assert not node.shared()


def test_on_all_nodes_it_stays_shared(node):
    everywhere = {**SANLOCK, "OCF_RESKEY_activation": "shared"}
    assert node.does("start", **everywhere) == 0
    assert node.calls() == [LOCKSTART, OPEN]
    assert not node.shared()
    node.fail(active="one")
    assert node.does("monitor", **everywhere, **RECURRING) == 0
    assert EXCLUSIVE not in node.calls()


def test_with_locks_of_sanlock_the_kernel_is_asked_and_the_volume_read(node, capfd):
    assert node.does("monitor", **SANLOCK) == 7
    node.fail(active="No devices found")
    assert node.does("monitor", **SANLOCK) == 7
    node.calls()
    node.fail()
    node.does("monitor", **SANLOCK)
    select = "vg_name=vm && lv_name=one"
    words = ["info", "--columns", "--noheadings", "--noflush", "--options", "lv_name", "--select", select]
    assert node.calls() == [["dmsetup", *words]]
    node.fail(active="one")
    assert node.does("monitor", **SANLOCK) == 0
    assert node.calls()[1] == ["dd", "if=/dev/vm/one", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    node.fail(active="one", **{"dd if=/dev/vm/one of=/dev/null bs=4096 count=1 iflag=direct": 1})
    assert node.does("monitor", **SANLOCK) == 1
    assert "ocf-exit-reason:vm/one cannot be read: said dd" in capfd.readouterr().err
    # Nobody may take it for one that is stopped.
    node.fail(**{" ".join(["dmsetup", *words]): 1})
    assert node.does("monitor", **SANLOCK) == 1


def test_a_volume_that_is_not_let_go_is_not_stopped_and_one_that_is_not_there_is(node, capfd):
    node.fail(**{"lvchange --activate n vm/one": 5})
    assert node.does("stop", **SANLOCK) == 0
    node.fail(active="one", **{"lvchange --activate n vm/one": 5})
    assert node.does("stop", **SANLOCK) == 1
    assert "ocf-exit-reason:vm/one: lvchange --activate n vm/one: said lvchange" in capfd.readouterr().err


def test_a_lease_of_a_host_that_has_gone_is_waited_for(node, monkeypatch):
    monkeypatch.setattr(agent, "PAUSE", 0.01)
    node.fail(**{"lvchange --activate ey vm/one": [5, 5]})
    assert node.does("start", **SANLOCK) == 0
    assert node.calls().count(EXCLUSIVE) == 3
    # Not for ever.
    monkeypatch.setattr(agent, "LEASE", 0.05)
    node.fail(**{"lvchange --activate ey vm/one": 5})
    assert node.does("start", **SANLOCK) == 1
    assert EXCLUSIVE in node.calls()


@pytest.mark.parametrize("action", ["start", "migrate_from"])
def test_locks_of_dlm_that_another_volume_gives_up_meanwhile_are_taken_again(node, monkeypatch, action):
    monkeypatch.setattr(agent, "PAUSE", 0.01)
    node.fail(**{"LVM-activate start": [1, 1]})
    assert node.does(action) == 0
    assert sum(call[:2] == START[:2] for call in node.calls()) == 3
    # Not for ever, and not where asking again does not help.
    monkeypatch.setattr(agent, "RACE", 1)
    node.fail(**{"LVM-activate start": 1})
    assert node.does(action) == 1
    assert len(node.calls()) > 1
    node.fail(**{"LVM-activate start": [6]})
    assert node.does(action) == 6
    assert sum(call[:2] == START[:2] for call in node.calls()) == 1


def test_a_lock_that_does_not_become_shared_is_said(node, capfd):
    node.fail(**{"lvchange --activate sy vm/one": 5})
    assert node.does("migrate_to") == 1
    assert "ocf-exit-reason:the lock of vm/one does not become shared" in capfd.readouterr().err


def test_a_stop_that_fails_keeps_the_mark(node):
    node.does("migrate_to")
    node.fail(**{"LVM-activate stop": 1})
    assert node.does("stop") == 1
    assert node.shared()


def run(*argv, **environment):
    done = subprocess.run(
        [sys.executable, str(PATH), *argv], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_its_metadata_names_every_action_that_pacemaker_calls():
    code, text, _ = run("meta-data")
    assert code == 0
    root = ElementTree.fromstring(text)  # noqa: S314 - the agent's own
    actions = {one.get("name") for one in root.findall("actions/action")}
    assert {"start", "stop", "monitor", "migrate_to", "migrate_from", "meta-data", "validate-all"} == actions
    assert {one.get("name") for one in root.findall("parameters/parameter")} == {
        "vgname", "lvname", "lock_manager", "activation"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "-one", "a/b", "one;x", "a b"])
def test_what_is_no_name_of_lvm_is_refused(name):
    code, _, said = run("validate-all", OCF_RESKEY_vgname="vm", OCF_RESKEY_lvname=name)
    assert code == 6
    assert "must be names of LVM" in said


@pytest.mark.parametrize(("key", "value"), [("lock_manager", "idm"), ("activation", "all")])
def test_a_parameter_that_there_is_not(key, value):
    names = {"OCF_RESKEY_vgname": "vm", "OCF_RESKEY_lvname": "one", f"OCF_RESKEY_{key}": value}
    code, _, said = run("validate-all", **names)
    assert (code, key in said, value in said) == (6, True, True)


def test_an_action_that_there_is_not():
    assert run("promote", OCF_RESKEY_vgname="vm", OCF_RESKEY_lvname="one")[0] == 3
    assert run()[0] == 3

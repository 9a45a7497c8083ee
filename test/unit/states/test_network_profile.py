"""The state network_profile: honest before and after, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _modules import network_profile as module
from _states import network_profile
from _utils import network_tool

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "network/files/usr/lib/hypervisor-formula/hypervisor_network/__main__.py"
PLAN: dict[str, Any] = {
    "backend": "networkd", "errors": [], "refusal": "", "files": {"/etc/x": "+a"}, "differences": ["br0 is missing"],
    "uplink": ["eth0"], "interfaces": ["eth0", "br0"], "changed": True,
}  # fmt: skip
OVER = {"id": "1", "pending": False, "at_work": False, "outage": None, "verified": None, "differences": []}
CONFIRMED = {**OVER, "state": "confirmed", "outage": 0.93}
BACK = {**OVER, "state": "rolled-back", "reason": "hv:4505 does not answer", "verified": True}
PROFILE: dict[str, Any] = {"bridges": {"br0": {"ports": ["eth0"], "dhcp4": True}}, "confirm": {"window": 20}}


class Tool:
    """Answers for network-profile, and writes down how it was called."""

    def __init__(self, monkeypatch, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"plan": PLAN, "apply": {**PLAN, "id": "1"}, "status": CONFIRMED, **answers}
        self.calls: list[tuple[list[str], Any]] = []
        self.opts: dict[str, Any] = {"test": False, "master": "controller"}
        self.clock = 0.0
        monkeypatch.setattr(network_profile, "__opts__", self.opts, raising=False)
        salt = {"cmd.run_all": self.run, "cp.cache_dir": lambda *_, **__: ["/c/a.py", f"/c{network_tool.INSTALLED}"]}
        monkeypatch.setattr(network_profile, "__salt__", salt, raising=False)
        names = ("call", "masters", "ports", "outcome", "changes", "installed")
        utils: dict[str, Any] = {f"network_tool.{name}": getattr(network_tool, name) for name in names}
        utils["network_tool.standing"] = lambda: self.answers["status"]
        monkeypatch.setattr(network_profile, "__utils__", utils, raising=False)
        monkeypatch.setattr(module, "__utils__", utils, raising=False)
        monkeypatch.setattr(module, "__salt__", salt, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def run(self, argv: list[str], **options: Any) -> dict[str, Any]:
        assert options["python_shell"] is False
        self.calls.append((argv, json.loads(options["stdin"]) if options["stdin"] else None))
        verb = next(word for word in argv if word in self.answers)
        answer = self.answers[verb]
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return {"stdout": text, "stderr": "", "retcode": 0}

    def state(self, test: bool = False, **arguments: Any) -> dict[str, Any]:
        self.opts["test"] = test
        arguments.setdefault("python", sys.executable)
        found: dict[str, Any] = network_profile.applied("x", PROFILE, **arguments)
        return found


@pytest.fixture
def tool(monkeypatch):
    return Tool(monkeypatch)


def verbs(tool: Tool) -> list[str]:
    return [next(word for word in argv if word in tool.answers) for argv, _ in tool.calls]


def test_a_confirmed_change_says_how_long_the_master_was_away(tool):
    ret = tool.state()
    assert ret["result"] is True
    assert ret["changes"] == {"files": {"/etc/x": "+a"}, "interfaces": ["br0 is missing"]}
    assert ret["comment"] == "The change is confirmed (networkd). The master was not reached for 0.9 s."
    assert verbs(tool) == ["apply"]
    confirm = {"window": 20, "ports": [4505, 4506]}
    assert tool.calls[0][1] == {"pillar": {**PROFILE, "confirm": confirm}, "masters": ["controller"]}
    assert tool.calls[0][0][1:3] == ["-I", network_tool.INSTALLED]


def test_a_dry_run_plans_from_the_cache_and_applies_nothing(tool):
    ret = tool.state(test=True)
    assert ret["result"] is None
    assert ret["changes"] == {"files": {"/etc/x": "+a"}, "interfaces": ["br0 is missing"]}
    assert "carries the connection to the master: eth0" in ret["comment"]
    assert verbs(tool) == ["plan"]
    assert tool.calls[0][0][1:4] == ["-I", "-B", f"/c{network_tool.INSTALLED}"]


def test_a_change_that_was_undone_is_a_failure_without_changes(tool):
    tool.answers["status"] = BACK
    ret = tool.state()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"] == "The change was undone: hv:4505 does not answer. All is as it was before."


def test_what_is_not_as_before_is_named(tool):
    tool.answers["status"] = {**BACK, "verified": False, "differences": ["link br0 is too much"]}
    ret = tool.state()
    assert ret["result"] is False
    assert ret["comment"].endswith("Not all is as before: link br0 is too much.")
    assert ret["changes"]


def test_the_wait_is_bounded(tool):
    tool.answers["status"] = {**OVER, "state": "applied", "pending": True, "at_work": True}
    ret = tool.state()
    assert ret["result"] is False
    assert "is still applied" in ret["comment"]
    assert 20 + 90 <= tool.clock <= 20 + 95


def test_the_outcome_of_another_change_is_not_taken_for_this_one(tool, monkeypatch):
    tool.answers["status"] = {**CONFIRMED, "id": "0"}
    sleep = tool.sleep

    def later(seconds):
        sleep(seconds)
        tool.answers["status"] = BACK

    monkeypatch.setattr("time.sleep", later)
    assert tool.state()["result"] is False
    assert tool.clock == 1.0


@pytest.mark.parametrize("test", [True, False])
def test_nothing_to_do_is_no_change(tool, test):
    nothing = {**PLAN, "changed": False}
    tool.answers |= {"plan": nothing, "apply": nothing}
    ret = tool.state(test)
    assert (ret["result"], ret["changes"], ret["comment"]) == (True, {}, "The interfaces are as declared.")
    assert len(tool.calls) == 1


@pytest.mark.parametrize("test", [True, False])
def test_a_refusal_says_that_nothing_was_changed(tool, test):
    tool.answers["plan"] = {**PLAN, "refusal": "set network:allow_uplink_change to true"}
    tool.answers["apply"] = {"error": "set network:allow_uplink_change to true"}
    ret = tool.state(test)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"] == "Nothing was changed: set network:allow_uplink_change to true."


def test_what_is_no_json_is_shown(tool):
    tool.answers["apply"] = "Traceback\nSyntaxError: x"
    assert tool.state()["comment"] == "Nothing was changed: network-profile apply failed: SyntaxError: x."


@pytest.mark.parametrize(("test", "result"), [(True, None), (False, False)])
def test_a_host_without_the_interpreter(tool, test, result):
    ret = tool.state(test, python="/nowhere/python3")
    assert (ret["result"], ret["changes"], tool.calls) == (result, {}, [])
    assert "network:python" in ret["comment"]


@pytest.mark.parametrize(
    ("opts", "found"),
    [
        ({"master": "controller"}, ["controller"]),
        ({"master": ["a", "b:4506", "192.0.2.1:4506", "[2001:db8::1]:4506", "2001:db8::2"]},
         ["a", "b", "192.0.2.1", "2001:db8::1", "2001:db8::2"]),
        ({"master": "salt", "file_client": "local"}, []),
        ({"master": "controller", "file_client": "local"}, ["controller"]),
        ({}, []),
    ],
)  # fmt: skip
def test_the_masters_of_a_minion(opts, found):
    assert network_tool.masters(opts) == found


@pytest.mark.parametrize(
    ("opts", "found"),
    [
        ({"master": "controller"}, [4505, 4506]),
        ({"master": "controller", "publish_port": 14505, "master_port": 14506}, [14505, 14506]),
        ({"master": "controller", "master_port": "14506"}, [4505, 14506]),
        ({"master": "controller:14506"}, [4505, 14506]),
        ({"master": ["[2001:db8::1]:14506"], "publish_port": 14505}, [14505, 14506]),
        ({"master": ["a:1", "b:2"], "master_port": 14506}, [4505, 14506]),
        ({}, [4505, 4506]),
    ],
)
def test_the_ports_of_a_minions_masters(opts, found):
    assert network_tool.ports(opts) == found


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(("pillar", "asked"), [([], [14505, 14506]), ([443], [443])])
def test_the_minions_ports_are_checked_unless_the_pillar_names_others(tool, monkeypatch, test, pillar, asked):
    tool.opts |= {"publish_port": 14505, "master_port": 14506}
    monkeypatch.setitem(PROFILE["confirm"], "ports", pillar)
    tool.state(test)
    assert tool.calls[0][1]["pillar"]["confirm"]["ports"] == asked


@pytest.mark.parametrize("state", ["staged", "applying", "applied", "rolling-back"])
def test_a_pending_change_shows(tmp_path, state):
    path = tmp_path / "state.json"
    assert network_tool.pending(str(path)) == {"pending": False, "state": None, "id": None}
    path.write_text(json.dumps({"state": state, "id": "7"}))
    assert network_tool.pending(str(path)) == {"pending": True, "state": state, "id": "7"}
    path.write_text(json.dumps({"state": "confirmed", "id": "7"}))
    assert network_tool.pending(str(path))["pending"] is False
    (tmp_path / "pending").touch()
    assert network_tool.standing(str(path))["pending"] is True, "it is being cleared away"
    (tmp_path / "pending").unlink()
    assert network_tool.standing(str(path))["pending"] is False
    path.write_text("{")
    assert network_tool.pending(str(path))["pending"] is False


# ---- the module ----


def test_the_module_runs_the_command_with_its_own_interpreter(tool, monkeypatch, tmp_path):
    command = tmp_path / "network-profile"
    monkeypatch.setattr(module, "_COMMAND", str(command))
    with pytest.raises(CommandExecutionError, match="nothing of network/ was ever applied"):
        module.status()
    command.write_text("#!/usr/bin/python3.11 -I\n")
    assert module.status() == CONFIRMED
    assert tool.calls[0][0] == ["/usr/bin/python3.11", "-I", network_tool.INSTALLED, "status", "--json"]
    tool.answers |= {"confirm": {"error": "there is nothing to confirm"}, "rollback": BACK}
    with pytest.raises(CommandExecutionError, match="nothing to confirm"):
        module.confirm()
    assert module.rollback() == BACK


# ---- the program as it is shipped ----


def test_the_program_runs_isolated_and_names_what_it_needs(tmp_path):
    done = network_tool.call(_run_really, sys.executable, str(PROGRAM), ["plan"], {"pillar": {}})
    assert done["changed"] is False
    assert "error" in network_tool.call(_run_really, sys.executable, str(PROGRAM), ["plan"], {"none": 1})


def _run_really(argv: list[str], **options: Any) -> dict[str, Any]:
    done = subprocess.run(argv, input=options["stdin"], capture_output=True, text=True, check=False)
    return {"stdout": done.stdout, "stderr": done.stderr, "retcode": done.returncode}

"""corosync.conf is judged before it replaces the old one; a running corosync takes up what it can, or is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from _states import corosync
from _utils import cluster_tools, corosync_conf, own_files

ROOT = Path(__file__).resolve().parents[3]

CLUSTER = {"name": "c", "links": {}, "crypto": {"cipher": "aes256", "hash": "sha256"}, "token": 3000, "quorum": {}}
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3)}
ONLINE = '<crm_mon><nodes>{}</nodes></crm_mon>'


class Node:
    """A node hv2 of three whose corosync is a mapping, and time that passes as it waits."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.file = folder / "corosync.conf"
        self.opts: dict[str, Any] = {"test": False, "id": "hv2"}
        self.runs, self.quorate, self.takes_up = True, True, True
        self.running: dict[str, str] = {}
        self.votes: dict[str, str] = {}
        self.noted = ""
        self.joined = {1, 2, 3}
        self.online = {"hv1", "hv2", "hv3"}
        self.unclean: set[str] = set()
        self.said: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.patience: dict[str, float] = {}
        self.refuses = ""
        self.clock = 0.0
        self.later: list[Any] = []
        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": function
            for module in (cluster_tools, corosync_conf, own_files)
            for name, function in vars(module).items()
            if callable(function)
        }
        utils |= {
            "cluster_tools.active": lambda _: self.runs,
            "cluster_tools.cmap": self.cmap,
            "cluster_tools.quorum": lambda: cluster_tools.Quorum(self.quorate, 3, 2, self.flags()),
            "cluster_tools.monitor": self.monitor,
            "cluster_tools.run": self.run,
        }
        monkeypatch.setattr(corosync, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(corosync, "__utils__", utils, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.later:
            self.later.pop(0)()

    def has(self, nodes: Any = NODES, **over: Any) -> None:
        """Let the running corosync and the file be those of a declaration."""
        tree = corosync_conf.tree({**CLUSTER, **over}, nodes)
        self.running = corosync_conf.flat(tree)
        self.file.write_text(corosync_conf.emit(tree))
        self.file.chmod(0o644)
        self.start()

    def start(self) -> None:
        """Let votequorum read what it reads when it starts only."""
        self.votes, self.noted = dict(self.running), ""

    def flags(self) -> tuple[str, ...]:
        """The options in force: of those that a reload changes there is two_node, with what follows it."""
        two = self.running.get("quorum.two_node", "0")
        on = {
            "2Node": two,
            "WaitForAll": self.votes.get("quorum.wait_for_all", two),
            "LastManStanding": self.votes.get("quorum.last_man_standing", "0"),
            "AutoTieBreaker": self.votes.get("quorum.auto_tie_breaker", "0"),
        }
        return tuple(flag for flag, value in on.items() if value == "1")

    def cmap(self) -> str:
        lines = [f"{key} (str) = {value}" for key, value in self.running.items()]
        lines += [f"runtime.members.{number}.status (str) = joined" for number in sorted(self.joined)]
        lines += [f"hypervisor.started (str) = {self.noted}"] if self.noted else []
        return "\n".join([*lines, "nodelist.local_node_pos (u32) = 1"])

    def monitor(self) -> str:
        rows = [f'<node name="{name}" online="true"/>' for name in sorted(self.online)]
        rows += [f'<node name="{name}" online="false" unclean="true"/>' for name in sorted(self.unclean)]
        return ONLINE.format("".join(rows))

    def run(self, argv: list[str], timeout: float = 0, ok: Any = ()) -> str:
        if argv[0] == "attrd_updater":
            if "-U" in argv:
                self.said["hv2"] = argv[-1]
            return "".join(f'name="x" host="{node}" value="{value}"\n' for node, value in self.said.items())
        self.calls.append(argv)
        self.patience[" ".join(argv)] = timeout
        if argv[0] == "corosync":
            assert Path(argv[-1]).name == ".corosync.conf.judged"
            if self.refuses:
                raise CommandExecutionError(self.refuses)
        if argv == ["corosync-cfgtool", "-R"] and self.takes_up:
            self.load(but=corosync_conf.RESTART)
        if argv == ["systemctl", "restart", "corosync.service"]:
            self.load()
            self.start()
        if argv[:-1] == ["corosync-cmapctl", "-s", "hypervisor.started", "str"]:
            self.noted = argv[-1]
        return ""

    def load(self, but: tuple[str, ...] = ()) -> None:
        """Let the running corosync read its file, but for some keys."""
        kept = {key: self.running[key] for key in but if key in self.running}
        self.running = {**self.parsed(), **kept}

    def parsed(self) -> dict[str, str]:
        """What the file says, read as corosync does."""
        found: dict[str, str] = {}
        path: list[str] = []
        count: dict[str, int] = {}
        for line in self.file.read_text().splitlines():
            word = line.strip()
            if word.endswith("{"):
                name = word[:-1].strip()
                if name == "node":
                    count[name] = count.get(name, -1) + 1
                    name = f"node.{count[name]}"
                path.append(name)
            elif word == "}":
                path.pop()
            elif ": " in word and not word.startswith("#"):
                key, value = word.split(": ", 1)
                found[".".join([*path, key])] = value
        return found

    def state(self, nodes: Any = NODES, *, wait: int = 10, test: bool = False, **over: Any) -> dict[str, Any]:
        self.opts["test"] = test
        options = {key: over.pop(key) for key in ("leaving", "allow_restart") if key in over}
        return corosync.configured(str(self.file), {**CLUSTER, **over}, nodes, wait_seconds=wait, **options)


@pytest.fixture(name="node")
def a_node(monkeypatch, tmp_path) -> Node:
    found = Node(monkeypatch, tmp_path)
    found.has()
    return found


def told(node: Node) -> list[str]:
    """What was done to corosync and Pacemaker."""
    return [" ".join(argv) for argv in node.calls if argv[0] != "corosync"]


def test_the_same_is_left_alone(node):
    ret = node.state()
    assert (ret["result"], ret["changes"]) == (True, {})
    assert node.calls == []


def test_the_first_file_is_judged_and_written_while_nothing_runs(node):
    node.runs = False
    node.file.unlink()
    assert node.state(test=True)["result"] is None
    assert not node.file.exists()
    ret = node.state()
    assert ret["result"] is True
    assert "totem {" in ret["changes"]["file"]["added"]
    assert [argv[:3] for argv in node.calls] == [["corosync", "-t", "-c"]]
    assert node.state()["changes"] == {}


def test_a_file_that_corosync_refuses_does_not_replace_the_old_one(node):
    before, node.refuses = node.file.read_text(), "corosync: parser error"
    ret = node.state(token=4000)
    assert (ret["result"], ret["comment"], ret["changes"]) == (False, "corosync: corosync: parser error.", {})
    assert node.file.read_text() == before
    assert [path.name for path in node.file.parent.iterdir()] == ["corosync.conf"]
    assert told(node) == []


def test_a_token_and_a_node_are_taken_up_by_a_reload(node):
    node.has({name: NODES[name] for name in ("hv1", "hv2")})
    predicted = node.state(token=4000, test=True)
    assert (predicted["result"], told(node)) == (None, [])
    ret = node.state(token=4000)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert set(ret["changes"]["running"]) == {"node hv3", "quorum.two_node", "totem.token"}
    assert told(node) == ["corosync-cfgtool -R"]
    assert node.flags() == ()
    assert node.state(token=4000)["changes"] == {}


def test_two_nodes_of_three_wait_for_each_other_again_after_a_reload(node):
    two = {name: NODES[name] for name in ("hv1", "hv2")}
    assert node.state(two)["result"] is True
    assert told(node) == ["corosync-cfgtool -R"]
    assert node.flags() == ("2Node", "WaitForAll")
    assert node.state(two)["changes"] == {}


@pytest.mark.parametrize("test", [True, False])
def test_votes_that_count_from_the_start_need_consent(node, test):
    before = node.file.read_text()
    ret = node.state(quorum={"wait_for_all": True, "last_man_standing": True}, test=test)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "With cluster:allow_restart: true the nodes restart it one after the other" in ret["comment"]
    assert ret["comment"].endswith("quorum.wait_for_all: 0 -> 1\nquorum.last_man_standing: 0 -> 1")
    assert (node.file.read_text(), node.calls) == (before, [])


def test_votes_that_count_from_the_start_are_in_force_after_the_restart(node):
    votes = {"wait_for_all": True, "last_man_standing": True, "last_man_standing_window": 20000}
    wanted = corosync_conf.flat(corosync_conf.tree({**CLUSTER, "quorum": votes}, NODES))
    node.said["hv1"] = corosync._stamp(corosync_conf.flat(corosync_conf.tree(CLUSTER, NODES)))
    ret = node.state(quorum=votes, allow_restart=True)
    assert "these nodes come before this one and have not been restarted: hv1" in ret["comment"]
    # Its file is new by now. A reload that another node asks for brings that into its map, and not into force.
    node.load(but=corosync_conf.RESTART)
    predicted = node.state(quorum=votes, allow_restart=True, test=True)
    assert set(predicted["changes"]["running"]) == {f"quorum.{key}" for key in votes}
    assert node.state(quorum=votes)["result"] is False
    node.said["hv1"] = corosync._stamp(wanted)
    node.calls.clear()
    ret = node.state(quorum=votes, allow_restart=True)
    assert (ret["result"], ret["changes"], told(node)) == (True, predicted["changes"], RESTARTED)
    assert (node.flags(), node.noted) == (("WaitForAll", "LastManStanding"), "")
    assert node.said["hv2"] == node.said["hv1"]
    assert node.state(quorum=votes)["changes"] == {}


def test_a_cluster_that_was_told_to_wait_for_all_stops_only_by_a_restart(node):
    """One that was not made here. Nothing is restarted before it makes a difference, and that is known beforehand."""
    two = {name: NODES[name] for name in ("hv1", "hv2")}
    node.has(two, quorum={"wait_for_all": True})
    ret = node.state(two)
    assert (ret["result"], set(ret["changes"])) == (True, {"file", "running"})
    assert node.noted == '{"wait_for_all": "1"}'
    assert node.state(two)["changes"] == {}
    node.calls.clear()
    ret = node.state()
    assert ret["comment"].endswith("quorum.wait_for_all: 1 -> 0")
    assert (ret["changes"], node.calls) == ({}, [])
    # Or it goes on waiting, as declared.
    assert node.state(quorum={"wait_for_all": True})["result"] is True
    assert node.state(quorum={"wait_for_all": True})["changes"] == {}


@pytest.mark.parametrize("test", [True, False])
def test_another_id_of_a_node_is_refused(node, test):
    node.has({**NODES, "hv3": {**NODES["hv3"], "id": 3000}})
    before = node.file.read_text()
    ret = node.state(test=test, allow_restart=True)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "Stop the cluster on all nodes" in ret["comment"]
    assert ret["comment"].endswith("\nid of node hv3: 3000 -> 3")
    assert (node.file.read_text(), node.calls) == (before, [])


def test_a_running_corosync_that_differs_from_its_file_is_reloaded(node):
    node.running["totem.token"] = "9000"
    ret = node.state()
    assert ret["changes"] == {"running": {"totem.token": {"old": "9000", "new": "3000"}}}
    assert node.running["totem.token"] == "3000"


def test_a_reload_that_changes_nothing_is_a_failure(node):
    node.takes_up = False
    ret = node.state(token=4000)
    assert ret["result"] is False
    assert "corosync has not taken up totem.token: 3000 -> 4000" in ret["comment"]


@pytest.mark.parametrize("test", [True, False])
def test_another_name_needs_consent(node, test):
    before = node.file.read_text()
    ret = node.state(name="d", test=test)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "With cluster:allow_restart: true the nodes restart it one after the other" in ret["comment"]
    assert ret["comment"].endswith("totem.cluster_name: c -> d")
    assert (node.file.read_text(), node.calls) == (before, [])


def test_what_all_must_change_at_once_is_refused_with_consent_too(node):
    before = node.file.read_text()
    ret = node.state(crypto={"cipher": "aes128", "hash": "sha256"}, name="d", allow_restart=True)
    assert ret["result"] is False
    assert "Stop the cluster on all nodes" in ret["comment"]
    assert (node.file.read_text(), node.calls) == (before, [])


RESTARTED = [
    "systemctl stop pacemaker.service",
    "systemctl restart corosync.service",
    "systemctl start pacemaker.service",
]


def first_restarts(node: Node) -> None:
    """Let hv1 have been restarted with the name d."""
    wanted = corosync_conf.flat(corosync_conf.tree({**CLUSTER, "name": "d"}, NODES))
    node.said["hv1"] = corosync._stamp(wanted)


def test_it_is_restarted_when_its_turn_comes(node):
    node.later = [lambda: None, lambda: first_restarts(node)]
    ret = node.state(name="d", allow_restart=True)
    assert ret["result"] is True
    assert ret["changes"]["running"] == {"totem.cluster_name": {"old": "c", "new": "d"}}
    assert told(node) == RESTARTED
    assert node.clock >= 2
    # sbd starts before, and may wait that long.
    schema = yaml.safe_load((ROOT / "cluster" / "schema.yaml").read_text())
    assert node.patience[RESTARTED[1]] > schema["properties"]["sbd"]["properties"]["start_delay"]["maximum"] + 90
    assert node.said["hv2"] == node.said["hv1"], "the next node would not know"
    assert node.state(name="d")["changes"] == {}


def test_it_is_not_restarted_before_its_turn(node):
    ret = node.state(name="d", allow_restart=True)
    assert ret["result"] is False
    assert "these nodes come before this one and have not been restarted: hv1" in ret["comment"]
    assert told(node) == []
    # The next run goes on from there.
    first_restarts(node)
    assert node.state(name="d", allow_restart=True)["result"] is True


def test_it_is_not_restarted_while_a_node_is_missing(node):
    first_restarts(node)
    node.online = {"hv1", "hv2"}
    ret = node.state(name="d", allow_restart=True)
    assert ret["result"] is False
    assert "these nodes are not there: hv3" in ret["comment"]
    node.online, node.quorate = {"hv1", "hv2", "hv3"}, False
    ret = node.state(name="d", allow_restart=True)
    assert "these nodes are not there: hv1, hv2, hv3" in ret["comment"]
    assert told(node) == []


def test_a_node_that_does_not_come_back_holds_up_the_others_and_says_so(node, monkeypatch):
    first_restarts(node)
    run = node.run

    def lonely(argv, timeout=0, ok=()):
        if argv == RESTARTED[2].split():
            node.online = {"hv2"}
        return run(argv, timeout, ok)

    monkeypatch.setitem(corosync.__utils__, "cluster_tools.run", lonely)
    ret = node.state(name="d", allow_restart=True)
    assert ret["result"] is False
    assert "it was restarted, but within 10 s it has not found again: hv1, hv3" in ret["comment"]
    assert "hv2" not in node.said


def test_a_node_that_was_restarted_otherwise_says_so_for_those_behind_it(node):
    node.has(name="d")
    assert node.state(name="d")["changes"] == {}
    assert set(node.said) == {"hv2"}
    node.said.clear()
    node.state(name="d", test=True)
    assert node.said == {}


def test_nobody_goes_on_without_a_node_that_has_not_left(node):
    leaving, stay = {"hv3": NODES["hv3"]}, {name: NODES[name] for name in ("hv1", "hv2")}
    before = node.file.read_text()
    ret = node.state(stay, leaving=leaving)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "have not left within 10 s: hv3" in ret["comment"]
    assert (node.file.read_text(), told(node)) == (before, [])
    node.later = [lambda: node.joined.discard(3)]
    ret = node.state(stay, leaving=leaving)
    assert ret["result"] is True
    assert ret["changes"]["running"]["node hv3"]["new"] is None


@pytest.mark.parametrize("test", [True, False])
def test_a_node_that_leaves_and_has_still_to_be_fenced_is_not_let_go(node, test):
    leaving, stay = {"hv3": NODES["hv3"]}, {name: NODES[name] for name in ("hv1", "hv2")}
    node.joined, node.online, node.unclean = {1, 2}, {"hv1", "hv2"}, {"hv3"}
    before = node.file.read_text()
    ret = node.state(stay, leaving=leaving, test=test)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "lost, but not fenced: hv3." in ret["comment"]
    assert "stonith_admin --confirm hv3" in ret["comment"]
    assert (node.file.read_text(), told(node)) == (before, [])
    assert node.clock <= 10
    node.later = [node.unclean.clear]
    assert node.state(stay, leaving=leaving)["result"] is True


def test_permissions_are_repaired(node):
    node.file.chmod(0o600)
    ret = node.state()
    assert ret["changes"] == {"file": "mode 0600 instead of 0644"}
    assert node.state()["changes"] == {}

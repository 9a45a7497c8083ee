"""Quorum is waited for and who is missing is named; a node leaves only if the others can do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _states import cluster_member, cluster_node
from _utils import cluster_tools, corosync_conf

NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3)}
ADDRESSES = """[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
 {"ifname": "eth0", "addr_info": [{"local": "192.0.2.1", "scope": "global"},
                                  {"local": "fe80::1", "scope": "link"}]}]"""


class Node:
    """A node hv1, and time that passes as it waits."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.opts: dict[str, Any] = {"test": False, "id": "hv1"}
        self.folder = folder
        self.active = {"corosync.service", "pacemaker.service"}
        self.enabled = set(self.active)
        self.votes = cluster_tools.Quorum(True, 3, 2, ())
        self.unclean: set[str] = set()
        self.joined, self.online, self.listed = {1, 2, 3}, {"hv1", "hv2", "hv3"}, {"hv1", "hv2", "hv3"}
        self.resources = "<crm_mon/>"
        self.calls: list[str] = []
        self.clock = 0.0
        self.later: list[Any] = []
        utils: dict[str, Any] = {
            "cluster_tools.active": lambda unit: unit in self.active,
            "cluster_tools.enabled": lambda unit: unit in self.enabled,
            "cluster_tools.cmap": str,
            "cluster_tools.joined": lambda _: self.joined,
            "cluster_tools.names": cluster_tools.names,
            "cluster_tools.monitor": lambda: self.resources,
            "cluster_tools.unmanaged": cluster_tools.unmanaged,
            "cluster_tools.online": lambda _: self.online,
            "cluster_tools.listed": lambda _: self.listed,
            "cluster_tools.unfenced": lambda _, names: ", ".join(self.unclean & set(names)),
            "cluster_tools.quorum": lambda: self.votes,
            "cluster_tools.run": self.run,
            "corosync_conf.address": corosync_conf.address,
        }
        for module in (cluster_member, cluster_node):
            monkeypatch.setattr(module, "__opts__", self.opts, raising=False)
            monkeypatch.setattr(module, "__utils__", utils, raising=False)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.later:
            self.later.pop(0)()

    def run(self, argv: list[str], timeout: float = 0, ok: Any = ()) -> str:
        self.calls.append(" ".join(argv))
        if argv[:2] == ["systemctl", "stop"]:
            self.active.discard(argv[2])
        if argv[:2] == ["systemctl", "disable"]:
            self.enabled.discard(argv[2])
        if argv[0] == "crm_node":
            self.listed.discard(argv[-1])
        return ADDRESSES if argv[0] == "ip" else ""

    def left(self, *leaving: str, locks: list[str] | None = None) -> dict[str, Any]:
        nodes = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in range(1, 6)}
        going = {name: nodes[name] for name in leaving or ["hv1"]}
        return cluster_member.left("x", [str(self.folder / "authkey")], going, locks, str(self.folder))


@pytest.fixture(name="node")
def a_node(monkeypatch, tmp_path) -> Node:
    (tmp_path / "authkey").write_text("key")
    (tmp_path / "var/lib/pacemaker/cib").mkdir(parents=True)
    (tmp_path / "var/lib/pacemaker/cib/cib.xml").write_text("<cib/>")
    (tmp_path / "var/lib/pacemaker/lrm/secrets/fence_hv2").mkdir(parents=True)
    (tmp_path / "var/lib/pacemaker/lrm/secrets/fence_hv2/password").write_text("word")
    return Node(monkeypatch, tmp_path)


# ---- quorum ----


def test_quorum_with_all_nodes(node):
    ret = cluster_member.quorate("x", NODES)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert ret["comment"] == "The cluster has quorum, with all nodes: hv1, hv2, hv3."


def test_who_is_missing_is_named_after_a_limited_time(node):
    node.votes, node.joined = cluster_tools.Quorum(False, 1, 2, ()), {1}
    ret = cluster_member.quorate("x", NODES, 20)
    assert ret["result"] is False
    assert ret["comment"].startswith("Within 20 s the cluster has not come to quorum. Missing: hv2, hv3.")
    assert node.clock <= 20


def test_it_is_waited_for(node):
    node.votes = cluster_tools.Quorum(False, 1, 2, ())
    node.later = [lambda: None, lambda: setattr(node, "votes", cluster_tools.Quorum(True, 2, 2, ()))]
    assert cluster_member.quorate("x", NODES, 20)["result"] is True


def test_a_node_that_pacemaker_has_not_taken_in_is_not_part_of_it(node):
    node.online = {"hv2", "hv3"}
    ret = cluster_member.quorate("x", NODES, 5)
    assert ret["result"] is False
    assert "Pacemaker has not taken this node in" in ret["comment"]


def test_a_cluster_with_quorum_may_miss_a_node(node):
    node.online = {"hv1", "hv2"}
    ret = cluster_member.quorate("x", NODES)
    assert (ret["result"], ret["comment"]) == (True, "The cluster has quorum. Not there now: hv3.")


def test_a_prediction_waits_for_nothing(node):
    node.opts["test"], node.votes = True, cluster_tools.Quorum(False, 0, 0, ())
    assert cluster_member.quorate("x", NODES)["result"] is True
    assert node.clock == 0


# ---- leaving ----


def test_a_node_leaves_pacemaker_first(node):
    node.opts["test"] = True
    predicted = node.left()
    assert (predicted["result"], node.calls) == (None, [])
    node.opts["test"] = False
    ret = node.left()
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert node.calls == [
        "systemctl stop pacemaker.service",
        "systemctl stop corosync.service",
        "systemctl disable pacemaker.service",
        "systemctl disable corosync.service",
    ]
    assert [path for path in node.folder.rglob("*") if path.is_file()] == []
    assert node.left()["changes"] == {}


def test_services_of_locks_stop_behind_pacemaker_once_the_locks_are_given_back(node):
    locks = {"lvmlocks.service", "lvmlockd.service", "sanlock.service", "wdmd.service"}
    node.active |= locks
    node.enabled |= locks
    ret = node.left(locks=["lvmlocks", "lvmlockd", "sanlock", "wdmd"])
    assert ret["result"] is True
    assert node.calls[:7] == [
        "systemctl stop pacemaker.service",
        "systemctl stop corosync.service",
        "vgchange --lockstop",
        "systemctl stop lvmlocks.service",
        "systemctl stop lvmlockd.service",
        "systemctl stop sanlock.service",
        "systemctl stop wdmd.service",
    ]
    assert (node.active, node.enabled) == (set(), set())
    assert node.left(locks=["lvmlocks", "lvmlockd", "sanlock", "wdmd"])["changes"] == {}


def test_locks_are_given_back_where_their_daemon_runs(node):
    locks = ["lvmlocks", "lvmlockd", "sanlock", "wdmd"]
    node.active |= {"lvmlockd.service"}
    node.left(locks=locks)
    assert node.calls[2:4] == ["vgchange --lockstop", "systemctl stop lvmlockd.service"]
    # systemd takes the first for active, whatever became of the daemon; without it nobody can give anything back.
    node.calls, node.active = [], {"lvmlocks.service"}
    assert node.left(locks=locks)["result"] is True
    assert node.calls[0] == "systemctl stop lvmlocks.service"


@pytest.mark.parametrize("test", [True, False])
def test_a_node_that_the_others_need_stays(node, test):
    node.opts["test"], node.votes = test, cluster_tools.Quorum(True, 2, 2, ())
    ret = node.left()
    assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
    assert "there are 2 votes and 2 are needed" in ret["comment"]
    assert (node.folder / "authkey").exists()


@pytest.mark.parametrize("test", [True, False])
def test_a_node_on_which_something_would_run_on_unseen_stays(node, test):
    def row(name, place="hv1", managed="false", agent="ocf:heartbeat:VirtualDomain"):
        return f'<resource id="{name}" resource_agent="{agent}" managed="{managed}"><node name="{place}"/></resource>'

    others = row("db", "hv2") + row("mail", managed="true") + row("fence", agent="stonith:fence_sbd")
    node.resources = f"<crm_mon><resources>{row('web')}{others}</resources></crm_mon>"
    node.opts["test"] = test
    ret = node.left()
    assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
    assert "Pacemaker does not manage web, so that would run on here" in ret["comment"]
    node.resources = f"<crm_mon><resources>{others}</resources></crm_mon>"
    assert node.left()["result"] is (None if test else True)
    # Where it does not run any more nobody is asked.
    node.resources, node.active = "no XML", {"corosync.service"}
    (node.folder / "authkey").touch()
    assert node.left()["result"] is (None if test else True)


@pytest.mark.parametrize("test", [True, False])
def test_nodes_that_leave_at_once_count_each_other(node, test):
    node.opts["test"], node.votes, node.joined = test, cluster_tools.Quorum(True, 4, 3, ()), {1, 2, 3, 4}
    ret = node.left("hv1", "hv2")
    assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
    assert "ensure: absent is declared for hv1, hv2, but there are 4 votes and 3 are needed" in ret["comment"]
    assert "no quorum without hv1, hv2. Let them leave one after the other" in ret["comment"]


@pytest.mark.parametrize(
    ("total", "needed", "joined", "leaving"),
    [
        (5, 3, {1, 2, 3, 4, 5}, ("hv1", "hv2")),
        # The other one has gone, and corosync has not been told yet.
        (4, 3, {1, 3, 4, 5}, ("hv1", "hv2")),
        # It has gone for long, and only stands in the pillar.
        (3, 2, {1, 3, 4}, ("hv1", "hv2")),
        (4, 3, {1, 2, 3, 4}, ("hv1",)),
    ],
)
def test_nodes_leave_at_once_or_one_after_the_other_where_quorum_bears_it(node, total, needed, joined, leaving):
    node.votes, node.joined = cluster_tools.Quorum(True, total, needed, ()), joined
    assert node.left(*leaving)["result"] is True


@pytest.mark.parametrize("votes", [(True, 2, 1), (True, 1, 1), (False, 1, 2)])
def test_a_node_without_which_nothing_is_lost_goes(node, votes):
    quorate, total, needed = votes
    node.votes = cluster_tools.Quorum(quorate, total, needed, ())
    assert node.left()["result"] is True


def test_pacemaker_forgets_who_has_left(node):
    gone = {"hv3": NODES["hv3"]}
    node.opts["test"] = True
    assert cluster_member.forgotten("x", gone)["result"] is None
    node.opts["test"] = False
    assert cluster_member.forgotten("x", gone)["changes"] == {"forgotten": ["hv3"]}
    assert node.calls == ["crm_node --force --remove hv3"]
    assert cluster_member.forgotten("x", gone)["changes"] == {}


@pytest.mark.parametrize("test", [True, False])
def test_who_has_still_to_be_fenced_is_not_forgotten(node, test):
    node.opts["test"], node.unclean = test, {"hv3"}
    ret = cluster_member.forgotten("x", {name: NODES[name] for name in ("hv2", "hv3")})
    assert (ret["result"], ret["changes"], node.calls) == (False, {}, [])
    assert ret["comment"] == "Pacemaker: hv3."


# ---- whether this host is the node ----


def test_a_host_that_is_the_node(node, monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"nodename": "hv1"}))
    assert cluster_node.fits("x", NODES)["result"] is True


def test_a_host_that_is_not_says_all_that_is_wrong(node, monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"nodename": "hv1.example.org"}))
    ret = cluster_node.fits("x", {"hv1": {"id": 1, "addresses": ["192.0.2.9"]}})
    assert ret["result"] is False
    assert ret["comment"].splitlines() == [
        (
            'cluster:nodes:hv1:name: "hv1" (the minion id) is not what this host calls itself; must be '
            '"hv1.example.org", or change the host: hostnamectl set-hostname hv1'
        ),
        "cluster:nodes:hv1:addresses: 192.0.2.9 is not an address of this host; it has: 192.0.2.1",
    ]


def test_a_minion_that_is_no_node(node):
    node.opts["id"] = "hv9"
    ret = cluster_node.fits("x", NODES)
    assert (ret["result"], ret["comment"]) == (
        False,
        "cluster:nodes: hv9, this minion, is not among them: hv1, hv2, hv3.",
    )

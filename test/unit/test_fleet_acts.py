"""The runner as callers meet it: whose hosts it asks and uses, what it refuses, and that a failure is one sentence."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import salt.client
import salt.loader
import salt.utils.event

from _runners import fleet

MODULES = ("fleet_act", "fleet_callers", "fleet_clusters", "fleet_diary", "fleet_drift", "fleet_jobs", "fleet_moves",
           "fleet_plan", "fleet_store", "fleet_tables", "hypervisor_checks")  # fmt: skip
INFO = {"cpu": {"cpus": 4, "architecture": "x86_64"}, "memory": {"total_mib": 8192, "available_mib": 8000},
        "problems": [], "load": [0.1], "domain_types": ["qemu"]}  # fmt: skip
OTTO = {"fleet.drift": ["hv2"], "fleet.migrate": ["hv1", "hv2"], "fleet.evacuate": ["hv1"], "fleet.restore": ["hv1"]}
TABLE = {"users": {"otto": OTTO}, "groups": {"staff": {"fleet.create": ["hv3"]}}}


def guest(name, memory=512):
    return {"name": name, "uuid": f"uuid-{name}", "state": "running", "memory_mib": memory, "vcpus": 1, "nics": [],
            "autostart": False, "hugepages": False}  # fmt: skip


class Fleet:
    """Three hosts that answer the master, and what they were asked."""

    def __init__(self) -> None:
        self.guests = {"hv1": [guest("web"), guest("db", 1024)], "hv2": [guest("mail")], "hv3": []}
        self.refusing: set[str] = set()
        self.jobs: dict[str, Any] = {}
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.looks: list[list[str]] = []
        self.events: list[str] = []
        self.returners = {"local_cache.get_jid": lambda jid: self.jobs.get(jid, {})}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def fire_event(self, data, tag):
        assert data["function"].startswith("fleet.")
        self.events.append(tag)

    def cmd(self, hosts, functions, *_, **__):
        self.looks.append(hosts)
        return {host: {functions[0]: INFO, functions[1]: {"guests": self.guests[host]}} for host in hosts}

    def run_job(self, hosts, function, kwarg, **_):
        (host,) = hosts
        self.asked.append((host, function, kwarg))
        jid = str(len(self.asked))
        self.jobs[jid] = {host: {"return": self._value(host, function, kwarg), "retcode": 0, "success": True}}
        return {"jid": jid}

    def _value(self, host, function, kwarg):
        if function == "state.highstate":
            assert kwarg == {"test": True}
            return {"a_|-b_|-c_|-d": {"result": None if host == "hv2" else True, "changes": {}, "__id__": "b"}}
        if function == "hypervisor.create":
            return {"name": kwarg["name"], "guest": {"state": "running"}}
        if kwarg["name"] in self.refusing:
            return {"possible": False, "reasons": [{"check": "device", "text": "it has a card"}]}
        if kwarg["test"]:
            return {"possible": True, "reasons": []}
        (row,) = [one for one in self.guests[host] if one["name"] == kwarg["name"]]
        self.guests[host].remove(row)
        self.guests[kwarg["target"]].append(row)
        return {"state": "running", "seconds": 1.0, "downtime_ms": 9, "warnings": []}

    def where(self):
        return {row["name"]: host for host, rows in self.guests.items() for row in rows}


@pytest.fixture
def hosts(monkeypatch, tmp_path):
    found = Fleet()
    opts = {"cachedir": str(tmp_path), "sock_dir": "", "master_job_cache": "local_cache", "user": "salt"}
    utils = {}
    for name in MODULES:
        module = importlib.import_module(f"_utils.{name}")
        utils.update({f"{name}.{key}": value for key, value in vars(module).items() if callable(value)})
    (tmp_path / "hosts").write_text("hv2 hv2.example.org\nhv1\nhv3 hv3.example.org,192.0.2.3\n")
    monkeypatch.setattr(fleet, "_HOSTS", str(tmp_path / "hosts"))
    for name, value in {"__opts__": opts, "__utils__": utils, "__context__": {}, "__user__": "root"}.items():
        monkeypatch.setattr(fleet, name, value, raising=False)
    monkeypatch.setattr(salt.client, "get_local_client", lambda mopts: found)
    monkeypatch.setattr(salt.utils.event, "get_master_event", lambda *_, **__: found)
    monkeypatch.setattr(salt.loader, "auth", lambda _: {"hypervisor.groups": lambda user: ["staff"]})
    return found


@pytest.fixture
def otto(monkeypatch):
    """The caller has come through salt-api."""
    monkeypatch.setattr(fleet, "__user__", "otto")
    monkeypatch.setitem(fleet.__opts__, "hypervisor_api", {"fleet": {**TABLE, "groups": {}}})


def refused(found):
    assert (found["ok"], found["retcode"], fleet.__context__["retcode"]) == (False, 1, 1)
    return found["text"]


def test_a_guest_is_found_and_moved_to_the_emptiest_host(hosts):
    found = fleet.migrate("web")
    assert (found["outcome"], found["from"], found["to"]) == ("moved", "hv1", "hv3")
    assert hosts.where()["web"] == "hv3"
    assert [tag.split("/")[-1] for tag in hosts.events] == ["checking", "moving", "moved"]
    assert fleet.migrate("web", "hv3")["text"] == "web is on hv3 already"
    assert fleet.migrate("web", "hv1", test=True)["outcome"] == "possible"
    assert hosts.where()["web"] == "hv3"


def test_pack_takes_the_fullest(hosts):
    assert fleet.migrate("mail", policy="pack")["to"] == "hv1"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fleet.migrate("--force"), "name: '--force' is not allowed"),
        (lambda: fleet.migrate("web", "hv9"), "target: hv9 is none of the hosts for fleet.migrate here: hv1, hv2, hv3"),
        (lambda: fleet.migrate("web", "*"), "target: '*' is not allowed"),
        (lambda: fleet.migrate("web", traget="hv2"), "there is no argument 'traget'"),
        (lambda: fleet.migrate("web", policy="random"), "policy: 'random' is not allowed: it is one of spread, pack"),
        (lambda: fleet.migrate("nobody"), "there is no guest nobody (asked: hv1, hv2, hv3)"),
        (lambda: fleet.evacuate("hv1", parallel=17), "parallel: 17 is not allowed"),
        (fleet.evacuate, "host: None is not allowed"),
        (lambda: fleet.restore("hv1", shut_off=True), "there is no argument 'shut_off'"),
        (lambda: fleet.create("web"), "hv1 has a guest web already"),
        (lambda: fleet.create("new", test="yes"), "test: 'yes' is not allowed"),
    ],
)
def test_what_is_wrong_is_one_sentence(hosts, call, text):
    assert refused(call()).startswith(text)
    assert hosts.asked == []


def test_people_get_text_and_a_return_code(hosts, monkeypatch):
    monkeypatch.setitem(fleet.__opts__, "fun", "fleet.migrate")
    printed = fleet.migrate("web", "hv2")
    assert printed["outputter"] == "txt"
    assert printed["data"].splitlines() == [
        "web moved to hv2 in 1.0 s, 9 ms of them without it",
        "  why: it was named",
    ]
    assert fleet.migrate("nobody")["data"]["retcode"] == 1
    assert fleet.guests()["data"].splitlines()[0].startswith("GUEST")


def test_a_name_that_two_hosts_have_is_not_guessed(hosts):
    hosts.guests["hv3"].append(guest("web"))
    assert refused(fleet.migrate("web")).startswith("several hosts have a guest web: hv1, hv3")


def test_a_host_is_emptied_and_filled_again(hosts):
    hosts.refusing = {"db"}
    first = fleet.evacuate("hv1")
    assert first["text"] == "hv1 is not evacuated whole: 1 of 2 guests moved"
    assert {row["name"]: row["outcome"] for row in first["guests"]} == {"db": "stays", "web": "moved"}
    (stays,) = [row for row in first["guests"] if row["outcome"] == "stays"]
    assert stays["against"] == {"hv2": ["device: it has a card"], "hv3": ["device: it has a card"]}
    hosts.refusing = set()
    assert fleet.evacuate("hv1")["text"] == "hv1 is evacuated: 1 of 1 guests moved"
    assert fleet.evacuate("hv1")["text"] == "hv1 is evacuated: there is nothing to move"
    # Somebody moved one on, and another is gone for good.
    assert fleet.migrate("web", "hv2")["ok"]
    hosts.guests = {host: [row for row in rows if row["name"] != "db"] for host, rows in hosts.guests.items()}
    assert fleet.restore("hv1", test=True)["text"] == "hv1 would be restored: 1 of 1 guests can move"
    back = fleet.restore("hv1")
    assert {row["name"]: row["outcome"] for row in back["guests"]} == {"web": "moved", "db": "forgotten"}
    assert hosts.where() == {"web": "hv1", "mail": "hv2"}
    assert fleet.restore("hv1")["text"] == "hv1 was not evacuated"


def test_a_bus_that_takes_no_event_stops_nothing(hosts, monkeypatch):
    def away(*_, **__):
        raise ConnectionResetError

    monkeypatch.setattr(salt.utils.event, "get_master_event", away)
    assert fleet.evacuate("hv1")["ok"]
    assert set(hosts.where().values()) == {"hv2", "hv3"}


def test_an_evacuation_that_was_killed_is_gone_on_with(hosts, monkeypatch):
    class Killed(BaseException):
        """What no function of the runner catches."""

    def run_job(names, function, kwarg, **more):
        if kwarg["name"] == "web" and not kwarg["test"]:
            raise Killed
        return Fleet.run_job(hosts, names, function, kwarg, **more)

    with monkeypatch.context() as patch:
        patch.setattr(hosts, "run_job", run_job)
        with pytest.raises(Killed):
            fleet.evacuate("hv1", parallel=1)
    assert {name: host for name, host in hosts.where().items() if host == "hv1"} == {"web": "hv1"}
    assert fleet.evacuate("hv1")["text"] == "hv1 is evacuated: 1 of 1 guests moved"
    assert {row["name"]: row["outcome"] for row in fleet.restore("hv1")["guests"]} == {"db": "moved", "web": "moved"}
    assert hosts.where() == {"web": "hv1", "db": "hv1", "mail": "hv2"}


def test_guests_of_an_evacuation_do_not_all_go_to_the_same_host(hosts):
    hosts.guests["hv2"].clear()
    fleet.evacuate("hv1")
    assert sorted(hosts.where().values()) == ["hv2", "hv3"]


def test_a_question_leaves_no_trace(hosts, tmp_path):
    assert fleet.evacuate("hv1", test=True)["text"] == "hv1 would be evacuated: 2 of 2 guests can move"
    assert hosts.where() == {"web": "hv1", "db": "hv1", "mail": "hv2"}
    assert not list(tmp_path.rglob("hv1.json"))


def test_a_guest_whose_name_is_a_path_stays_and_is_listed(hosts, tmp_path):
    hosts.guests["hv1"] = [guest("../../evil")]
    found = fleet.evacuate("hv1")
    assert (found["guests"][0]["outcome"], found["ok"]) == ("busy", False)
    assert "cannot be touched: name: '../../evil' is not allowed" in found["guests"][0]["text"]
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_what_is_held_is_refused_and_let_go_again(hosts, tmp_path):
    who = {"function": "fleet.evacuate", "user": "anna", "jid": "7"}
    store = importlib.import_module("_utils.fleet_store")
    on_guest, _ = store.lock(fleet.__opts__["cachedir"], "guests", "web", who)
    on_host, _ = store.lock(fleet.__opts__["cachedir"], "hosts", "hv2", who)
    # While it moves it is on two hosts, and that is not what is said.
    hosts.guests["hv3"].append(guest("web"))
    found = fleet.migrate("web")
    assert refused(found).startswith("is held by fleet.evacuate of anna (job 7, since ")
    assert (found["outcome"], hosts.asked) == ("busy", [])
    hosts.guests["hv3"].clear()
    assert refused(fleet.create("web")).startswith("web is held by fleet.evacuate of anna")
    assert refused(fleet.evacuate("hv2")).startswith("hv2 is held by fleet.evacuate of anna")
    on_guest.release()
    on_host.release()
    assert fleet.migrate("web")["ok"]
    # Neither what was done nor what was refused keeps it.
    assert refused(fleet.migrate("web", "hv9"))
    assert refused(fleet.migrate("nobody"))
    assert not list(tmp_path.rglob("*.lock"))
    assert fleet.evacuate("hv2")["ok"]


def test_a_new_guest_and_where_it_is_made(hosts):
    found = fleet.create("new", mem=512, cpu=1)
    assert (found["host"], found["guest"]) == ("hv3", {"state": "running"})
    assert hosts.asked == [("hv3", "hypervisor.create", {"name": "new", "mem": 512, "cpu": 1})]
    assert fleet.create("other", host="hv1", mem=512)["host"] == "hv1"
    assert "no host takes vast" in refused(fleet.create("vast", mem=9000))


def test_hosts_are_compared_with_their_declaration(hosts):
    found = fleet.drift()
    assert found["text"] == "2 of 3 hosts are as declared; different: hv2"
    assert (found["ok"], found["same"], [row["host"] for row in found["hosts"]]) == (True, False, ["hv1", "hv2", "hv3"])
    assert fleet.drift("hv1")["same"] is True
    assert refused(fleet.drift(test=False)).startswith("there is no argument 'test'")
    assert {function for _, function, _ in hosts.asked} == {"state.highstate"}


# ---- callers who are not root ----


def test_drift_is_told_of_the_callers_hosts_alone(hosts, otto):
    assert [row["host"] for row in fleet.drift()["hosts"]] == ["hv2"]
    assert refused(fleet.drift("hv1")).startswith("host: hv1 is none of the hosts for fleet.drift here: hv2")
    assert {host for host, *_ in hosts.asked} == {"hv2"}


def test_hosts_of_others_are_neither_asked_nor_used(hosts, otto):
    assert fleet.migrate("mail")["to"] == "hv1"
    assert fleet.migrate("mail", "hv2")["ok"]
    # The emptiest host is not his.
    assert refused(fleet.migrate("web", "hv3")).startswith("target: hv3 is none of the hosts for fleet.migrate here")
    assert fleet.migrate("web")["to"] == "hv2"
    assert {host for look in hosts.looks for host in look} == {"hv1", "hv2"}
    assert not [one for one in hosts.asked if one[0] == "hv3" or one[2].get("target") == "hv3"]


def test_a_guest_on_a_host_of_others_does_not_exist(hosts, otto):
    hosts.guests["hv3"].append(guest("secret"))
    assert refused(fleet.migrate("secret", "hv1")) == "there is no guest secret (asked: hv1, hv2)"


def test_a_guest_that_went_to_a_host_of_others_is_not_taken_for_gone(hosts, otto, monkeypatch):
    monkeypatch.setattr(fleet, "__user__", "root")
    fleet.evacuate("hv1")
    before = hosts.where()
    assert set(before.values()) == {"hv2", "hv3"}
    monkeypatch.setattr(fleet, "__user__", "otto")
    back = fleet.restore("hv1")
    assert (back["ok"], {row["outcome"] for row in back["guests"]}) == (False, {"unknown"})
    assert all(row["text"] == "is on none of the hosts for fleet.restore here" for row in back["guests"])
    assert hosts.where() == before
    # Nothing was forgotten: whoever may use all hosts brings them back.
    monkeypatch.setattr(fleet, "__user__", "root")
    assert fleet.restore("hv1")["ok"] is True
    assert {hosts.where()[name] for name in ("web", "db")} == {"hv1"}


def test_a_host_of_others_is_not_emptied_and_nothing_leaves_to_it(hosts, otto):
    assert refused(fleet.evacuate("hv2")).startswith("host: hv2 is none of the hosts for fleet.evacuate here: hv1")
    found = fleet.evacuate("hv1")
    assert [row["outcome"] for row in found["guests"]] == ["stays", "stays"]
    assert hosts.where() == {"web": "hv1", "db": "hv1", "mail": "hv2"}


@pytest.mark.parametrize("call", [lambda: fleet.create("new"), fleet.hosts, fleet.guests])
def test_what_no_role_names_is_refused(hosts, otto, call):
    assert refused(call()).startswith("no role of otto allows fleet.")
    assert hosts.looks == []


def test_roles_of_a_group(hosts, otto, monkeypatch):
    monkeypatch.setitem(fleet.__opts__, "hypervisor_api", {"fleet": TABLE})
    assert fleet.create("new", mem=512)["host"] == "hv3"
    assert refused(fleet.create("new", host="hv1")).startswith("host: hv1 is none of the hosts")


@pytest.mark.parametrize(
    ("user", "trusted"),
    [("root", True), ("sudo_anna", True), ("salt", True), ("UNKNOWN", True), ("otto", False), ("Root", False),
     ("sudo", False), ("", False)],
)  # fmt: skip
def test_whom_the_runner_trusts(user, trusted):
    assert importlib.import_module("_utils.fleet_callers").trusted(user, "salt") is trusted


def test_without_hosts_nothing_is_asked(hosts, monkeypatch):
    monkeypatch.setattr(fleet, "_HOSTS", "/nonexistent/hosts")
    assert fleet.hosts() == {}
    assert hosts.looks == []


# ---- what is written down of an act ----


def written(tmp_path):
    """The steps of the one act that was written down."""
    (path,) = tmp_path.rglob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return [(row["step"], row.get("guest"), row.get("from"), row.get("to")) for row in rows], rows


def test_an_act_writes_down_its_steps_and_its_end(hosts, tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "__jid__", "20260101000000000001", raising=False)
    hosts.refusing = {"db"}
    fleet.evacuate("hv1", parallel=1)
    steps, rows = written(tmp_path)
    assert steps == [
        ("begin", None, None, None), ("waiting", "db", "hv1", None), ("waiting", "web", "hv1", None),
        ("checking", "db", "hv1", "hv3"), ("checking", "db", "hv1", "hv2"), ("stays", "db", "hv1", None),
        ("checking", "web", "hv1", "hv3"), ("moving", "web", "hv1", "hv3"), ("moved", "web", "hv1", "hv3"),
        ("end", None, None, None),
    ]  # fmt: skip
    assert rows[0] | {"at": ""} == {
        "at": "", "step": "begin", "function": "fleet.evacuate", "user": "root", "host": "hv1", "test": False,
        "scope": ["hv1", "hv2", "hv3"],
    }  # fmt: skip
    assert rows[5]["against"]["hv2"] == ["device: it has a card"]
    assert (rows[-1]["ok"], rows[-1]["text"]) == (False, "hv1 is not evacuated whole: 1 of 2 guests moved")
    fleet.restore("hv1")
    assert written(tmp_path)[0][1:4] == [
        ("waiting", "web", "hv3", None), ("checking", "web", "hv3", "hv1"), ("moving", "web", "hv3", "hv1"),
    ]  # fmt: skip


def test_what_was_refused_is_not_begun_and_a_failure_ends(hosts, tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "__jid__", "20260101000000000001", raising=False)
    fleet.migrate("web", "hv9")
    fleet.hosts()
    assert not list(tmp_path.rglob("*.jsonl"))
    fleet.migrate("nobody")
    steps, rows = written(tmp_path)
    assert [step for step, *_ in steps] == ["begin", "end"]
    assert rows[-1]["text"].startswith("there is no guest nobody")

"""What the master takes of what hosts say: only what they have signed, once, in order, and complete in the end."""

from __future__ import annotations

import base64
import json
import queue
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypervisor_inventory import jobs, keeper, messages, store
from inventory_hosts import GUEST, KEYS, OTHER, UUID, accept, event, voice, whole

from _utils import inventory_words


class Master:
    """A keeper with a clock of the test's, and what it has asked."""

    def __init__(self, folder) -> None:
        self.folder = folder
        accept(folder / "pki" / "minions")
        (folder / "hosts").write_text("# of bootstrap\nhv1 hv1.example 192.0.2.1\nhv2 hv2.example\n")
        self.audit = folder / "audit.log"
        self.questions: queue.Queue[Any] = queue.Queue()
        self.answers: dict[str, Any] = {}
        self.now = 1000.0
        self.begin()

    def begin(self) -> None:
        paths = keeper.Paths.of(*(str(self.folder / name) for name in ("i.db", "pki", "hosts", "audit.log", "cache")))
        self.keeper = keeper.Keeper(paths, self.publish, lambda jid: self.answers.get(jid, {}), 300.0)

    def publish(self, names, tag, data) -> None:
        assert tag == keeper.ASK
        self.questions.put((names, data["nonce"]))

    def take(self, *events, later: float = 0.0) -> None:
        self.now += later
        self.keeper.take(list(events), self.now)

    def asked(self):
        return self.questions.get(timeout=10)

    def nothing_asked(self) -> bool:
        return self.questions.empty()

    def guests(self) -> dict[str, str]:
        found = {key: self.keeper.store.get("guests", key) for key in self.keeper.store.all_keys("guests")}
        return {key: value["state"] for key, value in found.items()}

    def host(self, name: str = "hv1") -> Any:
        return self.keeper.store.get("hosts", name)

    @property
    def refused(self) -> dict[str, int]:
        return dict(self.keeper.judge.refused)


@pytest.fixture(name="master")
def a_master(tmp_path):
    found = Master(tmp_path)
    yield found
    found.keeper.store.close()


@pytest.fixture(name="told")
def one_who_was_told(master):
    """hv1 has answered the first question, and its voice goes on."""
    master.take()
    names, nonce = master.asked()
    assert names == ["hv1", "hv2"]
    by = voice("hv1")
    master.take(whole(by, nonce=nonce))
    assert master.guests() == {f"hv1/{UUID}": "running"}
    return by


def changed(by, state="paused", uuid=UUID, about="suspended"):
    return event(by.message(f"guest/{uuid}/{about}", set={"guests": {uuid: GUEST | {"state": state}}}))


def test_known_hosts_are_there_before_they_are_heard(master):
    master.take()
    assert (master.host()["live"], master.host()["seen"]) == (False, None)
    assert "never been heard" in master.host()["problems"][0]


def test_a_change_is_taken_at_once(master, told):
    master.take(changed(told))
    assert master.guests() == {f"hv1/{UUID}": "paused"}
    master.take(event(told.message(f"guest/{UUID}/undefined", gone={"guests": [UUID]})))
    assert master.guests() == {}
    assert master.refused == {}


def test_what_its_host_has_not_signed_is_dropped_and_counted(master, told):
    tag, data = voice("hv1", 2).message("host/all", set={}, part=[1, 1])
    others = voice("hv1", 2, key="hv2").message("host/all", set={}, part=[1, 1])
    body = json.loads(data["body"]) | {"seq": 99}
    forged = [
        event(others), event((tag, data | {"body": json.dumps(body)})), event((tag + "/x", data)),
        event((tag, data | {"signature": "?"})), event((tag, data | {"signature": ""})),
        event((tag, data | {"signature": "\u00e9"})),
    ]  # fmt: skip
    master.take(*forged)
    assert master.refused == {"signature": 6}
    assert master.guests() == {f"hv1/{UUID}": "running"}


def test_nobody_speaks_for_another(master, told):
    # hv2 signs with its own key, under its own tag, what is said to be of hv1; a guest's minion speaks for itself.
    tag, data = voice("hv2").message("host/all", set={}, part=[1, 1])
    lie = json.dumps(json.loads(data["body"]) | {"host": "hv1"})
    forged = event((tag, keeper_signed("hv2", tag, lie)), "hv2")
    master.take(forged, event(voice("guest").message("host/alive"), "guest"))
    assert master.refused == {"malformed": 1, "unknown host": 1}


def keeper_signed(host, tag, body):
    return inventory_words.signed(KEYS[host], tag, body)


@pytest.mark.parametrize("junk", [
    None, [], "text", {"data": None}, {"data": []}, {"body": 1, "signature": "x"}, {"data": {"body": "x"}},
    {"data": {"body": "x" * 1_000_000, "signature": "x"}},
])  # fmt: skip
def test_what_is_no_message_is_counted(master, told, junk):
    master.take({"tag": "hypervisor/hv1/host/all", "data": junk})
    assert master.refused == {"malformed": 1}


@pytest.mark.parametrize("body", [
    "", "[]", "null", "[" * 100_000, '{"host":"hv1"}', '{"host":"hv1","epoch":true,"seq":2,"interval":5}',
    '{"host":"hv1","epoch":1,"seq":1e999,"interval":5}', '{"host":"hv1","epoch":1,"seq":2,"interval":5,"part":[0,1]}',
    '{"host":"hv1","epoch":1,"seq":2,"interval":5,"set":{"guests":{"../x":{}}}}',
    '{"host":"hv1","epoch":1,"seq":2,"interval":5,"set":{"guests":[]}}',
])  # fmt: skip
def test_a_host_in_bad_hands_harms_nothing_but_its_own(master, told, body):
    tag = "hypervisor/hv1/host/all"
    master.take(event((tag, keeper_signed("hv1", tag, body))))
    assert master.refused == {"malformed": 1}
    assert master.guests() == {f"hv1/{UUID}": "running"}


def test_hostile_names_are_texts_of_bounded_length(master, told):
    name = "\x1b]0;x\x07\u202e<script>\n" + "x" * 1000
    master.take(event(told.message("host/changed", set={"guests": {UUID: GUEST | {"name": name, "more": "x"}}})))
    record = master.keeper.store.get("guests", f"hv1/{UUID}")
    assert record["name"].startswith("\ufffd]0;x\ufffd\ufffd<script>\ufffdxxx")
    assert len(record["name"]) == 256
    assert "more" not in record


def test_a_repetition_is_dropped(master, told):
    first = changed(told)
    master.take(first)
    master.take(changed(told, "running", about="resumed"))
    master.take(first)
    assert master.refused == {"old": 1}
    assert master.guests() == {f"hv1/{UUID}": "running"}


def test_a_new_life_of_the_sender_ends_the_old_one(master, told):
    old = changed(told)
    again = voice("hv1", 2)
    master.take(whole(again, {}))
    master.take(old)
    assert master.guests() == {}
    assert master.refused == {"old": 1}


def test_an_old_recording_is_worth_nothing_to_a_new_database(master, told):
    recorded = [whole(voice("hv1", 5)), whole(voice("hv1", 6), nonce=master.keeper.hosts["hv1"].nonce)]
    master.keeper.store.begin_anew("test")
    master.keeper._recall()
    master.take(*recorded)
    assert master.guests() == {}
    assert master.refused == {"not asked for": 2}


def test_messages_that_overtake_each_other_are_put_in_order(master, told):
    first, second = changed(told), changed(told, "running", about="resumed")
    master.take(second)
    assert master.guests() == {f"hv1/{UUID}": "running"}
    master.take(first, later=0.1)
    assert master.guests() == {f"hv1/{UUID}": "running"}
    assert master.keeper.hosts["hv1"].last == (1, 3)
    assert master.refused == {}


def test_what_is_lost_is_asked_for(master, told):
    told.message("guest/x/lost")
    master.take(changed(told), later=10.0)
    assert master.guests() == {f"hv1/{UUID}": "running"}
    master.take(later=1.0)
    assert master.guests() == {f"hv1/{UUID}": "paused"}
    names, nonce = master.asked()
    while "hv1" not in names:
        names, nonce = master.asked()
    master.take(whole(told, {OTHER: GUEST}, nonce))
    assert master.guests() == {f"hv1/{OTHER}": "running"}
    assert master.keeper.hosts["hv1"].wanting is False


def test_a_whole_in_parts_counts_with_its_last_one(master, told):
    first = event(told.message("host/all", set={"guests": {OTHER: GUEST}}, part=[1, 2]))
    last = event(told.message("host/all", set={"pools": {"p": {"name": "p", "state": "active"}}}, part=[2, 2]))
    master.take(first)
    assert set(master.guests()) == {f"hv1/{UUID}", f"hv1/{OTHER}"}
    master.take(last)
    assert set(master.guests()) == {f"hv1/{OTHER}"}
    assert master.keeper.store.all_keys("pools") == {"hv1/p"}


def test_a_host_whose_libvirt_is_gone_keeps_what_it_had(master, told):
    again = voice("hv1", 2)
    master.take(event(again.message("host/alive", figures={"problems": ["libvirt: gone"]}, nonce="x")))
    master.take(later=1.0)
    assert master.guests() == {f"hv1/{UUID}": "running"}
    assert master.host()["problems"] == ["libvirt: gone"]
    assert master.keeper.hosts["hv1"].wanting is False


def test_a_host_that_is_not_heard_is_not_live(master, told):
    assert master.host()["live"] is True
    master.take(later=12.0)
    assert master.host()["live"] is True
    master.take(later=1.0)
    assert master.host()["live"] is False
    assert master.host()["problems"][0] == "it is not heard"
    assert master.host()["cpu_used"] == 0.5
    master.take(event(told.message("host/alive", figures={"cpus": 2})))
    assert (master.host()["live"], master.host()["problems"]) == (True, [])


def test_what_happens_to_a_guest_is_kept_and_its_record_says_when(master, told):
    master.take(event(told.message("guest/x/stopped", happened=[[UUID, 5000, "crashed"], [UUID, 4000, "<b>"]])))
    key = f"hv1/{UUID}"
    assert master.keeper.store.get("guests", key)["happened"] == 5000
    assert store.Reader(master.folder / "i.db").happened(UUID) == [("hv1", 5000, "crashed")]
    master.take(changed(told))
    assert master.keeper.store.get("guests", key)["happened"] == 5000
    master.keeper.store.close()
    master.begin()
    master.take(whole(told))
    assert master.keeper.store.get("guests", key)["happened"] == 5000


def test_what_is_told_late_of_a_guest_does_not_bring_it_back(master, told):
    gone = event(told.message(f"guest/{UUID}/undefined", gone={"guests": [UUID]}))
    master.take(gone, event(told.message("host/changed", happened=[[UUID, 5000, "undefined"]])))
    assert master.guests() == {}


def test_nothing_happens_later_than_now(master, told):
    before = time.time_ns() // 1_000_000
    master.take(event(told.message("guest/x/stopped", happened=[[UUID, 2**43, "crashed"]])))
    ((_, at, _),) = store.Reader(master.folder / "i.db").happened(UUID)
    assert before <= at <= time.time_ns() // 1_000_000
    assert master.keeper.store.get("guests", f"hv1/{UUID}")["happened"] == at


def test_of_guests_without_a_history_nothing_is_remembered(master, told, monkeypatch):
    monkeypatch.setattr(store, "_MOST_OF_HOST", 30)
    monkeypatch.setattr(store, "_SURPLUS", 10)
    other = voice("hv2")
    master.take(whole(other, nonce=master.keeper._nonce))
    master.take(event(other.message("host/alive", happened=[[OTHER, 1, "started"]]), "hv2"))
    for begin in range(0, 400, 20):
        rows = [[f"{begin + number:08x}{UUID[8:]}", 1000 + number, "started"] for number in range(20)]
        master.take(event(told.message("host/alive", happened=rows)))
    # What one tells without end takes no room of another's.
    assert 30 <= len([key for key in master.keeper._happened if key.startswith("hv1/")]) <= 40
    assert master.keeper._happened[f"hv2/{OTHER}"] == 1
    assert store.Reader(master.folder / "i.db").happened(OTHER) == [("hv2", 1, "started")]
    master.keeper._next["prune"] = 0.0
    master.take()
    assert master.keeper._happened == master.keeper.store.last()
    assert f"hv2/{OTHER}" in master.keeper._happened


@pytest.mark.parametrize(
    "happened",
    [{}, "x", [[UUID, 1]], [["../x", 1, "started"]], [[UUID, "1", "started"]], [[UUID, -1, "started"]], [None],
     [[UUID, 1, "started"]] * 201, [[UUID, 1, {}]]],
)  # fmt: skip
def test_what_is_no_history_is_malformed(master, told, happened):
    master.take(event(told.message("host/alive", happened=happened)))
    assert master.refused == {"malformed": 1}
    assert store.Reader(master.folder / "i.db").happened(UUID) == []


def test_events_of_the_runner_are_neither_taken_nor_counted(master, told):
    master.take({"tag": "hypervisor/fleet/2026/moved", "data": {"guest": "web"}})
    assert master.refused == {}
    assert master.keeper.store.all_keys("jobs") == set()


def test_a_host_is_told_to_be_evacuated(master, told):
    folder = master.folder / "cache/hypervisor-fleet/evacuated"
    folder.mkdir(parents=True)
    row = {"since": "2026", "user": "olga", "guests": {"u": {}}}
    (folder / "hv1.json").write_text(json.dumps(row))
    master.take()
    assert master.host()["evacuated"] == {"since": "2026", "user": "olga", "guests": 1}
    master.take(event(told.message("host/alive", figures={"cpus": 2})))
    assert master.host()["evacuated"]["user"] == "olga"
    assert master.host("hv2")["evacuated"] is None
    (folder / "hv1.json").unlink()
    master.take()
    assert (master.host()["evacuated"], master.host()["cpus"]) == (None, 2)


def test_after_a_restart_it_goes_on_and_asks(master, told):
    master.keeper.store.close()
    master.begin()
    master.take()
    assert master.asked()[0] == ["hv1", "hv2"]
    master.take(changed(told))
    assert master.guests() == {f"hv1/{UUID}": "paused"}


def test_a_host_that_goes_takes_its_guests_along(master, told):
    (master.folder / "hosts").write_text("hv2 hv2.example\n")
    master.take(later=5.0)
    assert master.guests() == {}
    assert master.keeper.store.all_keys("hosts") == {"hv2"}
    master.take(changed(told))
    assert master.refused == {"unknown host": 1}


def test_a_key_that_is_accepted_no_more_counts_no_more(master, told):
    (master.folder / "pki/minions/hv1").unlink()
    master.take(changed(told))
    assert master.refused == {"no key": 1}


def test_a_database_that_breaks_is_begun_anew(master, told, monkeypatch):
    real = store.Store.apply

    def broken(self, *args, **kwargs):
        monkeypatch.setattr(store.Store, "apply", real)
        raise store.sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(store.Store, "apply", broken)
    master.keeper.turn(lambda _wait: None)
    assert master.guests() == {}
    master.keeper.turn(lambda _wait: None)
    assert master.keeper.hosts["hv1"].wanting is True
    assert master.keeper.store.all_keys("hosts") == {"hv1", "hv2"}


def test_a_database_that_only_readers_find_damaged_is_begun_anew(master, told):
    """The engine has in its memory what a reader would have to read."""
    base = master.keeper.store
    base._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with base.path.open("r+b") as handle:
        handle.truncate(0)
        handle.write(b"x" * 20_000)
    assert base.get("guests", f"hv1/{UUID}") is not None
    master.keeper._next["examine"] = 0.0
    master.keeper.turn(lambda _wait: None)
    master.keeper.turn(lambda _wait: None)
    assert base.rebuilt == "file is not a database"
    assert base.all_keys("hosts") == {"hv1", "hv2"}
    base.examine()


def test_counts_and_life_are_written_down(master, told):
    master.take({"tag": "hypervisor/hv1/x", "data": None}, later=5.0)
    assert json.loads(store.refused(master.folder / "i.db")) == {"malformed": 1}
    assert float(master.keeper.store.meta("beat", "0")) == pytest.approx(time.time(), abs=30)


def line(**fields) -> str:
    return json.dumps({"time": "2026-01-01T00:00:00+00:00", **fields}) + "\n"


ASKED = {"event": "request", "id": "r1", "user": "otto", "function": "hypervisor.start", "hosts": ["hv1"],
         "guest": "web", "arguments": {"timeout": 5}, "left_out": []}  # fmt: skip


def test_jobs_come_from_the_trail(master):
    master.audit.write_text(line(**ASKED) + line(event="started", id="r1", job="2026", hosts=["hv1"]) + '{"ev')
    master.take()
    assert master.keeper.store.get("jobs", "2026") == {
        "jid": "2026", "user": "otto", "function": "hypervisor.start", "guest": "web", "kwarg": {"timeout": 5},
        "hosts": ["hv1"], "started": "2026-01-01T00:00:00+00:00", "outcomes": {},
    }  # fmt: skip
    master.answers["2026"] = {"hv1": {"return": "ERROR: there is no guest web\nTraceback (most recent call last):\n x"}}
    with master.audit.open("a") as handle:
        handle.write('ent": "login"}\n' + line(event="outcome", id="r1", job="2026", host="hv1", ok=False))
    master.take()
    outcome = {"hv1": {"success": False, "comment": "there is no guest web"}}
    assert master.keeper.store.get("jobs", "2026")["outcomes"] == outcome


def test_the_trail_may_be_rotated(tmp_path):
    path = tmp_path / "audit.log"
    path.write_text(line(**ASKED))
    found = jobs.Jobs(path, lambda _: {}, tmp_path / "none")
    assert found.look() == {}
    path.rename(tmp_path / "audit.log.1")
    path.write_text(line(event="started", id="r1", job="2026", hosts=["hv1"]))
    assert found.look()["2026"]["user"] == "otto"
    assert jobs.Jobs(path, lambda _: {}, tmp_path / "none").look()["2026"]["user"] == "otto"


def test_what_of_an_answer_is_told():
    reasons = [{"check": "cpu", "text": "the target has another processor", "more": 1}, "x"]
    assert jobs.told({"return": {"possible": False, "reasons": reasons, "secret": 1}}, True) == {
        "possible": False, "reasons": [{"check": "cpu", "text": "the target has another processor"}],
    }  # fmt: skip
    assert jobs.told({"return": {"state": "running"}}, True) == {}
    assert jobs.told({"return": "done"}, True) == {}
    assert jobs.told(None, False) == {}


def test_the_signed_text_is_the_same_on_both_sides():
    expected = KEYS["hv1"].sign(messages.signed_text("a/b", "{}"), padding.PKCS1v15(), hashes.SHA256())
    assert base64.b64decode(keeper_signed("hv1", "a/b", "{}")["signature"]) == expected

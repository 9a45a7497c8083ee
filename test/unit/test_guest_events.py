"""The engine on a hypervisor: what it tells, what it does when nobody hears it, and when libvirt is gone."""

from __future__ import annotations

import queue
import sys
import time
from typing import Any

import pytest
from hypervisor_harness import DOMAIN, UUID
from salt.exceptions import SaltReqTimeoutError

from _engines import guest_events
from _utils import hypervisor_host, hypervisor_xml, inventory_words

NETWORK = "<network><name>inner</name><uuid>u1</uuid><bridge name='virbr1'/></network>"


class Host:
    """A teller whose messages are caught."""

    def __init__(self, monkeypatch) -> None:
        modules = {"inventory_words": inventory_words, "hypervisor_xml": hypervisor_xml}
        utils = {
            f"{name}.{key}": getattr(module, key)
            for name, module in modules.items() for key in dir(module) if not key.startswith("_")
        }  # fmt: skip
        utils |= {
            "hypervisor_host.memory": hypervisor_host.memory,
            "hypervisor_host.certificates": lambda _: [],
            "hypervisor_host.reboot": lambda: {"pending": False, "why": []},
            "network_tool.pending": lambda: {"pending": False},
        }
        monkeypatch.setattr(guest_events, "__utils__", utils, raising=False)
        monkeypatch.setattr(guest_events, "__opts__", {"id": "hv1", "grains": {}}, raising=False)
        self.sent: list[Any] = []
        self.heard = True
        self.teller = guest_events.Teller(self, self.send, utils, inventory_words.figures())

    def message(self, about, **said):
        return about, said

    def send(self, about, said):
        if self.heard:
            self.sent.append((about, said))
        return self.heard

    def told(self):
        found, self.sent = self.sent, []
        return found


@pytest.fixture(name="host")
def a_host(monkeypatch):
    return Host(monkeypatch)


def facts(state=1):
    return {"xml": DOMAIN, "state": state, "persistent": True, "autostart": False, "addresses": []}


def everything(**guests):
    rows = guests.get("guests", {UUID: facts()})
    found = {"guest": rows, "pool": {}, "network": {"u1": {"xml": NETWORK, "active": True}}}
    return {"kind": "all", "found": found, "versions": {"libvirt": "9.0.0", "qemu": "7.2.0"}}


def one(what, found, key=UUID, kind="guest"):
    return {"kind": kind, "key": key, "what": [what], "facts": found}


def test_everything_first_then_what_differs(host):
    host.teller.take(everything())
    ((about, said),) = host.told()
    assert (about, said["part"]) == ("host/all", [1, 1])
    assert said["set"]["guests"][UUID]["state"] == "running"
    assert said["figures"]["libvirt"] == "9.0.0"
    host.teller.take(one("suspended", facts(3)))
    host.teller.take(one("balloon_change", facts(3)))
    ((about, said),) = host.told()
    assert (about, said["set"]["guests"][UUID]["state"]) == (f"guest/{UUID}/suspended", "paused")
    host.teller.take(one("undefined", None))
    assert host.told() == [(f"guest/{UUID}/undefined", {"gone": {"guests": [UUID]}})]


def test_what_happens_to_a_guest_is_told_with_its_record_or_without_and_again_where_nobody_heard(host):
    host.teller.take(everything())
    host.told()
    line = one("stopped", facts(5)) | {"happened": [[1000, "shut_down"]]}
    host.teller.take(line)
    ((about, said),) = host.told()
    assert (about, said["happened"]) == (f"guest/{UUID}/stopped", [(UUID, 1000, "shut_down")])
    # A reboot changes nothing of the record.
    host.heard = False
    host.teller.take(one("reboot", facts(5)) | {"happened": [[2000, "rebooted"]]})
    host.heard = True
    host.teller.deaf = False
    host.teller.take(one("reboot", facts(5)) | {"happened": [[3000, "rebooted"]]})
    ((_, said),) = host.told()
    assert said["happened"] == [(UUID, 2000, "rebooted"), (UUID, 3000, "rebooted")]
    assert "set" not in said
    for number in range(300):
        host.teller.happened.append((UUID, number, "rebooted"))
    host.teller.take(one("reboot", facts(5)) | {"happened": [[4000, "rebooted"]]})
    ((_, said),) = host.told()
    assert len(said["happened"]) == 200


def test_a_network_is_known_by_its_name_also_when_it_is_gone(host):
    host.teller.take(everything())
    host.told()
    host.teller.take(one("stopped", {"xml": NETWORK, "active": False}, "u1", "network"))
    host.teller.take(one("undefined", None, "u1", "network"))
    assert [(about, said.get("gone")) for about, said in host.told()] == [
        ("network/inner/stopped", None), ("network/inner/undefined", {"networks": ["inner"]}),
    ]  # fmt: skip


def test_reading_everything_again_tells_only_what_no_event_told(host):
    host.teller.take(everything())
    host.told()
    host.teller.take(everything())
    assert host.told() == []
    host.teller.take(everything(guests={}))
    assert host.told() == [(f"guest/{UUID}/gone", {"gone": {"guests": [UUID]}})]
    many = {f"{number:08x}{UUID[8:]}": facts() for number in range(20)}
    host.teller.take(everything(guests=many))
    ((about, said),) = host.told()
    assert (about, len(said["set"]["guests"])) == ("host/changed", 20)


def test_the_master_gets_everything_when_it_asks_and_its_word_back(host):
    host.teller.take(everything())
    host.told()
    host.teller.nonce = "word"
    host.teller.take(everything())
    host.teller.take(everything())
    assert [(about, said["nonce"]) for about, said in host.told()] == [("host/all", "word")]


def test_what_did_not_arrive_is_told_with_everything(host):
    host.teller.take(everything())
    host.told()
    host.heard = False
    host.teller.take(one("suspended", facts(3)))
    host.teller.take(one("resumed", facts(1)))
    host.teller.take(one("stopped", facts(5)))
    host.teller.alive()
    assert host.told() == []
    assert host.teller.deaf
    host.heard = True
    host.teller.alive()
    ((about, said),) = host.told()
    assert (about, said["set"]["guests"][UUID]["state"]) == ("host/all", "shut off")
    host.teller.alive()
    assert [about for about, _ in host.told()] == ["host/alive"]


def test_figures_that_move_are_told(host):
    found = {"cpus": 2, "cpu_used": 0.1, "memory_mib": 1000, "memory_used_mib": 100, "load": 0.1}
    host.teller._figures = type("Figures", (), {"read": staticmethod(lambda _: dict(found))})
    host.teller.take(everything())
    host.told()
    host.teller.look()
    assert host.told() == []
    found["memory_used_mib"] = 200
    host.teller.look()
    host.teller.look()
    assert [(about, said["figures"]["memory_used_mib"]) for about, said in host.told()] == [("host/alive", 200)]


CHILD = """
import sys
print('{"kind": "all", "found": {"guest": {}, "pool": {}, "network": {}}, "versions": {"libvirt": "9"}}', flush=True)
for line in sys.stdin:
    print('{"kind": "idle"}', flush=True)
    if line == "all\\n":
        print("the connection to libvirt was lost", file=sys.stderr)
        sys.exit(1)
"""


def turn(course, until, timeout=20.0):
    """Let a course work until something is so."""
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline
        course._due(time.monotonic())
        try:
            course._take(*course.lines.get(timeout=0.05))
        except queue.Empty:
            continue


def test_a_child_that_ends_is_started_again_and_the_reason_is_told(host):
    course = guest_events.Course(host.teller, [sys.executable, "-c", CHILD], 0.1, 3600)
    turn(course, lambda: not host.teller.libvirt)
    first: Any = course._child
    first.ask()
    turn(course, lambda: course._child is None)
    assert host.teller.libvirt == "the connection to libvirt was lost"
    assert host.told()[-1][1]["figures"]["problems"] == ["libvirt: the connection to libvirt was lost"]
    turn(course, lambda: course._child is not None and not host.teller.libvirt)
    second: Any = course._child
    assert second is not first
    second.process.stdin.close()
    second.process.wait(10)
    for child in (first, second):
        for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
            stream.close()


def test_a_program_that_is_not_there_is_a_problem_of_the_host(host):
    course = guest_events.Course(host.teller, ["/nonexistent/python3"], 0.1, 3600)
    course._due(time.monotonic())
    assert "No such file" in host.teller.libvirt
    assert course._child is None
    assert course._start > time.monotonic()


def test_a_child_that_is_killed_in_the_midst_of_a_line_ends_nothing_else(host):
    program = "import os; os.write(1, b'[1, 2'); os._exit(9)"
    course = guest_events.Course(host.teller, [sys.executable, "-c", program], 60, 3600)
    course._due(time.monotonic())
    child: Any = course._child
    turn(course, lambda: course._child is None)
    assert host.teller.libvirt == "it ended"
    for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
        stream.close()


def test_a_silent_child_is_ended(host):
    course = guest_events.Course(host.teller, [sys.executable, "-c", "import time; time.sleep(600)"], 60, 3600)
    course._due(time.monotonic())
    child: Any = course._child
    course._heard = time.monotonic() - 31
    course._due(time.monotonic())
    turn(course, lambda: course._child is None)
    assert child.process.returncode == -9
    for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
        stream.close()


def test_a_question_of_the_master_is_answered_without_libvirt_too(host):
    course = guest_events.Course(host.teller, ["/nonexistent/python3"], 60, 3600)
    course._take(None, "word")
    # That nothing could be read does not mean that there is nothing.
    ((about, said),) = host.told()
    assert (about, said["nonce"], "part" in said) == ("host/alive", "word", False)


@pytest.mark.parametrize(("takes", "wait"), [(0.0, 1.0), (0.4, 0.6), (3.0, 0.01)])
def test_who_did_not_hear_is_told_again_a_second_after_the_last_try_began(monkeypatch, host, takes, wait):
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    course = guest_events.Course(host.teller, ["/nonexistent/python3"], 60, 3600)
    course._start = 9999.0  # no child is looked for meanwhile

    def deaf(*_):
        clock[0] += takes
        return False

    host.teller._send = deaf
    course._due(clock[0])
    assert host.teller.deaf
    assert course._wait(clock[0]) == pytest.approx(wait)


@pytest.mark.parametrize("role", ["master", "minion"])
def test_it_is_for_minions(monkeypatch, role):
    monkeypatch.setattr(guest_events, "__opts__", {"__role": role}, raising=False)
    assert (guest_events.__virtual__() is True) == (role == "minion")


class Master:
    """Answers after a while on a clock of its own, or not at all.

    Attributes:
        takes: seconds until it answers; None if it does not.
        got: what arrived: tag, data, command and sender.
        given: the seconds that each message was given.
        closed: how many connections were given up.
    """

    def __init__(self, monkeypatch):
        self.takes: float | None = 0.01
        self.now = 1000.0
        self.got: list[Any] = []
        self.given: list[float] = []
        self.closed = 0
        monkeypatch.setattr("salt.minion.resolve_dns", lambda opts, fallback: {"master_uri": "tcp://x"})
        monkeypatch.setattr("salt.channel.client.ReqChannel.factory", lambda opts: self)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def send(self, load, tries, timeout):
        assert tries == 1
        self.given.append(timeout)
        if self.takes is None or self.takes > timeout:
            raise SaltReqTimeoutError("no answer")
        self.now += self.takes
        self.got.append((load["tag"], load["data"], load["cmd"], load["id"]))

    def close(self):
        self.closed += 1


def test_the_line_to_the_master_knows_what_arrived(monkeypatch):
    master = Master(monkeypatch)
    line = guest_events.Line({"id": "hv1", "master": "x"})
    assert line.send("a/b", {"body": "x"}) is True
    assert master.got == [("a/b", {"body": "x"}, "_minion_event", "hv1")]
    master.takes = None
    assert line.send("a/b", {}) is False
    assert master.closed == 1
    master.takes = 0.01
    assert line.send("a/b", {}) is True


def test_a_lost_message_is_found_out_soon_and_a_slow_master_is_waited_for(monkeypatch):
    master = Master(monkeypatch)
    line = guest_events.Line({"id": "hv1", "master": "x"})
    for takes in (0.01, None, 0.01, None, None, None, None, 0.01, 0.9, 3.0, 3.0, 0.01, 0.01):
        master.takes = takes
        line.send("a/b", {})
    assert [round(one, 2) for one in master.given] == [1, 1, 2, 1, 2, 4, 5, 5, 1, 3.6, 5, 5, 1]
    assert master.closed == 5

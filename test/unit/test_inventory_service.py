"""The service over real sockets: whose token is good, what a login sees, and the stream of changes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import os
import socket
import threading
import time
from typing import Any

import pytest
from hypervisor_inventory import access, service, store, tokens, view

ANNA, VERA, GONE = "a" * 40, "b" * 40, "c" * 40
EXTERNAL = {
    "anna": [{"L@hv1,hv2": [r"^hypervisor\.start$", r"^hypervisor\.guests$"]}],
    "helpdesk%": [{"L@hv1": [r"^hypervisor\.guests$"]}],
}
JOB = {"jid": "1", "hosts": ["hv1", "hv2"], "outcomes": {"hv1": {"success": True}, "hv2": {"success": False}}}


def host(name):
    return {"host": name, "name": name, "live": True, "problems": []}


def guest(on, name):
    return {"host": on, "name": name, "state": "running"}


class Served:
    """A service in a thread, its database, and salt-api's answers for tokens."""

    def __init__(self, folder) -> None:
        self.base = store.Store(folder / "i.db")
        self.logins = {ANNA: ("anna", []), VERA: ("vera", ["helpdesk"])}
        self.base.apply({"hosts": {"hv1": host("hv1"), "hv2": host("hv2")}})
        self.base.apply({"guests": {"hv1/a": guest("hv1", "a"), "hv2/b": guest("hv2", "b")}, "jobs": {"1": JOB}})
        self.beat()
        api = folder / "tokens.sock"
        tokens.serve(api, "root", self.who)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(folder / "i.db", api), daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def who(self, token):
        if token not in self.logins:
            return None
        user, groups = self.logins[token]
        return {"user": user, "functions": access.functions(EXTERNAL, user, groups)}

    def beat(self, age: float = 0.0) -> None:
        self.base.note({"beat": str(time.time() - age)})

    def serve(self, database, api) -> None:
        asyncio.set_event_loop(self.loop)
        self.service = service.Service(database, api)
        server = service.httpserver.HTTPServer(service.application(self.service))
        self.listener.setblocking(False)
        server.add_sockets([self.listener])
        task = self.loop.create_task(self.service.work())
        self.loop.call_soon(self.ready.set)
        with contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(task)
        server.stop()
        for stream in list(self.service.streams):
            stream.end()
        self.loop.run_until_complete(asyncio.sleep(0.1))
        self.service.reader.close()
        self.loop.run_until_complete(server.close_all_connections())
        self.loop.close()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(lambda: [one.cancel() for one in asyncio.all_tasks(self.loop)])
        self.thread.join(10)
        self.base.close()

    def ask(self, path, token="", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"X-Auth-Token": token} if token else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=sent)
        answer = connection.getresponse()
        if answer.getheader("Content-Type") != "text/event-stream":
            body = answer.read()
            connection.close()
            return answer, body
        return answer, connection

    def seen(self, token):
        answer, body = self.ask("/inventory/snapshot", token)
        assert answer.status == 200
        return json.loads(body)


@pytest.fixture(name="served")
def a_service(tmp_path):
    found = Served(tmp_path)
    yield found
    found.end()


def lines(answer, until="data: "):
    """Read a stream up to the next line of a kind, and return it with what came before."""
    found = []
    while True:
        found.append(answer.readline().decode().rstrip("\n"))
        if found[-1].startswith(until):
            return found


def test_a_snapshot_has_what_a_role_is_good_for(served):
    everything = served.seen(ANNA)
    assert set(everything) == {"revision", "now", "user", "hosts", "guests", "pools", "networks", "jobs"}
    assert everything["user"] == {
        "name": "anna",
        "functions": {one: ["hypervisor.guests", "hypervisor.start"] for one in ("hv1", "hv2")},
    }
    assert set(everything["hosts"]) == {"hv1", "hv2"}
    assert everything["revision"] == served.base.revision
    less = served.seen(VERA)
    assert (set(less["hosts"]), set(less["guests"])) == ({"hv1"}, {"hv1/a"})
    assert less["jobs"]["1"] == {"jid": "1", "hosts": ["hv1"], "outcomes": {"hv1": {"success": True}}}
    assert "hv2" not in json.dumps(less)


@pytest.mark.parametrize("token", ["", GONE, "x", "a" * 5000, "../../etc/passwd", "a b"])
@pytest.mark.parametrize("path", ["/inventory/snapshot", "/inventory/stream"])
def test_nobody_else_sees_anything(served, token, path):
    answer, body = served.ask(path, token)
    assert answer.status == 401
    assert json.loads(body) == {"error": "log in first", "status": 401}


def test_a_token_is_good_in_one_header_alone(served):
    answer, _ = served.ask(f"/inventory/snapshot?token={ANNA}", "", Cookie=f"session_id={ANNA}", Authorization=ANNA)
    assert answer.status == 401
    assert not {name.lower() for name, _ in answer.getheaders()} & {"set-cookie", "access-control-allow-origin"}


@pytest.mark.parametrize("path", ["/", "/inventory", "/inventory/snapshot/x", "/inventory/../etc/passwd", "/events"])
def test_other_paths_are_not_there(served, path):
    assert served.ask(path, ANNA)[0].status == 404


HISTORY = "7e15f46f-a06d-4d56-a2f0-7d2e1103df28"


def test_what_has_happened_to_a_guest_is_told_of_the_hosts_that_may_be_seen(served):
    served.base.happen("hv1", [(HISTORY, 1_000, "started"), (HISTORY, 61_500, "left"), (HISTORY, 61_900, "undefined")])
    there = [(HISTORY, 61_600, "arrived"), (HISTORY, 61_700, "defined"), (HISTORY, 99_000, "crashed")]
    served.base.happen("hv2", there)
    answer, body = served.ask(f"/inventory/events/{HISTORY}", ANNA)
    assert answer.status == 200
    assert [(row["host"], row["what"]) for row in json.loads(body)["events"]] == [
        ("hv2", "crashed"), ("hv2", "arrived"), ("hv1", "left"), ("hv1", "started"),
    ]  # fmt: skip
    assert json.loads(body)["events"][2]["at"] == "1970-01-01T00:01:01.500+00:00"
    _, body = served.ask(f"/inventory/events/{HISTORY}", VERA)
    assert {row["host"] for row in json.loads(body)["events"]} == {"hv1"}
    assert served.ask(f"/inventory/events/{HISTORY}")[0].status == 401
    for path in ("x", HISTORY.upper(), f"{HISTORY}/..", f"{HISTORY}'--"):
        assert served.ask(f"/inventory/events/{path}", ANNA)[0].status == 404


def test_who_started_an_act_sees_it_in_snapshot_and_stream_and_others_their_part(served):
    job: dict[str, Any] = {
        "jid": "2", "user": "vera", "function": "fleet.evacuate", "guest": None, "kwarg": {}, "hosts": ["hv2"],
        "outcomes": {}, "progress": [], "outcome": None,
    }  # fmt: skip
    answer, stream = served.ask("/inventory/stream", VERA, Last_Event_ID=str(served.base.revision))
    served.base.apply({"jobs": {"2": job, "3": {**job, "jid": "3", "user": "root"}}})
    told = json.loads(lines(answer)[-1].removeprefix("data: "))
    assert set(told["set"]["jobs"]) == {"2"}
    stream.close()
    assert set(served.seen(VERA)["jobs"]) == {"1", "2"}
    assert set(served.seen(ANNA)["jobs"]) == {"1", "2", "3"}


def test_who_has_a_snapshot_gets_nothing_new(served):
    first, _ = served.ask("/inventory/snapshot", ANNA)
    tag = first.getheader("ETag")
    again, body = served.ask("/inventory/snapshot", ANNA, If_None_Match=tag)
    assert (again.status, body) == (304, b"")
    assert served.ask("/inventory/snapshot", VERA, If_None_Match=tag)[0].status == 200
    served.base.apply({"guests": {"hv1/a": None}})
    deadline = time.monotonic() + 10
    while served.ask("/inventory/snapshot", ANNA, If_None_Match=tag)[0].status == 304:
        assert time.monotonic() < deadline


def test_it_is_compressed_where_that_is_understood(served):
    served.base.apply({"guests": {f"hv1/{number}": guest("hv1", "x" * 50) for number in range(100)}})
    deadline = time.monotonic() + 10
    while True:
        answer, body = served.ask("/inventory/snapshot", ANNA, Accept_Encoding="gzip, br")
        if len(json.loads(gzip.decompress(body) if answer.getheader("Content-Encoding") else body)["guests"]) > 100:
            break
        assert time.monotonic() < deadline
    assert answer.getheader("Content-Encoding") == "gzip"
    assert len(body) < 3000


def test_the_stream_tells_changes_and_nobody_elses(served):
    answer, connection = served.ask("/inventory/stream", VERA)
    assert answer.getheader("Content-Type") == "text/event-stream"
    assert lines(answer, ": from")
    served.base.apply({"guests": {"hv2/b": None, "hv2/c": guest("hv2", "c")}})
    served.base.apply({"guests": {"hv1/a": guest("hv1", "a") | {"state": "paused"}}})
    found = [line for line in lines(answer) if line and not line.startswith(":")]
    revision = served.base.revision
    assert found[:2] == [f"id: {revision}", "event: change"]
    change = json.loads(found[2].removeprefix("data: "))
    assert change == {
        "revision": revision, "set": {"guests": {"hv1/a": guest("hv1", "a") | {"state": "paused"}}}, "gone": {},
    }  # fmt: skip
    served.base.apply({"guests": {"hv1/a": None}})
    assert json.loads(lines(answer)[-1].removeprefix("data: "))["gone"] == {"guests": ["hv1/a"]}
    connection.close()


def test_what_was_missed_comes_first(served):
    known = served.seen(ANNA)["revision"]
    served.base.apply({"guests": {"hv1/a": None}})
    served.base.apply({"guests": {"hv1/d": guest("hv1", "d")}})
    deadline = time.monotonic() + 10
    while served.seen(ANNA)["revision"] == known:
        assert time.monotonic() < deadline
    while served.seen(ANNA)["revision"] != served.base.revision:
        assert time.monotonic() < deadline
    answer, connection = served.ask("/inventory/stream", ANNA, Last_Event_ID=str(known))
    change = json.loads(lines(answer)[-1].removeprefix("data: "))
    assert change["set"] == {"guests": {"hv1/d": guest("hv1", "d")}}
    assert change["gone"] == {"guests": ["hv1/a"]}
    connection.close()


@pytest.mark.parametrize("known", ["1", "x", "-5", "99999999999999999999", "9" * 16, "\u0661"])
def test_who_missed_too_much_begins_anew(served, known):
    answer, connection = served.ask("/inventory/stream", ANNA, Last_Event_ID=known.encode())
    assert "event: resync" in lines(answer)
    connection.close()


def test_another_database_makes_everybody_begin_anew(served):
    answer, connection = served.ask("/inventory/stream", ANNA)
    lines(answer, ": from")
    served.base.begin_anew("test")
    served.beat()
    assert "event: resync" in lines(answer)
    connection.close()


def test_a_stream_ends_with_its_login(served, monkeypatch):
    monkeypatch.setattr(service, "_KEEPALIVE", 0.2)
    monkeypatch.setattr(service, "_KNOWN", 0.1)
    answer, connection = served.ask("/inventory/stream", ANNA)
    assert lines(answer, ": alive")
    del served.logins[ANNA]
    assert set(answer.read().decode().split("\n")) <= {": alive", ""}
    connection.close()


def test_no_host_is_live_while_the_engine_is_dead(served):
    served.beat(age=100)
    deadline = time.monotonic() + 10
    while served.seen(ANNA)["hosts"]["hv1"]["live"]:
        assert time.monotonic() < deadline
    assert "does not work" in served.seen(ANNA)["hosts"]["hv1"]["problems"][0]
    served.beat()
    while not served.seen(ANNA)["hosts"]["hv1"]["live"]:
        assert time.monotonic() < deadline


def test_nothing_is_served_before_there_is_a_database_or_without_salt_api(tmp_path):
    async def both():
        none = service.Service(tmp_path / "none.db", tmp_path / "none.sock")
        none.look()
        assert not none.ready
        with pytest.raises(OSError, match=r"none\.sock|No such file"):
            await none.login(ANNA)

    asyncio.run(both())


def test_a_client_that_does_not_read_is_let_go():
    async def flood():
        stream = service.Stream(view.Login.of("anna", {}), ANNA)
        for number in range(service._MOST_WAITING + 1):
            assert not stream.ended
            stream.put(view.event("change", number, {}))
        assert stream.ended
        for number in range(10):
            stream.put(view.event("change", number, {}))
        assert len(stream.waiting) == service._MOST_WAITING + 1

    asyncio.run(flood())


def test_systemd_is_told(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        service.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_functions_of_the_runner_stand_with_their_hosts():
    external = {"otto": [{"L@hv1": [r"^hypervisor\.start$"]}, {"@runner": [r"^fleet\.migrate$"]}]}
    fleet = {"users": {"otto": {"fleet.migrate": ["hv1", "hv2"]}}, "groups": {"staff": {"fleet.create": ["hv3"]}}}
    assert access.functions(external, "otto", ["staff"], fleet) == {
        "hv1": ["fleet.migrate", "hypervisor.start"], "hv2": ["fleet.migrate"], "hv3": ["fleet.create"],
    }  # fmt: skip
    assert access.functions(external, "otto", []) == {"hv1": ["hypervisor.start"]}


def test_only_named_users_may_ask_for_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens._Server, "users", lambda _: frozenset({os.geteuid() + 1}))
    tokens.serve(tmp_path / "t.sock", "nobody", lambda _: {"user": "x", "functions": {}})
    with pytest.raises(OSError, match="not answered"):
        asyncio.run(tokens.ask(tmp_path / "t.sock", ANNA))


def test_who_sees_a_thousand_hosts_is_known(tmp_path):
    functions = {f"host{number:04d}": ["hypervisor.guests"] * 20 for number in range(1000)}
    tokens.serve(tmp_path / "t.sock", "root", lambda _: {"user": "anna", "functions": functions})
    found = asyncio.run(tokens.ask(tmp_path / "t.sock", ANNA))
    assert found == {"user": "anna", "functions": functions}


def test_no_character_of_a_name_ends_an_event():
    said = view.event("change", 1, {"name": "a\n\ndata: x\r\u2028"})
    assert said.count(b"\n") == 4
    assert b"\r" not in said

"""The door for operators: only one shape of request gets through, whatever Salt itself would take."""

from __future__ import annotations

import json
import stat
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cherrypy
import master_code
import portend
import pytest

door = master_code.load("netapi", "hypervisor_api")
FUNCTIONS = frozenset({"hypervisor.guests", "hypervisor.start"})
READS = frozenset({"hypervisor.guests"})
GOOD: dict[str, Any] = {"client": "local_async", "tgt": "hv1", "fun": "hypervisor.start", "arg": ["web"]}


def test_a_good_request_has_one_form():
    wanted = {
        "client": "local_async", "tgt": ["hv1"], "tgt_type": "list", "fun": "hypervisor.start", "arg": ["web"],
        "kwarg": {},
    }  # fmt: skip
    assert door.judged(GOOD, FUNCTIONS, READS) == wanted
    assert door.judged([GOOD], FUNCTIONS, READS) == wanted
    many = {**GOOD, "tgt": ["hv1", "hv2.example.org"], "kwarg": {"name": "a=b"}, "arg": [1, True, None, 1.5]}
    assert door.judged(many, FUNCTIONS, READS) == {
        **wanted,
        "tgt": many["tgt"],
        "kwarg": many["kwarg"],
        "arg": many["arg"],
    }


RUNNERS = frozenset({"fleet.migrate"})
FLEET: dict[str, Any] = {"client": "runner_async", "fun": "fleet.migrate", "kwarg": {"name": "web", "target": "hv2"}}
TABLE = {"users": {"alice": {"fleet.migrate": ["hv1", "hv2"]}}, "groups": {"staff": {"fleet.migrate": ["hv3"]}}}


def test_a_good_request_to_the_runner():
    assert door.judged(FLEET, FUNCTIONS, READS, RUNNERS) == FLEET


@pytest.mark.parametrize(
    "over",
    [
        {"fun": "manage.up"}, {"fun": "fleet.hosts"}, {"fun": ["fleet.migrate"]}, {"fun": "hypervisor.start"},
        {"tgt": "hv1"}, {"arg": ["web"]}, {"arg": []}, {"tgt_type": "list"}, {"client": "runner"},
        {"client": "local_async"}, {"client": "wheel_async"},
        {"kwarg": {"__user__": "root"}}, {"kwarg": {"_caller": "root"}}, {"kwarg": ["web"]},
        {"kwarg": {"target": "*"}}, {"kwarg": {"target": ["hv1"]}}, {"kwarg": {"host": "hv1,hv2"}},
        {"username": "root"}, {"token": "ab"}, {"key": "x"}, {"user": "root"}, {"jid": "1"}, {"timeout": 9},
    ],
)  # fmt: skip
def test_what_the_runner_never_sees(over):
    with pytest.raises(door.RefusedError):
        door.judged({**FLEET, **over}, FUNCTIONS, READS, RUNNERS)
    with pytest.raises(door.RefusedError):
        door.judged(FLEET, FUNCTIONS, READS)


def test_whom_the_runner_works_for():
    further = {**FLEET, "kwarg": {"host": "hv3", "target": "hv9"}}
    chosen = {**FLEET, "kwarg": {"name": "web", "target": None}}
    assert door.permitted(FLEET, "alice", [], TABLE)
    assert door.permitted(chosen, "alice", [], TABLE)
    assert door.permitted(chosen, "bob", ["staff"], TABLE)
    assert not door.permitted(FLEET, "bob", ["staff"], TABLE)
    assert not door.permitted(further, "alice", ["staff"], TABLE)
    assert not door.permitted({**FLEET, "fun": "fleet.create"}, "alice", ["staff"], TABLE)
    assert not door.permitted({**chosen, "fun": "fleet.create"}, "alice", ["staff"], TABLE)
    assert not door.permitted(chosen, "eve", [], TABLE)


HOSTILE: dict[str, Any] = {
    "no mapping": "x",
    "nothing": None,
    "two at once": [GOOD, GOOD],
    "none": [],
    "waiting for what changes something": {**GOOD, "client": "local"},
    "another client": {**GOOD, "client": "runner"},
    "wheel": {**GOOD, "client": "wheel"},
    "ssh": {**GOOD, "client": "ssh"},
    "client of another type": {**GOOD, "client": ["local"]},
    # Salt allows this list since it allows the first of it.
    "a list of functions": {**GOOD, "fun": ["hypervisor.start", "cmd.run"], "arg": [["web"], ["id"]]},
    "a list that everybody may call": {**GOOD, "fun": ["saltutil.find_job", "cmd.run"]},
    "find_job": {**GOOD, "fun": "saltutil.find_job"},
    "a function nobody has": {**GOOD, "fun": "hypervisor.delete"},
    "a longer name": {**GOOD, "fun": "hypervisor.start_all"},
    "a glob": {**GOOD, "tgt": "*"},
    "a glob in a list": {**GOOD, "tgt": ["hv1", "hv*"]},
    "a compound": {**GOOD, "tgt": "hv1 or hv2"},
    "a list in a text": {**GOOD, "tgt": "hv1,hv2"},
    "no hosts": {**GOOD, "tgt": []},
    "hosts of another type": {**GOOD, "tgt": {"hv1": 1}},
    "a line break behind a host": {**GOOD, "tgt": "hv1\n"},
    "by grains": {**GOOD, "tgt": "os:Debian", "tgt_type": "grain"},
    "tgt_type": {**GOOD, "tgt_type": "list"},
    "a returner": {**GOOD, "ret": "local"},
    "a job id": {**GOOD, "jid": "20260101000000000000"},
    "executors": {**GOOD, "module_executors": ["docker"]},
    "metadata": {**GOOD, "metadata": {"a": 1}},
    "a login inside": {**GOOD, "username": "root", "password": "x", "eauth": "pam"},
    "a token inside": {**GOOD, "token": "ab"},
    "raw_shell": {**GOOD, "raw_shell": True},
    "a timeout": {**GOOD, "timeout": 100000},
    "arguments that are no list": {**GOOD, "arg": "web"},
    "a mapping as argument": {**GOOD, "arg": [{"__kwarg__": True, "name": "web"}]},
    "a list as argument": {**GOOD, "arg": [["web"]]},
    "a name in a text": {**GOOD, "arg": ["name=web"]},
    "a name of Salt's own in a text": {**GOOD, "arg": ["web", "__pub_user=root"]},
    "a name behind blanks": {**GOOD, "arg": [" \t__pub_user=root"]},
    "too many arguments": {**GOOD, "arg": ["x"] * 17},
    "names of Salt's own": {**GOOD, "kwarg": {"__pub_user": "root"}},
    "a marker of Salt's own": {**GOOD, "kwarg": {"__kwarg__": True}},
    "names that are none": {**GOOD, "kwarg": {"Name": "web"}},
    "named arguments that are no mapping": {**GOOD, "kwarg": ["web"]},
}  # fmt: skip


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=list(HOSTILE))
def test_what_salt_would_take_and_nobody_may_send(request_):
    with pytest.raises(door.RefusedError) as caught:
        door.judged(request_, FUNCTIONS, READS)
    # Nothing of the request comes back.
    assert "web" not in str(caught.value)
    assert "__pub" not in str(caught.value)


def test_a_login_is_name_and_password_alone():
    assert door.login({"username": "alice", "password": "x"}) == ("alice", "x")
    refused: list[Any] = [
        None, [], "x", {"username": "alice"}, {"username": "alice", "password": 1}, {"username": ["a"], "password": ""},
        {"username": "alice", "password": "x", "eauth": "pam"},
        {"username": "alice", "password": "x", "token_expire": 10**9},
    ]  # fmt: skip
    for bad in refused:
        with pytest.raises(door.RefusedError):
            door.login(bad)


# ---- the same behind a socket, with Salt's part replaced ----


class Api:
    """What answers on a port of loopback, and what it writes down."""

    def __init__(self, port: int, trail: Path) -> None:
        self.port = port
        self.trail = trail

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trail.read_text().splitlines()]

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, sent, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - the address is ours
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()


# What has reached Salt.
SEEN: list[dict[str, Any]] = []


class Resolver:
    def __init__(self, opts: Any) -> None:
        del opts

    def mk_token(self, creds: dict[str, Any]) -> dict[str, Any]:
        if creds != {"username": "alice", "password": "sealed:good", "eauth": "hypervisor"}:
            return {}
        return {"token": "abc123", "start": 0.0, "expire": 600.0, "name": "alice", "eauth": "hypervisor"}


class Client:
    def __init__(self, opts: Any) -> None:
        del opts

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _is_master_running(self) -> bool:
        return True

    def run(self, chunk: dict[str, Any]) -> Any:
        SEEN.append(chunk)
        if chunk["client"] == "runner_async":
            return {"jid": "20260101000000000001", "tag": "salt/run/20260101000000000001"}
        if chunk["tgt"] == ["hv2"]:
            raise door.salt.exceptions.AuthorizationError("no")
        if chunk["client"] == "local_async":
            return {"jid": "20260101000000000000", "minions": chunk["tgt"]}
        return {"hv1": True}


# What hosts have answered, by job.
ANSWERS: dict[str, dict[str, Any]] = {}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The door with a Salt that accepts alice and notes what reaches it."""
    port = portend.find_available_local_port()
    settings = {
        "host": "127.0.0.1", "port": port, "thread_pool": 4, "queue_size": 5, "max_body": 4096,
        "functions": sorted(FUNCTIONS), "reads": sorted(READS), "runners": sorted(RUNNERS),
        "fleet": {"users": TABLE["users"], "groups": {}},
        "audit": str(tmp_path_factory.mktemp("log") / "audit.log"),
    }  # fmt: skip
    patch = pytest.MonkeyPatch()
    served = Api(port, Path(str(settings["audit"])))
    local = SimpleNamespace(returners={"local_cache.get_jid": lambda job: ANSWERS.get(job, {})})
    patch.setattr(door.salt.client, "LocalClient", lambda mopts: local)

    patch.setattr(door.app.salt.auth, "Resolver", Resolver)
    patch.setattr(door.app.salt.netapi, "NetapiClient", Client)
    patch.setattr(door.salt.loader, "auth", lambda _: {"hypervisor.seal": lambda _user, password: f"sealed:{password}"})
    patch.setattr(door.app.LowDataAdapter, "_cp_config", {**door.app.LowDataAdapter._cp_config})
    patch.setattr(
        door,
        "__opts__",
        {
            "hypervisor_api": settings,
            "external_auth": {"hypervisor": {"alice": []}},
            "id": "here_master",
            "master_job_cache": "local_cache",
        },
        raising=False,
    )
    thread = threading.Thread(target=door.start, daemon=True)
    # Signals are the main thread's.
    patch.setattr(cherrypy.engine.signals, "subscribe", lambda: None)
    thread.start()
    portend.occupied("127.0.0.1", port, timeout=20)
    deadline = time.monotonic() + 20
    while cherrypy.engine.state != cherrypy.engine.states.STARTED and time.monotonic() < deadline:
        time.sleep(0.05)
    yield served
    cherrypy.engine.exit()
    thread.join(20)
    patch.undo()


@pytest.fixture(scope="module")
def token(api):
    status, headers, body = api.post("/login", {"username": "alice", "password": "good"})
    assert status == 200, body
    assert "Set-Cookie" not in headers
    return json.loads(body)["return"][0]["token"]


def test_run_passes_one_form_on_with_the_token(api, token):
    status, headers, body = api.post("/run", GOOD, X_Auth_Token=token)
    assert (status, json.loads(body)) == (200, {"return": [{"jid": "20260101000000000000", "minions": ["hv1"]}]})
    assert SEEN[-1] == {**door.judged(GOOD, FUNCTIONS, READS), "token": "abc123"}
    assert not {name for name in headers if name.lower().startswith("access-control") or name == "Set-Cookie"}


def test_refusals_by_status(api, token):
    seen = len(SEEN)
    assert api.post("/login", {"username": "alice", "password": "bad"})[0] == 401
    assert api.post("/login", {"username": "alice", "password": "good", "eauth": "pam"})[0] == 400
    assert api.post("/login", b'{"username": "alice", "password": "\\ud800"}')[0] in {400, 401}
    assert api.post("/run", GOOD)[0] == 401
    assert api.post("/run", GOOD, X_Auth_Token="0" * 40)[0] == 401
    assert api.post("/run", {**GOOD, "fun": "cmd.run"}, X_Auth_Token=token)[0] == 400
    assert api.post("/run", b"{", X_Auth_Token=token)[0] == 400
    assert api.post("/run", b" " * 5000, X_Auth_Token=token)[0] == 413
    assert len(SEEN) == seen
    assert api.post("/run", {**GOOD, "tgt": "hv2"}, X_Auth_Token=token)[0] == 403


def test_who_has_not_logged_in_leaves_no_session(api, token):
    kept = set(door.Sessions.cache)
    for _ in range(5):
        assert api.post("/run", GOOD)[0] == 401
    assert set(door.Sessions.cache) == kept
    assert token in kept


def test_a_session_is_kept_for_a_login_alone():
    made = [door.Sessions(timeout=1) for _ in range(2)]
    made[0]["token"] = "abc123"
    assert "token" not in made[1]
    for one in made:
        one.acquire_lock()
        one.save()
    assert [one.id in door.Sessions.cache for one in made] == [True, False]
    made[0].delete()


def test_a_cookie_and_a_form_are_worth_nothing(api, token):
    """A foreign page can send both, and neither reads X-Auth-Token nor may set it."""
    seen = len(SEEN)
    assert api.post("/run", GOOD, Cookie=f"session_id={token}")[0] == 401
    form = b"client=local&tgt=hv1&fun=hypervisor.guests"
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
        assert api.post("/run", form, X_Auth_Token=token, Content_Type=kind)[0] == 415
        assert api.post("/login", form, Content_Type=kind)[0] == 415
    assert len(SEEN) == seen


@pytest.mark.parametrize(
    "path", ["/", "/events", "/ws", "/hook", "/keys", "/jobs", "/minions", "/stats", "/token", "/app", "/run/x"]
)
def test_there_is_nothing_else(api, token, path):
    assert api.post(path, GOOD, X_Auth_Token=token)[0] == 404


def test_an_end_of_the_login(api, monkeypatch):
    token = json.loads(api.post("/login", {"username": "alice", "password": "good"})[2])["return"][0]["token"]
    ended: list[str] = []
    load = type("Load", (), {"rm_token": lambda self, token: ended.append(token)})
    monkeypatch.setattr(door.app.salt.auth, "LoadAuth", lambda _: load())
    assert api.post("/logout", {}, X_Auth_Token=token)[0] == 200
    assert api.post("/run", GOOD, X_Auth_Token=token)[0] == 401
    assert ended == ["abc123"]


def test_a_verb_is_written_down_with_its_outcome_and_a_look_is_not(api, token):
    before = len(api.lines())
    assert api.post("/run", {"client": "local", "tgt": "hv1", "fun": "hypervisor.guests"}, X_Auth_Token=token)[0] == 200
    assert len(api.lines()) == before
    assert api.post("/run", {**GOOD, "kwarg": {"user_data": "hidden", "test": True}}, X_Auth_Token=token)[0] == 200
    request, started = api.lines()[before:]
    assert (request["event"], request["user"], request["function"]) == ("request", "alice", "hypervisor.start")
    assert (request["guest"], request["hosts"], request["arguments"]) == ("web", ["hv1"], {"test": True})
    assert request["left_out"] == ["user_data"]
    assert (started["event"], started["id"], started["job"]) == ("started", request["id"], "20260101000000000000")
    ANSWERS["20260101000000000000"] = {
        "hv1": {"return": {"state": "running"}, "retcode": 0, "success": True},
        # A host that was not asked.
        "hv9": {"return": True, "retcode": 0, "success": True},
    }
    deadline = time.monotonic() + 20
    while not [one for one in api.lines() if one["event"] == "outcome" and one["id"] == request["id"]]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (outcome,) = [one for one in api.lines() if one["event"] == "outcome" and one["id"] == request["id"]]
    assert (outcome["host"], outcome["ok"], outcome["state"]) == ("hv1", True, "running")
    assert "hidden" not in api.trail.read_text()
    assert stat.S_IMODE(api.trail.stat().st_mode) == 0o600


def test_a_job_of_the_runner_is_written_down_with_its_outcome(api, token):
    before = len(api.lines())
    status, _, body = api.post("/run", FLEET, X_Auth_Token=token)
    assert (status, json.loads(body)["return"][0]["jid"]) == (200, "20260101000000000001")
    assert SEEN[-1] == {**FLEET, "token": "abc123"}
    request, started = api.lines()[before:]
    assert (request["function"], request["guest"], request["arguments"]) == ("fleet.migrate", "web", {"target": "hv2"})
    assert (started["job"], started["hosts"]) == ("20260101000000000001", ["here_master"])
    whole = {"fun": "runner.fleet.migrate", "return": {"ok": False, "state": "running"}, "success": False}
    ANSWERS["20260101000000000001"] = {"here_master": {"return": whole}}
    deadline = time.monotonic() + 20
    while not [one for one in api.lines() if one["event"] == "outcome" and one["id"] == request["id"]]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (outcome,) = [one for one in api.lines() if one["event"] == "outcome" and one["id"] == request["id"]]
    assert (outcome["host"], outcome["ok"], outcome["state"]) == ("here_master", False, "running")


def test_the_runner_for_hosts_of_others_is_refused_and_written_down(api, token):
    before, seen = len(api.lines()), len(SEEN)
    assert api.post("/run", {**FLEET, "kwarg": {"name": "web", "target": "hv9"}}, X_Auth_Token=token)[0] == 403
    lines = api.lines()[before:]
    assert [one["event"] for one in lines] == ["request", "refused"]
    assert lines[1]["id"] == lines[0]["id"]
    assert len(SEEN) == seen


def test_refusals_and_logins_are_written_down_without_what_was_typed(api, token):
    before = len(api.lines())
    api.post("/run", {**GOOD, "fun": "cmd.run", "arg": ["secret command"]}, X_Auth_Token=token)
    api.post("/run", {**GOOD, "tgt": "hv2"}, X_Auth_Token=token)
    api.post("/login", {"username": "alice", "password": "typed wrong"})
    api.post("/login", {"username": "apasswordasname", "password": "x"})
    lines = api.lines()[before:]
    assert [(one["event"], one["user"]) for one in lines] == [
        ("refused", "alice"), ("request", "alice"), ("refused", "alice"), ("login refused", "alice"),
        ("login refused", None),
    ]  # fmt: skip
    assert lines[2]["id"] == lines[1]["id"]
    text = api.trail.read_text()
    assert not [word for word in ("secret command", "typed wrong", "apasswordasname") if word in text]


def test_what_cannot_be_written_down_is_not_done(api, token):
    seen = len(SEEN)
    away = api.trail.with_suffix(".away")
    api.trail.rename(away)
    api.trail.mkdir()
    try:
        assert api.post("/run", GOOD, X_Auth_Token=token)[0] == 503
    finally:
        api.trail.rmdir()
        away.rename(api.trail)
    assert len(SEEN) == seen

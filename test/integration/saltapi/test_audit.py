"""Who did what to which guest with what outcome: once each, whoever sends what on the bus, over restarts."""

from __future__ import annotations

import json
import os

import pytest
from saltapi_client import TRAIL, request
from support import end_guest, start_guest, state_of

from lab import salt

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="needs a hypervisor besides the master")
VERBS = ("start", "shutdown", "reboot", "power_off", "suspend", "resume", "migrate", "cancel", "resize", "create",
         "delete")  # fmt: skip
FUNCTIONS = (*(f"hypervisor.{verb}" for verb in VERBS), "wsproxy.start")
WHO = {"vera": 0, "otto": 9, "anna": 12}
SECRET = "hidden-4711"
NAME = "deaf"


def since(api, before):
    return api.trail()[len(before):]


def test_each_verb_of_each_user_stands_there_once_with_its_outcome(api):
    tokens = {user: api.token(user) for user in WHO}
    before = api.trail()
    bodies = [
        (user, {
            "client": "local_async", "tgt": "hv1", "fun": function, "arg": ["no-such-guest"],
            "kwarg": {"cloud_init": {"password": SECRET}},
        })
        for user in WHO for function in FUNCTIONS
    ]  # fmt: skip
    answers = api.ask(*[request("/run", body, tokens[user]) for user, body in bodies])
    started = [answer for answer in answers if answer.status == 200]
    assert len(started) == sum(WHO.values())
    for answer in started:
        assert api.outcome(answer)["ok"] is False
    rows = since(api, before)
    asked = [(row["user"], row["function"]) for row in rows if row["event"] == "request"]
    assert asked == [(user, body["fun"]) for user, body in bodies]
    ids = [row["id"] for row in rows if row["event"] == "request"]
    ended = [row["id"] for row in rows if row["event"] in {"outcome", "refused"}]
    assert sorted(ids) == sorted(ended)
    assert len(set(ids)) == len(ids)
    text = api.host.file(TRAIL).content_string
    assert SECRET not in text
    assert {row["guest"] for row in rows if row["event"] == "request"} == {"no-such-guest"}


def test_the_file_is_closed_and_says_who_came(api):
    file = api.host.file(TRAIL)
    assert (file.mode, file.user) == (0o600, "root")
    before = api.trail()
    api.login("vera")
    api.login("vera", "not hers")
    api.login("not-a-user", "x")
    found = [(row["event"], row["user"]) for row in since(api, before)]
    assert found == [("login", "vera"), ("login refused", "vera"), ("login refused", None)]


def test_what_a_minion_sends_adds_nothing(api, lab):
    """In the form of a list, in which the bus shows the sender's own words."""
    before = api.trail()
    job = "20260101000000000001"
    new = {"jid": job, "user": "anna", "fun": "hypervisor.delete", "arg": ["web"], "tgt": ["hv1"], "minions": ["hv1"]}
    done = {"jid": job, "id": "hv1", "fun": "hypervisor.delete", "return": True, "retcode": 0, "success": True}
    for tag, data in ((f"salt/job/{job}/new", new), (f"salt/job/{job}/ret/hv1", done)):
        argv = ["salt-call", "--out=json", "--log-level=quiet", "event.fire_master", json.dumps(data), tag]
        assert json.loads(lab.run("hv2", argv, timeout=90).stdout) == {"local": True}
    # A job that is real, so that the thread has looked since.
    assert api.outcome(api.run("anna", "hypervisor.start", "hv1", "no-such-guest"))["ok"] is False
    assert not [row for row in since(api, before) if "20260101000000000001" in json.dumps(row)]
    assert len(since(api, before)) == 3


def test_an_outcome_that_a_restart_has_missed_is_found(api, lab):
    """The guest does not listen to its power button, so this job takes its whole time."""
    controller = lab.hosts.controller
    start_guest(lab, "hv1", NAME)
    try:
        answer = api.run("otto", "hypervisor.shutdown", "hv1", NAME, timeout=25)
        assert answer.status == 200
        lab.run(controller, ["systemctl", "restart", "salt-master", "salt-api"], timeout=120)
        assert api.outcome(answer)["ok"] is False
        assert state_of(lab, "hv1", NAME) == "running"
    finally:
        end_guest(lab, NAME)
        salt.wait_answering(lab.hosts)
    # The restart has ended all logins, and no line is lost.
    assert api.ask(request("/run", {}, api.tokens.pop("otto")))[0].status == 401
    api.tokens.clear()
    assert [row for row in api.trail() if row["event"] == "request" and row["guest"] == "no-such-guest"]

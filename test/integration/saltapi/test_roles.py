"""What each role can do, on which host, by real requests; and what becomes of guests and of the master."""

from __future__ import annotations

import os

import pytest
import yaml
from saltapi_client import Api, request
from support import end_guest, start_guest, state_of

from lab import salt
from lab.state import CHECKOUT

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="needs two hypervisors besides the master")
ROLES = yaml.safe_load((CHECKOUT / "saltapi/defaults.yaml").read_text())["roles"]
# Those of the runner are in test_fleet_roles.py.
EXPOSED = sorted({one for functions in ROLES.values() for one in functions if not one.startswith("fleet.")})
WHO = {"vera": "viewer", "otto": "operator", "anna": "admin", "noone": None}
NAME = "matrix"
PRIVATE = "private-77"


def test_a_highstate_does_what_it_predicts_and_the_second_nothing(prepared):
    predicted, first, second = prepared
    assert [name for name in first["changed"] if name.startswith("saltapi_")] == [
        name for name in predicted["changed"] if name.startswith("saltapi_")
    ]
    assert "saltapi_service" in first["changed"]
    assert second["changed"] == []


@pytest.mark.parametrize("user", WHO)
def test_the_matrix(api, user):
    """Each role times each function times a host that is the user's and one that is not; a job started is 200."""
    token = api.token(user)
    asked, expected = [], []
    for function in EXPOSED:
        for target in ("hv1", "hv2", ["hv1", "hv2"]):
            # No guest can be called this, so none is made either.
            body = {"client": "local_async", "tgt": target, "fun": function, "arg": ["no such guest"]}
            asked.append(request("/run", body, token))
            allowed = target == "hv1" and function in ROLES.get(WHO[user], ())
            expected.append(200 if allowed else 403)
    answers = api.ask(*asked)
    found = [answer.status for answer in answers]
    wrong = {(one[1], status) for one, status, want in zip(asked, found, expected, strict=True) if status != want}
    assert wrong == set()
    jobs = [answer.value for answer in answers if answer.status == 200]
    assert all(job["minions"] == ["hv1"] and job["jid"].isdigit() for job in jobs)


def test_the_hypervisor_does_what_a_role_may_and_nothing_else(api, lab):
    start_guest(lab, "hv1", NAME)
    try:
        body = {"client": "local", "tgt": "hv1", "fun": "hypervisor.guest", "arg": [NAME]}
        (seen,) = api.ask(request("/run", body, api.token("vera")))
        assert seen.value["hv1"]["state"] == "running", seen
        assert api.run("vera", "hypervisor.suspend", "hv1", NAME).status == 403
        assert state_of(lab, "hv1", NAME) == "running"
        paused = api.outcome(api.run("otto", "hypervisor.suspend", "hv1", NAME))
        assert (paused["host"], paused["ok"], paused["state"]) == ("hv1", True, "paused")
        assert state_of(lab, "hv1", NAME) == "paused"
        assert api.outcome(api.run("otto", "hypervisor.resume", "hv1", name=NAME))["ok"] is True
        assert state_of(lab, "hv1", NAME) == "running"
        assert api.run("otto", "hypervisor.delete", "hv1", NAME).status == 403
        # The function's own judgement: a guest that runs is not deleted.
        assert api.outcome(api.run("anna", "hypervisor.delete", "hv1", NAME))["ok"] is False
        assert state_of(lab, "hv1", NAME) == "running"
    finally:
        end_guest(lab, NAME)


def test_a_user_of_the_system_by_pam_and_group(api, lab):
    controller = lab.hosts.controller
    lab.run(controller, ["sh", "-ec", "groupadd helpdesk; useradd -G helpdesk pia; useradd paul; chpasswd"],
            stdin=f"pia:{PRIVATE}\npaul:{PRIVATE}\n")  # fmt: skip
    try:
        mine = Api(api.host)
        for user in ("pia", "paul"):
            answer = mine.login(user, PRIVATE)
            assert answer.status == 200, answer
            mine.tokens[user] = answer.value["token"]
            assert mine.login(user, "wrong").status == 401
        assert mine.run("pia", "hypervisor.guests", "hv1").status == 200
        assert mine.run("pia", "hypervisor.start", "hv1", "x").status == 403
        assert mine.run("paul", "hypervisor.guests", "hv1").status == 403
    finally:
        lab.run(controller, ["sh", "-c", "userdel pia; userdel paul; groupdel helpdesk"])


def test_a_wrong_pillar_changes_nothing(lab):
    controller = lab.hosts.controller
    before = lab.run(controller, ["cat", "/etc/salt/master.d/hypervisor-api.conf"]).stdout
    files = salt.pillar_files(lab.hosts)
    name = f"{controller}.sls"
    salt.merge_pillar(lab.hosts, {name: salt.merged_yaml(files[name], {
        "saltapi": {"users": {"eve": {"roles": {"admin": ["*"]}}}, "roles": {"viewer": ["cmd.run"]}},
    })})  # fmt: skip
    try:
        said = salt.highstate(lab.hosts, [controller])[controller]
    finally:
        salt.merge_pillar(lab.hosts, files)
    assert isinstance(said, list)
    assert "saltapi:users:eve:roles:admin:0" in said[0]
    assert "saltapi:roles:viewer:0" in said[0]
    assert lab.run(controller, ["cat", "/etc/salt/master.d/hypervisor-api.conf"]).stdout == before

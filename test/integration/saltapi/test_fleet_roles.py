"""The runner through salt-api: source and target are the user's own hosts, named or chosen, or nothing moves."""

from __future__ import annotations

import json
import os
import time

import pytest
from inventory_client import Inventory
from saltapi_client import request
from support import end_guest, start_guest, state_of

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="needs two hypervisors besides the master")
NAME = "ferry"


def fleet(api, user, function, **kwarg):
    """Call a function of the runner as a user."""
    body = {"client": "runner_async", "fun": f"fleet.{function}", "kwarg": kwarg}
    return api.ask(request("/run", body, api.token(user)))[0]


def places(lab):
    return {host: state for host in lab.hosts.hypervisors if (state := state_of(lab, host, NAME))}


def who_sees_it(api, lab, job):
    """The job of olga in the inventory, for her and for others, whatever a minion says of it."""
    inventory = Inventory(api)
    deadline = time.monotonic() + 60
    while not (mine := inventory.snapshot("olga")["jobs"].get(job, {})).get("outcome"):
        assert time.monotonic() < deadline, mine
        time.sleep(0.5)
    assert (mine["user"], mine["function"], mine["guest"]) == ("olga", "fleet.migrate", NAME)
    assert (mine["hosts"], mine["outcome"]["success"]) == (["hv1", "hv2"], True)
    (step,) = mine["progress"]
    assert (step["guest"], step["step"], step["from"], step["to"]) == (NAME, "moved", "hv1", "hv2")
    forged = {"jid": job, "user": "vera", "function": "fleet.migrate", "guest": "forged", "from": "hv1", "to": "hv2"}
    for tag in (f"hypervisor/fleet/{job}/moved", f"hypervisor/fleet/{job[:-1]}0/moving"):
        argv = ["salt-call", "--out=json", "--log-level=quiet", "event.fire_master", json.dumps(forged), tag]
        assert json.loads(lab.run("hv2", argv, timeout=90).stdout) == {"local": True}
    seen = inventory.snapshot("ines")["jobs"]
    assert seen[job] == mine
    assert "forged" not in json.dumps(seen)
    part = inventory.snapshot("vera")["jobs"][job]
    assert (part["hosts"], part["outcome"]) == (["hv1"], {"success": True})
    assert (part["progress"][0]["guest"], part["progress"][0]["from"]) == (NAME, "hv1")
    assert "hv2" not in json.dumps(part)
    assert job not in inventory.snapshot("noone")["jobs"]


def test_who_may_compare_which_hosts_with_their_declaration(api, lab):
    """On hv1 anna is an admin; otto and olga are operators."""
    for user, more in (("otto", {}), ("olga", {"host": "hv2"}), ("anna", {"host": "hv2"})):
        assert fleet(api, user, "drift", **more).status == 403
    answer = fleet(api, "anna", "drift")
    assert answer.status == 200, answer
    argv = ["salt-run", "--out=json", "--log-level=quiet", "jobs.lookup_jid", answer.value["jid"]]
    deadline = time.monotonic() + 120
    while '"same"' not in (printed := lab.run(lab.hosts.controller, argv).stdout):
        assert time.monotonic() < deadline, printed
        time.sleep(1)
    assert '"host": "hv1"' in printed
    assert "hv2" not in printed


def test_who_may_move_what_where(api, lab):
    """On hv1 otto is an operator, olga on both hypervisors; vera looks, and noone has no role."""
    start_guest(lab, "hv1", NAME)
    try:
        before = len(api.trail())
        refused = [
            fleet(api, "vera", "migrate", name=NAME, target="hv1"),
            fleet(api, "noone", "migrate", name=NAME),
            fleet(api, "otto", "migrate", name=NAME, target="hv2"),
            fleet(api, "otto", "evacuate", host="hv2"),
            fleet(api, "otto", "create", name="new", mem=64),
            fleet(api, "olga", "create", name="new", host="hv2", mem=64),
        ]
        assert [answer.status for answer in refused] == [403] * len(refused)
        # What is chosen is the runner's to judge: there is no other host for otto.
        for chosen in ({"function": "migrate", "name": NAME}, {"function": "evacuate", "host": "hv1"}):
            assert api.outcome(fleet(api, "otto", **chosen))["ok"] is False
        assert places(lab) == {"hv1": "running"}
        answer = fleet(api, "olga", "migrate", name=NAME)
        moved = api.outcome(answer)
        assert (moved["ok"], moved["state"]) == (True, "running")
        assert places(lab) == {"hv2": "running"}
        who_sees_it(api, lab, answer.value["jid"])
        # On the host of others a guest does not exist.
        assert api.outcome(fleet(api, "otto", "migrate", name=NAME, target="hv1"))["ok"] is False
        assert places(lab) == {"hv2": "running"}
        rows = api.trail()[before:]
        asked = [(row["user"], row["function"]) for row in rows if row["event"] == "request"]
        assert ("otto", "fleet.evacuate") in asked
        assert len([row for row in rows if row["event"] == "refused"]) == len(refused)
        assert len([row for row in rows if row["event"] == "outcome"]) == 4
    finally:
        end_guest(lab, NAME)
        for host in lab.hosts.hypervisors:
            lab.run(host, ["rm", "-f", f"/var/lib/hypervisor-formula/migrated/{NAME}.json"])
        lab.run(lab.hosts.controller, ["rm", "-rf", "/var/cache/salt/master/hypervisor-fleet"])

"""The runner through salt-api: source and target are the user's own hosts, named or chosen, or nothing moves."""

from __future__ import annotations

import os

import pytest
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
        moved = api.outcome(fleet(api, "olga", "migrate", name=NAME))
        assert (moved["ok"], moved["state"]) == (True, "running")
        assert places(lab) == {"hv2": "running"}
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

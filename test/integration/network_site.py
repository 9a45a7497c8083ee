"""One machine of each network stack, its pillar, and what it is like before and after."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from lab import salt, stacks
from lab.hosts import Hosts
from lab.proc import CommandError
from lab.vm import Machine

# Prints links, addresses, routes and the files of all stacks, without what changes by itself.
FACTS = """
import hashlib, json, os, subprocess
def ip(*words):
    done = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=True)
    return [one for one in json.loads(done.stdout or "[]") if one]
def still(value):
    if isinstance(value, dict):
        return {key: still(one) for key, one in value.items()
                if key not in {"valid_life_time", "preferred_life_time", "expires", "tentative"}}
    return [still(one) for one in value] if isinstance(value, list) else value
found = {"link": still(ip("link", "show")), "address": still(ip("address", "show")),
         "route": sorted(map(str, still(ip("-4", "route", "show", "table", "all")))),
         "route6": sorted(map(str, still(ip("-6", "route", "show", "table", "all"))))}
for root in ("/etc/network", "/etc/systemd/network", "/etc/netplan", "/etc/NetworkManager/system-connections"):
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            status = os.stat(path)
            text = hashlib.sha256(open(path, "rb").read()).hexdigest()
            found[path] = [oct(status.st_mode), status.st_uid, status.st_gid, text]
print(json.dumps(found, sort_keys=True))
"""
WINDOW = 20
# Seconds that a window may take longer, for going back; for a machine that is emulated, and watched over ssh, more.
BACK = 10
TELLING = 15


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between two facts."""
    keys = {*before, *now}
    return {key: (before.get(key), now.get(key)) for key in sorted(keys) if before.get(key) != now.get(key)}


@dataclass
class Outcome:
    """What a change has come to.

    Attributes:
        state: what network-profile says in the end.
        differences: how the host differs from before the change.
        seconds: from the start of the change to its end, by the host's clock.
    """

    state: dict[str, Any]
    differences: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Site:
    """One machine.

    Attributes:
        farm: the machines.
        name: its name, which is its stack's.
        begun: the latest change that was begun here by :meth:`stage`; empty if it was refused.
    """

    def __init__(self, farm: stacks.StackHosts, name: str) -> None:
        """Take a machine that answers."""
        self.farm, self.name, self.begun = farm, name, ""

    @property
    def machine(self) -> Machine:
        """The machine, with link and power in the test's hand."""
        return self.farm.machines[self.name]

    @property
    def hosts(self) -> Hosts:
        """The controller and the machine."""
        return self.farm.with_controller(self.name)

    def pillar(self, window: int = WINDOW, **bridge: Any) -> dict[str, Any]:
        """Return a pillar that makes the card a port of br0, which gets the card's address; ``bridge`` alters br0."""
        spec = {"ports": ["eth0"], "addresses": [f"{self.farm.address(self.name)}/24"], "gateway4": self.farm.gateway}
        return {
            "allow_uplink_change": True,
            "confirm": {"window": window, "beyond": [f"{stacks.BEYOND}:4505"]},
            "bridges": {"br0": {**spec, **bridge}},
        }

    def lay(self, pillar: dict[str, Any]) -> None:
        """Write the machine's pillar on the master."""
        text = json.dumps({"network": pillar})
        salt.merge_pillar(self.hosts, {f"{self.name}.sls": text})

    def apply(self, *, test: bool = False) -> dict[str, Any]:
        """Have the master apply network/ and return its rows by id."""
        # What is said before a minion listens, it never hears.
        end = time.monotonic() + 180
        while not salt.subscribed(self.hosts, self.name) and time.monotonic() < end:
            time.sleep(1)
        argv = ["salt", self.name, "--out=json", "--static", "--timeout=240", "state.apply", "network", "queue=True"]
        argv += ["test=True"] if test else []
        done = self.hosts.run(self.hosts.controller, argv, check=False, timeout=600)
        answer = json.loads(done.stdout)[self.name]
        assert isinstance(answer, dict), answer
        return {row["__id__"]: row for row in answer.values()}

    def facts(self) -> dict[str, Any]:
        """Return links, addresses, routes and files."""
        done = self.hosts.run(self.name, ["python3", "-I", "-"], stdin=FACTS, timeout=60)
        return dict(json.loads(done.stdout))

    def stage(self, pillar: dict[str, Any]) -> dict[str, Any]:
        """Begin a change on the machine itself and return what network-profile says at once."""
        asked = json.dumps({"pillar": pillar, "masters": [f"{self.hosts.controller}.lab.internal"]})
        done = self.hosts.run(self.name, ["network-profile", "apply"], stdin=asked, check=False, timeout=120)
        answer = dict(json.loads(done.stdout))
        self.begun = answer.get("id", "")
        return answer

    def status(self) -> dict[str, Any]:
        """Return where the change stands; empty while the machine is not reached, or too busy to say."""
        try:
            done = self.hosts.run(self.name, ["network-profile", "status", "--json"], check=False, timeout=30)
        except CommandError:
            return {}
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def wait(self, *states: str, timeout: float) -> dict[str, Any]:
        """Wait until the change is in one of these states and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = self.status()
            if found.get("state") in states and (not found.get("at_work") or found["pending"]):
                return found
            time.sleep(0.5)
        raise AssertionError(f"{self.name}: not {' or '.join(states)} within {timeout:.0f} s, but {found}")

    def clock(self) -> float:
        """Return the machine's time in seconds."""
        return float(self.hosts.run(self.name, ["date", "+%s.%N"]).stdout)

    def ended(self) -> float:
        """Return when the latest change ended, by the machine's clock."""
        script = "import os; print(os.stat('/var/lib/hypervisor-formula/network/state.json').st_mtime)"
        return float(self.hosts.run(self.name, ["python3", "-c", script]).stdout)

    def undone(self, before: dict[str, Any], timeout: float = 150) -> Outcome:
        """Wait until the change that was begun is undone, and compare."""
        state = self.wait("rolled-back", timeout=timeout)
        assert state["id"] == self.begun, f"{self.name}: {self.begun or 'nothing'} was begun, and {state} is over"
        found = differences(before, self.facts())
        end = time.monotonic() + TELLING
        # Duplicate addresses are still looked for.
        while found and time.monotonic() < end:
            time.sleep(1)
            found = differences(before, self.facts())
        return Outcome(state, found, self.ended() - state["started"])

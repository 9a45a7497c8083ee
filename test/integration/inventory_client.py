"""Reads the live inventory on a controller, as a page behind a web server would, and what virsh says beside it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from saltapi_client import Api

PORT = 8010
LOG = "/run/inventory-stream.log"
# Runs on the controller. Paths and headers arrive as JSON.
GET = """
import gzip, http.client, json, sys
answers = []
for path, headers in json.load(sys.stdin):
    connection = http.client.HTTPConnection("127.0.0.1", 8010, timeout=30)
    try:
        connection.request("GET", path, None, headers)
        answer = connection.getresponse()
        body = answer.read()
        packed = answer.getheader("Content-Encoding") == "gzip"
        answers.append([answer.status, dict(answer.getheaders()), (gzip.decompress(body) if packed else body).decode()])
    except (OSError, http.client.HTTPException) as error:
        answers.append([0, {}, repr(error)])
    connection.close()
print(json.dumps(answers))
"""
# Follows the stream and writes when each event came, and again from the last one when the stream ends.
FOLLOW = """
import http.client, sys, time
token, path = sys.argv[1:]
last = ""
log = open(path, "w", buffering=1)
while True:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8010, timeout=30)
        connection.request("GET", "/inventory/stream", None, {"X-Auth-Token": token, "Last-Event-ID": last})
        answer = connection.getresponse()
        if answer.status == 200:
            log.write(f"{time.time()} open\\n")
        while line := answer.readline().decode().strip() if answer.status == 200 else "":
            pass
        for raw in answer:
            line = raw.decode().strip()
            if line.startswith("id: "):
                last = line[4:]
            if line.startswith(("event: ", "data: ")):
                log.write(f"{time.time()} {line}\\n")
    except (OSError, http.client.HTTPException):
        pass
    time.sleep(0.2)
"""
# Runs on a hypervisor: what virsh says, in the words of the inventory.
VIRSH = """
import json, subprocess
def virsh(*argv):
    done = subprocess.run(["virsh", "--quiet", *argv], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines() if line.strip()]
guests = {row[1]: " ".join(row[2:]) for row in virsh("list", "--all")}
found = {"guests": {row[0]: [row[1], guests[row[1]]] for row in virsh("list", "--all", "--uuid", "--name")},
         "pools": {row[0]: row[1] for row in virsh("pool-list", "--all")},
         "networks": {row[0]: row[1] for row in virsh("net-list", "--all")}}
print(json.dumps(found))
"""


class Inventory:
    """The service on a controller that testinfra reaches.

    Args:
        api: salt-api of that host.
    """

    def __init__(self, api: Api) -> None:
        self.api, self.host = api, api.host

    def ask(self, *requests: tuple[str, dict[str, str]]) -> list[Any]:
        """Return status, headers and body of each answer."""
        done = self.host.run("printf %s %s | python3 -c %s", "%s", json.dumps(requests), GET)
        assert done.rc == 0, done.stderr
        return list(json.loads(done.stdout))

    def snapshot(self, user: str) -> dict[str, Any]:
        """Return what a user sees."""
        ((status, _, body),) = self.ask(("/inventory/snapshot", {"X-Auth-Token": self.api.token(user)}))
        assert status == 200, body
        return dict(json.loads(body))

    def seen(self, user: str, host: str) -> dict[str, Any]:
        """Return what a user sees of a host, in the form in which virsh is asked."""
        found = self.snapshot(user)
        mine = {kind: [one for one in found[kind].values() if one["host"] == host]
                for kind in ("guests", "pools", "networks")}  # fmt: skip
        return {
            "guests": {one["uuid"]: [one["name"], one["state"]] for one in mine["guests"]},
            "pools": {one["name"]: one["state"] for one in mine["pools"]},
            "networks": {one["name"]: one["state"] for one in mine["networks"]},
        }

    def counts(self) -> dict[str, int]:
        """Return how many messages were not taken, by reason."""
        program = "/usr/lib/hypervisor-formula/master/hypervisor_inventory/__main__.py"
        return dict(json.loads(self.host.check_output(f"/opt/saltstack/salt/bin/python3 {program} --counts")))


def virsh(lab: Any, host: str) -> dict[str, Any]:
    """Return what virsh says on a host."""
    return dict(json.loads(lab.run(host, ["python3", "-"], stdin=VIRSH).stdout))


def equals(lab: Any, inventory: Inventory, host: str, timeout: float = 120) -> float:
    """Wait until the inventory has what virsh says on a host; return how long that took, in seconds."""
    began = time.monotonic()
    while True:
        before = virsh(lab, host)
        seen = inventory.seen("ines", host)
        took = time.monotonic() - began
        # What virsh says before and after is the same: nothing moved in between.
        if seen == before and virsh(lab, host) == before and inventory.snapshot("ines")["hosts"][host]["live"]:
            return took
        assert took < timeout, (host, before, seen)
        time.sleep(0.2)


class Follower:
    """A stream that is followed on the controller."""

    def __init__(self, lab: Any, inventory: Inventory, user: str) -> None:
        self.lab, self.controller = lab, lab.hosts.controller
        argv = ["systemd-run", "--quiet", "--unit=inventory-follower", "--collect", "/usr/bin/python3", "-c", FOLLOW]
        lab.run(self.controller, [*argv, inventory.api.token(user), LOG])
        self.until("open")

    def lines(self) -> list[tuple[float, str]]:
        """Return when what came."""
        text = self.lab.run(self.controller, ["cat", LOG], check=False).stdout
        rows = [line.split(" ", 1) for line in text.splitlines()]
        return [(float(row[0]), row[1]) for row in rows if len(row) == 2]

    def until(self, pattern: str, behind: float = 0.0, timeout: float = 60) -> float:
        """Wait for a line that matches, and return when it came."""
        deadline = time.monotonic() + timeout
        while True:
            found = [at for at, line in self.lines() if at > behind and re.search(pattern, line)]
            if found:
                return found[0]
            assert time.monotonic() < deadline, self.lines()[-5:]
            time.sleep(0.2)

    def end(self) -> None:
        """End it."""
        self.lab.run(self.controller, ["systemctl", "stop", "inventory-follower"], check=False)

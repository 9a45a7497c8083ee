"""A fence device for container hosts: the agent on the nodes, and what it asks, which really kills and starts them.

The agent reads its parameters as every fence agent does, from standard input, and asks this machine over the lab's
network. The device here believes a password, cuts a host's power (``podman kill``) and brings it back.
"""

from __future__ import annotations

import json
import secrets
import socket
import socketserver
import threading
import time
from typing import Any

from lab import container
from lab.lab import Lab

AGENT = r'''#!/usr/bin/python3
import json, socket, sys
given = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line)
given.update(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
action = given.get("action", "reboot")
if "-o" in sys.argv:
    action = sys.argv[sys.argv.index("-o") + 1]
if action in ("metadata", "meta-data"):
    names = {"ip": "string", "ipport": "string", "passwd": "string", "plug": "string", "action": "string"}
    rows = "".join(
        '<parameter name="%s" required="0"><getopt mixed="--%s"/><content type="%s"/>'
        '<shortdesc lang="en">%s</shortdesc></parameter>' % (name, name, kind, name)
        for name, kind in names.items()
    )
    actions = "".join('<action name="%s"/>' % one for one in "on off reboot status list monitor metadata".split())
    print('<?xml version="1.0" ?><resource-agent name="fence_lab" shortdesc="Hosts of the lab">'
          "<longdesc>Hosts of the lab</longdesc><vendor-url>none</vendor-url>"
          "<parameters>%s</parameters><actions>%s</actions></resource-agent>" % (rows, actions))
    sys.exit(0)
question = {"passwd": given.get("passwd"), "action": action, "host": given.get("plug") or given.get("port"),
            "argv": open("/proc/self/cmdline").read()}
with socket.create_connection((given["ip"], int(given["ipport"])), timeout=30) as link:
    link.sendall(json.dumps(question).encode() + b"\n")
    answer = json.loads(link.makefile().readline() or '{"code": 1, "text": "the device does not answer"}')
if answer.get("text"):
    print(answer["text"])
sys.exit(answer["code"])
'''


class Device:
    """The device, which listens on this machine's address in the lab's network.

    Attributes:
        password: what it believes.
        broken: whether it does nothing at the moment.
        unreachable: whether it does not even answer.
        slow: seconds that it takes to do anything.
        stays_off: whether a host that it resets stays off.
        log: what was asked, with the time: action, host and whether it was done.
        leaks: command lines of agents that held the password.
    """

    def __init__(self, lab: Lab, address: str) -> None:
        self.lab = lab
        self.password = secrets.token_urlsafe(24)
        self.broken = self.unreachable = self.stays_off = False
        self.slow = 0.0
        self.log: list[tuple[float, str, str, bool]] = []
        self.leaks: list[str] = []
        device = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                question = json.loads(self.rfile.readline())
                if device.unreachable:
                    return
                answer = device.answer(question)
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        socketserver.ThreadingTCPServer.address_family = socket.AF_INET
        self.server = socketserver.ThreadingTCPServer((address, 0), Handler)
        self.server.daemon_threads = True
        self.address, self.port = address, self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Do what an agent asks."""
        action, host = question["action"], question["host"] or ""
        if self.password in question["argv"]:
            self.leaks.append(question["argv"])
        if question["passwd"] != self.password:
            return {"code": 1, "text": "wrong password"}
        if action == "monitor":
            return {"code": 0}
        done = not self.broken and host in self.lab.hosts.hypervisors
        if done:
            time.sleep(self.slow)
            self.act(action, host)
        self.log.append((time.time(), action, host, done))
        return {"code": 0 if done else 1}

    def act(self, action: str, host: str) -> None:
        """Cut a host's power, or bring it back."""
        name = self.lab.paths.name
        if action in ("off", "reboot"):
            kill(self.lab, host)
        if action == "on" or (action == "reboot" and not self.stays_off):
            container.start(name, host)

    def fenced(self, host: str) -> list[float]:
        """Return when a host's power was cut."""
        return [when for when, action, name, done in self.log if done and name == host and action in ("off", "reboot")]

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()


class Power(Device):
    """The device, for machines."""

    def act(self, action: str, host: str) -> None:
        """Cut a machine's power, or bring it back."""
        machine = self.lab.virtual.machine(host)
        if action in ("off", "reboot"):
            machine.kill()
        if action == "on" or (action == "reboot" and not self.stays_off):
            machine.start()


def kill(lab: Lab, host: str) -> None:
    """Cut a host's power."""
    container.podman("kill", "--signal", "KILL", container.container_name(lab.paths.name, host), check=False)

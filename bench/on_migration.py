"""Runs on lab hosts: migrates a guest between bare QEMU processes, or with Salt's module, and takes the time.

It is sent to the hosts as text, so it imports nothing of this repository. Its first argument says what it is:
`agent` starts and ends QEMU on its host when it is asked over TCP, `bare` drives a migration by QMP alone, `salt`
calls `hypervisor.migrate`. The latter two print one line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import time
from typing import Any

AGENT_PORT, QMP_PORT, MIGRATION_PORT = 49300, 49301, 49250
CREDENTIALS = "/etc/pki/qemu"
UNLIMITED = 1 << 62  # bytes a second: as libvirt sets it
LIMIT = 120.0  # seconds for one answer


def qemu(options: dict[str, Any], incoming: bool) -> list[str]:
    """Return QEMU's command line for the guest that the migration of libvirt moves as well."""
    argv = [
        "qemu-system-x86_64", "-name", "bare", "-machine", options["machine"], "-accel", "tcg", "-cpu", "qemu64",
        "-m", str(options["memory_mib"]), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", options["kernel"], "-initrd", options["initrd"], "-append", options["append"],
        "-serial", "file:/run/bare-serial.log", "-qmp", f"tcp:0.0.0.0:{QMP_PORT},server=on,wait=off",
    ]  # fmt: skip
    return [*argv, "-incoming", "defer"] if incoming else argv


class Agent(socketserver.StreamRequestHandler):
    """Starts QEMU with the options of one line of JSON, and ends the one that ran before."""

    process: subprocess.Popen[bytes] | None = None

    def handle(self) -> None:
        """Answer one request as soon as QEMU listens for commands."""
        request = json.loads(self.rfile.readline())
        if Agent.process is not None:
            Agent.process.kill()
            Agent.process.wait()
            Agent.process = None
        if request.get("start"):
            Agent.process = subprocess.Popen(qemu(request["start"], request["incoming"]), stdin=subprocess.DEVNULL)
            deadline = time.monotonic() + LIMIT
            while time.monotonic() < deadline and Agent.process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", QMP_PORT), 1).close()
                    break
                except OSError:
                    time.sleep(0.002)
        self.wfile.write(b"{}\n")


def told(host: str, request: dict[str, Any]) -> None:
    """Send a request to the agent of a host and wait for its answer."""
    with socket.create_connection((host, AGENT_PORT), LIMIT) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.makefile().readline()


class Qmp:
    """A connection to the QMP of a host's QEMU."""

    def __init__(self, host: str) -> None:
        """Connect and leave the negotiation mode."""
        deadline = time.monotonic() + LIMIT
        while True:
            # QEMU serves one connection at a time: the agent's probe may still be the one.
            self.stream = socket.create_connection((host, QMP_PORT), LIMIT).makefile("rw", encoding="utf-8")
            if self.stream.readline() or time.monotonic() > deadline:
                break
        self.events: list[dict[str, Any]] = []
        self.do("qmp_capabilities")

    def read(self) -> dict[str, Any]:
        """Return the next message; events are kept."""
        message = dict(json.loads(self.stream.readline()))
        if "event" in message:
            self.events.append(message)
        return message

    def do(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result."""
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.stream.write(json.dumps({"execute": command, "arguments": words}) + "\n")
        self.stream.flush()
        while True:
            message = self.read()
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def wait(self, name: str, **data: str) -> float:
        """Wait for an event and return when it happened, in seconds."""
        while True:
            for event in self.events:
                if event["event"] == name and all(event["data"].get(key) == value for key, value in data.items()):
                    stamp = event["timestamp"]
                    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)
                if event["event"] == "MIGRATION" and event["data"]["status"] in {"failed", "cancelled"}:
                    raise RuntimeError(f"the migration {event['data']['status']}")
            self.read()


def migrate_bare(options: dict[str, Any], source: str, target: str) -> dict[str, float]:
    """Migrate the guest by QMP, with TLS and as libvirt sets it up; return seconds in all, and of the downtime."""
    here = Qmp(source)
    begun = time.monotonic()
    told(target, {"start": options, "incoming": True})
    started = time.monotonic()
    there = Qmp(target)
    # The source was a target before, so it has the object of that end already.
    for side, endpoint in ((there, "server"), (here, "client")):
        side.do(
            "object-add", qom_type="tls-creds-x509", id=endpoint, dir=CREDENTIALS, endpoint=endpoint, verify_peer=True
        )
        side.do("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    there.do("migrate-set-parameters", tls_creds="server", tls_hostname="")
    there.do("migrate-incoming", uri=f"tcp:0.0.0.0:{MIGRATION_PORT}")
    here.do("migrate-set-parameters", tls_creds="client", tls_hostname=target, max_bandwidth=UNLIMITED)
    here.events.clear()
    here.do("migrate", uri=f"tcp:{target}:{MIGRATION_PORT}")
    here.wait("MIGRATION", status="completed")
    resumed = there.wait("RESUME")
    ended = time.monotonic()
    stopped = here.wait("STOP")
    figures = here.do("query-migrate")
    told(source, {})
    return {
        "seconds": ended - begun,
        "start_seconds": started - begun,
        "downtime_ms": (resumed - stopped) * 1000,
        "bytes": figures["ram"]["transferred"],
    }


def migrate_salt(guest: str, target: str) -> dict[str, float]:
    """Migrate a guest with Salt's module in a process that has loaded it; return the seconds and the downtime."""
    import salt.client  # noqa: PLC0415  only this half needs Salt
    import salt.config  # noqa: PLC0415

    caller = salt.client.Caller(mopts=salt.config.minion_config("/etc/salt/minion"))
    # What a minion has loaded by its second job: modules, and the configuration's files.
    caller.cmd("hypervisor.migrate", guest, target, test=True)
    begun = time.monotonic()
    found = caller.cmd("hypervisor.migrate", guest, target)
    seconds = time.monotonic() - begun
    keys = {"downtime_ms": "downtime_ms", "bytes": "transferred_bytes", "check_seconds": "check_seconds"}
    return {"seconds": seconds, **{key: found[name] for key, name in keys.items()}}


def main(argv: list[str]) -> int:
    """Be what the first argument says."""
    if argv[0] == "agent":
        socketserver.TCPServer.allow_reuse_address = True
        with socketserver.TCPServer(("0.0.0.0", AGENT_PORT), Agent) as server:  # noqa: S104 - a lab's own network
            server.serve_forever()
    wanted = json.loads(argv[1])
    if argv[0] == "bare" and wanted.get("boot"):
        told(wanted["source"], {"start": wanted["options"], "incoming": False})
        print(json.dumps({}))
    elif argv[0] == "bare" and wanted.get("only"):
        Qmp(wanted["source"]).do(wanted["only"])
        print(json.dumps({}))
    elif argv[0] == "bare":
        print(json.dumps(migrate_bare(wanted["options"], wanted["source"], wanted["target"])))
    else:
        print(json.dumps(migrate_salt(wanted["guest"], wanted["target"])))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

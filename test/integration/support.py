"""What several integration tests do: first highstates, digests of a host, guests that count."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from lab import guest, salt
from lab.lab import Lab

# The operating system of the hosts that tests start, a platform of kitchen.yml.
PLATFORM = os.environ.get("LAB_PLATFORM", "debian-12")
# Prints {path: digest} of everything a highstate may change. Salt's own schedule and caches aren't the formulas'.
DIGEST = """
import hashlib, json, os, stat, subprocess
found = {}
for root in ("/etc", "/var/lib/libvirt", "/var/lib/dpkg/status", "/usr/lib/systemd/system", "/usr/bin"):
    paths = [root]
    for folder, folders, names in os.walk(root):
        paths += [os.path.join(folder, name) for name in folders + names]
    for path in paths:
        if path.startswith("/etc/salt/"):
            continue
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        text = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
        if stat.S_ISLNK(status.st_mode):
            text += " -> " + os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            text += " " + hashlib.sha256(open(path, "rb").read()).hexdigest()
        found[path] = text
units = subprocess.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,socket"],
                       capture_output=True, text=True, check=True).stdout
for line in units.splitlines():
    name, load, active = line.split()[:3]
    # Units that come and go by themselves: logins, timers' jobs, systemd's helpers.
    if "libvirt" in name or "virt" in name or "qemu" in name:
        # A daemon comes and goes by itself under socket activation.
        found["unit " + name] = active if name.endswith(".socket") else str(active == "failed")
print(json.dumps(found))
"""
SECOND = re.compile(r"guest second (\d+)")


def digest(lab: Lab, host: str) -> dict[str, str]:
    """Return what a highstate may change on a host, as path to mode, owner and digest."""
    return dict(json.loads(lab.run(host, ["python3", "-"], stdin=DIGEST).stdout))


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Return what differs between two digests."""
    return {key: (before.get(key), after.get(key)) for key in {*before, *after} if before.get(key) != after.get(key)}


@dataclass(frozen=True)
class FirstRun:
    """A first highstate with what came before and after.

    Attributes:
        hosts: the lab's hosts.
        predicted: what ``test=True`` said, by host.
        touched: what the prediction itself changed, by host; must be empty.
        done: what the first run returned, by host.
        second: what the second run returned, by host.
        second_touched: what the second run changed on disk, by host; must be empty.
    """

    hosts: list[str]
    predicted: dict[str, Any]
    touched: dict[str, Any]
    done: dict[str, Any]
    second: dict[str, Any]
    second_touched: dict[str, Any]

    @property
    def green(self) -> bool:
        """Whether every state of the first run succeeded."""
        return not any(self.failures().values())

    def failures(self) -> dict[str, list[str]]:
        """Return the failed states of the first run by host, with their comments."""
        return {host: salt.summary(answer)["failed"] for host, answer in self.done.items()}


def first_run(lab: Lab) -> FirstRun:
    """Predict, run and repeat a lab's first highstate."""
    hosts = list(lab.hosts.specs)
    bare = {host: digest(lab, host) for host in hosts}
    predicted = salt.highstate(lab.hosts, test=True)
    touched = {host: changed(bare[host], digest(lab, host)) for host in hosts}
    done = salt.highstate(lab.hosts)
    first = {host: digest(lab, host) for host in hosts}
    second = salt.highstate(lab.hosts)
    second_touched = {host: changed(first[host], digest(lab, host)) for host in hosts}
    return FirstRun(hosts, predicted, touched, done, second, second_touched)


def start_guest(lab: Lab, host: str, name: str) -> None:
    """Boot a counting guest on a hypervisor and wait until it counts."""
    for hypervisor in lab.hosts.hypervisors:
        lab.run(hypervisor, ["rm", "-f", f"/var/log/libvirt/qemu/{name}-serial.log"])
    lab.run(host, guest.install_argv(name))
    lab.wait_console(host, name, "guest second 2", timeout=180)


def end_guest(lab: Lab, name: str) -> None:
    """Remove a guest wherever it is."""
    for host in lab.hosts.hypervisors:
        for verb in ("destroy", "undefine"):
            lab.run(host, ["virsh", verb, name], check=False)


def moor(lab: Lab, host: str, name: str, bridge: str) -> None:
    """Start a guest, paused, on a bridge that no other host has: it cannot move."""
    lab.run(host, ["sh", "-ec", f"ip link add {bridge} type bridge; ip link set {bridge} up"])
    argv = guest.install_argv(name)
    place = argv.index("--network")
    argv[place : place + 2] = ["--network", f"bridge={bridge},model=virtio"]
    xml = lab.run(host, [*argv, "--print-xml", "1"]).stdout
    lab.run(host, ["virsh", "define", "/dev/stdin"], stdin=xml)
    # It never runs, so it takes no processor from the others.
    lab.run(host, ["virsh", "start", name, "--paused"])


def seconds(text: str) -> list[int]:
    """Return the numbers that a guest has counted on its console."""
    return [int(number) for number in SECOND.findall(text)]


def counted_to(lab: Lab, host: str, name: str, least: int, behind: int = 0) -> str:
    """Wait until a guest has counted to a number or beyond it on a host.

    It is no use to wait for one number: a guest that moves may have counted that on the other host.

    Args:
        lab: the lab.
        host: where the guest's console is read.
        name: of the guest.
        least: the number.
        behind: how many characters of the console do not matter.

    Returns:
        What the console has shown behind those.
    """
    deadline = time.monotonic() + 60
    while True:
        printed = lab.console(host, name)[behind:]
        if (seconds(printed) or [-1])[-1] >= least:
            return printed
        assert time.monotonic() < deadline, f"{name} has not counted to {least} on {host}: {printed[-200:]}"
        time.sleep(0.5)


def last_second(lab: Lab, host: str, name: str) -> int:
    """Return what a guest has counted up to on a host; wait for its first line there if it has just arrived."""
    return seconds(counted_to(lab, host, name, 0))[-1]


def counts_on(lab: Lab, host: str, name: str) -> None:
    """Wait until a guest that runs on a host has counted on."""
    assert state_of(lab, host, name) == "running"
    counted_to(lab, host, name, last_second(lab, host, name) + 2)


def migrate(lab: Lab, name: str, source: str, target: str, *options: str, check: bool = True) -> Any:
    """Migrate a running guest, peer to peer with native TLS, and return the finished virsh."""
    argv = ["virsh", "migrate", "--live", "--p2p", "--persistent", "--undefinesource", *(options or ("--tls",))]
    return lab.run(source, [*argv, name, f"qemu+tls://{target}/system"], check=check, timeout=120)


def state_of(lab: Lab, host: str, name: str) -> str:
    """Return a guest's state on a host, such as ``running``; empty when libvirt says that it isn't there."""
    done = lab.run(host, ["virsh", "domstate", name], check=False)
    if done.returncode == 0:
        return str(done.stdout.strip())
    # A host or a daemon that does not answer knows nothing of the guest. A guest that goes between the two questions
    # of virsh, for itself and for its state, is told in the second words.
    gone = any(words in done.stderr for words in ("failed to get domain", "Domain not found"))
    assert gone, f"{host} does not say where {name} is (return code {done.returncode}): {done.stderr}"
    return ""


def apply_states(
    lab: Lab, host: str, states: dict[str, dict[str, Any]], test: bool = False
) -> dict[str, dict[str, Any]]:
    """Run states on a host.

    Args:
        lab: the lab.
        host: where.
        states: by name: ``state`` such as "storage_pool.running", and its arguments.
        test: only predict.

    Returns:
        What each state returned, by name.
    """
    high = {}
    for name, spec in states.items():
        module, _, function = spec["state"].partition(".")
        arguments = [{key: value} for key, value in spec.items() if key != "state"]
        high[f"site_{name}"] = {module: [function, {"name": name}, *arguments]}
    argv = ["salt-call", "--out=json", "--log-level=quiet", "state.high", json.dumps(high), f"test={test}"]
    done = lab.run(host, argv, check=False, timeout=300)
    answer = json.loads(done.stdout)["local"]
    assert isinstance(answer, dict), answer
    return {row["name"]: row for row in answer.values()}


def changes_of(answer: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the changes of each state that has any."""
    return {name: row["changes"] for name, row in answer.items() if row["changes"]}


def converge(lab: Lab, host: str, states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Predict and run states, which must succeed and do what was predicted, and return the changes."""
    predicted = apply_states(lab, host, states, test=True)
    done = apply_states(lab, host, states)
    assert [f"{name}: {row['comment']}" for name, row in done.items() if row["result"] is not True] == []
    assert changes_of(predicted) == changes_of(done)
    assert {name for name, row in predicted.items() if row["result"] is None} == set(changes_of(done))
    return changes_of(done)

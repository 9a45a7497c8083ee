"""Changes of a host's interfaces, good ones and ones that go wrong, and whether the host is then as it has to be.

A run ends in one of three ways: refused (nothing was touched), old (all is as it was before), new (confirmed). Whatever
else a host looks like afterwards is a broken promise.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.proc import CommandError, LabError
from lab.stacks import BEYOND, StackHosts
from lab.state import CHECKOUT

WINDOW = 20  # seconds, unless somebody wants another one for a slow machine
# After the window a host has this long to be what it was.
GRACE = 10.0
SOURCE = CHECKOUT / "network" / "files"
# Prints what counts of a host: files of the stacks with mode and owner, and what `ip` says, but for what passes.
LOOK = """
import hashlib, json, os, subprocess, sys
found = {}
for root in ("/etc/network", "/etc/netplan", "/etc/systemd/network", "/etc/NetworkManager/system-connections"):
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            status = os.stat(path)
            digest = hashlib.sha256(open(path, "rb").read()).hexdigest()[:12]
            found[path] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {digest}"
def ip(*words):
    return json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, text=True).stdout or "[]")
for one in ip("-d", "link"):
    kind = one.get("linkinfo", {}).get("info_kind")
    found["link " + one["ifname"]] = [
        kind, one.get("master"), one["mtu"], one["address"], "UP" in one["flags"], one.get("inet6_addr_gen_mode")]
for one in ip("address"):
    for address in one["addr_info"]:
        key = f"address {address['local']}/{address['prefixlen']} {one['ifname']}"
        found[key] = [address["scope"], address.get("dynamic", False)]
for family in ("-4", "-6"):
    for one in ip(family, "route"):
        key = f"route {one['dst']} {one.get('gateway')} {one['dev']}"
        found[key] = [one.get("metric"), one.get("prefsrc"), one.get("protocol")]
print(json.dumps(found))
"""
# Waits for a state of the change and sends a signal to the applier's process.
KILL = """
import json, os, subprocess, sys, time
wanted, delay, end = sys.argv[1], float(sys.argv[2]), time.monotonic() + 120
while time.monotonic() < end:
    try:
        state = json.load(open("/var/lib/hypervisor-formula/network/state.json"))["state"]
    except (OSError, ValueError):
        state = ""
    if state == wanted:
        break
    time.sleep(0.02)
time.sleep(delay)
for _ in range(200):
    show = ["systemctl", "show", "-p", "MainPID", "--value", "hypervisor-network-apply.service"]
    pid = int(subprocess.run(show, capture_output=True, text=True).stdout or 0)
    if pid:
        os.kill(pid, 9)
        break
    time.sleep(0.05)
"""


@dataclass
class Run:
    """What came of one change.

    Attributes:
        stack: who sets up the interfaces.
        fault: its name.
        end: refused, old or new; empty if it is none of these.
        wanted: which of them are as promised.
        window: seconds that the change had to be confirmed.
        seconds: from the begin of the change to its end, by the host's clock.
        outage: seconds for which the master was not reached, as the host has measured it.
        said: why it was undone or refused.
        differences: what is not as it has to be.
    """

    stack: str
    fault: str
    wanted: tuple[str, ...]
    window: int = WINDOW
    end: str = ""
    seconds: float = 0.0
    outage: float | None = None
    said: str = ""
    differences: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, in time."""
        return self.end in self.wanted and not self.differences and self.seconds <= self.window + GRACE

    def report(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**vars(self), "wanted": list(self.wanted), "kept": self.kept}


class Subject:
    """One machine whose interfaces are changed.

    Attributes:
        stacks: the machines.
        name: the one that is meant.
        chance: decides what is left to chance, such as when something is killed.
        window: seconds that each change has to be confirmed.
    """

    def __init__(self, stacks: StackHosts, name: str, chance: random.Random, window: int = WINDOW) -> None:
        """Take a machine that is up and answers."""
        self.stacks, self.name, self.chance, self.window = stacks, name, chance, window
        self.machine = stacks.machines[name]
        self.address = stacks.address(name)

    @property
    def stack(self) -> str:
        """Who sets up its interfaces."""
        return next(one.stack for one in self.stacks.wanted if one.name == self.name)

    def run(self, argv: list[str], *, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Run a command there and return what it printed."""
        return self.stacks.hosts.run(self.name, argv, stdin=stdin, check=check, timeout=timeout).stdout

    def install(self) -> None:
        """Put the program and its units there, as the formula does."""
        files: dict[str, tuple[int, bytes]] = {}
        for path in sorted(SOURCE.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name, text = f"/{path.relative_to(SOURCE)}", path.read_bytes()
                if name.endswith(".j2"):
                    name, text = name.removesuffix(".j2"), text.replace(b"{{ python }}", b"/usr/bin/python3")
                files[name] = (0o755 if name.startswith("/usr/sbin/") else 0o644, text)
        self.stacks.hosts.unpack(self.name, files)
        self.run(["systemctl", "enable", "hypervisor-network-boot.service"])

    def look(self) -> dict[str, Any]:
        """Return what counts of the host."""
        found: dict[str, Any] = json.loads(self.run(["python3", "-"], stdin=LOOK))
        return found

    def status(self) -> dict[str, Any]:
        """Return where the change stands."""
        found: dict[str, Any] = json.loads(self.run(["network-profile", "status", "--json"], timeout=20))
        return found

    def standing(self) -> dict[str, Any]:
        """Return the same from the change's record alone, which takes the host less time."""
        folder = "/var/lib/hypervisor-formula/network"
        # Before the first change there is no record.
        script = f"cd {folder} 2>/dev/null || exit 0; ls; cat state.json 2>/dev/null || true"
        there, brace, text = self.run(["sh", "-c", script], timeout=20).partition("{")
        state = json.loads(brace + text) if brace else {"state": "idle", "id": ""}
        return {**state, "left": "pending" in there.split()}

    def pillar(self, interfaces: dict[str, Any] | None = None, **confirm: Any) -> dict[str, Any]:
        """Return a pillar; without interfaces the good one: br0 on eth0 with the address that eth0 has."""
        good = {"bridges": {"br0": {"ports": ["eth0"], **self.own()}}}
        terms = {"window": self.window, "successes": 3, "masters": [self.stacks.gateway], "beyond": [BEYOND], **confirm}
        return {"backend": "auto", "allow_uplink_change": True, "confirm": terms, **(interfaces or good)}

    def own(self) -> dict[str, Any]:
        """Return the address and the gateway that the host has."""
        return {"addresses": [f"{self.address}/24"], "gateway4": self.stacks.gateway}

    def apply(self, pillar: dict[str, Any]) -> dict[str, Any]:
        """Begin a change and return what was said; the connection may be gone before that has arrived."""
        words = ["network-profile", "apply"]
        asked = json.dumps({"pillar": pillar, "masters": []})
        try:
            answer = self.stacks.hosts.run(self.name, words, stdin=asked, check=False, timeout=90)
        except CommandError:
            return {}
        try:
            found: dict[str, Any] = json.loads(answer.stdout)
        except ValueError:
            return {}
        return found

    def over(self, patience: float = 300) -> dict[str, Any]:
        """Wait until the host answers and its change is confirmed or undone; return where it stands.

        Raises:
            LabError: that does not come about: the host is locked out.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                state = self.standing()
            except (CommandError, ValueError):
                time.sleep(1)
                continue
            if not state["left"] and state["state"] in {"idle", "confirmed", "rolled-back"}:
                return state
            time.sleep(1)
        raise LabError(f"{self.name} does not answer, or its change is not over, after {patience:.0f} s")

    def waits_for(self, wanted: str, patience: float = 60) -> None:
        """Wait until the change has come to a state."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                if self.standing()["state"] == wanted:
                    return
            except (CommandError, ValueError):
                time.sleep(0.2)

    def behind(self, program: str, *words: str) -> None:
        """Start a program there that goes on by itself."""
        path = f"/run/fault-{self.chance.randrange(10**9)}.py"
        self.run(["tee", path], stdin=program)
        self.run(["systemd-run", "--quiet", "--collect", "python3", path, *words])

    def undo(self) -> None:
        """Take a confirmed change back, as a person would."""
        # The answer may not arrive: the way back takes the connection, too.
        with contextlib.suppress(CommandError):
            self.run(["systemd-run", "--quiet", "--collect", "network-profile", "rollback"], check=False)
        time.sleep(1)
        self.over()


Fault = Callable[[Subject], "dict[str, Any] | None"]
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {}


def fault(*wanted: str) -> Callable[[Fault], Fault]:
    """Register a fault and the ends that are as promised."""

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, wanted)
        return function

    return register


def bridge(**spec: Any) -> dict[str, Any]:
    """Return br0 on eth0."""
    return {"bridges": {"br0": {"ports": ["eth0"], **spec}}}


@fault("new")
def good(subject: Subject) -> dict[str, Any] | None:
    """Nothing is wrong."""
    return subject.apply(subject.pillar())


@fault("refused")
def wrong_port(subject: Subject) -> dict[str, Any] | None:
    """There is no such card."""
    return subject.apply(subject.pillar({"bridges": {"br0": {"ports": ["eth9"], **subject.own()}}}))


@fault("old")
def wrong_gateway(subject: Subject) -> dict[str, Any] | None:
    """Nobody has the gateway's address; the master is in the same network and is reached."""
    wrong = f"{subject.address.rpartition('.')[0]}.250"
    return subject.apply(subject.pillar(bridge(addresses=[f"{subject.address}/24"], gateway4=wrong)))


@fault("old")
def wrong_address(subject: Subject) -> dict[str, Any] | None:
    """The address is of another network."""
    return subject.apply(subject.pillar(bridge(addresses=["10.99.7.5/24"], gateway4="10.99.7.1")))


@fault("old")
def wrong_vlan(subject: Subject) -> dict[str, Any] | None:
    """Nobody hears the tag."""
    tagged = {"vlans": {"eth0.77": {"link": "eth0", "id": 77}}, "ethernets": {"eth0": {}}}
    return subject.apply(subject.pillar({**tagged, "bridges": {"br0": {"ports": ["eth0.77"], **subject.own()}}}))


@fault("old")
def no_dhcp_server(subject: Subject) -> dict[str, Any] | None:
    """Nobody gives a lease."""
    return subject.apply(subject.pillar(bridge(dhcp4=True)))


@fault("old")
def master_down(subject: Subject) -> dict[str, Any] | None:
    """The master does not run while the change is checked."""
    hosts = subject.stacks.hosts
    hosts.run(hosts.controller, ["systemctl", "stop", "salt-master"])
    try:
        answer = subject.apply(subject.pillar())
        subject.over()
    finally:
        hosts.run(hosts.controller, ["systemctl", "start", "salt-master"])
    return answer


@fault("old")
def link_cut(subject: Subject) -> dict[str, Any] | None:
    """The cable is out until the window is over."""
    answer = subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied", 10)
    subject.machine.set_link(up=False)
    time.sleep(subject.window)
    subject.machine.set_link(up=True)
    return answer


@fault("new")
def minion_killed(subject: Subject) -> dict[str, Any] | None:
    """Whoever asked for the change is killed as soon as it begins; the change goes on."""
    words = ["systemd-run", "--quiet", "--collect", "--unit", "asked", "--property", "KillMode=control-group"]
    asked = json.dumps({"pillar": subject.pillar(), "masters": []})
    subject.run(["tee", "/run/asked.json"], stdin=asked)
    ask = "network-profile apply --file /run/asked.json; sleep 300"
    subject.run([*words, "sh", "-c", ask])
    subject.waits_for("applying", 20)
    subject.run(["systemctl", "kill", "--signal", "KILL", "asked"], check=False)
    return {"id": "asked"}


def killed(subject: Subject, state: str) -> dict[str, Any] | None:
    """Kill the applier some time after it has come to a state."""
    subject.behind(KILL, state, f"{subject.chance.uniform(0, 1.5):.2f}")
    time.sleep(1)
    return subject.apply(subject.pillar(checks=[["sh", "-c", "exit 1"]]))


@fault("old")
def applier_killed_applying(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it makes the change."""
    return killed(subject, "applying")


@fault("old")
def applier_killed_applied(subject: Subject) -> dict[str, Any] | None:
    """The applier is killed while it checks the change."""
    return killed(subject, "applied")


@fault("old")
def reboot(subject: Subject) -> dict[str, Any] | None:
    """The host is told to reboot within the window."""
    before = subject.machine.boot_id()
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    subject.waits_for("applied")
    time.sleep(subject.chance.uniform(0, 3))
    subject.stacks.hosts.run(subject.name, ["systemctl", "reboot"], check=False, timeout=30)
    subject.machine.wait_reboot(before, 300)
    return answer


@fault("old")
def power_cut(subject: Subject) -> dict[str, Any] | None:
    """The power goes within the window."""
    answer = subject.apply(subject.pillar(window=300, checks=[["sh", "-c", "exit 1"]]))
    time.sleep(subject.chance.uniform(0, 6))
    subject.stacks.restart(subject.name)
    return answer


@fault("refused")
def disk_full(subject: Subject) -> dict[str, Any] | None:
    """There is no space for what a change needs."""
    free = int(subject.run(["df", "--output=avail", "-B1", "/"]).split()[-1])
    subject.run(["fallocate", "--length", str(free - 65536), "/full"], timeout=300)
    try:
        return subject.apply(subject.pillar())
    finally:
        subject.run(["rm", "-f", "/full"])


@fault("new")
def second_change(subject: Subject) -> dict[str, Any] | None:
    """Another change is asked for while one is pending."""
    answer = subject.apply(subject.pillar(successes=8))
    second = subject.apply(subject.pillar(bridge(dhcp4=True)))
    if "error" not in second:
        raise LabError(f"a second change was not refused: {second}")
    return answer


def attempt(subject: Subject, name: str) -> Run:
    """Make one change with a fault and see what has come of it.

    Args:
        subject: the machine; it is as before afterwards, if the promise is kept.
        name: one of FAULTS.
    """
    function, wanted = FAULTS[name]
    run = Run(subject.stack, name, wanted, subject.window)
    before = subject.look()
    earlier = subject.status()["id"]
    try:
        answer = function(subject) or {}
        state = subject.over()
    except (LabError, CommandError) as error:
        return Run(subject.stack, name, wanted, subject.window, differences=[str(error)])
    if "error" in answer or state["id"] == earlier:
        run.end, run.said = "refused", answer.get("error", "nothing was begun")
    else:
        run.end = {"confirmed": "new", "rolled-back": "old"}.get(state["state"], "")
        run.said, run.outage = state["reason"], state["outage"]
        # A host that was down meanwhile has other things to say of its time.
        if name not in {"reboot", "power_cut"}:
            ended = float(subject.run(["stat", "-c", "%.2Y", "/var/lib/hypervisor-formula/network/state.json"]))
            run.seconds = round(ended - state["started"], 1)
    if run.end == "new":
        subject.undo()
    run.differences = settled(subject, before)
    return run


def settled(subject: Subject, before: dict[str, Any], patience: float = 15) -> list[str]:
    """Return what is not as before; what comes by itself, such as an IPv6 address, may take its time."""
    end = time.monotonic() + patience
    while True:
        now = subject.look()
        keys = [key for key in sorted({*before, *now}) if now.get(key) != before.get(key)]
        differing = [f"{key}: {now.get(key)} instead of {before.get(key)}" for key in keys]
        if not differing or time.monotonic() > end:
            return differing
        time.sleep(1)


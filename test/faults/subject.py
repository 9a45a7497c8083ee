"""A machine whose interfaces are changed, what is asked of it, and what a change of them has come to."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.proc import CommandError, LabError
from lab.stacks import BEYOND, StackHosts
from lab.state import CHECKOUT

WINDOW = 20  # seconds, unless somebody wants another one for a slow machine
# After the window a host has this long to be what it was.
GRACE = 10.0
SOURCE = CHECKOUT / "network" / "files"
# Seconds between two looks: each costs an emulated host a second of its processor, which the change needs itself.
PAUSE = 3
# The machines' IPv6 network, of those that are for examples (RFC 3849), and its router: the controller.
SIX = "2001:db8:77:"
SIX_ROUTER = f"{SIX}:1"
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
    info = one.get("linkinfo", {})
    kind, data = info.get("info_kind"), info.get("info_data", {})
    made = {key: data[key] for key in ("id", "mode", "stp_state", "forward_delay") if key in data}
    found["link " + one["ifname"]] = [
        kind, made, one.get("link"), one.get("master"), one["mtu"], one["address"], "UP" in one["flags"],
        one.get("inet6_addr_gen_mode")]
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
# Waits for a state of the change and kills the main process of a unit, some seconds after it; then says so in a file.
STRUCK = "/run/fault-struck"
BEHIND = "fault-behind"
KILL = f"""
import json, os, subprocess, sys, time
wanted, delay, unit, end = sys.argv[1], float(sys.argv[2]), sys.argv[3], time.monotonic() + 120
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
    show = ["systemctl", "show", "-p", "MainPID", "--value", unit]
    pid = int(subprocess.run(show, capture_output=True, text=True).stdout or 0)
    if pid:
        os.kill(pid, 9)
        open({STRUCK!r}, "w").close()
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
        address: its IPv4 address.
        six: the IPv6 address that it may get.
    """

    def __init__(self, stacks: StackHosts, name: str, chance: random.Random, window: int = WINDOW) -> None:
        """Take a machine that is up and answers."""
        self.stacks, self.name, self.chance, self.window = stacks, name, chance, window
        self.machine = stacks.machines[name]
        self.address = stacks.address(name)
        self.six = f"{SIX}:{self.address.rpartition('.')[2]}"

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
            time.sleep(PAUSE)
        raise LabError(f"{self.name} does not answer, or its change is not over, after {patience:.0f} s")

    def waits_for(self, wanted: str, patience: float = 60, pause: float = 0.2) -> None:
        """Wait until the change has come to a state, with a pause between two looks.

        Raises:
            LabError: it has not within that time.
        """
        end, state = time.monotonic() + patience, "unknown"
        while time.monotonic() < end:
            try:
                state = self.standing()["state"]
                if state == wanted:
                    return
                time.sleep(pause)
            except (CommandError, ValueError):
                time.sleep(0.2)
        raise LabError(f"the change of {self.name} was not {wanted} within {patience:.0f} s, but {state}")

    def without(self, families: Sequence[str]) -> list[str]:
        """Return what a confirmed change has not made: br0, with an address of these families."""
        now = self.look()
        wanted = {"inet": f"address {self.address}/24 br0", "inet6": f"address {self.six}/64 br0"}
        keys = ["link br0", *(wanted[family] for family in families)]
        return [f"{key} is not there although the change is confirmed" for key in keys if key not in now]

    def struck(self) -> bool:
        """Whether the last process that was to be killed was there to be killed."""
        return bool(self.run(["ls", STRUCK], check=False).strip())

    @contextlib.contextmanager
    def dhcp_server(self) -> Iterator[None]:
        """Have a DHCP server that knows this machine alone, and gives it the address that it has."""
        hosts, gateway = self.stacks.hosts, self.stacks.gateway
        network = f"{gateway.rpartition('.')[0]}.0"
        words = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--no-ping"]
        words += ["--interface=eth0", "--bind-interfaces", "--leasefile-ro", f"--dhcp-option=3,{gateway}"]
        words += [f"--dhcp-range={network},static,255.255.255.0,3600"]
        words += [f"--dhcp-host={self.machine.spec.mac(0)},{self.address}"]
        unit = ["systemd-run", "--quiet", "--collect", "--unit=fault-dhcp"]
        hosts.run(hosts.controller, [*unit, *words])
        try:
            yield
        finally:
            hosts.run(hosts.controller, ["systemctl", "stop", "fault-dhcp"])

    def behind(self, program: str, *words: str) -> None:
        """Start a program there that goes on by itself."""
        path = f"/run/fault-{self.chance.randrange(10**9)}.py"
        self.run(["rm", "-f", STRUCK])
        self.run(["tee", path], stdin=program)
        self.run(["systemd-run", "--quiet", "--collect", f"--unit={BEHIND}", "python3", path, *words])

    def spare(self) -> None:
        """Stop the program that was to kill a process, if it still waits: the next change is not meant."""
        with contextlib.suppress(CommandError):
            # Mostly it has ended before.
            self.run(["systemctl", "stop", BEHIND], check=False)

    def undo(self) -> None:
        """Take a confirmed change back, as a person would."""
        # The answer may not arrive: the way back takes the connection, too.
        with contextlib.suppress(CommandError):
            self.run(["systemd-run", "--quiet", "--collect", "network-profile", "rollback"], check=False)
        # Until it has begun the change counts as over, too.
        self.waits_for("rolled-back", 120, PAUSE)
        self.over()

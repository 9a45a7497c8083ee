"""A host without a kernel: links, addresses and routes are what a backend's files say, and any step may be the last.

``FakeBackend`` keeps one JSON file for each interface; ``FakeHost.activate`` is what a real backend's commands do.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypervisor_network.backends.contract import Done, Owned, Step
from hypervisor_network.engine.host import LocalHost
from hypervisor_network.model import OPENVSWITCH, Profile

MASTER, GATEWAY, BEYOND = "10.0.0.1", "10.0.0.254", "192.0.2.7"
LEASE = "10.0.0.50"
FOLDER = "/etc/fake"
FOREIGN = f"{FOLDER}/eth0.json"
MACS = {"eth0": "52:54:00:00:00:01", "eth1": "52:54:00:00:00:02", "eth2": "52:54:00:00:00:03"}
BRIDGE = {"bridges": {"br0": {"ports": ["eth0"], "dhcp4": True}}, "allow_uplink_change": True}


class Killed(BaseException):
    """The process has ended here."""


class FakeHost(LocalHost):  # type: ignore[misc]  # mypy follows no imports from here
    """A host in a folder.

    Attributes:
        kernel: interfaces by name, as the files of the fake backend have them, with what a DHCP server gave.
        faults: what is wrong with the world: "dhcp", "master", "cut", "gateway".
        kill_at: the change, counted from 1, at which the process ends; 0 for never.
        after: whether it ends after that change rather than before it.
        changes: what was changed so far, in words.
        stopping: whether the host is going down.
        active: what `systemctl is-active` says of the unit.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.kernel: dict[str, dict[str, Any]] = {}
        self.faults: set[str] = set()
        self.kill_at, self.after = 0, False
        self.changes: list[str] = []
        self.stopping, self.active, self.full = False, "inactive", False
        self.clock = 1000.0
        self.started: list[list[str]] = []
        for folder in ("etc/fake", "var/lib", "tmp"):
            (root / folder).mkdir(parents=True)
        (root / FOREIGN.lstrip("/")).write_text(json.dumps({"kind": "ethernet", "dhcp4": True}))
        (root / FOREIGN.lstrip("/")).chmod(0o640)
        self.activate()

    # ---- what may be the last thing that happens ----

    def _change(self, what: str, do: Any) -> Any:
        self.changes.append(what)
        last = self.kill_at == len(self.changes)
        if last and not self.after:
            raise Killed(what)
        done = do()
        if last:
            raise Killed(what)
        return done

    def write(self, name, content, mode=0o644, owner=None):
        if self.full:
            raise OSError(28, "No space left on device", name)
        self._change(f"write {name}", lambda: super(FakeHost, self).write(name, content, mode, owner))

    def move(self, name, target):
        self._change(f"move {target}", lambda: super(FakeHost, self).move(name, target))

    def remove(self, name):
        self._change(f"remove {name}", lambda: super(FakeHost, self).remove(name))

    # ---- commands ----

    def run(self, argv: Sequence[str], timeout: float = 30.0, stdin: str | None = None) -> Done:
        if argv[0] == "ip" and "-j" in argv:
            return Done(0, json.dumps(self._ip([word for word in argv[1:] if word not in {"-j", "-d"}])), "")
        if argv[0] == "systemctl":
            return self._systemctl(list(argv[1:]))
        if argv[0] == "ping":
            return Done(0 if self.reaches(argv[-1]) else 1, "", "")
        if argv[0] == "true":
            return Done(0, "", "")
        return Done(1, "", "")

    def _systemctl(self, words: list[str]) -> Done:
        if words[0] == "is-system-running":
            return Done(0, "stopping" if self.stopping else "running", "")
        if words[0] == "is-active":
            return Done(0, self.active, "")
        self.started.append(words)
        return Done(0, "", "")

    def _ip(self, words: list[str]) -> list[dict[str, Any]]:
        if words[:2] == ["link", "show"]:
            return [self._link(name) for name in self.kernel]
        if words[:2] == ["address", "show"]:
            return [{"ifname": name, "addr_info": one["given"]} for name, one in self.kernel.items()]
        if words[:2] == ["-4", "route"]:
            return [
                {"dst": "default", "gateway": one["gateway"], "dev": name, "protocol": "static"}
                for name, one in self.kernel.items()
                if one["gateway"]
            ]
        if words[:2] == ["route", "get"]:
            return [{"dst": words[2], "dev": name} for name in self._near(words[2])]
        return []

    def _link(self, name: str) -> dict[str, Any]:
        one = self.kernel[name]
        link = {"ifname": name, "link_type": "ether", "flags": ["UP"], "mtu": 1500, "address": one["mac"]}
        if one["kind"] != "ethernet":
            link["linkinfo"] = {"info_kind": one["kind"], "info_data": {"id": one.get("id", 0)}}
        if one.get("link"):
            link["link"] = one["link"]
        return {**link, **({"master": one["master"]} if one.get("master") else {})}

    # ---- the world ----

    def now(self) -> float:
        return self.clock

    def date(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def free(self, name: str) -> int:
        return 100 if "space" in self.faults else 1 << 30

    def connects(self, address: str, port: int, timeout: float) -> bool:
        return self.reaches(address)

    def _near(self, address: str) -> list[str]:
        return [
            name
            for name, one in self.kernel.items()
            for given in one["given"]
            if not one.get("master")
            and ipaddress.ip_address(address) in ipaddress.ip_interface(f"{given['local']}/24").network
            and self._wired(name)
        ]

    def _wired(self, name: str) -> bool:
        """Says whether frames of this interface leave by eth0 without a tag."""
        ports = [port for port, one in self.kernel.items() if one.get("master") == name]
        return name == "eth0" or any(self._wired(port) for port in ports)

    def reaches(self, address: str) -> bool:
        if "cut" in self.faults or (address == MASTER and "master" in self.faults):
            return False
        if address in {MASTER, GATEWAY}:
            return bool(self._near(address))
        through = [str(one["gateway"]) for one in self.kernel.values() if one["gateway"]]
        return bool(address == BEYOND and through == [GATEWAY] and "gateway" not in self.faults)

    def activate(self) -> None:
        """Makes the kernel what the files say; a card that nobody speaks of is there without addresses."""
        found: dict[str, dict[str, Any]] = {
            name: {"kind": "ethernet", "mac": mac, "given": [], "gateway": ""} for name, mac in MACS.items()
        }
        for path in sorted(self.path(FOLDER).glob("*.json")):
            if path.name.startswith("."):
                continue
            name = path.stem.removeprefix("50-hypervisor-")
            spec = json.loads(path.read_text())
            one = {**spec, "mac": MACS.get(name) or spec.get("mac", ""), "gateway": spec.get("gateway4", "")}
            one["given"] = [
                {"family": "inet", "local": text.split("/")[0], "prefixlen": 24, "scope": "global"}
                for text in spec.get("addresses", ())
            ]
            found[name] = one
        self.kernel = found
        for name, one in found.items():
            if one.get("dhcp4") and "dhcp" not in self.faults and self._wired(name) and one["mac"] == MACS["eth0"]:
                one["given"].append(
                    {"family": "inet", "local": LEASE, "prefixlen": 24, "scope": "global", "dynamic": True}
                )
                one["gateway"] = GATEWAY

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Returns everything below /etc, hidden files too."""
        return {
            str(path.relative_to(self.root)): (path.stat().st_mode & 0o7777, path.read_bytes())
            for path in sorted(self.path("/etc").rglob("*"))
            if path.is_file()
        }

    def reboot(self) -> None:
        """Begins anew with what the disk holds, before anything is activated."""
        self.kernel, self.stopping = {}, False
        self.kill_at, self.after, self.changes = 0, False, []


class FakeBackend:
    """A backend with one file for each interface; ``broken`` makes a method fail.

    ``untaken`` names interfaces whose files it has not taken, though they are there; it takes them when it sets them
    up, unless it is ``deaf``.
    """

    name = "networkd"

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.untaken: set[str] = set()
        self.deaf = False

    def missing(self, host) -> str:
        return ""

    def manages(self, host, interface) -> bool:
        return str(interface) == "eth0"

    def adapt(self, host, profile: Profile) -> Profile:
        return profile

    def render(self, profile: Profile) -> dict[str, Owned]:
        found = {}
        for one in profile.present:
            spec = {
                "kind": one.kind, "mac": one.mac, "dhcp4": one.dhcp4, "addresses": list(one.addresses),
                "gateway4": one.gateway4, "link": one.link, "id": one.vlan_id,
                # The database of Open vSwitch says what its ports are, no file does.
                "master": "" if profile.kind_above(one.name) == OPENVSWITCH else one.master,
            }  # fmt: skip
            found[f"{FOLDER}/50-hypervisor-{one.name}.json"] = Owned(json.dumps(spec))
        return found

    def owned(self, host) -> list[str]:
        return [f"{FOLDER}/{path.name}" for path in host.path(FOLDER).glob("50-hypervisor-*.json")]

    def takeover(self, host, profile) -> dict[str, bytes | None]:
        spoken = any(one.name == "eth0" for one in profile.interfaces)
        return {FOREIGN: None} if spoken and host.path(FOREIGN).exists() else {}

    def validate(self, host, candidate, profile) -> list[str]:
        return ["the candidate is wrong"] if self.broken == "validate" else []

    def remember(self, host) -> dict[str, Any]:
        return {}

    def release(self, host, step: Step) -> None:
        host._change("release", lambda: None)

    def activate(self, host, step: Step) -> None:
        host._change("activate", host.activate)
        if not self.deaf:
            self.untaken -= set(step.changed)

    def boot(self, host) -> None:
        host._change("boot", lambda: None)

    def services(self) -> tuple[str, ...]:
        return ()

    def read_back(self, host, profile) -> dict[str, str]:
        return {name: f"{name} is set up by no file" for name in sorted(self.untaken)}


def pillar(change: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Returns a merged pillar: br0 on eth0 with DHCP, or another change."""
    confirm = {"window": 20, "successes": 3, "masters": [], "ports": [4505, 4506], "beyond": [], "checks": []}
    found = dict(BRIDGE if change is None else {"allow_uplink_change": True, **change})
    return {**found, "confirm": {**confirm, **more}}

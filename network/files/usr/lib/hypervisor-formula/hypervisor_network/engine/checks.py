"""What must be true before a change counts as good: addresses, the master's ports, the gateway, and beyond."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypervisor_network.backends.contract import Snapshot
from hypervisor_network.model import Profile

from . import runtime
from .host import LocalHost

_TCP = 2.0  # seconds for a connection
_LOOKUP = 5.0  # seconds for a name
_COMMAND = 20.0  # seconds for a command of the pillar
_PROBE = 0.2  # seconds between looks at the master while its absence is measured
_CALM = 1.0  # the same once the change is made and the master answers: looking takes the checks' time
_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d+)\Z")


@dataclass(frozen=True)
class Target:
    """What must answer.

    Attributes:
        kind: tcp, ping or command.
        host: a name or an address.
        port: of tcp.
        argv: of command.
    """

    kind: str
    host: str = ""
    port: int = 0
    argv: tuple[str, ...] = ()

    def stored(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {**vars(self), "argv": list(self.argv)}

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Target:
        """Reads what :meth:`stored` has written."""
        return cls(**{**found, "argv": tuple(found["argv"])})

    def __str__(self) -> str:
        """Names it for a person."""
        if self.kind == "command":
            return " ".join(self.argv)
        return f"{self.host} port {self.port}" if self.kind == "tcp" else self.host


def addresses(host: LocalHost, name: str) -> list[str]:
    """Returns the addresses of a name, as this host looks it up; an address is its own."""
    try:
        return [str(ipaddress.ip_address(name.strip("[]")))]
    except ValueError:
        done = host.run(["getent", "ahosts", name], timeout=_LOOKUP)
        return list(dict.fromkeys(line.split()[0] for line in done.out.splitlines() if line.strip()))


def answers(host: LocalHost, target: Target) -> bool:
    """Says whether a target answers."""
    if target.kind == "command":
        return host.run(target.argv, timeout=_COMMAND).code == 0
    if target.kind == "ping":
        return _pings(host, target.host)
    return any(host.connects(address, target.port, _TCP) for address in addresses(host, target.host))


def _pings(host: LocalHost, address: str) -> bool:
    """Says whether an address answers a ping, or at least the question for its hardware address."""
    if host.run(["ping", "-n", "-c", "1", "-W", "1", address], timeout=5).code == 0:
        return True
    # Many routers do not answer; then the kernel's own question was answered, or not.
    near = host.ip("neighbour", "show", "to", address)
    return any({"REACHABLE", "DELAY", "PROBE"} & set(one.get("state", [])) for one in near)


def targets(profile: Profile, masters: Sequence[str]) -> list[Target]:
    """Returns what the pillar asks for.

    Args:
        profile: the profile.
        masters: the minion's, for a pillar that names none.
    """
    asked = profile.confirm
    found = [Target("tcp", master, port) for master in asked.masters or masters for port in asked.ports]
    for text in asked.beyond:
        match = _HOST_PORT.match(text)
        found.append(Target("tcp", match["host"].strip("[]"), int(match["port"])) if match else Target("ping", text))
    return found + [Target("command", argv=argv) for argv in asked.checks]


def name_servers(host: LocalHost, snapshot: Snapshot) -> list[Target]:
    """Returns the name servers that answer now and are not in a network of this host: they prove the gateway."""
    try:
        text = host.path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    near = [
        ipaddress.ip_interface(f"{one['local']}/{one['prefixlen']}").network
        for link in snapshot.addresses
        for one in link.get("addr_info", [])
        if one and one.get("local")
    ]
    found = []
    for word in re.findall(r"^nameserver\s+([0-9A-Fa-f:.]+)\s*$", text, re.MULTILINE):
        try:
            address = ipaddress.ip_address(word)
        except ValueError:
            continue
        target = Target("tcp", word, 53)
        if not any(address in network for network in near) and answers(host, target):
            found.append(target)
    return found


def gateways(snapshot: Snapshot) -> list[str]:
    """Returns the routers of the default routes."""
    found = [
        str(one["gateway"])
        for one in (*snapshot.routes, *snapshot.routes6)
        if one.get("dst") == "default" and one.get("gateway") and str(one.get("table", "main")) == "main"
    ]
    # A link-local router needs its link, and announces itself.
    return [one for one in dict.fromkeys(found) if not ipaddress.ip_address(one).is_link_local]


def failures(
    host: LocalHost,
    profile: Profile,
    wanted: Sequence[Target],
    leases: Mapping[str, Sequence[str]],
    gateway: bool,
    excused: Collection[str] = (),
) -> list[str]:
    """Makes one round of checks.

    Args:
        host: the host.
        profile: with names of this host.
        wanted: what must answer.
        leases: IPv4 addresses that a DHCP server must have given, by interface.
        gateway: whether the routers of the default routes must answer.
        excused: what may be so, since it was before and has nothing to do with the change.

    Returns:
        What is not good, one sentence without a full stop each.
    """
    now = runtime.take(host)
    differing = runtime.differences(profile, now, leased=True).values()
    found = [line for lines in differing for line in lines if line not in excused]
    for name, given in leases.items():
        have = [str(one.get("local")) for one in runtime.addresses_of(now, name) if one.get("family") == "inet"]
        if not set(given) & set(have):
            found.append(f"{name} has {', '.join(have) or 'no address'} instead of {', '.join(given)}")
    if found:
        # Nothing can answer before the addresses are there, and asking takes its time.
        return found
    found = [f"{target} does not answer" for target in wanted if target.kind != "command" and not answers(host, target)]
    if gateway:
        found += [f"the gateway {one} does not answer" for one in gateways(now) if not _pings(host, one)]
    return found or [f"{target} fails" for target in wanted if target.kind == "command" and not answers(host, target)]


class Outage:
    """Measures, in a thread of its own, the longest time for which a target was not reached.

    Args:
        host: the host.
        target: what is looked at; a name is looked up once, before anything changes. None measures nothing.
    """

    def __init__(self, host: LocalHost, target: Target | None) -> None:
        self._host = host
        self._port = target.port if target else 0
        self._address = next(iter(addresses(host, target.host)), "") if target else ""
        self._end = threading.Event()
        self._calm = False
        self._latest = 0.0
        self._longest = 0.0
        self._lost = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> bool:
        """Begins if the target answers now; says whether it does."""
        if not self._address or not self._host.connects(self._address, self._port, _TCP):
            return False
        self._latest = self._host.now()
        self._thread.start()
        return True

    def _watch(self) -> None:
        """Connects again and again."""
        while not self._end.is_set():
            if self._host.connects(self._address, self._port, 0.5):
                now = self._host.now()
                gap = now - self._latest
                if self._lost:
                    self._longest = max(self._longest, gap)
                self._latest, self._lost = now, False
            else:
                self._lost = True
            self._end.wait(_CALM if self._calm and not self._lost else _PROBE)

    def calm(self, *, calm: bool) -> None:
        """Looks less often while nothing is changed."""
        self._calm = calm

    def seconds(self) -> float | None:
        """Returns the longest time without an answer so far, the present one too; None if nothing was measured."""
        if self._thread.ident is None:
            return None
        present = self._host.now() - self._latest if self._lost else 0.0
        return round(max(self._longest, present), 1)

    def stop(self) -> None:
        """Ends the thread."""
        self._end.set()

"""Rows about interfaces: how long a host is away while its uplink moves into a bridge, against the same by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import stacks
from lab.lab import Lab
from lab.proc import LabError
from lab.state import CHECKOUT

from .rows import Row, median, spread

if TYPE_CHECKING:
    from lab.ui import Progress

GOAL = 3.0
FILES = CHECKOUT / "network/files"
PYTHON = "/usr/bin/python3"
UNIT = "bench-outage"
ON_HOST = Path(__file__).with_name("on_network.py")
# Seconds that are watched: the change, and what a slow stack does after it.
WATCHED = 60
# What a person does: the files, and the commands in their order. FILES stands for their exchange.
EXCHANGE = "FILES"
BY_HAND: dict[str, tuple[dict[str, str | None], tuple[tuple[str, ...], ...]]] = {
    "ifupdown": (
        {
            "/etc/network/interfaces.d/eth0": None,
            "/etc/network/interfaces.d/br0": "auto br0\niface br0 inet static\n    address {address}/24\n"
            "    gateway {gateway}\n    bridge_ports eth0\n    bridge_hw {mac}\n    bridge_stp off\n    bridge_fd 0\n",
        },
        (("ifdown", "eth0"), (EXCHANGE,), ("ifup", "br0")),
    ),
    "networkd": (
        {
            "/etc/systemd/network/10-eth0.network": "[Match]\nName=eth0\n[Network]\nBridge=br0\n",
            "/etc/systemd/network/10-br0.netdev": "[NetDev]\nName=br0\nKind=bridge\nMACAddress={mac}\n",
            "/etc/systemd/network/10-br0.network": "[Match]\nName=br0\n[Network]\nAddress={address}/24\n"
            "Gateway={gateway}\n",
        },
        ((EXCHANGE,), ("networkctl", "reload"), ("networkctl", "reconfigure", "eth0", "br0")),
    ),
    "netplan": (
        {
            "/etc/netplan/50-cloud-init.yaml": "network:\n  version: 2\n  ethernets:\n    eth0: {{}}\n  bridges:\n"
            "    br0:\n      interfaces: [eth0]\n      macaddress: {mac}\n      parameters: {{stp: false}}\n"
            "      addresses: [{address}/24]\n      routes: [{{to: default, via: {gateway}}}]\n",
        },
        ((EXCHANGE,), ("netplan", "apply")),
    ),
    "networkmanager": (
        {
            "/etc/NetworkManager/system-connections/eth0.nmconnection": "[connection]\nid=eth0\ntype=ethernet\n"
            "interface-name=eth0\nmaster=br0\nslave-type=bridge\n",
            "/etc/NetworkManager/system-connections/br0.nmconnection": "[connection]\nid=br0\ntype=bridge\n"
            "interface-name=br0\nautoconnect-slaves=1\n[ethernet]\ncloned-mac-address={mac}\n[bridge]\nstp=false\n"
            "[ipv4]\nmethod=manual\naddress1={address}/24,{gateway}\n",
        },
        ((EXCHANGE,), ("nmcli", "connection", "reload"), ("nmcli", "connection", "up", "br0")),
    ),
}


def installed() -> dict[str, tuple[int, bytes]]:
    """Return what the formula puts on a host for changes: absolute path to mode and content."""
    found = {}
    for path in sorted((FILES / "usr/lib/hypervisor-formula").rglob("*.py")):
        found[f"/{path.relative_to(FILES)}"] = (0o644, path.read_bytes())
    for path in sorted((FILES / "etc/systemd/system").glob("hypervisor-network-*.service")):
        found[f"/{path.relative_to(FILES)}"] = (0o644, path.read_bytes())
    command = (FILES / "usr/sbin/network-profile.j2").read_text().replace("{{ python }}", PYTHON)
    return {**found, "/usr/sbin/network-profile": (0o755, command.encode())}


class Uplink:
    """One machine whose uplink moves.

    Attributes:
        farm: the machines.
        name: its name, which is its stack's.
    """

    def __init__(self, farm: stacks.StackHosts, name: str) -> None:
        """Take a machine that answers, and put the formula's program there."""
        self.farm, self.name = farm, name
        farm.hosts.unpack(name, installed())
        self.run("systemctl", "daemon-reload")

    def run(self, *argv: str, **options: Any) -> str:
        """Run a command on the machine and return what it prints."""
        return str(self.farm.hosts.run(self.name, list(argv), **options).stdout)

    def measured(self, request: dict[str, Any]) -> float:
        """Have the machine make a change by itself and return for how many seconds the master did not answer.

        Raises:
            LabError: the machine does not say so.
        """
        request |= {"address": self.farm.gateway, "port": 4505, "watched": WATCHED}
        words = ["systemd-run", "--collect", f"--unit={UNIT}", PYTHON, "-I", "-c", ON_HOST.read_text(encoding="utf-8")]
        self.run("rm", "-f", "/run/bench-outage.json")
        self.run(*words, json.dumps(request))
        end = time.monotonic() + 4 * WATCHED
        while time.monotonic() < end:
            time.sleep(2)
            found = self.farm.hosts.run(self.name, ["cat", "/run/bench-outage.json"], check=False, timeout=60).stdout
            if found:
                return float(json.loads(found)["outage"])
        raise LabError(f"{self.name} did not say for how long it was away")

    def ours(self) -> float:
        """Measure the formula's own change, and undo it.

        Raises:
            LabError: it was not confirmed.
        """
        bridge = {"ports": ["eth0"], "addresses": [f"{self.farm.address(self.name)}/24"], "gateway4": self.farm.gateway}
        pillar = {"allow_uplink_change": True, "bridges": {"br0": bridge}, "confirm": {"window": WATCHED}}
        asked = json.dumps({"pillar": pillar, "masters": [self.farm.gateway]})
        outage = self.measured({"commands": [["network-profile", "apply"]], "stdin": asked, "files": {}})
        state = json.loads(self.run("network-profile", "status", "--json"))
        if state["state"] != "confirmed":
            raise LabError(f"{self.name}: the change was not confirmed: {state['reason']}")
        self.run("network-profile", "rollback", timeout=120)
        return outage

    def by_hand(self) -> float:
        """Measure the change with the stack's own commands, which nobody undoes."""
        files, commands = BY_HAND[self.name]
        values = {"address": self.farm.address(self.name), "gateway": self.farm.gateway}
        values["mac"] = self.farm.machines[self.name].spec.mac(0)
        written = {name: None if text is None else text.format(**values) for name, text in files.items()}
        return self.measured({"commands": [list(argv) for argv in commands], "stdin": "", "files": written})


def rows(name: str, platform: str, repeat: int, progress: Progress) -> list[Row]:
    """Measure outages with each stack, in a lab of their own that is removed in the end.

    Args:
        name: name of the lab.
        platform: a platform of kitchen.yml.
        repeat: how often the formula's change is made and undone; by hand it is made once.
        progress: where steps are shown.
    """
    lab, found = Lab(name, progress), []
    try:
        lab.up(platform=platform, only=["controller"], highstate=False)
        farm = stacks.StackHosts(lab, stacks.all_stacks())
        farm.prepare()
        for one in farm.wanted:
            with progress.step(f"move the uplink of {one.name}, {repeat} times, and once by hand"):
                found.append(_row(farm, one.name, repeat))
            farm.machines[one.name].kill()
        farm.down()
    finally:
        lab.down()
    return found


def _row(farm: stacks.StackHosts, name: str, repeat: int) -> Row:
    """Measure one stack, or say why it could not be measured."""
    title = f"uplink moves into a bridge, outage, {name}"
    try:
        farm.start(name, minion=False)
        uplink = Uplink(farm, name)
        ours = [uplink.ours() for _ in range(repeat)]
        hand = uplink.by_hand()
    except LabError as error:
        return Row(title, None, "s", GOAL, "lower", f"not measured: {error}")
    commands = ", ".join(" ".join(argv) for argv in BY_HAND[name][1] if argv != (EXCHANGE,))
    how = f"time without a connection to the master's port, tried every 0.1 s: {spread(ours)}; by hand ({commands}): "
    return Row(title, median(ours), "s", GOAL, "lower", f"{how}{hand:.1f} s")

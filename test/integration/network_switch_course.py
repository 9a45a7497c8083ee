"""The uplink becomes a port of Open vSwitch, goes wrong in every way that is tried, and goes well in the end.

The hosts are no minions: each applies the formula itself, from a copy on its own disk, and looks for a master's ports.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml
from network_site import Outcome, Site, differences

from lab import salt, stacks
from lab.state import CHECKOUT

FORMULAS, PILLAR = "/srv/formulas", "/srv/pillar"
# Modules are used where they lie, so that no run has to copy them first.
MINION = {
    "file_client": "local",
    "file_roots": {"base": [FORMULAS]},
    "pillar_roots": {"base": [PILLAR]},
    **{f"{kind}_dirs": [f"{FORMULAS}/_{kind}"] for kind in ("states", "utils")},
    "module_dirs": [f"{FORMULAS}/_modules"],
}
# Prints bridges, their ports and what is set of these, without what changes by itself.
ROWS = """
import json, subprocess
tables = {"Bridge": ["name", "stp_enable", "other_config"], "Port": ["name", "tag"],
          "Interface": ["name", "type", "mac"]}
ask = ["Open_vSwitch"] + [{"op": "select", "table": table, "where": [], "columns": columns}
                         for table, columns in tables.items()]
done = subprocess.run(["ovsdb-client", "transact", json.dumps(ask)], capture_output=True, text=True, check=True)
rows = {table: sorted(found["rows"], key=str) for table, found in zip(tables, json.loads(done.stdout))}
rows["links"] = subprocess.run(["ovs-vsctl", "list-br"], capture_output=True, text=True, check=True).stdout.split()
rows["ports"] = {one: subprocess.run(["ovs-vsctl", "list-ports", one], capture_output=True, text=True).stdout.split()
                 for one in rows["links"]}
print(json.dumps(rows))
"""


class SwitchSite(Site):  # type: ignore[misc]  # mypy follows no imports from here
    """A machine whose card is to become a port of Open vSwitch."""

    def prepare(self) -> None:
        """Give the machine the formulas and what it needs to apply them."""
        self.hosts.run(self.name, ["mkdir", "-p", FORMULAS, PILLAR])
        self.hosts.run(self.name, ["tar", "-x", "-C", FORMULAS], stdin=salt.pack(salt.sources(), CHECKOUT))
        config = yaml.safe_dump({**MINION, "id": self.name}).encode()
        self.hosts.unpack(self.name, {"/etc/salt/minion.d/switch.conf": (0o644, config)})

    def pillar(self, window: int = 75, **bridge: Any) -> dict[str, Any]:
        """Return a pillar that makes the card a port of ovsbr0, with the host on ovshost0; ``bridge`` alters it."""
        spec = {"switch": "openvswitch", "host_port": "ovshost0", "ports": ["eth0"], "gateway4": self.farm.gateway}
        spec["addresses"] = [f"{self.farm.address(self.name)}/24"]
        return {
            "allow_uplink_change": True,
            "confirm": {
                "window": window, "masters": [self.farm.gateway], "beyond": [f"{stacks.BEYOND}:4505"],
            },
            "bridges": {"ovsbr0": {**spec, **bridge}},
        }  # fmt: skip

    def lay(self, pillar: dict[str, Any]) -> None:
        """Write the machine's pillar."""
        files = {"top.sls": {"base": {"*": ["network"]}}, "network.sls": {"network": pillar}}
        self.hosts.unpack(
            self.name, {f"{PILLAR}/{name}": (0o600, yaml.safe_dump(text).encode()) for name, text in files.items()}
        )

    def apply(self, *, test: bool = False) -> dict[str, Any]:
        """Have the machine apply network/ and return its rows by id."""
        argv = ["salt-call", "--out=json", "--out-indent=-1", "--log-level=quiet", "state.apply", "network"]
        argv += ["test=True"] if test else []
        done = self.hosts.run(self.name, argv, check=False, timeout=600)
        rows = json.loads(done.stdout)["local"]
        assert isinstance(rows, dict), rows
        return {row["__id__"]: row for row in rows.values()}

    def reaches(self, address: str) -> bool:
        """Say whether the machine reaches a master's port."""
        script = f"import socket; socket.create_connection(({address!r}, 4505), 5)"
        return bool(self.hosts.run(self.name, ["python3", "-c", script], check=False).returncode == 0)

    def facts(self) -> dict[str, Any]:
        """Return links, addresses, routes and files, and what the database of Open vSwitch has."""
        done = self.hosts.run(self.name, ["python3", "-I", "-"], stdin=ROWS, timeout=60)
        # The kernel's link of the switch itself comes and goes with the first bridge.
        found = super().facts()
        for key in ("link", "address"):
            found[key] = [one for one in found[key] if one["ifname"] != "ovs-system"]
        for one in found["link"]:
            one.pop("ifindex")
        for one in found["address"]:
            one.pop("ifindex")
        return {**found, "rows": json.loads(done.stdout)}


@dataclass
class SwitchRecord:
    """What has been seen of one stack.

    Attributes:
        name: the stack.
        wrong_port: row of the state with a port that is not there, and what that has changed.
        wrong_gateway: the change with a wrong gateway.
        killed: the change whose applier is killed in the window.
        power_cut: the change whose host loses power in the window.
        rows_in_window: what the database had when the power was cut.
        predicted: row of the good change, predicted.
        good: row of the good change.
        after: the host after it.
        again: rows of a second run.
        rebooted: the host after a reboot, and whether it reached its master and beyond.
        taken: the host after its card was taken out of the switch again, and the row of that.
    """

    name: str
    wrong_port: tuple[dict[str, Any], dict[str, Any]]
    wrong_gateway: Outcome
    killed: Outcome
    power_cut: Outcome
    rows_in_window: dict[str, Any]
    predicted: dict[str, Any]
    good: dict[str, Any]
    after: dict[str, Any]
    again: dict[str, Any]
    rebooted: tuple[dict[str, Any], bool]
    taken: tuple[dict[str, Any], dict[str, Any]]


def run(site: SwitchSite, *, keep: bool) -> SwitchRecord:
    """Start a machine and go through the changes.

    Args:
        site: the machine.
        keep: leave it running afterwards.
    """
    site.farm.start(site.name, minion=False)
    site.prepare()
    lost = f"{site.farm.gateway.rpartition('.')[0]}.250"
    # The first run brings the program and the switch, and refuses the change.
    site.lay(site.pillar(ports=["eth9"]))
    bare = Site.facts(site)
    port = site.apply()["network_profile"]
    wrong_port = (port, differences(bare, Site.facts(site)))
    before = site.facts()
    site.stage(site.pillar(75, gateway4=lost))
    wrong_gateway = site.undone(before)
    site.stage(site.pillar(240, gateway4=lost))
    site.wait("applied", timeout=120)
    site.hosts.run(site.name, ["systemctl", "kill", "--kill-whom=all", "--signal=KILL", "hypervisor-network-apply"])
    killed = site.undone(before)
    site.stage(site.pillar(240, gateway4=lost))
    site.wait("applied", timeout=120)
    rows_in_window = site.facts()["rows"]
    site.farm.restart(site.name)
    power_cut = site.undone(before)
    site.lay(site.pillar(240))
    predicted = site.apply(test=True)["network_profile"]
    good = site.apply()["network_profile"]
    after = site.facts()
    again = site.apply()
    old = site.machine.boot_id()
    site.hosts.run(site.name, ["systemctl", "reboot"], check=False)
    site.machine.wait_reboot(old, timeout=400)
    reached = [site.reaches(one) for one in (site.farm.gateway, stacks.BEYOND)] == [True, True]
    rebooted = (site.facts(), reached)
    gone = site.pillar(240)
    own = {key: gone["bridges"]["ovsbr0"].pop(key) for key in ("addresses", "gateway4")}
    gone["bridges"]["ovsbr0"]["ensure"] = "absent"
    site.lay({**gone, "ethernets": {"eth0": own}})
    taken = (site.apply()["network_profile"], site.facts())
    record = SwitchRecord(
        site.name, wrong_port, wrong_gateway, killed, power_cut, rows_in_window, predicted, good, after, again,
        rebooted, taken,
    )  # fmt: skip
    if not keep:
        site.machine.kill()
    return record

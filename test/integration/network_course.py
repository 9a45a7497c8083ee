"""The changes that every network stack goes through, and what is seen on the way.

They run in an order in which each finds the host as it was at first; the good one is the last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from network_site import Outcome, Site, differences

from lab import vmstack

# For a look at some stacks: LAB_STACKS=netplan,ifupdown.
WANTED = os.environ.get("LAB_STACKS", ",".join(vmstack.STACKS)).split(",")
# Minutes more for each stack; `make faults` has more kinds of them.
SLOW = os.environ.get("LAB_SLOW") == "1"
# Stacks that lose power in the window: the boot of netplan has its own way back, since files are made anew from those
# that are restored.
CUT = WANTED if SLOW or "netplan" not in WANTED else ["netplan"]
# Stacks that get an address of another network.
MISADDRESSED = WANTED if SLOW else WANTED[:1]
STATE = "network_profile"


@dataclass
class Record:
    """What has been seen of one stack.

    Attributes:
        name: the stack.
        wrong_port: row of the state with a port that is not there, and what that has changed.
        refused: what network-profile says without consent.
        wrong_gateway: the change with a wrong gateway.
        killed: the change whose applier is killed in the window.
        wrong_address: the change with an address of another network; None unless it is run.
        power_cut: the change whose host loses power in the window; None unless it is run.
        predicted: row of the good change, predicted.
        good: row of the good change.
        good_state: what network-profile says of it.
        after: links, addresses and routes after the good change.
        again: rows of a second run, for which the minion must still hear its master.
        journal: complaints of the stack about files.
    """

    name: str
    wrong_port: tuple[dict[str, Any], dict[str, Any]]
    refused: dict[str, Any]
    wrong_gateway: Outcome
    killed: Outcome
    wrong_address: Outcome | None
    power_cut: Outcome | None
    predicted: dict[str, Any]
    good: dict[str, Any]
    good_state: dict[str, Any]
    after: dict[str, Any]
    again: dict[str, Any]
    journal: str


def _killed(site: Site, before: dict[str, Any]) -> Outcome:
    """Kill the applier while it checks a change that cannot succeed."""
    site.stage(site.pillar(90, gateway4=_nobody(site)))
    site.wait("applied", timeout=60)
    site.hosts.run(site.name, ["systemctl", "kill", "--kill-whom=all", "--signal=KILL", "hypervisor-network-apply"])
    return site.undone(before)


def _power_cut(site: Site, before: dict[str, Any]) -> Outcome:
    """Cut the power while a change that cannot succeed is checked."""
    site.stage(site.pillar(90, gateway4=_nobody(site)))
    site.wait("applied", timeout=60)
    site.farm.restart(site.name)
    return site.undone(before)


def _nobody(site: Site) -> str:
    """Return an address in the network that nobody has."""
    return f"{site.farm.gateway.rpartition('.')[0]}.250"


def run(site: Site, *, keep: bool) -> Record:
    """Start a machine and go through the changes.

    Args:
        site: the machine.
        keep: leave it running afterwards.
    """
    site.farm.start(site.name)
    # The first run brings the program; it refuses the change, and so does the prediction.
    site.lay(site.pillar(ports=["eth9"]))
    bare = site.facts()
    port = site.apply()[STATE]
    wrong_port = (port, differences(bare, site.facts()))
    before = site.facts()
    refused = site.stage({**site.pillar(), "allow_uplink_change": False})
    site.stage(site.pillar(gateway4=_nobody(site)))
    wrong_gateway = site.undone(before)
    killed = _killed(site, before)
    wrong_address = power_cut = None
    if site.name in CUT:
        power_cut = _power_cut(site, before)
    if site.name in MISADDRESSED:
        site.stage(site.pillar(addresses=["10.99.0.5/24"], gateway4="10.99.0.1"))
        wrong_address = site.undone(before)
    site.lay(site.pillar(90))
    predicted = site.apply(test=True)[STATE]
    good = site.apply()[STATE]
    good_state = site.wait("confirmed", timeout=60)
    after = site.facts()
    again = site.apply()
    journal = site.hosts.run(site.name, ["journalctl", "-b", "--no-pager", "-o", "cat"]).stdout
    complaints = [line for line in journal.splitlines() if "Unknown key" in line or "Unknown section" in line]
    record = Record(
        site.name, wrong_port, refused, wrong_gateway, killed, wrong_address, power_cut, predicted, good, good_state,
        after, again, "\n".join(complaints),
    )  # fmt: skip
    if not keep:
        site.machine.kill()
    return record

"""systemd-networkd on a host."""

from __future__ import annotations

import contextlib
import fnmatch
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import BackendError, Host, Json, Owned, Step
from hypervisor_network.model import Interface, Profile

from . import render

UNIT = "systemd-networkd.service"
RESOLVER = "systemd-resolved.service"
# Seconds until an interface that has a file is made, and until it has its addresses.
_APPEARS = 5.0
_SETTLES = 8.0
# What `networkctl status` says of a lease: IAID:0x1a2b/DUID, or the MAC address.
_CLIENT = re.compile(r"DHCP4 Client ID:\s*(?:IAID:(0x[0-9a-fA-F]+)|(\S+))")


class Backend:
    """See :class:`hypervisor_network.backends.contract.Backend`."""

    name = "networkd"

    def missing(self, host: Host) -> str:
        """Returns why networkd cannot be used."""
        return "" if common.active(host, UNIT) else f"{UNIT} does not run"

    def manages(self, host: Host, interface: str) -> bool:
        """Says whether networkd has set up the interface by a file that is not netplan's."""
        file = state_of(host, interface).get("NETWORK_FILE", "")
        return bool(file) and "/10-netplan-" not in file and common.active(host, UNIT)

    def adapt(self, host: Host, profile: Profile) -> Profile:
        """Adds as whom bridges and bonds speak to a DHCP server: as their port has done."""
        return replace(profile, interfaces=tuple(self._identified(host, profile, one) for one in profile.interfaces))

    def _identified(self, host: Host, profile: Profile, one: Interface) -> Interface:
        """Finds an interface's identity in its own file, else with the first of what it stands on that has a lease."""
        if not (one.dhcp4 or one.dhcp6) or not one.ports or one.absent:
            return one
        file = host.path(self._identity_file(one))
        if file.is_file():
            text = common.text_of(file)
            known = common.values(text, "DHCPv4", "IAID") + common.values(text, "DHCPv6", "IAID")
            return replace(one, client=(known + common.values(text, "DHCPv4", "ClientIdentifier") + [""])[0])
        below: Interface | None = one
        while below is not None and below.ports:
            below = profile.get(below.ports[0])
            if below is not None and (client := client_of(host, below.name)):
                return replace(one, client=client)
        return one if below is None else replace(one, client="")

    def _identity_file(self, one: Interface) -> str:
        """Returns the file that says as whom an interface speaks."""
        return render.path(one.name, "network")

    def render(self, profile: Profile) -> dict[str, Owned]:
        """Returns the formula's files."""
        return render.render(profile)

    def owned(self, host: Host) -> list[str]:
        """Returns the formula's files that are there."""
        return [name for name, _ in common.files(host, render.FOLDER, f"{render.PREFIX}-*")]

    def takeover(self, host: Host, profile: Profile) -> dict[str, bytes | None]:
        """Returns files of others that are for interfaces of the profile alone.

        What is for more interfaces stays: the formula's files sort before it.
        """
        names = {one.name for one in common.taken(profile)}
        macs = {
            str(link.get("permaddr") or link.get("address", "")).lower(): name
            for name, link in common.links(host).items()
        }
        found: dict[str, bytes | None] = {}
        for pattern in ("*.network", "*.netdev"):
            for name, path in common.files(host, render.FOLDER, pattern):
                if path.name.startswith(f"{render.PREFIX}-"):
                    continue
                meant = _meant(common.text_of(path), macs)
                if meant and meant <= names:
                    found[name] = None
                elif path.name < render.PREFIX and (hit := [one for one in sorted(names) if _fits(one, meant)]):
                    raise BackendError(f"{name} is for more than {hit[0]} and is read first; rename it")
        return found

    def validate(self, host: Host, candidate: Path, profile: Profile) -> list[str]:
        """Reads the candidate files back, since networkd has no way to judge them."""
        wrong = common.missing_ports(host, profile) + common.other_hands(host, profile, self.name)
        wrong += [
            f"{one.name}: networkd names the VLANs of a card in the card's own file; declare {one.link} too"
            for one in profile.present
            if one.link and (link := profile.get(one.link)) is not None and link not in common.ours(profile)
        ]
        for name, path in common.files(_Candidate(candidate), render.FOLDER, f"{render.PREFIX}-*"):
            wrong += [f"{name}: {line}" for line in render.unknown(common.sections(common.text_of(path)))]
        return wrong + self._resolver(host, profile)

    def _resolver(self, host: Host, profile: Profile) -> list[str]:
        """Says that nobody would listen to the name servers."""
        names = [one.name for one in common.ours(profile) if one.dns_servers or one.dns_search]
        if not names or common.active(host, RESOLVER):
            return []
        return [f"{names[0]}: networkd gives dns to {RESOLVER}, which does not run; start it, or leave dns out"]

    def remember(self, host: Host) -> dict[str, Any]:
        """Returns which interfaces networkd has set up."""
        return {"managed": [name for name in common.links(host) if state_of(host, name).get("NETWORK_FILE")]}

    def release(self, host: Host, step: Step) -> None:
        """Removes what networkd cannot alter."""
        _remove_other(host, step)

    def activate(self, host: Host, step: Step) -> None:
        """Lets networkd read its files anew and set up the interfaces by them."""
        if step.back:
            common.remove_made(host, step)
        else:
            common.remove_absent(host, step)
            common.free_ports(host, step)
        self._reload(host)
        if step.back:
            managed = step.snapshot.extra.get("managed", [])
            wanted = [name for name in step.changed if name in managed]
        else:
            ours = {one.name for one in common.ours(step.profile)}
            wanted = [name for name in step.changed if name in ours]
        _until(lambda: set(wanted) <= set(common.links(host)), _APPEARS)
        if _remove_other(host, step):
            # It makes a VLAN that has gone as it knew it, whatever the file says now, and forgets only when it ends
            # (netdev_drop in its src/network/netdev/netdev.c).
            common.ran(host, ["systemctl", "restart", UNIT])
            _until(lambda: set(wanted) <= set(common.links(host)), _APPEARS)
        if not step.back:
            common.tune(host, step)
        there = common.links(host)
        present = [name for name in wanted if name in there]
        if present:
            common.ran(host, ["networkctl", "reconfigure", *present])
        if set(wanted) - set(there):
            raise BackendError(f"networkd has not made {', '.join(sorted(set(wanted) - set(there)))}")
        if step.back:
            common.restore_modes(host, step)
            common.restore_options(host, step)
            _until(lambda: all(_restored(host, step, name) or _ready(host, name) for name in present), _SETTLES)
        # Until it had read its files networkd could put a port back.
        common.free_ports(host, step)
        common.reattach(host, step)

    def _reload(self, host: Host) -> None:
        """Makes networkd read its files; one that does not answer is started anew, which leaves addresses alone."""
        if host.run(["networkctl", "reload"]).code:
            common.ran(host, ["systemctl", "restart", UNIT])

    def boot(self, host: Host) -> None:
        """Does nothing: networkd reads the files when it starts."""

    def services(self) -> tuple[str, ...]:
        """Names what sets up interfaces."""
        return (UNIT,)

    def read_back(self, host: Host, profile: Profile) -> dict[str, str]:
        """Says which interfaces networkd has not set up by the formula's files."""
        found = {}
        for one in common.ours(profile):
            file = state_of(host, one.name).get("NETWORK_FILE", "")
            if not self._is_ours(file, one):
                found[one.name] = f"networkd has set up {one.name} by {file or 'no file'}"
        return found

    def _is_ours(self, file: str, one: Interface) -> bool:
        """Says whether that is the file that networkd should take for an interface."""
        return file == render.path(one.name, "network")


class _Candidate:
    """A folder as a host without commands, for functions that only look at files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Returns where an absolute path is."""
        return self.root / name.lstrip("/")


def _remove_other(host: Host, step: Step) -> list[str]:
    """Removes what is there as something else than the files make, and returns its names."""
    return common.remove_remade(host, step) if step.back else common.remove_outdated(host, step)


def state_of(host: Host, name: str) -> dict[str, str]:
    """Returns what networkd says of an interface: ADMIN_STATE, NETWORK_FILE and others; empty if it has not seen it."""
    index = next((one.get("ifindex") for one in host.ip("link", "show", "dev", name)), None)
    file = host.path(f"/run/systemd/netif/links/{index}")
    with contextlib.suppress(OSError, ValueError):
        lines = file.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {}


def client_of(host: Host, name: str) -> str:
    """Returns as whom an interface speaks to its DHCP server: an IAID, "mac", or nothing if it has no lease."""
    found = _CLIENT.search(host.run(["networkctl", "status", "--no-pager", name]).out)
    if found is None:
        return ""
    return str(int(found[1], 16)) if found[1] else "mac"


def _fits(name: str, words: set[str]) -> bool:
    """Says whether an interface is meant by names and patterns; a leading "!" says which are not."""
    turned = any(word.startswith("!") for word in words)
    return any(fnmatch.fnmatchcase(name, word.lstrip("!")) for word in words) != turned


def _meant(text: str, macs: dict[str, str]) -> set[str]:
    """Returns the interfaces that a file is for; a pattern is returned as it stands."""
    names = [word for value in common.values(text, "Match", "Name") for word in value.split()]
    names += common.values(text, "NetDev", "Name")
    for key in ("MACAddress", "PermanentMACAddress"):
        for value in common.values(text, "Match", key):
            names += [macs.get(word.lower(), word) for word in value.split()]
    return set(names)


def _restored(host: Host, step: Step, name: str) -> bool:
    """Says whether an interface has the addresses again that it had before the change, if it had any."""

    def of(shown: Json) -> set[tuple[Any, Any]]:
        return {
            (one.get("local"), one.get("prefixlen"))
            for link in shown
            for one in link.get("addr_info", [])
            if link.get("ifname") == name and one.get("scope") == "global"
        }

    before = of(step.snapshot.addresses)
    return bool(before) and before <= of(host.ip("address", "show", "dev", name))


def _ready(host: Host, name: str) -> bool:
    """Says whether networkd has done with an interface; one that looks for IPv6 routers takes 12 s to give up."""
    return state_of(host, name).get("ADMIN_STATE") in {"configured", "unmanaged", "failed"}


def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for a condition, for a limited time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)

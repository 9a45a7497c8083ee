"""NetworkManager on a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import BackendError, Host, Owned, Step
from hypervisor_network.model import OPENVSWITCH, Profile

from . import render

UNIT = "NetworkManager.service"
# Seconds for a connection to come up; NetworkManager itself waits 45 s for a lease.
_PATIENCE = 50
# The first nmcli that has --offline.
_OFFLINE_SINCE = (1, 40)


class Backend:
    """See :class:`hypervisor_network.backends.contract.Backend`."""

    name = "networkmanager"

    def missing(self, host: Host) -> str:
        """Returns why NetworkManager cannot be used."""
        if host.run(["nmcli", "--version"]).code == 127:
            return "nmcli is not installed"
        return "" if common.active(host, UNIT) else f"{UNIT} does not run"

    def manages(self, host: Host, interface: str) -> bool:
        """Says whether NetworkManager has set up the interface, rather than merely looked at it."""
        text = host.run(["nmcli", "-g", "GENERAL.STATE", "device", "show", interface]).out
        return text.startswith("100") and "externally" not in text

    def adapt(self, _host: Host, profile: Profile) -> Profile:
        """Returns the profile as it is: NetworkManager identifies itself by the MAC address."""
        return profile

    def render(self, profile: Profile) -> dict[str, Owned]:
        """Returns the formula's files.

        Raises:
            BackendError: there is an interface of Open vSwitch, for which NetworkManager wants a plugin of its own.
        """
        for one in profile.present:
            if one.kind == OPENVSWITCH:
                raise BackendError(
                    f"network:bridges:{one.switch}:switch: the backend networkmanager does not set up interfaces of "
                    "Open vSwitch; ifupdown, networkd and netplan do"
                )
        return render.render(profile)

    def owned(self, host: Host) -> list[str]:
        """Returns the formula's files that are there."""
        return [name for name, _ in common.files(host, render.FOLDER, f"{render.PREFIX}-*.nmconnection")]

    def takeover(self, host: Host, profile: Profile) -> dict[str, bytes | None]:
        """Returns the connections of others for interfaces of the profile.

        Those for any card stay: the formula's have a higher priority.
        """
        names = {one.name for one in common.taken(profile)}
        macs = {
            str(link.get("permaddr") or link.get("address", "")).lower(): name
            for name, link in common.links(host).items()
        }
        found: dict[str, bytes | None] = {}
        for name, path in common.files(host, render.FOLDER, "*"):
            if path.name.startswith(f"{render.PREFIX}-"):
                continue
            text = common.text_of(path)
            meant = common.values(text, "connection", "interface-name")
            for section in ("ethernet", "802-3-ethernet"):
                meant += [macs.get(value.lower(), "") for value in common.values(text, section, "mac-address")]
            if set(meant) & names:
                found[name] = None
        return found

    def validate(self, host: Host, candidate: Path, profile: Profile) -> list[str]:
        """Lets nmcli read the candidate files as connections, without the daemon."""
        wrong = common.missing_ports(host, profile) + common.other_hands(host, profile, self.name)
        there = common.links(host)
        for one in common.ours(profile):
            if one.kind == "ethernet" and one.name in there:
                state = host.run(["nmcli", "-g", "GENERAL.STATE", "device", "show", one.name]).out
                if state.startswith("10 "):
                    wrong.append(f"{one.name}: NetworkManager is told to leave it alone (nmcli device shows unmanaged)")
        if not _reads_offline(host):
            return wrong
        folder = candidate / render.FOLDER.lstrip("/")
        for path in sorted(folder.glob(f"{render.PREFIX}-*.nmconnection")):
            words = ["nmcli", "--offline", "connection", "modify", "connection.id", path.stem]
            done = host.run(words, stdin=path.read_text(encoding="utf-8"))
            if done.code:
                wrong.append(f"{render.FOLDER}/{path.name}: {common.last_words(done)}")
        return wrong

    def remember(self, host: Host) -> dict[str, Any]:
        """Returns the connection of each interface that has one."""
        active = {}
        for line in host.run(["nmcli", "-t", "-f", "UUID,DEVICE", "connection", "show", "--active"]).out.splitlines():
            identifier, _, device = line.partition(":")
            if device:
                active[device.replace("\\:", ":")] = identifier
        return {"active": active}

    def release(self, host: Host, step: Step) -> None:
        """Removes what NetworkManager cannot alter."""
        if step.back:
            common.remove_remade(host, step)
        else:
            common.remove_outdated(host, step)

    def activate(self, host: Host, step: Step) -> None:
        """Lets NetworkManager read its files anew and brings up connections, with their ports."""
        self._reload(host)
        if step.back:
            self._back(host, step)
        else:
            self._forth(host, step)
        common.reattach(host, step)

    def _reload(self, host: Host) -> None:
        """Makes NetworkManager read its files; one that does not answer is started anew."""
        if host.run(["nmcli", "connection", "reload"]).code:
            common.ran(host, ["systemctl", "restart", UNIT], timeout=60)
            common.ran(host, ["nmcli", "connection", "reload"])

    def _forth(self, host: Host, step: Step) -> None:
        """Brings up what is no port; the ports come with it."""
        common.remove_absent(host, step)
        ours = {one.name for one in common.ours(step.profile)}
        for one in common.touched(step.profile, step.changed):
            if one.name in ours and not one.master:
                words = ["nmcli", "--wait", str(_PATIENCE - 5), "connection", "up", "uuid", render.uuid_of(one.name)]
                common.ran(host, words, timeout=_PATIENCE)
                for port in one.ports:
                    self._port(host, port, one.name)

    def _port(self, host: Host, port: str, master: str) -> None:
        """Brings up a port that has not come with its bridge or bond, as one that it had before another way."""
        if common.links(host).get(port, {}).get("master") != master:
            words = ["nmcli", "--wait", str(_PATIENCE - 5), "connection", "up", "uuid", render.uuid_of(port)]
            common.ran(host, words, timeout=_PATIENCE)

    def _back(self, host: Host, step: Step) -> None:
        """Removes what was made, and brings up the connections that were up."""
        common.remove_made(host, step)
        active = step.snapshot.extra.get("active", {})
        failed = []
        for name in step.changed:
            if name not in active or name in step.made:
                continue
            # What has been removed to be made anew has no device yet.
            device = ["ifname", name] if name in common.links(host) else []
            up = ["nmcli", "--wait", str(_PATIENCE - 5), "connection", "up", "uuid", active[name], *device]
            if host.run(up, timeout=_PATIENCE).code:
                # One that NetworkManager had made up by itself has another UUID now.
                connect = ["nmcli", "--wait", str(_PATIENCE - 5), "device", "connect", name]
                done = host.run(connect, timeout=_PATIENCE)
                failed += [f"{name}: {common.last_words(done)}"] if done.code else []
        common.restore_modes(host, step)
        common.restore_options(host, step)
        if failed:
            raise BackendError("; ".join(failed))

    def boot(self, host: Host) -> None:
        """Does nothing: NetworkManager reads the files when it starts."""

    def services(self) -> tuple[str, ...]:
        """Names what sets up interfaces."""
        return (UNIT,)

    def read_back(self, host: Host, profile: Profile) -> dict[str, str]:
        """Says which interfaces have another connection than the formula's."""
        active = self.remember(host)["active"]
        return {
            one.name: f"{one.name} does not have the connection {render.PREFIX}-{one.name}"
            for one in common.ours(profile)
            if active.get(one.name) != render.uuid_of(one.name)
        }


def _reads_offline(host: Host) -> bool:
    """Says whether nmcli can read connections without the daemon."""
    words = host.run(["nmcli", "--version"]).out.split()
    try:
        return tuple(int(part) for part in words[-1].split(".")[:2]) >= _OFFLINE_SINCE
    except (IndexError, ValueError):
        return False

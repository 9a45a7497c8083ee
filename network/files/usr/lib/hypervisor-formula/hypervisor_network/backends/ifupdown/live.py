"""ifupdown on a host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import BackendError, Host, Owned, Step
from hypervisor_network.model import Profile

from . import render, stanzas

# Seconds for ifup, which asks a DHCP server for a minute before it gives up.
_PATIENCE = 90
_CLIENTS = ("dhclient", "dhcpcd", "udhcpc")


class Backend:
    """See :class:`hypervisor_network.backends.contract.Backend`."""

    name = "ifupdown"

    def missing(self, host: Host) -> str:
        """Returns why ifupdown cannot be used."""
        done = host.run(["ifup", "--version"])
        if done.code == 127:
            return "ifup is not installed"
        if "ifupdown2" in done.out + done.err:
            return "ifup is that of ifupdown2 here, which is another program"
        return ""

    def manages(self, host: Host, interface: str) -> bool:
        """Says whether ifupdown has brought the interface up, or would."""
        if f"{interface}=" in host.run(["ifquery", "--state", interface]).out:
            return True
        try:
            return interface in stanzas.declared(host)
        except BackendError:
            return False

    def adapt(self, _host: Host, profile: Profile) -> Profile:
        """Returns the profile as it is: dhclient identifies itself by the MAC address."""
        return profile

    def render(self, profile: Profile) -> dict[str, Owned]:
        """Returns the formula's files."""
        return render.render(profile)

    def owned(self, host: Host) -> list[str]:
        """Returns the formula's files that are there."""
        return [name for name, _ in common.files(host, render.FOLDER, f"{render.PREFIX}-*")]

    def takeover(self, host: Host, profile: Profile) -> dict[str, bytes | None]:
        """Returns files of others without the interfaces of the profile."""
        names = {one.name for one in common.taken(profile)}
        found: dict[str, bytes | None] = {}
        for name, text in stanzas.files(host).items():
            if stanzas.is_own(name):
                continue
            left = stanzas.without(text, names, name)
            if left != text:
                gone = stanzas.empty(left) and name != stanzas.MAIN
                found[name] = None if gone else left.encode()
        if not stanzas.reads_folder(host):
            before = found.get(stanzas.MAIN) or (
                host.path(stanzas.MAIN).read_bytes() if host.path(stanzas.MAIN).is_file() else b""
            )
            found[stanzas.MAIN] = before.rstrip(b"\n") + f"\n\nsource {render.FOLDER}/*\n".encode()
        return found

    def validate(self, host: Host, candidate: Path, profile: Profile) -> list[str]:
        """Lets ifup read the candidate files without acting."""
        wrong = common.missing_ports(host, profile) + common.other_hands(host, profile, self.name)
        wrong += [
            f"{one.name}: ifupdown takes the tag from this name, which is not {one.link}.{one.vlan_id}"
            for one in profile.present
            if one.kind == "vlan" and "." in one.name and one.name != f"{one.link}.{one.vlan_id}"
        ]
        own = sorted((candidate / render.FOLDER.lstrip("/")).glob(f"{render.PREFIX}-*"))
        together, state = candidate / "interfaces", candidate / "state"
        together.write_text("\n".join(path.read_text(encoding="utf-8") for path in own), encoding="utf-8")
        state.mkdir(exist_ok=True)
        if own:
            words = ["ifup", "--no-act", "--all", f"--interfaces={together}", f"--state-dir={state}"]
            done = host.run(words)
            wrong += [f"ifup: {common.last_words(done)}"] if done.code else []
        if (main := candidate / stanzas.MAIN.lstrip("/")).exists():
            done = host.run(["ifquery", "--list", "--all", f"--interfaces={main}", f"--state-dir={state}"])
            wrong += [f"ifquery: {common.last_words(done)}"] if done.code else []
        return wrong

    def remember(self, host: Host) -> dict[str, Any]:
        """Returns which interfaces are up for ifupdown."""
        lines = host.run(["ifquery", "--state"]).out.splitlines()
        return {"up": [line.partition("=")[0] for line in lines if "=" in line]}

    def release(self, host: Host, step: Step) -> None:
        """Takes the interfaces down, those on top first, by the files that brought them up."""
        # Not a card that only carries a VLAN: nobody would bring it up again.
        fitting = {one.name for one in (*common.ours(step.profile), *step.profile.absent)}
        names = [one.name for one in reversed(common.touched(step.profile, step.changed)) if one.name in fitting]
        if step.back:
            _end(host, names)
        up = set(self.remember(host)["up"])
        wanted = [name for name in names if name in up]
        done = host.run(["ifdown", *wanted], timeout=_PATIENCE) if wanted else None
        if done is not None and done.code:
            # Each by itself, since one without a stanza keeps ifdown from the others.
            for name in wanted:
                host.run(["ifdown", "--force", "--ignore-errors", name], timeout=_PATIENCE)
        if step.back:
            _end(host, names)
            common.remove_made(host, step)
        _forget(host, [name for name in wanted if name in set(self.remember(host)["up"])])
        there = common.links(host)
        for name in names:
            if name in there:
                # ifup ends with an error where an address is there already.
                host.run(["ip", "address", "flush", "dev", name, "scope", "global"])

    def activate(self, host: Host, step: Step) -> None:
        """Brings the interfaces up by the files that are there now, those on which others stand first."""
        if step.back:
            common.restore_modes(host, step)
            up = step.snapshot.extra.get("up", [])
            wanted = [name for name in up if name in step.changed]
        else:
            wanted = [one.name for one in common.touched(step.profile, step.changed) if not one.absent]
            wanted = [name for name in wanted if name in {one.name for one in common.ours(step.profile)}]
            common.remove_absent(host, step)
        if wanted:
            common.ran(host, ["ifup", *wanted], timeout=_PATIENCE)
        common.reattach(host, step)

    def boot(self, host: Host) -> None:
        """Does nothing: networking.service reads the files."""

    def services(self) -> tuple[str, ...]:
        """Names what brings interfaces up."""
        return ("networking.service", "ifupdown-pre.service")

    def read_back(self, host: Host, profile: Profile) -> dict[str, str]:
        """Says which interfaces are not up for ifupdown."""
        up = set(self.remember(host)["up"])
        names = [one.name for one in common.ours(profile) if one.name not in up]
        return {name: f"{name} is not up for ifupdown" for name in names}


def _end(host: Host, names: Sequence[str]) -> None:
    """Ends commands and DHCP clients for these interfaces that an applier has left behind."""
    for path in sorted(host.path("/proc").glob("[0-9]*/cmdline")):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            program = words[0].rpartition("/")[2]
            last = words[-1] in names
            if int(path.parent.name) != os.getpid() and last and program in {*_CLIENTS, "ifup", "ifdown"}:
                host.run(["kill", "-KILL" if program not in _CLIENTS else "-TERM", path.parent.name])


def _forget(host: Host, names: Sequence[str]) -> None:
    """Makes ifupdown forget that interfaces are up, where ifdown could not."""
    state = host.path("/run/network/ifstate")
    if names and state.is_file():
        lines = state.read_text(encoding="utf-8").splitlines(keepends=True)
        state.write_text("".join(line for line in lines if line.partition("=")[0] not in names), encoding="utf-8")
        for name in names:
            host.path(f"/run/network/ifstate.{name}").unlink(missing_ok=True)

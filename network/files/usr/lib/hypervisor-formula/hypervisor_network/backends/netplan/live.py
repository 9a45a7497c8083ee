"""netplan on a host whose interfaces networkd sets up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import BackendError, Host, Owned, Step
from hypervisor_network.backends.networkd import live as networkd
from hypervisor_network.model import Interface, Match, Profile

from . import blocks, render

# Where the program is that `netplan generate` starts, which itself takes much longer to start.
_GENERATORS = ("/usr/libexec/netplan/generate", "/usr/lib/netplan/generate", "/lib/netplan/generate")
_PROGRAM = "/usr/sbin/netplan"
# Netplan reads these too, those of the same name only in the first of them.
_FOLDERS = ("/etc/netplan", "/run/netplan", "/lib/netplan")
_MADE = "/run/systemd/network"


class Backend(networkd.Backend):
    """See :class:`hypervisor_network.backends.contract.Backend`."""

    name = "netplan"

    def missing(self, host: Host) -> str:
        """Returns why netplan cannot be used."""
        if not host.path(_PROGRAM).exists():
            return "netplan is not installed"
        if not common.active(host, networkd.UNIT):
            return f"{networkd.UNIT} does not run, and netplan's other renderer is not supported"
        return ""

    def manages(self, host: Host, interface: str) -> bool:
        """Says whether networkd has set up the interface by a file that netplan has made."""
        return "/10-netplan-" in networkd.state_of(host, interface).get("NETWORK_FILE", "")

    def adapt(self, host: Host, profile: Profile) -> Profile:
        """Adds as whom bridges speak to a DHCP server, and which cards netplan gives their names."""
        macs = {name: mac for mac, name in _macs(host).items()}
        named = {name: mac for _, one in self._all(host) if (name := one.below.get("set-name"))
                 and (mac := one.below.get("match:macaddress") or macs.get(name))}  # fmt: skip
        profile = super().adapt(host, profile)
        return replace(
            profile,
            interfaces=tuple(
                replace(one, match=Match(mac=named[one.name].lower()))
                if one.kind == "ethernet" and one.name in named
                # Else the card has this name by itself, however the pillar has found it.
                else replace(one, match=Match())
                for one in profile.interfaces
            ),
        )

    def _identity_file(self, one: Interface) -> str:
        """Returns the file that says as whom an interface speaks."""
        return render.identity_path(one.name)

    def render(self, profile: Profile) -> dict[str, Owned]:
        """Returns the formula's files."""
        return render.render(profile)

    def owned(self, host: Host) -> list[str]:
        """Returns the formula's files that are there."""
        found = [name for name, _ in common.files(host, render.FOLDER, f"{render.PREFIX}-*.yaml")]
        made = sorted(host.path(render.UNITS).glob("10-netplan-*.network.d/50-hypervisor.conf"))
        return found + [f"{render.UNITS}/{path.parent.name}/{path.name}" for path in made]

    def takeover(self, host: Host, profile: Profile) -> dict[str, bytes | None]:
        """Returns files of others without the interfaces of the profile."""
        names = {one.name for one in common.taken(profile)}
        macs = _macs(host)
        found: dict[str, bytes | None] = {}
        for name, path in self._foreign(host):
            text = common.text_of(path)
            gone = [one for _, one in blocks.definitions(text, name) if blocks.meant(one, macs, names, name)]
            if gone:
                if not name.startswith("/etc/"):
                    raise BackendError(f"{name} speaks of {gone[0].key}; only files in /etc/netplan are changed")
                found[name] = blocks.without(text, gone).encode()
        return found

    def _foreign(self, host: Host) -> Iterator[tuple[str, Path]]:
        """Returns the files that are not the formula's."""
        for folder in _FOLDERS:
            for name, path in common.files(host, folder, "*.yaml"):
                if not path.name.startswith(f"{render.PREFIX}-"):
                    yield name, path

    def _all(self, host: Host) -> list[tuple[str, blocks.Definition]]:
        """Returns all definitions, in which a card may have its name from."""
        found = []
        for folder in _FOLDERS:
            for name, path in common.files(host, folder, "*.yaml"):
                # A file that cannot be taken apart matters only if it has to be.
                with contextlib.suppress(BackendError):
                    found += blocks.definitions(common.text_of(path), name)
        return found

    def validate(self, host: Host, candidate: Path, profile: Profile) -> list[str]:
        """Lets netplan make networkd's files of the candidate with all else, and of the candidate's own alone."""
        wrong = common.missing_ports(host, profile) + common.other_hands(host, profile, self.name)
        wrong += self._resolver(host, profile)
        changed = self.takeover(host, profile)
        own = render.render(profile)
        alone, whole = candidate / "alone", candidate / "whole"
        for name, path in self._foreign(host):
            content = changed.get(name, path.read_bytes())
            if content is not None:
                _put(whole, name, content)
        for name in self.owned(host):
            if name not in own and not _speaks_of(name, profile):
                _put(whole, name, host.path(name).read_bytes())
                _put(alone, name, host.path(name).read_bytes())
        for name, file in own.items():
            if name.startswith(f"{render.FOLDER}/"):
                _put(whole, name, file.text.encode())
                _put(alone, name, file.text.encode())
        done = host.run([*_generator(host), "--root-dir", str(whole)], timeout=60)
        if done.code:
            return [*wrong, f"netplan generate: {_reason(done.err or done.out, whole)}"]
        host.run([*_generator(host), "--root-dir", str(alone)], timeout=60)
        for one in common.ours(profile):
            name = f"{_MADE.lstrip('/')}/10-netplan-{one.name}.network"
            made, meant = (_bytes(folder / name) for folder in (whole, alone))
            if made != meant and meant is not None:
                wrong.append(f"{one.name}: another file of netplan speaks of it too")
        return wrong

    def activate(self, host: Host, step: Step) -> None:
        """Makes networkd's files of netplan's, then lets networkd read them."""
        self._generate(host)
        super().activate(host, step)

    def _generate(self, host: Host) -> None:
        """Makes networkd's files of netplan's."""
        common.ran(host, _generator(host), timeout=60)

    def boot(self, host: Host) -> None:
        """Makes networkd's files anew: this boot's were made of files that have been replaced since."""
        self._generate(host)

    def _is_ours(self, file: str, one: Interface) -> bool:
        """Says whether that is the file that networkd should take for an interface."""
        return file == f"{_MADE}/10-netplan-{one.name}.network"


def _macs(host: Host) -> dict[str, str]:
    """Returns the names of cards by the addresses that they were made with."""
    return {
        str(link.get("permaddr") or link.get("address", "")).lower(): name
        for name, link in common.links(host).items()
        if not (link.get("linkinfo") or {}).get("info_kind")
    }


def _generator(host: Host) -> list[str]:
    """Returns the command that makes networkd's files."""
    return next(([name] for name in _GENERATORS if host.path(name).exists()), ["netplan", "generate"])


def _put(root: Path, name: str, content: bytes) -> None:
    """Writes a file below a folder; netplan complains of files that others may read."""
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def _bytes(path: Path) -> bytes | None:
    """Returns what a file holds, None without one."""
    return path.read_bytes() if path.exists() else None


def _speaks_of(name: str, profile: Profile) -> bool:
    """Says whether one of the formula's files is for an interface of the profile."""
    return any(name in {render.path(profile, one), render.identity_path(one.name)} for one in profile.interfaces)


def _reason(text: str, root: Path) -> str:
    """Returns netplan's error in one line, with the paths that files will have."""
    lines = [line.strip() for line in text.replace(str(root), "").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"rror", line)] or lines or ["no reason given"]
    return errors[0].rstrip(".")

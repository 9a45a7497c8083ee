"""What several backends share; nothing here changes a host."""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hypervisor_network.model import OPENVSWITCH, Interface, Profile

from .contract import BackendError, Done, Host, Step


class Rooted(Protocol):
    """What has files: a host, or a folder that stands for one."""

    def path(self, name: str) -> Path:
        """Returns where an absolute path is."""


# The first line of each file of the formula.
HEADER = "# Written by hypervisor-formula from the pillar network. What is changed here is overwritten."


def ran(host: Host, argv: Sequence[str], timeout: float = 30.0) -> Done:
    """Runs a command that must succeed.

    Raises:
        BackendError: it failed; the message has its last words.
    """
    done = host.run(argv, timeout=timeout)
    if done.code:
        raise BackendError(f"{' '.join(argv)}: {last_words(done)}")
    return done


def last_words(done: Done) -> str:
    """Returns why a command failed, in one line."""
    lines = [line.strip() for line in (done.err or done.out).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else f"return code {done.code}"


def links(host: Host) -> dict[str, dict[str, Any]]:
    """Returns the links of a host by name, with details."""
    return {str(one["ifname"]): one for one in host.ip("-d", "link", "show")}


def missing_ports(host: Host, profile: Profile) -> list[str]:
    """Names what the profile stands on and the host does not have."""
    there = links(host)
    return [
        f"{one.name}: this host has no such card"
        for one in profile.present
        if one.kind == "ethernet" and one.name not in there
    ]


def other_hands(host: Host, profile: Profile, own: str) -> list[str]:
    """Says which interfaces another backend has set up, since two of them would work against each other.

    Args:
        host: the host.
        profile: with names of this host.
        own: the backend that is to set them up.
    """
    there = links(host)
    names = [one.name for one in ours(profile) if one.name in there]
    found = []
    for other in ("netplan", "networkmanager", "networkd", "ifupdown"):
        if other == own:
            continue
        backend = importlib.import_module(f"hypervisor_network.backends.{other}").Backend()
        if not backend.missing(host):
            found += [
                f"{name}: {other} has set it up; set network:backend to {other}, or take it out of there first"
                for name in names
                if backend.manages(host, name)
            ]
    return found


def family(text: str) -> int:
    """Returns 4 or 6 for an address or network, with or without a prefix."""
    return ipaddress.ip_interface(text).version


def of_family(texts: Iterable[str], version: int) -> list[str]:
    """Returns the addresses of one family, in their order."""
    return [text for text in texts if family(text) == version]


def depth(profile: Profile, name: str) -> int:
    """Returns how many interfaces lie below one, at most: 0 for a card."""
    one = profile.get(name)
    if one is None or one.kind == "ethernet":
        return 0
    return 1 + max((depth(profile, below) for below in (*one.ports, one.link) if below), default=0)


def ours(profile: Profile) -> list[Interface]:
    """Returns the interfaces that get files: not a card that only carries somebody's VLANs, which keeps what it has."""
    return [one for one in profile.present if one.declared or one.master]


def taken(profile: Profile) -> list[Interface]:
    """Returns the interfaces of which nobody else's files may speak any more."""
    return [*ours(profile), *(one for one in profile.absent if one.kind != "ethernet")]


def touched(profile: Profile, names: Iterable[str]) -> list[Interface]:
    """Returns the interfaces of these names, each after what it stands on."""
    wanted = set(names)
    return [one for one in profile.interfaces if one.name in wanted]


def files(host: Rooted, folder: str, pattern: str) -> Iterator[tuple[str, Path]]:
    """Returns the files of a folder as absolute path on the host and place here, sorted by name."""
    for path in sorted(host.path(folder).glob(pattern)):
        if path.is_file():
            yield f"{folder}/{path.name}", path


def text_of(path: Path) -> str:
    """Returns a file's text.

    Raises:
        BackendError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BackendError(f"{path} can't be read: {reason}") from error


def active(host: Host, unit: str) -> bool:
    """Says whether a unit of systemd runs."""
    return host.run(["systemctl", "is-active", "--quiet", unit]).code == 0


def ini(sections: Iterable[tuple[str, Iterable[tuple[str, object]]]]) -> str:
    """Returns the text of an INI file with the header; sections without a line are left out.

    Args:
        sections: names with keys and values; a value of None leaves its line out, a bool is "yes" or "no".
    """
    parts = [HEADER]
    for name, pairs in sections:
        lines = [
            f"{key}={('yes' if value else 'no') if isinstance(value, bool) else value}"
            for key, value in pairs
            if value is not None
        ]
        if lines:
            parts.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(parts) + "\n"


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Reads an INI file in which sections and keys may be repeated, as systemd and NetworkManager have them."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in text.splitlines():
        bare = line.strip()
        if match := re.fullmatch(r"\[([^\]]+)\]", bare):
            found.append((match[1], []))
        elif found and "=" in bare and bare[0] not in "#;":
            key, _, value = bare.partition("=")
            found[-1][1].append((key.strip(), value.strip()))
    return found


def values(text: str, section: str, key: str) -> list[str]:
    """Returns what a key of an INI file holds, of all its lines in all sections of that name."""
    return [value for name, pairs in sections(text) if name == section for one, value in pairs if one == key]


def restore_modes(host: Host, step: Step) -> None:
    """Gives cards back the way in which they make their IPv6 link-local address, which needs the link down."""
    there = links(host)
    for link in step.snapshot.links:
        name, mode = str(link["ifname"]), link.get("inet6_addr_gen_mode")
        if name in step.changed and mode and there.get(name, {}).get("inet6_addr_gen_mode", mode) != mode:
            host.run(["ip", "link", "set", "dev", name, "down"])
            host.run(["ip", "link", "set", "dev", name, "addrgenmode", str(mode)])


def reattach(host: Host, step: Step) -> None:
    """Gives bridges back the ports that are not declared, such as guests', if the change has made a bridge anew."""
    there, gone = links(host), left(step)
    for link in step.snapshot.links:
        name, master = str(link["ifname"]), str(link.get("master", ""))
        kept = name not in {one.name for one in step.profile.interfaces} and name not in gone
        if kept and master in step.changed and master in there and name in there and not there[name].get("master"):
            host.run(["ip", "link", "set", "dev", name, "master", master])


def left(step: Step) -> set[str]:
    """Returns the links that a change forth makes no ports any more: those that are not declared, and lose their file.

    What others have put into a bridge, such as a guest's card, never had a file of the formula.
    """
    declared = {one.name for one in step.profile.interfaces}
    gone = [Path(path).name for path, content in step.after.items() if content is None and step.before.get(path)]
    ports = {str(link["ifname"]) for link in step.snapshot.links if link.get("master") in step.changed}
    names = set() if step.back else ports - declared
    return {name for name in names if any(_is_own(file, name) for file in gone)}


def _is_own(file: str, name: str) -> bool:
    """Says whether a file is called as one of the backends calls an interface's own."""
    called = "|".join(re.escape(one) for one in (name, name.replace(".", "__")))
    return re.fullmatch(rf"(\d+-)?hypervisor-(\d+-)?({called})(\.(network|yaml|nmconnection))?", file) is not None


def free_ports(host: Host, step: Step) -> None:
    """Takes links that are no ports any more out of their bridges and bonds; networkd leaves them as they were.

    Raises:
        BackendError: one stays.
    """
    there = links(host)
    for name in sorted(left(step)):
        if there.get(name, {}).get("master"):
            ran(host, ["ip", "link", "set", "dev", name, "nomaster"])


def remove_made(host: Host, step: Step) -> None:
    """Removes the interfaces that a change has made, those on top first; those of Open vSwitch the engine removes."""
    there = links(host)
    for one in reversed(touched(step.profile, step.made)):
        if one.kind != OPENVSWITCH and one.name in there:
            host.run(["ip", "link", "delete", "dev", one.name])


def remove_absent(host: Host, step: Step) -> None:
    """Removes the interfaces that shall go, those on top first.

    Raises:
        BackendError: one stays.
    """
    there = links(host)
    for one in reversed(step.profile.absent):
        if one.kind not in {"ethernet", OPENVSWITCH} and one.name in there:
            ran(host, ["ip", "link", "delete", "dev", one.name])


def form(link: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what no stack alters of a link that is there: its kind, a VLAN's tag and link, a bond's mode."""
    info = link.get("linkinfo") or {}
    kind, data = info.get("info_kind"), info.get("info_data") or {}
    if kind == "vlan":
        return kind, data.get("id"), link.get("link")
    return (kind, data.get("mode")) if kind == "bond" else (kind,)


def outdated(one: Interface, link: dict[str, Any]) -> bool:
    """Says whether an interface that is there is another kind of thing, so that it must be made anew."""
    data = (link.get("linkinfo") or {}).get("info_data") or {}
    kind = (link.get("linkinfo") or {}).get("info_kind")
    if kind != one.kind:
        return True
    if one.kind == "vlan":
        return data.get("id") != one.vlan_id or link.get("link") != one.link
    return one.kind == "bond" and data.get("mode", one.bond.mode) != one.bond.mode


def remove_outdated(host: Host, step: Step) -> list[str]:
    """Removes interfaces that are there as something else, those on top first.

    Returns:
        The names of what was removed.

    Raises:
        BackendError: one stays.
    """
    there, removed = links(host), []
    for one in reversed(touched(step.profile, step.changed)):
        if one.kind != "ethernet" and not one.absent and one.name in there and outdated(one, there[one.name]):
            ran(host, ["ip", "link", "delete", "dev", one.name])
            removed.append(one.name)
    return removed


def remove_remade(host: Host, step: Step) -> list[str]:
    """Removes, on the way back, what a change has made anew as something else; the old files make it what it was.

    Returns:
        The names of what was removed.
    """
    there, before = links(host), {str(one["ifname"]): one for one in step.snapshot.links}
    removed = []
    for one in reversed(touched(step.profile, step.changed)):
        was, now = before.get(one.name), there.get(one.name)
        if one.kind in {"ethernet", OPENVSWITCH} or was is None or now is None or form(was) == form(now):
            continue
        host.run(["ip", "link", "delete", "dev", one.name])
        removed.append(one.name)
    return removed


def options(link: Mapping[str, Any]) -> dict[str, str]:
    """Returns a bridge's options as `ip` calls and takes them; nothing for what is no bridge."""
    info = link.get("linkinfo") or {}
    data = info.get("info_data") or {} if info.get("info_kind") == "bridge" else {}
    return {key: str(data[key]) for key in ("forward_delay", "ageing_time", "stp_state") if key in data}


def option_commands(name: str, wanted: Mapping[str, str]) -> Iterator[list[str]]:
    """Returns the commands that set a bridge's options.

    Whatever their order on the line, the kernel takes the delay before the spanning tree, and with a spanning tree none
    below 2 s: so one that goes goes first.
    """
    command = ["ip", "link", "set", "dev", name, "type", "bridge"]
    if wanted.get("stp_state") == "0":
        yield [*command, "stp_state", "0"]
    yield [*command, *(word for pair in wanted.items() for word in pair)]


def restore_options(host: Host, step: Step) -> None:
    """Gives bridges back the options that they had, which no stack alters."""
    there = links(host)
    for link in step.snapshot.links:
        name, wanted = str(link["ifname"]), options(link)
        if name in step.changed and wanted and name in there and wanted != options(there[name]):
            for argv in option_commands(name, wanted):
                host.run(argv)


def tune(host: Host, step: Step) -> None:
    """Sets the options of bridges that were there before, which no stack alters."""
    for one in touched(step.profile, step.changed):
        if one.kind == "bridge" and not one.absent and one.name not in step.made:
            # The kernel wants centiseconds.
            wanted = {"forward_delay": str(one.bridge.forward_delay * 100)}
            wanted |= {"ageing_time": str(one.bridge.ageing * 100)} if one.bridge.ageing is not None else {}
            for argv in option_commands(one.name, {**wanted, "stp_state": "1" if one.bridge.stp else "0"}):
                host.run(argv)

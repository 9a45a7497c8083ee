"""Plans how an existing guest becomes what its declaration says: in its definition, and while it runs.

Pure: it compares definitions and returns what to do. ``utils`` has functions of the other modules of
this folder by their names, such as "guest_domain.facts": Salt's loader keeps the modules apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Utils = Mapping[str, Callable[..., Any]]
_NEEDS = (
    "guest_argv.edit", "guest_declared.target", "guest_domain.device_differences", "guest_domain.device_steps",
    "guest_domain.differences", "guest_domain.disk_path", "guest_domain.facts", "guest_domain.foundation",
    "guest_domain.fragment", "guest_domain.new_device", "guest_domain.pair_disks", "guest_domain.pair_interfaces",
    "guest_domain.parse", "guest_domain.scsi_controller", "guest_domain.steps", "guest_domain.targets",
    "guest_domain.value", "guest_storage.marker",
    "libvirt_tools.definition", "libvirt_tools.run", "libvirt_tools.virsh",
)  # fmt: skip
Step = tuple[str, str, str]

# The pillar's words for what a definition says of a device.
_KEYS = {
    "@type": "type",
    "driver/@cache": "cache",
    "driver/@discard": "discard",
    "driver/@type": "format",
    "mac/@address": "mac",
    "model/@type": "model",
    "mtu/@size": "mtu",
    "source/@bridge": "source",
    "source/@network": "source",
    "target/@bus": "model",
    "virtualport/@type": "virtualport",
    "vlan/tag/@id": "vlan",
}


def needs() -> tuple[str, ...]:
    """Returns the names of the functions that modules of guests need of each other, for ``utils``."""
    return _NEEDS


class Wanted(NamedTuple):
    """A declaration, taken apart.

    ``facts`` by aspect, ``disks`` and ``nics`` as ``guest_declared`` describes them, ``pools`` by name
    with type and target. ``chains`` has, by the path of each disk that the guest uses, all files that
    it reads from; it may be empty where every declared disk is found.
    """

    name: str
    facts: Mapping[str, Any]
    disks: Sequence[Mapping[str, Any]]
    nics: Sequence[Mapping[str, Any]]
    pools: Mapping[str, Mapping[str, str]]
    chains: Mapping[str, Sequence[str]]


class Plan(NamedTuple):
    """What to do.

    ``changes`` for a person, by aspect; ``steps`` for virt-xml, of the definition. For the running
    guest ``live`` has pairs of an aspect and a command of virsh, and ``attach`` has aspect, kind and,
    of a device of the edited definition, its number, of a disk its name in the guest: libvirt sorts disks.
    """

    changes: dict[str, Any]
    steps: list[Step]
    live: list[tuple[str, list[str]]]
    attach: list[tuple[str, str, int | str]]


def nothing() -> Plan:
    """Returns a plan of nothing."""
    return Plan({}, [], [], [])


def wanted(
    name: str,
    facts: Mapping[str, Any],
    disks: Sequence[Mapping[str, Any]],
    nics: Sequence[Mapping[str, Any]],
    pools: Mapping[str, Mapping[str, str]],
) -> Wanted:
    """Puts a declaration together; see :class:`Wanted`."""
    return Wanted(name, facts, disks, nics, pools, {})


def with_chains(want: Wanted, chains: Mapping[str, Sequence[str]]) -> Wanted:
    """Adds to a declaration which files the guest's disks read from."""
    return want._replace(chains=chains)


def missing_disks(utils: Utils, want: Wanted, domain: Any) -> bool:
    """Whether a declared disk is not in a definition, so that somebody has to look at all its files."""
    pairs = utils["guest_domain.pair_disks"](domain, want.disks, want.pools)
    elements = domain.findall("devices/disk")
    return any(
        number is None or utils["guest_domain.disk_path"](elements[number - 1], want.pools) != disk["path"]
        for disk, number in zip(want.disks, pairs, strict=True)
        if not disk["cdrom"]
    )


def new(utils: Utils, want: Wanted) -> list[Step]:
    """Writes the disks and interfaces of a guest that is not there, and what virt-install has no option for."""
    steps: list[Step] = []
    taken: list[str] = []
    for number, disk in enumerate(want.disks, 1):
        taken.append(utils["guest_declared.target"](disk["props"]["target/@bus"], taken))
        steps += utils["guest_domain.new_device"]("disk", number, disk, taken[-1])
    for number, nic in enumerate(want.nics, 1):
        steps += utils["guest_domain.new_device"]("interface", number, nic)
    for key in ("cpu model", "cpu topology", "mem hugepages"):
        if want.facts.get(key) is not None:
            steps += utils["guest_domain.steps"](None, want.name, key, want.facts[key])
    return steps


def existing(utils: Utils, want: Wanted, domain: Any, live: Any) -> Plan:
    """Plans what has to be done for a guest that is there.

    Args:
        utils: functions by name.
        want: the declaration.
        domain: the definition of its next start.
        live: the definition it runs with, None when it does not run.

    Returns:
        The plan; empty when the guest is as declared.

    Raises:
        ValueError: what is declared cannot be had without harm to the guest's data.
    """
    plan = nothing()
    for key, change in utils["guest_domain.differences"](domain, want.facts).items():
        if key in utils["guest_domain.foundation"]():
            raise ValueError(
                f"{want.name}:{key}: the guest was made with {change['old']}, not {change['new']}. Its system "
                "would not start with another one: make a new guest, or declare what it has"
            )
        plan.changes[key] = _readable(key, change)
        plan.steps.extend(utils["guest_domain.steps"](domain, want.name, key, change["new"]))
    if live is not None:
        _live_figures(utils, want, live, plan)
    _disks(utils, want, domain, live, plan)
    _interfaces(utils, want, domain, live, plan)
    return plan


def _readable(key: str, change: dict[str, Any]) -> dict[str, Any]:
    """Shows memory in MiB, as it is declared."""
    if key not in {"mem", "mem maximum"}:
        return change
    return {when: f"{kib / 1024:g} MiB" for when, kib in change.items()}


def _live_figures(utils: Utils, want: Wanted, live: Any, plan: Plan) -> None:
    """Adds what virsh can change of the figures of a running guest."""
    now = utils["guest_domain.facts"](live)
    if "cpu" in plan.changes and want.facts["cpu"] <= now["cpu maximum"] and want.facts["cpu"] != now["cpu"]:
        plan.live.append(("cpu", ["setvcpus", "--live", "--domain", want.name, "--count", str(want.facts["cpu"])]))
    if "mem" in plan.changes and want.facts["mem"] <= now["mem maximum"] and want.facts["mem"] != now["mem"]:
        plan.live.append(("mem", ["setmem", "--live", "--domain", want.name, "--size", f"{want.facts['mem']}KiB"]))
    if "description" in plan.changes and want.facts["description"] != now["description"]:
        words = ["desc", "--live", "--domain", want.name, "--new-desc", want.facts["description"]]
        plan.live.append(("description", words))


def _disks(utils: Utils, want: Wanted, domain: Any, live: Any, plan: Plan) -> None:
    """Adds what has to be done about disks."""
    elements = domain.findall("devices/disk")
    pairs = utils["guest_domain.pair_disks"](domain, want.disks, want.pools)
    running = [] if live is None else utils["guest_domain.pair_disks"](live, want.disks, want.pools)
    taken = utils["guest_domain.targets"](domain) + ([] if live is None else utils["guest_domain.targets"](live))
    count = len(elements)
    for place, (disk, number) in enumerate(zip(want.disks, pairs, strict=True)):
        label = f"disk {disk['label']}"
        if number is None:
            _refuse_layer(want, disk)
            count += 1
            number = count  # noqa: PLW2901 - the number it will have
            dev = utils["guest_declared.target"](disk["props"]["target/@bus"], taken)
            taken.append(dev)
            plan.changes.setdefault(label, {"old": None, "new": disk["path"] or "an empty drive"})
            plan.steps.extend(utils["guest_domain.new_device"]("disk", number, disk, dev))
        else:
            dev = _disk(utils, want, elements[number - 1], disk, (number, taken), plan)
        if live is not None and running[place] is None:
            plan.changes.setdefault(label, {"old": None, "new": disk["path"] or "an empty drive"})
            plan.attach.append((label, "disk", dev))
    if any(path.endswith("/target/@bus") and text == "scsi" for _, path, text in plan.steps):
        plan.steps.extend(utils["guest_domain.scsi_controller"](domain))


def _disk(
    utils: Utils, want: Wanted, element: Any, disk: Mapping[str, Any], place: tuple[int, list[str]], plan: Plan
) -> str:
    """Adds what differs in a disk that the guest has; returns the name that it has in it then."""
    number, taken = place
    found = utils["guest_domain.device_differences"](element, disk)
    path = utils["guest_domain.disk_path"](element, want.pools)
    label = f"disk {disk['label']}"
    if path != disk["path"] and not disk["cdrom"] and disk["path"] not in want.chains.get(str(path), ()):
        raise ValueError(
            f"{want.name}:disks:{disk['label']}: the guest uses {path} in the place of {disk['path']}. A disk is "
            "never exchanged: attach the right one by hand, or declare the one that is there"
        )
    if path != disk["path"] and disk["cdrom"]:
        plan.changes[f"{label} source"] = {"old": path, "new": disk["path"]}
        key = "dev" if disk["block"] else "file"
        plan.steps.extend([("delete", f"./devices/disk[{number}]/source", ""),
                       ("set", f"./devices/disk[{number}]/@type", disk["props"]["@type"])])  # fmt: skip
        if disk["path"]:
            plan.steps.append(("set", f"./devices/disk[{number}]/source/@{key}", str(disk["path"])))
        medium = ["--update", "--source", disk["path"]] if disk["path"] else ["--eject"]
        target = utils["guest_domain.value"](element, "target/@dev")
        words = ["change-media", "--live", "--path", target, *medium]
        plan.live.append((label, [*words, "--domain", want.name]))
    dev = str(utils["guest_domain.value"](element, "target/@dev"))
    if found:
        if "target/@bus" in found:
            dev = str(utils["guest_declared.target"](disk["props"]["target/@bus"], taken))
            taken.append(dev)
        plan.steps.extend(utils["guest_domain.device_steps"]("disk", number, disk, found, dev))
    for key, change in found.items():
        plan.changes[f"{label} {_KEYS[key]}"] = change
    return dev


def _refuse_layer(want: Wanted, disk: Mapping[str, Any]) -> None:
    """Refuses to add a file as a disk that another disk of the guest is based on: it would be torn."""
    for top, files in want.chains.items():
        if disk["path"] in files:
            raise ValueError(
                f"{want.name}:disks:{disk['label']}: the disk {top} of the guest reads from {disk['path']}, which "
                "may be a snapshot: commit it (virsh blockcommit --pivot), or declare the disk that is there"
            )


def _interfaces(utils: Utils, want: Wanted, domain: Any, live: Any, plan: Plan) -> None:
    """Adds what has to be done about interfaces."""
    elements = domain.findall("devices/interface")
    running = [] if live is None else live.findall("devices/interface")
    pairs = utils["guest_domain.pair_interfaces"](domain, want.nics)
    lives = [None] * len(want.nics) if live is None else utils["guest_domain.pair_interfaces"](live, want.nics)
    count = len(elements)
    for nic, number, alive in zip(want.nics, pairs, lives, strict=True):
        label = f"interface {nic['label']}"
        if number is None:
            count += 1
            number = count  # noqa: PLW2901 - the number it will have
            plan.changes[label] = {"old": None, "new": _connection(nic)}
            plan.steps.extend(utils["guest_domain.new_device"]("interface", number, nic))
        else:
            found = utils["guest_domain.device_differences"](elements[number - 1], nic)
            if found:
                plan.steps.extend(utils["guest_domain.device_steps"]("interface", number, nic, found, None))
            for key, change in found.items():
                plan.changes[f"{label} {_KEYS[key]}"] = change
        if live is not None and alive is None:
            plan.changes.setdefault(label, {"old": None, "new": _connection(nic)})
            plan.attach.append((label, "interface", number))
        elif live is not None and alive is not None and number is not None and alive <= len(running):
            differing = utils["guest_domain.device_differences"](running[alive - 1], nic)
            if any(key.startswith(("source/", "link")) for key in differing) and "@type" not in differing:
                plan.attach.append((label, "update", number))
                for key, change in differing.items():
                    plan.changes.setdefault(f"{label} {_KEYS[key]}", change)


def _connection(nic: Mapping[str, Any]) -> str:
    """Says what an interface is connected to."""
    kind = nic["props"]["@type"]
    return f"{kind} {nic['props'][f'source/@{kind}']}, {nic['mac']}"


def waiting(utils: Utils, want: Wanted, live: Any, plan: Plan) -> list[str]:
    """Lists what of a declaration a running guest will have after its next start only.

    Args:
        utils: functions by name.
        want: the declaration.
        live: the definition it runs with.
        plan: what is done while it runs.

    Returns:
        The aspects, in words.
    """
    soon = {what for what, *_ in (*plan.live, *plan.attach)}
    # How much of its memory a guest uses is up to its balloon driver; a start would change nothing.
    found = [key for key in utils["guest_domain.differences"](live, want.facts) if key != "mem"]
    sets = (("disk", want.disks, utils["guest_domain.pair_disks"](live, want.disks, want.pools)),
            ("interface", want.nics, utils["guest_domain.pair_interfaces"](live, want.nics)))  # fmt: skip
    for kind, devices, pairs in sets:
        elements = live.findall(f"devices/{kind}")
        for device, number in zip(devices, pairs, strict=True):
            element = None if number is None else elements[number - 1]
            if element is None or utils["guest_domain.device_differences"](element, device):
                found.append(f"{kind} {device['label']}")
            elif device.get("cdrom") and utils["guest_domain.disk_path"](element, want.pools) != device["path"]:
                # A guest that uses what lies in its drive does not give it out.
                found.append(f"{kind} {device['label']}")
    return [one for one in found if one not in soon]

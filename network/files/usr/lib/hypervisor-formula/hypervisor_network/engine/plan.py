"""What a pillar would change on this host: files, interfaces, and whether the connection to the master is among them.

Nothing is changed here; candidate files lie in a temporary folder while they are judged.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypervisor_network import model
from hypervisor_network.backends.contract import Backend, BackendError, Snapshot
from hypervisor_network.model import KINDS, Interface, Profile

from . import checks, files, runtime, switch, switch_plan
from .host import LocalHost
from .store import Change, Store

# What other programs' files keep secret, in each line of a comparison: of Wi-Fi, 802.1X and modems.
_SECRET = re.compile(
    r"^(.[ \t]*[\w.-]*(?:passw|psk|secret|wep-?key|wireless-key|(?<![a-z])pin)[\w.-]*[\"']?[ \t]*[:= \t][ \t]*)\S.*$",
    re.IGNORECASE | re.MULTILINE,
)
# In the order in which they are asked: netplan writes for networkd and NetworkManager, so it goes before them.
BACKENDS = ("netplan", "networkmanager", "networkd", "ifupdown")
# By what a declaration gives an interface addresses, which a port has none of.
OF_ADDRESSES = ("dhcp4", "dhcp6", "addresses", "gateway4", "gateway6", "routes")


@dataclass(frozen=True)
class Plan:
    """What would change.

    Attributes:
        backend: who sets up the interfaces; empty if nothing is declared.
        errors: why it cannot be done.
        refusal: which consent is missing; empty if none is.
        diffs: how files change, by path.
        differences: how the runtime differs from what is declared.
        uplink: names of changed interfaces that carry the connection to the master.
        change: what is needed to do it; None if there is nothing to do or an error.
    """

    backend: str = ""
    errors: tuple[str, ...] = ()
    refusal: str = ""
    diffs: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    uplink: tuple[str, ...] = ()
    change: Change | None = None

    def report(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {
            "backend": self.backend,
            "errors": list(self.errors),
            "refusal": self.refusal,
            "files": dict(self.diffs),
            "differences": list(self.differences),
            "uplink": list(self.uplink),
            "interfaces": self.change.changed if self.change else [],
            "changed": self.change is not None,
        }


def backend_of(name: str) -> Backend:
    """Returns a backend.

    Raises:
        BackendError: there is none of that name.
    """
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name}")
    try:
        found: Backend = importlib.import_module(f"hypervisor_network.backends.{name}").Backend()
    except ModuleNotFoundError as error:
        raise BackendError(f"the backend {name} is not installed ({error.name})") from error
    return found


def carrier(host: LocalHost, snapshot: Snapshot, masters: Sequence[str]) -> set[str]:
    """Returns what carries the connection to the masters now, with everything below it.

    Without masters that is what carries the default routes, of either family. Nothing may be known of it.
    """
    devices = {
        str(route["dev"])
        for master in masters
        for address in checks.addresses(host, master)
        for route in host.ip("route", "get", address)
        if route.get("dev") and route["dev"] != "lo"
    }
    if not devices:
        devices = {
            str(hop["dev"])
            for one in (*snapshot.routes, *snapshot.routes6)
            if one.get("dst") == "default"
            for hop in (one, *one.get("nexthops", ()))
            if hop.get("dev") and hop["dev"] != "lo"
        }
    return {name for device in devices for name in runtime.chain(snapshot, device)}


def kept(pillar: Mapping[str, Any], confirmed: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Adds the interfaces that were declared before and are no longer: they stay as they are.

    Args:
        pillar: the merged pillar "network".
        confirmed: what was confirmed last, see ``Store.confirmed``.

    Returns:
        The pillar with them, and what does not fit together.
    """
    merged = {key: dict(value) if key in KINDS else value for key, value in pillar.items()}
    declared = {name for key in KINDS for name in pillar.get(key, {})}
    taken = {
        port: name
        for key in ("bonds", "bridges")
        for name, spec in pillar.get(key, {}).items()
        if spec.get("ensure") != "absent"
        for port in spec.get("ports", ())
    }
    gone = {name for key in KINDS for name, spec in pillar.get(key, {}).items() if spec.get("ensure") == "absent"}
    errors = []
    for key in KINDS:
        for name, spec in ((confirmed or {}).get("pillar", {}).get(key) or {}).items():
            if name in declared or spec.get("ensure") == "absent":
                continue
            errors += [
                f"{port} is a port of {name}, which has left the pillar and stays until it is declared "
                f"with ensure: absent; {taken[port]} cannot have it too"
                for port in spec.get("ports", ())
                if port in taken
            ]  # fmt: skip
            errors += [
                f"{port} is a port of {name}, which has left the pillar and stays until it is declared "
                f"with ensure: absent; until then it cannot have {' and '.join(own)} of its own"
                for port in spec.get("ports", ())
                if (own := _of_addresses(pillar, port))
            ]  # fmt: skip
            errors += [
                f"{below} is declared with ensure: absent, but {name}, which has left the pillar and stays, stands on "
                f"it; declare {name} with ensure: absent too"
                for below in (*spec.get("ports", ()), spec.get("link"))
                if below in gone
            ]  # fmt: skip
            if name in taken and key == "ethernets":
                continue
            if name in taken and (own := [word for word in OF_ADDRESSES if spec.get(word)]):
                errors.append(
                    f"{name} has left the pillar and stays with its {' and '.join(own)}; declare it without, so that "
                    f"it can be a port of {taken[name]}"
                )
            merged.setdefault(key, {})[name] = spec
    return merged, errors


def _of_addresses(pillar: Mapping[str, Any], name: str) -> list[str]:
    """Returns which keys of an interface that is declared give it addresses."""
    specs = [spec for key in KINDS if (spec := pillar.get(key, {}).get(name))]
    return [word for spec in specs if spec.get("ensure") != "absent" for word in OF_ADDRESSES if spec.get(word)]


def _choose(host: LocalHost, profile: Profile, snapshot: Snapshot, carriers: Iterable[str]) -> Backend:
    """Returns the backend that the pillar names, or the one that manages what carries the connection now."""
    if profile.backend != "auto":
        chosen = backend_of(profile.backend)
        why = chosen.missing(host)
        if why:
            raise BackendError(f"network:backend is {profile.backend}, but {why}")
        return chosen
    there = snapshot.names()
    names = [name for name in carriers if name in there]
    names += [one.name for one in profile.present if one.name in there and one.name not in names]
    said = []
    for name in BACKENDS:
        try:
            chosen = backend_of(name)
        except BackendError as error:
            said.append(str(error))
            continue
        if not chosen.missing(host) and any(chosen.manages(host, one) for one in names):
            return chosen
    raise BackendError(
        f"nothing known manages {', '.join(names) or 'any interface'} here; name it in network:backend"
        + "".join(f"; {one}" for one in said)
    )


def _entries(
    host: LocalHost, backend: Backend, profile: Profile, previous: Profile | None
) -> tuple[files.Entries, files.Entries]:
    """Returns the files that would change, before and after."""
    owner = (os.geteuid(), os.getegid())
    rendered = backend.render(profile)
    wanted: files.Entries = {
        name: files.Entry(one.text.encode(), one.mode, *owner) for name, one in rendered.items()
    }
    # Only what this formula is known to have written for these interfaces goes.
    whole = replace(profile, interfaces=tuple(replace(one, absent=False) for one in profile.interfaces))
    ours = set(backend.render(whole))
    ours |= set(backend.render(previous)) if previous else set()
    wanted.update({name: None for name in backend.owned(host) if name in ours and name not in rendered})
    before = {name: files.look(host, name) for name in wanted}
    for name, content in backend.takeover(host, profile).items():
        there = files.look(host, name)
        before[name] = there
        mode, uid, gid = (there.mode, there.uid, there.gid) if there and not there.link else (0o644, *owner)
        wanted[name] = None if content is None else files.Entry(content, mode, uid, gid)
    touched = [name for name in wanted if not files.same(before[name], wanted[name])]
    return {name: before[name] for name in touched}, {name: wanted[name] for name in touched}


def _judged(host: LocalHost, backend: Backend, after: files.Entries, profile: Profile) -> list[str]:
    """Returns what the backend's own tools say of candidate files, which lie in a folder of their own meanwhile."""
    with tempfile.TemporaryDirectory(prefix="hypervisor-network-") as folder:
        for name, entry in after.items():
            if entry is not None:
                path = Path(folder) / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                path.write_bytes(entry.content)
                path.chmod(entry.mode)
        return backend.validate(host, Path(folder), profile)


def _changed(
    profile: Profile, previous: Profile | None, after: Mapping[str, object], differences: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns the interfaces that a change touches.

    Without a record of what was confirmed before, files that differ say that all may be touched.
    """
    names = [one.name for one in profile.interfaces]
    if after and previous is None:
        return names
    touched = set(differences)
    if after and previous is not None:
        touched |= {one.name for one in profile.interfaces if previous.get(one.name) != one}
        if not touched:
            return names
    # What stands on something that changes is touched as well.
    for one in profile.interfaces:
        if touched & {*one.ports, one.link}:
            touched.add(one.name)
    touched |= {port for one in profile.interfaces if one.name in touched for port in one.ports}
    return [name for name in names if name in touched]


def _excused(profile: Profile, changed: Collection[str], snapshot: Snapshot) -> list[str]:
    """Returns what is not as declared of interfaces that a change does not touch, such as a lease that nobody gives."""
    found = runtime.differences(profile, snapshot, leased=True)
    return [line for name, lines in found.items() if name not in changed for line in lines]


def _rewritten(
    backend: Backend, profile: Profile, after: Mapping[str, object], changed: Sequence[str], names: Sequence[str]
) -> set[str]:
    """Returns which of these interfaces get other files of their own, since networkd sets them up anew for that.

    A VLAN, for instance, is named in its card's file; netplan makes that file, and the formula the VLAN's alone.
    """
    found, whole = set(), set(backend.render(profile)) & set(after)
    if backend.name == "netplan":
        found = {one.link for one in profile.interfaces if one.kind == "vlan" and one.name in changed} & set(names)
    for name in names:
        others = tuple(one for one in profile.interfaces if one.name != name)
        if whole - set(backend.render(replace(profile, interfaces=others))):
            found.add(name)
    return found


def _below(profile: Profile, one: Interface) -> Iterator[str]:
    """Returns everything that an interface stands on."""
    for name in filter(None, (*one.ports, one.link)):
        yield name
        below = profile.get(name)
        if below is not None:
            yield from _below(profile, below)


def _vanishing(profile: Profile, carriers: set[str], snapshot: Snapshot) -> list[str]:
    """Says which interface with the host's addresses would lose them without another taking its place."""
    found = []
    for name in sorted(carriers):
        one = profile.get(name)
        used = [address for address in runtime.addresses_of(snapshot, name) if address.get("scope") == "global"]
        if one is None or not used or (one.declared and one.configured and not one.absent):
            continue
        if not one.declared and not one.master:
            # Only the link of a VLAN: what it has stays.
            continue
        above = profile.get(one.master) if one.master else None
        while above is not None and not above.configured and above.master:
            above = profile.get(above.master)
        # A card may take over from the bridge whose port it was, and a VLAN from the card that it stands on.
        others = [
            one.name
            for one in profile.present
            if one.configured and (one.uplink or carriers & {one.name, *_below(profile, one)})
        ]
        if (above is None or not above.configured) and not others:
            place = f"it becomes a port of {one.master}, which has no addresses" if one.master else "it loses its own"
            found.append(f"{name} carries the connection to the master: {place}, and nothing takes its place")
    return found


def _diff(name: str, before: files.Entry | None, after: files.Entry | None) -> str:
    """Shows how a file changes."""
    old, new = (
        [] if one is None else one.content.decode("utf-8", errors="replace").splitlines(keepends=True)
        for one in (before, after)
    )
    text = "".join(difflib.unified_diff(old, new, name, name if after else "/dev/null"))
    return _SECRET.sub(r"\1(not shown)", text) or "its permissions or its owner"


def make(
    host: LocalHost, store: Store, pillar: Mapping[str, Any], masters: Sequence[str], *, making: bool = False
) -> Plan:
    """Plans a change.

    Args:
        host: the host.
        store: what was confirmed before.
        pillar: the merged pillar "network", which schema and rules have accepted.
        masters: the minion's masters.
        making: whether the change is about to be made, so that Open vSwitch must run.
    """
    if not any(pillar.get(key) for key in KINDS):
        return Plan()
    confirmed = store.confirmed()
    whole, errors = kept(pillar, confirmed)
    declared = model.load(whole)
    snapshot = runtime.take(host)
    if not snapshot.links:
        return Plan(errors=("`ip -j -d link show` shows nothing; is iproute2 installed?",))
    names, macs = runtime.cards(host, declared, snapshot)
    left = {name for key in KINDS for name in whole.get(key, {}) if name not in pillar.get(key, {})}
    errors += runtime.missing(declared, names, snapshot, left) + runtime.doubled(declared, names, left)
    if errors:
        return Plan(errors=tuple(errors))
    try:
        return _fitting(host, (confirmed, making), (whole, declared, snapshot), (names, macs), masters)
    except (BackendError, OSError) as error:
        return Plan(errors=(str(error),))


def _rows(
    host: LocalHost, profile: Profile, previous: Profile | None, snapshot: Snapshot, making: bool
) -> tuple[switch.Rows, switch.Rows, dict[str, list[str]], list[str]]:
    """Returns what the profile wants of Open vSwitch, see ``switch_plan.plan``.

    Raises:
        BackendError: it does not run.
    """
    spoken = [one for one in profile.interfaces if one.kind == model.OPENVSWITCH]
    if not switch.involved(profile, snapshot=snapshot):
        return switch.Rows(), switch.Rows(), {}, []
    if making and spoken and not switch.runs(host):
        raise BackendError(f"network:bridges:{spoken[0].switch}:switch: Open vSwitch does not run on this host")
    there = switch.facts(host) if switch.known(host) else switch.Facts()
    return switch_plan.plan(profile, previous, there, snapshot)


def _fitting(
    host: LocalHost,
    earlier: tuple[Any, bool],
    subject: tuple[dict[str, Any], Profile, Snapshot],
    cards: tuple[dict[str, str], dict[str, str]],
    masters: Sequence[str],
) -> Plan:
    """Plans a change whose cards are all there."""
    whole, declared, snapshot = subject
    confirmed, making = earlier
    profile = declared.resolved(*cards)
    asked = list(profile.confirm.masters or masters)
    carriers = carrier(host, snapshot, asked)
    backend = _choose(host, profile, snapshot, carriers)
    profile = backend.adapt(host, profile)
    previous = None
    if confirmed and confirmed.get("backend") == backend.name:
        previous = model.restored(confirmed["profile"])
    before, after = _entries(host, backend, profile, previous)
    rows_before, rows_after, rows, errors = _rows(host, profile, previous, snapshot, making)
    differing = runtime.differences(profile, snapshot)
    differing = {name: [*rows.get(name, []), *differing.get(name, [])] for name in {**differing, **rows}}
    # Files that change are taken anew anyway.
    untaken = {} if after else backend.read_back(host, profile)
    for name, line in untaken.items():
        differing[name] = [*differing.get(name, []), line]
    lines = [line for found in differing.values() for line in found]
    if not after and not lines:
        return Plan(backend=backend.name, errors=tuple(errors))
    changed = _changed(profile, previous, after, differing)
    carriers |= {one.name for one in profile.interfaces if one.uplink}
    still = sorted(carriers - set(changed))
    reached = carriers - set(still) | _rewritten(backend, profile, after, changed, still)
    # Where nothing is known of the connection, anything may carry it.
    uplink = sorted(reached) if carriers else changed
    errors += _vanishing(profile, carriers, snapshot) + _judged(host, backend, after, profile)
    refusal = ""
    if uplink and not profile.allow_uplink_change:
        which = "which carries the connection to the master"
        which = which if carriers else "and nothing here says what carries the connection"
        why = f"{'; '.join(untaken.values())}; to mend that " if untaken else ""
        refusal = (
            f"{why}it would change {', '.join(uplink)}, {which}; "
            "set network:allow_uplink_change to true to have that tried, checked and undone if it fails"
        )
    targets = checks.targets(profile, asked)
    if not uplink:
        # What does not answer anyway says nothing of a change to other interfaces.
        targets = [one for one in targets if checks.answers(host, one)]
    elif not profile.confirm.beyond:
        targets += checks.name_servers(host, snapshot)
    change = Change(
        pillar=whole,
        profile=model.stored(profile),
        backend=backend.name,
        changed=changed,
        before=files.stored(before),
        after=files.stored(after),
        snapshot={**vars(snapshot), "extra": backend.remember(host)},
        expected=runtime.leases(profile, snapshot),
        targets=[one.stored() for one in targets],
        previous=confirmed,
        gateway=bool(uplink),
        excused=_excused(profile, {*changed, *reached}, snapshot),
        rows_before=rows_before.stored(),
        rows_after=rows_after.stored(),
        untaken=list(untaken),
    )
    return Plan(
        backend=backend.name,
        errors=tuple(errors),
        refusal=refusal,
        diffs={name: _diff(name, before[name], after[name]) for name in after},
        differences=tuple(lines),
        uplink=tuple(uplink),
        change=None if errors else change,
    )

"""Virtual machines as they are declared: made, kept as declared, updated in place, stopped, removed.

What is declared has the shape of pillar ``libvirt:guests`` (docs/pillar.rst) and is judged by the same
schema. What a declaration does not name is left as it is. virt-install and virt-xml write definitions;
a running guest gets at once what libvirt can change under it, and all else at its next start, which the
comment says. A guest is restarted, or its power cut, only with ``allow_restart`` and
``allow_power_off``. A disk is never exchanged, made smaller, or deleted without ``delete_disks``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PROGRAMS = ("virsh", "virt-install", "virt-xml", "qemu-img")
_DOWN = frozenset({"shut off", "crashed", "no state"})

Changes = dict[str, Any]


class _Steps:
    """What is to be done, in order: each step has the changes it makes and what makes them.

    A dry run shows the changes of all steps; a run shows those of the steps that were done.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[Changes, Callable[[], object]]] = []
        self.notes: list[str] = []

    def add(self, changes: Changes, action: Callable[[], object]) -> None:
        """Add a step."""
        self.steps.append((changes, action))

    def predict(self, changes: Changes) -> None:
        """Add changes that a dry run shows before anybody can say how they are made."""
        self.steps.append((changes, dict))

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Add a step of no changes of its own, whose failure is told and ends nothing."""
        self.steps.append(({}, partial(self._attempted, what, action)))

    def _attempted(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except CommandExecutionError as error:
            self.notes.append(f"{what}: not while the guest runs, but at its next start ({error}).")

    def changes(self) -> Changes:
        """Return the changes of all steps."""
        return {key: value for changes, _ in self.steps for key, value in changes.items()}


def running(name: str, **declaration: Any) -> dict[str, Any]:
    """Make sure that a guest is as declared and runs.

    Args:
        name: The guest.
        declaration: Its keys, as below pillar ``libvirt:guests``.

    Returns a state result. A paused guest counts as running and stays paused: it may be on its way
    to or from another host.
    """
    return _ensured(name, "running", declaration)


def stopped(name: str, **declaration: Any) -> dict[str, Any]:
    """Make sure that a guest is as declared and does not run; arguments and result as of ``running``.

    A guest that runs is asked to shut down; if it does not within ``stop_timeout`` seconds, its power
    is cut with ``allow_power_off`` alone.
    """
    return _ensured(name, "stopped", declaration)


def defined(name: str, **declaration: Any) -> dict[str, Any]:
    """Make sure that a guest is as declared, running or not; arguments and result as of ``running``."""
    return _ensured(name, "defined", declaration)


def absent(name: str, **declaration: Any) -> dict[str, Any]:
    """Make sure that there is no such guest; arguments and result as of ``running``.

    It is stopped as ``stopped`` does it. Its disks stay, unless ``delete_disks`` is true: then the
    files and volumes go that it alone uses. Images that disks are based on stay.
    """
    return _ensured(name, "absent", declaration)


def _ensured(name: str, ensure: str, declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Judge a declaration, then do what it asks for, or say what that would be."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        problems = _problems(name, declaration)
        if problems:
            return ret | {"result": False, "comment": "Nothing was changed:\n" + "\n".join(problems)}
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            return _not_installed(ret, ensure, missing)
        xml = __utils__["libvirt_tools.definition"]("domain", name)
        if xml is None and (moved := __utils__["guest_host.moved"](name)):
            comment = f"The guest was migrated to {moved.get('to')} ({moved.get('at')}); nothing is changed here."
            return ret | {"comment": comment}
        if xml is not None and (target := _interrupted(name)):
            comment = (
                f"a migration of {name} to {target} was interrupted: look whether it runs there; if it does not, "
                "hypervisor.start starts it here"
            )
            return ret | {"result": False, "comment": comment}
        steps = _Steps()
        if ensure == "absent":
            comment = _plan_absence(name, xml, declaration, steps)
        elif xml is None:
            comment = _plan_new(name, ensure, declaration, steps)
        else:
            comment = _plan_existing(name, ensure, declaration, xml, steps)
        return _carried_out(ret, steps, comment)
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"{error}."}


def _interrupted(name: str) -> str:
    """Return where a guest was on its way to when its migration was interrupted, if it may be there now."""
    moved = __utils__["guest_host.moved"](name)
    if not moved.get("moving") or __utils__["guest_host.status"](_utils(), name)["State"] not in _DOWN:
        return ""
    return str(moved.get("to") or "another host")


def _carried_out(ret: dict[str, Any], steps: _Steps, comment: str) -> dict[str, Any]:
    """Do the steps, or show them; return the result."""
    if __opts__["test"]:
        changes = steps.changes()
        words = " ".join(["The guest would be changed." if changes else comment, *steps.notes])
        return ret | {"result": None if changes else True, "changes": changes, "comment": words}
    try:
        for changes, action in steps.steps:
            action()
            ret["changes"].update(changes)
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": " ".join([f"{error}.", *steps.notes])}
    return ret | {"comment": " ".join([comment, *steps.notes])}


def _problems(name: str, declaration: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the arguments."""
    if not __utils__["libvirt_tools.is_name"](name):
        return [f"name: {name!r} is not the name of a guest; allowed: letters, digits and _ . + : @ -"]
    if __utils__["cluster_guests.is_defined"](name) or declaration.get("ha"):
        told = "first declare it with ha and ensure: absent, and run the highstate on all nodes; its disks stay"
        return [f"{name}:ha: the cluster alone starts {name}. To have it on this host alone, {told}"]
    problems: list[str] = __salt__["formula.judge"]("libvirt", "guest", dict(declaration), name)
    return problems or list(__utils__["guest_declared.contradictions"](name, declaration))


def _not_installed(ret: dict[str, Any], ensure: str, missing: list[str]) -> dict[str, Any]:
    """Return the result on a host without libvirt."""
    if ensure == "absent":
        return ret | {"comment": "libvirt is not installed, so there is no guest."}
    if __opts__["test"]:
        changes = {"guest": "to be set up once it is installed"}
        return ret | {"result": None, "changes": changes, "comment": "libvirt is not installed yet."}
    comment = f"Not installed: {', '.join(missing)}. The state kvm.packages brings them."
    return ret | {"result": False, "comment": comment}


def _utils() -> dict[str, Any]:
    """Return what the modules of _utils need of each other, as values: ``__utils__`` is empty inside them."""
    return {name: __utils__[name] for name in __utils__["guest_plan.needs"]()}


# ---- what is wanted ----


def _wanted(name: str, declaration: Mapping[str, Any], used: list[str]) -> Any:
    """Take a declaration apart; ``used`` are the pools that the guest's definition names."""
    names = sorted({*__utils__["guest_declared.pools"](declaration), *used})
    known = {**_pools_to_come(names), **__utils__["guest_host.pools"](_utils(), names)}
    folder = __salt__["formula.config"]("kvm")["images"]["path"]
    profiles = __salt__["formula.config"]("libvirt")["nic_profiles"] if "nic_profile" in declaration else {}
    disks = __utils__["guest_declared.disks"](name, declaration, known, folder)
    nics = __utils__["guest_declared.interfaces"](name, declaration, profiles)
    for disk in disks:
        if disk["path"] is None and disk["image"]:
            disk["path"] = __utils__["guest_storage.place"](disk, __salt__["cp.hash_file"])
    if "cloud_init" in declaration:
        disks.append(__utils__["guest_declared.seed_disk"](name, disks, folder))
    return __utils__["guest_plan.wanted"](name, __utils__["guest_declared.facts"](declaration), disks, nics, known)


def _pools_to_come(names: list[str]) -> dict[str, dict[str, str]]:
    """Return what the pools are to be that states before this one would make; nothing but in a dry run."""
    if not (names and __opts__["test"]):
        return {}
    declared = __salt__["formula.config"]("libvirt")["pools"]
    coming = {name: declared[name] for name in names if name in declared and declared[name].get("ensure") != "absent"}
    forms = {name: __utils__["libvirt_pool.wanted"](name, spec) for name, spec in coming.items()}
    return {name: {"type": form["type"], "target": form["target"]} for name, form in forms.items()}


def _plan_disks(want: Any, alive: bool, steps: _Steps, used: Collection[str | None] = ()) -> None:
    """Add what has to be done for the disks themselves; ``used`` are those that the guest has already."""
    for disk in want.disks:
        if disk["seed"]:
            continue
        found = __utils__["guest_storage.survey"](__utils__["libvirt_tools.run"], disk, disk["path"] in used)
        if found["note"]:
            steps.notes.append(found["note"])
        change = {f"disk {disk['label']}": {"old": found["old"], "new": found["new"]}}
        if found["do"] == "create":
            steps.add(change, partial(_make_disk, disk))
        elif found["do"] == "grow":
            grow = __utils__["guest_storage.grow"]
            steps.add(change, partial(grow, __utils__["libvirt_tools.run"], __utils__["libvirt_tools.virsh"], disk,
                                      want.name if alive else None))  # fmt: skip


def _make_disk(disk: Mapping[str, Any]) -> None:
    """Make a disk, or fetch the image that a cdrom is."""
    base = None
    if disk["image"]:
        base = __utils__["guest_storage.fetched"](disk, __salt__["cp.hash_file"], __salt__["cp.get_file"])
    if not disk["cdrom"]:
        run, virsh = __utils__["libvirt_tools.run"], __utils__["libvirt_tools.virsh"]
        __utils__["guest_storage.create"](run, virsh, disk, base)


# ---- what a guest reads at its first start ----


def _plan_seed(name: str, declaration: Mapping[str, Any], want: Any, steps: _Steps) -> None:
    """Add cloud-init's disk, and the key of the guest's minion before it."""
    path = next((disk["path"] for disk in want.disks if disk["seed"]), None)
    if path is None:
        return
    seeded = declaration["cloud_init"]
    minion = bool(seeded.get("minion"))
    if minion and not __utils__["guest_seed.accepted"](name):
        steps.add({"minion key": {"old": None, "new": "accepted by the master"}}, partial(_accepted_key, name))
    old = __utils__["guest_seed.mark"](path)
    # Without a key there can be no disk as declared.
    if minion and not __utils__["guest_seed.public_key"](name):
        new = None
    else:
        new = __utils__["guest_seed.digest"](_seed_files(name, seeded))
    if old is None or old != new:
        change = {"cloud_init": {"old": None if old is None else "other", "new": "written"}}
        steps.add(change, partial(_write_seed, name, seeded, path))


def _seed_files(name: str, seeded: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of cloud-init's disk."""
    master_key = Path(__opts__["pki_dir"]) / "minion_master.pub"
    found: dict[str, str] = __utils__["guest_seed.files"](name, seeded, str(__opts__["master"]), master_key)
    return found


def _write_seed(name: str, seeded: Mapping[str, Any], path: str) -> None:
    """Write cloud-init's disk."""
    __utils__["guest_seed.make"](__utils__["libvirt_tools.run"], _seed_files(name, seeded), path)


def _accepted_key(name: str) -> None:
    """Have the key of the guest's minion, accepted by the master; raise ValueError if it is not."""
    controller = __salt__["formula.config"]("libvirt")["pki"]["ca_server"]
    __utils__["guest_seed.have_accepted"](name, controller, __salt__["publish.publish"])


# ---- a new guest ----


def _plan_new(name: str, ensure: str, declaration: Mapping[str, Any], steps: _Steps) -> str:
    """Plan a guest that is not there; return the comment of success."""
    if __opts__["test"] and (missing := _missing_pools(declaration)):
        # A site's own states may make them before this one.
        made = {f"disk {disk['name']}": {"old": None, "new": "to be made"} for disk in declaration["disks"]}
        if declaration.get("cloud_init", {}).get("minion") and not __utils__["guest_seed.accepted"](name):
            made["minion key"] = {"old": None, "new": "accepted by the master"}
        if "cloud_init" in declaration:
            made["cloud_init"] = {"old": None, "new": "written"}
        steps.predict({**made, "guest": {"old": None, "new": "defined"}})
        steps.notes.append(f"Its storage pools are not there yet: {', '.join(missing)}.")
    else:
        want = _wanted(name, declaration, [])
        choice = {key: declaration[key] for key in ("arch", "vm_type") if key in declaration}
        host = __utils__["guest_argv.host_defaults"](__utils__["libvirt_tools.virsh"]("capabilities"), choice)
        argv = __utils__["guest_argv.install"](name, want.facts, host, __utils__["guest_plan.new"](_utils(), want))
        _plan_disks(want, False, steps)
        _plan_seed(name, declaration, want, steps)
        steps.add({"guest": {"old": None, "new": "defined"}}, partial(__utils__["guest_host.define"], _utils(), argv))
    _plan_autostart(name, declaration, False, steps)
    if ensure != "running":
        return f"The guest {name} is there."
    steps.add({"state": {"old": "shut off", "new": "running"}}, partial(__utils__["guest_host.start"], _utils(), name))
    return f"The guest {name} is there and runs."


def _missing_pools(declaration: Mapping[str, Any]) -> list[str]:
    """List the pools that a declaration names and neither libvirt nor the pillar knows."""
    names = __utils__["guest_declared.pools"](declaration)
    if not names:
        return []
    return sorted(set(names) - set(__utils__["libvirt_tools.names"]("pool")) - set(_pools_to_come(names)))


def _plan_autostart(name: str, declaration: Mapping[str, Any], now: bool, steps: _Steps) -> None:
    """Add whether the guest starts with its host."""
    wanted = declaration.get("autostart", now)
    if wanted != now:
        words = ["autostart", "--domain", name, *([] if wanted else ["--disable"])]
        steps.add({"autostart": {"old": now, "new": wanted}}, partial(__utils__["libvirt_tools.virsh"], *words))


# ---- a guest that is there ----


def _plan_existing(name: str, ensure: str, declaration: Mapping[str, Any], xml: str, steps: _Steps) -> str:
    """Plan a guest that is there; return the comment of success."""
    virsh = __utils__["libvirt_tools.virsh"]
    domain = __utils__["guest_domain.parse"](xml)
    status = __utils__["guest_host.status"](_utils(), name)
    alive = status["State"] not in _DOWN
    live = __utils__["guest_domain.parse"](virsh("dumpxml", "--", name)) if alive else None
    used = [str(one.get("pool")) for one in domain.findall("devices/disk/source") if one.get("pool")]
    elsewhere = _has_key_elsewhere(name, declaration)
    if elsewhere:
        steps.notes.append(f"The key of {name}'s minion was made on another host and stays.")
        if __utils__["guest_domain.seed_path"](domain) is None:
            # Without the key there is no disk to attach.
            declaration = {key: value for key, value in declaration.items() if key != "cloud_init"}
    want = _with_chains(_wanted(name, declaration, used), domain)
    used_paths = [__utils__["guest_domain.disk_path"](disk, want.pools) for disk in domain.findall("devices/disk")]
    _plan_disks(want, alive, steps, used_paths)
    if not elsewhere:
        _plan_seed(name, declaration, want, steps)
    plan = __utils__["guest_plan.existing"](_utils(), want, domain, live)
    for what, command in plan.live:
        steps.attempt(what, partial(virsh, *command))
    if status.get("Persistent") == "no":
        plan.changes["definition"] = {"old": "transient", "new": "persistent"}
    if plan.changes:
        steps.add(plan.changes, partial(__utils__["guest_host.edit"], _utils(), name, plan.steps))
    for what, kind, number in plan.attach:
        steps.attempt(what, partial(__utils__["guest_host.attach"], _utils(), name, kind, number))
    _plan_autostart(name, declaration, status.get("Autostart") == "enable", steps)
    if alive and steps.changes() and (job := __utils__["guest_host.job"](_utils(), name)):
        raise ValueError(f"{name} is busy with {job}, so nothing was changed; run this again when it is done")
    later = __utils__["guest_plan.waiting"](_utils(), want, live, plan) if alive else []
    return _plan_power(name, ensure, declaration, (status["State"], later), steps)


def _has_key_elsewhere(name: str, declaration: Mapping[str, Any]) -> bool:
    """Say whether a guest that is there is to be a minion with a key that this host does not have."""
    minion = bool(declaration.get("cloud_init", {}).get("minion"))
    return minion and not __utils__["guest_seed.public_key"](name)


def _with_chains(want: Any, domain: Any) -> Any:
    """Add which files the guest's disks read from, where a declared disk is not among them."""
    if not __utils__["guest_plan.missing_disks"](_utils(), want, domain):
        return want
    chains = {}
    for disk in domain.findall("devices/disk"):
        path = __utils__["guest_domain.disk_path"](disk, want.pools)
        if path and Path(path).exists():
            chains[path] = __utils__["guest_storage.chain"](__utils__["libvirt_tools.run"], path)
    return __utils__["guest_plan.with_chains"](want, chains)


def _plan_power(
    name: str, ensure: str, declaration: Mapping[str, Any], now: tuple[str, list[str]], steps: _Steps
) -> str:
    """Add starts and stops; return the comment of success."""
    state, later = now
    alive = state not in _DOWN
    start, stop, restart = (__utils__[f"guest_host.{verb}"] for verb in ("start", "stop", "restart"))
    if ensure == "stopped" and alive:
        steps.add({"state": {"old": state, "new": "shut off"}}, partial(stop, _utils(), name, declaration))
        return f"The guest {name} is as declared and does not run."
    if ensure == "running" and not alive:
        steps.add({"state": {"old": state, "new": "running"}}, partial(start, _utils(), name))
        return f"The guest {name} is as declared and runs."
    if not (later and alive):
        return f"The guest {name} is as declared ({state})."
    if declaration.get("allow_restart"):
        change = {"restart": {"old": f"other: {', '.join(later)}", "new": "as declared"}}
        steps.add(change, partial(restart, _utils(), name, declaration))
        return f"The guest {name} is as declared and was restarted."
    return (
        f"The definition of {name} is as declared. Until the guest's next start this waits: {', '.join(later)}. "
        "With allow_restart: true it would be restarted."
    )


# ---- no guest ----


def _plan_absence(name: str, xml: str | None, declaration: Mapping[str, Any], steps: _Steps) -> str:
    """Plan that there is no guest; return the comment of success."""
    if xml is None:
        return f"There is no guest {name}."
    virsh = __utils__["libvirt_tools.virsh"]
    status = __utils__["guest_host.status"](_utils(), name)
    if status["State"] not in _DOWN:
        stop = partial(__utils__["guest_host.stop"], _utils(), name, declaration)
        steps.add({"state": {"old": status["State"], "new": "shut off"}}, stop)
    if status.get("Persistent") != "no":
        words = ["--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata", "--domain", name]
        steps.add({"guest": {"old": "defined", "new": None}}, partial(virsh, "undefine", *words))
    domain = __utils__["guest_domain.parse"](xml)
    used = [str(one.get("pool")) for one in domain.findall("devices/disk/source") if one.get("pool")]
    own = __utils__["guest_domain.own_disks"](domain, __utils__["guest_host.pools"](_utils(), used))
    seed = __utils__["guest_domain.seed_path"](domain)
    # Before the first step: a failure to look must find everything as it was.
    others = _used_by_others(name) if seed or (own and declaration.get("delete_disks")) else {}
    if seed and Path(seed).exists() and (other := _other(others, seed)):
        steps.notes.append(f"The disk {seed} stays: guest {other} uses it.")
    elif seed and Path(seed).exists():
        # It may hold secrets, and is made again from the declaration.
        delete = partial(__utils__["guest_host.delete"], _utils(), seed)
        steps.add({"cloud_init": {"old": "written", "new": None}}, delete)
    if not declaration.get("delete_disks"):
        kept = f" Its disks stay: {', '.join(own)}." if own else ""
        return f"The guest {name} is gone.{kept}"
    staying = [path for path in own if _other(others, path)]
    steps.notes += [f"The disk {path} stays: guest {_other(others, path)} uses it." for path in staying]
    for path in own:
        if path not in staying:
            delete = partial(__utils__["guest_host.delete"], _utils(), path)
            steps.add({f"disk {path}": {"old": "there", "new": None}}, delete)
    return f"The guest {name} is gone." if staying else f"The guest {name} and its disks are gone."


def _other(others: Mapping[str, str], path: str) -> str | None:
    """Return the guest that uses a file, by any of its names."""
    return others.get(path) or others.get(str(Path(path).resolve()))


def _used_by_others(name: str) -> dict[str, str]:
    """Find the files that other guests' disks lie and stand on, with one guest's name each.

    Raises:
        CommandExecutionError: libvirt cannot be asked, or a disk cannot be read.
    """
    used: dict[str, str] = {}
    for other in __utils__["libvirt_tools.names"]("domain"):
        if other == name:
            continue
        # What runs may differ from what is defined, such as after a snapshot.
        for inactive in (True, False):
            xml = __utils__["libvirt_tools.definition"]("domain", other, inactive)
            if xml is not None:
                files = [file for path in _disk_files(xml) for file in (path, str(Path(path).resolve()))]
                used |= dict.fromkeys(files, other)
    return used


def _disk_files(xml: str) -> list[str]:
    """List the files that the disks of a definition lie and stand on."""
    domain = __utils__["guest_domain.parse"](xml)
    disks = domain.findall("devices/disk")
    names = {str(source.get("pool")) for source in domain.findall("devices/disk/source") if source.get("pool")}
    known = __utils__["guest_host.pools"](_utils(), sorted(names))
    found: list[str] = []
    for disk in disks:
        path = __utils__["guest_domain.disk_path"](disk, known)
        if not path:
            continue
        found.append(path)
        # A raw disk stands on nothing, and what it begins with is the guest's own.
        kind = __utils__["guest_domain.value"](disk, "driver/@type")
        if kind not in {None, "raw"} and Path(path).exists():
            found += __utils__["guest_storage.chain"](__utils__["libvirt_tools.run"], path)
    return found

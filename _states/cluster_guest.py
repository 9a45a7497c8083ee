"""Guests that the cluster runs: every node has the same definition, and Pacemaker alone starts, moves and stops them.

A guest of pillar ``libvirt:guests`` with ``ha`` is a resource of the cluster. Its definition is a file that root alone
reads, the same on every node, from which Pacemaker's agent makes the guest where it is to run; libvirt itself keeps
none, so that nobody starts a second one by mistake. These states write that file and never start or stop a guest.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PROGRAMS = ("virsh", "virt-install", "qemu-img")
_PAUSE = 1.0
Result = dict[str, Any]


def defined(name: str, **declaration: Any) -> Result:
    """Make sure that this node has the definition of a guest of the cluster.

    Args:
        name: The guest.
        declaration: Its keys, as below pillar ``libvirt:guests``.

    Returns a state result. Disks that are files on storage of all nodes the bootstrap node makes; volumes are those of
    ``cluster:storage``. A guest that runs gets a changed definition at its next start, which the comment says.
    """
    ret: Result = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        wrong = _problems(name, declaration)
        if wrong:
            return ret | {"result": False, "comment": "Nothing was changed:\n" + "\n".join(wrong)}
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing and __opts__["test"]:
            changes = {"definition": {"old": None, "new": "written"}}
            return ret | {"result": None, "changes": changes, "comment": "libvirt is not installed yet."}
        if missing:
            comment = f"Not installed: {', '.join(missing)}. The state kvm.packages brings them."
            return ret | {"result": False, "comment": comment}
        if own := _own_definition(name):
            return ret | {"result": False, "comment": own}
        return _written(ret, name, declaration)
    except (CommandExecutionError, OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"{error}."}


def absent(name: str, wait_seconds: int = 120, **declaration: Any) -> Result:
    """Make sure that this node has no definition of a guest that the cluster does not run any more.

    Args:
        name: The guest.
        wait_seconds: How long to wait until the cluster has stopped it, which the bootstrap node brings about.
        declaration: Accepted, and of no meaning.

    Returns a state result. Its disks and volumes stay.
    """
    del declaration
    ret: Result = {"name": name, "result": True, "changes": {}, "comment": f"There is no guest {name}."}
    path = _path(name)
    try:
        if not path.exists():
            return ret
        ret["changes"] = {"definition": {"old": "written", "new": None}}
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"The definition {path} would be removed."}
        # Without it Pacemaker's agent would take a guest that runs for one that is stopped.
        deadline = time.monotonic() + wait_seconds
        while why := _used(name):
            if time.monotonic() + _PAUSE > deadline:
                return ret | {"result": False, "changes": {}, "comment": f"Within {wait_seconds} s {why}."}
            time.sleep(_PAUSE)
        path.unlink()
    except (CommandExecutionError, OSError) as error:
        return ret | {"result": False, "changes": {}, "comment": f"{error}."}
    return ret | {"comment": f"The definition {path} is gone; disks and volumes of {name} stay."}


def _used(name: str) -> str:
    """Return why a definition is needed still; empty if it is not."""
    run = __utils__["cluster_tools.run"]
    if __utils__["cluster_tools.active"]("pacemaker.service"):
        found = run(["cibadmin", "--query", "--xpath", f"//primitive[@id='{name}']"], ok=range(256))
        if "<primitive" in found:
            bootstrap = __salt__["formula.config"]("cluster")["bootstrap_node"]
            return f"{name} is still a resource of the cluster, which {bootstrap} changes: run its highstate first"
    if shutil.which("virsh") and name in __utils__["libvirt_tools.virsh"]("list", "--name").split():
        return f"{name} still runs here, although the cluster does not have it any more; look at it: virsh list"
    return ""


# ---- what is wrong ----


def _problems(name: str, declaration: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a declaration, by the path of the pillar."""
    if not __utils__["libvirt_tools.is_name"](name):
        return [f"name: {name!r} is not the name of a guest; allowed: letters, digits and _ . + : @ -"]
    problems: list[str] = __salt__["formula.judge"]("libvirt", "guest", dict(declaration), name)
    problems = problems or list(__utils__["guest_declared.contradictions"](name, declaration))
    if problems:
        return problems
    config = __salt__["formula.config"]
    libvirt, cluster = config("libvirt"), config("cluster")
    guests = __utils__["cluster_guests.declared"]({**libvirt["guests"], name: {"ha": True, **declaration}})
    found = __utils__["cluster_guests.problems"](__opts__["id"], cluster, guests, libvirt["pools"], _mounts())
    nodes = [minion for minion, spec in cluster["nodes"].items() if spec.get("ensure") != "absent"]
    away = [minion for minion in nodes if minion not in libvirt["tls"]["allowed_hosts"]]
    if not found and away:
        text = f"missing: {', '.join(away)}; guests of the cluster could not move from there to this host"
        found = [("libvirt:tls:allowed_hosts", text)]
    own = [row for row in found if not row[0].startswith("libvirt:guests:") or row[0].split(":")[2] == name]
    return [f"{where}: {text}" for where, text in own]


def _mounts() -> list[str]:
    """List where network file systems are mounted, as pillar says."""
    declared = __salt__["formula.config"]("kvm")["mounts"]
    shared = __utils__["hypervisor_obstacles.is_shared"]
    return [path for path, spec in declared.items() if shared(str(spec.get("fstype", "")))]


def _own_definition(name: str) -> str:
    """Return why libvirt's own definition of a guest of that name is in the way; empty for none."""
    if name not in __utils__["libvirt_tools.virsh"]("list", "--all", "--name", "--persistent").split():
        return ""
    return (
        f"{name} is defined on this host as a guest of its own, so that it could run twice. If that is the guest that "
        f"the cluster is to run: shut it down, then virsh undefine --keep-nvram {name}, which leaves its disks"
    )


# ---- the definition ----


def _path(name: str) -> Path:
    """Return where a guest's definition is."""
    return Path(__utils__["cluster_guests.definition"](name))


def _utils() -> dict[str, Any]:
    """Return what the modules of _utils need of each other, as values: ``__utils__`` is empty inside them."""
    return {name: __utils__[name] for name in __utils__["guest_plan.needs"]()}


def _is_volume(disk: Mapping[str, Any]) -> bool:
    """Say whether a declared disk is a device."""
    return str(disk.get("source_file", "")).startswith("/dev/")


def _wanted(name: str, declaration: Mapping[str, Any]) -> Any:
    """Take a declaration apart."""
    config = __salt__["formula.config"]
    libvirt, folder = config("libvirt"), config("kvm")["images"]["path"]
    pools = {}
    for pool in __utils__["guest_declared.pools"](declaration):
        form = __utils__["libvirt_pool.wanted"](pool, libvirt["pools"][pool])
        pools[pool] = {"type": form["type"], "target": form["target"]}
    # A volume holds what the guest sees, unless pillar says otherwise.
    rows = [{"format": "raw", **one} if _is_volume(one) else one for one in declaration.get("disks", [])]
    disks = __utils__["guest_declared.disks"](name, {**declaration, "disks": rows}, pools, folder)
    profiles = libvirt["nic_profiles"] if "nic_profile" in declaration else {}
    nics = __utils__["guest_declared.interfaces"](name, declaration, profiles)
    if "cloud_init" in declaration:
        disks.append(__utils__["guest_declared.seed_disk"](name, disks, folder))
    return __utils__["guest_plan.wanted"](name, __utils__["guest_declared.facts"](declaration), disks, nics, pools)


def _written(ret: Result, name: str, declaration: Mapping[str, Any]) -> Result:
    """Write what differs: disks, cloud-init's disk, the definition."""
    cluster = __salt__["formula.config"]("cluster")
    want = _wanted(name, declaration)
    choice = {key: declaration[key] for key in ("arch", "vm_type") if key in declaration}
    host = __utils__["guest_argv.host_defaults"](__utils__["libvirt_tools.virsh"]("capabilities"), choice)
    argv = __utils__["guest_argv.install"](name, want.facts, host, __utils__["guest_plan.new"](_utils(), want))
    argv += ["--uuid", __utils__["cluster_guests.identity"](cluster["name"], name)]
    steps: list[tuple[dict[str, Any], Any]] = []
    notes: list[str] = []
    first = __opts__["id"] == cluster["bootstrap_node"]
    here = name in __utils__["libvirt_tools.virsh"]("list", "--name").split()
    if first or here:
        other, guest = (None, name) if here else (_elsewhere(name), None)
        for disk in want.disks:
            notes += _plan_disk(disk, other, steps, guest=guest, making=first)
    _plan_seed(name, declaration, want, steps)
    _plan_definition(name, argv, steps)
    notes += _waiting(name, want)
    predicted = {key: value for changes, _ in steps for key, value in changes.items()}
    if "definition" in predicted and (taken := _taken(name, declaration, cluster)):
        return ret | {"result": False, "comment": "Nothing was changed:\n" + "\n".join(taken)}
    if __opts__["test"]:
        comment = f"The guest {name} {'would be changed' if predicted else 'is as declared'}."
        result = None if predicted else True
        return ret | {"result": result, "changes": predicted, "comment": " ".join([comment, *notes])}
    for changes, action in steps:
        action()
        ret["changes"].update(changes)
    return ret | {"comment": " ".join([f"The cluster's guest {name} is defined here as declared.", *notes])}


def _taken(name: str, declaration: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """Return which volumes of a guest another one still has open, which had them before."""
    volumes = __utils__["cluster_guests.volumes"](cluster["storage"])
    paths = [disk.get("source_file") for disk in declaration.get("disks", [])]
    wanted = {path: resource for path, resource in volumes.items() if path in paths}
    if not wanted or not __utils__["cluster_tools.active"]("pacemaker.service"):
        return []
    here = cluster["nodes"][__opts__["id"]].get("name", __opts__["id"])
    utils = {key: __utils__[key] for key in __utils__["cluster_ties.needs"]()}
    live = __utils__["cluster_tools.run"](["cibadmin", "--query"], ok=range(256))
    if "<cib" not in live:
        # It is about to start for the first time.
        return []
    found = __utils__["cluster_ties.held_by_others"](utils, name, wanted, live, here)
    return [__utils__["cluster_ties.told"](name, path, other) for other, held in found.items() for path in held]


def _elsewhere(name: str) -> str | None:
    """Return the node that runs a guest, by Pacemaker's word; None for none, or where Pacemaker does not run."""
    if not __utils__["cluster_tools.active"]("pacemaker.service"):
        return None
    guests = __utils__["cluster_status.read"](__utils__["cluster_tools.monitor"]()).get("guests", [])
    return next((one["node"] for one in guests if one["name"] == name), None)


def _plan_disk(
    disk: Mapping[str, Any],
    other: str | None,
    steps: list[tuple[dict[str, Any], Any]],
    guest: str | None = None,
    making: bool = True,
) -> list[str]:
    """Add what a disk that is a file needs; volumes are made by the states of cluster/.

    Args:
        disk: The disk.
        other: Another node that runs the guest: QEMU has its disks open there, and its own run makes them larger.
        steps: Is added to.
        guest: The guest, if it runs here.
        making: Whether a disk that is missing is made.

    Returns what is to be said.
    """
    if disk["seed"] or disk["block"] or disk["cdrom"]:
        return []
    run, virsh = __utils__["libvirt_tools.run"], __utils__["libvirt_tools.virsh"]
    found = __utils__["guest_storage.survey"](run, disk)
    change = {f"disk {disk['label']}": {"old": found["old"], "new": found["new"]}}
    if found["do"] == "create" and making:
        steps.append((change, partial(_make_disk, disk)))
    elif found["do"] == "grow" and other:
        return [f"The disk {disk['label']} becomes larger by the highstate of {other}, which runs the guest."]
    elif found["do"] == "grow":
        steps.append((change, partial(__utils__["guest_storage.grow"], run, virsh, disk, guest)))
    return [found["note"]] if found["note"] else []


def _make_disk(disk: Mapping[str, Any]) -> None:
    """Make a disk."""
    base = None
    if disk["image"]:
        base = __utils__["guest_storage.fetched"](disk, __salt__["cp.hash_file"], __salt__["cp.get_file"])
    __utils__["guest_storage.create"](__utils__["libvirt_tools.run"], __utils__["libvirt_tools.virsh"], disk, base)


def _plan_seed(name: str, declaration: Mapping[str, Any], want: Any, steps: list[tuple[dict[str, Any], Any]]) -> None:
    """Add cloud-init's disk, which every node has for itself."""
    path = next((disk["path"] for disk in want.disks if disk["seed"]), None)
    if path is None:
        return
    key = Path(__opts__["pki_dir"]) / "minion_master.pub"
    files = __utils__["guest_seed.files"](name, declaration["cloud_init"], str(__opts__["master"]), key)
    old = __utils__["guest_seed.mark"](path)
    if old != __utils__["guest_seed.digest"](files):
        change = {"cloud_init": {"old": None if old is None else "other", "new": "written"}}
        steps.append((change, partial(__utils__["guest_seed.make"], __utils__["libvirt_tools.run"], files, path)))


def _plan_definition(name: str, argv: list[str], steps: list[tuple[dict[str, Any], Any]]) -> None:
    """Add the definition's file."""
    path = _path(name)
    found = __utils__["own_files.read"](path)
    text = None if found is None else found.decode("utf-8", "replace")
    if __utils__["cluster_guests.differs"](text, json.dumps(argv)):
        change = {"definition": {"old": None if text is None else "other", "new": "written"}}
        steps.append((change, partial(_define, name, argv)))
    elif access := __utils__["own_files.access"](path, 0o600):
        steps.append(({"access": access}, partial(path.chmod, 0o600)))


def _define(name: str, argv: list[str]) -> None:
    """Write the definition once libvirt has found nothing wrong with it, and have Pacemaker look again."""
    path = _path(name)
    xml = __utils__["libvirt_tools.run"](argv, label="virt-install")
    # It says what QEMU would be started with, and starts nothing.
    convert = ("domxml-to-native", "qemu-argv", "--xml", "/dev/stdin")
    __utils__["libvirt_tools.virsh"](*convert, stdin=xml)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    text = __utils__["cluster_guests.written"](json.dumps(argv), xml)
    __utils__["own_files.write"](path, text.encode("utf-8"), 0o600)
    _tried_again(name)


def _tried_again(name: str) -> None:
    """Have Pacemaker forget that this node could not run a guest for want of its definition."""
    if not __utils__["cluster_tools.active"]("pacemaker.service"):
        return
    cluster = __salt__["formula.config"]("cluster")
    node = cluster["nodes"][__opts__["id"]].get("name", __opts__["id"])
    if f'op_key="{name}_' in __utils__["cluster_tools.monitor"]():
        argv = ["crm_resource", "--cleanup", "--resource", name, "--node", node]
        try:
            with __utils__["cluster_pace.turn"](__utils__["cluster_tools.monitor"]):
                __utils__["cluster_tools.run"](argv, ok=range(256))
        except CommandExecutionError:
            # It has waited long enough, and no other run would do it.
            __utils__["cluster_tools.run"](argv, ok=range(256))


def _waiting(name: str, want: Any) -> list[str]:
    """Say what a guest that runs here gets at its next start only."""
    if name not in __utils__["libvirt_tools.virsh"]("list", "--name").split():
        return []
    live = __utils__["guest_domain.parse"](__utils__["libvirt_tools.virsh"]("dumpxml", "--", name))
    nothing = __utils__["guest_plan.nothing"]()
    later = __utils__["guest_plan.waiting"](_utils(), want, live, nothing)
    return [f"It runs here, and until its next start this waits: {', '.join(later)}."] if later else []

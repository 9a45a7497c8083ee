"""Fencing, resources and constraints of a cluster: the live CIB is what is declared, and all else in it stays.

The bootstrap node alone does this. It lays the declaration over a copy of the live CIB, offline, and brings in the
difference as one change that Pacemaker refuses if the CIB has changed meanwhile.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __pillar__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 1.0
_TRIES = 5
_QUERY = ["cibadmin", "--query"]
_LAST = Path("/var/lib/pacemaker/cib/cib.xml")
_STOP = "stop the cluster on all nodes (systemctl stop pacemaker corosync), then run the highstate on all"
_SECRETS = "/var/lib/pacemaker/lrm/secrets"
# A meta attribute of fence devices that says who has had new secrets last, and when.
_NEWS = "hypervisor-secrets"
# Beside secrets of which Pacemaker has still to be told, so that a run which could not is made up for by the next one.
_UNTOLD = ".untold"


def configured(
    name: str, declared: dict[str, Any], nodes: dict[str, Any], wait_seconds: int = 120, stage: str = "all"
) -> dict[str, Any]:
    """Make sure that the live CIB has what is declared, and that fence devices are at work.

    Args:
        name: Any label.
        declared: ``properties``, ``resource_defaults``, ``operation_defaults``, ``stonith``, ``resources``, ``groups``
            and ``constraints`` of the pillar ``cluster``; below ``secrets`` names alone. From ``sbd`` and ``storage``
            follows more of that.
        nodes: The nodes by minion id.
        wait_seconds: How long to wait for the fence devices.
        stage: How much of it: ``fencing`` alone, also the daemons of locks (``locking``), or ``all``.

    Returns a state result with each difference.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    notes: list[str] = []
    names = {minion: spec.get("name", minion) for minion, spec in nodes.items()}
    whole = {**declared, "nodes": list(nodes)}
    earlier = __utils__["cluster_derived.before"](whole, stage)
    declared = __utils__["cluster_derived.declared"](whole, stage)
    try:
        if not __utils__["cluster_tools.active"]("pacemaker.service"):
            if not __opts__["test"]:
                return ret | {"result": False, "comment": "Pacemaker does not run."}
            live = _after(_fitting(_last(), whole).text, earlier, names)
            ret["changes"] = __utils__["cluster_cib.apply"](live, declared, names).changes
        else:
            said = __utils__["cluster_derived.announcement"](whole.get("sbd") or {})
            going = __utils__["cluster_derived.going"](whole) if stage == "all" else []

            def ready(live: str, changes: Mapping[str, Any]) -> bool:
                _agreed(changes, said, wait_seconds)
                return _stopped(__utils__["cluster_cib.has"](live, going))

            if stage == "all" and whole.get("guests"):
                whole, notes = _held(whole, names)
                declared = __utils__["cluster_derived.declared"](whole, stage)
                if (late := _late(whole)) and not __opts__["test"]:
                    live = __utils__["cluster_tools.run"](_QUERY)
                    differs = __utils__["cluster_cib.apply"](live, declared, names).changes
                    fewer = __utils__["cluster_ties.without_disks"](whole, late)
                    first = __utils__["cluster_derived.declared"](fewer)
                    ret["changes"] = _brought_in(first, None, names, ready)
                    _started(whole)
                    ret["changes"] = differs
            ret["changes"] = {**_brought_in(declared, earlier, names, ready), **ret["changes"]}
        if __opts__["test"]:
            comment = " ".join([f"The CIB {'would change' if ret['changes'] else 'is as declared'}.", *notes])
            return ret | {"result": None if ret["changes"] else True, "comment": comment}
        devices = [one for one, spec in (declared.get("stonith") or {}).items() if spec.get("ensure") != "absent"]
        idle = _idle(devices, wait_seconds if ret["changes"] else 0)
    except (CommandExecutionError, OSError, ValueError, ElementTree.ParseError) as error:
        return ret | {"result": False, "comment": f"The CIB: {error}."}
    if idle:
        comment = f"Fence devices that are not at work within {wait_seconds} s: {'; '.join(idle)}."
        return ret | {"result": False, "comment": comment}
    return ret | {"comment": " ".join([f"The CIB is as declared{' now' if ret['changes'] else ''}.", *notes])}


# ---- guests that run, and get or give up a volume ----


def _volumes(whole: Mapping[str, Any]) -> dict[str, str]:
    """Return the resources of declared volumes by the path of their device."""
    found: dict[str, str] = __utils__["cluster_guests.volumes"](whole.get("storage") or {})
    return found


def _asking() -> dict[str, Any]:
    """Return what the modules of _utils need to ask Pacemaker and libvirt."""
    return {name: __utils__[name] for name in __utils__["cluster_ties.needs"]()}


def _held(whole: dict[str, Any], names: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Leave guests tied to volumes that are not theirs any more, as long as they run and have them open.

    Args:
        whole: What is declared.
        names: Of nodes by minion id.

    Returns what is declared with those volumes, and what is to be said.

    Raises:
        CommandExecutionError: whether a guest has one open cannot be seen, or another guest is to have it.
    """
    leaving = __utils__["cluster_ties.leaving"](whole, _volumes(whole), __utils__["cluster_tools.run"](_QUERY))
    here = names.get(__opts__["id"], "")
    held = {}
    for guest, paths in leaving.items():
        there = __utils__["cluster_ties.opened"](_asking(), guest, here)
        if kept := [path for path in paths if path in there]:
            held[guest] = kept
    if wrong := __utils__["cluster_ties.taken"](whole, held):
        raise CommandExecutionError(f"nothing has changed: {'; '.join(wrong)}")
    notes = [
        f"{guest} runs and has {', '.join(paths)} open, so it stays tied to that; the first highstate after its next "
        "start unties it."
        for guest, paths in held.items()
    ]
    return __utils__["cluster_ties.with_disks"](whole, held), notes


def _late(whole: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by guest that runs the volumes that it gets and that have not started yet."""
    live, seen = __utils__["cluster_tools.run"](_QUERY), __utils__["cluster_ties.asked"](_asking())
    found: dict[str, list[str]] = __utils__["cluster_ties.arriving"](whole, _volumes(whole), live, seen)
    return found


def _started(whole: Mapping[str, Any]) -> None:
    """Wait until volumes have started that guests get which run: tied to one that has not, a guest would be stopped.

    Raises:
        CommandExecutionError: a volume has not started in time; the guest goes on without it.
    """
    left, seconds = _left(lambda: _late(whole))
    if left:
        which = "; ".join(f"libvirt:guests:{guest}:disks: {', '.join(paths)}" for guest, paths in left.items())
        raise CommandExecutionError(
            f"volumes have not started within {seconds} s, so the guests go on without them: {which}; see "
            "crm_mon -1 --inactive, and run the highstate again once they are started"
        )


def _left(ask: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """Wait until nothing is left, for as long as Pacemaker may take; return what is then, and how many seconds."""
    seconds = int(__utils__["cluster_derived.stop_seconds"]())
    deadline = time.monotonic() + seconds
    while (left := ask()) and time.monotonic() + _PAUSE <= deadline:
        time.sleep(_PAUSE)
    return left, seconds


# ---- a cluster that is stopped ----


def fits_sbd(name: str, declared: dict[str, Any], nodes: list[str], bootstrap: str) -> dict[str, Any]:
    """Make sure that Pacemaker does not start with a CIB that says of sbd what does not hold any more.

    It would fence by disks that nobody watches, or would not start at all where sbd gives the watchdog more time than
    the CIB waits for it. So each node alters the copy on its own disk, before its sbd gets other settings. All alter it
    alike and count it up once: the newest, which the cluster takes when nodes join, stays the newest.

    Args:
        name: Any label.
        declared: ``properties``, ``stonith`` and ``sbd`` of the pillar ``cluster``.
        nodes: The minion ids of the nodes.
        bootstrap: The minion id of the node that brings in what is declared, once the cluster runs.

    Returns a state result with each difference.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    whole = {**declared, "nodes": nodes}
    way = ""
    try:
        if __utils__["cluster_tools.active"]("pacemaker.service"):
            return ret | _startable(whole, _last())
        way = f" Where other nodes have a good one, move all of {_LAST.parent} away on this one: it gets theirs."
        live = _last()
        result = _fitting(live, whole)
        if not result.changes:
            return ret | {"comment": "Pacemaker can start with the CIB on this node's disk."}
        if __opts__["test"]:
            comment = "The CIB on this node's disk would change."
            return ret | {"result": None, "changes": result.changes, "comment": comment}
        _written(live, result.text)
        ret["changes"] = result.changes
        if left := _fitting(_last(), whole).changes:
            raise CommandExecutionError(f"cibadmin has not written all of it; still to do: {', '.join(left)}")
    except (CommandExecutionError, OSError, ValueError, ElementTree.ParseError) as error:
        return ret | {"result": False, "comment": f"The CIB on this node's disk ({_LAST}): {error}.{way}"}
    comment = (
        "The CIB on this node's disk says nothing of sbd any more that does not hold. Once the cluster runs "
        f"{bootstrap} brings in the rest, which may be all of fencing; where that host is gone for good, name another "
        "one as cluster:bootstrap_node."
    )
    return ret | {"comment": comment}


def _startable(whole: Mapping[str, Any], live: str) -> dict[str, Any]:
    """Return what is to be said while Pacemaker runs: the live CIB counts, and has to wait long enough for a watchdog.

    One that reboots after sbd's file was written and before the CIB changes could not start Pacemaker.
    """
    short = __utils__["cluster_derived.short"](whole, __utils__["cluster_cib.seen"](live))
    if not short:
        return {"comment": "Pacemaker runs: the live CIB counts."}
    seconds = whole["sbd"]["watchdog_timeout"]
    comment = (
        f"cluster:sbd:watchdog_timeout: nothing of sbd has been written, since {seconds} s are more than the "
        f"stonith-watchdog-timeout {short} of the CIB, with which the cluster runs: {_STOP}."
    )
    return {"result": False, "comment": comment}


def _fitting(live: str, whole: Mapping[str, Any]) -> Any:
    """Return a CIB with what it has to be told before Pacemaker starts with it, and what differs."""
    outdated = __utils__["cluster_derived.outdated"](whole, __utils__["cluster_cib.seen"](live))
    return __utils__["cluster_cib.apply"](live, outdated, {})


def _written(live: str, new: str) -> None:
    """Write the CIB of a node whose Pacemaker does not run, with its digest; Pacemaker's program keeps the owner."""
    text = __utils__["cluster_cib.uncounted"](live, new)
    environment = {"CIB_file": str(_LAST)}
    __utils__["cluster_tools.run"](["cibadmin", "--replace", "--xml-pipe"], stdin=text, env=environment)


# ---- bringing in ----


def _last() -> str:
    """Return the CIB that this node had when its Pacemaker ended, or an empty one: it goes on with that."""
    try:
        return _LAST.read_text(encoding="utf-8")
    except FileNotFoundError:
        return str(__utils__["cluster_cib.empty"]())


def _after(live: str, earlier: Mapping[str, Any] | None, names: Mapping[str, str]) -> str:
    """Return the CIB as it is once earlier stages are done; in a run they are, in a dry run they would be."""
    if earlier is None or not __opts__["test"]:
        return live
    return str(__utils__["cluster_cib.apply"](live, earlier, names).text)


def _brought_in(
    declared: Mapping[str, Any],
    earlier: Mapping[str, Any] | None,
    names: Mapping[str, str],
    ready: Callable[[str, Mapping[str, Any]], bool],
) -> dict[str, Any]:
    """Bring the difference in, again if the CIB changes meanwhile; return what differed. A dry run only looks.

    Args:
        declared: What is to be in the CIB.
        earlier: What earlier stages have brought in.
        names: Of nodes by minion id.
        ready: Waits for what has to be so before; says whether the CIB is still the one that it was given.
    """
    run = __utils__["cluster_tools.run"]
    first: dict[str, Any] | None = None
    error = ""
    for _ in range(_TRIES):
        live = _after(run(_QUERY), earlier, names)
        result = __utils__["cluster_cib.apply"](live, declared, names)
        first = result.changes if first is None else first
        if not result.changes or __opts__["test"]:
            return first
        _known(declared)
        if not ready(live, result.changes):
            continue
        error = _pushed(declared, names, result.changes)
    raise CommandExecutionError(error or f"it differs again at once, in {', '.join(result.changes)}: another owns that")


def _pushed(declared: Mapping[str, Any], names: Mapping[str, str], changes: Mapping[str, Any]) -> str:
    """Push changes once it is their turn; return why Pacemaker did not take them, empty if it did or others are due."""
    with __utils__["cluster_pace.turn"](__utils__["cluster_tools.monitor"]):
        # That may have taken a while.
        live = __utils__["cluster_tools.run"](_QUERY)
        result = __utils__["cluster_cib.apply"](live, declared, names)
        if result.changes != changes:
            return ""
        try:
            _push(live, result.text)
        except CommandExecutionError as problem:
            time.sleep(_PAUSE)
            return str(problem)
    return ""


def _push(live: str, new: str) -> None:
    """Push what differs between two texts of the CIB, as one change."""
    with tempfile.TemporaryDirectory(prefix="hypervisor-cib-") as folder:
        paths = {name: Path(folder) / f"{name}.xml" for name in ("live", "new")}
        for path, text in ((paths["live"], live), (paths["new"], new)):
            path.write_text(text, encoding="utf-8")
        argv = ["crm_diff", "--original", str(paths["live"]), "--new", str(paths["new"])]
        # It ends with 1 where there is a difference.
        patch = __utils__["cluster_tools.run"](argv, ok=(0, 1))
    __utils__["cluster_tools.run"](["cibadmin", "--patch", "--xml-pipe"], stdin=patch)


def _agreed(changes: Mapping[str, Any], said: tuple[str, str], wait_seconds: int) -> None:
    """Wait until each node that is online has said that this fences it, where the CIB is to count on that."""
    attribute, value = said
    timeout = (changes.get("property stonith-watchdog-timeout") or {}).get("new")
    disks = (changes.get("resource fence_sbd parameter devices") or {}).get("new")
    if not value or (timeout in (None, "0", "0s") and not disks):
        return
    what = f"fence_sbd with {disks} is for nodes whose sbd watches that, and others would go on unheard"
    if not disks:
        what = f"stonith-watchdog-timeout {timeout} is for nodes whose sbd works, and Pacemaker stops on others"
    deadline = time.monotonic() + wait_seconds
    while True:
        text = __utils__["cluster_tools.run"](["attrd_updater", "-n", attribute, "-Q", "-A"], ok=range(256))
        known = __utils__["cluster_tools.attributes"](text)
        online = __utils__["cluster_tools.online"](__utils__["cluster_tools.monitor"]())
        silent = sorted(node for node in online if known.get(node) != value)
        if not silent:
            return
        if time.monotonic() + _PAUSE > deadline:
            raise CommandExecutionError(
                f"nothing has changed: cluster:sbd: {what}; within {wait_seconds} s these have not said that theirs "
                f"does: {', '.join(silent)}. Run their highstate; the next one here goes on"
            )
        time.sleep(_PAUSE)


def _stopped(guests: list[str]) -> bool:
    """Stop guests that are to be out of the cluster, while it has their operations and constraints.

    One that is only removed would be stopped with Pacemaker's default timeout, and its volume at the same moment.

    Args:
        guests: Those that the CIB still has.

    Returns whether all of them were stopped already.

    Raises:
        CommandExecutionError: one does not stop in time.
    """
    running = _running(guests)
    if not running:
        return True
    for name in running:
        words = ["--meta", "--set-parameter", "target-role", "--parameter-value", "Stopped"]
        with __utils__["cluster_pace.turn"](__utils__["cluster_tools.monitor"]):
            __utils__["cluster_tools.run"](["crm_resource", "--resource", name, *words])
    left, seconds = _left(lambda: _running(guests))
    if left:
        where = "; ".join(f"libvirt:guests:{name}:ensure: absent, but {state}" for name, state in left.items())
        raise CommandExecutionError(
            f"nothing was removed, since the cluster has not stopped within {seconds} s what is to go: {where}. "
            "That stays told to stop; see crm_mon -1 --inactive, and run the highstate again once it is stopped"
        )
    return False


def _running(guests: list[str]) -> dict[str, str]:
    """Return those of some guests that are not stopped, each with how it is."""
    if not guests:
        return {}
    seen = __utils__["cluster_ties.asked"](_asking())
    return {
        row["name"]: f"it is {row['role'].lower()} on {', '.join(row['nodes']) or 'no node'}"
        for row in seen["resources"]
        if row["name"] in guests and (row["role"] != "Stopped" or row["nodes"])
    }


def _known(declared: Mapping[str, Any]) -> None:
    """Refuse agents that this host does not have, before Pacemaker fails with them."""
    for kind in ("stonith", "resources"):
        for name, spec in (declared.get(kind) or {}).items():
            if spec.get("ensure") == "absent" or ("agent" in spec and spec["agent"].startswith("systemd:")):
                continue
            agent = f"stonith:{spec['agent']}" if kind == "stonith" else spec["agent"]
            try:
                __utils__["cluster_tools.run"](["crm_resource", "--show-metadata", agent])
            except CommandExecutionError as error:
                raise CommandExecutionError(
                    f"nothing has changed: cluster:{kind}:{name}:agent: {spec['agent']} is not here ({error}); "
                    "cluster:packages:extra can name its package"
                ) from None


def _idle(devices: list[str], wait_seconds: int) -> list[str]:
    """Wait until fence devices are started; return those that are not, with what went wrong."""
    deadline = time.monotonic() + wait_seconds
    while True:
        root = ElementTree.fromstring(__utils__["cluster_tools.monitor"]())  # noqa: S314 - from Pacemaker on this host
        running = [one for one in root.iter("resource") if one.get("role") == "Started"]
        started = {one.get("id") for one in running if one.get("failed") != "true"}
        idle = [device for device in devices if device not in started]
        if not idle or time.monotonic() + _PAUSE > deadline:
            reasons = {
                str(one.get("op_key", "")).rsplit("_", 2)[0]: str(one.get("exitreason") or one.get("exitstatus"))
                for one in root.iter("failure")
            }
            return [f"{device} ({reasons[device]})" if device in reasons else device for device in idle]
        time.sleep(_PAUSE)


# ---- secret parameters ----


def secrets(
    name: str, pillar_key: str, resource: str, parameters: list[str], fences: bool = False, folder: str = _SECRETS
) -> dict[str, Any]:
    """Make sure that this node has the secret parameters of a resource, which the CIB does not hold.

    Pacemaker reads each from a file (0600, root) when it starts an agent, and gives it to that by standard input. A
    Pacemaker that runs is told of new ones.

    Args:
        name: Any label.
        pillar_key: Where in this host's pillar they stand by name. They are read here and not passed on, so that no
            rendered state holds them.
        resource: The resource or fence device.
        parameters: Names of the parameters; without any, those that were there are removed.
        fences: Whether it is a fence device.
        folder: Where Pacemaker looks for them.

    Returns a state result that says of a secret only that it changed.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    place = Path(folder) / resource
    try:
        if parameters and not _supported():
            comment = (
                f"Nothing has changed: this host's Pacemaker was built without cibsecrets, so {pillar_key} would stand "
                "plain in the CIB and its logs. Give the agent a file or a script for it instead, as a parameter."
            )
            return ret | {"result": False, "comment": comment}
        wanted = _contents(pillar_key, parameters)
        there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        ret["changes"] = _differing(place, wanted, there)
        if not ret["changes"] or __opts__["test"]:
            comment = f"The secrets of {resource} {'would be written' if ret['changes'] else 'are as they should be'}."
            return ret | {"result": None if ret["changes"] else True, "comment": comment}
        new = {_UNTOLD: b"", **wanted} if "written" in ret["changes"].values() else wanted
        for path, content in new.items():
            _write(place, path, content)
        for path in there:
            if path not in (*wanted, _UNTOLD):
                (place / path).unlink(missing_ok=True)
        if (place / _UNTOLD).exists():
            _told(resource, fences=fences)
            (place / _UNTOLD).unlink()
    except (CommandExecutionError, OSError, ValueError, ElementTree.ParseError) as error:
        return ret | {"result": False, "comment": f"The secrets of {resource}: {error}."}
    return ret | {"comment": f"The secrets of {resource} are as they should be now."}


def _told(resource: str, *, fences: bool) -> None:
    """Have a Pacemaker that runs use new secrets, and try again here what has failed without them.

    Its fencer reads those of a device once, and again when the resources of the CIB have changed
    (pcmk__substitute_secrets and update_cib_stonith_devices of Pacemaker's fenced_commands.c and fenced_cib.c). A start
    without secrets keeps a resource from this node until its failure is forgotten (PCMK_EXEC_NO_SECRETS).
    """
    run, monitor = __utils__["cluster_tools.run"], __utils__["cluster_tools.monitor"]
    if not __utils__["cluster_tools.active"]("pacemaker.service"):
        return
    if not __utils__["cluster_cib.has"](run(_QUERY), [resource]):
        return
    own = run(["crm_node", "--name"]).strip()
    if fences:
        words = ["--meta", "--set-parameter", _NEWS, "--parameter-value", f"{own} {time.time():.0f}"]
        with __utils__["cluster_pace.turn"](monitor):
            run(["crm_resource", "--resource", resource, *words])
    root = ElementTree.fromstring(monitor())  # noqa: S314 - from Pacemaker on this host
    failed = {(one.get("op_key", "").rsplit("_", 2)[0], one.get("node")) for one in root.iter("failure")}
    if (resource, own) in failed:
        run(["crm_resource", "--cleanup", "--resource", resource, "--node", own])


def _supported() -> bool:
    """Say whether Pacemaker can take parameters from files. What is not installed yet is not asked."""
    if __opts__["test"] and not __utils__["cluster_tools.installed"]("pacemakerd"):
        return True
    return "cibsecrets" in __utils__["cluster_tools.run"](["pacemakerd", "--features"]).split()


def _contents(pillar_key: str, parameters: list[str]) -> dict[str, bytes]:
    """Return by file what each holds: the secret, and the digest that Pacemaker compares it with."""
    values: Any = __pillar__
    for part in pillar_key.split(":"):
        values = values.get(part) if isinstance(values, Mapping) else None
    found = {}
    for parameter in parameters:
        if not isinstance(values, Mapping) or parameter not in values:
            raise ValueError(f"{pillar_key}:{parameter} is not in this host's pillar")
        secret = str(values[parameter])
        found[parameter] = secret.encode("utf-8")
        found[f"{parameter}.sign"] = __utils__["cluster_cib.signature"](secret)
    return found


def _differing(place: Path, wanted: Mapping[str, bytes], there: Iterable[str]) -> dict[str, str]:
    """Return by secret what is to be done with its files, without a word of them."""
    read, access = __utils__["own_files.read"], __utils__["own_files.access"]
    found: dict[str, str] = {}
    for path, content in wanted.items():
        if read(place / path) != content:
            found[path.removesuffix(".sign")] = "written"
        elif wrong := access(place / path, 0o600):
            found.setdefault(path.removesuffix(".sign"), wrong)
    if _UNTOLD in there:
        found["Pacemaker"] = "told"
    gone = [path for path in there if path not in (*wanted, _UNTOLD) and not path.endswith(".sign")]
    return found | dict.fromkeys(gone, "removed")


def _write(place: Path, file: str, content: bytes) -> None:
    """Write one of the files; the folders are root's alone."""
    for folder in (place.parent.parent, place.parent, place):
        folder.mkdir(mode=0o700, exist_ok=True)
    __utils__["own_files.write"](place / file, content, 0o600)

"""What the keys ``sbd``, ``storage`` and guests come to in Pacemaker: properties, a fence device, locks and volumes.

Pure functions of the configuration of cluster/. The state ``cib`` lays the result over the live CIB in stages, so that
nothing that needs fencing is there before fencing works, and no volume before its locks.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

FENCE = "fence_sbd"
DLM, LVMLOCKD, LOCKING = "dlm", "lvmlockd", "locking"
# What is in the CIB when each stage has been done.
STAGES = ("fencing", "locking", "all")
_SECONDS = 300  # a busy host that is late must not be taken for one that hangs
_LONG = f"{_SECONDS}s"
_MOVES = 3600  # seconds; 64 GiB take ten minutes at 1 Gbit/s, and what is cut off is stopped and started
# A volume or guest that has come to a node stays there when another one comes back.
_STAYS = 100
# Where each node has the definitions of guests, see cluster_guests.
_DEFINITIONS = "/etc/libvirt/cluster"
# By what a guest says of others, how that is called in a constraint; and of which guest what is wished, and how much.
_WORDS = {"affinity": "beside", "anti_affinity": "apart-from"}
Wishes = dict[str, tuple[str, Any]]
# How Pacemaker reads a time (crm_get_msec): a unit is known by how it begins, and without one it is seconds.
_TIME = re.compile(r"\s*([+-]?\d+)\s*(ms|us|s|m|h|$)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "us": 0.000001, "s": 1, "m": 60, "h": 3600, "": 1}
_WATCHDOG = "stonith-watchdog-timeout"
# How much it is worth that guests are together or apart, where it is no must: more than to stay.
_WISH = 1000


def stonith_timeout(sbd: Mapping[str, Any]) -> int:
    """Returns how many seconds Pacemaker has to give to fencing, with a fifth to spare."""
    if sbd["devices"]:
        return -(-int(sbd["msgwait"]) * 12 // 10) + int(sbd["delay_max"])
    return -(-2 * int(sbd["watchdog_timeout"]) * 12 // 10)


def announcement(sbd: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the attribute by which a node says what fences it, and the value for these settings.

    Args:
        sbd: ``enabled``, ``devices`` and ``watchdog_timeout`` of the pillar.

    Returns:
        Name and value; the value is empty where there is nothing to be said.
    """
    value = ""
    if sbd.get("enabled"):
        value = f"disks-{','.join(sbd['devices'])}" if sbd.get("devices") else f"watchdog-{sbd['watchdog_timeout']}s"
    return "hypervisor-sbd", value


def declared(cluster: Mapping[str, Any], stage: str = "all") -> dict[str, Any]:
    """Returns what is to be in the CIB when a stage has been done.

    Args:
        cluster: what pillar declares of the CIB; also ``sbd``, ``storage``, ``nodes`` (minion ids of those
            that are to be in the cluster) and ``guests``, each of which may be missing.
        stage: one of :data:`STAGES`.

    Returns:
        ``properties``, ``resource_defaults``, ``operation_defaults``, ``stonith``, ``resources``, ``groups`` and
        ``constraints``.
    """
    rank = STAGES.index(stage)
    found: dict[str, Any] = {
        key: copy.deepcopy(cluster.get(key) or {})
        for key in ("properties", "resource_defaults", "operation_defaults", "stonith")
    }
    found |= {"resources": {}, "groups": {}, "constraints": {}}
    sbd, storage = cluster.get("sbd") or {}, cluster.get("storage") or {}
    if sbd.get("enabled"):
        _fencing(found, cluster)
    if storage.get("lock_manager") == "dlm":
        found["properties"] = {"no-quorum-policy": "freeze", **found["properties"]}
        if rank >= STAGES.index("locking"):
            _locking(found)
    if rank == STAGES.index("all"):
        for key in ("resources", "groups"):
            found[key] |= copy.deepcopy(cluster.get(key) or {})
        found["constraints"] = {
            key: {**copy.deepcopy(specs)} for key, specs in (cluster.get("constraints") or {}).items()
        }
        guests = cluster.get("guests") or {}
        _volumes(found, storage)
        _guests(found, storage, guests, list(cluster.get("nodes") or ()))
    return found


def before(cluster: Mapping[str, Any], stage: str) -> dict[str, Any] | None:
    """Returns what earlier stages have brought in; None for the first one that there is."""
    staged = (cluster.get("storage") or {}).get("lock_manager") or cluster.get("guests")
    if not staged or stage == STAGES[0]:
        return None
    return declared(cluster, STAGES[STAGES.index(stage) - 1])


# ---- fencing ----


def _fencing(found: dict[str, Any], cluster: Mapping[str, Any]) -> None:
    """Adds the properties and the fence device that sbd needs; what pillar says itself stands."""
    sbd, nodes = cluster["sbd"], list(cluster["nodes"])
    # With a disk the watchdog alone proves nothing; without one it is all there is.
    watchdog = 0 if sbd["devices"] else 2 * sbd["watchdog_timeout"]
    found["properties"] = {
        "stonith-enabled": True,
        "stonith-timeout": f"{stonith_timeout(sbd)}s",
        _WATCHDOG: f"{watchdog}s" if watchdog else 0,
        **found["properties"],
    }
    if sbd["devices"]:
        # Of two nodes that lose each other each would shoot: the delay lets one of them be first.
        parameters = {"devices": ",".join(sbd["devices"]), "pcmk_delay_max": f"{sbd['delay_max']}s"}
        monitor = {"name": "monitor", "interval": "3600s", "timeout": "120s"}
        found["stonith"][FENCE] = {
            "agent": "fence_sbd", "targets": nodes, "parameters": parameters, "operations": [monitor]
        }  # fmt: skip
    else:
        # One that is left of disks would be asked first, and its message read by nobody.
        found["stonith"].setdefault(FENCE, {"ensure": "absent"})


def _seconds(value: Any) -> float:
    """Returns a time of Pacemaker in seconds; less than 0 is what it works out itself from sbd's, which always fits."""
    match = _TIME.match(str(value))
    return int(match[1]) * _UNITS[match[2].lower()] if match else -1


def outdated(cluster: Mapping[str, Any], seen: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a CIB has to be told before Pacemaker starts with it, of an sbd that is set up anew.

    It takes away what does not hold any more, and brings in nothing on which a node could count before others have it:
    until the state ``cib`` has done that nobody can be fenced, so nothing is recovered. Where a watchdog has more time
    now, it is waited for longer: Pacemaker does not start with less than sbd has, and others lose nothing by it.

    Args:
        cluster: as of :func:`declared`.
        seen: what stands in the CIB by name (``cluster_cib.view``).

    Returns:
        ``properties`` and ``stonith`` to be laid over it; ``{}`` where nothing is to be changed.
    """
    sbd = cluster.get("sbd") or {}
    if not sbd.get("enabled"):
        return {}
    wanted = declared(cluster, STAGES[0])
    found: dict[str, Any] = {}
    counted, least = _seconds(seen.get(f"property {_WATCHDOG}", 0)), wanted["properties"][_WATCHDOG]
    if sbd["devices"] and counted:
        found["properties"] = {_WATCHDOG: 0}
    elif not sbd["devices"] and 0 < counted < _seconds(least):
        found["properties"] = {_WATCHDOG: least}
    if seen.get(f"resource {FENCE}") == f"stonith:{FENCE}":
        spec = wanted["stonith"][FENCE]
        disks = "" if spec.get("ensure") == "absent" else str(spec.get("parameters", {}).get("devices", ""))
        if {*disks.split(",")} != {*seen.get(f"resource {FENCE} parameter devices", "").split(",")}:
            found["stonith"] = {FENCE: {"ensure": "absent"}}
    return found


def short(cluster: Mapping[str, Any], seen: Mapping[str, str]) -> str:
    """Returns the time after which a CIB takes a node for off, where that is less than its watchdog is to have.

    Args:
        cluster: as of :func:`declared`.
        seen: as of :func:`outdated`.

    Returns:
        The value; empty where Pacemaker can start with it.
    """
    sbd, value = cluster.get("sbd") or {}, seen.get(f"property {_WATCHDOG}", "0")
    alone = sbd.get("enabled") and not sbd["devices"]
    return value if alone and 0 < _seconds(value) < sbd["watchdog_timeout"] else ""


# ---- locks and volumes ----


def _operations(monitor: str, on_fail: str = "") -> list[dict[str, str]]:
    """Returns the operations of a resource whose host may be slow."""
    fails = {"on-fail": on_fail} if on_fail else {}
    return [
        {"name": "monitor", "interval": monitor, "timeout": _LONG, **fails},
        {"name": "start", "interval": "0s", "timeout": _LONG},
        # A host that cannot let its locks go must not be taken for one that has.
        {"name": "stop", "interval": "0s", "timeout": _LONG, "on-fail": "fence"},
    ]


def _locking(found: dict[str, Any]) -> None:
    """Adds the daemons of locks, on every node and in this order."""
    found["resources"] |= {
        DLM: {"agent": "ocf:pacemaker:controld", "operations": _operations("60s", "fence")},
        LVMLOCKD: {"agent": "ocf:heartbeat:lvmlockd", "operations": _operations("60s", "fence")},
    }
    found["groups"] |= {LOCKING: {"resources": [DLM, LVMLOCKD], "clone": {"interleave": True}}}


def volumes(storage: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Yields the volumes that are declared: the resource's name, group, volume and what is said of it."""
    for group, spec in (storage.get("volume_groups") or {}).items():
        for volume, words in (spec.get("volumes") or {}).items():
            yield f"{group}-{volume}", group, volume, words


def _users(storage: Mapping[str, Any], guests: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the shared volumes of each guest that is to be there, by their resources' names and in order."""
    devices = {f"/dev/{group}/{volume}": name for name, group, volume, _ in volumes(storage)}
    found = {}
    for guest, spec in guests.items():
        paths = [one.get("source_file") for one in spec.get("disks") or ()]
        if spec.get("ensure") != "absent":
            found[guest] = [devices[path] for path in paths if path in devices]
    return found


def _volumes(found: dict[str, Any], storage: Mapping[str, Any]) -> None:
    """Adds each volume, active on one node or on all, and never without its locks.

    What is active on one node goes with its guest without a stop: exclusive at rest, on two nodes on the way. It has
    that agent before it has a guest, since another one would stop the volume, and with it the guest.
    """
    leases = {"lock_manager": "sanlock"} if storage.get("lock_manager") == "sanlock" else {}
    for name, group, volume, words in volumes(storage):
        shared = words.get("active") == "everywhere"
        parameters = {"vgname": group, "lvname": volume, **leases}
        spec: dict[str, Any] = {"operations": _operations("60s"), "meta": {"resource-stickiness": _STAYS}}
        spec |= {"agent": "ocf:hypervisor:SharedVolume", "parameters": parameters}
        if shared:
            spec |= {"clone": {"interleave": True}}
            if leases:
                # LVM-activate takes no group with such locks.
                parameters["activation"] = "shared"
            else:
                parameters |= {"vg_access_mode": "lvmlockd", "activation_mode": "shared"}
                spec["agent"] = "ocf:heartbeat:LVM-activate"
        else:
            spec |= {"operations": _moving("30s")}
            spec["meta"]["allow-migrate"] = True
        found["resources"][name] = spec
        then = f"{name}-clone" if shared else name
        # The daemons of sanlock are services of each node, and no resources.
        if storage.get("lock_manager") == "dlm":
            _tie(found, then, f"{LOCKING}-clone", f"{name}-after-{LOCKING}", f"{name}-with-{LOCKING}")


def _tie(found: dict[str, Any], then: str, first: str, order: str, beside: str) -> None:
    """Has a resource start after another one, where that runs."""
    found["constraints"].setdefault("orders", {})[order] = {"first": first, "then": then}
    found["constraints"].setdefault("colocations", {})[beside] = {"resource": then, "with": first, "score": "INFINITY"}


# ---- guests ----


def _moving(monitor: str, seconds: int = _SECONDS) -> list[dict[str, str]]:
    """Returns the operations of a resource that moves live, for which it has these seconds."""
    # The second one only looks whether it has come.
    moves = {"migrate_to": f"{seconds}s", "migrate_from": _LONG}
    rows = [{"name": name, "interval": "0s", "timeout": timeout} for name, timeout in moves.items()]
    return [*_operations(monitor), *rows]


def _guests(
    found: dict[str, Any], storage: Mapping[str, Any], guests: Mapping[str, Any], nodes: list[str]
) -> None:
    """Adds each guest that the cluster runs, after its volumes and where they are; takes out those that go."""
    names = [name for name, *_ in volumes(storage)]
    everywhere = {name for name, _, _, words in volumes(storage) if words.get("active") == "everywhere"}
    users = _users(storage, guests)
    wishes = _wished(guests, list(users))
    firsts: dict[str, str] = {}
    for guest, spec in guests.items():
        alone = [name for name in users.get(guest, ()) if name not in everywhere]
        _tied(found, guest, names, users.get(guest, []), alone)
        if guest not in users:
            found["resources"][guest] = {"ensure": "absent"}
            continue
        options = _options(spec)
        found["resources"][guest] = {
            "agent": "ocf:heartbeat:VirtualDomain",
            "parameters": _domain(guest),
            "operations": _moving("30s", _MOVES),
            "meta": {"allow-migrate": True, "resource-stickiness": _STAYS, "priority": options.get("priority", 0)},
        }
        if alone:
            firsts[alone[0]] = guest
        _places(found, guest, options, nodes)
        _others(found, guest, options, wishes[guest], [one for one in users if one != guest])
    _volumes_too(found, firsts, wishes, [name for name in names if name not in everywhere])


def _tied(found: dict[str, Any], guest: str, names: list[str], used: list[str], alone: list[str]) -> None:
    """Has a guest start after its volumes and where they are, which are all on one node; unties it from the others.

    Args:
        found: what is added to.
        guest: its name.
        names: all volumes there are, as resources.
        used: those of the guest, in order.
        alone: those of them that are active on one node.
    """
    before = {then: first for first, then in itertools.pairwise(alone)}
    colocations = found["constraints"].setdefault("colocations", {})
    orders = found["constraints"].setdefault("orders", {})
    for name in names:
        order, beside, joins = f"{guest}-after-{name}", f"{guest}-with-{name}", f"{guest}-has-{name}"
        if name in used:
            _tie(found, guest, name if name in alone else f"{name}-clone", order, beside)
        else:
            orders[order] = colocations[beside] = {"ensure": "absent"}
        row = {"resource": name, "with": before.get(name), "score": "INFINITY"}
        colocations[joins] = row if name in before else {"ensure": "absent"}


def _domain(guest: str) -> dict[str, Any]:
    """Returns the parameters of a guest: defined by its file alone, moved by libvirt's TLS to the target's own name."""
    off = {f"autoset_utilization_{what}": False for what in ("cpu", "host_memory", "hv_memory")}
    return {
        "config": f"{_DEFINITIONS}/{guest}.xml",
        "hypervisor": "qemu:///system",
        "remoteuri": "qemu+tls://%n/system",
        "migrateuri": "tcp://%n",
        # One that writes faster than the network takes it is slowed down until it can go: it would never arrive.
        "migrate_options": "--p2p --tls --auto-converge",
        # What the agent would write there differs from what pillar declares.
        **off,
    }


def going(cluster: Mapping[str, Any]) -> list[str]:
    """Returns the guests that are to be out of the cluster, which have to be stopped before.

    Args:
        cluster: as of :func:`declared`.
    """
    return [name for name, spec in (cluster.get("guests") or {}).items() if spec.get("ensure") == "absent"]


def stop_seconds() -> int:
    """Returns how long a stop of a guest is waited for: what it may take, with a tenth to spare."""
    return _SECONDS * 11 // 10


def move_seconds() -> int:
    """Returns how long a guest may be on its way to another node."""
    return _MOVES


def _options(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what a guest says of where it runs."""
    options: Mapping[str, Any] = spec["ha"] if isinstance(spec["ha"], Mapping) else {}
    return options


def _wished(guests: Mapping[str, Any], there: list[str]) -> dict[str, Wishes]:
    """Returns beside which others each guest wants to run, and apart from which.

    Where two say the same of each other, one of them is heard: Pacemaker places the one first that is wished for, and
    the other one gives way. That is the guest with the lower priority, unless for the other it is a must.
    """
    rows = []
    for guest in there:
        options = _options(guests[guest])
        strict, priority = bool(options.get("strict")), options.get("priority", 0)
        for key, word in _WORDS.items():
            rows += [(not strict, priority, guest, other, word) for other in options.get(key, ()) if other in there]
    found: dict[str, Wishes] = {guest: {} for guest in there}
    for wish, _, guest, other, word in sorted(rows, key=lambda row: row[:2]):
        if found[other].get(guest, ("", 0))[0] == word:
            continue
        score = _WISH if wish else "INFINITY"
        found[guest][other] = (word, score if word == _WORDS["affinity"] else f"-{score}")
    return found


def _places(found: dict[str, Any], guest: str, options: Mapping[str, Any], nodes: list[str]) -> None:
    """Adds on which nodes a guest runs best, and takes back what pillar does not say any more."""
    places = found["constraints"].setdefault("locations", {})
    prefer = list(options.get("prefer", ()))
    for minion in nodes:
        row: dict[str, Any] = {"ensure": "absent"}
        if minion in prefer:
            # Less than to stay: a guest does not go back by itself.
            row = {"resource": guest, "node": minion, "score": 2 * (len(prefer) - prefer.index(minion))}
        places[f"{guest}-prefers-{minion}"] = row


def _others(found: dict[str, Any], guest: str, options: Mapping[str, Any], wishes: Wishes, others: list[str]) -> None:
    """Adds beside which others a guest runs and after which it starts, and takes back what pillar does not say."""
    for other in others:
        _wish(found, guest, other, wishes.get(other))
        row = {"first": other, "then": guest, "kind": "Optional"}
        wanted = other in options.get("after", ())
        orders = found["constraints"].setdefault("orders", {})
        orders[f"{guest}-after-{other}"] = row if wanted else {"ensure": "absent"}


def _wish(found: dict[str, Any], resource: str, other: str, wish: tuple[str, Any] | None) -> None:
    """Adds that a resource wants to be beside a guest or apart from it, and takes back what it does not want."""
    for word in _WORDS.values():
        row: dict[str, Any] = {"ensure": "absent"}
        if wish and wish[0] == word:
            row = {"resource": resource, "with": other, "score": wish[1]}
        found["constraints"].setdefault("colocations", {})[f"{resource}-{word}-{other}"] = row


def _volumes_too(
    found: dict[str, Any], firsts: Mapping[str, str], wishes: Mapping[str, Wishes], alone: list[str]
) -> None:
    """Has the first volume of a guest want what the guest wants: it is placed before the guest, which has to follow.

    Not where guests wish for each other in a circle: Pacemaker breaks that at any place, and a guest that it places
    before its volume would not run.
    """
    for volume in alone:
        guest = firsts.get(volume, "")
        for other in wishes:
            wish = wishes[guest].get(other) if guest else None
            _wish(found, volume, other, wish if wish and not _leads(wishes, other, guest) else None)


def _leads(wishes: Mapping[str, Wishes], start: str, end: str) -> bool:
    """Says whether wishes lead from one guest to another."""
    seen, left = set(), [start]
    while left:
        one = left.pop()
        if one == end:
            return True
        if one not in seen:
            seen.add(one)
            left += wishes[one]
    return False

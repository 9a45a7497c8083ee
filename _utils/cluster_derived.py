"""What the keys ``sbd``, ``storage`` and guests come to in Pacemaker: properties, a fence device, locks and volumes.

Pure functions of the configuration of cluster/. The state ``cib`` lays the result over the live CIB in stages, so that
nothing that needs fencing is there before fencing works, and no volume before its locks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

FENCE = "fence_sbd"
DLM, LVMLOCKD, LOCKING = "dlm", "lvmlockd", "locking"
# What is in the CIB when each stage has been done.
STAGES = ("fencing", "locking", "all")
_LONG = "300s"  # a busy host that is late must not be taken for one that hangs


def stonith_timeout(sbd: Mapping[str, Any]) -> int:
    """Returns how many seconds Pacemaker has to give to fencing, with a fifth to spare."""
    if sbd["devices"]:
        return -(-int(sbd["msgwait"]) * 12 // 10) + int(sbd["delay_max"])
    return -(-2 * int(sbd["watchdog_timeout"]) * 12 // 10)


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
    if storage.get("lock_manager"):
        found["properties"] = {"no-quorum-policy": "freeze", **found["properties"]}
        if rank >= STAGES.index("locking"):
            _locking(found)
    if rank == STAGES.index("all"):
        for key in ("resources", "groups"):
            found[key] |= copy.deepcopy(cluster.get(key) or {})
        found["constraints"] = {
            key: {**copy.deepcopy(specs)} for key, specs in (cluster.get("constraints") or {}).items()
        }
        _volumes(found, storage)
    return found


def before(cluster: Mapping[str, Any], stage: str) -> dict[str, Any] | None:
    """Returns what earlier stages have brought in; None for the first one that there is."""
    if not (cluster.get("storage") or {}).get("lock_manager") or stage == STAGES[0]:
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
        "stonith-watchdog-timeout": f"{watchdog}s" if watchdog else 0,
        **found["properties"],
    }
    if sbd["devices"]:
        # Of two nodes that lose each other each would shoot: the delay lets one of them be first.
        parameters = {"devices": ",".join(sbd["devices"]), "pcmk_delay_max": f"{sbd['delay_max']}s"}
        monitor = {"name": "monitor", "interval": "3600s", "timeout": "120s"}
        found["stonith"][FENCE] = {
            "agent": "fence_sbd", "targets": nodes, "parameters": parameters, "operations": [monitor]
        }  # fmt: skip


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


def _volumes(found: dict[str, Any], storage: Mapping[str, Any]) -> None:
    """Adds each volume, active on one node or on all, and never without its locks."""
    for name, group, volume, words in volumes(storage):
        shared = words.get("active") == "everywhere"
        parameters = {"vgname": group, "lvname": volume, "vg_access_mode": "lvmlockd"}
        parameters |= {"activation_mode": "shared" if shared else "exclusive"}
        spec: dict[str, Any] = {"agent": "ocf:heartbeat:LVM-activate", "parameters": parameters}
        # Once it has come to a node, it stays there when another one comes back.
        spec |= {"operations": _operations("60s"), "meta": {"resource-stickiness": 100}}
        if shared:
            spec["clone"] = {"interleave": True}
        found["resources"][name] = spec
        then = f"{name}-clone" if shared else name
        locks = f"{LOCKING}-clone"
        orders = found["constraints"].setdefault("orders", {})
        orders[f"{name}-after-{LOCKING}"] = {"first": locks, "then": then}
        beside = found["constraints"].setdefault("colocations", {})
        beside[f"{name}-with-{LOCKING}"] = {"resource": then, "with": locks, "score": "INFINITY"}

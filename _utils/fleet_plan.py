"""Which host a guest goes to, and why: pure, from what hosts have told of themselves.

Memory and processors count as they are promised to guests that run, not as guests use them at this moment: what is free
now may be gone when they wake up. A host that is evacuated is chosen by nobody but by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Host = dict[str, Any]
_POLICIES = ("spread", "pack")

_ACTIVE = frozenset({"running", "paused", "blocked", "pmsuspended", "shutting_down"})


def policies() -> tuple[str, ...]:
    """Returns the names of the ways to choose a host."""
    return _POLICIES


def host(name: str, info: Any, guests: Any, evacuated: bool = False) -> Host:
    """Describes a host by what it answered.

    Args:
        name: its minion id.
        info: what ``hypervisor.host_info`` returned; a text where it failed, None for no answer.
        guests: the same of ``hypervisor.guests``.
        evacuated: whether it was evacuated and not restored.

    Returns:
        ``name``, ``live``, ``problems``, ``evacuated``, ``guests`` (a list), what it has (``cpus``, ``memory_mib``,
        ``available_mib``, ``load``, ``architecture``, ``domain_types``, ``networks``, ``bridges``, ``pools``) and what
        of it is promised to guests that run (``promised_mib``, ``promised_vcpus``). A host whose answer has another
        form is one that does not tell anything: no other may be held up by it.
    """
    try:
        return _host(name, info, guests, evacuated)
    except (KeyError, TypeError, ValueError, AttributeError):
        return _host(name, "its answer is not understood; is it of another version?", None, evacuated)


def _host(name: str, info: Any, guests: Any, evacuated: bool) -> Host:
    """Describes a host, see :func:`host`; raises KeyError, TypeError and the like for an answer of another form."""
    found: Host = {"name": name, "live": isinstance(info, Mapping), "evacuated": evacuated}
    info = info if isinstance(info, Mapping) else {"problems": [_one_line(info) or "does not answer"]}
    listed = [_guest(row) for row in guests.get("guests", [])] if isinstance(guests, Mapping) else []
    problems = list(info.get("problems") or [])
    if found["live"] and not isinstance(guests, Mapping):
        problems.append(_one_line(guests) or "does not tell its guests")
    cpu, memory = info.get("cpu") or {}, info.get("memory") or {}
    active = [row for row in listed if row["state"] in _ACTIVE]
    return found | {
        "problems": problems,
        "guests": listed,
        # Without libvirt there is no knowing which guests it has.
        "knows": isinstance(guests, Mapping),
        "cpus": _count(cpu.get("cpus")),
        "architecture": cpu.get("architecture"),
        "load": (info.get("load") or [None])[0],
        "memory_mib": _count(memory.get("total_mib")),
        "available_mib": _count(memory.get("available_mib")),
        "promised_mib": sum(row["memory_mib"] or 0 for row in active),
        "promised_vcpus": sum(row["vcpus"] or 0 for row in active),
        "active": len(active),
        "domain_types": list(info.get("domain_types") or []),
        "networks": [row["name"] for row in info.get("networks") or [] if row["active"]],
        "bridges": [row["name"] for row in info.get("bridges") or []],
        "pools": {row["name"]: _count(row["available_bytes"]) for row in info.get("pools") or [] if row["active"]},
        "hugepages": _pages(info.get("hugepages") or []),
    }


def _guest(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a guest as a host tells it; raises KeyError or TypeError unless that is one."""
    if not all(isinstance(row[key], str) for key in ("name", "uuid", "state")):
        raise TypeError("guest")
    _count(row["memory_mib"])
    _count(row["vcpus"])
    return dict(row)


def _count(value: Any) -> Any:
    """Returns a number, 0 for one that is not known; raises TypeError for anything else."""
    if not isinstance(value, int | float | None):
        raise TypeError("number")
    return value or 0


def _one_line(text: Any) -> str:
    """Returns a text of another machine on one line."""
    return " ".join(str(text).split()) if isinstance(text, str) else ""


def _pages(rows: Iterable[Mapping[str, int]]) -> dict[int, int]:
    """Returns free huge pages by size."""
    found: dict[int, int] = {}
    for row in rows:
        found[row["size_kib"]] = found.get(row["size_kib"], 0) + _count(row["free"])
    return found


# ---- what a guest needs ----


def need(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a declared guest needs of its host, as far as the declaration tells; the host judges the rest.

    Args:
        declaration: keys of pillar ``libvirt:guests``, not judged yet.
    """
    networks: list[str] = []
    bridges: list[str] = []
    for nic in _mappings(declaration.get("interfaces")):
        source = nic.get("source")
        if isinstance(source, str):
            (networks if nic.get("type") == "network" else bridges).append(source)
    pools: dict[str, int] = {}
    for disk in _mappings(declaration.get("disks")):
        pool = disk.get("pool")
        if isinstance(pool, str):
            pools[pool] = pools.get(pool, 0) + (_whole(disk.get("size")) << 20 if "source_file" not in disk else 0)
    mem = declaration.get("mem")
    return {
        "memory_mib": _whole(mem),
        "vcpus": _whole(declaration.get("cpu")) or 1,
        "hugepages": bool(mem.get("hugepages")) if isinstance(mem, Mapping) else False,
        "architecture": declaration.get("arch"),
        "domain_type": declaration.get("vm_type"),
        "networks": networks,
        "bridges": bridges,
        "pools": pools,
    }


def need_of(guest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a guest that is there needs of another host; ``hypervisor.migrate`` judges the rest."""
    runs = guest["state"] in _ACTIVE
    return {
        **need({}),
        "memory_mib": (guest["memory_mib"] or 0) if runs else 0,
        "vcpus": (guest["vcpus"] or 0) if runs else 0,
        "hugepages": bool(guest.get("hugepages")),
    }


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Returns the mappings of a list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _whole(value: Any) -> int:
    """Returns a number that stands there alone, or as the current one of a mapping; 0 for anything else."""
    if isinstance(value, Mapping):
        value = value.get("current", value.get("maximum"))
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def obstacles(there: Host, wanted: Mapping[str, Any]) -> list[str]:
    """Says why a guest does not fit on a host; nothing if it does."""
    if not there["live"] or not there["knows"]:
        return there["problems"] or ["does not answer"]
    if not there["memory_mib"] or not there["cpus"]:
        return [*there["problems"], "does not tell what it has"]
    return _sizes(there, wanted) + _places(there, wanted)


def _sizes(there: Host, wanted: Mapping[str, Any]) -> list[str]:
    """Says what speaks against a host by its memory and processors."""
    found = []
    memory = wanted["memory_mib"]
    # Huge pages are set aside already and are not among what is free; the host itself counts them.
    if memory and not wanted["hugepages"]:
        left = min(there["available_mib"], there["memory_mib"] - there["promised_mib"])
        if memory > left:
            found.append(f"memory: {memory} MiB needed, {max(left, 0)} of {there['memory_mib']} MiB left")
    if wanted["vcpus"] > there["cpus"]:
        found.append(f"cpu: {wanted['vcpus']} processors needed, it has {there['cpus']}")
    if wanted["architecture"] not in {None, there["architecture"]}:
        found.append(f"cpu: {wanted['architecture']} needed, it is {there['architecture']}")
    if wanted["domain_type"] is not None and wanted["domain_type"] not in there["domain_types"]:
        found.append(f"cpu: guests of type {wanted['domain_type']} do not run there")
    return found


def _places(there: Host, wanted: Mapping[str, Any]) -> list[str]:
    """Says what speaks against a host by its networks and storage pools."""
    found = [f"network: no active network {name}" for name in wanted["networks"] if name not in there["networks"]]
    found += [f"network: no bridge {name}" for name in wanted["bridges"] if name not in there["bridges"]]
    for pool, size in wanted["pools"].items():
        if pool not in there["pools"]:
            found.append(f"storage: no active pool {pool}")
        elif size > there["pools"][pool]:
            found.append(f"storage: {size >> 20} MiB needed in {pool}, {there['pools'][pool] >> 20} MiB left")
    return found


# ---- which host ----


def share(there: Host, wanted: Mapping[str, Any]) -> tuple[float, float]:
    """Returns which part of a host's memory and processors would be promised with one more guest."""
    return (
        (there["promised_mib"] + wanted["memory_mib"]) / there["memory_mib"],
        (there["promised_vcpus"] + wanted["vcpus"]) / there["cpus"],
    )


def choose(hosts: Iterable[Host], wanted: Mapping[str, Any], policy: str = "spread") -> dict[str, Any]:
    """Orders the hosts that a guest may go to.

    Args:
        hosts: those that come into question.
        wanted: what the guest needs.
        policy: "spread" takes the emptiest host that fits, "pack" the fullest.

    Returns:
        ``hosts`` (names, the best first), ``why`` (one sentence about the first) and ``against`` (by name, why not).
    """
    fitting, against = [], {}
    for there in hosts:
        why = ["is evacuated"] if there["evacuated"] else obstacles(there, wanted)
        if why:
            against[there["name"]] = why
        else:
            fitting.append(there)

    def place(there: Host) -> tuple[Any, ...]:
        memory, cpus = share(there, wanted)
        sign = -1 if policy == "pack" else 1
        return (sign * round(memory, 6), sign * round(cpus, 6), sign * there["active"], there["name"])

    fitting.sort(key=place)
    return {
        "hosts": [there["name"] for there in fitting],
        "why": _why(fitting, wanted, policy),
        "against": against,
    }


def _why(fitting: Sequence[Host], wanted: Mapping[str, Any], policy: str) -> str:
    """Says why the first host is the best."""
    if not fitting:
        return ""
    best = fitting[0]
    if len(fitting) == 1:
        return f"{best['name']} is the only host that it fits on"
    others = ", ".join(f"{there['name']} {_promised(there, wanted)}" for there in fitting[1:4])
    if len(fitting) > 4:
        others += f" and {len(fitting) - 4} more"
    what = "fullest" if policy == "pack" else "emptiest"
    return f"{best['name']} is the {what} host that it fits on: {_promised(best, wanted)}; {others}"


def _promised(there: Host, wanted: Mapping[str, Any]) -> str:
    """Says what would be promised on a host with one more guest."""
    mib, cpus = there["promised_mib"] + wanted["memory_mib"], there["promised_vcpus"] + wanted["vcpus"]
    return f"{mib} of {there['memory_mib']} MiB and {cpus} of {there['cpus']} processors promised"


def taken(hosts: Mapping[str, Host], name: str, wanted: Mapping[str, Any], sign: int = 1) -> None:
    """Counts a guest that is on its way among those of a host, or with -1 no more."""
    there = hosts[name]
    there["promised_mib"] += sign * wanted["memory_mib"]
    there["promised_vcpus"] += sign * wanted["vcpus"]
    there["available_mib"] -= sign * wanted["memory_mib"]
    there["active"] += sign


# ---- what is where ----


def where(hosts: Mapping[str, Host], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the hosts that have a guest of a name, each with the guest."""
    return [(at, row) for at, there in hosts.items() for row in there["guests"] if row["name"] == name]


def unknown(hosts: Mapping[str, Host]) -> list[str]:
    """Returns the hosts of which nobody knows what guests they have."""
    return [name for name, there in hosts.items() if not there["knows"]]


def leaving(there: Host, shut_off: bool) -> list[dict[str, Any]]:
    """Returns the guests that leave a host when it is evacuated, the largest first: they are the hardest to place.

    Args:
        there: the host.
        shut_off: whether those leave too that do not run.
    """
    rows = [copy.deepcopy(row) for row in there["guests"] if shut_off or row["state"] in _ACTIVE]
    return sorted(rows, key=lambda row: (-(row["memory_mib"] or 0), row["name"]))


def back(
    hosts: Mapping[str, Host], target: str, uuid: str, whole: bool
) -> tuple[str, tuple[str, dict[str, Any]] | None]:
    """Says what is to be done with a guest that an evacuated host had.

    Args:
        hosts: what hosts have.
        target: the host that had it.
        uuid: the guest's.
        whole: whether these are all hosts that there are, and not those of somebody's roles alone.

    Returns:
        "moves" with its host and itself, "back" if it is there, "gone" if no host has it, or "waits" if a host that
        does not answer, or was not asked, may have it.
    """
    places = [(name, row) for name, there in hosts.items() for row in there["guests"] if row["uuid"] == uuid]
    if any(name == target for name, _ in places):
        return "back", None
    if places:
        return "moves", places[0]
    return ("waits" if unknown(hosts) or not whole else "gone"), None

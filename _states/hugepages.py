"""Huge pages of the running kernel, in total or for each NUMA node.

The kernel gives as many pages as it finds contiguous memory for, and says nothing when that is
fewer than it was asked for. This state reads the figures back and fails on a shortfall.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}

_POOLS = Path("/sys/kernel/mm/hugepages")
_NODES = Path("/sys/devices/system/node")
_COMPACT = Path("/proc/sys/vm/compact_memory")
_KILOBYTES = {"2M": 2048, "1G": 1048576}
_NODE = re.compile(r"node\d+\Z")


def pool(size: str) -> str:
    """Return the kernel's name for the pages of one size; raises ValueError for an unknown size."""
    if size not in _KILOBYTES:
        raise ValueError(f"{size!r} is not a page size; there are {', '.join(_KILOBYTES)}")
    return f"hugepages-{_KILOBYTES[size]}kB"


def counters(size: str) -> dict[str, Path]:
    """Return the file that counts the pages of one size, for each NUMA node."""
    found = _NODES.glob(f"node*/hugepages/{pool(size)}/nr_hugepages")
    by_node = {path.parents[2].name: path for path in found}
    return dict(sorted(by_node.items(), key=lambda item: int(item[0].removeprefix("node"))))


def shortfall(size: str, wanted: Mapping[str, int], given: Mapping[str, int]) -> str:
    """Return the sentences that say how much is missing.

    Args:
        size: the page size.
        wanted: pages by node; one entry ``"all"`` where the nodes do not matter.
        given: pages by node.
    """
    total = sum(given.values())
    asked = sum(wanted.values())
    if "all" in wanted:
        missing = asked - total
        nodes = f" ({_listed(given)})" if len(given) > 1 else ""
    else:
        missing = sum(max(0, wanted[node] - given.get(node, 0)) for node in wanted)
        nodes = f" (asked for {_listed(wanted)}; given {_listed(given)})"
    return (
        f"{asked} huge pages of {size} were asked for and the kernel gave {total}{nodes}: "
        f"{missing * _KILOBYTES[size] // 1024} MiB of contiguous memory are missing. The figure is stored, "
        "so a reboot may find them; otherwise ask for fewer."
    )


def _listed(figures: Mapping[str, int]) -> str:
    """Write figures by node as a person reads them."""
    return ", ".join(f"{node}: {count}" for node, count in figures.items())


def _wanted(size: str, count: int | None, nodes: Mapping[str, int] | None) -> dict[str, int]:
    """Return the wanted pages by node, or as ``"all"``; raises ValueError for wrong arguments."""
    pool(size)
    if (count is None) == (nodes is None):
        raise ValueError("give either count, a number of pages, or nodes, a number for each NUMA node")
    numbers: dict[str, Any] = {"count": count, **(nodes or {})}
    for key, number in numbers.items():
        if number is not None and (type(number) is not int or number < 0):
            raise ValueError(f"{key}: {number!r} is not a number of pages")
    if nodes is None:
        return {"all": int(count or 0)}
    wrong = [node for node in nodes if not _NODE.match(str(node))]
    if wrong:
        raise ValueError(f"nodes: {wrong[0]!r} is not the name of a NUMA node such as node0")
    there = counters(size)
    missing = [node for node in nodes if node not in there]
    if there and missing:
        raise ValueError(f"nodes: this host has no {missing[0]}; it has {', '.join(there)}")
    return {node: int(nodes.get(node, 0)) for node in there}


def _read(files: Mapping[str, Path]) -> dict[str, int]:
    """Read counters."""
    return {node: int(path.read_text(encoding="ascii")) for node, path in files.items()}


def _set(files: Mapping[str, Path], wanted: Mapping[str, int]) -> dict[str, int]:
    """Ask for pages, twice if need be, and return what is there then."""
    now = _read(files)
    # Nodes that give pages back come first: their memory may be needed.
    for attempt in (1, 2):
        for node in sorted(files, key=lambda node: wanted[node] - now[node]):
            if now[node] != wanted[node]:
                files[node].write_text(str(wanted[node]), encoding="ascii")
        now = _read(files)
        if attempt == 2 or all(now[node] >= wanted[node] for node in files) or not _COMPACT.exists():
            break
        # The kernel moves what lies in between; then more may fit.
        _COMPACT.write_text("1", encoding="ascii")
    return now


def present(name: str, count: int | None = None, nodes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Make sure that the running kernel holds this many huge pages of one size.

    Args:
        name: The page size, ``2M`` or ``1G``.
        count: How many pages, wherever they are; 0 gives all that are unused back.
        nodes: Instead of ``count``, how many on each NUMA node, by its name such as ``node0``. A node that
            is not named gets none.

    Returns a state result; it fails with the figures if the kernel gave a different number.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        wanted = _wanted(name, count, nodes)
        files = {"all": _POOLS / pool(name) / "nr_hugepages"} if nodes is None else counters(name)
        before = _read(files)
    except ValueError as error:
        return ret | {"result": False, "comment": f"{error}."}
    except OSError:
        before = {}
    if not before:
        comment = f"The processor or kernel of this host has no huge pages of {name}."
        return ret | {"result": False, "comment": comment}
    text = str(wanted["all"]) if nodes is None else _listed(wanted)
    if before == wanted:
        return ret | {"comment": f"Huge pages of {name}: {text}."}
    if __opts__["test"]:
        return ret | {"result": None, "changes": _changes(before, wanted), "comment": "Would change their number."}
    try:
        after = _set(files, wanted)
    except OSError as error:
        return ret | {"result": False, "comment": f"Their number cannot be written: {error.strerror}."}
    ret["changes"] = _changes(before, after)
    if any(after[node] < wanted[node] for node in wanted):
        given = after if nodes is not None else (_read(counters(name)) or after)
        return ret | {"result": False, "comment": shortfall(name, wanted, given)}
    if after != wanted:
        more = sum(after.values()) - sum(wanted.values())
        comment = f"{more} huge pages of {name} are in use by guests and stay until freed."
        return ret | {"result": False, "comment": comment}
    return ret | {"comment": f"Huge pages of {name}: {text} now."}


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Return what differs, by node."""
    changed = {node: {"old": before[node], "new": after[node]} for node in before if before[node] != after[node]}
    return {"pages": changed.get("all", changed)} if changed else {}

"""Huge pages of the running kernel.

The kernel gives as many pages as it finds contiguous memory for, and says nothing when that is
fewer than it was asked for. This state reads the figure back and fails on a shortfall.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}

_POOLS = Path("/sys/kernel/mm/hugepages")
_KILOBYTES = {"2M": 2048, "1G": 1048576}


def pool(size: str) -> Path:
    """Return the kernel's folder for pages of one size; raises ValueError for an unknown size."""
    if size not in _KILOBYTES:
        raise ValueError(f"{size!r} is not a page size; there are {', '.join(_KILOBYTES)}")
    return _POOLS / f"hugepages-{_KILOBYTES[size]}kB"


def shortfall(size: str, wanted: int, given: int) -> str:
    """Return the sentence that says how much is missing; takes a page size and two counts."""
    missing = (wanted - given) * _KILOBYTES[size] // 1024
    return (
        f"{wanted} huge pages of {size} were asked for and the kernel gave {given}: {missing} MiB "
        "of contiguous memory are missing. The figure is stored, so a reboot may find them; "
        "otherwise ask for fewer."
    )


def present(name: str, count: int) -> dict[str, Any]:
    """Make sure that the running kernel holds this many huge pages of one size.

    Args:
        name: The page size, ``2M`` or ``1G``.
        count: How many pages; 0 gives all that are unused back.

    Returns a state result; it fails with the figures if the kernel gave a different number.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        counter = pool(name) / "nr_hugepages"
        before = int(counter.read_text(encoding="ascii"))
    except ValueError as error:
        return ret | {"result": False, "comment": f"{error}."}
    except OSError:
        comment = f"The processor or kernel of this host has no huge pages of {name}."
        return ret | {"result": False, "comment": comment}
    if before == count:
        return ret | {"comment": f"There are {count} huge pages of {name}."}
    if __opts__["test"]:
        changes = {"pages": {"old": before, "new": count}}
        return ret | {"result": None, "changes": changes, "comment": "Would change their number."}
    try:
        counter.write_text(str(count), encoding="ascii")
    except OSError as error:
        return ret | {"result": False, "comment": f"{counter} cannot be written: {error.strerror}."}
    after = int(counter.read_text(encoding="ascii"))
    if after != before:
        ret["changes"] = {"pages": {"old": before, "new": after}}
    if after < count:
        return ret | {"result": False, "comment": shortfall(name, count, after)}
    if after > count:
        comment = f"{after - count} huge pages of {name} are in use by guests and stay until freed."
        return ret | {"result": False, "comment": comment}
    return ret | {"comment": f"There are {count} huge pages of {name} now."}

"""Kernel samepage merging: equal pages of guests' memory are kept once.

The file that sets the same at boot is a matter of file.managed. To stop merging leaves what is merged
as it is; to unmerge takes the memory back that merging had saved, at once, so it is asked for by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}

_KSM = Path("/sys/kernel/mm/ksm")
# ksmtuned leaves its process id there and writes these figures by itself.
_TUNER = Path("/run/ksmtune.pid")
# The kernel refuses to change these while pages are merged.
_FIXED = ("merge_across_nodes", "max_page_sharing")
_TUNABLES = (*_FIXED, "pages_to_scan", "sleep_millisecs", "use_zero_pages")
_STATES = {"0": "stopped", "1": "merging", "2": "stopped, all unmerged"}


def wanted(enabled: bool | None, unmerge: bool, tunables: Mapping[str, int | bool]) -> dict[str, str]:
    """Returns what the kernel's files must hold; see :func:`configured`.

    Raises ValueError for figures that there are not, and for a contradiction.
    """
    if strange := sorted(set(tunables) - set(_TUNABLES)):
        raise ValueError(f"there is no {', '.join(strange)}; there are {', '.join(_TUNABLES)}")
    if enabled and unmerge:
        raise ValueError("unmerge undoes what is merged, so it needs enabled: false")
    settings = {key: str(int(value)) for key, value in tunables.items()}
    if enabled is not None:
        settings["run"] = "1" if enabled else "2" if unmerge else "0"
    return settings


def plan(settings: Mapping[str, str], current: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns what differs, in the order in which it is written: the figures, then "run".

    Unmerged and stopped is also stopped, so that 2 satisfies 0.
    """
    changes = {}
    for key in (*_TUNABLES, "run"):
        if key not in settings or settings[key] == current[key]:
            continue
        if key == "run" and (settings[key], current[key]) == ("0", "2"):
            continue
        changes[key] = {"old": current[key], "new": settings[key]}
    return changes


def configured(
    name: str,
    enabled: bool | None = None,
    unmerge: bool = False,
    tunables: dict[str, int | bool] | None = None,
) -> dict[str, Any]:
    """Makes sure that the kernel merges equal pages of memory, or does not, with these figures.

    Args:
        name: any label.
        enabled: whether it looks for equal pages and merges them; None leaves that as it is.
        unmerge: when not enabled, whether what is merged already takes its memory back.
        tunables: ``pages_to_scan``, ``sleep_millisecs``, ``merge_across_nodes``, ``max_page_sharing`` and
            ``use_zero_pages``; what is not named stays.

    Returns:
        A state result; it fails for a figure that this kernel does not have, or does not take now.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        settings = wanted(enabled, unmerge, tunables or {})
    except ValueError as error:
        return ret | {"result": False, "comment": f"Nothing was set: {error}."}
    if not _KSM.exists():
        return ret | {"result": False, "comment": "This kernel cannot merge pages (KSM is not built in)."}
    if missing := sorted(key for key in settings if not (_KSM / key).exists()):
        return ret | {"result": False, "comment": f"KSM of this kernel has no {', '.join(missing)}."}
    changes = plan(settings, {key: (_KSM / key).read_text(encoding="ascii").strip() for key in settings})
    kind = _STATES[settings["run"]] if "run" in settings else "as it was, with these figures"
    tuner = " ksmtuned runs here and may change it: disable it, or leave kvm:ksm out." if _TUNER.exists() else ""
    if __opts__["test"] or not changes:
        comment = f"KSM is {kind}.{tuner}" if not changes else f"Would change KSM.{tuner}"
        return ret | {"result": None if changes else True, "changes": changes, "comment": comment}
    for key, change in changes.items():
        try:
            (_KSM / key).write_text(change["new"], encoding="ascii")
        except OSError as error:
            reason = f"The kernel refuses {key} = {change['new']}: {error.strerror}."
            if key in _FIXED:
                reason += " It changes only while no page is merged: set enabled false and unmerge true first."
            return ret | {"result": False, "comment": reason}
        ret["changes"][key] = change
    return ret | {"comment": f"KSM is {kind}.{tuner}"}

"""Clusters as several hosts see them, put together and as text for people: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the views of minions together, a cluster at a time.

    Args:
        answers: by minion what ``hypervisor.cluster`` returned; a text where it failed, false where none came.
    """
    views: dict[str, dict[str, Any]] = {}
    silent = {}
    for minion, answer in sorted(answers.items()):
        if isinstance(answer, Mapping):
            views.setdefault(str(answer["name"]), {})[minion] = answer
        elif answer is not None:
            silent[minion] = " ".join(str(answer or "it does not answer").split())
    found = {name: _one(rows) for name, rows in views.items()}
    if silent:
        found[""] = {"problems": [f"{minion}: {text}" for minion, text in silent.items()]}
    return found


def _one(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one cluster: the view of a node with quorum if there is one, and where others see something else."""
    best = min(views, key=lambda minion: (not views[minion]["quorate"], not views[minion]["running"], minion))
    chosen = views[best]
    found = {key: value for key, value in chosen.items() if key not in ("name", "running")}
    problems = list(chosen["problems"])
    online = _online(chosen)
    for minion, view in views.items():
        if minion == best:
            continue
        if not view["running"] or not view["quorate"]:
            problems += [f"{minion}: {text}" for text in view["problems"]]
        elif _online(view) != online:
            seen = ", ".join(sorted(_online(view))) or "nobody"
            problems.append(f"{minion} sees other nodes online than {best}: {seen}")
    return found | {"problems": problems, "asked": best, "minions": sorted(views)}


def _online(view: Mapping[str, Any]) -> set[str]:
    """Returns the nodes that a view counts as online."""
    return {node["name"] for node in view["nodes"] if node["online"]}


# ---- for people ----


def table(clusters: Mapping[str, Any]) -> str:
    """Returns clusters as a text for people."""
    if not clusters:
        return "No host that was asked is in a cluster."
    return "\n\n".join(_text(name, found) for name, found in clusters.items())


def _text(name: str, found: Mapping[str, Any]) -> str:
    """Returns one cluster as a text."""
    if not name:
        return "\n".join(["These hosts could not be asked:", *(f"  {text}" for text in found["problems"])])
    quorum = "quorum" if found["quorate"] else "NO QUORUM"
    votes = f"{found['votes']} votes, {found['votes_needed']} needed"
    lines = [f"cluster {name}: {quorum}, {votes} (as {found['asked']} sees it)"]
    rows = [("nodes", node["name"], _state(node), "coordinates" if node["dc"] else "") for node in found["nodes"]]
    fencing = found["fencing"]
    rows += [("fencing", "", "on" if fencing["enabled"] else "OFF", "")] if not fencing["devices"] else []
    rows += [("fencing", row["name"], row["role"], _where(row)) for row in fencing["devices"]]
    guests = {row["name"] for row in found.get("guests", ())}
    others = [row for row in found["resources"] if row["name"] not in guests]
    rows += [("resources", row["name"], row["role"], _where(row)) for row in others]
    rows += [("guests", row["name"], row["role"], _where(row)) for row in found["resources"] if row["name"] in guests]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    before = ""
    for row in rows:
        cells = ("" if row[0] == before else row[0], *row[1:])
        before = row[0]
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append(f"  {'  '.join([*padded, cells[3]])}".rstrip())
    for failure in found["failures"]:
        where = f"{failure['resource']} {failure['operation']} on {failure['node']}"
        lines += [f"  failed: {where}: {failure['reason']} ({failure['at']})", f"    {failure['remedy']}"]
    lines += [f"  ! {text}" for text in found["problems"]]
    return "\n".join(lines)


def _state(node: Mapping[str, Any]) -> str:
    """Returns the state of a node in a word or two."""
    words = [key for key in ("standby", "maintenance", "unclean") if node[key]]
    return ", ".join(["online" if node["online"] else "OFFLINE", *words])


def _where(row: Mapping[str, Any]) -> str:
    """Returns where a resource runs, and what is wrong with it."""
    words = [f"on {', '.join(row['nodes'])}"] if row["nodes"] else []
    return " ".join([*words, *(["FAILED"] if row["failed"] else [])])

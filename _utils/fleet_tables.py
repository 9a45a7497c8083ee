"""Hosts, guests and moves as text for people: pure. Names come from elsewhere and can do nothing to a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"))
_LONGEST = 60
# What stands between a guest's name and the text of its move.
_OUTCOMES = {"moved": "moved ", "unknown": "was lost sight of: "}


def shown(value: Any) -> str:
    """Returns a text of another machine so that it can do nothing to a terminal."""
    text = "".join(sign if sign.isprintable() else "?" for sign in str(value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def grid(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> str:
    """Returns a table; columns whose numbers are in ``right`` are aligned there."""
    aligned = set(right)
    lines = [list(head), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def mib(amount: int) -> str:
    """Returns an amount of memory in the largest unit that leaves a number of at most four digits."""
    for size, unit in _SIZES:
        if amount << 20 >= size * 10:
            return f"{(amount << 20) / size:.0f} {unit}"
    return f"{amount} MiB"


def hosts(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns hosts as a table, and below it what is wrong with them."""
    if not found:
        return "There is no host."
    rows = []
    for name, row in found.items():
        if not row["live"]:
            rows.append((name, "NO ANSWER", "", "", "", ""))
            continue
        state = "evacuated" if row["evacuated"] else "PROBLEMS" if row["problems"] else "ok"
        rows.append(
            (
                name,
                state,
                f"{row['active']} of {len(row['guests'])}" if row["knows"] else "?",
                f"{row['promised_vcpus']} of {row['cpus']}",
                f"{mib(row['promised_mib'])} of {mib(row['memory_mib'])}",
                "" if row["load"] is None else f"{row['load']:.2f}",
            )
        )
    head = ("HOST", "STATE", "GUESTS RUN", "CPUS GIVEN", "MEMORY GIVEN", "LOAD")
    lines = [grid(head, rows, right=(5,))]
    lines += [f"! {name}: {shown_long(text)}" for name, row in found.items() for text in row["problems"]]
    return "\n".join(lines)


def shown_long(value: Any) -> str:
    """Returns a sentence of another machine; the lines of a long one stay together."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value))


def guests(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the guests of all hosts as one table, and which hosts did not tell theirs."""
    rows = sorted((row["name"], host, row) for host, there in found.items() for row in there["guests"])
    cells = []
    for name, host, row in rows:
        addresses = [address for nic in row["nics"] for address in nic["addresses"]]
        more = f" +{len(addresses) - 1}" if len(addresses) > 1 else ""
        memory = mib(row["memory_mib"]) if row["memory_mib"] else ""
        state = row["state"].replace("_", " ")
        autostart = "yes" if row["autostart"] else "no"
        cells.append((name, host, state, row["vcpus"] or "", memory, autostart, "".join(addresses[:1]) + more))
    head = ("GUEST", "HOST", "STATE", "CPUS", "MEMORY", "AUTOSTART", "ADDRESS")
    lines = [grid(head, cells, right=(3, 4))] if cells else ["There is no guest."]
    lines += [
        f"! {host} does not tell its guests: {shown_long('; '.join(there['problems']))}"
        for host, there in found.items()
        if not there["knows"]
    ]
    return "\n".join(lines)


def moves(found: Mapping[str, Any]) -> str:
    """Returns what became of the guests of an evacuation or a restoration."""
    lines = [found["text"]]
    rows = found["guests"]
    width = max((len(shown(row["name"])) for row in rows), default=0)
    for row in rows:
        lines.append(f"  {row['outcome'].ljust(8)}  {shown(row['name']).ljust(width)}  {shown_long(row['text'])}")
        lines += [
            f"  {'':8}  {'':{width}}    {host}: {shown_long(reason)}"
            for host, reasons in row.get("against", {}).items()
            for reason in reasons
        ]
    return "\n".join(lines)


def move(found: Mapping[str, Any]) -> str:
    """Returns what became of one guest."""
    if found.get("outcome", "there") == "there":
        return shown_long(found["text"])
    lines = [f"{shown(found['name'])} {_OUTCOMES.get(found['outcome'], '')}{shown_long(found['text'])}"]
    if found["outcome"] == "moved":
        lines.append(f"  why: {shown_long(found['why'])}")
    return "\n".join([*lines, *_against(found)])


def created(found: Mapping[str, Any]) -> str:
    """Returns what became of a creation."""
    return "\n".join([shown_long(found["text"]), *_against(found)])


def drift(found: Mapping[str, Any]) -> str:
    """Returns what hosts differ from their declaration, a line for each state."""
    lines = [shown_long(found["text"])]
    cells = []
    for row in found["hosts"]:
        if row["outcome"] == "unknown":
            lines.append(f"! {row['host']}: {shown_long(row['text'])}")
        cells += [
            (row["host"], state["what"].upper() if state["what"] == "fails" else state["what"], state["state"],
             state["id"], state["text"])
            for state in row["states"]
        ]  # fmt: skip
    return "\n".join([*lines, *([grid(("HOST", "WHAT", "STATE", "ID", "IT SAYS"), cells)] if cells else [])])


def _against(found: Mapping[str, Any]) -> list[str]:
    """Returns what speaks against hosts, a line each."""
    return [f"  {host}: {shown_long(text)}" for host, texts in found.get("against", {}).items() for text in texts]

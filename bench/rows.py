"""A measured figure, its goal, and how a set of them is shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured, in a few words.
        value: the figure; None when it was not measured (then `how` says why).
        unit: of the value and of the goal.
        goal: the worst value that is still good.
        better: `lower` or `higher`.
        how: what was run, how often, and how much the repetitions differed.
    """

    name: str
    value: float | None
    unit: str
    goal: float
    better: str
    how: str

    @property
    def met(self) -> bool:
        """Whether the figure is there and at its goal or better."""
        if self.value is None:
            return False
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return statistics.median(values)


def spread(values: Sequence[float], unit: str = "s") -> str:
    """How many values there are and how far they lie apart, for :attr:`Row.how`."""
    if len(values) == 1:
        return f"1 run, {values[0]:.3g} {unit}"
    return f"{len(values)} runs, median {median(values):.3g} {unit}, from {min(values):.3g} to {max(values):.3g} {unit}"


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as a JSON list, replacing the file at once.

    Args:
        rows: what was measured.
        path: the file; its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal: a line each, then a line of how."""
    head = ("figure", "value", "goal", "")
    cells = [head] + [
        (
            row.name,
            "not measured" if row.value is None else f"{row.value:.3g} {row.unit}",
            f"{'at most' if row.better == 'lower' else 'at least'} {row.goal:.3g} {row.unit}",
            "ok" if row.met else "" if row.value is None else "MISSED",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for number, line in enumerate(cells):
        texts = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        lines.append("  ".join(texts).rstrip())
        if number:
            lines.append(f"    {rows[number - 1].how}")
    return "\n".join(lines)

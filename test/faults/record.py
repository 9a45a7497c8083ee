"""What has been tried so far, so that an interrupted campaign goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.proc import LabError
from lab.state import write_atomic


class Record:
    """The runs of one campaign in a JSON file; each is written down the moment it is over.

    Attributes:
        path: the file.
        terms: what must be the same for a run to count: campaign, seed, the code under test.
        forgotten: how many runs of the file do not count any more, because the code has changed.
    """

    def __init__(self, path: Path, terms: dict[str, Any], *, fresh: bool = False) -> None:
        """Read the file, if there is one.

        Args:
            path: the file.
            terms: what this campaign is.
            fresh: count no earlier run.

        Raises:
            LabError: the file is damaged.
        """
        self.path, self.terms = path, terms
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            runs = kept.get("runs", [])
            same = not fresh and kept.get("terms") == terms
        except (OSError, ValueError, AttributeError) as error:
            raise LabError(f"{path} can't be read ({error}); remove it, or use another --out") from None
        self.runs: list[dict[str, Any]] = runs if same else []
        self.forgotten = 0 if same else len(runs)

    def done(self, **which: Any) -> list[dict[str, Any]]:
        """Return the runs with these values."""
        return [run for run in self.runs if all(run.get(key) == value for key, value in which.items())]

    def judged(self, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the runs up to a number, and those of them in which a promise was broken."""
        counted = [run for run in self.runs if run["number"] <= count]
        return counted, [run for run in counted if not run["kept"]]

    def add(self, run: dict[str, Any]) -> None:
        """Write a run down."""
        self.runs.append(run)
        write_atomic(self.path, json.dumps({"terms": self.terms, "runs": self.runs}, indent=1) + "\n")

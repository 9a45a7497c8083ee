"""What a host is told apart from what it was declared to be: a highstate that only says what it would do. Pure.

Of a state stay its id and the first line of what it says. What it would write does not: that may be a secret, and not
all who may ask are told those.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

Question = tuple[str, str, dict[str, Any]]

_LONGEST = 200  # characters of what a state says
_PART = 3  # of a state's key, as in file_|-id_|-name_|-managed


def course(host: str) -> Generator[Question, dict[str, Any], dict[str, Any]]:
    """Asks one host for its highstate in test mode, and judges the answer.

    Args:
        host: minion id.

    Returns:
        ``host``, ``outcome`` ("same", "differs", "fails" or "unknown"), ``text``, ``total`` (states in all) and
        ``states``, in their order: ``id``, ``state`` (such as file.managed), ``sls``, ``what`` ("changes" or
        "fails") and ``text``.
    """
    answer = yield host, "state.highstate", {"test": True}
    return judged(host, answer)


def judged(host: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Judges a host's answer, see :func:`course`."""
    found = {"host": host, "outcome": "unknown", "total": 0, "states": []}
    if answer["lost"]:
        return found | {"text": answer["lost"]}
    value = answer["value"]
    rows = list(value.values()) if isinstance(value, Mapping) else [None]
    if not all(isinstance(row, Mapping) and "result" in row for row in rows):
        # Pillar that is refused, another run under way: Salt says it in a list of texts.
        said = value if isinstance(value, list) else [value]
        return found | {"text": " ".join(" ".join(map(str, said)).split()) or "it has answered nothing"}
    ordered = sorted(value.items(), key=lambda item: _order(item[1]))
    states = [row for key, state in ordered if (row := _state(key, state))]
    failing = sum(row["what"] == "fails" for row in states)
    changing = len(states) - failing
    texts = [f"{changing} of {len(value)} states would change"] if changing else []
    texts += [f"{failing} would fail"] if failing else []
    return {
        "host": host,
        "outcome": "fails" if failing else "differs" if changing else "same",
        "text": ", ".join(texts) or f"is as declared: {len(value)} states",
        "total": len(value),
        "states": states,
    }


def _order(state: Mapping[str, Any]) -> int:
    """Returns the place of a state in its run."""
    number = state.get("__run_num__")
    return number if isinstance(number, int) else 0


def _state(key: str, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describes a state that would not stay as it is; None for one that would."""
    if state["result"] is True and not state.get("changes"):
        return None
    parts = key.split("_|-")
    named = f"{parts[0]}.{parts[-1]}" if len(parts) > _PART else key
    said = str(state.get("comment") or "").strip().splitlines()
    return {
        "id": str(state.get("__id__") or key),
        "state": named,
        "sls": str(state.get("__sls__") or ""),
        "what": "fails" if state["result"] is False else "changes",
        "text": said[0][:_LONGEST] if said else "",
    }


def report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts the hosts' rows together.

    Args:
        rows: what :func:`course` returns for each.

    Returns:
        ``ok`` (whether every host has answered), ``same`` (whether all are as declared), ``text``, ``hosts`` (rows).
    """
    unknown = [row["host"] for row in rows if row["outcome"] == "unknown"]
    other = [row["host"] for row in rows if row["outcome"] in {"differs", "fails"}]
    texts = [f"{len(rows) - len(unknown) - len(other)} of {len(rows)} hosts are as declared"]
    texts += [f"different: {', '.join(other)}"] if other else []
    texts += [f"not known: {', '.join(unknown)}"] if unknown else []
    return {"ok": not unknown, "same": not unknown and not other, "text": "; ".join(texts), "hosts": list(rows)}

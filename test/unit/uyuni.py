"""What Uyuni makes of a form, as far as it matters for the pillar: in the browser and on the server.

From the source of Uyuni 2025 (FormulaComponentGenerator.tsx and suma_minion.py), in words of our own.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Layout = dict[str, Any]
GROUP, EDIT = "group", "edit-group"
FIELDS = {"text", "password", "number", "boolean", "select"}


def fields(layout: Layout) -> Layout:
    """The elements inside a group, without what describes the group itself."""
    return {name: element for name, element in layout.items() if not name.startswith("$")}


def new_value(element: Layout) -> Any:
    """What the page shows for an element of which nothing is saved."""
    if element["$type"] == GROUP:
        return {name: new_value(below) for name, below in fields(element).items()}
    if element["$type"] == "boolean":
        return element.get("$default", False)
    if element["$type"] != EDIT:
        return element.get("$default", "")
    entries = deepcopy(element.get("$default", {} if "$key" in element["$prototype"] else []))
    if not entries and "$key" not in element["$prototype"]:
        # The page adds one entry to an empty list for a start; of texts an empty one is not saved.
        entry = new_value(element["$prototype"])
        return [] if entry == "" else [entry]
    return entries


def unmet(layout: Layout, value: Any) -> bool:
    """Whether the page refuses to save a value: something that is required is empty."""
    if layout["$type"] == GROUP:
        return any(unmet(below, value[name]) for name, below in fields(layout).items())
    return bool(layout.get("$required")) and not value


def saved(form: Layout) -> Layout:
    """What an untouched form saves; a first entry that lacks what it requires has been removed."""

    def clean(layout: Layout, value: Any) -> Any:
        if layout["$type"] == GROUP:
            return {name: clean(below, value[name]) for name, below in fields(layout).items()}
        if layout["$type"] == EDIT and isinstance(value, list):
            return [one for one in value if not (isinstance(one, dict) and unmet(layout["$prototype"], one))]
        return value

    return {name: clean(element, new_value(element)) for name, element in form.items()}


def pillar(layout: Layout, data: Layout) -> Layout:
    """The pillar that the server makes of what was saved (the defaults stand for what was not)."""
    result = {}
    for name, element in fields(layout).items():
        value = data.get(
            name, "" if element["$type"] == GROUP else element.get("$default", element.get("$placeholder", ""))
        )
        if element["$type"] == GROUP:
            value = pillar(element, value or {})
        elif element["$type"] == EDIT and element["$prototype"]["$type"] == GROUP:
            below = element["$prototype"]
            if isinstance(value, dict):
                value = {key: pillar(below, entry) for key, entry in value.items()}
            else:
                value = [pillar(below, entry) for entry in value or []]
        if not value and "$ifEmpty" in element:
            value = element["$ifEmpty"]
        if value or not element.get("$optional"):
            result[name] = value
    return result

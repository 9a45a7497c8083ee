"""Builds the configuration of a formula: defaults < osmap < pillar, judged by the schema.

Pure: it reads no files and knows no Salt, so that the minion, salt-ssh and the tests share it. Who
calls it passes what loads a schema (``formula_vocabulary.load``) and what judges by it
(``formula_schema.errors``), since Salt's loader keeps the modules of a folder apart.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from typing import Any

# Later ones are more specific and win.
GRAINS = ("os_family", "os", "osfinger")
# Deeper than any configuration; ends the recursion on a YAML alias that contains itself.
DEEPEST = 50
# What msgpack, and so Salt, can carry.
LARGEST = 2**64

Errors = list[tuple[str, str]]
# Faults by the parts of their path, before they are worded for a person.
Unfit = list[tuple[tuple[str, ...], str]]
Load = Callable[[Any], Any]
Judge = Callable[[Any, Any, str, Any, Unfit], Errors]


def merge(base: Any, over: Any) -> Any:
    """Merges two values into a new one: mappings key by key, anything else is replaced.

    Args:
        base: the value below, left as it is.
        over: the value that wins, left as it is.

    Returns:
        The merged value; it shares no mapping that was merged, but may share other values.
    """
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def select(osmap: Mapping[str, Any], grains: Mapping[str, Any]) -> list[Any]:
    """Picks what an osmap says for a host.

    Args:
        osmap: mappings of grain values to partial configurations, by the names in GRAINS.
        grains: the host's grains.

    Returns:
        The partial configurations that apply, the most specific last.

    Raises:
        ValueError: the osmap has other keys than the names in GRAINS.
    """
    unknown = sorted(set(osmap) - set(GRAINS))
    if unknown:
        raise ValueError(f"osmap.yaml: unknown key {unknown[0]}; known: {', '.join(GRAINS)}")
    chosen = [(osmap.get(grain) or {}).get(grains.get(grain)) for grain in GRAINS]
    return [one for one in chosen if one is not None]


def plain(value: Any, path: tuple[str, ...], errors: Unfit) -> Any:
    """Copies a value into plain JSON types and reports what has no place in them.

    Args:
        value: anything a YAML reader or Salt's pillar may return.
        path: where it stands.
        errors: list to which errors are added, as pairs of a path and a text.

    Returns:
        A copy made of dict, list, str, int, float, bool and None alone.
    """
    if len(path) > DEEPEST:
        errors.append((path, f"nested more than {DEEPEST} levels deep"))
        return None
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else _key_text(key)
            if not isinstance(key, str):
                errors.append(((*path, name), "the key is not text; put it in quotes"))
            copy[str(name)] = plain(item, (*path, name), errors)
        return copy
    if isinstance(value, (list, tuple)):
        return [plain(item, (*path, str(index)), errors) for index, item in enumerate(value)]
    return _plain_scalar(value, path, errors)


def _plain_scalar(
    value: Any, path: tuple[str, ...], errors: Unfit
) -> Any:
    """Copies what is neither mapping nor list."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int) and abs(value) < LARGEST:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (int, float)):
        text = "the number is too large or not a number"
    elif isinstance(value, (datetime.date, datetime.time)):
        text = f"{value} was read as a date; put it in quotes"
    else:
        text = f"a value of the type {type(value).__name__} has no place in a pillar"
    errors.append((path, text))
    return None


def _key_text(key: Any) -> str:
    """Shows a key that is not text the way YAML writes it."""
    if isinstance(key, bool) or key is None:
        return str(key).lower().replace("none", "null")
    if isinstance(key, int) and abs(key) >= LARGEST:
        return "(a very large number)"
    return str(key)


def combine(name: str, base: Any, pillar: Any) -> tuple[Any, Unfit]:
    """Merges a pillar over what the formula's own files say.

    Args:
        name: the formula, which is also the pillar's key.
        base: defaults and osmap, merged.
        pillar: what the pillar says below the formula's name; None is the same as nothing.

    Returns:
        The configuration, of plain types and shared with nobody, and what had no place in them.
    """
    unfit: Unfit = []
    return plain(base if pillar is None else merge(base, pillar), (name,), unfit), unfit


def assemble(
    name: str,
    contents: Mapping[str, Any],
    grains: Mapping[str, Any],
    pillar: Any,
    load: Load,
    judge: Judge,
) -> tuple[dict[str, Any], Errors]:
    """Builds the configuration of a formula and judges it.

    Args:
        name: the formula, which is also the pillar's key.
        contents: the parsed defaults.yaml, osmap.yaml and schema.yaml, by these names.
        grains: the host's grains; those in GRAINS count.
        pillar: what the pillar says below the formula's name; None is the same as nothing.
        load: ``formula_vocabulary.load``.
        judge: ``formula_schema.errors``.

    Returns:
        The merged configuration, of plain types and shared with nobody, and every error in it as
        pairs of a pillar path and what is wrong there.

    Raises:
        ValueError: one of the formula's own files is wrong.
    """
    for file, content in contents.items():
        if not isinstance(content, Mapping):
            raise ValueError(f"{file}: must be a mapping")
    merged: Any = contents["defaults.yaml"]
    for part in select(contents["osmap.yaml"], grains):
        merged = merge(merged, part)
    configuration, unfit = combine(name, merged, pillar)
    # What had no place in plain types was replaced: an error about the substitute would mislead.
    schema = contents["schema.yaml"]
    return configuration, judge(schema, configuration, name, load(schema), unfit)


def refusal(name: str, errors: Errors) -> str:
    """Writes the message that a person reads when a configuration is refused.

    Args:
        name: the formula.
        errors: what is wrong, as :func:`assemble` returns it.

    Returns:
        A text of one line for each error, below a line that says what it is about.
    """
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    lines = "".join(f"\n    {path}: {text}" for path, text in errors)
    return f"the pillar of {name} has {count}, so nothing was changed:{lines}"

"""The vocabulary of the formulas' schemas: which keywords and formats there are, and what they mean.

A part of JSON Schema's (draft 2020-12). A keyword outside of it is refused when a schema is loaded, so
that nothing in a schema is silently without effect. The library "jsonschema" knows more formats, and
leaves some of them to packages that a minion has not.
"""

from __future__ import annotations

import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly", "patternErrorMessage",
})  # fmt: skip
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SCHEMAS = ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else")
_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})

Formats = dict[str, tuple[Callable[[str], bool], str]]


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    """Turns a parser that raises ValueError into a predicate."""

    def check(text: str) -> bool:
        # Python takes any text behind a percent sign for the name of an interface.
        if "%" in text:
            return False
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _network(text: str) -> object:
    """Parses ADDRESS/PREFIX without host bits; a bare address is no network."""
    if "/" not in text:
        raise ValueError(text)
    return ipaddress.ip_network(text)


def _interface(text: str) -> object:
    """Parses ADDRESS/PREFIX of a host in its network."""
    if "/" not in text:
        raise ValueError(text)
    return ipaddress.ip_interface(text)


def _uuid(text: str) -> object:
    """Parses a UUID in its usual form of 8-4-4-4-12 digits."""
    if [len(part) for part in text.split("-")] != [8, 4, 4, 4, 12] or not text.isascii():
        raise ValueError(text)
    return uuid.UUID(text)


_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z")


def _is_hostname(text: str) -> bool:
    """Says whether text is a host name of RFC 1123; four numbers are an address instead."""
    if len(text) > 253 or not all(_LABEL.match(label) for label in text.split(".")):
        return False
    return not text.rpartition(".")[2].isdigit()


def _is_mac(text: str) -> bool:
    """Says whether text is a MAC address of six octets with colons."""
    return _MAC.match(text) is not None


def _is_path(text: str) -> bool:
    """Says whether text is an absolute path without steps upwards, control characters or "//"."""
    if not text.startswith("/") or not text.isprintable():
        return False
    return not {"", ".", ".."} & set(text[1:].split("/")) or text == "/"


FORMATS: Formats = {
    "ipv4": (_parses(ipaddress.IPv4Address), "an IPv4 address such as 192.0.2.10"),
    "ipv6": (_parses(ipaddress.IPv6Address), "an IPv6 address such as 2001:db8::10"),
    "ip": (_parses(ipaddress.ip_address), "an IP address such as 192.0.2.10 or 2001:db8::10"),
    "ip-network": (_parses(_network), "a network such as 192.0.2.0/24, without host bits"),
    "ip-interface": (_parses(_interface), "an address with its prefix such as 192.0.2.10/24"),
    "hostname": (_is_hostname, "a host name such as hv1.example.org"),
    "host": (
        lambda text: _is_hostname(text) or FORMATS["ip"][0](text),
        "a host name or an IP address",
    ),
    "mac": (_is_mac, "a MAC address such as 52:54:00:12:34:56"),
    "uuid": (_parses(_uuid), "a UUID such as 123e4567-e89b-12d3-a456-426614174000"),
    "absolute-path": (_is_path, "an absolute path such as /var/lib/libvirt"),
}


# ---- loading a schema ----


class Vocabulary(NamedTuple):
    """What a loaded schema uses.

    ``formats`` by name: a predicate of the text, and what it allows in words. ``patterns`` compiled, by
    their text. ``secrets``: whether something secret is in a schema, by the ``id`` of its mapping.
    """

    formats: Formats
    patterns: dict[str, re.Pattern[str]]
    secrets: dict[int, bool]


def load(schema: Any) -> Vocabulary:
    """Checks a schema and collects what judging by it needs.

    Args:
        schema: the parsed schema; it must live as long as the result is used.

    Returns:
        What the schema uses.

    Raises:
        ValueError: the schema is wrong or uses a keyword that is not supported.
    """
    if not isinstance(schema, Mapping):
        raise ValueError("schema.yaml: a schema must be a mapping")
    vocabulary = Vocabulary(FORMATS, {}, {})
    _load(schema, "", (), schema.get("$defs", {}), vocabulary)
    return vocabulary


def _load(
    schema: Any, where: str, refs: tuple[str, ...], definitions: Any, vocabulary: Vocabulary
) -> bool:
    """Checks a schema and all below it; returns whether a secret is in it."""
    if isinstance(schema, bool):
        return False
    if not isinstance(schema, Mapping):
        raise _wrong(where, "must be a mapping or a boolean")
    for keyword, value in schema.items():
        _load_keyword(keyword, value, where, vocabulary)
    secret = bool(schema.get("writeOnly"))
    for below, place in _below(schema, where):
        secret |= _load(below, place, refs, definitions, vocabulary)
    if "$ref" in schema:
        ref = schema["$ref"]
        name = ref.removeprefix("#/$defs/")
        if name == ref or name not in definitions:
            raise _wrong(where, f"$ref {ref!r} is not a #/$defs/NAME that exists")
        if ref in refs:
            raise _wrong(where, f"{ref} refers to itself")
        secret |= _load(definitions[name], ref, (*refs, ref), definitions, vocabulary)
    vocabulary.secrets[id(schema)] = secret
    return secret


def _load_keyword(keyword: Any, value: Any, where: str, vocabulary: Vocabulary) -> None:
    """Checks one keyword's own value."""
    check = _KEYWORD_CHECKS.get(keyword)
    if check is None:
        if keyword not in _ANNOTATIONS:
            raise _wrong(where, f"the keyword {keyword!r} is not supported")
    elif not check(value):
        raise _wrong(where, f"{keyword} has a wrong value: {value!r}")
    patterns = value if keyword == "patternProperties" else ()
    for pattern in [value] if keyword == "pattern" else patterns:
        try:
            # Python's "$" also matches before a last newline; JSON Schema's does not.
            vocabulary.patterns[pattern] = re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern))
        except re.error as error:
            raise _wrong(where, f"the pattern {pattern!r} is wrong: {error}") from error



def _wrong(where: str, what: str) -> ValueError:
    """An error in the schema itself."""
    return ValueError(f"schema.yaml at {where or '/'}: {what}")


def _below(schema: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """Yields the schemas directly inside a schema, and where each stands."""
    for keyword in _SCHEMA_MAPS:
        for name, one in schema.get(keyword, {}).items():
            yield one, f"{where}/{keyword}/{name}"
    for keyword in _SCHEMA_LISTS:
        for index, one in enumerate(schema.get(keyword, ())):
            yield one, f"{where}/{keyword}/{index}"
    for keyword in _SCHEMAS:
        if keyword in schema:
            yield schema[keyword], f"{where}/{keyword}"


def _is_size(value: Any) -> bool:
    """Says whether a keyword's value is a whole number of at least 0."""
    return type(value) is int and value >= 0


def _is_names(value: Any) -> bool:
    """Says whether a keyword's value is a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_KEYWORD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "type": lambda v: v in _TYPES if isinstance(v, str) else _is_names(v) and {*v} <= _TYPES,
    "enum": lambda v: isinstance(v, list) and bool(v),
    "const": lambda _: True,
    "pattern": lambda v: isinstance(v, str),
    "format": lambda v: isinstance(v, str) and v in FORMATS,
    "uniqueItems": lambda v: isinstance(v, bool),
    # A fraction has no exact multiples in floating point; none of our keys needs one.
    "multipleOf": lambda v: _is_size(v) and v > 0,
    "required": _is_names,
    "dependentRequired": lambda v: isinstance(v, Mapping) and all(map(_is_names, v.values())),
    "$ref": lambda v: isinstance(v, str),
    **dict.fromkeys(_LIMITS, lambda v: type(v) in {int, float} and math.isfinite(v)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _is_size),
    **dict.fromkeys(("minProperties", "maxProperties"), _is_size),
    **dict.fromkeys(_SCHEMA_MAPS, lambda v: isinstance(v, Mapping) and _is_names([*v])),
    **dict.fromkeys(_SCHEMA_LISTS, lambda v: isinstance(v, list) and bool(v)),
    **dict.fromkeys(_SCHEMAS, lambda v: isinstance(v, (bool, Mapping))),
}

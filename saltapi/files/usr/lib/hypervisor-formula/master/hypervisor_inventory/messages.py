"""What hosts say, judged: who signed it, whether it was said before, and what of it is taken.

Salt's bus does not say which minion has sent an event, so the host signs what it says with the key of its minion, and
the master verifies with the half that it has accepted. What does not verify is dropped and counted.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

PREFIX = "hypervisor/"
# So that a signature for this is good for nothing else, and none for something else is good here.
_PURPOSE = b"hypervisor-formula inventory 1\0"
MINION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST = 900_000  # characters of a message; the bus takes a MiB
_LONGEST_TEXT = 256
_MOST = {"guests": 5000, "pools": 500, "networks": 500}
_MOST_TEXTS = 64
_MOST_HAPPENED = 200
# What can happen to a guest; libvirt_watch.py has the same words.
HAPPENED = frozenset({
    "defined", "undefined", "started", "arrived", "restored", "woken", "suspended", "io_error", "watchdog", "api_error",
    "resumed", "shut_down", "forced_off", "crashed", "left", "saved", "failed", "pmsuspended", "rebooted",
})  # fmt: skip
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What a record has, by kind: the name, the type, and whether it may be unknown (null).
_SHAPES: Mapping[str, Mapping[str, tuple[type, bool]]] = {
    "hosts": {
        "cpus": (int, True),
        "cpu_used": (float, True),
        "memory_mib": (int, True),
        "memory_used_mib": (int, True),
        "load": (float, True),
        "problems": (list, False),
        "libvirt": (str, True),
        "qemu": (str, True),
        "kernel": (str, True),
        "system": (str, True),
        "salt": (str, True),
    },
    "guests": {
        "name": (str, False),
        "state": (str, False),
        "cpus": (int, True),
        "memory_mib": (int, True),
        "addresses": (list, False),
        "started": (str, True),
        "autostart": (bool, False),
        "persistent": (bool, False),
        "consoles": (list, False),
    },
    "pools": {
        "name": (str, False),
        "state": (str, False),
        "type": (str, True),
        "capacity_bytes": (int, True),
        "available_bytes": (int, True),
    },
    "networks": {"name": (str, False), "state": (str, False), "bridge": (str, True), "mode": (str, True)},
}


class RefusedError(ValueError):
    """A message that is not taken; the text is what it is counted as."""


class Message(NamedTuple):
    """What a host has said.

    Attributes:
        host: who.
        epoch: when the sender began, which orders its lives.
        seq: the number of the message in that life.
        new: by kind, records by their key in the database.
        gone: by kind, keys.
        figures: of the host itself, None if it does not say.
        part: this part of a whole, and of how many; None for a message that is none.
        nonce: what the master asked with, an empty text if it did not.
        interval: seconds between two messages of this host.
        happened: what has happened to guests: UUID, milliseconds since 1970, and one of ``HAPPENED``.
    """

    host: str
    epoch: int
    seq: int
    new: dict[str, dict[str, dict[str, Any]]]
    gone: dict[str, set[str]]
    figures: dict[str, Any] | None
    part: tuple[int, int] | None
    nonce: str
    interval: float
    happened: list[tuple[str, int, str]]


class Judge:
    """Tells what comes from whom.

    Args:
        keys: the folder of accepted minions' public keys.

    Attributes:
        refused: how many messages were not taken, by reason.
    """

    def __init__(self, keys: Path) -> None:
        self._folder = keys
        self._keys: dict[str, tuple[tuple[int, int], rsa.RSAPublicKey]] = {}
        self.refused: Counter[str] = Counter()

    def judged(self, tag: Any, event: Any, hosts: frozenset[str]) -> Message | None:
        """Returns what an event says, or None if it is not taken.

        Args:
            tag: of the event.
            event: what the bus has.
            hosts: the minions that are hypervisors.
        """
        try:
            return self._judged(tag, event, hosts)
        except RefusedError as error:
            self.refused[str(error)] += 1
            return None

    def _judged(self, tag: Any, event: Any, hosts: frozenset[str]) -> Message:
        """Does that, and raises RefusedError."""
        host = str(tag).removeprefix(PREFIX).partition("/")[0]
        if not MINION.fullmatch(host) or host not in hosts:
            raise RefusedError("unknown host")
        signed = event.get("data") if isinstance(event, Mapping) and "body" not in event else event
        if not isinstance(signed, Mapping):
            raise RefusedError("malformed")
        body, signature = signed.get("body"), signed.get("signature")
        if not isinstance(body, str) or not isinstance(signature, str) or len(body) > _LONGEST or len(signature) > 2048:
            raise RefusedError("malformed")
        self._verify(host, str(tag), body, signature)
        # From here on it is the host itself that speaks, which may be in others' hands.
        try:
            return read(host, json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
            raise RefusedError("malformed") from None

    def _verify(self, host: str, tag: str, body: str, signature: str) -> None:
        """Raises RefusedError unless the host's key has signed it."""
        key = self._key(host)
        try:
            given = base64.b64decode(signature, validate=True)
            key.verify(given, signed_text(tag, body), padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, binascii.Error, UnicodeEncodeError, ValueError):
            raise RefusedError("signature") from None

    def _key(self, host: str) -> rsa.RSAPublicKey:
        """Returns a minion's accepted key, read anew when it has changed."""
        path = self._folder / host
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if self._keys.get(host, (None,))[0] != stamp:
                key = serialization.load_pem_public_key(path.read_bytes())
                if not isinstance(key, rsa.RSAPublicKey):
                    raise RefusedError("no key")
                self._keys[host] = (stamp, key)
        except (OSError, ValueError):
            # A key that is accepted no more counts no more.
            self._keys.pop(host, None)
            raise RefusedError("no key") from None
        return self._keys[host][1]


def signed_text(tag: str, body: str) -> bytes:
    """Returns the bytes that a host signs; ``_utils/inventory_words.py`` makes the same."""
    return _PURPOSE + tag.encode() + b"\0" + body.encode()


def read(host: str, said: Mapping[str, Any]) -> Message:
    """Returns a message whose sender is certain; what no record has is left out.

    Raises:
        ValueError: it does not have the form of one; KeyError and TypeError mean the same.
    """
    if said["host"] != host:
        raise ValueError("host")
    part = said.get("part")
    if part is not None:
        part = (_whole(part[0], 1, 1000), _whole(part[1], 1, 1000))
    figures = said.get("figures")
    return Message(
        host=host,
        epoch=_whole(said["epoch"], 1, 2**62),
        seq=_whole(said["seq"], 1, 2**53),
        new={kind: _records(kind, host, said.get("set", {}).get(kind, {})) for kind in _MOST},
        gone={kind: {f"{host}/{_key(kind, one)}" for one in said.get("gone", {}).get(kind, [])} for kind in _MOST},
        figures=None if figures is None else shaped("hosts", figures),
        part=part,
        nonce=_text(said.get("nonce") or ""),
        interval=min(max(float(said["interval"]), 1.0), 3600.0),
        happened=_happened(said.get("happened", [])),
    )


def _happened(given: Any) -> list[tuple[str, int, str]]:
    """Returns what has happened to guests; words that are not known are left out."""
    if not isinstance(given, list) or len(given) > _MOST_HAPPENED:
        raise ValueError("happened")
    rows = [(_key("guests", one[0]), _whole(one[1], 0, 2**43), one[2]) for one in given]
    return [row for row in rows if row[2] in HAPPENED]


def _records(kind: str, host: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the records of a kind by their keys in the database."""
    if len(given) > _MOST[kind]:
        raise ValueError(kind)
    found = {}
    for key, value in given.items():
        record = {"host": host, **shaped(kind, value)}
        found[f"{host}/{_key(kind, key)}"] = record | ({"uuid": key} if kind == "guests" else {})
    return found


def _key(kind: str, key: Any) -> str:
    """Returns the part of a key that the host says: a guest's UUID, a name."""
    if kind == "guests":
        if not isinstance(key, str) or not _UUID.fullmatch(key):
            raise ValueError("uuid")
        return key
    return _text(key)


def shaped(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with the keys of its kind and values of their types."""
    found: dict[str, Any] = {}
    for key, (wanted, nullable) in _SHAPES[kind].items():
        value = given.get(key)
        if value is None and nullable:
            found[key] = None
        elif wanted is bool:
            found[key] = value is True
        elif wanted is str:
            found[key] = _text(value)
        elif wanted is list:
            found[key] = [_text(one) for one in list(value or ())[:_MOST_TEXTS]]
        elif wanted is float:
            found[key] = round(min(max(float(value or 0), 0.0), 1e6), 3)
        else:
            found[key] = _whole(value, 0, 2**53)
    return found


def clean(value: str, longest: int) -> str:
    """Returns a text that can harm nobody's terminal, of bounded length."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value[:longest])


def _text(value: Any) -> str:
    """Returns a text of a host."""
    if not isinstance(value, str):
        raise TypeError("text")
    return clean(value, _LONGEST_TEXT)


def _whole(value: Any, least: int, most: int) -> int:
    """Returns a whole number in its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError("number")
    return value

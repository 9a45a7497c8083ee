"""What hosts hand in through the master, for its file server to publish: asked for, looked at, waited for.

Salt says which minion asks another one, so the master's own minion knows whose it is. Neither the answer nor what was
fetched is trusted for more than that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from salt.exceptions import SaltException

PAUSE = 2.0  # seconds between two looks for what another host hands in
_ANSWER = 30  # seconds that Salt gives the minion that keeps what is handed in

# Takes a salt:// address and returns the path of a local copy, or nothing.
Fetch = Callable[[str], Any]
# Says what is wrong with what a host handed in; empty if nothing is.
Judge = Callable[[Any], Any]


class Source(NamedTuple):
    """Where the file server has what hosts handed in, and what looks at it.

    Functions come as they are, since a state's own would look for Salt's in the wrong loader while this one runs.

    Attributes:
        folder: its address, ``salt://...``.
        fetch: ``cp.cache_file``.
        judge: says what is wrong with an entry.
    """

    folder: str
    fetch: Fetch
    judge: Judge


def source(folder: str, fetch: Fetch, judge: Judge) -> Source:
    """Returns a :class:`Source`: Salt's loader gives functions to others, and no classes."""
    return Source(folder, fetch, judge)


def fetched(place: Source, host: str) -> dict[str, Any] | None:
    """Returns what a host has handed in, None if the file server has nothing sound of it.

    Args:
        place: where to look.
        host: the host's minion id.
    """
    fetch, judge = place.fetch, place.judge
    cached = fetch(f"{place.folder}/{host}.json")
    try:
        entry = json.loads(Path(cached).read_bytes()) if cached else None
    except ValueError:
        return None
    return None if entry is None or judge(entry) else dict(entry)


def hand_in(publish: Callable[..., Any], keeper: str, function: str, arguments: list[Any]) -> str:
    """Asks the master's own minion to publish something, and returns what it said, on one line.

    Args:
        publish: ``publish.publish``.
        keeper: minion id of the master's own minion.
        function: what it is asked, such as "host_keys.deposit".
        arguments: for that.
    """
    try:
        answer = publish(keeper, function, arg=arguments, timeout=_ANSWER)
    except SaltException as error:
        answer = str(error)
    if not answer:
        return (
            "no answer; either that minion is not there, or the master does not let this host ask it "
            "(see 'bootstrap pki --host')"
        )
    found = answer.get(keeper, answer) if isinstance(answer, dict) else answer
    if isinstance(found, dict) and "error" in found:
        found = found["error"]
    said = " ".join(str(found).split()).rstrip(".")
    if "is not available" in said:
        said += f"; that minion gets this function with its own highstate, or: salt {keeper} saltutil.sync_all"
    return said


def published(
    ask: Callable[[], str], place: Source, host: str, entry: Mapping[str, Any], keeper: str, wait_seconds: float
) -> str:
    """Asks until the file server has what was handed in; returns why it has not, empty when it has.

    Args:
        ask: hands it in, and returns what was said. The answer proves nothing; what the file server has now does.
        place: where the file server has it, as :func:`fetched` takes it.
        host: the minion id under which it is published.
        entry: what is handed in.
        keeper: minion id of the master's own minion.
        wait_seconds: how long to go on.
    """
    began = time.monotonic()
    while True:
        said = ask()
        if fetched(place, host) == entry:
            return ""
        waited = time.monotonic() - began
        if waited + PAUSE > wait_seconds:
            return f"{keeper} has not published it within {waited:.0f} s: {said}"
        time.sleep(PAUSE)


def from_pillar(pillar: Any, key: str) -> Any:
    """Returns what stands in a pillar below a key such as ``kvm:hostkeys:private_key``; None without key or value."""
    value = pillar
    for part in key.split(":") if key else []:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if key else None

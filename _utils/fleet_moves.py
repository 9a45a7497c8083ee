"""The course of one guest from its host to another: looks for a host that takes it, moves it, and knows where it ended.

A course asks its questions one by one (``yield``) and is told the answers, so that many of them can be under way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

Question = tuple[str, str, dict[str, Any]]
Answer = dict[str, Any]
Asking = Generator[Question, Answer, Any]

# How long both hosts are asked at least where a guest is, as long as a migration may still be under way.
_SETTLE_SECONDS = 60
_FIGURES = ("seconds", "downtime_ms", "transferred_bytes", "copied_disks", "warnings")


class Course:
    """What one course needs of the rest.

    Args:
        guest: as ``hypervisor.guests`` describes it.
        source: minion id of its host.
        options: ``copy_disks``, ``timeout``, ``test``.
        tell: is called with a step and what belongs to it.
    """

    def __init__(
        self, guest: Mapping[str, Any], source: str, options: Mapping[str, Any], tell: Callable[..., None]
    ) -> None:
        self.guest, self.source, self.options, self.tell = guest, source, options, tell
        self.name, self.uuid = str(guest["name"]), str(guest["uuid"])

    def result(self, outcome: str, text: str, **more: Any) -> dict[str, Any]:
        """Returns the result, and tells it."""
        found = {"name": self.name, "uuid": self.uuid, "from": self.source, "outcome": outcome, "text": text, **more}
        told = {"from": self.source, "to": more.get("to"), "against": more.get("against", {})}
        self.tell(outcome, guest=self.name, text=text, **told)
        return found

    def question(self, target: str, test: bool) -> Question:
        """Returns the question whether the guest can move, or that it does."""
        wanted = {
            "name": self.name,
            "target": target,
            "copy_disks": self.options["copy_disks"],
            "timeout": self.options["timeout"],
            "test": test,
        }
        return self.source, "hypervisor.migrate", wanted


def course(guest: Mapping[str, Any], source: str, options: Mapping[str, Any], tell: Callable[..., None]) -> Course:
    """Returns what one course needs of the rest."""
    return Course(guest, source, options, tell)


def ask(host: str, function: str, arguments: dict[str, Any]) -> Asking:
    """Asks one question and returns the answer."""
    return (yield host, function, arguments)


def follow(
    course: Course,
    choose: Callable[[], dict[str, Any]],
    take: Callable[[], tuple[Any, str]],
    note: Callable[[str, str], None],
) -> Asking:
    """Moves one guest to the first host that takes it.

    Args:
        course: whose.
        choose: returns ``hosts`` (in the order in which they are tried), ``why`` (of the first) and ``against``; is
            called when the guest's turn has come.
        take: locks the guest; returns the lock, or None and why not.
        note: is called with "trying", "refused", "moving", "moved" or "stays" and the target.

    Returns:
        ``name``, ``uuid``, ``from``, ``outcome`` ("moved", "possible", "stays", "busy", "failed" or "unknown"),
        ``text``, and where they are known ``to``, ``why``, ``against`` (reasons by host), ``state`` and figures.
    """
    lock, held = take()
    if lock is None:
        return course.result("busy", held)
    try:
        chosen = choose()
        against = dict(chosen["against"])
        for place, target in enumerate(chosen["hosts"]):
            why = chosen["why"] if not place else f"{target} is the next that it fits on"
            note("trying", target)
            course.tell("checking", guest=course.name, to=target, **{"from": course.source})
            answer = yield course.question(target, test=True)
            reasons = _reasons(answer)
            if reasons:
                note("refused", target)
                against[target] = reasons
                continue
            if course.options["test"]:
                text = f"can move to {target}: {why}"
                return course.result("possible", text, to=target, why=why, against=against)
            found = yield from _move(course, target, note)
            return found | {"why": why, "against": against}
        text = f"stays on {course.source}, no host takes it" if len(against) != 1 else f"stays on {course.source}"
        return course.result("stays", text, against=against)
    finally:
        lock.release()


def _reasons(answer: Answer) -> list[str]:
    """Returns what speaks against a target by the answer to the question whether it is possible."""
    if answer["lost"]:
        return [f"lost: {answer['lost']}"]
    value = answer["value"]
    # One host that answers something else must not end the courses of all others.
    with contextlib.suppress(KeyError, TypeError):
        if answer["ok"] and isinstance(value, Mapping):
            return [] if value["possible"] is True else [f"{row['check']}: {row['text']}" for row in value["reasons"]]
    return [f"error: {' '.join(str(value).split())}"]


def _move(course: Course, target: str, note: Callable[[str, str], None]) -> Asking:
    """Moves the guest to a host that takes it."""
    note("moving", target)
    course.tell("moving", guest=course.name, to=target, **{"from": course.source})
    answer = yield course.question(target, test=False)
    value = answer["value"]
    if answer["ok"] and _report(value):
        note("moved", target)
        figures = {key: value.get(key) for key in _FIGURES}
        text = f"to {target} in {value['seconds']:.1f} s"
        if value.get("downtime_ms") is not None:
            text += f", {value['downtime_ms']} ms of them without it"
        text += "".join(f"; {warning}" for warning in value["warnings"])
        return course.result("moved", text, to=target, state=value["state"], **figures)
    why = answer["lost"] or " ".join(str(value).split())
    return (yield from _settle(course, target, why, note))


def _report(value: Any) -> bool:
    """Says whether an answer is what a migration that went well returns."""
    known = isinstance(value, Mapping) and isinstance(value.get("seconds"), int | float)
    return known and "state" in value and isinstance(value.get("warnings"), list)


def _settle(course: Course, target: str, why: str, note: Callable[[str, str], None]) -> Asking:
    """Finds out where a guest is whose migration was not reported as a success."""
    deadline = time.monotonic() + max(course.options["timeout"], _SETTLE_SECONDS)
    while True:
        states = []
        for host in (course.source, target):
            answer = yield host, "hypervisor.guests", {}
            states.append(_state(answer, course.uuid))
        here, there = states
        # While libvirt still moves it, it is on both.
        if "gone" in states or "unreachable" in states or time.monotonic() > deadline:
            break
    told = f"it is {_said(here)} on {course.source} and {_said(there)} on {target}; {why}"
    if here == "gone" and _there(there):
        note("moved", target)
        return course.result("moved", f"to {target}, where it is {there}; {why}", to=target, state=there)
    if there == "gone" and _there(here):
        note("stays", target)
        text = f"is {here} on {course.source}, and {target} has nothing of it; {why}"
        return course.result("failed", text, state=here)
    text = f"nobody can say for certain where it is: {told}. Nothing was removed anywhere; look there, then repeat this"
    return course.result("unknown", text, to=target)


def _state(answer: Answer, uuid: str) -> str:
    """Returns a guest's state on a host that was asked for its guests."""
    if not answer["ok"] or not isinstance(answer["value"], Mapping):
        return "unreachable"
    try:
        states = [str(row["state"]) for row in answer["value"]["guests"] if row["uuid"] == uuid]
    except (KeyError, TypeError):
        # It has told nothing that can be relied on.
        return "unreachable"
    return states[0] if states else "gone"


def _there(state: str) -> bool:
    """Says whether a guest is on a host that has answered."""
    return state not in {"gone", "unreachable"}


def _said(state: str) -> str:
    """Returns a state as part of a sentence."""
    words = {"gone": "not there", "unreachable": "not known (no answer)"}
    return words.get(state, state.replace("_", " "))


# ---- what is said in the end ----


def report(host: str, what: str, rows: list[dict[str, Any]], test: bool) -> dict[str, Any]:
    """Puts together what became of the guests of a host.

    Args:
        host: minion id.
        what: "evacuated" or "restored".
        rows: what became of each; one that is ``forgotten`` does not count.
        test: whether it was a question alone.

    Returns:
        ``ok``, ``text``, ``host`` and ``guests``.
    """
    counted = [row for row in rows if row["outcome"] != "forgotten"]
    good = [row for row in counted if row["outcome"] in {"moved", "possible"}]
    left = len(counted) - len(good)
    verb = "can move" if test else "moved"
    if not counted:
        text = f"{host} {'would be' if test else 'is'} {what}: there is nothing to move"
    elif left:
        text = (
            f"{host} {'would not be' if test else 'is not'} {what} whole: {len(good)} of {len(counted)} guests {verb}"
        )
    else:
        text = f"{host} {'would be' if test else 'is'} {what}: {len(good)} of {len(counted)} guests {verb}"
    return {"ok": not left, "text": text, "host": host, "guests": rows}


def made(name: str, host: str, why: str, answer: Answer) -> dict[str, Any]:
    """Returns what became of a creation."""
    if answer["lost"]:
        text = f"nobody can say whether {name} was made on {host}: {answer['lost']}; look there before you repeat this"
        return {"ok": False, "text": text}
    if not answer["ok"] or not isinstance(answer["value"], Mapping):
        return {"ok": False, "text": f"{name} was not made on {host}: {answer['value']}"}
    return {"ok": True, "text": f"{name} was made on {host}: {why}", "guest": answer["value"]["guest"]}

"""Jobs of the master on hosts, several at a time, and what is to be said of a host that is lost in the midst.

An answer is read from the master's cache of jobs. A host that does not give one is asked whether it is still at work;
it counts as lost if it says no, or nothing for too long.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from salt.exceptions import SaltException

# What a course asks of a host: minion id, function, arguments by name.
Question = tuple[str, str, dict[str, Any]]
Course = Generator[Question, dict[str, Any], dict[str, Any]]

_PAUSE = 0.3
_PROBE_SECONDS = 5.0
_SILENT_SECONDS = 45.0
# An answer and the end of its job do not arrive at the same moment.
_GRACE_SECONDS = 5.0


class Job:
    """One function on one host.

    Args:
        host: minion id.
        jid: Salt's id; empty if the host was not there.
        now: seconds of a steady clock.
        why: there is no id, empty if the host was not there.
    """

    def __init__(self, host: str, jid: str, now: float, why: str = "") -> None:
        self.host, self.jid, self.why = host, jid, why
        self.heard = self.asked = now
        self.probes: list[str] = []
        self.ended: float | None = None


class Jobs:
    """Starts jobs and reads what has become of them.

    Args:
        client: Salt's ``LocalClient``.
        returns: what hosts have answered to a job, by minion id.
        clock: seconds of a steady clock.
    """

    def __init__(
        self, client: Any, returns: Callable[[str], Mapping[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._returns, self._clock = client, returns, clock

    def start(self, question: Question) -> Job:
        """Starts a function on a host. A master that takes no job now ends one course by that, and not all of them."""
        host, function, arguments = question
        try:
            published = self._client.run_job([host], function, tgt_type="list", kwarg=arguments)
        except SaltException as error:
            return Job(host, "", self._clock(), f"the master did not take the job: {error}")
        return Job(host, str((published or {}).get("jid") or ""), self._clock())

    def look(self, job: Job) -> dict[str, Any] | None:
        """Returns what has become of a job, None while it is at work.

        Returns:
            ``ok``, ``value`` and ``lost``: why there is no answer, empty if there is one.
        """
        if not job.jid:
            return _lost(job.why or f"{job.host} is not a minion of this master")
        answered = self._returns(job.jid).get(job.host)
        if isinstance(answered, Mapping) and "return" in answered:
            good = answered.get("retcode", 0) == 0 and answered.get("success", True) is True
            return {"ok": good, "value": answered["return"], "lost": ""}
        return self._probe(job)

    def _probe(self, job: Job) -> dict[str, Any] | None:
        """Asks a host that has not answered whether it is still at work."""
        now = self._clock()
        for probe in job.probes:
            said = self._returns(probe).get(job.host)
            if isinstance(said, Mapping):
                job.heard, job.probes = now, []
                if said.get("return"):
                    job.ended = None
                elif job.ended is None:
                    job.ended = now
                break
        if job.ended is not None and now - job.ended > _GRACE_SECONDS:
            return _lost(f"the minion of {job.host} has ended without an answer")
        if now - job.heard > _SILENT_SECONDS:
            return _lost(f"{job.host} has not answered for {now - job.heard:.0f} s")
        if now - job.asked > _PROBE_SECONDS:
            job.asked = now
            with contextlib.suppress(SaltException):
                published = self._client.run_job([job.host], "saltutil.find_job", arg=[job.jid], tgt_type="list")
                if (published or {}).get("jid"):
                    job.probes.append(str(published["jid"]))
        return None


def _lost(why: str) -> dict[str, Any]:
    """Returns an answer that is none."""
    return {"ok": False, "value": None, "lost": why}


def jobs(client: Any, returns: Callable[[str], Mapping[str, Any]]) -> Jobs:
    """Returns a starter of jobs."""
    return Jobs(client, returns)


def run(courses: Iterable[Course], parallel: int, starter: Any) -> list[dict[str, Any]]:
    """Follows courses to their ends, some at a time.

    Args:
        courses: each asks one question after the other, gets the answers, and returns a result.
        parallel: how many are under way at most.
        starter: of jobs.

    Returns:
        The results in the order of the courses.
    """
    waiting = list(enumerate(courses))
    results: dict[int, dict[str, Any]] = {}
    active: dict[int, tuple[Course, Any]] = {}

    def advance(number: int, course: Course, answer: dict[str, Any] | None) -> None:
        try:
            question = next(course) if answer is None else course.send(answer)
        except StopIteration as stop:
            results[number] = stop.value
            active.pop(number, None)
            return
        active[number] = (course, starter.start(question))

    try:
        while waiting or active:
            moved = False
            while waiting and len(active) < parallel:
                number, course = waiting.pop(0)
                advance(number, course, None)
                moved = True
            for number, (course, job) in list(active.items()):
                answer = starter.look(job)
                if answer is not None:
                    advance(number, course, answer)
                    moved = True
            if not moved:
                time.sleep(_PAUSE)
    finally:
        for course, _ in active.values():
            course.close()
        for _, course in waiting:
            course.close()
    return [results[number] for number in sorted(results)]

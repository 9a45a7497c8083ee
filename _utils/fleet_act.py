"""One call of the runner ``fleet``: who called it, what it may touch, and how it asks hosts and tells what it does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.loader
import salt.utils.event
from salt.exceptions import SaltException, SaltInvocationError

log = logging.getLogger(__name__)

_SOON = 10  # seconds that hosts have to answer


class Act:
    """One call of a function.

    Args:
        opts: the master's options.
        utils: the utilities' functions.
        who: ``function``, ``user`` and ``jid``.
        known: the hosts of bootstrap pki.
    """

    def __init__(
        self, opts: Mapping[str, Any], utils: Mapping[str, Any], who: Mapping[str, str], known: list[str]
    ) -> None:
        self._opts, self.utils, self.who = opts, utils, dict(who)
        self.function, self.user, self.jid = who["function"], who["user"], who["jid"]
        self.cache = str(opts["cachedir"])
        self.hosts = known
        # Whether these are all that there are.
        self.whole = True
        # Locks of guests that are taken before their course begins.
        self.held: dict[str, Any] = {}
        self._diary: Any = None
        if not utils["fleet_callers.trusted"](self.user, opts.get("user")):
            table = (opts.get("hypervisor_api") or {}).get("fleet") or {}
            groups = salt.loader.auth(dict(opts))["hypervisor.groups"](self.user) if table.get("groups") else []
            given = utils["fleet_callers.hosts"](self.user, groups, self.function, table)
            if not given:
                raise SaltInvocationError(f"no role of {self.user} allows {self.function}")
            self.hosts = [name for name in known if name in given]
            self.whole = self.hosts == known

    def host(self, value: Any, argument: str) -> str:
        """Returns a host that the caller may use, or refuses it."""
        name = str(self.utils["hypervisor_checks.minion"](value, argument))
        if name not in self.hosts:
            listed = ", ".join(self.hosts) or "none"
            raise SaltInvocationError(f"{argument}: {name} is none of the hosts for {self.function} here: {listed}")
        return name

    def begins(self, **about: Any) -> None:
        """Notes that it begins, once its arguments are good: ``guest``, ``host`` and ``test``, and its hosts."""
        who = {"function": self.function, "user": self.user, "scope": self.hosts}
        self._diary = self.utils["fleet_diary.begin"](self.cache, self.jid, **who, **about)

    def note(self, step: str, **what: Any) -> None:
        """Notes a step for the live inventory."""
        if self._diary is not None:
            self._diary.note(step, **what)

    def ends(self, ok: bool, text: str) -> None:
        """Notes how it has ended."""
        self.note("end", ok=ok, text=text)

    def close(self) -> None:
        """Lets go of what it notes its steps in."""
        if self._diary is not None:
            self._diary.close()

    def fire(self, step: str, **what: Any) -> None:
        """Fires an event, without which the act goes on all the same."""
        try:
            with salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=False) as bus:
                bus.fire_event(self.who | what, f"hypervisor/fleet/{self.jid}/{step}")
        except (SaltException, OSError) as error:
            log.warning("the step %s of %s was not fired: %s", step, self.jid, error)

    def tell(self, step: str, **what: Any) -> None:
        """Notes a step and fires it as an event."""
        self.note(step, **what)
        self.fire(step, **what)

    def lock(self, kind: str, name: str) -> tuple[Any, str]:
        """Takes a guest or a host for this act; returns the lock, or None and why not."""
        try:
            # Another tool's guest may have a name that is a path.
            self.utils["hypervisor_checks.name"](name)
        except SaltInvocationError as error:
            return None, f"cannot be touched: {error}"
        if kind == "guests" and name in self.held:
            return self.held[name], ""
        found: tuple[Any, str] = self.utils["fleet_store.lock"](self.cache, kind, name, self.who)
        return found

    def look(self) -> dict[str, dict[str, Any]]:
        """Asks the caller's hosts what they have."""
        asked = ["hypervisor.host_info", "hypervisor.guests"]
        with salt.client.get_local_client(mopts=self._opts) as client:
            answers = client.cmd(self.hosts, asked, [[], []], tgt_type="list", timeout=_SOON) if self.hosts else {}
        away = self.utils["fleet_store.evacuated"](self.cache)
        found = {}
        for name in self.hosts:
            answer = answers.get(name)
            # A text for both where the minion could not even begin.
            pair = [answer.get(one) if isinstance(answer, Mapping) else answer for one in asked]
            found[name] = self.utils["fleet_plan.host"](name, *pair, name in away)
        return found

    def where(self, found: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
        """Returns the host of a guest, and the guest."""
        places = self.utils["fleet_plan.where"](found, name)
        silent = self.utils["fleet_plan.unknown"](found)
        if len(places) == 1:
            host, guest = places[0]
            return str(host), guest
        if places:
            listed = ", ".join(host for host, _ in places)
            raise SaltInvocationError(
                f"several hosts have a guest {name}: {listed}; hypervisor.migrate moves one of them"
            )
        where = ", ".join(one for one in self.hosts if one not in silent) or "no host"
        more = f"; these did not tell their guests: {', '.join(silent)}" if silent else ""
        raise SaltInvocationError(f"there is no guest {name} (asked: {where}){more}")

    def course(
        self,
        found: dict[str, Any],
        place: tuple[str, dict[str, Any]],
        target: str | None,
        options: dict[str, Any],
        policy: str,
        note: Callable[[str, str], None],
    ) -> Any:
        """Returns the course of one guest to a host, or to the best.

        Args:
            found: what :meth:`look` has found.
            place: the host of the guest, and the guest.
            target: the host; without one the policy chooses.
            options: of the migration.
            policy: "spread" or "pack".
            note: is called with "moving", "moved" or "stays" and the host.
        """
        source, guest = place
        need = self.utils["fleet_plan.need_of"](guest)

        def choose() -> dict[str, Any]:
            if target is not None:
                return {"hosts": [target], "why": "it was named", "against": {}}
            others = [there for name, there in found.items() if name != source]
            chosen: dict[str, Any] = self.utils["fleet_plan.choose"](others, need, policy)
            return chosen

        def noted(step: str, to: str) -> None:
            # Counted from the question on: others that are on their way choose meanwhile.
            if step in {"trying", "refused", "stays"}:
                self.utils["fleet_plan.taken"](found, to, need, 1 if step == "trying" else -1)
            if step not in {"trying", "refused"}:
                note(step, to)

        course = self.utils["fleet_moves.course"](guest, source, options, self.tell)
        return self.utils["fleet_moves.follow"](course, choose, lambda: self.lock("guests", guest["name"]), noted)

    def returning(
        self, found: dict[str, Any], target: str, guests: Mapping[str, Any], options: dict[str, Any]
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        """Returns the courses of guests that go back to a host, and what is to be said of those that do not.

        Args:
            found: what hosts have.
            target: the host that had them.
            guests: which, by UUID.
            options: of the migrations.
        """
        courses, ended, rows = [], [], []
        for uuid, guest in guests.items():
            verdict, place = self.utils["fleet_plan.back"](found, target, uuid, self.whole)
            if verdict == "moves":
                self.note("waiting", guest=guest["name"], **{"from": place[0]})
                courses.append(self.course(found, place, target, options, "spread", self._forgetting(target, uuid)))
                continue
            if verdict == "waits":
                # Of other hosts neither whether they have it nor their names are the caller's.
                asked = "that answer" if self.whole else "for fleet.restore here"
                went = f"; it went to {guest['to']}" if guest["to"] in self.hosts else ""
                text = f"is on none of the hosts {asked}{went}"
                rows.append({"name": guest["name"], "uuid": uuid, "outcome": "unknown", "text": text})
                continue
            ended.append(uuid)
            if verdict == "gone":
                text = f"is on no host any more; it went to {guest['to']}"
                rows.append({"name": guest["name"], "uuid": uuid, "outcome": "forgotten", "text": text})
        for row in rows:
            self.note(row["outcome"], guest=row["name"], text=row["text"])
        for uuid in ended if not options["test"] else ():
            self.utils["fleet_store.forget"](self.cache, target, uuid)
        return courses, rows

    def _forgetting(self, host: str, uuid: str) -> Callable[[str, str], None]:
        """Returns what notes that a guest is back."""

        def note(step: str, to: str) -> None:
            del to
            if step == "moved":
                self.utils["fleet_store.forget"](self.cache, host, uuid)

        return note

    def alone(self, host: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Does something to a host to which nothing else is done meanwhile."""
        lock, held = self.lock("hosts", host)
        if lock is None:
            raise SaltInvocationError(f"{host} {held}")
        try:
            return work()
        finally:
            lock.release()

    def run(self, courses: Iterable[Any], parallel: int) -> list[dict[str, Any]]:
        """Follows courses to their ends."""
        with salt.client.get_local_client(mopts=self._opts) as client:
            returns = client.returners[f"{self._opts['master_job_cache']}.get_jid"]
            found: list[dict[str, Any]] = self.utils["fleet_jobs.run"](
                courses, parallel, self.utils["fleet_jobs.jobs"](client, returns)
            )
        return found

    def report(self, host: str, what: str, rows: list[dict[str, Any]], test: bool) -> dict[str, Any]:
        """Puts together what became of the guests of a host, and tells it."""
        found: dict[str, Any] = self.utils["fleet_moves.report"](host, what, rows, test)
        self.fire("end", host=host, text=found["text"], ok=found["ok"])
        return found


def act(opts: Mapping[str, Any], utils: Mapping[str, Any], who: Mapping[str, str], hosts: str) -> Act:
    """Returns one call of a function.

    Args:
        opts: the master's options.
        utils: the utilities' functions.
        who: ``function``, ``user`` and ``jid``.
        hosts: the path of the file that bootstrap pki keeps, a line for each host with its minion id first.
    """
    try:
        lines = Path(hosts).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    return Act(opts, utils, who, sorted(line.split()[0] for line in lines if line.strip()))

"""All hosts together, as the master sees them, and what moves between them.

``salt-run`` prints tables for people, and data with ``--out``; with ``--async`` it returns the job's id at once. What
moves guests holds a lock for each of them, fires what happens as events ``hypervisor/fleet/<jid>/<step>``, and can be
repeated.

The hosts are those of ``bootstrap pki``. Who comes through salt-api may use those of their roles alone, which is judged
here: the arguments of a runner name hosts, and Salt's own lists of who may call what know nothing of them. The work is
in ``_utils/fleet_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import salt.client
import salt.loader
import salt.utils.event
from salt.exceptions import SaltException, SaltInvocationError

__opts__: dict[str, Any]
__utils__: dict[str, Any]
__context__: dict[Any, Any]

_SIBLINGS = (
    "fleet_callers.hosts",
    "fleet_callers.trusted",
    "fleet_jobs.jobs",
    "fleet_jobs.run",
    "fleet_moves.ask",
    "fleet_moves.course",
    "fleet_moves.follow",
    "fleet_moves.made",
    "fleet_moves.report",
    "fleet_plan.back",
    "fleet_plan.choose",
    "fleet_plan.host",
    "fleet_plan.leaving",
    "fleet_plan.need",
    "fleet_plan.need_of",
    "fleet_plan.policies",
    "fleet_plan.taken",
    "fleet_plan.unknown",
    "fleet_plan.where",
    "fleet_store.begin",
    "fleet_store.end",
    "fleet_store.evacuated",
    "fleet_store.forget",
    "fleet_store.lock",
    "fleet_store.note",
    "fleet_store.record",
    "hypervisor_checks.choice",
    "hypervisor_checks.flag",
    "hypervisor_checks.minion",
    "hypervisor_checks.name",
    "hypervisor_checks.whole",
    "hypervisor_checks.without_salts_own",
)
# What bootstrap pki keeps of hosts: a line each, the minion id first.
_HOSTS = "/etc/pki/hypervisor/hosts"
_PATIENCE = 30  # seconds that a host has to answer
_SOON = 10  # seconds after which a host is asked whether it is still at work
_LONGEST = 24 * 3600
_MOST_PARALLEL = 16


class _Act:
    """One call of a function: who called it, and what it may touch.

    Args:
        function: its name.
    """

    def __init__(self, function: str) -> None:
        # Salt puts both into the globals of a runner that it starts.
        self.jid = str(globals().get("__jid__") or "none")
        self.user = str(globals().get("__user__") or "UNKNOWN")
        self.function = function
        # Locks of guests that are taken before their course begins.
        self.held: dict[str, Any] = {}
        # Called back by a utility, this module would have that one's __utils__, which are none.
        self.utils = {name: __utils__[name] for name in _SIBLINGS}
        known = _known()
        self.hosts = known
        if not self.utils["fleet_callers.trusted"](self.user, __opts__.get("user")):
            table = (__opts__.get("hypervisor_api") or {}).get("fleet") or {}
            groups = salt.loader.auth(dict(__opts__))["hypervisor.groups"](self.user) if table.get("groups") else []
            given = self.utils["fleet_callers.hosts"](self.user, groups, function, table)
            if not given:
                raise SaltInvocationError(f"no role of {self.user} allows {function}")
            self.hosts = [name for name in known if name in given]

    def host(self, value: Any, argument: str) -> str:
        """Returns a host that the caller may use, or refuses it."""
        name = str(self.utils["hypervisor_checks.minion"](value, argument))
        if name not in self.hosts:
            listed = ", ".join(self.hosts) or "none"
            raise SaltInvocationError(f"{argument}: {name} is none of the hosts for {self.function} here: {listed}")
        return name

    def who(self) -> dict[str, str]:
        """Returns what a lock says of its holder."""
        return {"function": self.function, "user": self.user, "jid": self.jid}

    def tell(self, step: str, **what: Any) -> None:
        """Fires an event, without which the act goes on all the same."""
        with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=False) as bus:
            bus.fire_event(self.who() | what, f"hypervisor/fleet/{self.jid}/{step}")

    def lock(self, kind: str, name: str) -> tuple[Any, str]:
        """Takes a guest or a host for this act; returns the lock, or None and why not."""
        try:
            # Another tool's guest may have a name that is a path.
            self.utils["hypervisor_checks.name"](name)
        except SaltInvocationError as error:
            return None, f"cannot be touched: {error}"
        if kind == "guests" and name in self.held:
            return self.held[name], ""
        found: tuple[Any, str] = self.utils["fleet_store.lock"](__opts__["cachedir"], kind, name, self.who())
        return found

    def look(self) -> dict[str, dict[str, Any]]:
        """Asks the caller's hosts what they have."""
        asked = ["hypervisor.host_info", "hypervisor.guests"]
        with salt.client.get_local_client(mopts=__opts__) as client:
            answers = client.cmd(self.hosts, asked, [[], []], tgt_type="list", timeout=_SOON) if self.hosts else {}
        away = self.utils["fleet_store.evacuated"](__opts__["cachedir"])
        found = {}
        for name in self.hosts:
            answer = answers.get(name)
            # A text for both where the minion could not even begin.
            pair = [answer.get(one) if isinstance(answer, Mapping) else answer for one in asked]
            found[name] = self.utils["fleet_plan.host"](name, *pair, name in away)
        return found

    def run(self, courses: Iterable[Any], parallel: int) -> list[dict[str, Any]]:
        """Follows courses to their ends."""
        with salt.client.get_local_client(mopts=__opts__) as client:
            returns = client.returners[f"{__opts__['master_job_cache']}.get_jid"]
            found: list[dict[str, Any]] = self.utils["fleet_jobs.run"](
                courses, parallel, self.utils["fleet_jobs.jobs"](client, returns)
            )
        return found

    def report(self, host: str, what: str, rows: list[dict[str, Any]], test: bool) -> dict[str, Any]:
        """Puts together what became of the guests of a host, and tells it."""
        found: dict[str, Any] = self.utils["fleet_moves.report"](host, what, rows, test)
        self.tell("end", host=host, text=found["text"], ok=found["ok"])
        return found


def _known() -> list[str]:
    """Returns the hosts of bootstrap pki."""
    try:
        lines = Path(_HOSTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    return sorted(line.split()[0] for line in lines if line.strip())


def _options(copy_disks: Any, timeout: Any, test: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """Checks what a migration is told besides."""
    __utils__["hypervisor_checks.nothing_else"]((), others)
    return {
        "copy_disks": __utils__["hypervisor_checks.flag"](copy_disks, "copy_disks"),
        "timeout": __utils__["hypervisor_checks.whole"](timeout, "timeout", 1, _LONGEST),
        "test": __utils__["hypervisor_checks.flag"](test, "test"),
    }


def _told(work: Callable[[], dict[str, Any]], show: Callable[[Any], str]) -> Any:
    """Returns what a function has found as data, or for a person at salt-run as a text; a failure is one sentence.

    Args:
        work: the function.
        show: makes a text of what it found.
    """
    try:
        found = work()
        good = found.get("ok") is not False
        text = show(found)
    except (SaltException, OSError) as error:
        found, good, text = {"ok": False, "text": str(error)}, False, str(error)
    if not good:
        __context__["retcode"] = 1
    if not str(__opts__.get("fun")).startswith("fleet.") or __opts__.get("output"):
        return found if good else found | {"retcode": 1}
    # Salt prints a text as it is, and takes its return code from a mapping alone.
    if good:
        return {"outputter": "txt", "data": text}
    return {"outputter": "nested", "data": {"refused" if "guests" not in found else "report": text, "retcode": 1}}


# ---- looks ----


def hosts() -> Any:
    """Describes all hosts.

    CLI example: ``salt-run fleet.hosts``, ``salt-run fleet.hosts --out=json``

    Returns:
        By minion id what ``fleet_plan.host`` says: ``live``, ``problems``, ``evacuated``, ``guests`` and figures.
    """
    return _told(lambda: _Act("fleet.hosts").look(), __utils__["fleet_tables.hosts"])


def guests() -> Any:
    """Lists the guests of all hosts.

    CLI example: ``salt-run fleet.guests``, ``salt-run fleet.guests --out=json``

    Returns:
        As :func:`hosts`; its ``guests`` are those of ``hypervisor.guests``.
    """
    return _told(lambda: _Act("fleet.guests").look(), __utils__["fleet_tables.guests"])


# ---- acts ----


def migrate(
    name: Any = None,
    target: Any = None,
    copy_disks: Any = False,
    timeout: Any = 600,
    test: Any = False,
    policy: Any = "spread",
    **others: Any,
) -> Any:
    """Moves a guest from wherever it is to a host, or to the one that suits it best.

    CLI example: ``salt-run fleet.migrate web hv2``, ``salt-run fleet.migrate web test=True``

    Args:
        name: the guest.
        target: minion id of the host; without it the hosts are tried in the order of the policy.
        copy_disks: as in ``hypervisor.migrate``.
        timeout: as in ``hypervisor.migrate``.
        test: only say whether and where to.
        policy: "spread" for the emptiest host that it fits on, "pack" for the fullest.
        others: refused. Salt would drop them.

    Returns:
        ``ok``, ``outcome``, ``text``, ``name``, ``uuid``, ``from``; where they are known ``to``, ``why``, ``state``,
        ``against`` (reasons by host) and figures of the migration.
    """
    return _told(
        lambda: _migrate(name, target, _options(copy_disks, timeout, test, others), policy),
        __utils__["fleet_tables.move"],
    )


def _migrate(name: Any, target: Any, options: dict[str, Any], policy: Any) -> dict[str, Any]:
    """Moves one guest."""
    act = _Act("fleet.migrate")
    checked = act.utils["hypervisor_checks.name"](name)
    order = act.utils["hypervisor_checks.choice"](policy, "policy", act.utils["fleet_plan.policies"]())
    wanted = None if target is None else act.host(target, "target")
    # Before it is looked for: a guest that moves is on two hosts.
    lock, held = act.lock("guests", checked)
    if lock is None:
        return {"ok": False, "name": checked, "outcome": "busy", "text": held}
    act.held[checked] = lock
    try:
        found = act.look()
        source, guest = _where(act, found, checked)
        if source == wanted:
            return {"ok": True, "name": checked, "outcome": "there", "text": f"{checked} is on {source} already"}
        (row,) = act.run([_course(act, found, (source, guest), wanted, options, order, _nothing)], 1)
    finally:
        lock.release()
    return {"ok": row["outcome"] in {"moved", "possible"}, **row}


def _nothing(step: str, target: str) -> None:
    """Notes nothing."""
    del step, target


def _where(act: _Act, found: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Returns the host of a guest, and the guest."""
    places = act.utils["fleet_plan.where"](found, name)
    silent = act.utils["fleet_plan.unknown"](found)
    if len(places) == 1:
        host, guest = places[0]
        return str(host), guest
    if places:
        listed = ", ".join(host for host, _ in places)
        raise SaltInvocationError(f"several hosts have a guest {name}: {listed}; hypervisor.migrate moves one of them")
    where = ", ".join(name for name in act.hosts if name not in silent) or "no host"
    more = f"; these did not tell their guests: {', '.join(silent)}" if silent else ""
    raise SaltInvocationError(f"there is no guest {name} (asked: {where}){more}")


def _course(
    act: _Act,
    found: dict[str, Any],
    place: tuple[str, dict[str, Any]],
    target: str | None,
    options: dict[str, Any],
    policy: str,
    note: Callable[[str, str], None],
) -> Any:
    """Returns the course of one guest to a host, or to the best."""
    source, guest = place
    need = act.utils["fleet_plan.need_of"](guest)

    def choose() -> dict[str, Any]:
        if target is not None:
            return {"hosts": [target], "why": "it was named", "against": {}}
        others = [there for name, there in found.items() if name != source]
        chosen: dict[str, Any] = act.utils["fleet_plan.choose"](others, need, policy)
        return chosen

    def noted(step: str, to: str) -> None:
        # Counted from the question on: others that are on their way choose meanwhile.
        if step in {"trying", "refused", "stays"}:
            act.utils["fleet_plan.taken"](found, to, need, 1 if step == "trying" else -1)
        if step not in {"trying", "refused"}:
            note(step, to)

    course = act.utils["fleet_moves.course"](guest, source, options, act.tell)
    return act.utils["fleet_moves.follow"](course, choose, lambda: act.lock("guests", guest["name"]), noted)


def evacuate(
    host: Any = None,
    parallel: Any = 2,
    copy_disks: Any = False,
    timeout: Any = 600,
    test: Any = False,
    shut_off: Any = False,
    **others: Any,
) -> Any:
    """Moves all guests that run on a host to others, each to the emptiest that it fits on.

    The host is chosen for no guest any more until it is restored. Repeated, it moves what is left.

    CLI example: ``salt-run fleet.evacuate hv1``, ``salt-run fleet.evacuate hv1 test=True``

    Args:
        host: minion id.
        parallel: how many guests move at a time, at most 16.
        copy_disks: as in ``hypervisor.migrate``.
        timeout: of each migration, as there.
        test: only say which guest can go where.
        shut_off: whether guests move too that do not run.
        others: refused.

    Returns:
        ``ok``, ``text``, ``host`` and ``guests``, a list of what :func:`migrate` returns for each.
    """
    return _told(
        lambda: _evacuate(host, parallel, _options(copy_disks, timeout, test, others), shut_off),
        __utils__["fleet_tables.moves"],
    )


def _evacuate(host: Any, parallel: Any, options: dict[str, Any], shut_off: Any) -> dict[str, Any]:
    """Evacuates a host."""
    act = _Act("fleet.evacuate")
    source = act.host(host, "host")
    at_once = act.utils["hypervisor_checks.whole"](parallel, "parallel", 1, _MOST_PARALLEL)
    everything = act.utils["hypervisor_checks.flag"](shut_off, "shut_off")
    cache = __opts__["cachedir"]

    def work() -> dict[str, Any]:
        found = act.look()
        if not found[source]["knows"]:
            raise SaltInvocationError(f"{source} does not tell its guests: {'; '.join(found[source]['problems'])}")
        if not options["test"]:
            act.utils["fleet_store.begin"](cache, source, act.user)
            found[source]["evacuated"] = True
        rows = act.utils["fleet_plan.leaving"](found[source], everything)

        def noting(guest: dict[str, Any]) -> Callable[[str, str], None]:
            def note(step: str, to: str) -> None:
                if step == "stays":
                    act.utils["fleet_store.forget"](cache, source, guest["uuid"])
                else:
                    act.utils["fleet_store.note"](cache, source, guest, to, step == "moving")

            return note

        courses = [_course(act, found, (source, row), None, options, "spread", noting(row)) for row in rows]
        return act.report(source, "evacuated", act.run(courses, at_once), options["test"])

    return _alone(act, source, work)


def _alone(act: _Act, host: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does something to a host to which nothing else is done meanwhile."""
    lock, held = act.lock("hosts", host)
    if lock is None:
        raise SaltInvocationError(f"{host} {held}")
    try:
        return work()
    finally:
        lock.release()


def restore(
    host: Any = None,
    parallel: Any = 2,
    copy_disks: Any = False,
    timeout: Any = 600,
    test: Any = False,
    **others: Any,
) -> Any:
    """Moves the guests back that an evacuated host had, wherever they are now, and ends its evacuation.

    CLI example: ``salt-run fleet.restore hv1``

    Args:
        host: minion id.
        parallel: how many guests move at a time, at most 16.
        copy_disks: as in ``hypervisor.migrate``.
        timeout: of each migration, as there.
        test: only say which guest can come back.
        others: refused.

    Returns:
        As :func:`evacuate`. A guest that no host has any more is ``forgotten``.
    """
    return _told(
        lambda: _restore(host, parallel, _options(copy_disks, timeout, test, others)), __utils__["fleet_tables.moves"]
    )


def _restore(host: Any, parallel: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Restores a host."""
    act = _Act("fleet.restore")
    target = act.host(host, "host")
    at_once = act.utils["hypervisor_checks.whole"](parallel, "parallel", 1, _MOST_PARALLEL)
    cache = __opts__["cachedir"]

    def work() -> dict[str, Any]:
        known = act.utils["fleet_store.record"](cache, target)
        if known is None:
            return {"ok": True, "text": f"{target} was not evacuated", "host": target, "guests": []}
        found = act.look()
        courses, ended, rows = [], [], []
        for uuid, guest in known["guests"].items():
            verdict, place = act.utils["fleet_plan.back"](found, target, uuid)
            if verdict == "moves":
                courses.append(
                    _course(act, found, place, target, options, "spread", _forgetting(act, cache, target, uuid))
                )
            elif verdict == "waits":
                text = f"is on none of the hosts that answer; it went to {guest['to']}"
                rows.append({"name": guest["name"], "uuid": uuid, "outcome": "unknown", "text": text})
            else:
                ended.append(uuid)
                if verdict == "gone":
                    text = f"is on no host any more; it went to {guest['to']}"
                    rows.append({"name": guest["name"], "uuid": uuid, "outcome": "forgotten", "text": text})
        if not options["test"]:
            for uuid in ended:
                act.utils["fleet_store.forget"](cache, target, uuid)
        rows = act.run(courses, at_once) + rows
        report = act.report(target, "restored", rows, options["test"])
        if report["ok"] and not options["test"]:
            act.utils["fleet_store.end"](cache, target)
        return report

    return _alone(act, target, work)


def _forgetting(act: _Act, cache: str, host: str, uuid: str) -> Callable[[str, str], None]:
    """Returns what notes that a guest is back."""

    def note(step: str, to: str) -> None:
        del to
        if step == "moved":
            act.utils["fleet_store.forget"](cache, host, uuid)

    return note


def create(name: Any = None, host: Any = None, policy: Any = "spread", test: Any = False, **declaration: Any) -> Any:
    """Makes a guest on the host that suits it best, or on one that is named.

    CLI example: ``salt-run fleet.create web cpu=2 mem=2048 disks='[{"name": "system", "size": 8192}]' policy=pack``

    Args:
        name: the guest; no host may have one of that name.
        host: minion id; without it the policy chooses.
        policy: "spread" for the emptiest host that it fits on, "pack" for the fullest.
        test: only say which host it would be.
        declaration: as in ``hypervisor.create``.

    Returns:
        ``ok``, ``text``, ``name``, ``host``, ``why``, ``against`` (reasons by host) and ``guest``, as
        ``hypervisor.create`` returns it.
    """
    return _told(lambda: _create(name, host, policy, test, declaration), __utils__["fleet_tables.created"])


def _create(name: Any, host: Any, policy: Any, test: Any, declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a guest."""
    act = _Act("fleet.create")
    wanted = act.utils["hypervisor_checks.without_salts_own"](declaration)
    checked = act.utils["hypervisor_checks.name"](name)
    order = act.utils["hypervisor_checks.choice"](policy, "policy", act.utils["fleet_plan.policies"]())
    only = act.utils["hypervisor_checks.flag"](test, "test")
    named = None if host is None else act.host(host, "host")
    lock, held = act.lock("guests", checked)
    if lock is None:
        raise SaltInvocationError(f"{checked} {held}")
    try:
        found = act.look()
        for at, _ in act.utils["fleet_plan.where"](found, checked):
            raise SaltInvocationError(f"{at} has a guest {checked} already")
        need = act.utils["fleet_plan.need"](wanted)
        chosen = act.utils["fleet_plan.choose"](found.values(), need, order)
        if named is not None:
            chosen = {"hosts": [named], "why": "it was named", "against": {}}
        base = {"name": checked, "against": chosen["against"]}
        if not chosen["hosts"]:
            return {"ok": False, "text": f"no host takes {checked}; nothing was made", **base}
        best = chosen["hosts"][0]
        base |= {"host": best, "why": chosen["why"]}
        if only:
            return {"ok": True, "text": f"{checked} would be made on {best}: {chosen['why']}", **base}
        act.tell("making", guest=checked, host=best, why=chosen["why"])
        (answer,) = act.run([act.utils["fleet_moves.ask"](best, "hypervisor.create", {"name": checked, **wanted})], 1)
        row: dict[str, Any] = act.utils["fleet_moves.made"](checked, best, chosen["why"], answer)
        act.tell("made" if row["ok"] else "failed", guest=checked, host=best, text=row["text"])
        return base | row
    finally:
        lock.release()


# ---- clusters ----


def cluster(tgt: str = "*", tgt_type: str = "glob") -> Any:
    """Describes the clusters that hosts form: nodes, quorum, fencing, resources and where, failures with the remedy.

    CLI example: ``salt-run fleet.cluster``, ``salt-run fleet.cluster 'hv*' --out=json``

    Args:
        tgt: which minions are asked.
        tgt_type: how that is meant, such as "glob" or "list".

    Returns:
        By the cluster's name ``quorate``, ``votes``, ``votes_needed``, ``nodes``, ``fencing``, ``resources``,
        ``failures``, ``problems``, ``asked`` (the minion whose view it is) and ``minions`` (those that are in it).
    """
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(tgt, "hypervisor.cluster", tgt_type=tgt_type, timeout=_PATIENCE)
    found = __utils__["fleet_clusters.merged"](answers)
    if __opts__.get("fun") == "fleet.cluster" and not __opts__.get("output"):
        return {"outputter": "txt", "data": __utils__["fleet_clusters.table"](found)}
    return found

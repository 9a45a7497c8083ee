"""All hosts together, as the master sees them, and what moves between them.

``salt-run`` prints tables for people, and data with ``--out``; with ``--async`` it returns the job's id at once. What
moves guests holds a lock for each of them, fires what happens as events ``hypervisor/fleet/<jid>/<step>``, and can be
repeated.

The hosts are those of ``bootstrap pki``. Who comes through salt-api may use those of their roles alone, which is judged
here: the arguments of a runner name hosts, and Salt's own lists of who may call what know nothing of them. The work is
in ``_utils/fleet_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import salt.client
from salt.exceptions import SaltException, SaltInvocationError

__opts__: dict[str, Any]
__utils__: dict[str, Any]
__context__: dict[Any, Any]

_SIBLINGS = (
    "fleet_callers.hosts",
    "fleet_callers.trusted",
    "fleet_diary.begin",
    "fleet_drift.course",
    "fleet_drift.report",
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
_LONGEST = 24 * 3600
_MOST_PARALLEL = 16


def _options(copy_disks: Any, timeout: Any, test: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """Checks what a migration is told besides."""
    __utils__["hypervisor_checks.nothing_else"]((), others)
    return {
        "copy_disks": __utils__["hypervisor_checks.flag"](copy_disks, "copy_disks"),
        "timeout": __utils__["hypervisor_checks.whole"](timeout, "timeout", 1, _LONGEST),
        "test": __utils__["hypervisor_checks.flag"](test, "test"),
    }


def _told(function: str, work: Callable[[Any], dict[str, Any]], show: Callable[[Any], str]) -> Any:
    """Returns what a function has found as data, or for a person at salt-run as a text; a failure is one sentence.

    Args:
        function: its name.
        work: what it does, as an act (``fleet_act``).
        show: makes a text of what it found.
    """
    # Salt puts both into the globals of a runner that it starts.
    who = {key: str(globals().get(f"__{key}__") or default) for key, default in (("jid", "none"), ("user", "UNKNOWN"))}
    # Called back by a utility, this module would have that one's __utils__, which are none.
    utils = {name: __utils__[name] for name in _SIBLINGS}
    act = None
    try:
        act = __utils__["fleet_act.act"](dict(__opts__), utils, {"function": function, **who}, _HOSTS)
        found = work(act)
        good = found.get("ok") is not False
        text = show(found)
        act.ends(good, str(found.get("text", "")))
    except (SaltException, OSError) as error:
        found, good, text = {"ok": False, "text": str(error)}, False, str(error)
        if act is not None:
            act.ends(False, text)
    finally:
        if act is not None:
            act.close()
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
    return _told("fleet.hosts", lambda act: dict(act.look()), __utils__["fleet_tables.hosts"])


def guests() -> Any:
    """Lists the guests of all hosts.

    CLI example: ``salt-run fleet.guests``, ``salt-run fleet.guests --out=json``

    Returns:
        As :func:`hosts`; its ``guests`` are those of ``hypervisor.guests``.
    """
    return _told("fleet.guests", lambda act: dict(act.look()), __utils__["fleet_tables.guests"])


def drift(host: Any = None, parallel: Any = 4, **others: Any) -> Any:
    """Says what hosts differ from their declaration: asks each for a highstate that changes nothing.

    CLI example: ``salt-run fleet.drift``, ``salt-run fleet.drift hv1 --out=json``

    Args:
        host: minion id; without it all of the caller's hosts.
        parallel: how many hosts are asked at a time, at most 16.
        others: refused.

    Returns:
        ``ok`` (whether every host has answered), ``same``, ``text`` and ``hosts``, a list with ``host``, ``outcome``
        ("same", "differs", "fails" or "unknown"), ``text``, ``total`` and ``states``, those that would change or fail.
    """
    return _told("fleet.drift", lambda act: _drift(act, host, parallel, others), __utils__["fleet_tables.drift"])


def _drift(act: Any, host: Any, parallel: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """Compares hosts with their declaration."""
    __utils__["hypervisor_checks.nothing_else"]((), others)
    at_once = act.utils["hypervisor_checks.whole"](parallel, "parallel", 1, _MOST_PARALLEL)
    named = None if host is None else act.host(host, "host")
    act.begins(host=named, test=True)
    courses = [act.utils["fleet_drift.course"](name) for name in ([named] if named else act.hosts)]
    report: dict[str, Any] = act.utils["fleet_drift.report"](act.run(courses, at_once))
    return report


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
        "fleet.migrate",
        lambda act: _migrate(act, name, target, _options(copy_disks, timeout, test, others), policy),
        __utils__["fleet_tables.move"],
    )


def _migrate(act: Any, name: Any, target: Any, options: dict[str, Any], policy: Any) -> dict[str, Any]:
    """Moves one guest."""
    checked = act.utils["hypervisor_checks.name"](name)
    order = act.utils["hypervisor_checks.choice"](policy, "policy", act.utils["fleet_plan.policies"]())
    wanted = None if target is None else act.host(target, "target")
    act.begins(guest=checked, host=wanted, test=options["test"])
    # Before it is looked for: a guest that moves is on two hosts.
    lock, held = act.lock("guests", checked)
    if lock is None:
        return {"ok": False, "name": checked, "outcome": "busy", "text": held}
    act.held[checked] = lock
    try:
        found = act.look()
        source, guest = act.where(found, checked)
        if source == wanted:
            return {"ok": True, "name": checked, "outcome": "there", "text": f"{checked} is on {source} already"}
        (row,) = act.run([act.course(found, (source, guest), wanted, options, order, _nothing)], 1)
    finally:
        lock.release()
    return {"ok": row["outcome"] in {"moved", "possible"}, **row}


def _nothing(step: str, target: str) -> None:
    """Notes nothing."""
    del step, target


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

    fleet.create, migrate and evacuate choose the host for no guest any more until it is restored; a cluster still may,
    for guests with ``ha``. Repeated, it moves what is left.

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
        "fleet.evacuate",
        lambda act: _evacuate(act, host, parallel, _options(copy_disks, timeout, test, others), shut_off),
        __utils__["fleet_tables.moves"],
    )


def _evacuate(act: Any, host: Any, parallel: Any, options: dict[str, Any], shut_off: Any) -> dict[str, Any]:
    """Evacuates a host."""
    source = act.host(host, "host")
    at_once = act.utils["hypervisor_checks.whole"](parallel, "parallel", 1, _MOST_PARALLEL)
    everything = act.utils["hypervisor_checks.flag"](shut_off, "shut_off")
    act.begins(host=source, test=options["test"])

    def work() -> dict[str, Any]:
        found = act.look()
        if not found[source]["knows"]:
            raise SaltInvocationError(f"{source} does not tell its guests: {'; '.join(found[source]['problems'])}")
        if not options["test"]:
            act.utils["fleet_store.begin"](act.cache, source, act.user)
            found[source]["evacuated"] = True
        rows = act.utils["fleet_plan.leaving"](found[source], everything)
        for row in rows:
            act.note("waiting", guest=row["name"], **{"from": source})

        def noting(guest: dict[str, Any]) -> Callable[[str, str], None]:
            def note(step: str, to: str) -> None:
                if step == "stays":
                    act.utils["fleet_store.forget"](act.cache, source, guest["uuid"])
                else:
                    act.utils["fleet_store.note"](act.cache, source, guest, to, step == "moving")

            return note

        courses = [act.course(found, (source, row), None, options, "spread", noting(row)) for row in rows]
        report: dict[str, Any] = act.report(source, "evacuated", act.run(courses, at_once), options["test"])
        return report

    return dict(act.alone(source, work))


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
        "fleet.restore",
        lambda act: _restore(act, host, parallel, _options(copy_disks, timeout, test, others)),
        __utils__["fleet_tables.moves"],
    )


def _restore(act: Any, host: Any, parallel: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Restores a host."""
    target = act.host(host, "host")
    at_once = act.utils["hypervisor_checks.whole"](parallel, "parallel", 1, _MOST_PARALLEL)
    act.begins(host=target, test=options["test"])

    def work() -> dict[str, Any]:
        known = act.utils["fleet_store.record"](act.cache, target)
        if known is None:
            return {"ok": True, "text": f"{target} was not evacuated", "host": target, "guests": []}
        found = act.look()
        courses, rows = act.returning(found, target, known["guests"], options)
        rows = act.run(courses, at_once) + rows
        report: dict[str, Any] = act.report(target, "restored", rows, options["test"])
        if report["ok"] and not options["test"]:
            act.utils["fleet_store.end"](act.cache, target)
        return report

    return dict(act.alone(target, work))


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
    return _told(
        "fleet.create",
        lambda act: _create(act, name, host, policy, test, declaration),
        __utils__["fleet_tables.created"],
    )


def _create(act: Any, name: Any, host: Any, policy: Any, test: Any, declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a guest."""
    wanted = act.utils["hypervisor_checks.without_salts_own"](declaration)
    checked = act.utils["hypervisor_checks.name"](name)
    order = act.utils["hypervisor_checks.choice"](policy, "policy", act.utils["fleet_plan.policies"]())
    only = act.utils["hypervisor_checks.flag"](test, "test")
    named = None if host is None else act.host(host, "host")
    act.begins(guest=checked, host=named, test=only)
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
            act.note("refused", guest=checked, against=chosen["against"])
            return {"ok": False, "text": f"no host takes {checked}; nothing was made", **base}
        best = chosen["hosts"][0]
        base |= {"host": best, "why": chosen["why"]}
        if only:
            act.note("possible", guest=checked, host=best, why=chosen["why"], against=chosen["against"])
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
        ``guests``, ``failures``, ``problems``, ``asked`` (the minion whose view it is) and ``minions`` (those in it).
    """
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(tgt, "hypervisor.cluster", tgt_type=tgt_type, timeout=_PATIENCE)
    found = __utils__["fleet_clusters.merged"](answers)
    if __opts__.get("fun") == "fleet.cluster" and not __opts__.get("output"):
        return {"outputter": "txt", "data": __utils__["fleet_clusters.table"](found)}
    return found

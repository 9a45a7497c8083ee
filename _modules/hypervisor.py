"""This host and its guests: what there is, what it uses, and what operators do with it.

The functions are offered to operators through salt-api, so every argument is taken for hostile: types and
characters are checked against allow-lists before anything is started, arguments that a function does not have
are refused, and an error is one clear message. Results are plain values whose keys end with their unit
(``_mib``, ``_bytes``, ``_seconds``, ``_ms``); ``docs/guests.rst`` describes them.

The functions are thin: reading is in ``_utils/hypervisor_guests.py`` and ``hypervisor_host.py``, acting in
``hypervisor_actions.py``, migration in ``hypervisor_migrate.py``.
"""

from __future__ import annotations

import os
from typing import Any

import salt.loader
from salt.exceptions import CommandExecutionError, SaltInvocationError

__salt__: dict[str, Any]
__utils__: dict[str, Any]
__opts__: dict[str, Any]
__context__: dict[Any, Any]

# What the utilities need of one another: the loader gives them no __utils__ of their own.
_SIBLINGS = (
    "cluster_derived.move_seconds",
    "cluster_guests.definition",
    "cluster_guests.is_defined",
    "cluster_pace.turn",
    "cluster_status.facts",
    "cluster_status.read",
    "cluster_tools.active",
    "cluster_tools.listed",
    "cluster_tools.monitor",
    "cluster_tools.quorum",
    "cluster_tools.run",
    "cluster_tools.watchdog",
    "guest_declared.disks",
    "guest_declared.seed_disk",
    "guest_domain.parse",
    "guest_domain.seed_path",
    "guest_storage.chain",
    "guest_storage.format_problem",
    "guest_storage.layers",
    "guest_storage.marker",
    "hypervisor_actions.state",
    "hypervisor_actions.used_by_others",
    "hypervisor_checks.shown",
    "hypervisor_cluster.against",
    "hypervisor_cluster.member",
    "hypervisor_cluster.move",
    "hypervisor_cluster.whereabouts",
    "hypervisor_guests.names",
    "hypervisor_guests.resolve",
    "hypervisor_host.certificates",
    "hypervisor_obstacles.classified",
    "hypervisor_obstacles.covering",
    "hypervisor_obstacles.here",
    "hypervisor_obstacles.identity",
    "hypervisor_obstacles.is_shared",
    "hypervisor_obstacles.memory",
    "hypervisor_obstacles.mounted",
    "hypervisor_obstacles.networks",
    "hypervisor_obstacles.reason",
    "hypervisor_obstacles.resting",
    "hypervisor_obstacles.space",
    "hypervisor_obstacles.target",
    "hypervisor_records.away",
    "hypervisor_records.moving",
    "hypervisor_records.read",
    "hypervisor_records.remove",
    "hypervisor_records.settle",
    "hypervisor_records.write",
    "hypervisor_storage.judge",
    "hypervisor_storage.pool_names",
    "hypervisor_storage.target",
    "hypervisor_virsh.session",
    "hypervisor_xml.beside",
    "hypervisor_xml.capabilities",
    "hypervisor_xml.columns",
    "hypervisor_xml.cpu",
    "hypervisor_xml.domstats",
    "hypervisor_xml.freepages",
    "hypervisor_xml.guest",
    "hypervisor_xml.lines",
    "hypervisor_xml.listed",
    "hypervisor_xml.network",
    "hypervisor_xml.pairs",
    "hypervisor_xml.pool",
    "hypervisor_xml.state",
    "libvirt_tools.run",
    "network_tool.pending",
)
_MOST_VCPUS = 4096
_MOST_MIB = 16 * 1024 * 1024
_LONGEST = 24 * 3600
# QEMU's own choice, where qemu.conf says nothing else.
_FIRST_PORT = 49152


def _check(kind: str, *arguments: Any) -> Any:
    """Checks one argument with ``hypervisor_checks``."""
    return __utils__[f"hypervisor_checks.{kind}"](*arguments)


def _utils() -> dict[str, Any]:
    """Returns the utilities' functions by name, to be handed to a utility."""
    return {name: __utils__[name] for name in _SIBLINGS}


def _act(verb: str, name: Any, args: Any, kwargs: Any, timeout: Any = 0) -> dict[str, Any]:
    """Does a verb to one guest after its arguments have been checked."""
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    patience = _check("whole", timeout, "timeout", 0, _LONGEST)
    if __utils__["hypervisor_cluster.member"](_utils(), checked):
        # A node of Corosync is called as its host calls itself.
        here = os.uname().nodename
        done: dict[str, Any] | None = __utils__["hypervisor_cluster.act"](_utils(), checked, verb, patience, here)
        if done is not None:
            return done
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_actions.act"](virsh, _utils(), checked, verb, patience)
    return found


def _nodes() -> dict[str, str]:
    """Returns the names of this cluster's nodes by minion id, as pillar has them, and all that Pacemaker knows."""
    nodes = __salt__["formula.config"]("cluster")["nodes"]
    names = {minion: spec.get("name", minion) for minion, spec in nodes.items() if spec.get("ensure") != "absent"}
    found: dict[str, str] = __utils__["hypervisor_cluster.nodes"](_utils(), names)
    return found


def host_info(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Describes this host.

    CLI example: ``salt hv1 hypervisor.host_info``

    Returns:
        ``minion``, ``hostname``, ``host_uuid``, ``uptime_seconds``, ``load``, ``cpu``, ``numa``, ``memory``,
        ``hugepages``, ``domain_types`` (those that work), ``versions``, ``pools``, ``networks``, ``bridges``,
        ``guests`` (counts and sums), ``certificates`` (days left of those for libvirt and QEMU), ``reboot``,
        ``network_change`` (whether a change of interfaces waits for its confirmation), ``cluster`` (as
        :func:`cluster`), ``migrated`` (guests that went away) and ``problems``, what could not be read and why.
    """
    _check("nothing_else", args, kwargs)
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_host.everything"](virsh, _utils(), __opts__["id"])
    return found


def cluster(*args: Any, **kwargs: Any) -> dict[str, Any] | None:
    """Describes the cluster that this host is in, as this host sees it.

    CLI example: ``salt hv1 hypervisor.cluster``; ``salt-run fleet.cluster`` asks all hosts.

    Returns:
        ``name``, ``running``, ``quorate``, ``votes``, ``votes_needed``, ``nodes``, ``fencing``, ``resources``,
        ``guests``, ``failures`` (with a ``remedy`` each) and ``problems``; None for a host that is in no cluster.
    """
    _check("nothing_else", args, kwargs)
    found: dict[str, Any] | None = __utils__["cluster_status.facts"](_utils())
    return found


def guests(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Describes all guests of this host.

    CLI example: ``salt hv1 hypervisor.guests``

    Returns:
        ``guests``, a list as :func:`guest` describes each, sorted by name, and ``migrated``, a list of those that
        were migrated away from here (``name``, ``uuid``, ``to``, ``at``).
    """
    _check("nothing_else", args, kwargs)
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_guests.everything"](virsh, _utils())
    return found


def guest(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Describes one guest.

    CLI example: ``salt hv1 hypervisor.guest web``

    Args:
        name: the guest.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns:
        ``name``, ``uuid``, ``title``, ``state``, ``autostart``, ``persistent``, ``managed_save``, ``domain_type``,
        ``architecture``, ``machine``, ``firmware``, ``boot_files``, ``vcpus``, ``vcpus_max``, ``memory_mib``,
        ``memory_max_mib``, ``hugepages``, ``hugepages_kib``, ``disks``, ``nics``, ``graphics``, ``serials``,
        ``consoles``, ``host_devices``, ``filesystems``, ``agent_connected`` and ``cluster`` (whether the
        cluster runs it).

    Raises:
        CommandExecutionError: there is no such guest here; the message says where it went if that is known.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_guests.one"](virsh, _utils(), checked)
    return found


def stats(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns what every guest has used, from one question to libvirt; all but sizes are sums since its start.

    CLI example: ``salt hv1 hypervisor.stats``

    Returns:
        ``at_seconds`` (since 1970) and ``guests``, a list of ``name``, ``uuid``, ``state``, ``vcpus``,
        ``cpu_seconds``, ``cpu_user_seconds``, ``cpu_system_seconds``, ``memory_bytes``, ``memory_max_bytes``,
        ``memory_resident_bytes``, ``memory_unused_bytes``, ``memory_usable_bytes``, ``disks`` and ``nics``. None
        stands for what libvirt or the guest does not tell.
    """
    _check("nothing_else", args, kwargs)
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_guests.stats"](virsh, _utils())
    return found


def start(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Starts a guest; one that runs is left alone.

    CLI example: ``salt hv1 hypervisor.start web``

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``; of a guest of the cluster ``node`` besides.
    """
    return _act("start", name, args, kwargs)


def shutdown(name: Any = None, timeout: Any = 60, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Asks a guest to shut down and waits for it; a guest that ignores the request runs on.

    CLI example: ``salt hv1 hypervisor.shutdown web timeout=120``

    Args:
        name: the guest.
        timeout: seconds to wait, 0 for not at all.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``; of a guest of the cluster ``node`` besides.
    The job counts as failed if the guest still runs after that time.
    """
    found = _act("shutdown", name, args, kwargs, timeout)
    if timeout and found["state"] not in {"shut_off", "gone"}:
        __context__["retcode"] = 1
    return found


def reboot(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Asks a running guest to reboot, and does not wait for it.

    CLI example: ``salt hv1 hypervisor.reboot web``

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.
    """
    return _act("reboot", name, args, kwargs)


def power_off(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Ends a guest at once, as if its power were cut. What it has not written is lost.

    CLI example: ``salt hv1 hypervisor.power_off web``

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``; the state is "gone" if the guest had no
    definition that outlives it. Of a guest of the cluster it returns ``node`` besides.
    """
    return _act("power_off", name, args, kwargs)


def suspend(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Halts the processors of a running guest; its memory stays.

    CLI example: ``salt hv1 hypervisor.suspend web``

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.
    """
    return _act("suspend", name, args, kwargs)


def resume(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Continues a suspended guest.

    CLI example: ``salt hv1 hypervisor.resume web``

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.
    """
    return _act("resume", name, args, kwargs)


def resize(name: Any = None, cpu: Any = None, mem: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Gives a guest other processors or memory: at once where libvirt and the guest can, else from its next start.

    CLI example: ``salt hv1 hypervisor.resize web cpu=4 mem=4096``

    Args:
        name: the guest.
        cpu: number of processors.
        mem: memory in MiB.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns:
        ``name``, ``uuid`` and, for each that was given, ``vcpus`` or ``memory_mib`` with ``before``, ``after``,
        ``applied`` ("now", "next_start" or "already") and ``why``.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    cpus = None if cpu is None else _check("whole", cpu, "cpu", 1, _MOST_VCPUS)
    mib = None if mem is None else _check("whole", mem, "mem", 1, _MOST_MIB)
    if cpus is None and mib is None:
        raise SaltInvocationError("say what changes: cpu, a number of processors, or mem, memory in MiB")
    __utils__["hypervisor_cluster.refuse"](_utils(), checked, "resize")
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_actions.resize"](virsh, _utils(), checked, cpus, mib)
    return found


def _loaded(loader: Any) -> Any:
    """Returns the loader behind what Salt gives a module, to be handed to another loader."""
    value = getattr(loader, "value", None)
    return value() if callable(value) else loader


def create(name: Any = None, *args: Any, **declaration: Any) -> dict[str, Any]:
    """Makes a guest, as the states ``guest.running``, ``guest.stopped`` and ``guest.defined`` do.

    CLI example: ``salt hv1 hypervisor.create web cpu=2 mem=2048 'disks=[{"name": "system", "size": 8192}]'``

    Args:
        name: the guest; there must be none of that name.
        args: refused.
        declaration: what it is to be, with the keys of pillar ``libvirt:guests`` (docs/pillar.rst). ``ensure`` is
            running (the default), stopped or defined. Files of the host must lie in the folder of disk images or in
            a storage pool.

    Returns:
        ``name``, ``comment`` and ``guest``, as :func:`guest` describes it.

    Raises:
        CommandExecutionError: it could not be made, with every error of the declaration, or with what failed.
    """
    _check("nothing_else", args, {})
    wanted = _check("without_salts_own", declaration)
    checked = _check("name", name)
    ensure = _check("choice", wanted.pop("ensure", "running"), "ensure", ("running", "stopped", "defined"))
    __utils__["hypervisor_create.bounded"](wanted)
    if wanted.get("ha"):
        raise SaltInvocationError("ha: the cluster's guests are declared in pillar libvirt:guests, for all nodes")
    errors = __salt__["formula.judge"]("libvirt", "guest", wanted, checked)
    if errors:
        raise SaltInvocationError("nothing was made:\n" + "\n".join(errors))
    __utils__["hypervisor_cluster.refuse"](_utils(), checked, "create")
    images = __salt__["formula.config"]("kvm")["images"]["path"]
    with __utils__["hypervisor_virsh.session"]() as virsh:
        __utils__["hypervisor_create.check"](virsh, _utils(), checked, wanted, images)
        # Not through state.single: that would take its own arguments, such as onlyif, out of the declaration.
        states = salt.loader.states(__opts__, _loaded(__salt__), _loaded(__utils__), None)
        done = states[f"guest.{ensure}"](checked, **wanted)
        if done["result"] is not True:
            raise CommandExecutionError(done["comment"])
        found = __utils__["hypervisor_guests.one"](virsh, _utils(), checked)
    return {"name": checked, "comment": done["comment"], "guest": found}


def delete(name: Any = None, disks: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Deletes a guest that is shut off.

    CLI example: ``salt hv1 hypervisor.delete web disks=keep``

    Args:
        name: the guest.
        disks: "keep" or "delete" its disks; must be said for a guest that has any. Only volumes of an active
            storage pool and files in the folder of disk images are deleted, all of them or none, and only if no
            other guest uses them.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns ``name``, ``uuid``, ``disks_deleted`` and ``disks_kept``, both lists of paths.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    fate = None if disks is None else _check("choice", disks, "disks", ("keep", "delete"))
    images = __salt__["formula.config"]("kvm")["images"]["path"]
    __utils__["hypervisor_cluster.refuse"](_utils(), checked, "delete")
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_actions.delete"](virsh, _utils(), checked, fate, images)
    return found


def migrate(
    name: Any = None,
    target: Any = None,
    copy_disks: Any = False,
    timeout: Any = 600,
    test: Any = False,
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """Moves a guest to another host, encrypted, after every check has passed; a running guest runs on.

    CLI example: ``salt hv1 hypervisor.migrate web hv2``

    Args:
        name: the guest. One that is shut off moves too, with its definition alone.
        target: minion id of the other host, one of ``libvirt:tls:allowed_hosts``.
        copy_disks: whether disks are copied that the hosts do not share. Shared ones never are, and nothing on the
            target is overwritten.
        timeout: seconds after which the migration is called off; the guest then runs on here. One that the cluster runs
            moves on, and nobody waits for it any more.
        test: only say whether it is possible.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns:
        ``name``, ``uuid``, ``from``, ``to``, ``state``, ``seconds`` (all), ``check_seconds``, ``migration_seconds``,
        ``downtime_ms``, ``transferred_bytes``, ``memory_bytes`` (both without disks), ``iterations``,
        ``copied_disks`` and ``warnings``. With ``test``: ``name``, ``uuid``, ``from``, ``to``, ``possible`` and
        ``reasons``, a list of ``check`` and ``text``.

    Raises:
        CommandExecutionError: it stays; the message names every reason, or what failed and how the guest is now.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    host = _check("minion", target)
    options = {
        "copy_disks": _check("flag", copy_disks, "copy_disks"),
        "timeout": _check("whole", timeout, "timeout", 1, _LONGEST),
        "test": _check("flag", test, "test"),
    }
    allowed = __salt__["formula.config"]("libvirt")["tls"]["allowed_hosts"]
    options["nodes"] = _nodes() if __utils__["hypervisor_cluster.member"](_utils(), checked) else None
    options["port"] = __salt__["formula.config"]("kvm")["qemu_conf"].get("migration_port_min", _FIRST_PORT)
    found: dict[str, Any] = __utils__["hypervisor_migrate.run"](
        _utils(), checked, __opts__["id"], host, allowed, options
    )
    return found


def cancel(name: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Calls off the migration of a guest away from this host, whoever has begun it; the guest runs on here.

    CLI example: ``salt hv1 hypervisor.cancel web``

    Args:
        name: the guest.
        args: refused.
        kwargs: refused, but for what Salt itself adds to a job.

    Returns ``name``, ``uuid``, ``changed``, ``state_before`` and ``state``.

    Raises:
        CommandExecutionError: no migration of it from here has begun, or it has ended already.
    """
    _check("nothing_else", args, kwargs)
    checked = _check("name", name)
    __utils__["hypervisor_cluster.refuse"](_utils(), checked, "cancel")
    with __utils__["hypervisor_virsh.session"]() as virsh:
        found: dict[str, Any] = __utils__["hypervisor_actions.cancel"](virsh, _utils(), checked)
    return found

"""Moves a guest to another host: peer to peer, always encrypted, and only after every check has passed.

Three virsh stay connected for the time of a migration: one to this host, one to the target, and one that migrates,
so that the first can call it off. They connect at the same time and the checks are asked of connected ones, because
the time from the request to the end is what an operator waits for.

The record that the guest went away is written before it goes: if this host loses its power in the middle, no state
starts a second copy. It is removed if the guest stays.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Any]
Reason = dict[str, str]

_CONNECT_SECONDS = 15.0
_PORT_SECONDS = 2.0
_ABORT_SECONDS = 60.0
_ABORT_PAUSE = 2.0
# Where a guest may be that is not known to be here.
_AWAY = frozenset({"gone", "unreachable"})
_LATE = "it had not ended after"


class Move:
    """One migration: who, from where, to where, and what has been found out about it.

    Attributes:
        name: of the guest.
        here: minion id of this host.
        target: minion id of the other host.
        uuid: of the guest.
        guest: the guest as ``hypervisor_xml.guest`` describes it, with its ``state``, ``persistent``, ``autostart``.
        copies: the disks to copy, see ``hypervisor_storage.judge``.
        clustered: whether the cluster runs it, whose nodes share its disks.
    """

    def __init__(self, utils: Utils, name: str, here: str, target: str) -> None:
        """Takes the siblings' functions, the guest's name and both minion ids."""
        self.utils, self.name, self.here, self.target = utils, name, here, target
        self.uri = f"qemu+tls://{target}/system"
        self.uuid = ""
        self.guest: dict[str, Any] = {}
        self.copies: list[dict[str, Any]] = []
        self.storage: Any = None
        self.cpu = ("", "")
        self.clustered = False

    def look(self, virsh: Any) -> list[Reason]:
        """Reads the guest; returns what keeps it here that this host knows by itself.

        Raises:
            CommandExecutionError: there is no such guest.
        """
        self.uuid = self.utils["hypervisor_guests.resolve"](virsh, self.utils, self.name)
        text = virsh.ask("dumpxml", self.uuid)
        self.guest = self.utils["hypervisor_xml.guest"](text)
        self.cpu = self.utils["hypervisor_xml.cpu"](text)
        self.guest["state"] = self.utils["hypervisor_actions.state"](virsh, self.uuid)
        read = self.utils["hypervisor_xml.lines"]
        for key in ("persistent", "autostart"):
            self.guest[key] = self.uuid in read(virsh.ask("list", "--all", "--uuid", f"--{key}"))
        snapshots = read(virsh.ask("snapshot-list", self.uuid, "--name"))
        job = ""
        if self.guest["state"] in {"running", "paused"}:
            printed, _ = virsh.attempt("domjobinfo", self.uuid)
            job = self.utils["hypervisor_xml.pairs"](printed).get("job type", "")
        certificates = self.utils["hypervisor_host.certificates"](dt.datetime.now(tz=dt.timezone.utc))
        found: list[Reason] = self.utils["hypervisor_obstacles.here"](self.guest, certificates, snapshots, job)
        return found + (self._resting(virsh, text) if self.guest["state"] == "shut_off" else [])

    def _resting(self, virsh: Any, text: str) -> list[Reason]:
        """Judges what a guest that is shut off has on this host besides its definition and disks."""
        variables, tpm = self.utils["hypervisor_xml.beside"](text)
        kind = self.utils["hypervisor_obstacles.mounted"](variables, Path("/proc/mounts").read_text(encoding="utf-8"))
        # A guest that has never run has none yet.
        if not variables or not Path(variables).exists() or self.utils["hypervisor_obstacles.is_shared"](kind):
            variables = ""
        saved = virsh.ask("list", "--all", "--uuid", "--with-managed-save")
        found: list[Reason] = self.utils["hypervisor_obstacles.resting"](
            variables, tpm, self.uuid in self.utils["hypervisor_xml.lines"](saved)
        )
        return found

    def judge(self, virsh: Any, there: Any, copy_disks: bool, port: int) -> list[Reason]:
        """Asks the target; returns what keeps the guest here.

        Args:
            virsh: connected to this host.
            there: connected, or about to be, to the target; its capabilities have been asked for already.
            copy_disks: whether disks that the hosts do not share are copied.
            port: the first of the ports that QEMU listens on for a migration.
        """
        check = self.utils["hypervisor_obstacles.reason"]
        try:
            offered = there.answer(_CONNECT_SECONDS)
        except CommandExecutionError as error:
            kind = self.utils["hypervisor_obstacles.classified"](str(error))
            return [check("certificate" if kind == "certificate" else "port", f"{self.target} is not reached: {error}")]
        if offered is None:
            return [check("port", f"{self.target} did not answer on port 16514 within {_CONNECT_SECONDS:.0f} s")]
        read = self.utils["hypervisor_xml.capabilities"]
        uuids = (read(virsh.ask("capabilities"))["uuid"], read(offered)["uuid"])
        known = self.utils["hypervisor_guests.names"](there, self.utils)
        found: list[Reason] = self.utils["hypervisor_obstacles.identity"](self.guest, known, uuids, self.target)
        found += self._memory(there) + self._processor(virsh, there) + self._networks(there)
        if self.clustered:
            return found + self._port(port)
        self.storage = self.utils["hypervisor_storage.target"](there, self.utils, self.target)
        reasons, self.copies = self.utils["hypervisor_storage.judge"](
            virsh, self.utils, self.guest, self.storage, copy_disks
        )
        found += reasons
        if self.copies and self.guest["state"] == "shut_off":
            found.append(check("state", "the disks of a guest that is shut off are not copied; start it first"))
        if self.guest["state"] == "shut_off" and not self.guest["persistent"]:
            found.append(check("state", "the guest has no definition that could move"))
        return found + self._port(port)

    def _memory(self, there: Any) -> list[Reason]:
        """Judges the target's memory; a guest that does not run needs none."""
        if self.guest["state"] == "shut_off":
            return []
        figures = self.utils["hypervisor_xml.pairs"](there.ask("nodememstats"))
        free = sum(int(figures.get(key, "0").split()[0]) for key in ("free", "buffers", "cached")) // 1024
        pages = (
            self.utils["hypervisor_xml.freepages"](there.ask("freepages", "--all")) if self.guest["hugepages"] else {}
        )
        found: list[Reason] = self.utils["hypervisor_obstacles.memory"](self.guest, free, pages, self.target)
        return found

    def _processor(self, virsh: Any, there: Any) -> list[Reason]:
        """Judges whether the target can be the machine and the processor that the guest runs on."""
        check = self.utils["hypervisor_obstacles.reason"]
        kind = ["--virttype", self.guest["domain_type"], "--arch", self.guest["architecture"]]
        kind += ["--machine", self.guest["machine"]]
        _, failed = there.attempt("domcapabilities", *kind)
        if failed:
            return [check("cpu", f"{self.target} cannot run this kind of guest: {failed}")]
        mode, text = self.cpu
        words = ["hypervisor-cpu-compare", *kind]
        if mode == "host-passthrough" and self.guest["domain_type"] == "kvm":
            # The guest has seen this host's own processor.
            text = self.utils["hypervisor_xml.capabilities"](virsh.ask("capabilities"))["cpu"]["xml"]
            words = ["cpu-compare"]
        elif mode != "custom" or not text:
            return []
        with tempfile.NamedTemporaryFile("w", prefix="hypervisor-cpu-", suffix=".xml") as handle:
            handle.write(text)
            handle.flush()
            _, failed = there.attempt(words[0], handle.name, *words[1:], "--error")
        failed = failed.replace(handle.name, "the guest's")
        return [check("cpu", f"the processor of {self.target} lacks what the guest uses: {failed}")] if failed else []

    def _networks(self, there: Any) -> list[Reason]:
        """Judges what the guest is plugged into."""
        if not self.guest["nics"]:
            return []
        read = self.utils["hypervisor_xml.lines"]
        active, known = (read(there.ask("net-list", "--name", *option)) for option in ((), ("--all",)))
        # Not every build of libvirt can list devices.
        printed, failed = there.attempt("iface-list", "--all")
        devices = None if failed else [row[0] for row in self.utils["hypervisor_xml.columns"](printed)]
        found: list[Reason] = self.utils["hypervisor_obstacles.networks"](
            self.guest, active, known, devices, self.target
        )
        return found

    def _port(self, port: int) -> list[Reason]:
        """Judges whether the ports of migrations are open: on an open one nobody listens yet, and the host says so."""
        if self.guest["state"] == "shut_off":
            return []
        try:
            socket.create_connection((self.target, port), timeout=_PORT_SECONDS).close()
        except ConnectionRefusedError:
            return []
        except OSError as error:
            text = f"port {port} of {self.target}, the first one for migrations, is closed by a firewall: {error}"
            return [self.utils["hypervisor_obstacles.reason"]("port", text)]
        return []

    def command(self) -> list[str]:
        """Returns virsh's command for the migration."""
        words = ["migrate", self.uuid, self.uri, "--p2p", "--undefinesource"]
        if self.guest["persistent"]:
            words.append("--persistent")
        if self.guest["state"] == "shut_off":
            # A host may refuse all that is not encrypted, and asks before it sees that nothing is sent.
            return [*words, "--offline", "--tls"]
        # The name that stands in the target's certificate, whatever it calls itself.
        words += ["--live", "--tls", "--migrateuri", f"tcp://{self.target}"]
        # One that writes faster than the network takes it would never arrive: QEMU slows it down, and no other.
        words.append("--auto-converge")
        if self.copies:
            words += ["--copy-storage-all", "--migrate-disks", ",".join(copy["target"] for copy in self.copies)]
        return words


def run(
    utils: Utils, name: str, here: str, target: str, allowed: list[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Migrates a guest, or says why not.

    Args:
        utils: the siblings' functions.
        name: of the guest.
        here: minion id of this host.
        target: minion id of the other host.
        allowed: minion ids of the hosts that pillar allows.
        options: ``copy_disks``, ``timeout`` (seconds), ``port`` (the first one of migrations), ``test``; ``nodes``, the
            names of nodes by minion id of the cluster that runs the guest, None for a guest of this host alone.

    Returns:
        With ``test``: ``name``, ``uuid``, ``from``, ``to``, ``possible`` and ``reasons``. Else what
        ``hypervisor.migrate`` returns.

    Raises:
        CommandExecutionError: the guest stays, and the message says where and how it is and why.
    """
    began = time.monotonic()
    move = Move(utils, name, here, target)
    nodes = options.get("nodes")
    move.clustered = nodes is not None
    reasons = utils["hypervisor_obstacles.target"](target, here, allowed)
    with contextlib.ExitStack() as stack:
        virsh = stack.enter_context(utils["hypervisor_virsh.session"]())
        mover = stack.enter_context(utils["hypervisor_virsh.session"]())
        there = None
        if not reasons:
            there = stack.enter_context(utils["hypervisor_virsh.session"](move.uri))
            there.begin("capabilities")
        mover.begin("version")
        reasons += move.look(virsh)
        if nodes is not None:
            reasons += utils["hypervisor_cluster.against"](utils, name, target, nodes)
        if there is not None:
            try:
                reasons += move.judge(virsh, there, options["copy_disks"], options["port"])
            except BaseException:
                _close(move)
                raise
            stack.callback(_close, move)
        if options["test"]:
            return _head(move) | {"possible": not reasons, "reasons": reasons}
        if reasons or there is None:
            listed = "\n".join(f"- {row['check']}: {row['text']}" for row in reasons)
            raise CommandExecutionError(
                f"{name} stays on {here} and was not touched. Against {target} speaks:\n{listed}"
            )
        mover.answer(_CONNECT_SECONDS)
        checked = time.monotonic()
        if nodes is not None:
            utils["hypervisor_cluster.move"](utils, name, nodes[target], options["timeout"])
        else:
            _migrate(move, virsh, there, mover, options["timeout"])
        moved = time.monotonic()
        result = _head(move) | _figures(move, there) | _settle(move, there)
        times = {"seconds": time.monotonic() - began, "check_seconds": checked - began}
        times["migration_seconds"] = moved - checked
        return result | {key: round(value, 3) for key, value in times.items()}


def _close(move: Move) -> None:
    """Takes away what was made on the target for a look."""
    if move.storage is not None:
        move.storage.close()


def _head(move: Move) -> dict[str, Any]:
    """Returns what every result begins with."""
    return {"name": move.name, "uuid": move.uuid, "from": move.here, "to": move.target}


def _migrate(move: Move, virsh: Any, there: Any, mover: Any, timeout: float) -> None:
    """Moves the guest; raises CommandExecutionError with where it is now if that fails."""
    records = {verb: move.utils[f"hypervisor_records.{verb}"] for verb in ("write", "remove")}
    try:
        records["write"](move.name, move.uuid, move.target, moving=True)
    except OSError as error:
        raise CommandExecutionError(f"{move.name} stays: the record of its move cannot be written: {error}") from error
    why, ended = "", True
    try:
        for copy in move.copies:
            move.storage.make(copy)
        mover.begin(*move.command())
        if mover.answer(timeout) is None:
            why = f"{_LATE} {timeout:.0f} s and was called off"
            ended = _called_off(move, virsh, mover)
    except CommandExecutionError as error:
        why = str(error)
    except BaseException:
        # The job was interrupted: a migration that nobody waits for must not go on unseen.
        if _called_off(move, virsh, mover) and _here(move, virsh) not in _AWAY:
            _failed(move, virsh, there, "it was interrupted")
            records["remove"](move.name)
        raise
    now = _here(move, virsh)
    if not ended and now != "gone":
        raise CommandExecutionError(
            f"{move.name} is {now} on {move.here}: {why}, but libvirt has not ended the migration to {move.target}; "
            f"virsh domjobinfo {move.name} shows how it goes on"
        )
    if now not in _AWAY:
        text = _failed(move, virsh, there, why or "libvirt reported success, but it is still here")
        records["remove"](move.name)
        raise CommandExecutionError(text)
    records["write"](move.name, move.uuid, move.target)
    # Gone from here: whatever was reported, the target has it or nobody knows.
    arrived = move.utils["hypervisor_actions.state"](there, move.uuid)
    if arrived != move.guest["state"]:
        said = f" ({why})" if why else ""
        raise CommandExecutionError(
            f"{move.name} is {now} on {move.here}, and on {move.target} it is {arrived} instead of "
            f"{move.guest['state']}{said}; nothing was removed anywhere: look there"
        )


def _here(move: Move, virsh: Any) -> str:
    """Returns the guest's state on this host, asked anew if the connection has been lost."""
    found = str(move.utils["hypervisor_actions.state"](virsh, move.uuid))
    if found == "unreachable":
        with move.utils["hypervisor_virsh.session"]() as again:
            found = str(move.utils["hypervisor_actions.state"](again, move.uuid))
    return found


def _called_off(move: Move, virsh: Any, mover: Any) -> bool:
    """Calls the migration off; returns whether it has ended."""
    deadline = time.monotonic() + _ABORT_SECONDS
    while time.monotonic() < deadline:
        virsh.attempt("domjobabort", move.uuid)
        try:
            if mover.answer(_ABORT_PAUSE) is not None:
                return True
        except CommandExecutionError:
            return True
    return False


def _failed(move: Move, virsh: Any, there: Any, why: str) -> str:
    """Cleans up on the target after a failure; returns what to say about it."""
    now = move.utils["hypervisor_actions.state"](virsh, move.uuid)
    text = (
        f"{move.name} is {now} on {move.here}, as before"
        if now == move.guest["state"]
        else (f"{move.name} is {now} on {move.here}, it was {move.guest['state']} before")
    )
    check = "timeout" if why.startswith(_LATE) else move.utils["hypervisor_obstacles.classified"](why)
    text += f"; the migration to {move.target} failed:\n- {check}: {why}"
    if not move.storage.made_volumes:
        return text
    printed, unknown = there.attempt("list", "--all", "--uuid")
    if unknown or move.uuid in printed:
        return (
            f"{text}\n- the copies on {move.target} stay, since it may use them: {', '.join(move.storage.made_volumes)}"
        )
    stayed = move.storage.undo()
    return f"{text}\n- not removed on {move.target}: {', '.join(stayed)}" if stayed else text


def _figures(move: Move, there: Any) -> dict[str, Any]:
    """Returns what libvirt measured; None for what it does not tell."""
    printed, _ = there.attempt("domjobinfo", move.uuid, "--completed", "--rawstats")
    figures = move.utils["hypervisor_xml.pairs"](printed)

    def number(key: str) -> int | None:
        value = figures.get(key, "")
        return int(value) if value.isdigit() else None

    return {
        "downtime_ms": number("downtime"),
        "transferred_bytes": number("data_processed"),
        "memory_bytes": number("memory_processed"),
        "iterations": number("memory_iteration"),
        "copied_disks": [{key: copy[key] for key in ("target", "path", "capacity_bytes")} for copy in move.copies],
    }


def _settle(move: Move, there: Any) -> dict[str, Any]:
    """Gives the guest on the target what libvirt does not carry over, and says what is left to do."""
    warnings = []
    if move.guest["autostart"]:
        _, failed = there.attempt("autostart", move.uuid)
        if failed:
            warnings.append(f"it does not start with {move.target}: {failed}")
    return {"state": move.guest["state"], "warnings": warnings}

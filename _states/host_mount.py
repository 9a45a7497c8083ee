"""Mounts that a dead file server turns neither into a hanging run nor into a hanging boot.

A local file system has an entry in ``/etc/fstab``. A network file system has units of its own, because systemd
touches all mount points of fstab at every daemon-reload. It is mounted at the first access, so that no boot waits
for its server and every access tries again: the mount heals when the server is back.

A process that touches a file system whose server is dead hangs and cannot be killed. So nothing here
touches a mount point itself: what is mounted is read from the kernel's table, and an access is the
business of a child process with a time limit. Nothing is ever unmounted by force: what guests use is
busy, and the kernel refuses.
"""

import os
import posixpath
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}
    __context__: dict[str, Any] = {}

_FSTAB = Path("/etc/fstab")
_TABLE = Path("/proc/self/mountinfo")
_UNITS = Path("/etc/systemd/system")
_CONNECT = 5  # seconds that a server has to accept a connection
_PROBE = 10  # seconds that a mounted file system has to answer
_BUDGET = 60  # seconds that all dead servers of a run may cost together
_RELOAD = 20  # seconds that systemd has to read its files again, at least
_FORGET = 120  # seconds after which a server gets another chance
_HELPERS = "/sbin:/usr/sbin:/bin:/usr/bin"
_SOURCES = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}


class MountError(Exception):
    """Why a mount is not as wanted, as a sentence for a person."""


def _run(*argv: str, timeout: float) -> tuple[int | None, str]:
    """Run a child that may hang; returns its return code, None if it had not ended by then, and what it wrote."""
    answer: tuple[int | None, str] = __utils__["mount_probe.run"](*argv, timeout=timeout)
    return answer


def _systemctl(*words: str, timeout: float = 60) -> None:
    """Run systemctl; raises MountError with its words."""
    code, said = _run("systemctl", *words, timeout=timeout)
    if code != 0:
        raise MountError(said or f"systemctl {' '.join(words)} did not end within {timeout:.0f} s")


def _experience() -> dict[str, Any]:
    """Return what this run has found out: seconds spent in vain, and which servers answer."""
    found: dict[str, Any] = __context__.get("host_mount", {})
    # Some minions keep their context from run to run; a dead server may be back by then.
    if time.monotonic() - found.get("at", -_FORGET) >= _FORGET:
        found = __context__["host_mount"] = {"spent": 0.0, "servers": {}, "at": time.monotonic()}
    return found


def _budget(most: float) -> float:
    """Return how many seconds may still be spent on waiting for what is dead, at most so many."""
    return float(max(1.0, min(most, _BUDGET - _experience()["spent"])))


def _waited(begun: float) -> None:
    """Note that the seconds since then were spent in vain."""
    _experience()["spent"] += time.monotonic() - begun


def _dead(entry: Any) -> str:
    """Return the sentence that says an NFS server does not answer; empty when it does or is none."""
    host = __utils__["mount_table.server"](entry.device) if entry.fstype in {"nfs", "nfs4"} else ""
    port = __utils__["mount_table.port"](entry.options)
    if not host or port is None:
        return ""
    known = _experience()["servers"]
    if (host, port) not in known:
        begun = time.monotonic()
        known[host, port] = __utils__["mount_probe.connects"](host, port, _budget(_CONNECT))
        if not known[host, port]:
            _waited(begun)
    return "" if known[host, port] else f"the server {host} does not answer on port {port}"


def _table(name: str) -> Any:
    """Return what is mounted on a path and whether systemd waits there, from the kernel's table."""
    return __utils__["mount_table.at"](_TABLE.read_text(encoding="utf-8", errors="replace"), name)


def _device(text: str) -> str:
    """Return the path of a local device whichever way it is named."""
    kind, equals, value = text.partition("=")
    if equals and kind in _SOURCES:
        text = f"/dev/disk/{_SOURCES[kind]}/{value}"
    return os.path.realpath(text) if text.startswith("/dev/") else text


def _same(mount: Any, entry: Any) -> bool:
    """Say whether a mounted file system is of the wanted device."""
    one, other = (_device(text).rstrip("/") or "/" for text in (mount.source, entry.device))
    return one == other


def _differences(mount: Any, entry: Any) -> tuple[list[str], list[str]]:
    """Return what a remount would change of a mount, and what only a new mount can change."""
    flags = __utils__["mount_table.flags_to_change"](mount, entry.options)
    others = __utils__["mount_table.other_differences"](mount, entry, _same(mount, entry))
    return flags, others


def _folder(name: str) -> bool:
    """Say whether the folder of a mount point exists; raises MountError if it cannot be one."""
    code, said = _run("find", name, "-maxdepth", "1", "-printf", "%y %f\\n", timeout=_PROBE)
    if code is None:
        raise MountError(f"{name} lies in a file system that does not answer")
    if code != 0:
        if "No such file" in said:
            return False
        raise MountError(f"{name} cannot be read: {said}")
    first, *inside = said.splitlines()
    if not first.startswith("d "):
        what = "a symbolic link; name the folder that it leads to" if first.startswith("l ") else "no folder"
        raise MountError(f"{name} is {what}")
    if inside:
        names = ", ".join(sorted(line[2:] for line in inside)[:3])
        raise MountError(
            f"{name} holds {len(inside)} entries ({names}), which the mount would hide. Move them, or mount elsewhere"
        )
    return True


def _unmount(name: str, why: str = "") -> None:
    """Unmount what is not in use; raises MountError otherwise, beginning with why that was to be.

    Not by systemd: to stop its unit would first stop every service that needs the mount.
    """
    code, said = _run("umount", "--no-canonicalize", name, timeout=_budget(60))
    if _table(name)[0] is not None:
        by = __utils__["mount_probe.users"](name)
        reason = f"in use by {', '.join(by)}" if by else said.replace("\n", " ") or f"umount ended with {code}"
        raise MountError(f"{why}{name} cannot be unmounted: {reason}. Nothing is unmounted by force")


def _write(path: Path, text: str) -> None:
    """Replace a file by a new one that is on disk, with the old one's permissions; a link in a folder of links."""
    if path.parent.suffix != ".wants":
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
        __utils__["own_files.write"](path, text.encode("utf-8"), mode)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(text)
    staged.replace(path)


def _read(path: Path) -> str:
    """Return a file's text, empty for none; of a link, where it leads to."""
    if path.is_symlink():
        return str(path.readlink())
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _unit(name: str, suffix: str) -> str:
    """Return the name of systemd's unit for a mount point."""
    return str(__utils__["mount_table.unit"](name, suffix))


def _files(name: str, entry: Any | None) -> dict[Path, str | None]:
    """Return the files that have to change for an entry (None: no entry), by path; None removes one."""
    native = entry is not None and __utils__["mount_table.is_network"](entry.fstype)
    # Not a function of this module: it would find none of Salt's names while one of _utils runs.
    namer = __utils__["mount_table.unit"]
    units = __utils__["mount_units.files"](entry, namer, str(_UNITS)) if native else {}
    wanted: dict[Path, str | None] = {}
    for relative in __utils__["mount_units.names"](name, namer):
        path, text = _UNITS / relative, units.get(relative)
        is_now = _read(path)
        is_link = path.parent == _UNITS and path.is_symlink()
        if native and is_link:
            raise MountError(f"{path} is a symbolic link to {is_now}. Unmask or remove the unit")
        # One that somebody else has put there hides an entry in fstab, but is theirs.
        theirs = entry is not None and path.parent == _UNITS and not __utils__["mount_units.ours"](is_now)
        if text is not None and is_now != text:
            wanted[path] = text
        elif text is None and is_now and not is_link and (native or not theirs):
            wanted[path] = None
    before = _read(_FSTAB)
    after = __utils__["mount_table.with_entry"](before, name, None if native else entry)
    # The last one: whatever interrupts this, the mount is declared somewhere.
    return wanted | ({_FSTAB: after} if after != before else {})


def _store(files: dict[Path, str | None]) -> None:
    """Write or remove files."""
    for path, text in files.items():
        if text is None:
            path.unlink()
        else:
            _write(path, text)


def _reload() -> None:
    """Make systemd read its files again; raises MountError with what it waits for."""
    begun = time.monotonic()
    try:
        _systemctl("daemon-reload", timeout=max(_RELOAD, _budget(60)))
    except MountError as problem:
        _waited(begun)
        others = [entry.point for entry in __utils__["mount_table.entries"](_read(_FSTAB)) if _dead(entry)]
        because = f"; systemd waits for {', '.join(others)} of {_FSTAB}, whose server is dead" if others else ""
        raise MountError(f"{problem}{because}") from None


def _line(name: str) -> str | None:
    """Return the entry of a mount point as it stands in fstab."""
    found = [entry for entry in __utils__["mount_table.entries"](_read(_FSTAB)) if entry.point == name]
    return found[0].line() if found else None


def _declared(name: str, entry: Any | None, files: dict[Path, str | None]) -> dict[str, Any]:
    """Return what changes of the entry in fstab and of units."""
    found: dict[str, Any] = {}
    if _FSTAB in files:
        new = None if entry is None or __utils__["mount_table.is_network"](entry.fstype) else entry.line()
        found["fstab"] = {"old": _line(name), "new": new}
    units = {
        str(path.relative_to(_UNITS)): __utils__["mount_units.difference"](_read(path), text or "")
        for path, text in files.items()
        if path != _FSTAB
    }
    return found | ({"units": units} if units else {})


def _arguments(name: str, timeout: int, **arguments: Any) -> None:
    """Raise MountError for arguments that the schema refuses."""
    wrong = __salt__["formula.judge"]("kvm", "mount", {**arguments, "timeout": timeout}, name)
    if not name.startswith("/") or posixpath.normpath(name) != name or name == "/":
        wrong.insert(0, f"{name}: a mount point is an absolute path such as /srv/vm, without .. or a slash at its end")
    if __utils__["mount_table.is_network"](arguments["fstype"]):
        wrong += [
            f"{name}: {word} among opts is not known of a network file system"
            for word in __utils__["mount_units.unknown"](arguments["opts"])
        ]
    if wrong:
        raise MountError("; ".join(wrong))


def _missing(fstype: str) -> str:
    """Return the program that mounts a network file system where it is not installed."""
    helper = f"mount.{fstype}"
    known = fstype in {"nfs", "nfs4", "cifs", "ceph", "glusterfs"}
    return helper if known and shutil.which(helper, path=_HELPERS) is None else ""


def _automatic(entry: Any) -> bool:
    """Say whether an entry is mounted at the first access."""
    return "x-systemd.automount" in entry.options


@dataclass(frozen=True)
class Plan:
    """A mount as it is wanted and as it is.

    Attributes:
        entry: what is wanted.
        live: what is mounted; None for nothing.
        waiting: whether systemd waits for the first access.
        files: files to write (None: to remove), by path.
        folder: whether the mount point has to be made.
        flags: what a remount has to change.
        others: what only a new mount can change.
    """

    entry: Any
    live: Any
    waiting: bool
    files: dict[Path, str | None]
    folder: bool
    flags: list[str]
    others: list[str]


def _plan(entry: Any) -> Plan:
    """Look at a host and compare; raises MountError where nothing can be mounted."""
    live, waiting = _table(entry.point)
    folder = live is None and not waiting and not _folder(entry.point)
    flags, others = _differences(live, entry) if live is not None else ([], [])
    return Plan(entry, live, waiting, _files(entry.point, entry), folder, flags, others)


def _changes(plan: Plan) -> dict[str, Any]:
    """Return what a plan changes."""
    entry, name = plan.entry, plan.entry.point
    steps: dict[str, Any] = {
        **_declared(name, entry, plan.files),
        "folder": plan.folder and {"new": name},
    }
    if plan.live is None and _automatic(entry):
        steps["automount"] = not plan.waiting and {"old": "inactive", "new": "active"}
    elif plan.live is None:
        steps["mount"] = {"old": None, "new": f"{entry.device} ({entry.fstype})"}
    elif plan.others:
        steps["mount"] = {"old": plan.others, "new": "mounted anew"}
    elif plan.flags:
        steps["remount"] = plan.flags
    return {step: change for step, change in steps.items() if change}


def mounted(
    name: str, device: str, fstype: str, opts: Sequence[str] | None = None, timeout: int = 30
) -> dict[str, Any]:
    """Make sure that a file system is mounted, now and after a boot.

    Args:
        name: The mount point; its folder is made.
        device: What is mounted, such as ``10.0.0.1:/vm``, ``/dev/vg/lv`` or ``UUID=…``.
        fstype: Its type.
        opts: Mount options, one in each entry of the list.
        timeout: Seconds after which an attempt to mount is given up.

    Returns a state result. A network file system is mounted at the first access, which this state
    makes. It fails, within ``timeout`` and a few seconds, if the server does not answer.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        _arguments(name, timeout, device=device, fstype=fstype, opts=list(opts or []))
        entry = __utils__["mount_table.wanted_entry"](name, device, fstype, list(opts or []), timeout, now=True)
        plan = _plan(entry)
        missing = _missing(fstype)
        if missing and not __opts__["test"]:
            raise MountError(f"{missing} is not installed; the role storage of kvm:packages brings it")
        ret["changes"] = _changes(plan)
        if __opts__["test"]:
            return _foreseen(ret, entry, missing)
        _apply(plan, timeout)
    except (OSError, MountError) as error:
        for step in ("mount", "remount"):
            ret["changes"].pop(step, None)
        return ret | {"result": False, "comment": f"{name} ({device}): {error}."}
    return ret | {"comment": _comment(entry)}


def _foreseen(ret: dict[str, Any], entry: Any, missing: str) -> dict[str, Any]:
    """Complete the result of a dry run."""
    if missing:
        comment = f"{ret['name']} is to be set up once {missing} is installed."
        return ret | {"result": None, "comment": comment}
    dead = _dead(entry)
    if ret["changes"]:
        suffix = f" But {dead}." if dead else ""
        return ret | {"result": None, "comment": f"{ret['name']} would be mounted as asked.{suffix}"}
    if dead:
        return ret | {"result": False, "comment": f"{ret['name']} ({entry.device}): {dead}."}
    return ret | {"comment": f"{ret['name']} is mounted as asked."}


def _comment(entry: Any) -> str:
    """Return what a person may want to know about a mount that is there."""
    live, waiting = _table(entry.point)
    if _automatic(entry) and live is not None and not waiting:
        return f"{entry.point} is mounted. From the next boot on it is mounted at the first access."
    return f"{entry.point} is mounted."


def _apply(plan: Plan, timeout: int) -> None:
    """Bring a mount about; raises MountError where something stands in its way."""
    entry, live = plan.entry, plan.live
    automount = _unit(entry.point, "automount")
    # All that needs no server is done first, so that the mount comes when the server does.
    _store(plan.files)
    to_start = live is None and not plan.waiting
    # An earlier run may have been interrupted before systemd knew what is to be started now.
    if plan.files or to_start:
        _reload()
    if to_start and _automatic(entry):
        _systemctl("start", automount)
    if dead := _dead(entry):
        then = "those who use it go on" if live is not None else "the next access mounts it"
        raise MountError(f"{dead}; {then} when it is back")
    if plan.others:
        _unmount(entry.point, f"options that only a new mount can set differ: {', '.join(plan.others)}. ")
        live = None
        if _automatic(entry):
            _systemctl("start", automount)
    elif plan.flags:
        _remount(entry.point, plan.flags, timeout)
    if _automatic(entry):
        _access(entry, timeout)
    elif live is None:
        if plan.waiting:
            _systemctl("stop", automount)
        _mount(entry, timeout)
    _verify(entry)


def _remount(name: str, flags: list[str], timeout: int) -> None:
    """Change flags of what is mounted; raises MountError with the program's words."""
    code, said = _run("mount", "-o", f"remount,{','.join(flags)}", name, timeout=_budget(timeout))
    if code != 0:
        raise MountError(f"the remount failed: {said or 'no answer'}")


def _mount(entry: Any, timeout: int) -> None:
    """Mount what is not mounted at the first access; raises MountError with the program's words."""
    device = Path(_device(entry.device))
    if device.is_absolute() and str(device).startswith("/dev/") and not device.exists():
        raise MountError("there is no such device")
    unit = _unit(entry.point, "mount")
    begun = time.monotonic()
    try:
        _systemctl("start", unit, timeout=_budget(timeout + 5))
    except MountError as problem:
        _waited(begun)
        # mount itself only lists what may be wrong.
        wrong = __utils__["mount_probe.wrong_type"](entry.fstype, str(device))
        raise MountError(wrong or _reason(unit) or str(problem)) from None


def _access(entry: Any, timeout: int) -> None:
    """Touch a network file system from a child process; raises MountError if it does not answer."""
    name, mount = entry.point, _unit(entry.point, "mount")
    is_mounted = _table(name)[0] is not None
    begun = time.monotonic()
    code, said = _run("stat", "--file-system", name, timeout=_budget(_PROBE if is_mounted else timeout + 5))
    if code == 0:
        return
    _waited(begun)
    host = __utils__["mount_table.server"](entry.device)
    if host and code is None:
        # Further mounts of this server need not wait as long.
        _experience()["servers"][host, __utils__["mount_table.port"](entry.options)] = False
    seconds = time.monotonic() - begun
    reason = _reason(mount) or (said.splitlines()[0] if said else "")
    if code is None:
        reason = f"no answer within {seconds:.0f} s"
    raise MountError(f"{reason}; {'it goes on' if is_mounted else 'the next access mounts it'} when the server is back")


def _reason(mount: str) -> str:
    """Return the last words of the program that failed to mount, from the journal."""
    argv = ("journalctl", "--quiet", "--boot", f"--unit={mount}", "--lines=20", "--output=cat", "--no-pager")
    code, said = _run(*argv, timeout=10)
    lines = [line.strip() for line in said.splitlines() if line.startswith(("mount", "umount"))]
    return lines[-1].rstrip(".") if code == 0 and lines else ""


def _verify(entry: Any) -> None:
    """Raise MountError unless the kernel's table shows what was asked for."""
    live, _ = _table(entry.point)
    if live is None:
        raise MountError("it is not mounted, although every step succeeded")
    flags, others = _differences(live, entry)
    if flags or others:
        raise MountError(f"it is mounted, but differs from what was asked for: {', '.join(flags + others)}")


def unmounted(
    name: str, device: str, fstype: str, opts: Sequence[str] | None = None, timeout: int = 30
) -> dict[str, Any]:
    """Make sure that a file system is not mounted, but can be by hand.

    A local one with ``mount NAME``; one of the network with ``systemctl start`` and its unit.

    Args:
        name: The mount point.
        device: see ``mounted``; what fstab or the unit keeps.
        fstype: see above.
        opts: see above.
        timeout: see above.

    Returns a state result; it fails if something uses the mount.
    """
    try:
        _arguments(name, timeout, device=device, fstype=fstype, opts=list(opts or []))
        entry = __utils__["mount_table.wanted_entry"](name, device, fstype, list(opts or []), timeout, now=False)
        return _without(name, entry)
    except (OSError, MountError) as error:
        return {"name": name, "result": False, "changes": {}, "comment": f"{error}."}


def absent(name: str, **_: Any) -> dict[str, Any]:
    """Make sure that nothing is mounted on a path, and that neither fstab nor a unit of this host says so.

    Args:
        name: The mount point. Its folder, and what the file system holds, stay.
        _: The arguments of ``mounted``, so that an entry in pillar can keep them.

    Returns a state result; it fails if something uses the mount.
    """
    try:
        return _without(name, None)
    except (OSError, MountError) as error:
        return {"name": name, "result": False, "changes": {}, "comment": f"{error}."}


def _without(name: str, entry: Any | None) -> dict[str, Any]:
    """Unmount a file system and give it an entry or unit that mounts nothing by itself, or none."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}}
    changes = ret["changes"]
    live, waiting = _table(name)
    files = _files(name, entry)
    if live is not None:
        changes["mount"] = {"old": f"{live.source} ({live.fstype})", "new": None}
    if waiting:
        changes["automount"] = {"old": "active", "new": "inactive"}
    changes |= _declared(name, entry, files)
    if not changes:
        return ret | {"comment": f"{name} is not mounted."}
    if __opts__["test"]:
        return ret | {"result": None, "comment": f"{name} would be unmounted."}
    ret["changes"] = {}
    if live is not None:
        _unmount(name)
    if waiting:
        # Only now: systemd would detach what is mounted there, in use or not.
        _systemctl("stop", _unit(name, "automount"))
    _store(files)
    if files:
        _reload()
    return ret | {"changes": changes, "comment": f"{name} is not mounted any more."}

"""libvirt's daemons under socket activation.

A host has either one ``libvirtd`` or a set of modular daemons with ``virtproxyd`` in front of them.
Which one it is says the unit files that are installed, not the name of the distribution. systemd
listens and starts a daemon when somebody connects; a daemon may leave when it is idle.

Guests are processes of their own: to stop or restart a daemon leaves them running.
"""

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __context__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __states__: dict[str, Any] = {}

_UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
_OLD_UNIT_FOLDER = "/lib/systemd/system"  # its own folder where /usr is not merged
_CONF = Path("/etc/libvirt")
_LOADED = Path("/run/hypervisor-formula/libvirt-tls-loaded")
_TIMEOUT = 120  # seconds for one systemctl command; a start waits for the daemon's first answer
_SURVEY = "libvirt_daemon.survey"
_PENDING = "libvirt_conf.pending"  # what libvirt_conf.managed would write in this dry run
_RECENT = 5  # seconds
_PROPERTIES = (
    "Id,LoadState,UnitFileState,ActiveState,ActiveEnterTimestampMonotonic,InactiveEnterTimestampMonotonic,"
    "StateChangeTimestampMonotonic"
)
_TLS_PORT = 16514
_MODULAR = (
    "virtqemud",
    "virtproxyd",
    "virtnetworkd",
    "virtstoraged",
    "virtnodedevd",
    "virtnwfilterd",
    "virtsecretd",
    "virtinterfaced",
)
# What a daemon reads besides its own file; libvirtd reads all of it.
_READS = {"virtqemud": ("qemu.conf", "qemu-lockd.conf"), "virtnetworkd": ("network.conf",)}
# Settings of whoever answers other hosts; the other daemons don't know them.
_REMOTE = frozenset({"auth_tls", "sasl_allowed_username_list", "tls_allowed_dn_list", "tls_priority"})
# They hold what running guests need, their consoles' logs and their disks' locks: stopping one would end
# these, so they are never stopped or restarted. Told to reload they start anew and keep what they hold.
_KEEPERS = ("virtlogd", "virtlockd")
_GUESTS = "libvirt-guests.service"


# Salt loads this file to compile a highstate, since others watch the daemon; data classes would take most of that.


class Layout(NamedTuple):
    """One way to run libvirt: its services, sockets, and who answers on the TLS port."""

    services: tuple[str, ...]
    sockets: tuple[str, ...]
    front: str
    retired: tuple[str, ...] = ()
    keepers: tuple[str, ...] = ()

    @property
    def tls_socket(self) -> str:
        """Name of the unit that listens on port 16514."""
        return f"{self.front}-tls.socket"

    @property
    def daemons(self) -> tuple[str, ...]:
        """Names of the daemons, as their files in /etc/libvirt are called."""
        return tuple(service.removesuffix(".service") for service in self.services)

    def reads(self, service: str) -> tuple[Path, ...]:
        """Return the files that a service reads when it starts."""
        daemon = service.removesuffix(".service")
        more = sum(_READS.values(), ()) if daemon == "libvirtd" else _READS.get(daemon, ())
        return tuple(_CONF / name for name in (f"{daemon}.conf", *more))


class Unit(NamedTuple):
    """What systemd says about a unit.

    ``since`` is the Unix time of its start, 0 when inactive; ``stopped`` that of its last stop, 0 if there was none;
    ``told`` that of its start or last reload.
    """

    enabled: bool = False
    active: bool = False
    since: float = 0.0
    stopped: float = 0.0
    told: float = 0.0


class Plan(NamedTuple):
    """What has to be done, in this order; empty lists mean nothing."""

    disable: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()

    def changes(self) -> dict[str, list[str]]:
        """Return the plan as a state's changes, without what is empty."""
        return {verb: list(units) for verb, units in self._asdict().items() if units}


def layout(units: set[str], enabled: set[str]) -> Layout | None:
    """Find how libvirt runs here.

    Takes the names of all installed libvirt units and of those that are enabled. Returns None if
    there is no daemon. Where both kinds are installed the enabled one is kept, and the modular one
    is chosen if neither or both are enabled.
    """
    old = "libvirtd.socket" in units
    new = {"virtqemud.socket", "virtproxyd.socket"} <= units
    if not old and not new:
        return None
    keepers = tuple(
        unit
        for daemon in _KEEPERS
        for unit in (f"{daemon}.service", f"{daemon}.socket", f"{daemon}-admin.socket")
        if unit in units
    )
    old_enabled = bool({"libvirtd.socket", "libvirtd.service"} & enabled)
    new_enabled = bool({"virtqemud.socket", "virtqemud.service"} & enabled)
    if old and (not new or (old_enabled and not new_enabled)):
        return Layout(
            services=("libvirtd.service",),
            sockets=tuple(
                unit
                for unit in ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
                if unit in units
            ),
            front="libvirtd",
            keepers=keepers,
        )
    daemons = [daemon for daemon in _MODULAR if f"{daemon}.socket" in units]
    return Layout(
        services=tuple(f"{daemon}.service" for daemon in daemons),
        sockets=tuple(
            f"{daemon}{kind}.socket"
            for daemon in daemons
            for kind in ("", "-ro", "-admin")
            if f"{daemon}{kind}.socket" in units
        ),
        front="virtproxyd",
        retired=tuple(
            f"libvirtd{kind}"
            for kind in (
                ".service",
                ".socket",
                "-ro.socket",
                "-admin.socket",
                "-tls.socket",
                "-tcp.socket",
            )
            if f"libvirtd{kind}" in units
        ),
        keepers=keepers,
    )


def plan(
    found: Layout,
    units: Mapping[str, Unit],
    tls: bool,
    modified: Mapping[str, float],
    guests: bool = False,
) -> Plan:
    """Compare what runs with what should.

    Takes the layout, the state of its units, whether the TLS port is wanted, the time of the
    last change (Unix time) of the configuration that each service reads, and whether the service that
    ends guests at the host's shutdown is wanted. A daemon that was started
    before its configuration changed is restarted, also when an interrupted run left it like that; so
    is one that may still hold a port that is to be closed.
    """

    def unit(name: str) -> Unit:
        return units.get(name, Unit())

    wanted = found.sockets + ((found.tls_socket,) if tls else ())
    unwanted = found.retired + (() if tls else (found.tls_socket,))
    closed = tuple(name for name in wanted if not unit(name).active)
    running = tuple(name for name in found.services if unit(name).active)
    # systemd refuses to open a socket for a service that already runs, so the service goes first,
    # and its other sockets with it: a client that connects again would bring the service back.
    paused = tuple(name for name in running if any(_owner(socket) == name for socket in closed))
    held = tuple(name for name in wanted if unit(name).active and _owner(name) in paused)
    # A running service holds its own copy of a socket that was open when it started, so that the port
    # stays open after the socket's unit is stopped, also where an earlier run got no further than that.
    holding = {
        _owner(name)
        for name in unwanted
        if unit(name).active or unit(name).stopped > unit(_owner(name)).since
    }
    stale = tuple(
        name
        for name in running
        if name not in paused and (name in holding or modified.get(name, 0.0) > unit(name).since)
    )
    stop_unwanted = tuple(name for name in unwanted if unit(name).active)
    kept = tuple(name for name in found.keepers if name.endswith(".socket"))
    # systemd cannot open a socket of a keeper that runs; the keeper opens it when the host boots again.
    opened = tuple(name for name in kept if not unit(name).active and not unit(_owner(name)).active)
    end = (_GUESTS,) if guests else ()
    return Plan(
        disable=tuple(name for name in unwanted if unit(name).enabled),
        stop=stop_unwanted + paused + held,
        # A service is enabled too: it starts the guests that are marked for it when the host boots.
        enable=tuple(name for name in found.services + wanted + kept + end if not unit(name).enabled),
        start=opened
        + tuple(name for name in wanted if name in closed + held)
        + paused
        + tuple(name for name in end if not unit(name).active),
        restart=stale,
        reload=tuple(
            name
            for name in found.keepers
            if name.endswith(".service") and unit(name).active and modified.get(name, 0.0) > unit(name).told
        ),
    )


def _owner(socket: str) -> str:
    """Return the service that a socket starts."""
    daemon = socket.removesuffix(".socket")
    for kind in ("-ro", "-admin", "-tls", "-tcp"):
        daemon = daemon.removesuffix(kind)
    return f"{daemon}.service"


def parse(show: str, now: float, monotonic: float) -> dict[str, Unit]:
    """Read the output of ``systemctl show`` for several units.

    Takes the text and both clocks of one moment, in seconds: systemd tells the start of a unit on
    the monotonic clock. Returns the units that exist.
    """
    result = {}
    for block in show.strip().split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        if fields.get("LoadState") != "loaded":
            continue
        active = fields.get("ActiveState") in ("active", "activating", "reloading")
        entered = int(fields.get("ActiveEnterTimestampMonotonic") or 0) / 1_000_000
        told = int(fields.get("StateChangeTimestampMonotonic") or 0) / 1_000_000
        left = int(fields.get("InactiveEnterTimestampMonotonic") or 0) / 1_000_000
        result[fields["Id"]] = Unit(
            enabled=fields.get("UnitFileState") in ("enabled", "enabled-runtime", "static"),
            active=active,
            since=now - (monotonic - entered) if active else 0.0,
            stopped=now - (monotonic - left) if left else 0.0,
            told=now - (monotonic - told) if active else 0.0,
        )
    return result


def _installed() -> set[str]:
    """Return the names of all unit files of libvirt's daemons."""
    names: set[str] = set()
    for folder in (*_UNIT_FOLDERS, _OLD_UNIT_FOLDER):
        for pattern in ("libvirtd*", "virt*d.*", "virt*d-*.socket", _GUESTS):
            names.update(path.name for path in Path(folder).glob(pattern))
    return {name for name in names if name.endswith((".service", ".socket"))}


def _systemctl(*argv: str) -> str:
    """Run systemctl and return its output; raises RuntimeError with its message if it fails."""
    done = __salt__["cmd.run_all"](
        ["systemctl", "--no-ask-password", *argv],
        python_shell=False,
        timeout=_TIMEOUT,
        ignore_retcode=True,
    )
    if done["retcode"] != 0:
        said = _journal(argv[1:]) or done["stderr"] or done["stdout"]
        raise RuntimeError(f"systemctl {' '.join(argv)} failed: {said}")
    return str(done["stdout"])


def _journal(units: tuple[str, ...]) -> str:
    """Return the last words of units that failed, such as a port in use; systemctl itself only says that they did."""
    words = []
    for unit in units:
        state = __salt__["cmd.run_all"](
            ["systemctl", "is-failed", unit], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
        )
        if state["stdout"] == "failed":
            log = __salt__["cmd.run_all"](
                ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=3", f"--unit={unit}"],
                python_shell=False,
                timeout=_TIMEOUT,
                ignore_retcode=True,
            )
            words.append(f"{unit}: {'; '.join(log['stdout'].splitlines())}")
    return ". ".join(words)


def _port_taken() -> str:
    """Say who else listens on the TLS port; systemd reports no more than an input/output error."""
    done = __salt__["cmd.run_all"](
        ["ss", "-Hltnp", f"sport = :{_TLS_PORT}"], python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    holders = sorted(set(re.findall(r'\("([^"]+)",pid=(\d+)', done["stdout"])) - {("systemd", "1")})
    if not holders:
        return ""
    names = ", ".join(f"{name} (pid {pid})" for name, pid in holders)
    return f" Port {_TLS_PORT} is in use by {names}: stop that, then run the highstate again."


def _survey(age: float = 0) -> tuple[Layout | None, dict[str, Unit]]:
    """Return how libvirt runs here and what systemd says about its units.

    Takes how old the answer may be, in seconds: another state of the same run may just have asked.
    """
    asked, survey = __context__.get(_SURVEY, (-math.inf, (None, {})))
    if time.monotonic() - asked < age:
        return survey  # type: ignore[no-any-return]  # Salt's context holds anything
    names = _installed()
    if not names:
        return None, {}
    asked = time.monotonic()
    show = _systemctl("show", f"--property={_PROPERTIES}", *sorted(names))
    units = parse(show, time.time(), time.monotonic())
    survey = layout(set(units), {name for name, unit in units.items() if unit.enabled}), units
    __context__[_SURVEY] = asked, survey
    return survey


def _layout() -> Layout | None:
    """Return how libvirt runs here. systemd is asked only where both kinds are installed."""
    names = _installed()
    if {"libvirtd.socket", "virtqemud.socket"} <= names:
        return _survey()[0]
    return layout(names, set())


def _mtime(path: str | Path) -> float:
    """Return when a file changed (Unix time), 0 if it does not exist."""
    try:
        return Path(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _missing(ret: dict[str, Any]) -> dict[str, Any]:
    """Return the result for a host without a libvirt daemon: a failure unless it is a dry run."""
    if __opts__["test"]:
        return ret | {
            "result": None,
            "changes": {"daemon": "to be set up once it is installed"},
            "comment": "libvirt is not installed yet.",
        }
    return ret | {
        "result": False,
        "comment": "No libvirt daemon is installed: neither libvirtd.socket nor virtqemud.socket.",
    }


def configured(
    name: str,
    settings: dict[str, Any] | None = None,
    own: dict[str, dict[str, Any]] | None = None,
    files: dict[str, dict[str, Any]] | None = None,
    allowed_hosts: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that the daemons that are installed have exactly these settings.

    Args:
        name: Any label; the files are those of the daemons that are found, below ``/etc/libvirt``.
        settings: Keys and values for every daemon. What only concerns remote clients goes to the
            one that answers them.
        own: Further keys and values by daemon, such as ``virtqemud``; one that is not here is left out.
        files: Keys and values of other files by their name without ``.conf``, such as ``virtlogd``.
            One without any is left as it is, unless an earlier run has written it.
        allowed_hosts: Common names of the certificates that may connect, and no other; by default the
            list is not set, and libvirt lets in any certificate of its CA.

    More keys stand under ``extra`` of each. Returns a state result with the changes of each file.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = _layout()
    except RuntimeError as error:
        return ret | {"result": False, "comment": str(error)}
    if found is None:
        return _missing(ret)
    flat = __states__["libvirt_conf.flat"]
    common = flat(settings)
    if allowed_hosts is not None:
        common["tls_allowed_dn_list"] = [f"CN={host}" for host in allowed_hosts]
    wanted = {}
    for daemon in found.daemons:
        known = {key: value for key, value in common.items() if daemon == found.front or key not in _REMOTE}
        wanted[_CONF / f"{daemon}.conf"] = known | flat((own or {}).get(daemon))
    for label, keys in (files or {}).items():
        path, content = _CONF / f"{label}.conf", flat(keys)
        if content or __states__["libvirt_conf.written_here"](str(path)):
            wanted[path] = content
    results = {str(path): __states__["libvirt_conf.managed"](str(path), settings=content)
               for path, content in wanted.items()}  # fmt: skip
    verdicts = {result["result"] for result in results.values()}
    ret["result"] = False if False in verdicts else None if None in verdicts else True
    ret["changes"] = {path: one["changes"] for path, one in results.items() if one["changes"]}
    told = [one["comment"] for one in results.values() if one["changes"] or one["result"] is False]
    return ret | {"comment": " ".join(told) or f"{', '.join(found.daemons)} have the settings of the pillar."}


def _modified(found: Layout) -> dict[str, float]:
    """Return when what each service reads was changed last (Unix time), endless for what this dry run would change."""
    pending = __context__.get(_PENDING, ())
    keepers = [unit for unit in found.keepers if unit.endswith(".service")]
    return {
        service: max(math.inf if str(path) in pending else _mtime(path) for path in found.reads(service))
        for service in (*found.services, *keepers)
    }


def listening(name: str, tls: bool = True, guests_service: bool = False) -> dict[str, Any]:
    """Make sure that systemd listens for libvirt and no daemon runs with an old configuration.

    Args:
        name: Any label.
        tls: Whether the TLS port (16514) is open; its certificates must be there already.
        guests_service: Whether libvirt-guests.service, which ends guests before the host goes down,
            is enabled; where it is not installed this has no effect.

    Returns a state result that lists which units were enabled, stopped, started, restarted or reloaded.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found, units = _survey()
        if found is None:
            return _missing(ret)
        if tls and found.tls_socket not in units:
            comment = f"{found.tls_socket} is not installed, so the TLS port cannot be opened."
            return ret | {"result": False, "comment": comment}
        guests = guests_service and _GUESTS in units
        todo = plan(found, units, tls, _modified(found), guests)
        if not todo.changes():
            return ret | {"comment": f"systemd listens for {found.front}."}
        if __opts__["test"]:
            comment = "Would change units of libvirt."
            return ret | {"result": None, "changes": todo.changes(), "comment": comment}
        for verb, names in todo.changes().items():
            _systemctl("try-restart" if verb == "restart" else verb, *names)
            ret["changes"][verb] = names
        left = plan(found, _survey()[1], tls, {}, guests).changes()
    except RuntimeError as error:
        return ret | {"result": False, "comment": f"{error}{_port_taken() if tls else ''}"}
    if left:
        return ret | {"result": False, "comment": f"These units did not come up: {left}."}
    return ret | {"comment": f"systemd listens for {found.front} now; guests were left alone."}


def tls_loaded(name: str, files: list[str]) -> dict[str, Any]:
    """Make sure that a running daemon uses the certificates on disk, without a restart.

    Args:
        name: Any label.
        files: The CA certificate, the certificate and the key that the daemon serves.

    Returns a state result. A daemon that does not run reads them when it starts.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        # What `listening` saw just before. No certificate is written in between.
        found, units = _survey(age=_RECENT)
    except RuntimeError as error:
        return ret | {"result": False, "comment": str(error)}
    front = units.get(f"{found.front}.service", Unit()) if found else Unit()
    if found is None or not front.active:
        return ret | {"comment": "No daemon runs; it reads its certificates when it starts."}
    if not units.get(found.tls_socket, Unit()).active:
        return ret | {"comment": "The TLS port is closed."}
    if max(_mtime(path) for path in files) <= max(front.since, _mtime(_LOADED)):
        return ret | {"comment": f"{found.front} uses the certificates on disk."}
    changes = {"tls": f"{found.front} reads its certificates again"}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "Would load certificates."}
    if not salt.utils.path.which("virt-admin"):
        return ret | {"result": False, "comment": "virt-admin is not installed."}
    moment = time.time()
    done = __salt__["cmd.run_all"](
        ["virt-admin", "-c", f"{found.front}:///system", "server-update-tls", found.front],
        python_shell=False,
        timeout=_TIMEOUT,
        ignore_retcode=True,
    )
    if done["retcode"] != 0:
        comment = f"{found.front} did not take its new certificates: {done['stderr']}"
        return ret | {"result": False, "comment": comment}
    _LOADED.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _LOADED.touch()
    os.utime(_LOADED, (moment, moment))
    return ret | {"changes": changes, "comment": "New connections see the new certificates."}


def rewritten(running: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether this run replaces what the daemon serves on the TLS port.

    Takes the results of the run so far, by Salt's state tag. A key whose permissions alone are
    repaired is none: the daemon has read it, and would read the same again.
    """
    return any(
        {"certificate", "ca"} & set(result.get("changes") or {})
        for tag, result in running.items()
        if tag.startswith("host_certificate_|-libvirt_certificate_libvirt_|-")
    )


def mod_watch(name: str, sfun: str = "listening", **_: Any) -> dict[str, Any]:
    """Answer a change of a watched file.

    The functions above compare times and have acted already when this is called, or foretold it from
    what this dry run would write. Certificates are the exception: who would write them does not say which.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if not __opts__["test"] or sfun != "tls_loaded":
        return ret | {"comment": "No daemon runs that would have to be told."}
    try:
        found, units = _survey()
    except RuntimeError as error:
        return ret | {"result": False, "comment": str(error)}
    if not found or not units.get(f"{found.front}.service", Unit()).active:
        return ret | {"comment": "No daemon runs that would have to be told."}
    if not rewritten(globals().get("__running__") or {}):
        return ret | {"comment": "The certificates themselves stay as they are."}
    changes = {"tls": "would read its certificates again"}
    return ret | {"result": None, "changes": changes, "comment": "A file that it reads changes."}

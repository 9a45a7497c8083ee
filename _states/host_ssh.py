"""ssh and sshd use the keys that the hosts of one list have of each other, between these hosts only.

Both read a drop-in file each: root's keys, root's known hosts and whatever sshd lets in from elsewhere
are as they were. See ``host_keys``, which keeps the keys themselves.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_TIMEOUT = 60  # seconds for ssh, sshd or systemctl
_SSH = Path("/etc/ssh")
_LOADED = Path("/run/hypervisor-formula/sshd-loaded")
_UNITS = ("ssh.service", "sshd.service")
_DROP_IN = "10-hypervisor.conf"


def configured(name: str, hosts: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    """Make sure that ssh and sshd use the files of ours between the hosts of a list, and nowhere else.

    Args:
        name: The folder of those files, with the private key ``id_ed25519`` in it.
        hosts: ``addresses`` and ``names`` by minion id.

    Returns a state result. What sshd itself refuses is not left in place; a configuration that does
    not read ours, or that keeps root out, fails with what to change. A running sshd reads its
    configuration again; connections stay.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wrong = __utils__["ssh_keys.refused"](hosts)
    if wrong:
        return ret | {"result": False, "comment": f"Nothing has changed: {wrong}."}
    test, others, folder = __opts__["test"], __utils__["ssh_keys.others"](hosts, __opts__["id"]), Path(name)
    if not salt.utils.path.which("sshd") or not salt.utils.path.which("ssh"):
        if test:
            ret["changes"] = {"ssh": "to be set up once it is installed"}
            return ret | {"result": None, "comment": "ssh and its server are not installed yet."}
        comment = "ssh and its server are not installed; list them under kvm:packages:extra."
        return ret | {"result": False, "comment": comment}
    wanted = _drop_ins(others, folder)
    read, access = __utils__["own_files.read"], __utils__["own_files.access"]
    todo = {path: text for path, text in wanted.items() if read(path) != text or access(path, 0o644)}
    files = {str(path): "written" if text is not None else "removed" for path, text in todo.items()}
    again = "reads its configuration again"
    served = _SSH / "sshd_config.d" / _DROP_IN
    try:
        unit = _stale_unit(served, served in todo)
        if test and (files or unit):
            planned = files | ({unit: again} if unit else {})
            return ret | {"result": None, "changes": planned, "comment": "Would change how hosts reach each other."}
        if todo:
            _put(todo)
            ret["changes"] = files
        if others:
            _prove(others, folder)
        if unit:
            moment = time.time()
            _run("systemctl", "reload", unit)
            _LOADED.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _LOADED.touch()
            os.utime(_LOADED, (moment, moment))
            ret["changes"][unit] = again
    except (RuntimeError, OSError) as error:
        return ret | {"result": False, "comment": f"{error}"}
    return ret | {"comment": "ssh and sshd know the other hosts." if others else "No host is trusted."}


def _drop_ins(others: Mapping[str, Any], folder: Path) -> dict[Path, bytes | None]:
    """Return the content of both drop-in files, None for one that must not be there."""
    client, server = (_SSH / f"{kind}_config.d" / _DROP_IN for kind in ("ssh", "sshd"))
    if not others:
        return {client: None, server: None}
    key, known = str(folder / "id_ed25519"), str(folder / "known_hosts")
    texts = __utils__["ssh_keys.client"](others, key, known), __utils__["ssh_keys.server"](
        others, str(folder / "authorized_keys")
    )
    return {client: texts[0].encode(), server: texts[1].encode()}


def _put(todo: Mapping[Path, bytes | None]) -> None:
    """Write or remove drop-ins; put back what was there if sshd refuses the result.

    Raises RuntimeError with its words.
    """
    before = {path: __utils__["own_files.read"](path) for path in todo}
    _replace(todo)
    try:
        _run("sshd", "-t")
    except RuntimeError as error:
        _replace(before)
        raise RuntimeError(f"Nothing has changed: {error}") from error


def _replace(files: Mapping[Path, bytes | None]) -> None:
    """Write files, or remove those whose content is None."""
    for path, content in files.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            __utils__["own_files.write"](path, content, 0o644)


def _prove(others: Mapping[str, Any], folder: Path) -> None:
    """Ask ssh and sshd what they would do; raises RuntimeError that says what stands in the way."""
    setting, addresses = __utils__["ssh_keys.setting"], __utils__["ssh_keys.addresses"]
    host, where = next(iter(others.items()))
    address = addresses(where)[0]
    known = str(folder / "known_hosts")
    if setting(_run("ssh", "-G", f"root@{address}"), "userknownhostsfile") != [known]:
        raise RuntimeError(
            f"ssh does not take {known} for {host}. Have /etc/ssh/ssh_config begin with "
            "'Include /etc/ssh/ssh_config.d/*.conf', and look into root's own ~/.ssh/config."
        )
    dump = _run("sshd", "-T", "-C", f"user=root,host={host},addr={address}")
    if str(folder / "authorized_keys") not in setting(dump, "authorizedkeysfile"):
        raise RuntimeError(
            f"sshd does not read {folder / 'authorized_keys'} for root from {host}. Have "
            "/etc/ssh/sshd_config begin with 'Include /etc/ssh/sshd_config.d/*.conf'."
        )
    if setting(dump, "permitrootlogin") == ["no"]:
        raise RuntimeError(
            f"sshd keeps root out (PermitRootLogin no). Have it say 'prohibit-password' for {address} at least, or "
            "set kvm:hostkeys:enabled to false."
        )


def _stale_unit(served: Path, changes: bool) -> str:
    """Return the unit of a running sshd that has to read its configuration again, empty if none has."""
    names = [unit for unit in _UNITS if _active_since(unit)]
    if not names:
        return ""
    if changes:
        return names[0]
    written = served.stat().st_mtime if served.exists() else 0.0
    loaded = _LOADED.stat().st_mtime if _LOADED.exists() else 0.0
    return names[0] if written > max(_active_since(names[0]), loaded) else ""


def _active_since(unit: str) -> float:
    """Return when a unit was started (Unix time), 0 if it does not run."""
    show = _run("systemctl", "show", "--property=ActiveState,ActiveEnterTimestampMonotonic", unit)
    fields = dict(line.partition("=")[::2] for line in show.splitlines())
    if fields.get("ActiveState") not in ("active", "reloading"):
        return 0.0
    entered = int(fields.get("ActiveEnterTimestampMonotonic") or 0) / 1_000_000
    return time.time() - (time.monotonic() - entered)


def _run(*argv: str) -> str:
    """Run a program and return what it printed; raises RuntimeError with its words."""
    path = salt.utils.path.which(argv[0])
    try:
        done = subprocess.run(
            [path or argv[0], *argv[1:]],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_TIMEOUT, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise RuntimeError(f"{' '.join(argv[:2])} failed: {said}")
    return done.stdout

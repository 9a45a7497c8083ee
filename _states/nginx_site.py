"""The page of the master in nginx: one site in a file of its own, and the page's own files.

A new file goes live once nginx has accepted it together with all of its other configuration, which belongs to the
distribution or to somebody else and is only read. Whether nginx has to read its files again is found by comparing
times, so that what an interrupted run has left is made good by the next.
"""

import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_FOLDER = Path("/etc/nginx")
# Where a candidate is put together: in memory, since there may be secrets among the other files.
_WORK = Path("/run")
_LOGS, _PID = "/var/log/nginx", Path("/run/nginx.pid")
_MODE = 0o644
_TIMEOUT = 90


def _run(*argv: str) -> dict[str, Any]:
    """Run a command that may fail."""
    found: dict[str, Any] = __salt__["cmd.run_all"](
        list(argv), python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    return found


def _said(done: dict[str, Any]) -> str:
    """Return what a command has said."""
    return str(done["stderr"] or done["stdout"]).strip() or f"it ended with {done['retcode']}"


def _fault(path: Path, text: str) -> str:
    """Return what nginx says against its configuration with this file in it; empty when it has nothing to say.

    nginx sees a copy of its whole folder at the place of that folder, so all paths in it are those that count later.
    """
    work = Path(tempfile.mkdtemp(prefix="hypervisor-nginx-", dir=_WORK))
    was_there = _PID.exists()
    try:
        tree = work / "nginx"
        shutil.copytree(_FOLDER, tree, symlinks=True)
        copy = tree / path.relative_to(_FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        copy.write_text(text, encoding="utf-8")
        argv = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect"]
        # A test opens logs, and makes those that are missing.
        argv += [f"--property=BindReadOnlyPaths={tree}:{_FOLDER}", f"--property=TemporaryFileSystem={_LOGS}"]
        done = _run(*argv, "nginx", "-t", "-q")
        return "" if done["retcode"] == 0 else _said(done)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not was_there and _PID.exists() and not _PID.stat().st_size:
            _PID.unlink()


def _unit(service: str) -> tuple[str, float, float]:
    """Return of a unit whether it is active, and when it was started and last told to read its files, since 1970."""
    asked = "ActiveState,ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic"
    lines = _run("systemctl", "show", f"--property={asked}", service)["stdout"].splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    started, read = (boot + int(fields.get(key) or 0) / 1_000_000 for key in asked.split(",")[1:])
    return fields.get("ActiveState", ""), started, read


def _written(path: str) -> float:
    """Return when a file came to where it is, 0 if there is none."""
    try:
        return Path(path).stat().st_ctime
    except FileNotFoundError:
        return 0.0


class _Site(NamedTuple):
    """What a state of the site is given; see :func:`served`."""

    settings: dict[str, Any]
    certificate: str
    key: str
    pki: str = "/etc/pki/web"
    web: str = "/usr/share/hypervisor-formula/web"
    service: str = "nginx"
    sandbox: str = ""

    def text(self) -> str:
        """Return the site's file."""
        given = (self.settings, self.certificate, self.key, self.pki, self.web)
        return str(__utils__["nginx_config.site"](*given))

    def reads(self) -> list[str]:
        """Return the files of keys and certificates that nginx reads."""
        console = ("console-cert.pem", "console-key.pem", "console-ca-cert.pem") if self.settings["consoles"] else ()
        return [self.certificate, self.key, *(f"{self.pki}/{file}" for file in console)]


def served(  # noqa: PLR0913, PLR0917 - the arguments of a state are its interface
    name: str,
    settings: dict[str, Any],
    certificate: str,
    key: str,
    pki: str = "/etc/pki/web",
    web: str = "/usr/share/hypervisor-formula/web",
    service: str = "nginx",
    sandbox: str = "",
) -> dict[str, Any]:
    """Make sure that nginx serves the site now and after a boot, with what is on disk.

    Args:
        name: Path of the site's file, below /etc/nginx.
        settings: Keys of the pillar.
        certificate: Of the site.
        key: Of the site.
        pki: The folder of what opens consoles.
        web: The folder of the page's files.
        service: The unit of nginx.
        sandbox: The unit's drop-in; nginx restarts where it is newer than nginx, and only then.

    Returns a state result; nothing has changed where nginx would not take the file.
    """
    return _serve(name, _Site(settings, certificate, key, pki, web, service, sandbox), watched=False)


def mod_watch(name: str, **given: Any) -> dict[str, Any]:
    """Do the same as ``served`` when a certificate has changed, or would."""
    site = _Site(**{field: given[field] for field in _Site._fields if field in given})
    return _serve(name, site, watched=bool(__opts__["test"]))


def _serve(name: str, site: _Site, *, watched: bool) -> dict[str, Any]:
    """Find out what there is to do, and do it or say it."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    path, text, service = Path(name), site.text(), site.service
    reads = site.reads()
    changes = _compared(path, text)
    if _run("systemctl", "is-enabled", service)["stdout"].strip() != "enabled":
        changes["enabled"] = service
    verb = _verb(service, [name, *reads], site.sandbox, changed=watched or bool({"file", "access"} & changes.keys()))
    if verb:
        changes[verb] = service
    if not changes:
        return ret | {"comment": "nginx serves what is on disk."}
    missing = [one for one in reads if not Path(one).exists()]
    if __opts__["test"] and (missing or not shutil.which("nginx")):
        # States before this one bring them.
        what = ", ".join(missing) or "nginx"
        return ret | {"result": None, "changes": changes, "comment": f"Would be tested once {what} is there."}
    try:
        if "file" in changes and (fault := _fault(path, text)):
            return ret | {"result": False, "comment": f"nginx refuses this, so nothing was changed: {fault}"}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": "nginx would take it."}
        if {"file", "access"} & changes.keys():
            __utils__["own_files.write"](path, text.encode(), _MODE)
    except OSError as error:
        return ret | {"result": False, "comment": f"{error}."}
    return _in_force(ret, changes, service, verb)


def _compared(path: Path, text: str) -> dict[str, Any]:
    """Return what is to change of the site's file."""
    before = __utils__["own_files.read"](path)
    if before != text.encode():
        return {"file": "new" if before is None else "changed"}
    wrong = __utils__["own_files.access"](path, _MODE)
    return {"access": wrong} if wrong else {}


def _verb(service: str, reads: list[str], sandbox: str, *, changed: bool) -> str:
    """Return what systemd has to do with nginx: start, restart, reload or nothing."""
    state, started, read = _unit(service)
    if state != "active":
        return "start"
    if sandbox and _written(sandbox) > started:
        return "restart"
    return "reload" if changed or max(map(_written, reads)) > read else ""


def _in_force(ret: dict[str, Any], changes: dict[str, Any], service: str, verb: str) -> dict[str, Any]:
    """Let nginx read its files: a reload keeps connections."""
    calls = [["enable", "--quiet", service]] if "enabled" in changes else []
    if verb in {"start", "restart"}:
        calls.append(["daemon-reload"])
    if verb:
        calls.append([verb, service])
    for argv in calls:
        done = _run("systemctl", *argv)
        if done["retcode"] != 0:
            comment = f"systemctl {' '.join(argv)} failed: {_said(done)}; see: journalctl -u {service}"
            return ret | {"result": False, "changes": changes, "comment": comment}
    return ret | {"changes": changes, "comment": "nginx serves what is on disk."}


def absent(name: str, web: str, service: str = "nginx", sandbox: str = "") -> dict[str, Any]:
    """Make sure that the page is not served; nginx goes on with its other sites.

    Args:
        name: Path of the site's file.
        web: The folder of the page's files.
        service: The unit of nginx.
        sandbox: The unit's drop-in.

    Returns a state result.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    there = [path for path in (name, sandbox, web) if path and Path(path).exists()]
    if not there:
        return ret | {"comment": "Nothing of the page is here."}
    ret["changes"] = {"removed": there}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "Would be removed."}
    try:
        for path in there:
            if Path(path).is_dir():
                shutil.rmtree(path)
            else:
                Path(path).unlink()
    except OSError as error:
        return ret | {"result": False, "comment": f"{error}."}
    calls = [["daemon-reload"]] if sandbox in there else []
    if _unit(service)[0] == "active":
        calls.append(["reload", service])
    for argv in calls:
        done = _run("systemctl", *argv)
        if done["retcode"] != 0:
            return ret | {"result": False, "comment": f"systemctl {' '.join(argv)} failed: {_said(done)}."}
    return ret | {"comment": "The page is not served any more."}


# ---- the page's own files ----


def page(name: str, source: str) -> dict[str, Any]:
    """Make sure that a folder holds the files of the page that were built, and no others.

    Args:
        name: The folder.
        source: Where they are on the file server (``salt://…``).

    Returns a state result. A page that was not built fails nothing: what is here already stays.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    target = Path(name)
    try:
        wanted = _built(source)
        if not wanted:
            comment = f"There is no page at {source}: run `make web` in the formula's checkout on the master."
            return ret | {"comment": comment + (" What is here already stays." if target.exists() else "")}
        present = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
        changed = [file for file, content in wanted.items() if _differs(target / file, content)]
        gone = sorted(present - wanted.keys())
        changes = {key: files for key, files in (("written", changed), ("removed", gone)) if files}
        if not changes:
            return ret | {"comment": f"{len(wanted)} files are as they were built."}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": "Would be brought here."}
        # What the page begins with comes when all that it names is there.
        for file in sorted(changed, key=lambda one: one.startswith("index.html")):
            __utils__["own_files.write"](target / file, wanted[file], _MODE)
        for file in gone:
            (target / file).unlink()
        _prune(target)
    except OSError as error:
        return ret | {"result": False, "comment": f"{error}."}
    return ret | {"changes": changes, "comment": f"{len(wanted)} files are as they were built."}


def _built(source: str) -> dict[str, bytes]:
    """Return the files on the file server by their path below the source."""
    prefix = source.removeprefix("salt://").rstrip("/") + "/"
    found: dict[str, bytes] = {}
    for path in sorted(__salt__["cp.list_master"](prefix=prefix)):
        file = path.removeprefix(prefix)
        # A file server may list what lies beside.
        if file == path or ".." in PurePosixPath(file).parts:
            continue
        cached = __salt__["cp.cache_file"](f"salt://{path}")
        if not cached:
            raise OSError(f"the file server lists salt://{path} and does not give it")
        found[file] = Path(cached).read_bytes()
    return found if "index.html" in found else {}


def _differs(path: Path, content: bytes) -> bool:
    """Say whether a file has other content or permissions than it should."""
    return bool(__utils__["own_files.read"](path) != content or __utils__["own_files.access"](path, _MODE))


def _prune(folder: Path) -> None:
    """Remove folders that nothing is in any more."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

"""Settings of the running kernel (sysctls), set and read back.

Salt's own state predicts a change for a file that an earlier state is about to write, and takes the
kernel's word for what it was given. This one compares what is in force, writes what differs and looks
whether the kernel took it. The file that sets the same at boot is a matter of file.managed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}

_PROC = Path("/proc/sys")
# systemd-sysctl reads these folders as one, sorted by the files' names; an earlier folder hides later ones.
_FOLDERS = tuple(Path(path, "sysctl.d") for path in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))
_KEY = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_-]+)+\Z")
# What these are when the module br_netfilter has just been loaded; before that there are none.
_BRIDGE = "net/bridge/"
_BRIDGE_DEFAULTS = {
    "bridge-nf-call-arptables": "1",
    "bridge-nf-call-iptables": "1",
    "bridge-nf-call-ip6tables": "1",
    "bridge-nf-filter-pppoe-tagged": "0",
    "bridge-nf-filter-vlan-tagged": "0",
    "bridge-nf-pass-vlan-input-dev": "0",
}


def relative(key: str) -> str:
    """Returns a setting's path below /proc/sys.

    As in sysctl(8), the first separator decides: after a dot, dots separate and a slash stands for a dot;
    after a slash, slashes separate. Raises ValueError for what is no name of a setting.
    """
    if not _KEY.match(key):
        raise ValueError(f"{key!r} is not the name of a kernel setting")
    first = next(char for char in key if char in "./")
    return key if first == "/" else key.translate(str.maketrans("./", "/."))


def same(one: str, other: str) -> bool:
    """Says whether two values are the same; the kernel separates words by tabs."""
    return one.split() == other.split()


def read(path: Path) -> str | None:
    """Returns a setting's value; None if this kernel has no such setting."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def plan(
    settings: Mapping[str, str], current: Mapping[str, str | None], test: bool
) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """Compares what is wanted with what is.

    Args:
        settings: the wanted values by key.
        current: the values in force; None where the kernel has no such setting.
        test: whether this is a prediction. Then br_netfilter may be about to be loaded.

    Returns:
        The changes, and the keys that this kernel does not have.
    """
    changes: dict[str, dict[str, str | None]] = {}
    unknown = []
    for key, value in settings.items():
        old = current[key]
        if old is None and test and relative(key).startswith(_BRIDGE):
            old = _BRIDGE_DEFAULTS.get(relative(key).removeprefix(_BRIDGE))
        if old is None:
            unknown.append(key)
        elif not same(old, value):
            changes[key] = {"old": old, "new": value}
    return changes, unknown


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yields the keys, as paths, and values of a file for systemd-sysctl."""
    for line in text.splitlines():
        key, equals, value = line.strip().removeprefix("-").partition("=")
        if equals and _KEY.match(key.strip()):
            yield relative(key.strip()), value.strip()


def overridden(settings: Mapping[str, str], own: Path) -> list[str]:
    """Lists what files that are read after our own set differently at boot, as sentences' parts."""
    files: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.conf")):
            files.setdefault(path.name, path)
    wanted = {relative(key): (key, value) for key, value in settings.items()}
    found = []
    for name in sorted(name for name in files if name > own.name):
        try:
            text = files[name].read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for setting, value in _assignments(text):
            if setting in wanted and not same(wanted[setting][1], value):
                found.append(f"{files[name]} sets {wanted[setting][0]} to {value}")
    return found


def applied(
    name: str,
    settings: dict[str, int | str] | None = None,
    file: str = "/etc/sysctl.d/90-hypervisor.conf",
    if_there: bool = False,
) -> dict[str, Any]:
    """Makes sure that the running kernel has these settings.

    Args:
        name: any label.
        settings: values by key, such as ``vm.swappiness``.
        file: the file that sets the same at boot; what later files set differently is said in the comment.
        if_there: leave out what this kernel does not have, because its module is not loaded.

    Returns:
        A state result. It fails for a setting that this kernel does not have, before it changes another,
        and for a value that the kernel refuses.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wanted = {key: str(value) for key, value in (settings or {}).items()}
    try:
        paths = {key: _PROC / relative(key) for key in wanted}
        if if_there:
            paths = {key: path for key, path in paths.items() if path.exists()}
            wanted = {key: wanted[key] for key in paths}
        changes, unknown = plan(wanted, {key: read(path) for key, path in paths.items()}, __opts__["test"])
    except (OSError, ValueError) as error:
        return ret | {"result": False, "comment": f"Nothing was set: {error}."}
    if unknown:
        comment = f"Nothing was set: this kernel has no {', '.join(unknown)}; a module may be missing (kvm:modules)."
        return ret | {"result": False, "comment": comment}
    later = overridden(wanted, Path(file))
    comment = f"At the next boot this is undone: {'; '.join(later)}." if later else "The kernel has these settings."
    if __opts__["test"]:
        return ret | {"result": None if changes else True, "changes": changes, "comment": comment}
    for key, change in changes.items():
        try:
            paths[key].write_text(wanted[key], encoding="utf-8")
        except OSError as error:
            reason = f"The kernel refuses {key} = {wanted[key]}: {error.strerror}."
            return ret | {"result": False, "comment": reason}
        now = read(paths[key]) or ""
        ret["changes"][key] = change | {"new": now}
        if not same(now, wanted[key]):
            return ret | {"result": False, "comment": f"The kernel made {now} of {key} = {wanted[key]}."}
    return ret | {"comment": comment}

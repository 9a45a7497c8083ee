"""Single arguments of the kernel's command line, for the next boot.

Only the named arguments are touched: what an installer, an image or an administrator put there
stays. Where the boot loader reads drop-in files (Debian, Ubuntu) there is one of our own that is
read last; where there is ``grubby`` (EL) it edits every boot entry; elsewhere the one line in
``/etc/default/grub`` is edited. A running kernel keeps its arguments, so the result says what waits
for a reboot. Nothing here reboots a host.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

Value = bool | int | str | list[str] | None

_DROP_IN = Path("/etc/default/grub.d/zz-hypervisor.cfg")
_DEFAULTS = Path("/etc/default/grub")
_RUNNING = Path("/proc/cmdline")
_MENUS = (Path("/boot/grub/grub.cfg"), Path("/boot/grub2/grub.cfg"))
_TIMEOUT = 300  # seconds; update-grub looks for other systems on every disk
_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_VALUE = re.compile(r"[A-Za-z0-9_.,:=/+@%~^-]*\Z")
_LINE = re.compile(r"^GRUB_CMDLINE_LINUX=(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """Words to put on the command line, in order, and the names of arguments to take off it."""

    words: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def owned(self) -> frozenset[str]:
        """Names of all arguments that this change decides about."""
        return frozenset(word.partition("=")[0] for word in self.words) | frozenset(self.absent)


def change(args: Mapping[str, Value], absent: Iterable[str]) -> Change:
    """Turn pillar's map into words.

    A value of None or True is a bare flag, a list repeats the argument, anything else follows an
    equals sign. Raises ValueError for what would need quoting or is asked for and refused at once.
    """
    words = []
    for name, value in args.items():
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is not the name of a kernel argument")
        if value is None or value is True:
            words.append(name)
            continue
        if value is False:
            raise ValueError(f"{name}: name an argument under absent to take it away")
        for item in value if isinstance(value, list) else [value]:
            if not _VALUE.match(str(item)):
                raise ValueError(f"{name}: {item!r} would need quotes on the command line")
            words.append(f"{name}={item}")
    gone = tuple(absent)
    for name in gone:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is not the name of a kernel argument")
        if name in args:
            raise ValueError(f"{name} is both wanted and absent")
    return Change(tuple(words), gone)


def applied(line: str, wanted: Change) -> str:
    """Return a command line with the change made; foreign words come first, in their order."""
    kept = [word for word in line.split() if word.partition("=")[0] not in wanted.owned]
    return " ".join(kept + list(wanted.words))


def pending(line: str, wanted: Change) -> list[str]:
    """List how a command line differs: ``+word`` is missing, ``-word`` is too much."""
    owned = [word for word in line.split() if word.partition("=")[0] in wanted.owned]
    return [f"+{word}" for word in wanted.words if word not in owned] + [
        f"-{word}" for word in owned if word not in wanted.words
    ]


def drop_in(wanted: Change) -> str:
    """Return a fragment for ``/etc/default/grub.d``.

    ``update-grub`` sources it after every other one, so it filters what they set rather than
    setting it again.
    """
    patterns = "|".join(f"{name}|{name}=*" for name in sorted(wanted.owned))
    return f"""\
# Written by Salt. It takes single arguments off both command lines and adds its own.
hypervisor_kept() {{
    set -f
    for hypervisor_word in $1; do
        case "$hypervisor_word" in
            {patterns}) ;;
            *) printf '%s ' "$hypervisor_word" ;;
        esac
    done
}}
GRUB_CMDLINE_LINUX="$(hypervisor_kept "$GRUB_CMDLINE_LINUX"){" ".join(wanted.words)}"
GRUB_CMDLINE_LINUX_DEFAULT="$(hypervisor_kept "$GRUB_CMDLINE_LINUX_DEFAULT")"
"""


def edited(defaults: str, wanted: Change) -> str:
    """Return ``/etc/default/grub`` with the change made in its one GRUB_CMDLINE_LINUX line.

    Takes the file's text. Raises ValueError if there are several such lines or one cannot be read.
    """
    lines = _LINE.findall(defaults)
    if len(lines) > 1:
        raise ValueError("/etc/default/grub sets GRUB_CMDLINE_LINUX more than once")
    try:
        words = " ".join(shlex.split(lines[0])) if lines else ""
    except ValueError as error:
        raise ValueError(f"the line in /etc/default/grub cannot be read: {error}") from error
    if any(char in words for char in '"`$\\'):
        raise ValueError("the line in /etc/default/grub holds shell syntax; edit it by hand")
    line = f'GRUB_CMDLINE_LINUX="{applied(words, wanted)}"'
    if lines:
        return _LINE.sub(lambda _: line, defaults)
    return defaults + ("" if defaults.endswith("\n") or not defaults else "\n") + line + "\n"


def _run(*argv: str) -> str:
    """Run a command and return its output; raises RuntimeError with its message if it fails."""
    done = __salt__["cmd.run_all"](
        list(argv), python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    if done["retcode"] != 0:
        raise RuntimeError(f"{' '.join(argv)} failed: {done['stderr'] or done['stdout']}")
    return str(done["stdout"])


def _write(path: Path, text: str) -> None:
    """Replace a file by a new one that is on disk."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")  # a leading dot: update-grub reads *.cfg only
    with staged.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fchmod(handle.fileno(), 0o644)
        os.fsync(handle.fileno())
    staged.replace(path)


def _menu() -> Path:
    """Return the boot menu; raises RuntimeError if there is none."""
    for path in _MENUS:
        if path.exists():
            return path
    raise RuntimeError("this host has no boot menu of GRUB (/boot/grub/grub.cfg)")


def _through_grubby(wanted: Change, test: bool) -> list[str]:
    """Bring every boot entry up to date with grubby; return what differed."""
    entries = _run("grubby", "--info=ALL")
    differences = sorted(
        {
            difference
            for line in re.findall(r'^args="(.*)"$', entries, re.MULTILINE)
            for difference in pending(line, wanted)
        }
    )
    if differences and not test:
        # An argument that changes its value has to go first, or grubby keeps both.
        off = " ".join(sorted(wanted.owned))
        _run("grubby", "--update-kernel=ALL", f"--remove-args={off}")
        if wanted.words:
            _run("grubby", "--update-kernel=ALL", f"--args={' '.join(wanted.words)}")
    return differences


def _through_files(wanted: Change, test: bool) -> list[str]:
    """Bring GRUB's settings and menu up to date; return what differed."""
    if not wanted.owned:
        if not _DROP_IN.exists():
            return []
        if not test:
            _DROP_IN.unlink()
            _run("update-grub")
        return [f"{_DROP_IN} is removed", "update-grub runs"]
    menu = _menu()
    if salt.utils.path.which("update-grub"):
        path, argv = _DROP_IN, ["update-grub"]
        text = drop_in(wanted)
    else:
        path, argv = _DEFAULTS, ["grub2-mkconfig", "-o", str(menu)]
        text = edited(path.read_text(encoding="utf-8") if path.exists() else "", wanted)
    current = path.read_text(encoding="utf-8") if path.exists() else None
    differences = [] if current == text else [f"{path} is written"]
    # Also when an earlier run was interrupted between the file and the menu.
    if differences or path.stat().st_mtime > menu.stat().st_mtime:
        differences.append(f"{argv[0]} runs")
        if not test:
            if current != text:
                _write(path, text)
            _run(*argv)
    if not (differences and test):  # a dry run knows only the old menu
        _check(menu.read_text(encoding="utf-8", errors="replace"), wanted)
    return differences


def _check(menu: str, wanted: Change) -> None:
    """Raise RuntimeError if the menu's first entry lacks a wanted argument or has an unwanted one."""
    lines = re.findall(r"^\s*linux(?:16|efi)?\s+\S+\s*(.*)$", menu, re.MULTILINE)
    if not lines:
        raise RuntimeError("the boot menu has no entry for a Linux kernel")
    # The first entry is the one that boots by default; others may be memory tests or other systems.
    if pending(lines[0], wanted):
        raise RuntimeError(f"the boot menu ({_menu()}) differs by {' '.join(pending(lines[0], wanted))}")


def present(
    name: str, args: dict[str, Value] | None = None, absent: list[str] | None = None
) -> dict[str, Any]:
    """Make sure that the next boot has these kernel arguments and lacks those.

    Args:
        name: Any label.
        args: Arguments and their values; null for a bare flag, a list to repeat one.
        absent: Names of arguments to take away, with whatever value.

    Returns a state result; its comment says what the running kernel still lacks.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test = bool(__opts__["test"])
    try:
        wanted = change(args or {}, absent or [])
        if wanted.owned and salt.utils.path.which("grubby"):
            differences = _through_grubby(wanted, test)
        else:
            differences = _through_files(wanted, test)
        waiting = pending(_RUNNING.read_text(encoding="utf-8"), wanted)
    except (OSError, RuntimeError, ValueError) as error:
        return ret | {"result": False, "comment": f"{error}."}
    if differences:
        ret["changes"] = {"boot": differences}
    if waiting:
        comment = f"A reboot is pending: the running kernel differs by {' '.join(waiting)}."
    elif wanted.owned:
        comment = "The running kernel has these arguments."
    else:
        comment = "No kernel argument is asked for."
    return ret | {"result": None if test and differences else True, "comment": comment}

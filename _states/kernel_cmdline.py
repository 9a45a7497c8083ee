"""Single arguments of the kernel's command line, for the next boot.

Only the named arguments are touched: what an installer, an image or an administrator put there
stays. Where the boot loader reads drop-in files (Debian, Ubuntu) there is one of our own that is
read last; where there is ``grubby`` (EL) it edits every boot entry; elsewhere the one line in
``/etc/default/grub`` is edited. A running kernel keeps its arguments, so the result says what waits
for a reboot. ``booted`` reboots where that is allowed, no guest runs, and it has not been tried before.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

Value = bool | int | str | list[str] | None

_DROP_IN = Path("/etc/default/grub.d/zz-hypervisor.cfg")
_DEFAULTS = Path("/etc/default/grub")
_RUNNING = Path("/proc/cmdline")
_MENUS = (Path("/boot/grub/grub.cfg"), Path("/boot/grub2/grub.cfg"))
_TIMEOUT = 300  # seconds; update-grub looks for other systems on every disk
_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_VALUE = re.compile(r"[A-Za-z0-9_.,:=/+@%~^-]*\Z")
_BOTH = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")
_LINE = re.compile(r"^(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)=(.*)$", re.MULTILINE)
# The same settings in whatever form; only plain ones are edited.
_ANY_LINE = re.compile(r"^[ \t]*(?:export[ \t]+)?(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)\+?=", re.MULTILINE)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Which kernel was rebooted for what, so that a host whose boot loader does not obey is rebooted once only.
_REBOOT = Path("/var/lib/hypervisor-formula/reboot.json")
_REBOOT_UNIT = "hypervisor-formula-reboot.service"
_GRACE = 10  # seconds from the end of a run to the reboot, for its result to reach the master
_LONGEST_RUN = 7200  # seconds that a reboot waits for the end of the run


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
    """Return ``/etc/default/grub`` with the change made in its lines of arguments.

    The wanted arguments stand in the one line GRUB_CMDLINE_LINUX; the line GRUB_CMDLINE_LINUX_DEFAULT,
    which is read after it, loses those that the change decides about. Takes the file's text. Raises
    ValueError if there are several lines of a kind or one cannot be read.
    """
    lines = dict(_LINE.findall(defaults))
    if len(_ANY_LINE.findall(defaults)) > len(lines):
        raise ValueError("/etc/default/grub sets GRUB_CMDLINE_LINUX or its _DEFAULT more than once, or not plainly")
    text = defaults
    for key in _BOTH:
        change = wanted if key == _BOTH[0] else Change((), tuple(sorted(wanted.owned)))
        try:
            values = shlex.split(lines.get(key, ""))
        except ValueError as error:
            raise ValueError(f"the line {key} in /etc/default/grub cannot be read: {error}") from error
        if len(values) > 1 and not values[1].startswith("#"):
            raise ValueError(f"the line {key} in /etc/default/grub holds more than a value; edit it by hand")
        words = " ".join("".join(values[:1]).split())
        if any(char in words for char in '"`$\\'):
            raise ValueError(f"the line {key} in /etc/default/grub holds shell syntax; edit it by hand")
        line = f'{key}="{applied(words, change)}"'
        if key not in lines:
            text += (("" if text.endswith("\n") or not text else "\n") + line + "\n") if change.words else ""
        elif applied(words, change).split() != words.split():
            text = re.sub(rf"^{key}=.*$", lambda _, line=line: line, text, flags=re.MULTILINE)  # type: ignore[misc]
    return text


def _run(*argv: str) -> str:
    """Run a command and return its output; raises RuntimeError with its message if it fails."""
    done = __salt__["cmd.run_all"](
        list(argv), python_shell=False, timeout=_TIMEOUT, ignore_retcode=True
    )
    if done["retcode"] != 0:
        raise RuntimeError(f"{' '.join(argv)} failed: {done['stderr'] or done['stdout']}")
    return str(done["stdout"])


def _write(path: Path, text: str) -> None:
    """Replace a file by a new one that is on disk; update-grub does not read what it is called until then."""
    __utils__["own_files.write"](path, text.encode("utf-8"), 0o644)


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


def _guests() -> list[str]:
    """Return the names of the guests that run here; raises RuntimeError if libvirt cannot be asked."""
    if not salt.utils.path.which("virsh"):
        return []
    try:
        listed = __utils__["libvirt_tools.virsh"]("list", "--name")
    except CommandExecutionError as error:
        raise RuntimeError(f"libvirt cannot be asked which guests run: {error}") from error
    return sorted(line.strip() for line in listed.splitlines() if line.strip())


def _tried() -> tuple[str, list[str]]:
    """Return the kernel's start that the latest reboot ended, and for which arguments it was."""
    try:
        noted = json.loads(_REBOOT.read_text(encoding="utf-8"))
        return str(noted["boot_id"]), list(noted["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def refusal(waiting: list[str], boot_id: str, tried: tuple[str, list[str]], guests: list[str]) -> str:
    """Return why a host that may be rebooted is not, as a sentence; empty when nothing is against it.

    Args:
        waiting: what the running kernel lacks or has too much.
        boot_id: the running kernel's own identifier.
        tried: that of the kernel which the latest reboot ended, and what it was for.
        guests: the guests that run.
    """
    if tried[0] and tried[0] != boot_id and set(waiting) <= set(tried[1]):
        return (
            "This host was rebooted for them already, and its kernel has not got them: the boot loader takes its "
            f"arguments from elsewhere. It is not rebooted again; remove {_REBOOT} to try once more"
        )
    if guests:
        return f"It waits for the guests that run here: {', '.join(guests)}. Migrate them or shut them down"
    return ""


def booted(
    name: str, args: dict[str, Value] | None = None, absent: list[str] | None = None, allow_reboot: bool = False
) -> dict[str, Any]:
    """Make sure that the running kernel has these arguments, by a reboot where that is allowed.

    The reboot begins when the run has ended and its result has had time to reach the master. It is
    tried once for the same arguments, and never while guests run.

    Args:
        name: Any label.
        args: see ``present``, which must have succeeded before.
        absent: see ``present``.
        allow_reboot: Whether the host may be rebooted (pillar ``kvm:kernel:allow_reboot``).

    Returns a state result, with a warning while a reboot is pending.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        waiting = pending(_RUNNING.read_text(encoding="utf-8"), change(args or {}, absent or []))
        if not waiting:
            if not __opts__["test"]:
                _REBOOT.unlink(missing_ok=True)
            return ret | {"comment": "The running kernel has these arguments."}
        differs = f"A reboot is pending: the running kernel differs by {' '.join(waiting)}."
        if not allow_reboot:
            comment = f"{differs} It is yours to do, or set kvm:kernel:allow_reboot to true in pillar."
            return ret | {"comment": comment, "warnings": [comment]}
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        if why := refusal(waiting, boot_id, _tried(), _guests()):
            failed = why.startswith("This host was rebooted")
            return ret | {"result": not failed, "comment": f"{differs} {why}.", "warnings": [f"{differs} {why}."]}
        ret["changes"] = {"reboot": {"for": waiting}}
        if __opts__["test"]:
            return ret | {"result": None, "comment": "The host would be rebooted when the run has ended."}
        _REBOOT.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(_REBOOT, json.dumps({"boot_id": boot_id, "arguments": waiting}) + "\n")
        _schedule(os.getpid())
    except (OSError, RuntimeError, ValueError) as error:
        return ret | {"result": False, "changes": {}, "comment": f"{error}."}
    comment = (
        f"The host is rebooted {_GRACE} s after this run has ended; to prevent that: systemctl stop {_REBOOT_UNIT}."
    )
    return ret | {"comment": comment, "warnings": [comment]}


def _schedule(process: int) -> None:
    """Let systemd reboot the host when a process has ended, unless that is arranged already."""
    active = __salt__["cmd.run_all"](
        ["systemctl", "is-active", _REBOOT_UNIT], python_shell=False, timeout=60, ignore_retcode=True
    )
    if active["stdout"].strip() in {"active", "activating"}:
        return
    wait = f"-/usr/bin/timeout {_LONGEST_RUN} /usr/bin/tail --pid={process} --follow /dev/null"
    argv = ["systemd-run", "--no-block", "--collect", "--quiet", f"--unit={_REBOOT_UNIT}"]
    argv += ["--description=Reboot for new kernel arguments", "--property=TimeoutStartSec=infinity"]
    argv += [f"--property=ExecStartPre={wait}", f"--property=ExecStartPre=/usr/bin/sleep {_GRACE}"]
    if virsh := salt.utils.path.which("virsh"):
        # A guest that was started or has moved here since then keeps the host up; systemd makes one $ of two.
        asks = f"{virsh} --quiet --connect qemu:///system list --name"
        argv.append(f"--property=ExecStartPre=/bin/sh -c 'guests=$$({asks}) && test -z \"$$guests\"'")
    _run(*argv, "systemctl", "reboot")

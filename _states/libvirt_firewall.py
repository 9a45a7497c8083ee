"""Opens libvirt's ports in the packet filter that a host has, and nothing else.

Where nothing drops packets nothing is needed, and nothing is done. Where nftables, iptables or firewalld does,
the listed networks are let through to the listed ports, now and after a reboot. No rule of anybody else is
changed, nothing is ever dropped by this state, and no default policy is set.

Rules of nftables and iptables are kept by a small unit of systemd, which brings them back whenever whoever
loads the others has done so; firewalld keeps its own.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __states__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_FOLDER = Path("/etc/hypervisor-formula")
_UNIT = "hypervisor-firewall.service"
_UNIT_FILE = Path("/etc/systemd/system") / _UNIT
_ZONES = Path("/etc/firewalld/zones")
_TIMEOUT = 60  # seconds for one command
_LOCK = 30  # seconds that iptables waits for whoever changes its rules at the moment
_BACKENDS = ("auto", "nftables", "iptables", "firewalld")
# Who loads the other rules of a host: after each of them come ours.
_LOADERS = (
    "nftables.service netfilter-persistent.service iptables.service ip6tables.service ufw.service"
)
_HEADER = "# Written by Salt. Change the pillar: what is edited here is replaced by the next run.\n"


class _Filter:
    """One packet filter: how it is asked, checked and told, and where its rules are stored for the boot."""

    def __init__(
        self, file: str, ask: Sequence[str], check: Sequence[str], tell: Sequence[str], load: Sequence[str]
    ) -> None:
        self.file, self.ask, self.check, self.tell = _FOLDER / file, list(ask), list(check), list(tell)
        self.load = [*load, str(_FOLDER / file)]


_NFT = _Filter(
    "libvirt.nft",
    ("nft", "--json", "list", "ruleset"),
    ("nft", "--check", "--file", "-"),
    ("nft", "--file", "-"),
    ("nft", "--file"),
)


def _ipt(version: int) -> _Filter:
    """Return iptables for IPv4 or IPv6."""
    name = "iptables" if version == 4 else "ip6tables"
    # At boot libvirt itself adds rules at the same time; the old iptables has one lock for all, and gives up at once.
    restore = (f"{name}-restore", "--noflush", f"--wait={_LOCK}")
    return _Filter(f"libvirt.{name}", (f"{name}-save",), (*restore, "--test"), restore, restore)


def _run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command and return what it wrote; raises CommandExecutionError with its words."""
    return str(__utils__["libvirt_tools.run"](list(argv), _TIMEOUT, stdin))


def _has(program: str) -> bool:
    """Whether a program is installed."""
    return bool(salt.utils.path.which(program))


def _firewalld_runs() -> bool:
    """Whether firewalld is installed and in charge."""
    if not _has("firewall-cmd"):
        return False
    try:
        return _run(["firewall-cmd", "--state"]).strip() == "running"
    except CommandExecutionError:
        return False


def _survey(wanted: Sequence[Any], backend: str, firewalld: bool) -> list[tuple[_Filter, Any]]:
    """Ask nftables and iptables what there is; return each with what it shall be told."""
    found = []
    if backend in ("auto", "nftables") and _has("nft"):
        skip = ["firewalld"] if firewalld else []
        found.append((_NFT, __utils__["packet_filter.nft"](_run(_NFT.ask), wanted, skip)))
    # firewalld keeps the chains of iptables itself where that is what it uses.
    if backend in ("auto", "iptables") and not (firewalld and wanted):
        for version in (4, 6):
            tool = _ipt(version)
            if _has(tool.ask[0]) and _has(tool.tell[0]):
                change = __utils__["packet_filter.iptables"](_run(tool.ask), wanted, version)
                found.append((tool, change))
    return found


# ---- firewalld ----


def _firewalld(wanted: Sequence[Any], zones: Sequence[str]) -> list[tuple[list[str], str, Any]]:
    """Compare firewalld's zones with what is wanted.

    Returns, for each place to change, the command with its zone, the place's name, and what
    ``packet_filter.rich_difference`` says.
    """
    if wanted:
        chosen = list(zones) or __utils__["packet_filter.zones"](
            _run(["firewall-cmd", "--get-active-zones"]), _run(["firewall-cmd", "--get-default-zone"])
        )
    else:
        chosen = []
    everywhere = _run(["firewall-cmd", "--permanent", "--get-zones"]).split()
    missing = sorted(set(chosen) - set(everywhere))
    if missing:
        raise CommandExecutionError(f"firewalld has no zone {', '.join(missing)}; there are: {' '.join(everywhere)}")
    # Elsewhere there may be rules of ours from before; only such zones are asked.
    marked = [path.stem for path in _ZONES.glob("*.xml") if _is_marked(path)]
    found = []
    for zone in sorted({*chosen, *marked}):
        for label, command in (("", ["firewall-cmd"]), (" permanent", ["firewall-cmd", "--permanent"])):
            argv = [*command, f"--zone={zone}"]
            rows = wanted if zone in chosen else []
            what = __utils__["packet_filter.rich_difference"](_run([*argv, "--list-rich-rules"]), rows)
            found.append((argv, f"firewalld {zone}{label}", what))
    return found


def _offline() -> list[tuple[list[str], str, Any]]:
    """Find rules of ours in the files of a firewalld that does not run."""
    found = []
    for path in sorted(_ZONES.glob("*.xml")):
        if _is_marked(path) and _has("firewall-offline-cmd"):
            argv = ["firewall-offline-cmd", f"--zone={path.stem}"]
            what = __utils__["packet_filter.rich_difference"](_run([*argv, "--list-rich-rules"]), [])
            found.append((argv, f"firewalld {path.stem} permanent", what))
    return found


def _is_marked(path: Path) -> bool:
    """Whether a zone's file has a rule of ours."""
    return f'priority="{__utils__["packet_filter.priority"]()}"' in path.read_text(encoding="utf-8", errors="replace")


# ---- what survives a reboot ----


def _unit_text(commands: Sequence[str]) -> str:
    """Return the unit that brings the rules back."""
    run = "".join(f"ExecStart={command}\n" for command in commands)
    again = "".join(f"ExecReload={command}\n" for command in commands)
    return (
        f"{_HEADER}[Unit]\nDescription=Ports of libvirt in the packet filter\n"
        f"After={_LOADERS}\nPartOf={_LOADERS}\nReloadPropagatedFrom={_LOADERS}\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\n{run}{again}"
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW\nNoNewPrivileges=yes\nProtectSystem=full\nProtectHome=yes\n\n"
        f"[Install]\nWantedBy=multi-user.target {_LOADERS}\n"
    )


def _stored(found: Sequence[tuple[_Filter, Any]]) -> dict[Path, str]:
    """Return the files that bring the rules back after a reboot; an empty text is no file."""
    files = {tool.file: "" for tool in (_NFT, _ipt(4), _ipt(6))}
    commands = []
    for tool, change in found:
        if change.stored:
            files[tool.file] = _HEADER + change.stored
            commands.append(" ".join([str(salt.utils.path.which(tool.load[0])), *tool.load[1:]]))
    return {**files, _UNIT_FILE: _unit_text(commands) if commands else ""}


def _keep(files: Mapping[Path, str]) -> dict[str, Any]:
    """Write these files, and say what the unit needs; in a dry run only say what would change."""
    changes: dict[str, Any] = {}
    if not files[_UNIT_FILE] and _UNIT_FILE.exists():
        changes[_UNIT] = ["disable", "stop"]
        if not __opts__["test"]:
            _run(["systemctl", "disable", "--now", _UNIT])
    for path, text in files.items():
        state = "file.managed" if text else "file.absent"
        options = {"contents": text, "user": "root", "group": "root", "mode": "0644", "makedirs": True}
        done = __states__[state](str(path), **(options if text else {}))
        if done["result"] is False:
            raise CommandExecutionError(f"{path}: {done['comment']}")
        if done["changes"]:
            changes[str(path)] = "written" if text else "removed"
    if str(_UNIT_FILE) in changes and not __opts__["test"]:
        _run(["systemctl", "daemon-reload"])
    if not any(files.values()) and changes and not __opts__["test"]:
        with contextlib.suppress(OSError):
            # Somebody else's files may be in it.
            _FOLDER.rmdir()
    if files[_UNIT_FILE]:
        needs = [verb for verb, done in (("enable", _enabled()), ("start", _active())) if not done]
        if needs:
            changes[_UNIT] = needs
    return changes


def _enabled() -> bool:
    """Whether the unit starts with the host."""
    return (Path("/etc/systemd/system/multi-user.target.wants") / _UNIT).is_symlink()


def _active() -> bool:
    """Whether the unit has brought the rules; systemd tells it of a reload only then."""
    return _run(["systemctl", "show", "--property=ActiveState", "--value", _UNIT]).strip() == "active"


# ---- the states ----


def _apply(found: Sequence[tuple[_Filter, Any]], needs: Sequence[str]) -> None:
    """Tell nftables and iptables what they shall be told, or let the unit do it where it has to start anyway."""
    if "enable" in needs:
        _run(["systemctl", "enable", _UNIT])
    if "start" not in needs:
        for tool, change in found:
            if change.script:
                _run(tool.tell, change.script)
        return
    # The unit adds everything anew, so what is there of ours goes first.
    for tool, _ in found:
        kind = "nft" if tool is _NFT else "iptables"
        version = [] if tool is _NFT else [6 if "6" in tool.ask[0] else 4]
        clean = __utils__[f"packet_filter.{kind}"](_run(tool.ask), [], *version)
        if clean.script:
            _run(tool.tell, clean.script)
    _run(["systemctl", "restart", _UNIT])


def _apply_firewalld(places: Sequence[tuple[list[str], str, Any]]) -> None:
    """Add and remove rules in firewalld's zones."""
    for argv, _, (add, remove, _) in places:
        for verb, lines in (("add", add), ("remove", remove)):
            if lines:
                _run([*argv, *(f"--{verb}-rich-rule={line}" for line in lines)])


def _become(ret: dict[str, Any], wanted: Sequence[Any], backend: str, zones: Sequence[str]) -> dict[str, Any]:
    """Compare, check and apply."""
    firewalld = backend in ("auto", "firewalld") and _firewalld_runs()
    found = _survey(wanted, backend, firewalld)
    places = _firewalld(wanted, zones) if firewalld else [] if wanted else _offline()
    refused = [line for _, change in found for line in change.refused]
    if refused:
        lines = "; ".join(refused)
        comment = (
            "Nothing was changed: a chain drops packets before they reach a chain for input, where this state "
            f"adds no rule. Add to what loads that chain: {lines}"
        )
        return ret | {"result": False, "comment": comment}
    for tool, change in found:
        if change.script:
            _run(tool.check, change.script)
    # From here on something changes, so that a failure has to tell it.
    for _, change in found:
        ret["changes"].update(change.changes)
    ret["changes"].update({place: words for _, place, (_, _, words) in places if words})
    kept = _keep(_stored(found))
    ret["changes"].update(kept)
    if not __opts__["test"]:
        _apply(found, kept.get(_UNIT, ()))
        _apply_firewalld(places)
    filters = [tool.ask[0] for tool, change in found if change.stored] + (["firewalld"] if places else [])
    return ret | {"comment": ", ".join(filters)}


def opened(
    name: str,
    networks: list[str],
    ports: list[str],
    backend: str = "auto",
    zones: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that networks reach ports of this host, as far as its packet filter is concerned.

    Args:
        name: Any label.
        networks: Networks such as ``192.0.2.0/24``. Without any nothing is done, and nothing undone.
        ports: TCP ports, or ranges such as ``49152-49215``.
        backend: ``nftables``, ``iptables`` or ``firewalld``; ``auto`` is every one that drops packets.
        zones: Zones of firewalld; by default those that are active, and its default.

    Returns a state result with the rules that came and went, by place.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    if backend not in _BACKENDS:
        comment = f"backend: {backend!r} is not allowed; allowed: {', '.join(_BACKENDS)}."
        return ret | {"result": False, "comment": comment}
    if not networks or not ports:
        comment = "No network is listed, so nothing is opened. What was opened before stays until ensure: absent."
        return ret | {"comment": comment}
    try:
        wanted = __utils__["packet_filter.rules"](networks, ports)
        ret = _become(ret, wanted, backend, zones or [])
    except (CommandExecutionError, ValueError) as error:
        return ret | {"result": False, "comment": f"The ports could not be opened: {error}"}
    if ret["result"] is False:
        return ret
    if not ret["comment"] and not ret["changes"]:
        return ret | {"comment": "Nothing drops packets on this host, so nothing has to be opened."}
    return _told(ret, f"The ports are open in: {ret['comment'] or 'no filter'}.")


def absent(name: str) -> dict[str, Any]:
    """Make sure that nothing of this state is in any packet filter, now and after a reboot.

    Args:
        name: Any label.

    Returns a state result with the rules that went, by place.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        ret = _become(ret, [], "auto", [])
    except (CommandExecutionError, ValueError) as error:
        return ret | {"result": False, "comment": f"The rules could not be taken out: {error}"}
    return _told(ret, "No rule of this state is in the packet filter.")


def _told(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    """Return the result of a run that did, or would do, what it had to."""
    if ret["changes"] and __opts__["test"]:
        return ret | {"result": None, "comment": "The packet filter would be changed."}
    return ret | {"comment": comment}

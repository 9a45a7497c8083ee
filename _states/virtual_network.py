"""Virtual networks of libvirt: with address translation, routed, isolated, or a bridge of the host.

A network is told to libvirt and started. One that is there already and means the same is adopted as it
is. DHCP hosts and ranges, DNS entries and port groups change while guests are attached; what else
changes needs a restart of the network, which cuts the guests' interfaces for a moment, and waits for
``allow_restart: true`` while there are any.

The arguments are those of a network in the pillar (``libvirt:networks``, see docs/pillar.rst), and are
judged by the same schema.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError
from salt.state import STATE_INTERNAL_KEYWORDS

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_DEVICES = Path("/sys/class/net")


def running(name: str, **settings: Any) -> dict[str, Any]:
    """Make sure that a network is defined like this and runs.

    Args:
        name: The network.
        settings: As in the pillar, see above.

    Returns a state result. If a change waits for a restart, the comment says which guests it would cut.
    """
    return _managed(name, "running", settings)


def defined(name: str, **settings: Any) -> dict[str, Any]:
    """Make sure that a network is defined like this, whether it runs or not.

    Args:
        name: The network.
        settings: As in the pillar, see above.

    Returns a state result.
    """
    return _managed(name, "defined", settings)


def absent(name: str, leaving: list[str] | None = None) -> dict[str, Any]:
    """Make sure that libvirt has no network of this name.

    Args:
        name: The network.
        leaving: Guests that the same run removes before: a dry run, which still finds them, does not count them.

    Returns a state result; a failure that names them while guests, running or not, are attached.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    errors = _judge(name, {"ensure": "absent"})
    if errors:
        return ret | {"result": False, "comment": "\n".join(errors)}
    if shutil.which("virsh") is None:
        return ret | {"comment": f"There is no network {name}."}
    try:
        config, info = _asked(name)
        if config is None:
            return ret | {"comment": f"There is no network {name}."}
        users = dict.fromkeys([guest for guest, _ in _plugs(name, "--all", "--inactive") + _plugs(name)])
        if __opts__["test"]:
            users = dict.fromkeys(guest for guest in users if guest not in (leaving or ()))
        if users:
            comment = f"The network {name} stays: guests are attached to it: {', '.join(users)}."
            return ret | {"result": False, "comment": comment}
        changes = {"state": {"old": "running" if info["active"] else "defined", "new": "absent"}}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": f"The network {name} would be undefined."}
        if info["active"]:
            _virsh("net-destroy", "--", name)
        if info["persistent"]:
            _virsh("net-undefine", "--", name)
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"Network {name}: {error}."}
    return ret | {"changes": changes, "comment": f"The network {name} is undefined."}


def _managed(name: str, ensure: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `running` and `defined` promise."""
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    spec = {key: value for key, value in given.items() if key not in STATE_INTERNAL_KEYWORDS and key[:2] != "__"}
    spec["ensure"] = ensure
    errors = _judge(name, spec)
    if errors:
        return ret | {"result": False, "comment": "\n".join(errors)}
    if shutil.which("virsh") is None:
        if __opts__["test"]:
            changes = {"network": "to be set up once libvirt is installed"}
            return ret | {"result": None, "changes": changes, "comment": "libvirt is not installed yet."}
        return ret | {"result": False, "comment": f"Network {name}: libvirt is not installed."}
    try:
        todo = _planned(name, spec)
        if any(step.action == "define" for step in todo.steps):
            why = _in_the_way(name, spec)
            if why:
                return ret | {"result": False, "comment": "\n".join(why)}
        waits = _waiting(todo.waits)
        if __opts__["test"]:
            for step in todo.steps:
                _add(ret["changes"], step.changes)
            comment = f"The network {name} {'would change' if ret['changes'] else 'is as it should be'}."
            return ret | {"result": None if ret["changes"] else True, "comment": comment + waits}
        if cut := _done(todo.steps, ret["changes"]):
            comment = f"The network {name} runs, but interfaces of guests are not plugged in again: {'; '.join(cut)}."
            return ret | {"result": False, "comment": comment}
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": f"Network {name}: {error}."}
    comment = f"The network {name} is {f'{ensure} now' if ret['changes'] else 'as it should be'}."
    return ret | {"comment": comment + waits}


def _planned(name: str, spec: Mapping[str, Any]) -> Any:
    """Return libvirt_network's Plan, made with the guests in mind if it would start or restart the network."""
    facts = _facts(name)
    todo = __utils__["libvirt_network.plan"](name, spec, facts)
    if any(step.arguments[0] in {"net-destroy", "net-start"} for step in todo.steps):
        # Guests are asked themselves: what libvirt counts is lost by its own net-update.
        todo = __utils__["libvirt_network.plan"](name, spec, facts._replace(plugs=_plugs(name)))
    return todo


def _waiting(guests: tuple[str, ...]) -> str:
    """Say what waits for a restart; an empty text if nothing does."""
    if not guests:
        return ""
    return (
        " What changed takes effect when the network is restarted, which would cut the interfaces of"
        f" {', '.join(guests)} for a moment: set allow_restart: true, or shut them down, then run this again."
    )


def _add(changes: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add a step's changes to those before it."""
    for key, value in more.items():
        changes[key] = {**changes[key], **value} if key in changes else value


def _judge(name: str, spec: Mapping[str, Any]) -> list[str]:
    """Judge a name and arguments; return one line for each error."""
    if not __utils__["libvirt_tools.is_name"](name):
        return [f"{name!r} cannot be the name of a network: letters, digits and _.+:@- are allowed."]
    errors: list[str] = __salt__["formula.judge"]("libvirt", "network", dict(spec), name)
    if not errors:
        errors = [f"{name}:{key}: {text}" for key, text in __utils__["libvirt_rules.network"](spec)]
    return errors


def _virsh(*argv: str) -> str:
    """Run a command of virsh."""
    return str(__utils__["libvirt_tools.virsh"](*argv))


def _asked(name: str) -> tuple[str | None, dict[str, bool]]:
    """Return the XML that the next start uses, or None, and whether the network is active, persistent, autostart."""
    if name not in _virsh("net-list", "--all", "--name").split():
        return None, {"active": False, "persistent": False, "autostart": False}
    config = _virsh("net-dumpxml", "--inactive", "--", name)
    info = dict(re.findall(r"^(\w+): +(.*)$", _virsh("net-info", "--", name), re.MULTILINE))
    return config, {key: info.get(key.capitalize()) == "yes" for key in ("active", "persistent", "autostart")}


def _facts(name: str) -> Any:
    """Look at the host; return libvirt_network's Facts."""
    config, info = _asked(name)
    live = _virsh("net-dumpxml", "--", name) if info["active"] else None
    return __utils__["libvirt_network.facts_of"](
        config=config,
        live=live,
        persistent=info["persistent"],
        autostart=info["autostart"],
    )


def _plugs(name: str, *options: str) -> tuple[tuple[str, str], ...]:
    """Return the guests' interfaces in a network, as pairs of a guest and a device; by default of running guests."""
    found: list[tuple[str, str]] = []
    # A name of somebody else's guest may hold blanks.
    for guest in _virsh("list", "--name", *[one for one in options if one == "--all"]).strip().splitlines():
        xml = _virsh("dumpxml", *[one for one in options if one != "--all"], "--", guest)
        found += [(guest, device) for device in __utils__["libvirt_network.plugs"](xml, name)]
    return tuple(found)


def _in_the_way(name: str, spec: Mapping[str, Any]) -> list[str]:
    """Find networks that run already and overlap; return one line for each."""
    rules, others = [], _virsh("net-list", "--name").strip().splitlines()
    for other in others:
        if other != name:
            xml = _virsh("net-dumpxml", "--", other)
            rules += __utils__["libvirt_rules.overlaps"](spec, other, xml)
    return [f"{name}:{key}: {text}" for key, text in rules]


def _done(steps: Iterable[Any], changes: dict[str, Any]) -> list[str]:
    """Do the steps and add their changes; return which interfaces are not plugged in again, and why."""
    cut = []
    for step in steps:
        if step.action == "plug":
            cut += _plug(*step.arguments)
        else:
            _do(step)
            _add(changes, step.changes)
    return cut


def _do(step: Any) -> None:
    """Do one step of a plan; raises CommandExecutionError."""
    if step.action == "define":
        __utils__["libvirt_tools.virsh"]("net-define", "/dev/stdin", stdin=step.arguments[0])
    else:
        _virsh(*step.arguments)


def _plug(name: str, guest: str, device: str) -> list[str]:
    """Put a guest's interface into a network's bridge again; return why it is not in it, if so."""
    # One that is in a bridge has not been cut.
    if not device or (_DEVICES / device / "master").exists():
        return []
    try:
        bridge = re.search(r"<bridge name='([^']+)'", _virsh("net-dumpxml", "--", name))
        if bridge:
            __utils__["libvirt_tools.run"](["ip", "link", "set", "dev", device, "master", bridge.group(1)])
    except CommandExecutionError as error:
        # The guest may have ended meanwhile; the others still need theirs.
        return [f"{guest} ({device}): {error}"] if (_DEVICES / device).exists() else []
    return []

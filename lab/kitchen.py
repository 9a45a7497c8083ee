"""Platforms, hosts and suites as `kitchen.yml` defines them, for the lab and for Test Kitchen.

Test Kitchen and the lab read one file. :func:`load` turns it into data classes and refuses what the
lab could not use, naming the key. :func:`write_override` writes the local file that lets the
genuine Test Kitchen converge and verify hosts of a running lab.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .proc import LabError

CONTROLLER = "controller"
_HOST_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_OVERRIDE_HEADER = (
    "# Written by `lab kitchen` for the lab {lab!r}; not to be committed."
    " Remove it to use Vagrant again.\n"
)


class KitchenError(LabError):
    """What is wrong in `kitchen.yml`, or with a request that names things of it; one sentence."""


@dataclass(frozen=True)
class Platform:
    """An operating system that suites run on.

    `name` is Test Kitchen's name for it (`debian-12`), `release` the distribution's (`bookworm`).
    """

    name: str
    release: str


@dataclass(frozen=True)
class HostSpec:
    """A host of the lab: its short name, its pillar roles, its memory in MiB and its processors.

    A `spare` one is part of a lab only where it is named.
    """

    name: str
    roles: tuple[str, ...]
    memory_mib: int
    cpus: int
    spare: bool = False


@dataclass(frozen=True)
class Suite:
    """A set of states and the tests that prove them on one host.

    `host` is the lab host that proves it, `verifier_argv` the command of Test Kitchen's verifier as
    an argument list, `pillars` maps pillar file names on the host to files here (relative to the
    repository), `states` lists the states of its top file. `kind` is the only kind of host that it works
    on, "container" or "vm", or empty when any does.
    """

    name: str
    host: str
    verifier_argv: tuple[str, ...]
    pillars: Mapping[str, str]
    states: tuple[str, ...]
    kind: str = ""

    def works_on(self, kind: str) -> bool:
        """Returns whether a host of that kind, "container" or "vm", can prove it."""
        return self.kind in ("", kind)


@dataclass(frozen=True)
class Kitchen:
    """Everything the lab takes from `kitchen.yml`, by name and in the file's order."""

    platforms: dict[str, Platform]
    hosts: dict[str, HostSpec]
    suites: dict[str, Suite]

    @property
    def controller(self) -> str:
        """The name of the host that is the lab's Salt master."""
        return next(host.name for host in self.hosts.values() if CONTROLLER in host.roles)


@dataclass(frozen=True)
class Target:
    """How a host of a running lab is reached by ssh.

    `host` is its short name and minion id, `kind` "container" or "vm"; `ssh_key` and `known_hosts` are files
    on this machine.
    """

    host: str
    address: str
    ssh_key: Path
    known_hosts: Path
    port: int = 22
    username: str = "root"
    kind: str = "container"


def load(path: Path) -> Kitchen:
    """Reads a kitchen file.

    Args:
        path: the file, `kitchen.yml` of this repository.

    Returns:
        its platforms, hosts and suites.

    Raises:
        KitchenError: the file is missing or not YAML, or a key is missing, unknown or wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitchenError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KitchenError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise KitchenError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    root = _Node(path.name, data)
    lab = root.child("lab").only("releases", "hosts", "suites")
    platforms = _platforms(root.child("platforms"), lab.child("releases"))
    hosts = {name: _host(name, node) for name, node in lab.child("hosts").items()}
    masters = [host.name for host in hosts.values() if CONTROLLER in host.roles]
    if len(masters) != 1:
        raise lab.child("hosts").error(f"exactly one host must have the role {CONTROLLER!r}")
    return Kitchen(platforms, hosts, _suites(root.child("suites"), lab.child("suites"), hosts))


def verifier_environment(suite: Suite, platform: str, target: Target) -> dict[str, str]:
    """The variables that Test Kitchen gives to a verifier command, for a lab host.

    Args:
        suite: the suite that is verified.
        platform: the name of the platform that the host runs.
        target: how the host is reached.

    Returns:
        variables to add to the environment of `suite.verifier_argv`.
    """
    return {
        "KITCHEN_INSTANCE": f"{suite.name}-{platform}".replace(".", ""),
        "KITCHEN_SUITE": suite.name,
        "KITCHEN_PLATFORM": platform,
        "KITCHEN_HOSTNAME": target.address,
        "KITCHEN_PORT": str(target.port),
        "KITCHEN_USERNAME": target.username,
        "KITCHEN_SSH_KEY": str(target.ssh_key),
        "KITCHEN_KNOWN_HOSTS": str(target.known_hosts),
    }


def override(kitchen: Kitchen, lab: str, platform: str, targets: Mapping[str, Target]) -> str:
    """The text of a `.kitchen.local.yml` that points Test Kitchen at a running lab.

    Args:
        kitchen: the definition that is overridden.
        lab: the lab's name, for the comment at the top.
        platform: the name of the platform that the lab's hosts run.
        targets: the lab's hosts by name.

    Returns:
        YAML with that one platform, the proxy driver and a suite for every host that is there.

    Raises:
        KitchenError: the platform is unknown, or no suite's host is among the targets.
    """
    if platform not in kitchen.platforms:
        known = ", ".join(kitchen.platforms)
        raise KitchenError(f"platform {platform!r} is not in kitchen.yml; it has: {known}")
    suites = [
        _override_suite(suite, targets[suite.host], kitchen.controller)
        for suite in kitchen.suites.values()
        if suite.host in targets and suite.works_on(targets[suite.host].kind)
    ]
    if not suites:
        wanted = ", ".join(sorted({suite.host for suite in kitchen.suites.values()}))
        raise KitchenError(f"the lab {lab!r} runs no host that proves a suite; wanted: {wanted}")
    data = {
        "driver": {"name": "proxy"},
        "platforms": [{"name": platform}],
        "suites": suites,
    }
    return _OVERRIDE_HEADER.format(lab=lab) + yaml.safe_dump(data, sort_keys=False, width=100)


def write_override(
    kitchen: Kitchen, lab: str, platform: str, targets: Mapping[str, Target], path: Path
) -> None:
    """Writes what :func:`override` makes to a file, replacing it at once or not at all.

    Args:
        kitchen: see :func:`override`.
        lab: see :func:`override`.
        platform: see :func:`override`.
        targets: see :func:`override`.
        path: the file, `.kitchen.local.yml` beside `kitchen.yml`.

    Raises:
        KitchenError: see :func:`override`, or the file is there and was not written by the lab.
        OSError: the file cannot be written.
    """
    text = override(kitchen, lab, platform, targets)
    marker = _OVERRIDE_HEADER.split("{", 1)[0]
    if path.exists() and not path.read_text(encoding="utf-8").startswith(marker):
        raise KitchenError(f"{path} was not written by `lab kitchen`; move it away first")
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _override_suite(suite: Suite, target: Target, master: str) -> dict[str, Any]:
    # The proxy driver keeps no key in its state, so Test Kitchen has none to give to the verifier.
    variables = {
        "KITCHEN_SSH_KEY": str(target.ssh_key),
        "KITCHEN_KNOWN_HOSTS": str(target.known_hosts),
    }
    # kitchen-salt writes a configuration for a run without a master; this takes it back.
    minion = {
        "id": target.host,
        "master": master,
        "local": False,
        "file_client": "remote",
        "root_dir": "/",
        "pki_dir": "/etc/salt/pki/minion",
        "minimum_auth_version": 3,
    }
    return {
        "name": suite.name,
        "driver": {
            "name": "proxy",
            "host": target.address,
            "port": target.port,
            "username": target.username,
        },
        "transport": {
            "name": "ssh",
            "ssh_key": str(target.ssh_key),
            "username": target.username,
            "port": target.port,
        },
        "provisioner": {
            "salt_install": "none",
            "salt_call_command": "/usr/local/bin/salt-call",
            "salt_minion_id": target.host,
            "prepare_salt_environment": ":",
            "sudo": target.username != "root",
            "salt_minion_extra_config": minion,
            "state_top": {"base": {"*": list(suite.states)}},
            "pillars_from_files": dict(suite.pillars),
        },
        "verifier": {
            "command": " ".join(
                [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
                + [shlex.join(suite.verifier_argv)]
            )
        },
    }


class _Node:
    """A place in the file: its path for messages, and its value."""

    def __init__(self, path: str, value: Any) -> None:
        self.path = path
        self.value = value

    def error(self, problem: str) -> KitchenError:
        return KitchenError(f"{self.path}: {problem}")

    def mapping(self) -> dict[Any, Any]:
        if not isinstance(self.value, dict):
            raise self.error("must be a mapping")
        return self.value

    def child(self, key: str) -> _Node:
        mapping = self.mapping()
        if key not in mapping:
            raise self.error(f"has no key {key!r}")
        return _Node(f"{self.path}:{key}", mapping[key])

    def items(self) -> list[tuple[str, _Node]]:
        return [(str(key), self.child(key)) for key in self.mapping()]

    def elements(self) -> list[_Node]:
        if not isinstance(self.value, list):
            raise self.error("must be a list")
        return [_Node(f"{self.path}:{index}", value) for index, value in enumerate(self.value)]

    def only(self, *allowed: str) -> _Node:
        for key in self.mapping():
            if key not in allowed:
                raise self.error(f"does not know the key {key!r}; allowed: {', '.join(allowed)}")
        return self

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error("must be a text that is not empty")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error("must be true or false")
        return self.value

    def number(self, least: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            raise self.error(f"must be a whole number of at least {least}")
        return self.value


def _named(nodes: _Node) -> dict[str, _Node]:
    named: dict[str, _Node] = {}
    for node in nodes.elements():
        name = node.child("name").text()
        if name in named:
            raise node.error(f"the name {name!r} is there twice")
        named[name] = _Node(f"{nodes.path}:{name}", node.value)
    if not named:
        raise nodes.error("must not be empty")
    return named


def _platforms(nodes: _Node, releases: _Node) -> dict[str, Platform]:
    named = _named(nodes)
    for name, node in releases.items():
        if name not in named:
            raise node.error("is not a platform")
    return {name: Platform(name, releases.child(name).text()) for name in named}


def _host(name: str, node: _Node) -> HostSpec:
    if not _HOST_NAME.fullmatch(name):
        raise node.error("is not a host name (small letters, digits and '-', a letter first)")
    node.only("roles", "memory", "cpus", "spare")
    roles = tuple(role.text() for role in node.child("roles").elements())
    if not roles:
        raise node.child("roles").error("must name at least one role")
    spare = node.child("spare").flag() if "spare" in node.mapping() else False
    return HostSpec(name, roles, node.child("memory").number(256), node.child("cpus").number(1), spare)


def _suites(nodes: _Node, places: _Node, hosts: Mapping[str, HostSpec]) -> dict[str, Suite]:
    named = _named(nodes)
    for name, place in places.items():
        if name not in named:
            raise place.error("is not a suite")
    return {name: _suite(name, node, places.child(name), hosts) for name, node in named.items()}


def _suite(name: str, node: _Node, place: _Node, hosts: Mapping[str, HostSpec]) -> Suite:
    host = place.only("host", "kind").child("host")
    kind = place.child("kind").text() if "kind" in place.mapping() else ""
    if kind not in ("", "container", "vm"):
        raise place.child("kind").error("must be container or vm")
    if host.text() not in hosts:
        raise host.error(f"{host.value!r} is not a host; there are: {', '.join(hosts)}")
    provisioner = node.child("provisioner")
    base = provisioner.child("state_top").child("base").child("*")
    pillars = provisioner.child("pillars_from_files")
    command = node.child("verifier").child("command")
    try:
        argv = tuple(shlex.split(command.text()))
    except ValueError as error:
        raise command.error(f"is not a command: {error}") from None
    return Suite(
        name=name,
        host=host.text(),
        verifier_argv=argv,
        pillars={key: value.text() for key, value in pillars.items()},
        states=tuple(state.text() for state in base.elements()),
        kind=kind,
    )

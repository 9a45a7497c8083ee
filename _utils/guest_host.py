"""What is asked of libvirt about one guest, and done to it: status, definition, devices, start and stop.

``utils`` has functions of the other modules of this folder by their names, such as "guest_domain.parse":
Salt's loader keeps the modules apart. Errors of virsh are CommandExecutionError, in virsh's own words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

Utils = Mapping[str, Callable[..., Any]]

# Seconds that a guest has to shut down when it does not say otherwise, and between two requests to.
STOP_SECONDS = 120
ASK_AGAIN = 15
# Starting a guest with much memory, or one of emulated hardware, takes a while.
START_SECONDS = 300
# Where hypervisor.migrate leaves word of guests that went away.
MIGRATED = Path("/var/lib/hypervisor-formula/migrated")


def pools(utils: Utils, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Asks for ``type`` and ``target`` of storage pools; one that is not there is left out."""
    found = {}
    for name in names:
        xml = utils["libvirt_tools.definition"]("pool", name)
        if xml is not None:
            pool = ElementTree.fromstring(xml)  # noqa: S314 - libvirt's own words
            found[name] = {"type": pool.get("type", "dir"), "target": pool.findtext("target/path") or ""}
    return found


def status(utils: Utils, name: str) -> dict[str, str]:
    """Asks how a guest is: ``State``, ``Autostart``, ``Persistent`` and more, in virsh's words."""
    lines = (line.partition(":") for line in utils["libvirt_tools.virsh"]("dominfo", "--", name).splitlines())
    return {key.strip(): text.strip() for key, colon, text in lines if colon}


def moved(name: str) -> dict[str, Any]:
    """Reads the record of a guest that was migrated to another host: ``to`` and ``at``; empty without one."""
    try:
        found = json.loads((MIGRATED / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {"to": "another host"}


def job(utils: Utils, name: str) -> str:
    """Asks whether a guest is being migrated, saved or backed up; empty when it is not."""
    for line in utils["libvirt_tools.virsh"]("domjobinfo", "--", name).splitlines():
        key, _, text = line.partition(":")
        if key.strip() == "Job type":
            return "" if text.strip() == "None" else f"a job of the type {text.strip().lower()}"
    return ""


def define(utils: Utils, argv: Sequence[str]) -> None:
    """Defines a guest as virt-install prints it."""
    xml = utils["libvirt_tools.run"](argv, label="virt-install")
    utils["libvirt_tools.virsh"]("define", "--validate", "/dev/stdin", stdin=xml)


def edit(utils: Utils, name: str, steps: Sequence[tuple[str, str, str]]) -> None:
    """Edits the definition of a guest's next start; steps as ``guest_domain`` makes them."""
    # With its secrets, which libvirt would take as deleted otherwise; they go from program to program.
    xml = utils["libvirt_tools.virsh"]("dumpxml", "--inactive", "--security-info", "--", name)
    if steps:
        xml = utils["libvirt_tools.run"](utils["guest_argv.edit"](steps), stdin=xml, label="virt-xml")
    utils["libvirt_tools.virsh"]("define", "--validate", "/dev/stdin", stdin=xml)


def attach(utils: Utils, name: str, kind: str, which: int | str) -> None:
    """Gives a running guest a device of its definition.

    Args:
        utils: functions by name.
        name: the guest.
        kind: "disk" or "interface" for a new device; "update" connects an interface anew.
        which: of a disk its name in the guest, else the number of the device among its kind in the definition, from 1.

    Raises:
        CommandExecutionError: the definition has no such disk, or the guest does not take the device.
    """
    xml = utils["libvirt_tools.virsh"]("dumpxml", "--inactive", "--", name)
    domain = utils["guest_domain.parse"](xml)
    if isinstance(which, str):
        disks = utils["guest_domain.targets"](domain)
        if which not in disks:
            raise CommandExecutionError(f"its definition has no disk {which}")
        which = disks.index(which) + 1
    device = utils["guest_domain.fragment"](domain, "interface" if kind == "update" else kind, which)
    verb = "update-device" if kind == "update" else "attach-device"
    utils["libvirt_tools.virsh"](verb, "--live", "--domain", name, "--file", "/dev/stdin", stdin=device)


def start(utils: Utils, name: str) -> None:
    """Starts a guest."""
    utils["libvirt_tools.virsh"]("start", "--", name, timeout=START_SECONDS)


def stop(utils: Utils, name: str, declaration: Mapping[str, Any]) -> None:
    """Shuts a guest down; cuts its power only with consent.

    Args:
        utils: functions by name.
        name: the guest.
        declaration: ``stop_timeout`` (seconds) and ``allow_power_off`` count.

    Raises:
        ValueError: it did not shut down in time.
    """
    virsh = utils["libvirt_tools.virsh"]
    seconds = declaration.get("stop_timeout", STOP_SECONDS)
    deadline = time.monotonic() + seconds
    asked = float("-inf")
    while time.monotonic() < deadline:
        # A guest that was never defined is gone once it has stopped.
        if name not in virsh("list", "--name").split():
            return
        # A guest that is still booting does not hear the first request.
        if time.monotonic() - asked > ASK_AGAIN:
            try:
                virsh("shutdown", "--", name)
            except CommandExecutionError:
                # It may have ended in the meantime.
                if name in virsh("list", "--name").split():
                    raise
            asked = time.monotonic()
        time.sleep(0.5)
    if not declaration.get("allow_power_off"):
        raise ValueError(
            f"{name} did not shut down within {seconds} s and runs on; allow_power_off: true would cut its power"
        )
    virsh("destroy", "--graceful", "--", name)


def restart(utils: Utils, name: str, declaration: Mapping[str, Any]) -> None:
    """Stops a guest as :func:`stop` does, and starts it again."""
    stop(utils, name, declaration)
    start(utils, name)


def delete(utils: Utils, path: str) -> None:
    """Deletes a disk: a file, or the volume of a pool that is a device."""
    if path.startswith("/dev/"):
        utils["libvirt_tools.virsh"]("vol-delete", "--", path)
        # Another device of this name is not half filled, if this one was.
        utils["guest_storage.marker"](path).unlink(missing_ok=True)
    else:
        Path(path).unlink(missing_ok=True)

"""The engine's child reads what an event is about, and tells what has happened once, whatever else it reads."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypervisor_inventory import messages

CODE = Path(__file__).resolve().parents[2] / "libvirt/files/usr/lib/hypervisor-formula/libvirt_watch.py"
UUID = "11111111-2222-3333-4444-555555555555"
NUMBERS = {
    "VIR_ERR_NO_DOMAIN": 42, "VIR_ERR_NO_STORAGE_POOL": 49, "VIR_ERR_NO_NETWORK": 43, "VIR_DOMAIN_RUNNING": 1,
    "VIR_DOMAIN_EVENT_ID_LIFECYCLE": 0, "VIR_DOMAIN_EVENT_ID_REBOOT": 1, "VIR_DOMAIN_EVENT_ID_GRAPHICS": 5,
}  # fmt: skip


class LibvirtError(Exception):
    """An error of the binding."""


class Connection:
    """A libvirt with one guest, which keeps who asked for which of its events."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Any] = {}

    def domainEventRegisterAny(self, _: Any, event: int, callback: Any, __: Any) -> None:  # noqa: N802 - libvirt's name
        self.callbacks[event] = callback

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 9_000_000


class Guest:
    """The guest of an event."""

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's name
        return UUID


@pytest.fixture(name="watch")
def program(monkeypatch) -> Any:
    """The program, on a binding that has the numbers alone."""
    binding = types.ModuleType("libvirt")
    binding.__dict__.update(NUMBERS, libvirtError=LibvirtError)
    monkeypatch.setitem(sys.modules, "libvirt", binding)
    spec = importlib.util.spec_from_file_location("libvirt_watch", CODE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_SETTLE", 0.0)
    monkeypatch.setattr(module, "_IDLE", 0.0)
    monkeypatch.setattr(module, "everything", lambda _: {})
    monkeypatch.setattr(module, "_versions", lambda _: {})
    monkeypatch.setitem(module.READ, "guest", lambda _, key: {"key": key})
    return module


def turn(watch, marks, capsys) -> list[dict[str, Any]]:
    """What one turn of the work prints."""
    take = marks.take
    found = take()

    def once() -> Any:
        marks.take = ended
        return found

    def ended() -> Any:
        marks.lost = True
        return False, {}

    marks.take = once
    watch.work(Connection(), marks)
    marks.take, marks.lost = take, False
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("whole", [True, False])
def test_what_has_happened_is_told_once_also_where_everything_is_read(watch, capsys, whole):
    marks = watch.Marks()
    turn(watch, marks, capsys)
    marks.mark("guest", UUID, "stopped", "crashed")
    if whole:
        marks.all()
    lines = turn(watch, marks, capsys)
    assert [line["kind"] for line in lines] == (["all", "guest"] if whole else ["guest"])
    assert [what for _, what in lines[-1]["happened"]] == ["crashed"]
    assert (lines[-1]["key"], lines[-1]["what"], lines[-1]["facts"]) == (UUID, ["stopped"], {"key": UUID})
    assert [line["kind"] for line in turn(watch, marks, capsys)] == ["idle"]
    marks.mark("guest", UUID, "started", "")
    assert turn(watch, marks, capsys)[-1]["happened"] == []


@pytest.mark.parametrize(
    ("event", "rest", "what", "happened"),
    [
        (0, (5, 2), "stopped", ["crashed"]),
        (0, (2, 1), "started", ["arrived"]),
        # The pause at the end of a migration, and a number that is not known yet.
        (0, (3, 1), "suspended", []),
        (0, (99, 0), "lifecycle", []),
        (1, (), "reboot", ["rebooted"]),
    ],
)
def test_an_event_marks_its_guest_with_what_a_person_would_say(watch, event, rest, what, happened):
    connection, marks = Connection(), watch.Marks()
    connection.storagePoolEventRegisterAny = connection.networkEventRegisterAny = None  # type: ignore[attr-defined]
    watch.listen(connection, marks)
    # What would come many times a second is not asked for.
    assert set(connection.callbacks) == {0, 1}
    connection.callbacks[event](connection, Guest(), *rest)
    assert marks.marked == {("guest", UUID): {what}}
    assert [word for _, word in marks.told(UUID)] == happened


def test_the_master_knows_every_word(watch):
    assert {*watch._HAPPENED.values(), *watch._OTHERWISE.values()} == messages.HAPPENED

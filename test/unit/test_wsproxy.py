"""The module ``wsproxy``: hostile arguments start nothing, a ticket is a file, and only sessions are told to end."""

from __future__ import annotations

import grp
import importlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from typing import Any

import pytest
from hypervisor_harness import DOMAIN, UUID, Libvirt, utilities
from salt.exceptions import CommandExecutionError, SaltInvocationError
from test_hypervisor_injection import CHOICES, OTHERS, TEXTS, random_texts

from _utils import console_door

HASH = "0123456789abcdef" * 4
GOOD: dict[str, dict[str, Any]] = {
    "start": {"guest": "web", "kind": "vnc", "hash": HASH},
    "list_": {},
    "stop": {"id": "c0123456789abcde"},
}
DIGITS = [
    *TEXTS, *OTHERS, None, HASH.upper(), HASH[1:], f"{HASH}0", f"{HASH}\n", f"../{HASH[3:]}", "g" * 64, int("1" * 64),
]  # fmt: skip
HOSTILE = {
    "guest": [*TEXTS, *OTHERS, None, "-- touch x", *random_texts(40)],
    "kind": [*CHOICES, None, "VNC", "vnc\n", "serial ", "-- touch x"],
    "hash": [*DIGITS, "-- touch x", *random_texts(20)],
    "id": [*DIGITS, "0123456789abcdef", "c0123456789ABCDE", "c0123456789abcde\n", *random_texts(20)],
}
CASES = [
    (function, argument, value) for function, good in GOOD.items() for argument in good for value in HOSTILE[argument]
]
SCREEN = "/var/lib/libvirt/qemu/domain-1-web/vnc.sock"


@pytest.fixture(name="folder")
def made(tmp_path, monkeypatch):
    """The service's folder, of whoever runs the tests."""
    for name in ("tickets", "claimed", "sessions", "serial"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(console_door, "FOLDER", tmp_path)
    monkeypatch.setattr(console_door, "PROC", tmp_path / "proc")
    monkeypatch.setattr(grp, "getgrnam", lambda name: type("Group", (), {"gr_gid": os.getgid()}))
    return tmp_path


@pytest.fixture(name="ran")
def running():
    """The commands that were run."""
    return []


@pytest.fixture(name="module")
def loaded(monkeypatch, folder, ran):
    """The module as Salt loads it, with a libvirt that answers from a table."""
    module = importlib.import_module("_modules.wsproxy")
    libvirt = Libvirt({("dumpxml", UUID): DOMAIN.replace("/run/web.vnc", SCREEN)})
    found = utilities("hypervisor", "libvirt_tools", "console_door", "cluster_") | {
        "hypervisor_virsh.session": lambda: libvirt,
        "libvirt_tools.run": lambda argv: ran.append(argv) or "",
    }
    monkeypatch.setattr(module, "__utils__", found, raising=False)
    return module, libvirt


def refused(module, function, *args, **kwargs):
    """Call a function that must refuse; return the message, which is one short line of plain text."""
    with pytest.raises((SaltInvocationError, CommandExecutionError)) as caught:
        getattr(module, function)(*args, **kwargs)
    message = str(caught.value)
    assert message.isascii()
    assert "\n" not in message
    assert len(message) < 300
    return message


def test_hostile_values_start_nothing(module, folder, ran):
    loaded, libvirt = module
    assert len(CASES) > 400
    for function, argument, value in CASES:
        arguments = GOOD[function] | {argument: value}
        assert argument in refused(loaded, function, **arguments), (argument, value)
        refused(loaded, function, *arguments.values())
    assert (ran, libvirt.calls, list((folder / "tickets").iterdir())) == ([], [], [])


def test_a_ticket_that_was_sent_by_mistake_is_not_quoted(module):
    assert "secret" not in refused(module[0], "start", "web", "vnc", "secret" * 7)


@pytest.mark.parametrize("function", GOOD)
def test_other_arguments_are_refused(module, function, ran):
    for name in ("--force", "__user__", "__pub_", "__pub_x y", "saltenv", "socket", "\n", "x" * 10_000):
        assert "there is no argument" in refused(module[0], function, **GOOD[function], **{name: 1})
    assert "too many" in refused(module[0], function, *GOOD[function].values(), "-- touch x")
    assert ran == []


def test_every_function_is_tried():
    module = importlib.import_module("_modules.wsproxy")
    public = {name for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    assert public - {"Any", "SaltInvocationError"} == set(GOOD)
    assert module.__func_alias__ == {"list_": "list"}


def test_a_serial_port_is_served_and_its_ticket_is_a_file(module, folder, ran):
    found = module[0].start("web", "serial", HASH, __pub_user="otto", __pub_jid="1")
    assert found == {"guest": "web", "uuid": UUID, "kind": "serial", "valid_seconds": 30}
    assert ran == [["systemctl", "start", "hypervisor-console-serial@0.service"]]
    (path,) = (folder / "tickets").iterdir()
    assert path.name == HASH
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    said = json.loads(path.read_text())
    assert said["socket"] == f"{folder}/serial/0.sock"
    assert 29 < said["until"] - time.clock_gettime(time.CLOCK_BOOTTIME) <= 30
    assert "waits for its holder" in refused(module[0], "start", "web", "serial", HASH)


def test_a_guest_that_was_started_anew_meanwhile_gets_no_ticket(module, folder, ran):
    loaded, libvirt = module
    answers = [DOMAIN, DOMAIN.replace("id='1'", "id='2'")]
    libvirt.table["dumpxml", UUID] = lambda *_: answers.pop(0)
    assert "started anew" in refused(loaded, "start", "web", "serial", HASH)
    assert ran[-1] == ["systemctl", "stop", "hypervisor-console-serial@0.service"]
    assert list((folder / "tickets").iterdir()) == []


@pytest.mark.parametrize(("old", "new", "kind", "said"), [
    (" id='1'", "", "vnc", "does not run"),
    ("type='vnc'", "type='spice'", "vnc", "no VNC display"),
    (SCREEN, "/var/lib/libvirt/qemu/domain-1-web/monitor.sock", "vnc", "no VNC display"),
    (SCREEN, "/run/libvirt/libvirt-sock", "vnc", "no VNC display"),
    (SCREEN, "/var/lib/libvirt/qemu/domain-1-web/../domain-2-db/vnc.sock", "vnc", "no VNC display"),
    ("type='pty'", "type='tcp'", "serial", "no serial port"),
    ("/dev/pts/0", "/dev/tty1", "serial", "no serial port"),
    ("/dev/pts/0", "/dev/pts/../sda", "serial", "no serial port"),
])  # fmt: skip
def test_consoles_that_are_none(module, folder, ran, old, new, kind, said):
    loaded, libvirt = module
    text = DOMAIN.replace("/run/web.vnc", SCREEN)
    assert old in text
    libvirt.table["dumpxml", UUID] = text.replace(old, new)
    assert said in refused(loaded, "start", "web", kind, HASH)
    assert (ran, list((folder / "tickets").iterdir())) == ([], [])


def test_a_host_that_serves_none_says_so(module, folder):
    (folder / "tickets").rmdir()
    assert "libvirt:console:enabled" in refused(module[0], "start", "web", "vnc", HASH)


def test_an_unknown_guest(module):
    assert "there is no guest db" in refused(module[0], "start", "db", "vnc", HASH)


def test_tickets_that_nobody_came_with_go_and_are_limited(module, folder, monkeypatch):
    old = folder / "tickets" / ("a" * 64)
    old.write_text("{}")
    os.utime(old, (0, 0))
    module[0].start("web", "serial", HASH)
    assert [path.name for path in (folder / "tickets").iterdir()] == [HASH]
    monkeypatch.setattr(console_door, "MOST", 1)
    assert "wait for their holders" in refused(module[0], "start", "web", "serial", "f" * 64)


def test_a_link_in_the_place_of_the_tickets_leads_nowhere(module, folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    kept = elsewhere / "kept"
    kept.write_text("")
    os.utime(kept, (0, 0))
    (folder / "tickets").rmdir()
    (folder / "tickets").symlink_to(elsewhere)
    assert "serves no consoles" in refused(module[0], "start", "web", "serial", HASH)
    assert list(elsewhere.iterdir()) == [kept]


def test_a_folder_among_the_tickets_is_no_ticket(module, folder):
    (folder / "tickets/folder").mkdir()
    os.utime(folder / "tickets/folder", (0, 0))
    module[0].start("web", "serial", HASH)
    assert (folder / "tickets" / HASH).exists()


@pytest.fixture(name="process")
def session_process():
    """A process that could be a session."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def session(folder, process, unit="system.slice/hypervisor-console.service", **other):
    """Write what a session writes of itself, and which unit its process is of."""
    said = {"guest": "web", "uuid": UUID, "kind": "vnc", "pid": process.pid, "since": 0} | other
    path = folder / "sessions/c0123456789abcde"
    path.write_text(json.dumps(said))
    about = folder / "proc" / str(process.pid)
    about.mkdir(parents=True, exist_ok=True)
    (about / "cgroup").write_text(f"1:name=systemd:/{unit}\n0::/\n")
    return path


def test_a_session_is_listed_and_ended(module, folder, process, monkeypatch):
    path = session(folder, process)
    found = {"id": path.name, "guest": "web", "uuid": UUID, "kind": "vnc", "since": "1970-01-01T00:00:00+00:00"}
    assert module[0].list_() == {"sessions": [found]}
    monkeypatch.setattr(time, "sleep", lambda _: path.unlink(missing_ok=True))
    assert module[0].stop(path.name) == found
    assert process.wait(10) == -signal.SIGTERM
    assert "no session" in refused(module[0], "stop", path.name)


@pytest.mark.parametrize("unit", ["system.slice/ssh.service", "system.slice/hypervisor-console.service.evil", ""])
def test_a_process_that_is_not_of_the_service_is_neither_shown_nor_ended(module, folder, process, unit):
    path = session(folder, process, unit)
    assert module[0].list_() == {"sessions": []}
    assert "no session" in refused(module[0], "stop", path.name)
    assert process.poll() is None


@pytest.mark.parametrize("lie", [
    {"guest": "web\x1b[2J"}, {"guest": "<b>"}, {"guest": None}, {"kind": "monitor"}, {"uuid": "u"}, {"pid": "1"},
    {"pid": 1}, {"pid": -1}, {"since": "x"}, {"since": 10**30},
])  # fmt: skip
def test_what_the_services_user_could_write_is_not_believed(module, folder, process, lie):
    path = session(folder, process, **lie)
    assert module[0].list_() == {"sessions": []}
    refused(module[0], "stop", path.name)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert module[0].list_() == {"sessions": []}
    assert process.poll() is None

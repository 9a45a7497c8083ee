"""Tickets at the service: one use, a short time, one guest; and nothing that merely looks like one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import socket

import console_tickets
import pytest
from console_tickets import RefusedError, Ticket

SEED = 20261128
COUNT = 10_000
NAME = "/var/lib/libvirt/qemu/domain-3-web/vnc.sock"


def word(value: bytes) -> str:
    return "ticket." + base64.urlsafe_b64encode(value).decode().rstrip("=")


def header(value: bytes) -> list[str]:
    return [f"binary, {word(value)}"]


def show(headers, folder):
    """What the service does with the headers of a request."""
    return console_tickets.claim(console_tickets.secret(headers), folder, owner=os.getuid())


@pytest.fixture(name="folder")
def made(tmp_path, monkeypatch):
    """A service's folder with a socket that counts as a guest's screen, and one that counts as its serial port."""
    for name in ("tickets", "claimed", "domain-3-web", "serial"):
        (tmp_path / name).mkdir()
    sockets = {"vnc": tmp_path / "domain-3-web/vnc.sock", "serial": tmp_path / "serial/5.sock"}
    listeners = []
    for path in sockets.values():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listeners.append(listener)
    patterns = {kind: re.compile(re.escape(str(path)) + r"\Z") for kind, path in sockets.items()}
    monkeypatch.setattr(console_tickets, "_SOCKETS", patterns)
    yield tmp_path
    for listener in listeners:
        listener.close()


def leave(folder, value, kind="vnc", seconds=30.0, **other):
    """Leave a ticket as root does."""
    path = folder / ("domain-3-web/vnc.sock" if kind == "vnc" else "serial/5.sock")
    found = {"guest": "web", "uuid": "u", "kind": kind, "socket": str(path)}
    found = found | {"until": console_tickets.now() + seconds} | other
    target = folder / "tickets" / hashlib.sha256(value).hexdigest()
    target.write_text(json.dumps(found))
    return target


def test_a_ticket_is_good_once(folder):
    value = random.Random(SEED).randbytes(32)  # noqa: S311 - the same in every run
    leave(folder, value)
    found = show(header(value), folder)
    assert found == Ticket("web", "u", "vnc", str(folder / "domain-3-web/vnc.sock"))
    with pytest.raises(RefusedError, match="no such ticket"):
        show(header(value), folder)
    assert list((folder / "tickets").iterdir()) == list((folder / "claimed").iterdir()) == []


def test_each_ticket_leads_to_what_it_was_made_for(folder):
    leave(folder, b"v" * 32)
    leave(folder, b"s" * 32, kind="serial")
    assert show(header(b"s" * 32), folder).kind == "serial"
    assert show(header(b"v" * 32), folder).kind == "vnc"


def test_a_ticket_that_is_too_old_is_used_up(folder):
    leave(folder, b"o" * 32, seconds=-0.001)
    with pytest.raises(RefusedError, match="too old"):
        show(header(b"o" * 32), folder)
    with pytest.raises(RefusedError, match="no such ticket"):
        show(header(b"o" * 32), folder)


@pytest.mark.parametrize("until", [None, "9999999999", True, [], {}, float("nan")])
def test_a_ticket_without_an_end_is_none(folder, until):
    leave(folder, b"e" * 32, until=until)
    with pytest.raises(RefusedError, match="too old"):
        show(header(b"e" * 32), folder)


@pytest.mark.parametrize("place", [
    "/etc/passwd", "../../etc/passwd", "", ".", "domain-3-web/../domain-3-web/vnc.sock", "domain-3-web/monitor.sock",
    "domain-3-web-other/vnc.sock", "domain-3-web/vnc.sock/", "domain-3-web/vnc.sock\n",
])  # fmt: skip
def test_a_ticket_that_leads_elsewhere_opens_nothing(folder, place):
    leave(folder, b"p" * 32, socket=place if place.startswith("/") else f"{folder}/{place}")
    with pytest.raises(RefusedError, match=r"no console|not where it was|gone"):
        show(header(b"p" * 32), folder)


@pytest.mark.parametrize("path", [
    "/var/lib/libvirt/qemu/domain-3-web/monitor.sock", "/var/lib/libvirt/qemu/domain-3-web/../domain-4-db/vnc.sock",
    "/var/lib/libvirt/qemu/domain-3-a/b/vnc.sock", "/var/lib/libvirt/qemu-evil/domain-3-web/vnc.sock",
    "/run/libvirt/libvirt-sock", "/run/hypervisor-console/serial/../../libvirt/libvirt-sock",
    "/run/hypervisor-console/serial/5.sock\n", "/run/hypervisor-console-evil/serial/5.sock", "-- touch x",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["vnc", "serial", "", "spice", "vnc\n"])
def test_no_socket_beside_the_consoles_counts(path, kind):
    with pytest.raises(RefusedError, match="no console"):
        console_tickets.check(Ticket("web", "u", kind, path))


@pytest.mark.parametrize(("kind", "path"), [("vnc", NAME), ("serial", "/run/hypervisor-console/serial/5.sock")])
def test_a_console_of_another_kind_does_not_count(kind, path):
    other = {"vnc": "serial", "serial": "vnc"}[kind]
    with pytest.raises(RefusedError, match="no console"):
        console_tickets.check(Ticket("web", "u", other, path))


def test_a_link_in_the_place_of_a_socket_is_not_followed(folder):
    path = folder / "domain-3-web/vnc.sock"
    path.unlink()
    path.symlink_to(folder / "serial/5.sock")
    leave(folder, b"l" * 32)
    with pytest.raises(RefusedError, match="not where it was"):
        show(header(b"l" * 32), folder)


def test_a_console_that_is_gone_opens_nothing(folder):
    (folder / "domain-3-web/vnc.sock").unlink()
    leave(folder, b"g" * 32)
    with pytest.raises(RefusedError, match="gone"):
        show(header(b"g" * 32), folder)


def test_files_that_root_has_not_made_are_no_tickets(folder):
    target = leave(folder, b"f" * 32)
    with pytest.raises(RefusedError, match="has made"):
        console_tickets.claim(b"f" * 32, folder, owner=os.getuid() + 1)
    target.symlink_to(leave(folder, b"h" * 32))
    with pytest.raises(RefusedError, match="cannot be read"):
        show(header(b"f" * 32), folder)
    for text in ("", "[]", "{", "x" * 5000, "\0"):
        target.write_text(text)
        with pytest.raises(RefusedError):
            show(header(b"f" * 32), folder)
    target.mkdir()
    with pytest.raises((RefusedError, IsADirectoryError, PermissionError)):
        show(header(b"f" * 32), folder)


def test_what_is_no_pair_of_subprotocols_is_refused():
    good = word(b"x" * 32)
    assert console_tickets.secret([f"binary, {good}"]) == console_tickets.secret(["binary", good]) == b"x" * 32
    for headers in (
        [], [""], ["binary"], [good], [f"{good}, {good}"], [f"binary, {good}, {good}"], [f"binary, {good}, base64"],
        [f"base64, {good}"], [f"binary,{good} x"], [f"binary, Ticket{good[6:]}"], [f"binary, x{good}"],
        [f"binary, {good}="], [f"binary, {good[:-1]}"], [f"binary, {good}A"], ["binary, ticket."],
        [f"binary, ticket.{'é' * 43}"], [f"binary, ticket.{'+' * 43}"], [f"binary, ticket.{'/' * 43}"],
        ["binary, ticket.../../tickets"], [f"binary, {good}\0"], ["x" * 100_000],
    ):  # fmt: skip
        with pytest.raises(RefusedError) as caught:
            console_tickets.secret(headers)
        assert good not in str(caught.value)


def mutated(chance, text):
    """One of the ways in which a ticket can be a little wrong."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = chance.randrange(len(text))
    way = chance.randrange(8)
    if way == 0:
        return text[:at] + chance.choice(letters) + text[at + 1 :]
    if way == 1:
        return text[:at] + text[at + 1 :]
    if way == 2:
        return text[:at] + chance.choice(letters + "/+=.% \n\0é") + text[at:]
    if way == 3:
        return text[:at] + text[at].swapcase() + text[at + 1 :]
    if way == 4:
        return text[:-1] + chance.choice(letters)
    if way == 5:
        letters_of_it = list(text)
        other = chance.randrange(len(text))
        letters_of_it[at], letters_of_it[other] = text[other], text[at]
        return "".join(letters_of_it)
    if way == 6:
        return text[at:] + text[:at]
    return text[:at] + "".join(chance.choices(letters, k=len(text) - at))


def test_ten_thousand_mutated_tickets_open_nothing_and_use_nothing_up(folder):
    chance = random.Random(SEED)  # noqa: S311 - the same tickets in every run
    values = [chance.randbytes(32) for _ in range(10)]
    for value in values:
        leave(folder, value)
    good = {word(value) for value in values}
    tried = 0
    while tried < COUNT:
        text = mutated(chance, word(chance.choice(values)))
        if text.strip(" \t") in good:
            continue
        tried += 1
        with pytest.raises(RefusedError):
            show([f"binary, {text}"], folder)
    assert {path.name for path in (folder / "tickets").iterdir()} == {
        hashlib.sha256(value).hexdigest() for value in values
    }
    assert all(show(header(value), folder).guest == "web" for value in values)

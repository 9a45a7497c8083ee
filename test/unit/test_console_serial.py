"""The bridge from a terminal to the sessions that share it."""

from __future__ import annotations

import os
import pty
import socket
import threading
import tty

import console_serial
import pytest


@pytest.fixture(name="guest")
def terminal(tmp_path):
    """The guest's side of a terminal, a way to connect to its bridge, and the thread in which that runs."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    path = tmp_path / "5.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    bridge = console_serial.Bridge(theirs, listener, patience=60)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    opened = []

    def connect():
        session = socket.socket(socket.AF_UNIX)
        session.settimeout(30)
        session.connect(str(path))
        opened.append(session)
        return session

    yield ours, connect, thread
    for session in opened:
        session.close()
    if thread.is_alive():
        os.close(ours)
        thread.join(30)
    for session in bridge.waiting:
        session.close()
    bridge.selector.close()
    listener.close()
    os.close(theirs)
    assert not thread.is_alive()


def until(session, wanted):
    """Read up to a text."""
    found = b""
    while wanted not in found:
        chunk = session.recv(65536)
        assert chunk, found
        found += chunk
    return found


def test_all_sessions_see_what_the_guest_writes_and_new_ones_the_last_lines(guest):
    ours, connect, _ = guest
    first = connect()
    os.write(ours, b"guest second 1\n")
    assert until(first, b"second 1\n") == b"guest second 1\n"
    second = connect()
    assert until(second, b"second 1\n") == b"guest second 1\n"
    os.write(ours, b"guest second 2\n")
    assert until(first, b"second 2\n") == until(second, b"second 2\n") == b"guest second 2\n"


def test_what_sessions_type_reaches_the_guest(guest):
    ours, connect, _ = guest
    first, second = connect(), connect()
    first.sendall(b"one\r")
    assert os.read(ours, 100) == b"one\r"
    second.sendall(b"\x03")
    assert os.read(ours, 100) == b"\x03"


def test_a_session_that_goes_disturbs_no_other(guest):
    ours, connect, _ = guest
    first, second = connect(), connect()
    os.write(ours, b"a\n")
    until(first, b"a\n")
    until(second, b"a\n")
    first.close()
    os.write(ours, b"b\n")
    assert until(second, b"b\n") == b"b\n"


def test_a_session_that_does_not_read_is_ended_and_the_others_go_on(guest):
    ours, connect, _ = guest
    lazy, diligent = connect(), connect()
    os.write(ours, b"a\n")
    until(lazy, b"a\n")
    until(diligent, b"a\n")
    line = b"x" * 1023 + b"\n"
    # No more than a session may fall behind, so that the diligent one reads in time on a busy machine, too.
    for _ in range(2 * 1024 // 32):
        written = threading.Thread(target=lambda: [os.write(ours, line) for _ in range(32)])
        written.start()
        seen = 0
        while seen < 32 * len(line):
            chunk = diligent.recv(65536)
            assert chunk, "the session that reads has been ended"
            seen += len(chunk)
        written.join(30)
    got = 1
    while got:
        got = len(lazy.recv(65536))


def test_it_ends_with_the_terminal(guest):
    ours, connect, thread = guest
    session = connect()
    os.write(ours, b"a\n")
    until(session, b"a\n")
    os.close(ours)
    thread.join(30)
    assert not thread.is_alive()


def test_it_ends_when_nobody_is_connected(tmp_path):
    ours, theirs = pty.openpty()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        bridge = console_serial.Bridge(theirs, listener, patience=0)
        bridge.run()
        bridge.selector.close()
    os.close(ours)
    os.close(theirs)


def test_systemd_is_told_when_it_is_ready(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        console_serial.ready()
        assert told.recv(100) == b"READY=1"

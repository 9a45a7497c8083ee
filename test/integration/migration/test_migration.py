"""A running guest moves between the hypervisors, encrypted; it never restarts, and stays where it is when refused."""

import json
import subprocess
import time

import pytest
from support import counted_to, counts_on, end_guest, last_second, migrate, seconds, start_guest, state_of

from lab import guest as lab_guest
from lab import network

NAME = "wanderer"
# Listens on the port of one host at the bridge, prints how many bytes passed, how often each mark was in them, and how
# many frames it has missed.
SNIFFER = """
import json, select, socket, struct, sys
port, marks = sys.argv[1], [mark.encode() for mark in sys.argv[2:]]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)  # SO_RCVBUFFORCE: lose nothing
raw.bind((port, 0))
print("ready", flush=True)
total, seen = 0, {mark.decode(): 0 for mark in marks}
while True:
    readable, _, _ = select.select([raw, sys.stdin], [], [])
    if raw in readable:
        frame = raw.recv(1 << 17)
        total += len(frame)
        for mark in marks:
            seen[mark.decode()] += frame.count(mark)
    elif sys.stdin in readable:
        break
packets, drops = struct.unpack("II", raw.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
print(json.dumps({"bytes": total, "seen": seen, "drops": drops}))
"""
SENDER = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'sent in clear', ('hv1', 9))
"""


@pytest.fixture
def guest(lab):
    """A guest that counts seconds on hv1."""
    start_guest(lab, "hv1", NAME)
    yield NAME
    end_guest(lab, NAME)


def moved(lab, name, source, target):
    """Migrate and check that the count goes on on the other side, without a restart and without a gap in time."""
    before = last_second(lab, source, name)
    boots = lab.console(source, name).count("guest boot")
    behind = lab.console(target, name)
    begun = time.monotonic()
    migrate(lab, name, source, target)
    assert state_of(lab, target, name) == "running"
    assert state_of(lab, source, name) == ""
    printed = counted_to(lab, target, name, before + 3, len(behind))
    took = time.monotonic() - begun
    after = seconds(printed)
    assert "guest boot" not in printed, "the guest was restarted"
    assert lab.console(source, name).count("guest boot") == boots
    # A line that was being printed may be cut in two by the move; numbers that are whole must follow each other.
    assert after == sorted(after)
    assert after[0] >= before
    # It slept one second a number: had it started anew it would be far behind, had it been paused as well.
    assert after[-1] - before <= took + 2


def test_guest_moves_there_and_back(lab, guest):
    moved(lab, guest, "hv1", "hv2")
    moved(lab, guest, "hv2", "hv1")


def test_nothing_of_the_guest_is_readable_on_the_wire(lab, guest):
    """All of the guest's memory crosses the wire; its kernel's and its shell's texts must not be found there."""
    namespace = f"--net={network.NETNS / network.switch(lab.paths.name)}"
    marks = ["Linux version", "guest second", "BusyBox", "sent in clear"]
    # The guest has the marks in its memory: two it has printed, the third is in what it was unpacked from.
    printed = lab.console("hv1", guest)
    assert "Linux version" in printed
    assert "guest second" in printed
    lab.run("hv1", ["grep", "-qF", "BusyBox", f"{lab_guest.FOLDER}/{lab_guest.INITRAMFS}"])
    argv = ["nsenter", namespace, "python3", "-c", SNIFFER, "p-hv1", *marks]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sniffer:
        assert sniffer.stdout is not None
        assert sniffer.stdout.readline() == "ready\n"
        # The sniffer finds what is in clear: a positive control on the same wire.
        lab.run("hv2", ["python3", "-c", SENDER])
        migrate(lab, guest, "hv1", "hv2")
        output, _ = sniffer.communicate("\n", timeout=60)
    result = json.loads(output)
    assert result["bytes"] > 4_000_000, "the migration did not pass here"
    assert result["drops"] == 0, "what the sniffer has missed may have been in clear"
    # hv1 may send the datagram back in its "port unreachable".
    assert result["seen"].pop("sent in clear") >= 1
    assert result["seen"] == {"Linux version": 0, "guest second": 0, "BusyBox": 0}


def test_migration_without_tls_is_refused(lab, guest):
    done = migrate(lab, guest, "hv1", "hv2", "--compressed", check=False)
    assert done.returncode != 0
    assert "VIR_MIGRATE_TLS" in done.stderr, done.stderr
    assert state_of(lab, "hv1", guest) == "running"


@pytest.mark.parametrize("folder", ["/etc/pki/qemu", "/etc/pki/libvirt"])
def test_without_certificates_migration_is_refused_and_the_guest_runs_on(lab, guest, folder):
    lab.run("hv1", ["mv", folder, f"{folder}.away"])
    try:
        done = migrate(lab, guest, "hv1", "hv2", check=False)
    finally:
        lab.run("hv1", ["mv", f"{folder}.away", folder])
    assert done.returncode != 0
    # Not the URI that every message quotes: libvirt's own words on what is missing.
    said = done.stderr.replace("qemu+tls://", "").lower()
    assert any(word in said for word in ("certificate", "credentials", "x509", "tls confirmation")), done.stderr
    assert state_of(lab, "hv1", guest) == "running"
    assert state_of(lab, "hv2", guest) == ""
    counts_on(lab, "hv1", guest)
    # The refusal was the certificates' doing: with them it goes.
    migrate(lab, guest, "hv1", "hv2")

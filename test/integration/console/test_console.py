"""Consoles on a real host: what a browser does, by WebSocket with TLS, and what is tried against it."""

from __future__ import annotations

import json
import os
import random
import re
import ssl
import subprocess
import time
from typing import Any

import pytest
from leaves import SALT_PYTHON, SIGN
from rfb import ALT, PORT, PRINT, ClosedError, Screen, Ticket, WebSocket, trust
from support import end_guest, migrate

from lab import guest as lab_guest
from lab.identity import DOMAIN

alone = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="needs the lab's guest and its authorities")
SEED = 20261128
NAME, OTHER = "painter", "painter2"
FOLDER = "/run/hypervisor-console"
# Calls functions of wsproxy in one process of Salt's, as a minion would; prints what each returned or why it refused.
CALLER = """
import json, sys
import salt.client, salt.config
caller = salt.client.Caller(mopts=salt.config.minion_config("/etc/salt/minion"))
found = []
for function, args, kwargs in json.load(sys.stdin):
    try:
        found.append({"value": caller.cmd("wsproxy." + function, *args, **kwargs)})
    except Exception as error:
        found.append({"refused": type(error).__name__, "text": str(error)})
print(json.dumps(found))
"""
# A busy machine takes longer than a ticket lasts: gives those that tests use later ten minutes more.
LONGER = f"""
import json, os, sys, time
for digest in sys.argv[1:]:
    path = "{FOLDER}/tickets/" + digest
    with open(path, "r+") as handle:
        made = json.load(handle)
        handle.seek(0)
        json.dump(made | {{"until": made["until"] + 600}}, handle)
        handle.truncate()
    os.utime(path, (time.time() + 600,) * 2)
"""
HOSTILE = [
    "-- touch /tmp/pwned", "--", "-c", "--help", "--connect=qemu+ssh://evil/system", "painter\n", "painter\0", "", " ",
    "painter;touch /tmp/pwned", "$(touch /tmp/pwned)", "`touch /tmp/pwned`", "painter|id", "painter'", 'painter"',
    "../painter", "painter/../painter2", "/run/libvirt/libvirt-sock", "..", ".", "salt://painter", "file:///etc/passwd",
    "<name>painter</name>", "<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]>", "pa\u202einter", "p\xe4inter",
    "\uff50ainter", "\U0001f600", "painter\u2028", "\x1b[2J", "{{ 1 + 1 }}", "%n%s", "x" * 129, "x" * 100_000,
    "vnc\n", "VNC", "vnc serial", "f" * 63, "f" * 65, "F" * 64, "f" * 63 + "\n", "../" + "f" * 61, "g" * 64, 5, -1, 1.5,
    True, False, None, [], ["painter"], {}, {"name": "painter"},
]  # fmt: skip
# Arguments by name that Salt itself, or somebody's hope, could take for its own.
NAMES = ["--force", "__user__", "__pub_", "__pub_x y", "saltenv", "uri", "timeout", "socket", "token", "kwargs", "\n"]
GOOD = {"start": {"guest": NAME, "kind": "vnc", "hash": "0" * 64}, "stop": {"id": "c" * 16}, "list": {}}


def calls(lab, host, *wanted):
    """Call functions, each given as (name, {by name}) or (name, [by position]); return what came back."""
    rows = [[name, given if isinstance(given, list) else [], given if isinstance(given, dict) else {}]
            for name, given in wanted]  # fmt: skip
    done = lab.run(host, [SALT_PYTHON, "-c", CALLER], stdin=json.dumps(rows), timeout=300)
    return json.loads(done.stdout.strip().splitlines()[-1])


def value(lab, host, function, **given):
    """Call one function that must succeed."""
    (found,) = calls(lab, host, (function, given))
    assert "value" in found, found
    return found["value"]


def tickets(lab, host, *wanted):
    """Have tickets made, each for (guest, kind)."""
    made = [Ticket() for _ in wanted]
    rows = [("start", {"guest": guest, "kind": kind, "hash": ticket.digest})
            for (guest, kind), ticket in zip(wanted, made, strict=True)]  # fmt: skip
    for answer, (guest, kind) in zip(calls(lab, host, *rows), wanted, strict=True):
        assert (answer["value"]["guest"], answer["value"]["kind"]) == (guest, kind)
    lab.run(host, ["python3", "-c", LONGER, *(ticket.digest for ticket in made)])
    return made


def waits(check, what):
    """Wait until something is so."""
    deadline = time.monotonic() + 90
    while not (found := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


def boot(lab, host, name):
    """Start a guest that counts on its serial port and has a screen, where the kernel writes too."""
    lab.run(host, ["rm", "-f", f"/var/log/libvirt/qemu/{name}-serial.log"])
    argv = [word.replace("console=", "console=tty0 console=", 1) for word in lab_guest.install_argv(name)]
    screen = argv.index("--graphics")
    lab.run(host, [*argv[:screen], "--graphics", "vnc,listens0.type=socket", "--video", "vga", *argv[screen + 2 :]])
    lab.wait_console(host, name, "guest second 1", timeout=180)


@pytest.fixture(scope="module", autouse=True)
def synced(request, kitchen_config):
    """Modules reach a minion with its highstate; a lab that was kept may have older ones."""
    if kitchen_config is None:
        lab = request.getfixturevalue("lab")
        for host in lab.hosts.hypervisors:
            lab.run(host, ["salt-call", "--out=quiet", "saltutil.sync_all"], timeout=120)


@pytest.fixture(scope="module", name="pki")
def authorities(lab, tmp_path_factory):
    """A folder with clients' certificates: the right one, and some that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("pki")
    ca = lab.run("hv1", ["cat", "/etc/pki/console/ca-cert.pem"]).stdout
    (folder / "ca.pem").write_text(ca)
    for name, purpose, common_name, days, foreign in (
        ("client", "console", lab.hosts.controller, 300, False),
        ("stranger", "console", "hv2", 300, False),
        ("ended", "console", lab.hosts.controller, -1, False),
        ("foreign", "console", lab.hosts.controller, 300, True),
        ("libvirt", "libvirt", lab.hosts.controller, 300, False),
        ("web", "web", lab.hosts.controller, 300, False),
    ):
        key = folder / f"{name}.key"
        subprocess.run(["openssl", "genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
                        "-out", key], check=True, timeout=60, capture_output=True)  # fmt: skip
        public = subprocess.run(["openssl", "pkey", "-pubout", "-in", key], check=True, timeout=60, text=True,
                                capture_output=True).stdout  # fmt: skip
        wanted = {"purpose": purpose, "name": common_name, "domain": DOMAIN, "days": days, "foreign": foreign}
        made = lab.run(lab.hosts.controller, [SALT_PYTHON, "-c", SIGN, json.dumps(wanted)], stdin=public)
        (folder / f"{name}.pem").write_text(made.stdout)
    return folder


@pytest.fixture(scope="module", name="guest")
def painting(lab):
    """A guest with a screen and a serial port."""
    boot(lab, "hv1", NAME)
    yield NAME
    end_guest(lab, NAME)


@pytest.fixture(name="connect")
def connecting(lab, pki):
    """Connects to a host's service as the page's web server does."""

    def connect(protocols, host="hv1", name="client", path="/"):
        text = f"binary, {protocols.word}" if isinstance(protocols, Ticket) else protocols
        return WebSocket(trust(pki, name), lab.hosts.addresses[host], host, text, path)

    return connect


def sessions(lab, host="hv1"):
    """The sessions of a host."""
    return value(lab, host, "list")["sessions"]


def standing(lab):
    """What hostile calls would leave: tickets, and services that run."""
    return lab.run("hv1", ["sh", "-c", f"ls {FOLDER}/tickets; systemctl list-units --plain 'hypervisor-*'"]).stdout


def goes_away(link):
    """Read until the other side ends the connection, and return how it says so."""
    try:
        while True:
            link.frame()
    except ClosedError as closed:
        return closed.code


def journal(lab, host="hv1"):
    """Everything that the services of consoles have logged."""
    return lab.run(host, ["journalctl", "--no-pager", "-o", "cat", "-u", "hypervisor-console*"]).stdout


def test_the_service_runs_in_a_sandbox_of_its_own(host):
    service = host.service("hypervisor-console")
    assert service.is_running
    assert service.is_enabled
    assert host.socket(f"tcp://0.0.0.0:{PORT}").is_listening
    assert host.file("/etc/pki/console/server-key.pem").mode == 0o440
    assert host.file("/etc/pki/console/server-key.pem").group == "hypervisor-console"
    pid = host.check_output("systemctl show -P MainPID hypervisor-console")
    status = host.file(f"/proc/{pid}/status").content_string
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert set(re.findall(r"^Cap\w+:\s+(\w+)$", status, re.MULTILINE)) == {"0" * 16}
    (user,) = {number for line in re.findall(r"^Uid:(.*)$", status, re.MULTILINE) for number in line.split()}
    assert int(user) == host.user("hypervisor-console").uid
    assert host.check_output(f"stat -f -c %T {FOLDER}") == "tmpfs"


@alone
def test_the_screen_shows_what_the_guest_prints_and_keys_arrive(lab, guest, connect):
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    with connect(ticket) as link:
        assert (link.status, link.protocol) == (101, "binary")
        screen = Screen(link)
        before = screen.look()
        assert len(set(before)) > 1, "the screen is empty"
        (session,) = sessions(lab)
        assert {key: session[key] for key in ("guest", "kind")} == {"guest": guest, "kind": "vnc"}
        assert ticket.digest not in json.dumps(session)
        printed = lab.console("hv1", guest).count("sysrq: HELP")
        # The kernel answers this on all of its consoles.
        screen.press(ALT, PRINT, ord("h"))
        waits(lambda: lab.console("hv1", guest).count("sysrq: HELP") > printed, "the keys have not arrived")
        assert screen.look(changed=True) != before
    waits(lambda: sessions(lab) == [], "the session has not ended")


@alone
def test_the_serial_port_is_shown_to_all_who_may_and_takes_what_they_type(lab, guest, connect):
    first, second = tickets(lab, "hv1", (guest, "serial"), (guest, "serial"))
    with connect(first) as one, connect(second) as two:
        assert re.search(rb"guest second \d+", one.until(b"guest second ") + one.read(1))
        two.until(b"guest second ")
        one.send(b"typed by hand\r")
        # The guest's terminal echoes what it reads.
        two.until(b"typed by hand")
        assert [session["kind"] for session in sessions(lab)] == ["serial", "serial"]


@alone
def test_a_ticket_is_good_once_for_one_guest_and_one_console(lab, guest, connect):
    boot(lab, "hv1", OTHER)
    try:
        screen, port, other = tickets(lab, "hv1", (guest, "vnc"), (guest, "serial"), (OTHER, "serial"))
        with connect(screen) as link:
            assert link.read(4) == b"RFB "
            assert connect(screen).status == 403
        assert connect(screen).status == 403
        boots = {name: re.findall(r"guest boot \S+", lab.console("hv1", name))[-1] for name in (guest, OTHER)}
        assert boots[guest] != boots[OTHER]
        with connect(other) as link:
            link.until(b"guest second ")
            (session,) = sessions(lab)
            assert (session["guest"], session["kind"]) == (OTHER, "serial")
        with connect(port) as link:
            link.until(b"guest second ")
        # The same hash for something else, while the first waits: nobody's ticket changes its meaning.
        (again,) = tickets(lab, "hv1", (guest, "vnc"))
        (refused,) = calls(lab, "hv1", ("start", {"guest": OTHER, "kind": "serial", "hash": again.digest}))
        assert "waits for its holder" in refused["text"]
        with connect(again) as link:
            assert link.read(4) == b"RFB "
    finally:
        end_guest(lab, OTHER)


@alone
def test_a_ticket_ends_after_thirty_seconds(lab, guest, connect):
    ticket = Ticket()
    path = f"{FOLDER}/tickets/{ticket.digest}"
    before = float(lab.run("hv1", ["cat", "/proc/uptime"]).stdout.split()[0])
    value(lab, "hv1", "start", guest=guest, kind="vnc", hash=ticket.digest)
    made = json.loads(lab.run("hv1", ["cat", path]).stdout)
    after = float(lab.run("hv1", ["cat", "/proc/uptime"]).stdout.split()[0])
    assert before + 30 <= made["until"] <= after + 30
    # As if thirty seconds had passed.
    lab.run("hv1", ["tee", path], stdin=json.dumps(made | {"until": after - 0.01}))
    assert connect(ticket).status == 403
    assert "the ticket is too old" in journal(lab)


@alone
@pytest.mark.parametrize("name", ["none", "ended", "foreign", "libvirt", "web"])
def test_without_the_certificate_of_the_page_there_is_no_connection(lab, guest, connect, name):
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    with pytest.raises((ssl.SSLError, ConnectionError, ClosedError)):
        connect(ticket, name=name)
    # It was not used up.
    with connect(ticket) as link:
        assert link.read(4) == b"RFB "


@alone
def test_a_name_that_is_not_listed_opens_nothing_and_uses_nothing_up(lab, guest, connect):
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    assert connect(ticket, name="stranger").status == 403
    with connect(ticket) as link:
        assert link.read(4) == b"RFB "


@alone
def test_requests_that_are_no_consoles(lab, guest, connect):
    """Some hundred mutated tickets, and requests that name targets: none opens anything, and the service answers on."""
    chance = random.Random(SEED)  # noqa: S311 - the same tickets in every run
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    words = ["", "binary", ticket.word, f"base64, {ticket.word}", f"binary, {ticket.word}=", "binary, ticket.",
             "binary, ticket.../../tickets", f"binary, {ticket.word}, {ticket.word}",
             f"{ticket.word}A, binary"]  # fmt: skip
    for _ in range(200):
        at = 7 + chance.randrange(43)
        letter = chance.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./%+ ")
        text = ticket.word[:at] + letter + ticket.word[at + 1 :]
        words += [f"binary, {text}"] if text.strip() != ticket.word else []
    assert {connect(word).status for word in words} == {403}
    for path in ("/?token=--%20touch%20/tmp/pwned", f"/?token={NAME}", "/websockify?token=/run/libvirt/libvirt-sock",
                 "/../../etc/passwd", "//etc/passwd", f"/{ticket.digest}", "/%00"):  # fmt: skip
        assert connect("binary", path=path).status == 403
    with connect(ticket, path="/websockify/hv1?token=-- touch /tmp/pwned".replace(" ", "%20")) as link:
        assert link.read(4) == b"RFB "
    assert lab.run("hv1", ["test", "-e", "/tmp/pwned"], check=False).returncode == 1


@alone
def test_hostile_arguments_start_nothing(lab, guest, connect):
    """Each argument of each function, by name and by position, with every hostile value; and names of no argument."""
    before = standing(lab)
    wanted: list[tuple[str, Any]] = []
    for function, good in GOOD.items():
        for argument in good:
            rows = [good | {argument: one} for one in HOSTILE]
            wanted += [(function, row) for row in rows] + [(function, list(row.values())) for row in rows]
        wanted += [(function, good | {name: "x"}) for name in NAMES]
        wanted += [(function, [*good.values(), one]) for one in HOSTILE]
    assert len(wanted) > 400
    answers = calls(lab, "hv1", *wanted)
    accepted = [row for row, answer in zip(wanted, answers, strict=True) if "refused" not in answer]
    assert accepted == []
    assert {answer["refused"] for answer in answers} == {"SaltInvocationError", "CommandExecutionError"}
    assert not any("Traceback" in answer["text"] or "\n" in answer["text"] for answer in answers)
    assert all(answer["text"].isascii() and len(answer["text"]) < 300 for answer in answers)
    assert standing(lab) == before
    assert lab.run("hv1", ["test", "-e", "/tmp/pwned"], check=False).returncode == 1
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    with connect(ticket) as link:
        assert link.read(4) == b"RFB "


@alone
def test_websockify_started_on_a_callers_target_runs_commands(lab):
    """What this is measured against: the target that a caller chooses, handed to websockify as the seed's proxy did."""
    target = "-- touch /tmp/console-baseline"
    try:
        lab.run("hv1", ["timeout", "20", "websockify", "127.0.0.1:16599", *target.split()], check=False, timeout=60)
        assert lab.run("hv1", ["test", "-e", "/tmp/console-baseline"], check=False).returncode == 0
    finally:
        lab.run("hv1", ["rm", "-f", "/tmp/console-baseline"])


@alone
def test_an_operator_ends_a_session_and_the_guest_runs_on(lab, guest, connect):
    (ticket,) = tickets(lab, "hv1", (guest, "vnc"))
    with connect(ticket) as link:
        assert link.read(4) == b"RFB "
        (session,) = sessions(lab)
        assert value(lab, "hv1", "stop", id=session["id"]) == session
        assert goes_away(link) == 1001
    assert sessions(lab) == []
    assert lab.run("hv1", ["virsh", "domstate", guest]).stdout.strip() == "running"
    (refused,) = calls(lab, "hv1", ("stop", {"id": session["id"]}))
    assert refused["refused"] == "CommandExecutionError"


@alone
def test_the_services_user_reaches_consoles_and_not_what_rules_guests(lab, guest):
    (folder,) = lab.run("hv1", ["sh", "-c", f"echo /var/lib/libvirt/qemu/domain-*-{guest}"]).stdout.split()
    code = (
        "import socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX).connect(path); print('yes')\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    paths = [f"{folder}/{name}.sock" for name in ("vnc", "monitor")]
    paths += ["/run/libvirt/libvirt-admin-sock"]
    argv = ["runuser", "-u", "hypervisor-console", "--", "python3", "-c", code, *paths]
    assert lab.run("hv1", argv).stdout.split() == ["yes", "13", "13"]
    # libvirt's own socket takes everybody, and asks polkit who may do what.
    argv = ["runuser", "-u", "hypervisor-console", "--", "virsh", "-c", "qemu:///system", "destroy", guest]
    assert lab.run("hv1", argv, check=False).returncode != 0
    assert lab.run("hv1", ["virsh", "domstate", guest]).stdout.strip() == "running"
    argv = ["runuser", "-u", "hypervisor-console", "--", "ls", "/var/lib/libvirt/qemu"]
    assert lab.run("hv1", argv, check=False).returncode != 0


@alone
def test_a_console_survives_a_live_migration_with_one_new_ticket(lab, guest, connect):
    screen, port = tickets(lab, "hv1", (guest, "vnc"), (guest, "serial"))
    with connect(screen) as link, connect(port) as serial:
        Screen(link).look()
        serial.until(b"guest second ")
        migrate(lab, guest, "hv1", "hv2")
        try:
            assert [goes_away(old) for old in (link, serial)] == [1000, 1000]
            (refused,) = calls(lab, "hv1", ("start", {"guest": guest, "kind": "vnc", "hash": Ticket().digest}))
            assert "no guest" in refused["text"]
            screen, port = tickets(lab, "hv2", (guest, "vnc"), (guest, "serial"))
            with connect(screen, host="hv2") as picture, connect(port, host="hv2") as text:
                assert len(set(Screen(picture).look())) > 1
                text.until(b"guest second ")
        finally:
            migrate(lab, guest, "hv2", "hv1")


@alone
def test_logs_hold_no_ticket(lab, guest, connect):
    opened, refused = tickets(lab, "hv1", (guest, "vnc"), (guest, "vnc"))
    with connect(opened, path=f"/{opened.word}") as link:
        assert link.read(4) == b"RFB "
    assert connect(f"binary, {refused.word}x", path=f"/{refused.word}").status == 403
    waits(lambda: sessions(lab) == [], "the session has not ended")
    said = journal(lab)
    assert f"of {guest} (vnc) begins" in said
    assert "refused: what stands for the ticket is none" in said
    for ticket in (opened, refused):
        assert ticket.word[7:] not in said
        assert ticket.digest not in said
    assert "Traceback" not in said

"""The module ``hypervisor`` on real hosts: every function does what it says, to guests that count seconds."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from support import counts_on, end_guest, last_second, start_guest, state_of

from lab import guest as lab_guest

NAME = "clerk"
IMAGES = "/var/lib/libvirt/images"
RECORD = f"/var/lib/hypervisor-formula/migrated/{NAME}.json"
PYTHON = "/opt/saltstack/salt/bin/python"
# Calls functions in one process of Salt's, as a minion would, and prints what each returned or why it refused.
CALLER = """
import json, sys
import salt.client, salt.config
options = salt.config.minion_config("/etc/salt/minion")
caller = salt.client.Caller(mopts=options)
found = []
for function, args, kwargs in json.load(sys.stdin):
    try:
        found.append({"value": caller.cmd("hypervisor." + function, *args, **kwargs)})
    except Exception as error:
        found.append({"refused": type(error).__name__, "text": str(error)})
print(json.dumps(found))
"""
HOSTILE = [
    "--help", "-c", "clerk --force", "clerk;destroy clerk", "clerk\ndestroy clerk", "clerk\0", "$(touch /tmp/pwned)",
    "`touch /tmp/pwned`", "../clerk", "salt://clerk", "<name>clerk</name>", "cl\u202eerk", "", "x" * 5000, 5, None,
    True, ["clerk"], {"name": "clerk"},
]  # fmt: skip


def calls(lab, host, *wanted):
    """Call functions, each given as (name, arguments by position..., {by name}); return what came back."""
    rows = []
    for function, *args in wanted:
        kwargs = args.pop() if args and isinstance(args[-1], dict) and function != "hostile" else {}
        rows.append([function, args, kwargs])
    done = lab.run(host, [PYTHON, "-c", CALLER], stdin=json.dumps(rows), timeout=300)
    return json.loads(done.stdout.strip().splitlines()[-1])


def value(lab, host, function, *args, **kwargs):
    """Call one function that must succeed."""
    (found,) = calls(lab, host, (function, *args, kwargs))
    assert "value" in found, found
    return found["value"]


def refusal(lab, host, function, *args, **kwargs):
    """Call one function that must refuse; return its message."""
    (found,) = calls(lab, host, (function, *args, kwargs))
    assert found.get("refused") in {"CommandExecutionError", "SaltInvocationError"}, found
    assert "Traceback" not in found["text"]
    return found["text"]


def ends(lab, *names):
    """Remove guests wherever they are, with their records."""
    for name in names:
        end_guest(lab, name)
        for host in lab.hosts.hypervisors:
            lab.run(host, ["rm", "-f", f"/var/lib/hypervisor-formula/migrated/{name}.json"])


@pytest.fixture(scope="module", autouse=True)
def synced(lab):
    """Modules reach a minion with its highstate; a lab that was kept may have older ones."""
    for host in lab.hosts.hypervisors:
        lab.run(host, ["salt-call", "--out=quiet", "saltutil.sync_all"], timeout=120)


@pytest.fixture
def guest(lab):
    """A guest that counts seconds on hv1."""
    start_guest(lab, "hv1", NAME)
    yield NAME
    ends(lab, NAME)


@contextlib.contextmanager
def broken(lab, host, make, heal):
    """Something is wrong on a host for a while."""
    try:
        lab.run(host, ["sh", "-ec", make])
        yield
    finally:
        lab.run(host, ["sh", "-ec", heal])


def test_a_host_and_its_guest_are_described(lab, guest):
    info, whole, one, before, after = calls(
        lab, "hv1", ("host_info",), ("guests",), ("guest", guest), ("stats",), ("stats",)
    )
    info = info["value"]
    assert (info["minion"], info["hostname"], info["problems"]) == ("hv1", "hv1", [])
    uuid = lab.run("hv1", ["virsh", "domuuid", guest]).stdout.strip()
    assert info["host_uuid"] in lab.run("hv1", ["virsh", "capabilities"]).stdout
    assert (
        info["memory"]["total_mib"]
        == int(lab.run("hv1", ["sed", "-n", "1s/[^0-9]//gp", "/proc/meminfo"]).stdout) // 1024
    )
    assert "qemu" in info["domain_types"]
    assert [row["purpose"] for row in info["certificates"] if row["days_left"] > 300] == ["libvirt", "qemu"]
    assert info["guests"]["by_state"]["running"] >= 1
    one = one["value"]
    assert one in whole["value"]["guests"]
    assert (one["uuid"], one["state"], one["vcpus"], one["memory_mib"]) == (uuid, "running", 1, 128)
    assert one["boot_files"] == [f"{IMAGES}/{lab_guest.KERNEL}", f"{IMAGES}/{lab_guest.INITRAMFS}"]
    assert one["serials"][0]["log"] == f"/var/log/libvirt/qemu/{guest}-serial.log"
    used = [
        next(row for row in found["value"]["guests"] if row["uuid"] == uuid)["cpu_seconds"] for found in (before, after)
    ]
    assert 0 < used[0] <= used[1]


def test_every_verb_does_it(lab, guest):
    assert value(lab, "hv1", "suspend", guest) | {"uuid": ""} == {
        "name": guest, "uuid": "", "changed": True, "state_before": "running", "state": "paused",
    }  # fmt: skip
    assert state_of(lab, "hv1", guest) == "paused"
    stands = last_second(lab, "hv1", guest)
    idle, wrong, again, reboot, shutdown = calls(
        lab, "hv1",
        ("suspend", guest), ("start", guest), ("resume", guest), ("reboot", guest), ("shutdown", guest, {"timeout": 1}),
    )  # fmt: skip
    assert idle["value"]["changed"] is False
    assert "hypervisor.resume continues it" in wrong["text"]
    assert again["value"]["state"] == "running"
    assert reboot["value"]["state_before"] == "running"
    # This guest does not listen to a power button: it runs on, and the caller is told.
    assert shutdown["value"]["state"] == "running"
    lab.wait_console("hv1", guest, f"guest second {stands + 2}")
    boots = lab.console("hv1", guest).count("guest boot")
    off, gone, on, running = calls(
        lab, "hv1", ("power_off", guest), ("suspend", guest), ("start", guest), ("delete", guest)
    )
    assert off["value"]["state"] == "shut_off"
    assert "is shut off" in gone["text"]
    assert on["value"]["state"] == "running"
    assert "only a guest that is shut off is deleted" in running["text"]
    deadline = time.monotonic() + 60
    while lab.console("hv1", guest).count("guest boot") == boots and time.monotonic() < deadline:
        time.sleep(0.5)
    assert lab.console("hv1", guest).count("guest boot") == boots + 1


def test_resize_and_delete(lab, guest):
    sized, same = calls(
        lab, "hv1", ("resize", guest, {"cpu": 2, "mem": 160}), ("resize", guest, {"cpu": 2, "mem": 160})
    )
    for found in (sized, same):
        assert {key: found["value"][key]["applied"] for key in ("vcpus", "memory_mib")} == {
            "vcpus": "next_start", "memory_mib": "next_start",
        }  # fmt: skip
    assert sized["value"]["vcpus"]["why"] == "it was started with at most 1"
    _, _, grown, _, deleted = calls(
        lab, "hv1", ("power_off", guest), ("start", guest), ("guest", guest), ("power_off", guest), ("delete", guest)
    )
    assert (grown["value"]["vcpus"], grown["value"]["memory_mib"]) == (2, 160)
    assert deleted["value"]["disks_deleted"] == []
    assert state_of(lab, "hv1", guest) == ""


def test_a_guest_moves_there_and_back(lab, guest):
    boots = lab.console("hv1", guest).count("guest boot")
    lab.run("hv1", ["virsh", "autostart", guest])
    possible, moved = calls(lab, "hv1", ("migrate", guest, "hv2", {"test": True}), ("migrate", guest, "hv2"))
    assert possible["value"]["possible"] is True, possible
    moved = moved["value"]
    assert (moved["from"], moved["to"], moved["state"], moved["warnings"]) == ("hv1", "hv2", "running", [])
    assert 0 < moved["downtime_ms"] < 5000
    assert moved["transferred_bytes"] > 4_000_000
    assert moved["seconds"] >= moved["check_seconds"] + moved["migration_seconds"] - 0.01
    assert state_of(lab, "hv1", guest) == ""
    counts_on(lab, "hv2", guest)
    assert guest in lab.run("hv2", ["virsh", "list", "--all", "--autostart", "--name"]).stdout
    record = json.loads(lab.run("hv1", ["cat", RECORD]).stdout)
    assert (record["to"], record["uuid"]) == ("hv2", moved["uuid"])
    gone, whole = calls(lab, "hv1", ("start", guest), ("guests",))
    assert gone["text"] == f"guest {guest} is not on this host: it was migrated to hv2"
    assert [(row["name"], row["to"]) for row in whole["value"]["migrated"]] == [(guest, "hv2")]
    assert value(lab, "hv2", "migrate", guest, "hv1")["state"] == "running"
    counts_on(lab, "hv1", guest)
    assert value(lab, "hv1", "guests")["migrated"] == []
    assert lab.run("hv1", ["test", "-e", RECORD], check=False).returncode == 1
    assert lab.console("hv1", guest).count("guest boot") == boots, "the guest was restarted"


def test_a_guest_that_is_shut_off_moves_with_its_definition(lab, guest):
    off, moved = calls(lab, "hv1", ("power_off", guest), ("migrate", guest, "hv2"))
    assert off["value"]["state"] == "shut_off"
    assert "value" in moved, moved
    assert (moved["value"]["state"], moved["value"]["downtime_ms"]) == ("shut_off", None)
    assert (state_of(lab, "hv1", guest), state_of(lab, "hv2", guest)) == ("", "shut off")


def test_a_guest_is_created_with_its_disk_and_deleted_with_it(lab):
    declared = {"cpu": 1, "mem": 128, "disks": [{"name": "system", "size": 16}], "graphics": {"type": "vnc"}}
    foreign = {"cpu": 1, "mem": 128, "disks": [{"name": "system", "image": "/etc/shadow"}]}
    disk = f"{IMAGES}/{NAME}_system.qcow2"
    try:
        made, again, stolen, hooked, _, unasked, gone = calls(
            lab, "hv1",
            ("create", NAME, declared), ("create", NAME, declared), ("create", "thief", foreign),
            ("create", "thief", {"onlyif": "touch /tmp/pwned"}), ("power_off", NAME), ("delete", NAME),
            ("delete", NAME, {"disks": "delete"}),
        )  # fmt: skip
        found = made["value"]["guest"]
        assert (found["state"], found["disks"][0]["source"], found["memory_mib"]) == ("running", disk, 128)
        assert found["graphics"][0]["socket"]
        assert f"there is a guest {NAME} on this host already" in again["text"]
        assert "'/etc/shadow' is in no storage pool of this host" in stolen["text"]
        assert "onlyif: unknown key" in hooked["text"]
        assert f"say disks=keep or disks=delete for {disk}" in unasked["text"]
        assert "value" in gone, gone
        assert gone["value"]["disks_deleted"] == [disk]
        for path in (disk, "/tmp/pwned"):
            assert lab.run("hv1", ["test", "-e", path], check=False).returncode == 1
        # Of a guest that was refused nothing is there: no definition, and no file that was begun.
        assert "thief" not in lab.run("hv1", ["virsh", "list", "--all", "--name"]).stdout.split()
        assert [name for name in lab.run("hv1", ["ls", "-A", IMAGES]).stdout.split() if "thief" in name] == []
    finally:
        ends(lab, NAME, "thief")


@pytest.fixture
def with_disk(lab):
    """A guest with a disk of its own that holds a pattern, on a host without storage pools."""
    disk = f"{IMAGES}/{NAME}.qcow2"
    make = (
        f"qemu-img create -q -f qcow2 {disk} 16M; qemu-io -c 'write -P 0x5a 1M 3M' {disk} >/dev/null;"
        f"truncate -s 1M {IMAGES}/{NAME}.iso"
    )
    lab.run("hv1", ["sh", "-ec", make])
    argv = lab_guest.install_argv(NAME)
    place = argv.index("--disk")
    argv[place : place + 2] = ["--disk", f"path={disk},format=qcow2,bus=virtio"]
    lab.run("hv1", ["rm", "-f", f"/var/log/libvirt/qemu/{NAME}-serial.log"])
    lab.run("hv1", argv)
    lab.wait_console("hv1", NAME, "guest second 2")
    yield disk
    ends(lab, NAME)
    for host in lab.hosts.hypervisors:
        # virt-install has made a pool of the folder.
        lab.run(host, ["sh", "-c", "virsh pool-destroy images; virsh pool-undefine images"], check=False)
        lab.run(host, ["rm", "-f", disk, f"{IMAGES}/{NAME}.iso"])


def test_a_disk_is_copied_and_nothing_overwritten(lab, with_disk):
    text = refusal(lab, "hv1", "migrate", NAME, "hv2")
    assert f"- storage: {with_disk} (vda) is on this host alone; copy_disks=true copies it" in text
    with broken(lab, "hv2", f"echo precious > {with_disk}", "true"):
        text = refusal(lab, "hv1", "migrate", NAME, "hv2", copy_disks=True)
        assert f"- storage: hv2 has a {with_disk} already; nothing is overwritten" in text
        assert lab.run("hv2", ["cat", with_disk]).stdout == "precious\n"
        lab.run("hv2", ["rm", with_disk])
    counts_on(lab, "hv1", NAME)
    moved = value(lab, "hv1", "migrate", NAME, "hv2", copy_disks=True)
    assert moved["copied_disks"] == [{"target": "vda", "path": with_disk, "capacity_bytes": 16 << 20}]
    counts_on(lab, "hv2", NAME)
    # What was made for a look is gone, the image of the source is left alone, and both hold the same.
    assert "hypervisor-check" not in lab.run("hv2", ["virsh", "pool-list", "--all", "--name"]).stdout
    lab.run("hv1", ["qemu-io", "-r", "-c", "read -P 0x5a 1M 3M", with_disk])
    lab.run("hv2", ["virsh", "destroy", NAME])
    lab.run("hv2", ["qemu-io", "-r", "-c", "read -P 0x5a 1M 3M", with_disk])
    assert "backing" not in lab.run("hv2", ["qemu-img", "info", with_disk]).stdout


def test_a_copy_that_fails_is_taken_back(lab, with_disk):
    with broken(lab, "hv2", "mv /etc/pki/qemu /etc/pki/qemu.away", "mv /etc/pki/qemu.away /etc/pki/qemu"):
        text = refusal(lab, "hv1", "migrate", NAME, "hv2", copy_disks=True)
    assert f"{NAME} is running on hv1, as before; the migration to hv2 failed:\n- certificate: " in text
    counts_on(lab, "hv1", NAME)
    assert lab.run("hv2", ["test", "-e", with_disk], check=False).returncode == 1
    assert state_of(lab, "hv2", NAME) == ""
    assert lab.run("hv1", ["test", "-e", RECORD], check=False).returncode == 1


OTHER_GUEST = (
    "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory><os><type>hvm</type></os></domain>"
)
SOCKETS = "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd-tls.socket"
CONF = "/etc/libvirt/libvirtd.conf"
CLOSE = "iptables -I INPUT -p tcp --dport 49152:49215 -j DROP"
OPEN = CLOSE.replace("-I", "-D")
# What is broken on which host, how it is healed, and which reason is given.
BROKEN = {
    "own certificate for QEMU": (
        "hv1", "mv /etc/pki/qemu /etc/pki/qemu.away", "mv /etc/pki/qemu.away /etc/pki/qemu",
        "- certificate: this host's certificate for qemu: /etc/pki/qemu/server-cert.pem, ",
    ),
    "own certificate for libvirt": (
        "hv1", "mv /etc/pki/libvirt /etc/pki/libvirt.away", "mv /etc/pki/libvirt.away /etc/pki/libvirt",
        "- certificate: this host's certificate for libvirt: /etc/pki/libvirt/servercert.pem, ",
    ),
    "the target's list of hosts": (
        "hv2", f"cp {CONF} {CONF}.kept; sed -i 's/CN=hv1/CN=hv7/' {CONF}; systemctl restart libvirtd",
        f"mv {CONF}.kept {CONF}; systemctl restart libvirtd", "- certificate: hv2 is not reached: ",
    ),
    "no daemon": (
        "hv2", f"systemctl stop libvirtd.service {SOCKETS}", f"systemctl start {SOCKETS}", "- port: hv2 is not reached",
    ),
    "closed ports": ("hv2", CLOSE, OPEN, "- port: port 49152 of hv2"),
    "no emulator": (
        "hv2", "mv /usr/bin/qemu-system-x86_64 /usr/bin/away", "mv /usr/bin/away /usr/bin/qemu-system-x86_64",
        "- cpu: hv2 cannot run this kind of guest",
    ),
    "no kernel": (
        "hv2", f"mv {IMAGES}/{lab_guest.KERNEL} {IMAGES}/away", f"mv {IMAGES}/away {IMAGES}/{lab_guest.KERNEL}",
        f"- storage: hv2 has no {IMAGES}/{lab_guest.KERNEL}, which the guest boots from",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def settled(lab):
    """One guest for all refusals: it must still count after the last of them."""
    start_guest(lab, "hv1", NAME)
    boots = lab.console("hv1", NAME).count("guest boot")
    yield NAME
    try:
        counts_on(lab, "hv1", NAME)
        assert lab.console("hv1", NAME).count("guest boot") == boots
    finally:
        ends(lab, NAME)


@pytest.mark.parametrize("what", BROKEN)
def test_each_obstacle_is_named_and_the_guest_runs_on(lab, settled, what):
    host, make, heal, text = BROKEN[what]
    with broken(lab, host, make, heal):
        said = refusal(lab, "hv1", "migrate", settled, "hv2")
    assert said.startswith(f"{settled} stays on hv1 and was not touched. Against hv2 speaks:\n- ")
    assert text in said
    assert (state_of(lab, "hv1", settled), state_of(lab, "hv2", settled)) == ("running", "")


def test_wrong_targets_are_refused(lab, settled):
    itself, foreign = calls(lab, "hv1", ("migrate", settled, "hv1"), ("migrate", settled, "hv9"))
    assert "- target: the guest is on hv1 already" in itself["text"]
    assert "- target: hv9 is not in libvirt:tls:allowed_hosts of hv1 (others there: hv2)" in foreign["text"]


def test_all_obstacles_come_at_once(lab):
    """The target has the name, the UUID and no open ports; the guest's bridge is missing there as well."""
    name, other = "plugged", "11111111-61e2-492a-a5f8-bd711528baf2"
    argv = lab_guest.install_argv(name)
    place = argv.index("--network")
    argv[place : place + 2] = ["--network", "bridge=brtest,model=virtio"]
    bridge = "ip link add brtest type bridge; ip link set brtest up"
    try:
        with broken(lab, "hv1", bridge, "true"), broken(lab, "hv2", CLOSE, OPEN):
            xml = lab.run("hv1", [*argv, "--print-xml", "1"]).stdout
            lab.run("hv1", ["virsh", "define", "/dev/stdin"], stdin=xml)
            lab.run("hv1", ["virsh", "start", name, "--paused"])
            uuid = lab.run("hv1", ["virsh", "domuuid", name]).stdout.strip()
            for its_name, its_uuid in ((name, other), ("twin", uuid)):
                xml = OTHER_GUEST.format(name=its_name, uuid=its_uuid)
                lab.run("hv2", ["virsh", "define", "/dev/stdin"], stdin=xml)
            said = refusal(lab, "hv1", "migrate", name, "hv2")
        assert [line.split(":")[0] for line in said.splitlines()[1:]] == ["- name", "- uuid", "- network", "- port"]
        assert (state_of(lab, "hv1", name), state_of(lab, "hv2", name)) == ("paused", "shut off")
    finally:
        ends(lab, name, "twin")
        lab.run("hv1", ["ip", "link", "delete", "brtest"], check=False)


def test_too_little_memory_is_named(lab):
    total = int(lab.run("hv1", ["sed", "-n", "1s/[^0-9]//gp", "/proc/meminfo"]).stdout) // 1024
    name = "giant"
    xml = lab.run("hv1", [*lab_guest.install_argv(name, total - 512), "--print-xml", "1"]).stdout
    try:
        lab.run("hv1", ["virsh", "define", "/dev/stdin"], stdin=xml)
        # It never runs, so it takes no memory.
        lab.run("hv1", ["virsh", "start", name, "--paused"])
        assert f"- memory: the guest needs {total - 512} MiB, hv2 has " in refusal(lab, "hv1", "migrate", name, "hv2")
    finally:
        ends(lab, name)


def test_a_slow_migration_is_called_off_and_the_guest_runs_on(lab, settled):
    with broken(
        lab, "hv1", f"virsh migrate-setspeed {settled} 1", f"virsh migrate-setspeed {settled} 8796093022207"
    ):
        text = refusal(lab, "hv1", "migrate", settled, "hv2", timeout=2)
    assert f"{settled} is running on hv1, as before" in text
    assert "- timeout: it had not ended after 2 s and was called off" in text
    counts_on(lab, "hv1", settled)
    assert state_of(lab, "hv2", settled) == ""
    assert lab.run("hv1", ["test", "-e", RECORD], check=False).returncode == 1


def test_hostile_arguments_are_refused(lab, settled):
    functions = (
        "guest",
        "start",
        "shutdown",
        "reboot",
        "power_off",
        "suspend",
        "resume",
        "delete",
        "resize",
        "migrate",
    )
    # Without what these need besides they would be refused whatever the name is.
    more: dict[str, list[object]] = {"resize": [2], "migrate": ["hv2"]}
    rows = [[function, [word, *more.get(function, [])], {}] for function in functions for word in HOSTILE]
    rows += [["migrate", [settled, word], {}] for word in HOSTILE]
    rows += [["delete", [settled], {"disks": word}] for word in HOSTILE if word is not None]
    rows += [[function, [settled, *more.get(function, [])], {"--force": True}] for function in functions]
    rows += [["guests", ["--all"], {}], ["stats", [], {"uri": "qemu+ssh://evil/system"}], ["host_info", [1], {}]]
    before = lab.run("hv1", ["virsh", "list", "--all", "--uuid", "--name"]).stdout
    done = lab.run("hv1", [PYTHON, "-c", CALLER], stdin=json.dumps(rows), timeout=300)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert [row.get("refused") for row in found] == ["SaltInvocationError"] * len(rows)
    assert lab.run("hv1", ["virsh", "list", "--all", "--uuid", "--name"]).stdout == before
    assert lab.run("hv1", ["test", "-e", "/tmp/pwned"], check=False).returncode == 1
    counts_on(lab, "hv1", settled)


def test_an_operators_job_is_answered_with_one_line(lab, settled):
    """The way of salt-api: a job of the master's, to which Salt adds arguments of its own."""
    for argument, wanted in (
        (settled, "running"),
        ("--help", "is not allowed"),
        ("nobody", "there is no guest nobody"),
    ):
        argv = ["salt", "hv1", "--out=json", "--static", "hypervisor.guest", f"name={argument}"]
        answer = json.loads(lab.run("controller", argv, check=False, timeout=120).stdout)["hv1"]
        text = answer["state"] if isinstance(answer, dict) else answer
        assert wanted in text
        assert "Traceback" not in text

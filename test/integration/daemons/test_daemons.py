"""libvirt's daemons change, restart and are upgraded under a running guest; drift is repaired alone."""

import json
import re
import time

import pytest
from support import end_guest, seconds, start_guest

HOST, NAME = "hv1", "steady"
PID = f"/run/libvirt/qemu/{NAME}.pid"
WANTS = "/etc/systemd/system/sockets.target.wants"
OTHER, DISK = "hv2", "/var/lib/libvirt/images/locked.raw"
# Finds nothing to boot, but runs: a guest that was never continued has no lock.
LOCKED = f"""
<domain type='qemu'>
  <name>locked</name><memory unit='MiB'>32</memory><os><type>hvm</type></os>
  <devices><disk type='file'><driver type='raw'/><source file='{DISK}'/><target dev='vda'/></disk></devices>
</domain>
"""
# What virtlockd locks of a file, as one of another host does; QEMU itself locks other bytes.
LOCK = f"import fcntl, time; disk = open('{DISK}', 'r+'); fcntl.lockf(disk, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)"


@pytest.fixture(scope="module")
def guest(lab):
    """A guest on hv1 that counts seconds through all of these tests."""
    start_guest(lab, HOST, NAME)
    yield lab.run(HOST, ["cat", PID]).stdout
    end_guest(lab, NAME)


@pytest.fixture(autouse=True)
def undisturbed(lab, guest):
    """Whatever a test did, the guest is the same process, was never restarted, and its console log goes on."""
    before = lab.console(HOST, NAME)
    yield
    assert lab.run(HOST, ["cat", PID]).stdout == guest
    lab.run(HOST, ["kill", "-0", guest.strip()])
    last = seconds(before)[-1]
    after = lab.wait_console(HOST, NAME, f"guest second {last + 2}", timeout=60)
    assert after.count("guest boot") == 1
    counted = seconds(after)
    assert counted == list(range(counted[-1] + 1)), "the console log has a gap"


def apply(lab, *names, pillar=None, test=False, host=HOST):
    """Apply SLS files on a host and return their rows that changed something, by id."""
    argv = ["salt", host, "--timeout=120", "--out=json", "--static", "state.apply", ",".join(names), f"test={test}"]
    done = lab.run("controller", [*argv, f"pillar={json.dumps(pillar or {})}"], timeout=300)
    rows = json.loads(done.stdout)[host]
    assert isinstance(rows, dict), rows
    bad = [f"{row['__id__']}: {row['comment']}" for row in rows.values() if row["result"] is False]
    assert bad == []
    return {row["__id__"]: row["changes"] for row in rows.values() if row["changes"]}


def both(lab, pillar=None):
    """Predict and run libvirt.service with all it needs; return the changes, which must be the same."""
    predicted = apply(lab, "libvirt.service", pillar=pillar, test=True)
    done = apply(lab, "libvirt.service", pillar=pillar)
    assert {key: units(value) for key, value in predicted.items()} == {key: units(value) for key, value in done.items()}
    return done


def units(changes):
    """Return changes without the text of a diff, which only a dry run shows."""
    return json.loads(re.sub(r'"diff": "[^"]*"', '"diff": ""', json.dumps(changes)))


def since(lab, unit):
    """Return when a unit's process was started, on systemd's clock."""
    return lab.run(HOST, ["systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic", unit]).stdout


def test_changed_files_restart_their_daemons_and_reload_virtlogd(lab, guest):
    logger, daemon = since(lab, "virtlogd"), since(lab, "libvirtd")
    pillar = {
        "kvm": {"qemu_conf": {"max_files": 20000}},
        "libvirt": {
            "daemon_conf": {"max_clients": 4000},
            "conf": {"virtlogd": {"max_backups": 4}},
            "host_shutdown": {"timeout": 60},
        },
    }
    changes = both(lab, pillar)
    assert set(changes) == {"kvm_qemu_conf", "libvirt_daemon_conf", "libvirt_daemon", "libvirt_host_shutdown"}
    assert set(changes["libvirt_daemon_conf"]) == {"/etc/libvirt/libvirtd.conf", "/etc/libvirt/virtlogd.conf"}
    assert changes["libvirt_daemon"] == {"restart": ["libvirtd.service"], "reload": ["virtlogd.service"]}
    assert since(lab, "libvirtd") != daemon
    assert since(lab, "virtlogd") == logger
    assert "SHUTDOWN_TIMEOUT=60" in lab.run(HOST, ["cat", "/etc/default/libvirt-guests"]).stdout
    assert both(lab, pillar) == {}

    # Back to the pillar of the lab: a file that has no keys any more keeps none.
    changes = both(lab)
    assert "max_backups" in changes["libvirt_daemon_conf"]["/etc/libvirt/virtlogd.conf"]["settings"]
    assert both(lab) == {}


@pytest.mark.parametrize(
    ("drift", "changes"),
    [
        # By hand: newer units name each other, and "systemctl disable" takes all sockets at once.
        (["sh", "-c", f"rm {WANTS}/libvirtd-ro.socket && systemctl daemon-reload"], {"enable": ["libvirtd-ro.socket"]}),
        (["systemctl", "disable", "libvirt-guests.service"], {"enable": ["libvirt-guests.service"]}),
        (
            ["systemctl", "stop", "libvirtd-tls.socket"],
            {
                "stop": ["libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"],
                "start": [
                    "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd-tls.socket",
                    "libvirtd.service",
                ],
            },
        ),
    ],
    ids=["disabled-socket", "disabled-service", "stopped-socket"],
)  # fmt: skip
def test_a_unit_that_was_switched_off_is_repaired_alone(lab, guest, drift, changes):
    # Something asks it, so that it runs and has not left for want of work.
    lab.run(HOST, ["virsh", "list"])
    lab.run(HOST, drift)
    assert both(lab) == {"libvirt_daemon": changes}
    assert both(lab) == {}


def test_an_edited_file_is_repaired_alone(lab, guest):
    lab.run(HOST, ["virsh", "list"])
    lab.run(HOST, ["sh", "-c", "echo 'max_clients = 7' >> /etc/libvirt/libvirtd.conf"])
    changes = both(lab)
    assert changes == {
        "libvirt_daemon_conf": {
            "/etc/libvirt/libvirtd.conf": {"settings": {"max_clients": {"old": "7", "new": None}}}
        },
        "libvirt_daemon": {"restart": ["libvirtd.service"]},
    }


def test_an_upgrade_of_the_packages_stops_no_guest(lab, guest):
    daemon = since(lab, "libvirtd")
    argv = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "Dpkg::Options::=--force-confold"]
    argv += ["install", "--reinstall", "libvirt-daemon-system", "libvirt-daemon"]
    lab.run(HOST, argv, timeout=300)
    lab.run(HOST, ["virsh", "list"])
    assert since(lab, "libvirtd") != daemon
    assert both(lab) == {}


def test_a_disk_that_another_host_has_locked_starts_no_guest(lab):
    create = ["virsh", "create", "/dev/stdin"]
    try:
        apply(lab, "libvirt.service", pillar={"kvm": {"qemu_conf": {"lock_manager": "lockd"}}}, host=OTHER)
        lab.run(OTHER, ["qemu-img", "create", "-f", "raw", DISK, "1M"])
        lab.run(OTHER, ["systemd-run", "--unit=holder", "python3", "-c", f"{LOCK}; time.sleep(300)"])
        time.sleep(1)
        refused = lab.run(OTHER, create, stdin=LOCKED, check=False)
        assert refused.returncode == 1
        assert f"Lockspace resource '{DISK}' is locked" in refused.stderr
        lab.run(OTHER, ["systemctl", "stop", "holder"])
        lab.run(OTHER, create, stdin=LOCKED)
        assert "BlockingIOError" in lab.run(OTHER, ["python3", "-c", LOCK], check=False).stderr
        lab.run(OTHER, ["virsh", "destroy", "locked"])
        lab.run(OTHER, ["python3", "-c", LOCK])
    finally:
        lab.run(OTHER, ["systemctl", "stop", "holder"], check=False)
        lab.run(OTHER, ["virsh", "destroy", "locked"], check=False)
        lab.run(OTHER, ["rm", "-f", DISK])
        apply(lab, "libvirt.service", host=OTHER)

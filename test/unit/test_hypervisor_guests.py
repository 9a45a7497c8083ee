"""What is told of guests and hosts, and what their verbs do, against a libvirt that answers from a table."""

from __future__ import annotations

import datetime as dt
import json
import re
from functools import partial

import pytest
from hypervisor_harness import DOMAIN, LIST, OTHER, ROOT, UUID, Libvirt, utilities
from salt.exceptions import CommandExecutionError

from _modules import hypervisor
from _utils import (
    guest_storage,
    hypervisor_actions,
    hypervisor_guests,
    hypervisor_host,
    hypervisor_records,
    hypervisor_xml,
)

UTILS = utilities()


@pytest.fixture(name="records", autouse=True)
def own_records(monkeypatch, tmp_path):
    """A folder of records of the test's own."""
    folder = tmp_path / "migrated"
    defaults = {"read": 1, "away": 1, "write": 2, "settle": 1, "remove": 1, "path_of": 1}
    for name in defaults:
        function = getattr(hypervisor_records, name)
        monkeypatch.setattr(function, "__defaults__", (*(function.__defaults__ or ())[:-1], folder))
    return folder


def test_a_guest_is_described_whole():
    lease = " Name MAC address Protocol Address\n-----\n vnet0 52:54:00:00:00:01 ipv4 192.0.2.7/24\n"
    libvirt = Libvirt({("domifaddr", UUID, "--full", "--source", "lease"): lease})
    found = hypervisor_guests.one(libvirt, UTILS, "web")
    disk, cdrom = found.pop("disks")
    first, second = found.pop("nics")
    assert found == {
        "name": "web", "uuid": UUID, "title": None, "domain_type": "qemu", "architecture": "x86_64",
        "machine": "pc-q35-7.2", "firmware": "bios", "boot_files": [], "vcpus": 1, "vcpus_max": 2, "memory_mib": 256,
        "memory_max_mib": 512, "hugepages": False, "hugepages_kib": [],
        "graphics": [{"type": "vnc", "socket": "/run/web.vnc", "address": None, "port": None}],
        "serials": [{"type": "pty", "path": "/dev/pts/0", "log": "/var/log/web.log"}],
        "consoles": ["vnc", "serial"],
        "host_devices": [], "filesystems": [], "agent_connected": True,
        "state": "running", "autostart": True, "persistent": True, "managed_save": False, "cluster": False,
    }  # fmt: skip
    assert disk == {
        "target": "vda", "bus": "virtio", "device": "disk", "type": "file",
        "source": "/var/lib/libvirt/images/web.qcow2",
        "pool": None, "volume": None, "format": "qcow2", "cache": "none", "readonly": False, "shareable": False,
        "backing": ["/var/lib/libvirt/images/base.qcow2"], "capacity_bytes": 1073741824, "allocation_bytes": 200704,
        "physical_bytes": None,
    }  # fmt: skip
    assert (cdrom["device"], cdrom["source"], cdrom["readonly"]) == ("cdrom", None, True)
    assert first == {
        "mac": "52:54:00:00:00:01", "type": "network", "source": "default", "device": "vnet0", "model": "virtio",
        "link_up": True, "addresses": ["192.0.2.7/24"],
    }  # fmt: skip
    assert (second["source"], second["link_up"], second["addresses"]) == ("br0", False, [])
    # Only the agent knows the address of the one on a bridge.
    assert [call[-1] for call in libvirt.asked("domifaddr")] == ["lease", "agent"]
    json.dumps(found)


def test_a_guest_that_vanishes_between_two_questions_is_left_out():
    libvirt = Libvirt({(*LIST, "--name"): f"{UUID} web\n{OTHER} gone with the wind"})
    found = hypervisor_guests.everything(libvirt, UTILS)
    assert [guest["name"] for guest in found["guests"]] == ["web"]


def test_the_whole_host_is_measured_with_one_question():
    libvirt = Libvirt()
    found = hypervisor_guests.stats(libvirt, UTILS)
    assert libvirt.asked("domstats") == [("domstats", "--raw", "--nowait")]
    (row,) = found["guests"]
    assert (row["uuid"], row["cpu_seconds"], row["memory_bytes"]) == (UUID, 9.644658, 268435456)
    assert row["memory_unused_bytes"] is None
    assert row["disks"][0]["read_bytes"] == 4096
    assert row["disks"][0]["read_seconds"] == 1.5
    assert row["nics"][0]["sent_bytes"] == 200
    json.dumps(found)


def test_a_guest_that_went_away_is_told_with_its_new_host(records):
    hypervisor_records.write("db", OTHER, "hv2")
    with pytest.raises(CommandExecutionError, match="guest db is not on this host: it was migrated to hv2"):
        hypervisor_guests.one(Libvirt(), UTILS, "db")
    (away,) = hypervisor_guests.everything(Libvirt(), UTILS)["migrated"]
    assert {key: away[key] for key in ("name", "to", "uuid")} == {"name": "db", "to": "hv2", "uuid": OTHER}


def test_a_record_ends_when_the_guest_is_back_but_not_while_it_moves(records):
    hypervisor_records.write("web", UUID, "hv2", moving=True)
    hypervisor_guests.everything(Libvirt(), UTILS)
    assert (records / "web.json").exists()
    hypervisor_records.write("web", UUID, "hv2")
    assert hypervisor_guests.everything(Libvirt(), UTILS)["migrated"] == []
    assert not (records / "web.json").exists()


def test_a_start_ends_the_record_of_an_interrupted_migration(records):
    hypervisor_records.write("web", UUID, "hv2", moving=True, folder=records)
    libvirt = Libvirt({("domstate", UUID): "shut off", ("start",): ""})
    remove = partial(hypervisor_records.remove, folder=records)
    hypervisor_actions.act(libvirt, UTILS | {"hypervisor_records.remove": remove}, "web", "start")
    assert libvirt.asked("start") == [("start", UUID)]
    assert hypervisor_records.read("web", records) is None


def test_a_record_that_cannot_be_read_is_none(records):
    records.mkdir()
    (records / "db.json").write_text('{"to": "hv2"}')
    (records / "x.json").write_text("{")
    assert hypervisor_records.away([]) == []
    assert hypervisor_records.read("db") is None


VERBS = [
    ("start", "shut off", "start"), ("start", "crashed", "start"), ("shutdown", "running", "shutdown"),
    ("reboot", "running", "reboot"), ("power_off", "running", "destroy"), ("power_off", "paused", "destroy"),
    ("suspend", "running", "suspend"), ("resume", "paused", "resume"),
]  # fmt: skip
IDLE = [
    ("start", "running"),
    ("shutdown", "shut off"),
    ("power_off", "shut off"),
    ("suspend", "paused"),
    ("resume", "running"),
]
REFUSED = [
    ("start", "paused"),
    ("reboot", "shut off"),
    ("suspend", "shut off"),
    ("resume", "shut off"),
    ("shutdown", "paused"),
]


@pytest.mark.parametrize(("verb", "state", "command"), VERBS)
def test_a_verb_asks_libvirt_once_for_the_uuid(verb, state, command):
    libvirt = Libvirt({("domstate", UUID): state, (command,): ""})
    found = hypervisor_actions.act(libvirt, UTILS, "web", verb)
    assert libvirt.asked(command) == [(command, UUID)]
    assert found["state_before"] == state.replace(" ", "_")


@pytest.mark.parametrize(("verb", "state"), IDLE)
def test_what_is_so_already_is_left_alone(verb, state):
    libvirt = Libvirt({("domstate", UUID): state})
    found = hypervisor_actions.act(libvirt, UTILS, "web", verb)
    assert found["changed"] is False
    assert {call[0] for call in libvirt.calls} == {"list", "domstate"}


@pytest.mark.parametrize(("verb", "state"), REFUSED)
def test_a_verb_that_does_not_fit_the_state_is_refused(verb, state):
    libvirt = Libvirt({("domstate", UUID): state})
    with pytest.raises(CommandExecutionError, match=f"web is {state}, so there is no {verb} of it"):
        hypervisor_actions.act(libvirt, UTILS, "web", verb)
    assert {call[0] for call in libvirt.calls} == {"list", "domstate"}


def test_a_shutdown_is_waited_for(monkeypatch):
    monkeypatch.setattr(hypervisor_actions, "_PAUSE", 0.01)
    states = iter(["running", "in shutdown", "running", "shut off"])
    libvirt = Libvirt({("domstate", UUID): lambda *_: next(states), ("shutdown",): ""})
    found = hypervisor_actions.act(libvirt, UTILS, "web", "shutdown", 5)
    assert (found["changed"], found["state"]) == (True, "shut_off")


MOVES = "Job type:         Unbounded\nOperation:        Outgoing migration\nTime elapsed:     5 ms\n"
NOTHING = "Job type:         None\n"


def cancelled(records, table):
    """Call a migration off on a libvirt that answers from a table."""
    libvirt = Libvirt(table)
    known = {"hypervisor_records.moving": partial(hypervisor_records.moving, folder=records)}
    return libvirt, lambda: hypervisor_actions.cancel(libvirt, UTILS | known, "web")


def test_a_migration_is_called_off_and_waited_for(records, monkeypatch):
    monkeypatch.setattr(hypervisor_actions, "_PAUSE", 0.01)
    jobs = iter([MOVES, MOVES, NOTHING])
    libvirt, call = cancelled(records, {("domjobinfo", UUID): lambda *_: next(jobs), ("domjobabort",): ""})
    assert call() == {
        "name": "web", "uuid": UUID, "changed": True, "state_before": "running", "state": "running",
    }  # fmt: skip
    assert libvirt.asked("domjobabort") == [("domjobabort", UUID)]


def test_one_that_is_about_to_begin_is_waited_for(records, monkeypatch):
    monkeypatch.setattr(hypervisor_actions, "_PAUSE", 0.01)
    hypervisor_records.write("web", UUID, "hv2", moving=True, folder=records)
    jobs = iter([NOTHING, NOTHING, MOVES, NOTHING])
    libvirt, call = cancelled(records, {("domjobinfo", UUID): lambda *_: next(jobs), ("domjobabort",): ""})
    assert call()["changed"] is True
    assert libvirt.asked("domjobabort") == [("domjobabort", UUID)]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (NOTHING, "web is running, and no migration of it from here has begun$"),
        ("Job type: Unbounded\nOperation: Incoming migration\n", "begun; libvirt is .* with it: incoming migration$"),
        ("Job type: Unbounded\nOperation: Backup\n", "begun; libvirt is at something else with it: backup$"),
        ("Job type: Unbounded\n", "begun; libvirt is at something else with it: unbounded$"),
    ],
)
def test_nothing_but_its_own_migration_from_here_is_called_off(records, job, said):
    libvirt, call = cancelled(records, {("domjobinfo", UUID): job, ("domjobabort",): ""})
    with pytest.raises(CommandExecutionError, match=said):
        call()
    assert libvirt.asked("domjobabort") == []


def test_a_migration_that_was_faster_or_goes_on_is_said(records, monkeypatch):
    monkeypatch.setattr(hypervisor_actions, "_PAUSE", 0.01)
    monkeypatch.setattr(hypervisor_actions, "_ABORT_SECONDS", 0.05)
    gone = CommandExecutionError("failed to get domain")
    jobs, states = iter([MOVES, NOTHING]), iter(["running", gone])
    table = {("domjobinfo", UUID): lambda *_: next(jobs), ("domstate", UUID): lambda *_: next(states)}
    _, call = cancelled(records, table | {("domjobabort",): CommandExecutionError("no job is active")})
    with pytest.raises(CommandExecutionError, match="it was too late: web is gone here, its migration had ended"):
        call()
    refused = CommandExecutionError("cannot acquire state change lock")
    _, call = cancelled(records, {("domjobinfo", UUID): MOVES, ("domjobabort",): refused})
    with pytest.raises(CommandExecutionError, match="has not ended its migration: cannot acquire state change lock"):
        call()


def inactive():
    """A libvirt whose guest has a definition like the guest that runs."""
    return Libvirt({("dumpxml", UUID, "--inactive"): DOMAIN, ("setvcpus",): "", ("setmem",): "", ("setmaxmem",): ""})


def test_resize_now_where_the_guest_has_room():
    libvirt = inactive()
    found = hypervisor_actions.resize(libvirt, UTILS, "web", 2, 512)
    assert found["vcpus"] == {"before": 1, "after": 2, "applied": "now", "why": None}
    assert found["memory_mib"]["applied"] == "now"
    assert libvirt.asked("setvcpus") == [("setvcpus", UUID, "2", "--config"), ("setvcpus", UUID, "2", "--live")]
    assert libvirt.asked("setmem") == [("setmem", UUID, "512MiB", "--config"), ("setmem", UUID, "512MiB", "--live")]


def test_resize_beyond_the_guests_room_waits_for_its_next_start():
    libvirt = inactive()
    found = hypervisor_actions.resize(libvirt, UTILS, "web", 4, None)
    assert found["vcpus"] == {
        "before": 1, "after": 4, "applied": "next_start", "why": "it was started with at most 2",
    }  # fmt: skip
    assert "memory_mib" not in found
    assert libvirt.asked("setvcpus") == [
        ("setvcpus", UUID, "4", "--config", "--maximum"), ("setvcpus", UUID, "4", "--config"),
    ]  # fmt: skip


def test_resize_says_why_libvirt_could_not_do_it_now():
    libvirt = inactive()
    libvirt.table["setvcpus", UUID, "2", "--live"] = CommandExecutionError("virsh setvcpus: no hotplug")
    found = hypervisor_actions.resize(libvirt, UTILS, "web", 2, None)
    assert (found["vcpus"]["applied"], found["vcpus"]["why"]) == ("next_start", "virsh setvcpus: no hotplug")


def test_resize_to_what_is_changes_nothing():
    libvirt = inactive()
    found = hypervisor_actions.resize(libvirt, UTILS, "web", 1, 256)
    assert (found["vcpus"]["applied"], found["memory_mib"]["applied"]) == ("already", "already")
    assert not libvirt.asked("setvcpus") + libvirt.asked("setmem")


def test_resize_beyond_the_host_changes_nothing():
    libvirt = inactive()
    with pytest.raises(CommandExecutionError, match="more than this host has, 24105 MiB; nothing was changed"):
        hypervisor_actions.resize(libvirt, UTILS, "web", 2, 30_000)
    assert not libvirt.asked("setvcpus") + libvirt.asked("setmem")


def stopped():
    """A libvirt whose guest is shut off."""
    base = {
        ("domstate", UUID): "shut off",
        ("dumpxml", UUID, "--inactive"): DOMAIN,
        ("undefine",): "",
        ("vol-delete",): "",
    }
    return Libvirt({**base, ("vol-path",): "/var/lib/libvirt/images/web.qcow2"})


def test_a_running_guest_is_not_deleted():
    libvirt = Libvirt()
    with pytest.raises(CommandExecutionError, match="web is running; only a guest that is shut off is deleted"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "keep")
    assert not libvirt.asked("undefine")


def test_a_guest_with_disks_is_not_deleted_unasked():
    libvirt = stopped()
    with pytest.raises(
        CommandExecutionError, match=r"say disks=keep or disks=delete for /var/lib/libvirt/images/web\.qcow2"
    ):
        hypervisor_actions.delete(libvirt, UTILS, "web", None)
    assert not libvirt.asked("undefine")


def test_delete_keeps_disks():
    libvirt = stopped()
    found = hypervisor_actions.delete(libvirt, UTILS, "web", "keep")
    assert found["disks_kept"] == ["/var/lib/libvirt/images/web.qcow2"]
    assert libvirt.asked("undefine") == [("undefine", UUID)]
    assert not libvirt.asked("vol-delete")


def test_delete_takes_its_own_disks_and_never_their_base():
    libvirt = stopped()
    found = hypervisor_actions.delete(libvirt, UTILS, "web", "delete")
    assert found["disks_deleted"] == ["/var/lib/libvirt/images/web.qcow2"]
    assert libvirt.asked("vol-delete") == [("vol-delete", "/var/lib/libvirt/images/web.qcow2")]


@pytest.mark.parametrize(("name", "disks", "there"), [("web", "delete", False), ("web", "keep", True),
                                                      ("db", "delete", True)])  # fmt: skip
def test_the_disk_with_a_guests_secrets_goes_with_its_others(tmp_path, name, disks, there):
    seed = tmp_path / f"{name}_cloud-init.iso"
    seed.touch()
    cdrom = f"<disk device='cdrom'><source file='{seed}'/><readonly/><alias name='ua-disk-cloud-init'/></disk>"
    libvirt = stopped()
    libvirt.table["dumpxml", UUID, "--inactive"] = DOMAIN.replace("</devices>", f"{cdrom}</devices>")
    found = hypervisor_actions.delete(libvirt, UTILS, "web", disks)
    assert seed.exists() is there
    assert (str(seed) in found["disks_deleted"]) is not there


def test_a_deleted_volume_leaves_no_note_that_it_is_half_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(guest_storage, "UNFINISHED", tmp_path)
    note = guest_storage.marker("/var/lib/libvirt/images/web.qcow2")
    note.touch()
    libvirt = stopped()
    libvirt.table["vol-delete",] = CommandExecutionError("virsh vol-delete: in use")
    with pytest.raises(CommandExecutionError, match="not all of its disks"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "delete")
    assert note.exists()
    hypervisor_actions.delete(stopped(), UTILS, "web", "delete")
    assert not note.exists()


def test_a_disk_that_another_guest_stands_on_is_not_deleted():
    other = DOMAIN.replace(UUID, OTHER).replace("<name>web<", "<name>db<").replace("base.qcow2", "web.qcow2")
    libvirt = stopped()
    libvirt.table[(*LIST, "--name")] = f"{UUID} web\n{OTHER} db"
    libvirt.table["dumpxml", OTHER] = other
    with pytest.raises(CommandExecutionError, match=r"nothing was deleted: .*web\.qcow2 belongs to db too"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "delete")
    assert not libvirt.asked("undefine") + libvirt.asked("vol-delete")


def test_a_disk_of_another_guests_next_start_is_not_deleted():
    other = DOMAIN.replace(UUID, OTHER).replace("<name>web<", "<name>db<")
    libvirt = stopped()
    libvirt.table[(*LIST, "--name")] = f"{UUID} web\n{OTHER} db"
    libvirt.table["dumpxml", OTHER] = f"<domain><name>db</name><uuid>{OTHER}</uuid><devices/></domain>"
    libvirt.table["dumpxml", OTHER, "--inactive"] = other
    with pytest.raises(CommandExecutionError, match=r"nothing was deleted: .*web\.qcow2 belongs to db too"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "delete")
    assert not libvirt.asked("undefine") + libvirt.asked("vol-delete")


@pytest.mark.parametrize("volume", [False, True])
def test_what_a_guest_that_does_not_run_stands_on_is_not_deleted(tmp_path, volume):
    top, base = tmp_path / "top.qcow2", tmp_path / "web.qcow2"
    top.touch()
    source = "pool='images' volume='top.qcow2'" if volume else f"file='{top}'"
    other = (
        f"<domain><name>db</name><devices><disk type='file'><driver name='qemu' type='qcow2'/><source {source}/>"
        "</disk></devices></domain>"
    )
    libvirt = stopped()
    libvirt.table[(*LIST, "--name")] = f"{UUID} web\n{OTHER} db"
    libvirt.table["dumpxml", OTHER] = other
    libvirt.table["dumpxml", UUID, "--inactive"] = DOMAIN.replace("/var/lib/libvirt/images/web.qcow2", str(base))
    libvirt.table["vol-path",] = str(base)
    libvirt.table["vol-path", "top.qcow2"] = str(top)
    asked = []

    def run(argv, **_):
        asked.append(argv[-1])
        return f'[{{"filename": "{argv[-1]}"}}, {{"filename": "web.qcow2"}}]'

    with pytest.raises(CommandExecutionError, match=r"nothing was deleted: .*web\.qcow2 belongs to db too"):
        hypervisor_actions.delete(libvirt, UTILS | {"libvirt_tools.run": run}, "web", "delete")
    assert asked == [str(top)]
    assert not libvirt.asked("undefine") + libvirt.asked("vol-delete")


def test_a_raw_disk_of_another_guest_is_not_asked_what_it_stands_on(tmp_path):
    (tmp_path / "x.raw").touch()
    disk = f"<disk type='file'><driver name='qemu' type='raw'/><source file='{tmp_path}/x.raw'/></disk>"
    libvirt = Libvirt({("dumpxml", UUID): f"<domain><name>web</name><devices>{disk}</devices></domain>"})
    utils = UTILS | {"libvirt_tools.run": lambda *_, **__: pytest.fail("something was run")}
    assert hypervisor_actions.used_by_others(libvirt, utils, "") == {f"{tmp_path}/x.raw": "web"}


def test_a_disk_outside_of_all_pools_is_not_deleted():
    libvirt = stopped()
    libvirt.table["vol-path",] = CommandExecutionError("virsh vol-path: no volume")
    with pytest.raises(CommandExecutionError, match="is in no active storage pool"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "delete")
    assert not libvirt.asked("undefine")


def unmanaged(path):
    """A libvirt whose guest, shut off, has a disk that is in no pool."""
    libvirt = stopped()
    libvirt.table["vol-path",] = CommandExecutionError("virsh vol-path: no volume")
    libvirt.table["dumpxml", UUID, "--inactive"] = DOMAIN.replace("/var/lib/libvirt/images/web.qcow2", str(path))
    return libvirt


def test_a_file_in_the_folder_of_images_is_deleted_without_a_pool(tmp_path):
    disk = tmp_path / "web.qcow2"
    disk.touch()
    libvirt = unmanaged(disk)
    found = hypervisor_actions.delete(libvirt, UTILS, "web", "delete", f"{tmp_path}/")
    assert (found["disks_deleted"], found["disks_kept"], disk.exists()) == ([str(disk)], [], False)
    assert libvirt.asked("undefine")
    assert not libvirt.asked("vol-delete")


@pytest.mark.parametrize("path", ["link.qcow2", "below/web.qcow2", "gone.qcow2", "below/../web.qcow2", "folder"])
def test_what_is_no_file_of_that_very_folder_is_not_deleted(tmp_path, path):
    (tmp_path / "below").mkdir()
    (tmp_path / "folder").mkdir()
    for name in ("web.qcow2", "below/web.qcow2"):
        (tmp_path / name).touch()
    (tmp_path / "link.qcow2").symlink_to(tmp_path / "web.qcow2")
    libvirt = unmanaged(f"{tmp_path}/{path}")
    with pytest.raises(CommandExecutionError, match="is in no active storage pool: remove it by hand"):
        hypervisor_actions.delete(libvirt, UTILS, "web", "delete", str(tmp_path))
    assert not libvirt.asked("undefine")
    assert (tmp_path / "web.qcow2").exists()
    assert (tmp_path / "below" / "web.qcow2").exists()


def test_a_host_is_described(monkeypatch):
    monkeypatch.setattr(hypervisor_host, "kvm_works", lambda: False)
    found = hypervisor_host.everything(Libvirt(), UTILS, "hv1")
    assert found["minion"] == "hv1"
    assert found["domain_types"] == ["qemu"]
    assert found["cpu"]["cpus"] == 2
    assert found["numa"] == [{"node": 0, "memory_mib": 24105, "cpus": [0, 1]}]
    assert found["pools"][0]["available_bytes"] == 99999999999
    assert found["networks"][0]["addresses"] == ["192.0.2.1/24"]
    assert found["guests"] == {"total": 1, "by_state": {"running": 1}, "active_vcpus": 1, "active_memory_mib": 256}
    assert found["versions"]["qemu"] == "7.2.22"
    json.dumps(found)


def test_a_host_without_libvirt_is_described_as_far_as_it_can_be():
    libvirt = Libvirt({("capabilities",): CommandExecutionError("virsh capabilities: Connection refused")})
    found = hypervisor_host.everything(libvirt, UTILS, "hv1")
    assert "libvirt: virsh capabilities: Connection refused" in found["problems"]
    assert found["guests"] is None
    assert found["memory"]["total_mib"] > 0
    assert set(found) == set(hypervisor_host.everything(Libvirt(), UTILS, "hv1"))


def test_missing_certificates_are_named(tmp_path):
    rows = hypervisor_host.certificates(dt.datetime.now(tz=dt.timezone.utc), tmp_path)
    assert [row["purpose"] for row in rows] == ["libvirt", "qemu"]
    assert all("is missing" in row["problem"] for row in rows)


def test_huge_pages_bridges_and_a_pending_reboot_are_read(tmp_path):
    pages = tmp_path / "sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    pages.mkdir(parents=True)
    (pages / "nr_hugepages").write_text("16\n")
    (pages / "free_hugepages").write_text("4\n")
    bridge = tmp_path / "sys/class/net/br0"
    (bridge / "bridge").mkdir(parents=True)
    (bridge / "brif" / "eth0").mkdir(parents=True)
    for name, text in {"address": "52:54:00:00:00:09", "mtu": "1500", "flags": "0x1003"}.items():
        (bridge / name).write_text(f"{text}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/reboot-required").touch()
    (tmp_path / "run/reboot-required.pkgs").write_text("linux-image\nlibc6\nlibc6\n")
    assert hypervisor_host.hugepages(tmp_path) == [{"node": 1, "size_kib": 2048, "total": 16, "free": 4}]
    assert hypervisor_host.bridges(tmp_path) == [
        {"name": "br0", "mac": "52:54:00:00:00:09", "mtu": 1500, "up": True, "ports": ["eth0"]}
    ]
    assert hypervisor_host.reboot(tmp_path) == {"pending": True, "why": ["/run/reboot-required: libc6, linux-image"]}


def test_a_kvm_device_that_does_not_work_does_not_count(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    assert hypervisor_host.kvm_works(tmp_path) is False


@pytest.mark.parametrize(
    ("text", "kib"), [("<m unit='KiB'>3</m>", 3), ("<m unit='b'>2048</m>", 2), ("<m unit='GiB'>1</m>", 1 << 20)]
)
def test_sizes_are_read_with_their_unit(text, kib):
    assert hypervisor_xml.kib(hypervisor_xml.parsed(text)) == kib


def test_the_module_hands_over_every_function_that_its_utilities_call():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "_utils").glob("hypervisor_*.py"))
    called = set(re.findall(r'utils\["([a-z_]+\.[a-z_]+)"\]', text))
    assert len(called) > 20
    assert called <= set(hypervisor._SIBLINGS)

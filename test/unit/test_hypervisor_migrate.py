"""Migration: every reason against it at once, what is asked of libvirt, and what is left after a failure."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypervisor_harness import CAPABILITIES, DOMAIN, LIST, OTHER, POOL, UUID, Libvirt, utilities
from salt.exceptions import CommandExecutionError

from _utils import hypervisor_migrate, hypervisor_obstacles, hypervisor_records, hypervisor_storage

GOOD = [{"purpose": purpose, "problem": None} for purpose in ("libvirt", "qemu")]
DISKLESS = DOMAIN[: DOMAIN.index("<disk")] + DOMAIN[DOMAIN.index("<interface") :]
DONE = "operation: 5\ndata_processed: 91964388\nmemory_processed: 91964388\ndowntime: 109\nmemory_iteration: 3\n"


class Hosts:
    """This host, the virsh that migrates, and the target, with a guest that moves when it is told to."""

    def __init__(self, monkeypatch, tmp_path, domain: str = DISKLESS):
        self.folder = tmp_path / "migrated"
        self.where = "here"
        self.volumes: list[str] = []
        self.failure: str = ""
        self.leaves = True
        self.here = Libvirt({("dumpxml", UUID): domain})
        self.here.table |= {
            ("domstate", UUID): lambda *_: (
                "running" if self.where == "here" else CommandExecutionError("virsh domstate: failed to get domain")
            ),
            ("domjobabort", UUID): "",
            ("domblkinfo", UUID): "Capacity:       1073741824\nAllocation:     4096\nPhysical: 4096\n",
        }
        self.mover = Libvirt({("migrate",): self.moved})
        self.there = Libvirt(uri="qemu+tls://hv2/system")
        self.there.table |= {
            (*LIST, "--name"): "",
            LIST: "",
            ("domstate", UUID): lambda *_: (
                "running" if self.where == "there" else CommandExecutionError("virsh domstate: failed to get domain")
            ),
            ("domjobinfo", UUID, "--completed"): DONE,
            ("autostart", UUID): "",
            ("pool-info",): "",
            ("vol-info",): CommandExecutionError("virsh vol-info: no such volume"),
            ("vol-create",): self.made,
            ("vol-delete",): "",
            ("pool-create-as",): CommandExecutionError("virsh pool-create-as: cannot open directory"),
            ("pool-destroy",): "",
        }
        self.utils = utilities()
        self.sessions = [self.here, self.mover, self.there]
        self.opened: list[str] = []
        self.utils["hypervisor_virsh.session"] = self.session
        self.certificates = GOOD
        self.utils["hypervisor_host.certificates"] = lambda now: self.certificates
        for name in ("write", "read", "remove", "settle", "away"):
            function = getattr(hypervisor_records, name)
            monkeypatch.setattr(function, "__defaults__", (*(function.__defaults__ or ())[:-1], self.folder))
        self.port: OSError = ConnectionRefusedError()
        monkeypatch.setattr(socket, "create_connection", self.connect)

    def session(self, uri="qemu:///system"):
        self.opened.append(uri)
        return self.sessions[len(self.opened) - 1]

    def connect(self, *_, **__):
        raise self.port

    def moved(self, *_):
        self.record = json.loads((self.folder / "web.json").read_text())
        if self.failure:
            return CommandExecutionError(self.failure)
        self.where = "there"
        return ""

    def made(self, _, pool, path):
        self.volumes.append(Path(path).read_text())
        return ""

    def run(self, **options):
        chosen = {"copy_disks": False, "timeout": 60, "port": 49152, "test": False, **options}
        return hypervisor_migrate.run(self.utils, "web", "hv1", options.pop("target", "hv2"), ["hv1", "hv2"], chosen)

    def reasons(self, **options):
        found = self.run(test=True, **options)
        assert found["possible"] is (not found["reasons"])
        assert not self.mover.asked("migrate")
        return {row["check"]: row["text"] for row in found["reasons"]}


@pytest.fixture(name="hosts")
def two_hosts(monkeypatch, tmp_path):
    return Hosts(monkeypatch, tmp_path)


@pytest.fixture(name="disk")
def with_disk(monkeypatch, tmp_path):
    return Hosts(monkeypatch, tmp_path, DOMAIN)


def test_a_guest_moves_encrypted_and_leaves_a_record(hosts):
    found = hosts.run()
    (command,) = hosts.mover.asked("migrate")
    assert command == (
        "migrate", UUID, "qemu+tls://hv2/system", "--p2p", "--undefinesource", "--persistent", "--live", "--tls",
        "--migrateuri", "tcp://hv2", "--auto-converge",
    )  # fmt: skip
    assert hosts.opened == ["qemu:///system", "qemu:///system", "qemu+tls://hv2/system"]
    assert (found["downtime_ms"], found["transferred_bytes"], found["state"]) == (109, 91964388, "running")
    assert found["seconds"] >= found["migration_seconds"] >= 0
    # Before it moved the record was there already: a host that loses its power then starts no second copy.
    assert hosts.record["moving"] is True
    record = json.loads((hosts.folder / "web.json").read_text())
    assert (record["to"], record["uuid"], "moving" in record) == ("hv2", UUID, False)
    # It started with its host before, so it does so there.
    assert hosts.there.asked("autostart") == [("autostart", UUID)]
    json.dumps(found)


def test_only_asked_it_touches_nothing(hosts):
    assert hosts.reasons() == {}
    assert not hosts.folder.exists()


@pytest.mark.parametrize(("target", "text"), [("hv1", "on hv1 already"), ("hv9", "not in libvirt:tls:allowed_hosts")])
def test_another_target_is_not_even_connected_to(hosts, target, text):
    assert text in hosts.reasons(target=target)["target"]
    assert hosts.opened == ["qemu:///system"] * 2


BROKEN = {
    "name": {(*LIST, "--name"): f"{OTHER} web"},
    "uuid": {(*LIST, "--name"): f"{UUID} other"},
    "host": {("capabilities",): CAPABILITIES.format(uuid="host of qemu:///system")},
    "cpu": {("hypervisor-cpu-compare",): CommandExecutionError("virsh: Host CPU does not provide features: svm")},
    "memory": {("nodememstats",): "total : 1 KiB\nfree : 204800 KiB\nbuffers: 1024 KiB\ncached : 0 KiB\n"},
    "network": {("net-list", "--name"): "", ("iface-list",): " eth0 active 52:54:00:d5:02:0b\n"},
}


@pytest.mark.parametrize("check", BROKEN)
def test_each_obstacle_on_the_target_is_named(hosts, check):
    hosts.there.table |= BROKEN[check]
    if check == "network":
        hosts.there.table["net-list", "--name", "--all"] = "default"
    assert list(hosts.reasons()) == [check]


def test_another_machine_type_is_named(hosts):
    hosts.there.table["domcapabilities",] = CommandExecutionError("virsh domcapabilities: machine 'x' is not supported")
    assert "is not supported" in hosts.reasons()["cpu"]


def test_a_missing_network_and_an_inactive_one_differ():
    guest = {"nics": [{"type": "network", "source": "lan"}, {"type": "bridge", "source": "br7"}]}
    texts = [row["text"] for row in hypervisor_obstacles.networks(guest, [], ["lan"], [], "hv2")]
    assert texts == ["the network lan of hv2 is not active", "hv2 has no bridge or device br7"]
    assert hypervisor_obstacles.networks(guest, ["lan"], ["lan"], None, "hv2") == []


def test_huge_pages_are_counted():
    guest = {"hugepages": True, "hugepages_kib": [2048], "memory_max_mib": 16, "memory_mib": 16}
    assert hypervisor_obstacles.memory(guest, 0, {2048: 8}, "hv2") == []
    (found,) = hypervisor_obstacles.memory(guest, 10_000, {2048: 7}, "hv2")
    assert found["text"] == "the guest needs 8 huge pages of 2048 KiB, hv2 has 7 free ones"


def test_a_bad_certificate_of_this_host_is_named(hosts):
    hosts.certificates = [GOOD[0], {"purpose": "qemu", "problem": "it has expired"}]
    assert hosts.reasons() == {"certificate": "this host's certificate for qemu: it has expired"}


@pytest.mark.parametrize(
    ("said", "check"),
    [
        ("virsh capabilities: unable to connect to server at 'hv2:16514': Connection refused", "port"),
        ("virsh capabilities: Unable to resolve address 'hv2' service '16514': Name or service not known", "port"),
        ("virsh capabilities: The certificate has expired", "certificate"),
        ("virsh capabilities: authentication failed: Failed to verify peer's certificate", "certificate"),
    ],
)
def test_a_target_that_cannot_be_asked_is_named(hosts, said, check):
    hosts.there.table["capabilities",] = CommandExecutionError(said)
    reasons = hosts.reasons()
    assert list(reasons) == [check]
    assert said in reasons[check]


def test_a_target_that_does_not_answer_is_named(hosts):
    hosts.there.table["capabilities", "timeout"] = "hangs"
    assert "did not answer on port 16514" in hosts.reasons()["port"]


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(113, "No route to host")])
def test_closed_ports_of_migrations_are_named(hosts, error):
    hosts.port = error
    assert "port 49152 of hv2" in hosts.reasons()["port"]


def test_devices_folders_snapshots_and_jobs_keep_a_guest_here(hosts):
    more = "<hostdev type='pci' mode='subsystem'/><filesystem><target dir='share'/></filesystem></devices>"
    hosts.here.table["dumpxml", UUID] = DISKLESS.replace("</devices>", more)
    hosts.here.table["snapshot-list", UUID] = "before"
    hosts.here.table["domjobinfo", UUID] = "Job type:         Unbounded\n"
    found = hosts.run(test=True)["reasons"]
    assert [row["check"] for row in found] == ["state", "device", "device", "snapshot"]


def test_all_reasons_come_at_once_and_nothing_is_touched(disk):
    disk.here.table["snapshot-list", UUID] = "before"
    disk.there.table |= BROKEN["name"] | BROKEN["memory"] | BROKEN["cpu"]
    with pytest.raises(CommandExecutionError) as caught:
        disk.run()
    text = str(caught.value)
    assert text.startswith("web stays on hv1 and was not touched. Against hv2 speaks:\n")
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == [
        "- snapshot", "- name", "- memory", "- cpu", "- storage",
    ]  # fmt: skip
    assert not disk.mover.asked("migrate")
    assert not disk.folder.exists()
    assert not [call for call in disk.there.calls if call[0].startswith(("vol-create", "vol-delete", "pool-destroy"))]


def test_a_local_disk_needs_to_be_copied(disk):
    assert "is on this host alone; copy_disks=true copies it" in disk.reasons()["storage"]


def test_a_disk_is_copied_into_a_volume_that_is_made_for_it(disk):
    found = disk.run(copy_disks=True)
    (made,) = disk.there.asked("vol-create")
    assert made[1] == "images"
    (volume,) = disk.volumes
    assert "<name>web.qcow2</name><capacity unit='bytes'>1073741824</capacity>" in volume
    assert "<format type='qcow2'/><compat>1.1</compat>" in volume
    (command,) = disk.mover.asked("migrate")
    assert command[-3:] == ("--copy-storage-all", "--migrate-disks", "vda")
    assert found["copied_disks"] == [
        {"target": "vda", "path": "/var/lib/libvirt/images/web.qcow2", "capacity_bytes": 1073741824}
    ]
    assert not disk.there.asked("vol-delete")


def test_nothing_on_the_target_is_overwritten(disk):
    disk.there.table["vol-info",] = "Name: web.qcow2"
    reasons = disk.reasons(copy_disks=True)
    assert "hv2 has a /var/lib/libvirt/images/web.qcow2 already; nothing is overwritten" in reasons["storage"]


def test_a_disk_on_shared_storage_is_never_copied(disk, monkeypatch):
    disk.utils["hypervisor_obstacles.mounted"] = lambda path, mounts: "nfs4"
    disk.there.table["vol-info",] = "Name: web.qcow2"
    disk.run(copy_disks=True)
    assert not disk.there.asked("vol-create")
    assert "--copy-storage-all" not in disk.mover.asked("migrate")[0]


def test_shared_storage_that_the_target_does_not_see_is_named(disk):
    disk.utils["hypervisor_obstacles.mounted"] = lambda path, mounts: "nfs4"
    assert "shared storage that hv2 does not see" in disk.reasons()["storage"]


def test_a_target_without_room_or_folder_is_named(disk):
    disk.there.table["pool-dumpxml", "images"] = POOL.replace("99999999999", "4095")
    assert "has 0 MiB left, the copy needs 1 MiB" in disk.reasons(copy_disks=True)["storage"]
    disk.opened.clear()
    disk.there.table["pool-list",] = ""
    assert "hv2 has no folder /var/lib/libvirt/images" in disk.reasons(copy_disks=True)["storage"]


def test_a_pool_that_was_made_for_a_look_is_taken_away(disk):
    disk.there.table |= {("pool-list",): "", ("pool-create-as",): "", ("pool-dumpxml",): POOL}
    disk.reasons(copy_disks=True)
    (made,) = disk.there.asked("pool-create-as")
    assert made[1].startswith("hypervisor-check-")
    assert made[2:] == ("dir", "--target", "/var/lib/libvirt/images")
    assert disk.there.asked("pool-destroy") == [("pool-destroy", made[1])]


def test_a_pool_that_a_killed_job_left_is_taken_away_with_ours(disk):
    left = POOL.replace("<name>images</name>", "<name>hypervisor-check-0badcafe</name>")
    disk.there.table |= {("pool-list",): "hypervisor-check-0badcafe", ("pool-create-as",): "", ("pool-dumpxml",): left}
    disk.reasons(copy_disks=True)
    (made,) = disk.there.asked("pool-create-as")
    gone = [words[1] for words in disk.there.asked("pool-destroy")]
    assert gone == ["hypervisor-check-0badcafe", made[1]]


def test_a_pool_that_another_job_took_away_is_made_anew(disk):
    disk.there.table |= {("pool-list",): "", ("pool-create-as",): "", ("pool-dumpxml",): POOL}
    there = iter(["lost", *["there"] * 9])

    def found(*_):
        return CommandExecutionError("virsh pool-info: failed to get pool") if next(there) == "lost" else ""

    disk.there.table["pool-info",] = found
    disk.reasons(copy_disks=True)
    assert len(disk.there.asked("pool-create-as")) == 2


OTHERS = "hypervisor-check-00000000"


def test_a_pool_that_goes_between_two_questions_is_made_anew(disk, monkeypatch):
    monkeypatch.setattr(hypervisor_storage, "_PAUSE", 0.01)
    read = iter([CommandExecutionError("virsh pool-dumpxml: failed to get pool"), POOL])
    disk.there.table |= {("pool-list",): "", ("pool-create-as",): "", ("pool-dumpxml",): lambda *_: next(read)}
    assert disk.reasons(copy_disks=True) == {}
    assert len(disk.there.asked("pool-create-as")) == 2


GONE = CommandExecutionError("virsh pool-list: error: Could not retrieve pool information")


def test_a_list_that_the_pool_of_another_look_has_left_is_made_again(disk, monkeypatch):
    monkeypatch.setattr(hypervisor_storage, "_PAUSE", 0.01)
    lists = iter([GONE, "", ""])
    disk.there.table |= {("pool-list",): lambda *_: next(lists), ("pool-create-as",): "", ("pool-dumpxml",): POOL}
    assert disk.reasons(copy_disks=True) == {}
    assert len(disk.there.asked("pool-list")) > 1


@pytest.mark.parametrize(
    ("error", "asked"), [(GONE, 10), (CommandExecutionError("virsh pool-list: no connection"), 1)]
)
def test_a_list_that_fails_for_good_is_said(disk, monkeypatch, error, asked):
    monkeypatch.setattr(hypervisor_storage, "_PAUSE", 0.001)
    disk.there.table |= {("pool-list",): error}
    with pytest.raises(CommandExecutionError, match=str(error)):
        disk.reasons(copy_disks=True)
    assert len(disk.there.asked("pool-list")) == asked


def test_the_pool_of_another_look_may_be_there_first(disk, monkeypatch):
    monkeypatch.setattr(hypervisor_storage, "_PAUSE", 0.01)
    conflict = CommandExecutionError(f"virsh pool-create-as: Storage source conflict with pool: '{OTHERS}'")
    lists, made = iter(["", OTHERS]), iter([conflict, ""])
    disk.there.table |= {
        ("pool-list",): lambda *_: next(lists), ("pool-create-as",): lambda *_: next(made), ("pool-dumpxml",): POOL,
        ("pool-dumpxml", OTHERS): POOL.replace(">images<", f">{OTHERS}<"),
    }  # fmt: skip
    assert disk.reasons(copy_disks=True) == {}
    assert disk.there.asked("pool-destroy")[0][1] == OTHERS


def test_a_pool_that_others_always_have_is_said(disk, monkeypatch):
    monkeypatch.setattr(hypervisor_storage, "_PAUSE", 0.001)
    conflict = CommandExecutionError(f"virsh pool-create-as: Storage source conflict with pool: '{OTHERS}'")
    disk.there.table |= {("pool-list",): "", ("pool-create-as",): conflict}
    assert "which comes and goes; try it again" in disk.reasons(copy_disks=True)["storage"]


def test_an_iso_that_the_target_lacks_is_named(disk):
    disk.here.table["dumpxml", UUID] = DOMAIN.replace("device='cdrom'>", "device='cdrom'><source file='/iso/d.iso'/>")
    disk.there.table["pool-create-as",] = ""
    disk.there.table["pool-dumpxml",] = POOL
    assert "hv2 has no /iso/d.iso (sda); eject it or put it there" in disk.reasons(copy_disks=True)["device"]


def test_a_failure_leaves_the_guest_and_takes_back_only_what_was_made(disk):
    disk.failure = "virsh migrate: unable to execute QEMU command 'object-add': The certificate has expired"
    with pytest.raises(CommandExecutionError) as caught:
        disk.run(copy_disks=True)
    text = "web is running on hv1, as before; the migration to hv2 failed:\n- certificate: "
    assert str(caught.value).startswith(text)
    assert disk.there.asked("vol-delete") == [("vol-delete", "web.qcow2", "--pool", "images")]
    assert not (disk.folder / "web.json").exists()


def test_copies_that_the_target_may_use_stay(disk):
    disk.failure = "virsh migrate: lost connection"
    disk.there.table[LIST] = UUID
    with pytest.raises(CommandExecutionError, match="the copies on hv2 stay, since it may use them"):
        disk.run(copy_disks=True)
    assert not disk.there.asked("vol-delete")


def test_a_migration_that_takes_too_long_is_called_off(hosts):
    hosts.mover.table["migrate", "timeout"] = "hangs"
    hosts.failure = "virsh migrate: operation aborted"
    with pytest.raises(CommandExecutionError, match=r"\n- timeout: it had not ended after 7 s and was called off"):
        hosts.run(timeout=7)
    assert hosts.here.asked("domjobabort") == [("domjobabort", UUID)]
    assert not (hosts.folder / "web.json").exists()


def test_a_migration_that_cannot_be_called_off_is_told_and_keeps_its_record(hosts, monkeypatch):
    monkeypatch.setattr(hypervisor_migrate, "_ABORT_SECONDS", 0.05)
    hosts.mover.answer = lambda timeout: None if hosts.mover._begun[0] == "migrate" else ""
    with pytest.raises(CommandExecutionError, match="libvirt has not ended the migration to hv2"):
        hosts.run(timeout=7)
    assert json.loads((hosts.folder / "web.json").read_text())["moving"] is True


def test_a_job_that_is_interrupted_calls_the_migration_off(disk):
    answers = iter(["", KeyboardInterrupt(), CommandExecutionError("virsh migrate: aborted")])

    def answer(timeout):
        found = next(answers)
        if isinstance(found, BaseException):
            raise found
        return found

    disk.mover.answer = answer
    with pytest.raises(KeyboardInterrupt):
        disk.run(copy_disks=True)
    assert disk.here.asked("domjobabort") == [("domjobabort", UUID)]
    assert len(disk.there.asked("vol-delete")) == 1
    assert not (disk.folder / "web.json").exists()


def test_a_lost_connection_to_this_host_is_made_anew(hosts):
    def lost(*_):
        hosts.where = "there"
        hosts.here.table["domstate", UUID] = CommandExecutionError("virsh domstate: Broken pipe")
        hosts.sessions.append(Libvirt({("domstate", UUID): CommandExecutionError("virsh: failed to get domain")}))
        return CommandExecutionError("virsh migrate: Broken pipe")

    hosts.mover.table["migrate",] = lost
    assert hosts.run()["state"] == "running"


def test_an_error_after_the_guest_has_arrived_is_no_failure(hosts):
    def arrives(*_):
        hosts.where = "there"
        return CommandExecutionError("virsh migrate: lost connection")

    hosts.mover.table["migrate",] = arrives
    assert hosts.run()["state"] == "running"
    assert (hosts.folder / "web.json").exists()


def test_a_guest_that_is_nowhere_is_told_loudly_and_keeps_its_record(hosts):
    def vanishes(*_):
        hosts.where = "nowhere"
        return CommandExecutionError("virsh migrate: lost connection")

    hosts.mover.table["migrate",] = vanishes
    with pytest.raises(CommandExecutionError, match="web is gone on hv1, and on hv2 it is gone instead of running"):
        hosts.run()
    assert (hosts.folder / "web.json").exists()


def test_a_guest_that_is_shut_off_moves_with_its_definition_alone(hosts):
    gone = CommandExecutionError("virsh domstate: failed to get domain")
    hosts.here.table["domstate", UUID] = lambda *_: "shut off" if hosts.where == "here" else gone
    hosts.there.table["domstate", UUID] = "shut off"
    hosts.port = TimeoutError("closed")
    hosts.run()
    (command,) = hosts.mover.asked("migrate")
    assert command[3:] == ("--p2p", "--undefinesource", "--persistent", "--offline", "--tls")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("</os>", "<nvram template='/t'>{}</nvram></os>", "its UEFI variables ({}) would stay here"),
        ("</os>", "<nvram type='file'><source file='{}'/></nvram></os>", "its UEFI variables ({}) would stay here"),
        ("</devices>", "<tpm model='tpm-crb'><backend type='emulator'/></tpm></devices>", "what its TPM holds"),
    ],
)
def test_a_guest_that_is_shut_off_leaves_nothing_of_its_own_behind(hosts, tmp_path, old, new, words):
    variables = tmp_path / "web_VARS.fd"
    hosts.here.table["dumpxml", UUID] = DISKLESS.replace(old, new.format(variables), 1)
    assert old in DISKLESS
    variables.touch()
    assert "state" not in hosts.reasons()
    hosts.here.table["domstate", UUID] = "shut off"
    hosts.opened.clear()
    assert words.format(variables) in hosts.reasons()["state"]
    variables.unlink()
    hosts.opened.clear()
    assert ("state" in hosts.reasons()) is ("TPM" in words)


def test_the_saved_memory_of_a_guest_is_not_left_behind(hosts):
    hosts.here.table["domstate", UUID] = "shut off"
    hosts.here.table[(*LIST, "--with-managed-save")] = UUID
    assert "its memory is saved on this host" in hosts.reasons()["state"]


def test_the_disks_of_a_guest_that_is_shut_off_are_not_copied(disk):
    disk.here.table["domstate", UUID] = "shut off"
    assert "start it first" in disk.reasons(copy_disks=True)["state"]


MOUNTS = "/dev/sda / ext4 rw\nhv0:/x /var/lib/libvirt/images nfs4 rw\n/dev/sdb /var/lib/libvirt/images2 xfs rw\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib/libvirt/images/a", "nfs4"), ("/var/lib/libvirt/images2/a", "xfs"), ("/var/lib/libvirt/a", "ext4")],
)
def test_the_file_system_of_a_path_is_found(path, kind):
    assert hypervisor_obstacles.mounted(path, MOUNTS) == kind

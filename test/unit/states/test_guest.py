"""The state of guests: what it does in which order, what it predicts, and what it never does without consent."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import guest
from _utils import (
    cluster_guests,
    guest_argv,
    guest_declared,
    guest_domain,
    guest_host,
    guest_plan,
    guest_seed,
    guest_storage,
    libvirt_pool,
    libvirt_tools,
)

XML = """<domain type='qemu'><name>web</name><memory unit='KiB'>131072</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices>
<disk type='file' device='disk'><source file='{folder}/web_system.qcow2'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>"""
CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host><guest><os_type>hvm</os_type>
<arch name='x86_64'><machine>q35</machine><domain type='qemu'/></arch></guest></capabilities>"""
READS = {"list", "dominfo", "dumpxml", "domjobinfo", "capabilities", "info", "pool-list"}


class Host:
    """A libvirt with at most one guest, which writes down what is done to it."""

    def __init__(self, monkeypatch, folder):
        self.folder = folder
        self.guests: dict[str, str] = {}
        self.pools: dict[str, str] = {}
        self.declared: dict[str, Any] = {}
        self.state, self.autostart, self.persistent, self.job = "shut off", "disable", "yes", "None"
        self.done: list[list[str]] = []
        self.obeys, self.fails = True, ""
        self.judged: list[str] = []
        self.opts = {"test": False}
        modules = (
            cluster_guests, guest_argv, guest_declared, guest_domain, guest_host, guest_plan, guest_seed, guest_storage,
            libvirt_pool, libvirt_tools,
        )  # fmt: skip
        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
            for module in modules
            for name in dir(module)
            if not name.startswith("_")
        }
        utils.update({
            "libvirt_tools.virsh": self.virsh,
            "libvirt_tools.run": self.run,
            "libvirt_tools.definition": self.definition,
            "libvirt_tools.names": lambda kind: list(self.guests) if kind == "domain" else [],
        })
        config: dict[str, Any] = {"images": {"path": str(folder)}, "nic_profiles": {}}
        salt = {
            "formula.judge": lambda *arguments: self.judged,
            "formula.config": lambda _: {**config, "pools": self.declared},
            "cp.hash_file": dict,
            "cp.get_file": dict,
        }
        for name, value in (("__opts__", self.opts), ("__salt__", salt), ("__utils__", utils)):
            monkeypatch.setattr(guest, name, value, raising=False)
        monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
        monkeypatch.setattr(guest_host, "MIGRATED", folder / "migrated")
        monkeypatch.setattr(guest_seed, "KEYS", folder / "keys")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def definition(self, kind, name, inactive=True):
        if kind == "pool":
            return self.pools.get(name)
        return self.guests.get(name)

    def have(self, state="shut off"):
        self.guests["web"] = XML.format(folder=self.folder)
        (self.folder / "web_system.qcow2").write_text("")
        self.state = state

    def note(self, words):
        if words[0] not in READS:
            self.done.append(words)
        if self.fails and self.fails == words[0]:
            raise CommandExecutionError(f"virsh {words[0]}: not possible")

    def virsh(self, *argv: str, **options: Any) -> str:
        self.note(list(argv))
        verb = argv[0]
        if verb == "define":
            self.guests["web"] = options["stdin"]
        elif verb == "start":
            self.state = "running"
        elif verb == "destroy" or (verb == "shutdown" and self.obeys):
            self.state = "shut off"
        elif verb == "undefine":
            del self.guests["web"]
        answers = {
            "capabilities": CAPABILITIES,
            "dumpxml": self.guests.get("web", ""),
            "list": "web\n" if self.state == "running" else "\n",
            "dominfo": f"State: {self.state}\nPersistent: {self.persistent}\nAutostart: {self.autostart}\n",
            "domjobinfo": f"Job type: {self.job}\n",
        }
        return answers.get(verb, "")

    def run(self, argv, timeout=0, stdin=None, label=""):
        name = argv[1] if argv[0] == "qemu-img" else argv[0]
        self.note([name])
        if name == "info":
            if "--backing-chain" in argv:
                return json.dumps([{"filename": argv[-1]}, {"filename": "web_system.qcow2"}])
            return json.dumps({"virtual-size": 9 * 2**20, "format": "qcow2"})
        if name == "create":
            with open(argv[-2], "w"):  # noqa: PTH123 - as qemu-img would
                pass
        return XML.format(folder=self.folder)

    def verbs(self):
        return [words[0] for words in self.done]


@pytest.fixture(name="host")
def fake_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path)


NEW = {"cpu": 1, "mem": 128, "disks": [{"name": "system", "size": 9}]}


def predicted(host, function, **declaration):
    """Predict: nothing is done, and the changes are those of the run that follows."""
    host.opts["test"] = True
    before = list(host.done)
    ret = function("web", **declaration)
    assert host.done == before
    host.opts["test"] = False
    return ret


def both(host, function, **declaration):
    expected = predicted(host, function, **declaration)
    ret = function("web", **declaration)
    assert ret["changes"] == expected["changes"]
    assert expected["result"] is (None if ret["changes"] else True)
    return ret


# ---- making ----


def test_a_new_guest(host):
    ret = both(host, guest.running, **NEW, autostart=True)
    assert ret["result"] is True, ret
    assert ret["comment"] == "The guest web is there and runs."
    assert host.verbs() == ["create", "virt-install", "define", "autostart", "start"]
    assert list(ret["changes"]) == ["disk system", "guest", "autostart", "state"]
    host.autostart = "enable"
    assert both(host, guest.running, **NEW, autostart=True)["changes"] == {}


@pytest.mark.parametrize("function", [guest.defined, guest.stopped])
def test_a_new_guest_that_need_not_run(host, function):
    assert "state" not in both(host, function, **NEW)["changes"]
    assert "start" not in host.verbs()


def test_a_failure_tells_what_was_done_before(host):
    host.fails = "define"
    ret = guest.running("web", **NEW)
    assert (ret["result"], list(ret["changes"])) == (False, ["disk system"])
    assert "not possible" in ret["comment"]


def test_a_pool_that_a_state_before_will_make(host):
    wanted = {"disks": [{"name": "system", "pool": "vms", "size": 9}], "autostart": True}
    ret = predicted(host, guest.running, **wanted)
    assert ret["result"] is None
    assert set(ret["changes"]) == {"disk system", "guest", "autostart", "state"}
    assert "not there yet: vms" in ret["comment"]
    failed = guest.running("web", **wanted)
    assert (failed["result"], failed["changes"]) == (False, {})
    assert "there is no storage pool vms" in failed["comment"]


# ---- refusing ----


def test_wrong_arguments_change_nothing(host):
    host.judged = ["web:mem: must be a whole number"]
    ret = guest.running("web", mem="much")
    assert (ret["result"], host.done) == (False, [])
    assert ret["comment"] == "Nothing was changed:\nweb:mem: must be a whole number"


@pytest.mark.parametrize("name", ["--all", "../web", "a b", ""])
def test_what_is_no_name(host, name):
    ret = guest.absent(name)
    assert (ret["result"], host.done) == (False, [])


def test_a_migrated_guest_is_left_alone(host, tmp_path):
    (tmp_path / "migrated").mkdir()
    (tmp_path / "migrated" / "web.json").write_text('{"to": "hv2", "at": "today"}')
    for function in (guest.running, guest.stopped, guest.defined, guest.absent):
        ret = both(host, function, **NEW)
        assert ret["comment"] == "The guest was migrated to hv2 (today); nothing is changed here."
    # A record that was left behind does not count where the guest is.
    host.have()
    assert both(host, guest.running, mem=128)["changes"] == {"state": {"old": "shut off", "new": "running"}}


def test_a_guest_that_is_being_migrated_is_left_alone(host):
    host.have("running")
    host.job = "Unbounded"
    ret = guest.running("web", mem=256)
    assert (ret["result"], ret["changes"], host.done) == (False, {}, [])
    assert "busy with a job of the type unbounded" in ret["comment"]
    assert guest.running("web", mem=128)["result"] is True


def test_a_host_without_libvirt(host, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    ret = predicted(host, guest.running, **NEW)
    assert (ret["result"], ret["changes"]) == (None, {"guest": "to be set up once it is installed"})
    assert guest.running("web", **NEW)["result"] is False
    assert guest.absent("web")["result"] is True


# ---- changing ----


def test_a_change_of_the_definition(host):
    host.have()
    ret = both(host, guest.defined, mem=256)
    assert host.verbs() == ["virt-xml", "define"]
    assert set(ret["changes"]) == {"mem", "mem maximum"}


def test_a_new_disk_is_attached_wherever_libvirt_has_sorted_it_in(host):
    disk = "<disk type='file'><source file='/{0}'/><target dev='{0}' bus='virtio'/><address type='pci'/></disk>"
    xml = f"<domain><devices>{''.join(map(disk.format, ('vda', 'vdb', 'sda')))}</devices></domain>"
    done = []

    def virsh(*argv, stdin=None):
        done.append((argv[0], stdin))
        return xml

    utils = {**guest.__utils__, "libvirt_tools.virsh": virsh}
    guest_host.attach(utils, "web", "disk", "vdb")
    ((verb, device),) = done[1:]
    assert verb == "attach-device"
    assert "dev=\"vdb\"" in device
    assert "<address" not in device
    with pytest.raises(CommandExecutionError, match="has no disk vdc"):
        guest_host.attach(utils, "web", "disk", "vdc")


def test_what_a_running_guest_cannot_have_waits(host):
    host.have("running")
    ret = both(host, guest.running, cpu=2)
    assert "Until the guest's next start this waits: cpu maximum" in ret["comment"]
    assert not {"shutdown", "destroy", "start"} & set(host.verbs())


def test_a_restart_with_consent(host):
    host.have("running")
    ret = both(host, guest.running, cpu=2, allow_restart=True)
    assert host.verbs() == ["virt-xml", "define", "shutdown", "start"]
    assert ret["changes"]["restart"]["new"] == "as declared"


def test_a_live_change_that_fails_is_told_and_waits(host):
    host.have("running")
    host.fails = "setmem"
    ret = both(host, guest.running, mem={"current": 64, "maximum": 128})
    assert ret["result"] is True
    assert "mem: not while the guest runs, but at its next start (virsh setmem: not possible)" in ret["comment"]


def test_a_disk_grows_under_a_running_guest(host):
    host.have("running")
    ret = both(host, guest.running, disks=[{"name": "system", "size": 20}])
    assert ret["changes"] == {"disk system": {"old": "9 MiB", "new": "20 MiB"}}
    assert host.verbs() == ["blockresize"]


def test_a_transient_guest_is_kept(host):
    host.have("running")
    host.persistent = "no"
    assert both(host, guest.running)["changes"] == {"definition": {"old": "transient", "new": "persistent"}}
    assert host.verbs() == ["define"]


def test_a_paused_guest_stays_paused(host):
    host.have("paused")
    assert both(host, guest.running)["changes"] == {}


# ---- stopping and removing ----


def test_stopping(host):
    host.have("running")
    assert both(host, guest.stopped)["changes"] == {"state": {"old": "running", "new": "shut off"}}
    assert host.verbs() == ["shutdown"]
    assert both(host, guest.stopped)["changes"] == {}


@pytest.mark.parametrize("function", [guest.stopped, guest.absent])
def test_power_is_cut_with_consent_alone(host, monkeypatch, function):
    host.have("running")
    host.obeys = False
    clock = iter(range(10000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    ret = function("web", stop_timeout=30)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "allow_power_off: true" in ret["comment"]
    # Asked more than once, since a guest that boots does not hear it.
    assert set(host.verbs()) == {"shutdown"}
    assert len(host.done) > 1
    assert function("web", stop_timeout=30, allow_power_off=True)["result"] is True
    assert ["destroy", "--graceful", "--", "web"] in host.done


def test_removing_keeps_the_disks(host, tmp_path):
    host.have("running")
    ret = both(host, guest.absent)
    assert host.verbs() == ["shutdown", "undefine"]
    assert "--nvram" in host.done[-1]
    assert "web_system.qcow2" in ret["comment"]
    assert (tmp_path / "web_system.qcow2").exists()
    assert both(host, guest.absent)["changes"] == {}


def test_disks_go_with_consent_alone(host, tmp_path):
    host.have()
    ret = both(host, guest.absent, delete_disks=True)
    assert set(ret["changes"]) == {"guest", f"disk {tmp_path}/web_system.qcow2"}
    assert not (tmp_path / "web_system.qcow2").exists()


SEED_DISK = """<disk type='file' device='cdrom'><source file='{folder}/web_cloud-init.iso'/>
<target dev='sda' bus='sata'/><readonly/><alias name='ua-cloud-init'/></disk></devices>"""


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("test", [True, False])
def test_a_guest_from_another_host_keeps_the_key_of_its_minion(host, seeded, test):
    host.have("running")
    if seeded:
        disk = SEED_DISK.format(folder=host.folder).replace("ua-cloud-init", guest_domain.alias("disk", "cloud-init"))
        host.guests["web"] = host.guests["web"].replace("</devices>", disk)
    host.opts["test"] = test
    row = guest.running("web", cloud_init={"minion": True, "user_data": {"password": "x"}})
    assert "The key of web's minion was made on another host and stays." in row["comment"]
    assert row["result"] is True
    assert row["changes"] == {}
    # Neither a key nor a disk was made, and nobody was asked: there is no publish.publish here.
    assert [one.name for one in host.folder.iterdir()] == ["web_system.qcow2"]
    assert host.done == []


def test_whose_key_is_on_another_host(host):
    (host.folder / "keys" / "web").mkdir(parents=True)
    (host.folder / "keys" / "web" / "minion.pub").write_text("the key")
    assert not guest._has_key_elsewhere("web", {"cloud_init": {"minion": True}})
    assert not guest._has_key_elsewhere("db", {"cloud_init": {"user_data": "x"}})
    assert not guest._has_key_elsewhere("db", {})


# ---- disks that are others' too ----

OTHER = """<domain type='qemu'><name>db</name><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source {source}/><target dev='vda' bus='virtio'/></disk></devices></domain>"""


@pytest.mark.parametrize(
    "source",
    ["file='{folder}/web_system.qcow2'", "file='{folder}/db.qcow2'", "pool='vms' volume='db.qcow2'",
     "file='{folder}/link.qcow2'"],
)  # fmt: skip
def test_a_disk_that_another_guest_uses_or_stands_on_stays(host, tmp_path, source):
    host.have()
    (tmp_path / "db.qcow2").touch()
    (tmp_path / "link.qcow2").symlink_to(tmp_path / "web_system.qcow2")
    host.pools["vms"] = f"<pool type='dir'><name>vms</name><target><path>{tmp_path}</path></target></pool>"
    host.guests["db"] = OTHER.format(source=source.format(folder=tmp_path))
    ret = both(host, guest.absent, delete_disks=True)
    assert (ret["result"], list(ret["changes"])) == (True, ["guest"])
    said = f"The disk {tmp_path}/web_system.qcow2 stays: guest db uses it."
    assert ret["comment"] == f"The guest web is gone. {said}"
    assert (tmp_path / "web_system.qcow2").exists()


@pytest.mark.parametrize("fails", ["info", "list"])
def test_without_a_look_at_the_others_nothing_is_removed(host, tmp_path, fails, monkeypatch):
    host.have("running")
    (tmp_path / "db.qcow2").touch()
    host.guests["db"] = OTHER.format(source=f"file='{tmp_path}/db.qcow2'")
    host.fails = fails
    monkeypatch.setitem(guest.__utils__, "libvirt_tools.names", lambda _: host.virsh("list") or ["web", "db"])
    if fails == "info":
        monkeypatch.setitem(guest.__utils__, "libvirt_tools.names", lambda _: ["web", "db"])
    ret = guest.absent("web", delete_disks=True)
    assert (ret["result"], ret["changes"], host.done) == (False, {}, [])
    assert "not possible" in ret["comment"]
    assert (tmp_path / "web_system.qcow2").exists()


def test_a_dry_run_knows_the_pools_that_the_pillar_declares(host):
    declaration = {"mem": 128, "disks": [{"name": "system", "pool": "fast", "format": "raw", "size": 16}]}
    host.opts["test"] = True
    unknown = guest.defined("web", **declaration)
    assert unknown["changes"]["disk system"] == {"old": None, "new": "to be made"}
    assert "Its storage pools are not there yet: fast." in unknown["comment"]
    host.declared = {"fast": {"ptype": "logical", "source": {"name": "vg0"}}}
    assert guest.defined("web", **declaration)["changes"]["disk system"]["new"] == "/dev/vg0/web_system, 16 MiB, empty"
    host.declared["fast"]["ensure"] = "absent"
    assert guest.defined("web", **declaration) == unknown


# ---- a migration that was interrupted ----


@pytest.mark.parametrize("function", [guest.running, guest.stopped, guest.defined, guest.absent])
def test_a_guest_that_may_be_elsewhere_is_left_alone(host, tmp_path, function):
    (tmp_path / "migrated").mkdir()
    (tmp_path / "migrated" / "web.json").write_text('{"to": "hv2", "at": "today", "moving": true}')
    host.have()
    for ret in (predicted(host, function, mem=256, delete_disks=True), function("web", mem=256, delete_disks=True)):
        assert (ret["result"], ret["changes"], host.done) == (False, {}, [])
        assert ret["comment"] == (
            "a migration of web to hv2 was interrupted: look whether it runs there; if it does not, "
            "hypervisor.start starts it here"
        )
    # One that runs here has stayed.
    host.state = "running"
    assert function("web")["result"] is True

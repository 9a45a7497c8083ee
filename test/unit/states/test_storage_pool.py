"""Storage pools: what is written, what counts as a difference, in which order it is done, and what is refused."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from _states import storage_pool
from _utils import (
    formula_config,
    formula_schema,
    formula_vocabulary,
    libvirt_lvm,
    libvirt_pool,
    libvirt_rules,
    libvirt_tools,
)

ROOT = Path(__file__).resolve().parents[3]
DIR = {"ensure": "running", "ptype": "dir", "target": "/srv/images"}
NETFS: dict[str, Any] = {
    "ensure": "running",
    "ptype": "netfs",
    "target": "/vms",
    "source": {"dir": "/srv/vms", "hosts": ["mirror.example.org"], "format": "nfs"},
    "autostart": True,
}
LOGICAL: dict[str, Any] = {"ensure": "running", "ptype": "logical", "source": {"devices": ["/dev/vdb"]}}
# As libvirt 9.0 on Debian 12 prints them.
DIR_XML = """<pool type='dir'>
  <name>images</name>
  <uuid>9a553ace-8df0-43e7-941f-9c9706da6061</uuid>
  <capacity unit='bytes'>270553174016</capacity>
  <allocation unit='bytes'>35122548736</allocation>
  <available unit='bytes'>235430625280</available>
  <source>
  </source>
  <target>
    <path>/srv/images</path>
    <permissions><mode>0755</mode><owner>0</owner><group>0</group></permissions>
  </target>
</pool>
"""
NETFS_XML = """<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'>
  <name>pool0</name>
  <uuid>ad0c0c73-08ad-477b-ba77-fefa7b50a4fa</uuid>
  <source>
    <host name='mirror.example.org'/>
    <dir path='/srv/vms'/>
    <format type='nfs'/>
  </source>
  <target><path>/vms</path></target>
  <fs:mount_opts><fs:option name='noatime'/></fs:mount_opts>
</pool>
"""
LOGICAL_XML = """<pool type='logical'>
  <name>fast</name>
  <uuid>c0fd5698-5d6b-4b3b-a831-62c1470c5aff</uuid>
  <source>
    <device path='/dev/vdb'/>
    <name>fast</name>
    <format type='lvm2'/>
  </source>
  <target><path>/dev/fast</path></target>
</pool>
"""
FOLDER = {"mode": "0711", "owner": 0, "group": 0}


def facts(**values: Any) -> libvirt_pool.Facts:
    return libvirt_pool.Facts(**{"autostart": True, "folder": FOLDER, **values})


def actions(plan: libvirt_pool.Plan) -> list[str]:
    return [f"{step.action} {step.arguments[0]}" if step.action == "virsh" else step.action for step in plan.steps]


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  written above


def canonical(text: str) -> str:
    return ET.canonicalize(text, strip_text=True)


# ---- definitions ----


@pytest.mark.parametrize(
    ("name", "spec", "xml"),
    [
        (
            "images",
            DIR,
            "<pool type='dir'><name>images</name><source/><target><path>/srv/images</path></target></pool>",
        ),
        (
            "pool0",
            {**NETFS, "source": {**NETFS["source"], "version": "4.2"}},
            """<pool type='netfs'><name>pool0</name><source><host name='mirror.example.org'/><dir path='/srv/vms'/>
            <format type='nfs'/><protocol ver='4.2'/></source><target><path>/vms</path></target></pool>""",
        ),
        (
            "fast",
            LOGICAL,
            """<pool type='logical'><name>fast</name><source><name>fast</name><format type='lvm2'/></source>
            <target><path>/dev/fast</path></target></pool>""",
        ),
    ],
)
def test_a_new_definition(name, spec, xml):
    assert canonical(libvirt_pool.definition(name, spec)) == canonical(xml)


def test_a_changed_definition_keeps_what_the_pillar_does_not_decide():
    text = libvirt_pool.definition("pool0", {**NETFS, "target": "/new"}, NETFS_XML)
    root = parsed(text)
    assert root.findtext("uuid") == "ad0c0c73-08ad-477b-ba77-fefa7b50a4fa"
    assert root.find("{http://libvirt.org/schemas/storagepool/fs/1.0}mount_opts") is not None
    assert root.findtext("target/path") == "/new"
    assert len(root.findall("source/host")) == 1


def test_another_type_keeps_the_identity_alone():
    root = parsed(libvirt_pool.definition("images", {**NETFS}, DIR_XML))
    assert root.findtext("uuid") == "9a553ace-8df0-43e7-941f-9c9706da6061"
    assert root.get("type") == "netfs"
    assert root.find("target/permissions") is None


@pytest.mark.parametrize(
    ("name", "spec", "xml"), [("images", DIR, DIR_XML), ("pool0", NETFS, NETFS_XML), ("fast", LOGICAL, LOGICAL_XML)]
)
def test_what_libvirt_fills_in_is_no_difference(name, spec, xml):
    assert libvirt_pool.normal(xml) == libvirt_pool.wanted(name, spec)
    assert libvirt_pool.normal(libvirt_pool.definition(name, spec, xml)) == libvirt_pool.wanted(name, spec)


def test_markup_in_a_value_stays_a_value():
    text = libvirt_pool.definition("a", {**DIR, "target": "/srv/<a>&'\""})
    assert parsed(text).findtext("target/path") == "/srv/<a>&'\""


# ---- plans ----


def test_a_new_folder():
    plan = libvirt_pool.plan("images", DIR, facts(folder=None, autostart=False))
    assert actions(plan) == ["folder", "define", "start", "virsh pool-autostart"]
    assert plan.steps[0].arguments == ("/srv/images", FOLDER)
    assert plan.steps[2].changes == {"state": {"old": "stopped", "new": "running"}}


def test_an_equal_pool_is_adopted():
    assert libvirt_pool.plan("images", DIR, facts(config=DIR_XML, live=DIR_XML)).steps == ()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"live": None}, ["start"]),
        ({"autostart": False}, ["virsh pool-autostart"]),
        ({"folder": None}, ["folder", "virsh pool-refresh"]),
        ({"persistent": False}, ["define"]),
        ({"config": DIR_XML.replace("/srv/images", "/other")}, ["define"]),
        ({"live": DIR_XML.replace("/srv/images", "/other")}, ["virsh pool-destroy", "start"]),
        (
            dict.fromkeys(("config", "live"), DIR_XML.replace("/srv/images", "/other")),
            ["define", "virsh pool-destroy", "start"],
        ),
    ],
)
def test_each_drift_alone(changed, expected):
    plan = libvirt_pool.plan("images", DIR, facts(**{"config": DIR_XML, "live": DIR_XML, **changed}))
    assert actions(plan) == expected
    assert any(step.changes for step in plan.steps)


def test_only_declared_permissions_of_a_folder_that_is_there_change():
    found = {"mode": "0755", "owner": 5, "group": 7}
    have = facts(config=DIR_XML, live=DIR_XML, folder=found)
    assert libvirt_pool.plan("images", DIR, have).steps == ()
    plan = libvirt_pool.plan("images", {**DIR, "permissions": {"mode": "0750"}}, have)
    assert plan.steps[0].arguments == ("/srv/images", {"mode": "0750", "owner": 5, "group": 7})
    assert plan.steps[0].changes == {"folder": {"old": "0755 5:7", "new": "0750 5:7"}}


def test_defined_neither_starts_nor_stops_nor_makes_a_folder():
    spec = {**DIR, "ensure": "defined"}
    assert actions(libvirt_pool.plan("images", spec, facts(folder=None))) == ["define"]
    assert libvirt_pool.plan("images", spec, facts(config=DIR_XML, live=DIR_XML)).steps == ()


def test_autostart_is_taken_back():
    spec = {**DIR, "autostart": False}
    (step,) = libvirt_pool.plan("images", spec, facts(config=DIR_XML, live=DIR_XML)).steps
    assert step.arguments == ("pool-autostart", "--disable", "--", "images")


def test_a_mount_that_is_gone_is_made_again():
    have = facts(config=NETFS_XML, live=NETFS_XML, mounted=False)
    assert actions(libvirt_pool.plan("pool0", NETFS, have)) == ["virsh pool-destroy", "start"]
    have = facts(config=NETFS_XML, live=NETFS_XML, mounted=True, folder=None)
    assert libvirt_pool.plan("pool0", NETFS, have).steps == ()


def test_a_mount_that_guests_use_is_not_taken_away():
    spec = {**NETFS, "target": "/new"}
    have = facts(config=NETFS_XML, live=NETFS_XML, mounted=True, users=("web", "db"))
    plan = libvirt_pool.plan("pool0", spec, have)
    assert actions(plan) == ["define"]
    assert plan.waits == "in use by web, db"
    # Afterwards nothing changes, and it still waits.
    later = have._replace(config=libvirt_pool.definition("pool0", spec, NETFS_XML))
    plan = libvirt_pool.plan("pool0", spec, later)
    assert (plan.steps, plan.waits) == ((), "in use by web, db")


def test_a_folder_changes_under_its_guests():
    spec = {**DIR, "target": "/new"}
    plan = libvirt_pool.plan("images", spec, facts(config=DIR_XML, live=DIR_XML, users=("web",)))
    assert actions(plan) == ["define", "virsh pool-destroy", "start"]
    assert plan.waits == ""


def test_a_volume_group_is_made_only_where_there_is_none():
    plan = libvirt_pool.plan("fast", LOGICAL, facts(folder=None, group=False))
    assert actions(plan) == ["group", "define", "start"]
    assert plan.steps[0].arguments == ("fast", ("/dev/vdb",))
    assert actions(libvirt_pool.plan("fast", LOGICAL, facts(group=True))) == ["define", "start"]
    assert actions(libvirt_pool.plan("fast", {**LOGICAL, "ensure": "defined"}, facts())) == ["define"]


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("<source file='/srv/images/web.qcow2'/>", True),
        ("<source file='/srv/images2/web.qcow2'/>", False),
        ("<source pool='images' volume='web'/>", True),
        ("<source pool='other' volume='web'/>", False),
        ("<source network='images'/>", False),
    ],
)
def test_who_uses_a_folder(source, used):
    domain = f"<domain><devices><disk>{source}</disk></devices></domain>"
    assert libvirt_pool.uses(domain, "images", "/srv/images") is used


@pytest.mark.parametrize(
    ("device", "used"),
    [
        ("/dev/my-vg/a", True),
        ("/dev/mapper/my--vg-a", True),
        ("/dev/my-vg2/a", False),
        ("/dev/mapper/my--vg2-a", False),
    ],
)
def test_who_uses_a_volume_group(device, used):
    domain = f"<domain><devices><disk><source dev='{device}'/></disk></devices></domain>"
    assert libvirt_pool.uses(domain, "p", "/dev/my-vg") is used


def test_a_volume_group_has_one_target():
    assert libvirt_rules.pool("fast", {**LOGICAL, "target": "/dev/fast"}) == []
    ((key, text),) = libvirt_rules.pool("fast", {**LOGICAL, "target": "/srv/fast"})
    assert key == "target"
    assert "/dev/fast" in text


# ---- volume groups ----


class Lvm:
    """pvs, wipefs and vgcreate; keeps what was run."""

    def __init__(self, volumes: str = "", signatures: str = "") -> None:
        self.answers = {"pvs": volumes, "wipefs": signatures}
        self.calls: list[list[str]] = []

    def __call__(self, argv: list[str], timeout: float = 0, **_: Any) -> str:
        if argv[0] == "stat":
            return libvirt_tools.run(argv, timeout)
        self.calls.append(list(argv))
        return self.answers.get(argv[0], "")


def test_volumes_are_read():
    lvm = Lvm("  /dev/sda2|system\n  /dev/sdb|\n")
    assert libvirt_lvm.volumes(lvm) == {"/dev/sda2": "system", "/dev/sdb": ""}


def test_a_device_that_is_no_device(tmp_path):
    (tmp_path / "file").touch()
    found = libvirt_lvm.refusals(Lvm(), [str(tmp_path / "file"), str(tmp_path / "none")], {}, True)
    assert found == [f"{tmp_path / 'file'} is not a block device", f"{tmp_path / 'none'} does not exist"]


@pytest.fixture(name="device")
def fake_device(tmp_path, monkeypatch):
    """A file that passes for a block device."""
    path = tmp_path / "vdb"
    path.write_bytes(b"\0" * 4096)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    return path


def test_an_empty_device_is_taken(device):
    assert libvirt_lvm.refusals(Lvm(), [str(device)], {}, False) == []


def test_a_signature_is_named_and_consent_overrules_it(device):
    lvm = Lvm(signatures='{"signatures": [{"type": "ext4", "label": "home"}, {"type": "dos", "label": null}]}')
    (line,) = libvirt_lvm.refusals(lvm, [str(device)], {}, False)
    assert line.startswith(f'{device} holds ext4 "home", dos; ')
    assert "allow_format: true" in line
    assert libvirt_lvm.refusals(lvm, [str(device)], {}, True) == []


def test_data_without_a_signature_is_seen(device):
    device.write_bytes(b"\0" * 100_000 + b"x")
    (line,) = libvirt_lvm.refusals(Lvm(), [str(device)], {}, False)
    assert "data of an unknown kind" in line


def test_no_consent_reaches_what_is_in_use(device, monkeypatch):
    assert libvirt_lvm.refusals(Lvm(), [str(device)], {str(device): "system"}, True) == [
        f"{device} belongs to the volume group system"
    ]

    def busy(path: str, flags: int) -> int:
        assert flags & os.O_EXCL
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "open", busy)
    assert libvirt_lvm.refusals(Lvm(), [str(device)], {}, True) == [f"{device} is in use"]


def test_a_volume_group_is_made_and_wiped_only_with_consent():
    lvm = Lvm()
    libvirt_lvm.create(lvm, "fast", ("/dev/vdb", "/dev/vdc"), False)
    assert lvm.calls == [["vgcreate", "--", "fast", "/dev/vdb", "/dev/vdc"]]
    lvm = Lvm()
    libvirt_lvm.create(lvm, "fast", ("/dev/vdb",), True)
    assert [call[0] for call in lvm.calls] == ["wipefs", "vgcreate"]


# ---- the state ----


class Libvirt:
    """Pools as virsh tells of them; keeps the commands that change something."""

    def __init__(self) -> None:
        self.config: dict[str, str] = {}
        self.live: dict[str, str] = {}
        self.autostart: set[str] = set()
        self.domains: dict[str, str] = {}
        self.done: list[str] = []

    def __call__(self, *argv: str, timeout: float = 0, stdin: str | None = None) -> str:
        verb, name = argv[0], argv[-1]
        asked = {
            "pool-list": lambda: "\n".join({**self.config, **self.live}),
            "pool-dumpxml": lambda: self.config[name] if "--inactive" in argv else self.live[name],
            "pool-info": lambda: (
                f"State:          {'running' if name in self.live else 'inactive'}\nPersistent:     yes\n"
                f"Autostart:      {'yes' if name in self.autostart else 'no'}\n"
            ),
            "list": lambda: "\n".join(self.domains),
            "dumpxml": lambda: self.domains[name],
        }
        if verb in asked:
            return asked[verb]()
        self.done.append(verb)
        if verb == "pool-define":
            root = parsed(stdin or "")
            self.config[str(root.findtext("name"))] = str(stdin)
        elif verb == "pool-start":
            self.live[name] = self.config[name]
        elif verb == "pool-destroy":
            del self.live[name]
        elif verb == "pool-undefine":
            del self.config[name]
        elif verb == "pool-autostart":
            (self.autostart.discard if "--disable" in argv else self.autostart.add)(name)
        return ""


def judge(formula: str, definition: str, value: Any, where: str) -> list[str]:
    """The real schema's verdict."""
    schema = yaml.safe_load((ROOT / formula / "schema.yaml").read_text())
    part = {"$defs": schema["$defs"], "$ref": f"#/$defs/{definition}"}
    copy = formula_config.plain(value, (where,), [])
    found = formula_schema.errors(part, copy, where, formula_vocabulary.load(part))
    return [f"{path}: {text}" for path, text in found]


@pytest.fixture(name="libvirt")
def fake_libvirt(monkeypatch):
    """A host with libvirt and no pools."""
    libvirt = Libvirt()
    utils = {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in (libvirt_pool, libvirt_lvm, libvirt_rules, libvirt_tools)
        for name, value in vars(module).items()
        if callable(value)
    }
    utils["libvirt_tools.virsh"] = libvirt
    utils["libvirt_tools.run"] = Lvm()
    monkeypatch.setattr(storage_pool, "__utils__", utils, raising=False)
    monkeypatch.setattr(storage_pool, "__salt__", {"formula.judge": judge}, raising=False)
    monkeypatch.setattr(storage_pool, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return libvirt


def dry(monkeypatch, function, *args: Any, **kwargs: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(storage_pool, "__opts__", {"test": True})
        return function(*args, **kwargs)


def arguments(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "ensure"}


def test_a_pool_is_predicted_made_left_alone_and_taken_away(libvirt, monkeypatch, tmp_path):
    target = tmp_path / "a" / "images"
    call = {"ptype": "dir", "target": str(target), "permissions": {"owner": os.getuid(), "group": os.getgid()}}
    predicted = dry(monkeypatch, storage_pool.running, "images", **call)
    assert predicted["result"] is None
    assert (libvirt.done, target.exists()) == ([], False)
    ret = storage_pool.running("images", **call)
    assert ret["result"] is True
    assert ret["changes"] == predicted["changes"]
    assert target.stat().st_mode & 0o7777 == 0o711
    assert libvirt.done == ["pool-define", "pool-start", "pool-autostart"]
    assert storage_pool.running("images", **call)["changes"] == {}
    assert dry(monkeypatch, storage_pool.running, "images", **call)["result"] is True

    (target / "disk.qcow2").touch()
    libvirt.domains["a web"] = f"<domain><disk><source file='{target}/disk.qcow2'/></disk></domain>"
    ret = storage_pool.absent("images")
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"].endswith(": a web.")
    # It is gone before, and a dry run knows that; a run looks whether it is.
    assert dry(monkeypatch, storage_pool.absent, "images", leaving=["a web"])["result"] is None
    assert dry(monkeypatch, storage_pool.absent, "images", leaving=["other"])["result"] is False
    assert storage_pool.absent("images", leaving=["a web"])["result"] is False
    libvirt.domains.clear()
    predicted = dry(monkeypatch, storage_pool.absent, "images")
    ret = storage_pool.absent("images")
    assert ret["result"] is True
    assert ret["changes"] == predicted["changes"] == {"state": {"old": "running", "new": "absent"}}
    assert libvirt.config == libvirt.live == {}
    assert (target / "disk.qcow2").exists()
    assert storage_pool.absent("images")["changes"] == {}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "pool0:ptype: missing"),
        ({"ptype": "dir"}, "pool0:target: missing"),
        ({"ptype": "dir", "target": "srv"}, "pool0:target: "),
        ({"ptype": "dir", "target": "/"}, "pool0:target: "),
        ({"ptype": "iscsi", "target": "/a"}, "pool0:ptype: "),
        ({"ptype": "dir", "target": "/a", "targte": 1}, "pool0:targte: unknown key"),
        ({"ptype": "dir", "target": "/a", "source": {"dir": "/b"}}, "pool0:source: "),
        ({"ptype": "netfs", "target": "/a", "source": {"dir": "/b"}}, "pool0:source:hosts: missing"),
        ({"ptype": "netfs", "target": "/a", "source": {"dir": "/b", "hosts": ["a", "b"]}}, "pool0:source:hosts: "),
        ({"ptype": "logical", "source": {"devices": ["vdb"]}}, "pool0:source:devices:0: "),
        ({"ptype": "logical", "permissions": {"mode": "0700"}}, "pool0:permissions: "),
        ({"ptype": "logical", "target": "/srv/fast"}, "pool0:target: "),
    ],
)
def test_wrong_arguments_change_nothing(libvirt, spec, words):
    ret = storage_pool.running("pool0", **spec)
    assert ret["result"] is False
    assert words in ret["comment"]
    assert libvirt.done == []


def test_a_wrong_name(libvirt):
    assert storage_pool.running("--all", **arguments(DIR))["result"] is False
    assert storage_pool.absent("a b")["result"] is False


def test_what_salt_adds_to_a_call_is_no_argument(libvirt, tmp_path):
    ret = storage_pool.defined("a", ptype="dir", target=str(tmp_path), order=10001, __sls__="x", require=[{"pkg": "y"}])
    assert ret["result"] is True


def test_a_server_that_is_gone_is_named_before_anything_changes(libvirt, monkeypatch):
    def dead(address: tuple[str, int], timeout: float) -> socket.socket:
        assert timeout <= 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", dead)
    for ret in (
        storage_pool.running("pool0", **arguments(NETFS)),
        dry(monkeypatch, storage_pool.running, "pool0", **arguments(NETFS)),
    ):
        assert ret["result"] is False
        assert "Pool pool0: the server mirror.example.org does not answer" in ret["comment"]
    assert libvirt.done == []


def test_a_group_that_nobody_made(libvirt):
    ret = storage_pool.running("fast", ptype="logical")
    assert ret["result"] is False
    assert "there is no volume group fast" in ret["comment"]
    assert libvirt.done == []


def test_a_bare_host(libvirt, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert dry(monkeypatch, storage_pool.running, "images", **arguments(DIR))["result"] is None
    assert storage_pool.running("images", **arguments(DIR))["result"] is False
    assert storage_pool.absent("images")["result"] is True


def test_a_start_that_fails_is_told_with_what_was_done(libvirt, monkeypatch, tmp_path):
    def failing(*argv: str, **kwargs: Any) -> Any:
        if argv[0] == "pool-start":
            raise CommandExecutionError("virsh pool-start: no")
        return libvirt(*argv, **kwargs)

    monkeypatch.setitem(storage_pool.__utils__, "libvirt_tools.virsh", failing)
    ret = storage_pool.running("images", ptype="dir", target=str(tmp_path))
    assert ret["result"] is False
    assert "Pool images: virsh pool-start: no" in ret["comment"]
    assert list(ret["changes"]) == ["definition"]


def test_what_is_no_folder_is_refused(libvirt, tmp_path):
    (tmp_path / "file").touch()
    ret = storage_pool.running("a", ptype="dir", target=str(tmp_path / "file"))
    assert (ret["result"], libvirt.done) == (False, [])
    assert f"{tmp_path / 'file'} is not a folder" in ret["comment"]


def test_a_folder_on_a_server_that_is_gone_is_not_waited_for(libvirt, monkeypatch):
    def hanging(argv: list[str], timeout: float) -> str:
        assert timeout <= 10
        raise CommandExecutionError(f"{argv[0]} did not end within {timeout:.0f} s")

    monkeypatch.setitem(storage_pool.__utils__, "libvirt_tools.run", hanging)
    ret = storage_pool.running("images", **arguments(DIR))
    assert (ret["result"], ret["comment"], libvirt.done) == (False, "Pool images: stat did not end within 5 s.", [])


def test_unknown_users_are_named(libvirt, tmp_path):
    ret = storage_pool.running("a", ptype="dir", target=str(tmp_path), permissions={"owner": "nobody-here"})
    assert (ret["result"], "nobody-here" in ret["comment"]) == (False, True)

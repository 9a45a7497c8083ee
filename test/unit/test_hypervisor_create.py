"""What an operator may declare of a new guest: the schema's keys, and only files that are the guest's to have."""

from __future__ import annotations

import errno
import importlib
import os
import stat
import subprocess
import types
from typing import Any

import pytest
from hypervisor_harness import OTHER, POOL, ROOT, UUID, Libvirt, utilities
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _utils import formula_salt, hypervisor_records

IMAGES = "/var/lib/libvirt/images"
GOOD: dict[str, Any] = {
    "cpu": 1,
    "mem": 512,
    "disks": [{"name": "system", "size": 1024, "image": "/var/lib/libvirt/images/base.qcow2"}],
    "interfaces": [{"name": "eth0", "type": "bridge", "source": "br0"}],
}


def judge(formula, definition, value, where):
    """formula.judge with this repository as the file server."""

    def fetch(url, *_):
        return str(ROOT / url.removeprefix("salt://").partition("?")[0])

    errors = formula_salt.judge(formula, definition, value, where, "base", fetch, utilities("formula"))
    return [f"{path}: {text}" for path, text in errors]


@pytest.fixture(name="made")
def with_states(monkeypatch, tmp_path):
    """The module with a libvirt that answers from a table, and states that write down what they were called with."""
    module = importlib.import_module("_modules.hypervisor")
    libvirt = Libvirt({("pool-dumpxml",): POOL})
    utils = utilities() | {"hypervisor_virsh.session": lambda *_: libvirt}
    calls: list[Any] = []

    def state(name, **declaration):
        calls.append((name, declaration))
        libvirt.table["list", "--all", "--uuid", "--name"] = f"{OTHER} db"
        libvirt.table["dumpxml", OTHER] = libvirt.table["dumpxml", UUID]
        return {"result": True, "comment": "The guest was made.", "changes": {}}

    states = {f"guest.{ensure}": state for ensure in ("running", "stopped", "defined")}
    values = {
        "__utils__": utils,
        "__salt__": {
            "formula.judge": judge,
            "formula.config": lambda _: {"images": {"path": "/var/lib/libvirt/images"}},
        },
        "__opts__": {"id": "hv1"},
        "__context__": {},
    }
    for name, value in values.items():
        monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(module.salt.loader, "states", lambda *_: states)
    monkeypatch.setattr(hypervisor_records.read, "__defaults__", (tmp_path,))
    monkeypatch.setattr(hypervisor_records.settle, "__defaults__", (tmp_path,))
    return types.SimpleNamespace(create=module.create, calls=calls, libvirt=libvirt, folder=tmp_path)


def test_a_guest_is_made_by_the_state(made):
    found = made.create("db", **GOOD, __pub_user="root")
    assert made.calls == [("db", GOOD)]
    assert (found["name"], found["comment"], found["guest"]["memory_mib"]) == ("db", "The guest was made.", 256)


def test_a_guest_that_is_there_is_not_changed(made):
    with pytest.raises(CommandExecutionError, match="there is a guest web on this host already"):
        made.create("web", **GOOD)
    assert made.calls == []


def test_a_guest_that_went_away_is_not_made_twice(made):
    hypervisor_records.write("db", OTHER, "hv2", folder=made.folder)
    with pytest.raises(CommandExecutionError, match="guest db was migrated to hv2; nothing was made"):
        made.create("db", **GOOD)
    assert made.calls == []


@pytest.mark.parametrize(
    "key",
    [
        "onlyif", "unless", "check_cmd", "require", "watch", "prereq", "listen", "retry", "runas", "fire_event",
        "parallel", "pillar", "saltenv", "queue", "test", "order", "umask", "__id__", "fun", "state", "--xml",
        "devices", "xml", "\n",
    ],
)  # fmt: skip
def test_no_key_beyond_the_schema_reaches_the_state(made, key):
    with pytest.raises(SaltInvocationError):
        made.create("db", **GOOD, **{key: "touch /tmp/pwned"})
    assert made.calls == []
    assert made.libvirt.calls == []


@pytest.mark.parametrize("ensure", ["absent", "", None, True, "--running", "running\n", ["running"]])
def test_create_only_makes(made, ensure):
    with pytest.raises(SaltInvocationError, match="ensure: "):
        made.create("db", **GOOD, ensure=ensure)
    assert made.libvirt.calls == []


@pytest.mark.parametrize(
    "value", [b"x", {1, 2}, object(), float("nan"), float("inf"), ["x" * 300_000]], ids=lambda one: repr(one)[:20]
)
def test_what_is_no_plain_data_is_refused(made, value):
    with pytest.raises(SaltInvocationError, match=r"a declaration holds texts|the declaration is longer than"):
        made.create("db", **GOOD, description=value)
    assert made.libvirt.calls == []


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ({"image": "/etc/shadow"}, "'/etc/shadow' is in no storage pool"),
        ({"image": "/var/lib/libvirt/images/../../../../etc/shadow"}, "is in no storage pool"),
        ({"path": "/dev/sda"}, "'/dev/sda' is in no storage pool"),
        ({"path": "/var/lib/libvirt/images"}, "is in no storage pool"),
        ({"path": "/var/lib/libvirt/images2/x"}, "is in no storage pool"),
        ({"path": "/var/lib/libvirt/images/web.qcow2"}, "belongs to guest web"),
        ({"source_file": "/var/lib/libvirt/images/base.qcow2"}, "belongs to guest web"),
        ({"image": "/var/lib/libvirt/images/web.qcow2"}, "belongs to guest web"),
        ({"pool": "images", "source_file": "web.qcow2"}, "web.qcow2' belongs to guest web"),
    ],
)
def test_files_that_are_not_the_operators_are_refused(made, declared, why):
    made.libvirt.table["vol-path",] = f"{IMAGES}/web.qcow2"
    with pytest.raises(CommandExecutionError) as caught:
        made.create("db", cpu=1, mem=512, disks=[{"name": "system", **declared}])
    assert why in str(caught.value)
    assert str(caught.value).startswith("nothing was made:\n")
    assert made.calls == []


@pytest.fixture(name="pool")
def own_pool(made, tmp_path):
    """The module, with a folder of this test as its only pool."""
    folder = tmp_path / "pool"
    folder.mkdir()
    made.libvirt.table["pool-dumpxml", "images"] = POOL.replace(IMAGES, str(folder))
    return folder


def refused(made, guest="db", **disk):
    """Why a guest with one disk is refused."""
    with pytest.raises(CommandExecutionError) as caught:
        made.create(guest, cpu=1, mem=512, disks=[{"name": "system", **disk}])
    assert made.calls == []
    return str(caught.value)


def make_image(path, *options):
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "1M"], check=True, timeout=30)


def test_a_path_that_is_derived_may_be_another_guests(made):
    xml = "<domain><name>web</name><devices><disk><source file='{}/web_db_data.qcow2'/></disk></devices></domain>"
    made.libvirt.table["dumpxml", UUID] = xml.format(IMAGES)
    assert refused(made, "web_db", name="data", size=64) == (
        f"nothing was made:\ndisks:0: '{IMAGES}/web_db_data.qcow2' belongs to guest web"
    )


@pytest.mark.parametrize("key", ["source_file", "image", "path"])
def test_a_file_that_reads_from_another_one_of_the_host_is_refused(made, pool, tmp_path, key):
    outside = tmp_path / "shadow"
    outside.write_bytes(b"x" * 2**20)
    make_image(pool / "x.qcow2", "-f", "qcow2", "-b", str(outside), "-F", "raw")
    said = refused(made, **{key: f"{pool}/x.qcow2"})
    assert said.startswith(f"nothing was made:\ndisks:0:{key}: it reads from ")
    assert "which is in no storage pool" in said


def test_what_is_there_already_under_a_derived_name_is_looked_at_too(made, pool, tmp_path):
    make_image(pool / "db_system.qcow2", "-f", "qcow2", "-o", f"data_file={tmp_path}/data")
    assert " reads from a data file" in refused(made, pool="images", size=1)


def test_an_image_that_stands_on_one_of_its_pool_is_used(made, pool):
    make_image(pool / "base.qcow2", "-f", "qcow2")
    make_image(pool / "x.qcow2", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    made.create("db", cpu=1, mem=512, disks=[{"name": "system", "source_file": f"{pool}/x.qcow2"}])
    assert len(made.calls) == 1


def test_a_file_of_another_format_is_refused(made, pool):
    make_image(pool / "x", "-f", "vmdk")
    assert "is vmdk; only raw and qcow2 images are used" in refused(made, source_file=f"{pool}/x")
    make_image(pool / "y", "-f", "qcow2")
    assert "is used as raw and begins as qcow2 does" in refused(made, path=f"{pool}/y", format="raw")


def test_a_link_out_of_the_pool_is_refused(made, pool, tmp_path):
    make_image(tmp_path / "outside", "-f", "qcow2")
    (pool / "x").symlink_to(tmp_path / "outside")
    assert "which is in no storage pool" in refused(made, source_file=f"{pool}/x")
    os.mkfifo(pool / "fifo")
    assert "is neither a file nor a block device" in refused(made, source_file=f"{pool}/fifo")


def test_a_volume_is_never_outside_of_its_pool(made, pool):
    made.libvirt.table["vol-path",] = "/etc/shadow"
    assert "'/etc/shadow' is in no storage pool" in refused(made, pool="images", source_file="shadow")


def test_a_device_that_the_host_uses_is_refused(made, pool, monkeypatch):
    (pool / "vda").touch()
    real = os.open

    def busy(path, flags, *rest, **options):
        if flags & os.O_EXCL and not flags & os.O_CREAT:
            raise OSError(errno.EBUSY, "busy")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", busy)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    assert refused(made, source_file=f"{pool}/vda").endswith(" is in use by this host")


def test_a_kernel_of_the_host_is_refused(made):
    with pytest.raises(CommandExecutionError, match="boot:kernel: '/boot/vmlinuz' is in no storage pool"):
        made.create("db", cpu=1, mem=512, boot={"kernel": "/boot/vmlinuz"})


def test_all_errors_of_a_declaration_come_at_once(made):
    with pytest.raises(SaltInvocationError) as caught:
        made.create("db", cpu=0, mem="much", disks=[{"nam": "x"}])
    assert len(str(caught.value).splitlines()) >= 4
    assert made.libvirt.calls == []

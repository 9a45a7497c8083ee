"""Disks and images of guests: whole or not there, never smaller, never replaced."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from _utils import guest_declared, guest_storage, libvirt_tools

MIB = 2**20


class Tools:
    """A qemu-img and a virsh that keep the size of an image in its file and write down what they are asked."""

    def __init__(self):
        self.calls = []
        self.fail = ""
        self.extra = {}
        self.device = Path()
        self.kind = "qcow2"

    def run(self, argv, timeout=0, stdin=None, label=""):
        self.calls.append(list(argv))
        if self.fail and self.fail in argv:
            Path(argv[-2] if argv[-1].endswith("M") else argv[-1]).write_text("half")
            raise CommandExecutionError(f"{label}: no space")
        verb = argv[1]
        if verb == "info":
            if "--backing-chain" in argv:
                return json.dumps([{"filename": argv[-1]}, {"filename": "base.qcow2"}])
            size = int(Path(argv[-1]).read_text() or 0) * MIB
            return json.dumps({"format": self.kind, "virtual-size": size, **self.extra})
        if verb == "create":
            sized = argv[-1].endswith("M")
            place = argv[-2] if sized else argv[-1]
            Path(place).write_text(argv[-1][:-1] if sized else "8")
        if verb == "convert":
            Path(argv[-1]).write_text(Path(argv[-2]).read_text())
        if verb == "resize":
            Path(argv[-2]).write_text(argv[-1][:-1])
        return ""

    def virsh(self, *argv, **options):
        self.calls.append(["virsh", *argv])
        if argv[0] == "vol-create-as" and self.fail != "vol-create-as":
            self.device.write_text("0")
        return ""

    def programs(self):
        return [call[1] for call in self.calls if call[1] != "info"]


@pytest.fixture(name="tools")
def fake_tools(tmp_path, monkeypatch):
    monkeypatch.setattr(guest_storage, "UNFINISHED", tmp_path / "unfinished")
    return Tools()


def disk(tmp_path, **keys):
    pools = {"vg0": {"type": "logical", "target": f"{tmp_path}/vg0"}, "vms": {"type": "dir", "target": str(tmp_path)}}
    (tmp_path / "vg0").mkdir(exist_ok=True)
    (found,) = guest_declared.disks("web", {"disks": [{"name": "system", **keys}]}, pools, str(tmp_path))
    return found


def make(tools, one, base=None):
    guest_storage.create(tools.run, tools.virsh, one, base)


# ---- what has to be done ----


def test_a_disk_that_is_missing_is_made(tools, tmp_path):
    found = guest_storage.survey(tools.run, disk(tmp_path, size=64))
    assert (found["do"], found["new"]) == ("create", f"{tmp_path}/web_system.qcow2, 64 MiB, empty")
    on_image = guest_storage.survey(tools.run, disk(tmp_path, size=64, image="salt://x"))
    assert on_image["new"].endswith(", 64 MiB, on salt://x")
    assert tools.calls == []


@pytest.mark.parametrize(
    ("now", "do", "note"), [("64", None, ""), ("32", "grow", ""), ("128", None, "a disk is never made smaller")]
)
def test_a_disk_that_is_there(tools, tmp_path, now, do, note):
    one = disk(tmp_path, size=64)
    Path(one["path"]).write_text(now)
    found = guest_storage.survey(tools.run, one)
    assert found["do"] == do
    assert note in found["note"]
    # A disk that a guest uses is locked.
    assert all("--force-share" in call for call in tools.calls)


def test_the_size_of_a_volume_may_be_rounded_up(tools, tmp_path):
    one = disk(tmp_path, size=64, pool="vg0")
    tools.kind = "raw"
    Path(one["path"]).write_text("68")
    assert guest_storage.survey(tools.run, one)["note"] == ""


def test_a_disk_that_should_be_there(tools, tmp_path):
    with pytest.raises(ValueError, match="disks:system:source_file: there is no /nowhere"):
        guest_storage.survey(tools.run, disk(tmp_path, source_file="/nowhere"))
    (tmp_path / "x").write_text("1")
    assert guest_storage.survey(tools.run, disk(tmp_path, source_file=f"{tmp_path}/x"))["do"] is None


# ---- making ----


def test_an_empty_disk(tools, tmp_path):
    one = disk(tmp_path, size=64)
    make(tools, one)
    assert (Path(one["path"]).read_text(), Path(one["path"]).stat().st_mode & 0o777) == ("64", 0o600)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_the_pool_learns_of_a_new_disk(tools, tmp_path):
    make(tools, disk(tmp_path, size=64, pool="vms"))
    assert tools.calls[-1] == ["virsh", "pool-refresh", "--", "vms"]


def test_an_overlay(tools, tmp_path):
    base = tmp_path / "base.qcow2"
    base.write_text("8")
    make(tools, disk(tmp_path, size=64, image="salt://x"), str(base))
    (call,) = [call for call in tools.calls if call[1] == "create"]
    assert call[call.index("-b") + 1 : call.index("-b") + 4] == [str(base), "-F", "qcow2"]


def test_a_copy(tools, tmp_path):
    base = tmp_path / "base.qcow2"
    base.write_text("8")
    one = disk(tmp_path, size=64, image="salt://x", overlay_image=False, format="raw")
    make(tools, one, str(base))
    assert tools.programs() == ["convert", "resize"]
    (call,) = [call for call in tools.calls if call[1] == "convert"]
    assert call[2:6] == ["-f", "qcow2", "-O", "raw"]
    assert Path(one["path"]).read_text() == "64"


def test_an_image_that_is_larger_than_the_disk_is_refused(tools, tmp_path):
    base = tmp_path / "base.qcow2"
    base.write_text("100")
    with pytest.raises(ValueError, match="has 100 MiB, more than the size 64"):
        make(tools, disk(tmp_path, size=64, image="salt://x"), str(base))


@pytest.mark.parametrize("extra", [{"backing-filename": "/etc/shadow"},
                                   {"format-specific": {"data": {"data-file": "/etc/shadow"}}}])  # fmt: skip
def test_an_image_that_reads_from_another_file_is_refused(tools, tmp_path, extra):
    base = tmp_path / "base.qcow2"
    base.write_text("8")
    tools.extra = extra
    with pytest.raises(ValueError, match="reads from another file"):
        make(tools, disk(tmp_path, image="salt://x"), str(base))


@pytest.mark.parametrize("keys", [{}, {"overlay_image": False}, {"pool": "vg0"}])
def test_an_image_of_a_format_that_can_name_other_files_is_refused(tools, tmp_path, keys):
    base = tmp_path / "base"
    base.write_text("8")
    tools.kind = "vmdk"
    with pytest.raises(ValueError, match="/base is vmdk; only raw and qcow2 images are used"):
        make(tools, disk(tmp_path, image="/base", **keys), str(base))
    assert tools.programs() == []


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img")
def test_qemu_never_reads_the_file_that_a_descriptor_names(tmp_path):
    secret, base = tmp_path / "secret", tmp_path / "base"
    secret.write_bytes(b"secret".ljust(65536, b"!"))
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    base.write_bytes(f'{text}RW 128 FLAT "{secret}" 0\n'.encode().ljust(65536, b"\0"))
    one = disk(tmp_path, image=str(base), overlay_image=False)
    with pytest.raises(ValueError, match="is vmdk; only raw and qcow2 images are used"):
        guest_storage.create(libvirt_tools.run, libvirt_tools.virsh, one, str(base))
    assert not Path(one["path"]).exists()


def test_a_raw_disk_that_begins_as_another_format_is_not_read(tools, tmp_path):
    one = disk(tmp_path, size=64, format="raw")
    Path(one["path"]).write_text("32")
    for look in (guest_storage.survey, lambda run, one: guest_storage.grow(run, tools.virsh, one, None)):
        with pytest.raises(ValueError, match="is used as raw and begins as qcow2 does, so it is not read"):
            look(tools.run, one)
    assert tools.programs() == []


@pytest.mark.parametrize("keys", [{"size": 64}, {"size": 64, "image": "salt://x", "overlay_image": False}])
def test_a_failure_leaves_nothing(tools, tmp_path, keys):
    base = tmp_path / "base.qcow2"
    base.write_text("8")
    tools.fail = "convert" if "image" in keys else "create"
    one = disk(tmp_path, **keys)
    with pytest.raises(CommandExecutionError, match="no space"):
        make(tools, one, str(base) if "image" in keys else None)
    assert not Path(one["path"]).exists()
    assert not list(tmp_path.glob(".*"))


def half_filled(tools, tmp_path):
    """Begin to fill a volume and fail; return its disk and the image."""
    base = tmp_path / "base.qcow2"
    base.write_text("8")
    one = disk(tmp_path, size=64, pool="vg0", image="/base.qcow2")
    tools.device = Path(one["path"])
    tools.fail = "convert"
    with pytest.raises(CommandExecutionError):
        make(tools, one, str(base))
    return one, base


def test_a_volume_that_was_left_half_filled_is_filled_again(tools, tmp_path):
    one, base = half_filled(tools, tmp_path)
    assert guest_storage.survey(tools.run, one)["do"] == "create"
    tools.fail = ""
    make(tools, one, str(base))
    assert [call[1] for call in tools.calls].count("vol-create-as") == 1
    assert tools.device.read_text() == "8"
    tools.device.write_text("64")
    tools.kind = "raw"
    assert guest_storage.survey(tools.run, one)["do"] is None


def test_a_volume_that_a_guest_has_is_never_filled_again(tools, tmp_path):
    one, _ = half_filled(tools, tmp_path)
    # Somebody removed it by hand, and a migration brought a guest with a volume of this name.
    tools.device.write_text("64")
    tools.kind = "raw"
    assert guest_storage.survey(tools.run, one, used=True)["do"] is None


def test_growing(tools, tmp_path):
    one = disk(tmp_path, size=64)
    Path(one["path"]).write_text("32")
    guest_storage.grow(tools.run, tools.virsh, one, None)
    assert Path(one["path"]).read_text() == "64"
    guest_storage.grow(tools.run, tools.virsh, one, "web")
    assert tools.calls[-1] == ["virsh", "blockresize", "--domain", "web", "--path", one["path"], "--size", "64MiB"]


def test_the_files_that_an_image_reads_from(tools, tmp_path):
    assert guest_storage.chain(tools.run, f"{tmp_path}/top") == [f"{tmp_path}/top", f"{tmp_path}/base.qcow2"]


# ---- images ----

CONTENT = b"an image\n" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


def master(content=CONTENT, digest=SHA):
    """The two functions of Salt that ask a file server."""
    asked = []

    def get_file(address, place):
        asked.append(address)
        Path(place).write_bytes(content)

    return asked, lambda address: {"hash_type": "sha256", "hsum": digest} if digest else {}, get_file


def test_an_image_of_the_master_is_fetched_once_and_named_by_its_content(tmp_path):
    one = disk(tmp_path, image="salt://images/debian 12.qcow2")
    asked, hash_file, get_file = master()
    path = Path(guest_storage.fetched(one, hash_file, get_file))
    assert path.name == f"debian_12-{SHA[:16]}.qcow2"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (CONTENT, 0o444)
    assert guest_storage.fetched(one, hash_file, get_file) == str(path) == guest_storage.place(one, hash_file)
    assert len(asked) == 1


def test_an_image_that_arrives_otherwise_is_refused(tmp_path):
    _, hash_file, get_file = master(content=b"half")
    with pytest.raises(ValueError, match=r"sha256 is [0-9a-f]{64}, not [0-9a-f]{64}"):
        guest_storage.fetched(disk(tmp_path, image="salt://x.qcow2"), hash_file, get_file)
    assert [path.name for path in tmp_path.iterdir()] == ["vg0"]


def test_an_image_that_is_nowhere(tmp_path):
    _, hash_file, get_file = master(digest="")
    with pytest.raises(ValueError, match="the file server has no salt://x"):
        guest_storage.fetched(disk(tmp_path, image="salt://x"), hash_file, get_file)
    with pytest.raises(ValueError, match="there is no /nowhere"):
        guest_storage.fetched(disk(tmp_path, image="/nowhere"), hash_file, get_file)


@pytest.fixture(name="server")
def web_server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "x.qcow2").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["sha256", "sha512"])
def test_an_image_of_a_web_server(tmp_path, server, kind):
    digest = hashlib.new(kind, CONTENT).hexdigest()
    one = disk(tmp_path, image=f"{server}/x.qcow2?token=1", image_hash=f"{kind}:{digest.upper()}")
    path = Path(guest_storage.fetched(one, dict, dict))
    assert (path.name, path.read_bytes()) == (f"x-{digest[:16]}.qcow2", CONTENT)


def test_a_web_server_that_sends_something_else_or_nothing(tmp_path, server):
    wrong = disk(tmp_path, image=f"{server}/x.qcow2", image_hash="sha256=" + "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 is [0-9a-f]{64}, not [0-9a-f]{64}"):
        guest_storage.fetched(wrong, dict, dict)
    missing = disk(tmp_path, image=f"{server}/y.qcow2", image_hash="sha256=" + SHA)
    with pytest.raises(ValueError, match="cannot be fetched: "):
        guest_storage.fetched(missing, dict, dict)
    assert not list(tmp_path.glob(".*"))

"""What a new guest reads at its first start, and the key of its minion."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from salt.exceptions import CommandExecutionError

from _utils import guest_seed


@pytest.fixture(autouse=True)
def _state(monkeypatch, tmp_path):
    monkeypatch.setattr(guest_seed, "STATE", tmp_path)
    monkeypatch.setattr(guest_seed, "KEYS", tmp_path / "keys")
    monkeypatch.setattr(guest_seed, "KEY_BITS", 1024)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "genisoimage" else None)


def files(**declared):
    return guest_seed.files("web", declared, "10.0.0.1", Path("/nowhere"))


def test_the_least():
    assert {name: text for name, text in files().items() if name != "meta-data"} == {"user-data": "#cloud-config\n{}\n"}
    assert json.loads(files()["meta-data"]) == {"instance-id": "iid-web", "local-hostname": "web"}


def test_all():
    found = files(user_data="#!/bin/sh\ntrue\n", network_config={"version": 2}, hostname="w", instance_id="2")
    assert found["user-data"] == "#!/bin/sh\ntrue\n"
    assert json.loads(found["network-config"]) == {"version": 2}
    assert json.loads(found["meta-data"]) == {"instance-id": "2", "local-hostname": "w"}


def test_a_disk_is_made_whole_for_root_alone_and_says_what_is_in_it(tmp_path):
    seen = {}

    def run(argv, label=""):
        folder = Path(argv[-1])
        seen.update({path.name: path.read_text() for path in folder.iterdir()})
        assert folder.stat().st_mode & 0o777 == 0o700
        place = Path(argv[argv.index("-output") + 1])
        assert place.stat().st_mode & 0o777 == 0o600
        place.write_bytes(bytes(16 * 2048 + 574) + argv[argv.index("-appid") + 1].ljust(128).encode())
        assert argv[0] == "genisoimage"
        return ""

    content = files(user_data={"password": "secret"})
    path = tmp_path / "web.iso"
    assert guest_seed.mark(str(path)) is None
    guest_seed.make(run, content, str(path))
    assert seen == content
    assert guest_seed.mark(str(path)) == guest_seed.digest(content)
    assert guest_seed.digest(files(user_data={"password": "other"})) != guest_seed.digest(content)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["web.iso"]


@pytest.mark.parametrize("dangling", [False, True])
def test_what_was_put_in_the_way_is_not_written_to(tmp_path, dangling):
    folder = tmp_path / "images"
    folder.mkdir()
    other = tmp_path / "other"
    if not dangling:
        other.write_text("of somebody else")
    (folder / ".web.iso.partial").symlink_to(other)

    def run(argv, label=""):
        place = Path(argv[argv.index("-output") + 1])
        assert not place.is_symlink()
        assert place.stat().st_mode & 0o777 == 0o600
        place.write_text("the disk")
        return ""

    guest_seed.make(run, files(), str(folder / "web.iso"))
    assert (folder / "web.iso").read_text() == "the disk"
    assert other.exists() != dangling
    assert dangling or other.read_text() == "of somebody else"


def test_an_open_file_of_somebody_else_does_not_become_the_disk(tmp_path):
    partial = tmp_path / ".web.iso.partial"
    with partial.open("w+") as theirs:
        guest_seed.make(lambda argv, **_: partial.write_text("secret") and "", files(), str(tmp_path / "web.iso"))
        assert theirs.read() == ""
    assert (tmp_path / "web.iso").read_text() == "secret"


def test_a_failure_leaves_nothing(tmp_path):
    def run(argv, label=""):
        raise CommandExecutionError("no space")

    with pytest.raises(CommandExecutionError):
        guest_seed.make(run, files(), str(tmp_path / "web.iso"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="one of xorrisofs, genisoimage, mkisofs has to be installed"):
        guest_seed.make(lambda *_, **__: "", files(), str(tmp_path / "web.iso"))


def test_a_key_is_made_once():
    assert guest_seed.public_key("web") == ""
    guest_seed.make_key("web")
    private, public = guest_seed.private_key("web"), guest_seed.public_key("web")
    assert private.stat().st_mode & 0o777 == 0o400
    assert private.parent.stat().st_mode & 0o777 == 0o700
    assert load_pem_private_key(private.read_bytes(), None) is not None
    guest_seed.make_key("web")
    assert guest_seed.public_key("web") == public


def test_the_master_is_asked_with_the_name_and_the_public_half():
    asked = []

    def publish(*arguments, **options):
        asked.append(arguments)
        return {"controller": {"accepted": "web"}}

    assert not guest_seed.accepted("web")
    guest_seed.have_accepted("web", "controller", publish)
    assert asked == [("controller", "guest_minion.accept", ["web", guest_seed.public_key("web")])]
    assert "PRIVATE" not in str(asked)
    assert guest_seed.accepted("web")
    # Another key has not been accepted.
    (guest_seed.KEYS / "web" / "minion.pub").unlink()
    assert not guest_seed.accepted("web")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"controller": {"refused": "not yours"}}, "did not accept the guest's key: not yours"),
        ({}, "it did not answer"),
        ({"controller": "Traceback"}, "Traceback"),
        ({"other": {"accepted": "web"}}, "it did not answer"),
    ],
)
def test_a_master_that_refuses(answer, words):
    with pytest.raises(ValueError, match=words):
        guest_seed.have_accepted("web", "controller", lambda *_, **__: answer)
    assert not guest_seed.accepted("web")


def test_without_a_master_there_is_no_minion():
    with pytest.raises(ValueError, match="libvirt:pki:ca_server names none"):
        guest_seed.have_accepted("web", "", lambda *_, **__: {})


def test_the_guest_gets_its_key_and_believes_one_master(tmp_path):
    guest_seed.make_key("web")
    (tmp_path / "master.pub").write_text("the master's key\n")
    found = guest_seed.files("web", {"minion": {"grains": {"a": 1}, "id": "hv1"}}, "10.0.0.1", tmp_path / "master.pub")
    blocks = re.findall(r"^write (\S+) (\d+) <<'END'\n(.*?)\nEND$", found["vendor-data"], re.MULTILINE | re.DOTALL)
    written = {path.rpartition("/")[2]: (mode, base64.b64decode(text).decode()) for path, mode, text in blocks}
    assert written["minion.pem"] == ("0400", guest_seed.private_key("web").read_text())
    assert written["minion.pub"] == ("0644", guest_seed.public_key("web"))
    assert written["minion_master.pub"] == ("0644", "the master's key\n")
    # Its id is the name that was accepted, whatever the declaration says.
    assert json.loads(written["hypervisor.conf"][1]) == {"grains": {"a": 1}, "id": "web", "master": "10.0.0.1"}

"""Which keys the master accepts for guests: those that pillar assigns to the host that asks, and no other."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519

from _modules import guest_minion
from _utils import own_files

PILLAR = {
    "hv1": {"libvirt": {"guests": {
        "web": {"cloud_init": {"minion": True}},
        "plain": {"cloud_init": {"user_data": "x"}},
        "off": {"cloud_init": {"minion": False}},
        "gone": {"ensure": "absent", "cloud_init": {"minion": True}},
        **{name: {"cloud_init": {"minion": True}} for name in ("hv3", "hv1", "controller", "../x", "-x")},
    }}},
    "hv2": {"libvirt": {}},
    "hv9": {"_errors": ["broken"]},
}  # fmt: skip


def pem(private: Any = None) -> str:
    key = private or rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


KEY, OTHER = pem(), pem()


@pytest.fixture(name="master")
def fake_master(monkeypatch, tmp_path):
    """A master's keys, and its pillar."""
    pki = tmp_path / "pki"
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (pki / name).mkdir(parents=True)
    (pki / "master.pem").write_text("")
    (tmp_path / "hosts").write_text("hv1 hv1.example.org\nhv3\n\n")

    class Pillar:
        def __init__(self, opts, grains, minion, saltenv):
            assert grains == {"id": minion, "os": "Debian"}
            self.minion = minion

        def compile_pillar(self):
            return PILLAR[self.minion]

    def data_of(minion, opts):
        return minion, {"id": minion, "os": "Debian"}, {}

    class Master:
        keys = pki

    master = Master()
    monkeypatch.setattr("salt.pillar.Pillar", Pillar)
    monkeypatch.setattr(guest_minion, "__utils__", {"own_files.write": own_files.write}, raising=False)
    monkeypatch.setattr("salt.utils.minions.get_minion_data", data_of)
    monkeypatch.setattr("salt.config.master_config", lambda path: {"pki_dir": str(pki)})
    monkeypatch.setattr(guest_minion, "HOSTS", tmp_path / "hosts")
    opts = {"conf_file": "/etc/salt/minion", "id": "controller"}
    monkeypatch.setattr(guest_minion, "__opts__", opts, raising=False)
    return master


def accept(name: Any, caller: str | None = "hv1", public: Any = KEY) -> dict[str, str]:
    return guest_minion.accept(name, public, **({"__pub_id": caller} if caller else {}))


def test_an_assigned_name_is_accepted(master):
    (master.keys / "minions_pre" / "web").write_text("somebody else's")
    assert accept("web") == {"accepted": "web"}
    assert (master.keys / "minions" / "web").read_text() == KEY
    assert not (master.keys / "minions_pre" / "web").exists()
    assert accept("web") == {"accepted": "web"}


@pytest.mark.parametrize(
    ("name", "caller", "words"),
    [
        ("db", "hv1", "the pillar of hv1 declares no guest db with cloud_init:minion"),
        ("web", "hv2", "the pillar of hv2 declares no guest web"),
        ("web", "hv9", "the pillar of hv9 declares no guest web"),
        ("plain", "hv1", "declares no guest plain"),
        ("off", "hv1", "declares no guest off"),
        ("gone", "hv1", "declares no guest gone"),
        ("hv3", "hv1", "hv3 is the name of a host"),
        ("hv1", "hv1", "hv1 is the name of a host"),
        ("controller", "hv1", "controller is the name of a host"),
        ("../x", "hv1", "is not a minion id"),
        ("-x", "hv1", "is not a minion id"),
        (["web"], "hv1", "is not a minion id"),
        ("web", None, "only a hypervisor can ask"),
    ],
)
def test_refusals(master, name, caller, words):
    assert words in accept(name, caller)["refused"]
    assert list((master.keys / "minions").iterdir()) == []


def test_an_accepted_key_is_not_replaced(master):
    (master.keys / "minions" / "web").write_text(OTHER)
    assert "has accepted another key of web" in accept("web")["refused"]
    assert (master.keys / "minions" / "web").read_text() == OTHER


@pytest.mark.parametrize("folder", ["rejected", "denied"])
def test_a_key_that_a_person_has_refused_stays_refused(master, folder):
    (master.keys / f"minions_{folder}" / "web").write_text(KEY)
    assert f"has {folder} a key of web" in accept("web")["refused"]


def private(form: serialization.PrivateFormat) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.mark.parametrize(
    "public",
    [
        None, False, ["x"], {"a": KEY}, KEY.encode(), "", " ", "no key", "\udc80", "ssh-rsa AAAAB3NzaC1yc2E= web",
        KEY + " " * 4096, KEY.replace("PUBLIC KEY", "CERTIFICATE"), KEY.replace("MII", "AAA"),
        pem(dsa.generate_private_key(2048)), pem(x25519.X25519PrivateKey.generate()),
        private(serialization.PrivateFormat.TraditionalOpenSSL), private(serialization.PrivateFormat.PKCS8),
    ],
)  # fmt: skip
def test_what_is_no_public_key_is_refused_and_not_repeated(master, public):
    answer = accept("web", public=public)["refused"]
    assert answer.startswith("the guest's public key ")
    assert "\n" not in answer
    assert list((master.keys / "minions").iterdir()) == []


def test_without_a_key_nothing_is_accepted(master):
    assert "the guest's public key has to be a text" in guest_minion.accept("web", __pub_id="hv1")["refused"]


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())])
def test_other_kinds_of_keys(master, key):
    assert accept("web", public=pem(key)) == {"accepted": "web"}


def test_a_key_is_kept_in_one_form(master):
    public = serialization.load_pem_public_key(KEY.encode())
    older = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1).decode()
    assert accept("web", public=f"a remark\n{older}more\n") == {"accepted": "web"}
    assert (master.keys / "minions" / "web").read_text() == KEY
    # Salt's own has no line end at its end.
    (master.keys / "minions" / "web").write_text(KEY.strip())
    assert accept("web") == {"accepted": "web"}


def test_only_the_master_accepts(master):
    (master.keys / "master.pem").unlink()
    assert accept("web") == {"refused": "this is not the master"}

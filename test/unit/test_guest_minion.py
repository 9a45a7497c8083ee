"""Which keys the master accepts for guests: those that pillar assigns to the host that asks, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from _modules import guest_minion

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


def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


KEY, OTHER = pem(), pem()


@pytest.fixture(name="master")
def fake_master(monkeypatch, tmp_path):
    """A master's keys, and the answers of its hypervisors."""
    pki = tmp_path / "pki"
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (pki / name).mkdir(parents=True)
    (pki / "master.pem").write_text("")
    (tmp_path / "hosts").write_text("hv1 hv1.example.org\nhv3\n\n")
    asked: list[tuple[Any, ...]] = []

    class Runner:
        def __init__(self, opts):
            pass

        def cmd(self, function, arguments, **options):
            assert function == "pillar.show_pillar"
            return PILLAR[arguments[0]]

    class Client:
        def __init__(self, mopts):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def cmd(self, target, function, arguments, **options):
            asked.append((target, function, arguments, options["tgt_type"]))
            return {target: master.answer}

    class Master:
        keys = pki
        answer: Any = KEY
        questions = asked

    master = Master()
    monkeypatch.setattr("salt.runner.RunnerClient", Runner)
    monkeypatch.setattr("salt.client.LocalClient", Client)
    monkeypatch.setattr("salt.config.master_config", lambda path: {"pki_dir": str(pki)})
    monkeypatch.setattr(guest_minion, "HOSTS", tmp_path / "hosts")
    opts = {"conf_file": "/etc/salt/minion", "id": "controller"}
    monkeypatch.setattr(guest_minion, "__opts__", opts, raising=False)
    return master


def accept(name: Any, caller: str | None = "hv1") -> dict[str, str]:
    return guest_minion.accept(name, **({"__pub_id": caller} if caller else {}))


def test_an_assigned_name_is_accepted(master):
    (master.keys / "minions_pre" / "web").write_text("somebody else's")
    assert accept("web") == {"accepted": "web"}
    assert (master.keys / "minions" / "web").read_text() == KEY
    assert not (master.keys / "minions_pre" / "web").exists()
    # The key comes from the host that pillar names, not from the arguments of a job.
    assert master.questions == [("hv1", "guest_minion.public_key", ["web"], "list")]
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
    assert master.questions == []


def test_an_accepted_key_is_not_replaced(master):
    (master.keys / "minions" / "web").write_text(OTHER)
    assert "has accepted another key of web" in accept("web")["refused"]
    assert (master.keys / "minions" / "web").read_text() == OTHER


@pytest.mark.parametrize("folder", ["rejected", "denied"])
def test_a_key_that_a_person_has_refused_stays_refused(master, folder):
    (master.keys / f"minions_{folder}" / "web").write_text(KEY)
    assert f"has {folder} a key of web" in accept("web")["refused"]


@pytest.mark.parametrize("answer", ["", None, False, ["x"], "no key"])
def test_a_host_that_has_no_key(master, answer):
    master.answer = answer
    assert "refused" in accept("web")
    assert list((master.keys / "minions").iterdir()) == []


def test_only_the_master_accepts(master):
    (master.keys / "master.pem").unlink()
    assert accept("web") == {"refused": "this is not the master"}


@pytest.mark.parametrize("name", ["../x", "", None, "-x", "a/b"])
def test_a_public_key_is_told_of_a_guest_alone(monkeypatch, name):
    utils = {"guest_seed.public_key": Path}
    monkeypatch.setattr(guest_minion, "__utils__", utils, raising=False)
    assert guest_minion.public_key(name) == ""

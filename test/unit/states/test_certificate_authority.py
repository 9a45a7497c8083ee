"""Which certificate authority can sign, what is repaired around it, and what is never touched."""

from __future__ import annotations

import datetime as dt
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from _states import certificate_authority as state

NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)  # fmt: skip


def certificate(days=3650.0, *, key=KEY, ca: bool | None = True) -> bytes:
    """Return a self-signed certificate as PEM; without basicConstraints when ``ca`` is None."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    end = NOW + dt.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(end - dt.timedelta(days=4000)).not_valid_after(end)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Place:
    """The folders of one CA, with the functions of the state pointed there."""

    def __init__(self, root):
        self.pki, self.public = root / "pki", root / "public"
        self.home, self.published = self.pki / "qemu", self.public / "qemu.crt"
        self.key, self.certificate = self.home / "ca.key", self.home / "ca.crt"
        self.home.mkdir(parents=True)
        self.home.chmod(0o700)
        self.public.mkdir()
        self.key.write_bytes(PEM)
        self.key.chmod(0o400)
        self.certificate.write_bytes(certificate())
        self.published.write_bytes(self.certificate.read_bytes())

    def healthy(self):
        return state.healthy("qemu", str(self.pki), str(self.public))

    def content(self):
        """Everything that the state could change, as path to mode, time and content."""
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in (self.home, *self.home.rglob("*"), self.public, *self.public.rglob("*"))
        }


@pytest.fixture
def owner(monkeypatch):
    """Make whoever runs the tests root in the state's eyes, and note what it gives to whom."""
    given = []
    real = os.stat

    def as_root(path, **options):
        status = list(real(path, **options))
        status[stat.ST_UID] = status[stat.ST_GID] = 0
        return os.stat_result(status)

    if os.geteuid() != 0:
        monkeypatch.setattr(Path, "stat", as_root)
    monkeypatch.setattr("os.chown", lambda path, uid, gid: given.append((str(path), uid, gid)))
    return given


@pytest.fixture
def place(tmp_path, owner, monkeypatch):
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    return Place(tmp_path)


def test_a_sound_ca_is_left_alone(place):
    before = place.content()
    result = place.healthy()
    assert result == {"name": "qemu", "changes": {}, "result": True, "comment": result["comment"]}
    assert "valid for 36" in result["comment"]
    assert place.content() == before


@pytest.mark.parametrize("lost", [["key"], ["certificate"], ["key", "certificate"]])
def test_a_missing_half_is_named_and_nothing_is_made(place, lost):
    for name in lost:
        getattr(place, name).unlink()
    before = place.content()
    result = place.healthy()
    assert result["result"] is False
    assert result["comment"] == (
        f"CA {place.home}: key or certificate is missing; make or restore it, then: bootstrap pki"
    )
    assert place.content() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (certificate(key=ec.generate_private_key(ec.SECP256R1())), "the certificate belongs to another key"),
        (certificate(ca=False), "the certificate is not one of a CA"),
        (certificate(ca=None), "key or certificate can't be read (No "),
        (certificate(-0.5), f"the CA ended on {NOW - dt.timedelta(days=0.5):%Y-%m-%d}; see docs/operations.rst"),
        (b"no certificate", "key or certificate can't be read"),
    ],
    ids=["another key", "a leaf", "no constraints", "ended", "garbage"],
)
def test_a_certificate_that_cannot_sign_is_an_error_and_stays(place, content, said):
    place.certificate.write_bytes(content)
    before = place.content()
    result = place.healthy()
    assert result["result"] is False
    assert result["changes"] == {}
    assert result["comment"].startswith(f"CA {place.home}: {said}")
    assert place.content() == before, "a bad certificate must not be published"


def test_a_key_that_cannot_be_read_shows_nothing_of_itself(place):
    place.key.chmod(0o600)
    place.key.write_bytes(PEM[:60] + b"\n" + PEM[90:])
    result = place.healthy()
    assert result["result"] is False
    assert PEM[40:50].decode() not in result["comment"]


def test_a_key_with_a_password_is_an_error(place):
    locked = serialization.BestAvailableEncryption(b"secret")
    place.key.chmod(0o600)
    place.key.write_bytes(
        KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )  # fmt: skip
    assert "can't be read" in place.healthy()["comment"]


@pytest.mark.parametrize(("days", "soon"), [(396.5, True), (397.5, False)])
def test_an_end_within_the_life_of_a_leaf_is_a_remark(days, soon):
    found: dict[str, Any] = {"key": PEM, "certificate": certificate(days), "published": None, "modes": {}}
    error, remark = state.judge(found, NOW)
    assert error == ""
    assert ("plan its replacement" in remark) is soon


def test_the_limit_is_how_long_bootstrap_lets_a_leaf_live():
    script = (Path(__file__).parents[3] / "bootstrap").read_text()
    assert f" LEAF_DAYS={state.DAYS_ENOUGH}\n" in script


def test_an_open_key_is_closed(place, owner):
    place.key.chmod(0o644)
    place.home.chmod(0o755)
    result = place.healthy()
    assert result["result"] is True
    assert result["changes"] == {
        str(place.home): {"old": "0755, owner 0:0", "new": "0700, owner 0:0"},
        str(place.key): {"old": "0644, owner 0:0", "new": "0400, owner 0:0"},
    }
    assert stat.S_IMODE(place.key.stat().st_mode) == 0o400
    assert stat.S_IMODE(place.home.stat().st_mode) == 0o700
    assert owner == [(str(place.home), 0, 0), (str(place.key), 0, 0)]
    (warning,) = result["warnings"]
    assert str(place.key) in warning
    assert "may have been copied: replace this CA (docs/operations.rst)" in warning
    again = place.healthy()
    assert again["changes"] == {}
    assert "warnings" not in again


def test_an_open_folder_alone_shows_no_key(place):
    place.home.chmod(0o755)
    assert "warnings" not in place.healthy()


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "known"),
    [
        (0o400, 0, 0, False),
        (0o600, 0, 0, False),
        (0o440, 0, 0, False),
        (0o440, 0, 4, True),
        (0o404, 0, 0, True),
        (0o400, 1000, 0, True),
    ],
)
def test_who_could_have_read_the_key(place, mode, uid, gid, known):
    found = state.look(place.home, place.published)
    found["modes"][str(place.key)] = (mode, uid, gid)
    assert state.exposed(found, place.home) is known


def test_a_kind_of_key_that_python_does_not_know_is_an_error(place, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedAlgorithm("unknown curve")

    monkeypatch.setattr(serialization, "load_pem_private_key", refuse)
    result = place.healthy()
    assert result["result"] is False
    assert "can't be read (unknown curve)" in result["comment"]


def test_a_key_of_somebody_else_is_planned_back_to_root(place):
    found = state.look(place.home, place.published)
    found["modes"][str(place.key)] = (0o400, 1000, 100)
    assert state.plan(found, place.home, place.published) == {
        str(place.key): {"old": "0400, owner 1000:100", "new": "0400, owner 0:0"}
    }


@pytest.mark.parametrize("old", ["missing", "another certificate"])
def test_the_certificate_is_published_where_minions_fetch_it(place, old):
    if old == "missing":
        place.published.unlink()
        place.public.rmdir()
    else:
        place.published.write_bytes(certificate(100))
    result = place.healthy()
    assert result["result"] is True
    assert result["changes"] == {str(place.published): {"old": old, "new": "the CA's certificate"}}
    assert place.published.read_bytes() == place.certificate.read_bytes()
    assert stat.S_IMODE(place.published.stat().st_mode) == 0o644
    assert [path.name for path in place.public.iterdir()] == ["qemu.crt"], "no half-written file stays"
    assert place.healthy()["changes"] == {}


def test_a_prediction_touches_nothing(place, owner, monkeypatch):
    place.key.chmod(0o644)
    place.published.unlink()
    before = place.content()
    monkeypatch.setitem(state.__opts__, "test", True)
    predicted = place.healthy()
    assert predicted["result"] is None
    assert "may have been copied" in predicted["warnings"][0]
    assert place.content() == before
    assert owner == []
    monkeypatch.setitem(state.__opts__, "test", False)
    assert place.healthy()["changes"] == predicted["changes"]


def test_it_loads_only_with_cryptography(monkeypatch):
    assert state.__virtual__() == "certificate_authority"
    monkeypatch.setattr(state, "HAS_CRYPTOGRAPHY", False)
    assert state.__virtual__() == (False, "the Python package cryptography is missing from Salt's Python")

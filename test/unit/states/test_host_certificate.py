"""Why a host's certificate is replaced, how the pair is swapped, and what is never shown."""

from __future__ import annotations

import datetime as dt
import getpass
import grp
import ipaddress
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _states import host_certificate
from _states.host_certificate import Access, Wanted

NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)
WANTED = Wanted("hv1", ("hv1",), 30)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class Authority:
    """A CA that issues what a test asks for."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.builder(self.name, self.key.public_key(), 3650)
        ca = x509.BasicConstraints(ca=True, path_length=None)
        signed = builder.add_extension(ca, critical=True).sign(self.key, hashes.SHA256())
        self.pem = signed.public_bytes(serialization.Encoding.PEM)

    def builder(self, subject: x509.Name, key: Any, days: float) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1) + dt.timedelta(days=min(days, 0) * 2))
            .not_valid_after(NOW + dt.timedelta(days=days))
        )

    def issue(
        self,
        key: Any,
        *,
        name: str = "hv1",
        alternatives: tuple[str | x509.GeneralName, ...] = ("hv1", "hv1.lab.internal"),
        usages: tuple[x509.ObjectIdentifier, ...] = BOTH,
        days: float = 397,
        ca: bool = False,
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.builder(subject, key, days)
        constraints = x509.BasicConstraints(ca=ca, path_length=None)
        builder = builder.add_extension(constraints, critical=True)
        if alternatives:
            names = x509.SubjectAlternativeName([
                x509.DNSName(one) if isinstance(one, str) else one for one in alternatives
            ])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


CA = Authority("libvirt CA")
OTHER_CA = Authority("qemu CA")
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def faults(
    certificate: bytes | None, key: bytes | None = pem(KEY), ca: bytes = CA.pem
) -> list[str]:
    return host_certificate.faults(key, certificate, ca, WANTED, NOW)


# ---- what is wrong with a pair ----


def test_a_good_pair():
    assert faults(CA.issue(KEY.public_key())) == []


def test_a_bundle_of_several_authorities():
    assert faults(CA.issue(KEY.public_key()), ca=OTHER_CA.pem + CA.pem) == []


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (None, "there is no certificate"),
        (b"garbage", "the certificate cannot be read"),
        (CA.issue(OTHER_KEY.public_key()), "the certificate belongs to another key"),
        (OTHER_CA.issue(KEY.public_key()), "another CA signed the certificate"),
        (CA.issue(KEY.public_key(), name="hv2"), "its common name is not hv1"),
        (CA.issue(KEY.public_key(), alternatives=("hv2",)), "it does not name hv1"),
        (
            CA.issue(KEY.public_key(), alternatives=()),
            "it lacks subject alternative names or extended key usages",
        ),
        (
            CA.issue(KEY.public_key(), usages=BOTH[:1]),
            "its extended key usage is not server and client authentication",
        ),
        (CA.issue(KEY.public_key(), ca=True), "it is a CA certificate"),
        (CA.issue(KEY.public_key(), days=-1), "it has expired"),
        (CA.issue(KEY.public_key(), days=29), "it expires in 29 days"),
    ],
)
def test_each_fault_is_named(certificate, reason):
    assert faults(certificate) == [reason]


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (("HV1.lab.internal",), []),
        (("hv1.example.org", "hv1.lab.internal"), ["it does not name hv1.example.org"]),
        (("2001:DB8:0::1", "192.0.2.1"), []),
        (("192.0.2.2",), ["it does not name 192.0.2.2"]),
    ],
)
def test_names_and_addresses_are_compared_by_what_they_mean(wanted, missing):
    names = [x509.DNSName(name) for name in ("hv1", "hv1.lab.internal")]
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("2001:db8::1", "192.0.2.1")]
    certificate = CA.issue(KEY.public_key(), alternatives=(*names, *addresses))
    found = host_certificate.faults(
        pem(KEY), certificate, CA.pem, Wanted("hv1", ("hv1", *wanted), 30), NOW
    )
    assert found == missing


def test_thirty_days_are_enough():
    assert faults(CA.issue(KEY.public_key(), days=30.1)) == []


def test_several_faults_are_all_named():
    found = faults(OTHER_CA.issue(OTHER_KEY.public_key(), name="hv2", days=3))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "there is no key"), (b"x", "the key cannot be read")]
)
def test_a_bad_key_is_named(key, reason):
    assert faults(CA.issue(KEY.public_key()), key=key) == [reason]


@pytest.mark.parametrize(
    ("mode", "user", "group", "expected"),
    [
        (0o440, 0, 64055, False),
        (0o400, 0, 64055, False),
        (0o000, 0, 64055, False),
        (0o640, 0, 0, False),
        (0o444, 0, 64055, True),
        (0o404, 0, 64055, True),
        (0o440, 0, 100, True),
        (0o400, 1000, 64055, True),
    ],
)
def test_who_could_read_the_key(mode, user, group, expected):
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, user, group, 0, 0, 0, 0))
    access = Access("root", "libvirt-qemu", 0o440)
    assert host_certificate.exposed(status, access, 0, 64055) is expected


# ---- the state ----


class Host:
    """A host with folders of its own, and a CA that counts how often it is asked."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source.crt"
        self.source.write_bytes(CA.pem)
        self.asked: list[dict[str, Any]] = []
        self.issue = CA.issue
        self.errors: list[Exception] = []
        self.opts: dict[str, Any] = {"test": False, "id": "hv1", "file_client": "remote"}
        salt = {
            "cp.cache_file": lambda _: str(self.source) if self.source.exists() else "",
            "x509.create_certificate": self.create,
            "x509.get_signing_policy": lambda name: {"signing_private_key": f"/ca/{name}.key"},
        }
        monkeypatch.setattr(host_certificate, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(host_certificate, "__salt__", salt, raising=False)
        monkeypatch.setattr("time.sleep", lambda _: None)
        # Files belong to whoever runs the tests; on a host that is root.
        monkeypatch.setattr("os.fchown", lambda *_: None)
        monkeypatch.setattr("os.chown", lambda *_: None)

    def create(self, **kwargs: Any) -> str:
        self.asked.append(kwargs)
        if self.errors:
            raise self.errors.pop(0)
        key = serialization.load_pem_public_key(kwargs["public_key"].encode())
        return self.issue(key).decode()

    def run(self, **kwargs: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "purpose": "libvirt",
            "key": str(self.folder / "key.pem"),
            "ca": str(self.folder / "ca.pem"),
            "ca_source": "salt://hypervisor-pki/libvirt.crt",
            "ca_server": "controller",
            "key_user": getpass.getuser(),
            "key_group": grp.getgrgid(os.getgid()).gr_name,
            "wait_seconds": 0,
        }
        return host_certificate.managed(str(self.folder / "cert.pem"), **(arguments | kwargs))

    def files(self) -> dict[str, tuple[bytes, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_mode) for path in self.folder.iterdir()
        }


@pytest.fixture(name="host")
def fresh_host(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


def test_first_run_makes_a_pair_and_second_run_asks_nobody(host):
    ret = host.run()
    assert ret["result"] is True, ret
    assert ret["changes"]["certificate"]["why"] == ["there is no key"]
    assert host.asked[0]["ca_server"] == "controller"
    assert host.asked[0]["signing_policy"] == "libvirt_hv1"
    assert stat.S_IMODE((host.folder / "key.pem").stat().st_mode) == 0o400
    assert not list(host.folder.glob("*.new"))
    before = host.files()
    again = host.run()
    assert (again["result"], again["changes"]) == (True, {})
    assert len(host.asked) == 1
    assert host.files() == before


def test_the_key_stays_on_the_host_and_out_of_the_result(host):
    ret = host.run()
    secret = (host.folder / "key.pem").read_text().splitlines()[1]
    assert secret not in str(ret)
    assert secret not in str(host.asked)
    assert "private_key" not in host.asked[0]


def test_dry_run_predicts_and_touches_nothing(host):
    host.opts["test"] = True
    before = host.files()
    ret = host.run()
    assert ret["result"] is None
    assert set(ret["changes"]) == {"certificate", "ca"}
    assert host.files() == before
    assert host.asked == []


def test_dry_run_of_a_good_pair_is_silent(host):
    host.run()
    host.opts["test"] = True
    assert (host.run()["result"], host.run()["changes"]) == (True, {})


def test_a_due_certificate_gets_a_new_key_too(host):
    host.run()
    before = host.files()
    ret = host.run(days_remaining=398)
    assert ret["result"] is False  # the CA issues for 397 days: told, and nothing is replaced
    assert "it expires in" in ret["comment"]
    assert host.files() == before
    host.issue = lambda public: CA.issue(public, days=500)
    assert host.run(days_remaining=398)["result"] is True
    assert host.files()["key.pem"] != before["key.pem"]


def test_too_closed_a_key_is_repaired_without_asking(host):
    host.run()
    (host.folder / "key.pem").chmod(0o600)
    ret = host.run()
    assert (ret["result"], list(ret["changes"])) == (True, ["key"])
    assert stat.S_IMODE((host.folder / "key.pem").stat().st_mode) == 0o400
    assert len(host.asked) == 1


def test_a_key_that_others_could_read_is_replaced(host):
    host.run()
    before = (host.folder / "key.pem").read_bytes()
    (host.folder / "key.pem").chmod(0o444)
    ret = host.run()
    assert ret["changes"]["certificate"]["why"] == ["others could read the key (mode 0444)"]
    assert (host.folder / "key.pem").read_bytes() != before


def test_a_new_authority_replaces_all_three(host):
    host.run()
    host.source.write_bytes(OTHER_CA.pem)
    host.issue = OTHER_CA.issue
    ret = host.run()
    assert ret["changes"]["certificate"]["why"] == ["another CA signed the certificate"]
    assert (host.folder / "ca.pem").read_bytes() == OTHER_CA.pem


def test_a_longer_bundle_is_written_without_asking(host):
    host.run()
    host.source.write_bytes(CA.pem + OTHER_CA.pem)
    ret = host.run()
    assert (ret["result"], list(ret["changes"]), len(host.asked)) == (True, ["ca"], 1)
    assert (host.folder / "ca.pem").read_bytes() == CA.pem + OTHER_CA.pem


def test_a_wrong_answer_of_the_authority_replaces_nothing(host):
    host.run()
    (host.folder / "cert.pem").unlink()
    before = host.files()
    host.issue = lambda public: CA.issue(public, name="hv2")
    ret = host.run()
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert "issued something else" in ret["comment"]
    assert host.files() == before


def test_a_name_that_is_new_in_pillar_replaces_the_certificate(host):
    host.run()
    ret = host.run(subject_names=["hv1.lab.internal"])
    assert ret["changes"] == {}, "the certificate has this name"
    host.issue = lambda public: CA.issue(public, alternatives=("hv1", "hv1.new"))
    ret = host.run(subject_names=["hv1.new"])
    assert (ret["result"], ret["changes"]["certificate"]["why"]) == (True, ["it does not name hv1.new"])
    assert host.run(subject_names=["hv1.new"])["changes"] == {}


def test_a_name_that_the_master_does_not_give_is_said_with_what_to_run(host):
    host.run()
    before = host.files()
    ret = host.run(subject_names=["hv1.new", "192.0.2.1"])
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "'bootstrap pki --host hv1=hv1.lab.internal,hv1.new,192.0.2.1'" in ret["comment"]
    assert host.files() == before


def test_a_silent_authority_is_named_after_a_bounded_wait(host):
    host.errors = [SaltInvocationError("ca_server did not respond.")] * 99
    ret = host.run()
    assert ret["result"] is False
    assert "the CA on controller (policy libvirt_hv1) issued nothing within 0 s" in ret["comment"]
    assert len(host.asked) == 1


def test_an_authority_that_answers_late_is_asked_again(host):
    host.errors = [SaltInvocationError("ca_server did not respond."), TypeError("a string")]
    ret = host.run(wait_seconds=60)
    assert ret["result"] is True
    assert len(host.asked) == 3


def test_a_refusal_is_final(host):
    host.errors = [CommandExecutionError("minion not permitted to use specified signing policy")]
    ret = host.run(wait_seconds=60, signing_policy="libvirt_hv2")
    assert ret["result"] is False
    assert "(policy libvirt_hv2) refused" in ret["comment"]
    assert len(host.asked) == 1


def test_a_missing_authority_file_is_named(host):
    host.source.unlink()
    ret = host.run()
    assert ret["result"] is False
    assert "salt://hypervisor-pki/libvirt.crt" in ret["comment"]


def test_without_a_master_nobody_is_asked(host):
    host.opts["file_client"] = "local"
    ret = host.run()
    assert ret["result"] is False
    assert "pki:ca_server" in ret["comment"]
    assert host.asked == []


def test_a_host_can_sign_for_itself(host):
    host.opts["file_client"] = "local"
    ret = host.run(ca_server="")
    assert ret["result"] is True
    assert "ca_server" not in host.asked[0]
    assert host.asked[0]["signing_private_key"] == "/ca/libvirt_hv1.key"


def test_an_unknown_owner_is_named(host):
    ret = host.run(key_group="no-such-group")
    assert ret["result"] is False
    assert "no-such-group" in ret["comment"]
    assert host.asked == []

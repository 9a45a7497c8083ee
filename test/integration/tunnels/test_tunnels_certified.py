"""Two hosts that know each other by certificates: leases and pings in ESP alone, and each bad certificate by name.

Each host signs for itself with the same CA here. The tests share the machines and run in this order, after those of
shared keys or alone.
"""

from __future__ import annotations

import json

import pytest
from tunnel_site import INSIDE, agreed, failures, lease, pings, tap
from tunnel_site import network as private
from wire import ESP, GRE

from lab.state import CHECKOUT

HERE = "/etc/ipsec.d"
NAMES = {kind: f"{HERE}/{kind}/hypervisor-tunnel.pem" for kind in ("certs", "private", "cacerts")}
ROOTS = "file_roots:\n  base: [/srv/formulas, /srv/salt]\ninclude: [hypervisor-pki.conf]\n"
# Signs a certificate like the policy's, but for what the test wants to be wrong. It is of a new key: for the old one
# strongSwan at the other end still has the good certificate, and takes it.
SIGN = """
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID, ExtendedKeyUsageOID
folder, days, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
key = rsa.generate_private_key(65537, 2048)
authority = serialization.load_pem_private_key(open(folder + "/ca.key", "rb").read(), None)
issuer = x509.load_pem_x509_certificate(open(folder + "/ca.crt", "rb").read())
now = datetime.datetime.now(datetime.timezone.utc)
end = now + datetime.timedelta(days=days)
# openvswitch-ipsec finds the common name by what follows it.
subject = [(NameOID.ORGANIZATION_NAME, "hypervisor tunnel"), (NameOID.COMMON_NAME, name)]
made = (x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(*one) for one in subject]))
    .issuer_name(issuer.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
    .not_valid_before(min(now, end) - datetime.timedelta(days=9)).not_valid_after(end)
    .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    .add_extension(x509.BasicConstraints(False, None), True)
    .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    .sign(authority, hashes.SHA256()))
pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
open("/etc/ipsec.d/private/hypervisor-tunnel.pem", "wb").write(private)
open("/etc/ipsec.d/certs/hypervisor-tunnel.pem", "wb").write(made.public_bytes(pem))
"""


def network(pair, host):
    found = private(pair, host, auth="certificate", wait_seconds=20, pki={"ca_server": ""})
    if host == "hv2":
        # The host itself asks the other one through the tunnel.
        asks = {"type": "internal", "mac": "52:54:00:aa:bb:cc", "dhcp4": True}
        found["ovs"] = {"bridges": {"ovs0": {"ports": {"lease0": asks}}}}
    return found


def python(pair, host):
    """Return the interpreter that Salt runs with, which has the library for certificates."""
    return pair.sh(host, 'sed -n "1s/^#!//p" "$(readlink -f "$(command -v salt-call)")" | cut -d " " -f 1').strip()


def give(pair, host, *, folder="/etc/pki/hypervisor/tunnel", days=90, name=""):
    """Put another certificate in the place of a host's, and have it taken up."""
    words = [python(pair, host), "-I", "-", folder, str(days), name or host]
    pair.lab.hosts.run(host, words, stdin=SIGN)
    pair.sh(host, "systemctl restart openvswitch-ipsec")


@pytest.fixture(scope="module", name="certified")
def two_hosts_with_certificates(pair):
    bootstrap = (CHECKOUT / "bootstrap").read_bytes()
    pair.lab.hosts.unpack("hv1", {"/root/bootstrap": (0o755, bootstrap)})
    pair.sh("hv1", "/root/bootstrap pki --host hv1 --host hv2", timeout=300)
    folders = "etc/pki/hypervisor srv/salt/hypervisor-pki etc/salt/minion.d/hypervisor-pki.conf"
    packed = pair.sh("hv1", f"tar -c -C / {folders} | base64")
    pair.lab.hosts.run("hv2", ["sh", "-c", "base64 -d | tar -x -C /"], stdin=packed)
    for host in INSIDE:
        pair.lab.hosts.unpack(host, {"/etc/salt/minion.d/zz-pki.conf": (0o644, ROOTS.encode())})
        pair.pillar(host, network(pair, host))
    rows = pair.both(lambda host: pair.apply(host, "network"))
    # The first of the two may find the other one without its certificate; it must not fail for long.
    assert failures(rows["hv1"]).keys() <= {"network_ipsec_established"}
    assert failures(rows["hv2"]).keys() <= {"network_ipsec_established"}
    rows = pair.both(lambda host: pair.apply(host, "network"))
    assert {host: failures(one) for host, one in rows.items()} == {"hv1": {}, "hv2": {}}
    return pair


def test_leases_and_pings_pass_encrypted_alone(certified):
    with tap(certified) as wire:
        got = {host: lease(certified, host) for host in INSIDE}
        assert pings(certified, "hv2", got["hv1"]["ip"], 30)
    assert wire.count(ESP) > 4
    assert wire.count(GRE) == 0
    for host in INSIDE:
        held = certified.sh(host, "ovs-vsctl --columns=options list Interface; cat /etc/ipsec.secrets")
        assert "psk" not in held.lower()


def test_a_second_run_changes_nothing_and_says_so_before(certified):
    rows = certified.apply("hv1", "network", "test=True")
    assert {name: row["changes"] for name, row in rows.items() if row["changes"] or row["result"] is not True} == {}


def test_a_port_of_the_host_itself_has_a_lease_and_keeps_it_over_a_reboot(certified):
    show = "ip -4 -o address show dev lease0 scope global"
    asked = f"for n in $(seq 90); do {show} | grep . && exit; sleep 1; done; exit 1"
    before = certified.sh("hv2", asked)
    assert " 10.9.0.1" in before
    assert "dynamic" in before
    old = certified.machines["hv2"].boot_id()
    certified.sh("hv2", "systemctl reboot", check=False)
    certified.machines["hv2"].wait_reboot(old, timeout=400)
    assert certified.sh("hv2", asked).split()[3] == before.split()[3]
    # Its guest went with the reboot; the tests below ask from a new one.
    lease(certified, "hv2")
    assert pings(certified, "hv2", INSIDE["hv1"], 30)


def test_root_alone_reads_the_key_and_the_certificate_is_in_the_hosts_name(certified):
    for host in INSIDE:
        assert certified.sh(host, f"stat --format '%a %U %G' {NAMES['private']}").split() == ["400", "root", "root"]
        subject = certified.sh(host, f"openssl x509 -noout -subject -ext subjectAltName -in {NAMES['certs']}")
        assert f"CN = {host}" in subject
        assert f"DNS:{host}" in subject


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"folder": "/etc/pki/hypervisor/web"}, "is of no CA that is trusted here"),
        ({"name": "hv7"}, "refuses the key or certificate"),
        ({"days": -1}, "has expired"),
    ],
    ids=["another CA", "another name", "expired"],
)
def test_a_bad_certificate_opens_nothing_and_is_named(certified, bad, why):
    give(certified, "hv2", **bad)
    with tap(certified, "hv2") as wire:
        said = {host: agreed(certified, host, network(certified, host)["mesh"]) for host in INSIDE}
        assert not pings(certified, "hv2", INSIDE["hv1"], 3)
    assert wire.count(GRE) == 0
    assert [one["result"] for one in said.values()] == [False, False], said
    assert "hv2 (private_hv2, " in said["hv1"]["comment"]
    assert why in said["hv1"]["comment"], said
    assert "refuses the key or certificate" in said["hv2"]["comment"], said


def test_the_next_run_replaces_what_is_bad_and_traffic_comes_back(certified):
    rows = certified.apply("hv2", "network")
    assert failures(rows).keys() <= {"network_ipsec_established"}
    why = rows["network_ipsec_certificate"]["changes"]["certificate"]["why"]
    assert why == ["it has expired"]
    assert "PRIVATE" not in json.dumps(rows)
    # openvswitch-ipsec was started anew, since it does not look into files.
    assert rows["network_ipsec_service"]["changes"] == {"openvswitch-ipsec": True}
    assert pings(certified, "hv2", INSIDE["hv1"], 60)

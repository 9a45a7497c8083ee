"""A host after libvirt/: sockets listen, certificates let in exactly the hosts of the pillar."""

import datetime as dt
import json
import re

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

TLS_PORT = 16514
PLACES = {
    "libvirt": {
        "ca": "/etc/pki/CA/cacert.pem",
        "cert": "/etc/pki/libvirt/servercert.pem",
        "key": "/etc/pki/libvirt/private/serverkey.pem",
        "client_cert": "/etc/pki/libvirt/clientcert.pem",
        "client_key": "/etc/pki/libvirt/private/clientkey.pem",
    },
    "qemu": {
        "ca": "/etc/pki/qemu/ca-cert.pem",
        "cert": "/etc/pki/qemu/server-cert.pem",
        "key": "/etc/pki/qemu/server-key.pem",
        "client_cert": "/etc/pki/qemu/client-cert.pem",
        "client_key": "/etc/pki/qemu/client-key.pem",
    },
}
CONSOLE = ("/etc/pki/console/server-cert.pem", "/etc/pki/console/server-key.pem", "/etc/pki/console/ca-cert.pem")
# Runs on the host. libvirt sends one byte, 1, once it has let a client in.
CLIENT = """
import json, socket, ssl, sys
name, port, ca, cert, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if cert:
    context.load_cert_chain(cert, key)
try:
    with socket.create_connection(("127.0.0.1", int(port)), 20) as plain:
        with context.wrap_socket(plain, server_hostname=name) as tls:
            tls.settimeout(20)
            print(json.dumps(list(tls.recv(1))))
except (ssl.SSLError, ConnectionError) as error:
    print(json.dumps(type(error).__name__))
"""


def certificate(host, path):
    """Read a certificate of the host."""
    return x509.load_pem_x509_certificate(host.file(path).content)


def common_name(found):
    """Return the one common name of a certificate."""
    (attribute,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return attribute.value


def signed_by(found, authority):
    """Whether the authority's key made the certificate's signature."""
    try:
        authority.public_key().verify(
            found.signature,
            found.tbs_certificate_bytes,
            ec.ECDSA(found.signature_hash_algorithm),
        )
    except InvalidSignature:
        return False
    return True


def conf_file(host):
    """Return the file of the daemon that answers on the TLS port, found by its socket unit."""
    names = ("libvirtd", "virtproxyd")
    (front,) = [name for name in names if host.service(f"{name}-tls.socket").is_running]
    return f"/etc/libvirt/{front}.conf"


def answer(host, *, cert="", key=""):
    """Connect to the TLS port from the host itself; return what came back."""
    name = common_name(certificate(host, PLACES["libvirt"]["cert"]))
    ca = PLACES["libvirt"]["ca"]
    done = host.run("python3 -c %s %s %s %s %s %s", CLIENT, name, str(TLS_PORT), ca, cert, key)
    assert done.rc == 0, done.stderr
    return json.loads(done.stdout)


def test_systemd_listens_for_libvirt(host):
    front = conf_file(host).removeprefix("/etc/libvirt/").removesuffix(".conf")
    assert host.service(f"{front}-tls.socket").is_enabled
    assert host.service(f"{front}-tcp.socket").is_enabled is False
    assert host.socket(f"tcp://{TLS_PORT}").is_listening
    assert not host.socket("tcp://16509").is_listening


def test_libvirt_answers(host):
    done = host.run("virsh -c qemu:///system list --all")
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize("purpose", PLACES)
class TestCertificate:
    def test_of_its_own_authority(self, host, purpose):
        found = certificate(host, PLACES[purpose]["cert"])
        for other in PLACES:
            authority = certificate(host, PLACES[other]["ca"])
            assert signed_by(found, authority) is (other == purpose)

    def test_says_what_it_may_be_used_for(self, host, purpose):
        extensions = certificate(host, PLACES[purpose]["cert"]).extensions
        constraints = extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).value
        assert constraints.ca is False
        usages = extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
        assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}

    def test_names_this_host(self, host, purpose):
        found = certificate(host, PLACES[purpose]["cert"])
        names = found.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        assert common_name(found) in names.value.get_values_for_type(x509.DNSName)

    def test_is_neither_due_nor_endless(self, host, purpose):
        found = certificate(host, PLACES[purpose]["cert"])
        now = dt.datetime.now(dt.timezone.utc)
        left = found.not_valid_after_utc - now
        assert dt.timedelta(days=30) < left < dt.timedelta(days=398)
        assert found.not_valid_before_utc <= now

    def test_client_uses_it_too(self, host, purpose):
        places = PLACES[purpose]
        for client, server in (("client_cert", "cert"), ("client_key", "key")):
            assert host.file(places[client]).linked_to == places[server]


def test_only_root_reads_the_key_of_libvirt(host):
    key = host.file(PLACES["libvirt"]["key"])
    assert (key.user, key.group, key.mode) == ("root", "root", 0o400)
    folder = host.file("/etc/pki/libvirt/private")
    assert (folder.user, folder.mode) == ("root", 0o700)


def test_only_the_service_of_consoles_reads_the_key_of_consoles(host):
    path, key, ca = CONSOLE
    found = certificate(host, path)
    assert signed_by(found, certificate(host, ca))
    assert not signed_by(found, certificate(host, PLACES["libvirt"]["ca"]))
    assert common_name(found) == common_name(certificate(host, PLACES["libvirt"]["cert"]))
    file = host.file(key)
    reader = ("hypervisor-console", 0o440) if host.group("hypervisor-console").exists else ("root", 0o400)
    assert (file.user, file.group, file.mode) == ("root", *reader)
    if reader[0] != "root":
        assert host.group(reader[0]).members == []
        assert host.user(reader[0]).shell.endswith("/nologin")


def test_only_the_user_of_qemu_reads_the_key_of_qemu(host):
    key = host.file(PLACES["qemu"]["key"])
    # All platforms of kitchen.yml are Debian, whose package makes a group for this one user.
    assert (key.user, key.group, key.mode) == ("root", "libvirt-qemu", 0o440)
    group = host.run("getent group %s", key.group).stdout.strip().split(":")
    members = {name for name in group[3].split(",") if name}
    primary = {
        line.split(":")[0]
        for line in host.run("getent passwd").stdout.splitlines()
        if line.split(":")[3] == group[2]
    }
    assert members | primary == {"libvirt-qemu"}


def test_a_host_of_the_list_is_let_in_and_no_other(host):
    text = host.file(conf_file(host)).content_string
    (line,) = re.findall(r"^tls_allowed_dn_list\s*=\s*\[(.*)\]", text, re.MULTILINE)
    allowed = re.findall(r'"CN=([^"]+)"', line)
    places = PLACES["libvirt"]
    mine = common_name(certificate(host, places["cert"]))
    # In all pillars of this suite the host itself is of the list.
    assert mine in allowed
    assert answer(host, cert=places["client_cert"], key=places["client_key"]) == [1]


def refused(host, **shown):
    """Whether libvirt does not let in who shows this; its port must answer, and let in who shows what is right."""
    places = PLACES["libvirt"]
    assert answer(host, cert=places["client_cert"], key=places["client_key"]) == [1]
    got = answer(host, **shown)
    # Nobody answers, or it is the client who refuses: that would be no refusal of libvirt's.
    assert got not in ("ConnectionRefusedError", "SSLCertVerificationError")
    return got != [1]


def test_without_a_certificate_nobody_is_let_in(host):
    assert refused(host)


def test_a_certificate_of_another_purpose_is_refused(host):
    places = PLACES["qemu"]
    assert refused(host, cert=places["client_cert"], key=places["client_key"])

"""Certificates that no formula would make: ended, of another CA, of another name. Test hosts only."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lab.identity import DOMAIN
from lab.lab import Lab

SALT_PYTHON = "/opt/saltstack/salt/bin/python"
# Runs on the controller, with Salt's Python: certifies the public key that it reads as its arguments say.
SIGN = """
import datetime as dt, json, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
wanted = json.loads(sys.argv[1])
public = serialization.load_pem_public_key(sys.stdin.buffer.read())
named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
folder = "/etc/pki/hypervisor/" + wanted["purpose"]
authority = x509.load_pem_x509_certificate(open(folder + "/ca.crt", "rb").read())
if wanted["foreign"]:
    key = ec.generate_private_key(ec.SECP256R1())
else:
    key = serialization.load_pem_private_key(open(folder + "/ca.key", "rb").read(), None)
names = [wanted["name"], wanted["name"] + "." + wanted["domain"]]
now = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
day = dt.timedelta(days=1)
usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
builder = (
    x509.CertificateBuilder().subject_name(named(wanted["name"])).issuer_name(authority.subject).public_key(public)
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - 9 * day).not_valid_after(now + wanted["days"] * day)
    .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    # What a strict reader (Python 3.13 and later) misses would be wrong in each of them, as it is in none of the CA's.
    .add_extension(x509.KeyUsage(True, False, True, False, False, False, False, False, False), critical=True)
    .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
)
print(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), end="")
"""
# Replaces the certificate in one step, as a renewal does: nobody finds none.
PUT = 'cat > "$1.test" && chmod 0644 "$1.test" && mv "$1.test" "$1"'


@dataclass(frozen=True)
class Leaf:
    """A host's certificate of one purpose: where it and its key are, and which state owns it."""

    purpose: str
    cert: str
    key: str

    @property
    def state(self) -> str:
        """The id of the state."""
        return f"libvirt_certificate_{self.purpose}"


LIBVIRT = Leaf("libvirt", "/etc/pki/libvirt/servercert.pem", "/etc/pki/libvirt/private/serverkey.pem")
QEMU = Leaf("qemu", "/etc/pki/qemu/server-cert.pem", "/etc/pki/qemu/server-key.pem")
CONSOLE = Leaf("console", "/etc/pki/console/server-cert.pem", "/etc/pki/console/server-key.pem")


def serial(lab: Lab, host: str, leaf: Leaf) -> str:
    """Return the serial number of a host's certificate."""
    return str(lab.run(host, ["openssl", "x509", "-noout", "-serial", "-in", leaf.cert]).stdout)


def replace(
    lab: Lab, host: str, leaf: Leaf, *, purpose: str = "", name: str = "", days: int = 300, foreign: bool = False
) -> None:
    """Give a host's key another certificate.

    Args:
        lab: the lab.
        host: whose certificate is replaced.
        leaf: which one.
        purpose: the CA that signs, by default the right one.
        name: its common name, by default the host's; it stands in it with the lab's domain too.
        days: until it ends; negative for one that has ended.
        foreign: sign with a key that the CA does not know.
    """
    # QEMU compares the target's full name, whichever name the address of the migration has.
    wanted = {"name": name or host, "domain": DOMAIN, "days": days, "foreign": foreign}
    wanted["purpose"] = purpose or leaf.purpose
    public = lab.run(host, ["openssl", "pkey", "-pubout", "-in", leaf.key]).stdout
    made = lab.run(lab.hosts.controller, [SALT_PYTHON, "-c", SIGN, json.dumps(wanted)], stdin=public).stdout
    lab.run(host, ["sh", "-ec", PUT, "sh", leaf.cert], stdin=made)

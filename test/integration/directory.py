"""A directory of users on a host: Debian's slapd with a configuration of its own, and the library that asks it."""

from __future__ import annotations

import time
from typing import Any

PORT = 6360
BASE = "dc=example,dc=org"
FOLDER = "/run/test-directory"
UNIT = "test-directory"
PASSWORDS = {"lena": "dir-5tR1", "mona": "dir-8uW6"}
SEARCHER, SEARCHING = f"cn=searcher,{BASE}", "find-2zX7"
PACKAGES = ("slapd", "python3-ldap")
CONFIGURATION = f"""
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {FOLDER}/slapd.pid
TLSCertificateFile {FOLDER}/cert.pem
TLSCertificateKeyFile {FOLDER}/key.pem
database mdb
suffix {BASE}
directory {FOLDER}/db
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{SEARCHER}" read by self read by * none
"""
PERSON = """dn: uid={name},ou=People,{base}
objectClass: inetOrgPerson
uid: {name}
cn: {name}
sn: {name}
userPassword: {password}
"""
ENTRY = """dn: {dn}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: {password}
"""
ENTRIES = "\n".join([
    f"dn: {BASE}\nobjectClass: domain\ndc: example\n",
    *(f"dn: ou={name},{BASE}\nobjectClass: organizationalUnit\nou: {name}\n" for name in ("People", "Groups")),
    ENTRY.format(dn=SEARCHER, password=SEARCHING),
    *(PERSON.format(name=name, base=BASE, password=password) for name, password in PASSWORDS.items()),
    f"dn: cn=lookers,ou=Groups,{BASE}\nobjectClass: posixGroup\ncn: lookers\ngidNumber: 4711\nmemberUid: mona\n",
])  # fmt: skip
# Debian's library is for the Python that Salt's onedir has: it is shown to that.
LIBRARY = """
there=$(/opt/saltstack/salt/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for one in /usr/lib/python3/dist-packages/{ldap,_ldap*,ldapurl.py,ldif.py,pyasn1,pyasn1_modules}; do
  [ -e "$there/${one##*/}" ] || ln -s "$one" "$there/"
done
"""
UNDONE = """
there=$(/opt/saltstack/salt/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
find "$there" -maxdepth 1 -type l -lname '/usr/lib/python3/dist-packages/*' -delete
"""
# What pillar says of it. Jinja, which renders pillar files, gets what it shall leave alone in quotes.
SETTINGS: dict[str, Any] = {
    "uri": f"ldaps://127.0.0.1:{PORT}", "basedn": BASE, "binddn": SEARCHER, "bindpw": SEARCHING,
    "filter": "uid={{ '{{ username }}' }}", "accountattributename": "memberUid", "groupou": "Groups",
    "groupclass": "posixGroup",
}  # fmt: skip


def begun(lab: Any, host: str) -> None:
    """Install and start it on a host, and have that host believe its certificate."""

    def run(*argv: str, **more: Any) -> str:
        return str(lab.run(host, list(argv), timeout=300, **more).stdout)

    run("mkdir", "-p", f"{FOLDER}/db")
    run("systemctl", "mask", "--quiet", "--runtime", "slapd.service")
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet", *PACKAGES)
    run("bash", "-ec", LIBRARY)
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{FOLDER}/key.pem",
        "-out", f"{FOLDER}/cert.pem")  # fmt: skip
    run("tee", f"{FOLDER}/slapd.conf", stdin=CONFIGURATION)
    run("slapadd", "-f", f"{FOLDER}/slapd.conf", stdin=ENTRIES)
    run("sh", "-ec", f"cp {FOLDER}/cert.pem /usr/local/share/ca-certificates/{UNIT}.crt; update-ca-certificates")
    # Debian's own file says the same; it is in a package that is only recommended, libldap-common.
    run("tee", "/etc/ldap/ldap.conf", stdin="TLS_CACERT /etc/ssl/certs/ca-certificates.crt\n")
    start(lab, host)


def start(lab: Any, host: str) -> None:
    """Start it, and wait until it answers."""
    argv = ["/usr/sbin/slapd", "-d", "0", "-f", f"{FOLDER}/slapd.conf", "-h", f"ldaps://127.0.0.1:{PORT}"]
    lab.run(host, ["systemd-run", "--quiet", f"--unit={UNIT}", "--collect", *argv])
    deadline = time.monotonic() + 30
    while f":{PORT}" not in lab.run(host, ["ss", "-Hltn"]).stdout:
        assert time.monotonic() < deadline, lab.run(host, ["journalctl", "-u", UNIT, "-n", "20", "--no-pager"]).stdout
        time.sleep(0.2)


def stop(lab: Any, host: str) -> None:
    """Stop it."""
    lab.run(host, ["systemctl", "stop", UNIT])


def ended(lab: Any, host: str) -> None:
    """Take all of it away again."""
    lab.run(host, ["systemctl", "stop", UNIT], check=False)
    lab.run(host, ["bash", "-ec", UNDONE])
    text = f"""
    rm -rf /etc/ldap/ldap.conf /usr/local/share/ca-certificates/{UNIT}.crt {FOLDER}
    update-ca-certificates --fresh
    systemctl unmask --quiet --runtime slapd.service
    """
    lab.run(host, ["sh", "-ec", text], timeout=120)
    lab.run(host, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "purge", "--yes", "--quiet", "--auto-remove",
                   *PACKAGES], timeout=300)  # fmt: skip

"""Port 16514 lets in a hypervisor's own certificate and no other; the CA signs for nobody in another's name."""

import json
import re

import pytest
from support import changed, digest, end_guest, start_guest, state_of

from lab import salt

TLS = "qemu+tls://hv2/system"
# A client's folder for libvirt (pkipath) made of other certificates than the host's own.
FOREIGN = """
set -e
mkdir -p "$1" && cd "$1"
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
ca=basicConstraints=critical,CA:TRUE
openssl req -x509 -new -key ca.key -days 2 -subj '/CN=foreign CA' -out ca.crt -addext "$ca"
openssl ecparam -name prime256v1 -genkey -noout -out clientkey.pem
openssl req -new -key clientkey.pem -subj '/CN=hv1' -out client.csr
printf 'subjectAltName=DNS:hv1\\nextendedKeyUsage=clientAuth,serverAuth\\n' > extensions
by="-CA ca.crt -CAkey ca.key -CAcreateserial"
openssl x509 -req -in client.csr $by -days 2 -extfile extensions -out clientcert.pem
cp /etc/pki/CA/cacert.pem cacert.pem
"""
FOLDER = "/run/test-pki"
OWN = ("/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem")
SHOWN = (f"{FOLDER}/clientcert.pem", f"{FOLDER}/clientkey.pem")


@pytest.fixture
def folder(lab):
    lab.run("hv1", ["rm", "-rf", FOLDER])
    yield FOLDER
    lab.run("hv1", ["rm", "-rf", FOLDER])


def connect(lab, options="", host="hv1"):
    return lab.run(host, ["virsh", "--connect", TLS + options, "list"], check=False, timeout=60)


def ask(lab, host, policy, **arguments):
    """Ask the CA for a certificate from a host, the way a program on it could; return text of the answer."""
    make = "umask 077; [ -e $1 ] || openssl ecparam -name prime256v1 -genkey -noout -out $1"
    lab.run(host, ["sh", "-c", make, "sh", "/run/test.key"])
    argv = ["salt-call", "--out=json", "x509.create_certificate", "ca_server=controller"]
    argv += [f"signing_policy={policy}", "private_key=/run/test.key"]
    argv += [f"{key}={value}" for key, value in arguments.items()]
    done = lab.run(host, argv, check=False, timeout=90)
    return done.stdout + done.stderr


def certificate(lab, text):
    """Return what openssl says of a certificate that salt-call printed."""
    pem = json.loads(text)["local"]
    return lab.run("hv1", ["openssl", "x509", "-noout", "-text"], stdin=pem).stdout


def test_the_hosts_own_certificate_is_let_in(lab, let_in):
    done = connect(lab)
    assert done.returncode == 0, done.stderr
    assert "Id" in done.stdout
    assert let_in(*OWN)


def test_a_certificate_of_another_ca_is_refused(lab, folder, let_in):
    """By virsh, which looks at its own certificate before it connects, and by the server."""
    lab.run("hv1", ["sh", "-c", FOREIGN, "sh", folder])
    done = connect(lab, f"?pkipath={folder}")
    assert done.returncode != 0
    assert "certificate" in done.stderr.lower() or "tls" in done.stderr.lower(), done.stderr
    assert not let_in(*SHOWN)
    assert let_in(*OWN)


def test_one_of_ours_for_another_purpose_is_refused(lab, folder, let_in):
    """The QEMU certificate has the right name, a CA of ours, and even the right usage: its CA is another."""
    script = (
        'mkdir -p "$1"; cp /etc/pki/CA/cacert.pem "$1"; cd /etc/pki/qemu; '
        'cp client-cert.pem "$1/clientcert.pem"; cp client-key.pem "$1/clientkey.pem"'
    )
    lab.run("hv1", ["sh", "-ec", script, "sh", folder])
    done = connect(lab, f"?pkipath={folder}")
    assert done.returncode != 0
    assert "certificate" in done.stderr.lower() or "tls" in done.stderr.lower(), done.stderr
    assert not let_in(*SHOWN)
    # The same folder with the libvirt certificate gets in: it was the purpose.
    script = 'cd /etc/pki/libvirt; cp clientcert.pem private/clientkey.pem "$1"'
    lab.run("hv1", ["sh", "-ec", script, "sh", folder])
    assert connect(lab, f"?pkipath={folder}").returncode == 0
    assert let_in(*SHOWN)


# libvirt sends one byte, 1, to a client that it lets in. Under TLS 1.3 a refusal arrives after the client's handshake.
ANONYMOUS = """
import socket, ssl
context = ssl.create_default_context(cafile="/srv/salt/hypervisor-pki/libvirt.crt")
with socket.create_connection(("hv2", 16514), 20) as plain:
    print("connected", flush=True)
    try:
        with context.wrap_socket(plain, server_hostname="hv2") as tls:
            tls.settimeout(20)
            print("answer", list(tls.recv(1)))
    except ssl.SSLCertVerificationError:
        raise  # it is this client that refuses, and the server was not asked
    except (ssl.SSLError, ConnectionError) as error:
        print("refused", error)
"""


def test_nobody_is_let_in_without_a_certificate(lab):
    printed = lab.run("controller", ["python3", "-"], stdin=ANONYMOUS, timeout=60).stdout
    assert printed.startswith("connected"), "the port must be open for this to prove anything"
    assert "refused" in printed or "answer []" in printed, printed


@pytest.mark.parametrize("listed", [["hv2"], []], ids=["another", "nobody"])
def test_a_host_that_is_not_listed_is_refused(lab, let_in, listed):
    """tls_allowed_dn_list decides: a good certificate alone doesn't open the port, and an empty list lets nobody in."""
    pillar = salt.pillar_files(lab.hosts)
    pillar["hv2.sls"] = salt.merged_yaml(pillar["hv2.sls"], {"libvirt": {"tls": {"allowed_hosts": listed}}})
    salt.merge_pillar(lab.hosts, {"hv2.sls": pillar["hv2.sls"]})
    try:
        salt.check_green(salt.highstate(lab.hosts, ["hv2"]))
        done = connect(lab)
        assert done.returncode != 0
        # The handshake succeeded, and then the server hung up instead of confirming: it is the name that it minds.
        assert "TLS confirmation" in done.stderr, done.stderr
        assert not let_in(*OWN)
        # Whoever is listed gets in meanwhile, so the port as such is open.
        done = connect(lab, host="hv2")
        assert (done.returncode == 0) == ("hv2" in listed), done.stderr
    finally:
        salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
        salt.check_green(salt.highstate(lab.hosts, ["hv2"]))
    assert connect(lab).returncode == 0
    assert let_in(*OWN)


def test_tls_off_closes_the_port_although_a_guest_runs(lab):
    """A daemon that is kept up holds the port open by itself; switched off in pillar it is closed all the same."""
    listening = ["ss", "-Hltn", "sport = :16514"]
    start_guest(lab, "hv2", "sitter")
    try:
        assert connect(lab).returncode == 0
        text = salt.pillar_files(lab.hosts)["hv2.sls"]
        salt.merge_pillar(lab.hosts, {"hv2.sls": salt.merged_yaml(text, {"libvirt": {"tls": {"enabled": False}}})})
        salt.check_green(salt.highstate(lab.hosts, ["hv2"]))
        assert lab.run("hv2", listening).stdout == ""
        assert connect(lab).returncode != 0
        assert state_of(lab, "hv2", "sitter") == "running"
    finally:
        salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
        salt.check_green(salt.highstate(lab.hosts, ["hv2"]))
        assert lab.run("hv2", ["cat", "/var/log/libvirt/qemu/sitter-serial.log"]).stdout.count("guest boot") == 1
        end_guest(lab, "sitter")
    assert connect(lab).returncode == 0


def test_hv2_gets_no_certificate_in_the_name_of_hv1(lab):
    for purpose in ("libvirt", "qemu", "console", "web", "tunnel"):
        answer = ask(lab, "hv2", f"{purpose}_hv1")
        assert "BEGIN CERTIFICATE" not in answer
        assert "not permitted" in answer, answer
    # Its own is given: the CA answers, and refused for the name.
    assert "BEGIN CERTIFICATE" in ask(lab, "hv2", "libvirt_hv2")


def test_a_request_can_decide_nothing(lab):
    """Whatever a host asks for besides, the policy's own words stand in the certificate."""
    before = digest(lab, "controller")
    answer = ask(
        lab, "hv2", "libvirt_hv2", CN="hv1", O="evil", subjectAltName="DNS:hv1", basicConstraints="CA:TRUE",
        days_valid="9999", not_after="2099-01-01 00:00:00", copypath="/etc", keyUsage="keyCertSign",
        nameConstraints="permitted;DNS:.com",
    )  # fmt: skip
    text = certificate(lab, answer)
    # Newer versions of openssl print no spaces.
    assert re.search(r"Subject: CN ?= ?hv2\n", text)
    assert "DNS:hv2" in text
    assert "hv1" not in text
    assert "CA:FALSE" in text
    assert "Certificate Sign" not in text
    assert "2099" not in text
    assert changed(before, digest(lab, "controller")) == {}, "the request wrote to the CA's disk"


def test_the_controller_keeps_its_cas(lab, controller):
    for purpose in ("libvirt", "qemu", "console", "web", "tunnel"):
        key = controller.file(f"/etc/pki/hypervisor/{purpose}/ca.key")
        assert (key.user, key.group, key.mode) == ("root", "root", 0o400)
        published = controller.file(f"/srv/salt/hypervisor-pki/{purpose}.crt").content_string
        assert published == controller.file(f"/etc/pki/hypervisor/{purpose}/ca.crt").content_string
        assert "PRIVATE" not in published


def test_private_keys_never_leave_their_host(lab):
    """No private key in the file tree, the master's job cache, the logs, the journal, or a minion's cache."""
    places = ["/srv", "/var/cache/salt", "/var/log"]
    # Where each host may have them, among which one is known: the same search has to find that.
    home = "/etc/pki"
    known = {
        "controller": f"{home}/hypervisor/libvirt/ca.key",
        **dict.fromkeys(("hv1", "hv2"), f"{home}/libvirt/private/serverkey.pem"),
    }
    for host, key in known.items():
        lab.run(host, ["ls", "-d", "/var/cache/salt", "/var/log", *(["/srv/salt"] if host == "controller" else [])])
        argv = ["env", "LC_ALL=C", "grep", "-rlE", "BEGIN ([A-Z]+ )?PRIVATE KEY", *places, home]
        done = lab.run(host, argv, check=False)
        found = done.stdout.splitlines()
        assert key in found, (host, done.stderr)
        assert [one for one in found if not one.startswith(f"{home}/")] == [], host
        # Salt removes files of its cache at any time; whatever else could not be read was not searched.
        missed = [line for line in done.stderr.splitlines() if not line.endswith("No such file or directory")]
        assert (done.returncode in {0, 2}, missed) == (True, []), host
        journal = lab.run(host, ["journalctl", "--no-pager", "--output=cat"]).stdout
        # Without any entries it says so, in one line.
        assert len(journal.splitlines()) > 10, host
        assert "PRIVATE KEY-----" not in journal, host


def repaired(lab):
    """Run hv1's highstate, which must be green, and return the ids of what it changed."""
    figures = salt.check_green(salt.highstate(lab.hosts, ["hv1"]))
    return figures["hv1"]["changed"]


def test_a_certificate_that_is_due_is_renewed_alone(lab):
    """One that ends in five days is replaced, its key stays, nothing else changes, and the next run is silent."""
    cert, key = "/etc/pki/libvirt/servercert.pem", "/etc/pki/libvirt/private/serverkey.pem"
    serial = ["openssl", "x509", "-noout", "-serial", "-in", cert]
    before, other = lab.run("hv1", serial).stdout, lab.run("hv1", ["sha256sum", "/etc/pki/qemu/server-cert.pem"]).stdout
    request = lab.run("hv1", ["openssl", "req", "-new", "-key", key, "-subj", "/CN=hv1"]).stdout
    sign = (
        "printf 'subjectAltName=DNS:hv1\\nextendedKeyUsage=serverAuth,clientAuth\\n"
        "basicConstraints=critical,CA:FALSE\\n' > /run/x.ext; "
        "cat > /run/x.csr; openssl x509 -req -in /run/x.csr -CA /etc/pki/hypervisor/libvirt/ca.crt "
        "-CAkey /etc/pki/hypervisor/libvirt/ca.key -set_serial 77 -days 5 -extfile /run/x.ext"
    )
    short = lab.run("controller", ["sh", "-ec", sign], stdin=request).stdout
    lab.run("hv1", ["tee", cert], stdin=short)
    # The daemon that serves it is told; nothing else has a reason.
    assert set(repaired(lab)) <= {"libvirt_certificate_libvirt", "libvirt_certificate_loaded"}
    after = lab.run("hv1", serial).stdout
    assert after not in {before, "serial=4D\n"}
    assert lab.run("hv1", ["sha256sum", "/etc/pki/qemu/server-cert.pem"]).stdout == other
    assert connect(lab).returncode == 0
    assert repaired(lab) == []


@pytest.mark.parametrize(
    ("key", "mode", "group"),
    [
        ("/etc/pki/libvirt/private/serverkey.pem", 0o400, "root"),
        ("/etc/pki/qemu/server-key.pem", 0o440, "libvirt-qemu"),
    ],
)
def test_private_keys_are_closed_and_repaired(lab, key, mode, group):
    stat = ["stat", "-c", "%a %U %G", key]
    expected = f"{mode:o} root {group}\n"
    assert lab.run("hv1", stat).stdout == expected
    lab.run("hv1", ["chmod", "0644", key])
    assert ("libvirt_certificate_libvirt" if "libvirt/" in key else "libvirt_certificate_qemu") in repaired(lab)
    assert lab.run("hv1", stat).stdout == expected


def test_qemu_key_is_readable_by_qemu_alone(lab):
    _, _, group, members = lab.run("hv1", ["getent", "group", "libvirt-qemu"]).stdout.strip().split(":")
    users = [line.split(":") for line in lab.run("hv1", ["getent", "passwd"]).stdout.splitlines()]
    assert set(members.split(",")) - {""} <= {"libvirt-qemu"}
    assert {user[0] for user in users if user[3] == group} <= {"libvirt-qemu"}
    read = ["--regid=kvm", "cat", "/etc/pki/qemu/server-key.pem"]
    lab.run("hv1", ["setpriv", "--reuid=libvirt-qemu", "--init-groups", *read])
    refused = lab.run("hv1", ["setpriv", "--reuid=nobody", "--clear-groups", *read], check=False)
    assert refused.returncode != 0

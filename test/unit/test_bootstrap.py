"""The bootstrap script: what it refuses, and what it writes. It runs here on a copy whose paths lie in a folder."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

ROOT = Path(__file__).resolve().parents[2]
PURPOSES = ("libvirt", "qemu", "console", "web", "tunnel")
FINGER = "1f:9e:00"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Machine:
    """A folder that stands for a machine: bootstrap believes to be root there, with Salt installed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("id", "echo 0")
        self.program("hostname", "echo here")
        self.program("salt-minion", "echo 'salt-minion 3008.3'")
        self.program("salt-master", "echo 'salt-master 3008.3'")
        text = (ROOT / "bootstrap").read_text()
        for part in ("etc", "srv", "opt", "usr/local", "run"):
            text = text.replace(f"/{part}/", f"{self.root}/{part}/")
        self.script = folder / "bootstrap"
        self.script.write_text(text)
        shutil.copy(ROOT / "top.sls.example", folder)

    def program(self, name: str, line: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.script), *words],
            capture_output=True, text=True, timeout=60, check=False, cwd=self.root,
            env={**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}", "LC_ALL": "C"},
        )  # fmt: skip

    def systemd(self, *active: str) -> Path:
        """Let systemd run here with these units active; returns the list of what was asked of it."""
        (self.root / "run/systemd/system").mkdir(parents=True)
        asked = self.programs.parent / "systemctl.log"
        states = "".join(f'    "is-active --quiet {unit}") exit 0 ;;\n' for unit in active)
        self.program(
            "systemctl",
            f'case "$*" in\n{states}    is-*) exit 1 ;;\n    *) echo "$*" >>{asked} ;;\nesac',
        )
        asked.touch()
        return asked

    def apt(self, pip: int) -> Path:
        """Let there be apt with 'present' and 'old' installed, and a Python whose pip ends with this code.

        Returns the list of what was asked of apt and dpkg.
        """
        asked = self.programs.parent / "apt.log"
        have = self.programs.parent / "installed"
        have.write_text("old\npresent\n")
        self.program("apt-cache", "exit 0")
        self.program(
            "apt-get",
            f'echo "apt-get $*" >>{asked}\ncase "$*" in\n'
            "    *update*) exit 100 ;;\n"
            f"    *install*) printf 'gcc\\ngcc-12\\nlibc6-dev:amd64\\npython3-dev\\n' >>{have} ;;\nesac",
        )
        self.program("dpkg-query", f"case \"$*\" in *binary:Package*) sed 's/^/ii  /' {have} ;; *) exit 1 ;; esac")
        self.program("dpkg", f'echo "dpkg $*" >>{asked}')
        # A virtual environment whose pip says what it was asked.
        self.program(
            "python3",
            'case "$*" in "-m venv "*)\n  mkdir -p "$3/bin"\n'
            f'  printf \'#!/bin/sh\\necho "pip $*" >>{asked}; echo pip says >&2; exit {pip}\\n\' >"$3/bin/pip"\n'
            '  chmod 755 "$3/bin/pip" ;;\nesac',
        )
        (self.root / "usr/local/bin").mkdir(parents=True)
        return asked

    def pki(self, *words: str) -> str:
        done = self.run("pki", "--no-start", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def named(self, minion: str) -> None:
        """Be the minion of this id, as an earlier run has written it."""
        folder = self.root / "etc/salt/minion.d"
        folder.mkdir(parents=True)
        (folder / "hypervisor.conf").write_text(f"master: 127.0.0.1\nid: {minion}\n")

    def yaml(self, path: str) -> dict[str, Any]:
        return dict(yaml.safe_load((self.root / path).read_text()))

    def files(self) -> dict[str, tuple[int, bytes]]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): (path.stat().st_mode, path.read_bytes()) for path in found}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_help_lists_every_command_and_option():
    done = subprocess.run([ROOT / "bootstrap", "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    text = (ROOT / "bootstrap").read_text()
    options = next(line for line in text.splitlines() if "--host|--remove-host|" in line).strip().rstrip(") ;")
    for word in ("master", "minion", "pki", "install", "--no-start", *options.split("|")):
        assert f" {word} " in done.stdout, word
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_without_a_command_it_prints_its_use(machine):
    done = machine.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: bootstrap")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["instal"], "there is no command 'instal'; see bootstrap --help"),
        (["minion", "--mastr", "m"], "there is no option '--mastr'; see bootstrap --help"),
        (["minion", "--master"], "--master needs a value"),
        (["minion"], "minion needs --master ADDRESS"),
        (["minion", "--host", "hv1"], "--host is not an option of 'minion'; see bootstrap --help"),
        (["master", "--master", "m"], "--master is not an option of 'master'; see bootstrap --help"),
        (["pki", "--formula", "/x"], "--formula is not an option of 'pki'; see bootstrap --help"),
        (["install", "--id", "hv1"], "--id is not an option of 'install'; see bootstrap --help"),
        (["install", "--wheels", "/nowhere"], "--wheels: there is no folder /nowhere"),
        (["minion", "--master", "a b"], "--master 'a b' is neither a name nor an address"),
        (["minion", "--master", "m\nuser: nobody"], "--master 'm\nuser: nobody' is neither a name nor an address"),
        (["minion", "--master", "m", "--finger", "xx"], "--finger is not a fingerprint like 1f:9e:..."),
        (["minion", "--master", "m", "--id", "hv 1"], "'hv 1' is not a minion id; allowed: letters"),
        (["minion", "--master", "m", "--id", "../x"], "'../x' is not a minion id"),
        (["minion", "--master", "m", "--salt", "git"], "--salt git is not known; allowed: auto, packages, pypi"),
        (["pki", "--host", "hv1:"], "'hv1:' is not a minion id"),
        (["pki", "--host", "hv_1"], "'hv_1' is neither a DNS name nor an IP address"),
        (["pki", "--host", "hv1=hv1.internal,hv 1;x"], "'1;x' is neither a DNS name nor an IP address"),
        (["pki", "--host", "hv1=10.0.0.300"], "'10.0.0.300' is not an IP address"),
        (["pki", "--host", "hv1=*"], "'*' is neither a DNS name nor an IP address"),
        (["master", "--host", "hv1=fe80::zz"], "'fe80::zz' is not an IP address"),
        (["master", "--host", "hv1=fe80::1%eth0"], "'fe80::1%eth0' is not an IP address"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_written(machine, words, said):
    done = machine.run(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"bootstrap: error: {said}")
    assert machine.files() == {}


def test_only_root_may(machine):
    machine.program("id", "echo 1000")
    done = machine.run("pki", "--host", "hv1")
    assert (done.returncode, done.stderr) == (1, "bootstrap: error: must be run as root\n")
    assert machine.files() == {}


def test_a_minion_believes_the_master_it_was_told(machine):
    done = machine.run("minion", "--master", "m.internal", "--id", "hv1", "--finger", FINGER, "--no-start")
    assert done.returncode == 0, done.stderr
    config = machine.yaml("etc/salt/minion.d/hypervisor.conf")
    assert config["master"] == "m.internal"
    assert config["id"] == "hv1"
    assert config["master_finger"] == FINGER
    assert config["minimum_auth_version"] == 3
    assert list(machine.files()) == ["etc/salt/minion.d/hypervisor.conf"]
    again = machine.run("minion", "--master", "m.internal", "--id", "hv1", "--finger", FINGER, "--no-start")
    assert "wrote" not in again.stdout


def test_an_id_is_the_short_host_name_unless_told(machine):
    assert machine.run("minion", "--master", "m", "--no-start").returncode == 0
    assert machine.yaml("etc/salt/minion.d/hypervisor.conf")["id"] == "here"


@needs_openssl
def test_a_master_serves_this_repository_and_is_its_own_minion(machine):
    done = machine.run("master", "--id", "controller", "--host", "hv1=hv1.internal,10.0.0.1", "--no-start")
    assert done.returncode == 0, done.stderr
    master = machine.yaml("etc/salt/master.d/hypervisor.conf")
    assert master["file_roots"]["base"] == [f"{machine.root}/srv/salt", str(machine.script.parent)]
    assert master["on_demand_ext_pillar"] == []
    assert machine.yaml("etc/salt/minion.d/hypervisor.conf")["master"] == "127.0.0.1"
    top = machine.root / "srv/salt/top.sls"
    assert top.read_text() == (ROOT / "top.sls.example").read_text()
    top.write_text("base: {}\n")
    assert machine.run("master", "--id", "controller", "--no-start").returncode == 0
    assert top.read_text() == "base: {}\n", "a top file belongs to the administrator"


@needs_openssl
def test_each_purpose_gets_a_closed_ca_of_its_own(machine):
    machine.pki()
    keys = set()
    for purpose in PURPOSES:
        folder = machine.root / "etc/pki/hypervisor" / purpose
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o400
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert key.public_key() == certificate.public_key()
        keys.add((folder / "ca.key").read_bytes())
        published = machine.root / f"srv/salt/hypervisor-pki/{purpose}.crt"
        assert published.read_bytes() == (folder / "ca.crt").read_bytes()
    assert len(keys) == len(PURPOSES)


@needs_openssl
def test_policies_fix_names_and_usage_and_peers_are_listed(machine):
    machine.pki("--host", "hv1=hv1.internal,10.0.0.1", "--host", "hv2.internal")
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    assert set(policies) == {f"{purpose}_{host}" for purpose in PURPOSES for host in ("hv1", "hv2.internal")}
    policy = policies["qemu_hv1"]
    assert policy["minions"] == "hv1"
    assert policy["subject"] == "CN=hv1"
    assert policy["subjectAltName"] == "DNS:hv1, DNS:hv1.internal, IP:10.0.0.1"
    # openvswitch-ipsec looks for "CN=" with a comma after the name.
    assert policies["tunnel_hv1"]["subject"] == "CN=hv1,O=hypervisor tunnel"
    name = x509.Name.from_rfc4514_string(policies["tunnel_hv1"]["subject"])
    assert name.rfc4514_string() == "CN=hv1,O=hypervisor tunnel"
    assert policy["basicConstraints"] == "critical, CA:FALSE"
    assert policy["signing_private_key"] == f"{machine.root}/etc/pki/hypervisor/qemu/ca.key"
    assert policy["days_valid"] == 397
    # What a policy doesn't name, the minion that asks could set.
    assert all(policy[name] is None for name in ("copypath", "private_key", "csr", "not_after", "nameConstraints"))
    peers = machine.yaml("etc/salt/master.d/hypervisor-pki.conf")["peer"]
    functions = ("x509.sign_remote_certificate", "host_keys.deposit", "cluster_key.deposit", "guest_minion.accept")
    allowed = [f"^{re.escape(name)}$" for name in functions]
    assert peers == {"^hv1$": allowed, r"^hv2\.internal$": allowed}


@needs_openssl
def test_a_master_gets_what_its_page_needs_and_no_more(machine):
    machine.named("controller")
    machine.pki("--host", "hv1", "--web", "controller.internal,10.0.0.9")
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    own = {name: policy for name, policy in policies.items() if policy["minions"] == "controller"}
    assert set(own) == {"web_controller", "console_controller"}
    assert own["web_controller"]["subjectAltName"] == "DNS:controller, DNS:controller.internal, IP:10.0.0.9"
    assert own["console_controller"]["subjectAltName"] == "DNS:controller"
    assert own["web_controller"]["basicConstraints"] == "critical, CA:FALSE"
    # It asks nobody: it is where the authorities are.
    assert list(machine.yaml("etc/salt/master.d/hypervisor-pki.conf")["peer"]) == ["^hv1$"]
    assert machine.pki() == "", "names that are not given stay"
    machine.pki("--web", "other.internal")
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    assert policies["web_controller"]["subjectAltName"] == "DNS:controller, DNS:other.internal"


@needs_openssl
def test_a_hypervisor_that_is_the_master_has_the_names_of_its_page_for_the_web_alone(machine):
    machine.named("hv1")
    machine.pki("--host", "hv1=10.0.0.1", "--web", "page.internal,10.0.0.1")
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    assert set(policies) == {f"{purpose}_hv1" for purpose in PURPOSES}
    assert policies["web_hv1"]["subjectAltName"] == "DNS:hv1, IP:10.0.0.1, DNS:page.internal"
    assert policies["libvirt_hv1"]["subjectAltName"] == "DNS:hv1, IP:10.0.0.1"


@needs_openssl
def test_a_second_run_changes_nothing(machine):
    machine.pki("--host", "hv1=10.0.0.1")
    before = machine.files()
    assert machine.pki("--host", "hv1=10.0.0.1") == ""
    assert machine.pki() == "", "hosts that are not named stay"
    assert machine.files() == before


@needs_openssl
def test_a_host_can_be_changed_and_withdrawn(machine):
    machine.pki("--host", "hv1=10.0.0.1", "--host", "hv10=10.0.0.10")
    machine.pki("--host", "hv1=10.0.0.2")
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    assert policies["web_hv1"]["subjectAltName"] == "DNS:hv1, IP:10.0.0.2"
    handed_in = machine.root / "srv/salt/hypervisor-hostkeys"
    for name in ("hv1.json", "hv10.json"):
        (handed_in / name).touch()
    machine.pki("--remove-host", "hv1")
    assert [path.name for path in handed_in.iterdir()] == ["hv10.json"], "the ssh keys of hv1 are served no more"
    policies = machine.yaml("etc/salt/minion.d/hypervisor-pki.conf")["x509_signing_policies"]
    assert {policy["minions"] for policy in policies.values()} == {"hv10"}
    assert list(machine.yaml("etc/salt/master.d/hypervisor-pki.conf")["peer"]) == ["^hv10$"]
    machine.pki("--remove-host", "hv10")
    assert machine.yaml("etc/salt/minion.d/hypervisor-pki.conf") == {"x509_signing_policies": {}}
    assert machine.yaml("etc/salt/master.d/hypervisor-pki.conf") == {"peer": {}}


@needs_openssl
def test_withdrawing_a_host_that_is_not_there_is_an_error(machine):
    machine.pki("--host", "hv1")
    before = machine.files()
    done = machine.run("pki", "--remove-host", "hv2", "--no-start")
    assert done.returncode == 1
    assert done.stderr.startswith("bootstrap: error: --remove-host hv2: there is no such host in ")
    assert machine.files() == before


@needs_openssl
@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_half_a_ca_is_never_made_whole_by_a_new_one(machine, lost):
    machine.pki()
    (machine.root / "etc/pki/hypervisor/qemu" / lost).unlink()
    before = machine.files()
    done = machine.run("pki", "--no-start")
    assert done.returncode == 1
    assert "qemu holds only half of a CA; restore the other half from a backup" in done.stderr
    assert machine.files() == before


@needs_openssl
def test_a_ca_that_ends_soon_is_said_and_kept(machine):
    machine.pki()
    folder = machine.root / "etc/pki/hypervisor/libvirt"
    (folder / "ca.crt").unlink()
    subprocess.run(
        ["openssl", "req", "-x509", "-new", "-key", folder / "ca.key", "-days", "30", "-subj", "/CN=old",
         "-out", folder / "ca.crt"], check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    old = (folder / "ca.crt").read_bytes()
    done = machine.run("pki", "--no-start")
    assert done.returncode == 0, done.stderr
    assert "warning: the libvirt CA ends before a certificate of today would" in done.stderr
    assert (folder / "ca.crt").read_bytes() == old
    assert (machine.root / "srv/salt/hypervisor-pki/libvirt.crt").read_bytes() == old


def test_a_second_run_keeps_master_pin_and_id(machine):
    assert machine.run("minion", "--master", "m", "--id", "hv1", "--finger", FINGER, "--no-start").returncode == 0
    before = machine.files()
    again = machine.run("minion", "--no-start")
    assert again.returncode == 0, again.stderr
    assert machine.files() == before
    moved = machine.run("minion", "--master", "m2", "--no-start")
    assert moved.returncode == 0, moved.stderr
    config = machine.yaml("etc/salt/minion.d/hypervisor.conf")
    assert (config["master"], config["id"], config["master_finger"]) == ("m2", "hv1", FINGER)


@needs_openssl
def test_a_master_keeps_its_id_and_is_its_own_master(machine):
    assert machine.run("minion", "--master", "m", "--id", "first", "--finger", FINGER, "--no-start").returncode == 0
    done = machine.run("master", "--no-start")
    assert done.returncode == 0, done.stderr
    config = machine.yaml("etc/salt/minion.d/hypervisor.conf")
    assert (config["master"], config["id"]) == ("127.0.0.1", "first")
    assert "master_finger" not in config, "the pin was another master's"


@pytest.mark.parametrize("pip", [0, 3])
def test_exactly_what_the_build_added_is_removed_however_it_ends(machine, pip):
    asked = machine.apt(pip)
    done = machine.run("install", "--salt", "pypi", "--no-start")
    lines = asked.read_text().splitlines()
    assert "update" in lines[0]
    assert "gcc libc6-dev python3-dev" in lines[1]
    assert lines[2].startswith("pip install")
    assert lines[3:] == ["dpkg --purge gcc gcc-12 libc6-dev:amd64 python3-dev"]
    assert "warning: apt-get update failed; going on with the package lists that are here" in done.stderr
    assert "pip says" in done.stderr
    assert done.returncode == (1 if pip else 0)
    assert ("error: pip could not install Salt 3008.3" in done.stderr) == bool(pip)


@pytest.mark.parametrize("locked", [True, False])
def test_dependencies_without_a_lock_are_warned_of(machine, locked):
    asked = machine.apt(0)
    if locked:
        lock = machine.script.parent / "requirements/salt.lock"
        lock.parent.mkdir()
        lock.write_text("salt==3008.3\n")
    done = machine.run("install", "--salt", "pypi")
    assert done.returncode == 0, done.stderr
    assert ("copy the folder requirements beside this file" in done.stderr) != locked
    assert ("--require-hashes" in asked.read_text()) == locked


def test_salt_api_comes_with_salt_and_is_not_started(machine):
    machine.apt(0)
    asked = machine.systemd()
    done = machine.run("install", "--salt", "pypi")
    assert done.returncode == 0, done.stderr
    units = machine.root / "etc/systemd/system"
    assert sorted(path.name for path in units.glob("salt-*")) == [
        "salt-api.service", "salt-master.service", "salt-minion.service",
    ]  # fmt: skip
    assert "/usr/local/bin/salt-api\n" in (units / "salt-api.service").read_text()
    assert not [line for line in asked.read_text().splitlines() if "salt-api" in line and "start" in line]


@needs_openssl
def test_new_policies_are_put_in_force_where_daemons_run(machine):
    asked = machine.systemd("salt-master", "salt-minion")
    done = machine.run("pki", "--host", "hv1")
    assert done.returncode == 0, done.stderr
    assert asked.read_text().splitlines() == ["restart salt-master", "restart salt-minion"]
    assert machine.run("pki").stdout == ""
    assert len(asked.read_text().splitlines()) == 2, "nothing changed, nothing is restarted"
    waits = machine.pki("--host", "hv2")
    assert "salt-master needs a restart if it runs: systemctl restart salt-master" in waits
    assert "salt-minion needs a restart if it runs: systemctl restart salt-minion" in waits
    assert len(asked.read_text().splitlines()) == 2


@needs_openssl
def test_new_policies_start_nothing(machine):
    asked = machine.systemd()
    done = machine.run("pki", "--host", "hv1")
    assert "salt-master needs a restart if it runs" in done.stdout
    assert asked.read_text() == ""


def test_a_minion_that_runs_is_enabled_and_shows_its_key(machine):
    asked = machine.systemd("salt-minion")
    key = machine.root / "etc/salt/pki/minion/minion.pub"
    key.parent.mkdir(parents=True)
    key.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\nBBBB\n-----END PUBLIC KEY-----\n")
    done = machine.run("minion", "--master", "m", "--id", "hv1")
    assert done.returncode == 0, done.stderr
    assert asked.read_text().splitlines() == ["enable --quiet salt-minion", "restart salt-minion"]
    # As salt.utils.crypt.pem_finger: the lines between the markers.
    finger = hashlib.sha256(b"AAAA\nBBBB\n").digest().hex(":")
    assert f"on the master: {finger}" in done.stdout
    assert "salt-key --finger hv1" in done.stdout


def test_openssl_errors_are_shown_and_leave_nothing(machine):
    machine.program("openssl", 'case $1 in ecparam) : >"$6" ;; *) echo no entropy >&2; exit 1 ;; esac')
    done = machine.run("pki", "--no-start")
    assert done.returncode == 1
    assert "error: openssl could not make the libvirt CA: no entropy" in done.stderr
    assert [path.name for path in (machine.root / "etc/pki/hypervisor").iterdir()] == ["hosts"]


def test_a_package_that_starts_its_daemon_finds_the_configuration(machine):
    seen = machine.programs.parent / "seen"
    machine.program("apt-cache", "echo '  Candidate: 3008.3'")
    config = machine.root / "etc/salt/minion.d/hypervisor.conf"
    machine.program("apt-get", f'case "$*" in *"install"*salt-minion*) cp {config} {seen} ;; esac')
    done = machine.run("minion", "--master", "m", "--finger", FINGER, "--salt", "packages", "--no-start")
    assert done.returncode == 0, done.stderr
    assert f"master_finger: '{FINGER}'" in seen.read_text()

"""Packages by role on a real host: predicted, installed exactly, and not while another apt is at work."""

import contextlib
import json
import time

import pytest

from lab import salt

HOST = "hv2"
LOCK = "/var/lib/dpkg/lock-frontend"
# Holds dpkg's lock as apt does, for some seconds, and returns when a child has it: fork() inherits no lock.
HOLDER = """
import fcntl, os, sys, time
ready, tell = os.pipe()
if child := os.fork():
    os.read(ready, 1)
    print(child, flush=True)
    os._exit(0)
os.setsid()
for stream in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), stream)
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(tell, b"x")
time.sleep(float(sys.argv[2]))
"""


def apply(lab, **options):
    """Apply kvm.packages and return each state's row by its id."""
    words = [f"{key}={value}" for key, value in options.items()]
    argv = ["salt", HOST, "--timeout=60", "--out=json", "--static", "state.apply", "kvm.packages", "queue=True"]
    done = lab.run("controller", [*argv, *words], check=False, timeout=300)
    rows = json.loads(done.stdout)[HOST]
    assert isinstance(rows, dict), rows
    return {row["__id__"]: row for row in rows.values()}


@contextlib.contextmanager
def held(lab, seconds):
    """Hold dpkg's lock on the host for some seconds, at most until the block ends."""
    pid = lab.run(HOST, ["python3", "-c", HOLDER, LOCK, str(seconds)]).stdout.strip()
    try:
        yield
    finally:
        lab.run(HOST, ["kill", pid], check=False)


def lay(lab, packages):
    """Lay kvm:packages over the host's own pillar."""
    text = salt.pillar_files(lab.hosts)[f"{HOST}.sls"]
    salt.merge_pillar(lab.hosts, {f"{HOST}.sls": salt.merged_yaml(text, {"kvm": {"packages": packages}})})


def installed(lab):
    """Return the names of all packages that are installed."""
    argv = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n"]
    lines = (line.split() for line in lab.run(HOST, argv).stdout.splitlines())
    return {name for name, status in lines if status == "installed"}


def chosen(lab):
    """Return the names of the packages that were asked for, rather than pulled by others."""
    return set(lab.run(HOST, ["apt-mark", "showmanual"]).stdout.split())


@pytest.fixture(scope="module", name="roles")
def wanted_packages(lab):
    """The packages of the roles storage and monitoring, which are enabled; in the end all is as before."""
    before = installed(lab)
    lay(lab, {"enabled": ["hypervisor", "storage", "monitoring"], "lock_timeout": 60})
    argv = ["salt-call", "--out=json", "formula.config", "kvm"]
    roles = json.loads(lab.run(HOST, argv).stdout)["local"]["packages"]["roles"]
    yield {*roles["storage"], *roles["monitoring"]}
    salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
    if more := installed(lab) - before:
        lab.run(HOST, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy", "purge", *sorted(more)], timeout=300)
    assert installed(lab) == before


@pytest.fixture(scope="module", name="done")
def installation(lab, roles):
    """The run that installs the roles while another process holds the lock for six seconds, and what preceded it."""
    before = chosen(lab)
    predicted = apply(lab, test=True)["kvm_packages"]
    assert chosen(lab) == before
    with held(lab, 4):
        begun = time.monotonic()
        rows = apply(lab)
        seconds = time.monotonic() - begun
    return predicted, rows, chosen(lab) - before, seconds


def test_a_lock_that_is_held_for_too_long_ends_the_run_and_names_the_holder(lab, roles):
    before = installed(lab)
    lay(lab, {"enabled": ["hypervisor", "storage", "monitoring"], "lock_timeout": 3})
    try:
        with held(lab, 30):
            begun = time.monotonic()
            rows = apply(lab)
            assert time.monotonic() - begun < 20
    finally:
        lay(lab, {"enabled": ["hypervisor", "storage", "monitoring"], "lock_timeout": 60})
    lock = rows["kvm_package_lock"]
    assert lock["result"] is False
    for text in ("(python3)", LOCK, "after 3 s", "kvm:packages:lock_timeout", "lvm2"):
        assert text in lock["comment"]
    assert rows["kvm_packages"]["result"] is False
    assert installed(lab) == before


def test_a_lock_that_is_held_for_a_while_is_waited_for(done):
    _, rows, _, seconds = done
    assert rows["kvm_package_lock"]["result"] is True
    assert "Waited" in rows["kvm_package_lock"]["comment"]
    assert rows["kvm_packages"]["result"] is True
    assert seconds > 4


def test_exactly_the_packages_of_the_roles_were_asked_for(roles, done):
    _, rows, asked, _ = done
    assert asked == roles
    assert roles <= set(rows["kvm_packages"]["changes"])


def test_the_prediction_named_the_same_packages(roles, done):
    predicted, _, _, _ = done
    assert predicted["result"] is None
    named = set(predicted["changes"].get("installed", predicted["changes"]))
    assert named == roles


def test_a_second_run_is_silent(lab, done):
    assert all(row["result"] is True and row["changes"] == {} for row in apply(lab).values())


def test_a_held_lock_does_not_delay_a_run_that_has_nothing_to_install(lab, done):
    with held(lab, 60):
        rows = apply(lab)
    assert "does not matter" in rows["kvm_package_lock"]["comment"]
    assert all(row["result"] is True and row["changes"] == {} for row in rows.values())


def test_a_package_that_was_taken_away_comes_back_alone(lab, done):
    lab.run(HOST, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy", "remove", "munin-libvirt-plugins"])
    assert set(apply(lab)["kvm_packages"]["changes"]) == {"munin-libvirt-plugins"}

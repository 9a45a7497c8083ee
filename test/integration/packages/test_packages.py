"""Packages by role on a real host: predicted, installed exactly, and not while another apt is at work."""

import contextlib
import json

import pytest

from lab import salt

HOST = "hv2"
LOCK = "/var/lib/dpkg/lock-frontend"
LOCK_TIMEOUT = 60  # seconds
ROLES = {"enabled": ["hypervisor", "storage", "monitoring"], "lock_timeout": LOCK_TIMEOUT}
MULTIPATH = "/etc/multipath.conf"
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


def apply(lab, sls="kvm.packages", **options):
    """Apply an SLS and return each state's row by its id."""
    words = [f"{key}={value}" for key, value in options.items()]
    argv = ["salt-call", "--out=json", "state.apply", sls, "queue=True"]
    done = lab.run(HOST, [*argv, *words], check=False, timeout=600)
    rows = json.loads(done.stdout)["local"]
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


def lay(lab, packages, **more):
    """Lay kvm:packages and other keys of kvm over the host's own pillar."""
    text = salt.pillar_files(lab.hosts)[f"{HOST}.sls"]
    over = {"kvm": {"packages": packages, **more}}
    salt.merge_pillar(lab.hosts, {f"{HOST}.sls": salt.merged_yaml(text, over)})


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
    lay(lab, ROLES)
    argv = ["salt-call", "--out=json", "formula.config", "kvm"]
    roles = json.loads(lab.run(HOST, argv).stdout)["local"]["packages"]["roles"]
    yield {*roles["storage"], *roles["monitoring"]}
    salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
    if more := installed(lab) - before:
        lab.run(HOST, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy", "purge", *sorted(more)], timeout=300)
    assert installed(lab) == before


@pytest.fixture(scope="module", name="done")
def installation(lab, roles):
    """The run that installs the roles while another process holds the lock, and what preceded it."""
    before = chosen(lab)
    predicted = apply(lab, test=True)["kvm_packages"]
    assert chosen(lab) == before
    # Long enough for Salt to come to that state before, short of the limit.
    with held(lab, 10):
        rows = apply(lab)
    return predicted, rows, chosen(lab) - before


def test_a_lock_that_is_held_for_too_long_ends_the_run_and_names_the_holder(lab, roles):
    before = installed(lab)
    lay(lab, {**ROLES, "lock_timeout": 3})
    try:
        with held(lab, 300):
            rows = apply(lab)
    finally:
        lay(lab, ROLES)
    lock = rows["kvm_package_lock"]
    assert lock["result"] is False
    assert 3000 <= lock["duration"] < 10_000  # milliseconds
    for text in ("(python3)", LOCK, "after 3 s", "kvm:packages:lock_timeout", "lvm2"):
        assert text in lock["comment"]
    assert rows["kvm_packages"]["result"] is False
    assert installed(lab) == before


def test_a_lock_that_is_held_for_a_while_is_waited_for(done):
    _, rows, _ = done
    assert rows["kvm_package_lock"]["result"] is True
    assert "Waited" in rows["kvm_package_lock"]["comment"]
    assert rows["kvm_packages"]["result"] is True


def test_exactly_the_packages_of_the_roles_were_asked_for(roles, done):
    _, rows, asked = done
    assert asked == roles
    assert roles <= set(rows["kvm_packages"]["changes"])


def test_the_prediction_named_the_same_packages(roles, done):
    predicted, _, _ = done
    assert predicted["result"] is None
    named = set(predicted["changes"].get("installed", predicted["changes"]))
    assert named == roles


def test_a_second_run_is_silent(lab, done):
    assert all(row["result"] is True and row["changes"] == {} for row in apply(lab).values())


def test_a_held_lock_does_not_delay_a_run_that_has_nothing_to_install(lab, done):
    with held(lab, 300):
        rows = apply(lab)
    lock = rows["kvm_package_lock"]
    assert "does not matter" in lock["comment"]
    # The list of packages alone is read: seconds on a slow machine, far from the limit for which it would wait.
    assert lock["duration"] < LOCK_TIMEOUT * 1000 / 2  # milliseconds
    assert all(row["result"] is True and row["changes"] == {} for row in rows.values())


def test_a_package_that_was_taken_away_comes_back_alone(lab, done):
    lab.run(HOST, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy", "remove", "munin-libvirt-plugins"])
    assert set(apply(lab)["kvm_packages"]["changes"]) == {"munin-libvirt-plugins"}


# ---- multipath.conf, whose package the role storage has ----


@pytest.fixture(name="multipath")
def multipath_settings(lab, done):
    """A function that declares kvm:multipath and applies it; the file is removed in the end."""

    def declare(settings, **options):
        lay(lab, ROLES, multipath=settings)
        return apply(lab, "kvm.multipath", **options)["kvm_multipath"]

    yield declare
    lay(lab, ROLES)
    lab.run(HOST, ["rm", "-f", MULTIPATH])


def read(lab):
    """Return the file's text, None if there is none."""
    done = lab.run(HOST, ["cat", MULTIPATH], check=False)
    return done.stdout if done.returncode == 0 else None


def test_multipath_is_configured_as_predicted_and_reads_it(lab, multipath):
    settings = {
        "defaults": {"polling_interval": 7, "user_friendly_names": True},
        "blacklist": {"devnode": ["^vd[a-z]"], "devices": [{"vendor": "QEMU", "product": "QEMU DVD-ROM"}]},
        "multipaths": [{"wwid": "3600a098038303053453f463045727a75", "alias": "guests"}],
    }
    assert multipath(settings, test=True)["result"] is None
    assert read(lab) is None
    ret = multipath(settings)
    assert ret["result"] is True, ret["comment"]
    assert ret["changes"]
    in_force = " ".join(lab.run(HOST, ["multipath", "-t"]).stdout.split())
    for text in ("polling_interval 7", 'devnode "^vd[a-z]"', 'product "QEMU DVD-ROM"', 'alias "guests"'):
        assert text in in_force
    again = multipath(settings)
    assert (again["result"], again["changes"]) == (True, {})
    lab.run(HOST, ["sed", "-i", "s/polling_interval.*/polling_interval 9/", MULTIPATH])
    repaired = multipath(settings)
    assert repaired["result"] is True, repaired["comment"]
    assert set(repaired["changes"]) == {"diff"}
    assert "polling_interval 7" in read(lab)


def test_what_multipath_does_not_know_leaves_the_old_file(lab, multipath):
    multipath({"defaults": {"polling_interval": 7}})
    before = read(lab)
    ret = multipath({"defaults": {"poling_interval": 7}})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "invalid keyword in the defaults section: poling_interval" in ret["comment"]
    assert read(lab) == before

"""kitchen.yml names what exists, the lab reads it as Test Kitchen does, wrong files are refused."""

import copy
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lab import kitchen

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "kitchen.yml"
DATA = yaml.safe_load(FILE.read_text(encoding="utf-8"))
KITCHEN = kitchen.load(FILE)
# Suites of the master; all others are for hypervisors.
CONTROLLER = {"saltapi", "nginx"}
TARGETS = {
    name: kitchen.Target(
        host=name,
        address=f"192.0.2.{10 + index}",
        ssh_key=Path("/lab/a key"),
        known_hosts=Path("/lab/known_hosts"),
        kind="vm",
    )
    for index, name in enumerate(KITCHEN.hosts)
}


def diagnose_directly():
    """The file itself, as data: what `kitchen diagnose` would have to accept."""
    assert "<%" not in FILE.read_text(encoding="utf-8"), "the lab does not read ERB"
    assert DATA["driver"]["name"] == "vagrant"
    assert DATA["provisioner"]["name"] == "salt_solo"
    # Without this kitchen-salt downloads a script from an address that no longer exists.
    assert DATA["provisioner"]["require_chef"] is False
    # kitchen-salt fails on pillars_from_files without pillars.
    assert DATA["provisioner"]["pillars"]
    # The default verifier needs Ruby on the host.
    assert DATA["verifier"]["name"] == "shell"


def diagnose_with_test_kitchen(tmp_path):
    """The genuine program, with the proxy driver, because Vagrant may be absent."""
    shutil.copy(FILE, tmp_path)
    local = tmp_path / ".kitchen.local.yml"
    kitchen.write_override(KITCHEN, "unit", "debian-12", TARGETS, local)
    done = subprocess.run(
        ["kitchen", "diagnose", "--no-color"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    instances = yaml.safe_load(done.stdout.replace("!ruby/object:IO ", ""))["instances"]
    assert set(instances) == {f"{suite}-debian-12" for suite in KITCHEN.suites}
    for instance in instances.values():
        assert "error" not in instance, instance


def test_the_file_is_what_test_kitchen_reads():
    diagnose_directly()


@pytest.mark.skipif(shutil.which("kitchen") is None, reason="Test Kitchen is not installed")
def test_test_kitchen_accepts_the_file(tmp_path):
    diagnose_with_test_kitchen(tmp_path)


def test_platforms_are_the_ones_of_the_design():
    assert {name: p.release for name, p in KITCHEN.platforms.items()} == {
        "debian-12": "bookworm",
        "debian-13": "trixie",
    }
    for platform in DATA["platforms"]:
        release = KITCHEN.platforms[platform["name"]].release
        assert platform["driver"]["box"] == f"debian/{release}64"


def test_hosts_of_the_lab():
    assert list(KITCHEN.hosts) == ["controller", "hv1", "hv2", "hv3"]
    assert [name for name, spec in KITCHEN.hosts.items() if spec.spare] == ["hv3"]
    assert KITCHEN.hosts["controller"].roles == ("controller",)
    assert KITCHEN.hosts["hv1"].roles == KITCHEN.hosts["hv2"].roles == ("hypervisor",)


@pytest.mark.parametrize("suite", KITCHEN.suites.values(), ids=list(KITCHEN.suites))
class TestSuite:
    def test_its_tests_exist(self, suite):
        folder = ROOT / "test" / "integration" / suite.name
        assert list(folder.glob("test_*.py")), f"{folder} has no tests"

    def test_its_verifier_runs_its_tests(self, suite):
        assert suite.verifier_argv[-1] == f"test/integration/{suite.name}"
        assert suite.verifier_argv[0].startswith(".venv/bin/")

    def test_its_pillar_files_exist_and_are_mappings(self, suite):
        assert suite.pillars
        tops = DATA["provisioner"]["pillars"]["top.sls"]["base"]["*"]
        assert set(suite.pillars) == {f"{name}.sls" for name in tops}
        for file in suite.pillars.values():
            assert isinstance(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")), dict)

    def test_its_states_exist(self, suite):
        for state in suite.states:
            assert (ROOT / state.replace(".", "/") / "init.sls").is_file()

    def test_the_lab_host_has_the_role_that_its_states_are_for(self, suite):
        role = "controller" if suite.name in CONTROLLER else "hypervisor"
        assert KITCHEN.hosts[suite.host].roles == (role,)


def test_every_integration_folder_with_a_pillar_is_a_suite():
    folders = {path.parent.name for path in (ROOT / "test" / "integration").glob("*/pillar.sls")}
    assert folders == set(KITCHEN.suites)


def test_what_must_not_reach_a_host_is_filtered():
    copied = set(DATA["provisioner"]["salt_copy_filter"])
    assert {".git", ".venv", "build", "test", "lab"} <= copied
    # Salt's own folders and the script that installs Salt must get there.
    needed = {"_modules", "_states", "_utils", "bootstrap", "requirements"}
    assert not copied & (needed | {state for s in KITCHEN.suites.values() for state in s.states})


def test_override_gives_the_verifier_the_variables_of_the_lab(tmp_path):
    path = tmp_path / "local.yml"
    kitchen.write_override(KITCHEN, "unit", "debian-13", TARGETS, path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert data["driver"] == {"name": "proxy"}
    assert [platform["name"] for platform in data["platforms"]] == ["debian-13"]
    provable = [name for name, suite in KITCHEN.suites.items() if suite.works_on(TARGETS[suite.host].kind)]
    assert [suite["name"] for suite in data["suites"]] == provable
    assert len(provable) >= len(KITCHEN.suites) - 1
    for written in data["suites"]:
        suite = KITCHEN.suites[written["name"]]
        words = shlex.split(written["verifier"]["command"])
        assert tuple(words[-len(suite.verifier_argv) :]) == suite.verifier_argv
        given = dict(word.split("=", 1) for word in words[: -len(suite.verifier_argv)])
        # What Test Kitchen sets by itself for the proxy driver.
        driver = written["driver"]
        given |= {
            "KITCHEN_HOSTNAME": driver["host"],
            "KITCHEN_PORT": str(driver["port"]),
            "KITCHEN_USERNAME": written["transport"]["username"],
            "KITCHEN_SUITE": suite.name,
            "KITCHEN_PLATFORM": "debian-13",
            "KITCHEN_INSTANCE": f"{suite.name}-debian-13",
        }
        target = TARGETS[suite.host]
        assert given == kitchen.verifier_environment(suite, "debian-13", target)
        provisioner = written["provisioner"]
        assert provisioner["salt_install"] == "none"
        assert provisioner["salt_minion_extra_config"]["id"] == suite.host
        assert provisioner["salt_minion_extra_config"]["master"] == "controller"
        assert provisioner["pillars_from_files"] == dict(suite.pillars)
        assert provisioner["state_top"]["base"]["*"] == list(suite.states)


def test_override_leaves_out_suites_that_the_kind_of_host_cannot_prove():
    text = kitchen.override(KITCHEN, "unit", "debian-12", {"hv1": replace(TARGETS["hv1"], kind="container")})
    assert [suite["name"] for suite in yaml.safe_load(text)["suites"]] == ["kvm", "console"]


def test_override_leaves_out_suites_whose_hosts_are_not_there():
    text = kitchen.override(KITCHEN, "unit", "debian-12", {"hv1": TARGETS["hv1"]})
    assert [suite["name"] for suite in yaml.safe_load(text)["suites"]] == ["kvm", "network", "cluster_storage"]
    with pytest.raises(kitchen.KitchenError, match="runs no host that proves a suite"):
        kitchen.override(KITCHEN, "unit", "debian-12", {})
    with pytest.raises(kitchen.KitchenError, match=r"'debian-11' is not in kitchen\.yml"):
        kitchen.override(KITCHEN, "unit", "debian-11", TARGETS)


def test_override_replaces_its_own_file_only(tmp_path):
    path = tmp_path / "local.yml"
    for platform in KITCHEN.platforms:
        kitchen.write_override(KITCHEN, "unit", platform, TARGETS, path)
    path.write_text("driver: {name: docker}\n", encoding="utf-8")
    with pytest.raises(kitchen.KitchenError, match="was not written by `lab kitchen`"):
        kitchen.write_override(KITCHEN, "unit", "debian-12", TARGETS, path)
    assert path.read_text(encoding="utf-8") == "driver: {name: docker}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["local.yml"]


WRONG = {
    "lab missing": (lambda d: d.pop("lab"), "kitchen.yml: has no key 'lab'"),
    "unknown lab key": (
        lambda d: d["lab"].update(host={}),
        "kitchen.yml:lab: does not know the key 'host'; allowed: releases, hosts, suites",
    ),
    "platform without release": (
        lambda d: d["lab"]["releases"].pop("debian-13"),
        "kitchen.yml:lab:releases: has no key 'debian-13'",
    ),
    "release of no platform": (
        lambda d: d["lab"]["releases"].update({"debian-9": "stretch"}),
        "kitchen.yml:lab:releases:debian-9: is not a platform",
    ),
    "suite twice": (
        lambda d: d["suites"].append(d["suites"][0]),
        "the name 'kvm' is there twice",
    ),
    "suite without host": (
        lambda d: d["lab"]["suites"].pop("kvm"),
        "kitchen.yml:lab:suites: has no key 'kvm'",
    ),
    "host of no suite": (
        lambda d: d["lab"]["suites"].update(gone={"host": "hv1"}),
        "kitchen.yml:lab:suites:gone: is not a suite",
    ),
    "unknown host": (
        lambda d: d["lab"]["suites"]["kvm"].update(host="hv9"),
        "kitchen.yml:lab:suites:kvm:host: 'hv9' is not a host; there are: controller, hv1, hv2, hv3",
    ),
    "host name": (
        lambda d: d["lab"]["hosts"].update({"HV 1": d["lab"]["hosts"]["hv1"]}),
        "kitchen.yml:lab:hosts:HV 1: is not a host name",
    ),
    "memory": (
        lambda d: d["lab"]["hosts"]["hv1"].update(memory="1G"),
        "kitchen.yml:lab:hosts:hv1:memory: must be a whole number of at least 256",
    ),
    "cpus": (
        lambda d: d["lab"]["hosts"]["hv1"].update(cpus=True),
        "kitchen.yml:lab:hosts:hv1:cpus: must be a whole number of at least 1",
    ),
    "roles": (
        lambda d: d["lab"]["hosts"]["hv1"].update(roles=[]),
        "kitchen.yml:lab:hosts:hv1:roles: must name at least one role",
    ),
    "no controller": (
        lambda d: d["lab"]["hosts"].pop("controller"),
        "kitchen.yml:lab:hosts: exactly one host must have the role 'controller'",
    ),
    "platforms no list": (
        lambda d: d.update(platforms={"name": "x"}),
        "kitchen.yml:platforms: must be a list",
    ),
    "no verifier command": (
        lambda d: d["suites"][0]["verifier"].update(command=" "),
        "kitchen.yml:suites:kvm:verifier:command: must be a text that is not empty",
    ),
    "unbalanced verifier command": (
        lambda d: d["suites"][0]["verifier"].update(command="pytest 'x"),
        "kitchen.yml:suites:kvm:verifier:command: is not a command",
    ),
    "no pillar": (
        lambda d: d["suites"][1]["provisioner"].pop("pillars_from_files"),
        "kitchen.yml:suites:libvirt:provisioner: has no key 'pillars_from_files'",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_wrong_files_are_refused_by_name(tmp_path, change, message):
    data = copy.deepcopy(DATA)
    change(data)
    path = tmp_path / "kitchen.yml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(kitchen.KitchenError) as caught:
        kitchen.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("[]", "must be a mapping"), ("\xff", "must be a mapping")],
)
def test_files_that_are_no_kitchen_file(tmp_path, text, message):
    path = tmp_path / "kitchen.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(kitchen.KitchenError, match=message):
        kitchen.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(kitchen.KitchenError, match="there is no such file"):
        kitchen.load(tmp_path / "kitchen.yml")

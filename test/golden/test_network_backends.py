"""The files that each backend writes for a few pillars, as a reviewer sees them change.

Where the backend's own tool is installed, it reads them too; on the hosts of the suite `network` all are.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypervisor_network import model
from hypervisor_network.engine import plan
from render_harness import ROOT

from _utils import formula_schema, formula_vocabulary, network_rules

HERE = Path(__file__).resolve().parent
KNOWN = yaml.safe_load((HERE / "network_profiles.yaml").read_text())
# NetworkManager refuses interfaces of Open vSwitch.
CASES = [
    (backend, name)
    for backend in plan.BACKENDS
    for name in KNOWN["profiles"]
    if (backend, name) != ("networkmanager", "switch")
]


def rendered(backend, name):
    """Returns the files of a backend for one of the pillars."""
    profile = model.load(KNOWN["profiles"][name]).resolved(KNOWN["names"], KNOWN["macs"])
    return plan.backend_of(backend).render(profile)


@pytest.mark.parametrize("name", KNOWN["profiles"])
def test_the_pillars_are_accepted(name):
    schema = yaml.safe_load((ROOT / "network/schema.yaml").read_text())
    pillar = KNOWN["profiles"][name]
    assert formula_schema.errors(schema, pillar, "network", formula_vocabulary.load(schema)) == []
    assert network_rules.errors(pillar) == []


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_the_files_are_as_reviewed(request, backend, name):
    text = "".join(f"=== {path} {one.mode:04o}\n{one.text}" for path, one in sorted(rendered(backend, name).items()))
    path = HERE / "network-backends" / f"{backend}-{name}.txt"
    if request.config.getoption("--update-golden", default=False):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), "there is no golden file: run `make golden` and commit it"
    assert path.read_text(encoding="utf-8") == text, "run `make golden` and review the difference"


def test_no_file_is_left_over():
    assert {path.name for path in (HERE / "network-backends").iterdir()} == {f"{one}-{name}.txt" for one, name in CASES}


@pytest.mark.parametrize("backend", plan.BACKENDS)
def test_every_file_says_whose_it_is_and_ends_with_a_line(backend):
    for path, one in rendered(backend, "all").items():
        assert one.text.startswith("# Written by hypervisor-formula"), path
        assert one.text.endswith("\n"), path
        assert "None" not in one.text, path


@pytest.mark.skipif(shutil.which("ifup") is None, reason="ifupdown is not installed")
@pytest.mark.parametrize("name", KNOWN["profiles"])
def test_ifup_reads_them(tmp_path, name):
    text = "".join(one.text for _, one in sorted(rendered("ifupdown", name).items()))
    (tmp_path / "interfaces").write_text(text)
    argv = ["ifup", "--no-act", "--no-scripts", "--all", f"--interfaces={tmp_path}/interfaces"]
    subprocess.run([*argv, f"--state-dir={tmp_path}"], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("netplan") is None, reason="netplan is not installed")
@pytest.mark.parametrize("name", KNOWN["profiles"])
def test_netplan_reads_them(tmp_path, name):
    for path, one in rendered("netplan", name).items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(one.text)
        target.chmod(one.mode)
    subprocess.run(["netplan", "generate", "--root-dir", str(tmp_path)], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("nmcli") is None, reason="NetworkManager is not installed")
@pytest.mark.parametrize("name", [name for backend, name in CASES if backend == "networkmanager"])
def test_nmcli_reads_them(name):
    for one in rendered("networkmanager", name).values():
        argv = ["nmcli", "--offline", "connection", "modify", "connection.id", "same"]
        subprocess.run(argv, input=one.text, text=True, check=True, timeout=30)

"""The command line: what it takes, what it prints for people and for programs, and its exit codes."""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from lab import cli, state
from lab.lab import Lab
from lab.proc import CommandError, LabError
from lab.state import CHECKOUT, Paths


def row(number: int, kind: str, role: str) -> dict[str, Any]:
    """What a state file says of a host."""
    address = f"10.213.1.{number}"
    return {"number": number, "address": address, "kind": kind, "roles": [role], "memory_mib": 512, "cpus": 1}


ROWS = {
    "controller": row(10, "container", "controller"),
    "hv1": row(11, "vm", "hypervisor"),
    "hv2": row(12, "container", "hypervisor"),
}


def status(*, name="lab", guests=True, **down):
    """What Lab.status returns; ``hv1=False`` for a host that is stopped."""
    rows = {
        host: {"address": row["address"], "kind": row["kind"], "roles": row["roles"], "running": down.get(host, True)}
        for host, row in ROWS.items()
    }
    return {
        "name": name, "platform": "debian-12", "network": "10.213.1.0/24", "hosts": rows, "ssh_config": "/x",
        "guests": {"hv1": ["demo"], "hv2": []} if guests else {}, "checkout": "/srv", "page": {},
        "up": all(down.values()),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """No lab of this machine is seen, and none is chosen by the environment."""
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.delenv("LAB_NAME", raising=False)
    return tmp_path


@pytest.fixture
def made():
    """A lab that has been built, as far as its state file says."""
    state.save(Paths("lab"), {"index": 1, "platform": "debian-12", "hosts": ROWS, "checkout": "/srv"})


@pytest.mark.parametrize(
    ("words", "every", "single"),
    [
        ([], None, {}),
        (["vm"], "vm", {}),
        (["hv2=vm"], None, {"hv2": "vm"}),
        (["vm", "hv1=container", "hv2=container"], "vm", {"hv1": "container", "hv2": "container"}),
    ],
)
def test_kinds_of_hosts(words, every, single):
    assert cli.kinds(words) == (every, single)


@pytest.mark.parametrize("word", ["docker", "hv1=", "hv1=docker", "", "vm=hv1"])
def test_another_kind_is_refused(word):
    with pytest.raises(LabError, match=f"^--kind {word}: .* is not a kind of host; allowed: container, vm$"):
        cli.kinds([word])


@pytest.mark.parametrize("word", ["san", "san=", "san=1G", "=-1", ""])
def test_a_shared_disk_has_a_size_in_mib(word):
    with pytest.raises(LabError, match=f"^--shared-disk {word}: must be a name and MiB, such as san=1024$"):
        cli.disks([word])


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = cli.parser()._actions  # argparse has no other way to ask
    (action,) = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_command_can_be_called_and_has_a_function():
    assert set(subcommands()) == set(cli.COMMANDS)


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_fits_a_narrow_terminal_and_explains_every_word(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([*([command] if command else []), "--help"])
    assert ended.value.code == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80
    parser = subcommands()[command] if command else cli.parser()
    assert parser.description
    assert all(action.help or isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def test_the_command_of_a_host_arrives_as_it_was_given():
    options = cli.parser().parse_args(["run", "--name", "x", "hv1", "--", "ls", "-l", "--json", "a b"])
    assert (options.name, options.host, options.json) == ("x", "hv1", False)
    assert [word for word in options.argument if word != "--"] == ["ls", "-l", "--json", "a b"]


def test_the_name_of_the_lab_may_come_from_the_environment(monkeypatch):
    assert cli.parser().parse_args(["status"]).name == "lab"
    monkeypatch.setenv("LAB_NAME", "mine")
    assert cli.parser().parse_args(["status"]).name == "mine"
    assert cli.parser().parse_args(["status", "--name", "other"]).name == "other"


@pytest.mark.parametrize(
    "words", [[], ["start"], ["up", "--kinds", "vm"], ["ssh"], ["run", "hv1"], ["logs", "--lines", "x"], ["list", "a"]]
)
def test_a_wrong_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lab")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "lab: there is no lab 'lab' (labs here: none); make it with: lab up --name lab"),
        (["run", "hv1", "--", "true"], "lab: there is no lab 'lab' (labs here: none)"),
        (["sync", "--name", "x"], "lab: there is no lab 'x' (labs here: none); make it with: lab up --name x"),
        (["status", "--name", "Big_Lab"], "lab: 'Big_Lab' is not a lab's name; allowed: a letter, then up to 11"),
        (["down", "--name", "../x"], "lab: '../x' is not a lab's name"),
        (["up", "--kind", "docker"], "lab: --kind docker: 'docker' is not a kind of host; allowed: container, vm"),
    ],
)
def test_an_error_is_one_sentence(words, said, capsys):
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}'])
def test_a_damaged_state_file_is_one_sentence(content, root, capsys):
    (root / "lab").mkdir()
    (root / "lab" / "state.json").write_text(content)
    assert cli.main(["status"]) == 1
    err = capsys.readouterr().err
    assert "lab down --name lab" in err
    assert err.count("\n") == 1


def test_a_host_that_is_not_there_is_an_error_that_lists_those_that_are(made, capsys):
    assert cli.main(["run", "hv9", "--", "true"]) == 1
    assert capsys.readouterr().err == "lab: lab 'lab' has no host 'hv9'; it has: controller, hv1, hv2\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LabError("a reason"), 1, "lab: a reason\n"),
        (CommandError(["ip", "a b"], "return code 2", "line\n"), 1, "lab: ip 'a b': return code 2\nline\n"),
        (PermissionError(13, "Permission denied", "/var/x"), 1, "lab: /var/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "lab: the system: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\nlab: interrupted; run the same command again to go on\n"),
    ],
)  # fmt: skip
def test_no_error_is_a_traceback(error, code, said, monkeypatch, capsys):
    def fails(self):
        raise error

    monkeypatch.setattr(Lab, "status", fails)
    assert cli.main(["status"]) == code
    assert capsys.readouterr() == ("", said)


def test_status_for_programs_and_for_people(made, monkeypatch, capsys):
    monkeypatch.setattr(Lab, "status", lambda self: status())
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status()
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("lab 'lab': debian-12, network 10.213.1.0/24\n")
    (shown,) = [line for line in text.splitlines() if line.startswith("  hv1 ")]
    assert shown.split() == ["hv1", "10.213.1.11", "vm", "running", "hypervisor", "guests:", "demo"]


def test_status_exits_with_1_when_a_host_is_stopped(made, monkeypatch, capsys):
    monkeypatch.setattr(Lab, "status", lambda self: status(hv2=False, guests=False))
    assert cli.main(["status"]) == 1
    assert "STOPPED" in capsys.readouterr().out


def test_what_to_look_at_names_this_lab():
    text = cli.show_how(status())
    assert "lab run controller -- salt '*' test.ping\n" in text
    options = "--live --p2p --tls --persistent --undefinesource"
    assert f"lab run hv1 -- virsh migrate {options} demo qemu+tls://hv2/system" in text
    assert "--name" not in text
    lines = cli.show_how(status(name="other")).splitlines()
    assert all(" --name other" in line for line in lines if ".venv/bin/lab" in line)


def test_a_page_is_told_with_its_logins():
    assert "page" not in cli.show_how(status())
    page = {"address": "https://10.213.1.10/", "ca": "/lab/web-ca.crt", "users": {"viewer": "one", "admin": "two"}}
    text = cli.show_how(status() | {"page": page})
    assert "https://10.213.1.10/" in text
    assert "/lab/web-ca.crt" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [["viewer", "one"], ["admin", "two"]]


@pytest.mark.parametrize("did", [True, False])
def test_up_passes_on_what_was_asked_for(did, monkeypatch, capsys):
    asked: dict[str, Any] = {}

    def up(self, **options):
        asked.update(options)
        return {**status(name="x"), "did": did, "times": {}}

    monkeypatch.setattr(Lab, "up", up)
    words = [
        "up",
        "--name",
        "x",
        "--platform",
        "debian-13",
        "--kind",
        "hv1=vm",
        "--hosts",
        "controller,hv1",
        "--shared-disk",
        "san=1024",
        "--no-demo",
        "--no-page",
    ]
    assert cli.main(words) == 0
    assert asked == {
        "platform": "debian-13", "kind": None, "kinds": {"hv1": "vm"}, "only": ["controller", "hv1"],
        "highstate": True, "demo": False, "page": False, "shared_disks": {"san": 1024},
    }  # fmt: skip
    assert ("everything was up already" in capsys.readouterr().out) is not did
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["did"] is did
    assert result["seconds"] >= 0


def test_the_return_code_of_a_command_is_ours(made, monkeypatch, capsys):
    def run(self, host, argv, **options):
        assert (host, argv, options["timeout"]) == ("hv1", ["sh", "-c", "exit 7"], 5.0)
        return subprocess.CompletedProcess(argv, 7, "out\n", "err\n")

    monkeypatch.setattr("lab.hosts.Hosts.run", run)
    assert cli.main(["run", "--json", "--timeout", "5", "hv1", "--", "sh", "-c", "exit 7"]) == 7
    assert json.loads(capsys.readouterr().out) == {"returncode": 7, "stdout": "out\n", "stderr": "err\n"}


def test_labs_are_listed(made, root, capsys):
    (root / "other").mkdir()
    (root / ".networks.lock").touch()
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out == "lab\nother\n"
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["lab", "other"]


@pytest.mark.parametrize(
    ("differences", "said"),
    [([], "this machine is as it was before\n"), (["links: new: x"], "not as before the lab:\n  links: new: x\n")],
)
def test_down_says_whether_the_machine_is_as_it_was(made, differences, said, monkeypatch, capsys):
    monkeypatch.setattr(Lab, "down", lambda self: differences)
    assert cli.main(["down"]) == bool(differences)
    assert capsys.readouterr().out == f"lab 'lab' is gone\n{said}"
    assert cli.main(["down", "--json"]) == bool(differences)
    assert json.loads(capsys.readouterr().out) == {"existed": True, "differences": differences}


def test_down_of_no_lab_says_so(monkeypatch, capsys):
    monkeypatch.setattr(Lab, "down", lambda self: [])
    assert cli.main(["down", "--name", "x"]) == 0
    assert capsys.readouterr().out == "there was no lab 'x'\n"


def test_down_works_on_a_damaged_state_file(root, monkeypatch, capsys):
    (root / "lab").mkdir()
    (root / "lab" / "state.json").write_text("{")
    monkeypatch.setattr(Lab, "down", lambda self: [])
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out.startswith("lab 'lab' is gone\n")


@pytest.mark.parametrize("installed", [[], ["podman", "runc"]])
def test_deps_says_what_it_installed(installed, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("lab.machine.install_dependencies", lambda log: installed)
    assert cli.main(["deps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"installed": installed}


@pytest.mark.parametrize("command", ["deps", "prune", "down"])
def test_what_needs_root_says_so(command, made, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main([command]) == 1
    assert "needs root" in capsys.readouterr().err


def test_the_installed_program_starts():
    done = subprocess.run(
        [sys.executable, "-m", "lab.cli", "status", "--name", "nosuchlab"],
        capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT,
        env={key: value for key, value in os.environ.items() if key != "LAB_NAME"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("lab: there is no lab 'nosuchlab'")

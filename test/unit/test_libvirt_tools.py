"""What runs virsh and its kin: names, limits, and errors in the tool's own words."""

from __future__ import annotations

import sys

import pytest
from salt.exceptions import CommandExecutionError

from _utils import libvirt_tools


@pytest.fixture(name="virsh")
def fake_virsh(tmp_path, monkeypatch):
    """A virsh that knows one domain and writes its arguments down."""
    program = tmp_path / "virsh"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[4:]) + '\\n')\n"
        "verb = sys.argv[4]\n"
        "if verb == 'list': print('web\\n')\n"
        "elif verb == 'dumpxml': print('<domain/>', end='')\n"
        "else: sys.exit('error: no such thing')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "calls"


@pytest.mark.parametrize("name", ["web", "srv01.example", "a", "x" * 128, "_0", "db@2"])
def test_names(name):
    assert libvirt_tools.is_name(name)


@pytest.mark.parametrize("name", ["", "-x", "--help", "a b", "a\nb", "a\n", "../a", "a/b", "x" * 129, "é", 5, None])
def test_what_is_no_name(name):
    assert not libvirt_tools.is_name(name)


def test_definition_of_a_guest(virsh):
    assert libvirt_tools.definition("domain", "web") == "<domain/>"
    assert virsh.read_text().splitlines() == ["list --all --name", "dumpxml --inactive -- web"]


def test_no_definition_of_a_guest_that_is_not_there(virsh):
    assert libvirt_tools.definition("domain", "db") is None


def test_a_failure_says_what_the_tool_said(virsh):
    with pytest.raises(CommandExecutionError, match=r"^virsh pool-list: no such thing$"):
        libvirt_tools.names("pool")


def test_a_list_that_a_pool_has_left_is_made_again(monkeypatch):
    answers = [CommandExecutionError("virsh pool-list: error: Could not retrieve pool information"), "one\ntwo\n"]

    def virsh(*_):
        answer = answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(libvirt_tools, "virsh", virsh)
    monkeypatch.setattr(libvirt_tools, "_PAUSE", 0)
    assert libvirt_tools.names("pool") == ["one", "two"]


def test_a_list_that_pools_always_leave_is_given_up(monkeypatch):
    def virsh(*_):
        raise CommandExecutionError("virsh pool-list: error: Could not retrieve pool information")

    monkeypatch.setattr(libvirt_tools, "virsh", virsh)
    monkeypatch.setattr(libvirt_tools, "_PAUSE", 0)
    with pytest.raises(CommandExecutionError, match="objects went away under 10 attempts"):
        libvirt_tools.names("pool")


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandExecutionError, match=r"^virt-install is not installed$"):
        libvirt_tools.run(["virt-install", "--name", "secret"])


def test_a_program_that_hangs_is_ended():
    with pytest.raises(CommandExecutionError, match=r"^a tool did not end within 0 s$"):
        libvirt_tools.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2, label="a tool")


def test_input_reaches_the_program():
    assert libvirt_tools.run([sys.executable, "-c", "print(input())"], stdin="hello\n") == "hello\n"

"""The virsh that stays connected: answers, errors, quoting, and its end."""

from __future__ import annotations

import time

import pytest
from hypervisor_harness import install, written
from salt.exceptions import CommandExecutionError

from _utils import hypervisor_virsh


@pytest.fixture(name="log")
def fake_virsh(monkeypatch, tmp_path):
    log = install(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VIRSH_LOG", str(log))
    monkeypatch.setenv("VIRSH_TABLE", '{"list": "one\\ntwo", "empty": "", "hang": ""}')
    return log


def test_one_virsh_answers_many_questions(log):
    with hypervisor_virsh.session() as virsh:
        assert virsh.ask("list", "--all") == "one\ntwo"
        assert virsh.ask("empty", "x") == ""
        assert virsh.attempt("nothing") == ("", "virsh nothing: unknown command: 'nothing'")
        assert virsh.ask("list") == "one\ntwo"
    calls = written(log)
    assert calls == [
        ["--quiet", "--connect", "qemu:///system"], ["list", "--all"], ["empty", "x"], ["nothing"], ["list"],
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["a b", "a'b", 'a"b', "a\\b", "a#b", "é", "", "$x", "'", "-", "a\u00a0b"])
def test_a_word_stays_one_word(log, word):
    with hypervisor_virsh.session() as virsh:
        virsh.ask("empty", word)
    assert written(log)[1:] == [["empty", word]]


def test_a_semicolon_stays_inside_its_word(log):
    # The program of this test splits at semicolons, virsh does not: what matters is that quotes enclose it.
    assert hypervisor_virsh.quoted("a;b") == "'a;b'"
    assert hypervisor_virsh.quoted("it's; b") == "'it'\\''s; b'"


@pytest.mark.parametrize("word", ["a\nb", "a\r", "\0", "\t", "\x1b", "\x7f"])
def test_a_control_character_is_refused(log, word):
    with hypervisor_virsh.session() as virsh, pytest.raises(CommandExecutionError, match="control character"):
        virsh.ask("empty", word)
    assert [call for call in written(log) if "empty" in call] == []


def test_without_a_connection_the_reason_is_told(log):
    with (
        hypervisor_virsh.session("qemu+tls://nowhere/system") as virsh,
        pytest.raises(CommandExecutionError, match=r"^virsh list: Connection refused$"),
    ):
        virsh.ask("list")


def test_a_virsh_that_dies_is_told(log):
    with hypervisor_virsh.session() as virsh, pytest.raises(CommandExecutionError, match=r"^virsh die: gone$"):
        virsh.ask("die")


def test_a_command_that_takes_too_long_is_given_up_and_virsh_ended(log):
    began = time.monotonic()
    with hypervisor_virsh.session() as virsh:
        with pytest.raises(CommandExecutionError, match=r"virsh hang .* did not end within 1 s"):
            virsh.ask("hang", timeout=1)
        process = virsh._process
    assert process.poll() is not None
    assert time.monotonic() - began < 5


def test_what_runs_can_be_waited_for_later(log):
    with hypervisor_virsh.session() as virsh:
        virsh.begin("list")
        assert virsh.answer(5) == "one\ntwo"


def test_without_virsh_there_is_no_session(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandExecutionError, match="virsh is not installed"):
        hypervisor_virsh.session()

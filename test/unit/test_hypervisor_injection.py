"""Hostile arguments: whatever an operator sends, it is refused with one clear message, and nothing is started."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
from hypervisor_harness import install, utilities, written
from salt.exceptions import CommandExecutionError, SaltInvocationError

SEED = 20260115
TEXTS = [
    "", " ", "-", "--", "-c", "--help", "--connect=qemu+ssh://evil/system", "-web", "web ", " web", "web\n", "web\r",
    "web\nlist", "web;list", "web; destroy other", "web'", 'web"', "web\\", "web`id`", "$(id)", "${HOME}", "web|id",
    "web&",
    "web>x", "web*", "web?", "[web]", "{web}", "~root", "#web", "%s", "%n%n", "../web", "/etc/passwd", "web/../x",
    "salt://web", "file:///etc/passwd", "qemu+ssh://root@evil/system", "http://evil/", "<name>web</name>",
    "<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]>", "&lt;", "]]>", "web\0", "\0", "a\0b", "\x1b[2J", "\x7f",
    "web\u202eexe", "wéb", "\uff57\uff45\uff42", "\ud800", "\U0001f600", "web\u00a0", "web\u2028x", "x" * 129,
    "x" * 100_000,
    "{{ 1 + 1 }}", "{% raise('x') %}", "!!python/object:os.system", "web,other", "web=other", "=", "a" * 127 + "\n",
]  # fmt: skip
OTHERS: list[Any] = [5, -1, 0, 1.5, float("nan"), True, False, b"web", ["web"], [], ("web",), {"name": "web"}, {"web"}]
NUMBERS: list[Any] = ["5", "5; id", "0x5", "", "-1", 5.0, 1.5, float("inf"), True, False, -1, 10**9, 10**30, [5], {}]
FLAGS: list[Any] = ["true", "yes", "on", "", "--live", 1, 0, None, [], {}, "False\n"]
CHOICES: list[Any] = [*TEXTS, True, False, 1, [], {}, "KEEP", "keep ", "delete\n", ["delete"]]
ALPHABET = "ab-_.;'\"\\/ \n\0<&$`|*é\u202e=,:%#{}[]()!~^"

# Every argument of every function, by the kind of value that it takes.
FUNCTIONS: dict[str, dict[str, str]] = {
    "host_info": {},
    "cluster": {},
    "guests": {},
    "stats": {},
    "guest": {"name": "name"},
    "start": {"name": "name"},
    "shutdown": {"name": "name", "timeout": "number"},
    "reboot": {"name": "name"},
    "create": {"name": "name", "ensure": "ensure"},
    "power_off": {"name": "name"},
    "suspend": {"name": "name"},
    "resume": {"name": "name"},
    "resize": {"name": "name", "cpu": "number", "mem": "number"},
    "delete": {"name": "name", "disks": "choice"},
    "migrate": {"name": "name", "target": "minion", "copy_disks": "flag", "timeout": "number", "test": "flag"},
    "cancel": {"name": "name"},
}
GOOD = {"ensure": "running", "name": "web", "minion": "hv2", "number": 5, "choice": "keep", "flag": False}


def random_texts(count: int) -> list[str]:
    """Texts that no allow-list lets through: each has at least one character that must not be there."""
    chance = random.Random(SEED)  # noqa: S311 - the same texts in every run
    return [
        "".join(chance.choices(ALPHABET, k=chance.randint(1, 30))) + chance.choice(";\n '\"<$`/é") for _ in range(count)
    ]


def hostile(kind: str) -> list[Any]:
    """The values that an argument of a kind is tried with."""
    if kind in {"name", "minion"}:
        # Some of them are names, but no minion ids, or the other way round.
        texts = [text for text in TEXTS if kind == "name" or len(text) != 129]
        return [*texts, *OTHERS, None, *random_texts(20)]
    return {"number": NUMBERS, "flag": FLAGS, "choice": CHOICES, "ensure": CHOICES}[kind] + random_texts(5)


CASES = [
    (function, argument, value)
    for function, arguments in FUNCTIONS.items()
    for argument, kind in arguments.items()
    for value in hostile(kind)
]


def unknown_keys(formula, definition, declaration, where):
    """What the schema says of keys that it does not know; test_hypervisor_create.py has the schema itself."""
    return [f"there is no argument {key!a:.60}" for key in declaration]


@pytest.fixture(name="module")
def loaded(monkeypatch, tmp_path):
    """The module as Salt loads it, on a host whose virsh only writes down that it was called."""
    log = install(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VIRSH_LOG", str(log))
    module = importlib.import_module("_modules.hypervisor")
    configured: list[str] = []

    def config(formula):
        configured.append(formula)
        return {"tls": {"allowed_hosts": ["hv1", "hv2"]}, "qemu_conf": {}}

    values = {
        "__utils__": utilities(),
        "__salt__": {"formula.config": config, "formula.judge": unknown_keys},
        "__opts__": {"id": "hv1"},
        "__context__": {},
    }
    for name, value in values.items():
        monkeypatch.setattr(module, name, value, raising=False)
    return module, log, configured


def refused(module, function, *args, **kwargs):
    """Call a function that must refuse; return the message, which is one short line of plain text."""
    with pytest.raises((SaltInvocationError, CommandExecutionError)) as caught:
        getattr(module, function)(*args, **kwargs)
    message = str(caught.value)
    assert message.isascii(), message
    assert "\n" not in message.removeprefix("nothing was made:\n")
    assert len(message) < 300
    return message


@pytest.mark.parametrize("function", FUNCTIONS)
def test_hostile_values_start_nothing(module, function):
    loaded, log, configured = module
    cases = [case for case in CASES if case[0] == function]
    for _, argument, value in cases:
        arguments = {name: GOOD[kind] for name, kind in FUNCTIONS[function].items()} | {argument: value}
        assert argument in refused(loaded, function, **arguments), (argument, value)
        # The same by position, as salt-api's "arg" sends it.
        refused(loaded, function, *arguments.values())
    assert written(log) == []
    assert configured == []


def test_there_are_a_few_hundred_of_them():
    assert len(CASES) > 1000
    assert {case[0] for case in CASES} == {function for function, arguments in FUNCTIONS.items() if arguments}


def test_every_function_is_tried():
    module = importlib.import_module("_modules.hypervisor")
    public = {name for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    assert public - {"Any", "CommandExecutionError", "SaltInvocationError"} == set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "extra",
    [
        {"--force": True}, {"force": True}, {"__pub_": 1}, {"__pub_User": 1}, {"__pub_x y": 1}, {"__user__": "root"},
        {"\n": 1}, {"saltenv": "base"}, {"uri": "qemu+ssh://evil/system"}, {"é": 1}, {"x" * 10_000: 1}, {"kwargs": {}},
    ],
    ids=repr,
)  # fmt: skip
def test_unknown_arguments_are_refused(module, function, extra):
    loaded, log, _ = module
    arguments = {name: GOOD[kind] for name, kind in FUNCTIONS[function].items()}
    assert "there is no argument" in refused(loaded, function, **arguments, **extra)
    assert written(log) == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_argument_too_many_is_refused(module, function):
    loaded, log, _ = module
    arguments = [GOOD[kind] for kind in FUNCTIONS[function].values()]
    assert "too many" in refused(loaded, function, *arguments, "--force")
    assert written(log) == []


@pytest.mark.parametrize("function", [name for name, arguments in FUNCTIONS.items() if "name" in arguments])
def test_a_missing_name_is_refused(module, function):
    loaded, log, _ = module
    assert refused(loaded, function).startswith("name: None")
    assert written(log) == []


def test_what_salt_adds_to_a_job_is_let_through(module, monkeypatch):
    loaded, log, _ = module
    added = {"__pub_user": "root", "__pub_jid": "1", "__pub_fun": "hypervisor.stats", "__pub_tgt_type": "glob"}
    monkeypatch.setenv("VIRSH_TABLE", '{"list": "", "domstats": ""}')
    assert loaded.stats(**added)["guests"] == []
    assert written(log)[0][0] == "--quiet"


def test_a_good_name_reaches_virsh_as_one_word_and_only_as_the_uuid(module, monkeypatch):
    loaded, log, _ = module
    uuid = "92ff2d92-61e2-492a-a5f8-bd711528baf2"
    # A guest named like a number: virsh would take it for the number of another guest.
    monkeypatch.setenv("VIRSH_TABLE", f'{{"list": "{uuid} 7", "domstate": "running"}}')
    assert loaded.start("7")["changed"] is False
    assert [words for words in written(log) if "7" in words] == []
    assert ["domstate", uuid] in written(log)


def test_neither_target_nor_guest_can_be_another_uri(module):
    loaded, log, _ = module
    message = refused(loaded, "migrate", "web", "hv2/system?command=/bin/sh")
    assert "minion id" in message
    assert written(log) == []

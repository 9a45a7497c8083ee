"""Logins of operators at the master: a password is good in a seal alone, and against the hash of pillar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import master_code
import pytest

login = master_code.load("auth", "hypervisor")
PASSWORD = "correct horse: battery"


def hashed(password: str) -> str:
    argv = ["openssl", "passwd", "-6", "-salt", "saltsaltsalt", "-stdin"]
    return subprocess.run(argv, input=password, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@pytest.fixture
def master(tmp_path, monkeypatch):
    """A master with alice's hash and a local key; PAM and LDAP note what they are asked."""
    (tmp_path / ".salt_key").write_text("local key")
    (tmp_path / "users").write_text(f"# Written by Salt.\nalice:{hashed(PASSWORD)}\nempty:\n")
    settings: dict[str, Any] = {"hashes": str(tmp_path / "users"), "backends": ["file"], "pam_service": "login"}
    opts = {"cachedir": str(tmp_path), "user": "salt", "hypervisor_api": settings}
    monkeypatch.setattr(login, "__opts__", opts, raising=False)
    asked: list[tuple[str, str, str]] = []

    def backend(name: str, verdict: bool) -> Any:
        def check(username: str, password: str) -> bool:
            asked.append((name, username, password))
            return verdict

        return check

    monkeypatch.setattr(login, "_pam", backend("pam", verdict=False))
    monkeypatch.setattr(login, "_ldap", backend("ldap", verdict=True))
    settings["asked"] = asked
    return settings


def test_the_right_password_in_a_seal(master):
    assert login.auth("alice", login.seal("alice", PASSWORD)) is True
    assert login.auth("alice", login.seal("alice", PASSWORD + "x")) is False
    assert login.groups("alice") == []


@pytest.mark.parametrize(
    "sealed", [PASSWORD, f":{PASSWORD}", f"{'0' * 64}:{PASSWORD}", "", ":", None, 1, ["x"], {"a": 1}]
)
def test_a_password_without_a_seal_is_worth_nothing(master, sealed):
    """The master's own port takes logins from everywhere, and lists of functions with them."""
    assert login.auth("alice", sealed) is False


def test_a_seal_is_for_one_name_and_one_password(master):
    other = login.seal("bob", PASSWORD)
    assert login.auth("alice", other) is False
    digest = login.seal("alice", "x").partition(":")[0]
    assert login.auth("alice", f"{digest}:{PASSWORD}") is False


@pytest.mark.parametrize(
    "name",
    ["alic.", "al.*", ".*", "*", "alice\n", "Alice", " alice", "alice%", "", "-alice", "a" * 33, "root;id", "ålice"],
)
def test_names_that_salt_would_take_for_a_pattern(master, name):
    master["backends"] = ["file", "ldap"]
    assert login.auth(name, login.seal(name, PASSWORD)) is False
    assert master["asked"] == []


@pytest.mark.parametrize("name", ["root", "sudo_alice", "sudo_", "salt"])
def test_whoever_owns_the_master_is_no_operator(master, name):
    """Salt trusts these names; a directory may have a user called so, and even the right password opens nothing."""
    master["backends"] = ["file", "pam", "ldap"]
    Path(master["hashes"]).write_text(f"{name}:{hashed(PASSWORD)}\n")
    assert login.auth(name, login.seal(name, PASSWORD)) is False
    Path(master["hashes"]).write_text("")
    assert login.auth(name, login.seal(name, PASSWORD)) is False
    assert master["asked"] == []
    # A name that only resembles it is anybody's.
    assert login.auth(f"x{name}", login.seal(f"x{name}", PASSWORD)) is True


@pytest.mark.parametrize("password", ["", "x" * 513, "a\0b"])
def test_passwords_that_are_none(master, password):
    master["backends"] = ["ldap"]
    assert login.auth("bob", login.seal("bob", password)) is False
    assert master["asked"] == []


def test_a_user_with_a_hash_is_asked_of_nobody_else(master):
    master["backends"] = ["file", "pam", "ldap"]
    assert login.auth("alice", login.seal("alice", "wrong")) is False
    assert login.auth("empty", login.seal("empty", "wrong")) is False
    assert master["asked"] == []
    assert login.auth("bob", login.seal("bob", "x")) is True
    assert master["asked"] == [("pam", "bob", "x"), ("ldap", "bob", "x")]
    master["backends"] = ["pam", "ldap"]
    assert login.auth("alice", login.seal("alice", "x")) is True


def test_hashes_of_both_kinds(master):
    made = login._crypted
    assert made(PASSWORD, hashed(PASSWORD))
    # The setting that mkpasswd makes for yescrypt.
    yescrypt = "$y$j9T$Jw5xK5xKpNGZUl0eTxFl0/$"
    known = subprocess.run(
        [sys.executable, "-c", CRYPT, PASSWORD, yescrypt], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    assert known.startswith(yescrypt)
    assert made(PASSWORD, known)
    assert not made("x", known)
    for broken in ("", "*", "!", "x", "$6$", "$9$a$b"):
        assert not made(PASSWORD, broken), broken


# Another way to the same library: crypt() instead of crypt_r().
CRYPT = """
import ctypes, sys
for name in ("libcrypt.so.2", "libcrypt.so.1"):
    try:
        crypt = ctypes.CDLL(name).crypt
    except OSError:
        continue
    crypt.restype = ctypes.c_char_p
    print(crypt(sys.argv[1].encode(), sys.argv[2].encode()).decode())
    break
"""


def test_pam_is_asked_in_the_python_that_has_salt(tmp_path, monkeypatch):
    """And learns the password from its environment, which only its user can read, never from its arguments."""
    program = tmp_path / "pam.py"
    program.write_text(
        "import os, sys\n"
        "sys.exit([os.environ['SALT_PAM_USERNAME'], os.environ['SALT_PAM_PASSWORD'], os.environ['SALT_PAM_SERVICE'],"
        " len(sys.argv)] != ['bob', 'pw', 'sshd', 1])\n"
    )
    monkeypatch.setattr(login.salt.auth.pam, "__file__", str(program))
    monkeypatch.setattr(login, "__opts__", {"hypervisor_api": {"pam_service": "sshd"}}, raising=False)
    assert login._pam("bob", "pw") is True
    assert login._pam("bob", "other") is False
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(login, "_PATIENCE", 0.5)
    assert login._pam("bob", "pw") is False


def test_groups_of_the_system_and_of_the_directory(master, monkeypatch):
    monkeypatch.setattr(login, "_of_salt", lambda name: lambda username, password: [name, username, password])
    master["backends"] = ["pam"]
    assert "root" in login.groups("root")
    assert login.groups("no-such-user") == []
    master["backends"] = ["ldap"]
    assert login.groups("bob", login.seal("bob", "pw")) == ["bob", "ldap.groups", "pw"]
    assert login.groups("bob", "pw") == []


def test_the_key_is_the_masters(master, tmp_path):
    sealed = login.seal("alice", PASSWORD)
    Path(tmp_path / ".salt_key").write_text("after a restart")
    assert login.auth("alice", sealed) is False

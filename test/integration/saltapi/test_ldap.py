"""Operators of a directory: slapd says who they are and what groups they have, the pillar what they may do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import directory
import pytest
import yaml
from saltapi_client import Api

from lab import salt

pytestmark = [
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="installs what the lab has at hand"),
    pytest.mark.long,
]
SUITE = Path(__file__).with_name("pillar.sls")
HOLDING = ["/etc/salt/master.d/hypervisor-api.conf", "/var/cache/salt/master/pillar/controller.p"]
MINION = "/var/cache/salt/minion"
HELD = f"{directory.FOLDER}/known"
UNIT = "hypervisor-formula-salt-restart.service"
OVER = {
    "backends": ["file", "ldap"],
    "ldap": directory.SETTINGS,
    "users": {"lena": {"roles": {"operator": ["hv1"]}}},
    "groups": {"lookers": {"roles": {"viewer": ["hv2"]}}},
}


def settled(lab, controller):
    """Wait until Salt's daemons have restarted, and answer."""
    deadline = time.monotonic() + 120
    while "inactive" not in lab.run(controller, ["systemctl", "is-active", UNIT], check=False).stdout or (
        ":8000" not in lab.run(controller, ["ss", "-Hltn"]).stdout
    ):
        assert time.monotonic() < deadline, "salt-api did not come back"
        time.sleep(0.5)
    salt.wait_answering(lab.hosts)


@pytest.fixture(scope="module")
def people(api, lab):
    """salt-api that asks a directory, and a client that knows none of the other tests' logins."""
    controller = lab.hosts.controller
    name = f"{controller}.sls"
    suite = salt.merged_yaml(salt.pillar_files(lab.hosts)[name], yaml.safe_load(SUITE.read_text()))
    try:
        directory.begun(lab, controller)
        salt.merge_pillar(lab.hosts, {name: salt.merged_yaml(suite, {"saltapi": OVER})})
        done = salt.check_green(salt.highstate(lab.hosts, [controller]))[controller]
        assert "saltapi_master" in done["changed"]
        settled(lab, controller)
        yield Api(api.host)
    finally:
        salt.merge_pillar(lab.hosts, {name: suite})
        salt.check_green(salt.highstate(lab.hosts, [controller]))
        settled(lab, controller)
        # A token is a session of salt-api, which ends with it.
        api.tokens.clear()
        directory.ended(lab, controller)


def token(people, user):
    answer = people.login(user, directory.PASSWORDS[user])
    assert answer.status == 200, answer
    people.tokens[user] = answer.value["token"]


def test_a_password_of_the_directory_lets_its_user_in(people):
    token(people, "lena")
    assert people.run("lena", "hypervisor.guests", "hv1").status == 200
    assert people.run("lena", "hypervisor.guests", "hv2").status == 403
    assert people.run("lena", "hypervisor.delete", "hv1", "x").status == 403


def test_a_group_of_the_directory_gives_its_role(people):
    token(people, "mona")
    assert people.run("mona", "hypervisor.guests", "hv2").status == 200
    assert people.run("mona", "hypervisor.start", "hv2", "x").status == 403
    assert people.run("mona", "hypervisor.guests", "hv1").status == 403


@pytest.mark.parametrize(
    ("user", "password"),
    [("lena", directory.PASSWORDS["mona"]), ("lena", " "), ("lena", "*"), ("*", directory.PASSWORDS["lena"]),
     ("len*", directory.PASSWORDS["lena"]), ("lena)(uid=*", directory.PASSWORDS["lena"]), ("nobody", "x"),
     ("searcher", directory.SEARCHING)],
)  # fmt: skip
def test_nobody_else_gets_in(people, user, password):
    assert people.login(user, password).status == 401


def test_a_user_with_a_hash_is_not_asked_of_the_directory(people):
    assert people.login("vera").status == 200
    assert people.login("vera", "x").status == 401


def test_no_file_or_log_holds_a_password(people, lab):
    """But for the one that the master searches with: in its own file, and in Salt's copy of the pillar."""
    controller = lab.hosts.controller
    places = ["/var/log/salt", "/etc/salt", "/var/cache/salt/master"]
    users = list(directory.PASSWORDS.values())
    lab.run(controller, ["ls", "-d", *places, MINION])
    # The same search has to find each of them where it is known to be.
    lab.run(controller, ["tee", HELD], stdin="\n".join([*users, directory.SEARCHING]))
    for secret in (*users, directory.SEARCHING):
        # The minion has its own copy of what it was told to write.
        known, where = (HOLDING, places) if secret == directory.SEARCHING else ([], [*places, MINION])
        done = lab.run(controller, ["env", "LC_ALL=C", "grep", "-rlF", f"--regexp={secret}", *where, HELD], check=False)
        assert sorted(done.stdout.split()) == sorted([*known, HELD])
        # Salt removes files of its cache at any time; whatever else could not be read was not searched.
        missed = [line for line in done.stderr.splitlines() if not line.endswith("No such file or directory")]
        assert (done.returncode in {0, 2}, missed) == (True, [])
    journal = lab.run(controller, ["journalctl", "--no-pager", "-u", "salt-api", "-u", "salt-master"]).stdout
    # Without any entries it says so, in one line.
    assert len(journal.splitlines()) > 2
    assert not [one for one in (*users, directory.SEARCHING) if one in journal]


def test_a_directory_that_is_away_keeps_out_its_own_users_alone(people, lab):
    directory.stop(lab, lab.hosts.controller)
    try:
        began = time.monotonic()
        assert people.login("lena", directory.PASSWORDS["lena"]).status == 401
        assert time.monotonic() - began < 60
        assert people.login("vera").status == 200
    finally:
        directory.start(lab, lab.hosts.controller)
    token(people, "lena")

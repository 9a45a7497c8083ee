"""A controller after saltapi/: who gets in, by which door, and what is there besides. Test Kitchen runs this too."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from saltapi_client import PASSWORDS, PORT, request

PYTHON = "/opt/saltstack/salt/bin/python"
GUESTS = {"client": "local", "tgt": "hv1", "fun": "hypervisor.guests"}
# Runs on the host: asks the master's own port, as a program anywhere in the network could that knows a password.
AT_THE_MASTER = """
import json, sys
import salt.channel.client, salt.config
user, password, functions, arguments = json.load(sys.stdin)
options = salt.config.client_config("/etc/salt/master")
options.update(master_uri="tcp://127.0.0.1:4506", id="elsewhere")
channel = salt.channel.client.ReqChannel.factory(options, crypt="clear")
login = {"username": user, "password": password, "eauth": "hypervisor"}
load = {"cmd": "publish", "tgt": "*", "tgt_type": "glob", "fun": functions, "arg": arguments, "ret": "", "jid": "",
        "user": user, "kwargs": login}
print(json.dumps([channel.send(load, timeout=30), channel.send({"cmd": "mk_token", **login}, timeout=30)]))
"""


@pytest.fixture(scope="module")
def master(api):
    """The host, as testinfra sees it."""
    return api.host


def test_it_listens_on_loopback_alone(master):
    printed = master.check_output("ss -Hltn sport = :%s", str(PORT))
    assert [line.split()[3] for line in printed.splitlines()] == [f"127.0.0.1:{PORT}"]
    unit = master.service("salt-api")
    assert (unit.is_running, unit.is_enabled) == (True, True)
    shown = master.check_output("systemctl show salt-api -p NoNewPrivileges -p ProtectSystem -p ProtectHome")
    assert set(shown.split()) == {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes"}


@pytest.mark.parametrize("path", ["/etc/salt/hypervisor-api.users", "/etc/salt/master.d/hypervisor-api.conf"])
def test_its_files_are_closed(master, path):
    file = master.file(path)
    assert (file.mode, file.user) == (0o400, "root")
    assert not any(password in file.content_string for password in PASSWORDS.values())


def test_salt_knows_named_functions_alone(master):
    text = master.file("/etc/salt/master.d/hypervisor-api.conf").content_string
    external = yaml.safe_load(text)["external_auth"]
    assert set(external) == {"hypervisor"}
    people = external["hypervisor"]
    assert set(people) >= set(PASSWORDS)
    # A function that stands alone, without hosts, would be allowed on all of them: it has no items.
    rows = [row for given in people.values() for entry in given for row in entry.items()]
    assert len([one for _, functions in rows for one in functions]) > 20
    for target, functions in rows:
        # Hosts by their names, and of the master's own the runner alone.
        assert target == "@runner" or re.fullmatch(r"L@[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*", target), target
        # Nor is there a text, of which Salt takes each letter, or nothing.
        assert isinstance(functions, list)
        of = "fleet" if target == "@runner" else "(hypervisor|wsproxy)"
        assert functions
        assert not [one for one in functions if not re.fullmatch(rf"\^{of}\\\.[a-z_]+\$", one)]


@pytest.mark.parametrize("user", PASSWORDS)
def test_everybody_with_a_password_gets_a_token_and_no_cookie(api, user):
    answer = api.login(user)
    assert answer.status == 200
    assert answer.value["user"] == user
    assert not {name.lower() for name in answer.headers} & {"set-cookie", "access-control-allow-origin"}


@pytest.mark.parametrize(
    ("user", "password"),
    [("vera", "work-4pQ9"), ("vera", " "), ("nobody", "x"), ("root", "x"), ("ver.", "look-7hK2"), ("*", "look-7hK2")],
)
def test_nobody_else_gets_in(api, user, password):
    assert api.login(user, password).status == 401


def test_a_cookie_or_a_form_of_a_foreign_page_runs_nothing(api):
    token = api.token("anna")
    form = "client=local&tgt=hv1&fun=hypervisor.guests"
    origin = "https://elsewhere.example"
    found = api.ask(
        request("/run", GUESTS, Cookie=f"session_id={token}", Origin=origin),
        request("/run", form, Cookie=f"session_id={token}", Origin=origin, Content_Type="text/plain"),
        request("/run", form, token, Content_Type="application/x-www-form-urlencoded"),
        request("/run", GUESTS, "0" * 40),
        request("/run", GUESTS),
    )
    assert [one.status for one in found] == [401, 415, 415, 401, 401]
    assert not [name for one in found for name in one.headers if name.lower().startswith("access-control")]


def test_a_body_that_is_too_large_is_refused(api):
    (answer,) = api.ask(request("/run", json.dumps(GUESTS) + " " * 70000, api.token("anna")))
    assert answer.status == 413


def test_other_paths_are_not_there(api):
    token = api.token("anna")
    paths = ["/", "/events", "/ws", "/hook", "/keys", "/jobs", "/minions", "/stats", "/token", "/app"]
    assert {one.status for one in api.ask(*[request(path, GUESTS, token) for path in paths])} == {404}


def test_what_salt_would_let_pass_ends_at_the_door(api):
    token = api.token("anna")
    bodies = [
        GUESTS | {"fun": ["hypervisor.guests", "cmd.run"], "arg": [[], ["touch /run/intruder"]]},
        GUESTS | {"fun": ["saltutil.find_job", "cmd.run"], "arg": [["1"], ["touch /run/intruder"]]},
        GUESTS | {"fun": "saltutil.find_job"}, GUESTS | {"fun": "test.ping"}, GUESTS | {"tgt": "*"},
        GUESTS | {"tgt_type": "compound", "tgt": "hv1 or *"}, GUESTS | {"client": "runner", "fun": "manage.up"},
        GUESTS | {"client": "wheel", "fun": "key.list_all"}, GUESTS | {"ret": "local"},
        GUESTS | {"client": "runner_async"}, GUESTS | {"client": "runner_async", "fun": "manage.up"},
        {"client": "runner_async", "fun": "fleet.hosts"}, {"client": "runner_async", "fun": "salt.cmd", "kwarg": {}},
        {"client": "runner_async", "fun": "fleet.migrate", "arg": ["web"]},
        {"client": "runner_async", "fun": "fleet.migrate", "kwarg": {"name": "web", "target": "*"}},
        {"client": "runner_async", "fun": "fleet.migrate", "kwarg": {"__user__": "root"}},
        GUESTS | {"kwarg": {"__pub_user": "root"}}, GUESTS | {"arg": ["__pub_user=root"]},
    ]  # fmt: skip
    found = api.ask(*[request("/run", body, token) for body in bodies])
    assert [one.status for one in found] == [400] * len(bodies)
    assert not [one.text for one in found if "Traceback" in one.text]


@pytest.mark.parametrize("user", ["noone", "anna"])
def test_a_password_is_worth_nothing_at_the_masters_own_port(api, master, user):
    """Salt allows a list of functions if it allows one of them, and that one to everybody."""
    sent = [user, PASSWORDS[user], ["saltutil.find_job", "cmd.run"], [["1"], ["touch /run/intruder"]]]
    done = master.run("printf %s %s | %s -c %s", "%s", json.dumps(sent), PYTHON, AT_THE_MASTER)
    published, token = json.loads(done.stdout.strip().splitlines()[-1])
    assert published == {"error": {"name": "AuthenticationError", "message": "Authentication error occurred."}}
    assert not token
    assert not master.file("/run/intruder").exists


def test_an_end_of_the_login_ends_the_token(api):
    token = api.login("anna").value["token"]
    found = api.ask(request("/logout", {}, token), request("/run", GUESTS, token))
    assert [one.status for one in found] == [200, 401]

"""Roles become Salt's own lists of who may call what: named functions, named hosts, and nothing wholesale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.config import master_config
from salt.utils.minions import CkMinions

from _utils import formula_config, formula_schema, formula_vocabulary, saltapi_plan, saltapi_rules

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    f"{name}.yaml": yaml.safe_load((ROOT / "saltapi" / f"{name}.yaml").read_text())
    for name in ("defaults", "osmap", "schema")
}
ROLES = DATA["defaults.yaml"]["roles"]
EXPOSED = sorted({function for functions in ROLES.values() for function in functions})
RUNNERS = [function for function in EXPOSED if function.startswith("fleet.")]
HASH = "$6$saltsaltsalt$" + "a" * 86
SETTINGS = {key: DATA["defaults.yaml"][key] for key in (
    "backends", "pam", "ldap", "port", "threads", "queue", "max_body", "token_expire", "reads", "audit", "inventory",
)}  # fmt: skip


def refusals(pillar: dict[str, Any]) -> str:
    """What is wrong with a pillar, as it is told."""
    host = {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-12"}
    merged, errors = formula_config.assemble(
        "saltapi", DATA, host, pillar, formula_vocabulary.load, formula_schema.errors
    )
    found = [str(error) for error in errors] or [f"{path}: {text}" for path, text in saltapi_rules.errors(merged)]
    return "\n".join(found)


def test_a_good_pillar():
    users = {"alice": {"password_hash": HASH, "roles": {"admin": ["hv1", "hv2.example.org"]}}, "bob": {}}
    assert refusals({"users": {"alice": users["alice"]}}) == ""
    assert (
        refusals({"users": users, "groups": {"staff": {"roles": {"viewer": ["hv1"]}}}, "backends": ["file", "pam"]})
        == ""
    )


@pytest.mark.parametrize(
    "function",
    [".*", "*", "virt.*", "virt.start", "state.*", "state.apply", "cmd.*", "cmd.run", "grains.*", "@wheel", "@runner",
     "@runners", "@jobs", "fleet.*", "fleet", "fleet.cluster", "runner.fleet.migrate", "manage.up",
     "hypervisor.*", "hypervisor", "hypervisor..*", "hypervisor.start|cmd.run",
     "saltutil.find_job",
     "^hypervisor.start$", "hypervisor.start\n", "", {"hv1": ["cmd.run"]}, ["cmd.run"], 1, None],
)  # fmt: skip
def test_nothing_wholesale_and_nothing_unknown_in_a_role(function):
    assert "saltapi:roles:viewer:0" in refusals({"roles": {"viewer": [function]}})


@pytest.mark.parametrize(
    "host", ["*", "hv*", "hv?", "hv[12]", "hv1,hv2", "hv1 or *", "L@hv1", "G@os:Debian", "@runner", "", "hv1\n"]
)
def test_hosts_are_named_one_by_one(host):
    assert "saltapi:users:alice:roles:viewer:0" in refusals(
        {"users": {"alice": {"password_hash": HASH, "roles": {"viewer": [host]}}}}
    )


@pytest.mark.parametrize("name", ["*", "al.ce", "a|b", "alice%", "Alice", "", "al ice", "^alice$"])
def test_names_mean_nothing_as_a_pattern(name):
    assert "saltapi:users" in refusals({"users": {name: {"password_hash": HASH}}})
    assert "saltapi:groups" in refusals({"groups": {name: {}}, "backends": ["pam"]})


@pytest.mark.parametrize(
    "text", ["hunter2", "$1$abcdefgh$0123456789012345678901", "$6$short", HASH + "\n", "x:" + HASH, "!", ""]
)
def test_a_plain_password_is_refused_and_not_shown(text):
    said = refusals({"users": {"alice": {"password_hash": text}}})
    assert "saltapi:users:alice:password_hash" in said
    assert "openssl passwd -6" in said
    assert text not in said or not text


@pytest.mark.parametrize(
    ("pillar", "words"),
    [
        ({"users": {"alice": {}}}, "users:alice:password_hash: missing"),
        ({"users": {"alice": {"password_hash": HASH}}, "backends": ["pam"]}, "checked by nothing"),
        ({"users": {"alice": {"password_hash": HASH, "roles": {"root": ["hv1"]}}}}, "allowed: admin, operator, viewer"),
        ({"groups": {"staff": {}}}, "the backend file knows no groups"),
        ({"backends": ["ldap"]}, "ldap:uri: missing"),
        ({"backends": ["ldap"], "ldap": {"uri": "ldap://x", "basedn": "dc=x"}}, "in the clear"),
        ({"port": 443}, "saltapi:port"),
    ],
)
def test_what_does_not_fit_is_told_by_name(pillar, words):
    assert words in refusals(pillar)


def test_patterns_match_their_function_and_nothing_else():
    for function in EXPOSED:
        expression = saltapi_plan.pattern(function)
        matched = [other for other in [*EXPOSED, f"{function}_all", f"x{function}"] if re.match(expression, other)]
        assert matched == [function]
        assert not re.match(expression, function.replace(".", "x"))


@pytest.fixture(scope="module")
def salts_judgement(tmp_path_factory):
    """Salt's own judgement of who may call what, on a master with two hosts."""
    work = tmp_path_factory.mktemp("master")
    (work / "minions").mkdir()
    for minion in ("hv1", "hv2", "web"):
        (work / "minions" / minion).write_text("key")
    opts = master_config(None)
    opts.update({"pki_dir": str(work), "cachedir": str(work / "cache")})
    judge = CkMinions(opts)

    def allowed(user: str, given: dict[str, Any], function: str, hosts: list[str]) -> bool:
        who = saltapi_plan.master(({"alice": given, "bob": {}}, {}), ROLES, SETTINGS, "/code", "/hashes")
        found = judge.fill_auth_list(who["external_auth"]["hypervisor"], user, [])
        return bool(judge.auth_check(found, function, [], hosts, "list", minions=hosts))

    def allowed_at_the_runner(user: str, given: dict[str, Any], function: str) -> bool:
        who = saltapi_plan.master(({"alice": given, "bob": {}}, {}), ROLES, SETTINGS, "/code", "/hashes")
        found = judge.fill_auth_list(who["external_auth"]["hypervisor"], user, [])
        return judge.runner_check(found, function, {"arg": [], "kwarg": {"name": "web"}}) is True

    allowed.runner = allowed_at_the_runner  # type: ignore[attr-defined]
    return allowed


@pytest.mark.parametrize("role", ROLES)
def test_the_matrix_as_salt_judges_it(salts_judgement, role):
    given = {role: ["hv1", "hv2"]}
    others = ["cmd.run", "state.apply", "test.ping", "hypervisor.guests_all", "xhypervisor.guests"]
    for function in [*EXPOSED, *others, "fleet.hosts", "fleet.migrate_all", "manage.up", "salt.cmd"]:
        for hosts, listed in (["hv1"], True), (["hv1", "hv2"], True), (["web"], False), (["hv1", "web"], False):
            expected = listed and function in ROLES[role] and function not in RUNNERS
            assert salts_judgement("alice", given, function, hosts) is expected, (role, function, hosts)
            assert salts_judgement("bob", given, function, hosts) is False
            assert salts_judgement("carol", given, function, hosts) is False
        # The runner: named functions alone, and nothing of what hosts have.
        expected = function in RUNNERS and function in ROLES[role]
        assert salts_judgement.runner("alice", given, function) is expected
        assert salts_judgement.runner("bob", given, function) is False
        assert salts_judgement.runner("carol", given, function) is False


def test_each_role_does_more_than_the_one_before():
    assert set(ROLES["viewer"]) < set(ROLES["operator"]) < set(ROLES["admin"]) == set(EXPOSED)
    texts = {module: (ROOT / f"_modules/{module}.py").read_text() for module in ("hypervisor", "wsproxy")}
    pattern = re.compile(r"^def ([a-z]\w*?)_?\(", re.MULTILINE)
    there = {f"{module}.{name}" for module, text in texts.items() for name in pattern.findall(text)}
    assert there == set(EXPOSED) - set(RUNNERS)
    text = (ROOT / "_runners/fleet.py").read_text()
    looks = {"fleet.hosts", "fleet.guests", "fleet.cluster"}
    assert {f"fleet.{name}" for name in re.findall(r"^def ([a-z]\w*)\(", text, re.MULTILINE)} == set(RUNNERS) | looks


def test_the_drop_in_is_closed_but_for_what_is_named():
    people = ({"alice": {"viewer": ["hv1"], "nothing": ["hv2"]}}, {"staff": {"operator": ["hv1", "hv2"]}})
    roles = {**ROLES, "nothing": []}
    found = saltapi_plan.master(people, roles, {**SETTINGS, "ldap": {"uri": "ldaps://x"}}, "/code", "/hashes")
    assert found["netapi_enable_clients"] == ["local", "local_async", "runner_async"]
    assert found["on_demand_ext_pillar"] == []
    assert found["minimum_auth_version"] == 3
    assert found["hypervisor_api"]["host"] == "127.0.0.1"
    # What no user's role has, the door does not know.
    local = [one for one in ROLES["operator"] if one not in RUNNERS]
    runners = sorted(set(ROLES["operator"]) - set(local))
    assert found["hypervisor_api"]["functions"] == sorted(local)
    assert found["hypervisor_api"]["runners"] == runners
    hosts = {one: ["hv1", "hv2"] for one in runners}
    assert found["hypervisor_api"]["fleet"] == {"users": {}, "groups": {"staff": hosts}}
    assert found["auth.ldap.uri"] == "ldaps://x"
    assert list(found["external_auth"]) == ["hypervisor"]
    assert found["external_auth"]["hypervisor"] == {
        "alice": [{"L@hv1": [saltapi_plan.pattern(one) for one in ROLES["viewer"]]}],
        "staff%": [
            {"L@hv1,hv2": [saltapi_plan.pattern(one) for one in local]},
            {"@runner": [saltapi_plan.pattern(one) for one in runners]},
        ],
    }


def test_the_runner_is_closed_where_no_role_names_it():
    found = saltapi_plan.master(({"alice": {"viewer": ["hv1"]}}, {}), ROLES, SETTINGS, "/code", "/hashes")
    assert found["netapi_enable_clients"] == ["local", "local_async"]
    assert found["hypervisor_api"]["runners"] == []
    assert "@runner" not in str(found)


def test_hosts_of_several_roles_are_put_together_for_each_function_of_the_runner():
    given = {"operator": ["hv2"], "admin": ["hv1"]}
    assert saltapi_plan.fleet(given, ROLES) == {
        "fleet.create": ["hv1"], "fleet.drift": ["hv1"], "fleet.evacuate": ["hv1", "hv2"],
        "fleet.migrate": ["hv1", "hv2"], "fleet.restore": ["hv1", "hv2"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["root", "sudo_alice"])
def test_nobody_is_called_like_who_owns_the_master(name):
    said = refusals({"users": {name: {"password_hash": HASH}}})
    assert f"saltapi:users:{name}: is Salt's own name" in said


@pytest.mark.parametrize(
    ("version", "safe"),
    [("3008.3", True), ("3008.4+12.gabc", True), ("3008.2", False), ("3008.0", False), ("3007.4", True),
     ("3007.3", False),
     ("3006.12", True), ("3006.9", False), ("3005.1", False), ("3009.0", True), ("3008", False), ("unknown", False)],
)  # fmt: skip
def test_versions_of_salt(version, safe):
    said = saltapi_plan.unsafe(version)
    assert (said == "") is safe
    assert safe or version in said


def test_the_file_of_hashes():
    assert saltapi_plan.hashes({"b": "$6$2", "a": "$6$1"}) == "# Written by Salt (saltapi.config).\na:$6$1\nb:$6$2\n"

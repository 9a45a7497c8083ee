"""Operators: users in libvirt's group and groups that polkit lets in manage guests, others do not."""

import json

import pytest

from lab import salt

HOST = "hv2"
RULE = "/etc/polkit-1/rules.d/50-hypervisor-operators.rules"
USERS = ("op-member", "op-former", "op-foreign", "op-group", "op-nobody")
GROUP = "op-team"


def apply(lab, operators, **options):
    """Declare kvm:operators, apply kvm.access, and return each state's row by its id."""
    text = salt.pillar_files(lab.hosts)[f"{HOST}.sls"]
    salt.merge_pillar(lab.hosts, {f"{HOST}.sls": salt.merged_yaml(text, {"kvm": {"operators": operators}})})
    words = [f"{key}={value}" for key, value in options.items()]
    argv = ["salt-call", "--out=json", "state.apply", "kvm.access", "queue=True"]
    done = lab.run(HOST, [*argv, *words], check=False, timeout=600)
    rows = json.loads(done.stdout)["local"]
    assert isinstance(rows, dict), rows
    return {row["__id__"]: row for row in rows.values()}


def changes(rows):
    """Return the changes of the states that have some, by id."""
    return {name: row["changes"] for name, row in rows.items() if row["changes"]}


def may_manage(lab, user):
    """Whether a user may manage guests, not merely look at them."""
    argv = ["runuser", "--user", user, "--", "virsh", "--connect", "qemu:///system", "list"]
    return lab.run(HOST, argv, check=False).returncode == 0


def members(lab):
    """Return the members of libvirt's group."""
    return set(lab.run(HOST, ["getent", "group", "libvirt"]).stdout.strip().rpartition(":")[2].split(",")) - {""}


@pytest.fixture(scope="module", name="people")
def users_of_the_host(lab):
    """Users: two in libvirt's group already, one in a group of its own; all are gone in the end."""
    before = members(lab)
    for user in USERS:
        lab.run(HOST, ["useradd", user])
    lab.run(HOST, ["groupadd", "--users", "op-group", GROUP])
    for user in ("op-former", "op-foreign"):
        lab.run(HOST, ["gpasswd", "--add", user, "libvirt"])
    yield before
    salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
    lab.run(HOST, ["rm", "-f", RULE])
    for user in USERS:
        lab.run(HOST, ["userdel", user])
    lab.run(HOST, ["groupdel", GROUP])
    assert members(lab) == before


def test_operators_are_let_in_as_predicted_and_foreign_members_stay(lab, people):
    assert not may_manage(lab, "op-member")
    assert not may_manage(lab, "op-group")
    wanted = {"users": ["op-member"], "absent_users": ["op-former"], "groups": [GROUP]}
    predicted = apply(lab, wanted, test=True)
    assert members(lab) == {*people, "op-former", "op-foreign"}
    rows = apply(lab, wanted)
    assert all(row["result"] is True for row in rows.values()), rows
    assert set(changes(rows)) == {name for name, row in predicted.items() if row["result"] is None}
    assert set(changes(rows)) == {"kvm_operators", "kvm_operators_rule"}
    assert rows["kvm_operators"]["changes"] == predicted["kvm_operators"]["changes"]
    assert members(lab) == {*people, "op-member", "op-foreign"}
    assert {user: may_manage(lab, user) for user in USERS} == {
        "op-member": True,
        "op-former": False,
        "op-foreign": True,
        "op-group": True,
        "op-nobody": False,
    }
    again = apply(lab, wanted)
    assert changes(again) == {}
    # A state that fails changes nothing either.
    assert all(row["result"] is True for row in again.values()), again


def test_each_is_repaired_alone(lab, people):
    wanted = {"users": ["op-member"], "groups": [GROUP]}
    apply(lab, wanted)
    lab.run(HOST, ["gpasswd", "--delete", "op-member", "libvirt"])
    assert changes(apply(lab, wanted)) == {"kvm_operators": {"added": ["op-member"]}}
    lab.run(HOST, ["sed", "-i", "s/YES/NO/", RULE])
    assert list(changes(apply(lab, wanted))) == ["kvm_operators_rule"]


def test_a_user_that_there_is_not_changes_nothing_and_is_named(lab, people):
    before = members(lab)
    rows = apply(lab, {"users": ["op-nobody", "no-such-user"]})
    assert rows["kvm_operators"]["result"] is False
    assert "no user no-such-user" in rows["kvm_operators"]["comment"]
    assert members(lab) == before


def test_an_empty_list_of_groups_takes_the_rule_away(lab, people):
    apply(lab, {"groups": [GROUP]})
    assert may_manage(lab, "op-group")
    assert list(changes(apply(lab, {"groups": []}))) == ["kvm_operators_rule"]
    assert not may_manage(lab, "op-group")

"""Members of a group: some in, some out, everybody else untouched, and nothing by halves."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest

from _states import group_members


class Host:
    """A host with users and, perhaps, a group."""

    def __init__(self, monkeypatch, members: set[str] | None) -> None:
        self.members = members
        self.users = {"alice", "bob", "mallory"}
        self.calls: list[tuple[str, ...]] = []
        self.opts = {"test": False}
        functions = {"group.adduser": self.add, "group.deluser": self.remove}
        monkeypatch.setattr(group_members, "members_of", lambda _: None if self.members is None else set(self.members))
        monkeypatch.setattr(group_members, "is_user", lambda name: name in self.users)
        monkeypatch.setattr(group_members, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(group_members, "__salt__", functions, raising=False)

    def add(self, group: str, user: str) -> bool:
        self.calls.append(("add", group, user))
        assert self.members is not None
        self.members.add(user)
        return True

    def remove(self, group: str, user: str) -> bool:
        self.calls.append(("remove", group, user))
        assert self.members is not None
        self.members.remove(user)
        return True


def test_users_are_added_and_removed_and_foreign_ones_stay(monkeypatch):
    host = Host(monkeypatch, {"bob", "mallory", "foreign"})
    ret = group_members.present("libvirt", ["alice", "bob"], ["mallory", "nobody"])
    assert (ret["result"], ret["changes"]) == (True, {"added": ["alice"], "removed": ["mallory"]})
    assert host.members == {"alice", "bob", "foreign"}
    again = group_members.present("libvirt", ["alice", "bob"], ["mallory", "nobody"])
    assert (again["result"], again["changes"]) == (True, {})
    assert len(host.calls) == 2


def test_a_dry_run_predicts_the_same_and_changes_nothing(monkeypatch):
    host = Host(monkeypatch, {"mallory"})
    host.opts["test"] = True
    ret = group_members.present("libvirt", ["alice"], ["mallory"])
    assert (ret["result"], ret["changes"]) == (None, {"added": ["alice"], "removed": ["mallory"]})
    assert host.calls == []


def test_a_dry_run_before_the_packages_are_there(monkeypatch):
    Host(monkeypatch, None).opts["test"] = True
    ret = group_members.present("libvirt", ["alice", "eve"])
    assert (ret["result"], ret["changes"]) == (None, {"added": ["alice", "eve"]})
    assert "the group libvirt, the user eve" in ret["comment"]
    # Whoever is to be removed is not in a group that is yet to be made.
    assert group_members.present("libvirt", [], ["mallory"])["result"] is True


@pytest.mark.parametrize(
    ("members", "users", "absent", "words"),
    [
        (None, ["alice"], [], "no group libvirt"),
        (set(), ["alice", "eve"], [], "no user eve"),
        ({"bob"}, ["bob", "alice"], ["bob"], "bob shall be a member and shall not"),
    ],
)
def test_what_cannot_be_changes_nothing_and_is_said(monkeypatch, members, users, absent, words):
    host = Host(monkeypatch, members)
    ret = group_members.present("libvirt", users, absent)
    assert (ret["result"], ret["changes"], host.calls) == (False, {}, [])
    assert words in ret["comment"]


def test_a_tool_that_fails_is_a_failure_with_what_was_done(monkeypatch):
    host = Host(monkeypatch, set())
    refusing: dict[str, Any] = {"group.adduser": lambda group, user: user != "bob" and host.add(group, user)}
    monkeypatch.setattr(group_members, "__salt__", refusing)
    ret = group_members.present("libvirt", ["alice", "bob"])
    assert (ret["result"], ret["changes"]) == (False, {"added": ["alice"]})
    assert "bob could not be added" in ret["comment"]


def test_members_are_read_from_the_system():
    own = pwd.getpwuid(os.getuid())
    # By the primary group, which lists nobody in /etc/group.
    members = group_members.members_of(grp.getgrgid(own.pw_gid).gr_name)
    assert members is not None
    assert own.pw_name in members
    assert group_members.members_of("no-such-group") is None
    assert group_members.is_user(own.pw_name)
    assert not group_members.is_user("no-such-user")

"""iSCSI: what differs of records and sessions, secrets in no argument, disks that are in use stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from _states import iscsi
from _utils import own_files

TARGET = "iqn.2003-01.org.example:disk1"
ONE, OTHER = "192.0.2.50:3260", "192.0.2.51:3261"
PASSWORD = "twelve-characters"
RECORD = """# BEGIN RECORD 2.1.8
node.name = {target}
node.startup = manual
node.session.initial_login_retry_max = 8
node.session.auth.authmethod = None
node.conn[0].timeo.login_timeout = 30
# END RECORD
"""


class Host:
    """A host with open-iscsi, as far as iscsiadm shows it."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.nodes = folder / "nodes"
        self.sessions: list[str] = []
        self.calls: list[list[str]] = []
        self.refused: dict[str, str] = {}
        self.login: dict[str, Any] = {}
        self.opts = {"test": False}
        self.name_file = folder / "initiatorname.iscsi"
        self.services: list[str] = []
        monkeypatch.setattr(iscsi, "_FOLDERS", (self.nodes, folder / "none"))
        monkeypatch.setattr(iscsi, "_NAME_FILE", self.name_file)
        monkeypatch.setattr(iscsi, "_BY_PATH", folder / "by-path")
        monkeypatch.setattr(iscsi, "_installed", lambda: True)
        monkeypatch.setattr(iscsi, "__opts__", self.opts, raising=False)
        utils = {"own_files.read": own_files.read, "own_files.write": own_files.write}
        monkeypatch.setattr(iscsi, "__utils__", utils, raising=False)
        functions = {
            "cmd.run_all": self.run,
            "formula.config": lambda _: {"iscsi": {"targets": {TARGET: self.login}}},
            "service.status": lambda _: True,
            "service.restart": self.restart,
        }
        monkeypatch.setattr(iscsi, "__salt__", functions, raising=False)

    def restart(self, unit: str) -> bool:
        """Restart a service."""
        self.services.append(unit)
        return True

    def record(self, portal: str) -> Path:
        """Make the record of a portal."""
        path = self.nodes / TARGET / portal.replace(":", ",")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD.format(target=TARGET))
        return path

    def run(self, argv: list[str], **_: Any) -> dict[str, Any]:
        """Do what iscsiadm does."""
        self.calls.append(argv)
        if argv[0] != "iscsiadm":
            return {"retcode": 0, "stdout": "", "stderr": ""}
        if argv[1:3] == ["--mode", "session"]:
            lines = [f"tcp: [{at}] {portal},1 {TARGET} (non-flash)" for at, portal in enumerate(self.sessions)]
            if "--print" in argv:
                lines = [f"Target: {TARGET} (non-flash)", "\t\tAttached scsi disk sdx\t\tState: running"]
            code = 0 if self.sessions else 21
            return {"retcode": code, "stdout": "\n".join(lines), "stderr": "iscsiadm: No active sessions."}
        portal, verb = argv[argv.index("--portal") + 1], argv[-1]
        if verb in self.refused:
            said = ["Could not login to [target].", self.refused[verb], "Could not log into all portals"]
            return {"retcode": 24, "stdout": "", "stderr": "".join(f"iscsiadm: {line}\n" for line in said)}
        if verb == "new":
            self.record(portal)
        elif verb == "--login":
            self.sessions.append(portal)
        elif verb == "--logout":
            self.sessions.remove(portal)
        elif verb == "delete":
            (self.nodes / TARGET / portal.replace(":", ",")).unlink()
        return {"retcode": 0, "stdout": "", "stderr": ""}


@pytest.fixture(name="host")
def host_with_open_iscsi(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


def both(host: Host, **words: Any) -> dict[str, Any]:
    """Predict and run; the changes must be the same, and a prediction changes nothing."""
    host.opts["test"] = True
    before = (sorted(host.nodes.rglob("*")), list(host.sessions))
    predicted = iscsi.connected(TARGET, **words)
    assert (sorted(host.nodes.rglob("*")), list(host.sessions)) == before
    host.opts["test"] = False
    done = iscsi.connected(TARGET, **words)
    assert done["changes"] == predicted["changes"]
    assert predicted["result"] is (None if predicted["changes"] else True)
    return done


@pytest.mark.parametrize(
    ("portal", "end"),
    [
        ("192.0.2.50", "192.0.2.50:3260"),
        ("192.0.2.50:3261", "192.0.2.50:3261"),
        ("[2001:db8::50]", "[2001:db8::50]:3260"),
        ("[2001:db8::50]:860", "[2001:db8::50]:860"),
    ],
)
def test_a_portal_has_a_port(portal, end):
    assert iscsi.endpoint(portal) == end


def test_a_record_keeps_what_is_not_declared():
    text = RECORD.format(target=TARGET)
    made = iscsi.rewritten(text, {"node.startup": "automatic", "node.session.auth.username": "hv1"})
    assert iscsi.parsed(made) == {
        **iscsi.parsed(text),
        "node.startup": "automatic",
        "node.session.auth.username": "hv1",
    }
    assert made.splitlines()[-1] == "# END RECORD"
    assert iscsi.rewritten(made, iscsi.parsed(made)) == made


def test_a_target_is_recorded_and_connected_and_then_left_alone(host):
    host.login = {"portals": ["192.0.2.50"], "user": "hv1", "password": PASSWORD}
    done = both(host, portals=["192.0.2.50", OTHER])
    assert done["result"] is True
    assert set(done["changes"]) == {ONE, OTHER}
    change = done["changes"][ONE]
    assert change["session"] == {"old": "none", "new": "connected"}
    assert change["node.session.auth.password"] == {"old": None, "new": "the declared one"}
    assert change["node.session.auth.authmethod"] == {"old": None, "new": "CHAP"}
    assert "node.session.auth.username_in" not in done["changes"][ONE]
    path = host.nodes / TARGET / "192.0.2.50,3260"
    assert path.stat().st_mode & 0o777 == 0o600
    assert iscsi.parsed(path.read_text())["node.session.auth.password"] == PASSWORD
    assert PASSWORD not in json.dumps([done, host.calls])
    host.calls.clear()
    again = both(host, portals=["192.0.2.50", OTHER])
    assert (again["result"], again["changes"]) == (True, {})
    assert all(call[1:3] == ["--mode", "session"] for call in host.calls)


def test_a_changed_password_is_written_and_counts_later(host):
    host.login = {"user": "hv1", "password": PASSWORD}
    both(host, portals=[ONE])
    host.login = {"user": "hv1", "password": "another-password"}
    host.calls.clear()
    done = both(host, portals=[ONE])
    assert done["changes"] == {
        ONE: {"node.session.auth.password": {"old": "another one", "new": "the declared one"}}
    }
    assert f"What changed for {ONE} counts from the next connection on." in done["comment"]
    assert host.calls != []
    assert not [call for call in host.calls if {"--login", "--logout"} & set(call)]


def test_what_discovery_recorded_is_adopted(host):
    folder = host.nodes / TARGET / "192.0.2.50,3260,1"
    folder.mkdir(parents=True)
    (folder / "default").write_text(RECORD.format(target=TARGET))
    done = both(host, portals=[ONE])
    assert done["result"] is True
    assert "new" not in [call[-1] for call in host.calls]
    found = iscsi.parsed((folder / "default").read_text())
    # Without a user in pillar the way in which the host proves itself stays as it was.
    assert (found["node.startup"], found["node.session.auth.authmethod"]) == ("automatic", "None")


def test_a_portal_that_is_not_declared_stays_and_is_named(host):
    both(host, portals=[ONE, OTHER])
    done = both(host, portals=[ONE])
    assert done["changes"] == {}
    assert f"Not declared, and left as they are: {OTHER}." in done["comment"]
    assert host.sessions == [ONE, OTHER]


def test_a_target_that_refuses_is_a_failure_with_its_words(host):
    host.refused["--login"] = "initiator reported error (24 - iSCSI login failed due to authorization failure)"
    done = iscsi.connected(TARGET, [ONE])
    assert done["result"] is False
    assert done["changes"] == {}
    assert f"{ONE}: initiator reported error (24" in done["comment"]


def test_without_the_packages_the_role_is_named_and_a_dry_run_predicts(host, monkeypatch):
    monkeypatch.setattr(iscsi, "_installed", lambda: False)
    done = iscsi.connected(TARGET, [ONE])
    assert done["result"] is False
    assert "role storage" in done["comment"]
    host.opts["test"] = True
    assert set(iscsi.connected(TARGET, [ONE])["changes"]) == {ONE}
    assert host.calls == []


def test_a_target_goes_when_nothing_uses_its_disks(host, monkeypatch):
    both(host, portals=[ONE])
    utils = {"disk_use.user_of": lambda device: "a guest" if device == "/dev/sdx" else ""}
    monkeypatch.setattr(iscsi, "__utils__", {**iscsi.__utils__, **utils})
    for test in (True, False):
        host.opts["test"] = test
        refused = iscsi.disconnected(TARGET)
        assert (refused["result"], refused["changes"]) == (False, {})
        assert refused["comment"] == f"{TARGET} stays connected: sdx is used by a guest."
    monkeypatch.setitem(iscsi.__utils__, "disk_use.user_of", lambda device: "")
    host.opts["test"] = True
    predicted = iscsi.disconnected(TARGET)
    assert predicted["result"] is None
    assert host.sessions == [ONE]
    host.opts["test"] = False
    done = iscsi.disconnected(TARGET)
    assert done["result"] is True
    assert done["changes"] == predicted["changes"]
    assert set(done["changes"][ONE]) == {"record", "session"}
    assert (host.sessions, iscsi.disconnected(TARGET)["changes"]) == ([], {})


def test_the_hosts_name_is_set_while_nothing_is_connected(host):
    host.name_file.write_text("## DO NOT EDIT\nInitiatorName=iqn.1993-08.org.debian:01:x\n")
    wanted = "iqn.2026-01.org.example:hv1"
    host.opts["test"] = True
    predicted = iscsi.initiator_named(wanted)
    assert predicted["result"] is None
    assert "debian" in host.name_file.read_text()
    host.opts["test"] = False
    host.sessions = [ONE]
    refused = iscsi.initiator_named(wanted)
    assert (refused["result"], refused["changes"]) == (False, {})
    assert "kvm:iscsi:initiator" in refused["comment"]
    host.sessions = []
    done = iscsi.initiator_named(wanted)
    assert (done["result"], done["changes"]) == (True, predicted["changes"])
    assert host.name_file.read_text() == f"InitiatorName={wanted}\n"
    assert host.services == ["iscsid"]
    assert iscsi.initiator_named(wanted)["changes"] == {}

"""salt-api on the master: closed files, honest predictions, and a restart only for what changed, after the run."""

from __future__ import annotations

import os
import pwd
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import salt.version
import yaml

from _states import salt_api
from _utils import own_files, saltapi_plan

ME = pwd.getpwuid(os.geteuid()).pw_name
SETTINGS = {
    "backends": ["file"], "pam": {"service": "login"}, "ldap": {"bindpw": "hidden"}, "port": 8000, "threads": 20,
    "queue": 30, "max_body": 65536, "token_expire": 600, "reads": [], "audit": "/var/log/salt/x",
    "inventory": {"enabled": True, "user": "inventory", "reconcile": 60},
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "users": {"alice": {"viewer": ["hv1"]}}, "groups": {}, "roles": {"viewer": ["hypervisor.guests"]},
    "settings": SETTINGS, "code": "/code",
}  # fmt: skip


class Master:
    """A master as systemd and Salt see it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opts = {"test": False}
        self.enabled = "enabled"
        self.loaded = "loaded"
        self.pending = "inactive"
        # When each service began, in seconds since 1970; 0 where it does not run.
        self.began = {"salt-master.service": time.time(), "salt-api.service": time.time()}
        self.calls: list[list[str]] = []
        self.installs: list[str] = []
        self.answers = True
        self.files = [tmp_path / name for name in ("drop-in", "auth", "door")]
        self.sandbox = tmp_path / "sandbox"
        for path in (*self.files, self.sandbox):
            path.write_text("x")
            os.utime(path, (time.time() - 100,) * 2)
        functions = {"cmd.run_all": self.run, "pkg.install": self.install}
        utils = {
            "saltapi_plan.unsafe": saltapi_plan.unsafe, "saltapi_plan.hashes": saltapi_plan.hashes,
            "saltapi_plan.master": saltapi_plan.master, "own_files.read": own_files.read,
            "own_files.write": own_files.write,
        }  # fmt: skip
        for name, value in (("__opts__", self.opts), ("__salt__", functions), ("__utils__", utils)):
            monkeypatch.setattr(salt_api, name, value, raising=False)
        monkeypatch.setattr(salt_api, "_owner", lambda: ME)
        monkeypatch.setattr(salt_api, "_READS", tuple(map(str, self.files)))
        monkeypatch.setattr(salt_api, "_READS_OF_API", (str(self.sandbox),))
        monkeypatch.setattr(salt_api, "_inventory", list)
        monkeypatch.setattr(salt_api, "_answers", lambda port: self.answers)

    def install(self, package: str) -> dict[str, Any]:
        self.installs.append(package)
        self.loaded = "loaded"
        return {package: {"old": "", "new": "3008.3"}}

    def run(self, argv: list[str], **options: Any) -> dict[str, Any]:
        assert options["python_shell"] is False
        assert options["timeout"] > 0
        answer = {"retcode": 0, "stdout": "", "stderr": ""}
        if argv[:2] == ["systemctl", "is-enabled"]:
            return answer | {"stdout": self.enabled}
        if argv[:2] == ["systemctl", "is-active"]:
            return answer | {"stdout": self.pending}
        if argv[:2] == ["systemctl", "show"]:
            if "--value" in argv:
                return answer | {"stdout": self.loaded}
            began = self.began[argv[-1]]
            since = began - time.time() + time.clock_gettime(time.CLOCK_MONOTONIC)
            state = "active" if began else "inactive"
            return answer | {"stdout": f"ActiveState={state}\nActiveEnterTimestampMonotonic={since * 1e6:.0f}\n"}
        self.calls.append(argv)
        return answer


@pytest.fixture
def master(tmp_path, monkeypatch):
    return Master(tmp_path, monkeypatch)


def written(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return salt_api.master_file(str(tmp_path / "api.conf"), **{**ARGUMENTS, **more})


def test_the_drop_in_is_written_closed_and_once(master, tmp_path):
    master.opts["test"] = True
    predicted = written(tmp_path)
    assert predicted["result"] is None
    assert not (tmp_path / "api.conf").exists()
    master.opts["test"] = False
    done = written(tmp_path)
    assert (done["result"], done["changes"]) == (True, predicted["changes"])
    path = tmp_path / "api.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert yaml.safe_load(path.read_text())["external_auth"] == {
        "hypervisor": {"alice": [{"L@hv1": [r"^hypervisor\.guests$"]}]}
    }
    assert written(tmp_path)["changes"] == {}
    assert sorted(entry.name for entry in tmp_path.glob(".*")) == []


def test_what_changed_is_named_and_no_secret_shown(master, tmp_path):
    written(tmp_path)
    ret = written(tmp_path, settings={**SETTINGS, "ldap": {"bindpw": "other"}, "token_expire": 60})
    assert ret["changes"] == {"settings": ["auth.ldap.bindpw", "token_expire"]}
    assert "hidden" not in str(ret)
    assert "other" not in str(ret)
    (tmp_path / "api.conf").chmod(0o644)
    repaired = written(tmp_path, settings={**SETTINGS, "ldap": {"bindpw": "other"}, "token_expire": 60})
    assert repaired["changes"] == {"mode": f"0644 to 0400 for {ME}"}


def test_hashes_are_written_closed_and_shown_by_name(master, tmp_path):
    path = str(tmp_path / "users")
    first = salt_api.users(path, {"alice": "$6$one", "bob": "$6$two"})
    assert first["changes"] == {"added": ["alice", "bob"]}
    second = salt_api.users(path, {"alice": "$6$new", "carol": "$6$two"})
    assert second["changes"] == {"added": ["carol"], "removed": ["bob"], "changed": ["alice"]}
    assert "$6$" not in str([first, second])
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o400
    assert salt_api.users(path, {"alice": "$6$new", "carol": "$6$two"})["changes"] == {}
    assert salt_api.users(path, {})["changes"] == {"removed": ["alice", "carol"]}


def test_nothing_restarts_for_nothing(master):
    ret = salt_api.running("service", 8000)
    assert (ret["result"], ret["changes"], master.calls) == (True, {}, [])
    master.answers = False
    ret = salt_api.running("service", 8000)
    assert ret["result"] is False
    assert "8000" in ret["comment"]


def test_a_changed_file_restarts_who_reads_it_after_the_run(master):
    later = (time.time() + 5,) * 2
    os.utime(master.sandbox, later)
    ret = salt_api.running("service", 8000)
    assert ret["changes"] == {"restart": ["salt-api.service"]}
    (reload, restart) = master.calls
    assert reload == ["systemctl", "daemon-reload"]
    assert restart[0] == "systemd-run"
    assert restart[-3:] == ["systemctl", "restart", "salt-api.service"]
    # It waits for the process of this run, and for its result to arrive.
    assert any(f"--pid={os.getpid()}" in word for word in restart)
    os.utime(master.files[1], later)
    ret = salt_api.running("service", 8000)
    assert ret["changes"] == {"restart": ["salt-master.service", "salt-api.service"]}


def test_a_restart_that_is_to_come_is_not_asked_for_twice(master):
    os.utime(master.files[0], (time.time() + 5,) * 2)
    master.pending = "activating"
    ret = salt_api.running("service", 8000)
    assert (ret["result"], ret["changes"], master.calls) == (True, {}, [])
    assert "about to restart" in ret["comment"]


def test_it_is_enabled_and_started(master):
    master.enabled = "disabled"
    master.began["salt-api.service"] = 0.0
    ret = salt_api.running("service", 8000)
    assert ret["changes"] == {"enabled": "salt-api.service", "restart": ["salt-api.service"]}
    assert [argv[1] for argv in master.calls[:2]] == ["enable", "daemon-reload"]


def test_a_dry_run_predicts_a_restart_for_a_file_that_would_change(master):
    master.opts["test"] = True
    assert salt_api.running("service", 8000)["changes"] == {}
    ret = salt_api.mod_watch("service", 8000, sfun="running")
    assert (ret["result"], ret["changes"]) == (None, {"restart": ["salt-master.service", "salt-api.service"]})
    assert master.calls == []


def test_only_what_the_daemons_read_when_they_start_is_watched():
    # A dry run predicts a restart for whatever is, and a run restarts for files of the daemons alone.
    _, sls = (Path(__file__).parents[3] / "saltapi/service.sls").read_text(encoding="utf-8").split("- watch:")
    watched = {line.rpartition(": ")[2] for line in sls.splitlines() if line.strip().startswith("- ")}
    assert watched == {
        "saltapi_master", "saltapi_code_auth", "saltapi_code_netapi", "saltapi_code_audit", "saltapi_sandbox",
        "saltapi_inventory_code", "saltapi_inventory_engine",
    }  # fmt: skip


def test_a_restart_that_systemd_refuses_is_a_failure(master, monkeypatch):
    os.utime(master.files[0], (time.time() + 5,) * 2)
    run = master.run

    def refuse(argv: list[str], **options: Any) -> dict[str, Any]:
        if argv[0] == "systemd-run":
            return {"retcode": 1, "stdout": "", "stderr": "no bus"}
        return dict(run(argv, **options))

    monkeypatch.setitem(salt_api.__salt__, "cmd.run_all", refuse)
    ret = salt_api.running("service", 8000)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "no bus" in ret["comment"]


def test_the_last_user_gone_nobody_may_log_in(master, tmp_path, monkeypatch):
    drop_in, hashes = tmp_path / "api.conf", tmp_path / "users"
    monkeypatch.setattr(salt_api, "_HASHES", str(hashes))
    ret = salt_api.absent(str(drop_in))
    assert (ret["result"], ret["changes"], master.calls) == (True, {}, [])
    written(tmp_path)
    salt_api.users(str(hashes), {"alice": "$6$one"})
    master.opts["test"] = True
    predicted = salt_api.absent(str(drop_in))
    assert predicted["result"] is None
    assert drop_in.exists()
    assert master.calls == []
    master.opts["test"] = False
    ret = salt_api.absent(str(drop_in))
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert not drop_in.exists()
    assert not hashes.exists()
    stop, restart = master.calls
    assert stop == ["systemctl", "disable", "--now", "--quiet", "salt-api.service"]
    assert restart[-3:] == ["systemctl", "restart", "salt-master.service"]
    assert salt_api.absent(str(drop_in))["changes"] == {}


def test_a_package_is_installed_where_there_is_no_unit(master, monkeypatch):
    assert salt_api.installed("packages", "salt-api")["changes"] == {}
    master.loaded = "not-found"
    master.opts["test"] = True
    assert salt_api.installed("packages", "salt-api")["result"] is None
    assert master.installs == []
    master.opts["test"] = False
    ret = salt_api.installed("packages", "salt-api")
    assert (ret["result"], list(ret["changes"]), master.installs) == (True, ["salt-api"], ["salt-api"])
    master.loaded = "not-found"
    monkeypatch.setitem(salt_api.__salt__, "pkg.install", lambda _: {})
    assert salt_api.installed("packages", "salt-api")["result"] is False


def test_a_salt_that_is_not_safe_is_refused(master, monkeypatch):
    assert salt_api.supported("salt")["result"] is True
    for version in ("3008.2", "3006.5"):
        monkeypatch.setattr(salt.version, "__version__", version)
        ret = salt_api.supported("salt")
        assert (ret["result"], ret["changes"]) == (False, {})
        assert version in ret["comment"]


def test_backends_that_cannot_work_here_are_refused(master, monkeypatch):
    monkeypatch.setattr(salt_api, "_imports", lambda module: module == "cherrypy")
    assert "tornado" in salt_api.supported("salt", inventory=True)["comment"]
    assert "python-ldap" in salt_api.supported("salt", ["file", "ldap"])["comment"]
    monkeypatch.setattr(salt_api, "_owner", lambda: "nobody")
    ret = salt_api.supported("salt", ["pam"])
    assert ret["result"] is False
    assert "runs as nobody" in ret["comment"]
    monkeypatch.setattr(salt_api, "_owner", lambda: "root")
    assert salt_api.supported("salt", ["pam"])["result"] is True

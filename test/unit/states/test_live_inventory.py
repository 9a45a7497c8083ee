"""The folder of the inventory, the minion's engine and its end: honest predictions, restarts only where needed."""

from __future__ import annotations

import grp
import inspect
import os
import pwd
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from _engines import guest_events, inventory
from _states import live_inventory, salt_api

ME = pwd.getpwuid(os.geteuid()).pw_name
MINE = grp.getgrgid(os.getegid()).gr_name


class Host:
    """A host as systemd sees it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opts = {"test": False, "extension_modules": str(folder / "ext")}
        self.calls: list[list[str]] = []
        self.minion = "active"
        self.began = time.time()
        self.pending = "inactive"
        self.works = True
        self.drop_in = folder / "minion.d" / "events.conf"
        self.engine = folder / "ext/engines/guest_events.py"
        for path in (self.drop_in, self.engine, folder / "watch.py"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
            os.utime(path, (time.time() - 100,) * 2)
        monkeypatch.setattr(live_inventory, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(live_inventory, "__salt__", {"cmd.run_all": self.run}, raising=False)
        monkeypatch.setattr(live_inventory, "_PROGRAM", folder / "watch.py")
        monkeypatch.setattr(live_inventory, "_UNIT_FOLDER", folder)
        monkeypatch.setattr(live_inventory, "_FOLDER", folder / "data")
        monkeypatch.setattr("salt.config.master_config", lambda _: {"user": ME})

    def run(self, argv: list[str], **options: Any) -> dict[str, Any]:
        assert options["python_shell"] is False
        assert options["timeout"] > 0
        answer = {"retcode": 0, "stdout": "", "stderr": ""}
        if argv[:2] == ["systemctl", "show"]:
            if argv[-1] != "salt-minion.service":
                return answer | {"stdout": self.pending}
            if argv[2] == "--property=ActiveState":
                return answer | {"stdout": self.minion}
            since = self.began - time.time() + time.clock_gettime(time.CLOCK_MONOTONIC)
            return answer | {"stdout": f"{since * 1e6:.0f}"}
        self.calls.append(argv)
        return answer if self.works else answer | {"retcode": 1, "stderr": "no"}


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_a_folder_whose_files_a_group_can_read(host, tmp_path):
    path = tmp_path / "inventory"
    host.opts["test"] = True
    predicted = live_inventory.folder(str(path), MINE)
    assert (predicted["result"], path.exists()) == (None, False)
    host.opts["test"] = False
    assert live_inventory.folder(str(path), MINE)["changes"] == predicted["changes"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o2750
    assert live_inventory.folder(str(path), MINE)["changes"] == {}
    path.chmod(0o755)
    assert live_inventory.folder(str(path), MINE)["changes"]
    assert live_inventory.folder(str(path), "no-such-group")["result"] is False


def test_a_minion_that_runs_with_what_is_on_disk_is_left_alone(host):
    assert live_inventory.engine(str(host.drop_in))["changes"] == {}
    assert host.calls == []


@pytest.mark.parametrize("file", ["drop_in", "engine"])
def test_a_minion_that_is_older_restarts_when_the_run_has_ended(host, file):
    getattr(host, file).write_text("new")
    os.utime(getattr(host, file), (time.time() + 10,) * 2)
    host.opts["test"] = True
    predicted = live_inventory.engine(str(host.drop_in))
    assert (predicted["result"], host.calls) == (None, [])
    host.opts["test"] = False
    done = live_inventory.engine(str(host.drop_in))
    assert done["changes"] == predicted["changes"] == {"restart": "salt-minion.service"}
    (call,) = host.calls
    assert (call[0], call[-3:]) == ("systemd-run", ["systemctl", "restart", "salt-minion.service"])
    assert any(f"--pid={os.getpid()}" in word for word in call)
    host.pending = "activating"
    assert live_inventory.engine(str(host.drop_in))["changes"] == {}


def test_all_that_the_engine_is_made_of_counts():
    calls = [*guest_events._SIBLINGS, *re.findall(r'__utils__\["([a-z_.]+)"\]', inspect.getsource(guest_events))]
    assert {f"utils/{name.partition('.')[0]}.py" for name in calls} == set(live_inventory._ENGINE[1:])


def test_all_that_the_masters_engine_is_made_of_counts():
    calls = re.findall(r'__utils__\["([a-z_.]+)"\]', inspect.getsource(inventory))
    assert {f"utils/{name.partition('.')[0]}.py" for name in calls} == set(salt_api._ENGINE[1:])


def test_a_watch_predicts_a_restart(host):
    host.opts["test"] = True
    assert live_inventory.mod_watch(str(host.drop_in), sfun="engine")["changes"] == {"restart": "salt-minion.service"}


def test_without_a_minion_there_is_nothing_to_restart(host):
    host.minion = "inactive"
    assert live_inventory.engine(str(host.drop_in))["changes"] == {}


def test_a_restart_that_cannot_be_ordered_fails(host):
    host.works = False
    os.utime(host.drop_in, (time.time() + 10,) * 2)
    assert live_inventory.engine(str(host.drop_in))["result"] is False
    assert live_inventory.silent(str(host.drop_in))["result"] is False
    assert host.drop_in.exists()


def test_a_minion_that_shall_be_silent(host):
    host.opts["test"] = True
    predicted = live_inventory.silent(str(host.drop_in))
    assert (predicted["result"], host.drop_in.exists()) == (None, True)
    host.opts["test"] = False
    assert live_inventory.silent(str(host.drop_in))["changes"] == predicted["changes"]
    assert not host.drop_in.exists()
    assert len(host.calls) == 1
    assert live_inventory.silent(str(host.drop_in))["changes"] == {}


def test_the_end_of_the_service(host, tmp_path):
    assert live_inventory.absent("x")["changes"] == {}
    (tmp_path / "hypervisor-inventory.service").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inventory.db").write_text("x")
    host.opts["test"] = True
    predicted = live_inventory.absent("x")
    assert predicted["result"] is None
    assert (tmp_path / "data").exists()
    host.opts["test"] = False
    assert live_inventory.absent("x")["changes"] == predicted["changes"]
    assert not (tmp_path / "data").exists()
    assert host.calls[0][:3] == ["systemctl", "disable", "--now"]
    assert live_inventory.absent("x")["changes"] == {}

"""multipath.conf: written from keys, read by multipath before it counts, put back when that complains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.utils.path

from _states import multipath_conf

SETTINGS = {
    "defaults": {"user_friendly_names": True, "polling_interval": 10, "find_multipaths": "strict"},
    "blacklist": {"devnode": ["^vd[a-z]", "^sr"], "devices": [{"vendor": "QEMU", "product": "QEMU DVD-ROM"}]},
    "multipaths": [{"wwid": "36001", "alias": "guests"}, {"wwid": "36002", "alias": "backup"}],
    "devices": [{"vendor": "NETAPP", "no_path_retry": "queue"}],
}
TEXT = f"""\
{multipath_conf.HEADER}
defaults {{
    find_multipaths "strict"
    polling_interval 10
    user_friendly_names yes
}}
blacklist {{
    devnode "^vd[a-z]"
    devnode "^sr"
    device {{
        product "QEMU DVD-ROM"
        vendor "QEMU"
    }}
}}
devices {{
    device {{
        no_path_retry "queue"
        vendor "NETAPP"
    }}
}}
multipaths {{
    multipath {{
        alias "guests"
        wwid "36001"
    }}
    multipath {{
        alias "backup"
        wwid "36002"
    }}
}}
"""


def test_the_text_of_all_kinds_of_sections():
    assert multipath_conf.render(SETTINGS) == TEXT


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"default": {}}, "no section default"),
        ({"defaults": {"a b": 1}}, "defaults: 'a b' is not a key"),
        ({"defaults": {"prio": 'a "b"'}}, "defaults: prio: a quote"),
        ({"blacklist": {"wwid": ["a\nb"]}}, "blacklist: wwid: a quote or a line break"),
        ({"defaults": {"x": 1.5}}, "defaults: x: a value is"),
        ({"multipaths": [{"alias": None}]}, "multipaths: alias: a value is"),
    ],
)
def test_what_multipath_could_not_read_back_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        multipath_conf.render(settings)


def test_complaints_are_those_about_the_file_each_once():
    output = (
        "13147.27 | /etc/multipath.conf line 3, invalid keyword in the defaults section: nonsense\n"
        "13147.28 | /etc/multipath.conf line 3, invalid keyword in the defaults section: nonsense\n"
        "13147.29 | unmatched '}' at line 12 of /etc/multipath.conf\n"
        "13147.30 | DM multipath kernel driver not loaded\n"
    )
    assert multipath_conf.complaints("/etc/multipath.conf", output) == [
        "/etc/multipath.conf line 3, invalid keyword in the defaults section: nonsense",
        "unmatched '}' at line 12 of /etc/multipath.conf",
    ]


class Host:
    """A host with multipath, whose daemon runs, and Salt's states for files."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.file = folder / "multipath.conf"
        self.said = ""
        self.reloads = 0
        self.running = self.obedient = True
        self.opts = {"test": False}
        functions = {"cmd.run_all": self.run, "service.status": lambda _: self.running, "service.reload": self.reload}
        states = {"file.managed": self.managed, "file.absent": self.absent}
        monkeypatch.setattr(multipath_conf, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(multipath_conf, "__salt__", functions, raising=False)
        monkeypatch.setattr(multipath_conf, "__states__", states, raising=False)
        monkeypatch.setattr(salt.utils.path, "which", lambda name: f"/sbin/{name}")

    def run(self, argv: list[str], **_: Any) -> dict[str, Any]:
        assert argv == ["multipath", "-t"]
        return {"retcode": 0, "stdout": "defaults {\n}\n", "stderr": self.said}

    def reload(self, unit: str) -> bool:
        assert unit == "multipathd"
        self.reloads += 1
        return self.obedient

    def managed(self, name: str, contents: str, **_: Any) -> dict[str, Any]:
        before = self.file.read_text() if self.file.exists() else None
        changes = {} if before == contents else {"diff": "..."}
        if not self.opts["test"]:
            self.file.write_text(contents)
        result = None if self.opts["test"] and changes else True
        return {"name": name, "result": result, "changes": changes, "comment": ""}

    def absent(self, name: str) -> dict[str, Any]:
        self.file.unlink()
        return {"name": name, "result": True, "changes": {"removed": name}, "comment": ""}

    def apply(self, settings: dict[str, Any]) -> dict[str, Any]:
        return multipath_conf.managed(str(self.file), settings)


@pytest.fixture(name="host")
def multipath_host(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


def test_it_is_written_once_and_the_daemon_told_once(host):
    ret = host.apply(SETTINGS)
    assert ret["result"] is True
    assert host.file.read_text() == TEXT
    assert host.reloads == 1
    assert host.apply(SETTINGS)["changes"] == {}
    assert host.reloads == 1


def test_a_dry_run_writes_nothing_and_tells_nobody(host):
    host.opts["test"] = True
    assert host.apply(SETTINGS)["result"] is None
    assert not host.file.exists()
    assert host.reloads == 0


@pytest.mark.parametrize("before", [None, "defaults {\n}\n"])
def test_a_file_that_multipath_complains_of_is_put_back(host, before):
    if before is not None:
        host.file.write_text(before)
    host.said = f"1.5 | {host.file} line 2, invalid keyword: prio_arg\n"
    ret = host.apply(SETTINGS)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "invalid keyword: prio_arg" in ret["comment"]
    assert (host.file.read_text() if host.file.exists() else None) == before
    assert host.reloads == 0


def test_a_daemon_that_cannot_be_told_leaves_the_old_file_so_that_the_next_run_tries_again(host):
    host.obedient = False
    ret = host.apply(SETTINGS)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert not host.file.exists()


def test_a_daemon_that_does_not_run_is_not_told(host):
    host.running = False
    assert host.apply(SETTINGS)["result"] is True
    assert host.reloads == 0


def test_without_multipath_the_file_is_written_and_the_comment_says_that_nobody_read_it(host, monkeypatch):
    monkeypatch.setattr(salt.utils.path, "which", lambda _: None)
    ret = host.apply(SETTINGS)
    assert ret["result"] is True
    assert "not checked" in ret["comment"]
    assert host.file.read_text() == TEXT


def test_settings_that_cannot_be_written_leave_the_file_alone(host):
    ret = host.apply({"defaults": {"prio": 'a"b'}})
    assert (ret["result"], ret["changes"]) == (False, {})
    assert not host.file.exists()

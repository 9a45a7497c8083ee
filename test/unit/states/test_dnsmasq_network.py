"""A served network: tested before it counts, read again or restarted only as needed, never against others' ports."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import dnsmasq_network
from _utils import dnsmasq_config, network_tunnels, ovs_plan, own_files

UNIT = "hypervisor-dnsmasq@net.service"
SPEC: dict[str, Any] = {
    "interface": "priv0",
    "ranges": [{"start": "10.9.0.100", "end": "10.9.0.150"}],
    "hosts": {"52:54:00:00:00:01": {"ip": "10.9.0.10"}},
}
NAMED = 'udp UNCONN 0 0 0.0.0.0:53 0.0.0.0:* users:(("named",pid=55,fd=8))\n'


class Host:
    """A host with dnsmasq and systemd; it records what systemd is told."""

    def __init__(self, monkeypatch, folder: Path, *, test: bool = False) -> None:
        self.told: list[str] = []
        self.folder, self.active, self.enabled, self.since = folder, False, False, 0.0
        self.installed, self.dies, self.reload_daemon, self.sockets = True, False, "no", ""
        self.refuses = ""
        monkeypatch.setattr(dnsmasq_network, "__opts__", {"test": test}, raising=False)
        monkeypatch.setattr(dnsmasq_network, "__salt__", {"formula.judge": lambda *_: []}, raising=False)
        monkeypatch.setattr(dnsmasq_network, "_enabled", lambda _: self.enabled)
        monkeypatch.setattr(dnsmasq_network, "_PAUSE", 0)
        names = ("candidate", "files", "listeners", "steps", "taken")
        utils = {
            **{f"dnsmasq_config.{name}": getattr(dnsmasq_config, name) for name in names},
            "dnsmasq_config.folder": lambda: str(folder),
            "network_tunnels.mesh_mtu": network_tunnels.mesh_mtu,
            **{f"own_files.{name}": getattr(own_files, name) for name in ("read", "write")},
            "ovs_plan.nics_of": ovs_plan.nics_of,
            "ovs_tools.path": lambda program: f"/usr/sbin/{program}" if program != "dnsmasq" or self.installed else "",
            "ovs_tools.run": self.run,
        }
        monkeypatch.setattr(dnsmasq_network, "__utils__", utils, raising=False)

    def run(self, argv: list[str], ok: tuple[int, ...] = (0,)) -> str:
        if argv[:2] == ["systemctl", "show"]:
            state = "active" if self.active else "inactive"
            stamp = int(self.since * 1e6)
            return (
                f"ActiveState={state}\nMainPID={42 if self.active else 0}\nNeedDaemonReload={self.reload_daemon}\n"
                f"StateChangeTimestampMonotonic={stamp}\nActiveEnterTimestampMonotonic={stamp}\n"
            )
        if argv[0] == "ss":
            own = 'udp UNCONN 0 0 10.9.0.1:53 0.0.0.0:* users:(("dnsmasq",pid=42,fd=4))\n' if self.active else ""
            return self.sockets + own
        if argv[0] == "ip":
            return "[]"
        if argv[0] == "journalctl":
            return "dnsmasq: bad luck\n"
        if argv[0] == "dnsmasq":
            if self.refuses:
                raise CommandExecutionError(f"dnsmasq: bad option at line 1 of {argv[2].partition('=')[2]}")
            return ""
        self.told.append(" ".join(argv[1:]))
        if argv[1] in {"start", "restart"}:
            self.active = not self.dies
            self.since = time.clock_gettime(time.CLOCK_MONOTONIC) + 2
        if argv[1] == "enable":
            self.enabled = True
        if argv[1] == "disable":
            self.enabled = self.active = False
        return ""


@pytest.fixture(name="host")
def bare_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path / "own")


def served(**more: Any) -> dict[str, Any]:
    return dnsmasq_network.served("net", **{**SPEC, **more})


def test_a_bare_host_serves_it_now_and_at_boot(host):
    ret = served()
    assert ret["result"] is True, ret
    assert host.told == ["daemon-reload", f"enable {UNIT}", f"reset-failed {UNIT}", f"start {UNIT}"]
    assert sorted(path.name for path in (host.folder / "net").iterdir()) == [
        *("dhcp-hosts", "dhcp-options", "dnsmasq.conf", "names")
    ]
    assert ret["changes"][UNIT] == "started"
    host.told.clear()
    assert (served()["changes"], host.told) == ({}, [])


@pytest.mark.parametrize(
    ("more", "word", "file"),
    [
        ({"hosts": {"52:54:00:00:00:02": {"ip": "10.9.0.11"}}}, "reload", "dhcp-hosts"),
        ({"mtu": 1400}, "reload", "dhcp-options"),
        ({"dns": {"hosts": {"10.9.0.1": ["gw"]}}}, "reload", "names"),
        ({"lease": "1h"}, "restart", "dnsmasq.conf"),
    ],
)
def test_only_what_must_restart_does(host, more, word, file):
    served()
    host.told.clear()
    ret = served(**more)
    assert ret["changes"] == {str(host.folder / "net" / file): "written", UNIT: f"{word}ed"}
    assert host.told == ["daemon-reload", f"{word} {UNIT}"]


def test_an_interrupted_run_is_made_good(host):
    served()
    host.told.clear()
    later = time.time() + 60
    os.utime(host.folder / "net" / "dhcp-hosts", (later, later))
    assert served()["changes"] == {UNIT: "reloaded"}


def test_a_unit_that_changed_is_used(host):
    served()
    host.reload_daemon = "yes"
    assert served()["changes"] == {UNIT: "restarted"}


def test_guests_on_a_mesh_are_told_its_largest_packet(host):
    nodes = {"hv1": {"address": "192.0.2.1"}}
    served(mesh={"m": {"bridge": "ovs0", "port": "priv0", "nodes": nodes}})
    assert "option:mtu,1424" in (host.folder / "net" / "dhcp-options").read_text()
    served(mesh={"m": {"bridge": "ovs0", "port": "priv0", "nodes": nodes}}, mtu=1300)
    assert "option:mtu,1300" in (host.folder / "net" / "dhcp-options").read_text()


def test_a_dry_run_foresees_exactly_what_a_run_does(monkeypatch, host, tmp_path):
    done = served()
    for installed in (True, False):
        dry = Host(monkeypatch, tmp_path / "dry", test=True)
        dry.installed = installed
        ret = served()
        assert ret["result"] is None
        assert [Path(key).name for key in ret["changes"]] == [Path(key).name for key in done["changes"]]
        assert (dry.told, (tmp_path / "dry").exists()) == ([], False)


def test_what_dnsmasq_refuses_replaces_nothing_and_is_quoted(host):
    host.refuses = "yes"
    ret = served()
    assert ret["result"] is False
    assert "bad option in «interface=priv0»" in ret["comment"]
    assert not host.folder.exists()


def test_a_port_of_another_is_left_to_it(host):
    host.sockets = NAMED
    ret = served()
    assert ret["result"] is False
    assert "Nothing was changed: named (process 55) has port 53 on all addresses" in ret["comment"]
    assert (host.told, host.folder.exists()) == ([], False)


def test_a_daemon_that_ends_at_once_is_a_failure_with_its_words(host):
    host.dies = True
    ret = served()
    assert ret["result"] is False
    assert "dnsmasq ended at once: dnsmasq: bad luck" in ret["comment"]


def test_arguments_are_judged(host, monkeypatch):
    monkeypatch.setitem(dnsmasq_network.__salt__, "formula.judge", lambda *_: ["net:lease: wrong"])
    assert served()["comment"] == "net:lease: wrong"
    assert not host.folder.exists()


def test_absent_stops_it_and_takes_its_files(host):
    served()
    ret = dnsmasq_network.absent("net")
    assert ret["result"] is True
    assert host.told[-1] == f"disable --now {UNIT}"
    assert not (host.folder / "net").exists()
    assert dnsmasq_network.absent("net")["changes"] == {}

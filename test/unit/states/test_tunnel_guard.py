"""The guard of tunnels: checked, stored, loaded and enabled; repaired when somebody flushes it; gone when told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import tunnel_guard
from _utils import network_tunnels, ovs_plan, ovs_tools, own_files

MESH = {"m": {"bridge": "ovs0", "nodes": {"hv1": {"address": "192.0.2.1"}, "hv2": {"address": "192.0.2.2"}}}}


class Host:
    """A host with nft and systemd; it records what it is told and holds the table that was loaded last."""

    def __init__(self, monkeypatch, folder: Path, *, test: bool) -> None:
        self.told: list[str] = []
        self.table: dict[str, Any] | None = None
        self.nft = "/usr/sbin/nft"
        self.refuses = False
        self.switch: ovs_plan.Facts | None = ovs_plan.nothing()
        self.units = folder / "units"
        monkeypatch.setattr(tunnel_guard, "_RULES", folder / "own" / "tunnel-guard.nft")
        monkeypatch.setattr(tunnel_guard, "_UNITS", self.units)
        monkeypatch.setattr(tunnel_guard, "__opts__", {"test": test, "id": "hv1"}, raising=False)
        utils = {
            **{f"network_tunnels.{name}": getattr(network_tunnels, name) for name in (
                "compose", "guard", "guard_holds", "guard_script", "kept", "peers", "stored", "table",
            )},
            **{f"own_files.{name}": getattr(own_files, name) for name in ("read", "write")},
            "ovs_tools.path": lambda _: self.nft,
            "ovs_tools.parsed": ovs_tools.parsed,
            "ovs_tools.run": self.run,
            "ovs_tools.runs": lambda: self.switch is not None,
            "ovs_tools.read": lambda _: "",
            "ovs_plan.question": ovs_plan.question,
            "ovs_plan.facts_of": lambda _: self.switch,
        }  # fmt: skip
        monkeypatch.setattr(tunnel_guard, "__utils__", utils, raising=False)

    def run(self, argv: list[str], ok: tuple[int, ...] = (0,)) -> str:
        if "list" in argv:
            return json.dumps(self.table) if self.table else ""
        self.told.append(" ".join(Path(one).name if "/" in one else one for one in argv))
        if self.refuses and "--check" in argv:
            raise CommandExecutionError("nft: syntax error")
        if argv[1] == "--file":
            lines = [line.strip() for line in Path(argv[2]).read_text().splitlines() if " comment " in line]
            middle = next(index for index, line in enumerate(lines) if "saddr" in line or "meta ipsec" in line)
            plain = [line.partition(" comment ")[0].replace("counter drop", "drop") for line in lines]
            self.load([("out" if index < middle else "in", rule) for index, rule in enumerate(plain)])
        if argv[1] == "delete":
            self.table = None
        if argv[1] == "enable":
            wants = self.units / "sysinit.target.wants"
            wants.mkdir(parents=True, exist_ok=True)
            (wants / argv[2]).symlink_to(self.units / argv[2])
        if argv[1] == "disable":
            (self.units / "sysinit.target.wants" / argv[2]).unlink()
        return ""

    def load(self, rules: list[tuple[str, str]]) -> None:
        stamp = network_tunnels.guard_stamp(rules)
        chains = [
            {"chain": {"name": name, "hook": hook, "policy": "accept"}}
            for name, hook in (("out", "output"), ("in", "input"))
        ]
        body = [{"rule": {"chain": chain, "comment": stamp, "expr": [{"drop": None}]}} for chain, _ in rules]
        self.table = {"nftables": [*chains, *body]}


@pytest.fixture(name="host")
def bare_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path, test=False)


def loaded() -> dict[str, Any]:
    return tunnel_guard.loaded("guard", mesh=MESH)


def test_a_bare_host_gets_it_checked_before_it_counts(host, tmp_path):
    ret = loaded()
    assert ret["result"] is True, ret
    assert host.told == [
        *("nft --check --file .tunnel-guard.nft.candidate", "nft --file tunnel-guard.nft"),
        *("systemctl daemon-reload", "systemctl enable hypervisor-tunnel-guard.service"),
    ]
    unit = (tmp_path / "units" / "hypervisor-tunnel-guard.service").read_text()
    for line in (
        "DefaultDependencies=no",
        "Before=network-pre.target openvswitch-switch.service",
        "WantedBy=sysinit.target",
    ):
        assert line in unit
    # It stays until the power is off, whatever is stopped before.
    assert "ExecStop" not in unit
    drop_in = (tmp_path / "units" / "nftables.service.d" / "50-hypervisor-tunnel-guard.conf").read_text()
    assert [line.partition("=")[0] for line in drop_in.splitlines()[2:]] == [
        "ExecStartPost",
        "ExecReload",
        "ExecStopPost",
    ]
    assert not list((tmp_path / "own").glob("*candidate"))


def test_a_second_run_does_nothing(host):
    loaded()
    host.told.clear()
    ret = loaded()
    assert (ret["result"], ret["changes"], host.told) == (True, {}, [])


def test_a_flushed_table_is_loaded_again_and_nothing_else(host):
    loaded()
    host.told.clear()
    host.table = None
    assert loaded()["changes"] == {"table hypervisor_tunnels": "loaded"}
    assert host.told == ["nft --file tunnel-guard.nft"]


def test_a_dry_run_foresees_exactly_what_a_run_does(monkeypatch, host, tmp_path):
    done = loaded()
    for nft in ("/usr/sbin/nft", ""):
        dry = Host(monkeypatch, tmp_path / f"dry{len(nft)}", test=True)
        dry.nft = nft
        ret = loaded()
        assert ret["result"] is None
        assert [Path(key).name for key in ret["changes"]] == [Path(key).name for key in done["changes"]]
        assert dry.told == []
        assert not (tmp_path / f"dry{len(nft)}").exists()


def test_rules_that_nft_refuses_replace_nothing(host, tmp_path):
    host.refuses = True
    ret = loaded()
    assert (ret["result"], ret["comment"]) == (False, "The guard of tunnels: nft: syntax error.")
    assert list((tmp_path / "own").iterdir()) == []
    assert host.table is None


def test_a_host_without_nft_fails(host):
    host.nft = ""
    ret = loaded()
    assert ret["result"] is False
    assert "nft is not installed" in ret["comment"]


def test_a_switch_without_tunnels_has_no_guard_and_one_that_is_there_stays(host, tmp_path):
    host.nft = ""
    for bridges in ({}, {"ovs0": {"ports": {"eth1": {}, "g": {"type": "gre", "ensure": "absent"}}}}):
        ret = tunnel_guard.loaded("guard", bridges)
        assert (ret["result"], ret["changes"], host.told) == (True, {}, [])
    assert list(tmp_path.iterdir()) == []
    host.nft = "/usr/sbin/nft"
    loaded()
    host.told.clear()
    host.table = None
    assert tunnel_guard.loaded("guard", {})["changes"]["table hypervisor_tunnels"] == "loaded"


def vxlan(**keys: Any) -> dict[str, Any]:
    return {"ovs0": {"ports": {"vx0": {"type": "vxlan", "remote": "192.0.2.9", "psk": "kq3Vw8yR0bN5tXz1LmCe", **keys}}}}


def has_vxlan() -> ovs_plan.Facts:
    row = {"type": "vxlan", "options": {"remote_ip": "192.0.2.9", "psk": "kq3Vw8yR0bN5tXz1LmCe"}}
    return ovs_plan.Facts({}, {"ovs0": {}}, {"vx0": {"bridge": "ovs0", "members": ("vx0",)}}, {"vx0": row})


@pytest.mark.parametrize("runs", [True, False])
def test_a_tunnel_that_merely_left_the_pillar_is_guarded_while_the_switch_has_it(host, tmp_path, runs):
    tunnel_guard.loaded("guard", vxlan())
    rules = (tmp_path / "own" / "tunnel-guard.nft").read_text()
    assert "ip daddr 192.0.2.9 udp dport 4789 rt ipsec missing counter drop" in rules
    # A switch that is stopped sends as soon as it starts.
    host.switch = has_vxlan() if runs else None
    ret = tunnel_guard.loaded("guard", {})
    assert (ret["result"], ret["changes"]) == (True, {})
    assert (tmp_path / "own" / "tunnel-guard.nft").read_text() == rules
    # Whoever takes it out of the switch by hand takes the rule away, too.
    host.switch = ovs_plan.nothing()
    assert tunnel_guard.loaded("guard", {})["result"] is True
    assert "192.0.2.9" not in (tmp_path / "own" / "tunnel-guard.nft").read_text()


def test_absent_takes_a_tunnels_rule_away_in_the_run_that_takes_the_tunnel(host, tmp_path):
    tunnel_guard.loaded("guard", vxlan())
    host.switch = has_vxlan()
    assert tunnel_guard.loaded("guard", vxlan(ensure="absent"))["result"] is True
    assert "192.0.2.9" not in (tmp_path / "own" / "tunnel-guard.nft").read_text()


def test_absent_takes_all_of_it_away(host, tmp_path):
    loaded()
    ret = tunnel_guard.absent("guard")
    assert ret["result"] is True
    assert host.table is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tunnel_guard.absent("guard")["changes"] == {}

"""The state that opens ports: what it asks, checks, tells and stores, in a dry run and for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import libvirt_firewall
from _utils import packet_filter

NETWORKS = ["192.0.2.0/24"]
PORTS = ["16514"]
BASE = {"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input", "policy": "drop"}
RULE = 'rule priority="-16514" family="ipv4" source address="192.0.2.0/24" port port="16514" protocol="tcp" accept'


class Host:
    """A host with the given tools; it records what it is told, and nft answers what it was told before."""

    def __init__(self, monkeypatch, tmp_path: Path, test: bool, *tools: str) -> None:
        self.tools = tools
        self.calls: list[tuple[list[str], str]] = []
        self.ruleset: list[dict[str, Any]] = [{"chain": BASE}]
        self.save = {"iptables-save": "", "ip6tables-save": ""}
        self.active = False
        self.fails: tuple[str, ...] = ()
        self.rich: dict[str, list[str]] = {}
        self.folder = tmp_path
        files = {"_FOLDER": tmp_path / "own", "_UNIT_FILE": tmp_path / "unit", "_ZONES": tmp_path / "zones"}
        for name, path in files.items():
            monkeypatch.setattr(libvirt_firewall, name, path)
        monkeypatch.setattr(libvirt_firewall, "_enabled", lambda: self.active)
        for filter_ in ("_NFT",):
            tool = getattr(libvirt_firewall, filter_)
            monkeypatch.setattr(tool, "file", tmp_path / "own" / tool.file.name)
        monkeypatch.setattr(libvirt_firewall, "_has", lambda program: program in tools)
        monkeypatch.setattr("salt.utils.path.which", lambda program: f"/usr/sbin/{program}")
        monkeypatch.setattr(libvirt_firewall, "__opts__", {"test": test}, raising=False)
        utils: dict[str, Any] = {"libvirt_tools.run": self.run}
        for name in ("rules", "nft", "iptables", "rich_difference", "zones", "priority"):
            utils[f"packet_filter.{name}"] = getattr(packet_filter, name)
        monkeypatch.setattr(libvirt_firewall, "__utils__", utils, raising=False)
        states = {"file.managed": self.managed, "file.absent": self.absent}
        monkeypatch.setattr(libvirt_firewall, "__states__", states, raising=False)

    def run(self, argv: list[str], timeout: float, stdin: str = "") -> str:
        assert timeout > 0
        if argv[0] in self.fails or " ".join(argv[:2]) in self.fails:
            raise CommandExecutionError(f"{argv[0]}: it is broken")
        answers = {
            "nft --json list ruleset": json.dumps({"nftables": self.ruleset}),
            "firewall-cmd --state": "running\n",
            "firewall-cmd --get-active-zones": "public\n  interfaces: eth0\n",
            "firewall-cmd --get-default-zone": "public\n",
            "firewall-cmd --permanent --get-zones": "block public\n",
            **self.save,
        }
        if " ".join(argv) in answers:
            return answers[" ".join(argv)]
        if argv[:2] == ["systemctl", "show"]:
            return "active\n" if self.active else "inactive\n"
        if argv[-1] == "--list-rich-rules":
            return "\n".join(self.rich.get(" ".join(argv[:-1]), []))
        self.calls.append((argv, stdin))
        if argv[:2] in (["systemctl", "enable"], ["systemctl", "restart"]):
            self.active = True
        return ""

    def told(self) -> list[str]:
        return [" ".join(argv) for argv, _ in self.calls]

    def managed(self, name: str, contents: str, **_: Any) -> dict[str, Any]:
        path = Path(name)
        old = path.read_text() if path.exists() else None
        if not libvirt_firewall.__opts__["test"]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(contents)
        return {"result": True, "changes": {} if old == contents else {"diff": "…"}, "comment": ""}

    def absent(self, name: str) -> dict[str, Any]:
        changes = {"removed": name} if Path(name).exists() else {}
        if not libvirt_firewall.__opts__["test"]:
            Path(name).unlink(missing_ok=True)
        return {"result": True, "changes": changes, "comment": ""}


def opened(**kwargs: Any) -> dict[str, Any]:
    return libvirt_firewall.opened("x", NETWORKS, PORTS, **kwargs)


def test_without_networks_nothing_is_asked(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "nft", "firewall-cmd")
    host.fails = ("nft", "firewall-cmd")
    ret = libvirt_firewall.opened("x", [], PORTS)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert "No network is listed" in ret["comment"]


@pytest.mark.parametrize("test", [True, False])
def test_without_a_filter_nothing_is_needed(monkeypatch, tmp_path, test):
    host = Host(monkeypatch, tmp_path, test)
    ret = opened()
    assert (ret["result"], ret["changes"], host.calls) == (True, {}, [])
    assert "Nothing drops packets" in ret["comment"]


def test_a_dry_run_predicts_and_changes_nothing(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, True, "nft")
    predicted = opened()
    assert predicted["result"] is None
    # The check alone, which changes nothing.
    assert host.told() == ["nft --check --file -"]
    assert list(tmp_path.iterdir()) == []
    done = Host(monkeypatch, tmp_path, False, "nft")
    ret = opened()
    assert ret["result"] is True
    assert ret["changes"] == predicted["changes"]
    assert done.told() == [
        "nft --check --file -",
        "systemctl daemon-reload",
        "systemctl enable hypervisor-firewall.service",
        "systemctl restart hypervisor-firewall.service",
    ]
    stored = (tmp_path / "own" / "libvirt.nft").read_text()
    assert "insert rule inet filter input jump hypervisor_libvirt" in stored
    unit = (tmp_path / "unit").read_text()
    assert "ReloadPropagatedFrom=nftables.service" in unit
    assert "ExecStart=/usr/sbin/nft --file" in unit


def test_rules_change_at_once_where_the_unit_runs(monkeypatch, tmp_path):
    opened_before = Host(monkeypatch, tmp_path, False, "nft")
    opened()
    opened_before.calls.clear()
    ret = opened()
    # Its nft has forgotten them, as if somebody had taken them out.
    assert list(ret["changes"]) == ["nftables inet filter"]
    assert opened_before.told() == ["nft --check --file -", "nft --file -"]


def test_what_nft_refuses_is_not_stored(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "nft")
    host.fails = ("nft --check",)
    ret = opened()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "it is broken" in ret["comment"]
    assert list(tmp_path.iterdir()) == []


def test_a_chain_before_input_is_refused_and_nothing_changes(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "nft")
    host.ruleset.append({"chain": {**BASE, "name": "early", "hook": "prerouting"}})
    ret = opened()
    assert (ret["result"], ret["changes"], host.calls) == (False, {}, [])
    assert "nft insert rule inet filter early ip saddr 192.0.2.0/24 tcp dport 16514 accept" in ret["comment"]


def test_iptables_is_checked_and_told_in_one_transaction(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "iptables-save", "iptables-restore")
    host.save["iptables-save"] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    host.active = True
    ret = opened()
    assert ret["changes"]["iptables"] == {"opened": ["192.0.2.0/24 to TCP 16514"]}
    assert [line for line in host.told() if "iptables" in line] == [
        "iptables-restore --noflush --wait=30 --test",
        "iptables-restore --noflush --wait=30",
    ]


def test_a_chosen_filter_is_the_only_one(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "nft", "iptables-save", "iptables-restore", "firewall-cmd")
    host.fails = ("nft", "firewall-cmd")
    ret = opened(backend="iptables")
    assert (ret["result"], ret["changes"]) == (True, {})


def test_an_unknown_filter_is_refused(monkeypatch, tmp_path):
    Host(monkeypatch, tmp_path, False)
    ret = opened(backend="pf")
    assert ret["result"] is False
    assert "'pf' is not allowed; allowed: auto, nftables, iptables, firewalld" in ret["comment"]


@pytest.mark.parametrize("test", [True, False])
def test_firewalld_gets_rules_now_and_permanently(monkeypatch, tmp_path, test):
    host = Host(monkeypatch, tmp_path, test, "firewall-cmd", "iptables-save", "iptables-restore")
    host.save["iptables-save"] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    ret = opened()
    rule = {"opened": ["192.0.2.0/24 to TCP 16514"]}
    assert ret["changes"] == {"firewalld public": rule, "firewalld public permanent": rule}
    assert ret["result"] is (None if test else True)
    option = f"--add-rich-rule={RULE}"
    expected = [f"firewall-cmd --zone=public {option}", f"firewall-cmd --permanent --zone=public {option}"]
    assert host.told() == ([] if test else expected)


def test_firewalld_has_nothing_to_do(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "firewall-cmd")
    host.rich = {"firewall-cmd --zone=public": [RULE], "firewall-cmd --permanent --zone=public": [RULE]}
    ret = opened()
    assert (ret["result"], ret["changes"], host.calls) == (True, {}, [])


def test_a_zone_that_there_is_not_is_refused(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "firewall-cmd")
    ret = opened(zones=["publik"])
    assert (ret["result"], host.calls) == (False, [])
    assert "firewalld has no zone publik; there are: block public" in ret["comment"]


def test_absent_takes_out_what_was_opened(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "nft")
    opened()
    jump = {"jump": {"target": "hypervisor_libvirt"}}
    where = {"family": "inet", "table": "filter"}
    host.ruleset += [
        {"chain": {**where, "name": "hypervisor_libvirt"}},
        {"rule": {**where, "chain": "input", "handle": 7, "expr": [jump]}},
    ]
    host.calls.clear()
    ret = libvirt_firewall.absent("x")
    assert ret["result"] is True
    assert host.told() == [
        "nft --check --file -",
        "systemctl disable --now hypervisor-firewall.service",
        "systemctl daemon-reload",
        "nft --file -",
    ]
    assert "delete rule inet filter input handle 7" in host.calls[-1][1]
    assert list(tmp_path.iterdir()) == []
    host.ruleset = [{"chain": BASE}]
    assert libvirt_firewall.absent("x")["changes"] == {}


def test_absent_finds_rules_of_a_firewalld_that_does_not_run(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path, False, "firewall-offline-cmd")
    (tmp_path / "zones").mkdir()
    (tmp_path / "zones" / "public.xml").write_text('<rule priority="-16514" family="ipv4">')
    (tmp_path / "zones" / "home.xml").write_text('<rule priority="1" family="ipv4">')
    host.rich = {"firewall-offline-cmd --zone=public": [RULE]}
    ret = libvirt_firewall.absent("x")
    assert ret["changes"] == {"firewalld public permanent": {"closed": ["192.0.2.0/24 to TCP 16514"]}}
    assert host.told() == [f"firewall-offline-cmd --zone=public --remove-rich-rule={RULE}"]

"""What a hypervisor says: records of what libvirt has, figures of the host, messages of bounded size."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypervisor_harness import DOMAIN, UUID

from _utils import hypervisor_xml, inventory_words

UTILS = {f"hypervisor_xml.{name}": getattr(hypervisor_xml, name) for name in ("guest", "pool", "network", "state")}
POOL = """<pool type='dir'><name>images</name><uuid>x</uuid><capacity unit='bytes'>100</capacity>
<available unit='bytes'>40</available><target><path>/x</path></target></pool>"""
NETWORK = """<network><name>inner</name><uuid>x</uuid><forward mode='nat'/><bridge name='virbr1'/></network>"""


def facts(**more):
    return {"xml": DOMAIN, "state": 1, "persistent": True, "autostart": False, "addresses": ["192.0.2.7"]} | more


def test_a_guest():
    assert inventory_words.guest(UTILS, facts()) == {
        "name": "web", "state": "running", "cpus": 1, "memory_mib": 256, "addresses": ["192.0.2.7"], "started": None,
        "autostart": False, "persistent": True, "consoles": ["vnc", "serial"],
    }  # fmt: skip
    off = inventory_words.guest(UTILS, facts(state=5, addresses=[]))
    assert (off["state"], off["consoles"], off["started"]) == ("shut off", [], None)


def test_consoles_are_those_that_are_served():
    other = DOMAIN.replace("type='pty'", "type='tcp'")
    assert inventory_words.guest(UTILS, facts(xml=other))["consoles"] == ["vnc"]


def test_a_pool_and_a_network():
    there = inventory_words.pool(UTILS, {"xml": POOL, "active": True})
    assert there == {"name": "images", "state": "active", "type": "dir", "capacity_bytes": 100, "available_bytes": 40}
    gone = inventory_words.pool(UTILS, {"xml": POOL, "active": False})
    assert (gone["state"], gone["capacity_bytes"], gone["available_bytes"]) == ("inactive", None, None)
    assert inventory_words.network(UTILS, {"xml": NETWORK, "active": True}) == {
        "name": "inner", "state": "active", "bridge": "virbr1", "mode": "nat",
    }  # fmt: skip


def test_since_when_a_guest_runs(tmp_path):
    pids, proc = tmp_path / "pids", tmp_path / "proc"
    pids.mkdir()
    (proc / "77").mkdir(parents=True)
    (pids / "web.pid").write_text("77\n")
    (proc / "stat").write_text("cpu 1 2\nbtime 1000000000\n")
    ticks = os.sysconf("SC_CLK_TCK") * 90
    (proc / "77" / "stat").write_text(f"77 (qemu) x) S {' '.join(['0'] * 18)} {ticks} 0")
    assert inventory_words.started("web", pids, proc) == "2001-09-09T01:48:10+00:00"
    assert inventory_words.started("none", pids, proc) is None
    assert inventory_words.started("../pids/web", pids, proc) is None


def test_figures_of_a_host(tmp_path):
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    utils = {"hypervisor_host.memory": lambda: {"total_mib": 1000, "available_mib": 400}}
    figures = inventory_words.Figures(tmp_path)
    stat.write_text("cpu  10 0 10 80 0 0 0 0 0 0\n")
    assert figures.read(utils)["cpu_used"] is None
    stat.write_text("cpu  40 0 10 150 0 0 0 0 0 0\n")
    found = figures.read(utils)
    assert (found["cpu_used"], found["memory_mib"], found["memory_used_mib"]) == (0.3, 1000, 600)


@pytest.mark.parametrize(("change", "told"), [
    ({}, False), ({"cpu_used": 0.55}, False), ({"cpu_used": 0.61}, True), ({"memory_used_mib": 540}, False),
    ({"memory_used_mib": 551}, True), ({"load": 1.05}, False), ({"load": 0.89}, True), ({"problems": ["x"]}, True),
    ({"libvirt": "9.1.0"}, True), ({"cpu_used": None}, True),
])  # fmt: skip
def test_figures_are_told_when_they_have_moved(change, told):
    before: dict[str, Any] = {"cpus": 2, "cpu_used": 0.5, "memory_mib": 1000, "memory_used_mib": 500, "load": 1.0,
                              "problems": [], "libvirt": "9.0.0"}  # fmt: skip
    assert inventory_words.moved(before, before | change) is told
    assert inventory_words.moved({}, before)


def test_what_needs_a_person():
    rows = [
        {"purpose": "libvirt", "problem": "it has expired", "days_left": -1},
        {"purpose": "qemu", "problem": None, "days_left": 3}, {"purpose": "console", "problem": None, "days_left": 300},
    ]  # fmt: skip
    utils = {
        "hypervisor_host.certificates": lambda _: rows,
        "hypervisor_host.reboot": lambda: {"pending": True, "why": ["a new kernel"]},
        "network_tool.pending": lambda: {"pending": True},
    }
    assert inventory_words.problems(utils, "it is gone") == [
        "libvirt: it is gone", "certificate for libvirt: it has expired", "certificate for qemu ends in 3 days",
        "waits for a reboot: a new kernel", "a change of interfaces waits for its confirmation",
    ]  # fmt: skip
    utils |= {"hypervisor_host.certificates": lambda _: [], "network_tool.pending": lambda: {"pending": False},
              "hypervisor_host.reboot": lambda: {"pending": False, "why": []}}  # fmt: skip
    assert inventory_words.problems(utils, "") == []


def test_everything_is_told_in_messages_that_the_bus_takes():
    records = {str(number): {"name": "x" * 1000} for number in range(500)}
    parts = inventory_words.parts({"guests": records, "pools": {"p": {}}})
    assert len(parts) == 3
    assert max(len(json.dumps(part)) for part in parts) < 300_000
    together = {key for part in parts for key in part.get("guests", {})}
    assert together == set(records)
    assert inventory_words.parts({"guests": {}}) == [{}]


def test_only_what_differs_is_told():
    before: dict[str, Any] = {"guests": {"a": {"x": 1}, "b": {"x": 1}}, "pools": {}}
    after: dict[str, Any] = {"guests": {"a": {"x": 1}, "c": {"x": 1}}, "pools": {"p": {}}}
    new, gone = inventory_words.differences(before, after)
    assert new == {"guests": {"c": {"x": 1}}, "pools": {"p": {}}}
    assert gone == {"guests": ["b"]}


@pytest.mark.parametrize("last", ["", "5", "99999", "nonsense"])
def test_a_later_life_has_a_larger_number(tmp_path, last):
    path = tmp_path / "cache/epoch"
    path.parent.mkdir()
    if last:
        path.write_text(last)
    expected = 100_000 if last == "99999" else 1000
    assert inventory_words.epoch(path, 1000) == expected
    assert inventory_words.epoch(path, 500) == expected + 1


def test_one_word_or_changed():
    assert inventory_words.words({"started"}) == "started"
    assert inventory_words.words({"started", "stopped"}) == "changed"
    assert UUID in DOMAIN

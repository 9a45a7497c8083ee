"""The figures' arithmetic: goals, medians, the table and the file."""

import json
import textwrap
import time
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from bench import __main__ as bench_main
from bench import cluster, inventory, migration, more_runs, network, on_host, on_migration, on_network, salt_runs
from bench.rows import Row, median, spread, table, write
from lab import salt as lab_salt
from lab import vmstack
from lab.proc import LabError
from lab.state import CHECKOUT


def row(value, better="lower", goal=1.0):
    return Row("compile", value, "ms", goal, better, "how it was done")


@pytest.mark.parametrize(
    ("value", "better", "met"),
    [
        (0.9, "lower", True),
        (1.0, "lower", True),
        (1.1, "lower", False),
        (1.1, "higher", True),
        (0.9, "higher", False),
        (None, "lower", False),
    ],
)
def test_goal(value, better, met):
    assert row(value, better).met is met


def test_median_and_spread():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert spread([2.0]) == "1 run, 2 s"
    assert spread([3.0, 1.0, 2.0], "ms") == "3 runs, median 2 ms, from 1 to 3 ms"


def test_table_names_what_is_missed():
    text = table([row(0.5), row(2.0), row(None)])
    assert [line.split()[-1] for line in text.splitlines()[1::2]] == ["ok", "MISSED", "ms"]
    assert "not measured" in text
    assert text.count("how it was done") == 3


class Dying:
    """A cluster whose guest runs on the other node two looks after that was fenced."""

    nodes = ("hv1", "hv2")

    def __init__(self, fenced):
        self.fenced, self.looks = fenced, 0

    def monitor(self, node):
        self.looks += 1
        done = self.fenced and self.looks > 3
        event = f'<fence_event target="hv1" status="{"success" if done else "failed"}"/>'
        return ElementTree.fromstring(f"<x><fence_history>{event}</fence_history></x>")  # noqa: S314

    def runs_on(self):
        self.looks += 1
        return "hv2" if self.looks > 6 else ""

    def killed(self, node):
        assert node == "hv1"
        return time.monotonic()

    def started(self):
        return "hv1"

    def back(self, node):
        assert node == "hv1"

    def alone_on(self, node):
        assert node == "hv2"


def test_a_node_that_dies_is_measured_to_its_fencing_and_to_its_guest(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fenced, running = cluster.death(Dying(fenced=True))
    assert 0 < fenced < running
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    with pytest.raises(LabError, match="hv1 died, and it was not fenced within"):
        cluster.death(Dying(fenced=False))


def test_deaths_are_judged_against_what_they_take_at_the_least():
    least = cluster.shortest(10000, 30)
    assert least == 52
    good, guest = cluster.judged([(65.0, 105.0), (70.0, 110.0), (60.0, 100.0)], least)
    assert (good.value, good.met, guest.value, guest.met) == (1.25, True, 105.0, True)
    assert not cluster.judged([(80.0, 200.0)], least)[0].met


def test_an_outage_is_the_longest_time_without_an_answer_after_the_change():
    assert on_network.longest([0.0, 5.0, 5.1, 7.5, 7.6, 7.7], 5.2, 8.0) == pytest.approx(2.4)
    assert on_network.longest([0.0, 5.0], 5.2, 60.0) == 55.0


def test_files_that_a_person_writes_are_read_by_their_stack():
    modes = {stack: {on_network.mode(name) for name in files} for stack, (files, _) in network.BY_HAND.items()}
    assert modes["networkd"] == {0o644}
    assert modes["netplan"] == modes["networkmanager"] == {0o600}
    assert on_network.longest([], 5.0, 60.0) == 55.0


def test_what_is_done_by_hand_exchanges_files_once():
    values = {"address": "192.0.2.5", "gateway": "192.0.2.1", "mac": "52:54:00:00:00:01"}
    assert set(network.BY_HAND) == set(vmstack.STACKS)
    for files, commands in network.BY_HAND.values():
        assert commands.count((network.EXCHANGE,)) == 1
        texts = [text.format(**values) for text in files.values() if text is not None]
        assert "192.0.2.5/24" in "".join(texts)


def test_all_that_a_change_needs_is_put_on_the_machine():
    files = network.installed()
    assert files["/usr/sbin/network-profile"][1].startswith(b"#!/usr/bin/python3 -I\n")
    assert "/etc/systemd/system/hypervisor-network-apply.service" in files
    assert "/usr/lib/hypervisor-formula/hypervisor_network/backends/netplan/live.py" in files


def test_a_figure_that_was_not_measured_fails_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(network, "rows", lambda *_: [row(0.5)])
    monkeypatch.setattr(inventory, "rows", lambda *_: [row(0.5)])
    monkeypatch.setattr(cluster, "rows", lambda *_: [row(0.5)])
    monkeypatch.setattr(salt_runs, "rows", lambda *_: [row(0.5), row(None)])
    assert bench_main.main(["--out", str(tmp_path / "bench.json")]) == 0
    assert "not measured" in capsys.readouterr().out
    monkeypatch.setattr(salt_runs, "rows", lambda *_: [row(2.0), row(None)])
    assert bench_main.main(["--out", str(tmp_path / "bench.json")]) == 1


def test_parts_are_measured_alone(monkeypatch, tmp_path, capsys):
    asked = []

    def measured(*words):
        asked.append(words)
        return [row(0.5)]

    monkeypatch.setattr(network, "rows", measured)
    monkeypatch.setattr(salt_runs, "rows", measured)
    out = ["--out", str(tmp_path / "bench.json")]
    assert bench_main.main([*out, "--only", "network"]) == 0
    assert bench_main.main([*out, "--only", "beside", "compile"]) == 0
    assert asked[0][0] == "bench-net"
    assert asked[1][-2] == ["beside", "compile"]
    assert len(asked) == 2
    with pytest.raises(SystemExit):
        bench_main.main([*out, "--only", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_the_inventorys_rows_say_what_was_read_and_kept():
    answer = {
        "bare": [1000.0, 800.0, 1000.0], "kept": [900.0, 800.0, 500.0], "delays": [0.1] * 98 + [0.3, 0.5],
        "requests": {"times": [0.002] * 2000 + [0.004] * 2000, "size": 400_000, "seconds": 10.0}, "asks": [0.3],
        "keys": [10.0, 20.0], "screen": [1.0, 2.0, 3.0], "looked": {"screen-0": 1.1, "screen-2": 3.2},
        "memory": [{"engine": 102_400, "service": 51_200}, {"engine": 112_640, "service": 51_200}],
    }  # fmt: skip
    found = {one.name: one for one in inventory.told(answer)}
    assert [round(one.value or 0, 3) for one in found.values()] == [400.0, 4.0, 100.0, 0.9, 302.0, 1180.0, 19.5, 10.0]
    assert [one.name for one in found.values() if not one.met] == ["message to screen, 99th percentile"]
    assert "engine 100 to 110 MiB, service 50 to 50 MiB" in found["memory growth over 20000 messages"].how


def test_a_user_of_the_page_sees_the_replayed_hosts_too():
    before = yaml.safe_dump({"saltapi": {"users": {"admin": {"roles": {"admin": ["hv1"]}}}}})
    seen = yaml.safe_load(inventory.widened(before))["saltapi"]["users"]["admin"]["roles"]["admin"]
    assert (seen[:2], len(seen)) == (["hv1", "bench0000"], 1001)


def test_file_holds_the_promised_keys(tmp_path):
    path = tmp_path / "build" / "bench.json"
    write([row(0.5), row(None)], path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [set(one) for one in rows] == [{"name", "value", "unit", "goal", "better", "how"}] * 2
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.json"]


def test_fresh_row_allows_ten_seconds_and_takes_the_median_of_the_ratios():
    result = salt_runs.fresh_row([(30.0, 20.0), (34.0, 20.0), (50.0, 20.0)])
    assert result.value == pytest.approx(1.2)
    assert not result.met
    assert "median 34 s" in result.how


def test_packages_of_low_states():
    chunks: list[dict[str, Any]] = [
        {"state": "pkg", "fun": "installed", "name": "all", "pkgs": ["b", {"c": "1.0"}]},
        {"state": "pkg", "fun": "latest", "name": "a"},
        {"state": "pkg", "fun": "removed", "name": "z"},
        {"state": "file", "fun": "managed", "name": "y"},
    ]
    assert on_host.packages_of(chunks) == ["a", "b", "c"]


def test_programs_are_timed_in_turn_and_their_failures_kept():
    good, bad = on_host.time_programs([["true"], ["sh", "-c", "echo no; exit 3"]], 2)
    assert good["codes"] == [0, 0]
    assert bad["codes"] == [3, 3]
    assert bad["outputs"] == ["no\n", "no\n"]
    assert all(seconds >= 0 for seconds in good["seconds"] + bad["seconds"])


SUMMARY = "local:\n\nSummary for local\n-------------\nSucceeded: {}\nFailed:     0\n-------------\n"


@pytest.mark.parametrize(
    ("said", "idle"), [("43", True), ("43 (changed=1)", False), ("43 (unchanged=1, changed=2)", False), ("0", False)]
)
def test_a_highstate_that_changed_something_is_told_by_its_summary(said, idle):
    assert salt_runs.nothing_changed(SUMMARY.format(said)) is idle


def test_without_a_summary_nothing_is_known():
    assert not salt_runs.nothing_changed("Minion did not return\n")


def answers(monkeypatch, said):
    """Let every program on a host take its place in the list as seconds; highstates print a summary."""

    def run(_lab, _host, request):
        return [
            {
                "seconds": [float(place)] * request["repeat"],
                "codes": [0] * request["repeat"],
                "outputs": [SUMMARY.format(said)] * request["repeat"] if argv[-1] == "state.highstate" else [""] * 2,
            }
            for place, argv in enumerate(request["time"], 1)
        ]

    monkeypatch.setattr(salt_runs, "on_host", run)


def test_a_highstate_again_has_a_row_for_each_way_and_one_goal(monkeypatch):
    answers(monkeypatch, "43")
    alone, through = salt_runs.second_rows(Any, "hv1", 2)  # type: ignore[arg-type]  # no lab is asked
    assert alone.name == "highstate again, without a master / salt-call --local test.ping"
    assert through.name == "highstate again, through the master / salt-call --local test.ping"
    assert [alone.value, through.value] == pytest.approx([1 / 3, 2 / 3])
    assert alone.goal == through.goal == 1.6


def test_a_highstate_that_is_measured_again_must_change_nothing(monkeypatch):
    answers(monkeypatch, "43 (changed=1)")
    with pytest.raises(LabError, match="was to change nothing, but said"):
        salt_runs.second_rows(Any, "hv1", 2)  # type: ignore[arg-type]  # no lab is asked


def test_a_host_without_a_master_is_measured_as_the_documentation_sets_it_up():
    text = (CHECKOUT / "docs" / "operations.rst").read_text(encoding="utf-8")
    section = text.partition("A host without a master\n")[2]
    block = section.partition(".. code-block:: yaml\n")[2].partition("\nThen ")[0]
    documented = yaml.safe_load(textwrap.dedent(block))
    measured = salt_runs.alone("hv1", "/srv/pillar")
    assert measured.pop("id") == "hv1"
    assert documented.keys() == measured.keys()
    same = documented.keys() - {"file_roots", "module_dirs"}  # folders
    assert {key: documented[key] for key in same} == {key: measured[key] for key in same}


def test_without_a_checkout_the_other_formula_is_not_measured(monkeypatch):
    monkeypatch.delenv("LIBVIRT_FORMULA", raising=False)
    result = more_runs.beside_row(Any, "hv1", 3)  # type: ignore[arg-type]  # no lab is asked
    assert result.value is None
    assert "LIBVIRT_FORMULA names no checkout" in result.how


def test_a_checkout_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("LIBVIRT_FORMULA", str(tmp_path))
    with pytest.raises(LabError, match=r"has no libvirt/init\.sls"):
        more_runs.beside_row(Any, "hv1", 3)  # type: ignore[arg-type]  # no lab is asked


# A lab whose hosts take files and run nothing.
SOME_LAB: Any = SimpleNamespace(
    hosts=SimpleNamespace(unpack=lambda _host, _files: None), run=lambda *_arguments, **_options: None
)


def test_the_other_formula_is_compared_per_state_and_without_the_first_compilation(monkeypatch, tmp_path):
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirt" / "init.sls").touch()
    (tmp_path / "pillar.example").touch()
    monkeypatch.setenv("LIBVIRT_FORMULA", str(tmp_path))
    times = {"beside": ([9.0, 0.2, 0.2], 10), "everything": ([9.0, 0.03, 0.05], 40)}

    def compiled(_lab, _host, folder, _repeat):
        seconds, states = times[folder.split("/")[3]]
        return {"seconds": seconds, "states": states, "files": 3}

    monkeypatch.setattr(more_runs, "compiled", compiled)
    result = more_runs.beside_row(SOME_LAB, "hv1", 2)
    assert result.value == pytest.approx(20.0)
    assert result.met


@pytest.mark.parametrize(("said", "fails"), [("43 (changed=2)", False), ("43", True)])
def test_a_flush_is_measured_by_highstates_that_write(monkeypatch, said, fails):
    seconds = iter([9.0, 2.2, 2.0, 2.0, 2.2])

    def run(_lab, _host, request):
        return [
            {"seconds": [next(seconds)], "codes": [0], "outputs": [SUMMARY.format(said)], "argv": argv}
            for argv in request["time"]
        ]

    monkeypatch.setattr(more_runs, "on_host", run)
    monkeypatch.setattr(more_runs, "compiled", lambda *_: {"durable": ["kvm_durable"]})
    monkeypatch.setattr(lab_salt, "pillar_files", lambda _: {"common.sls": "kvm: {}"})
    if fails:
        with pytest.raises(LabError, match="was to change something"):
            more_runs.durable_row(SOME_LAB, "hv1", 1)
    else:
        result = more_runs.durable_row(SOME_LAB, "hv1", 1)
        assert result.value == pytest.approx(1.1)
        assert not result.met


def test_a_ratio_is_the_median_of_pairs_and_shows_both_sides():
    found = migration.ratio_row("total", "s", 1.1, [(1.0, 1.0), (3.0, 2.0), (1.2, 1.0)], "; sent 1 GB")
    assert found.value == 1.2
    assert not found.met
    assert "hypervisor.migrate: 3 runs, median 1.2 s" in found.how
    assert "QMP: 3 runs, median 1 s" in found.how
    assert found.how.endswith("; sent 1 GB")


def test_the_guest_of_bare_qemu_is_the_one_of_libvirt():
    options = {"machine": "pc-q35-7.2", "memory_mib": 1024, "kernel": "/k", "initrd": "/i", "append": migration.APPEND}
    argv = on_migration.qemu(options, incoming=True)
    assert argv[-2:] == ["-incoming", "defer"]
    assert "-incoming" not in on_migration.qemu(options, incoming=False)
    assert argv[argv.index("-append") + 1].startswith("console=ttyS0 ")
    assert migration.APPEND.startswith("console=ttyS0")

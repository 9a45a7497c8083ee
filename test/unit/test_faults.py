"""The power cuts' own parts: pillars, the record that is gone on with, and the judgement of what is left."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path

import guest_site
import pytest
from faults import __main__ as command
from faults import cluster, durable, node_faults, nodes, on_host
from faults.record import Record

from _utils import formula_config, formula_schema, formula_vocabulary
from lab.proc import LabError
from tools import pillar_reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", range(12))
def test_pillars_are_valid_and_the_same_for_the_same_seed(number):
    pillar = durable.pillar("xfs", 7, number)
    assert pillar == durable.pillar("xfs", 7, number)
    assert pillar != durable.pillar("xfs", 7, number + 1)
    assert pillar["kvm"] != durable.pillar("xfs", 8, number)["kvm"]
    for formula in ("kvm", "libvirt"):
        contents = {
            name: pillar_reference.load(ROOT / formula / name)
            for name in ("defaults.yaml", "osmap.yaml", "schema.yaml")
        }
        grains = {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-12"}
        _, errors = formula_config.assemble(
            formula, contents, grains, pillar[formula], formula_vocabulary.load, formula_schema.errors
        )
        assert errors == []


def test_changed_files_are_found_and_compared(tmp_path):
    (tmp_path / "old").write_text("old")
    time.sleep(0.05)
    moment = time.time()
    time.sleep(0.05)
    for name in ("same", "emptied", "gone", "other"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("same")
    files = on_host.changed_since([str(tmp_path)], moment)
    assert {Path(name).name for name in files} == {"same", "emptied", "gone", "other"}
    assert files[str(tmp_path / "same")] == hashlib.sha256(b"same").hexdigest()
    (tmp_path / "emptied").write_text("")
    (tmp_path / "gone").unlink()
    (tmp_path / "other").write_text("old")
    lost = on_host.check(files)["lost"]
    assert {Path(name).name: what for name, what in lost.items()} == {
        "emptied": "empty", "gone": "missing", "other": "other",
    }  # fmt: skip


def test_a_record_goes_on_where_it_was_and_forgets_other_code(tmp_path):
    path = tmp_path / "build" / "faults.json"
    first = Record(path, {"seed": 1, "sources": "a"})
    first.add({"file_system": "xfs", "number": 1})
    first.add({"file_system": "ext4", "number": 1})
    again = Record(path, {"seed": 1, "sources": "a"})
    assert again.done(file_system="xfs") == [{"file_system": "xfs", "number": 1}]
    assert again.forgotten == 0
    for terms, fresh in (({"seed": 2, "sources": "a"}, False), ({"seed": 1, "sources": "a"}, True)):
        other = Record(path, terms, fresh=fresh)
        assert (other.runs, other.forgotten) == ([], 2)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "faults.json").write_text(text)
    with pytest.raises(LabError, match=r"faults\.json can't be read"):
        Record(tmp_path / "faults.json", {})


def run(number: int, **lost: str) -> dict[str, object]:
    return {"file_system": "xfs", "number": number, "files": 9, "changed": 5, "cut": 1.04, "lost": lost}


def test_a_lost_file_breaks_the_promise_and_nothing_lost_breaks_the_baseline():
    whole, hurt = [run(1), run(2)], [run(1), run(2, a="empty", b="other")]
    assert durable.verdict(whole, flush=True) == (True, "2 power cuts, 18 files: 0 lost (0 empty) in 0 cuts")
    assert durable.verdict(hurt, flush=True) == (False, "2 power cuts, 18 files: 2 lost (1 empty) in 1 cuts")
    assert durable.verdict(hurt, flush=False)[0]
    assert not durable.verdict(whole, flush=False)[0]
    assert not durable.verdict([], flush=True)[0]
    assert "1 empty, 1 other: a, b" in durable.told(run(2, a="empty", b="other"))
    assert "all there" in durable.told(run(1))


def test_finished_runs_need_no_host(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.lab_salt, "sources_digest", lambda: "a")
    out = tmp_path / "faults.json"
    terms = {"campaign": "durable", "seed": 1, "flush": True, "platform": "debian-12", "sources": "a"}
    runs = [{**run(number), "file_system": system} for system in ("ext4", "xfs") for number in (1, 2)]
    out.write_text(json.dumps({"terms": terms, "runs": runs}))
    assert command.main(["--campaign", "durable", "--count", "2", "--out", str(out), "--keep"]) == 0
    said = capsys.readouterr()
    assert "0 runs in" in said.out + said.err
    runs[-1]["lost"] = {"/etc/x": "empty"}
    out.write_text(json.dumps({"terms": terms, "runs": runs}))
    assert command.main(["--campaign", "durable", "--count", "2", "--out", str(out), "--keep"]) == 1
    assert "NOT AS PROMISED" in "".join(capsys.readouterr())


def test_a_campaign_of_clusters_that_is_over_needs_no_host(tmp_path, monkeypatch, capsys):
    out = tmp_path / "faults.json"
    argv = ["--campaign", "cluster", "--cluster-count", "2", "--seed", "3", "--out", str(out), "--keep"]
    sources = {"sources": cluster.digest()}
    terms = {"campaign": "cluster", "seed": 3, "platform": "debian-12", "faults": sorted(node_faults.FAULTS), **sources}
    rows = [
        {"number": number, "fault": fault, "node": "hv1", "end": "", "seconds": 1.0, "kept": True, "wrong": []}
        for number, fault in cluster.order(3, 2)
    ]
    out.write_text(json.dumps({"terms": terms, "runs": rows}))
    assert command.main(argv) == 0
    assert "cluster: 2 runs (0 now" in "".join(capsys.readouterr())
    rows[1] |= {"kept": False, "wrong": ["twice"]}
    out.write_text(json.dumps({"terms": terms, "runs": rows}))
    assert command.main(argv) == 1
    assert "1 not as promised" in "".join(capsys.readouterr())

    # Of other code nothing counts: a host would be needed.
    def none(*words, **options):
        raise LabError("no host here")

    monkeypatch.setattr(cluster, "made", none)
    monkeypatch.setattr(cluster.Lab, "down", lambda lab: [])
    out.write_text(json.dumps({"terms": {**terms, "sources": "other"}, "runs": rows}))
    assert command.main(argv) == 2
    said = "".join(capsys.readouterr())
    assert "2 runs in" in said
    assert "no host here" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--fault", "power_cut"], "--fault is for --campaign network or --campaign cluster"),
        (["--campaign", "durable", "--fault", "power_cut"], "--fault is for --campaign network or --campaign cluster"),
        (["--campaign", "network", "--fault", "powercut"], "--fault powercut is not one of applier_killed_applied, "),
        (["--campaign", "network", "--backend", "wicked"], "argument --backend: invalid choice: 'wicked'"),
    ],
)  # fmt: skip
def test_what_is_no_fault_or_backend_is_refused(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# ---- clusters ----


def test_a_seed_orders_the_faults_of_clusters_and_each_comes_once_before_any_again():
    runs = cluster.order(3, 2 * len(node_faults.FAULTS))
    assert runs == cluster.order(3, 2 * len(node_faults.FAULTS))
    assert runs != cluster.order(4, 2 * len(node_faults.FAULTS))
    names, once = [name for _, name in runs], len(node_faults.FAULTS)
    assert sorted(names[:once]) == sorted(names[once:]) == sorted(node_faults.FAULTS)
    assert cluster.order(3, 5) == runs[:5]
    assert cluster.order(3, 2, ["node killed"]) == [(1, "node killed"), (2, "node killed")]


def test_a_broken_run_of_a_cluster_is_told():
    run = {"fault": "node killed", "node": "hv1", "end": "counter on hv2", "seconds": 80.0, "kept": True, "wrong": []}
    assert cluster.told(run) == "node killed on hv1: counter on hv2 after 80 s"
    assert "NOT AS PROMISED: twice" in cluster.told({**run, "kept": False, "wrong": ["twice"]})


class Pair:
    """A cluster of two that is always well, and in which a guest can run twice."""

    def __init__(self, twice=False, kept=5, boots=("boot",), silent=False, restarts=("hv2",), shared=""):
        self.shared = shared
        self.twice, self.kept, self.boots, self.silent, self.restarts = twice, kept, boots, silent, restarts
        self.counted, self.starts = 0, {"hv1": 0, "hv2": 0}
        self.lab = type("Lab", (), {"hosts": type("Hosts", (), {"controller": "controller"})})()

    def run(self, *argv, **options):
        return ""

    def online(self, node):
        return {"hv1", "hv2"}

    def unclean(self, node):
        return {"hv1"}

    def killed(self, node):
        for one in self.restarts:
            self.starts[one] += 1

    def guests_on(self):
        if self.silent:
            return {"hv1": "running", "hv2": "?"}
        return {"hv1": "running", "hv2": "running"} if self.twice else {"hv1": "running"}

    def active_on(self, volume="/dev/vmdata/one"):
        return ["hv1", "hv2"] if volume == self.shared else ["hv1"]

    def idle(self, node):
        return []

    def count(self, node):
        self.counted += 1
        return guest_site.Count(5, ("boot",)) if self.counted == 1 else guest_site.Count(self.kept, self.boots)

    def __getattr__(self, name):
        return {"runs_on": lambda: "hv1", "lock_of": lambda node: "ex"}.get(name, lambda *words: True)


@pytest.fixture(name="attempted")
def one_attempt(monkeypatch):
    class Machine:
        def __init__(self, pair, node):
            self.pair, self.node = pair, node

        def set_link(self, *, up):
            pass

        def boot_id(self):
            return f"{self.node} {self.pair.starts[self.node]}"

        def qmp(self, command, **arguments):
            return "Device 'disk0' not found\r\n"

    def attempt(pair, fault="idle node killed"):
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(pair, "machine", lambda node: Machine(pair, node), raising=False)
        monkeypatch.setattr(pair, "lab", pair.lab)
        pair.lab.run = pair.run
        look = nodes.Watch.run

        def once(watch):
            # What is seen twice, one after the other, counts.
            times = iter([False, False])
            watch.over.wait = lambda seconds: next(times, True)
            look(watch)

        monkeypatch.setattr(nodes.Watch, "run", once)
        return nodes.attempt(pair, fault, random.Random(1))  # noqa: S311

    return attempt


def test_a_guest_that_goes_on_is_as_promised(attempted):
    run = attempted(Pair())
    assert (run["kept"], run["wrong"], run["node"]) == (True, [], "hv1")


def test_a_guest_on_two_nodes_and_one_that_has_lost_its_data_are_not(attempted):
    assert attempted(Pair(twice=True))["wrong"] == ["the guest runs on hv1 and hv2"]
    assert attempted(Pair(kept=3))["wrong"] == ["the guest had counted to 5 and has 3"]


def test_a_volume_on_two_nodes_is_seen_unless_it_moves_live():
    def seen(volume, *, live):
        watch, times = nodes.Watch(Pair(shared=volume), live=live), iter([False, False])
        watch.over.wait = lambda seconds: next(times, True)
        watch.run()
        return watch.seen

    assert seen("/dev/vmdata/one", live=True) == {"/dev/vmdata/one is active on hv1 and hv2"}
    assert seen(guest_site.GUEST_DISK, live=False) == {f"{guest_site.GUEST_DISK} is active on hv1 and hv2"}
    assert seen(guest_site.GUEST_DISK, live=True) == set()


@pytest.mark.parametrize(
    ("pair", "wrong"),
    [
        (Pair(boots=("boot", "again")), "starts of the guest: 1 instead of 0"),
        (Pair(restarts=("hv1", "hv2")), "started anew: hv1, hv2"),
        (Pair(restarts=()), "started anew: nobody"),
        (Pair(silent=True), "nobody has looked whether it ran twice"),
    ],
)
def test_what_must_not_come_of_a_fault_is_told(attempted, pair, wrong):
    assert wrong in attempted(pair)["wrong"]


def test_a_fault_that_was_not_done_is_no_success(attempted):
    run = attempted(Pair(), "disks cut")
    assert (run["kept"], run["wrong"]) == (False, ["disk 0 was not taken away: Device 'disk0' not found"])


def test_a_guest_that_comes_back_although_nobody_was_fenced_is_not(attempted):
    assert "could not be fenced" in attempted(Pair(), "fencing impossible")["wrong"][0]

"""The power cuts' own parts: pillars, the record that is gone on with, and the judgement of what is left."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from faults import __main__ as command
from faults import durable, on_host
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

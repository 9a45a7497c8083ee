"""Guests of the first hypervisor, declared by a state or by pillar, and what came of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from lab.lab import Lab

HOST = "hv1"
FOLDER = "/var/lib/libvirt/images"


def call(lab: Lab, *words: str) -> dict[str, dict[str, Any]]:
    """Run a function of Salt on the hypervisor through its master; return its states by id."""
    # After this time Salt asks whether the job still runs, and gives up where a busy minion takes long to say so.
    argv = ["salt", HOST, "--out=json", "--static", "--timeout=540", *words, "queue=True"]
    answer = json.loads(lab.run(lab.hosts.controller, argv, check=False, timeout=600).stdout)[HOST]
    assert isinstance(answer, dict), answer
    return {row["__id__"]: row for row in answer.values()}


def declare(lab: Lab, name: str, *, test: bool = False, **declaration: Any) -> dict[str, Any]:
    """Call the state of one guest; return its row."""
    verb = declaration.pop("ensure", "running")
    words = [f"{key}={json.dumps(value)}" for key, value in declaration.items()]
    return call(lab, "state.single", f"guest.{verb}", name, *words, f"test={test}")[name]


def from_pillar(lab: Lab, name: str, *, test: bool = False, **declaration: Any) -> dict[str, Any]:
    """Apply the SLS with one guest in pillar; return the guest's row."""
    pillar = json.dumps({"libvirt": {"guests": {name: declaration}}})
    rows = call(lab, "state.apply", "libvirt.guests", f"pillar={pillar}", f"test={test}")
    others = {key: row for key, row in rows.items() if key != f"libvirt_guest_{name}"}
    assert all(row["result"] and not row["changes"] for row in others.values()), others
    return rows[f"libvirt_guest_{name}"]


def both(lab: Lab, name: str, *, how: Callable[..., dict[str, Any]] = declare, **declaration: Any) -> Any:
    """Predict and run; return the changes, which must be as predicted."""
    before = snapshot(lab, name)
    predicted = how(lab, name, test=True, **declaration)
    assert predicted["result"] is None, predicted
    assert snapshot(lab, name) == before
    done = how(lab, name, **declaration)
    assert done["result"] is True, done["comment"]
    assert done["changes"] == predicted["changes"]
    return done["changes"]


def snapshot(lab: Lab, name: str) -> tuple[str, str, str]:
    """Return all that a prediction could have changed."""
    xml = lab.run(HOST, ["virsh", "dumpxml", "--inactive", name], check=False).stdout
    live = lab.run(HOST, ["virsh", "dumpxml", name], check=False).stdout
    files = lab.run(HOST, ["sh", "-c", f"ls -l --time-style=full-iso {FOLDER} | grep {name}"], check=False).stdout
    return xml, live, files


def domain(lab: Lab, name: str, *options: str) -> Any:
    """Return a guest's definition."""
    return ET.fromstring(lab.run(HOST, ["virsh", "dumpxml", *options, name]).stdout)  # noqa: S314 - libvirt's own


def silent(lab: Lab, name: str, *, how: Callable[..., dict[str, Any]] = declare, **declaration: Any) -> str:
    """Run once more; nothing may change."""
    row = how(lab, name, **declaration)
    assert (row["result"], row["changes"]) == (True, {}), row
    return str(row["comment"])


def predicted_and_done(lab: Lab, *words: str) -> dict[str, Any]:
    """Predict and run states; return the changes by id, which must be as predicted, of states that all succeed."""
    predicted = call(lab, *words, "test=True")
    done = call(lab, *words)
    assert {key: row["comment"] for key, row in done.items() if row["result"] is not True} == {}
    changes = {key: row["changes"] for key, row in done.items() if row["changes"]}
    assert changes == {key: row["changes"] for key, row in predicted.items() if row["changes"]}
    assert {key for key, row in predicted.items() if row["result"] is None} == set(changes)
    return changes


def end(lab: Lab, beginning: str) -> None:
    """Remove the guests, networks and files of tests, which begin with the same letters."""
    for kind, destroy, undefine in (("list", "destroy", "undefine"), ("net-list", "net-destroy", "net-undefine")):
        for name in lab.run(HOST, ["virsh", kind, "--all", "--name"]).stdout.split():
            if name.startswith(beginning):
                lab.run(HOST, ["virsh", destroy, name], check=False)
                lab.run(HOST, ["virsh", undefine, name, *(["--nvram"] if kind == "list" else [])])
    lab.run(HOST, ["sh", "-c", f"rm -rf {FOLDER}/{beginning}* /var/log/libvirt/qemu/{beginning}*"])

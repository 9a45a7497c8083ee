"""Rows beside other code: compiling against another formula, and a highstate without the flush in its end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import salt as lab_salt
from lab.proc import LabError

from .rows import Row, median, spread
from .salt_runs import EVERYTHING, HIGHSTATE, PILLAR, STATES, alone, compiled, nothing_changed, on_host

if TYPE_CHECKING:
    from lab.lab import Lab

# Names a checkout of github.com/saltstack-formulas/libvirt-formula.
CHECKOUT_VARIABLE = "LIBVIRT_FORMULA"
BESIDE = "/srv/bench/beside"
BESIDE_GOAL = 15.0
DURABLE_GOAL = 1.05
# Two pillars in turn, so that every highstate has files to write, and a daemon to restart.
VARIANTS = {
    name: {
        "kvm": {"qemu_conf": {"max_files": 32768 + number, "max_core": "unlimited"}},
        "libvirt": {"daemon_conf": {"max_clients": 5000 + number}},
    }
    for number, name in enumerate(("one", "other"))
}


def per_state(answer: dict[str, Any]) -> list[float]:
    """Milliseconds for each state, of every compilation but the first, which loads Jinja."""
    return [seconds * 1000 / answer["states"] for seconds in answer["seconds"][1:]]


def beside_row(lab: Lab, host: str, repeat: int) -> Row:
    """Measure the time to compile one state of libvirt-formula against one of ours, each with its pillar.example."""

    def row(value: float | None, how: str) -> Row:
        name = "compile, per state: libvirt-formula / this"
        return Row(name=name, value=value, unit="times", goal=BESIDE_GOAL, better="higher", how=how)

    place = os.environ.get(CHECKOUT_VARIABLE, "")
    if not place:
        return row(None, f"{CHECKOUT_VARIABLE} names no checkout of saltstack-formulas/libvirt-formula")
    checkout = Path(place)
    if not (checkout / "libvirt" / "init.sls").is_file():
        raise LabError(f"{CHECKOUT_VARIABLE}={place} is no checkout of libvirt-formula: it has no libvirt/init.sls")
    config = alone(host, f"{BESIDE}/pillar") | {"file_roots": {"base": [f"{BESIDE}/states"]}}
    # Files of the same names, ours, are in the cache of the host's own minion.
    config["cachedir"] = f"{BESIDE}/cache"
    del config["module_dirs"]
    top = "base: {'*': [libvirt]}\n"
    files = {
        f"{BESIDE}/etc/minion": json.dumps(config),
        f"{BESIDE}/states/top.sls": top,
        f"{BESIDE}/pillar/top.sls": top,
        f"{BESIDE}/pillar/libvirt.sls": (checkout / "pillar.example").read_text(encoding="utf-8"),
    }
    lab.run(host, ["mkdir", "-p", f"{BESIDE}/states"])
    lab.run(host, ["tar", "-x", "-C", f"{BESIDE}/states"], stdin=lab_salt.pack([checkout / "libvirt"], checkout))
    lab.hosts.unpack(host, {path: (0o600, text.encode()) for path, text in files.items()})
    theirs = compiled(lab, host, f"{BESIDE}/etc", repeat + 1)
    ours = compiled(lab, host, f"{EVERYTHING}/etc", repeat + 1)
    return row(
        median(per_state(theirs)) / median(per_state(ours)),
        f"{host}, each with its pillar.example and files on the host, one process; "
        f"libvirt-formula, {theirs['states']} states in {theirs['files']} SLS: {spread(per_state(theirs), 'ms')}; "
        f"this, {ours['states']} states in {ours['files']} SLS: {spread(per_state(ours), 'ms')}",
    )


def durable_row(lab: Lab, host: str, repeat: int) -> Row:
    """Measure highstates that write, with and without the states that flush what was written."""
    own = lab_salt.pillar_files(lab.hosts)
    files: dict[str, str] = {}
    for name, values in VARIANTS.items():
        folder = f"{PILLAR}-{name}"
        files |= {f"{folder}/{path}": lab_salt.merged_yaml(text, values) if path == "common.sls" else text
                  for path, text in own.items()}  # fmt: skip
        files[f"{folder}/etc/minion"] = json.dumps(alone(host, folder))
    lab.hosts.unpack(host, {path: (0o600, text.encode()) for path, text in files.items()})
    flushes = [{"id": name} for name in compiled(lab, host, f"{PILLAR}/etc")["durable"]]
    if not flushes:
        raise LabError(f"the highstate of {host} has no durable.synced state in {STATES}")
    without = f"exclude={json.dumps(flushes)}"

    def highstate(variant: str, *more: str) -> list[str]:
        return ["salt-call", f"--config-dir={PILLAR}-{variant}/etc", *HIGHSTATE[1:], *more]

    programs = [highstate("one"), highstate("other", without), highstate("one", without), highstate("other")]
    # The first one writes as much as all, but finds a host that has been idle.
    on_host(lab, host, {"time": [programs[-1]], "repeat": 1})
    results = on_host(lab, host, {"time": programs, "repeat": repeat})
    for argv, result in zip(programs, results, strict=True):
        for code, output in zip(result["codes"], result["outputs"], strict=True):
            if code or nothing_changed(output):
                raise LabError(f"{' '.join(argv)[:200]} on {host} was to change something, but said:\n{output}")
    first, second, third, fourth = (result["seconds"] for result in results)
    flushed, unflushed = [*first, *fourth], [*second, *third]
    return Row(
        name="highstate that writes: with durable.synced / without",
        value=median(flushed) / median(unflushed),
        unit="times",
        goal=DURABLE_GOAL,
        better="lower",
        how=f"{host}, without a master, all in turn, every highstate changed qemu.conf and a daemon's file and "
        f"restarted the daemon; with: {spread(flushed)}; without its {len(flushes)} states: {spread(unflushed)}",
    )

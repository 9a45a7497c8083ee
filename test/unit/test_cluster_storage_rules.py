"""Timeouts that do not fit, locks that nothing protects, disks that are two things: refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from _utils import cluster_cib_rules, cluster_derived, formula_config, formula_schema, formula_vocabulary
from _utils.cluster_storage_rules import errors

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
SCHEMA = yaml.safe_load((ROOT / "cluster" / "schema.yaml").read_text())
WORDS = formula_vocabulary.load(SCHEMA)
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3)}
TWO = {name: NODES[name] for name in ("hv1", "hv2")}
SBD, SAN = "/dev/disk/by-id/scsi-sbd", "/dev/disk/by-id/scsi-san"
DISK = {"enabled": True, "devices": [SBD]}
FENCE = {"fence": {"agent": "fence_x", "targets": ["hv1", "hv2"]}}
GROUP = {"vm": {"devices": [SAN]}}


def merged(nodes=TWO, **pillar):
    return formula_config.merge(DEFAULTS, {"name": "c", "nodes": nodes, "bootstrap_node": "hv1", **pillar})


@pytest.mark.parametrize(
    "pillar",
    [
        {},
        {"sbd": DISK},
        {"sbd": {"enabled": True}, "nodes": NODES},
        {"sbd": {**DISK, "start_delay": 0}},
        {"sbd": {**DISK, "start_delay": 47}},
        {"sbd": DISK, "properties": {"stonith-timeout": "1min", "stonith-watchdog-timeout": 0}},
        {"sbd": DISK, "properties": {"stonith-timeout": None, "stonith-watchdog-timeout": None}},
        {"sbd": DISK, "storage": {"lock_manager": "dlm", "volume_groups": GROUP}},
        {"stonith": FENCE, "storage": {"lock_manager": "dlm", "volume_groups": GROUP}},
        {"stonith": FENCE, "storage": {"lock_manager": "dlm"}, "properties": {"no-quorum-policy": "freeze"}},
    ],
)
def test_what_fits_is_accepted(pillar):
    configuration = merged(**pillar)
    assert formula_schema.errors(SCHEMA, configuration, "cluster", WORDS) == []
    assert errors(configuration) == []


@pytest.mark.parametrize(
    ("pillar", "where", "text"),
    [
        ({"sbd": {"enabled": True}}, "sbd:devices",
         ("missing; with 2 nodes the watchdog alone cannot tell a lost node from a lost network: name a shared disk, "
         "or have three nodes")),
        ({"sbd": DISK, "nodes": {}}, "sbd:enabled", "not allowed without nodes"),
        ({"sbd": {**DISK, "watchdog_timeout": 16}}, "sbd:msgwait",
         "30 is too short: must be at least 32, twice watchdog_timeout, or a node counts as off before it is"),
        ({"sbd": DISK, "properties": {"stonith-timeout": "45s"}}, "properties:stonith-timeout",
         "45s is too short: must be 46s, 1.2 times msgwait and delay_max"),
        ({"sbd": {"enabled": True}, "nodes": NODES, "properties": {"stonith-timeout": 30}},
         "properties:stonith-timeout", "30 is too short: must be 36s, 2.4 times watchdog_timeout"),
        ({"sbd": DISK, "properties": {"stonith-enabled": "false"}}, "properties:stonith-enabled",
         "false is not allowed with sbd"),
        ({"sbd": DISK, "properties": {"stonith-watchdog-timeout": "30s"}}, "properties:stonith-watchdog-timeout",
         "30s is not allowed with sbd:devices; must be 0"),
        ({"sbd": {"enabled": True}, "nodes": NODES, "properties": {"stonith-watchdog-timeout": 15}},
         "properties:stonith-watchdog-timeout", "15 is too short: must be 30s, twice sbd:watchdog_timeout"),
        # What pillar takes out is what Pacemaker has by itself.
        ({"sbd": {**DISK, "msgwait": 60}, "properties": {"stonith-timeout": None}}, "properties:stonith-timeout",
         "60s, which Pacemaker has without it, is too short: must be 82s, 1.2 times msgwait and delay_max"),
        ({"sbd": {"enabled": True}, "nodes": NODES, "properties": {"stonith-watchdog-timeout": None}},
         "properties:stonith-watchdog-timeout", "0 is too short: must be 30s, twice sbd:watchdog_timeout"),
        ({"sbd": {**DISK, "start_delay": 46}}, "sbd:start_delay",
         ("46 is too short: must be 0 or 47, the sum of token and consensus (7), the time until a node counts as off "
         "(30), delay_max (10)")),
        ({"storage": {"volume_groups": GROUP}}, "storage:lock_manager",
         "missing; must be dlm or sanlock, or two nodes could change one volume group at once"),
        ({"storage": {"lock_manager": "dlm"}}, "storage:lock_manager",
         ("dlm needs fencing, but no device below cluster:stonith has as target: hv1, hv2; declare one, or set "
         "cluster:sbd:enabled: true")),
        ({"storage": {"lock_manager": "dlm"}, "stonith": {"f": {**FENCE["fence"], "targets": ["hv2"]}}},
         "storage:lock_manager",
         ("dlm needs fencing, but no device below cluster:stonith has as target: hv1; declare one, or set "
         "cluster:sbd:enabled: true")),
        ({"storage": {"lock_manager": "dlm"}, "stonith": FENCE, "properties": {"stonith-enabled": False}},
         "properties:stonith-enabled",
         "False is not allowed with storage:lock_manager: a lost node could go on writing"),
        ({"storage": {"lock_manager": "dlm"}, "stonith": FENCE, "properties": {"no-quorum-policy": "stop"}},
         "properties:no-quorum-policy",
         ("stop is not allowed with storage:lock_manager; must be freeze: without quorum nothing can be stopped, since "
         "the locks do not answer")),
        ({"sbd": DISK, "storage": {"lock_manager": "dlm", "volume_groups": {"vm": {"devices": [SBD]}}}},
         "storage:volume_groups:vm:devices", f"{SBD} is there twice: it stands below cluster:sbd:devices already"),
        ({"sbd": DISK, "storage": {"lock_manager": "dlm", "volume_groups": {**GROUP, "two": {"devices": [SAN]}}}},
         "storage:volume_groups:two:devices",
         f"{SAN} is there twice: it stands below cluster:storage:volume_groups:vm:devices already"),
        ({"sbd": DISK, "storage": {"lock_manager": "sanlock"}}, "storage:lock_manager",
         ("sanlock is not allowed with cluster:sbd:enabled: each would need the watchdog for itself; take dlm, or "
         "fence devices of another kind below cluster:stonith")),
        ({"storage": {"lock_manager": "sanlock"}}, "storage:lock_manager",
         "sanlock needs fencing, but no device below cluster:stonith has as target: hv1, hv2; declare one"),
        ({"storage": {"lock_manager": "sanlock"}, "stonith": FENCE,
          "nodes": {**TWO, "hv2": {**TWO["hv2"], "id": 2001}}},
         "nodes:hv2:id", "2001 is too large for sanlock; must be at most 2000"),
        ({"sbd": DISK, "stonith": {"fence_sbd": FENCE["fence"]}}, "stonith:fence_sbd",
         "not allowed; this is what comes of cluster:sbd"),
        ({"sbd": DISK, "storage": {"lock_manager": "dlm"}, "resources": {"dlm": {"agent": "ocf:x:y"}}},
         "resources:dlm", "not allowed; this is what comes of cluster:storage:lock_manager"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(pillar, where, text):
    assert errors(merged(**pillar)) == [(f"cluster:{where}", text)]


def test_every_resource_that_follows_is_the_formulas_own_and_constraints_may_name_it():
    volumes = {"one": {"size_mib": 64}, "two": {"size_mib": 64, "active": "everywhere"}}
    groups = {"vm": {**GROUP["vm"], "volumes": volumes}}
    pillar = {"sbd": DISK, "storage": {"lock_manager": "dlm", "volume_groups": groups}}
    whole = merged(**pillar)
    found = cluster_derived.declared(whole | {"nodes": list(TWO)})
    derived = {name: kind for kind in ("stonith", "resources", "groups") for name in found[kind]}
    assert set(derived) == {"fence_sbd", "dlm", "lvmlockd", "locking", "vm-one", "vm-two"}
    for name, kind in derived.items():
        taken = merged(**pillar, **{kind: {name: {"agent": "x"}}})
        assert [where for where, _ in errors(taken)] == [f"cluster:{kind}:{name}"]
        near = merged(**pillar, constraints={"locations": {"l": {"resource": name, "node": "hv1", "score": 1}}})
        assert cluster_cib_rules.errors(near) == []


@pytest.mark.parametrize(
    ("pillar", "where"),
    [
        ({"sbd": {"devices": ["/dev/sdb"]}}, "cluster:sbd:devices:0"),
        ({"sbd": {"devices": ["disk/by-id/scsi-sbd"]}}, "cluster:sbd:devices:0"),
        ({"sbd": {"devices": [f"{SBD};{SAN}"]}}, "cluster:sbd:devices:0"),
        ({"sbd": {"devices": ["/dev/disk/by-id/../../sda"]}}, "cluster:sbd:devices:0"),
        ({"sbd": {"watchdog": "watchdog"}}, "cluster:sbd:watchdog"),
        ({"sbd": {"module": "softdog nowayout=0"}}, "cluster:sbd:module"),
        ({"storage": {"lock_manager": "clvmd"}}, "cluster:storage:lock_manager"),
        ({"storage": {"volume_groups": {"vm": {"devices": []}}}}, "cluster:storage:volume_groups:vm:devices"),
        ({"storage": {"volume_groups": {"vm": {"devices": ["/dev/sdb"]}}}},
         "cluster:storage:volume_groups:vm:devices:0"),
        ({"storage": {"volume_groups": {"a-b": GROUP["vm"]}}}, "cluster:storage:volume_groups:a-b"),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_no_disk_or_name(pillar, where):
    found = formula_schema.errors(SCHEMA, merged(**pillar), "cluster", WORDS)
    assert [path for path, _ in found] == [where]

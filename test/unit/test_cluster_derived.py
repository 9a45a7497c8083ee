"""What sbd and shared storage come to in Pacemaker, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from _utils import cluster_cib, formula_config
from _utils.cluster_derived import before, declared, outdated, short, stonith_timeout

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "cluster" / "defaults.yaml").read_text())
DISK = "/dev/disk/by-id/scsi-sbd"
GROUP = {"devices": ["/dev/disk/by-id/scsi-san"], "volumes": {"one": {"size_mib": 64}}}


def cluster(**pillar):
    keys = ("properties", "resource_defaults", "operation_defaults", "stonith", "resources", "groups", "constraints")
    merged = formula_config.merge(DEFAULTS, pillar)
    return {key: merged[key] for key in (*keys, "sbd", "storage")} | {"nodes": ["hv1", "hv2"]}


def storage(**over):
    return {"lock_manager": "dlm", "volume_groups": {"vm": GROUP}, **over}


def test_without_sbd_and_storage_nothing_is_added():
    pillar = {"properties": {"a": 1}, "resources": {"ip": {"agent": "ocf:heartbeat:IPaddr2"}}}
    found = declared(cluster(**pillar))
    assert found["properties"] == {"a": 1}
    assert found["resources"] == pillar["resources"]
    assert found["stonith"] == {}
    assert found["constraints"] == {"locations": {}, "orders": {}, "colocations": {}}


def test_a_disk_of_sbd_is_a_fence_device_with_a_delay():
    found = declared(cluster(sbd={"enabled": True, "devices": [DISK], "delay_max": 7}))
    device = found["stonith"]["fence_sbd"]
    assert (device["agent"], device["targets"]) == ("fence_sbd", ["hv1", "hv2"])
    assert device["parameters"] == {"devices": DISK, "pcmk_delay_max": "7s"}
    assert found["properties"] == {
        "stonith-enabled": True, "stonith-timeout": "43s", "stonith-watchdog-timeout": 0
    }  # fmt: skip


def test_a_watchdog_alone_is_no_device_but_a_timeout():
    found = declared(cluster(sbd={"enabled": True, "watchdog_timeout": 10}))
    assert found["stonith"] == {"fence_sbd": {"ensure": "absent"}}
    assert found["properties"]["stonith-watchdog-timeout"] == "20s"
    assert found["properties"]["stonith-timeout"] == "24s"


def test_a_device_that_is_left_of_disks_goes_with_them():
    names, sbd = {"hv1": "hv1", "hv2": "hv2"}, {"enabled": True, "devices": [DISK]}
    live = cluster_cib.apply(cluster_cib.empty(), declared(cluster(sbd=sbd)), names).text
    result = cluster_cib.apply(live, declared(cluster(sbd={"enabled": True})), names)
    assert result.changes["resource fence_sbd"] == {"old": "stonith:fence_sbd", "new": None}
    assert "fence_sbd" not in result.text
    own = {"fence_sbd": {"agent": "fence_ipmilan", "targets": ["hv1"]}}
    assert declared(cluster(sbd={"enabled": True}, stonith=own))["stonith"] == own


def test_what_pillar_says_itself_stands():
    found = declared(cluster(sbd={"enabled": True, "devices": [DISK]}, properties={"stonith-timeout": "300s"}))
    assert found["properties"]["stonith-timeout"] == "300s"


@pytest.mark.parametrize(
    ("sbd", "seconds"),
    [({"devices": [DISK], "msgwait": 30, "delay_max": 10}, 46), ({"devices": [], "watchdog_timeout": 5}, 12)],
)
def test_fencing_gets_a_fifth_more_than_it_takes(sbd, seconds):
    assert stonith_timeout(sbd) == seconds


def test_fencing_comes_first_then_locks_then_volumes():
    whole = cluster(sbd={"enabled": True, "devices": [DISK]}, storage=storage())
    fencing, locking, everything = (declared(whole, stage) for stage in ("fencing", "locking", "all"))
    assert list(fencing["stonith"]) == ["fence_sbd"]
    assert (fencing["resources"], fencing["groups"]) == ({}, {})
    assert list(locking["resources"]) == ["dlm", "lvmlockd"]
    assert locking["groups"]["locking"] == {"resources": ["dlm", "lvmlockd"], "clone": {"interleave": True}}
    assert list(everything["resources"]) == ["dlm", "lvmlockd", "vm-one"]
    assert before(whole, "fencing") is None
    assert before(whole, "locking") == fencing
    assert before(whole, "all") == locking


def test_without_storage_there_is_one_stage():
    assert before(cluster(sbd={"enabled": True, "devices": [DISK]}), "all") is None


def test_without_quorum_nothing_moves_and_a_failed_lock_is_fenced():
    found = declared(cluster(storage=storage()))
    assert found["properties"]["no-quorum-policy"] == "freeze"
    for name in ("dlm", "lvmlockd"):
        fails = {one["name"]: one.get("on-fail") for one in found["resources"][name]["operations"]}
        assert fails == {"monitor": "fence", "start": None, "stop": "fence"}


def test_a_volume_is_on_one_node_and_where_the_locks_are():
    found = declared(cluster(storage=storage()))
    assert found["resources"]["vm-one"]["parameters"] == {"vgname": "vm", "lvname": "one"}
    assert "clone" not in found["resources"]["vm-one"]
    assert found["constraints"]["orders"] == {"vm-one-after-locking": {"first": "locking-clone", "then": "vm-one"}}
    assert found["constraints"]["colocations"] == {
        "vm-one-with-locking": {"resource": "vm-one", "with": "locking-clone", "score": "INFINITY"}
    }


def test_a_volume_that_is_active_everywhere_is_a_clone():
    volumes = {"one": {"size_mib": 64, "active": "everywhere"}}
    found = declared(cluster(storage=storage(volume_groups={"vm": {**GROUP, "volumes": volumes}})))
    assert found["resources"]["vm-one"]["parameters"]["activation_mode"] == "shared"
    assert found["resources"]["vm-one"]["clone"] == {"interleave": True}
    assert found["constraints"]["orders"]["vm-one-after-locking"]["then"] == "vm-one-clone"


def test_with_locks_of_sanlock_a_volume_has_the_agent_that_takes_them():
    volumes = {"one": {"size_mib": 64}, "two": {"size_mib": 64, "active": "everywhere"}}
    groups = {"vm": {**GROUP, "volumes": volumes}}
    found = declared(cluster(storage=storage(lock_manager="sanlock", volume_groups=groups)))
    one, two = found["resources"]["vm-one"], found["resources"]["vm-two"]
    assert one["agent"] == two["agent"] == "ocf:hypervisor:SharedVolume"
    assert one["parameters"] == {"vgname": "vm", "lvname": "one", "lock_manager": "sanlock"}
    assert two["parameters"] == {"vgname": "vm", "lvname": "two", "lock_manager": "sanlock", "activation": "shared"}
    assert (two["clone"], "allow-migrate" in two["meta"]) == ({"interleave": True}, False)
    # Its daemons are services, and nothing to be after.
    assert found["constraints"].get("orders", {}) == {}


def test_all_of_it_is_a_cib_and_laying_it_over_again_changes_nothing():
    whole = cluster(sbd={"enabled": True, "devices": [DISK]}, storage=storage())
    names, live = {"hv1": "hv1", "hv2": "hv2"}, cluster_cib.empty()
    for stage in ("fencing", "locking", "all"):
        result = cluster_cib.apply(live, declared(whole, stage), names)
        assert result.changes
        live = result.text
    for stage in ("fencing", "locking", "all"):
        assert cluster_cib.apply(live, declared(whole, stage), names).changes == {}


def test_pillar_is_not_changed():
    whole = cluster(sbd={"enabled": True, "devices": [DISK]}, storage=storage())
    declared(whole)
    assert whole["stonith"] == whole["resources"] == whole["properties"] == {}
    assert whole["constraints"]["orders"] == {}


def test_locks_of_sanlock_are_no_resources_and_need_no_quorum():
    found = declared(cluster(storage=storage(lock_manager="sanlock")))
    assert list(found["resources"]) == ["vm-one"]
    assert found["groups"] == {}
    assert found["constraints"] == {"locations": {}, "orders": {}, "colocations": {}}
    assert "no-quorum-policy" not in found["properties"]


@pytest.mark.parametrize(
    ("value", "devices", "timeout", "told", "refused"),
    [
        ("30s", [], 15, {}, ""),
        ("30", [], 20, {"properties": {"stonith-watchdog-timeout": "40s"}}, ""),
        ("30000ms", [], 40, {"properties": {"stonith-watchdog-timeout": "80s"}}, "30000ms"),
        ("1min", [], 40, {"properties": {"stonith-watchdog-timeout": "80s"}}, ""),
        ("2 M", [], 60, {}, ""),
        # Pacemaker takes twice what sbd has itself.
        ("-1", [], 40, {}, ""),
        ("soon", [], 40, {}, ""),
        ("0", [], 40, {}, ""),
        (None, [], 40, {}, ""),
        ("0s", ["/dev/disk/by-id/a"], 15, {}, ""),
        (None, ["/dev/disk/by-id/a"], 15, {}, ""),
        ("-1", ["/dev/disk/by-id/a"], 15, {"properties": {"stonith-watchdog-timeout": 0}}, ""),
        ("90s", ["/dev/disk/by-id/a"], 15, {"properties": {"stonith-watchdog-timeout": 0}}, ""),
    ],
)
def test_a_watchdog_is_waited_for_long_enough_before_pacemaker_starts(value, devices, timeout, told, refused):
    sbd = {"enabled": True, "devices": devices, "watchdog_timeout": timeout, "msgwait": 120, "delay_max": 1}
    whole = {"sbd": sbd, "nodes": ["hv1"]}
    seen = {} if value is None else {"property stonith-watchdog-timeout": value}
    assert outdated(whole, seen) == told
    assert short(whole, seen) == refused
    off = {**whole, "sbd": {**sbd, "enabled": False}}
    assert (outdated(off, seen), short(off, seen)) == ({}, "")


def test_the_order_of_disks_is_no_reason_to_give_up_a_fence_device():
    disks = ["/dev/disk/by-id/a", "/dev/disk/by-id/b"]
    sbd = {"enabled": True, "devices": disks, "watchdog_timeout": 15, "msgwait": 30, "delay_max": 1}
    whole = {"sbd": sbd, "nodes": ["hv1"]}
    device = {"resource fence_sbd": "stonith:fence_sbd"}
    there = {**device, "resource fence_sbd parameter devices": ",".join(reversed(disks))}
    assert outdated(whole, there) == {}
    for fewer in (device, {**device, "resource fence_sbd parameter devices": disks[0]}):
        assert outdated(whole, fewer) == {"stonith": {"fence_sbd": {"ensure": "absent"}}}

"""Guests of the cluster: what they come to in Pacemaker, what is refused by name, what their definition's file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cluster_harness import GROUPS, NODES, STORAGE, cluster, guest, whole

from _utils import cluster_cib, cluster_derived, cluster_guests, formula_schema, formula_vocabulary
from _utils import libvirt_ha_rules as rules

ROOT = Path(__file__).resolve().parents[2]
LIBVIRT = yaml.safe_load((ROOT / "libvirt" / "schema.yaml").read_text())
DEFINITION = {"$defs": LIBVIRT["$defs"], "$ref": "#/$defs/guest"}
WORDS = formula_vocabulary.load(DEFINITION)


# ---- what they come to ----


def test_a_guest_is_a_resource_that_moves_live_over_tls_and_writes_nothing_into_the_cib():
    found = cluster_derived.declared(whole({"web": guest("one")}))["resources"]["web"]
    assert found["agent"] == "ocf:heartbeat:VirtualDomain"
    assert found["parameters"] == {
        "config": cluster_guests.definition("web"), "hypervisor": "qemu:///system",
        "remoteuri": "qemu+tls://%n/system", "migrateuri": "tcp://%n", "migrate_options": "--p2p --tls --auto-converge",
        "autoset_utilization_cpu": False, "autoset_utilization_host_memory": False,
        "autoset_utilization_hv_memory": False,
    }  # fmt: skip
    assert found["meta"] == {"allow-migrate": True, "resource-stickiness": 100, "priority": 0}
    assert {one["name"]: one["timeout"] for one in found["operations"]} == {
        **dict.fromkeys(("monitor", "start", "stop", "migrate_from"), "300s"), "migrate_to": "3600s"
    }  # fmt: skip
    assert cluster_derived.move_seconds() == 3600
    assert [one["on-fail"] for one in found["operations"] if "on-fail" in one] == ["fence"]


def test_its_volume_moves_with_it_and_so_could_one_that_nobody_uses():
    found = cluster_derived.declared(whole({"web": guest("one")}))["resources"]
    for name in ("one", "two"):
        assert found[f"vm-{name}"]["agent"] == "ocf:hypervisor:SharedVolume"
        assert found[f"vm-{name}"]["parameters"] == {"vgname": "vm", "lvname": name}
        assert found[f"vm-{name}"]["meta"]["allow-migrate"] is True
        timeouts = {one["name"]: one["timeout"] for one in found[f"vm-{name}"]["operations"]}
        assert (timeouts["migrate_to"], timeouts["migrate_from"]) == ("300s", "300s")


def test_a_volume_comes_and_goes_without_a_change_to_its_resource():
    names, live = {"hv1": "hv1", "hv2": "hv2"}, cluster_cib.empty()
    for volumes, ties in (
        (("one",), {"web-after-vm-one", "web-with-vm-one"}),
        (("one", "two"), {"web-after-vm-two", "web-with-vm-two", "web-has-vm-two"}),
        (("two",), {"web-after-vm-one", "web-with-vm-one", "web-has-vm-two"}),
        ((), {"web-after-vm-two", "web-with-vm-two"}),
    ):
        first = live == cluster_cib.empty()
        live, changes = cluster_cib.apply(live, cluster_derived.declared(whole({"web": guest(*volumes)})), names)
        if first:
            continue
        assert set(changes) == {f"constraint {tie}" for tie in ties}


def test_a_guest_starts_after_its_volumes_where_all_of_them_are():
    found = cluster_derived.declared(whole({"web": guest("one", "two")}))["constraints"]
    assert found["orders"]["web-after-vm-one"] == {"first": "vm-one", "then": "web"}
    assert found["orders"]["web-after-vm-two"] == {"first": "vm-two", "then": "web"}
    there = {name: row for name, row in found["colocations"].items() if "with" in row}
    rows = {name: (row["resource"], row["with"], row["score"]) for name, row in there.items()}
    assert rows["web-with-vm-one"] == ("web", "vm-one", "INFINITY")
    assert rows["web-with-vm-two"] == ("web", "vm-two", "INFINITY")
    assert rows["web-has-vm-two"] == ("vm-two", "vm-one", "INFINITY")


def test_a_volume_that_is_active_everywhere_stays_a_clone():
    groups = {"vm": {**GROUPS["vm"], "volumes": {"one": {"size_mib": 64, "active": "everywhere"}}}}
    found = cluster_derived.declared(whole({"web": guest("one")}, storage={**STORAGE, "volume_groups": groups}))
    assert found["resources"]["vm-one"]["agent"] == "ocf:heartbeat:LVM-activate"
    assert found["constraints"]["orders"]["web-after-vm-one"] == {"first": "vm-one-clone", "then": "web"}
    assert found["constraints"]["colocations"]["web-with-vm-one"]["with"] == "vm-one-clone"


def test_wishes_are_less_than_a_must_and_more_than_to_stay():
    options = {"prefer": ["hv2", "hv1"], "affinity": ["db"], "anti_affinity": ["mail"], "after": ["db"], "priority": 7}
    guests = {"web": guest("one", ha=options), "db": guest(), "mail": guest(ha={"strict": True, "affinity": ["db"]})}
    found = cluster_derived.declared(whole(guests))
    constraints = found["constraints"]
    assert found["resources"]["web"]["meta"]["priority"] == 7
    assert constraints["locations"]["web-prefers-hv2"] == {"resource": "web", "node": "hv2", "score": 4}
    assert constraints["locations"]["web-prefers-hv1"]["score"] == 2
    assert constraints["colocations"]["web-beside-db"] == {"resource": "web", "with": "db", "score": 1000}
    assert constraints["colocations"]["web-apart-from-mail"]["score"] == "-1000"
    assert constraints["colocations"]["mail-beside-db"]["score"] == "INFINITY"
    assert constraints["orders"]["web-after-db"] == {"first": "db", "then": "web", "kind": "Optional"}
    # What pillar does not say any more goes.
    assert constraints["locations"]["db-prefers-hv1"] == {"ensure": "absent"}
    assert constraints["orders"]["db-after-web"] == {"ensure": "absent"}


def colocations(guests, **pillar):
    """The colocations of guests with others that are wished for, by their ids."""
    found = cluster_derived.declared(whole(guests, **pillar))["constraints"]["colocations"]
    words = ("-beside-", "-apart-from-")
    rows = {name: row for name, row in found.items() if any(word in name for word in words) and "with" in row}
    return {name: (row["resource"], row["with"], row["score"]) for name, row in rows.items()}


def test_the_first_volume_wants_what_its_guest_wants_since_it_is_placed_before_it():
    guests = {"web": guest("two", "one", ha={"anti_affinity": ["db"], "strict": True}), "db": guest()}
    assert colocations(guests) == {
        "web-apart-from-db": ("web", "db", "-INFINITY"),
        "vm-two-apart-from-db": ("vm-two", "db", "-INFINITY"),
    }
    names, live = {"hv1": "hv1", "hv2": "hv2"}, cluster_cib.empty()
    live = cluster_cib.apply(live, cluster_derived.declared(whole(guests)), names).text
    assert 'id="vm-two-apart-from-db"' in live
    # What is not wished any more goes, and what the guest's next first volume wants comes.
    for other, gone in (
        (guest("two", "one"), ("vm-two-apart", "web-apart")),
        (guest("one", "two", ha=guests["web"]["ha"]), ("vm-two-apart",)),
        (guest("two", "one", ensure="absent"), ("vm-two-apart", "web-apart")),
    ):
        after = cluster_cib.apply(live, cluster_derived.declared(whole({**guests, "web": other})), names).text
        assert not [word for word in gone if word in after]
    everywhere = {"vm": {**GROUPS["vm"], "volumes": {"two": {"size_mib": 64, "active": "everywhere"}}}}
    whose = {"web": guest("two", ha={"affinity": ["db"]}), "db": guest()}
    assert list(colocations(whose, storage={**STORAGE, "volume_groups": everywhere})) == ["web-beside-db"]


def test_of_two_that_say_the_same_of_each_other_the_one_with_the_lower_priority_gives_way():
    web, db = {"anti_affinity": ["db"], "priority": 5}, {"anti_affinity": ["web"]}
    guests = {"web": guest("one", ha=web), "db": guest("two", ha=db)}
    assert list(colocations(guests)) == ["db-apart-from-web", "vm-two-apart-from-web"]
    # A must says more than a wish.
    guests["web"]["ha"] = {**web, "strict": True}
    assert list(colocations(guests)) == ["web-apart-from-db", "vm-one-apart-from-db"]
    both = {name: guest(disk, ha={"affinity": [other], "strict": True})
            for name, disk, other in (("web", "one", "db"), ("db", "two", "web"))}  # fmt: skip
    assert list(colocations(both)) == ["web-beside-db", "vm-one-beside-db"]


def test_volumes_keep_out_of_wishes_that_go_in_a_circle():
    odd = {"web": guest("one", ha={"affinity": ["db"]}), "db": guest("two", ha={"anti_affinity": ["web"]})}
    odd["mail"] = guest(ha={"affinity": ["web"]})
    assert set(colocations(odd)) == {"web-beside-db", "db-apart-from-web", "mail-beside-web"}
    three = {"a": guest("one", ha={"affinity": ["b"]}), "b": guest(ha={"affinity": ["c"]})}
    three["c"] = guest("two", ha={"affinity": ["a"]})
    assert set(colocations(three)) == {"a-beside-b", "b-beside-c", "c-beside-a"}


def test_no_guest_before_fencing_works_and_it_is_a_cib_that_stays():
    pillar = whole({"web": guest("one"), "db": guest("two", ha={"anti_affinity": ["web"]})})
    names, live = {"hv1": "hv1", "hv2": "hv2"}, cluster_cib.empty()
    for stage in ("fencing", "locking", "all"):
        found = cluster_derived.declared(pillar, stage)
        assert ("web" in found["resources"]) is (stage == "all")
        live = cluster_cib.apply(live, found, names).text
        assert cluster_cib.apply(live, found, names).changes == {}
    without = whole({"web": guest()}, storage={"lock_manager": ""}, sbd={"enabled": True, "devices": ["/dev/x"]})
    assert cluster_derived.before(without, "all") == cluster_derived.declared(without, "fencing")


def test_what_an_operator_has_stopped_stays_stopped():
    pillar, names = whole({"web": guest("one")}), {"hv1": "hv1", "hv2": "hv2"}
    live = cluster_cib.apply(cluster_cib.empty(), cluster_derived.declared(pillar), names).text
    mark = '<nvpair id="web-meta_attributes-priority"'
    stopped = live.replace(mark, f'<nvpair id="x" name="target-role" value="Stopped"/>{mark}')
    assert stopped != live
    assert cluster_cib.apply(stopped, cluster_derived.declared(pillar), names).changes == {}


def test_a_guest_that_goes_takes_its_constraints_along_and_leaves_its_volume():
    names = {"hv1": "hv1", "hv2": "hv2"}
    before = cluster_derived.declared(whole({"web": guest("one")}))
    live = cluster_cib.apply(cluster_cib.empty(), before, names).text
    after = cluster_cib.apply(live, cluster_derived.declared(whole({"web": guest("one", ensure="absent")})), names)
    assert 'id="web' not in after.text
    assert not [change for change in after.changes if change.startswith("resource vm-one")]


# ---- what is refused ----


def wrong(guests, minion="hv1", pools=None, mounts=(), **pillar):
    found = cluster_guests.problems(minion, cluster(**pillar), guests, pools or {}, mounts)
    return dict(found)


def test_a_guest_on_shared_volumes_of_a_fenced_cluster_is_taken():
    assert wrong({"web": guest("one"), "db": guest("two")}) == {}


@pytest.mark.parametrize(
    ("pillar", "words"),
    [
        ({"nodes": {}, "storage": {}}, "there is no cluster"),
        ({"stack": "cman"}, "cluster:stack: cman"),
        ({"nodes": {"hv2": NODES["hv2"]}}, "hv1 is not among cluster:nodes: hv2"),
        ({"properties": {"stonith-enabled": False}}, "cluster:properties:stonith-enabled is off"),
        ({"sbd": {"enabled": False}}, "cluster:sbd:enabled: true"),
        (
            {"sbd": {"enabled": False}, "stonith": {"a": {"agent": "fence_x", "targets": ["hv1"]}}},
            "no device below cluster:stonith has as target: hv2;",
        ),
    ],
)
def test_a_cluster_that_cannot_run_guests_is_named(pillar, words):
    assert words in wrong({"web": guest("one")}, **pillar)["libvirt:guests:web:ha"]


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        ({"source_file": "/dev/sdb"}, "/dev/sdb is not on shared storage; must be a volume below"),
        ({"path": "/dev/vm/one"}, "name it as source_file"),
        ({"pool": "local"}, "pool local is dir"),
        ({"pool": "nobody"}, "pool nobody is not declared in libvirt:pools"),
        ({"size": 9}, "kvm:images:path is on one node alone"),
        ({"source_file": "/srv/nfs-like/a.raw"}, "/srv/nfs-like/a.raw is on one node alone"),
        ({"source_file": "/srv/nfs/../a.raw"}, "is on one node alone"),
    ],
)
def test_a_disk_that_not_every_node_has_is_named(disk, words):
    found = wrong(
        {"web": guest(disks=[{"name": "data", **disk}])}, pools={"local": {"ptype": "dir"}}, mounts=["/srv/nfs"]
    )
    assert words in found["libvirt:guests:web:disks:data"]


def test_files_that_all_nodes_mount_are_taken():
    rows = [{"name": "a", "pool": "net"}, {"name": "b", "source_file": "/srv/nfs/b"}, {"name": "c", "device": "cdrom"}]
    assert wrong({"web": guest(disks=rows)}, pools={"net": {"ptype": "netfs"}}, mounts=["/srv/nfs"]) == {}


def test_a_volume_of_two_guests_a_name_that_is_taken_and_a_stranger_are_named():
    found = wrong({"web": guest("one", ha={"prefer": ["hv9"]}), "db": guest("one"), "vm-two": guest()})
    assert found["libvirt:guests:db:disks:one"] == "/dev/vm/one is a disk of the guest web already"
    assert "hv9 is not among cluster:nodes" in found["libvirt:guests:web:ha:prefer"]
    assert "vm-two is the name of a resource already" in found["libvirt:guests:vm-two:ha"]


def judged(**guests):
    for name, spec in guests.items():
        assert formula_schema.errors(DEFINITION, spec, name, WORDS) == []
    return dict(rules.errors({"guests": guests}))


@pytest.mark.parametrize(
    ("over", "where", "words"),
    [
        ({"ensure": "stopped"}, "ensure", "hypervisor.shutdown stops it"),
        ({"autostart": True}, "autostart", "the cluster starts it"),
        ({"cloud_init": {"minion": True}}, "cloud_init:minion", "not allowed with ha"),
        ({"disks": [{"name": "cd", "device": "cdrom", "image": "/a.iso"}]}, "disks:cd:image", "not allowed with ha"),
        ({"ha": {"affinity": ["web"]}}, "ha:affinity", "the guest itself"),
        ({"ha": {"after": ["plain"]}}, "ha:after", "plain is no guest with ha; must be some of: db"),
        ({"ha": {"affinity": ["db"], "anti_affinity": ["db"]}}, "ha:anti_affinity", "stands below affinity too"),
    ],
)
def test_what_pillar_itself_contradicts_is_named(over, where, words):
    found = judged(web={"ha": True, **over}, db={"ha": True}, plain={"mem": 64})
    assert list(found) == [f"libvirt:guests:web:{where}"]
    assert words in found[f"libvirt:guests:web:{where}"]


def test_a_name_that_is_no_resource_is_named_and_a_plain_guest_may_have_it():
    assert "is no name for a resource" in dict(rules.errors({"guests": {"7up": {"ha": True}}}))["libvirt:guests:7up:ha"]
    assert rules.errors({"guests": {"7up": {}, "web": {"ha": {"priority": 1}, "ensure": "absent"}}}) == []


@pytest.mark.parametrize("ha", [{}, {"prefer": "hv1"}, {"strict": 1}, {"priority": "high"}, {"other": 1}, "yes"])
def test_the_schema_refuses_what_is_no_option(ha):
    assert formula_schema.errors(DEFINITION, {"ha": ha}, "web", WORDS)


# ---- the definition's file ----


def test_a_definition_is_written_anew_when_declared_otherwise_or_changed_by_somebody():
    text = cluster_guests.written("declared", "<domain/>\n")
    assert not cluster_guests.differs(text, "declared")
    assert cluster_guests.differs(text, "other")
    assert cluster_guests.differs(text.replace("<domain/>", "<domain />"), "declared")
    assert cluster_guests.differs(None, "declared")
    assert cluster_guests.differs("", "declared")


def test_every_node_gives_a_guest_the_same_identity_and_another_cluster_does_not():
    assert cluster_guests.identity("lab", "web") == cluster_guests.identity("lab", "web")
    assert len({cluster_guests.identity(*names) for names in (("lab", "web"), ("lab", "db"), ("vm", "web"))}) == 3


def test_whether_a_guest_is_the_clusters(tmp_path):
    assert not cluster_guests.is_defined("web", str(tmp_path))
    (tmp_path / "web.xml").touch()
    assert cluster_guests.is_defined("web", str(tmp_path))

"""What the SLS of cluster/ come to: nothing without nodes, no secret in any state, one host that changes the CIB."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jinja2
import pytest
from render_harness import grains

ROOT = Path(__file__).resolve().parents[2]
GRAINS = grains()["debian-12"]
KEY = base64.b64encode(bytes(range(256))).decode()
NODES = {f"hv{n}": {"id": n, "addresses": [f"192.0.2.{n}"]} for n in (1, 2, 3)}
BASE = {"name": "c", "nodes": NODES, "bootstrap_node": "hv1", "keys": {"keeper": "master"}}
SBD = {"enabled": True, "devices": ["/dev/disk/by-id/scsi-sbd"], "module": "softdog", "blacklist": ["iTCO_wdt"]}
FENCE = {"agent": "fence_x", "targets": ["hv1", "hv2", "hv3"], "secrets": {"passwd": "kq3Vw8yR0bN5"}}


@pytest.fixture(name="compiled")
def what_a_pillar_comes_to(make_host):
    """Compiles cluster/ as hv1 with a pillar; returns the states by id."""

    def compiled(**over):
        low, errors = make_host(GRAINS, {"cluster": {**BASE, **over}}).compile("cluster")
        assert errors == []
        return {chunk["__id__"]: chunk for chunk in low}

    return compiled


def test_without_nodes_nothing_is_done(make_host):
    assert make_host(GRAINS, {}).compile("cluster") == ([], [])


def test_the_bootstrap_node_hands_out_the_key_and_others_do_not(compiled):
    states = compiled()
    assert states["cluster_key_handed_out"]["nodes"] == ["hv2", "hv3"]
    assert "cluster_key_handed_out" not in compiled(bootstrap_node="hv2")


def test_a_key_of_the_site_is_in_no_state_and_needs_no_other_host(compiled):
    states = compiled(keys={"corosync": KEY})
    assert KEY[:24] not in json.dumps(states, default=str)
    assert states["cluster_key"]["pillar_key"] == "cluster:keys:corosync"
    assert not {"cluster_key_pair", "cluster_key_handed_out"} & set(states)


def test_one_node_alone_asks_nobody(compiled):
    states = compiled(nodes={"hv1": NODES["hv1"]}, keys={})
    assert not {"cluster_key_pair", "cluster_key_handed_out"} & set(states)


def test_a_node_that_leaves_does_nothing_else(compiled):
    states = compiled(nodes={**NODES, "hv1": {**NODES["hv1"], "ensure": "absent"}}, bootstrap_node="hv2")
    assert set(states) == {"cluster_left", "cluster_durable"}
    assert set(states["cluster_left"]["leaving"]) == {"hv1"}


def test_a_node_that_leaves_asks_for_no_locks_any_more(compiled):
    leaving = {"nodes": {**NODES, "hv1": {**NODES["hv1"], "ensure": "absent"}}, "bootstrap_node": "hv2"}
    assert "/etc/lvm/lvmlocal.conf" not in compiled(**leaving)["cluster_left"]["files"]
    states = compiled(**leaving, sbd=SBD, storage={"lock_manager": "dlm", "volume_groups": GROUPS})
    assert "/etc/lvm/lvmlocal.conf" in states["cluster_left"]["files"]


def test_the_others_are_told_who_leaves(compiled):
    states = compiled(nodes={**NODES, "hv3": {**NODES["hv3"], "ensure": "absent"}})
    assert set(states["cluster_corosync_conf"]["nodes"]) == {"hv1", "hv2"}
    assert set(states["cluster_corosync_conf"]["leaving"]) == {"hv3"}
    assert states["cluster_key_handed_out"]["nodes"] == ["hv2"]
    assert set(states["cluster_members_forgotten"]["nodes"]) == {"hv3"}


def test_secrets_are_in_no_state_and_the_bootstrap_node_alone_changes_the_cib(compiled):
    states = compiled(stonith={"fence": FENCE})
    assert "kq3Vw8yR0bN5" not in json.dumps(states, default=str)
    assert states["cluster_cib"]["declared"]["stonith"]["fence"]["secrets"] == ["passwd"]
    secret = states["cluster_secrets_fence"]
    assert (secret["pillar_key"], secret["parameters"]) == ("cluster:stonith:fence:secrets", ["passwd"])
    others = compiled(stonith={"fence": FENCE}, bootstrap_node="hv2")
    assert "cluster_secrets_fence" in others
    assert "cluster_cib" not in others


def test_secrets_of_what_is_absent_go(compiled):
    states = compiled(stonith={"fence": {"ensure": "absent"}})
    assert states["cluster_secrets_fence"]["parameters"] == []
    assert states["cluster_cib"]["declared"]["stonith"] == {"fence": {"ensure": "absent"}}


def test_secrets_that_are_not_declared_any_more_go_after_the_cib_has_changed(compiled):
    plain = {"agent": "fence_x", "targets": ["hv1", "hv2", "hv3"]}
    states = compiled(stonith={"fence": plain}, resources={"ip": {"agent": "ocf:heartbeat:IPaddr2"}})
    for name in ("fence", "ip"):
        assert states[f"cluster_secrets_{name}"]["parameters"] == []
        assert "cib cluster_cib" in required(states[f"cluster_secrets_{name}"])
    assert "cib cluster_secrets_fence" not in required(states["cluster_cib"])
    other = compiled(stonith={"fence": plain}, bootstrap_node="hv2")["cluster_secrets_fence"]
    assert (other["parameters"], required(other)) == ([], {"pkg cluster_packages"})
    held = compiled(stonith={"fence": FENCE})
    assert "cib cluster_secrets_fence" in required(held["cluster_pacemaker_service"])
    assert "cib cluster_cib" not in required(held["cluster_secrets_fence"])


@pytest.mark.parametrize("manager", ["dlm", "sanlock"])
@pytest.mark.parametrize("bootstrap", ["hv1", "hv2"])
def test_every_node_has_the_secrets_before_its_pacemaker_starts(make_host, bootstrap, manager):
    storage = {"lock_manager": manager, "volume_groups": GROUPS}
    pillar = {**BASE, "stonith": {"fence": FENCE}, "storage": storage, "bootstrap_node": bootstrap}
    low, errors = make_host(GRAINS, {"cluster": pillar}).compile("cluster")
    assert errors == []
    states = {chunk["__id__"]: chunk for chunk in low}
    assert "cib cluster_secrets_fence" in required(states["cluster_pacemaker_service"])
    # What waits for another node comes after that.
    assert "cluster_member cluster_quorum" in required(states["cluster_volume_group_vm"])
    assert states["cluster_secrets_fence"]["fences"] is True


def test_without_resources_the_cib_is_left_alone(compiled):
    assert "cluster_cib" not in compiled()


@pytest.mark.parametrize(("tooling", "held"), [("pcs", True), ("crmsh", False)])
def test_the_tooling_is_installed_and_its_daemon_is_held_back(compiled, tooling, held):
    states = compiled(tooling=tooling)
    assert tooling in states["cluster_packages"]["pkgs"]
    assert ("cluster_unit_pcsd" in states) is held


@pytest.mark.parametrize(
    ("system", "over", "text"),
    [
        ("rocky-9", {"tooling": "crmsh"}, "cluster:tooling: crmsh is in no repository of this system; must be pcs"),
        ("almalinux-10", {"sbd": SBD, "storage": {"lock_manager": "dlm"}}, "cluster:storage:lock_manager: dlm is in"),
        (
            "almalinux-10",
            {"stonith": {"fence": FENCE}, "storage": {"lock_manager": "sanlock"}},
            "cluster:storage:lock_manager: sanlock is in no repository of this system; must be left out",
        ),
    ],
)
def test_what_a_system_has_no_package_of_is_refused_unless_the_site_has(make_host, system, over, text):
    _, errors = make_host(grains()[system], {"cluster": {**BASE, **over}}).compile("cluster")
    assert text in str(errors)
    role = over.get("tooling") or over["storage"]["lock_manager"]
    own = {**BASE, **over, "packages": {"roles": {role: ["our-build"]}}}
    low, errors = make_host(grains()[system], {"cluster": own}).compile("cluster")
    assert errors == []
    assert "our-build" in next(chunk for chunk in low if chunk["__id__"] == "cluster_packages")["pkgs"]


def test_of_a_cluster_of_the_old_kind_the_files_alone_are_written(compiled):
    states = compiled(stack="cman", cman={"config_version": 1})
    assert {chunk["state"] for chunk in states.values()} == {"cluster_node", "cman", "durable"}
    paths = {chunk["name"] for chunk in states.values() if chunk["state"] == "cman"}
    assert paths == {"/etc/cluster/cluster.conf", "/etc/corosync/corosync.conf", "/etc/lvm/lvm.conf"}
    assert "cluster_cman_lvm_conf" not in compiled(stack="cman", cman={"config_version": 1, "clvm": False})


GROUPS = {"vm": {"devices": ["/dev/disk/by-id/scsi-san"], "volumes": {"one": {"size_mib": 64}}}}


def required(state):
    """What a state requires, as "kind id"."""
    return {f"{kind} {name}" for one in state["require"] for kind, name in one.items()}


def test_corosync_starts_once_sbd_is_set_up_and_pacemaker_once_it_works(compiled):
    states = compiled(sbd=SBD)
    assert "sbd" in states["cluster_packages"]["pkgs"]
    assert required(states["cluster_sbd_service"]) >= {
        "file cluster_sbd_config", "file cluster_sbd_unit_corosync", "sbd cluster_sbd_disks",
        "kernel_module cluster_sbd_module",
    }  # fmt: skip
    assert "service cluster_sbd_service" in required(states["cluster_corosync_service"])
    assert "sbd cluster_sbd_working" in required(states["cluster_pacemaker_service"])
    working = [states["cluster_sbd_working"][key] for key in ("devices", "watchdog", "watchdog_timeout")]
    assert working == [SBD["devices"], "/dev/watchdog", 15]
    assert states["cluster_sbd_blacklist"]["contents"] == ["blacklist iTCO_wdt"]
    assert states["cluster_unit_sbd_remote"]["target"] == "/dev/null"
    # Token 3 s and 650 ms for the third node, consensus 1.2 times as much, msgwait 30 s, delay_max 10 s.
    assert states["cluster_sbd_config"]["context"]["start_delay"] == 9 + 30 + 10
    assert compiled(sbd={**SBD, "start_delay": 0})["cluster_sbd_config"]["context"]["start_delay"] == 0


@pytest.mark.parametrize("sbd", [SBD, {"enabled": True, "module": "softdog"}])
def test_nothing_of_sbd_is_written_before_a_running_one_has_been_asked(compiled, sbd):
    states = compiled(sbd=sbd)
    asked = states["cluster_sbd_unchanged"]
    assert required(asked) == {"cluster_node cluster_node"}
    settings = ("devices", "watchdog", "watchdog_timeout")
    assert [asked[key] for key in settings] == [states["cluster_sbd_working"][key] for key in settings]

    def waits(name):
        """Says whether a state comes after it, by what it requires and what that requires."""
        needs = {one.split()[1] for one in required(states[name])}
        return "cluster_sbd_unchanged" in needs or any(waits(one) for one in needs if one.startswith("cluster_sbd_"))

    of_sbd = {name for name in states if name.startswith("cluster_sbd_")} - {"cluster_sbd_unchanged"}
    assert {name for name in of_sbd - {"cluster_sbd_working", "cluster_sbd_announced"} if not waits(name)} == set()


@pytest.mark.parametrize("bootstrap", ["hv1", "hv2"])
@pytest.mark.parametrize("sbd", [SBD, {"enabled": True, "module": "softdog"}])
def test_on_every_node_the_cib_on_its_disk_fits_sbd_before_sbd_and_pacemaker_start(compiled, sbd, bootstrap):
    fence = {"agent": "fence_x", "targets": ["hv1"], "runs_on": ["hv2"], "secrets": {"passwd": "kq3Vw8yR0bN5"}}
    stonith = {"other": fence} if "devices" in sbd else {"fence_sbd": fence}
    states = compiled(sbd=sbd, stonith=stonith, properties={"stonith-timeout": "90s"}, bootstrap_node=bootstrap)
    fits = states["cluster_sbd_cib"]
    assert (fits["state"], fits["fun"], fits["nodes"]) == ("cib", "fits_sbd", ["hv1", "hv2", "hv3"])
    assert fits["bootstrap"] == bootstrap
    assert fits["declared"]["sbd"]["devices"] == sbd.get("devices", [])
    assert fits["declared"]["properties"] == {"stonith-timeout": "90s"}
    assert fits["declared"]["stonith"] == ({} if "devices" in sbd else {"fence_sbd": {"agent": "fence_x"}})
    assert "kq3Vw8yR0bN5" not in json.dumps(fits, default=str)
    # A disk that cannot be made is no reason to give up the one before.
    assert ("sbd cluster_sbd_disks" in required(fits)) is ("devices" in sbd)
    written = ("cluster_sbd_config", "cluster_sbd_unit_sbd", "cluster_sbd_unit_corosync")
    for name in (*written, "cluster_pacemaker_service"):
        assert "cib cluster_sbd_cib" in required(states[name])
    assert "file cluster_sbd_config" in required(states["cluster_sbd_service"])
    assert "service cluster_sbd_service" in required(states["cluster_corosync_service"])


def test_without_sbd_nothing_of_it_is_there(compiled):
    assert not [name for name in compiled() if "sbd" in name or "lvm" in name or "volume" in name]


def test_a_watchdog_alone_has_no_disk(compiled):
    states = compiled(sbd={"enabled": True})
    assert "cluster_sbd_disks" not in states
    assert states["cluster_sbd_config"]["context"]["devices"] == []
    assert "cluster_member cluster_quorum" in required(states["cluster_sbd_announced"])
    assert "sbd cluster_sbd_announced" in required(states["cluster_cib"])
    assert states["cluster_sbd_announced"]["devices"] == []
    states = compiled(sbd=SBD)
    assert states["cluster_sbd_announced"]["devices"] == SBD["devices"]
    assert "sbd cluster_sbd_announced" in required(states["cluster_cib"])


@pytest.mark.parametrize(("sbd", "order"), [(SBD, "After=sbd.service"), ({"enabled": True}, "BindsTo=sbd.service")])
def test_corosync_waits_for_sbd_where_that_does_not_wait_for_corosync(compiled, sbd, order):
    context = compiled(sbd=sbd)["cluster_sbd_unit_corosync"]["context"]
    source = ROOT / "cluster/files/etc/systemd/system/corosync-sbd.conf"
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - a unit, not HTML
    lines = jinja.from_string(source.read_text()).render(context).splitlines()
    assert lines[0].startswith("# Written by Salt")
    assert order in lines
    assert len({"After=sbd.service", "BindsTo=sbd.service"} & {*lines}) == 1


def test_locks_come_after_fencing_and_volumes_after_locks(compiled):
    states = compiled(sbd=SBD, storage={"lock_manager": "dlm", "volume_groups": GROUPS})
    assert states["cluster_cib_fencing"]["stage"] == "fencing"
    assert "cib cluster_cib_fencing" in required(states["cluster_cib_locking"])
    assert "cib cluster_cib_locking" in required(states["cluster_volume_group_vm"])
    assert required(states["cluster_volume_vm-one"]) == {"shared_volumes cluster_volume_group_vm"}
    assert required(states["cluster_cib"]) >= {
        "cib cluster_cib_locking", "shared_volumes cluster_volume_group_vm", "shared_volumes cluster_volume_vm-one"
    }  # fmt: skip
    assert "file cluster_lvm_config" in required(states["cluster_corosync_service"])
    for unit in ("dlm", "lvmlockd", "lvmlocks"):
        assert states[f"cluster_unit_{unit}"]["target"] == "/dev/null"


def test_another_node_makes_no_volume_and_changes_no_cib(compiled):
    states = compiled(
        sbd=SBD, storage={"lock_manager": "dlm", "volume_groups": GROUPS}, bootstrap_node="hv2"
    )  # fmt: skip
    assert "cluster_volume_group_vm" in states
    assert not {"cluster_volume_vm-one", "cluster_cib", "cluster_cib_fencing", "cluster_cib_locking"} & set(states)


def test_the_daemons_of_sanlock_are_services_of_each_node(compiled):
    fence = {"fence": {"agent": "fence_ipmilan", "targets": ["hv1", "hv2", "hv3"]}}
    states = compiled(stonith=fence, storage={"lock_manager": "sanlock", "volume_groups": GROUPS})
    assert not {"cluster_unit_dlm", "cluster_cib_locking"} & set(states)
    assert states["cluster_lvm_config"]["context"] == {"host_id": 1, "groups": ["vm"]}
    for unit in ("wdmd", "sanlock", "lvmlockd", "lvmlocks"):
        assert states[f"cluster_lock_service_{unit}"]["enable"] is True
        assert "cluster_key cluster_key" in required(states[f"cluster_lock_service_{unit}"])
        # What the package starts waits for the key, and starts with its watchdog.
        assert states[f"cluster_unit_{unit}"]["fun"] == "managed"
        assert f"file cluster_unit_{unit}" in required(states["cluster_packages"])
    assert "service cluster_lock_service_lvmlockd" in required(states["cluster_pacemaker_service"])
    assert states["cluster_lock_order"]["fun"] == "managed"
    assert "service cluster_lock_service_sanlock" in required(states["cluster_lock_service_lvmlockd"])
    assert required(states["cluster_volume_group_vm"]) >= {
        "service cluster_lock_service_lvmlockd", "cib cluster_cib_fencing"
    }  # fmt: skip
    assert "cib cluster_cib_fencing" in required(states["cluster_cib"])
    assert {"sanlock", "lvm2-lockd"} <= set(states["cluster_packages"]["pkgs"])
    assert "cluster_watchdog_module" not in states


def test_a_watchdog_of_the_kernels_own_is_there_before_wdmd(compiled):
    fence = {"fence": {"agent": "fence_ipmilan", "targets": ["hv1", "hv2", "hv3"]}}
    storage = {"lock_manager": "sanlock", "watchdog_module": "softdog", "volume_groups": GROUPS}
    states = compiled(stonith=fence, storage=storage)
    assert "kernel_module cluster_watchdog_module" in required(states["cluster_lock_service_wdmd"])
    assert states["cluster_watchdog_module_at_boot"]["contents"] == "softdog"


def test_storage_without_fencing_is_refused_by_name(make_host):
    pillar = {"cluster": {**BASE, "storage": {"lock_manager": "dlm", "volume_groups": GROUPS}}}
    _, errors = make_host(GRAINS, pillar).compile("cluster")
    assert "cluster:storage:lock_manager: dlm needs fencing" in str(errors)


# ---- guests that the cluster runs ----

STORED = {
    "sbd": SBD,
    "storage": {
        "lock_manager": "dlm",
        "volume_groups": {"vm": {"devices": ["/dev/disk/by-id/san"], "volumes": {"one": {"size_mib": 64}}}},
    },
}
CLOUD = {"user_data": {"password": "word"}}
WEB = {"ha": True, "disks": [{"name": "data", "source_file": "/dev/vm/one"}], "cloud_init": CLOUD}


@pytest.fixture(name="both")
def two_formulas(make_host):
    def compile_(guest, **over):
        pillar = {"cluster": {**BASE, **STORED, **over}, "libvirt": {"guests": {"web": guest}}}
        low, errors = make_host(GRAINS, pillar).compile("kvm", "libvirt", "cluster")
        assert errors == []
        return {chunk["__id__"]: chunk for chunk in low}

    return compile_


def test_a_guest_of_the_cluster_is_defined_on_every_node_and_never_started_there(both):
    for bootstrap in ("hv1", "hv2"):
        states = both(WEB, bootstrap_node=bootstrap)
        row = states["libvirt_guest_web"]
        assert (row["state"], row["fun"], row["ha"]) == ("cluster_guest", "defined", True)
        assert states["cluster_volume_agent"]["mode"] == "0755"


def test_the_cluster_gets_it_once_it_is_defined_and_nothing_of_its_secrets(both):
    states = both(WEB)
    assert "cluster_guest libvirt_guest_web" in required(states["cluster_cib"])
    disks = WEB["disks"]
    for stage in ("cluster_cib_fencing", "cluster_cib"):
        assert states[stage]["declared"]["guests"] == {"web": {"ha": True, "ensure": "running", "disks": disks}}
    assert "word" not in str(states["cluster_cib"])


def test_without_shared_storage_fencing_still_comes_before_a_guest(both):
    states = both({"ha": True}, storage={"lock_manager": ""})
    assert "cluster_cib_locking" not in states
    assert states["cluster_cib"]["stage"] == "all"
    assert "cib cluster_cib_fencing" in required(states["cluster_cib"])


def test_a_guest_that_goes_leaves_the_cluster_before_its_definition(both):
    gone = {"ha": True, "ensure": "absent"}
    states = both(gone)
    assert states["libvirt_guest_web"]["fun"] == "absent"
    assert "cib cluster_cib" in required(states["libvirt_guest_web"])
    assert not any("libvirt_guest_web" in one for one in required(states["cluster_cib"]))
    assert not any("cib" in one for one in required(both(gone, bootstrap_node="hv2")["libvirt_guest_web"]))


def test_a_node_that_leaves_stops_before_it_forgets_its_guests(both):
    nodes = {**NODES, "hv1": {**NODES["hv1"], "ensure": "absent"}}
    states = both(WEB, nodes=nodes, bootstrap_node="hv2")
    assert states["libvirt_guest_web"]["fun"] == "absent"
    assert "cluster_member cluster_left" in required(states["libvirt_guest_web"])


def test_a_guest_of_this_host_alone_is_none_of_the_clusters(both):
    states = both({"ha": False, "mem": 64})
    assert (states["libvirt_guest_web"]["state"], states["libvirt_guest_web"]["fun"]) == ("guest", "running")
    assert states["cluster_cib"]["declared"]["guests"] == {}

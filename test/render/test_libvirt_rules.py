"""A pillar whose pools and networks do not fit together ends the compilation like one that the schema refuses."""

from __future__ import annotations

from render_harness import ROOT, grains

DEBIAN = grains()["debian-12"]
NETWORK = {"forward": "nat", "ipv4_config": {"cidr": "192.168.44.0/24"}}


def test_networks_that_overlap_end_the_compilation(make_host):
    pillar = {"libvirt": {"networks": {"one": NETWORK, "two": NETWORK}}}
    low, errors = make_host(DEBIAN, pillar, ROOT).compile("libvirt")
    assert low == []
    (error,) = errors
    assert "the pillar of libvirt has 1 error, so nothing was changed:" in error
    assert "libvirt:networks:two:ipv4_config:cidr: 192.168.44.0/24 overlaps 192.168.44.0/24 of the network one" in error


def test_each_state_waits_for_the_daemon_and_absent_names_nothing_else(make_host):
    pillar = {
        "libvirt": {
            "networks": {"one": NETWORK, "gone": {"ensure": "absent", "forward": "nat"}},
            "pools": {"images": {"ptype": "dir", "target": "/srv/images", "ensure": "defined"}},
        }
    }
    low, errors = make_host(DEBIAN, pillar, ROOT).compile("libvirt")
    assert errors == []
    states = {chunk["__id__"]: chunk for chunk in low}
    assert states["libvirt_network_one"]["fun"] == "running"
    assert states["libvirt_network_one"]["ipv4_config"] == {"cidr": "192.168.44.0/24"}
    assert states["libvirt_pool_images"]["fun"] == "defined"
    assert states["libvirt_network_gone"]["fun"] == "absent"
    assert "forward" not in states["libvirt_network_gone"]
    for ident in ("libvirt_network_one", "libvirt_network_gone", "libvirt_pool_images"):
        assert {"libvirt_daemon": "libvirt_daemon"} in states[ident]["require"]


def test_guests_that_go_are_gone_before_what_they_used(make_host):
    gone = {"ensure": "absent"}
    pools = {"images": gone, "kept": {"ptype": "dir", "target": "/srv/kept"}}
    pillar = {"libvirt": {"networks": {"net": gone}, "pools": pools, "guests": {"web": gone, "db": {"mem": 64}}}}
    low, errors = make_host(DEBIAN, pillar, ROOT).compile("libvirt")
    assert errors == []
    states = {chunk["__id__"]: chunk for chunk in low}
    for ident in ("libvirt_network_net", "libvirt_pool_images"):
        assert states[ident]["leaving"] == ["web"]
        assert {"guest": "libvirt_guest_web"} in states[ident]["require"]
        assert {"guest": "libvirt_guest_db"} not in states[ident]["require"]
    assert states["libvirt_pool_kept"]["require"] == [{"libvirt_daemon": "libvirt_daemon"}]
    # Applied alone, pools bring guests along only where one has to go first.
    low, errors = make_host(DEBIAN, pillar, ROOT).compile("libvirt.pools")
    assert (errors, "libvirt_guest_web" in {chunk["__id__"] for chunk in low}) == ([], True)
    low, errors = make_host(DEBIAN, {"libvirt": {**pillar["libvirt"], "pools": {}}}, ROOT).compile("libvirt.pools")
    assert (errors, "libvirt_guest_web" in {chunk["__id__"] for chunk in low}) == ([], False)


def test_a_pool_waits_for_the_mounts_that_it_lies_on(make_host):
    mount = {"device": "nfs:/a", "fstype": "nfs"}
    pools = {"on": "/srv/vm/images", "at": "/srv/vm", "beside": "/srv/vm2"}
    pillar = {
        "kvm": {"mounts": {"/srv/vm": mount}},
        "libvirt": {"pools": {name: {"ptype": "dir", "target": path} for name, path in pools.items()}},
    }
    low, errors = make_host(DEBIAN, pillar, ROOT).compile("libvirt.pools")
    assert errors == []
    waiting = [one["name"] for one in low if {"host_mount": "kvm_mount_/srv/vm"} in one.get("require", [])]
    assert waiting == ["on", "at"]

"""A pool, a network and a guest on both, declared in one pillar and brought about by one run."""

import json

import pytest

HOST = "hv1"
FOLDER = "/var/lib/libvirt/images"
POOL = {"ptype": "dir", "target": "/srv/site-pool"}
NETWORK = {"forward": "isolated", "bridge": "site-br", "ipv4_config": {"cidr": "192.168.77.0/24"}}
GUEST = {
    "cpu": 1,
    "mem": 128,
    "boot": {
        "kernel": f"{FOLDER}/lab-guest-vmlinuz",
        "initrd": f"{FOLDER}/lab-guest-initramfs",
        "cmdline": "console=ttyS0 no_timer_check",
    },
    "disks": [{"name": "system", "pool": "site-pool", "format": "qcow2", "size": 16}],
    "interfaces": [{"name": "eth0", "type": "network", "source": "site-net"}],
    "graphics": {"type": "none"},
}
PILLAR: dict[str, dict[str, object]] = {
    "pools": {"site-pool": POOL},
    "networks": {"site-net": NETWORK},
    "guests": {"site-guest": GUEST},
}
IDS = ["libvirt_pool_site-pool", "libvirt_network_site-net", "libvirt_guest_site-guest"]
ABSENT = {kind: {name: {"ensure": "absent"} for name in found} for kind, found in PILLAR.items()}


def apply(lab, libvirt, *, test=False):
    """Apply libvirt/ with more pillar; return its rows by id."""
    argv = ["salt", HOST, "--out=json", "--static", "--timeout=60", "state.apply", "libvirt", "queue=True"]
    argv += [f"pillar={json.dumps({'libvirt': libvirt})}", f"test={test}"]
    answer = json.loads(lab.run(lab.hosts.controller, argv, check=False, timeout=300).stdout)[HOST]
    assert isinstance(answer, dict), answer
    return {row["__id__"]: row for row in answer.values()}


def changed(rows):
    """Return the ids of what has changed, or would, in the order of the run."""
    return [key for key, row in sorted(rows.items(), key=lambda item: item[1]["__run_num__"]) if row["changes"]]


@pytest.fixture
def site(lab):
    """The lab, left without what this site declares."""
    lab.push_guest()
    yield lab
    for argv in (["virsh", "destroy", "site-guest"], ["virsh", "undefine", "site-guest"]):
        lab.run(HOST, argv, check=False)
    apply(lab, {kind: ABSENT[kind] for kind in ("pools", "networks")})
    lab.run(HOST, ["rm", "-rf", POOL["target"]])


def test_one_run_brings_about_what_a_pillar_declares_in_its_order(site):
    foreseen = apply(site, PILLAR, test=True)
    assert sorted(changed(foreseen)) == sorted(IDS)
    assert site.run(HOST, ["virsh", "pool-list", "--all", "--name"]).stdout.split().count("site-pool") == 0
    done = apply(site, PILLAR)
    assert [row["comment"] for row in done.values() if row["result"] is not True] == []
    assert sorted(changed(done)) == sorted(IDS)
    assert changed(done)[-1] == IDS[-1], "the guest came before what it needs"
    assert {key: done[key]["changes"] for key in IDS} == {key: foreseen[key]["changes"] for key in IDS}
    site.wait_console(HOST, "site-guest", "guest second 1", timeout=180)
    xml = site.run(HOST, ["virsh", "dumpxml", "site-guest"]).stdout
    assert "network='site-net'" in xml
    assert POOL["target"] in xml or "pool='site-pool'" in xml
    assert changed(apply(site, PILLAR)) == []


def test_what_leaves_the_pillar_stays_and_a_pool_in_use_is_not_taken_away(site):
    apply(site, PILLAR)
    assert changed(apply(site, {})) == []
    rows = apply(site, {kind: ABSENT[kind] for kind in ("pools", "networks")})
    assert [rows[key]["result"] for key in IDS[:2]] == [False, False]
    assert all("site-guest" in rows[key]["comment"] for key in IDS[:2])
    assert changed(rows) == []
    assert site.run(HOST, ["virsh", "domstate", "site-guest"]).stdout.strip() == "running"


def test_one_run_takes_away_what_a_pillar_no_longer_wants_in_its_order(site):
    apply(site, PILLAR)
    # The guest has not booted yet, and would not hear that it is to shut down.
    gone = {**ABSENT, "guests": {"site-guest": {"ensure": "absent", "allow_power_off": True, "stop_timeout": 1}}}
    foreseen, done = apply(site, gone, test=True), apply(site, gone)
    for rows in (foreseen, done):
        assert [row["comment"] for row in rows.values() if row["result"] is False] == []
        assert changed(rows)[0] == IDS[-1], "what the guest uses went first"
        assert sorted(changed(rows)) == sorted(IDS)
    assert {key: done[key]["changes"] for key in IDS} == {key: foreseen[key]["changes"] for key in IDS}
    assert "site-guest" not in site.run(HOST, ["virsh", "list", "--all", "--name"]).stdout.split()
    assert changed(apply(site, gone)) == []

"""What docs/recovery.rst says of shared disks and guests: each failure as it looks, and the way back that it names."""

from __future__ import annotations

import json
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster_site import changes, failures, soon
from guest_site import FOLDER, GUEST, GUEST_DISK
from storage_site import MSGWAIT, NODES, PATIENCE, SBD

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("course", "guest"),
    pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="Test Kitchen has one host"),
]
AGENT = "/usr/sbin/fence_sbd"
RULE = "/etc/udev/rules.d/99-away.rules"
KERNEL = f"{FOLDER}/lab-guest-vmlinuz"
VOLUME = GUEST_DISK.removeprefix("/dev/")
# What the agent notes of a volume that is on its way.
MARK = f"/run/hypervisor-volumes/{VOLUME.replace('/', '-')}.shared"


@pytest.fixture(scope="module", name="guest")
def one_that_runs(site, course):
    """A guest that the cluster runs, whatever other modules have left."""
    site.nonce = secrets.token_hex(8)
    for node in NODES:
        site.run(node, "mkdir", "-p", FOLDER)
    site.lab.push_guest()
    site.guest_declared()
    site.converge(site.lab.hosts.controller)
    site.converge(*NODES)
    return site.started()


def other_than(node):
    return next(one for one in NODES if one != node)


def console(site):
    """What a person sees on the master."""
    return site.run(site.lab.hosts.controller, "salt-run", "fleet.cluster", check=False, timeout=PATIENCE)


def salt(site, *words, check=True):
    """Ask minions as a person does; return what they answer, by minion."""
    argv = ["salt", "--out=json", "--static", "--timeout=600", *words]
    done = site.lab.run(site.lab.hosts.controller, argv, check=False, timeout=PATIENCE)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def well(site):
    """Wait until the guest counts, alone with its volume, and all else that the cluster runs is started too."""
    node = site.started()
    site.alone_on(node)
    soon(lambda: not site.idle(node), PATIENCE, "all that the cluster runs is started")
    return node


def failed(site, node):
    """What has failed, as a node sees it: the operation and where."""
    return {(one.get("task"), one.get("node")) for one in site.monitor(node).findall("failures/failure")}


# ---- sbd's disk is gone ----


def test_a_host_lives_without_sbds_disk_and_sbd_finds_it_again(site):
    node = well(site)
    machine = site.machine(node)
    boot = machine.boot_id()
    with site.stalled("sbd", node):
        soon(lambda: "outdated" in site.run(node, "journalctl", "--unit=sbd", "--boot"), PATIENCE, "sbd says so")
        assert site.asked(node, "timeout", "20", "sbd", "-d", SBD, "list")[0] != 0
        time.sleep(2 * MSGWAIT)
        assert machine.boot_id() == boot
        assert site.counts(node)
    soon(lambda: site.asked(node, "timeout", "20", "sbd", "-d", SBD, "list")[0] == 0, PATIENCE, "the disk answers")
    soon(lambda: f"sbd: watcher: {SBD}" in site.run(node, "pgrep", "--list-full", "sbd"), PATIENCE, "sbd watches it")
    site.run(node, "crm_resource", "--cleanup")
    assert well(site) == node
    assert machine.boot_id() == boot


def test_a_node_that_boots_without_sbds_disk_stays_out(site):
    node = other_than(well(site))
    # The host does not find it under its name. One that answers nothing would hold up the firmware already.
    site.run(node, "sh", "-c", f"cat > {RULE} && sync", stdin=f'SYMLINK-="{SBD.removeprefix("/dev/")}"\n')
    site.killed(node)
    site.machine(node).start()
    site.lab.hosts.wait_ssh(node, timeout=PATIENCE)
    assert site.asked(node, "test", "-e", SBD)[0] == 1
    said = ("systemctl", "show", "--property=ActiveState", "--value")
    soon(lambda: site.run(node, *said, "sbd").strip() == "failed", PATIENCE, "sbd has given up")
    assert site.run(node, *said, "corosync", "pacemaker").split() == ["inactive", "inactive"]
    assert site.online(other_than(node)) == {other_than(node)}
    site.run(node, "sh", "-c", f"rm {RULE} && sync")
    site.killed(node)
    site.back(node)
    well(site)


def test_an_empty_disk_takes_the_place_of_sbds(site):
    node = well(site)
    before = site.count(node)
    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(lambda one: site.run(one, "systemctl", "stop", "pacemaker", "corosync", timeout=600), NODES))
    site.run("hv1", "dd", "if=/dev/zero", f"of={SBD}", "bs=1M", "count=4", "oflag=direct", "status=none")
    answers = salt(site, "hv*", "state.highstate")
    done = {one: {row["__id__"]: row for row in rows.values()} for one, rows in answers.items()}
    assert set(done) == set(NODES)
    assert failures(done) == {}
    assert "cluster_sbd_disks" in changes(done)["hv1"]
    node = well(site)
    slots = [line.split()[1:3] for line in site.run(node, "sbd", "-d", SBD, "list").splitlines()]
    assert sorted(slots) == [[one, "clear"] for one in NODES]
    after = site.count(node)
    assert after.boots[:-1] == before.boots
    assert changes(site.converge(*NODES)) == {one: set() for one in NODES}


# ---- locks do not answer ----


def test_locks_wait_for_a_node_that_nobody_fences(site):
    node = well(site)
    other = other_than(node)
    site.run(other, "mv", AGENT, f"{AGENT}.away")
    try:
        site.killed(node)
        soon(lambda: site.unclean(other) == {node}, PATIENCE, f"{node} is lost")
        soon(lambda: "wait fencing" in site.run(other, "dlm_tool", "ls"), PATIENCE, "locks wait for fencing")
        assert "fence" in site.run(other, "dlm_tool", "status")
        assert f"Node {node}: UNCLEAN (offline)" in site.run(other, "crm_mon", "-1", "--inactive")
    finally:
        site.run(other, "mv", f"{AGENT}.away", AGENT)
    site.run(other, "stonith_admin", "--reboot", node, timeout=PATIENCE)
    soon(lambda: site.runs_on() == other, PATIENCE, f"the guest runs on {other}")
    assert "wait fencing" not in site.run(other, "dlm_tool", "ls")
    assert "LK LV ex" in site.run(other, "lvmlockctl", "--info")
    site.run(other, "crm_resource", "--cleanup")
    site.back(node)
    well(site)


def test_a_node_in_standby_gives_its_locks_up(site):
    node = well(site)
    before = site.count(node)
    site.run(node, "crm_standby", "--update=on", f"--node={node}")
    try:
        soon(lambda: site.runs_on() == other_than(node), PATIENCE, "the guest has moved")
        site.alone_on(other_than(node))
        soon(lambda: site.asked(node, "lvmlockctl", "--info")[0] != 0, PATIENCE, f"{node} has no daemon of locks")
        assert f"{node} is in standby" in console(site)
    finally:
        site.run(node, "crm_standby", "--update=off", f"--node={node}")
    soon(lambda: site.locks(node), PATIENCE, f"{node} has its daemon of locks")
    assert site.count(well(site)).boots == before.boots


# ---- guests ----


def test_a_guest_that_can_start_nowhere_waits_with_its_reason(site):
    node = well(site)
    before = site.count(node)
    for one in NODES:
        site.run(one, "mv", KERNEL, f"{KERNEL}.away")
    try:
        site.run(node, "virsh", "destroy", GUEST)
        soon(lambda: {("start", one) for one in NODES} <= failed(site, node), PATIENCE, "it has failed on both")
        soon(lambda: site.role(node, GUEST) == "Stopped", PATIENCE, "the cluster has it stopped")
        said = console(site)
        assert f"crm_resource --cleanup --resource {GUEST}" in said
        assert "start" in said
        assert site.guests_on() == {}
    finally:
        for one in NODES:
            site.run(one, "mv", f"{KERNEL}.away", KERNEL)
    site.run(node, "crm_resource", "--cleanup", "--resource", GUEST)
    after = site.count(well(site))
    assert after.boots[:-1] == before.boots
    assert failed(site, node) == set()


def test_a_guest_that_an_operator_has_stopped_waits_for_its_start(site):
    node = well(site)
    before = site.count(node)
    assert site.call(node, "power_off", GUEST)["state"] == "shut_off"
    assert any(GUEST in line and "Stopped" in line for line in console(site).splitlines())
    assert salt(site, node, "hypervisor.start", GUEST)[node]["state"] == "running"
    assert site.count(well(site)).boots[:-1] == before.boots


def test_a_migration_that_fails_starts_it_once_and_says_why(site):
    node = well(site)
    other = other_than(node)
    before = site.count(node)
    rules = "table inet shut { chain in { type filter hook input priority -200; tcp dport 16514 reject; } }"
    site.run(other, "nft", "--file", "-", stdin=rules)
    try:
        refused = salt(site, node, "hypervisor.migrate", GUEST, other, "test=True", check=False)[node]
        assert "16514" in str(refused)
        assert site.runs_on() == node
        site.run(node, "crm_resource", "--move", "--resource", GUEST, "--node", other, "--lifetime", "PT20M")
        soon(lambda: ("migrate_to", node) in failed(site, other), PATIENCE, "the move has failed")
    finally:
        site.run(other, "nft", "delete", "table", "inet", "shut")
    site.run(node, "crm_resource", "--clear", "--resource", GUEST)
    place = well(site)
    after = site.count(place)
    assert after.boots[:-1] == before.boots
    assert "migrate_to" in console(site)
    site.run(place, "crm_resource", "--cleanup", "--resource", GUEST)
    target = other_than(place)
    salt(site, place, "hypervisor.migrate", GUEST, target, "test=True")
    assert salt(site, place, "hypervisor.migrate", GUEST, target)[place]["to"] == target
    assert site.count(well(site)).boots == after.boots


def test_a_volume_that_stays_shared_is_let_go_by_hand(site):
    node = well(site)
    other = other_than(node)
    # As a move that was interrupted leaves it.
    site.run(node, "touch", MARK)
    for one in (node, other):
        site.run(one, "lvchange", "--activate", "sy", VOLUME)
    time.sleep(70)  # more than two looks
    assert site.lock_of(node) == "sh"
    assert "Started" in site.run(node, "crm_mon", "-1", "--inactive")
    assert site.asked(node, "lvextend", "--size", "+4M", VOLUME)[0] != 0
    site.run(other, "lvchange", "--activate", "n", VOLUME)
    site.alone_on(node)
    assert site.counts(node)

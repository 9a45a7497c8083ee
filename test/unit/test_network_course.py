"""A change of interfaces ends with the confirmed new state or the complete old one, wherever it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypervisor_network import model
from hypervisor_network.engine import course as courses
from hypervisor_network.engine import plan as planning
from hypervisor_network.engine import runtime, store
from hypervisor_network.engine.course import Course, RefusedError
from network_harness import BEYOND, FOREIGN, GATEWAY, LEASE, MACS, MASTER, FakeBackend, FakeHost, Killed, pillar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _without_a_disk(monkeypatch):
    # The order of what happens is what counts here, not when the disk has it.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def backend(monkeypatch):
    made = FakeBackend()
    monkeypatch.setattr(planning, "backend_of", lambda name: made)
    return made


@pytest.fixture
def host(tmp_path, backend):
    return FakeHost(tmp_path / "host")


@pytest.fixture
def course(host):
    return Course(host)


def stage(course, wanted=None):
    return course.apply(wanted or pillar(), [MASTER])


def outcome(host, before):
    """Says in which of the two allowed ends a host is; anything else fails."""
    state = store.Store(host).state()
    left = [name for name in host.files() if ".hypervisor-" in name.rpartition("/")[2][1:]]
    assert [name for name in left if name.rpartition("/")[2].startswith(".")] == []
    assert not host.path(store.PENDING).exists()
    if state.state == "confirmed":
        assert host.kernel["br0"]["given"][0]["local"] == LEASE
        assert not host.path(FOREIGN).exists()
        return "new"
    assert state.state in {"idle", "rolled-back"}
    assert host.files() == before[0]
    assert runtime.compare(before[1], runtime.take(host)) == []
    return "old"


def test_a_good_change_is_confirmed_and_a_second_run_has_nothing_to_do(course, host):
    assert stage(course)["changed"]
    assert host.started[-1] == ["start", "--no-block", courses.UNIT]
    assert course.status()["state"] == "staged"
    state = course.run()
    assert (state.state, state.reason, state.uplink) == ("confirmed", "", True)
    assert host.kernel["br0"]["given"][0]["local"] == LEASE
    assert host.kernel["eth0"]["master"] == "br0"
    again = stage(course)
    assert again["changed"] is False, again
    assert course.status()["state"] == "confirmed"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("dhcp", "br0 has no IPv4 address of a DHCP server"),
        ("master", "10.0.0.1 port 4505 does not answer; 10.0.0.1 port 4506 does not answer"),
        ("cut", "10.0.0.1 port 4505 does not answer"),
    ],
)
def test_a_fault_in_the_window_undoes_the_change_and_says_why(course, host, fault, reason):
    before = host.files(), runtime.take(host)
    stage(course)
    host.faults.add(fault)
    activate = host.activate

    def healed():
        # The old network is there again when it is restored; the fault was the new one's.
        if not host.path(FOREIGN).exists():
            return activate()
        host.faults.clear()
        return activate()

    host.activate = healed
    state = course.run()
    assert state.state == "rolled-back"
    assert reason in state.reason
    assert state.verified is True
    assert outcome(host, before) == "old"
    assert host.clock - 1000 <= 30


@pytest.mark.parametrize(
    ("bridge", "reason"),
    [
        ({"addresses": ["10.0.9.5/24"], "gateway4": "10.0.9.254"}, "10.0.0.1 port 4505 does not answer"),
        ({"addresses": ["10.0.0.60/24"], "gateway4": "10.0.0.77"}, "192.0.2.7 does not answer"),
    ],
)
def test_a_wrong_address_or_gateway_is_undone(course, host, bridge, reason):
    before = host.files(), runtime.take(host)
    stage(course, pillar({"bridges": {"br0": {"ports": ["eth0"], **bridge}}}, beyond=[BEYOND]))
    state = course.run()
    assert reason in state.reason
    assert outcome(host, before) == "old"


def test_a_vlan_that_nobody_hears_is_undone(course, host):
    before = host.files(), runtime.take(host)
    spec = {"vlans": {"eth0.7": {"link": "eth0", "id": 7, "dhcp4": True}}, "ethernets": {"eth0": {"uplink": True}}}
    wanted = pillar({**spec, "vlans": {"eth0.7": {"link": "eth0", "id": 7, "dhcp4": True, "uplink": True}}})
    stage(course, wanted)
    assert "eth0.7 has no IPv4 address" in course.run().reason
    assert outcome(host, before) == "old"


@pytest.mark.parametrize(("slow", "ended"), [(1, 20), (12, 27), (18, 37)])
def test_a_slow_host_begins_its_way_back_so_that_it_ends_in_time(course, host, slow, ended):
    """A change that takes 12 s leaves 8 of 20, of which at least 4 are for checks."""
    activate = host.activate

    def slowly():
        host.clock += slow
        return activate()

    host.activate = slowly
    stage(course, pillar({"bridges": {"br0": {"ports": ["eth0"], "addresses": ["10.0.9.5/24"]}}}))
    began = host.clock
    assert course.run().verified is True
    assert host.clock - began == pytest.approx(ended, abs=2)


def test_a_slow_host_may_use_its_window_once_a_round_was_good(course, host):
    activate = host.activate

    def slowly():
        host.clock += 14
        return activate()

    host.activate = slowly
    stage(course, pillar(successes=5))
    assert course.run().state == "confirmed"


def test_every_check_of_the_pillar_counts(course, host):
    stage(course, pillar(checks=[["true"], ["false"]]))
    assert course.run().reason == "false fails"


def test_another_lease_is_not_the_same_address(course, host, monkeypatch):
    stage(course)
    activate = host.activate

    def other():
        activate()
        for one in host.kernel.values():
            if one["kind"] == "bridge":
                one["given"][0]["local"] = "10.0.0.99"

    host.activate = other
    assert course.run().reason == "br0 has 10.0.0.99 instead of 10.0.0.50"


def test_a_program_that_is_asked_for_no_ports_checks_salts_own(course):
    stage(course, pillar(ports=[]))
    assert [one["port"] for one in course.store.change().targets if one["kind"] == "tcp"] == [4505, 4506]


def test_files_that_the_host_has_not_taken_are_taken_and_a_second_run_has_nothing_to_do(course, host, backend):
    stage(course)
    assert course.run().state == "confirmed"
    files = host.files()
    backend.untaken = {"br0"}
    made = course.plan(pillar(), [MASTER])
    assert (made.diffs, made.differences) == ({}, ("br0 is set up by no file",))
    assert (made.change.changed, made.change.untaken) == (["eth0", "br0"], ["br0"])
    stage(course)
    assert course.run().state == "confirmed"
    assert backend.untaken == set()
    assert stage(course)["changed"] is False
    assert host.files() == files


def test_files_that_the_host_does_not_take_are_a_failure_that_says_so(course, host, backend):
    stage(course)
    assert course.run().state == "confirmed"
    before = runtime.take(host)
    backend.untaken, backend.deaf = {"br0"}, True
    for _ in range(2):
        stage(course)
        state = course.run()
        assert (state.state, state.reason, state.verified) == ("rolled-back", "br0 is set up by no file", True)
        assert runtime.compare(before, runtime.take(host)) == []
    # What was confirmed counts on.
    assert course.store.confirmed() is not None


def test_files_of_the_uplink_that_the_host_has_not_taken_need_consent(course, backend):
    stage(course)
    assert course.run().state == "confirmed"
    backend.untaken = {"br0"}
    with pytest.raises(RefusedError) as error:
        stage(course, {**pillar(), "allow_uplink_change": False})
    wanted = "br0 is set up by no file; to mend that it would change br0, eth0, which carries the connection"
    assert str(error.value).startswith(wanted)


# ---- refusals ----


def refused(course, wanted):
    before = course.host.files()
    with pytest.raises(RefusedError) as error:
        stage(course, wanted)
    assert course.host.files() == before
    assert course.status()["state"] == "idle"
    assert not course.host.path(store.PENDING).exists()
    return str(error.value)


def test_without_consent_the_line_to_set_is_named(course):
    message = refused(course, {**pillar(), "allow_uplink_change": False})
    assert "it would change eth0, which carries the connection to the master" in message
    assert "set network:allow_uplink_change to true" in message


def test_a_bridge_beside_the_uplink_needs_no_consent_and_no_master(course, host):
    host.faults.add("master")
    wanted = {**pillar({"bridges": {"br1": {"ports": ["eth1"]}}}), "allow_uplink_change": False}
    assert stage(course, wanted)["uplink"] == []
    assert course.run().state == "confirmed"


def test_a_missing_port_is_refused_by_name(course):
    message = refused(course, pillar({"bridges": {"br0": {"ports": ["eth7"], "dhcp4": True}}}))
    assert message.startswith("eth7 (a port of br0): this host has no such card; it has eth0, eth1, eth2")


CARD = {"match": {"mac": MACS["eth0"]}}
LAN = {"lan": {**CARD, "dhcp4": True}}


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"ethernets": {**LAN, "eth0": {"mtu": 1400}}}, "network:ethernets:eth0"),
        ({"ethernets": {**LAN, "wan": {"match": {"name": "eth0"}, "dhcp4": True}}}, "network:ethernets:wan"),
        ({"ethernets": LAN, "bridges": {"br0": {"ports": ["eth0"]}}}, "network:bridges:br0:ports (eth0)"),
        ({"ethernets": LAN, "vlans": {"v7": {"link": "eth0", "id": 7}}}, "network:vlans:v7:link (eth0)"),
    ],
)
def test_a_card_under_two_names_is_refused_by_both(course, change, other):
    assert refused(course, pillar(change)) == (
        f"network:ethernets:lan and {other} mean the same card, eth0; it can have one name alone"
    )


def test_a_card_gets_another_name_when_the_old_one_goes_by_its_line(course, host):
    stage(course, pillar({"ethernets": {"lan": CARD}, "bridges": {"br0": {"ports": ["lan"], "dhcp4": True}}}))
    assert course.run().state == "confirmed"
    before = host.files()
    named = {"bridges": {"br0": {"ports": ["eth0"], "dhcp4": True}}}
    with pytest.raises(RefusedError) as error:
        stage(course, pillar(named))
    assert str(error.value) == (
        "network:ethernets:lan and network:bridges:br0:ports (eth0) mean the same card, eth0; it can have one name "
        "alone; lan has left the pillar and stays until it is declared with ensure: absent"
    )
    both = pillar({"ethernets": {"lan": {**CARD, "ensure": "absent"}}, **named})
    assert stage(course, both)["changed"] is False
    assert host.files() == before


def test_an_uplink_that_vanishes_is_refused(course):
    message = refused(course, pillar({"bridges": {"br0": {"ports": ["eth0"]}}}))
    assert "eth0 carries the connection to the master: it becomes a port of br0, which has no addresses" in message


def test_an_uplink_may_move_to_a_vlan_of_its_card(course):
    tagged = {"vlans": {"eth0.7": {"link": "eth0", "id": 7}}, "ethernets": {"eth0": {}}}
    assert stage(course, pillar({**tagged, "bridges": {"br0": {"ports": ["eth0.7"], "dhcp4": True}}}))["changed"]


def test_what_the_validator_says_is_refused(course, backend):
    backend.broken = "validate"
    assert refused(course, pillar()) == "the candidate is wrong"


def test_a_disk_without_space_is_refused_before_anything_is_touched(course, host):
    host.faults.add("space")
    assert "the change cannot be written down: only 0 KiB are free" in refused(course, pillar())


def test_a_disk_that_is_full_all_at_once_is_refused_too(course, host):
    host.full = True
    with pytest.raises(RefusedError, match="No space left"):
        stage(course)
    host.full = False
    assert not host.path(store.PENDING).exists()
    assert host.path(FOREIGN).exists()


@pytest.fixture
def program(host):
    """What undoes a change, as the formula installs it; returns the paths, a folder's last."""
    package, units = "/usr/lib/hypervisor-formula/hypervisor_network", "/etc/systemd/system"
    boot, wants = f"{units}/hypervisor-network-boot.service", f"{units}/multi-user.target.wants"
    files = [
        f"{package}/model.py", f"{package}/engine/course.py", "/usr/sbin/network-profile", boot,
        f"{units}/hypervisor-network-apply.service",
    ]  # fmt: skip
    for name in files:
        host.path(name).parent.mkdir(parents=True, exist_ok=True)
        host.path(name).write_text("#")
    host.path(wants).mkdir()
    (host.path(wants) / "hypervisor-network-boot.service").symlink_to(boot)
    folders = [f"{package}/engine", package, "/usr/lib/hypervisor-formula", "/usr/sbin", wants, units, "/usr", "/"]
    return [str(host.path(name)) for name in (*files, *folders)]


def opened(descriptor):
    """Says which file a descriptor is of."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_what_undoes_a_change_is_on_disk_before_there_is_one(course, host, program, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(opened(descriptor)))
    assert stage(course)["id"]
    first = next(number for number, name in enumerate(flushed) if "/var/lib" in name or "/etc/fake" in name)
    assert set(program) <= set(flushed[:first])


def test_a_disk_that_does_not_take_what_undoes_a_change_is_refused(course, host, program, monkeypatch):
    before = host.files()

    def fsync(descriptor):
        if opened(descriptor).endswith("/engine/course.py"):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fsync)
    assert "cannot be written down: [Errno 5] Input/output error" in refused(course, pillar())
    assert (host.files(), host.path(store.PENDING).exists()) == (before, False)


def test_a_disk_that_fills_in_the_window_does_not_keep_the_change_from_being_undone(course, host):
    before = host.files(), runtime.take(host)
    stage(course)
    activate = host.activate

    def fills():
        activate()
        host.full = not host.path(FOREIGN).exists()

    host.activate = fills
    write = host.write

    def write_or_not(name, *rest, **more):
        # Space that was held for this is given back.
        if host.full and name == store.STATE and not host.path(store.RESERVE).exists():
            host.full = False
        write(name, *rest, **more)

    host.write = write_or_not
    host.faults.add("master")
    assert course.run().state == "rolled-back"
    assert outcome(host, before) == "old"


def test_a_second_change_is_refused_while_one_is_pending(course, host):
    stage(course)
    host.active = "activating"
    with pytest.raises(RefusedError, match=r"the change \S+ is still staged"):
        stage(course)
    with course.store.lock(), pytest.raises(RefusedError, match=r"\S+ is still staged.*network-profile confirm"):
        stage(course)
    host.active = "inactive"
    assert stage(course)["changed"], "a change that never began is in nobody's way"
    course.rollback()
    with course.store.lock(), pytest.raises(RefusedError, match="another process"):
        stage(course)


# ---- a person at the console ----


def test_a_person_may_confirm_what_the_checks_do_not(course, host):
    stage(course)
    host.faults.add("master")
    sleep = host.sleep

    def person(seconds):
        sleep(seconds)
        if course.store.state().state == "applied":
            course.store.ask("confirm")

    host.sleep = person
    assert course.run().state == "confirmed"


def test_a_person_may_undo_a_pending_change(course, host):
    before = host.files(), runtime.take(host)
    stage(course)
    host.faults.add("master")
    sleep = host.sleep

    def person(seconds):
        sleep(seconds)
        if course.store.state().state == "applied":
            course.store.ask("rollback")

    host.sleep = person
    assert course.run().reason == "a person asked for it"
    assert outcome(host, before) == "old"


def test_a_person_may_undo_a_confirmed_change_and_the_next_run_makes_it_again(course, host):
    before = host.files(), runtime.take(host)
    stage(course)
    assert course.run().state == "confirmed"
    systemctl = host._systemctl

    def unit(words):
        done = systemctl(words)
        if words[0] == "start":
            course.run()
        return done

    host._systemctl = unit
    assert course.rollback().state == "rolled-back"
    assert outcome(host, before) == "old"
    assert course.store.confirmed() is None
    host._systemctl = systemctl
    assert stage(course)["changed"]


def test_nothing_to_confirm_and_nothing_to_undo(course):
    with pytest.raises(RefusedError, match="nothing to confirm: the state is idle"):
        course.confirm()
    with pytest.raises(RefusedError, match="nothing to undo: the state is idle"):
        course.rollback()


# ---- what leaves the pillar stays; what is absent goes ----


def test_what_leaves_the_pillar_stays_and_absent_takes_it_away(course, host):
    stage(course)
    course.run()
    stage(course, pillar({"bridges": {"br1": {"ports": ["eth1"]}}}))
    assert course.run().state == "confirmed"
    assert host.kernel["br0"]["given"][0]["local"] == LEASE
    stage(course, pillar({"bridges": {"br1": {"ports": ["eth1"], "ensure": "absent"}}}))
    assert course.run().state == "confirmed"
    assert "br1" not in host.kernel
    with pytest.raises(RefusedError, match="eth0 is a port of br0, which has left the pillar"):
        stage(course, pillar({"bridges": {"br2": {"ports": ["eth0"], "dhcp4": True}}}))
    with pytest.raises(RefusedError, match=r"eth0 is a port of br0, .*; until then it cannot have dhcp4 of its own"):
        stage(course, pillar({"ethernets": {"eth0": {"dhcp4": True}}}))


def test_what_has_left_the_pillar_is_judged_with_what_is_there(course, host):
    bond = {"bonds": {"bond1": {"ports": ["eth1", "eth2"]}}}
    left = {"pillar": {**bond, "bridges": {"br1": {"ports": ["bond1"]}}}}
    gone = {"bonds": {"bond1": {"ensure": "absent"}}}
    _, errors = planning.kept(gone, left)
    (error,) = errors
    assert error == (
        "bond1 is declared with ensure: absent, but br1, which has left the pillar and stays, stands on it; declare "
        "br1 with ensure: absent too"
    )
    vlan = {"pillar": {**bond, "vlans": {"v7": {"link": "bond1", "id": 7}}}}
    assert "declare v7 with ensure: absent too" in planning.kept(gone, vlan)[1][0]
    alone = {"pillar": {"bonds": {"bond1": {**bond["bonds"]["bond1"], "dhcp4": True}}}}
    (error,) = planning.kept({"bridges": {"br1": {"ports": ["bond1"]}}}, alone)[1]
    assert error == (
        "bond1 has left the pillar and stays with its dhcp4; declare it without, so that it can be a port of br1"
    )
    assert planning.kept({"bridges": {"br1": {"ports": ["bond1"]}}}, {"pillar": bond})[1] == []


def test_a_card_that_has_left_the_pillar_and_the_host_is_named_with_the_way_out(course, host):
    stage(course, pillar({"ethernets": {"eth0": {"dhcp4": True}, "eth1": {"addresses": ["10.0.7.1/24"]}}}))
    assert course.run().state == "confirmed"
    del host.kernel["eth1"]
    eth0 = {"dhcp4": True, "mtu": 1400}
    with pytest.raises(RefusedError, match=r"eth1: this host has no such card; .*is declared with ensure: absent"):
        stage(course, pillar({"ethernets": {"eth0": eth0}}))
    assert stage(course, pillar({"ethernets": {"eth0": eth0, "eth1": {"ensure": "absent"}}}))["changed"]


def test_what_was_not_as_declared_before_does_not_undo_a_change_of_something_else(course, host):
    activate, given = host.activate, [{"family": "inet", "local": "10.0.7.9", "prefixlen": 24, "scope": "global"}]

    def with_another_server():
        activate()
        host.kernel["eth1"]["given"] = list(given)

    host.activate = with_another_server
    both = {"ethernets": {"eth0": {"dhcp4": True}, "eth1": {"dhcp4": True}}}
    stage(course, pillar(both))
    assert course.run().state == "confirmed"
    # The other card's server, or its cable, is gone.
    given.clear()
    host.kernel["eth1"]["given"] = []
    stage(course, pillar({**both, "bridges": {"br5": {"ports": ["eth2"]}}}))
    state = course.run()
    assert (state.state, state.reason) == ("confirmed", "")
    # A change of that card itself has to bring its lease.
    stage(course, pillar({"ethernets": {**both["ethernets"], "eth1": {"dhcp4": True, "mtu": 1400}}}))
    assert "eth1 has no IPv4 address of a DHCP server" in course.run().reason


def test_the_way_back_to_the_bare_card(course, host):
    stage(course)
    course.run()
    gone = {"bridges": {"br0": {"ensure": "absent"}}, "ethernets": {"eth0": {"dhcp4": True}}}
    stage(course, pillar(gone))
    assert course.run().state == "confirmed"
    assert host.kernel["eth0"]["given"][0]["local"] == LEASE
    assert stage(course, pillar(gone))["changed"] is False


# ---- the process ends anywhere ----


def count(tmp_path, prepare):
    """Counts the changes that one undisturbed run makes."""
    host = FakeHost(tmp_path / "count")
    course = Course(host)
    prepare(course)
    host.changes.clear()
    course.run()
    return len(host.changes)


def bad(course):
    stage(course)
    course.host.faults.add("master")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("prepare", [stage, bad], ids=["good", "bad"])
@pytest.mark.parametrize("rescue", ["finish", "run", "boot", "power"])
def test_a_killed_applier_leaves_the_old_or_the_confirmed_state(tmp_path, backend, prepare, rescue, after):
    ends = set()
    for kill_at in range(1, count(tmp_path, prepare) + 1):
        host = FakeHost(tmp_path / f"{kill_at}")
        before = host.files(), runtime.take(host)
        prepare(Course(host))
        host.changes.clear()
        host.kill_at, host.after = kill_at, after
        with pytest.raises(Killed):
            Course(host).run()
        host.kill_at = 0
        host.faults.clear()
        if rescue in {"boot", "power"}:
            if rescue == "boot":
                host.stopping = True
                Course(host).finish()
            host.reboot()
            Course(host).boot()
            host.activate()
        else:
            getattr(Course(host), rescue)()
            # The unit may be started once more, and then has nothing to do.
            if Course(host).store.state().state == "staged":
                Course(host).run()
        ends.add(outcome(host, before))
    assert "old" in ends
    # The last of these moments are after the confirmation.
    assert prepare is bad or "new" in ends


@pytest.mark.parametrize("rescue", ["finish", "boot"])
def test_a_killed_rescue_is_rescued(tmp_path, backend, rescue):
    for kill_at in range(1, 40):
        host = FakeHost(tmp_path / f"{kill_at}")
        before = host.files(), runtime.take(host)
        stage(Course(host))
        host.changes.clear()
        host.kill_at = 6
        with pytest.raises(Killed):
            Course(host).run()
        host.kill_at, host.changes = kill_at, []
        try:
            getattr(Course(host), rescue)()
        except Killed:
            host.reboot()
            Course(host).boot()
            host.activate()
            assert outcome(host, before) == "old"
        else:
            assert outcome(host, before) == "old"
            assert kill_at > 3
            break


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_minion_that_is_killed_while_it_stages_has_touched_nothing(tmp_path, backend, after):
    for kill_at in range(1, 30):
        host = FakeHost(tmp_path / f"{kill_at}")
        before = dict(host.files())
        host.kill_at, host.after = kill_at, after
        try:
            stage(Course(host))
        except Killed:
            visible = {name: one for name, one in host.files().items() if "/." not in name}
            assert visible == before
            host.kill_at = 0
            assert stage(Course(host))["changed"]
            assert Course(host).run().state == "confirmed"
        else:
            assert kill_at > 5
            break


def test_a_profile_is_the_same_after_the_disk():
    example = yaml.safe_load((ROOT / "pillar.example").read_text())["network"]
    profile = model.load(example).resolved({"storage0": "eth9"}, {"eth0": "52:54:00:00:00:01"})
    assert model.restored(json.loads(json.dumps(model.stored(profile)))) == profile


def test_the_record_is_json_that_a_person_can_read(course, host):
    stage(course)
    course.run()
    found = json.loads(host.path(store.STATE).read_bytes())
    assert found["state"] == "confirmed"
    assert found["backend"] == "networkd"
    assert host.path(store.FOLDER).stat().st_mode & 0o777 == 0o700
    assert GATEWAY not in json.dumps(found)

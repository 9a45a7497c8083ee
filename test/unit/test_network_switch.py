"""The uplink becomes a port of Open vSwitch, or the host and the switch's database are what they were."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypervisor_network.backends.contract import Done
from hypervisor_network.engine import course as courses
from hypervisor_network.engine import plan as planning
from hypervisor_network.engine import runtime, store, switch
from hypervisor_network.engine.course import Course, RefusedError
from hypervisor_network.engine.host import LocalHost
from network_harness import BEYOND, LEASE, MASTER, FakeBackend, Killed, pillar
from network_switch import FILE, MAC, OVS, SwitchHost, bridge, port

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
PORTS = {
    "ovsbr0": {"bridge": "ovsbr0", "type": "internal"},
    "ovshost0": {"bridge": "ovsbr0", "type": "internal"},
    "eth0": {"bridge": "ovsbr0", "type": ""},
}


@pytest.fixture(autouse=True)
def _without_a_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def backend(monkeypatch):
    made = FakeBackend()
    monkeypatch.setattr(planning, "backend_of", lambda name: made)
    return made


@pytest.fixture
def host(tmp_path, backend):
    return SwitchHost(tmp_path / "host")


@pytest.fixture
def course(host):
    return Course(host)


def wanted(**spec: Any) -> Any:
    declared = {**OVS["bridges"]["ovsbr0"], **spec}
    return pillar({"bridges": {"ovsbr0": {key: value for key, value in declared.items() if value is not None}}})


def stage(course, asked=None):
    return course.apply(asked or pillar(OVS), [MASTER])


def seen(host):
    tables = host.tables()
    files = {name: one for name, one in host.files().items() if name != FILE.lstrip("/")}
    tables["Open_vSwitch"]["root"]["next_cfg"] = 0
    return files, runtime.take(host), [sorted(json.dumps(row) for row in rows.values()) for rows in tables.values()]


def names(host):
    return {table: sorted(row.get("name", "") for row in rows.values()) for table, rows in host.tables().items()}


def old(host, before):
    """Says that all is as before, the database too."""
    state = store.Store(host).state()
    assert state.state in {"idle", "rolled-back"}, state
    assert not host.path(store.PENDING).exists()
    now = seen(host)
    assert now[0] == before[0]
    assert runtime.compare(before[1], now[1]) == []
    assert now[2] == before[2]
    return True


def test_the_card_becomes_a_port_and_the_hosts_own_port_gets_its_lease(course, host):
    report = stage(course)
    assert report["uplink"] == ["eth0"]
    assert "ovsbr0 is not in the database of Open vSwitch" in report["differences"]
    state = course.run()
    assert (state.state, state.reason) == ("confirmed", "")
    assert host.rows() == PORTS
    assert host.kernel["ovshost0"]["given"][0]["local"] == LEASE
    assert host.kernel["eth0"]["given"] == []
    (own,) = [row for row in host.tables()["Interface"].values() if row["name"] == "ovshost0"]
    assert own["mac"] == MAC
    again = stage(course)
    assert again["changed"] is False, again


def test_the_bridges_own_port_is_the_hosts_unless_another_is_named(course, host):
    stage(course, wanted(host_port=None))
    assert course.run().state == "confirmed"
    assert sorted(host.rows()) == ["eth0", "ovsbr0"]
    (row,) = host.tables()["Bridge"].values()
    assert row["other_config"] == ["map", [["hwaddr", MAC]]]
    assert host.kernel["ovsbr0"]["given"][0]["local"] == LEASE


def test_settings_and_the_largest_packet_reach_the_database(course, host):
    host.add(*bridge("ovsbr0", other_config=["map", [["disable-in-band", "true"]]]))
    host.add(*port("ovsbr0", "gre0", type="gre"))
    stage(course, wanted(stp=True, forward_delay=4, ageing=60, mtu=1400))
    # The fake kernel knows no MTU but 1500.
    assert "ovshost0 has the MTU 1500 instead of 1400" in course.run().reason
    stage(course, wanted(stp=True, forward_delay=4, ageing=60))
    assert course.run().state == "confirmed"
    (row,) = host.tables()["Bridge"].values()
    assert row["stp_enable"] is True
    assert dict(row["other_config"][1]) == {
        "disable-in-band": "true", "stp-forward-delay": "4", "mac-aging-time": "60"
    }  # fmt: skip
    assert sorted(host.rows()) == ["eth0", "gre0", "ovsbr0", "ovshost0"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"dhcp4": False, "addresses": ["10.0.9.5/24"], "gateway4": "10.0.9.254"}, "10.0.0.1 port 4505"),
        ({"dhcp4": False, "addresses": ["10.0.0.60/24"], "gateway4": "10.0.0.77"}, "192.0.2.7 does not answer"),
        ({"ports": ["eth1"]}, "ovshost0 has no IPv4 address of a DHCP server"),
    ],
)
def test_what_does_not_reach_the_master_is_undone_with_its_rows(course, host, spec, reason, existing):
    if existing:
        host.add(*bridge("ovsbr0", stp_enable=True), *port("ovsbr0", "vnet0"))
    before = seen(host)
    asked = wanted(**spec)
    asked["confirm"]["beyond"] = [BEYOND]
    if "ports" in spec:
        asked["ethernets"] = {"eth0": {"addresses": ["10.0.0.50/24"], "gateway4": "10.0.0.77"}}
    stage(course, asked)
    state = course.run()
    assert reason in state.reason
    assert state.verified is True, state
    assert old(host, before)


def test_a_switch_that_cannot_use_the_card_undoes_the_change(course, host):
    before = seen(host)
    host.refuses.add("eth0")
    stage(course)
    state = course.run()
    assert "Open vSwitch has not taken up eth0" in state.reason
    host.refuses.clear()
    assert old(host, before)


def deaths():
    """Returns how many changes a good course and its way back make."""
    return range(1, 23)


def test_it_makes_no_more_changes_than_those_at_which_it_dies_below(host, course):
    stage(course)
    host.changes.clear()
    assert course.run().state == "confirmed"
    assert len(host.changes) < deaths().stop


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", deaths())
def test_wherever_the_applier_dies_its_unit_leaves_the_old_state_or_the_confirmed_one(host, course, moment, after):
    before = seen(host)
    stage(course)
    host.changes.clear()
    host.kill_at, host.after = moment, after
    try:
        course.run()
    except Killed:
        host.kill_at = 0
        state = Course(host).finish()
        if state.state == "staged":
            state = Course(host).run()
        assert state.over, state
    host.kill_at = 0
    if store.Store(host).state().state == "confirmed":
        Course(host).finish()
        assert host.rows() == PORTS
    else:
        assert old(host, before)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", deaths())
def test_a_power_cut_anywhere_ends_with_the_old_rows_or_the_confirmed_ones(host, course, moment, after):
    before = seen(host)
    stage(course)
    host.changes.clear()
    host.kill_at, host.after = moment, after
    with contextlib.suppress(Killed):
        course.run()
    host.reboot()
    # The boot unit comes before the server of the database.
    state = Course(host).boot() if host.path(store.PENDING).exists() else store.Store(host).state()
    host.power_on()
    if state.state == "confirmed":
        assert host.rows() == PORTS
        assert host.kernel["ovshost0"]["given"][0]["local"] == LEASE
    else:
        assert old(host, before)


def test_a_reboot_in_the_window_leaves_the_rows_to_the_boot(host, course):
    before = seen(host)
    stage(course)
    host.kill_at = 0
    host.faults.add("master")

    def ended(_seconds):
        raise Killed("stopped")

    host.sleep, sleep = ended, host.sleep
    with pytest.raises(Killed):
        course.run()
    host.stopping, host.sleep = True, sleep
    state = Course(host).finish()
    # The switch still serves what goes down after it.
    assert (state.state, state.reason) == ("rolling-back", courses.WENT_DOWN)
    assert host.rows() == PORTS
    host.reboot()
    host.faults.clear()
    assert Course(host).boot().state == "rolled-back"
    host.power_on()
    assert old(host, before)


def test_a_database_that_cannot_be_put_back_stays_pending(host, course, monkeypatch):
    stage(course)
    host.faults.add("master")
    host.kill_at = 0

    def gone(_host, _rows):
        raise switch.BackendError("the database of Open vSwitch: locked")

    monkeypatch.setattr(switch, "lacking", gone)
    state = course.run()
    assert state.state == "rolling-back"
    assert "locked" in " ".join(state.differences)
    assert host.path(store.PENDING).exists()


def test_a_confirmed_change_is_undone_on_request_and_after_a_reboot_stays(host, course):
    before = seen(host)
    stage(course)
    assert course.run().state == "confirmed"
    host.reboot()
    host.power_on()
    assert host.rows() == PORTS
    assert host.kernel["ovshost0"]["given"][0]["local"] == LEASE
    assert course.rollback().state == "rolling-back"
    assert course.run().state == "rolled-back"
    assert old(host, before)


def test_the_card_comes_back_out_with_ensure_absent(host, course):
    stage(course)
    assert course.run().state == "confirmed"
    gone = pillar({
        "bridges": {"ovsbr0": {"switch": "openvswitch", "host_port": "ovshost0", "ensure": "absent"}},
        "ethernets": {"eth0": {"dhcp4": True}},
    })  # fmt: skip
    stage(course, gone)
    state = course.run()
    assert (state.state, state.reason) == ("confirmed", "")
    assert host.rows() == {}
    assert host.kernel["eth0"]["given"][0]["local"] == LEASE
    assert names(host)["Interface"] == []


def test_a_port_that_leaves_the_pillar_leaves_the_bridge_and_others_stay(host, course):
    stage(course, wanted(ports=["eth0", "eth1"]))
    assert course.run().state == "confirmed"
    host.add(*port("ovsbr0", "vnet7"))
    stage(course)
    assert course.run().state == "confirmed"
    assert sorted(host.rows()) == ["eth0", "ovsbr0", "ovshost0", "vnet7"]


REFUSED = [
    ([*bridge("other"), *port("other", "eth0")], {}, "eth0 is a port of the bridge other of Open vSwitch"),
    ([*bridge("ovshost0")], {}, "ovshost0 is a port of the bridge ovshost0 of Open vSwitch"),
    ([*bridge("ovsbr0"), *port("ovsbr0", "vnet0")], {"ensure": "absent"}, "ovsbr0 has further ports (vnet0)"),
    (
        [*bridge("ovsbr0", controller=["uuid", "c1"])],
        {"ensure": "absent"},
        "ovsbr0 has settings that no pillar has made (controller)",
    ),
    ([], {"host_port": "eth1"}, "ovsbr0: this host has another interface eth1 already"),
]


@pytest.mark.parametrize(("there", "spec", "reason"), REFUSED, ids=[one[2] for one in REFUSED])
def test_what_does_not_fit_the_database_is_refused_by_name(course, host, there, spec, reason):
    host.add(*there)
    before = seen(host)
    with pytest.raises(RefusedError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        stage(course, wanted(**spec))
    assert old(host, before)


def test_an_interface_of_the_switch_is_not_taken_for_another_kind(course, host):
    host.add(*bridge("br0"))
    with pytest.raises(RefusedError, match="br0 is an interface of Open vSwitch; declare it with switch: openvswitch"):
        stage(course, pillar())


def test_a_card_of_the_switch_is_not_taken_from_it_unasked(course, host):
    host.add(*bridge("other"), *port("other", "eth1"))
    with pytest.raises(RefusedError, match="eth1 is a port of the bridge other of Open vSwitch"):
        stage(course, pillar({"ethernets": {"eth1": {"addresses": ["10.1.0.5/24"]}}}))


def test_without_a_switch_nothing_is_begun_but_it_is_predicted(course, host):
    host.running = False
    host.path(switch.SOCKET).unlink()
    host.path(FILE).unlink()
    with pytest.raises(RefusedError, match="network:bridges:ovsbr0:switch: Open vSwitch does not run on this host"):
        stage(course)
    found = course.plan(pillar(OVS), [MASTER])
    assert found.errors == ()
    assert "ovsbr0 is not in the database of Open vSwitch" in found.differences


def test_hosts_without_it_are_not_asked(course, host, monkeypatch):
    monkeypatch.setattr(switch, "facts", lambda host: pytest.fail("the database was asked"))
    stage(course, pillar())
    assert course.run().state == "confirmed"


@pytest.mark.skipif(shutil.which("ovsdb-tool") is None or not SCHEMA.exists(), reason="Open vSwitch is not installed")
def test_the_real_database_takes_the_same_operations(tmp_path):
    path = tmp_path / "conf.db"
    subprocess.run(["ovsdb-tool", "create", str(path), str(SCHEMA)], check=True)
    host = LocalHost(tmp_path)
    (tmp_path / "etc/openvswitch").mkdir(parents=True)
    path.rename(tmp_path / "etc/openvswitch/conf.db")
    root = json.dumps(["Open_vSwitch", {"op": "insert", "table": "Open_vSwitch", "row": {}}])
    subprocess.run(["ovsdb-tool", "transact", str(tmp_path / "etc/openvswitch/conf.db"), root], check=True)

    def offline(argv, timeout=30.0, stdin=None):
        words = [str(tmp_path / word.lstrip("/")) if word in switch.FILES else word for word in argv]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout)
        return Done(done.returncode, done.stdout, done.stderr)

    host.run = offline
    nothing = switch.Rows({"ovsbr0": None}, {"eth0": None, "ovshost0": None})
    rows = switch.Rows(
        {"ovsbr0": {"stp_enable": True, "other_config": ["map", [["hwaddr", MAC]]]}},
        {
            "ovshost0": {"bridge": "ovsbr0", "port": {}, "interface": {"type": "internal", "mac": MAC}},
            "eth0": {"bridge": "ovsbr0", "port": {}, "interface": {"type": ""}},
        },
    )
    switch.put(host, rows)
    assert switch.lacking(host, rows) == []
    there = switch.facts(host)
    assert sorted(there.ports) == ["eth0", "ovsbr0", "ovshost0"]
    kept = switch.Rows(
        {"ovsbr0": switch.columns_of(there.bridges["ovsbr0"], switch.BRIDGE)},
        {name: switch.row_of(there.ports[name]) for name in ("eth0", "ovshost0")},
    )
    switch.put(host, nothing)
    assert switch.facts(host) == switch.Facts()
    # What was recorded goes back as it was.
    switch.put(host, kept)
    assert switch.lacking(host, kept) == []
    switch.put(host, switch.Rows({}, {"eth0": None}))
    assert sorted(switch.facts(host).ports) == ["ovsbr0", "ovshost0"]


def test_a_window_that_ends_in_the_middle_of_a_round_names_what_the_last_whole_one_found(course, host, monkeypatch):
    rounds = iter([["192.0.2.7 does not answer"]])

    def failures(*_arguments):
        try:
            return next(rounds)
        except StopIteration:
            raise courses._WindowOver from None

    monkeypatch.setattr(courses.checks, "failures", failures)
    stage(course)
    assert course.run().reason == "192.0.2.7 does not answer"

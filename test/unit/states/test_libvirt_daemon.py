"""How libvirt's daemons are found, what is planned for them, and what a dry run leaves alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from _states import libvirt_conf, libvirt_daemon
from _states.libvirt_daemon import Plan, Unit

MONOLITHIC = {
    "libvirtd.service",
    "libvirtd.socket",
    "libvirtd-ro.socket",
    "libvirtd-admin.socket",
    "libvirtd-tls.socket",
    "libvirtd-tcp.socket",
    "virtlogd.service",
    "virtlogd.socket",
    "virtlogd-admin.socket",
    "libvirt-guests.service",
}
MODULAR = {
    f"{daemon}{kind}"
    for daemon in ("virtqemud", "virtproxyd", "virtnetworkd")
    for kind in (".service", ".socket", "-ro.socket", "-admin.socket")
} | {"virtproxyd-tls.socket", "virtproxyd-tcp.socket"}
ON = Unit(enabled=True, active=True, since=1000.0, told=1000.0)
KEPT = ("virtlogd.service", "virtlogd.socket", "virtlogd-admin.socket")
SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")


def monolithic() -> libvirt_daemon.Layout:
    found = libvirt_daemon.layout(MONOLITHIC, set())
    assert found is not None
    return found


def installed() -> dict[str, Unit]:
    """What Debian's package leaves: everything runs but the TLS socket."""
    return dict.fromkeys(("libvirtd.service", "libvirt-guests.service", *SOCKETS, *KEPT), ON) | {
        "libvirtd-tls.socket": Unit()
    }


# ---- which kind ----


def test_no_daemon():
    assert libvirt_daemon.layout({"virtlogd.socket"}, set()) is None


def test_monolithic_is_found_by_its_units():
    found = monolithic()
    assert found.front == "libvirtd"
    assert found.services == ("libvirtd.service",)
    assert found.sockets == SOCKETS
    assert found.tls_socket == "libvirtd-tls.socket"
    assert found.daemons == ("libvirtd",)
    assert found.keepers == KEPT
    assert found.retired == ()
    read = {path.name for path in found.reads("libvirtd.service")}
    assert read == {"libvirtd.conf", "qemu.conf", "qemu-lockd.conf", "network.conf"}


def test_modular_is_found_by_its_units():
    found = libvirt_daemon.layout(MODULAR, set())
    assert found is not None
    assert found.front == "virtproxyd"
    assert found.services == ("virtqemud.service", "virtproxyd.service", "virtnetworkd.service")
    assert "virtnetworkd-ro.socket" in found.sockets
    assert found.daemons == ("virtqemud", "virtproxyd", "virtnetworkd")
    read = {path.name for path in found.reads("virtqemud.service")}
    assert read == {"virtqemud.conf", "qemu.conf", "qemu-lockd.conf"}
    assert [path.name for path in found.reads("virtproxyd.service")] == ["virtproxyd.conf"]


def test_of_all_modular_units_of_libvirt_11_the_ones_for_qemu_are_taken():
    # The units that its source makes; Debian's package leaves them out (debian/not-installed of 11.3.0-3+deb13u3).
    qemu = {"qemu", "proxy", "network", "storage", "nodedev", "nwfilter", "secret", "interface"}
    kinds = (".service", ".socket", "-ro.socket", "-admin.socket")
    units = {f"virt{name}d{kind}" for name in (*qemu, "lxc", "vbox", "xen") for kind in kinds}
    units |= {"virtproxyd-tls.socket", "virtproxyd-tcp.socket", "virtlogd.service", "virtlogd.socket"}
    found = libvirt_daemon.layout(units, set())
    assert found is not None
    assert {*found.daemons} == {f"virt{name}d" for name in qemu}
    assert {*found.sockets} == {f"virt{name}d{kind}" for name in qemu for kind in kinds[1:]}
    assert found.tls_socket == "virtproxyd-tls.socket"
    assert found.keepers == ("virtlogd.service", "virtlogd.socket")


@pytest.mark.parametrize(
    ("enabled", "front"),
    [
        (set(), "virtproxyd"),
        ({"virtqemud.socket"}, "virtproxyd"),
        ({"libvirtd.service"}, "libvirtd"),
        ({"libvirtd.socket"}, "libvirtd"),
        ({"libvirtd.socket", "virtqemud.socket"}, "virtproxyd"),
    ],
)
def test_where_both_are_installed_the_enabled_one_is_kept(enabled, front):
    found = libvirt_daemon.layout(MONOLITHIC | MODULAR, enabled)
    assert found is not None
    assert found.front == front
    assert bool(found.retired) is (front == "virtproxyd")


# ---- the plan ----


def test_nothing_to_do():
    units = installed() | {"libvirtd-tls.socket": ON}
    assert libvirt_daemon.plan(monolithic(), units, True, {}) == Plan()


def test_an_idle_daemon_is_left_asleep():
    units = installed() | {
        "libvirtd-tls.socket": ON,
        "libvirtd.service": Unit(enabled=True, active=False),
    }
    assert libvirt_daemon.plan(monolithic(), units, True, {"libvirtd.service": 2e9}) == Plan()


def test_the_service_makes_way_for_a_new_socket():
    plan = libvirt_daemon.plan(monolithic(), installed(), True, {"libvirtd.service": 2000.0})
    assert plan.enable == ("libvirtd-tls.socket",)
    assert plan.stop == ("libvirtd.service", *SOCKETS)
    assert plan.start == (*SOCKETS, "libvirtd-tls.socket", "libvirtd.service")
    # It starts with its new configuration anyway.
    assert plan.restart == ()
    assert list(plan.changes()) == ["stop", "enable", "start"]


def test_a_daemon_older_than_its_configuration_is_restarted():
    units = installed() | {"libvirtd-tls.socket": ON}
    plan = libvirt_daemon.plan(monolithic(), units, True, {"libvirtd.service": 1000.5})
    assert plan.changes() == {"restart": ["libvirtd.service"]}


def test_the_tls_port_is_closed_when_it_is_not_wanted():
    units = installed() | {"libvirtd-tls.socket": ON}
    plan = libvirt_daemon.plan(monolithic(), units, False, {})
    # The running daemon has a copy of the open socket: only its restart closes the port.
    assert list(plan.changes().items()) == [
        ("disable", ["libvirtd-tls.socket"]),
        ("stop", ["libvirtd-tls.socket"]),
        ("restart", ["libvirtd.service"]),
    ]


def test_an_idle_daemon_holds_no_port():
    units = installed() | {"libvirtd-tls.socket": ON, "libvirtd.service": Unit(enabled=True)}
    plan = libvirt_daemon.plan(monolithic(), units, False, {})
    assert plan.changes() == {"disable": ["libvirtd-tls.socket"], "stop": ["libvirtd-tls.socket"]}


def test_of_the_modular_daemons_only_the_one_with_the_port_is_restarted():
    found = libvirt_daemon.layout(MODULAR, set())
    assert found is not None
    units = dict.fromkeys((*found.services, *found.sockets, found.tls_socket), ON)
    assert libvirt_daemon.plan(found, units, False, {}).restart == ("virtproxyd.service",)


@pytest.mark.parametrize(("stopped", "restart"), [(999.0, ()), (1001.0, ("libvirtd.service",))])
def test_a_port_that_an_interrupted_run_left_open_is_closed(stopped, restart):
    units = installed() | {"libvirtd-tls.socket": Unit(stopped=stopped)}
    plan = libvirt_daemon.plan(monolithic(), units, False, {})
    assert plan == Plan(restart=restart)


def test_a_daemon_that_is_stopped_for_another_socket_is_not_restarted_too():
    units = installed() | {"libvirtd-tls.socket": ON, "libvirtd-ro.socket": Unit(enabled=True)}
    plan = libvirt_daemon.plan(monolithic(), units, False, {})
    assert "libvirtd.service" in plan.stop
    assert plan.restart == ()


def test_a_switch_to_modular_daemons_retires_the_old_one():
    found = libvirt_daemon.layout(MONOLITHIC | MODULAR, set())
    assert found is not None
    units = {"libvirtd.service": ON, "libvirtd.socket": ON}
    plan = libvirt_daemon.plan(found, units, True, {})
    assert plan.disable == ("libvirtd.service", "libvirtd.socket")
    assert plan.stop == ("libvirtd.service", "libvirtd.socket")
    assert "virtproxyd-tls.socket" in plan.start


def test_parse_reads_systemd():
    show = """\
Id=libvirtd.service
LoadState=loaded
UnitFileState=enabled
ActiveState=active
ActiveEnterTimestampMonotonic=40000000
StateChangeTimestampMonotonic=60000000

Id=libvirtd-tls.socket
LoadState=loaded
UnitFileState=disabled
ActiveState=inactive
ActiveEnterTimestampMonotonic=0
InactiveEnterTimestampMonotonic=50000000

Id=virtqemud.socket
LoadState=not-found
UnitFileState=
ActiveState=inactive
ActiveEnterTimestampMonotonic=0
"""
    units = libvirt_daemon.parse(show, now=1_000_000.0, monotonic=100.0)
    assert units == {
        "libvirtd.service": Unit(enabled=True, active=True, since=999_940.0, told=999_960.0),
        "libvirtd-tls.socket": Unit(stopped=999_950.0),
    }


# ---- the states ----


class Host:
    """A host whose systemctl changes what it is told to change."""

    def __init__(self, monkeypatch, units: dict[str, Unit], test: bool) -> None:
        self.units = units
        self.calls: list[list[str]] = []
        self.fails = ""
        self.asked = 0
        monkeypatch.setattr(libvirt_daemon, "__context__", {}, raising=False)
        monkeypatch.setattr(libvirt_daemon, "_installed", lambda: set(self.units))
        monkeypatch.setattr(libvirt_daemon, "__opts__", {"test": test}, raising=False)
        salt = {"cmd.run_all": self.run}
        monkeypatch.setattr(libvirt_daemon, "__salt__", salt, raising=False)

    def run(self, argv: list[str], **kwargs: Any) -> dict[str, Any]:
        assert kwargs["python_shell"] is False
        assert kwargs["timeout"] > 0
        words = [word for word in argv[1:] if not word.startswith("--")]
        if words[0] == "show":
            self.asked += 1
            return {"retcode": 0, "stdout": self.show(), "stderr": ""}
        self.calls.append([argv[0], *words])
        if self.fails in words:
            return {"retcode": 1, "stdout": "", "stderr": "it is broken"}
        verb, names = words[0], words[1:]
        for name in names:
            old = self.units.get(name, Unit())
            enabled = {"enable": True, "disable": False}.get(verb, old.enabled)
            active = {"start": True, "stop": False}.get(verb, old.active)
            self.units[name] = Unit(enabled, active, 0.0)
        return {"retcode": 0, "stdout": "", "stderr": ""}

    def show(self) -> str:
        blocks = []
        for name, unit in self.units.items():
            state = "enabled" if unit.enabled else "disabled"
            active = "active" if unit.active else "inactive"
            since = int(time.monotonic() * 1e6)
            blocks.append(
                f"Id={name}\nLoadState=loaded\nUnitFileState={state}\nActiveState={active}\n"
                f"ActiveEnterTimestampMonotonic={since}\nStateChangeTimestampMonotonic={since}\n"
            )
        return "\n".join(blocks)


def test_listening_does_what_it_planned_and_then_nothing(monkeypatch):
    host = Host(monkeypatch, installed(), test=False)
    ret = libvirt_daemon.listening("x")
    assert ret["result"] is True
    assert [call[1] for call in host.calls] == ["stop", "enable", "start"]
    host.calls.clear()
    ret = libvirt_daemon.listening("x")
    assert (ret["result"], ret["changes"], host.calls) == (True, {}, [])


def test_closing_the_tls_port_restarts_its_daemon_once(monkeypatch):
    host = Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=False)
    ret = libvirt_daemon.listening("x", tls=False)
    assert ret["result"] is True
    assert host.calls == [
        ["systemctl", "disable", "libvirtd-tls.socket"],
        ["systemctl", "stop", "libvirtd-tls.socket"],
        ["systemctl", "try-restart", "libvirtd.service"],
    ]
    assert libvirt_daemon.listening("x", tls=False)["changes"] == {}


def test_listening_predicts_and_touches_nothing(monkeypatch):
    predicted = Host(monkeypatch, installed(), test=True)
    ret = libvirt_daemon.listening("x")
    assert ret["result"] is None
    assert predicted.calls == []
    Host(monkeypatch, installed(), test=False)
    assert libvirt_daemon.listening("x")["changes"] == ret["changes"]


def test_a_failing_systemctl_is_told(monkeypatch):
    host = Host(monkeypatch, installed(), test=False)
    host.fails = "enable"
    ret = libvirt_daemon.listening("x")
    assert ret["result"] is False
    assert "enable libvirtd-tls.socket failed: it is broken" in ret["comment"]
    assert list(ret["changes"]) == ["stop"]


@pytest.mark.parametrize(("test", "result"), [(True, None), (False, False)])
def test_without_a_daemon(monkeypatch, test, result):
    Host(monkeypatch, {}, test=test)
    for ret in (libvirt_daemon.configured("x", {}), libvirt_daemon.listening("x")):
        assert ret["result"] is result
        assert bool(ret["changes"]) is test


def written(monkeypatch, tmp_path, units, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `configured` and return its result and the settings of each file."""
    Host(monkeypatch, dict.fromkeys(units, Unit()), test=False)
    got: dict[str, Any] = {}

    def managed(name: str, settings: dict[str, Any]) -> dict[str, Any]:
        got[name.removeprefix("/etc/libvirt/")] = settings
        changes = {"settings": "changed"} if settings else {}
        return {"name": name, "result": True, "changes": changes, "comment": "File updated."}

    states = {
        "libvirt_conf.managed": managed,
        "libvirt_conf.written_here": lambda name: name.endswith("virtlockd.conf"),
        "libvirt_conf.flat": libvirt_conf.flat,
    }
    monkeypatch.setattr(libvirt_daemon, "__states__", states, raising=False)
    return libvirt_daemon.configured("x", **kwargs), got


def test_every_modular_daemon_gets_what_concerns_it(monkeypatch, tmp_path):
    settings = {"host_uuid_source": "machine-id", "extra": {"next_year": 1}}
    own = {"virtqemud": {"log_level": 1, "extra": {"next_year": 2}}, "libvirtd": {"log_level": 2}}
    ret, got = written(monkeypatch, tmp_path, MODULAR, settings=settings, own=own, allowed_hosts=["hv1", "hv2"])
    assert got == {
        "virtqemud.conf": {"host_uuid_source": "machine-id", "log_level": 1, "next_year": 2},
        "virtnetworkd.conf": {"host_uuid_source": "machine-id", "next_year": 1},
        "virtproxyd.conf": {
            "host_uuid_source": "machine-id", "next_year": 1, "tls_allowed_dn_list": ["CN=hv1", "CN=hv2"],
        },
    }  # fmt: skip
    assert (ret["result"], len(ret["changes"])) == (True, 3)


def test_libvirtd_gets_all_settings(monkeypatch, tmp_path):
    own = {"libvirtd": {"max_clients": 6}}
    _, got = written(monkeypatch, tmp_path, MONOLITHIC, settings={"max_clients": 5}, own=own, allowed_hosts=[])
    assert got == {"libvirtd.conf": {"max_clients": 6, "tls_allowed_dn_list": []}}


def test_another_file_is_left_alone_unless_it_has_keys_or_had_some(monkeypatch, tmp_path):
    files: dict[str, Any] = {"virtlogd": {"max_size": 1}, "virtlockd": {}, "network": {"extra": {}}}
    _, got = written(monkeypatch, tmp_path, MONOLITHIC, files=files)
    assert got == {"libvirtd.conf": {}, "virtlogd.conf": {"max_size": 1}, "virtlockd.conf": {}}


@pytest.mark.parametrize(("verdicts", "result"), [([True, None], None), ([None, False], False), ([True, True], True)])
def test_the_worst_of_several_files_is_told(monkeypatch, verdicts, result):
    Host(monkeypatch, dict.fromkeys(MONOLITHIC, Unit()), test=False)
    left = list(verdicts)
    states = {
        "libvirt_conf.managed": lambda name, settings: {
            "result": left.pop(), "changes": {}, "comment": f"{name} is bad"
        },
        "libvirt_conf.written_here": lambda name: False,
        "libvirt_conf.flat": libvirt_conf.flat,
    }  # fmt: skip
    monkeypatch.setattr(libvirt_daemon, "__states__", states, raising=False)
    ret = libvirt_daemon.configured("x", files={"virtlogd": {"a": 1}})
    assert ret["result"] is result
    assert ("is bad" in ret["comment"]) is (result is False)


# ---- what holds something for running guests ----


def test_virtlogd_is_told_to_reload_and_never_restarted():
    units = installed() | {"libvirtd-tls.socket": ON}
    modified = {"virtlogd.service": 1001.0}
    plan = libvirt_daemon.plan(monolithic(), units, True, modified, guests=True)
    assert plan.changes() == {"reload": ["virtlogd.service"]}
    told = Unit(enabled=True, active=True, since=1000.0, told=1002.0)
    units["virtlogd.service"] = told
    assert libvirt_daemon.plan(monolithic(), units, True, modified, guests=True) == Plan()


def test_a_closed_socket_of_virtlogd_opens_only_if_it_does_not_run():
    units = installed() | {"libvirtd-tls.socket": ON, "virtlogd-admin.socket": Unit()}
    plan = libvirt_daemon.plan(monolithic(), units, True, {})
    assert plan.changes() == {"enable": ["virtlogd-admin.socket"]}
    units |= {"virtlogd.service": Unit(), "virtlogd.socket": Unit(enabled=True)}
    plan = libvirt_daemon.plan(monolithic(), units, True, {})
    assert plan.changes() == {
        "enable": ["virtlogd-admin.socket"],
        "start": ["virtlogd.socket", "virtlogd-admin.socket"],
    }


def test_the_service_for_a_shutdown_is_started_where_wanted_and_never_stopped():
    units = installed() | {"libvirtd-tls.socket": ON, "libvirt-guests.service": Unit()}
    assert libvirt_daemon.plan(monolithic(), units, True, {}) == Plan()
    plan = libvirt_daemon.plan(monolithic(), units, True, {}, guests=True)
    name = "libvirt-guests.service"
    assert plan.changes() == {"enable": [name], "start": [name]}


def test_a_file_of_one_modular_daemon_restarts_that_one_alone(monkeypatch):
    units = dict.fromkeys((*MODULAR,), ON)
    host = Host(monkeypatch, units, test=True)
    libvirt_daemon.__context__["libvirt_conf.pending"] = {"/etc/libvirt/qemu.conf"}
    assert libvirt_daemon.listening("x")["changes"] == {"restart": ["virtqemud.service"]}
    assert host.calls == []


def test_systemd_is_asked_once_when_nothing_is_to_do(monkeypatch):
    host = Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=False)
    states = {
        "libvirt_conf.managed": lambda name, **_: {"result": True, "changes": {}, "comment": ""},
        "libvirt_conf.flat": libvirt_conf.flat,
    }
    monkeypatch.setattr(libvirt_daemon, "__states__", states, raising=False)
    libvirt_daemon.configured("x", {})
    assert libvirt_daemon.listening("x")["changes"] == {}
    assert libvirt_daemon.tls_loaded("x", ["/none.pem"])["changes"] == {}
    assert host.asked == 1


def test_new_certificates_are_loaded_without_a_restart(monkeypatch, tmp_path):
    host = Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=False)
    monkeypatch.setattr(libvirt_daemon, "_LOADED", tmp_path / "run" / "loaded")
    monkeypatch.setattr("salt.utils.path.which", lambda name: f"/usr/bin/{name}")
    later = time.time() + 60
    monkeypatch.setattr(libvirt_daemon, "_mtime", lambda path: later if "pem" in str(path) else 0.0)
    ret = libvirt_daemon.tls_loaded("x", ["/c.pem"])
    assert (ret["result"], list(ret["changes"])) == (True, ["tls"])
    expected = ["virt-admin", "-c", "libvirtd:///system", "server-update-tls", "libvirtd"]
    assert host.calls == [expected]
    monkeypatch.setattr(libvirt_daemon, "_mtime", lambda path: 0.0 if "pem" in str(path) else later)
    assert libvirt_daemon.tls_loaded("x", ["/c.pem"])["changes"] == {}


def test_what_listening_changed_is_seen_by_the_next_state(monkeypatch):
    host = Host(monkeypatch, installed() | {"libvirtd.service": Unit(enabled=True)}, test=False)
    libvirt_daemon.listening("x")
    asked = host.asked
    comment = libvirt_daemon.tls_loaded("x", ["/none.pem"])["comment"]
    assert (comment, host.asked) == ("No daemon runs; it reads its certificates when it starts.", asked)
    host.units["libvirtd.service"] = ON
    assert libvirt_daemon.listening("x")["changes"] == {}
    assert libvirt_daemon.tls_loaded("x", ["/none.pem"])["comment"] == "libvirtd uses the certificates on disk."


def test_an_old_survey_is_not_believed(monkeypatch):
    host = Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=False)
    libvirt_daemon.listening("x")
    monkeypatch.setattr(libvirt_daemon, "_RECENT", 0)
    libvirt_daemon.tls_loaded("x", ["/none.pem"])
    assert host.asked == 2


@pytest.mark.parametrize(
    ("tag", "changes", "told"),
    [
        ("libvirt_certificate_libvirt", {"certificate": {"why": ["it has expired"]}}, True),
        ("libvirt_certificate_libvirt", {"ca": "/etc/pki/CA/cacert.pem is written"}, True),
        ("libvirt_certificate_libvirt", {"key": ["mode 0600 instead of 0400"]}, False),
        ("libvirt_certificate_qemu", {"certificate": {"why": ["it has expired"]}}, False),
    ],
)
def test_the_daemon_is_told_of_what_it_serves_and_of_nothing_else(monkeypatch, tag, changes, told):
    """A key whose mode alone is repaired keeps its content and its time, so a run tells nobody."""
    Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=True)
    running = {f"host_certificate_|-{tag}_|-/x.pem_|-managed": {"changes": changes}}
    monkeypatch.setattr(libvirt_daemon, "__running__", running, raising=False)
    assert bool(libvirt_daemon.mod_watch("x", sfun="tls_loaded")["changes"]) is told


def test_a_watched_certificate_is_predicted_for_a_running_daemon_only(monkeypatch):
    host = Host(monkeypatch, installed() | {"libvirtd-tls.socket": ON}, test=True)
    row = {"changes": {"certificate": {"why": ["it has expired"]}}}
    running = {"host_certificate_|-libvirt_certificate_libvirt_|-/x.pem_|-managed": row}
    monkeypatch.setattr(libvirt_daemon, "__running__", running, raising=False)
    assert libvirt_daemon.mod_watch("x", sfun="tls_loaded")["changes"] == {"tls": "would read its certificates again"}
    # It has foretold its restarts already.
    assert libvirt_daemon.mod_watch("x", sfun="listening", tls=True)["changes"] == {}
    host.units["libvirtd.service"] = Unit(enabled=True)
    assert libvirt_daemon.mod_watch("x", sfun="tls_loaded")["changes"] == {}
    assert host.calls == []

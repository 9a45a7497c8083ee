"""Which host a guest goes to: what fits, what is the emptiest and the fullest, what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

from _utils import fleet_plan, fleet_tables

UUID = "92ff2d92-61e2-492a-a5f8-bd711528baf2"


def row(name, **over):
    found = {"name": name, "uuid": UUID, "state": "running", "memory_mib": 512, "vcpus": 1, "autostart": False}
    return {**found, "nics": [], "hugepages": False, **over}


def info(**over):
    found = {
        "cpu": {"cpus": 4, "architecture": "x86_64"}, "memory": {"total_mib": 8192, "available_mib": 6000},
        "load": [0.5, 0.4, 0.3], "domain_types": ["qemu"], "problems": [], "hugepages": [],
        "networks": [{"name": "default", "active": True}, {"name": "old", "active": False}],
        "bridges": [{"name": "br0"}],
        "pools": [{"name": "images", "active": True, "available_bytes": 1 << 30},
                  {"name": "away", "active": False, "available_bytes": None}],
    }  # fmt: skip
    return {**found, **over}


def host(name, *guests, evacuated=False, **over):
    return fleet_plan.host(name, info(**over), {"guests": list(guests)}, evacuated)


@pytest.mark.parametrize(("answer", "guests"), [
    (info(cpu={"cpus": "4"}), []), (info(cpu=7), []), (info(pools=[{"name": "images"}]), []), (info(load=7), []),
    (info(memory={"total_mib": [1]}), []), (info(hugepages=[{}]), []), (info(), ["web"]), (info(), [{"name": "web"}]),
    (info(), [{**row("a"), "name": None}]), (info(), [row("a", memory_mib="512")]), (info(), 7),
])  # fmt: skip
def test_an_answer_of_another_form_is_that_hosts_problem_alone(answer, guests):
    there = fleet_plan.host("hv1", answer, {"guests": guests})
    assert (there["live"], there["knows"], there["guests"]) == (False, False, [])
    assert fleet_plan.choose([there, host("hv2")], SMALL)["hosts"] == ["hv2"]
    assert "hv1   NO ANSWER" in fleet_tables.hosts({"hv1": there})
    assert "its answer is not understood" in fleet_tables.guests({"hv1": there})


SMALL = fleet_plan.need({"mem": 512, "cpu": 1})


def test_what_a_host_has_promised_is_what_its_active_guests_may_use():
    there = host("hv1", row("a"), row("b", state="paused", vcpus=2), row("c", state="shut_off"))
    assert (there["promised_mib"], there["promised_vcpus"], there["active"]) == (1024, 3, 2)
    assert (there["networks"], there["bridges"], there["pools"]) == (["default"], ["br0"], {"images": 1 << 30})


def test_spread_takes_the_emptiest_and_pack_the_fullest_and_both_say_why():
    hosts = [host("hv1", row("a")), host("hv2"), host("hv3", row("b"), row("c"))]
    spread = fleet_plan.choose(hosts, SMALL, "spread")
    assert spread["hosts"] == ["hv2", "hv1", "hv3"]
    assert spread["why"] == (
        "hv2 is the emptiest host that it fits on: 512 of 8192 MiB and 1 of 4 processors promised; "
        "hv1 1024 of 8192 MiB and 2 of 4 processors promised, hv3 1536 of 8192 MiB and 3 of 4 processors promised"
    )
    pack = fleet_plan.choose(hosts, SMALL, "pack")
    assert pack["hosts"] == ["hv3", "hv1", "hv2"]
    assert pack["why"].startswith("hv3 is the fullest host that it fits on: 1536 of 8192 MiB")


def test_the_larger_of_two_equally_loaded_hosts_is_emptier():
    hosts = [host("hv1", row("a")), host("hv2", row("b"), memory={"total_mib": 16384, "available_mib": 9000})]
    assert fleet_plan.choose(hosts, SMALL)["hosts"] == ["hv2", "hv1"]


def test_an_evacuated_host_is_not_chosen():
    found = fleet_plan.choose([host("hv1", evacuated=True), host("hv2", row("a"))], SMALL)
    assert (found["hosts"], found["against"]) == (["hv2"], {"hv1": ["is evacuated"]})
    assert found["why"] == "hv2 is the only host that it fits on"


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        ({"mem": 7000}, "memory: 7000 MiB needed, 6000 of 8192 MiB left"),
        ({"mem": {"current": 7000, "maximum": 9000}}, "memory: 7000 MiB needed, 6000 of 8192 MiB left"),
        ({"cpu": 5}, "cpu: 5 processors needed, it has 4"),
        ({"arch": "aarch64"}, "cpu: aarch64 needed, it is x86_64"),
        ({"vm_type": "kvm"}, "cpu: guests of type kvm do not run there"),
        ({"interfaces": [{"type": "network", "source": "old"}]}, "network: no active network old"),
        ({"interfaces": [{"type": "bridge", "source": "br9"}]}, "network: no bridge br9"),
        ({"disks": [{"pool": "away", "size": 1}]}, "storage: no active pool away"),
        (
            {"disks": [{"pool": "images", "size": 600}, {"pool": "images", "size": 600}]},
            "storage: 1200 MiB needed in images, 1024 MiB left",
        ),
    ],
)
def test_what_does_not_fit_is_told(declaration, text):
    assert fleet_plan.obstacles(host("hv1"), fleet_plan.need(declaration)) == [text]


def test_what_is_promised_and_not_used_yet_is_not_given_twice():
    there = host("hv1", row("a", memory_mib=7000, vcpus=1))
    assert there["available_mib"] == 6000
    assert fleet_plan.obstacles(there, fleet_plan.need({"mem": 2000}))[0].endswith("1192 of 8192 MiB left")


def test_all_that_does_not_fit_comes_at_once_and_what_is_there_already_takes_no_room():
    wanted = fleet_plan.need({"mem": 9000, "cpu": 9, "disks": [{"pool": "none"}]})
    assert len(fleet_plan.obstacles(host("hv1"), wanted)) == 3
    there = fleet_plan.need({"disks": [{"pool": "images", "size": 9000, "source_file": "x.qcow2"}]})
    assert fleet_plan.obstacles(host("hv1"), there) == []


@pytest.mark.parametrize("value", [None, "many", -1, 0, True, [], {}, {"current": "x"}, {"x": 1}, 1.5])
def test_a_declaration_that_is_wrong_is_left_to_the_host(value):
    wanted = fleet_plan.need({"mem": value, "cpu": value, "disks": value, "interfaces": value})
    assert (wanted["memory_mib"], wanted["vcpus"]) == (0, 1)
    assert fleet_plan.obstacles(host("hv1"), wanted) == []


@pytest.mark.parametrize(
    ("answer", "guests", "problem"),
    [
        (None, None, "does not answer"),
        ("Traceback:\n boom", None, "Traceback: boom"),
        (info(problems=["libvirt: no socket"]), "ERROR: no\nlibvirt", "libvirt: no socket"),
    ],
)
def test_a_host_in_trouble_takes_nothing_and_says_why(answer, guests, problem):
    there = fleet_plan.host("hv1", answer, guests)
    assert fleet_plan.obstacles(there, SMALL)[0] == problem
    assert fleet_plan.unknown({"hv1": there, "hv2": host("hv2")}) == ["hv1"]
    text = fleet_tables.hosts({"hv1": there})
    assert ("NO ANSWER" in text, "PROBLEMS" in text) == (not there["live"], there["live"])
    assert f"! hv1: {problem}" in text


def test_a_guest_on_its_way_counts_where_it_goes():
    hosts = {"hv1": host("hv1"), "hv2": host("hv2")}
    need = fleet_plan.need_of(row("a"))
    assert fleet_plan.choose(hosts.values(), need)["hosts"][0] == "hv1"
    fleet_plan.taken(hosts, "hv1", need)
    assert fleet_plan.choose(hosts.values(), need)["hosts"][0] == "hv2"
    fleet_plan.taken(hosts, "hv1", need, -1)
    assert fleet_plan.choose(hosts.values(), need)["hosts"][0] == "hv1"


def test_a_guest_that_is_shut_off_needs_nothing_now():
    need = fleet_plan.need_of(row("a", state="shut_off", memory_mib=10**6))
    assert fleet_plan.obstacles(host("hv1"), need) == []


def test_the_largest_leave_first_and_who_does_not_run_only_if_asked():
    there = host("hv1", row("b"), row("a"), row("big", memory_mib=900), row("off", state="shut_off", memory_mib=2000))
    assert [one["name"] for one in fleet_plan.leaving(there, False)] == ["big", "a", "b"]
    assert [one["name"] for one in fleet_plan.leaving(there, True)] == ["off", "big", "a", "b"]


def test_what_comes_back():
    hosts: dict[str, Any] = {"hv1": host("hv1"), "hv2": host("hv2", row("a"))}
    verdict, place = fleet_plan.back(hosts, "hv1", UUID, True)
    assert place is not None
    assert (verdict, place[0], place[1]["name"]) == ("moves", "hv2", "a")
    assert fleet_plan.back(hosts, "hv2", UUID, True) == ("back", None)
    assert fleet_plan.back(hosts, "hv1", "other", True) == ("gone", None)
    assert fleet_plan.back(hosts, "hv1", "other", False) == ("waits", None)
    hosts["hv3"] = fleet_plan.host("hv3", None, None)
    assert fleet_plan.back(hosts, "hv1", "other", True) == ("waits", None)


# ---- tables ----


def test_hosts_at_a_glance():
    hosts = {"hv1": host("hv1", row("a"), row("c", state="shut_off")), "hv2": host("hv2", evacuated=True)}
    assert fleet_tables.hosts(hosts).splitlines() == [
        "HOST  STATE      GUESTS RUN  CPUS GIVEN  MEMORY GIVEN         LOAD",
        "hv1   ok         1 of 2      1 of 4      512 MiB of 8192 MiB  0.50",
        "hv2   evacuated  0 of 0      0 of 4      0 MiB of 8192 MiB    0.50",
    ]
    assert fleet_tables.hosts({}) == "There is no host."


def test_guests_at_a_glance():
    web = row("web", nics=[{"addresses": ["192.0.2.7", "192.0.2.8"]}], autostart=True, memory_mib=20480)
    hosts = {"hv1": host("hv1", web), "hv2": host("hv2", row("db", state="shut_off"))}
    hosts["hv3"] = fleet_plan.host("hv3", None, None)
    assert fleet_tables.guests(hosts).splitlines() == [
        "GUEST  HOST  STATE     CPUS   MEMORY  AUTOSTART  ADDRESS",
        "db     hv2   shut off     1  512 MiB  no",
        "web    hv1   running      1   20 GiB  yes        192.0.2.7 +1",
        "! hv3 does not tell its guests: does not answer",
    ]


def test_a_hostile_name_does_nothing_to_a_terminal():
    hosts = {"hv1": host("hv1", row("\x1b[2Jweb\u202e\n" + "x" * 100))}
    line = fleet_tables.guests(hosts).splitlines()[1]
    assert line.startswith("?[2Jweb??xxx")
    assert "…" in line
    assert line.isprintable()


def test_what_became_of_guests():
    rows = [
        {"name": "web", "outcome": "moved", "text": "to hv2 in 1.0 s"},
        {"name": "device", "outcome": "stays", "text": "stays on hv1", "against": {"hv2": ["device: it\nhas one"]}},
    ]
    assert fleet_tables.moves({"text": "hv1 is not evacuated whole", "guests": rows}).splitlines() == [
        "hv1 is not evacuated whole",
        "  moved     web     to hv2 in 1.0 s",
        "  stays     device  stays on hv1",
        "                      hv2: device: it has one",
    ]

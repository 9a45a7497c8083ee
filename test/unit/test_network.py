"""Names and addresses of a lab's network: unique, short enough, and clear of the machine's own routes."""

import ipaddress
import itertools
from typing import Any

import pytest

from lab import network
from lab.proc import LabError

# What the kernel allows for the name of an interface.
NAME_MAX = 15


def test_names_of_labs_never_meet():
    labs = ("a", "a-b", "a-b-c", "ab")
    hosts = ("b", "c", "b-c", "hv1")
    names = [network.switch(lab) for lab in labs]
    names += [network.host_namespace(lab, host) for lab, host in itertools.product(labs, hosts)]
    assert len(set(names)) == len(names)
    # "down" removes what begins with the switch's name and a dot.
    for one, other in itertools.permutations(labs, 2):
        assert not network.host_namespace(other, "b").startswith(f"{network.switch(one)}.")


def test_interface_names_fit():
    assert len(network.uplink(249)) <= NAME_MAX
    assert len({network.uplink(index) for index in range(1, 250)}) == 249


def test_addresses_and_hardware_addresses():
    assert str(network.subnet(7)) == "10.213.7.0/24"
    assert network.address(7, 1) == "10.213.7.1"
    assert network.address(7, 10) == "10.213.7.10"
    assert network.mac(7, 10) == "52:54:00:d5:07:0a"
    macs = {network.mac(index, number) for index in range(1, 250) for number in range(10, 30)}
    assert len(macs) == 249 * 20
    for index in (1, 249):
        assert ipaddress.ip_address(network.address(index, 10)) in network.subnet(index)


@pytest.fixture
def routes(monkeypatch):
    """Let a test say which routes the machine has; keep what was asked."""
    known: list[dict[str, str]] = []
    asked: list[Any] = []

    def ip_json(*words, namespace=None):
        asked.append((words, namespace))
        return known

    monkeypatch.setattr(network, "ip_json", ip_json)
    yield known
    # All routing tables and this machine's, not a lab's.
    assert asked == [(("-4", "route", "show", "table", "all"), None)] * len(asked)


def test_the_first_network_that_is_free(routes):
    routes += [{"dst": "default"}, {"dst": "192.168.1.0/24"}, {"dst": "0.0.0.0/0"}]
    assert network.free_index(set()) == 1
    assert network.free_index({1, 2, 4}) == 3


@pytest.mark.parametrize(
    ("route", "index"),
    [
        ({"dst": "10.213.1.0/24"}, 2),
        ({"dst": "10.213.1.77"}, 2),
        ({"type": "local", "dst": "10.213.1.1"}, 2),
        ({"dst": "10.213.0.0/21"}, 8),
        ({"dst": "10.212.0.0/16"}, 1),
    ],
)
def test_a_network_that_the_machine_uses_is_not_taken(routes, route, index):
    routes.append(route)
    assert network.free_index(set()) == index


@pytest.mark.parametrize(("route", "taken"), [({"dst": "10.0.0.0/8"}, set()), ({"dst": "default"}, set(range(250)))])
def test_no_free_network_is_an_error(routes, route, taken):
    routes.append(route)
    with pytest.raises(LabError, match=r"^no network 10\.213\.1\.0/24 to 10\.213\.249\.0/24 is free"):
        network.free_index(taken)


def test_down_deletes_the_namespaces_of_one_lab_alone(monkeypatch):
    calls: list[Any] = []
    there = {"lab-a", "lab-a.hv1", "lab-a-b", "lab-a-b.hv1", "lab-ab", "other"}
    monkeypatch.setattr(network, "namespaces", lambda: there)
    monkeypatch.setattr(network, "ip", lambda *words, **_: calls.append(words))
    network.destroy("a", 3)
    assert ("link", "delete", "hvlab3") in calls
    assert {words[2] for words in calls if words[:2] == ("netns", "delete")} == {"lab-a", "lab-a.hv1"}


def test_link_of_a_container_is_cut_at_the_bridge(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(network, "ip", lambda *words, **options: calls.append((words, options)))
    network.set_link("a", "hv1", up=False)
    network.set_link("a", "hv1", up=True)
    assert calls == [
        (("link", "set", "p-hv1", "down"), {"namespace": "lab-a"}),
        (("link", "set", "p-hv1", "up"), {"namespace": "lab-a"}),
    ]

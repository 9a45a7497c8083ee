"""What carries the connection to the master, from what ip prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _utils.network_uplink import carriers

LINKS = [
    {"ifname": "lo"},
    {"ifname": "eth0", "master": "ovs-system"},
    {"ifname": "eth1", "master": "bond0"},
    {"ifname": "eth2", "master": "bond0"},
    {"ifname": "bond0"},
    {"ifname": "bond0.7", "link": "bond0"},
    {"ifname": "far0", "link": None},
    {"ifname": "ovsbr0"},
]
ROUTES = {"192.0.2.5": "ovsbr0", "198.51.100.5": "bond0.7", "127.0.0.1": "lo", "2001:db8::5": "far0"}


class Host:
    """Answers as ip and getent do."""

    def __init__(self) -> None:
        self.defaults: dict[str, list[dict[str, Any]]]
        self.defaults = {"-4": [{"dst": "default", "dev": "ovsbr0"}], "-6": [{"dst": "default", "dev": "far0"}]}
        self.names = {"salt.example": "192.0.2.5      STREAM salt.example\n192.0.2.5      DGRAM\n"}

    def run(self, argv: list[str], timeout: float = 30, ok: Any = (0,)) -> str:
        if argv[0] == "getent":
            if argv[-1] == "slow.example":
                raise CommandExecutionError("getent did not end within 10 s")
            return self.names.get(argv[-1], "")
        if argv[2:] == ["link", "show"]:
            return json.dumps(LINKS)
        if argv[2] in self.defaults:
            return json.dumps(self.defaults[argv[2]]) if self.defaults[argv[2]] else ""
        return json.dumps([{"dst": argv[-1], "dev": ROUTES[argv[-1]]}]) if argv[-1] in ROUTES else ""


@pytest.mark.parametrize(
    ("masters", "expected"),
    [
        (["192.0.2.5"], ["ovsbr0"]),
        (["salt.example"], ["ovsbr0"]),
        (["198.51.100.5", "192.0.2.5"], ["bond0", "bond0.7", "eth1", "eth2", "ovsbr0"]),
        (["2001:db8::5"], ["far0"]),
        # No master, one that is this host, and those that nobody knows: the default routes of both families.
        ([], ["far0", "ovsbr0"]),
        (["127.0.0.1"], ["far0", "ovsbr0"]),
        (["nobody.example"], ["far0", "ovsbr0"]),
        (["slow.example"], ["far0", "ovsbr0"]),
        (["203.0.113.9"], ["far0", "ovsbr0"]),
    ],
)
def test_it_is_the_device_of_the_route_with_what_is_below(masters, expected):
    assert carriers(Host().run, masters) == expected


def test_several_ways_all_count_and_none_is_no_error():
    host = Host()
    host.defaults = {"-4": [{"dst": "default", "nexthops": [{"dev": "eth1"}, {"dev": "eth2"}]}], "-6": []}
    assert carriers(host.run, []) == ["eth1", "eth2"]
    host.defaults["-4"] = []
    assert carriers(host.run, []) == []

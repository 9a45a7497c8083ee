"""What dnsmasq reads: each key of the pillar is a line, and only what needs a restart gets one."""

from __future__ import annotations

from typing import Any

import pytest

from _utils import dnsmasq_config
from _utils.dnsmasq_config import CONF, HOSTS, NAMES, OPTIONS, Listener

SPEC: dict[str, Any] = {
    "interface": "priv0",
    "ranges": [
        {"start": "10.9.0.100", "end": "10.9.0.150", "netmask": "255.255.255.0", "lease": "1h"},
        {"start": "fd00:9::100", "end": "fd00:9::1ff"},
    ],
    "hosts": {
        "52:54:00:AA:00:01": {"ip": "10.9.0.10", "name": "web"},
        "52:54:00:aa:00:02": {"ip": "fd00:9::10"},
        "52:54:00:aa:00:03": {"name": "db"},
    },
    "router": "10.9.0.1",
    "mtu": 1424,
    "options": {"ntp-server": ["10.9.0.1", "10.9.0.2"], "119": "a.example"},
    "boot": {
        "server": "10.9.0.5",
        "file": "undionly.kpxe",
        "uefi_file": "ipxe.efi",
        "ipxe_file": "http://10.9.0.5/menu.ipxe",
        "tftp_root": "/srv/tftp",
    },
    "domain": "private.example",
    "dns": {"servers": ["192.0.2.53"], "hosts": {"10.9.0.1": ["gw", "ntp"]}},
}


def lines(text: str) -> list[str]:
    assert text.startswith("# Written by Salt.")
    return text.splitlines()[1:]


def test_the_configuration_listens_on_its_interface_and_nowhere_else():
    found = lines(dnsmasq_config.files("net", SPEC)[CONF])
    assert found[:5] == ["interface=priv0", "except-interface=lo", "bind-dynamic", "no-hosts", "no-resolv"]
    assert "server=192.0.2.53" in found
    assert "local=/private.example/" in found
    assert "dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h" in found
    assert "dhcp-range=fd00:9::100,fd00:9::1ff,64,12h" in found
    assert "enable-ra" in found
    assert "dhcp-leasefile=/var/lib/hypervisor-dnsmasq/net/leases" in found


def test_each_kind_of_client_boots_its_own_file():
    found = lines(dnsmasq_config.files("net", SPEC)[CONF])
    assert [line for line in found if line.startswith("dhcp-boot")] == [
        "dhcp-boot=tag:ipxe,http://10.9.0.5/menu.ipxe,,10.9.0.5",
        "dhcp-boot=tag:!ipxe,tag:uefi,ipxe.efi,,10.9.0.5",
        "dhcp-boot=tag:!ipxe,tag:!uefi,undionly.kpxe,,10.9.0.5",
    ]
    assert "tftp-root=/srv/tftp" in found
    plain = lines(dnsmasq_config.files("net", {**SPEC, "boot": {"file": "pxelinux.0"}})[CONF])
    assert [line for line in plain if "boot" in line or "tftp" in line] == ["dhcp-boot=pxelinux.0"]


def test_what_is_read_again_stands_in_files_of_its_own():
    files = dnsmasq_config.files("net", SPEC)
    assert lines(files[HOSTS]) == [
        "52:54:00:aa:00:01,10.9.0.10,web",
        "52:54:00:aa:00:02,[fd00:9::10]",
        "52:54:00:aa:00:03,db",
    ]
    assert lines(files[OPTIONS]) == [
        *("option:router,10.9.0.1", "option:mtu,1424", "option:ntp-server,10.9.0.1,10.9.0.2", "119,a.example"),
    ]
    assert lines(files[NAMES]) == ["10.9.0.1 gw ntp"]
    for name in (HOSTS, OPTIONS, NAMES):
        assert f"/etc/hypervisor-formula/dnsmasq/net/{name}" in files[CONF]


def test_a_host_that_is_no_router_and_no_name_server_says_so():
    spec = {"interface": "priv0", "ranges": [{"start": "10.9.0.9", "end": "10.9.0.9"}], "dns": {"enabled": False}}
    files = dnsmasq_config.files("net", spec)
    assert lines(files[OPTIONS]) == ["option:router", "option:dns-server"]
    assert "port=0" in lines(files[CONF])
    # Names alone, without DHCP.
    names = dnsmasq_config.files("net", {"interface": "priv0"})
    assert "dhcp" not in names[CONF]
    assert lines(names[OPTIONS]) == []
    fixed = {"interface": "priv0", "network": "10.9.0.0/24", "hosts": SPEC["hosts"]}
    static = "dhcp-range=10.9.0.0,static,255.255.255.0,12h"
    assert static in lines(dnsmasq_config.files("net", fixed)[CONF])
    # A range of the other family, or of another network, is none for them.
    six = {**fixed, "ranges": [{"start": "fd00:9::100", "end": "fd00:9::1ff"}]}
    assert static in lines(dnsmasq_config.files("net", six)[CONF])
    assert static not in dnsmasq_config.files("net", {**SPEC, "network": "10.9.0.0/24"})[CONF]


@pytest.mark.parametrize(
    ("network", "text"), [({}, "network: missing"), ({"network": "fd00:9::/64"}, "fd00:9::/64 is not an IPv4 network")]
)
@pytest.mark.parametrize("made", [dnsmasq_config.files, dnsmasq_config.candidate])
def test_hosts_that_nobody_would_answer_are_no_network(made, network, text):
    with pytest.raises(ValueError, match=text):
        made("net", {"interface": "priv0", "hosts": SPEC["hosts"], **network})


@pytest.mark.parametrize(
    ("changed", "active", "step"),
    [
        ([], True, ""),
        ([], False, "start"),
        ([CONF, HOSTS], True, "restart"),
        ([HOSTS], True, "reload"),
        ([OPTIONS, NAMES], True, "reload"),
        ([HOSTS], False, "start"),
    ],
)
def test_only_what_must_restart_does(changed, active, step):
    assert dnsmasq_config.steps(changed, active) == step


SOCKETS = """\
udp   UNCONN 0      0            127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=321,fd=13))
udp   UNCONN 0      0          0.0.0.0%virbr0:67         0.0.0.0:*    users:(("dnsmasq",pid=900,fd=3))
udp   UNCONN 0      0                 0.0.0.0:67         0.0.0.0:*    users:(("dhcpd",pid=77,fd=7))
tcp   LISTEN 0      32             10.9.0.1:53         0.0.0.0:*    users:(("named",pid=55,fd=8))
udp   UNCONN 0      0                    [::]:53            [::]:*
"""


def test_sockets_of_others_are_named():
    found = dnsmasq_config.listeners(SOCKETS)
    assert found[0] == Listener("127.0.0.53", "lo", 53, "systemd-resolve", 321)
    assert found[4] == Listener("*", "", 53, "", 0)
    assert dnsmasq_config.taken(SPEC, found, ["10.9.0.1"], 0) == [
        "another program has port 53 on all addresses",
        "dhcpd (process 77) has port 67 on all addresses",
        "named (process 55) has port 53 on 10.9.0.1",
    ]
    # Its own daemon, other interfaces and other addresses are in nobody's way.
    assert dnsmasq_config.taken(SPEC, found[:2] + found[3:4], ["10.9.0.2"], 0) == []
    assert dnsmasq_config.taken(SPEC, found[3:4], ["10.9.0.1"], 55) == []
    assert dnsmasq_config.taken({**SPEC, "dns": {"enabled": False}}, found[3:], ["10.9.0.1"], 0) == []

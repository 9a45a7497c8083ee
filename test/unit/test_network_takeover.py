"""What others have written for the same interfaces goes, and nothing else does."""

from __future__ import annotations

import pytest
from hypervisor_network.backends.contract import BackendError
from hypervisor_network.engine.plan import backend_of
from network_stack import BRIDGE, MACS, Stack, resolved

MAIN = "/etc/network/interfaces"
DEBIAN = """\
# The loopback network interface
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug eth0 eth1
iface eth0 inet static
    address 192.0.2.5/24
    # a remark of somebody
    up ip route add 198.51.100.0/24 \\
        via 192.0.2.1

# The other one
iface eth1 inet dhcp
"""
CLOUD = """\
# from the datasource
network:
    version: 2
    ethernets:
        eth0:
            addresses:
            - 192.0.2.5/24
            match:
                macaddress: '52:54:00:00:00:10'
            set-name: eth0
        # the second card
        eth1:
            dhcp4: true
"""


def takeover(tmp_path, backend, files, pillar=BRIDGE):
    host = Stack(tmp_path)
    host.write(files)
    return backend_of(backend).takeover(host, resolved(pillar))


# ---- ifupdown ----


def test_stanzas_of_a_card_go_and_all_else_stays(tmp_path):
    (name, content), *more = takeover(tmp_path, "ifupdown", {MAIN: DEBIAN}).items()
    assert (name, more) == (MAIN, [])
    assert content.decode() == """\
# The loopback network interface
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug eth1

# The other one
iface eth1 inet dhcp
"""


def test_a_file_of_the_card_alone_goes_and_files_that_are_not_sourced_do_not_count(tmp_path):
    stanza = "auto eth0\niface eth0 inet dhcp\n"
    files = {MAIN: "source-directory interfaces.d\n", f"{MAIN}.d/eth0": stanza, f"{MAIN}.d/eth0.bak": stanza}
    assert takeover(tmp_path, "ifupdown", files) == {f"{MAIN}.d/eth0": None}


def test_the_folder_of_our_files_is_sourced(tmp_path):
    found = takeover(tmp_path, "ifupdown", {MAIN: "auto lo\niface lo inet loopback\n"})
    assert found == {MAIN: b"auto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n"}


def test_a_file_of_ours_is_not_somebody_elses(tmp_path):
    own = f"{MAIN}.d/50-hypervisor-0-eth0"
    assert takeover(tmp_path, "ifupdown", {MAIN: "source interfaces.d/*\n", own: "iface eth0 inet manual\n"}) == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mapping eth*\n    script /bin/true\n", "maps eth0"),
        ("iface eth1 inet static inherits eth0\n", "eth1 inherits from eth0"),
        ("auto /eth*\n", "is for eth0 too"),
        ("auto eth1 eth0:0\n", "eth0:0 gives eth0 a further address"),
        ("iface eth0:web inet static\n    address 192.0.2.9/24\n", "eth0:web gives eth0 a further address"),
    ],
)
def test_what_cannot_be_taken_apart_is_named(tmp_path, text, why):
    with pytest.raises(BackendError, match=why):
        takeover(tmp_path, "ifupdown", {MAIN: f"source interfaces.d/*\n{text}"})


def test_a_card_that_only_carries_a_vlan_keeps_what_it_has(tmp_path):
    vlan = {"vlans": {"v5": {"link": "eth0", "id": 5}}}
    assert takeover(tmp_path, "ifupdown", {MAIN: DEBIAN}, vlan) == {}
    assert [name for name in backend_of("ifupdown").render(resolved(vlan)) if "eth0" in name] == []


def test_a_card_that_is_absent_keeps_what_others_have_written(tmp_path):
    assert takeover(tmp_path, "ifupdown", {MAIN: DEBIAN}, {"ethernets": {"eth0": {"ensure": "absent"}}}) == {}


# ---- netplan ----


def test_a_definition_of_netplan_goes_and_all_else_stays(tmp_path):
    found = takeover(tmp_path, "netplan", {"/etc/netplan/50-cloud-init.yaml": CLOUD})
    assert found == {
        "/etc/netplan/50-cloud-init.yaml": b"""\
# from the datasource
network:
    version: 2
    ethernets:
        # the second card
        eth1:
            dhcp4: true
"""
    }


def test_a_section_without_a_definition_goes_too(tmp_path):
    text = "network:\n  version: 2\n  ethernets:\n    eth0: {dhcp4: true}\n  renderer: networkd\n"
    found = takeover(tmp_path, "netplan", {"/etc/netplan/a.yaml": text})
    assert found == {"/etc/netplan/a.yaml": b"network:\n  version: 2\n  renderer: networkd\n"}


@pytest.mark.parametrize(
    "definition",
    ["uplink:\n      match: {name: eth0}\n", "uplink:\n      match:\n        macaddress: 52:54:00:00:00:10\n"],
)
def test_a_definition_is_known_by_what_it_matches(tmp_path, definition):
    text = f"---\nnetwork:\n  ethernets:\n    {definition}      dhcp4: true\n    eth7: {{}}\n"
    found = takeover(tmp_path, "netplan", {"/etc/netplan/a.yaml": text})
    assert found == {"/etc/netplan/a.yaml": b"---\nnetwork:\n  ethernets:\n    eth7: {}\n"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("network: {ethernets: {eth0: {dhcp4: true}}}\n", "not written in blocks"),
        ("network:\n  ethernets: {eth0: {dhcp4: true}}\n", "ethernets: this YAML is not written in blocks"),
        ("network:\n  ethernets:\n    all:\n      match: {name: 'eth*'}\n", "all matches eth0 and others"),
        (
            "network:\n  ethernets:\n    lan: {match: {driver: ixgbe}, set-name: eth0, dhcp4: true}\n",
            "lan: this YAML is not written in blocks",
        ),
    ],
)
def test_yaml_that_cannot_be_taken_apart_is_named(tmp_path, text, why):
    with pytest.raises(BackendError, match=why):
        takeover(tmp_path, "netplan", {"/etc/netplan/a.yaml": text})


def test_another_cards_name_is_no_reason(tmp_path):
    text = 'network:\n  ethernets:\n    eth0: {match: {driver: ixgbe}, "set-name": "lan7"}\n'
    assert takeover(tmp_path, "netplan", {"/etc/netplan/a.yaml": text}) == {}


def test_a_card_that_is_known_by_its_driver_keeps_its_name(tmp_path):
    host, backend = Stack(tmp_path), backend_of("netplan")
    text = "network:\n  ethernets:\n    lan:\n      match:\n        driver: ixgbe\n      set-name: eth0\n"
    host.write({"/etc/netplan/a.yaml": text})
    found = backend.render(backend.adapt(host, resolved(BRIDGE)))["/etc/netplan/90-hypervisor-0-eth0.yaml"].text
    assert f'macaddress: "{MACS["eth0"]}"\n      set-name: eth0\n' in found


def test_a_file_that_is_not_in_etc_is_named(tmp_path):
    with pytest.raises(BackendError, match="only files in /etc/netplan are changed"):
        takeover(tmp_path, "netplan", {"/run/netplan/a.yaml": "network:\n  ethernets:\n    eth0: {}\n"})


def test_a_card_keeps_the_name_that_netplan_gives_it(tmp_path):
    host = Stack(tmp_path)
    host.write({"/etc/netplan/50-cloud-init.yaml": CLOUD})
    backend = backend_of("netplan")
    for _ in range(2):
        files = backend.render(backend.adapt(host, resolved(BRIDGE)))
        text = files["/etc/netplan/90-hypervisor-0-eth0.yaml"].text
        assert f'macaddress: "{MACS["eth0"]}"\n      set-name: eth0\n' in text
        # And in the next run, when only our files say so.
        host.write({"/etc/netplan/50-cloud-init.yaml": "network:\n  version: 2\n"})
        host.write({name: one.text for name, one in files.items()})


# ---- networkd ----


def test_networkds_files_for_the_interfaces_alone_go(tmp_path):
    folder = "/etc/systemd/network"
    files = {
        f"{folder}/10-eth0.network": "[Match]\nName=eth0\n",
        f"{folder}/20-mac.network": "[Match]\nMACAddress=52:54:00:00:00:10\n",
        f"{folder}/25-br0.netdev": "[NetDev]\nName=br0\nKind=bridge\n",
        f"{folder}/30-all.network": "[Match]\nName=en* eth*\n",
        f"{folder}/40-two.network": "[Match]\nName=eth0 eth1\n",
        f"{folder}/05-hypervisor-eth0.network": "[Match]\nName=eth0\n",
        f"{folder}/eth0.link": "[Match]\nOriginalName=eth0\n",
    }
    gone = ("10-eth0.network", "20-mac.network", "25-br0.netdev")
    assert takeover(tmp_path, "networkd", files) == {f"{folder}/{name}": None for name in gone}


@pytest.mark.parametrize("names", ["eth0 eth1", "en* eth*", "!wl*"])
def test_a_file_that_networkd_reads_before_ours_is_named(tmp_path, names):
    with pytest.raises(BackendError, match=r"00-two.network is for more than \w+0 and is read first"):
        takeover(tmp_path, "networkd", {"/etc/systemd/network/00-two.network": f"[Match]\nName={names}\n"})


@pytest.mark.parametrize("names", ["eth1", "en*", "!br0 eth*"])
def test_a_file_for_other_interfaces_may_be_read_first(tmp_path, names):
    assert takeover(tmp_path, "networkd", {"/etc/systemd/network/00-x.network": f"[Match]\nName={names}\n"}) == {}


# ---- NetworkManager ----


def test_connections_of_the_interfaces_go(tmp_path):
    folder = "/etc/NetworkManager/system-connections"
    files = {
        f"{folder}/Wired connection 1.nmconnection": "[connection]\nid=x\ninterface-name=eth0\n",
        f"{folder}/mac": "[connection]\nid=y\n[ethernet]\nmac-address=52:54:00:00:00:10\n",
        f"{folder}/any.nmconnection": "[connection]\nid=z\ntype=ethernet\n",
        f"{folder}/eth1.nmconnection": "[connection]\nid=e\ninterface-name=eth1\n",
        f"{folder}/hypervisor-eth0.nmconnection": "[connection]\nid=h\ninterface-name=eth0\n",
    }
    gone = ("Wired connection 1.nmconnection", "mac")
    assert takeover(tmp_path, "networkmanager", files) == {f"{folder}/{name}": None for name in gone}

"""What the backends run, in which order, and what they refuse before anything is touched."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypervisor_network.backends import common, networkd
from hypervisor_network.backends.contract import BackendError, Done
from hypervisor_network.backends.networkmanager.render import uuid_of
from hypervisor_network.engine.plan import BACKENDS, backend_of
from network_stack import BRIDGE, MACS, Stack, resolved, step

SETTLED = {"ADMIN_STATE": "configured", "NETWORK_FILE": "/etc/systemd/network/10-eth0.network"}


def networkd_state(host, name, **values):
    text = "".join(f"{key}={value}\n" for key, value in {**SETTLED, **values}.items())
    host.write({f"/run/systemd/netif/links/{host.there[name]['ifindex']}": text})


def with_bridge(host, **values):
    """Puts br0 there."""
    host.there["br0"] = {"ifname": "br0", "ifindex": 9, "linkinfo": {"info_kind": "bridge"}, **values}


# ---- what all of them do ----


@pytest.mark.parametrize("name", BACKENDS)
def test_what_has_not_taken_its_files_is_told_by_interface(tmp_path, name):
    host, backend, profile = Stack(tmp_path), backend_of(name), resolved(BRIDGE)
    with_bridge(host)
    told = backend.read_back(host, profile)
    assert set(told) == {"eth0", "br0"}
    assert all(one in line for one, line in told.items())
    host.answers["ifquery --state"] = Done(0, "br0=br0\n", "")
    host.answers["nmcli -t -f UUID,DEVICE"] = Done(0, f"{uuid_of('br0')}:br0\n", "")
    made = "/run/systemd/network/10-netplan-br0.network"
    networkd_state(host, "br0", NETWORK_FILE=made if name == "netplan" else networkd.render.path("br0", "network"))
    assert set(backend.read_back(host, profile)) == {"eth0"}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_port_that_is_not_there_is_refused(tmp_path, name):
    host = Stack(tmp_path, "eth1")
    (tmp_path / "c").mkdir()
    assert "eth0: this host has no such card" in backend_of(name).validate(host, tmp_path / "c", resolved(BRIDGE))


@pytest.mark.parametrize("name", [one for one in BACKENDS if one != "ifupdown"])
def test_an_interface_that_another_backend_has_set_up_is_refused(tmp_path, name):
    host = Stack(tmp_path)
    host.answers["ifquery --state eth0"] = Done(0, "eth0=eth0\n", "")
    found = backend_of(name).validate(host, tmp_path / "c", resolved(BRIDGE))
    assert [line for line in found if line.startswith("eth0: ifupdown has set it up; set network:backend to ifupdown")]


@pytest.mark.parametrize("name", BACKENDS)
def test_only_files_of_its_own_are_its_own(tmp_path, name):
    host, backend = Stack(tmp_path), backend_of(name)
    files = backend.render(resolved(BRIDGE))
    host.write({path: one.text for path, one in files.items()})
    folder = next(iter(files)).rpartition("/")[0]
    host.write({f"{folder}/foreign.network": "", f"{folder}/eth1": "", f"{folder}/50-cloud-init.yaml": ""})
    assert set(backend.owned(host)) == set(files)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_it_made_is_removed_on_the_way_back_and_nothing_else(tmp_path, name):
    host = Stack(tmp_path)
    with_bridge(host)
    backend = backend_of(name)
    active = {"up": ["eth0"], "managed": ["eth0"], "active": {"eth0": "uuid-of-old"}}
    networkd_state(host, "eth0")
    back = step(BRIDGE, back=True, **active)
    backend.release(host, back)
    backend.activate(host, back)
    assert [line for line in host.ran if "link delete" in line][:1] == ["ip link delete dev br0"]
    assert not [line for line in host.ran if "link delete" in line and "eth0" in line]


@pytest.mark.parametrize("name", BACKENDS)
def test_guests_get_their_bridge_back(tmp_path, name):
    host = Stack(tmp_path)
    with_bridge(host)
    host.there["vnet3"] = {"ifname": "vnet3"}
    before = [{"ifname": "eth0"}, {"ifname": "br0"}, {"ifname": "vnet3", "master": "br0"}]
    backend_of(name).activate(host, step(BRIDGE, links=before))
    assert host.ran[-1] == "ip link set dev vnet3 master br0"


@pytest.mark.parametrize("name", BACKENDS)
def test_what_shall_go_goes(tmp_path, name):
    host = Stack(tmp_path)
    with_bridge(host)
    gone = {"bridges": {"br0": {"ensure": "absent"}}}
    assert backend_of(name).render(resolved(gone)) == {}
    backend_of(name).activate(host, step(gone, links=[{"ifname": "br0"}]))
    assert "ip link delete dev br0" in host.ran


def test_a_link_that_has_become_something_else_is_made_anew(tmp_path):
    host = Stack(tmp_path)
    host.there["v5"] = {"ifname": "v5", "link": "eth0", "linkinfo": {"info_kind": "vlan", "info_data": {"id": 5}}}
    common.remove_outdated(host, step({"vlans": {"v5": {"link": "eth0", "id": 5}}}))
    assert host.ran == []
    common.remove_outdated(host, step({"vlans": {"v5": {"link": "eth0", "id": 6}}}))
    assert host.ran == ["ip link delete dev v5"]


def a_link(name, kind, data=None, **values):
    """Returns a link as the kernel shows it."""
    return {"ifname": name, "ifindex": 7, "linkinfo": {"info_kind": kind, "info_data": data or {}}, **values}


CARDS = [{"ifname": "eth0"}, {"ifname": "eth1"}]
REMADE = {
    "tag": ({"vlans": {"mgmt": {"link": "eth0", "id": 20}}},
            a_link("mgmt", "vlan", {"id": 10}, link="eth0"), a_link("mgmt", "vlan", {"id": 20}, link="eth0")),
    "link": ({"vlans": {"mgmt": {"link": "eth1", "id": 10}}},
             a_link("mgmt", "vlan", {"id": 10}, link="eth0"), a_link("mgmt", "vlan", {"id": 10}, link="eth1")),
    "mode": ({"bonds": {"mgmt": {"ports": ["eth0", "eth1"], "mode": "active-backup"}}},
             a_link("mgmt", "bond", {"mode": "802.3ad"}), a_link("mgmt", "bond", {"mode": "active-backup"})),
    "kind": ({"bridges": {"mgmt": {"ports": ["eth0"]}}},
             a_link("mgmt", "vlan", {"id": 10}, link="eth0"), a_link("mgmt", "bridge")),
}  # fmt: skip


@pytest.mark.parametrize("what", REMADE)
@pytest.mark.parametrize("name", BACKENDS)
def test_what_was_made_anew_as_something_else_goes_before_the_old_files_make_it_again(tmp_path, name, what):
    pillar, was, now = REMADE[what]
    host, backend = Stack(tmp_path), backend_of(name)
    host.answers["ifquery --state"] = Done(0, "mgmt=mgmt\n", "")
    host.answers["ifdown"] = lambda: Done(0, str(host.there.pop("mgmt", "")), "")
    host.there["mgmt"] = now
    back = step(pillar, back=True, links=[*CARDS, was], up=["mgmt"], managed=["mgmt"], active={"mgmt": "uuid-of-old"})
    backend.release(host, back)
    # The stanza of ifupdown that made it takes it away.
    gone = "ifdown mgmt" if name == "ifupdown" else "ip link delete dev mgmt"
    assert any(line.startswith(gone) for line in host.ran)
    host.there["mgmt"] = was
    host.ran.clear()
    backend.release(host, back)
    assert "ip link delete dev mgmt" not in host.ran


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", ["networkd", "netplan"])
def test_networkd_is_started_anew_where_it_makes_a_vlan_as_it_was_before(tmp_path, monkeypatch, name, back):
    monkeypatch.setattr("hypervisor_network.backends.networkd.live._SETTLES", 0)
    pillar, was, now = REMADE["tag"]
    right, wrong = (was, now) if back else (now, was)
    host, backend = Stack(tmp_path), backend_of(name)
    host.there["mgmt"] = wrong
    host.answers["ip link delete"] = lambda: Done(0, str(host.there.pop("mgmt")), "")
    made = {"networkctl reload": wrong, "systemctl restart systemd-networkd": right}
    for command, link in made.items():
        host.answers[command] = lambda link=link: Done(0, str(host.there.setdefault("mgmt", link)), "")
    turn = step(pillar, back=back, links=[*CARDS, was], managed=["mgmt"])
    backend.release(host, turn)
    backend.activate(host, turn)
    assert host.there["mgmt"] == right
    assert host.ran.count("systemctl restart systemd-networkd.service") == 1
    host.ran.clear()
    backend.activate(host, turn)
    assert "systemctl restart systemd-networkd.service" not in host.ran


def test_a_connection_is_brought_up_again_without_the_device_that_it_makes(tmp_path):
    pillar, was, _ = REMADE["tag"]
    host, backend = Stack(tmp_path), backend_of("networkmanager")
    back = step(pillar, back=True, links=[*CARDS, was], active={"mgmt": "uuid-of-old"})
    backend.activate(host, back)
    assert [line for line in host.ran if " up uuid " in line] == ["nmcli --wait 45 connection up uuid uuid-of-old"]


WITH_TREE = {"stp_state": 1, "forward_delay": 1500, "ageing_time": 30000}
WITHOUT = {"stp_state": 0, "forward_delay": 0, "ageing_time": 30000}


@pytest.mark.parametrize(("was", "now", "commands"), [
    (WITHOUT, WITHOUT, []),
    # With a spanning tree the kernel refuses a delay of nothing, in whatever order the words stand.
    (WITHOUT, WITH_TREE, ["stp_state 0", "forward_delay 0 ageing_time 30000 stp_state 0"]),
    (WITH_TREE, WITHOUT, ["forward_delay 1500 ageing_time 30000 stp_state 1"]),
])  # fmt: skip
def test_a_bridge_gets_its_options_back(tmp_path, was, now, commands):
    host = Stack(tmp_path)
    host.there["br0"] = a_link("br0", "bridge", now)
    common.restore_options(host, step(BRIDGE, back=True, links=[*CARDS, a_link("br0", "bridge", was)]))
    assert host.ran == [f"ip link set dev br0 type bridge {words}" for words in commands]


@pytest.mark.parametrize("name", ["networkd", "netplan", "networkmanager"])
def test_options_are_given_back_where_the_stack_does_not_do_so(tmp_path, monkeypatch, name):
    monkeypatch.setattr("hypervisor_network.backends.networkd.live._SETTLES", 0)
    host, backend = Stack(tmp_path), backend_of(name)
    host.there["br0"] = a_link("br0", "bridge", WITH_TREE)
    links = [*CARDS, a_link("br0", "bridge", WITHOUT)]
    backend.activate(host, step(BRIDGE, back=True, links=links, managed=["br0"], active={"br0": "u"}))
    assert "ip link set dev br0 type bridge stp_state 0" in host.ran


def test_a_card_that_only_carries_a_vlan_is_left_alone(tmp_path):
    host, backend = Stack(tmp_path), backend_of("ifupdown")
    host.answers["ifquery --state"] = Done(0, "eth1=eth1\n", "")
    forth = step({"vlans": {"v10": {"link": "eth1", "id": 10, "addresses": ["10.1.0.2/24"]}}})
    backend.release(host, forth)
    backend.activate(host, forth)
    assert not [line for line in host.ran if "eth1" in line]
    assert "ifup v10" in host.ran


def test_a_failed_command_says_why(tmp_path):
    host = Stack(tmp_path)
    host.answers["ip link"] = Done(1, "", "something\nRTNETLINK answers: No such device\n")
    with pytest.raises(BackendError, match=r"ip link: RTNETLINK answers: No such device$"):
        common.ran(host, ["ip", "link"])


# ---- ifupdown ----


def test_ifdown_comes_with_the_old_files_and_ifup_with_the_new(tmp_path):
    host = Stack(tmp_path)
    host.answers["ifquery --state"] = Done(0, "lo=lo\neth0=eth0\n", "")
    backend, forth = backend_of("ifupdown"), step(BRIDGE)
    backend.release(host, forth)
    assert [line for line in host.ran if line.startswith("if")] == ["ifquery --state", "ifdown eth0", "ifquery --state"]
    assert host.ran[-1] == "ip address flush dev eth0 scope global"
    host.ran.clear()
    backend.activate(host, forth)
    assert host.ran == ["ifup eth0 br0"]


def test_going_back_brings_up_what_was_up_with_its_link_local_address(tmp_path):
    host = Stack(tmp_path)
    host.there["eth0"]["inet6_addr_gen_mode"] = "none"
    before = [{"ifname": "eth0", "inet6_addr_gen_mode": "eui64"}]
    backend_of("ifupdown").activate(host, step(BRIDGE, back=True, links=before, up=["lo", "eth0"]))
    assert host.ran == ["ip link set dev eth0 down", "ip link set dev eth0 addrgenmode eui64", "ifup eth0"]


def test_clients_that_an_applier_has_left_are_ended(tmp_path):
    host = Stack(tmp_path)
    lines = {"41": "/sbin/dhclient -4 -pf /run/x br0", "42": "/sbin/dhclient -4 eth9"}
    lines |= {"43": "ifup eth0 br0", "44": "vi br0"}
    host.write({f"/proc/{pid}/cmdline": line.replace(" ", "\0") + "\0" for pid, line in lines.items()})
    backend_of("ifupdown").release(host, step(BRIDGE, back=True))
    assert [line for line in host.ran if line.startswith("kill")][:2] == ["kill -TERM 41", "kill -KILL 43"]


def test_what_ifdown_cannot_take_down_is_forgotten(tmp_path):
    host = Stack(tmp_path)
    host.write({"/run/network/ifstate": "lo=lo\nbr0=br0\n", "/run/network/ifstate.br0": "br0=br0\n"})
    host.answers["ifquery --state"] = Done(0, "lo=lo\nbr0=br0\n", "")
    host.answers["ifdown"] = Done(1, "", "ifdown: unknown interface br0")
    backend_of("ifupdown").release(host, step(BRIDGE, back=True))
    assert host.path("/run/network/ifstate").read_text() == "lo=lo\n"
    assert not host.path("/run/network/ifstate.br0").exists()


def test_what_ifup_says_of_the_candidate_is_told(tmp_path):
    host = Stack(tmp_path)
    host.answers["ifup --no-act"] = Done(1, "", "ifup: missing required variable: address\n")
    files = backend_of("ifupdown").render(resolved(BRIDGE))
    Stack(tmp_path / "c").write({path: one.text for path, one in files.items()})
    found = backend_of("ifupdown").validate(host, tmp_path / "c", resolved(BRIDGE))
    assert found == ["ifup: ifup: missing required variable: address"]


def test_a_tag_that_ifupdown_would_take_from_the_name_is_refused(tmp_path):
    (tmp_path / "c").mkdir()
    vlan = {"vlans": {"eth0.5": {"link": "eth0", "id": 6}}}
    found = backend_of("ifupdown").validate(Stack(tmp_path), tmp_path / "c", resolved(vlan))
    assert found == ["eth0.5: ifupdown takes the tag from this name, which is not eth0.6"]


@pytest.mark.parametrize(
    ("answer", "why"), [(Done(127, "", ""), "not installed"), (Done(0, "ifupdown2 3.0", ""), "another")]
)
def test_ifupdown_is_missing(tmp_path, answer, why):
    host = Stack(tmp_path)
    host.answers["ifup --version"] = answer
    assert why in backend_of("ifupdown").missing(host)


# ---- networkd and netplan ----


def test_networkd_reads_its_files_then_sets_up_the_interfaces(tmp_path):
    host = Stack(tmp_path)
    with_bridge(host)
    backend_of("networkd").activate(host, step(BRIDGE))
    assert host.ran == ["networkctl reload", "networkctl reconfigure eth0 br0"]


def test_netplan_makes_networkds_files_first_and_at_boot(tmp_path):
    host = Stack(tmp_path)
    with_bridge(host)
    host.write({"/usr/libexec/netplan/generate": ""})
    backend_of("netplan").activate(host, step(BRIDGE))
    program = "/usr/libexec/netplan/generate"
    assert host.ran == [program, "networkctl reload", "networkctl reconfigure eth0 br0"]
    host.ran.clear()
    backend_of("netplan").boot(host)
    assert host.ran == [program]


def test_a_networkd_that_does_not_answer_is_started_anew(tmp_path):
    host = Stack(tmp_path)
    with_bridge(host)
    host.answers["networkctl reload"] = Done(1, "", "Failed to reload")
    backend_of("networkd").activate(host, step(BRIDGE))
    assert host.ran[1] == "systemctl restart systemd-networkd.service"


def test_networkd_is_waited_for_until_the_addresses_are_back_however_long_it_looks_for_routers(tmp_path):
    host = Stack(tmp_path)
    networkd_state(host, "eth0", ADMIN_STATE="configuring")
    address = {"family": "inet", "local": "192.0.2.5", "prefixlen": 24, "scope": "global"}
    looks = []

    def comes_back():
        looks.append(host.there["eth0"].get("addr_info", []))
        if len(looks) > 2:
            host.there["eth0"]["addr_info"] = [address]

    shown = host.ip
    host.ip = lambda *words: (comes_back() if words[0] == "address" else None) or shown(*words)
    back = step(BRIDGE, back=True, managed=["eth0"])
    before = replace(back.snapshot, addresses=[{"ifname": "eth0", "addr_info": [address]}])
    begun = time.monotonic()
    backend_of("networkd").activate(host, replace(back, snapshot=before))
    assert looks == [[], [], []]
    assert time.monotonic() - begun < networkd.live._SETTLES


@pytest.mark.parametrize("name", ["networkd", "netplan"])
@pytest.mark.parametrize(
    ("said", "line"),
    [("DHCP4 Client ID: IAID:0x2a/DUID", "IAID=42"), ("DHCP4 Client ID: 52:54:00:00:00:10", "ClientIdentifier=mac")],
)
def test_a_bridge_speaks_to_a_dhcp_server_as_its_port_did(tmp_path, name, said, line):
    host, backend = Stack(tmp_path), backend_of(name)
    host.answers["networkctl status"] = Done(0, f"       State: routable\n {said}\n", "")
    pillar = resolved({"bridges": {"br0": {"ports": ["eth0"], "dhcp4": True}}})
    first = backend.render(backend.adapt(host, pillar))
    assert [path for path, one in first.items() if line in one.text]
    # The port has no lease any more in the next run.
    host.answers.clear()
    host.write({path: one.text for path, one in first.items()})
    assert backend.render(backend.adapt(host, pillar)) == first


@pytest.mark.parametrize("name", ["networkd", "netplan"])
def test_a_bridge_on_a_bond_speaks_as_the_bond_did(tmp_path, name):
    host, backend = Stack(tmp_path), backend_of(name)
    said = " DHCP4 Client ID: IAID:0x2a/DUID\n"
    host.answers["networkctl status --no-pager bond0"] = Done(0, said, "")
    bond = {"bonds": {"bond0": {"ports": ["eth0", "eth1"]}}}
    pillar = resolved({**bond, "bridges": {"br0": {"ports": ["bond0"], "dhcp4": True}}})
    assert any("IAID=42" in one.text for one in backend.render(backend.adapt(host, pillar)).values())


@pytest.mark.parametrize("name", BACKENDS)
def test_a_port_that_is_no_longer_one_leaves_before_another_joins(tmp_path, name):
    """Two cards of one network in one bridge would make a loop, and networkd leaves a link without a file as it was."""
    host, backend = Stack(tmp_path, "eth0", "eth1.7", "vnet3", "g-eth1.7"), backend_of(name)
    with_bridge(host)
    for one in ("eth1.7", "vnet3", "g-eth1.7"):
        host.there[one]["master"] = "br0"
    old = resolved({"bridges": {"br0": {"ports": ["eth1.7"]}}})
    gone = {path: b"old" for path in backend.render(old) if "eth1" in path}
    moved = step(BRIDGE, links=[{"ifname": "eth0"}, *(dict(host.there[one]) for one in ("br0", "eth1.7", "vnet3"))])
    moved = replace(moved, before=gone, after=dict.fromkeys(gone))
    if name in {"networkd", "netplan"}:
        host.answers["ip link set dev eth1.7 nomaster"] = lambda: Done(0, host.there["eth1.7"].pop("master"), "")
        backend.activate(host, moved)
        assert [line for line in host.ran if "master" in line] == ["ip link set dev eth1.7 nomaster"]
        assert host.ran.index("ip link set dev eth1.7 nomaster") < host.ran.index("networkctl reload")
    # Where the bridge was made anew, a guest's card gets it back, and not what was a port of it.
    for one in ("eth1.7", "vnet3"):
        host.there[one].pop("master", None)
    host.ran.clear()
    backend.activate(host, moved)
    assert [line for line in host.ran if "master" in line] == ["ip link set dev vnet3 master br0"]
    # On the way back both have it again.
    host.ran.clear()
    backend.activate(host, replace(moved, back=True, before=moved.after, after=moved.before))
    given = ["ip link set dev eth1.7 master br0", "ip link set dev vnet3 master br0"]
    assert [line for line in host.ran if "master" in line] == given


def test_networkd_and_netplan_know_each_others_files(tmp_path):
    host = Stack(tmp_path)
    networkd_state(host, "eth0")
    networkd_state(host, "eth1", NETWORK_FILE="/run/systemd/network/10-netplan-eth1.network")
    managed = {name: [one for one in MACS if backend_of(name).manages(host, one)] for name in ("networkd", "netplan")}
    assert managed == {"networkd": ["eth0"], "netplan": ["eth1"]}


def test_dns_without_anybody_who_reads_it_is_refused(tmp_path):
    host = Stack(tmp_path)
    host.answers["systemctl is-active --quiet systemd-resolved"] = Done(3, "", "")
    dns = {"bridges": {"br0": {**BRIDGE["bridges"]["br0"], "dns": {"servers": ["192.0.2.53"]}}}}
    (found,) = backend_of("networkd").validate(host, tmp_path, resolved(dns))
    assert found.startswith("br0: networkd gives dns to systemd-resolved.service, which does not run")


def test_networkd_needs_the_card_of_a_vlan(tmp_path):
    (found,) = backend_of("networkd").validate(
        Stack(tmp_path), tmp_path, resolved({"vlans": {"v5": {"link": "eth0", "id": 5}}})
    )
    assert found == "v5: networkd names the VLANs of a card in the card's own file; declare eth0 too"


def test_a_key_that_systemd_does_not_know_is_named(tmp_path):
    candidate = Stack(tmp_path / "c")
    path = "/etc/systemd/network/05-hypervisor-eth0.network"
    candidate.write({path: "[Match]\nNam=eth0\n[Network]\nAddress=1.2.3/24\n"})
    found = backend_of("networkd").validate(Stack(tmp_path), tmp_path / "c", resolved(BRIDGE))
    assert found == [f"{path}: [Match] Nam", f"{path}: [Network] Address=1.2.3/24"]


def test_what_netplan_says_of_the_candidate_is_told(tmp_path):
    host = Stack(tmp_path)
    said = f"{tmp_path}/c/whole/etc/netplan/x.yaml:9:11: Error in network: br0\n"
    host.answers["netplan generate"] = Done(1, "", said)
    found = backend_of("netplan").validate(host, tmp_path / "c", resolved(BRIDGE))
    assert found == ["netplan generate: /etc/netplan/x.yaml:9:11: Error in network: br0"]


# ---- NetworkManager ----


def test_networkmanager_brings_up_the_bridge_and_a_port_that_has_not_come_with_it(tmp_path):
    host = Stack(tmp_path)
    with_bridge(host)
    backend_of("networkmanager").activate(host, step(BRIDGE))
    found = [" ".join(line.split()[:6]) for line in host.ran]
    assert found == ["nmcli connection reload", *["nmcli --wait 45 connection up uuid"] * 2]
    host.ran.clear()
    host.there["eth0"]["master"] = "br0"
    backend_of("networkmanager").activate(host, step(BRIDGE))
    assert len(host.ran) == 2


def test_going_back_brings_up_the_connection_that_was_up_or_any(tmp_path):
    host = Stack(tmp_path)
    host.answers["nmcli --wait 45 connection up"] = Done(10, "", "Error: unknown connection 'old'.")
    backend_of("networkmanager").activate(host, step(BRIDGE, back=True, active={"eth0": "old"}))
    wait = "nmcli --wait 45"
    assert host.ran[-2:] == [f"{wait} connection up uuid old ifname eth0", f"{wait} device connect eth0"]


@pytest.mark.parametrize(
    ("said", "managed"), [("100 (connected)", True), ("100 (connected (externally))", False), ("10 (unmanaged)", False)]
)
def test_what_networkmanager_merely_looks_at_is_not_its_own(tmp_path, said, managed):
    host = Stack(tmp_path)
    host.answers["nmcli -g GENERAL.STATE"] = Done(0, f"{said}\n", "")
    assert backend_of("networkmanager").manages(host, "eth0") is managed


def test_what_nmcli_says_of_the_candidate_and_of_the_card_is_told(tmp_path):
    host = Stack(tmp_path)
    host.answers = {
        "nmcli --version": Done(0, "nmcli tool, version 1.42.4\n", ""),
        "nmcli -g GENERAL.STATE": Done(0, "10 (unmanaged)\n", ""),
        "nmcli --offline": Done(2, "", "Error: bad\n"),
    }
    files = backend_of("networkmanager").render(resolved(BRIDGE))
    Stack(tmp_path / "c").write({path: one.text for path, one in files.items()})
    found = backend_of("networkmanager").validate(host, tmp_path / "c", resolved(BRIDGE))
    assert found[0].startswith("eth0: NetworkManager is told to leave it alone")
    assert len(found) == 1 + len(files)
    host.answers["nmcli --version"] = Done(0, "nmcli tool, version 1.36.6\n", "")
    assert len(backend_of("networkmanager").validate(host, tmp_path / "c", resolved(BRIDGE))) == 1

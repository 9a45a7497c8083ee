"""Virtual networks: what is written, what counts as a difference, what happens while guests are attached."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from _states import virtual_network
from _utils import (
    formula_config,
    formula_schema,
    formula_vocabulary,
    libvirt_network,
    libvirt_rules,
    libvirt_tools,
)

ROOT = Path(__file__).resolve().parents[3]
MAC = "2a:c3:a7:a6:01:04"
NAT: dict[str, Any] = {
    "ensure": "running",
    "bridge": "net0-br",
    "forward": "nat",
    "ipv4_config": {
        "cidr": "192.168.44.0/24",
        "dhcp_ranges": [{"start": "192.168.44.10", "end": "192.168.44.25"}],
        "hosts": {MAC.upper(): {"ip": "192.168.44.4", "name": "srv01"}},
    },
    "autostart": True,
}
# As libvirt 9.0 on Debian 12 prints it while it runs, with one guest.
NAT_XML = """<network connections='1'>
  <name>net0</name>
  <uuid>ecace0e2-9dcd-48a1-a8b0-f2e051bd439b</uuid>
  <forward mode='nat'>
    <nat>
      <port start='1024' end='65535'/>
    </nat>
  </forward>
  <bridge name='net0-br' stp='on' delay='0'/>
  <mac address='52:54:00:b3:88:17'/>
  <bandwidth><inbound average='1000'/></bandwidth>
  <ip address='192.168.44.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.44.10' end='192.168.44.25'/>
      <host mac='2a:c3:a7:a6:01:04' name='srv01' ip='192.168.44.4'/>
    </dhcp>
  </ip>
</network>
"""
FULL: dict[str, Any] = {
    "forward": "nat",
    "forward_device": "eth0",
    "bridge": "net1-br",
    "ipv4_config": {
        "cidr": "10.9.0.254/24",
        "dhcp_ranges": [{"start": "10.9.0.10", "end": "10.9.0.20"}],
        "tftp": "/srv/tftp",
        "bootp": {"file": "pxelinux.0", "server": "10.9.0.254"},
    },
    "ipv6_config": {
        "cidr": "fd44:0::/64",
        "nat": True,
        "dhcp_ranges": [{"start": "fd44::0100", "end": "fd44::1ff"}],
        "hosts": {"00:03:00:01:2A:C3": {"ip": "fd44::4", "name": "srv01"}},
    },
    "domain": "lab.example.org",
    "domain_local": True,
    "dns": {"forwarders": ["192.0.2.53"], "hosts": {"10.9.0.254": ["gw", "a"]}, "txt": {"owner": "ops"}},
    "mtu": 1400,
}
FULL_XML = """<network>
  <name>net1</name>
  <forward mode='nat' dev='eth0'><nat ipv6='yes'/></forward>
  <bridge name='net1-br'/>
  <mtu size='1400'/>
  <domain name='lab.example.org' localOnly='yes'/>
  <dns>
    <forwarder addr='192.0.2.53'/>
    <txt name='owner' value='ops'/>
    <host ip='10.9.0.254'><hostname>a</hostname><hostname>gw</hostname></host>
  </dns>
  <ip family='ipv4' address='10.9.0.254' prefix='24'>
    <tftp root='/srv/tftp'/>
    <dhcp><range start='10.9.0.10' end='10.9.0.20'/><bootp file='pxelinux.0' server='10.9.0.254'/></dhcp>
  </ip>
  <ip family='ipv6' address='fd44::1' prefix='64'>
    <dhcp><range start='fd44::100' end='fd44::1ff'/><host id='00:03:00:01:2a:c3' ip='fd44::4' name='srv01'/></dhcp>
  </ip>
</network>
"""
TRUNK: dict[str, Any] = {
    "forward": "bridge",
    "bridge": "ovs0",
    "virtualport": {"type": "openvswitch", "profile": "guests"},
    "vlan": {"tags": [10, 20], "native": 10},
    "portgroups": {"web": {"default": True, "vlan": {"tags": [30]}}, "db": {}},
}
TRUNK_XML = """<network>
  <name>trunk</name>
  <forward mode='bridge'/>
  <bridge name='ovs0'/>
  <virtualport type='openvswitch'><parameters profileid='guests'/></virtualport>
  <vlan trunk='yes'><tag id='10' nativeMode='untagged'/><tag id='20'/></vlan>
  <portgroup name='web' default='yes'><vlan><tag id='30'/></vlan></portgroup>
  <portgroup name='db'/>
</network>
"""


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  written above


def attributes(root: ET.Element, path: str) -> dict[str, str]:
    (found,) = root.findall(path)
    return found.attrib


def canonical(text: str) -> str:
    return ET.canonicalize(text, strip_text=True)


def facts(xml: str | None = NAT_XML, **values: Any) -> libvirt_network.Facts:
    return libvirt_network.Facts(**{"config": xml, "live": xml, "autostart": True, **values})


def lines(plan: libvirt_network.Plan) -> list[str]:
    """The steps as one line each."""
    return [
        " ".join(str(one) for one in step.arguments if one not in {"--", "--live"})
        if step.action == "virsh"
        else step.action
        for step in plan.steps
    ]


# ---- definitions ----


@pytest.mark.parametrize(
    ("name", "spec", "xml"),
    [
        ("net1", FULL, FULL_XML),
        ("trunk", TRUNK, TRUNK_XML),
        ("alone", {"forward": "isolated"}, "<network><name>alone</name></network>"),
        (
            "off",
            {"forward": "isolated", "dns": {"enable": False}},
            "<network><name>off</name><dns enable='no'/></network>",
        ),
    ],
)
def test_a_new_definition(name, spec, xml):
    assert canonical(libvirt_network.definition(name, spec)) == canonical(xml)


@pytest.mark.parametrize(("spec", "xml"), [(NAT, NAT_XML), (FULL, FULL_XML), (TRUNK, TRUNK_XML)])
def test_what_libvirt_fills_in_is_no_difference(spec, xml):
    assert libvirt_network.differs(libvirt_network.normal(xml), libvirt_network.wanted(spec)) == {}
    assert libvirt_network.plan("net0", spec, facts(xml)).steps == ()


def test_a_bridge_that_libvirt_chose_is_no_difference():
    spec = {key: value for key, value in NAT.items() if key != "bridge"}
    assert libvirt_network.plan("net0", spec, facts()).steps == ()


def test_a_changed_definition_keeps_what_the_pillar_does_not_decide():
    root = parsed(libvirt_network.definition("net0", {**NAT, "mtu": 1400}, NAT_XML))
    assert root.findtext("uuid") == "ecace0e2-9dcd-48a1-a8b0-f2e051bd439b"
    assert root.find("mac") is not None
    assert root.find("bandwidth/inbound") is not None
    assert root.find("forward/nat/port") is not None
    assert attributes(root, "mtu") == {"size": "1400"}
    assert len(root.findall("ip")) == 1
    assert "connections" not in root.attrib
    again = libvirt_network.normal(ET.tostring(root, encoding="unicode"))
    assert libvirt_network.differs(again, libvirt_network.wanted({**NAT, "mtu": 1400})) == {}


def test_a_bridge_of_the_host_takes_over_the_identity_alone():
    root = parsed(libvirt_network.definition("net0", {"forward": "bridge", "bridge": "br0"}, NAT_XML))
    assert root.findtext("uuid") == "ecace0e2-9dcd-48a1-a8b0-f2e051bd439b"
    assert [child.tag for child in root] == ["name", "uuid", "forward", "bridge"]


def test_nat_of_ipv6_is_taken_back():
    spec = {**FULL, "ipv6_config": {"cidr": "fd44::/64"}}
    root = parsed(libvirt_network.definition("net1", spec, FULL_XML))
    assert attributes(root, "forward/nat") == {}


def test_markup_in_a_value_stays_a_value():
    text = libvirt_network.definition("a", {"forward": "isolated", "dns": {"txt": {"a": "<&'\">"}}})
    assert attributes(parsed(text), "dns/txt") == {"name": "a", "value": "<&'\">"}


# ---- differences ----


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("<forward mode='nat'>", "<forward mode='open'>", "forward"),
        ("<forward mode='nat'>", "<forward mode='nat' dev='eth9'>", "device"),
        ("name='net0-br'", "name='other'", "bridge"),
        ("<mac ", "<mtu size='1400'/><mac ", "mtu"),
        ("<mac ", "<domain name='x'/><mac ", "domain"),
        ("<mac ", "<dns enable='no'/><mac ", "dns_off"),
        ("<mac ", "<dns><forwarder addr='192.0.2.1'/></dns><mac ", "dns_forwarders"),
        ("<mac ", "<dns><host ip='192.0.2.1'><hostname>x</hostname></host></dns><mac ", "dns_hosts:192.0.2.1"),
        ("<mac ", "<dns><txt name='x' value='y'/></dns><mac ", "dns_txt:x"),
        ("<nat>", "<nat ipv6='yes'>", "nat_ipv6"),
        ("address='192.168.44.1'", "address='192.168.44.2'", "ipv4:address"),
        ("255.255.255.0", "255.255.254.0", "ipv4:address"),
        ("name='srv01' ", "", f"ipv4:hosts:{MAC}"),
        ("<dhcp>", "<tftp root='/x'/><dhcp>", "ipv4:tftp"),
        ("</dhcp>", "<bootp file='x'/></dhcp>", "ipv4:bootp"),
        ("</network>", "<ip address='10.0.0.1' prefix='8'/></network>", "ipv4 1:address"),
        ("</network>", "<ip family='ipv6' address='fd00::1' prefix='64'/></network>", "ipv6:address"),
        ("</network>", "<portgroup name='x'/></network>", "portgroups:x"),
        ("</network>", "<vlan><tag id='1'/></vlan></network>", "vlan"),
        ("</network>", "<virtualport type='openvswitch'/></network>", "virtualport"),
    ],
)
def test_each_drift_alone_is_seen_and_repaired(old, new, key):
    assert old in NAT_XML
    drifted = NAT_XML.replace(old, new, 1)
    assert list(libvirt_network.differs(libvirt_network.normal(drifted), libvirt_network.wanted(NAT))) == [key]
    plan = libvirt_network.plan("net0", NAT, facts(config=drifted))
    assert [step.action for step in plan.steps] == ["define"]
    repaired = plan.steps[0].arguments[0]
    assert libvirt_network.plan("net0", NAT, facts(config=repaired)).steps == ()


# ---- plans ----


def test_a_new_network():
    plan = libvirt_network.plan("net0", NAT, facts(None, autostart=False))
    assert lines(plan) == ["define", "net-start net0", "net-autostart net0"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"live": None}, ["net-start net0"]),
        ({"autostart": False}, ["net-autostart net0"]),
        ({"persistent": False}, ["define"]),
    ],
)
def test_each_fact_alone(values, expected):
    plan = libvirt_network.plan("net0", NAT, facts(**values))
    assert lines(plan) == expected
    assert all(step.changes for step in plan.steps)


def test_defined_neither_starts_nor_stops():
    spec = {**NAT, "ensure": "defined", "autostart": False}
    assert lines(libvirt_network.plan("net0", spec, facts(None, autostart=False))) == ["define"]
    assert lines(libvirt_network.plan("net0", spec, facts())) == ["net-autostart --disable net0"]


def changed(**config: Any) -> dict[str, Any]:
    return {**NAT, "ipv4_config": {**NAT["ipv4_config"], **config}}


def test_a_changed_dhcp_host_goes_live_although_guests_are_attached():
    spec = changed(hosts={MAC: {"ip": "192.168.44.5", "name": "srv01"}})
    plan = libvirt_network.plan("net0", spec, facts(plugs=(("web", "vnet0"),)))
    host = f'<host mac="{MAC}" ip="192.168.44.5" name="srv01" />'
    assert lines(plan) == ["define", f"net-update net0 modify ip-dhcp-host {host} --parent-index 0"]
    assert plan.waits == ()


def test_live_entries_never_meet_another_of_their_address_and_never_run_out():
    spec = changed(
        dhcp_ranges=[{"start": "192.168.44.10", "end": "192.168.44.30"}],
        hosts={"2a:00:00:00:00:01": {"ip": "192.168.44.4", "name": "srv02"}},
    )
    verbs = [" ".join(line.split()[2:4]) for line in lines(libvirt_network.plan("net0", spec, facts()))[1:]]
    assert verbs == ["add-last ip-dhcp-range", "delete ip-dhcp-range", "delete ip-dhcp-host", "add-last ip-dhcp-host"]


def test_names_go_live():
    spec = {**FULL, "dns": {**FULL["dns"], "hosts": {"10.9.0.254": ["gw"]}, "txt": {"owner": "you"}}}
    verbs = [" ".join(line.split()[:4]) for line in lines(libvirt_network.plan("net1", spec, facts(FULL_XML)))[1:]]
    assert verbs == [
        "net-update net1 delete dns-host",
        "net-update net1 delete dns-txt",
        "net-update net1 add-last dns-host",
        "net-update net1 add-last dns-txt",
    ]


def test_the_second_family_has_the_second_index():
    ipv6 = {**FULL["ipv6_config"], "hosts": {}}
    (step,) = libvirt_network.plan("net1", {**FULL, "ipv6_config": ipv6}, facts(FULL_XML)).steps[1:]
    assert step.arguments[-2:] == ("--parent-index", "1")
    assert step.arguments[2:4] == ("delete", "ip-dhcp-host")


def test_port_groups_go_live_with_one_default_at_a_time():
    groups = {"db": {"default": True}, "web": {"vlan": {"tags": [30]}}, "new": {}}
    xml = TRUNK_XML.replace("<portgroup name='db'/>", "<portgroup name='db'/><portgroup name='old'/>")
    plan = libvirt_network.plan("trunk", {**TRUNK, "portgroups": groups}, facts(xml))
    found = [
        (step.arguments[2], parsed(step.arguments[4]).get("name")) for step in plan.steps if step.action == "virsh"
    ]
    assert found == [("delete", "old"), ("add-last", "new"), ("modify", "web"), ("modify", "db")]


def test_what_needs_a_restart_is_done_when_no_guest_is_attached():
    plan = libvirt_network.plan("net0", {**NAT, "mtu": 1400}, facts())
    assert lines(plan) == ["define", "net-destroy net0", "net-start net0"]
    assert plan.steps[2].changes == {"state": {"old": "running with another definition", "new": "running"}}


def test_what_needs_a_restart_waits_for_guests_and_for_consent():
    spec = {**NAT, "mtu": 1400}
    plugged = facts(plugs=(("web", "vnet0"), ("web", "vnet1"), ("db", "vnet2")))
    plan = libvirt_network.plan("net0", spec, plugged)
    assert (lines(plan), plan.waits) == (["define"], ("web", "db"))
    # The definition is there then; nothing changes any more, and it still waits.
    later = plugged._replace(config=libvirt_network.definition("net0", spec, NAT_XML))
    plan = libvirt_network.plan("net0", spec, later)
    assert (plan.steps, plan.waits) == ((), ("web", "db"))
    plan = libvirt_network.plan("net0", {**spec, "allow_restart": True}, later)
    assert lines(plan) == ["net-destroy net0", "net-start net0", "plug", "plug", "plug"]
    assert plan.steps[-1].arguments == ("net0", "db", "vnet2")
    assert plan.waits == ()


def test_dhcp_goes_live_while_something_else_waits():
    spec = {**changed(hosts={}), "mtu": 1400}
    plan = libvirt_network.plan("net0", spec, facts(plugs=(("web", "vnet0"),)))
    assert [line.split()[:3] for line in lines(plan)] == [["define"], ["net-update", "net0", "delete"]]
    assert plan.waits == ("web",)


def test_no_entry_goes_live_below_an_address_that_waits():
    spec = changed(cidr="192.168.45.0/24", dhcp_ranges=[], hosts={})
    plan = libvirt_network.plan("net0", spec, facts(plugs=(("web", "vnet0"),)))
    assert (lines(plan), plan.waits) == (["define"], ("web",))


def test_guests_in_a_bridge_of_the_host_are_not_cut():
    spec = {**TRUNK, "bridge": "ovs1"}
    plan = libvirt_network.plan("trunk", spec, facts(TRUNK_XML, plugs=(("web", "vnet0"),)))
    assert lines(plan) == ["define", "net-destroy trunk", "net-start trunk"]


def test_who_is_attached():
    domain = """<domain><devices>
      <interface type='network'><source network='net0'/><target dev='vnet0'/></interface>
      <interface type='network'><source network='net0'/></interface>
      <interface type='network'><source network='net01'/><target dev='vnet1'/></interface>
      <interface type='bridge'><source bridge='net0'/></interface>
    </devices></domain>"""
    assert libvirt_network.plugs(domain, "net0") == ["vnet0", ""]


# ---- rules ----


@pytest.mark.parametrize(
    ("spec", "key", "words"),
    [
        ({"forward": "nat"}, "ipv4_config", "missing"),
        ({"forward": "bridge"}, "bridge", "missing"),
        ({"forward": "bridge", "bridge": "br0", "mtu": 1400}, "mtu", "not allowed with forward: bridge"),
        ({"forward": "bridge", "bridge": "br0", "vlan": {"tags": [1]}}, "virtualport", "openvswitch"),
        ({"forward": "bridge", "bridge": "b", "portgroups": {"a": {"vlan": {"tags": [1]}}}}, "virtualport", "openv"),
        ({"forward": "isolated", "portgroups": {}}, "portgroups", "not allowed with forward: isolated"),
        (changed(cidr="fd00::/64"), "ipv4_config:cidr", "not an IPv4 network"),
        (changed(cidr="192.168.44.0/31"), "ipv4_config:cidr", "no room"),
        (changed(cidr="192.168.44.255/24"), "ipv4_config:cidr", "broadcast"),
        (changed(dhcp_ranges=[{"start": "192.168.45.1", "end": "192.168.45.2"}]), "ipv4_config:dhcp_ranges:0", "45.1"),
        (changed(dhcp_ranges=[{"start": "192.168.44.9", "end": "192.168.44.8"}]), "ipv4_config:dhcp_ranges:0", "after"),
        (changed(dhcp_ranges=[{"start": "192.168.44.0", "end": "192.168.44.8"}]), "ipv4_config:dhcp_ranges:0", "44.0 "),
        (changed(dhcp_ranges=[{"start": "fd00::1", "end": "fd00::2"}]), "ipv4_config:dhcp_ranges:0", "fd00::1 "),
        (
            changed(
                dhcp_ranges=[
                    {"start": "192.168.44.2", "end": "192.168.44.8"},
                    {"start": "192.168.44.8", "end": "192.168.44.9"},
                ]
            ),
            "ipv4_config:dhcp_ranges:1",
            "overlaps another range",
        ),
        (changed(hosts={MAC: {"ip": "192.168.45.4"}}), f"ipv4_config:hosts:{MAC}:ip", "192.168.45.4"),
        (changed(hosts={MAC: {"ip": "192.168.44.1"}}), f"ipv4_config:hosts:{MAC}:ip", "the host already"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(spec, key, words):
    ((found, text),) = libvirt_rules.network(spec)
    assert found == key
    assert words in text


@pytest.mark.parametrize("spec", [NAT, FULL, TRUNK, {"ensure": "absent"}, {"forward": "isolated"}])
def test_what_fits(spec):
    assert libvirt_rules.network(spec) == []


def test_networks_that_overlap_are_named():
    other = {"forward": "route", "bridge": "net0-br", "ipv4_config": {"cidr": "192.168.44.128/25"}}
    found = libvirt_rules.errors({"pools": {}, "networks": {"net0": NAT, "net9": other}})
    assert found == [
        ("libvirt:networks:net9:ipv4_config:cidr", "192.168.44.128/25 overlaps 192.168.44.0/24 of the network net0"),
        ("libvirt:networks:net9:bridge", "net0-br is the bridge of the network net0"),
    ]
    assert libvirt_rules.conflicts({"net0": NAT, "net9": {**other, "ensure": "absent"}}) == []
    assert libvirt_rules.conflicts({"a": {"forward": "bridge", "bridge": "b"}, "c": TRUNK, "d": FULL}) == []


def test_the_rules_of_pools_are_asked_too():
    pool = {"ptype": "logical", "target": "/srv/x"}
    ((path, _),) = libvirt_rules.errors({"pools": {"fast": pool}, "networks": {}})
    assert path == "libvirt:pools:fast:target"


def test_a_forwarder_is_the_same_however_its_address_is_written():
    spec = {**NAT, "dns": {"forwarders": ["2001:DB8:0::53"]}}
    text = libvirt_network.definition("net0", spec, NAT_XML)
    assert 'addr="2001:db8::53"' in text
    running = facts(config=text, live=text)
    assert libvirt_network.plan("net0", spec, running).steps == ()


# ---- the state ----


class Libvirt:
    """Networks as virsh tells of them; keeps the commands that change something."""

    def __init__(self) -> None:
        self.config: dict[str, str] = {}
        self.live: dict[str, str] = {}
        self.autostart: set[str] = set()
        self.domains: dict[str, str] = {}
        self.done: list[str] = []

    def __call__(self, *argv: str, stdin: str | None = None, **_: Any) -> str:
        verb, name = argv[0], argv[-1]
        asked = {
            "net-list": lambda: "\n".join({**self.config, **self.live} if "--all" in argv else self.live),
            "net-dumpxml": lambda: self.config[name] if "--inactive" in argv else self.live[name],
            "net-info": lambda: (
                f"Name:           {name}\nActive:         {'yes' if name in self.live else 'no'}\n"
                f"Persistent:     yes\nAutostart:      {'yes' if name in self.autostart else 'no'}\n"
            ),
            "list": lambda: "\n".join(self.domains),
            "dumpxml": lambda: self.domains[name],
        }
        if verb in asked:
            return asked[verb]()
        self.done.append(verb)
        if verb == "net-define":
            root = parsed(stdin or "")
            self.config[str(root.findtext("name"))] = str(stdin)
        elif verb == "net-start":
            self.live[name] = self.config[name]
        elif verb == "net-destroy":
            del self.live[name]
        elif verb == "net-undefine":
            del self.config[name]
        elif verb == "net-autostart":
            (self.autostart.discard if "--disable" in argv else self.autostart.add)(name)
        return ""


def judge(formula: str, definition: str, value: Any, where: str) -> list[str]:
    """The real schema's verdict."""
    schema = yaml.safe_load((ROOT / formula / "schema.yaml").read_text())
    part = {"$defs": schema["$defs"], "$ref": f"#/$defs/{definition}"}
    copy = formula_config.plain(value, (where,), [])
    found = formula_schema.errors(part, copy, where, formula_vocabulary.load(part))
    return [f"{path}: {text}" for path, text in found]


@pytest.fixture(name="libvirt")
def fake_libvirt(monkeypatch):
    """A host with libvirt and no networks; the commands besides virsh are in ``ran``."""
    libvirt = Libvirt()
    ran: list[list[str]] = []
    utils = {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in (libvirt_network, libvirt_rules, libvirt_tools)
        for name, value in vars(module).items()
        if callable(value)
    }
    utils["libvirt_tools.virsh"] = libvirt
    utils["libvirt_tools.run"] = ran.append
    monkeypatch.setattr(virtual_network, "__utils__", utils, raising=False)
    monkeypatch.setattr(virtual_network, "__salt__", {"formula.judge": judge}, raising=False)
    monkeypatch.setattr(virtual_network, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(libvirt, "ran", ran, raising=False)
    return libvirt


def dry(monkeypatch, function, *args: Any, **kwargs: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(virtual_network, "__opts__", {"test": True})
        return function(*args, **kwargs)


CALL = {key: value for key, value in NAT.items() if key != "ensure"}


def test_a_network_is_predicted_made_left_alone_and_taken_away(libvirt, monkeypatch):
    predicted = dry(monkeypatch, virtual_network.running, "net0", **CALL)
    assert (predicted["result"], libvirt.done) == (None, [])
    ret = virtual_network.running("net0", **CALL)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert libvirt.done == ["net-define", "net-start", "net-autostart"]
    assert virtual_network.running("net0", **CALL)["changes"] == {}
    assert dry(monkeypatch, virtual_network.running, "net0", **CALL)["result"] is True

    libvirt.domains["web"] = "<domain><interface><source network='net0'/></interface></domain>"
    ret = virtual_network.absent("net0")
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"].endswith("web.")
    # It is gone before, and a dry run knows that; a run looks whether it is.
    assert dry(monkeypatch, virtual_network.absent, "net0", leaving=["web"])["result"] is None
    assert dry(monkeypatch, virtual_network.absent, "net0", leaving=["other"])["result"] is False
    assert virtual_network.absent("net0", leaving=["web"])["result"] is False
    libvirt.domains.clear()
    predicted = dry(monkeypatch, virtual_network.absent, "net0")
    ret = virtual_network.absent("net0")
    assert ret["changes"] == predicted["changes"] == {"state": {"old": "running", "new": "absent"}}
    assert libvirt.config == libvirt.live == {}
    assert virtual_network.absent("net0")["changes"] == {}


def test_consent_plugs_the_guests_in_again(libvirt):
    virtual_network.running("net0", **CALL)
    # As after a net-update, which makes libvirt forget how many are attached.
    libvirt.live["net0"] = NAT_XML.replace(" connections='1'", "")
    libvirt.domains["web"] = (
        "<domain><interface><source network='net0'/><target dev='vnet7'/></interface></domain>"
    )
    ret = virtual_network.running("net0", **CALL, mtu=1400)
    assert ret["result"] is True
    assert "cut the interfaces of web for a moment: set allow_restart: true" in ret["comment"]
    assert "net-destroy" not in libvirt.done
    # Asked again, nothing changes and the comment stays.
    ret = virtual_network.running("net0", **CALL, mtu=1400)
    assert (ret["changes"], "allow_restart" in ret["comment"]) == ({}, True)
    libvirt.config["net0"] = libvirt.config["net0"].replace('"', "'")
    ret = virtual_network.running("net0", **CALL, mtu=1400, allow_restart=True)
    assert list(ret["changes"]) == ["state"]
    assert libvirt.ran == [["ip", "link", "set", "dev", "vnet7", "master", "net0-br"]]


GUEST = "<domain><interface><source network='net0'/><target dev='{}'/></interface></domain>"


def test_a_network_that_somebody_has_stopped_gets_its_guests_back(libvirt, monkeypatch):
    virtual_network.running("net0", **CALL)
    libvirt.domains["a web"] = GUEST.format("vnet7")
    del libvirt.live["net0"]
    libvirt.config["net0"] = NAT_XML
    predicted = dry(monkeypatch, virtual_network.running, "net0", **CALL)
    assert libvirt.ran == []
    ret = virtual_network.running("net0", **CALL)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert libvirt.ran == [["ip", "link", "set", "dev", "vnet7", "master", "net0-br"]]


def test_an_interface_that_cannot_be_plugged_in_costs_no_other_guest_its_own(libvirt, monkeypatch, tmp_path):
    def run(argv):
        libvirt.ran.append(argv)
        if argv[4] != "vnet9":
            raise CommandExecutionError("ip: Cannot find device")

    monkeypatch.setattr(virtual_network, "_DEVICES", tmp_path)
    monkeypatch.setitem(virtual_network.__utils__, "libvirt_tools.run", run)
    (tmp_path / "vnet8").mkdir()
    (tmp_path / "vnet6/master").mkdir(parents=True)
    libvirt.config["net0"] = NAT_XML
    for name, device in (("ended", "vnet7"), ("web", "vnet8"), ("elsewhere", "vnet6"), ("db", "vnet9")):
        libvirt.domains[name] = GUEST.format(device)
    ret = virtual_network.running("net0", **CALL)
    assert [argv[4] for argv in libvirt.ran] == ["vnet7", "vnet8", "vnet9"]
    assert ret["result"] is False
    assert ret["comment"].endswith("not plugged in again: web (vnet8): ip: Cannot find device.")


def test_changes_of_several_entries_are_all_told(libvirt, monkeypatch):
    virtual_network.running("net0", **CALL)
    config = changed(dhcp_ranges=[], hosts={})["ipv4_config"]
    predicted = dry(monkeypatch, virtual_network.running, "net0", **{**CALL, "ipv4_config": config})
    ret = virtual_network.running("net0", **{**CALL, "ipv4_config": config})
    assert ret["changes"] == predicted["changes"]
    assert sorted(ret["changes"]["live"]) == [f"ipv4:hosts:{MAC}", "ipv4:ranges:192.168.44.10 192.168.44.25"]


def test_a_network_that_runs_already_is_in_the_way(libvirt):
    libvirt.config["default"] = libvirt.live["default"] = NAT_XML.replace("net0", "default")
    ret = virtual_network.running("net0", **{**CALL, "bridge": "x"})
    assert ret["result"] is False
    assert "net0:ipv4_config:cidr: 192.168.44.0/24 overlaps 192.168.44.0/24 of the network default" in ret["comment"]
    assert libvirt.done == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "net0:forward: missing"),
        ({"forward": "nta"}, "net0:forward: "),
        ({"forward": "isolated", "bridge": "a-name-that-is-too-long"}, "net0:bridge: "),
        ({"forward": "isolated", "ipv4_config": {"cidr": "10.0.0.0"}}, "net0:ipv4_config:cidr: "),
        ({"forward": "isolated", "ipv4_config": {"cidr": "10.0.0.0/8", "hosts": {"x": {}}}}, "hosts:x: unknown key"),
        ({"forward": "isolated", "mtu": 10}, "net0:mtu: "),
        ({"forward": "nat"}, "net0:ipv4_config: missing"),
        ({"forward": "bridge", "bridge": "br0", "dns": {}}, "net0:dns: not allowed"),
        ({"forward": "isolated", "dns": {"hosts": {"1.2.3": ["a"]}}}, "net0:dns:hosts:1.2.3: "),
        ({"forward": "isolated", "fowrard_device": "eth0"}, "unknown key"),
    ],
)
def test_wrong_arguments_change_nothing(libvirt, call, words):
    ret = virtual_network.running("net0", **call)
    assert ret["result"] is False
    assert words in ret["comment"]
    assert libvirt.done == []


def test_a_wrong_name(libvirt):
    assert virtual_network.running("--all", **CALL)["result"] is False
    assert virtual_network.absent("a b")["result"] is False


def test_a_bare_host(libvirt, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert dry(monkeypatch, virtual_network.running, "net0", **CALL)["result"] is None
    assert virtual_network.running("net0", **CALL)["result"] is False
    assert virtual_network.absent("net0")["result"] is True

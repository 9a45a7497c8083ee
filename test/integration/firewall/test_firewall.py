"""libvirt's ports through the three packet filters: listed networks pass, others do not, foreign rules stay."""

import json
import time

import pytest

HOST, PEER = "hv2", "hv1"
UNITS, UNIT = "/etc/systemd/system", "hypervisor-firewall.service"
# Says for each pair of source address and port whether packets pass: a refusal by TCP itself shows that they do.
# The last port is the first one above those of migrations: it is nobody's, and never passes.
PROBE = """
import errno, json, socket, sys
target, found = sys.argv[1], {}
for source in sys.argv[2:]:
    for port in (22, 16514, 49152, 49216):
        with socket.socket() as one:
            one.settimeout(1.5)
            one.bind((source, 0))
            code = one.connect_ex((target, port))
        found[f"{source} {port}"] = code in (0, errno.ECONNREFUSED)
print(json.dumps(found))
"""
NFT = """flush ruleset
table inet filter {
  set good { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
  chain input {
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state established,related accept
    tcp dport 22 accept
    tcp sport { 4505, 4506 } accept
    meta l4proto { icmp, ipv6-icmp } accept
    ip saddr @good accept comment "somebody else's"
  }
}
table ip6 other {
  chain input {
    type filter hook input priority 10; policy accept;
    tcp dport 2049 drop
  }
}
"""
IPTABLES = """*filter
:INPUT ACCEPT [0:0]
:strict - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j strict
-A strict -m state --state RELATED,ESTABLISHED -j ACCEPT
-A strict -p tcp -m tcp --dport 22 -j ACCEPT
-A strict -p tcp -m multiport --sports 4505,4506 -j ACCEPT
-A strict -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""


class Nftables:
    """nftables with a policy of drop, loaded by its own service."""

    packages = ("nftables",)
    show = (("nft", "--stateless", "list", "ruleset"),)
    boots = UNIT  # brings our rules at boot
    start = (("systemctl", "enable", "--now", "nftables"), ("systemctl", "restart", "nftables"))
    again = (("systemctl", "reload", "nftables"),)
    drift = (("nft", "flush", "chain", "inet", "filter", "hypervisor_libvirt"),)
    end = (("systemctl", "disable", "--now", "nftables"), ("nft", "flush", "ruleset"))
    conf = (("/etc/nftables.conf", NFT),)


class Iptables:
    """iptables with a refusal as last rule, loaded by a script of the site."""

    packages = ()
    show = (("sh", "-c", "for one in iptables ip6tables; do $one-save | sed '/^[#:]/d'; done"),)
    boots = UNIT
    start = (("iptables-restore", "/root/rules"),)
    # What a boot does: the site's script, and then our unit.
    again = (*start, ("systemctl", "restart", UNIT))
    drift = (("iptables", "-D", "INPUT", "-j", "HYPERVISOR-LIBVIRT"),)
    end = (("iptables", "-F"), ("iptables", "-X"), ("rm", "/root/rules"))
    conf = (("/root/rules", IPTABLES),)


class Firewalld:
    """firewalld with its default zone."""

    packages = ("firewalld",)
    show = (("firewall-cmd", "--list-all"), ("firewall-cmd", "--permanent", "--list-all"))
    boots = "firewalld.service"
    start = (
        ("systemctl", "enable", "--now", "firewalld"),
        ("firewall-cmd", "-q", "--add-source-port=4505-4506/tcp"),
        ("firewall-cmd", "-q", '--add-rich-rule=rule family="ipv4" source address="192.0.2.0/24" accept'),
        ("firewall-cmd", "-q", "--runtime-to-permanent"),
    )
    again = (("firewall-cmd", "-q", "--reload"),)
    drift = (("firewall-cmd", "-q", "--remove-rich-rule={rule}"),)
    end = (("systemctl", "disable", "--now", "firewalld"),)
    conf = ()


class Filtered:
    """A host with a packet filter, seen from another one."""

    def __init__(self, lab, kind):
        self.lab, self.kind = lab, kind
        self.address = lab.hosts.addresses[PEER]
        self.stranger = self.address.rpartition(".")[0] + ".211"

    def do(self, commands):
        """Run commands on the host."""
        rule = (
            f'rule priority="-16514" family="ipv4" source address="{self.address}/32" '
            'port port="16514" protocol="tcp" accept'
        )
        for argv in commands:
            self.lab.run(HOST, [word.replace("{rule}", rule) for word in argv])

    def shown(self):
        """Return all rules of the filter."""
        return [self.lab.run(HOST, argv).stdout for argv in self.kind.show]

    def passing(self):
        """Return the pairs of source and port that get through."""
        argv = ["python3", "-", self.lab.hosts.addresses[HOST], self.address, self.stranger]
        found = json.loads(self.lab.run(PEER, argv, stdin=PROBE).stdout)
        return {pair for pair, passes in found.items() if passes}

    def open_for(self, *sources):
        """Return what must pass when these are let in: ssh is there for all."""
        ssh = {f"{source} 22" for source in (self.address, self.stranger)}
        return ssh | {f"{source} {port}" for source in sources for port in (16514, 49152)}

    def apply(self, test=False, **firewall):
        """Apply libvirt/firewall.sls with this pillar and return the state's row."""
        pillar = {"libvirt": {"firewall": {"networks": [f"{self.address}/32"], **firewall}}}
        argv = ["salt", HOST, "--timeout=120", "--out=json", "--static", "state.apply", "libvirt.firewall"]
        done = self.lab.run("controller", [*argv, f"test={test}", f"pillar={json.dumps(pillar)}"], timeout=300)
        (row,) = json.loads(done.stdout)[HOST].values()
        return row


FILTERS = [Nftables, Iptables, pytest.param(Firewalld, marks=pytest.mark.long)]


@pytest.fixture(params=FILTERS, ids=["nftables", "iptables", "firewalld"])
def filtered(lab, request):
    host = Filtered(lab, request.param)
    kind = host.kind
    lab.run(PEER, ["ip", "address", "add", f"{host.stranger}/24", "dev", "eth0"])
    try:
        if kind.packages:
            install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends"]
            lab.run(HOST, [*install, "install", *kind.packages], timeout=300)
        for path, text in kind.conf:
            lab.run(HOST, ["tee", path], stdin=text)
        host.do(kind.start)
        yield host
    finally:
        # A test that failed in the middle has left its rules.
        left = (("systemctl", "disable", "--now", UNIT), ("rm", "-rf", "/etc/hypervisor-formula", f"{UNITS}/{UNIT}"))
        for argv in (*left, *kind.end):
            lab.run(HOST, argv, check=False)
        lab.run(PEER, ["ip", "address", "delete", f"{host.stranger}/24", "dev", "eth0"])
        if kind.packages:
            lab.run(HOST, ["apt-get", "-q", "-y", "--autoremove", "purge", *kind.packages], timeout=300)


def test_listed_networks_pass_and_nothing_else_changes(filtered):
    bare = filtered.shown()
    assert filtered.passing() == filtered.open_for()

    predicted = filtered.apply(test=True)
    assert predicted["result"] is None
    assert filtered.shown() == bare
    done = filtered.apply()
    assert done["result"] is True, done["comment"]
    assert done["changes"] == predicted["changes"]
    assert filtered.passing() == filtered.open_for(filtered.address)
    for before, after in zip(bare, filtered.shown(), strict=True):
        lines = iter(after.splitlines())
        assert all(any(line == kept for line in lines) for kept in before.splitlines()), "a rule is gone or moved"

    again = filtered.apply()
    assert (again["result"], again["changes"]) == (True, {})

    # Below nothing boots: what would bring our rules then has to be enabled.
    assert filtered.lab.run(HOST, ["systemctl", "is-enabled", filtered.kind.boots], check=False).stdout == "enabled\n"
    # Whoever loads the rules loads them anew, as at a boot; ours come back without a highstate.
    filtered.do(filtered.kind.again)
    deadline = time.monotonic() + 20
    while filtered.passing() != filtered.open_for(filtered.address):
        assert time.monotonic() < deadline, "the rules did not come back"
    again = filtered.apply()
    assert (again["result"], again["changes"]) == (True, {})

    # Altered once: seen, and repaired alone.
    filtered.do(filtered.kind.drift)
    assert filtered.passing() != filtered.open_for(filtered.address)
    predicted = filtered.apply(test=True)
    repaired = filtered.apply()
    assert (predicted["result"], repaired["result"]) == (None, True)
    assert len(repaired["changes"]) == 1
    assert repaired["changes"] == predicted["changes"]
    assert filtered.passing() == filtered.open_for(filtered.address)

    # Neither a missing list nor anything but "absent" closes what is open.
    unlisted = filtered.apply(networks=[])
    assert (unlisted["result"], unlisted["changes"]) == (True, {})
    assert filtered.passing() == filtered.open_for(filtered.address)

    predicted = filtered.apply(test=True, ensure="absent")
    gone = filtered.apply(ensure="absent")
    assert (gone["result"], gone["changes"]) == (True, predicted["changes"])
    assert filtered.shown() == bare
    assert filtered.passing() == filtered.open_for()
    left = ["sh", "-c", f"ls -d /etc/hypervisor-formula {UNITS}/{UNIT} {UNITS}/*/{UNIT}"]
    assert filtered.lab.run(HOST, left, check=False).stdout == ""
    again = filtered.apply(ensure="absent")
    assert (again["result"], again["changes"]) == (True, {})


def test_without_a_filter_nothing_is_done(lab):
    host = Filtered(lab, None)
    row = host.apply()
    assert (row["result"], row["changes"]) == (True, {})
    assert "Nothing drops packets" in row["comment"]

"""A private network of two hosts: what its tests share.

A guest here is mostly a network namespace with a port on the switch: its frames are as real as a virtual machine's.
"""

from __future__ import annotations

import json
import time
from typing import Any

from wire import watched

INSIDE = {"hv1": "10.9.0.1", "hv2": "10.9.0.2"}
OTHER = {"hv1": "hv2", "hv2": "hv1"}
KEY = "kq3Vw8yR0bN5tXz1LmCe"
# By MAC address; the two are virtual machines.
KNOWN = {"52:54:00:09:00:11": {"ip": "10.9.0.11"}, "52:54:00:09:00:12": {"ip": "10.9.0.12"}}
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/24" dev "$interface"
[ -z "$mtu" ] || ip link set dev "$interface" mtu "$mtu"
echo "ip=$ip mtu=$mtu router=$router dns=$dns"
"""
GUEST = """
ip netns list | grep -q guest || ip netns add guest
ovs-vsctl --may-exist add-port ovs0 guest0 -- set Interface guest0 type=internal
ip link set guest0 netns guest
ip -n guest link set guest0 up
"""


def network(pair: Any, host: str, **ipsec: Any) -> dict[str, Any]:
    """Return a host's pillar: the mesh, and on the first host DHCP for it; ``ipsec`` is how hosts know each other."""
    nodes = {name: {"address": pair.addresses[name], "inside": [f"{INSIDE[name]}/24"]} for name in INSIDE}
    found = {
        "ipsec": {"wait_seconds": 40, **(ipsec or {"psk": KEY})},
        "mesh": {"private": {"bridge": "ovs0", "port": "priv0", "nodes": nodes}},
    }
    if host == "hv1":
        ranges = [{"start": "10.9.0.100", "end": "10.9.0.150"}]
        serves = {"interface": "priv0", "ranges": ranges, "hosts": KNOWN, "domain": "private.lab"}
        found["dnsmasq"] = {"private": serves}
    return found


def tap(pair: Any, host: str = "hv1") -> Any:
    """Watch what passes a host's card."""
    return watched(pair.lab.paths.name, pair.machines[host].spec.tap(0))


def failures(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the comments of states that did not succeed, by id."""
    return {name: row["comment"] for name, row in rows.items() if row["result"] is not True}


def lease(pair: Any, host: str) -> dict[str, str]:
    """Ask for a lease in a host's guest and return what it got: ip, mtu, router and dns."""
    pair.lab.hosts.unpack(host, {"/root/lease": (0o755, LEASE.encode())})
    said = pair.sh(
        host, GUEST + "ip netns exec guest busybox udhcpc -i guest0 -f -q -n -t 120 -T 1 -O mtu -s /root/lease 2>&1"
    )
    lines = [line for line in said.splitlines() if line.startswith("ip=")]
    assert lines, said
    return dict(word.split("=", 1) for word in lines[-1].split(" "))


def pings(pair: Any, host: str, target: str, seconds: int) -> bool:
    """Ping from a host's guest until an answer comes, for so many seconds at most; return whether one came.

    Raises:
        AssertionError: there is no guest with an address on that host, so that silence would mean nothing.
    """
    script = (
        "ip -n guest -4 -o address show dev guest0 scope global | grep -q . || exit 9; "
        f"end=$(( $(date +%s) + {seconds} )); while [ $(date +%s) -le $end ]; do "
        f"ip netns exec guest ping -c 1 -W 1 {target} >/dev/null 2>&1 && exit 0; sleep 0.2; done; exit 1"
    )
    code = pair.machines[host].ssh(["sh", "-c", script], check=False, timeout=seconds + 60).returncode
    assert code in (0, 1), f"{host} has no guest to ask from ({code})"
    return bool(code == 0)


def agreed(pair: Any, host: str, mesh: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the state that looks whether a host's tunnels have agreed on keys, once the other end answers.

    It alone is run: what it requires would replace what a test has spoilt. An end that was started anew a moment ago
    may be silent at first, which is no failure.
    """
    argv = ["salt-call", "--out=json", "--log-level=quiet", "state.single", "tunnel_ipsec.established", "name=looked"]
    argv += [f"mesh={json.dumps(mesh)}", "wait_seconds=20"]
    deadline = time.monotonic() + 240
    while True:
        said = pair.machines[host].ssh(argv, check=False, timeout=300).stdout
        (row,) = json.loads(said)["local"].values()
        if "does not answer" not in row["comment"] or time.monotonic() > deadline:
            return dict(row)

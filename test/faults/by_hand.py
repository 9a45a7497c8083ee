"""A VLAN that somebody has made with the stack's own means before the formula came."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from lab.proc import LabError

from .subject import Subject

NAME, TAG, ADDRESS = "mgmt", 10, "10.98.7.2/24"
# Files with their content, then the commands that make the VLAN of them.
Means = tuple[dict[str, str], tuple[tuple[str, ...], ...]]
BY_HAND: dict[str, Means] = {
    "ifupdown": (
        {
            f"/etc/network/interfaces.d/{NAME}": f"auto {NAME}\niface {NAME} inet static\n    address {ADDRESS}\n"
            f"    pre-up ip link add link eth0 name {NAME} type vlan id {TAG}\n    post-down ip link delete {NAME}\n"
        },
        (("ifup", NAME),),
    ),
    "networkd": (
        {
            f"/etc/systemd/network/10-{NAME}.netdev": f"[NetDev]\nName={NAME}\nKind=vlan\n[VLAN]\nId={TAG}\n",
            f"/etc/systemd/network/10-{NAME}.network": f"[Match]\nName={NAME}\n[Network]\nAddress={ADDRESS}\n",
            "/etc/systemd/network/10-eth0.network.d/vlan.conf": f"[Network]\nVLAN={NAME}\n",
        },
        (("networkctl", "reload"), ("networkctl", "reconfigure", "eth0", NAME)),
    ),
    "netplan": (
        {
            f"/etc/netplan/60-{NAME}.yaml": f"network:\n  version: 2\n  vlans:\n    {NAME}:\n      id: {TAG}\n"
            f"      link: eth0\n      addresses: [{ADDRESS}]\n"
        },
        (("netplan", "apply"),),
    ),
    "networkmanager": (
        {
            f"/etc/NetworkManager/system-connections/{NAME}.nmconnection": f"[connection]\nid={NAME}\n"
            f"uuid=6f0f1bd4-6c43-4c7c-9d27-1f0c6f4a3a12\ntype=vlan\ninterface-name={NAME}\n\n[vlan]\nparent=eth0\nid={TAG}\n\n"
            f"[ipv4]\naddress1={ADDRESS}\nmethod=manual\n\n[ipv6]\nmethod=disabled\n"
        },
        (("nmcli", "connection", "reload"), ("nmcli", "connection", "up", NAME)),
    ),
}
TAKEN_AWAY: dict[str, tuple[tuple[str, ...], ...]] = {
    "ifupdown": (("ip", "link", "delete", NAME), ("rm", "-f", f"/run/network/ifstate.{NAME}")),
    "networkd": (("ip", "link", "delete", NAME), ("networkctl", "reload")),
    "netplan": (("ip", "link", "delete", NAME), ("netplan", "apply")),
    "networkmanager": (("nmcli", "connection", "delete", NAME),),
}


@contextlib.contextmanager
def vlan(subject: Subject) -> Iterator[None]:
    """Have the VLAN on a machine while the block runs."""
    files, commands = BY_HAND[subject.stack]
    # netplan and NetworkManager read no file that others may.
    subject.stacks.hosts.unpack(subject.name, {path: (0o600, text.encode()) for path, text in files.items()})
    if subject.stack == "networkd":
        subject.run(["chmod", "0644", *files])
    for argv in commands:
        subject.run(list(argv))
    try:
        # Some of these commands only begin it.
        deadline = time.monotonic() + 60
        while f"address {ADDRESS} {NAME}" not in subject.look():
            if time.monotonic() > deadline:
                raise LabError(f"{subject.stack} has not made {NAME} with {ADDRESS}")
            time.sleep(1)
        yield
    finally:
        if subject.stack == "ifupdown":
            subject.run(["ifdown", "--force", NAME], check=False)
        subject.run(["rm", "-rf", *files, "/etc/systemd/network/10-eth0.network.d"])
        for argv in TAKEN_AWAY[subject.stack]:
            subject.run(list(argv), check=False)

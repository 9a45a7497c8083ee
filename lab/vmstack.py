"""Which of Debian's ways to set up interfaces a virtual machine starts with, as an installer would have left it."""

from __future__ import annotations

from .proc import LabError

# Read by vmfiles/first-boot, which enables and starts what is named there.
MARKER = "/etc/lab/network-stack"
STACKS = ("ifupdown", "networkd", "netplan", "networkmanager")


def files(stack: str, address: str, prefix: int, gateway: str) -> dict[str, tuple[int, bytes]]:
    """Return what gives the first card its address: absolute path to mode and content.

    Args:
        stack: one of :data:`STACKS`.
        address: the card's IPv4 address; empty asks a DHCP server.
        prefix: length of its network's prefix in bits.
        gateway: the default route; none when empty.

    Raises:
        LabError: there is no such stack.
    """
    written = {
        "ifupdown": ("/etc/network/interfaces.d/eth0", 0o644, _ifupdown),
        "networkd": ("/etc/systemd/network/10-eth0.network", 0o644, _networkd),
        "netplan": ("/etc/netplan/50-cloud-init.yaml", 0o600, _netplan),
        "networkmanager": ("/etc/NetworkManager/system-connections/eth0.nmconnection", 0o600, _networkmanager),
    }
    if stack not in written:
        raise LabError(f"there is no network stack '{stack}'; allowed: {', '.join(STACKS)}")
    path, mode, render = written[stack]
    lines = render(f"{address}/{prefix}" if address else "", gateway)
    text = "".join(f"{line}\n" for line in lines)
    marker = {} if stack == "ifupdown" else {MARKER: (0o644, f"{stack}\n".encode())}
    return {path: (mode, text.encode()), **marker}


def _ifupdown(address: str, gateway: str) -> list[str]:
    """Return a stanza."""
    if not address:
        return ["auto eth0", "iface eth0 inet dhcp"]
    lines = ["auto eth0", "iface eth0 inet static", f"    address {address}"]
    return [*lines, *([f"    gateway {gateway}"] if gateway else [])]


def _networkd(address: str, gateway: str) -> list[str]:
    """Return a .network file."""
    lines = ["[Match]", "Name=eth0", "", "[Network]"]
    if not address:
        return [*lines, "DHCP=ipv4"]
    return [*lines, f"Address={address}", *([f"Gateway={gateway}"] if gateway else [])]


def _netplan(address: str, gateway: str) -> list[str]:
    """Return what cloud-init writes for netplan."""
    lines = ["# This file is generated from information provided by the datasource.", "network:", "    version: 2"]
    lines += ["    ethernets:", "        eth0:"]
    if not address:
        return [*lines, "            dhcp4: true"]
    lines += ["            addresses:", f"            - {address}"]
    if gateway:
        lines += ["            routes:", "            -   to: default", f"                via: {gateway}"]
    return lines


def _networkmanager(address: str, gateway: str) -> list[str]:
    """Return a connection."""
    lines = ["[connection]", "id=Wired connection 1", "uuid=6f0f1bd4-6c43-4c7c-9d27-1f0c6f4a3a11", "type=ethernet"]
    lines += ["interface-name=eth0", "", "[ipv4]"]
    if not address:
        return [*lines, "method=auto"]
    return [*lines, f"address1={address}{',' + gateway if gateway else ''}", "method=manual"]

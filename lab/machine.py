"""What this machine is like, so that a lab can prove that it left it as it found it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from .network import NETNS, PORT, ip_json
from .proc import LabError, run

# Values that change by themselves: counters, pools, time.
VOLATILE = re.compile(
    r"^(fs\.(dentry-state|inode-|file-nr|aio-nr|quota|epoll|mqueue)"
    r"|kernel\.(random|ns_last_pid|pty\.nr|sched|spl|perf_event_max_sample_rate|hung)"
    r"|net\.netfilter\.nf_conntrack_(count|max|buckets)|net\.ipv[46]\.(conf|neigh)\.hvlab"
    r"|vm\.(stat|drop|compact)|dev\.|net\.ipv4\.tcp_fastopen_key|net\.ipv6\.conf\..*\.stable_secret)"
)
COUNTERS = re.compile(r"\[\d+:\d+\]|counter packets \d+ bytes \d+")
# Where podman mounts its containers.
STORE = "/var/lib/containers/storage/overlay"
# What podman and "ip netns" mount once for all labs; whichever ends last takes it away.
LAB_MOUNTS = {str(NETNS), STORE}
PER_LINK = re.compile(r"^net\.ipv[46]\.(conf|neigh)\.")
# What the kernel loads by itself for bridges, namespaces, containers, taps and a look at the firewall.
LAB_MODULES = {
    "bridge", "stp", "llc", "br_netfilter", "veth", "tun", "tap", "overlay", "nf_tables", "nfnetlink", "libcrc32c",
    "ip_tables", "ip6_tables", "iptable_filter", "ip6table_filter", "x_tables",
    "kvm", "kvm_intel", "kvm_amd", "irqbypass",
}  # fmt: skip
PROGRAMS = {
    "podman": "podman", "runc": "runc", "mmdebstrap": "mmdebstrap", "apt-ftparchive": "apt-utils", "ip": "iproute2",
    "ssh": "openssh-client", "cpio": "cpio", "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs", "unshare": "util-linux", "openssl": "openssl",
    "sysctl": "procps",
}  # fmt: skip
# What they need besides, when nothing that is only recommended gets installed.
COMPANIONS = ("netavark", "conmon", "ca-certificates", "seabios", "ipxe-qemu", "debian-archive-keyring")


def require_root() -> None:
    """Refuse early without root.

    Raises:
        LabError: this isn't root.
    """
    if os.geteuid() != 0:
        raise LabError("the lab needs root (network namespaces, containers, image builds): run it with sudo")


def missing_programs(programs: dict[str, str] | None = None) -> dict[str, str]:
    """Return the programs that aren't here, with Debian's package for each."""
    wanted = PROGRAMS if programs is None else programs
    return {program: package for program, package in wanted.items() if shutil.which(program) is None}


def install_dependencies(log: Path) -> list[str]:
    """Install what the lab runs on, from Debian's packages.

    Returns:
        The packages that were missing.

    Raises:
        LabError: this isn't a Debian-like machine, or apt failed.
    """
    require_root()
    if shutil.which("apt-get") is None:
        raise LabError("the lab installs what it needs with apt-get; this machine has none (use Debian 12 or later)")
    listing = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]).stdout
    installed = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    packages = sorted({*missing_programs().values(), *(name for name in COMPANIONS if name not in installed)})
    if packages:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
        log.parent.mkdir(parents=True, exist_ok=True)
        run([*apt, "update"], timeout=300, env=environment, log=log)
        # Services of what is installed for the lab have no business on the machine itself.
        run([*apt, "install", "-y", "--no-install-recommends", *packages], timeout=900, env=environment, log=log)
    return packages


def _firewall() -> list[str]:
    """Return the machine's rules without counters; empty where nothing manages any."""
    rules: list[str] = []
    for argv in (["nft", "list", "ruleset"], ["iptables-save"], ["ip6tables-save"]):
        if shutil.which(argv[0]):
            text = run(argv, check=False, timeout=30).stdout
            lines = (line for line in text.splitlines() if not line.startswith("#"))
            rules += [COUNTERS.sub("", line).rstrip() for line in lines]
    return rules


def _modules() -> list[str]:
    """Return the loaded kernel modules; a kernel without modules has none."""
    listing = Path("/proc/modules")
    return sorted(line.split()[0] for line in listing.read_text().splitlines()) if listing.exists() else []


def mounts() -> list[str]:
    """Return where something is mounted."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def snapshot() -> dict[str, Any]:
    """Return what a lab must leave as it was: sysctls, modules, firewall, interfaces, routes, namespaces, mounts.

    What belongs to labs by its name isn't in it: others may come and go in the meantime, and :meth:`lab.lab.Lab.down`
    asks for its own by name.
    """
    # First of all: to ask for the firewall's rules may load a module.
    modules = _modules()
    settings = run(["sysctl", "-a"], check=False, timeout=60).stdout.splitlines()
    pairs = (line.split(" = ", 1) for line in settings if " = " in line)
    links = [link for link in ip_json("addr", "show") if not link["ifname"].startswith(PORT)]
    routes = [route for route in ip_json("route", "show") if not str(route.get("dev")).startswith(PORT)]
    spaces = [path.name for path in NETNS.iterdir()] if NETNS.is_dir() else []
    ours = (f"{NETNS}/lab-", f"{STORE}-containers/", f"{STORE}/")
    return {
        "sysctl": {key: value for key, value in pairs if not VOLATILE.match(key)},
        "modules": modules,
        "firewall": _firewall(),
        "links": sorted(link["ifname"] for link in links),
        "addresses": sorted(
            f"{link['ifname']} {item['local']}/{item['prefixlen']}" for link in links for item in link["addr_info"]
        ),
        "routes": sorted(f"{route.get('dst')} {route.get('gateway', '')} {route.get('dev')}" for route in routes),
        "namespaces": sorted(name for name in spaces if not name.startswith("lab-")),
        "mounts": sorted(mount for mount in mounts() if not mount.startswith(ours)),
    }


def differences(before: dict[str, Any], after: dict[str, Any], *, shared: bool = False) -> list[str]:
    """Compare two snapshots.

    Args:
        before: the earlier one.
        after: the later one.
        shared: other labs run, so modules and mounts that all labs need are not this one's to give back.

    Returns:
        One line for each thing that isn't as it was, such as ``sysctl net.ipv4.ip_forward: 0 is now 1``.
    """
    found = []
    for_all = {"modules": LAB_MODULES, "mounts": LAB_MOUNTS}
    for part, old in before.items():
        new = after[part]
        if isinstance(old, dict):
            found += [
                f"{part} {key}: {old.get(key, 'absent')} is now {new.get(key, 'absent')}"
                for key in sorted({*old, *new})
                # An interface that came or went is one line of "links", not a hundred settings of its own.
                if old.get(key) != new.get(key) and not (PER_LINK.match(key) and (key not in old or key not in new))
            ]
        else:
            # What labs share may have been there for another one, which took it away when it ended.
            found += [f"{part}: gone: {item}" for item in sorted(set(old) - set(new) - for_all.get(part, set()))]
            extra = set(new) - set(old) - (for_all.get(part, set()) if shared else set())
            found += [f"{part}: new: {item}" for item in sorted(extra)]
    return found


def tidy(before: dict[str, Any]) -> None:
    """Undo what only tools leave behind: modules that the kernel loaded, mounts that ``ip netns`` and podman keep.

    Args:
        before: the snapshot from before the lab; what was mounted then stays.
    """
    if str(NETNS) not in before["mounts"] and NETNS.is_dir() and not any(NETNS.iterdir()):
        # "ip netns" mounts the folder on itself, more than once if it is called at the same time.
        while str(NETNS) in mounts():
            run(["umount", NETNS])
        NETNS.rmdir()
    containers = run(["podman", "ps", "-aq"], check=False).stdout.strip()
    if STORE not in before["mounts"] and STORE in mounts() and not containers:
        run(["umount", STORE], check=False)
    # Some hold others, so in as many rounds as that takes; one that is in use stays.
    while (extra := (set(_modules()) - set(before["modules"])) & LAB_MODULES) and any(
        run(["rmmod", name], check=False).returncode == 0 for name in sorted(extra)
    ):
        pass

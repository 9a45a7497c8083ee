"""What an operator needs to know of a host, as ``hypervisor.host_info`` returns it.

Everything is read; nothing is asked of another host. What cannot be read is named in ``problems`` and leaves the
rest as it is: the function is for hosts in trouble too.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

try:
    from cryptography import x509

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

Utils = Mapping[str, Any]

# The certificates of a hypervisor by purpose, as states libvirt.pki puts them.
CERTIFICATES = {
    "libvirt": ("/etc/pki/libvirt/servercert.pem", "/etc/pki/libvirt/private/serverkey.pem", "/etc/pki/CA/cacert.pem"),
    "qemu": ("/etc/pki/qemu/server-cert.pem", "/etc/pki/qemu/server-key.pem", "/etc/pki/qemu/ca-cert.pem"),
}
_KVM_CREATE_VM = 0xAE01


def certificates(now: dt.datetime, root: Path = Path("/")) -> list[dict[str, Any]]:
    """Returns the state of this host's certificates.

    Args:
        now: the time, with its zone.
        root: below which the files are.

    Returns:
        For each ``purpose``: ``path``, ``subject``, ``not_after`` (ISO 8601), ``days_left`` (negative once it has
        ended) and ``problem``, which says what is wrong, None if nothing is.
    """
    rows = []
    for purpose, paths in CERTIFICATES.items():
        row: dict[str, Any] = {"purpose": purpose, "path": paths[0], "subject": None, "not_after": None}
        row |= {"days_left": None, "problem": None}
        try:
            missing = [path for path in paths if not (root / path.lstrip("/")).exists()]
            if missing:
                row["problem"] = f"{', '.join(missing)} is missing"
            else:
                row |= _dates((root / paths[0].lstrip("/")).read_bytes(), now)
        except (OSError, ValueError) as error:
            row["problem"] = f"{paths[0]} cannot be read: {error}"
        rows.append(row)
    return rows


def _dates(pem: bytes, now: dt.datetime) -> dict[str, Any]:
    """Reads a certificate; raises ValueError for what is none."""
    if not HAS_CRYPTOGRAPHY:
        return {"problem": "Salt's Python has no library cryptography to read it with"}
    found = x509.load_pem_x509_certificate(pem)
    try:
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    except AttributeError:
        begin, end = (
            moment.replace(tzinfo=dt.timezone.utc) for moment in (found.not_valid_before, found.not_valid_after)
        )
    problem = "it has expired" if end <= now else "it is not valid yet" if begin > now else None
    return {
        "subject": found.subject.rfc4514_string(),
        "not_after": end.isoformat(timespec="seconds"),
        "days_left": (end - now).days,
        "problem": problem,
    }


def kvm_works(root: Path = Path("/")) -> bool:
    """Says whether the kernel makes a virtual machine here: ``/dev/kvm`` can exist and not work."""
    try:
        descriptor = os.open(root / "dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(descriptor, _KVM_CREATE_VM, 0))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def memory(root: Path = Path("/")) -> dict[str, int]:
    """Returns the host's memory in MiB: ``total_mib``, ``available_mib``, ``swap_total_mib``, ``swap_free_mib``."""
    figures = {}
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        figures[key] = int(value.split()[0]) // 1024
    keys = {"total": "MemTotal", "available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}
    return {f"{key}_mib": figures.get(field, 0) for key, field in keys.items()}


def hugepages(root: Path = Path("/")) -> list[dict[str, int]]:
    """Returns huge pages by NUMA node: ``node``, ``size_kib``, ``total``, ``free``."""
    rows = []
    for folder in sorted(root.glob("sys/devices/system/node/node*/hugepages/hugepages-*kB")):
        total, free = (int((folder / name).read_text(encoding="ascii")) for name in ("nr_hugepages", "free_hugepages"))
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB"))
        node = int(folder.parent.parent.name.removeprefix("node"))
        rows.append({"node": node, "size_kib": size, "total": total, "free": free})
    return rows


def bridges(root: Path = Path("/")) -> list[dict[str, Any]]:
    """Returns the kernel's bridges: ``name``, ``mac``, ``mtu``, ``up`` and ``ports``."""
    rows = []
    for folder in sorted(root.glob("sys/class/net/*/bridge")):
        device = folder.parent
        rows.append(
            {
                "name": device.name,
                "mac": (device / "address").read_text(encoding="ascii").strip(),
                "mtu": int((device / "mtu").read_text(encoding="ascii")),
                "up": bool(int((device / "flags").read_text(encoding="ascii"), 16) & 1),
                "ports": sorted(port.name for port in (device / "brif").iterdir()),
            }
        )
    return rows


def reboot(root: Path = Path("/")) -> dict[str, Any]:
    """Says whether the system waits for a reboot: ``pending`` and ``why``, a list of texts."""
    why = []
    for name in ("run/reboot-required", "var/run/reboot-required", "run/reboot-needed"):
        if (root / name).exists():
            packages = root / f"{name}.pkgs"
            named = packages.read_text(encoding="utf-8").split() if packages.exists() else []
            why.append(f"/{name}" + (f": {', '.join(sorted(set(named)))}" if named else ""))
            break
    running = os.uname().release
    modules = root / "lib/modules"
    if modules.is_dir() and any(modules.iterdir()) and not (modules / running).exists():
        why.append(f"the modules of the running kernel {running} are gone")
    return {"pending": bool(why), "why": why}


def times(root: Path = Path("/")) -> dict[str, Any]:
    """Returns ``uptime_seconds`` and ``load``, the averages over 1, 5 and 15 minutes."""
    uptime = float((root / "proc/uptime").read_text(encoding="ascii").split()[0])
    return {"uptime_seconds": round(uptime), "load": [round(value, 2) for value in os.getloadavg()]}


def versions(text: str, root: Path = Path("/")) -> dict[str, str | None]:
    """Returns versions of ``libvirt``, ``qemu`` (from ``virsh version --daemon``), ``kernel`` and ``system``."""
    found: dict[str, str | None] = {"libvirt": None, "qemu": None}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Running against daemon":
            found["libvirt"] = value.strip()
        elif key == "Running hypervisor":
            found["qemu"] = value.strip().removeprefix("QEMU ")
    try:
        release = dict(
            line.split("=", 1)
            for line in (root / "etc/os-release").read_text(encoding="utf-8").splitlines()
            if "=" in line
        )
    except OSError:
        release = {}
    return found | {"kernel": os.uname().release, "system": release.get("PRETTY_NAME", "").strip('"') or None}


def _objects(virsh: Any, utils: Utils, kind: str) -> list[dict[str, Any]]:
    """Returns pools ("pool") or networks ("net") with ``active`` and ``autostart``."""
    read = utils["hypervisor_xml.lines"]
    names, active, automatic = (
        read(virsh.ask(f"{kind}-list", "--name", *options)) for options in (("--all",), (), ("--all", "--autostart"))
    )
    rows = []
    for name in sorted(names):
        text, failed = virsh.attempt(f"{kind}-dumpxml", name)
        if not failed:
            row = utils["hypervisor_xml.pool" if kind == "pool" else "hypervisor_xml.network"](text)
            rows.append({**row, "active": name in active, "autostart": name in automatic})
    return rows


def _guests(virsh: Any, utils: Utils) -> dict[str, Any]:
    """Counts the guests by state and sums what the running ones have."""
    figures = utils["hypervisor_xml.domstats"](virsh.ask("domstats", "--raw", "--nowait"))
    states = [utils["hypervisor_xml.state"](row) for row in figures.values()]
    active = [row for row, state in zip(figures.values(), states, strict=True) if state not in {"shut_off", "crashed"}]
    return {
        "total": len(states),
        "by_state": {state: states.count(state) for state in sorted(set(states))},
        "active_vcpus": sum(int(row.get("vcpu.current", 0)) for row in active),
        "active_memory_mib": sum(int(row.get("balloon.current", 0)) for row in active) // 1024,
    }


def _of_libvirt(virsh: Any, utils: Utils) -> dict[str, Any]:
    """Returns what libvirt knows of the host."""
    offered = utils["hypervisor_xml.capabilities"](virsh.ask("capabilities"))
    cpu = {key: value for key, value in offered["cpu"].items() if key != "xml"}
    cpu["cpus"] = sum(len(cell["cpus"]) for cell in offered["numa"]) or os.cpu_count()
    types = [kind for kind in offered["domain_types"] if kind != "kvm" or kvm_works()]
    present = set(utils["hypervisor_guests.names"](virsh, utils).values())
    return {
        "host_uuid": offered["uuid"],
        "cpu": cpu,
        "numa": offered["numa"],
        "domain_types": types,
        "versions": versions(virsh.ask("version", "--daemon")),
        "pools": _objects(virsh, utils, "pool"),
        "networks": _objects(virsh, utils, "net"),
        "guests": _guests(virsh, utils),
        "migrated": utils["hypervisor_records.away"](present),
    }


def _cluster(utils: Utils, problems: list[str]) -> dict[str, Any] | None:
    """Returns what the host says of its cluster, if it is in one; what cannot be asked is added to the problems."""
    try:
        found: dict[str, Any] | None = utils["cluster_status.facts"](utils)
    except (OSError, CommandExecutionError) as error:
        problems.append(f"cluster: {error}")
        return None
    problems += [f"cluster: {text}" for text in found["problems"]] if found else []
    return found


def everything(virsh: Any, utils: Utils, minion: str) -> dict[str, Any]:
    """Returns the whole description of a host; ``problems`` says what is missing in it and why.

    Args:
        virsh: a connected virsh.
        utils: the siblings' functions.
        minion: this host's minion id.
    """
    problems: list[str] = []
    found: dict[str, Any] = {"minion": minion, "hostname": socket.gethostname(), **times()}
    found |= {"memory": memory(), "hugepages": hugepages(), "bridges": bridges(), "reboot": reboot()}
    found["network_change"] = utils["network_tool.pending"]()
    found["cluster"] = _cluster(utils, problems)
    found["certificates"] = certificates(dt.datetime.now(tz=dt.timezone.utc))
    problems += [
        f"certificate for {row['purpose']}: {row['problem']}" for row in found["certificates"] if row["problem"]
    ]
    empty: dict[str, Any] = {"host_uuid": None, "cpu": None, "numa": [], "domain_types": [], "versions": versions("")}
    empty |= {"pools": [], "networks": [], "guests": None, "migrated": []}
    try:
        found |= _of_libvirt(virsh, utils)
    except Exception as error:  # noqa: BLE001 - a host in trouble is described as far as it can be
        found |= empty
        problems.append(f"libvirt: {error}")
    return found | {"problems": problems}

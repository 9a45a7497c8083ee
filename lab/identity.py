"""Who a host is: name, addresses of all hosts, ssh keys. Never in an image; each host gets its own before it starts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .proc import run
from .state import Paths, write_atomic

DOMAIN = "lab.internal"


def make_keys(paths: Paths, host: str) -> None:
    """Make the lab's key and a host's own ssh key where they are missing."""
    folder = paths.host(host)
    folder.mkdir(parents=True, exist_ok=True)
    for key, comment in ((paths.ssh_key, f"lab {paths.name}"), (folder / "ssh_host_ed25519_key", host)):
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key])


def hosts_file(host: str, addresses: Mapping[str, str]) -> str:
    """Return ``/etc/hosts`` for a host; its own name never is loopback there, or migration and dlm stall."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {name}.{DOMAIN} {name}" for name, address in sorted(addresses.items())]
    return "\n".join([f"# {host}: written by the lab", *lines]) + "\n"


def files(paths: Paths, host: str, addresses: Mapping[str, str], *, kvm: bool = True) -> dict[str, tuple[int, bytes]]:
    """Return what makes a host itself: absolute path to mode and content.

    Args:
        paths: the lab's files.
        host: its name.
        addresses: the addresses of all hosts.
        kvm: whether ``/dev/kvm`` works; where it doesn't, a container host loses it.
    """
    folder = paths.host(host)
    return {
        **({} if kvm else {"/etc/lab/no-kvm": (0o644, b"")}),
        "/etc/hostname": (0o644, f"{host}\n".encode()),
        "/etc/hosts": (0o644, hosts_file(host, addresses).encode()),
        "/root/.ssh/authorized_keys": (0o600, paths.ssh_key.with_suffix(".pub").read_bytes()),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, (folder / "ssh_host_ed25519_key").read_bytes()),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, (folder / "ssh_host_ed25519_key.pub").read_bytes()),
    }


def archive(content: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return files as a tar archive owned by root, with paths relative to ``/``; folders are 0755, ``.ssh`` 0700."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folders = {parent for name in content for parent in Path(name).parents}
        for folder in sorted(folders - {Path("/"), Path("/etc"), Path("/root")}):
            entry = tarfile.TarInfo(str(folder).lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700 if folder.name == ".ssh" else 0o755
            tar.addfile(entry)
        for name, (mode, data) in sorted(content.items()):
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_ssh_files(paths: Paths, addresses: Mapping[str, str]) -> None:
    """Write ``ssh_config`` and ``known_hosts`` with every host's key pinned, by name and by address."""
    known, config = [], [
        f"# ssh -F {paths.ssh_config} HOST",
        "Host *",
        "  User root",
        f"  IdentityFile {paths.ssh_key}",
        "  IdentitiesOnly yes",
        f"  UserKnownHostsFile {paths.root / 'known_hosts'}",
        "  GlobalKnownHostsFile /dev/null",
        "  StrictHostKeyChecking yes",
        "  BatchMode yes",
        # The default one takes 0.4 s of each connection, and several seconds where a host is emulated.
        "  KexAlgorithms curve25519-sha256",
        "  ConnectTimeout 10",
        "  ServerAliveInterval 10",
        "  ServerAliveCountMax 3",
        "  LogLevel ERROR",
    ]  # fmt: skip
    for host, address in sorted(addresses.items()):
        kind, key = (paths.host(host) / "ssh_host_ed25519_key.pub").read_text().split()[:2]
        known.append(f"{host},{address} {kind} {key}")
        config += [f"Host {host}", f"  HostName {address}"]
    write_atomic(paths.root / "known_hosts", "\n".join(known) + "\n", 0o644)
    write_atomic(paths.ssh_config, "\n".join(config) + "\n", 0o644)

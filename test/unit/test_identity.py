"""Who a host is: its names, its keys with their modes, and ssh files that believe only those keys."""

import io
import tarfile
from typing import Any

import pytest

from lab import identity, state
from lab.state import Paths

ADDRESSES = {"controller": "10.213.1.10", "hv1": "10.213.1.11", "hv2": "10.213.1.12"}


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A lab's files with keys made by hand: ssh-keygen isn't needed to see where they go."""
    monkeypatch.setattr(state, "ROOT", tmp_path)
    made = Paths("unit")
    for host in ADDRESSES:
        folder = made.host(host)
        folder.mkdir(parents=True)
        (folder / "ssh_host_ed25519_key").write_text(f"private {host}\n")
        (folder / "ssh_host_ed25519_key.pub").write_text(f"ssh-ed25519 KEY{host} {host}\n")
    made.ssh_key.write_text("private lab\n")
    made.ssh_key.with_suffix(".pub").write_text("ssh-ed25519 LABKEY lab unit\n")
    return made


@pytest.mark.parametrize("host", ADDRESSES)
def test_no_host_takes_itself_for_loopback(host):
    table: dict[str, set[str]] = {}
    for line in identity.hosts_file(host, ADDRESSES).splitlines():
        if not line.startswith("#"):
            address, *names = line.split()
            for name in names:
                table.setdefault(name, set()).add(address)
    for name, address in ADDRESSES.items():
        assert table.pop(name) == {address}
        assert table.pop(f"{name}.lab.internal") == {address}
    assert set(table) == {"localhost", "ip6-localhost", "ip6-loopback"}


def test_a_host_gets_its_own_keys_closed_and_nobody_elses(paths):
    files = identity.files(paths, "hv1", ADDRESSES)
    assert files["/etc/hostname"] == (0o644, b"hv1\n")
    assert files["/etc/ssh/ssh_host_ed25519_key"] == (0o600, b"private hv1\n")
    assert files["/root/.ssh/authorized_keys"] == (0o600, b"ssh-ed25519 LABKEY lab unit\n")
    everything = b"".join(data for _, data in files.values())
    assert b"private lab" not in everything
    assert b"private hv2" not in everything
    assert all(mode == 0o600 for mode, data in files.values() if b"private" in data)


def test_without_kvm_a_container_host_is_told(paths):
    assert "/etc/lab/no-kvm" in identity.files(paths, "hv1", ADDRESSES, kvm=False)
    assert "/etc/lab/no-kvm" not in identity.files(paths, "hv1", ADDRESSES, kvm=True)


def test_the_archive_keeps_modes_and_root(paths):
    files = identity.files(paths, "hv1", ADDRESSES, kvm=False)
    with tarfile.open(fileobj=io.BytesIO(identity.archive(files))) as tar:
        members = {member.name: member for member in tar.getmembers()}
        for name, (mode, data) in files.items():
            member = members[name.lstrip("/")]
            assert member.isfile()
            assert member.mode == mode
            stored = tar.extractfile(member)
            assert stored is not None
            assert stored.read() == data
    assert all((member.uid, member.gid) == (0, 0) for member in members.values())
    folders = {name: member.mode for name, member in members.items() if member.isdir()}
    assert folders == {"root/.ssh": 0o700, "etc/ssh": 0o755, "etc/lab": 0o755}
    assert not any(name.startswith(("/", "..")) for name in members)
    # A folder comes before what lies in it.
    order = list(members)
    assert order.index("root/.ssh") < order.index("root/.ssh/authorized_keys")


def test_ssh_believes_only_the_keys_that_the_lab_made(paths):
    identity.write_ssh_files(paths, ADDRESSES)
    known = (paths.root / "known_hosts").read_text().splitlines()
    assert known == [f"{host},{address} ssh-ed25519 KEY{host}" for host, address in sorted(ADDRESSES.items())]
    config = [line.strip() for line in paths.ssh_config.read_text().splitlines()]
    assert "StrictHostKeyChecking yes" in config
    assert "GlobalKnownHostsFile /dev/null" in config
    assert f"UserKnownHostsFile {paths.root}/known_hosts" in config
    assert f"IdentityFile {paths.ssh_key}" in config
    for host, address in ADDRESSES.items():
        assert config[config.index(f"Host {host}") + 1] == f"HostName {address}"


def test_keys_are_made_once(paths, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(identity, "run", calls.append)
    identity.make_keys(paths, "hv1")
    assert calls == []
    identity.make_keys(paths, "hv3")
    (argv,) = calls
    assert argv[:4] == ["ssh-keygen", "-q", "-t", "ed25519"]
    assert argv[-1] == paths.host("hv3") / "ssh_host_ed25519_key"

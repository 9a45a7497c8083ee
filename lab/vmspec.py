"""What a virtual machine is made of, and how QEMU is told; nothing here starts one.

The functions are pure but for :func:`probe`, :func:`accelerator` and :func:`make_disk`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import identity, vmstack
from .proc import CommandError, run

QEMU = "qemu-system-x86_64"
SEED_NAME = "opt/lab.hypervisor/seed"
# An interface's name has 15 characters at most.
TAP_MAX = 15
SERIAL_MAX = 20
# A boot sector that writes 0x10 to QEMU's debug-exit port: proof that guest code really runs.
PROBE_SECTOR = (b"\xb0\x10\xe6\xf4\xf4\xeb\xfd".ljust(510, b"\x00")) + b"\x55\xaa"
PROBE_EXIT = (0x10 << 1) | 1
# x86-64-v2, pages of 1 GiB, and AES, which every server has: emulated, GnuTLS encrypts 29 MB/s with it and 4 without
# (AES-128-GCM). With all that QEMU can emulate ("max") a start takes a third longer.
# Without an emulated SVM: with it the machine's own guests run by KVM, and now and then, when such a guest ends, one
# processor waits for the other for good (kvm_destroy_vm in Debian 12's kernel): the machine does not answer any more.
EMULATED = "qemu64,svm=off,+ssse3,+sse4.1,+sse4.2,+popcnt,+pdpe1gb,+rdrand,+aes,+pclmulqdq"

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Take a line of progress and print nothing."""


@dataclass(frozen=True)
class Disk:
    """A disk besides the machine's own.

    Attributes:
        path: a raw image, made with :func:`make_disk`.
        serial: how the guest finds it: ``/dev/disk/by-id/virtio-<serial>``; at most 20 characters.
        shared: other machines use it at the same time; both bypass this machine's page cache.
    """

    path: Path
    serial: str
    shared: bool = False


@dataclass(frozen=True)
class Nic:
    """A network card: the guest names them ``eth0``, ``eth1`` … in order.

    Attributes:
        bridge: the bridge in the lab's switch namespace that it is plugged into.
        mac: its hardware address; derived from lab, host and position when empty.
    """

    bridge: str = "br0"
    mac: str = ""


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of.

    Attributes:
        lab: name of the lab; the switch is the network namespace ``lab-<lab>``.
        name: short host name.
        image: raw base image, from :mod:`lab.vmimage`.
        address: its address on the first card.
        prefix: length of the network's prefix in bits.
        gateway: default route; none when empty.
        stack: what sets up its interfaces, one of :data:`lab.vmstack.STACKS`.
        dhcp: whether it asks a DHCP server for its address, which must be the one above.
        memory_mib: memory in MiB.
        cpus: virtual processors, each of a NUMA node of its own.
        nics: its cards; the address belongs to the first.
        disks: further disks.
        watchdog: an i6300esb watchdog that resets the machine.
        frozen: memory of the same machine from :meth:`lab.vm.Machine.freeze`, to go on from instead of booting.
    """

    lab: str
    name: str
    image: Path
    address: str
    prefix: int = 24
    gateway: str = ""
    stack: str = "ifupdown"
    dhcp: bool = False
    memory_mib: int = 1536
    cpus: int = 2
    nics: Sequence[Nic] = (Nic(),)
    disks: Sequence[Disk] = ()
    watchdog: bool = False
    frozen: Path | None = None

    def mac(self, index: int) -> str:
        """Return a card's hardware address, the same at every start."""
        if self.nics[index].mac:
            return self.nics[index].mac
        digest = hashlib.sha256(f"{self.lab}/{self.name}/{index}".encode()).digest()
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])

    def tap(self, index: int) -> str:
        """Return the name of a card's tap in the switch namespace: ``<host>-<index>``."""
        plain = f"{self.name}-{index}"
        if len(plain) <= TAP_MAX:
            return plain
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:4]
        return f"{self.name[:8]}~{digest}-{index}"


def seed(spec: MachineSpec, files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return the tar archive by which an image becomes this host.

    Args:
        spec: the machine.
        files: its identity from :func:`lab.identity.files`; its address is added here.
    """
    network = vmstack.files(spec.stack, "" if spec.dhcp else spec.address, spec.prefix, spec.gateway)
    return identity.archive({**files, **network})


def qemu_argv(spec: MachineSpec, folder: Path, accelerator: str) -> list[str]:
    """Return QEMU's argument list for a machine.

    Args:
        spec: the machine.
        folder: its folder, with ``disk.qcow2`` and ``seed.tar``.
        accelerator: ``kvm`` or ``tcg``.
    """
    kvm = accelerator == "kvm"
    root = f"file={_escaped(folder / 'disk.qcow2')},if=none,id=root,format=qcow2,discard=unmap"
    argv = [
        *[QEMU, "-name", f"{spec.lab}-{spec.name}", "-nodefaults", "-no-user-config"],
        *["-display", "none", "-machine", "pc", "-accel", "kvm" if kvm else "tcg,thread=multi"],
        *["-cpu", "host" if kvm else EMULATED],
        *["-m", f"{spec.memory_mib}M", "-smp", str(spec.cpus), "-rtc", "base=utc,clock=host"],
        *_numa(spec),
        *["-device", "virtio-rng-pci", "-serial", f"file:{folder / 'console.log'}"],
        *["-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off"],
        *["-fw_cfg", f"name={SEED_NAME},file={_escaped(folder / 'seed.tar')}"],
        # Not "unsafe": what the guest has synced must survive the end of this process.
        *["-drive", f"{root},cache=writeback"],
        *["-device", "virtio-blk-pci,drive=root,serial=root,bootindex=0"],
    ]
    for index, disk in enumerate(spec.disks):
        drive = f"file={_escaped(disk.path)},if=none,id=disk{index},format=raw"
        device = f"virtio-blk-pci,drive=disk{index},serial={disk.serial}"
        if disk.shared:
            drive += ",cache=none,file.locking=off"
            device += ",share-rw=on"
        argv += ["-drive", drive, "-device", device]
    for index in range(len(spec.nics)):
        backend = f"tap,id=net{index},ifname={spec.tap(index)},script=no,downscript=no"
        card = f"virtio-net-pci,netdev=net{index},id=nic{index},mac={spec.mac(index)},romfile="
        argv += ["-netdev", backend, "-device", card]
    if spec.watchdog:
        argv += ["-device", "i6300esb", "-action", "watchdog=reset"]
    if spec.frozen:
        argv += ["-incoming", f"exec:cat {shlex.quote(str(spec.frozen))}"]
    return [*argv, "-pidfile", str(folder / "qemu.pid"), "-daemonize"]


def _numa(spec: MachineSpec) -> list[str]:
    """Return the options that give each processor a memory of its own, as in a server with several sockets."""
    if spec.cpus < 2:
        return []
    words = []
    for node in range(spec.cpus):
        size = spec.memory_mib // spec.cpus + (spec.memory_mib % spec.cpus if node == 0 else 0)
        words += ["-object", f"memory-backend-ram,id=memory{node},size={size}M"]
        words += ["-numa", f"node,nodeid={node},cpus={node},memdev=memory{node}"]
    return words


def accelerator(say: Say = silent) -> str:
    """Return ``kvm`` where it truly works, else ``tcg``, and say which and why.

    ``/dev/kvm`` may exist without working: the processor must have the flag and a guest must run.
    """
    words = set(Path("/proc/cpuinfo").read_text().split())
    if not words & {"vmx", "svm"}:
        reason = "the processor offers no hardware virtualisation"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        reason = "/dev/kvm is missing or not accessible"
    elif not probe("kvm"):
        reason = "/dev/kvm is here, but a guest does not run on it"
    else:
        say("virtual machines run with hardware virtualisation (KVM)")
        return "kvm"
    say(f"virtual machines are emulated (TCG), many times slower than KVM: {reason}")
    return "tcg"


def probe(accel: str, timeout: float = 20) -> bool:
    """Return whether a guest of one boot sector runs with an accelerator.

    Args:
        accel: ``kvm`` or ``tcg``.
        timeout: seconds that it may take.
    """
    with tempfile.NamedTemporaryFile(suffix=".img") as sector:
        sector.write(PROBE_SECTOR)
        sector.flush()
        argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-m", "16"]
        argv += ["-machine", "pc", "-accel", accel, "-device", "isa-debug-exit"]
        argv += ["-drive", f"file={sector.name},format=raw,if=ide,snapshot=on"]
        try:
            return run(argv, timeout=timeout, check=False).returncode == PROBE_EXIT
        except CommandError:
            return False


def make_disk(path: Path, size_mib: int) -> Path:
    """Make an empty raw disk of that many MiB (sparse) unless it is there, and return its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size_mib << 20)
    return path


def _escaped(path: Path) -> str:
    """Return a path for QEMU's comma-separated options."""
    return str(path).replace(",", ",,")

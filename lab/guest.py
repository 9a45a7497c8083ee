"""The demonstration guest: the distribution's own kernel, busybox, and a serial console that counts seconds."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from .proc import run
from .state import CACHE, locked
from .vmdisk import contained

FOLDER = "/var/lib/libvirt/images"
RELEASE = "bookworm"
# Where the machine is busy, an emulated timer seems not to work to a kernel that checks it, and it panics.
ARGUMENTS = "console=ttyS0 no_timer_check"
# Depends on the newest kernel without drivers for real hardware.
METAPACKAGE = "linux-image-cloud-amd64"
KERNEL, INITRAMFS = "lab-guest-vmlinuz", "lab-guest-initramfs"
# What a guest needs for its disk and its card, each after what it needs itself. What is built in has no file.
DRIVERS = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"),
    *("failover", "net_failover", "virtio_net"),
)
# A new random line a boot, so that a reader of the console can tell a continued guest from a restarted one. The
# kernel argument fill=MIB has it fill so much memory with what cannot be compressed, work=MIB rewrite so much all
# the time: what a migration then has to send. write=WORD has it write a line with that word to its first disk;
# ping=ADDRESS ask for a lease on its first card and look for that address with as large packets as pass; count=WORD
# count on its first disk, on from what it finds: "count WORD BOOT NUMBER" in the first sector, each number in its own,
# and "clash" in the last one as soon as the first does not say any more what this guest has written;
# pause=SECONDS be idle so long between numbers, and between what it says, rather than one second.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1 </dev/console
echo "guest boot $(cat /proc/sys/kernel/random/boot_id)"
for word in $(cat /proc/cmdline); do
  case $word in
    fill=*) fill=${word#*=} ;;
    work=*) work=${word#*=} ;;
    write=*) write=${word#*=} ;;
    ping=*) ping=${word#*=} ;;
    count=*) count=${word#*=} ;;
    pause=*) pause=${word#*=} ;;
  esac
done
pause=${pause:-1}
mkdir /memory
mount -t tmpfs -o size=95% memory /memory
[ -z "$fill" ] || dd if=/dev/urandom of=/memory/fill bs=1M count="$fill" 2>/dev/null
[ -z "$work" ] || while true; do dd if=/dev/urandom of=/memory/work bs=1M count="$work" conv=notrunc 2>/dev/null; done &
if [ -n "$write$ping$count" ]; then
  for driver in @DRIVERS@; do [ ! -e "/drivers/$driver.ko" ] || insmod "/drivers/$driver.ko"; done
fi
if [ -n "$write" ]; then
  echo "guest wrote $write" | dd of=/dev/vda conv=fsync 2>/dev/null
  echo "guest disk of $(cat /sys/block/vda/size) sectors"
fi
if [ -n "$ping" ]; then
  ip link set eth0 up
  udhcpc -i eth0 -f -q -t 60 -T 1 -O mtu -s /lease
  while true; do
    ping -c 1 -W 1 -s "$(($(cat /sys/class/net/eth0/mtu) - 28))" "$ping" >/dev/null && echo "guest reaches $ping"
    sleep 1
  done &
fi
if [ -n "$count" ]; then
  boot=$(cat /proc/sys/kernel/random/boot_id)
  number=0
  mine=
  end=$(($(cat /sys/block/vda/size) - 1))
  set -- $(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000')
  [ "$1 $2" != "count $count" ] || number=$4
  echo "guest goes on from $number"
  while true; do
    # What the disk says, not what is remembered of it.
    echo 1 >/proc/sys/vm/drop_caches
    if [ -n "$mine" ] && [ "$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000')" != "$mine" ]; then
      echo "guest is not alone"
      echo "clash $mine" | dd of=/dev/vda bs=512 seek="$end" conv=sync,fsync 2>/dev/null
    fi
    number=$((number + 1))
    mine="count $count $boot $number"
    for sector in $number 0; do
      echo "$mine" | dd of=/dev/vda bs=512 seek="$sector" conv=sync,fsync 2>/dev/null || echo "guest cannot write"
    done
    sleep "$pause"
  done &
fi
second=0
while true; do
  echo "guest second $second"
  sleep "$pause"
  second=$((second + pause))
done
""".replace("@DRIVERS@", " ".join(DRIVERS))
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
[ -z "$mtu" ] || ip link set dev "$interface" mtu "$mtu"
ip address replace "$ip/24" dev "$interface"
echo "guest lease $ip mtu $mtu"
"""


def digest() -> str:
    """Return 16 hex digits that change with the guest's recipe."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def build(log: Path) -> Path:
    """Build kernel and initramfs unless they are in the cache.

    Returns:
        The folder that holds ``lab-guest-vmlinuz`` and ``lab-guest-initramfs``.

    Raises:
        CommandError: the packages can't be had, or a step failed.
    """
    target = CACHE / f"guest-{digest()}"
    if (target / INITRAMFS).exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with (
        locked("guest", "building the demonstration guest", wait=True),
        tempfile.TemporaryDirectory(dir=CACHE, prefix=".guest-") as scratch,
    ):
        if (target / INITRAMFS).exists():
            # Another lab has built it while we waited.
            return target
        work = Path(scratch)
        unpacked = work / "debian"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked, not installed: this machine's own distribution and packages don't matter.
        fetch = ["mmdebstrap", "--variant=extract", f"--include={METAPACKAGE},busybox-static"]
        fetch += ["--dpkgopt=path-exclude=/lib/modules/*"]
        fetch += [f"--dpkgopt=path-include=/lib/modules/*/{driver}.ko" for driver in DRIVERS]
        run([*contained("--mount-proc"), *fetch, RELEASE, unpacked], timeout=300, log=log)
        tree = work / "tree"
        (tree / "bin").mkdir(parents=True)
        shutil.copy(unpacked / "bin" / "busybox", tree / "bin" / "busybox")
        (tree / "drivers").mkdir()
        for driver in DRIVERS:
            for module in (unpacked / "lib/modules").rglob(f"{driver}.ko"):
                shutil.copy(module, tree / "drivers")
        for name, text in (("init", INIT), ("lease", LEASE)):
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
        result = work / "result"
        result.mkdir()
        run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", result / INITRAMFS, "-D", tree], stdin=names)
        shutil.copy(next((unpacked / "boot").glob("vmlinuz-*")), result / KERNEL)
        for path in result.iterdir():
            path.chmod(0o644)
        shutil.rmtree(target, ignore_errors=True)
        result.rename(target)
    return target


def install_argv(name: str, memory_mib: int = 128) -> list[str]:
    """Return the ``virt-install`` command that defines and starts the guest on the hypervisor it runs on."""
    return [
        "virt-install", "--connect", "qemu:///system", "--name", name, "--memory", str(memory_mib), "--vcpus", "1",
        "--osinfo", "detect=on,require=off", "--import",
        "--boot", f"kernel={FOLDER}/{KERNEL},initrd={FOLDER}/{INITRAMFS},kernel_args={ARGUMENTS}",
        "--disk", "none", "--network", "none", "--graphics", "none",
        "--controller", "usb,model=none", "--memballoon", "none",
        "--serial", f"pty,log.file=/var/log/libvirt/qemu/{name}-serial.log,log.append=on", "--noautoconsole",
    ]  # fmt: skip

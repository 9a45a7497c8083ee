"""Bootable Debian disk images, of hosts and of guests, built by mmdebstrap without ever starting them.

Nothing is mounted on this machine and no loop device is needed. A build runs in mount and process
namespaces of its own which end with it, so that an interrupted one leaves files only; the next
build removes those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import rootfs, vmdisk, vmxfs
from .proc import CommandError, LabError, run
from .state import CACHE, CHECKOUT, tree_digest
from .vmspec import Say, silent

INSTALL_SALT = CHECKOUT / "lab/files/install-salt.sh"
# The tree, the image of it and the archives of a large package list, with room to spare.
SPACE_NEEDED_MIB = 6000
# With them one machine can serve files and disks for the tests of another; they only run where a test starts them.
STORAGE_SERVERS = ("nfs-kernel-server", "tgt")
# All that sets up interfaces, switches and tunnels, for the tests of the formula network. An image starts none of
# them but ifupdown; a machine's seed says which one has its card.
NETWORKING = (
    *("ifupdown", "bridge-utils", "ifenslave", "isc-dhcp-client", "netplan.io", "network-manager", "ethtool"),
    *("openvswitch-switch", "openvswitch-ipsec", "strongswan", "libstrongswan-standard-plugins", "nftables"),
    *("dnsmasq", "udhcpc", "busybox", "tcpdump"),
)
# What a machine has besides what every host has. The cloud kernel lacks dlm and many drivers.
PACKAGES = ("linux-image-amd64", "initramfs-tools", "zstd", "grub-pc", *NETWORKING, *STORAGE_SERVERS)
# What a guest has that is made of a cloud's image: the kernel of Debian's own cloud images, which has drivers of
# virtio alone, and what reads there who it is.
CLOUD_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools", "zstd", "grub-pc", "cloud-init", "netplan.io")
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod")
# For a root of each file system: packages, modules that must be there to mount it, options in fstab.
FILE_SYSTEMS = {
    "ext4": ((), ("ext4",), "errors=remount-ro 0 1"),
    "xfs": (("xfsprogs",), ("xfs", "libcrc32c", "crc32c_generic"), "defaults 0 0"),
}
# Work of a machine that lives for months; here it only delays the start.
UNWANTED_UNITS = (
    *(*rootfs.TIMERS, "e2scrub_reap.service", "man-db.timer", "nfs-server.service", "tgt.service"),
    *("NetworkManager.service", "NetworkManager-dispatcher.service", "NetworkManager-wait-online.service"),
    *("systemd-networkd.service", "openvswitch-switch.service", "openvswitch-ipsec.service"),
    *("strongswan-starter.service", "dnsmasq.service", "nftables.service", "ModemManager.service"),
    *("corosync.service", "pacemaker.service", "sbd.service", "sbd_remote.service", "dlm.service"),
    *("lvmlockd.service", "lvmlocks.service", "wdmd.service", "sanlock.service"),
)
# By these a host could be taken for another, or the build is still to be seen.
FORGOTTEN = (
    *("var/lib/dbus/machine-id", "etc/ssh/ssh_host_*", "etc/salt/minion_id", "etc/salt/pki/*/*"),
    *("var/lib/systemd/random-seed", "var/log/*.log", "var/log/apt/*", "etc/resolv.conf"),
    *("etc/apt/sources.list.d/*", "var/lib/apt/lists/*", "var/cache/apt/archives/*.deb"),
)
# Asks no other source of data, and leaves out what costs an emulated guest seconds.
CLOUD_CONFIG = """datasource_list: [NoCloud, None]
apt: {preserve_sources_list: true}
growpart: {mode: "off"}
resize_rootfs: false
ssh_genkeytypes: [ed25519]
"""
# Without PAM no session of logind is begun with each connection, which takes an emulated machine two seconds.
SSHD = "UsePAM no\n"
INTERFACES = "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n"


@dataclass(frozen=True)
class Recipe:
    """What goes into an image.

    Attributes:
        release: Debian's code name, for example ``bookworm``.
        packages: what the formulas install, besides what every machine has.
        size_mib: size of the disk in MiB; only what is used takes space.
        file_system: of the root, one of :data:`FILE_SYSTEMS`.
        cloud: a guest's image, whose cloud-init gives it an identity, instead of a host's.
    """

    release: str
    packages: tuple[str, ...] = ()
    size_mib: int = 10240
    file_system: str = "ext4"
    cloud: bool = False

    def digest(self) -> str:
        """Return the image's name: 16 hex digits over the recipe and the code that follows it."""
        here = Path(__file__)
        sources = [here, here.with_name("vmdisk.py"), here.with_name("vmxfs.py"), vmdisk.FILES, INSTALL_SALT]
        sources += [CHECKOUT / "bootstrap", CHECKOUT / "requirements/salt.lock"]
        parts = [self.release, str(self.size_mib), self.file_system, str(self.cloud)]
        parts += [tree_digest(sources), *self.included()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def included(self) -> list[str]:
        """Return the names of all packages to install, sorted."""
        own = CLOUD_PACKAGES if self.cloud else PACKAGES
        return sorted({*rootfs.BASE, *own, *FILE_SYSTEMS[self.file_system][0], *self.packages})

    @property
    def disk(self) -> str:
        """The name of the disk's file: a host's is raw, a guest's is made to be sent."""
        return "disk.qcow2" if self.cloud else "disk.raw"


@dataclass(frozen=True)
class Image:
    """An image in the cache.

    Attributes:
        path: the disk; read-only, machines put an overlay on it.
        digest: its name.
        seconds: how long the build took; 0.0 when it was there already.
    """

    path: Path
    digest: str
    seconds: float


def build(recipe: Recipe, *, cache: Path = CACHE, say: Say = silent) -> Image:
    """Return the image of a recipe, building it if the cache doesn't have it.

    Args:
        recipe: what goes in.
        cache: holds the folders of images (``vm-images``) and of package archives (``debs``).
        say: gets a line at every step.

    Raises:
        LabError: not root, a tool is missing, the disk is full, or a step failed.
    """
    folder = cache / "vm-images"
    digest = recipe.digest()
    disk = folder / digest / recipe.disk
    if disk.is_file():
        return Image(disk, digest, 0.0)
    _check_machine(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f".{digest}.lock", digest, say):
        if disk.is_file():
            return Image(disk, digest, 0.0)
        begun = time.monotonic()
        work = folder / f".building-{digest}"
        if work.exists():
            say(f"removing a build that was not finished: {work}")
            remove_tree(work)
        work.mkdir()
        try:
            _make_tree(recipe, work / "root", cache, say)
            identifier = vmdisk.fs_uuid(digest)
            _prepare(work / "root", recipe, identifier)
            say(f"writing the disk ({recipe.file_system})")
            vmdisk.make_bootable(work / "root", work / "disk.raw", recipe.size_mib)
            if recipe.file_system == "xfs":
                left_out = vmxfs.write(work / "root", work / "disk.raw", identifier)
                say(f"{len(left_out)} names that mkfs.xfs can't express are left out: {', '.join(left_out[:3])} …")
            else:
                vmdisk.write_ext4(work / "root", work / "disk.raw", identifier)
            remove_tree(work / "root")
            if recipe.cloud:
                convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
                run([*convert, str(work / "disk.raw"), str(work / recipe.disk)], timeout=600)
                (work / "disk.raw").unlink()
            seconds = round(time.monotonic() - begun, 1)
            description = asdict(recipe) | {"seconds": seconds}
            (work / "image.json").write_text(json.dumps(description, indent=1) + "\n")
            (work / recipe.disk).chmod(0o444)
            # A cached image must be whole after a power cut, or every machine made of it is broken.
            run(["sync", "-f", str(work)], timeout=600)
            work.rename(folder / digest)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise LabError(f"the image could not be built: {reason}") from error
        finally:
            if work.exists():
                remove_tree(work)
    say(f"image {digest} built in {seconds:.0f} s")
    return Image(disk, digest, seconds)


def remove_tree(path: Path) -> None:
    """Remove a tree, but never what is mounted in it.

    Raises:
        LabError: something is mounted below it.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if Path(mount).is_relative_to(path)]
    if inside:
        raise LabError(f"{path} has {', '.join(inside)} mounted in it; unmount that first")
    shutil.rmtree(path)


def _check_machine(cache: Path) -> None:
    """Say clearly what keeps this machine from building images."""
    if os.geteuid() != 0:
        raise LabError("building an image of a virtual machine needs root")
    tools = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "setpriv": "util-linux", "qemu-img": "qemu-utils"}
    for tool, package in tools.items():
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is not installed; install the package {package}")
    rootfs.free_space(cache, SPACE_NEEDED_MIB)


@contextlib.contextmanager
def _lock(path: Path, digest: str, say: Say) -> Iterator[None]:
    """Hold the build lock of one image; wait for another process that builds the same."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds image {digest}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_tree(recipe: Recipe, root: Path, cache: Path, say: Say) -> None:
    """Make a tree at ``root``: Debian with a kernel, Salt and the packages, not yet bootable."""
    say(f"installing Debian {recipe.release} with Salt and {len(recipe.packages)} packages")
    archives = cache / "debs" / recipe.release
    archives.mkdir(parents=True, exist_ok=True)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    environment |= {
        "LAB_CHECKOUT": str(CHECKOUT),
        "LAB_DEBS": str(archives),
        "LAB_INITRAMFS_MODULES": " ".join((*INITRAMFS_MODULES, *FILE_SYSTEMS[recipe.file_system][1])),
        "LAB_PIP_INDEX": os.environ.get("PIP_INDEX_URL", ""),
    }
    argv = [
        *["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"],
        f"--include={','.join(recipe.included())}",
        *['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"'],
        '--aptopt=APT::Install-Recommends "false"',
        *["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*"],
        *["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*"],
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *["--skip=download/empty", "--skip=essential/unlink", "--skip=cleanup/apt"],
        f"--hook-directory={vmdisk.FILES / 'hooks'}",
        f"--customize-hook={INSTALL_SALT}",
        *[recipe.release, str(root)],
    ]
    log = cache / "vm-images" / f"build-{recipe.release}{'-cloud' if recipe.cloud else ''}.log"
    log.write_bytes(b"")
    try:
        command = [*vmdisk.contained("--mount-proc"), *argv]
        run(command, timeout=1800, env=environment, log=log)
    except CommandError as error:
        reason = f"the {recipe.release} tree for virtual machines was not built"
        raise LabError(f"{reason}; the log is {log}\n{error}") from None


def _prepare(root: Path, recipe: Recipe, identifier: str) -> None:
    """Make a tree ready to boot from a file system of that UUID, without an identity."""
    files = vmdisk.FILES
    units = root / "usr/lib/systemd/system"
    shutil.copyfile(files / "default-grub", root / "etc/default/grub")
    grub = root / "boot/grub"
    shutil.copytree(root / "usr/lib/grub/i386-pc", grub / "i386-pc", dirs_exist_ok=True)
    (grub / "grub.cfg").write_text(vmdisk.grub_cfg(root, identifier))
    kind = recipe.file_system
    (root / "etc/fstab").write_text(f"UUID={identifier} / {kind} {FILE_SYSTEMS[kind][2]}\n")
    (root / "etc/hostname").write_text("localhost\n")
    unwanted: tuple[str, ...] = UNWANTED_UNITS
    if recipe.cloud:
        (root / "etc/cloud/cloud.cfg.d/90_lab.cfg").write_text(CLOUD_CONFIG)
        vmdisk.in_tree(root, ["systemctl", "enable", "systemd-networkd.service"])
        unwanted = (*rootfs.TIMERS, "e2scrub_reap.service")
    else:
        script = root / "usr/local/lib/lab/first-boot"
        script.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files / "first-boot", script)
        script.chmod(0o755)
        shutil.copyfile(files / "lab-first-boot.service", root / "etc/systemd/system/lab-first-boot.service")
        (root / "etc/network/interfaces").write_text(INTERFACES)
        (root / "etc/ssh/sshd_config.d/lab.conf").write_text(SSHD)
        vmdisk.in_tree(root, ["systemctl", "enable", "lab-first-boot.service"])
    vmdisk.in_tree(root, ["systemctl", "disable", *(unit for unit in unwanted if (units / unit).exists())])
    for path in [path for pattern in FORGOTTEN for path in root.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    # Empty, not missing: the first start makes one, but doesn't count as a factory reset.
    (root / "etc/machine-id").write_text("")
    # Hosts are offline: refreshing the package lists must work, and find nothing new.
    repository = root / "var/cache/lab-repo"
    repository.mkdir(exist_ok=True)
    (repository / "Packages").write_text("\n")
    packages = hashlib.sha256(b"\n").hexdigest()
    (repository / "Release").write_text(f"Suite: lab\nSHA256:\n {packages} 1 Packages\n")
    (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/var/cache/lab-repo ./\n")

"""Bootable Debian disk images, built without starting them: mmdebstrap, ``mke2fs -d`` and ``grub-mkimage``.

Nothing is mounted on this machine and no loop device is needed. A build runs in a mount and process
namespace of its own which ends with it, so that an interrupted one leaves files only; the next build
removes those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import rootfs
from .proc import CommandError, LabError, run
from .state import CACHE, CHECKOUT, tree_digest

FILES = Path(__file__).with_name("vmfiles")
SECTOR = 512
# Where the only partition begins; GRUB's core lies in the gap before it.
PARTITION_START = 1 << 20
# The tree, the image of it and the archives of a large package list, with room to spare.
SPACE_NEEDED_MIB = 6000
# Names the file systems: the same image has the same UUID wherever it is built.
UUID_NAMESPACE = uuid.UUID("3d8a9a0e-6f0b-4c0f-9a3c-8d5b1a0c6e11")

#: What a machine has besides what every host has; the cloud kernel lacks dlm, softdog and many drivers.
PACKAGES = ("linux-image-amd64", "initramfs-tools", "zstd", "grub-pc", "ifupdown")
GRUB_WITHOUT_DISK = "grub-pc grub-pc/install_devices_empty boolean true"
#: Found early in the start by nothing but this list: a generic initramfs is five times as large.
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4")
#: Work of a machine that lives for months; here it only delays the start.
UNWANTED_UNITS = (*rootfs.TIMERS, "e2scrub_reap.service", "man-db.timer", "salt-minion.service")
GRUB_MODULES = ["biosdisk", "part_msdos", "ext2", "normal", "configfile", "search", "search_fs_uuid", "linux", "gzio", "serial", "terminal", "echo", "test", "boot", "minicmd"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What goes into an image.

    Attributes:
        release: Debian's code name, for example ``bookworm``.
        packages: what the formulas install, besides what every machine has.
        size_mib: size of the disk in MiB; only what is used takes space.
    """

    release: str
    packages: tuple[str, ...] = ()
    size_mib: int = 10240

    def digest(self) -> str:
        """Return the name of the image: 16 hex digits over the recipe and the code that follows it."""
        parts = [
            self.release,
            str(self.size_mib),
            tree_digest([Path(__file__), FILES]),
            rootfs.digest(self.release, sorted({*PACKAGES, *self.packages})),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Image:
    """An image in the cache.

    Attributes:
        path: the raw disk; read-only, machines put an overlay on it.
        digest: its name.
        seconds: how long the build took; 0.0 when it was there already.
    """

    path: Path
    digest: str
    seconds: float


def build(
    recipe: Recipe,
    *,
    cache: Path = CACHE,
    say: Say = lambda text: None,
) -> Image:
    """Return the image of a recipe, building it if the cache doesn't have it.

    Args:
        recipe: what goes in.
        cache: the folder that holds the folder of images, ``vm-images``.
        say: gets a line at every step.

    Raises:
        LabError: not root, a tool is missing, the disk is full, or a step failed; says what to do.
    """
    folder = cache / "vm-images"
    digest = recipe.digest()
    final = folder / digest
    if (final / "disk.raw").is_file():
        return Image(final / "disk.raw", digest, 0.0)
    _check_machine(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f".{digest}.lock", digest, say):
        if (final / "disk.raw").is_file():
            return Image(final / "disk.raw", digest, 0.0)
        remove_leftovers(folder, digest, say)
        begun = time.monotonic()
        work = folder / f".building-{digest}"
        work.mkdir()
        try:
            _make_tree(recipe, work, cache, folder / f"build-{recipe.release}.log", say)
            root = work / "root"
            _prepare(root, digest)
            _forget_identity(root)
            say("writing the disk")
            make_disk(root, work / "disk.raw", recipe.size_mib, fs_uuid(digest))
            remove_tree(root)
            seconds = round(time.monotonic() - begun, 1)
            (work / "image.json").write_text(
                json.dumps(asdict(recipe) | {"seconds": seconds}, indent=1) + "\n"
            )
            (work / "disk.raw").chmod(0o444)
            os.sync()
            work.rename(final)
        except OSError as error:
            raise LabError(
                f"the image could not be built: {error.strerror}: {error.filename}"
            ) from error
        finally:
            if work.exists() and (work / "root").exists():
                remove_tree(work / "root")
    say(f"image {digest} built in {seconds:.0f} s")
    return Image(final / "disk.raw", digest, seconds)


def in_tree(
    root: Path, argv: Sequence[str], *, timeout: float = 300, log: Path | None = None
) -> str:
    """Run a program inside a tree with its own ``/proc`` and return its output.

    Every process it starts ends with it, also when this process is killed, and its mounts are private.

    Raises:
        CommandError: it failed or took longer than ``timeout`` seconds.
    """
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
    }
    return run(
        [*_contained(f"--root={root}", "--mount-proc=/proc"), *argv],
        timeout=timeout,
        env=environment,
        log=log,
    ).stdout


def fs_uuid(digest: str) -> str:
    """Return the UUID of the root file system in the image of that name."""
    return str(uuid.uuid5(UUID_NAMESPACE, digest))


def grub_cfg(root: Path, identifier: str) -> str:
    """Return the first grub.cfg for the newest kernel in a tree whose file system will have ``identifier``.

    Raises:
        LabError: there is no kernel, or no initramfs for it.
    """
    versions = sorted(
        path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*")
    )
    if not versions or not (root / f"boot/initrd.img-{versions[-1]}").exists():
        raise LabError(f"there is no kernel with an initramfs in {root}/boot; see the build's log")
    arguments = next(
        line.split('"')[1]
        for line in (FILES / "default-grub").read_text().splitlines()
        if line.startswith("GRUB_CMDLINE_LINUX=")
    )
    text = (FILES / "grub.cfg").read_text()
    for name, value in {
        "UUID": identifier,
        "KERNEL": f"/boot/vmlinuz-{versions[-1]}",
        "INITRD": f"/boot/initrd.img-{versions[-1]}",
        "ARGUMENTS": arguments,
    }.items():
        text = text.replace(f"@{name}@", value)
    return text


def boot_sectors(boot: bytes, core: bytes, disk_bytes: int) -> bytes:
    """Return what lies before the partition: GRUB's first sector with the partition table, then its core.

    Args:
        boot: GRUB's ``boot.img``, which expects the core in the sector after it.
        core: what ``grub-mkimage`` made.
        disk_bytes: size of the whole disk.

    Raises:
        LabError: the core doesn't fit into the gap.
    """
    if len(boot) != SECTOR or len(core) > PARTITION_START - SECTOR:
        raise LabError("GRUB's core image does not fit before the partition")
    first, count = PARTITION_START // SECTOR, (disk_bytes - PARTITION_START) // SECTOR
    # Addresses in cylinders, heads and sectors are long out of use: the maximum says "look at the numbers".
    entry = (
        b"\x80\xfe\xff\xff\x83\xfe\xff\xff"
        + first.to_bytes(4, "little")
        + count.to_bytes(4, "little")
    )
    table = b"\x00\x00\x00\x00\x00\x00" + entry + bytes(48) + b"\x55\xaa"
    return (boot[:440] + table + core).ljust(PARTITION_START, b"\x00")


def make_disk(root: Path, disk: Path, size_mib: int, identifier: str) -> None:
    """Make a bootable raw disk of a tree.

    Args:
        root: the tree, with GRUB's files in ``usr/lib/grub``.
        disk: the file to make.
        size_mib: its size in MiB.
        identifier: the file system's UUID.
    """
    disk_bytes = size_mib << 20
    core_name = "boot/grub/core.img"
    in_tree(
        root,
        [
            "grub-mkimage",
            "-O",
            "i386-pc",
            "-p",
            "(hd0,msdos1)/boot/grub",
            "-o",
            f"/{core_name}",
            *GRUB_MODULES,
        ],
    )
    head = boot_sectors(
        (root / "usr/lib/grub/i386-pc/boot.img").read_bytes(),
        (root / core_name).read_bytes(),
        disk_bytes,
    )
    with disk.open("wb") as file:
        file.write(head)
        file.truncate(disk_bytes)
    # GRUB 2.06 can't read the two features that are switched off. A new file is all zeros: nothing to write.
    run(
        [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-U",
            identifier,
            "-L",
            "root",
            "-m",
            "1",
            "-i",
            "32768",
        ]
        + ["-O", "^metadata_csum_seed,^orphan_file,^resize_inode", "-d", str(root)]
        + [
            "-E",
            f"offset={PARTITION_START},assume_storage_prezeroed=1,root_owner=0:0,hash_seed={identifier}",
        ]
        + [str(disk), f"{(disk_bytes - PARTITION_START) >> 10}k"],
        timeout=600,
    )


def remove_leftovers(folder: Path, digest: str, say: Say = lambda text: None) -> None:
    """Remove what an interrupted build of that image left; the caller holds its lock."""
    for path in [folder / f".building-{digest}", folder / digest]:
        if path.exists():
            say(f"removing a build that was not finished: {path}")
            remove_tree(path)


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


def _contained(*options: str) -> list[str]:
    """Return the words before a program that keep its mounts and processes to itself, even if we are killed."""
    return [
        *["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"],
        *["--pid", "--fork", "--kill-child=KILL", *options],
    ]


def _check_machine(cache: Path) -> None:
    """Say clearly what keeps this machine from building images."""
    if os.geteuid() != 0:
        raise LabError("building an image of a virtual machine needs root")
    for tool, package in {
        "mmdebstrap": "mmdebstrap",
        "mke2fs": "e2fsprogs",
        "unshare": "util-linux",
        "setpriv": "util-linux",
    }.items():
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


def _make_tree(recipe: Recipe, work: Path, cache: Path, log: Path, say: Say) -> None:
    """Make ``work/root``: Debian with a kernel, Salt and the packages, not yet bootable."""
    say(f"installing Debian {recipe.release} with Salt and {len(recipe.packages)} packages")
    archives = cache / "debs" / recipe.release
    archives.mkdir(parents=True, exist_ok=True)
    early = work / "etc/initramfs-tools"
    (early / "conf.d").mkdir(parents=True)
    (early / "conf.d/lab").write_text("MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\n")
    (early / "modules").write_text("".join(f"{name}\n" for name in INITRAMFS_MODULES))
    included = sorted({*rootfs.BASE, *PACKAGES, *recipe.packages})
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {
        "LAB_CHECKOUT": str(CHECKOUT),
        "LAB_DEBS": str(archives),
        "LAB_FILES": str(work / "etc"),
        "LAB_PIP_INDEX": os.environ.get("PIP_INDEX_URL", ""),
    }
    kept = '"$1/var/cache/apt/archives"'
    argv = [
        *["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"],
        f"--include={','.join(included)}",
        *['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"'],
        '--aptopt=APT::Install-Recommends "false"',
        *["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*"],
        *["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*"],
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *["--skip=download/empty", "--skip=essential/unlink", "--skip=cleanup/apt"],
        f'--setup-hook=mkdir -p {kept}/partial && cp -n "$LAB_DEBS"/*.deb {kept}/ || true',
        # There is no disk to put GRUB on yet, and the package would fail for want of one.
        f'--essential-hook=echo {GRUB_WITHOUT_DISK} | chroot "$1" debconf-set-selections',
        # The initramfs is made during the installation, so its settings come before it.
        '--essential-hook=tar -C "$LAB_FILES" -c . | tar -C "$1/etc" -x --no-overwrite-dir',
        f'--customize-hook=cp -n {kept}/*.deb "$LAB_DEBS/"; rm -f {kept}/*.deb',
        f"--customize-hook={CHECKOUT / 'lab/files/install-salt.sh'}",
        *[recipe.release, str(work / "root")],
    ]
    log.write_bytes(b"")
    try:
        run([*_contained("--mount-proc"), *argv], timeout=1800, env=environment, log=log)
    except CommandError as error:
        raise LabError(
            f"the {recipe.release} tree was not built; the log is {log}\n{error}"
        ) from None
    shutil.rmtree(work / "etc")


def _prepare(root: Path, digest: str) -> None:
    """Put the lab's own files into a tree."""
    identifier = fs_uuid(digest)
    script = root / "usr/local/lib/lab/first-boot"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FILES / "first-boot", script)
    script.chmod(0o755)
    shutil.copyfile(
        FILES / "lab-first-boot.service", root / "etc/systemd/system/lab-first-boot.service"
    )
    shutil.copyfile(FILES / "default-grub", root / "etc/default/grub")
    (root / "etc/fstab").write_text(f"UUID={identifier} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/hostname").write_text("localhost\n")
    (root / "etc/network/interfaces").write_text(
        "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n"
    )
    grub = root / "boot/grub"
    grub.mkdir(exist_ok=True)
    shutil.copytree(root / "usr/lib/grub/i386-pc", grub / "i386-pc", dirs_exist_ok=True)
    (grub / "grub.cfg").write_text(grub_cfg(root, identifier))
    # Hosts are offline: refreshing the package lists must work, and find nothing.
    repository = root / "var/cache/lab-repo"
    repository.mkdir(exist_ok=True)
    (repository / "Packages").write_text("")
    (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/var/cache/lab-repo ./\n")
    in_tree(root, ["systemctl", "enable", "lab-first-boot.service"])
    present = [unit for unit in UNWANTED_UNITS if (root / "lib/systemd/system" / unit).exists()]
    in_tree(root, ["systemctl", "disable", *present])


def _forget_identity(root: Path) -> None:
    """Remove everything by which one host could be taken for another, and what only the build needed."""
    (root / "etc/machine-id").write_text("")
    for pattern in [
        "var/lib/dbus/machine-id",
        "etc/ssh/ssh_host_*",
        "etc/salt/minion_id",
        "etc/salt/pki/*/*",
        "var/lib/systemd/random-seed",
        "var/log/*.log",
        "var/log/apt/*",
        "etc/resolv.conf",
        "etc/apt/sources.list.d/*",
        "var/lib/apt/lists/*",
        "var/cache/apt/archives/*.deb",
    ]:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

"""What the demonstration guest boots from when no host gives it a kernel: a CD, and a disk for UEFI firmware.

Both start the kernel and the initramfs of :mod:`lab.guest` and say in the kernel's arguments what they are. The disk
begins with the distribution's signed boot loaders, so that firmware which checks signatures starts it too.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from . import guest
from .proc import run
from .state import CACHE, locked
from .vmdisk import PARTITION_START, SECTOR, contained, in_tree

CD, UEFI_DISK = "lab-boot.iso", "lab-uefi.raw"
PACKAGES = ("isolinux", "syslinux-common", "xorriso", "mtools", "shim-signed", "grub-efi-amd64-signed")
ESP_MIB = 40
ISOLINUX = """default guest
label guest
  kernel /vmlinuz
  append initrd=/initramfs console=ttyS0 medium=cd
"""
GRUB = """linux /vmlinuz console=ttyS0 medium=uefi-disk
initrd /initramfs
boot
"""


def digest() -> str:
    """Return 16 hex digits that change with the recipe of the media or of the guest on them."""
    return hashlib.sha256(Path(__file__).read_bytes() + guest.digest().encode()).hexdigest()[:16]


def build(log: Path) -> Path:
    """Build the media unless they are in the cache.

    Returns:
        The folder that holds ``lab-boot.iso`` and ``lab-uefi.raw``.

    Raises:
        CommandError: the packages can't be had, or a step failed.
    """
    target = CACHE / f"bootmedia-{digest()}"
    if (target / CD).exists():
        return target
    system = guest.build(log)
    with (
        locked("bootmedia", "building what guests boot from", wait=True),
        tempfile.TemporaryDirectory(dir=CACHE, prefix=".bootmedia-") as scratch,
    ):
        if (target / CD).exists():
            return target
        root, result = Path(scratch) / "debian", Path(scratch) / "result"
        result.mkdir()
        fetch = ["mmdebstrap", "--variant=extract", f"--include={','.join(PACKAGES)}"]
        run([*contained("--mount-proc"), *fetch, guest.RELEASE, root], timeout=300, log=log)
        # Unpacked only, so that it lacks what base-files would make.
        (root / "proc").mkdir(exist_ok=True)
        work = root / "build"
        for name, source in (("vmlinuz", guest.KERNEL), ("initramfs", guest.INITRAMFS)):
            for folder in ("cd", "esp"):
                (work / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(system / source, work / folder / name)
        _make_cd(root)
        shutil.copy(work / CD, result / CD)
        _make_uefi_disk(root)
        shutil.copy(work / UEFI_DISK, result / UEFI_DISK)
        for path in result.iterdir():
            path.chmod(0o644)
        shutil.rmtree(target, ignore_errors=True)
        result.rename(target)
    return target


def _make_cd(root: Path) -> None:
    """Make a CD that a BIOS boots, in a tree with the programs and with ``build/cd``."""
    folder = root / "build/cd/isolinux"
    folder.mkdir()
    shutil.copy(root / "usr/lib/ISOLINUX/isolinux.bin", folder)
    shutil.copy(root / "usr/lib/syslinux/modules/bios/ldlinux.c32", folder)
    (folder / "isolinux.cfg").write_text(ISOLINUX)
    boot = ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    argv = ["xorrisofs", "-quiet", "-volid", "LABBOOT", "-rock", *boot, "-boot-info-table"]
    in_tree(root, [*argv, "-output", f"/build/{CD}", "/build/cd"])


def _make_uefi_disk(root: Path) -> None:
    """Make a disk with an EFI system partition, in a tree with the programs and with ``build/esp``."""
    esp = root / "build/esp"
    for folder in ("EFI/BOOT", "EFI/debian"):
        (esp / folder).mkdir(parents=True)
    # Where firmware looks on a disk that it has never seen; shim then starts the loader beside it.
    shutil.copy(root / "usr/lib/shim/shimx64.efi.signed", esp / "EFI/BOOT/BOOTX64.EFI")
    shutil.copy(root / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", esp / "EFI/BOOT/grubx64.efi")
    (esp / "EFI/debian/grub.cfg").write_text(GRUB)
    sectors = (ESP_MIB << 20) // SECTOR
    in_tree(root, ["mformat", "-i", "/build/esp.img", "-C", "-T", str(sectors), "-h", "255", "-s", "63", "-F", "::"])
    names = [f"/build/esp/{path.name}" for path in sorted(esp.iterdir())]
    in_tree(root, ["mcopy", "-s", "-i", "/build/esp.img", *names, "::"])
    # One partition of the type that firmware looks for.
    first = PARTITION_START // SECTOR
    entry = b"\x00\xfe\xff\xff\xef\xfe\xff\xff" + first.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    table = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    with (root / "build" / UEFI_DISK).open("wb") as file:
        file.write(table.ljust(PARTITION_START, b"\x00"))
        with (root / "build/esp.img").open("rb") as part:
            shutil.copyfileobj(part, file)
        file.truncate(PARTITION_START + (ESP_MIB << 20) + PARTITION_START)

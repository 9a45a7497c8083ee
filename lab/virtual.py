"""The virtual machines of a lab: what ties :mod:`lab.vm` and :mod:`lab.vmimage` to a lab's state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import identity, network, vm, vmimage, vmspec
from .hosts import Hosts
from .proc import LabError
from .state import CACHE, Paths
from .ui import Progress


class VirtualHosts:
    """Builds, starts and ends the virtual machines of one lab."""

    def __init__(self, paths: Paths, hosts: Hosts, state: dict[str, Any]) -> None:
        """Take the lab's files, its hosts, and its state (``vm_image`` and ``accelerator`` stand there)."""
        self.paths, self.hosts, self.state = paths, hosts, state

    def names(self) -> list[str]:
        """Return the hosts that are virtual machines."""
        return [host for host, kind in self.hosts.kinds.items() if kind == "vm"]

    def build_image(self, release: str, packages: Sequence[str], progress: Progress) -> bool:
        """Build the disk image unless it is in the cache.

        Returns:
            Whether it had to be built.
        """
        if self.image.is_file():
            return False
        recipe = vmimage.Recipe(release, tuple(sorted(set(packages))))
        if (CACHE / "vm-images" / recipe.digest() / "disk.raw").is_file():
            self.state["vm_image"] = str(CACHE / "vm-images" / recipe.digest() / "disk.raw")
            return False
        with progress.step(f"build the {release} disk image for virtual machines"):
            built = vmimage.build(recipe, say=lambda text: progress.say(f"         {text}"))
        self.state["vm_image"] = str(built.path)
        return True

    @property
    def image(self) -> Path:
        """The disk image that machines are made of."""
        return Path(self.state.get("vm_image", "/nonexistent"))

    def machine(self, host: str) -> vm.Machine:
        """Return a host's machine, with link and power in the caller's hand.

        Raises:
            LabError: the host isn't a virtual machine.
        """
        if self.hosts.kinds.get(host) != "vm":
            raise LabError(f"{host} is not a virtual machine (lab up --kind {host}=vm makes it one)")
        row = self.state["hosts"][host]
        spec = vmspec.MachineSpec(
            lab=self.paths.name,
            name=host,
            image=self.image,
            address=row["address"],
            memory_mib=row["memory_mib"],
            cpus=row["cpus"],
            nics=(vmspec.Nic(network.BRIDGE, network.mac(self.state["index"], row["number"])),),
            disks=self.disks if "hypervisor" in row["roles"] else (),
        )
        return vm.Machine(spec, self.paths.host(host), self.paths.ssh_config, self.state["accelerator"])

    @property
    def disks(self) -> tuple[vmspec.Disk, ...]:
        """The disks that the hypervisors of the lab share, each found by ``/dev/disk/by-id/virtio-<name>``."""
        sizes: dict[str, int] = self.state.get("shared_disks") or {}
        folder = self.paths.root / "shared"
        return tuple(vmspec.Disk(folder / f"{name}.raw", name, shared=True) for name in sizes)

    def make_disks(self) -> None:
        """Make the shared disks that are not there; they are empty."""
        for disk in self.disks:
            vmspec.make_disk(disk.path, self.state["shared_disks"][disk.serial])

    def running(self, host: str) -> bool:
        """Whether the machine is switched on."""
        return self.machine(host).is_running()

    def start(self, host: str) -> None:
        """Make the machine where it is missing, switch it on and wait until it answers ssh."""
        made = self.machine(host)
        made.create(identity.files(self.paths, host, self.hosts.addresses))
        made.start()
        self.hosts.wait_ssh(host, timeout=300, alive=made.is_running)

    def destroy_all(self) -> None:
        """Cut the power of all machines and remove what they left."""
        for host in self.names():
            self.machine(host).destroy()


def check_disks(sizes: Mapping[str, int], containers: Sequence[str]) -> None:
    """Refuse shared disks that can't be.

    Args:
        sizes: size in MiB by name.
        containers: the hypervisors that are no virtual machines.

    Raises:
        LabError: a name or a size is bad, or there are containers.
    """
    if sizes and containers:
        raise LabError(f"shared disks need virtual machines, but these are containers: {', '.join(containers)}")
    for name, size in sizes.items():
        if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", name) or name == "root" or size < 1:
            raise LabError(f"the shared disk {name}={size} must have up to 20 letters and digits, and its size in MiB")

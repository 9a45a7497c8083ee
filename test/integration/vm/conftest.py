"""A lab whose hypervisor is a virtual machine and whose controller is a container, for these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import PLATFORM

from lab import identity, vmspec
from lab.lab import Lab
from lab.ui import Progress
from lab.vm import Machine

NAME = f"{os.environ.get('LAB_NAME', 'test')}-vm"
KEEP = os.environ.get("LAB_KEEP") == "1"
SHARED_MIB = 64


@pytest.fixture(scope="session", name="mixed")
def mixed_lab(loud) -> Iterator[Lab]:
    """A lab of a container (the controller) and a virtual machine (hv1), minions and no more."""
    with loud.disabled():
        lab = Lab(NAME, Progress())
        lab.up(platform=PLATFORM, kinds={"hv1": "vm"}, only=["controller", "hv1"], highstate=False)
    yield lab
    if not KEEP:
        assert lab.down() == [], "the lab left the machine changed"


@pytest.fixture(scope="session", name="hv1")
def virtual_hypervisor(mixed: Lab) -> Machine:
    """The virtual machine host, with link and power in the test's hand."""
    return mixed.virtual.machine("hv1")


@pytest.fixture(scope="session", name="shared")
def shared_disk(mixed: Lab) -> vmspec.Disk:
    """A disk for two machines at a time."""
    path = vmspec.make_disk(mixed.paths.root / "shared.raw", SHARED_MIB)
    return vmspec.Disk(path, "shared", shared=True)


@pytest.fixture(scope="session", name="spare")
def second_machine(mixed: Lab, hv1: Machine, shared: vmspec.Disk) -> Iterator[Machine]:
    """A second virtual machine beside the lab's hosts, on their network and with the shared disk."""
    paths = mixed.paths
    address = f"{hv1.spec.address.rpartition('.')[0]}.200"
    addresses = {**mixed.hosts.addresses, "spare": address}
    spec = replace(
        hv1.spec,
        name="spare",
        address=address,
        nics=(vmspec.Nic(),),
        disks=(shared,),
        memory_mib=768,
        cpus=1,
    )
    identity.make_keys(paths, "spare")
    identity.write_ssh_files(paths, addresses)
    machine = Machine(spec, paths.host("spare"), paths.ssh_config, hv1.accelerator)
    machine.create(identity.files(paths, "spare", addresses))
    machine.start()
    yield machine
    machine.destroy()
    identity.write_ssh_files(paths, mixed.hosts.addresses)

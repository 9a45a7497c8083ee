"""Virtual machines beside a lab's hosts, each with another way to set up interfaces, all minions of the lab's master.

The controller is their router: it has an address of its own for what lies beyond it, so that a wrong gateway is
noticed although the master is in the same network.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from . import identity, packages, salt, vm, vmspec, vmstack
from .hosts import Hosts
from .kitchen import HostSpec
from .lab import Lab, parallel
from .proc import LabError
from .virtual import VirtualHosts

# Hosts of kitchen.yml are numbered from 10; the machine of a test that needs one more is number 200.
FIRST = 100
MEMORY_MIB = 1024
# TEST-NET-1: what answers there is behind the controller for everybody else.
BEYOND = "192.0.2.1"
# More than two emulated machines at a time slow each other down so much that they only fail later.
AT_A_TIME = 2


@dataclass(frozen=True)
class StackHost:
    """One of the machines.

    Attributes:
        name: its host name and minion id.
        stack: one of :data:`lab.vmstack.STACKS`.
        dhcp: whether it asks a DHCP server for its address.
    """

    name: str
    stack: str
    dhcp: bool = False


class StackHosts:
    """The machines of one lab.

    Attributes:
        lab: a lab that is up, with a controller.
        wanted: the machines, in the order of their addresses.
    """

    def __init__(self, lab: Lab, wanted: Sequence[StackHost]) -> None:
        """Take a lab that is up; nothing is made yet."""
        self.lab, self.wanted = lab, tuple(wanted)

    @property
    def gateway(self) -> str:
        """The router of the machines: the controller."""
        return self.lab.hosts.addresses[self.lab.hosts.controller]

    def address(self, name: str) -> str:
        """Return a machine's address."""
        number = FIRST + [one.name for one in self.wanted].index(name)
        return f"{self.gateway.rpartition('.')[0]}.{number}"

    @cached_property
    def hosts(self) -> Hosts:
        """The lab's hosts and the machines."""
        base = self.lab.hosts
        return Hosts(
            base.paths,
            {**base.specs, **{one.name: HostSpec(one.name, ("hypervisor",), MEMORY_MIB, 1) for one in self.wanted}},
            {**base.addresses, **{one.name: self.address(one.name) for one in self.wanted}},
            {**base.kinds, **dict.fromkeys((one.name for one in self.wanted), "vm")},
        )

    @cached_property
    def machines(self) -> dict[str, vm.Machine]:
        """The machines by name, with link and power in the caller's hand."""
        paths, state = self.lab.paths, self.lab.state
        release = self.lab.kitchen.platforms[state["platform"]].release
        virtual = VirtualHosts(paths, self.lab.hosts, state)
        virtual.build_image(release, packages.of_platform(state["platform"], "vm"), self.lab.progress)
        base = vmspec.MachineSpec(
            lab=paths.name,
            name="",
            image=virtual.image,
            address="",
            gateway=self.gateway,
            memory_mib=MEMORY_MIB,
            cpus=1,
        )
        made = {}
        for one in self.wanted:
            spec = replace(base, name=one.name, address=self.address(one.name), stack=one.stack, dhcp=one.dhcp)
            made[one.name] = vm.Machine(spec, paths.host(one.name), paths.ssh_config, state["accelerator"])
        return made

    def prepare(self) -> None:
        """Make what the machines share: image, ssh keys, pillar, and the address beyond the controller."""
        for one in self.wanted:
            identity.make_keys(self.lab.paths, one.name)
        identity.write_ssh_files(self.lab.paths, self.hosts.addresses)
        salt.merge_pillar(self.hosts, salt.pillar_files(self.hosts))
        self.lab.run(self.lab.hosts.controller, ["ip", "address", "replace", f"{BEYOND}/32", "dev", "lo"])
        with self.lab.progress.step("have a disk image for virtual machines"):
            _ = self.machines

    def with_controller(self, name: str) -> Hosts:
        """Return the controller and one machine as the hosts of a lab."""
        hosts = self.hosts
        chosen = (hosts.controller, name)
        return replace(hosts, specs={host: hosts.specs[host] for host in chosen})

    def start(self, name: str, *, minion: bool = True) -> vm.Machine:
        """Start a machine and wait until it answers.

        Args:
            name: the machine.
            minion: make it a minion of the lab's master, too.

        Raises:
            LabError: it did not start, or did not become a minion.
        """
        machine = self.machines[name]
        machine.create(identity.files(self.lab.paths, name, self.hosts.addresses))
        machine.start()
        machine.wait_ssh(400)
        if minion:
            both = self.with_controller(name)
            if not salt.subscribed(both, name):
                salt.bootstrap_minion(both, name, salt.master_finger(both))
                salt.accept_keys(both)
            deadline = time.monotonic() + 300
            while not salt.subscribed(both, name) and time.monotonic() < deadline:
                time.sleep(1)
            # A highstate would do that by itself; single states do not. One question that waits, rather than many
            # short ones, which an emulated machine answers too late each time.
            argv = ["salt", name, "--timeout=240", "--out=json", "--static", "saltutil.sync_all"]
            said = both.run(both.controller, argv, check=False, timeout=600).stdout
            if '"states"' not in said:
                raise LabError(f"the minion {name} does not answer its master: {said.strip()[-300:]}")
        return machine

    def restart(self, name: str) -> float:
        """Cut a machine's power, switch it on and wait until it answers ssh; return the seconds."""
        machine = self.machines[name]
        machine.kill()
        machine.start()
        return machine.wait_ssh(300)

    def each(self, do: Callable[[str], Any], at_once: int = AT_A_TIME) -> dict[str, Any]:
        """Do something with each machine, with a few of them at a time.

        Args:
            do: gets a machine's name.
            at_once: how many machines at a time.

        Returns:
            What it returned for each, by name; an exception is the result where it raised one.
        """

        def safely(name: str) -> Any:
            try:
                return do(name)
            except Exception as error:  # noqa: BLE001 - the others go on, and the caller looks
                return error

        names = [one.name for one in self.wanted]
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            return dict(zip(names, pool.map(safely, names), strict=True))

    def down(self) -> None:
        """Cut the power of all machines and remove what they left."""
        parallel({name: machine.destroy for name, machine in self.machines.items()})
        identity.write_ssh_files(self.lab.paths, self.lab.hosts.addresses)


def all_stacks() -> list[StackHost]:
    """Return one machine for each stack, named like it."""
    return [StackHost(stack, stack) for stack in vmstack.STACKS]

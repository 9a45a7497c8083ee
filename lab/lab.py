"""One lab from nothing to running hypervisors, and back to nothing. Every step can be interrupted and done again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from . import container, guest, identity, machine, network, packages, salt, state, virtual, vmspec, web
from . import kitchen as kitchen_file
from .hosts import Hosts
from .kitchen import HostSpec, Kitchen
from .proc import CommandError, LabError
from .state import CACHE, CHECKOUT, Paths
from .ui import Progress
from .virtual import VirtualHosts

DEMO = "demo"
# The machine itself is number 1 of each network; hosts follow in the order of kitchen.yml.
FIRST_HOST = 10


class Lab:
    """A lab by name.

    Attributes:
        paths: its files.
        progress: where steps are shown.
        state: what is known about it; ``{}`` when it doesn't exist.
    """

    def __init__(self, name: str, progress: Progress | None = None, *, damaged: bool = False) -> None:
        """Load what is known about a lab.

        Args:
            name: the lab's name.
            progress: where steps are shown; nowhere when None.
            damaged: take a state that can't be read for an empty one, to remove what is left of the lab.

        Raises:
            LabError: the name or its state file is bad.
        """
        self.paths = Paths(state.lab_name(name))
        self.progress = progress or Progress(quiet=True)
        try:
            self.state: dict[str, Any] = state.load(self.paths)
        except LabError:
            if not damaged:
                raise
            self.state = {}
        self.kitchen: Kitchen = kitchen_file.load(CHECKOUT / "kitchen.yml")

    # --- what it is ---------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether anything of the lab has been built."""
        return bool(self.state)

    @property
    def hosts(self) -> Hosts:
        """The lab's hosts.

        Raises:
            LabError: there is no such lab.
        """
        if not self.exists:
            others = ", ".join(state.names()) or "none"
            name = self.paths.name
            raise LabError(f"there is no lab '{name}' (labs here: {others}); make it with: lab up --name {name}")
        rows: Mapping[str, Mapping[str, Any]] = self.state["hosts"]
        return Hosts(
            self.paths,
            {name: HostSpec(name, tuple(row["roles"]), row["memory_mib"], row["cpus"]) for name, row in rows.items()},
            {name: str(row["address"]) for name, row in rows.items()},
            {name: str(row["kind"]) for name, row in rows.items()},
        )

    @property
    def virtual(self) -> VirtualHosts:
        """The lab's virtual machines."""
        return VirtualHosts(self.paths, self.hosts, self.state)

    @property
    def users(self) -> dict[str, dict[str, str]]:
        """Who may log in at the lab's page; nobody where it is not served."""
        return dict(self.state.get("users") or {})

    def run(self, host: str, argv: list[str], **options: Any) -> Any:
        """Run a command on a host; see :meth:`lab.hosts.Hosts.run`."""
        return self.hosts.run(host, argv, **options)

    def _note(self, text: str) -> None:
        """Show a remark below a step."""
        self.progress.say(f"         {text}")

    def save(self, **values: Any) -> None:
        """Keep values durably."""
        self.state.update(values)
        state.save(self.paths, self.state)

    # --- up -----------------------------------------------------------------------------------------

    def up(  # noqa: PLR0913 - the options of the command
        self,
        *,
        platform: str = "debian-12",
        kinds: Mapping[str, str] | None = None,
        kind: str | None = None,
        only: list[str] | None = None,
        highstate: bool = True,
        demo: bool = True,
        minions: bool = True,
        page: bool = False,
        shared_disks: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Bring the lab to where every host runs and has its highstate; what is done already isn't done again.

        Args:
            platform: a platform of ``kitchen.yml``.
            kinds: hosts that are of another kind than ``kind``.
            kind: ``container`` or ``vm``; None for what the lab has, or containers when it is made.
            only: the hosts wanted; when None all but the spare ones.
            highstate: run ``salt '*' state.highstate``.
            demo: boot the demonstration guest on the first hypervisor (needs ``highstate``).
            minions: make the hosts minions of the controller; without it they merely run.
            page: let the controller serve the page, to users of this lab alone. A virtual machine does without: its
                image has no nginx.
            shared_disks: disks that hypervisors share, size in MiB by name; for a lab that is made now, whose
                hypervisors are virtual machines. Their image has what nodes of a cluster need.

        Returns:
            What :meth:`status` returns, with ``did`` (whether anything had to be done) and ``times``.

        Raises:
            LabError: something is missing or failed; the message says what to do.
        """
        machine.require_root()
        missing = machine.missing_programs()
        if missing:
            listed = ", ".join(sorted(missing))
            raise LabError(f"not installed: {listed}; install all that the lab needs with: .venv/bin/lab deps")
        with state.locked(f"lab-{self.paths.name}", "lab up"):
            self.state = state.load(self.paths)
            if not self.exists:
                self._define(platform, kind or "container", kinds or {}, only, shared_disks or {})
            self._same(platform, only, kind, kinds or {})
            if page and not self.users and self.hosts.kind(self.hosts.controller) == "container":
                # Passwords are made once: the pillar stays as it is, and so does what was printed.
                self.save(users=web.make_users(), sources=None)
            done = [self._network(), self._images(), self._hosts()]
            if minions:
                done.append(self._salt())
            if highstate and minions:
                done.append(self._highstate())
                if demo and self.hosts.hypervisors:
                    done.append(self._demo())
            self.save(checkout=str(CHECKOUT))
        return self.status() | {"did": any(done), "times": self.progress.times}

    def _chosen(self, platform: str, kinds: Mapping[str, str], only: list[str] | None) -> list[str]:
        """Return the names of the hosts that are wanted, or say what ``kitchen.yml`` has instead."""
        if platform not in self.kitchen.platforms:
            raise LabError(f"there is no platform '{platform}'; kitchen.yml has: {', '.join(self.kitchen.platforms)}")
        chosen = only or [name for name, spec in self.kitchen.hosts.items() if not spec.spare]
        for host in chosen:
            if host not in self.kitchen.hosts:
                raise LabError(f"there is no host '{host}'; kitchen.yml has: {', '.join(self.kitchen.hosts)}")
        for host in kinds:
            if host not in chosen:
                raise LabError(f"--kind {host}={kinds[host]}: {host} is not among the hosts: {', '.join(chosen)}")
        if not any("controller" in self.kitchen.hosts[host].roles for host in chosen):
            raise LabError("a lab needs its controller: name it among --hosts")
        return chosen

    def _define(
        self,
        platform: str,
        kind: str,
        kinds: Mapping[str, str],
        only: list[str] | None,
        shared_disks: Mapping[str, int],
    ) -> None:
        """Decide on everything that stays the same for the lab's life and write it down before anything is made."""
        chosen = self._chosen(platform, kinds, only)
        everything = {host: kinds.get(host, kind) for host in chosen}
        hypervisors = [host for host in chosen if "hypervisor" in self.kitchen.hosts[host].roles]
        virtual.check_disks(shared_disks, [host for host in hypervisors if everything[host] != "vm"])
        if "container" in everything.values():
            container.capable()
        before = machine.snapshot()
        accelerator = vmspec.accelerator(self._note if "vm" in everything.values() else vmspec.silent)
        with state.locked("networks", "choosing a network", wait=True):
            taken = set()
            for name in state.names():
                # A damaged lab, or one of another version, still has its route, which is looked at too.
                with contextlib.suppress(LabError):
                    taken.add(state.load(Paths(name)).get("index", 0))
            index = network.free_index(taken)
            rows = {}
            for number, (name, spec) in enumerate(self.kitchen.hosts.items(), FIRST_HOST):
                if name in chosen:
                    rows[name] = {
                        "roles": list(spec.roles), "memory_mib": spec.memory_mib, "cpus": spec.cpus,
                        "kind": everything[name], "number": number, "address": network.address(index, number),
                    }  # fmt: skip
            self.paths.logs.mkdir(parents=True, exist_ok=True)
            self.paths.root.chmod(0o700)
            made = int(time.time())
            self.save(index=index, platform=platform, hosts=rows, before=before, accelerator=accelerator, made=made)
            self.save(shared_disks=dict(shared_disks))

    def _same(self, platform: str, only: list[str] | None, kind: str | None, kinds: Mapping[str, str]) -> None:
        """Refuse to turn a running lab into another one."""
        asked = {**(dict.fromkeys(self.state["hosts"], kind) if kind else {}), **kinds}
        for host, wanted in asked.items():
            has = self.hosts.kinds.get(host, "not there")
            if has != wanted:
                raise LabError(
                    f"in lab '{self.paths.name}' {host} is {has}, not {wanted}, and that can't change; "
                    f"remove it first (lab down --name {self.paths.name}) or choose another --name"
                )
        if platform != self.state["platform"]:
            raise LabError(
                f"lab '{self.paths.name}' runs {self.state['platform']}, not {platform}; "
                f"remove it first (lab down --name {self.paths.name}) or choose another --name"
            )
        if only and sorted(only) != sorted(self.state["hosts"]):
            raise LabError(
                f"lab '{self.paths.name}' has the hosts {', '.join(self.state['hosts'])}, which can't change; "
                f"remove it first (lab down --name {self.paths.name}) or choose another --name"
            )

    def _network(self) -> bool:
        """Make the layer-2 network and the hosts' ssh keys."""
        index = self.state["index"]
        ready = network.switch(self.paths.name) in network.namespaces() and self.paths.ssh_config.exists()
        network.create(self.paths.name, index)
        if not ready:
            for host in self.hosts.specs:
                identity.make_keys(self.paths, host)
            identity.write_ssh_files(self.paths, self.hosts.addresses)
        return not ready

    def _images(self) -> bool:
        """Build what isn't in the cache."""
        release = self.kitchen.platforms[self.state["platform"]].release
        platform, did = self.state["platform"], False
        if "container" in self.hosts.kinds.values() and not container.image_exists(self.state.get("image", "none")):
            at_hand = packages.at_hand(platform)
            name = container.image(release, at_hand)
            if not container.image_exists(name):
                did = True
                with self.progress.step(f"build the {release} image for container hosts"):
                    container.build_image(release, at_hand, self.paths.logs / "image.log")
            self.save(image=name)
        if "vm" in self.hosts.kinds.values():
            of_cluster = packages.of_cluster(platform) if self.state.get("shared_disks") else None
            wanted = of_cluster or packages.of_platform(platform, "vm")
            did |= self.virtual.build_image(release, wanted, self.progress)
            self.save()
        if not (CACHE / f"guest-{guest.digest()}").exists():
            did = True
            with self.progress.step("build the demonstration guest"):
                guest.build(self.paths.logs / "guest.log")
        return did

    def _hosts(self) -> bool:
        """Create and start what doesn't run, all hosts at once."""
        existing = container.existing(self.paths.name) if "container" in self.hosts.kinds.values() else {}
        wanted: dict[str, Callable[[], None]] = {}
        for host, kind in self.hosts.kinds.items():
            if kind == "vm":
                if not self.virtual.running(host):
                    wanted[host] = partial(self.virtual.start, host)
            elif existing.get(host) != "running":
                wanted[host] = partial(self._start_container, host, host in existing)
        if wanted:
            self.virtual.make_disks()
            kinds = sorted({self.hosts.kind(host) for host in wanted})
            with self.progress.step(f"start {', '.join(wanted)} ({' and '.join(kinds)})"):
                parallel(wanted)
        return bool(wanted)

    def _start_container(self, host: str, there: bool) -> None:
        """Start one container host and wait until it answers ssh."""
        row = self.state["hosts"][host]
        namespace = network.attach_container(self.paths.name, host, self.state["index"], row["number"])
        if not there:
            container.create(self.paths.name, host, self.state["image"], namespace)
        # Also when it is there: an interruption may have come between its making and this.
        kvm = self.state["accelerator"] == "kvm"
        own = identity.archive(identity.files(self.paths, host, self.hosts.addresses, kvm=kvm))
        container.give_identity(self.paths.name, host, own)
        container.start(self.paths.name, host)
        container.wait_booted(self.paths.name, host)
        self.hosts.wait_ssh(host, timeout=20)

    def _salt(self) -> bool:
        """Make every host a minion, the controller the master; bring the checkout's state to the master."""
        hosts, digest = self.hosts, salt.sources_digest()
        did = False
        if self.state.get("sources") != digest:
            did = True
            with self.progress.step("bring formulas and pillar to the master"):
                salt.sync(hosts, self.users)
                if self.state.get("salt"):
                    salt.renew_pki(hosts)
                self.save(sources=digest, highstate=None)
        if not self.state.get("salt"):
            did = True
            with self.progress.step("bootstrap master and minions, accept their keys"):
                salt.bootstrap_master(hosts)
                finger = salt.master_finger(hosts)
                others = [host for host in hosts.specs if host != hosts.controller]
                parallel({host: partial(salt.bootstrap_minion, hosts, host, finger) for host in others})
                salt.accept_keys(hosts)
                self.save(salt=True)
        if did or not salt.answering(hosts):
            did = True
            with self.progress.step("wait for every minion to answer"):
                salt.wait_answering(hosts, say=self._note)
        return did

    def _highstate(self) -> bool:
        """Run the highstate unless the last one was green and nothing has changed since."""
        if self.state.get("highstate"):
            return False
        if self.users:
            # A change of who may log in restarts the master once the run has ended, others' or not.
            with self.progress.step("the controller's highstate, and the restart of its master"):
                salt.check_green(salt.highstate(self.hosts, [self.hosts.controller]))
                web.settled(self.hosts)
                salt.wait_answering(self.hosts)
                self.paths.web_ca.write_text(self.hosts.run(self.hosts.controller, ["cat", web.CA]).stdout)
        with self.progress.step("salt '*' state.highstate"):
            figures = salt.check_green(salt.highstate(self.hosts))
            if self.users:
                web.minions_settled(self.hosts)
                salt.wait_answering(self.hosts)
        for host, row in figures.items():
            self.progress.say(f"         {host}: {row['states']} states, {len(row['changed'])} changed")
        self.save(highstate=figures)
        return True

    def _demo(self) -> bool:
        """Boot the demonstration guest on the first hypervisor unless it runs on one."""
        running = self.guests()
        if any(DEMO in names for names in running.values()):
            return False
        first = self.hosts.hypervisors[0]
        with self.progress.step(f"boot the guest '{DEMO}' on {first}"):
            self.push_guest()
            self.hosts.run(first, ["virsh", "undefine", DEMO], check=False)
            self.hosts.run(first, guest.install_argv(DEMO), timeout=120)
            self.wait_console(first, DEMO)
        return True

    # --- guests ---------------------------------------------------------------------------------------

    def push_guest(self) -> None:
        """Put the guest's kernel and initramfs on every hypervisor."""
        folder = guest.build(self.paths.logs / "guest.log")
        files = salt.pack(sorted(folder.iterdir()), folder)
        for host in self.hosts.hypervisors:
            self.hosts.run(host, ["tar", "-x", "-C", guest.FOLDER, "--no-overwrite-dir"], stdin=files)

    def guests(self) -> dict[str, list[str]]:
        """Return the names of running guests by hypervisor; a host that doesn't answer has none."""
        found = {}
        for host in self.hosts.hypervisors:
            with contextlib.suppress(CommandError):
                argv = ["virsh", "--connect", "qemu:///system", "list", "--name"]
                done = self.hosts.run(host, argv, check=False, timeout=30)
                found[host] = done.stdout.split() if done.returncode == 0 else []
        return found

    def console(self, host: str, name: str) -> str:
        """Return what a guest has printed on its serial console on this host."""
        return str(self.hosts.run(host, ["cat", f"/var/log/libvirt/qemu/{name}-serial.log"], check=False).stdout)

    def wait_console(self, host: str, name: str, text: str = "guest second ", timeout: float = 60) -> str:
        """Wait until a guest's serial console on a host shows ``text``, and return all of it.

        Raises:
            LabError: it doesn't within ``timeout`` seconds.
        """
        printed, deadline = "", time.monotonic() + timeout
        while time.monotonic() < deadline:
            printed = self.console(host, name)
            if text in printed:
                return printed
            time.sleep(0.5)
        last = printed[-500:].strip() or "nothing"
        raise LabError(f"the guest '{name}' on {host} has not printed '{text}' within {timeout:.0f} s, but:\n{last}")

    # --- status and down --------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what runs: hosts with kind, address, roles and whether they run; guests by hypervisor."""
        hosts = self.hosts
        existing = container.existing(self.paths.name) if "container" in hosts.kinds.values() else {}
        rows = {
            host: {
                "address": hosts.addresses[host],
                "kind": hosts.kind(host),
                "roles": list(spec.roles),
                "running": self.virtual.running(host) if hosts.kind(host) == "vm" else existing.get(host) == "running",
            }
            for host, spec in hosts.specs.items()
        }
        up = all(row["running"] for row in rows.values())
        return {
            "name": self.paths.name,
            "platform": self.state["platform"],
            "network": str(network.subnet(self.state["index"])),
            "hosts": rows,
            "guests": self.guests() if up else {},
            "ssh_config": str(self.paths.ssh_config),
            "checkout": self.state.get("checkout", ""),
            "page": self._page(),
            "up": up,
        }

    def _page(self) -> dict[str, Any]:
        """Return where the page is, what a browser has to believe, and who may log in; empty where there is none."""
        if not self.users or not self.paths.web_ca.exists():
            return {}
        users = {name: user["password"] for name, user in self.users.items()}
        return {"address": web.address(self.hosts), "ca": str(self.paths.web_ca), "users": users}

    def down(self) -> list[str]:
        """Stop the lab and remove everything of it, also what an interrupted or damaged one has left.

        Returns:
            How the machine differs from before the lab; empty when it is as it was.
        """
        machine.require_root()
        with state.locked(f"lab-{self.paths.name}", "lab down"):
            if self.state.get("hosts"):
                with self.progress.step("stop the hosts"):
                    self.virtual.destroy_all()
            if shutil.which("podman"):
                container.remove(self.paths.name)
            for process in processes_in(network.switch(self.paths.name)):
                # It may be on its way out by itself.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if shutil.which("ip"):
                network.destroy(self.paths.name, self.state.get("index"))
            before, index = self.state.get("before"), self.state.get("index")
            if self.paths.root.exists():
                shutil.rmtree(self.paths.root)
            self.state = {}
            # What watches over a container ends a moment after it.
            deadline = time.monotonic() + 5
            while (left := leftovers(self.paths, index)) and time.monotonic() < deadline:
                time.sleep(0.2)
            if before:
                machine.tidy(before)
                left += machine.differences(before, machine.snapshot(), shared=bool(state.names()))
            return left


def leftovers(paths: Paths, index: int | None) -> list[str]:
    """Return what is still there of a lab that was removed; a line each."""
    found = [f"container: {host}" for host in (container.existing(paths.name) if shutil.which("podman") else {})]
    own = network.switch(paths.name)
    found += [f"namespace: {name}" for name in network.namespaces() if name == own or name.startswith(f"{own}.")]
    if index is not None and any(link["ifname"] == network.uplink(index) for link in network.ip_json("link", "show")):
        found.append(f"link: {network.uplink(index)}")
    marks = (f"{paths.root}/".encode(), f"{container.container_name(paths.name, '')}".encode())
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(bytes(1), b" ")
            if int(entry.name) != os.getpid() and any(mark in command for mark in marks):
                found.append(f"process: {entry.name} {command.decode(errors='replace')[:100]}")
    return found


def processes_in(namespace: str) -> list[int]:
    """Return the ids of processes in a network namespace and in those of its hosts (``<namespace>.…``)."""
    # A lab's name has no dot, so these are its own alone.
    files = [*network.NETNS.glob(namespace), *network.NETNS.glob(f"{namespace}.*")]
    wanted = {path.stat().st_ino for path in files}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino in wanted:
                    found.append(int(entry.name))
    return found


def parallel(jobs: Mapping[str, Callable[[], None]]) -> None:
    """Do things at once and wait for all of them.

    Args:
        jobs: what to do, by the name that stands in an error.

    Raises:
        LabError: one or more failed; the message has each with its name.
    """
    failed = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(jobs))) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        for name, future in futures.items():
            try:
                future.result()
            except LabError as error:
                failed.append(f"{name}: {error}")
    if failed:
        raise LabError("\n".join(failed))

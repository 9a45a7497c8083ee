"""A virtual machine host that has had its highstate, frozen: every fault begins at the same moment of its life."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import identity, packages, vm, vmimage, vmspec
from lab import salt as lab_salt
from lab.hosts import Hosts
from lab.kitchen import HostSpec
from lab.lab import Lab
from lab.proc import LabError, run
from lab.state import CHECKOUT, write_atomic
from lab.ui import Progress

from . import on_host

SALT_PYTHON = "/opt/saltstack/salt/bin/python"
SCRIPT = Path(on_host.__file__)
NUMBERS = {"ext4": 201, "xfs": 202}
MEMORY_MIB, CPUS = 1024, 2
STATES, PILLAR = "/srv/formula", "/srv/pillar"
# Nothing is written back because of its age, neither data nor XFS' log; COMMIT_S is that of ext4's journal.
LAZY = (
    "vm.dirty_writeback_centisecs=0", "vm.dirty_expire_centisecs=360000", "-e", "fs.xfs.xfssyncd_centisecs=720000",
)  # fmt: skip
COMMIT_S = 3600
# Prints the digests of small files on the console early in each boot, long before ssh answers.
UNIT, END = "power-cut-digests.service", "power-cut-digests-end"
DIGESTS = f"""[Unit]
Description=Digests of files after a power cut
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
Type=oneshot
ExecStart=find /boot /etc /var/lib/libvirt -xdev -type f -size -2048 -exec sha256sum {{}} +
ExecStart=echo {END}
StandardOutput=tty
TTYPath=/dev/ttyS0

[Install]
WantedBy=sysinit.target
"""
PRINTED = re.compile(r"^([0-9a-f]{64})  (/.*?)\r*$", re.MULTILINE)
COMMAND_LINE = re.compile(r"\] Command line: (.*)$", re.MULTILINE)
# A host without a master, as docs/operations.rst says.
MASTERLESS = {
    "file_client": "local",
    "file_roots": {"base": ["/srv/salt", STATES]},
    "pillar_roots": {"base": [PILLAR]},
    "module_dirs": [STATES],
    "autoload_dynamic_modules": False,
}


class FrozenHost:
    """One host of a lab, with a root of one file system.

    Attributes:
        name: of the host, the same as its file system.
        machine: it, with the power in the caller's hand.
        seconds: what the last steps took, by their names.
        flushes: the ids of the states that write everything to disk.
    """

    def __init__(self, lab: Lab, file_system: str, platform: str, progress: Progress) -> None:
        """Describe it; nothing is built or started yet."""
        self.name, self.progress = file_system, progress
        release = lab.kitchen.platforms[platform].release
        self.recipe = vmimage.Recipe(release, tuple(packages.of_platform(platform)), file_system=file_system)
        self.paths = lab.paths
        controller = lab.hosts.addresses[lab.hosts.controller]
        self.address = f"{controller.rpartition('.')[0]}.{NUMBERS[file_system]}"
        self.folder = lab.paths.host(file_system)
        self.lab = lab
        self.seconds: dict[str, float] = {}
        self.flushes: list[str] = []
        self._machine: vm.Machine | None = None

    @property
    def machine(self) -> vm.Machine:
        """The virtual machine, once it is there."""
        if self._machine is None:
            raise LabError(f"{self.name} is not prepared")
        return self._machine

    @property
    def hosts(self) -> Hosts:
        """The way to it by ssh."""
        spec = HostSpec(self.name, ("hypervisor",), MEMORY_MIB, CPUS)
        return Hosts(self.paths, {self.name: spec}, {self.name: self.address}, {self.name: "vm"})

    @property
    def memory(self) -> Path:
        """The file that holds its frozen memory."""
        return self.folder / "frozen.memory"

    @property
    def disk(self) -> Path:
        """The disk as it was when it was frozen."""
        return self.folder / "frozen.qcow2"

    @property
    def about(self) -> Path:
        """The file that says what it was when it was frozen."""
        return self.folder / "frozen.json"

    def prepare(self, pillar: Mapping[str, Any]) -> None:
        """Build, boot, run the first highstate and freeze, unless it is done already.

        Args:
            pillar: of the first highstate.

        Raises:
            LabError: a step failed.
        """
        with self.progress.step(f"the image with {self.name}"):
            image = vmimage.build(self.recipe, say=self._say)
        spec = vmspec.MachineSpec(
            lab=self.paths.name, name=self.name, image=image.path, address=self.address,
            memory_mib=MEMORY_MIB, cpus=CPUS,
        )  # fmt: skip
        everybody = {**self.lab.hosts.addresses, **{one: self._address(one) for one in NUMBERS}}
        for one in NUMBERS:
            identity.make_keys(self.paths, one)
        identity.write_ssh_files(self.paths, everybody)
        accelerator = self.lab.state["accelerator"]
        self._machine = vm.Machine(spec, self.folder, self.paths.ssh_config, accelerator)
        self._machine.kill()
        # Frozen with these formulas and this image, it need not be made again.
        about = {"sources": lab_salt.sources_digest(), "image": image.digest}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(self.about.read_text())
            if {**kept, "flushes": None} == {**about, "flushes": None} and self.disk.exists() and self.memory.exists():
                self.flushes = kept["flushes"]
                return
        for path in (self.about, self.disk, self.memory):
            path.unlink(missing_ok=True)
        (self.folder / "disk.qcow2").unlink(missing_ok=True)
        self._machine.create(identity.files(self.paths, self.name, everybody))
        with self.progress.step(f"boot {self.name}"):
            self._machine.start()
            self._machine.wait_ssh(600, self._say)
        with self.progress.step(f"first highstate of {self.name}"):
            self._bring()
            self.give(pillar)
            first = self.apply([])
            self.flushes = first["flushes"]
            self._say(f"{first['states']} states in {first['seconds']} s, of which {len(self.flushes)} flush")
        with self.progress.step(f"freeze {self.name}"):
            self.machine.ssh(["sync"])
            self.machine.freeze(self.memory)
            (self.folder / "disk.qcow2").rename(self.disk)
            write_atomic(self.about, json.dumps({**about, "flushes": self.flushes}) + "\n")

    def thaw(self) -> None:
        """Let it go on from where it was frozen, whatever has become of it since."""
        begun = time.monotonic()
        self.machine.kill()
        overlay = self.folder / "disk.qcow2"
        overlay.unlink(missing_ok=True)
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.disk), str(overlay)])
        thawed = vm.Machine(
            replace(self.machine.spec, frozen=self.memory), self.folder, self.paths.ssh_config, self.machine.accelerator
        )
        thawed.start()
        thawed.wait_ssh(120, self._say)
        # Its clock stood still.
        thawed.ssh(["date", "--utc", "--set", f"@{time.time():.3f}"])
        # An emulated highstate lasts longer than the kernel leaves data unwritten, a real one does not. So the
        # kernel writes nothing by the clock: what nobody flushes is lost.
        thawed.ssh(["sysctl", "-q", *LAZY])
        if self.name == "ext4":
            thawed.ssh(["mount", "-o", f"remount,commit={COMMIT_S}", "/"])
        self.seconds["thaw"] = time.monotonic() - begun

    def boot(self, files: Mapping[str, str], *, whole: bool, timeout: float = 600) -> dict[str, str]:
        """Switch it on after a power cut and look at files.

        Args:
            files: digests by path.
            whole: wait until it answers ssh; otherwise that is waited for only if something seems to be lost.
            timeout: seconds to wait for the digests that it prints.

        Returns:
            What is empty, missing or other.

        Raises:
            LabError: it does not start.
        """
        begun = time.monotonic()
        self.machine.start()
        printed: dict[str, str] = {}
        while not whole:
            time.sleep(0.5)
            text = self.machine.console_log.read_bytes().decode("utf-8", "replace")
            if END in text:
                printed = {path: digest for digest, path in PRINTED.findall(text)}
                break
            if not self.machine.is_running() or time.monotonic() - begun > timeout:
                raise LabError(f"{self.name} does not start; its console:\n{self.machine.console_tail()}")
        lost: dict[str, str] = {}
        # A line may be torn by another on the same console, so that no loss is believed to the console alone.
        if not printed.items() >= files.items():
            self.machine.wait_ssh(timeout, self._say)
            lost = self.check(files)
        self.seconds["boot"] = time.monotonic() - begun
        return lost

    def command_line(self) -> list[str]:
        """Return the words with which the boot loader started its kernel."""
        text = self.machine.console_log.read_bytes().decode("utf-8", "replace")
        found = COMMAND_LINE.search(text)
        return found[1].split() if found else []

    def give(self, pillar: Mapping[str, Any]) -> None:
        """Replace its pillar."""
        # JSON is YAML too.
        files = {"top.sls": json.dumps({"base": {"*": ["host"]}}), "host.sls": json.dumps(pillar)}
        self.hosts.unpack(self.name, {f"{PILLAR}/{name}": (0o600, text.encode()) for name, text in files.items()})

    def apply(
        self,
        folders: Sequence[str],
        remove: Sequence[str] = (),
        exclude: Sequence[str] = (),
        cut_after: float | None = None,
    ) -> dict[str, Any]:
        """Run its highstate; cut its power if that is wanted.

        Args:
            folders: where changed files are looked for.
            remove: files to remove before.
            exclude: ids of states to leave out.
            cut_after: seconds after the success at which the power is cut; None not to.

        Returns:
            What :func:`on_host.apply` returned, with `cut` (seconds from the success to the cut).

        Raises:
            LabError: the highstate failed.
        """
        request = {"apply": {"folders": list(folders), "remove": list(remove), "exclude": list(exclude)}}
        argv = [*self.hosts.ssh_argv(self.name), "--", *self._words(request)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, **pipes) as child:
            green, last = None, ""
            for line in child.stdout or ():
                if line.strip() == on_host.GREEN:
                    green = time.monotonic()
                else:
                    last = line
            if green is None or not last:
                raise LabError(f"the highstate of {self.name} failed: {last[-2000:]}")
            result: dict[str, Any] = json.loads(last)
            if cut_after is not None:
                time.sleep(max(0.0, green + cut_after - time.monotonic()))
                self.machine.kill()
                result["cut"] = round(time.monotonic() - green, 2)
        return result

    def check(self, files: Mapping[str, str]) -> dict[str, str]:
        """Compare files with their digests; return what is empty, missing or other."""
        done = self.machine.ssh(self._plain({"check": {"files": dict(files)}}), timeout=120)
        lost: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])["lost"]
        return lost

    def stop(self) -> None:
        """Switch it off; what is frozen stays."""
        if self._machine:
            self._machine.kill()

    def _bring(self) -> None:
        """Put the formulas on it and make it a host without a master."""
        hosts = self.hosts
        hosts.run(self.name, ["mkdir", "-p", STATES])
        hosts.run(self.name, ["tar", "-x", "-C", STATES], stdin=lab_salt.pack(lab_salt.sources(), CHECKOUT))
        top = (CHECKOUT / "top.sls.example").read_bytes()
        config = {**MASTERLESS, "id": self.name}
        hosts.unpack(self.name, {
            "/etc/salt/minion.d/masterless.conf": (0o600, json.dumps(config).encode()),
            "/srv/salt/top.sls": (0o644, top),
            f"/etc/systemd/system/{UNIT}": (0o644, DIGESTS.encode()),
        })  # fmt: skip
        hosts.run(self.name, ["systemctl", "enable", "--quiet", UNIT])
        hosts.run(self.name, [f"{STATES}/bootstrap", "pki", "--host", f"{self.name}={self.address}"], timeout=600)

    def _address(self, other: str) -> str:
        return f"{self.address.rpartition('.')[0]}.{NUMBERS[other]}"

    @staticmethod
    def _plain(request: Mapping[str, Any]) -> list[str]:
        return [SALT_PYTHON, "-c", SCRIPT.read_text(encoding="utf-8"), json.dumps(request)]

    def _words(self, request: Mapping[str, Any]) -> list[str]:
        """Quote a program for the shell at the other end of ssh."""
        return [shlex.join(self._plain(request))]

    def _say(self, text: str) -> None:
        self.progress.say(f"         {text}")

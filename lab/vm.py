"""Virtual machine hosts: QEMU on a lab's layer-2 network, link and power in a test's hand.

A :class:`Machine` runs in the network namespace of the lab's switch, so its network cards are taps
on the bridge there and nothing of this machine's own network changes. All that it leaves on disk is
in its own folder; :meth:`Machine.destroy` removes that, the taps and the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .proc import CommandError, LabError, run
from .qmp import Qmp
from .vmspec import QEMU, SERIAL_MAX, MachineSpec, Say, qemu_argv, seed, silent

# The kernel's limit for the path of a unix socket.
SOCKET_PATH_MAX = 107
CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What a machine makes in its folder; other things may lie there too.
FILES = (
    *("disk.qcow2", "disk.qcow2.new", "seed.tar", "console.log", "qemu.log"),
    *("qemu.pid", "qemu.json", "qmp.sock"),
)


class Machine:
    """One virtual machine of a lab.

    Attributes:
        spec: what it is made of.
        folder: where its files are, those of :data:`FILES`.
        ssh_config: the lab's file for ``ssh -F``, in which the host's name stands.
        accelerator: ``kvm`` or ``tcg``.
    """

    def __init__(self, spec: MachineSpec, folder: Path, ssh_config: Path, accel: str = "tcg") -> None:
        """Describe the machine; nothing is made or started yet.

        Raises:
            LabError: the folder's path is too long for a socket, or a disk's serial is.
        """
        self.spec, self.folder, self.ssh_config, self.accelerator = spec, folder, ssh_config, accel
        if len(str(folder / "qmp.sock")) > SOCKET_PATH_MAX:
            raise LabError(f"the path {folder} is too long for QEMU's control socket")
        for disk in spec.disks:
            if not 1 <= len(disk.serial) <= SERIAL_MAX:
                reason = f"must have 1 to {SERIAL_MAX} characters"
                raise LabError(f"disk serial '{disk.serial}' of {spec.name} {reason}")

    @property
    def namespace(self) -> str:
        """Name of the network namespace that holds the lab's switch."""
        return f"lab-{self.spec.lab}"

    @property
    def console_log(self) -> Path:
        """What the machine printed on its serial console since it was last started."""
        return self.folder / "console.log"

    def create(self, files: Mapping[str, tuple[int, bytes]]) -> None:
        """Make the machine's disk and identity; does nothing when they are there.

        Args:
            files: its identity from :func:`lab.identity.files`, as path to mode and content.

        Raises:
            LabError: the base image or qemu-img is missing, or the disk is full.
        """
        disk, partial = self.folder / "disk.qcow2", self.folder / "disk.qcow2.new"
        if disk.exists():
            return
        if not self.spec.image.is_file():
            raise LabError(f"the base image {self.spec.image} is missing; build it first")
        self.folder.mkdir(parents=True, exist_ok=True)
        archive = self.folder / "seed.tar"
        try:
            archive.touch(0o600)
            archive.write_bytes(seed(self.spec, files))
        except OSError as error:
            raise LabError(f"{archive} can't be written: {error.strerror}") from None
        base = ["-F", "raw", "-b", str(self.spec.image.resolve())]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(partial)])
        partial.rename(disk)

    def start(self) -> None:
        """Switch the machine on; does nothing when it runs.

        Raises:
            LabError: QEMU or /dev/net/tun is missing, the switch isn't there, or QEMU refused.
        """
        if self.is_running():
            return
        self._check()
        self._forget_process()
        # A file rather than a pipe: the daemon keeps it open, so that a pipe would never end.
        log = self.folder / "qemu.log"
        log.write_bytes(b"")
        inside = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        try:
            for index, nic in enumerate(self.spec.nics):
                self._plug(self.spec.tap(index), nic.bridge)
            run([*inside, *qemu_argv(self.spec, self.folder, self.accelerator)], timeout=60, log=log)
        except CommandError as error:
            self._unplug()
            printed = [line for line in error.output.splitlines() if line.strip()]
            reason = printed[-1] if printed else str(error)
            raise LabError(f"{self.spec.name} could not be started: {reason}") from None
        self._note(int((self.folder / "qemu.pid").read_text()))

    def pid(self) -> int | None:
        """Return the process id of its QEMU: None when it is off, never another process's."""
        try:
            known = json.loads((self.folder / "qemu.json").read_text())
            pid, started = int(known["pid"]), str(known["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return self._adopt()
        return pid if started and _start_time(pid) == started else None

    def is_running(self) -> bool:
        """Return whether the machine is switched on (which says nothing about its system)."""
        return self.pid() is not None

    def stop(self, timeout: float = 90) -> None:
        """Shut the system down; after ``timeout`` seconds the power is cut."""
        if not self.is_running():
            self._unplug()
            return
        deadline = time.monotonic() + timeout
        with contextlib.suppress(LabError):
            self.qmp("system_powerdown")
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.3)
        self.kill()

    def kill(self) -> None:
        """Cut the power: the process ends at once and nothing in the guest is written any more."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while self.pid() is not None:
                if time.monotonic() > deadline:
                    raise LabError(f"QEMU of {self.spec.name} (pid {pid}) does not end")
                time.sleep(0.05)
        self._forget_process()
        self._unplug()

    def destroy(self) -> None:
        """Cut the power and remove everything of this machine: process, taps, files, sockets."""
        self.kill()
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)
        # Others may keep things there too, such as the host's keys.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Send a command to QEMU and return what it returned.

        Raises:
            LabError: the machine isn't running, doesn't answer, or refused the command.
        """
        if not self.is_running():
            raise LabError(f"{self.spec.name} is not running")
        with Qmp(self.folder / "qmp.sock") as control:
            return control.execute(command, arguments)

    def freeze(self, memory: Path, timeout: float = 300) -> None:
        """Write the running machine's memory into a file and switch it off, so that it can go on from there.

        Its disk must stay as it is for that: machines that go on get an overlay on it.

        Args:
            memory: the file.
            timeout: seconds that it may take.

        Raises:
            LabError: QEMU refused, or did not finish in time.
        """
        partial = memory.with_name(f"{memory.name}.new")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        # Not stopped before: it would stay stopped where it goes on. QEMU stops it in the end.
        self.qmp("migrate", uri=f"exec:cat >{shlex.quote(str(partial))}")
        deadline = time.monotonic() + timeout
        while (status := self.qmp("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise LabError(f"the memory of {self.spec.name} could not be written to {partial} ({status})")
            time.sleep(0.2)
        self.qmp("quit")
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()
        partial.rename(memory)

    def set_link(self, *, up: bool, nic: int = 0) -> None:
        """Plug a card's cable in, or pull it; the guest sees the carrier change."""
        self.qmp("set_link", name=f"nic{nic}", up=up)

    def ssh(self, argv: Sequence[str], *, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine as root over ssh.

        Args:
            argv: program and arguments; quoted for the remote shell here.
            timeout: seconds.
            check: raise when the return code isn't 0.
        """
        base = ["ssh", "-F", str(self.ssh_config), self.spec.name, "--"]
        return run([*base, shlex.join(argv)], timeout=timeout, check=check)

    def answers(self, timeout: float = 2) -> bool:
        """Return whether an ssh server greets on its address within ``timeout`` seconds."""
        try:
            with socket.create_connection((self.spec.address, 22), timeout=timeout) as link:
                link.settimeout(timeout)
                return link.recv(4) == b"SSH-"
        except OSError:
            return False

    def wait_ssh(self, timeout: float = 180, say: Say = silent, *, every: float = 10) -> float:
        """Wait until a program can be run over ssh, and return how many seconds that took.

        Args:
            timeout: seconds to wait at most.
            say: gets a line now and then: how long it has been, and the console's last line.
            every: seconds between these lines.

        Raises:
            LabError: the machine ended, or doesn't answer in time; with the console's last lines.
        """
        name, begun = self.spec.name, time.monotonic()
        told = begun
        while (now := time.monotonic()) - begun < timeout:
            if not self.is_running():
                raise LabError(f"{name} switched itself off while starting:\n{self.console_tail()}")
            if self.answers() and self._ssh_works():
                return time.monotonic() - begun
            if now - told >= every:
                told = now
                last = self.console_tail(1)[:100] or "nothing yet"
                say(f"{name}: {now - begun:.0f} s, console: {last}")
            time.sleep(0.5)
        last = self.console_tail()
        raise LabError(f"{name} does not answer ssh after {timeout:.0f} s; its console:\n{last}")

    def boot_id(self) -> str:
        """Return the kernel's identifier of this start; another one after a reboot."""
        return self.ssh(["cat", "/proc/sys/kernel/random/boot_id"], timeout=30).stdout.strip()

    def wait_reboot(self, before: str, timeout: float = 240, say: Say = silent) -> float:
        """Wait until the machine has started anew and answers ssh; return how long that took.

        Args:
            before: :meth:`boot_id` from before the reboot.
            timeout: seconds to wait at most.
            say: gets a line now and then.

        Raises:
            LabError: it hasn't in time.
        """
        begun = time.monotonic()
        while (left := timeout - (time.monotonic() - begun)) > 0:
            self.wait_ssh(left, say)
            with contextlib.suppress(CommandError):
                if self.boot_id() != before:
                    return time.monotonic() - begun
            time.sleep(1)
        last = self.console_tail()
        name = self.spec.name
        raise LabError(f"{name} has not rebooted within {timeout:.0f} s; its console:\n{last}")

    def console_tail(self, lines: int = 15) -> str:
        """Return the last lines on its console, without control characters."""
        try:
            text = self.console_log.read_bytes()[-8000:].decode(errors="replace")
        except OSError:
            return ""
        text = CONTROL_SEQUENCE.sub("", text)
        printed = ["".join(filter(str.isprintable, line)) for line in text.splitlines()]
        return "\n".join([line for line in printed if line.strip()][-lines:])

    def _ssh_works(self) -> bool:
        try:
            return self.ssh(["true"], timeout=30, check=False).returncode == 0
        except CommandError:
            return False

    def _check(self) -> None:
        """Say clearly what keeps the machine from being switched on."""
        if shutil.which(QEMU) is None:
            raise LabError(f"{QEMU} is not installed; install the package qemu-system-x86")
        if not Path("/dev/net/tun").exists():
            raise LabError("/dev/net/tun is missing; virtual machines need it for their cards")
        if not Path("/run/netns", self.namespace).exists():
            advice = f"run: lab up --name {self.spec.lab}"
            raise LabError(f"the network namespace {self.namespace} is missing; {advice}")
        if not (self.folder / "disk.qcow2").exists():
            raise LabError(f"{self.spec.name} has no disk in {self.folder}; it was never made")

    def _plug(self, tap: str, bridge: str) -> None:
        """Make a tap and plug it into a bridge of the switch."""
        inside = ["ip", "-n", self.namespace]
        run([*inside, "tuntap", "add", "dev", tap, "mode", "tap"])
        try:
            run([*inside, "link", "set", "dev", tap, "master", bridge])
            run([*inside, "link", "set", "dev", tap, "up"])
        except CommandError:
            run([*inside, "link", "delete", "dev", tap], check=False)
            raise

    def _unplug(self) -> None:
        """Remove the machine's taps, if they are there."""
        if Path("/run/netns", self.namespace).exists():
            for index in range(len(self.spec.nics)):
                delete = ["link", "delete", "dev", self.spec.tap(index)]
                run(["ip", "-n", self.namespace, *delete], check=False)

    def _note(self, pid: int) -> None:
        """Keep which process it is; the time of its start tells it from a later one of that id."""
        content = json.dumps({"pid": pid, "started": _start_time(pid)})
        (self.folder / "qemu.json").write_text(f"{content}\n")

    def _adopt(self) -> int | None:
        """Find a QEMU whose start was interrupted before it was noted: it names our pidfile."""
        pidfile = self.folder / "qemu.pid"
        try:
            pid = int(pidfile.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        if str(pidfile).encode() not in words:
            return None
        self._note(pid)
        return pid

    def _forget_process(self) -> None:
        """Remove what only means something while QEMU runs; a leftover tap goes too."""
        for name in ("qemu.json", "qemu.pid", "qmp.sock"):
            (self.folder / name).unlink(missing_ok=True)
        self._unplug()


def _start_time(pid: int) -> str:
    """Return when a process started, and in which boot; empty when there is none or it is dead."""
    try:
        # The name in brackets may hold anything: count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The first thread may have ended while others still hold the process's files.
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return ""
    return "" if fields[0] in "ZX" and threads < 2 else f"{boot}/{fields[19]}"

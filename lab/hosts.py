"""The hosts of one lab and how they are reached: by ssh as root, with their keys pinned."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import identity
from .kitchen import HostSpec
from .proc import CommandError, LabError, run
from .state import Paths


@dataclass(frozen=True)
class Hosts:
    """The hosts of a lab.

    Attributes:
        paths: the lab's files.
        specs: what ``kitchen.yml`` says of each host, in order.
        addresses: the address of each host.
        kinds: ``container`` or ``vm`` for each host.
    """

    paths: Paths
    specs: Mapping[str, HostSpec]
    addresses: Mapping[str, str]
    kinds: Mapping[str, str]

    @property
    def controller(self) -> str:
        """The first host with the role ``controller``."""
        return next(name for name, spec in self.specs.items() if "controller" in spec.roles)

    @property
    def hypervisors(self) -> list[str]:
        """The hosts with the role ``hypervisor``, in order."""
        return [name for name, spec in self.specs.items() if "hypervisor" in spec.roles]

    def kind(self, host: str) -> str:
        """Return ``container`` or ``vm``."""
        return self.kinds[host]

    def ssh_argv(self, host: str) -> list[str]:
        """Return the ssh command for a host.

        Raises:
            LabError: the lab has no such host; the message lists those it has.
        """
        if host not in self.specs:
            raise LabError(f"lab '{self.paths.name}' has no host '{host}'; it has: {', '.join(self.specs)}")
        return ["ssh", "-F", str(self.paths.ssh_config), host]

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        timeout: float = 120,
        check: bool = True,
        stdin: str | bytes | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root; each argument arrives as it is given here.

        Raises:
            CommandError: it failed (with ``check``) or took longer than ``timeout`` seconds.
        """
        # ssh joins its arguments with spaces for the remote shell, so they are quoted for it here.
        return run([*self.ssh_argv(host), "--", shlex.join(argv)], timeout=timeout, check=check, stdin=stdin)

    def unpack(self, host: str, files: Mapping[str, tuple[int, bytes]]) -> None:
        """Write files on a host: absolute path to mode and content, owned by root."""
        self.run(host, ["tar", "-x", "-C", "/", "--no-overwrite-dir"], stdin=identity.archive(files))

    def wait_ssh(self, host: str, timeout: float = 60, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until a host answers ssh.

        Args:
            host: its name.
            timeout: seconds to wait.
            alive: says whether waiting still makes sense.

        Raises:
            LabError: it doesn't answer; the message has ssh's last words.
        """
        deadline = time.monotonic() + timeout
        last = "nothing"
        while time.monotonic() < deadline and alive():
            try:
                done = self.run(host, ["true"], check=False, timeout=15)
            except CommandError as error:
                last = str(error)
            else:
                if done.returncode == 0:
                    return
                last = done.stderr.strip() or f"return code {done.returncode}"
            time.sleep(0.3)
        raise LabError(f"{host} does not answer ssh (waited {timeout:.0f} s); ssh says: {last}")

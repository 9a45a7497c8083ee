"""Container hosts: podman with systemd inside. They start in seconds and share the machine's kernel."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from . import rootfs
from .proc import CommandError, LabError, run
from .state import CACHE, locked

LABEL = "hypervisor-lab"
REPOSITORY = "localhost/hypervisor-lab"
# Protects the machine's settings, then becomes systemd.
INIT = "/usr/local/sbin/lab-init"
# runc, because crun refuses the hybrid cgroup hierarchy that some kernels boot with.
PODMAN = ("podman", "--runtime", "runc")


def podman(
    *words: str | Path, timeout: float = 120, check: bool = True, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run podman and return the finished process."""
    return run([*PODMAN, *words], timeout=timeout, check=check, stdin=stdin)


def container_name(lab: str, host: str) -> str:
    """Return the container's name, unique on the machine."""
    return f"lab-{lab}.{host}"


def capable() -> None:
    """Check that containers work at all.

    Raises:
        LabError: podman is missing or can't run as this user on this kernel, in one sentence.
    """
    try:
        podman("info", "--format", "json", timeout=60)
    except CommandError as error:
        first = (error.output.strip().splitlines() or [str(error)])[-1]
        raise LabError(
            f"this machine can't run containers (podman says: {first}); run '.venv/bin/lab deps' as root"
        ) from None


def image(release: str, packages: Sequence[str]) -> str:
    """Return the name of the image for these inputs."""
    return f"{REPOSITORY}:{release}-{rootfs.digest(release, packages)}"


def image_exists(name: str) -> bool:
    """Whether the image is in podman's store."""
    return podman("image", "exists", name, check=False).returncode == 0


def build_image(release: str, packages: Sequence[str], log: Path) -> str:
    """Build the image unless it is there; an interrupted build leaves nothing that counts as one.

    Returns:
        The image's name.

    Raises:
        LabError: another build is running, the disk is full, or a step failed.
    """
    name = image(release, packages)
    if image_exists(name):
        return name
    with locked(f"image-{release}-container", f"building the {release} image", wait=True):
        if image_exists(name):
            # Another lab has built it while we waited.
            return name
        archive = CACHE / f"{name.rsplit(':', 1)[1]}.tar"
        CACHE.mkdir(parents=True, exist_ok=True)
        rootfs.build(release, archive, packages=packages, log=log)
        try:
            podman("import", "--quiet", "--change", f"CMD {INIT}", "--change", "STOPSIGNAL SIGRTMIN+3",
                   archive, name, timeout=600)  # fmt: skip
        finally:
            archive.unlink(missing_ok=True)
    return name


def images() -> list[str]:
    """Return the names of the lab's images in podman's store."""
    rows = json.loads(podman("images", "--format", "json", "--filter", f"reference={REPOSITORY}").stdout or "[]")
    return sorted(name for row in rows for name in row.get("Names") or [])


def existing(lab: str) -> dict[str, str]:
    """Return the lab's containers: host to state (``running``, ``exited``, …)."""
    rows = json.loads(podman("ps", "--all", "--format", "json", "--filter", f"label={LABEL}={lab}").stdout or "[]")
    return {row["Labels"][f"{LABEL}.host"]: row["State"] for row in rows}


def create(lab: str, host: str, image_name: str, namespace: Path) -> None:
    """Create a host; it has no identity yet and isn't started.

    Args:
        lab: the lab's name.
        host: the host's name.
        image_name: what :func:`build_image` returned.
        namespace: the file of its network namespace.
    """
    name = container_name(lab, host)
    podman(
        "create", "--name", name, "--hostname", host, "--label", f"{LABEL}={lab}", "--label", f"{LABEL}.host={host}",
        "--network", f"ns:{namespace}", "--no-hosts", "--privileged", "--systemd=always",
        # The defaults ask for more than a nested or limited machine grants.
        "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000",
        # A host has half of its memory for this, podman's default is 64 MiB: the rings of corosync's and Pacemaker's
        # IPC fill that.
        "--shm-size", "1g",
        "--log-driver", "k8s-file", "--stop-timeout", "15", image_name, INIT,
    )  # fmt: skip


def give_identity(lab: str, host: str, archive: bytes) -> None:
    """Unpack a tar archive over the root of a host that doesn't run; the same again does no harm."""
    podman("cp", "-", f"{container_name(lab, host)}:/", stdin=archive)


def start(lab: str, host: str) -> None:
    """Start a host; fine when it runs."""
    podman("start", container_name(lab, host))


def wait_booted(lab: str, host: str, timeout: float = 60) -> None:
    """Wait until systemd inside has finished booting.

    Raises:
        LabError: it hasn't within ``timeout`` seconds, or units failed (with their names).
    """
    name = container_name(lab, host)
    deadline = time.monotonic() + timeout
    state = "unknown"
    while time.monotonic() < deadline:
        state = podman("exec", name, "systemctl", "is-system-running", check=False).stdout.strip()
        if state == "running":
            return
        if state == "degraded":
            failed = podman("exec", name, "systemctl", "--failed", "--plain", "--no-legend", check=False).stdout
            units = " ".join(line.split()[0] for line in failed.splitlines())
            raise LabError(f"{host} started with failed units: {units}")
        time.sleep(0.3)
    raise LabError(f"{host} has not booted within {timeout:.0f} s (systemd says: {state or 'nothing'})")


def remove(lab: str) -> None:
    """End a lab's hosts at once, as a power cut would, and remove what they hold."""
    listed = podman("ps", "--all", "--quiet", "--filter", f"label={LABEL}={lab}").stdout.split()
    if listed:
        podman("rm", "--force", "--time", "0", "--volumes", *listed, timeout=180)

"""Runs libvirt's own tools (virsh, virt-install, virt-xml, qemu-img) for states and modules.

There is no libvirt binding in Salt's Python, and none is needed: every call is a list of arguments
with a time limit, in a fixed language, and its failure is an error with the tool's own words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from salt.exceptions import CommandExecutionError

# One question to a local daemon; the first one starts it under socket activation.
TIMEOUT = 60
# A name that no tool takes for an option, a path or two words. libvirt itself allows more, such as blanks.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,127}\Z")
_LISTS = {
    "domain": ("list", "--all", "--name"),
    "pool": ("pool-list", "--all", "--name"),
    "network": ("net-list", "--all", "--name"),
}
# How virsh says that a pool has gone between its list and a question about it; how often it is asked, and the seconds
# before it is asked again.
_GONE, _LISTINGS, _PAUSE = "Could not retrieve pool information", 10, 0.3
_DUMPS = {
    # Secrets such as a console's password are left out by virsh unless --security-info is given.
    "domain": "dumpxml",
    "pool": "pool-dumpxml",
    "network": "net-dumpxml",
}


def is_name(text: object) -> bool:
    """Says whether something can be the name of a guest, pool, network or volume on a command line."""
    return isinstance(text, str) and bool(_NAME.match(text))


def run(
    argv: Sequence[str], timeout: float = TIMEOUT, stdin: str | None = None, label: str = ""
) -> str:
    """Runs a program and returns what it wrote.

    Args:
        argv: the program and its arguments, as they are; no shell sees them.
        timeout: seconds after which it is killed.
        stdin: what it reads; by default nothing.
        label: how an error calls the command; by default its name.

    Returns:
        Its standard output.

    Raises:
        CommandExecutionError: it is not installed, failed, or took too long. The message holds the
            tool's own words, and of the command its label alone: arguments may be long or secret.
    """
    label = label or argv[0]
    if shutil.which(argv[0]) is None:
        raise CommandExecutionError(f"{argv[0]} is not installed")
    try:
        done = subprocess.run(
            list(argv),
            input=stdin or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandExecutionError(f"{label} did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise CommandExecutionError(f"{label}: {said.replace('error: ', '')}")
    return done.stdout


def virsh(*argv: str, timeout: float = TIMEOUT, stdin: str | None = None) -> str:
    """Runs a command of virsh on this host; arguments, result and errors as in :func:`run`."""
    full = ["virsh", "--quiet", "--connect", "qemu:///system", *argv]
    return run(full, timeout, stdin, f"virsh {argv[0]}")


def names(kind: str) -> list[str]:
    """Lists all objects of a kind ("domain", "pool" or "network"), running or not, by name.

    virsh lists nothing at all when an object goes away under it, as a pool does that was made to look at this host
    for a migration: it is asked again then.
    """
    for _ in range(_LISTINGS):
        try:
            return [line.strip() for line in virsh(*_LISTS[kind]).splitlines() if line.strip()]
        except CommandExecutionError as error:
            if _GONE not in str(error):
                raise
        time.sleep(_PAUSE)
    raise CommandExecutionError(f"virsh {_LISTS[kind][0]}: objects went away under {_LISTINGS} attempts to list them")


def definition(kind: str, name: str, inactive: bool = True) -> str | None:
    """Returns the XML of an object.

    Args:
        kind: "domain", "pool" or "network".
        name: its name.
        inactive: what the next start uses, rather than what runs now.

    Returns:
        Its XML, or None if there is no such object.

    Raises:
        CommandExecutionError: libvirt cannot be asked.
    """
    if name not in names(kind):
        return None
    return virsh(_DUMPS[kind], *(["--inactive"] if inactive else []), "--", name)

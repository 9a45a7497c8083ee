"""The command line: ``lab up · status · ssh · run · logs · kitchen · down``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import container, kitchen, machine, salt, state
from .lab import Lab
from .proc import LabError, run
from .state import CACHE, CHECKOUT, Paths
from .ui import Progress

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument(
        "--name", default=os.environ.get("LAB_NAME", "lab"),
        help="which lab, so that several can run (default: $LAB_NAME, else lab)",
    )  # fmt: skip
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--json", action="store_true", help="print the result as JSON and no progress")
    top = argparse.ArgumentParser(
        prog="lab",
        description="Hosts to run the formulas on: containers and virtual machines on a network of their own.",
        epilog="A lab is a controller (salt-master) and hypervisors; kitchen.yml defines hosts and platforms. "
        "'lab COMMAND --help' says more about a command.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, text: str, *parents: argparse.ArgumentParser, more: str = "") -> argparse.ArgumentParser:
        whole = f"{text[0].upper()}{text[1:]}.{' ' if more else ''}{more}"
        return commands.add_parser(name, parents=list(parents), help=text, description=whole)

    up = command(
        "up", "start the lab, run the highstate, boot a demonstration guest", named, quiet,
        more="What is done already is not done again, so an interrupted run goes on where it was. Needs root.",
    )  # fmt: skip
    up.add_argument("--platform", default="debian-12", help="a platform of kitchen.yml (default: debian-12)")
    up.add_argument(
        "--kind", action="append", default=[], metavar="[HOST=]KIND",
        help="container or vm, for all hosts or for one; may be repeated (default: container)",
    )  # fmt: skip
    up.add_argument("--hosts", metavar="HOST,...", help="only these hosts of kitchen.yml (default: all but spare ones)")
    up.add_argument(
        "--shared-disk", action="append", default=[], metavar="NAME=MIB",
        help="a disk that hypervisors share, all of them virtual machines, as /dev/disk/by-id/virtio-NAME; may be "
        "repeated, when the lab is made",
    )  # fmt: skip
    up.add_argument("--no-highstate", action="store_true", help="stop when every minion answers")
    up.add_argument("--no-demo", action="store_true", help="boot no demonstration guest")
    up.add_argument(
        "--no-page", action="store_true", help="let nobody log in and serve no page; a lab that has one keeps it"
    )

    command(
        "status", "show what runs, and how to reach it", named, quiet, more="The exit code is 1 when a host is stopped."
    )
    command("list", "show all labs on this machine", quiet)

    ssh = command("ssh", "open a shell on a host", named)
    ssh.add_argument("host", metavar="HOST", help="a host of the lab, as 'lab status' shows them")
    ssh.add_argument("argument", nargs="*", metavar="WORD", help="a command to run there instead, with a terminal")

    runner = command(
        "run", "run a command on a host: lab run HOST -- COMMAND", named, quiet,
        more="The exit code is the command's.",
    )  # fmt: skip
    runner.add_argument("host", metavar="HOST", help="a host of the lab, as 'lab status' shows them")
    runner.add_argument("argument", nargs="+", metavar="WORD", help="the command's words; they arrive as given here")
    runner.add_argument(
        "--timeout", type=float, default=3600, metavar="SECONDS", help="when the command is ended (default: 3600)"
    )

    logs = command("logs", "show the journal of a host, or the lab's own logs", named)
    logs.add_argument("host", nargs="?", metavar="HOST", help="whose journal (default: the lab's own logs)")
    logs.add_argument("--lines", type=int, default=200, metavar="N", help="how many lines (default: 200)")
    logs.add_argument("--unit", help="of this unit alone, such as salt-minion")

    command("sync", "bring the checkout's formulas and the lab's pillar to the master", named)
    local = command("kitchen", "let the genuine Test Kitchen work on the running lab", named)
    local.add_argument(
        "--output", default=str(CHECKOUT / ".kitchen.local.yml"), metavar="FILE",
        help="where to write the override (default: .kitchen.local.yml of the checkout)",
    )  # fmt: skip
    command(
        "down", "stop the lab and remove everything of it", named, quiet,
        more="Says whether the machine is as it was before the lab. Needs root.",
    )  # fmt: skip
    command("deps", "install what the lab itself runs on", quiet, more="Uses apt-get. Needs root.")
    command("prune", "remove cached images and archives that no lab uses", quiet, more="Needs root.")
    return top


def kinds(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the kind of all hosts (None when it wasn't asked for) and of those that differ, from ``--kind`` options.

    Raises:
        LabError: a kind isn't ``container`` or ``vm``.
    """
    every: str | None = None
    single: dict[str, str] = {}
    for word in words:
        host, _, kind = word.rpartition("=")
        if kind not in ("container", "vm"):
            raise LabError(f"--kind {word}: '{kind}' is not a kind of host; allowed: container, vm")
        if host:
            single[host] = kind
        else:
            every = kind
    return every, single


def disks(words: Sequence[str]) -> dict[str, int]:
    """Return the sizes of shared disks by name, from ``--shared-disk`` options.

    Raises:
        LabError: a size is no number.
    """
    found = {}
    for word in words:
        name, _, size = word.partition("=")
        if not size.isdecimal():
            raise LabError(f"--shared-disk {word}: must be a name and MiB, such as san=1024")
        found[name] = int(size)
    return found


def show_status(result: dict[str, Any]) -> str:
    """Return a lab's status as text."""
    lines = [f"lab '{result['name']}': {result['platform']}, network {result['network']}"]
    for host, row in result["hosts"].items():
        verdict = "running" if row["running"] else "STOPPED"
        guests = ", ".join(result["guests"].get(host, []))
        line = f"  {host:12} {row['address']:15} {row['kind']:9} {verdict:8} {', '.join(row['roles'])}"
        lines.append(f"{line}   guests: {guests}" if guests else line)
    return "\n".join(lines)


def show_how(result: dict[str, Any]) -> str:
    """Return how to look at a running lab."""
    option = "" if result["name"] == "lab" else f" --name {result['name']}"
    run_on, ssh_to = f"  .venv/bin/lab run{option}", f"  .venv/bin/lab ssh{option}"
    controller = next(host for host, row in result["hosts"].items() if "controller" in row["roles"])
    lines = ["", "Look at it:"]
    lines += [f"{run_on} {controller} -- salt '*' {function}" for function in ("test.ping", "state.highstate")]
    for host, names in result["guests"].items():
        for guest in names:
            lines.append(f"{ssh_to} {host} virsh console {guest}        # Ctrl-] leaves it")
            others = [name for name, row in result["hosts"].items() if "hypervisor" in row["roles"] and name != host]
            if others:
                options = "--live --p2p --tls --persistent --undefinesource"
                migrate = f"virsh migrate {options} {guest} qemu+tls://{others[0]}/system"
                lines.append(f"{run_on} {host} -- {migrate}")
    lines += [f"{ssh_to} {controller}", f"  .venv/bin/lab down{option}"]
    if page := result["page"]:
        lines += ["", f"The page, in a browser on this machine: {page['address']}"]
        lines += [f"  its certificate is of the lab's own authority: {page['ca']}", "  logins of this lab alone:"]
        lines += [f"    {name:9} {password}" for name, password in page["users"].items()]
    return "\n".join(lines)


def command_up(options: argparse.Namespace, progress: Progress) -> int:
    """Start a lab."""
    begun = time.monotonic()
    every, single = kinds(options.kind)
    lab = Lab(options.name, progress)
    result = lab.up(
        platform=options.platform,
        kind=every,
        kinds=single,
        only=options.hosts.split(",") if options.hosts else None,
        highstate=not options.no_highstate,
        demo=not options.no_demo,
        page=not options.no_page,
        shared_disks=disks(options.shared_disk),
    )
    result["seconds"] = round(time.monotonic() - begun, 1)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(show_status(result))
        if result["did"]:
            print(f"up after {result['seconds']:.0f} s")
        else:
            print(f"everything was up already: nothing to do ({result['seconds']:.0f} s)")
        print(show_how(result))
    return 0


def command_status(options: argparse.Namespace, progress: Progress) -> int:
    """Show a lab."""
    result = Lab(options.name, progress).status()
    print(json.dumps(result, indent=1) if options.json else show_status(result) + "\n" + show_how(result))
    return 0 if result["up"] else EXIT_FAILED


def command_list(options: argparse.Namespace, _progress: Progress) -> int:
    """Show the names of all labs."""
    names = state.names()
    print(json.dumps(names) if options.json else "\n".join(names) or "no labs")
    return 0


def command_ssh(options: argparse.Namespace, progress: Progress) -> int:
    """Become ssh."""
    argv = Lab(options.name, progress).hosts.ssh_argv(options.host)
    terminal = ["-t"] if options.argument and sys.stdin.isatty() else []
    os.execvp(argv[0], [*argv[:-1], *terminal, argv[-1], *options.argument])  # noqa: S606 - no shell is involved


def command_run(options: argparse.Namespace, progress: Progress) -> int:
    """Run a command on a host; its return code is ours."""
    argv = options.argument[1:] if options.argument[:1] == ["--"] else options.argument
    hosts = Lab(options.name, progress).hosts
    if options.json:
        done = hosts.run(options.host, argv, check=False, timeout=options.timeout)
        print(json.dumps({"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}))
        return done.returncode
    # What it prints is shown as it comes: a highstate takes its time.
    remote = [*hosts.ssh_argv(options.host), "--", shlex.join(argv)]
    try:
        return subprocess.run(remote, timeout=options.timeout, check=False).returncode
    except subprocess.TimeoutExpired:
        raise LabError(f"not finished after {options.timeout:.0f} s on {options.host}: {shlex.join(argv)}") from None


def command_logs(options: argparse.Namespace, progress: Progress) -> int:
    """Show a host's journal or the lab's logs."""
    lab = Lab(options.name, progress)
    if options.host:
        unit = ["--unit", options.unit] if options.unit else []
        print(lab.run(options.host, ["journalctl", "--no-pager", "--lines", str(options.lines), *unit]).stdout, end="")
        return 0
    for log in sorted(lab.paths.logs.glob("*.log")):
        print(f"==> {log} <==")
        print("\n".join(log.read_text(errors="replace").splitlines()[-options.lines :]))
    return 0


def command_sync(options: argparse.Namespace, progress: Progress) -> int:
    """Bring the checkout to the master."""
    lab = Lab(options.name, progress)
    hosts = lab.hosts
    with state.locked(f"lab-{options.name}", "lab sync"):
        with progress.step("bring formulas and pillar to the master"):
            salt.sync(hosts, lab.users)
        lab.save(sources=salt.sources_digest(), highstate=None)
    return 0


def command_kitchen(options: argparse.Namespace, progress: Progress) -> int:
    """Write the override for Test Kitchen."""
    lab = Lab(options.name, progress)
    hosts = lab.hosts
    key, known = lab.paths.ssh_key, lab.paths.root / "known_hosts"
    targets = {
        host: kitchen.Target(host, hosts.addresses[host], key, known, kind=hosts.kind(host)) for host in hosts.specs
    }
    path = Path(options.output)
    kitchen.write_override(lab.kitchen, options.name, lab.state["platform"], targets, path)
    print(f"wrote {path}; now: bundle exec kitchen converge && bundle exec kitchen verify")
    return 0


def command_down(options: argparse.Namespace, progress: Progress) -> int:
    """Remove a lab and report whether the machine is as it was."""
    # Whatever state it is in, its name says what belongs to it.
    lab = Lab(options.name, progress, damaged=True)
    known = lab.exists or lab.paths.root.exists()
    changed = lab.down()
    if options.json:
        print(json.dumps({"existed": known, "differences": changed}))
    else:
        print(f"lab '{options.name}' is gone" if known else f"there was no lab '{options.name}'")
        if changed:
            print("not as before the lab:\n  " + "\n  ".join(changed))
        elif known:
            print("this machine is as it was before")
    return EXIT_FAILED if changed else 0


def command_deps(options: argparse.Namespace, progress: Progress) -> int:
    """Install what the lab runs on."""
    machine.require_root()
    with progress.step("install what the lab runs on"):
        installed = machine.install_dependencies(CACHE / "deps.log")
    if options.json:
        print(json.dumps({"installed": installed}))
    else:
        print(f"installed: {', '.join(installed)}" if installed else "everything that the lab runs on is installed")
    return 0


def command_prune(options: argparse.Namespace, _progress: Progress) -> int:
    """Remove cached images and archives that no lab uses."""
    machine.require_root()
    # A lab whose state can't be read may use any image: it stands in the way, and the error says how to remove it.
    used = {load.get("image") for name in state.names() if (load := state.load(Paths(name)))}
    removed = [name for name in container.images() if name not in used]
    for name in removed:
        container.podman("rmi", name)
    if not state.names() and CACHE.is_dir():
        run(["rm", "-rf", "--one-file-system", CACHE], timeout=300)
        removed.append(str(CACHE))
    print(
        json.dumps(removed) if options.json else "\n".join(f"removed {name}" for name in removed) or "nothing to remove"
    )
    return 0


COMMANDS = {
    "up": command_up, "status": command_status, "list": command_list, "ssh": command_ssh, "run": command_run,
    "logs": command_logs, "sync": command_sync, "kitchen": command_kitchen, "down": command_down,
    "deps": command_deps, "prune": command_prune,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 when something failed (one sentence on standard error says what), 2 for a
        wrong command line, 130 when interrupted.
    """
    options = parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options, Progress(quiet=getattr(options, "json", False)))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
    except OSError as error:
        print(f"lab: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nlab: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())

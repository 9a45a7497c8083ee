"""Rows about Salt itself, on hosts of a lab: compiling, running again, running the first time."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import salt as lab_salt
from lab.lab import Lab
from lab.proc import LabError
from lab.state import CHECKOUT

from . import migration
from .rows import Row, median, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from lab.ui import Progress

    More = Mapping[str, Callable[[Lab, str, int], Row]]

CONFIG = "/etc/salt"
HIGHSTATE = ["salt-call", "--retcode-passthrough", "--state-verbose=false", "state.highstate"]
# What a host needs to run its highstate without its master: the lab's pillar, and one in which every
# key is set. Each has a folder with a minion's configuration.
STATES, PILLAR, EVERYTHING = "/srv/bench/states", "/srv/bench/pillar", "/srv/bench/everything"
PING = ["salt-call", "--local", "--out=quiet", "test.ping"]
SYNC = ["salt-call", "--out=quiet", "saltutil.sync_all"]
SALT_PYTHON = "/opt/saltstack/salt/bin/python"
ON_HOST = Path(__file__).with_name("on_host.py")
FIRST, OTHER = "hv1", "hv2"
PARTS = ("fresh", "again", "compile", "migration")

COMPILE_GOAL_MS = 1.0
SECOND_GOAL = 1.6
FRESH_GOAL = 1.15
FRESH_ALLOWANCE_S = 10.0


def on_host(lab: Lab, host: str, request: dict[str, Any], timeout: float = 2400) -> Any:
    """Run :mod:`bench.on_host` on a host.

    Args:
        lab: the lab.
        host: the host's name.
        request: what it is asked for.
        timeout: seconds until it counts as lost.

    Returns:
        its answer.

    Raises:
        LabError: it failed; the message has its last words.
    """
    argv = [SALT_PYTHON, "-c", ON_HOST.read_text(encoding="utf-8"), json.dumps(request)]
    done = lab.run(host, argv, timeout=timeout)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise LabError(f"the measurement on {host} printed no result: {done.stdout[-500:]}") from None


def timed(
    lab: Lab, host: str, programs: list[list[str]], repeat: int = 1, *, idle: Sequence[list[str]] = ()
) -> list[list[float]]:
    """Time programs on a host, in turn.

    Args:
        lab: the lab.
        host: the host's name.
        programs: what is run.
        repeat: how often.
        idle: those of the programs that are highstates which must find nothing to do.

    Returns:
        the seconds of each program's runs.

    Raises:
        LabError: a program failed, or one of `idle` changed something; the message has the end of what it printed.
    """
    results = on_host(lab, host, {"time": programs, "repeat": repeat})
    for argv, result in zip(programs, results, strict=True):
        for code, output in zip(result["codes"], result["outputs"], strict=True):
            if code:
                raise LabError(f"{' '.join(argv)[:200]} failed on {host}:\n{output}")
            if argv in idle and not nothing_changed(output):
                raise LabError(f"{' '.join(argv)[:200]} on {host} was to change nothing, but said:\n{output}")
    return [result["seconds"] for result in results]


def nothing_changed(output: str) -> bool:
    """Whether Salt's summary of a highstate tells of states that succeeded, and of none that changed anything."""
    summary = re.findall(r"^Succeeded: +(\d+)(.*)$", output, re.MULTILINE)
    return len(summary) == 1 and int(summary[0][0]) > 0 and "changed=" not in summary[0][1]


def alone(host: str, pillar: str) -> dict[str, Any]:
    """The configuration of a minion without a master, as docs/operations.rst recommends it."""
    return {
        "id": host,
        "file_client": "local",
        "file_roots": {"base": [STATES]},
        "pillar_roots": {"base": [pillar]},
        "module_dirs": [STATES],
        "autoload_dynamic_modules": False,
    }


def bring_files(lab: Lab, host: str) -> None:
    """Put formulas, CA certificates, pillar and configuration on a host, so that it can do without its master."""
    published = "/srv/salt/hypervisor-pki"
    names = lab.run(lab.hosts.controller, ["ls", published]).stdout.split()
    files = {
        f"{STATES}/hypervisor-pki/{name}": lab.run(lab.hosts.controller, ["cat", f"{published}/{name}"]).stdout
        for name in names
    }
    files[f"{STATES}/top.sls"] = (CHECKOUT / "top.sls.example").read_text(encoding="utf-8")
    files |= {f"{PILLAR}/{name}": text for name, text in lab_salt.pillar_files(lab.hosts).items()}
    # The example shows no key; one is made here where it must have one.
    example = (CHECKOUT / "pillar.example").read_text(encoding="utf-8")
    example = example.replace("\n    # psk: ...\n", f"\n    psk: {secrets.token_hex(16)}\n")
    files |= {
        f"{EVERYTHING}/top.sls": "base: {'*': [example]}\n",
        f"{EVERYTHING}/example.sls": example,
    }
    # JSON is YAML too.
    files |= {f"{pillar}/etc/minion": json.dumps(alone(host, pillar)) for pillar in (PILLAR, EVERYTHING)}
    formulas = lab_salt.pack(lab_salt.sources(), CHECKOUT)
    lab.run(host, ["mkdir", "-p", STATES])
    lab.run(host, ["tar", "-x", "-C", STATES], stdin=formulas)
    lab.hosts.unpack(host, {path: (0o600, text.encode()) for path, text in files.items()})


def compiled(lab: Lab, host: str, folder: str = CONFIG, repeat: int = 1) -> dict[str, Any]:
    """Compile the highstate on a host, as :mod:`bench.on_host` says.

    Args:
        lab: the lab.
        host: the host's name.
        folder: of the minion's configuration; by default its own, with a master.
        repeat: how often.

    Returns:
        its answer.

    Raises:
        LabError: it does not compile.
    """
    request = {"compile": {"config": f"{folder}/minion", "repeat": repeat}}
    answer: dict[str, Any] = on_host(lab, host, request, timeout=300)
    if "error" in answer:
        raise LabError(f"the highstate of {host} does not compile: {answer['error']}")
    return answer


def compile_row(lab: Lab, host: str, repeat: int) -> Row:
    """Measure the time to compile one state of the whole highstate, in milliseconds."""

    def each(answer: dict[str, Any]) -> list[float]:
        return [seconds * 1000 / answer["states"] for seconds in answer["seconds"]]

    whole = compiled(lab, host, f"{EVERYTHING}/etc", repeat + 1)
    own = compiled(lab, host, f"{PILLAR}/etc", repeat + 1)
    remote = compiled(lab, host, repeat=repeat + 1)
    first, *values = each(whole)
    return Row(
        name="compile, per state of the whole highstate",
        value=median(values),
        unit="ms",
        goal=COMPILE_GOAL_MS,
        better="lower",
        how=f"{host}, pillar.example, {whole['states']} states in {whole['files']} SLS, "
        f"files on the host, one process: {spread(values, 'ms')}; the first, which loads Jinja, {first:.3g} ms; "
        f"with the lab's pillar ({own['states']} states) {median(each(own)[1:]):.3g} ms, "
        f"and with files from the master {median(each(remote)[1:]):.3g} ms",
    )


def second_rows(lab: Lab, host: str, repeat: int) -> list[Row]:
    """Measure highstates that have nothing to do against `salt-call --local test.ping`: one row for each way."""
    masterless = ["salt-call", f"--config-dir={PILLAR}/etc", *HIGHSTATE[1:]]
    remote_ping = ["salt-call", "--out=quiet", "test.ping"]
    programs = [masterless, HIGHSTATE, PING, remote_ping]
    alone, through, ping, other_ping = timed(lab, host, programs, repeat, idle=[masterless, HIGHSTATE])
    login = f"a ping that logs in: {median(other_ping) / median(ping):.3g} times"
    how = f"{host}, all in turn, every highstate changed nothing; ping without a master: {spread(ping)}"
    ways = {
        "without a master": (alone, f"highstate: {spread(alone)}"),
        "through the master": (
            through,
            f"highstate, which logs in and asks for new modules each time: {spread(through)}; {login}",
        ),
    }
    return [
        Row(
            name=f"highstate again, {way} / salt-call --local test.ping",
            value=median(seconds) / median(ping),
            unit="times",
            goal=SECOND_GOAL,
            better="lower",
            how=f"{how}; {more}",
        )
        for way, (seconds, more) in ways.items()
    ]


def fresh_round(name: str, platform: str, number: int, progress: Progress) -> tuple[float, float]:
    """Measure one pair of fresh hosts: a first highstate, and apt-get with the same packages.

    Args:
        name: the lab's name; a lab of that name is removed first.
        platform: a platform of `kitchen.yml`.
        number: of the round; every other round changes the order and the hosts.
        progress: where steps are shown.

    Returns:
        seconds of the highstate and of apt-get.
    """
    Lab(name).down()
    lab = Lab(name, progress)
    lab.up(platform=platform, highstate=False, demo=False)
    salted, plain = (FIRST, OTHER) if number % 2 == 0 else (OTHER, FIRST)
    timed(lab, plain, [SYNC, ["apt-get", "-q", "update"]])
    packages = compiled(lab, plain)["packages"]
    install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages]
    seconds = {}
    order = [(salted, HIGHSTATE), (plain, install)]
    for host, argv in order if number % 2 == 0 else reversed(order):
        with progress.step(f"{argv[0]} on {host}"):
            ((seconds[host],),) = timed(lab, host, [argv])
    return seconds[salted], seconds[plain]


def fresh_row(rounds: list[tuple[float, float]]) -> Row:
    """Say how a first highstate compares with apt-get, after an allowance of seconds."""
    highstates, installs = ([pair[side] for pair in rounds] for side in (0, 1))
    ratios = [(highstate - FRESH_ALLOWANCE_S) / install for highstate, install in rounds]
    return Row(
        name=f"(first highstate - {FRESH_ALLOWANCE_S:.0f} s) / apt-get install",
        value=median(ratios),
        unit="times",
        goal=FRESH_GOAL,
        better="lower",
        how="two fresh hosts, the same packages and cache, order and hosts swapped each round; "
        f"highstate: {spread(highstates)}; apt-get: {spread(installs)}",
    )


def rows(
    name: str, platform: str, repeat: int, fresh: int, more: More, wanted: Container[str], progress: Progress
) -> list[Row]:
    """Measure what is wanted.

    Args:
        name: the name of the lab to use and to remove in the end.
        platform: a platform of `kitchen.yml`.
        repeat: how often the short figures are measured.
        fresh: how many pairs of fresh hosts are measured.
        more: what else is measured on the host in the end, by the name of its part.
        wanted: names of parts, of :data:`PARTS` and of `more`.
        progress: where steps are shown.

    Returns:
        the rows.

    Raises:
        LabError: the lab or a measurement failed.
    """
    found: list[Row] = []
    lab, host = Lab(name, progress), FIRST
    try:
        if "fresh" in wanted:
            rounds = [fresh_round(name, platform, number, progress) for number in range(fresh)]
            found.append(fresh_row(rounds))
            lab, host = Lab(name, progress), FIRST if (fresh - 1) % 2 == 0 else OTHER
        else:
            lab.up(platform=platform, demo=False)
        bring_files(lab, host)
        if "again" in wanted:
            with progress.step(f"highstate again and ping, {repeat} times each"):
                found += second_rows(lab, host, repeat)
        if "compile" in wanted:
            with progress.step(f"compile the highstate, {repeat} times"):
                found.append(compile_row(lab, host, repeat))
        for part, measure in more.items():
            if part in wanted:
                with progress.step(f"{part}, {repeat} times"):
                    found.append(measure(lab, host, repeat))
        if "migration" in wanted:
            with progress.step("make both hosts hypervisors"):
                lab_salt.check_green(lab_salt.highstate(lab.hosts))
            found += migration.rows(lab, (FIRST, OTHER), repeat, progress)
        return found
    finally:
        Lab(name, progress).down()

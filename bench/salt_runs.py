"""Rows about Salt itself, on hosts of a lab: compiling, running again, running the first time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.lab import Lab
from lab.proc import LabError

from .rows import Row, median, spread

if TYPE_CHECKING:
    from lab.ui import Progress

HIGHSTATE = ["salt-call", "--retcode-passthrough", "--state-verbose=false", "state.highstate"]
PING = ["salt-call", "--local", "--out=quiet", "test.ping"]
SYNC = ["salt-call", "--out=quiet", "saltutil.sync_all"]
SALT_PYTHON = "/opt/saltstack/salt/bin/python"
ON_HOST = Path(__file__).with_name("on_host.py")
FIRST, OTHER = "hv1", "hv2"

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
        raise LabError(
            f"the measurement on {host} printed no result: {done.stdout[-500:]}"
        ) from None


def timed(lab: Lab, host: str, programs: list[list[str]], repeat: int = 1) -> list[list[float]]:
    """Time programs on a host, in turn.

    Returns:
        the seconds of each program's runs.

    Raises:
        LabError: a program failed; the message has the end of what it printed.
    """
    results = on_host(lab, host, {"time": programs, "repeat": repeat})
    for argv, result in zip(programs, results, strict=True):
        if any(result["codes"]):
            raise LabError(f"{' '.join(argv)[:200]} failed on {host}:\n{result['output']}")
    return [result["seconds"] for result in results]


def compiled(lab: Lab, host: str) -> dict[str, Any]:
    """Compile the highstate on a host in a new process, as :mod:`bench.on_host` says.

    Raises:
        LabError: it does not compile.
    """
    answer: dict[str, Any] = on_host(lab, host, {"compile": True}, timeout=300)
    if "error" in answer:
        raise LabError(f"the highstate of {host} does not compile: {answer['error']}")
    return answer


def compile_row(lab: Lab, host: str, repeat: int) -> Row:
    """Measure the time to compile one state of the whole highstate, in milliseconds."""
    answers = [compiled(lab, host) for _ in range(repeat)]
    states = answers[0]["states"]
    values = [answer["seconds"] * 1000 / states for answer in answers]
    return Row(
        name="compile, per state of the highstate",
        value=median(values),
        unit="ms",
        goal=COMPILE_GOAL_MS,
        better="lower",
        how=f"{host}, {states} states, files from the master, a new process each time: "
        + spread(values, "ms"),
    )


def second_row(lab: Lab, host: str, repeat: int) -> Row:
    """Measure a highstate that has nothing to do against `salt-call --local test.ping`."""
    again, ping = timed(lab, host, [HIGHSTATE, PING], repeat)
    return Row(
        name="highstate again / salt-call --local test.ping",
        value=median(again) / median(ping),
        unit="times",
        goal=SECOND_GOAL,
        better="lower",
        how=f"{host}, in turn; highstate: {spread(again)}; ping: {spread(ping)}",
    )


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


def rows(name: str, platform: str, repeat: int, fresh: int, progress: Progress) -> list[Row]:
    """Measure everything.

    Args:
        name: the name of the lab to use and to remove in the end.
        platform: a platform of `kitchen.yml`.
        repeat: how often the short figures are measured.
        fresh: how many pairs of fresh hosts are measured.
        progress: where steps are shown.

    Returns:
        the rows.

    Raises:
        LabError: the lab or a measurement failed.
    """
    try:
        rounds = [fresh_round(name, platform, number, progress) for number in range(fresh)]
        lab = Lab(name, progress)
        host = FIRST if (fresh - 1) % 2 == 0 else OTHER
        with progress.step(f"highstate again and ping, {repeat} times each"):
            second = second_row(lab, host, repeat)
        with progress.step(f"compile the highstate, {repeat} times"):
            compilation = compile_row(lab, host, repeat)
        return [compilation, second, fresh_row(rounds)]
    finally:
        Lab(name, progress).down()

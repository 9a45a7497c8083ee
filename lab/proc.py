"""Running other programs: argument lists, time limits and checked return codes, in one place."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class LabError(Exception):
    """Something that a person can act on; the command line prints it as one sentence."""


class CommandError(LabError):
    """A program ended with an error or took too long.

    Attributes:
        argv: what was run.
        output: its standard output and error, as text.
    """

    def __init__(self, argv: Sequence[str], reason: str, output: str) -> None:
        """Keep what was run, why it counts as failed, and what it printed."""
        self.argv = list(argv)
        self.output = output
        tail = "\n".join(output.strip().splitlines()[-15:])
        super().__init__(f"{shlex.join(argv)[:300]}: {reason}" + (f"\n{tail}" if tail else ""))


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 120,
    check: bool = True,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program and collect what it prints.

    Args:
        argv: the program and its arguments; never a shell string.
        timeout: seconds after which it is ended.
        check: raise when the return code isn't 0.
        stdin: what it reads; nothing when None.
        env: its whole environment; ours when None.
        log: a file that gets its output as it comes, for the long ones.
        cwd: its working folder.

    Returns:
        The finished process with text in ``stdout`` and ``stderr`` (all output is in ``stdout`` with ``log``).

    Raises:
        CommandError: it is missing, failed (with ``check``) or took longer than ``timeout``.
    """
    words = [str(word) for word in argv]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    options: dict[str, Any] = {"timeout": timeout, "env": env, "cwd": cwd}
    options |= {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as sink:
                code = subprocess.run(words, stdout=sink, stderr=subprocess.STDOUT, check=False, **options).returncode
            out, err = log.read_bytes()[-20_000:], b""
        else:
            done = subprocess.run(words, capture_output=True, check=False, **options)
            code, out, err = done.returncode, done.stdout, done.stderr
    except FileNotFoundError as error:
        raise CommandError(words, f"{error.filename} is not installed", "") from None
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"") + (error.stderr or b"") if log is None else log.read_bytes()[-20_000:]
        raise CommandError(words, f"not finished after {timeout:.0f} s", printed.decode(errors="replace")) from None
    result = subprocess.CompletedProcess(words, code, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and result.returncode != 0:
        raise CommandError(words, f"return code {result.returncode}", result.stdout + result.stderr)
    return result

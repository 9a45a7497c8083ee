"""Compiles SLS files with the real Salt, as a host of any operating system would, and looks at the result.

Nothing is executed: grains are data, the pillar is given, and the file server is the folder of the
formulas. What comes out is judged by the rules of this repository (``problems``).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import salt.config
import salt.exceptions
import salt.state
import salt.utils.templates
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
REQUISITES = (
    "require", "require_any", "watch", "watch_any", "onchanges", "onchanges_any", "onfail",
    "onfail_any", "onfail_all", "prereq", "listen", "use",
)  # fmt: skip
# States and arguments that hand text to a shell, or hide what they do.
SHELL_STATES = frozenset({"cmd", "module", "saltmod"})
SHELL_ARGUMENTS = ("unless", "onlyif")
MODES = ("mode", "file_mode", "dir_mode", "key_mode")
# Made by bootstrap on the master: no part of the tree.
FOREIGN_SOURCES = ("salt://hypervisor-pki/",)
# An SLS maps a configuration to states; it never looks at the host.
SALT_CALLS = re.compile(r"\bsalt\s*(?:\[\s*['\"]([^'\"]+)['\"]\s*\]|\.([\w.]+))")
ALLOWED_CALLS = frozenset({"formula.config"})
HIDDEN = (
    (re.compile(r"^\s*- sls:", re.MULTILINE), "a requisite of a whole SLS hides what is needed"),
    (re.compile(r"^extend:", re.MULTILINE), "extend changes states of another file"),
)
LIVE_DATA = re.compile(r"\b(pillar\s*[\[.]|mine\.get|grains\s*[\[.])")


def load(path: Path) -> Any:
    """Reads a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def formulas(root: Path) -> list[str]:
    """Finds the formulas: top-level folders with an init.sls and a schema.yaml."""
    return sorted(path.parent.name for path in root.glob("*/schema.yaml") if (path.parent / "init.sls").exists())


def sls_names(root: Path, formula: str) -> list[str]:
    """Names every SLS of a formula as a top file would."""
    names = []
    for path in sorted((root / formula).rglob("*.sls")):
        parts = path.relative_to(root).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "init" else parts))
    return names


def grains() -> dict[str, dict[str, Any]]:
    """Loads the grains of every operating system, by the name of the file."""
    return {path.stem: load(path) for path in sorted((HERE / "grains").glob("*.yaml"))}


# Salt's options for folders of its loader, and ours.
LOADED = {"module": "modules", "states": "states", "utils": "utils", "wrapper": "wrapper"}


class Host:
    """A host that can compile states but not run them.

    Args:
        root: the folder of the formulas.
        work: a folder for Salt's caches; a host in the folder of an earlier one is the same host later.
        host_grains: the host's grains.
        pillar: the host's pillar.
    """

    def __init__(
        self, root: Path, work: Path, host_grains: Mapping[str, Any], pillar: Mapping[str, Any]
    ) -> None:
        # Links to the formulas alone: Salt lists the whole of its file_roots, and .venv is large.
        shared = work / "formulas"
        shared.mkdir(parents=True, exist_ok=True)
        for formula in formulas(root):
            if not (shared / formula).exists():
                (shared / formula).symlink_to(root / formula)
        opts = salt.config.minion_config(None)
        opts.update(
            {
                "id": "hv1",
                "file_client": "local",
                "file_roots": {"base": [str(shared)]},
                "pillar_roots": {"base": []},
                "root_dir": str(work),
                "cachedir": str(work / "cache"),
                "pki_dir": str(work / "pki"),
                "sock_dir": str(work / "sock"),
                "extension_modules": str(work / "extmods"),
                "fileserver_list_cache_time": 0,
                "log_file": str(work / "log"),
                "grains": dict(host_grains),
                **{f"{kind}_dirs": [str(ROOT / f"_{folder}")] for kind, folder in LOADED.items()},
            }
        )
        self.root = root
        self._opts = opts
        self._high = salt.state.HighState(opts, initial_pillar=dict(pillar))
        self._state = self._high.state
        self._known: dict[str, bool] = {}

    @property
    def functions(self) -> Any:
        """The execution modules, as an SLS sees them."""
        return self._state.functions

    @property
    def opts(self) -> Any:
        """Salt's options of this host."""
        return self._opts

    def close(self) -> None:
        """Frees what Salt holds open."""
        self._high.destroy()

    def compile(self, *sls: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Compiles SLS files together to their low states.

        Args:
            sls: their names, such as "kvm.packages".

        Returns:
            The low states, and Salt's own errors.
        """
        self._high.building_highstate = {}
        high, errors = self._high.render_highstate({"base": list(sls)})
        if errors:
            return [], errors
        high, errors = self._state.reconcile_extend(high)
        errors += self._state.verify_high(high)
        high, more = self._state.requisite_in(high)
        errors += more
        if errors:
            return [], errors
        low = self._state.compile_high_data(high)
        # Salt 3008 returns errors too; 3006 has found them all before.
        return low if isinstance(low, tuple) else (low, [])

    def function_exists(self, low: Mapping[str, Any]) -> bool:
        """Says whether a low state's function exists, in this repository or in Salt."""
        name = f"{low['state']}.{low['fun']}"
        if name not in self._known:
            # A state of another operating system's package manager does not load on this machine, and those that
            # do take the loader half of the time of a test.
            self._known[name] = is_in_salt(low["state"], low["fun"]) or name in self._state.states
        return self._known[name]

    def template(self, low: Mapping[str, Any]) -> tuple[str, str]:
        """Renders the template of a file.managed.

        Returns:
            The text, and an error; one of them is empty.
        """
        source = self.root / str(low["source"]).removeprefix("salt://")
        context = {**low.get("defaults", {}), **low.get("context", {})}
        names = {
            "salt": self._state.functions,
            "grains": self._opts["grains"],
            "pillar": self._opts["pillar"],
            "opts": self._opts,
            "saltenv": "base",
        }
        try:
            done = salt.utils.templates.JINJA(str(source), to_str=True, context=context, **names)
        except salt.exceptions.SaltRenderError as error:
            return "", str(error)
        return (done["data"], "") if done["result"] else ("", done["data"])


@functools.cache
def is_in_salt(state: str, function: str) -> bool:
    """Says whether the source of Salt's own states has a function."""
    source = Path(salt.state.__file__).parent / "states" / f"{state}.py"
    return source.exists() and f"def {function}(" in source.read_text(encoding="utf-8")


def problems(host: Host, *sls: str) -> list[str]:
    """Compiles SLS files together and says what breaks the rules of this repository.

    Args:
        host: the host to compile for.
        sls: the names of the SLS files.

    Returns:
        One line for each problem.
    """
    low, errors = host.compile(*sls)
    found = [f"does not compile: {error}" for error in errors]
    for chunk in low:
        where = f"{chunk['state']}.{chunk['fun']} {chunk['__id__']}"
        found += [f"{where}: {what}" for what in chunk_problems(host, chunk)]
        found += [f"{where}: {what}" for what in requisite_problems(chunk, low)]
    found += duplicate_problems(low)
    return found


def chunk_problems(host: Host, chunk: Mapping[str, Any]) -> Iterator[str]:
    """Looks at one low state by itself."""
    formula = str(chunk["__sls__"]).split(".", maxsplit=1)[0]
    if not re.match(rf"{formula}_[a-z]", str(chunk["__id__"])):
        yield f"the id must begin with {formula}_ and a noun"
    if chunk["state"] in SHELL_STATES:
        yield "uses a shell"
    elif not host.function_exists(chunk):
        yield "there is no such state"
    for argument in SHELL_ARGUMENTS:
        given = chunk.get(argument, [])
        if any(isinstance(one, str) for one in (given if isinstance(given, list) else [given])):
            yield f"{argument} uses a shell"
    for argument in MODES:
        mode = chunk.get(argument)
        if mode is not None and not (isinstance(mode, str) and re.fullmatch(r"0[0-7]{3,4}|keep", mode)):
            yield f"{argument} must be quoted and begin with 0, not {mode!r}"
    if chunk["state"] == "file":
        yield from source_problems(host, chunk)


def source_problems(host: Host, chunk: Mapping[str, Any]) -> Iterator[str]:
    """Looks at the source of a file, and renders it if it is a template."""
    sources = chunk.get("source", [])
    for source in [sources] if isinstance(sources, str) else sources:
        if source.startswith(FOREIGN_SOURCES) or not source.startswith("salt://"):
            continue
        path = host.root / source.removeprefix("salt://")
        if not path.exists():
            yield f"{source} does not exist"
        elif chunk.get("template") == "jinja":
            text, error = host.template({**chunk, "source": source})
            if error:
                yield f"{source} does not render: {error.strip().splitlines()[0]}"
            elif "{{" in text or "{%" in text:
                yield f"{source} leaves Jinja behind"


def requisite_problems(
    chunk: Mapping[str, Any], low: list[dict[str, Any]]
) -> Iterator[str]:
    """Looks whether every requisite names a state that is there."""
    for requisite in REQUISITES:
        for entry in chunk.get(requisite, []):
            if not isinstance(entry, dict):
                yield f"{requisite} {entry}: must name the kind of state"
                continue
            for state, name in entry.items():
                if not any(
                    other["state"] == state and name in {other["__id__"], other["name"]}
                    for other in low
                ):
                    yield f"{requisite} {state}: {name} is nowhere"


def duplicate_problems(low: list[dict[str, Any]]) -> Iterator[str]:
    """Looks for two states that manage the same thing."""
    things = Counter((chunk["state"], chunk["fun"], str(chunk["name"])) for chunk in low)
    for (state, fun, name), count in things.items():
        if count > 1:
            yield f"{state}.{fun} {name} is there {count} times"


def text_problems(path: Path) -> Iterator[str]:
    """Looks at an SLS or a template as text: it may ask Salt for nothing but the configuration."""
    text = re.sub(r"\{#.*?#\}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in SALT_CALLS.finditer(text):
        name = match.group(1) or match.group(2)
        if name not in ALLOWED_CALLS:
            yield f"{path.name}: calls salt['{name}'] while rendering"
    for match in LIVE_DATA.finditer(text):
        yield f"{path.name}: reads {match.group(1)} instead of the configuration"
    for pattern, what in HIDDEN:
        if pattern.search(text):
            yield f"{path.name}: {what}"
    if path.suffix == ".sls" and not text.startswith("# "):
        yield f"{path.name}: must open with a line on what it guarantees"

"""What ``formula.config`` of the minion and of salt-ssh have in common: all but the fetching.

To parse and to judge are most of the work, and a host asks the same again and again. So a minion
remembers, in a file of its cache that root alone reads, what the formula's own files came to and which
pillars were accepted with them: of a pillar its digest, never a value. Whatever differs is judged anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import salt.utils.ctx
import salt.utils.yaml
from salt.exceptions import CommandExecutionError

# Logs every error in a template with its traceback.
TEMPLATE_LOGGER = "salt.utils.templates"
# Every formula has all three; an osmap may be empty.
FILES = ("defaults.yaml", "osmap.yaml", "schema.yaml")
CACHED = 100
REMEMBERED = 10
# What the verdict depends on besides a formula's files: a newer evaluator judges again.
EVALUATOR = ("formula_config.py", "formula_schema.py", "formula_vocabulary.py")

# Utilities named by a formula and this, with more words between or none, have a function "errors", which judges what
# the schema has accepted.
RULES = "_rules.py"
# A utility named by a formula and this has a function "uses", whose answer stands below that key of the configuration.
USES = "_uses"

Fetch = Callable[[str, str], Any]
# Salt's loader of utilities by itself: its dunder means something else inside this module.
Utils = Mapping[str, Callable[..., Any]]
Errors = list[tuple[str, str]]
# A formula's name, the file server's environment, the grains that an osmap selects by, and what the pillar
# says below the formula's name.
Subject = tuple[str, str, Mapping[str, Any], Any]

_parsed: dict[str, Any] = {}


class ConfigurationError(CommandExecutionError):  # type: ignore[misc]  # Salt has no types
    """A formula's configuration is refused; the message is for a person to read."""

    def with_traceback(self, tb: TracebackType | None) -> ConfigurationError:
        """Forgets at which line of the template it passed, since Salt would print the lines around.

        They say nothing about the pillar. Salt still wants the template's frame: it gets that, with
        no line number.

        Args:
            tb: what Jinja sets when an exception passes through a template.

        Returns:
            The exception itself.
        """
        while tb is not None and tb.tb_next is not None and not _is_template(tb):
            tb = tb.tb_next
        if tb is not None and _is_template(tb):
            tb = TracebackType(None, tb.tb_frame, -1, 0)
        super().with_traceback(tb)
        return self


def _is_template(tb: TracebackType) -> bool:
    """Says whether a traceback's entry is a template (Jinja names its code so)."""
    name = tb.tb_frame.f_code.co_name
    return name in {"template", "top-level template code"} or name.startswith("block ")


class _NoTraceback(logging.Filter):
    """Drops the record in which Salt logs a refusal's traceback; the message is reported anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Says whether a record is logged."""
        error = record.exc_info[1] if record.exc_info else None
        while error is not None:
            # By name: Salt may have loaded this module, and so the class, more than once.
            if type(error).__name__ == ConfigurationError.__name__:
                return False
            error = error.__context__
        return True


def refuse(message: str) -> NoReturn:
    """Ends the compilation of the SLS that asked, with a message and nothing else.

    Args:
        message: what the user reads.

    Raises:
        ConfigurationError: always.
    """
    logger = logging.getLogger(TEMPLATE_LOGGER)
    if not any(type(one).__name__ == _NoTraceback.__name__ for one in logger.filters):
        logger.addFilter(_NoTraceback())
    raise ConfigurationError(message)


def _texts(name: str, saltenv: str, fetch: Fetch, files: tuple[str, ...] = FILES) -> dict[str, bytes]:
    """Fetches files of a formula."""
    texts = {}
    for file in files:
        path = fetch(f"salt://{name}/{file}", saltenv)
        if not path:
            refuse(f"{name} is not a formula here: there is no salt://{name}/{file}")
        texts[file] = Path(path).read_bytes()
    return texts


def _parse(name: str, file: str, text: bytes) -> Any:
    """Parses a file of a formula, once in a process; the result must not be changed."""
    stamp = hashlib.sha256(text).hexdigest()
    if stamp not in _parsed:
        try:
            content = salt.utils.yaml.safe_load(text.decode("utf-8")) or {}
        except (salt.utils.yaml.YAMLError, UnicodeDecodeError) as error:
            refuse(f"salt://{name}/{file} cannot be read: {error}")
        if len(_parsed) > CACHED:
            _parsed.clear()
        _parsed[stamp] = content
    return _parsed[stamp]


def build(
    name: str, texts: Mapping[str, bytes], grains: Mapping[str, Any], pillar: Any, utils: Utils
) -> tuple[dict[str, Any], Errors]:
    """Builds and judges the configuration of a formula from its files.

    Args:
        name: the formula.
        texts: the content of its FILES, by their names.
        grains: the host's grains that an osmap selects by.
        pillar: what the pillar says below the formula's name.
        utils: Salt's loader of utilities.

    Returns:
        The configuration, and every error in it as pairs of a pillar path and a text.

    Raises:
        ConfigurationError: one of the formula's own files is wrong.
    """
    files = {file: _parse(name, file, text) for file, text in texts.items()}
    load, judge = utils["formula_vocabulary.load"], utils["formula_schema.errors"]
    try:
        result: tuple[dict[str, Any], Errors] = utils["formula_config.assemble"](
            name, files, grains, pillar, load, judge
        )
    except ValueError as error:
        refuse(f"the formula {name} is broken: {error}")
    # What no schema can say, such as networks that overlap. Salt's loader would look for a missing one everywhere.
    if not result[1]:
        for module in _rules(name):
            result[1].extend(utils[f"{module}.errors"](result[0]))
    return result


def _rules(name: str) -> list[str]:
    """Returns the utilities that judge a formula: ``network_rules``, ``network_ovs_rules`` and the like."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in (*folder.glob(f"{name}{RULES}"), *folder.glob(f"{name}_*{RULES}")))


def _used(name: str, configuration: dict[str, Any], utils: Utils) -> dict[str, Any]:
    """Returns a configuration with which parts of its formula it uses, where the formula has a utility for that."""
    module = f"{name}{USES}"
    if not _beside(f"{module}.py").exists():
        return configuration
    return {**configuration, "uses": utils[f"{module}.uses"](configuration)}


def _beside(file: str) -> Path:
    """Returns the path of another utility."""
    return Path(__file__).with_name(file)


def validate(subject: Subject, fetch: Fetch, utils: Utils) -> Errors:
    """Judges what the pillar says for a formula; arguments as :func:`config` takes them.

    Returns:
        Every error as pairs of a pillar path and a text; an empty list when all is well.

    Raises:
        ConfigurationError: there is no such formula, or one of its own files is wrong.
    """
    name, saltenv, grains, pillar = subject
    return build(name, _texts(name, saltenv, fetch), grains, pillar, utils)[1]


def judge(
    name: str, definition: str, value: Any, where: str, saltenv: str, fetch: Fetch, utils: Utils
) -> Errors:
    """Judges a value that did not come through the pillar by a definition of a formula's schema.

    Args:
        name: the formula.
        definition: a name below ``$defs`` of its schema.
        value: the arguments of a state or of a function.
        where: what the errors' paths begin with, such as the state's name.
        saltenv: the file server's environment.
        fetch: as :func:`config` takes it.
        utils: Salt's loader of utilities.

    Returns:
        Every error in it as pairs of a path and a text; an empty list when all is well.

    Raises:
        ConfigurationError: there is no such formula, or its schema is wrong.
    """
    (text,) = _texts(name, saltenv, fetch, ("schema.yaml",)).values()
    definitions = _parse(name, "schema.yaml", text).get("$defs", {})
    unfit: list[tuple[tuple[str, ...], str]] = []
    copy = utils["formula_config.plain"](value, (where,), unfit)
    part = {"$defs": definitions, "$ref": f"#/$defs/{definition}"}
    try:
        vocabulary = utils["formula_vocabulary.load"](part)
    except ValueError as error:
        refuse(f"the formula {name} is broken: {error}")
    found: Errors = utils["formula_schema.errors"](part, copy, where, vocabulary, unfit)
    return found


class _Known(NamedTuple):
    """A configuration as text, empty if it is refused, and what it was made of."""

    grains: Mapping[str, Any]
    pillar: Any
    text: str


class _Memory:
    """What earlier runs on this host have found out about a formula.

    Args:
        path: the file that holds it; None where nothing is remembered.
        texts: the content of the formula's files.
        grains: the host's grains that an osmap selects by.
    """

    def __init__(self, path: Path | None, texts: Mapping[str, bytes], grains: Mapping[str, Any]) -> None:
        self._path = path
        digest = hashlib.sha256(json.dumps(grains, default=repr).encode())
        # Every run comes here, and a pattern of pathlib's takes longer than the ends of names.
        rules = sorted(one for one in Path(__file__).parent.iterdir() if one.name.endswith(RULES))
        judges = [*map(_beside, EVALUATOR), *rules]
        for part in (*[one.read_bytes() for one in judges], *texts.values()):
            digest.update(hashlib.sha256(part).digest())
        self._stamp = digest.hexdigest()
        self._known: dict[str, Any] = {}
        try:
            found = json.loads(path.read_bytes()) if path else {}
            if found["stamp"] == self._stamp and isinstance(found["accepted"], list):
                self._known = found
        except (OSError, ValueError, TypeError, KeyError):
            # Nothing yet, or not ours: it is written anew.
            self._known = {}

    def _verdict(self, pillar: Any) -> str:
        """The digest that stands for a pillar."""
        return hashlib.sha256(f"{self._stamp}{json.dumps(pillar, default=repr)}".encode()).hexdigest()

    def base(self, pillar: Any) -> Any:
        """Returns the configuration without pillar if this pillar was accepted with it; else None."""
        return self._known.get("base") if self._verdict(pillar) in self._known.get("accepted", ()) else None

    def accept(self, base: Any, pillar: Any) -> None:
        """Remembers that a pillar was accepted, and the last few before it."""
        if self._path is None:
            return
        accepted = [*self._known.get("accepted", ()), self._verdict(pillar)][-REMEMBERED:]
        text = json.dumps({"stamp": self._stamp, "base": base, "accepted": accepted})
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
                handle.write(text)
            new.replace(self._path)
        except OSError as error:
            logging.getLogger(__name__).debug("%s is not remembered: %s", self._path, error)


def _fresh(
    name: str, texts: Mapping[str, bytes], grains: Mapping[str, Any], pillar: Any, utils: Utils, memory: _Memory
) -> dict[str, Any]:
    """Returns a configuration as it is remembered, or else builds, judges and remembers it."""
    base = memory.base(pillar)
    if base is not None:
        combined: dict[str, Any] = utils["formula_config.combine"](name, base, pillar)[0]
        return combined
    configuration, errors = build(name, texts, grains, pillar, utils)
    if errors:
        refuse(utils["formula_config.refusal"](name, errors))
    memory.accept(build(name, texts, grains, None, utils)[0], pillar)
    return configuration


def config(
    subject: Subject,
    fetch: Fetch,
    utils: Utils,
    cache: MutableMapping[Any, Any],
    folder: str | None = None,
) -> dict[str, Any]:
    """Returns a formula's configuration, built once in a run.

    Args:
        subject: what is asked for.
        fetch: takes a salt:// address and an environment and returns the path of a local copy or
            nothing.
        utils: Salt's loader of utilities.
        cache: a mapping that lives as long as the run, or longer; what is in it is this function's own.
        folder: a folder that only root reads, where findings outlive the run; None for nowhere.

    Returns:
        A configuration that the caller may change without harm to others.

    Raises:
        ConfigurationError: the pillar is refused, or the formula is broken.
    """
    name, saltenv, grains, pillar = subject
    # A cache can outlive a job (multiprocessing: false) and a job can override its pillar.
    # Salt 3006 has a request of another kind, and does not say.
    request: dict[str, Any] = getattr(salt.utils.ctx, "get_request_context", dict)()
    key = (name, saltenv, request.get("data", {}).get("jid"))
    known = cache.get(key)
    # Every SLS asks. In one run pillar and grains are the same objects; to make texts of them would take far longer.
    if known is None or (known.grains, known.pillar) != (grains, pillar):
        texts = _texts(name, saltenv, fetch)
        memory = _Memory(Path(folder) / f"{saltenv}-{name}.json" if folder else None, texts, grains)
        if len(cache) > CACHED:
            cache.clear()
        cache[key] = _Known(grains, pillar, "")
        configuration = _fresh(name, texts, grains, pillar, utils, memory)
        known = cache[key] = _Known(grains, pillar, json.dumps(_used(name, configuration, utils)))
    if not known.text:
        # Every SLS of the formula asks, also those that another formula includes: the errors are said once.
        refuse(f"the pillar of {name} is refused, see above")
    found: dict[str, Any] = json.loads(known.text)
    return found

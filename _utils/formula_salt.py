"""What ``formula.config`` of the minion and of salt-ssh have in common: all but the fetching."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import salt.utils.ctx
import salt.utils.yaml
from salt.exceptions import CommandExecutionError

# Logs every error in a template with its traceback.
TEMPLATE_LOGGER = "salt.utils.templates"
# Every formula has all three; an osmap may be empty.
FILES = ("defaults.yaml", "osmap.yaml", "schema.yaml")
CACHED = 100

Tools = Mapping[str, Callable[..., Any]]


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


def _read(name: str, saltenv: str, fetch: Callable[[str, str], Any]) -> dict[str, Any]:
    """Fetches and parses the files of a formula."""
    files = {}
    for file in FILES:
        path = fetch(f"salt://{name}/{file}", saltenv)
        if not path:
            refuse(f"{name} is not a formula here: there is no salt://{name}/{file}")
        try:
            text = Path(path).read_text(encoding="utf-8")
            files[file] = salt.utils.yaml.safe_load(text) or {}
        except (salt.utils.yaml.YAMLError, UnicodeDecodeError) as error:
            refuse(f"salt://{name}/{file} cannot be read: {error}")
    return files


def build(
    name: str, saltenv: str, grains: Mapping[str, Any], pillar: Any, tools: Tools
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Builds and judges the configuration of a formula from its files.

    Args:
        name: the formula.
        saltenv: the file server's environment.
        grains: the host's grains that an osmap selects by.
        pillar: what the pillar says below the formula's name.
        tools: ``fetch``, which takes a salt:// address and an environment and returns the path of a
            local copy or nothing; ``assemble`` and ``refusal`` of formula_config, ``load`` of
            formula_vocabulary, ``judge`` (formula_schema.errors). All as values: Salt's dunders
            mean something else inside this module.

    Returns:
        The configuration, and every error in it as pairs of a pillar path and a text.

    Raises:
        ConfigurationError: there is no such formula, or one of its own files is wrong.
    """
    files = _read(name, saltenv, tools["fetch"])
    try:
        result: tuple[dict[str, Any], list[tuple[str, str]]] = tools["assemble"](
            name, files, grains, pillar, tools["load"], tools["judge"]
        )
    except ValueError as error:
        refuse(f"the formula {name} is broken: {error}")
    return result


def judge(
    name: str, definition: str, value: Any, where: str, saltenv: str, tools: Tools
) -> list[tuple[str, str]]:
    """Judges a value that did not come through the pillar by a definition of a formula's schema.

    Args:
        name: the formula.
        definition: a name below ``$defs`` of its schema.
        value: the arguments of a state or of a function.
        where: what the errors' paths begin with, such as the state's name.
        saltenv: the file server's environment.
        tools: as :func:`build` takes them, with ``plain`` of formula_config.

    Returns:
        Every error in it as pairs of a path and a text; an empty list when all is well.

    Raises:
        ConfigurationError: there is no such formula, or its schema is wrong.
    """
    schema = _read(name, saltenv, tools["fetch"])["schema.yaml"]
    unfit: list[tuple[tuple[str, ...], str]] = []
    copy = tools["plain"](value, (where,), unfit)
    part = {"$defs": schema.get("$defs", {}), "$ref": f"#/$defs/{definition}"}
    try:
        found: list[tuple[str, str]] = tools["judge"](part, copy, where, tools["load"](part), unfit)
    except ValueError as error:
        refuse(f"the formula {name} is broken: {error}")
    return found


def config(
    name: str,
    saltenv: str,
    grains: Mapping[str, Any],
    pillar: Any,
    tools: Tools,
    cache: MutableMapping[str, str],
) -> dict[str, Any]:
    """Returns a formula's configuration, built once in a run.

    Args:
        name: the formula.
        saltenv: the file server's environment.
        grains: the host's grains that an osmap selects by.
        pillar: what the pillar says below the formula's name.
        tools: as :func:`build` takes them.
        cache: a mapping that lives as long as the run, or longer.

    Returns:
        A configuration that the caller may change without harm to others.

    Raises:
        ConfigurationError: the pillar is refused, or the formula is broken.
    """
    # A cache can outlive a job (multiprocessing: false) and a job can override its pillar.
    job = salt.utils.ctx.get_request_context().get("data", {}).get("jid")
    key = json.dumps([name, saltenv, job, grains, pillar], sort_keys=True, default=repr)
    if key not in cache:
        configuration, errors = build(name, saltenv, grains, pillar, tools)
        if len(cache) > CACHED:
            cache.clear()
        cache[key] = "" if errors else json.dumps(configuration)
        if errors:
            refuse(tools["refusal"](name, errors))
    if not cache[key]:
        # Every SLS of the formula asks, also those that another formula includes: the errors are said once.
        refuse(f"the pillar of {name} is refused, see above")
    found: dict[str, Any] = json.loads(cache[key])
    return found

"""The door for operators: salt-api's HTTP server with login, run and logout, and every request judged before Salt.

Salt itself decides by user, function and host (``external_auth``). What it would let pass beside that ends here:

* a list of functions, of which it asks only one to be allowed, and ``saltutil.find_job``, which it allows to everybody;
* targets that its cache and the hosts may understand differently, such as grains;
* arguments of its own: returners, executors, job ids, words of a job that only the master may set;
* ``/events`` without any limit by user, hooks, keys, jobs, and logins by cookie, which a foreign page could use.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cherrypy
import cherrypy.lib.sessions
import salt.auth
import salt.client
import salt.exceptions
import salt.loader
from salt.netapi.rest_cherrypy import app

# Salt's loader knows this file and none beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import hypervisor_audit
from hypervisor_inventory import access, tokens

__opts__: dict[str, Any]
__virtualname__ = "hypervisor_api"

log = logging.getLogger(__name__)

_CLIENTS = frozenset({"local", "local_async", "runner_async"})
_KEYS = frozenset({"client", "tgt", "fun", "arg", "kwarg"})
# The master's runner takes named arguments alone, and these of them are hosts.
_KEYS_OF_RUNNER = frozenset({"client", "fun", "kwarg"})
_HOSTS_OF_RUNNER = ("host", "target")
_MINION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_KEYWORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
# Salt would read a text like this as an argument with a name, also one that only the master may set.
_LIKE_KEYWORD = re.compile(r"\s*[^\W\d][\w.-]*=", re.ASCII)
_MOST_ARGUMENTS, _MOST_HOSTS = 16, 1000
_JSON = "application/json"
_PATIENCE = 10  # seconds for a request to arrive


def __virtual__() -> str | bool:
    """Loads only where the master's configuration has this door."""
    return __virtualname__ if __opts__.get(__virtualname__) else False


class RefusedError(ValueError):
    """A request that Salt never sees."""


def judged(
    request: Any, functions: frozenset[str], reads: frozenset[str], runners: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Returns a request in the one form that is passed on.

    Args:
        request: what came as JSON.
        functions: what may be called by anybody at all.
        reads: those of them that only look, and may be waited for.
        runners: the functions of the master's runner that may be called by anybody at all.

    Returns:
        ``client``, ``tgt`` (a list of minion ids), ``tgt_type``, ``fun``, ``arg`` and ``kwarg``; for the runner
        ``client``, ``fun`` and ``kwarg``.

    Raises:
        RefusedError: it is not one; the message says why and shows nothing of it.
    """
    if isinstance(request, list) and len(request) == 1:
        (request,) = request
    if not isinstance(request, dict):
        raise RefusedError("a request is one mapping")
    if unknown := request.keys() - _KEYS:
        raise RefusedError(f"{len(unknown)} of the keys are not known; allowed: {', '.join(sorted(_KEYS))}")
    client = request.get("client")
    if not isinstance(client, str) or client not in _CLIENTS:
        raise RefusedError(f"client must be one of {', '.join(sorted(_CLIENTS))}")
    if client == "runner_async":
        return _of_runner(request, runners)
    function = request.get("fun")
    if not isinstance(function, str) or function not in functions:
        raise RefusedError("fun must be one function that operators are given")
    if request["client"] == "local" and function not in reads:
        raise RefusedError("what changes something is a job: client must be local_async")
    return {
        "client": request["client"],
        "tgt": _targets(request.get("tgt")),
        "tgt_type": "list",
        "fun": function,
        "arg": _positional(request.get("arg", [])),
        "kwarg": _keywords(request.get("kwarg", {})),
    }


def _of_runner(request: Mapping[str, Any], runners: frozenset[str]) -> dict[str, Any]:
    """Judges a request to the master's runner, which has no targets of Salt's."""
    if request.keys() - _KEYS_OF_RUNNER:
        raise RefusedError(f"the runner takes {', '.join(sorted(_KEYS_OF_RUNNER))} alone")
    function = request.get("fun")
    if not isinstance(function, str) or function not in runners:
        raise RefusedError("fun must be one function that operators are given")
    named = _keywords(request.get("kwarg", {}))
    for key in _HOSTS_OF_RUNNER:
        if named.get(key) is not None and not (isinstance(named[key], str) and _MINION.fullmatch(named[key])):
            raise RefusedError(f"{key} must be a minion id")
    return {"client": "runner_async", "fun": function, "kwarg": named}


def permitted(chunk: Mapping[str, Any], user: str, groups: list[str], table: Mapping[str, Any]) -> bool:
    """Says whether a request to the runner is one that the user may make; what it chooses, the runner judges itself.

    Args:
        chunk: the request.
        user: who asks.
        groups: of the user.
        table: ``users`` and ``groups``, each a mapping of names to functions with their hosts.
    """
    given = [table["users"].get(user, {}), *(table["groups"].get(group, {}) for group in groups)]
    allowed = {host for one in given for host in one.get(chunk["fun"], ())}
    named = {chunk["kwarg"].get(key) for key in _HOSTS_OF_RUNNER} - {None}
    return bool(allowed) and named <= allowed


def _targets(given: Any) -> list[str]:
    """Checks the hosts: minion ids, no patterns."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not 0 < len(names) <= _MOST_HOSTS:
        raise RefusedError("tgt must be a minion id or a list of them")
    if not all(isinstance(name, str) and _MINION.fullmatch(name) for name in names):
        raise RefusedError("tgt must be minion ids; patterns are not understood")
    return names


def _positional(given: Any) -> list[Any]:
    """Checks the arguments without a name."""
    if not isinstance(given, list) or len(given) > _MOST_ARGUMENTS:
        raise RefusedError("arg must be a list")
    for one in given:
        if isinstance(one, list | dict) or (isinstance(one, str) and _LIKE_KEYWORD.match(one)):
            raise RefusedError("arg must be plain values; what has a name belongs into kwarg")
    return given


def _keywords(given: Any) -> dict[str, Any]:
    """Checks the names of arguments; the functions check their values."""
    if not isinstance(given, dict) or len(given) > _MOST_ARGUMENTS:
        raise RefusedError("kwarg must be a mapping")
    if not all(_KEYWORD.fullmatch(name) for name in given):
        raise RefusedError("kwarg has a name that no argument has")
    return given


def login(request: Any) -> tuple[str, str]:
    """Returns name and password of a login.

    Raises:
        RefusedError: it is none.
    """
    if isinstance(request, list) and len(request) == 1:
        (request,) = request
    if not isinstance(request, dict) or request.keys() != {"username", "password"}:
        raise RefusedError("a login is a mapping of username and password")
    username, password = request["username"], request["password"]
    if not isinstance(username, str) or not isinstance(password, str):
        raise RefusedError("username and password are texts")
    return username, password


# ---- what CherryPy calls ----


def _without_cookies() -> None:
    """Forgets cookies: X-Auth-Token alone says who asks, and no foreign page can send that."""
    cherrypy.request.cookie.clear()
    cherrypy.request.headers.pop("Cookie", None)


def _no_cookie_back() -> None:
    """Gives no cookie away either."""
    cherrypy.response.cookie.clear()


def _json_alone() -> None:
    """Refuses what a form of a foreign page could send."""
    if cherrypy.request.method != "POST":
        return
    kind = cherrypy.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    empty = cherrypy.request.headers.get("Content-Length") == "0"
    if kind != _JSON and not empty:
        raise cherrypy.HTTPError(415, f"a request is {_JSON}")


def _as_json(status: str, message: str, traceback: str, version: str) -> str:
    """Writes an error as the page reads it, without what only programmers need."""
    del traceback, version
    cherrypy.response.headers["Content-Type"] = _JSON
    return json.dumps({"error": message, "status": int(status.split(maxsplit=1)[0])})


class Sessions(cherrypy.lib.sessions.RamSession):  # type: ignore[misc]
    """Sessions of logins. Salt before 3008.3 also keeps one for each request without a login, for ten hours."""

    def _save(self, expiration_time: Any) -> None:
        """Keeps a session that somebody has logged in with."""
        if self._data:
            super()._save(expiration_time)


class _Handler(app.LowDataAdapter):  # type: ignore[misc]
    """What all three have in common. There is nothing to GET."""

    GET = None

    def _lowstate(self) -> Any:
        """Returns what came as JSON."""
        return getattr(cherrypy.request, "lowstate", None)


def _note(trail: hypervisor_audit.Trail, event: str, **fields: Any) -> None:
    """Writes a line of the trail that nothing waits for."""
    try:
        trail.write(event, **fields)
    except OSError as error:
        log.error("%s could not be written down: %s", event, error)


class Run(_Handler):
    """Calls one function on hosts, as who logged in."""

    _cp_config: Mapping[str, Any] = {**app.LowDataAdapter._cp_config, "tools.salt_auth.on": True}

    def __init__(self, trail: hypervisor_audit.Trail) -> None:
        super().__init__()
        self.trail = trail

    def POST(self, **_: Any) -> dict[str, Any]:  # noqa: N802 - CherryPy calls it by the method
        """Judges the request, passes it on and writes down what changes something."""
        settings = self.opts[__virtualname__]
        reads = frozenset(settings["reads"])
        user, token = cherrypy.session.get("user"), cherrypy.session.get("token")
        try:
            known = frozenset(settings["functions"]), reads, frozenset(settings["runners"])
            chunk = judged(self._lowstate(), *known)
        except RefusedError as error:
            _note(self.trail, "refused", user=user, why=str(error))
            raise cherrypy.HTTPError(400, str(error)) from None
        number = "" if chunk["fun"] in reads else self._request(user, chunk)
        cherrypy.request.lowstate = [chunk]
        try:
            # Salt says of the runner only that a login is no good, whatever is wrong.
            if chunk["client"] == "runner_async" and not self._permitted(user, chunk):
                raise salt.exceptions.AuthorizationError("no role of the user's")
            answer = list(self.exec_lowstate(token=token))
        except salt.exceptions.AuthorizationError:
            why = "no role allows this function on these hosts"
            asked = {"id": number} if number else {"function": chunk["fun"], "hosts": chunk["tgt"]}
            _note(self.trail, "refused", user=user, why=why, **asked)
            raise cherrypy.HTTPError(403, why) from None
        if number:
            self._started(number, answer)
        return {"return": answer}

    def _request(self, user: str, chunk: Mapping[str, Any]) -> str:
        """Writes a request down, without which it is not passed on."""
        try:
            return self.trail.request(user, chunk)
        except OSError:
            raise cherrypy.HTTPError(503, "the request could not be written down, so nothing was done") from None

    def _permitted(self, user: str, chunk: Mapping[str, Any]) -> bool:
        """Says whether a request to the runner is one that the user may make."""
        table = self.opts[__virtualname__]["fleet"]
        groups = salt.loader.auth(dict(self.opts))["hypervisor.groups"](user) if table["groups"] else []
        return permitted(chunk, user, groups, table)

    def _started(self, number: str, answer: list[Any]) -> None:
        """Writes down the job that a request became, or that no host was there."""
        job = answer[0] if answer and isinstance(answer[0], Mapping) else {}
        if job.get("jid"):
            try:
                # A job of the runner is the master's own.
                self.trail.started(number, str(job["jid"]), list(job.get("minions") or [self.opts["id"]]))
            except OSError as error:
                log.error("the job %s could not be written down: %s", job["jid"], error)
        else:
            _note(self.trail, "refused", id=number, why="none of the hosts is there")


class Login(app.Login):  # type: ignore[misc]
    """Takes a name and a password for a token."""

    GET = None

    def __init__(self, trail: hypervisor_audit.Trail) -> None:
        super().__init__()
        self.trail = trail

    def POST(self, **_: Any) -> dict[str, Any]:  # noqa: N802 - CherryPy calls it by the method
        """Seals the password, which makes it good at the master, and lets Salt judge it."""
        try:
            username, password = login(getattr(cherrypy.request, "lowstate", None))
        except RefusedError as error:
            raise cherrypy.HTTPError(400, str(error)) from None
        # UnicodeEncodeError: a lone surrogate is JSON, but no text.
        try:
            sealed = salt.loader.auth(dict(self.opts))["hypervisor.seal"](username, password)
        except UnicodeEncodeError:
            raise cherrypy.HTTPError(400, "username and password are texts") from None
        cherrypy.request.lowstate = [{"username": username, "password": sealed, "eauth": "hypervisor"}]
        # Somebody may have typed a password where the name belongs: only names that are known are kept.
        known = username in self.opts["external_auth"]["hypervisor"]
        try:
            answer: dict[str, Any] = super().POST()
        except cherrypy.HTTPError:
            _note(self.trail, "login refused", user=username if known else None)
            raise
        cherrypy.session["user"] = username
        _note(self.trail, "login", user=username)
        return answer


class Logout(app.Logout):  # type: ignore[misc]
    """Ends a login."""


class Root:
    """The paths that there are; all else is 404."""

    def __init__(self, trail: hypervisor_audit.Trail) -> None:
        self.login, self.logout, self.run = Login(trail), Logout(), Run(trail)


def configuration(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns CherryPy's configuration."""
    return {
        "global": {
            "environment": "production",
            "engine.autoreload.on": False,
            "server.socket_host": settings["host"],
            "server.socket_port": settings["port"],
            "server.thread_pool": settings["thread_pool"],
            "server.socket_queue_size": settings["queue_size"],
            "server.socket_timeout": _PATIENCE,
            "server.max_request_body_size": settings["max_body"],
            "server.max_request_header_size": 16384,
            "log.access_file": "",
            "log.error_file": "",
        },
        "/": {
            "request.dispatch": cherrypy.dispatch.MethodDispatcher(),
            "request.show_tracebacks": False,
            "error_page.default": _as_json,
            "tools.hypervisor_no_cookies.on": True,
            "tools.hypervisor_no_cookie_back.on": True,
            "tools.hypervisor_json.on": True,
            # Salt's own handlers have theirs where it does the same.
            "tools.sessions.storage_class": Sessions,
        },
    }


def _who(opts: Mapping[str, Any]) -> tokens.Who:
    """Returns the function that says whose login a token is."""
    logins = salt.auth.LoadAuth(dict(opts))
    store: Any = cherrypy.lib.sessions.RamSession

    def who(token: str) -> dict[str, Any] | None:
        # CherryPy's own store, in which a login is found by the token that the page has.
        kept = store.cache.get(token)
        if kept is None or kept[1] < store.now(None):
            return None
        session, user = kept[0], kept[0].get("user")
        known = logins.get_tok(session.get("token") or "")
        if not user or not known or known.get("name") != user:
            return None
        groups = [one for one in known.get("groups") or () if isinstance(one, str)]
        external, fleet = opts["external_auth"]["hypervisor"], opts[__virtualname__].get("fleet")
        return {"user": user, "functions": access.functions(external, user, groups, fleet)}

    return who


def start() -> None:
    """Serves until the process ends."""
    opts = dict(__opts__)
    settings = opts[__virtualname__]
    # Before Salt's own tools, which take a token from a cookie and read the body.
    cherrypy.tools.hypervisor_no_cookies = cherrypy.Tool("on_start_resource", _without_cookies, priority=10)
    cherrypy.tools.hypervisor_json = cherrypy.Tool("before_request_body", _json_alone, priority=10)
    cherrypy.tools.hypervisor_no_cookie_back = cherrypy.Tool("before_finalize", _no_cookie_back, priority=95)
    cherrypy.config["saltopts"] = opts
    cherrypy.config["apiopts"] = dict(settings)
    conf = configuration(settings)
    cherrypy.config.update(conf["global"])
    trail, stop = hypervisor_audit.Trail(settings["audit"]), threading.Event()
    returns = salt.client.LocalClient(mopts=opts).returners[f"{opts['master_job_cache']}.get_jid"]
    threading.Thread(target=hypervisor_audit.follow, args=(trail, returns, stop), daemon=True).start()
    if settings.get("tokens"):
        tokens.serve(Path(settings["tokens"]["socket"]), settings["tokens"]["user"], _who(opts))
    cherrypy.quickstart(Root(trail), "/", conf)
    stop.set()

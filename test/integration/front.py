"""The lab's controller with the page's way in, for one suite after the other, and real HTTPS requests to it."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import salt, web
from lab.lab import Lab


@dataclass
class Front:
    """What stands in front of the master.

    Attributes:
        lab: the lab.
        users: name to ``password`` and ``hash``.
        predicted: what the first highstate was predicted to change on the controller.
        first: what it did.
    """

    lab: Lab
    users: dict[str, dict[str, str]]
    predicted: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The controller's address."""
        return str(self.lab.hosts.addresses[self.lab.hosts.controller])

    @property
    def origin(self) -> str:
        """What a browser calls the page."""
        return f"https://{self.host}"

    @property
    def believed(self) -> ssl.SSLContext:
        """The lab's authority for the web, and no other."""
        printed = self.lab.run(self.lab.hosts.controller, ["cat", web.CA]).stdout
        return ssl.create_default_context(cadata=printed)

    def ask(
        self, method: str, path: str, body: Any = None, token: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request over TLS and return status, headers with small names, and body."""
        connection = http.client.HTTPSConnection(self.host, timeout=60, context=self.believed)
        data = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= {"X-Auth-Token": token} if token else {}
        try:
            named = {key.replace("_", "-"): text for key, text in headers.items()}
            connection.request(method, path, data, sent | named)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def token(self, user: str) -> str:
        """Log in as a user of the lab."""
        status, _, text = self.ask("POST", "/api/login", {"username": user, "password": self.users[user]["password"]})
        assert status == 200, text
        return str(json.loads(text)["return"][0]["token"])

    def highstate(self, test: bool = False) -> dict[str, Any]:
        """Run the controller's highstate and return its figures, once the restart that it announced is over."""
        name = self.lab.hosts.controller
        answer = salt.highstate(self.lab.hosts, [name], test=test)
        if test:
            return salt.summary(answer[name])
        figures = salt.check_green(answer)[name]
        web.settled(self.lab.hosts)
        salt.wait_answering(self.lab.hosts)
        return figures

    def pillar(self, **nginx: Any) -> None:
        """Give the controller its pillar, with some keys of nginx altered."""
        files = salt.pillar_files(self.lab.hosts, self.users)
        name = f"{self.lab.hosts.controller}.sls"
        salt.merge_pillar(self.lab.hosts, {name: salt.merged_yaml(files[name], {"nginx": nginx})})


@contextmanager
def served(lab: Lab) -> Iterator[Front]:
    """Let the controller serve the page to new users, and take all of it away in the end."""
    front = Front(lab, web.make_users())
    salt.renew_pki(lab.hosts)
    salt.wait_answering(lab.hosts)
    front.pillar()
    try:
        front.predicted = front.highstate(test=True)
        front.first = front.highstate()
        answering(front)
        yield front
    finally:
        salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))
        # The suite that ends first takes it away; what it stood on for those before it has gone with it.
        stood = listens(lab)
        last = front.highstate()
    assert ({"nginx_absent", "saltapi_absent"} <= set(last["changed"])) == stood, last
    assert not listens(lab)


def listens(lab: Lab) -> bool:
    """Say whether the controller serves anything over HTTPS."""
    return bool(lab.run(lab.hosts.controller, ["ss", "-Hltn", "sport", "=", ":443"]).stdout)


def answering(front: Front, timeout: float = 120) -> None:
    """Wait until a login gets an answer from salt-api, which takes a while after its restart."""
    deadline = time.monotonic() + timeout
    while front.ask("POST", "/api/logout", {})[0] in {502, 503, 504}:
        assert time.monotonic() < deadline, "salt-api does not answer"
        time.sleep(0.5)



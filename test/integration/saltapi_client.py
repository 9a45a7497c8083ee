"""Asks salt-api on a host, as a program beside it would: one HTTP request after another, and what came back."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

PASSWORDS = {"vera": "look-7hK2", "otto": "work-4pQ9", "olga": "work-4pQ9", "anna": "rule-9sV3", "noone": "look-7hK2",
             "ines": "see-3kM8"}  # fmt: skip
PORT = 8000
TRAIL = "/var/log/salt/hypervisor-audit.log"
# Runs on the host. Requests arrive as JSON: path, body (text) and headers.
CLIENT = """
import http.client, json, sys
answers = []
for path, body, headers in json.load(sys.stdin):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=90)
    try:
        connection.request("POST", path, body.encode(), headers)
        answer = connection.getresponse()
        answers.append([answer.status, dict(answer.getheaders()), answer.read().decode()])
    except (OSError, http.client.HTTPException) as error:
        answers.append([0, {}, repr(error)])
    connection.close()
print(json.dumps(answers))
""".replace("PORT", str(PORT))


class Answer(NamedTuple):
    """What came back; status 0 is no answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def value(self) -> Any:
        """What Salt returned."""
        (found,) = json.loads(self.text)["return"]
        return found


def request(path: str, body: Any, token: str = "", **headers: str) -> list[Any]:
    """Describe one request; a body that is no text is sent as JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    sent = {"Content-Type": "application/json"} | ({"X-Auth-Token": token} if token else {})
    return [path, text, sent | {name.replace("_", "-"): value for name, value in headers.items()}]


class Api:
    """salt-api of a host that testinfra reaches."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.tokens: dict[str, str] = {}

    def ask(self, *requests: list[Any]) -> list[Answer]:
        """Send requests and return the answers."""
        done = self.host.run("printf %s %s | python3 -c %s", "%s", json.dumps(requests), CLIENT)
        assert done.rc == 0, done.stderr
        return [Answer(*row) for row in json.loads(done.stdout)]

    def login(self, user: str, password: str = "") -> Answer:
        """Log in, by default with the right password."""
        body = {"username": user, "password": password or PASSWORDS[user]}
        return self.ask(request("/login", body))[0]

    def token(self, user: str) -> str:
        """Return a token of a user, of one login."""
        if user not in self.tokens:
            answer = self.login(user)
            assert answer.status == 200, answer
            self.tokens[user] = answer.value["token"]
        return self.tokens[user]

    def run(self, user: str, function: str, host: str, *args: Any, **kwargs: Any) -> Answer:
        """Start one function as a user; it is a job."""
        body = {"client": "local_async", "tgt": host, "fun": function, "arg": list(args), "kwarg": kwargs}
        return self.ask(request("/run", body, self.token(user)))[0]

    def trail(self) -> list[dict[str, Any]]:
        """Return what is written down of who did what."""
        return [json.loads(line) for line in self.host.file(TRAIL).content_string.splitlines()]

    def outcome(self, answer: Answer) -> dict[str, Any]:
        """Wait for the one outcome of a job that one host was asked for."""
        assert answer.status == 200, answer
        deadline = time.monotonic() + 90
        while True:
            found = [row for row in self.trail() if row["event"] == "outcome" and row["job"] == answer.value["jid"]]
            if found:
                (row,) = found
                return row
            assert time.monotonic() < deadline, f"no outcome of {answer.value['jid']}"
            time.sleep(0.5)

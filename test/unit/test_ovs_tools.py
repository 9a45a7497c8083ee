"""Keys reach the database through its socket: in one transaction, durable, and in no message."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from _utils import ovs_tools

KEY = "kq3Vw8yR0bN5tXz1LmCe"


@contextlib.contextmanager
def database(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A database that answers the first question with this, in two pieces."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            link, _ = server.accept()
            with link:
                asked.append(link.recv(65536))
                link.sendall(answer[:7])
                link.sendall(answer[7:])

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(5)


def test_keys_are_stored_in_one_durable_transaction(tmp_path):
    answer = json.dumps({"id": 1, "error": None, "result": [{"count": 1}, {"count": 1}, {}]}).encode()
    with database(tmp_path / "db", answer) as asked:
        ovs_tools.set_keys({"a": KEY, "b": KEY}, str(tmp_path / "db"))
    question = json.loads(asked[0])
    name, *operations = question["params"]
    assert (question["method"], name, operations[-1]) == ("transact", "Open_vSwitch", {"op": "commit", "durable": True})
    assert [one["where"] for one in operations[:2]] == [[["name", "==", "a"]], [["name", "==", "b"]]]
    assert operations[0]["mutations"] == [
        ["options", "delete", ["set", ["psk"]]],
        ["options", "insert", ["map", [["psk", KEY]]]],
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"id": 1, "error": None, "result": [{"count": 0}, {}]},
        {"id": 1, "error": {"error": "constraint violation"}, "result": None},
        {"id": 1, "error": None, "result": []},
    ],
)
def test_a_key_that_is_not_stored_is_a_failure_that_does_not_show_it(tmp_path, answer):
    with database(tmp_path / "db", json.dumps(answer).encode()), pytest.raises(CommandExecutionError) as caught:
        ovs_tools.set_keys({"a": KEY}, str(tmp_path / "db"))
    assert "the keys of a could not be stored" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_database_that_is_not_there_or_ends_is_told(tmp_path):
    with pytest.raises(CommandExecutionError, match="does not answer: No such file"):
        ovs_tools.set_keys({"a": KEY}, str(tmp_path / "none"))
    with database(tmp_path / "db", b""), pytest.raises(CommandExecutionError, match="without an answer"):
        ovs_tools.set_keys({"a": KEY}, str(tmp_path / "db"))


def test_a_program_that_is_missing_or_fails_says_so():
    with pytest.raises(CommandExecutionError, match="no-such-program is not installed"):
        ovs_tools.run(["no-such-program"])
    with pytest.raises(CommandExecutionError, match="sh: why"):
        ovs_tools.run(["sh", "-c", "echo why >&2; exit 3"])
    assert ovs_tools.run(["sh", "-c", "echo out; exit 3"], ok=(3,)) == "out\n"
    with pytest.raises(CommandExecutionError, match="did not end within 0 s"):
        ovs_tools.run(["sleep", "5"], timeout=0.1)


def test_json_is_read_where_there_is_some():
    assert ovs_tools.parsed('{"a": 1}') == {"a": 1}
    assert ovs_tools.parsed("") is None

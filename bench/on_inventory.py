"""Runs on the lab's master, under Salt's own Python: replays hosts' signed messages, and times who reads them.

It is sent to the host as text, so it imports nothing of this repository but the code that hypervisors sign with. Its
argument is a JSON object, see :func:`main`. It prints one line of JSON.
"""

from __future__ import annotations

import gzip
import http.client
import importlib.util
import itertools
import json
import multiprocessing
import queue
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATABASE = "/var/lib/hypervisor-inventory/inventory.db"
HOSTS = Path("/etc/pki/hypervisor/hosts")
# One says that the browser may look, the other that it does.
WAITING, LOOKED = Path("/run/bench-waiting"), Path("/run/bench-looked")
PORT, API = 8010, 8000
PATIENCE = 300.0  # seconds for what takes its time on a slow machine
TOGETHER = 2000  # messages that are put on the bus in one go
INTERVAL = 3600.0  # seconds that a host may be silent: nothing but what is measured is to happen
FIGURES = {"cpus": 16, "cpu_used": 0.25, "memory_mib": 65536, "memory_used_mib": 20000, "load": 2.5}
GUEST = {
    "name": "", "state": "running", "cpus": 2, "memory_mib": 2048, "addresses": ["198.18.0.7"],
    "started": "2026-01-01T00:00:00+00:00", "autostart": True, "persistent": True, "consoles": ["vnc", "serial"],
}  # fmt: skip


def waited(what: str, found: Callable[[], Any]) -> Any:
    """Wait until something is there, and return it; raise SystemExit if it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.02)
    return value


class Fleet:
    """Hosts that are words on the bus alone, with guests.

    Args:
        words: the path of ``inventory_words.py``.
        hosts: how many.
        guests: of each.
    """

    def __init__(self, words: str, hosts: int, guests: int) -> None:
        import salt.config  # noqa: PLC0415  only this program's own process needs Salt
        import salt.utils.event  # noqa: PLC0415
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

        spec = importlib.util.spec_from_file_location("inventory_words", words)
        assert spec is not None  # noqa: S101 - it is a file
        assert spec.loader is not None  # noqa: S101 - the same
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.options = salt.config.client_config("/etc/salt/master")
        self._event = salt.utils.event
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.names = [f"bench{number:04d}" for number in range(hosts)]
        self.guests = {name: [str(uuid.uuid4()) for _ in range(guests)] for name in self.names}
        for name in self.names:
            (Path(self.options["pki_dir"]) / "minions" / name).write_bytes(public)
        # One key for all: what verifying costs is the same.
        self._voices = {name: module.voice(name, key, 1, INTERVAL) for name in self.names}

    def bus(self, *, listen: bool) -> Any:
        """Return the master's bus."""
        return self._event.get_event("master", sock_dir=self.options["sock_dir"], opts=self.options, listen=listen)

    def introduced(self) -> None:
        """Have the inventory know the hosts, and tell it all that they have, once it has asked."""
        with self.bus(listen=True) as bus:
            known = HOSTS.read_text(encoding="utf-8")
            HOSTS.write_text(known + "".join(f"{name} {name}\n" for name in self.names), encoding="utf-8")

            def asked() -> str:
                event = bus.get_event(wait=1, tag="salt/job/", match_type="startswith") or {}
                words = event.get("arg") or [{}]
                return str(words[0].get("nonce", "")) if event.get("fun") == "event.fire" else ""

            nonce = waited("the inventory asks its new hosts", asked)
        for name in self.names:
            records = {one: {**GUEST, "name": f"guest-{one[:8]}"} for one in self.guests[name]}
            self.fire(self.message(name, "host/all", {"guests": records}, part=[1, 1], nonce=nonce, figures=FIGURES))

    def message(self, name: str, about: str, new: dict[str, Any], **more: Any) -> tuple[str, dict[str, Any]]:
        """Return tag and data of a signed message, as the master's bus has them."""
        tag, data = self._voices[name].message(about, set=new, **more)
        return tag, {"id": name, "cmd": "_minion_event", "tag": tag, "data": data}

    def changes(self, count: int, label: str) -> list[tuple[str, dict[str, Any]]]:
        """Return messages of guests, host after host, each with a name of its own."""
        found = []
        for number, name in zip(range(count), itertools.cycle(self.names), strict=False):
            one = self.guests[name][number // len(self.names) % len(self.guests[name])]
            record = {**GUEST, "name": f"{label}-{number}"}
            found.append(self.message(name, f"guest/{one}/changed", {"guests": {one: record}}))
        return found

    def fire(self, *messages: tuple[str, dict[str, Any]], pause: float = 0.0) -> list[float]:
        """Put messages on the bus; return when each was put there."""
        times = []
        with self.bus(listen=False) as bus:
            for tag, data in messages:
                times.append(time.time())
                bus.fire_event(data, tag)
                time.sleep(pause)
        return times


def listener(fleet: Fleet, count: int, ready: Any, done: Any) -> None:
    """Take messages off the bare bus as the engine does, and say when the last one has come."""
    with fleet.bus(listen=True) as bus:
        bus.get_event(wait=0.1, tag="bench/", full=True, match_type="startswith", auto_reconnect=True)
        ready.set()
        for _ in range(count):
            if bus.get_event(wait=PATIENCE, tag="bench/", full=True, match_type="startswith") is None:
                break
        else:
            done.put(time.monotonic())
            return
        done.put(None)


def bare(fleet: Fleet, messages: list[tuple[str, dict[str, Any]]]) -> float:
    """Return how many messages a second pass over the bare bus, to a process that does nothing with them."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Queue()
    process = context.Process(target=listener, args=(fleet, len(messages), ready, done))
    process.start()
    ready.wait(PATIENCE)
    began = time.monotonic()
    fleet.fire(*((f"bench/{tag}", data) for tag, data in messages))
    ended: float | None = done.get(timeout=PATIENCE)
    process.join()
    if ended is None:
        raise SystemExit("the bare bus lost messages")
    return len(messages) / (ended - began)


def named(label: str) -> int:
    """Return how many guests have a name that begins so, as the database has them."""
    base = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=5)
    try:
        query = "SELECT COUNT(*) FROM records WHERE kind = 'guests' AND value LIKE ?"
        return int(base.execute(query, (f'%"name":"{label}-%',)).fetchone()[0])
    finally:
        base.close()


def numbers() -> int:
    """Return the sum of the numbers of the last messages that were taken of these hosts."""
    base = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=5)
    try:
        return int(base.execute("SELECT SUM(seq) FROM heard WHERE host LIKE 'bench%'").fetchone()[0] or 0)
    finally:
        base.close()


def kept(fleet: Fleet, messages: list[tuple[str, dict[str, Any]]], label: str) -> float:
    """Return how many messages a second get into the database; raise SystemExit if one is lost."""
    before, began = numbers(), time.monotonic()
    fleet.fire(*messages)
    waited("the last message in the database", lambda: numbers() >= before + len(messages))
    ended = time.monotonic()
    if named(label) != len(messages):
        raise SystemExit(f"of {len(messages)} messages the database has {named(label)}")
    return len(messages) / (ended - began)


def resident() -> dict[str, int]:
    """Return the resident memory of the engine and of the service, in KiB."""
    found: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            lines = (folder / "status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        rows = dict(line.split(":", 1) for line in lines if ":" in line)
        # Salt's engine, and beside it the process that does its work.
        own = ("Engine" in words and "inventory" in words) or words.startswith("hypervisor-formula: inventory")
        kind = "engine" if own else ""
        kind = "service" if "hypervisor_inventory" in words and "python" in words else kind
        if kind and "VmRSS" in rows:
            found[kind] = found.get(kind, 0) + int(rows["VmRSS"].split()[0])
    return found


def snapshots(token: str, seconds: float, answers: Any) -> None:
    """Take snapshots one after the other over one connection; put the seconds of each, and the size of the last."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    headers = {"X-Auth-Token": token, "Accept-Encoding": "gzip"}
    times, end, size = [], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        began = time.monotonic()
        connection.request("GET", "/inventory/snapshot", None, headers)
        answer = connection.getresponse()
        size = len(answer.read())
        if answer.status != 200:
            answers.put(([], answer.status))
            return
        times.append(time.monotonic() - began)
    answers.put((times, size))


def requests(token: str, seconds: float, clients: int) -> dict[str, Any]:
    """Return what clients at the same time get: seconds of each answer, and its compressed size."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=snapshots, args=(token, seconds, answers)) for _ in range(clients)]
    for process in processes:
        process.start()
    rows = [answers.get(timeout=seconds + PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    if not all(times for times, _ in rows):
        raise SystemExit(f"a snapshot was answered with {rows}"[:500])
    return {"times": sorted(itertools.chain(*(times for times, _ in rows))), "size": rows[0][1], "seconds": seconds}


def asked(token: str, host: str, count: int) -> list[float]:
    """Return the seconds that salt-api takes to ask one real host for its guests."""
    times = []
    body = json.dumps({"client": "local", "tgt": host, "fun": "hypervisor.guests"})
    for _ in range(count):
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", API, timeout=90)
        connection.request("POST", "/run", body, {"X-Auth-Token": token, "Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200 or host not in text:
            raise SystemExit(f"salt-api answered {answer.status}: {text[:300]}")
        times.append(time.monotonic() - began)
    return times


def streamed(token: str) -> Iterator[tuple[float, str]]:
    """Yield the time and the text of each change of the stream."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("GET", "/inventory/stream", None, {"X-Auth-Token": token})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"the stream was answered with {answer.status}")
    yield 0.0, ""
    for raw in answer:
        if raw.startswith(b"data: "):
            yield time.time(), raw.decode()


def delays(fleet: Fleet, token: str, count: int, pause: float) -> list[float]:
    """Return for each of some messages the seconds from the bus to a client of the stream."""
    came: queue.Queue[tuple[float, str]] = queue.Queue()

    def follow() -> None:
        for one in streamed(token):
            came.put(one)

    threading.Thread(target=follow, daemon=True).start()
    came.get(timeout=PATIENCE)
    sent = fleet.fire(*fleet.changes(count, "seen"), pause=pause)
    found: dict[int, float] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        at, text = came.get(timeout=PATIENCE)
        for record in json.loads(text.removeprefix("data: "))["set"].get("guests", {}).values():
            label, _, number = record["name"].rpartition("-")
            if label == "seen":
                found.setdefault(int(number), at)
    return [found[number] - sent[number] for number in range(count)]


def changed_at(fleet: Fleet, count: int, pause: float) -> list[float]:
    """Wait until a browser looks, then change one guest's name some times; return when."""
    WAITING.touch()
    waited("a browser that looks", LOOKED.exists)
    name = fleet.names[0]
    one = fleet.guests[name][0]
    records = [{**GUEST, "name": f"screen-{number}"} for number in range(count)]
    return fleet.fire(
        *(fleet.message(name, f"guest/{one}/changed", {"guests": {one: record}}) for record in records), pause=pause
    )


def whole(token: str, guests: int) -> bool:
    """Whether a snapshot has that many guests."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request("GET", "/inventory/snapshot", None, {"X-Auth-Token": token, "Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        return False
    text = gzip.decompress(body) if answer.getheader("Content-Encoding") == "gzip" else body
    return len(json.loads(text)["guests"]) >= guests


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Measure all of it.

    Args:
        request: ``words`` (path of the signing code), ``hosts``, ``guests`` (of each), ``token`` (of a user who sees
            them all), ``real`` (a host that answers), ``events`` (that are kept in all), ``rate_events`` (for each of
            the two rates), ``seconds`` and ``clients`` (of snapshots), ``asks`` (of salt-api), ``streamed`` (messages,
            to the stream and to a screen).

    Returns:
        ``bare`` and ``kept`` (messages a second, one of each in turn), ``memory`` (KiB before and after),
        ``requests``, ``asks`` and ``delays`` (seconds), ``screen`` (seconds since 1970).
    """
    fleet = Fleet(request["words"], request["hosts"], request["guests"])
    token, count = request["token"], request["rate_events"]
    fleet.introduced()
    waited("every guest in the snapshot", lambda: whole(token, request["hosts"] * request["guests"]))
    rates: dict[str, list[float]] = {"bare": [], "kept": []}
    for number in range(3):
        messages = fleet.changes(count, f"rate{number}")
        rates["bare"].append(bare(fleet, messages))
        rates["kept"].append(kept(fleet, messages, f"rate{number}"))
    before = resident()
    for left in range(request["events"], 0, -TOGETHER):
        kept(fleet, fleet.changes(min(left, TOGETHER), f"left{left}"), f"left{left}")
    after = resident()
    return {
        **rates,
        "memory": [before, after],
        "screen": changed_at(fleet, request["streamed"], 0.2),
        "delays": delays(fleet, token, request["streamed"], 0.05),
        "requests": requests(token, request["seconds"], request["clients"]),
        "asks": asked(token, request["real"], request["asks"]),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

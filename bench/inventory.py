"""Rows about the live inventory: a thousand hosts' signed messages are replayed to a lab's master, and read there."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright

from lab import salt, web
from lab.lab import Lab
from lab.proc import LabError

from .rows import Row, median, spread
from .salt_runs import SALT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.ui import Progress

ON_HOST = Path(__file__).with_name("on_inventory.py")
HOSTS, GUESTS = 1000, 10
EVENTS, RATE_EVENTS = 20_000, 4000
CLIENTS, SECONDS = 4, 10.0
STREAMED, ASKS = 300, 10
LONGEST = 2400  # seconds for all of it
USER = "admin"
# As in on_inventory.py.
WAITING, LOOKED = "/run/bench-waiting", "/run/bench-looked"
# Logs in at salt-api, which may be starting, with what it reads.
LOGIN = """import sys, time, urllib.request
kind = {"Content-Type": "application/json"}
asked = urllib.request.Request("http://127.0.0.1:8000/login", sys.stdin.buffer.read(), kind)
for attempt in range(30):
    try:
        print(urllib.request.urlopen(asked, timeout=30).read().decode())
        break
    except OSError as error:
        found = error
        time.sleep(1)
else:
    sys.exit(str(found))
"""
# Notes when the browser draws the first frame that has a name.
WATCH = """() => {
  window.seen = {};
  const look = () => requestAnimationFrame(() => {
    for (const [name] of document.body.innerText.matchAll(/screen-[0-9]+/g)) window.seen[name] ??= Date.now();
  });
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
# Notes the milliseconds from each key to the frame that shows what it leaves of the table.
KEYS = """() => {
  window.keys = [];
  document.querySelector('.filter').addEventListener('beforeinput', () => {
    const begun = performance.now();
    requestAnimationFrame(() => {
      const drawn = new MessageChannel();
      drawn.port1.onmessage = () => window.keys.push(performance.now() - begun);
      drawn.port2.postMessage(0);
    });
  });
}"""
TYPED, KEY_PAUSE_MS = ("guest-1", "running 19", "bench0999"), 120
RATE_GOAL, SLOWEST_GOAL_MS, TIMES_GOAL = 300.0, 50.0, 50.0
BUS_GOAL, DELAY_GOAL_MS, MEMORY_GOAL_MIB, KEY_GOAL_MS = 0.9, 500.0, 50.0, 50.0


def percentile(values: Sequence[float], hundredth: int) -> float:
    """Return the value below which so many hundredths of at least two values lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


def widened(text: str) -> str:
    """Return the controller's pillar with a user who sees all replayed hosts too."""
    pillar = yaml.safe_load(text)
    roles = pillar["saltapi"]["users"][USER]["roles"]
    roles[USER] = [*roles[USER], *(f"bench{number:04d}" for number in range(HOSTS))]
    return yaml.safe_dump(pillar, sort_keys=False)


def login(lab: Lab) -> str:
    """Log in on the controller as the user, and return the token.

    Raises:
        LabError: salt-api does not let the user in.
    """
    body = json.dumps({"username": USER, "password": lab.users[USER]["password"]})
    printed = lab.run(lab.hosts.controller, ["python3", "-c", LOGIN], stdin=body, timeout=120).stdout
    try:
        return str(json.loads(printed)["return"][0]["token"])
    except (ValueError, KeyError, IndexError):
        raise LabError(f"salt-api did not let {USER} in: {printed[:300]}") from None


def measured(lab: Lab) -> dict[str, Any]:
    """Have the controller measure, see :mod:`bench.on_inventory`.

    Raises:
        LabError: it failed.
    """
    hosts, controller = lab.hosts, lab.hosts.controller
    files = salt.pillar_files(hosts, lab.users)
    salt.merge_pillar(hosts, {f"{controller}.sls": widened(files[f"{controller}.sls"])})
    salt.check_green(salt.highstate(hosts, [controller]))
    web.settled(hosts)
    salt.wait_answering(hosts)
    request = {
        "words": f"{salt.FORMULA}/_utils/inventory_words.py", "hosts": HOSTS, "guests": GUESTS, "token": login(lab),
        "real": hosts.hypervisors[0], "events": EVENTS, "rate_events": RATE_EVENTS, "seconds": SECONDS,
        "clients": CLIENTS, "asks": ASKS, "streamed": STREAMED,
    }  # fmt: skip
    argv = [SALT_PYTHON, "-c", ON_HOST.read_text(encoding="utf-8"), json.dumps(request)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lab.run, controller, argv, timeout=LONGEST)
        looked, keys = seen(lab, running)
        answer: dict[str, Any] = json.loads(running.result().stdout.strip().splitlines()[-1])
    return answer | {"looked": looked, "keys": keys}


def seen(lab: Lab, running: Future[Any]) -> tuple[dict[str, float], list[float]]:
    """Return what a browser shows while it has the page with all guests.

    Returns:
        When each name of the guest that changes was on the screen, in seconds since 1970; and the milliseconds from
        each key in the table's filter to the frame with what is left of it.

    Raises:
        LabError: there is no Chromium, or the page does not show what is waited for.
    """
    controller = lab.hosts.controller
    while not running.done() and lab.run(controller, ["test", "-e", WAITING], check=False).returncode:
        time.sleep(1)
    program = shutil.which("chromium")
    if not program:
        raise LabError("Chromium is missing: make browser")
    try:
        with sync_playwright() as playwright:
            # It runs as root, for whom Chromium has no sandbox; it sees the lab's page alone.
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(ignore_https_errors=True)
            page.set_default_timeout(LONGEST * 1000)
            page.goto(web.address(lab.hosts))
            page.get_by_label("User").fill(USER)
            page.get_by_label("Password").fill(lab.users[USER]["password"])
            page.get_by_role("button", name="Log in").click()
            page.locator("[data-connection=live]").wait_for()
            keys = typing(page)
            page.get_by_label("Filter guests").fill("screen-")
            page.evaluate(WATCH)
            lab.run(controller, ["touch", LOOKED])
            page.wait_for_function(f"() => 'screen-{STREAMED - 1}' in window.seen")
            found: dict[str, float] = page.evaluate("window.seen")
            browser.close()
    except PlaywrightError as error:
        raise LabError(f"the page did not show what changed: {error}") from None
    return {name: milliseconds / 1000 for name, milliseconds in found.items()}, keys


def typing(page: Page) -> list[float]:
    """Type into the filter of the table, and return the milliseconds to the frame after each key."""
    page.evaluate(KEYS)
    field = page.get_by_label("Filter guests")
    for text in TYPED:
        field.press_sequentially(text, delay=KEY_PAUSE_MS)
        for _ in text:
            field.press("Backspace", delay=KEY_PAUSE_MS)
    count = 2 * sum(map(len, TYPED))
    # A function: the page's policy lets no expression be evaluated again and again.
    page.wait_for_function(f"() => window.keys.length >= {count}")
    found: list[float] = page.evaluate("window.keys")
    return found


def rows(name: str, platform: str, progress: Progress) -> list[Row]:
    """Measure in a lab of its own, which is removed in the end.

    Args:
        name: the name of the lab.
        platform: a platform of ``kitchen.yml``.
        progress: where steps are shown.

    Raises:
        LabError: the lab or the measurement failed.
    """
    lab = Lab(name, progress)
    try:
        lab.up(platform=platform, only=["controller", "hv1"], demo=False, page=True)
        with progress.step(f"replay {HOSTS} hosts with {HOSTS * GUESTS} guests, and read them"):
            return told(measured(lab))
    finally:
        lab.down()


def told(answer: dict[str, Any]) -> list[Row]:
    """Say what was measured, as rows."""
    times, asks = answer["requests"]["times"], answer["asks"]
    rate = len(times) / answer["requests"]["seconds"]
    size = answer["requests"]["size"]
    fleet = f"{HOSTS} hosts and {HOSTS * GUESTS} guests, {size / 1e6:.2g} MB compressed"
    clients = f"{CLIENTS} clients at once for {answer['requests']['seconds']:.0f} s, on the same machine"
    ratios = [own / bare for own, bare in zip(answer["kept"], answer["bare"], strict=True)]
    before, after = answer["memory"]
    grown = {kind: (after[kind] - before[kind]) / 1024 for kind in before}
    delays = [seconds * 1000 for seconds in answer["delays"]]
    looked = answer["looked"]
    # A name that the next one overtook was never drawn; it was on the screen no later than that.
    frames = [looked.get(f"screen-{number}") for number in range(len(answer["screen"]))]
    for number in reversed(range(len(frames) - 1)):
        frames[number] = frames[number] or frames[number + 1]
    drawn = [(frame - sent) * 1000 for frame, sent in zip(frames, answer["screen"], strict=True) if frame]
    return [
        Row("snapshots a second", rate, "/s", RATE_GOAL, "higher", f"{fleet}; {clients}"),
        Row(
            "snapshot, 95th percentile", percentile(times, 95) * 1000, "ms", SLOWEST_GOAL_MS, "lower",
            f"the same requests; {spread([seconds * 1000 for seconds in times], 'ms')}",
        ),
        Row(
            "salt-api's local on one host / snapshot of all", median(asks) / median(times), "times", TIMES_GOAL,
            "higher", f"hypervisor.guests of one host through salt-api: {spread(asks)}; the snapshots as above",
        ),
        Row(
            "messages a second, kept / on the bare bus", median(ratios), "times", BUS_GOAL, "higher",
            f"{RATE_EVENTS} signed messages each, in turn; a second over the bare bus: {spread(answer['bare'], '')}; "
            f"verified and in the database: {spread(answer['kept'], '')}; none lost",
        ),
        Row(
            "message to stream, 99th percentile", percentile(delays, 99), "ms", DELAY_GOAL_MS, "lower",
            f"20 messages a second; {spread(delays, 'ms')}",
        ),
        Row(
            "message to screen, 99th percentile", percentile(drawn, 99), "ms", DELAY_GOAL_MS, "lower",
            f"the page in Chromium with all guests, 5 messages a second, to the frame with it; {spread(drawn, 'ms')}",
        ),
        Row(
            "key to filtered table, 95th percentile", percentile(answer["keys"], 95), "ms", KEY_GOAL_MS, "lower",
            f"the same page, to the frame; {spread(answer['keys'], 'ms')}",
        ),
        Row(
            f"memory growth over {EVENTS} messages", sum(grown.values()), "MiB", MEMORY_GOAL_MIB, "lower",
            ", ".join(f"{kind} {before[kind] / 1024:.0f} to {after[kind] / 1024:.0f} MiB" for kind in before)
            + "; every message was in the database",
        ),
    ]  # fmt: skip

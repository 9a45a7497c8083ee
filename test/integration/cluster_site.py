"""A cluster in the lab: its pillar, highstates of its nodes, and what corosync and Pacemaker say of it."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from xml.etree import ElementTree

import yaml

from lab import salt
from lab.lab import Lab
from lab.proc import CommandError

NODES = ("hv1", "hv2", "hv3")
NAME = "lab"
# Looks for bytes, in hexadecimal on standard input, in all that Salt keeps and what it is set up with, in logs, in
# temporary files, in the file tree, in the CIB and its history, and in the arguments of everything that runs.
SEARCH = """
import json, os, subprocess, sys
words = [bytes.fromhex(word) for word in sys.stdin.read().split()]
found = set()
roots = "/var/cache/salt /etc/salt /tmp /var/tmp /var/log /run/log /srv/salt /srv/formula /proc"
roots += " /var/lib/pacemaker/cib /var/lib/pacemaker/pengine"
for root in roots.split():
    for folder, folders, names in os.walk(root):
        if folder == "/proc":
            folders[:], names = [name for name in folders if name.isdigit()], []
        elif folder.startswith("/proc/"):
            folders[:], names = [], ["cmdline"]
        for path in [os.path.join(folder, name) for name in names]:
            try:
                data = open(path, "rb").read() if os.path.isfile(path) else b""
            except OSError:
                continue
            found |= {path for word in words if word in data}
log = subprocess.run(["journalctl", "--no-pager", "--output=cat"], capture_output=True, check=False).stdout
print(json.dumps(sorted(found | {"journal" for word in words if word in log})))
"""
# Writes down what the master's bus says, as it comes.
HEARD = "/run/heard"
HEAR = f"""
import socket
with socket.socket(socket.AF_UNIX) as bus:
    bus.connect("/var/run/salt/master/master_event_pub.ipc")
    with open({HEARD!r}, "wb", buffering=0) as heard:
        while data := bus.recv(65536):
            heard.write(data)
"""


class Site:
    """The hosts of a lab that are to be a cluster, and the pillar that says so.

    Attributes:
        nodes: the hosts.
        patience: seconds that a highstate may take.
    """

    def __init__(self, lab: Lab, nodes: Iterable[str] = NODES, patience: float = 600) -> None:
        self.lab, self.nodes, self.patience = lab, tuple(nodes), patience
        self.cluster: dict[str, Any] = {}
        self.others: dict[str, Any] = {}
        self.only: dict[str, dict[str, Any]] = {}

    def declare(self, *nodes: str, **more: Any) -> None:
        """Let the pillar name these nodes; keys of ``cluster`` that stay are replaced by ``more``."""
        declared = {node: {"id": int(node[-1]), "addresses": [self.lab.hosts.addresses[node]]} for node in nodes}
        base = {"name": NAME, "nodes": declared, "bootstrap_node": nodes[0], "wait_seconds": 60, "token": 1500}
        self.cluster = {**base, "keys": {"keeper": self.lab.hosts.controller}, "allow_restart": False}
        # The agents of real devices are of no use here.
        self.cluster |= {"packages": {"enabled": ["cluster"]}, **more}
        self.write()

    def write(self) -> None:
        """Write the pillar on the master: the role of a node, the cluster, and what the others say besides."""
        files: dict[str, Any] = {"top.sls": {"base": {"*": ["common"], **{node: [node] for node in self.nodes}}}}
        files["common.sls"] = {"cluster": self.cluster, **self.others}
        controller = self.lab.hosts.controller
        files["top.sls"]["base"][controller] = [controller]
        files[f"{controller}.sls"] = {"roles": ["controller"]}
        for node in self.nodes:
            files[f"{node}.sls"] = {"roles": ["cluster"], **self.only.get(node, {})}
        salt.merge_pillar(self.lab.hosts, {name: yaml.safe_dump(content) for name, content in files.items()})

    def suite(self, node: str, text: str) -> None:
        """Give a node the pillar of the suite in place of the cluster's."""
        others = [other for other in self.nodes if other != node]
        top = {"base": {**{other: ["common", other] for other in others}, node: ["suite", node]}}
        salt.merge_pillar(self.lab.hosts, {"top.sls": yaml.safe_dump(top), "suite.sls": text})

    def run(self, host: str, *argv: str, check: bool = True, **options: Any) -> str:
        """Run a command on a host and return what it wrote."""
        return str(self.lab.run(host, list(argv), check=check, **options).stdout)

    def highstate(self, *nodes: str, test: bool = False) -> dict[str, dict[str, Any]]:
        """Run the highstate of nodes at the same time; return each one's rows by id."""

        def one(node: str) -> dict[str, Any]:
            argv = ["salt-call", "--out=json", "--log-level=quiet", "state.highstate", f"test={test}"]
            done = self.lab.run(node, argv, check=False, timeout=self.patience)
            answer = json.loads(done.stdout)["local"]
            assert isinstance(answer, dict), answer
            return {row["__id__"]: row for row in answer.values()}

        with ThreadPoolExecutor(len(nodes)) as pool:
            return dict(zip(nodes, pool.map(one, nodes), strict=True))

    def converge(self, *nodes: str) -> dict[str, dict[str, Any]]:
        """Run the highstate of nodes, which must succeed."""
        answers = self.highstate(*nodes)
        assert not (wrong := failures(answers)), wrong
        return answers

    def found(self, host: str, *words: bytes) -> list[str]:
        """Return where on a host one of these stands, of all the places that a secret has no business in."""
        text = self.run(host, "python3", "-c", SEARCH, stdin="\n".join(word.hex() for word in words))
        return list(json.loads(text))

    def members(self, node: str) -> dict[str, str]:
        """Return by node's name what corosync says of its membership, as seen from one."""
        values = dict(re.findall(r"^(\S+) \(\w+\) = (.*)$", self.run(node, "corosync-cmapctl"), re.MULTILINE))
        names = {
            values[key.replace(".name", ".nodeid")]: value
            for key, value in values.items()
            if key.startswith("nodelist.node.") and key.endswith(".name")
        }
        return {names[number]: values.get(f"runtime.members.{number}.status", "never") for number in names}

    def quorate(self, node: str) -> bool:
        """Whether a node is in a part of the cluster that has quorum."""
        text = self.run(node, "corosync-quorumtool", "-s", check=False)
        return bool(re.search(r"^Quorate: +Yes$", text, re.MULTILINE))

    def outages(self, node: str, since: int) -> list[tuple[float, float]]:
        """Return from when to when a node was without quorum, as its corosync wrote down; an open end is infinite.

        Nodes of the lab have one clock, so times of different nodes compare. Asking one node after the other
        would not: the first may be back when the last is asked.
        """
        argv = ["journalctl", "--unit=corosync.service", f"--since=@{since}", "--output=json", "--no-pager"]
        found: list[tuple[float, float]] = []
        for line in self.run(node, *argv).splitlines():
            row = json.loads(line)
            message, moment = str(row["MESSAGE"]), int(row["__REALTIME_TIMESTAMP"]) / 1e6
            lost = "within the non-primary component" in message or "Cluster Engine exiting" in message
            if lost and (not found or found[-1][1] < math.inf):
                found.append((moment, math.inf))
            elif "within the primary component" in message and found:
                found[-1] = (found[-1][0], min(found[-1][1], moment))
        return found

    def flags(self, node: str) -> list[str]:
        """Return the options of votes that are in force."""
        found = re.search(r"^Flags: +(.*)$", self.run(node, "corosync-quorumtool", "-s", check=False), re.MULTILINE)
        return found[1].split() if found else []

    def monitor(self, node: str) -> ElementTree.Element:
        """Return Pacemaker's view of the cluster."""
        text = self.run(node, "crm_mon", "-1", "--inactive", "--output-as=xml")
        return ElementTree.fromstring(text)  # noqa: S314 - from a host of the lab

    def online(self, node: str) -> set[str]:
        """Return the nodes that Pacemaker counts as online."""
        return {one.get("name", "") for one in self.monitor(node).findall("nodes/node") if one.get("online") == "true"}


def forms(secret: bytes) -> list[bytes]:
    """Return what gives random bytes away: three pieces of them, raw and in every way that makes text of them."""
    found: list[bytes] = []
    for piece in (secret[:24], secret[64:88], secret[-24:]):
        text = piece.decode("latin-1")
        quoted = (repr(piece)[1:], json.dumps(text), json.dumps(piece.decode("utf-8", "surrogateescape")))
        found += [piece, text.encode(), piece.hex().encode(), piece.hex().upper().encode()]
        found += [one[1:-1].encode() for one in quoted]
        # Base64 of something longer looks different by where the piece begins in it.
        for before in range(3):
            padded = bytes(before) + piece
            found += [encode(padded)[4:28] for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    return found


def failures(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the failed states of hosts that have any, with their reasons."""
    found = {
        host: [f"{name}: {row['comment']}" for name, row in rows.items() if row["result"] is False]
        for host, rows in answers.items()
    }
    return {host: lines for host, lines in found.items() if lines}


def changes(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the ids of states that changed anything or would, by host."""
    return {host: {name for name, row in rows.items() if row["changes"]} for host, rows in answers.items()}


def soon(check: Callable[[], Any], seconds: float = 60, what: str = "it") -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} was not so within {seconds:.0f} s"
        time.sleep(1)


def all_online(site: Site, nodes: Iterable[str]) -> None:
    """Wait until every one of these nodes sees all of them and no other."""
    wanted = set(nodes)
    for node in sorted(wanted):
        soon(partial(_sees, site, node, wanted), what=f"{node} sees {sorted(wanted)}")


def _sees(site: Site, node: str, wanted: set[str]) -> bool:
    """Whether a node sees exactly these; one whose Pacemaker has still to start sees nobody."""
    try:
        return site.online(node) == wanted
    except CommandError:
        return False


class Course:
    """From bare hosts to a cluster of two: hv2 is too early, then both run at once.

    Attributes:
        controller: what the master's own minion did.
        predicted: what ``test=True`` said before anything was done.
        touched: what of a cluster was there after the prediction.
        early: what hv2 said as long as hv1 had done nothing.
        done: what the first run came to.
        second: what the second one did.
        heard: all that the master's bus said from the prediction to the second run.
    """

    def __init__(self, site: Site) -> None:
        site.declare("hv1", "hv2", wait_seconds=5)
        # The master's own minion gets with its highstate what nodes ask of it.
        self.controller = site.converge(site.lab.hosts.controller)
        site.run(site.lab.hosts.controller, "systemd-run", "--unit=hearing", "--collect", "python3", "-c", HEAR)
        soon(lambda: self._written(site) is not None, what="somebody listens on the bus")
        self.predicted = site.highstate("hv1", "hv2", test=True)
        self.touched = {
            node: site.run(node, "find", "/etc/corosync", "/etc/systemd/system", "-name", "*hypervisor*", check=False)
            for node in ("hv1", "hv2")
        }
        self.early = site.highstate("hv2")["hv2"]
        site.declare("hv1", "hv2")
        self.done = site.highstate("hv2", "hv1")
        self.second = site.highstate("hv1", "hv2")
        self.heard = self._written(site) or b""
        site.run(site.lab.hosts.controller, "systemctl", "stop", "hearing")

    @staticmethod
    def _written(site: Site) -> bytes | None:
        """Return what was written down so far, None before there was anybody to write."""
        done = site.lab.run(site.lab.hosts.controller, ["base64", "--wrap=0", HEARD], check=False)
        return base64.b64decode(done.stdout) if done.returncode == 0 else None

"""A host for backends: files in a folder, links as `ip` shows them, commands that are merely written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypervisor_network import model
from hypervisor_network.backends.contract import Done, Snapshot, Step

MACS = {"eth0": "52:54:00:00:00:10", "eth1": "52:54:00:00:00:11"}
BRIDGE = {"bridges": {"br0": {"ports": ["eth0"], "addresses": ["192.0.2.5/24"]}}}


class Stack:
    """See above.

    Attributes:
        root: what stands for "/".
        there: links by name.
        ran: the commands, each as one line.
        answers: what commands return, by their beginning; all others succeed without a word.
    """

    def __init__(self, root: Path, *names: str) -> None:
        self.root = root
        self.there: dict[str, dict[str, Any]] = {}
        self.ran: list[str] = []
        self.answers: dict[str, Done | Callable[[], Done]] = {}
        for number, name in enumerate(names or ("eth0", "eth1"), 1):
            self.there[name] = {"ifname": name, "ifindex": number, "address": MACS.get(name, ""), "link_type": "ether"}

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def run(self, argv: Sequence[str], timeout: float = 30.0, stdin: str | None = None) -> Done:
        line = " ".join(argv)
        self.ran.append(line)
        for begin, answer in self.answers.items():
            if line.startswith(begin):
                return answer() if callable(answer) else answer
        return Done(0, "", "")

    def ip(self, *words: str) -> list[dict[str, Any]]:
        if words[:2] == ("link", "show") and len(words) > 2:
            return [self.there[words[3]]] if words[3] in self.there else []
        return list(self.there.values())

    def write(self, files: Mapping[str, str]) -> None:
        """Writes files, folders too."""
        for name, text in files.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            self.path(name).write_text(text)


def resolved(pillar: Mapping[str, Any]) -> Any:
    """Returns the profile of a pillar with the addresses of two cards."""
    return model.load(pillar).resolved({}, MACS)


def step(pillar: Mapping[str, Any], *, back: bool = False, links: Sequence[dict[str, Any]] = (), **extra: Any) -> Any:
    """Returns a step for a pillar that touches all of its interfaces, on a host that had these links."""
    profile = resolved(pillar)
    before = list(links) or [{"ifname": "eth0"}, {"ifname": "eth1"}]
    names = tuple(one.name for one in profile.interfaces)
    return Step(profile, back, {}, {}, Snapshot(links=before, extra=extra), names)

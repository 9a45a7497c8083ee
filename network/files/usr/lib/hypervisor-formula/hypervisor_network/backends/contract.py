"""What the engine asks of a backend, and what it gives to one.

The engine owns the course of a change: it writes, backs up and restores every file, decides when to go back and
holds the lock. A backend says which files there shall be and which commands go from one set of files to another.
It writes nothing below ``/etc`` itself.

The order of a change, where any step may be the last one that is carried out::

    render, takeover, validate        nothing of the host is touched
    release(step)                     the old files are still there
    (the engine exchanges files, and rows of Open vSwitch's database)
    activate(step)                    the new files are there

and of going back, with ``step.back`` set and ``before`` and ``after`` exchanged::

    release(step)                     the files of the failed change, or any mixture of both
    (the engine restores files)
    activate(step)                    the old files are there

At boot, before any network service, the engine restores files alone and calls :meth:`Backend.boot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hypervisor_network.model import Profile

# What `ip -j` prints: a list of mappings.
Json = list[dict[str, Any]]


class Done(NamedTuple):
    """What a command has left behind: 124 as ``code`` when it was ended for taking too long, 127 if there is none."""

    code: int
    out: str
    err: str


class Host(Protocol):
    """The host that a change is made on; tests have one that merely remembers.

    Attributes:
        root: what stands for "/".
    """

    root: Path

    def run(self, argv: Sequence[str], timeout: float = 30.0, stdin: str | None = None) -> Done:
        """Runs a command without a shell and never raises for what it does."""

    def path(self, name: str) -> Path:
        """Returns where an absolute path of the host is."""

    def ip(self, *words: str) -> Json:
        """Returns what `ip -j WORDS` prints; an empty list when it fails."""


class BackendError(Exception):
    """A change cannot be made or undone; the message says why in one sentence without a full stop."""


@dataclass(frozen=True)
class Owned:
    """A file of the formula.

    Attributes:
        text: what it holds, with a header that says who owns it.
        mode: its permissions; it belongs to root.
    """

    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Snapshot:
    """The runtime before a change, as `ip -j -d link`, `ip -j address`, `ip -j route` (all tables) have it.

    Attributes:
        links: with details, so that kinds and masters are there.
        addresses: of both families.
        routes: of IPv4, those of the kernel among them.
        routes6: of IPv6.
        extra: what a backend wants to find again, by its own keys (see :meth:`Backend.remember`).
    """

    links: Json = field(default_factory=list)
    addresses: Json = field(default_factory=list)
    routes: Json = field(default_factory=list)
    routes6: Json = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        """The names of the links that were there."""
        return frozenset(str(one["ifname"]) for one in self.links)


@dataclass(frozen=True)
class Step:
    """Going from one set of files to another, forth or back.

    Attributes:
        profile: that of the change, resolved to names of this host; also on the way back.
        back: whether the change is undone.
        before: the files that the change touches and what they hold before this step; None for one that is missing.
        after: the same files after this step.
        snapshot: the runtime before the change, also on the way back.
        changed: names of all interfaces that the change touches: declared ones, ports, those that go.
    """

    profile: Profile
    back: bool
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    snapshot: Snapshot
    changed: tuple[str, ...]

    @property
    def made(self) -> tuple[str, ...]:
        """Names of interfaces that this change makes, and that undoing it removes."""
        there = self.snapshot.names()
        return tuple(
            one.name for one in self.profile.present if one.kind != "ethernet" and one.name not in there
        )


class Backend(Protocol):
    """One way to set up interfaces.

    All methods may be called several times in a row, and after a process that was killed in the middle of them.

    Attributes:
        name: as the pillar has it.
    """

    name: str

    def missing(self, host: Host) -> str:
        """Returns why this backend cannot work on this host, as a sentence without a full stop; empty if it can."""

    def manages(self, host: Host, interface: str) -> bool:
        """Says whether it is this backend that has set up that interface, for ``backend: auto``."""

    def adapt(self, host: Host, profile: Profile) -> Profile:
        """Adds what only the host knows to a resolved profile, before anything is rendered.

        It must give the same again after the change, or the files would change with every run.
        """

    def render(self, profile: Profile) -> dict[str, Owned]:
        """Returns the formula's files for the interfaces that shall be there, by absolute path. Pure.

        Args:
            profile: with names of this host (:meth:`Profile.resolved`).
        """

    def owned(self, host: Host) -> list[str]:
        """Returns the paths of the formula's files that are there now, of whatever interface."""

    def takeover(self, host: Host, profile: Profile) -> dict[str, bytes | None]:
        """Returns foreign files that speak of the same interfaces, and what they shall hold instead.

        Args:
            host: the host.
            profile: with names of this host.

        Returns:
            By absolute path the new content, None to take the file away. Undoing the change brings them back.

        Raises:
            BackendError: a file cannot be read so that its other content is safe.
        """

    def validate(self, host: Host, candidate: Path, profile: Profile) -> list[str]:
        """Judges candidate files with the backend's own tools, as far as there are any.

        Args:
            host: the host.
            candidate: a folder that stands for "/" and holds the changed files at their paths and nothing else;
                removed files are missing there. The backend may add to it.
            profile: with names of this host.

        Returns:
            What is wrong, one sentence each.
        """

    def remember(self, host: Host) -> dict[str, Any]:
        """Returns what ``Snapshot.extra`` shall hold, as JSON; called before anything is touched."""

    def release(self, host: Host, step: Step) -> None:
        """Does what must happen while the files of before are still there.

        Raises:
            BackendError: the change cannot be made; it is undone then. On the way back it is noted only.
        """

    def activate(self, host: Host, step: Step) -> None:
        """Makes the runtime what the files of after say; on the way back, what the snapshot says.

        Raises:
            BackendError: as for :meth:`release`.
        """

    def boot(self, host: Host) -> None:
        """Does what restored files need before the services of the network start, such as `netplan generate`."""

    def services(self) -> tuple[str, ...]:
        """Names the units that must not start before files are restored at boot."""

    def read_back(self, host: Host, profile: Profile) -> dict[str, str]:
        """Returns what the backend itself says is not as declared, beyond what `ip -j` shows.

        The engine sets such interfaces up anew, and takes that for good when nothing is said of them any more.

        Returns:
            A sentence without a full stop by interface.
        """

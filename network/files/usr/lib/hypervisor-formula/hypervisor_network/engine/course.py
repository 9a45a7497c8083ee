"""The course of a change, from staged to confirmed or undone.

    staged, applying, applied, confirmed              the way that is hoped for
    staged, applying, rolling-back, rolled-back       a step has failed, or the process was ended
    staged, applying, applied, rolling-back, rolled-back    the checks did not succeed

Each state is on disk before its work begins, and every function here may find any of them: it finishes what is to be
finished. Only ``confirmed`` keeps the new files; everything else ends with the old ones.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hypervisor_network import model
from hypervisor_network.backends.contract import Backend, BackendError, Snapshot, Step

from . import checks, files, repair, runtime, switch
from . import plan as planning
from .host import NEW, OLD, LocalHost
from .store import (
    APPLIED,
    APPLYING,
    CONFIRMED_STATE,
    IDLE,
    PENDING,
    ROLLED_BACK,
    ROLLING_BACK,
    STAGED,
    BusyError,
    Change,
    State,
    Store,
)

UNIT = "hypervisor-network-apply.service"
# What undoes a change whatever happens, but not where a power cut has left it empty: whoever has written it may have
# been ended before the disk had it. The folder has the link that enables the unit of the boot.
_WAY_BACK = (
    "/usr/lib/hypervisor-formula/hypervisor_network",
    "/usr/sbin/network-profile",
    f"/etc/systemd/system/{UNIT}",
    "/etc/systemd/system/hypervisor-network-boot.service",
    "/etc/systemd/system/multi-user.target.wants",
)
_SPACE = 2 << 20  # bytes that must be free besides what a change writes
_ROUND = 1.0  # seconds between two rounds of checks
_PROMPT = 7.0  # seconds: a way back that takes no longer ends, with what is around it, 10 s after the window
_SETTLES = 10.0  # seconds in which a restored runtime may become what it was
_REPAIR_AFTER = 3.0  # seconds of these after which `ip` is used
_PERSON_WAITS = 60.0  # seconds that the commands for a person wait for the applier
WENT_DOWN = "the host went down before the change was confirmed"
ENDED = "the process that made the change was ended"


class RefusedError(Exception):
    """Nothing was changed; the message says why in a sentence without a full stop."""


class _WindowOver(Exception):  # noqa: N818 - it is an event
    """The window has ended while a command was running."""


def _still(state: State) -> str:
    """Says which change another one has to wait for, and how that ends."""
    return (
        f"the change {state.id} is still {state.state}; it ends by itself, or by `network-profile confirm` or "
        "`network-profile rollback`"
    )


class Course:
    """What can be done to a host's network.

    Args:
        host: the host.
        store: where the change stands.
        say: takes what is done, for the journal.
    """

    def __init__(
        self, host: LocalHost, store: Store | None = None, say: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.host = host
        self.say = say
        self.store = store or Store(host)
        # What the latest round of checks found.
        self._said: list[str] = []

    # ---- asked by a minion or a person ----

    def plan(self, pillar: Mapping[str, Any], masters: Sequence[str], *, making: bool = False) -> planning.Plan:
        """Says what a pillar would change, and changes nothing."""
        return planning.make(self.host, self.store, pillar, masters, making=making)

    def apply(self, pillar: Mapping[str, Any], masters: Sequence[str]) -> dict[str, Any]:
        """Stages a change and starts the unit that makes it, without waiting.

        Returns:
            The plan's report, with ``id`` if there is something to do.

        Raises:
            RefusedError: nothing was changed.
        """
        try:
            with self.store.lock():
                self._refuse_second()
                found = self.plan(pillar, masters, making=True)
                if found.errors or found.refusal:
                    raise RefusedError("; ".join((*found.errors, *filter(None, [found.refusal]))))
                if found.change is None:
                    return found.report()
                name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self.host.date()))}-{os.urandom(2).hex()}"
                window = model.load(pillar).confirm.window
                state = State(STAGED, name, found.backend, bool(found.uplink), started=self.host.date(), window=window)
                self._stage(state, found.change)
        except BusyError as error:
            # Who makes a change keeps the lock for the whole of its window.
            state = self.store.state()
            raise RefusedError(str(error) if state.over else _still(state)) from error
        started = self.start()
        if started:
            with self.store.lock():
                self._discard(self.store.state(), started)
            raise RefusedError(started)
        return {**found.report(), "id": name}

    def start(self) -> str:
        """Starts the unit of the applier; returns why it could not be, as a sentence without a full stop."""
        self.host.run(["systemctl", "daemon-reload"], timeout=60)
        self.host.run(["systemctl", "reset-failed", UNIT])
        done = self.host.run(["systemctl", "start", "--no-block", UNIT])
        return f"{UNIT} does not start: {(done.err or done.out).strip()}" if done.code else ""

    def _refuse_second(self) -> None:
        """Refuses a change while another is pending; one that nobody finishes is handed to the unit."""
        state = self.store.state()
        if state.over:
            self._complete(state)
            return
        if state.state == STAGED:
            busy = self.host.run(["systemctl", "is-active", UNIT]).out.strip() in {"active", "activating", "reloading"}
            if not busy:
                self._discard(state, "it was never begun")
                return
        else:
            self.start()
        raise RefusedError(_still(state))

    def _stage(self, state: State, change: Change) -> None:
        """Writes everything down, so that neither way needs space on the disk any more."""
        before, after = files.load(change.before), files.load(change.after)
        try:
            need = sum(len(one.content) for entries in (before, after) for one in entries.values() if one)
            for place in ("/etc", "/var/lib"):
                free = self.host.free(place)
                if free < 4 * need + _SPACE:
                    raise OSError(f"only {free >> 10} KiB are free for {place}")
            for name in _WAY_BACK:
                self.host.flush(name)
            files.lay_out(self.host, before, after)
            self.store.stage(state, change)
        except OSError as error:
            files.clear(self.host, change.after)
            self.host.remove(PENDING)
            if self.store.state().state == STAGED:
                self.store.set(State(IDLE))
            raise RefusedError(f"the change cannot be written down: {error}") from error

    def status(self) -> dict[str, Any]:
        """Says where the latest change stands."""
        state = self.store.state()
        found = state.report()
        left = state.started + state.window - self.host.date()
        found["seconds_left"] = max(0, round(left)) if state.state in {STAGED, APPLYING, APPLIED} else 0
        found["at_work"] = self.store.busy()
        return found

    def confirm(self) -> State:
        """Takes a person's word for it that the pending change is good.

        Raises:
            RefusedError: there is nothing to confirm.
        """
        state = self.store.state()
        if state.state not in {APPLYING, APPLIED} or not self.store.busy():
            raise RefusedError(f"there is nothing to confirm: the state is {state.state}")
        self.store.ask("confirm")
        return self._awaited()

    def rollback(self) -> State:
        """Undoes the pending change, or else the one that was confirmed last.

        Raises:
            RefusedError: there is nothing to undo.
        """
        state = self.store.state()
        if not state.over and self.store.busy():
            self.store.ask("rollback")
            return self._awaited()
        try:
            with self.store.lock():
                if state.state == STAGED:
                    return self._discard(state, "a person asked for it")
                if state.over and (state.state != CONFIRMED_STATE or self.store.change() is None):
                    raise RefusedError(f"there is nothing to undo: the state is {state.state}")
                self.host.write(PENDING, b"", 0o600)
                self.store.set(replace(state, state=ROLLING_BACK, reason="a person asked for it", outage=None))
        except BusyError as error:
            raise RefusedError(str(error)) from error
        if self.start():
            # Without systemd's help, in the foreground.
            self.run()
        return self._awaited()

    def _awaited(self) -> State:
        """Waits, for a limited time, until the change is over."""
        end = self.host.now() + _PERSON_WAITS
        while self.host.now() < end:
            state = self.store.state()
            if state.over and not self.host.path(PENDING).exists():
                return state
            self.host.sleep(0.2)
        return self.store.state()

    # ---- the units ----

    def run(self) -> State:
        """Makes the staged change, or undoes one that was interrupted; the unit's own command.

        Raises:
            BusyError: another process is at work.
        """
        with self.store.lock():
            state = self.store.state()
            if state.state == STAGED:
                return self._forth(state)
            return self._ended(state)

    def finish(self) -> State:
        """Ends what the applier has left behind; run when its process has ended, however.

        Raises:
            BusyError: another process is at work.
        """
        with self.store.lock():
            state = self.store.state()
            if state.state == STAGED and self._stopping():
                return self._discard(state, WENT_DOWN)
            return self._ended(state)

    def boot(self) -> State:
        """Restores the files of a change that was not confirmed, before the network starts.

        Raises:
            BusyError: another process is at work.
        """
        with self.store.lock():
            state = self.store.state()
            if state.state == STAGED:
                return self._discard(state, WENT_DOWN)
            if state.over:
                return self._complete(state)
            return self._back(state, state.reason or WENT_DOWN, files_only=True, booting=True)

    def _ended(self, state: State) -> State:
        """Undoes what is not over, and clears away what is."""
        if state.over:
            return self._complete(state)
        if state.state == STAGED:
            return state
        stopping = self._stopping()
        return self._back(state, state.reason or (WENT_DOWN if stopping else ENDED), files_only=stopping)

    def _stopping(self) -> bool:
        """Says whether the host is going down."""
        return self.host.run(["systemctl", "is-system-running"]).out.strip() == "stopping"

    def _complete(self, state: State) -> State:
        """Clears away what a change that is over has left behind."""
        if not self.host.path(PENDING).exists():
            return state
        change = self.store.change()
        if change is not None:
            if state.state == CONFIRMED_STATE:
                self.store.remember(change)
            files.clear(self.host, change.after)
        return self.store.end(state)

    def _discard(self, state: State, reason: str) -> State:
        """Drops a staged change, of which nothing has been made."""
        change = self.store.change()
        if change is not None:
            files.clear(self.host, change.after)
        return self.store.end(replace(state, state=ROLLED_BACK, reason=reason, verified=True))

    # ---- forth ----

    def _step(self, change: Change, back: bool) -> tuple[Backend, Step]:
        """Returns the backend of a change and the step to make."""
        contents = [
            {name: None if entry is None else entry.content for name, entry in files.load(stored).items()}
            for stored in (change.before, change.after)
        ]
        before, after = contents if not back else reversed(contents)
        profile, snapshot = model.restored(change.profile), Snapshot(**change.snapshot)
        step = Step(profile, back, before, after, snapshot, tuple(change.changed))
        return planning.backend_of(change.backend), step

    def _forth(self, state: State) -> State:
        """Makes a staged change and checks it."""
        change = self.store.change()
        if change is None:
            return self.store.end(replace(state, state=ROLLED_BACK, reason="its record is gone", verified=True))
        backend, step = self._step(change, back=False)
        targets = [checks.Target.load(one) for one in change.targets]
        outage = checks.Outage(self.host, next((one for one in targets if one.kind == "tcp"), None))
        outage.start()
        window = step.profile.confirm.window
        state = self.store.set(replace(state, state=APPLYING, started=self.host.date(), window=window))
        began = self.host.now()
        try:
            with _alarm(window):
                self.say(f"changing {', '.join(change.changed)} ({change.backend})")
                backend.release(self.host, step)
                files.exchange(self.host, files.load(change.after), NEW)
                # Between the old interfaces and the new ones: no backend makes ports of Open vSwitch.
                switch.put(self.host, switch.Rows.load(change.rows_after))
                backend.activate(self.host, step)
                self.say("changed, checking")
                outage.calm(calm=True)
                state = self.store.set(replace(state, state=APPLIED))
                reason = self._checked(change, backend, step, targets, began)
        except (BackendError, OSError) as error:
            reason = str(error) or type(error).__name__
        except _WindowOver:
            reason = self._unchecked(f"it was not done within {window} s")
        except BaseException:
            outage.stop()
            raise
        try:
            if reason:
                # Until the old state is there again the master may be away.
                outage.calm(calm=False)
                return self._back(state, reason, outage=outage)
            self.say("confirmed")
            state = self.store.set(replace(state, state=CONFIRMED_STATE, outage=outage.seconds()))
            return self._complete(state)
        finally:
            outage.stop()

    def _checked(
        self, change: Change, backend: Backend, step: Step, targets: Sequence[checks.Target], began: float
    ) -> str:
        """Checks until all is good several times in a row; returns what is not when the window is over.

        The way back takes about as long as the change has taken. On a host where that is long it begins before the
        window is over, if nothing is good then; half of the time that is left is checked in any case.
        """
        good, now, deadline = 0, self.host.now(), began + step.profile.confirm.window
        early = max(0.0, min(now - began - _PROMPT, (deadline - now) / 2))
        rows = switch.Rows.load(change.rows_after)
        while True:
            if self.store.asked("rollback"):
                return "a person asked for it"
            if self.store.asked("confirm"):
                return ""
            begun = self.host.now()
            # What was found last counts until a whole round has found something else.
            self._said = switch.lacking(self.host, rows) or checks.failures(
                self.host, step.profile, targets, change.expected, change.gateway, change.excused
            )
            if change.untaken and not self._said:
                told = backend.read_back(self.host, step.profile)
                self._said = [told[name] for name in change.untaken if name in told]
            good = 0 if self._said else good + 1
            if good >= step.profile.confirm.successes:
                return ""
            now = self.host.now()
            # A slow host's next round takes its time, too.
            sooner = early + (now - begun) if early and not good else 0.0
            if now + _ROUND >= deadline - sooner:
                return self._unchecked("the checks had not succeeded often enough")
            self.host.sleep(_ROUND)

    def _unchecked(self, otherwise: str) -> str:
        """Says what the checks have found last; something else if they have found nothing."""
        return "; ".join(self._said) or otherwise

    # ---- back ----

    def _back(
        self,
        state: State,
        reason: str,
        files_only: bool = False,
        booting: bool = False,
        outage: checks.Outage | None = None,
    ) -> State:
        """Undoes a change as far as it was made, and looks whether all is as it was.

        Args:
            state: where the change stands.
            reason: why.
            files_only: the host is going down or coming up: the runtime is not touched.
            booting: the latter.
            outage: measures how long the master is away.
        """
        self.say(f"going back: {reason}")
        state = replace(state, state=ROLLING_BACK, reason=reason)
        notes: list[str] = []
        self._try(notes, self.store.set, state)
        change = self.store.change()
        if change is None:
            return self.store.end(replace(state, state=ROLLED_BACK, verified=False, notes=("its record is gone",)))
        backend, step = self._step(change, back=True)
        if not files_only:
            self._try(notes, backend.release, self.host, step)
        self._try(notes, files.exchange, self.host, files.load(change.before), OLD)
        rows = switch.Rows.load(change.rows_before)
        if files_only and not booting and rows:
            # The switch still runs, and what uses the network while the host goes down needs it: the boot does it.
            return self.store.set(replace(state, notes=tuple(notes)))
        self._try(notes, switch.put, self.host, rows)
        verified, differing = None, []
        if booting:
            self._try(notes, backend.boot, self.host)
        elif not files_only:
            self._try(notes, backend.activate, self.host, step)
            differing = self._settled(step, notes)
            verified = not differing
            state = replace(state, outage=outage.seconds() if outage else None)
        old = files.load(change.before)
        broken = [name for name, entry in old.items() if not files.same(files.look(self.host, name), entry)]
        differing += [f"{name} is not as before" for name in broken]
        lacking = self._lacking(rows)
        differing += lacking
        if broken or lacking:
            # Kept pending: the next start of the unit, or of the host, tries again.
            return self.store.set(replace(state, verified=False, differences=tuple(differing), notes=tuple(notes)))
        if self.store.confirmed() is not None and not _same_record(self.store.confirmed(), change.previous):
            self._try(notes, self.store.forget, change)
        files.clear(self.host, change.after)
        return self.store.end(
            replace(
                state, state=ROLLED_BACK, verified=verified, differences=tuple(differing), notes=tuple(notes[-20:])
            )
        )

    def _settled(self, step: Step, notes: list[str]) -> list[str]:
        """Waits until the runtime is what it was, and helps; returns what still differs."""
        begun = self.host.now()
        repaired = False
        while True:
            now = runtime.take(self.host)
            differing = runtime.compare(step.snapshot, now)
            self.say(f"compared with before: {'; '.join(differing[:5]) or 'equal'}")
            passed = self.host.now() - begun
            if not differing or passed > _SETTLES:
                return differing
            if passed > _REPAIR_AFTER and not repaired:
                notes += repair.repair(self.host, step.snapshot, now, [*step.made, *step.changed])
                repaired = True
            self.host.sleep(0.5)

    def _lacking(self, rows: switch.Rows) -> list[str]:
        """Returns which rows of Open vSwitch are not as before; one that cannot be asked has not been put back."""
        try:
            return switch.lacking(self.host, rows)
        except BackendError as error:
            return [str(error)]

    def _try(self, notes: list[str], function: Any, *arguments: Any) -> None:
        """Goes on whatever happens: each step of the way back is made, however the one before ended."""
        try:
            function(*arguments)
        except (BackendError, OSError, ValueError, KeyError) as error:
            notes.append(f"{getattr(function, '__qualname__', function)}: {error}")


def _same_record(one: Any, other: Any) -> bool:
    """Says whether two records of what was confirmed are equal."""
    return bool(one == other)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ends whatever runs when the window is over, a command that hangs too.

    Raises:
        _WindowOver: it is.
    """

    def over(_signal: int, _frame: object) -> None:
        raise _WindowOver

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

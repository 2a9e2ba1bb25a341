"""`-p N`: starts N worker processes, keeps N of them running, and shows them as one.

A worker that dies is started again: at once if it had lived a while, else after a pause that doubles from 0.1 s up to
10 s, so that one that can't start doesn't burn the machine. Exit code 2 is the exception: what the command line or the
configuration says makes no sense, and will make no more sense the next time, so all end with that code. Another is
EXIT_RECYCLE, with which a worker says that it has had enough (recycle.py): the next one starts at once.

With `awaits_change`, for `--reload`, `restart` has all workers drain, for at most 3 s, and started again. One that ends
by itself with an error is not started again before that: the code is as it is, and somebody is editing it.

The first SIGTERM or SIGINT drains: it is passed on, nothing is started again, and the supervisor ends when the last
worker has. The second, unless it comes so soon that it is an echo (signals.py), stops at once: workers are told by a
signal, and on their links too, since they might take that for an echo themselves; what is still there two seconds later
is killed. A worker that
is killed can't give its partitions up in order, and the next one takes them for those of a worker that died; so none
is while it may still be draining: what its app says of the time that takes, it tells us itself. Workers are in
process groups of their own, so that Ctrl-C in a terminal reaches them once and not twice. If the supervisor itself
dies, even by SIGKILL, the workers see the end of their link and drain.

Counts never fall when a worker dies: what it last reported is kept and added. What it counted after that is lost
with it, unless it ended in order and could say so.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from types import FrameType

from attrs import define, field

from taskq.metrics import Snapshot, merge, without_gauges
from taskq.worker.executors.children import how
from taskq.worker.http import Health
from taskq.worker.link import EXIT_RECYCLE, Child, Report
from taskq.worker.signals import Ear, stop_signals

_log = logging.getLogger(__name__)

PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 10.0
LIVED_SECONDS_MIN = 10.0
"""A worker that lived this long is started again after the shortest pause."""

ANSWER_SECONDS_MAX = 1.0
"""How long a scrape waits for the workers' answers, all together."""

LISTEN_SECONDS_MAX = 0.1
"""How long to wait for one who asks workers, before looking again for signals."""

STOP_SECONDS_MAX = 2.0
"""How long a worker has to stop at once before it is killed: a second more than it gives itself (ending.py)."""

LATE_SECONDS_MAX = 5.0
"""How long after the time to drain is over a worker may take to end. It has as long, both together, from when it has
drained by itself, to be replaced: for its lifespan."""

RELOAD_SECONDS_MAX = 3.0
"""How long a worker may drain that is to run other code."""

EXIT_USAGE = 2


@define(eq=False)
class _Slot:
    """One of the N: a process, or the pause before the next one."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    link: Child | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = PAUSE_SECONDS_MIN
    stop_at: float = float("inf")
    """When to tell it to stop at once."""
    kill_at: float = float("inf")
    is_restarting: bool = False
    sources: tuple[str, ...] = ()
    """What the last one to end had imported."""


@define(eq=False)
class Supervisor:
    """Runs `processes` workers. `command(number, fd)` is the command line of one whose link to us is descriptor `fd`.

    `run` belongs to the main thread; the rest may be called from any.
    """

    command: Callable[[int, int], Sequence[str]]
    processes: int
    drain_timeout_s: float = 30.0
    """Workers keep to this themselves, or to what they say instead; one that is still there 5 s later is killed."""
    awaits_change: bool = False
    """A worker that ended with an error is started again by `restart` only."""

    _slots: list[_Slot] = field(init=False, factory=list)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    """Guards what links say, and `_gone`: held while workers are asked, and while one is buried."""
    _gone: Snapshot = field(init=False, factory=dict)
    """Counts of the workers that have ended."""
    _signals: int = field(init=False, default=0)
    _changes: deque[str] = field(init=False, factory=deque)
    """Why all are to be started again."""
    _wake: Callable[[], object] = field(init=False, default=lambda: None)
    _exit_code: int = field(init=False, default=0)

    def run(self) -> int:
        """Keep the workers running until a signal says to stop; return the exit code."""
        self._slots = [_Slot(number) for number in range(self.processes)]
        with _waker(Ear(self._on_signal).hear) as (wait, self._wake):
            passed_on = 0
            while True:
                self._bury()
                if passed_on < self._signals:
                    passed_on = self._signals
                    self._pass_on(passed_on)
                if self._signals and not self._running():
                    return self._exit_code
                while self._changes:
                    self._restart(self._changes.popleft())
                self._stop_late()
                self._start_due()
                if wait(self._next_deadline(), self._links()):
                    self._listen()

    def restart(self, why: str) -> None:
        """Have all workers end and start again, those that wait for that too."""
        self._changes.append(why)
        self._wake()

    def sources(self) -> set[str]:
        """The files of Python that workers have imported."""
        with self._lock:
            return {file for slot, report in self._ask() for file in (report.sources if report else slot.sources)}

    def metrics_snapshot(self) -> Snapshot:
        """The metrics of all workers, those that have ended included."""
        with self._lock:
            found = [self._gone]
            for slot, report in self._ask():
                last = slot.link.last if slot.link else None
                if report is not None:
                    found.append(report.metrics)
                elif last is not None:
                    found.append(without_gauges(last.metrics))
            return merge(found)

    def health(self) -> Health:
        """Well if every worker that answers is."""
        with self._lock:
            reports = list(self._ask())
        return Health(tuple(_prefixed(slot, why) for slot, report in reports if report for why in report.health))

    def ready(self) -> Health:
        """Ready if every worker runs, answers, and is."""
        with self._lock:
            reports = list(self._ask())
        silent = ("it does not answer",)
        return Health(
            tuple(_prefixed(slot, why) for slot, report in reports for why in (report.ready if report else silent))
        )

    # --- the life of a worker

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.process is None and not self._signals and time.monotonic() >= slot.start_at:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        slot.started_at = time.monotonic()
        slot.stop_at = slot.kill_at = float("inf")
        slot.is_restarting = False
        try:
            slot.process, ours = self._open(slot.number)
        except OSError as error:  # no memory, processes or descriptors left
            self._plan_restart(slot, 1, f"worker {slot.number} can't be started ({error})")
            return
        with self._lock:
            slot.link = Child(ours)
        _log.info("worker %d is process %d", slot.number, slot.process.pid)

    def _open(self, number: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A process, and our end of the link to it."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.enter_context(ours)
            process = subprocess.Popen(
                self.command(number, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
            undo.pop_all()
        return process, ours

    def _bury(self) -> None:
        """Take note of the workers that have ended."""
        for slot in self._slots:
            if slot.process is None or (code := slot.process.poll()) is None:
                continue
            with self._lock:
                last = slot.link.drain() if slot.link else None
                slot.link = None
                slot.sources = last.sources if last else ()
                if last is not None:
                    self._gone = merge([self._gone, without_gauges(last.metrics)])
            ended = _ended(slot, slot.process.pid, code)
            slot.process = None
            if self._signals:
                self._note_stopped(code, ended, was_told=slot.is_restarting)
            elif code == EXIT_RECYCLE:
                self._replace(slot, f"{ended}, since {last.why if last and last.why else 'it had enough'}")
            elif slot.is_restarting:
                self._replace(slot, ended)
            elif self.awaits_change and code > 0:
                slot.start_at = float("inf")
                _log.error("%s; the next starts when a file has changed", ended)
            else:
                self._plan_restart(slot, code, ended)

    def _replace(self, slot: _Slot, why: str) -> None:
        slot.start_at, slot.pause = 0.0, PAUSE_SECONDS_MIN
        _log.info("%s; the next starts now", why)

    def _note_stopped(self, code: int, ended: str, *, was_told: bool) -> None:
        """`was_told`: to stop before the signal came, to start again, with little time."""
        if was_told or code in (
            0,
            EXIT_RECYCLE,
            -signal.SIGTERM,
        ):  # SIGTERM ends one that has not come so far as to handle it
            _log.info("%s", ended)
        else:
            _log.warning("%s", ended)
            self._exit_code = self._exit_code or 1

    def _plan_restart(self, slot: _Slot, code: int, ended: str) -> None:
        now = time.monotonic()
        lived = now - slot.started_at >= LIVED_SECONDS_MIN
        if code == EXIT_USAGE and not lived:
            _log.error("%s: stopping", ended)
            self._exit_code = EXIT_USAGE
            self._signals = max(self._signals, 1)
            return
        if lived:
            slot.pause = PAUSE_SECONDS_MIN
        slot.start_at = now + slot.pause
        _log.warning("%s; the next starts in %.1f s", ended, slot.pause)
        slot.pause = min(slot.pause * 2, PAUSE_SECONDS_MAX)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [slot.process for slot in self._slots if slot.process is not None]

    # --- stopping

    def _on_signal(self) -> None:
        self._signals += 1

    def _pass_on(self, signals: int) -> None:
        running = [slot for slot in self._slots if slot.process is not None]
        _log.info("%s %d workers", "draining" if signals == 1 else "stopping", len(running))
        for slot in running:
            wait = STOP_SECONDS_MAX if signals > 1 else self._drain_timeout(slot) + LATE_SECONDS_MAX
            slot.kill_at = min(slot.kill_at, time.monotonic() + wait)
            self._terminate(slot, at_once=signals > 1)

    def _drain_timeout(self, slot: _Slot) -> float:
        with self._lock:
            report = slot.link.newest() if slot.link else None
        return max(self.drain_timeout_s, report.drain_timeout_s if report else 0.0)

    def _restart(self, why: str) -> None:
        if self._signals:
            return
        _log.info("%s: starting again", why)
        for slot in self._slots:
            if slot.process is None:
                slot.start_at, slot.pause = 0.0, PAUSE_SECONDS_MIN
            elif not slot.is_restarting:
                slot.is_restarting = True
                slot.stop_at = time.monotonic() + RELOAD_SECONDS_MAX
                self._terminate(slot)

    def _stop_late(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None:
                continue
            if now >= slot.kill_at:
                slot.kill_at = float("inf")
                _log.warning("process %d did not stop; killing it", slot.process.pid)
                slot.process.kill()
            elif now >= slot.stop_at:
                slot.stop_at, slot.kill_at = float("inf"), min(slot.kill_at, now + STOP_SECONDS_MAX)
                self._terminate(slot, at_once=True)

    def _terminate(self, slot: _Slot, *, at_once: bool = False) -> None:
        if at_once and slot.link is not None:
            slot.link.stop()
        if slot.process is not None:
            slot.process.terminate()

    def _next_deadline(self) -> float:
        there = [slot for slot in self._slots if slot.process is not None]
        starts = [slot.start_at for slot in self._slots if slot.process is None and not self._signals]
        return min([*starts, *(min(slot.stop_at, slot.kill_at) for slot in there)], default=float("inf"))

    # --- listening and asking

    def _links(self) -> list[Child]:
        return [slot.link for slot in self._slots if slot.link is not None and slot.link.is_open]

    def _listen(self) -> None:
        """Read what workers say unasked: however much that is, none waits for us in order to end."""
        if not self._lock.acquire(timeout=LISTEN_SECONDS_MAX):  # somebody asks, and reads
            return
        try:
            reports = [(slot, slot.link.newest()) for slot in self._slots if slot.link is not None]
        finally:
            self._lock.release()
        for slot, report in reports:
            if report is not None and report.is_drained:
                wait = max(self.drain_timeout_s, report.drain_timeout_s) + LATE_SECONDS_MAX
                slot.kill_at = min(slot.kill_at, time.monotonic() + wait)

    def _ask(self) -> Iterator[tuple[_Slot, Report | None]]:
        """Every slot with its worker's answer, or None. Asks all before it waits for any. Needs the lock."""
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        for slot in self._slots:
            if slot.link:
                slot.link.ask()
        for slot in self._slots:
            yield slot, slot.link.collect(deadline) if slot.link else None


def _prefixed(slot: _Slot, why: str) -> str:
    return f"worker {slot.number}: {why}"


def _ended(slot: _Slot, pid: int, code: int) -> str:
    return f"worker {slot.number} (process {pid}) {how(code)}"


@contextlib.contextmanager
def _waker(on_stop: Callable[[], None]) -> Generator[tuple[Callable[[float, list[Child]], bool], Callable[[], None]]]:
    """Handle signals; give two functions: one waits for a signal, for what is said on a link (it returns whether
    anything was), or until a deadline (of time.monotonic); the other ends that wait, from any thread."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)

    def handle(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            on_stop()

    def wait(deadline: float, links: list[Child]) -> bool:
        timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            for link in links:
                selector.register(link, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(timeout)]
        if reader in ready:
            with contextlib.suppress(BlockingIOError):
                reader.recv(4096)
        return any(one is not reader for one in ready)

    def wake() -> None:
        with contextlib.suppress(OSError):  # full, so that it is awake; or closed, since it has ended
            writer.send(b"\0")

    before = {number: signal.signal(number, handle) for number in (*stop_signals(), signal.SIGCHLD)}
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        with reader, writer:
            yield wait, wake
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)

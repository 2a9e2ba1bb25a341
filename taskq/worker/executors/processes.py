"""Runs invocations in child processes, which can be killed: at their time limit, when cancelled, with all they started.

A crew of threads, each of which hands its invocation to a child and waits for the answer. Children are started when
there is none to spare, are used again while they are warm, and ended when they have been idle for long; there are never
more of them than threads. Few are started at once: who needs one meanwhile may find that another has come free. A
worker that runs nothing in processes has neither.

What may have killed workers runs here, too, whatever its task says (standing.py). Then the death of its child decides
what becomes of it, and not its retry policy.

A child that can't be started is not the fault of the invocation that needs it: that waits, and it is tried again until
it works or the worker ends. The log and /readyz say why.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define

from taskq.context import current
from taskq.decorators import Task
from taskq.errors import ProcessDied, TaskCancelled
from taskq.worker.execution import over_time, refuse_late
from taskq.worker.executors.calls import Call, Failed, Setup, decode_answer, encode
from taskq.worker.executors.children import END_S_MAX, Child, Unheard
from taskq.worker.executors.threads import ThreadCrew
from taskq.worker.retries import Abandoned, Expired, RemoteError, SuspectDied
from taskq.worker.work import Feed, Item

IDLE_S = 60.0
"""How long a child has nothing to do before it is ended."""

LOOK_S = 5.0
"""How often idle children are looked at."""

START_S_MAX = 120.0
"""How long a child may take to import the app."""

STARTING_MAX = max(2, os.cpu_count() or 1)
"""How many children may be starting at once: importing an app keeps a core busy."""

PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 10.0
"""Between two attempts to start one."""

_log = logging.getLogger("taskq.worker")


class ProcessCrew(ThreadCrew):
    """See `taskq.worker.work.Crew`. Its threads are started when they are first needed."""

    def __init__(self, size: int, feed: Feed, pool: ProcessPool) -> None:
        super().__init__(size, feed, "taskq-process")
        self._pool = pool

    def submit(self, items: list[Item], at: int | None = None) -> None:
        wanted = len(self.queue) + len(items) - len(self._idle)
        for _ in range(min(wanted, self._size - self._started)):
            self._start_one()
        super().submit(items, at)

    def cancel_run(self, item: Item) -> None:
        self._pool.cancel(item)

    def stop(self) -> None:
        super().stop()
        self._pool.close()


@define(eq=False)
class _Run:
    """An item that is being run."""

    item: Item
    child: Child | None = None
    is_cancelled: bool = False
    pause_s: float = PAUSE_S_MIN
    """How long to wait when no child can be had for it the next time."""


class ProcessPool:
    """`run` and `run_suspect` are what jobs call, in the threads of a crew. `setup` says what a new child is told;
    `tasks` are those of which it is told, in that order."""

    # The lock guards all that changes, and who has which child: nobody kills one that has begun another run.

    def __init__(self, tasks: Sequence[Task[Any, Any]], setup: Callable[[], Setup]) -> None:
        self._numbers = {id(task): number for number, task in enumerate(tasks)}
        self._setup = setup
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._free = threading.Condition(lock)
        """For those who wait for a child: there is an idle one, or another may be started."""
        self._starting = 0
        self._runs: dict[int, _Run] = {}
        """By id of the item."""
        self._idle: list[Child] = []
        """The one used last is the last, and the next to be used: those that are not needed grow old."""
        self._ending: list[Child] = []
        """What was idle when the pool was closed, and ends by itself."""
        self._is_closed = False
        self._is_urgent = False
        self._looker: threading.Thread | None = None
        self.error: str | None = None
        """Why a child could not be started, the last time it was tried."""
        self._died_early = False
        """Whether the last one that was to run something for the first time died instead."""

    # -- running

    def run(self, item: Item) -> None:
        """Run an item in a child. Raises what ends it: also ProcessDied."""
        self._run(item, is_suspect=False)

    def run_suspect(self, item: Item) -> None:
        """The same for one that may have killed workers: SuspectDied if it kills the child."""
        self._run(item, is_suspect=True)

    def cancel(self, item: Item) -> None:
        """Kill the child that runs an item, which ends with TaskCancelled. From any thread."""
        with self._changed:
            run = self._runs.get(id(item))
            if run is not None:
                run.is_cancelled = True
                if run.child is not None:
                    run.child.kill()
                self._changed.notify_all()
                self._free.notify_all()

    def _run(self, item: Item, *, is_suspect: bool) -> None:
        refuse_late(item)
        message = self._call(item, is_suspect=is_suspect)
        answer = None
        with self._registered(item) as run:
            while answer is None:
                answer = self._ask(run, message, is_suspect=is_suspect)
        told = decode_answer(answer)
        if isinstance(told, Failed):
            raise RemoteError(told.verdict, told.traceback)

    def _ask(self, run: _Run, message: bytes, *, is_suspect: bool) -> bytes | None:
        """Have a child run it; return what that says of it. None: it was dying just then, and has not begun."""
        child = self._take(run)
        try:
            refuse_late(run.item)  # it may have waited for long
        except Expired:
            self._give_back(run, child)
            raise
        try:
            answer = child.ask(message, run.item[0].task.declared.timeout)
        except TimeoutError:
            child.kill()
            self._drop(run, child)
            raise over_time(run.item) from None
        except Unheard:
            self._replace(run, child)
            return None
        except EOFError:
            how = self._drop(run, child)
            self._check(run)
            raise (SuspectDied(how) if is_suspect else ProcessDied(f"the process that ran it {how}")) from None
        except BaseException:
            self._kill(run, child)
            raise
        child.has_run = True
        self._give_back(run, child)
        return answer

    def _call(self, item: Item, *, is_suspect: bool) -> bytes:
        job, _, record, place = item
        return encode(
            Call(
                self._numbers[id(job.task)],
                job.group,
                *place.tp,
                record.offset,
                record.timestamp_ms,
                record.key,
                record.value,
                record.headers,
                place.delivery,
                job.task.declared.timeout,
                is_suspect,
            )
        )

    @contextmanager
    def _registered(self, item: Item) -> Generator[_Run]:
        run = _Run(item)
        with self._changed:
            self._runs[id(item)] = run
        try:
            current.check()  # who cancelled it before it was to be found
            yield run
        finally:
            with self._changed:
                del self._runs[id(item)]
                if self._is_closed:
                    self._changed.notify_all()

    def _check(self, run: _Run) -> None:
        """Raise if it is not to run any more."""
        if run.is_cancelled:
            raise TaskCancelled("it was cancelled while it ran")
        if self._is_closed:
            raise Abandoned

    # -- children

    def _take(self, run: _Run) -> Child:
        """A child for it: one that is warm, or else a new one."""
        while True:
            with self._free:
                self._free.wait_for(lambda: self._may_go_on(run))
                self._check(run)
                child = run.child = self._idle.pop() if self._idle else None
                self._starting += child is None
            if child is None:
                child = self._start(run)
                if child is not None:
                    return child
                refuse_late(run.item)
            elif child.is_well():
                return child
            else:
                self._replace(run, child)

    def _may_go_on(self, run: _Run) -> bool:
        return bool(self._idle) or self._starting < STARTING_MAX or run.is_cancelled or self._is_closed

    def _give_back(self, run: _Run, child: Child) -> None:
        with self._changed:
            run.child = None
            if child.has_run:
                self._died_early, self.error = False, None
            is_kept = not run.is_cancelled and not self._is_closed
            if is_kept:
                child.idle_since = time.monotonic()
                self._idle.append(child)
                self._free.notify()
                if self._looker is None:
                    self._looker = threading.Thread(target=self._look, name="taskq-children", daemon=True)
                    self._looker.start()
        if not is_kept:
            child.kill()
            child.bury()

    def _drop(self, run: _Run, child: Child) -> str:
        """Bury a child that is of no more use; say how it ended."""
        with self._changed:
            run.child = None
        return child.bury()

    def _kill(self, run: _Run, child: Child) -> None:
        child.kill()
        self._drop(run, child)

    def _replace(self, run: _Run, child: Child) -> None:
        """Bury a child that has died before it could run something."""
        how = self._drop(run, child)
        if child.has_run:
            self._tell_dead(child.pid, how)
        else:  # so may the next one, and the one after that
            self._died_early = True
            self._pause(run, f"child process {child.pid} {how} before it had run anything")

    def _start(self, run: _Run) -> Child | None:
        """A new child that is ready. None: there is none, and the time until it is to be tried again has passed, or
        another has come free."""
        try:
            started = self._try_start(run)
            if isinstance(started, Child):
                with self._changed:
                    if not self._died_early:
                        self.error = None
                return started
            self._pause(run, f"no child process can be started: {started}")
            return None
        finally:
            with self._free:
                self._starting -= 1
                self._free.notify_all()

    def _pause(self, run: _Run, why: str) -> None:
        """Tell why there is no child, and wait before the next is started."""
        with self._free:
            self._check(run)
            _log.error("%s; again in %.1f s", why, run.pause_s)
            self.error = why
            self._free.wait_for(lambda: self._idle or run.is_cancelled or self._is_closed, run.pause_s)
        run.pause_s = min(run.pause_s * 2, PAUSE_S_MAX)

    def _try_start(self, run: _Run) -> Child | str:
        """A new child that is ready, or why there is none."""
        try:
            setup = encode(self._setup())
            child = Child.start()
        except Exception as error:
            return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        with self._changed:
            run.child = child
            if run.is_cancelled or self._is_closed:
                child.kill()
        try:
            told = decode_answer(child.ask(setup, START_S_MAX))
        except TimeoutError:
            self._kill(run, child)
            return f"it was not ready within {START_S_MAX:g} s"
        except (EOFError, Unheard):
            return f"it {self._drop(run, child)} before it was ready"
        except BaseException:
            self._kill(run, child)
            raise
        if not isinstance(told, Failed):
            return child
        self._drop(run, child)
        return told.traceback or f"{told.verdict.type}: {told.verdict.message}"

    def _look(self) -> None:
        """End children that have been idle for long, and bury those that have died of themselves."""
        while True:
            with self._changed:
                self._changed.wait(LOOK_S)
                if self._is_closed or not self._idle:
                    self._looker = None
                    return
                old = time.monotonic() - IDLE_S
                well = [child for child in self._idle if child.is_well()]
                dead = [child for child in self._idle if child not in well]
                self._idle = [child for child in well if child.idle_since > old]
            for child in dead:
                self._tell_dead(child.pid, child.bury())
            _end([child for child in well if child.idle_since <= old])

    @staticmethod
    def _tell_dead(pid: int, how: str) -> None:
        _log.warning("child process %d %s while it had nothing to do; another takes its place", pid, how)

    def close(self) -> None:
        """Kill all that runs, and end what is idle. What was running stays unfinished."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._ending += idle
            for run in self._runs.values():
                if run.child is not None:
                    run.child.kill()
            self._changed.notify_all()
            self._free.notify_all()
        if self._is_urgent:
            self.hurry()
        _end(idle)
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, END_S_MAX)

    def hurry(self) -> None:
        """When it is closed, or since it is: give what is idle no time to end by itself. From any thread, and from
        signal handlers."""
        self._is_urgent = True
        for child in self._ending:
            child.kill()


def _end(children: Sequence[Child]) -> None:
    for child in children:
        child.hang_up()
    for child in children:
        child.bury()

"""Runs `def` tasks: a fixed crew of threads that take invocations from one deque.

An idle runner waits on a lock of its own, and the one that became idle last is woken first: a trickle of work stays on
one warm thread. Taking an item is one `popleft`, which is atomic, so the crew has no lock of its own.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextvars import Context, copy_context
from time import perf_counter

from taskq.context import Variables, enter
from taskq.worker.execution import NOT_RUN, refuse_not_run
from taskq.worker.work import Feed, Item, enqueue


class _Runner:
    __slots__ = ("is_replaced", "item", "signal", "thread")

    def __init__(self) -> None:
        self.item: Item | None = None
        self.is_replaced = False
        """Another one has its place: when what it runs has ended, so does it."""
        self.signal = threading.Lock()
        self.signal.acquire()
        self.thread: threading.Thread | None = None


class ThreadCrew:
    """See `taskq.worker.work.Crew`."""

    def __init__(self, size: int, feed: Feed, name: str = "taskq") -> None:
        self._name = name
        self.queue: deque[Item] = deque()
        self._feed = feed
        self._size = size
        self._runners: list[_Runner] = []
        self._started = 0
        self._idle: list[_Runner] = []
        self._is_stopping = False
        self._variables = Variables(_off_the_loop())

    def start(self) -> None:
        """Start all. Invocations find the context variables that are set here."""
        self._variables = Variables(_off_the_loop())
        for _ in range(self._size):
            self._start_one()

    def _start_one(self) -> None:
        runner = _Runner()
        self._runners.append(runner)
        # A daemon: a task that never ends must not keep a worker alive that was told to stop.
        name = f"{self._name}-{self._started}"
        runner.thread = threading.Thread(target=self._run, args=(runner,), name=name, daemon=True)
        self._started += 1
        runner.thread.start()

    def replace(self, item: Item) -> None:
        """Start another runner in the place of the one that runs `item` and may never end."""
        for runner in list(self._runners):
            if runner.item is item and not runner.is_replaced:
                runner.is_replaced = True
                self._start_one()

    def cancel_run(self, item: Item) -> None:
        """A thread can't be stopped: `current.check` tells it."""

    def submit(self, items: list[Item], at: int | None = None) -> None:
        enqueue(self.queue, items, at)
        idle = self._idle
        for _ in range(min(len(items), len(idle))):
            try:
                idle.pop().signal.release()
            except IndexError:  # it found work by itself meanwhile
                break

    def running(self) -> list[Item]:
        return [item for runner in list(self._runners) if (item := runner.item) is not None]

    def stop(self) -> None:
        """Let runners end when they have nothing to do. What runs goes on; nobody waits for it."""
        self._is_stopping = True
        while self._idle:
            try:
                self._idle.pop().signal.release()
            except IndexError:  # it took itself off the list meanwhile
                break

    def _run(self, runner: _Runner) -> None:
        is_to_end = False
        while not is_to_end:
            context = self._variables.context.copy()
            is_to_end = context.run(self._work, runner, context)

    def _work(self, runner: _Runner, context: Context) -> bool:
        """Run items in `context` until one has left variables in it, or the runner is to end: True."""
        queue, feed = self.queue, self._feed
        size, are_others = self._variables.size_to_ask, self._variables.are_others
        take = queue.popleft
        while True:
            try:
                item = runner.item = take()
            except IndexError:
                runner.item = None
                if not self._wait(runner):
                    return True
                continue
            job, envelope, record, work = item
            enter(item)
            started = perf_counter()
            try:
                if job.run is not None:
                    job.run(item)
                else:
                    args, kwargs = job.decode(envelope)
                    result = job.call(*args, **kwargs) if kwargs else job.call(*args)
                    if result is not None and result.__class__ in NOT_RUN:
                        refuse_not_run(result)
            except BaseException as error:
                feed.fail(item, error)
            else:
                job.ended((started, perf_counter(), record[1]))
                work.finish(record[0])
            if runner.is_replaced:
                self._runners.remove(runner)
                return True
            if feed.is_full and len(queue) < feed.low:
                feed.want_more()
            if len(context) >= size and are_others(context):
                return False

    def _wait(self, runner: _Runner) -> bool:
        """Sleep until there may be something to do. False: the crew is to end."""
        idle = self._idle
        idle.append(runner)
        if self.queue or self._is_stopping:  # came just before we were on the list, so nobody will wake us for it
            try:
                idle.remove(runner)
            except ValueError:
                runner.signal.acquire()  # somebody took us off the list to wake us
        else:
            runner.signal.acquire()
        return not self._is_stopping


def _off_the_loop() -> Context:
    """The context without what tells sniffio, and so anyio, of an event loop: none runs in a crew's threads."""
    here = copy_context()
    if "sniffio" not in sys.modules:
        return here
    import sniffio

    context = Context()
    for variable, value in here.items():
        if variable is not sniffio.current_async_library_cvar:
            context.run(variable.set, value)
    return context

"""Runs `async def` tasks: a fixed crew of coroutines on the worker's event loop, asyncio's or trio's.

One coroutine per runner for the worker's whole life, never one per invocation: starting one costs 15 to 30 us, a
runner that takes the next item 0.2. Another is started only after an invocation that has left context variables behind,
which nobody can take back for it. A task that never waits would keep the loop to itself, so a runner that has been at
it for YIELD_S lets the others have a turn.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from importlib.util import find_spec
from time import perf_counter

import anyio
import anyio.lowlevel

from taskq.context import Variables, enter
from taskq.errors import TaskCancelled
from taskq.worker.execution import NOT_RUN, refuse_not_run
from taskq.worker.work import Feed, Item, enqueue

YIELD_S = 0.005


def backend_options(backend: str) -> dict[str, bool]:
    """For `anyio.run`: asyncio runs on uvloop where that is installed, half the price for tasks that wait much."""
    return {"use_uvloop": find_spec("uvloop") is not None} if backend == "asyncio" else {}


class _Runner:
    __slots__ = ("cancelled", "item", "scope", "signal")

    def __init__(self) -> None:
        self.item: Item | None = None
        self.signal: anyio.Event | None = None
        self.scope: anyio.CancelScope | None = None
        """Around whatever it runs; another one after each item that was cancelled."""
        self.cancelled: Item | None = None
        """What `scope` was cancelled for."""


class AsyncCrew:
    """See `taskq.worker.work.Crew`. `run` must be running before anything is submitted."""

    def __init__(self, size: int, feed: Feed) -> None:
        self.queue: deque[Item] = deque()
        self._size = size
        self._feed = feed
        self._runners: list[_Runner] = []
        self._idle: list[_Runner] = []  # changed on the event loop only
        self._is_waking = False
        self._call_soon: Callable[[Callable[[], None]], object] | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._variables = Variables(copy_context())
        self._is_cancelled = False

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until `cancel`. Invocations find the context variables that are set here."""
        self._call_soon = loop_caller()
        self._variables = Variables(copy_context())
        async with anyio.create_task_group() as self._group:
            for _ in range(self._size):
                runner = _Runner()
                self._runners.append(runner)
                self._start(runner)
            task_status.started()

    def _start(self, runner: _Runner) -> None:
        assert self._group is not None
        self._variables.context.run(self._group.start_soon, self._run, runner)

    def cancel(self) -> None:
        """Stop everything, what runs included. On the event loop."""
        self._is_cancelled = True
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def submit(self, items: list[Item], at: int | None = None) -> None:
        enqueue(self.queue, items, at)
        if not self._is_waking:
            self._is_waking = True
            assert self._call_soon is not None, "submitted before run"
            self._call_soon(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        for _ in range(min(len(self.queue), len(self._idle))):
            signal = self._idle.pop().signal
            assert signal is not None
            signal.set()

    def running(self) -> list[Item]:
        return [item for runner in self._runners if (item := runner.item) is not None]

    def cancel_run(self, item: Item) -> None:
        assert self._call_soon is not None, "cancelled before run"
        self._call_soon(lambda: self._cancel_run(item))

    def _cancel_run(self, item: Item) -> None:
        for runner in self._runners:
            if runner.item is item and runner.scope is not None:
                runner.cancelled = item
                runner.scope.cancel()

    async def _run(self, runner: _Runner) -> None:
        while not self._variables.are_others(copy_context()):
            runner.cancelled = None
            with anyio.CancelScope() as runner.scope:
                await self._work(runner)
        runner.item = None
        if not self._is_ending():
            self._start(runner)  # as another task, which has a context of its own

    async def _work(self, runner: _Runner) -> None:
        """Run items until one of them is cancelled, or has left context variables behind."""
        queue, feed = self.queue, self._feed
        size, are_others = self._variables.size_to_ask, self._variables.are_others
        take = queue.popleft
        yielded = perf_counter()
        while True:
            try:
                item = runner.item = take()
            except IndexError:
                await self._rest(runner)
                yielded = perf_counter()
                continue
            job, envelope, record, work = item
            enter(item)
            started = perf_counter()
            try:
                if job.run is not None:
                    await job.run(item)  # type: ignore[misc]
                else:
                    args, kwargs = job.decode(envelope)
                    result = await (job.call(*args, **kwargs) if kwargs else job.call(*args))
                    if result is not None and result.__class__ in NOT_RUN:
                        refuse_not_run(result)
            except BaseException as error:
                self._fail(runner, item, error)
                ended = perf_counter()
            else:
                ended = perf_counter()
                job.ended((started, ended, record[1]))
                work.finish(record[0])
            if runner.cancelled is not None:
                return  # it was cancelled, and ended all the same
            if feed.is_full and len(queue) < feed.low:
                feed.want_more()
            if len(copy_context()) >= size and are_others(copy_context()):
                return
            if ended - yielded > YIELD_S:
                await self._yield(runner)
                yielded = perf_counter()

    def _fail(self, runner: _Runner, item: Item, error: BaseException) -> None:
        """In a runner whose item ended with `error`: tell it, and raise again what is not the item's own."""
        if runner.cancelled is item:
            self._feed.fail(item, TaskCancelled("it was cancelled while it ran"))
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise error  # its own scope takes it
            return  # it said something else while it was being stopped
        if isinstance(error, anyio.get_cancelled_exc_class()):
            self._survive(runner)  # or raise: it is unfinished and will be delivered again
        elif self._is_ending():
            raise error
        self._feed.fail(item, error)

    async def _rest(self, runner: _Runner) -> None:
        """Wait until there may be something to do."""
        runner.item = None
        runner.signal = signal = anyio.Event()
        self._idle.append(runner)
        try:
            await signal.wait()
        except anyio.get_cancelled_exc_class():
            self._survive(runner)

    async def _yield(self, runner: _Runner) -> None:
        """Let the others on this loop have their turn."""
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            self._survive(runner)

    def _is_ending(self) -> bool:
        """Whether the crew is being cancelled, by `cancel` or from outside. In a runner."""
        return self._is_cancelled or anyio.current_effective_deadline() == -math.inf

    def _survive(self, runner: _Runner) -> None:
        """In a runner that was cancelled: raise again if the crew is, else make it as good as new.

        It was a stray `Task.cancel()` then: a task's code got hold of the runner's asyncio task, as timers do that
        nobody clears.
        """
        if self._is_ending():
            raise  # noqa: PLE0704
        if runner in self._idle:
            self._idle.remove(runner)
        with suppress(RuntimeError):  # not on asyncio's loop
            task = asyncio.current_task()
            while task is not None and task.cancelling():
                task.uncancel()


def loop_caller() -> Callable[[Callable[[], None]], object]:
    """How another thread has something called on this event loop. anyio's own way makes that thread wait."""
    if "trio" in sys.modules:
        import trio

        with suppress(RuntimeError):  # not on trio's loop
            return trio.lowlevel.current_trio_token().run_sync_soon
    return asyncio.get_running_loop().call_soon_threadsafe

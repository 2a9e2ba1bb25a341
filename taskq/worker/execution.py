"""One attempt with everything that may be asked of it: not too late, not too long.

Runners run most items by themselves, in a few lines (executors/). Where a task has a time limit, or an invocation one
of its own, they call these instead, which raise how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

import anyio

from taskq.context import limit
from taskq.errors import TimeLimitExceeded
from taskq.trip import EXPIRES, milliseconds
from taskq.worker.retries import Expired
from taskq.worker.work import Item

NOT_RUN = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})
"""What a call has returned whose code did not run: a plain decorator around an `async def`, a missing await."""


class Execution:
    """Runs items, and knows which of those in threads are over time: nobody else can tell, and nothing stop them."""

    def __init__(self) -> None:
        self._until: dict[int, tuple[float, Item]] = {}
        """By id of the item: when it is over time (monotonic). Changed by runners, one atomic step each."""

    def run_sync(self, item: Item) -> None:
        """Run an item of a `def` task. Raises what ends it."""
        job, envelope, _, _ = item
        refuse_late(item)
        args, kwargs = job.decode(envelope)
        timeout_s = job.task.declared.timeout
        if timeout_s is None:
            refuse_not_run(job.call(*args, **kwargs))
        else:
            limit(item, time.time() + timeout_s)
            with self._watching(item, timeout_s):
                refuse_not_run(job.call(*args, **kwargs))

    async def run_async(self, item: Item) -> None:
        """Run an item of an `async def` task; it is cancelled when its time is over. Raises what ends it."""
        job, envelope, _, _ = item
        refuse_late(item)
        args, kwargs = job.decode(envelope)
        timeout_s = job.task.declared.timeout
        if timeout_s is None:
            refuse_not_run(await job.call(*args, **kwargs))
            return
        limit(item, time.time() + timeout_s)
        with anyio.CancelScope(deadline=anyio.current_time() + timeout_s) as scope:
            refuse_not_run(await job.call(*args, **kwargs))
        if scope.cancelled_caught:
            raise over_time(item)

    def overdue(self, now: float) -> list[Item]:
        """Those in threads whose time is over by `now` (monotonic), each told once."""
        late = [(key, item) for key, (until, item) in list(self._until.items()) if now >= until]
        for key, _ in late:
            self._until.pop(key, None)
        return [item for _, item in late]

    @contextmanager
    def _watching(self, item: Item, timeout_s: float) -> Generator[None]:
        self._until[id(item)] = (time.monotonic() + timeout_s, item)
        try:
            yield
        finally:
            self._until.pop(id(item), None)


def refuse_late(item: Item) -> None:
    """Raises Expired if it is too late to start an item."""
    record = item[2]
    if record.headers:
        expires_ms = milliseconds(record.headers, EXPIRES)
        if expires_ms is not None and time.time() * 1000 >= expires_ms:
            raise Expired(f"it was not to be started after {expires_ms}")


def refuse_not_run(result: Any) -> None:
    """Raises TypeError if what a task returned is its own code, which nobody has run. Runners look at NOT_RUN first."""
    kind = type(result)
    if kind not in NOT_RUN:
        return
    if kind is not AsyncGeneratorType:
        result.close()  # or Python warns that it was never awaited
    what = "a coroutine that nobody awaited" if kind is CoroutineType else "a generator that nobody went through"
    raise TypeError(
        f"it returned {what}: a decorator of an `async def` task must itself make one, and middleware await call_next"
    )


def over_time(item: Item) -> TimeLimitExceeded:
    """What to raise for an item whose time is over."""
    task = item[0].task
    return TimeLimitExceeded(f"{task.name} ran for longer than its timeout of {task.declared.timeout:g} s")

"""A log line for each invocation that ran to its end, for workers that log at level DEBUG; others pay nothing for it.

What does not run to its end is told by settle.py, at higher levels, with the same extra fields.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, cast

from taskq.context import identify
from taskq.message import format_id
from taskq.text import printable
from taskq.trip import trip_of
from taskq.worker.work import Item

Run = Callable[[Item], Awaitable[None] | None]

log = logging.getLogger("taskq.worker")


def is_on() -> bool:
    """Whether this process logs that much."""
    return log.isEnabledFor(logging.DEBUG)


def telling(run: Run) -> Run:
    """The same, and a log line after it."""
    if inspect.iscoroutinefunction(run):

        async def run_async(item: Item) -> None:
            waited_s, started = _waited_s(item), perf_counter()
            await cast(Any, run)(item)
            _tell(item, perf_counter() - started, waited_s)

        return run_async

    def run_sync(item: Item) -> None:
        waited_s, started = _waited_s(item), perf_counter()
        run(item)
        _tell(item, perf_counter() - started, waited_s)

    return run_sync


def _waited_s(item: Item) -> float:
    return max(0.0, time.time() - item[2].timestamp_ms / 1000)


def _tell(item: Item, seconds: float, waited_s: float) -> None:
    job, envelope, record, place = item
    ident, attempt = format_id(identify(envelope, record, place.tp)), trip_of(record).attempts + 1
    extra = {
        "taskq_task": job.task.name,
        "taskq_id": ident,
        "taskq_attempt": attempt,
        "taskq_outcome": "done",
        "taskq_seconds": seconds,
        "taskq_waited_seconds": waited_s,
    }
    log.debug(
        "%s[%s] at %s offset %d, attempt %d: done in %.3g s, after %.3g s",
        *(job.task.name, printable(ident), place.tp, record.offset, attempt, seconds, waited_s),
        extra=extra,
    )

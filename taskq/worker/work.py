"""What the poller hands to a crew, and what the crew hands back.

An `Item` is one invocation to run: a plain tuple, since hundreds of thousands are made a second. A runner that has
run one tells its `Job` when it ran (`job.ended`) and its `Work` that the offset is finished (`work.finish`): two
appends to lists, which the poller folds into metrics and progress ten times a second. Only a failure costs more.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from attrs import frozen

from taskq.broker.port import Record, TopicPartition
from taskq.context import Reject
from taskq.decorators import Task
from taskq.errors import ArgumentsError, SignatureError
from taskq.message import Envelope
from taskq.metrics import Metrics
from taskq.worker.progress import ENCODED_BYTES_MAX, Progress

Run = tuple[float, float, int]
"""When an invocation ran: perf_counter at start and end, and its record's timestamp in milliseconds."""

T = TypeVar("T")

TRACEBACK_CHARACTERS_MAX = 16_384
MESSAGE_CHARACTERS_MAX = 4_096


class Job:
    """A task as this worker runs it. `runs` is appended to by runners and emptied by the poller."""

    __slots__ = ("_done", "_execution_seconds", "_wait_seconds", "call", "decode", "ended", "group", "runs", "task")

    def __init__(self, task: Task[Any, Any], group: str, metrics: Metrics) -> None:
        self.task = task
        self.group = group
        self.call: Callable[..., Any] = task.fn
        self.decode = task.decode_args
        self.runs: list[Run] = []
        self.ended = self.runs.append
        self._done = metrics.executions.labels(group, task.name, "done")
        self._execution_seconds = metrics.execution_seconds.labels(group, task.name)
        self._wait_seconds = metrics.wait_seconds.labels(group, task.name)

    def count(self, clock_skew_s: float) -> None:
        """Put the runs since the last time into the metrics. `clock_skew_s` is time() - perf_counter()."""
        runs = _take_all(self.runs)
        count = len(runs)
        if not count:
            return
        self._done.inc(count)
        self._execution_seconds.observe_many([ended - started for started, ended, _ in runs])
        self._wait_seconds.observe_many(
            [started + clock_skew_s - timestamp_ms / 1000 for started, _, timestamp_ms in runs]
        )


class Work:
    """A partition that is held. `finish` is called by runners; all else belongs to the poller."""

    __slots__ = (
        "_discarded", "_done", "committed", "discard", "end", "error", "finish", "handed_out", "handed_out_bytes",
        "handover_at", "is_stalled", "parked", "progress", "tp",
    )  # fmt: skip

    def __init__(self, tp: TopicPartition, progress: Progress) -> None:
        self.tp = tp
        self.progress = progress
        self.committed = (progress.low, progress.encode())
        """What is stored."""
        self.handed_out = 0
        """Records that are queued or run."""
        self.handed_out_bytes = 0
        """About how large they are: of those handed out together, each counts the same."""
        self.end = progress.low
        """One past the last offset that was fetched."""
        self.is_stalled = False
        self.error: Exception | None = None
        """Why it can't be read further."""
        self.handover_at: float | None = None
        """If another member is to have it: until when (monotonic) to wait for what runs."""
        self.parked: list[Item] = []
        """What was queued when the handover began."""
        self._done: list[int] = []
        self.finish = self._done.append
        """An offset is finished."""
        self._discarded: list[int] = []
        self.discard = self._discarded.append
        """An offset was handed out, and will not be run here."""

    @property
    def is_committed(self) -> bool:
        return self.committed[0] == self.progress.low

    def skip(self, offsets: list[int]) -> None:
        """These are no business of this group."""
        self._done.extend(offsets)

    def pass_gaps(self, records: Sequence[Record]) -> None:
        """Offsets that are missing before and among `records`, the next that were fetched, are finished: retention or
        compaction has removed what they had."""
        due = self.end
        for record in records:
            self.progress.finish_range(due, record.offset)
            due = record.offset + 1

    @property
    def runs(self) -> bool:
        """Whether anything of it is with a runner, or waits to be one's next."""
        return self.handed_out > len({item[2].offset for item in self.parked})

    def fold(self) -> None:
        """Take up what was finished since the last time."""
        done, discarded = _take_all(self._done), _take_all(self._discarded)
        ended = len(done) + len(discarded)
        if ended:
            self.handed_out_bytes -= self.handed_out_bytes * ended // self.handed_out
            self.handed_out -= ended
        self.progress.finish(done)

    def fits(self, concurrency: int) -> bool:
        """Whether progress can still be stored, whatever the `concurrency` invocations that may run finish next."""
        return self.progress.fits(ENCODED_BYTES_MAX, concurrency, self.end)


def _take_all(shared: list[T]) -> list[T]:
    """Empty a list that other threads append to, without losing what they append meanwhile."""
    taken = shared[: len(shared)]
    del shared[: len(taken)]
    return taken


class Joint:
    """An event's record with several handlers in the group: finished when all of them are.

    `handlers` is their number. Stands in an item where a `Work` would.
    """

    __slots__ = ("_is_discarded", "_left", "_work", "handlers", "tp")

    def __init__(self, work: Work, handlers: int) -> None:
        self._work = work
        self._left = list(range(handlers))
        self._is_discarded = False
        self.handlers = handlers
        self.tp = work.tp

    def finish(self, offset: int) -> None:
        if self._left.pop() == 0:  # one atomic step, so exactly one runner is the last
            (self._work.discard if self._is_discarded else self._work.finish)(offset)

    def discard(self, offset: int) -> None:
        self._is_discarded = True
        self.finish(offset)


Item = tuple[Job, Envelope, Record, "Work | Joint"]


@frozen
class Failure:
    """Why an invocation, or a record that is none, is given up."""

    reason: str
    """One of: failed, rejected, arguments, signature, unreadable, unknown-task."""
    type: str
    message: str
    traceback: str = ""


_REASONS = {ArgumentsError: "arguments", SignatureError: "signature"}

Failed = tuple["Work | Joint", Record, str, Failure]
"""What can't be finished but as a dead letter: its place, its record, its task's name if it has one, and why."""


def describe(error: BaseException, reason: str) -> Failure:
    """What a dead letter says of `error`, of bounded size."""
    message = _shorten(_text(lambda: str(error)), MESSAGE_CHARACTERS_MAX)
    if isinstance(error, Reject):
        return Failure("rejected", "Reject", message)
    reason = next((known for kind, known in _REASONS.items() if isinstance(error, kind)), reason)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = _text(lambda: "".join(traceback.format_exception(error)))
    return Failure(reason, name, message, _shorten(text, TRACEBACK_CHARACTERS_MAX))


def _text(say: Callable[[], str]) -> str:
    """What an exception says of itself, in its own code: that may raise whatever it likes."""
    try:
        return say()
    except BaseException as error:
        return f"<it can't be told: {type(error).__name__}>"


def _shorten(text: str, characters_max: int) -> str:
    """Keep both ends: the beginning says what, the end of a traceback says where."""
    if len(text) <= characters_max:
        return text
    half = characters_max // 2 - 10
    return f"{text[:half]}\n[... cut ...]\n{text[-half:]}"


class Crew(Protocol):
    """A fixed number of runners that take items from one queue, each one at a time."""

    queue: deque[Item]

    def submit(self, items: list[Item]) -> None:
        """Queue these and wake runners for them. Called by the poller's thread."""
        ...

    def running(self) -> list[Item]:
        """What runs at this moment."""
        ...


class Feed:
    """How runners tell the poller that they want more, or that one failed. Shared by all crews of a worker."""

    __slots__ = ("_wake", "failures", "is_full", "low", "queues")

    def __init__(self, low: int, wake: Callable[[], None]) -> None:
        self.is_full = False
        """Set by the poller when it stops fetching; reset by the runner that finds less than `low` queued."""
        self.low = low
        """Changed by the poller before it sets `is_full`."""
        self.queues: list[deque[Item]] = []
        """Those of all crews."""
        self.failures: deque[Failed] = deque()
        self._wake = wake

    def queued(self) -> int:
        """How many items wait for a runner, or to become dead letters."""
        return sum(map(len, self.queues)) + len(self.failures)

    def want_more(self) -> None:
        """A runner's own queue is below `low`, and fetching has stopped: have it go on if all are."""
        if self.queued() < self.low:
            self.is_full = False
            self._wake()

    def fail(self, item: Item, error: BaseException) -> None:
        """An item ended with `error`. The poller looks within a commit interval."""
        job, _, record, work = item
        self.failures.append((work, record, job.task.name, describe(error, "failed")))

"""What the poller hands to a crew, and what the crew hands back.

An `Item` is one invocation to run: a plain tuple, since hundreds of thousands are made a second. A runner that has
run one tells its `Job` when it ran (`job.ended`) and its `Work` that the offset is finished (`work.finish`): two
appends to lists, which the poller folds into metrics and progress ten times a second. Only a failure costs more.

Where the last of an item's four parts is no `Work`, it stands for one and does more when its item has ended: a `Joint`
waits for the other handlers of an event, a `Ticket` (gates.py) lets the next one in.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from random import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attrs import frozen

from taskq.broker.port import Committed, Record, TopicPartition
from taskq.decorators import Task
from taskq.message import Envelope
from taskq.metrics import Metrics
from taskq.topics import RETRY
from taskq.trip import trip_of
from taskq.worker.progress import ENCODED_BYTES_MAX, Progress
from taskq.worker.retries import REDELIVERED, Abandoned, Failure, SuspectDied, decide, decide_suspect, describe
from taskq.worker.standing import AHEAD, AHEAD_WHEN_IDLE, NOBODY, Standing, progress_of

if TYPE_CHECKING:
    from taskq.worker.gates import Gate

Run = tuple[float, float, int]
"""When an invocation ran: perf_counter at start and end, and its record's timestamp in milliseconds."""

T = TypeVar("T")

_log = logging.getLogger("taskq.worker")


class Job:
    """A task as this worker runs it. `runs` is appended to by runners and emptied by the poller."""

    __slots__ = (
        "_done", "_execution_seconds", "_wait_seconds", "call", "careful", "crew", "decode", "deliveries_max", "ended",
        "gates", "group", "is_async", "is_ordered", "quarantined", "retry", "run", "runs", "task",
    )  # fmt: skip

    def __init__(self, task: Task[Any, Any], group: str, metrics: Metrics) -> None:
        self.task = task
        self.group = group
        self.call = task.app.wrapped(task)
        self.decode = task.decode_args
        self.is_async = task.is_async
        self.is_ordered = task.declared.order != "none"
        self.retry = task.retry
        self.deliveries_max = 1 if task.declared.at_most_once else task.declared.max_deliveries
        self.run: Callable[[Item], Awaitable[None] | None] | None = None
        """Runs an item with all that can be asked for; None: decoding it and calling the function is all there is."""
        self.gates: tuple[Gate, ...] = ()
        """What an invocation waits for, in this order, before a crew gets it."""
        self.crew: Crew | None = None
        """Who runs it. Set when the worker starts."""
        self.careful = self
        """The same with a `run` that looks at headers."""
        self.quarantined = self
        """The same in a process of its own."""
        self.runs: list[Run] = []
        self.ended = self.runs.append
        self._done = metrics.executions.labels(group, task.name, "done")
        self._execution_seconds = metrics.execution_seconds.labels(group, task.name)
        self._wait_seconds = metrics.wait_seconds.labels(group, task.name)

    def variant(self, run: Callable[[Item], Awaitable[None] | None], crew: Crew | None = None) -> Job:
        """The same job, run otherwise. What it counts is counted with this one."""
        other = copy.copy(self)
        other.run = run
        other.crew = crew or self.crew
        other.careful = other
        return other

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
        "_discarded", "_done", "_had_marks", "committed", "discard", "end", "error", "finish", "handed_out",
        "handed_out_bytes", "handover_at", "is_stalled", "limit", "marks", "parked", "progress", "suspects_end", "tp",
        "waiting",
    )  # fmt: skip

    delivery = 1

    def __init__(self, tp: TopicPartition, progress: Progress, before: Standing = NOBODY) -> None:
        self.tp = tp
        self.progress = progress
        self.committed: tuple[int, bytes] = (progress.low, b"")
        """What is stored; the metadata is empty as long as this worker has stored none."""
        self.handed_out = 0
        """Records that are queued or run."""
        self.handed_out_bytes = 0
        """About how large they are: of those handed out together, each counts the same."""
        self.waiting = 0
        """Invocations that wait at a gate."""
        self.end = progress.low
        """One past the last offset that was fetched."""
        self.is_stalled = False
        self.error: Exception | None = None
        """Why it can't be read further."""
        self.handover_at: float | None = None
        """If another member is to have it: until when (monotonic) to wait for what runs."""
        self.parked: list[Item] = []
        """What was queued when the handover began."""
        self.limit = 0
        """Nothing from here on has been started; stored with the progress before anything is. See standing.py."""
        self.suspects_end = before.limit if before.limit > progress.low else 0
        """What is below, and unfinished, may have been running when a worker died."""
        self.marks: dict[int, int] = dict(before.marks)
        """Of suspects: how often each was handed out."""
        self._had_marks = bool(before.marks)
        self._done: list[int] = []
        self.finish = self._done.append
        """An offset is finished."""
        self._discarded: list[int] = []
        self.discard = self._discarded.append
        """An offset was handed out, and will not be run here."""

    def has_stored(self, committed: Committed) -> bool:
        """Whether that is what this one has stored last, and nobody else since."""
        return bool(committed.metadata) and (committed.offset, committed.metadata) == self.committed

    def anew(self) -> Work:
        """The same partition after it was lost and has come back, as it was stored."""
        return Work(self.tp, progress_of(*self.committed), Standing(self._limit_at(self.committed[0]), self.marks))

    def _limit_at(self, low: int) -> int:
        """Of who has it next, if nobody dies: where the suspects end of whom some are left at `low`; or 0."""
        return self.suspects_end if low < self.suspects_end else 0

    @property
    def waiting_bytes(self) -> int:
        """About how large those are."""
        return self.handed_out_bytes * min(self.waiting, self.handed_out) // max(1, self.handed_out)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is unfinished, all is committed, and it is not to be handed over."""
        return self.is_committed and not self.handed_out and not self.is_stalled and self.handover_at is None

    @property
    def is_committed(self) -> bool:
        return self.committed[0] == self.progress.low

    @property
    def is_dangerous(self) -> bool:
        """Whether there are suspects, and a worker that took care has died of one of them, or with one."""
        return self._had_marks and self.progress.low < self.suspects_end

    def set_limit(self, end: int | None = None) -> None:
        """Let the limit be beyond all that was fetched, or will be up to `end`, so that it seldom has to be raised."""
        end = self.end if end is None else end
        is_idle = not self.handed_out and end == self.end
        if is_idle or self.limit - end < AHEAD // 2:
            self.limit = end + (AHEAD_WHEN_IDLE if is_idle else AHEAD)
        if self.progress.low < self.suspects_end:  # they still are
            self.limit = max(self.limit, self.suspects_end)

    def state(self, *, is_open: bool = True) -> tuple[int, bytes]:
        """What to store: the offset, and its metadata. Not `is_open`: it is given up in order.

        Those that are left of the suspects are suspects for whoever has it next: their deliveries go on being counted.
        """
        low = self.progress.low
        self.marks = {offset: count for offset, count in self.marks.items() if not self.progress.is_finished(offset)}
        limit = self.limit if is_open else self._limit_at(low)
        return low, Standing(limit, self.marks).encode(low) + self.progress.encode()

    def state_after(self, offsets: list[int]) -> tuple[int, bytes]:
        """What to store if these were finished, too."""
        before = self.progress
        self.progress = Progress.decode(before.low, before.encode())
        try:
            self.progress.finish(offsets)
            return self.state()
        finally:
            self.progress = before

    def skip(self, offsets: list[int]) -> None:
        """These are no business of this group."""
        self._done.extend(offsets)

    @property
    def runs(self) -> bool:
        """Whether anything of it is with a runner, or waits to be one's next."""
        return self.handed_out > len({item[2].offset for item in self.parked})

    def fold(self) -> None:
        """Take up what was finished since the last time."""
        done, discarded = _take_all(self._done), _take_all(self._discarded)
        ended = len(done) + len(discarded)
        if ended:
            self.handed_out_bytes -= self.handed_out_bytes * ended // max(1, self.handed_out)
            self.handed_out -= ended
        self.progress.finish(done)

    def finish_early(self, offset: int) -> None:
        """It counts as finished before it runs. It is handed out until then all the same."""
        self.progress.finish([offset])

    def is_too_far_ahead(self, concurrency: int) -> bool:
        """Whether progress could not be stored any more, depending on which `concurrency` invocations finish next.

        Not while it reads again what was fetched by who had it before, and stopped there: what it then waits for is
        still to be read, and makes progress shorter in the end.
        """
        return self.end >= self.progress.high and not self.progress.fits(ENCODED_BYTES_MAX, concurrency, self.end)


def _take_all(shared: list[T]) -> list[T]:
    """Empty a list that other threads append to, without losing what they append meanwhile."""
    taken = shared[: len(shared)]
    del shared[: len(taken)]
    return taken


class Place(Protocol):
    """Where an item came from, and who is told when it has ended."""

    @property
    def tp(self) -> TopicPartition: ...
    @property
    def delivery(self) -> int: ...
    @property
    def finish(self) -> Callable[[int], None]: ...
    @property
    def discard(self) -> Callable[[int], None]: ...


class Joint:
    """An event's record with several handlers in the group: finished when all of them are.

    `handlers` is their number. Stands in an item where a `Work` would.
    """

    __slots__ = ("_is_discarded", "_left", "_work", "delivery", "handlers", "tp")

    def __init__(self, work: Work, handlers: int, delivery: int = 1) -> None:
        self._work = work
        self._left = list(range(handlers))
        self._is_discarded = False
        self.handlers = handlers
        self.delivery = delivery
        self.tp = work.tp

    def finish(self, offset: int) -> None:
        if self._left.pop() == 0:  # one atomic step, so exactly one runner is the last
            (self._work.discard if self._is_discarded else self._work.finish)(offset)

    def discard(self, offset: int) -> None:
        self._is_discarded = True
        self.finish(offset)


Item = tuple[Job, Envelope, Record, Place]


def published_on(item: Item) -> str:
    """The topic on which it was published: of what is tried again, that is another than the one from which it comes."""
    topic = item[3].tp.topic
    origin = trip_of(item[2]).origin if topic.endswith(RETRY) else None
    return topic if origin is None else origin[0]


@frozen
class Ended:
    """An invocation that did not simply run to its end, and what is to become of it."""

    place: Place
    record: Record
    task: str
    """Its name; empty if the record names none."""
    failure: Failure
    item: Item | None = None
    """None if it never became one."""


@frozen
class Limits:
    """How much a worker process does at once."""

    concurrency: int
    """`def` invocations, and as many `async def` ones."""
    in_flight_max: int
    """Invocations held: those that run and those that wait to."""
    commit_interval_s: float


class Crew(Protocol):
    """A fixed number of runners that take items from one queue, each one at a time."""

    queue: deque[Item]

    def submit(self, items: list[Item], at: int | None = None) -> None:
        """Queue these, behind all others or behind `at` of them, and wake runners. Called by the poller's thread."""
        ...

    def running(self) -> list[Item]:
        """What runs at this moment."""
        ...

    def cancel_run(self, item: Item) -> None:
        """Stop an item that runs, if that can be done: it ends with TaskCancelled then. From any thread."""
        ...


def enqueue(queue: deque[Item], items: list[Item], at: int | None) -> None:
    """Put these behind all others, or behind `at` of them. Runners take from it meanwhile: each step is atomic."""
    if at is None:
        queue.extend(items)
        return
    for place, item in enumerate(items, at):
        queue.insert(place, item)


class Feed:
    """How runners tell the poller that they want more, or how one ended. Shared by all crews of a worker."""

    __slots__ = ("failures", "freed", "is_each", "is_full", "low", "queues", "wake")

    def __init__(self, low: int, wake: Callable[[], None]) -> None:
        self.is_full = False
        """Set by the poller when it stops fetching; reset by the runner that finds less than `low` queued."""
        self.low = low
        """Changed by the poller before it sets `is_full`."""
        self.is_each = False
        """Whether each queue is filled by itself, so that one that is low says so whatever the others are."""
        self.queues: list[deque[Item]] = []
        """Those of all crews."""
        self.failures: deque[Ended] = deque()
        self.freed: deque[Any] = deque()
        """Tickets whose item has ended."""
        self.wake = wake

    def queued(self) -> int:
        """How many items wait for a runner, or to become dead letters."""
        return sum(map(len, self.queues)) + len(self.failures)

    def want_more(self) -> None:
        """A runner's own queue is below `low`, and fetching has stopped: have it go on if all are."""
        if self.is_each or self.queued() < self.low:
            self.is_full = False
            self.wake()

    def free(self, ticket: object) -> None:
        """A ticket's item has ended: others may wait for that."""
        self.freed.append(ticket)
        self.wake()

    def fail(self, item: Item, error: BaseException) -> None:
        """An item ended with `error`. The poller looks within a commit interval."""
        job, _, record, place = item
        if isinstance(error, Abandoned):
            place.discard(record.offset)
            return
        try:
            if isinstance(error, SuspectDied):
                failure = decide_suspect(error, record, place.delivery, job.deliveries_max)
            else:
                failure = decide(job.retry, error, record, random(), int(time.time() * 1000))
        except Exception:  # a runner must never end with its item
            failure = describe(error, "failed")
        self.failures.append(Ended(place, record, job.task.name, failure, item))
        if failure.delay_s is not None or failure.outcome == REDELIVERED:
            self.wake()

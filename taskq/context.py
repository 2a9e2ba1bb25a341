"""`current`: what a running task may ask about the invocation it runs. And `Reject`, to give that up."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen
from msgspec import Raw

from taskq.broker.port import Record, TopicPartition
from taskq.errors import TaskCancelled, TaskqError, TimeLimitExceeded
from taskq.message import (
    RESERVED_HEADER_PREFIX,
    Envelope,
    Id,
    decode_headers,
    derive_id,
    encode_headers,
    format_id,
    parse_id,
)
from taskq.text import printable
from taskq.trip import Trip, trip_of, with_trip

if TYPE_CHECKING:
    from taskq.decorators import Task


class RunningTask(Protocol):
    """Which task runs, and for which group."""

    @property
    def task(self) -> Task[Any, Any]: ...
    @property
    def group(self) -> str: ...


class Place(Protocol):
    """The partition it came from."""

    @property
    def tp(self) -> TopicPartition: ...
    @property
    def delivery(self) -> int:
        """How often a worker was handed it, as far as that is counted."""
        ...


Delivery = tuple[RunningTask, Envelope, Record, Place]
"""What is run and from where. A plain tuple, and the very one that a worker makes for every invocation anyway."""

Limited = tuple[RunningTask, Envelope, Record, Place, float]
"""One that has a deadline: seconds since 1970."""

_delivery: ContextVar[Delivery | Limited] = ContextVar("taskq_delivery")
"""All in one variable: beside others in its context it takes longer to be set."""

enter = _delivery.set
"""Make `current` tell of a `Delivery`, in this thread or async task, until the next. For workers.

There is no leaving: a runner runs nothing of the user's between two invocations.
"""


def limit(delivery: Delivery, deadline: float) -> None:
    """Make `current.deadline` (seconds since 1970) tell of this delivery, which was entered. For workers."""
    _delivery.set((*delivery, deadline))


class Variables:
    """The context variables of a runner's invocations: each finds those that `context` has, and what it sets itself is
    gone with it. For workers.

    A context for each would cost a fifth of a no-op, and a task on the event loop many times that. But hardly any
    invocation leaves a variable behind: so a runner looks whether this one has, which costs a hundredth, and only then
    goes on in another copy of `context`.
    """

    __slots__ = ("_own", "_size", "context", "size_to_ask")

    def __init__(self, context: Context) -> None:
        self.context = context
        self._size = len(context) + (_delivery not in context)
        """How many there are while one runs. What it leaves behind is one more, or another value: none can go."""
        self._own = [(name, value) for name, value in context.items() if name.name not in _NOT_THEIRS]
        self.size_to_ask = self._size + (not self._own)
        """From how many on `are_others` must be asked: always, if `context` has some that may be set to others."""

    def are_others(self, context: Context) -> bool:
        """Whether an invocation has left variables in `context`, its runner's."""
        return len(context) > self._size or any(context[name] is not value for name, value in self._own)


_NOT_THEIRS = (_delivery.name, "current_async_library_cvar")
"""Set by whoever runs it; the last one is sniffio's."""


Cancelled = Mapping[Id, int]
"""Ids of invocations that were cancelled, and when: milliseconds since 1970."""

_cancelled: Cancelled = {}


def look_for_cancelled_in(ids: Cancelled) -> None:
    """Make `current.check` find cancelled invocations in `ids` from now on. For workers."""
    global _cancelled
    _cancelled = ids


def identify(envelope: Envelope, record: Record, tp: TopicPartition) -> Id:
    """An invocation's id: its own, or what it is called on its way, or by the place of its record."""
    if envelope.id is not None:
        return envelope.id  # type: ignore[no-any-return]
    named = trip_of(record).id
    return parse_id(named) if named else derive_id(*tp, record.offset)


def is_cancelled(ids: Cancelled, envelope: Envelope, record: Record, tp: TopicPartition) -> bool:
    """Whether it is one of `ids`: cancelled, and not retried by a person since then."""
    since_ms = ids.get(identify(envelope, record, tp))
    return since_ms is not None and since_ms > trip_of(record).retried_ms


class Reject(Exception):
    """Raise this in a task to give the invocation up at once: it becomes a dead letter with the reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


@frozen
class Running:
    """A task and a place in one: what runs where no worker is, but in a test or in a worker's child process."""

    task: Task[Any, Any]
    group: str
    tp: TopicPartition
    delivery: int


@contextmanager
def running(
    task: Task[Any, Any],
    *,
    id: str | None = None,  # noqa: A002 - as `current` calls it
    group: str | None = None,
    topic: str | None = None,
    partition: int = 0,
    offset: int = 0,
    headers: Mapping[str, str | bytes] | None = None,
    attempt: int = 1,
    delivery: int = 1,
    deadline: float | None = None,
) -> Generator[None]:
    """Inside this, `current` says that `task` is running: for tests of functions that use `current`."""
    envelope = Envelope(name=task.name, id=None if id is None else parse_id(id), args=Raw(b"\x90"))
    own = with_trip((), Trip(attempts=attempt - 1)) if attempt > 1 else ()
    record = Record(offset, 0, None, b"", encode_headers(headers or {}) + own)
    what = Running(task, group or task.group, TopicPartition(topic or task.topic, partition), delivery)
    entered: Delivery = (what, envelope, record, what)
    token = enter(entered)
    if deadline is not None:
        limit(entered, deadline)
    try:
        yield
    finally:
        _delivery.reset(token)


class Current:
    """The invocation that runs here. Outside a task every attribute raises TaskqError."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """The invocation's id: its handle's. One that was published without has an id all the same."""
        _, envelope, record, place = _get()
        return format_id(identify(envelope, record, place.tp))

    @property
    def attempt(self) -> int:
        """Which run of this invocation this is, from 1. A retry is another attempt."""
        return trip_of(_get()[2]).attempts + 1

    @property
    def retried(self) -> int:
        """How often a person retried this invocation after it had become a dead letter (`taskq dead retry`)."""
        return trip_of(_get()[2]).retried

    @property
    def delivery(self) -> int:
        """How often a worker was handed this invocation, this time included: more than 1 after one died with it."""
        return _get()[3].delivery

    @property
    def deadline(self) -> float | None:
        """When this run is over time, in seconds since 1970; None if its task has no `timeout`."""
        entered = _entered()
        return entered[4] if len(entered) > 4 else None

    def check(self) -> None:
        """Raise TaskCancelled if this invocation was cancelled, TimeLimitExceeded if its time is over.

        A thread can't be stopped from outside: a `def` task that may run long calls this now and then.
        """
        _, envelope, record, place = _get()
        if _cancelled and is_cancelled(_cancelled, envelope, record, place.tp):
            raise TaskCancelled(f"{self.task.name} {self.id} was cancelled")
        deadline = self.deadline
        if deadline is not None and time.time() > deadline:
            raise TimeLimitExceeded(f"{self.task.name} has run for longer than its {self.task.declared.timeout:g} s")

    @property
    def task(self) -> Task[Any, Any]:
        return _get()[0].task

    @property
    def group(self) -> str:
        return _get()[0].group

    @property
    def topic(self) -> str:
        return _get()[3].tp.topic

    @property
    def partition(self) -> int:
        return _get()[3].tp.partition

    @property
    def offset(self) -> int:
        return _get()[2].offset

    @property
    def headers(self) -> dict[str, str]:
        """What the publisher gave as headers, as text."""
        headers = decode_headers(_get()[2].headers)
        return {name: text for name, text in headers.items() if not name.startswith(RESERVED_HEADER_PREFIX)}

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named after the task that says with every line which invocation it is about."""
        name = self.task.name
        return _InvocationLogger(logging.getLogger(name), {"task": name, "id": self.id})

    def __repr__(self) -> str:
        delivery = _delivery.get(None)
        if delivery is None:
            return "<current: no task is running>"
        return f"<current: {self.task.name} {self.id} at {delivery[3].tp}/{self.offset} for group {self.group}>"


class _InvocationLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        given = kwargs.get("extra") or {}
        kwargs["extra"] = {"taskq_task": self.extra["task"], "taskq_id": self.extra["id"], **given}
        who = printable(f"{self.extra['task']}[{self.extra['id']}]")
        return f"{who.replace('%', '%%')} {msg}", kwargs  # logging formats it if there are arguments


def _get() -> Delivery:
    return _entered()[:4]


def _entered() -> Delivery | Limited:
    try:
        return _delivery.get()
    except LookupError:
        raise TaskqError(
            "no task is running here: `current` is for code that a worker runs; in tests, see taskq.context.running"
        ) from None


current = Current()

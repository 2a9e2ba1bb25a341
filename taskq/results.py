"""What publishing returns."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from taskq.broker.port import Producer
from taskq.control import cancellation
from taskq.message import Id, format_id
from taskq.topics import CONTROL

R = TypeVar("R")


class Publisher(Protocol):
    """What a handle needs of an app."""

    @property
    def producer(self) -> Producer: ...


def cancel(publisher: Publisher, ident: Id) -> None:
    """Have an invocation cancelled, whoever published it. Returns once the broker has it. Raises BrokerError."""
    publisher.producer.send_many(CONTROL, [cancellation(ident)])


class Handle(Struct, Generic[R], frozen=True, gc=False):
    """One published invocation of a task that returns an R.

    So far a handle knows its invocation's id, and can cancel it. Status and result are to come, with results.
    """

    # A struct because publishing makes one each time: a class with __slots__ takes four times as long to make.
    _id: Id
    _publisher: Publisher

    @property
    def id(self) -> str:
        """The invocation's id: a UUIDv7, unless the publisher chose another."""
        return format_id(self._id)

    def cancel(self) -> None:
        """Have it cancelled: it never starts, if it has not yet. Returns once the broker has been told.

        What runs of an `async def` task, or in a process, is stopped; a thread is told by `current.check()`. What has
        ended stays as it is. Workers remember it for 30 days. Raises BrokerError.
        """
        cancel(self._publisher, self._id)

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r})"

"""What publishing returns."""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

from taskq.message import format_id

R = TypeVar("R")


class Handle(Struct, Generic[R], frozen=True, gc=False):
    """One published invocation of a task that returns an R.

    So far a handle knows its invocation's id. Status, result and cancelling come with results, in a later version.
    """

    # A struct because publishing makes one each time: a class with __slots__ takes four times as long to make.
    _id: bytes | str

    @property
    def id(self) -> str:
        """The invocation's id: a UUIDv7, unless the publisher chose another."""
        return format_id(self._id)

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r})"

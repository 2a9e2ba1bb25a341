"""What travels with an invocation beside its value, in headers of the record. Pure.

The value is never touched on the way: what is retried, delayed or given up carries the publisher's own bytes.
What happened to it is told by these headers, which other programs may read and must not make:

    taskq-trip      a JSON object, `Trip`: attempts that have ended, what went wrong, where it came from
    taskq-expires   not to be started after this time; milliseconds since 1970, as text
    taskq-due       while it waits in the ladder: when it is due, likewise
    taskq-to        and where to then: the topic
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from taskq.broker.port import Headers, Record
from taskq.errors import SerializationError

TRIP = "taskq-trip"
EXPIRES = "taskq-expires"
DUE = "taskq-due"
TO = "taskq-to"

PAST_ERRORS_MAX = 10
"""How many errors the history keeps: the first, and the last ones."""

PAST_CHARACTERS_MAX = 300


COUNT_MAX = 1_000_000_000
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]


class PastError(Struct, frozen=True):
    """How an attempt ended."""

    attempt: int
    time_ms: int
    type: str
    message: str


class Trip(Struct, frozen=True, omit_defaults=True):
    """What has happened to an invocation so far."""

    attempts: Count = 0
    """Runs that have ended."""
    failures: Count = 0
    """Those of them that failed: `Retry.later` is no failure."""
    errors: tuple[PastError, ...] = ()
    """The first and the last ones."""
    origin: tuple[str, int, int] | None = None
    """Topic, partition and offset where it was published."""
    published_ms: int = 0
    """And when."""
    handler: Annotated[str, Meta(max_length=250)] = ""
    """Of an event with several handlers in the group: the one that this record is for."""
    id: Annotated[str, Meta(max_length=255)] = ""
    """If its value has none: what it is called."""
    retried: Count = 0
    """How often a person retried it when it was a dead letter."""
    retried_ms: int = 0
    """And when, the last time."""

    def after(self, error: PastError, *, is_failure: bool) -> Trip:
        """The trip with one more attempt."""
        errors = (*self.errors, error)
        if len(errors) > PAST_ERRORS_MAX:
            errors = (errors[0], *errors[-PAST_ERRORS_MAX + 1 :])
        return msgspec.structs.replace(
            self, attempts=self.attempts + 1, failures=self.failures + is_failure, errors=errors
        )


NEW = Trip()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Trip).decode


def trip_of(record: Record) -> Trip:
    """Raises SerializationError if the header is not one."""
    raw = header(record.headers, TRIP)
    if raw is None:
        return NEW
    try:
        return _decode(raw)
    except ValueError as error:
        raise SerializationError(f"the header {TRIP} is none of ours: {error}") from error


def header(headers: Headers, name: str) -> bytes | None:
    """The last header of that name."""
    return next((value for known, value in reversed(headers) if known == name), None)


def milliseconds(headers: Headers, name: str) -> int | None:
    """A header that is a time. Raises SerializationError if it is there and none."""
    raw = header(headers, name)
    if raw is None:
        return None
    if not raw.isdigit() or len(raw) > 15:
        raise SerializationError(f"the header {name} is no time in milliseconds: {raw[:40]!r}")
    return int(raw)


def with_header(headers: Headers, name: str, value: bytes | None) -> Headers:
    """The headers with `name` replaced, or without it."""
    others = tuple(one for one in headers if one[0] != name)
    return others if value is None else (*others, (name, value))


def with_trip(headers: Headers, trip: Trip) -> Headers:
    return with_header(headers, TRIP, _encode(trip))

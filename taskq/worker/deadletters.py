"""What a group gave up on: the record as it was, with headers that say why. To and fro; pure.

A dead letter goes to `<group>.dead` with the original's key, value and headers, byte for byte, so that it can be
published again as it was. The headers added are `taskq-dead-` and: reason, task, type, message, traceback, group,
topic, partition, offset, published (the original's timestamp), time (of giving up); all text, times in milliseconds.

Who writes to that topic without taskq may leave any of them out, and their values may be anything: what can't be read
is as if it were not there, so that there is always something to list, to retry and to purge.
"""

from __future__ import annotations

from attrs import frozen
from msgspec.structs import replace

from taskq.broker.port import OWN_HEADERS, Message, Record, TopicPartition
from taskq.errors import SerializationError
from taskq.message import Envelope, decode_envelope, decode_headers, derive_id, format_id
from taskq.trip import COUNT_MAX, EXPIRES, NEW, PAST_CHARACTERS_MAX, PastError, Trip, trip_of, with_trip
from taskq.worker.retries import Failure, shorten_name

PREFIX = f"{OWN_HEADERS}dead-"

REASONS = (
    "failed", "rejected", "timeout", "died", "arguments", "signature", "unreadable", "unknown-task", "deliveries",
    "refused",
)  # fmt: skip
"""Why a group gives up; see `Failure.reason`."""

_ALIKE_CHARACTERS = PAST_CHARACTERS_MAX // 3
"""An error's message is told longer in a dead letter than in the history, and both keep so much of its beginning."""


def dead_letter(group: str, task: str, tp: TopicPartition, record: Record, failure: Failure, now_ms: int) -> Message:
    """The message to publish to the group's dead letters. `task` is "" if the record names none."""
    said = {
        "reason": failure.reason,
        "task": task,
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
        "group": group,
        "topic": tp.topic,
        "partition": str(tp.partition),
        "offset": str(record.offset),
        "published": str(record.timestamp_ms),
        "time": str(now_ms),
    }
    added = tuple((PREFIX + name, text.encode(errors="backslashreplace")) for name, text in said.items())
    return Message(record.value, record.key, record.headers + added)


Origin = tuple[str, int, int]
"""Topic, partition and offset."""


@frozen
class DeadLetter:
    """A dead letter as it is kept."""

    tp: TopicPartition
    """Where it is kept."""
    record: Record
    """As it is kept there."""
    envelope: Envelope | None
    """None: its value is no invocation."""
    id: str | None
    """The invocation's. None: it is none."""
    trip: Trip
    """Its attempts, the history of its errors, and how often it was retried."""
    group: str
    task: str
    reason: str
    """One of REASONS."""
    type: str
    message: str
    traceback: str
    time_ms: int
    """When it was given up."""
    given_up_at: Origin | None
    """Where it was when it was given up: where it was published, or a topic in which it was to be tried again."""
    published_ms: int
    """0: not known."""

    @property
    def place(self) -> str:
        """Where it is kept, as short as can be: `<partition>@<offset>`. Others may have the same id."""
        return f"{self.tp.partition}@{self.record.offset}"

    @property
    def name(self) -> str:
        """What people call it."""
        return self.place if self.id is None else self.id

    @property
    def origin(self) -> Origin | None:
        """Where it was published."""
        return self.trip.origin or self.given_up_at

    @property
    def headers(self) -> dict[str, str]:
        """What the publisher gave as headers, as text."""
        found = decode_headers(self.record.headers)
        return {name: text for name, text in found.items() if not name.startswith(OWN_HEADERS)}


def read_letter(tp: TopicPartition, record: Record) -> DeadLetter:
    """What a record of a topic of dead letters says."""
    said = {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith(PREFIX)
    }
    envelope, trip = _envelope_of(record), _trip_of(record)
    partition, offset = _number(said.get("partition")), _number(said.get("offset"))
    given_up_at = None if partition is None or offset is None else (said.get("topic", ""), partition, offset)
    return DeadLetter(
        tp=tp,
        record=record,
        envelope=envelope,
        id=None if envelope is None else _id_of(envelope, trip, given_up_at or (tp.topic, tp.partition, record.offset)),
        trip=trip,
        group=said.get("group", ""),
        task=said.get("task", "") or (envelope.name if envelope is not None else ""),
        reason=said.get("reason", ""),
        type=said.get("type", ""),
        message=said.get("message", ""),
        traceback=said.get("traceback", ""),
        time_ms=_number(said.get("time")) or record.timestamp_ms,
        given_up_at=given_up_at,
        published_ms=trip.published_ms or _number(said.get("published")) or 0,
    )


def _envelope_of(record: Record) -> Envelope | None:
    try:
        return decode_envelope(record.value)
    except SerializationError:
        return None


def _trip_of(record: Record) -> Trip:
    try:
        return trip_of(record)
    except SerializationError:
        return NEW


def _id_of(envelope: Envelope, trip: Trip, place: Origin) -> str:
    """As `taskq.context.identify` had it before it was given up."""
    if envelope.id is not None:
        return format_id(envelope.id)
    return trip.id or format_id(derive_id(*place))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 19 else None


def sent_again(letter: DeadLetter, now_ms: int) -> Message:
    """The message to publish to the topic in which the group tries again: the original, its retries given back to it.

    It keeps its id, its history, and where it came from. When it is too late to start it is forgotten, be it past or
    ahead, and that it was cancelled before: a person says otherwise.
    """
    record, envelope, trip = letter.record, letter.envelope, _with_last_error(letter)
    headers = tuple(one for one in record.headers if not one[0].startswith(PREFIX) and one[0] != EXPIRES)
    handler, ident = trip.handler, trip.id
    if envelope is not None and envelope.event and letter.task != envelope.name:
        handler = handler or letter.task  # the event's other handlers have had it
    if envelope is not None and envelope.id is None:
        ident = letter.id or ""
    trip = replace(
        trip,
        attempts=0,
        failures=0,
        origin=letter.origin,
        published_ms=letter.published_ms,
        handler=handler,
        id=ident,
        retried=min(trip.retried + 1, COUNT_MAX),
        retried_ms=now_ms,
    )
    return Message(record.value, record.key, with_trip(headers, trip))


def _with_last_error(letter: DeadLetter) -> Trip:
    """The trip with what the letter was given up for. If it ran, and failed, that is in its history already."""
    trip, start = letter.trip, letter.message[:_ALIKE_CHARACTERS]
    if not letter.type and not letter.message:
        return trip
    if trip.attempts and trip.errors:
        last = trip.errors[-1]
        if last.type.endswith(shorten_name(letter.type)) and last.message[:_ALIKE_CHARACTERS] == start:
            return trip
    past = PastError(trip.attempts, letter.time_ms, shorten_name(letter.type), letter.message[:PAST_CHARACTERS_MAX])
    return trip.after(past, is_failure=False)

"""From how an attempt ended to what becomes of its invocation: tried again, given up, or let go. Pure."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from attrs import evolve, frozen

from taskq.broker.port import Record
from taskq.context import Reject
from taskq.errors import (
    ArgumentsError,
    InvocationError,
    ProcessDied,
    SerializationError,
    SignatureError,
    TaskCancelled,
    TimeLimitExceeded,
)
from taskq.retry import Retry, RetryLater
from taskq.trip import NEW, PAST_CHARACTERS_MAX, PastError, Trip, trip_of

TRACEBACK_CHARACTERS_MAX = 16_384
MESSAGE_CHARACTERS_MAX = 4_096


class Expired(Exception):
    """It is too late to start an invocation."""


@frozen
class Failure:
    """How an invocation ended that did not simply run to its end."""

    reason: str
    """One of: failed, rejected, timeout, died, arguments, signature, unreadable, unknown-task, deliveries; for those
    with another outcome than dead or retried: that."""
    type: str
    message: str
    traceback: str = ""
    outcome: str = "dead"
    """As `taskq_executions_total` counts it: dead, retried, expired or cancelled."""
    delay_s: float | None = None
    """How long to wait before the next attempt. None: there is none."""
    trip: Trip = NEW
    """With this attempt in it."""


_REASONS: dict[type[BaseException], str] = {
    ArgumentsError: "arguments",
    SignatureError: "signature",
    SerializationError: "unreadable",
    TimeLimitExceeded: "timeout",
    ProcessDied: "died",
    Reject: "rejected",
}

_UNFIT = (ArgumentsError, SignatureError, SerializationError)
"""What raised these did not run, and would not the next time."""


def decide(policy: Retry, error: BaseException, record: Record, random: float, now_ms: int) -> Failure:
    """What becomes of an invocation whose attempt ended with `error`. `random` is from 0 to 1."""
    if isinstance(error, Expired):
        return Failure("expired", "", str(error), outcome="expired")
    if isinstance(error, TaskCancelled):
        return Failure("cancelled", "", str(error), outcome="cancelled")
    try:
        trip = trip_of(record)
    except InvocationError as unreadable:
        return describe(unreadable, "unreadable")
    is_failure = not isinstance(error, RetryLater)
    told = Failure("failed", _type_of(error), _shorten(_text(lambda: str(error)), MESSAGE_CHARACTERS_MAX))
    past = PastError(trip.attempts + 1, now_ms, told.type, _shorten(told.message, PAST_CHARACTERS_MAX))
    trip = trip.after(past, is_failure=is_failure)
    delay_s = _delay_s(policy, error, trip, random)
    if delay_s is not None:
        return evolve(told, outcome="retried", delay_s=delay_s, trip=trip)
    return evolve(describe(error, "failed"), trip=trip)


def _delay_s(policy: Retry, error: BaseException, trip: Trip, random: float) -> float | None:
    if isinstance(error, RetryLater):
        return error.seconds
    if isinstance(error, (Reject, *_UNFIT)) or trip.failures > policy.max or not policy.takes(error):
        return None
    return policy.delay_s(trip.failures, random)


def describe(error: BaseException, reason: str) -> Failure:
    """What a dead letter says of `error`, of bounded size."""
    message = _shorten(_text(lambda: str(error)), MESSAGE_CHARACTERS_MAX)
    reason = next((known for kind, known in _REASONS.items() if isinstance(error, kind)), reason)
    if isinstance(error, Reject):
        return Failure(reason, "Reject", message)
    text = _text(lambda: "".join(traceback.format_exception(error)))
    return Failure(reason, _type_of(error), message, _shorten(text, TRACEBACK_CHARACTERS_MAX))


def _type_of(error: BaseException) -> str:
    remote = getattr(error, "taskq_type", None)  # raised in another process
    if isinstance(remote, str):
        return remote
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


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

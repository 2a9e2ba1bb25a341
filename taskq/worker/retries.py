"""From how an attempt ended to what becomes of its invocation: tried again, given up, or let go. Pure."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from attrs import frozen

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
from taskq.options import NAME_CHARACTERS_MAX
from taskq.retry import Retry, RetryLater
from taskq.trip import NEW, PAST_CHARACTERS_MAX, PastError, Trip, trip_of

TRACEBACK_CHARACTERS_MAX = 16_384
MESSAGE_CHARACTERS_MAX = 4_096


class Expired(Exception):
    """It is too late to start an invocation."""


class Abandoned(Exception):
    """The worker ends: the invocation stays unfinished, and is delivered again."""


class SuspectDied(ProcessDied):
    """The child died that ran what may have killed workers. `how` says the rest of a sentence about it."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the process that ran it {how}")
        self.how = how


@frozen
class Verdict:
    """What of an error decides about its invocation. Plain values: it may come from another process."""

    type: str
    message: str
    reason: str = "failed"
    """As in `Failure`."""
    outcome: str = "dead"
    """dead, unless it is tried again; or expired, or cancelled."""
    is_taken: bool = False
    """Whether the task's policy is for errors like this one."""
    later_s: float | None = None
    """What `Retry.later` said."""


class RemoteError(Exception):
    """How an attempt ended in another process, to be told as if it had ended here."""

    def __init__(self, verdict: Verdict, traceback: str) -> None:
        super().__init__(f"{verdict.type}: {verdict.message}")
        self.verdict = verdict
        self.traceback = traceback


@frozen
class Failure:
    """How an invocation ended that did not simply run to its end."""

    reason: str
    """One of: failed, rejected, timeout, died, arguments, signature, unreadable, unknown-task, deliveries, refused; for
    those with another outcome than dead or retried: that."""
    type: str
    message: str
    traceback: str = ""
    outcome: str = "dead"
    """As `taskq_executions_total` counts it: dead, retried, expired or cancelled. Or REDELIVERED, which is none."""
    delay_s: float | None = None
    """How long to wait before the next attempt. None: there is none."""
    trip: Trip = NEW
    """With this attempt in it."""


REDELIVERED = "redelivered"
"""The `outcome` of a suspect that is to run once more, and is no retry: nobody knows yet what to make of it."""

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
    verdict = judge(policy, error)
    if verdict.outcome != "dead":
        return Failure(verdict.outcome, "", verdict.message, outcome=verdict.outcome)
    try:
        trip = trip_of(record)
    except InvocationError as unreadable:
        return describe(unreadable, "unreadable")
    past = PastError(trip.attempts + 1, now_ms, verdict.type, _shorten(verdict.message, PAST_CHARACTERS_MAX))
    trip = trip.after(past, is_failure=verdict.later_s is None)
    delay_s = _delay_s(policy, verdict, trip, random)
    if delay_s is not None:
        return Failure("failed", verdict.type, verdict.message, outcome="retried", delay_s=delay_s, trip=trip)
    return Failure(verdict.reason, verdict.type, verdict.message, traceback_of(error), trip=trip)


def _delay_s(policy: Retry, verdict: Verdict, trip: Trip, random: float) -> float | None:
    if verdict.later_s is not None:
        return verdict.later_s
    if trip.failures > policy.max or not verdict.is_taken:
        return None
    return policy.delay_s(trip.failures, random)


def judge(policy: Retry, error: BaseException) -> Verdict:
    """What decides, of `error`."""
    if isinstance(error, RemoteError):
        return error.verdict
    message = _shorten(_text(lambda: str(error)), MESSAGE_CHARACTERS_MAX)
    if isinstance(error, Expired):
        return Verdict("", message, "expired", "expired")
    if isinstance(error, TaskCancelled):
        return Verdict("", message, "cancelled", "cancelled")
    if isinstance(error, Reject):
        return Verdict("Reject", message, "rejected")
    is_taken = not isinstance(error, _UNFIT) and policy.takes(error)
    later_s = error.seconds if isinstance(error, RetryLater) else None
    return Verdict(_type_of(error), message, _reason(error, "failed"), is_taken=is_taken, later_s=later_s)


def decide_suspect(error: SuspectDied, record: Record, delivery: int, deliveries_max: int) -> Failure:
    """What becomes of a suspect whose child died with it at its `delivery`. Its retry policy has no say in that."""
    if delivery < deliveries_max:
        return Failure("died", _qualified(ProcessDied), str(error), outcome=REDELIVERED)
    return deadly(delivery, trip_of(record), f"; the last one {error.how}")


def deadly(deliveries: int, trip: Trip, more: str = "") -> Failure:
    """What has killed as many processes as it may."""
    how = "a crash, a kill, or no memory left"
    message = f"the process that ran it died each of {deliveries} times: {how}{more}"
    return Failure("deliveries", _qualified(ProcessDied), message, trip=trip)


def describe(error: BaseException, reason: str) -> Failure:
    """What a dead letter says of `error`, of bounded size."""
    message = _shorten(_text(lambda: str(error)), MESSAGE_CHARACTERS_MAX)
    return Failure(_reason(error, reason), _type_of(error), message, traceback_of(error))


def traceback_of(error: BaseException) -> str:
    """As text of bounded size. Who rejects an invocation has said all there is to say."""
    if isinstance(error, RemoteError):
        return error.traceback
    if isinstance(error, Reject):
        return ""
    return _shorten(_text(lambda: "".join(traceback.format_exception(error))), TRACEBACK_CHARACTERS_MAX)


def _reason(error: BaseException, otherwise: str) -> str:
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), otherwise)


def _type_of(error: BaseException) -> str:
    return "Reject" if isinstance(error, Reject) else _qualified(type(error))


def _qualified(kind: type) -> str:
    def say() -> str:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

    return shorten_name(_text(say))


def shorten_name(name: str) -> str:
    """The name of a type, a task or an event as it is told: who chose it need not have meant well."""
    return name if len(name) <= NAME_CHARACTERS_MAX else f"{name[: NAME_CHARACTERS_MAX - 3]}..."


def _text(say: Callable[[], str]) -> str:
    """What an exception says of itself, in its own code: that may raise whatever it likes.

    Half of a surrogate pair, as in a file's name that is no UTF-8, is told as an escape: it can't be stored.
    """
    try:
        return _storable(say())
    except BaseException as error:
        return _storable(f"<it can't be told: {type(error).__name__}>")


def _storable(text: str) -> str:
    return str.encode(text, errors="backslashreplace").decode()


def _shorten(text: str, characters_max: int) -> str:
    """Keep both ends: the beginning says what, the end of a traceback says where."""
    if len(text) <= characters_max:
        return text
    half = characters_max // 2 - 10
    return f"{text[:half]}\n[... cut ...]\n{text[-half:]}"

"""What becomes of invocations that did not simply run to their end: durable first, and only then finished.

A dead letter is appended to `<group>.dead`; a retry to `<group>.retry`, or to the ladder if it is to wait. Those of
ordered tasks are tried again in place, so that the order holds; how often they were tried is then known to this worker
only, and the next one begins anew. What has expired or was cancelled needs nothing but to be counted. What may have
killed workers, and has killed a child now, is delivered again at once, until it has been often enough (standing.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from attrs import evolve
from msgspec.structs import replace

from taskq.broker.port import Message, Producer, Record
from taskq.context import identify
from taskq.errors import REFUSALS, BrokerUnavailable, SerializationError, StorageFull
from taskq.ladder import delayed
from taskq.message import Envelope, decode_envelope, format_id
from taskq.metrics import Metrics
from taskq.text import printable
from taskq.topics import dead_topic, retry_topic
from taskq.trip import NEW, Trip, trip_of, with_trip
from taskq.worker.deadletters import dead_letter
from taskq.worker.gates import Ticket
from taskq.worker.retries import REDELIVERED, describe
from taskq.worker.work import Ended, Item

AT_ONCE_MAX = 1000
"""How many are written at once, to bound the memory they take with their tracebacks."""

AGAIN_S = 0.25
"""How long to leave a full disk alone, or brokers that can't be reached."""

_log = logging.getLogger("taskq.worker")


class Settler:
    """Belongs to the poller's thread. `retry_in_place` and `redeliver` are those of `Dispatch`."""

    def __init__(
        self,
        group: str,
        producer: Producer,
        metrics: Metrics,
        retry_in_place: Callable[[Ended, Item, float], None],
        redeliver: Callable[[Item], None],
    ) -> None:
        self._group = group
        self._producer = producer
        self._metrics = metrics
        self._retry_in_place = retry_in_place
        self._redeliver = redeliver
        self._again_at = 0.0
        """After what could not be written (monotonic)."""

    def settle(self, failures: deque[Ended]) -> None:
        """Settle all of `failures`, and take them off it. What can't be written now stays: call again."""
        while failures and time.monotonic() >= self._again_at:
            batch = [failures.popleft() for _ in range(min(len(failures), AT_ONCE_MAX))]
            now_ms = -(-time.time_ns() // 1_000_000)  # rounded up: nothing comes back too early
            by_topic: dict[str, list[tuple[Ended, Message]]] = {}
            for ended, sent in (self._outcome(ended, now_ms) for ended in batch):
                if sent is not None:
                    by_topic.setdefault(sent[0], []).append((ended, sent[1]))
                else:
                    self._end(ended)
            for topic, told in by_topic.items():
                if left := self._write(topic, told, now_ms):
                    self._again_at = time.monotonic() + AGAIN_S
                    failures.extend(ended for ended, _ in left)
                    _log.error("can't write %d outcomes of group %s yet: %s", len(left), self._group, left[0][1])

    def _write(self, topic: str, told: list[tuple[Ended, Message]], now_ms: int) -> list[tuple[Ended, Exception]]:
        """Append these, and end what they are of; return those that can't be written yet, and why.

        A retry that is refused is a dead letter instead.
        """
        try:
            self._producer.send_many(topic, [message for _, message in told])
        except (StorageFull, BrokerUnavailable) as error:
            return [(ended, error) for ended, _ in told]
        except REFUSALS as error:
            if len(told) > 1:  # all, for what may be wrong with one of them
                return [left for one in told for left in self._write(topic, [one], now_ms)]
            ended = told[0][0]
            if ended.failure.outcome == "dead":  # nowhere else to go
                return [(ended, error)]
            ended = evolve(ended, failure=evolve(describe(error, "refused"), trip=ended.failure.trip))
            dead, letter = self._letter(ended, now_ms)
            return self._write(dead, [(ended, letter)], now_ms)
        for ended, _ in told:
            self._end(ended)
        return []

    def _end(self, ended: Ended) -> None:
        failure = ended.failure
        self._tell(ended)
        if failure.outcome == REDELIVERED and ended.item is not None:
            self._redeliver(ended.item)
            return
        # Whoever may publish may make up names: they must not become series without end.
        name = "" if failure.reason == "unknown-task" else ended.task
        self._metrics.executions.labels(self._group, name, failure.outcome).inc()
        if _stays(ended) and ended.item is not None:
            assert failure.delay_s is not None
            self._retry_in_place(ended, ended.item, time.monotonic() + failure.delay_s)
        else:
            ended.place.finish(ended.record.offset)

    def _outcome(self, ended: Ended, now_ms: int) -> tuple[Ended, tuple[str, Message] | None]:
        """What is to be ended, and what to publish of it before, and where.

        Should anything be in it that can't be written, that one is given up for it, and no other.
        """
        try:
            return (_again(ended), None) if _stays(ended) else (ended, self._message(ended, now_ms))
        except Exception as error:
            ended = evolve(ended, failure=describe(error, "failed"))
            return ended, self._message(ended, now_ms)

    def _message(self, ended: Ended, now_ms: int) -> tuple[str, Message] | None:
        """What to publish, and where."""
        failure, record = ended.failure, ended.record
        if failure.outcome == "retried":
            assert failure.delay_s is not None
            message = Message(record.value, record.key, with_trip(record.headers, self._signed_off(ended)))
            topic = retry_topic(self._group)
            due_ms = now_ms + math.ceil(failure.delay_s * 1000)
            return delayed(message, topic, due_ms, now_ms) if due_ms > now_ms else (topic, message)
        if failure.outcome == "dead":
            return self._letter(ended, now_ms)
        return None

    def _letter(self, ended: Ended, now_ms: int) -> tuple[str, Message]:
        """The dead letter, and where it goes."""
        failure, record = ended.failure, ended.record
        if failure.trip != NEW:
            record = record._replace(headers=with_trip(record.headers, failure.trip))
        letter = dead_letter(self._group, ended.task, ended.place.tp, record, failure, now_ms)
        return dead_topic(self._group), letter

    @staticmethod
    def _signed_off(ended: Ended) -> Trip:
        """The trip, with where it began if this is where."""
        trip, record, tp = ended.failure.trip, ended.record, ended.place.tp
        assert ended.item is not None
        envelope = ended.item[1]
        if trip.origin is None:
            origin = (tp.topic, tp.partition, record.offset)
            trip = replace(trip, origin=origin, published_ms=record.timestamp_ms)
        if envelope.event and not trip.handler:
            trip = replace(trip, handler=ended.task)
        if envelope.id is None and not trip.id:
            trip = replace(trip, id=format_id(identify(envelope, record, tp)))
        return trip

    def _tell(self, ended: Ended) -> None:
        failure = ended.failure
        who = printable(f"{ended.task or 'a record'}[{_ident(ended)}]")
        attempt = _attempt(ended.record)
        extra = {
            "taskq_task": ended.task,
            "taskq_id": _ident(ended),
            "taskq_attempt": attempt,
            "taskq_outcome": failure.outcome,
        }
        what = printable(f"{failure.type}: {failure.message.partition(chr(10))[0]}")
        place = (ended.place.tp, ended.record.offset)
        if failure.outcome == "dead":
            _log.error(
                "%s at %s offset %d is a dead letter (attempt %d): %s: %s",
                *(who, *place, attempt, failure.reason, what),
                extra=extra,
            )
        elif failure.outcome == "retried":
            _log.warning(
                "%s at %s offset %d, attempt %d: %s; again in %.3g s",
                *(who, *place, attempt, what, failure.delay_s),
                extra=extra,
            )
        elif failure.outcome == REDELIVERED:
            _log.warning(
                "%s at %s offset %d, delivery %d: %s; again at once",
                *(who, *place, ended.place.delivery, failure.message),
                extra=extra,
            )
        else:
            _log.info("%s at %s offset %d: %s", who, *place, failure.outcome, extra=extra)


def _again(ended: Ended) -> Ended:
    """What is tried again in place, with the item that is to run then."""
    assert ended.item is not None
    job, envelope, record, place = ended.item
    record = record._replace(headers=with_trip(record.headers, ended.failure.trip))
    return evolve(ended, item=(job.careful, envelope, record, place))


def _stays(ended: Ended) -> bool:
    """Whether it is tried again in place."""
    if ended.failure.outcome != "retried" or ended.item is None or not isinstance(ended.place, Ticket):
        return False
    order = ended.item[0].task.declared.order
    return order == "partition" or (order == "key" and ended.record.key is not None)


def _attempt(record: Record) -> int:
    """Which run of its invocation this was, or would have been."""
    try:
        return trip_of(record).attempts + 1
    except SerializationError:  # what does not run for that is at its first
        return 1


def _ident(ended: Ended) -> str:
    try:
        envelope: Envelope = ended.item[1] if ended.item else decode_envelope(ended.record.value)
        return format_id(identify(envelope, ended.record, ended.place.tp))
    except Exception:  # it is no invocation
        return "?"

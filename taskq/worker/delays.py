"""Moves what waits on the ladder (`taskq.ladder`) until it is due: a thread in every worker, members of one group.

Nothing is kept but what is about to move. Of each partition of a rung the next few records are read; the first tells
when to look again. One that has waited as long as its rung says goes down to a lower one, or, when less than a second
is left, into a heap until it is due, and then to its topic. It is finished once it has been appended there: who takes
the partition over reads again what was not. So a death loses nothing, and moves again only what was just being moved.
What can't be moved, since it does not say where to, or is refused there, becomes a dead letter of the movers' group.

Never early: what is due is compared with the clock, whatever was waited for. Clocks that differ between machines, or
are set, make it as early or late as they are off.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from math import inf

from attrs import define, field

from taskq.broker.port import Broker, Committed, Message, Polled, Producer, Record, TopicPartition
from taskq.config import check_topic
from taskq.definitions import DELAYED
from taskq.errors import REFUSALS, BrokerUnavailable, ConfigError, SerializationError, StorageFull
from taskq.ladder import TOPICS, rung_s, topic_for
from taskq.metrics import Sample
from taskq.topics import INTERNAL, dead_topic
from taskq.trip import DUE, TO, header, milliseconds, with_header
from taskq.worker.deadletters import dead_letter
from taskq.worker.joining import join
from taskq.worker.progress import ENCODED_BYTES_MAX, Progress
from taskq.worker.retries import describe

GROUP = f"{INTERNAL}delays"

AHEAD_MAX = 500
"""How many records are read ahead of a partition; a batch that was published at once is read whole."""

HEAP_MAX = 10_000
"""How many may wait in memory, for their last second or for a topic that does not take them. More wait in the log, and
are late if so many are due at once."""

LAST_MS = 1000
_AGAIN_MS = 1000
"""When to try again what there was no space for, or nobody to take it."""

_IDLE_S = 60.0

_log = logging.getLogger("taskq.worker")


@define(eq=False)
class _Rung:
    """A partition of a rung that is held."""

    tp: TopicPartition
    wait_ms: int
    progress: Progress
    committed: tuple[int, bytes]
    end: int
    """One past what was read."""
    ahead: deque[tuple[int, Record]] = field(factory=deque)
    """What was read and is still to be looked at, each with when that is."""
    is_paused: bool = False

    def read(self, records: Sequence[Record], now_ms: int) -> bool:
        """Take these up; whether something was missing, which counts as finished. Their clock may be ahead of ours."""
        is_gapped = records[-1].offset + 1 - self.end != len(records)
        if is_gapped:
            self.progress.finish_gaps(self.end, (record.offset for record in records))
        self.end = records[-1].offset + 1
        for record in records:
            if not self.progress.is_finished(record.offset):
                self.ahead.append((min(record.timestamp_ms, now_ms) + self.wait_ms, record))
        return is_gapped

    def next_ms(self) -> float:
        """When to look at the first one. Not before progress can be stored with it; that which was read before by who
        had the partition then makes it no longer in the end."""
        if not self.ahead:
            return inf
        when_ms, record = self.ahead[0]
        return when_ms if record.offset < self.progress.high or self.progress.fits(ENCODED_BYTES_MAX, 2) else inf


@define
class _Move:
    """A record that is to be appended to a topic, and finished then."""

    rung: _Rung
    record: Record
    topic: str
    message: Message


class Mover:
    """See the module docstring. `run` is the thread; `stop` may be called from any other."""

    def __init__(self, broker: Broker, *, joins_late: bool = False) -> None:
        self._producer: Producer = broker.producer()
        self._consumer = join(broker, GROUP, TOPICS, is_late=joins_late)
        self._reader = broker.reader()
        self._rungs: dict[TopicPartition, _Rung] = {}
        self._heap: list[tuple[int, int, _Rung, Record]] = []
        """What is due within a second: (due, a number, from where, what)."""
        self._numbers = count()
        self._owed: dict[str, list[_Move]] = {}
        """What could not be appended yet, by topic: there was no space, or nobody to take it."""
        self._tried_ms = 0
        """When that was last tried."""
        self._is_behind = False
        """Whether what was moved is not committed yet."""
        self._stop = threading.Event()
        self.polled_at = 0.0
        """When the loop last came round (monotonic)."""

    def run(self) -> None:
        """Move until stopped. Raises what ends it otherwise: a broker that fails."""
        try:
            while not self._stop.is_set():
                self._take(self._consumer.poll(self._timeout_s(), AHEAD_MAX))
                self.polled_at = time.monotonic()
                self.step(int(time.time() * 1000))
        finally:
            self._consumer.close()
            self._producer.close()

    def stop(self) -> None:
        self._stop.set()
        self._consumer.wakeup()

    def samples(self) -> Iterator[Sample]:
        """How many wait on each rung, of the partitions held here."""
        waiting: dict[str, int] = {}
        for rung in list(self._rungs.values()):
            progress = rung.progress
            left = self._reader.bounds(rung.tp).end - progress.low - progress.finished_above
            waiting[rung.tp.topic] = waiting.get(rung.tp.topic, 0) + max(0, left)
        yield from (Sample(DELAYED, (topic,), number) for topic, number in waiting.items())

    def step(self, now_ms: int) -> None:
        """Move all that is to be moved by `now_ms`."""
        self._append([*self._due(now_ms), *self._down(now_ms)], now_ms)
        self._commit()
        self._pause_and_resume()

    # -- what comes and goes

    def _take(self, polled: Polled) -> None:
        for tp, committed in polled.assigned.items():
            try:
                progress = Progress.decode(committed.offset, committed.metadata)
            except ValueError as error:
                _log.error("%s: what was committed can't be read (%s); some may be moved again", tp, error)
                progress = Progress(committed.offset)
            state = (progress.low, progress.encode())
            self._rungs[tp] = _Rung(tp, rung_s(tp.topic) * 1000, progress, state, progress.low)
        if polled.revoking:
            self._commit()
            self._consumer.release(list(polled.revoking))
        for tp in polled.lost | polled.revoking:
            self._forget(self._rungs.pop(tp))
        for tp, damage in polled.errors.items():
            _log.error("%s can't be read further: %s", tp, damage)
        now_ms = int(time.time() * 1000)
        for tp, records in polled.fetched:
            self._is_behind |= self._rungs[tp].read(records, now_ms)

    def _forget(self, rung: _Rung) -> None:
        self._heap = [one for one in self._heap if one[2] is not rung]
        heapq.heapify(self._heap)
        left = {topic: [move for move in moves if move.rung is not rung] for topic, moves in self._owed.items()}
        self._owed = {topic: moves for topic, moves in left.items() if moves}

    def _timeout_s(self) -> float:
        next_ms = min([rung.next_ms() for rung in self._rungs.values()], default=inf) if self._has_room() else inf
        if self._heap:
            next_ms = min(next_ms, self._heap[0][0])
        longest_s = _AGAIN_MS / 1000 if self._is_behind or self._owed else _IDLE_S
        return min(longest_s, max(0.0, next_ms / 1000 - time.time()))

    def _has_room(self) -> bool:
        """Whether more may wait in memory."""
        return len(self._heap) + sum(map(len, self._owed.values())) < HEAP_MAX

    # -- moving

    def _due(self, now_ms: int) -> Iterator[_Move]:
        """Off the heap."""
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, rung, record = heapq.heappop(self._heap)
            yield self._home(rung, record)

    def _down(self, now_ms: int) -> Iterator[_Move]:
        """Off their rungs: home, or to a lower one. What is due within a second goes into the heap instead."""
        for rung in self._rungs.values():
            while rung.next_ms() <= now_ms and self._has_room():
                _, record = rung.ahead.popleft()
                try:
                    due_ms = _due_ms(record)
                except SerializationError as error:
                    yield _give_up(rung, record, error, "unreadable", now_ms)
                    continue
                left_ms = due_ms - now_ms
                if left_ms <= 0:
                    yield self._home(rung, record)
                elif left_ms < LAST_MS:
                    heapq.heappush(self._heap, (due_ms, next(self._numbers), rung, record))
                else:
                    yield _Move(rung, record, topic_for(left_ms), Message(record.value, record.key, record.headers))

    @staticmethod
    def _home(rung: _Rung, record: Record) -> _Move:
        topic = header(record.headers, TO)
        assert topic is not None, "looked at when it was read"
        headers = with_header(with_header(record.headers, DUE, None), TO, None)
        return _Move(rung, record, topic.decode(), Message(record.value, record.key, headers))

    def _append(self, moves: list[_Move], now_ms: int) -> None:
        """Append these, each behind what is owed to its topic; now and then that, too. What can't be is owed."""
        by_topic: dict[str, list[_Move]] = {}
        if not self._tried_ms <= now_ms < self._tried_ms + _AGAIN_MS:  # the clock may have been set back
            self._tried_ms = now_ms
            by_topic, self._owed = self._owed, {}
        for move in moves:
            (self._owed if move.topic in self._owed else by_topic).setdefault(move.topic, []).append(move)
        for topic, ready in by_topic.items():
            self._append_to(topic, ready, now_ms)
        self._is_behind |= bool(by_topic)

    def _append_to(self, topic: str, moves: list[_Move], now_ms: int) -> None:
        try:
            self._producer.send_many(topic, [move.message for move in moves])
        except (StorageFull, BrokerUnavailable) as error:
            self._keep(topic, moves, error)
        except REFUSALS as error:
            if len(moves) > 1:  # all, for what may be wrong with one of them
                for move in moves:
                    self._append_to(topic, [move], now_ms)
            elif topic == dead_topic(GROUP):  # nowhere else to go
                self._keep(topic, moves, error)
            else:
                (move,) = moves
                letter = _give_up(move.rung, move.record, error, "refused", now_ms)
                self._append_to(letter.topic, [letter], now_ms)
        else:
            for move in moves:
                move.rung.progress.finish([move.record.offset])

    def _keep(self, topic: str, moves: list[_Move], error: Exception) -> None:
        _log.error("can't move %d delayed invocations to %s yet: %s", len(moves), topic, error)
        self._owed.setdefault(topic, []).extend(moves)

    def _commit(self) -> None:
        """Store what was moved, if it is not. What can't be stays for the next time."""
        if not self._is_behind:
            return
        states = {}
        for rung in self._rungs.values():
            state = (rung.progress.low, rung.progress.encode())
            if state != rung.committed and len(state[1]) <= ENCODED_BYTES_MAX:
                states[rung] = state
        try:
            missed = self._consumer.commit({rung.tp: Committed(*state) for rung, state in states.items()})
        except (StorageFull, BrokerUnavailable) as error:
            _log.error("can't commit what was moved yet: %s", error)
            return
        for rung, state in states.items():
            if rung.tp not in missed:
                rung.committed = state
        self._is_behind = bool(missed)

    def _pause_and_resume(self) -> None:
        for rung in self._rungs.values():
            if not rung.is_paused and len(rung.ahead) >= AHEAD_MAX:
                self._consumer.pause([rung.tp])
                rung.is_paused = True
            elif rung.is_paused and len(rung.ahead) < AHEAD_MAX // 2:
                self._consumer.resume([rung.tp])
                rung.is_paused = False


def _give_up(rung: _Rung, record: Record, error: Exception, reason: str, now_ms: int) -> _Move:
    """It becomes a dead letter instead."""
    _log.error("%s offset %d is a dead letter: %s", rung.tp, record.offset, error)
    letter = dead_letter(GROUP, "", rung.tp, record, describe(error, reason), now_ms)
    return _Move(rung, record, dead_topic(GROUP), letter)


def _due_ms(record: Record) -> int:
    """When a record is due. Raises SerializationError if it does not say so, or not where to go."""
    due_ms = milliseconds(record.headers, DUE)
    topic = header(record.headers, TO)
    try:
        check_topic((topic or b"").decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise SerializationError(f"the record does not say in {TO} where it goes: {error}") from None
    if due_ms is None:
        raise SerializationError(f"the record does not say in {DUE} when it is due")
    return due_ms

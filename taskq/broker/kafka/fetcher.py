"""Reads the partitions it is told to, ahead of whoever takes the records: a thread with a client of librdkafka.

It belongs to no group. So it goes on with all else while the member (member.py) waits for what runs in a partition that
another should have: librdkafka stops a group's own fetching for that long.

The client is this thread's alone: clients let one thread in at a time, and a poll that waits would keep the others
out. What others want of it is put into a queue, and done between two polls.

How much is read ahead is bounded, by partition: one that nobody takes from is paused on the brokers' side too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Final, cast

from attrs import define, field
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import TRANSIENT, UNKNOWN_TOPIC, UNUSED_GROUP, as_broker_error
from taskq.broker.port import Headers, Record, TopicPartition
from taskq.errors import BrokerError, BrokerUnavailable, NotAuthorized, TaskqError, TopicNotFound

AT_ONCE: Final = 4096
"""How many records to take from librdkafka at a time."""

TURN_S: Final = 0.05
"""How long a poll waits. What others want of the client waits no longer."""

AHEAD_BYTES_MAX: Final = 64 << 20
"""How much may be read ahead, over all partitions; more if there are so many that each gets the least it needs."""

SEEK_AGAIN_S: Final = 5.0
"""How soon to ask again where to go on in a partition of which nobody could say: all others wait for the answer."""

PARTITION_BYTES_MIN: Final = 256 << 10
RECORD_BYTES: Final = 300
"""What a record costs beside its value and key."""

_make = tuple.__new__
_key_of, _value_of = attrgetter("key"), attrgetter("value")


@define(eq=False)
class _Ahead:
    """What was read of a partition and not taken yet."""

    position: int
    """Of the next record to be read."""
    is_read: bool = False
    """Whether the client has been told. What comes before is of another time when it was held."""
    batches: deque[list[Record]] = field(factory=deque)
    sizes: deque[int] = field(factory=deque)
    """Of the batches, about, in bytes."""
    size_bytes: int = 0
    is_paused: bool = False
    is_out_of_range: bool = False
    """What is to be read next is not there: it is read anew from elsewhere, or no more."""
    seek_at: float = 0.0
    """If so: when (monotonic) to ask where to go on."""
    error: BrokerError | None = None
    """Why it can't be read further, to be told once all before it is taken."""


class Fetcher:
    """`add`, `remove` and `take` may be called by others; `changed` is notified when there is something new."""

    def __init__(
        self,
        conf: Conf,
        changed: threading.Condition,
        out_of_range: Callable[[TopicPartition, int], None],
        failed: Callable[[TopicPartition, BrokerError], None],
    ) -> None:
        """Called, in this thread: `out_of_range` with a partition and an offset that is not there, `failed` with one
        that can't be read further, and why; the latter with `changed` held."""
        self._conf = conf
        self._changed = changed
        self._out_of_range = out_of_range
        self._failed = failed
        self._ahead: dict[TopicPartition, _Ahead] = {}
        """Guarded by `changed`."""
        self._wishes: deque[Callable[[], object]] = deque()
        self._is_closed = False
        self.error: TaskqError | None = None
        """Why nothing can be read any more."""
        with self._conf.telling("opening a consumer"):
            self._client = Consumer(conf.fetcher(), logger=log)
        self._thread = threading.Thread(target=self._run, name="taskq-kafka-fetcher", daemon=True)
        self._thread.start()

    # -- for others

    def add(self, tp: TopicPartition, offset: int) -> None:
        """Read it, from there on."""
        ahead = _Ahead(offset)

        def begin() -> None:
            self._client.incremental_assign([KafkaPartition(tp.topic, tp.partition, offset)])
            ahead.is_read = True

        with self._changed:
            self._ahead[tp] = ahead
        self._wishes.append(begin)

    def restart(self, tp: TopicPartition, offset: int) -> None:
        """Read on from another offset."""
        self.remove([tp])
        self.add(tp, offset)

    def remove(self, tps: Iterable[TopicPartition]) -> None:
        """Read these no more, and forget what was read."""
        with self._changed:
            gone = [KafkaPartition(tp.topic, tp.partition) for tp in tps if self._ahead.pop(tp, None)]

        def end() -> None:
            self._client.resume(gone)  # or it would still be paused when it comes back
            self._client.incremental_unassign(gone)

        if gone:
            self._wishes.append(end)

    def is_out_of_range(self, tp: TopicPartition, position: int) -> bool:
        """Whether that is where it is to be read on, and is not there. With `changed` held."""
        ahead = self._ahead.get(tp)
        return ahead is not None and ahead.is_out_of_range and ahead.position == position

    def take(self, tp: TopicPartition, records_max: int) -> list[Record]:
        """About so many records that were read of it, in order; none if there are none. With `changed` held."""
        ahead = self._ahead.get(tp)
        taken: list[Record] = []
        while ahead is not None and ahead.batches and len(taken) < records_max:
            batch, size = ahead.batches.popleft(), ahead.sizes.popleft()
            room = records_max - len(taken)
            if len(batch) > room:
                rest = size * (len(batch) - room) // len(batch)
                ahead.batches.appendleft(batch[room:])
                ahead.sizes.appendleft(rest)
                batch, size = batch[:room], size - rest
            taken += batch
            ahead.size_bytes -= size
        return taken

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        client = self._client
        try:
            while not self._is_closed:
                while self._wishes:
                    self._wishes.popleft()()
                self._balance()
                first = client.poll(TURN_S)
                if first is not None:
                    self._sort([first, *client.consume(AT_ONCE, 0)])
        except Exception as error:
            self.error = error if isinstance(error, TaskqError) else self._meaning(error)
            with self._changed:
                self._changed.notify_all()
        finally:
            client.close()

    def _meaning(self, error: Exception) -> TaskqError:
        if isinstance(error, KafkaException):
            return self._conf.meaning(error, "reading")
        log.exception("the fetcher of %s has ended", self._conf.shown)
        return TaskqError(f"reading from {self._conf.shown}: {type(error).__name__}: {error}")

    def _sort(self, messages: list[KafkaMessage]) -> None:
        """Put what has come with its partition. What is done for each costs a worker more than all else of fetching."""
        found: dict[TopicPartition, list[Record]] = {}
        last_topic = last_partition = None
        records: list[Record] = []
        add = records.append
        for message in messages:
            if message.error() is not None:
                self._store(found)  # what came before it is worth no less
                found, last_topic, last_partition = {}, None, None
                self._hear(message)
                continue
            topic, partition = message.topic(), message.partition()
            if partition != last_partition or topic != last_topic:
                records = found.setdefault(TopicPartition(topic, partition), [])  # type: ignore[arg-type]
                add = records.append
                last_topic, last_partition = topic, partition
            add(record_of(message))
        self._store(found)

    def _store(self, found: dict[TopicPartition, list[Record]]) -> None:
        with self._changed:
            for tp, batch in found.items():
                ahead = self._ahead.get(tp)
                if ahead is None or not ahead.is_read or ahead.error is not None:  # given up, or what is after damage
                    continue
                size = _size_of(batch)
                ahead.batches.append(batch)
                ahead.sizes.append(size)
                ahead.size_bytes += size
                ahead.position = batch[-1].offset + 1
            self._changed.notify_all()

    def _seek(self, tp: TopicPartition, ahead: _Ahead) -> None:
        """Have it found out where to read on. While nobody can say that, it stands still: of what has been deleted the
        group hears too, and takes it away."""
        try:
            self._out_of_range(tp, ahead.position)
        except (BrokerUnavailable, TopicNotFound) as error:
            log.warning("%s can't be read further yet: %s", tp, error)
            ahead.seek_at = time.monotonic() + SEEK_AGAIN_S

    def _hear(self, message: KafkaMessage) -> None:
        error, topic, partition = message.error(), message.topic(), message.partition()
        assert error is not None
        tp = TopicPartition(topic, partition) if topic is not None and partition is not None else None
        ahead = self._ahead.get(tp) if tp is not None else None
        told = self._conf.meaning(error, f"reading {tp or 'anything'}")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            if ahead is not None and ahead.is_read:
                ahead.is_out_of_range = True
        elif error.code() in TRANSIENT | UNKNOWN_TOPIC | {UNUSED_GROUP}:  # librdkafka tries again; the group tells
            log.debug("%s", told)
        elif isinstance(told, BrokerUnavailable):
            log.warning("%s", told)
        elif tp is None or isinstance(told, NotAuthorized) or error.fatal():
            raise told
        elif ahead is not None and ahead.is_read:
            ahead.error = as_broker_error(told)

    def _balance(self) -> None:
        """Pause what nobody takes from, and resume it when it is half empty."""
        most = max(PARTITION_BYTES_MIN, AHEAD_BYTES_MAX // max(1, len(self._ahead)))
        full, low, gone = [], [], []
        now = time.monotonic()
        with self._changed:
            for tp, ahead in list(self._ahead.items()):
                if not ahead.is_paused and ahead.size_bytes >= most:
                    ahead.is_paused = True
                    full.append(KafkaPartition(tp.topic, tp.partition))
                elif ahead.is_paused and ahead.size_bytes < most // 2:
                    ahead.is_paused = False
                    low.append(KafkaPartition(tp.topic, tp.partition))
                if ahead.batches:  # what comes after it has time
                    continue
                if ahead.is_out_of_range and now >= ahead.seek_at:
                    gone.append((tp, ahead))
                elif ahead.error is not None:
                    self._failed(tp, ahead.error)
        for tp, ahead in gone:
            self._seek(tp, ahead)
        if full:
            self._client.pause(full)
        if low:
            self._client.resume(low)


def record_of(message: KafkaMessage) -> Record:
    """A record as the port has it."""
    headers: Headers = ()
    found = message.headers()
    if found:
        headers = tuple((name, text or b"") for name, text in cast("list[tuple[str, bytes | None]]", found))
    timestamp_ms = message.timestamp()[1]
    # What Record(...) does after its defaults; half its price.
    return _make(Record, (message.offset(), timestamp_ms, message.key(), message.value(), headers))


def _size_of(records: list[Record]) -> int:
    """About how many bytes they take."""
    texts = sum(map(len, filter(None, map(_value_of, records)))) + sum(map(len, filter(None, map(_key_of, records))))
    return texts + RECORD_BYTES * len(records)

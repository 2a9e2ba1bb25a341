"""Looks at partitions without a group."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, KafkaError
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import log
from taskq.broker.kafka.errors import TRANSIENT, UNKNOWN_TOPIC, UNUSED_GROUP
from taskq.broker.kafka.fetcher import record_of
from taskq.broker.kafka.forks import leave, watch
from taskq.broker.kafka.lookup import Lookup
from taskq.broker.port import Lost, PartitionBounds, Record, TopicPartition
from taskq.errors import BrokerUnavailable

_AT_ONCE = 1000

_CONF: Final = {
    "enable.partition.eof": "true",
    "fetch.wait.max.ms": "10",  # who goes to another partition waits for what was asked of the one before
}
"""Since brokers wait so short, nothing is asked of them while there is nothing to read."""


class KafkaReader:
    """See `taskq.broker.port.Reader`. Its client is opened with the first `read`, and reads ahead, to the end."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()
        self._client: Consumer | None = None
        self._is_closed = False
        self._tp: TopicPartition | None = None
        self._position = 0
        self._end = 0
        """As it was when it was last looked at."""
        self._ahead: deque[Record] = deque()
        """From `_position` on."""
        watch(self)

    def begin_anew(self) -> None:
        """See `Forkable`."""
        leave(self._client)
        self._lock = threading.Lock()
        self._client = self._tp = None
        self._ahead = deque()

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        self._check_open()
        self._lookup.check(tp)
        return self._lookup.bounds(tp)

    def read(
        self,
        tp: TopicPartition,
        offset: int,
        bytes_max: int = 1024 * 1024,
        *,
        lost: Callable[[Lost], object] | None = None,
    ) -> list[Record]:
        with self._lock:
            self._check_open()
            deadline = time.monotonic() + self._lookup.conf.patience_s
            while tp != self._tp or offset != self._position or not self._ahead:
                bounds = self.bounds(tp)
                offset = max(offset, bounds.start)
                self._end = bounds.end
                if offset >= bounds.end:
                    return []
                if tp != self._tp or offset != self._position:
                    self._go(tp, offset)
                if self._fill(deadline):
                    break
            taken = self._take(bytes_max)
            if not self._ahead and self._position >= self._end:
                self._rest()
            return taken

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        self._check_open()
        self._lookup.check(tp)
        return self._lookup.offset_for(tp, timestamp_ms)

    def close(self) -> None:
        self._is_closed = True  # who is reading ends with that
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = self._tp = None
            self._ahead.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise BrokerUnavailable(f"the reader of {self._lookup.conf.shown} has been closed")

    # -- with the lock held

    def _go(self, tp: TopicPartition, offset: int) -> None:
        conf = self._lookup.conf
        if self._client is None:
            with conf.telling("opening a consumer"):
                self._client = Consumer(conf.fetcher() | _CONF, logger=log)
        self._client.assign([KafkaPartition(*tp, offset)])
        self._tp, self._position = tp, offset
        self._ahead.clear()

    def _rest(self) -> None:
        if self._client is not None and self._tp is not None:
            self._client.unassign()
        self._tp = None

    def _fill(self, deadline: float) -> bool:
        """Wait for records; also for the end, where the last ones are none that anybody sees (aborted, compacted).

        False if what was there is not there any more: the log begins later, or is another.
        """
        assert self._client is not None
        conf = self._lookup.conf
        while not self._ahead:
            self._check_open()
            first = self._client.poll(0.1)
            for message in [first, *self._client.consume(_AT_ONCE, 0)] if first is not None else ():
                error = message.error()
                if error is None:
                    self._ahead.append(record_of(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    if not self._ahead:
                        return True
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    self._tp = None
                    return False
                elif error.code() not in TRANSIENT | UNKNOWN_TOPIC | {UNUSED_GROUP}:
                    self._tp = None
                    raise conf.meaning(error, f"reading {message.topic()}/{message.partition()}")
            if not self._ahead and time.monotonic() > deadline:
                raise BrokerUnavailable(f"nothing of {self._tp} has come from {conf.shown} in {conf.patience_s:.0f} s")
        return True

    def _take(self, bytes_max: int) -> list[Record]:
        taken: list[Record] = []
        size = 0
        while self._ahead:
            record = self._ahead[0]
            size += len(record.value or b"") + len(record.key or b"")
            if taken and size > bytes_max:
                break
            taken.append(self._ahead.popleft())
        if taken:
            self._position = taken[-1].offset + 1
        return taken

"""Follows a partition: a client of its own waits for what comes.

Brokers answer it when there is something, so it asks seldom; and an admin client, which would have to be asked again
and again, takes a processor while a broker is away.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import log
from taskq.broker.kafka.errors import TRANSIENT, UNKNOWN_TOPIC, UNUSED_GROUP
from taskq.broker.kafka.fetcher import AT_ONCE, record_of
from taskq.broker.kafka.forks import leave, watch
from taskq.broker.kafka.lookup import Lookup
from taskq.broker.kafka.remakes import Remakes
from taskq.broker.port import Record, TopicPartition
from taskq.errors import BrokerUnavailable

_CONF: Final = {
    "enable.partition.eof": "true",
    "auto.offset.reset": "earliest",  # where the log ends before what comes next, it is another: from its start
}

_TURN_S: Final = 0.1
"""How long a poll waits. It is closed no sooner."""


class KafkaFollower:
    """See `taskq.broker.port.Follower`."""

    def __init__(self, lookup: Lookup, tp: TopicPartition) -> None:
        self._lookup = lookup
        self._conf = lookup.conf
        self._remakes = Remakes(lookup.client)
        self._tp = tp
        self._lock = threading.Lock()
        self._client: Consumer | None = None
        self._is_assigned = False
        self._has_been_at_the_end = False
        self._is_closed = False
        watch(self)

    def begin_anew(self) -> None:
        """See `Forkable`."""
        leave(self._client)
        self._lock = threading.Lock()
        self._client = None
        self._remakes = Remakes(self._lookup.client)
        self._is_assigned = self._has_been_at_the_end = False

    def read(self, timeout: float) -> list[Record]:
        with self._lock:
            was_at_the_end = self._has_been_at_the_end
            began = time.monotonic()
            while True:
                if records := self._poll():
                    return records
                waited_s = time.monotonic() - began
                if self._has_been_at_the_end:
                    if waited_s >= timeout or not was_at_the_end:
                        return []
                elif waited_s > self._conf.patience_s:
                    shown = self._conf.shown
                    raise BrokerUnavailable(f"nothing of {self._tp} has come from {shown} in {waited_s:.0f} s")

    def close(self) -> None:
        self._is_closed = True  # who is reading ends with that
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    # -- with the lock held

    def _poll(self) -> list[Record]:
        if self._is_closed:
            raise BrokerUnavailable(f"{self._tp} on {self._conf.shown} is not followed any more")
        with self._conf.telling(f"reading {self._tp}"):
            if self._client is None:
                self._client = Consumer(self._conf.fetcher() | _CONF, logger=log)
            if not self._is_assigned or self._remakes.look(time.monotonic(), [self._tp.topic]):
                self._client.assign([KafkaPartition(*self._tp, OFFSET_BEGINNING)])
                self._is_assigned = True
            first = self._client.poll(_TURN_S)
            messages = [] if first is None else [first, *self._client.consume(AT_ONCE, 0)]
        return self._sorted(self._client, messages)

    def _sorted(self, client: Consumer, messages: list[KafkaMessage]) -> list[Record]:
        """The records; errors are raised, if they don't pass."""
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(record_of(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                self._has_been_at_the_end = True
            elif error.code() in UNKNOWN_TOPIC:  # whoever makes it anew makes another
                client.unassign()
                self._is_assigned, self._has_been_at_the_end = False, True
            elif error.code() not in TRANSIENT | {UNUSED_GROUP}:
                raise self._conf.meaning(error, f"reading {self._tp}")
        return records

"""A consumer that joins its group when it is first polled.

A member that does not poll yet would have partitions kept for it all the same, and they would stand still: a worker
whose app has a lifespan, which may take long to open, is none until that is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskq.broker.port import Broker, Committed, Consumer, Polled, TopicPartition


class LateConsumer:
    """See `taskq.broker.port.Consumer`. Its topics are created at once."""

    # _consumer is set by the thread that polls. `wakeup` may be called by others while it joins: _is_woken comes first.

    def __init__(self, broker: Broker, group: str, topics: Sequence[str], *, offset_reset: str = "earliest") -> None:
        self._broker = broker
        self._group = group
        self._topics = topics
        self._offset_reset = offset_reset
        self._consumer: Consumer | None = None
        self._is_woken = False
        self._is_leaving = False
        producer = broker.producer()
        for topic in topics:
            producer.send_many(topic, ())
        producer.close()

    @property
    def member_id(self) -> str:
        """Empty until it has joined."""
        return self._consumer.member_id if self._consumer else ""

    def poll(self, timeout: float, records_max: int = 4096) -> Polled:
        consumer = self._consumer
        if consumer is None:
            if self._is_leaving:
                return Polled()
            consumer = self._consumer = self._broker.consumer(
                self._group, self._topics, offset_reset=self._offset_reset
            )
            if self._is_woken:
                consumer.wakeup()
        return consumer.poll(timeout, records_max)

    def wakeup(self) -> None:
        self._is_woken = True
        if self._consumer is not None:
            self._consumer.wakeup()

    def leave(self) -> None:
        self._is_leaving = True
        if self._consumer is not None:
            self._consumer.leave()

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    # -- about partitions, which who has not joined has none of

    def pause(self, tps: Sequence[TopicPartition]) -> None:
        if self._consumer is not None:
            self._consumer.pause(tps)

    def resume(self, tps: Sequence[TopicPartition]) -> None:
        if self._consumer is not None:
            self._consumer.resume(tps)

    def commit(self, progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        return self._consumer.commit(progress) if self._consumer is not None else frozenset(progress)

    def release(self, tps: Sequence[TopicPartition]) -> None:
        if self._consumer is not None:
            self._consumer.release(tps)

    def keep(self, tps: Sequence[TopicPartition]) -> None:
        if self._consumer is not None:
            self._consumer.keep(tps)


def join(
    broker: Broker, group: str, topics: Sequence[str], *, offset_reset: str = "earliest", is_late: bool
) -> Consumer:
    """Join a group: now, or when first polled."""
    if is_late:
        return LateConsumer(broker, group, topics, offset_reset=offset_reset)
    return broker.consumer(group, topics, offset_reset=offset_reset)

"""Dead letters for tests, as a worker makes them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw, msgpack

from taskq.broker.port import Broker, Headers, Message, Record, TopicPartition
from taskq.message import encode_msgpack
from taskq.topics import dead_topic, retry_topic
from taskq.worker.deadletters import dead_letter
from taskq.worker.retries import Failure

FEED = TopicPartition("feed", 3)
FAILED = Failure("failed", "ValueError", "not 7", "Traceback ...\nValueError: not 7\n")


def value_of(ident: str, *args: object, task: str = "shop.pack") -> bytes:
    return encode_msgpack("task", task, ident, Raw(msgpack.encode(args)))


def letter(
    ident: str,
    *args: object,
    task: str = "shop.pack",
    key: bytes | None = None,
    headers: Headers = (),
    failure: Failure = FAILED,
    offset: int = 17,
    time_ms: int = 1_000_000,
) -> Message:
    """What a worker of the group `feed` appends to its dead letters."""
    record = Record(offset, 900_000, key, value_of(ident, *args, task=task), headers)
    return dead_letter("feed", task, FEED, record, failure, time_ms)


def bury(broker: Broker, letters: Sequence[Message]) -> None:
    broker.producer().send_many(dead_topic("feed"), letters)


def records_of(broker: Broker, topic: str) -> list[Record]:
    """All that is in a topic, partition by partition."""
    reader, found = broker.reader(), []
    for number in range(broker.admin().partitions(topic) if topic in broker.admin().topics() else 0):
        tp = TopicPartition(topic, number)
        offset = reader.bounds(tp).start
        while records := reader.read(tp, offset):
            found += records
            offset = records[-1].offset + 1
    reader.close()
    return found


def sent_to_retry(broker: Broker) -> list[Record]:
    return records_of(broker, retry_topic("feed"))

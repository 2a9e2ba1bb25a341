"""A consumer that reads, and what it reports."""

from __future__ import annotations

from collections.abc import Callable

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.broker.port import Message, Polled
from tests.broker.kafka.conftest import SINGLE
from tests.processes import wait_until


def consuming(broker: KafkaBroker, count: int = 3) -> KafkaConsumer:
    """A consumer that has been assigned SINGLE, and whose owner has heard of it; so many records are there."""
    broker.producer().send_many("single", [Message(b"%d" % number) for number in range(count)])
    consumer = broker.consumer("feed", ["single"])
    until(consumer, lambda polled: SINGLE in polled.assigned)
    return consumer


def until(consumer: KafkaConsumer, found: Callable[[Polled], object], records_max: int = 1) -> Polled:
    """Poll until `found` says so of what was reported; return that."""
    reports: list[Polled] = []

    def is_there() -> bool:
        reports.append(consumer.poll(0.1, records_max))
        return bool(found(reports[-1]))

    wait_until(is_there, "it is reported")
    return reports[-1]

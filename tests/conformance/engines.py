"""The brokers that are held to the suite, and the few things that differ between them.

To add one: a function that opens it, empty, with PARTITIONS partitions per topic and TOPICS as configured, and a line
in ENGINES. Where it needs a program that a machine may not have, it asks for it with `tests.needs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.memory import MemoryBroker
from taskq.broker.port import Broker
from taskq.topics import TopicConfig

PARTITIONS = 4
TOPICS: Mapping[str, int] = {"single": 1, "double": 2}
_CONFIGURED = {topic: TopicConfig(count) for topic, count in TOPICS.items()}


@frozen
class Engine:
    open: Callable[[Path], Broker]
    """Open the broker whose data, if it has any on disk, is in this directory."""
    keep_s: str
    """Name of what says how long a partition is left alone after `keep`."""


def _kafka(path: Path) -> Broker:
    from taskq.broker.kafka import KafkaBroker
    import os

    return KafkaBroker(os.environ["TASKQ_TEST_KAFKA"] + "?topic.metadata.refresh.interval.ms=500", PARTITIONS, _CONFIGURED)


ENGINES = {
    "kafka": Engine(_kafka, "taskq.broker.kafka.consumer.KEEP_S"),
    "memory": Engine(lambda path: MemoryBroker(PARTITIONS, _CONFIGURED), "taskq.broker.memory.KEEP_S"),
    "embedded": Engine(
        lambda path: EmbeddedBroker(str(path / "log"), partitions_default=PARTITIONS, topics=_CONFIGURED),
        "taskq.broker.consumer.KEEP_S",
    ),
}

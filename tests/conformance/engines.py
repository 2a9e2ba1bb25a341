"""The brokers that are held to the suite, and the few things that differ between them.

To add one: a function that opens it, empty, with PARTITIONS partitions per topic and TOPICS as configured, and a line
in ENGINES. What needs a server is added by a fixture (conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlencode

from attrs import Factory, frozen

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.memory import MemoryBroker
from taskq.broker.port import Broker
from taskq.topics import TopicConfig, TopicSettings

PARTITIONS = 4
TOPICS: Mapping[str, int] = {"single": 1, "double": 2}
_CONFIGURED = {topic: TopicConfig(count) for topic, count in TOPICS.items()}


@frozen
class Engine:
    open: Callable[[Path], Broker]
    """Open the broker whose data, if it has any on disk, is in this directory."""
    url: Callable[[Path], str]
    """What an app is told to open one such."""
    keep_s: str
    """Name of what says how long a partition is left alone after `keep`."""
    defaults: TopicSettings = Factory(TopicSettings)
    """Of a topic of which nothing was said."""
    is_remote: bool = False
    """What members do is heard of a little later, and topics that were deleted are missed a little later."""


ENGINES = {
    "memory": Engine(
        lambda path: MemoryBroker(PARTITIONS, _CONFIGURED), lambda path: "memory:", "taskq.broker.memory.KEEP_S"
    ),
    "embedded": Engine(
        lambda path: EmbeddedBroker(str(path / "log"), partitions_default=PARTITIONS, topics=_CONFIGURED),
        lambda path: str(path / "log"),
        "taskq.broker.consumer.KEEP_S",
    ),
}


KAFKA = {
    "heartbeat.interval.ms": "100",  # how soon members hear of each other
    "session.timeout.ms": "6000",
    "topic.metadata.refresh.interval.ms": "300",  # and of partitions
}


def on_kafka(servers: str) -> Engine:
    """The engine for a cluster, which its fixture empties for each test."""
    from taskq.broker.kafka import KafkaBroker

    return Engine(
        lambda path: KafkaBroker(
            f"kafka://{servers}", PARTITIONS, _CONFIGURED, replication=1 + servers.count(","), settings=KAFKA
        ),
        lambda path: f"kafka://{servers}?{urlencode(KAFKA)}",
        "taskq.broker.kafka.consumer.KEEP_S",
        TopicSettings(unfinished="delete"),
        is_remote=True,
    )

"""Brokers on an empty Kafka."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from taskq.broker.kafka import KafkaBroker
from taskq.broker.port import TopicPartition
from taskq.topics import TopicConfig
from tests.conformance.engines import KAFKA
from tests.kafka.cluster import Cluster

SINGLE = TopicPartition("single", 0)
Open = Callable[..., KafkaBroker]


@pytest.fixture
def opened(kafka: Cluster) -> Generator[Open]:
    """Opens a broker on an empty Kafka; arguments are those of `KafkaBroker`, and settings of librdkafka."""
    kafka.reset()
    brokers: list[KafkaBroker] = []

    def opened(topics: dict[str, TopicConfig] | None = None, **settings: str) -> KafkaBroker:
        told = KAFKA | {name.replace("_", "."): value for name, value in settings.items()}
        configured = {"single": TopicConfig(1), **(topics or {})}
        brokers.append(KafkaBroker(f"kafka://{kafka.bootstrap}", 4, configured, settings=told))
        return brokers[-1]

    yield opened
    for broker in brokers:
        broker.close()

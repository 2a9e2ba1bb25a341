"""Where records are stored: `connect` opens the broker that a URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.config import Durability, Settings
from taskq.errors import ConfigError
from taskq.urls import path_of

if TYPE_CHECKING:
    from taskq.broker.port import Broker


def connect(settings: Settings) -> Broker:
    """Open the broker at `settings.broker`. Raises BrokerUnavailable, or ConfigError for a URL of no known kind."""
    scheme = settings.broker.partition(":")[0]
    if scheme == "file":
        from taskq.broker.embedded import EmbeddedBroker

        return EmbeddedBroker(
            str(path_of(settings.broker)),
            durability=Durability.parse(settings.durability),
            partitions_default=settings.partitions,
            topics=settings.topics,
            shared=settings.directory_mode == "group",
        )
    if scheme == "memory":
        from taskq.broker.memory import MemoryBroker

        return MemoryBroker(partitions_default=settings.partitions, topics=settings.topics)
    if scheme == "kafka":
        return _kafka(settings)
    raise ConfigError(f"{settings.broker}: not a broker URL: use a path, file:///path, memory: or kafka://host:9092")


def _kafka(settings: Settings) -> Broker:
    from taskq.urls import parse_kafka

    try:
        from taskq.broker.kafka import KafkaBroker
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "confluent_kafka":
            raise
        raise ConfigError(
            f"{parse_kafka(settings.broker).shown} needs what is not installed: pip install 'taskq[kafka]'"
        ) from None
    return KafkaBroker(
        settings.broker,
        partitions_default=settings.partitions,
        topics=settings.topics,
        replication=settings.replication,
        settings=settings.kafka,
    )

"""Members of a group on a real Kafka, as the group sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka.consumer import KafkaConsumer
from tests.kafka.cluster import Cluster
from tests.kafka.urls import url
from tests.processes import wait_until


def just_close(consumer: KafkaConsumer) -> None:
    consumer.close()


def leave_and_close(consumer: KafkaConsumer) -> None:
    consumer.leave()
    consumer.close()


def leave_release_and_close(consumer: KafkaConsumer) -> None:
    consumer.leave()
    consumer.release(list(consumer.poll(5).revoking))
    consumer.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("end", [just_close, leave_and_close, leave_release_and_close])
def test_who_has_closed_is_no_member_any_more(
    empty: Cluster, protocol: str, end: Callable[[KafkaConsumer], None]
) -> None:
    """Else the group would wait for it, and its partitions stand still for as long as a session lasts."""
    broker = KafkaBroker(url(empty, {"group.protocol": protocol}))
    try:
        broker.producer().send_many("feed", ())
        for _ in range(3):
            consumer = broker.consumer("feed", ["feed"])
            wait_until(lambda consumer=consumer: consumer.poll(0.1).assigned, "it has partitions")  # type: ignore[misc]
            end(consumer)
            assert not broker.admin().describe_group("feed").members
    finally:
        broker.close()

"""Members of a group on a real Kafka, as the group sees them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.broker.kafka.members import SHARES_MAX, shares
from taskq.broker.port import Committed, TopicPartition
from tests.conformance.members import Member, settle
from tests.kafka.cluster import Cluster
from tests.kafka.urls import url
from tests.processes import wait_until

SESSION_S = 6
"""Of members, in the newer protocol as the cluster has it."""


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


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_who_leaves_is_a_member_until_what_runs_has_ended(empty: Cluster, protocol: str) -> None:
    """Longer than a session: what is finished meanwhile is stored, and nobody runs it again."""
    sessions = {} if protocol == "consumer" else {"session.timeout.ms": str(SESSION_S * 1000)}
    settings = {"group.protocol": protocol, **sessions}
    tp = TopicPartition("feed", 0)
    broker, other = KafkaBroker(url(empty, settings)), KafkaBroker(url(empty, settings))
    try:
        broker.admin().create_topic("feed", 1)
        leaving = broker.consumer("feed", ["feed"])
        wait_until(lambda: leaving.poll(0.1).assigned, "it has the partition")
        leaving.leave()
        wait_until(lambda: leaving.poll(0.1).revoking, "it is asked for")
        staying = other.consumer("feed", ["feed"])
        until, number = time.monotonic() + 1.5 * SESSION_S, 0
        while time.monotonic() < until:
            number += 1
            assert not leaving.poll(0.1).lost
            assert not staying.poll(0.1).assigned
            assert leaving.commit({tp: Committed(number)}) == frozenset()
        leaving.release([tp])
        found: dict[TopicPartition, Committed] = {}

        def has_it() -> bool:
            found.update(staying.poll(0.1).assigned)
            return bool(found)

        wait_until(has_it, "the other has it")
        assert found == {tp: Committed(number)}
    finally:
        broker.close()
        other.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_who_comes_later_gets_its_share_of_every_topic(empty: Cluster, protocol: str) -> None:
    """Not all of what is busy, and the first all of what is not; nor the other way round."""
    topics = ["feed", "mail", "feed.retry"]
    broker = KafkaBroker(url(empty, {"group.protocol": protocol}))
    try:
        for topic in topics:
            broker.admin().create_topic(topic, 4)
        first = Member(broker.consumer("feed", topics))
        settle(first, until=lambda: len(first.held) == 12)
        second = Member(broker.consumer("feed", topics))

        def numbers() -> list[list[int]]:
            return [[sum(tp.topic == topic for tp in one.held) for topic in topics] for one in (first, second)]

        settle(first, second, until=lambda: numbers() == [[2, 2, 2], [2, 2, 2]], lets_go=True)
    finally:
        broker.close()


def test_topics_are_shared_alike_whatever_their_order() -> None:
    topics = ["mail", "feed", "feed.retry", "mail.retry"]
    assert shares(topics) == shares(topics[::-1]) == [("feed",), ("mail",), ("feed.retry", "mail.retry")]
    assert shares(["__taskq.delay.0", "__taskq.delay.1"]) == [("__taskq.delay.0", "__taskq.delay.1")]
    many = [f"topic-{number:02}" for number in range(2 * SHARES_MAX + 1)]
    assert sorted(topic for share in shares(many) for topic in share) == many
    assert {len(share) for share in shares(many)} == {2, 3}

"""Publishing to Kafka where something is gone: the topic, or the broker that was opened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaError

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka.producer import _Delivery
from taskq.broker.port import Message, TopicPartition
from taskq.errors import BrokerUnavailable, TaskqError
from tests.broker.kafka.conftest import Open
from tests.kafka.cluster import Cluster
from tests.processes import WAIT_S, wait_until

SELDOM = {"topic_metadata_refresh_interval_ms": "60000", "topic_metadata_propagation_max_ms": "1"}
"""The client asks by itself for no news of topics, and believes at once what it hears."""


class Sender:
    """A thread that calls `send` once."""

    def __init__(self, send: Callable[[], object]) -> None:
        self.error: TaskqError | None = None
        self._send = send
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._send()
        except TaskqError as error:
            self.error = error

    def ended(self) -> TaskqError | None:
        """What it was told."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "it waits for ever"
        return self.error


@contextmanager
def paused(kafka: Cluster) -> Iterator[None]:
    """While nobody answers."""
    for node in kafka.nodes:
        node.pause()
    try:
        yield
    finally:
        for node in kafka.nodes:
            node.resume()
        kafka.wait_ready()


def waiting(broker: KafkaBroker, records: int) -> None:
    """Until so many are on their way."""
    wait_until(lambda: len(broker._outbox.client) == records, "they are on their way")


def delete_for(broker: KafkaBroker, topic: str, other: KafkaBroker) -> None:
    """Have somebody else delete a topic, and the client that publishes hear of it."""
    other.admin().delete_topic(topic)
    client = broker._outbox.client
    wait_until(lambda: client.list_topics(topic, WAIT_S).topics[topic].error is not None, "it has heard that")


def test_who_publishes_to_new_topics_waits_for_nobody_else_while_brokers_are_away():
    broker = KafkaBroker("kafka://127.0.0.1:1?socket.timeout.ms=2000&message.timeout.ms=2000")
    producer = broker.producer()
    began = time.monotonic()
    senders = [Sender(lambda number=number: producer.send(f"topic-{number}", b"x")) for number in range(6)]  # type: ignore[misc]
    errors = [sender.ended() for sender in senders]
    assert time.monotonic() - began < 8, "not one after the other"
    assert all(isinstance(error, BrokerUnavailable) for error in errors)
    broker.close()


def test_a_producer_connects_before_anything_is_published(opened: Open):
    """Brokers give it an id first, which takes half a second: not of the first person who waits for a page."""
    broker = opened()
    broker.producer()
    client = broker._outbox._client
    assert client is not None
    wait_until(lambda: client.list_topics(timeout=1).brokers, "it is connected")


def test_what_is_known_to_be_gone_is_made_anew(opened: Open):
    broker, other = opened(**SELDOM), opened()
    producer = broker.producer()
    other.producer().send("single", b"old")
    producer.send("single", b"old")
    delete_for(broker, "single", other)
    began = time.monotonic()
    assert producer.send("single", b"new") == (0, 0)
    assert time.monotonic() - began < 5  # and not when it would have asked by itself
    assert [record.value for record in other.reader().read(TopicPartition("single", 0), 0)] == [b"new"]


def test_all_of_many_go_to_what_is_made_anew_once(opened: Open):
    broker, other = opened(**SELDOM), opened()
    producer = broker.producer()
    other.producer().send("feed", b"old")
    producer.send("feed", b"old")
    delete_for(broker, "feed", other)
    sent = [Message(b"%d" % number, b"%d" % number) for number in range(50)]
    producer.send_many("feed", sent)
    reader = other.reader()
    found = [record for number in range(4) for record in reader.read(TopicPartition("feed", number), 0)]
    assert sorted(Message(record.value, record.key, record.headers) for record in found) == sorted(sent)
    assert broker._outbox._unreported == 0


def test_what_waits_for_a_topic_that_is_gone_goes_to_the_new_one(opened: Open):
    """The client tries for a while, and gives it up as it does any other, or with its partition."""
    broker, other = opened(**SELDOM | {"topic_metadata_propagation_max_ms": "1500"}), opened()
    producer = broker.producer()
    other.producer().send("single", b"old")
    producer.send("single", b"old")
    other.admin().delete_topic("single")
    senders = [Sender(lambda number=number: producer.send("single", b"%d" % number)) for number in range(8)]  # type: ignore[misc]
    assert [sender.ended() for sender in senders] == [None] * 8
    found = [record.value for record in other.reader().read(TopicPartition("single", 0), 0)]
    assert sorted(found) == sorted(b"%d" % number for number in range(8))  # type: ignore[type-var]


def test_what_ends_with_its_partition_is_sent_again():
    delivery = _Delivery(1)
    delivery.report(Message(b"x"), KafkaError(KafkaError._DESTROY), None)
    assert (delivery.homeless, delivery.error, delivery.done.is_set()) == ([Message(b"x")], None, True)


def test_who_publishes_when_a_broker_is_closed_is_told(opened: Open, kafka: Cluster):
    broker = opened(socket_timeout_ms="1000")
    producer = broker.producer()
    producer.send("single", b"before")
    with paused(kafka):
        sender = Sender(lambda: producer.send("single", b"x"))
        waiting(broker, 1)
        began = time.monotonic()
        broker.close()
        assert time.monotonic() - began < 5
        error = sender.ended()
    assert isinstance(error, BrokerUnavailable)
    assert "was closed before it had acknowledged what was being published to topic 'single'" in str(error)


def test_who_waits_for_room_when_a_broker_is_closed_is_told(opened: Open, kafka: Cluster):
    broker = opened(socket_timeout_ms="1000", queue_buffering_max_messages="1")
    producer = broker.producer()
    producer.send("single", b"before")
    with paused(kafka):
        senders = [Sender(lambda: producer.send("single", b"x")) for _ in range(3)]
        waiting(broker, 1)
        wait_until(lambda: broker._outbox._unreported == 3, "all want to send")
        broker.close()
        errors = [sender.ended() for sender in senders]
    assert all(isinstance(error, BrokerUnavailable) for error in errors), errors


def test_what_is_on_its_way_when_a_broker_is_closed_arrives(opened: Open, kafka: Cluster):
    broker, other = opened(), opened()
    producer = broker.producer()
    producer.send("single", b"before")
    with paused(kafka):
        sender = Sender(lambda: producer.send("single", b"x"))
        waiting(broker, 1)
        closing = threading.Thread(target=broker.close)
        closing.start()
        wait_until(lambda: broker._outbox._is_closed, "it is being closed")
    closing.join(WAIT_S)
    assert sender.ended() is None
    with pytest.raises(BrokerUnavailable):
        producer.send("single", b"late")
    assert len(other.reader().read(TopicPartition("single", 0), 0)) == 2

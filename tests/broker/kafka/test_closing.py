"""What a broker on Kafka has opened is closed with it, and kept no longer than that."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from taskq.broker.kafka import broker as module
from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.errors import BrokerUnavailable
from tests.broker.kafka.conftest import SINGLE, Open
from tests.conformance.members import WAIT_S
from tests.processes import wait_until


def test_what_is_closed_is_kept_by_nobody(opened: Open):
    broker = opened()
    broker.producer().send("single", b"x")
    for _ in range(3):
        consumer, reader = broker.consumer("feed", ["single"]), broker.reader()
        assert reader.read(SINGLE, 0)
        consumer.close()
        reader.close()
        del consumer, reader
    wait_until(lambda: gc.collect() >= 0 and not broker._parts, "they are gone")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_what_is_closed_has_no_files_open(opened: Open):
    """Not even until garbage is collected, which workers do seldom."""
    opened().producer().send("single", b"x")  # what the process itself opens once
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        broker = opened()
        broker.producer().send("single", b"x")
        reader, follower, consumer = (
            broker.reader(),
            broker.follower(SINGLE, print),
            broker.consumer("feed", ["single"]),
        )
        assert reader.read(SINGLE, 0)
        assert follower.read(0)
        assert len(os.listdir("/proc/self/fd")) > before
        broker.close()
        del reader, follower, consumer
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "they are closed")
    finally:
        gc.enable()


def test_what_nobody_has_closed_is_closed_with_the_broker(opened: Open):
    broker, other = opened(), opened()
    broker.consumer("feed", ["single"])
    wait_until(lambda: other.admin().describe_group("feed").members, "it has joined")
    gc.collect()
    broker.close()
    assert not other.admin().describe_group("feed").members


def test_a_consumer_that_is_opened_while_its_broker_is_closed_is_closed_too(
    opened: Open, monkeypatch: pytest.MonkeyPatch
):
    broker = opened()
    made: list[KafkaConsumer] = []

    def opens(*arguments: Any, **named: Any) -> KafkaConsumer:
        made.append(KafkaConsumer(*arguments, **named))
        broker.close()
        return made[-1]

    monkeypatch.setattr(module, "KafkaConsumer", opens)
    with pytest.raises(BrokerUnavailable, match=rf"{broker.url} has been closed"):
        broker.consumer("feed", ["single"])
    with pytest.raises(BrokerUnavailable, match="has been closed"):
        made[0].poll(0)


@pytest.mark.parametrize("closes", ["reader", "broker"])
def test_a_reader_that_is_closed_opens_nothing_more(opened: Open, closes: str):
    broker = opened()
    broker.producer().send("single", b"x")
    reader = broker.reader()
    assert reader.read(SINGLE, 0)
    (reader if closes == "reader" else broker).close()
    for use in (
        lambda: reader.read(SINGLE, 0),
        lambda: reader.read(SINGLE, 1),
        lambda: reader.bounds(SINGLE),
        lambda: reader.offset_for(SINGLE, 0),
    ):
        with pytest.raises(BrokerUnavailable, match=rf"{broker.url} has been closed"):
            use()
    assert reader._client is None


@pytest.mark.parametrize("closes", ["follower", "broker"])
def test_a_follower_that_is_closed_ends_its_waiting_and_opens_nothing_more(opened: Open, closes: str):
    broker = opened()
    broker.producer().send("single", b"x")
    follower = broker.follower(SINGLE, print)
    assert len(follower.read(0)) == 1
    assert follower.read(0) == []
    closing = threading.Timer(0.2, (follower if closes == "follower" else broker).close)
    closing.start()
    with pytest.raises(BrokerUnavailable, match=f"single/0 on {broker.url} is not followed any more"):
        follower.read(WAIT_S)
    closing.join()
    with pytest.raises(BrokerUnavailable, match="not followed any more"):
        follower.read(0)
    assert follower._client is None


def test_what_looks_at_topics_of_a_closed_broker_opens_nothing_more(opened: Open):
    broker = opened()
    admin, producer = broker.admin(), broker.producer()
    broker.close()
    began = time.monotonic()
    for use in (
        admin.topics,
        admin.groups,
        lambda: admin.describe_group("feed"),
        lambda: producer.send("single", b"x"),
    ):
        with pytest.raises(BrokerUnavailable, match=rf"{broker.url} has been closed"):
            use()
    assert time.monotonic() - began < 2, "nobody is asked"
    assert broker._admin is None

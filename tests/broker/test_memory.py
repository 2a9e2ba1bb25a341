"""What the broker in memory promises beyond the conformance suite."""

from __future__ import annotations

import queue
import threading

import pytest

from taskq.broker.memory import MemoryBroker
from taskq.broker.port import WouldBlock
from taskq.errors import BrokerUnavailable
from taskq.topics import TopicConfig

WAIT_S = 20.0


def test_each_broker_has_its_own_records():
    one, other = MemoryBroker(), MemoryBroker()
    one.producer().send("posts", b"x")
    assert (one.admin().topics(), other.admin().topics()) == (["posts"], [])


def test_topics_get_the_configured_number_of_partitions():
    broker = MemoryBroker(3, {"posts": TopicConfig(5)})
    broker.producer().send("posts", b"x")
    broker.producer().send("other", b"x")
    assert (broker.admin().partitions("posts"), broker.admin().partitions("other")) == (5, 3)
    assert len(MemoryBroker().consumer("feed", ["posts"]).poll(0).assigned) == 8


def test_a_send_that_may_not_wait_says_so_while_another_thread_is_in_the_broker():
    broker = MemoryBroker()
    producer = broker.producer()
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with broker._state.changed:
            holding.set()
            done.wait(WAIT_S)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert holding.wait(WAIT_S)
    with pytest.raises(WouldBlock):
        producer.send("posts", b"x", wait=False)
    done.set()
    assert producer.send("posts", b"x")[1] == 0
    thread.join(WAIT_S)


def test_a_wakeup_by_a_signal_handler_can_not_deadlock_with_what_it_interrupts():
    broker = MemoryBroker()
    consumer = broker.consumer("feed", ["posts"])
    woken = threading.Event()

    def interrupted() -> None:
        with broker._state.changed:  # in the middle of a send, say
            consumer.wakeup()
            woken.set()

    threading.Thread(target=interrupted, daemon=True).start()
    assert woken.wait(WAIT_S)


def test_closing_the_broker_ends_a_poll_that_waits():
    broker = MemoryBroker()
    consumer = broker.consumer("feed", ["posts"])
    consumer.poll(0)
    ended: queue.Queue[Exception] = queue.Queue()

    def poll() -> None:
        try:
            consumer.poll(3 * WAIT_S)
        except BrokerUnavailable as error:
            ended.put(error)

    threading.Thread(target=poll, daemon=True).start()
    broker.close()
    assert "closed" in str(ended.get(timeout=WAIT_S))


def test_a_closed_consumer_does_not_poll():
    consumer = MemoryBroker().consumer("feed", ["posts"])
    consumer.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        consumer.poll(0)

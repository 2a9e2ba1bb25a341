"""What is committed, and what is not; and what that means to whoever has it next."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka import consumer as consumer_module
from taskq.broker.port import Committed, Message, TopicPartition
from taskq.errors import BrokerUnavailable
from taskq.topics import TopicConfig
from tests.broker.kafka.conftest import SINGLE, Open
from tests.broker.kafka.consumers import consuming, until
from tests.processes import wait_until


class Refusing:
    """A client whose commits fail as told, the first so many times."""

    def __init__(self, client: Consumer, code: int, times: int = 1_000_000) -> None:
        self._inner = client
        self.code = code
        self.times = times
        self.tries = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def commit(self, **arguments: Any) -> object:
        self.tries += 1
        if self.tries > self.times:
            return self._inner.commit(**arguments)
        raise KafkaException(KafkaError(self.code))


def test_a_commit_of_what_is_not_ours_any_more_says_so(opened: Open) -> None:
    broker = opened()
    consumer = consuming(broker)
    assert consumer.commit({SINGLE: Committed(1)}) == frozenset()
    consumer.on_lost([SINGLE])
    assert consumer.commit({SINGLE: Committed(2)}) == {SINGLE}, "its owner has not heard of it yet"
    assert broker.admin().describe_group("feed").committed == {SINGLE: Committed(1)}


def test_a_commit_that_the_group_refuses_says_so(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = consuming(opened())
    client = consumer._members._members[0]
    monkeypatch.setattr(client, "_client", Refusing(client._client, KafkaError.UNKNOWN_MEMBER_ID))
    assert consumer.commit({SINGLE: Committed(1)}) == {SINGLE}


def test_who_is_out_while_it_is_asked_for_something_keeps_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client says so only once all that was asked for has been released."""
    consumer = consuming(opened())
    client = consumer._members._members[0]
    consumer.leave()
    until(consumer, lambda polled: polled.revoking)
    monkeypatch.setattr(client, "_client", Refusing(client._client, KafkaError.UNKNOWN_MEMBER_ID))
    assert consumer.commit({SINGLE: Committed(1)}) == {SINGLE}
    assert until(consumer, lambda polled: polled.lost).lost == {SINGLE}


def test_a_commit_that_a_rebalance_has_overtaken_is_made_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which generation of the group it is of, and the next has begun: the partition is ours all the same."""
    broker = opened()
    consumer = consuming(broker)
    client = consumer._members._members[0]
    monkeypatch.setattr(client, "_client", Refusing(client._client, KafkaError.ILLEGAL_GENERATION, times=2))
    assert consumer.commit({SINGLE: Committed(1)}) == frozenset()
    assert broker.admin().describe_group("feed").committed == {SINGLE: Committed(1)}


def test_what_goes_and_comes_back_while_a_commit_waits_is_not_committed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another may have had it meanwhile, and have committed more."""
    broker = opened()
    consumer = consuming(broker)
    client = consumer._members._members[0]
    refusing = Refusing(client._client, KafkaError.NOT_COORDINATOR, times=1)
    monkeypatch.setattr(client, "_client", refusing)

    def go_and_come() -> None:
        if refusing.tries == 1:
            refusing.tries += 1
            client._forget([SINGLE])
            consumer.on_assigned([KafkaPartition("single", 0, 2)], is_last=False)

    monkeypatch.setattr(consumer, "look_around", go_and_come)
    assert consumer.commit({SINGLE: Committed(1)}) == {SINGLE}
    assert broker.admin().describe_group("feed").committed == {}


def test_a_commit_that_brokers_can_not_take_yet_is_tried_now_and_then(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.broker.kafka.member.COMMIT_S", 1.0)
    consumer = consuming(opened())
    member = consumer._members._members[0]
    refusing = Refusing(member._client, KafkaError.NOT_COORDINATOR)
    monkeypatch.setattr(member, "_client", refusing)
    with pytest.raises(BrokerUnavailable, match="committing of group feed"):
        consumer.commit({SINGLE: Committed(1)})
    assert 5 <= refusing.tries <= 12, "every tenth of a second"


def test_of_several_members_none_is_waited_for_long(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may wait until all have joined anew, and they for another of ours. What was not stored is not stored late."""
    broker = opened({"double": TopicConfig(2)})
    broker.producer().send_many("double", [])
    broker.producer().send_many("single", [])
    double = TopicPartition("double", 0)
    consumer = broker.consumer("feed", ["single", "double"])
    wait_until(lambda: len(consumer._held) == 3, "it has all")
    until(consumer, lambda polled: polled.assigned)
    waiting = consumer._members._of["double"]
    refusing = Refusing(waiting._client, KafkaError.REBALANCE_IN_PROGRESS)
    monkeypatch.setattr(waiting, "_client", refusing)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="no answer yet"):
        consumer.commit({SINGLE: Committed(1), double: Committed(1)})
    assert time.monotonic() - began < 5
    monkeypatch.setattr(waiting, "_client", refusing._inner)
    consumer.commit({TopicPartition("double", 1): Committed(2)})
    assert broker.admin().describe_group("feed").committed == {
        SINGLE: Committed(1),
        TopicPartition("double", 1): Committed(2),
    }


def test_what_was_committed_of_a_topic_that_was_deleted_means_nothing_in_the_new_one(opened: Open) -> None:
    """Its owner goes on where it was, and leaves before it hears that it reads another."""
    broker, other = opened(topic_metadata_refresh_interval_ms="60000"), opened()
    consumer = consuming(broker, 5)
    assert consumer.commit({SINGLE: Committed(5, b"meta")}) == frozenset()
    broker.admin().delete_topic("single")
    other.producer().send_many("single", [Message(b"new")] * 12)
    assert consumer.commit({SINGLE: Committed(12)}) == frozenset()
    assert other.admin().describe_group("feed").committed == {SINGLE: Committed(12)}
    consumer.close()
    again = other.consumer("feed", ["single"])
    assert until(again, lambda polled: polled.assigned).assigned == {SINGLE: Committed(0)}
    assert again.commit({SINGLE: Committed(3, b"meta")}) == frozenset()
    again.close()
    last = broker.consumer("feed", ["single"])
    assert until(last, lambda polled: polled.assigned).assigned == {SINGLE: Committed(3, b"meta")}


def test_what_others_have_committed_is_told_as_it_is() -> None:
    for text, told in (
        ("", (b"", None)),
        ("eA==", (b"x", None)),
        (consumer_module.as_text(b"x", "3P/1Fg7ORKW0r+ePDHSrZg"), (b"x", "3P/1Fg7ORKW0r+ePDHSrZg")),
        (consumer_module.as_text(b"", "3P/1Fg7ORKW0r+ePDHSrZg"), (b"", "3P/1Fg7ORKW0r+ePDHSrZg")),
        ("by hand.", (b"by hand.", None)),
        ("no base64.3P/1Fg7ORKW0r+ePDHSrZg", (b"no base64.3P/1Fg7ORKW0r+ePDHSrZg", None)),
    ):
        assert consumer_module._parted(text) == told

"""Followers: one partition from its start, and then what comes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from taskq.broker.port import Admin, Broker, Follower, Message, Producer, TopicPartition
from taskq.errors import BrokerUnavailable
from tests.conformance.members import WAIT_S

SINGLE = TopicPartition("single", 0)


@pytest.fixture
def follower(broker: Broker) -> Follower:
    return broker.follower(SINGLE, lambda lost: pytest.fail(str(lost)))


def read_until(follower: Follower, there_is: Callable[[list[bytes | None]], bool]) -> list[bytes | None]:
    """The values it brings until there are these."""
    values: list[bytes | None] = []
    end = time.monotonic() + WAIT_S
    while not there_is(values):
        assert time.monotonic() < end, values
        values += [record.value for record in follower.read(0.1)]
    return values


def test_a_follower_brings_all_there_is_before_it_says_that_there_is_no_more(follower: Follower, producer: Producer):
    wanted = [b"%d" % number for number in range(10_000)]
    producer.send_many("single", [Message(value) for value in wanted])
    values: list[bytes | None] = []
    while records := follower.read(0):
        assert [record.offset for record in records] == list(range(len(values), len(values) + len(records)))
        values += [record.value for record in records]
    assert values == wanted


def test_a_follower_of_an_empty_partition_says_so_at_once_and_brings_what_comes(
    follower: Follower, producer: Producer, admin: Admin
):
    admin.create_topic("single", 1)
    assert follower.read(WAIT_S) == []
    for number in range(5):
        value = b"%d" % number
        producer.send("single", value)
        assert read_until(follower, bool) == [value]
    assert follower.read(0) == []


@pytest.mark.parametrize("count", [0, 1])
def test_a_follower_begins_anew_with_a_topic_that_was_made_anew(
    follower: Follower, producer: Producer, admin: Admin, count: int
):
    """Which is shorter than what was read: one that is longer is missed where nobody looks in between."""
    producer.send_many("single", [Message(b"old")] * 3)
    assert read_until(follower, lambda values: len(values) == 3) == [b"old"] * 3
    assert follower.read(0) == []
    admin.delete_topic("single")
    assert read_until_gone(follower) == []
    producer.send_many("single", [Message(b"new")] * count)
    producer.send("single", b"last")
    found = read_until(follower, lambda values: b"last" in values)
    assert found == [b"new"] * count + [b"last"]


def read_until_gone(follower: Follower) -> list[bytes | None]:
    """What comes while it can find out that there is nothing."""
    return [record.value for _ in range(3) for record in follower.read(1.0)]


def test_a_follower_creates_no_topic(follower: Follower, admin: Admin):
    try:
        assert follower.read(0) == []
    except BrokerUnavailable:  # where it takes long to be sure of it
        pass
    assert admin.topics() == []

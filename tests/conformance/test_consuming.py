"""One consumer: what it gets, where it goes on, and what wakes it."""

from __future__ import annotations

import os
import queue
import threading
import time

import pytest

from taskq.broker.port import COMMIT_METADATA_BYTES_MAX, Broker, Committed, Message, Polled, Producer, TopicPartition
from taskq.errors import ConfigError
from tests.conformance.engines import PARTITIONS
from tests.conformance.members import WAIT_S

SINGLE = TopicPartition("single", 0)
PROMPT_S = 2.0
"""What comes at once comes sooner than this, however busy the machine; a poll that slept on would take WAIT_S."""


def test_a_new_group_starts_at_the_start(producer: Producer, join):
    producer.send_many("posts", [Message(b"%d" % number) for number in range(1000)])
    member = join("feed", "posts")
    member.poll_until(lambda: len(member.values) >= 1000)
    assert sorted(map(int, member.values)) == list(range(1000))
    assert member.held == {TopicPartition("posts", number): Committed(0) for number in range(PARTITIONS)}


def test_consuming_a_topic_creates_it(join, admin):
    member = join("feed", "posts", "single")
    assert admin.topics() == ["posts", "single"]
    member.poll_until(lambda: len(member.held) == PARTITIONS + 1)


def test_a_member_reads_all_its_topics(producer: Producer, join):
    member = join("feed", "posts", "single")
    producer.send("posts", b"one")
    producer.send("single", b"two")
    member.poll_until(lambda: sorted(member.values) == [b"one", b"two"])


def test_every_group_sees_every_record(producer: Producer, join):
    feed, search = join("feed", "posts"), join("search", "posts")
    producer.send_many("posts", [Message(b"%d" % number) for number in range(100)])
    feed.poll_until(lambda: len(feed.values) >= 100)
    feed.commit()
    search.poll_until(lambda: len(search.values) >= 100)
    assert sorted(feed.values) == sorted(search.values) == sorted(b"%d" % number for number in range(100))


def test_a_poll_that_finds_nothing_returns_empty_in_time(join):
    member = join("feed", "single")
    member.start()
    before = time.monotonic()
    assert member.poll(0.1) == Polled()
    assert 0.09 <= time.monotonic() - before < PROMPT_S


def test_a_poll_takes_about_as_many_as_it_was_asked_for(producer: Producer, join):
    for number in range(100):
        producer.send("posts", b"%d" % number)
    member = join("feed", "posts")
    while len(member.values) < 100:
        polled = member.poll(records_max=10)
        assert sum(len(records) for _, records in polled.fetched) <= 10


def test_a_full_partition_does_not_keep_another_waiting(producer: Producer, join, engine):
    for number in range(600):
        producer.send("double", b"x", b"%d" % number)
    member = join("feed", "double")
    member.poll_until(lambda: len(member.held) == 2)
    member.poll_until(lambda: len(member.records) == 2, records_max=10)
    assert engine.is_remote or len(member.values) <= 40  # from afar they may come at different times


def test_who_comes_after_goes_on_where_was_committed_with_the_same_metadata(producer: Producer, join):
    for number in range(10):
        producer.send("single", b"%d" % number)
    first = join("feed", "single")
    first.poll_until(lambda: len(first.values) == 10)
    metadata = os.urandom(100) + b"\x00\n\xff"
    first.consumer.commit({SINGLE: Committed(7, metadata)})
    first.consumer.close()
    second = join("feed", "single")
    second.poll_until(lambda: len(second.values) == 3)
    assert second.held == {SINGLE: Committed(7, metadata)}
    assert second.values == [b"7", b"8", b"9"]


def test_what_was_not_committed_comes_again(producer: Producer, join):
    producer.send("single", b"one")
    first = join("feed", "single")
    first.poll_until(lambda: first.values == [b"one"])
    first.consumer.close()
    second = join("feed", "single")
    second.poll_until(lambda: second.values == [b"one"])


def test_the_last_commit_counts(join, admin):
    member = join("feed", "single")
    member.start()
    for committed in (Committed(5, b"x" * 50), Committed(3, b""), Committed(4, b"y")):
        member.consumer.commit({SINGLE: committed})
        assert admin.describe_group("feed").committed == {SINGLE: committed}


def test_the_commit_of_one_group_is_not_anothers(producer: Producer, join, admin):
    producer.send("single", b"one")
    feed = join("feed", "single")
    feed.poll_until(lambda: feed.values == [b"one"])
    feed.commit()
    assert admin.describe_group("search").committed == {}
    search = join("search", "single")
    search.poll_until(lambda: search.values == [b"one"])


def test_metadata_up_to_the_limit_is_kept_and_over_it_refused(join, admin):
    member = join("feed", "single")
    member.start()
    greatest = Committed(1, os.urandom(COMMIT_METADATA_BYTES_MAX))
    member.consumer.commit({SINGLE: greatest})
    with pytest.raises(ConfigError, match=str(COMMIT_METADATA_BYTES_MAX)):
        member.consumer.commit({SINGLE: Committed(2, greatest.metadata + b"x")})
    assert admin.describe_group("feed").committed == {SINGLE: greatest}


def test_a_commit_of_a_partition_that_is_not_held_is_ignored(join, admin):
    member = join("feed", "single")
    member.start()
    join("search", "double")
    member.consumer.commit({TopicPartition("double", 0): Committed(5), SINGLE: Committed(1)})
    assert admin.describe_group("feed").committed == {SINGLE: Committed(1)}


def test_a_paused_partition_brings_nothing_until_resumed_and_loses_nothing(producer: Producer, join):
    member = join("feed", "posts")
    member.poll_until(lambda: len(member.held) == PARTITIONS)
    partition, _ = producer.send("posts", b"0", b"key")
    paused = TopicPartition("posts", partition)
    member.poll_until(lambda: member.values == [b"0"])
    member.consumer.pause([paused])
    producer.send("posts", b"1", b"key")
    other = next(number for number in range(100) if producer.send("posts", b"x", b"%d" % number)[0] != partition)
    producer.send("posts", b"other", b"%d" % other)
    member.poll_until(lambda: b"other" in member.values)
    member.drain()
    assert len(member.records[paused]) == 1
    assert paused in member.held
    member.consumer.resume([paused])
    member.poll_until(lambda: len(member.records[paused]) > 1)
    assert [record.value for record in member.records[paused]][:2] == [b"0", b"1"]


def test_a_paused_partition_does_not_end_a_poll(producer: Producer, join):
    member = join("feed", "single")
    member.start()
    member.consumer.pause([SINGLE])
    producer.send("single", b"one")
    assert member.poll(0.3) == Polled()
    member.consumer.resume([SINGLE])
    assert member.poll().fetched


def test_a_poll_returns_as_soon_as_something_is_published(producer: Producer, join):
    member = join("feed", "posts")
    member.poll_until(lambda: len(member.held) == PARTITIONS)
    got: queue.Queue[float] = queue.Queue()

    def consume() -> None:
        for count in range(1, 51):
            while len(member.values) < count:
                member.poll()
            got.put(time.monotonic())

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    for number in range(50):
        before = time.monotonic()
        if number % 2:
            producer.send("posts", b"one")
        else:
            producer.send_many("posts", [Message(b"one")])
        assert got.get(timeout=WAIT_S) - before < PROMPT_S
    thread.join(WAIT_S)


def test_what_another_opened_broker_publishes_comes_at_once(engine, broker: Broker, join, tmp_path):
    other = engine.open(tmp_path)
    if other.url == "memory:":
        return  # there is no other: each has its own records
    member = join("feed", "single")
    member.start()
    woken: queue.Queue[float] = queue.Queue()

    def poll() -> None:
        while not member.values:
            member.poll()
        woken.put(time.monotonic())

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    before = time.monotonic()
    other.producer().send("single", b"one")
    assert woken.get(timeout=WAIT_S) - before < PROMPT_S
    thread.join(WAIT_S)
    assert member.values == [b"one"]
    other.close()


def test_a_wakeup_from_another_thread_ends_the_poll(join):
    member = join("feed", "single")
    member.start()
    polling = threading.Event()
    ended: queue.Queue[Polled] = queue.Queue()

    def poll() -> None:
        polling.set()
        ended.put(member.poll(3 * WAIT_S))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    assert polling.wait(WAIT_S)
    before = time.monotonic()
    member.consumer.wakeup()
    assert ended.get(timeout=WAIT_S) == Polled()
    assert time.monotonic() - before < PROMPT_S
    thread.join(WAIT_S)


def test_a_wakeup_before_the_poll_ends_the_next_one_and_only_that(join):
    member = join("feed", "single")
    member.start()
    member.consumer.wakeup()
    member.consumer.wakeup()
    before = time.monotonic()
    assert member.poll() == Polled()
    assert time.monotonic() - before < PROMPT_S
    before = time.monotonic()
    member.poll(0.1)
    member.poll(0.1)  # two wakeups may count as two
    assert time.monotonic() - before >= 0.09


def test_a_consumer_may_be_closed_twice(join):
    member = join("feed", "single")
    member.start()
    member.consumer.close()
    member.consumer.close()

"""Producers: where records go, and that they come back as they were."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from taskq.broker.partitioner import BATCH_RECORDS
from taskq.broker.port import (
    MESSAGE_BYTES_MAX,
    Admin,
    Broker,
    Message,
    PartitionBounds,
    Producer,
    Reader,
    TopicPartition,
    WouldBlock,
)
from taskq.errors import ConfigError, MessageTooLarge
from tests.conformance.engines import PARTITIONS, TOPICS
from tests.conformance.members import WAIT_S, settle
from tests.processes import wait_until

SINGLE = TopicPartition("single", 0)


def read_all(reader: Reader, tp: TopicPartition) -> list:
    records: list = []
    while found := reader.read(tp, len(records)):
        records += found
    return records


def test_offsets_count_from_zero_without_gaps(producer: Producer, reader: Reader):
    sent = [producer.send("single", b"%d" % number) for number in range(100)]
    assert sent == [(0, number) for number in range(100)]
    assert [(record.offset, record.value) for record in read_all(reader, SINGLE)] == [
        (number, b"%d" % number) for number in range(100)
    ]


def test_offsets_go_on_after_a_bulk_send(producer: Producer, reader: Reader):
    producer.send("single", b"first")
    producer.send_many("single", [Message(b"%d" % number) for number in range(3000)])
    assert producer.send("single", b"last") == (0, 3001)
    assert [record.offset for record in read_all(reader, SINGLE)] == list(range(3002))


@pytest.mark.parametrize(
    ("key", "partition"),
    # murmur2 of these keys is -973932308, -790332482, -985981536 and 479470107: Kafka's own test vectors.
    [(b"21", 1173551340 % 4), (b"foobar", 1357151166 % 4), (b"a-little-bit-long-string", 1161502112 % 4), (b"abc", 3)],
)
def test_a_key_goes_where_kafka_puts_it(producer: Producer, key: bytes, partition: int):
    assert producer.send("posts", b"one", key=key) == (partition, 0)
    producer.send_many("posts", [Message(b"two", key), Message(b"three", key)])
    assert producer.send("posts", b"four", key=key) == (partition, 3)


def test_records_without_a_key_are_spread_over_all_partitions(producer: Producer, admin: Admin, broker: Broker):
    if broker.is_remote:
        assert {producer.send("posts", b"x")[0] for _ in range(100)} == set(range(PARTITIONS)), "by chance"
        return
    partitions = [producer.send("posts", b"x")[0] for _ in range(BATCH_RECORDS * PARTITIONS)]
    assert set(Counter(partitions).values()) == {BATCH_RECORDS}
    assert len(set(partitions[:BATCH_RECORDS])) == 1
    assert {bounds.end for bounds in admin.describe_topic("posts").partitions} == {BATCH_RECORDS}


def test_a_bulk_send_without_keys_uses_all_partitions(producer: Producer, admin: Admin, broker: Broker):
    producer.send_many("posts", [Message(b"x")] * 1000)
    ends = [bounds.end for bounds in admin.describe_topic("posts").partitions]
    assert sum(ends) == 1000
    assert min(ends) > 0
    assert broker.is_remote or max(ends) - min(ends) <= BATCH_RECORDS  # Kafka's are spread by chance


def test_messages_of_one_partition_keep_their_order_in_a_bulk_send(producer: Producer, reader: Reader):
    keys = [b"%d" % (number % 7) for number in range(5000)]
    producer.send_many("posts", [Message(b"%d" % number, key) for number, key in enumerate(keys)])
    by_key: dict[bytes, list[int]] = {}
    for partition in range(PARTITIONS):
        for record in read_all(reader, TopicPartition("posts", partition)):
            by_key.setdefault(record.key, []).append(int(record.value))
    assert by_key == {b"%d" % rest: list(range(rest, 5000, 7)) for rest in range(7)}


def test_an_empty_bulk_send_creates_the_topic_and_appends_nothing(producer: Producer, reader: Reader):
    producer.send_many("single", [])
    assert reader.bounds(SINGLE) == PartitionBounds(0, 0)


@pytest.mark.parametrize("key", [None, b"", b"\x00\xff", b"k" * 300])
@pytest.mark.parametrize("value", [None, b"", b"\x00\xff"])
@pytest.mark.parametrize(
    "headers", [(), (("a", b""), ("", b"\x00\xff"), ("a", b"again"), ("\u00e9\U0001f600", b"x" * 300))]
)
def test_a_record_comes_back_as_it_was_sent(producer: Producer, reader: Reader, key, value, headers):
    producer.send("single", value, key, headers)
    producer.send_many("single", [Message(value, key, headers)])
    assert [record[2:] for record in read_all(reader, SINGLE)] == [(key, value, headers)] * 2


def test_a_compacted_topic_takes_no_record_without_a_key(
    producer: Producer, admin: Admin, reader: Reader, broker: Broker
):
    admin.create_topic("latest", 1, cleanup_policy="compact")
    latest = TopicPartition("latest", 0)
    sound = [] if broker.is_remote else [Message(b"sound", b"key")]  # Kafka takes what is sound, and refuses the rest
    for value in (b"value", None):
        with pytest.raises(ConfigError, match="latest"):
            producer.send("latest", value)
        with pytest.raises(ConfigError, match="key"):
            producer.send_many("latest", [*sound, Message(value)])
    assert reader.bounds(latest) == PartitionBounds(0, 0)
    producer.send("latest", b"value", b"key")
    producer.send("latest", None, b"")
    producer.send_many("latest", [Message(None, b"key")])
    assert [record[2:4] for record in read_all(reader, latest)] == [(b"key", b"value"), (b"", None), (b"key", None)]


def test_a_topic_that_is_altered_takes_records_without_a_key_or_not(producer: Producer, admin: Admin):
    def is_refused() -> bool:
        try:
            producer.send("feed", b"value")
        except ConfigError:
            return True
        return False

    assert not is_refused()
    admin.alter_topic("feed", cleanup_policy="compact")
    wait_until(is_refused, "a producer hears of it")
    admin.alter_topic("feed", cleanup_policy="delete")
    wait_until(lambda: not is_refused(), "a producer hears of that, too")


def test_a_record_has_the_time_at_which_it_was_sent(producer: Producer, reader: Reader):
    before = int(time.time() * 1000)
    producer.send("single", b"one")
    producer.send_many("single", [Message(b"two"), Message(b"three")])
    after = int(time.time() * 1000)
    assert all(before <= record.timestamp_ms <= after for record in read_all(reader, SINGLE))


@pytest.mark.parametrize(("key", "headers"), [(None, ()), (b"key", (("name", b"text"),))])
def test_a_message_of_the_greatest_size_is_stored_and_one_byte_more_refused(
    producer: Producer, reader: Reader, key, headers
):
    rest = MESSAGE_BYTES_MAX - len(key or b"") - sum(len(name) + len(text) for name, text in headers)
    producer.send("single", b"v" * rest, key, headers)
    with pytest.raises(MessageTooLarge, match=str(MESSAGE_BYTES_MAX + 1)):
        producer.send("single", b"v" * (rest + 1), key, headers)
    with pytest.raises(MessageTooLarge, match=str(MESSAGE_BYTES_MAX + 1)):
        producer.send_many("single", [Message(b"small"), Message(b"v" * (rest + 1), key, headers)])
    producer.send_many("single", [Message(b"v" * rest, key, headers)])
    assert [len(record.value) for record in read_all(reader, SINGLE)] == [rest, rest]


def test_headers_of_taskqs_own_do_not_count_towards_the_size(producer: Producer):
    producer.send("single", b"v" * MESSAGE_BYTES_MAX, None, (("taskq-error", b"x" * 1000),))


def test_a_topic_is_created_on_first_use_as_configured(producer: Producer, admin: Admin):
    producer.send("posts", b"one")
    producer.send_many("double", [Message(b"two")])
    assert (admin.partitions("posts"), admin.partitions("double")) == (PARTITIONS, TOPICS["double"])
    assert admin.topics() == ["double", "posts"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "\u00e9", "a\n", "x" * 250])
def test_a_topic_of_a_name_that_is_not_allowed_is_refused(producer: Producer, admin: Admin, name: str):
    with pytest.raises(ConfigError, match="topic"):
        producer.send(name, b"one")
    with pytest.raises(ConfigError, match="topic"):
        producer.send_many(name, [Message(b"one")])
    assert admin.topics() == []


@pytest.mark.parametrize("name", ["__taskq.results", "feed.dead", "A-b_9", "x" * 249])
def test_a_topic_may_have_any_name_that_kafka_allows(producer: Producer, admin: Admin, name: str):
    producer.send(name, b"one")
    assert admin.topics() == [name]


def test_a_send_that_need_not_wait_succeeds(producer: Producer, broker: Broker):
    producer.send("single", b"x")  # to open it takes time
    if broker.is_remote:
        with pytest.raises(WouldBlock):
            producer.send("single", b"x", wait=False)
        return
    assert [producer.send("single", b"x", wait=False) for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]


def test_producers_may_be_closed_twice_and_what_they_sent_stays(broker: Broker, reader: Reader):
    first, second = broker.producer(), broker.producer()
    first.send("single", b"one")
    first.close()
    first.close()
    second.send("single", b"two")
    assert [record.value for record in read_all(reader, SINGLE)] == [b"one", b"two"]


def test_many_threads_send_while_members_consume_and_nothing_is_lost_or_out_of_order(broker: Broker, join):
    senders, each = 8, 200
    producer = broker.producer()
    failures: list[BaseException] = []

    def send(sender: int) -> None:
        try:
            for number in range(each):
                value = b"%d %d" % (sender, number)
                if number % 50 == 49:
                    producer.send_many("posts", [Message(value)])
                else:
                    producer.send("posts", value, b"%d" % sender if sender % 2 else None)
        except Exception as error:
            failures.append(error)
            raise

    members = [join("feed", "posts"), join("feed", "posts")]
    threads = [threading.Thread(target=send, args=(sender,), daemon=True) for sender in range(senders)]
    for thread in threads:
        thread.start()
    settle(*members, until=lambda: len(members[0].values) + len(members[1].values) >= senders * each, lets_go=True)
    for thread in threads:
        thread.join(WAIT_S)
    assert not failures
    assert Counter(members[0].values + members[1].values) == Counter(
        b"%d %d" % (sender, number) for sender in range(senders) for number in range(each)
    )
    for member in members:
        for records in member.records.values():
            for sender in range(senders):
                numbers = [int(record.value.split()[1]) for record in records if int(record.value.split()[0]) == sender]
                assert numbers == sorted(numbers)

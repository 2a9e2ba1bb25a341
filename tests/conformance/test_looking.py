"""Readers and admins: looking without belonging to a group; and the end of a broker."""

from __future__ import annotations

import pytest

from taskq.broker.port import (
    PARTITIONS_DEFAULT,
    Admin,
    Broker,
    Committed,
    Lost,
    Message,
    PartitionBounds,
    Producer,
    Reader,
    TopicPartition,
)
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound
from tests.conformance.engines import PARTITIONS
from tests.conformance.members import settle
from tests.processes import wait_until

SINGLE = TopicPartition("single", 0)


@pytest.fixture
def hundred(producer: Producer) -> None:
    """A hundred records in one partition, sent in ways that make large and small batches."""
    for number in range(20):
        producer.send("single", b"%d" % number)
    producer.send_many("single", [Message(b"%d" % number) for number in range(20, 90)])
    for number in range(90, 100):
        producer.send("single", b"%d" % number)


def test_bounds_say_what_there_is(producer: Producer, reader: Reader, admin: Admin):
    admin.create_topic("single", 1)
    assert reader.bounds(SINGLE) == PartitionBounds(0, 0)
    producer.send("single", b"one")
    assert reader.bounds(SINGLE) == PartitionBounds(0, 1)
    producer.send_many("single", [Message(b"more")] * 9)
    assert reader.bounds(SINGLE) == PartitionBounds(0, 10)


@pytest.mark.parametrize("offset", [0, 1, 19, 20, 21, 55, 89, 90, 99])
@pytest.mark.usefixtures("hundred")
def test_reading_begins_at_any_offset(reader: Reader, offset: int):
    values = [record.value for record in reader.read(SINGLE, offset)]
    assert values[0] == b"%d" % offset
    assert values == [b"%d" % number for number in range(offset, offset + len(values))]


@pytest.mark.parametrize("offset", [100, 101, 10**12])
@pytest.mark.usefixtures("hundred")
def test_reading_at_the_end_or_past_it_brings_nothing(reader: Reader, offset: int):
    assert reader.read(SINGLE, offset) == []


@pytest.mark.usefixtures("hundred")
def test_reading_below_the_start_begins_at_the_start(reader: Reader):
    assert reader.read(SINGLE, -5)[0].offset == 0


@pytest.mark.parametrize("bytes_max", [1, 50, 10**6])
@pytest.mark.usefixtures("hundred")
def test_reading_on_brings_everything_whatever_is_read_at_once(reader: Reader, bytes_max: int):
    values: list[bytes | None] = []
    while records := reader.read(SINGLE, len(values), bytes_max):
        values += [record.value for record in records]
    assert values == [b"%d" % number for number in range(100)]


def test_reading_is_bounded(producer: Producer, reader: Reader):
    for _ in range(100):
        producer.send("single", b"x" * 1000)
    assert 1 <= len(reader.read(SINGLE, 0, 1)) <= 2
    assert 5 <= len(reader.read(SINGLE, 0, 10_000)) <= 20


def test_a_reader_at_the_end_sees_what_comes_later(producer: Producer, reader: Reader):
    producer.send("single", b"one")
    assert [record.value for record in reader.read(SINGLE, 0)] == [b"one"]
    assert reader.read(SINGLE, 1) == []
    producer.send("single", b"two")
    assert [record.value for record in reader.read(SINGLE, 1)] == [b"two"]
    assert [record.value for record in reader.read(SINGLE, 0)] == [b"one", b"two"]


@pytest.mark.usefixtures("hundred")
def test_a_reader_can_go_back_and_forth(reader: Reader):
    for offset in (90, 3, 50, 3, 99):
        assert reader.read(SINGLE, offset)[0].offset == offset


@pytest.mark.usefixtures("hundred")
def test_an_offset_is_found_by_its_time(reader: Reader):
    """Whatever the publishing took: each answer is the earliest record that is not older."""
    times: list[int] = []
    while records := reader.read(SINGLE, len(times)):
        times += [record.timestamp_ms for record in records]
    assert len(times) == 100
    for wanted in {-1, 0, times[0] - 1, *times, times[-1] + 1, 1 << 60}:
        expected = next((offset for offset, time in enumerate(times) if time >= wanted), 100)
        assert reader.offset_for(SINGLE, wanted) == expected


def test_no_time_is_found_in_an_empty_partition(reader: Reader, admin: Admin):
    admin.create_topic("single", 1)
    assert reader.offset_for(SINGLE, 0) == 0
    with pytest.raises(TopicNotFound, match="nothing"):
        reader.offset_for(TopicPartition("nothing", 0), 0)


@pytest.mark.usefixtures("hundred")
def test_a_reader_that_may_pass_over_damage_reads_all_where_there_is_none(reader: Reader):
    lost: list[Lost] = []
    offset = 0
    while records := reader.read(SINGLE, offset, lost=lost.append):
        assert [record.offset for record in records] == list(range(offset, offset + len(records)))
        offset += len(records)
    assert (offset, lost) == (100, [])


def test_a_reader_does_not_create_topics_or_partitions(reader: Reader, admin: Admin):
    admin.create_topic("single", 1)
    for tp in (TopicPartition("nothing", 0), TopicPartition("single", 1), TopicPartition("single", -1)):
        with pytest.raises(TopicNotFound, match=tp.topic):
            reader.bounds(tp)
        with pytest.raises(TopicNotFound, match=tp.topic):
            reader.read(tp, 0)
    assert admin.topics() == ["single"]


def test_topics_are_created_and_listed(admin: Admin):
    assert admin.topics() == []
    admin.create_topic("b", 3)
    admin.create_topic("a")
    assert admin.topics() == ["a", "b"]
    assert (admin.partitions("a"), admin.partitions("b")) == (PARTITIONS_DEFAULT, 3)


def test_a_topic_that_exists_is_not_created_again(admin: Admin, producer: Producer):
    producer.send("posts", b"one")
    with pytest.raises(ConfigError, match=rf"posts.*{PARTITIONS}"):
        admin.create_topic("posts", 3)
    assert admin.partitions("posts") == PARTITIONS


@pytest.mark.parametrize(("name", "partitions"), [("a", 0), ("a", -1), ("a", 10**9), ("", 1), ("..", 1), ("a/b", 1)])
def test_a_topic_that_can_not_be_is_not_created(admin: Admin, name: str, partitions: int):
    with pytest.raises(ConfigError, match="topic"):
        admin.create_topic(name, partitions)
    assert admin.topics() == []


def test_a_topic_is_described(admin: Admin, producer: Producer, broker: Broker):
    producer.send("double", b"x" * 1000, b"key")
    described = admin.describe_topic("double")
    assert described.name == "double"
    assert sorted(bounds.end for bounds in described.partitions) == [0, 1]
    if broker.is_remote:
        assert described.size_bytes == ()
        return
    assert {
        bounds.end: size >= 1000 for bounds, size in zip(described.partitions, described.size_bytes, strict=True)
    } == {
        0: False,
        1: True,
    }


def test_an_unknown_topic_is_not_described_and_the_error_names_those_there_are(admin: Admin):
    admin.create_topic("posts", 1)
    with pytest.raises(TopicNotFound, match=r"nothing.*posts"):
        admin.describe_topic("nothing")
    with pytest.raises(TopicNotFound, match=r"nothing.*posts"):
        admin.partitions("nothing")


def test_a_group_is_described(admin: Admin, join, broker: Broker):
    first, second = join("feed", "double"), join("feed", "double", "single")
    both = (first, second)
    settle(*both, until=lambda: (len(first.held), len(second.held)) == (1, 2) and SINGLE in second.held, lets_go=True)
    second.consumer.commit(dict.fromkeys(second.held, Committed(0, b"meta")))
    described = admin.describe_group("feed")
    assert described.name == "feed"
    owners = {tp: member.consumer.member_id for member in both for tp in member.held}
    topics = {first.consumer.member_id: ("double",), second.consumer.member_id: ("double", "single")}
    if broker.is_remote:  # there a consumer is a member for each topic, and its id is that of the first
        assert sorted(described.members.values()) == [("double",), ("double",), ("single",)]
        assert set(described.owners.values()) == described.members.keys()
        del owners[SINGLE]
        assert owners.items() <= described.owners.items()
        assert described.owners.keys() == first.held.keys() | second.held.keys()
    else:
        assert (described.members, described.owners) == (topics, owners)
    assert described.committed.items() >= dict.fromkeys(second.held, Committed(0, b"meta")).items()


def test_a_group_nobody_knows_is_empty(admin: Admin):
    described = admin.describe_group("nobody")
    assert (described.name, described.members, described.owners, described.committed) == ("nobody", {}, {}, {})
    assert admin.groups() == []


def test_groups_with_members_or_progress_are_listed(admin: Admin, join):
    feed, search = join("feed", "single"), join("search", "single")
    wait_until(lambda: admin.groups() == ["feed", "search"], "both are there")
    feed.start()
    feed.commit()
    feed.consumer.close()
    search.consumer.close()
    assert "feed" in admin.groups()
    described = admin.describe_group("feed")
    assert (described.members, described.owners) == ({}, {})
    assert described.committed == {SINGLE: Committed(0)}


def test_who_left_is_no_member_and_owns_nothing(admin: Admin, join):
    stays, leaves = join("feed", "double"), join("feed", "double")
    leaves.consumer.close()
    stays.poll_until(lambda: len(stays.held) == 2)
    described = admin.describe_group("feed")
    assert set(described.members) == set(described.owners.values()) == {stays.consumer.member_id}


def test_everything_may_be_closed_twice(broker: Broker):
    for thing in (broker.reader(), broker.admin(), broker.producer(), broker.consumer("feed", ["single"]), broker):
        thing.close()
        thing.close()


def test_a_closed_broker_opens_nothing_more_and_says_so(broker: Broker):
    broker.close()
    for opens in (broker.producer, broker.reader, broker.admin, lambda: broker.consumer("feed", ["single"])):
        with pytest.raises(BrokerUnavailable, match=broker.url):
            opens()


def test_closing_a_broker_makes_its_consumers_leave(engine, tmp_path):
    broker = engine.open(tmp_path)
    consumer = broker.consumer("feed", ["single"])
    broker.close()
    consumer.close()
    again = engine.open(tmp_path)
    assert again.admin().describe_group("feed").members == {}
    again.close()


def test_the_url_is_absolute(broker: Broker):
    assert broker.url == "memory:" or "://" in broker.url

"""Topics: their settings, and altering and deleting them while producers and members use them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve

from taskq.broker.port import Admin, Broker, Committed, Message, PartitionBounds, Producer, Reader, TopicPartition
from taskq.errors import ConfigError, TopicNotFound
from tests.conformance.engines import PARTITIONS, Engine
from tests.conformance.members import WAIT_S
from tests.processes import wait_until

SINGLE = TopicPartition("single", 0)

BAD_NAMES = [
    *(
        "",
        ".",
        "..",
        "/",
        "/etc",
        "a/b",
        "../up",
        "a\0b",
        "a b",
        "feed~",
        "~",
        "\u00e9",
        "\uff0e\uff0e",
        "a\n",
        "x" * 250,
    ),
]


def test_a_topic_has_the_settings_it_was_created_with(engine: Engine, admin: Admin):
    admin.create_topic("posts", 1, retention_ms="7d", segment_bytes="64MiB", cleanup_policy="compact")
    admin.create_topic("plain", 1)
    wanted = evolve(engine.defaults, retention_ms=7 * 86_400_000, segment_bytes=64 << 20, cleanup_policy="compact")
    assert admin.describe_topic("posts").settings == wanted
    assert admin.describe_topic("plain").settings == engine.defaults


def test_dead_letters_are_kept_for_ever(producer: Producer, admin: Admin):
    producer.send("feed.dead", b"x")
    assert admin.describe_topic("feed.dead").settings.retention_ms == -1


@pytest.mark.parametrize(
    "settings",
    [
        {"retention": 1},
        {"retention_ms": "a week"},
        {"retention_ms": -2},
        {"segment_bytes": 3 << 30},
        {"segment_bytes": "1 GiB of"},
        {"cleanup_policy": "none"},
        {"unfinished": True},
    ],
)
def test_settings_that_make_no_sense_are_refused_and_change_nothing(engine: Engine, admin: Admin, settings: dict):
    with pytest.raises(ConfigError):
        admin.create_topic("posts", 1, **settings)
    assert admin.topics() == []
    admin.create_topic("posts", 1)
    with pytest.raises(ConfigError):
        admin.alter_topic("posts", 2, **settings)
    assert admin.partitions("posts") == 1
    assert admin.describe_topic("posts").settings == engine.defaults


def test_altered_settings_hold_beside_those_there_were(engine: Engine, admin: Admin):
    admin.create_topic("posts", 1, retention_ms=1000)
    admin.alter_topic("posts", segment_bytes=2 << 20)
    assert admin.describe_topic("posts").settings == evolve(engine.defaults, retention_ms=1000, segment_bytes=2 << 20)


def test_a_topic_can_get_more_partitions_and_never_fewer(admin: Admin, producer: Producer, reader: Reader):
    admin.create_topic("posts", 2)
    producer.send_many("posts", [Message(b"%d" % number, b"%d" % number) for number in range(50)])
    before = admin.describe_topic("posts").partitions
    admin.alter_topic("posts", 3)
    assert admin.describe_topic("posts").partitions == (*before, PartitionBounds(0, 0))
    for number in (2, 0, -1):
        with pytest.raises(ConfigError):
            admin.alter_topic("posts", number)
    assert admin.partitions("posts") == 3
    assert reader.bounds(TopicPartition("posts", 2)) == PartitionBounds(0, 0)


def test_a_producer_uses_new_partitions(admin: Admin, producer: Producer):
    admin.create_topic("posts", 1)
    producer.send("posts", b"x")
    admin.alter_topic("posts", 4)
    wait_until(lambda: producer.send("posts", b"x", b"3")[0] != 0, "it goes by the new number")
    used = {producer.send("posts", b"x", b"%d" % number)[0] for number in range(100)}
    assert used == {0, 1, 2, 3}
    producer.send_many("posts", [Message(b"x", b"%d" % number) for number in range(100)])
    assert all(bounds.end > 20 for bounds in admin.describe_topic("posts").partitions[1:])


def test_a_member_gets_new_partitions(admin: Admin, producer: Producer, join):
    admin.create_topic("posts", 1)
    member = join("feed", "posts")
    member.poll_until(lambda: len(member.held) == 1)
    admin.alter_topic("posts", 3)
    member.poll_until(lambda: len(member.held) == 3)
    producer.send("posts", b"wakes the producer up")
    sent = [b"%d" % number for number in range(30)]
    for value in sent:
        producer.send("posts", value, value)
    member.poll_until(lambda: len(member.values) == 31)
    assert sorted(member.values) == sorted([*sent, b"wakes the producer up"])


@pytest.mark.parametrize("name", ["nothing", "single"])
def test_what_is_not_there_can_not_be_altered_or_deleted(admin: Admin, name: str):
    with pytest.raises(TopicNotFound):
        admin.alter_topic(name, 4)
    with pytest.raises(TopicNotFound):
        admin.delete_topic(name)
    with pytest.raises(TopicNotFound):
        admin.describe_topic(name)
    assert admin.topics() == []


def test_a_deleted_topic_is_gone(admin: Admin, producer: Producer, reader: Reader):
    producer.send("single", b"x")
    producer.send("posts", b"stays")
    assert reader.read(SINGLE, 0)
    admin.delete_topic("single")
    assert admin.topics() == ["posts"]
    with pytest.raises(TopicNotFound):
        reader.read(SINGLE, 0)
    with pytest.raises(TopicNotFound):
        reader.bounds(SINGLE)
    with pytest.raises(TopicNotFound):
        admin.describe_topic("single")


def test_who_publishes_to_a_deleted_topic_makes_it_anew(
    engine: Engine, admin: Admin, producer: Producer, reader: Reader
):
    admin.create_topic("single", 2, retention_ms=5)
    for number in range(10):
        producer.send("single", b"old %d" % number)
    admin.delete_topic("single")
    assert producer.send("single", b"new") == (0, 0)
    producer.send_many("single", [Message(b"more")] * 3)
    assert admin.partitions("single") == 1
    assert admin.describe_topic("single").settings == engine.defaults
    assert [record.value for record in reader.read(SINGLE, 0)] == [b"new", *[b"more"] * 3]
    admin.delete_topic("single")
    producer.send_many("single", [Message(b"again")])
    assert [record.value for record in reader.read(SINGLE, 0)] == [b"again"]


def test_a_member_loses_a_deleted_topic_and_takes_up_the_new_one(admin: Admin, producer: Producer, join):
    producer.send("single", b"old")
    producer.send("posts", b"stays")
    member = join("feed", "single", "posts")
    member.poll_until(lambda: len(member.values) == 2)
    member.commit()
    admin.delete_topic("single")
    polled = member.consumer.poll(WAIT_S)
    assert polled.lost == {SINGLE}
    member.consumer.commit({SINGLE: Committed(1)})  # comes too late, and means nothing
    assert {tp.topic for tp in admin.describe_group("feed").committed} == {"posts"}
    del member.held[SINGLE], member.records[SINGLE]
    assert member.consumer.poll(0.6).assigned == {}, "a member does not make the topic anew"
    assert admin.topics() == ["posts"]
    producer.send("single", b"new")
    member.poll_until(lambda: member.records[SINGLE] != [])
    assert member.held[SINGLE] == Committed(0)
    assert [record.value for record in member.records[SINGLE]] == [b"new"]
    member.commit()
    assert admin.describe_group("feed").committed[SINGLE] == Committed(1)


def test_a_topic_made_anew_before_its_member_looks_is_another(admin: Admin, producer: Producer, join, engine: Engine):
    for _ in range(5):
        producer.send("single", b"old")
    member = join("feed", "single")
    member.poll_until(lambda: len(member.values) == 5)
    member.commit()
    admin.delete_topic("single")
    producer.send("single", b"new")
    lost = member.consumer.poll(WAIT_S)
    assert lost.lost == {SINGLE}
    assert not lost.fetched
    del member.held[SINGLE], member.records[SINGLE]
    member.may_lose = engine.is_remote  # a broker that has not heard of it yet may be asked
    member.poll_until(lambda: member.records[SINGLE] != [])
    assert [(record.offset, record.value) for record in member.records[SINGLE]] == [(0, b"new")]


def test_a_member_with_nothing_left_can_close(admin: Admin, broker: Broker):
    consumer = broker.consumer("feed", ["single"])
    assert consumer.poll(WAIT_S).assigned
    admin.delete_topic("single")
    consumer.close()
    admin.create_topic("single", 1)
    again = broker.consumer("feed", ["single"])
    assert again.poll(WAIT_S).assigned == {SINGLE: Committed(0)}
    again.close()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_entry_takes_a_name_that_leaves_its_place(broker: Broker, admin: Admin, name: str):
    entries: list[Callable[[], object]] = [
        lambda: admin.create_topic(name),
        lambda: admin.alter_topic(name, 2),
        lambda: admin.delete_topic(name),
        lambda: admin.describe_topic(name),
        lambda: admin.partitions(name),
        lambda: broker.producer().send(name, b"x"),
        lambda: broker.producer().send_many(name, [Message(b"x")]),
        lambda: broker.consumer("feed", [name]),
        lambda: broker.consumer(name, ["single"]),
        lambda: broker.reader().bounds(TopicPartition(name, 0)),
        lambda: broker.reader().read(TopicPartition(name, 0), 0),
    ]
    for entry in entries:
        with pytest.raises((ConfigError, TopicNotFound)):
            entry()
    assert admin.topics() == []
    assert admin.groups() == []


@pytest.mark.parametrize("name", ["-", "...", "a.tmp", "lock", "members", "0", "x" * 249, "CON", "-rf"])
def test_odd_names_are_names_like_others(admin: Admin, producer: Producer, join, name: str):
    group = name[:240]
    producer.send(name, b"x")
    member = join(group, name)
    member.poll_until(lambda: member.values == [b"x"])
    member.commit()
    assert admin.topics() == [name]
    assert admin.groups() == [group]
    admin.delete_topic(name)
    assert admin.topics() == []


def test_names_of_taskqs_own_topics_are_not_for_people(admin: Admin, producer: Producer):
    with pytest.raises(ConfigError, match="__taskq"):
        admin.create_topic("__taskq.mine", 1)
    producer.send("__taskq.results", b"the program itself may")
    assert admin.topics() == ["__taskq.results"]
    admin.alter_topic("__taskq.results", retention_ms=1000)


def test_the_number_of_partitions_is_kept_when_a_topic_is_used_by_name(admin: Admin, producer: Producer):
    producer.send("posts", b"x")
    assert admin.partitions("posts") == PARTITIONS

"""How partitions come to a consumer, go, and come back; and what goes wrong meanwhile."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.broker.port import Committed, Message, TopicPartition
from taskq.errors import BrokerError, TaskqError
from taskq.topics import TopicConfig
from tests.broker.kafka.conftest import SINGLE, Open
from tests.broker.kafka.consumers import consuming, until
from tests.conformance.members import WAIT_S, Member
from tests.processes import wait_until


def shorten(consumer: KafkaConsumer) -> None:
    """Let the log seem to be shorter than it was, and so another."""
    with consumer._changed:
        ahead = consumer._fetcher._ahead[SINGLE]
        ahead.batches.clear()
        ahead.position, ahead.is_out_of_range = 50, True


def test_what_was_full_when_it_was_given_up_is_read_when_it_comes_back(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka keeps a pause while a partition is away."""
    monkeypatch.setattr("taskq.broker.kafka.fetcher.AHEAD_BYTES_MAX", 1 << 20)
    broker = opened(fetch_max_bytes="1048588", queued_min_messages="10", queued_max_messages_kbytes="1024")
    broker.producer().send_many("single", [Message(b"x" * 10_000)] * 1000)
    consumer = broker.consumer("feed", ["single"])
    until(consumer, lambda polled: polled.assigned)
    wait_until(lambda: consumer._fetcher._ahead[SINGLE].is_paused, "it has read enough")
    consumer.on_lost([SINGLE])
    until(consumer, lambda polled: polled.lost)
    consumer.on_assigned([KafkaPartition("single", 0, 7)], is_last=False)
    until(consumer, lambda polled: polled.assigned)
    assert until(consumer, lambda polled: polled.fetched).fetched[0].records[0].offset == 7


def test_what_was_lost_while_it_was_being_released_is_not_told_twice(opened: Open) -> None:
    consumer = consuming(opened())
    consumer.on_asked([SINGLE])
    until(consumer, lambda polled: polled.revoking)
    consumer.on_lost([SINGLE])  # it has taken too long
    consumer.release([SINGLE])
    assert not consumer.poll(0.2).lost


def test_what_was_asked_for_twice_is_released_once(opened: Open) -> None:
    """As when brokers ask while a member is about to leave."""
    consumer = consuming(opened())
    consumer.on_asked([SINGLE])
    until(consumer, lambda polled: polled.revoking)
    consumer.on_asked([SINGLE])
    consumer.release([SINGLE])
    assert not consumer.poll(0.2).revoking


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_who_leaves_keeps_others_waiting_for_so_long_only(
    opened: Open, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr("taskq.broker.kafka.member.GIVE_UP_AT", 0.005)  # of five minutes
    broker = opened(group_protocol=protocol)
    consumer = consuming(broker)
    consumer.leave()
    until(consumer, lambda polled: polled.revoking)
    other = broker.consumer("feed", ["single"])
    assert until(consumer, lambda polled: polled.lost).lost == {SINGLE}
    assert until(other, lambda polled: polled.assigned).assigned == {SINGLE: Committed(0)}


def test_what_its_owner_has_not_heard_of_is_never_lost(opened: Open) -> None:
    broker = opened()
    broker.producer().send_many("single", [Message(b"x")])
    consumer = broker.consumer("feed", ["single"])
    wait_until(lambda: SINGLE in consumer._held, "it is assigned")
    consumer._skip(SINGLE, 50)  # of another time that it was ours: it is due no more
    shorten(consumer)
    polled = until(consumer, lambda polled: polled.assigned or polled.lost)
    assert (polled.lost, polled.assigned) == (frozenset(), {SINGLE: Committed(0)})


def test_a_log_that_is_another_is_not_paused_as_the_one_before_was(opened: Open) -> None:
    consumer = consuming(opened())
    consumer.pause([SINGLE])
    shorten(consumer)
    until(consumer, lambda polled: polled.lost)
    until(consumer, lambda polled: polled.assigned)
    until(consumer, lambda polled: polled.fetched)


def test_a_log_that_is_another_is_still_asked_for(opened: Open) -> None:
    consumer = consuming(opened())
    consumer.on_asked([SINGLE])
    until(consumer, lambda polled: polled.revoking)
    shorten(consumer)
    until(consumer, lambda polled: polled.lost)
    assert until(consumer, lambda polled: polled.assigned).revoking == {SINGLE}


def test_a_log_that_is_another_is_asked_for_again_where_it_was_kept(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.broker.kafka.consumer.KEEP_S", 1.0)
    consumer = consuming(opened())
    consumer.on_asked([SINGLE])
    until(consumer, lambda polled: polled.revoking)
    consumer.keep([SINGLE])
    shorten(consumer)
    until(consumer, lambda polled: polled.assigned)
    assert until(consumer, lambda polled: polled.revoking).revoking == {SINGLE}


def test_partitions_without_a_leader_keep_no_others_waiting(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they begin is seen when somebody leads them: that the group had never been there is no loss."""
    broker = opened({"double": TopicConfig(2)})
    led, other = TopicPartition("double", 0), TopicPartition("double", 1)
    broker.producer().send_many("double", [Message(b"x", b"%d" % number) for number in range(20)])
    broker._lookup.purge({led: 2, other: 3})
    wait_until(lambda: broker.reader().bounds(led).start == 2 and broker.reader().bounds(other).start == 3, "removed")
    monkeypatch.setattr(broker._topics, "led", lambda _: {0: True, 1: False})
    consumer = broker.consumer("feed", ["double"], offset_reset="error")
    assert until(consumer, lambda polled: polled.assigned).assigned == {led: Committed(2), other: Committed(0)}
    assert until(consumer, lambda polled: polled.lost).lost == {other}
    assert until(consumer, lambda polled: polled.assigned).assigned == {other: Committed(3)}
    polled = until(consumer, lambda polled: polled.fetched or polled.errors or polled.skipped)
    assert (polled.errors, polled.skipped) == ({}, {})


def test_partitions_that_a_broker_has_not_heard_of_for_long_are_read_all_the_same(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.broker.kafka.member.SPREAD_S", 0.2)
    broker = opened({"double": TopicConfig(2)})
    known, other = TopicPartition("double", 0), TopicPartition("double", 1)
    broker.producer().send_many("double", [Message(b"x", b"%d" % number) for number in range(20)])
    monkeypatch.setattr(broker._topics, "led", lambda _: {0: True})
    consumer = broker.consumer("feed", ["double"])
    assigned = until(consumer, lambda polled: polled.assigned).assigned
    assert assigned == {known: Committed(0), other: Committed(0)}
    reading = Member(consumer)
    reading.held |= {known: Committed(0), other: Committed(0)}
    reading.positions |= {known: 0, other: 0}
    reading.poll_until(lambda: len(reading.values) == 20)


def test_a_topic_that_is_made_anew_is_read_from_its_start(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.broker.kafka.remakes.LOOK_S", 0.2)
    broker = opened()
    reading = Member(consuming(broker, 5))
    reading.held[SINGLE] = Committed(0)
    reading.positions[SINGLE] = 0
    reading.may_lose = True
    reading.poll_until(lambda: len(reading.values) == 5)
    wait_until(lambda: bool(reading.consumer._remakes._ids), "it knows which topic it reads")  # type: ignore[attr-defined]
    broker.admin().delete_topic("single")
    broker.producer().send_many("single", [Message(b"new %d" % number) for number in range(12)])
    new = [b"new %d" % number for number in range(12)]
    reading.poll_until(lambda: reading.values == new)


def test_a_topic_that_is_made_anew_is_followed_from_its_start(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.broker.kafka.remakes.LOOK_S", 0.2)
    broker = opened()
    broker.producer().send_many("single", [Message(b"old")] * 3)
    follower, values = broker.follower(SINGLE, print), list[bytes | None]()

    def has_read(wanted: list[bytes]) -> bool:
        values.extend(record.value for record in follower.read(0.1))
        return values[-len(wanted) :] == wanted

    wait_until(lambda: has_read([b"old"] * 3) and bool(follower._remakes._ids), "it knows which topic it reads")
    broker.admin().delete_topic("single")
    new = [b"new %d" % number for number in range(12)]
    broker.producer().send_many("single", [Message(value) for value in new])
    wait_until(lambda: has_read(new), "it begins at the start")


def test_a_follower_that_waits_is_told_as_soon_as_something_comes(opened: Open) -> None:
    broker = opened()
    producer = broker.producer()
    producer.send_many("single", [])
    follower = broker.follower(SINGLE, print)
    assert follower.read(0) == []
    publishing = threading.Timer(0.3, lambda: producer.send("single", b"came"))
    publishing.start()
    assert [record.value for record in follower.read(WAIT_S)] == [b"came"]
    publishing.join()


def test_a_damaged_partition_stops_and_no_other(opened: Open) -> None:
    broker = opened({"double": TopicConfig(2)})
    broker.producer().send_many("double", [])
    consumer = consuming(broker)
    consumer._fetcher._failed(SINGLE, BrokerError("damaged"))
    assert str(until(consumer, lambda polled: polled.errors).errors[SINGLE]) == "damaged"
    assert consumer.commit({SINGLE: Committed(1)}) == frozenset(), "it is still ours"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"session_timeout_ms": "100", "heartbeat_interval_ms": "50"}, "session timeout"),
        ({"group_protocol": "consumer", "group_remote_assignor": "nonsense"}, "assignor"),
    ],
)
def test_a_group_that_takes_nobody_in_who_asks_so_is_no_silence(
    opened: Open, settings: dict[str, str], told: str
) -> None:
    broker = opened(**settings)
    broker.producer().send_many("single", [])
    consumer = broker.consumer("feed", ["single"])
    found: list[TaskqError] = []

    def has_failed() -> bool:
        try:
            consumer.poll(0.1)
        except TaskqError as error:
            found.append(error)
        return bool(found)

    wait_until(has_failed, "it says why", within_s=WAIT_S)
    assert told in str(found[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_member_that_ends_by_what_is_no_exception_is_missed(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = consuming(opened())
    member, ended = consumer._members._members[0], threading.Event()

    def end() -> None:
        ended.set()
        raise SystemExit

    monkeypatch.setattr(member, "_turn", end)
    assert ended.wait(WAIT_S)
    with pytest.raises(BrokerError, match="has ended"):
        until(consumer, lambda polled: False)

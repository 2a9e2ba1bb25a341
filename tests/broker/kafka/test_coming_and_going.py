"""How partitions come to a consumer, go, and come back; and what goes wrong meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka import consumer as consumer_module
from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.broker.port import Committed, Message, Polled, TopicPartition
from taskq.errors import BrokerError, BrokerUnavailable, TaskqError
from taskq.topics import TopicConfig
from tests.broker.kafka.conftest import SINGLE, Open
from tests.conformance.members import WAIT_S, Member
from tests.processes import wait_until


def consuming(broker: KafkaBroker, count: int = 3) -> KafkaConsumer:
    """A consumer that has been assigned SINGLE, and whose owner has heard of it; so many records are there."""
    broker.producer().send_many("single", [Message(b"%d" % number) for number in range(count)])
    consumer = broker.consumer("feed", ["single"])
    until(consumer, lambda polled: SINGLE in polled.assigned)
    return consumer


def until(consumer: KafkaConsumer, found: Callable[[Polled], object], records_max: int = 1) -> Polled:
    """Poll until `found` says so of what was reported; return that."""
    reports: list[Polled] = []

    def is_there() -> bool:
        reports.append(consumer.poll(0.1, records_max))
        return bool(found(reports[-1]))

    wait_until(is_there, "it is reported")
    return reports[-1]


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

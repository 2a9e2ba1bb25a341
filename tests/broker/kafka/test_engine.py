"""What only Kafka has: logs that begin later, transactions of others, refusals, forks."""

from __future__ import annotations

import os
import time

import pytest
from confluent_kafka import Producer

from taskq.broker.kafka import KafkaBroker, consumer
from taskq.broker.port import Committed, Message, PartitionBounds, TopicPartition
from taskq.errors import BrokerUnavailable, ConfigError, OffsetOutOfRange, TopicNotFound
from taskq.ladder import TOPICS
from taskq.metrics import metrics
from taskq.topics import TopicConfig
from tests.broker.kafka.conftest import SINGLE, Open
from tests.conformance.members import WAIT_S, Member
from tests.kafka.cluster import Cluster
from tests.processes import wait_until


def begins_at(broker: KafkaBroker, offset: int) -> None:
    broker._lookup.purge({SINGLE: offset})
    wait_until(lambda: broker.reader().bounds(SINGLE).start == offset, "it is removed")


def committed_at(broker: KafkaBroker, offset: int) -> None:
    member = Member(broker.consumer("feed", ["single"]))
    member.start()
    member.consumer.commit({SINGLE: Committed(offset)})
    member.consumer.close()


def test_what_was_removed_before_it_was_read_is_skipped_and_told(opened: Open):
    broker = opened()
    broker.producer().send_many("single", [Message(b"%d" % number) for number in range(10)])
    committed_at(broker, 2)
    begins_at(broker, 5)
    reading = broker.consumer("feed", ["single"])
    assert reading.poll(WAIT_S).assigned == {SINGLE: Committed(2)}
    polled = reading.poll(WAIT_S)
    while not polled.skipped:
        polled = reading.poll(WAIT_S)
    assert polled.skipped == {SINGLE: 3}
    while not polled.fetched:
        polled = reading.poll(WAIT_S)
    assert polled.fetched[0].records[0].value == b"5"


def test_who_asks_to_be_told_reads_no_further(opened: Open):
    broker = opened()
    broker.producer().send_many("single", [Message(b"x")] * 10)
    committed_at(broker, 2)
    begins_at(broker, 5)
    reading = broker.consumer("feed", ["single"], offset_reset="error")
    assert reading.poll(WAIT_S).assigned == {SINGLE: Committed(2)}
    error = reading.poll(WAIT_S).errors[SINGLE]
    assert isinstance(error, OffsetOutOfRange)
    assert "single/0: offset 2 is due; the log begins at 5" in str(error)


def test_a_log_that_is_shorter_than_it_was_is_another(opened: Open):
    broker = opened()
    broker.producer().send_many("single", [Message(b"old")] * 3)
    committed_at(broker, 50)
    reading = Member(broker.consumer("feed", ["single"]))
    assert reading.consumer.poll(WAIT_S).assigned == {SINGLE: Committed(50)}
    polled = reading.consumer.poll(WAIT_S)
    assert polled.lost == {SINGLE}
    reading.poll_until(lambda: len(reading.values) == 3)
    assert reading.held == {SINGLE: Committed(0)}


def test_what_others_aborted_is_read_by_nobody(opened: Open, kafka: Cluster):
    broker = opened()
    broker.producer().send("single", b"sound")
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "other"})
    other.init_transactions()
    other.begin_transaction()
    other.produce("single", b"aborted", partition=0)
    other.flush()
    other.abort_transaction()
    reader = broker.reader()
    wait_until(lambda: reader.bounds(SINGLE) == PartitionBounds(0, 3), "the end of the transaction is there")
    assert [record.value for record in reader.read(SINGLE, 0)] == [b"sound"]
    assert reader.read(SINGLE, 1) == []
    broker.producer().send("single", b"more")
    assert [record.offset for record in reader.read(SINGLE, 1)] == [3]
    member = Member(broker.consumer("feed", ["single"]))
    got: list[int] = []
    while len(got) < 2:
        got += [record.offset for _, records in member.consumer.poll(WAIT_S).fetched for record in records]
    assert got == [0, 3]


def test_what_is_far_ahead_is_not_fetched_until_it_is_wanted(opened: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("taskq.broker.kafka.fetcher.AHEAD_BYTES_MAX", 1 << 20)
    broker = opened(fetch_max_bytes="1048588", queued_min_messages="10", queued_max_messages_kbytes="1024")
    broker.producer().send_many("single", [Message(b"x" * 10_000)] * 2000)
    member = Member(broker.consumer("feed", ["single"]))
    member.poll_until(lambda: bool(member.held), records_max=1)
    ahead = member.consumer._fetcher._ahead[SINGLE]  # type: ignore[attr-defined]
    wait_until(lambda: ahead.is_paused, "it has read enough")
    assert ahead.size_bytes < 16 << 20
    member.poll_until(lambda: len(member.values) == 2000)


def test_what_waits_on_the_ladder_is_kept_and_removed_by_who_has_finished_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(consumer, "PURGE_S", 0.0)
    broker = opened()
    rung = TopicPartition(TOPICS[0], 0)
    broker.producer().send_many(rung.topic, [Message(b"x", b"%d" % number) for number in range(20)])
    assert broker.admin().describe_topic(rung.topic).settings.retention_ms == -1
    member = Member(broker.consumer("movers", [rung.topic]))
    member.poll_until(lambda: len(member.values) == 20)
    member.commit()
    ends = {tp: at for tp, at in member.positions.items() if at}
    reader = broker.reader()
    wait_until(lambda: all(reader.bounds(tp).start == end for tp, end in ends.items()), "it is removed")


def test_unfinished_can_not_be_kept_by_kafka_and_it_says_so_at_once(opened: Open):
    admin = opened().admin()
    for use in (
        lambda: opened({"kept": TopicConfig(1, {"unfinished": "keep"})}),
        lambda: admin.create_topic("other", 1, unfinished="keep"),
    ):
        with pytest.raises(ConfigError, match=r"unfinished = 'keep' on Kafka.*retention_ms"):
            use()
    assert admin.topics() == []


def test_a_topic_that_is_there_is_taken_as_it_is(opened: Open):
    opened().admin().create_topic("single", 3, retention_ms=1000)
    again = opened()
    again.producer().send("single", b"x")
    assert again.admin().partitions("single") == 3
    assert again.admin().describe_topic("single").settings.retention_ms == 1000


def test_a_forked_child_publishes_and_looks_and_its_parent_goes_on(opened: Open):
    broker = opened()
    producer, admin, reader = broker.producer(), broker.admin(), broker.reader()
    producer.send("single", b"before")
    assert reader.read(SINGLE, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            producer.send("single", b"child")
            code = 0 if len(reader.read(SINGLE, 0)) == 2 and admin.topics() == ["single"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert producer.send("single", b"after") == (0, 2)


def test_brokers_that_are_not_there_are_named_and_no_secret_is():
    broker = KafkaBroker("kafka://127.0.0.1:1?sasl.password=swordfish&socket.timeout.ms=1000")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"kafka://127\.0\.0\.1:1.*check that the brokers run") as told:
        broker.producer().send("single", b"x")
    assert "swordfish" not in str(told.value)
    assert time.monotonic() - began < WAIT_S
    broker.close()


@pytest.mark.parametrize("setting", ["no.such=1", "security.protocol=none"])
def test_a_setting_that_librdkafka_does_not_know_is_named(setting: str):
    broker = KafkaBroker(f"kafka://127.0.0.1:1?{setting}")
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        broker.producer().send("single", b"x")
    broker.close()


def test_what_librdkafka_counts_is_on_the_page(opened: Open):
    broker = opened(statistics_interval_ms="50")
    broker.producer().send("single", b"x")
    member = Member(broker.consumer("feed", ["single"]))
    member.start()
    wanted = {"taskq_kafka_broker_up", "taskq_kafka_waiting_messages", "taskq_kafka_group_rebalances"}
    wait_until(lambda: wanted <= metrics.snapshot().keys(), "it tells")
    wait_until(lambda: (("producer",), [0]) in metrics.snapshot()["taskq_kafka_waiting_messages"], "it has come")
    wait_until(lambda: (("member of feed", "1"), [1]) in metrics.snapshot()["taskq_kafka_broker_up"], "it is there")
    broker.close()
    assert not wanted & metrics.snapshot().keys()


def test_a_partition_that_is_not_there_is_not_found(opened: Open):
    broker = opened()
    broker.producer().send("single", b"x")
    for tp in (TopicPartition("single", 1), TopicPartition("nothing", 0), TopicPartition("single", -1)):
        with pytest.raises(TopicNotFound, match=tp.topic):
            broker.reader().bounds(tp)


def test_what_finds_its_partition_gone_goes_to_another(opened: Open):
    broker = opened({"shrunk": TopicConfig(1)})
    producer, admin, reader = broker.producer(), broker.admin(), broker.reader()
    admin.create_topic("shrunk", 4)
    producer.send_many("shrunk", [Message(b"old", b"%d" % number) for number in range(20)])
    admin.delete_topic("shrunk")
    sent = [Message(b"%d" % number, b"%d" % number, (("name", b"text"),)) for number in range(20)]
    producer.send_many("shrunk", sent)
    found = [
        record
        for number in range(admin.partitions("shrunk"))
        for record in reader.read(TopicPartition("shrunk", number), 0)
    ]
    assert sorted(Message(record.value, record.key, record.headers) for record in found) == sorted(sent)

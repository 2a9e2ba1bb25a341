"""What the exporter says of brokers with known contents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.broker import connect
from taskq.broker.port import Broker, Committed, Consumer, Message, TopicPartition
from taskq.config import load_settings
from taskq.definitions import BACKLOG, BACKLOG_AGE_SECONDS, DEAD_LETTERS, DELAYED, LOG_BYTES, Definition
from taskq.exporter import Exporter
from taskq.ladder import TOPICS, delayed
from taskq.topics import dead_topic
from taskq.worker.deadoffice import purge_dead
from taskq.worker.delays import GROUP
from taskq.worker.progress import Progress

POSTS_0 = ("feed", "posts", "0")


@pytest.fixture(params=["memory:", "log"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    url = request.param if request.param == "memory:" else str(tmp_path / request.param)
    broker = connect(load_settings(broker=url, partitions=1, cwd=tmp_path, environ={}))
    yield broker
    broker.close()


def told(exporter: Exporter, definition: Definition) -> dict[tuple[str, ...], float]:
    return {labels: value for found, labels, value in exporter.samples() if found is definition}


def join(broker: Broker, group: str, topic: str) -> Consumer:
    consumer = broker.consumer(group, [topic])
    deadline = time.monotonic() + 10
    while not consumer.poll(0.1).assigned:
        assert time.monotonic() < deadline
    return consumer


def test_a_group_that_never_ran_has_everything_before_it(broker: Broker):
    broker.producer().send_many("posts", [Message(b"x")] * 5)
    exporter = Exporter(broker, {"feed": ["posts", "not-yet-there"]})
    assert told(exporter, BACKLOG) == {POSTS_0: 5}
    assert 0 <= told(exporter, BACKLOG_AGE_SECONDS)[POSTS_0] < 60


def test_a_group_nobody_told_of_is_found_on_the_broker(broker: Broker):
    broker.producer().send_many("posts", [Message(b"x")] * 5)
    join(broker, "feed", "posts")
    assert told(Exporter(broker, {}), BACKLOG) == {POSTS_0: 5}


def test_what_is_finished_out_of_order_is_no_backlog(broker: Broker):
    broker.producer().send_many("posts", [Message(b"x")] * 10)
    consumer = join(broker, "feed", "posts")
    progress = Progress(0)
    progress.finish([0, 1, 4, 5, 9])
    consumer.commit({TopicPartition("posts", 0): Committed(progress.low, progress.encode())})
    exporter = Exporter(broker, {})
    assert told(exporter, BACKLOG) == {POSTS_0: 5}
    consumer.close()
    assert told(exporter, BACKLOG) == {POSTS_0: 5}


def test_age_is_that_of_the_oldest_unfinished_record(broker: Broker):
    producer = broker.producer()
    producer.send("posts", b"first")
    consumer = join(broker, "feed", "posts")
    (first,) = broker.reader().read(TopicPartition("posts", 0), 0)
    exporter = Exporter(broker, {})
    assert told(exporter, BACKLOG_AGE_SECONDS)[POSTS_0] == pytest.approx(time.time() - first.timestamp_ms / 1000, abs=5)
    consumer.commit({TopicPartition("posts", 0): Committed(1)})
    assert told(exporter, BACKLOG_AGE_SECONDS) == {POSTS_0: 0}
    assert told(exporter, BACKLOG) == {POSTS_0: 0}


def test_progress_that_cannot_be_read_counts_from_its_offset(broker: Broker, caplog: pytest.LogCaptureFixture):
    broker.producer().send_many("posts", [Message(b"x")] * 5)
    join(broker, "feed", "posts").commit({TopicPartition("posts", 0): Committed(2, b"\xffgarbage")})
    assert told(Exporter(broker, {}), BACKLOG) == {POSTS_0: 3}
    assert "can't be read" in caplog.text


def test_dead_letters_and_bytes_are_counted(broker: Broker):
    broker.producer().send_many("posts", [Message(b"x" * 100)] * 5)
    broker.producer().send_many(dead_topic("feed"), [Message(b"x")] * 2)
    exporter = Exporter(broker, {"feed": ["posts"]})
    assert told(exporter, DEAD_LETTERS) == {("feed",): 2}
    sizes = told(exporter, LOG_BYTES)
    assert sizes["posts", "0"] >= 500
    assert set(sizes) == {("posts", "0"), (dead_topic("feed"), "0")}


def test_what_a_person_purged_is_no_dead_letter_and_no_groups_backlog(broker: Broker):
    broker.producer().send_many(dead_topic("feed"), [Message(b"x")] * 5)
    assert purge_dead(broker, "feed", ["0@1", "0@3"]) == 2
    exporter = Exporter(broker, {"feed": ["posts"]})
    assert told(exporter, DEAD_LETTERS) == {("feed",): 3}
    assert told(exporter, BACKLOG) == {}


def test_taskqs_own_groups_are_shown_when_asked_for(broker: Broker):
    join(broker, GROUP, TOPICS[0])
    topic, message = delayed(Message(b"x"), "posts", 10_000_000, 0)
    broker.producer().send_many(topic, [message] * 3)
    join(broker, "feed", "posts")
    assert {labels[0] for labels in told(Exporter(broker, {}), BACKLOG)} == {"feed"}
    assert set(told(Exporter(broker, {}), DEAD_LETTERS)) == {("feed",)}
    assert {labels[0] for labels in told(Exporter(broker, {}, internal=True), BACKLOG)} == {"feed", GROUP}
    assert told(Exporter(broker, {}), DELAYED) == {(TOPICS[0],): 0, (topic,): 3}


def test_dead_letters_of_taskqs_own_groups_are_never_hidden(broker: Broker):
    join(broker, GROUP, TOPICS[0])
    broker.producer().send_many(dead_topic(GROUP), [Message(b"x")])
    assert told(Exporter(broker, {}), DEAD_LETTERS) == {(GROUP,): 1}


def test_it_is_ready_while_the_broker_answers(broker: Broker):
    assert Exporter(broker, {}).ready().ok

"""The cleaner: what it removes by itself, for whom it waits, and that nothing stops it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing as closing_broker
from pathlib import Path

import pytest

from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names
from taskq.broker.log.files import RealFiles
from taskq.broker.log.locks import close_lockable, lock, open_lockable
from taskq.broker.log.rewriting import Pace
from taskq.broker.port import Committed, Consumer, Message, PartitionBounds, TopicPartition
from tests.processes import wait_until

TP = TopicPartition("feed", 0)
DAY_S = 86_400


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(str(tmp_path / "log"), partitions_default=1)
    broker.admin().create_topic("feed", 1, segment_bytes=2048)
    yield broker
    broker.close()


def fill(broker: EmbeddedBroker, topic: str = "feed") -> None:
    for number in range(100):
        broker.producer().send(topic, b"%d" % number + b" " * 100)


def clean(broker: EmbeddedBroker, days: float) -> PartitionBounds:
    """As if so many days had gone by."""
    assert Cleaner(broker._directory, now=lambda: time.time() + days * DAY_S).clean()
    return broker.reader().bounds(TP)


def member(broker: EmbeddedBroker, group: str) -> Consumer:
    consumer = broker.consumer(group, ["feed"])
    wait_until(lambda: consumer.poll(1).assigned, "it is assigned")
    return consumer


def test_what_nobody_has_run_stays(broker: EmbeddedBroker) -> None:
    fill(broker)
    assert clean(broker, 365) == PartitionBounds(0, 100)
    consumer = member(broker, "group")
    assert clean(broker, 365) == PartitionBounds(0, 100), "a group that has committed nothing has no say"
    consumer.commit({TP: Committed(50)})
    start = clean(broker, 365).start
    assert 30 < start <= 50
    consumer.commit({TP: Committed(100)})
    assert clean(broker, 6).start == start, "younger than 7 days"
    assert clean(broker, 8) == PartitionBounds(100, 100)


def test_the_slowest_group_says_what_stays(broker: EmbeddedBroker) -> None:
    fill(broker)
    fast, slow = member(broker, "fast"), member(broker, "slow")
    fast.commit({TP: Committed(100)})
    slow.commit({TP: Committed(0)})
    assert clean(broker, 365).start == 0
    slow.commit({TP: Committed(40)})
    assert 20 < clean(broker, 365).start <= 40


def test_a_group_has_a_say_in_partitions_where_it_has_committed_nothing(broker: EmbeddedBroker) -> None:
    fill(broker)
    broker.admin().alter_topic("feed", 2)
    done, other = member(broker, "done"), member(broker, "other")
    done.commit({TP: Committed(100)})
    other.commit({TopicPartition("feed", 1): Committed(0)})
    assert clean(broker, 365).start == 0


def test_a_topic_that_is_told_so_forgets_what_nobody_has_run(broker: EmbeddedBroker) -> None:
    fill(broker)
    broker.admin().alter_topic("feed", unfinished="delete", retention_ms="1d")
    assert clean(broker, 0.5).start == 0
    assert clean(broker, 1.5) == PartitionBounds(100, 100)


def test_size_is_bounded_too(broker: EmbeddedBroker) -> None:
    fill(broker)
    broker.admin().alter_topic("feed", unfinished="delete", retention_bytes=5000)
    assert clean(broker, 0).start > 0
    assert 5000 <= broker.admin().describe_topic("feed").size_bytes[0] <= 5000 + 2048


def test_dead_letters_stay(broker: EmbeddedBroker) -> None:
    fill(broker, "group.dead")
    broker.admin().alter_topic("group.dead", unfinished="delete")
    clean(broker, 10_000)
    assert broker.reader().bounds(TopicPartition("group.dead", 0)) == PartitionBounds(0, 100)


def test_a_compacted_topic_is_not_emptied_by_age(broker: EmbeddedBroker) -> None:
    broker.admin().create_topic("results", 1, cleanup_policy="compact", segment_bytes=2048, unfinished="delete")
    broker.producer().send_many("results", [Message(b"x" * 100, b"%d" % (n % 5)) for n in range(100)])
    broker.producer().send_many("results", [Message(b"last", b"%d" % n) for n in range(5)])
    for days in (30, 60):
        clean(broker, days)
    found = broker.reader().read(TopicPartition("results", 0), 0)
    assert {record.key: record.value for record in found} == {b"%d" % n: b"last" for n in range(5)}


def read_offsets(broker: EmbeddedBroker, tp: TopicPartition) -> list[int]:
    offsets: list[int] = []
    while found := broker.reader().read(tp, offsets[-1] + 1 if offsets else 0):
        offsets += [record.offset for record in found]
    return offsets


def test_a_close_cuts_a_compaction_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, closing = threading.Event(), threading.Event()
    worked, close = Pace.worked, Cleaner.close

    def held(pace: Pace, size: int) -> None:
        begun.set()
        assert closing.wait(60)
        worked(pace, size)

    def close_while_held(cleaner: Cleaner) -> None:
        cleaner._closing.set()
        closing.set()
        close(cleaner)

    results = TopicPartition("results", 0)
    broker = EmbeddedBroker(str(tmp_path / "log"), cleaner_interval_s=0.01)
    broker.admin().create_topic("results", 1, cleanup_policy="compact", segment_bytes=2048)
    monkeypatch.setattr(Pace, "worked", held)
    monkeypatch.setattr(Cleaner, "close", close_while_held)
    for number in range(100):
        broker.producer().send("results", b"%d" % number + b"x" * 100, key=b"k")
    assert begun.wait(60)
    broker.close()
    monkeypatch.undo()
    with closing_broker(EmbeddedBroker(str(tmp_path / "log"))) as again:
        assert read_offsets(again, results) == list(range(100))
        assert not list((tmp_path / "log").rglob("*.tmp"))
        assert Cleaner(again._directory).clean()
        assert len(read_offsets(again, results)) < 50


def test_one_process_at_a_time_does_it(broker: EmbeddedBroker) -> None:
    fill(broker)
    broker.admin().alter_topic("feed", unfinished="delete")
    lock_fd = open_lockable(RealFiles(), names.cleaner_lock(broker._directory.root), create=True)
    lock(lock_fd)
    cleaner = Cleaner(broker._directory, now=lambda: time.time() + 365 * DAY_S)
    assert not cleaner.clean()
    assert broker.reader().bounds(TP).start == 0
    close_lockable(RealFiles(), lock_fd)
    assert cleaner.clean()
    assert broker.reader().bounds(TP).start == 100


def test_a_partition_that_can_not_be_cleaned_stops_no_other(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker.admin().create_topic("a", 1, segment_bytes=2048, unfinished="delete")
    broker.admin().alter_topic("feed", unfinished="delete")
    fill(broker, "a")
    fill(broker)
    real = RealFiles.unlink

    def unlink(path: str) -> None:
        if "/a/0/" in path:
            raise PermissionError(1, "Operation not permitted", path)
        real(path)

    monkeypatch.setattr(RealFiles, "unlink", staticmethod(unlink))
    assert clean(broker, 365) == PartitionBounds(100, 100)
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "a/0 can't be cleaned now: [Errno 1] Operation not permitted" in logged.getMessage()
    monkeypatch.undo()
    clean(broker, 365)
    assert broker.admin().describe_topic("a").size_bytes == (0,), "the next round goes on"


def test_a_broker_cleans_by_itself_and_goes_on_after_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fails = Cleaner.clean, threading.Event()
    fails.set()
    failed = threading.Event()

    def clean(self: Cleaner) -> bool:
        if fails.is_set():
            failed.set()
            raise RuntimeError("as may be")
        return real(self)

    monkeypatch.setattr(Cleaner, "clean", clean)
    broker = EmbeddedBroker(str(tmp_path), cleaner_interval_s=0.01)
    try:
        broker.admin().create_topic("feed", 1, segment_bytes=2048, unfinished="delete", retention_ms=1)
        fill(broker)
        assert failed.wait(10)
        assert broker.reader().bounds(TP).start == 0
        fails.clear()
        wait_until(lambda: broker.reader().bounds(TP) == PartitionBounds(100, 100), "it is cleaned")
    finally:
        broker.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "taskq-cleaner" and thread.is_alive()]


def test_a_deletion_that_was_cut_short_is_finished(broker: EmbeddedBroker, tmp_path: Path) -> None:
    fill(broker)
    member(broker, "group").commit({TP: Committed(7)})
    topics = tmp_path / "log" / "topics"
    (topics / "half~" / "0").mkdir(parents=True)
    (topics / "half~" / "topic.json").write_text("{}")  # the last step but one of a creation
    (topics / "feed" / "topic.json").rename(topics / "feed" / "deleted")  # the first step of it
    assert broker.admin().topics() == []
    assert Cleaner(broker._directory).clean()
    assert list(topics.iterdir()) == []
    assert broker.admin().describe_group("group").committed == {}
    broker.producer().send("feed", b"new")
    assert broker.reader().bounds(TP) == PartitionBounds(0, 1)


def test_what_a_writer_left_that_was_killed_is_removed(broker: EmbeddedBroker, tmp_path: Path) -> None:
    fill(broker)
    directory = tmp_path / "log" / "topics" / "feed" / "0"
    left, foreign = directory / "checkpoint.12-34.tmp", directory / "notes.tmp"
    left.touch()
    foreign.touch()
    clean(broker, 0)
    assert left.exists(), "it may be being written"
    clean(broker, 0.1)
    assert not left.exists()
    assert foreign.exists()

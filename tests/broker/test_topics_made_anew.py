"""A topic that is deleted and made anew under somebody's hands: nothing meant for the old one reaches the new one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskq.broker.cleaner import Cleaner
from taskq.broker.consumer import EmbeddedConsumer
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import checkpoint, compaction, idempotence, replacement, retention
from taskq.broker.log.batch import ProducerStamp, encode_many
from taskq.broker.log.catalogue import Catalogue
from taskq.broker.log.offsets import Lease
from taskq.broker.port import Committed, Message, PartitionBounds, TopicPartition
from tests.processes import wait_until

TP = TopicPartition("feed", 0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=1)) as broker:
        yield broker


@pytest.fixture
def other(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """Stands for another process."""
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=1)) as broker:
        yield broker


def publish(broker: EmbeddedBroker, count: int, value: bytes) -> None:
    for _ in range(count):
        broker.producer().send("feed", value)


@pytest.mark.parametrize("before", ["remember", "_begin_at", "_remove_below"])
def test_retention_moves_no_start_but_of_the_log_it_looked_at(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    broker.admin().create_topic("feed", 1, segment_bytes=1024, retention_bytes=0, unfinished="delete")
    publish(broker, 100, b"x" * 100)
    real, begun = getattr(retention, before), list[bool]()

    def make_anew(*arguments: object) -> object:
        if not begun and (before != "_remove_below" or arguments[2]):  # it is called for what is left over, too
            begun.append(True)
            other.admin().delete_topic("feed")
            other.admin().create_topic("feed", 1, segment_bytes=1024)
            publish(other, 20, b"new" * 50)
        return real(*arguments)

    monkeypatch.setattr(retention, before, make_anew)
    assert Cleaner(broker._directory).clean()
    assert begun
    assert other.reader().bounds(TP) == PartitionBounds(0, 20)
    assert other.reader().read(TP, 0)[0].offset == 0
    assert bounds_after_a_reboot(tmp_path) == PartitionBounds(0, 20)


def make_anew_before(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, other: EmbeddedBroker
) -> list[bool]:
    """Have the topic deleted, made anew and published to, just before `name` of `module` is called.

    Returns what says so once it has happened.
    """
    real: Callable[..., object] = getattr(module, name)
    made: list[bool] = []

    def make_anew(*arguments: object) -> object:
        if not made:
            made.append(True)
            other.admin().delete_topic("feed")
            other.admin().create_topic("feed", 1)
            publish(other, 20, b"new")
        return real(*arguments)

    monkeypatch.setattr(module, name, make_anew)
    return made


def bounds_after_a_reboot(root: Path) -> PartitionBounds:
    (root / "topics" / "feed" / "0" / "head").unlink()
    with closing(EmbeddedBroker(str(root))) as again:
        return again.reader().bounds(TP)


def test_no_checkpoint_is_written_for_another_topic(
    other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=1)) as broker:
        publish(broker, 50, b"old")
        made = make_anew_before(monkeypatch, checkpoint, "write", other)
    assert made, "closing writes one"
    assert bounds_after_a_reboot(tmp_path) == PartitionBounds(0, 20)


def test_retention_leaves_no_checkpoint_to_another_topic(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.admin().create_topic("feed", 1, segment_bytes=1024, retention_bytes=0, unfinished="delete")
    publish(broker, 100, b"x" * 100)
    real = retention._begin_at

    def begin_at(*arguments: Any) -> None:
        made.append(make_anew_before(monkeypatch, checkpoint, "write", other))
        real(*arguments)

    made: list[list[bool]] = []
    monkeypatch.setattr(retention, "_begin_at", begin_at)
    Cleaner(broker._directory).clean()
    assert made[0]
    assert bounds_after_a_reboot(tmp_path) == PartitionBounds(0, 20)


def test_retention_removes_nothing_of_another_topic(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.admin().create_topic("feed", 1, segment_bytes=1024, retention_bytes=0, unfinished="delete")
    publish(broker, 100, b"x" * 100)
    made = make_anew_before(monkeypatch, retention, "remove_segment", other)
    Cleaner(broker._directory).clean()
    assert made
    assert (tmp_path / "topics" / "feed" / "0" / f"{0:020}.log").exists()
    assert len(other.reader().read(TP, 0)) == 20


def test_compaction_removes_nothing_of_another_topic(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> None:
        other.admin().create_topic("feed", 1, segment_bytes=1024, cleanup_policy="compact")
        for number in range(100):
            other.producer().send("feed", b"x" * 100, b"%d" % (number % 3))

    make()
    remove_others, made = replacement.remove_others, list[bool]()

    def make_anew(*arguments: Any) -> None:
        if not made:
            made.append(True)
            other.admin().delete_topic("feed")
            make()
        remove_others(*arguments)

    monkeypatch.setattr(replacement, "remove_others", make_anew)
    Cleaner(broker._directory).clean()
    assert made
    offset = 0
    while records := other.reader().read(TP, offset):
        offset = records[-1].offset + 1
    assert offset == 100


def test_no_snapshot_of_producers_is_left_to_another_topic(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.producer().send_many("feed", [])
    partition = broker._directory.partition(TP)
    appender = idempotence.IdempotentAppender(broker._directory.files, partition)
    for sequence in range(2):
        appender.append(encode_many([Message(b"old")], 1, ProducerStamp(7, 0, sequence)))
    partition.sync()
    made = make_anew_before(monkeypatch, idempotence, "write_snapshot", other)
    appender.close()
    assert made, "closing writes one"
    assert not list((tmp_path / "topics" / "feed" / "0").glob("*.snapshot"))


def test_compaction_says_of_no_other_topic_how_far_it_has_come(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.admin().create_topic("feed", 1, segment_bytes=1024, cleanup_policy="compact")
    for number in range(100):
        broker.producer().send("feed", b"x" * 100, b"%d" % (number % 3))
    made = make_anew_before(monkeypatch, compaction, "_write_progress", other)
    Cleaner(broker._directory).clean()
    assert made
    assert not (tmp_path / "topics" / "feed" / "0" / "compacted").exists()


def member(broker: EmbeddedBroker) -> EmbeddedConsumer:
    consumer = broker.consumer("group", ["feed"])
    assert isinstance(consumer, EmbeddedConsumer)
    return consumer


def test_a_lease_taken_when_progress_was_removed_already_does_not_outlive_the_topic(
    broker: EmbeddedBroker, other: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(broker, 50, b"old")
    consumer = member(broker)
    forget, taken = Catalogue._forget_progress, threading.Event()
    take = Lease.take.__func__  # type: ignore[attr-defined]

    def forget_and_have_taken(catalogue: Catalogue, name: str) -> None:
        forget(catalogue, name)
        if not taken.is_set():
            taken.set()
            lease = take(Lease, broker._directory.files, broker._directory.root, "group", "feed", 0, "one")
            lease.commit(Committed(50), 50)  # as by a member whose look at the head came just before
            lease.release()

    monkeypatch.setattr(Catalogue, "_forget_progress", forget_and_have_taken)
    other.admin().delete_topic("feed")
    assert taken.is_set()
    assert broker.admin().describe_group("group").committed == {}
    assert not (tmp_path / "groups" / "group" / "topics" / "feed").exists()
    publish(other, 60, b"new")
    wait_until(lambda: consumer.poll(0.1).assigned == {TP: Committed(0)}, "it begins at the start")
    consumer.close()


def test_no_partition_of_a_deleted_topic_is_taken(
    broker: EmbeddedBroker, other: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(broker, 50, b"old")
    consumer = member(broker)
    take = Lease.take.__func__  # type: ignore[attr-defined]
    made: list[bool] = []

    def take_late(cls: type[Lease], *arguments: object) -> Lease | None:
        if not made:
            made.append(True)
            other.admin().delete_topic("feed")
            publish(other, 60, b"new")
        lease: Lease | None = take(cls, *arguments)
        return lease

    monkeypatch.setattr(Lease, "take", classmethod(take_late))
    assert not consumer.poll(0).assigned
    assert made
    wait_until(lambda: consumer.poll(0.1).assigned == {TP: Committed(0)}, "it has the new one")
    consumer.close()


def test_a_commit_for_a_deleted_topic_goes_nowhere(broker: EmbeddedBroker, other: EmbeddedBroker) -> None:
    publish(broker, 50, b"old")
    consumer = member(broker)
    wait_until(lambda: consumer.poll(0.1).assigned, "it is assigned")
    lease = consumer._held[TP].lease
    other.admin().delete_topic("feed")
    consumer.commit({TP: Committed(50)})
    assert lease.committed is None
    consumer.close()

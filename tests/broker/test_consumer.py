"""A member of a group that runs out of files halfway: nothing it has got by then is lost to its owner."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.offsets import Lease
from taskq.broker.port import Committed, Consumer, Record, TopicPartition
from taskq.errors import BrokerUnavailable

TPS = [TopicPartition("feed", number) for number in range(3)]


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[Consumer]:
    """Of a topic with a record in each partition."""
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=3)) as broker:
        sent = set[int]()
        for number in range(100):
            if len(sent) < len(TPS):
                sent.add(broker.producer().send("feed", b"x", b"%d" % number)[0])
        with closing(broker.consumer("group", ["feed"])) as consumer:
            yield consumer


class OutOfFiles:
    """What a call may raise, as long as it is told to."""

    def __init__(self) -> None:
        self.number: int | None = None

    def maybe(self, number: int) -> None:
        if number == self.number:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "some file")


def test_what_was_fetched_before_a_partition_could_not_be_read_is_not_lost(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(consumer.poll(5).assigned) == set(TPS)
    fails, read = OutOfFiles(), Cursor.read

    def failing(self: Cursor, *arguments: Any) -> list[Record]:
        fails.maybe(int(self._directory[-1]))
        return read(self, *arguments)

    monkeypatch.setattr(Cursor, "read", failing)
    fails.number = 1
    assert [tp for tp, _ in consumer.poll(0).fetched] == TPS[:1]
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="too many open files"):
            consumer.poll(0)
    fails.number = None
    assert sorted(tp for tp, records in consumer.poll(0).fetched if records) == TPS[1:]


def test_what_was_taken_before_a_partition_could_not_be_is_told(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, take = OutOfFiles(), Lease.take.__func__  # type: ignore[attr-defined]

    def failing(cls: type[Lease], *arguments: Any) -> Lease | None:
        fails.maybe(arguments[4])
        lease: Lease | None = take(cls, *arguments)
        return lease

    monkeypatch.setattr(Lease, "take", classmethod(failing))
    fails.number = 1
    assert consumer.poll(0).assigned == {TPS[0]: Committed(0)}
    with pytest.raises(BrokerUnavailable, match="too many open files"):
        consumer.poll(0)
    fails.number = None
    told: dict[TopicPartition, Committed] = {}
    while len(told) < 2:
        polled = consumer.poll(5)
        told |= polled.assigned
    assert told == dict.fromkeys(TPS[1:], Committed(0))

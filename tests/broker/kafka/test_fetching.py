"""What librdkafka brings, sorted: records, and errors among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import frozen
from confluent_kafka import KafkaError

from taskq.broker.kafka.conf import Conf
from taskq.broker.kafka.fetcher import Fetcher, _Ahead
from taskq.broker.port import TopicPartition
from taskq.errors import BrokerUnavailable, TopicNotFound

SINGLE = TopicPartition("single", 0)


@frozen
class Brought:
    """A message of librdkafka's."""

    number: int
    code: int | None = None

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)

    def topic(self) -> str:
        return "single"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.number

    def timestamp(self) -> tuple[int, int]:
        return 1, 1

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"x"

    def headers(self) -> None:
        return None


@contextmanager
def fetching(failed: list[str], out_of_range: Callable[[TopicPartition, int], None] = print) -> Generator[Any]:
    """One that reads nothing by itself."""

    def fails(tp: TopicPartition, error: Exception) -> None:
        failed.append(str(error))
        fetcher.remove([tp])

    fetcher = Fetcher(Conf(("127.0.0.1:1",), {}), threading.Condition(), out_of_range, fails)
    fetcher.close()  # its thread: what that does is called here
    fetcher._ahead[SINGLE] = _Ahead(0, is_read=True)
    yield fetcher


def test_what_came_before_damage_is_read_before_it_is_told() -> None:
    failed: list[str] = []
    with fetching(failed) as fetcher:
        fetcher._sort([*map(Brought, range(100)), Brought(100, KafkaError._BAD_MSG)])
        fetcher._balance()
        assert not failed
        assert len(fetcher.take(SINGLE, 1000)) == 100
        fetcher._balance()
        assert len(failed) == 1
        assert "reading single/0" in failed[0]


def test_what_comes_after_damage_is_not_read_as_if_there_were_none() -> None:
    """librdkafka goes on behind it by itself: in the same breath, or the next."""
    failed: list[str] = []
    with fetching(failed) as fetcher:
        fetcher._sort([Brought(0), Brought(1, KafkaError._BAD_MSG), Brought(5)])
        fetcher._sort([Brought(6)])
        assert [record.offset for record in fetcher.take(SINGLE, 1000)] == [0]
        fetcher._balance()
        assert len(failed) == 1


def test_what_passes_is_no_damage() -> None:
    failed: list[str] = []
    with fetching(failed) as fetcher:
        fetcher._sort([Brought(0), Brought(1, KafkaError.NOT_LEADER_FOR_PARTITION), Brought(1)])
        assert [record.offset for record in fetcher.take(SINGLE, 1000)] == [0, 1]
        fetcher._balance()
        assert not failed


@pytest.mark.parametrize("why", [BrokerUnavailable, TopicNotFound])
def test_where_to_go_on_is_asked_until_somebody_can_say(why: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is no such topic may be what one broker says that has not heard of it yet."""
    asked: list[int] = []

    def ask(tp: TopicPartition, position: int) -> None:
        asked.append(position)
        if len(asked) < 3:
            raise why("not now")
        fetcher.restart(tp, 7)

    monkeypatch.setattr("taskq.broker.kafka.fetcher.SEEK_AGAIN_S", 0.0)
    with fetching([], ask) as fetcher:
        fetcher._sort([Brought(0, KafkaError._AUTO_OFFSET_RESET)])
        for _ in range(5):
            fetcher._balance()
        assert asked == [0, 0, 0]
        assert fetcher._ahead[SINGLE].position == 7


def test_what_nobody_could_say_of_an_earlier_time_means_nothing_for_a_later() -> None:
    """While it was asked, the partition went and came back, at an offset that is there."""

    def ask(tp: TopicPartition, _: int) -> None:
        fetcher.restart(tp, 900)
        raise BrokerUnavailable("away")

    with fetching([], ask) as fetcher:
        fetcher._sort([Brought(0, KafkaError._AUTO_OFFSET_RESET)])
        fetcher._balance()
        assert not fetcher.is_out_of_range(SINGLE, 900)
        assert not fetcher._ahead[SINGLE].is_out_of_range

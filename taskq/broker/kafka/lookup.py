"""Questions about offsets, which an admin client answers."""

# What the client's documentation imports from confluent_kafka.admin is not re-exported as type checkers want it.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

from attrs import frozen
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import UNKNOWN_TOPIC, code_of
from taskq.broker.kafka.topics import Topics
from taskq.broker.port import PartitionBounds, TopicPartition
from taskq.config import check_topic
from taskq.errors import BrokerUnavailable, TaskqError, TopicNotFound

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

AGAIN_S: Final = 0.1

_Answer = TypeVar("_Answer")


@frozen
class Lookup:
    """Threads share it."""

    conf: Conf
    topics: Topics
    client: Callable[[], AdminClient]

    def check(self, tp: TopicPartition) -> None:
        """Raise TopicNotFound for what no broker can have."""
        check_topic(tp.topic)
        if tp.partition < 0:
            raise TopicNotFound(f"there is no {tp} on {self.conf.shown}")

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        return self.all_bounds([tp])[tp]

    def all_bounds(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, PartitionBounds]:
        """Of all of them at once. TopicNotFound if one is not there."""
        starts, ends = self._offsets(dict.fromkeys(tps, _EARLIEST), dict.fromkeys(tps, _LATEST))
        return {tp: PartitionBounds(starts[tp], ends[tp]) for tp in tps}

    def starts(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where these of one topic begin. Of those without a leader nobody knows: 0. TopicNotFound if one is not there.

        They are not waited for, so that all others can be read."""
        led = self.topics.led(tps[0].topic)
        if any(tp.partition not in led for tp in tps):
            raise TopicNotFound(f"there is not all of {', '.join(map(str, tps))} on {self.conf.shown}")
        (found,) = self._offsets({tp: _EARLIEST for tp in tps if led[tp.partition]})
        return {tp: found.get(tp, 0) for tp in tps}

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        """The earliest offset whose record is not older; the end if there is none."""
        (found,) = self._offsets({tp: OffsetSpec.for_timestamp(max(0, timestamp_ms))})
        return self.bounds(tp).end if found[tp] < 0 else found[tp]

    def purge(self, below: Mapping[TopicPartition, int]) -> None:
        """Remove what is below these offsets. That it fails is no harm: it is tried again with the next."""
        wanted = [KafkaPartition(*tp, offset) for tp, offset in below.items()]
        for future in self.client().delete_records(wanted, **self.topics.within()).values():
            future.add_done_callback(_tell)

    def patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """What it answers. It is asked again while it raises BrokerUnavailable, for as long as that may take: leaders
        move, and brokers that have just begun load first what they know of groups."""
        deadline = time.monotonic() + self.conf.patience_s
        while True:
            self.client()  # what is closed says so at once
            try:
                return ask()
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(AGAIN_S)

    def _offsets(self, *asked: Mapping[TopicPartition, OffsetSpec]) -> list[dict[TopicPartition, int]]:
        """The answers to each of these, which are asked for at once."""

        def ask() -> list[dict[TopicPartition, int]]:
            client = self.client()
            futures = [
                client.list_offsets({KafkaPartition(*tp): spec for tp, spec in specs.items()}, **self.topics.within())
                for specs in asked
            ]
            return [self._answers(one) for one in futures]

        return self.patiently(ask)

    def _answers(self, asked: Mapping[KafkaPartition, Future[ListOffsetsResultInfo]]) -> dict[TopicPartition, int]:
        answers = {}
        for one in asked:
            tp = TopicPartition(one.topic, one.partition)
            try:
                answers[tp] = int(self.topics.answer(asked, one).offset)
            except KafkaException as error:
                raise self._meaning(error, tp) from error
        return answers

    def _meaning(self, error: KafkaException, tp: TopicPartition) -> TaskqError:
        """librdkafka says the same of a partition that is not there and of one that has no leader just now."""
        found = self.topics.look(tp.topic)
        if found is None or tp.partition >= len(found.partitions):
            return TopicNotFound(f"there is no {tp} on {self.conf.shown}")
        told = self.conf.meaning(error, f"looking at {tp}")
        passes = code_of(error) in UNKNOWN_TOPIC or code_of(error) == KafkaError._NOENT
        return BrokerUnavailable(str(told)) if passes else told


def _tell(future: Future[object]) -> None:
    error = future.exception()
    if error is not None:
        log.debug("what is finished could not be removed: %s", error)

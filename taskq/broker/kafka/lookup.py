"""Questions about offsets, which an admin client answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

from attrs import frozen
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import code_of, meaning
from taskq.broker.kafka.topics import Topics
from taskq.broker.port import PartitionBounds, TopicPartition
from taskq.config import check_topic
from taskq.errors import BrokerUnavailable, TaskqError, TopicNotFound

_EARLIEST: Final = OffsetSpec.earliest()
_LATEST: Final = OffsetSpec.latest()

Asked = Mapping[KafkaPartition, Future[ListOffsetsResultInfo]]


@frozen
class Lookup:
    """Threads share it."""

    conf: Conf
    topics: Topics
    client: Callable[[], AdminClient]
    stats: Callable[[str], object] | None

    def check(self, tp: TopicPartition) -> None:
        """Raise TopicNotFound for what no broker can have."""
        check_topic(tp.topic)
        if tp.partition < 0:
            raise TopicNotFound(f"there is no {tp} on {self.conf.shown}")

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        return self.all_bounds([tp])[tp]

    def all_bounds(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, PartitionBounds]:
        """Of all of them at once. TopicNotFound if one is not there."""
        client = self.client()
        asked = [self._ask(client, dict.fromkeys(tps, spec)) for spec in (_EARLIEST, _LATEST)]
        starts, ends = (self._answers(futures) for futures in asked)
        return {tp: PartitionBounds(starts[tp], ends[tp]) for tp in tps}

    def starts(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: bounds.start for tp, bounds in self.all_bounds(tps).items()}

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        """The earliest offset whose record is not older; the end if there is none."""
        spec = OffsetSpec.for_timestamp(max(0, timestamp_ms))
        offset = self._answers(self._ask(self.client(), {tp: spec}))[tp]
        return self.bounds(tp).end if offset < 0 else offset

    def purge(self, below: Mapping[TopicPartition, int]) -> None:
        """Remove what is below these offsets. That it fails is no harm: it is tried again with the next."""
        wanted = [KafkaPartition(*tp, offset) for tp, offset in below.items()]
        for future in self.client().delete_records(wanted, **self.topics.within()).values():
            future.add_done_callback(_tell)

    def _ask(self, client: AdminClient, specs: Mapping[TopicPartition, OffsetSpec]) -> Asked:
        return client.list_offsets({KafkaPartition(*tp): spec for tp, spec in specs.items()}, **self.topics.within())

    def _answers(self, asked: Asked) -> dict[TopicPartition, int]:
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
        told = meaning(error, f"looking at {tp} of {self.conf.shown}")
        return BrokerUnavailable(str(told)) if code_of(error) == KafkaError._NOENT else told  # noqa: SLF001 - public


def _tell(future: Future[object]) -> None:
    error = future.exception()
    if error is not None:
        log.debug("what is finished could not be removed: %s", error)

"""Topics and groups, as people and the exporter see them."""

# What the client's documentation imports from confluent_kafka.admin is not re-exported as type checkers want it.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from taskq.broker.kafka.consumer import metadata_of
from taskq.broker.kafka.errors import UNKNOWN_TOPIC, code_of
from taskq.broker.kafka.lookup import Lookup
from taskq.broker.kafka.topics import altered, as_ours
from taskq.broker.limits import check_partitions
from taskq.broker.port import (
    PARTITIONS_DEFAULT,
    Committed,
    GroupDescription,
    TopicDescription,
    TopicPartition,
)
from taskq.config import check_new_topic
from taskq.errors import ConfigError
from taskq.topics import TopicSettings, parse_settings


class KafkaAdmin:
    """See `taskq.broker.port.Admin`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._topics = lookup.topics
        self._client = lookup.client
        self._shown = lookup.conf.shown

    def topics(self) -> list[str]:
        return self._topics.names()

    def partitions(self, topic: str) -> int:
        return len(self._topics.find(topic).partitions)

    def create_topic(
        self, topic: str, partitions: int = PARTITIONS_DEFAULT, *, replication: int = -1, **settings: int | str
    ) -> None:
        check_new_topic(topic)
        check_partitions(topic, partitions)
        parsed = parse_settings(settings)
        found = self._topics.look(topic)
        if found is not None:
            raise ConfigError(f"topic {topic!r} exists already, with {len(found.partitions)} partitions")
        self._topics.create(topic, partitions, replication, parsed)

    def alter_topic(self, topic: str, partitions: int | None = None, **settings: int | str) -> None:
        there_are = self.partitions(topic)
        changes = altered(topic, parse_settings(settings))
        if partitions is not None:
            check_partitions(topic, partitions)
            if partitions < there_are:
                raise ConfigError(f"topic {topic!r} has {there_are} partitions and can't have fewer")
        wanted = partitions or there_are
        if wanted > there_are:  # refused before any setting is changed
            self._grow(topic, wanted, validate_only=True)
        if changes:
            entries = [
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in changes.items()
            ]
            resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
            self._do(self._client().incremental_alter_configs([resource], **self._topics.within()), resource, topic)
        if wanted > there_are:
            self._grow(topic, wanted)
            self._topics.wait_for(topic, wanted)

    def delete_topic(self, topic: str) -> None:
        self._topics.find(topic)
        self._do(self._client().delete_topics([topic], **self._topics.within()), topic, topic)
        self._topics.wait_until_gone(topic)

    def describe_topic(self, topic: str) -> TopicDescription:
        count = self.partitions(topic)
        bounds = self._lookup.all_bounds([TopicPartition(topic, number) for number in range(count)])
        settings = TopicSettings(**as_ours(self._topics.settings(topic)))  # type: ignore[arg-type]
        return TopicDescription(topic, tuple(bounds.values()), (), settings)

    def groups(self) -> list[str]:
        """Kafka keeps groups that have neither for a while: those are left out, which takes a question for each."""
        described = {name: self.describe_group(name) for name in self._lookup.patiently(self._list_groups)}
        return sorted(name for name, group in described.items() if group.members or group.committed)

    def _list_groups(self) -> list[str]:
        futures = {"": self._client().list_consumer_groups(**self._topics.within())}
        try:
            listed = self._topics.answer(futures, "")
            loading = [one for one in listed.errors if one.code() == KafkaError.COORDINATOR_LOAD_IN_PROGRESS]
            if loading or (listed.errors and not listed.valid):  # else what the others tell is worth more than an error
                raise KafkaException((loading or listed.errors)[0])
        except KafkaException as error:
            raise self._lookup.conf.meaning(error, "listing the groups") from error
        return [str(one.group_id) for one in listed.valid]

    def describe_group(self, group: str) -> GroupDescription:
        return self._lookup.patiently(lambda: self._describe(group))

    def _describe(self, group: str) -> GroupDescription:
        members: dict[str, tuple[str, ...]] = {}
        owners: dict[TopicPartition, str] = {}
        try:
            futures = self._client().describe_consumer_groups([group], **self._topics.within())
            for member in self._topics.answer(futures, group).members:
                held = [TopicPartition(one.topic, one.partition) for one in member.assignment.topic_partitions]
                members[str(member.member_id)] = tuple(sorted({tp.topic for tp in held}))
                owners |= dict.fromkeys(held, str(member.member_id))
        except KafkaException as error:
            if code_of(error) != KafkaError.GROUP_ID_NOT_FOUND:
                raise self._lookup.conf.meaning(error, f"describing group {group}") from error
        return GroupDescription(group, members, owners, self._committed(group))

    def close(self) -> None:
        """Nothing is held: the client belongs to the broker."""

    def _committed(self, group: str) -> Mapping[TopicPartition, Committed]:
        futures = self._client().list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group)], **self._topics.within()
        )
        try:
            found = self._topics.answer(futures, group).topic_partitions
        except KafkaException as error:
            if code_of(error) == KafkaError.GROUP_ID_NOT_FOUND:
                return {}
            raise self._lookup.conf.meaning(error, f"describing group {group}") from error
        return {
            TopicPartition(one.topic, one.partition): Committed(one.offset, metadata_of(one))
            for one in found
            if one.offset >= 0
        }

    def _grow(self, topic: str, partitions: int, *, validate_only: bool = False) -> None:
        asked, within = [NewPartitions(topic, partitions)], self._topics.within()
        self._do(self._client().create_partitions(asked, validate_only=validate_only, **within), topic, topic)

    def _do(self, futures: Mapping[Any, Future[Any]], key: object, topic: str) -> None:
        try:
            self._topics.answer(futures, key)
        except KafkaException as error:
            if code_of(error) in UNKNOWN_TOPIC:
                raise self._topics.missing(topic) from None
            raise self._lookup.conf.meaning(error, f"changing topic {topic!r}") from error

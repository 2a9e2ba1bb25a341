"""Topics on Kafka: looking them up, and creating what is not there, as configured."""

# What the client's documentation imports from confluent_kafka.admin is not re-exported as type checkers want it.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType, TopicDescription

from taskq.broker.kafka.conf import ENVELOPE_BYTES_MAX, Conf
from taskq.broker.kafka.errors import UNKNOWN_TOPIC, code_of
from taskq.broker.limits import check_partitions
from taskq.broker.port import MESSAGE_BYTES_MAX
from taskq.config import check_topic, did_you_mean
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound
from taskq.topics import DEAD, DELAY, INTERNAL, TopicConfig, own_config, settings_for

LOOK_S: Final = 0.05
"""How often to look whether a new topic is there."""

SPREAD_S: Final = 5.0
"""How long it may take until all brokers have heard of a topic. Any of them may be asked."""

ANSWER_TURN_S: Final = 0.1

REFUSED_S: Final = 1.0
"""How long to ask on though a broker has refused the client: one that is just starting may do that."""

GONE_LOOKS: Final = 3
"""How often in a row a deleted topic must not be seen, whichever broker is asked."""

_NAMES: Final = {
    "retention_ms": "retention.ms",
    "retention_bytes": "retention.bytes",
    "segment_bytes": "segment.bytes",
    "segment_ms": "segment.ms",
    "cleanup_policy": "cleanup.policy",
    "delete_retention_ms": "delete.retention.ms",
}
"""Kafka has these too. It has no `unfinished`: it does not ask whether a group has finished what it removes."""


class Topics:
    """What a broker's parts know of topics. Threads share it."""

    def __init__(
        self,
        conf: Conf,
        client: Callable[[], AdminClient],
        partitions_default: int,
        replication: int,
        configured: Mapping[str, TopicConfig],
    ) -> None:
        for topic, config in configured.items():  # what can't be is told before anything is published
            as_kafka(topic, config.settings)
        self._conf = conf
        self._client = client
        self._partitions_default = partitions_default
        self._replication = replication
        self._configured = configured
        self._there: set[str] = set()
        """Seen, or made."""
        self._new: dict[str, float] = {}
        """Made here: until when (monotonic) a broker may not have heard of it."""

    def ensure(self, topic: str) -> None:
        """Create it if it is not there."""
        if topic in self._there:
            return
        check_topic(topic)
        if self.look(topic) is None:  # others may find the same meanwhile: one is quicker
            config = self._configured.get(topic) or TopicConfig()
            own = own_config(topic)
            partitions = config.partitions or own.partitions or self._partitions_default
            self.create(topic, partitions, config.replication, {**own.settings, **config.settings})
        self._there.add(topic)

    def forget(self, topic: str) -> None:
        """It may have been deleted."""
        self._there.discard(topic)

    def look(self, topic: str) -> TopicDescription | None:
        """The topic, if it is there."""
        while True:
            found = self._ask(topic)
            if found is not None or time.monotonic() > self._new.get(topic, 0.0):
                return found
            time.sleep(LOOK_S)

    def _ask(self, topic: str) -> TopicDescription | None:
        """What one broker knows."""
        try:
            found = self._client().describe_topics(TopicCollection([topic]), **self.within())
            return self.answer(found, topic)  # type: ignore[no-any-return]
        except KafkaException as error:
            if code_of(error) in UNKNOWN_TOPIC:
                return None
            raise self._conf.meaning(error, f"looking for topic {topic!r}") from error

    def find(self, topic: str) -> TopicDescription:
        """The topic. TopicNotFound if it is not there, with the names of those that are."""
        found = self.look(check_topic(topic))
        if found is None:
            raise self.missing(topic)
        return found

    def led(self, topic: str) -> dict[int, bool]:
        """Its partitions, and whether they have a leader."""
        return {one.id: _leader(one) >= 0 for one in self.find(topic).partitions}

    def missing(self, topic: str) -> TopicNotFound:
        return TopicNotFound(f"there is no topic {topic!r} on {self._conf.shown}{did_you_mean(topic, self.names())}")

    def names(self) -> list[str]:
        """Of all topics but those that Kafka keeps for itself."""
        while True:
            with self._conf.telling("listing the topics"):
                topics = self._client().list_topics(timeout=self._conf.patience_s).topics
            now = time.monotonic()
            if all(name in topics for name, until in list(self._new.items()) if now < until):
                return sorted(name for name in topics if not name.startswith("__") or name.startswith(INTERNAL))
            time.sleep(LOOK_S)

    def create(self, topic: str, partitions: int, replication: int, settings: Mapping[str, int | str]) -> None:
        """Create a topic and wait until it can be used. Nothing happens if another is just creating it."""
        check_partitions(topic, partitions)
        wanted = NewTopic(
            topic,
            num_partitions=partitions,
            replication_factor=self._replication if replication < 0 else replication,
            config=as_kafka(topic, settings),
        )
        try:
            self.answer(self._client().create_topics([wanted], **self.within()), topic)
        except KafkaException as error:
            if code_of(error) == KafkaError.TOPIC_ALREADY_EXISTS:  # somebody else was quicker
                partitions = 1
            else:
                raise self._conf.meaning(error, f"creating topic {topic!r}") from error
        self._new[topic] = time.monotonic() + SPREAD_S
        self.wait_for(topic, partitions)

    def wait_for(self, topic: str, partitions: int) -> None:
        """Until it can be used, with so many partitions."""
        self._wait(topic, lambda found: _can_be_used(found, partitions), "has no leaders yet")

    def wait_until_gone(self, topic: str) -> None:
        self.forget(topic)
        self._new.pop(topic, None)
        unseen = 0

        def is_gone(found: TopicDescription | None) -> bool:
            nonlocal unseen
            unseen = unseen + 1 if found is None else 0
            return unseen >= GONE_LOOKS

        self._wait(topic, is_gone, "is still there, though it was deleted")

    def _wait(self, topic: str, is_well: Callable[[TopicDescription | None], bool], what: str) -> None:
        deadline = time.monotonic() + self._conf.patience_s
        while not is_well(self._ask(topic)):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"topic {topic!r} on {self._conf.shown} {what}")
            time.sleep(LOOK_S)

    def settings(self, topic: str) -> dict[str, str]:
        """What the brokers say of it, by Kafka's names."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        while True:
            try:
                entries = self.answer(self._client().describe_configs([resource], **self.within()), resource)
                return {name: entry.value for name, entry in entries.items()}
            except KafkaException as error:
                if code_of(error) not in UNKNOWN_TOPIC or time.monotonic() > self._new.get(topic, 0.0):
                    raise self._conf.meaning(error, f"describing topic {topic!r}") from error
            time.sleep(LOOK_S)

    def within(self) -> dict[str, float]:
        """How long an admin client may take."""
        return {"request_timeout": self._conf.patience_s}

    def answer(self, futures: Mapping[Any, Future[Any]], key: Any) -> Any:
        """The answer of an admin client. Asks again by waiting only: it has tried for `patience_s` by itself.

        Brokers that let nobody in say so to the client, which goes on trying: that is told in `REFUSED_S`.
        """
        began = time.monotonic()
        while (waited_s := time.monotonic() - began) < self._conf.patience_s + 5:
            try:
                answer = futures[key].result(ANSWER_TURN_S)
                self._conf.refusals.let_in()
                return answer
            except TimeoutError:
                self._client().poll(0)
            refusal = self._conf.refusals.since(began)
            if refusal is not None and waited_s > REFUSED_S:
                raise self._conf.meaning(refusal, "asking for anything")
        raise BrokerUnavailable(f"no answer from {self._conf.shown} in {self._conf.patience_s:.0f} s")


def as_kafka(topic: str, settings: Mapping[str, int | str]) -> dict[str, str]:
    """The configuration of a new topic.

    All is said in full, so that a topic is the same whatever the defaults of the brokers are. Kafka can't keep a record
    until all groups have finished it. What waits on the ladder of delays is therefore kept for ever, and removed by the
    one group that reads it (`purges`); for all other topics it is their retention that counts.
    """
    if settings.get("unfinished") == "keep":
        raise ConfigError(
            f"topic {topic!r} can't have unfinished = 'keep' on Kafka, which removes records by age and size alone. "
            "Give it a retention_ms longer than any backlog (or -1), and leave `unfinished` out"
        )
    whole = settings_for(topic, settings)
    if topic.endswith(DEAD) and (whole.retention_ms, whole.retention_bytes) != (-1, -1):
        raise ConfigError(
            f"topic {topic!r} can't have a retention on Kafka, which does not ask whether somebody has retried or "
            "purged what it removes: leave retention_ms and retention_bytes at -1"
        )
    config = {kafka: str(getattr(whole, ours)) for ours, kafka in _NAMES.items()}
    if purges(topic):
        config["retention.ms"] = "-1"
    config["max.message.bytes"] = str(ENVELOPE_BYTES_MAX)
    assert ENVELOPE_BYTES_MAX > MESSAGE_BYTES_MAX
    return config


def altered(topic: str, settings: Mapping[str, int | str]) -> dict[str, str]:
    """Settings that are to change, by Kafka's names."""
    as_kafka(topic, settings)
    return {_NAMES[name]: str(value) for name, value in settings.items() if name in _NAMES}


def as_ours(config: Mapping[str, str]) -> dict[str, int | str]:
    """The settings of a topic, by our names. What is removed is not asked for: `unfinished` is "delete"."""
    ours: dict[str, int | str] = {"unfinished": "delete"}
    for name, kafka in _NAMES.items():
        if kafka in config:
            ours[name] = int(config[kafka]) if name != "cleanup_policy" else _policy(config[kafka])
    return ours


def _policy(said: str) -> str:
    """Others' topics may have both, or none. What counts here is whether records need keys."""
    return "compact" if "compact" in said else "delete"


def purges(topic: str) -> bool:
    """Whether the group that reads it removes what it has finished: only one group does, and nobody looks back."""
    return topic.startswith(DELAY)


def _can_be_used(found: TopicDescription | None, partitions: int) -> bool:
    """Whether there are so many partitions, and each has a leader."""
    if found is None or len(found.partitions) < partitions:
        return False
    return all(_leader(one) >= 0 for one in found.partitions)


def _leader(partition: Any) -> int:
    """The node that leads it, or -1. The client's types say that there always is one."""
    return -1 if partition.leader is None else int(partition.leader.id)

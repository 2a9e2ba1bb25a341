"""What the broker in memory consists of: plain lists and dicts under one lock. See memory.py."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from threading import Condition

from attrs import define, field

from taskq.broker.assignment import assign
from taskq.broker.limits import check_partitions
from taskq.broker.partitioner import Spread, partition_for_key, spread_for
from taskq.broker.port import Committed, Message, Record, TopicPartition, WouldBlock
from taskq.config import check_topic
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound
from taskq.topics import TopicConfig, own_config, settings_for


@define
class Log:
    """A partition."""

    records: list[Record] = field(factory=list)
    """The first one has the offset `start`."""
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def read(self, offset: int) -> list[Record]:
        """All from `offset` on."""
        return self.records[max(0, offset - self.start) :]

    def begin_at(self, start: int) -> None:
        """Remove what is below `start`."""
        start = min(max(start, self.start), self.end)
        del self.records[: start - self.start]
        self.start = start


@define(eq=False)
class Topic:
    """A topic. One that is made anew is another."""

    partitions: list[Log]
    spread: Spread
    given: dict[str, int | str]
    """The settings that were said."""


@define
class Group:
    """A group."""

    members: dict[str, tuple[str, ...]] = field(factory=dict)
    owners: dict[TopicPartition, str] = field(factory=dict)
    """Who has what: one at a time."""
    due: dict[TopicPartition, str] = field(factory=dict)
    """Who should have what. Computed when a member comes or goes."""
    committed: dict[TopicPartition, Committed] = field(factory=dict)


@define
class State:
    """All topics and groups. `changed` guards them, and is notified when anything changes."""

    partitions_default: int
    configured: Mapping[str, TopicConfig]
    changed: Condition = field(factory=Condition)
    topics: dict[str, Topic] = field(factory=dict)
    groups: dict[str, Group] = field(factory=dict)
    member_numbers: Iterator[int] = field(factory=lambda: count(1))
    is_closed: bool = False

    @contextmanager
    def locked(self, *, wait: bool = True) -> Generator[None]:
        if not self.changed.acquire(blocking=wait):
            raise WouldBlock
        try:
            if self.is_closed:
                raise BrokerUnavailable("the broker at memory: has been closed by this process; open it again")
            yield
        finally:
            self.changed.release()

    def find(self, name: str) -> Topic:
        if name not in self.topics:
            raise TopicNotFound(f"there is no topic {name!r} in memory; there are: {', '.join(sorted(self.topics))}")
        return self.topics[name]

    def find_partition(self, tp: TopicPartition) -> Log:
        partitions = self.find(tp.topic).partitions
        if not 0 <= tp.partition < len(partitions):
            raise TopicNotFound(f"topic {tp.topic!r} has partitions 0 to {len(partitions) - 1}, not {tp.partition}")
        return partitions[tp.partition]

    def ensure(self, name: str) -> Topic:
        if name not in self.topics:
            config = self.configured.get(name) or own_config(name)
            self.create(name, config.partitions or self.partitions_default, dict(config.settings))
        return self.topics[name]

    def create(self, name: str, partitions: int, given: dict[str, int | str]) -> None:
        check_topic(name)
        check_partitions(name, partitions)
        policy = settings_for(name, given).cleanup_policy
        self.topics[name] = Topic([Log() for _ in range(partitions)], spread_for(name, partitions, policy), given)
        self.reassign_all(name)

    def alter(self, name: str, partitions: int | None, given: dict[str, int | str]) -> None:
        topic = self.find(name)
        count = len(topic.partitions) if partitions is None else partitions
        check_partitions(name, count)
        if count < len(topic.partitions):
            raise ConfigError(
                f"topic {name!r} has {len(topic.partitions)} partitions; with {count}, records would be lost"
            )
        topic.given.update(given)
        topic.spread = spread_for(name, count, settings_for(name, topic.given).cleanup_policy)
        if count > len(topic.partitions):
            topic.partitions += [Log() for _ in range(count - len(topic.partitions))]
            self.reassign_all(name)

    def delete(self, name: str) -> None:
        self.find(name)
        del self.topics[name]
        for group in self.groups.values():
            group.owners = {tp: owner for tp, owner in group.owners.items() if tp.topic != name}
            group.committed = {tp: progress for tp, progress in group.committed.items() if tp.topic != name}
        self.reassign_all(name)

    def append(self, topic: str, message: Message) -> tuple[int, int]:
        target = self.ensure(topic)
        value, key, headers = message
        number = target.spread.next() if key is None else partition_for_key(key, len(target.partitions))
        log = target.partitions[number]
        log.records.append(Record(log.end, int(time.time() * 1000), key, value, headers))
        self.changed.notify_all()
        return number, log.end - 1

    def reassign_all(self, topic: str) -> None:
        """After a change of the topic."""
        for group in self.groups.values():
            if any(topic in topics for topics in group.members.values()):
                self.reassign(group)

    def reassign(self, group: Group) -> None:
        topics = {topic for topics in group.members.values() for topic in topics}
        counts = {topic: len(self.topics[topic].partitions) for topic in topics if topic in self.topics}
        group.due = assign(group.members, counts, group.owners)
        self.changed.notify_all()


def size_of(record: Record) -> int:
    """Bytes of its key, value and headers."""
    headers = sum(len(name) + len(text) for name, text in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers

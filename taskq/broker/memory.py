"""The port in RAM: for tests, and the model the other brokers are checked against. Obviously right before fast.

All state is in one object under one lock, so everything happens one after the other. Whatever changes it notifies its
condition, and a poll that has nothing to report waits on that. The lock is reentrant, because a signal handler may call
`wakeup` while the thread it interrupts is publishing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Condition
from types import MappingProxyType

from attrs import define, field

from taskq.broker.assignment import assign
from taskq.broker.limits import check_partitions, check_progress, check_size
from taskq.broker.partitioner import Spread, partition_for_key
from taskq.broker.port import (
    PARTITIONS_DEFAULT,
    Committed,
    Fetched,
    GroupDescription,
    Headers,
    Lost,
    Message,
    PartitionBounds,
    Polled,
    Record,
    TopicDescription,
    TopicPartition,
    WouldBlock,
)
from taskq.config import check_group, check_topic
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound

KEEP_S = 5.0
"""How long a partition that its owner would not let go is left alone before asking again."""


@define
class _Topic:
    partitions: list[list[Record]]
    """A record's offset is its index."""
    spread: Spread


@define
class _Group:
    members: dict[str, tuple[str, ...]] = field(factory=dict)
    owners: dict[TopicPartition, str] = field(factory=dict)
    """Who has what: one at a time."""
    due: dict[TopicPartition, str] = field(factory=dict)
    """Who should have what. Computed when a member comes or goes."""
    committed: dict[TopicPartition, Committed] = field(factory=dict)


@define
class _State:
    """All topics and groups. `changed` guards them, and is notified when anything changes."""

    partitions_default: int
    partitions: Mapping[str, int]
    changed: Condition = field(factory=Condition)
    topics: dict[str, _Topic] = field(factory=dict)
    groups: dict[str, _Group] = field(factory=dict)
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

    def find(self, name: str) -> _Topic:
        if name not in self.topics:
            raise TopicNotFound(f"there is no topic {name!r} in memory; there are: {', '.join(sorted(self.topics))}")
        return self.topics[name]

    def find_partition(self, tp: TopicPartition) -> list[Record]:
        partitions = self.find(tp.topic).partitions
        if not 0 <= tp.partition < len(partitions):
            raise TopicNotFound(f"topic {tp.topic!r} has partitions 0 to {len(partitions) - 1}, not {tp.partition}")
        return partitions[tp.partition]

    def ensure(self, name: str) -> _Topic:
        if name not in self.topics:
            self.create(name, self.partitions.get(name, self.partitions_default))
        return self.topics[name]

    def create(self, name: str, partitions: int) -> None:
        check_topic(name)
        check_partitions(name, partitions)
        self.topics[name] = _Topic([[] for _ in range(partitions)], Spread(partitions))

    def append(self, topic: str, message: Message) -> tuple[int, int]:
        target = self.ensure(topic)
        value, key, headers = message
        number = target.spread.next() if key is None else partition_for_key(key, len(target.partitions))
        records = target.partitions[number]
        records.append(Record(len(records), int(time.time() * 1000), key, value, headers))
        self.changed.notify_all()
        return number, len(records) - 1

    def reassign(self, group: _Group) -> None:
        topics = {topic for topics in group.members.values() for topic in topics}
        counts = {topic: len(self.find(topic).partitions) for topic in topics}
        group.due = assign(group.members, counts, group.owners)
        self.changed.notify_all()


class MemoryBroker:
    """See `taskq.broker.port.Broker`. Another MemoryBroker is another, empty broker."""

    url = "memory:"

    def __init__(
        self, partitions_default: int = PARTITIONS_DEFAULT, topics: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._state = _State(partitions_default, topics)

    def producer(self) -> MemoryProducer:
        with self._state.locked():
            return MemoryProducer(self._state)

    def consumer(self, group: str, topics: Sequence[str]) -> MemoryConsumer:
        return MemoryConsumer(self._state, group, topics)

    def reader(self) -> MemoryReader:
        with self._state.locked():
            return MemoryReader(self._state)

    def admin(self) -> MemoryAdmin:
        with self._state.locked():
            return MemoryAdmin(self._state)

    def close(self) -> None:
        with self._state.changed:
            self._state.is_closed = True
            self._state.changed.notify_all()


class MemoryProducer:
    """See `taskq.broker.port.Producer`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
    ) -> tuple[int, int]:
        check_size(topic, value, key, headers)
        with self._state.locked(wait=wait):
            return self._state.append(topic, Message(value, key, headers))

    def send_many(self, topic: str, messages: Sequence[Message]) -> None:
        for value, key, headers in messages:
            check_size(topic, value, key, headers)
        with self._state.locked():
            self._state.ensure(topic)
            for message in messages:
                self._state.append(topic, message)

    def close(self) -> None:
        """Nothing is held."""


@define
class _Held:
    """A partition that a consumer has."""

    position: int
    """Offset of the next record to fetch."""
    is_paused: bool = False
    is_revoking: bool = False
    keep_until: float = 0.0
    """Not to be asked for before (monotonic clock)."""


class MemoryConsumer:
    """See `taskq.broker.port.Consumer`."""

    def __init__(self, state: _State, group: str, topics: Sequence[str]) -> None:
        check_group(group)
        self._state = state
        self._held: dict[TopicPartition, _Held] = {}
        self._is_woken = False
        self._is_closed = False
        with state.locked():
            for topic in topics:
                state.ensure(topic)
            self.member_id = f"member-{next(state.member_numbers)}"
            self._group = state.groups.setdefault(group, _Group())
            self._group.members[self.member_id] = tuple(dict.fromkeys(topics))
            state.reassign(self._group)

    def poll(self, timeout: float, records_max: int = 4096) -> Polled:
        deadline = time.monotonic() + timeout
        with self._state.locked():
            while True:
                self._check_open()
                now = time.monotonic()
                polled = self._look(now, records_max)
                if polled is not None or self._is_woken or now >= deadline:
                    self._is_woken = False
                    return polled or Polled()
                kept = [held.keep_until for held in self._held.values() if held.keep_until > now]
                self._state.changed.wait(min([deadline, *kept]) - now)

    def wakeup(self) -> None:
        with self._state.changed:
            self._is_woken = True
            self._state.changed.notify_all()

    def pause(self, tps: Sequence[TopicPartition]) -> None:
        self._set_paused(tps, is_paused=True)

    def resume(self, tps: Sequence[TopicPartition]) -> None:
        self._set_paused(tps, is_paused=False)

    def commit(self, progress: Mapping[TopicPartition, Committed]) -> None:
        for tp, committed in progress.items():
            check_progress(tp, committed)
        with self._state.locked():
            self._group.committed.update({tp: committed for tp, committed in progress.items() if tp in self._held})

    def release(self, tps: Sequence[TopicPartition]) -> None:
        with self._state.locked():
            self._give_up(tps)

    def keep(self, tps: Sequence[TopicPartition]) -> None:
        with self._state.locked():
            for tp in tps:
                self._held[tp].is_revoking = False
                self._held[tp].keep_until = time.monotonic() + KEEP_S

    def leave(self) -> None:
        with self._state.locked():
            self._leave()

    def close(self) -> None:
        with self._state.changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._give_up(list(self._held))
            self._leave()

    # -- all of these with the lock held

    def _check_open(self) -> None:
        if self._state.is_closed or self._is_closed:
            raise BrokerUnavailable(f"the consumer {self.member_id} has been closed")

    def _look(self, now: float, records_max: int) -> Polled | None:
        """What there is to report; None if nothing."""
        due = {tp for tp, member in self._group.due.items() if member == self.member_id}
        assigned = {tp: self._take(tp) for tp in sorted(due - self._group.owners.keys())}
        revoking = set()
        for tp, held in self._held.items():
            if tp in due:
                held.is_revoking = False
            elif not held.is_revoking and now >= held.keep_until:
                held.is_revoking = True
                revoking.add(tp)
        if assigned or revoking:
            return Polled(assigned=assigned, revoking=frozenset(revoking))
        fetched = self._fetch(records_max)
        return Polled(fetched) if fetched else None

    def _leave(self) -> None:
        if self._group.members.pop(self.member_id, None):
            self._state.reassign(self._group)

    def _take(self, tp: TopicPartition) -> Committed:
        committed = self._group.committed.get(tp, Committed(0))
        self._group.owners[tp] = self.member_id
        self._held[tp] = _Held(committed.offset)
        return committed

    def _give_up(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            del self._held[tp]
            del self._group.owners[tp]
        self._state.changed.notify_all()

    def _fetch(self, records_max: int) -> list[Fetched]:
        fetched: list[Fetched] = []
        for tp, held in list(self._held.items()):
            if records_max > 0 and not held.is_paused and not held.is_revoking:
                records = self._state.find_partition(tp)[held.position : held.position + records_max]
                if records:
                    held.position += len(records)
                    records_max -= len(records)
                    fetched.append(Fetched(tp, records))
        for tp, _ in fetched:
            self._held[tp] = self._held.pop(tp)  # to the end: the others go first next time
        return fetched

    def _set_paused(self, tps: Sequence[TopicPartition], *, is_paused: bool) -> None:
        with self._state.locked():
            for tp in tps:
                self._held[tp].is_paused = is_paused


class MemoryReader:
    """See `taskq.broker.port.Reader`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        with self._state.locked():
            return PartitionBounds(0, len(self._state.find_partition(tp)))

    def read(
        self,
        tp: TopicPartition,
        offset: int,
        bytes_max: int = 1024 * 1024,
        *,
        lost: Callable[[Lost], object] | None = None,
    ) -> list[Record]:
        with self._state.locked():
            found: list[Record] = []
            size = 0
            records = self._state.find_partition(tp)
            for index in range(max(offset, 0), len(records)):
                size += _size(records[index])
                if found and size > bytes_max:
                    break
                found.append(records[index])
            return found

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        with self._state.locked():
            records = self._state.find_partition(tp)
            return next((one.offset for one in records if one.timestamp_ms >= timestamp_ms), len(records))

    def close(self) -> None:
        """Nothing is held."""


class MemoryAdmin:
    """See `taskq.broker.port.Admin`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def topics(self) -> list[str]:
        with self._state.locked():
            return sorted(self._state.topics)

    def partitions(self, topic: str) -> int:
        with self._state.locked():
            return len(self._state.find(topic).partitions)

    def create_topic(self, topic: str, partitions: int = PARTITIONS_DEFAULT) -> None:
        with self._state.locked():
            if topic in self._state.topics:
                there_are = len(self._state.topics[topic].partitions)
                raise ConfigError(f"topic {topic!r} exists already, with {there_are} partitions")
            self._state.create(topic, partitions)

    def describe_topic(self, topic: str) -> TopicDescription:
        with self._state.locked():
            partitions = self._state.find(topic).partitions
            return TopicDescription(
                topic,
                tuple(PartitionBounds(0, len(records)) for records in partitions),
                tuple(sum(map(_size, records)) for records in partitions),
            )

    def groups(self) -> list[str]:
        with self._state.locked():
            return sorted(name for name, group in self._state.groups.items() if group.members or group.committed)

    def describe_group(self, group: str) -> GroupDescription:
        with self._state.locked():
            found = self._state.groups.get(group, _Group())
            return GroupDescription(group, dict(found.members), dict(found.owners), dict(found.committed))

    def close(self) -> None:
        """Nothing is held."""


def _size(record: Record) -> int:
    headers = sum(len(name) + len(text) for name, text in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers

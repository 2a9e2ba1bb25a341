"""The port in RAM: for tests, and the model the other brokers are checked against. Obviously right before fast.

All state is in one object under one lock, so everything happens one after the other. Whatever changes it notifies its
condition, and a poll that has nothing to report waits on that. The lock is reentrant, because a signal handler may call
`wakeup` while the thread it interrupts is publishing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from attrs import define

from taskq.broker.following import LookingFollower
from taskq.broker.limits import check_progress, check_size
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
)
from taskq.broker.ram import Group, Log, State, size_of
from taskq.config import check_group, check_new_topic, check_topic
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError, OffsetOutOfRange
from taskq.topics import TopicConfig, parse_settings, settings_for

KEEP_S = 5.0
"""How long a partition that its owner would not let go is left alone before asking again."""


class MemoryBroker:
    """See `taskq.broker.port.Broker`. Another MemoryBroker is another, empty broker."""

    url = "memory:"

    def __init__(
        self, partitions_default: int = PARTITIONS_DEFAULT, topics: Mapping[str, TopicConfig] = MappingProxyType({})
    ) -> None:
        self._state = State(partitions_default, topics)

    is_remote = False

    @property
    def unsynced_s(self) -> float:
        return 0.0

    def producer(self) -> MemoryProducer:
        with self._state.locked():
            return MemoryProducer(self._state)

    def consumer(self, group: str, topics: Sequence[str], *, offset_reset: str = "earliest") -> MemoryConsumer:
        return MemoryConsumer(self._state, group, topics, is_strict=offset_reset == "error")

    def reader(self) -> MemoryReader:
        with self._state.locked():
            return MemoryReader(self._state)

    def follower(self, tp: TopicPartition, lost: Callable[[Lost], object]) -> LookingFollower:
        return LookingFollower(self.reader(), tp, lost)

    def admin(self) -> MemoryAdmin:
        with self._state.locked():
            return MemoryAdmin(self._state)

    def close(self) -> None:
        with self._state.changed:
            self._state.is_closed = True
            self._state.changed.notify_all()


class MemoryProducer:
    """See `taskq.broker.port.Producer`."""

    def __init__(self, state: State) -> None:
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
            target = self._state.ensure(topic)
            target.spread.split(sum(message.key is None for message in messages))  # refused before any is appended
            for message in messages:
                self._state.append(topic, message)

    def close(self) -> None:
        """Nothing is held."""


@define
class _Held:
    """A partition that a consumer has."""

    log: Log
    """Another one if the topic was deleted and made anew."""
    position: int
    """Offset of the next record to fetch."""
    is_paused: bool = False
    is_revoking: bool = False
    keep_until: float = 0.0
    """Not to be asked for before (monotonic clock)."""


class MemoryConsumer:
    """See `taskq.broker.port.Consumer`."""

    def __init__(self, state: State, group: str, topics: Sequence[str], *, is_strict: bool) -> None:
        check_group(group)
        self._state = state
        self._is_strict = is_strict
        self._held: dict[TopicPartition, _Held] = {}
        self._is_woken = False
        self._is_closed = False
        with state.locked():
            for topic in topics:
                state.ensure(topic)
            self.member_id = f"member-{next(state.member_numbers)}"
            self._group = state.groups.setdefault(group, Group())
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

    def commit(self, progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        for tp, committed in progress.items():
            check_progress(tp, committed)
        with self._state.locked():
            ours = {tp: committed for tp, committed in progress.items() if tp in self._held}
            self._group.committed.update(ours)
        return frozenset(progress.keys() - ours.keys())

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
            for held in self._held.values():
                held.keep_until = 0.0
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
        lost = frozenset(tp for tp, held in self._held.items() if not self._is_there(tp, held.log))
        if lost:
            for tp in lost:
                del self._held[tp]
            return Polled(lost=lost)
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
        skipped, errors = self._skip()
        fetched = self._fetch(records_max)
        return Polled(fetched, errors=errors, skipped=skipped) if fetched or errors or skipped else None

    def _is_there(self, tp: TopicPartition, log: Log) -> bool:
        topic = self._state.topics.get(tp.topic)
        return topic is not None and topic.partitions[tp.partition] is log

    def _skip(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, BrokerError]]:
        """Go past what has been removed, or say that it has."""
        skipped: dict[TopicPartition, int] = {}
        errors: dict[TopicPartition, BrokerError] = {}
        for tp, held in self._held.items():
            missing = held.log.start - held.position
            if missing <= 0 or held.is_paused or held.is_revoking:
                continue
            if self._is_strict:
                held.is_paused = True
                errors[tp] = OffsetOutOfRange(
                    f"{tp}: offset {held.position} is due; the log begins at {held.log.start}"
                )
            else:
                skipped[tp] = missing
                held.position = held.log.start
        return skipped, errors

    def _leave(self) -> None:
        if self._group.members.pop(self.member_id, None):
            self._state.reassign(self._group)

    def _take(self, tp: TopicPartition) -> Committed:
        log = self._state.find_partition(tp)
        committed = self._group.committed.get(tp, Committed(log.start))
        self._group.owners[tp] = self.member_id
        self._held[tp] = _Held(log, committed.offset)
        return committed

    def _give_up(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            if self._is_there(tp, self._held.pop(tp).log):
                del self._group.owners[tp]
        self._state.changed.notify_all()

    def _fetch(self, records_max: int) -> list[Fetched]:
        fetched: list[Fetched] = []
        for tp, held in list(self._held.items()):
            if records_max > 0 and not held.is_paused and not held.is_revoking:
                records = held.log.read(held.position)[:records_max]
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

    def __init__(self, state: State) -> None:
        self._state = state

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        with self._state.locked():
            log = self._state.find_partition(tp)
            return PartitionBounds(log.start, log.end)

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
            for record in self._state.find_partition(tp).read(offset):
                size += size_of(record)
                if found and size > bytes_max:
                    break
                found.append(record)
            return found

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        with self._state.locked():
            log = self._state.find_partition(tp)
            return next((one.offset for one in log.records if one.timestamp_ms >= timestamp_ms), log.end)

    def close(self) -> None:
        """Nothing is held."""


class MemoryAdmin:
    """See `taskq.broker.port.Admin`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def topics(self) -> list[str]:
        with self._state.locked():
            return sorted(self._state.topics)

    def partitions(self, topic: str) -> int:
        with self._state.locked():
            return len(self._state.find(topic).partitions)

    def create_topic(
        self, topic: str, partitions: int = PARTITIONS_DEFAULT, *, replication: int = -1, **settings: int | str
    ) -> None:
        with self._state.locked():
            if topic in self._state.topics:
                there_are = len(self._state.topics[topic].partitions)
                raise ConfigError(f"topic {topic!r} exists already, with {there_are} partitions")
            self._state.create(check_new_topic(topic), partitions, parse_settings(settings))

    def alter_topic(self, topic: str, partitions: int | None = None, **settings: int | str) -> None:
        with self._state.locked():
            self._state.alter(check_topic(topic), partitions, parse_settings(settings))

    def delete_topic(self, topic: str) -> None:
        with self._state.locked():
            self._state.delete(check_topic(topic))

    def describe_topic(self, topic: str) -> TopicDescription:
        with self._state.locked():
            found = self._state.find(topic)
            return TopicDescription(
                topic,
                tuple(PartitionBounds(log.start, log.end) for log in found.partitions),
                tuple(sum(map(size_of, log.records)) for log in found.partitions),
                settings_for(topic, found.given),
            )

    def groups(self) -> list[str]:
        with self._state.locked():
            return sorted(name for name, group in self._state.groups.items() if group.members or group.committed)

    def describe_group(self, group: str) -> GroupDescription:
        with self._state.locked():
            found = self._state.groups.get(group, Group())
            return GroupDescription(group, dict(found.members), dict(found.owners), dict(found.committed))

    def close(self) -> None:
        """Nothing is held."""

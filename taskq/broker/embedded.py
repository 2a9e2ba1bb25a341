"""The embedded broker: a data directory that any number of processes of one machine share. No server.

This module is the port over `log/`: publishing, looking, administering. Groups are in consumer.py and membership.py.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from taskq.broker import cleaner
from taskq.broker.consumer import EmbeddedConsumer
from taskq.broker.following import LookingFollower
from taskq.broker.limits import check_size
from taskq.broker.log import names, offsets
from taskq.broker.log.batch import encode_many, encode_one
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.directory import DataDirectory
from taskq.broker.log.failures import all_documented, documented
from taskq.broker.log.files import RealFiles
from taskq.broker.log.flusher import Flusher
from taskq.broker.log.partition import Partition
from taskq.broker.membership import live_members
from taskq.broker.partitioner import partition_for_key, spread_for
from taskq.broker.port import (
    MESSAGE_BYTES_MAX,
    PARTITIONS_DEFAULT,
    GroupDescription,
    Headers,
    Lost,
    Message,
    PartitionBounds,
    Record,
    TopicDescription,
    TopicPartition,
    WouldBlock,
)
from taskq.broker.shares import cut, share
from taskq.broker.wakeups import Bell
from taskq.config import Durability, check_group, check_new_topic, check_topic
from taskq.errors import BrokerError, BrokerUnavailable, CorruptLog, StorageError, TopicNotFound
from taskq.topics import TopicConfig, parse_settings

_DURABILITY_DEFAULT = Durability("interval", 100)


class EmbeddedBroker:
    """See `taskq.broker.port.Broker`. Thread-safe; not to be used across `fork`: a child may only close its copy, which
    does nothing.
    """

    def __init__(
        self,
        root: str,
        *,
        durability: Durability = _DURABILITY_DEFAULT,
        partitions_default: int = PARTITIONS_DEFAULT,
        topics: Mapping[str, TopicConfig] = MappingProxyType({}),
        shared: bool = False,
        cleaner_interval_s: float = cleaner.INTERVAL_S,
    ) -> None:
        self._pid = os.getpid()
        self._bell = Bell()
        self._directory = DataDirectory(
            root,
            RealFiles(shared=shared),
            self._wake,
            partitions_default=partitions_default,
            topics=topics,
            syncs=durability.kind != "os",
        )
        self._durability = durability
        self._mutex = threading.Lock()
        self._consumers: list[EmbeddedConsumer] = []
        self._readers: weakref.WeakSet[EmbeddedReader] = weakref.WeakSet()
        self._flusher = Flusher(self._directory.opened, durability.interval_ms / 1000)
        self._cleaner = cleaner.Cleaner(self._directory, cleaner_interval_s)
        self._is_closed = False
        atexit.register(self.close)
        _opened.add(self)

    @property
    def url(self) -> str:
        return f"file://{self._directory.root}"

    is_remote = False

    @property
    def unsynced_s(self) -> float:
        return self._flusher.unsynced_s

    def _wake(self, topic: str, waiting: int) -> None:
        self._bell.ring(names.topic_waiters(self._directory.root, topic), waiting)

    def producer(self) -> EmbeddedProducer:
        self._check_open()
        self._cleaner.start()
        return EmbeddedProducer(self._directory, self._flusher, self._durability)

    def consumer(self, group: str, topics: Sequence[str], *, offset_reset: str = "earliest") -> EmbeddedConsumer:
        self._check_open()
        self._cleaner.start()
        is_strict = offset_reset == "error"
        consumer = EmbeddedConsumer(self._directory, self._bell, check_group(group), topics, is_strict=is_strict)
        with self._mutex:
            self._consumers.append(consumer)
        return consumer

    def reader(self) -> EmbeddedReader:
        self._check_open()
        self._readers.add(reader := EmbeddedReader(self._directory))
        return reader

    def follower(self, tp: TopicPartition, lost: Callable[[Lost], object]) -> LookingFollower:
        return LookingFollower(self.reader(), tp, lost)

    def admin(self) -> EmbeddedAdmin:
        self._check_open()
        return EmbeddedAdmin(self._directory)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BrokerUnavailable(f"the broker at {self.url} has been closed by this process; open it again")

    @documented("closing the broker")
    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child's copy: the files are the parent's, and its threads may have held the locks
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
        atexit.unregister(self.close)
        ends = [self._cleaner.close, *(one.close for one in self._readers), *(one.close for one in self._consumers)]
        ends += [self._flusher.close] if self._durability.kind != "os" else []
        failed: list[Exception] = []
        for close in (*ends, self._directory.close, self._bell.close):
            try:
                close()
            except (OSError, BrokerError) as error:  # the others must be closed all the same
                failed.append(error)
        if failed:
            raise failed[0]


_opened: weakref.WeakSet[EmbeddedBroker] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for broker in list(_opened):
        atexit.unregister(broker.close)


os.register_at_fork(after_in_child=_leave_to_parent)


class _Topic:
    """A topic as a producer sees it."""

    __slots__ = ("_directory", "name", "opened", "spread", "topic")

    def __init__(self, directory: DataDirectory, name: str, forget: Callable[[str], None]) -> None:
        self._directory = directory
        self.name = name
        self.topic = directory.ensure(name)
        self.opened: list[Partition | None] = [None] * self.topic.partitions
        """The partitions that have been used."""
        self.spread = spread_for(name, len(self.opened), self.topic.settings.cleanup_policy, forget)

    def share(self, messages: Sequence[Message]) -> list[tuple[int, Sequence[Message]]]:
        """Which messages go to which partition."""
        return share(messages, self.spread, len(self.opened))

    @documented("opening a partition")
    def open(self, number: int) -> Partition:
        partition = self.opened[number] = self._directory.partition(TopicPartition(self.name, number))
        return partition


class EmbeddedProducer:
    """See `taskq.broker.port.Producer`."""

    def __init__(self, directory: DataDirectory, flusher: Flusher, durability: Durability) -> None:
        self._directory = directory
        self._topics: dict[str, _Topic] = {}
        self._flusher = flusher
        self._syncs_each = durability.kind == "fsync"
        self._flushes = durability.kind == "interval"
        directory.subscribe(self)

    def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
    ) -> tuple[int, int]:
        if value is None or len(value) > MESSAGE_BYTES_MAX or key is not None or headers:
            check_size(topic, value, key, headers)
        target = self._topics.get(topic)
        if target is None or (self._syncs_each and not wait):
            if not wait:
                raise WouldBlock
            target = self._open(topic)
        number = target.spread.next() if key is None else partition_for_key(key, len(target.opened))
        partition = target.opened[number]
        timestamp_ms = int(time.time() * 1000)
        try:
            if partition is None:
                if not wait:
                    raise WouldBlock
                partition = target.open(number)
            offset = partition.append(encode_one(value, key, headers, timestamp_ms), 1, timestamp_ms, wait=wait)
            if self._syncs_each:
                partition.sync()
        except (TopicNotFound, StorageError):
            if not self._is_gone(target):
                raise
            if not wait:
                raise WouldBlock from None
            return self.send(topic, value, key, headers)
        if self._flushes and not self._flusher.is_dirty:
            self._flusher.touch()
        return number, offset

    def send_many(self, topic: str, messages: Sequence[Message]) -> None:
        """Publish all, in batches: each is there whole or not at all.

        If one of several can't be written (StorageFull), those before it stay published, and whoever publishes all of
        them again has those twice.
        """
        target = (self._topics.get(topic) if messages else None) or self._open(topic)
        # Cut into batches, and so checked for size, before the first is appended.
        numbered = [(number, batch) for number, share in target.share(messages) for batch in cut(topic, share)]
        timestamp_ms = int(time.time() * 1000)
        try:
            batches = [(target.opened[number] or target.open(number), batch) for number, batch in numbered]
            for partition, batch in batches:
                partition.append(encode_many(batch, timestamp_ms), len(batch), timestamp_ms)
            if self._syncs_each:
                for partition in {partition for partition, _ in batches}:
                    partition.sync()
        except (TopicNotFound, StorageError):
            if not self._is_gone(target):
                raise
            return self.send_many(topic, messages)  # all of them: what was appended has gone with the topic
        if self._flushes and not self._flusher.is_dirty:
            self._flusher.touch()
        return None

    def _is_gone(self, target: _Topic) -> bool:
        """Whether the topic has been deleted since it was opened: then it is to be opened anew, as another one.

        Each time it is another one, so who tries again comes to an end.
        """
        now = self._directory.find(target.name)
        if now is not None and now.id == target.topic.id:
            return False
        self.forget(target.name)
        return True

    def forget(self, topic: str) -> None:
        """See `directory.Listener`. The next message opens the topic as it is then."""
        self._topics.pop(topic, None)

    @documented("opening a topic")
    def _open(self, topic: str) -> _Topic:
        while True:
            target = self._topics.setdefault(topic, _Topic(self._directory, topic, self.forget))
            if self._directory.find(topic) == target.topic:
                return target
            self.forget(topic)  # altered or deleted in this moment, and what was told of it came too early

    def close(self) -> None:
        self._flusher.sync()


@all_documented
class EmbeddedReader:
    """See `taskq.broker.port.Reader`. Keeps the place where it last read, so that reading on costs no look-up."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._mutex = threading.Lock()
        self._cursors: dict[TopicPartition, tuple[Partition, Cursor]] = {}

    def bounds(self, tp: TopicPartition) -> PartitionBounds:
        return self._directory.partition(tp).bounds()

    def read(
        self,
        tp: TopicPartition,
        offset: int,
        bytes_max: int = 1024 * 1024,
        *,
        lost: Callable[[Lost], object] | None = None,
    ) -> list[Record]:
        partition = self._directory.partition(tp)
        if lost is not None:
            skipping = partition.cursor(offset, lost)
            try:
                return skipping.read(bytes_max)
            finally:
                skipping.close()
        with self._mutex:
            known, cursor = self._cursors.get(tp, (None, None))
            if cursor is None or known is not partition or cursor.offset != offset:
                if cursor is not None:
                    cursor.close()
                cursor = partition.cursor(offset)
                self._cursors[tp] = partition, cursor
            try:
                return cursor.read(bytes_max)
            except (CorruptLog, FileNotFoundError):
                if partition.is_deleted:
                    raise TopicNotFound(f"{tp}: the topic has been deleted") from None
                raise

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        return self._directory.partition(tp).offset_for(timestamp_ms)

    def close(self) -> None:
        with self._mutex:
            for _, cursor in self._cursors.values():
                cursor.close()
            self._cursors.clear()


@all_documented
class EmbeddedAdmin:
    """See `taskq.broker.port.Admin`."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory

    def topics(self) -> list[str]:
        return self._directory.topics()

    def partitions(self, topic: str) -> int:
        return self._directory.get(topic).partitions

    def create_topic(
        self, topic: str, partitions: int = PARTITIONS_DEFAULT, *, replication: int = -1, **settings: int | str
    ) -> None:
        self._directory.catalogue.create(check_new_topic(topic), partitions, parse_settings(settings))

    def alter_topic(self, topic: str, partitions: int | None = None, **settings: int | str) -> None:
        self._directory.catalogue.alter(check_topic(topic), partitions, parse_settings(settings))
        self._directory.find(topic)  # so that who publishes in this process knows at once

    def delete_topic(self, topic: str) -> None:
        self._directory.catalogue.delete(check_topic(topic))

    def describe_topic(self, topic: str) -> TopicDescription:
        found = self._directory.get(topic)
        bounds: list[PartitionBounds] = []
        sizes: list[int] = []
        for number in range(found.partitions):
            with self._directory.borrowed(TopicPartition(topic, number)) as partition:
                bounds.append(partition.bounds())
                sizes.append(partition.size_bytes())
        return TopicDescription(topic, tuple(bounds), tuple(sizes), found.settings)

    def groups(self) -> list[str]:
        return offsets.group_names(self._directory.files, self._directory.root)

    def describe_group(self, group: str) -> GroupDescription:
        files, root = self._directory.files, self._directory.root
        check_group(group)
        live = live_members(files, root, group)
        owners, committed = {}, {}
        with suppress(FileNotFoundError):
            for topic in sorted(files.listdir(names.group_topics(root, group))):
                found_topic = self._directory.find(topic)
                for number in range(found_topic.partitions if found_topic else 0):
                    owner, found = offsets.peek(files, root, group, topic, number)
                    tp = TopicPartition(topic, number)
                    if owner in live:
                        owners[tp] = owner
                    if found is not None:
                        committed[tp] = found
        return GroupDescription(group, live, owners, committed)

    def close(self) -> None:
        """Nothing is held."""

"""One simulated process: a data directory opened over the simulated disk, with memory and locks of its own."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.broker.log import offsets
from taskq.broker.log.batch import encode_many, encode_one
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.directory import DataDirectory
from taskq.broker.log.partition import Partition
from taskq.broker.log.segment import OPEN
from taskq.broker.port import Committed, Message, Record, TopicPartition
from tests.simulation.disk import Disk
from tests.simulation.files import Fate, SimFiles
from tests.simulation.model import Plain

READ_BYTES = 4096


class Process:
    """Opens the data directory at once. `mode` is its durability: "fsync", "interval" or "os"."""

    def __init__(self, name: str, mode: str, disk: Disk, fate: Fate, segment_bytes: int) -> None:
        self.name = name
        self.mode = mode
        self.files = SimFiles(disk, fate)
        self._segment_bytes = segment_bytes
        self._root = f"{disk.base}/data"
        self._directory: DataDirectory | None = None
        self._leases: dict[tuple[str, TopicPartition], offsets.Lease] = {}
        self._committed: set[tuple[str, TopicPartition]] = set()
        self.unsynced: dict[TopicPartition, list[int]] = {}
        """The last offsets of what this process has appended since it last synced, by partition."""
        self.has_failed = False
        """Whether it has raised for what failed here or elsewhere."""
        self.repairs_before = 0
        """How many repairs there had been when it started."""

    @property
    def directory(self) -> DataDirectory:
        if self._directory is None:
            self._directory = DataDirectory(self._root, self.files, lambda topic, bits: None)
        return self._directory

    def partition(self, tp: TopicPartition) -> Partition:
        partition = self.directory.partition(tp)
        partition._segment_bytes_max = self._segment_bytes
        return partition

    def opened(self) -> dict[TopicPartition, Partition]:
        return dict(self._directory._opened) if self._directory is not None else {}

    def append(self, tp: TopicPartition, plain: Sequence[Plain]) -> int:
        partition = self.partition(tp)
        timestamp_ms, key, value, headers = plain[0]
        if len(plain) == 1:
            batch = encode_one(value, key, headers, timestamp_ms)
        else:
            batch = encode_many([Message(value, key, headers) for _, key, value, headers in plain], timestamp_ms)
        return partition.append(batch, len(plain), timestamp_ms)

    def sync(self, tp: TopicPartition) -> None:
        self.partition(tp).sync()

    def take(self, group: str, tp: TopicPartition) -> bool:
        """Whether we have the lease. The partition is opened first, as a consumer does it."""
        self.partition(tp)
        if (group, tp) not in self._leases:
            directory = self.directory
            lease = offsets.Lease.take(directory.files, directory.root, group, tp.topic, tp.partition, self.name)
            if lease is None:
                return False
            self._leases[group, tp] = lease
        return True

    def has_committed(self, group: str, tp: TopicPartition) -> bool:
        return (group, tp) in self._committed

    def commit(self, group: str, tp: TopicPartition, committed: Committed) -> None:
        self._committed.add((group, tp))
        self._leases[group, tp].commit(committed, self.partition(tp).end())

    def committed(self, group: str, tp: TopicPartition) -> Committed | None:
        directory = self.directory
        return offsets.peek(directory.files, directory.root, group, tp.topic, tp.partition)[1]

    def read(self, tp: TopicPartition) -> list[Record]:
        partition = self.partition(tp)
        cursor = partition.cursor(partition.bounds().start)
        try:
            return _read_on(cursor)
        finally:
            cursor.close()

    def release(self, topic: str | None = None) -> None:
        """Give up leases: all, or those in a topic, and what was noted of these."""
        for key in [key for key in self._leases if topic in (None, key[1].topic)]:
            self._leases.pop(key).release()
            self._committed.discard(key)

    def forget(self, topic: str) -> None:
        """It has been deleted."""
        self.release(topic)
        self.unsynced = {tp: offsets for tp, offsets in self.unsynced.items() if tp.topic != topic}

    def close(self) -> None:
        """End in order."""
        self.release()
        self.directory.close()
        self.files.die()

    def die(self) -> None:
        """End at once."""
        for partition in self.opened().values():
            OPEN.discard(partition)  # what it remembers of this process died with it
        self.files.die()


def _read_on(cursor: Cursor) -> list[Record]:
    found: list[Record] = []
    while records := cursor.read(READ_BYTES):
        found += records
    return found

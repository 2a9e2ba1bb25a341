"""The last segment of a partition, open for appending: a log and its two indexes."""

from __future__ import annotations

import os
import threading
from typing import Protocol

from taskq.broker.log import names
from taskq.broker.log.files import Files
from taskq.broker.log.head import TIMEINDEX_LAST, TIMEINDEX_SIZE, TIMESTAMP_MAX, TIMESTAMP_MAX_OFFSET, Head, Steady
from taskq.broker.log.index import ENTRY, TIME_ENTRY


class ActiveSegment:
    """Three descriptors. The log's is used directly by who appends; all of it under the append lock."""

    __slots__ = ("_files", "_index_fd", "_timeindex_fd", "base", "log_fd")

    def __init__(self, files: Files, directory: str, base: int) -> None:
        self._files = files
        self.base = base
        opened: list[int] = []
        try:
            for path in (names.log(directory, base), names.index(directory, base), names.timeindex(directory, base)):
                opened.append(files.open(path, create=True))  # noqa: PERF401 - those opened before one fails are closed
        except BaseException:
            for fd in opened:
                files.close(fd)
            raise
        self.log_fd, self._index_fd, self._timeindex_fd = opened

    def index(self, head: Head, steady: Steady, last_offset: int, position: int) -> Steady:
        """Add the batch at `position`, whose last offset is given, to the indexes."""
        self._files.pwrite(self._index_fd, ENTRY.pack(last_offset - self.base, position), steady.index_size)
        self.index_time(head)
        return steady.with_index(position, steady.index_size + ENTRY.size)

    def index_time(self, head: Head) -> None:
        """Say in the time index how far the timestamps have come."""
        words = head.words
        timestamp_ms, size = words[TIMESTAMP_MAX], words[TIMEINDEX_SIZE]
        if timestamp_ms > words[TIMEINDEX_LAST]:
            entry = TIME_ENTRY.pack(timestamp_ms, words[TIMESTAMP_MAX_OFFSET] - self.base)
            self._files.pwrite(self._timeindex_fd, entry, size)
            words[TIMEINDEX_SIZE], words[TIMEINDEX_LAST] = size + TIME_ENTRY.size, timestamp_ms

    def sync_indexes(self) -> None:
        for fd in (self._index_fd, self._timeindex_fd):
            self._files.sync(fd)

    def close(self) -> None:
        for fd in (self.log_fd, self._index_fd, self._timeindex_fd):
            self._files.close(fd)


OPEN_MAX = 256
"""How many partitions a process keeps open for appending; each has three files open. Reopening costs about 20 us."""


class Shuttable(Protocol):
    """What has an active segment open."""

    def shut(self) -> bool:
        """Close it if that can be done at once."""
        ...


class OpenSegments:
    """Which partitions have their active segment open: the oldest is shut when there are too many. Thread-safe.

    What can't be shut at once, since it is being used or not synced yet, is passed over; there may be some more for a
    while.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: what is open is its parent's, and a thread of that one may have the lock."""
        self._mutex = threading.Lock()
        self._opened: dict[Shuttable, None] = {}

    def add(self, partition: Shuttable) -> None:
        """`partition` has opened its segment. Called under that one's locks."""
        with self._mutex:
            self._opened[partition] = None
            excess = len(self._opened) - self.limit
            for other in list(self._opened) if excess > 0 else ():
                if other is not partition and other.shut():
                    del self._opened[other]
                    excess -= 1
                    if excess <= 0:
                        return

    def discard(self, partition: Shuttable) -> None:
        """`partition` is closed."""
        with self._mutex:
            self._opened.pop(partition, None)


OPEN = OpenSegments(OPEN_MAX)
"""Those of this process."""

os.register_at_fork(after_in_child=OPEN.forget)

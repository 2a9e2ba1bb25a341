"""Follows a partition where looking costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable

from taskq.broker.port import Lost, Reader, Record, TopicPartition
from taskq.errors import TopicNotFound


class LookingFollower:
    """See `taskq.broker.port.Follower`. It looks each time, and never waits."""

    def __init__(self, reader: Reader, tp: TopicPartition, lost: Callable[[Lost], object]) -> None:
        self._reader = reader
        self._tp = tp
        self._lost = lost
        self._next = 0

    def read(self, timeout: float) -> list[Record]:
        try:
            bounds = self._reader.bounds(self._tp)
            if bounds.end == self._next:
                return []
            if bounds.end < self._next:  # another log than before
                self._next = bounds.start
            records = self._reader.read(self._tp, self._next, lost=self._lost)
        except TopicNotFound:  # whoever makes it anew makes another
            self._next = 0
            return []
        if records:
            self._next = records[-1].offset + 1
        return records

    def close(self) -> None:
        self._reader.close()

"""How much is fetched: enough that no runner waits, and no more. The backlog waits in the log, not in memory.

Three things hold a partition's records back: so much is in flight that all fetching stops until runners ask for more;
the partition is stalled, since progress in it could not be stored or enough of it waits at gates already, in number or
in bytes; or enough waits of its priority.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from taskq.broker.port import Consumer, TopicPartition
from taskq.worker.dispatch import Dispatch
from taskq.worker.work import Feed, Limits, Work

BYTES_MAX = 64 * 1024 * 1024
"""Fetching stops when the records in flight are larger than this, however few they are. As much may wait at gates, in
all partitions together."""

WAITING_SHARE = 8
"""A partition with more than this part of what may be in flight at gates is stalled, until half of that is left."""

_log = logging.getLogger("taskq.worker")


class Throttle:
    """Belongs to the poller's thread. `works` are the partitions held, which the poller changes."""

    def __init__(
        self,
        group: str,
        consumer: Consumer,
        feed: Feed,
        dispatch: Dispatch,
        works: Mapping[TopicPartition, Work],
        limits: Limits,
    ) -> None:
        self._group = group
        self._consumer = consumer
        self._feed = feed
        self._dispatch = dispatch
        self._works = works
        self._limits = limits
        self._paused: set[TopicPartition] = set()
        self.is_full = False
        """Whether all fetching is stopped."""

    def forget(self, tp: TopicPartition) -> None:
        """It is not held any more."""
        self._paused.discard(tp)

    def balance(self, take_up: Callable[[], None]) -> None:
        """Stop fetching where enough is in flight, and go on where it is not. `take_up` what has ended meanwhile."""
        feed, most = self._feed, self._limits.in_flight_max
        if not self.is_full and self._has_enough():
            take_up()
            if self._has_enough():
                feed.low = max(1, min(most, feed.queued()) // 2)
                self.is_full = feed.is_full = True
        if self.is_full and feed.queued() < feed.low:
            self.is_full = feed.is_full = False
        for work in self._works.values():
            self._find_whether_stalled(work)
        self._pause_and_resume()

    def _has_enough(self) -> bool:
        queued = self._feed.queued()
        if queued >= self._limits.in_flight_max:
            return True
        # Where nothing waits, what runs may be as large as it likes: idle runners must get their work.
        return queued > 0 and sum(work.handed_out_bytes for work in self._works.values()) > BYTES_MAX

    def _find_whether_stalled(self, work: Work) -> None:
        is_stalled = (work.waiting > 0 and self._wait_enough(work)) or work.is_too_far_ahead(self._limits.concurrency)
        if is_stalled and not work.is_stalled:
            _log.warning(
                "%s: group %s is too far ahead of its slowest invocations, from offset %d on; waiting for them",
                *(work.tp, self._group, work.progress.low),
            )
        work.is_stalled = is_stalled

    def _wait_enough(self, work: Work) -> bool:
        """Whether enough of it is at gates: its share of what may be, or half of that if it is stalled already."""
        part = 2 if work.is_stalled else 1
        waiting_max = max(1, self._limits.in_flight_max // (WAITING_SHARE * part))
        return work.waiting >= waiting_max or work.waiting_bytes > BYTES_MAX // (len(self._works) * part)

    def _pause_and_resume(self) -> None:
        """Have the consumer fetch what is wanted, and nothing else."""
        full = self._dispatch.full_topics
        unwanted = {
            tp
            for tp, work in self._works.items()
            # While it is to be handed over, nothing new may overtake what was taken back.
            if self.is_full or work.is_stalled or work.error or work.handover_at is not None or tp.topic in full
        }
        if unwanted != self._paused:
            if paused := unwanted - self._paused:
                self._consumer.pause(list(paused))
            if resumed := self._paused - unwanted:
                self._consumer.resume(list(resumed))
            self._paused = unwanted
